"""Read pairs of images and captions from every source, and reject those that cannot teach."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from sid_core.config import Real
from sid_core.data.images import shrink
from sid_core.data.real_images import real_pairs
from sid_core.data.shapes import scenes
from sid_core.errors import UserError

SIDE = 16
SIZES = [(16, 16), (40, 20), (17, 64)]


def picture(number, size=None):
    width, height = size or SIZES[number]
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "images"
    (made / "b").mkdir(parents=True)
    for number, name in enumerate(("a", "b/c", "d")):
        (made / f"{name}.png").write_bytes(png(picture(number)))
        (made / f"{name}.txt").write_text(f" caption\n{number} ")
    (made / "notes.md").write_text("no image")
    return made


def read(**settings):
    count, pairs = real_pairs(Real(**settings), SIDE)
    return count, list(pairs)


def check(found):
    count, pairs = found
    assert count == len(pairs) == 3
    for number, (image, caption) in enumerate(pairs):
        assert caption == f"caption {number}"
        assert np.array_equal(image, shrink(picture(number), SIDE))


def test_real_pairs_of_a_folder_match_images_and_texts_by_name(folder):
    check(read(source=str(folder)))
    assert read(source=str(folder), pairs=2)[1][1][1] == "caption 1"


def test_real_pairs_keep_an_image_of_the_teachers_size(folder):
    assert np.array_equal(read(source=str(folder))[1][0][0], picture(0))


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv", "pairs.jsonl", "pairs.json", "pairs.parquet"])
def test_real_pairs_of_a_folder_with_a_table_follow_its_rows(folder, tmp_path, name):
    rows = [{"file": f"{stem}.png", "text": f"caption {i}"} for i, stem in enumerate(("a", "b/c", "d"))]
    path = tmp_path / name
    if name.endswith((".csv", ".tsv")):
        comma = "," if name.endswith(".csv") else "\t"
        path.write_text("".join(f"{comma.join(cells)}\n" for cells in (["file", "text"], *(r.values() for r in rows))))
    elif name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    check(read(source=str(folder), captions=str(path), image_column="file", caption_column="text"))


@pytest.mark.parametrize("split", [False, True])
def test_real_pairs_of_webdataset_archives_match_members_by_name(folder, tmp_path, split):
    place = tmp_path / "shards"
    place.mkdir()
    groups = [["a"], ["b/c", "d"]] if split else [["a", "b/c", "d"]]
    for number, group in enumerate(groups):
        with tarfile.open(place / f"{number:05d}.tar", "w") as archive:
            for name in group:
                for suffix in ("txt", "png"):
                    archive.add(folder / f"{name}.{suffix}", f"{name}.{suffix}")
    check(read(source=str(place if split else place / "00000.tar")))


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: {"bytes": data, "path": None}])
def test_real_pairs_of_parquet_read_bytes_and_structs(tmp_path, wrap):
    rows = [{"image": wrap(png(picture(i))), "caption": f"caption {i}"} for i in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    check(read(source=str(tmp_path / "0.parquet")))


def test_real_pairs_in_threads_are_equal(folder):
    check((3, list(real_pairs(Real(source=str(folder)), SIDE, workers=2)[1])))


def test_real_pairs_of_scenes_share_none_with_other_splits():
    count, pairs = read(pairs=300)
    assert count == len(pairs) == 300
    images, captions = scenes.draw("real-images", 300)
    assert [caption for _, caption in pairs] == captions
    assert np.array_equal(pairs[299][0], shrink(images[299], SIDE))
    own = {image.tobytes() for image in images}
    for split in set(scenes.SPLITS) - {"real-images"}:
        assert own.isdisjoint(image.tobytes() for image in scenes.draw(split, 512)[0])


def spoil(folder, name, data=None):
    path = folder / name
    path.unlink() if data is None else path.write_bytes(data)


BAD = [
    (lambda f: spoil(f, "d.txt"), {}, r"d\.png: expected its caption in d\.txt, got none\. Fix: add it"),
    (lambda f: spoil(f, "a.txt", b"  \n"), {}, r"a\.png: expected a caption, got 0 characters\. Fix: give one"),
    (lambda f: spoil(f, "a.txt", b"\xff"), {}, r"a\.txt: not UTF-8"),
    (
        lambda f: spoil(f, "a.png", png(picture(0, (30, 15)))),
        {},
        r"a\.png: 30 x 15 pixels, expected at least the teacher",
    ),
    (lambda f: spoil(f, "a.png", b"no image"), {}, r"a\.png: damaged or no image"),
    (lambda f: None, {"pairs": 4}, r"distill\.real\.pairs=4: .* holds 3\. Fix: lower the number"),
    (lambda f: [spoil(f, f"{name}.png") for name in ("a", "b/c", "d")], {}, r"expected images \(.*\), got none"),
    (
        lambda f: spoil(f, "t.csv", b"image,text\na.png,x\n"),
        {"captions": "t.csv"},
        "caption_column=caption: expected one",
    ),
    (
        lambda f: spoil(f, "t.csv", b"image,caption\nx.png,x\n"),
        {"captions": "t.csv"},
        "image=x.png: no such image below",
    ),
    (lambda f: spoil(f, "t.csv", b"image,caption\na.png,\n"), {"captions": "t.csv"}, "expected a caption, got 0"),
    (lambda f: spoil(f, "t.json", b"{"), {"captions": "t.json"}, "truncated or no table"),
    (lambda f: None, {"captions": "none.csv"}, "captions=none.csv: no such file"),
    (lambda f: spoil(f, "a.tar", b"x"), {}, "truncated or no tar"),
    (lambda f: spoil(f, "a.parquet", b"x"), {}, "truncated or no parquet"),
]


@pytest.mark.parametrize(("change", "settings", "message"), BAD)
def test_real_pairs_of_bad_input_name_file_expectation_and_remedy(folder, monkeypatch, change, settings, message):
    change(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        read(source=str(folder), **settings)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "caption": "x"}, "row 1: expected the bytes of an image, got str"),
        (
            {"image": {"bytes": None, "path": "a"}, "caption": "x"},
            "row 1: expected the bytes of an image, got NoneType",
        ),
        ({"image": png(picture(0)), "caption": None}, "row 1: expected a caption"),
        ({"jpg": b"", "caption": "x"}, "image_column=image: expected one of the columns of .*: jpg, caption"),
    ],
)
def test_real_pairs_of_a_bad_parquet_row_name_it(tmp_path, row, message):
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "0.parquet")
    with pytest.raises(UserError, match=message):
        read(source=str(tmp_path / "0.parquet"))


@pytest.mark.parametrize(
    ("source", "message"), [("nowhere", "no such file or folder"), ("x.zip", "expected a folder, a .tar or a .parquet")]
)
def test_real_pairs_of_a_wrong_source_name_it(tmp_path, monkeypatch, source, message):
    (tmp_path / "x.zip").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"distill.real.source={source}: {message}"):
        read(source=source)
