"""An audit of one model as files: ``report.json``, and a page that says in plain language what was found.

The input is the plain dictionary that ``tacit audit --json`` prints. The page is one file like those of
`tacit.audit.report`: nothing comes from elsewhere, every text is escaped, a verdict is a word before it is a colour.

What leaks: both files hold scores of single records, and images of the most exposed ones where the result has them. They
are written for their user alone; whoever gets them learns which of these records were in the training data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tacit.audit import export, pictures, words
from tacit.audit.export import Table
from tacit.audit.report import plain_values, rendered
from tacit.audit.words import Result
from tacit.core.errors import DataError
from tacit.core.files import make_folder, write_file

SCHEMA = 1

_CHANCE = 0.5  # of AUC and of balanced accuracy
_SHOWN = 15  # slices of a table; the rest are folded

_KINDS = {
    "module": "a torch module",
    "callable": "a function",
    "onnx": "an ONNX model",
    "endpoint": "an HTTP endpoint",
    "scores": "saved scores",
    "answers": "saved answers",
}
_CHECKS = {
    "overlap": "Records on both sides",
    "duplicates": "Records that occur twice",
    "same-labels": "The same classes on both sides",
    "same-inputs": "The same kind of inputs on both sides",
}


# --- files


def write_audit(result: Result, folder: Path) -> None:
    """Write `result` as ``report.json`` and ``report.html``, for their user alone.

    The JSON goes first: no result is lost if the page fails. A reader sees old files or new ones, never half of one.

    Args:
        result: what ``tacit audit --json`` prints; ``"schema": 1`` is added where it is missing.
        folder: made, for its user alone, if it does not exist; the rights of one that exists stay as they are.

    Raises:
        DataError: the result holds something else than plain values, or is not an audit of this schema.
        OutputError: the folder cannot be made or written.
    """
    plain = plain_values({"schema": SCHEMA, **result}, "result")
    _check(plain)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    make_folder(folder, private=True)
    write_file(folder / "report.json", text + "\n", private=True)
    write_file(folder / "report.html", render_audit(plain), private=True)


def _check(result: Result) -> None:
    if result.get("command") != "audit" or result.get("schema") != SCHEMA:
        raise DataError(
            f"a result of tacit audit of schema {SCHEMA} expected, one of {result.get('command')!s:.20} "
            f"of schema {result.get('schema')!s:.20} came: run tacit audit with this version"
        )


# --- the page


def render_audit(result: Result) -> str:
    """An audit as one self-contained page.

    Args:
        result: what ``tacit audit --json`` prints.

    Raises:
        DataError: it is not an audit of this schema.
    """
    _check(result)
    return rendered("audit.html.j2", a=_page(result))


def _page(result: Result) -> dict[str, Any]:
    target = result.get("target") or {}
    state = words.audit_state(result)
    attacks = _attacks(result)
    paragraphs, why = [str(text) for text in result.get("paragraphs") or []], str(result.get("why"))
    return {
        "name": str(target.get("name") or "the model"),
        "state": state,
        "states": list(words.AUDIT_STATES.values()),
        "headline": words.audit_headline(result),
        "why": None if any(why in text for text in paragraphs) else why,
        "paragraphs": paragraphs,
        "warnings": list(result.get("warnings") or []),
        "limits": [_limit_view(limit) for limit in result.get("limits") or []],
        **attacks,
        "on_model": _on_model(result),
        "confidence": result.get("confidence") or {},
        "roc": _roc(result),
        "slices": [
            _slices(of, title, key)
            for key, title in (("classes", "Class by class"), ("groups", "Group by group"))
            if (of := result.get(key))
        ],
        "exposed": _exposed(result),
        "left_out": [
            {"title": words.title(one), "name": one["name"], "why": one.get("why")}
            for one in result.get("left_out") or []
        ],
        "epsilon": _epsilon(result.get("epsilon"), doubted=bool(words.warned_checks(result))),
        "checks": [_check_view(check) for check in (result.get("data") or {}).get("checks") or []],
        "shadows": _shadows(result.get("shadows")),
        "target": _target(target),
        "data": _data(result.get("data")),
        "budget": words.pairs(
            {
                key: "no limit" if value is None else value
                for key, value in (result.get("budget") or {}).items()
            }
        ),
        "facts": [
            (label, value)
            for label, value in (
                ("tacit", result.get("version")),
                ("commit", result.get("commit")),
                ("took", words.seconds(result.get("seconds"))),
            )
            if value
        ],
        "settings": words.pairs(result.get("settings")),
        "machine": words.pairs(result.get("machine")),
        "files": {table.file: export.download(table) for table in audit_tables(result)},
    }


def _limit_view(limit: Result) -> dict[str, Any]:
    return {
        "state": words.limit_state(limit),
        "metric": words.metric(str(limit.get("metric"))),
        "limit": words.figure(limit.get("limit")),
        "value": words.figure(limit.get("value")),
        "attack": limit.get("attack"),
    }


# --- attacks


def _attacks(result: Result) -> dict[str, Any]:
    attacks = list(result.get("attacks") or [])
    metrics = [one.get("metrics") or {} for one in attacks]
    span = _span(each.get("auc") for each in metrics)
    tprs = words.tpr_metrics(attacks)
    supported = [
        name for name in tprs if any(_value(each.get(name)) is not None for each in metrics)
    ]
    views = []
    for i, (attack, each) in enumerate(zip(attacks, metrics, strict=True)):
        auc = each.get("auc") or {}
        views.append(
            {
                "id": f"attack-{i}",
                "tile": f"row-{i}",
                "name": attack["name"],
                "title": words.title(attack),
                "strongest": attack["name"] == result.get("strongest"),
                "access": attack.get("access"),
                "explains": attack.get("explains"),
                "source": attack.get("source"),
                "auc": _entry(auc, _CHANCE, span),
                "balanced": _entry(each.get("balanced_accuracy") or {}, _CHANCE),
                "tprs": [_entry(each.get(name) or {}, words.rate(name)) for name in supported],
                "queries": words.count(attack.get("queries")),
                "seconds": words.seconds(attack.get("seconds")),
                "facts": [
                    (label, text)
                    for label, text in (
                        ("name", attack["name"]),
                        ("sees", attack.get("access")),
                        ("needs", attack.get("needs") or "nothing more"),
                        ("source", attack.get("source")),
                        ("queries", words.count(attack.get("queries"))),
                        ("took", words.seconds(attack.get("seconds"))),
                    )
                    if text
                ],
                "figures": words.pairs(_worded(each)),
            }
        )
    return {
        "attacks": views,
        "span": _ticks(span),
        "tprs": [words.metric(name) for name in supported],
        # What no attack could support is said once, and not in every row.
        "unsupported": [
            (words.metric(name), why)
            for name in tprs
            if name not in supported
            for why in list(
                dict.fromkeys(_why(each.get(name)) for each in metrics if name in each)
            )[:1]
        ],
    }


def _worded(metrics: Result) -> dict[str, Any]:
    """All figures of an attack for a list; of one that is not there, why."""
    return {
        name: _why(entry)
        if _value(entry) is None
        else {key: entry.get(key) for key in ("value", "interval", "n")}
        | ({"p-value": entry["p_value"]} if entry.get("p_value") is not None else {})
        for name, entry in metrics.items()
        if isinstance(entry, Mapping)
    }


def _value(entry: object) -> float | None:
    value = entry.get("value") if isinstance(entry, Mapping) else None
    return value if words.is_number(value) else None


def _why(entry: object) -> str:
    said = entry if isinstance(entry, Mapping) else {}
    return str(said.get("why") or "not measured")


def _entry(
    entry: Result, chance: float | None, span: tuple[float, float] | None = None
) -> dict[str, Any]:
    """A figure with its interval, or what it would need."""
    value = _value(entry)
    state = words.beside_chance(entry, chance or 0.0)
    return {
        "value": None if value is None else words.figure(value),
        "interval": words.interval(entry.get("interval"), "") if value is not None else None,
        "why": _why(entry).partition(",")[0] if value is None and entry else None,
        "state": state,
        "above": value is not None and state.slug == "leaks",
        "n": words.count(entry["n"]) if entry.get("n") else "–",
        "bar": pictures.bar({**entry, "chance": chance}, span)
        if value is not None and span
        else None,
    }


def _span(entries: Iterable[object]) -> tuple[float, float] | None:
    """The one scale of all intervals and chance."""
    found = [_CHANCE]
    for entry in entries:
        if _value(entry) is not None and isinstance(entry, Mapping):
            ends = entry.get("interval")
            ends = ends if words.is_pair(ends) else ()
            found += [v for v in (entry["value"], *ends) if words.is_number(v)]
    return (min(found), max(found)) if len(found) > 1 else None


def _ticks(span: tuple[float, float] | None) -> list[dict[str, Any]]:
    """The scale of the bars: its ends, and chance where it has room beside them."""
    if span is None:
        return []
    low, high = span
    inner = low + 0.2 * (high - low) < _CHANCE < high - 0.2 * (high - low)
    return [
        {"at": pictures.bar({"value": at}, span)["value"], "label": f"{at:.2f}", "side": side}
        for at, side in ((low, "start"), *([(_CHANCE, "middle")] if inner else []), (high, "end"))
    ]


def _on_model(result: Result) -> list[dict[str, Any]]:
    """Attacks on the model itself, each on a scale of its own figure."""
    return [
        {
            "id": f"model-{i}",
            "title": words.title(one),
            "metric": words.metric(str(one.get("metric"))),
            "explains": one.get("explains"),
            "why": one.get("why"),
            "entry": _entry(one, one.get("chance"), (0.0, 1.0)),
            "chance": words.figure(one.get("chance")),
            "facts": [
                (label, text)
                for label, text in (
                    ("name", one["name"]),
                    ("sees", one.get("access")),
                    ("needs", one.get("needs")),
                    ("chance", one.get("chance_means")),
                    ("source", one.get("source")),
                    ("queries", words.count(one.get("queries"))),
                    ("took", words.seconds(one.get("seconds"))),
                )
                if text
            ],
            "images": [
                {
                    "original": pictures.png_address(image["original"]),
                    "reconstruction": pictures.png_address(image["reconstruction"]),
                    "caption": str(image.get("caption")),
                    "beside": str(image.get("beside")),
                }
                for image in one.get("images") or []
            ],
        }
        for i, one in enumerate(result.get("model_attacks") or [])
    ]


def _roc(result: Result) -> dict[str, Any] | None:
    attacks = list(result.get("attacks") or [])
    curves = []
    for i, attack in enumerate(attacks):
        auc = (attack.get("metrics") or {}).get("auc") or {}
        curve = pictures.Curve.of(
            attack.get("roc"),
            place=i,
            title=words.title(attack),
            says=f"AUC {words.figure(auc.get('value'))}",
        )
        if curve is not None and curve.fpr[0] > 0:
            curves.append(curve)
    lowest = min((curve.fpr[0] for curve in curves), default=0.0)
    return pictures.roc_drawing(_begun(curve, lowest) for curve in curves)


def _begun(curve: pictures.Curve, lowest: float) -> pictures.Curve:
    """A curve from the lowest rate of all on: below its own first threshold a guess among equal scores is left."""
    x, y = curve.fpr[0], curve.tpr[0]
    if x <= lowest:
        return curve
    return replace(curve, fpr=[lowest, *curve.fpr], tpr=[y * lowest / x, *curve.tpr])


# --- parts of the data, and single records


def _slices(slices: Result, title: str, key: str) -> dict[str, Any]:
    """Classes or groups, the most exposed first; those that are too small come last and apart."""
    known = {name: each for name, each in slices.items() if _value(each.get("auc")) is not None}
    ordered = sorted(known, key=lambda name: -(_value(known[name]["auc"]) or 0.0))
    span = _span(each.get("auc") for each in known.values())
    every = words.tpr_metrics({"metrics": each} for each in slices.values())
    tprs = [
        name for name in every if any(_value(each.get(name)) is not None for each in known.values())
    ]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "auc": _entry(known[name]["auc"], _CHANCE, span),
            "tprs": [_entry(known[name].get(metric) or {}, words.rate(metric)) for metric in tprs],
        }
        for name in ordered
    ]
    return {
        "id": key,
        "title": title,
        "of": "class" if key == "classes" else "group",
        "rows": rows[:_SHOWN],
        "more": rows[_SHOWN:],
        "tprs": [words.metric(metric) for metric in tprs],
        "small": [
            (name, _why(each.get("auc"))) for name, each in slices.items() if name not in known
        ],
        "above": sum(row["auc"]["above"] for row in rows),
        "count": len(rows),
    }


def _exposed(result: Result) -> list[dict[str, Any]]:
    names = (result.get("settings") or {}).get("class_names")
    found = []
    for record in result.get("exposed") or []:
        label = record.get("label")
        if isinstance(names, list) and isinstance(label, int) and 0 <= label < len(names):
            label = names[label]
        found.append(
            {
                "record": str(record.get("record")),  # an index: no commas
                "label": words.said(label),
                "score": words.figure(record.get("score")),
                "rate": _share(record.get("false_positive_rate")),
                "at_most": _share(record.get("at_most")),
                "image": pictures.png_address(record["image"])
                if record.get("image") is not None
                else None,
            }
        )
    return found


def _share(value: object) -> str:
    """A small share in per cent, with three digits."""
    return f"{100 * value:.3g} %" if words.is_number(value) else "–"


# --- what the figures rest on


def _epsilon(said: object, *, doubted: bool) -> dict[str, Any] | None:
    if not isinstance(said, Mapping):
        return None
    hits = {
        name: f"{words.count(of[0])} of {words.count(of[1])}"
        for name in ("members", "nonmembers")
        if words.is_pair(of := said.get(name))
    }
    return {
        "value": words.figure(said.get("value")),
        "nothing": said.get("value") == 0,
        "delta": words.figure(said.get("delta")),
        "confidence": _share(said.get("confidence")),
        "assumes": said.get("assumes"),
        "hits": hits,
        "doubted": doubted,
    }


def _check_view(check: Result) -> dict[str, Any]:
    value = check.get("value")
    return {
        "title": _CHECKS.get(str(check.get("name")), str(check.get("name"))),
        "name": check.get("name"),
        "test": check.get("test"),
        "value": words.figure(value),
        "interval": words.interval(check["interval"], "") if check.get("interval") else None,
        "p_value": words.figure(check["p_value"]) if check.get("p_value") is not None else None,
        "warning": check.get("warning"),
        "state": "warned"
        if check.get("warning")
        else "left out"
        if value is None
        else "nothing found",
    }


def _shadows(said: object) -> list[tuple[str, Any]]:
    if not isinstance(said, Mapping):
        return []
    control = said.get("control") or {}
    p_value = control.get("p_value")
    return [
        (label, text)
        for label, text in (
            ("models", words.said(said.get("models"))),
            ("records in each", words.said(said.get("inside_each"))),
            ("took", words.seconds(said.get("seconds"))),
            (
                "control: do they know their own records?",
                f"loss on other records is {words.figure(control.get('gap'))} nats higher"
                + (f", p = {words.figure(p_value)}" if p_value is not None else "")
                if control
                else "not measured",
            ),
            ("kept in", said.get("kept_in")),
        )
        if text
    ]


def _target(target: Result) -> list[tuple[str, Any]]:
    accuracy = target.get("accuracy") or {}
    shares = [
        (f"accuracy on {side}", f"{words.percent(_value(accuracy.get(key)))} {_percents(accuracy.get(key))}")
        for key, side in (("members", "members"), ("nonmembers", "non-members"))
        if _value(accuracy.get(key)) is not None
    ]  # fmt: skip
    return [
        ("name", words.said(target.get("name"))),
        ("kind", _KINDS.get(str(target.get("kind")), words.said(target.get("kind")))),
        *([("gives", words.said(target["gives"]))] if target.get("gives") else []),
        *([("parameters", words.count(target["parameters"]))] if target.get("parameters") else []),
        *shares,
    ]


def _percents(entry: Any) -> str:
    ends = entry.get("interval")
    return f"[{', '.join(words.percent(end) for end in ends)}]" if words.is_pair(ends) else ""


def _data(said: object) -> list[tuple[str, Any]]:
    data = said if isinstance(said, Mapping) else {}
    return words.pairs(
        {
            "non-members" if key == "nonmembers" else key: value
            for key, value in data.items()
            if key != "checks" and value is not None
        }
    )


# --- tables


def audit_tables(result: Result) -> list[Table]:
    """The figures of an audit as CSV tables; see `tacit.audit.export`."""
    attacks = list(result.get("attacks") or [])
    names = ["auc", "balanced_accuracy", *words.tpr_metrics(attacks)]
    parts = ("value", "low", "high", "n", "p_value", "needs")
    return [
        Table(
            file="attacks.csv",
            about="One row an attack. A figure that the records are too few for is empty, and says how many it needs.",
            columns=(
                "attack", "title", "access", "queries", "seconds",
                *(f"{name}_{part}" for name in names for part in parts),
            ),
            rows=[
                (
                    one["name"], words.title(one), one.get("access"), one.get("queries"), one.get("seconds"),
                    *(cell for name in names for cell in _cells((one.get("metrics") or {}).get(name))),
                )
                for one in attacks
            ],
        ),
        Table(
            file="model.csv",
            about="One row an attack on the model itself, with what would be reached without it.",
            columns=("attack", "title", "access", "metric", "value", "low", "high", "n", "chance", "queries", "seconds"),
            rows=[
                (
                    one["name"], words.title(one), one.get("access"), one.get("metric"), *_cells(one)[:4], one.get("chance"),
                    one.get("queries"), one.get("seconds"),
                )
                for one in result.get("model_attacks") or []
            ],
        ),
        Table(
            file="exposed.csv",
            about="One row a member, the most exposed first: its score under the strongest attack, the share of "
            "non-members that score as high, and the upper end of that share's interval.",
            columns=("record", "label", "score", "false_positive_rate", "at_most"),
            rows=[
                tuple(one.get(key) for key in ("record", "label", "score", "false_positive_rate", "at_most"))
                for one in result.get("exposed") or []
            ],
        ),
        Table(
            file="slices.csv",
            about="One row a figure of a class or group under the strongest attack.",
            columns=("kind", "slice", "metric", *parts),
            rows=[
                (kind, name, metric, *_cells(entry))
                for kind, key in (("class", "classes"), ("group", "groups"))
                for name, each in (result.get(key) or {}).items()
                for metric, entry in each.items()
            ],
        ),
        Table(
            file="roc.csv",
            about="One row a point of an attack's ROC curve.",
            columns=("attack", "false_positive_rate", "true_positive_rate"),
            rows=[
                (one["name"], *point)
                for one in attacks
                for point in zip(*((one.get("roc") or {}).get(k) or () for k in ("fpr", "tpr")), strict=False)
            ],
        ),
    ]  # fmt: skip


def _cells(entry: object) -> Sequence[object]:
    said = entry if isinstance(entry, Mapping) else {}
    ends = said.get("interval")
    low, high = ends if words.is_pair(ends) else (None, None)
    return said.get("value"), low, high, said.get("n"), said.get("p_value"), said.get("needs")
