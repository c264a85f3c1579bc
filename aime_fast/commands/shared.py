"""What several verbs share. Nothing heavy is imported before a verb runs."""

import argparse
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from aime_fast.errors import PlainParser, UserError


def count(text: str) -> int:
    """An argument that is an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return int(text)


def between(least: int, most: int) -> Callable[[str], int]:
    """The type of an argument that is an integer from `least`, which is 0 or more, to `most`."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be an integer from {least} to {most}, not {text!r}")
        return int(text)

    return number


def note(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr)


def new_file(option: str, path: str, *endings: str) -> Path:
    """`path` as a file that can be written; `UserError` that names `option` if it exists or has none of `endings`."""
    file = Path(path)
    kind = " or ".join([", ".join(endings[:-1]), endings[-1]] if len(endings) > 1 else endings)
    if endings and file.suffix.lower() not in endings:
        near = get_close_matches(file.suffix.lower(), endings, n=1)
        hint = f"did you mean {file.with_suffix(near[0])}? " if near else ""
        raise UserError(f"{option} {path}: {hint}name a new {kind} file")
    if file.exists():
        raise UserError(f"{option} {path} exists; name a new {kind}{' file' if kind else 'file'}")
    if not file.resolve().parent.is_dir():
        raise UserError(f"{option} {path}: its folder does not exist; make it, or name a file in another one")
    return file


def add_run(parser: PlainParser) -> None:
    """The trained model that a verb is about."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, one checkpoint, or an exported folder")


def add_held_out(parser: PlainParser) -> None:
    """The options of verbs that try a trained model on held-out episodes."""
    add = parser.add_argument
    add("--data", metavar="PATH", help="shards or a recording [those that the run was trained on]")
    help_ = "they led to the frame of their row, or follow it [as the run read them; other data: by content]"
    add("--actions", choices=["led", "follows"], help=help_)
    add("--context", type=count, default=5, metavar="N", help="frames that the model observes [%(default)s]")
    add("--horizon", type=count, default=15, metavar="N", help="frames that it imagines after them [%(default)s]")
