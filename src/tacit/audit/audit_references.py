"""Reference models of an audit: trained on known halves of the records that are audited, all at once or as seconds allow.

Where there are no seconds to count all models are one `ShadowEnsemble`. Where there are, two are trained first, then up to
twice as many as before at a time, for as long as they are likely to be done in time. Each stage has its own folder, so that
an interrupted audit goes on. A population, which no model may be trained on, is asked about along with the rest.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tacit.attacks.access import TrainFunction
from tacit.attacks.shadows import (
    NothingLearned,
    Query,
    References,
    ShadowEnsemble,
    halves,
)
from tacit.core.errors import BudgetExhausted
from tacit.nn.stacked import Trainer

Bools = npt.NDArray[np.bool_]

#: Models of the first stage where seconds are counted: `tacit.attacks.shadows.halves` come in pairs.
PAIR = 2


def reference_models(  # noqa: PLR0913 - an audit's settings
    train_fn: TrainFunction,
    records: tuple[Tensor, Tensor],
    others: tuple[Tensor, Tensor] | None,
    *,
    models: int,
    queries: Sequence[Query],
    folder: Path | None,
    generator: torch.Generator,
    left: Callable[[], float],
    told: Callable[[int, int], None],
) -> References:
    """Train reference models on halves of the records.

    Args:
        train_fn: trains one; a `Trainer` trains many at once.
        records: inputs (n, *record shape), on the device of training, and labels (n,).
        others: records that no model is trained on and all are asked about.
        models: how many, even.
        queries: see `ShadowEnsemble`.
        folder: keeps what is finished; None keeps nothing.
        generator: draws halves and trainings.
        left: seconds that are left; infinity where they do not count.
        told: how many are done, of how many.

    Returns:
        Answers on the records and then the others; fewer models than asked for where the seconds did not do.

    Raises:
        BudgetExhausted: no seconds are left.
        ConfigError: see `ShadowEnsemble.train`.
    """
    (inputs, labels), n = records, len(records[1])
    inside = halves(n, models, generator)
    if others is not None:
        inputs, labels = torch.cat([inputs, others[0].to(inputs)]), torch.cat([labels, others[1]])
        inside = np.pad(inside, ((0, 0), (0, len(others[1]))))
    stages = None if folder is None else folder / _name(train_fn, inputs, labels, inside)
    parts: list[References] = []
    low, size = 0, PAIR if left() < math.inf else models
    while low < models:
        begun, size = time.perf_counter(), _kept(stages, low) or min(size, models - low)
        if left() <= 0:
            break
        told(low, models)
        ensemble = ShadowEnsemble(
            train_fn=train_fn, queries=queries, folder=None if stages is None else stages / f"{low}-{size}",
            progress=_Progress(told, low, models),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingLearned)  # judged of all stages together
            parts.append(ensemble.train(inputs, labels, inside[low : low + size], generator))
        each = (time.perf_counter() - begun) / size
        low += size
        size = 2 * int(min(size, left() / (2 * each)))
        if not size:
            break
    if not parts:
        raise BudgetExhausted("no seconds were left to train reference models")
    if len(parts) == 1:
        return parts[0]
    whole = References(
        inside=np.concatenate([part.inside for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        labels=parts[0].labels,
    )
    return replace(whole, control=whole.measured(torch.Generator().manual_seed(0)))


class _Progress:
    """Progress of a stage as progress of the whole."""

    def __init__(self, told: Callable[[int, int], None], before: int, total: int) -> None:
        self._told, self._before, self._total = told, before, total

    def __call__(self, done: int, total: int) -> None:
        del total
        self._told(self._before + done, self._total)


def _kept(stages: Path | None, low: int) -> int | None:
    """How many models a stage had that was begun before."""
    found = (
        []
        if stages is None
        else [int(one.name.partition("-")[2]) for one in stages.glob(f"{low}-*")]
    )
    return max(found, default=None)


def _name(train_fn: TrainFunction, inputs: Tensor, labels: Tensor, inside: Bools) -> str:
    """A folder for these reference models and no others; `ShadowEnsemble` checks what is in it."""
    recipe = repr(train_fn.recipe) if isinstance(train_fn, Trainer) else getattr(train_fn, "__qualname__", "")  # fmt: skip
    found = hashlib.sha256(recipe.encode())
    for part in (inputs.cpu().contiguous().numpy(), labels.cpu().numpy(), inside):
        found.update(np.ascontiguousarray(part).data)
    return f"shadows-{found.hexdigest()[:12]}"
