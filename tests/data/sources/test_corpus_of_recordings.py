"""Every case of damage to recordings, in every layout that `pack` reads; `corpus` says what may come of it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import written_layouts as layouts
from corpus import Case, assert_clear, isolated, outcome, watched
from damage_of_recordings import LAYOUTS, LENGTHS, RECORDING_CASES

from aime_fast.data.dataset import DMCVBDataset
from aime_fast.data.packing.pack import pack
from aime_fast.data.sources import open_source
from aime_fast.errors import UserError

DANGEROUS = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")
events: list[str] = []


def read_episodes(path: Path) -> Iterator[bytes]:
    for episode in open_source(path).read():
        yield from (episode.observations.tobytes(), episode.actions.tobytes(), episode.rewards.tobytes())
        yield from (episode.terminated.tobytes(), episode.truncated.tobytes())


def read_by_packing(path: Path) -> Iterator[bytes]:
    out = path.with_name("packed")
    try:
        pack(path, out)
        yield from (file.read_bytes() for file in sorted(out.iterdir()) if file.name != "manifest.json")
    except UserError:
        assert [name for name in out.parent.iterdir() if "packed" in name.name] == [], "a refused pack left files"
        raise
    finally:
        shutil.rmtree(out, ignore_errors=True)


def read_dataset(path: Path) -> Iterator[bytes]:
    dataset = DMCVBDataset(path, 3, split="all")
    for number in range(len(dataset)):
        item = dataset[number]
        yield from (item[name].numpy().tobytes() for name in ("observations", "actions", "rewards", "dones"))


WAYS = {"source": read_episodes, "pack": read_by_packing, "dataset": read_dataset}


@pytest.fixture(scope="module", autouse=True)
def audited():
    sys.addaudithook(lambda event, _: events.append(event) if event in DANGEROUS else None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By layout: the folder a recording was written in, its path in there, and what each way in reads."""
    episodes, found = layouts.sample_episodes(LENGTHS), {}

    def get(name: str) -> tuple[Path, str, dict[str, tuple[str, str]]]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name) / "data"
            folder.mkdir()
            if name == "columns":
                return folder, ".", {}
            path = LAYOUTS[name](folder, episodes)
            (folder / "plain").unlink(missing_ok=True)
            found[name] = (
                folder,
                str(path.relative_to(folder)),
                {w: outcome(lambda r=r: r(path)) for w, r in WAYS.items()},
            )
        return found[name]

    return get


@pytest.mark.parametrize("case", RECORDING_CASES, ids=lambda case: case.name)
def test_a_damaged_recording(case: Case, whole, tmp_path):
    folder, place, reads = whole(case.name.partition("/")[0])
    path = shutil.copytree(folder, tmp_path / "data") / place
    damage = case.damage(path, case.random)
    events.clear()
    if "unchecked" in case.name:
        # Nothing tells that such a bit is wrong; whatever it leads the libraries to, the interpreter lives.
        with watched(case, damage):
            came, what = isolated(in_isolation, path)
            assert came == "read" or assert_clear(what, case, path) is None
        return
    for way, read in WAYS.items():
        with watched(case, f"{damage}; read by {way}"):
            came, what = outcome(lambda read=read: read(path))
            if came == "refused":
                assert_clear(what, case, path)
            else:
                assert not case.refused, "damage went unnoticed"
                assert what == reads[way][1], "read something else without a word"
    assert not (tmp_path / "sprung").exists() and not events, f"code was run: {events}"


def in_isolation(path: Path) -> tuple[str, str]:
    return outcome(lambda: read_episodes(path))


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_whole_is_read(name, whole):
    _, _, reads = whole(name)
    assert [came for came, _ in reads.values()] == ["read"] * len(WAYS), reads
