"""`python -m sid_core STAGE …`: the command line, whether or not the console script is on the path."""

import sys

from .cli import main

sys.exit(main())
