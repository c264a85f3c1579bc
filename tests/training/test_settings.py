"""What a resumed run may change, and how changes are reported."""

import pytest

from aime_fast.config import TrainConfig, to_dict
from aime_fast.errors import UserError
from aime_fast.training.checkpoint.settings import FIXED, FIXED_GROUPS, FREE, FREE_GROUPS, check_settings


def settings(**values):
    """The default configuration with dotted names (`__` for the dot) set."""
    config = to_dict(TrainConfig())
    for name, value in values.items():
        *groups, leaf = name.split("__")
        (config[groups[0]] if groups else config)[leaf] = value
    return config


@pytest.mark.parametrize("change", [{"out": "b"}, {"threads": 3}, {"ds_config": "zero2"}, {"logging__log_every": 3}])
def test_what_does_not_touch_the_result_is_free(change):
    assert check_settings(settings(), settings(**change), False, "run") == ""


@pytest.mark.parametrize("change", [{"steps": 9}, {"minutes": 2.0}, {"optim__lr": 0.5}, {"losses__free_bits": 1.0}])
def test_what_can_be_changed_needs_override(change):
    name, value = next(iter(change.items()))
    words = rf"{name.replace('__', '.')} .* -> {value}"
    with pytest.raises(UserError, match=rf"run was trained with other settings: {words}; .*--override"):
        check_settings(settings(), settings(**change), False, "run")
    message = check_settings(settings(), settings(**change), True, "run")
    assert message.startswith(name.replace("__", "."))
    assert message.endswith(str(value))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"loader__batch_size": 4},
        {"model__latent_dim": 3},
        {"model__prior": "gaussian"},
        {"optim__name": "sgd"},
        {"tasks": ["elbo", "perceiver"]},
        {"balancing__solver": "pcgrad"},
        {"balancing__groups": "module"},
    ],
)
def test_what_the_stored_state_depends_on_cannot_change(change):
    with pytest.raises(UserError, match=r"cannot change in a run: use the old ones"):
        check_settings(settings(), settings(**change, steps=7), True, "run")


def test_every_name_in_the_lists_is_a_setting():
    known = to_dict(TrainConfig())
    flat = {
        *known,
        *(f"{group}.{name}" for group, values in known.items() if isinstance(values, dict) for name in values),
    }
    assert {*FREE, *FIXED} <= flat
    assert all(any(name.startswith(group) for name in flat) for group in (*FREE_GROUPS, *FIXED_GROUPS))
