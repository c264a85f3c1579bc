"""PCA, ridge regression and R2 against NumPy and systems with known answers."""

import numpy as np
import pytest
import torch

from aime_fast.evaluation.linear import STRENGTHS, choose_ridge, fit_pca, fit_ridge, r2


@pytest.mark.parametrize("shape", [(40, 12), (9, 30)])
def test_components_are_those_of_the_singular_value_decomposition(shape):
    rows = np.random.default_rng(0).standard_normal(shape) * np.linspace(1, 3, shape[1])
    found = fit_pca(torch.from_numpy(rows), 5)
    _, _, expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    overlap = np.abs((found.components.numpy() * expected[:5]).sum(1))
    np.testing.assert_allclose(overlap, 1, atol=1e-8)
    codes = found.encode(torch.from_numpy(rows))
    assert codes.shape == (shape[0], 5)
    spread = codes.var(0)
    assert (spread[:-1] >= spread[1:]).all()


def test_as_many_components_as_the_data_have():
    rows = torch.randn(30, 3) @ torch.randn(3, 20) + 5
    found = fit_pca(rows, 10)
    assert len(found.components) <= 10
    torch.testing.assert_close(found.decode(found.encode(rows)), rows, atol=1e-3, rtol=1e-3)
    assert len(fit_pca(torch.zeros(6, 4), 3).components) >= 1


def test_without_a_penalty_it_is_least_squares():
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((50, 4)) * [1, 100, 0.01, 3] + 7, draw.standard_normal((50, 2))
    expected, *_ = np.linalg.lstsq(np.c_[x, np.ones(50)], y, rcond=None)
    found = fit_ridge(torch.from_numpy(x), torch.from_numpy(y), 0.0)(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), np.c_[x, np.ones(50)] @ expected, atol=1e-9)


def test_the_penalty_shrinks_as_its_formula():
    x = torch.tensor([[-1.0], [1.0]])
    assert fit_ridge(x, 3 * x, 0.5)(x).squeeze().tolist() == pytest.approx([-2.0, 2.0])


def test_a_constant_input_is_harmless():
    x = torch.cat([torch.randn(20, 1), torch.full((20, 1), 4.0)], 1)
    found = fit_ridge(x, x[:, :1], 1e-6)(x)
    torch.testing.assert_close(found, x[:, :1], atol=1e-4, rtol=0)


def test_the_penalty_is_chosen_on_rows_that_were_held_back():
    """Fifty inputs, one of which matters, and few rows: least squares overfits, a penalty does not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 50, generator=generator)
    y = x[:, :1] + 1.5 * torch.randn(70, 1, generator=generator)
    fresh = torch.randn(2000, 50, generator=generator)
    chosen, loose = choose_ridge(x, y), fit_ridge(x, y, 1e-4)
    errors = [float((fit(fresh) - fresh[:, :1]).square().mean()) for fit in (chosen, loose)]
    assert errors[0] < 0.7 * errors[1]


def test_r2_of_known_noise():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
    assert r2(truth, truth).item() == 1.0
    # The standard error of the ratio of two variances is sqrt(4 / N), here 0.006.
    assert r2(truth + 0.5 * noise, truth).item() == pytest.approx(0.75, abs=0.01)
    assert r2(truth.mean().expand_as(truth), truth).item() == pytest.approx(0.0, abs=1e-12)
    assert r2(-truth, truth).item() < -2
    assert r2(truth, torch.ones_like(truth)).isnan().all()


def test_each_target_has_a_penalty_of_its_own():
    generator = torch.Generator().manual_seed(0)
    x, held = (torch.randn(n, 20, generator=generator, dtype=torch.float64) for n in (60, 400))
    weights = torch.randn(20, generator=generator, dtype=torch.float64)
    y, truth = (torch.stack([rows @ weights, rows.square().sum(1)], 1) for rows in (x, held))
    chosen = choose_ridge(x, y)
    assert r2(chosen(held), truth)[0] > 0.999  # a linear target is found beside one that is not linear at all
    for column in range(2):
        alone = choose_ridge(x, y[:, column : column + 1])
        torch.testing.assert_close(chosen(held)[:, column], alone(held)[:, 0])
    together = min(STRENGTHS, key=lambda s: (fit_ridge(x[:48], y[:48], s)(x[48:]) - y[48:]).square().mean())
    assert r2(fit_ridge(x, y, together)(held), truth)[0] < 0.9
