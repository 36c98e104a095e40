"""Load Stable Diffusion 1.x and 2.x: a CLIP text encoder, UNet2DConditionModel, AutoencoderKL, discrete DDPM schedule."""

import logging
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor, nn

from ...cluster.machine import device
from ...errors import UserError
from ...storage.files import read_json, write_json
from ..components import load_component
from ..conditioning import Conditioning
from ..scheduler import make_solver, noise_schedule, prediction_type, scheduler_config
from ..vae import ImageCodec
from .base import Backbone
from .prediction import choose_type, x0_errors
from .shared_prefix import check_shared_prefix, decode, encode, guided_pair, shares_prefix, time_embedding

if TYPE_CHECKING:
    from ..text import TextEncoder

log = logging.getLogger(__name__)

# components that may be ignored; ignoring any other would drop a part of the model
UNUSED = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")
# settings of a VAE whose latents are not just z * scaling_factor
VAE = {"shift_factor": None, "latents_mean": None, "latents_std": None}
LONGEST = 100_000  # tokens; transformers uses 10^30 for a missing length
TIMESTEPS = 1000  # t_init, t_min, t_max and the epsilon-prediction error refer to these


class StableDiffusion(Backbone):
    """A UNet with one text encoder."""

    PIPELINES = ("StableDiffusionPipeline",)
    EXPECTED = "expected Stable Diffusion's: one CLIP text encoder, a UNet2DConditionModel and an AutoencoderKL"
    INDEX = {"requires_safety_checker": False, "safety_checker": [None, None]}  # of an exported model_index.json
    FOREIGN = ("text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3", "transformer")
    NETWORK = "unet"
    # endings of the folders of a tokenizer and its text encoder
    ENCODERS = ("",)
    CLASSES = {
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "text_encoder": ("CLIPTextModel",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
    }
    # settings of a UNet's inputs beside latents, timestep and text
    UNET = {
        "addition_embed_type": None, "class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None,
        "encoder_hid_dim_type": None, "time_cond_proj_dim": None, "attention_type": "default",
    }  # fmt: skip
    WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    CONFIGS = {
        "tokenizer": (
            "tokenizer.json", "vocab.json", "merges.txt",
            "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        ),
        "text_encoder": ("config.json",),
        "unet": ("config.json",),
        "vae": ("config.json",),
        "scheduler": ("scheduler_config.json",),
    }  # fmt: skip
    NEEDED = CONFIGS | {"tokenizer": ("tokenizer.json", "vocab.json")}
    COMPILED = frozenset({"ResnetBlock2D", "BasicTransformerBlock"})
    # nearly all weights, in modules that `guided_pair` calls as a whole: FSDP's hooks run
    SHARDED = frozenset({"ResnetBlock2D", "Attention", "FeedForward"})
    # diffusers registers mid_block after up_blocks; modules missing here come first
    BACKWARD_ORDER = {"mid_block": 1, "down_blocks": 2, "time_embedding": 3, "conv_in": 3}

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.network(x_t, t, encoder_hidden_states=cond.tokens).sample

    def predict_pair(self, x_t: Tensor, t: Tensor, uncond: Conditioning, cond: Conditioning) -> Tensor:
        return guided_pair(self.network, x_t, t, uncond.tokens, cond.tokens)

    def predict_with_logits(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Return the outputs, and the mean over channels of the mid block's output (arXiv 2410.14919), (B, h, w)."""
        x, emb = self.embed(x_t, t, cond)
        h, skips = encode(self.network, x, emb, cond.tokens)
        return decode(self.network, h, skips, emb, cond.tokens), h[-len(x_t) :].float().mean(dim=1)

    def predict_logits(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return encode(self.network, *self.embed(x_t, t, cond), cond.tokens)[0].float().mean(dim=1)

    def separable(self) -> bool:
        """Return whether `encode` and `decode` compute what the network does."""
        return shares_prefix(self.network)

    def embed(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Return x_t and the embedding of t, for `encode`."""
        return x_t, time_embedding(self.network, x_t, t)

    def check_discriminator(self) -> None:
        if not self.separable():
            raise UserError(
                "adversarial: expected a UNet of Stable Diffusion's blocks, whose encoder can be evaluated alone. "
                "Fix: remove it, or use another teacher"
            )

    def blocks(self) -> Iterator[nn.Module]:
        unet = self.network
        for level in filter(None, (*unet.down_blocks, unet.mid_block, *unet.up_blocks)):  # a UNet may have no middle
            yield from level.resnets
            yield from getattr(level, "attentions", None) or ()

    @classmethod
    def load_network(cls, weights: Path, teacher: Path) -> Self:
        config, unet = scheduler_config(teacher), load_component(UNet2DConditionModel, weights)
        check_shared_prefix(unet)
        return cls(unet, noise_schedule(config), prediction_type(config)).frozen()

    @classmethod
    def text_encoder(cls, folder: Path) -> "TextEncoder":
        from ..text import TextEncoder  # needs transformers, which training on random weights does not

        return TextEncoder.from_directory(folder)

    @classmethod
    def image_codec(cls, folder: Path, at_once: int | None = None) -> ImageCodec:
        return ImageCodec.from_directory(folder, at_once)

    @classmethod
    def solver(cls, name: str, folder: Path, steps: int) -> DDIMScheduler | DPMSolverMultistepScheduler:
        solver = make_solver(name, folder, steps)
        solver.register_to_config(prediction_type="sample")  # its input is x_0, for any prediction type
        return solver

    @classmethod
    def latent_shape(cls, folder: Path) -> tuple[int, int, int]:
        """Return (C, H, W) of the latents the UNet was trained on.

        Raises:
            UserError: the UNet's config does not state their size.
        """
        config = read_json(Path(folder) / "unet" / "config.json")
        size = config.get("sample_size")
        sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise UserError(
                f"{folder}: unet: sample_size={size}: expected the side of the latents it was trained at. Fix: state it in "
                "unet/config.json of a local copy (64 for images of 512 pixels)"
            )
        return config.get("in_channels", 4), *sides

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
        """Reject a pipeline with unsupported components or settings, by its JSON files.

        Raises:
            UserError: states file, setting, value and the expected value.
        """
        if (folder / "model_index.json").is_file():
            cls._check_index(read_json(folder / "model_index.json"), place)
        for component, classes in cls.CLASSES.items():
            path, key = folder / component / _config_name(component), "_class_name"
            if component.startswith("tokenizer"):
                key = "tokenizer_class"
            elif component.startswith("text_encoder"):
                key, classes = "model_type", ("clip_text_model", "clip")
            cls._expect(f"{place}: {component}", read_json(path) if path.is_file() else {}, key, (*classes, None))
        unet, vae = (read_json(folder / name / "config.json") for name in ("unet", "vae"))
        for key, value in cls.UNET.items():
            cls._expect(f"{place}: unet", unet, key, (value,), missing=value)
        for key, value in VAE.items():
            cls._expect(f"{place}: vae", vae, key, (value,), missing=value)
        channels = unet.get("out_channels", 4)
        if unet.get("in_channels", 4) == 2 * channels + 1:
            raise UserError(
                f"{place}: unet: in_channels={2 * channels + 1}: expected {channels}; an inpainting UNet takes a mask and a "
                "masked image too. Fix: give the text-to-image model"
            )
        cls._expect(f"{place}: unet", unet, "out_channels", (unet.get("in_channels", 4),), missing=4)
        if not isinstance(unet.get("cross_attention_dim", 1280), int):
            raise UserError(f"{place}: unet: cross_attention_dim={unet['cross_attention_dim']}: expected one number")

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
    def check(cls, folder: Path, place: str) -> dict:
        """Load the fetched components, check that they fit the method and each other, and fill gaps in their configs.

        Returns:
            For provenance.json: the tokens of a prompt, and the prediction type, stated or measured.
        """
        config = scheduler_config(folder)
        steps = len(noise_schedule(config))
        if steps != TIMESTEPS:
            raise UserError(
                f"{place}: scheduler: num_train_timesteps={steps}: expected {TIMESTEPS}, to which t_init, t_min and t_max "
                "refer. Fix: give a teacher of such a schedule"
            )
        shape, lengths = cls.latent_shape(folder), [resolve_prompt_length(folder, one, place) for one in cls.ENCODERS]
        if len(set(lengths)) > 1:
            raise UserError(
                f"{place}: tokenizers of {' and '.join(map(str, lengths))} tokens, whose embeddings are joined token by token; "
                "expected equal model_max_length. Fix: give another teacher"
            )
        backbone, encoder, codec = cls.load(folder), cls.text_encoder(folder), cls.image_codec(folder)
        encoders = dict(zip(cls.ENCODERS, getattr(encoder, "encoders", [encoder]), strict=True))
        models = {f"text_encoder{one}": encoder.model for one, encoder in encoders.items()}
        for component, model in {"unet": backbone.network, **models, "vae": codec.vae}.items():
            check_finite(component, model, place)
        for suffix, one in encoders.items():
            if (ids := len(one.tokenizer)) > (rows := one.model.get_input_embeddings().num_embeddings):
                raise UserError(
                    f"{place}: tokenizer{suffix} has {ids} tokens, text_encoder{suffix} expects {rows}; they do not belong together"
                )
        empty, width = encoder.empty(), backbone.network.config.cross_attention_dim
        if empty.tokens.shape[-1] != width:
            raise UserError(
                f"{place}: {' + '.join(models)} gives {empty.tokens.shape[-1]} values a token, unet expects {width}; they do not belong together"
            )
        if codec.latent_channels != shape[0]:
            raise UserError(
                f"{place}: vae has {codec.latent_channels} latent channels, unet expects {shape[0]}; they do not belong together. "
                "Fix: take the vae of the same model"
            )
        return {"tokens": lengths[0], "prediction_type": _resolve_prediction_type(folder, backbone, empty, place)}


def check_finite(component: str, model: nn.Module, place: str) -> None:
    """Reject NaN or infinite weights: training would fail on them and suggest a lower learning rate."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{place}: {component}: {name} holds values that are NaN or infinite. Fix: fetch the file again, or give another teacher"
            )


def resolve_prompt_length(folder: Path, suffix: str, place: str) -> int:
    """Return a tokenizer's length of a prompt; a missing one is set to its text encoder's in the prepared copy.

    Raises:
        UserError: prompts would be longer than the text encoder has positions.
    """
    text = read_json(folder / f"text_encoder{suffix}" / "config.json")
    positions = text.get("text_config", text).get("max_position_embeddings", 77)  # transformers' default
    path = folder / f"tokenizer{suffix}" / _config_name("tokenizer")
    config = read_json(path) if path.is_file() else {"tokenizer_class": "CLIPTokenizer"}
    length = config.get("model_max_length") or LONGEST
    if length >= LONGEST:
        write_json(path, config | {"model_max_length": positions})
        return positions
    if not isinstance(length, int) or length > positions:
        raise UserError(
            f"{place}: tokenizer{suffix}: model_max_length={length}: expected at most {positions}, the text encoder's positions. "
            f"Fix: set it to {positions} in tokenizer{suffix}/{path.name} of a local copy"
        )
    return length


def _config_name(component: str) -> str:
    return "tokenizer_config.json" if component.startswith("tokenizer") else "config.json"


def _resolve_prediction_type(folder: Path, backbone: Backbone, empty: Conditioning, place: str) -> dict:
    """Return the scheduler's prediction type; a missing one is measured and written into the prepared copy.

    Raises:
        UserError: the measured errors do not separate the types.
    """
    config = scheduler_config(folder)
    if config.get("prediction_type") is not None:
        return {"value": prediction_type(config), "stated": True}
    where = torch.device(device())
    log.info("%s: the scheduler states no prediction_type; measuring it", place)
    errors = x0_errors(backbone.to(where), empty.to_device(where), backbone.latent_shape(folder))
    found, shown = choose_type(errors), ", ".join(f"{kind} {error:.2g}" for kind, error in errors.items())
    if found is None:
        raise UserError(
            f"{place}: scheduler: prediction_type is not stated, and the x_0 errors of the teacher on its own samples show "
            f"neither ({shown}; expected one below 0.5 and half of the other). Fix: set it to epsilon or v_prediction in "
            "scheduler/scheduler_config.json of a local copy"
        )
    log.info("%s: prediction_type=%s by relative x_0 errors on its own samples (%s)", place, found, shown)
    write_json(folder / "scheduler" / "scheduler_config.json", config | {"prediction_type": found})
    finite = {kind: error if math.isfinite(error) else None for kind, error in errors.items()}
    return {"value": found, "stated": False, "x0_errors": finite}
