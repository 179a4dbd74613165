"""How near an extracted model comes to its target: agreement, total variation, the largest difference.

Both models' answers to the same records are compared; the audit holds the target and may ask it without limit. The paper's
R_test and R_unif are one minus the `agreement` on test records and on records uniform in the domain, R_TV the mean
`total_variation`.

Source:
    [15] F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart. Stealing Machine Learning Models via Prediction APIs.
    USENIX Security 2016 (extraction errors R_test, R_unif and R_TV).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tacit.audit.statistics import Estimate, clopper_pearson
from tacit.core.errors import ConfigError, DataError, NotEnoughEvidence
from tacit.nn.policies import EVERYTHING, Policy

#: Records asked about at a time; bounds the memory.
BATCH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """An extracted model beside its target on one set of records.

    Args:
        agreement: the share of records on which both name the same class, with its 95 % interval.
        total_variation: the mean over records of half the sum of differences.
        largest_difference: of any probability of any record.
    """

    agreement: Estimate
    total_variation: float
    largest_difference: float

    def as_json(self) -> dict[str, object]:
        """As plain values."""
        return {
            "agreement": self.agreement.as_json(),
            "total_variation": self.total_variation,
            "largest_difference": self.largest_difference,
        }


def fidelity(
    target: nn.Module,
    extracted: nn.Module,
    inputs: Tensor,
    *,
    policy: Policy = EVERYTHING,
    tie: float = 0.0,
) -> Fidelity:
    """Compare two models on the same records.

    Args:
        target: gives logits (n, classes).
        extracted: gives logits (n, classes) for the same records.
        inputs: (n, *record shape), of the target's type.
        policy: applied to both answers.
        tie: see `agreement`.

    Raises:
        NotEnoughEvidence: there is no record.
        ConfigError: the models have different classes.
        DataError: an answer is not a number.
    """
    theirs, own = answers(target, inputs, policy), answers(extracted, inputs, policy)
    return Fidelity(
        agreement=agreement(theirs, own, tie=tie),
        total_variation=float(total_variation(theirs, own).mean()),
        largest_difference=largest_difference(theirs, own),
    )


def answers(model: nn.Module, inputs: Tensor, policy: Policy = EVERYTHING) -> Tensor:
    """What a model answers: (n, classes) float64.

    Args:
        model: gives logits.
        inputs: (n, *record shape), at least one.
        policy: what is done to an answer.

    Raises:
        NotEnoughEvidence: there is no record.
    """
    if not len(inputs):
        raise NotEnoughEvidence("at least one record expected, none came")
    model.eval()
    with torch.no_grad():
        return torch.cat([policy.answers(model(part)) for part in torch.split(inputs, BATCH)])


def accuracy(answered: Tensor, labels: Tensor) -> Estimate:
    """The share of records whose likeliest class is their label, with its 95 % interval.

    Args:
        answered: (n, classes) probabilities.
        labels: (n,) int64.

    Raises:
        NotEnoughEvidence: there is no record.
        ConfigError: labels and answers do not match.
        DataError: an answer is not a number.
    """
    _check(answered, answered)
    if labels.shape != (len(answered),):
        raise ConfigError(
            f"a label for each of {len(answered)} records expected, {tuple(labels.shape)} came"
        )
    return _share(answered.argmax(1) == labels.to(answered.device))


def agreement(target: Tensor, extracted: Tensor, *, tie: float = 0.0) -> Estimate:
    """The share of records on which both name the same class, with its 95 % interval.

    Args:
        target: (n, classes) probabilities.
        extracted: (n, classes).
        tie: how far below the target's largest probability a class may be and still count as named by it. Above 0 where the
            target has classes that are always equally likely: which of them is named is a matter of rounding.

    Raises:
        NotEnoughEvidence: there is no record.
        ConfigError: the shapes differ.
        DataError: an answer is not a number.
    """
    _check(target, extracted)
    named = extracted.argmax(1, keepdim=True)
    if tie == 0:
        return _share(named.squeeze(1) == target.argmax(1))
    return _share(target.gather(1, named).squeeze(1) >= target.max(1).values - tie)


def elsewhere(target: Tensor, extracted: Tensor) -> tuple[float, float | None]:
    """What agreement is worth where one class is named nearly always.

    Args:
        target: (n, classes) probabilities.
        extracted: (n, classes).

    Returns:
        The share of records on which the target names the class that it names most often, which is the agreement of a copy
        that always names that one; and the agreement on all other records, None where there are none.

    Raises:
        NotEnoughEvidence: there is no record.
        ConfigError: the shapes differ.
        DataError: an answer is not a number.
    """
    _check(target, extracted)
    named = target.argmax(1)
    usual = named.bincount().argmax()
    others = named != usual
    share = float((~others).double().mean())
    if not bool(others.any()):
        return share, None
    return share, float((extracted.argmax(1) == named)[others].double().mean())


def total_variation(target: Tensor, extracted: Tensor) -> Tensor:
    """Half the sum of the differences between two distributions, of each record: (n,) in [0, 1].

    Args:
        target: (n, classes) probabilities.
        extracted: (n, classes).

    Raises:
        NotEnoughEvidence: there is no record.
        ConfigError: the shapes differ.
        DataError: an answer is not a number.
    """
    _check(target, extracted)
    return (target - extracted).abs().sum(1) / 2


def largest_difference(target: Tensor, extracted: Tensor) -> float:
    """Largest |f - f'| over all records and classes.

    Args:
        target: (n, classes) probabilities.
        extracted: (n, classes).

    Raises:
        NotEnoughEvidence: there is no record.
        ConfigError: the shapes differ.
        DataError: an answer is not a number.
    """
    _check(target, extracted)
    return float((target - extracted).abs().max())


def _share(hits: Tensor) -> Estimate:
    count, n = int(hits.sum()), len(hits)
    return Estimate(value=count / n, interval=clopper_pearson(count, n), n=n)


def _check(target: Tensor, extracted: Tensor) -> None:
    if target.dim() != 2 or target.shape != extracted.shape:
        raise ConfigError(
            f"answers of one shape (n, classes) expected, {tuple(target.shape)} and {tuple(extracted.shape)} came"
        )
    if not len(target):
        raise NotEnoughEvidence("at least one record expected, none came")
    for name, values in (("target", target), ("extracted model", extracted)):
        if not bool(values.isfinite().all()):
            raise DataError(f"finite answers of the {name} expected: it diverged")
