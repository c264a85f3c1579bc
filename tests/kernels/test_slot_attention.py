"""One round of slot attention against its definition, one slot and position at a time."""

import math

import pytest
import torch

from aime_kernels import slot_attention


def by_definition(slots, keys, values):
    n, s, d = slots.shape
    positions = keys.shape[1]
    assignments = torch.zeros(n, s, positions, dtype=slots.dtype)
    for i in range(n):
        for p in range(positions):
            assignments[i, :, p] = torch.stack([slots[i, j].dot(keys[i, p]) / math.sqrt(d) for j in range(s)]).softmax(
                0
            )
    maps = assignments / assignments.sum(2, keepdim=True)
    return torch.einsum("nsp,npd->nsd", maps, values), assignments, maps


@pytest.mark.parametrize("n, s, p, d", [(2, 5, 64, 8), (1, 1, 1, 1), (3, 2, 7, 5)])
def test_equals_its_definition(n, s, p, d):
    slots, keys, values = (torch.randn(n, rows, d, dtype=torch.float64) for rows in (s, p, p))
    for found, expected in zip(slot_attention(slots, keys, values), by_definition(slots, keys, values), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 1000.0])
def test_sums_to_one_and_stays_finite_however_sharp(sharpness):
    slots, keys, values = sharpness * torch.randn(2, 5, 16), torch.randn(2, 64, 16), torch.randn(2, 64, 16)
    slots[:, 4] = -slots[:, :4].sum(1)
    slots.requires_grad_()
    updates, assignments, maps = slot_attention(slots, keys, values)
    torch.testing.assert_close(assignments.sum(1), torch.ones(2, 64))
    torch.testing.assert_close(maps.sum(2), torch.ones(2, 5))
    assert (updates <= values.amax(1, keepdim=True) + 1e-5).all() and (
        updates >= values.amin(1, keepdim=True) - 1e-5
    ).all()
    updates.square().sum().backward()
    assert slots.grad.isfinite().all()


def test_a_slot_that_loses_everywhere_still_has_a_map():
    slots = torch.tensor([[[500.0], [-500.0]]])
    keys = torch.linspace(1.0, 2.0, 6)[None, :, None]
    _, assignments, maps = slot_attention(slots, keys, keys)
    assert (assignments[0, 1] == 0).all()
    assert maps[0, 1].sum() == pytest.approx(1.0) and maps[0, 1].argmax() == 0


def test_maps_are_a_mean_so_repeating_positions_changes_no_update():
    slots, keys, values = (torch.randn(2, rows, 4, dtype=torch.float64) for rows in (3, 9, 9))
    once, twice = (slot_attention(slots, keys.repeat(1, k, 1), values.repeat(1, k, 1))[0] for k in (1, 2))
    torch.testing.assert_close(once, twice)


def test_gradients():
    inputs = [torch.randn(2, rows, 3, dtype=torch.float64, requires_grad=True) for rows in (2, 4, 4)]
    assert torch.autograd.gradcheck(slot_attention, inputs)
