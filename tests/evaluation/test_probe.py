"""The probe on models that know the simulator's state, or not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_windows import windows_of
from torch import nn

from aime_fast.data.shards.states import KeptStates, StateLayout
from aime_fast.evaluation.linear import fit_pca
from aime_fast.evaluation.probe import SETTLED, probe, probe_r2

T, EPISODES = 20, 10


def test_r2_of_a_linear_system_with_known_noise():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 4, generator=draw, dtype=torch.float64)
    signal = x @ torch.randn(4, 3, generator=draw, dtype=torch.float64)
    signal = signal / signal.std(0) * torch.tensor([1e-3, 1.0, 1e3])
    scale = torch.tensor([0.0, 1.0, 3.0]) * signal.std(0)
    y = signal + scale * torch.randn(6000, 3, generator=draw, dtype=torch.float64)
    found = probe_r2(x[:4000], y[:4000], x[4000:], y[4000:])
    # 1 / (1 + noise variance); its standard error with 2000 rows is about 0.02.
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 0.1]).double(), atol=0.05, rtol=0)


def test_a_coordinate_that_hardly_moves_on_held_out_frames_is_left_out():
    """As the cosine of an angle near 0 there, which varied in training: any error would be many times its variance."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 3, generator=draw, dtype=torch.float64)
    y = x.clone()
    y[400:, 1] *= 0.05
    found = probe_r2(x[:400], y[:400], x[400:], y[400:])
    assert found[1].isnan() and (found[[0, 2]] > 0.999).all()


class Reader(nn.Module):
    """z holds the position, which the frames show; h holds the velocity, or noise."""

    def __init__(self, knows):
        super().__init__()
        self.unused, self.knows = nn.Parameter(torch.zeros(1)), knows

    def forward(self, frames, actions):
        position = frames[:, :, 0, 0, 0][..., None].repeat(1, 1, 3)
        noise = torch.randn(*actions.shape[:2], 4, generator=torch.Generator().manual_seed(actions.shape[0]))
        hidden = torch.cat([actions[..., :1], noise], -1) if self.knows else noise
        return SimpleNamespace(posterior_mean=position, hidden_states=hidden)


def world():
    """Position in the frames, velocity in the action's first number, and the states that were kept of both."""
    draw = np.random.default_rng(0)
    position = draw.integers(0, 256, (EPISODES, T))
    velocity = draw.standard_normal((EPISODES, T))
    frames = [np.broadcast_to(row[:, None, None, None], (T, 16, 16, 3)).astype(np.uint8) for row in position]
    still = np.zeros((EPISODES, T))
    states = np.stack([still, position / 10.0, still, velocity * 5, still], -1).reshape(-1, 5)
    kept = KeptStates(states, T * np.arange(EPISODES + 1), StateLayout(["x", "y"], ["dx", "dy"], [], []), {})
    return frames, [row[:, None] for row in velocity], kept


@pytest.mark.parametrize("knows", [True, False])
def test_what_the_states_hold_is_found_and_nothing_else(knows):
    frames, actions, kept = world()
    train, held_out = (windows_of(frames[part], actions[part], 10, 10) for part in (slice(0, 7), slice(7, None)))
    model = Reader(knows).train()
    found = probe(model, train, held_out, kept, list(range(7)), [7, 8, 9])
    assert found.r2["z"]["position"]["x"] > 0.999
    assert np.isnan(found.r2["z"]["position"]["y"]), "what never changes has no R2"
    assert found.mean("z", "position") > 0.999
    assert found.r2["z"]["velocity"]["dx"] < 0.1
    assert (found.r2["h"]["velocity"]["dx"] > 0.95) is knows
    assert model.training
    assert found.r2.keys() == {"z", "h"}


def test_codes_of_frames_stand_next_to_the_model():
    frames, actions, kept = world()
    train, held_out = (windows_of(frames[part], actions[part], 10, 10) for part in (slice(0, 7), slice(7, None)))
    pca = fit_pca(torch.cat([batch.frames().flatten(0, 1).flatten(1) for _, batch in train.parts()]), 3)
    found = probe(Reader(True), train, held_out, kept, list(range(7)), [7, 8, 9], pca).r2
    assert found["PCA codes"]["position"]["x"] > 0.999
    assert found["PCA codes of two frames"]["position"]["x"] > 0.999
    assert found["PCA codes of two frames"]["velocity"]["dx"] < 0.1


def test_episodes_are_found_by_their_number():
    """A split in which the episodes of the recording are out of order: states must follow."""
    frames, actions, kept = world()
    order = [4, 1, 9, 0, 3]
    train = windows_of([frames[e] for e in order], [actions[e] for e in order], 10, 10)
    held_out = windows_of([frames[e] for e in (2, 8)], [actions[e] for e in (2, 8)], 10, 10)
    assert probe(Reader(True), train, held_out, kept, order, [2, 8]).r2["z"]["position"]["x"] > 0.999
    assert probe(Reader(True), train, held_out, kept, order[::-1], [2, 8]).r2["z"]["position"]["x"] < 0.5
    assert SETTLED < 10
