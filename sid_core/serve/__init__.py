"""`sid-core serve`: prompts tried on an experiment's generators side by side, on a page of this machine.

The standard library's server and 200 lines of page: gradio would bring 14 packages and hold back Pillow, whose filters are part
of the protocol.
"""

from .server import serve

__all__ = ["serve"]
