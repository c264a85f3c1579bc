"""Training by the command, as a user starts it."""

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gpu_check import ROOT
from gpu_check.worker import Emit, Failure


def zero2(emit: Emit, device: str, steps: int) -> None:
    """Steps under ZeRO-2 with the variables that a launcher sets for one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    preset = "small" if device == "cuda" else "debug"
    flags = [
        "--preset",
        preset,
        "--ds_config",
        "zero2",
        "--steps",
        str(steps),
        "--logging.log_every",
        "1",
        "--compile",
        "off",
        "--refit-steps",
        "0",
    ]
    for row in _training(flags, rank):
        shown = {"step": row["step"], "total_elbo": row["total_elbo"]}
        if row["split"] == "train":
            shown["frames_per_s"] = row["frames_per_second"]
        emit({"row": f"{preset} {row['split']}", **shown})


def train(emit: Emit, device: str, seconds: int) -> None:
    """Training for some seconds as written, captured where it can be; PSNR and loss of each validation."""
    preset = "small" if device == "cuda" else "debug"
    flags = ["--preset", preset, "--minutes", str(seconds / 60), "--compile", "off"]
    speeds: list[float] = []
    best = -math.inf
    for row in _training(flags, {}):
        if row["split"] == "train":
            speeds.append(row["frames_per_second"])
            continue
        best = max(best, row["psnr"])
        values = {"step": row["step"], "psnr_db": row["psnr"], "best_psnr_db": best, "total_elbo": row["total_elbo"]}
        emit({"row": preset, **values, "frames_per_s": statistics.median(speeds)})


def _training(flags: list[str], variables: dict[str, str]) -> Iterator[dict]:
    """Run the command; yield the rows of its log as they appear. `Failure` if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "aime_fast/train.py", *flags, "--logging.tracker", "none", "--out", str(out)]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables})
        yield from _follow(out / "metrics.jsonl", process)
        if process.returncode:
            raise Failure(f"train.py ended with code {process.returncode}")


def _follow(path: Path, process: subprocess.Popen[bytes]) -> Iterator[dict]:
    """Rows of a file that a process writes, until it has ended."""
    read, running = 0, True
    while running:
        running = process.poll() is None
        text = path.read_bytes() if path.exists() else b""
        complete = text.rpartition(b"\n")[0].splitlines()
        yield from map(json.loads, complete[read:])
        read = len(complete)
        if running:
            time.sleep(0.2)
