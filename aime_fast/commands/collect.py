"""Record episodes of a dm_control task as shards."""

from typing import Any

from aime_fast.commands.shared import count
from aime_fast.errors import PlainParser


def add_arguments(parser: PlainParser) -> None:
    """The options of `collect`."""
    add = parser.add_argument
    add("--env", required=True, metavar="NAME", help="domain_task, such as cheetah_run")
    add("--out", required=True, metavar="DIR", help="folder to write; must not exist")
    add("--episodes", type=count, default=10, metavar="N", help="episodes to record [%(default)s]")
    add("--length", type=count, default=500, metavar="T", help="largest number of frames per episode [%(default)s]")
    add("--policy", default="ou", metavar="NAME", help="ou, random or your module:function [%(default)s]")
    add("--action-repeat", type=count, default=2, metavar="N", help="simulation steps per action [%(default)s]")
    add("--camera", type=int, default=0, metavar="N", help="number of the camera [%(default)s]")
    add("--size", type=count, default=64, metavar="N", help="frames of NxN pixels: 32, 64, 96, 128, ... [%(default)s]")
    add("--seed", type=int, default=0, metavar="N", help="seed of all episodes [%(default)s]")
    add("--val-episodes", type=int, metavar="N", help="hold out the last N episodes [a fifth, at least one]")
    add("--processes", type=count, metavar="N", help="processes that record in parallel [one per core]")
    add("--force", action="store_true", help="replace the folder if it exists")


def run(**options: Any) -> int:
    """Record and print the folder."""
    from aime_fast.data.collect.collect import collect

    print(f"recorded into {collect(**options)}")
    return 0
