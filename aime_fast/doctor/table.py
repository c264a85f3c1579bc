"""All checks, and their results as a table or as JSON."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from aime_fast.doctor import probes
from aime_fast.doctor.checks import Check, Result, run_check
from aime_fast.doctor.graphics import GRAPHICS, soften

AT_ONCE = 3
"""Probes that run in parallel; each import of torch needs most of a core."""
PLAIN = "set AIME_KERNELS=reference: plain PyTorch everywhere"
CHECKS = (
    *GRAPHICS,
    Check("torch", probes.torch, "pip install 'torch>=2.13,<2.15'", required=True),
    Check("CUDA", probes.cuda, "reinstall the NVIDIA driver; nvidia-smi must list the card"),
    Check("triton", probes.triton, "pip install 'triton>=3.6'; not needed on a CPU"),
    Check("kernels", probes.kernels, PLAIN),
    Check("C++", probes.native, PLAIN),
    Check(
        "DeepSpeed",
        probes.deepspeed,
        "pip install 'deepspeed==0.19.8'; not needed for python aime_fast/train.py without --ds_config",
        required=True,
    ),
    Check("DeepSpeed builds", probes.extension_locks, "check the folder that TORCH_EXTENSIONS_DIR names"),
    Check("DALI", probes.dali, "pip install 'nvidia-dali-cuda130>=2.3,<3'; not needed for --backend memory"),
    Check("runs folder", probes.runs_folder, "start in a folder on a disk that responds", required=True),
    Check("/dev/shm", probes.shared_memory, "mount it: mount -t tmpfs tmpfs /dev/shm"),
    Check("memory", probes.memory, "pip install psutil", required=True),
)


def examine(checks: Sequence[Check] = CHECKS) -> list[Result]:
    """Run `checks`, a few at a time; the results have the same order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return soften(list(pool.map(run_check, checks)))


def can_train(results: Sequence[Result]) -> bool:
    """Whether no required check has failed."""
    return all(result.status != "failed" for result in results)


def as_table(results: Sequence[Result]) -> str:
    """A row for each check: name, status, what was found and, below it, the fix. The last line is the verdict."""
    width = max(len(result.name) for result in results)
    columns = max(shutil.get_terminal_size().columns, 80)
    lines = []
    for result in results:
        indent = " " * (width + 11)
        begin = f"{result.name:<{width}}  {result.status:<7}  "
        lines += textwrap.wrap(result.found, columns, initial_indent=begin, subsequent_indent=indent)
        # A fix is not wrapped, so that it can be copied.
        lines += [f"{indent}-> {result.fix}"] if result.fix else []
    lines.append("training can work here" if can_train(results) else "training cannot work here: fix what failed")
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """`{"can_train": bool, "checks": [{name, status, found, fix}, ...]}`, indented."""
    return json.dumps({"can_train": can_train(results), "checks": [asdict(result) for result in results]}, indent=1)
