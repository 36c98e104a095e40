"""Define the exception for a user's errors, and remove passwords from messages."""

import logging
import re
import sys

HIDDEN = "***"
# user and password before the @; or what a password with an unescaped / ? or # makes of them, unless it is a port
_AUTHORITY = re.compile(r"(?<=://)(?:[^\s/?#]+|[^\s/?#:'\"]+:(?!\d+(?:[/?#]|$))\S+)@")
_SECRET = r"[^\s=&;#]*(?:token|secret|passw|pwd|signature|credential|api[_-]?key|accesskey)[^\s=&;#]*|sig|key"
_QUERY = re.compile(rf"(?<=[?&;])({_SECRET})=[^\s&;#'\")]+?(?=[:,.]?(?:[\s&;#'\")]|$))", re.IGNORECASE)


def redact(text: str) -> str:
    """Return a text with *** for user and password, token or signature of the URLs in it."""
    return _QUERY.sub(rf"\1={HIDDEN}", _AUTHORITY.sub(f"{HIDDEN}@", text))


class UserError(Exception):
    """A message that names the value, what was expected and the remedy. The command line prints it and exits with 1.

    Everything else is a defect and keeps its traceback.
    """

    def __init__(self, message: str = ""):
        super().__init__(redact(message))


def one_line(error: Exception, most: int = 200) -> str:
    """Return the message of a library's error without line breaks, or its class where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def log_to_stderr() -> None:
    """Log this process's messages to stderr: also those of libraries, some of which name whole URLs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
