"""Launches are counted by phase as a GPU would make them, and counting changes nothing."""

import torch
from torch.profiler import record_function

from aime_fast.profiling.launches import Launches, counted_launches
from aime_kernels import mixture_log_density


def test_views_and_allocations_are_free():
    x = torch.randn(4, 4)
    with Launches() as launches:
        x.t().reshape(2, 8)[0].unsqueeze(0).detach()
        torch.empty(3)
        x.view(16) + 1
    assert launches.counts == {("elsewhere", "aten.clone.default"): 1, ("elsewhere", "aten.add.Tensor"): 1}


def test_a_launch_belongs_to_the_innermost_phase():
    x = torch.randn(4)
    with Launches() as launches, record_function("outer"):
        x.exp()
        with record_function("inner"):
            x.sin()
        x.log()
    assert launches.by_phase() == {"outer": 2, "inner": 1}


def test_a_recurrent_network_is_one_launch_forward_and_one_backward():
    x = torch.randn(2, 5, 3)
    for network, inputs in ((torch.nn.LSTM(3, 4, batch_first=True), x), (torch.nn.GRUCell(3, 4), x[:, 0])):
        with counted_launches() as launches:
            output = network(inputs)
            hidden = output[0] if isinstance(output, tuple) else output
            torch.autograd.grad(hidden, list(network.parameters()), torch.ones_like(hidden))
        found = {operator: n for (_, operator), n in launches.counts.items() if "recurrent" in operator}
        assert found == {"recurrent": 1, "recurrent_backward": 1}
        assert not any("mm" in operator or "rnn" in operator for _, operator in launches.counts)


def test_kernels_count_once_and_are_not_run():
    z, log_pi = torch.randn(2, 1, 3, requires_grad=True), torch.randn(2, 4).log_softmax(-1)
    means, log_vars = torch.randn(2, 4, 3), torch.zeros(2, 4, 3)
    with counted_launches() as launches:
        log_prob, _ = mixture_log_density(z, log_pi, means, log_vars)
        torch.autograd.grad(log_prob, z, torch.ones_like(log_prob))
    kernels = {operator: n for (_, operator), n in launches.counts.items() if operator.startswith("aime_kernels")}
    assert kernels == {"aime_kernels.mixture_fwd.default": 1, "aime_kernels.mixture_bwd.default": 1}
    assert torch.count_nonzero(log_prob) == 0
