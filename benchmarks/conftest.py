"""`pytest benchmarks/`: collects rows, prints their table, and compares them with an earlier run's."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from comparing import compare
from rows import Results, Row, make_row, read_results, results_of
from summary import busy, comparison_lines, table
from targets import EpochTarget, read_targets

from aime_fast.errors import UserError
from aime_fast.training.run.host_memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
ROWS = pytest.StashKey[dict[tuple, Row]]()
EARLIER = pytest.StashKey[Results]()
VERDICT = pytest.StashKey[list[str]]()
"""What `--compare` says."""
TARGETS = read_targets()


def pytest_addoption(parser):
    group = parser.getgroup("benchmarks")
    group.addoption("--compare", metavar="FILE", help="fail if a ratio is worse than in this file of --write")
    group.addoption("--write", metavar="PATH", help="write the rows to a file, or to a dated one in a folder")
    group.addoption("--epoch", metavar="EPISODES,FRAMES,STRIDE", help="what an epoch is; default: targets.toml")


def pytest_configure(config):
    config.stash[ROWS] = {}
    keep_freed_memory()  # as in training, for our forms and for the peers'
    # Processes that benchmarks start import this checkout.
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(ROOT), str(ROOT / "kernels"), *filter(None, inherited)])
    )
    try:
        if path := config.getoption("--compare", None):
            config.stash[EARLIER] = read_results(path)
        if given := config.getoption("--write", None):
            _check_parent(given)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


def _check_parent(given):
    if not Path(given).absolute().parent.is_dir():
        raise UserError(f"--write {given}: its folder does not exist; make it first")


@pytest.fixture
def record(request) -> Callable[..., Row]:
    """Adds a row to the run's table, with the arguments of `rows.make_row`; returns it."""

    def add(*arguments, **options):
        row = make_row(*arguments, **options)
        request.config.stash[ROWS][row.key] = row
        request.node.user_properties.append(("row", row))
        return row

    return add


@pytest.fixture
def record_forms(record) -> Callable[..., dict[str, Row]]:
    """Adds a row for each form of one computation, `samples` by name, each compared with the form `baseline`."""

    def add(what, samples, *, baseline, paired, **options):
        base = (baseline, samples[baseline])
        return {
            form: record(what, form, values, paired=paired, baseline=None if form == baseline else base, **options)
            for form, values in samples.items()
        }

    return add


@pytest.fixture(scope="session")
def epoch(request) -> EpochTarget:
    """What an epoch is in this run."""
    given = request.config.getoption("--epoch", None)
    if given is None:
        return TARGETS.epoch
    try:
        episodes, frames, stride = map(int, given.split(","))
        return EpochTarget(episodes=episodes, frames=frames, stride=stride, source="--epoch of this run")
    except ValueError:
        raise pytest.UsageError(f"--epoch {given}: give three numbers from 1, EPISODES,FRAMES,STRIDE") from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A benchmark fails if a row of it misses its limit; on a busy machine no limit of wall-clock time is enforced."""
    result = yield
    rows = [row for name, row in item.user_properties if name == "row"]
    limits = [(row, TARGETS.limit_of(row)) for row in rows if not (row.unit == "s" and busy())]
    missed = [f"{row.name}: target {limit.words} missed" for row, limit in limits if limit and limit.failed(row)]
    if missed:
        pytest.fail("\n".join(missed), pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter, config):
    rows = list(config.stash[ROWS].values())
    if not rows:
        return
    terminalreporter.section("rows")
    for line in table(rows, TARGETS):
        terminalreporter.line(line)
    if given := config.getoption("--write", None):
        terminalreporter.line(f"written: {results_of(rows).write(Path(given))}")
    if lines := config.stash.get(VERDICT, None):
        terminalreporter.section("comparison")
        for line in lines:
            terminalreporter.line(line)


def pytest_sessionfinish(session):
    """`--compare` fails the run if a ratio is worse, or if nothing was compared."""
    config = session.config
    if EARLIER not in config.stash:
        return
    path = config.getoption("--compare", None)
    try:
        found = compare(config.stash[EARLIER], results_of(config.stash[ROWS].values()))
        config.stash[VERDICT] = comparison_lines(found, path)
        failed = bool(found.worse)
    except UserError as error:
        config.stash[VERDICT], failed = [f"error: {error}"], True
    if failed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
