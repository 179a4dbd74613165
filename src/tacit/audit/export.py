"""The figures of a report as tables: CSV files, and the downloads that the page holds.

Figures are written as they stand in the report, to the last digit. Text that a spreadsheet would take for a formula gets an
apostrophe in front.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tacit.audit import decision, pictures, words
from tacit.audit.words import Result
from tacit.core.files import make_folder, write_file

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One CSV file.

    Args:
        file: its name.
        about: a sentence on what a row is.
        columns: the names of the columns.
        rows: plain values.
    """

    file: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def tables(result: Result) -> list[Table]:
    """Every table of a report; those without rows are left out."""
    found = [
        matrix_table(result),
        protections_table(result),
        roles_table(result),
        decision_table(result),
        claims_table(result),
        details_table(result),
        settings_table(result),
        *(roc_table(result, attack) for attack in _attacks(result)),
    ]
    return [table for table in _distinct(found) if table.rows]


def matrix_table(result: Result) -> Table:
    """The matrix, a cell a row."""
    return Table(
        file="matrix.csv",
        about="One row a cell of the matrix: what an attack got from a protection. leak_above_chance is "
        "(value - chance) / (1 - chance).",
        columns=(
            "protection", "kind", "attack", "verdict", "metric", "value", "low", "high", "chance",
            "leak_above_chance", "n", "queries", "seconds", "why", "error",
        ),
        rows=[
            (
                row["name"], words.kind(row), attack["name"], words.state(cell).slug,
                cell.get("metric") or attack.get("metric"), cell.get("value"), *_ends(cell.get("interval")),
                cell.get("chance"), words.above_chance(cell.get("value"), cell), cell.get("n"),
                cell.get("queries"), cell.get("seconds"), cell.get("why"), cell.get("error"),
            )
            for row, attack, cell in _cells(result)
        ],
    )  # fmt: skip


def protections_table(result: Result) -> Table:
    """Accuracy and cost, a protection a row."""
    rows = []
    for row in words.protections(result):
        cost = row.get("cost") or {}
        rows.append((
            row["name"], words.title(row), row.get("paper"), words.kind(row), row.get("accuracy"),
            *_ends(row.get("accuracy_interval")), row.get("accuracy_members"), cost.get("seconds"),
            words.traffic(cost), cost.get("messages"), cost.get("rounds"),
            "; ".join(map(str, row.get("opened_to") or [])), row.get("opened"),
        ))  # fmt: skip
    return Table(
        file="protections.csv",
        about="One row a protection: its accuracy on records that were not trained on, and its cost.",
        columns=(
            "protection", "title", "paper", "kind", "accuracy", "accuracy_low", "accuracy_high",
            "accuracy_members", "seconds", "bytes", "messages", "rounds", "opened_to", "opened",
        ),
        rows=rows,
    )  # fmt: skip


def roles_table(result: Result) -> Table:
    """Cost, a role of a protection a row."""
    keys = ("seconds", "bytes_sent", "bytes_received", "messages")
    return Table(
        file="roles.csv",
        about="One row a role of a protection: what it computed, sent and received.",
        columns=("protection", "role", *keys),
        rows=[
            (row["name"], role, *(part.get(key) for key in keys))
            for row in words.protections(result)
            for role, part in ((row.get("cost") or {}).get("per_role") or {}).items()
            if isinstance(part, Mapping)
        ],
    )


def decision_table(result: Result) -> Table:
    """What the drawing of accuracy against leak and cost shows, a protection a row."""
    rows = [decision.as_mapping(choice) for choice in decision.choices(result)]
    return Table(
        file="decision.csv",
        about="One row a protection: accuracy, the worst leak above chance over all attacks, and cost. efficient: no "
        "other row but a control is at least as good in accuracy, leak, seconds and bytes, and better in one.",
        columns=tuple(rows[0]) if rows else (),
        rows=[tuple(row.values()) for row in rows],
    )


def claims_table(result: Result) -> Table:
    """Claims, one a row."""
    return Table(
        file="claims.csv",
        about="One row a claim of a protection, and what it rests on.",
        columns=("protection", "basis", "statement", "value", "low", "high", "source", "assumes"),
        rows=[
            (
                row["name"], claim.get("basis"), claim.get("statement"), _flat_text(claim.get("value")),
                *_ends(claim.get("interval")), claim.get("source"),
                "; ".join(map(str, claim.get("assumes") or [])),
            )
            for row in words.protections(result)
            for claim in row.get("claims") or []
        ],
    )  # fmt: skip


def details_table(result: Result) -> Table:
    """Further figures, knowledge and settings of the cells, one a row."""
    parts = ("saw", "attack_settings", "knowledge", "details")
    return Table(
        file="details.csv",
        about="One row a further figure of a cell, or a thing that its adversary saw, knew or was set to.",
        columns=("protection", "attack", "part", "name", "value"),
        rows=[
            (row["name"], attack["name"], part, name, value)
            for row, attack, cell in _cells(result)
            for part in parts
            for name, value in flattened(cell.get(part))
        ],
    )


def settings_table(result: Result) -> Table:
    """Settings of the run and of the protections, one a row."""
    rows = [("the run", *pair) for pair in flattened(result.get("settings"))]
    for row in words.protections(result):
        rows += [(row["name"], *pair) for pair in flattened(row.get("settings"))]
    return Table(
        file="settings.csv",
        about="One row a setting of the run or of a protection.",
        columns=("of", "setting", "value"),
        rows=rows,
    )


def roc_table(result: Result, attack: Result) -> Table:
    """The points of every ROC curve under an attack."""
    rows = []
    for row in words.protections(result):
        cell = words.cells(row, [attack])[0] or {}
        curve = (cell.get("figures") or {}).get("roc") or {}
        points = zip(curve.get("fpr") or [], curve.get("tpr") or [], strict=False)
        rows += [(row["name"], *point) for point in points]
    return Table(
        file=f"roc-{file_name(attack['name'])}.csv",
        about=f"One row a point of a protection's ROC curve under {words.title(attack)}.",
        columns=("protection", "false_positive_rate", "true_positive_rate"),
        rows=rows,
    )


def joined(results: Sequence[Result], table: Callable[[Result], Table]) -> Table:
    """One table of several reports, the data set in front."""
    each = [(words.dataset(result), table(result)) for result in results]
    first = each[0][1]
    return Table(
        file=f"all-{first.file}",
        about=first.about,
        columns=("dataset", *first.columns),
        rows=[(name, *row) for name, found in each for row in found.rows],
    )


def _attacks(result: Result) -> list[Any]:
    return list(result.get("attacks") or [])


def _cells(result: Result) -> Iterator[tuple[Any, Any, Any]]:
    attacks = _attacks(result)
    for row in words.protections(result):
        for attack, cell in zip(attacks, words.cells(row, attacks), strict=True):
            yield row, attack, cell or {}


def _ends(interval: object) -> tuple[object, object]:
    return (interval[0], interval[1]) if words.is_pair(interval) else (None, None)


def flattened(values: object, path: str = "") -> list[tuple[str, object]]:
    """Nested values as (dotted name, plain value)."""
    if isinstance(values, Mapping):
        return [
            pair
            for key, value in values.items()
            for pair in flattened(value, f"{path}.{key}" if path else str(key))
        ]
    if isinstance(values, list | tuple):
        return [(path, "; ".join(_flat_text(value) for value in values))]
    return [] if values is None and not path else [(path, values)]


def _flat_text(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_flat_text(item)}" for name, item in flattened(value))
    return "" if value is None else str(value)


def file_name(text: str) -> str:
    """Text as part of a file's name, on every system."""
    return re.sub(r"[^A-Za-z0-9.@_-]+", "-", text).strip(".-")[:80] or "unnamed"


def _distinct(found: Sequence[Table]) -> list[Table]:
    """Tables with names that differ in more than their case."""
    taken: set[str] = set()
    made = []
    for table in found:
        name, count = table.file, 1
        while name.lower() in taken:
            count += 1
            name = f"{table.file.removesuffix('.csv')}-{count}.csv"
        taken.add(name.lower())
        made.append(Table(file=name, about=table.about, columns=table.columns, rows=table.rows))
    return made


# --- CSV


def neutral(value: object) -> object:
    """A value for a spreadsheet, which runs text that begins like a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def csv_text(table: Table) -> str:
    """A table as CSV with a line of names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in (table.columns, *table.rows):
        writer.writerow([neutral(value) for value in row])
    return out.getvalue()


def download(table: Table, prefix: str = "") -> dict[str, str] | None:
    """A table as a link that needs no file and no script; None for one without rows."""
    if not table.rows:
        return None
    address = "data:text/csv;charset=utf-8," + quote(csv_text(table), safe=",;:@/() ")
    return {
        "file": prefix + table.file,
        "address": address.replace(" ", "%20"),
        "about": table.about,
    }


# --- files


def write_tables(result: Result, folder: Path) -> list[Path]:
    """Write every table of a report as CSV, its images as PNG, and a README on them.

    Args:
        result: a report of ``tacit compare``.
        folder: made if it does not exist; files of the same names are replaced.

    Returns:
        What was written, README first.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    made = tables(result)
    images = list(_images(result))
    make_folder(folder)
    said = [f"- {table.file}: {table.about}" for table in made]
    if images:
        make_folder(folder / "images")
        said.append(
            "- images/ATTACK-PROTECTION-NUMBER-original.png and -reconstruction.png: records that an attack aimed at, "
            "and what it made of them."
        )
    readme = "\n".join(
        (
            f"# tacit compare on {words.printable(words.dataset(result))}",
            "",
            "Figures are as in report.json. Intervals are 95 %. Text that begins with a sign that spreadsheets take for a "
            "formula has an apostrophe in front. UTF-8, commas, a line of names first.",
            "",
            *said,
            "",
        )
    )
    files: list[tuple[Path, str | bytes]] = [
        (folder / "README.md", readme),
        *((folder / table.file, csv_text(table)) for table in made),
        *((folder / "images" / image, png) for image, png in images),
    ]
    for path, content in files:
        write_file(path, content)
    return [path for path, _ in files]


def _images(result: Result) -> Iterator[tuple[str, bytes]]:
    taken: set[str] = set()
    for row, attack, cell in _cells(result):
        for i, pair in enumerate((cell.get("figures") or {}).get("images") or [], 1):
            for part in ("original", "reconstruction"):
                address = pictures.png_address(pair.get(part))
                stem = f"{file_name(attack['name'])}-{file_name(row['name'])}-{i}-{part}"
                while stem.lower() in taken:
                    stem += "-2"
                if address is not None:
                    taken.add(stem.lower())
                    yield f"{stem}.png", base64.b64decode(address.partition(",")[2])
