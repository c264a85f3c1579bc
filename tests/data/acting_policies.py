"""Policies of many kinds, to record how a check of actions against frames does on each of them.

Each is called once per frame as `aime_fast.data.collect.policies.Policy` says. What a policy remembers lives for one
episode. All but `feedback` act blindly.
"""

import numpy as np

state: dict[str, np.ndarray] = {}


def sinusoid(observation, time_step, action_spec, generator):
    """Every joint swings with a period and a phase of its own, which are drawn anew for each episode."""
    if time_step.first():
        state["step"] = np.zeros(1)
        state["rate"] = 2 * np.pi / generator.uniform(6, 30, action_spec.shape)
        state["phase"] = generator.uniform(0, 2 * np.pi, action_spec.shape)
    state["step"] += 1
    return np.sin(state["rate"] * state["step"] + state["phase"]) * action_spec.maximum


def bang_bang(observation, time_step, action_spec, generator):
    """One bound or the other, held for eight frames in the mean; joints change independently."""
    if time_step.first():
        state["held"] = generator.choice([-1.0, 1.0], action_spec.shape)
    changes = generator.random(action_spec.shape) < 1 / 8
    state["held"] = np.where(changes, -state["held"], state["held"])
    return state["held"] * action_spec.maximum


def smooth_small(observation, time_step, action_spec, generator):
    """Noise that is smoothed twice and stays within about a third of the bounds."""
    if time_step.first():
        state["fast"], state["slow"] = np.zeros((2, *action_spec.shape))
    state["fast"] = 0.7 * state["fast"] + 0.3 * generator.standard_normal(action_spec.shape)
    state["slow"] = 0.7 * state["slow"] + 0.3 * state["fast"]
    return np.clip(0.6 * state["slow"], -1, 1) * action_spec.maximum


def feedback(observation, time_step, action_spec, generator):
    """A function of what the sensors say at this frame, with a little noise: an action tells of the frame before it."""
    sensors = np.concatenate([np.ravel(values) for values in time_step.observation.values()])
    if time_step.first():
        state["gain"] = np.random.default_rng(0).standard_normal((*action_spec.shape, len(sensors)))
    noise = 0.1 * generator.standard_normal(action_spec.shape)
    return np.clip(np.tanh(state["gain"] @ sensors) + noise, -1, 1) * action_spec.maximum
