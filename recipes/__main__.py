"""Run `python -m recipes --out DIR [--smallest] [--only STEP ...]`."""

import argparse
import sys
from pathlib import Path

import torch

from sid_core.errors import UserError
from sid_core.models.devices import disable_tf32

from .build import RECIPE_STEPS, make_assets
from .settings import SMALLEST, RecipeSettings


def main() -> int:
    """Make the assets; return 1 on invalid arguments."""
    parser = argparse.ArgumentParser(prog="python -m recipes", description="Train the shipped networks.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; unfinished results are in OUT.work")
    parser.add_argument("--smallest", action="store_true", help="train for a minute: loadable, not good")
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"some of: {', '.join(RECIPE_STEPS)}")
    parser.add_argument("--threads", type=int, default=1, help="of torch; two gain little at these sizes (default: 1)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    disable_tf32()
    try:
        make_assets(given.out, SMALLEST if given.smallest else RecipeSettings(), set(given.only or ()))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
