"""What the protocol does: data sets, budgets, and where everything lies."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aime_fast.data.shards.states import STATES
from aime_fast.errors import UserError

SAMPLE, BASE = "sample", "base"
COLLECTED = ("cheetah_run", "walker_walk", "reacher_easy")
QUICK_SETS = COLLECTED[:2]
COLLECTION_SEED, HELD_OUT = 100, 6
STRIDE = 25
"""Frames between two held-out windows of a set that was collected here: 120 windows of six episodes of 500 frames."""


@dataclass(frozen=True)
class Budget:
    """What every variant gets."""

    preset: str = "small"
    steps: int = 2000
    batch_size: int = 8
    seeds: int = 2
    parts: bool = True

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.steps}"


QUICK = Budget(steps=600, seeds=1, parts=False)


@dataclass(frozen=True)
class DataSet:
    """One data set: the recorded sample, one that is collected here, or the user's own."""

    name: str
    path: Path | None = None
    """None for the sample."""
    episodes: int = 0
    """To collect; 0 for a set that is there."""
    length: int = 0

    @property
    def collected(self) -> bool:
        return self.episodes > 0

    @property
    def simulated(self) -> bool:
        """Whether the simulator's states are kept."""
        return self.path is not None and (self.path / STATES).is_file()

    @property
    def ready(self) -> bool:
        return not self.collected or (self.path is not None and (self.path / "manifest.json").is_file())


@dataclass(frozen=True)
class Variant:
    """One way to train, with a folder of its own for each budget."""

    name: str
    changes: dict[str, str] = field(default_factory=dict)
    """Options of training by name, such as `losses.beta_warmup_steps`."""


@dataclass(frozen=True)
class Seed:
    """One run: a variant on a data set with a seed."""

    folder: Path
    data: DataSet
    seed: int

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def trained(self) -> Path:
        """Is there once the run is complete, its dynamics' learning anew included."""
        return self.folder / "trained"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def commit(self) -> Path:
        """Names the commit that trained it last."""
        return self.folder / "commit"


def data_sets(out: Path, names: list[str], own: list[str], episodes: int, length: int) -> list[DataSet]:
    """The sets with these names, and the user's own; `UserError` for an unknown name or a path that is not there."""
    sets = []
    for name in names:
        if name == SAMPLE:
            sets.append(DataSet(name))
            continue
        if name not in COLLECTED:
            raise UserError(f"unknown data set {name!r}; choose from {SAMPLE}, {', '.join(COLLECTED)}, or give --data")
        path = out / "data" / f"{name}-{episodes}x{length}"
        sets.append(DataSet(name, path, episodes, length))
    for path in map(Path, own):
        if not path.exists():
            raise UserError(f"--data {path}: no such file or folder; check the path")
        sets.append(DataSet(path.stem, path.resolve()))
    if len({data.name for data in sets}) < len(sets):
        raise UserError("two data sets have the same name; rename one")
    return sets


def seeds_of(out: Path, budget: Budget, variant: Variant, data: DataSet) -> list[Seed]:
    folder = out / budget.name / variant.name / data.name
    return [Seed(folder / f"seed-{seed}", data, seed) for seed in range(budget.seeds)]


def claim(out: Path, budget: Budget, variant: Variant) -> None:
    """Write down what the variant is; `UserError` if its name already stands for something else."""
    path = out / budget.name / variant.name / "variant.json"
    wanted = {"set": variant.changes, "budget": {**asdict(budget), "seeds": None, "parts": None}}
    if path.exists():
        if (before := json.loads(path.read_text())) != wanted:
            raise UserError(f"{path.parent}: is {before['set'] or 'the defaults'} already; choose another --variant")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")


def known_variants(out: Path, budget: Budget) -> list[Variant]:
    """The variants that have a folder: first `base`, then in the order in which they were begun."""

    def order(path: Path) -> tuple[bool, float, str]:
        return path.parent.name != BASE, path.stat().st_mtime, path.parent.name

    paths = sorted((out / budget.name).glob("*/variant.json"), key=order)
    return [Variant(path.parent.name, json.loads(path.read_text())["set"]) for path in paths]
