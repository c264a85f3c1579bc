import sys
from types import SimpleNamespace

import numpy as np
import pytest

from aime_fast.data.collect.policies import OrnsteinUhlenbeck, act, find_policy
from aime_fast.errors import UserError

STEPS = 200_000


def spec(low=-1.0, high=1.0, size=1):
    return SimpleNamespace(shape=(size,), minimum=np.full(size, low), maximum=np.full(size, high))


def step(first):
    return SimpleNamespace(first=lambda: first)


def run(policy, action_spec, steps):
    generator = np.random.default_rng(0)
    return np.stack([policy(None, step(t == 0), action_spec, generator) for t in range(steps)])


def test_ornstein_uhlenbeck_has_the_spread_and_memory_of_the_theory():
    policy, states = OrnsteinUhlenbeck(), []
    generator, bounds = np.random.default_rng(0), spec()
    for t in range(STEPS):
        action = policy(None, step(t == 0), bounds, generator)
        states.append(policy.state[0])
        assert action[0] == min(max(policy.state[0], -1), 1)
    x, decay = np.array(states), 1 - 0.15
    spread = 0.4 / np.sqrt(1 - decay**2)
    # The effective sample of a process with this memory is STEPS (1 - decay) / (1 + decay), here 16,000.
    error = 1 / np.sqrt(STEPS * (1 - decay) / (1 + decay))
    assert abs(x.mean()) < 5 * spread * error
    assert x.std() == pytest.approx(spread, rel=5 * error)
    for lag in (1, 5, 10):
        assert np.corrcoef(x[:-lag], x[lag:])[0, 1] == pytest.approx(decay**lag, abs=5 * error)
    # And its increments are those of the equation.
    noise = x[1:] - decay * x[:-1]
    assert noise.std() == pytest.approx(0.4, rel=0.01)
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.012


def test_ornstein_uhlenbeck_begins_again_with_each_episode():
    policy = OrnsteinUhlenbeck()
    generator = np.random.default_rng(0)
    first = [policy(None, step(True), spec(size=1000), generator) for _ in range(3)]
    assert all(x.std() == pytest.approx(0.39, abs=0.04) for x in first)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.1, 0.3), (2.0, 4.0)])
def test_random_actions_fill_the_bounds(low, high):
    actions = run(find_policy("random"), spec(low, high), 20_000)
    assert actions.min() >= low and actions.max() <= high
    quarters, _ = np.histogram(actions, 4, (low, high))
    assert abs(quarters - 5000).max() < 5 * np.sqrt(5000 * 0.75)


@pytest.mark.parametrize("name", ["ou", "random"])
def test_an_action_without_limits_stays_within_one(name):
    actions = run(find_policy(name), spec(-1e10, 1e10), 1000)
    assert 0.9 < abs(actions).max() <= 1


@pytest.mark.parametrize("name", ["made_policies:noise", "os.path:join"])
def test_a_function_of_the_user_is_found(name):
    assert callable(find_policy(name))


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "steady.py").write_text("def hold(*_): return [0.5]\ndef broken(*_): return {}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert act(find_policy("steady:hold"), "steady:hold", None, step(True), spec(), None) == np.float32(0.5)
    (tmp_path / "wrong.py").write_text("import nothing_like_this\n")
    with pytest.raises(UserError, match=r"wrong cannot be imported \(ModuleNotFoundError: .*nothing_like_this"):
        find_policy("wrong:f")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clever", "unknown policy 'clever'; choose one of ou, random"),
        (":f", "unknown policy ':f'"),
        ("no_such_module:f", "no_such_module cannot be imported"),
        ("made_policies:missing", "made_policies has no function 'missing'"),
        ("made_policies:not_a_function", "made_policies has no function 'not_a_function'"),
    ],
)
def test_a_policy_that_is_none(name, words):
    with pytest.raises(UserError, match=words):
        find_policy(name)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([0.0], r"returned shape \[1\], the actions are \[2\]"),
        ([0.0, 1.5], r"returned 1\.5 as action number 1; keep to \[-1\.0, 1\.0\]"),
        ([np.nan, 0.0], "returned nan as action number 0"),
        ("left", "raised ValueError"),
        (None, "returned shape"),
    ],
)
def test_what_is_no_action_is_refused(action, words):
    with pytest.raises(UserError, match=words):
        act(lambda *_: action, "my:own", None, step(True), spec(size=2), None)


def test_bounds_are_compared_as_the_actions_are_stored():
    tenth = spec(-0.1, 0.1)
    assert act(lambda *_: tenth.maximum, "my:own", None, step(True), tenth, None) == np.float32(0.1)
