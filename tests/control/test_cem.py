"""The search on dynamics whose best actions are known, and the return that the reward head reads."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aime_fast.config import preset_config
from aime_fast.control.cem import Search, imagined_return, plan
from aime_fast.errors import UserError
from aime_fast.model.state import LatentState
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.reward import Reward

GAIN = torch.tensor([[1.0, 0.3], [0.0, 0.7], [-0.4, 0.2]])
LIMITS = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])


def state_at(places):
    """A state of one frame for each place [B, 3]."""
    return LatentState(places[:, None], *(torch.zeros(len(places), 1, 1) for _ in range(3)))


class Cart:
    """z moves by `GAIN` a, plus noise of this deviation; keeps what it was asked."""

    def __init__(self, noise=0.0):
        self.noise, self.calls = noise, []

    def imagine(self, state, actions, samples=1, key=0, alike=False):
        self.calls.append((actions, samples, key, alike))
        moves = (actions @ GAIN.T).repeat_interleave(samples, 0).cumsum(1)
        places = state.latent.repeat_interleave(samples, 0) + moves
        return LatentState(
            places + self.noise * torch.randn(places.shape, generator=torch.Generator().manual_seed(key)),
            *(torch.zeros(*places.shape[:2], 1) for _ in range(3)),
        )


def near(goals):
    """Minus the summed squared distance to each sequence's own goal [B, 3]."""

    def value(state):
        own = goals.repeat_interleave(len(state.latent) // len(goals), 0)
        return -(state.latent - own[:, None]).square().sum((1, 2))

    return value


def best_actions(start, goal, search):
    """By least squares: the places are linear in the actions. [n, A]."""
    held = torch.arange(search.horizon) // search.hold
    counts = torch.stack([(held[: t + 1, None] == torch.arange(search.actions)).sum(0) for t in range(search.horizon)])
    matrix = torch.einsum("tn,da->tdna", counts.float(), GAIN).reshape(search.horizon * 3, -1)
    wanted = (goal - start).repeat(search.horizon)
    return torch.linalg.lstsq(matrix.double(), wanted.double()).solution.view(search.actions, 2)


@pytest.mark.parametrize(("horizon", "hold"), [(4, 1), (5, 2), (6, 6)])
def test_it_finds_the_least_squares_plan_of_every_start(horizon, hold):
    search = Search(horizon=horizon, hold=hold, candidates=1000, elites=100, rounds=20)
    starts = torch.tensor([[0.0, 0.0, 0.0], [0.5, -0.2, 0.1], [-0.3, 0.1, 0.0]])
    goals = torch.tensor([[0.6, 0.2, 0.1], [0.3, -0.4, 0.2], [-0.3, 0.1, 0.0]])
    generator = torch.Generator().manual_seed(0)
    found = plan(Cart(), near(goals), state_at(starts), LIMITS, search, generator)
    for b in range(3):
        wanted = best_actions(starts[b], goals[b], search)
        assert wanted.abs().max() < 0.99, "the bounds would change what is best"
        # The search narrows by the spread of its elites; after 20 rounds that is far below this.
        torch.testing.assert_close(found.actions[b].double(), wanted, atol=0.02, rtol=0)
    assert found.value.shape == (3,)


def test_one_call_a_round_imagines_all_candidates():
    cart, search = Cart(), Search(horizon=5, hold=2, candidates=7, elites=3, rounds=4, futures=3)
    generator = torch.Generator().manual_seed(1)
    found = plan(cart, near(torch.zeros(2, 3)), state_at(torch.zeros(2, 3)), LIMITS, search, generator)
    assert found.actions.shape == (2, 3, 2) and len(cart.calls) == 4
    for actions, samples, *_ in cart.calls:
        assert actions.shape == (14, 5, 2) and samples == 3
        assert (actions[:, 0] == actions[:, 1]).all() and (actions[:, 2] == actions[:, 3]).all()
    assert len({key for *_, key, _ in cart.calls}) == 4, "each round has its own draws"


def test_actions_stay_within_uneven_bounds():
    low, high = torch.tensor([0.2, -3.0]), torch.tensor([0.4, -1.0])
    cart, goal = Cart(), torch.tensor([[-9.0, 9.0, 9.0]])
    search, generator = Search(horizon=4, hold=2, candidates=50, elites=5, rounds=6), torch.Generator().manual_seed(0)
    found = plan(cart, near(goal), state_at(torch.zeros(1, 3)), (low, high), search, generator)
    for actions in [found.actions, *(actions for actions, *_ in cart.calls)]:
        assert ((actions >= low) & (actions <= high)).all()
    torch.testing.assert_close(found.actions[0, 0], torch.tensor([0.2, -1.0]), atol=0.02, rtol=0)


def test_equal_generators_give_equal_plans_and_a_start_is_used():
    goal, start = torch.tensor([[0.5, 0.1, 0.0]]), torch.full((1, 4, 2), 0.25)
    search = Search(candidates=20, elites=4, rounds=2)

    def found(seed, start=None):
        generator = torch.Generator().manual_seed(seed)
        return plan(Cart(0.1), near(goal), state_at(torch.zeros(1, 3)), LIMITS, search, generator, start).actions

    assert torch.equal(found(0), found(0)) and not torch.equal(found(0), found(1))
    assert not torch.equal(found(0), found(0, start))


def test_a_value_is_the_mean_of_the_futures():
    """A gamble that pays 1 in one future of two must not beat a sure 0.8."""

    class Gamble(Cart):
        def imagine(self, state, actions, samples=1, key=0, alike=False):
            pays = torch.tensor([0.0, 1.0]).repeat(len(actions))
            paid = torch.where(actions[:, 0, 0].repeat_interleave(2) > 0, pays, torch.full_like(pays, 0.8))
            return replace(state, latent=paid[:, None, None])

    search, generator = Search(horizon=1, hold=1, candidates=40, elites=5, futures=2), torch.Generator().manual_seed(0)
    found = plan(Gamble(), lambda s: s.latent[:, 0, 0], state_at(torch.zeros(1, 3)), LIMITS, search, generator)
    assert found.actions[0, 0, 0] < 0 and found.value == pytest.approx(0.8)


def test_the_return_counts_rewards_while_the_episode_goes_on():
    """By hand: the head's logits of two frames, as a loop over them would add them up."""
    task, draw = Reward(), torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 256, generator=draw)
    read = task.predictions(logits)
    wanted = []
    for row in range(3):
        total, alive = 0.0, 1.0
        for t in range(4):
            total += alive * float(read["reward"][row, t])
            alive *= float(read["continuation"][row, t])
        wanted.append(total)
    value = imagined_return(SimpleNamespace(heads={"reward": lambda state: logits}))
    torch.testing.assert_close(value(state_at(torch.zeros(3, 3))), torch.tensor(wanted))


def test_later_rewards_count_less_and_what_follows_counts_at_the_end():
    task, draw, discount = Reward(), torch.Generator().manual_seed(0), 0.9
    logits = torch.randn(3, 4, 256, generator=draw)
    read = task.predictions(logits)
    state = LatentState(torch.randn(3, 4, 2, generator=draw), *(torch.zeros(3, 4, 1) for _ in range(3)))
    wanted = []
    for row in range(3):
        total, counts = 0.0, 1.0
        for t in range(4):
            total += counts * float(read["reward"][row, t])
            counts *= discount * float(read["continuation"][row, t])
        wanted.append(total + counts * 7 * float(state.latent[row, 3, 0]))
    model = SimpleNamespace(heads={"reward": lambda state: logits})
    value = imagined_return(model, discount, lambda last: 7 * last.latent[..., 0])
    torch.testing.assert_close(value(state), torch.tensor(wanted))


def test_candidates_are_compared_under_the_same_random_numbers():
    cart = Cart(0.1)
    search = Search(horizon=2, hold=1, candidates=6, elites=2, rounds=2)
    goal = near(torch.ones(1, 3))
    plan(cart, goal, state_at(torch.zeros(1, 3)), LIMITS, search, torch.Generator().manual_seed(0))
    assert [alike for *_, alike in cart.calls] == [True, True]


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match="elites"):
        Search(candidates=4, elites=5)
    with pytest.raises(UserError, match="hold is 0"):
        Search(hold=0)
    model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(preset_config("debug").model, action_dim=2))
    with pytest.raises(UserError, match="no reward head"):
        imagined_return(model)
