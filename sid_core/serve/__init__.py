"""Serve a local page that compares an experiment's generators on prompts (`sid-core serve`).

Built on the standard library: gradio needs 14 packages and an older Pillow, whose filters are part of the protocol.
"""

from .server import serve

__all__ = ["serve"]
