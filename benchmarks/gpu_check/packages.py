"""The packages that jobs need, and those that a machine without a network is given in a folder."""

import subprocess
import sys
from pathlib import Path

CORE = {
    "numpy": "numpy",
    "h5py": "h5py",
    "annotated_types": "annotated-types",
    "filelock": "filelock",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic_core",
    "typing_inspection": "typing-inspection",
    "yaml": "PyYAML",
    "psutil": "psutil",
    "safetensors": "safetensors",
    "PIL": "pillow",
}
"""What a training step imports beside torch: the name of each module, and of the package that has it."""
COMMAND_LINE = {
    "jsonargparse": "jsonargparse",
    "docstring_parser": "docstring_parser",
    "typeshed_client": "typeshed_client",
    "tqdm": "tqdm",
}
"""What `aime_fast/train.py` imports beside those."""
TESTS = {"pytest": "pytest", "pytest_timeout": "pytest-timeout", "hypothesis": "hypothesis", "mpmath": "mpmath"}
"""What the tests for a GPU import beside those."""
DEEPSPEED = {"deepspeed": "deepspeed"}
TRITON = {"triton": "triton"}
ALL = CORE | COMMAND_LINE | TESTS | DEEPSPEED | TRITON


def unpacked(folder: Path, target: Path) -> tuple[Path, list[str]]:
    """The folder to import packages from, and the names of wheels that could not be installed.

    `folder` holds either wheels, which are installed into `target`, or installed packages, and then is that folder.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return folder, []
    if _install(wheels, target):
        return target, []
    # One bad wheel stops pip; the others are worth having.
    return target, [wheel.name for wheel in wheels if not _install([wheel], target)]


def _install(wheels: list[Path], target: Path) -> bool:
    options = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--quiet", "--upgrade"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *map(str, wheels)]
    return subprocess.run(command, capture_output=True).returncode == 0
