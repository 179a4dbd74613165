"""The null control counts what it says, and would notice an audit that cries wolf."""

from __future__ import annotations

from typing import Any

import pytest

from tacit.audit import null_control
from tacit.audit.null_control import NullControl, null_figures, run_null
from tacit.nn.data import load
from tacit.nn.stacked import Recipe

QUICK = NullControl(
    seed=0, audits=3, records=40, shadows=4, recipe=Recipe(epochs=5, batch_size=20, learning_rate=0.01)
)  # fmt: skip


def test_it_counts_audits_intervals_and_verdicts() -> None:
    found = run_null(QUICK, load("digits"))
    assert found["audits"] == 3
    assert (
        found["intervals"] == 3 * 12
    )  # all attacks but that on saved scores and that with a population
    assert found["everything"] <= found["covered"] <= 3
    figures = null_figures([(QUICK, found), (QUICK, found)])
    assert [one["name"] for one in figures] == [
        "null-control/strongest-covers-chance", "null-control/all-cover-chance", "null-control/called-leaks",
    ]  # fmt: skip
    assert figures[0]["here"] == found["covered"] / 3
    assert figures[0]["n"] == 6


def test_audits_that_are_told_the_members_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = null_control.audit

    def told(target: Any, **given: Any) -> dict[str, Any]:
        inputs, _ = given["members"]
        given["members"] = (inputs, target(inputs).argmax(1))  # the label that the target says
        return honest(target, **given)

    monkeypatch.setattr(null_control, "audit", told)
    found = run_null(QUICK, load("digits"))
    assert found["covered"] == 0
    assert found["leaks"] == 3
