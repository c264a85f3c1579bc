"""Every operator beside plain torch, and every kernel beside its reference: time, bytes, and rows for `routes.py`.

    make bench ARGS=benchmarks/test_bench_kernels.py
    make bench ARGS='-m gpu -s benchmarks/test_bench_kernels.py'
    python benchmarks/test_bench_kernels.py [--device cpu] [--small] [--no-compiled]

The first command compares each operator, as it is routed on a CPU, with plain torch. The others compare kernels with
their references, for `kernels/aime_kernels/routes.py`.

`rows()` and `each_row()` give the figures as dictionaries: `eager_ms` and `compiled_ms` of the reference, `kernel_ms`,
`bytes` that must move, and `gb_per_s` of the kernel. Operators with gradients are timed forward and backward. On a GPU
a call is timed as a captured graph, so that the host costs nothing. `kernel_ms` and `gb_per_s` may be None.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from measuring import alternating, apart, per, threads
from plain import PLAIN

import aime_kernels
from aime_kernels.dispatch import obstacle_of_device
from aime_kernels.logistic_mixture.op import gradients
from aime_kernels.routes import ROUTES


class Case(NamedTuple):
    """One operator at one size."""

    kernel: str
    shape: str
    function: Callable
    """What `torch.compile` gets."""
    call: Callable
    """Calls a form of the function once."""
    bytes: int
    """That must move: inputs, results and gradients, each once in every pass that needs it."""
    dtype: str = "float32"


def size(*tensors):
    return sum(tensor.nbytes for tensor in tensors)


def differentiable(name, inputs, wanted, device):
    """Forward and backward pass; the first `wanted` inputs get a gradient."""
    leaves = [x.to(device).requires_grad_(i < wanted) for i, x in enumerate(inputs)]

    def call(form):
        out = form(*leaves)
        parts = [out] if isinstance(out, torch.Tensor) else list(out)
        return torch.autograd.grad(parts, leaves[:wanted], [torch.ones_like(part) for part in parts])

    with mode("reference"):
        made = getattr(aime_kernels, name)(*leaves)
    outputs = size(*([made] if isinstance(made, torch.Tensor) else made))
    moved = 2 * size(*leaves) + 2 * outputs + size(*leaves[:wanted])
    shape = " ".join(str(list(x.shape)) for x in inputs)
    return Case(name, shape, getattr(aime_kernels, name), call, moved)


def likelihood(frames, mixtures, pixels, dtype, device):
    """The pass over the parameters alone. A call overwrites them: their values play no part in the time."""
    x = torch.randint(0, 256, (frames, 3, pixels), device=device) * (2 / 255) - 1
    centre, of_nats = torch.zeros_like(x), torch.full((frames,), 1 / x.numel(), device=device)
    blocks = torch.randn(frames, mixtures, 10, pixels, device=device, dtype=dtype)

    def call(form):
        return form(x, centre, blocks, of_nats, 0.5)

    name = str(dtype).removeprefix("torch.")
    moved = 2 * size(blocks) + 3 * size(x)
    return Case("logistic_mixture", f"{list(blocks.shape)} {name}", gradients, call, moved, name)


def vectors(name, elements, tasks, device, offset=0):
    """`rgb_gram` or `rgb_combine` of long vectors; `offset` 1 takes them off their alignment."""
    *gradients_, direction, update = [[torch.randn(elements, device=device)[offset:]] for _ in range(tasks + 2)]
    shape = f"{tasks + 1} of {elements}{' unaligned' * offset}"
    if name == "rgb_gram":
        given = [*gradients_, direction]
        return Case(name, shape, aime_kernels.rgb_gram, lambda form: form(given), 4 * (tasks + 1) * elements)
    coefficients = torch.rand(2, tasks + 1, device=device).double() / (tasks + 1)
    finite = torch.ones((), dtype=torch.bool, device=device)

    def call(form):
        return form(gradients_, direction, update, coefficients, finite)

    return Case(name, shape, aime_kernels.rgb_combine, call, 4 * (tasks + 3) * elements)


def frames(shape, device):
    levels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    function, moved = aime_kernels.normalise_frames, 5 * size(levels)
    return Case("normalise_frames", str(list(shape)), function, lambda form: form(levels), moved, "uint8")


def codebook(encodings, count, dim, device):
    given = torch.randn(encodings, dim, device=device), torch.randn(count, dim, device=device)
    moved = size(*given) + 8 * encodings
    return Case(
        "nearest_codes", f"{encodings} to {count} d={dim}", aime_kernels.nearest_codes, lambda form: form(*given), moved
    )


def cases(device: str, small: bool, elements: int = 34_000_000) -> Iterator[Case]:
    """Sizes of a step of `small` with 8 windows of 16 frames, then larger ones; or very small sizes. Lazily.

    `elements` is the length of the gradients that are balanced.
    """
    k, d, s = (3, 4, 2) if small else (15, 36, 10)
    for n, mixtures, pixels, dtype in (
        [(2, 2, 9, torch.float32)]
        if small
        else [(512, 5, 1024, torch.float32), (512, 5, 1024, torch.bfloat16), (512, 10, 1024, torch.float32)]
    ):
        yield likelihood(n, mixtures, pixels, dtype, device)
    for name in ("rgb_gram", "rgb_combine"):
        for offset in (0, 1):
            yield vectors(name, 100 if small else elements, 3, device, offset)
    for rows_, count, dim in [(3, 5, 4)] if small else [(8192, 256, 64), (8192, 1024, 256)]:
        yield codebook(rows_, count, dim, device)
    yield frames((1, 2, 4, 6, 3) if small else (8, 16, 64, 64, 3), device)
    for n in [2] if small else [128, 4096]:
        density = [torch.randn(n, s, d), torch.randn(n, k).log_softmax(-1), torch.randn(n, k, d), torch.randn(n, k, d)]
        yield differentiable("mixture_log_density", density, 4, device)
        slots = [torch.randn(n, rows, 4 if small else 64) for rows in (5, 64, 64)]
        yield differentiable("slot_attention", slots, 3, device)
        sticks = list(torch.randn(2, n, k - 1))
        yield differentiable("kumaraswamy_log_weights", [*sticks, torch.rand(n, k - 1)], 2, device)
        moments = [torch.rand(n, 1) + 0.5, torch.randn(n, 1)]
        yield differentiable("expected_kumaraswamy_beta_kl", [*sticks, *moments], 4, device)


@contextmanager
def mode(value: str) -> Iterator[None]:
    """`AIME_KERNELS` for the calls inside."""
    before = os.environ.get("AIME_KERNELS")
    os.environ["AIME_KERNELS"] = value
    try:
        yield
    finally:
        os.environ.pop("AIME_KERNELS") if before is None else os.environ.update(AIME_KERNELS=before)


def milliseconds(call: Callable, device: str, rounds: int) -> list[float]:
    """The times of calls after three rounds of warm-up."""
    if device == "cpu":
        return [1e3 * seconds for seconds in apart(call, rounds, warm_up=3)]
    replay = captured(call)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def captured(call: Callable) -> Callable:
    """The call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        call()
    graph.replay()
    return graph.replay


def each_row(device: str = "cuda", small: bool = False, compiled: bool = True, rounds: int = 50) -> Iterator[dict]:
    """One dictionary for each operator and size, the moment it is measured."""
    for case in cases(device, small):
        yield row_of(case, device, compiled, rounds)


def samples_of(case: Case, device: str, compiled: bool, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each form of one operator at one size: `eager`, `compiled` on request, `kernel` on a card."""
    samples = {}
    with mode("reference"):
        samples["eager"] = milliseconds(lambda: case.call(case.function), device, rounds)
        if compiled:
            torch.compiler.reset()
            form = torch.compile(case.function)
            samples["compiled"] = milliseconds(lambda: case.call(form), device, rounds)
    if device != "cpu" and obstacle_of_device(torch.device(device)) is None:
        with mode("triton"):
            samples["kernel"] = milliseconds(lambda: case.call(case.function), device, rounds)
    return samples


def row_of(case: Case, device: str, compiled: bool, rounds: int) -> dict:
    """The row of one operator at one size."""
    return row_from(case, samples_of(case, device, compiled, rounds))


def row_from(case: Case, samples: dict[str, list[float]]) -> dict:
    """The row of these samples: their medians."""
    medians = {name: statistics.median(values) for name, values in samples.items()}
    times = {f"{name}_ms": medians.get(name) for name in ("eager", "compiled", "kernel")}
    speed = 1e-6 * case.bytes / medians["kernel"] if "kernel" in medians else None
    return {"kernel": case.kernel, "shape": case.shape, **times, "bytes": case.bytes, "gb_per_s": speed}


def rows(device: str = "cuda", small: bool = False, compiled: bool = True, rounds: int = 50) -> list[dict]:
    """All of `each_row`."""
    return list(each_row(device, small, compiled, rounds))


def table_row(row: dict, card: str) -> str:
    """The line for `routes.py`: the faster route on this card, with all medians as its note."""
    times = {"reference": row["eager_ms"], "compiled": row["compiled_ms"], "triton": row["kernel_ms"]}
    found = {name: median for name, median in times.items() if median is not None}
    note = f"{card}: " + ", ".join(f"{name} {median:.3f} ms" for name, median in found.items())
    route = "triton" if min(found, key=found.get) == "triton" else "reference"
    return f'    "{row["kernel"]}": Row("{route}", "{ROUTES[row["kernel"]].cpu}", "{note}"),'


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "elements, most_bytes", [pytest.param(1_000_000, 4e7, id="quick", marks=pytest.mark.quick), (34_000_000, 1e12)]
)
def test_every_operator_on_a_cpu(record_forms, elements, most_bytes):
    """As it is routed, beside plain torch: forward and backward, two threads. `quick` leaves out what moves much."""
    with threads(2):
        for case in cases("cpu", False, elements):
            if case.bytes > most_bytes or (most_bytes == 1e12 and case.bytes <= 4e7):
                continue
            forms = {"ours": case.function, "plain torch": PLAIN[case.kernel]}
            calls = {name: lambda form=form, case=case: case.call(form) for name, form in forms.items()}
            samples = alternating(calls, 20 if case.bytes < 4e7 else 7)
            options = {"unit": "s", "shape": case.shape, "dtype": case.dtype, "paired": True}
            record_forms(f"operator {case.kernel}", samples, baseline="plain torch", **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")
def test_every_kernel(record_forms):
    card = torch.cuda.get_device_name()
    for case in cases("cuda", False):
        samples = samples_of(case, "cuda", compiled=True, rounds=50)
        row = row_from(case, samples)
        print(f"\n{table_row(row, card)}  # {row['shape']}, {row['gb_per_s']:.0f} GB/s", end="")
        options = {"unit": "s", "shape": case.shape, "dtype": case.dtype, "machine": card, "paired": False}
        assert "kernel" in samples
        record_forms(f"kernel {case.kernel}", per(samples, 1000), baseline="eager", **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-compiled", dest="compiled", action="store_false")
    parser.add_argument("--rounds", type=int, default=50)
    for row in each_row(**vars(parser.parse_args())):
        print(json.dumps(row), flush=True)
