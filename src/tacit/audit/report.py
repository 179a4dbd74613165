"""A comparison as files: Report <-> JSON <-> HTML.

The input everywhere is the plain dictionary that ``tacit compare --json`` prints. The page is one
file: no script, no font, no picture and no style comes from anywhere else, and its content policy
forbids it. Every text in it is escaped. A verdict is a word, a symbol and a border before it is a
colour.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import jinja2

from tacit.audit import decision, difference, export, pictures, words
from tacit.audit.decision import Choice
from tacit.audit.words import Result
from tacit.core.errors import ConfigError, DataError
from tacit.core.files import make_folder, write_file

SCHEMA = 1

_SHOWN = 4  # reconstructions of a cell beside those of other protections; the rest are in the cell

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
    plain = plain_values({"schema": SCHEMA, **result}, "result")
    _check(plain, "the result")
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    make_folder(folder)
    write_file(folder / "report.json", text + "\n")
    write_file(folder / "report.html", render_html(plain))


def read_report(folder: Path) -> dict[str, Any]:
    """Read back what `write_report` wrote.

    Args:
        folder: holds ``report.json``; or such a file itself.

    Returns:
        The result; figures that are not finite are the strings "inf", "-inf" and "nan".

    Raises:
        DataError: there is no report, it is not a tacit report, or another version's.
    """
    path = folder if folder.is_file() else folder / "report.json"
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


def plain_values(value: object, path: str) -> Any:
    """`value` in JSON's own types; figures that are not finite become words.

    Raises:
        DataError: something in it is no plain value; `path` says where.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_values(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        figure = float(value)
        return figure if math.isfinite(figure) else str(figure)
    raise DataError(
        f"plain values expected in a report, {type(value).__name__} came at {path}: "
        "convert it to numbers, text, lists or dictionaries"
    )


# --- the page ---------------------------------------------------------------------------------


def render_html(result: Result) -> str:
    """The report as one self-contained page.

    Args:
        result: what ``tacit compare --json`` prints; what is missing in an unfinished run is shown
            as missing.
    """
    return rendered("report.html.j2", r=_page(result), bases=BASES)


def render_reports(results: Sequence[Result]) -> str:
    """Several reports, each of other data, as one self-contained page.

    Args:
        results: at least one.

    Raises:
        ConfigError: there is none, or two are of the same data.
    """
    names = [words.dataset(result) for result in results]
    if not names:
        raise ConfigError("at least one report expected, none came: give folders of tacit compare")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"reports of different data expected, {names.count(twice[0])} are of {twice[0]!r}: give one "
            "for each data set, or compare two with tacit report diff"
        )
    pages = [_page(result, f"d{i}-", most=_SHOWN) for i, result in enumerate(results)]
    return rendered("reports.html.j2", pages=pages, overview=_overview(results, pages), bases=BASES)


def render_difference(found: Mapping[str, Any]) -> str:
    """What `tacit.audit.difference.difference` found, as one self-contained page."""
    return rendered("difference.html.j2", d=difference.in_words(found))


def rendered(template: str, **values: object) -> str:
    """A page from one of the templates beside this file; every text in it is escaped."""
    return _environment().get_template(template).render(states=words.STATES, **values)


@cache
def _environment() -> jinja2.Environment:
    folder = resources.files("tacit.audit")
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(result: Result, prefix: str = "", *, most: int | None = None) -> dict[str, Any]:
    """All that the page says of one report.

    Args:
        result: a report.
        prefix: begins every id, so that several reports fit in one page.
        most: images of a cell that are shown; None shows all.
    """
    attacks = list(result.get("attacks") or [])
    protections = words.protections(result)
    chosen = decision.choices(result)
    rows = []
    scales = [pictures.scale(protections, attack) for attack in attacks]
    for r, protection in enumerate(protections):
        cells = [
            _cell_view(cell, attack, scale, f"{prefix}{{}}-{r}-{a}", most)
            for a, (cell, attack, scale) in enumerate(
                zip(words.cells(protection, attacks), attacks, scales, strict=True)
            )
        ]
        rows.append(_row_view(protection, cells, f"{prefix}protection-{r}"))
    columns = [
        {
            "id": f"{prefix}attack-{a}",
            "name": attack["name"],
            "title": words.title(attack),
            "metric": words.metric(str(attack.get("metric") or "")),
            "explains": attack.get("explains"),
            "chance_means": attack.get("chance_means"),
            "vantage": words.vantage(attack),
            "roc": pictures.roc_curves(protections, attack),
            "roc_file": export.download(export.roc_table(result, attack), prefix),
            "plot": pictures.attack_plot(chosen, protections, attack),
            "cells": [(row, row["cells"][a]) for row in rows],
            "pictured": [(row, row["cells"][a]) for row in rows if row["cells"][a]["images"]],
        }
        for a, attack in enumerate(attacks)
    ]
    shown = {cell["state"].slug for row in rows for cell in row["cells"]}
    return {
        "prefix": prefix,
        "headline": _headline(result),
        "dataset": _dataset(result.get("dataset"), result.get("data")),
        "warnings": _warnings(result, rows),
        "seeded": bool(result.get("seeded")),
        "seeds": _seeds(result.get("settings")),
        "attacks": columns,
        "rows": [row for row in rows if not row["control"]],
        "controls": [row for row in rows if row["control"]],
        "decision": _decision_view(chosen, rows, attacks),
        "states": [state for state in words.STATES if state.slug in shown],
        "files": {
            table.file: export.download(table, prefix)
            for table in export.tables(result)
            if not table.file.startswith("roc-")
        },
        "facts": _facts(result),
        "settings": words.pairs(result.get("settings")),
        "machine": words.pairs(result.get("machine")),
    }


def _decision_view(
    chosen: Sequence[Choice], rows: Sequence[Mapping[str, Any]], attacks: Sequence[Result]
) -> dict[str, Any]:
    said = decision.advice(chosen)
    return {
        **said,
        "plot": pictures.decision_plot(chosen),
        "cost": pictures.cost_plot(chosen),
        "ids": [row["id"] for row in rows],
        "shapes": pictures.SHAPES,
        "attacks": sum(attack.get("about") != "model" for attack in attacks),
        "on_model": any(attack.get("about") == "model" for attack in attacks),
        "rows": [
            {
                "number": choice.index + 1,
                "title": choice.title,
                "id": rows[choice.index]["id"],
                "kind": choice.kind,
                "efficient": choice.efficient,
                "accuracy": words.percent(choice.accuracy),
                "leak": words.figure(choice.leak),
                "interval": words.interval(choice.leak_interval, "")
                if choice.leak_interval
                else "",
                "worst": choice.worst or "none had access" if choice.leak is not None else "–",
                "measured": choice.measured,
                "seconds": words.seconds(choice.seconds),
                "bytes": words.size(choice.bytes),
            }
            for choice in chosen
        ],
    }


def _overview(results: Sequence[Result], pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Verdicts, worst leaks and accuracies over several reports: what stands in any of them, once."""
    rows: dict[str, str] = {}
    columns: dict[str, str] = {}
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    ends: dict[str, list[dict[str, Any] | None]] = {}
    for i, (result, page) in enumerate(zip(results, pages, strict=True)):
        attacks = list(result.get("attacks") or [])
        columns |= {
            attack["name"]: words.title(attack)
            for attack in attacks
            if attack["name"] not in columns
        }
        views = {row["id"]: row for row in (*page["rows"], *page["controls"])}
        for r, protection in enumerate(words.protections(result)):
            if words.kind(protection) == "control":
                continue
            name = protection["name"]
            rows.setdefault(name, words.title(protection))
            view = views[f"{page['prefix']}protection-{r}"]
            for attack, cell in zip(attacks, view["cells"], strict=True):
                found = cells.setdefault((name, attack["name"]), [])
                found.append({"data": page["dataset"]["name"], "at": i, "cell": cell})
            ends.setdefault(name, [None] * len(results))[i] = page["decision"]["rows"][r]
    return {
        "names": [page["dataset"]["name"] for page in pages],
        "attacks": list(columns.values()),
        "verdicts_file": export.download(export.joined(results, export.matrix_table)),
        "decision_file": export.download(export.joined(results, export.decision_table)),
        "rows": [
            {
                "title": title,
                "cells": [
                    _counted(cells.get((name, attack), []), len(results)) for attack in columns
                ],
                "ends": ends[name],
            }
            for name, title in rows.items()
        ],
    }


def _counted(found: Sequence[Mapping[str, Any]], of: int) -> dict[str, Any]:
    """A cell over several data sets: a sign for each, and how many of which verdict."""
    signs: list[dict[str, Any] | None] = [None] * of
    for item in found:
        state = item["cell"]["state"]
        signs[item["at"]] = {
            "state": state,
            "id": item["cell"]["tile"],
            "says": f"{item['data']}: {state.word}",
        }
    slugs = [item["cell"]["state"].slug for item in found]
    leaking, tried = slugs.count("leaks"), sum(slug not in ("absent", "failed") for slug in slugs)
    return {
        "signs": signs,
        "slug": "leaks" if leaking else "",
        "says": f"leaks on {leaking} of {tried}" if tried else "not run",
    }


def _seeds(settings: object) -> list[int]:
    """The seeds that a run pooled, if it says so."""
    said = settings if isinstance(settings, Mapping) else {}
    first, count = said.get("seed"), said.get("seeds")
    if not isinstance(first, int) or not isinstance(count, int) or not 0 < count <= 1000:
        return []
    return list(range(first, first + count))


def _row_view(protection: Result, cells: list[Any], ident: str) -> dict[str, Any]:
    cost = protection.get("cost") or {}
    interval = protection.get("accuracy_interval")
    return {
        "id": ident,
        "name": protection["name"],
        "title": words.title(protection),
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
        "unprotected": words.kind(protection) == "unprotected",
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
    cell: Result | None,
    attack: Result,
    scale: tuple[float, float] | None,
    ident: str,
    most: int | None,
) -> dict[str, Any]:
    state = words.state(cell)
    cell = cell or {}
    metric = str(cell.get("metric") or attack.get("metric") or "")
    measured = words.measured(cell)
    pairs = list((cell.get("figures") or {}).get("images") or [])
    images = [
        {
            "caption": pair.get("caption") or f"record {i + 1}",
            "beside": pair.get("beside"),
            "original": pictures.png_address(pair.get("original")),
            "reconstruction": pictures.png_address(pair.get("reconstruction")),
        }
        for i, pair in enumerate(pairs[:most])
    ]
    heat = 0
    chance = cell.get("chance")
    if state.slug == "leaks" and measured and scale and words.is_number(chance):
        reach = (cell["value"] - chance) / (scale[1] - chance) if scale[1] > chance else 1.0
        heat = 1 + (reach > 1 / 3) + (reach > 2 / 3)
    leak = words.above_chance(cell.get("value"), cell)
    figures = {
        "metric": words.metric(metric),
        "value": words.figure(cell.get("value"), metric) if measured else None,
        "95 % interval": words.interval(cell["interval"], metric)
        if measured and cell.get("interval")
        else None,
        "chance": words.figure(chance, metric) if chance is not None else None,
        "leak above chance": words.figure(leak) if measured and leak is not None else None,
        "sample size": words.count(cell["n"]) if cell.get("n") else None,
        "queries": words.count(cell["queries"]) if words.is_number(cell.get("queries")) else None,
        "took": words.seconds(cell["seconds"]) if cell.get("seconds") else None,
    }
    saw = cell.get("saw")
    return {
        "id": ident.format("cell"),
        "tile": ident.format("tile"),
        "shots": ident.format("shots"),
        "state": state,
        "heat": heat,
        "attack": words.title(attack),
        "figures": [(label, text) for label, text in figures.items() if text is not None],
        "value": figures["value"],
        "interval": figures["95 % interval"],
        "bar": pictures.bar(cell, scale) if measured and scale else None,
        "why": cell.get("why"),
        "error": cell.get("error"),
        "saw": words.pairs(saw) if isinstance(saw, Mapping) else [],
        "saw_said": None if saw is None or isinstance(saw, Mapping) else words.said(saw),
        "attack_settings": words.pairs(cell.get("attack_settings")),
        "knowledge": words.pairs(cell.get("knowledge")),
        "details": words.pairs(cell.get("details")),
        "images": images[:_SHOWN],
        "more_images": images[_SHOWN:],
        "left_out": len(pairs) - len(images),
    }


def _headline(result: Result) -> str:
    """The result in one or two sentences."""
    attacks = list(result.get("attacks") or [])
    everyone = [p for p in words.protections(result) if not p.get("control")]
    if not attacks or not everyone:
        return "Nothing was measured."
    unprotected = [p for p in everyone if words.kind(p) == "unprotected"]
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
        if words.kind(protection) == "unprotected":
            continue
        slugs = [words.state(cell).slug for cell in words.cells(protection, worked)]
        shut_out = shut_out or "no-access" in slugs
        count = slugs.count("contained") + slugs.count("no-access")
        held.append((count, words.title(protection)))
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
