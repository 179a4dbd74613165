"""What changed between two reports is found, and what makes them unlike is said."""

import copy
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tacit.audit.difference import difference, in_words, is_worse
from tacit.audit.report import render_difference
from tacit.audit.terminal import difference_table

RESULTS = Path(__file__).parents[2] / "results" / "compare-digits.json"
SHADOWS, LEAKAGE = "membership-shadows@scores", "gradient-leakage@server"


@pytest.fixture(scope="module")
def read():
    return json.loads(RESULTS.read_text())


@pytest.fixture
def before(read):
    return copy.deepcopy(read)


@pytest.fixture
def after(read):
    return copy.deepcopy(read)


def row(result, name):
    return next(p for p in result["protections"] if p["name"] == name)


def terminal(found, width=100):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(difference_table(found, width=width))
    return out.getvalue()


def test_the_same_report_differs_in_nothing(before, after):
    found = difference(before, after)
    count = len(before["protections"]) * len(before["attacks"])
    assert found["cells"] == [] and found["unlike"] == [] and found["unfair"] == []
    assert not is_worse(found) and found["counts"]["compared"] == count
    assert not any(found["only_before"].values()) and not any(found["only_after"].values())
    assert all(not item["moved"] for item in found["rows"])
    assert (
        in_words(found)["headline"] == f"No verdict changed and no figure moved, in {count} cells."
    )
    assert "No verdict changed" in terminal(found)


@pytest.mark.parametrize(
    ("was", "now", "change"),
    [
        ("contained", "leaks", "worse"),
        ("no-access", "leaks", "worse"),
        ("inconclusive", "leaks", "worse"),
        ("leaks", "contained", "better"),
        ("leaks", "no-access", "better"),
        ("leaks", "inconclusive", "other"),
        ("contained", "inconclusive", "lost"),
        ("contained", None, "lost"),
        ("leaks", None, "lost"),
        (None, "leaks", "worse"),
    ],
)
def test_each_change_of_verdict_has_its_meaning(was, now, change, before, after):
    for result, verdict in ((before, was), (after, now)):
        row(result, "local-dp-high")["cells"][LEAKAGE]["verdict"] = verdict
        row(result, "local-dp-sabotaged")["cells"][LEAKAGE]["verdict"] = verdict
    cells = {cell["protection"]: cell for cell in difference(before, after)["cells"]}
    assert cells["local-dp-high"]["change"] == change
    # A control has to leak: that it does is no loss.
    assert cells["local-dp-sabotaged"]["change"] == (
        "lost" if change == "lost" and now is None else "other"
    )
    assert is_worse(difference(before, after)) == (change in ("worse", "lost"))


def test_a_failed_cell_is_lost(before, after):
    cell = row(after, "local-dp-high")["cells"][LEAKAGE]
    cell |= {"value": None, "verdict": None, "error": "Diverged: not finite"}
    found = difference(before, after)
    (lost,) = found["cells"]
    assert lost["change"] == "lost" and lost["after"]["error"] == "Diverged: not finite"
    assert is_worse(found)
    assert "! lost" in terminal(found) and "Diverged: not finite" in render_difference(found)


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        ((0.5, [0.4, 0.6]), (0.7, [0.65, 0.75]), True),
        ((0.5, [0.4, 0.6]), (0.7, [0.45, 0.95]), False),  # the old one lies in the new interval
        ((0.5, [0.3, 0.8]), (0.7, [0.65, 0.75]), False),  # the new one lies in the old interval
        ((0.5, [0.4, 0.61]), (0.7, [0.6, 0.8]), True),  # the intervals overlap, the values do not
        ((0.5, None), (0.7, [0.65, 0.75]), False),
        ((None, [0.0, 1.0]), (0.7, [0.65, 0.75]), False),
    ],
)
def test_a_figure_moves_beyond_both_intervals(old, new, moved, before, after):
    for result, (value, interval) in ((before, old), (after, new)):
        cell = row(result, "federated-sgd")["cells"][LEAKAGE]
        cell |= {"value": value, "interval": interval}
        row(result, "federated-sgd").update(accuracy=value, accuracy_interval=interval)
    found = difference(before, after)
    assert found["counts"]["moved"] == moved == bool(found["cells"])
    (shown,) = (item for item in found["rows"] if item["protection"] == "federated-sgd")
    assert shown["moved"] == moved
    assert shown["accuracy"] == {"before": old[0], "after": new[0]}


def test_rows_and_columns_of_one_report_only_are_listed(before, after):
    del before["protections"][0]
    after["attacks"] = [a for a in after["attacks"] if a["name"] != SHADOWS]
    found = difference(before, after)
    assert found["only_after"] == {"protections": ["centralised"], "attacks": []}
    assert found["only_before"] == {"protections": [], "attacks": [SHADOWS]}
    count = len(before["protections"]) * len(after["attacks"])
    assert found["counts"]["compared"] == count and not is_worse(found)
    shown = terminal(found)
    assert "Only in the first report: attack membership-shadows@scores." in shown
    assert "Only in the second report: protection centralised." in shown
    nothing = difference(before, {"attacks": [], "protections": []})
    assert "no cell in common" in in_words(nothing)["headline"]


def test_what_makes_it_unfair_is_said(before, after):
    after["settings"]["seeds"] = 1
    row(after, "local-dp-low")["settings"]["rounds"] = 3
    for p in after["protections"]:
        p["cells"]["membership-loss@scores"]["knowledge"]["population_records"] = 7
    after |= {"dataset": "mnist", "version": "9.9", "machine": {}, "complete": False}
    found = difference(before, after)
    said = " ".join(found["unfair"])
    for words in (
        "The data differ (digits, then mnist)",
        "3 settings differ",
        "Another version of tacit (0.1.0, then 9.9)",
        "times cannot be compared",
        "The second run did not finish",
    ):
        assert words in said, words
    assert {"where": "the run", "setting": "seeds", "before": 3, "after": 1} in found["unlike"]
    (known,) = (item for item in found["unlike"] if item["setting"] == "population_records")
    assert known["where"] == "membership-loss@scores on all rows"  # once, not once a row
    page, shown = render_difference(found), terminal(found)
    for text in ("Not a like-for-like comparison", "population_records", "rounds"):
        assert text in page and text in shown


def test_a_control_that_leaks_no_more_is_said(before, after):
    for cell in row(after, "local-dp-sabotaged")["cells"].values():
        cell["verdict"] = "inconclusive"
    found = difference(before, after)
    assert "are not to be trusted" in found["unfair"][0] and not is_worse(found)


def test_the_difference_is_plain_and_hostile_text_stays_text(before, after):
    bad = "<script>alert(1)</script>\x1b[31m[red]"
    for result in (before, after):
        row(result, "local-dp-low").update(name=bad)
        result["dataset"] = bad
    row(after, bad)["cells"][LEAKAGE] |= {"verdict": "contained", "error": None}
    after["settings"][bad] = bad
    after["commit"] = bad
    found = difference(before, after)
    json.dumps(found, allow_nan=False)
    page = render_difference(found)
    assert "<script" not in page and "alert(1)" in page
    shown = terminal(found)
    assert "\x1b" not in shown and "[red]" in shown.replace("\n", "").replace(" ", "")
    assert max(map(len, shown.splitlines())) <= 100


def test_reports_without_a_cell_in_common_do_not_pass_for_no_worse(before, after):
    for protection in after["protections"]:
        protection["name"] = "another " + protection["name"]
    assert is_worse(difference(before, after)) is True
