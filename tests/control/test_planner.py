"""The planner as a policy of the simulator."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aime_fast.config import preset_config
from aime_fast.control import planner as planner_module
from aime_fast.control.cem import Plan, Search
from aime_fast.control.planner import Planner, simulate
from aime_fast.data.collect.simulation import Choices
from aime_fast.doctor import choose_graphics
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.registry import make_tasks

SEARCH = Search(horizon=4, hold=2, candidates=6, elites=2, rounds=2)
SPEC = SimpleNamespace(shape=(1,), minimum=np.array([-1.0]), maximum=np.array([1e10]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(preset_config("debug").model, action_dim=1))
    model.add_heads(make_tasks(["reward"]))
    return model


def act(policy, frame, first=False, seed=0):
    return policy(frame, SimpleNamespace(first=lambda: first), SPEC, np.random.default_rng(seed))


def frames(count):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_it_plans_from_the_filtered_state_and_holds_each_action(model, monkeypatch):
    """What it plans from is the state of `observe` on all frames and on the actions that it took."""
    states, starts = [], []

    def planned(model, value, state, bounds, search, generator, start):
        states.append(state)
        starts.append(start)
        assert torch.equal(bounds[0], torch.tensor([-1.0])) and torch.equal(bounds[1], torch.tensor([1.0]))
        first = len(states) / 10
        return Plan(torch.tensor([[[first], [0.0]]]), torch.tensor([[[0.0], [first + 0.5]]]), torch.zeros(1))

    monkeypatch.setattr(planner_module, "plan", planned)
    policy, seen = Planner(model, SEARCH), frames(5)
    actions = [act(policy, frame, first=t == 0) for t, frame in enumerate(seen)]
    np.testing.assert_allclose(np.concatenate(actions), [0.1, 0.1, 0.2, 0.2, 0.3])
    assert starts[0] is None and starts[1].flatten().tolist() == pytest.approx([0.6, 0.6])
    observed = model.observe(torch.from_numpy(seen).movedim(-1, 1)[None], torch.from_numpy(np.stack(actions))[None])
    for place, state in zip((0, 2, 4), states, strict=True):
        torch.testing.assert_close(state.latent, observed.at(place).latent, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(state.hidden, observed.at(place).hidden, atol=1e-4, rtol=1e-4)


def test_frames_of_another_size_are_resized_as_packing_does(model):
    large = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    means = np.rint(large.reshape(64, 2, 64, 2, 3).mean((1, 3))).astype(np.uint8)
    policy = Planner(model, SEARCH)
    assert np.array_equal(act(policy, large, first=True), act(policy, means, first=True))


def test_a_new_episode_forgets_the_one_before(model):
    policy, (one, two, three) = Planner(model, SEARCH), frames(3)
    fresh = act(policy, one, first=True)
    act(policy, two), act(policy, three)
    assert np.array_equal(act(policy, one, first=True), fresh) and fresh.dtype == np.float32
    assert not np.array_equal(act(policy, one, first=True, seed=1), fresh)


def test_policies_are_compared_from_equal_starts(model):
    pytest.importorskip("dm_control")
    if choose_graphics()[0] is None:
        pytest.skip("nothing renders here")
    choices = Choices(environment="cartpole_balance", length=5, policy="random", action_repeat=2, camera=0, seed=3)
    (random,) = simulate(choices, [1])
    planned, other = simulate(choices, [1, 2], Planner(model, SEARCH))
    assert np.array_equal(planned.observations[0], random.observations[0])
    assert not np.array_equal(planned.observations[0], other.observations[0])
    assert planned.actions[0] == planned.actions[1] and len(planned) == 5
    assert not np.array_equal(planned.actions, random.actions)
