"""The protocol on a model whose reconstruction is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import reconstruction_psnr


class Dimmed(nn.Module):
    """Reconstructs each frame a tenth of the range too dark, in the second window two tenths."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, frames, actions):
        assert not self.training
        assert frames.dtype == torch.float32
        return SimpleNamespace(observations=frames)

    def reconstruct(self, outputs):
        frames = outputs.observations
        return frames - torch.where(frames[:, :1, :1, :1, :1] > 0.5, 0.4, 0.2)


def batch_of(*levels):
    frames = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 5, 8, 8, 3).contiguous()
    size = frames.shape[:2]
    return Batch(frames, torch.zeros(*size, 2), torch.zeros(size), torch.zeros(size, dtype=torch.bool))


def test_frames_count_alike_whatever_the_batch():
    model = Dimmed().train()
    first, second = -20 * torch.log10(torch.tensor([0.1, 0.2])).double()
    expected = (3 * first + second) / 4
    for batches in ([batch_of(150, 150, 150, 220)], [batch_of(150), batch_of(150, 220, 150)]):
        assert reconstruction_psnr(model, batches) == pytest.approx(expected.item(), abs=1e-4)
    assert model.training


def test_no_windows_is_an_error():
    with pytest.raises(ValueError, match="no windows"):
        reconstruction_psnr(Dimmed(), [])
