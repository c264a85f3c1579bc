"""Who acts while episodes are recorded: noise, or a function of the user."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from aime_fast.errors import UserError

Policy = Callable[[np.ndarray, Any, Any, np.random.Generator], Any]
"""`policy(observation, time_step, action_spec, generator) -> action`, called once a frame.

`observation` is the frame, uint8 [64,64,3]; `time_step` is dm_env's (`time_step.first()` begins an episode, `.reward`
is that of the last simulation step alone, `.observation` holds the sensors); `action_spec` is dm_env's, with `shape`,
`minimum` and `maximum`; `generator` is the episode's own and the only chance a policy may use. The action is A finite
numbers within the bounds, stored as float32 and taken as stored.
"""

THETA, SIGMA = 0.15, 0.4
UNLIMITED = 1e9
"""dm_control writes 1e10 for an action without a limit; noise then stays within [-1, 1]."""


def uniform(_: np.ndarray, __: Any, action_spec: Any, generator: np.random.Generator) -> np.ndarray:
    """Independent actions, uniform over the bounds."""
    return _within_bounds(generator.uniform(-1.0, 1.0, action_spec.shape), action_spec)


class OrnsteinUhlenbeck:
    """x[t+1] = x[t] - theta x[t] + sigma noise, from x = 0 before the first frame; the action is x cut to [-1, 1].

    Uncut, x comes to a spread of sigma / sqrt(1 - (1-theta)^2) and a correlation of (1-theta)^k over k frames.
    """

    def __init__(self, theta: float = THETA, sigma: float = SIGMA) -> None:
        self._theta, self._sigma = theta, sigma
        self.state = np.zeros(0)
        """x, float64 [A]."""

    def __call__(self, _: np.ndarray, time_step: Any, action_spec: Any, generator: np.random.Generator) -> np.ndarray:
        """The next action; the process begins again with each episode."""
        if time_step.first():
            self.state = np.zeros(action_spec.shape)
        self.state = (1 - self._theta) * self.state + self._sigma * generator.standard_normal(action_spec.shape)
        return _within_bounds(np.clip(self.state, -1.0, 1.0), action_spec)


def _within_bounds(unit: np.ndarray, action_spec: Any) -> np.ndarray:
    """Numbers in [-1, 1] stretched over the bounds of the actions."""
    low = np.where(action_spec.minimum < -UNLIMITED, -1.0, action_spec.minimum)
    high = np.where(action_spec.maximum > UNLIMITED, 1.0, action_spec.maximum)
    return np.clip((low + high) / 2 + unit * (high - low) / 2, low, high)


BUILT_IN: dict[str, Callable[[], Policy]] = {"ou": OrnsteinUhlenbeck, "random": lambda: uniform}


def check_policy_name(name: str) -> None:
    """Raise `UserError` for what is neither the name of a policy nor of the form `module:function`."""
    if name not in BUILT_IN and not all(name.partition(":")):
        raise UserError(f"unknown policy {name!r}; choose one of {', '.join(BUILT_IN)}, or name a module:function")


def find_policy(name: str) -> Policy:
    """The policy called `name`: `ou`, `random`, or `module:function`, looked for in the current folder too.

    `UserError` for a name that leads nowhere, or a module that cannot be imported.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    check_policy_name(name)
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the module is the user's: anything may happen in it
        raise UserError(f"policy {name!r}: {module} cannot be imported ({_told(error)}); mend it") from error
    if not callable(found):
        raise UserError(f"policy {name!r}: {module} has no function {function!r}; check the name")
    return found


def act(policy: Policy, name: str, observation: np.ndarray, time_step: Any, spec: Any, *rest: Any) -> np.ndarray:
    """One action of `policy`, checked: float32 [A]; `UserError` when it raises, or what it returns is no action."""
    try:
        action = np.asarray(policy(observation, time_step, spec, *rest), np.float32)
    except Exception as error:  # so is the function
        raise UserError(f"policy {name!r} raised {_told(error)}; mend it") from error
    if action.shape != spec.shape:
        raise UserError(f"policy {name!r} returned shape {list(action.shape)}, the actions are {list(spec.shape)}")
    # The bounds too are compared as float32: 0.1 is a little more there than it is in float64.
    outside = ~((action >= spec.minimum.astype(np.float32)) & (action <= spec.maximum.astype(np.float32)))
    if outside.any():
        place = outside.argmax()
        low, high = (np.broadcast_to(limit, spec.shape)[place] for limit in (spec.minimum, spec.maximum))
        raise UserError(f"policy {name!r} returned {action[place]} as action number {place}; keep to [{low}, {high}]")
    return action


def _told(error: Exception) -> str:
    """An exception in half a line, with the place where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {os.path.basename(place[0].filename)}:{place[0].lineno}" if place else ""
    return f"{type(error).__name__}: {error}{where}"
