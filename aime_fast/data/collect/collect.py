"""From a simulated task to a folder of shards: episodes of the dm_control suite, recorded headless."""

import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from aime_fast.data.collect.collector_pool import CollectorPool, usable_cores
from aime_fast.data.collect.policies import check_policy_name
from aime_fast.data.collect.simulation import Choices
from aime_fast.data.episode import FRAME_BYTES
from aime_fast.data.shards.manifest import split_of_episodes
from aime_fast.doctor import choose_graphics
from aime_fast.errors import UserError

if TYPE_CHECKING:
    from aime_fast.data.sources import Source

EPISODES = "episode-*.h5"
QUIET_SECONDS = 30.0
"""Between two lines of progress where there is no terminal for a bar."""


def collect(
    env: str,
    out: str | Path,
    *,
    episodes: int = 10,
    length: int = 500,
    policy: str = "ou",
    action_repeat: int = 2,
    camera: int = 0,
    seed: int = 0,
    val_episodes: int | None = None,
    processes: int | None = None,
    force: bool = False,
) -> Path:
    """Record `episodes` of the task `env` (`cheetah_run`, `humanoid_walk`, ...) as raw shards into `out`; returns it.

    An episode has `length` frames, or fewer where the task ends before; each action lasts `action_repeat` simulation
    steps. `policy` is `ou`, `random` or `module:function` (see `aime_fast.data.collect.policies.Policy`). The last
    `val_episodes` (None: a fifth, at least one) are for validation. `processes` (None: one per core) share the work.

    Finished episodes are kept in a folder beside `out`; the same call goes on from there after an interruption. The
    same choices on the same machine give the same bytes, interrupted or not, for any number of processes. An `out`
    with files in it is replaced only with `force`, and only when it holds shards. Processes are spawned, so a script
    that calls this needs the usual `if __name__ == "__main__"`. `UserError` for what cannot be recorded.
    """
    from aime_fast.data.packing.pack import check_target, write_folder

    out = Path(out).resolve()
    for name, value, least in (
        ("episodes", episodes, 1), ("length", length, 1), ("action repeat", action_repeat, 1), ("camera", camera, 0),
        ("seed", seed, 0), ("processes", processes or 1, 1),
    ):  # fmt: skip
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
    check_policy_name(policy)
    check_target(out, force)
    splits = split_of_episodes(episodes, val_episodes, None)
    choices = Choices(
        environment=env, length=length, policy=policy, action_repeat=action_repeat, camera=camera, seed=seed
    )
    graphics, results = choose_graphics()
    if graphics is None:
        raise UserError(f"nothing renders here, {results[0].line} (`aime-fast doctor` tells more)")
    with CollectorPool(choices, graphics, min(processes or usable_cores(), episodes)) as crew:
        provenance = crew.provenance()
        with _work_folder(out, provenance, force) as folder:
            files = [folder / f"episode-{number:06d}.h5" for number in range(episodes)]
            _record(crew, files, length)
            write_folder(_as_source(files, provenance), out, splits)
            for path in folder.glob(EPISODES):
                path.unlink()
    return out


@contextmanager
def _work_folder(out: Path, provenance: dict[str, Any], force: bool) -> Iterator[Path]:
    """The folder beside `out` for finished episodes, held by this process alone; without one it goes in the end.

    `UserError` when another process holds it, or its episodes come from other choices and `force` does not allow to
    drop them.
    """
    folder = out.with_name(f".{out.name}.collecting")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder}: another process is recording into it; let it finish") from None
            _clear_of_others(folder, provenance, force)
            try:
                yield folder
            except KeyboardInterrupt:
                print(f"finished episodes are kept in {folder}; the same command goes on from there", file=sys.stderr)
                raise
            finally:
                if not any(folder.glob(EPISODES)):
                    shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used ({error}); make room, or choose another folder") from error


def _clear_of_others(folder: Path, provenance: dict[str, Any], force: bool) -> None:
    """Leave only episodes of this `provenance` in the folder, and note it there."""
    record = folder / "provenance.json"
    try:
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    except ValueError:  # cut off while it was written, before the first episode
        before = {}
    if before == provenance:
        return
    if any(folder.glob(EPISODES)) and not force:
        differences = _differences(before, provenance)
        raise UserError(
            f"{folder}: holds episodes of an interrupted recording with {differences}; "
            "repeat its choices, or --force to begin again"
        )
    for stale in folder.glob("episode-*"):
        stale.unlink()
    record.write_text(json.dumps(provenance), encoding="utf-8")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return ", ".join(f"{key} {before.get(key)} instead of {now.get(key)}" for key in keys)


def _record(crew: CollectorPool, files: list[Path], length: int) -> None:
    """Record the episodes whose file is not there yet, showing how far that is."""
    missing = [(number, path) for number, path in enumerate(files) if not _is_whole(path)]
    room, free = 2 * len(missing) * length * FRAME_BYTES, shutil.disk_usage(files[0].parent).free
    if room > free:
        raise UserError(f"{room / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; make room or record less")
    kept, total = len(files) - len(missing), len(missing) * length
    frames, episodes, printed = 0, kept, time.monotonic()
    with tqdm(total=total, unit=" frames", desc=f"episode {kept}/{len(files)}", disable=None) as bar:
        if bar.disable and kept:
            print(f"{kept} of {len(files)} episodes are there already", file=sys.stderr)
        for new in crew.record(missing):
            frames, episodes = frames + new, episodes + (new == 0)
            bar.update(new)
            bar.set_description(f"episode {episodes}/{len(files)}", refresh=False)
            if bar.disable and time.monotonic() - printed > QUIET_SECONDS:
                printed = time.monotonic()
                print(f"{episodes} of {len(files)} episodes, {frames} of {total} frames", file=sys.stderr)


def _is_whole(path: Path) -> bool:
    from aime_fast.data.sources import open_source

    try:
        open_source(path)
    except UserError:  # not there, or damaged since
        return False
    return True


def _as_source(files: list[Path], provenance: dict[str, Any]) -> "Source":
    """The recorded episodes as one recording."""
    from aime_fast.data.sources import Source, open_source

    parts = [open_source(path) for path in files]
    lengths = [length for part in parts for length in part.lengths]
    where, environment = str(files[0].parent), provenance["environment"]
    return Source("recorded", where, environment, lengths, lambda number: parts[number].episode(0), (), provenance)
