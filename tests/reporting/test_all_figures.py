"""Every figure of a run: from models of every preset with other sizes, and as files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_runs import config_of, made_snapshot, rows, write_run
from PIL import Image
from reading_figures import svg_texts

from aime_fast.commands.main import main
from aime_fast.config import preset_config
from aime_fast.data.batch import Batch
from aime_fast.evaluation.live.snapshot import take_prediction, take_snapshot
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.reporting.charts.curves import learning
from aime_fast.reporting.charts.frames import reconstructions
from aime_fast.reporting.charts.imagined import imagined
from aime_fast.reporting.charts.style import save
from aime_fast.reporting.findings.history import Facts, History
from aime_fast.reporting.page.drawings import drawings
from aime_fast.reporting.page.run_record import read_run

OF_SNAPSHOT = ("reconstructions", "masks", "attention", "centres", "mixture", "usage", "sticks", "latents", "codes")
EVERY = ["learning", *OF_SNAPSHOT, "conflicts", "angles", "horizon"]


@pytest.mark.parametrize("preset", ["debug", "small", "paper"])
@pytest.mark.parametrize(("components", "slots", "actions"), [(3, 2, 1), (13, 7, 21)])
def test_figures_are_drawn_for_every_preset_with_other_sizes(tmp_path, preset, components, slots, actions):
    config = preset_config(preset).model
    sizes = {"max_components": components, "num_slots": slots, "action_dim": actions}
    assert all(getattr(config, name) != value for name, value in sizes.items())
    config = replace(config, **sizes)
    model = DPGMMVariationalRecurrentAutoencoder.from_config(config).eval()
    frames = torch.randint(0, 256, (1, 5, model.config.image_size, model.config.image_size, 3), dtype=torch.uint8)
    window = Batch(frames, torch.randn(1, 5, actions), torch.zeros(1, 5), *torch.zeros(2, 1, 5, dtype=torch.bool))
    seen = take_prediction(model, window, context=2, samples=2, key=0)
    with torch.no_grad():
        outputs = model(window.frames(), window.actions)
    ahead = torch.from_numpy(seen.made[:1, 2:]).movedim(-1, 2) / 127.5 - 1
    snapshot = take_snapshot(model, outputs, ahead, step=3)
    facts = config_of(preset, **sizes)
    run = read_run(write_run(tmp_path / "run", config=facts, snapshot=snapshot))
    found = drawings(run)
    assert [drawing.name for drawing in found] == EVERY
    for figure in [*(drawing.draw() for drawing in found), imagined(seen, [0, 1, 2, 4])]:
        figure.savefig(tmp_path / "a.png", dpi=40)
        with Image.open(tmp_path / "a.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 1


@pytest.mark.parametrize(("kind", "magic"), [("pdf", b"%PDF-"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_verb_writes_every_figure_of_its_kind(tmp_path, capsys, kind, magic):
    run = write_run(tmp_path / "run", snapshot=made_snapshot(frames=3))
    out = tmp_path / "deep" / "figures"
    assert main(["figures", str(run), "--format", kind, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {len(EVERY)} figures into {out}\n"
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{name}.{kind}" for name in EVERY)
    assert all(path.read_bytes().startswith(magic) for path in out.iterdir())


def test_files_lie_beside_the_run_by_their_step_and_are_never_replaced(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert main(["figures", str(run)]) == 0
    written = {path: path.read_bytes() for path in (run / "figures" / "step-00000300").iterdir()}
    assert {path.stem for path in written} == set(EVERY) - set(OF_SNAPSHOT)
    capsys.readouterr()
    assert main(["figures", str(run)]) == 2
    assert "exists; name another folder with --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in written} == written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--format", "jpeg"], "argument --format: invalid choice: 'jpeg'"),
        (["RUN", "--out", "/dev/null/a"], "cannot write into /dev/null/a"),
        (["EMPTY"], "has nothing to draw yet"),
        (["/nowhere"], "/nowhere holds no run"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, arguments, words):
    runs = {"RUN": write_run(tmp_path / "run"), "EMPTY": write_run(tmp_path / "empty", found=[])}
    capsys.readouterr()
    assert main(["figures", *(str(runs.get(part, part)) for part in arguments)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]


def history(tasks):
    return History(Facts.of(config_of() | {"tasks": tasks})).extend(rows())


def test_learning_curves_are_those_of_the_rows():
    axes = {axis.get_title(): axis for axis in learning(history(["elbo"])).axes}
    assert list(axes) == ["total elbo", "bits per dim", "kl z", "reconstruction"]
    training, held_out = axes["kl z"].lines
    assert list(training.get_xdata()) == list(range(10, 301, 10)) and set(training.get_ydata()) == {40.0}
    assert list(held_out.get_xdata()) == [100, 200, 300] and set(held_out.get_ydata()) == {30.0}
    assert all(axis.get_xlabel() == "step" and axis.get_ylabel() for axis in axes.values())


def test_training_psnr_is_that_of_its_squared_error():
    run = History(Facts.of(config_of())).extend([{"step": 1, "split": "train", "mean_error": 0.04}])
    line = learning(run).axes[0].lines[0]
    # 0.04 of frames in [-1, 1] is 0.01 of frames in [0, 1].
    assert line.get_label() == "training" and line.get_ydata()[0] == pytest.approx(20.0)


def test_frames_are_kept_pixel_for_pixel_and_the_prediction_starts_late(tmp_path):
    seen = made_snapshot(frames=5, context=2)
    axes = reconstructions(seen).axes
    rows = [seen.frames, seen.reconstructions, seen.token_reconstructions]
    for row, pictures in enumerate(rows):
        for column in range(5):
            np.testing.assert_array_equal(axes[5 * row + column].images[0].get_array(), pictures[column])
    late = [axis.images[0].get_array() for axis in axes[15:]]
    assert all((picture == 255).all() for picture in late[:2])
    np.testing.assert_array_equal(late[2:], seen.imagined)
    save(reconstructions(seen), tmp_path / "a.svg")
    assert "predicted" in [text for text, _, _ in svg_texts(tmp_path / "a.svg")]
