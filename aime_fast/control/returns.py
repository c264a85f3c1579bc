"""What follows the imagined frames: a small network reads it from the latent state, fitted to the recorded returns.

Where rewards are rare, most imagined futures have none, and a search has nothing to climb. The return that the recorded
behaviour went on to get grows on the way to a reward.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.data.store import Episodes
from aime_fast.errors import UserError
from aime_fast.evaluation.metrics import evaluating
from aime_fast.evaluation.windows import Windows
from aime_fast.model.parts.layers import mlp
from aime_fast.model.state import LatentState
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel

WINDOW, SETTLED = 64, 5
"""Episodes are filtered in windows of this many frames, of which the first are left out: h has seen too little."""
UNKNOWN = 0.05
"""A frame is left out if the recording ends before its return is known but for this share."""
HIDDEN, STEPS, ROWS, RATE, DECAY = 256, 3000, 512, 1e-3, 0.1
"""The fit: width of the two hidden layers, steps of AdamW, frames a step, its learning rate and weight decay."""


class ReturnHead(nn.Module):
    """Reads z_t and h_{t-1}: the expected return after frame t, discounted, under the recorded behaviour."""

    centre: Tensor
    scale: Tensor

    def __init__(self, inputs: Tensor, largest: float) -> None:
        """For inputs [N, D + H] and returns up to `largest` in size."""
        super().__init__()
        self.register_buffer("centre", inputs.mean(0))
        self.register_buffer("scale", inputs.std(0, correction=0) + 1e-3)
        self.largest = largest
        self.layers = mlp(inputs.shape[1], HIDDEN, 1, layers=2)

    def forward(self, state: LatentState) -> Tensor:
        """Expected returns [B, T]."""
        return self.read(_inputs(state))

    def read(self, inputs: Tensor) -> Tensor:
        """Inputs [..., D + H] -> returns [...]."""
        return self.largest * self.layers((inputs - self.centre) / self.scale)[..., 0]


def returns_to_go(rewards: Tensor, discount: float) -> Tensor:
    """sum_k discount^k rewards[t + k], of rewards [T]; float64 [T]."""
    total, found = torch.zeros((), dtype=torch.float64), []
    for reward in rewards.double().flip(0):
        total = reward + discount * total
        found.append(total)
    return torch.stack(found).flip(0)


def fit_returns(
    model: WorldModel, store: Episodes, discount: float, seed: int = 0, note: Callable[[str], None] = print
) -> ReturnHead:
    """Filter the frames of `store` with `model` and fit a `ReturnHead` to the returns of its episodes.

    The last tenth of the episodes, at least one, is kept aside: `note` gets the correlation of read and true returns
    there. The head is on the model's device. `UserError` for a discount outside of (0, 1), for data without rewards,
    and for less than two episodes with a known return.
    """
    if not 0 < discount < 1:
        raise UserError(f"discount is {discount}; give a number between 0 and 1")
    if not store.has_rewards:
        raise UserError(f"{store.description}: no rewards; returns need them")
    inputs, wanted, episodes = _examples(model, store, discount)
    distinct = episodes.unique()
    if len(distinct) < 2:
        raise UserError(
            f"{store.description}: {len(distinct)} of {len(store.lengths)} episodes show a return with discount "
            f"{discount}, and two are needed; record more or longer ones, or lower the discount"
        )
    last = max(1, len(distinct) // 10)
    fitted = episodes < distinct[-last]
    head = _fit(inputs[fitted], wanted[fitted], seed)
    with torch.no_grad():
        pair = torch.stack([head.read(inputs[~fitted]), wanted[~fitted]])
    found = f"correlation {float(pair.corrcoef()[0, 1]):.2f} with the true ones" if pair[1].std() > 0 else "all equal"
    note(f"returns: {found} in {last} episodes that the fit left out")
    return head.to(next(model.parameters()).device)


def _inputs(state: LatentState) -> Tensor:
    return torch.cat([state.latent, state.hidden], -1)


@torch.no_grad()
def _examples(model: WorldModel, store: Episodes, discount: float) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [N, D + H] of all settled frames whose return is known, these returns [N], and their episodes [N]."""
    totals = _known_returns(store, discount)
    inputs, wanted, episodes = [], [], []
    with evaluating(model) as device:
        for length, places in _windows(store.lengths).items():
            windows = Windows(store, length, np.array([place[:2] for place in places]))
            for rows, batch in windows.parts():
                read = _inputs(model.observe(batch.frames().to(device), batch.actions.to(device))).cpu()
                for row, number in enumerate(rows):
                    episode, start, first = places[number]
                    inputs.append(read[row, first - start :])
                    wanted.append(totals[episode][first : start + length])
                    episodes.append(torch.full((len(wanted[-1]),), episode))
    if not wanted:
        return torch.empty(0, 0), torch.empty(0), torch.empty(0, dtype=torch.int64)
    returns = torch.cat(wanted)
    known = ~returns.isnan()
    return torch.cat(inputs)[known], returns[known], torch.cat(episodes)[known]


def _known_returns(store: Episodes, discount: float) -> list[Tensor]:
    """The returns of each episode's frames, [T]; nan where the recording stops before enough of one is seen."""
    needed = int(np.ceil(np.log(UNKNOWN) / np.log(discount)))
    totals = []
    for first, length in zip(store.first.tolist(), store.lengths, strict=True):
        mine = slice(first, first + length)
        found = returns_to_go(torch.from_numpy(store.rewards[mine]), discount)
        if not store.terminated[mine][-1]:  # rewards would have followed
            found[max(0, length - needed) :] = torch.nan
        totals.append(found.float())
    return totals


def _windows(lengths: list[int]) -> dict[int, list[tuple[int, int, int]]]:
    """By the length of a window: (episode, its first frame, the first that counts). Each settled frame counts once."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for episode, frames in enumerate(lengths):
        length, counted = min(WINDOW, frames), SETTLED
        for start in (*range(0, frames - length + 1, WINDOW - SETTLED), frames - length):
            if start + length > counted:
                found.setdefault(length, []).append((episode, start, counted))
                counted = start + length
    return found


def _fit(inputs: Tensor, wanted: Tensor, seed: int) -> ReturnHead:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ReturnHead(inputs, float(wanted.abs().max()) or 1.0)
    optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (ROWS,), generator=generator)
        loss = F.mse_loss(head.read(inputs[rows]) / head.largest, wanted[rows] / head.largest)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head.requires_grad_(False)
