"""What an adversary holds: the access it has to a target, and what it knows beforehand.

An attack is handed one `Access` and one `Knowledge` and nothing else. Ground truth and evaluators stay with
the audit. Both are printed in the cell that the attack fills.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tacit.attacks.evidence import References
from tacit.core.errors import BudgetExhausted, ConfigError
from tacit.nn.policies import EVERYTHING, Policy
from tacit.parties.views import Observation

FloatArray = npt.NDArray[np.floating]


@dataclass(slots=True)
class QueryCounter:
    """Counts the records sent to a model and stops at a budget.

    Args:
        budget: the most records that may be asked about; None for no limit.
    """

    budget: int | None = None
    spent: int = 0

    def charge(self, records: int) -> None:
        """Count ``records`` queries.

        Raises:
            BudgetExhausted: they would exceed the budget; nothing is counted then.
        """
        if self.budget is not None and self.spent + records > self.budget:
            raise BudgetExhausted(
                f"{records} more queries asked, {self.budget - self.spent} of {self.budget} left: "
                "ask for fewer, or raise the budget"
            )
        self.spent += records


def _in_batches(model: nn.Module, inputs: Tensor, batch: int = 1024) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(inputs, batch)])


class Endpoint(Protocol):
    """A model that answers from elsewhere, as a client of an HTTP endpoint does: it has applied its policy already."""

    def scores(self, inputs: Tensor) -> Tensor:
        """What is given out of the class probabilities, (n, classes) float64, for ``inputs`` (n, *input shape)."""
        ...

    def labels(self, inputs: Tensor) -> Tensor:
        """Predicted classes, (n,) int64, for ``inputs`` (n, *input shape)."""
        ...


@dataclass(frozen=True, slots=True)
class Labels:
    """Black-box access to the predicted label of any record.

    Args:
        model: gives one logit a class, (n, classes); or an endpoint. The adversary never touches it but through `labels`.
        counter: counts queries.
    """

    model: nn.Module | Endpoint = field(repr=False)
    counter: QueryCounter = field(default_factory=QueryCounter)

    def labels(self, inputs: Tensor) -> Tensor:
        """Predicted classes, (n,) int64, for ``inputs`` (n, *input shape).

        Raises:
            BudgetExhausted: the query budget is spent.
        """
        self.counter.charge(len(inputs))
        if not isinstance(self.model, nn.Module):
            return self.model.labels(inputs)
        return _in_batches(self.model, inputs).argmax(1)


@dataclass(frozen=True, slots=True)
class Scores:
    """Black-box access to the class probabilities of any record, or to what a policy leaves of them.

    Args:
        model: gives one logit a class, (n, classes); or an endpoint. The adversary never touches it but through `scores`.
        counter: counts queries.
        policy: what is done to each answer, here or at the endpoint; the adversary knows it.
    """

    model: nn.Module | Endpoint = field(repr=False)
    counter: QueryCounter = field(default_factory=QueryCounter)
    policy: Policy = EVERYTHING

    def scores(self, inputs: Tensor) -> Tensor:
        """Class probabilities, (n, classes) float64; rows sum to one unless the policy takes from them.

        Raises:
            BudgetExhausted: the query budget is spent.
        """
        self.counter.charge(len(inputs))
        if not isinstance(self.model, nn.Module):
            return self.model.scores(inputs)
        return self.policy.answers(_in_batches(self.model, inputs))


@dataclass(frozen=True, slots=True)
class WhiteBox:
    """The model itself: architecture, weights, gradients."""

    model: nn.Module = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoleView:
    """What a party of the protocol can lay hands on, as its protection decodes it."""

    observation: Observation = field(repr=False)


Access = Labels | Scores | WhiteBox | RoleView


TrainFunction = Callable[[Tensor, Tensor, torch.Generator], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What the adversary knows before it starts; what is None it does not know.

    What the protocol itself tells every party (batch size, local steps, learning rate) comes with the observation.

    Args:
        architecture: a module of the target's shape; its weights mean nothing.
        input_shape: shape of one record.
        classes: number of classes.
        population: records and labels like the target's, none of them the target's.
        train_fn: trains a model as the target was trained, on records of the adversary's choice.
        candidates: records and labels, perhaps the target's and perhaps not: those that the adversary will ask about.
        references: models that it trained with `train_fn` on some of the candidates each, as answers.
    """

    architecture: nn.Module | None = field(default=None, repr=False)
    input_shape: tuple[int, ...] | None = None
    classes: int | None = None
    population: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    train_fn: TrainFunction | None = field(default=None, repr=False)
    candidates: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    references: References | None = field(default=None, repr=False)

    def described(self) -> dict[str, object]:
        """The knowledge as plain values for a report: sizes in place of data."""
        said: dict[str, object] = {}
        if self.architecture is not None:
            said["architecture"] = type(self.architecture).__name__
        if self.input_shape is not None:
            said["input_shape"] = list(self.input_shape)
        if self.classes is not None:
            said["classes"] = self.classes
        if self.population is not None:
            said["population_records"] = len(self.population[0])
        if self.train_fn is not None:
            said["training_recipe"] = True
        if self.candidates is not None:
            said["candidate_records"] = len(self.candidates[0])
        if self.references is not None:
            said["reference_models"] = len(self.references.inside)
        return said

    def need(self, attack: str, names: Sequence[str]) -> None:
        """Raise unless every one of ``names`` is known.

        Raises:
            ConfigError: names the attack and what it lacks.
        """
        lacking = [name for name in names if getattr(self, name) is None]
        if lacking:
            raise ConfigError(f"{attack} needs to know {', '.join(lacking)}: give it in Knowledge")
