"""Windows copied frame by frame, and the 256 levels there and back."""

import pytest
import torch

from aime_kernels import gather_windows, normalise_frames


def test_gathered_windows_are_slices_of_the_store():
    store = torch.randint(0, 256, (11, 3, 5, 3), dtype=torch.uint8)
    starts = torch.tensor([0, 7, 3, 3])
    windows = gather_windows(store, starts, 4)
    assert windows.shape == (4, 4, 3, 5, 3) and windows.dtype == torch.uint8
    for window, start in zip(windows, starts.tolist(), strict=True):
        assert torch.equal(window, store[start : start + 4])


@pytest.mark.parametrize("start", [-1, 8])
def test_a_window_that_leaves_the_store_is_refused(start):
    with pytest.raises(IndexError):
        gather_windows(torch.zeros(11, 2, 2, 3, dtype=torch.uint8), torch.tensor([start]), 4)


def test_levels_survive_normalisation():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 2, 2, 64, 1).repeat(1, 1, 1, 1, 3)
    levels[..., 1] += 1
    frames = normalise_frames(levels)
    assert frames.shape == (1, 2, 3, 2, 64) and frames.dtype == torch.float32 and frames.is_contiguous()
    assert frames.min() == -1.0 and frames.max() == 1.0
    torch.testing.assert_close(frames.double(), levels.movedim(-1, 2).double() * (2 / 255) - 1, atol=2e-7, rtol=0)
    assert torch.equal(((frames + 1) * 127.5).round().byte(), levels.movedim(-1, 2))
