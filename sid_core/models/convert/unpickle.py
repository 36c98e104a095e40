"""Read pickles of networks as data: nothing is imported, called or constructed on a file's behalf.

A pickle is a program for a stack machine. The standard library's machine runs it here with the instructions that data needs: names
become `Symbol`s, objects become `PickledObject`s, a few functions are replaced, and tensors are views of the file's bytes. All else
is rejected by name. The machine is `pickle._Unpickler` (read in Python 3.11 to 3.13): the public one, in C, hashes keys of any
nesting and sets items of any object. Storages have torch's format before 1.6 (`_legacy_save`).
"""

import io
import pickle
import pickletools
import re
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import BinaryIO

import torch
from torch import Tensor

from ...errors import UserError, one_line

MOST_INSTRUCTIONS = 5_000_000  # reads, arguments and attributes; a UNet of Stable Diffusion has 0.2 million
MOST_NUMEL = 2**40
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch's old format
DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "DoubleStorage": torch.float64,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
}  # fmt: skip
INERT = re.compile(  # classes and values that represent data; they are never imported
    rf"""(torch\.nn\.(modules|parameter)|diffusers\.(models|configuration_utils))(\.\w+)*:(?!__)[^\W\d]\w*
    |torch:({"|".join(DTYPES)}|Size|device|b?float16|float32|float64|uint8|int32|int64|bool)
    |pathlib(\._local)?:(PurePath|PurePosixPath|PureWindowsPath|Path|PosixPath|WindowsPath)
    |datetime:(date|time|datetime|timedelta|timezone)|builtins:(complex|range|slice)
    |decimal:Decimal|fractions:Fraction|uuid:UUID|types:SimpleNamespace""",
    re.VERBOSE,
)
LOOKUPS = ("INST", "OBJ", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4")  # instructions that import objects


class UnexpectedContent(Exception):
    """Content that no network needs, or that is malformed."""


@dataclass(frozen=True)
class Symbol:
    """The name of a class or function in a pickle."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class PickledObject:
    """An object of a class: its constructor's arguments, its attributes (`state`), and its entries if it is a mapping."""

    symbol: Symbol
    arguments: tuple = ()
    state: dict = field(default_factory=dict)
    items: dict = field(default_factory=dict)


def read_pickle(path: Path) -> object:
    """Return the data of a pickle file: builtin containers, scalars, tensors and `PickledObject`s.

    Raises:
        UserError: it names anything but networks and tensors, is damaged, or is no pickle; nothing was executed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise UserError(f"{path}: a zip archive (of torch.save?); expected a pickle of a network")
        file.seek(0)
        try:
            return _Machine(file, path.stat().st_size).load()
        except UnexpectedContent as error:
            reason = str(error)
        except Exception as error:  # any kind: the standard machine trusts its input
            reason = f"no valid pickle ({type(error).__name__}: {one_line(error, 100)})"
    raise UserError(f"{path}: rejected: {reason}; a published generator has no such content, and nothing was executed")


def _expect(value: object, kind: type) -> object:
    """Return `value`, of exactly this type: a network needs no subclasses of containers."""
    if type(value) is not kind:
        raise UnexpectedContent(f"{type(value).__name__} where a {kind.__name__} belongs")
    return value


def _scalars(items: list) -> list:
    """Check keys and members of sets: hashing nested ones may take forever."""
    for item in items:
        if not isinstance(item, str | int | float | bytes | None):
            raise UnexpectedContent(f"{type(item).__name__} as a key")
    return items


def _pairs(items: list) -> dict:
    return dict(zip(_scalars(items[::2]), items[1::2], strict=True))


class _Machine(pickle._Unpickler):
    """A machine for the pickles of a file; `outer` runs the pickle that contains this one as a storage."""

    def __init__(self, file: BinaryIO, size: int, outer: "_Machine | None" = None):
        self.file, self.size, self.outer = file, size, outer
        self.spent = outer.spent if outer else [0]
        super().__init__(self)  # reads by the two methods below

    def read(self, n: int) -> bytes:
        """Read n bytes, checking their presence first: memory is allocated for as many as a pickle announces."""
        self.spend(1)
        if not 0 <= n <= self.size - self.file.tell():
            raise UnexpectedContent(f"it ends before the {n} bytes that it announces")
        return self.file.read(n)

    def readline(self) -> bytes:
        return self.file.readline(10_000)

    def spend(self, count: int) -> None:
        self.spent[0] += count
        if self.spent[0] > MOST_INSTRUCTIONS:
            raise UnexpectedContent(f"more than {MOST_INSTRUCTIONS:,} instructions")

    def find_class(self, module: str, name: str) -> object:
        if not (found := FUNCTIONS.get(f"{module}:{name}")) and not INERT.fullmatch(f"{module}:{name}"):
            raise UnexpectedContent(f"the name {module[:100]}.{name[:100]}")
        return found or Symbol(module, name)

    def describe(self) -> None:
        """Replace a storage ('storage', type, key, device, numel, view) by its dtype, key and numel."""
        if not self.outer:
            raise UnexpectedContent("the instruction BINPERSID")
        match self.stack.pop():
            case ("storage", Symbol("torch", name), str(key), str(), int(numel), None) if name in DTYPES:
                return self.push((DTYPES[name], key, numel))
        raise UnexpectedContent("a storage that is described otherwise")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def fill(self, items: list) -> None:
        """Put items, or keys and values, into the container below them."""
        target = self.stack[-1]
        if type(target) is set:
            target.update(_scalars(items))
        else:
            _expect(target.items if isinstance(target, PickledObject) else target, dict).update(_pairs(items))

    def call(self) -> None:
        """Push the replacement of a function's result or of an object."""
        arguments, function = _expect(self.stack.pop(), tuple), self.stack.pop()
        if not isinstance(function, Symbol | FunctionType):
            raise UnexpectedContent(f"a call of {type(function).__name__}")
        self.spend(sum(len(argument) for argument in arguments if isinstance(argument, list | tuple)))
        self.push(PickledObject(function, arguments) if isinstance(function, Symbol) else function(self, *arguments))

    def build(self) -> None:
        """Set attributes of an object; with slots, `state` is a pair."""
        state, target = self.stack.pop(), self.stack[-1]
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if part is not None and type(target) is not dict:  # the dict that replaces an OrderedDict has no attributes
                self.spend(len(_expect(part, dict)))
                _expect(target, PickledObject).state.update(part)

    def storage(self, data: bytes) -> Tensor:
        """Return the values (N,) of a storage in torch.save's old format, without copying them."""
        inner = _Machine(io.BytesIO(_expect(data, bytes)), len(data), self)
        magic, version, system, (dtype, key, count), keys = (inner.load() for _ in range(5))
        if (magic, version, keys) != (MAGIC, VERSION, [key]) or system.get("little_endian") is not True:
            raise UnexpectedContent("a storage of an unknown format")
        numel, start = int.from_bytes(inner.file.read(8), "little"), inner.file.tell()
        if numel != count or len(data) - start != numel * dtype.itemsize:
            raise UnexpectedContent(f"a storage of {numel} values in {len(data) - start} bytes")
        with warnings.catch_warnings(action="ignore"):  # read-only memory; nothing writes to it
            values = torch.frombuffer(data, dtype=dtype, count=numel, offset=start) if numel else torch.empty(0)
        return values.to(dtype)

    def tensor(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
        """View a storage (1-D) with this size and stride."""
        for numbers in ((offset,), size, stride):
            if not isinstance(numbers, tuple) or any(type(n) is not int or not 0 <= n < MOST_NUMEL for n in numbers):
                raise UnexpectedContent("a tensor whose place or size is no number")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(_expect(storage, Tensor)) and 0 not in size:
            raise UnexpectedContent(f"a tensor of size {list(size)} in {len(storage)} values")
        return storage.as_strided(size, stride, offset)

    def reject(self, instruction: pickletools.OpcodeInfo) -> None:
        argument = instruction.arg.reader(self) if instruction.arg else None
        named = f" {argument[:150]}" if isinstance(argument, str) else ""
        raise UnexpectedContent(f"the instruction {instruction.name}{named}")


_Machine.dispatch = {
    **{ord(op.code): partial(_Machine.reject, instruction=op) for op in pickletools.opcodes},
    **{
        ord(op.code): pickle._Unpickler.dispatch[ord(op.code)]
        for op in pickletools.opcodes
        if op.proto < 5 and op.name not in LOOKUPS
    },
    pickle.FRAME[0]: lambda machine: machine.read(8),  # a hint for buffering
    pickle.DICT[0]: lambda machine: machine.push(_pairs(machine.pop_mark())),
    pickle.FROZENSET[0]: lambda machine: machine.push(frozenset(_scalars(machine.pop_mark()))),
    pickle.SETITEM[0]: lambda machine: machine.fill([machine.stack.pop(-2), machine.stack.pop()]),
    pickle.SETITEMS[0]: lambda machine: machine.fill(machine.pop_mark()),
    pickle.ADDITEMS[0]: lambda machine: machine.fill(machine.pop_mark()),
    pickle.REDUCE[0]: _Machine.call,
    pickle.NEWOBJ[0]: _Machine.call,
    pickle.NEWOBJ_EX[0]: lambda machine: (machine.stack.pop(), machine.call()),  # keywords are ignored
    pickle.BINPERSID[0]: _Machine.describe,
    pickle.BUILD[0]: _Machine.build,
}
FUNCTIONS = {
    "collections:OrderedDict": lambda _: {},
    "collections:deque": lambda _, items=(), *__: list(items and _expect(items, list)),  # without its bound
    "builtins:set": lambda _, items: set(_scalars(_expect(items, list))),
    "builtins:frozenset": lambda _, items: set(_scalars(_expect(items, list))),
    "torch._utils:_rebuild_tensor_v2": _Machine.tensor,
    "torch._utils:_rebuild_parameter": lambda _, data, *__: _expect(data, Tensor),
    "torch._utils:_rebuild_parameter_with_state": lambda _, data, *__: _expect(data, Tensor),
    "torch.storage:_load_from_bytes": _Machine.storage,
}
