"""The memory of latents: what it keeps, what it gives, and what learns from it."""

import pytest
import torch

from aime_fast.config.options import preset_config
from aime_fast.config.schema import LossConfig
from aime_fast.model.draws import make_draws
from aime_fast.model.latent_memory import WINDOWS, LatentMemory
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.aggregator import LossAggregator

B, T, A, EACH = 3, 5, 2, 4
PRIORS = ("dpgmm", "dpgmm-frame", "gaussian")


def made(prior="dpgmm"):
    """A small model, its configuration with a memory, and the memory."""
    torch.manual_seed(0)
    config = preset_config("debug")
    sizes = {**vars(config.model), "action_dim": A, "image_size": 32, "prior": prior}
    model = WorldModel(**sizes)
    loader = type(config.loader)(batch_size=B, sequence_length=T)
    losses = LossConfig(recalled=EACH)
    whole = type(config)(**{**vars(config), "model": model.config, "loader": loader, "losses": losses})
    return model, LatentMemory(whole, model.prior, torch.device("cpu"))


def windows(model, start, count=B):
    """Numbers that tell the windows apart: window i is full of i."""
    width = 2 * model.config.latent_dim + A
    return torch.arange(start, start + count).float()[:, None, None].expand(count, T, width)


def drawn(model, memory, seed=0):
    return make_draws([*model.declared_draws, *memory.draws], B, T, torch.Generator().manual_seed(seed))


def test_the_newest_windows_are_kept():
    model, memory = made()
    rounds = WINDOWS // B + 2
    for number in range(rounds):
        memory.keep(windows(model, number * B), torch.tensor(True))
    kept = sorted(memory.rows[:, 0, 0].tolist())
    assert memory.written == rounds * B
    assert kept == list(range(rounds * B - WINDOWS, rounds * B))


def test_a_short_batch_is_kept_once():
    model, memory = made()
    memory.keep(windows(model, 1, B - 1), torch.tensor(True))
    memory.keep(windows(model, B), torch.tensor(True))
    assert memory.rows[: 2 * B, 0, 0].tolist() == [*range(1, 2 * B), 0]


def test_a_step_that_was_skipped_leaves_nothing():
    model, memory = made()
    memory.keep(windows(model, 1), torch.tensor(True))
    before = [tensor.clone() for tensor in memory.state_dict().values()]
    memory.keep(windows(model, 7) * torch.nan, torch.tensor(False))
    assert all(torch.equal(old, new) for old, new in zip(before, memory.state_dict().values(), strict=True))


def test_windows_are_drawn_evenly_from_those_that_were_kept():
    model, memory = made()
    assert memory.take(drawn(model, memory)).weight == 0, "nothing was seen yet"
    memory.keep(windows(model, 1), torch.tensor(True))
    seen = [memory.take(drawn(model, memory, seed)).actions[:, 0, 0] for seed in range(200)]
    counts = torch.cat(seen).long().bincount()
    assert memory.take(drawn(model, memory)).weight == EACH
    assert counts[0] == 0 and len(counts) == B + 1
    assert counts[1:].min() > 0.85 * 200 * EACH  # 800 each, with a deviation of 23


def test_samples_have_the_posterior_that_was_kept():
    model, memory = made()
    dim = model.config.latent_dim
    kept = torch.cat([torch.full((B, T, dim), 2.0), torch.full((B, T, dim), 0.5), torch.zeros(B, T, A)], -1)
    memory.keep(kept, torch.tensor(True))
    found = [memory.take(drawn(model, memory, seed)) for seed in range(20)]
    latents = torch.cat([recalled.latents for recalled in found]).flatten()
    noise = torch.cat([recalled.noisy for recalled in found]).flatten() - latents
    error = 5 / len(latents) ** 0.5
    assert latents.mean() == pytest.approx(2.0, abs=0.5 * error)
    assert latents.std() == pytest.approx(0.5, abs=0.5 * error)
    assert noise.std() == pytest.approx(model.config.latent_noise, abs=model.config.latent_noise * error)


def passed(model, memory, recalled):
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(256, (B, T, 3, 32, 32), dtype=torch.uint8, generator=generator)
    actions = torch.randn(B, T, A, generator=generator)
    return model(frames, actions, drawn(model, memory), recalled)


@pytest.fixture(params=PRIORS)
def with_memory(request):
    """A model, its memory after one batch, and the pass that brings earlier windows along."""
    model, memory = made(request.param)
    outputs = passed(model, memory, None)
    kept = [outputs.posterior_mean, (0.5 * outputs.posterior_log_var).exp(), torch.randn(B, T, A)]
    memory.keep(torch.cat(kept, -1).detach(), torch.tensor(True))
    return model, memory, outputs, passed(model, memory, memory.take(drawn(model, memory)))


def test_a_batch_is_the_same_with_earlier_windows(with_memory):
    _, _, alone, beside = with_memory
    assert alone.recalled_nats is None and beside.recalled_nats.shape == (B * EACH, T)
    z = alone.samples
    for one, two in ((alone, beside), (beside, alone)):
        torch.testing.assert_close(one.hidden_states, two.hidden_states)
        torch.testing.assert_close(one.prior.log_prob(z), two.prior.log_prob(z), rtol=1e-4, atol=1e-3)
        for name, value in one.prior.kl_terms().items():
            torch.testing.assert_close(value, two.prior.kl_terms()[name])


def test_nats_are_those_of_a_pass_over_the_earlier_windows_alone(with_memory):
    model, memory, _, beside = with_memory
    recalled = memory.take(drawn(model, memory))
    found = torch.empty(B * EACH, T)
    for row in range(B * EACH):
        state, before = model.dynamics.start_state(1), model.dynamics.start_state(1)[0].transpose(0, 1)
        z, a = model.prior.start_latent[None, None], torch.zeros(1, 1, A)
        for t in range(T):
            numbers = {name: x[row : row + 1, t : t + 1] for name, x in recalled.draws.values.items()}
            prior = model.prior(before, a, z, type(recalled.draws)(numbers))
            nats = -prior.log_prob(recalled.latents[row : row + 1, t : t + 1, None])
            found[row, t] = nats.detach().squeeze() + sum(x.detach().squeeze() for x in prior.kl_terms().values())
            z, a = recalled.noisy[row : row + 1, t : t + 1], recalled.actions[row : row + 1, t : t + 1]
            before, state = model.dynamics(z, a, state)
    torch.testing.assert_close(beside.recalled_nats.detach(), found, rtol=1e-4, atol=1e-3)


def test_only_dynamics_and_prior_learn_from_earlier_windows(with_memory):
    model, _, _, beside = with_memory
    beside.recalled_nats.mean().backward()
    reached = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"dynamics", "prior"}


def test_earlier_windows_count_like_those_of_the_batch(with_memory):
    """As often as they are more: a frame of an earlier window weighs what one of the batch does."""
    _, _, _, beside = with_memory
    losses, _ = LossAggregator().compute_losses(beside, beta=1.0)
    beside.recalled_nats = None
    without, _ = LossAggregator().compute_losses(beside, beta=1.0)
    added = (losses["total_elbo"] - without["total_elbo"]) * 3 * 32 * 32
    torch.testing.assert_close(added, EACH * losses["recalled_nats"], rtol=1e-3, atol=1e-3)
