"""Every figure of a report leaves it as it is, and no text in it runs in a spreadsheet."""

import base64
import csv
import io
import json
from pathlib import Path
from urllib.parse import unquote

import pytest

from tacit.audit import decision, export
from tacit.audit.export import csv_text, download, neutral, tables, write_tables
from tacit.core.errors import OutputError

RESULTS = Path(__file__).parents[2] / "results" / "compare-digits.json"


@pytest.fixture
def real():
    found = json.loads(RESULTS.read_text())
    cell = found["protections"][1]["cells"]["gradient-leakage@server"]
    cell["figures"] = {"images": [{"original": [[0.0, 1.0]], "reconstruction": [[0.5, 0.25]]}]}
    cell["saw"] = {"updates": 40, "noisy": False}
    cell["attack_settings"] = {"steps": 300, "restarts": [1, 2]}
    curve = {"fpr": [0.0, 0.25, 1.0], "tpr": [0.0, 0.123456789, 1.0]}
    found["protections"][0]["cells"]["membership-loss@scores"]["figures"] = {"roc": curve}
    return found


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def of(result, name):
    return read(csv_text(next(t for t in tables(result) if t.file == name)))


def test_every_value_is_the_report_s(real):
    rows = {(row["protection"], row["attack"]): row for row in of(real, "matrix.csv")}
    for protection in real["protections"]:
        for name, cell in protection["cells"].items():
            row = rows.pop((protection["name"], name))
            assert row["verdict"] == cell["verdict"]
            for key, found in (
                ("value", cell["value"]),
                ("chance", cell["chance"]),
                ("low", cell["interval"][0]),
                ("high", cell["interval"][1]),
                ("n", cell["n"]),
            ):
                assert row[key] == ("" if found is None else repr(found))
            assert row["why"] == cell["why"]
    assert not rows
    for row, protection in zip(of(real, "protections.csv"), real["protections"], strict=True):
        assert float(row["accuracy"]) == protection["accuracy"]
        assert row["bytes"] == str(protection["cost"]["bytes"])
        assert row["seconds"] == repr(protection["cost"]["seconds"])
    claims = of(real, "claims.csv")
    said = [claim["statement"] for p in real["protections"] for claim in p["claims"]]
    assert [row["statement"] for row in claims] == said
    choices = decision.choices(real)
    for row, choice in zip(of(real, "decision.csv"), choices, strict=True):
        assert float(row["worst_leak"]) == choice.leak
        assert row["efficient"] == ("yes" if choice.efficient else "no")


def test_curves_details_and_settings_are_there(real):
    curve = of(real, "roc-membership-loss@scores.csv")
    assert [row["true_positive_rate"] for row in curve] == ["0.0", "0.123456789", "1.0"]
    details = {
        (row["protection"], row["attack"], row["part"], row["name"]): row["value"]
        for row in of(real, "details.csv")
    }
    at = "federated-sgd", "gradient-leakage@server"
    assert details[(*at, "saw", "updates")] == "40"
    assert details[(*at, "saw", "noisy")] == "no"
    assert details[(*at, "attack_settings", "restarts")] == "1; 2"
    assert {"of": "the run", "setting": "seeds", "value": "3"} in of(real, "settings.csv")
    roles = of(real, "roles.csv")
    assert len(roles) == sum(len(p["cost"]["per_role"]) for p in real["protections"])


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_like_a_formula_is_neutralised(sign, real):
    bad = f"{sign}HYPERLINK(\"http://evil.example\";'x')"
    row = real["protections"][0]
    row["name"], row["title"] = bad, bad
    row["claims"][0]["statement"] = bad
    row["settings"] = {bad: bad}
    row["cells"]["membership-loss@scores"]["why"] = bad
    real["attacks"][0]["title"] = bad
    real["settings"] = {bad: [bad]}
    for table in tables(real):
        for line in csv.reader(io.StringIO(csv_text(table), newline="")):
            for value in line:
                try:
                    float(value)
                except ValueError:
                    assert not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")), table.file
    assert neutral(-0.5) == "-0.5" and neutral(True) == "yes" and neutral(None) == ""


def test_a_download_is_the_file(real):
    for table in tables(real):
        made = download(table, "d0-")
        kind, _, body = made["address"].partition(",")
        assert kind == "data:text/csv;charset=utf-8"
        assert unquote(body) == csv_text(table)
        assert made["file"] == f"d0-{table.file}"
        assert not set(made["address"]) & set("\"'<>#&\n ")
    assert download(export.Table(file="x.csv", about="", columns=("a",), rows=())) is None


def test_files_are_written_and_explained(real, tmp_path):
    paths = write_tables(real, tmp_path / "new" / "figures")
    here = tmp_path / "new" / "figures"
    assert {p.relative_to(here).as_posix() for p in paths} == {
        p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file()
    }
    readme = (here / "README.md").read_text()
    for path in here.glob("*.csv"):
        assert f"- {path.name}: One row" in readme
        assert path.read_text(encoding="utf-8").count("\n") > 1
    image = here / "images" / "gradient-leakage@server-federated-sgd-1-original.png"
    assert image.read_bytes().startswith(b"\x89PNG") and image.name.split("-1-")[0] in str(paths)
    shown = export.pictures.png_address([[0.0, 1.0]])
    assert image.read_bytes() == base64.b64decode(shown.partition(",")[2])
    write_tables(real, here)  # again, in the same place


def test_hostile_names_stay_in_the_folder(real, tmp_path):
    for attack, name in zip(real["attacks"], ("../../up", "a/b", "A/B", "", "."), strict=False):
        old, attack["name"] = attack["name"], name
        for protection in real["protections"]:
            cell = protection["cells"].pop(old)
            curve = {"roc": {"fpr": [0, 1], "tpr": [0, 1]}}
            protection["cells"][name] = cell | {"figures": curve}
    here = tmp_path / "figures"
    paths = write_tables(real, here)
    assert all(path.resolve().is_relative_to(here) for path in paths)
    names = [path.name.lower() for path in here.glob("roc-*")]
    assert len(names) >= 5 and len(names) == len(set(names))
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_an_impossible_folder_is_an_output_error(real, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="give another"):
        write_tables(real, tmp_path / "file")


def test_an_empty_report_has_no_tables(tmp_path):
    assert tables({}) == []
    assert [path.name for path in write_tables({}, tmp_path)] == ["README.md"]
