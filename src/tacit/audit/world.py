"""What one seed of a comparison deals to everybody: records, a first model, an evaluator.

Members, non-members, the population that adversaries learn from and the evaluator's records are disjoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tacit.audit.cells import Judge
from tacit.core.errors import ConfigError, UnknownName
from tacit.nn.data import DataSet, split_by_label, split_iid
from tacit.nn.federated import Task
from tacit.nn.local_work import accuracy, fit
from tacit.nn.networks import cnn, mlp
from tacit.nn.stacked import Recipe, Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes and seeds of a comparison.

    Args:
        dataset: name of the data set.
        owners: owners among whom the members are split.
        records: records of each owner.
        population: records from which adversaries (three fifths) and the evaluator (two fifths) learn.
        split: how records are split among owners: "iid", or "label" (each owner holds few labels).
        hidden: hidden units of the target network.
        learning_rate: at which an adversary's imitations train.
        pool: images are averaged over squares of so many pixels a side, to make large ones affordable.
        seeds: independent repetitions.
        seed: the first of them.
    """

    dataset: str = "digits"
    owners: int = 10
    records: int = 40
    population: int = 990
    split: str = "iid"
    hidden: int = 32
    learning_rate: float = 0.1
    pool: int = 1
    seeds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.records, self.hidden, self.seeds, self.pool) < 1
            or self.owners < 2
            or self.population < 100
            or not self.learning_rate > 0
        ):
            raise ConfigError(
                "records, hidden, seeds and pool of at least 1, 2 owners, a population of at least 100 and a learning_rate "
                f"above 0 expected, got {self.records}, {self.hidden}, {self.seeds}, {self.pool}, {self.owners}, "
                f"{self.population} and {self.learning_rate}"
            )
        if self.split not in ("iid", "label"):
            raise UnknownName("way to split", self.split, ("iid", "label"))
        if not 0 <= self.seed < 1 << 31 or self.seeds > 1000:
            raise ConfigError(
                f"a seed of 0 or more, below 2^31, and at most 1000 seeds expected, got {self.seed} and {self.seeds}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What one seed deals to everybody.

    Args:
        task: what is to be learned, by whom.
        members: all owners' records and labels, owner by owner.
        nonmembers: as many that nobody trains on.
        population: records from which adversaries learn.
        judge: the evaluator, which learned from other records.
        seed: the seed.
        shared: what attacks with the same knowledge need not compute again.
    """

    task: Task
    members: tuple[Tensor, Tensor]
    nonmembers: tuple[Tensor, Tensor]
    population: tuple[Tensor, Tensor]
    judge: Judge
    seed: int
    shared: dict[str, Any] = field(default_factory=dict)


def imitation(task: Task, settings: Settings) -> Trainer:
    """The recipe that an adversary imitates: the target's architecture, plain SGD until the records are learned."""

    def network(generator: torch.Generator) -> nn.Module:
        return mlp(task.input_shape, (settings.hidden,), task.classes, generator=generator)

    recipe = Recipe(epochs=60, batch_size=16, learning_rate=settings.learning_rate, optimiser="sgd")
    return Trainer(network=network, recipe=recipe)


def deal(data: DataSet, settings: Settings, seed: int) -> World:
    """Deal a data set's rows: members to the owners, non-members, the adversaries' population, the evaluator's records.

    Args:
        data: the data set; its training and test rows are pooled.
        settings: sizes.
        seed: of the dealing, the first weights and the order of training.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.cat([data.inputs_train, data.inputs_test])
    labels = torch.cat([data.labels_train, data.labels_test])
    order = torch.randperm(len(inputs), generator=generator)[: _rows_needed(settings)]
    inputs, labels = inputs[order], labels[order]
    if settings.pool > 1:
        inputs = nn.functional.avg_pool2d(inputs, settings.pool)
    shape = tuple(inputs.shape[1:])
    own = settings.owners * settings.records
    if settings.split == "label":
        parts = split_by_label(labels[:own], settings.owners, generator)
    else:
        parts = split_iid(own, settings.owners, generator)
    shards = tuple((inputs[part], labels[part]) for part in parts)
    learned = 2 * own + settings.population * 3 // 5
    return World(
        task=Task(
            name=data.name,
            start=mlp(shape, (settings.hidden,), data.classes, generator=generator),
            shards=shards,
            input_shape=shape,
            classes=data.classes,
            seed=seed,
        ),
        members=(torch.cat([x for x, _ in shards]), torch.cat([y for _, y in shards])),
        nonmembers=(inputs[own : 2 * own], labels[own : 2 * own]),
        population=(inputs[2 * own : learned], labels[2 * own : learned]),
        judge=train_judge(
            inputs[learned:],
            labels[learned:],
            data.classes,
            torch.Generator().manual_seed(seed + 7_919),
        ),
        seed=seed,
    )


def _rows_needed(settings: Settings) -> int:
    return 2 * settings.owners * settings.records + settings.population


def check_rows(data: DataSet, settings: Settings) -> None:
    """Raise unless the data set has as many rows as the settings need.

    Raises:
        ConfigError: with both numbers; or there are no images to pool.
    """
    have, need = len(data.inputs_train) + len(data.inputs_test), _rows_needed(settings)
    if settings.pool > 1 and len(data.input_shape) != 3:
        raise ConfigError(f"pool averages images; the records of {data.name} are rows: use 1")
    if need > have:
        raise ConfigError(
            f"{settings.owners} owners of {settings.records} records, as many non-members and a population of "
            f"{settings.population} need {need} rows; {data.name} has {have}: use fewer owners or records, "
            "or a smaller population"
        )


def train_judge(inputs: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> Judge:
    """An evaluator with a class for junk, trained on four fifths of the records given.

    It is convolutional for images, and has two wide hidden layers for the rows of a table.

    Junk is uniform noise, records with their pixels shuffled, and noise around the mean record: a plain classifier would
    call such images some class with confidence.
    """
    cut = len(inputs) * 4 // 5
    noise = torch.rand(inputs.shape, generator=generator)
    pixels = torch.rand(inputs.flatten(1).shape, generator=generator).argsort(1)
    shuffled = inputs.flatten(1).gather(1, pixels).reshape(inputs.shape)
    around = (inputs.mean(0) + 0.3 * (noise - 0.5)).clamp(0, 1)
    kind = torch.arange(len(inputs)) % 3
    mask = [(kind == k).reshape(-1, *[1] * (inputs.dim() - 1)) for k in range(3)]
    junk = torch.where(mask[0], noise, torch.where(mask[1], shuffled, around))
    everything = torch.cat([inputs[:cut], junk[:cut]])
    answers = torch.cat([labels[:cut], torch.full((cut,), classes)])
    shape = tuple(inputs.shape[1:])
    model: nn.Module
    if len(shape) == 3:
        model = cnn(shape, classes + 1, width=8, generator=generator)
    else:
        model = mlp(shape, (256, 128), classes + 1, generator=generator)
    fit(
        model,
        everything,
        answers,
        epochs=max(12, 20_000 // len(everything)),  # some 600 steps, however few records there are
        batch_size=32,
        learning_rate=0.05,
        momentum=0.9,
        generator=generator,
    )
    held = (
        torch.cat([inputs[cut:], junk[cut:]]),
        torch.cat([labels[cut:], torch.full((len(inputs) - cut,), classes)]),
    )
    return Judge(model=model, accuracy=accuracy(model, *held))
