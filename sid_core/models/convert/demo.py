"""Write a demo of an exported pipeline, a page by Gradio: as a Space of a hub, or by `python app.py`."""

from importlib.metadata import version
from pathlib import Path

from ...storage.files import write_text
from ..backbones.layout import Usage

APP = '''"""Draw images by a generator: `python app.py` opens a page on this machine."""

import os
from pathlib import Path

import gradio
import torch
from diffusers import DiffusionPipeline

# a repository or folder; by default the folder above this one
MODEL = os.environ.get("MODEL") or str(Path(__file__).resolve().parents[1])
if "/" not in MODEL or (Path(MODEL).is_dir() and not Path(MODEL, "model_index.json").is_file()):
    raise SystemExit(f"MODEL={{MODEL}}: no pipeline. Set the variable MODEL to OWNER/NAME or to an exported folder.")
pipeline = DiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32{load})
pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def draw(prompt, seed):
    noise = torch.Generator().manual_seed(int(seed))
    return pipeline(prompt, {call}, guidance_scale={guidance}, generator=noise).images[0]


demo = gradio.Interface(
    draw,
    [gradio.Textbox(label="Prompt"), gradio.Number(0, label="Seed", precision=0)],
    gradio.Image(label="Image"),
    title={title!r},
)

if __name__ == "__main__":
    demo.launch()
'''
README = """---
title: {title!r}
sdk: gradio
app_file: app.py{license}
---

# {title}

A demo of the pipeline in the folder above. On your machine:

    pip install -r requirements.txt
    python app.py

As a Space: upload the pipeline to a model repository and this folder to a Space, and set the Space's variable `MODEL` to the
repository, `OWNER/NAME`.
"""
LIBRARIES = ("torch", "diffusers", "transformers")


def write_demo(folder: Path, title: str, usage: Usage, terms: str | None) -> None:
    """Write app.py, requirements.txt and README.md with a Space's metadata; `terms` is the license of the teacher."""
    required = [f"{name}>={version(name).partition('+')[0]}" for name in LIBRARIES]
    write_text(folder / "app.py", APP.format(title=title, load=usage.load, call=usage.call, guidance=usage.guidance))
    write_text(folder / "requirements.txt", "\n".join(["gradio>=5", *required]) + "\n")
    write_text(folder / "README.md", README.format(title=title, license=f"\nlicense: {terms}" if terms else ""))
