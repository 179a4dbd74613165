"""Reference models of an audit: trained on known halves of the records that are audited, all at once or as seconds allow.

Where there are no seconds to count all models are one `ShadowEnsemble`. Where there are, they are trained four at a time,
for as long as another four are likely to be done in time; each stage has its own folder, so that an interrupted audit goes
on. A population, which no model may be trained on, is asked about along with the rest.
"""

from __future__ import annotations

import hashlib
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

#: Models of a stage: four are the fewest that `tacit.attacks.shadows.Control` can judge.
STAGE = 4


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
    hurried = left() < float("inf")
    stage = STAGE if hurried else models
    name = _name(train_fn, inputs, labels, inside, stage)
    parts: list[References] = []
    longest = 0.0
    for low in range(0, models, stage):
        begun = time.perf_counter()
        if left() <= longest:
            break
        ensemble = ShadowEnsemble(
            train_fn=train_fn, queries=queries, folder=None if folder is None else folder / name / f"{low}",
            progress=_Progress(told, low, models),
        )  # fmt: skip
        told(low, models)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingLearned)  # judged of all stages together
            parts.append(ensemble.train(inputs, labels, inside[low : low + stage], generator))
        longest = max(longest, time.perf_counter() - begun)
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


def _name(
    train_fn: TrainFunction, inputs: Tensor, labels: Tensor, inside: Bools, stage: int
) -> str:
    """A folder for these reference models and no others; `ShadowEnsemble` checks what is in it."""
    recipe = repr(train_fn.recipe) if isinstance(train_fn, Trainer) else getattr(train_fn, "__qualname__", "")  # fmt: skip
    found = hashlib.sha256(f"{recipe} {stage}".encode())
    for part in (inputs.cpu().contiguous().numpy(), labels.cpu().numpy(), inside):
        found.update(np.ascontiguousarray(part).data)
    return f"shadows-{found.hexdigest()[:12]}"
