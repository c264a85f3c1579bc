"""Slot attention's kernels: outputs and gradients, sharpness, views, sizes and offsets beyond 32 bits."""

import pytest
import torch

from aime_kernels import slot_attention
from aime_kernels.slot_attention.op import reference, slot_attention_backward, slot_attention_operator


def draw(n, s, p, d, device, dtype=torch.float32):
    return [torch.randn(n, rows, d, dtype=dtype).to(device) for rows in (s, p, p)]


def with_gradients(function, inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outs = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum() for o in outs)
    return [*outs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("shape", [(3, 5, 64, 64), (1, 1, 1, 1), (2, 3, 7, 5), (2, 8, 256, 16), (2, 5, 16, 8)])
def test_outputs_and_gradients(shape, device):
    inputs = draw(*shape, device)
    exact = with_gradients(reference, [x.double() for x in inputs])
    for found, expected in zip(with_gradients(slot_attention, inputs), exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-6 * (1 + expected.abs().max().item()))


@pytest.mark.parametrize("sharpness", [30.0, 1000.0])
def test_sums_to_one_and_stays_finite_however_sharp(sharpness, device):
    slots, keys, values = draw(2, 5, 64, 16, device)
    found = with_gradients(slot_attention, [sharpness * slots, sharpness * keys, values])
    torch.testing.assert_close(found[1].sum(1), torch.ones(2, 64, device=device))
    torch.testing.assert_close(found[2].sum(2), torch.ones(2, 5, device=device))
    assert all(x.isfinite().all() for x in found)


def test_a_slot_that_loses_everywhere_still_has_a_map(device):
    slots = torch.tensor([[[500.0], [-500.0]]], device=device)
    keys = torch.linspace(1.0, 2.0, 6, device=device)[None, :, None]
    _, assignments, maps = slot_attention(slots, keys, keys)
    assert (assignments[0, 1] == 0).all()
    assert maps[0, 1].sum().item() == pytest.approx(1.0) and maps[0, 1].argmax() == 0


def test_halves_of_one_projection_and_transposed_rows(device):
    slots, keys, values = draw(2, 5, 9, 8, device)
    both = torch.cat([keys, values], -1)
    turned = slots.transpose(1, 2).contiguous().transpose(1, 2), keys.transpose(1, 2).contiguous().transpose(1, 2)
    expected = with_gradients(slot_attention, [slots, keys, values])
    # Other strides may be read in another width, and summed in another order.
    torch.testing.assert_close(slot_attention(slots, *both.chunk(2, -1)), tuple(expected[:3]))
    assert all(torch.equal(a, b) for a, b in zip(slot_attention(*turned, values), expected[:3], strict=True))


@pytest.mark.slow
def test_offsets_beyond_32_bits(device, tmp_path):
    far = 2**31 + 64
    if device == "cpu":
        store = torch.from_file(str(tmp_path / "sparse"), shared=True, size=far + 64)  # takes no room on the disk
    else:
        store = torch.zeros(far + 64, device=device)
    keys = store.as_strided((2, 8, 4), (far, 4, 1))
    slots, near, values = draw(2, 3, 8, 4, device)
    keys.copy_(near)
    for found, expected in zip(slot_attention(slots, keys, values), slot_attention(slots, near, values), strict=True):
        assert torch.equal(found, expected)


def test_no_frames_give_nothing(device):
    assert [tuple(x.shape) for x in slot_attention(*draw(0, 3, 4, 2, device))] == [(0, 3, 2), (0, 3, 4), (0, 3, 4)]


def test_gradients_of_the_kernels_in_double_precision(device):
    inputs = [x.requires_grad_() for x in draw(2, 2, 3, 3, device, torch.float64)]
    assert torch.autograd.gradcheck(slot_attention, inputs, fast_mode=True)
    for one, other in zip(with_gradients(slot_attention, inputs), with_gradients(reference, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_what_the_kernels_are_not_built_for_is_refused(device, monkeypatch):
    for shape, words in [((1, 9, 4, 4), "9 slots"), ((1, 2, 65, 64), "65 positions"), ((1, 2, 0, 4), "0 positions")]:
        with pytest.raises(ValueError, match=words):
            slot_attention(*draw(*shape, device))
    slots, keys, values = draw(1, 2, 3, 4, device)
    with pytest.raises(ValueError, match="do not fit"):
        slot_attention(slots, keys[:, :2], values)
    with pytest.raises(ValueError, match="float16"):
        slot_attention(slots, keys.half(), values)
    with pytest.raises(ValueError, match=r"tensors on .*meta"):
        slot_attention(slots, keys.to("meta"), values)
    monkeypatch.setenv("AIME_KERNELS", "auto")
    many = draw(1, 9, 4, 4, device)
    assert all(torch.equal(a, b) for a, b in zip(slot_attention(*many), reference(*many), strict=True))


def test_operators_and_a_graph_around_them(device):
    inputs = draw(2, 2, 3, 4, device)
    torch.library.opcheck(slot_attention_operator, tuple(x.clone().requires_grad_() for x in inputs))
    updates, assignments, maps = slot_attention(*inputs)
    torch.library.opcheck(slot_attention_backward, (*inputs, assignments, maps, updates, assignments, maps))
    compiled = torch.compile(slot_attention, fullgraph=True, backend="aot_eager")
    for one, other in zip(with_gradients(compiled, inputs), with_gradients(slot_attention, inputs), strict=True):
        torch.testing.assert_close(one, other)
