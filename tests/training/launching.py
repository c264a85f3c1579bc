"""Starts the ranks of a worker script on this machine and waits for them."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(world_size, script, *arguments, timeout=250, **environment):
    """What each rank printed and its exit code, in rank order; ranks that are left are killed."""
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    common |= {"OMP_NUM_THREADS": "1", "DEEPSPEED_TIMEOUT": "1", **environment}
    with ExitStack() as stack:  # leaving it closes pipes and waits for what was killed
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name(script)), *arguments],
                    env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for rank in range(world_size)
        ]
        try:
            printed = [process.communicate(timeout=timeout)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    return [(text, process.returncode) for text, process in zip(printed, processes, strict=True)]
