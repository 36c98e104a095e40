"""Files of the networks that look at images, from whatever source; from here on nothing knows which it was.

Each is `embedded`, a path, or is fetched once into a cache that all jobs find it in: a URL into `downloads.cache_folder`, a hub's
repository into huggingface_hub's.
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
    from ...config import Network, ReferenceSettings

CLIP_CONFIG = "open_clip_config.json"
# open_clip takes the first of these, too
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# of the further metrics' networks; the last is the weight file
DINOV2_FILES = PICKSCORE_FILES = ("config.json", "model.safetensors")
HPS_FILES = ("HPS_v2.1_compressed.pt",)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


class Weights(NamedTuple):
    """A weight file and its sha256, by which settings pin it.

    `identity` stands for the network in a protocol: of a file that is all of it, that sha256; else the digest of the sha256 of
    each file by name, for configs and tokenizers move numbers as weights do.
    """

    path: Path
    sha256: str
    identity: str


def prepare_networks(settings: "ReferenceSettings", out: Path) -> None:
    """Bring networks and reference images to this machine before many jobs want them; write what was found to `out` (JSON).

    Raises:
        UserError: one of them cannot be had, or differs from its sha256 in the settings.
    """
    features = feature_weights(settings.feature_network, settings.feature_network_sha256)
    clip = clip_weights(settings.clip, settings.clip_revision, settings.clip_sha256)
    record = {
        "feature_network": {"setting": settings.feature_network, "path": str(features.path), "sha256": features.sha256},
        "clip": {"setting": settings.clip, "path": str(clip.path), "sha256": clip.sha256},
        "reference": {"setting": settings.reference},
    }
    for key, files in (("dinov2", DINOV2_FILES), ("hps", HPS_FILES), ("pickscore", PICKSCORE_FILES)):
        if (network := getattr(settings, key)) is not None:
            weights = network_weights(f"evaluate.{key}", network, files)
            record[key] = {"setting": network.source, "path": str(weights.path), "sha256": weights.sha256}
    if settings.reference != "embedded":
        record["reference"]["path"] = str(reference_path(settings))
    write_json(out, record)


def feature_weights(setting: str, sha256: str | None) -> Weights:
    """Weight file of `evaluate.feature_network`: a TorchScript file, or model.safetensors beside its config.

    Raises:
        UserError: it is missing, cannot be downloaded, or has another sha256.
    """
    key = "evaluate.feature_network"
    if is_url(setting):
        return _verified(cached(setting, sha256, f"{key}_sha256"), sha256, f"{key}_sha256")
    path = shapes.ASSETS / "features" if setting == "embedded" else Path(setting).expanduser()
    path = path.parent if path.name == WEIGHTS else path
    if path.is_file():
        return _verified(path, sha256, f"{key}_sha256")
    _require(path, (CONFIG, WEIGHTS), f"{key}={setting}", ", or a TorchScript file")
    return _verified(path / WEIGHTS, sha256, f"{key}_sha256", (CONFIG,))


def clip_weights(setting: str, revision: str | None, sha256: str | None) -> Weights:
    """Weight file of `evaluate.clip`; open_clip's config and tokenizer lie beside it.

    Raises:
        UserError: it is missing, cannot be fetched, or has another sha256.
    """
    key = "evaluate.clip"
    if revision is not None:
        path = _fetch_clip(setting, revision)
        return _verified(path, sha256, f"{key}_sha256", _beside_clip(path.parent))
    folder = shapes.ASSETS / "clip" if setting == "embedded" else Path(setting).expanduser()
    names = [name for name in CLIP_WEIGHTS if (folder / name).is_file()] or [CLIP_WEIGHTS[0]]
    hint = "" if setting == "embedded" or folder.exists() else "; for a hub's repository set evaluate.clip_revision"
    _require(folder, (CLIP_CONFIG, names[0]), f"{key}={setting}", hint)
    return _verified(folder / names[0], sha256, f"{key}_sha256", _beside_clip(folder))


def network_weights(key: str, network: "Network", files: tuple[str, ...]) -> Weights:
    """Weight file of a further metric's network, the last of `files`; the others lie beside it.

    Raises:
        UserError: one is missing, cannot be fetched, or the weights have another sha256.
    """
    if network.revision is not None:
        keys = (f"{key}.source", f"{key}.revision")
        repository = hub.cached(network.source, network.revision, keys)
        if repository is None or not set(files) <= repository.files:
            repository = hub.find(network.source, network.revision, keys)
        paths = [repository.fetch(file) for file in files]
        return _verified(paths[-1], network.sha256, f"{key}.sha256", files[:-1])
    folder = Path(network.source).expanduser()
    hint = "" if folder.exists() else f"; for a hub's repository set {key}.revision"
    _require(folder, files, f"{key}.source={network.source}", hint)
    return _verified(folder / files[-1], network.sha256, f"{key}.sha256", files[:-1])


def _fetch_clip(name: str, revision: str) -> Path:
    """open_clip's config, weights, and a tokenizer where the config wants another than the one open_clip brings."""
    keys = ("evaluate.clip", "evaluate.clip_revision")
    repository = hub.cached(name, revision, keys)  # a commit does not change: jobs after the first need no connection
    if repository is None or not {CLIP_CONFIG, CLIP_WEIGHTS[0]} <= repository.files:
        repository = hub.find(name, revision, keys)
    weights = next((file for file in CLIP_WEIGHTS if file in repository.files), None)
    if weights is None or CLIP_CONFIG not in repository.files:
        expected = f"{CLIP_CONFIG} and {' or '.join(CLIP_WEIGHTS)}"
        raise UserError(f"{keys[0]}={name}: expected {expected}, found {', '.join(sorted(repository.files))}")
    if _has_tokenizer(repository.fetch(CLIP_CONFIG)):
        for file in set(TOKENIZER) & repository.files:
            repository.fetch(file)
    return repository.fetch(weights)  # last: where it is cached, the rest is


def _has_tokenizer(config: Path) -> bool:
    """Whether open_clip takes the tokenizer beside its config, and not the one it brings."""
    try:
        return bool(read_json(config)["model_cfg"]["text_cfg"].get("hf_tokenizer_name"))
    except (AttributeError, KeyError, TypeError):
        return False  # open_clip says what is wrong with it


def _beside_clip(folder: Path) -> tuple[str, ...]:
    """What shapes embeddings beside the weights: mean, spread, resizing and architecture, and perhaps a tokenizer."""
    tokenizer = TOKENIZER if _has_tokenizer(folder / CLIP_CONFIG) else ()
    return (CLIP_CONFIG, *(file for file in tokenizer if (folder / file).is_file()))


def _require(folder: Path, files: tuple[str, ...], where: str, hint: str = "") -> None:
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{where}: no file {folder / file}; expected a folder with {' and '.join(files)}{hint}")


def _verified(path: Path, sha256: str | None, key: str, beside: tuple[str, ...] = ()) -> Weights:
    found = sha256_file(path)
    if sha256 not in (None, found):
        raise UserError(f"{key}={sha256}: {path} has {found}; correct the setting, or get the file again")
    if not beside:
        return Weights(path, found, found)
    files = {path.name: found} | {name: sha256_file(path.parent / name) for name in beside}
    return Weights(path, found, digest(files))
