"""`python -m sid_core.recipes --out DIR [--smallest] [--only PART ...]`."""

import argparse
import sys
from pathlib import Path

from ..errors import UserError
from .build import PARTS, make_assets
from .settings import SMALLEST, RecipeSettings


def main(arguments: list[str] | None = None) -> int:
    """Make the assets; 1 on a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m sid_core.recipes", description="Train the shipped networks.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; parts under way lie in OUT.work")
    parser.add_argument("--smallest", action="store_true", help="a minute's worth of training: loadable, not good")
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"just these: {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=1, help="of torch; two help little at these sizes (default: 1)")
    given = parser.parse_args(arguments)
    import torch

    from ..models.devices import disable_tf32

    torch.set_num_threads(given.threads)
    disable_tf32()
    try:
        make_assets(
            given.out, SMALLEST if given.smallest else RecipeSettings(), set(given.only) if given.only else None
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
