"""DeepSpeed's launcher, called with its own arguments, that leaves Ctrl-C to the processes it starts.

    python -m aime_fast.launch --num_gpus 2 aime_fast/train.py --ds_config zero2

The terminal sends Ctrl-C to all of them. Each rank saves the run; meanwhile the command `deepspeed` would end with a
traceback of its own.
"""

import signal
import sys

INTERRUPTED: list[int] = []
"""The signals that have arrived."""


def main() -> int:
    """Run the launcher with the command line's arguments; returns its exit code, or 130 after Ctrl-C."""
    from deepspeed.launcher.runner import main as launch

    # A function, because children inherit a signal that is ignored but not one that is handled.
    signal.signal(signal.SIGINT, lambda number, frame: INTERRUPTED.append(number))
    try:
        launch()
    except SystemExit as end:
        return 130 if INTERRUPTED else int(end.code or 0)
    return 130 if INTERRUPTED else 0


if __name__ == "__main__":
    sys.exit(main())
