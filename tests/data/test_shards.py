import tarfile

import numpy as np
import pytest

from sid_core.data.images import encode_png, pixel_sha256
from sid_core.data.shards import file_name, ranges, read_shard, write_shard
from sid_core.errors import UserError
from sid_core.storage.files import read_json, sidecar, write_sidecar


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def record(images: np.ndarray, start: int = 0) -> dict:
    return {"samples": [{"index": start + i, "sha256": pixel_sha256(image)} for i, image in enumerate(images)]}


def packed(images: np.ndarray) -> list[tuple[int, bytes]]:
    return [(index, encode_png(image, 1)) for index, image in enumerate(images)]


@pytest.fixture
def shard(tmp_path):
    images = pictures(7)
    write_shard(tmp_path / "00000.tar", packed(images), record(images))
    return tmp_path / "00000.tar"


def rewrite(shard, members: list[tuple[str, bytes]]) -> None:
    """Rewrite a shard with a valid sidecar, so that only its contents are wrong."""
    known = read_json(sidecar(shard))["record"]
    with tarfile.open(shard, "w") as archive:
        for name, data in members:
            path = shard.with_name("member")
            path.write_bytes(data)
            archive.add(path, name)
    write_sidecar(shard, known)


def test_read_shard_yields_images_in_order_and_batches(shard):
    batches = list(read_shard(shard, batch=3))
    assert [indices for indices, _ in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert np.array_equal(np.concatenate([images for _, images in batches]), pictures(7))


def test_write_shard_of_equal_images_gives_equal_bytes(shard, tmp_path):
    images = pictures(7)
    write_shard(tmp_path / "again.tar", packed(images), record(images))
    assert (tmp_path / "again.tar").read_bytes() == shard.read_bytes()


def test_write_shard_after_a_failure_leaves_nothing(tmp_path):
    def broken():
        yield 0, encode_png(pictures(1)[0], 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "00000.tar", broken(), record(pictures(1)))
    assert list(tmp_path.iterdir()) == []


def test_read_shard_of_a_truncated_tar_names_it(shard):
    shard.write_bytes(shard.read_bytes()[:-700])
    with pytest.raises(UserError, match=r"00000\.tar.*truncated"):
        list(read_shard(shard, 4))


def test_read_shard_without_file_or_record_names_it(shard, tmp_path):
    with pytest.raises(UserError, match=r"00001\.tar"):
        list(read_shard(tmp_path / "00001.tar", 4))
    sidecar(shard).unlink()
    with pytest.raises(UserError, match=r"00000\.json"):
        list(read_shard(shard, 4))


def test_read_shard_of_a_truncated_image_names_it(shard):
    members = [(file_name(i), data) for i, data in packed(pictures(7))]
    members[3] = (file_name(3), members[3][1][:60])
    rewrite(shard, members)
    with pytest.raises(UserError, match=r"00000\.tar: 00000003\.png: truncated"):
        list(read_shard(shard, 4))


def test_read_shard_of_an_archive_that_ends_early_raises(shard):
    known = read_json(sidecar(shard))["record"]
    shard.write_bytes(shard.read_bytes()[: 512 * 9])
    write_sidecar(shard, known)
    with pytest.raises(UserError, match=r"00000\.tar"):
        list(read_shard(shard, 4))


def test_read_shard_with_gaps_names_samples(shard):
    rewrite(shard, [(file_name(i), data) for i, data in packed(pictures(7)) if i not in (2, 4, 5)])
    with pytest.raises(UserError, match=r"00000\.tar: samples missing: 2, 4–5"):
        list(read_shard(shard, 4))


def test_read_shard_of_exchanged_images_raises(shard):
    images = pictures(7)[[1, 0, 2, 3, 4, 5, 6]]
    rewrite(shard, [(file_name(i), data) for i, data in packed(images)])
    with pytest.raises(UserError, match=r"00000000\.png is not the recorded image"):
        list(read_shard(shard, 4))


def test_read_shard_without_samples_raises(tmp_path):
    write_shard(tmp_path / "00000.tar", [], {"samples": []})
    with pytest.raises(UserError, match=r"00000\.tar: samples missing: all"):
        list(read_shard(tmp_path / "00000.tar", 4))


def test_ranges_of_many_indices_is_short():
    assert ranges([3, 1, 2, 7, 9, 10]) == "1–3, 7, 9–10"
    assert ranges(range(0, 100, 2)).endswith("18, …")
