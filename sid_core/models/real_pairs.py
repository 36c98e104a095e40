"""Read pairs of real images and captions, as `encode_pairs` wrote them, in training."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..cluster.machine import to_device
from ..errors import UserError
from ..storage.files import read_lines, verify_manifest
from .conditioning import Conditioning, Encoder, PromptSet
from .embeddings import StoredPrompts
from .teacher import teacher_sha256

LATENTS, CAPTIONS = "latents.safetensors", "captions.txt"
TEACHER = "teacher_sha256"  # in the manifest's record


class RealPairs:
    """Encoded pairs by index."""

    def __init__(self, folder: Path, encoder: Encoder | None, teacher: Path, embeddings: Path | None = None):
        """Verify and open the files of `encode_pairs`; without an encoder `embed_prompts` wrote `embeddings`."""
        record = verify_manifest(folder)
        if record.get(TEACHER) != teacher_sha256(teacher):
            raise UserError(f"--real-pairs {folder}: encoded by another teacher. Fix: encode them by {teacher}")
        self.latents = load_file(folder / LATENTS)["latents"]  # mapped, not read
        captions = read_lines(folder / CAPTIONS, "caption")
        self._prompts = PromptSet(encoder, captions) if encoder else StoredPrompts(embeddings, captions, teacher)

    def __len__(self) -> int:
        return len(self.latents)

    def __call__(self, indices: Tensor, dropped: Tensor | None = None) -> tuple[Tensor, Conditioning]:
        """Return latents (B, C, H, W) and embeddings at `indices` (B,); of the empty prompt where `dropped` (B,) bool."""
        cond = self._prompts(indices, dropped)
        return to_device(self.latents[indices], cond.tokens.device), cond
