"""Read and validate settings; messages name key, value, expectation and remedy."""

import difflib
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import UserError, redact
from .blocks import CONSTANTS, IN_WORDS, NULLS, Block, Network
from .schema import Config

PRESETS = Path(__file__).with_name("presets")
# former settings, which nobody had a reason to change
FORMER = {
    *CONSTANTS,
    *("adam_beta1", "adam_beta2", "adam_eps", "weight_decay", "state_every_s", "keep_states"),
    *("vae_slicing", "eps_error_samples", "kid_subsets", "kid_subset_size", "jackknife_groups", "bootstrap"),
    *("clip_strict", "evaluate.precision"),
}


def load_config(path: str | Path, over: str | Path | None = None) -> Config:
    """Read and validate a configuration file, merged with `over` as by Snakemake's --configfile.

    If `over` names a preset, `path` is not read: its values fit another size of teacher.
    """
    values = read_yaml(over or path)
    if over is None or "preset" in values:
        return parse_config(values, str(over or path), [over or path])
    return parse_config(merge(read_yaml(path), values), str(over), [over, path])


def merge(values: dict, over: dict) -> dict:
    """Merge the mappings of `over` into those of `values`; lists and values are replaced."""
    merged = dict(values)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        merged[key] = merge(values[key], value) if both else value
    return merged


def load_settings(kind: type[Block], path: str | Path) -> Any:
    """Read a stage's settings file as `kind`."""
    return parse(kind, read_yaml(path), str(path), [path])


def parse_config(values: dict, source: str = "config", files: Sequence = (), arguments: Sequence[str] = ()) -> Config:
    """Validate a configuration, merged into its preset; messages quote the text of `files` and of Snakemake's `arguments`."""
    return parse(Config, _over_preset(values, source), source, files, arguments)


def _over_preset(values: dict, source: str) -> dict:
    """Merge values into those of their preset, which may have one of its own."""
    name = values.get("preset")
    if name is None or name in NULLS:
        return values
    presets = {path.stem: path for path in PRESETS.glob("*.yaml")}
    if name not in presets:
        raise UserError(f"{source}: preset={name}: expected one of {', '.join(sorted(presets))}, or null")
    return merge(_over_preset(read_yaml(presets[name]), source), values)


class _EveryKeyOnce(yaml.SafeLoader):
    """A loader that rejects repeated keys: YAML takes the last one, and silently drops a whole block."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (first := seen.setdefault((key.tag, key.value), key)) is not key:
                lines = f"lines {first.start_mark.line + 1} and {key.start_mark.line + 1}"
                raise UserError(f"{self.name}, {lines}: {key.value!r} is given twice; keep one")
        return node


def read_yaml(path: str | Path) -> dict:
    """Read a YAML mapping; a UserError names the place of a repeated key, or a missing or malformed file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix == ".json":
            text = text.replace("\t", " ")  # YAML rejects tabs, which JSON allows between tokens alone
        stream = io.StringIO(text)
        stream.name = str(path)  # shown in messages
        values = yaml.load(stream, _EveryKeyOnce)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def parse(kind: type[Block], values: dict, source: str, files: Sequence = (), arguments: Sequence[str] = ()) -> Any:
    """Validate `values` as `kind`; one UserError lists all errors, a line each."""
    if secret := [_without_secret(key, text) for key, text in _texts(values) if redact(text) != text]:
        raise UserError("\n".join(f"{source}: {line}" for line in secret))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, problem, files, arguments) for problem in error.errors()]
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in settings, with its key."""
    if isinstance(values, str):
        yield key.removeprefix("."), values
    elif isinstance(values, dict | list):
        for part, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _texts(value, f"{key}.{part}")


def _without_secret(key: str, text: str) -> str:
    """Describe a URL with a password: settings are copied to results/, the report and MLflow."""
    if key.startswith("tracking."):
        fix = "set MLFLOW_TRACKING_URI to it, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment"
    else:
        fix = "put user and password into ~/.netrc, or download the file by hand and give its path"
    return f"{key}={text}: expected a URL without user, password or token, since settings are copied into results/. Fix: {fix}"


def _explain(kind: type[Block], problem: dict, files: Sequence[str | Path], arguments: Sequence[str]) -> str:
    """Describe a validation error in one line: key, value, expectation, remedy."""
    location = [part for part in problem["loc"] if not (isinstance(part, str) and "[" in part)]
    key = ".".join(str(part) for part in location)
    value = problem["input"]
    if problem["type"] == "string_type" and isinstance(value, bool | int | float | date):
        if problem["loc"][-1] == "[key]":
            return f"{key}: expected text as a key, which YAML reads as another value. Fix: quote the key"
        return f"{key}={_not_quoted(location, value, files, arguments)}"
    if problem["type"] == "extra_forbidden" and {key, location[-1]} & FORMER:
        return f"unknown key {key!r}: now a constant. Fix: remove it"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _keys(kind, location[:-1]), n=1)
        block, _, inner = str(location[-1]).rpartition("_")
        if block in _keys(kind, location[:-1]) and inner in Network.model_fields:
            close = [f"{block}.{inner}"]
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(_keys(kind, location[:-1]))}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it, or name a preset (docs/reference/config.md lists every key with its unit)"
    if problem["type"] == "list_type" and value is not None:
        return f"{key}={value!r}: expected a list. Fix: {key}: [{value!r}]"
    if problem["type"] in ("model_type", "dict_type") and value is not None:
        return f"{key}={value!r}: expected keys with values, as in docs/reference/config.md"
    if problem["type"] == "string_pattern_mismatch":
        return f"{key}={value!r}: expected {IN_WORDS[problem['ctx']['pattern']]}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    message = message.replace("input should be", "expected")
    if value is None:
        return f"{key}=null: {message}, got no value. Fix: give it one"
    return f"{key}={value!r}: {message}"


def _not_quoted(location: list, value: Any, files: Sequence[str | Path], arguments: Sequence[str]) -> str:
    """Describe a text that YAML, or Snakemake, reads as a number, a date or a boolean."""
    typed, by_command = _typed(location, value, files, arguments)
    kind = "date" if isinstance(value, date) else "number"
    read = str(value).lower() if isinstance(value, bool) else f"the {kind} {value}"
    fix = f'quote it: {location[-1]}: "{typed}"'
    if by_command:
        fix = f'quote it in a --configfile: {location[-1]}: "{typed}" (Snakemake takes quotes off --config: there, begin it with a letter)'
    return f"{typed}: expected text, which {'Snakemake' if by_command else 'YAML'} reads as {read}. Fix: {fix}"


def _typed(location: list, value: Any, files: Sequence[str | Path], arguments: Sequence[str]) -> tuple[str, bool]:
    """Return the text of `value` in a file or on Snakemake's command line, which overrides files, and if it is the latter."""
    for argument in arguments:
        key, _, text = argument.removeprefix("--config=").partition("=")
        if [key] == location:
            return text, True
    for file in files:
        with suppress(OSError, yaml.YAMLError, LookupError, TypeError):
            text = yaml.load(Path(file).read_text(encoding="utf-8"), yaml.BaseLoader)  # keeps every value as text
            for part in location:
                text = text[part]
            if isinstance(text, str) and yaml.safe_load(text) == value:
                return text, False
    return str(value), False


def _keys(kind: type[Block], location: list) -> list[str]:
    """Return the keys that are allowed at a place in the settings."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, Block)]
        kind = inner[0] if inner else annotation
    return list(kind.model_fields)
