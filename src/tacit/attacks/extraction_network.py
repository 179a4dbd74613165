"""Model extraction by equations, continued: networks with one hidden layer, from the probabilities that they answer with.

A network V tanh(U x + a) + b answers with the softmax of its scores. With h hidden units, d features and c classes it has
h (d + 1) + c (h + 1) weights, and each answer gives c - 1 equations, none of them linear:

1. ask about records drawn uniformly from the domain;
2. from several random starts, fit the network's centred scores to the centred logarithms of the answers by L-BFGS in
   float64: in logarithms it is a regression without a softmax, and each answer tells as much as any other. Where answers are
   rounded, the cross-entropy is fitted instead;
3. starts compete: after a few steps the better ones go on, until one is left (`NetworkEquations.starts`);
4. the network that is fitted has some hidden units more than the target, which leave a search that would end beside the
   solution a way on (`NetworkEquations.spare`).

A hidden layer of sigmoids is the same family, as σ(z) = (1 + tanh(z / 2)) / 2: such targets are extracted as they are.

What is kept secret from whom: the model's weights, from whoever asks; nothing here protects. **Leaks**: the function on all
of the domain. Hidden units are found up to their order and sign, and some more than once where there are spare ones.

What we changed: the paper minimises the loss in the probabilities by stochastic gradient descent, for a network of the
target's size, and takes several times more records than unknowns for the same agreement.

Source:
    [15] F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart. Stealing Machine Learning Models via Prediction APIs.
    USENIX Security 2016, section 4.1 (number recalled). D. Liu, J. Nocedal, On the limited memory BFGS method for large
    scale optimization, Mathematical Programming 1989.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
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
from tacit.attacks.extraction_fit import SMALLEST, equations, with_one
from tacit.core.errors import ConfigError
from tacit.nn.policies import Policy

FloatArray = npt.NDArray[np.float64]

#: Mean squared error of a fit in logarithms below which no further start is tried.
SOLVED = 1e-9


class HiddenLayerModel(nn.Module):
    """A network with one hidden layer of tanh as an attack recovered it, in float64 whatever comes.

    Args:
        inner: (h, 1 + d) weights of the hidden layer, the bias first.
        outer: (c, 1 + h) weights of the scores, the bias first.
    """

    def __init__(self, inner: Tensor, outer: Tensor) -> None:
        super().__init__()
        self.inner = nn.Parameter(inner.double())
        self.outer = nn.Parameter(outer.double())

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-scores (n, c) of ``inputs`` (n, *shape)."""
        hidden = torch.tanh(with_one(inputs) @ self.inner.T)
        return with_one(hidden) @ self.outer.T


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEquations:
    """Solves for the weights of a network with one hidden layer that answers with probabilities.

    Needs `input_shape` and `classes`.

    Args:
        box: the records that the target takes.
        hidden: units of the target's hidden layer.
        spare: units that the fitted network has beyond these; None for three tenths as many, and at least one.
        queries: how many records. None: as many as the target has weights, and no fewer than give twice as many equations
            as the fitted network has weights (`enough`): with two classes a record gives one only.
        starts: random ones.
        steps: of L-BFGS that every start gets; each time the better third goes on it gets three times as many, and the last
            one four times as many again.

    Raises:
        ConfigError: a setting is out of range.

    Cost: `queries` queries. A step takes 6 `queries` d (`hidden` + `spare`) multiplications or so.

    Source: [15] section 4.1.
    """

    name: ClassVar[str] = "extraction-network"
    access: ClassVar[type[Scores]] = Scores

    box: Box = field(default_factory=Box)
    hidden: int = 20
    spare: int | None = None
    queries: int | None = None
    starts: int = 2
    steps: int = 500

    def __post_init__(self) -> None:
        if min(self.hidden, self.starts, self.steps) < 1:
            raise ConfigError(
                "at least 1 hidden unit, start and step expected, "
                f"{self.hidden}, {self.starts} and {self.steps} came"
            )
        if self.spare is not None and self.spare < 0:
            raise ConfigError(f"no fewer than 0 spare units expected, {self.spare} came")
        if self.queries is not None and self.queries < 1:
            raise ConfigError(f"at least 1 query expected, {self.queries} came: None takes enough")

    def unknowns(self, width: int, classes: int) -> int:
        """How many weights the target has for records of ``width`` features."""
        return self.hidden * (width + 1) + classes * (self.hidden + 1)

    def fitted(self, width: int, classes: int) -> int:
        """How many weights the fitted network has, spare units included."""
        units = self._units()
        return units * (width + 1) + classes * (units + 1)

    def enough(self, width: int, classes: int) -> int:
        """How many records are asked about where no number is set."""
        fitted = math.ceil(2 * self.fitted(width, classes) / (classes - 1))
        return max(self.unknowns(width, classes), fitted)

    def _units(self) -> int:
        spare = max(1, round(0.3 * self.hidden)) if self.spare is None else self.spare
        return self.hidden + spare

    def extract(
        self, access: Scores, knowledge: Knowledge, generator: torch.Generator
    ) -> Extraction:
        """Ask the target and fit.

        Args:
            access: the target.
            knowledge: `input_shape` and `classes`.
            generator: draws the records and the starts, on its device.

        Returns:
            `determined` says that the answers held no fewer equations than the fitted network has weights, probabilities of
            zero left out, and that no class was without enough of them. Where there are zeros, cross-entropy is fitted.

        Raises:
            ConfigError: something needed is unknown, the policy hides what is needed, or the target answers with another
                number of classes or takes another type of number.
            DataError: an answer is not a number.
            Unfinished: the budget does not do.
        """
        shape, classes = needed(self.name, knowledge)
        need_probabilities(self.name, access.policy, classes)
        width = math.prod(shape)
        queries = self.queries or self.enough(width, classes)
        target = Asked(access.scores, self.box)
        check_classes(target.about(self.box.drawn(queries, shape, generator)), classes)
        model = self.solve(target.inputs, target.answers, access.policy, generator)
        told = equations(target.answers) >= self.fitted(width, classes)
        told &= int((target.answers >= SMALLEST).sum(0).min()) > self._units()
        return extraction(model, target, access.policy, determined=told)

    def solve(
        self, inputs: Tensor, answers: Tensor, policy: Policy, generator: torch.Generator
    ) -> HiddenLayerModel:
        """A network that gives these answers.

        Args:
            inputs: (n, *record shape).
            answers: (n, c) float64.
            policy: of the target.
            generator: draws the starts.
        """
        points = with_one(inputs)
        loss = NetworkLoss(points, answers, self._units(), policy)
        running = [(math.inf, loss.start(generator)) for _ in range(self.starts)]
        steps = self.steps
        while True:
            running = sorted(
                (loss.descended(weights, steps) for _, weights in running), key=lambda one: one[0]
            )
            if len(running) == 1 or running[0][0] < SOLVED:
                break
            running = running[: -(-len(running) // 3)]
            steps *= 3
        if running[0][0] >= SOLVED:
            running = [loss.descended(running[0][1], 4 * steps)]
        inner, outer = loss.parts(torch.from_numpy(running[0][1]))
        return HiddenLayerModel(inner.clone().to(inputs.device), outer.clone().to(inputs.device))


class NetworkLoss:
    """The loss of all weights in one vector, and its gradient; on the CPU, as L-BFGS is.

    Args:
        points: (n, 1 + d), see `with_one`; in float32 or float64, in which the loss is computed.
        answers: (n, c) probabilities of the same type.
        hidden: units.
        policy: of the answers: exact ones are fitted in their logarithms, others by cross-entropy.
        ridge: weight of the squared weights beside the loss of a record.
    """

    def __init__(
        self, points: Tensor, answers: Tensor, hidden: int, policy: Policy, ridge: float = 0.0
    ) -> None:
        self._points, self._answers = points.cpu(), answers.cpu()
        self._hidden, self._temperature, self._ridge = hidden, policy.temperature, ridge
        self._error: Callable[[Tensor], tuple[Tensor, Tensor]] = self._cross_entropy
        exact = policy.digits is None and not policy.labels_only
        if exact and bool((answers >= SMALLEST).all()):
            logarithms = policy.temperature * self._answers.log()
            self._wanted = logarithms - logarithms.mean(1, keepdim=True)
            self._error = self._squares

    def start(self, generator: torch.Generator) -> FloatArray:
        """Random weights, uniform with deviation 1 / sqrt(3 fan_in)."""
        sizes = (
            (self._hidden, self._points.shape[1]),
            (self._answers.shape[1], self._hidden + 1),
        )
        drawn = [
            (
                2
                * torch.rand(
                    size, generator=generator, device=generator.device, dtype=torch.float64
                )
                - 1
            )
            / math.sqrt(size[1])
            for size in sizes
        ]
        return torch.cat([weights.flatten().cpu() for weights in drawn]).numpy()

    def parts(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden layer's weights (h, 1 + d) and the scores' (c, 1 + h)."""
        cut = self._hidden * self._points.shape[1]
        return weights[:cut].view(self._hidden, -1), weights[cut:].view(-1, self._hidden + 1)

    def __call__(self, vector: FloatArray) -> tuple[float, FloatArray]:
        """The mean loss over the records, and its gradient."""
        weights = torch.from_numpy(vector)
        inner, outer = self.parts(weights.to(self._points.dtype))
        hidden = torch.tanh(self._points @ inner.T)
        lifted = torch.cat([torch.ones_like(hidden[:, :1]), hidden], 1)
        loss, uphill = self._error(lifted @ outer.T)
        back = (uphill @ outer[:, 1:]) * (1 - hidden * hidden)
        gradient = torch.cat([(back.T @ self._points).flatten(), (uphill.T @ lifted).flatten()])
        rows = len(self._points)
        value = float(loss) / rows + self._ridge * float(weights @ weights) / 2
        return value, (gradient.double() / rows + self._ridge * weights).numpy()

    def descended(self, weights: FloatArray, steps: int) -> tuple[float, FloatArray]:
        """The loss after so many steps of L-BFGS, and the weights."""
        found = minimize(
            self,
            weights,
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": steps,
                "maxfun": 2 * steps,
                "maxcor": 20,
                "ftol": 1e-20,
                "gtol": 1e-13,
            },
        )
        return float(found.fun), found.x

    def _squares(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        error = scores - self._wanted
        error = error - error.mean(1, keepdim=True)
        return error.square().sum() / 2, error

    def _cross_entropy(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Kullback-Leibler divergence of the answers, scaled to sum to one, from the model's."""
        wanted = self._answers / self._answers.sum(1, keepdim=True)
        own = torch.log_softmax(scores / self._temperature, 1)
        loss = (torch.xlogy(wanted, wanted) - wanted * own).sum()
        return loss, (own.exp() - wanted) / self._temperature
