"""The reconstruction of a model whose errors are known."""

from types import SimpleNamespace

import numpy as np
import torch
from made_windows import windows_of
from torch import nn

from aime_fast.evaluation.reconstruction import judge_reconstruction


class Dimmed(nn.Module):
    """Reconstructs each frame a tenth of the range too dark, bright windows two tenths."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, frames, actions, draws):
        assert not self.training
        assert frames.dtype == torch.float32
        return SimpleNamespace(observations=frames)

    def reconstruct(self, outputs):
        frames = outputs.observations
        return frames - torch.where(frames[:, :1, :1, :1, :1] > 0.5, 0.4, 0.2)


def windows(*levels, frames=5):
    return windows_of(
        [np.full((frames, 16, 16, 3), level, np.uint8) for level in levels], [np.zeros((frames, 2))] * len(levels)
    )


def test_each_window_has_its_value():
    model = Dimmed().train()
    found = judge_reconstruction(model, windows(150, 150, 220, 150))
    first, second = (-20 * torch.log10(torch.tensor([0.1, 0.2])).double()).tolist()
    torch.testing.assert_close(found["psnr"], torch.tensor([first, first, second, first]).double(), atol=1e-4, rtol=0)
    assert found["moving"].isnan().all(), "nothing moves in an episode of equal frames"
    assert model.training


def test_many_windows_pass_in_parts():
    found = judge_reconstruction(Dimmed(), windows(*[150] * 19))
    assert found["psnr"].shape == (19,)
    assert (found["psnr"] - 20).abs().max() < 1e-3


def test_moving_pixels_alone():
    """Half of the frame moves, and the error is everywhere the same."""
    frames = np.full((6, 16, 16, 3), 100, np.uint8)
    frames[:, :8] = (20 + 30 * np.arange(6))[:, None, None, None]
    found = judge_reconstruction(Dimmed(), windows_of([frames], [np.zeros((6, 1))]))
    # Frames darker than a tenth of the range are clipped, the same in both.
    assert 19.9 < found["moving"].item() < 30
    assert found["psnr"].item() > 19.9
