"""Find the files of the evaluation networks, from any source, as local paths.

Downloads are cached for all jobs: a URL in `downloads.cache_folder`, a hub's repository by huggingface_hub.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...data import shapes
from ...data.reference_images import reference_path
from ...errors import UserError
from ...storage import hub
from ...storage.downloads import cached, is_url
from ...storage.files import digest, read_json, sha256_file, write_json
from .feature_network import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from ...config import FeatureSettings, Network, ReferenceSettings

CLIP_CONFIG = "open_clip_config.json"
CLIP_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
TRANSFORMERS = (("config.json",), ("model.safetensors",))
# by setting: files beside the weights, and names of the weight file, the first preferred (by open_clip, too)
FILES = {
    "feature_network": ((CONFIG,), (WEIGHTS,)),
    "clip": ((CLIP_CONFIG,), tuple(f"open_clip_{name}" for name in CLIP_WEIGHTS)),
    "dinov2": TRANSFORMERS,
    "hps": ((), ("HPS_v2.1_compressed.pt",)),
    "pickscore": TRANSFORMERS,
    "imagereward": (("med_config.json",), ("ImageReward.pt",)),
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
# ImageReward's tokenizer, which its repository lacks
BERT, VOCABULARY = ("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"), "vocab.txt"


class Weights(NamedTuple):
    """A weight file, its sha256, and the network's identity in a protocol.

    The identity of several files is the digest of their sha256 by name: configs and tokenizers change numbers as weights do.
    """

    path: Path
    sha256: str
    identity: str


def prepare_networks(settings: "ReferenceSettings", out: Path) -> None:
    """Fetch networks and reference images before many jobs need them, check them, and list the files in `out` (JSON)."""
    record = {}
    for key, network in settings.networks().items():
        weights = network_weights(settings, key)
        record[key] = {"setting": network.source, "path": str(weights.path), "sha256": weights.sha256}
    if settings.imagereward is not None:
        bert_vocabulary(Path(record["imagereward"]["path"]).parent)
    record["reference"] = {"setting": settings.reference}
    if settings.reference != "embedded":
        record["reference"]["path"] = str(reference_path(settings))
    write_json(out, record)


def network_weights(settings: "FeatureSettings", key: str) -> Weights:
    """Find the weight file of network `key`, next to its other files; a UserError names a missing or wrong one."""
    network, where, (beside, names) = settings.networks()[key], f"evaluate.{key}", FILES[key]
    torchscript = key == "feature_network"
    if torchscript and is_url(network.source):
        return _verified(cached(network.source, network.sha256, f"{where}.sha256"), network.sha256, where)
    if network.revision is not None:
        folder = _fetch(key, network)
    else:
        folder = shapes.asset(key) if network.source == "embedded" else Path(network.source).expanduser()
    if torchscript and folder.is_file() and folder.name != WEIGHTS:
        return _verified(folder, network.sha256, where)
    folder = folder.parent if folder.name == WEIGHTS else folder
    name = next((name for name in names if (folder / name).is_file()), names[0])
    for file in (*beside, name):
        if not (folder / file).is_file():
            hint = "" if folder.exists() else f"; for a hub's repository set {where}.revision"
            files = f"{' and '.join((*beside, name))}{', or a TorchScript file' if torchscript else ''}"
            raise UserError(f"{where}.source={network.source}: no file {folder / file}; expected {files} in it{hint}")
    if key == "clip" and _has_tokenizer(folder / CLIP_CONFIG):
        beside += tuple(file for file in TOKENIZER if (folder / file).is_file())
    if key == "imagereward" and (folder / VOCABULARY).is_file():
        beside += (VOCABULARY,)
    return _verified(folder / name, network.sha256, where, beside)


def _fetch(key: str, network: "Network") -> Path:
    """Download config and weights of a hub's repository, and the tokenizer if it is not open_clip's own."""
    keys, (beside, names) = (f"evaluate.{key}.source", f"evaluate.{key}.revision"), FILES[key]
    repository = hub.cached(network.source, network.revision, keys)  # a commit does not change: no request
    if repository is None or not {*beside, names[0]} <= repository.files:
        repository = hub.find(network.source, network.revision, keys)
    name = next((name for name in names if name in repository.files), None)
    if name is None or not set(beside) <= repository.files:
        expected = " and ".join([*beside, " or ".join(names)])
        raise UserError(f"{keys[0]}={network.source}: expected {expected}, found {', '.join(sorted(repository.files))}")
    configs = [repository.fetch(file) for file in beside]
    if key == "clip" and _has_tokenizer(configs[0]):
        for file in set(TOKENIZER) & repository.files:
            repository.fetch(file)
    return repository.fetch(name).parent  # last: if it is cached, so is the rest


def bert_vocabulary(folder: Path) -> Path:
    """Return vocab.txt in a folder, else that of BERT's repository at a fixed commit."""
    if (folder / VOCABULARY).is_file():
        return folder / VOCABULARY
    keys = (f"evaluate.imagereward without {folder / VOCABULARY}", "its commit")
    return (hub.cached(*BERT, keys) or hub.find(*BERT, keys)).fetch(VOCABULARY)


def _has_tokenizer(config: Path) -> bool:
    """Return whether open_clip uses the tokenizer beside its config rather than its built-in one."""
    try:
        return bool(read_json(config).get("model_cfg").get("text_cfg").get("hf_tokenizer_name"))
    except AttributeError:
        return False  # open_clip's error names the fault


def _verified(path: Path, sha256: str | None, where: str, beside: tuple[str, ...] = ()) -> Weights:
    found = sha256_file(path)
    if sha256 not in (None, found):
        raise UserError(f"{where}.sha256={sha256}: {path} has {found}. Fix: correct the setting, or get the file again")
    if not beside:
        return Weights(path, found, found)
    files = {path.name: found} | {name: sha256_file(path.parent / name) for name in beside}
    return Weights(path, found, digest(files))
