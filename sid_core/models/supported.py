"""What a teacher may be: refuse by name what the method would take for something else, before gigabytes are read."""

from collections.abc import Collection
from pathlib import Path

from torch import nn

from ..errors import UserError
from ..storage.files import read_json, write_json

PIPELINES = ("StableDiffusionPipeline",)
CLASSES = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
FOREIGN = ("text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3", "transformer")
# beside them; the rest of a pipeline would be left behind, and with it a part of the model
UNUSED = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")
# inputs that a UNet may need beside latents, noise level and text, and which the method does not give it
UNET = {
    "addition_embed_type": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "attention_type": "default",
}
# the method's latents are z * scaling_factor, as in Stable Diffusion's
VAE = {"shift_factor": None, "latents_mean": None, "latents_std": None}
EXPECTED = "expected Stable Diffusion's: one CLIP text encoder, a UNet2DConditionModel and an AutoencoderKL"
LONGEST = 100_000  # tokens; transformers puts 10^30 for a length that is not stated


def check_files(files: Collection[str], place: str) -> None:
    """Refuse folders of other families, such as SDXL's second text encoder."""
    folders = {name.split("/")[0] for name in files if "/" in name}
    if foreign := [name for name in FOREIGN if name in folders]:
        raise UserError(f"{place}: has {', '.join(foreign)}; {EXPECTED}. Fix: give another teacher")


def check_configs(folder: Path, place: str) -> None:
    """Refuse, by what its JSON files state, a pipeline whose parts the method does not know.

    Raises:
        UserError: names file, setting, value and what was expected.
    """
    if (folder / "model_index.json").is_file():
        _check_index(read_json(folder / "model_index.json"), place)
    for component, classes in CLASSES.items():
        if component != "text_encoder" and (path := folder / component / _config_name(component)).is_file():
            key = "tokenizer_class" if component == "tokenizer" else "_class_name"
            _expect(f"{place}: {component}", read_json(path), key, (*classes, None))
    unet, vae = (read_json(folder / name / "config.json") for name in ("unet", "vae"))
    for key, value in UNET.items():
        _expect(f"{place}: unet", unet, key, (value,), missing=value)
    for key, value in VAE.items():
        _expect(f"{place}: vae", vae, key, (value,), missing=value)
    _expect(f"{place}: unet", unet, "out_channels", (unet.get("in_channels", 4),), missing=4)
    if not isinstance(unet.get("cross_attention_dim", 1280), int):
        raise UserError(f"{place}: unet: cross_attention_dim={unet['cross_attention_dim']}: expected one number")
    text = read_json(folder / "text_encoder" / "config.json")
    _expect(f"{place}: text_encoder", text, "model_type", ("clip_text_model", "clip", None))


def check_finite(component: str, model: nn.Module, place: str) -> None:
    """Refuse weights that are NaN or infinite: training would fail on them and blame the learning rate."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{place}: {component}: {name} holds values that are NaN or infinite. Fix: fetch the file again, or give another teacher"
            )


def settle_length(folder: Path, positions: int, place: str) -> int:
    """The tokens of a prompt, by the tokenizer; where it states none, the text encoder's, written into the prepared copy.

    Raises:
        UserError: prompts would be longer than the text encoder has positions.
    """
    path = folder / "tokenizer" / _config_name("tokenizer")
    config = read_json(path) if path.is_file() else {"tokenizer_class": "CLIPTokenizer"}
    length = config.get("model_max_length") or LONGEST
    if length >= LONGEST:
        write_json(path, config | {"model_max_length": positions})
        return positions
    if not isinstance(length, int) or length > positions:
        raise UserError(
            f"{place}: tokenizer: model_max_length={length}: expected at most {positions}, the text encoder's positions. "
            f"Fix: set it to {positions} in tokenizer/{path.name} of a local copy"
        )
    return length


def _check_index(index: dict, place: str) -> None:
    _expect(f"{place}: model_index.json", index, "_class_name", (*PIPELINES, None))
    for component, entry in index.items():
        if component.startswith("_") or not isinstance(entry, list) or entry in ([], [None, None]):
            continue
        kind = entry[-1]
        if (component in CLASSES and kind not in CLASSES[component]) or component not in (*CLASSES, *UNUSED):
            raise UserError(f"{place}: model_index.json: {component}={kind}: {EXPECTED}. Fix: give another teacher")


def _config_name(component: str) -> str:
    return "tokenizer_config.json" if component == "tokenizer" else "config.json"


def _expect(where: str, config: dict, key: str, allowed: tuple, missing: object = None) -> None:
    if (value := config.get(key, missing)) not in allowed:
        expected = " or ".join(str(one) for one in allowed if one is not None) or "none"
        raise UserError(f"{where}: {key}={value}: expected {expected}; {EXPECTED}. Fix: give another teacher")
