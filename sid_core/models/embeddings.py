"""Encode prompts once into shards on disk, and read them by index without a text encoder.

Distinct prompts are encoded in the chunks in which `PromptSet` encodes those that fit into its cache: such a training has
equal bits either way. Each shard has a sidecar, so an encoding that was killed resumes at its shard.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..cluster.machine import device as this_device
from ..errors import UserError
from ..storage.files import atomic_path, read_json, read_lines, sidecar, verify_sidecar, write_sidecar
from ..storage.progress import Progress
from .conditioning import CHUNK, Conditioning, distinct
from .teacher import load_text_encoder, recorded_sha256, teacher_sha256

INDEX = "index.safetensors"  # the row of each prompt, and the empty prompt; its sidecar marks the set as complete
SHARD_BYTES = 2**30  # at most, unless one chunk has more


def embed_prompts(captions: Path, teacher: Path, out: Path) -> None:
    """Write the embeddings (float32) of a caption file to `out`: shards of distinct prompts, and an index.

    Shards of the same captions and teacher are kept; others are replaced.
    """
    prompts = read_lines(captions, "caption")
    origin = {"teacher_sha256": teacher_sha256(teacher), "captions_sha256": _captions_sha256(prompts)}
    sidecar(out / INDEX).unlink(missing_ok=True)
    encoder = load_text_encoder(teacher).to(this_device())
    texts, rows = distinct(prompts, len(prompts))
    empty = encoder.empty().map(Tensor.cpu)
    chunk_bytes = CHUNK * sum(part.nbytes for part in empty.parts().values())
    per_shard = CHUNK * max(1, SHARD_BYTES // chunk_bytes)
    progress, hashes = Progress(out.name, len(texts), "prompts"), []
    for start in range(0, len(texts), per_shard):
        path, some = out / _shard_name(len(hashes)), texts[start : start + per_shard]
        record = origin | {"first": start, "prompts": len(some)}
        if not (sidecar(path).is_file() and read_json(sidecar(path)).get("record") == record):
            chunks = [encoder.encode(some[i : i + CHUNK]).map(Tensor.cpu) for i in range(0, len(some), CHUNK)]
            with atomic_path(path) as temporary:
                sidecar(path).unlink(missing_ok=True)
                save_file(Conditioning.cat(chunks).map(Tensor.contiguous).parts(), temporary)
            write_sidecar(path, record)
        hashes.append(verify_sidecar(path)["sha256"])
        progress.update(start + len(some))
    number = len(hashes)
    while (path := out / _shard_name(number)).is_file():  # of a longer list
        path.unlink()
        sidecar(path).unlink(missing_ok=True)
        number += 1
    with atomic_path(out / INDEX) as temporary:
        tensors = {f"empty.{name}": part.contiguous() for name, part in empty.parts().items()}
        save_file({"rows": rows} | tensors, temporary)
    write_sidecar(out / INDEX, origin | {"per_shard": per_shard, "shards": hashes})


class StoredPrompts:
    """The PromptSet of a caption list that `embed_prompts` has encoded; embeddings are mapped from disk."""

    def __init__(self, folder: Path, prompts: Sequence[str], teacher: Path):
        """Open the index, which must be of these captions and teacher; shards are verified when they are first used."""
        self._folder, record = folder, verify_sidecar(folder / INDEX)["record"]
        origin = {"captions_sha256": _captions_sha256(prompts), "teacher_sha256": recorded_sha256(teacher)}
        for key, what in (("captions_sha256", "other captions"), ("teacher_sha256", "another teacher")):
            if record[key] != origin[key]:
                raise UserError(f"{folder}: embeddings of {what}. Fix: rerun embed-prompts")
        tensors = load_file(folder / INDEX)
        self._rows = tensors.pop("rows")
        empty = Conditioning(**{name.removeprefix("empty."): part for name, part in tensors.items()})
        self.empty = empty.to_device(torch.device(this_device()))
        self._per_shard, self._hashes = record["per_shard"], record["shards"]
        self._shards: dict[int, Conditioning] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, indices: Tensor, dropped: Tensor | None = None) -> Conditioning:
        """Return what PromptSet returns."""
        rows = [divmod(row, self._per_shard) for row in self._rows[indices].tolist()]
        cond = Conditioning.cat([self._shard(number)[row : row + 1] for number, row in rows])
        return cond.to_device(self.empty.tokens.device).replace(dropped, self.empty)

    def _shard(self, number: int) -> Conditioning:
        if number not in self._shards:
            path = self._folder / _shard_name(number)
            if verify_sidecar(path)["sha256"] != self._hashes[number]:
                raise UserError(f"{path}: differs from {INDEX}. Fix: rerun embed-prompts")
            self._shards[number] = Conditioning(**load_file(path))  # mapped, not read
        return self._shards[number]


def _shard_name(number: int) -> str:
    return f"{number:05d}.safetensors"


def _captions_sha256(prompts: Sequence[str]) -> str:
    """Return the hash of the file of these captions."""
    known = getattr(prompts, "sha256", None)
    return known or hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode()).hexdigest()
