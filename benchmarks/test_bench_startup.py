"""Seconds until the help is on the screen, a new process each time; a bare Python that starts is the baseline.

The first start after an installation is slower by the writing of byte code; the warm-up takes that.
"""

import pytest
from measuring import alternating, run

COMMANDS = {
    "aime-fast --help": ["-m", "aime_fast", "--help"],
    "aime-fast train --help": ["-m", "aime_fast", "train", "--help"],
    "python aime_fast/train.py --help": ["aime_fast/train.py", "--help"],
}


@pytest.mark.quick
@pytest.mark.parametrize("name", COMMANDS)
def test_help(record_forms, name):
    def ours():
        assert run(*COMMANDS[name]).startswith("usage: aime-fast")

    samples = alternating({"ours": ours, "python -c pass": lambda: run("-c", "pass")}, 5, warm_up=1)
    record_forms("help", samples, baseline="python -c pass", paired=True, unit="s", shape=name)
