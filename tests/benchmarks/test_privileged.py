"""The learner that is given the simulator's state: what it reads is invertible, and it learns a known system."""

import numpy as np
import torch

from aime_fast.data.shards.states import StateLayout
from benchmarks.horizon.privileged import Learner, as_states, seen

LAYOUT = StateLayout(["height", "way", "turn"], ["v1", "v2", "v3"], angles=["turn"], unseen=["way"])


def test_positions_come_back_from_what_is_learnt():
    states = np.random.default_rng(0).normal(size=(9, 8))  # time, three positions, three velocities, one more
    states[:, 3] = np.linspace(-7, 7, 9)  # more than a turn
    values = seen(states, LAYOUT)
    assert values.shape == (9, 3 + 1 + 3)
    again = as_states(values[4:], states[3], LAYOUT)
    np.testing.assert_allclose(again[:, 1:3], states[4:, 1:3], atol=1e-12)
    np.testing.assert_allclose(np.exp(1j * again[:, 3]), np.exp(1j * states[4:, 3]), atol=1e-12)
    np.testing.assert_array_equal(again[:, 4:], np.repeat(states[3:4, 4:], 5, 0))  # only positions are drawn


def test_a_pushed_swing_is_followed_and_other_pushes_lead_elsewhere():
    generator = torch.Generator().manual_seed(0)
    turn = torch.tensor([[0.95, 0.2], [-0.2, 0.95]])

    def swing(start, pushes):
        path = [start]
        for push in pushes[:-1]:
            path.append(path[-1] @ turn.T + torch.tensor([0.0, 0.3]) * push)
        return torch.stack(path)

    pushes = [torch.randn(50, 1, generator=generator) for _ in range(12)]
    paths = [swing(torch.randn(2, generator=generator), push) for push in pushes]
    torch.manual_seed(0)
    learner = Learner(paths[:10], pushes[:10], networks=2, width=64)
    learner.learn(600)
    start = torch.stack([path[0] for path in paths[10:]])
    truth = torch.stack([path[1:11] for path in paths[10:]])
    own, other = (learner.follow(start, torch.stack(p)[:, :10]).mean(1) for p in (pushes[10:], pushes[8:10]))
    variance = torch.cat(paths).var()
    assert (own - truth).square().mean() < 0.02 * variance
    assert (other - truth).square().mean() > 0.2 * variance
