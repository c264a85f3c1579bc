"""The command `aime-fast`: verbs, exit codes, one line for a mistake."""

import re
import subprocess
import sys

import pytest
from one_step import train_one_step, write_noise

from aime_fast.commands.main import main
from aime_fast.data.files import SAMPLE
from aime_fast.errors import UserError, exit_on_user_error


def run(capsys, *arguments):
    """Exit code, standard output and standard error of `aime-fast ARGUMENTS` in this process."""
    try:
        code = main(list(arguments))
    except SystemExit as end:
        code = end.code or 0
    return (code, *capsys.readouterr())


def stop():
    raise KeyboardInterrupt


def mistake():
    raise UserError("the file is missing\n  look again")


def test_exit_codes(capsys):
    assert exit_on_user_error(lambda: None) == 0
    assert exit_on_user_error(lambda: 7) == 7
    assert exit_on_user_error(mistake) == 2
    assert capsys.readouterr().err == "error: the file is missing look again\n"
    assert exit_on_user_error(stop) == 130
    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(lambda: 1 // 0)


@pytest.mark.parametrize(
    "verb", ["train", "collect", "pack", "inspect", "evaluate", "compare", "imagine", "figures", "export", "doctor"]
)
def test_every_verb_has_help(capsys, verb):
    listed = run(capsys, "--help")
    assert listed[0] == 0
    assert f" {verb} " in listed[1]
    code, out, err = run(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: aime-fast {verb} ")


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, "aime-fast 0.2.0\n")


def test_no_verb_prints_the_verbs(capsys):
    code, out, _ = run(capsys)
    assert code == 2
    assert "imagine" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'? choose from train, collect"),
        (["evaluate"], "the following arguments are required: RUN; `aime-fast evaluate --help` lists the options"),
        (["evaluate", "--checkpoint", "a"], "unknown option --checkpoint; `aime-fast evaluate --help`"),
        (["imagine", "a", "--ouT", "a.png"], "unknown option --ouT, did you mean --out?"),
        (["imagine", "a", "--horizn=3"], "unknown option --horizn, did you mean --horizon?"),
        (["imagine", "a", "--out", "fig.pfd"], "--out fig.pfd: did you mean fig.pdf? name a new .pdf, .svg, "),
        (["imagine", "a", "--out", "no/such/a.png"], "its folder does not exist"),
        (["inspect", "--sheet", "fig.xyz"], "fig.xyz"),
        (["evaluate", "a", "--json", "no/a.json"], "--json no/a.json: its folder does not exist"),
        (["train", "--stepz", "3"], "did you mean --steps?"),
        (["train", "--preset", "huge"], "must be one of debug, small, paper, not 'huge'"),
        (["pack", "/nowhere.h5", "--out", "shards"], "/nowhere.h5"),
        (["pack", "/nowhere.h5"], "--out"),
        (["inspect", "/nowhere"], "/nowhere"),
        (["inspect", "--depp"], "--depp"),
        (["evaluate", "/nowhere"], "/nowhere: no checkpoint there"),
        (["imagine", "/nowhere", "--out", "a.png"], "/nowhere: no checkpoint there"),
        (["figures", "/nowhere"], "/nowhere holds no run"),
        (["export", "/nowhere", "--out", "model"], "/nowhere: no checkpoint there"),
        (["imagine", "a", "--out", "a.png", "--context", "0"], "an integer of at least 1, not '0'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_writes_nothing(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_inspect_describes_the_sample(capsys):
    code, out, err = run(capsys, "inspect")
    assert (code, err) == (0, "")
    assert "cheetah" in out


def test_a_mistake_in_a_process_of_its_own_leaves_no_traceback():
    code = "import sys; from aime_fast.commands.main import main; sys.exit(main(['train', '--optim.lr', 'fast']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --optim.lr must be a number above 0, not 'fast'")
    assert done.stderr.count("\n") == 1


def test_help_of_train_waits_for_nothing_heavy():
    code = (
        "import sys; from aime_fast.commands.main import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'deepspeed', 'h5py', 'matplotlib', 'tensorboard'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("recording") / "noise.h5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recording):
    return train_one_step(recording, tmp_path_factory.mktemp("runs") / "run")


def own(recording):
    """The line that names the run's own data."""
    return f"data: {recording}, on which the run was trained\n"


def test_evaluate_prints_the_psnr(capsys, recording, trained):
    code, out, err = run(capsys, "evaluate", trained)
    assert (code, err) == (0, own(recording))
    assert 0 < float(re.search(r"PSNR (\d+\.\d\d) dB", out)[1]) < 20
    assert "open loop from 5 frames, 1 held-out windows at stride 10" in out
    every = out.split("over moving pixels  ")[0]
    shown = {line[:40].strip(): line[40:].split() for line in every.splitlines()[2:]}
    assert shown["frames ahead"] == ["1", "2", "5", "10", "15"]
    assert all(0 < float(value) < 20 for value in shown["mean of the futures"])


def test_evaluate_goes_as_far_as_the_episodes_allow(capsys, recording, trained):
    code, out, _ = run(capsys, "evaluate", trained, "--horizon", "16")
    assert code == 0
    assert "horizon: 15 frames instead of 16, because the longest of 1 held-out episodes has 20" in out
    code, out, err = run(capsys, "evaluate", trained, "--context", "20")
    assert (code, out, err.count("\n")) == (2, "", 2)
    assert "21" in err and "lower --context or --horizon" in err


@pytest.mark.parametrize("verb", [["evaluate"], ["imagine", "--out", "future.png"]])
def test_a_run_refuses_data_with_other_actions(capsys, tmp_path, monkeypatch, trained, verb):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *verb, trained, "--data", str(SAMPLE))
    assert code == 2
    assert "the data's actions have 6 numbers and the model's 2" in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_refuses_frames_of_another_size(capsys, tmp_path, recording, trained):
    shards = str(tmp_path / "shards")
    assert run(capsys, "pack", recording, "--out", shards, "--size", "32", "--val-episodes", "1")[0] == 0
    code, _, err = run(capsys, "evaluate", trained, "--data", shards)
    assert code == 2
    assert "the data's frames are not 64x64 as the model's; use `aime-fast pack --size 64`" in err
