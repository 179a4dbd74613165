"""A comparison or an audit in words: its verdicts and figures, as the page and the terminal say them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

Result = Mapping[str, Any]


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
BY_SLUG = {state.slug: state for state in STATES}
VERDICTS = ("leaks", "contained", "inconclusive", "no-access")

#: What an audit of one model may end with.
AUDIT_STATES = {
    "leaks": State(
        slug="leaks",
        symbol="▲",
        word="leaks",
        meaning="An attack tells members from non-members better than chance, beyond what its interval leaves to chance.",
        style="bold red",
    ),
    "nothing-found": State(
        slug="contained",
        symbol="○",
        word="nothing found",
        meaning="No attack that was run did better than chance. Measured, not proved: a stronger attack may still succeed.",
        style="blue",
    ),
    "inconclusive": State(
        slug="inconclusive",
        symbol="?",
        word="inconclusive",
        meaning="The evidence cannot tell: too few records, or a difference that need not come from the model.",
        style="yellow",
    ),
}
_HEADLINES = {
    "leaks": "The model gives away who was in its training data",
    "nothing-found": "No attack told members from non-members",
    "inconclusive": "This audit cannot tell whether the model leaks",
}
_BESIDE_CHANCE = {
    "above": ("leaks", "above chance"),
    "around": ("contained", "covers chance"),
    "below": ("inconclusive", "below chance"),
}

_UNPROTECTED = ("plain", "unprotected", "none")
_VANTAGES = {
    "server": "It stands at the server and works on what the server receives.",
    "participant": "It is one of the participants and works on what a participant receives.",
    "scores": "It asks the released model and gets the score of every class.",
    "labels": "It asks the released model and gets the most likely label, without scores.",
    "holder": "It has the finished model, and knows the architecture, the settings and every record but one.",
}


def protections(result: Result) -> list[Any]:
    """The rows of a comparison, as far as they are there."""
    return list(result.get("protections") or [])


def cells(protection: Result, attacks: Iterable[Result]) -> list[Any]:
    """A row's cell for each attack; None where there is none."""
    found = protection.get("cells") or {}
    return [found.get(attack["name"]) for attack in attacks]


def kind(protection: Result) -> str:
    """What a row is: ``control``, ``unprotected`` or ``protection``."""
    if protection.get("control"):
        return "control"
    bare = protection.get("unprotected") or protection["name"] in _UNPROTECTED
    return "unprotected" if bare else "protection"


def title(thing: Result) -> str:
    """What a row or a column is called."""
    return str(thing.get("title") or thing["name"])


def vantage(attack: Result) -> str | None:
    """One sentence on where an adversary stands, from the part of the attack's name after ``@``."""
    where = str(attack["name"]).partition("@")[2]
    return _VANTAGES.get(where, f"It stands at: {where}.") if where else None


def above_chance(value: object, cell: Result) -> float | None:
    """How far a cell's figure lies above chance, where 1 is a complete leak; negative below chance.

    Only shares and areas under a curve can be compared so: (value - chance) / (1 - chance).
    """
    chance = cell.get("chance")
    if not is_number(value) or not is_number(chance):
        return None
    if not 0 <= value <= 1 or not 0 <= chance < 1 or str(cell.get("metric")).endswith("_db"):
        return None
    return (value - chance) / (1 - chance)


def dataset(result: Result) -> str:
    """The name of the data that a comparison ran on."""
    said = result.get("dataset")
    name = said.get("name") if isinstance(said, Mapping) else said
    return str(name or "unnamed data")


def leaks_somewhere(protection: Result) -> bool:
    """Whether any attack leaks on a row."""
    return any(state(cell).slug == "leaks" for cell in (protection.get("cells") or {}).values())


def state(cell: Result | None) -> State:
    """How a cell is shown: its verdict, or why it has none."""
    if not cell:
        return BY_SLUG["absent"]
    if cell.get("error"):
        return BY_SLUG["failed"]
    found = cell.get("verdict")
    return BY_SLUG[found if found in VERDICTS else "absent"]


def audit_state(result: Result) -> State:
    """An audit's verdict; a verdict of no known name counts as inconclusive."""
    return AUDIT_STATES.get(str(result.get("verdict")), AUDIT_STATES["inconclusive"])


def audit_headline(result: Result) -> str:
    """An audit's verdict as a sentence without figures."""
    return _HEADLINES.get(str(result.get("verdict")), _HEADLINES["inconclusive"])


def warned_checks(result: Result) -> list[str]:
    """The checks of an audit's data that warn: members and non-members may differ in more than membership."""
    checks = (result.get("data") or {}).get("checks") or []
    return [str(check.get("name")) for check in checks if check.get("warning")]


def limit_state(limit: Result) -> State:
    """Whether a limit was kept."""
    if limit.get("exceeded") is None:
        return replace(BY_SLUG["inconclusive"], word="not measured")
    if limit["exceeded"]:
        return replace(BY_SLUG["leaks"], word="exceeded")
    return replace(BY_SLUG["contained"], word="kept")


def beside_chance(entry: Result, chance: float) -> State:
    """Where a figure's interval lies: above chance, over it, or below."""
    ends = entry.get("interval")
    if not is_pair(ends) or not all(is_number(end) for end in ends):
        return BY_SLUG["absent"]
    slug, word = _BESIDE_CHANCE[
        "above" if ends[0] > chance else "below" if ends[1] < chance else "around"
    ]
    return replace(BY_SLUG[slug], word=word)


def rate(metric: str) -> float | None:
    """The false positive rate of a metric like ``tpr@0.01fpr``, which is also its chance; None of another metric."""
    found = re.fullmatch(r"tpr@([0-9.eE-]+)fpr", metric)
    return float(found[1]) if found else None


def tpr_metrics(attacks: Iterable[Result]) -> list[str]:
    """The metrics at a false positive rate that any attack of an audit has, the highest rate first."""
    found = {name for one in attacks for name in one.get("metrics") or {}}
    return sorted((name for name in found if rate(name)), key=lambda name: -(rate(name) or 0.0))


def measured(cell: Result) -> bool:
    """Whether a cell has a value to show."""
    return isinstance(cell.get("value"), int | float) and not cell.get("error")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is finite, and so has a place in a drawing."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_pair(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value may be the two ends of an interval."""
    return isinstance(value, list | tuple) and len(value) == 2


def metric(name: str) -> str:
    """A metric's name as a reader knows it."""
    known = {"auc": "AUC", "psnr_db": "PSNR (dB)", "ssim": "SSIM", "tpr": "TPR", "fpr": "FPR"}
    return known.get(
        name, name.replace("_", " ").replace("tpr@", "TPR at FPR ").removesuffix("fpr")
    )


def figure(value: object, metric: str = "", *, unit: bool = True) -> str:
    """A figure as a reader wants it: three digits, with its unit."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else printable(str(value))
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if metric.endswith("_db"):
        return f"{value:.1f}{' dB' if unit else ''}".replace("-", "−")
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    text = f"{value:.3f}" if value == 0 or 0.0095 <= abs(value) < 10 else f"{value:.3g}"
    text = text.replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "−", 1) if value < 0 else text


def interval(ends: Any, metric: str) -> str:
    """An interval in brackets, without the unit that its value shows."""
    if not is_pair(ends):
        return "–"
    return f"[{', '.join(figure(end, metric, unit=False) for end in ends)}]"


def percent(value: object) -> str:
    """A share as per cent."""
    return f"{100 * float(value):.1f} %" if isinstance(value, int | float) else "–"


def seconds(value: object) -> str:
    """A duration in the unit that suits it."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def traffic(cost: Result) -> object:
    """The bytes of a cost: all of them, or what one role sent."""
    return cost.get("bytes", cost.get("bytes_sent"))


def size(value: object) -> str:
    """A number of bytes in the unit that suits it."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    for least, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= least:
            return f"{value / least:.3g} {unit}"
    return f"{value:.0f} B"


def count(value: object) -> str:
    """A whole number, its thousands apart."""
    return f"{value:,.0f}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def printable(text: object) -> str:
    """Text without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def said(value: object) -> str:
    """Any plain value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(said(item) for item in value) or "none"
    return figure(value)


def pairs(values: object) -> list[tuple[str, Any]]:
    """A dictionary as (label, text or further pairs), for nested lists of definitions."""
    if not isinstance(values, Mapping):
        return [] if values is None else [("value", said(values))]
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        label = metric(str(key))
        if isinstance(value, Mapping):
            if "value" in value and set(value) <= {"value", "interval", "n"}:
                text = figure(value["value"], str(key))
                if value.get("interval"):
                    text += f" {interval(value['interval'], str(key))}"
                if value.get("n") is not None:
                    text += f", n = {count(value['n'])}"
                found.append((label, text))
            else:
                found.append((label, pairs(value)))
        elif str(key).endswith("_db"):
            found.append((label.removesuffix(" (dB)"), figure(value, str(key))))
        else:
            found.append((label, said(value)))
    return found
