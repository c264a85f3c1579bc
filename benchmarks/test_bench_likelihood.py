"""The pixel likelihood with its mean and both gradients on a CPU: C++, the operators of torch, and their compiled form.

The sizes are those of a step of `small`: 512 sub-images of 32 x 32, 5 components. Target: the C++ form takes at most
half of the time of torch's operators, and is no slower than `fused.py` compiled.

Run with `make bench ARGS="-s benchmarks/test_bench_likelihood.py"`; rounds alternate: all forms see one machine.
"""

import pytest
import torch
from measuring import in_turn, two_threads

from aime_fast.training.compilation import FUSION
from aime_fast.training.host_memory import keep_freed_memory
from aime_kernels.logistic_mixture.fused import fused_terms
from aime_kernels.logistic_mixture.native import build_obstacle, native_terms
from aime_kernels.logistic_mixture.reference import reference_terms

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]
FRAMES, COMPONENTS, PIXELS, ROUNDS = 512, 5, 1024, 12


def test_forward_and_backward(benchmark):
    if reason := build_obstacle():
        pytest.skip(reason)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (FRAMES, 3, PIXELS), generator=generator) * (2 / 255) - 1
    leaves = [
        torch.randn(shape, generator=generator).requires_grad_()
        for shape in ((FRAMES, 3, PIXELS), (FRAMES, COMPONENTS, 10, PIXELS))
    ]
    pulls = torch.randn(FRAMES, generator=generator), torch.randn(FRAMES, 3, PIXELS, generator=generator)
    compiled = torch.compile(fused_terms, fullgraph=True, dynamic=False, options=FUSION)
    forms = {"C++": native_terms, "compiled": compiled, "operators": reference_terms}

    def step(form):
        return torch.autograd.grad(form(x, *leaves), leaves, pulls)

    calls = {name: lambda form=form: step(form) for name, form in forms.items()}
    with two_threads():
        seconds, medians = in_turn(benchmark, calls, ROUNDS)
        benchmark.pedantic(calls["C++"], rounds=3)
    benchmark.extra_info.update(seconds=seconds)
    for name, times in seconds.items():
        shown = " / ".join(f"{1e3 * value:.1f}" for value in (min(times), medians[name], max(times)))
        print(f"\n{name}: {shown} ms ({medians[name] / medians['C++']:.2f} times C++)", end="")
    assert medians["operators"] >= 2 * medians["C++"]
    assert medians["compiled"] >= medians["C++"]
