"""What joins the GPUs, and the seconds that a step's traffic takes on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from aime_fast.balancing.layouts.communication import Traffic
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


def waiting(backward: Sequence[float], sent: Traffic, link: Link, gpus: int) -> float:
    """Seconds of a step in which GPUs wait for the network.

    backward: seconds of each task's backward pass. A task's reduction runs while the next task's pass does. The rest
    (gathering, Gram matrices, averages) is waited for.
    """
    if gpus == 1:
        return 0.0
    rate, round_ = REACHED * link.bandwidth, (gpus - 1) * link.latency
    now = free = 0.0
    for seconds, size in zip(backward, sent.by_task, strict=True):
        now += seconds
        free = max(now, free) + size / rate + round_
    return free - now + (sent.gathered + sent.sums) / rate + COLLECTIVES * round_
