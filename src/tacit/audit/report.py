"""A comparison as files: Report <-> JSON <-> HTML.

The input everywhere is the plain dictionary that ``tacit compare --json`` prints. The page is one
file: no script, no font, no picture and no style comes from anywhere else, and its content policy
forbids it. Every text in it is escaped. A verdict is a word, a symbol and a border before it is a
colour.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import jinja2

from tacit.audit import pictures, words
from tacit.audit.words import Result
from tacit.core.errors import DataError, OutputError

SCHEMA = 1

_UNPROTECTED = ("plain", "unprotected", "none")

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


# --- the page ---------------------------------------------------------------------------------


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


def _page(result: Result) -> dict[str, Any]:
    attacks = list(result.get("attacks") or [])
    protections = words.protections(result)
    scales = [pictures.scale(protections, attack) for attack in attacks]
    rows = []
    for r, protection in enumerate(protections):
        cells = [
            _cell_view(cell, attack, scale, f"cell-{r}-{a}")
            for a, (cell, attack, scale) in enumerate(
                zip(words.cells(protection, attacks), attacks, scales, strict=True)
            )
        ]
        rows.append(_row_view(protection, cells, f"protection-{r}"))
    columns = [
        {
            "id": f"attack-{a}",
            "name": attack["name"],
            "title": attack.get("title") or attack["name"],
            "metric": words.metric(str(attack.get("metric") or "")),
            "explains": attack.get("explains"),
            "chance_means": attack.get("chance_means"),
            "roc": pictures.roc_curves(protections, attack),
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
        "states": [state for state in words.STATES if state.slug in shown],
        "rules": words.STATES[:4],
        "bases": BASES,
        "facts": _facts(result),
        "settings": words.pairs(result.get("settings")),
        "machine": words.pairs(result.get("machine")),
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
        "accuracy": words.percent(protection.get("accuracy")),
        "accuracy_members": (
            words.percent(protection["accuracy_members"])
            if protection.get("accuracy_members") is not None
            else None
        ),
        "accuracy_interval": (
            f"{words.percent(interval[0])} to {words.percent(interval[1])}"
            if words.is_pair(interval)
            else None
        ),
        "seconds": words.seconds(cost.get("seconds")),
        "bytes": words.size(words.traffic(cost)),
        "messages": words.count(cost.get("messages")),
        "rounds": words.count(cost.get("rounds")),
        "per_role": [
            {
                "role": role,
                "seconds": words.seconds(part.get("seconds")),
                "bytes": words.size(words.traffic(part)),
                "received": words.size(part.get("bytes_received")),
                "messages": words.count(part.get("messages")),
            }
            for role, part in (cost.get("per_role") or {}).items()
            if isinstance(part, Mapping)
        ],
        "claims": [_claim_view(claim) for claim in protection.get("claims") or []],
        "opened": protection.get("opened"),
        "opened_to": words.said(protection["opened_to"]) if protection.get("opened_to") else None,
        "unprotected": _unprotected(protection) and not protection.get("control"),
        "settings": words.pairs(protection.get("settings")),
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
        "parts": words.pairs(value) if isinstance(value, Mapping) else [],
        "value": None if value is None or isinstance(value, Mapping) else words.said(value),
        "interval": words.interval(claim.get("interval"), "") if claim.get("interval") else None,
    }


def _cell_view(
    cell: Result | None, attack: Result, scale: tuple[float, float] | None, ident: str
) -> dict[str, Any]:
    state = words.state(cell)
    cell = cell or {}
    metric = str(cell.get("metric") or attack.get("metric") or "")
    measured = words.measured(cell)
    images = []
    for i, pair in enumerate((cell.get("figures") or {}).get("images") or []):
        images.append(
            {
                "caption": pair.get("caption") or f"record {i + 1}",
                "original": pictures.png_address(pair.get("original")),
                "reconstruction": pictures.png_address(pair.get("reconstruction")),
            }
        )
    heat = 0
    chance = cell.get("chance")
    if state.slug == "leaks" and measured and scale and words.is_number(chance):
        reach = (cell["value"] - chance) / (scale[1] - chance) if scale[1] > chance else 1.0
        heat = 1 + (reach > 1 / 3) + (reach > 2 / 3)
    return {
        "id": ident,
        "state": state,
        "heat": heat,
        "attack": attack.get("title") or attack["name"],
        "metric": words.metric(metric),
        "value": words.figure(cell.get("value"), metric) if measured else None,
        "interval": words.interval(cell.get("interval"), metric) if cell.get("interval") else None,
        "chance": words.figure(chance, metric) if chance is not None else None,
        "bar": pictures.bar(cell, scale) if measured and scale else None,
        "n": words.count(cell.get("n")),
        "seconds": words.seconds(cell.get("seconds")),
        "why": cell.get("why"),
        "error": cell.get("error"),
        "knowledge": words.pairs(cell.get("knowledge")),
        "details": words.pairs(cell.get("details")),
        "images": images,
    }


def _unprotected(protection: Result) -> bool:
    return bool(protection.get("unprotected")) or protection["name"] in _UNPROTECTED


def _headline(result: Result) -> str:
    """The result in one or two sentences."""
    attacks = list(result.get("attacks") or [])
    everyone = [p for p in words.protections(result) if not p.get("control")]
    if not attacks or not everyone:
        return "Nothing was measured."
    unprotected = [p for p in everyone if _unprotected(p)]
    if not unprotected:
        return "No unprotected row was run, so nothing in this comparison can be called contained."
    plainly = {
        a["name"]: {words.state(words.cells(p, [a])[0]).slug for p in unprotected} for a in attacks
    }
    tried = [a for a in attacks if plainly[a["name"]] & set(words.VERDICTS[:3])]
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
        slugs = [words.state(cell).slug for cell in words.cells(protection, worked)]
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
    return {"name": name, "citation": citation, "rest": words.pairs(said)}


def _facts(result: Result) -> list[tuple[str, Any]]:
    facts = {
        "tacit": result.get("version"),
        "commit": result.get("commit"),
        "took": words.seconds(result.get("seconds")) if result.get("seconds") else None,
        "finished": "yes" if result.get("complete", True) else "no",
    }
    return [(key, value) for key, value in facts.items() if value]
