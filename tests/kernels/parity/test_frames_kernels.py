"""Frames through the kernel, level for level."""

import pytest
import torch

from aime_kernels import normalise_frames
from aime_kernels.frames.op import frames_operator, reference


def levels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


SIDES = [(1, 1), (5, 7), (32, 32), (33, 40), (64, 64), (96, 96), (128, 128)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("count", [(1, 2), (2, 1)])
def test_levels_are_exactly_those_of_the_reference(sides, count, device):
    frames = levels(*count, *sides, 3)
    found = normalise_frames(frames.to(device))
    assert found.is_contiguous() and torch.equal(found.cpu(), reference(frames))
    assert torch.equal(((found + 1) * 127.5).round().byte().cpu(), frames.movedim(-1, 2))


def test_strided_frames(device):
    frames = levels(2, 3, 6, 5, 3)
    found = normalise_frames(frames.flip(3).to(device).flip(3)[:, ::2])
    assert torch.equal(found.cpu(), reference(frames[:, ::2]))


def test_empty_and_wrong_inputs(device):
    assert normalise_frames(levels(0, 3, 4, 4, 3).to(device)).shape == (0, 3, 3, 4, 4)
    for wrong in (levels(1, 2, 4, 4, 3).float(), levels(2, 4, 4, 3), levels(1, 2, 4, 4, 1)):
        with pytest.raises(ValueError, match="built for uint8"):
            normalise_frames(wrong.to(device))


def test_operator_and_a_graph_around_it(device):
    frames = levels(2, 2, 4, 4, 3).to(device)
    torch.library.opcheck(frames_operator, (frames[0],))
    compiled = torch.compile(normalise_frames, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(frames), normalise_frames(frames))
