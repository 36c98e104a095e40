"""Pickles of networks as data: nothing is imported, called or constructed on a file's behalf.

A pickle is a program for a small stack machine, and the usual machine runs whatever functions it names. This one knows the
instructions that data needs, and of the functions a handful by name, each replaced by code of ours (tensors are views of the
file's bytes). Every object is a `Thing`: the name of its class and what was stored in it. All else is refused by name.
The instructions themselves are read by the standard library's pickletools. Formats: docs of pickletools; storages inside of
pickles are torch's format before 1.6 (torch/serialization.py, _legacy_save).
"""

import io
import pickletools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ...errors import UserError

MOST_INSTRUCTIONS = 5_000_000  # a UNet of Stable Diffusion takes 0.1 million
MOST_NUMEL = 2**40
# classes and functions that stand for data; none of them is ever looked up
INERT = re.compile(
    r"(torch\.nn\.modules|torch\.nn\.parameter|diffusers\.models|diffusers\.configuration_utils)(\.\w+)*"
)
# plain values of the standard library, by module and class; they stay names with their arguments
VALUES = {
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        ("PurePath", "PurePosixPath", "PureWindowsPath", "Path", "PosixPath", "WindowsPath"),
    ),
    "datetime": ("date", "time", "datetime", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID",),
    "types": ("SimpleNamespace",),
    "builtins": ("complex", "range", "slice"),
}
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch's old format


class Refused(Exception):
    """What a pickle contains that no network needs, or that makes no sense."""


class Symbol:
    """A class or function that a pickle names. It is a name and nothing else."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Thing:
    """An object of a class: what it was made from (`arguments`), stored in it as attributes (`state`) and as a mapping (`items`)."""

    def __init__(self, symbol: Symbol, arguments: tuple = ()):
        self.symbol, self.arguments = symbol, arguments
        self.state: dict = {}
        self.items: dict = {}


def read_pickle(path: Path) -> object:
    """The data of a pickle file: builtin containers, scalars, tensors and Things.

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
            return _Machine().run(_Bounded(file, path.stat().st_size))
        except Refused as refused:
            raise UserError(
                f"{path}: refused: {refused}; a published generator holds nothing of the kind, and nothing was executed"
            ) from None


class _Bounded:
    """A file that reads no more than is there: lengths in a pickle are claims, and memory is taken for them at once."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size

    def read(self, n: int) -> bytes:
        if not 0 <= n <= self._size - self._file.tell():
            raise Refused(f"it ends before the {n} bytes that it announces")
        return self._file.read(n)

    def readline(self) -> bytes:
        return self._file.readline(10_000)

    def tell(self) -> int:
        return self._file.tell()


class _Machine:
    """Runs one pickle. `persistent` maps a persistent id to what it stands for, where there may be any."""

    def __init__(self, persistent: Callable[[object], object] | None = None):
        self._persistent = persistent
        self._stack: list = []
        self._marks: list[list] = []
        self._memo: dict[int, object] = {}

    def run(self, file: _Bounded) -> object:
        """The object a pickle describes; `file` is left behind its end."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count > MOST_INSTRUCTIONS:
                    raise Refused(f"more than {MOST_INSTRUCTIONS:,} instructions")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError, MemoryError) as error:
            raise Refused(f"no valid pickle ({type(error).__name__}: {str(error)[:100]})") from None
        raise Refused("no valid pickle (it has no end)")

    def _step(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in CONSTANTS:
            stack.append(argument if CONSTANTS[name] is None else CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif name in COLLECT:
            items = self._pop_mark()
            self._stack.append(COLLECT[name](items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(items[::-1]))
        elif name in ("POP", "DUP"):
            stack.append(stack[-1]) if name == "DUP" else stack.pop()
        elif name == "POP_MARK":
            self._pop_mark()
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"):
            self._fill(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument.split(" ", 1) if name == "GLOBAL" else (stack.pop(-2), stack.pop())
            stack.append(_symbol(module, attribute))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            keywords = stack.pop() if name == "NEWOBJ_EX" else {}
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments, keywords, new=name != "REDUCE"))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif name == "BINPERSID" and self._persistent:
            stack.append(self._persistent(stack.pop()))
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"the instruction {name} {argument if isinstance(argument, str) else ''}"[:200].rstrip())

    def _pop_mark(self) -> list:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _fill(self, name: str) -> None:
        """APPEND(S), SETITEM(S), ADDITEMS: into the container below the items."""
        if name.endswith("S"):
            items = self._pop_mark()
        else:
            items = [self._stack.pop() for _ in range(2 if name == "SETITEM" else 1)][::-1]
        target = self._stack[-1]
        if name.startswith("APPEND"):
            _expect(target, list).extend(items)
        elif name == "ADDITEMS":
            _expect(target, set).update(_scalars(items))
        else:
            _expect(target.items if isinstance(target, Thing) else target, dict).update(_pairs(items))


def _expect(value: object, kind: type) -> object:
    """`value`, of exactly this type: a network needs no fancier containers."""
    if type(value) is not kind:
        raise Refused(f"{type(value).__name__} where a {kind.__name__} belongs")
    return value


def _scalars(items: list) -> list:
    """Keys and members of sets; hashing what is nested may take for ever."""
    for item in items:
        if not isinstance(item, str | int | float | bytes | None):
            raise Refused(f"{type(item).__name__} as a key")
    return items


def _pairs(items: list) -> dict:
    if len(items) % 2:
        raise Refused("a key without a value")
    return dict(zip(_scalars(items[::2]), items[1::2], strict=True))


NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
CONSTANTS = {  # instructions that push their argument (None), or something new
    **dict.fromkeys((*NUMBERS, *TEXTS, "SHORT_BINBYTES", "BINBYTES", "BINBYTES8")),
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
COLLECT = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": _pairs,
    "FROZENSET": lambda items: frozenset(_scalars(items)),
}


# --- names -------------------------------------------------------------------------------------------------------------


def _symbol(module: object, name: object) -> Symbol:
    """A name from the list of what networks are made of; anything else is refused."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Refused("a name that is no text")
    inert = INERT.fullmatch(module) and name.isidentifier() and not name.startswith("__")
    inert = inert or name in VALUES.get(module, ())
    if not (inert or (module, name) in FUNCTIONS or (module == "torch" and name in DTYPES | TORCH_NAMES)):
        raise Refused(f"the name {module[:100]}.{name[:100]}")
    return Symbol(module, name)


def _call(function: object, arguments: object, keywords: object, new: bool) -> object:
    """What takes the place of calling a function, or of making an object of a class."""
    if not isinstance(function, Symbol):
        raise Refused(f"a call of {type(function).__name__}")
    _expect(arguments, tuple)
    _expect(keywords, dict)
    replacement = FUNCTIONS.get((function.module, function.name))
    if replacement and not new:
        return replacement(*arguments, **{_expect(key, str): value for key, value in keywords.items()})
    return Thing(function, arguments)


def _build(target: object, state: object) -> None:
    """Attributes of an object; with slots, state is a pair."""
    for part in state if isinstance(state, tuple) else (state,):
        if part is not None:
            attributes = _expect(part, dict)
            _scalars(list(attributes))
            if type(target) is dict:  # attributes of an OrderedDict, which a dict of ours has none of
                continue
            _expect(target, Thing).state.update(attributes)


def _ordered(pairs: object = ()) -> dict:
    items = [_expect(list(pair), list) for pair in pairs]
    return _pairs([value for pair in items for value in pair])


def _list(items: object = (), most: object = None) -> list:
    """A deque, without its bound."""
    return list(items if isinstance(items, tuple) else _expect(items, list))


def _set(items: object = ()) -> set:
    return set(_scalars(_list(items)))


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor:
    """A view of a storage (1-D) of the size and stride given."""
    for numbers in ((offset,), size, stride):
        if not isinstance(numbers, tuple) or any(type(n) is not int or not 0 <= n < MOST_NUMEL for n in numbers):
            raise Refused("a tensor whose place or size is no number")
    _expect(storage, Tensor)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise Refused(f"a tensor of size {list(size)} in {len(storage)} values")
    return storage.as_strided(size, stride, offset)


def _parameter(data: object, *_: object) -> Tensor:
    return _expect(data, Tensor)


def _storage(data: object) -> Tensor:
    """The values (N,) of a storage that torch.save wrote to bytes in its old format. They stay where they are."""
    file = io.BytesIO(_expect(data, bytes))
    bounded = _Bounded(file, len(data))
    magic, version, system = (_Machine().run(bounded) for _ in range(3))
    if (magic, version) != (MAGIC, VERSION) or _expect(system, dict).get("little_endian") is not True:
        raise Refused("a storage of an unknown format")
    dtype, key, count = _Machine(_storage_id).run(bounded)
    if _Machine().run(bounded) != [key]:
        raise Refused("a storage of several parts")
    numel = int.from_bytes(bounded.read(8), "little")
    start, width = file.tell(), dtype.itemsize
    if numel != count or len(data) - start != numel * width:
        raise Refused(f"a storage of {numel} values in {len(data) - start} bytes")
    if not numel:
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bytes that must not be written to; nobody does
        return torch.frombuffer(data, dtype=dtype, count=numel, offset=start)


def _storage_id(value: object) -> tuple[torch.dtype, str, int]:
    """('storage', type, key, device, numel, view) to dtype, key and numel."""
    match value:
        case ("storage", Symbol(module="torch", name=name), str(key), str(), int(numel), None) if name in DTYPES:
            return DTYPES[name], key, numel
    raise Refused("a storage that is described otherwise")


FUNCTIONS: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "deque"): _list,
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _set,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}
TORCH_NAMES = {
    "Size": None,
    "device": None,
    **dict.fromkeys(("float16", "float32", "float64", "bfloat16", "int32", "int64", "uint8", "bool")),
}
