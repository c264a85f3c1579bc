"""Step time of one configuration on 1 to 64 GPUs, the same windows on each, and what breaks first."""

from __future__ import annotations

from dataclasses import dataclass

from aime_fast.config import TrainConfig
from aime_fast.errors import UserError
from aime_fast.planning.cards import Card
from aime_fast.planning.memory import stage_of, windows_of
from aime_fast.planning.network import Interconnect, link_of
from aime_fast.planning.plan import step_of
from aime_fast.planning.rehearsal import rehearse, with_sizes

GPUS = (1, 2, 4, 8, 16, 32, 64)
LINKS: tuple[Interconnect, ...] = ("nvlink", "pcie", "ethernet")


@dataclass(frozen=True)
class Scaled:
    """A step on some GPUs."""

    gpus: int
    link: str
    """`none` for one GPU."""
    step_seconds: float
    waiting: float
    """Seconds of it in which GPUs wait for the network."""
    sent: float
    """Bytes that a GPU sends."""
    efficiency: float
    """Windows a second and GPU, relative to one GPU."""


def scaling(config: TrainConfig, card: Card, gpus: int = 1) -> list[Scaled]:
    """Rows by link, then by number of GPUs; links that the cards do not have are left out.

    config: its `loader.batch_size` is the batch over `gpus` GPUs; each GPU keeps its part.
    """
    config = with_sizes(config)
    windows, stage = windows_of(config, gpus), stage_of(config, gpus)
    seen = rehearse(config, windows, "cuda")
    alone = step_of(config, seen, card, 1, link_of(card, 1, "pcie"), 0).seconds
    rows = [Scaled(1, "none", alone, 0.0, 0.0, 1.0)]
    for name in LINKS:
        for number in GPUS[1:]:
            try:
                link = link_of(card, number, name)
            except UserError:  # these cards have no such link between so many
                continue
            step = step_of(config, seen, card, number, link, stage)
            waiting = next(phase.seconds for phase in step.phases if phase.name == "network")
            rows.append(Scaled(number, name, step.seconds, waiting, step.sent.total, alone / step.seconds))
    return rows
