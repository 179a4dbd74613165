"""Weights from answers: models that are affine up to their last step, fitted in float64.

A class's raw score is z_i = w_i x + b_i. The answer is the softmax of log-scores g(z), where g(z) = z for multinomial
regression (binary logistic regression is the one of two classes) and g(z) = log σ(z) for one-vs-rest, whose answer is
σ(z_i) / Σ_j σ(z_j). Two fits, by what the answers still hold:

- `from_logarithms` solves g(z_i) - mean_j g(z_j) = log p_i - mean_j log p_j. For multinomial regression these equations are
  linear, so that one least-squares solution is the model; for one-vs-rest Gauss and Newton's method takes a few more steps.
- `from_rounded` solves for rounded answers by least squares in the probabilities, and then uses that no true answer is
  further from the given one than half of the last digit: it raises the power of the errors, which draws the solution into
  the middle of what the digits allow.

Answers depend on differences of multinomial scores only: what is common to all classes is fixed to zero.

Source:
    [15] F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart. Stealing Machine Learning Models via Prediction APIs.
    USENIX Security 2016, sections 4.1 (equations) and 7 (rounding; numbers recalled).
    D. Marquardt, An algorithm for least-squares estimation of nonlinear parameters, SIAM Journal 1963, for the damping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tacit.core.errors import ConfigError

Link = Literal["softmax", "one-vs-rest"]

#: Errors in units of half of the last digit are raised to these powers one after another.
POWERS = (1, 2, 4)
#: What σ is taken to sum to over the classes, one guess after another.
TOTALS = (1.0, 0.3, 0.1, 1.7, 0.01)
#: Squared error of a record below which a fit of exact answers is taken for the solution.
SOLVED = 1e-16
#: Unknowns beyond which they are not solved for at once: the matrix of so many squared takes 3 GB, and three are held.
MOST_UNKNOWNS = 20_000
#: Below this a probability has lost digits of its logarithm.
SMALLEST = torch.finfo(torch.float64).tiny


class AffineModel(nn.Module):
    """A model as an attack recovered it: log-scores of W x + b, in float64 whatever comes.

    Args:
        weight: (classes, d).
        bias: (classes,).
        link: what the scores go through.
    """

    def __init__(self, weight: Tensor, bias: Tensor, link: Link = "softmax") -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.double())
        self.bias = nn.Parameter(bias.double())
        self.link: Link = link

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-scores (n, classes) of ``inputs`` (n, *shape): their softmax is the answer."""
        raw = nn.functional.linear(inputs.flatten(1).double(), self.weight, self.bias)
        return nn.functional.logsigmoid(raw) if self.link == "one-vs-rest" else raw


def with_one(inputs: Tensor) -> Tensor:
    """Inputs (n, *shape) as (n, 1 + d) float64, the one first, which carries the bias."""
    flat = inputs.flatten(1).double()
    return torch.cat([torch.ones_like(flat[:, :1]), flat], 1)


def from_logarithms(
    points: Tensor, answers: Tensor, link: Link, temperature: float = 1.0
) -> Tensor:
    """Weights whose log-ratios are the answers'.

    Probabilities of zero (below the least normal float64) say nothing here and are left out. Where that leaves more unknowns
    of multinomial regression than can be solved for at once, differences of two classes are solved for one after another.

    Args:
        points: (n, k) float64, see `with_one`.
        answers: (n, c) float64 probabilities that are not rounded.
        link: of the target.
        temperature: of its policy.

    Returns:
        (c, k). With fewer equations than unknowns the shortest solution that was found.

    Raises:
        ConfigError: the unknowns of one-vs-rest are more than can be solved for at once.
    """
    known = answers >= SMALLEST
    logarithms = temperature * answers.clamp_min(SMALLEST).log()
    if link == "softmax" and bool(known.all()):
        wanted = logarithms - logarithms.mean(1, keepdim=True)
        return _least_squares(points, wanted)
    unknowns = answers.shape[1] * points.shape[1]
    if link == "softmax" and unknowns > MOST_UNKNOWNS:
        return _by_pairs(points, logarithms, known)
    check_unknowns(answers.shape[1], points.shape[1])

    def errors(scores: Tensor) -> _Errors:
        log_scores, slopes = _linked(scores, link)
        shown = known.double()
        share = shown / shown.sum(1, keepdim=True).clamp_min(1)
        difference = (log_scores - logarithms) * shown
        residual = difference - shown * difference.sum(1, keepdim=True) * share
        centring = torch.diag_embed(shown) - shown[:, :, None] * share[:, None, :]
        return _Errors(residual, centring * slopes[:, None, :])

    return _best_fit(points, _first_guesses(points, logarithms, link), errors)


def from_rounded(
    points: Tensor,
    answers: Tensor,
    link: Link,
    digits: int,
    temperature: float = 1.0,
    powers: Sequence[int] = POWERS,
) -> Tensor:
    """Weights that put every probability within half of the last digit of the answer, where there are any.

    Args:
        points: (n, k) float64, see `with_one`.
        answers: (n, c) float64, rounded to ``digits`` decimals; zeros count as answers like others.
        link: of the target.
        digits: decimals that are given.
        temperature: of its policy.
        powers: what the errors are raised to, one after another, each from the last one's solution; (1,) is least squares.

    Returns:
        (c, k).

    Raises:
        ConfigError: the unknowns are more than can be solved for at once.
    """
    check_unknowns(answers.shape[1], points.shape[1])
    half = 0.5 * 10.0**-digits
    guesses = _first_guesses(points, temperature * answers.clamp_min(half / 2).log(), link)

    def powered(power: int) -> Callable[[Tensor], _Errors]:
        def errors(scores: Tensor) -> _Errors:
            log_scores, slopes = _linked(scores, link)
            shares = torch.softmax(log_scores / temperature, 1)
            error = (shares - answers) / half
            slope = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]
            outer = power * error.abs() ** (power - 1) / (half * temperature)
            return _Errors(
                error.abs() ** power * error.sign(),
                outer[:, :, None] * slope * slopes[:, None, :],
            )

        return errors

    weights = _best_fit(points, guesses, powered(powers[0]))
    for power in powers[1:]:
        weights, _ = _marquardt(points, weights, powered(power))
    return weights


def determines(answers: Tensor, width: int, link: Link) -> bool:
    """Whether answers hold as many equations as a model has unknowns, probabilities of zero left out.

    For multinomial regression: whether the classes hang together by pairs that are both known in ``width`` records or more.
    For one-vs-rest: whether each class is known in as many, and the equations in all are no fewer than the unknowns.

    Args:
        answers: (n, c) probabilities.
        width: unknowns of a class, d + 1.
        link: of the target.
    """
    known = (answers >= SMALLEST).double()
    if link == "softmax":
        return all(count >= width for _, _, count in _tree(known))
    return equations(answers) >= width * answers.shape[1] and bool((known.sum(0) >= width).all())


def equations(answers: Tensor) -> int:
    """How many log-ratios answers (n, c) hold: of each record one less than it has probabilities above zero."""
    return int(((answers >= SMALLEST).sum(1) - 1).clamp_min(0).sum())


def _tree(known: Tensor) -> list[tuple[int, int, int]]:
    """Pairs (from, to, records that know both) that join all classes, those with most records first; ``known`` (n, c)."""
    together = known.T @ known
    joined, pairs = [0], []
    while len(joined) < len(together):
        open_ = together[joined].clone()
        open_[:, joined] = -1
        at = int(open_.argmax())
        start, end = joined[at // len(together)], at % len(together)
        pairs.append((start, end, int(together[start, end])))
        joined.append(end)
    return pairs


def _by_pairs(points: Tensor, logarithms: Tensor, known: Tensor) -> Tensor:
    """Multinomial weights (c, k), centred, of differences of classes, each from the records in which both are known."""
    weights = points.new_zeros(logarithms.shape[1], points.shape[1])
    for start, end, count in _tree(known.double()):
        both = known[:, start] & known[:, end]
        wanted = (logarithms[:, end] - logarithms[:, start])[both, None]
        apart = _least_squares(points[both], wanted)[0] if count else 0
        weights[end] = weights[start] + apart
    return weights - weights.mean(0)


@dataclass(frozen=True, slots=True)
class _Errors:
    """Residuals (n, c) and their derivatives (n, c, c) with respect to the raw scores."""

    residual: Tensor
    slope: Tensor


def _linked(scores: Tensor, link: Link) -> tuple[Tensor, Tensor]:
    """Log-scores of raw scores, and their slopes."""
    if link == "one-vs-rest":
        return nn.functional.logsigmoid(scores), torch.sigmoid(-scores)
    return scores, torch.ones_like(scores)


def _first_guesses(points: Tensor, logarithms: Tensor, link: Link) -> Iterator[Tensor]:
    """Weights (c, k) to start from; of one-vs-rest as if σ summed to the same total over the classes everywhere."""
    if link == "softmax":
        yield _least_squares(points, logarithms - logarithms.mean(1, keepdim=True))
        return
    shares = torch.softmax(logarithms, 1)
    for total in TOTALS:
        yield _least_squares(points, torch.logit((total * shares).clamp(SMALLEST, 1 - 1e-6)))


def _best_fit(
    points: Tensor, guesses: Iterator[Tensor], errors: Callable[[Tensor], _Errors]
) -> Tensor:
    """The best of the fits from each guess, in turn until one leaves no error."""
    best, least = points.new_zeros(0), math.inf
    for guess in guesses:
        weights, cost = _marquardt(points, guess, errors)
        if cost < least:
            best, least = weights, cost
        if least < SOLVED * len(points):
            break
    return best


def _least_squares(points: Tensor, wanted: Tensor) -> Tensor:
    """The shortest least-squares solution (c, k) of points (n, k) times it = wanted (n, c)."""
    where = points.device
    found: Tensor = torch.linalg.lstsq(points.cpu(), wanted.cpu(), driver="gelsd").solution
    return found.T.contiguous().to(where)


def _marquardt(
    points: Tensor, weights: Tensor, errors: Callable[[Tensor], _Errors], steps: int = 60
) -> tuple[Tensor, float]:
    """Least squares by damped Gauss-Newton steps on all weights at once, from ``weights`` (c, k); and what is left."""
    classes, width = weights.shape
    now = errors(points @ weights.T)
    cost = now.residual.square().sum()
    damping = 1e-3
    for _ in range(steps):
        curvature = now.slope.transpose(1, 2) @ now.slope
        normal = points.new_empty(classes, width, classes, width)
        for i in range(classes):
            for j in range(i, classes):
                block = points.T @ (curvature[:, i, j, None] * points)
                normal[i, :, j, :] = block
                normal[j, :, i, :] = block
        normal = normal.reshape(classes * width, classes * width)
        uphill = torch.einsum("nij,ni->nj", now.slope, now.residual).T @ points
        scale = normal.diagonal().mean()
        if not bool(scale > 0):
            break
        improved = False
        while damping < 1e8 and not improved:
            damped = normal.clone()
            damped.diagonal().add_(damping * scale)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not bool(failed):
                step = torch.cholesky_solve(uphill.reshape(-1, 1), factor)
                trial = weights - step.reshape(classes, width)
                then = errors(points @ trial.T)
                new_cost = then.residual.square().sum()
                improved = bool(new_cost < cost)
            damping *= 0.1 if improved else 10
            damping = max(damping, 1e-15)
        if not improved:
            break
        gain = float((cost - new_cost) / cost)
        weights, now, cost = trial, then, new_cost
        if gain < 1e-9 or float(cost) == 0:
            break
    return weights, float(cost)


def check_unknowns(classes: int, width: int) -> None:
    """That the weights of so many classes, each of ``width``, can be solved for at once.

    Raises:
        ConfigError: they cannot.
    """
    if classes * width > MOST_UNKNOWNS:
        raise ConfigError(
            f"at most {MOST_UNKNOWNS:,} unknowns expected where answers are rounded or of one-vs-rest, {classes} classes of "
            f"{width:,} weights came: their equations are solved at once and need the square of that in memory; extract by "
            "retraining"
        )


def check_link(link: str) -> None:
    """That a link is one of `Link`.

    Raises:
        ConfigError: it is not.
    """
    if link not in ("softmax", "one-vs-rest"):
        raise ConfigError(f"link softmax or one-vs-rest expected, {link!r} came")
