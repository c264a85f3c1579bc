"""The planner as a policy, and closed loops in the simulator."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aime_fast.control.cem import Search, Value, imagined_return, plan
from aime_fast.data.collect.collector_pool import make_simulation
from aime_fast.data.collect.policies import Policy, action_limits
from aime_fast.data.collect.simulation import Choices
from aime_fast.data.episode import Episode
from aime_fast.data.sources.frames import as_frames
from aime_fast.doctor import choose_graphics
from aime_fast.errors import UserError
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel


class Planner:
    """A `Policy` that filters every frame, plans (`cem.plan`), and takes the first action of the plan.

    That action is held as in the search, for `Search.hold` frames; then the next search starts from the mean of
    the elites. A new episode begins when `time_step.first()` is true.
    """

    def __init__(self, model: WorldModel, search: Search | None = None, value: Value | None = None) -> None:
        """The model is put into evaluation mode. A future is worth `value`, by default its imagined rewards.

        `UserError` if it has no reward head and no `value` is given.
        """
        self.model, self.search = model.eval(), search or Search()
        self._value = value or imagined_return(model)
        self._begin()

    def _begin(self) -> None:
        self._state, self._seen = self.model.initial_state(1), 0
        self._action: Tensor | None = None  # the last one, [1, A]
        self._rest: Tensor | None = None  # what follows it in the plan, [1, n, A]

    def __call__(self, observation: np.ndarray, time_step: Any, spec: Any, random: np.random.Generator) -> np.ndarray:
        """The action float32 [A] after the frame uint8 [S, S, 3].

        A frame of another size than the model's is resized as packing does.
        """
        if time_step.first():
            self._begin()
        frames = torch.from_numpy(as_frames(observation[None], self.model.config.image_size)).movedim(-1, 1)
        self._state = self.model.filter(self._state, frames.to(self.model.mean_frame.device), self._action)
        if self._action is None or self._seen % self.search.hold == 0:
            low, high = (torch.from_numpy(limit.astype(np.float32)) for limit in action_limits(spec))
            draws = torch.Generator().manual_seed(int(random.integers(2**31)))
            found = plan(self.model, self._value, self._state, (low, high), self.search, draws, self._rest)
            self._action = found.actions[:, 0]
            self._rest = torch.cat([found.mean[:, 1:], found.mean[:, -1:]], 1)
        self._seen += 1
        return self._action[0].cpu().numpy()


def simulate(choices: Choices, episodes: Iterable[int], policy: Policy | None = None) -> Iterator[Episode]:
    """Episodes with these numbers under `policy` (None: the one in `choices`), one after the other in this process.

    Equal choices give equal starts under any policy. `UserError` if nothing can be rendered or simulated here.
    """
    graphics, results = choose_graphics()
    if graphics is None:
        raise UserError(f"nothing renders here, {results[0].line} (`aime-fast doctor` says more)")
    simulation = make_simulation(choices, graphics, policy)
    for number in episodes:
        yield simulation.record(number, lambda: None)[0]
