"""From arrays of your own to a trained model and a prediction.

    python docs/examples/own_recordings.py --minutes 5 --out runs/own

A white square is pushed around by two numbers. Replace `record` by your own frames and actions.
"""

# %% Options
import argparse
from pathlib import Path

import h5py
import numpy as np
from torch.utils.data import DataLoader

from aime_fast import DMCVBDataset, DMCVBTrainer
from aime_fast.data.packing.pack import pack
from aime_fast.errors import UserError, plain_errors
from aime_fast.evaluation.metrics import CEILING, psnr

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="runs/own", help="folder of the recording, the shards and the run")
parser.add_argument("--episodes", type=int, default=20)
parser.add_argument("--minutes", type=float, default=5.0, help="longest training")
parser.add_argument("--steps", type=int, default=None, help="most steps of training")
parser.add_argument("--preset", default="small")
options = parser.parse_args()
plain_errors()
out = Path(options.out)
if out.exists():
    raise UserError(f"--out {out} is there already; choose a new folder")
out.mkdir(parents=True)


# %% A recording: frames uint8 [N, 64, 64, 3], and the action taken after each frame, float32 [N, 2]
def record(draw: np.random.Generator, length: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """One episode. `actions[t]` leads from frame t to frame t+1."""
    frames = np.full((length, 64, 64, 3), 60, np.uint8)
    actions = np.zeros((length, 2), np.float32)
    place, size = draw.uniform(0, 50, 2), 14
    for t in range(length):
        row, column = place.astype(int)
        frames[t, row : row + size, column : column + size] = 220
        actions[t] = np.clip(0.9 * actions[t - 1] + draw.normal(0, 0.4, 2), -1, 1)
        place = np.clip(place + 5 * actions[t], 0, 64 - size)
    return frames, actions


# %% Into one HDF5 file, episodes end to end; `terminals` or `timeouts` marks the last frame of each
draw = np.random.default_rng(0)
episodes = [record(draw) for _ in range(options.episodes)]
last = np.concatenate([np.arange(len(actions)) == len(actions) - 1 for _, actions in episodes])
with h5py.File(out / "recording.h5", "w") as file:
    file["observations"] = np.concatenate([frames for frames, _ in episodes])
    file["actions"] = np.concatenate([actions for _, actions in episodes])
    file["rewards"] = np.zeros(len(last), np.float32)
    file["terminals"], file["timeouts"] = np.zeros(len(last), bool), last

# %% Shards: checked once, mapped into memory afterwards. A fifth of the episodes is held out.
shards = pack(out / "recording.h5", out / "shards", report=print)

# %% Training
run = {"preset": options.preset, "data": str(shards), "out": str(out / "run")}
trainer = DMCVBTrainer(**run, minutes=options.minutes, steps=options.steps)
print(trainer.fit())
model = trainer.engine.module.eval()

# %% A prediction: of held-out windows, five frames are seen and ten imagined from actions alone
windows = DMCVBDataset(shards, sequence_length=15, split="val", window_stride=20)
batch = next(iter(DataLoader(windows, batch_size=16)))
frames, actions = batch["observations"], batch["actions"]
state = model.observe(frames[:, :5], actions[:, :5])
imagined = model.decode(model.imagine(state, actions[:, 4:-1])).mean()
print(f"PSNR in dB, mean of {len(frames)} held-out windows, 1 to 10 frames ahead")
for name, guess in {"imagined": imagined, "last frame copied": frames[:, 4:5].expand_as(imagined)}.items():
    print(f"{name:20}", *(f"{value:5.1f}" for value in psnr(guess, frames[:, 5:]).clamp_max(CEILING).mean(0).tolist()))
trainer.close()
