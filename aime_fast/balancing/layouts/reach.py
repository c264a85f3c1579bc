"""Which tasks reach which parameters, and buffers of parameters that the same tasks reach."""

from collections.abc import Hashable, Sequence

Reach = Sequence[frozenset[int]]
"""For each trainable parameter, or each buffer of them, the numbers of the tasks whose gradients can reach it."""

SMALLEST = 1 << 16
"""Entries of a buffer of its own: for fewer, one more collective or kernel costs more than the zeros it spares."""


def parts(sizes: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """Positions with the same key; those whose key has fewer than `SMALLEST` entries in all come together, last.

    sizes: entries of each parameter. keys: what parameters of one buffer have in common, such as the tasks that reach
    them.
    """
    by_key: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        by_key.setdefault(key, []).append(position)
    total = {key: sum(sizes[position] for position in positions) for key, positions in by_key.items()}
    small = [position for key, positions in by_key.items() if total[key] < SMALLEST for position in positions]
    large = [positions for key, positions in by_key.items() if total[key] >= SMALLEST]
    return [*large, small] if small else large


def merged(reach: Reach, positions: Sequence[int]) -> frozenset[int]:
    """The tasks that reach any of these parameters."""
    return frozenset().union(*(reach[position] for position in positions))
