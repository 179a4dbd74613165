"""What changed between two reports, and whether they may be compared at all.

A verdict became worse where a cell leaks that did not. It was lost where a cell had one and has none any more, because the
attack failed or was not run. A figure moved where each of the two values lies outside the other's 95 % interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tacit.audit import words
from tacit.audit.export import flattened
from tacit.audit.words import Result

CHANGES = ("worse", "lost", "better", "other")

_HELD = ("contained", "no-access")
_NONE = ("failed", "absent")


def difference(before: Result, after: Result) -> dict[str, Any]:
    """Compare two reports, cell by cell.

    Args:
        before: a report of ``tacit compare``.
        after: another.

    Returns:
        Plain values: ``before`` and ``after`` (what they are), ``unlike`` (settings that differ, as where, setting,
        before, after), ``unfair`` (a sentence for each reason why the two cannot simply be compared), ``only_before`` and
        ``only_after`` (protections and attacks), ``cells`` (those whose verdict or figure changed), ``rows`` (accuracy and
        cost of the protections in both), ``counts``.
    """
    rows = _shared(words.protections(before), words.protections(after))
    attacks = _shared(_attacks(before), _attacks(after))
    unlike = list(_unlike(before, after, rows, attacks))
    cells = [
        cell
        for old_row, new_row in rows
        for old, new in attacks
        if (cell := _cell(old_row, new_row, old, new)) is not None
    ]
    counts = {change: sum(cell["change"] == change for cell in cells) for change in CHANGES}
    return {
        "before": _what(before),
        "after": _what(after),
        "unfair": _unfair(before, after, unlike),
        "unlike": unlike,
        "only_before": _only(before, after),
        "only_after": _only(after, before),
        "cells": cells,
        "rows": [_row(old, new) for old, new in rows],
        "counts": {
            **counts,
            "moved": sum(cell["moved"] for cell in cells),
            "compared": len(rows) * len(attacks),
        },
    }


def is_worse(found: Mapping[str, Any]) -> bool:
    """Whether a cell leaks that did not, or has lost its verdict, or no cell could be compared."""
    counts = found["counts"]
    return bool(counts["worse"] or counts["lost"] or not counts["compared"])


def _attacks(result: Result) -> list[Any]:
    return list(result.get("attacks") or [])


def _shared(old: Sequence[Result], new: Sequence[Result]) -> list[tuple[Any, Any]]:
    named = {item["name"]: item for item in new}
    return [(item, named[item["name"]]) for item in old if item["name"] in named]


def _only(one: Result, other: Result) -> dict[str, list[str]]:
    def missing(old: Sequence[Result], new: Sequence[Result]) -> list[str]:
        names = {item["name"] for item in new}
        return [item["name"] for item in old if item["name"] not in names]

    return {
        "protections": missing(words.protections(one), words.protections(other)),
        "attacks": missing(_attacks(one), _attacks(other)),
    }


def _what(result: Result) -> dict[str, Any]:
    keys = ("version", "commit", "fingerprint")
    complete = result.get("complete") is not False
    return {
        "dataset": words.dataset(result),
        **{key: result.get(key) for key in keys},
        "complete": complete,
    }


# --- fair or not


def _unlike(
    before: Result,
    after: Result,
    rows: Sequence[tuple[Any, Any]],
    attacks: Sequence[tuple[Any, Any]],
) -> Iterator[dict[str, Any]]:
    yield from _pairs("the run", before.get("settings"), after.get("settings"))
    for old, new in rows:
        yield from _pairs(old["name"], old.get("settings"), new.get("settings"))
        if words.kind(old) != words.kind(new):
            yield _differs(old["name"], "kind", words.kind(old), words.kind(new))
    for old, new in attacks:
        if old.get("metric") != new.get("metric"):
            yield _differs(old["name"], "metric", old.get("metric"), new.get("metric"))
        yield from _unlike_attack(old, new, rows)


def _unlike_attack(
    old: Result, new: Result, rows: Sequence[tuple[Any, Any]]
) -> Iterator[dict[str, Any]]:
    """How an attack was set up otherwise, and what it knew; once, if it is the same for several rows."""
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for old_row, new_row in rows:
        here, there = words.cells(old_row, [old])[0] or {}, words.cells(new_row, [new])[0] or {}
        for part in ("attack_settings", "knowledge"):
            if here.get(part) is None or there.get(part) is None:
                continue
            for item in _pairs(old["name"], here[part], there[part]):
                found.setdefault(repr(item), ([], item))[0].append(old_row["name"])
    for names, item in found.values():
        on = "all rows" if len(names) == len(rows) > 1 else ", ".join(names)
        yield {**item, "where": f"{old['name']} on {on}"}


def _pairs(where: str, old: object, new: object) -> Iterator[dict[str, Any]]:
    here, there = dict(flattened(old)), dict(flattened(new))
    for key in dict.fromkeys((*here, *there)):
        if key not in here or key not in there or here[key] != there[key]:
            yield _differs(where, key, here.get(key), there.get(key))


def _differs(where: str, setting: str, before: object, after: object) -> dict[str, Any]:
    return {"where": where, "setting": setting, "before": before, "after": after}


def _unfair(before: Result, after: Result, unlike: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    old, new = words.dataset(before), words.dataset(after)
    if old != new:
        said.append(
            f"The data differ ({old}, then {new}): no figure of one speaks about the other."
        )
    if unlike:
        noun = "setting differs" if len(unlike) == 1 else "settings differ"
        said.append(f"{len(unlike)} {noun}: what changed may come from there.")
    for key, noun in (("version", "version of tacit"), ("commit", "commit")):
        if before.get(key) and after.get(key) and before.get(key) != after.get(key):
            said.append(f"Another {noun} ({before[key]}, then {after[key]}): the code differs.")
    if before.get("machine") != after.get("machine"):
        said.append("Another machine or other libraries: times cannot be compared.")
    for name, result in (("first", before), ("second", after)):
        if result.get("complete") is False:
            said.append(f"The {name} run did not finish: cells that are missing say nothing.")
    for row in words.protections(after):
        if words.kind(row) == "control" and not words.leaks_somewhere(row):
            said.append(
                f"No attack leaks on the control “{words.title(row)}” of the second run: its "
                "protection’s verdicts are not to be trusted."
            )
    return said


# --- what changed


def _cell(old_row: Result, new_row: Result, old: Result, new: Result) -> dict[str, Any] | None:
    here, there = words.cells(old_row, [old])[0] or {}, words.cells(new_row, [new])[0] or {}
    was, now = words.state(here).slug, words.state(there).slug
    moved = _moved(here, there, "value", "interval")
    if was == now and not moved:
        return None
    return {
        "protection": old_row["name"],
        "attack": old["name"],
        "change": _change(
            was, now, control="control" in (words.kind(old_row), words.kind(new_row))
        ),
        "moved": moved,
        "metric": there.get("metric") or here.get("metric") or new.get("metric"),
        "before": _figures(here, was),
        "after": _figures(there, now),
    }


def _change(was: str, now: str, *, control: bool) -> str:
    """What a new verdict means; that a control leaks is neither good nor bad."""
    if was == now:
        return "other"
    if now in _NONE:
        return "lost" if was not in _NONE else "other"
    if control:
        return "other"
    if now == "leaks":
        return "worse"
    if was in _HELD and now not in _HELD:
        return "lost"
    return "better" if was == "leaks" and now in _HELD else "other"


def _figures(cell: Result, slug: str) -> dict[str, Any]:
    keys = ("value", "interval", "chance", "n")
    return {"verdict": slug, **{key: cell.get(key) for key in keys}, "error": cell.get("error")}


def _moved(here: Result, there: Result, value: str, interval: str) -> bool:
    """Whether each value lies outside the other's interval."""
    old, new, was, now = (
        here.get(value), there.get(value), here.get(interval), there.get(interval),
    )  # fmt: skip
    if not words.is_number(old) or not words.is_number(new):
        return False
    return _outside(new, was) and _outside(old, now)


def _outside(value: float, ends: object) -> bool:
    if not words.is_pair(ends) or not all(words.is_number(end) for end in ends):
        return False
    return not ends[0] <= value <= ends[1]


def _row(old: Result, new: Result) -> dict[str, Any]:
    was, now = old.get("cost") or {}, new.get("cost") or {}
    found: dict[str, Any] = {"protection": old["name"]}
    for key in ("accuracy", "accuracy_interval"):
        found[key] = {"before": old.get(key), "after": new.get(key)}
    found["moved"] = _moved(old, new, "accuracy", "accuracy_interval")
    found["seconds"] = {"before": was.get("seconds"), "after": now.get("seconds")}
    found["bytes"] = {"before": words.traffic(was), "after": words.traffic(now)}
    return found


# --- in words

_SAID = {"worse": "▲ worse", "lost": "! lost", "better": "○ better", "other": "changed"}


def in_words(found: Mapping[str, Any]) -> dict[str, Any]:
    """A difference as texts, for the page and the terminal."""
    return {
        "headline": _headline(found),
        "before": _named(found["before"]),
        "after": _named(found["after"]),
        "unfair": found["unfair"],
        "only": [
            f"Only in the {name} report: {kind[:-1] if len(names) == 1 else kind} {', '.join(names)}."
            for name, side in (("first", found["only_before"]), ("second", found["only_after"]))
            for kind, names in side.items()
            if names
        ],
        "unlike": [
            {**item, "before": _said(item["before"]), "after": _said(item["after"])}
            for item in found["unlike"]
        ],
        "cells": [
            {
                "protection": cell["protection"],
                "attack": cell["attack"],
                "change": cell["change"],
                "said": "figure moved" if _same(cell) else _SAID[cell["change"]],
                "before": _side(cell["before"], cell["metric"]),
                "after": _side(cell["after"], cell["metric"]),
                "moved": cell["moved"],
            }
            for change in CHANGES
            for cell in found["cells"]
            if cell["change"] == change
        ],
        "rows": [
            {
                "protection": row["protection"],
                "moved": row["moved"],
                "accuracy": [words.percent(row["accuracy"][side]) for side in _SIDES],
                "interval": [_range(row["accuracy_interval"][side]) for side in _SIDES],
                "seconds": [words.seconds(row["seconds"][side]) for side in _SIDES],
                "bytes": [words.size(row["bytes"][side]) for side in _SIDES],
            }
            for row in found["rows"]
        ],
    }


_SIDES = ("before", "after")


def _headline(found: Mapping[str, Any]) -> str:
    counts = found["counts"]
    noun = "cell" if counts["compared"] == 1 else "cells"
    if not counts["compared"]:
        return "The two reports have no cell in common."
    verdicts = sum(cell["before"]["verdict"] != cell["after"]["verdict"] for cell in found["cells"])
    if not found["cells"]:
        return f"No verdict changed and no figure moved, in {counts['compared']} {noun}."
    parts = [f"{counts[change]} {change}" for change in CHANGES[:3] if counts[change]]
    kinds = f" ({', '.join(parts)})" if parts else ""
    return (
        f"{verdicts} of {counts['compared']} verdicts changed{kinds}; {counts['moved']} "
        f"figure{'' if counts['moved'] == 1 else 's'} moved beyond both intervals."
    )


def _named(what: Mapping[str, Any]) -> str:
    parts = [f"tacit {what['version']}" if what["version"] else "", str(what["commit"] or "")]
    return ", ".join([what["dataset"], *(part for part in parts if part)])


def _same(cell: Mapping[str, Any]) -> bool:
    return bool(cell["before"]["verdict"] == cell["after"]["verdict"])


def _side(side: Mapping[str, Any], metric: object) -> dict[str, Any]:
    shown = side["value"] is not None and not side["error"]
    return {
        "state": words.BY_SLUG[side["verdict"]],
        "value": words.figure(side["value"], str(metric or "")) if shown else None,
        "interval": words.interval(side["interval"], str(metric or "")) if shown else None,
        "error": side["error"],
    }


def _range(ends: object) -> str:
    return f"{words.percent(ends[0])} to {words.percent(ends[1])}" if words.is_pair(ends) else "–"


def _said(value: object) -> str:
    return "not given" if value is None else words.said(value)
