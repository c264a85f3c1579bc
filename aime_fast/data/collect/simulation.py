"""One episode of dm_control, simulated and rendered. It depends only on the choices and its number."""

import difflib
import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from aime_fast import __version__
from aime_fast.data.collect.physics_state import read_state, restart, state_layout
from aime_fast.data.collect.policies import SIGMA, THETA, Policy, act, find_policy
from aime_fast.data.episode import DEFAULT_SIZE, Episode
from aime_fast.errors import UserError

SHADOW_SIZE = 512
"""Side of the shadow map. At 64 pixels, a larger one changes almost nothing and doubles the time."""
INSTALL = "pip install 'aime-fast[dm_control]'"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What determines an episode, together with its number."""

    environment: str
    """`domain_task` of the dm_control suite."""
    length: int
    """Number of frames of an episode, unless the task ends before."""
    policy: str
    """`ou`, `random` or `module:function` (see `Policy`)."""
    action_repeat: int
    """Number of simulation steps of an action. Their rewards are summed."""
    camera: int
    size: int = DEFAULT_SIZE
    """S, the side of a frame in pixels."""
    seed: int

    @classmethod
    def of(cls, collection: Mapping[str, Any]) -> "Choices":
        """The choices in a manifest's `collection`; `UserError` if another program recorded the data."""
        if "environment" not in collection:
            raise UserError("these data were not recorded by `aime-fast collect`: nothing says how to simulate them")
        return cls(**{field.name: collection[field.name] for field in fields(cls)})


class Simulation:
    """The task in `choices`; `UserError` if dm_control, the task, its camera or the policy is missing."""

    def __init__(self, choices: Choices, policy: Policy | None = None) -> None:
        """A `policy` takes the place of the one that `choices` names."""
        try:
            from dm_control import suite
            from dm_control.rl.control import PhysicsError
        except ModuleNotFoundError as error:
            raise UserError(f"recording needs dm_control, but there is no module {error.name}; {INSTALL}") from error
        # It warns of deprecated attributes in its own models.
        logging.getLogger("absl").setLevel(logging.ERROR)
        names = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
        if choices.environment not in names:
            raise UserError(unknown_environment(choices.environment, list(names)))
        self._choices, self._load, self._unstable = choices, suite.load, PhysicsError
        self._domain, self._task = names[choices.environment]
        self._policy = policy or find_policy(choices.policy)
        environment = self._environment(np.random.RandomState(0))
        cameras = environment.physics.model.ncam
        if choices.camera >= cameras:
            raise UserError(f"{choices.environment} has {cameras} cameras; choose --camera 0 to {cameras - 1}")
        self._state = state_layout(environment.physics, choices.camera)
        self._renderer = _renderer(environment, choices.size)

    def provenance(self) -> dict[str, Any]:
        """Everything that determines the frames, for the manifest. Equal provenance gives equal episodes."""
        packages = ("dm_control", "mujoco", "numpy")
        versions = {"aime-fast": __version__} | {name: importlib.metadata.version(name) for name in packages}
        noise = {"theta": THETA, "sigma": SIGMA} if self._choices.policy == "ou" else {}
        chosen = {**asdict(self._choices), **noise}
        return {**chosen, "versions": versions, "renderer": self._renderer, "state": self._state}

    def record(self, number: int, tick: Callable[[], object]) -> tuple[Episode, np.ndarray]:
        """Simulate episode `number`, independently of all others, and call `tick` after each frame.

        Also returns the simulator's state of each frame, float64 [N, n] (see `StateLayout`).
        """
        choices = self._choices
        environment, step, policy_seed = self._begin(number)
        generator, spec = np.random.Generator(np.random.Philox(policy_seed)), environment.action_spec()
        frames: list[np.ndarray] = []
        states: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        rewards: list[float] = []
        try:
            while len(frames) < choices.length and not step.last():
                states.append(read_state(environment.physics))
                frames.append(render(environment, choices.camera, choices.size))
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
        return self._episode(number, frames, actions, rewards, step), np.stack(states)

    def futures(self, number: int, starts: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """What follows states of episode `number` if other actions are taken: frames uint8 [h, S, S, 3] of each start.

        A start is a kept state [n] and the actions [h, A] from there. The task's own end does not stop it.
        `UserError` if the simulation becomes unstable.
        """
        choices = self._choices
        environment, _, _ = self._begin(number)
        physics, task = environment.physics, environment.task
        steps = round(environment.control_timestep() / physics.timestep())
        made = []
        try:
            for state, actions in starts:
                restart(physics, state)
                frames = []
                for action in actions:
                    for _ in range(choices.action_repeat):
                        task.before_step(action.astype(np.float64), physics)
                        physics.step(steps)
                        task.after_step(physics)
                    frames.append(render(environment, choices.camera, choices.size))
                made.append(np.stack(frames))
        except self._unstable as error:
            where = f"{choices.environment}, episode {number}"
            raise UserError(f"{where}: unstable under other actions ({error}); judge other episodes") from error
        finally:
            physics.free()
        return made

    def redraw(self, number: int, states: np.ndarray) -> np.ndarray:
        """Frames of episode `number` in any states, float64 [N, n]: uint8 [N, S, S, 3]. Nothing is simulated."""
        environment, _, _ = self._begin(number)
        try:
            frames = []
            for state in states:
                restart(environment.physics, state)
                frames.append(render(environment, self._choices.camera, self._choices.size))
            return np.stack(frames)
        finally:
            environment.physics.free()

    def bodies(self, number: int, states: np.ndarray) -> np.ndarray:
        """Where the camera sees the bodies of episode `number` in any states, float64 [N, n]: float64 [N, b, 12].

        Of each body its place in the camera's coordinates, in metres, and its rotation matrix there, row by row.
        """
        environment, _, _ = self._begin(number)
        physics, camera = environment.physics, self._choices.camera
        try:
            found = []
            for state in states:
                restart(physics, state)
                turn = physics.data.cam_xmat[camera].reshape(3, 3)
                places = (physics.data.xpos[1:] - physics.data.cam_xpos[camera]) @ turn  # body 0 is the world
                turns = turn.T @ physics.data.xmat[1:].reshape(-1, 3, 3)
                found.append(np.concatenate([places, turns.reshape(-1, 9)], -1))
            return np.stack(found)
        finally:
            physics.free()

    def _begin(self, number: int) -> tuple[Any, Any, np.random.SeedSequence]:
        """Episode `number` before its first action: environment, first time step, and the seed of the policy."""
        task_seed, policy_seed = np.random.SeedSequence(self._choices.seed, spawn_key=(number,)).spawn(2)
        environment = self._environment(np.random.RandomState(np.random.MT19937(task_seed)))
        return environment, environment.reset(), policy_seed

    def _episode(
        self, number: int, frames: list[np.ndarray], actions: list[np.ndarray], rewards: list[float], last: Any
    ) -> Episode:
        """The recorded columns, of which `last` is the last time step."""
        ended = np.zeros(len(frames), bool)
        ended[-1] = True
        # The task's own end has a discount of 0, its time limit a discount of 1.
        terminated = ended & (last.last() and last.discount == 0.0)
        return Episode(
            observations=np.stack(frames),
            actions=np.stack(actions),
            rewards=np.array(rewards, np.float32),
            terminated=terminated,
            truncated=ended & ~terminated,
            name=f"{self._choices.environment}, episode {number}",
        )

    def _environment(self, random: np.random.RandomState) -> Any:
        """A new environment: some tasks change their model, so a used one is not the same again."""
        environment = self._load(self._domain, self._task, task_kwargs={"random": random})
        prepare_rendering(environment, self._choices.size)
        return environment


def _repeat(environment: Any, action: np.ndarray, times: int) -> tuple[Any, float]:
    """Apply an action `times` times, or until the episode ends; the last time step, and the sum of rewards."""
    reward = 0.0
    for _ in range(times):
        step = environment.step(action.astype(np.float64))
        reward += step.reward
        if step.last():
            break
    return step, reward


def prepare_rendering(environment: Any, size: int) -> None:
    """Request small buffers, before the first frame is drawn; about twice as fast."""
    look = environment.physics.model.vis
    look.global_.offwidth = look.global_.offheight = size
    look.quality.shadowsize = SHADOW_SIZE


def render(environment: Any, camera: int, size: int) -> np.ndarray:
    """The current frame of `camera`: uint8 [S,S,3], RGB, with S = `size`."""
    frame = environment.physics.render(size, size, camera_id=camera)
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
    return frame


def _renderer(environment: Any, size: int) -> str:
    """Draw one frame; the names of the back-end and the driver that drew it."""
    from dm_control import _render

    environment.reset()
    render(environment, 0, size)
    if _render.BACKEND == "glfw":  # cannot name its driver
        environment.physics.free()
        return "glfw"
    from OpenGL import GL

    with environment.physics.contexts.gl.make_current() as context:
        driver = context.call(GL.glGetString, GL.GL_RENDERER)
    environment.physics.free()
    return f"{_render.BACKEND}, {driver.decode() if driver else 'unknown'}"


def unknown_environment(name: str, known: list[str]) -> str:
    """One line for a name that is no environment, with the most similar ones."""
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.7)
    close += [other for other in known if other.partition("_")[0] == name.partition("_")[0] and other not in close]
    hint = f"did you mean {', '.join(close)}?" if close else f"known are, for instance, {', '.join(known[:6])}"
    return f"unknown environment {name!r}; {hint}"
