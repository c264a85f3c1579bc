"""Every failure is named, once, with its remedy; healthy rows have no finding."""

import math
import re
from pathlib import Path

import pytest
from made_runs import config_of, healthy_row, healthy_validation, rows

from aime_fast.config.command_line import parse_train_args
from aime_fast.reporting.findings.history import Facts, History
from aime_fast.reporting.findings.rules import RULE_NAMES, RULES
from aime_fast.reporting.findings.watch import PAGE, Watch, findings_of

ROOT = Path(__file__).parents[2]
OF_OTHER_VERBS = ("--sheet", "--codec")


def after(step, **values):
    """Rows that are healthy until `step` and have these values after it."""
    return lambda now: healthy_row(now) | (values if now > step else {})


def held_out_after(step, **values):
    return lambda now: healthy_validation(now) | (values if now > step else {})


def overfitted(step):
    return healthy_validation(step) | {"bits_per_dim": 2.0 + abs(step - 200) / 1000}


def fallen(step):
    return healthy_row(step) | {"bits_per_dim": 3.0 - step / 1000}


FAULTS = {
    "kl-collapse": {"train": after(0, kl_z=0.2)},
    "component-collapse": {"train": after(0, top_component_mass=0.99, effective_components=1.05)},
    "attention-collapse": {"train": after(0, attention_diversity=0.95)},
    "gradient-explosion": {"train": after(200, grad_norm=400.0)},
    "dead-codes": {"train": after(0, perplexity=1.2)},
    "ignored-actions": {"validation": held_out_after(0, action_nats=-0.01)},
    "starved-task": {"train": after(0, grad_norm_predictive=0.0)},
    "overfitting": {"train": fallen, "validation": overfitted},
    "starved-loop": {"train": after(0, data_wait=0.6)},
    "mean-frame": {"validation": held_out_after(0, psnr=22.1)},
}


def test_every_rule_has_a_fault():
    assert set(FAULTS) == set(RULE_NAMES)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_else(name):
    found = findings_of(config_of(), rows(steps=2000, **FAULTS[name]))
    assert [finding.name for finding in found] == [name]
    assert found[0].evidence and found[0].step <= 1000


def test_healthy_rows_have_no_finding():
    assert findings_of(config_of(), rows(steps=2000)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_values_that_are_not_finite_are_left_out(value):
    assert findings_of(config_of(), rows(train=after(100, kl_z=value, grad_norm=value))) == []


def test_skipped_steps_are_an_explosion():
    found = findings_of(
        config_of(), rows(train=lambda step: healthy_row(step) | {"skipped_steps": max(step - 200, 0) / 5})
    )
    assert [(finding.name, finding.step) for finding in found] == [("gradient-explosion", 210)]


def test_a_small_gradient_starves_only_where_gradients_are_added_as_they_are():
    small = after(0, grad_norm_predictive=1e-3)
    named = {}
    for solver in ("sum", "rotation"):
        config = config_of() | {"balancing": config_of()["balancing"] | {"solver": solver}}
        named[solver] = [finding.name for finding in findings_of(config, rows(train=small))]
    assert named == {"sum": ["starved-task"], "rotation": []}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"prior": "gaussian"}, "component-collapse"),
        ({"max_components": 1}, "component-collapse"),
        ({"num_slots": 1}, "attention-collapse"),
        ({"action_dim": 0}, "ignored-actions"),
    ],
)
def test_what_a_model_does_not_have_cannot_fail(changes, fault):
    assert findings_of(config_of(**changes), rows(**FAULTS[fault])) == []


def test_a_finding_comes_once_and_again_after_it_ended():
    ill = {*range(100, 200), *range(250, 300)}
    found = findings_of(
        config_of(), rows(train=lambda step: healthy_row(step) | {"kl_z": 0.1 if step in ill else 40.0})
    )
    assert [(finding.name, finding.step) for finding in found] == [("kl-collapse", 120), ("kl-collapse", 270)]


def test_a_live_watch_finds_what_the_folder_shows():
    watch = Watch(Facts.of(config_of()))
    for row in rows(train=FAULTS["kl-collapse"]["train"]):
        begun = watch.row(row["step"], row["split"], row)
        if begun:
            break
    assert begun == findings_of(config_of(), rows(train=FAULTS["kl-collapse"]["train"]))
    assert begun[0].remedy in str(begun[0]) and PAGE in str(begun[0])


def test_remedies_name_flags_that_exist(capsys):
    with pytest.raises(SystemExit):
        parse_train_args(["--help"])
    flags = capsys.readouterr().out.replace("_", "-")
    for rule in RULES:
        for flag in re.findall(r"--[a-z][a-z.-]+", rule.remedy):
            assert flag in OF_OTHER_VERBS or f"{flag} " in flags, (rule.name, flag)


def test_the_page_explains_every_finding():
    page = (ROOT / PAGE).read_text()
    assert all(f"`{name}`" in page for name in RULE_NAMES)


def test_history_reads_by_step_and_name():
    history = History(Facts()).extend(rows(steps=50, train=lambda step: {"kl_z": float(step)}))
    assert list(history.values("kl_z")) == [10, 20, 30, 40, 50] and history.recent("kl_z") == 30
    assert history.at("kl_z", 35) == 30 and history.at("kl_z", 5) is None
    assert history.values("unknown") == () and history.recent("unknown") is None and history.held_out("psnr") is None
