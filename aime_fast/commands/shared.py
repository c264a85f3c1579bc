"""What several verbs share. Nothing heavy is imported before a verb runs."""

import argparse
import sys
from typing import TYPE_CHECKING

from aime_fast.errors import PlainParser, UserError

if TYPE_CHECKING:
    from aime_fast.config import LoaderConfig
    from aime_fast.data.backends import Backend
    from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel


def count(text: str) -> int:
    """An argument that is an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return int(text)


def note(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr)


def add_run_arguments(parser: PlainParser) -> None:
    """The options of verbs that try a trained model on held-out episodes."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="folder of a run or one checkpoint")
    add("--data", metavar="PATH", help="shards or a recording [the shipped sample]")
    add("--context", type=count, default=5, metavar="N", help="frames that the model observes [%(default)s]")
    add("--horizon", type=count, default=15, metavar="N", help="frames that it imagines after them [%(default)s]")


def open_run(checkpoint: str, data: str | None, loader: "LoaderConfig") -> tuple["WorldModel", "Backend"]:
    """A run's model and a backend of held-out episodes. `UserError` if the sizes of their actions or frames differ."""
    from aime_fast.data.backends import open_backend
    from aime_fast.training.checkpoint.loading import load_model

    model = load_model(checkpoint, note)
    backend = open_backend("auto", data, loader, "val", 0)
    check_sizes(model, backend.action_dim, backend.image_size)
    return model, backend


def check_sizes(model: "WorldModel", action_dim: int, image_size: int) -> None:
    """Raise `UserError` unless the data's actions and frames have the model's sizes."""
    if action_dim != model.config.action_dim:
        raise UserError(
            f"the data's actions have {action_dim} numbers and the model's {model.config.action_dim}; "
            "name the data it was trained on with --data"
        )
    size = model.config.image_size
    if image_size != size:
        raise UserError(f"the data's frames are not {size}x{size} as the model's; use `aime-fast pack --size {size}`")
