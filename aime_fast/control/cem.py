"""Planning by the cross-entropy method (Rubinstein 1997): try action sequences in imagination, sample near the best.

All candidates of all starting states are imagined at once, as rows of one batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.errors import UserError, check_at_least
from aime_fast.model.state import LatentState
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.reward import Reward

Value = Callable[[LatentState], Tensor]
"""What an imagined future is worth: a state [N, horizon, ...] -> [N]."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How much is tried. `UserError` for numbers that do not fit together."""

    horizon: int = 16
    """Frames that are imagined."""
    hold: int = 4
    """Frames for which an action is kept. With 1 every frame has its own action, and the search is harder."""
    candidates: int = 48
    """Sequences that are tried in a round."""
    elites: int = 8
    """Best sequences of a round; the next one is drawn from the Gaussian with their mean and deviation."""
    rounds: int = 3
    futures: int = 4
    """Futures imagined for a candidate. Its value is their mean: of one alone, the lucky draws would be chosen."""

    def __post_init__(self) -> None:
        check_at_least(1, **vars(self))
        if self.elites > self.candidates:
            raise UserError(f"{self.elites} elites of {self.candidates} candidates; choose fewer elites")

    @property
    def actions(self) -> int:
        """n, the number of actions in a sequence."""
        return math.ceil(self.horizon / self.hold)


@dataclass(frozen=True)
class Plan:
    """The result of a search for each of B starting states."""

    actions: Tensor
    """The best sequence of the last round, float32 [B, n, A]; each action is for `Search.hold` frames."""
    mean: Tensor
    """The mean of that round's elites, [B, n, A]: where a later search begins."""
    value: Tensor
    """The mean value of these elites, [B]."""


def imagined_return(model: WorldModel, discount: float = 1.0, after: Value | None = None) -> Value:
    """The discounted sum of rewards that the reward head reads, and at its end what `after` says of the last frame.

    Both count as far as the episode goes on until then. `after` reads states [N, 1, ...] (`returns.ReturnHead`).
    `UserError` for a model that was trained without the task `reward`.
    """
    task = Reward()
    if task.name not in model.heads:
        raise UserError("the model has no reward head; train it with --tasks elbo,perceiver,predictive,reward")

    def value(state: LatentState) -> Tensor:
        read = task.predictions(model.heads[task.name](state))
        beyond = (discount * read["continuation"]).cumprod(1)  # what counts after each frame
        counts = beyond.roll(1, 1)
        counts[:, 0] = 1.0
        found = (read["reward"] * counts).sum(1)
        return found if after is None else found + beyond[:, -1] * after(state.at(-1)).flatten()

    return value


@torch.no_grad()
def plan(
    model: WorldModel,
    value: Value,
    state: LatentState,
    bounds: tuple[Tensor, Tensor],
    search: Search,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Plan:
    """Search for the actions after the last frame of `state` [B, T, ...], within `bounds`, two tensors [A].

    `start` [B, n, A] is the mean of the first round (None: the middle of the bounds), whose deviation is half of their
    width. The `generator` is on the CPU; equal ones give equal plans. Each round keeps its best candidate for the next.
    """
    low, high = (bound.to(state.latent) for bound in bounds)
    shape = (len(state.latent), search.actions, len(low))
    mean = ((low + high) / 2).expand(shape) if start is None else start.to(low)
    deviation = ((high - low) / 2).expand(shape)
    rows = state.at(-1).repeat(search.candidates)
    best: Tensor | None = None
    for _ in range(search.rounds):
        noise = torch.randn(shape[0], search.candidates, *shape[1:], generator=generator).to(low)
        tried = (mean[:, None] + deviation[:, None] * noise).clamp(low, high)
        if best is not None:
            tried[:, 0] = best[:, 0]
        values = _values(model, value, rows, tried, search, generator)
        kept = values.topk(search.elites, dim=1)
        best = tried.gather(1, kept.indices[..., None, None].expand(-1, -1, *shape[1:]))
        mean, deviation = best.mean(1), best.std(1, correction=0)
    assert best is not None  # there is at least one round
    return Plan(best[:, 0], mean, kept.values.mean(1))


def _values(
    model: WorldModel, value: Value, rows: LatentState, tried: Tensor, search: Search, generator: torch.Generator
) -> Tensor:
    """The value [B, N] of each candidate [B, N, n, A], the mean of its futures."""
    actions = tried.flatten(0, 1).repeat_interleave(search.hold, 1)[:, : search.horizon]
    key = int(torch.randint(2**31, (), generator=generator))
    futures = model.imagine(rows, actions, samples=search.futures, key=key, alike=True)
    return value(futures).view(*tried.shape[:2], search.futures).mean(2)
