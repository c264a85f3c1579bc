"""Turn a recording into shards."""

import os
from typing import Any

from aime_fast.commands.shared import count, note
from aime_fast.errors import PlainParser


def add_arguments(parser: PlainParser) -> None:
    """The options of `pack`."""
    add = parser.add_argument
    add("source", help="recording: a file, a folder of files, or a folder of shards to pack again")
    add("--out", required=True, metavar="DIR", help="folder to write; must not exist")
    add("--codec", choices=["raw", "png", "jpg"], default="raw", help="storage of frames; jpg is lossy [%(default)s]")
    add("--format", metavar="NAME", help="layout of the source [detected from its content]")
    add("--camera", metavar="NAME", help="camera to use if a recording has several")
    add("--last-of-stack", action="store_true", help="take the last picture where each row is a stack of several")
    add("--video-tolerance", type=float, default=1e-4, metavar="S", help="seconds from row to frame [%(default)s]")
    add("--actions", choices=["led", "follows"], help="they led to the frame of their row, or follow it [by content]")
    add("--size", type=count, metavar="N", help="resize frames to NxN: 32, 64, 96, 128, ... [64, or that of shards]")
    add("--workers", type=count, metavar="N", help="processes that write [one per core]")
    add("--val-episodes", type=int, metavar="N", help="episodes to hold out [a fifth, at least one]")
    add("--seed", type=int, metavar="N", help="draw the held-out episodes with this seed [hold out the last ones]")
    add("--environment", metavar="NAME", help="name of the task, written to the manifest")
    add("--force", action="store_true", help="replace the folder if it exists")


def run(workers: int | None, **options: Any) -> int:
    """Pack and print the folder; progress goes to standard error."""
    from aime_fast.data.packing.pack import pack

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"packed into {pack(**options, workers=workers or cores or 1, report=note)}")
    return 0
