"""docs/shapes.md is executed: what public functions take and return has the shapes and dtypes that it states."""

import re
from dataclasses import fields, replace
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

from aime_fast import RGB, DMCVBDataset, DPGMMVariationalRecurrentAutoencoder, LossAggregator
from aime_fast.balancing.report import BalanceReport
from aime_fast.config import LoaderConfig, preset_config
from aime_fast.data.backends import open_backend
from aime_fast.evaluation.metrics import psnr, unit_range

PAGE = (Path(__file__).parents[1] / "docs" / "shapes.md").read_text()
CONFIG = replace(preset_config("debug").model, action_dim=6, image_size=64)
B, T = 2, 3
Q = CONFIG.image_size // (4 * CONFIG.grid)
SIZES = {
    **{"B": B, "T": T, "T-1": T - 1, "W": CONFIG.image_size, "A": 6, "K": CONFIG.max_components},
    **{"D": CONFIG.latent_dim, "H": CONFIG.hidden_dim, "C": CONFIG.context_dim, "S": CONFIG.num_slots},
    **{"d": CONFIG.slot_dim, "G": CONFIG.grid, "P": CONFIG.grid**2, "n": CONFIG.kl_samples, "codes": CONFIG.num_codes},
    **{"F": 2 * CONFIG.encoder_width, "e": CONFIG.code_dim},
    **{"q": Q**2, "h": CONFIG.image_size // Q, "w": CONFIG.image_size // Q},
}


def stated(heading):
    """Name -> (shape, dtype) of the table under a heading of the page."""
    table = PAGE.split(f"## {heading}")[1].split("\n## ")[0]
    found = {}
    for names, cells in re.findall(r"^\| (`.*?) \| (.*)\|$", table, flags=re.MULTILINE):
        shapes = re.findall(r"\[([^\]]*)\]", cells)
        dtype = re.match(r"(?:u?int|float)\d+|bool", cells)
        for name, shape in zip(re.findall(r"`([\w.]+)`", names), shapes * 2, strict=False):
            found[name] = sizes(shape), getattr(torch, dtype[0] if dtype else "float32")
    return found


def sizes(text):
    letters = [letter.strip() for letter in text.split(",")]
    image = "W" in letters
    return tuple(
        int(letter) if letter.isdecimal() else SIZES["W" if letter == "H" and image else letter] for letter in letters
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DPGMMVariationalRecurrentAutoencoder.from_config(CONFIG)


@pytest.fixture(scope="module")
def window():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (B, T, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return frames, torch.randn(B, T, 6, generator=generator)


@pytest.fixture(scope="module")
def outputs(model, window):
    return model(*window, draws=model.draws(0, B, T))


def assert_is(tensor, shape, dtype=torch.float32):
    assert (tuple(tensor.shape), tensor.dtype) == (tuple(shape), dtype)


def test_a_batch_is_as_stated():
    batch = open_backend("auto", None, LoaderConfig(batch_size=B, sequence_length=T), "train", 0).batch(0)
    table = stated("A batch")
    assert table.keys() == {field.name for field in fields(batch)}
    for name, (shape, dtype) in table.items():
        assert_is(getattr(batch, name), shape, dtype)
    item = DMCVBDataset(sequence_length=T)[0]
    for name, (shape, dtype) in (table | {"observations": ((B, T, 3, 64, 64), torch.float32)}).items():
        assert_is(item[name], shape[1:], dtype)


def test_what_the_model_returns_is_as_stated(outputs):
    table = stated("What `model(observations, actions)` returns")
    assert len(table) > 15
    for name, (shape, dtype) in table.items():
        field, *inner = name.split(".")
        assert_is(reduce(getattr, inner, outputs[field]), shape, dtype)


def test_a_latent_state_is_as_stated(model, window, outputs):
    table = stated("The latent state")
    observed = model.observe(*window)
    imagined = model.imagine(observed, window[1])
    for state, absent in ((outputs.state, {"cell", "seen"}), (observed, set()), (imagined, {"seen"})):
        assert {*vars(state)} == {*table, "memory"}
        assert {name for name in table if getattr(state, name) is None} == absent
        for name in table.keys() - absent:
            assert_is(getattr(state, name), *table[name])


def test_frames_may_be_levels_or_floats(model, window, outputs):
    floats = model(window[0] / 127.5 - 1, window[1], draws=model.draws(0, B, T))
    torch.testing.assert_close(floats.latents, outputs.latents, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian"])
def test_reconstruction_and_imagination(likelihood, window):
    model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(CONFIG, likelihood=likelihood))
    frames, actions = window
    outputs = model(frames, actions)
    assert_is(model.reconstruct(outputs), frames.shape)
    for samples, known, horizon in ((1, 1, 1), (4, 2, 2)):
        state = model.observe(frames[:, :known], actions[:, : known - 1])
        future = model.decode(model.imagine(state, actions[:, :horizon], samples=samples)).mean()
        assert_is(future, (B * samples, horizon, 3, 64, 64))
        assert future.abs().max() <= 1
    loss, nats, error = model.decode(outputs.state).loss(outputs.pixels, torch.ones(B, T), 0.0)
    assert_is(loss, ())
    assert_is(nats, (B, T))
    assert_is(error, (B, T))


def test_losses_are_scalars(outputs):
    losses, tasks = LossAggregator().compute_losses(outputs, beta=0.5)
    assert len(tasks) == 3
    for loss in [*losses.values(), *tasks]:
        assert_is(loss, ())


def test_figures_of_merit():
    assert_is(psnr(torch.rand(2, 5, 3, 8, 8), torch.rand(2, 5, 3, 8, 8)), (2, 5))
    assert_is(unit_range(torch.randn(2, 3)), (2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 3])
def test_a_balance_report(n, dtype):
    shapes = [(4, 2), (7,)]
    report = RGB().balance([[torch.randn(shape, dtype=dtype) for shape in shapes] for _ in range(n)])
    for tensor, shape in zip(report.update, shapes, strict=True):
        assert_is(tensor, shape, dtype)
    wanted = {"cosines": (n, n), "projections": (n,), "angles": (n,), "norms": (n,), "group_norms": (1, n)}
    wanted["update_norm"] = ()
    flags = {"finite": (), "active": (n,), "cancelled": ()}
    assert {field.name for field in fields(BalanceReport)} == {"update", "weights", "successive", *wanted, *flags}
    assert report.successive is None  # RGB knows no parameters to sample
    for name, shape in (wanted | flags).items():
        assert_is(getattr(report, name), shape, torch.bool if name in flags else torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backward_leaves_gradients_like_the_parameters(dtype):
    layer = torch.nn.Linear(3, 2, dtype=dtype)
    ones = RGB(get_share_params=layer.parameters).backward(layer(torch.randn(5, 3, dtype=dtype)).square().mean(0))
    assert isinstance(ones, np.ndarray)
    assert ones.tolist() == [1.0, 1.0]
    for parameter in layer.parameters():
        assert_is(parameter.grad, parameter.shape, dtype)
