"""Policies that act while episodes are recorded: noise, or a function of the user."""

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

`observation` is the frame, uint8 [S,S,3]. `time_step` is dm_env's: `time_step.first()` is true at the start of an
episode, `.reward` is that of the last simulation step alone, `.observation` has the sensors. `action_spec` is dm_env's,
with `shape`, `minimum` and `maximum`. `generator` belongs to the episode; a policy may use no other randomness. The
action is A finite numbers within the bounds, which are stored and applied as float32.
"""

THETA, SIGMA = 0.15, 0.4
UNLIMITED = 1e9
"""dm_control writes 1e10 for an action without a limit. Noise then stays within [-1, 1]."""


def uniform(_: np.ndarray, __: Any, action_spec: Any, generator: np.random.Generator) -> np.ndarray:
    """Independent actions, uniform within the bounds."""
    return _within_bounds(generator.uniform(-1.0, 1.0, action_spec.shape), action_spec)


class OrnsteinUhlenbeck:
    """x[t+1] = x[t] - theta x[t] + sigma noise, with x = 0 before the first frame. The action is x clipped to [-1, 1].

    Without clipping, the standard deviation of x approaches sigma / sqrt(1 - (1-theta)^2), and the correlation over k
    frames is (1-theta)^k.
    """

    def __init__(self, theta: float = THETA, sigma: float = SIGMA) -> None:
        self._theta, self._sigma = theta, sigma
        self.state = np.zeros(0)
        """x, float64 [A]."""

    def __call__(self, _: np.ndarray, time_step: Any, action_spec: Any, generator: np.random.Generator) -> np.ndarray:
        """The next action. The process starts again with each episode."""
        if time_step.first():
            self.state = np.zeros(action_spec.shape)
        self.state = (1 - self._theta) * self.state + self._sigma * generator.standard_normal(action_spec.shape)
        return _within_bounds(np.clip(self.state, -1.0, 1.0), action_spec)


def action_limits(action_spec: Any) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of the actions, [A] each; -1 and 1 where there is no limit."""
    low = np.where(action_spec.minimum < -UNLIMITED, -1.0, action_spec.minimum)
    high = np.where(action_spec.maximum > UNLIMITED, 1.0, action_spec.maximum)
    return np.broadcast_to(low, action_spec.shape), np.broadcast_to(high, action_spec.shape)


def _within_bounds(unit: np.ndarray, action_spec: Any) -> np.ndarray:
    """Numbers in [-1, 1], scaled to the bounds of the actions."""
    low, high = action_limits(action_spec)
    return np.clip((low + high) / 2 + unit * (high - low) / 2, low, high)


BUILT_IN: dict[str, Callable[[], Policy]] = {"ou": OrnsteinUhlenbeck, "random": lambda: uniform}


def check_policy_name(name: str) -> None:
    """Raise `UserError` unless `name` is a known policy or has the form `module:function`."""
    if name not in BUILT_IN and not all(name.partition(":")):
        raise UserError(f"unknown policy {name!r}; choose one of {', '.join(BUILT_IN)}, or name a module:function")


def find_policy(name: str) -> Policy:
    """The policy `name`; a module may be in the current folder. `UserError` if there is none, or its import fails."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    check_policy_name(name)
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the module is the user's: it may raise anything
        raise UserError(f"policy {name!r}: {module} cannot be imported ({_described(error)}); fix it") from error
    if not callable(found):
        raise UserError(f"policy {name!r}: {module} has no function {function!r}; check the name")
    return found


def act(policy: Policy, name: str, observation: np.ndarray, time_step: Any, spec: Any, *rest: Any) -> np.ndarray:
    """One action of `policy`, checked: float32 [A]; `UserError` if it raises or returns no valid action."""
    try:
        action = np.asarray(policy(observation, time_step, spec, *rest), np.float32)
    except Exception as error:  # and so is the function
        raise UserError(f"policy {name!r} raised {_described(error)}; fix it") from error
    if action.shape != spec.shape:
        raise UserError(f"policy {name!r} returned shape {list(action.shape)}, the actions are {list(spec.shape)}")
    # The bounds are compared as float32 too: there 0.1 is slightly larger than in float64.
    outside = ~((action >= spec.minimum.astype(np.float32)) & (action <= spec.maximum.astype(np.float32)))
    if outside.any():
        place = outside.argmax()
        low, high = (np.broadcast_to(limit, spec.shape)[place] for limit in (spec.minimum, spec.maximum))
        raise UserError(f"policy {name!r} returned {action[place]} as action number {place}; keep to [{low}, {high}]")
    return action


def _described(error: Exception) -> str:
    """An exception and the place where it was raised, in half a line."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {os.path.basename(place[0].filename)}:{place[0].lineno}" if place else ""
    return f"{type(error).__name__}: {error}{where}"
