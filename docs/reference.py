"""Write docs/reference/*.md and workflow/schemas/config.schema.json from the settings' schema and the argument parser."""

import argparse
import json
import re
from pathlib import Path

from sid_core import cli
from sid_core.config import Config
from sid_core.config.loading import PRESETS

ROOT = Path(__file__).parents[1]
MADE = "<!-- made by `make reference`; edit sid_core/config and sid_core/cli.py instead -->"

PATTERNS = {
    "^[A-Za-z0-9][A-Za-z0-9._-]*$": "a name",
    "^[0-9a-f]{64}$": "a sha256",
    "^[0-9a-f]{40}$": "a full commit",
    r"^[1-9]\d*[mhd]$": "a duration, such as `30m`",
}


def pages() -> dict[Path, str]:
    """Return the text of each generated file, by its path."""
    return {
        ROOT / "docs" / "reference" / "config.md": config_page(),
        ROOT / "docs" / "reference" / "cli.md": cli_page(cli._parser()),
        ROOT / "workflow" / "schemas" / "config.schema.json": json.dumps(Config.model_json_schema(), indent=2) + "\n",
    }


# --- settings ----------------------------------------------------------------------------------------------------------


def config_page() -> str:
    """Describe every key by block: accepted values, default or values in the presets, meaning."""
    schema = Config.model_json_schema()
    shapes, sd15 = (_comments((PRESETS / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("shapes", "sd15"))
    lines = [
        *(MADE, "", "# Settings", ""),
        "Every key of config.yaml and of a file given with `--configfile`. A missing key takes its value from the file's `preset`",
        "(`sid_core/config/presets`, with a reason beside each value; others list their differences from another one), else the default.",
        "A --configfile with a preset replaces config.yaml; one without is laid over it. Unknown keys and values out of range are",
        "errors before anything starts. Editors check both files by `workflow/schemas/config.schema.json`, the same as a JSON schema.",
    ]
    for block, (path, properties, required) in _blocks(schema).items():
        lines += ["", f"## {block}", "", "| key | takes | default | shapes | sd15 | |", "|---|---|---|---|---|---|"]
        for key, field in properties.items():
            given = [comments.get(f"{path}{key}", ("", "")) for comments in (shapes, sd15)]
            default = _value(field["default"]) if "default" in field and not isinstance(field["default"], dict) else ""
            required_ = " (required)" if key in required and not given[0][0] and "$ref" not in field else ""
            cells = [f"`{text}`" if text else "" for text in (default, given[0][0], given[1][0])]
            meaning = _cell(field.get("description") or given[0][1])
            lines.append(f"| `{key}` | {_takes(field)}{required_} | {' | '.join(cells)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _blocks(schema: dict) -> dict[str, tuple[str, dict, list[str]]]:
    """Map each title to (path in config.yaml, properties, required keys), in the order of the file."""
    found = {"top": ("", schema["properties"], schema["required"])}

    def visit(path: str, field: dict) -> None:
        for reference in re.findall(r'"#/\$defs/(\w+)"', json.dumps(field)):
            block = schema["$defs"][reference]
            if "properties" in block and not any(block["properties"] is known for _, known, _ in found.values()):
                repeated = field.get("type") in ("array", "object")
                title = f"{path}, each" if repeated else path
                found[title] = (f"{path}.", block["properties"], block.get("required", []))
                for key, inner in block["properties"].items():
                    visit(f"{path}.{key}", inner)

    for key, field in schema["properties"].items():
        visit(key, field)
    return found


def _takes(field: dict) -> str:
    """Describe the accepted values in words."""
    if "$ref" in field:
        return "a block"
    if "anyOf" in field:
        return " or ".join(_takes(one) for one in field["anyOf"])
    if "allOf" in field:
        return _takes(field["allOf"][0])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"a list: {_takes(field['items'])}"
    if field.get("type") == "object":
        return f"by name: {_takes(field['additionalProperties'])}" if "additionalProperties" in field else "a block"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    range_ = [f"{sign} {field[key]:g}" for key, sign in limits.items() if key in field]
    if "pattern" in field:
        return PATTERNS[field["pattern"]]
    return " ".join([words[field["type"]], *range_])


def _comments(text: str) -> dict[str, tuple[str, str]]:
    """Return value and comment of each line of a preset, by dotted key; a block in braces is split."""
    found, above = {}, []
    for line in text.splitlines():
        match = re.match(r"( *)([\w-]+):(?: +(.*?))?(?: *# (.*))?$", line)
        if match:
            depth = len(match[1]) // 2
            above = [*above[:depth], match[2]]
            name, inner = ".".join(above), re.fullmatch(r"\{(.*)\}", match[3] or "")
            found[name] = ("" if inner else match[3] or "", match[4] or "")
            for key, value in re.findall(r"(\w+): ([^,]+)", inner[1] if inner else ""):
                found[f"{name}.{key}"] = (value, "")
    return found


def _value(default: object) -> str:
    """Write a default as YAML."""
    return default if isinstance(default, str) and default else json.dumps(default)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# --- command line ------------------------------------------------------------------------------------------------------


def cli_page(parser: argparse.ArgumentParser) -> str:
    """List every subcommand with its arguments."""
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        MADE,
        "",
        "# Command line",
        "",
        f"{parser.description} A user's error ends in one message and exit code 1,",
    ]
    lines += ["a signal in 128 plus its number; any other exception is a defect and prints a traceback."]
    for name, command in commands.choices.items():
        arguments = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
        lines += ["", f"## sid-core {name}", "", f"{command.description[:1].upper()}{command.description[1:]}.", ""]
        lines += ["| argument | |", "|---|---|"]
        for action in sorted(arguments, key=lambda action: (not action.required, bool(action.option_strings))):
            lines.append(
                f"| `{_spelt(action)}` | {_cell(action.help or '')}{' (required)' if action.required else ''} |"
            )
    return "\n".join(lines) + "\n"


def _spelt(action: argparse.Action) -> str:
    """Return an argument as it is typed."""
    if action.nargs == 0:
        return action.option_strings[0]
    name = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper())
    values = " ".join(name) if isinstance(name, tuple) else name + (" …" if action.nargs == "+" else "")
    return f"{action.option_strings[0]} {values}" if action.option_strings else values


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
