"""What the page draws: intervals on one scale, ROC curves, and images as PNG.

Curves and intervals are numbers that the page's template turns into SVG.
"""

from __future__ import annotations

import base64
import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tacit.audit import words
from tacit.audit.words import Result

_IMAGE_SIDE = 112
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


def roc_curves(protections: Sequence[Result], attack: Result) -> dict[str, Any] | None:
    """One drawing of all protections' ROC curves under an attack, both axes logarithmic."""
    curves = []
    for i, protection in enumerate(protections):
        cell = words.cells(protection, [attack])[0] or {}
        curve = (cell.get("figures") or {}).get("roc") or {}
        fpr, tpr = curve.get("fpr") or [], curve.get("tpr") or []
        if len(fpr) == len(tpr) > 1 and all(words.is_number(v) for v in (*fpr, *tpr)):
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
                "state": words.state(cell),
                "value": words.figure(cell.get("value"), str(cell.get("metric") or "")),
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
