"""The adversary who knows every record but one, as an audit of a training and as a column of the matrix.

Whoever gets the finished model, and knows the architecture, the settings and all records but one: does it tell from the
model whether that one was trained on? Differential privacy bounds that, for every record; no other protection promises
anything of it. `strong_adversary` trains with and without the record many times over, with fresh coins each time, and
measures how well the models are told apart (`tacit.attacks.all_but_one`).

`StrongAdversary` does so with each row's own protection: each model is what the row's protocol gives out, on a small
federation, as its cost is many trainings. The record is one that training is likely to memorise: it has a wrong label. A
promise to every record covers it too. A protection of the updates promises nothing of the finished model, and here it shows.

Source: see `tacit.attacks.all_but_one`; Carlini et al., "The secret sharer" (USENIX Security 2019), for records that are
planted to measure how they are memorised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from tacit.attacks.all_but_one import FloatArray, in_order, logit_margin
from tacit.audit.cells import About, Measurement, Trial
from tacit.audit.statistics import Estimate, auc, auc_interval
from tacit.core.claims import Claim, PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, NotEnoughEvidence, TacitError
from tacit.dp.audit import most_auc
from tacit.nn.federated import silent
from tacit.parties.views import COUNTS

Train = Callable[[Tensor, Tensor, Coins], nn.Module]
"""From records and labels to a trained model."""

Margins = tuple[FloatArray, FloatArray]
"""A target's logit margins under models that were trained with it, and under models that were not."""

COVERS_ONE_RECORD = ("one record added or removed", "all data of one unit replaced")
"""Neighbouring relations by which leaving one record out gives a neighbour."""


def trained_margins(
    train: Train,
    inputs: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    *,
    models: int,
    coins: Coins,
) -> list[Margins]:
    """Each target's margins under ``models`` trainings with all records, the same for all targets, and as many without it.

    Raises:
        NotEnoughEvidence: fewer than 2 models, or no target.
        ConfigError: a target is not one of the records.

    Cost: models * (1 + targets) trainings.
    """
    if models < 2 or not targets:
        raise NotEnoughEvidence(
            f"at least 2 models and one target expected, got {models} and {len(targets)}"
        )
    if not 0 <= min(targets) <= max(targets) < len(inputs):
        raise ConfigError(f"places of {len(inputs)} records expected, got {list(targets)}")
    places = torch.tensor(list(targets), device=inputs.device)
    everything = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)

    def margins(keep: Tensor, label: str) -> FloatArray:
        found = []
        for k in range(models):
            model = train(inputs[keep], labels[keep], coins.child(f"{label} {k}"))
            found.append(logit_margin(model, inputs[places], labels[places]))
        return np.array(found)

    among = margins(everything, "with all")
    out = []
    for column, target in enumerate(targets):
        rest = everything.clone()
        rest[target] = False
        out.append((among[:, column], margins(rest, f"without {target}")[:, column]))
    return out


def strong_adversary(
    train: Train,
    inputs: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    *,
    models: int,
    coins: Coins,
) -> Estimate:
    """How well one who knows all records but one tells from the finished model whether that one was in.

    Args:
        train: the training that is attacked, start and settings fixed; what differs between calls are its coins.
        inputs: all records, (n, *input shape).
        labels: (n,) int64.
        targets: places of the records that are asked about, one after another.
        models: trained, and judged, with all records; and as many without each target.
        coins: a child of them goes to each training.

    Returns:
        The mean over the targets of the area under the ROC curve, and its interval: DeLong's for one target, n the models;
        for several Student's over the targets, n of them, within [0, 1], which leaves out that they share models. Where all
        targets give one area, that of the first.

    Raises:
        NotEnoughEvidence: fewer than 2 models, or no target.
        ConfigError: a target is not one of the records.

    Cost: models * (1 + targets) trainings.
    """
    found = trained_margins(train, inputs, labels, targets, models=models, coins=coins)
    scores = [in_order(*pair) for pair in found]
    areas = [auc(*pair) for pair in scores]
    spread = float(np.std(areas, ddof=1)) if len(areas) > 1 else 0.0
    if spread == 0:
        return Estimate(value=areas[0], interval=auc_interval(*scores[0]), n=2 * models)
    mean = float(np.mean(areas))
    reach = float(stats.t.ppf(0.975, len(areas) - 1)) * spread / math.sqrt(len(areas))
    return Estimate(
        value=mean, interval=(max(0.0, mean - reach), min(1.0, mean + reach)), n=len(areas)
    )


# --- a column of the matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class StrongAdversary:
    """The one who knows every record but one, against whatever the row gives out.

    The federation is ``owners`` of ``records`` each, the first of the population. The record that is asked about is the last
    of the first owner, with the label after its own in place of it. Everything else is the row's: its protection and
    settings, the start, the order of training. It trains every model, with fresh coins; none is taken from another row.

    Args:
        models: trained with the record, and as many without. From 6 on one seed can tell; of 4, three seeds together.
        owners: of the small federation.
        records: of each owner.
        seconds: the most that a cell may take. A row of which the first two trainings show that it would take longer is not
            attacked, and says how long it would take.

    Raises:
        ConfigError: a number is out of range.
    """

    models: int = 6
    owners: int = 2
    records: int = 20
    seconds: float = 180.0
    name: ClassVar[str] = "all-but-one@holder"
    about: ClassVar[About] = "records"
    title: ClassVar[str] = "The one record that is not known, from the model"
    metric: ClassVar[str] = "auc"
    explains: ClassVar[str] = (
        "Probability that a model trained on one more, mislabelled record is told from one that was not, by someone who "
        "knows all the others and trains as the protection does."
    )
    chance_means: ClassVar[str] = "Telling the models apart by a coin: 0.5."

    def __post_init__(self) -> None:
        if self.models < 2 or self.owners < 1 or self.records < 2 or not self.seconds > 0:
            raise ConfigError(
                "at least 2 models, 1 owner of 2 records and more than 0 seconds expected, got "
                f"{self.models}, {self.owners}, {self.records} and {self.seconds}"
            )

    def measure(self, trial: Trial) -> Measurement:
        """Train the row's protection with and without the record, and tell the models apart."""
        known = trial.knowledge.described()
        knowledge = known | {
            "settings": "all, with the start and the order of training",
            "known_records": self.owners * self.records - 1,
        }
        lab = _Laboratory(trial, self, time.perf_counter())
        try:
            inputs, labels = lab.records()
            ((among, without),) = trained_margins(
                lab.train, inputs, labels, [self.records - 1], models=self.models,
                coins=Coins.from_seed(f"{self.name}/{trial.seed}".encode()),
            )  # fmt: skip
        except TacitError as reason:
            return Measurement(metric=self.metric, knowledge=knowledge, why=f"not run: {reason}")
        scores = in_order(among, without)
        interval = auc_interval(*scores)
        return Measurement(
            metric=self.metric,
            value=auc(*scores),
            n=2 * self.models,
            chance=0.5,
            interval=interval,
            knowledge=knowledge,
            why=f"{self.models} models with the record against {self.models} without, of {len(inputs)} records at "
            f"{self.owners} owners",
            saw={"finished model": "its weights"},
            details={
                "logit_margin_with": [round(x, 3) for x in among.tolist()],
                "logit_margin_without": [round(x, 3) for x in without.tolist()],
                "every_training_gives_one_model": not (np.ptp(among) or np.ptp(without)),
                **_promised(lab.claims, interval[0]),
            },
        )


@dataclass(slots=True)
class _Laboratory:
    """Trains a row's protection on the small federation, and watches the time."""

    trial: Trial
    plan: StrongAdversary
    started: float
    claims: tuple[Claim, ...] = ()
    done: int = 0
    first: float = 0.0

    def records(self) -> tuple[Tensor, Tensor]:
        """The federation's records, owner by owner, with the wrong label in its place."""
        need, target = self.plan.owners * self.plan.records, self.plan.records - 1
        inputs, labels = self.trial.population
        if len(inputs) < need or self.trial.task.classes < 2:
            raise NotEnoughEvidence(
                f"{need} records of at least 2 classes are needed, the population has {len(inputs)} of "
                f"{self.trial.task.classes}: give fewer owners or records, or a larger population"
            )
        inputs, labels = inputs[:need], labels[:need].clone()
        labels[target] = (labels[target] + 1) % self.trial.task.classes
        return inputs, labels

    def train(self, inputs: Tensor, labels: Tensor, coins: Coins) -> nn.Module:
        """What the row gives out; the first owner has one record less where the target is left out."""
        self._check_time()
        each = self.plan.records
        parts = [len(inputs) - each * (self.plan.owners - 1)] + [each] * (self.plan.owners - 1)
        shards = tuple(zip(torch.split(inputs, parts), torch.split(labels, parts), strict=True))
        run = self.trial.protection.train(
            replace(self.trial.task, shards=shards, counts=()),
            coins=coins,
            recording=COUNTS,
            progress=silent,
        )
        self.claims, self.done = self.claims or run.claims, self.done + 1
        return run.output.value

    def _check_time(self) -> None:
        """After two trainings the cost of all is known; the first alone may hold work that is done only once."""
        spent, wanted = time.perf_counter() - self.started, 2 * self.plan.models
        if self.done == 1:
            self.first = spent
        if self.done == 2:
            spent = self.first + (wanted - 1) * (spent - self.first)
        if 0 < self.done < 3 and spent > self.plan.seconds:
            raise NotEnoughEvidence(
                f"{wanted} trainings would take {spent / 60:.1f} min or more, a cell may take {self.plan.seconds:g} s: "
                "raise seconds, or train fewer models"
            )


def _promised(claims: Sequence[Claim], least: float) -> dict[str, Any]:
    """What the training claims of one record, and the largest area that it leaves anybody."""
    losses = [c.value for c in claims if isinstance(c.value, PrivacyLoss)]
    bounded = [loss for loss in losses if math.isfinite(loss.epsilon)]
    if not bounded:
        return {"claimed_epsilon": None}
    loss = min(bounded, key=lambda one: one.epsilon)
    said: dict[str, Any] = {
        "claimed_epsilon": loss.epsilon,
        "claimed_delta": loss.delta,
        "neighbouring": loss.neighbouring,
    }
    if loss.neighbouring in COVERS_ONE_RECORD:
        most = most_auc(loss.epsilon, loss.delta)
        said |= {"most_auc_allowed": most, "claim_refuted": least > most}
    return said
