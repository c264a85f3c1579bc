"""Finds a way to render without a screen."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace

from aime_fast.doctor.checks import Check, Result, ok, run_check, warning

EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"
INSTALL = "pip install 'aime-fast[dm_control]'"
PACKAGES = {
    "EGL": "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri",
    "OSMesa": "apt-get install libosmesa6",
    "GLFW": "apt-get install libglfw3 libgl1-mesa-dri, and set DISPLAY to a screen",
}
"""How to install each back-end on Debian and Ubuntu, in the order in which they are tried."""
SCENE = "<mujoco><worldbody><light pos='0 0 3'/><geom size='1' rgba='1 0 0 1'/></worldbody></mujoco>"


def render() -> Result:
    """Draw a red ball with the back-end that `MUJOCO_GL` names, in this process."""
    name = os.environ["MUJOCO_GL"].lower()
    try:
        import mujoco

        # mujoco skips a back-end that does not load without a message; this import gives the reason.
        importlib.import_module(f"mujoco.{name}")
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise
        return warning("mujoco is not installed", INSTALL)
    except AttributeError as error:  # PyOpenGL uses None for a library that it does not find
        raise RuntimeError(f"no {name} library is installed ({error})") from error
    try:
        renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string(SCENE), 64, 64)
    except (ImportError, RuntimeError, ValueError) as error:
        device = os.environ.get(EGL_DEVICE)
        if name != "egl" or device is None:
            raise
        return warning(f"{EGL_DEVICE}={device} names no device that draws ({error})", f"unset {EGL_DEVICE}")
    data = mujoco.MjData(renderer.model)
    mujoco.mj_forward(renderer.model, data)
    renderer.update_scene(data)
    red, green, _ = renderer.render()[32, 32].tolist()
    if red < 50 or red < 2 * green:
        raise RuntimeError(f"a red ball was drawn in red {red} and green {green}")
    return ok(f"renders, mujoco {mujoco.__version__}")


GRAPHICS = tuple(
    Check(name, render, fix, seconds=60.0, environment={"MUJOCO_GL": name.lower()}) for name, fix in PACKAGES.items()
)


def soften(results: Sequence[Result]) -> list[Result]:
    """If one back-end works, mark the problems of the others as not needed."""
    working = [result.name for result in results if result.name in PACKAGES and result.status == "ok"]
    return [
        replace(result, fix=f"not needed while {working[0]} works")
        if working and result.name in PACKAGES and result.fix
        else result
        for result in results
    ]


def choose_graphics() -> tuple[str | None, list[Result]]:
    """The value of `MUJOCO_GL` to render with (None if nothing works), and the results of the checks.

    If the user has set `MUJOCO_GL`, only that value is tried; with `MUJOCO_EGL_DEVICE_ID` alone, only EGL. Else EGL,
    OSMesa and GLFW are tried until one works.
    """
    wanted = os.environ.get("MUJOCO_GL")
    checks = GRAPHICS[:1] if EGL_DEVICE in os.environ else GRAPHICS
    if wanted:
        fixes = {name.lower(): fix for name, fix in PACKAGES.items()}
        fix = fixes.get(wanted.lower(), f"set it to {', '.join(fixes)}, or to nothing")
        checks = (Check(f"MUJOCO_GL={wanted}", render, fix, seconds=60.0),)
    results = []
    for check in checks:
        results.append(run_check(check))
        if results[-1].status == "ok":
            return wanted or check.environment["MUJOCO_GL"], results
    return None, results
