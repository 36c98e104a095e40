"""Explain why a file does not hold the expected network."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from ...errors import UserError, one_line

# raised by torch, transformers, open_clip and the readers under them; UnpicklingError for a rejected pickle
UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError),
    *(SafetensorError, pickle.UnpicklingError),
)


@contextmanager
def loading(what: str, remedy: str) -> Iterator[None]:
    """Turn a loading error into a UserError that begins with `what`, as in 'KEY: FILE is not a CLIP', and ends with `remedy`."""
    try:
        yield
    except UNLOADABLE as error:
        raise UserError(f"{what} ({type(error).__name__}: {one_line(error, 300)}); {remedy}") from None
