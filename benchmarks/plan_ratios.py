"""Ratios of step times on this CPU, predicted from counts and measured in one run.

    python benchmarks/plan_ratios.py [ROUNDS]

A step takes its FLOPs over this machine's rate of products of their narrowest side, plus its bytes over this machine's
rate of copies, plus a fixed time a call of an operator. The constants come from products, a copy, and a step of `debug`
on two frames, whose calls are nearly all it costs; none of the shapes below is fitted. Steps of all shapes are timed in
turn, so all see one machine, and the medians of ROUNDS [5] are compared. Takes a minute.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import NamedTuple

import torch

from aime_fast import DMCVBTrainer
from aime_fast.planning.counting import Kernel
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
CALLS = ("debug B=1 T=2", ("debug", 1, 2))
"""A step that is nearly all calls."""
WITHIN = 0.2


def seconds_of(call: Callable[[], object], times: int = 30) -> float:
    """Median seconds of a call."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return median(found)


class Rates(NamedTuple):
    """What this machine reaches."""

    products: dict[int, float]
    """FLOP a second by the width of square factors of tall products: narrow ones are slow."""
    bandwidth: float
    """Bytes a second."""
    call: float
    """Seconds of a call of an operator beside its work."""

    def seconds(self, kernel: Kernel) -> float:
        """Of one call."""
        width = min((min(s.rows, s.columns, s.depth) for s in kernel.shapes), default=max(self.products))
        reached = self.products[max((w for w in self.products if w <= width), default=min(self.products))]
        return kernel.flops / reached + kernel.bytes / self.bandwidth + self.call


def rates_of(smallest: float, calls: Sequence[Kernel]) -> Rates:
    """Of this machine, timed here. smallest: seconds of the step that is nearly all `calls`."""
    long, copied, products = torch.randn(4_000_000), torch.empty(4_000_000), {}
    for width in (8, 16, 32, 64, 128, 256, 512):
        tall, square = torch.randn(4096, width), torch.randn(width, width)
        products[width] = 2 * 4096 * width**2 / seconds_of(partial(torch.mm, tall, square))
    without = Rates(products, 2 * 4 * long.numel() / seconds_of(partial(copied.copy_, long)), 0.0)
    return without._replace(call=(smallest - sum(map(without.seconds, calls))) / len(calls))


def timed(rounds: int) -> tuple[dict[str, float], dict[str, tuple[Kernel, ...]]]:
    """Median seconds of a step of every shape, each in turn, and its calls."""
    with ExitStack() as stack:
        trainers = {}
        for name, (preset, batch, frames) in dict([CALLS, *SHAPES.items()]).items():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            loader = {"batch_size": batch, "sequence_length": frames}
            trainers[name] = DMCVBTrainer(preset=preset, steps=100, out=f"{folder}/run", loader=loader, compile="off")
            stack.callback(trainers[name].close)
        times: dict[str, list[float]] = {name: [] for name in trainers}
        for index in range(rounds + 2):
            for name, trainer in trainers.items():
                inputs = trainer.step.fetch(index)
                start = time.perf_counter()
                trainer.step(inputs, 0.5)
                if index >= 2:
                    times[name].append(time.perf_counter() - start)
        calls = {name: rehearse(t.config, t.config.loader.batch_size).kernels for name, t in trainers.items()}
    return {name: median(found) for name, found in times.items()}, calls


def main(rounds: int) -> int:
    """Print measured and predicted ratios; the number of pairs beyond a fifth."""
    seconds, calls = timed(rounds)
    rates = rates_of(seconds[CALLS[0]], calls[CALLS[0]])
    products = ", ".join(f"{rate / 1e9:.0f} at {width}" for width, rate in rates.products.items())
    print(f"GFLOP/s by width: {products}; {rates.bandwidth / 1e9:.1f} GB/s, {rates.call * 1e6:.1f} us a call")
    guess = {name: sum(map(rates.seconds, calls[name])) for name in SHAPES}
    for name in SHAPES:
        print(f"{name:16s} {seconds[name]:7.3f} s measured, {guess[name]:7.3f} s predicted")
    missed = 0
    for one, other in PAIRS:
        seen, wanted = seconds[one] / seconds[other], guess[one] / guess[other]
        missed += abs(wanted / seen - 1) > WITHIN
        print(f"{one} over {other}: {seen:.2f} measured, {wanted:.2f} predicted, {wanted / seen:.2f}")
    return missed


if __name__ == "__main__":
    sys.exit(
        f"{missed} pairs are off by more than {WITHIN:.0%}"
        if (missed := main(int(sys.argv[1]) if sys.argv[1:] else 5))
        else 0
    )
