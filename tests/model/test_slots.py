"""The pieces of z and the layers of each slot's own, against slices and a loop of linear maps."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from aime_fast.config import preset_config
from aime_fast.model.parts.slots import PerSlot, Pieces

CONFIG = preset_config("debug").model


@pytest.mark.parametrize(
    "dim, slots, shared, slot", [(36, 8, 4, 4), (7, 6, 1, 1), (37, 4, 9, 7), (10, 3, 4, 2), (5, 1, 3, 2)]
)
def test_pieces_lie_side_by_side_and_what_does_not_divide_is_shared(dim, slots, shared, slot):
    pieces = Pieces.of(replace(CONFIG, latent_dim=dim, num_slots=slots))
    assert pieces == (shared, slot)
    z = torch.arange(2 * dim).view(2, dim)
    common, own = pieces.split(z, slots)
    assert torch.equal(common, z[:, :shared])
    for s in range(slots):
        assert torch.equal(own[:, s], z[:, shared + s * slot : shared + (s + 1) * slot])


@pytest.mark.parametrize("n, slots, inputs, outputs", [(1, 1, 1, 1), (5, 3, 7, 2), (2, 8, 4, 11)])
def test_per_slot_is_a_loop_of_linear_maps(n, slots, inputs, outputs):
    layer = PerSlot(slots, inputs, outputs).double()
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(n, slots, inputs, dtype=torch.float64, requires_grad=True)
    wanted = torch.stack([F.linear(x[:, s], layer.weight[s].T, layer.bias[s, 0]) for s in range(slots)], 1)
    made, upstream = layer(x), torch.randn_like(wanted)
    torch.testing.assert_close(made, wanted)
    leaves = [x, *layer.parameters()]
    found, expected = (torch.autograd.grad((y * upstream).sum(), leaves) for y in (made, wanted))
    torch.testing.assert_close(found, expected)


def test_per_slot_starts_with_signals_of_the_size_of_its_gain():
    made = PerSlot(4, 500, 300, gain=2.0)(torch.randn(50, 4, 500))
    torch.testing.assert_close(made.std((0, 2)), torch.full((4,), 2.0), rtol=0.05, atol=0)
