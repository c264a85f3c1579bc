"""The pixel likelihood with the gradient of the decoder's loss on a CPU: C++, torch's operators, and compiled.

The sizes are those of a step of `small`: 512 sub-images of 32 x 32, 5 components. Target: the C++ form takes at most
half the time of torch's operators, and no more than `fused.py` compiled.

Run with `make bench ARGS="-s benchmarks/test_bench_likelihood.py"`. Rounds alternate between the forms, so that changes
in the machine's speed affect all alike.
"""

import pytest
import torch
from measuring import in_turn, two_threads

from aime_fast.tasks.elbo import Elbo
from aime_fast.training.run.host_memory import keep_freed_memory
from aime_kernels.logistic_mixture.fused import fused_gradients
from aime_kernels.logistic_mixture.native import build_obstacle, native_gradients
from aime_kernels.logistic_mixture.reference import reference_gradients

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]
FRAMES, COMPONENTS, PIXELS, ROUNDS = 512, 5, 1024, 12


def test_value_and_gradient(benchmark):
    if reason := build_obstacle():
        pytest.skip(reason)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (FRAMES, 3, PIXELS), generator=generator) * (2 / 255) - 1
    centre = torch.randn(FRAMES, 3, PIXELS, generator=generator)
    parameters = torch.randn(FRAMES, COMPONENTS, 10, PIXELS, generator=generator)
    of_nats = torch.full((FRAMES,), 1 / x.numel())
    compiled = torch.compile(fused_gradients, fullgraph=True, dynamic=False, options=Elbo.compile_options)
    forms = {"C++": native_gradients, "compiled": compiled, "operators": reference_gradients}
    blocks = torch.empty_like(parameters)

    def step(form):
        blocks.copy_(parameters)  # two of the forms overwrite them
        return form(x, centre, blocks, of_nats, 1 / x.numel())

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
