"""What the tests see of a machine's cards: none, except those marked `gpu`, which say how many they need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def conftest(pytestconfig):
    return pytestconfig.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        *[("gpu", True), ("gpu and not slow", True), ("slow or gpu", True)],
        *[("", False), ("not slow", False), ("slow or not slow", False), ("not gpu", False), ("gpus", False)],
    ],
)
def test_the_card_is_visible_where_its_tests_are_asked_for(conftest, expression, wanted):
    assert conftest.wants_card(expression) is wanted


def test_no_card_is_visible_here_or_in_a_process_that_a_test_starts():
    code = "import torch, aime_fast; print(torch.cuda.device_count(), aime_fast.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    assert (torch.cuda.device_count(), os.environ["DS_ACCELERATOR"]) == (0, "cpu")
    assert done.stdout.split() == ["0", str(Path(__file__).parents[1] / "aime_fast" / "__init__.py")]


class Item:
    """As much of a collected test as the hook looks at."""

    def __init__(self, *marks):
        self.marks, self.added = marks, []

    def get_closest_marker(self, name):
        return next((mark.mark for mark in self.marks if mark.mark.name == name), None)

    def add_marker(self, mark):
        self.added.append(mark.mark)

    @property
    def skipped(self):
        return [mark.kwargs["reason"] for mark in self.added if mark.name == "skip"]


@pytest.mark.parametrize(
    ("cards", "one", "two"),
    [(0, ["needs a GPU"], ["needs 2 GPUs"]), (1, [], ["needs 2 GPUs"]), (2, [], [])],
)
def test_a_test_is_skipped_where_there_are_fewer_cards_than_it_needs(conftest, monkeypatch, cards, one, two):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    plain, long, *marked = Item(), Item(pytest.mark.long), Item(pytest.mark.gpu), Item(pytest.mark.gpu(cards=2))
    items = [plain, *marked, long]
    conftest.pytest_collection_modifyitems(items)
    assert items == [long, plain, *marked], "long files begin"
    assert [item.skipped for item in items] == [[], [], one, two]
