"""The command: options, what must be known before a job runs, the jobs, the table."""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from gpu_check import ROOT
from gpu_check.check import Check, Interrupted, interrupt, listen
from gpu_check.machine import Machine, look
from gpu_check.packages import ALL
from gpu_check.plan import STAGES, Job, plan
from gpu_check.processes import adopt_orphans
from gpu_check.records import Records, Row
from gpu_check.report import report
from gpu_check.surroundings import PACKAGES, Mistake, surroundings

RESERVE = 3.0
"""Seconds of the budget that are kept for ending the last process and for the table."""


def main(argv: Sequence[str]) -> int:
    """Run the check; 0, 1 if a job failed, 2 for a mistake of the user, 128 + n after signal n."""
    started = time.monotonic()
    listen(interrupt)
    try:
        options = _parser().parse_args(argv)
        if options.table:
            return _table(options.table)
        return _check(options, started + options.budget - RESERVE)
    except Mistake as mistake:
        print("error:", mistake, file=sys.stderr)
        return 2
    except Interrupted as signalled:
        return 128 + signalled.number


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End in one line, as for every other mistake."""
        raise Mistake(message)


def _parser() -> argparse.ArgumentParser:
    stages = "\n".join(f"  {name:<10} {what}" for name, what in STAGES.items())
    parser = _Parser(
        prog="gpu-check",
        description="Checks and measures this project on a machine with a GPU (docs/gpu-check.md).",
        epilog=f"stages:\n{stages}\n\n{PACKAGES} names a folder of wheels or of installed packages.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=_seconds, default=480.0, help="seconds for everything (default 480)")
    parser.add_argument("--only", default="", metavar="STAGES", help="stages to run, separated by commas")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        help="file of results, or a folder for a dated one; what ended well in a file that exists is not run again",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the check itself")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a file of results, run nothing")
    return parser


def _seconds(text: str) -> float:
    """An argument that is a finite number of at least 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return seconds


def _table(path: Path) -> int:
    if not path.is_file():
        raise Mistake(f"{path}: no such file; name a file of results of gpu-check")
    rows = Records(path).rows()
    if not any("stage" in row for row in rows):
        raise Mistake(f"{path}: has no results; name a file of results of gpu-check")
    print(report(rows))
    return 0


def _check(options: argparse.Namespace, deadline: float) -> int:
    jobs = chosen(plan(options.device), options.only)
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        environment, bad_wheels = surroundings(Path(folder), options.device)
        machine = look(environment)
        if machine.problem or (options.device == "cuda" and machine.obstacle):
            hint = "" if machine.problem else "; --device cpu tries the check itself, on small sizes"
            raise Mistake(machine.obstacle + hint)
        records = _open(options.out)
        log = records.path.with_suffix(".log")
        records.append(opening(options, machine, bad_wheels))
        print(f"gpu-check: results in {records.path}, output of the stages in {log}")
        for line in missing(machine, bad_wheels):
            print(line, flush=True)
        adopt_orphans()
        code = Check(records, log, environment, machine.missing, options.device).run(jobs, deadline)
        print("\n" + report(records.rows()), flush=True)
    return code


def chosen(jobs: Sequence[Job], only: str) -> list[Job]:
    """The jobs of the stages in `only`, separated by commas; all if it is empty. `Mistake` for an unknown stage."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            near = get_close_matches(name, STAGES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise Mistake(f"unknown stage {name!r}{hint} choose from {', '.join(STAGES)}")
    return [job for job in jobs if not names or {job.stage, *job.also} & set(names)]


def opening(options: argparse.Namespace, machine: Machine, bad_wheels: list[str]) -> Row:
    """The row of a file of results that says what was run on what."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""  # a bare tree
    return {
        "stage": "run",
        "job": "",
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "device": options.device,
        "budget": options.budget,
        "cards": list(machine.cards),
        "torch": machine.torch,
        "python": sys.version.split()[0],
        "missing": [ALL[name] for name in machine.missing],
        "bad_wheels": bad_wheels,
    }


def missing(machine: Machine, bad_wheels: list[str]) -> list[str]:
    """What to say of packages that are not there."""
    lines = [f"could not install {name}" for name in bad_wheels]
    if machine.missing:
        names = ", ".join(ALL[name] for name in machine.missing)
        lines.append(f"missing: {names}; docs/gpu-check.md says how to carry packages in {PACKAGES}")
    return lines


def _open(out: Path) -> Records:
    """The file of results; a folder gets a new one."""
    dated = f"gpu-check-{datetime.now():%Y%m%d-%H%M%S}.jsonl"
    try:
        return Records(out if out.suffix and not out.is_dir() else out / dated)
    except OSError as error:
        raise Mistake(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
