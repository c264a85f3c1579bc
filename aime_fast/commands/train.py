"""`aime-fast train`: the same as `python aime_fast/train.py`."""

from aime_fast.errors import PlainParser
from aime_fast.train import main as run

__all__ = ["HELP", "add_arguments", "run"]
HELP = "train a model; `aime-fast train --help` lists its options"


def add_arguments(parser: PlainParser) -> None:
    """Nothing: `parse_train_args` reads the options."""
