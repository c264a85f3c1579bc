"""The network of returns, on recordings whose returns are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from held_episodes import held_episodes

from aime_fast.control import returns
from aime_fast.control.returns import fit_returns, returns_to_go
from aime_fast.errors import UserError
from aime_fast.model.state import LatentState

SIDE, DISCOUNT = 8, 0.8


class Bright:
    """A stand-in for a model: z is the mean brightness of a frame, h is zero."""

    def observe(self, frames, actions):
        z = frames.float().mean((2, 3, 4), keepdim=True)[..., 0, 0]
        return LatentState(z, *(torch.zeros_like(z) for _ in range(3)))

    training = False

    def eval(self):
        return self

    def train(self, mode):
        return self

    def parameters(self):
        return iter([torch.zeros(1)])


def recording(episodes=20, length=80, ends=False, seed=0):
    """The brightness goes round; each frame's reward is its own brightness in [0, 1]."""
    random = np.random.default_rng(seed)
    phase = random.uniform(0, 2 * np.pi, (episodes, 1)) + 0.2 * np.arange(length)
    level = (0.5 + 0.5 * np.sin(phase)).astype(np.float32)
    pixels = np.broadcast_to(
        (255 * level).round().astype(np.uint8)[..., None, None, None], (*level.shape, SIDE, SIDE, 3)
    )
    return held_episodes(pixels, np.zeros((*level.shape, 1)), level, terminated=ends)


def test_returns_to_go_are_the_sums_they_stand_for():
    rewards = torch.rand(9, generator=torch.Generator().manual_seed(0))
    for t, found in enumerate(returns_to_go(rewards, DISCOUNT)):
        wanted = sum(DISCOUNT**k * float(rewards[t + k]) for k in range(9 - t))
        assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_it_reads_what_one_frame_shows_of_the_return():
    """Brightness alone leaves open whether it rises, so the best reading is the mean of both: known in closed form."""
    notes: list[str] = []
    store = recording()
    head = fit_returns(Bright(), store, DISCOUNT, note=notes.append)
    level = torch.linspace(0.05, 0.95, 19)
    state = LatentState((2 * level - 1)[None, :, None], *(torch.zeros(1, 19, 1) for _ in range(3)))
    # sum_k g^k (1 + sin(p + 0.2 k)) / 2; rising and falling have the phases p and pi - p, so cosines cancel.
    powers = DISCOUNT ** np.arange(200)
    wanted = powers.sum() / 2 + (2 * level - 1) / 2 * float((powers * np.cos(0.2 * np.arange(200))).sum())
    torch.testing.assert_close(head(state)[0], wanted.float(), atol=0.25, rtol=0)  # returns span 0.3 to 4.7
    assert "2 episodes that the fit left out" in notes[0]
    assert not any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("length", [4, 30, 64, 100, 123, 150])
@pytest.mark.parametrize("ends", [False, True])
def test_every_settled_frame_whose_return_is_known_counts_once(length, ends):
    """0.8^14 is below 5 %: a frame of the last 14 lacks more, unless the task ended there and nothing follows."""
    store = recording(3, length, ends)
    inputs, wanted, episodes = returns._examples(Bright(), store, DISCOUNT)
    rewards = torch.from_numpy(store.rewards).view(3, length)
    whole = torch.stack([returns_to_go(each, DISCOUNT) for each in rewards])
    settled = slice(returns.SETTLED, length if ends else max(0, length - 14))
    number = whole[:, settled].shape[1]
    assert torch.equal(episodes, torch.arange(3).repeat_interleave(number))
    torch.testing.assert_close(wanted, whole[:, settled].flatten().float())
    if number:
        torch.testing.assert_close(inputs[:, 0], 2 * rewards[:, settled].flatten() - 1, atol=0.01, rtol=0)  # 256 levels


def test_short_episodes_count_too_and_do_not_shorten_the_windows_of_the_others():
    store = recording(4, ends=True)
    names = ("actions", "rewards", "dones", "terminated")
    cut = replace(store, lengths=[80, 80, 80, 20], **{n: getattr(store, n)[:260] for n in names})
    _, _, episodes = returns._examples(Bright(), replace(cut, terminated=cut.dones.copy()), DISCOUNT)
    assert episodes.bincount().tolist() == [75, 75, 75, 20 - 14 - 5]  # the last was cut: it stopped without an end


def test_the_last_episodes_with_a_known_return_are_kept_aside():
    store = recording(4)
    names = ("actions", "rewards", "dones", "terminated")
    cut = replace(store, lengths=[80, 80, 80, 4], **{n: getattr(store, n)[:244] for n in names})
    notes: list[str] = []
    fit_returns(Bright(), cut, DISCOUNT, note=notes.append)
    assert "in 1 episodes that the fit left out" in notes[0] and "correlation" in notes[0]


def test_returns_that_do_not_vary_are_told_as_such(monkeypatch):
    monkeypatch.setattr(returns, "STEPS", 2)
    notes: list[str] = []
    store = recording(3)
    fit_returns(Bright(), replace(store, rewards=np.zeros_like(store.rewards)), DISCOUNT, note=notes.append)
    assert notes == ["returns: all equal in 1 episodes that the fit left out"]


def test_equal_seeds_give_equal_fits_and_leave_the_global_generator_alone(monkeypatch):
    monkeypatch.setattr(returns, "STEPS", 20)
    before = torch.get_rng_state()
    one, two, other = (fit_returns(Bright(), recording(4), DISCOUNT, seed, lambda _: None) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    first, second, third = (head.layers[0].weight for head in (one, two, other))
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_what_cannot_be_fitted_is_named():
    with pytest.raises(UserError, match="discount is 1"):
        fit_returns(Bright(), recording(), 1.0)
    with pytest.raises(UserError, match="no rewards"):
        fit_returns(Bright(), replace(recording(), has_rewards=False), DISCOUNT)
    with pytest.raises(UserError, match="0 of 4 episodes show a return"):
        fit_returns(Bright(), recording(4, 20), 0.99)
    with pytest.raises(UserError, match="1 of 1 episodes show a return"):
        fit_returns(Bright(), recording(1, 80), DISCOUNT)
