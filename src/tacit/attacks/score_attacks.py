"""Membership scores from a target's answers, compared with a constant, other records' or other models' answers.

Of several queries a record all average their score over the queries. The higher a score, the more the record looks like
a member.

What is kept secret from whom: nothing here protects. What leaks is what the target answered.

Source:
    S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha. Privacy Risk in Machine Learning: Analyzing the Connection to
    Overfitting. IEEE CSF 2018 (loss). A. Salem et al., NDSS 2019 (confidence and entropy). L. Song, P. Mittal.
    Systematic Evaluation of Privacy Risks of Machine Learning Models. USENIX Security 2021 (modified entropy). J. Ye,
    A. Maddi, S. K. Murakonda, V. Bindschaedler, R. Shokri. Enhanced Membership Inference Attacks against Machine
    Learning Models. CCS 2022 (P and R).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tacit.attacks.evidence import (
    Evidence,
    FloatArray,
    Need,
    averaged,
    check_needs,
    log_probability,
    log_softmax,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The log of the true class's probability.

    Source: Yeom et al. 2018, adversary 2.
    """

    name: ClassVar[str] = "loss"
    needs: ClassVar[tuple[Need, ...]] = ()

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores, at most 0; see `ReferenceAttack.score`."""
        return averaged(log_probability(evidence.asked.phi))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxConfidence:
    """The log of the largest probability, of whatever class.

    Source: Salem et al. 2019, adversary 3.
    """

    name: ClassVar[str] = "max-confidence"
    needs: ClassVar[tuple[Need, ...]] = ()

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores, at most 0; see `ReferenceAttack.score`."""
        return averaged(np.stack([log_softmax(rows)[0].max(1) for rows in evidence.asked.raw]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entropy:
    """Minus the entropy of the answer, in nats.

    Source: Salem et al. 2019, adversary 3.
    """

    name: ClassVar[str] = "entropy"
    needs: ClassVar[tuple[Need, ...]] = ()

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores, at most 0; see `ReferenceAttack.score`."""
        found = []
        for rows in evidence.asked.raw:
            log_p, _ = log_softmax(rows)
            found.append((np.exp(log_p) * log_p).sum(1))
        return averaged(np.stack(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModifiedEntropy:
    """Minus the modified entropy -(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i).

    One threshold serves all classes; the authors also fit one a class.

    Source: Song & Mittal 2021, equation 6.
    """

    name: ClassVar[str] = "modified-entropy"
    needs: ClassVar[tuple[Need, ...]] = ()

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores, at most 0; see `ReferenceAttack.score`."""
        found, at = [], evidence.asked.labels[:, None]
        for rows in evidence.asked.raw:
            log_p, log_rest = log_softmax(rows)
            terms = np.exp(log_p) * log_rest
            own = np.exp(np.take_along_axis(log_rest, at, 1)) * np.take_along_axis(log_p, at, 1)
            np.put_along_axis(terms, at, own, 1)
            found.append(terms.sum(1))
        return averaged(np.stack(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackP:
    """The share of the population that the target is less sure of: one threshold for all records.

    It ranks as `Loss` does, on a scale that says how many non-members a threshold would flag.

    Source: Ye et al. 2022, attack P.
    """

    name: ClassVar[str] = "population"
    needs: ClassVar[tuple[Need, ...]] = ("population",)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores in [0, 1]; a tie counts one half; see `ReferenceAttack.score`."""
        check_needs(self, evidence)
        pairs = zip(evidence.asked.phi, evidence.others.phi, strict=True)
        return averaged(np.stack([_share_below(one, others) for one, others in pairs]))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackR:
    """The share of the record's OUT models that are less sure of it than the target: a threshold a record.

    With r OUT models a score takes r + 1 values (and halves), so few of them cannot tell low false positive rates. A
    record without OUT model scores 0.5, which says nothing.

    Source: Ye et al. 2022, attack R.
    """

    name: ClassVar[str] = "reference"
    needs: ClassVar[tuple[Need, ...]] = ("references-out",)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores in [0, 1]; a tie counts one half; see `ReferenceAttack.score`."""
        check_needs(self, evidence)
        asked = evidence.asked
        beaten, count = np.zeros_like(asked.phi), (~asked.inside).sum(0)
        for phi, out in zip(asked.reference_phi, ~asked.inside, strict=True):
            beaten += out * ((phi < asked.phi) + 0.5 * (phi == asked.phi))
        return averaged(np.where(count > 0, beaten / np.maximum(count, 1), 0.5))


def _share_below(these: FloatArray, those: FloatArray) -> FloatArray:
    ordered = np.sort(those)
    found: FloatArray = (
        np.searchsorted(ordered, these, "left") + np.searchsorted(ordered, these, "right")
    ) / (2.0 * len(those))
    return found
