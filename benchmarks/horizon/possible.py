"""What the wrong actions would cost a perfect model on a data set, in dB: no model is needed for it.

    python -m benchmarks.horizon.possible SHARDS [STRIDE]

SHARDS is a folder that `aime-fast collect` wrote. Prints the figures of `REFERENCE` dB by frames ahead.
"""

import sys
from pathlib import Path

import torch

from aime_fast.data.shards.manifest import load_manifest
from aime_fast.data.shards.states import read_states
from aime_fast.data.store import open_store
from aime_fast.errors import exit_on_user_error
from aime_fast.evaluation.evaluation import Questions
from aime_fast.evaluation.intervals import mean_over
from aime_fast.evaluation.share import REFERENCE, frame_distance, other_futures, possible_loss
from aime_fast.evaluation.windows import make_windows

from .table import HORIZONS


def main() -> None:
    folder, stride = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else Questions.stride
    manifest, asked = load_manifest(folder), Questions()
    windows = make_windows(open_store(folder, "val"), asked.context + asked.horizon, stride)
    numbers = [entry.id for entry in manifest.entries("val", folder)]
    truth, difference = other_futures(windows, numbers, read_states(folder, manifest), asked.context)
    own = torch.cat([batch.observations[:, asked.context :] for _, batch in windows.parts(64)])
    possible = possible_loss(frame_distance(own, truth), REFERENCE).numpy()
    print(f"{folder.name}: {len(windows)} windows; simulated again, frames differ by {difference:.0f} levels")
    for h in HORIZONS:
        print(f"{h:3d} frames ahead: {mean_over(possible[:, h - 1], windows.episodes)} dB")


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
