"""What z_t and h_t know of the simulator's state: R2 of linear probes, next to PCA of pixels and an untrained model.

aime-fast collect --env cheetah_run --episodes 60 --out data/cheetah
aime-fast train --data data/cheetah --preset small --minutes 20 --out runs/cheetah
python docs/examples/probe_state.py runs/cheetah
"""

# %% Options
import argparse
from pathlib import Path

import torch

from aime_fast.data.shards.manifest import load_manifest
from aime_fast.data.shards.states import read_states
from aime_fast.data.store import open_store
from aime_fast.errors import plain_errors
from aime_fast.evaluation.linear import fit_pca
from aime_fast.evaluation.probe import probe
from aime_fast.evaluation.windows import make_windows
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.training.checkpoint.opening import open_run

parser = argparse.ArgumentParser()
parser.add_argument("run", help="folder of a run on data of `aime-fast collect`")
parser.add_argument("--windows", type=int, default=600, help="most windows of 16 frames in each split")
parser.add_argument("--components", type=int, default=36, help="principal components of the pixels")
options = parser.parse_args()
plain_errors()

# %% The run, its data, and the simulator's states, which `collect` kept beside the frames
run = open_run(options.run, print)
folder = Path(run.data_path(None, print) or "")
manifest = load_manifest(folder)
kept = read_states(folder, manifest)
train, held_out = (make_windows(open_store(folder, split), 16, 16, options.windows) for split in ("train", "val"))
train_ids, held_ids = ([entry.id for entry in manifest.entries(split, folder)] for split in ("train", "val"))

# %% Two models of one size, and principal components of the last frame of each training window
trained = run.model()
torch.manual_seed(0)
untrained = DPGMMVariationalRecurrentAutoencoder.from_config(run.config.model)
untrained.mean_frame.copy_(trained.mean_frame)
pixels = torch.cat([batch.frames()[:, ::8].flatten(0, 1).flatten(1) for _, batch in train.parts()])
pca = fit_pca(pixels, options.components)

# %% Features for a probe of your own: z [B, T, D] and h [B, T, H] of every frame, with one call
_, first = next(held_out.parts(2))
state = trained.observe(first.frames(), first.actions)
print("z", tuple(state.latent.shape), "h", tuple(state.hidden.shape))

# %% Ridge regression on training episodes, R2 on held-out ones
found = {"trained": probe(trained, train, held_out, kept, train_ids, held_ids, pca)}
found["untrained"] = probe(untrained, train, held_out, kept, train_ids, held_ids)
rows = {
    "z_t": (found["trained"], "z"),
    "h_t": (found["trained"], "h"),
    "z_t, untrained model": (found["untrained"], "z"),
    "h_t, untrained model": (found["untrained"], "h"),
    f"PCA-{options.components} of the frame": (found["trained"], "PCA codes"),
    f"PCA-{options.components} of two frames": (found["trained"], "PCA codes of two frames"),
}
print(f"R2 on {len(held_out)} held-out windows, mean over coordinates")
print(f"{'features':28}{'positions':>12}{'velocities':>12}")
for name, (scores, source) in rows.items():
    print(f"{name:28}{scores.mean(source, 'position'):12.3f}{scores.mean(source, 'velocity'):12.3f}")
