"""Model extraction from labels alone, continued: networks with one hidden layer.

The boundaries of a network are curved, so that no line search finds them; a network is trained on what the target said.
Records are drawn uniformly from the domain at first. Then, in rounds, they are those at which the network trained so far
wavers between classes: on lines between corners of the domain, where Σ p (1 - p) is greatest. Each training goes on from
the last one's weights.

What is kept secret from whom: the boundaries, from whoever asks; nothing here protects. **Leaks**: a bit or so a query. How
sure the target is cannot be found.

What we changed: the paper trains by stochastic gradient descent, anew in each round; here it is L-BFGS on all records, from
the last weights, with a ridge that keeps separable labels from driving them to infinity. Adaptive records are worth more
than uniform ones where the target is smooth and the budget large, as with trained networks on tables; the paper, too, found
little in them for networks, and where the target is sharp or the queries few, uniform ones come nearer.

Source:
    [15] F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart. Stealing Machine Learning Models via Prediction APIs.
    USENIX Security 2016, section 6 (number recalled).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tacit.attacks.access import Knowledge, Labels
from tacit.attacks.extraction import Asked, Box, needed
from tacit.attacks.extraction_fit import with_one
from tacit.attacks.extraction_labels import LabelExtraction, label_extraction, retrained
from tacit.attacks.extraction_network import HiddenLayerModel, NetworkLoss
from tacit.core.errors import ConfigError
from tacit.nn.policies import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRetraining:
    """Trains a network with one hidden layer of tanh on the labels that the target gives.

    Needs `input_shape` and `classes`.

    Args:
        queries: how many in all.
        box: the records that the target takes.
        hidden: units of the network that is trained.
        choice: ``uniform``: records drawn from the box. ``adaptive``: only the first, then in each round as many at which
            the network wavers.
        rounds: of adaptive choice, after the first records; of the uniform one there are none.
        steps: of L-BFGS in a round; the last one has twice as many.
        ridge: weight of the squared weights beside the loss of a record.
        double: train in float64, which takes twice as long.

    Raises:
        ConfigError: a setting is out of range.

    Cost: `queries` queries. A step takes 6 n d `hidden` multiplications or so, for the n records so far.

    Source: [15] section 6.
    """

    name: ClassVar[str] = "extraction-network-labels"
    access: ClassVar[type[Labels]] = Labels

    queries: int
    box: Box = field(default_factory=Box)
    hidden: int = 20
    choice: Literal["uniform", "adaptive"] = "adaptive"
    rounds: int = 8
    steps: int = 100
    ridge: float = 1e-6
    double: bool = False

    def __post_init__(self) -> None:
        if self.choice not in ("uniform", "adaptive"):
            raise ConfigError(f"choice uniform or adaptive expected, {self.choice!r} came")
        if min(self.queries, self.hidden, self.rounds, self.steps) < 1:
            raise ConfigError(
                "at least 1 query, hidden unit, round and step expected, "
                f"{self.queries}, {self.hidden}, {self.rounds} and {self.steps} came"
            )
        if not 0 < self.ridge < math.inf:
            raise ConfigError(f"a ridge above 0 expected, {self.ridge} came")

    def extract(
        self, access: Labels, knowledge: Knowledge, generator: torch.Generator
    ) -> LabelExtraction:
        """Ask the target and train.

        Args:
            access: the target.
            knowledge: `input_shape` and `classes`.
            generator: draws the records and the first weights, on its device.

        Raises:
            ConfigError: something needed is unknown.
            DataError: a label is not a class.
            Unfinished: the budget does not do; what was asked is kept.
        """
        shape, classes = needed(self.name, knowledge)
        target = Asked(access.labels, self.box)
        rounds = self.rounds if self.choice == "adaptive" else 0

        def train(start: HiddenLayerModel | None, last: bool) -> HiddenLayerModel:
            steps = 2 * self.steps if last else self.steps
            return self.solve(target.inputs, target.answers, classes, generator, start, steps)

        budget = (self.queries, rounds)
        model = retrained(target, shape, classes, budget, generator, train)
        return label_extraction(model, target)

    def solve(
        self,
        inputs: Tensor,
        labels: Tensor,
        classes: int,
        generator: torch.Generator,
        start: HiddenLayerModel | None = None,
        steps: int | None = None,
    ) -> HiddenLayerModel:
        """The network that names these labels.

        Args:
            inputs: (n, *record shape).
            labels: (n,) int64.
            classes: how many there are.
            generator: draws the first weights where there is no start.
            start: where to start from.
            steps: None for `steps` of the settings.
        """
        dtype = torch.float64 if self.double else torch.float32
        wanted = torch.nn.functional.one_hot(labels, classes).to(dtype)
        told = Policy(labels_only=True)
        loss = NetworkLoss(with_one(inputs).to(dtype), wanted, self.hidden, told, self.ridge)
        weights = loss.start(generator)
        if start is not None:
            parts = [start.inner.detach().flatten(), start.outer.detach().flatten()]
            weights = torch.cat(parts).cpu().numpy()
        found = torch.from_numpy(loss.descended(weights, steps or self.steps)[1])
        inner, outer = loss.parts(found)
        return HiddenLayerModel(inner.clone().to(inputs.device), outer.clone().to(inputs.device))
