"""`python -m aime_fast VERB ...`: the command `aime-fast`, also from a checkout that is not installed."""

import sys

from aime_fast.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
