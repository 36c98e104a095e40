"""Check and load the components of families whose teachers are pipelines of diffusers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import diffusers
from diffusers import SchedulerMixin
from torch import nn

from ...errors import UserError
from ...method import Steps
from ...storage.files import read_json, write_json
from ..components import load_component
from ..conditioning import Conditioning, Encoder
from ..vae import ImageCodec
from .base import Backbone

if TYPE_CHECKING:
    from ..text import TextEncoder

# components that may be ignored; ignoring any other would drop a part of the model
UNUSED = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")
UNUSED_INDEX = {"feature_extractor": [None, None], "image_encoder": [None, None]}  # of pipelines with these arguments
LONGEST = 100_000  # tokens; transformers uses 10^30 for a missing length
# `model_type` in the config of a text encoder, by the first letters of its class
MODEL_TYPES = {"CLIP": ("clip_text_model", "clip"), "T5": ("t5",), "Gemma2": ("gemma2",)}
CLIP_TOKENIZER, T5_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast"), ("T5TokenizerFast", "T5Tokenizer")
CLIP_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def component_files(classes: dict[str, tuple[str, ...]]) -> tuple[dict, dict, dict]:
    """Return WEIGHTS, CONFIGS and NEEDED of a pipeline by the CLASSES of its components."""
    weights, configs, needed = {}, {}, {}
    for name, kinds in classes.items():
        if not name.startswith("tokenizer"):
            weights[name] = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
            configs[name] = needed[name] = ("config.json",)
        elif kinds == CLIP_TOKENIZER:
            configs[name], needed[name] = CLIP_FILES, CLIP_FILES[:2]
        else:
            configs[name], needed[name] = TOKENIZER_FILES, TOKENIZER_FILES[:1]
    scheduler = {"scheduler": ("scheduler_config.json",)}
    return weights, configs | scheduler, needed | scheduler


@dataclass(frozen=True)
class Usage:
    """Python arguments that the model card of an exported pipeline states."""

    call: str  # of the pipeline's call, for the steps of its training
    load: str = ""  # further ones of `from_pretrained`, each after a comma
    guidance: float = 1  # `guidance_scale` of the call; 1 evaluates the prompt alone
    note: str = ""  # what else a reader should know


class DiffusersLayout(Backbone):
    """A family of one of diffusers' pipelines, in the layout of its repositories."""

    EXPECTED: ClassVar[str]  # the components, in words of a message
    INDEX: ClassVar[dict] = {}  # further entries of an exported model_index.json
    FOREIGN: ClassVar[tuple[str, ...]] = ()  # folders of other families
    CLASSES: ClassVar[dict[str, tuple[str, ...]]]  # accepted classes of each component; the first is loaded, exported
    SETTINGS: ClassVar[dict[str, dict]] = {}  # required settings of components; a missing one has this value
    WIDTHS: ClassVar[dict[str, str]]  # parts of a conditioning, and the network's setting with their width

    @classmethod
    def image_codec(cls, folder: Path, at_once: int | None = None) -> ImageCodec:
        return ImageCodec(cls.load_component("vae", folder / "vae"), at_once)

    @classmethod
    def load_component(cls, name: str, folder: Path) -> nn.Module:
        """Load a component of diffusers from its folder."""
        return load_component(getattr(diffusers, cls.CLASSES[name][0]), folder)

    @classmethod
    def load_encoders(cls, folder: Path, length: int | None = None, kind: str = "TextEncoder") -> "list[TextEncoder]":
        """Load the text encoders as a class of models/text; all but CLIP take `length` tokens of a prompt."""
        import transformers  # training on random weights needs none of it

        from .. import text

        encoders = []
        for name in cls.encoder_names(folder):
            suffix = name.removeprefix("text_encoder")
            model, tokenizer = (getattr(transformers, cls.CLASSES[part][0]) for part in (name, f"tokenizer{suffix}"))
            tokens = None if cls.CLASSES[name][0].startswith("CLIP") else length
            encoders.append(getattr(text, kind).from_directory(folder, suffix, model, tokenizer, tokens))
        return encoders

    @classmethod
    def latent_shape(cls, folder: Path) -> tuple[int, int, int]:
        """Return (C, H, W) of the latents the network was trained on, which its config must state."""
        config = read_json(Path(folder) / cls.NETWORK / "config.json")
        size = config.get("sample_size")
        sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise UserError(
                f"{folder}: {cls.NETWORK}: sample_size={size}: expected the side of the latents it was trained at. Fix: state it in "
                f"{cls.NETWORK}/config.json of a local copy (64 for images of 512 pixels)"
            )
        return config.get("in_channels", 4), *sides

    @classmethod
    def prompt_tokens(cls, folder: Path) -> int:
        """Return the number of tokens of an embedded prompt, by the configs alone."""
        return read_json(folder / "text_encoder" / "config.json")["max_position_embeddings"]

    @classmethod
    def encoder_names(cls, folder: Path) -> list[str]:
        """Return the names of a directory's text encoders, in the order of their numbers."""
        absent = cls.absent([path.name for path in folder.iterdir()], {})
        return [name for name in sorted(cls.CLASSES) if name.startswith("text_encoder") and name not in absent]

    @classmethod
    def exported(cls, folder: Path, steps: Steps) -> tuple[SchedulerMixin, Usage]:
        """Return diffusers' scheduler for a generator of a prepared teacher, and how to use both, or reject its steps."""
        raise NotImplementedError

    @classmethod
    def fit_export(cls, folder: Path, steps: Steps) -> None:
        """Rescale components in an exported `folder` whose pipeline starts from other noise than training did."""

    @classmethod
    def check_files(cls, files: Collection[str], place: str) -> None:
        """Reject folders of other families, such as SDXL's second text encoder."""
        folders = {name.split("/")[0] for name in files if "/" in name}
        if foreign := [name for name in cls.FOREIGN if name in folders]:
            raise UserError(
                f"{place}: has {', '.join(foreign)}; {cls.EXPECTED}. Fix: give another teacher, or the model_index.json that "
                "names its family"
            )

    @classmethod
    def check_configs(cls, folder: Path, place: str) -> None:
        """Reject a pipeline with unsupported components or settings, by its JSON files."""
        if (folder / "model_index.json").is_file():
            cls._check_index(read_json(folder / "model_index.json"), place)
        for component, classes in cls.CLASSES.items():
            path, key = folder / component / _config_name(component), "_class_name"
            if component.startswith("tokenizer"):
                key = "tokenizer_class"
            elif component.startswith("text_encoder"):
                key = "model_type"
                classes = next(types for start, types in MODEL_TYPES.items() if classes[0].startswith(start))
            cls._expect(f"{place}: {component}", read_json(path) if path.is_file() else {}, key, (*classes, None))
        for component, settings in cls.SETTINGS.items():
            config = read_json(folder / component / "config.json")
            for key, value in settings.items():
                cls._expect(f"{place}: {component}", config, key, (value,), missing=value)

    @classmethod
    def _check_index(cls, index: dict, place: str) -> None:
        for component, entry in index.items():
            if component.startswith("_") or not isinstance(entry, list) or entry in ([], [None, None]):
                continue
            if entry[-1] not in cls.CLASSES.get(component, (entry[-1],)) or component not in (*cls.CLASSES, *UNUSED):
                raise UserError(
                    f"{place}: model_index.json: {component}={entry[-1]}: {cls.EXPECTED}. Fix: give another teacher"
                )

    @classmethod
    def _expect(cls, where: str, config: dict, key: str, allowed: tuple, missing: object = None) -> None:
        if (value := config.get(key, missing)) not in allowed:
            expected = " or ".join(str(one) for one in allowed if one is not None) or "none"
            raise UserError(f"{where}: {key}={value}: expected {expected}; {cls.EXPECTED}. Fix: give another teacher")

    @classmethod
    def check_components(cls, folder: Path, place: str) -> tuple[Backbone, Encoder, dict]:
        """Return network, text encoders, and for provenance.json the tokens of a prompt, if all fit each other."""
        shape, names = cls.latent_shape(folder), cls.encoder_names(folder)
        clip = [name for name in names if cls.CLASSES[name][0].startswith("CLIP")]
        lengths = [resolve_prompt_length(folder, name.removeprefix("text_encoder"), place) for name in clip]
        if len(set(lengths)) > 1:
            raise UserError(
                f"{place}: tokenizers of {' and '.join(map(str, lengths))} tokens, whose embeddings are joined token by token; "
                "expected equal model_max_length. Fix: give another teacher"
            )
        backbone, encoder, codec = cls.load(folder), cls.text_encoder(folder), cls.image_codec(folder)
        encoders = dict(zip(names, getattr(encoder, "encoders", [encoder]), strict=True))
        models = {name: one.model for name, one in encoders.items()}
        for component, model in {cls.NETWORK: backbone.network, **models, "vae": codec.vae}.items():
            check_finite(component, model, place)
        for name, one in encoders.items():
            if (ids := len(one.tokenizer)) > (rows := one.model.get_input_embeddings().num_embeddings):
                tokenizer = name.replace("text_encoder", "tokenizer")
                raise UserError(
                    f"{place}: {tokenizer} has {ids} tokens, {name} expects {rows}. Fix: take both of a model"
                )
        empty = encoder.empty()
        for part, key in cls.WIDTHS.items():
            found, width = getattr(empty, part).shape[-1], backbone.network.config[key]
            if found != width:
                values = "values a token" if part == "tokens" else f"{part} values"
                raise UserError(
                    f"{place}: {' + '.join(models)} gives {found} {values}, {cls.NETWORK} expects {width}; they do not belong together"
                )
        if (channels := codec.vae.config.latent_channels) != shape[0]:
            raise UserError(
                f"{place}: vae has {channels} latent channels, {cls.NETWORK} expects {shape[0]}; they do not belong "
                "together. Fix: take the vae of the same model"
            )
        return backbone, encoder, {"tokens": empty.tokens.shape[1]}


class TextEncoders(nn.Module):
    """Text encoders, whose outputs a family's `encode` joins."""

    def __init__(self, encoders: "Sequence[TextEncoder]"):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.overflows = any(encoder.overflows for encoder in encoders)

    def empty(self) -> Conditioning:
        """Return the embedding of the empty prompt, one row."""
        return self.encode([""])


def check_finite(component: str, model: nn.Module, place: str) -> None:
    """Reject NaN or infinite weights: training would fail on them and suggest a lower learning rate."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{place}: {component}: {name} holds values that are NaN or infinite. Fix: fetch the file again"
            )


def resolve_prompt_length(folder: Path, suffix: str, place: str) -> int:
    """Return a tokenizer's length of a prompt; a missing one is set to its text encoder's in the prepared copy."""
    text = read_json(folder / f"text_encoder{suffix}" / "config.json")
    positions = text.get("text_config", text).get("max_position_embeddings", 77)  # transformers' default
    path = folder / f"tokenizer{suffix}" / _config_name("tokenizer")
    config = read_json(path) if path.is_file() else {"tokenizer_class": "CLIPTokenizer"}
    length = config.get("model_max_length") or LONGEST
    if isinstance(length, int | float) and length >= LONGEST:
        write_json(path, config | {"model_max_length": positions})
        return positions
    if not isinstance(length, int) or not 0 < length <= positions:
        raise UserError(
            f"{place}: tokenizer{suffix}: model_max_length={length}: expected at most {positions}, the text encoder's positions. "
            f"Fix: set it to {positions} in tokenizer{suffix}/{path.name} of a local copy"
        )
    return length


def _config_name(component: str) -> str:
    return "tokenizer_config.json" if component.startswith("tokenizer") else "config.json"
