"""Values kept on the device: means, non-finite terms by name, skipped steps."""

import math

import pytest
import torch

from aime_fast.training.meters import Interval, Meter, SkipWatch, average


def test_means_are_over_the_values_since_the_last_reading():
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add({"a": torch.tensor(value), "b": torch.tensor(-value)})
    assert meter.read().means == {"a": 3.0, "b": -3.0}
    meter.add({"a": torch.tensor(5.0), "b": torch.tensor(0.0)})
    assert meter.read().means == {"a": 5.0, "b": 0.0}
    assert meter.read().means == {}


def test_weights_count_like_repetitions():
    meter = Meter()
    meter.add({"a": torch.tensor(1.0)}, weight=3)
    meter.add({"a": torch.tensor(5.0)}, weight=1)
    assert meter.read().means == {"a": 2.0}


def test_non_finite_values_are_named_and_left_out_of_the_mean():
    meter = Meter()
    meter.add({"good": torch.tensor(1.0), "bad": torch.tensor(math.nan), "never": torch.tensor(math.inf)})
    meter.add({"good": torch.tensor(3.0), "bad": torch.tensor(4.0), "never": torch.tensor(-math.inf)})
    reading = meter.read()
    assert reading.means["good"] == 2.0
    assert reading.means["bad"] == 4.0
    assert math.isnan(reading.means["never"])
    assert reading.nonfinite == {"bad": 1, "never": 2}


def test_readings_of_all_ranks_become_one():
    ranks = [Meter(), Meter(), Meter()]
    for meter, value, weight in zip(ranks, (1.0, 5.0), (3.0, 1.0), strict=False):
        meter.add({"a": torch.tensor(value)}, weight)
    rows = []
    for meter in ranks:
        meter.read(lambda mine: [rows.append(mine) or mine])
    assert Meter().read(lambda mine: rows).means == {"a": 2.0}


def test_names_must_stay_the_same():
    meter = Meter()
    meter.add({"a": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="'b'"):
        meter.add({"b": torch.tensor(1.0)})


def test_skips_in_a_row_are_counted_across_readings():
    watch = SkipWatch(torch.device("cpu"))
    for finite in (True, False, False, True, False):
        watch.add(torch.tensor(finite))
    assert watch.read() == (1, 2, 3)
    watch.add(torch.tensor(False))
    assert watch.read() == (2, 2, 1)
    watch.add(torch.tensor(True))
    assert watch.read() == (0, 2, 0)
    resumed = SkipWatch(torch.device("cpu"), in_a_row=4)
    resumed.add(torch.tensor(False))
    assert resumed.read() == (5, 5, 1)


def test_an_interval_counts_its_steps_and_its_time():
    interval = Interval(torch.device("cpu"))
    with interval:
        interval.add({"a": torch.tensor(2.0)}, torch.tensor(True))
    assert (interval.steps, interval.seconds > 0) == (1, True)
    reading, skips = interval.read(lambda mine: [mine])
    assert (reading.means, skips) == ({"a": 2.0}, (0, 0, 0))
    interval.restart()
    assert (interval.steps, interval.seconds) == (0, 0.0)


def test_micro_batches_are_averaged():
    micro = [{"a": torch.tensor(1.0)}, {"a": torch.tensor(4.0)}]
    assert average(micro)["a"].item() == 2.5
    assert average(micro[:1]) is micro[0]
