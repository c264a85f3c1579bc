"""`targets.toml` as types: the published rows, the epoch they are about, our share of them, and limits of the suite."""

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from rows import Row

from aime_fast.planning.plan import Epoch

PATH = Path(__file__).with_name("targets.toml")


class Sourced(BaseModel):
    """Something aimed at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=10)
    """Who says so."""


class EpochTarget(Sourced):
    """What the published figures call an epoch is not known; this is what we take it to be."""

    episodes: int = Field(ge=1)
    frames: int = Field(ge=1)
    """Of an episode."""
    stride: int = Field(ge=1)

    @property
    def epoch(self) -> Epoch:
        """For the planner, which counts its windows."""
        return Epoch(self.episodes, self.frames, self.stride)

    @property
    def words(self) -> str:
        return f"{self.episodes:,} episodes of {self.frames} frames, windows at stride {self.stride} ({self.source})"


class Published(Sourced):
    """A row of the published system: `batch_size` and memory are those of one GPU."""

    card: str
    gpus: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    sequence_length: int = Field(ge=1)
    epoch_minutes: float = Field(gt=0)
    memory_gb: float | None = Field(None, gt=0)

    @property
    def name(self) -> str:
        return f"{self.gpus} x {self.card}, B={self.batch_size} a GPU, T={self.sequence_length}"


class Share(Sourced):
    """What we aim at, as fractions of the published figures."""

    time: float = Field(gt=0, le=1)
    memory: float = Field(gt=0, le=1)


class Limit(Sourced):
    """The bound of a row: on its ratio, or on its median in its unit."""

    what: str
    form: str | None = None
    """None: of every form."""
    shape: str | None = None
    """None: of every shape."""
    of: Literal["ratio", "p50"]
    most: float | None = None
    least: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.most is None) == (self.least is None):
            raise ValueError(f"{self.what}: give either most or least")
        return self

    def concerns(self, row: Row) -> bool:
        return row.what == self.what and self.form in (None, row.form) and self.shape in (None, row.shape)

    def met(self, row: Row) -> bool:
        """Whether the median lies within the bound."""
        return self._holds(row, row.ratio if self.of == "ratio" else row.p50)

    def failed(self, row: Row) -> bool:
        """Whether even the better fifth of the samples lies beyond the bound, which a busy machine does not cause."""
        low, high = (row.ratio_p20, row.ratio_p80) if self.of == "ratio" else (row.p20, row.p80)
        return not self._holds(row, low if self.least is None else high)

    def _holds(self, row: Row, value: float | None) -> bool:
        if value is None:
            raise ValueError(f"{row.name}: its limit is of a ratio, and it has no baseline")
        return value <= self.most if self.most is not None else value >= self.least

    @property
    def words(self) -> str:
        bound = f"<= {self.most:g}" if self.most is not None else f">= {self.least:g}"
        return f"ratio {bound}" if self.of == "ratio" else bound


class Targets(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: EpochTarget
    published: tuple[Published, ...] = Field(min_length=1)
    ours: Share
    limit: tuple[Limit, ...]

    def limit_of(self, row: Row) -> Limit | None:
        """The limit of a row, that of its own shape before that of all."""
        found = [limit for limit in self.limit if limit.concerns(row)]
        return max(found, key=lambda limit: limit.shape is not None, default=None)


def read_targets(path: Path = PATH) -> Targets:
    """The targets in a file."""
    return Targets.model_validate(tomllib.loads(path.read_text()))
