"""Parts of the reproduction of model inversion on tables: a hidden attribute, by the model and without it.

A record's attribute is inferred from its other attributes, its label and the model's answers, for the model's training
records (members) and for others. Beside it stand two adversaries that have no model: one that always says the most frequent
value, and one with records of the population, on which it trains a network that says the attribute from all else. What the
model tells of its training records is the gap between members and others, less the gap of the most frequent value, by which
the two groups differ by chance; what it tells of both, the second adversary may know without it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tacit.attacks.access import Labels, Scores
from tacit.attacks.model_inversion_attributes import AttributeInference, HiddenAttribute
from tacit.audit.figures import one_thread
from tacit.audit.kept import Found, key_of
from tacit.core.errors import ConfigError
from tacit.nn.dataset import DataSet, Feature
from tacit.nn.local_work import accuracy
from tacit.nn.networks import mlp
from tacit.nn.stacked import Recipe, Trainer
from tacit.nn.tables import load_table

METHODS = ("probability", "confusion", "most-frequent", "without-model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute of a table, hidden.

    Args:
        name: of its figures.
        seed: of the split and the networks.
        table: name of the table.
        column: what is hidden.
        positive: the number of the value that precision and recall are of.
        bins: a column of numbers is divided into so many equally frequent ranges.
        members: records that the target is trained on; as many others are judged.
        population: the most records that the adversary has.
        recipe: of the target; long, so that it knows its records better than others.
        known: of the network that does without the target.
    """

    name: str
    seed: int
    table: str
    column: str
    positive: int
    bins: int = 0
    members: int = 2000
    population: int = 20000
    recipe: Recipe = Recipe(epochs=150, batch_size=50, learning_rate=0.002)  # noqa: RUF009
    known: Recipe = Recipe(epochs=15, batch_size=100, learning_rate=0.002)  # noqa: RUF009

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


@cache
def _table(name: str) -> DataSet:
    return load_table(name).encoded()


class Hidden(NamedTuple):
    """An attribute of a table, and its value in each record, (n,) int64."""

    attribute: HiddenAttribute
    truth: Tensor


def hidden(inputs: Tensor, population: Tensor, feature: Feature, bins: int) -> Hidden:
    """An attribute as the adversary knows it: values and frequencies, from records of the population.

    Args:
        inputs: (n, inputs) all records.
        population: (k,) which of them the adversary has.
        feature: the attribute.
        bins: of a column of numbers, each stood for by its median; not used for categories.

    Raises:
        ConfigError: numbers without at least two bins, or so few different numbers that a bin is empty.
    """
    own = inputs[:, feature.columns]
    if feature.categories:
        low, high = float(own.min()), float(own.max())
        values = low + (high - low) * torch.eye(len(feature.categories))
        truth = own.argmax(1)
    else:
        if bins < 2:
            raise ConfigError(f"{feature.name} is a number: at least 2 bins expected, {bins} came")
        numbers = own.squeeze(1)
        known = numbers[population].contiguous()
        edges = known.quantile(torch.arange(1, bins) / bins)
        truth = torch.bucketize(numbers.contiguous(), edges)
        places = [known[truth[population] == number] for number in range(bins)]
        if not all(map(len, places)):
            raise ConfigError(
                f"{feature.name} has too few different numbers for {bins} bins: ask for fewer"
            )
        values = torch.stack([place.median() for place in places])[:, None]
    counts = torch.bincount(truth[population], minlength=len(values))
    return Hidden(
        HiddenAttribute(name=feature.name, start=feature.start, values=values, prior=counts), truth
    )


def run_attribute(case: Attribute, data: DataSet | None = None) -> Found:
    """What a case gives, as plain values: for each method and group, how many records and of which outcome.

    Args:
        case: the case.
        data: in place of the table.

    Raises:
        DataError: the table is not there.
        ConfigError: it has no such column, or too few records.
    """
    begun = time.perf_counter()
    used = data or _table(case.table)
    with one_thread():
        return _run(case, used) | {"seconds": time.perf_counter() - begun}


def _run(case: Attribute, data: DataSet) -> Found:
    inputs = torch.cat([data.inputs_train, data.inputs_test])
    labels = torch.cat([data.labels_train, data.labels_test])
    feature = next((one for one in data.features if one.name == case.column), None)
    if feature is None or len(inputs) <= 2 * case.members:
        raise ConfigError(
            f"{case.table}: a column {case.column} and more than {2 * case.members} records expected, "
            f"{len(inputs)} records and {[one.name for one in data.features]} came"
        )
    generator = torch.Generator().manual_seed(case.seed)
    order = torch.randperm(len(inputs), generator=generator)
    groups = {
        "members": order[: case.members],
        "nonmembers": order[case.members : 2 * case.members],
    }
    population = order[2 * case.members :][: case.population]
    attribute, truth = hidden(inputs, population, feature, case.bins)
    mine = groups["members"]
    target = Trainer(network=_network(inputs.shape[1], data.classes), recipe=case.recipe)(
        inputs[mine], labels[mine], generator
    )
    confusion = _confusion(target, inputs[population], labels[population], data.classes)
    blind = _without(inputs, labels, data.classes, feature)
    taught = Trainer(network=_network(blind.shape[1], len(attribute.values)), recipe=case.known)(
        blind[population], truth[population], generator
    )
    attack, outcomes = AttributeInference(), {}
    for group, of in groups.items():
        said = {
            "probability": attack.infer(Scores(target), inputs[of], labels[of], attribute).values,
            "confusion": attack.infer(
                Labels(target), inputs[of], labels[of], attribute, confusion=confusion
            ).values,
            "most-frequent": attribute.prior.argmax().expand(len(of)),
            "without-model": taught(blind[of]).argmax(1),
        }
        base = said["most-frequent"] == truth[of]
        outcomes[group] = {
            name: _counts(values, truth[of], case.positive, base) for name, values in said.items()
        }
    return {
        "outcomes": outcomes,
        "values": len(attribute.values),
        "positive": feature.categories[case.positive] if feature.categories else f"bin {case.positive + 1}",
        "population": len(population),
        "target_accuracy": accuracy(target, inputs[groups["nonmembers"]], labels[groups["nonmembers"]]),
        "target_training_accuracy": accuracy(target, inputs[mine], labels[mine]),
    }  # fmt: skip


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return mlp((inputs,), (128,), outputs, nn.Tanh, generator=torch.Generator())


def _confusion(target: nn.Module, inputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often the target answers each class (columns) where another is true (rows), smoothed by one record each."""
    answered = Labels(target).labels(inputs)
    counts = torch.bincount(labels * classes + answered, minlength=classes**2) + 1.0
    shares = counts.view(classes, classes)
    return shares / shares.sum(1, keepdim=True)


def _without(inputs: Tensor, labels: Tensor, classes: int, feature: Feature) -> Tensor:
    """All that is known of a record but the attribute: its other inputs, and its label."""
    kept = torch.cat([inputs[:, : feature.start], inputs[:, feature.stop :]], 1)
    return torch.cat([kept, nn.functional.one_hot(labels, classes).to(inputs)], 1)


def _counts(values: Tensor, truth: Tensor, positive: int, base: Tensor) -> Mapping[str, int]:
    """Outcomes; ``better`` and ``worse``: records where this is right and the most frequent value is not, and vice versa."""
    said, true, right = values == positive, truth == positive, values == truth
    return {
        "records": len(truth), "right": int(right.sum()), "said": int(said.sum()), "true": int(true.sum()),
        "found": int((said & true).sum()), "better": int((right & ~base).sum()), "worse": int((base & ~right).sum()),
    }  # fmt: skip
