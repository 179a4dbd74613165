"""Columns of the matrix that ask who was in the training data, from what the finished model answers.

`MembershipFrom` runs the attacks of `tacit.attacks.membership`, `ReferenceModels` those that compare the target with models
trained with and without a record. All are judged alike: the area under the ROC curve of members against as many others, and
the true positive rate at low false positive rates where the sample supports it.

What an adversary of each column knows beforehand is printed in its cells. None sees which records are members: it is used
after the scores are there, to judge them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from tacit.attacks.access import Knowledge, Labels, Scores
from tacit.attacks.evidence import Evidence
from tacit.attacks.likelihood_ratio import LiRA, StudentLiRA
from tacit.attacks.membership import LabelGap, LossThreshold, ShadowModels
from tacit.attacks.rmia import RMIA
from tacit.attacks.shadows import NothingLearned, References, ShadowEnsemble, halves
from tacit.audit import statistics
from tacit.audit.cells import About, Measurement, Trial
from tacit.core.errors import ConfigError, NotEnoughEvidence


@dataclass(frozen=True, slots=True)
class MembershipFrom:
    """Membership inference on the released model.

    Args:
        attack: one of `tacit.attacks.membership`.
        title: a few words for a heading.
        vantage: scores or labels.
    """

    attack: LossThreshold | ShadowModels | LabelGap
    title: str
    vantage: Literal["scores", "labels"]
    metric: ClassVar[str] = "auc"
    about: ClassVar[About] = "records"
    explains: ClassVar[str] = (
        "Probability that the attack ranks a training record above a record that was not trained on."
    )
    chance_means: ClassVar[str] = "Ranking at random: 0.5."

    @property
    def name(self) -> str:
        """``attack@vantage``."""
        return f"{self.attack.name}@{self.vantage}"

    def measure(self, trial: Trial) -> Measurement:
        """Score members and non-members through the access of the vantage, and rank them."""
        model = trial.run.output.value
        access = Scores(model) if self.vantage == "scores" else Labels(model)
        knowledge = Knowledge(
            input_shape=trial.task.input_shape,
            classes=trial.task.classes,
            population=trial.population if self.vantage == "scores" else None,
            train_fn=trial.train_fn if self.vantage == "scores" else None,
        )
        inputs, labels = (
            torch.cat(pair) for pair in zip(trial.members, trial.nonmembers, strict=True)
        )
        generator = trial.generator(self.name)
        if isinstance(self.attack, ShadowModels) and isinstance(access, Scores):
            learned = trial.once(self.name, partial(self.attack.learn, knowledge, generator))
            scores = self.attack.judged(learned, access, inputs, labels)
        else:
            scores = self.attack.score(access, knowledge, inputs, labels, generator)  # type: ignore[arg-type]
        measured = _ranked(trial, scores, knowledge, access)
        at_threshold = _at_threshold(self.attack.threshold, *_sides(trial, scores))
        return replace(measured, details=at_threshold | measured.details)


# --- reference models


@dataclass(frozen=True, slots=True)
class ReferenceModels:
    """Membership inference by models that were trained with and without the records which are asked about.

    The adversary holds those records, members and others in one heap, and the recipe. It trains ``models`` on a random half
    of the heap each (`tacit.attacks.shadows.halves`), as many records as the target's where half of them are members; each
    record is in half of the models. No other record is needed. The models depend on the seed and the number alone: all rows
    and all attacks of a seed share them, and they count in the time of the cell that was first.

    Args:
        attack: one of `tacit.attacks.reference_attacks` that reads IN and OUT models.
        title: a few words for a heading.
        models: how many reference models; even, at least 4.

    Raises:
        ConfigError: an odd number of models, or fewer than 4.
    """

    attack: LiRA | StudentLiRA | RMIA
    title: str
    models: int = 16
    metric: ClassVar[str] = "auc"
    about: ClassVar[About] = "records"
    explains: ClassVar[str] = MembershipFrom.explains
    chance_means: ClassVar[str] = MembershipFrom.chance_means

    def __post_init__(self) -> None:
        if self.models < 4 or self.models % 2:
            raise ConfigError(f"an even number of models from 4 on expected, {self.models} came")

    @property
    def name(self) -> str:
        """``attack@vantage``."""
        return f"membership-{self.attack.name.removesuffix('-online')}@scores"

    def measure(self, trial: Trial) -> Measurement:
        """Ask the target about members and non-members, and compare its answers with those of the reference models."""
        inputs, labels = (
            torch.cat(pair) for pair in zip(trial.members, trial.nonmembers, strict=True)
        )
        references = trial.once(
            f"reference-models/{self.models}", partial(self._trained, trial, inputs, labels)
        )
        knowledge = Knowledge(
            input_shape=trial.task.input_shape,
            classes=trial.task.classes,
            train_fn=trial.train_fn,
            candidates=(inputs, labels),
            references=references,
        )
        access = Scores(trial.run.output.value)
        with np.errstate(divide="ignore"):  # a probability that underflows is minus infinity
            answers = np.log(access.scores(inputs).numpy())
        scores = self.attack.score(Evidence.gather(answers[None], labels.numpy(), references))
        measured = _ranked(trial, torch.from_numpy(scores), knowledge, access)
        said: dict[str, Any] = {"reference_models_train_on": int(references.inside[0].sum())}
        if references.control is not None:
            said |= {
                "reference_models_gap": references.control.gap,
                "reference_models_gap_p_value": references.control.p_value,
            }
        return replace(measured, details=measured.details | said)

    def _trained(self, trial: Trial, inputs: Tensor, labels: Tensor) -> References:
        generator = trial.generator(f"reference-models/{self.models}")
        inside = halves(len(inputs), self.models, generator)
        with warnings.catch_warnings():  # where they learn nothing, the details show it
            warnings.simplefilter("ignore", NothingLearned)
            return ShadowEnsemble(train_fn=trial.train_fn).train(inputs, labels, inside, generator)


# --- the judgement


def _sides(trial: Trial, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the members and of the others."""
    return scores[: len(trial.members[0])], scores[len(trial.members[0]) :]


def _ranked(
    trial: Trial, scores: Tensor, knowledge: Knowledge, access: Scores | Labels
) -> Measurement:
    """How well scores, of all members and then of all others, rank the former above the latter."""
    inside, outside = _sides(trial, scores)
    fpr, tpr = statistics.roc(inside, outside)
    asked = "scores" if isinstance(access, Scores) else "labels"
    return Measurement(
        metric="auc",
        value=statistics.auc(inside, outside),
        n=len(inside) + len(outside),
        chance=0.5,
        interval=statistics.auc_interval(inside, outside),
        knowledge=knowledge.described(),
        why=f"{len(inside)} members against {len(outside)} non-members",
        saw={"released model": f"its {asked} for any record"},
        queries=access.counter.spent,
        details=_low_rates(inside, outside),
        figures={"roc": _thinned(fpr.tolist(), tpr.tolist())},
    )


def _at_threshold(threshold: float | None, inside: Tensor, outside: Tensor) -> dict[str, Any]:
    """Balanced accuracy of an attack that fixes its own threshold; the best threshold found afterwards would flatter it."""
    if threshold is None:
        return {}
    judged = statistics.balanced_accuracy(inside, outside, threshold=threshold)
    return {"balanced_accuracy": judged.as_json()}


def _low_rates(inside: Tensor, outside: Tensor) -> dict[str, Any]:
    """TPR at low false positive rates, where the sample supports the figure."""
    out: dict[str, Any] = {}
    for fpr in (0.1, 0.01, 0.001):
        try:
            out[f"tpr@{fpr:g}fpr"] = statistics.tpr_at_fpr(inside, outside, fpr).as_json()
        except NotEnoughEvidence as reason:
            out[f"tpr@{fpr:g}fpr"] = {"left_out": str(reason)}
    return out


def _thinned(fpr: list[float], tpr: list[float], points: int = 200) -> dict[str, list[float]]:
    step = max(1, math.ceil(len(fpr) / points))
    kept = sorted({*range(0, len(fpr), step), len(fpr) - 1, *range(min(len(fpr), 40))})
    return {"fpr": [round(fpr[k], 5) for k in kept], "tpr": [round(tpr[k], 5) for k in kept]}
