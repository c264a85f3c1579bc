"""The state of MuJoCo's physics as one row of numbers: enough to go on from there to the same bytes."""

from dataclasses import asdict
from typing import Any

import numpy as np

from aime_fast.data.shards.states import StateLayout

FREE = (("x", "y", "z"), ("qw", "qx", "qy", "qz"), ("vx", "vy", "vz", "wx", "wy", "wz"))
"""Names of a free joint's translation, rotation and velocity."""
BALL = ((), ("qw", "qx", "qy", "qz"), ("wx", "wy", "wz"))


def read_state(physics: Any) -> np.ndarray:
    """Time, positions, velocities, activations and the solver's warm start: float64 [n]."""
    import mujoco

    signature = _signature(mujoco)
    state = np.empty(mujoco.mj_stateSize(physics.model.ptr, signature))
    mujoco.mj_getState(physics.model.ptr, physics.data.ptr, state, signature)
    return state


def restart(physics: Any, state: np.ndarray) -> None:
    """Put `physics`, whose episode has begun with its own seed, into `state`."""
    import mujoco

    mujoco.mj_setState(physics.model.ptr, physics.data.ptr, state, _signature(mujoco))
    # dm_control ends a step with this half of MuJoCo's, so that positions are up to date.
    mujoco.mj_step1(physics.model.ptr, physics.data.ptr)


def state_layout(physics: Any, camera: int) -> dict[str, list[str]]:
    """The fields of `StateLayout` for frames of `camera`."""
    import mujoco

    model, kinds = physics.model.ptr, mujoco.mjtJoint
    follows = model.cam_mode[camera] != mujoco.mjtCamLight.mjCAMLIGHT_FIXED
    positions, velocities = list[str](), list[str]()
    angles, unseen = list[str](), list[str]()
    for joint in range(model.njnt):
        name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, joint) or f"joint {joint}"
        kind, free = model.jnt_type[joint], not model.jnt_limited[joint]
        if kind in (kinds.mjJNT_FREE, kinds.mjJNT_BALL):
            shift, turn, speed = FREE if kind == kinds.mjJNT_FREE else BALL
            positions += [f"{name} {part}" for part in (*shift, *turn)]
            velocities += [f"{name} {part}" for part in speed]
            unseen += [f"{name} {part}" for part in shift[:2] if follows]
            continue
        positions.append(name)
        velocities.append(name)
        if kind == kinds.mjJNT_HINGE and free:
            angles.append(name)
        level = abs(model.jnt_axis[joint][2]) < 0.5
        if kind == kinds.mjJNT_SLIDE and free and level and follows:
            unseen.append(name)
    return asdict(StateLayout(positions, velocities, angles, unseen))


def _signature(mujoco: Any) -> int:
    return int(mujoco.mjtState.mjSTATE_FULLPHYSICS) | int(mujoco.mjtState.mjSTATE_WARMSTART)
