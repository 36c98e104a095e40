"""Explain files that hold no network, or another one."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from ...errors import UserError

# what torch, transformers, open_clip and the readers under them raise; a refused pickle is one
UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError),
    *(SafetensorError, pickle.UnpicklingError),
)


@contextmanager
def loading(what: str, remedy: str) -> Iterator[None]:
    """Turn an error of loading into a UserError that begins with `what`, e.g. 'KEY: FILE is not a CLIP', and ends with `remedy`."""
    try:
        yield
    except UNLOADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{what} ({type(error).__name__}: {reason}); {remedy}") from None
