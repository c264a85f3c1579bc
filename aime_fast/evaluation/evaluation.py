"""Judges a trained model on held-out episodes: the protocol of docs/learning.md."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from aime_fast import __version__
from aime_fast.config import LoaderConfig
from aime_fast.data.files import SAMPLE
from aime_fast.data.identity import fingerprint
from aime_fast.data.shards.manifest import load_manifest
from aime_fast.data.shards.states import KeptStates, read_states
from aime_fast.data.store import Episodes, open_store
from aime_fast.errors import UserError
from aime_fast.evaluation import share
from aime_fast.evaluation.baseline import fit_rolled_ridge
from aime_fast.evaluation.distances.frechet import between_halves, frechet_over
from aime_fast.evaluation.distances.fvd import load_video_network
from aime_fast.evaluation.distances.lpips import load_lpips
from aime_fast.evaluation.distances.state_probe import fit_state_features
from aime_fast.evaluation.intervals import Estimate, mean_over
from aime_fast.evaluation.linear import PCA
from aime_fast.evaluation.metrics import MOVING_LEVELS, Measure, ssim
from aime_fast.evaluation.open_loop import MEAN, OTHER, SEEN, Features, OpenLoop, Yardsticks, open_loop_psnr
from aime_fast.evaluation.probe import Probe, probe
from aime_fast.evaluation.reconstruction import judge_reconstruction
from aime_fast.evaluation.report import AT_OWN, AT_REFERENCE, FVD, HALVES, LPIPS, NETWORK, SSIM, STATES, Report
from aime_fast.evaluation.windows import OPEN_LOOP_STRIDE, PROTOCOL_STRIDE, Windows, make_windows
from aime_fast.evaluation.worth import parts
from aime_fast.evaluation.worth.predictors import compare_predictors
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.registry import evaluable

T = TypeVar("T")
RIDGE = "ridge on PCA codes"
PROBE_WINDOWS = 600
"""Largest number of windows of each split for the probe."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of a model."""

    context: int = 5
    """Frames that it observes."""
    horizon: int = 15
    """Frames that it imagines after them; fewer where the longest episode has fewer."""
    stride: int = OPEN_LOOP_STRIDE
    """Frames between the starts of two windows of the open loop."""
    reconstruction_stride: int = PROTOCOL_STRIDE
    """The same for the reconstruction."""
    simulator: bool = False
    """Ask for the share of the actions' possible effect, the probe, and the Frechet distance in its features."""
    parts: bool = False
    """Ask what each part is worth."""
    lpips_weights: str | None = None
    """File of an image network for LPIPS (`load_lpips`)."""
    fvd_weights: str | None = None
    """File of a video network for the Frechet video distance (`load_video_network`)."""


def _found(report: Report, name: str, find: Callable[[], T]) -> T | None:
    """What `find` gives; after a `UserError` None, and a line that says why."""
    try:
        return find()
    except UserError as reason:
        report.remarks.append(f"{name}: left out, {reason}")
        return None


class Evaluation:
    """The held-out episodes of one data set, opened once; `UserError` if no episode is long enough."""

    def __init__(
        self,
        data: str | None,
        questions: Questions,
        note: Callable[[str], None] = lambda line: None,
        actions: str | None = None,
    ) -> None:
        """`note` is told what is under way. `actions` is that of `open_store`, for a recording."""
        self.data, self.note, self.actions = data, note, actions
        self.held_out = open_store(data, "val", actions=actions)
        self.longest = max(self.held_out.lengths) - questions.context
        """Frames that episodes allow to imagine."""
        self.asked = questions.horizon
        self.questions = replace(questions, horizon=min(self.asked, max(self.longest, 1)))
        self.windows = make_windows(self.held_out, questions.context + self.questions.horizon, questions.stride)
        self.short = min(LoaderConfig().sequence_length, max(self.held_out.lengths))
        self.frames = make_windows(self.held_out, self.short, questions.reconstruction_stride)
        self._train: Episodes | None = None

    @property
    def train(self) -> Episodes:
        """The training episodes; `UserError` if they do not fit the memory."""
        if self._train is None:
            self._train = open_store(self.data, "train", actions=self.actions)
        return self._train

    def of(self, model: WorldModel, checkpoint: str, step: int | None = None, weights: str | None = None) -> Report:
        """Judge a model, which keeps its mode. Its checkpoint, step and hash of weights become facts of the report."""
        asked, device = self.questions, next(model.parameters()).device
        report = Report(self.facts(checkpoint, step, weights))
        measures: dict[str, Measure] = {SSIM: ssim}
        clips: dict[str, Features] = {}
        if asked.lpips_weights:
            measures[LPIPS] = load_lpips(asked.lpips_weights, device)
            report.facts[NETWORK] = hashlib.sha256(Path(asked.lpips_weights).read_bytes()).hexdigest()[:16]
        if asked.fvd_weights:
            size = self.held_out.image_size
            clips[FVD] = load_video_network(asked.fvd_weights, self.windows.length, size, device)
        self.note("reconstruction")
        for name, values in judge_reconstruction(model, self.frames, measures, costs=True).items():
            report.reconstruction[name] = mean_over(values.numpy(), self.frames.episodes)
        kept = _found(report, "share and probe", self._states) if asked.simulator else None
        truth = _found(report, "share", partial(self._other_futures, kept, report)) if kept else None
        ridge = _found(report, RIDGE, lambda: fit_rolled_ridge(self.train, asked.context, asked.horizon))
        if kept and ridge:
            fitted = _found(report, STATES, partial(self._state_features, kept, ridge.pca))
            clips |= {STATES: fitted} if fitted else {}
        self.note("open loop")
        seen = open_loop_psnr(
            model,
            self.windows,
            asked.context,
            tasks=evaluable(model.heads, self.held_out.has_rewards),
            baselines={RIDGE: ridge} if ridge else None,
            other_truth=truth,
            yardsticks=Yardsticks(measures, clips),
        )
        self._add_open_loop(report, seen)
        if truth is not None:
            self._add_share(report, seen, truth)
        if kept:
            self.note("probe")
            report.probe = _found(report, "probe", partial(self._probe, model, kept, ridge.pca if ridge else None))
        if asked.parts:
            _found(report, "parts", partial(self._add_parts, report, model))
        return report

    def _add_open_loop(self, report: Report, seen: OpenLoop) -> None:
        report.psnr, report.moving = (self._by_horizon(values) for values in (seen.psnr, seen.moving))
        report.ssim, report.lpips = (self._by_horizon(seen.frames.get(name, {})) for name in (SSIM, LPIPS))
        report.lost = self._by_horizon({OTHER: seen.psnr[MEAN] - seen.psnr[OTHER]})[OTHER]
        report.errors = {name: values.tolist() for name, values in seen.errors.items()}
        for name, features in seen.clips.items():
            recorded = features.pop(SEEN)
            report.frechet[name] = {
                prediction: frechet_over(made, recorded, self.windows.episodes) for prediction, made in features.items()
            }
            report.frechet[name][HALVES] = Estimate(between_halves(recorded), nan, nan, [], [])
        report.remarks += self._limits(report)

    def _limits(self, report: Report) -> list[str]:
        """What the held-out episodes can't show, and so why values are nan: one line each."""
        lines = [f"held-out episodes: {line}" for line in self.held_out.survey().limits]
        if self.asked > self.longest:
            lines.append(
                f"horizon: {self.longest} frames instead of {self.asked}, because the longest of "
                f"{len(self.held_out.lengths)} held-out episodes has {max(self.held_out.lengths)}"
            )
        if isnan(report.reconstruction["moving"].mean):
            lines.append(f"over moving pixels: nan, no pixel moves by more than {MOVING_LEVELS} levels")
        if len(self.windows) == 1:
            lines.append(f"{OTHER}: nan, there is only one held-out window")
        return lines

    def facts(self, checkpoint: str, step: int | None, weights: str | None) -> dict[str, str | int | None]:
        """What is judged, on what, and how: two results with the same facts are the same."""
        return {
            "checkpoint": checkpoint,
            "step": step,
            "weights": weights,
            "version": __version__,
            "data": str(self.data or SAMPLE),
            "fingerprint": fingerprint(self.data),
            "environment": self.held_out.environment or "unknown",
            "actions": self.held_out.origin.meaning if self.held_out.origin else None,
            "context": self.questions.context,
            "horizon": self.questions.horizon,
            "longest horizon": self.longest,
            "windows": len(self.windows),
            "stride": self.questions.stride,
            "reconstruction stride": self.questions.reconstruction_stride,
            "episodes": len(set(self.windows.episodes.tolist())),
        }

    def _by_horizon(self, values: dict[str, Tensor]) -> dict[str, list[Estimate]]:
        return {
            name: [mean_over(column.numpy(), self.windows.episodes) for column in by_window.T]
            for name, by_window in values.items()
        }

    def _states(self) -> KeptStates:
        folder = Path(self.data or SAMPLE)
        if not folder.is_dir():
            raise UserError(f"{folder} keeps no simulator's states; `aime-fast collect` does")
        return read_states(folder, load_manifest(folder))

    def _state_features(self, kept: KeptStates, pca: PCA) -> Features:
        train = make_windows(self.train, self.short, self.short, PROBE_WINDOWS)
        return fit_state_features(train, self._numbers("train"), kept, pca, self.questions.context)

    def _numbers(self, split: str) -> list[int]:
        """Number in the recording of each episode of a split."""
        folder = Path(self.data or SAMPLE)
        return [entry.id for entry in load_manifest(folder).entries(split, folder)]

    def _other_futures(self, kept: KeptStates, report: Report) -> Tensor:
        self.note(f"simulating {len(self.windows)} futures under other actions")
        truth, difference = share.other_futures(self.windows, self._numbers("val"), kept, self.questions.context)
        if difference:
            report.remarks.append(
                f"share: frames simulated again differ from the recorded ones by up to {difference:.0f} levels: "
                "another MuJoCo, another renderer, or a lossy codec"
            )
        return truth

    def _add_share(self, report: Report, seen: OpenLoop, truth: Tensor) -> None:
        own = torch.cat([batch.observations[:, self.questions.context :] for _, batch in self.windows.parts(64)])
        distance = share.frame_distance(own, truth)
        episodes = self.windows.episodes
        for name, decibels in ((AT_REFERENCE, share.REFERENCE), (AT_OWN, report.reconstruction["psnr"].mean)):
            possible = share.possible_loss(distance, decibels)
            report.possible[name] = [mean_over(column.numpy(), episodes) for column in possible.T]
            report.share[name] = share.share_of_possible(seen.psnr[MEAN], seen.psnr[OTHER], possible, episodes)

    def _probe(self, model: WorldModel, kept: KeptStates, pca: PCA | None) -> Probe:
        train, held_out = (
            make_windows(store, self.short, self.short, PROBE_WINDOWS) for store in (self.train, self.held_out)
        )
        return probe(model, train, held_out, kept, self._numbers("train"), self._numbers("val"), pca)

    def _add_parts(self, report: Report, model: WorldModel) -> None:
        context = self.questions.context
        length = context + min(max(parts.HORIZONS), self.questions.horizon)
        train = make_windows(self.train, length, length, parts.FIT_WINDOWS)
        held_out: Windows = make_windows(self.held_out, length, self.questions.stride, parts.WINDOWS)
        report.parts = parts.price_parts(model, train, held_out, context, note=self.note)
        report.predictors = compare_predictors(model, train, held_out)
