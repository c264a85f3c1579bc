"""The trainer on every back-end: a resumed run is the uninterrupted one, and the exact back-ends train alike."""

from functools import cache

import pytest
import torch

from aime_fast.data.backends import KINDS
from aime_fast.training.trainer import DMCVBTrainer

MODEL = dict(
    max_components=3,
    latent_dim=4,
    hidden_dim=16,
    context_dim=8,
    num_slots=2,
    slot_dim=8,
    num_codes=8,
    code_dim=8,
    tokenizer_width=8,
    perceiver_latents=2,
    perceiver_dim=8,
    perceiver_layers=1,
    perceiver_heads=2,
    encoder_width=8,
    decoder_width=8,
    mlp_dim=16,
    num_mixtures=1,
    kl_samples=1,
)


def trained(kind, folder, **options):
    trainer = DMCVBTrainer(
        preset="debug",
        steps=4,
        backend=kind,
        out=str(folder),
        model=MODEL,
        loader=dict(batch_size=4, sequence_length=5, windows_per_epoch=400),
        **options,
    )
    return trainer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights after 4 steps without a break, by back-end."""

    @cache
    def after(kind):
        trainer = trained(kind, tmp_path_factory.mktemp(kind) / "run")
        trainer.fit()
        return {name: tensor.clone() for name, tensor in trainer.engine.module.state_dict().items()}

    return after


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(weights, kind, tmp_path):
    paused = trained(kind, tmp_path / "run")
    assert paused.fit(until=2).steps == 2
    resumed = trained(kind, tmp_path / "run", resume="auto")
    assert resumed.fit().steps == 4
    assert_same(resumed.engine.module.state_dict(), weights(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resident", "dali", "auto"])
def test_the_exact_back_ends_train_alike(weights, kind):
    assert_same(weights(kind), weights("memory"))
