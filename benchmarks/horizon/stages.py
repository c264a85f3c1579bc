"""The three stages of a run: collecting, training, evaluating. Each continues after an interruption, or is skipped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from .plan import COLLECTION_SEED, HELD_OUT, STRIDE, Budget, DataSet, Seed, Variant

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "import sys; from aime_fast.commands.main import main; sys.exit(main())"]


class StageFailed(Exception):
    """A stage ended with this exit code; its message is on standard error."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def run(*arguments: str) -> None:
    """`aime-fast ARGUMENTS` in a process of its own; `StageFailed` unless it ends with 0.

    An interruption of this process ends the other one once, which saves what it has, and is waited for.
    """
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A session of its own: a Ctrl-C in the terminal would reach it a second time.
    process = subprocess.Popen([*COMMAND, *arguments], env={**os.environ, "PYTHONPATH": paths}, start_new_session=True)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if code:
        raise StageFailed(code)


def collect(data: DataSet) -> None:
    """Record the set if it is not there; finished episodes of an interrupted recording are kept."""
    if data.ready:
        return
    assert data.path is not None
    held_out = min(HELD_OUT, max(1, data.episodes // 5))
    choices = {"env": data.name, "episodes": data.episodes, "length": data.length, "seed": COLLECTION_SEED}
    flags = [part for name, value in choices.items() for part in (f"--{name}", str(value))]
    run("collect", *flags, "--val-episodes", str(held_out), "--out", str(data.path))


def train(seed: Seed, budget: Budget, variant: Variant) -> None:
    """Train to the end of the budget, from the newest checkpoint if there is one, and let the dynamics learn anew."""
    if seed.trained.exists():
        return
    seed.folder.mkdir(parents=True, exist_ok=True)
    seed.commit.write_text(commit() + "\n")
    fixed = {
        "preset": budget.preset,
        "steps": budget.steps,
        "seed": seed.seed,
        "out": seed.run,
        "resume": "auto",
        "keep_checkpoints": 1,
        "loader.batch_size": budget.batch_size,
        "logging.tracker": "none",
        **({"data": seed.data.path} if seed.data.path else {}),
    }
    run("train", *(part for name, value in (fixed | variant.changes).items() for part in (f"--{name}", str(value))))
    seed.trained.touch()


def evaluate(seed: Seed, budget: Budget) -> None:
    """Judge the run as a user gets it, with all that the data allow."""
    if seed.result.exists():
        return
    flags = [str(seed.run), "--json", str(seed.result)]
    if seed.data.path:
        flags += ["--data", str(seed.data.path)]
    flags += ["--stride", str(STRIDE)] if seed.data.collected else []
    flags += ["--simulator"] if seed.data.simulated else []
    run("evaluate", *flags, *(["--parts"] if budget.parts else []))


def commit() -> str:
    """The commit of this checkout, with `+` if files differ from it; `unknown` outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.stdout) if head.returncode == 0 else "unknown"


def read(seed: Seed) -> dict | None:
    """The result of a finished run; None if it is not finished."""
    return json.loads(seed.result.read_text()) if seed.result.exists() else None
