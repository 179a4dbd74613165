"""README's tables say what the catalogue and the results say, and its commands exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from tacit.cli.main import run

ROOT = Path(__file__).resolve().parents[1]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", generator().PAGES)
def test_the_tables_equal_the_catalogue_and_the_results(page: str) -> None:
    text = (ROOT / page).read_text()
    assert generator().rewritten(text, page) == text


@pytest.mark.parametrize("picture", generator().PICTURES)
def test_the_pictures_show_the_results(picture: str) -> None:
    assert generator().PICTURES[picture]() == (ROOT / picture).read_text()


def test_a_stale_table_would_be_noticed() -> None:
    text = (ROOT / "README.md").read_text()
    assert generator().rewritten(text.replace("[15]", "[51]")) == text


def test_every_command_that_the_readme_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = set(re.findall(r"`tacit (\w+)", (ROOT / "README.md").read_text()))
    assert {"compare", "reproduce", "bench", "papers", "data"} <= named
    for command in named:
        with pytest.raises(SystemExit) as stop:
            run([command, "--help"])
            raise SystemExit(0)
        assert stop.value.code == 0, command
        capsys.readouterr()
