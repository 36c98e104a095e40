"""`sid-core status`: what is done, running, failed, and how long still."""

from .text import show

__all__ = ["show"]
