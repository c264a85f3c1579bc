"""From a simulated task to a folder of shards: episodes of the dm_control suite, recorded without a screen."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from aime_fast.data.collect.collector_pool import CollectorPool, read_states, usable_cores
from aime_fast.data.collect.policies import check_policy_name
from aime_fast.data.collect.simulation import Choices
from aime_fast.data.episode import DEFAULT_SIZE, check_image_size
from aime_fast.data.packing.pack import check_target, write_folder
from aime_fast.data.shards.manifest import split_of_episodes
from aime_fast.data.sources import Source, open_source
from aime_fast.doctor import choose_graphics
from aime_fast.errors import UserError, check_at_least

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
    size: int = DEFAULT_SIZE,
    seed: int = 0,
    val_episodes: int | None = None,
    processes: int | None = None,
    force: bool = False,
) -> Path:
    """Record `episodes` of the task `env` (`cheetah_run`, `humanoid_walk`, ...) as raw shards in `out`; returns `out`.

    The choices are those of `Choices`. The last `val_episodes` (None: a fifth, at least one) are for validation.
    `processes` (None: one a core) are spawned, so a script that calls this needs `if __name__ == "__main__"`.

    Finished episodes are kept in a folder beside `out`; after an interruption the same call continues from there. The
    same choices on the same machine give the same bytes, interrupted or not, for any number of processes. An `out` with
    files in it is replaced only with `force`, and only if it holds shards. `UserError` if it cannot be recorded.

    The simulator's state of every frame is kept beside the shards (`aime_fast/data/shards/states.py`).
    """
    out = Path(out).resolve()
    processes = processes or usable_cores()
    check_at_least(1, episodes=episodes, length=length, action_repeat=action_repeat, processes=processes)
    check_at_least(0, camera=camera, seed=seed)
    check_image_size(size)
    check_policy_name(policy)
    check_target(out, force)
    splits = split_of_episodes(episodes, val_episodes)
    choices = Choices(
        environment=env, length=length, policy=policy, action_repeat=action_repeat, camera=camera, size=size, seed=seed
    )
    graphics, results = choose_graphics()
    if graphics is None:
        raise UserError(f"nothing renders here, {results[0].line} (`aime-fast doctor` says more)")
    with CollectorPool(choices, graphics, min(processes, episodes)) as pool:
        provenance = pool.provenance()
        with _work_folder(out, provenance, force) as folder:
            files = [folder / f"episode-{number:06d}.h5" for number in range(episodes)]
            _record(pool, files, choices)
            write_folder(_as_source(files, provenance, size), out, splits)
            for path in folder.glob(EPISODES):
                path.unlink()
    return out


@contextmanager
def _work_folder(out: Path, provenance: dict[str, Any], force: bool) -> Iterator[Path]:
    """The folder beside `out` for finished episodes, locked by this process, and deleted if it holds none at the end.

    `UserError` if another process has locked it, or it holds episodes of other choices and `force` is not set.
    """
    folder = out.with_name(f".{out.name}.collecting")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=0):
            _clear_of_others(folder, provenance, force)
            try:
                yield folder
            except KeyboardInterrupt:
                print(f"finished episodes are kept in {folder}; the same command continues", file=sys.stderr)
                raise
            finally:
                if not any(folder.glob(EPISODES)):
                    shutil.rmtree(folder)
    except Timeout:
        raise UserError(f"{folder}: another process is recording into it; let it finish") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be used ({error}); make room, or choose another folder") from error


def _clear_of_others(folder: Path, provenance: dict[str, Any], force: bool) -> None:
    """Keep only episodes of this `provenance` in the folder, and write it there."""
    record = folder / "provenance.json"
    try:
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    except ValueError:  # interrupted while it was written, before the first episode
        before = {}
    if before == provenance:
        return
    if any(folder.glob(EPISODES)) and not force:
        keys = sorted(key for key in before.keys() | provenance.keys() if before.get(key) != provenance.get(key))
        differences = ", ".join(f"{key} {before.get(key)} instead of {provenance.get(key)}" for key in keys)
        raise UserError(
            f"{folder}: holds episodes of an interrupted recording with {differences}; "
            "repeat its choices, or --force to begin again"
        )
    for stale in folder.glob("episode-*"):
        stale.unlink()
    record.write_text(json.dumps(provenance), encoding="utf-8")


def _record(pool: CollectorPool, files: list[Path], choices: Choices) -> None:
    """Record the episodes that have no file yet, and show the progress."""
    missing = [(number, path) for number, path in enumerate(files) if not _is_whole(path)]
    total = len(missing) * choices.length
    needed, free = 2 * total * choices.size**2 * 3, shutil.disk_usage(files[0].parent).free
    if needed > free:
        raise UserError(f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; make room or record less")
    kept = episodes = len(files) - len(missing)
    frames, printed = 0, time.monotonic()
    with tqdm(total=total, unit=" frames", desc=f"episode {kept}/{len(files)}", disable=None) as bar:
        if bar.disable and kept:
            print(f"{kept} of {len(files)} episodes are there already", file=sys.stderr)
        for new, finished, _ in pool.run(missing):
            frames, episodes = frames + new, episodes + (finished is not None)
            bar.update(new)
            bar.set_description(f"episode {episodes}/{len(files)}", refresh=False)
            if bar.disable and time.monotonic() - printed > QUIET_SECONDS:
                printed = time.monotonic()
                print(f"{episodes} of {len(files)} episodes, {frames} of {total} frames", file=sys.stderr)


def _is_whole(path: Path) -> bool:
    try:
        open_source(path)
    except UserError:  # missing or damaged
        return False
    return True


def _as_source(files: list[Path], provenance: dict[str, Any], size: int) -> Source:
    """The recorded episodes as one recording."""
    parts = [open_source(path, size=size) for path in files]
    lengths = [length for part in parts for length in part.lengths]
    where, environment = str(files[0].parent), provenance["environment"]
    facts = ("recorded", where, environment, lengths, size, lambda n: parts[n].episode(0), (), provenance)
    return Source(*facts, states=lambda n: read_states(files[n]))
