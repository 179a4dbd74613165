"""What the page draws: intervals on one scale, accuracy against leak and cost, ROC curves, and images as PNG.

Curves, marks and intervals are numbers that the page's template turns into SVG.
"""

from __future__ import annotations

import base64
import itertools
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tacit.audit import words
from tacit.audit.decision import Choice
from tacit.audit.words import Result
from tacit.core.errors import ConfigError

_ROC_FLOOR = 1e-5
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "14 5", "5 2 1 2 1 2", "1 5", "12 3 4 3")


def scale(protections: Sequence[Result], attack: Result) -> tuple[float, float] | None:
    """The range that one attack's values, intervals and chances span, over all protections."""
    found: list[float] = []
    for protection in protections:
        cell = words.cells(protection, [attack])[0]
        if cell and words.measured(cell):
            interval = cell.get("interval")
            ends = interval if words.is_pair(interval) else ()
            found += [v for v in (cell["value"], cell.get("chance"), *ends) if words.is_number(v)]
    return (min(found), max(found)) if found else None


def bar(cell: Result, over: tuple[float, float]) -> dict[str, float | None]:
    """Where value, interval and chance lie, 0 to 100, in a cell's drawing that spans a scale."""
    low, high = over
    span = (high - low) or 1.0

    def place(value: Any) -> float | None:
        # Room at both ends for half a mark.
        return round(3 + 94 * (value - low) / span, 1) if words.is_number(value) else None

    interval = cell.get("interval")
    ends = interval if words.is_pair(interval) else (None, None)
    return {
        "value": place(cell["value"]),
        "low": place(ends[0]),
        "high": place(ends[1]),
        "chance": place(cell.get("chance")),
    }


def png_address(image: object) -> str | None:
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
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    lines = b"".join(b"\x00" + line.tobytes() for line in pixels)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")):
        png += struct.pack(">I", len(body)) + kind + body
        png += struct.pack(">I", zlib.crc32(kind + body))
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def contact_sheet(rows: Sequence[np.ndarray[Any, Any]], gap: int = 2) -> bytes:
    """Images side by side in rows, as a PNG file.

    Args:
        rows: each (n, height, width) in [0, 1]; as many images of one size in each.
        gap: white pixels between them.

    Raises:
        ConfigError: there is no image, or rows differ.
    """
    shapes = {np.shape(row) for row in rows}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3 or 0 in next(iter(shapes)):
        raise ConfigError(f"rows of as many images of one size expected, {sorted(shapes)} came")
    wide = [np.pad(row, ((0, 0), (0, gap), (0, gap)), constant_values=1.0) for row in rows]
    address = png_address(np.concatenate([np.concatenate(list(row), axis=1) for row in wide]))
    return base64.b64decode((address or "").partition(",")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A ROC curve of a drawing, and its line in the list beside it.

    Args:
        fpr: false positive rates, ascending.
        tpr: true positive rates, as many.
        place: in what the curves are of; curves of one place look the same in every drawing.
        title: what it is of.
        says: what else is said of it.
    """

    fpr: Sequence[float]
    tpr: Sequence[float]
    place: int
    title: str
    says: str

    @classmethod
    def of(cls, roc: object, *, place: int, title: str, says: str) -> Curve | None:
        """A curve of a report's ``{"fpr": [..], "tpr": [..]}``; None where there is none that can be drawn."""
        said: Result = roc if isinstance(roc, Mapping) else {}
        fpr, tpr = said.get("fpr") or [], said.get("tpr") or []
        if not len(fpr) == len(tpr) > 1 or not all(words.is_number(v) for v in (*fpr, *tpr)):
            return None
        return cls(fpr=fpr, tpr=tpr, place=place, title=title, says=says)


def roc_curves(protections: Sequence[Result], attack: Result) -> dict[str, Any] | None:
    """One drawing of all protections' ROC curves under an attack."""
    curves = []
    for i, protection in enumerate(protections):
        cell = words.cells(protection, [attack])[0] or {}
        value = words.figure(cell.get("value"), str(cell.get("metric") or ""))
        curves.append(
            Curve.of(
                (cell.get("figures") or {}).get("roc"),
                place=i,
                title=words.title(protection) + (" (control)" if protection.get("control") else ""),
                says=f"{words.metric(str(attack.get('metric') or ''))} {value}, {words.state(cell).word}",
            )
        )
    return roc_drawing(curve for curve in curves if curve is not None)


def roc_drawing(curves: Iterable[Curve]) -> dict[str, Any] | None:
    """One drawing of ROC curves, both axes logarithmic; None where there is none."""
    drawn = [(curve, list(zip(curve.fpr, curve.tpr, strict=True))) for curve in curves]
    if not drawn:
        return None
    smallest = min((x for curve, _ in drawn for x in curve.fpr if x > 0), default=1.0)
    # One decade at least; below ten per decade the curve is made of single records.
    decades = max(1, math.ceil(-math.log10(max(smallest, _ROC_FLOOR)) - 1e-9))
    left, top, side = 62.0, 10.0, 320.0

    def place(rate: float) -> float:
        return side * (math.log10(max(rate, 10.0**-decades)) + decades) / decades

    lines = []
    for curve, points in drawn:
        path: list[tuple[float, float]] = []
        for x, y in _interpolated(points, 10.0**-decades):
            at = left + place(x), top + side - place(y)
            if not path or abs(at[0] - path[-1][0]) + abs(at[1] - path[-1][1]) > 0.5:
                path.append(at)
        path.append((left + side, top))  # every curve ends there
        again = curve.place // len(_DASHES)  # a colour that comes again has another dash
        lines.append(
            {
                "path": "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in path),
                "dash": _DASHES[(curve.place + again) % len(_DASHES)],
                "colour": curve.place % 8,
                "title": curve.title,
                "says": curve.says,
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


# --- marks with labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point of a drawing, with what is written beside it.

    Args:
        x: where it stands; less is better.
        y: where it stands; more is better.
        across: the ends of its interval along x.
        along: the ends of its interval along y.
        kind: protection, unprotected or control: its shape.
        label: written beside it.
        title: the row's, in full.
        says: the whole of it in a sentence.
        strong: filled, its label in bold.
        row: the row's place in the report.
    """

    x: float
    y: float
    across: tuple[float, float] | None = None
    along: tuple[float, float] | None = None
    kind: str
    label: str
    title: str
    says: str
    strong: bool = False
    row: int


SHAPES = {
    "protection": "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z",
    "unprotected": "M-5-5h10v10h-10z",
    "control": "M-5-5L5 5M-5 5L5-5",
}
_FONT = 12.5
_ADVANCE = 0.62 * _FONT  # wider than the mean letter of any system font
_LINE = 16.0
_RADIUS = 7.0

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def decision_plot(rows: Sequence[Choice]) -> dict[str, Any] | None:
    """Accuracy against the worst leak, every row a mark with its name."""
    marks = []
    for row in rows:
        if row.leak is None or row.accuracy is None:
            continue
        worst = f", by {row.worst}" if row.worst else ""
        marks.append(
            Mark(
                x=row.leak,
                y=row.accuracy,
                across=row.leak_interval,
                along=row.accuracy_interval,
                kind=row.kind,
                label=shortened(row.title),
                title=row.title,
                says=f"{row.title} ({row.kind}): worst leak {words.figure(row.leak)}{worst}; "
                f"accuracy {words.percent(row.accuracy)}",
                strong=row.kind == "protection" and row.efficient,
                row=row.index,
            )
        )
    return scatter(marks, width=700.0, height=430.0, floor=0.0) if marks else None


def attack_plot(rows: Sequence[Choice], protections: Sequence[Result], attack: Result) -> Any:
    """Accuracy against one attack's leak above chance, every row a mark with its number."""
    marks = []
    for row, protection in zip(rows, protections, strict=True):
        cell = words.cells(protection, [attack])[0]
        leak = words.above_chance(cell.get("value"), cell) if cell else None
        if leak is None or row.accuracy is None or not words.measured(cell):
            continue
        ends = cell.get("interval")
        across = [words.above_chance(end, cell) for end in ends] if words.is_pair(ends) else [None]
        marks.append(
            Mark(
                x=leak,
                y=row.accuracy,
                across=None if None in across else (across[0] or 0.0, across[1] or 0.0),
                along=row.accuracy_interval,
                kind=row.kind,
                label=str(row.index + 1),
                title=row.title,
                says=f"{row.index + 1}, {row.title} ({row.kind}): leak above chance "
                f"{words.figure(leak)}, {words.state(cell).word}; accuracy {words.percent(row.accuracy)}",
                row=row.index,
            )
        )
    return scatter(marks, width=340.0, height=250.0, floor=None) if marks else None


def shortened(text: str, most: int = 38) -> str:
    """Text that fits beside a mark, with its end: there similar names differ."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2].rstrip()}…{text[-(most // 2 - 1) :].lstrip()}"


def scatter(
    marks: Sequence[Mark], *, width: float, height: float, floor: float | None
) -> dict[str, Any]:
    """Marks with their intervals, axes and labels as numbers for the template.

    Args:
        marks: at least one.
        width: of the drawing.
        height: of the drawing; labels for which there is no room add lines below.
        floor: where the x axis starts; None lets it start left of the least value.
    """
    box = (54.0, 10.0, width - 12.0, height - 46.0)
    x_low, x_high = _range([v for m in marks for v in (m.x, *(m.across or ()))] + [0.0])
    y_low, y_high = _range([v for m in marks for v in (m.y, *(m.along or ()))])
    x_low = x_low if floor is None else floor

    def across(value: float) -> float:
        share = (min(max(value, x_low), x_high) - x_low) / (x_high - x_low)
        return round(box[0] + share * (box[2] - box[0]), 1)

    def up(value: float) -> float:
        share = (min(max(value, y_low), y_high) - y_low) / (y_high - y_low)
        return round(box[3] - share * (box[3] - box[1]), 1)

    drawn = [
        {
            "mark": mark,
            "shape": SHAPES[mark.kind],
            "x": across(mark.x),
            "y": up(mark.y),
            "left": across(mark.across[0]) if mark.across else None,
            "right": across(mark.across[1]) if mark.across else None,
            "top": up(mark.along[1]) if mark.along else None,
            "bottom": up(mark.along[0]) if mark.along else None,
        }
        for mark in marks
    ]
    labels, lines = place_labels(drawn, box)
    return {
        "box": box,
        "width": width,
        "height": height + _LINE * lines,
        "marks": [d | {"label": label} for d, label in zip(drawn, labels, strict=True)],
        "x_ticks": [{"at": across(v), "label": said} for v, said in _ticks(x_low, x_high, width)],
        "y_ticks": [
            {"at": up(v), "label": f"{100 * v:.4g} %"}
            for v, _ in _ticks(y_low, y_high, 1.5 * height)
        ],
        "zero": across(0.0) if x_low < 0 else None,
        "numbered": [
            {"number": label["text"], "title": mark.title}
            for mark, label in zip(marks, labels, strict=True)
            if label["text"] != mark.label
        ],
    }


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.05
    return low - room, high + room


def _ticks(low: float, high: float, pixels: float) -> list[tuple[float, str]]:
    """Round figures between two ends, about 90 pixels apart."""
    rough = (high - low) / max(2.0, pixels / 90.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, f"{k * step:.6g}".replace("-", "−")) for k in range(first, last + 1)]


def place_labels(drawn: Sequence[dict[str, Any]], box: Box) -> tuple[list[dict[str, Any]], int]:
    """A place for each mark's label, so that no label covers another, a mark, or a line to a label.

    Labels go near their marks, off all intervals if there is such a place; a line leads to those that are not close.
    Where a name has no room, the row's number stands in for it; where that has none either, it goes below the box.

    Returns:
        The labels as text, x, anchor, baseline, the box they fill, and the line to the mark, if any; the lines added below.
    """
    marks = [
        (d["x"] - _RADIUS, d["y"] - _RADIUS, d["x"] + _RADIUS, d["y"] + _RADIUS) for d in drawn
    ]
    whiskers = [
        *((d["left"], d["y"] - 1, d["right"], d["y"] + 1) for d in drawn if d["left"] is not None),
        *((d["x"] - 1, d["top"], d["x"] + 1, d["bottom"]) for d in drawn if d["top"] is not None),
    ]
    taken: list[Box] = []  # by labels
    lines: list[Box] = []  # points of the lines, as boxes of no size
    placed: list[dict[str, Any]] = [{} for _ in drawn]
    below = 0
    for i in sorted(range(len(drawn)), key=lambda k: not drawn[k]["mark"].strong):
        d, mark = drawn[i], drawn[i]["mark"]
        full = [*marks, *taken, *lines]
        number = str(mark.row + 1)
        tries = [
            (mark.label, full + whiskers, 24.0),
            (mark.label, full, 44.0),
            (number, full, 110.0),
        ]
        for text, avoided, reach in tries:
            spot = _spot(d, _width(text, mark), box, reach, avoided, taken)
            if spot is not None:
                break
        else:
            wide, top = _width(text, mark), box[3] + 46.0 + _LINE * below
            left = min(
                max(d["x"] - wide / 2, box[0]), box[2] - wide
            )  # below the mark: a short line
            place, below = (left, top, left + wide, top + _LINE), below + 1
            ends = (d["x"], d["y"]), (left + wide / 2, top)
            spot = place, [(x, y, x, y) for x, y in ends]
        found, line = spot
        taken.append(found)
        lines += line
        side = (found[0] + found[2]) / 2 - d["x"]  # text starts or ends where its mark is
        anchor = "middle" if abs(side) < 1 else "start" if side > 0 or found[1] > box[3] else "end"
        at = {"start": found[0], "middle": (found[0] + found[2]) / 2, "end": found[2]}[anchor]
        placed[i] = {
            "text": text,
            "x": round(at, 1),
            "anchor": anchor,
            "y": round(found[3] - 4.0, 1),
            "box": found,
            "line": [round(v, 1) for v in (*line[0][:2], *line[-1][:2])] if line else None,
        }
    return placed, below


def _width(text: str, mark: Mark) -> float:
    return _ADVANCE * len(text) * (1.06 if mark.strong else 1.0)


def _spot(
    d: dict[str, Any], width: float, box: Box, reach: float, avoided: list[Box], taken: list[Box]
) -> tuple[Box, list[Box]] | None:
    """The nearest free place for a label, with the points of the line to it."""
    for place, path in _around(d["x"], d["y"], width, box, reach):
        free = not any(_overlap(place, other) for other in avoided)
        if free and not any(_overlap(point, other) for point in path for other in taken):
            return place, path
    return None


def _around(
    x: float, y: float, width: float, box: Box, reach: float
) -> Iterator[tuple[Box, list[Box]]]:
    """Places for a label around a point, the nearest first."""
    distances = (d for d in (9.0, 14.0, 20.0, 30.0, 42.0, 58.0, 80.0, 108.0) if d <= reach)
    for distance in distances:
        for turn in (0, 8, 12, 4, 15, 1, 9, 7, 14, 2, 10, 6, 13, 3, 11, 5):
            angle = turn * math.pi / 8
            cos, sin = math.cos(angle), math.sin(angle)
            # Left and right of the mark by half the label's width; above and below by half its height.
            middle = x + cos * distance + (width / 2) * max(-1.0, min(1.0, 1.5 * cos))
            centre = y + sin * (distance + _LINE / 2)
            place = (middle - width / 2, centre - _LINE / 2, middle + width / 2, centre + _LINE / 2)
            if place[0] < box[0] + 2 or place[2] > box[2] - 2:
                continue
            if place[1] < box[1] + 1 or place[3] > box[3] - 1:
                continue
            yield place, _path(x, y, place) if distance > 20.0 else []


def _path(x: float, y: float, place: Box) -> list[Box]:
    """Points from a mark to the nearest point of its label."""
    to_x, to_y = min(max(x, place[0]), place[2]), min(max(y, place[1]), place[3])
    away = math.hypot(to_x - x, to_y - y)
    points = []
    steps = max(1, math.ceil(away / 8.0))  # closer than any label is high
    for step in range(steps + 1):
        at = _RADIUS / away + (1 - _RADIUS / away) * step / steps if away > _RADIUS else 1.0
        px, py = x + at * (to_x - x), y + at * (to_y - y)
        points.append((px, py, px, py))
    return points


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# --- cost


def cost_plot(rows: Sequence[Choice]) -> dict[str, Any] | None:
    """Seconds and bytes of every row on logarithmic scales, side by side; the most accurate row first."""
    shown = sorted(
        (row for row in rows if row.accuracy is not None), key=lambda row: -(row.accuracy or 0.0)
    )
    name_width, panel, gap, line = 290.0, 140.0, 64.0, 24.0
    scales = []
    for k, (unit, values, said) in enumerate(
        (
            ("time of one training", [row.seconds for row in shown], words.seconds),
            ("bytes sent by all", [row.bytes for row in shown], words.size),
        )
    ):
        known = [value for value in values if value]
        if not known:
            continue
        low = math.floor(math.log10(min(known)) + 1e-9)
        high = max(math.ceil(math.log10(max(known)) - 1e-9), low + 1)
        left = name_width + k * (panel + gap)
        step = max(1, math.ceil((high - low) / 2))
        scales.append(
            {
                "unit": unit,
                "left": left,
                "right": left + panel,
                "ticks": [
                    {
                        "at": round(left + panel * (t - low) / (high - low), 1),
                        "label": said(10.0**t).replace(".0 s", " s"),
                    }
                    for t in range(low, high + 1, step)
                ],
                "dots": [
                    {
                        "at": round(left + panel * (math.log10(value) - low) / (high - low), 1),
                        "says": said(value),
                    }
                    if value
                    else None
                    for value in values
                ],
            }
        )
    if not scales:
        return None
    return {
        "width": name_width + 2 * panel + gap + 66.0,
        "height": 46.0 + line * len(shown),
        "base": 30.0 + line * len(shown),
        "rows": [
            {
                "y": 30.0 + line * (i + 0.5),
                "title": row.title,
                "label": shortened(row.title),
                "shape": SHAPES[row.kind],
                "kind": row.kind,
                "strong": row.kind == "protection" and row.efficient,
                "place": i,
            }
            for i, row in enumerate(shown)
        ],
        "scales": scales,
    }
