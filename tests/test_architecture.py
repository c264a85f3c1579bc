"""The house rules: floors, no import cycle, short files, optional libraries on demand, a fast `--help`."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("aime_fast/**/*.py"), *ROOT.glob("kernels/aime_kernels/**/*.py")])
OPTIONAL = {
    *("av", "crc32c", "dm_control", "google", "minari", "mujoco", "nvidia", "pyarrow", "tfrecord", "webdataset"),
    *("nvtx", "trackio", "wandb"),
}
MAX_LINES, MAX_LINES_OF_TESTS, MAX_MEDIAN, MAX_FILES = 300, 500, 110, 15
FLOORS = (
    "aime_kernels",
    "aime_fast.errors",
    "aime_fast.waiting",
    "aime_fast.config",
    "aime_fast.kernel_mode",
    "aime_fast.reporting",
    "aime_fast.profiling",
    "aime_fast.doctor",
    "aime_fast.data",  # episode, windows, batch: what the rooms of data share
    "aime_fast.data.shards",
    "aime_fast.data.sources",
    "aime_fast.data.packing",
    "aime_fast.data.streaming",
    "aime_fast.data.store",
    "aime_fast.data.packing.inspection",
    "aime_fast.data.backends",
    "aime_fast.data.identity",
    "aime_fast.data.dataset",
    "aime_fast.data.collect",
    "aime_fast.model.draws",
    "aime_fast.model.parts",
    "aime_fast.model.priors",
    "aime_fast.model",
    "aime_fast.tasks",
    "aime_fast.balancing.vectors",
    "aime_fast.balancing.solvers",
    "aime_fast.balancing.layouts",
    "aime_fast.balancing",
    "aime_fast.evaluation",
    "aime_fast.control",
    "aime_fast.refit.perceived",
    "aime_fast.refit.ahead",
    "aime_fast.refit.objective",
    "aime_fast.refit.choice",
    "aime_fast.refit.learning",
    "aime_fast.refit.fit",
    "aime_fast.training.engines",
    "aime_fast.training.meters",
    "aime_fast.training.nest",
    "aime_fast.training.prefetcher",
    "aime_fast.training.step",
    "aime_fast.planning",
    "aime_fast.training.checkpoint",
    "aime_fast.refit",
    "aime_fast.training.run",
    "aime_fast.training",
    "aime_fast.train",
    "aime_fast.launch",
    "aime_fast.commands",
)
"""Lowest first; a file imports only from its own floor or from lower ones (docs/architecture.md)."""
MATHEMATICS = ("aime_fast.model", "aime_fast.tasks", "aime_fast.balancing")


def module_of(path: Path) -> str:
    """Dotted name of a source file: `aime_fast.model.outputs`, `aime_kernels.frames`."""
    base = ROOT / "kernels" if "kernels" in path.relative_to(ROOT).parts[:1] else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Absolute names that a file imports; `from a import b` counts as `a.b`."""
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
            assert node.level == 0, f"{path}: imports are absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def floor(name: str) -> int | None:
    """The floor of a module or of a name in it; None for the top package, which has lazy names only."""
    found = [package for package in FLOORS if within(name, package)]
    return FLOORS.index(max(found, key=len)) if found else None


def violation(module: str, name: str) -> str | None:
    """Why `module` may not import `name`; None where it may."""
    standard = name.split(".")[0] in sys.stdlib_module_names
    if within(module, "aime_kernels"):
        allowed = standard or within(name, "aime_kernels", "torch", "triton")
        return None if allowed else "kernels import torch, triton and the standard library only"
    if within(module, "aime_fast.config"):
        light = within(name, "yaml", "jsonargparse", "annotated_types", "pydantic", "aime_fast.errors")
        return None if light or standard or within(name, "aime_fast.config") else "configuration loads nothing heavy"
    if within(name, "aime_kernels") and any(part.startswith("_") for part in name.split(".")):
        return "only the public functions of kernels are imported"
    here, there = floor(module), floor(name)
    if here is not None and there is not None and there > here:
        return f"{FLOORS[there]} is a floor above {FLOORS[here]}"
    if within(module, *MATHEMATICS) and within(name, "aime_fast.data", "aime_fast.reporting", "aime_fast.doctor"):
        batch = within(module, "aime_fast.tasks") and within(name, "aime_fast.data.batch")
        return None if batch else "the mathematics knows nothing of data and logs"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_from_its_floor_or_lower(module):
    wrong = {name: why for name in imports_of(MODULES[module]) if (why := violation(module, name))}
    assert not wrong


def imported_modules(module: str) -> set[str]:
    """The project's modules that a module imports, also inside functions; those for type checking only left out."""
    tree = ast.parse(MODULES[module].read_text())
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    checked = {
        f"{n.module}.{a.name}" for g in guards for n in ast.walk(g) if isinstance(n, ast.ImportFrom) for a in n.names
    }
    found = set()
    for name in imports_of(MODULES[module]) - checked:
        owner = name if name in MODULES else name.rpartition(".")[0]
        if owner in MODULES and owner not in (module, "aime_fast"):
            found.add(owner)
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The names along one cycle of a graph; empty where it has none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for follower in sorted(graph.get(node, ())):
            if found := visit(follower, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_no_import_cycle():
    assert cycle({module: imported_modules(module) for module in MODULES}) == []


def test_cycles_are_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", MODULES)
def test_optional_libraries_are_imported_where_needed(module):
    wrong = {n for n in imports_of(MODULES[module], top_level_only=True) if n.split(".")[0] in OPTIONAL}
    assert not wrong


def test_files_are_short():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
    assert statistics.median(lines.values()) < MAX_MEDIAN
    tests = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.glob("tests/**/*.py")}
    assert {name: count for name, count in tests.items() if count > MAX_LINES_OF_TESTS} == {}


def test_no_folder_is_crowded():
    folders = {path.parent for path in SOURCES}
    crowded = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in crowded.items() if count > MAX_FILES} == {}


def test_every_folder_is_explained():
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {str(path.parent.relative_to(ROOT)) + "/" for path in SOURCES} - {"aime_fast/"}
    explained = {name for name in folders if f"`{name}`" in page or name.startswith("kernels/aime_kernels/")}
    assert folders - explained == set()


def test_the_rules_catch_what_they_forbid():
    assert violation("aime_kernels.frames", "numpy.array")
    assert violation("aime_fast.config.schema", "torch")
    assert violation("aime_fast.model.parts.decoder", "aime_fast.training.step.TrainingStep")
    assert violation("aime_fast.model.parts.decoder", "aime_fast.model.outputs.SequenceOutputs")
    assert violation("aime_fast.model.parts.decoder", "aime_kernels.frames._impl")
    assert violation("aime_fast.balancing.solvers.rotation", "aime_fast.balancing.layouts.flat.FlatLayout")
    assert violation("aime_fast.model.world_model", "aime_fast.data.batch.Batch")
    assert violation("aime_fast.data.windows", "aime_fast.data.store.Episodes")
    assert not violation("aime_fast.tasks.elbo", "aime_fast.data.batch.Batch")
    assert not violation("aime_fast.commands.train", "aime_fast.training.trainer.DMCVBTrainer")
    assert not violation("aime_fast.model.parts.decoder", "aime_kernels.frames")


def test_the_public_names_import():
    import aime_fast

    for name in aime_fast.__all__:
        assert getattr(aime_fast, name).__name__ == name


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from aime_fast.commands import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, timeout=60)
