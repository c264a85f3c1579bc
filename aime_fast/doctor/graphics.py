"""Which way of rendering without a screen works here."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace

from aime_fast.doctor.checks import Check, Result, run_check
from aime_fast.doctor.finding import Finding

SECONDS = 60.0
INSTALL = "pip install 'aime-fast[dm_control]'"
PACKAGES = {
    "EGL": "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri",
    "OSMesa": "apt-get install libosmesa6",
    "GLFW": "apt-get install libglfw3 libgl1-mesa-dri, and give it a screen (DISPLAY)",
}
"""What brings each on Debian and Ubuntu, in the order they are tried."""
GRAPHICS = tuple(
    Check(name, f"{__name__}:render", fix, seconds=SECONDS, environment={"MUJOCO_GL": name.lower()})
    for name, fix in PACKAGES.items()
)

SCENE = "<mujoco><worldbody><light pos='0 0 3'/><geom size='1' rgba='1 0 0 1'/></worldbody></mujoco>"


def render() -> Finding:
    """Draw a red ball with the back-end that `MUJOCO_GL` names, in this process."""
    name = os.environ["MUJOCO_GL"].lower()
    try:
        import mujoco

        # It leaves out what does not load and says nothing; loading it by name tells why.
        importlib.import_module(f"mujoco.{name}")
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise
        return Finding("mujoco is not installed", INSTALL)
    except AttributeError as error:  # PyOpenGL goes on with None in the place of a library
        raise RuntimeError(f"no {name} library is installed ({error})") from error
    renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string(SCENE), 64, 64)
    data = mujoco.MjData(renderer.model)
    mujoco.mj_forward(renderer.model, data)
    renderer.update_scene(data)
    red, green, _ = renderer.render()[32, 32].tolist()
    if red < 50 or red < 2 * green:
        raise RuntimeError(f"a red ball was drawn in red {red} and green {green}")
    return Finding(f"renders, mujoco {mujoco.__version__}")


def soften(results: Sequence[Result]) -> list[Result]:
    """Where one way of rendering works, say of the others that nothing needs to be done."""
    working = next((result.name for result in results if result.name in PACKAGES and result.status == "ok"), None)
    return [
        replace(result, fix=f"not needed while {working} works")
        if working and result.name in PACKAGES and result.fix
        else result
        for result in results
    ]


def choose_graphics() -> tuple[str | None, list[Result]]:
    """The value of `MUJOCO_GL` to render with, and the results that led to it; None where nothing works.

    A value the user has set is the only one tried; else EGL, OSMesa and GLFW are, until one works.
    """
    wanted = os.environ.get("MUJOCO_GL")
    checks = GRAPHICS
    if wanted:
        known = next((check for check in GRAPHICS if check.name.lower() == wanted.lower()), None)
        fix = known.fix if known else f"set it to {', '.join(PACKAGES).lower()}, or to nothing"
        checks = (Check(f"MUJOCO_GL={wanted}", f"{__name__}:render", fix, seconds=SECONDS),)
    results = []
    for check in checks:
        results.append(run_check(check))
        if results[-1].status == "ok":
            return wanted or check.environment["MUJOCO_GL"], results
    return None, results
