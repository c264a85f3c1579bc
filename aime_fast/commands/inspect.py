"""Describe a data set."""

from aime_fast.commands.shared import new_file
from aime_fast.errors import PlainParser


def add_arguments(parser: PlainParser) -> None:
    """The options of `inspect`."""
    parser.add_argument("path", nargs="?", metavar="DIR", help="shards or a recording [the shipped sample]")
    add = parser.add_argument
    add("--actions", choices=["led", "follows"], help="they led to the frame of their row, or follow it [by content]")
    add("--deep", action="store_true", help="read everything and verify every checksum")
    add("--sheet", dest="contact_sheet", metavar="FILE", help="write a PNG with frames of the episodes")


def run(path: str | None, actions: str | None, deep: bool, contact_sheet: str | None) -> int:
    """Print the description."""
    if contact_sheet:
        new_file("--sheet", contact_sheet, ".png")
    from aime_fast.data.packing.inspection import inspect

    print(inspect(path, actions=actions, deep=deep, contact_sheet=contact_sheet))
    return 0
