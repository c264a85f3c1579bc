"""`python -m aime_fast VERB ...`: the command `aime-fast`, also from a checkout that is not installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

from aime_fast.commands.main import main

if __name__ == "__main__":
    if find_spec("aime_kernels") is None:
        sys.path.append(str(Path(__file__).resolve().parents[1] / "kernels"))
    sys.exit(main())
