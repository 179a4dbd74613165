"""Extraction of kernel logistic regression by equations: its weights, and the training records that it holds.

The scores of such a model are V exp(-γ |x - r_s|²) + b, where the representers r_s are records that it was trained on:
whoever finds them has training data, which for other models takes an inversion. The adversary knows the kernel, γ and how
many representers there are. With s of them, d features and c classes there are s d + c (s + 1) unknowns, and each answer
gives c - 1 equations:

1. ask about records drawn uniformly from the domain;
2. from random representers, fit the centred scores to the centred logarithms of the answers: damped Gauss-Newton steps in
   all unknowns at once, whose normal equations have a form that needs no matrix of all derivatives (`_step`);
3. starts take turns until one leaves no error.

What is kept secret from whom: weights and representers, from whoever asks; nothing here protects. **Leaks**: some training
records as they are.

What we changed: the paper minimises by gradient descent from 50,000 equations and shows pictures; second-order steps
take some times fewer equations than that, and come to the records themselves. Its second experiment, in which what comes
out is averages of classes, is not reproduced.

Source:
    [15] F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart. Stealing Machine Learning Models via Prediction APIs.
    USENIX Security 2016, on kernel logistic regression and training data leakage. D. Marquardt, An algorithm for
    least-squares estimation of nonlinear parameters, SIAM Journal 1963.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, Scores
from tacit.attacks.extraction import (
    Asked,
    Box,
    Extraction,
    check_classes,
    extraction,
    need_probabilities,
    needed,
)
from tacit.attacks.extraction_fit import SMALLEST, with_one
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.nn.policies import Policy

#: Mean squared error of a record below which a fit is the solution.
SOLVED = 1e-22
#: Without a number of queries, so many times the equations that the unknowns need.
SPARE_EQUATIONS = 4


class KernelModel(nn.Module):
    """Kernel logistic regression with a Gaussian kernel, in float64 whatever comes.

    Args:
        representers: (s, d).
        weights: (c, 1 + s) of the scores, the bias first.
        gamma: the kernel is exp(-gamma |x - r|²).
    """

    def __init__(self, representers: Tensor, weights: Tensor, gamma: float) -> None:
        super().__init__()
        self.representers = nn.Parameter(representers.double())
        self.weights = nn.Parameter(weights.double())
        self.gamma = gamma

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-scores (n, c) of ``inputs`` (n, *shape)."""
        near = kernel(inputs.flatten(1).double(), self.representers, self.gamma)
        return with_one(near) @ self.weights.T


def kernel(inputs: Tensor, representers: Tensor, gamma: float) -> Tensor:
    """exp(-gamma |x - r|²), (n, s), for ``inputs`` (n, d) and ``representers`` (s, d)."""
    squares = inputs.square().sum(1, keepdim=True) + representers.square().sum(1)
    return torch.exp(-gamma * (squares - 2 * inputs @ representers.T).clamp_min(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelEquations:
    """Solves for representers and weights of a kernel logistic regression that answers with probabilities.

    Needs `input_shape` and `classes`.

    Args:
        representers: how many the target has. With fewer than that the search ends beside the solution, which
            `Extraction.residual` shows, and no record comes out.
        gamma: of its kernel, per squared unit of a feature.
        box: the records that the target takes.
        queries: how many records. None: for four times as many equations as unknowns.
        starts: random representers to start from, one after another until one solves the equations.
        steps: the most of each.

    Raises:
        ConfigError: a setting is out of range.

    Cost: `queries` queries. A step takes `queries` (s d)² multiplications and solves s d + (c - 1) (s + 1) equations.

    Source: [15], on kernel logistic regression.
    """

    name: ClassVar[str] = "extraction-kernel"
    access: ClassVar[type[Scores]] = Scores

    representers: int
    gamma: float
    box: Box = field(default_factory=lambda: Box(dtype=torch.float64))
    queries: int | None = None
    starts: int = 3
    steps: int = 400

    def __post_init__(self) -> None:
        if min(self.representers, self.starts, self.steps) < 1:
            raise ConfigError(
                "at least 1 representer, start and step expected, "
                f"{self.representers}, {self.starts} and {self.steps} came"
            )
        if not 0 < self.gamma < math.inf:
            raise ConfigError(f"a gamma above 0 expected, {self.gamma} came")
        if self.queries is not None and self.queries < 1:
            raise ConfigError(f"at least 1 query expected, {self.queries} came: None takes enough")

    def unknowns(self, width: int, classes: int) -> int:
        """How many numbers the target has for records of ``width`` features."""
        return self.representers * width + classes * (self.representers + 1)

    def extract(
        self, access: Scores, knowledge: Knowledge, generator: torch.Generator
    ) -> Extraction:
        """Ask the target and fit; the model found is a `KernelModel`.

        Args:
            access: the target.
            knowledge: `input_shape` and `classes`.
            generator: draws the records and the starts, on its device.

        Raises:
            ConfigError: something needed is unknown, the policy hides or rounds what is needed, or the target answers with
                another number of classes or takes another type of number.
            DataError: an answer is not a number.
            NotEnoughEvidence: a probability is 0.
            Unfinished: the budget does not do.
        """
        shape, classes = needed(self.name, knowledge)
        need_probabilities(self.name, access.policy, classes)
        if access.policy.digits is not None:
            raise ConfigError(
                f"{self.name} needs all digits and the policy gives {access.policy.digits}: extract by retraining"
            )
        unknowns = self.unknowns(math.prod(shape), classes)
        queries = self.queries or -(-SPARE_EQUATIONS * unknowns // (classes - 1))
        target = Asked(access.scores, self.box)
        check_classes(target.about(self.box.drawn(queries, shape, generator)), classes)
        model = self.solve(target.inputs, target.answers, access.policy, generator)
        enough = queries * (classes - 1) >= unknowns
        return extraction(model, target, access.policy, determined=enough)

    def solve(
        self, inputs: Tensor, answers: Tensor, policy: Policy, generator: torch.Generator
    ) -> KernelModel:
        """The best of the fits to these answers.

        Args:
            inputs: (n, *record shape).
            answers: (n, c) float64, not rounded.
            policy: of the target.
            generator: draws the starts.

        Raises:
            NotEnoughEvidence: a probability is 0.
        """
        if not bool((answers >= SMALLEST).all()):
            raise NotEnoughEvidence(
                "probabilities above 0 expected, some are 0 and have no logarithm: choose a narrower box"
            )
        points = inputs.flatten(1).double()
        logarithms = policy.temperature * answers.log()
        # An orthonormal basis of what is left when the mean over the classes is taken away.
        classes = answers.shape[1]
        whole = torch.eye(classes, dtype=torch.float64, device=points.device) - 1 / classes
        basis = torch.linalg.svd(whole).U[:, : classes - 1]
        problem = _Problem(points, logarithms @ basis, self.gamma)
        best: _State | None = None
        for _ in range(self.starts):
            drawn = self.box.drawn(self.representers, points.shape[1:], generator)
            found = _descended(problem, problem.at(drawn.double().to(points.device)), self.steps)
            if best is None or found.cost < best.cost:
                best = found
            if best.cost < SOLVED * len(points):
                break
        if best is None:  # there is at least one start
            raise ConfigError("at least 1 start expected")
        return KernelModel(best.representers, basis @ best.weights, self.gamma)


class _State(NamedTuple):
    """Representers (s, d) and weights (c - 1, 1 + s), the kernel with a column of ones, and what is left of the errors."""

    representers: Tensor
    weights: Tensor
    near: Tensor
    error: Tensor
    cost: float


@dataclass(frozen=True, slots=True)
class _Problem:
    points: Tensor
    wanted: Tensor
    gamma: float

    def at(self, representers: Tensor, weights: Tensor | None = None) -> _State:
        """With these representers; without weights those that fit best."""
        near = with_one(kernel(self.points, representers, self.gamma))
        if weights is None:
            found = torch.linalg.lstsq(near.cpu(), self.wanted.cpu(), driver="gelsd").solution
            weights = found.T.to(near.device)
        error = near @ weights.T - self.wanted
        return _State(representers, weights, near, error, float(error.square().sum()))


def _descended(problem: _Problem, state: _State, steps: int) -> _State:
    """After so many damped Gauss-Newton steps."""
    damping = 1e-2
    for _ in range(steps):
        normal, uphill = _step(problem, state)
        scale = normal.diagonal().clone().clamp_min(1e-30)
        better = None
        while better is None and damping < 1e12:
            damped = normal.clone()
            damped.diagonal().add_(damping * scale)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not bool(failed):
                step = torch.cholesky_solve(uphill[:, None], factor).flatten()
                cut = state.representers.numel()
                trial = problem.at(
                    state.representers - step[:cut].view_as(state.representers),
                    state.weights - step[cut:].view_as(state.weights),
                )
                better = trial if trial.cost < state.cost else None
            damping *= 2 if better is None else 0.2
        if better is None:
            break
        state, damping = better, max(damping, 1e-15)
        if state.cost < SOLVED * len(problem.points):
            break
    return state


def _step(problem: _Problem, state: _State) -> tuple[Tensor, Tensor]:
    """The normal equations of a Gauss-Newton step, representers first, and the gradient.

    A derivative with respect to r_s is 2 γ k_s (x - r_s), the same for all classes up to their weight of s, so that blocks
    of the normal equations are products over records alone times products of weights.
    """
    count, width = state.representers.shape
    weights, near = state.weights, state.near
    moved = problem.points[:, None, :] - state.representers
    moved = (2 * problem.gamma * near[:, 1:, None] * moved).reshape(len(near), -1)
    outgoing = weights[:, 1:]
    pairs = (moved.T @ moved).view(count, width, count, width)
    pairs = pairs * (outgoing.T @ outgoing)[:, None, :, None]
    mixed = (moved.T @ near).view(count, width, -1)
    mixed = torch.einsum("qs,sdt->sdqt", outgoing, mixed).reshape(count * width, -1)
    own = torch.kron(
        torch.eye(len(weights), dtype=torch.float64, device=near.device), near.T @ near
    )
    pairs = pairs.reshape(count * width, count * width)
    normal = torch.cat([torch.cat([pairs, mixed], 1), torch.cat([mixed.T, own], 1)])
    back = (state.error @ outgoing).repeat_interleave(width, 1)
    uphill = torch.cat([(back * moved).sum(0), (state.error.T @ near).flatten()])
    return normal, uphill
