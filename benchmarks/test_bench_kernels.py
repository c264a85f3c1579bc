"""Kernels on a GPU: forward and backward against the eager, the compiled and the captured reference; achieved GB/s.

Run with `make bench ARGS='-m gpu benchmarks/test_bench_kernels.py'`. Without a GPU every line is skipped as "not
verified on a GPU". `extra_info` names the card, and for each candidate the median milliseconds; for `rgb_*` and
`frames` also bytes that must move divided by the kernel's time.
"""

import statistics

import pytest
import torch

import aime_kernels

pytestmark = pytest.mark.gpu
SIZE, TASKS = 34_000_000, 3


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


def differentiable(name, n):
    """Operator -> its inputs, how many of them want a gradient."""
    k, d, s = 15, 36, 10
    return {
        "mixture_log_density": (
            [
                torch.randn(n, s, d),
                torch.randn(n, k).log_softmax(-1),
                torch.randn(n, k, d),
                torch.randn(n, k, d),
            ],
            4,
        ),
        "kumaraswamy_log_weights": ([*torch.randn(2, n, k - 1), torch.rand(n, k - 1)], 2),
        "expected_kumaraswamy_beta_kl": ([*torch.randn(2, n, k - 1), torch.rand(n, 1) + 0.5, torch.randn(n, 1)], 4),
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
    function, times = getattr(aime_kernels, name), {}
    monkeypatch.setenv("AIME_KERNELS", "reference")
    times["eager"] = milliseconds(step(function, leaves, wanted))
    times["compiled"] = milliseconds(step(torch.compile(function), leaves, wanted))
    times["graph"] = milliseconds(captured(step(function, leaves, wanted)))
    torch.compiler.reset()
    monkeypatch.setenv("AIME_KERNELS", "triton")
    times["kernel"] = milliseconds(step(function, leaves, wanted))
    times["kernel graph"] = milliseconds(captured(step(function, leaves, wanted)))
    benchmark.extra_info.update(card=torch.cuda.get_device_name(), milliseconds=times)
    benchmark(step(function, leaves, wanted))


def test_streaming_passes(benchmark, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", "triton")
    rows = [[torch.randn(SIZE, device="cuda")] for _ in range(TASKS)]
    direction, update = [torch.randn(SIZE, device="cuda")], [torch.empty(SIZE, device="cuda")]
    coefficients, finite = torch.rand(2, TASKS + 1, device="cuda").double(), torch.tensor(True, device="cuda")
    gram = milliseconds(lambda: aime_kernels.rgb_gram([*rows, direction]))
    combine = milliseconds(lambda: aime_kernels.rgb_combine(rows, direction, update, coefficients, finite))
    benchmark.extra_info.update(
        card=torch.cuda.get_device_name(),
        gram_gigabytes_a_second=4e-6 * (TASKS + 1) * SIZE / gram,
        combine_gigabytes_a_second=4e-6 * (TASKS + 3) * SIZE / combine,
    )
    benchmark(lambda: aime_kernels.rgb_gram([*rows, direction]))


def test_frames(benchmark, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", "triton")
    store = torch.randint(0, 256, (4096, 64, 64, 3), dtype=torch.uint8, device="cuda")
    starts = torch.randint(0, 4000, (64,), device="cuda")
    kernel = milliseconds(lambda: aime_kernels.normalised_windows(store, starts, 50))
    monkeypatch.setenv("AIME_KERNELS", "reference")
    eager = milliseconds(lambda: aime_kernels.normalised_windows(store, starts, 50))
    benchmark.extra_info.update(
        card=torch.cuda.get_device_name(),
        milliseconds={"eager": eager, "kernel": kernel},
        gigabytes_a_second=1e-6 * 5 * 64 * 50 * 64 * 64 * 3 / kernel,
    )
    benchmark(lambda: aime_kernels.normalised_windows(store, starts, 50))
