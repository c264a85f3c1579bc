"""The process of one job: `python -m gpu_check.worker MODULE:FUNCTION OPTIONS`, options as a JSON object.

The function is called as `function(emit, **options)`, and calls `emit(row)` for everything it has measured.
"""

import ctypes
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module

from gpu_check.processes import ROWS

ENDING = "ending"
"""Key of the row in which a job says how it ended: `skipped` or `failed`, and why."""
Emit = Callable[[dict[str, object]], None]
_PARENT_DEATH_SIGNAL = 1


class Skip(Exception):
    """Why a job has nothing to measure on this machine."""


class Failure(Exception):
    """Why a job failed, where the log has all the rest: no traceback is printed."""


def main(call: str, options: str) -> int:
    """Run the job; 0 if it ended well or skipped itself, else 1."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    module, _, function = call.partition(":")
    try:
        getattr(import_module(module), function)(emit, **json.loads(options))
    except Skip as reason:
        emit({ENDING: "skipped", "why": str(reason)})
    except Failure as reason:
        emit({ENDING: "failed", "why": str(reason)})
        return 1
    except Exception as error:
        traceback.print_exc()
        emit({ENDING: "failed", "why": f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]})
        return 1
    return 0


def emit(row: dict[str, object]) -> None:
    """Hand a row to the driver."""
    line = json.dumps(_plain(row), default=str, allow_nan=False)
    view = memoryview(line.encode() + b"\n")
    while view:
        view = view[os.write(int(os.environ[ROWS]), view) :]


def _plain(value: object) -> object:
    """Floats rounded to five digits; those that are not finite as text, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value


if __name__ == "__main__":
    # Under its own name, so that a stage's `Skip` is this module's.
    from gpu_check.worker import main as run

    sys.exit(run(*sys.argv[1:]))
