"""Membership by how much more the target's confidence in a record rose, over the reference models, than in others.

What is kept secret from whom: nothing here protects. What leaks is what the target answered.

What we changed: p is the softmax probability at a temperature, which is tuned with a (the authors also have a Taylor
softmax, which is not here); `RMIA` says what it does for a record without OUT model.

Source:
    S. Zarifzadeh, P. Liu, R. Shokri. Low-Cost High-Power Membership Inference Attacks. ICML 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from tacit.attacks.evidence import (
    Answers,
    Bools,
    Evidence,
    FloatArray,
    Need,
    averaged,
    check_needs,
    log_probability,
    needs_of,
)
from tacit.core.errors import ConfigError


class Tuning(NamedTuple):
    """What `RMIA` uses: the a of its p(x), and the temperature of its probabilities."""

    a: float
    temperature: float


UNTUNED = Tuning(0.3, 2.0)  # privacy-meter's a; the paper's temperature on CIFAR-10 (recalled)
TEMPERATURES = (1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RMIA:
    """The share of other records z with p(x | target) / p(x) >= gamma p(z | target) / p(z).

    p(x) is the probability of the true class without knowing whether x was seen: the mean of p_IN and p_OUT. What the
    reference models do not give is estimated by p_IN = a p_OUT + 1 - a: offline p_IN, so that p(x) = ((1 + a) p_OUT +
    1 - a) / 2; for a record without OUT model p_OUT = (p_IN + a - 1) / a, at least 0, and p_IN itself is taken as it is.
    So one reference model is enough. The records z are the population or, without one, the records that are asked about,
    each with its own IN and OUT models.

    Probabilities are those of the logits divided by a temperature: at 1 a model that fits its members well is as sure of
    many others, and p tells them apart badly. With one query the order does not depend on gamma except through ties.

    Args:
        online: take p_IN from IN models where a record has some.
        gamma: above 0. 1 is privacy-meter's; the paper uses 2 for most of its figures (recalled).
        a: in [0, 1]; None tunes it, see `tuned`.
        temperature: above 0; None tunes it.
        tuned_on: how many reference models play the target in turn for that; 1 is privacy-meter's way.

    Raises:
        ConfigError: a setting is out of range.

    Source: Zarifzadeh et al. 2024, equations 4, 9 and 10, appendix B for a and the temperature (recalled); the single
    model's formula is privacy-meter's.
    """

    online: bool = False
    gamma: float = 1.0
    a: float | None = None
    temperature: float | None = None
    tuned_on: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf or self.tuned_on < 1:
            raise ConfigError(
                f"gamma above 0 and tuned_on at least 1 expected, {self.gamma} and {self.tuned_on} came"
            )
        if self.a is not None and not 0 <= self.a <= 1:
            raise ConfigError(f"a in [0, 1] expected, {self.a} came: None tunes it")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"a temperature above 0 expected, {self.temperature} came: None tunes it"
            )

    @property
    def name(self) -> str:
        """``rmia-online`` or ``rmia-offline``."""
        return "rmia-online" if self.online else "rmia-offline"

    @property
    def needs(self) -> tuple[Need, ...]:
        """OUT models, online IN models too; one model that saw some of the records is both."""
        return needs_of(self.online)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) shares in [0, 1]; see `ReferenceAttack.score`."""
        check_needs(self, evidence)
        found = self.tuned(evidence)
        return self._ratios(evidence, found.temperature).shares(found.a, self.gamma)

    def tuned(self, evidence: Evidence) -> Tuning:
        """The a of 0, 0.1, ..., 1 and temperature of 1, 2, 4 by which attacking reference models goes best.

        Each of the first `tuned_on` reference models is attacked with the help of the others, and the mean AUC decides;
        of equals the a nearest to 0.3 and the lowest temperature. All is known of reference models: the target is not
        looked at. Only records with an OUT model among the others count. Where these are all members of the model that
        plays the target, or none (one reference model; two that halve the records), nothing can be tuned, and it is 0.3
        and 2. What is set is not tuned.

        Cost: all logits are read again for every temperature but 1.
        """
        steps = sorted((step / 10 for step in range(11)), key=lambda a: abs(a - UNTUNED.a))
        grid_a = steps if self.a is None else [self.a]
        grid_t = TEMPERATURES if self.temperature is None else (self.temperature,)
        played = range(min(self.tuned_on, evidence.count) if evidence.count > 1 else 0)
        trials = {}
        for k in played:
            fair = ~np.delete(evidence.asked.inside, k, 0).all(0)
            truth = evidence.asked.inside[k][fair]
            if truth.any() and not truth.all():
                trials[k] = (fair, truth)
        best = Tuning(
            UNTUNED.a if self.a is None else self.a,
            UNTUNED.temperature if self.temperature is None else self.temperature,
        )
        most = -math.inf
        if not trials or len(grid_a) * len(grid_t) == 1:
            return best
        for temperature in grid_t:
            tempered = self._tempered(evidence, temperature)
            ratios = {k: self._ratios(tempered.as_if(k), 1.0) for k in trials}
            for a in grid_a:
                reached = sum(
                    _auc(ratios[k].shares(a, self.gamma)[fair], truth)
                    for k, (fair, truth) in trials.items()
                )
                if reached > most:
                    best, most = Tuning(a, temperature), reached
        return best

    @staticmethod
    def _tempered(evidence: Evidence, temperature: float) -> Evidence:
        return Evidence(
            asked=evidence.asked.tempered(temperature, evidence.memory),
            others=evidence.others.tempered(temperature, evidence.memory),
            memory=evidence.memory,
        )

    def _ratios(self, evidence: Evidence, temperature: float) -> _Ratios:
        tempered = self._tempered(evidence, temperature)
        ours = _Probabilities.of(tempered.asked, self.online)
        theirs = _Probabilities.of(tempered.others, self.online)
        return _Ratios(ours, theirs if len(evidence.others.labels) else ours)


class _Probabilities(NamedTuple):
    """Logs of p(x | target), p_IN and p_OUT, (q, n) each; and of which records the last two are to be guessed, (n,)."""

    target: FloatArray
    inside: FloatArray
    outside: FloatArray
    guess_inside: Bools
    guess_outside: Bools

    @classmethod
    def of(cls, answers: Answers, online: bool) -> _Probabilities:
        mask = answers.inside
        known_in: Bools = np.asarray(mask.any(0))
        known_out: Bools = np.asarray((~mask).any(0))
        return cls(
            log_probability(answers.phi),
            _log_mean_p(answers.reference_phi, mask),
            _log_mean_p(answers.reference_phi, ~mask),
            known_out & ~known_in if online else known_out,
            ~known_out,
        )

    def log_ratio(self, a: float) -> FloatArray:
        """Log of p(x | target) / p(x), (q, n)."""
        with np.errstate(divide="ignore"):
            # At a = 0 nothing is known of p_OUT, and the untuned a stands in; at 1 it is p_IN exactly.
            slope = a or UNTUNED.a
            rest = np.exp(self.inside) - (1 - slope)
            guessed = self.inside if a == 1 else np.log(np.maximum(rest, 0) / slope)
            outside = np.where(self.guess_outside, guessed, self.outside)
            guessed = np.logaddexp(outside + np.log(a), np.log1p(-a))
        inside = np.where(self.guess_inside, guessed, self.inside)
        found: FloatArray = self.target - (np.logaddexp(inside, outside) - math.log(2))
        return found


class _Ratios(NamedTuple):
    ours: _Probabilities
    theirs: _Probabilities

    def shares(self, a: float, gamma: float) -> FloatArray:
        """The share of z that x dominates, (n,)."""
        shares = [
            np.searchsorted(np.sort(z), x - math.log(gamma), side="right") / len(z)
            for x, z in zip(self.ours.log_ratio(a), self.theirs.log_ratio(a), strict=True)
        ]
        return averaged(np.stack(shares))


def _log_mean_p(phi: FloatArray, mask: Bools) -> FloatArray:
    """Log of the mean p over the models in ``mask`` (K, n); (q, n), minus infinity where there is none."""
    total = np.full(phi.shape[1:], -np.inf)
    for one, at in zip(phi, mask, strict=True):
        total = np.logaddexp(total, np.where(at, log_probability(one), -np.inf))
    found: FloatArray = total - np.log(np.maximum(mask.sum(0), 1))
    return found


def _auc(scores: FloatArray, truth: Bools) -> float:
    ranks = stats.rankdata(scores)
    members = int(truth.sum())
    return float((ranks[truth].mean() - (members + 1) / 2) / (len(truth) - members))
