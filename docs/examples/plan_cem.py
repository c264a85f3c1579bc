"""Planning in imagination, closed loop in dm_control, next to random actions and to the data.

    python docs/examples/plan_cem.py RUN

RUN is a run with the task `reward`, on data of `aime-fast collect`. docs/examples/README.md has the commands that made
one, and what it earned.
"""

# %% Options
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aime_fast.control.cem import Search, imagined_return
from aime_fast.control.planner import Planner, simulate
from aime_fast.control.returns import fit_returns
from aime_fast.data.collect.simulation import Choices
from aime_fast.data.shards.manifest import load_manifest
from aime_fast.data.store import open_episodes, open_store
from aime_fast.errors import plain_errors
from aime_fast.evaluation.windows import make_windows
from aime_fast.training.checkpoint.opening import open_run

parser = argparse.ArgumentParser()
parser.add_argument("run", help="folder of a run with the task `reward`, on data of `aime-fast collect`")
parser.add_argument("--episodes", type=int, default=5)
parser.add_argument("--length", type=int, default=250, help="frames of an episode")
parser.add_argument("--seed", type=int, default=1, help="of the starts; another one than that of the data")
parser.add_argument("--random-episodes", type=int, default=20, help="episodes under random actions")
parser.add_argument("--horizon", type=int, default=Search.horizon, help="frames that are imagined")
parser.add_argument("--candidates", type=int, default=Search.candidates, help="action sequences in a round")
parser.add_argument("--futures", type=int, default=Search.futures, help="futures imagined for a candidate")
parser.add_argument("--rounds", type=int, default=Search.rounds, help="rounds of a search")
parser.add_argument("--discount", type=float, default=0.95, help="of a reward, by each frame until it")
parser.add_argument("--rewards-only", action="store_true", help="plan without the network of returns")
options = parser.parse_args()
plain_errors()

# %% The model, and the environment as the data were collected: action repeat and camera
run = open_run(options.run, print)
folder = Path(run.data_path(None, print) or "")
manifest = load_manifest(folder)
choices = replace(Choices.of(manifest.collection or {}), length=options.length, seed=options.seed)
asked = {name: getattr(options, name) for name in ("horizon", "candidates", "futures", "rounds")}
model, search = run.model(), Search(**asked)

# %% What a future is worth: its rewards, and the return that recorded episodes went on to get from where it ends
after = None if options.rewards_only else fit_returns(model, open_store(folder, "train"), options.discount)
value = imagined_return(model, options.discount, after)
planner = Planner(model, search, value)

# %% Is there something to plan with? What other actions change in the returns that are imagined for held-out frames
windows = make_windows(open_store(folder, "val"), 5 + search.horizon, 20, limit=100)
batch = windows.batch(np.arange(len(windows)))
with torch.no_grad():
    state = model.observe(batch.frames()[:, :5], batch.actions[:, :5])
    futures = [model.imagine(state, actions[:, 4:-1]) for actions in (batch.actions, batch.actions.roll(1, 0))]
    own, other = (value(future) for future in futures)
print(f"imagined returns: standard deviation {own.std():.3f}, changed by other actions by {(own - other).std():.3f}")

# %% Returns. Equal seeds give equal starts, so the rows of the planner and of random actions can be paired.
returns: dict[str, list[float]] = {"CEM": [], "random actions": []}
for episode in simulate(replace(choices, policy="random"), range(options.random_episodes)):
    returns["random actions"].append(float(episode.rewards.sum()))
for episode in simulate(choices, range(options.episodes), planner):
    returns["CEM"].append(float(episode.rewards.sum()))
    print(f"CEM, episode {len(returns['CEM'])}: {returns['CEM'][-1]:.1f}", flush=True)

# %% The data: the same number of frames at the beginning of each training episode
data = open_episodes(folder, "train")
starts = zip(data.first.tolist(), data.lengths, strict=True)
returns["data"] = [float(data.rewards[first : first + min(n, options.length)].sum()) for first, n in starts]

# %% The table
print(f"return of {options.length} frames of {choices.environment}, {choices.action_repeat} simulation steps each")
print(f"{'policy':18}{'episodes':>9}{'mean':>9}{'median':>9}{'deviation':>11}{'least':>8}{'most':>8}")
for name, values in returns.items():
    numbers = (np.mean(values), np.median(values), np.std(values), min(values), max(values))
    widths = (9, 9, 11, 8, 8)
    print(f"{name:18}{len(values):9}" + "".join(f"{x:{w}.1f}" for x, w in zip(numbers, widths, strict=True)))
