"""Steps on windows of perceived frames, until windows that are kept aside say that it was enough."""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Generator, Tensor, nn

from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.perceived import Perceived, Recording, spread
from aime_fast.tasks.task import belongs

WARMUP, LARGEST_NORM = 50, 100.0
"""Steps until the full rate, largest norm of the gradient."""
AVERAGED = 0.98
"""Share of the averaged weights that a step keeps, once there are many."""
KEPT_ASIDE, TOLD = 256, 100
"""Windows kept aside, and steps between two lines of progress."""
PATIENCE = 1.5
"""How far beyond the best step to go on."""
FEW = 20
"""With fewer episodes the ones kept aside are worth learning from."""


@dataclass(frozen=True)
class Aim:
    """What some parts of a model learn, and how that is judged."""

    parts: tuple[str, ...]
    """Modules of the model; nothing else changes."""
    loss: Callable[[WorldModel, Perceived, Generator, float], Tensor]
    """Of windows [B, T], 0-d, with draws from the generator, and with the share of the steps that lie behind."""
    error: Callable[[WorldModel, Perceived], float]
    """Of windows kept aside."""
    told: str
    """The error for people, as a format: `error ahead {:.2f} dB`."""
    rate: float
    """Learning rate."""
    rows: int
    """Windows of a step."""
    least: int
    """Steps that are always taken, since the error may rise before it falls."""
    every: int
    """Steps between two looks at the windows kept aside."""


@dataclass(frozen=True)
class Learner:
    """Windows to learn from, and others that are kept aside: those of the last tenth of the episodes, at least one."""

    recording: Recording
    length: int
    """Frames of a window, T."""
    seed: int
    """Of windows and draws."""
    note: Callable[[str], None]
    """Gets lines of progress."""

    @property
    def _aside(self) -> int:
        return max(1, len(self.recording.lengths) // 10)

    def windows_aside(self, device: torch.device) -> Perceived:
        """Windows [B, T] kept aside, evenly spaced."""
        episodes = len(self.recording.lengths)
        held = spread(self.recording.firsts(self.length, range(episodes - self._aside, episodes)), KEPT_ASIDE)
        return self.recording.frames.windows(held, self.length).to(device)

    def learn(self, model: WorldModel, aim: Aim, most: int) -> tuple[WorldModel, int, float]:
        """A copy of `model` after the step with the least error, that step, and the error; at most `most` steps.

        It ends well beyond the best step. Where few episodes are left to learn from, the copy then learns from all for
        as many steps as were best.
        """
        episodes, windows = len(self.recording.lengths), self.windows_aside(model.mean_frame.device)
        best, began = None, time.perf_counter()
        for step, averaged in self._steps(model, aim, episodes - self._aside, most):
            if step % aim.every and step < most:
                continue
            error = aim.error(averaged, windows)
            if best is None or error < best[2]:
                best = deepcopy(averaged), step, error
            if step % TOLD == 0:
                left = (time.perf_counter() - began) / step * (most - step)
                self.note(f"step {step}/{most} | {aim.told.format(error)}, kept aside | at most {left:.0f} s left")
            if step >= max(aim.least, PATIENCE * best[1]):
                break
        assert best is not None  # there is at least one step
        chosen, step, error = best
        self.note(f"step {step} was best: {aim.told.format(error)}, kept aside")
        if episodes < FEW:
            self.note(f"now {step} steps on all {episodes} episodes, those kept aside too")
            chosen = next(islice(self._steps(model, aim, episodes, most), step - 1, None))[1]
        return chosen, step, error

    def _steps(self, model: WorldModel, aim: Aim, episodes: int, most: int) -> Iterator[tuple[int, WorldModel]]:
        """At most `most` steps on the first `episodes`; the model of averaged weights. `model` stays as it is."""
        firsts = self.recording.firsts(self.length, range(episodes))
        new, averaged = deepcopy(model), deepcopy(model)
        learning, slow = _free(new, aim.parts), [p.detach() for p in _free(averaged, aim.parts)]
        optimiser = torch.optim.AdamW(learning, lr=aim.rate, betas=(0.9, 0.95))
        warm = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / WARMUP, total_iters=WARMUP)
        generator = Generator().manual_seed(self.seed)
        for step in range(1, most + 1):
            chosen = torch.randint(len(firsts), (aim.rows,), generator=generator)
            windows = self.recording.frames.windows(firsts[chosen], self.length)
            loss = aim.loss(new, windows, generator, (step - 1) / most)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learning, LARGEST_NORM)
            optimiser.step()
            warm.step()
            torch._foreach_lerp_(slow, [p.detach() for p in learning], max(1 - AVERAGED, 9 / (10 + step)))
            yield step, averaged


def _free(model: WorldModel, parts: tuple[str, ...]) -> list[nn.Parameter]:
    """Let the parameters of `parts` have gradients, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(belongs(name, parts))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
