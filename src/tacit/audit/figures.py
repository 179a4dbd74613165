"""Figures of a reproduction: what the paper says, and what came out here.

A figure is plain values for a report: a stable ``name``, the ``paper``'s value (None where the paper has none for this
network, data set or budget), whether that value is ``recalled`` instead of checked, the value ``here`` with its 95 %
``interval`` over ``n``, which direction is ``better``, and the ``settings`` that it was measured at.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import t as student

Figure = dict[str, object]


def _nobody(said: str) -> None:
    del said


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How a reproduction runs.

    Args:
        quick: the same code under the same names on less.
        full: also what takes long.
        seed: of everything that is drawn.
        folder: where finished parts are kept, so that an interrupted run goes on; None keeps nothing.
        progress: told in words what was finished.
    """

    quick: bool = False
    full: bool = False
    seed: int = 0
    folder: Path | None = None
    progress: Callable[[str], None] = _nobody


def figure(
    name: str,
    here: float,
    interval: tuple[float, float],
    n: int,
    *,
    settings: dict[str, object],
    paper: float | None = None,
    recalled: bool = False,
    better: str = "higher",
) -> Figure:
    """A figure as plain values.

    Args:
        name: lower-case path, stable across releases.
        here: the value measured.
        interval: its 95 % interval.
        n: what it rests on.
        settings: what it was measured at.
        paper: the paper's value, if it has one.
        recalled: the paper's value was recalled and not read.
        better: "higher", "lower" or "equal".
    """
    return {
        "name": name,
        "paper": paper,
        "recalled": recalled,
        "here": here if math.isfinite(here) else None,
        "interval": list(interval),
        "better": better,
        "n": n,
        "settings": settings,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep to one thread, and restore the caller's number afterwards.

    The operations are so small that waiting for a second thread, on a machine that does other work
    too, can cost ten times what it saves, and would flatter the stack in a comparison of speed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """The mean's 95 % interval over independent seeds; None for one seed."""
    if len(values) < 2:
        return None
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = float(student.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach
