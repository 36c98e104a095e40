"""The one exception that stands for a mistake a user can make; everything else is a defect and keeps its traceback."""


class UserError(Exception):
    """A message that names the value, what was expected and the remedy. The command line prints it and exits with 1."""
