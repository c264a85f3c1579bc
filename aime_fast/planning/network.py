"""What joins the GPUs, and the seconds that a step's traffic takes on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from aime_fast.errors import UserError, unknown_name
from aime_fast.planning.cards import Card

Interconnect = Literal["auto", "nvlink", "pcie", "ethernet"]
GPUS_PER_MACHINE = 8
ETHERNET = 12.5e9
"""Bytes a second and direction of the 100 Gbit/s network of a machine, which its GPUs share."""
REACHED = 0.7
"""The part of a link's peak that rings reach with messages of some megabytes. Not measured here."""
THROUGH_HOST = 0.5
"""GeForce cards may not read each other's memory: over PCIe every byte goes through the host, and crosses twice."""
LATENCY = {"nvlink": 5e-6, "pcie": 10e-6, "ethernet": 30e-6}
"""Seconds of one round of a ring between neighbours. Not measured here."""
COLLECTIVES = 4
"""Collectives a step beside those of the task gradients: parameters or update, Gram matrices, two averages."""
_FLOAT = 4


@dataclass(frozen=True)
class Link:
    """The slowest link of a ring through all GPUs."""

    name: str
    bandwidth: float
    """Bytes a second and direction for one GPU, at its peak."""
    latency: float
    machines: int

    @property
    def title(self) -> str:
        """The link in words."""
        inside = f"{self.name}, {self.bandwidth / 1e9:.4g} GB/s a direction"
        return inside if self.machines == 1 else f"{self.machines} machines, {inside} a machine"


def link_of(card: Card, gpus: int, interconnect: str = "auto") -> Link:
    """The link of `gpus` cards, eight to a machine.

    `auto`: NVLink where the card has it for that many, else PCIe; Ethernet between machines. `UserError` for an unknown
    name, and for NVLink on a card without it or beyond one machine.
    """
    if interconnect not in get_args(Interconnect):
        raise unknown_name("--interconnect", interconnect, get_args(Interconnect))
    machines = -(-gpus // GPUS_PER_MACHINE)
    bridged = card.nvlink > 0 and gpus <= (2 if card.nvlink < card.pcie * 2 else GPUS_PER_MACHINE)
    if interconnect == "auto":
        interconnect = "ethernet" if machines > 1 else "nvlink" if bridged else "pcie"
    if interconnect == "nvlink" and not bridged:
        raise UserError(
            f"--interconnect nvlink: {card.title} has no NVLink between {gpus} cards; take pcie or ethernet"
        )
    if interconnect == "pcie" and machines > 1:
        raise UserError(
            f"--interconnect pcie: {gpus} GPUs are {machines} machines of {GPUS_PER_MACHINE}; take ethernet"
        )
    pcie = card.pcie * (THROUGH_HOST if card.name.startswith("rtx") else 1.0)
    bandwidth = {"nvlink": card.nvlink, "pcie": pcie, "ethernet": ETHERNET}[interconnect]
    return Link(interconnect, bandwidth, LATENCY[interconnect], machines)


@dataclass(frozen=True)
class Sent:
    """Bytes that one GPU sends in a step."""

    reduced: tuple[float, ...]
    """Of each task's gradient, to the GPUs that keep its shards."""
    gathered: float
    """Of the update or the parameters."""

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.reduced) + self.gathered


def sent_bytes(
    sizes: Sequence[int],
    reach: Sequence[frozenset[int]],
    gpus: int,
    stage: int,
    tasks: int,
    micro_batches: int = 1,
    number: int = 4,
) -> Sent:
    """What rings send. sizes, reach: of each parameter. number: bytes of a gradient's entry while it is sent.

    Each task's gradient is reduced to shards, a parameter only for the tasks that reach it; then the update or the
    parameters are gathered in float32. ZeRO-2 and 3 reduce each micro-batch.
    """
    share, times = (gpus - 1) / gpus, micro_batches if stage >= 2 else 1
    known = list(zip(sizes, reach, strict=True))
    reduced = (sum(size for size, reached in known if task in reached) for task in range(tasks))
    return Sent(tuple(share * number * times * size for size in reduced), share * _FLOAT * sum(sizes))


def waiting(backward: Sequence[float], sent: Sent, link: Link, gpus: int) -> float:
    """Seconds of a step in which GPUs wait for the network.

    backward: seconds of each task's backward pass. A task's reduction runs while the next task's pass does. The rest
    (gathering, Gram matrices, averages) is waited for.
    """
    if gpus == 1:
        return 0.0
    rate, round_ = REACHED * link.bandwidth, (gpus - 1) * link.latency
    now = free = 0.0
    for seconds, size in zip(backward, sent.reduced, strict=True):
        now += seconds
        free = max(now, free) + size / rate + round_
    return free - now + sent.gathered / rate + COLLECTIVES * round_
