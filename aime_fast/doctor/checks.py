"""The rows of the doctor's table: each a probe in a process of its own, with a time limit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from aime_fast.doctor.finding import MARK, Finding

PROBES = "aime_fast.doctor.probes"
AT_ONCE = 3
"""Probes that run side by side; each import of torch wants most of a core."""


@dataclass(frozen=True)
class Check:
    """One question to the machine."""

    name: str
    probe: str
    """`module:function` returning a `Finding`; it runs in a process of its own."""
    fix: str
    """What to do when the probe raises, crashes or hangs."""
    required: bool = False
    """Training cannot work without it."""
    seconds: float = 120.0
    """Longest wait for the answer."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of that process, on top of this one's."""


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    name: str
    status: Literal["ok", "warning", "failed"]
    """`failed` only where training cannot work."""
    found: str
    fix: str
    """Empty where the status is ok."""

    @property
    def line(self) -> str:
        """The row as one sentence."""
        return f"{self.name}: {self.found}" + (f"; {self.fix}" if self.fix else "")


CHECKS = (
    Check("torch", f"{PROBES}:torch", "pip install 'torch>=2.13,<2.15'", required=True),
    Check("CUDA", f"{PROBES}:cuda", "reinstall the NVIDIA driver; nvidia-smi must list the card"),
    Check("triton", f"{PROBES}:triton", "pip install 'triton>=3.6'; the CPU does without"),
    Check("kernels", f"{PROBES}:kernels", "set AIME_KERNELS=reference: plain PyTorch everywhere"),
    Check("C++", f"{PROBES}:native", "set AIME_KERNELS=reference: plain PyTorch everywhere"),
    Check(
        "DeepSpeed",
        f"{PROBES}:deepspeed",
        "pip install 'deepspeed==0.19.8'; python aime_fast/train.py without --ds_config does without",
        required=True,
    ),
    Check("DeepSpeed builds", f"{PROBES}:extension_locks", "look at the folder TORCH_EXTENSIONS_DIR names"),
    Check("DALI", f"{PROBES}:dali", "pip install 'nvidia-dali-cuda130>=2.3,<3'; the memory back-end does without"),
    Check("runs folder", f"{PROBES}:runs_folder", "start in a folder on a disk that answers", required=True),
    Check("/dev/shm", f"{PROBES}:shared_memory", "mount it: mount -t tmpfs tmpfs /dev/shm"),
    Check("memory", f"{PROBES}:memory", "pip install psutil", required=True),
)
"""All but the graphics, which `graphics.py` adds."""


def examine(checks: Sequence[Check] | None = None) -> list[Result]:
    """Run `checks` (None: every one), a few at a time; the results in their order."""
    from aime_fast.doctor.graphics import GRAPHICS, soften

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return soften(list(pool.map(run_check, (*GRAPHICS, *CHECKS) if checks is None else checks)))


def can_train(results: Sequence[Result]) -> bool:
    """Whether nothing that training needs has failed."""
    return all(result.status != "failed" for result in results)


def run_check(check: Check) -> Result:
    """Ask one question; a probe that raises, crashes, hangs or says nothing has found trouble."""
    finding = _ask(check)
    if not finding.fix:
        return Result(check.name, "ok", finding.found, "")
    status: Literal["warning", "failed"] = "failed" if check.required and not finding.limits else "warning"
    return Result(check.name, status, finding.found, finding.fix)


def _ask(check: Check) -> Finding:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from aime_fast.doctor.finding import answer; answer({check.probe!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **check.environment},
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=check.seconds)
    except subprocess.TimeoutExpired:
        return Finding(f"no answer in {check.seconds:.0f} s", check.fix)
    finally:
        _end(process)
    line = next((line for line in reversed(out.splitlines()) if line.startswith(MARK)), None)
    if line is not None:
        return Finding(**json.loads(line.removeprefix(MARK)))
    if process.returncode < 0:
        return Finding(f"crashed ({signal.Signals(-process.returncode).name})", check.fix)
    last = err.strip().splitlines()[-1:] or [f"ended with exit code {process.returncode} and no answer"]
    return Finding(last[0], check.fix)


def _end(process: subprocess.Popen) -> None:
    """End a probe and whatever it started: a library's helper must not outlive the question."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
