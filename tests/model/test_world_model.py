"""Shapes, causality, operator counts, imagination and overfitting of the whole model at the debug size."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aime_fast.config import preset_config
from aime_fast.errors import UserError
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator

CONFIG = replace(preset_config("debug").model, action_dim=3)
B, T = 2, 6


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DPGMMVariationalRecurrentAutoencoder.from_config(CONFIG)


def window(batch=B, frames=T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randint(0, 256, (batch, frames, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return observations, torch.randn(batch, frames, CONFIG.action_dim, generator=generator)


def test_shapes_and_key_access(model):
    outputs = model(*window(), model.draws(0, B, T))
    grid = CONFIG.grid
    wanted = {
        "reconstructions": (B, T, 3, 64, 64),
        "perceiver_reconstructions": (B, T, 3, 64, 64),
        "latents": (B, T, CONFIG.latent_dim),
        "hidden_states": (B, T, CONFIG.hidden_dim),
        "context": (B, T, CONFIG.context_dim),
        "attention_maps": (B, T, CONFIG.num_slots, grid, grid),
        "mixture_weights": (B, T, CONFIG.max_components),
        "tokens": (B, T, grid, grid),
    }
    for name, shape in wanted.items():
        assert outputs[name].shape == shape, name
        assert getattr(outputs, name) is not None
    torch.testing.assert_close(outputs.mixture_weights.sum(-1), torch.ones(B, T))
    torch.testing.assert_close(outputs.attention_maps.sum((-1, -2)), torch.ones(B, T, CONFIG.num_slots))
    with pytest.raises(KeyError):
        outputs["nothing"]


@pytest.mark.parametrize("t", [0, 2, 4])
def test_the_next_frame_moves_nothing_before_it(model, t):
    observations, actions = window()
    changed, acted = observations.clone(), actions.clone()
    changed[:, t + 1] = 255 - changed[:, t + 1]
    acted[:, t + 1] += 1
    draws = model.draws(0, B, T)
    first, second = model(observations, actions, draws), model(changed, acted, draws)
    seen = ("context", "posterior_mean", "posterior_log_var", "latents", "slots", "attention_maps", "masks")
    for name in (*seen, "hidden_states", "reconstructions"):
        assert torch.equal(first[name][:, : t + 1], second[name][:, : t + 1]), name
        assert not torch.allclose(first[name][:, t + 1], second[name][:, t + 1]), name
    for name in ("next_token_logits", "prior_log_maps"):  # of the frame after
        assert torch.equal(first[name][:, : t + 1], second[name][:, : t + 1]), name
        assert t + 1 == T - 1 or not torch.allclose(first[name][:, t + 1], second[name][:, t + 1]), name
    for name in ("log_weights", "means", "log_vars"):
        before, after = getattr(first.prior, name), getattr(second.prior, name)
        assert torch.equal(before[:, : t + 2], after[:, : t + 2]), name


def test_an_action_moves_what_is_predicted_and_nothing_that_is_seen(model):
    observations, actions = window()
    acted, draws = actions.clone(), model.draws(0, B, T)
    acted[:, 2] += 1
    first, second = model(observations, actions, draws), model(observations, acted, draws)
    for name in ("context", "latents", "slots", "masks", "reconstructions"):
        assert torch.equal(first[name], second[name]), name
    for name in ("log_weights", "means", "log_vars"):
        same = (getattr(first.prior, name) == getattr(second.prior, name)).flatten(2).all(2).all(0)
        assert same.tolist() == [True, True, True, False, False, False], name
    same = (first.next_token_logits == second.next_token_logits).flatten(2).all(2).all(0)
    assert same.tolist() == [True, True, False, True, True]


class Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_operator_calls_do_not_grow_with_frames(model):
    counts = []
    for frames in (2, 8, 16):  # the first pass also makes constants that are kept
        observations, actions = window(4, frames)
        with Count() as counter:
            _, tasks = LossAggregator().compute_losses(model(observations, actions, model.draws(0, 4, frames)))
            parameters = [p for p in model.parameters() if p.requires_grad]
            for i, task in enumerate(tasks):
                torch.autograd.grad(task, parameters, retain_graph=i < 2, allow_unused=True)
        counts.append(counter.calls)
    assert counts[1] == counts[2]
    assert counts[2] < 6000


def test_draws_of_rows_are_those_of_the_global_batch(model):
    draws = model.draws(7, 4, T)
    part = draws.rows(1, 4).rows(1, 2)
    assert part.first_row == 2
    assert torch.equal(part["latent"], draws["latent"][2:3])


def test_dynamics_and_prior_read_z_with_noise_and_actions_alone(model):
    draws, (observations, actions) = model.draws(3, B, T), window()
    read = {}
    for name in ("dynamics", "prior"):
        part = getattr(model, name)
        part.register_forward_hook(lambda module, inputs, outputs, name=name: read.update({name: inputs}))
    outputs = model(observations, actions, draws)
    noisy = outputs.latents + CONFIG.latent_noise * draws["latent_noise"]
    latent, acted, _ = read["dynamics"]
    torch.testing.assert_close(latent, noisy)
    assert torch.equal(acted, actions)
    hidden, taken, before, _ = read["prior"]
    assert torch.equal(hidden[:, 1:], outputs.hidden_states[:, :-1])
    assert torch.equal(taken[:, 1:], actions[:, :-1]) and not taken[:, 0].any()
    torch.testing.assert_close(before[:, 1:], noisy[:, :-1])
    assert torch.equal(before[:, 0], model.prior.start_latent.expand(B, -1))


def test_the_decoder_reads_z_and_an_older_frame_alone(model):
    outputs = model(*window(), model.draws(0, B, T))
    likelihood, masks = model.with_masks(outputs.latents, kept=outputs.state.kept)
    assert torch.equal(likelihood.mean(), outputs.reconstructions) and torch.equal(masks, outputs.masks)
    fewer, left = model.with_masks(outputs.latents, (1,), outputs.state.kept)
    assert not left[:, :, 1].any() and not torch.allclose(fewer.mean(), outputs.reconstructions)


def test_predictions_start_as_copies_of_the_present(model):
    outputs = model(*window(), model.draws(0, B, T))
    maps = outputs.attention.maps[:, :-1].clamp_min(1e-6)
    torch.testing.assert_close(outputs.prior_log_maps.exp(), maps / maps.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert not outputs.motion.any()


def test_next_tokens_start_as_the_present_ones(model):
    """The head without its bonus, plus the bonus at the present token; with it, most cells keep their token."""
    codes = torch.randn(B, T, CONFIG.grid**2, CONFIG.code_dim)
    ids = torch.randint(0, CONFIG.num_codes, codes.shape[:3])
    inputs = torch.randn(B, T, CONFIG.context_dim), codes, ids, window()[1]
    logits = model.perceiver.next_frame_logits(*inputs)
    assert (logits.argmax(-1) == ids).float().mean() > 0.9
    bonus = torch.randn(CONFIG.num_codes)
    with torch.no_grad():
        model.perceiver.next_copy.copy_(bonus)
        given = model.perceiver.next_frame_logits(*inputs)
        model.perceiver.next_copy.zero_()
        without = model.perceiver.next_frame_logits(*inputs)
    expected = torch.nn.functional.one_hot(ids, CONFIG.num_codes) * bonus
    torch.testing.assert_close(given - without, expected, rtol=1e-4, atol=1e-5)


def test_imagination_needs_only_context_and_actions(model):
    observations, actions = window()
    state = model.observe(observations[:, :2], actions[:, :1])
    frames = model.decode(model.imagine(state, actions[:, 1:], samples=3)).mean()
    assert frames.shape == (3 * B, T - 1, 3, 64, 64)
    later = actions.clone()
    later[:, 3] += 5
    changed = model.decode(model.imagine(state, later[:, 1:], samples=3)).mean()
    torch.testing.assert_close(changed[:, :2], frames[:, :2])
    assert not torch.allclose(changed[:, 2:], frames[:, 2:])


def test_one_batch_is_overfitted(model):
    rows = torch.linspace(-1, 1, 64)
    scene = torch.stack([rows.repeat(64, 1), rows[:, None].repeat(1, 64), torch.zeros(64, 64)])
    levels = ((scene + 1) * 127.5).round().byte().expand(1, 4, -1, -1, -1).contiguous()
    actions = torch.zeros(1, 4, CONFIG.action_dim)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(150):
        losses, tasks = LossAggregator().compute_losses(model(levels, actions, model.draws(step, 1, 4)), beta=0.0)
        optimizer.zero_grad()
        sum(tasks).backward()
        optimizer.step()
    assert losses["recon_loss"] < 3.2


def test_every_gradient_is_finite_on_flat_and_extreme_frames(model):
    for level in (0, 255):
        observations = torch.full((1, 3, 3, 64, 64), level, dtype=torch.uint8)
        _, tasks = LossAggregator().compute_losses(model(observations, torch.full((1, 3, CONFIG.action_dim), 100.0)))
        for i, task in enumerate(tasks):
            grads = torch.autograd.grad(
                task, [p for p in model.parameters() if p.requires_grad], retain_graph=i < 2, allow_unused=True
            )
            assert all(g.isfinite().all() for g in grads if g is not None)


def test_wrong_shapes_and_sizes_are_named():
    model = DPGMMVariationalRecurrentAutoencoder.from_config(CONFIG)
    observations, actions = window()
    with pytest.raises(UserError, match="actions"):
        model(observations, actions[..., :2])
    with pytest.raises(UserError, match="observations"):
        model(observations[..., :32], actions)
    with pytest.raises(UserError, match=r"torch.int64; the model reads uint8"):
        model(observations.long(), actions)
    with pytest.raises(UserError, match="unknown likelihood 'gausian'; did you mean 'gaussian'"):
        DPGMMVariationalRecurrentAutoencoder(likelihood="gausian")
    with pytest.raises(UserError, match="no size named"):
        DPGMMVariationalRecurrentAutoencoder(hidden=3)


def test_a_step_that_is_not_finite_leaves_codebook_and_teacher(model):
    outputs = model(*window(), model.draws(0, B, T))
    with torch.no_grad():
        for parameter in model.trunk.parameters():
            parameter += 0.1
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outputs.token_info.encodings[0, 0] = float("nan")
    model.after_step(outputs.token_info.ids, outputs.token_info.encodings, outputs.draws, torch.tensor(False))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.after_step(outputs.token_info.ids, outputs.token_info.encodings, outputs.draws, torch.tensor(True))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert "tokenizer.codebook.codes" in changed
    assert {name for name, _ in model.named_parameters() if name.startswith("teacher.")} <= changed
