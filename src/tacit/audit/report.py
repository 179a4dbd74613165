"""A comparison as files: Report <-> JSON <-> HTML, and as a table for the terminal.

The input everywhere is the plain dictionary that ``tacit compare --json`` prints. The page is one
file: no script, no font, no picture and no style comes from anywhere else, and its content policy
forbids it. Every text in it is escaped. A verdict is a word, a symbol and a border before it is a
colour.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import os
import re
import struct
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from tacit.core.errors import DataError, OutputError

SCHEMA = 1
Result = Mapping[str, Any]

_UNPROTECTED = ("plain", "unprotected", "none")
_IMAGE_SIDE = 112
_ROC_FLOOR = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a cell is shown.

    Args:
        slug: names it in the page's style.
        symbol: one character.
        word: what the cell says.
        meaning: the legend's sentence.
        style: of the terminal.
    """

    slug: str
    symbol: str
    word: str
    meaning: str
    style: str


STATES = (
    State(
        slug="leaks",
        symbol="▲",
        word="leaks",
        meaning="The whole 95 % interval lies above chance.",
        style="bold red",
    ),
    State(
        slug="contained",
        symbol="○",
        word="contained",
        meaning="The interval includes chance, and the same attack leaks on an unprotected row of "
        "this run. Measured, not proved: a stronger attack may still succeed.",
        style="blue",
    ),
    State(
        slug="inconclusive",
        symbol="?",
        word="inconclusive",
        meaning="Anything else: the interval lies below chance, or the attack leaks on no "
        "unprotected row either, so that its failure here shows nothing.",
        style="yellow",
    ),
    State(
        slug="no-access",
        symbol="–",
        word="no access",
        meaning="Whoever stands there receives nothing that this attack could work on.",
        style="dim",
    ),
    State(
        slug="failed",
        symbol="!",
        word="failed",
        meaning="The cell stopped with an error, which its details give.",
        style="bold magenta",
    ),
    State(
        slug="absent",
        symbol="·",
        word="not run",
        meaning="No measurement: left out, or the run ended before it.",
        style="dim",
    ),
)
_BY_SLUG = {state.slug: state for state in STATES}
_VERDICTS = ("leaks", "contained", "inconclusive", "no-access")

BASES = {
    "PROVED": "follows from the protocol under the stated assumptions",
    "ACCOUNTED": "a bound on privacy loss that an accountant computed from what was released",
    "MEASURED": "seen in this run against the attacks named; not a guarantee",
    "ASSUMED": "taken for granted, and not checked here",
}


# --- files ------------------------------------------------------------------------------------


def write_report(result: Result, folder: Path) -> None:
    """Write `result` as ``report.json`` and ``report.html``.

    Each file is written beside its place and moved there, so that a reader sees the old one or the
    new one, never half of either. The JSON goes first: no result is lost if the page fails.

    Args:
        result: what ``tacit compare --json`` prints; ``"schema": 1`` is added where it is missing.
        folder: made if it does not exist.

    Raises:
        DataError: the result holds something else than plain values, or has another schema.
        OutputError: the folder cannot be made or written.
    """
    plain = _plain({"schema": SCHEMA, **result}, "result")
    _check(plain, "the result")
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"a folder to write the report in expected, {folder} cannot be one "
            f"({error.strerror or error}): give another"
        ) from error
    _write(folder / "report.json", text + "\n")
    _write(folder / "report.html", render_html(plain))


def read_report(folder: Path) -> dict[str, Any]:
    """Read back what `write_report` wrote.

    Args:
        folder: holds ``report.json``.

    Returns:
        The result; figures that are not finite are the strings "inf", "-inf" and "nan".

    Raises:
        DataError: there is no report, it is not a tacit report, or another version's.
    """
    path = folder / "report.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"a report of tacit compare expected, {path} cannot be read "
            f"({getattr(error, 'strerror', None) or error}): give the folder named in --out"
        ) from error
    try:
        result = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): run tacit compare again") from error
    _check(result, str(path))
    return dict(result)


def _check(result: object, where: str) -> None:
    """Refuse what this version cannot show."""
    if not isinstance(result, dict) or result.get("command") != "compare":
        raise DataError(f"{where} is not a report of tacit compare: run it with --out")
    if result.get("schema") != SCHEMA:
        raise DataError(
            f"a report of schema {SCHEMA} expected, {where} has {result.get('schema', 'none')!s:.20} "
            f"(tacit {result.get('version', 'of unknown version')!s:.20}): it comes from another "
            "version; run tacit compare again"
        )
    attacks, protections = result.get("attacks"), result.get("protections")
    sound = (
        isinstance(attacks, list)
        and isinstance(protections, list)
        and all(isinstance(a, dict) and isinstance(a.get("name"), str) for a in attacks)
        and all(
            isinstance(p, dict)
            and isinstance(p.get("name"), str)
            and isinstance(p.get("cells"), dict)
            and all(c is None or isinstance(c, dict) for c in p["cells"].values())
            for p in protections
        )
    )
    if not sound:
        raise DataError(
            f"attacks and protections with names and cells expected, {where} lacks them: "
            "the report is damaged; run tacit compare again"
        )


def _plain(value: object, path: str) -> Any:
    """`value` in JSON's own types; figures that are not finite become words."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        figure = float(value)
        return figure if math.isfinite(figure) else str(figure)
    raise DataError(
        f"plain values expected in a report, {type(value).__name__} came at {path}: "
        "convert it to numbers, text, lists or dictionaries"
    )


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            with draft.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): free space, change its rights, "
            "or give another folder"
        ) from error


# --- what the page and the terminal show -------------------------------------------------------


def render_html(result: Result) -> str:
    """The report as one self-contained page.

    Args:
        result: what ``tacit compare --json`` prints; what is missing in an unfinished run is shown
            as missing.
    """
    source = resources.files("tacit.audit").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(_page(result))


def matrix_table(result: Result, *, width: int = 100) -> Table:
    """The matrix for a terminal: protections down, attacks across.

    Args:
        result: what ``tacit compare --json`` prints.
        width: columns of the terminal.

    Returns:
        A table; with many attacks several parts below each other.
    """
    attacks = list(result.get("attacks") or [])
    each = max(1, (width - 25) // 15)  # names and costs take 25 columns, an attack 15
    groups = [attacks[i : i + each] for i in range(0, len(attacks), each)] or [[]]
    tables = [_terminal_part(result, group, first=i == 0) for i, group in enumerate(groups)]
    shown = {_state(cell).slug for p in _protections(result) for cell in _cells(p, attacks)}
    used = [state for state in STATES if state.slug in shown]
    legend = Text("  ".join(f"{state.symbol} {state.word}" for state in used), style="dim")
    legend.append("\nbelow: value, [95 % interval]; contained is measured, not proved", style="dim")
    whole = Table.grid(padding=(0, 0, 1, 0))
    for table in tables:
        whole.add_row(table)
    whole.add_row(legend)
    return whole


def _terminal_part(result: Result, attacks: Sequence[Result], *, first: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, leading=1
    )
    table.add_column(Text("protection"), width=14, overflow="fold")
    if first:
        table.add_column(Text("accuracy\nand cost"), width=8, overflow="fold")
    for attack in attacks:
        table.add_column(Text(_broken(attack["name"])), width=14, overflow="fold")
    protections = sorted(_protections(result), key=lambda p: bool(p.get("control")))
    for protection in protections:
        control = bool(protection.get("control"))
        name = Text(_broken(protection["name"]), style="italic" if control else "bold")
        if control:
            name.append("\n(a control,\nbroken on\npurpose)", style="dim")
        row = [name]
        if first:
            cost = protection.get("cost") or {}
            lines = [
                _percent(protection.get("accuracy")),
                _seconds(cost.get("seconds")),
                _bytes(_bytes_of(cost)),
            ]
            row.append(Text("\n".join(lines)))
        for cell in _cells(protection, attacks):
            state = _state(cell)
            text = Text(f"{state.symbol} {state.word}", style=state.style)
            if cell and _measured(cell):
                metric = str(cell.get("metric") or "")
                text.append(f"\n{_figure(cell.get('value'), metric)}", style="default not bold")
                text.append(f"\n{_interval(cell.get('interval'), metric)}", style="dim not bold")
            row.append(text)
        table.add_row(*row)
    return table


def _broken(name: str, width: int = 14) -> str:
    """A name over several lines, broken at its own signs: what one would type stays readable."""
    lines = [""]
    for part in re.findall(r"@?[^-@]*-?", _printable(name)):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _protections(result: Result) -> list[Any]:
    return list(result.get("protections") or [])


def _unprotected(protection: Result) -> bool:
    return bool(protection.get("unprotected")) or protection["name"] in _UNPROTECTED


def _cells(protection: Result, attacks: Iterable[Result]) -> list[Any]:
    cells = protection.get("cells") or {}
    return [cells.get(attack["name"]) for attack in attacks]


def _state(cell: Result | None) -> State:
    if not cell:
        return _BY_SLUG["absent"]
    if cell.get("error"):
        return _BY_SLUG["failed"]
    found = cell.get("verdict")
    return _BY_SLUG[found if found in _VERDICTS else "absent"]


def _measured(cell: Result) -> bool:
    return isinstance(cell.get("value"), int | float) and not cell.get("error")


def _page(result: Result) -> dict[str, Any]:
    attacks = list(result.get("attacks") or [])
    protections = _protections(result)
    scales = [_scale(protections, attack) for attack in attacks]
    rows = []
    for r, protection in enumerate(protections):
        cells = [
            _cell_view(cell, attack, scale, f"cell-{r}-{a}")
            for a, (cell, attack, scale) in enumerate(
                zip(_cells(protection, attacks), attacks, scales, strict=True)
            )
        ]
        rows.append(_row_view(protection, cells, f"protection-{r}"))
    columns = [
        {
            "id": f"attack-{a}",
            "name": attack["name"],
            "title": attack.get("title") or attack["name"],
            "metric": _metric(str(attack.get("metric") or "")),
            "explains": attack.get("explains"),
            "chance_means": attack.get("chance_means"),
            "roc": _roc_view(protections, attack),
            "cells": [(row, row["cells"][a]) for row in rows],
            "pictured": [(row, row["cells"][a]) for row in rows if row["cells"][a]["images"]],
        }
        for a, attack in enumerate(attacks)
    ]
    shown = {cell["state"].slug for row in rows for cell in row["cells"]}
    return {
        "headline": _headline(result),
        "dataset": _dataset(result.get("dataset"), result.get("data")),
        "warnings": _warnings(result, rows),
        "seeded": bool(result.get("seeded")),
        "attacks": columns,
        "rows": [row for row in rows if not row["control"]],
        "controls": [row for row in rows if row["control"]],
        "states": [state for state in STATES if state.slug in shown],
        "rules": STATES[:4],
        "bases": BASES,
        "facts": _facts(result),
        "settings": _pairs(result.get("settings")),
        "machine": _pairs(result.get("machine")),
    }


def _row_view(protection: Result, cells: list[Any], ident: str) -> dict[str, Any]:
    cost = protection.get("cost") or {}
    interval = protection.get("accuracy_interval")
    return {
        "id": ident,
        "name": protection["name"],
        "title": protection.get("title") or protection["name"],
        "paper": protection.get("paper"),
        "control": bool(protection.get("control")),
        "accuracy": _percent(protection.get("accuracy")),
        "accuracy_members": (
            _percent(protection["accuracy_members"])
            if protection.get("accuracy_members") is not None
            else None
        ),
        "accuracy_interval": (
            f"{_percent(interval[0])} to {_percent(interval[1])}" if _is_pair(interval) else None
        ),
        "seconds": _seconds(cost.get("seconds")),
        "bytes": _bytes(_bytes_of(cost)),
        "messages": _count(cost.get("messages")),
        "rounds": _count(cost.get("rounds")),
        "per_role": [
            {
                "role": role,
                "seconds": _seconds(part.get("seconds")),
                "bytes": _bytes(_bytes_of(part)),
                "received": _bytes(part.get("bytes_received")),
                "messages": _count(part.get("messages")),
            }
            for role, part in (cost.get("per_role") or {}).items()
            if isinstance(part, Mapping)
        ],
        "claims": [_claim_view(claim) for claim in protection.get("claims") or []],
        "opened": protection.get("opened"),
        "opened_to": _said(protection["opened_to"]) if protection.get("opened_to") else None,
        "unprotected": _unprotected(protection) and not protection.get("control"),
        "settings": _pairs(protection.get("settings")),
        "cells": cells,
    }


def _claim_view(claim: Result) -> dict[str, Any]:
    value, basis = claim.get("value"), str(claim.get("basis") or "ASSUMED")
    return {
        "statement": claim.get("statement"),
        "basis": basis,
        "known": basis in BASES,
        "source": claim.get("source"),
        "assumes": list(claim.get("assumes") or []),
        "parts": _pairs(value) if isinstance(value, Mapping) else [],
        "value": None if value is None or isinstance(value, Mapping) else _said(value),
        "interval": _interval(claim.get("interval"), "") if claim.get("interval") else None,
    }


def _cell_view(
    cell: Result | None, attack: Result, scale: tuple[float, float] | None, ident: str
) -> dict[str, Any]:
    state = _state(cell)
    cell = cell or {}
    metric = str(cell.get("metric") or attack.get("metric") or "")
    measured = _measured(cell)
    images = []
    for i, pair in enumerate((cell.get("figures") or {}).get("images") or []):
        images.append(
            {
                "caption": pair.get("caption") or f"record {i + 1}",
                "original": _picture(pair.get("original")),
                "reconstruction": _picture(pair.get("reconstruction")),
            }
        )
    heat = 0
    chance = cell.get("chance")
    if state.slug == "leaks" and measured and scale and _is_number(chance):
        reach = (cell["value"] - chance) / (scale[1] - chance) if scale[1] > chance else 1.0
        heat = 1 + (reach > 1 / 3) + (reach > 2 / 3)
    return {
        "id": ident,
        "state": state,
        "heat": heat,
        "attack": attack.get("title") or attack["name"],
        "metric": _metric(metric),
        "value": _figure(cell.get("value"), metric) if measured else None,
        "interval": _interval(cell.get("interval"), metric) if cell.get("interval") else None,
        "chance": _figure(chance, metric) if chance is not None else None,
        "bar": _bar(cell, scale) if measured and scale else None,
        "n": _count(cell.get("n")),
        "seconds": _seconds(cell.get("seconds")),
        "why": cell.get("why"),
        "error": cell.get("error"),
        "knowledge": _pairs(cell.get("knowledge")),
        "details": _pairs(cell.get("details")),
        "images": images,
    }


def _headline(result: Result) -> str:
    """The result in one or two sentences."""
    attacks = list(result.get("attacks") or [])
    everyone = [p for p in _protections(result) if not p.get("control")]
    if not attacks or not everyone:
        return "Nothing was measured."
    unprotected = [p for p in everyone if _unprotected(p)]
    if not unprotected:
        return "No unprotected row was run, so nothing in this comparison can be called contained."
    plainly = {a["name"]: {_state(_cells(p, [a])[0]).slug for p in unprotected} for a in attacks}
    tried = [a for a in attacks if plainly[a["name"]] & set(_VERDICTS[:3])]
    worked = [a for a in tried if "leaks" in plainly[a["name"]]]
    if not worked:
        return (
            "No attack leaked on the unprotected model, so this run cannot tell what the "
            "protections contain."
        )
    total = len(worked)
    if total == len(tried):
        said = "The attack leaks" if total == 1 else f"All {total} attacks leak"
    else:
        said = f"{total} of {len(tried)} attacks leak{'s' if total == 1 else ''}"
    said += " without protection."
    held, shut_out = [], False
    for protection in everyone:
        if _unprotected(protection):
            continue
        slugs = [_state(cell).slug for cell in _cells(protection, worked)]
        shut_out = shut_out or "no-access" in slugs
        count = slugs.count("contained") + slugs.count("no-access")
        held.append((count, str(protection.get("title") or protection["name"])))
    if not held:
        return said
    verb = "contained or shut out" if shut_out else "contained"
    held.sort(key=lambda pair: -pair[0])
    if len(held) > 4:
        full = sum(count == total for count, _ in held)
        none = sum(count == 0 for count, _ in held)
        every = "it" if total == 1 else "every one of them"
        rest = [(len(held) - full - none, "some"), (none, "none")]
        others = ", ".join(f"{count} for {which}" for count, which in rest if count)
        others = f"; {others.replace(' for', ' did for', 1)}" if others else ""
        return f"{said} Of {len(held)} protections {full or 'none'} {verb} {every}{others}."
    parts = []
    for count, title in held:
        amount = "none" if count == 0 else f"all {total}" if count == total > 1 else str(count)
        named = f"“{title}”" if "," in title else title
        # A figure must not end a line, apart from the name that it belongs to.
        parts.append(f"{amount} under\N{NO-BREAK SPACE}{named}")
    return f"{said} {verb.capitalize()}: {', '.join(parts)}."


def _warnings(result: Result, rows: list[Any]) -> list[str]:
    warnings = []
    if result.get("complete") is False:
        warnings.append("This run did not finish. Cells marked “not run” are missing, not safe.")
    failed = sum(cell["state"].slug == "failed" for row in rows for cell in row["cells"])
    if failed:
        noun = "cell" if failed == 1 else "cells"
        warnings.append(f"{failed} {noun} stopped with an error, given in the details below.")
    for row in rows:
        if row["control"] and not any(cell["state"].slug == "leaks" for cell in row["cells"]):
            warnings.append(
                f"No attack leaks on the control “{row['title']}”, which is broken on purpose: its "
                "protection’s verdicts are not to be trusted."
            )
    return warnings


def _dataset(dataset: object, more: object) -> dict[str, Any]:
    """What is said of the data: `dataset` is a name or a description, `more` describes a name."""
    said: dict[str, Any] = {} if isinstance(dataset, Mapping) else {"name": dataset}
    for part in (dataset, more):
        said |= part if isinstance(part, Mapping) else {}
    name, citation = str(said.pop("name", None) or "unnamed data"), said.pop("citation", None)
    return {"name": name, "citation": citation, "rest": _pairs(said)}


def _facts(result: Result) -> list[tuple[str, Any]]:
    facts = {
        "tacit": result.get("version"),
        "commit": result.get("commit"),
        "took": _seconds(result.get("seconds")) if result.get("seconds") else None,
        "finished": "yes" if result.get("complete", True) else "no",
    }
    return [(key, value) for key, value in facts.items() if value]


# --- figures ------------------------------------------------------------------------------------


def _scale(protections: Sequence[Result], attack: Result) -> tuple[float, float] | None:
    """The range that one attack's values, intervals and chances span, over all protections."""
    found: list[float] = []
    for protection in protections:
        cell = _cells(protection, [attack])[0]
        if cell and _measured(cell):
            interval = cell.get("interval")
            ends = interval if _is_pair(interval) else ()
            found += [v for v in (cell["value"], cell.get("chance"), *ends) if _is_number(v)]
    return (min(found), max(found)) if found else None


def _bar(cell: Result, scale: tuple[float, float]) -> dict[str, float | None]:
    """Where value, interval and chance lie, 0 to 100, in a cell's drawing."""
    low, high = scale
    span = (high - low) or 1.0

    def place(value: Any) -> float | None:
        # Room at both ends for half a mark.
        return round(3 + 94 * (value - low) / span, 1) if _is_number(value) else None

    interval = cell.get("interval")
    ends = interval if _is_pair(interval) else (None, None)
    return {
        "value": place(cell["value"]),
        "low": place(ends[0]),
        "high": place(ends[1]),
        "chance": place(cell.get("chance")),
    }


def _picture(image: object) -> str | None:
    """An image, H x W or H x W x 3 in [0, 1], as a PNG data address; None for something else."""
    try:
        pixels = np.asarray(image, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        return None
    pixels = (np.nan_to_num(pixels, nan=0.0).clip(0, 1) * 255).round().astype(np.uint8)
    # Whole pixels repeated: sharp in every viewer, and deflate makes them small again.
    times = max(1, math.ceil(_IMAGE_SIDE / max(pixels.shape[:2])))
    pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    lines = b"".join(b"\x00" + line.tobytes() for line in pixels)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")):
        png += struct.pack(">I", len(body)) + kind + body
        png += struct.pack(">I", zlib.crc32(kind + body))
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


_DASHES = ("", "7 4", "2 3", "10 3 2 3", "14 5", "5 2 1 2 1 2", "1 5", "12 3 4 3")


def _roc_view(protections: Sequence[Result], attack: Result) -> dict[str, Any] | None:
    """One drawing of all protections' ROC curves under an attack, both axes logarithmic."""
    curves = []
    for i, protection in enumerate(protections):
        cell = _cells(protection, [attack])[0] or {}
        curve = (cell.get("figures") or {}).get("roc") or {}
        fpr, tpr = curve.get("fpr") or [], curve.get("tpr") or []
        if len(fpr) == len(tpr) > 1 and all(_is_number(v) for v in (*fpr, *tpr)):
            curves.append((i, protection, cell, list(zip(fpr, tpr, strict=True))))
    if not curves:
        return None
    smallest = min(x for *_, points in curves for x, _ in points if x > 0)
    # One decade at least; below ten per decade the curve is made of single records.
    decades = max(1, math.ceil(-math.log10(max(smallest, _ROC_FLOOR)) - 1e-9))
    left, top, side = 62.0, 10.0, 320.0

    def place(rate: float) -> float:
        return side * (math.log10(max(rate, 10.0**-decades)) + decades) / decades

    lines = []
    for i, protection, cell, points in curves:
        path: list[tuple[float, float]] = []
        for x, y in _interpolated(points, 10.0**-decades):
            at = left + place(x), top + side - place(y)
            if not path or abs(at[0] - path[-1][0]) + abs(at[1] - path[-1][1]) > 0.5:
                path.append(at)
        path.append((left + side, top))  # every curve ends there
        lines.append(
            {
                "path": "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in path),
                "dash": _DASHES[i % len(_DASHES)],
                "colour": i % 8,
                "title": protection.get("title") or protection["name"],
                "control": bool(protection.get("control")),
                "state": _state(cell),
                "value": _figure(cell.get("value"), str(cell.get("metric") or "")),
            }
        )
    ticks = [
        {"at": side * t / decades, "label": f"{100 * 10.0 ** (t - decades):g} %"}
        for t in range(decades + 1)
    ]
    return {"lines": lines, "ticks": ticks, "left": left, "top": top, "side": side}


def _interpolated(points: Sequence[tuple[float, float]], floor: float) -> list[tuple[float, float]]:
    """Points along a ROC curve, dense enough that its straight pieces bend as logarithms must.

    Between two thresholds a guess among equal scores reaches the straight line between them. Drawn
    straight on logarithmic axes it would promise far more true positives than there are.
    """
    dense = [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        start = max(x0, floor)
        if x1 > start * 1.05:
            for step in range(13):
                x = start * (x1 / start) ** (step / 12)
                dense.append((x, y0 + (y1 - y0) * (x - x0) / (x1 - x0)))
        else:
            dense.append((x1, y1))
    return [(x, y) for x, y in dense if x >= floor or y >= floor]


# --- words --------------------------------------------------------------------------------------


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple) and len(value) == 2


def _metric(metric: str) -> str:
    known = {"auc": "AUC", "psnr_db": "PSNR (dB)", "ssim": "SSIM", "tpr": "TPR", "fpr": "FPR"}
    return known.get(metric, metric.replace("_", " "))


def _figure(value: object, metric: str = "", *, unit: bool = True) -> str:
    """A figure as a reader wants it: three digits, with its unit."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else _printable(str(value))
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if metric.endswith("_db"):
        return f"{value:.1f}{' dB' if unit else ''}".replace("-", "−")
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    text = f"{value:.3f}" if value == 0 or 0.0095 <= abs(value) < 10 else f"{value:.3g}"
    text = text.replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "−", 1) if value < 0 else text


def _interval(interval: Any, metric: str) -> str:
    if not _is_pair(interval):
        return "–"
    ends = (_figure(end, metric, unit=False) for end in interval)
    return f"[{', '.join(ends)}]"


def _percent(value: object) -> str:
    return f"{100 * float(value):.1f} %" if isinstance(value, int | float) else "–"


def _seconds(value: object) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def _bytes_of(cost: Result) -> object:
    return cost.get("bytes", cost.get("bytes_sent"))


def _bytes(value: object) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def _printable(text: object) -> str:
    """Text without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def _said(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_said(item) for item in value) or "none"
    return _figure(value)


def _pairs(values: object) -> list[tuple[str, Any]]:
    """A dictionary as (label, text or further pairs), for nested lists of definitions."""
    if not isinstance(values, Mapping):
        return [] if values is None else [("value", _said(values))]
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        label = _metric(str(key)).replace("tpr@", "TPR at FPR ").removesuffix("fpr")
        if isinstance(value, Mapping):
            if "value" in value and set(value) <= {"value", "interval", "n"}:
                text = _figure(value["value"], str(key))
                if value.get("interval"):
                    text += f" {_interval(value['interval'], str(key))}"
                if value.get("n") is not None:
                    text += f", n = {_count(value['n'])}"
                pairs.append((label, text))
            else:
                pairs.append((label, _pairs(value)))
        elif str(key).endswith("_db"):
            pairs.append((label.removesuffix(" (dB)"), _figure(value, str(key))))
        else:
            pairs.append((label, _said(value)))
    return pairs
