"""Several models on the same held-out windows, side by side, with intervals of the differences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from aime_fast.evaluation.intervals import Estimate
from aime_fast.evaluation.kept import Figure, figures_of
from aime_fast.evaluation.open_loop import CONSTANT, COPY, MEAN, ONE, OTHER, shown
from aime_fast.evaluation.reconstruction import BITS, KL, NATS
from aime_fast.evaluation.report import LPIPS, NETWORK, SSIM, without_nan

BLOCKS: tuple[tuple[str, str, str | None, str, int], ...] = (
    ("psnr", MEAN, "psnr", "PSNR in dB, mean of the futures", 2),
    ("psnr", ONE, None, "PSNR in dB, one future", 2),
    ("psnr", OTHER, None, "PSNR in dB, another window's actions", 2),
    ("lost", "another window's actions", None, "dB that another window's actions cost", 2),
    ("moving", MEAN, "moving", "PSNR in dB over moving pixels", 2),
    (SSIM, MEAN, SSIM, "SSIM, mean of the futures", 3),
    (LPIPS, ONE, LPIPS, "LPIPS of one future, lower is better", 3),
    (KL, "", KL, "KL of z, nats a frame", 1),
    (NATS, "", NATS, "negative ELBO, nats a frame", 0),
    (BITS, "", BITS, "negative ELBO, bits a dimension", 3),
)
"""Metric, prediction, name of the reconstruction's figure in column 0, title, decimals."""
WITHOUT_MODEL = ((COPY, "last frame copied"), (CONSTANT, "mean training frame"))
NAME, CELL = 44, 16


@dataclass(frozen=True)
class Comparison:
    """Results of the same windows by name of the run; the first is the one that others are compared with."""

    results: Mapping[str, Mapping[str, Any]]

    @cached_property
    def figures(self) -> dict[str, dict[Figure, Estimate]]:
        """Of each run. LPIPS is left out if it is not by the same network for all."""
        networks = {result["facts"].get(NETWORK) for result in self.results.values()}
        return {
            name: {key: x for key, x in figures_of(result).items() if key.metric != LPIPS or len(networks) == 1}
            for name, result in self.results.items()
        }

    def to_json(self) -> str:
        """`runs`, the results by name, and `differences` from the first run: a list of figures for each other run."""
        differences = {
            name: [key._asdict() | asdict(value) for key, value in known.items()]
            for name, known in self.differences().items()
        }
        return json.dumps(without_nan({"runs": self.results, "differences": differences}), indent=1) + "\n"

    def differences(self) -> dict[str, dict[Figure, Estimate]]:
        """Of each other run from the first one, paired over episodes, where both have a figure of the same windows."""
        (_, first), *others = self.figures.items()
        found: dict[str, dict[Figure, Estimate]] = {}
        for name, figures in others:
            pairs = {key: value.minus(first[key]) for key, value in figures.items() if key in first}
            found[name] = {key: value for key, value in pairs.items() if value is not None}
        return found

    def __str__(self) -> str:
        facts = next(iter(self.results.values()))["facts"]
        figures, differences, base = self.figures, self.differences(), next(iter(self.results))
        columns = [0, *shown(facts["horizon"])]
        lines = [
            f"{facts['windows']} held-out windows of {facts['episodes']} episodes of {facts['data']}, "
            f"{facts['context']} frames seen",
            "± half of the 95 % interval over episodes; * differs from the first run: the interval leaves out 0",
            "column 0 is the reconstruction, others are frames ahead",
        ]
        for metric, prediction, reconstructed, title, digits in BLOCKS:
            keys = [Figure(reconstructed or "none", "", 0), *(Figure(metric, prediction, h) for h in columns[1:])]
            if not any(key in known for key in keys for known in figures.values()):
                continue
            cells = columns if prediction else columns[:1]
            lines.append(f"{title:{NAME}}" + "".join(f"{h:>{CELL}}" for h in cells))
            keys = keys[: len(cells)]
            lines += [_row(name, [known.get(key) for key in keys], digits) for name, known in figures.items()]
            for name, known in differences.items():
                lines.append(_row(f"{name} - {base}", [known.get(key) for key in keys], digits, mark=True))
        return "\n".join([*lines, *self._without_model(columns)])

    def _without_model(self, columns: Sequence[int]) -> list[str]:
        known = next(iter(self.figures.values()))
        head = f"{'PSNR in dB without a model':{NAME}}" + "".join(f"{h:>{CELL}}" for h in columns)
        rows = [_row(title, [known.get(Figure("psnr", name, h)) for h in columns], 2) for name, title in WITHOUT_MODEL]
        return [head, *rows]


def _row(name: str, cells: Sequence[Estimate | None], digits: int, mark: bool = False) -> str:
    short = name if len(name) < NAME else "…" + name[-(NAME - 2) :]
    return f"{short:{NAME}}" + "".join(f"{_cell(cell, digits, mark):>{CELL}}" for cell in cells)


def _cell(value: Estimate | None, digits: int, mark: bool) -> str:
    if value is None:
        return ""
    clear = mark and (value.low > 0 or value.high < 0)
    return value.text(digits) + (" *" if clear else "  " if mark else "")
