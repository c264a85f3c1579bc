"""The mixture as the model uses it, forward and backward on a CPU: compiled against eager, memory against broadcasting.

Three forms of one computation (weights from sticks, their divergence, density and responsibilities of 10 samples):
`reference` is what the model calls; `compiled` is the same through `torch.compile`; `broadcast` is the textbook
density in plain torch, for which autograd keeps tensors [N, S, K, D]. Two threads; rounds alternate between the forms.
"""

import pytest
import torch
from measuring import alternating, peak_bytes, threads

from aime_kernels import expected_kumaraswamy_beta_kl, gaussian_log_density, kumaraswamy_log_weights
from aime_kernels.dpgmm.density import mixture_log_density

# Dynamo instantiates the autograd function that it traces, and torch warns about that.
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:.*should not be instantiated")]
COMPONENTS, DIM, SAMPLES = 15, 36, 10
ROUNDS = {128: 20, 4096: 5}


def inputs(n, dtype=torch.float32):
    """log a, log b, uniforms, E alpha, E log alpha, z, means, log-variances; all but the uniforms want a gradient."""
    generator = torch.Generator().manual_seed(0)
    sticks = (n, COMPONENTS - 1)
    shapes = [sticks, sticks, sticks, (n, 1), (n, 1), (n, SAMPLES, DIM), *[(n, COMPONENTS, DIM)] * 2]
    drawn = [torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [x.requires_grad_(i != 2) for i, x in enumerate(drawn)]


def mixture(density, log_a, log_b, uniform, mean, mean_log, z, means, log_vars):
    """A number that depends on everything that the model uses of the mixture."""
    log_prob, log_r = density(z, kumaraswamy_log_weights(log_a, log_b, uniform), means, log_vars)
    entropy = -(log_r.exp() * log_r).sum(-1)
    return log_prob.mean() + entropy.mean() + expected_kumaraswamy_beta_kl(log_a, log_b, mean, mean_log).sum(-1).mean()


def broadcast_density(z, log_pi, means, log_vars):
    joint = log_pi[:, None] + gaussian_log_density(z[:, :, None], means[:, None], log_vars[:, None])
    log_prob = joint.logsumexp(-1)
    return log_prob, joint - log_prob[..., None]


def reference(*leaves):
    return mixture(mixture_log_density, *leaves)


def broadcast(*leaves):
    return mixture(broadcast_density, *leaves)


def forms():
    torch.compiler.reset()
    return {"compiled": torch.compile(reference), "reference": reference, "broadcast": broadcast}


def step(form, leaves):
    return torch.autograd.grad(form(*leaves), [x for x in leaves if x.requires_grad])


def test_all_forms_agree_in_double_precision():
    leaves = inputs(3, torch.float64)
    compiled, *others = (step(form, leaves) for form in forms().values())
    for other in others:
        for one, two in zip(compiled, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", ROUNDS)
def test_forward_and_backward(n, record_forms):
    leaves = inputs(n)
    calls = {name: lambda form=form: step(form, leaves) for name, form in forms().items()}
    with threads(2):
        seconds = alternating(calls, ROUNDS[n])
        peaks = {name: [float(peak_bytes(call))] for name, call in calls.items()}
    options = {"paired": True, "shape": f"N={n} K={COMPONENTS} D={DIM}", "dtype": "float32"}
    record_forms("mixture prior", seconds, baseline="reference", unit="s", **options)
    record_forms("mixture prior, peak memory", peaks, baseline="broadcast", unit="bytes", **options)
