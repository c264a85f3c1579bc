"""The pixel likelihood with the gradient of the decoder's loss on a CPU: C++, torch's operators, and compiled.

The sizes are those of a step of `small`: 512 sub-images of 32 x 32, 5 components; `-m quick` takes an eighth and
leaves out the compiled form. Two threads; rounds alternate between the forms.
"""

import pytest
import torch
from measuring import alternating, threads

from aime_fast.tasks.elbo import Elbo
from aime_kernels.logistic_mixture.fused import fused_gradients
from aime_kernels.logistic_mixture.native import build_obstacle, native_gradients
from aime_kernels.logistic_mixture.reference import reference_gradients

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]
COMPONENTS, PIXELS, ROUNDS = 5, 1024, 12


@pytest.mark.parametrize(
    "frames, with_compiled", [pytest.param(64, False, id="quick", marks=pytest.mark.quick), pytest.param(512, True)]
)
def test_value_and_gradient(record_forms, frames, with_compiled):
    if reason := build_obstacle():
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (frames, 3, PIXELS), generator=generator) * (2 / 255) - 1
    centre = torch.randn(frames, 3, PIXELS, generator=generator)
    parameters = torch.randn(frames, COMPONENTS, 10, PIXELS, generator=generator)
    of_nats = torch.full((frames,), 1 / x.numel())
    forms = {"C++": native_gradients, "torch's operators": reference_gradients}
    if with_compiled:
        forms["compiled"] = torch.compile(fused_gradients, fullgraph=True, dynamic=False, options=Elbo.compile_options)
    blocks = torch.empty_like(parameters)
    calls = {name: lambda form=form: form(x, centre, blocks, of_nats, 1 / x.numel()) for name, form in forms.items()}
    with threads(2):
        # Two of the forms overwrite the parameters.
        samples = alternating(calls, ROUNDS, setup=lambda: blocks.copy_(parameters))
    options = {"unit": "s", "shape": str(list(parameters.shape)), "dtype": "float32"}
    record_forms("pixel likelihood", samples, baseline="torch's operators", paired=True, **options)
