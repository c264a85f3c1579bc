"""Jobs that end in every way, and the check that runs them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_check.check import Check
from gpu_check.plan import Job
from gpu_check.records import Records
from gpu_check.worker import Skip

HERE = Path(__file__).resolve().parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parents[1] / "benchmarks")])


def good(emit, value=1):
    emit({"value": value})


def raises(emit):
    emit({"value": 1})
    raise ValueError("two lines:\nthe second")


def exits(emit):
    print("about to leave")
    os._exit(3)


def killed(emit):
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(emit):
    print("waiting", flush=True)
    emit({"value": 1})
    time.sleep(600)


def skips(emit):
    raise Skip("the moon is full")


def prints_garbage(emit):
    sys.stdout.buffer.write(b"\xff\xfe\x00 no text\n{'no': json\n")
    sys.stdout.buffer.flush()
    os.write(int(os.environ["GPU_CHECK_ROWS"]), b"\xff no row\n[1, 2]\n")
    emit({"value": 2})


def leaves_children(emit, file, seconds):
    """One child in the same group, and one that has left it and whose parent has ended."""
    nap = [sys.executable, "-c", "import time; time.sleep(600)"]
    near = subprocess.Popen(nap)
    far = f"import subprocess as s; print(s.Popen({nap!r}, start_new_session=True, stdout=s.DEVNULL).pid)"
    orphan = subprocess.run([sys.executable, "-c", far], stdout=subprocess.PIPE, text=True, check=True).stdout
    Path(file).write_text(f"{near.pid} {orphan}")
    time.sleep(seconds)


def job(name, limit=60.0, **more):
    options = more.pop("options", {})
    return Job(
        stage="steps", name=name, call=f"made_jobs:{name}", options=options, limit=limit, **{"least": 0.0} | more
    )


def check(folder, missing=(), device="cuda"):
    environment = {**os.environ, "PYTHONPATH": PATHS}
    return Check(Records(folder / "out.jsonl"), folder / "out.log", environment, missing, device)


def ends(records):
    """(status, why) of every job by name."""
    return {row["job"]: (row["status"], row["why"]) for row in records.rows() if "status" in row}
