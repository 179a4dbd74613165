"""What to choose: accuracy against the worst measured leak against cost.

A row's worst leak is the largest of its attacks' leaks above chance, (value - chance) / (1 - chance), floored at 0: attacks
of different metrics become comparable, and a row is judged by what it stops least. Its interval is that of this one attack.
An attack that had no access counts as 0; one that had too little to run on does not count. Attacks on the model itself do
not count either (``about`` is ``model``: extraction, inversion): they win against every model that is of use, whatever
protected its training, and would hide what the rows differ in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tacit.audit import words
from tacit.audit.words import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A row as something to choose.

    Args:
        index: the row's place in the report, from 0.
        name: the row's name.
        title: a few words.
        kind: protection, unprotected or control.
        accuracy: on records that were not trained on.
        accuracy_interval: its 95 % interval.
        leak: the worst leak over the attacks, 0 to 1; None if no attack could tell.
        leak_interval: the 95 % interval of that attack's leak.
        worst: the title of the attack that leaked most; None where no attack had access.
        measured: how many attacks gave a figure.
        attacks: the attacks that gave a figure, or had no access.
        whole: no attack failed or was left out.
        seconds: of one training.
        bytes: sent by all roles.
        efficient: no row but a control is at least as good in accuracy, leak, time and bytes, and better in one.
        beaten_by: the title of a row that is.
    """

    index: int
    name: str
    title: str
    kind: str
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    leak: float | None
    leak_interval: tuple[float, float] | None
    worst: str | None
    measured: int
    attacks: frozenset[str]
    whole: bool
    seconds: float | None
    bytes: float | None
    efficient: bool = False
    beaten_by: str | None = None

    @property
    def judged(self) -> bool:
        """Whether it has all that a comparison with the others needs."""
        return self.whole and self.kind != "control" and None not in self.figures

    @property
    def figures(self) -> tuple[float | None, float | None, float | None, float | None]:
        """Accuracy lost, leak, seconds and bytes: of each, less is better."""
        lost = None if self.accuracy is None else 1 - self.accuracy
        return lost, self.leak, self.seconds, self.bytes


def choices(result: Result) -> list[Choice]:
    """Every row of a report, with those marked that nothing beats in accuracy, leak and cost."""
    attacks = [one for one in result.get("attacks") or [] if one.get("about") != "model"]
    rows = [_choice(i, row, attacks) for i, row in enumerate(words.protections(result))]
    rivals = [row for row in rows if row.judged]
    judged = []
    for row in rows:
        better = [rival for rival in rivals if row.judged and beats(rival, row)]
        # The one that keeps the most accuracy says most.
        best = max(better, key=lambda rival: rival.accuracy or 0.0, default=None)
        judged.append(
            replace(
                row,
                efficient=row.judged and best is None,
                beaten_by=best.title if best else None,
            )
        )
    return judged


def beats(one: Choice, other: Choice) -> bool:
    """Whether the first is at least as good in everything and better in something.

    A row on which an attack could not run does not beat one on which it did: its worst leak is over less.
    """
    if not one.attacks >= other.attacks:
        return False
    pairs = [
        (a, b)
        for a, b in zip(one.figures, other.figures, strict=True)
        if a is not None and b is not None
    ]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _choice(index: int, row: Result, attacks: Sequence[Result]) -> Choice:
    found = list(zip(attacks, words.cells(row, attacks), strict=True))
    leaks: list[tuple[float, Result, Result]] = []
    for attack, cell in found:
        leak = words.above_chance(cell.get("value"), cell) if cell else None
        if leak is not None and words.measured(cell):
            leaks.append((max(0.0, leak), attack, cell))
    slugs = [words.state(cell).slug for _, cell in found]
    worst = max(leaks, key=lambda entry: entry[0], default=None)
    shut_out = bool(slugs) and set(slugs) == {"no-access"}
    cost = row.get("cost") or {}
    return Choice(
        index=index,
        name=row["name"],
        title=words.title(row),
        kind=words.kind(row),
        accuracy=_number(row.get("accuracy")),
        accuracy_interval=_ends(row.get("accuracy_interval")),
        leak=worst[0] if worst else 0.0 if shut_out else None,
        leak_interval=_leak_ends(worst[2]) if worst else None,
        worst=words.title(worst[1]) if worst else None,
        measured=len(leaks),
        attacks=frozenset(
            attack["name"]
            for attack, cell in found
            if words.measured(cell or {}) or words.state(cell).slug == "no-access"
        ),
        whole=not {"failed", "absent"} & set(slugs),
        seconds=_number(cost.get("seconds")),
        bytes=_number(words.traffic(cost)),
    )


def _leak_ends(cell: Result) -> tuple[float, float] | None:
    ends = _ends(cell.get("interval"))
    if ends is None:
        return None
    low, high = (words.above_chance(min(max(end, 0.0), 1.0), cell) for end in ends)
    return max(0.0, low or 0.0), max(0.0, high or 0.0)


def _number(value: object) -> float | None:
    return value if words.is_number(value) else None


def _ends(value: object) -> tuple[float, float] | None:
    if not words.is_pair(value) or not all(words.is_number(end) for end in value):
        return None
    return value[0], value[1]


# --- in words


def advice(rows: Sequence[Choice]) -> dict[str, Any]:
    """What follows for somebody who has to choose, in sentences.

    Returns:
        ``baseline``: the sentence on the reference, the most accurate unprotected row; ``steps``: the rows, none beaten
        and none a control, that leak less than all that are as accurate or more, each as ``lead`` (what it costs in
        accuracy), ``row`` and ``rest``. Then the protections that are no step: ``cheaper`` (beaten by none for
        their cost), ``beaten``, and ``unjudged`` (a figure is missing).
    """
    protections = [row for row in rows if row.kind == "protection"]
    bare = [row for row in rows if row.kind == "unprotected" and row.accuracy is not None]
    reference = max(bare, key=lambda row: row.accuracy or 0.0, default=None)
    steps: list[dict[str, Any]] = []
    least = math.inf
    efficient = [row for row in rows if row.efficient or row is reference]
    for row in sorted(efficient, key=lambda row: (-(row.accuracy or 0.0), row.leak or 0.0)):
        if row.leak is None or row.leak >= least:
            continue
        least = row.leak
        if row is not reference:
            steps.append({"lead": _lead(row, reference), "row": row, "rest": _sized(row)})
    chosen = [step["row"] for step in steps]
    return {
        "baseline": _baseline(reference),
        "steps": steps,
        "cheaper": [row for row in protections if row.efficient and row not in chosen],
        "beaten": [row for row in protections if row.beaten_by],
        "unjudged": [row for row in protections if not row.judged],
    }


def _baseline(reference: Choice | None) -> str:
    if reference is None:
        return "No unprotected row was run, so accuracy is given as it is."
    leak = "no attack could tell what it leaks"
    if reference.leak is not None:
        leak = f"its worst leak is {words.figure(reference.leak)}{_by(reference)}"
    return (
        f"Without protection, “{reference.title}” is the most accurate "
        f"({words.percent(reference.accuracy)}); {leak}."
    )


def _lead(row: Choice, reference: Choice | None) -> str:
    if reference is None or reference.accuracy is None or row.accuracy is None:
        return f"For {words.percent(row.accuracy)} accuracy"
    lost = lost_points(row, reference)
    if lost <= 0:
        return "To lose no accuracy"
    return f"To lose at most {lost:.1f} points of accuracy{_within(row, reference)}"


def lost_points(row: Choice, reference: Choice) -> float:
    """Percentage points of accuracy lost, rounded up to a tenth."""
    lost = 100 * ((reference.accuracy or 0.0) - (row.accuracy or 0.0))
    return math.ceil(10 * lost - 1e-6) / 10


def _within(row: Choice, reference: Choice) -> str:
    ours, theirs = row.accuracy_interval, reference.accuracy_interval
    if ours and theirs and ours[1] >= theirs[0]:
        return " (the intervals overlap)"
    return ""


def _sized(row: Choice) -> str:
    ends = row.leak_interval
    interval = f", 95 % {words.interval(list(ends), '')}" if ends else ""
    return (
        f"worst leak {words.figure(row.leak)}{interval}{_by(row)}; accuracy "
        f"{words.percent(row.accuracy)}; {words.seconds(row.seconds)} and {words.size(row.bytes)} sent"
    )


def _by(row: Choice) -> str:
    return f" ({row.worst})" if row.worst else " (no attack had access)"


def as_mapping(row: Choice) -> Mapping[str, Any]:
    """A choice as plain values, for a table."""
    leak, accuracy = row.leak_interval or (None, None), row.accuracy_interval or (None, None)
    return {
        "protection": row.name,
        "title": row.title,
        "kind": row.kind,
        "accuracy": row.accuracy,
        "accuracy_low": accuracy[0],
        "accuracy_high": accuracy[1],
        "worst_leak": row.leak,
        "worst_leak_low": leak[0],
        "worst_leak_high": leak[1],
        "worst_attack": row.worst,
        "attacks_measured": row.measured,
        "seconds": row.seconds,
        "bytes": row.bytes,
        "efficient": row.efficient,
        "beaten_by": row.beaten_by,
    }
