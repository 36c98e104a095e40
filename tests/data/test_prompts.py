"""Test prompt files: valid and invalid text, tables, archives, a hub; and lines of a file by index."""

import gzip
import hashlib
import io
import json
import logging
import tarfile

import pandas
import pytest
from serving import Server

from sid_core.config import COCO2014_30K, Prompts, PromptsSettings
from sid_core.data.captions import LineFile, check_enough, read_captions
from sid_core.data.prompts import COCO_CAPTIONS, COCO_SHA256, normalised, prepare_prompts, training_prompts
from sid_core.errors import UserError
from sid_core.storage.files import read_json, read_lines, verify_manifest

FOUR = ["A Dog", "Été", "a cat", "Été"]


def prepare(tmp_path, train: bytes, evaluation: bytes = b"a cat\n", name: str = "train", **settings):
    (tmp_path / name).write_bytes(train)
    (tmp_path / "eval").write_bytes(evaluation)
    prompts = Prompts(source="file", train=str(tmp_path / name), evaluation=str(tmp_path / "eval"), **settings)
    prepare_prompts(PromptsSettings(prompts=prompts), tmp_path / "out")
    return tmp_path / "out"


def table(captions: list[str | None], write: str) -> bytes:
    """Write a table with a column of captions and another by pandas' method `write`."""
    buffer = io.BytesIO()
    getattr(pandas.DataFrame({"id": range(len(captions)), "text": captions}), write)(buffer, index=False)
    return buffer.getvalue()


def archive(mode: str = "w", **files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"folder/{name}.txt")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def records(captions: list) -> list[dict]:
    return [{"id": index, "text": caption} for index, caption in enumerate(captions)]


def jsonl(entries: list) -> bytes:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()


def tsv(captions: list[str]) -> bytes:
    return pandas.DataFrame(records(captions)).to_csv(sep="\t", index=False).encode()


TEXT = "\n".join(FOUR).encode()


def short(value: object) -> str | None:
    """Return an id for pytest in place of a file's contents, which may be megabytes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else None


@pytest.mark.parametrize(
    ("name", "data", "settings"),
    [
        ("a.txt", "A Dog \nÉté\r\na cat\nÉté".encode(), {}),
        ("a", b"\xef\xbb\xbf" + "A Dog\rÉté\ra cat\r\nÉté\r\n".encode(), {}),
        ("a.txt.gz", gzip.compress(TEXT, mtime=0), {}),
        ("a.csv", table(FOUR, "to_csv"), {"column": "text"}),
        ("a.csv.gz", gzip.compress(table(FOUR, "to_csv"), mtime=0), {"column": "text"}),
        ("a.parquet", table(FOUR, "to_parquet"), {"column": "text"}),
        ("a.tsv", tsv(FOUR), {"column": "text"}),
        ("a.tsv.gz", gzip.compress(tsv(FOUR), mtime=0), {"column": "text"}),
        ("a.jsonl", jsonl(records(FOUR)), {"column": "text"}),
        ("a.jsonl", jsonl(FOUR), {}),
        ("a.JSONL.GZ", gzip.compress(jsonl(records(FOUR)), mtime=0), {"column": "text"}),
        ("a.json", json.dumps(records(FOUR), indent=2).encode(), {"column": "text"}),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(FOUR, ensure_ascii=False).encode(), {}),
        ("a.TAR", archive(good=TEXT, other=b"x\n"), {"member": "good.txt"}),
        ("a.TXT", TEXT, {}),
        ("a.tar", archive(good=TEXT, other=b"x\n"), {"member": "folder/good.txt"}),
        ("a.tar.gz", archive("w:gz", good=TEXT, other=b"x\n"), {"member": "good.txt"}),
    ],
    ids=short,
)
def test_read_captions_of_every_format_gives_equal_captions(tmp_path, name, data, settings):
    out = prepare(tmp_path, data, b"a cat\nA DOG.\n", name, **settings)
    verify_manifest(out)
    assert read_lines(out / "train.txt", "caption") == FOUR
    report = read_json(out / "report.json")
    assert [report["train"][key] for key in ("captions", "distinct", "duplicates")] == [4, 3, 1]
    assert report["overlap"] == {"exact": 1, "normalised": 2, "training_captions": 2}


def test_prepare_prompts_with_too_few_evaluation_captions_raises(tmp_path):
    for name, data, column in (("a.txt", b"a\nb\nc", None), ("a.csv", table(["a", "b", "c"], "to_csv"), "text")):
        (tmp_path / name).write_bytes(data)
        prompts = Prompts(source="file", train="x", evaluation=str(tmp_path / name), column=column)
        check_enough(prompts, 3)
        with pytest.raises(UserError, match=r"generate\.samples=4: prompts\.evaluation=.* holds only 3 captions"):
            check_enough(prompts, 4)


def test_read_captions_of_line_breaks_in_cells_gives_spaces(tmp_path):
    cells = ["a\nb", 'say "x", twice', "NA", "null", "c\r\nd"]
    written = {kind: table(cells, f"to_{kind}") for kind in ("csv", "parquet")}
    written |= {"tsv": tsv(cells), "jsonl": jsonl(records(cells)), "json": json.dumps(records(cells)).encode()}
    for kind, data in written.items():
        out = prepare(tmp_path, data, name=f"a.{kind}", column="text")
        assert (out / "train.txt").read_text() == 'a b\nsay "x", twice\nNA\nnull\nc d\n'


def test_prepare_prompts_of_blank_training_captions_skips_and_counts_them(tmp_path):
    cells = ["a", None, "  ", "b"]
    for name, data, settings in (
        ("a.txt", b"a\n\n  \nb\n", {}),
        ("a.parquet", table(cells, "to_parquet"), {"column": "text"}),
        ("a.csv", table(cells, "to_csv"), {"column": "text"}),
        ("a.jsonl", jsonl(records(cells)), {"column": "text"}),
        ("a.json", json.dumps(records(cells)).encode(), {"column": "text"}),
    ):
        out = prepare(tmp_path, data, name=name, **settings)
        assert (out / "train.txt").read_text() == "a\nb\n"
        assert read_json(out / "report.json")["train"]["blank_lines"] == 2


def test_read_captions_with_other_blocks_gives_equal_lines(tmp_path, monkeypatch):
    data = "ab\r\n\u00e9\nc\rd\n\n\u65e5\u672c\r\ne".encode()
    for block in range(1, 12):
        monkeypatch.setattr("sid_core.data.captions.BLOCK", block)
        out = prepare(tmp_path, data)
        assert (out / "train.txt").read_text(encoding="utf-8") == "ab\né\nc\nd\n日本\ne\n"
        assert list(training_prompts(out / "train.txt")) == ["ab", "é", "c", "d", "日本", "e"]


@pytest.mark.parametrize(
    ("name", "train", "settings", "message"),
    [
        ("t", b"", {}, "t: expected one caption a line, got none"),
        ("t", b"\n\n", {}, "t: expected one caption a line, got none"),
        ("t", b"fine\n\xff\xfe\n", {}, "line 2: not UTF-8"),
        ("t", b"fine\n" * 500_000 + b"\xc3(\n", {}, "line 500001: not UTF-8"),
        ("t", b"a\n" + b"x" * 10_000_000, {}, "line 2: over 100,000 characters"),
        ("t", b"a\n" + b"x" * 100_001 + b"\n", {}, "line 2: over 100,000 characters"),
        ("t.gz", gzip.compress(TEXT, mtime=0)[:-9], {}, r"t\.gz: truncated or damaged"),
        ("t.gz", TEXT, {}, r"t\.gz: truncated or damaged"),
        ("t.csv", table(FOUR, "to_csv"), {}, "prompts.column: not set; expected one of .*: id, text"),
        ("t.csv", table(FOUR, "to_csv"), {"column": "txt"}, "prompts.column: 'txt'; expected one of .*: id, text"),
        ("t.csv", b"id,text\n1,a\n2,b,c\n", {"column": "text"}, "line 3: 3 cells under 2 column names"),
        ("t.csv", b'id,text\n1,"a\n' + b"2,b\n" * 50_000, {"column": "text"}, "is a quote never closed"),
        ("t.csv", b"id,text\n1,\xff\n", {"column": "text"}, "line 2: not UTF-8"),
        ("t.parquet", table(FOUR, "to_parquet"), {"column": "txt"}, "'txt'; expected one of .*: id, text"),
        ("t.parquet", table(FOUR, "to_parquet"), {"column": "id"}, "column 'id' holds int64, expected text"),
        ("t.parquet", table(FOUR, "to_parquet")[:-20], {"column": "text"}, r"t\.parquet: truncated or damaged"),
        ("t.parquet", b"PAR1" + b"x" * 100 + b"PAR1", {"column": "text"}, r"t\.parquet: truncated or damaged"),
        ("t.tsv", tsv(FOUR), {"column": "txt"}, "'txt'; expected one of .*: id, text"),
        ("t.tsv", b"id\ttext\n1\ta\tb\n", {"column": "text"}, "line 2: 3 cells under 2 column names"),
        (
            "t.jsonl",
            jsonl(records(FOUR)),
            {},
            "line 1: an object, expected a caption. Fix: set prompts.column to one of: id, text",
        ),
        (
            "t.jsonl",
            jsonl(["a", "b"]),
            {"column": "text"},
            "line 1: text, expected an object with prompts.column='text'",
        ),
        (
            "t.jsonl",
            jsonl([{"text": "a"}, {"txt": "b"}]),
            {"column": "text"},
            "line 2: an object without 'text', .* one of: txt",
        ),
        (
            "t.jsonl",
            jsonl([{"text": "a"}, {"text": 3}]),
            {"column": "text"},
            "line 2: a number, expected text as prompts.column='text'",
        ),
        ("t.jsonl", b'{"text": "a"}\n{"text": \n', {"column": "text"}, "line 2: not JSON"),
        ("t.jsonl", b'"a"\n"\\ud800"\n', {}, "line 2: half a character"),
        ("t.jsonl", jsonl(["a", "x" * 100_001]), {}, "line 2: over 100,000 characters"),
        ("t.json", b"[" * 100_000, {}, "not JSON"),
        ("t.json", b'["a", ', {}, "not JSON"),
        ("t.json", b'["\xff"]', {}, "not JSON .*utf-8"),
        ("t.json", b'["a", ["b"]]', {}, "entry 2: a list, expected a caption"),
        (
            "t.json",
            json.dumps({"info": {}, "annotations": records(FOUR)}).encode(),
            {"column": "text"},
            "holds an object, expected a list.*jq -c '.annotations",
        ),
        ("t.json", b"3", {}, "holds a number, expected a list"),
        ("t.tar", archive(a=TEXT), {}, "prompts.member=None: expected one of the files in .*: folder/a.txt"),
        ("t.tar", archive(a=TEXT)[:600], {"member": "a.txt"}, "truncated or damaged"),
        ("t.tar", b"not a tar", {"member": "a.txt"}, "truncated or damaged"),
        ("t.txt", TEXT, {"member": "a.txt"}, "is no archive"),
    ],
    ids=short,
)
def test_read_captions_of_bad_files_names_them(tmp_path, name, train, settings, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, train, name=name, **settings)
    assert not (tmp_path / "out").exists()


def test_prepare_prompts_with_a_blank_evaluation_caption_raises(tmp_path):
    with pytest.raises(UserError, match="eval: expected one caption a line, got none in line 2"):
        prepare(tmp_path, b"one\n", b"one\n\ntwo\n")


def test_prepare_prompts_of_overlapping_captions_warns(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        prepare(tmp_path, b"A CAT.\nx\na cat\n", b"a cat\nb\nA cat\n")
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].startswith("1 of 3 distinct evaluation captions are also trained on (1 of them to the letter")


def test_prepare_prompts_without_overlap_or_embedded_warns_of_nothing(tmp_path, caplog):
    prepare(tmp_path, b"a dog\n", b"a cat\n")
    prepare_prompts(PromptsSettings(prompts=Prompts(train=500, evaluation=40)), tmp_path / "embedded")
    assert read_json(tmp_path / "embedded" / "report.json")["overlap"]["exact"] > 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_normalised_ignores_case_spaces_and_punctuation():
    assert normalised("  A  Cat\tSits. ") == normalised("a cat sits") == normalised("A CAT SITS !")
    assert normalised("a cat's") != normalised("a cats")


def test_embedded_captions_differ_by_split(tmp_path):
    read = {}
    for split in ("evaluation", "validation"):
        settings = PromptsSettings(prompts=Prompts(train=50, evaluation=40, split=split))
        prepare_prompts(settings, tmp_path / split)
        read[split] = read_lines(tmp_path / split / "evaluation.txt", "caption")
        assert len(read[split]) == 40
    assert read["evaluation"] != read["validation"]


def test_token_lengths_equal_those_of_the_teacher(tmp_path, tiny_teacher):
    (tmp_path / "train").write_text("ab\nabcd ef\n" + "a" * 30 + "\n")
    (tmp_path / "eval").write_text("a\n")
    prompts = Prompts(source="file", train=str(tmp_path / "train"), evaluation=str(tmp_path / "eval"))
    prepare_prompts(PromptsSettings(prompts=prompts), tmp_path / "out", tiny_teacher)
    report = read_json(tmp_path / "out" / "report.json")
    # the tiny teacher's tokens are letters, between a start and an end token; it reads 12
    expected = {"sample": 3, "min": 4, "mean": (4 + 8 + 32) / 3, "max": 32, "limit": 12, "truncated": 1}
    assert report["train"]["tokens"] == expected
    assert report["evaluation"]["tokens"]["max"] == 3


def test_coco_captions_ship_with_the_package(tmp_path):
    assert hashlib.sha256(COCO_CAPTIONS.read_bytes()).hexdigest() == COCO_SHA256
    (tmp_path / "train").write_text("a dog\n")
    prompts = Prompts(source="file", train=str(tmp_path / "train"), evaluation=COCO2014_30K)
    prepare_prompts(PromptsSettings(prompts=prompts), tmp_path / "out")
    lines = read_lines(tmp_path / "out" / "evaluation.txt", "caption")
    assert len(lines) == 30_000
    assert lines[1] == "A motorcycle parked in a parking space next to another motorcycle."


def test_prepare_prompts_of_the_hub_records_the_commit(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "prompts.tar").write_bytes(archive(good=TEXT))
    given = {"source": "hub", "repo": "a/b", "member": "good.txt", "evaluation": COCO2014_30K}
    with Server(repos={"a/b": tmp_path / "repository"}) as server:
        server.use_as_hub(monkeypatch, tmp_path / "cache")
        prepare_prompts(PromptsSettings(prompts=Prompts(train="prompts.tar", **given)), tmp_path / "out")
        assert read_lines(tmp_path / "out" / "train.txt", "caption") == FOUR
        source = read_json(tmp_path / "out" / "report.json")["source"]
        assert source == {"kind": "hub", "file": "prompts.tar", "repo": "a/b", "commit": server.commit("a/b")}
        for changes, message in (
            ({"train": "x.tar"}, "prompts.repo=a/b: has no file x.tar"),
            ({"train": "prompts.tar", "repo": "a/c"}, "prompts.repo=a/c: the hub answers"),
            ({"train": "prompts.tar", "revision": "f" * 40}, "prompts.revision=f"),
        ):
            with pytest.raises(UserError, match=message):
                prepare_prompts(PromptsSettings(prompts=Prompts(**given | changes)), tmp_path / "other")
            assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "hub", "train": "a", "evaluation": "b"}, "give the repository"),
        ({"source": "file", "train": "a", "evaluation": "b", "repo": "x/y"}, "give the repository"),
        ({"source": "file", "train": "a", "evaluation": 3}, "evaluation=3: expected a caption file"),
        ({"evaluation": COCO2014_30K}, "expected a number of captions"),
        ({"column": "text"}, "belong to source: file"),
        (
            {"source": "file", "train": "a.xlsx", "evaluation": "b"},
            r"train='a.xlsx': .*\.txt, \.csv, \.tsv, \.jsonl, \.json",
        ),
        ({"source": "file", "train": "a", "evaluation": "b.zip"}, r"evaluation='b.zip': .*\.parquet"),
        ({"source": "file", "train": "a.tar", "evaluation": "b", "member": "c.docx"}, "member='c.docx': "),
        (
            {"source": "file", "train": "a", "evaluation": "b.TGZ"},
            "evaluation='b.TGZ': an archive, expected a text or a table",
        ),
        (
            {"source": "file", "train": "a.txt", "evaluation": "b.TXT.gz", "column": "text"},
            "column='text': .* no table",
        ),
        (
            {"source": "file", "train": "a.tar", "member": "c.txt", "evaluation": "b", "column": "t"},
            "column='t': .* no table",
        ),
    ],
)
def test_parse_prompts_of_contradicting_keys_raises(settings, message):
    with pytest.raises(ValueError, match=message):
        Prompts(**settings)


def test_read_captions_of_another_suffix_raises(tmp_path):
    (tmp_path / "a.bin").write_bytes(TEXT)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.bin", "x.docx")
    for name, member in (("a.bin", None), ("a.tar", "x.docx")):
        with pytest.raises(UserError, match=r"a\.(bin|tar:x\.docx): expected \.txt, .*, got \.(bin|docx)\. Fix: "):
            next(read_captions(tmp_path / name, member=member))


def test_prepare_prompts_of_a_table_and_a_text_uses_the_column(tmp_path):
    out = prepare(tmp_path, jsonl(records(FOUR)), name="a.jsonl", column="text")
    assert read_lines(out / "train.txt", "caption") == FOUR
    Prompts(source="file", train="a.tar", evaluation="b", column="text")  # the archive may hold a table


def test_read_captions_and_read_lines_have_one_length_limit(tmp_path):
    # Captions of 10,001 to 100,000 characters once passed the prompts and failed after training.
    for length, fits in ((100_000, True), (100_001, False)):
        (tmp_path / "train.txt").write_text("a dog\n")
        (tmp_path / "eval.txt").write_text("x" * length + "\n")
        prompts = Prompts(source="file", train=str(tmp_path / "train.txt"), evaluation=str(tmp_path / "eval.txt"))
        if fits:
            check_enough(prompts, 1)
            prepare_prompts(PromptsSettings(prompts=prompts), tmp_path / "out")
            assert len(read_lines(tmp_path / "out" / "evaluation.txt", "caption")[0]) == length
            continue
        for refuses in (
            lambda prompts=prompts: check_enough(prompts, 1),
            lambda prompts=prompts: prepare_prompts(PromptsSettings(prompts=prompts), tmp_path / "out"),
            lambda: read_lines(tmp_path / "eval.txt", "caption"),
        ):
            with pytest.raises(UserError, match=r"line 1: .*100,00[01] characters"):
                refuses()


# --- lines by index ----------------------------------------------------------------------------------------------------


def test_line_file_equals_the_list_of_its_lines(tmp_path):
    lines = ["é" * n + str(n) for n in range(3000)]
    path = tmp_path / "lines"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = LineFile(path, "hash")
    assert len(file) == 3000
    assert [file[i] for i in (0, 1, 2999, -1, -3000)] == [lines[i] for i in (0, 1, 2999, -1, -3000)]
    assert list(file) == lines
    for index in (3000, -3001):
        with pytest.raises(IndexError):
            file[index]


def test_training_prompts_has_the_hash_of_its_file(tmp_path):
    out = prepare(tmp_path, TEXT)
    prompts = training_prompts(out / "train.txt")
    assert list(prompts) == FOUR
    assert prompts.sha256 == hashlib.sha256((out / "train.txt").read_bytes()).hexdigest()
