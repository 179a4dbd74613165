"""A comparison survives the trip through its files, says what it is, and harms no reader."""

import copy
import csv
import itertools
import json
import os
import re
from urllib.parse import unquote

import numpy as np
import pytest
from tests.audit.pages import HOSTILE, Reader, decoded, terminal

from tacit.audit import report
from tacit.audit.difference import difference
from tacit.audit.report import (
    read_report,
    render_difference,
    render_html,
    render_reports,
    write_report,
)
from tacit.audit.statistics import roc
from tacit.audit.terminal import matrix_table
from tacit.core.errors import ConfigError, DataError, OutputError


def cell(verdict="leaks", value=0.8, **more):
    made = {
        "metric": "auc",
        "value": value,
        "chance": 0.5,
        "interval": None if value is None else [value - 0.1, value + 0.1],
        "verdict": verdict,
        "knowledge": {"population_records": 600, "training_recipe": True},
        "why": "the model is public",
        "seconds": 1.5,
        "n": 400,
        "error": None,
        "details": {"tpr@0.01fpr": {"value": 0.043, "interval": [0.02, 0.08]}},
        "figures": {},
    }
    return {**made, **more}


NO_ACCESS = cell("no-access", None, interval=None, chance=None, why="nothing is received")


def protection(name, cells, **more):
    made = {
        "name": name,
        "title": name.replace("-", " ").capitalize(),
        "paper": None,
        "control": False,
        "accuracy": 0.93,
        "accuracy_interval": [0.91, 0.95],
        "cost": {
            "seconds": 2.5,
            "bytes": 123456,
            "messages": 40,
            "rounds": 4,
            "per_role": {"server": {"seconds": 1.0, "bytes_sent": 1000, "messages": 4}},
        },
        "claims": [],
        "opened": None,
        "cells": cells,
    }
    return {**made, **more}


ACCOUNTED = {
    "statement": "The model is private.",
    "basis": "ACCOUNTED",
    "source": "Abadi et al. 2016",
    "value": {
        "epsilon": 2.5,
        "delta": 1e-5,
        "unit": "record",
        "neighbouring": "add or remove one",
        "accountant": "PLD",
        "composed": "600 releases",
    },
    "interval": None,
    "assumes": ["secret coins"],
}
MEASURED = {
    "statement": "The attack reached AUC",
    "basis": "MEASURED",
    "source": "this run",
    "value": 0.51,
    "interval": [0.45, 0.57],
    "assumes": [],
}


@pytest.fixture
def result():
    names = ["gradient-leakage@server", "membership-shadows@client"]
    leak, member = names
    return {
        "schema": 1,
        "command": "compare",
        "version": "0.1.0",
        "commit": "abc1234",
        "machine": {"cpu": "two cores"},
        "settings": {"seed": 7, "quick": True, "link": {"kind": "local"}},
        "seconds": 61.5,
        "seeded": True,
        "dataset": {"name": "digits", "citation": "Alpaydin & Kaynak 1998"},
        "attacks": [
            {
                "name": leak,
                "title": "Gradient leakage, at the server",
                "metric": "auc",
                "explains": "The server fits an image to the update.",
                "chance_means": "another victim's update.",
            },
            {"name": member, "title": "Membership", "metric": "auc"},
        ],
        "protections": [
            protection("plain", {leak: cell(value=0.9), member: cell()}),
            protection("secure-aggregation", {leak: NO_ACCESS, member: cell()}, paper=6),
            protection(
                "dp-sgd",
                {leak: cell("contained", 0.5), member: cell("inconclusive", 0.51)},
                claims=[ACCOUNTED, MEASURED],
                opened="compare opened the model",
                title="Dp, sgd",
            ),
            protection("no-masks", {leak: cell(value=0.88)}, control=True),
        ],
        "complete": True,
    }


# --- files --------------------------------------------------------------------------------------


def test_round_trip(result, tmp_path):
    folder = tmp_path / "new" / "folder"
    write_report(result, folder)
    assert read_report(folder) == result
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.json"]
    assert (folder / "report.html").read_text(encoding="utf-8") == render_html(result)


def test_the_schema_is_added_and_figures_become_plain(result, tmp_path):
    del result["schema"]
    result["protections"][0]["accuracy"] = np.float32(0.5)
    result["protections"][0]["cost"]["messages"] = np.int64(3)
    result["protections"][0]["accuracy_interval"] = (0.4, float("inf"))
    write_report(result, tmp_path)
    back = read_report(tmp_path)
    assert back["schema"] == 1
    assert back["protections"][0]["accuracy"] == 0.5
    assert back["protections"][0]["cost"]["messages"] == 3
    assert back["protections"][0]["accuracy_interval"] == [0.4, "inf"]  # JSON has no infinity
    assert "Infinity" not in (tmp_path / "report.json").read_text()


def test_what_is_not_plain_is_refused(result, tmp_path):
    result["settings"]["model"] = object()
    with pytest.raises(DataError, match=r"object came at result\.settings\.model"):
        write_report(result, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a report of tacit compare"),
        ('{"command": "bench", "schema": 1}', "is not a report of tacit compare"),
        ('{"command": "compare", "version": "0.0.3"}', "has none .tacit 0.0.3.*another version"),
        ('{"command": "compare", "schema": 2, "version": "9"}', "has 2 .*another version"),
        ('{"command": "compare", "schema": 1}', "damaged"),
        ('{"command": "compare", "schema": 1, "attacks": [], "protections": [{}]}', "damaged"),
    ],
)
def test_what_is_not_a_report_is_refused(text, said, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_report(tmp_path)


def test_a_missing_or_binary_report_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path / "nowhere")
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path)


def test_an_impossible_folder_is_an_output_error(result, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="give another"):
            write_report(result, folder)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failing_write_leaves_the_old_report_whole(broken, result, tmp_path, monkeypatch):
    write_report(result, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    result["seconds"] = 99.0

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fails)
    with pytest.raises(OutputError, match="No space left on device"):
        write_report(result, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_no_result_is_lost_when_the_page_fails(result, tmp_path, monkeypatch):
    def fails(_):
        raise ZeroDivisionError

    monkeypatch.setattr(report, "render_html", fails)
    with pytest.raises(ZeroDivisionError):
        write_report(result, tmp_path)
    assert read_report(tmp_path) == result


# --- the page -----------------------------------------------------------------------------------


def test_the_page_says_it_all(result):
    page = Reader(render_html(result))
    assert not page.open  # every tag is closed
    for said in (
        "All 2 attacks leak without protection.",
        "Contained or shut out: 1 under Secure aggregation, 1 under “Dp, sgd”.",
        "▲ leaks",
        "○ contained",
        "? inconclusive",
        "– no access",
        "93.0 %",
        "91.0 % to 95.0 %",
        "2.5 s",
        "123 kB",
        "4 rounds",
        "paper [6]",
        "opened for the audit",
        "compare opened the model",
        "the model is public",
        "population records",
        "TPR at FPR 0.01",
        "0.043 [0.020, 0.080]",
        "The server fits an image to the update.",
        "another victim's update.",
        "2.500",
        "1e-5",
        "600 releases",
        "Seen in this run, not a guarantee.",
        "seeded coins",
        "Alpaydin & Kaynak 1998",
        "abc1234",
        "two cores",
    ):
        assert said in page.text, said


def test_the_matrix_is_a_table_for_every_reader(result):
    page = Reader(render_html(result))
    assert len(page.all("table", **{"class": "matrix"})) == 2  # controls stand apart
    assert len(page.all("th", scope="row", role="rowheader")) == 4
    assert len(page.all("th", scope="col", role="columnheader")) == 2 * 5
    assert "Twins of a protection, broken on purpose" in page.text
    links = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    places = {a["id"] for _, a in page.tags if "id" in a}
    assert links <= places and "cell-0-0" in links
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_measured_never_looks_like_a_guarantee(result):
    page = render_html(result)
    assert '<span class="badge basis-measured">MEASURED</span>' in page
    style = dict(re.findall(r"\.(basis-\w+) \{([^}]*)\}", page))
    assert "dashed" in style["basis-measured"] and "background" not in style["basis-measured"]
    assert len(set(style.values())) == 4


def test_nothing_comes_from_elsewhere(result):
    result["attacks"][0]["explains"] = "see http://evil.example/x"
    page = render_html(result)
    tags = Reader(page)
    assert not {tag for tag, _ in tags.tags} & {"script", "link", "iframe", "object", "base"}
    for _, attributes in tags.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "action", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,", "data:text/csv;"))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style and "//" not in style
    assert "default-src 'none'" in page


def poisoned(value):
    """Every text in a result, hostile; keys and the words that are matched stay."""
    if isinstance(value, dict):
        kept = {"command", "verdict", "name", "schema"}
        poisoned_items = {k: v if k in kept else poisoned(v) for k, v in value.items()}
        if "knowledge" in value:
            poisoned_items["knowledge"] = {HOSTILE: HOSTILE}
        return poisoned_items
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text(result):
    result = poisoned(result)
    bad = "x-" + HOSTILE
    result["attacks"][0]["name"] = bad
    for p in result["protections"]:
        p["cells"] = {bad if k.startswith("gradient") else k: c for k, c in p["cells"].items()}
        p["cells"][bad]["figures"] = {
            "images": [{"original": [[0.5]], "reconstruction": [[0.1]], "caption": HOSTILE}],
            "roc": {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]},
        }
        p["name"] = bad
        p["cost"]["per_role"] = {HOSTILE: {"seconds": 1.0}}
    page = Reader(render_html(result))
    assert not page.open
    assert not {tag for tag, _ in page.tags} & {"script"}
    known = {"src", "alt", "width", "height", "loading", "decoding"}
    assert all(set(a) <= known for a in page.all("img"))
    assert "alert(1)" in page.text and "{{ 7 * 7 }}" in page.text
    shown = terminal(matrix_table(result))
    assert "\x1b" not in shown and "[red]" in shown.replace("\n", "").replace(" ", "")


def test_a_failed_cell_is_reported_in_its_place(result):
    failed = cell(None, None, interval=None, why="", error="Diverged: the loss is not finite")
    result["protections"][2]["cells"]["membership-shadows@client"] = failed
    page = Reader(render_html(result))
    assert "! failed" in page.text and "Diverged: the loss is not finite" in page.text
    assert "1 cell stopped with an error" in page.text
    assert "! failed" in terminal(matrix_table(result))


def test_an_unfinished_run_is_shown_as_one(result):
    result["complete"] = False
    for key in ("machine", "settings", "commit", "seconds", "seeded"):
        del result[key]
    result["dataset"] = "digits"
    result["protections"][1]["cells"] = {}
    result["protections"][2] = {"name": "dp-sgd", "cells": {"gradient-leakage@server": None}}
    page = Reader(render_html(result))
    assert "This run did not finish" in page.text and "· not run" in page.text
    assert "not run" in terminal(matrix_table(result))
    for nothing in ({}, {"attacks": [], "protections": []}):
        assert "Nothing was measured." in Reader(render_html(nothing)).text
        terminal(matrix_table(nothing))


def headline(result):
    return Reader(render_html(result)).text


def test_the_headline_claims_no_more_than_was_seen(result):
    leak, member = (attack["name"] for attack in result["attacks"])
    weak = copy.deepcopy(result)
    for name in (leak, member):
        weak["protections"][0]["cells"][name]["verdict"] = "inconclusive"
    assert "this run cannot tell what the protections contain" in headline(weak)
    half = copy.deepcopy(result)
    half["protections"][0]["cells"][member]["verdict"] = "inconclusive"
    assert "1 of 2 attacks leaks without protection." in headline(half)
    without = copy.deepcopy(result)
    without["protections"].pop(0)
    assert "nothing in this comparison can be called contained" in headline(without)
    many = copy.deepcopy(result)
    held = {leak: cell("contained", 0.5), member: cell("contained", 0.5)}
    many["protections"] += [protection(f"p{i}", held) for i in range(3)]
    said = headline(many)
    assert "Of 5 protections 3 contained or shut out every one of them; 2 did for some." in said


def test_several_unprotected_rows_count_together(result):
    leak, member = (attack["name"] for attack in result["attacks"])
    rows = result["protections"]
    rows[0] |= {"name": "federated-sgd", "unprotected": True}
    rows[0]["cells"][member]["verdict"] = "inconclusive"
    central = protection("central", {leak: NO_ACCESS, member: cell()}, unprotected=True)
    rows.insert(0, central | {"settings": {"epochs": 12}, "opened_to": ["server", "client"]})
    result |= {"dataset": "faces", "data": {"citation": "Samaria & Harter 1994", "classes": 40}}
    said = headline(result)
    assert "All 2 attacks leak without protection. Contained or shut out: 1 under" in said
    assert "under Central" not in said and "under Plain" not in said
    for words in ("epochs", "open to: server, client", "Samaria", "classes 40", "unprotected"):
        assert words in said


def test_a_control_that_does_not_leak_is_a_warning(result):
    assert "are not to be trusted" not in headline(result)
    result["protections"][3]["cells"]["gradient-leakage@server"]["verdict"] = "inconclusive"
    assert "are not to be trusted" in headline(result)


def test_images_are_sharp_and_described(result):
    grey = [[0.0, 1.0], [0.5, 0.25]]
    colour = [[[1.0, 0.0, 0.5], [0.0, 2.0, float("nan")]]]
    pictures = [
        {"original": grey, "reconstruction": colour, "caption": "a 7"},
        {"original": [[0.1], [0.2, 0.3]], "reconstruction": None, "caption": "broken"},
    ]
    cells = result["protections"][0]["cells"]
    cells["gradient-leakage@server"]["figures"] = {"images": pictures}
    page = Reader(render_html(result))
    first, second = page.all("img")
    assert first["alt"] == "Original, a 7"
    assert second["alt"] == "Reconstruction under Plain, a 7"
    pixels = decoded(first["src"])
    assert pixels[..., 0].tolist() == [[0, 255], [128, 64]]
    assert decoded(second["src"]).tolist() == [[[255, 0, 128], [0, 255, 0]]]
    assert "image-rendering: pixelated" in render_html(result)  # nothing smoothed
    assert page.text.count("not an image") == 2


def curves_in(page):
    return [path for path in page.all("path") if path["class"].startswith("curve")]


def test_one_roc_drawing_an_attack(result):
    draw = np.arange(200) / 20
    curves = [roc(draw + shift, draw) for shift in (4.0, 0.0)]
    name = "membership-shadows@client"
    for p, (fpr, tpr) in zip(result["protections"], curves, strict=False):
        p["cells"][name]["figures"] = {"roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()}}
    page = Reader(render_html(result))
    (plot,) = page.all("svg", **{"class": "plot"})
    assert "Membership" in plot["aria-label"]
    paths = curves_in(page)
    assert len(paths) == 2
    assert paths[0]["stroke-dasharray"] != paths[1]["stroke-dasharray"]
    for path in paths:
        points = [list(map(float, at.split())) for at in path["d"][1:].split("L")]
        assert points == sorted(points, key=lambda at: (at[0], -at[1]))
        assert points[-1] == [382.0, 10.0]  # the top right corner
    # Guessing follows the diagonal, on logarithmic axes too.
    assert all(abs((x - 62) - (330 - y)) < 6 for x, y in points)
    assert "chance" in page.text and "0.1 %" in page.text


def test_ties_are_not_drawn_as_true_positives(result):
    """A label-only attack has one threshold; below it only guessing among equals is left."""
    name = "membership-shadows@client"
    flat = {"fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 0.5, 1.0]}
    fine = {"fpr": [0.0, 0.001, 1.0], "tpr": [0.0, 0.001, 1.0]}
    for p, curve in zip(result["protections"], (flat, fine), strict=False):
        p["cells"][name]["figures"] = {"roc": curve}
    for path in curves_in(Reader(render_html(result))):
        points = [list(map(float, at.split())) for at in path["d"][1:].split("L")]
        assert all(abs((x - 62) - (330 - y)) < 0.2 for x, y in points)


def test_the_terminal_fits_and_needs_no_colour(result):
    shown = terminal(matrix_table(result))
    assert max(map(len, shown.splitlines())) <= 100
    for said in ("▲ leaks", "○ contained", "? inconclusive", "– no access", "93.0 %", "0.900"):
        assert said in shown
    assert "[0.800, 1.000]" in shown and "control" in shown and "not proved" in shown
    assert "…" not in shown and all("[" not in x or "]" in x for x in shown.splitlines())
    extra = [{"name": f"model-inversion-{i}@client", "metric": "auc"} for i in range(9)]
    result["attacks"] += extra
    for p in result["protections"]:
        p["cells"] |= {attack["name"]: cell() for attack in extra}
    shown = terminal(matrix_table(result))
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.count("inversion-8") == 1
    json.dumps(result)  # rendering changed nothing


# --- the drawing to decide from, and what is behind a cell ----------------------------------------


def test_the_choice_is_said_drawn_and_listed(result):
    page = Reader(render_html(result))
    assert "Without protection, “Plain” is the most accurate (93.0 %)" in page.text
    # Dp, sgd: worst leak (0.51 - 0.5) / 0.5; as accurate as the rest, for the same cost.
    assert "To lose no accuracy, choose Dp, sgd : worst leak 0.020" in page.text
    assert "Secure aggregation is not the better choice" in page.text
    drawing = page.all("svg", **{"class": "plot marks"})
    assert len(drawing) == 2 + 2  # accuracy against leak, cost, and each attack alone
    ids = {a["id"] for _, a in page.tags if "id" in a}
    for svg in drawing:
        assert svg["role"] == "img" and set(svg["aria-labelledby"].split()) <= ids
    assert "Dp, sgd (protection): worst leak 0.020, by Membership; accuracy 93.0 %" in page.text


def test_a_cell_says_what_was_seen_and_how_it_was_attacked(result):
    cells = result["protections"][0]["cells"]
    cells["gradient-leakage@server"] |= {
        "saw": {"updates": 40, "noisy": False},
        "attack_settings": {"restarts": 4},
        "queries": 800,
    }
    cells["membership-shadows@client"] |= {"saw": "Forty answers of the model."}
    result["settings"] |= {"seed": 3, "seeds": 2}
    said = Reader(render_html(result)).text
    for words in ("updates 40", "noisy no", "restarts 4", "queries 800", "seeds 3, 4"):
        assert words in said, words
    assert "Forty answers of the model." in said
    assert "It stands at the server and works on what the server receives." in said
    assert "It stands at: client." in said


def test_every_cell_is_two_steps_there_and_back(result):
    page = Reader(render_html(result))
    ids = {a["id"] for _, a in page.tags if "id" in a}
    links = [a["href"] for a in page.all("a") if "href" in a]
    for r in range(4):
        for a in range(2):
            assert {f"tile-{r}-{a}", f"cell-{r}-{a}"} <= ids
            assert f"#cell-{r}-{a}" in links and f"#tile-{r}-{a}" in links


def test_the_first_reconstructions_stand_together_and_the_rest_in_the_cell(result):
    shots = [
        {"original": [[i / 10]], "reconstruction": [[0.5]], "caption": f"shot {i}"}
        for i in range(7)
    ]
    result["protections"][0]["cells"]["gradient-leakage@server"]["figures"] = {"images": shots}
    page = Reader(render_html(result))
    assert "3 more in the cell’s details" in page.text
    assert [image["alt"] for image in page.all("img")][::2] == [
        f"Original, shot {i}" for i in range(7)
    ]
    several = Reader(render_reports([result]))
    assert "3 more in the report of its own" in several.text
    assert len(several.all("img")) == 2 * 4


def test_downloads_hold_the_figures(result):
    page = Reader(render_html(result))
    found = {a["download"]: a["href"] for a in page.all("a") if "download" in a}
    assert {"matrix.csv", "decision.csv", "protections.csv", "claims.csv", "details.csv"} <= set(
        found
    )
    lines = list(csv.DictReader(unquote(found["matrix.csv"].partition(",")[2]).splitlines()))
    value = result["protections"][0]["cells"]["membership-shadows@client"]["value"]
    assert float(lines[1]["value"]) == value


# --- several reports in one page ------------------------------------------------------------------


def several(result, names=("digits", "mnist", "adult")):
    return [copy.deepcopy(result) | {"dataset": name} for name in names]


def test_several_reports_share_a_page(result):
    made = several(result)
    made[1]["protections"][0]["cells"]["membership-shadows@client"]["verdict"] = "contained"
    del made[2]["protections"][1]
    page = Reader(render_reports(made))
    assert not page.open
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for a in page.all("a"):
        assert not a["href"].startswith("#") or a["href"][1:] in ids
    for name in ("digits", "mnist", "adult"):
        assert name in page.text
    assert "leaks on 2 of 3" in page.text and "leaks on 3 of 3" in page.text
    signs = {a["aria-label"]: a["href"] for a in page.all("a") if "aria-label" in a}
    assert signs["mnist: contained"] == "#d1-tile-2-0"  # the last of that label: dp-sgd
    opened = [a for tag, a in page.tags if tag == "details" and "open" in a]
    assert not opened  # so that it opens at once
    files = [a["download"] for a in page.all("a") if "download" in a]
    assert len(files) == len(set(files))
    assert {"d2-matrix.csv", "all-matrix.csv", "all-decision.csv"} <= set(files)


def test_several_reports_must_differ_in_their_data(result):
    with pytest.raises(ConfigError, match=r"2 are of 'digits'.*tacit report diff"):
        render_reports(several(result, ("digits", "mnist", "digits")))
    with pytest.raises(ConfigError, match="at least one report"):
        render_reports([])


def test_hostile_text_stays_text_in_a_page_of_several(result):
    bad = poisoned(result)
    bad["dataset"] = HOSTILE
    bad["attacks"][0]["name"] = "=x@" + HOSTILE
    bad["protections"][0] |= {"name": "=" + HOSTILE, "accuracy": 0.5}
    page = Reader(render_reports([bad, result]))
    assert not page.open and not {tag for tag, _ in page.tags} & {"script", "img"}
    for a in page.all("a"):
        assert a["href"].startswith(("#", "data:text/csv;"))
        assert not any(name.startswith("on") for name in a)


# --- for every reader -----------------------------------------------------------------------------


def pages(result):
    leaks = copy.deepcopy(result)
    leaks["protections"][0]["cells"]["gradient-leakage@server"]["figures"] = {
        "images": [{"original": [[0.5]], "reconstruction": [[0.1]]}],
        "roc": {"fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 0.9, 1.0]},
    }
    other = copy.deepcopy(leaks)
    other["protections"][1]["cells"]["membership-shadows@client"]["verdict"] = "contained"
    return {
        "one": render_html(leaks),
        "several": render_reports(several(leaks)),
        "difference": render_difference(difference(leaks, other)),
    }


@pytest.mark.parametrize("kind", ["one", "several", "difference"])
def test_a_page_can_be_walked_through(kind, result):
    text = pages(result)[kind]
    page = Reader(text)
    assert not page.open
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("main")) == len(page.all("h1")) == 1
    first = page.all("a")[0]
    assert first["class"] == "skip" and first["href"] == "#" + page.all("main")[0]["id"]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for image in page.all("img"):
        assert image["alt"]
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (
            svg["role"] == "img" and (svg.get("aria-label") or svg["aria-labelledby"])
        )
    for head in page.all("th"):
        assert head["scope"] in ("row", "col")
    for attributes in (a for _, a in page.tags):
        if attributes.get("tabindex") == "0":
            assert attributes["aria-label"]  # what takes the focus has a name
        assert int(attributes.get("tabindex", 0)) <= 0  # the order is the page's
    assert "script" not in {tag for tag, _ in page.tags}
    assert "default-src 'none'" in text and "http:" not in text and "https:" not in text


def luminance(colour):
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEXT_ON = [
    *itertools.product(("ink", "quiet", "link"), ("page", "card")),
    *itertools.product(("leak-ink",), ("leak-1", "leak-2", "leak-3", "page", "card")),
    *itertools.product(("hold-ink",), ("hold", "page", "card")),
    *itertools.product(("open-ink",), ("open", "page", "card")),
    *itertools.product(("none-ink",), ("none", "page", "card")),
    *itertools.product(("fail-ink",), ("fail", "page", "card")),
    ("page", "ink"),  # the badge of what is proved
]


def test_contrast_holds_in_both_schemes(result):
    assert contrast("#000", "#fff") == pytest.approx(21)
    style = render_html(result)
    light, dark = re.findall(r":root \{(.*?)\}", style, re.S)
    schemes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", text)) for text in (light, dark)]
    assert schemes[0].keys() == schemes[1].keys()
    for scheme in schemes:
        for text, ground in TEXT_ON:
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        for line in ("link", "leak-edge", "quiet", *(f"c{i}" for i in range(8))):
            assert contrast(scheme[line], scheme["page"]) >= 3, line  # marks and curves
    assert not set(re.findall(r"(?<![-\w])color: (#\w+)", style))  # no colour but those


def test_nothing_moves_and_the_focus_shows(result):
    style = render_html(result)
    assert not re.search(r"transition|animation|scroll-behavior", style)
    assert re.search(r"a:focus-visible, summary:focus-visible.*outline: 2px", style)
    assert "outline: none" not in style and "outline: 0" not in style
    assert "@media print" in style and "@media (max-width: 760px)" in style
