"""Figures of the parts against values known in advance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aime_fast.config import preset_config
from aime_fast.data.batch import Batch
from aime_fast.errors import UserError
from aime_fast.evaluation.live.diagnostics import mask_overlap, part_figures, prediction_figures, worth_of_actions
from aime_fast.evaluation.live.snapshot import take_snapshot
from aime_fast.evaluation.worth.counterparts import filtering_draws
from aime_fast.model.priors.sticks import expected_weights, kumaraswamy_mean
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.reporting.snapshot import read_snapshot


def world(**sizes):
    torch.manual_seed(0)
    return WorldModel.from_config(replace(preset_config("debug").model, action_dim=2, **sizes)).eval()


def made_batch(windows=3, frames=8):
    generator = torch.Generator().manual_seed(0)
    observations = torch.randint(0, 256, (windows, frames, 64, 64, 3), dtype=torch.uint8, generator=generator)
    zeros = torch.zeros(windows, frames)
    return Batch(observations, torch.randn(windows, frames, 2, generator=generator), zeros, zeros.bool(), zeros.bool())


@torch.no_grad()
def passed(model, batch):
    draws = filtering_draws(model, 0, *batch.actions.shape[:2])
    return model(batch.frames(), batch.actions, draws)


def test_masks_that_share_no_cell_do_not_overlap_and_equal_ones_do():
    apart = torch.eye(3)[:, [0, 0, 1, 2]]
    assert mask_overlap(apart) == 0
    assert mask_overlap(torch.full((4, 2, 9), 0.5)) == pytest.approx(1.0)
    assert mask_overlap(torch.full((4, 1, 9), 1.0)) == 0
    half = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    assert mask_overlap(half) == pytest.approx(2 * 0.5 / 3)


@torch.no_grad()
def test_actions_are_worth_nothing_to_a_model_that_does_not_read_them():
    model, batch = world(), made_batch()
    outputs = passed(model, batch)
    assert worth_of_actions(model, outputs, batch).abs() > 1e-6
    same = replace(batch, actions=batch.actions[:1].expand_as(batch.actions))
    assert worth_of_actions(model, passed(model, same), same).abs() < 1e-5


@torch.no_grad()
def test_what_actions_are_worth_is_a_difference_of_log_densities():
    model, batch = world(), made_batch()
    own, other = passed(model, batch), passed(model, replace(batch, actions=batch.actions.roll(1, 0)))
    expected = (own.prior.log_prob(own.samples) - other.prior.log_prob(own.samples))[:, 1:].mean()
    torch.testing.assert_close(worth_of_actions(model, own, batch), expected)


@torch.no_grad()
def test_latent_figures_are_moments_of_the_posterior():
    model, batch = world(), made_batch()
    outputs = passed(model, batch)
    mean = outputs.posterior_mean.flatten(0, 1).double().numpy()
    found = part_figures(model, outputs, batch)
    assert float(found["latent_std"]) == pytest.approx(mean.std(0).mean(), rel=1e-4)
    assert float(found["active_dims"]) == (mean.var(0) > 0.01).sum()
    assert float(found["posterior_std"]) == pytest.approx(
        outputs.posterior_log_var.div(2).exp().mean().item(), rel=1e-5
    )
    assert 0 < float(found["attention_entropy"]) <= 1


@pytest.mark.parametrize(("frames", "horizons"), [(1, []), (2, [1]), (6, [1]), (12, [1, 5]), (16, [1, 5, 10])])
@torch.no_grad()
def test_predictions_reach_as_far_as_windows_allow(frames, horizons):
    values, imagined = prediction_figures(world(), made_batch(2, frames))
    names = {f"psnr_ahead_{h}{ending}" for h in horizons for ending in ("", "_copy", "_other_actions")}
    assert set(values) == names | ({"ssim"} if horizons else set())
    assert (imagined is None) == (not horizons)


@torch.no_grad()
def test_a_single_window_or_no_action_has_no_other_actions():
    values, _ = prediction_figures(world(), made_batch(1, 8))
    assert not any("other" in name for name in values)
    model, single = world(), made_batch(1)
    assert part_figures(model, passed(model, single), single)["action_nats"].isnan()


def test_a_sticks_mean_agrees_with_numerical_integration():
    from scipy.integrate import quad

    for a, b in ((1.0, 3.0), (0.4, 0.7), (5.0, 2.0)):
        exact = quad(lambda v, a=a, b=b: v * a * b * v ** (a - 1) * (1 - v**a) ** (b - 1), 0, 1)[0]
        found = kumaraswamy_mean(*torch.tensor([[a], [b]], dtype=torch.float64).log())
        assert float(found) == pytest.approx(exact, rel=1e-6)


def test_expected_weights_sum_to_one_and_agree_with_samples():
    shapes = np.array([[1.0, 2.0], [0.5, 1.5], [3.0, 1.0]])
    drawn = np.random.default_rng(0).beta(*shapes.T, (200_000, 3))
    left = np.concatenate([np.ones((len(drawn), 1)), (1 - drawn).cumprod(1)], 1)
    sampled = (left * np.concatenate([drawn, np.ones((len(drawn), 1))], 1)).mean(0)
    found = expected_weights(torch.tensor(shapes[:, 0] / shapes.sum(1)))
    assert float(found.sum()) == pytest.approx(1.0)
    np.testing.assert_allclose(found, sampled, atol=3e-3)


@pytest.mark.parametrize("prior", ["dpgmm", "dpgmm-frame", "gaussian"])
def test_a_snapshot_survives_its_file(tmp_path, prior):
    model, batch = world(prior=prior, max_components=4, num_slots=2), made_batch()
    taken = take_snapshot(model, passed(model, batch), prediction_figures(model, batch)[1], step=7)
    taken.save(tmp_path)
    read = read_snapshot(tmp_path)
    assert all(
        np.array_equal(getattr(read, name), value, equal_nan=value.dtype.kind == "f")
        for name, value in vars(taken).items()
    )
    assert read.frames.shape == (8, 64, 64, 3) and read.imagined.shape == (3, 64, 64, 3)
    components = 1 if prior == "gaussian" else 4
    assert read.usage.sum() == pytest.approx(1.0, abs=1e-5) and len(read.usage) == components
    assert read.measure.shape == ((2, 4) if prior == "dpgmm" else (2, 0))
    assert read.code_counts.sum() == batch.actions.shape[0] * 8 * 64


def test_no_snapshot_is_none_and_a_damaged_one_is_refused(tmp_path):
    assert read_snapshot(tmp_path) is None
    (tmp_path / "snapshot.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="damaged"):
        read_snapshot(tmp_path)
