"""The documentation is true: its examples run, its links lead somewhere, and what it names exists."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import json
import math
import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from tacit.attacks.gradient_matching import GradientMatching
from tacit.catalogue import plans, rows, sabotaged_rows
from tacit.cli.main import app
from tacit.core import errors
from tacit.core.claims import PrivacyLoss
from tacit.core.coins import Coins
from tacit.crypto.fixedpoint import FixedPoint
from tacit.dp.mechanisms import NoisyVector
from tacit.dp.sparse_vector import SparseVector
from tacit.nn.federated import Task
from tacit.parties.links.reactor import Limits
from tacit.parties.neighbours import Sharing
from tacit.parties.secure_sum.agreement import Agreement
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import Aggregate, Session
from tacit.parties.two_party.file_store import FileStore
from tacit.parties.views import Update
from tacit.training.dp_sgd import DPSGD
from tacit.training.local_dp import LocalDP
from tacit.training.secure_aggregation import SecureAggregation
from tacit.training.selective_sgd import (
    ParameterServer,
    SelectiveMember,
    SelectiveSGD,
    Selector,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PICTURES = sorted((ROOT / "docs").rglob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def anchors(text: str) -> set[str]:
    """What a link to a heading of the page may say, by GitHub's rule."""
    heads = re.findall(r"^#+ (.+)$", prose(text), flags=re.M)
    said = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower().replace("`", "") for head in heads]
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in said}


def links(text: str) -> list[str]:
    return re.findall(r"!?\[[^]]*\]\(([^)\s]+)\)", prose(text))


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


def run_examples(text: str, name: str) -> tuple[doctest.TestResults, str]:
    """Run a page's examples, one after the other, in one namespace."""
    said: list[str] = []
    source = "\n".join(block for block in blocks(text, "python") if ">>>" in block)
    test = doctest.DocTestParser().get_doctest(source, {}, name, name, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums in the same order, and quicker for nets this small
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    finally:
        torch.set_num_threads(threads)
    return result, "".join(said)


# --- examples


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_examples_of_a_page_run_and_say_what_is_printed(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TACIT_DATA", raising=False)  # the bundled data set is enough
    result, said = run_examples(page.read_text(), named(page))
    assert result.failed == 0, said


def test_an_example_that_says_something_else_fails() -> None:
    result, said = run_examples("```python\n>>> 1 + 1\n3\n\n```\n", "wrong")
    assert result.failed == 1 and "Got:" in said


def test_every_example_stands_in_a_block_that_is_run() -> None:
    for page in PAGES:
        text = page.read_text()
        inside = "\n".join(blocks(text, "python"))
        assert len(re.findall(r"^\s*>>> ", text, re.M)) == len(
            re.findall(r"^>>> ", inside, re.M)
        ), page


def test_the_pages_that_teach_by_example_have_some() -> None:
    for name in (
        "getting-started.md",
        "papers/03-selective-sgd.md",
        "papers/06-secure-aggregation.md",
        "papers/gradient-leakage.md",
        "two-party.md",
    ):
        assert ">>>" in (ROOT / "docs" / name).read_text()


# --- links


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_and_image_leads_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_a_broken_link_a_missing_heading_and_a_way_out_would_be_noticed() -> None:
    page = ROOT / "docs" / "README.md"
    wrong = ["nowhere.md", "notation.md#nothing", "#nothing", "../../outside.md"]
    assert broken(page, " ".join(f"[x]({link})" for link in wrong)) == wrong
    assert broken(page, "[x](notation.md#selective-sgd-3) [y](https://example.org/z)") == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {
        (index.parent / link.partition("#")[0]).resolve() for link in links(index.read_text())
    }
    pages = {page for page in PAGES if page.parent != ROOT} - {index}
    assert pages <= listed


def test_every_picture_is_shown_on_a_page() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page.read_text())}
    assert PICTURES and set(PICTURES) <= shown


# --- what is named exists


def commands() -> dict[str, set[str]]:
    """The commands, and of each its subcommands."""
    root: Any = typer.main.get_command(app)
    return {name: set(getattr(found, "commands", {})) for name, found in root.commands.items()}


def options() -> set[str]:
    """Every option of every command."""
    found: set[str] = set()

    def walk(command: Any) -> None:
        for parameter in command.params:
            found.update(parameter.opts)
            found.update(parameter.secondary_opts)
        for sub in getattr(command, "commands", {}).values():
            walk(sub)

    walk(typer.main.get_command(app))
    return found | {"--help"}


def unknown_commands(text: str) -> list[str]:
    """The lines of a page that name a command, subcommand or option that does not exist."""
    known, possible = commands(), options()
    said = re.findall(r"`(tacit [^`\n]+)`", prose(text))
    for block in blocks(text, "sh"):
        said += re.findall(r"^(tacit [^#\n]+)", block, flags=re.M)
    wrong = []
    for line in said:
        words = [word for word in line.split()[1:] if not word.startswith("--")]
        if words and words[0] != "COMMAND":
            subcommands = known.get(words[0], set())
            named_ones = (
                set(re.split(r"\\?\|", words[1])) if subcommands and len(words) > 1 else set()
            )
            if words[0] not in known or not named_ones <= subcommands:
                wrong.append(line)
        if not set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= possible:
            wrong.append(line)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    assert unknown_commands(page.read_text()) == []


def test_a_wrong_command_subcommand_or_option_would_be_noticed() -> None:
    wrong = ["tacit confer", "tacit data burn", "tacit compare --slowly"]
    assert unknown_commands(" ".join(f"`{line}`" for line in wrong)) == wrong
    assert unknown_commands("```sh\ntacit confer  # x\n```\n") == ["tacit confer  "]
    assert unknown_commands("`tacit data list` `tacit report build A --out B`") == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_row_column_and_figure_that_is_named_exists(page: Path) -> None:
    text = prose(page.read_text())
    columns = {plan.name for plan in plans()}
    assert set(re.findall(r"`([a-z-]+@[a-z]+)`", text)) <= columns
    known = {row.name for row in (*rows(), *sabotaged_rows())}
    prefixes = "local-dp|selective|sparse-vector|secure-aggregation"
    said = set(re.findall(rf"`((?:{prefixes})-[a-z0-9.]+)`", text)) - {"selective-sgd"}
    assert said <= known
    measured = json.loads((ROOT / "results" / "reproduce-leakage.json").read_text())["figures"]
    figures = set(re.findall(r"`((?:ig|idlg|dlg|phong)/[a-z0-9/_-]+)`", text))
    assert figures <= {figure["name"] for figure in measured}


CLASSES = (
    SelectiveSGD,
    LocalDP,
    SparseVector,
    NoisyVector,
    PrivacyLoss,
    Update,
    ParameterServer,
    SelectiveMember,
    Selector,
    SecureAggregation,
    SecureAggregationMember,
    Agreement,
    Aggregate,
    Sharing,
    GradientMatching,
    Coins,
    Task,
    Session,
    Limits,
    FixedPoint,
    FileStore,
)


def unknown_names(text: str) -> list[str]:
    """Dotted names on a page that nothing in the package answers to."""
    by_name: dict[str, Any] = {found.__name__: found for found in CLASSES}
    wrong = []
    for name in re.findall(r"`((?:tacit|[A-Z]\w+)(?:\.\w+)+)(?:\([^`]*\))?`", prose(text)):
        first, *rest = name.split(".")
        if first == "tacit":
            found: Any = importlib.import_module("tacit")
            for index, part in enumerate(rest):
                if not hasattr(found, part):
                    with contextlib.suppress(ImportError):
                        importlib.import_module(".".join(["tacit", *rest[: index + 1]]))
                found = getattr(found, part, None)
            good = found is not None
        else:
            kind = by_name.get(first)
            own = {f.name for f in fields(kind)} if is_dataclass(kind) else set()
            good = kind is not None and (rest[0] in own or hasattr(kind, rest[0]))
        if not good and not name.endswith((".md", ".json")):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_name_in_the_code_that_is_given_exists(page: Path) -> None:
    assert unknown_names(page.read_text()) == []


def test_a_name_that_does_not_exist_would_be_noticed() -> None:
    text = "`tacit.dp.mechanisms.laplace` `tacit.dp.nothing` `SelectiveSGD.theta` `Update.scale` `Nobody.x`"
    assert unknown_names(text) == ["tacit.dp.nothing", "SelectiveSGD.theta", "Nobody.x"]


def unknown_errors(text: str) -> set[str]:
    """Names on a page that look like one of tacit's errors and are none."""
    public = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, (errors.TacitError, errors.TacitWarning))
    }
    ends = "Error|Warning|Name|Layer|Dropped|Refused|Parties|Exceeded|Exhausted|Detected|Evidence|Failed"
    said = set(re.findall(rf"`([A-Z]\w*(?:{ends})|Diver\w+|Dead\w+)`", prose(text)))
    return said - public


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_error_that_is_named_exists(page: Path) -> None:
    assert unknown_errors(page.read_text()) == set()


def test_an_error_that_does_not_exist_would_be_noticed() -> None:
    assert unknown_errors("`DataError` `Diverged` `RunError` `TooManyParties`") == {
        "RunError",
        "TooManyParties",
    }


def number(text: str) -> float:
    """A default as the pages write it: 0.1, or 2^-30."""
    base, _, exponent = text.partition("^")
    return math.pow(float(base), float(exponent or 1))


@pytest.mark.parametrize(
    ("page", "scheme"),
    [
        ("papers/03-selective-sgd.md", SelectiveSGD),
        ("papers/06-secure-aggregation.md", SecureAggregation),
        ("papers/local-dp.md", LocalDP),
        ("papers/04-dp-sgd.md", DPSGD),
    ],
)
def test_every_setting_is_explained_with_the_default_that_it_has(
    page: str, scheme: type[SelectiveSGD | SecureAggregation | LocalDP]
) -> None:
    text = (ROOT / "docs" / page).read_text()
    table = {
        name: (default.strip("`"), meaning)
        for name, default, meaning in re.findall(
            r"^\| `(\w+)` \| ([^|]+?) \| ([^|]+?) \|$", text, re.M
        )
    }
    for setting in fields(scheme):
        default, meaning = table[setting.name]
        assert setting.default is not MISSING and len(meaning) > 10
        if setting.default is None:
            assert default == "none"
        elif isinstance(setting.default, Enum):
            assert default == setting.default.name
        else:
            said = number(default)
            assert said == pytest.approx(float(setting.default), abs=0), setting.name


def test_every_sharp_edge_has_the_severity_of_the_table() -> None:
    text = (ROOT / "docs" / "sharp-edges.md").read_text()
    listed = dict(re.findall(r"^\| \[([^]]+)\]\(#[^)]+\) \| (\w+) \|$", text, flags=re.M))
    told = dict(re.findall(r"^## (.+)\n\n\*\*(\w+)\.?\*\*", text, flags=re.M))
    assert len(listed) > 15 and set(listed.values()) == {"critical", "high", "medium", "low"}
    assert {head: word.lower() for head, word in told.items()} == listed
    assert set(re.findall(r"^## (.+)$", text, flags=re.M)) == set(listed)


# --- pictures


@pytest.mark.parametrize("picture", PICTURES, ids=named)
def test_a_picture_parses_stands_alone_and_says_what_it_shows(picture: Path) -> None:
    root = ET.parse(picture).getroot()
    assert root.tag == f"{SVG}svg" and root.get("viewBox") and root.get("role") == "img"
    labels = (root.get("aria-labelledby") or "").split()
    for part in ("title", "desc"):
        (found,) = root.findall(f"{SVG}{part}")
        assert found.get("id") in labels and len((found.text or "").strip()) > 10
    text = picture.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|<script|@import|@font-face|href=|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_the_pictures_are_drawn_alike() -> None:
    styles = {re.findall(r"<style>.*?</style>", p.read_text(), flags=re.S)[0] for p in PICTURES}
    vantages = [p for p in PICTURES if p.name.startswith("vantage-")]
    sizes = {ET.parse(p).getroot().get("viewBox") for p in vantages}
    assert len(styles) == 1 and len(sizes) == 1
