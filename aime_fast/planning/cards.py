"""Published peaks of cards: what a plan divides its counts by."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from aime_fast.errors import unknown_name

_FILE = Path(__file__).with_name("cards.toml")


@dataclass(frozen=True)
class Card:
    """One GPU by its data sheet. Rates are dense peaks: nothing reaches them all the time."""

    name: str
    """Short name, as `--gpu` takes it."""
    title: str
    """The maker's name."""
    capability: float
    """Compute capability."""
    memory: float
    """Bytes that CUDA reports as the card's whole memory."""
    bandwidth: float
    """Bytes a second between memory and multiprocessors."""
    bf16: float
    """FLOP a second of bfloat16 products with sums in float32."""
    tf32: float
    """FLOP a second of TF32 products."""
    fp32: float
    """FLOP a second of float32 products without tensor cores."""
    multiprocessors: int
    """Multiprocessors; each computes one tile of a product at a time."""
    nvlink: float
    """Bytes a second and direction of NVLink; 0 without."""
    pcie: float
    """Bytes a second and direction of PCIe."""
    source: str
    """Where the figures are published."""


@cache
def cards() -> dict[str, Card]:
    """All known cards by short name."""
    with _FILE.open("rb") as file:
        rows = tomllib.load(file)
    return {name: _card(name, row) for name, row in rows.items()}


def card(name: str) -> Card:
    """The card with this short name, in any case; `UserError` with the nearest name and the list for another."""
    known, wanted = cards(), name.lower().replace("_", "-").replace(" ", "")
    if wanted not in known:
        raise unknown_name("--gpu", name, known)
    return known[wanted]


def _card(name: str, row: dict[str, Any]) -> Card:
    units = {"memory": 1e9, "bandwidth": 1e9, "nvlink": 1e9, "pcie": 1e9, "bf16": 1e12, "tf32": 1e12, "fp32": 1e12}
    return Card(name=name, **row | {field: row[field] * unit for field, unit in units.items()})
