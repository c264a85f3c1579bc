"""The memory of frames: what it gives, and what a pass makes of single frames."""

import pytest
import torch

from aime_fast.config.options import preset_config
from aime_fast.config.schema import LossConfig
from aime_fast.model.draws import make_draws
from aime_fast.model.frame_memory import STEPS, FrameMemory
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.aggregator import LossAggregator
from aime_kernels import normalise_frames

B, T, A, N, SIZE = 3, 6, 2, 3, 32


def made(prior="dpgmm"):
    """A small model, and a memory of frames for it."""
    torch.manual_seed(0)
    config = preset_config("debug")
    model = WorldModel(**{**vars(config.model), "action_dim": A, "image_size": SIZE, "prior": prior})
    loader = type(config.loader)(batch_size=B, sequence_length=T)
    whole = {**vars(config), "model": model.config, "loader": loader, "losses": LossConfig(single_frames=N / T)}
    return model, FrameMemory(type(config)(**whole), torch.device("cpu"), world_size=1)


def numbered(step):
    """Frames that are full of numbers of their own: row and frame in one channel, the step in another."""
    frames = torch.zeros(B, T, SIZE, SIZE, 3, dtype=torch.uint8)
    frames[..., 0] = torch.arange(B * T).view(B, T, 1, 1)
    frames[..., 1] = step
    return frames


def numbers(singles):
    """Row, frame and step of single frames, int64 [b, n] each."""
    levels = ((singles.frames[..., 0, 0] + 1) * 127.5).round().long()
    return levels[:, :, 0] // T, levels[:, :, 0] % T, levels[:, :, 1]


def drawn(model, memory, seed=0):
    return make_draws([*model.declared_draws, *memory.draws], B, T, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 5, STEPS + 7])
def test_frames_are_drawn_evenly_from_the_last_steps_of_their_row(steps):
    model, memory = made()
    for step in range(steps):
        memory.keep(numbered(step))
    seen = [numbers(memory.take(drawn(model, memory, seed), 0)) for seed in range(300)]
    rows, frames, found = (torch.stack(part) for part in zip(*seen, strict=True))
    assert (rows == torch.arange(B)[:, None]).all()
    assert found.min() == max(0, steps - STEPS) and found.max() == steps - 1
    # 300 * B * N draws over T frames: 450 each, with a deviation of 19.
    assert frames.flatten().bincount(minlength=T).min() > 450 - 5 * 19


def test_any_number_of_ranks_and_micro_batches_draws_the_same():
    model, memory = made()
    for step in range(4):
        memory.keep(numbered(step))
    draws = drawn(model, memory)
    whole, part = memory.take(draws, 0), memory.take(draws.rows(1, 3), 1)
    for name in ("frames", "noise", "drawn"):
        assert torch.equal(getattr(whole, name)[1:], getattr(part, name))


def test_a_run_that_goes_on_draws_what_one_without_a_pause_draws():
    _, memory = made()
    for step in range(STEPS + 5):
        memory.keep(numbered(step))
    _, again = made()
    again.refill(STEPS + 5, numbered)
    assert torch.equal(memory.written, again.written) and torch.equal(memory.kept, again.kept)


def test_the_frames_that_give_way_are_any_of_the_window():
    model, memory = made()
    memory.keep(numbered(0))
    left = torch.zeros(T)
    for seed in range(300):
        singles = memory.take(drawn(model, memory, seed), 0)
        assert singles.drawn.shape == (B, T - N) and singles.share == N / T
        assert all(len(set(row)) == T - N for row in singles.drawn.tolist())
        left += singles.drawn.flatten().bincount(minlength=T)
    assert left.min() > 450 - 5 * 15  # of 900 windows, each frame in half of them
    x = torch.arange(B * T).view(B, T, 1).float()
    assert torch.equal(singles.own(x)[..., 0].long() % T, singles.drawn)
    assert torch.equal(singles.own(x)[..., 0].long() // T, torch.arange(B)[:, None].expand(B, T - N))


@pytest.fixture(params=("dpgmm", "dpgmm-frame", "gaussian"))
def passes(request):
    """A model, the single frames, and the pass over a batch without and with them."""
    model, memory = made(request.param)
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(256, (B, T, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    actions = torch.randn(B, T, A, generator=generator)
    memory.keep(frames)
    draws = drawn(model, memory)
    singles = memory.take(draws, 0)
    alone, beside = (model(normalise_frames(frames), actions, draws, singles=given) for given in (None, singles))
    return model, singles, alone, beside


def test_the_windows_are_the_same_with_single_frames(passes):
    _, singles, alone, beside = passes
    for name in ("posterior_mean", "samples", "hidden_states", "context", "motion", "next_token_logits"):
        torch.testing.assert_close(getattr(alone, name), getattr(beside, name), rtol=1e-4, atol=1e-5)
    assert torch.equal(alone.tokens, beside.tokens)
    z = alone.samples
    torch.testing.assert_close(alone.prior.log_prob(z), beside.prior.log_prob(z), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(singles.own(alone.pixels), beside.pixels[:, : T - N])
    means = [outputs.likelihood.expectation() for outputs in (alone, beside)]
    torch.testing.assert_close(singles.own(means[0]), means[1][:, : T - N], rtol=1e-4, atol=1e-4)


def test_single_frames_are_windows_of_one_frame_without_context(passes):
    model, singles, _, beside = passes
    with torch.no_grad():
        flat, pixels = model.standardise(singles.frames)
        none = torch.zeros(B, N, model.config.context_dim)
        features = model.trunk(flat)
        mean, log_var = model.posterior(features, model.attention(features, none), none)
        z = mean + (0.5 * log_var).exp() * singles.noise
        of_z = torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(z).sum(-1)
        first = beside.prior.until(1)
        wanted = of_z - torch.cat([first.log_prob(z[:, n : n + 1, None])[..., 0] for n in range(N)], 1)
        torch.testing.assert_close(beside.single_kl, wanted, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(beside.pixels[:, T - N :], pixels)
        expected = model.likelihood(z).expectation()
        torch.testing.assert_close(beside.likelihood.expectation()[:, T - N :], expected, rtol=1e-4, atol=1e-4)


def test_all_that_is_drawn_counts_alike_in_the_bound(passes):
    """T frames a window: T - N of its own, with the mean divergence of its frames, and N single ones with theirs."""
    _, _, _, beside = passes
    beta = 1000.0  # so that the pixels, which are subtracted, leave little rounding
    losses, _ = LossAggregator().compute_losses(beside, beta=beta)
    rest, _ = LossAggregator().compute_losses(beside, beta=0.0)
    divergence = (losses["total_elbo"] - rest["total_elbo"]) * 3 * SIZE**2 / beta
    wanted = ((T - N) * losses["kl_z"] + N * losses["single_kl"]) / T + losses["hierarchical_kl"]
    wanted = wanted - LossConfig().entropy_weight * losses["cluster_entropy"]
    torch.testing.assert_close(divergence, wanted, rtol=1e-3, atol=1e-2)


def test_what_single_frames_teach(passes):
    model, _, _, beside = passes
    beside.single_kl.mean().backward()
    reached = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"trunk", "posterior", "prior"} <= reached <= {"trunk", "posterior", "prior", "attention", "dynamics"}
