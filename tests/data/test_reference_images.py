"""Test that reference images of any source have the same record and that errors name damaged or missing ones."""

import io
import os
import pickle
import threading
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image
from serving import Drop, Server, Status
from tiny_parts import coco_images, coco_zip

from sid_core.config import BuildReferenceSettings
from sid_core.data.reference_images import ImageFiles, cached_features, reference_images
from sid_core.data.shapes import scenes
from sid_core.errors import UserError
from sid_core.storage.files import sha256_file

COUNT = 12


@pytest.fixture
def archive(tmp_path):
    return coco_zip(tmp_path / "val2014.zip", COUNT)


def settings(reference, count: int = COUNT, **changes) -> BuildReferenceSettings:
    return BuildReferenceSettings(reference=str(reference), reference_samples=count, batch=4, **changes)


def replaced(archive, index: int, data: bytes):
    """Replace the bytes of one image in the zip; return the image's name."""
    members = dict(sorted(coco_images(COUNT).items()))
    name = list(members)[index]
    with zipfile.ZipFile(archive, "w") as made:
        for member, content in (members | {name: data}).items():
            made.writestr(member, content)
    return name


# --- what is read --------------------------------------------------------------------------------------------------------


def test_image_files_of_a_zip_are_read_in_order_of_names(archive, tmp_path):
    images = reference_images(settings(archive))
    assert len(images) == COUNT
    for index, (_, data) in enumerate(sorted(coco_images(COUNT).items())):
        with Image.open(io.BytesIO(data)) as picture:
            expected = np.asarray(picture.convert("RGB"))
        image = images.read(index)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["val2014.zip"]


def test_read_of_grey_and_cmyk_gives_rgb(archive):
    images = reference_images(settings(archive))
    modes = [Image.open(io.BytesIO(data)).mode for _, data in sorted(coco_images(COUNT).items())]
    assert modes[:4] == ["RGB", "L", "CMYK", "RGB"]
    assert all(images.read(i).shape[2] == 3 for i in range(4))
    assert np.ptp(images.read(1).astype(int), axis=2).max() == 0  # grey
    assert np.ptp(images.read(2).astype(int), axis=2).max() > 0


def png(image: Image.Image, **extra) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **extra)
    return buffer.getvalue()


def reference_of(folder, data: bytes) -> np.ndarray:
    (folder / "one.png").write_bytes(data)
    return ImageFiles(folder).read(0)


def test_reference_of_16_bit_grey_keeps_its_high_byte(tmp_path):
    # Pillow's own conversion clips at 255, which made all but 1 of 256 levels white.
    levels = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    image = reference_of(tmp_path, png(Image.fromarray(levels)))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.stack([levels >> 8] * 3, axis=2))


GREY = Image.fromarray(np.full((4, 4), 7, np.uint8))
RED = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
TRANSPARENT = {
    "RGBA": png(Image.new("RGBA", (4, 4), (255, 0, 0, 254))),
    "LA": png(Image.new("LA", (4, 4), (7, 0))),
    "palette": png(GREY.convert("P"), transparency=7),
    "colour key": png(GREY.convert("RGB"), transparency=(7, 7, 7)),
    "grey key": png(GREY, transparency=7),
    "16-bit key": png(Image.fromarray(np.full((4, 4), 700, np.uint16)), transparency=700),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_read_of_transparent_pixels_raises(tmp_path, kind):
    with pytest.raises(UserError, match=r"one\.png: has transparent pixels.* Fix: .*magick mogrify"):
        reference_of(tmp_path, TRANSPARENT[kind])


def test_read_of_an_opaque_alpha_channel_drops_it(tmp_path):
    for data in (png(RED), png(GREY.convert("P"), transparency=9), png(GREY, transparency=9)):
        with Image.open(io.BytesIO(data)) as picture:
            expected = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(reference_of(tmp_path, data), expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_read_of_unknown_white_raises(tmp_path, mode):
    buffer = io.BytesIO()
    Image.new(mode, (4, 4), 700).save(buffer, "TIFF")  # Pillow goes by the content, whatever the suffix says
    with pytest.raises(UserError, match=rf"one\.png: has pixels of mode {mode}.* Fix: "):
        reference_of(tmp_path, buffer.getvalue())


def test_record_of_zip_and_folder_is_equal(archive, tmp_path):
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "my.zip.unpacked")  # a path that holds ".zip" is no zip
    outer, inner = tmp_path / "my.zip.unpacked", tmp_path / "my.zip.unpacked" / "val2014"
    (inner / "readme.txt").write_text("no image")
    (inner / ".hidden.jpg").write_text("no image")
    sets = [reference_images(settings(path)) for path in (archive, outer, inner)]
    assert sets[0].record() == sets[1].record() == sets[2].record()
    assert sets[0].record().keys() == {"source", "count", "files_sha256"}
    assert all(np.array_equal(sets[0].read(i), sets[2].read(i)) for i in range(COUNT))


def test_record_of_a_changed_image_differs(archive, tmp_path):
    other = coco_zip(tmp_path / "other.zip", COUNT)
    data = bytearray(sorted(coco_images(COUNT).items())[5][1])
    data[-10] ^= 1  # same name, same size
    replaced(other, 5, bytes(data))
    assert ImageFiles(archive).record() != ImageFiles(other).record()


def test_reference_images_of_embedded_are_the_scenes(tmp_path):
    images = reference_images(settings("embedded", 300))
    expected = scenes.draw("reference", 300)[0]
    for index in (299, 0, 255, 256):
        np.testing.assert_array_equal(images.read(index), expected[index])
    assert images.record() == {"source": "embedded", "count": 300}


def _read(images, index):
    return images.read(index)


def test_read_in_forked_processes_gives_equal_images(archive):
    # A forked process that shared its parent's open file would read from the wrong places.
    images = reference_images(settings(archive))
    expected = [images.read(i) for i in range(COUNT)]
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        found = list(pool.map(_read, [images] * COUNT, range(COUNT)))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_read_in_threads_gives_equal_images(archive):
    images, found = ImageFiles(archive), {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: images.read(i)})) for i in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[i], images.read(i)) for i in range(COUNT))


def test_image_files_after_pickling_read_the_same(archive):
    for images in (reference_images(settings("embedded", 600)), reference_images(settings(archive))):
        expected = images.read(3)
        pickled = pickle.dumps(images)
        assert len(pickled) < 2000
        np.testing.assert_array_equal(pickle.loads(pickled).read(3), expected)


# --- what is refused, by name -------------------------------------------------------------------------------------------


def test_reference_images_of_another_count_name_both(archive):
    with pytest.raises(UserError, match=r"evaluate\.reference_samples=40504: .*val2014\.zip holds 12 images"):
        reference_images(settings(archive, 40504))


@pytest.mark.parametrize("damage", ["truncated", "no image", "empty"])
def test_read_of_a_corrupt_jpeg_names_it(archive, damage):
    whole = sorted(coco_images(COUNT).items())[7][1]
    name = replaced(archive, 7, {"truncated": whole[: len(whole) // 2], "no image": b"<html>", "empty": b""}[damage])
    images = reference_images(settings(archive))
    with pytest.raises(UserError, match=f"{archive}: {name} is damaged or no image"):
        images.read(7)
    assert images.read(6).shape[2] == 3


def test_read_of_a_zip_with_a_flipped_bit_names_it(archive):
    content = bytearray(archive.read_bytes())
    content[content.index(b"\xff\xd8") + 300] ^= 1  # inside the first stored image, the last by name
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"COCO_val2014_000000000383\.jpg is damaged .*CRC"):
        reference_images(settings(archive)).read(COUNT - 1)


def test_image_files_of_a_truncated_zip_raise(archive):
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"val2014\.zip is no readable zip"):
        reference_images(settings(archive))


def test_reference_images_of_no_images_raises(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.reference=.*nowhere: no such folder or zip"):
        reference_images(settings(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no images"):
        reference_images(settings(tmp_path))


# --- from a URL --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("SID_CORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sid_core.storage.downloads.BACKOFF_S", 0.001)
    with Server(files=archive.parent) as server:
        yield server


def test_reference_path_of_a_url_downloads_once(served, archive):
    url = f"{served.url}/files/val2014.zip"
    served.faults["/files/val2014.zip"] = [Drop(5000), Status(503)]
    first, second = reference_images(settings(url)), reference_images(settings(url))
    assert first.record() == second.record() == ImageFiles(archive).record()
    assert len(served.requests) == 3
    assert reference_images(settings(url, reference_sha256=sha256_file(archive))).record() == first.record()
    assert len(served.requests) == 3


def test_reference_path_of_another_zip_raises(served):
    with pytest.raises(UserError, match=f"expected sha256 {'0' * 64}"):
        reference_images(settings(f"{served.url}/files/val2014.zip", reference_sha256="0" * 64))


def test_cached_features_path_depends_on_every_input(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("SID_CORE_CACHE", str(tmp_path / "cache"))
    record, transform = ImageFiles(archive).record(), {"image_size": 256}
    kept = cached_features(record, transform, {"features": "f"}, "code")
    assert kept.is_relative_to(tmp_path / "cache")
    assert kept == cached_features(dict(reversed(record.items())), transform, {"features": "f"}, "code")
    others = {
        cached_features(record | {"files_sha256": "a" * 64}, transform, {"features": "f"}, "code"),
        cached_features(record, {"image_size": 299}, {"features": "f"}, "code"),
        cached_features(record, transform, {"features": "e"}, "code"),
        cached_features(record, transform, {"features": "f"}, "a fix"),
    }
    with monkeypatch.context() as upgrade:
        upgrade.setattr("sid_core.data.reference_images.versions", lambda: {"pillow": "99"})
        others.add(cached_features(record, transform, {"features": "f"}, "code"))
    assert len(others | {kept}) == 6
    assert cached_features({"source": "embedded", "count": 5}, transform, {"features": "f"}, "code") is None
    assert not os.path.exists(tmp_path / "cache")
