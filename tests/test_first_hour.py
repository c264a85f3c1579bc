"""What a newcomer's terminal does: its width, its locale, a closed pipe, Ctrl-C, a full disk, a bare command."""

import errno
import fcntl
import json
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from aime_fast import waiting
from aime_fast.config import preset_config
from aime_fast.reporting.metrics_log import MetricsLog, read_metrics
from aime_fast.reporting.progress import fitted
from aime_fast.reporting.trackers.tensorboard import without_events
from aime_fast.training.run import preset
from aime_fast.training.run.going_on import launcher_command, plain_command

ROOT = Path(__file__).parents[1]
SMALL = ["--preset", "debug", "--loader.batch-size", "1", "--loader.sequence-length", "2"]
SHORT = [*SMALL, "--loader.windows-per-epoch", "400", "--logging.log-every", "1", "--logging.tracker", "none"]
COMMAND = [sys.executable, "-m", "aime_fast"]


def plain(**changes):
    """The environment without what tests set for themselves."""
    kept = {name: value for name, value in os.environ.items() if name not in (*waiting.WAITING, waiting.BLAS)}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


def in_terminal(columns, *arguments, folder, **changes):
    """What a command writes to a terminal of this width, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=plain(TERM="xterm", **changes), **streams)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # Linux reports the other end's close so
        pass
    os.close(ours)
    return written.decode(), process.wait(60)


CONTROL = r"\x1b\[[0-9;?]*[A-Za-z]"


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_the_view_fits_the_terminal_with_the_time_left_first(tmp_path, locale):
    text, code = in_terminal(80, "train", *SHORT, "--steps", "4", "--out", "run", folder=tmp_path, **locale)
    assert code == 0
    lines = re.split(r"[\r\n]+", re.sub(CONTROL, "", text))
    redrawn = [line for line in lines if re.match(r"\d\d:\d\d left", line)]
    assert "step 1/4" in redrawn[0] and "step 4/4" in redrawn[-1]
    for line in redrawn:
        assert re.match(r"\d\d:\d\d left \| step \d/4 \| [\d,]+ frames/s \| bits/dim \S+ \| kl_z \S+", line)
    view = lines[lines.index(redrawn[0]) :]
    assert all(len(line) < 80 for line in view if not line.startswith("validation"))
    assert any(re.match(r"kl_z +[^ ]+ +[\d.e+]+$", line) for line in view)
    assert text.endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize("width", [20, 40, 79, 80, 140, 200])
@pytest.mark.parametrize("left", ["00:01 left", "103:20:55 left"])
def test_whole_parts_are_shown_as_far_as_they_fit(width, left):
    parts = [left, "step 1234567/9999999", "12,345 frames/s", "bits/dim 3.12", "kl_z 149", "perceiver 29.4", "x" * 60]
    line = fitted(parts, width)
    assert len(line) < width
    shown = line.split(" | ")
    assert shown == parts[: len(shown)] and shown[0] == left
    assert len(shown) == len(parts) or len(f"{line} | {parts[len(shown)]}") > width - 4


def test_a_bare_command_runs_as_a_module_from_any_folder_without_an_installation(tmp_path):
    """Only the checkout itself is named; the kernels beside it are found. Without a preset it says what it takes."""
    sizes = ["--loader.batch-size", "1", "--loader.sequence-length", "2", "--logging.tracker", "none"]
    done = subprocess.run(
        [*COMMAND, "train", *sizes, "--steps", "1", "--out", "run"],
        cwd=tmp_path,
        env=plain(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "no GPU and no --preset: taking small. Expect about 00:00 on 1 idle core" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "latest").is_file()


def test_a_closed_pipe_ends_a_listing_quietly_and_a_training_not_at_all(tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, "inspect"], env=plain(), **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 128 + signal.SIGPIPE
    train = [*COMMAND, "train", *SHORT, "--steps", "2", "--out", "run"]
    with subprocess.Popen(train, cwd=tmp_path, env=plain(), stderr=subprocess.PIPE) as process:
        process.stderr.close()
        process.wait(100)
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000002"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_drop_what_is_printed(closed):
    words = f"{sys.executable} -m aime_fast inspect {closed}"
    done = subprocess.run(["bash", "-c", words], env=plain(), capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (done.stdout == b"") == (closed != "2>&-")


def test_a_listing_onto_a_full_device_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "inspect"], env=plain(), stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2
    said = b"error: a file or the standard output could not be written (No space left on device); free some space\n"
    assert done.stderr == said


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_without_utf8_prints_what_it_can(tmp_path):
    code = "from aime_fast.errors import exit_on_user_error as run\nrun(lambda: print('1 \\u00b1 2'))"
    done = subprocess.run([sys.executable, "-c", code], env=plain(**C_LOCALE), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1 \\xb1 2\n", b"")
    done = subprocess.run([*COMMAND, "inspect"], env=plain(**C_LOCALE), capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("name", "locale", "words"),
    [
        (b"caf\xe9", {}, rb"'caf\\udce9' is not text in UTF-8; rename the file or folder"),
        (b"caf\xc3\xa9", C_LOCALE, rb"the locale has no UTF-8 \(ascii\) for .*; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"),
    ],
)
@pytest.mark.parametrize("verb", [["train", "--preset", "debug", "--out"], ["evaluate"]])
def test_a_path_that_is_not_utf8_is_refused_in_one_line(tmp_path, name, locale, words, verb):
    done = subprocess.run([*COMMAND, *verb, name], cwd=tmp_path, env=plain(**locale), capture_output=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(b"error: " + words + b"\n", done.stderr), done.stderr
    assert os.listdir(tmp_path) == []


def wait_for_rows(folder, process, seconds=100):
    """Until a run has logged a row."""
    end, path = time.monotonic() + seconds, folder / "metrics.jsonl"
    while not (path.is_file() and path.stat().st_size):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def interrupted(tmp_path, *command):
    """What a command prints that gets Ctrl-C as a terminal sends it, to all its processes, and its exit code."""
    process = subprocess.Popen(
        [*command, *SHORT, "--steps", "100000", "--out", str(tmp_path / "run")],
        cwd=ROOT,
        env=plain(DS_ACCELERATOR="cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for_rows(tmp_path / "run", process)
        os.killpg(process.pid, signal.SIGINT)
        return process.communicate(timeout=100)[0], process.returncode
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_names_the_command_that_goes_on(tmp_path):
    text, code = interrupted(tmp_path, *COMMAND, "train")
    assert code == 130 and "Traceback" not in text
    command = re.search(r"Go on with: (python -m aime_fast train --resume .*)", text)[1]
    assert command.endswith(f"--resume {tmp_path / 'run'}")
    assert re.fullmatch(r"step-\d{8}", (tmp_path / "run" / "checkpoints" / "latest").read_text())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_under_the_launcher(tmp_path):
    """Every process gets it, the launcher's own included; no one leaves a traceback."""
    start = [sys.executable, "-m", "aime_fast.launch", "--num_gpus", "1", "--master_port", "29617"]
    text, code = interrupted(tmp_path, *start, "aime_fast/train.py", "--ds_config", "zero2")
    assert code == 130 and "Traceback" not in text
    command = "python -m aime_fast.launch --num_gpus 1 --master_port 29617 aime_fast/train.py"
    assert f"Go on with: {command} --resume {tmp_path / 'run'}\n" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["python3", "/b/deepspeed", "--num_gpus", "2", "aime_fast/train.py", "--steps", "9"],
         "/b/deepspeed --num_gpus 2 aime_fast/train.py"),
        (["/b/python", "-m", "deepspeed.launcher.runner", "--hostfile", "h h", "/x/aime_fast/train.py"],
         "python -m deepspeed.launcher.runner --hostfile 'h h' /x/aime_fast/train.py"),
        (["/b/python", "/b/torchrun", "--nnodes", "2", "aime_fast/train.py"],
         "/b/torchrun --nnodes 2 aime_fast/train.py"),
        (["/b/python", "-u", "-m", "deepspeed.launcher.launch", "aime_fast/train.py"], None),
        (["bash", "-c", "deepspeed aime_fast/train.py"], None),
        (["/b/torchrun", "other.py"], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_launchers_own_words(words, said):
    assert launcher_command(words) == said


def test_without_a_launcher():
    assert plain_command("/b/bin/aime-fast") == "aime-fast train"
    assert plain_command("/x/aime_fast/__main__.py") == "python -m aime_fast train"
    assert plain_command("aime_fast/train.py") == "python aime_fast/train.py"


class FullDisk:
    """A file that takes `room` bytes more and then fails as a full disk does, in the middle of a write."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = content[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 55, 200])
def test_rows_on_a_full_disk_are_dropped_whole_and_counted(tmp_path, room):
    with closing(MetricsLog(tmp_path)) as log:
        log.write(1, "train", {"total": 1.0})
        log._file = FullDisk(log._file, room)
        for step in range(2, 12):
            log.write(step, "train", {"total": 1.0})
        written = [row["step"] for row in read_metrics(tmp_path)]
        assert written == list(range(1, len(written) + 1))
        assert log.dropped == 11 - len(written) > 0
        assert log.failure.errno == errno.ENOSPC
        log._file.room = 10**6  # somebody made room
        log.write(12, "train", {"total": 1.0})
        assert log.failure is None
    assert [row["step"] for row in read_metrics(tmp_path)] == [*written, 12]
    assert (tmp_path / "metrics.jsonl").read_text().endswith("\n")


def small_files():
    """No file of this process may grow beyond 6,000 bytes: settings and some rows, no picture and no checkpoint."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


def test_a_run_without_room_goes_on_and_ends_with_one_line(tmp_path):
    train = [*COMMAND, "train", *SHORT, "--logging.tracker", "tensorboard", "--steps", "16", "--out", "run"]
    done = subprocess.run(
        [*train, "--checkpoint-every", "5"],
        cwd=tmp_path,
        env=plain(),
        preexec_fn=small_files,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "metrics cannot be written (File too large); training continues without them" in done.stderr
    assert "no picture could be written (File too large); training continues" in done.stderr
    assert "training continues and will try the next checkpoint" in done.stderr
    assert re.search(r"^\d+ rows of metrics are missing in run/metrics.jsonl$", done.stderr, re.MULTILINE)
    assert done.stderr.splitlines()[-1].startswith("error: no checkpoint could be written to run/checkpoints (")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 1 <= len(rows) < 16


def test_a_bare_command_on_a_cpu_takes_small_and_says_how_long(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert preset.suitable_preset() == "small"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(preset, "FRAMES_PER_THREAD", 100.0)
    line = preset.expectation(preset_config("small"), 1000)  # 1000 x 8 x 16 frames at 200 a second
    assert "taking small" in line and "about 10:40 on 2 idle cores" in line
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert preset.suitable_preset() == "paper"


READ = "import os; from aime_fast.{} import main; main([{}]); print([os.environ.get(n) for n in {!r}])"


@pytest.mark.parametrize(
    "set_by_user",
    [
        {},
        {"OMP_WAIT_POLICY": "ACTIVE"},
        {"GOMP_SPINCOUNT": "7"},
        {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "3"},
    ],
)
@pytest.mark.parametrize(("entry", "arguments"), [("commands.main", "'nothing'"), ("train", "'--nothing'")])
def test_threads_sleep_while_they_wait_unless_somebody_chose(set_by_user, entry, arguments):
    names = (*waiting.WAITING, waiting.BLAS)
    code = READ.format(entry, arguments, names)
    done = subprocess.run([sys.executable, "-c", code], env=plain(**set_by_user), capture_output=True, text=True)
    chosen = {"OPENBLAS_NUM_THREADS": "1"} | (set_by_user or waiting.WAITING)
    assert done.stdout == f"{[chosen.get(name) for name in names]}\n"


def test_tensorboards_thread_is_quiet_about_a_full_disk_only():
    seen = []
    hook = without_events(lambda failed: seen.append(failed.exc_value))
    thread = type("Writer", (), {"__module__": "tensorboard.summary.writer"})()
    for owner, error in ((thread, OSError()), (thread, ValueError()), (object(), OSError())):
        hook(type("Failed", (), {"thread": owner, "exc_value": error})())
    assert [type(error) for error in seen] == [ValueError, OSError]
