"""Kernels on a GPU: forward and backward pass of every route, and rows for `kernels/aime_kernels/routes.py`.

Run with `make bench ARGS='-m gpu -s benchmarks/test_bench_kernels.py'`. Each test prints the median milliseconds of the
eager reference, the compiled reference and the kernel, and the fastest one as a row of the table. `rgb_*` and
`normalise_frames` also print the bytes that must move divided by the kernel's time. Without a GPU every test is
skipped as "not verified on a GPU". `extra_info` has the same figures and the name of the card.
"""

import statistics

import pytest
import torch

import aime_kernels
from aime_kernels.routes import ROUTES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="not verified on a GPU"),
]
SIZE, TASKS = 34_000_000, 3
FRAMES = (8, 16, 64, 64, 3)


def milliseconds(call, rounds=50):
    for _ in range(5):
        call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def captured(call):
    """The call as a CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def table_row(name, times, card):
    """The line for `routes.py`: the fastest route on this card, with all medians as its note."""
    note = f"{card}: " + ", ".join(f"{route} {median:.3f} ms" for route, median in times.items())
    return f'    "{name}": Row("{min(times, key=times.get)}", "{ROUTES[name].cpu}", "{note}"),'


def compare(name, call, benchmark, monkeypatch, compiled=None, moved_bytes=0):
    """Time `call` as reference and as kernel, and `compiled`, its compiled form; print the row."""
    monkeypatch.setenv("AIME_KERNELS", "reference")
    times = {"reference": milliseconds(call)}
    if compiled is not None:
        times["compiled"] = milliseconds(compiled)
    monkeypatch.setenv("AIME_KERNELS", "triton")
    times["triton"] = milliseconds(call)
    card = torch.cuda.get_device_name()
    benchmark.extra_info.update(card=card, milliseconds=times)
    print("\n" + table_row(name, times, card), end="")
    if moved_bytes:
        benchmark.extra_info["gigabytes_a_second"] = 1e-6 * moved_bytes / times["triton"]
        print(f"\n{name}: {benchmark.extra_info['gigabytes_a_second']:.0f} GB/s", end="")
    benchmark(call)


def differentiable(name, n):
    """Inputs of an operator, and how many of them want a gradient."""
    k, d, s = 15, 36, 10
    mixture = [torch.randn(n, s, d), torch.randn(n, k).log_softmax(-1), torch.randn(n, k, d), torch.randn(n, k, d)]
    sticks = [*torch.randn(2, n, k - 1)]
    return {
        "mixture_log_density": (mixture, 4),
        "kumaraswamy_log_weights": ([*sticks, torch.rand(n, k - 1)], 2),
        "expected_kumaraswamy_beta_kl": ([*sticks, torch.rand(n, 1) + 0.5, torch.randn(n, 1)], 4),
        "slot_attention": ([torch.randn(n, 5, 64), torch.randn(n, 64, 64), torch.randn(n, 64, 64)], 3),
    }[name]


def step(function, leaves, wanted):
    def both():
        out = function(*leaves)
        parts = [out] if isinstance(out, torch.Tensor) else list(out)
        return torch.autograd.grad(sum(part.sum() for part in parts), leaves[:wanted])

    return both


@pytest.mark.parametrize("n", [128, 4096])
@pytest.mark.parametrize(
    "name", ["mixture_log_density", "kumaraswamy_log_weights", "expected_kumaraswamy_beta_kl", "slot_attention"]
)
def test_forward_and_backward(name, n, benchmark, monkeypatch):
    inputs, wanted = differentiable(name, n)
    leaves = [x.cuda().requires_grad_(i < wanted) for i, x in enumerate(inputs)]
    function = getattr(aime_kernels, name)
    call = step(function, leaves, wanted)
    torch.compiler.reset()
    compare(name, call, benchmark, monkeypatch, step(torch.compile(function), leaves, wanted))
    for mode in ("reference", "triton"):
        monkeypatch.setenv("AIME_KERNELS", mode)
        benchmark.extra_info["milliseconds"][f"{mode} as a graph"] = milliseconds(captured(call))


@pytest.mark.parametrize("offset", [0, 1])
def test_gram_matrix(offset, benchmark, monkeypatch):
    vectors = [[torch.randn(SIZE, device="cuda")[offset:]] for _ in range(TASKS + 1)]
    moved = 4 * (TASKS + 1) * SIZE
    compare("rgb_gram", lambda: aime_kernels.rgb_gram(vectors), benchmark, monkeypatch, moved_bytes=moved)


@pytest.mark.parametrize("offset", [0, 1])
def test_linear_combinations(offset, benchmark, monkeypatch):
    *gradients, direction, update = [[torch.randn(SIZE, device="cuda")[offset:]] for _ in range(TASKS + 2)]
    coefficients = torch.rand(2, TASKS + 1, device="cuda").double() / (TASKS + 1)
    finite = torch.tensor(True, device="cuda")

    def call():
        aime_kernels.rgb_combine(gradients, direction, update, coefficients, finite)

    compare("rgb_combine", call, benchmark, monkeypatch, moved_bytes=4 * (TASKS + 3) * SIZE)


def test_frames(benchmark, monkeypatch):
    frames = torch.randint(0, 256, FRAMES, dtype=torch.uint8, device="cuda")
    call, moved = lambda: aime_kernels.normalise_frames(frames), 5 * frames.numel()
    compiled = torch.compile(aime_kernels.normalise_frames)
    compare("normalise_frames", call, benchmark, monkeypatch, lambda: compiled(frames), moved)
