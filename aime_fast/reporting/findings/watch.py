"""Applies the rules to a run, live or from its folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aime_fast.reporting.findings.history import Facts, History
from aime_fast.reporting.findings.rules import RULES, Rule

PAGE = "docs/findings.md"


@dataclass(frozen=True)
class Finding:
    """A failure that was found."""

    name: str
    title: str
    evidence: str
    remedy: str
    step: int
    """The step at which it was found first."""

    def __str__(self) -> str:
        return f"finding {self.name} at step {self.step}: {self.title}; {self.evidence}; {self.remedy} ({PAGE})"


class Watch:
    """Finds each failure once when it begins, and again if it had ended in between."""

    def __init__(self, facts: Facts, rules: Sequence[Rule] = RULES) -> None:
        self.history, self._rules = History(facts), rules
        self.open: dict[str, Finding] = {}
        """The failures of the newest row, by name, with the evidence of their first."""

    def row(self, step: int, split: str, values: Mapping[str, object]) -> list[Finding]:
        """Take in a row; gives the failures that begin with it."""
        self.history.add(step, split, values)
        return self._look()

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the rows of a run that goes on; failures that are open after the last of them are not found again."""
        self.history.extend(rows)
        self._look()

    def _look(self) -> list[Finding]:
        begun = []
        for rule in self._rules:
            evidence = rule.look(self.history)
            if evidence is None:
                self.open.pop(rule.name, None)
            elif rule.name not in self.open:
                finding = Finding(rule.name, rule.title, evidence, rule.remedy, self.history.step)
                self.open[rule.name] = finding
                begun.append(finding)
        return begun


def findings_of(config: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """All that was found in a run, in the order of steps; `config` and `rows` as its folder keeps them."""
    watch = Watch(Facts.of(config))
    return [finding for row in rows for finding in watch.row(row["step"], row["split"], row)]
