"""What ran on the device during a call, by torch's profiler."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ACTIVITY = ProfilerActivity.CUDA
_KERNEL, _COPIES = "kernel", ("gpu_memcpy", "gpu_memset")
"""Categories of what occupies the device. Others are ranges around kernels, which would count them twice."""


@dataclass(frozen=True)
class Kernels:
    """Kernels and copies on the device, in microseconds."""

    names: list[str]
    """Names of the kernels, in order; copies are left out."""
    copies: int
    """Number of copies and fills, which are no kernels."""
    intervals: list[tuple[float, float]]
    """Start and end of each kernel and copy."""
    microseconds: Counter[str]
    """Time by name, copies included."""

    @property
    def busy(self) -> float:
        """Microseconds in which at least one of them ran."""
        return union(self.intervals)

    def largest(self, steps: int, count: int = 12) -> list[list[object]]:
        """Name, number a step and milliseconds a step of the longest kernels."""
        numbers = Counter(self.names)
        return [
            [name[:90], numbers[name] / steps, us / steps / 1000] for name, us in self.microseconds.most_common(count)
        ]

    def families(self, steps: int) -> dict[str, float]:
        """Number of kernels a step by function, most first; the parameters of a template are left out."""
        numbers = Counter(family(name) for name in self.names)
        return {name: number / steps for name, number in numbers.most_common()}


def family(name: str) -> str:
    """A kernel's name without its return type, namespaces and parameters."""
    bare = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.split(r"[<(]", bare)[0].rpartition("::")[2] or name


def kernels_of(call: Callable[[], object]) -> Kernels:
    """Run `call` and wait for the device; what ran on it."""
    torch.cuda.synchronize()
    # Without `acc_events` torch 2.11 warns that it forgets events at the end of a cycle; here is one cycle.
    with profile(activities=[ACTIVITY], acc_events=True) as profiled:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        return kernels_in(json.loads(path.read_text(errors="replace"), strict=False)["traceEvents"])


def kernels_in(events: Iterable[dict]) -> Kernels:
    """The kernels and copies among the events of a Chrome trace."""
    names, copies, intervals, microseconds = [], 0, [], Counter()
    for event in events:
        category = event.get("cat")
        if event.get("ph") == "X" and (category == _KERNEL or category in _COPIES):
            names += [event["name"]] * (category == _KERNEL)
            copies += category in _COPIES
            intervals.append((event["ts"], event["ts"] + event["dur"]))
            microseconds[event["name"]] += event["dur"]
    return Kernels(names, copies, intervals, microseconds)


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
