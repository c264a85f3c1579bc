"""Ratios of step times on this CPU, predicted from counts and measured in one run.

    python benchmarks/plan_ratios.py [ROUNDS]

A step takes its FLOPs over this machine's rate of products, plus its bytes over this machine's rate of copies, plus a
fixed time a call of an operator. The three constants come from two products, a copy and an addition of single numbers,
timed here; no step is fitted. Steps of all shapes are then timed in turn, so all see one machine, and the medians of
ROUNDS [5] are compared. Takes minutes.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

import torch

from aime_fast import DMCVBTrainer
from aime_fast.planning.rehearsal import rehearse

SHAPES = {
    "debug B=4 T=16": ("debug", 4, 16),
    "small B=2 T=16": ("small", 2, 16),
    "small B=8 T=8": ("small", 8, 8),
    "small B=8 T=16": ("small", 8, 16),
    "paper B=1 T=16": ("paper", 1, 16),
    "paper B=2 T=16": ("paper", 2, 16),
}
PAIRS = (
    ("small B=8 T=16", "small B=2 T=16"),
    ("small B=8 T=16", "small B=8 T=8"),
    ("small B=8 T=8", "small B=2 T=16"),
    ("paper B=2 T=16", "paper B=1 T=16"),
    ("paper B=2 T=16", "small B=8 T=16"),
    ("small B=2 T=16", "debug B=4 T=16"),
)
WITHIN = 0.2


def seconds_of(call: Callable[[], object], times: int = 30) -> float:
    """Median seconds of a call."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return median(found)


def constants() -> tuple[float, float, float]:
    """FLOP a second, bytes a second, seconds a call."""
    a, b, long, one = torch.randn(512, 512), torch.randn(512, 512), torch.randn(4_000_000), torch.ones(1)
    flops = 2 * 512**3 / seconds_of(lambda: a @ b)
    bandwidth = 2 * 4 * long.numel() / seconds_of(lambda: long * 2)
    return flops, bandwidth, seconds_of(lambda: one + one, 1000)


def predicted(config: object, windows: int, rates: tuple[float, float, float]) -> float:
    """Seconds of a step."""
    kernels = rehearse(config, windows).kernels  # type: ignore[arg-type]
    flops, bandwidth, call = rates
    return sum(k.flops / flops + k.bytes / bandwidth + call for k in kernels)


def main(rounds: int) -> int:
    """Print measured and predicted ratios; the number of pairs beyond a fifth."""
    rates = constants()
    print(f"{rates[0] / 1e9:.1f} GFLOP/s, {rates[1] / 1e9:.1f} GB/s, {rates[2] * 1e6:.1f} us a call")
    with ExitStack() as stack:
        trainers = {}
        for name, (preset, batch, frames) in SHAPES.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            loader = {"batch_size": batch, "sequence_length": frames}
            trainers[name] = DMCVBTrainer(preset=preset, steps=100, out=f"{folder}/run", loader=loader, compile="off")
            stack.callback(trainers[name].close)
        times: dict[str, list[float]] = {name: [] for name in SHAPES}
        for index in range(rounds + 2):
            for name, trainer in trainers.items():
                inputs = trainer.step.fetch(index)
                start = time.perf_counter()
                trainer.step(inputs, 0.5)
                if index >= 2:
                    times[name].append(time.perf_counter() - start)
        guess = {name: predicted(t.config, t.config.loader.batch_size, rates) for name, t in trainers.items()}
    for name, found in times.items():
        print(f"{name:16s} {median(found):7.3f} s measured, {guess[name]:7.3f} s predicted")
    missed = 0
    for one, other in PAIRS:
        seen, wanted = median(times[one]) / median(times[other]), guess[one] / guess[other]
        missed += abs(wanted / seen - 1) > WITHIN
        print(f"{one} over {other}: {seen:.2f} measured, {wanted:.2f} predicted, {wanted / seen:.2f}")
    return missed


if __name__ == "__main__":
    sys.exit(
        f"{missed} pairs are off by more than {WITHIN:.0%}"
        if (missed := main(int(sys.argv[1]) if sys.argv[1:] else 5))
        else 0
    )
