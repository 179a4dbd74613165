"""What the report advises follows from its figures, and its drawings can be read."""

import itertools
import json
import random  # noqa: TID251 - shuffles test cases, no secret and no experiment
from pathlib import Path

import pytest

from tacit.audit import decision, pictures, words
from tacit.audit.decision import advice, choices

RESULTS = Path(__file__).parents[2] / "results" / "compare-digits.json"


@pytest.fixture(scope="module")
def real():
    return json.loads(RESULTS.read_text())


def row(name, accuracy, leak, cost=1.0, size=1.0, **more):
    """A row with one attack whose figure above chance is `leak`."""
    found = {
        "metric": "auc",
        "value": 0.5 + leak / 2,
        "chance": 0.5,
        "interval": [0.45 + leak / 2, 0.55 + leak / 2],
        "verdict": "leaks",
    }
    made = {
        "name": name,
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.01, accuracy + 0.01],
        "cost": {"seconds": cost, "bytes": size},
        "cells": {"a@scores": found},
    }
    return {**made, **more}


def report(*rows):
    return {"attacks": [{"name": "a@scores", "title": "A", "metric": "auc"}], "protections": rows}


def test_the_worst_leak_is_the_largest_above_chance(real):
    """Against arithmetic written out, for every row of a real report; attacks on the model itself do not count."""
    found = choices(real)
    for choice, protection in zip(found, real["protections"], strict=True):
        leaks = {
            attack["title"]: max(0.0, (cell["value"] - cell["chance"]) / (1 - cell["chance"]))
            for attack in real["attacks"]
            if attack["about"] == "records"
            and (cell := protection["cells"][attack["name"]])["value"] is not None
        }
        assert choice.leak == pytest.approx(max(leaks.values()))
        assert leaks[choice.worst] == choice.leak
        assert choice.measured == len(leaks)
        assert choice.leak_interval[0] <= choice.leak <= choice.leak_interval[1]
        assert choice.accuracy == protection["accuracy"]
        assert choice.bytes == protection["cost"]["bytes"]


def test_a_figure_below_chance_is_no_leak():
    (found,) = choices(report(row("p", 0.9, -0.4)))
    assert found.leak == 0.0 and found.leak_interval == (0.0, 0.0)


def test_what_is_no_share_has_no_place_beside_shares():
    other = row("p", 0.9, 0.2)
    other["cells"]["a@scores"] |= {"metric": "psnr_db", "value": 0.9, "chance": 0.1}
    (found,) = choices(report(other))
    assert found.leak is None and not found.efficient


def test_no_access_is_no_leak_and_a_failure_is_not():
    shut, failed, idle = row("shut", 0.9, 0), row("failed", 0.9, 0), row("idle", 0.9, 0)
    shut["cells"]["a@scores"] = {"verdict": "no-access", "value": None}
    failed["cells"]["a@scores"] = {"verdict": None, "value": None, "error": "Diverged: no"}
    idle["cells"]["a@scores"] = {"verdict": "inconclusive", "value": None}
    found = {choice.name: choice for choice in choices(report(shut, failed, idle))}
    assert found["shut"].leak == 0.0 and found["shut"].worst is None and found["shut"].efficient
    assert found["failed"].leak is None and not found["failed"].judged
    assert found["idle"].leak is None and not found["idle"].efficient
    assert [choice.name for choice in advice(list(found.values()))["unjudged"]] == [
        "failed",
        "idle",
    ]


def test_a_row_with_a_failed_attack_neither_wins_nor_beats():
    good = row("good", 0.95, 0.0)
    good["cells"]["b@scores"] = {"verdict": None, "value": None, "error": "Diverged: no"}
    plain = row("other", 0.9, 0.5)
    plain["cells"]["b@scores"] = plain["cells"]["a@scores"]
    two = report(good, plain)
    two["attacks"].append({"name": "b@scores", "title": "B", "metric": "auc"})
    found = choices(two)
    assert not found[0].efficient and found[1].efficient and found[1].beaten_by is None


@pytest.mark.parametrize("seed", range(30))
def test_the_efficient_rows_are_those_of_an_obvious_oracle(seed):
    draw = random.Random(seed)
    rows = [
        row(
            f"p{i}",
            draw.choice([0.5, 0.7, 0.9]),
            draw.choice([0.0, 0.3, 0.8]),
            draw.choice([1.0, 2.0]),
            draw.choice([10, 20]),
            control=draw.random() < 0.2,
            unprotected=draw.random() < 0.3,
        )
        for i in range(8)
    ]
    found = choices(report(*rows))

    def beaten(one):
        for other in rows:
            if other["control"] or other is one:
                continue
            mine = one["accuracy"], one["cells"]["a@scores"]["value"], *one["cost"].values()
            theirs = other["accuracy"], other["cells"]["a@scores"]["value"], *other["cost"].values()
            no_worse = theirs[0] >= mine[0] and all(theirs[k] <= mine[k] for k in (1, 2, 3))
            if no_worse and theirs != mine:
                return True
        return False

    for choice, given in zip(found, rows, strict=True):
        assert choice.efficient == (not given["control"] and not beaten(given))
        assert (choice.beaten_by is not None) == (not given["control"] and beaten(given))


def test_the_steps_trade_accuracy_for_leak():
    found = choices(
        report(
            row("bare", 0.96, 1.0, unprotected=True),
            row("good", 0.95, 0.5, 2.0),
            row("dear", 0.90, 0.1, 9.0),
            row("worse", 0.89, 0.2, 9.5),
            row("cheap", 0.80, 0.6, 0.5),
            row("twin", 0.99, 0.0, control=True),
        )
    )
    said = advice(found)
    assert [(step["row"].name, step["lead"]) for step in said["steps"]] == [
        ("good", "To lose at most 1.0 points of accuracy (the intervals overlap)"),
        ("dear", "To lose at most 6.0 points of accuracy"),
    ]
    assert [choice.name for choice in said["beaten"]] == ["worse"]
    assert said["beaten"][0].beaten_by == "dear"
    assert [choice.name for choice in said["cheaper"]] == ["cheap"]
    assert "“bare” is the most accurate (96.0 %); its worst leak is 1.000 (A)" in said["baseline"]
    assert (
        "worst leak 0.500, 95 % [0.400, 0.600] (A); accuracy 95.0 %; 2.0 s and 1 B sent"
        in (said["steps"][0]["rest"])
    )


def test_a_row_more_accurate_than_the_reference_is_a_step_whatever_it_leaks():
    found = choices(
        report(row("bare", 0.9, 0.2, unprotected=True), row("exact", 0.95, 0.6), row("dim", 0.8, 0.5, 0.1))
    )  # fmt: skip
    said = advice(found)
    assert [(step["row"].name, step["lead"]) for step in said["steps"]] == [
        ("exact", "To lose no accuracy")
    ]
    assert [choice.name for choice in said["cheaper"]] == ["dim"]  # bare is better but for the cost


def test_a_long_name_keeps_both_ends():
    name = "Selective SGD with sparse vector noise, much of it"
    short = pictures.shortened(name)
    assert len(short) <= 38 and short.startswith("Selective SGD") and short.endswith("much of it")
    assert pictures.shortened("Local DP") == "Local DP"


def test_points_lost_are_never_understated():
    one, other = choices(report(row("a", 0.9012, 0.1), row("b", 0.96, 1.0, unprotected=True)))
    assert decision.lost_points(one, other) == 5.9  # 5.88
    assert "no unprotected row" in advice([one])["baseline"].lower()
    assert advice([one])["steps"][0]["lead"] == "For 90.1 % accuracy"


# --- the drawings


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("count", [1, 5, 12, 25, 60])
@pytest.mark.parametrize("crowded", [False, True])
def test_labels_cover_neither_each_other_nor_a_mark(count, crowded):
    draw = random.Random(count)
    span = 0.001 if crowded else 1.0
    rows = [
        row(f"protection number {i}"[: draw.randint(3, 30)], 0.9 + 0.09 * span * draw.random(), span * draw.random())
        for i in range(count)
    ]  # fmt: skip
    rows[0] |= {"accuracy": 0.5}
    plot = pictures.decision_plot(choices(report(*rows)))
    labels = [mark["label"]["box"] for mark in plot["marks"]]
    assert len(labels) == count
    for one, other in itertools.combinations(labels, 2):
        assert not overlap(one, other)
    for label in labels:
        assert label[0] >= 0 and label[2] <= plot["width"]
        assert label[1] >= 0 and label[3] <= plot["height"]
        for mark in plot["marks"]:
            x, y = mark["x"], mark["y"]
            assert not overlap(label, (x - 6, y - 6, x + 6, y + 6))


def test_marks_stand_where_their_figures_say(real):
    found = choices(real)
    plot = pictures.decision_plot(found)
    ticks = [(tick["at"], float(tick["label"])) for tick in plot["x_ticks"]]
    (x0, v0), (x1, v1) = ticks[0], ticks[-1]
    up = [(tick["at"], float(tick["label"].removesuffix(" %")) / 100) for tick in plot["y_ticks"]]
    (y0, a0), (y1, a1) = up[0], up[-1]
    for mark, choice in zip(plot["marks"], found, strict=True):
        assert v0 + (mark["x"] - x0) * (v1 - v0) / (x1 - x0) == pytest.approx(choice.leak, abs=2e-3)
        height = a0 + (mark["y"] - y0) * (a1 - a0) / (y1 - y0)
        assert height == pytest.approx(choice.accuracy, abs=2e-3)
        assert mark["left"] <= mark["x"] <= mark["right"]
        assert mark["top"] <= mark["y"] <= mark["bottom"]  # upwards is less in SVG
        assert mark["shape"] == pictures.SHAPES[choice.kind]
    assert len({*pictures.SHAPES.values()}) == 3


def test_an_attack_alone_shows_what_lies_below_chance(real):
    found = choices(real)
    attack = next(one for one in real["attacks"] if one["name"] == "membership-loss@scores")
    plot = pictures.attack_plot(found, real["protections"], attack)
    assert plot["zero"] is not None and len(plot["marks"]) == len(found)
    for mark, protection in zip(plot["marks"], real["protections"], strict=True):
        cell = protection["cells"][attack["name"]]
        leak = words.above_chance(cell["value"], cell)
        assert (mark["x"] > plot["zero"]) == (leak > 0)


def test_costs_are_drawn_on_logarithms_and_written_beside(real):
    found = choices(real)
    plot = pictures.cost_plot(found)
    ordered = sorted(found, key=lambda choice: -choice.accuracy)
    assert [row["title"] for row in plot["rows"]] == [choice.title for choice in ordered]
    for scale, say in zip(plot["scales"], (words.seconds, words.size), strict=True):
        values = [c.seconds if say is words.seconds else c.bytes for c in ordered]
        assert [dot["says"] for dot in scale["dots"]] == [say(value) for value in values]
        at = sorted((value, dot["at"]) for value, dot in zip(values, scale["dots"], strict=True))
        assert [x for _, x in at] == sorted(x for _, x in at)
        assert all(scale["left"] <= x <= scale["right"] for _, x in at)
    assert pictures.cost_plot([]) is None
    assert pictures.decision_plot([]) is None


def test_a_row_on_which_an_attack_could_not_run_does_not_beat_one_on_which_it_did():
    silent, judged = row("silent", 0.9, 0.05), row("judged", 0.9, 0.1)
    silent["cells"]["b@server"] = {"verdict": "inconclusive", "value": None, "metric": "auc"}
    judged["cells"]["b@server"] = judged["cells"]["a@scores"]
    attacks = [{"name": n, "title": n, "metric": "auc"} for n in ("a@scores", "b@server")]
    found = {c.name: c for c in choices({"attacks": attacks, "protections": [silent, judged]})}
    assert found["judged"].beaten_by is None and found["judged"].efficient
    silent["cells"]["b@server"] = judged["cells"]["b@server"] | {"value": 0.5}
    found = {c.name: c for c in choices({"attacks": attacks, "protections": [silent, judged]})}
    assert found["judged"].beaten_by == "silent"
