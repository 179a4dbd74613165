"""`tacit report` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tacit.cli.main import run

RESULTS = Path(__file__).parents[2] / "results" / "compare-digits.json"


def tacit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        run(["report", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Folders with reports of three data sets."""
    made = []
    for name in ("digits", "mnist", "att-faces"):
        result = json.loads(RESULTS.read_text())
        result["dataset"] = name
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(result))
        made.append(str(tmp_path / name))
    return made


def test_several_reports_become_one_page(
    capsys: pytest.CaptureFixture[str], given: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "new" / "reports.html"
    code, out, err = tacit(capsys, "build", *given, "--out", str(page))
    assert code == 0, err
    assert out == "" and "3 reports" in err
    text = page.read_text()
    assert "att-faces" in text and text.count('class="data-set"') == 3


def test_a_difference_is_a_table_a_page_and_json(
    capsys: pytest.CaptureFixture[str], given: list[str], tmp_path: Path
) -> None:
    code, out, _ = tacit(capsys, "diff", given[0], str(RESULTS))
    assert code == 0 and "No verdict changed" in out
    page = tmp_path / "difference.html"
    code, out, _ = tacit(capsys, "diff", given[0], given[1], "--json", "--out", str(page))
    found = json.loads(out)
    assert code == 0 and found["command"] == "report diff" and found["version"]
    assert found["unfair"] and found["cells"] == [] and found["counts"]["worse"] == 0
    assert "tacit report diff" in page.read_text()


def test_worse_is_an_exit_code_where_it_was_asked_for(
    capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    path = Path(given[0]) / "report.json"
    result = json.loads(path.read_text())
    result["protections"][4]["cells"]["gradient-leakage@server"]["verdict"] = "leaks"
    path.write_text(json.dumps(result))
    assert tacit(capsys, "diff", str(RESULTS), given[0])[0] == 0
    code, out, _ = tacit(capsys, "diff", str(RESULTS), given[0], "--fail-on-worse")
    assert code == 1 and "worse" in out
    code, out, _ = tacit(capsys, "diff", str(RESULTS), given[0], "--fail-on-worse", "--json")
    assert code == 1 and json.loads(out)["counts"]["worse"] == 1
    assert tacit(capsys, "diff", given[0], str(RESULTS), "--fail-on-worse")[0] == 0  # better


def test_figures_are_exported(
    capsys: pytest.CaptureFixture[str], given: list[str], tmp_path: Path
) -> None:
    code, _, err = tacit(capsys, "export", given[0], "--out", str(tmp_path / "figures"))
    assert code == 0 and "README.md" in err
    assert (tmp_path / "figures" / "matrix.csv").read_text().startswith("protection,kind,attack")


def test_bad_input_is_an_error_and_no_traceback(
    capsys: pytest.CaptureFixture[str], given: list[str], tmp_path: Path
) -> None:
    digits, out = given[0], str(tmp_path / "page.html")
    damaged, old, file = tmp_path / "damaged", tmp_path / "old", tmp_path / "file"
    for folder, text in (
        (damaged, "{"),
        (old, '{"command": "compare", "schema": 7, "version": "9"}'),
    ):
        folder.mkdir()
        (folder / "report.json").write_text(text)
    file.write_text("mine")
    for arguments, said in (
        (["build", str(tmp_path / "nowhere"), "--out", out], "cannot be read"),
        (["build", str(damaged), "--out", out], "is not JSON"),
        (["build", str(old), "--out", out], "has 7"),
        (["build", digits, str(RESULTS), "--out", out], "2 are of 'digits'"),
        (["build", digits, "--out", str(file / "page.html")], "cannot be one"),
        (["build", digits, "--out", str(damaged)], "cannot be written"),
        (["diff", digits, str(tmp_path / "nowhere")], "cannot be read"),
        (["diff", digits, digits, "--out", str(file / "page.html")], "cannot be one"),
        (["export", digits, "--out", str(file)], "cannot be one"),
        (["export", str(old), "--out", out], "another version"),
    ):
        code, printed, err = tacit(capsys, *arguments)
        assert code == 2 and printed == "", arguments
        assert said in err.replace("\n", " ") and "Traceback" not in err
    assert file.read_text() == "mine" and not Path(out).exists()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = tacit(capsys, "--help")
    for said in ("build", "diff", "export", "--fail-on-worse", "tacit compare"):
        assert said in out
    for command in ("build", "diff", "export"):
        assert "report.json" in tacit(capsys, command, "--help")[1]
