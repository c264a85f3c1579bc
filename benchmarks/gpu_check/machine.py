"""What the driver must know of the machine, asked in a process of its own: importing torch may fail or hang."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from gpu_check.packages import ALL

_QUESTION = """
import importlib.util, json, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
import torch
cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps([missing, torch.__version__, torch.version.cuda, cards]))
"""
_LIMIT = 120.0
"""Seconds: torch is read from a cold disk."""


@dataclass(frozen=True)
class Machine:
    """What `look` found."""

    missing: tuple[str, ...]
    """Modules of `packages.ALL` that cannot be imported."""
    torch: str
    """Version of torch; empty without torch."""
    cuda: str | None
    """Version of CUDA that torch was built with; None for a CPU build."""
    cards: tuple[str, ...]
    """Names of the GPUs that torch can use."""
    problem: str = ""
    """Why nothing could be found out."""

    @property
    def obstacle(self) -> str:
        """Why no job can run on a GPU here; empty if one can."""
        if self.problem or self.cards:
            return self.problem
        build = f"built for CUDA {self.cuda}" if self.cuda else "a CPU build"
        return f"torch {self.torch} ({build}) finds no GPU"


def look(environment: Mapping[str, str]) -> Machine:
    """Ask this interpreter, with these variables, for torch, its GPUs and the packages that jobs need."""
    command = [sys.executable, "-c", _QUESTION, *ALL]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT)
        missing, torch, cuda, cards = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Machine((), "", None, (), f"torch did not start within {_LIMIT:.0f} s")
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Machine((), "", None, (), f"torch does not start in {sys.executable}: {lines[-1]}")
    return Machine(tuple(missing), torch, cuda, tuple(cards))
