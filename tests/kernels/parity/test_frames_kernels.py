"""Frames and windows through the kernel, level for level."""

import pytest
import torch

from aime_kernels import frames_to_levels, normalise_frames, normalised_windows
from aime_kernels.frames import reference
from aime_kernels.frames.op import _frames


def levels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(1, 2, 64, 64, 3), (2, 1, 5, 7, 3), (1, 1, 1, 1, 3), (1, 1, 33, 40, 3)])
def test_levels_are_exactly_those_of_the_reference(shape, device):
    frames = levels(*shape)
    found = normalise_frames(frames.to(device))
    assert found.is_contiguous() and torch.equal(found.cpu(), reference.normalise_frames(frames))
    assert torch.equal(frames_to_levels(found).cpu(), frames.movedim(-1, 2))


def test_windows(device):
    store, starts = levels(11, 6, 5, 3), torch.tensor([0, 7, 3, 3])
    found = normalised_windows(store.to(device), starts.to(device), 4)
    assert torch.equal(found.cpu(), reference.normalise_frames(reference.gather_windows(store, starts, 4)))
    flipped = store.flip(2).to(device).flip(2), starts.repeat_interleave(2)[::2].to(device)
    assert torch.equal(normalised_windows(*flipped, 4), found)


@pytest.mark.parametrize("start", [-1, 8, 2**40])
def test_a_frame_outside_the_store_is_not_a_number(start, device):
    found = normalised_windows(levels(11, 2, 2, 3).to(device), torch.tensor([start, 0], device=device), 4)
    assert found[0].isnan().any() and found[1].isfinite().all()
    assert found[0].isnan().flatten(1).all(1).tolist() == [not 0 <= start + t < 11 for t in range(4)]


@pytest.mark.slow
def test_offsets_beyond_32_bits(device, tmp_path):
    frames, side = 2**31 // (3 * 256 * 256) + 2, 256
    store = torch.from_file(str(tmp_path / "sparse"), shared=True, size=frames * 3 * side**2, dtype=torch.uint8)
    store = store.view(frames, side, side, 3)
    store[-1] = levels(side, side, 3)
    found = normalised_windows(store.to(device), torch.tensor([frames - 1], device=device), 1)
    assert torch.equal(found[0].cpu(), reference.normalise_frames(store[None, -1:])[0])


def test_empty_and_wrong_inputs(device):
    assert normalise_frames(levels(0, 3, 4, 4, 3).to(device)).shape == (0, 3, 3, 4, 4)
    store, starts = levels(5, 4, 4, 3).to(device), torch.tensor([0], device=device)
    assert normalised_windows(store, starts[:0], 2).shape == (0, 2, 3, 4, 4)
    for arguments, words in [
        ((store.float(), starts, 2), "built for uint8"),
        ((store, starts.int(), 2), "not int64"),
        ((store, starts, 0), "length of 0"),
        ((store[0], starts, 1), "is not"),
    ]:
        with pytest.raises(ValueError, match=words):
            normalised_windows(*arguments)


def test_operator_and_a_graph_around_it(device):
    store, starts = levels(5, 4, 4, 3).to(device), torch.tensor([1, 0], device=device)
    torch.library.opcheck(_frames, (store, starts, 2))
    torch.library.opcheck(_frames, (store, None, 1))
    compiled = torch.compile(normalised_windows, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(store, starts, 2), normalised_windows(store, starts, 2))
