"""Two hosts with one process each: network namespaces that the test connects with a virtual cable."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recording import write_recording

ROOT = Path(__file__).parents[2]
SIZES = ["--loader.batch-size", "2", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "6"]
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words):
    return subprocess.run(["ip", *words], check=False, capture_output=True, text=True, timeout=20)


@pytest.fixture
def hosts():
    """Names of two namespaces that reach each other and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts not tested: there is no `ip` (iproute2)")
    names = [f"aime-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            if made := ip("netns", "add", name).stderr:
                pytest.skip(f"two hosts not tested: the kernel refuses network namespaces ({made.strip()})")
        cable = ip(
            "link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1]
        )
        if cable.returncode:
            pytest.skip(f"two hosts not tested: no virtual cable ({cable.stderr.strip()})")
        for number, (name, address) in enumerate(zip(names, ADDRESSES, strict=True)):
            for words in (
                ("address", "add", f"{address}/24", "dev", f"cable{number}"),
                ("link", "set", f"cable{number}", "up"),
                ("link", "set", "lo", "up"),
            ):
                assert ip("-n", name, *words).returncode == 0, words
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def torchrun(number):
    options = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(number)]
    return ["-m", "torch.distributed.run", *options, "--master_addr", ADDRESSES[0], "--master_port", "29511"]


def deepspeed(number):
    options = ["--hostfile", "hosts", "--no_ssh", "--node_rank", str(number)]
    return ["-m", "deepspeed.launcher.runner", *options, "--master_addr", ADDRESSES[0], "--master_port", "29511"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_two_hosts_train_one_model(hosts, tmp_path, launcher):
    data = write_recording(tmp_path / "recording.pt")
    (tmp_path / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    job = [str(ROOT / "aime_fast" / "train.py"), "--ds_config", "zero2", "--preset", "debug", "--data", data, *SIZES]
    job += ["--steps", "3", "--out", "run"]
    processes = []
    for number, name in enumerate(hosts):
        environment = os.environ | {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "DEEPSPEED_TIMEOUT": "1",
            "GLOO_SOCKET_IFNAME": f"cable{number}",
        }
        command = ["ip", "netns", "exec", name, sys.executable, *launcher(number), *job]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
    try:
        printed = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    assert {"rank-0-of-2.safetensors", "rank-1-of-2.safetensors"} <= {path.name for path in checkpoint.iterdir()}
