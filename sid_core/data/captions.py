"""Read caption files (text or tables, gzip-compressed or in a .tar), and lines of a text file by index.

Every format except .json is streamed: 10 million captions take no memory but the index, 8 bytes a line.
"""

import csv
import gzip
import json
import os
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..config import COCO2014_30K, caption_format
from ..errors import UserError, one_line
from ..storage.files import LONGEST_LINE
from .pool import batches

if TYPE_CHECKING:
    from ..config import Prompts

BLOCK = 1 << 20  # bytes read at once
BATCH = 8192  # cells of a table at once
# names of JSON's values
KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
KINDS |= dict.fromkeys((int, float), "a number")


def read_captions(path: str | Path, column: str | None = None, member: str | None = None) -> Iterator[list[str]]:
    """Yield the captions of a file in order, in batches of some thousands.

    Captions are stripped; a blank line or an empty cell yields ''. Line breaks inside a cell become spaces.

    Args:
        path: a table (.csv, .tsv, .jsonl, .json, .parquet), a .tar, or text of one caption a line (.txt or no suffix), in any
            case; .gz is decompressed.
        column: of a table; ignored for text, None for JSON of strings.
        member: the file inside an archive, by its path or name.

    Raises:
        UserError: file, member or column does not exist; the file is of another format, damaged or not UTF-8; a caption
            exceeds 100,000 characters.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such caption file")
    where = f"{path}:{member}" if member else str(path)
    try:
        with ExitStack() as stack:
            file, name = _open(path, member, stack)
            if name.endswith(".gz"):
                file, name = stack.enter_context(gzip.open(file)), name.removesuffix(".gz")
            unit, found = _batches(file, _format(name, where), column, where)
            before = 0
            for batch in found:
                if len(max(batch, key=len)) > LONGEST_LINE:
                    raise _too_long(where, unit, before + 1 + [len(x) > LONGEST_LINE for x in batch].index(True))
                before += len(batch)
                yield [caption.strip() for caption in batch]
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise UserError(f"{where}: truncated or damaged ({error}). Fix: fetch or write it again") from None


def _batches(file: BinaryIO, kind: str, column: str | None, where: str) -> tuple[str, Iterator[list[str]]]:
    """Return the unit of one caption in this format (row, line or entry), and batches of captions."""
    if kind in (".csv", ".tsv"):
        return "row", _csv_cells(file, column, where, "," if kind == ".csv" else "\t")
    if kind == "":
        return "line", _lines(file, where)
    formats = {".jsonl": ("line", _jsonl_cells), ".json": ("entry", _json_cells), ".parquet": ("row", _parquet_cells)}
    unit, cells = formats[kind]
    return unit, cells(file, column, where)


def check_enough(prompts: "Prompts", samples: int) -> None:
    """Raise a UserError, before any training, if an evaluation file has fewer captions than samples.

    A number of captions, in place of a file, is checked when the configuration is read.
    """
    if isinstance(prompts.evaluation, int) or prompts.evaluation == COCO2014_30K:
        return
    count = 0
    for batch in read_captions(prompts.evaluation, prompts.column):
        count += len(batch)
        if count >= samples:
            return
    raise UserError(
        f"generate.samples={samples}: prompts.evaluation={prompts.evaluation} holds only {count:,} captions. "
        "Fix: lower generate.samples or give more captions"
    )


def _open(path: Path, member: str | None, stack: ExitStack) -> tuple[BinaryIO, str]:
    """Open the file or the archive's member; return it with the lower-case name that determines its format."""
    if _format(path.name, str(path)) != ".tar":
        if member:
            raise UserError(f"prompts.member={member}: {path} is no archive. Fix: omit the setting, or give a .tar")
        return stack.enter_context(open(path, "rb")), path.name.lower()
    archive = stack.enter_context(tarfile.open(path))  # noqa: SIM115  the stack is the context manager
    files = [entry for entry in archive.getmembers() if entry.isfile()]
    names = [entry.name for entry in files]
    found = [entry for entry in files if member in (entry.name, Path(entry.name).name, entry.name.removeprefix("./"))]
    if len(found) != 1:
        raise UserError(f"prompts.member={member}: expected one of the files in {path}: {_listed(names)}")
    return stack.enter_context(archive.extractfile(found[0])), found[0].name.lower()


def _format(name: str, where: str) -> str:
    try:
        return caption_format(name)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _lines(file: BinaryIO, where: str) -> Iterator[list[str]]:
    """Yield batches of lines of UTF-8 text without line ends (\\n, \\r\\n or \\r) and leading byte order mark."""
    rest, number = b"", 1  # the incomplete last line, and its number
    while block := file.read(BLOCK):
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            lines = _split(whole + newline, where, number)
            number += len(lines)
            yield lines
        if len(rest) > 4 * LONGEST_LINE:
            raise _too_long(where, "line", number)
    if rest:
        yield _split(rest, where, number)


def _split(data: bytes, where: str, number: int) -> list[str]:
    """Split complete lines of UTF-8 bytes, the first of which is line `number` of the file."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number += data.count(b"\n", 0, error.start)
        raise UserError(f"{where}, line {number}: not UTF-8 ({error.reason}). Fix: convert it, as with iconv") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    return (text.removeprefix("\ufeff") if number == 1 else text).split("\n")


def _csv_cells(file: BinaryIO, column: str | None, where: str, delimiter: str) -> Iterator[list[str]]:
    """Yield batches of cells of one column of comma- or tab-separated text with a header."""
    rows = csv.reader((line + "\n" for lines in _lines(file, where) for line in lines), delimiter=delimiter)
    try:
        header = next(rows, [])
        index = _column(header, column, where)

        def cell(row: list[str]) -> str:
            if row and len(row) != len(header):
                raise UserError(
                    f"{where}, line {rows.line_num}: {len(row)} cells under {len(header)} column names. "
                    "Fix: quote a cell that holds the separator"
                )
            return _one_line(row[index]) if row else ""

        yield from batches(map(cell, rows), BATCH)
    except csv.Error as error:
        raise UserError(f"{where}, line {rows.line_num}: {error}; is a quote never closed?") from None


def _jsonl_cells(file: BinaryIO, column: str | None, where: str) -> Iterator[list[str]]:
    """Yield batches of captions of JSON lines: strings, or the `column` of objects; '' for a blank line."""
    before = 0
    for lines in _lines(file, where):
        batch = []
        for number, line in enumerate(lines, before + 1):
            entry = _json(line, f"{where}, line {number}") if line.strip() else ""
            batch.append(_caption(entry, column, f"{where}, line {number}"))
        before += len(lines)
        yield batch


def _json_cells(file: BinaryIO, column: str | None, where: str) -> Iterator[list[str]]:
    """Yield batches of captions of a JSON list, read into memory: strings, or the `column` of objects."""
    entries = _json(file.read(), where)
    if not isinstance(entries, list):
        lists = [key for key in entries if isinstance(entries[key], list)] if isinstance(entries, dict) else []
        fix = f", for example jq -c '.{lists[0]}[]' FILE > captions.jsonl" if lists else ""
        raise UserError(f"{where}: holds {KINDS[type(entries)]}, expected a list. Fix: extract the captions{fix}")
    for start in range(0, len(entries), BATCH):
        some = enumerate(entries[start : start + BATCH], start + 1)
        yield [_caption(entry, column, f"{where}, entry {number}") for number, entry in some]


def _json(text: str | bytes, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also for other text than UTF-8
        raise UserError(f"{where}: not JSON ({error}). Fix: correct it, or fetch it again") from None


def _caption(entry: object, column: str | None, where: str) -> str:
    """Return the caption of one JSON entry, '' for null."""
    what = "expected a caption" if column is None else f"expected an object with prompts.column={column!r}"
    if isinstance(entry, dict):
        if column not in entry:
            lacks = "" if column is None else f" without {column!r}"
            columns = _listed(list(entry))
            raise UserError(f"{where}: an object{lacks}, {what}. Fix: set prompts.column to one of: {columns}")
        entry = entry[column]
        what = f"expected text as prompts.column={column!r}"
    elif column is not None and entry != "":  # a blank line
        raise UserError(
            f"{where}: {KINDS[type(entry)]}, {what}. "
            "Fix: omit prompts.column, or write these captions to a .txt if the other file needs it"
        )
    if entry is not None and not isinstance(entry, str):
        raise UserError(f"{where}: {KINDS[type(entry)]}, {what}. Fix: correct it, or choose another column")
    caption = _one_line(entry or "")
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: half a character (a lone surrogate), {what}. Fix: correct it") from None
    return caption


def _parquet_cells(file: BinaryIO, column: str | None, where: str) -> Iterator[list[str]]:
    """Yield batches of cells of one text column, '' for null."""
    import pyarrow
    from pyarrow import parquet, types

    try:
        table = parquet.ParquetFile(file, buffer_size=BLOCK)
        _column(table.schema_arrow.names, column, where)
        kind = table.schema_arrow.field(column).type
        text = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(text) or types.is_large_string(text) or types.is_string_view(text)):
            raise UserError(f"{where}: column {column!r} holds {kind}, expected text. Fix: choose another column")
        for batch in table.iter_batches(BATCH, columns=[column], use_threads=False):
            if batch.num_rows:
                yield [_one_line(cell or "") for cell in batch.column(0).to_pylist()]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: truncated or damaged ({one_line(error)}). Fix: fetch or write it again") from None


def _one_line(cell: str) -> str:
    return " ".join(cell.splitlines())


def _column(names: Sequence[str], column: str | None, where: str) -> int:
    """Return the index of the column, which must occur exactly once."""
    if list(names).count(column) != 1:
        given = "not set" if column is None else repr(column)
        raise UserError(f"prompts.column: {given}; expected one of the columns of {where}: {_listed(names)}")
    return list(names).index(column)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) or "none") + more


def _too_long(where: str, unit: str, number: int) -> UserError:
    return UserError(f"{where}, {unit} {number}: over {LONGEST_LINE:,} characters; expected one caption a {unit}")


class LineFile(Sequence[str]):
    """Lines by index, read from disk on access, of a UTF-8 file of the prompts stage: every line ends with \\n.

    `sha256`, of the file, identifies the list: hashing 10 million lines again would take long.
    """

    def __init__(self, path: Path, sha256: str):
        self.path, self.sha256 = Path(path), sha256
        self._file = open(path, "rb")  # noqa: SIM115  open as long as the sequence lives
        ends, offset = array("q"), 0
        while block := self._file.read(BLOCK):
            ends.frombytes((np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + offset).tobytes())
            offset += len(block)
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # raises IndexError, takes negative ones
        start = self._ends[index - 1] + 1 if index else 0
        return os.pread(self._file.fileno(), self._ends[index] - start, start).decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        with open(self.path, encoding="utf-8", newline="\n") as file:
            yield from (line.removesuffix("\n") for line in file)
