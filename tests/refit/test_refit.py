"""What reads h learns anew: from the latents alone, nothing else changes, and few frames are not learnt by heart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from held_episodes import held_episodes

from aime_fast.config import LossConfig, ModelConfig
from aime_fast.errors import UserError
from aime_fast.model.priors.gaussian import GaussianDistribution
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as Model
from aime_fast.refit import ahead, choice, fit, learning, perceived
from aime_fast.refit.ahead import latents_ahead
from aime_fast.refit.choice import fit_choice
from aime_fast.refit.fit import PARTS, refit
from aime_fast.refit.objective import Objective, _kept
from aime_fast.refit.perceived import perceive
from aime_fast.tasks.registry import make_tasks
from aime_fast.tasks.task import belongs

SIDE, LENGTH = 16, 6
SMALL = dict(
    image_size=SIDE, action_dim=1, latent_dim=8, hidden_dim=24, mlp_dim=32, grid=4, encoder_width=8, decoder_width=8,
    max_components=3, context_dim=8, num_slots=2, slot_dim=8, num_codes=8, code_dim=8, tokenizer_width=8,
    perceiver_latents=2, perceiver_dim=16, perceiver_layers=1, perceiver_heads=2, num_mixtures=2, kl_samples=2,
)  # fmt: skip
TASKS = ("elbo", "perceiver", "predictive", "reward")


def pushed(episodes=12, length=20, seed=0, shuffled=False):
    """A bright column that each action moves by up to three pixels, round the frame; its place is the reward.

    `shuffled` gives every frame the action of another one.
    """
    random = np.random.default_rng(seed)
    actions = random.uniform(-1, 1, (episodes, length)).astype(np.float32)
    place = random.uniform(0, SIDE, (episodes, 1)) + np.cumsum(3 * actions, 1) - 3 * actions
    distance = np.abs((np.arange(SIDE) - place[..., None] + SIDE / 2) % SIDE - SIDE / 2)
    columns = (255 * np.clip(1.5 - distance / 2, 0, 1)).astype(np.uint8)
    pixels = np.broadcast_to(columns[:, :, None, :, None], (episodes, length, SIDE, SIDE, 3))
    told = random.permutation(actions.flatten()).reshape(actions.shape) if shuffled else actions
    return held_episodes(pixels, told[..., None], np.cos(2 * np.pi * (place + 3 * actions) / SIDE))


def model(tasks=TASKS):
    torch.manual_seed(0)
    made = Model.from_config(ModelConfig(**SMALL))
    made.add_heads(make_tasks(tasks))
    made.prepare(torch.full((3, SIDE, SIDE), -0.7), 100)
    return made.eval()


def fitted(store, steps, tasks=TASKS, **options):
    notes: list[str] = []
    found = refit(model(tasks), store, make_tasks(tasks), LossConfig(), LENGTH, steps, note=notes.append, **options)
    return found, notes


def errors_of(lines):
    return [float(line.split("ahead ")[1].split()[0]) for line in lines]


def test_only_what_reads_h_and_what_is_kept_change():
    before = model().state_dict()
    found, _ = fitted(pushed(4), 3, held_out=pushed(1, seed=1))
    after = found.model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert {name.split(".")[0] for name in changed} == {*PARTS, "decoder"}
    assert all(belongs(name, PARTS) or name.startswith("decoder.keeping.") for name in changed)
    assert all(
        p.requires_grad == q.requires_grad for p, q in zip(found.model.parameters(), model().parameters(), strict=True)
    )
    assert not found.model.training and found.model.prior.frames_in_data == 100


def test_actions_are_learnt_where_they_say_what_follows():
    """The latents of both recordings are the same; only in one of them the actions lead from frame to frame."""
    true, wrong = (fitted(pushed(24, shuffled=shuffled), 200, rate=0.01)[0] for shuffled in (False, True))
    assert true.nats < wrong.nats - 0.5


def test_the_reward_head_learns_with_it():
    found, _ = fitted(pushed(24), 200, rate=0.01)
    new = pushed(8, LENGTH, seed=1)
    outputs = perceive(found.model, new, LENGTH).example  # of the eight windows in one pass
    read = make_tasks(TASKS)[-1].predictions(outputs.heads["reward"])["reward"][:, 1:]
    rewards = torch.from_numpy(new.rewards).view(8, LENGTH)[:, :-1]  # a reward is read a frame later
    assert torch.stack([read.flatten(), rewards.flatten()]).corrcoef()[0, 1] > 0.8


def test_few_frames_are_not_learnt_by_heart():
    """Three episodes whose actions mean nothing: the fit ends by itself, at its best, and learns from all then."""
    found, notes = fitted(pushed(3, 40, shuffled=True), 2000, rate=0.01)
    first = next(i for i, line in enumerate(notes) if "was best" in line)
    best, again, nats = notes[first : first + 3]
    assert best == f"step {found.step} was best: error ahead {found.error:.2f} dB, kept aside"
    assert again == f"now {found.step} steps on all 3 episodes, those kept aside too"
    assert nats.startswith(f"z costs {found.nats:.1f} nats a frame, kept aside")
    told = [line for line in notes[:first] if "/2000" in line]
    steps = [int(line.split("/")[0].split()[1]) for line in told]
    assert steps[-1] < 2000 and errors_of(told)[-1] > found.error


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone():
    store, made = pushed(3), model().train()
    before = torch.get_rng_state()
    refit(made, store, make_tasks(TASKS), LossConfig(), LENGTH, 2, note=lambda _: None)
    assert torch.equal(before, torch.get_rng_state()) and made.training
    first, second, third = (fitted(store, 5, seed=seed)[0].model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert not torch.equal(first["dynamics.start"], third["dynamics.start"])


def test_means_ahead_are_what_imagination_draws_without_noise(monkeypatch):
    monkeypatch.setattr(GaussianDistribution, "sample", lambda self, noise: self.mean)
    torch.manual_seed(0)
    made = Model.from_config(ModelConfig(**SMALL, prior="gaussian")).eval()
    batch = pushed(3).gather(np.array([[0, 0], [1, 7], [2, 14]]), LENGTH)
    state = made.observe(batch.frames()[:, :3], batch.actions)
    imagined = made.imagine(state, batch.actions[:, 2:-1]).latent
    found = latents_ahead(made, state.latent, batch.actions, far=3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, imagined)


@pytest.mark.parametrize(("deviations", "decibels"), [(1.0, 0.0), (10.0, 20.0), (0.1, -20.0)])
def test_errors_ahead_are_in_deviations_of_the_posterior(monkeypatch, deviations, decibels):
    windows = perceive(model(), pushed(3), LENGTH).frames.windows(torch.tensor([0, 7]), LENGTH)
    windows = replace(windows, log_var=windows.log_var[:1, :1].expand_as(windows.log_var))
    off = windows.mean[:, 3:] + deviations * (0.5 * windows.log_var[:, 3:]).exp()
    monkeypatch.setattr(ahead, "latents_ahead", lambda *_: off)
    assert ahead.error_ahead(model(), windows, seed=0) == pytest.approx(decibels, abs=1e-3)


def test_the_choice_keeps_what_z_does_not_tell():
    """Still squares, each episode's in another place, and z of another episode: only the frame before shows them."""
    random = np.random.default_rng(0)
    pixels = np.full((4, 12, SIDE, SIDE, 3), 20, np.uint8)
    for episode in pixels:
        x, y = random.integers(0, SIDE - 4, 2)
        episode[:, y : y + 4, x : x + 4] = 240
    store = held_episodes(pixels, np.zeros((4, 12, 1), np.float32), np.zeros((4, 12), np.float32))
    made = model(TASKS[:3])
    recording = perceive(made, store, LENGTH)

    def error():
        batch = store.gather(np.array([[e, 0] for e in range(4)]), LENGTH).frames()
        latent = recording.frames.windows(torch.tensor([12, 24, 36, 0]), LENGTH).mean  # of another episode
        with torch.no_grad():
            return float((made.likelihood(latent[:, 1:], batch[:, :-1]).mean() - batch[:, 1:]).square().mean())

    before = error()
    assert fit_choice(made, store, recording, store, LENGTH, LossConfig(), 100, seed=0)
    assert error() < 0.2 * before


def test_a_choice_that_does_worse_is_not_taken(monkeypatch):
    monkeypatch.setattr(choice, "RATE", 1e3)  # far beyond what can learn
    made, store = model(TASKS[:3]), pushed(3)
    recording, before = perceive(made, store, LENGTH), made.state_dict()
    before = {name: x.clone() for name, x in before.items()}
    assert not fit_choice(made, store, recording, pushed(1, seed=1), LENGTH, LossConfig(), 5, seed=0)
    assert all(torch.equal(x, before[name]) for name, x in made.state_dict().items())


def test_windows_of_one_frame_say_so():
    with pytest.raises(UserError, match="windows have one frame"):
        refit(model(), pushed(3), make_tasks(TASKS), LossConfig(), 1)


@pytest.mark.parametrize("prior", ["gaussian", "dpgmm-frame"])
def test_other_priors_are_fitted_too(prior):
    torch.manual_seed(0)
    made = Model.from_config(ModelConfig(**SMALL, prior=prior)).eval()
    found = refit(made, pushed(3), make_tasks(TASKS[:3]), LossConfig(), LENGTH, 3, note=lambda _: None)
    assert np.isfinite(found.nats)


@pytest.mark.parametrize("length", [LENGTH, LENGTH + 1, 2 * LENGTH, 20])
def test_every_frame_is_perceived_as_in_a_pass_over_its_window(length):
    store, made = pushed(3, length), model()
    found = perceive(made, store, LENGTH)
    assert found.lengths == [length] * 3 and found.frames.mean.shape == (3 * length, 8)
    batch = store.gather(np.array([[1, length - LENGTH]]), LENGTH)
    with torch.no_grad():
        outputs = made(batch.frames(), batch.actions)
    last = slice(2 * length - LENGTH, 2 * length)
    torch.testing.assert_close(found.frames.mean[last], outputs.posterior_mean[0])
    torch.testing.assert_close(found.frames.maps[last], outputs.attention.maps[0])
    assert torch.equal(found.frames.actions, torch.from_numpy(store.actions))
    assert torch.equal(found.frames.rewards, torch.from_numpy(store.rewards))
    assert found.frames.dones.nonzero().flatten().tolist() == [length - 1, 2 * length - 1, 3 * length - 1]


def test_windows_lie_inside_episodes():
    store = pushed(3, 10)
    found = perceive(model(), store, LENGTH)
    assert found.firsts(LENGTH, range(1, 3)).tolist() == [*range(10, 15), *range(20, 25)]
    window = found.frames.windows(torch.tensor([3, 14]), LENGTH)
    assert torch.equal(window.mean[1], found.frames.mean[14:20]) and window.batch().rewards.shape == (2, LENGTH)


def test_long_recordings_are_thinned_and_short_episodes_left_out(monkeypatch):
    monkeypatch.setattr(perceived, "MOST", 90)
    found = perceive(model(), pushed(12, 20), LENGTH)
    assert len(found.lengths) == 4 and len(found.frames.mean) == 80
    store = pushed(4, 20)
    names = ("actions", "rewards", "dones", "terminated")
    cut = replace(store, lengths=[20, 20, 20, 3], **{n: getattr(store, n)[:63] for n in names})
    assert perceive(model(), cut, LENGTH).lengths == [20, 20, 20]
    with pytest.raises(UserError, match="1 training episodes have 6 frames or more, and two are needed"):
        perceive(model(), replace(cut, lengths=[20, 3, 3, 3]), LENGTH)


def test_the_average_forgets_the_first_weights_soon(monkeypatch):
    """After 25 steps the averaged model is clearly better than after five."""
    monkeypatch.setattr(fit, "EVERY", 5)
    monkeypatch.setattr(learning, "TOLD", 5)
    _, notes = fitted(pushed(24), 25, rate=0.01)
    errors = errors_of(line for line in notes if "error ahead" in line and "/25" in line)
    assert len(errors) == 5 and errors[-1] < errors[0] - 0.5


def test_maps_are_predicted_better_than_by_copying():
    """Slots follow the column, and where it goes depends on the action."""
    store = pushed(24)
    recording = perceive(model(), store, LENGTH)
    windows = recording.frames.windows(recording.firsts(LENGTH, range(22, 24)), LENGTH)
    objective = Objective(make_tasks(TASKS), LossConfig(), recording.example)
    found, notes = fitted(store, 200, rate=0.01)
    untrained = model()  # its top-down attention is a copy
    assert objective.map_error(found.model, windows) < 0.8 * objective.map_error(untrained, windows)
    assert any("KL of a map" in line for line in notes)


def test_dropped_numbers_are_zero_and_the_mean_stays():
    def kept(share):
        return _kept((20, 10, 100), share, torch.Generator().manual_seed(3))

    assert set(kept(0.5).unique().tolist()) == {0.0, 2.0} and abs(float(kept(0.5).mean()) - 1) < 0.05
    assert torch.equal(kept(0.5), kept(0.5)) and (kept(0.0) == 1).all()
