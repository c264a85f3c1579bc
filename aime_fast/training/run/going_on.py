"""The command that goes on with a run, in the form in which this process was started."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

SCRIPT = os.path.join("aime_fast", "train.py")
PROGRAMS = ("deepspeed", "torchrun")
MODULES = ("aime_fast.launch", "deepspeed.launcher.runner", "torch.distributed.run")
"""What starts the processes of a run on one machine: a program, or a module after `python -m`."""


def command_to_go_on(run: Path) -> str:
    """`aime-fast train --resume runs/a`, or a launcher's command; the run's other settings are in its folder.

    Call it while the launcher still runs.
    """
    start = _launched() if "WORLD_SIZE" in os.environ else plain_command(sys.argv[0])
    return f"{start} --resume {shlex.quote(str(run))}"


def plain_command(program: str) -> str:
    """How training is called by the program of this name without a launcher."""
    if program.endswith(SCRIPT):
        return f"python {shlex.quote(program)}"
    return "python -m aime_fast train" if os.path.basename(program) == "__main__.py" else "aime-fast train"


def launcher_command(words: Sequence[str]) -> str | None:
    """The part of a command line from the launcher to the training script; None if it is no such command."""
    stop = next((place for place, word in enumerate(words) if word.endswith(SCRIPT)), None)
    for place, word in enumerate(words[:3]):
        name = os.path.basename(word)
        if stop is not None and (name in PROGRAMS or word in MODULES):
            on_path = shutil.which(name)
            own = [name if on_path and os.path.realpath(on_path) == os.path.realpath(word) else word]
            return shlex.join([*(["python", "-m", word] if word in MODULES else own), *words[place + 1 : stop + 1]])
    return None


def _launched() -> str:
    """The command of the launcher among the ancestors of this process."""
    for ancestor in psutil.Process().parents():
        try:
            found = launcher_command(ancestor.cmdline())
        except psutil.Error:
            continue
        if found:
            return found
    return "the launcher and script as before, with"
