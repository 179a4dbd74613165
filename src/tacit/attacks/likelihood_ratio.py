"""Membership by a likelihood ratio: which is likelier, that the target saw the record or that it did not?

Of each record the reference models that saw it (IN) and those that did not (OUT) show what a target's confidence phi
looks like in either case (`tacit.attacks.evidence`). Answers to several queries are taken as independent:
log-likelihood ratios add up, deviations are joined as Stouffer's sum / sqrt(q).

What is kept secret from whom: nothing here protects. What leaks is what the target answered.

What we changed: LiRA's pooled variance is taken around each record's own mean (the authors' code takes all records'
together, the differences between records included); a record that no reference model saw, or that all did, is placed by
the mean gap between IN and OUT of the others; offline the score is the deviation itself and not its Gaussian tail, which
rounds to 1 where it matters: the order is the same.

Source:
    N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr. Membership Inference Attacks From First Principles.
    IEEE S&P 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, special, stats

from tacit.attacks.evidence import (
    Answers,
    Bools,
    Evidence,
    FloatArray,
    Integers,
    Need,
    check_needs,
    needs_of,
)
from tacit.core.errors import ConfigError

# Reference models; with fewer, one variance for all records serves better (Carlini et al.).
OWN_VARIANCE_FROM = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LiRA:
    """The likelihood ratio of phi between the models that saw the record and those that did not.

    Online: log N(phi; mean IN, variance IN) - log N(phi; mean OUT, variance OUT). Offline: (phi - mean OUT) / deviation
    OUT, the deviate of the one-sided test.

    Args:
        online: use IN models too.
        variance: ``example``: each record its own, of its IN and of its OUT models (a record with fewer than 2 takes the
            pooled one; never below 1e-4 of the pooled one). ``fixed``: one for all IN and one for all OUT, pooled around
            each record's mean; where no record has 2 models of a side it is the other side's, and where no record has 2
            of either, the spread around the mean of all records, which is too wide but the same for all. ``auto``:
            ``example`` from 64 reference models on, else ``fixed``, as the authors advise.

    Raises:
        ConfigError: no such `variance`.

    Source: Carlini et al. 2022, algorithm 1; equation 4 offline; section VI-C for the variance (recalled).
    """

    online: bool = True
    variance: Literal["auto", "example", "fixed"] = "auto"

    def __post_init__(self) -> None:
        if self.variance not in ("auto", "example", "fixed"):
            raise ConfigError(f"variance auto, example or fixed expected, {self.variance!r} came")

    @property
    def name(self) -> str:
        """``lira-online`` or ``lira-offline``."""
        return "lira-online" if self.online else "lira-offline"

    @property
    def needs(self) -> tuple[Need, ...]:
        """OUT models, online IN models too."""
        return needs_of(self.online)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) log-likelihood ratios (online) or deviates (offline); see `ReferenceAttack.score`."""
        check_needs(self, evidence)
        phi = evidence.asked.phi
        saw, without = _both_sides(evidence.asked)
        mean_in, mean_out = _completed(saw, without)
        own = self.variance == "example" or (
            self.variance == "auto" and evidence.count >= OWN_VARIANCE_FROM
        )
        variance_in, variance_out = _variances(saw, without, own)
        if not self.online:
            return _stouffer((phi - mean_out) / np.sqrt(variance_out))
        ratio = _log_normal(phi, mean_in, variance_in) - _log_normal(phi, mean_out, variance_out)
        total: FloatArray = ratio.sum(0)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentLiRA:
    """`LiRA` with each record's means and variances integrated out: the ratio of two Student t densities.

    Of each side (IN, OUT) the phi of a record are normal with a mean and a variance of its own; these have a
    normal-inverse-gamma prior, whose four numbers are fitted to all records by the largest marginal likelihood. What a
    record's few models say is so weighed against what holds for all records, with nothing to switch or tune: it falls
    back to one pooled variance where models are few, and to the record's own where they are many. The IN side's prior
    mean is the record's posterior OUT mean plus a constant, for a record that is hard unseen is hard seen. With one model
    of a side for each record nothing tells a record's own variance from the differences between records, and `RMIA` is
    the better choice.

    It follows the idea of BaVarIA (R. Brännvall, arXiv 2603.11799) from first principles; the prior and its fit are
    ours, not that paper's.

    Args:
        online: use IN models too. Offline the score is the Gaussian deviate of the OUT side's t (Wallace's formula,
            within 0.02 of the exact one, and finite).

    Source: Gelman et al., Bayesian Data Analysis, section 3.3, for posterior and predictive; D. L. Wallace, Annals of
    Mathematical Statistics 1959.
    """

    online: bool = True

    @property
    def name(self) -> str:
        """``student-lira-online`` or ``student-lira-offline``."""
        return "student-lira-online" if self.online else "student-lira-offline"

    @property
    def needs(self) -> tuple[Need, ...]:
        """OUT models, online IN models too."""
        return needs_of(self.online)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) log-likelihood ratios (online) or deviates (offline); see `ReferenceAttack.score`."""
        check_needs(self, evidence)
        saw, without = _both_sides(evidence.asked)
        found = []
        for q, phi in enumerate(evidence.asked.phi):
            out = _Predictive.fitted(without.of(q), np.zeros_like(phi))
            if self.online:
                within = _Predictive.fitted(saw.of(q), out.mean)
                found.append(within.log_density(phi) - out.log_density(phi))
            else:
                found.append(out.deviate(phi))
        scores = np.stack(found)
        total: FloatArray = scores.sum(0) if self.online else _stouffer(scores)
        return total


class _Moments(NamedTuple):
    """Of each record's models of one side: how many (n,); mean (q, n); sum of squares around it (q, n)."""

    models: Integers
    mean: FloatArray
    squares: FloatArray

    def of(self, q: int) -> _Moments:
        """Those of query q alone, (n,) each."""
        return _Moments(self.models, self.mean[q], self.squares[q])


def _moments(phi: FloatArray, mask: Bools) -> _Moments:
    # One model at a time: temporary arrays stay as small as one model's answers.
    count, mean = mask.sum(0), np.zeros(phi.shape[1:])
    for one, at in zip(phi, mask, strict=True):
        mean += np.where(at, one, 0.0)
    mean /= np.maximum(count, 1)
    squares = np.zeros_like(mean)
    for one, at in zip(phi, mask, strict=True):
        squares += np.where(at, one - mean, 0.0) ** 2
    return _Moments(count, mean, squares)


def _both_sides(asked: Answers) -> tuple[_Moments, _Moments]:
    """IN and OUT."""
    return _moments(asked.reference_phi, asked.inside), _moments(asked.reference_phi, ~asked.inside)


def _completed(saw: _Moments, without: _Moments) -> tuple[FloatArray, FloatArray]:
    """Means IN and OUT, (q, n) each; a missing one is the other one and the mean gap."""
    some_in, some_out = saw.models > 0, without.models > 0
    both = some_in & some_out
    if both.any():
        gap = (saw.mean - without.mean)[:, both].mean(1, keepdims=True)
    elif some_in.any() and some_out.any():
        gap = saw.mean[:, some_in].mean(1, keepdims=True) - without.mean[:, some_out].mean(
            1, keepdims=True
        )
    else:
        gap = np.zeros((len(saw.mean), 1))
    return (
        np.where(some_in, saw.mean, without.mean + gap),
        np.where(some_out, without.mean, saw.mean - gap),
    )


def _variances(saw: _Moments, without: _Moments, own: bool) -> tuple[FloatArray, FloatArray]:
    """Variances IN and OUT, (q, n) each, see `LiRA`."""
    pooled_in, pooled_out = _pooled(saw), _pooled(without)
    if pooled_in is None and pooled_out is None:
        around = [
            side.mean[:, side.models > 0] - side.mean[:, side.models > 0].mean(1, keepdims=True)
            for side in (saw, without)
            if side.models.any()
        ]
        pooled_in = np.square(np.concatenate(around, 1)).mean(1, keepdims=True)
    return (
        _variance(saw, pooled_out if pooled_in is None else pooled_in, own),
        _variance(without, pooled_in if pooled_out is None else pooled_out, own),
    )


def _pooled(side: _Moments) -> FloatArray | None:
    """Variance around each record's mean, (q, 1); None where no record has two models."""
    freedom = int(np.maximum(side.models - 1, 0).sum())
    return side.squares.sum(1, keepdims=True) / freedom if freedom else None


def _variance(side: _Moments, pooled: FloatArray | None, own: bool) -> FloatArray:
    level = np.maximum(0.0 if pooled is None else pooled, 1e-12)
    each = np.maximum(side.squares / np.maximum(side.models, 1), 1e-4 * level)
    found: FloatArray = np.where(own & (side.models > 1), each, level)
    return found


class _Predictive(NamedTuple):
    """Student t of a record's next phi, (n,) each: degrees of freedom, mean, squared scale."""

    freedom: FloatArray
    mean: FloatArray
    square: FloatArray

    @classmethod
    def fitted(cls, side: _Moments, centre: FloatArray) -> _Predictive:
        """The posterior predictive under the prior that fits all records best, its mean ``centre`` plus a constant."""
        seen = side.models > 0
        # In units of the records, so that the fit starts near its end whatever the scale of phi.
        off = (side.mean - centre)[seen]
        pooled = _pooled(_Moments(side.models, side.mean[None], side.squares[None]))
        middle, spread = float(off.mean()), max(float(off.var()), 1e-12)
        level = max(spread if pooled is None else float(pooled[0, 0]), 1e-12)
        scaled = _Moments(
            side.models,
            np.where(seen, (side.mean - centre - middle) / math.sqrt(level), 0.0),
            side.squares / level,
        )
        found = _Prior.fitted(scaled, level / spread).predictive(scaled)
        mean = centre + middle + math.sqrt(level) * found.mean
        return cls(found.freedom, mean, level * found.square)

    def log_density(self, phi: FloatArray) -> FloatArray:
        found: FloatArray = stats.t.logpdf(phi, self.freedom, self.mean, np.sqrt(self.square))
        return found

    def deviate(self, phi: FloatArray) -> FloatArray:
        """The normal deviate with as much probability beyond it (Wallace 1959)."""
        t = (phi - self.mean) / np.sqrt(self.square)
        nu = self.freedom
        found: FloatArray = (
            np.sign(t) * (8 * nu + 1) / (8 * nu + 3) * np.sqrt(nu * np.log1p(t**2 / nu))
        )
        return found


class _Prior(NamedTuple):
    """Normal-inverse-gamma: variance ~ InvGamma(alpha, beta), mean | variance ~ N(centre, variance / kappa)."""

    centre: float
    kappa: float
    alpha: float
    beta: float

    @classmethod
    def fitted(cls, side: _Moments, kappa: float) -> _Prior:
        """The largest marginal likelihood, from variance about 1 and this kappa on."""
        seen = np.flatnonzero(side.models)
        seen = seen[:: -(-len(seen) // 20_000)]  # more records than this teach it nothing
        sample = _Moments(side.models[seen], side.mean[seen], side.squares[seen])

        def loss(at: FloatArray) -> tuple[float, FloatArray]:
            prior = cls(float(at[0]), *np.exp(at[1:]).tolist())
            slopes = np.stack(prior.slopes(sample)).mean(1) * [1, *prior[1:]]  # of the logarithms
            return -float(prior.log_marginal(sample).mean()), -slopes

        start = np.array([0.0, math.log(min(max(kappa, 1e-3), 1e3)), math.log(2), 0.0])
        bounds = [(-1e3, 1e3), *[(math.log(1e-4), math.log(1e4))] * 3]
        options = {"ftol": 1e-13, "gtol": 1e-9, "maxiter": 1000}
        at = optimize.minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x
        return cls(float(at[0]), *np.exp(at[1:]).tolist())

    def posterior(self, side: _Moments) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Mean, kappa, alpha and beta of each record, (n,) each."""
        n, off = side.models, side.mean - self.centre
        kappa: FloatArray = self.kappa + n.astype(np.float64)
        mean = self.centre + n * off / kappa
        beta = self.beta + side.squares / 2 + self.kappa * n * off**2 / (2 * kappa)
        return mean, kappa, self.alpha + n / 2, beta

    def predictive(self, side: _Moments) -> _Predictive:
        """What the next phi of each record is like."""
        mean, kappa, alpha, beta = self.posterior(side)
        return _Predictive(2 * alpha, mean, beta * (kappa + 1) / (alpha * kappa))

    def log_marginal(self, side: _Moments) -> FloatArray:
        """Log-density of a record's phi, (n,)."""
        _, kappa, alpha, beta = self.posterior(side)
        found: FloatArray = (
            special.gammaln(alpha)
            - special.gammaln(self.alpha)
            + self.alpha * math.log(self.beta)
            - alpha * np.log(beta)
            + (math.log(self.kappa) - np.log(kappa)) / 2
            - side.models * math.log(2 * math.pi) / 2
        )
        return found

    def slopes(self, side: _Moments) -> tuple[FloatArray, ...]:
        """Derivatives of `log_marginal` by centre, kappa, alpha and beta, (n,) each."""
        n, off = side.models, side.mean - self.centre
        _, kappa, alpha, beta = self.posterior(side)
        return (
            alpha / beta * self.kappa * n * off / kappa,
            (1 / self.kappa - 1 / kappa) / 2 - alpha / beta * (n * off / kappa) ** 2 / 2,
            special.digamma(alpha)
            - special.digamma(self.alpha)
            + math.log(self.beta)
            - np.log(beta),
            self.alpha / self.beta - alpha / beta,
        )


def _log_normal(x: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
    found: FloatArray = -0.5 * ((x - mean) ** 2 / variance + np.log(2 * math.pi * variance))
    return found


def _stouffer(deviates: FloatArray) -> FloatArray:
    found: FloatArray = deviates.sum(0) / math.sqrt(len(deviates))
    return found
