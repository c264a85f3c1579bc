"""The house rules that a reader relies on: who may import whom, how long a file may be, what `--help` may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("aime_fast/**/*.py"), *ROOT.glob("kernels/aime_kernels/**/*.py")])
OPTIONAL = {
    *("av", "crc32c", "dm_control", "google", "lpips", "minari", "mujoco", "nvidia", "pyarrow"),
    *("tfrecord", "wandb", "webdataset"),
}
MAX_LINES = 500


def module_of(path: Path) -> str:
    """Dotted name of a source file: `aime_fast.model.parts.codec`, `aime_kernels.frames`."""
    base = ROOT / "kernels" if "kernels" in path.relative_to(ROOT).parts[:1] else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Absolute names that a file imports; `from a import b` counts as `a.b`, and relative imports are resolved."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text(), filename=str(path))
    deferred = set()
    if top_level_only:
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        deferred = {id(inner) for node in [*functions, *guards] for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in deferred:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{prefix}.{alias.name}" for alias in node.names)
    return names


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def violation(module: str, name: str) -> str | None:
    """Why `module` may not import `name`; None where it may."""
    if within(module, "aime_kernels"):
        allowed = within(name, "aime_kernels", "torch", "triton") or name.split(".")[0] in sys.stdlib_module_names
        return None if allowed else "kernels import torch, triton and the standard library only"
    if module.startswith("aime_fast.config"):
        light = within(name, "yaml", "jsonargparse", "aime_fast.errors") or name.startswith("aime_fast.config")
        return None if light or name.split(".")[0] in sys.stdlib_module_names else "configuration loads nothing heavy"
    if within(name, "aime_fast.training") and not within(
        module, "aime_fast.training", "aime_fast.commands", "aime_fast.train"
    ):
        return "only cli.py and train.py import training"
    if within(name, "aime_kernels"):
        if any(part.startswith("_") for part in name.split(".")):
            return "only the public functions of kernels are imported"
        users = ("aime_fast.model", "aime_fast.tasks", "aime_fast.balancing", "aime_fast.training")
        if not within(module, *users, "aime_fast.data.backends.resident", "aime_fast.doctor"):
            return (
                "kernels serve model, objectives, balancing, training, frames on the device, and doctor, who shows them"
            )
    if within(module, "aime_fast.model", "aime_fast.tasks", "aime_fast.balancing") and within(
        name,
        "aime_fast.data",
        "aime_fast.evaluation",
        "aime_fast.reporting",
        "aime_fast.planning",
        "aime_fast.commands.main",
    ):
        return "the mathematics knows nothing of data, watching or the command line"
    return None


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_follow_the_architecture(path):
    module = module_of(path)
    wrong = {name: why for name in imports_of(path) if (why := violation(module, name))}
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_optional_dependencies_are_imported_where_needed(path):
    wrong = {name for name in imports_of(path, top_level_only=True) if name.split(".")[0] in OPTIONAL}
    assert not wrong


@pytest.mark.parametrize(
    "path", [*SOURCES, *sorted(ROOT.glob("tests/**/*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_the_rules_catch_what_they_forbid():
    assert violation("aime_kernels.frames", "numpy.array")
    assert violation("aime_fast.config", "torch")
    assert violation("aime_fast.model.parts.codec", "aime_fast.training.step")
    assert violation("aime_fast.model.parts.codec", "aime_kernels.frames._impl")
    assert violation("aime_fast.data.windows", "aime_fast.training.checkpoint.state")
    assert not violation("aime_fast.commands.main", "aime_fast.training.trainer")
    assert not violation("aime_fast.model.parts.codec", "aime_kernels.frames")


def test_the_public_names_import():
    import aime_fast

    for name in aime_fast.__all__:
        assert getattr(aime_fast, name).__name__ == name


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from aime_fast.commands import main as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, timeout=60)
