"""Import libraries such as open_clip without what they load and no stage uses.

They mark functions for torch's compiler when they are imported, and load distributed tensors, scipy and torchvision for
models that are not used here: more than half of the seconds that an import takes, in every process of a pipeline of many.
Read in diffusers 0.42, transformers 5.23, torchvision 0.29 and torch 2.14; tests/models/test_lean.py notices a change.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

COMPILER = (
    *("torch._dynamo", "torch._dynamo.utils", "torch._dynamo._trace_wrapped_higher_order_op"),
    "torch.nn.attention.flex_attention",  # loads the compiler's symbolic shapes, and those sympy
)


class _NoCompiler(ModuleType):
    """A stand-in for torch's compiler: its decorators return a function as it is, its classes are empty."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else _undecorated


def _undecorated(function: Callable | None = None, *args: object, **options: object) -> Callable:
    return _undecorated if function is None else function


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Import as if the modules `names` were not installed, and torch had neither its compiler nor distributed tensors.

    Modules that are loaded already stay: a process that compiles imports torch._dynamo first.
    """
    stand_ins = {} if COMPILER[0] in sys.modules else {name: _NoCompiler(name) for name in COMPILER}
    absent = {name: module for name, module in (dict.fromkeys(names) | stand_ins).items() if name not in sys.modules}
    available = torch.distributed.is_available
    sys.modules.update(absent)
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = available
        for name in absent:
            del sys.modules[name]
