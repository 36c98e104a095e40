"""Make tiny stand-ins for the real components in their real layouts, which tests serve as a hub and as files."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

LICENSE = "creativeml-openrail-m"


def sd_repository(source: Path, out: Path, prediction_type: str = "epsilon", safetensors: bool = True) -> Path:
    """Write Stable Diffusion's repository from a teacher folder: its files, the fp16 variant, and many unneeded files.

    The tokenizer comes as vocab.json and merges.txt, the scheduler as PNDM's config, as in SD 1.5 and 2.1.
    """
    import torch
    from diffusers import PNDMScheduler
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, out)
    old_tokenizer(out / "tokenizer")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    options = {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "prediction_type": prediction_type}
    PNDMScheduler(**betas, **options).save_pretrained(out / "scheduler")
    for name in ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        weights = load_file(out / f"{name}.safetensors")
        half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
        save_file(half, out / f"{name}.fp16.safetensors", metadata={"format": "pt"})
        torch.save(weights, out / f"{name.replace('/model', '/pytorch_model')}.bin")
        if not safetensors:
            (out / f"{name}.safetensors").unlink()
            (out / f"{name}.fp16.safetensors").unlink()
    for unneeded in ("safety_checker/model.safetensors", "v1-5-pruned.ckpt", "unet/diffusion_flax_model.msgpack"):
        (out / unneeded).parent.mkdir(exist_ok=True)
        (out / unneeded).write_bytes(b"not needed")
    (out / "README.md").write_text(f"---\nlicense: {LICENSE}\ntags:\n- stable-diffusion\n---\n# Tiny\n")
    return out


def old_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    """Convert tokenizer.json to the files that older transformers wrote."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    length = json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"]
    shutil.rmtree(folder)
    folder.mkdir()
    special = {"bos_token": "<|startoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    special["eos_token"] = "<|endoftext|>"
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    files = {
        "vocab.json": json.dumps(model["vocab"]),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "special_tokens_map.json": json.dumps(special),
        "tokenizer_config.json": json.dumps(
            special | {"model_max_length": length, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text)


def coco_images(count: int, side: int = 48) -> dict[str, bytes]:
    """Return JPEGs by COCO's names, of odd sizes; the second is grey, the third CMYK."""
    rng = np.random.default_rng(0)
    images = {}
    for i in range(count):
        height, width = side + i % 7, side + 3 * (i % 5)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC).convert({1: "L", 2: "CMYK"}.get(i, "RGB"))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        images[f"val2014/COCO_val2014_{42 + 31 * i:012d}.jpg"] = buffer.getvalue()
    return images


def coco_zip(out: Path, count: int, side: int = 48) -> Path:
    """Write val2014.zip as COCO packs it: a folder entry first, members not in order of their names, uncompressed."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("val2014/", b"")
        for name, data in reversed(coco_images(count, side).items()):
            archive.writestr(name, data)
    return out


def inception(out: Path, features: int = 12) -> Path:
    """Write a TorchScript file with the interface of inception-2015-12-05.pt, for 299 x 299 images, with random weights."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.AvgPool2d(13), nn.Conv2d(3, features, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )

        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return self.layers((x - 128) / 128)

    torch.manual_seed(0)
    torch.jit.script(Network()).save(str(out))
    return out


def clip_repository(out: Path, image_size: int = 32, binary: bool = False) -> Path:
    """Write an open_clip repository with a tiny model of random weights that takes open_clip's bundled tokenizer."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    model = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": image_size, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    out.mkdir(parents=True)
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    weights = {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**model).state_dict().items()}
    if binary:
        torch.save(weights, out / "open_clip_pytorch_model.bin")
    else:
        save_file(weights, out / "open_clip_model.safetensors")
    (out / "README.md").write_text("---\nlicense: mit\n---\n")
    (out / "pytorch_model.bin").write_bytes(b"not needed")
    (out / "tokenizer.json").write_text("{}")
    return out


def dinov2(out: Path) -> Path:
    """Write facebook/dinov2-large's layout with a tiny model of random weights and patches of 14 x 14."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=518, patch_size=14)).save_pretrained(out)
    return out


def pickscore(out: Path) -> Path:
    """Write yuvalkirstain/PickScore_v1's layout with a tiny model of random weights and CLIP's vocabulary."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    text = sizes | ids | {"vocab_size": 49408, "max_position_embeddings": 77}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(out)
    return out


HPS_SIZES = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def hps(out: Path) -> Path:
    """Write xswu/HPSv2's layout: a checkpoint of open_clip's architecture, here of HPS_SIZES with random weights."""
    import open_clip
    import torch

    out.mkdir()
    torch.manual_seed(0)
    checkpoint = {"epoch": 1, "state_dict": open_clip.CLIP(**HPS_SIZES).state_dict()}
    torch.save(checkpoint, out / "HPS_v2.1_compressed.pt")
    return out


REWARD_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "circle",
    "two",
    "blue",
    "square",
    "##s",
    ",",
    ".",
]
REWARD_SIZES = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 16,
    "max_position_embeddings": 40, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "encoder_width": 99,
    "architectures": ["BertModel"], "model_type": "bert", "add_cross_attention": True, "type_vocab_size": 2,
}  # fmt: skip


def imagereward(out: Path) -> Path:
    """Write THUDM/ImageReward's layout with random weights, 2 layers of 2 and 3 heads, and BERT's vocab.txt beside it."""
    import torch

    generator, weights = torch.Generator().manual_seed(0), {}

    def random(name: str, *shape: int, scale: float = 0.3) -> None:
        weights[name] = scale * torch.randn(*shape, generator=generator)

    def linear(name: str, inputs: int, outputs: int) -> None:
        random(f"{name}.weight", outputs, inputs)
        random(f"{name}.bias", outputs)

    def norm(name: str, width: int) -> None:
        random(f"{name}.weight", width)
        weights[f"{name}.weight"] += 1
        random(f"{name}.bias", width)

    image, text, wide, narrow = "blip.visual_encoder", "blip.text_encoder", 128, REWARD_SIZES["hidden_size"]
    random(f"{image}.cls_token", 1, 1, wide)
    random(f"{image}.pos_embed", 1, 5, wide)
    random(f"{image}.patch_embed.proj.weight", wide, 3, 16, 16, scale=0.05)
    random(f"{image}.patch_embed.proj.bias", wide)
    norm(f"{image}.norm", wide)
    for block in (f"{image}.blocks.{index}" for index in range(2)):
        for name, sizes in {"attn.qkv": (wide, 3 * wide), "attn.proj": (wide, wide), "mlp.fc1": (wide, 24)}.items():
            linear(f"{block}.{name}", *sizes)
        linear(f"{block}.mlp.fc2", 24, wide)
        norm(f"{block}.norm1", wide)
        norm(f"{block}.norm2", wide)
    weights[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    random(f"{text}.embeddings.word_embeddings.weight", 16, narrow)
    random(f"{text}.embeddings.position_embeddings.weight", 40, narrow)
    norm(f"{text}.embeddings.LayerNorm", narrow)
    for layer in (f"{text}.encoder.layer.{index}" for index in range(2)):
        for kind, keys in (("attention", narrow), ("crossattention", wide)):
            for name, inputs in {
                "self.query": narrow,
                "self.key": keys,
                "self.value": keys,
                "output.dense": narrow,
            }.items():
                linear(f"{layer}.{kind}.{name}", inputs, narrow)
            norm(f"{layer}.{kind}.output.LayerNorm", narrow)
        linear(f"{layer}.intermediate.dense", narrow, 20)
        linear(f"{layer}.output.dense", 20, narrow)
        norm(f"{layer}.output.LayerNorm", narrow)
    linear("blip.vision_proj", wide, 8)
    linear("blip.text_proj", narrow, 8)
    for index, sizes in {0: (narrow, 9), 2: (9, 7), 4: (7, 6), 6: (6, 5), 7: (5, 1)}.items():
        linear(f"mlp.layers.{index}", *sizes)
    out.mkdir()
    torch.save(weights, out / "ImageReward.pt")
    (out / "med_config.json").write_text(json.dumps(REWARD_SIZES))
    (out / "vocab.txt").write_text("\n".join(REWARD_WORDS) + "\n")
    return out
