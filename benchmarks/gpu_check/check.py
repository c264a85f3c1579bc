"""Runs jobs one after the other within a time, and records how each ended."""

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_check.packages import ALL
from gpu_check.plan import Job
from gpu_check.processes import Ending, run
from gpu_check.records import Records, Row
from gpu_check.worker import ENDING


class Interrupted(BaseException):
    """A signal asks the check to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def interrupt(number: int, _frame: object = None) -> None:
    """A signal handler: end the check after the first signal, ignore all later ones."""
    listen(signal.SIG_IGN)
    raise Interrupted(number)


def listen(handler: object) -> None:
    """Let `handler` take the signals that ask a process to end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


@dataclass(frozen=True)
class Check:
    """The jobs' surroundings, and where their rows go."""

    records: Records
    log: Path
    environment: Mapping[str, str]
    missing: Sequence[str]
    """Modules that this machine lacks."""
    device: str
    """`cuda` or `cpu`."""

    def run(self, jobs: Sequence[Job], deadline: float) -> int:
        """Run the jobs until `deadline` on the clock `time.monotonic`; those that ended well before are left out.

        Returns 0, 1 if a job failed, or 128 + n after signal n.
        """
        done = {(row.get("stage"), row.get("job")) for row in self.records.rows() if row.get("status") == "ok"}
        code, waiting = 0, [job for job in jobs if (job.stage, job.name) not in done]
        try:
            while waiting:
                code = max(code, self._run(waiting[0], deadline))
                waiting.pop(0)
        except Interrupted as signalled:
            for job in waiting:
                self._end(job, "interrupted", f"signal {signalled.number}")
            return 128 + signalled.number
        return code

    def _run(self, job: Job, deadline: float) -> int:
        """Run a job, or say why not; 1 if it failed, else 0."""
        left = deadline - time.monotonic()
        if reason := self._obstacle(job) or ("budget" if left < max(job.least, 1.0) else ""):
            self._end(job, "skipped", reason)
            return 0
        told: Row = {}

        def take(row: Row) -> None:
            if ENDING in row:
                told.update(row)
            else:
                self.records.append({"stage": job.stage, "job": job.name, **row})

        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"\n=== {job.stage} {job.name}\n")
        limit = min(job.limit, left)
        command = [sys.executable, "-m", "gpu_check.worker", job.call, json.dumps(job.options)]
        ending = run(command, self.environment, limit, self.log, take)
        status, why = _verdict(ending, limit, told)
        bad = status in ("failed", "timed out")
        self._end(job, status, why, ending.seconds, ending.last_lines if bad else [])
        return int(bad)

    def _obstacle(self, job: Job) -> str:
        """Why a job cannot run here; empty if it can."""
        if job.card and self.device == "cpu":
            return "needs a card"
        missing = [ALL[name] for name in job.needs if name in self.missing]
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""

    def _end(self, job: Job, status: str, why: str, seconds: float = 0.0, last_lines: Sequence[str] = ()) -> None:
        row = {"stage": job.stage, "job": job.name, "status": status, "why": why, "seconds": round(seconds, 1)}
        self.records.append(row | ({"last_lines": list(last_lines)} if last_lines else {}))
        took = f" in {seconds:.1f} s" if seconds else ""
        if why == "budget":
            return  # often many; the table counts them
        print(f"{' '.join((job.stage, job.name)).strip()}: {status}{took}{': ' + why if why else ''}", flush=True)


def _verdict(ending: Ending, limit: float, told: Row) -> tuple[str, str]:
    """A job's status, and the reason for any but `ok`."""
    code = ending.returncode
    if code is None:
        return "timed out", f"killed after {limit:.0f} s"
    if code < 0:
        return "failed", f"killed by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
    if code > 0:
        return "failed", str(told.get("why") or f"exit code {code}")
    return ("skipped", str(told["why"])) if told else ("ok", "")
