"""A background that no training episode has is kept of the last frame seen, and the body on it is not."""

import pytest
import torch
from synthetic import moving_shapes

from aime_fast.evaluation.metrics import evaluating
from aime_fast.training.trainer import DMCVBTrainer

pytestmark = pytest.mark.long
CONTEXT, HORIZON, STEPS = 3, 6, 200


def test_the_background_of_an_episode_is_kept_while_imagining(tmp_path):
    made = moving_shapes(episodes=40, length=16, objects=1, textured=True)
    trainer = DMCVBTrainer(
        preset="debug",
        data=made.write(tmp_path / "data"),
        steps=STEPS,
        out=tmp_path / "run",
        loader={"batch_size": 8},
        logging={"tracker": "none"},
        checkpoint_every=10 * STEPS,
    )
    trainer.fit()
    model = trainer.model
    end = CONTEXT + HORIZON
    frames = torch.from_numpy(made.frames[-2:, :end]).movedim(-1, 2)
    actions = torch.from_numpy(made.actions[-2:, :end])
    covered = torch.from_numpy(made.masks[-2:, :end, 0])
    with torch.no_grad(), evaluating(model):
        state = model.imagine(model.observe(frames[:, :CONTEXT], actions[:, :CONTEXT]), actions[:, CONTEXT - 1 : -1])
        kept, drawn = model.decode(state).mean(), model.likelihood(state.latent).mean()
    truth = frames[:, CONTEXT:] / 127.5 - 1
    # What the object covers in neither frame, and what it left bare since.
    background = ~covered[:, CONTEXT - 1 : CONTEXT] & ~covered[:, CONTEXT:]
    bared = covered[:, CONTEXT - 1 : CONTEXT] & ~covered[:, CONTEXT:]
    errors = {name: (x - truth).square().mean(2) for name, x in (("kept", kept), ("drawn", drawn))}
    last = (frames[:, CONTEXT - 1 : CONTEXT] / 127.5 - 1 - truth).square().mean(2)
    assert errors["kept"][background].mean() < 0.25 * errors["drawn"][background].mean()
    assert errors["kept"][bared].mean() < 0.5 * last[bared].mean()
