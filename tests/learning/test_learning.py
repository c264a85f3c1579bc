"""What a short training must learn from made sequences: actions count, gradients are steady, slots can be removed."""

import json

import pytest
import torch
from synthetic import driven_square
from torch.nn import functional as F

from aime_fast.data.store import open_store
from aime_fast.evaluation.metrics import evaluating
from aime_fast.evaluation.open_loop import COPY, MEAN, OTHER, open_loop_psnr
from aime_fast.evaluation.reconstruction import judge_reconstruction
from aime_fast.evaluation.windows import make_windows
from aime_fast.training.trainer import DMCVBTrainer

pytestmark = pytest.mark.long
STEPS = 400
CONTEXT, HORIZON = 3, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`debug` on a square whose velocity is the action."""
    folder = tmp_path_factory.mktemp("driven")
    data = driven_square(episodes=40, length=24).write(folder / "data")
    trainer = DMCVBTrainer(
        preset="debug",
        data=data,
        steps=STEPS,
        out=folder / "run",
        loader={"batch_size": 8},
        logging={"tracker": "none", "log_every": 5},
        checkpoint_every=10 * STEPS,
    )
    trainer.fit()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    yield trainer.model, open_store(data, "val"), [json.loads(line) for line in lines]
    trainer.close()


def test_the_actions_of_another_sequence_lose(run):
    """Nothing but the actions tells where the square goes."""
    model, store, _ = run
    seen = open_loop_psnr(model, make_windows(store, CONTEXT + HORIZON, 4), CONTEXT).psnr
    own, other, copy = (seen[name].mean(0) for name in (MEAN, OTHER, COPY))
    assert (own > other + 1.0).all()
    assert (own[3:] > copy[3:] + 1.0).all()


def test_frames_are_reconstructed_well_above_their_prediction_by_the_mean(run):
    model, store, _ = run
    assert judge_reconstruction(model, make_windows(store, 8, 4))["psnr"].mean() > 25


def test_successive_gradients_of_the_elbo_do_not_swing(run):
    """Steps of the locations as large as others' make the brightness of frames swing: cosines are then near -1."""
    _, _, rows = run
    cosines = [row["successive_cosine_elbo"] for row in rows if row["step"] > 100 and "successive_cosine_elbo" in row]
    assert len(cosines) > 20
    assert sum(cosines) / len(cosines) > -0.2


@torch.no_grad()
def test_a_slot_that_is_removed_changes_what_it_shows(run):
    """The change of a pixel without a slot follows the slot's share of its cell, over all slots.

    Not for each: one whose large shares lie in the empty background may change as much elsewhere.
    """
    model, store, _ = run
    _, batch = next(make_windows(store, 8, 8).parts())
    changes, held = [], []
    with evaluating(model):
        outputs = model(batch.frames(), batch.actions)
        whole, masks = model.with_masks(outputs.posterior_mean)
        for slot in range(model.config.num_slots):
            without, _ = model.with_masks(outputs.posterior_mean, without=(slot,))
            change = (without.mean() - whole.mean()).abs().flatten(0, 1).mean(1)
            share = masks[:, :, slot].flatten(0, 1)
            changes.append(F.adaptive_avg_pool2d(change, model.config.grid).flatten(1))
            held.append(share > share.quantile(0.75, dim=1, keepdim=True))
    change, of_slot = torch.stack(changes), torch.stack(held)
    assert change[of_slot].mean() > 1.3 * change[~of_slot].mean()
