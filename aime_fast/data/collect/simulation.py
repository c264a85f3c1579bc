"""One episode of dm_control, simulated and rendered: a function of the choices and its number alone."""

import difflib
import importlib.metadata
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aime_fast import __version__
from aime_fast.data.collect.policies import SIGMA, THETA, act, find_policy
from aime_fast.data.episode import FRAME_SHAPE, IMAGE_SIZE, Episode
from aime_fast.errors import UserError

SHADOW_SIZE = 512
"""Side of the shadow map; at 64 pixels a larger one changes next to nothing and takes as long as all the rest."""
INSTALL = "pip install 'aime-fast[dm_control]'"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What decides an episode, given its number."""

    environment: str
    """`domain_task` of the dm_control suite."""
    length: int
    """Frames of an episode that does not end earlier."""
    policy: str
    """`ou`, `random` or `module:function`."""
    action_repeat: int
    """Simulation steps that each action lasts; their rewards are added up."""
    camera: int
    seed: int


class Simulation:
    """The task that `choices` name; `UserError` where dm_control, the task, its camera or the policy is missing."""

    def __init__(self, choices: Choices) -> None:
        try:
            from dm_control import suite
            from dm_control.rl.control import PhysicsError
        except ModuleNotFoundError as error:
            raise UserError(f"recording needs dm_control, but there is no module {error.name}; {INSTALL}") from error
        # It tells of deprecated attributes in its own models.
        logging.getLogger("absl").setLevel(logging.ERROR)
        names = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
        if choices.environment not in names:
            raise UserError(unknown_environment(choices.environment, list(names)))
        self._choices, self._load, self._unstable = choices, suite.load, PhysicsError
        self._domain, self._task = names[choices.environment]
        self._policy = find_policy(choices.policy)
        environment = self._environment(np.random.RandomState(0))
        cameras = environment.physics.model.ncam
        if choices.camera >= cameras:
            raise UserError(f"{choices.environment} has {cameras} cameras; choose --camera 0 to {cameras - 1}")
        self._renderer = _renderer(environment)

    def provenance(self) -> dict[str, Any]:
        """All that decides the frames, for the manifest; two equal ones record the same episodes."""
        packages = ("dm_control", "mujoco", "numpy")
        versions = {"aime-fast": __version__} | {name: importlib.metadata.version(name) for name in packages}
        noise = {"theta": THETA, "sigma": SIGMA} if self._choices.policy == "ou" else {}
        return {**asdict(self._choices), **noise, "versions": versions, "renderer": self._renderer}

    def record(self, number: int, tick: Callable[[], None]) -> Episode:
        """Simulate episode `number`, calling `tick` after each frame; it ends early where the task does.

        Nothing is carried over from other episodes, so it does not matter which process recorded them, or when.
        """
        choices = self._choices
        task_seed, policy_seed = np.random.SeedSequence(choices.seed, spawn_key=(number,)).spawn(2)
        environment = self._environment(np.random.RandomState(np.random.MT19937(task_seed)))
        generator = np.random.Generator(np.random.Philox(policy_seed))
        spec, step = environment.action_spec(), environment.reset()
        frames: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        rewards: list[float] = []
        try:
            while len(frames) < choices.length and not step.last():
                frames.append(render(environment, choices.camera))
                action = act(self._policy, choices.policy, frames[-1].copy(), step, spec, generator)
                step, reward = _repeat(environment, action, choices.action_repeat)
                actions.append(action)
                rewards.append(reward)
                tick()
        except self._unstable as error:
            where = f"{choices.environment}, episode {number}, frame {len(frames) - 1}"
            raise UserError(f"{where}: the simulation became unstable ({error}); choose another --seed") from error
        finally:
            environment.physics.free()
        ended = np.zeros(len(frames), bool)
        ended[-1] = True
        # A discount of 0 is the task's own end; its time limit comes with a discount of 1.
        terminated = ended & (step.last() and step.discount == 0.0)
        return Episode(
            observations=np.stack(frames),
            actions=np.stack(actions),
            rewards=np.array(rewards, np.float32),
            terminated=terminated,
            truncated=ended & ~terminated,
            name=f"{choices.environment}, episode {number}",
        )

    def _environment(self, random: np.random.RandomState) -> Any:
        """A fresh one: some tasks change their model as they go, so one that has been used is not the same again."""
        environment = self._load(self._domain, self._task, task_kwargs={"random": random})
        prepare_rendering(environment)
        return environment


def _repeat(environment: Any, action: np.ndarray, times: int) -> tuple[Any, float]:
    """Take an action so often, or until the episode ends; the last time step, and the rewards added up."""
    reward = 0.0
    for _ in range(times):
        step = environment.step(action.astype(np.float64))
        reward += step.reward
        if step.last():
            break
    return step, reward


def prepare_rendering(environment: Any) -> None:
    """Ask for small buffers, before the first frame is drawn; about twice as fast."""
    look = environment.physics.model.vis
    look.global_.offwidth = look.global_.offheight = IMAGE_SIZE
    look.quality.shadowsize = SHADOW_SIZE


def render(environment: Any, camera: int) -> np.ndarray:
    """The frame that `camera` sees now: uint8 [64,64,3], RGB."""
    frame = environment.physics.render(IMAGE_SIZE, IMAGE_SIZE, camera_id=camera)
    assert frame.shape == FRAME_SHAPE and frame.dtype == np.uint8
    return frame


def _renderer(environment: Any) -> str:
    """Draw one frame and name the back-end and the driver that drew it."""
    from dm_control import _render

    environment.reset()
    render(environment, 0)
    if _render.BACKEND == "glfw":  # has its own way to the driver
        environment.physics.free()
        return "glfw"
    from OpenGL import GL

    with environment.physics.contexts.gl.make_current() as context:
        driver = context.call(GL.glGetString, GL.GL_RENDERER)
    environment.physics.free()
    return f"{_render.BACKEND}, {driver.decode() if driver else 'unknown'}"


def unknown_environment(name: str, known: list[str]) -> str:
    """One line for a name that is no environment, with those most like it."""
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.7)
    close += [other for other in known if other.partition("_")[0] == name.partition("_")[0] and other not in close]
    hint = f"did you mean {', '.join(close)}?" if close else f"known are, for instance, {', '.join(known[:6])}"
    return f"unknown environment {name!r}; {hint}"
