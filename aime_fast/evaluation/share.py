"""How much of the actions' effect a model shows, of what the simulator says is possible.

From the same state, other actions lead to another future y, true as well. A model that reconstructs with a squared
error r and predicts perfectly would, given the wrong actions, miss the true future x by r + |x - y|^2 in the mean. So
the wrong actions would cost it 10 log10(1 + |x - y|^2 / r) dB. The share is what they cost the model, divided by that.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from aime_fast.data.collect.collector_pool import FuturesPool, usable_cores
from aime_fast.data.collect.simulation import Choices
from aime_fast.data.shards.states import KeptStates
from aime_fast.doctor import choose_graphics
from aime_fast.errors import UserError
from aime_fast.evaluation.intervals import Estimate, ratio_over
from aime_fast.evaluation.windows import Windows

REFERENCE = 31.0
"""PSNR in dB of the reconstruction of the perfect model that data sets are compared by."""


def possible_loss(distance: Tensor, reconstruction: float) -> Tensor:
    """dB that a perfect model loses by the wrong actions.

    `distance` [...] is the mean squared difference of the two true futures, frames in [0, 1]; the model reconstructs
    at `reconstruction` dB.
    """
    return 10.0 * torch.log10(1.0 + distance.double() * 10.0 ** (reconstruction / 10.0))


def share_of_possible(own: Tensor, other: Tensor, possible: Tensor, episodes: np.ndarray) -> list[Estimate]:
    """At each horizon, what wrong actions cost the model over what is possible: mean over mean, all [W, horizon].

    `own` and `other` are the PSNR of the predictions with the window's own and with the other actions.
    """
    lost = (own - other).numpy()
    return [ratio_over(lost[:, h], possible[:, h].numpy(), episodes) for h in range(lost.shape[1])]


def frame_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of frames uint8 [..., H, W, 3] as values in [0, 1]: float64 [...]."""
    return ((a.double() - b.double()) / 255.0).square().mean((-3, -2, -1))


def other_futures(windows: Windows, numbers: list[int], kept: KeptStates, context: int) -> tuple[Tensor, float]:
    """The true futures of all windows under their partners' actions: uint8 [W, horizon, S, S, 3].

    `numbers` are those of the windows' episodes in the recording. Also returns the largest difference, in levels, of a
    first frame that is simulated again with the recorded actions from the recorded one: 0 for the same simulator and
    lossless frames. `UserError` if nothing can be simulated here.
    """
    graphics, results = choose_graphics()
    if graphics is None:
        raise UserError(f"nothing renders here, {results[0].line} (`aime-fast doctor` says more)")
    # The policy has acted already, and its module may not be here.
    choices = replace(Choices.of(kept.collection), policy="random")
    if choices.size != windows.store.image_size:
        raise UserError(
            f"frames of {windows.store.image_size} pixels were made of {choices.size}: judge a run on those"
        )
    tasks, checks = [], []
    present = np.unique(windows.episodes)
    for episode in present:
        rows = np.flatnonzero(windows.episodes == episode)
        own, partner = windows.batch(rows), windows.batch(windows.partners[rows])
        states = kept.of(numbers[episode])[windows.places[rows, 1] + context - 1]
        first = [(states[0], own.actions[0, context - 1 : context].numpy())]
        checks.append(own.observations[0, context].int())
        others = partner.actions[:, context - 1 : -1].numpy()
        tasks.append((numbers[episode], first + list(zip(states, others, strict=True))))
    made: dict[int, list[np.ndarray]] = {}
    with FuturesPool(choices, graphics, min(usable_cores(), len(tasks))) as pool:
        for _, number, result in pool.run(tasks):
            if number is not None and result is not None:
                made[number] = result
    shape = (len(windows), windows.length - context, *windows.batch(np.array([0])).observations.shape[2:])
    frames, difference = torch.empty(shape, dtype=torch.uint8), 0.0
    for place, episode in enumerate(present):
        again, *rest = made[place]
        difference = max(difference, float((torch.from_numpy(again[0]).int() - checks[place]).abs().max()))
        frames[np.flatnonzero(windows.episodes == episode)] = torch.from_numpy(np.stack(rest))
    return frames, difference
