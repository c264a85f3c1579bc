"""Frame by frame in the loop of an environment: the state after each frame, and what is expected of the next one.

    python docs/examples/filter_frames.py runs/reacher --frames 100

RUN is a run on data of `aime-fast collect`. Its environment, camera and action repeat are read from the data.
"""

# %% Options
import argparse
import os
from pathlib import Path

import numpy as np
import torch

from aime_fast.data.collect.simulation import Choices, prepare_rendering, render
from aime_fast.data.shards.manifest import load_manifest
from aime_fast.doctor import choose_graphics
from aime_fast.errors import plain_errors
from aime_fast.evaluation.metrics import CEILING, psnr
from aime_fast.training.checkpoint.opening import open_run

parser = argparse.ArgumentParser()
parser.add_argument("run", help="folder of a run on data of `aime-fast collect`")
parser.add_argument("--frames", type=int, default=100)
options = parser.parse_args()
plain_errors()

# %% The model, and the environment that it knows
run = open_run(options.run, print)
choices = Choices.of(load_manifest(Path(run.data_path(None, print) or "")).collection or {})
model = run.model()
os.environ["MUJOCO_GL"] = choose_graphics()[0] or ""
from dm_control import suite  # noqa: E402  MUJOCO_GL is read when this is imported

domain, _, task = choices.environment.partition("_")
names = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
environment = suite.load(*names[choices.environment], task_kwargs={"random": 0})
prepare_rendering(environment, choices.size)
spec, draw = environment.action_spec(), np.random.default_rng(0)


# %% One frame as the model reads it, uint8 [1, 3, S, S]
def look() -> torch.Tensor:
    """The present frame."""
    picture = render(environment, choices.camera, choices.size).copy()
    return torch.from_numpy(picture).movedim(-1, 0)[None]


# %% The loop: `filter` adds one frame to the state; nothing that was seen before is computed again
environment.reset()
frame = look()
state = model.filter(model.initial_state(1), frame)
scores = []
for _ in range(options.frames):
    action = draw.uniform(spec.minimum, spec.maximum).astype(np.float32)
    taken = torch.from_numpy(action)[None]
    expected = model.decode(model.imagine(state, taken[:, None], samples=4)).mean().mean(0)[0]
    for _ in range(choices.action_repeat):
        environment.step(action)
    before, frame = frame, look()
    state = model.filter(state, frame, taken)
    truth = frame[0] / 127.5 - 1
    seen = model.decode(state).mean()[0, 0]
    scores.append(torch.stack([psnr(x, truth) for x in (seen, expected, before[0] / 127.5 - 1)]))

# %% How well each frame was described after it was seen, and expected before
means = torch.stack(scores).clamp_max(CEILING).mean(0).tolist()
print(f"PSNR in dB, mean of {options.frames} frames of {choices.environment} under random actions")
for name, value in zip(("reconstructed", "expected, mean of 4 futures", "the frame before"), means, strict=True):
    print(f"{name:30}{value:6.1f}")
