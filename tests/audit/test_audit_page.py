"""The page of an audit says what was found before it shows it, hides nothing, and harms no reader."""

import copy
import csv
import io
import itertools
import json
import re
import stat
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from tests.audit.pages import HOSTILE, Reader, decoded, terminal

from tacit.audit import audit_page
from tacit.audit import membership_statistics as ms
from tacit.audit.audit_page import render_audit, write_audit
from tacit.audit.terminal import audit_table
from tacit.core.errors import DataError, OutputError

NAMES = ("loss", "entropy", "lira-online", "label-gap")
TITLES = ("Loss", "Entropy", "LiRA", "Right label")
SHIFTS = (0.35, 0.02, 0.8, None)
RATES = (0.1, 0.01, 0.001)
ASSUMES = "scores of different records as independent as those of many trainings"


def scores_of(shift, members, nonmembers):
    """Scores that leak as much as the shift says; without one, two values alone."""
    generator = torch.Generator().manual_seed(3)
    draw = torch.randn(members + nonmembers, generator=generator, dtype=torch.float64).numpy()
    if shift is None:
        return (draw > np.where(np.arange(len(draw)) < members, -1.2, -0.8)).astype(float)
    draw[:members] += shift
    return draw


def attack(name, title, scores, truth, confidence):
    inside, outside = scores[truth], scores[~truth]
    said = {
        key: figure.as_json()
        for key, figure in ms.figures(inside, outside, rates=RATES, confidence=confidence).items()
    }
    for rate in RATES:
        if said[f"tpr@{rate:g}fpr"]["value"] is not None:
            said[f"tpr@{rate:g}fpr"]["p_value"] = ms.tail_p_value(inside, outside, rate)
    held = ms.held_out_accuracy(inside, outside, generator=torch.Generator().manual_seed(1))
    fpr, tpr = ms.log_log_roc(inside, outside)
    return {
        "name": name, "title": title, "access": "labels" if name == "label-gap" else "scores",
        "needs": "32 reference models" if "lira" in name else "nothing",
        "explains": f"{title} says member where the score is high.", "source": "Carlini et al. 2022",
        "queries": len(scores), "seconds": 0.31,
        "metrics": {"auc": said.pop("auc"), "balanced_accuracy": held.as_json(), **said},
        "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
    }  # fmt: skip


def made(members=1200, nonmembers=1100):
    """A result as `tacit audit` gives it, of scores that leak as much as `SHIFTS` say."""
    truth = np.arange(members + nonmembers) < members
    confidence = 1 - 0.05 / len(NAMES)
    scores = [scores_of(shift, members, nonmembers) for shift in SHIFTS]
    attacks = [
        attack(name, title, own, truth, confidence)
        for name, title, own in zip(NAMES, TITLES, scores, strict=True)
    ]
    # Twenty classes of falling size: the last are too small for any figure.
    labels = np.minimum(np.arange(len(truth)) % 61, 60 - np.arange(len(truth)) % 47) % 20
    labels[labels > 16] = np.where(np.arange((labels > 16).sum()) % 9 == 0, 18, 3)
    best = scores[2]

    def slices(of):
        found = ms.by_slice(best, truth, of)
        return {name: {k: f.as_json() for k, f in each.items()} for name, each in found.items()}

    bound = ms.epsilon_lower_bound(
        best[truth], best[~truth], delta=1e-5, generator=torch.Generator().manual_seed(1)
    )
    accuracy = {"value": 0.99, "interval": [0.983, 0.995], "n": members}
    return {
        "command": "audit", "version": "0.1.0", "commit": "abc1234", "machine": {"cores": 2},
        "settings": {"seed": 7, "shadows": 32, "recipe": {"epochs": 20}}, "seconds": 61.5, "seeded": False, "schema": 1,
        "target": {
            "kind": "module", "name": "TinyNet", "gives": "logits", "parameters": 12345,
            "accuracy": {"members": accuracy, "nonmembers": accuracy | {"value": 0.81, "interval": [0.79, 0.83]}},
        },
        "data": {
            "members": members, "nonmembers": nonmembers, "population": 0, "classes": 20, "input_shape": [1, 8, 8],
            "checks": [
                {"name": "overlap", "test": "Records that are equal bit by bit.", "value": 0, "interval": None,
                 "p_value": None, "warning": None},
                {"name": "same-labels", "test": "Chi-square test of class by membership.", "value": 31.4, "interval": None,
                 "p_value": 0.002, "warning": "The classes are not shared out alike."},
                {"name": "same-inputs", "test": "A classifier without the model; left out below 50 records of a kind.",
                 "value": None, "interval": None, "p_value": None, "warning": None},
            ],
        },
        "attacks": attacks,
        "left_out": [{"name": "attack-p", "title": "Population", "why": "needs answers on other records: give population"}],
        "confidence": {"auc": "jointly 95 % over 4 attacks (each 98.75 %)", "tpr": "jointly 95 %"},
        "verdict": "leaks", "why": "LiRA: AUC 0.71; guessing reaches 0.5.", "strongest": "lira-online",
        "epsilon": {
            "value": bound.epsilon, "delta": 1e-5, "confidence": 0.95, "attack": "lira-online", "assumes": ASSUMES,
            "members": list(bound.members), "nonmembers": list(bound.nonmembers),
        },
        "classes": slices(ms.class_slices(labels)),
        "groups": slices({"clinic A": labels < 9, "clinic B": labels >= 9}),
        "exposed": [
            {"record": one.record, "label": int(labels[one.record]), "score": one.score,
             "false_positive_rate": one.false_positive_rate, "at_most": one.at_most,
             "image": [[(one.record * (r + c)) % 16 / 15 for c in range(8)] for r in range(8)]}
            for one in ms.most_exposed(best, truth, 6)
        ],
        "shadows": {
            "models": 32, "inside_each": 1150, "seconds": 40.1, "control": {"gap": 0.41, "p_value": 0.001},
            "kept_in": "shadows-0123456789ab",
        },
        "budget": {"seconds": None, "queries": None, "queries_spent": 2300},
        "warnings": ["The classes are not shared out alike."],
        "paragraphs": ["This audit asked the model.", "The model tells who was in.", "It is no guarantee."],
        "limits": [
            {"metric": "tpr@0.01fpr", "limit": 0.05, "value": 0.11, "attack": "lira-online", "exceeded": True},
            {"metric": "auc", "limit": 0.9, "value": 0.71, "attack": "lira-online", "exceeded": False},
        ],
    }  # fmt: skip


MADE = made()


@pytest.fixture
def result():
    return copy.deepcopy(MADE)


def read(result):
    return Reader(render_audit(result))


# --- what it says


def test_the_page_says_in_words_what_was_found_before_it_shows_it(result):
    page = read(result)
    assert not page.open
    order = (
        "▲ leaks", "The model gives away who was in its training data", "LiRA: AUC 0.71; guessing reaches 0.5.",
        "This audit asked the model.", "The model tells who was in.", "It is no guarantee.",
        "The classes are not shared out alike.", "▲ exceeded", "TPR at FPR 0.01: at most 0.050 allowed, 0.110 reached",
        "○ kept", "Balanced accuracy",
    )  # fmt: skip
    places = [page.text.index(said) for said in order]
    assert places == sorted(places)
    swatch = page.all("span", **{"class": "swatch leaks"})
    assert swatch  # a border and a colour besides the word and the sign


def test_all_that_the_figures_rest_on_is_there(result):
    text = read(result).text
    for said in (
        "▲ above chance", "○ covers chance", "sees labels", "strongest", "2,300 310 ms",
        "LiRA says member where the score is high.", "32 reference models", "Carlini et al. 2022",
        "jointly 95 % over 4 attacks (each 98.75 %)", "Population needs answers on other records: give population",
        "Chi-square test of class by membership.", "? look at this 31.4, p = 0.002", "○ nothing found 0", "· left out",
        "a torch module", "12,345", "accuracy on non-members 81.0 % [79.0 %, 83.0 %]", "input shape 1, 8, 8",
        "records in each 1,150", "loss on other records is 0.410 nats higher, p = 0.001", "shadows-0123456789ab",
        "seconds no limit", "queries spent 2,300", "epochs 20", "abc1234", "61.5 s", "as confidential as the records",
    ):  # fmt: skip
        assert said in text, said
    value, hits = MADE["epsilon"]["value"], MADE["epsilon"]["members"]
    assert f"epsilon is at least {value:.3f} at delta 1e-5, with 95 % confidence" in text
    assert f"{hits[0]} of {hits[1]} members" in text and f"Assumes: {ASSUMES}" in text


def test_the_reason_is_not_said_twice(result):
    result["paragraphs"][1] = f"The model tells who was in. {result['why']}"
    assert read(result).text.count(result["why"]) == 1


@pytest.mark.parametrize(
    ("verdict", "said", "slug"),
    [
        ("nothing-found", "○ nothing found No attack told members from non-members", "contained"),
        ("inconclusive", "? inconclusive This audit cannot tell", "inconclusive"),
        ("unheard-of", "? inconclusive This audit cannot tell", "inconclusive"),
    ],
)
def test_a_verdict_claims_no_more_than_was_seen(result, verdict, said, slug):
    result["verdict"] = verdict
    page = read(result)
    assert said in page.text
    assert "The model gives away" not in page.text
    assert page.all("span", **{"class": f"swatch {slug}"})
    assert said.split(" ")[1] in terminal(audit_table(result))


def test_a_bound_on_privacy_loss_is_doubted_where_a_check_warns(result):
    said = "differ in more than membership, this"
    assert said in read(result).text and said in " ".join(terminal(audit_table(result)).split())
    for check in result["data"]["checks"]:
        check["warning"] = None
    assert said not in read(result).text + " ".join(terminal(audit_table(result)).split())


def test_an_epsilon_of_zero_refutes_nothing(result):
    result["epsilon"]["value"] = 0.0
    assert "The scores refute no epsilon" in read(result).text


# --- figures


def bars(page):
    """The value of each bar of the attacks, 0 to 100."""
    return [float(line["x1"]) for line in page.all("line", **{"class": "value"})][: len(NAMES)]


def test_the_intervals_share_one_scale(result):
    areas = [one["metrics"]["auc"] for one in result["attacks"]]
    low = min(0.5, *(area["interval"][0] for area in areas))
    high = max(area["interval"][1] for area in areas)
    expected = [3 + 94 * (area["value"] - low) / (high - low) for area in areas]
    page = read(result)
    assert bars(page) == pytest.approx(expected, abs=0.06)
    assert {line["x1"] for line in page.all("line", **{"class": "chance"})[: len(NAMES)]} == {
        str(round(3 + 94 * (0.5 - low) / (high - low), 1))
    }
    assert f"{low:.2f} {high:.2f}" in page.text
    for area in areas:
        area["interval"], area["value"] = [0.1, 0.9], 0.7
    assert len(set(bars(read(result)))) == 1
    assert "0.10 0.50 0.90" in read(result).text  # chance has room now
    for area in areas:
        area["interval"] = [0.6, 0.9]
    assert "0.50 0.90" in read(result).text  # and is never left out


def test_what_no_attack_supports_is_said_once_with_what_it_needs(result):
    text = read(result).text
    assert "TPR at FPR 0.001 : no attack can be judged there; it needs 10000 non-members" in text
    assert text.count("no attack can be judged") == 1
    heads = text[text.index("Balanced accuracy") : text.index("Queries and time")]
    assert "0.01" in heads and "0.001" not in heads


def test_what_one_attack_does_not_support_says_so_in_its_place(result):
    entry = result["attacks"][0]["metrics"]["tpr@0.01fpr"]
    entry |= {"value": None, "interval": None, "why": "needs 1000 non-members, 400 came"}
    page = read(result)
    assert "– needs 1000 non-members" in page.text
    assert "needs 1000 non-members, 400 came" in page.text  # in full, in the details
    shown = terminal(audit_table(result))
    assert "needs 1000" in shown


def test_only_what_lies_above_chance_is_marked(result):
    metrics = result["attacks"][1]["metrics"]
    text = read(result).text
    assert f"▲ {metrics['tpr@0.01fpr']['value']:.3f}" not in text
    metrics["tpr@0.01fpr"] |= {"value": 0.0314, "interval": [0.0101, 0.05]}
    assert "▲ 0.031" in read(result).text
    metrics["tpr@0.01fpr"]["interval"][0] = 0.0099
    assert "▲ 0.031" not in read(result).text
    metrics["auc"] |= {"value": 0.3, "interval": [0.2, 0.4]}
    assert "? below chance" in read(result).text


def curves(page):
    return [path for path in page.all("path") if path["class"].startswith("curve")]


def points(path):
    return [tuple(map(float, at.split())) for at in path["d"][1:].split("L")]


def test_one_drawing_holds_every_attack(result):
    page = read(result)
    (plot,) = page.all("svg", **{"class": "plot"})
    assert plot["aria-label"].startswith("ROC curves of all attacks")
    drawn = [points(path) for path in curves(page)]
    assert len(drawn) == len(NAMES)
    assert len({at[0][0] for at in drawn}) == 1  # all begin at the same rate, right of the frame
    assert drawn[0][0][0] > 62.0
    # Of two values there is one threshold: a straight line from nothing, which stays as far above the diagonal.
    (x0, y0), (x1, y1) = drawn[3][0], drawn[3][5]
    assert x1 - x0 == pytest.approx(y0 - y1, abs=0.2) and x1 > x0


def test_no_two_of_many_curves_look_alike(result):
    result["attacks"] = [
        copy.deepcopy(result["attacks"][0]) | {"name": f"a{i}", "title": f"Attack {i}"}
        for i in range(20)
    ]
    looks = [(path["class"], path["stroke-dasharray"]) for path in curves(read(result))]
    assert len(looks) == len(set(looks)) == 20


def test_what_cannot_be_drawn_is_left_out_of_the_drawing(result):
    result["attacks"][0]["roc"] = {"fpr": [1.0], "tpr": [1.0]}
    result["attacks"][1]["roc"] = {"fpr": [0.1, "nan"], "tpr": [0.1, 1.0]}
    assert len(curves(read(result))) == 2
    for one in result["attacks"]:
        one["roc"] = None
    assert not curves(read(result)) and "#roc" not in render_audit(result)


# --- parts of the data, and records


def rows_of(text, named="class"):
    """The numbers of the classes, as they stand in the text."""
    return [int(found) for found in re.findall(rf"{named} (\d+) ▲? ?\d\.\d", text)]


def test_classes_come_the_most_exposed_first_and_the_small_ones_apart(result):
    page = read(result)
    text = page.text[page.text.index("Figures of the strongest attack, the most exposed class") :]
    text = text[: text.index("Figures of the strongest attack, the most exposed group")]
    known = {
        int(name.split()[1]): each["auc"]["value"]
        for name, each in result["classes"].items()
        if each["auc"]["value"] is not None
    }
    assert len(known) == 18 > audit_page._SHOWN
    assert rows_of(text) == sorted(known, key=known.get, reverse=True)
    assert "3 more" in text
    result["classes"]["class 0"] = {"auc": {"value": None, "why": "needs 10 members, 2 came"}}
    text = read(result).text
    assert "1 too small for a figure class 0 needs 10 members, 2 came" in text
    assert "clinic A" in text and "clinic B" in text


def test_the_most_exposed_records_are_shown(result):
    page = read(result)
    images = page.all("img")
    assert len(images) == 6
    first = result["exposed"][0]
    assert images[0]["alt"] == f"Record {first['record']}, class {first['label']}"
    pixels = decoded(images[0]["src"])[..., 0]
    assert (pixels == np.round(255 * np.array(first["image"]))).all()
    assert f"{first['record']} {first['label']} {first['score']:.3f} 0 % 0.272 %" in page.text
    result["settings"]["class_names"] = [f"kind {i}" for i in range(20)]
    named = f"Record {first['record']}, class kind {first['label']}"
    assert read(result).all("img")[0]["alt"] == named
    for one in result["exposed"]:
        one["image"] = None
    assert not read(result).all("img") and "not an image" not in read(result).text


def test_downloads_hold_the_figures(result):
    result["attacks"][0]["title"] = "=1+1"
    found = {a["download"]: a["href"] for a in read(result).all("a") if "download" in a}
    assert set(found) == {"attacks.csv", "exposed.csv", "slices.csv", "roc.csv"}
    tables = {
        name: list(csv.DictReader(io.StringIO(unquote(address.partition(",")[2]))))
        for name, address in found.items()
    }
    assert tables["attacks.csv"][0]["title"] == "'=1+1"
    for row, one in zip(tables["attacks.csv"], result["attacks"], strict=True):
        assert float(row["auc_value"]) == one["metrics"]["auc"]["value"]
        assert float(row["auc_low"]) == one["metrics"]["auc"]["interval"][0]
        assert row["tpr@0.001fpr_value"] == "" and row["tpr@0.001fpr_needs"] == "10000"
    assert [int(row["record"]) for row in tables["exposed.csv"]] == [
        one["record"] for one in result["exposed"]
    ]
    assert {row["kind"] for row in tables["slices.csv"]} == {"class", "group"}
    assert len(tables["roc.csv"]) == sum(len(one["roc"]["fpr"]) for one in result["attacks"])


# --- less than everything


def saved(result):
    """What an audit of saved scores gives: one attack, and nothing of records."""
    result["target"] |= {"kind": "scores", "gives": "scores", "parameters": None, "accuracy": None}
    result["data"] |= {"classes": None, "input_shape": None, "checks": []}
    result["attacks"] = result["attacks"][:1]
    return result | {
        "epsilon": None, "classes": {}, "groups": {}, "exposed": [], "shadows": None, "limits": [], "warnings": [],
        "strongest": "loss", "left_out": [],
    }  # fmt: skip


def test_an_audit_of_saved_scores_has_fewer_parts(result):
    page = read(saved(result))
    assert not page.open
    for said in ("saved scores", "there were no records to look at", "None were trained."):
        assert said in page.text
    links = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    assert links <= {a["id"] for _, a in page.tags if "id" in a}
    assert "names records of the training data" not in page.text


def test_an_audit_in_which_nothing_could_run(result):
    result = saved(result) | {"attacks": [], "strongest": None, "verdict": "inconclusive"}
    assert "No attack was run." in read(result).text
    assert "inconclusive" in terminal(audit_table(result))


# --- for every reader, and against every writer


def test_nothing_comes_from_elsewhere_and_hostile_text_stays_text(result):
    kept = {"command", "verdict", "schema"}

    def poisoned(value):
        if isinstance(value, dict):
            return {k: v if k in kept else poisoned(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return HOSTILE if isinstance(value, str) else value

    result = poisoned(result)
    result["classes"][HOSTILE] = result["classes"]["class 0"]
    result["groups"][HOSTILE] = {"auc": {"value": None, "why": HOSTILE}}
    result["settings"]["class_names"] = [HOSTILE] * 20
    page = read(result)
    assert not page.open
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    assert len(page.all("img")) == 6
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:image/png;base64,", "data:text/csv;"))  # fmt: skip
    assert "alert(1)" in page.text and "{{ 7 * 7 }}" in page.text
    assert "default-src 'none'" in render_audit(result)
    shown = terminal(audit_table(result))
    assert "\x1b" not in shown and "[red]" in shown.replace("\n", "").replace(" ", "")


def test_the_page_can_be_walked_through(result):
    page = read(result)
    assert len(page.all("main")) == len(page.all("h1")) == 1
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    assert links <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    for head in page.all("th"):
        assert head["scope"] in ("row", "col")
    for _, attributes in page.tags:
        if attributes.get("tabindex") == "0":
            assert attributes["aria-label"]
    cells = page.all("td", role="cell")
    assert cells and all(cell["data-label"] for cell in cells)  # what a narrow page puts in front


# --- files


def test_both_files_are_written_for_their_user_alone(result, tmp_path):
    folder = tmp_path / "new"
    del result["schema"]
    result["target"]["parameters"] = np.int64(5)
    result["epsilon"]["value"] = float("inf")
    write_audit(result, folder)
    back = json.loads((folder / "report.json").read_text())
    assert back["schema"] == 1 and back["target"]["parameters"] == 5
    assert back["epsilon"]["value"] == "inf" and back["attacks"] == MADE["attacks"]
    assert (folder / "report.html").read_text() == render_audit(back)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"report.json": 0o600, "report.html": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_no_result_is_lost_when_the_page_fails(result, tmp_path, monkeypatch):
    def fails(_):
        raise ZeroDivisionError

    monkeypatch.setattr(audit_page, "render_audit", fails)
    with pytest.raises(ZeroDivisionError):
        write_audit(result, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == result


@pytest.mark.parametrize(("key", "value"), [("command", "compare"), ("schema", 2)])
def test_what_is_not_an_audit_is_refused(result, tmp_path, key, value):
    result[key] = value
    with pytest.raises(DataError, match="a result of tacit audit of schema 1 expected"):
        write_audit(result, tmp_path)
    with pytest.raises(DataError, match="run tacit audit with this version"):
        render_audit(result)
    assert not list(tmp_path.iterdir())


def test_what_is_not_plain_and_an_impossible_folder_are_refused(result, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="give another"):
        write_audit(result, tmp_path / "file")
    result["settings"]["model"] = object()
    with pytest.raises(DataError, match=r"object came at result\.settings\.model"):
        write_audit(result, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- the terminal


def test_the_terminal_says_it_too_fits_and_needs_no_colour(result):
    result["left_out"].append(result["left_out"][0] | {"name": "extra", "title": "Extra"})
    shown = terminal(audit_table(result))
    assert max(map(len, shown.splitlines())) <= 100
    for said in (
        "▲ leaks  The model gives away", "This audit asked the model.", "It is no guarantee.", "○ covers chance",
        "strongest", "TPR at FPR 0.01", "Population, Extra: needs answers on other records", "epsilon is at least",
        ASSUMES[:20],
        "▲ exceeded  tpr@0.01fpr: at most 0.050 allowed, 0.110 reached", "○ kept",
    ):  # fmt: skip
        assert said in shown, said
    assert "0.001" not in shown  # what no attack supports
