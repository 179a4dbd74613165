"""Columns of the matrix that ask what a finished model gives away of itself: extraction [15] and model inversion [1].

`ExtractionFrom` copies the model from what it answers and counts on how many fresh records the copy says what the model
says. `InversionFrom` asks a model, or a copy of it, what each class looks like, and counts the classes whose image is
nearest to their own mean training record. The two are combined here and not in the attacks: whoever has scores or labels
alone extracts first and inverts the copy, for no further query.

Both win against any model that is of use, however it was trained: they show what opening a model means, and what an access
policy at its endpoint would have to take away. They do not count as leaks of single records (`Plan.about`).

Source: [15] Tramèr et al., USENIX Security 2016; Orekondy, Schiele, Fritz, Knockoff Nets, CVPR 2019; [1] Fredrikson, Jha,
Ristenpart, CCS 2015.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter, Scores, WhiteBox
from tacit.attacks.extraction_knockoff import Knockoff, fit_to
from tacit.attacks.model_inversion import Cost, Inversion, MIFace
from tacit.audit.cells import About, Measurement, Trial, pixels
from tacit.audit.inversion_metrics import class_means, nearest_mean
from tacit.audit.statistics import clopper_pearson, paired_difference
from tacit.nn.networks import initialise
from tacit.nn.stacked import Recipe

Vantage = Literal["holder", "scores", "labels"]

#: Descent on -log p from zero: 1 - p has no slope where a model is sure of another class.
DESCENT = MIFace(cost=Cost.MINUS_LOG_P, step_size=1.0, iterations=1000)

#: How a copy is trained.
RECIPE = Recipe(epochs=50, batch_size=32, learning_rate=0.002)

_SAW = {
    "holder": {"released model": "its weights"},
    "scores": {"released model": "its scores for any record"},
    "labels": {"released model": "its labels for any record"},
}


class Compared(NamedTuple):
    """A rate, what it is compared with on the same records, and the interval of their difference, laid around chance."""

    value: float
    chance: float
    interval: tuple[float, float]


def compared(hits: Tensor, others: Tensor) -> Compared:
    """A rate beside one that was measured on the same records.

    Chance is measured too, and errs with the rate: the interval is that of the difference, paired record by record, so that
    it lies above chance where the rate does.

    Args:
        hits: (n,) bool, whether the attack was right.
        others: (n,) bool, whether what it is compared with was.
    """
    middle, deviation = paired_difference(
        int((hits & ~others).sum()), int((~hits & others).sum()), len(hits)
    )
    chance = float(others.double().mean())
    low, high = (min(1.0, max(0.0, chance + middle + side * deviation)) for side in (-1.96, 1.96))
    return Compared(float(hits.double().mean()), chance, (low, high))


def agreeing(model: nn.Module, other: nn.Module, records: Tensor) -> Tensor:
    """(n,) whether two models, each giving one score a class, name the same class for ``records`` (n, *input shape)."""
    with torch.no_grad():
        said: Tensor = model.eval()(records).argmax(1) == other.eval()(records).argmax(1)
    return said


def present_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that occur among ``labels`` (n,), in order, and each label's place among them."""
    found, places = torch.unique(labels, return_inverse=True)
    return found, places


def taught(
    network: nn.Module, inputs: Tensor, answers: Tensor, generator: torch.Generator
) -> nn.Module:
    """A network of this architecture, taught answers (n, classes) that are class probabilities, as a copy is."""
    model = initialise(deepcopy(network), generator).float()
    fit_to(model, inputs, answers, RECIPE, generator)
    return model.eval()


class Copy(NamedTuple):
    """A copy of a model, what was known beforehand, and how many queries it took."""

    model: nn.Module
    knowledge: Knowledge
    queries: int


def copied(trial: Trial, vantage: Vantage) -> Copy:
    """A copy of the trial's model from what it answers about the population; both columns of a vantage share it."""
    name = f"copy/{vantage}"
    of, found = trial.shared.get(name, (None, None))
    if of is not trial.run:
        found = _copy(trial, vantage, trial.generator(name))
        trial.shared[name] = (trial.run, found)  # the last row's alone
    copy: Copy = found
    return copy


def _copy(trial: Trial, vantage: Vantage, generator: torch.Generator) -> Copy:
    counter, model = QueryCounter(), trial.run.output.value
    knowledge = Knowledge(
        architecture=trial.task.start,
        input_shape=trial.task.input_shape,
        classes=trial.task.classes,
        population=trial.population,
    )
    access = Labels(model, counter) if vantage == "labels" else Scores(model, counter)
    attack = Knockoff(queries=len(trial.population[0]), recipe=RECIPE)
    return Copy(attack.extract(access, knowledge, generator).model, knowledge, counter.spent)


@dataclass(frozen=True, slots=True)
class ExtractionFrom:
    """Model extraction from what the released model answers.

    Chance is what the adversary has without asking: a model trained in the same way on its own records and their true
    labels.

    Args:
        vantage: scores or labels.
    """

    vantage: Literal["scores", "labels"]
    metric: ClassVar[str] = "agreement"
    about: ClassVar[About] = "model"
    explains: ClassVar[str] = (
        "Share of fresh records for which a copy, made from the model's answers on the adversary's own records, names the "
        "class that the model names."
    )
    chance_means: ClassVar[str] = (
        "The agreement of a model trained in the same way on the same records and their true labels, without asking."
    )

    @property
    def name(self) -> str:
        """``attack@vantage``."""
        return f"extraction@{self.vantage}"

    @property
    def title(self) -> str:
        """A few words for a heading."""
        return f"Copy of the model, from {self.vantage}"

    def measure(self, trial: Trial) -> Measurement:
        """Copy the model, and compare copy and model on records that neither was trained on."""
        copy, knowledge, queries = copied(trial, self.vantage)
        model, (fresh, truth) = trial.run.output.value, trial.nonmembers
        own = trial.once(f"{self.name}/without-asking", lambda: self._without_asking(trial))
        found = compared(agreeing(model, copy, fresh), agreeing(model, own, fresh))
        with torch.no_grad():
            right = float((copy(fresh).argmax(1) == truth).double().mean())
        return Measurement(
            metric=self.metric,
            value=found.value,
            n=len(fresh),
            chance=found.chance,
            interval=found.interval,
            knowledge=knowledge.described(),
            why=f"copied from {queries} answers, compared on {len(fresh)} records",
            saw=dict(_SAW[self.vantage]),
            queries=queries,
            details={"accuracy_of_copy": right},
        )

    def _without_asking(self, trial: Trial) -> nn.Module:
        inputs, labels = trial.population
        generator = trial.generator(f"{self.name}/without-asking")
        truth = nn.functional.one_hot(labels, trial.task.classes).double()
        return taught(trial.task.start, inputs, truth, generator)


@dataclass(frozen=True, slots=True)
class InversionFrom:
    """Model inversion of the released model, or of a copy where its weights are not in reach.

    Args:
        vantage: holder, who has the weights; or scores or labels, from which the model is copied first.
        attack: the descent.
    """

    vantage: Vantage
    attack: MIFace = DESCENT
    metric: ClassVar[str] = "reidentified"
    about: ClassVar[About] = "model"
    explains: ClassVar[str] = (
        "Share of the classes whose image, found by descent on the model's confidence, is nearest (by correlation) to the "
        "mean training record of its own class."
    )
    chance_means: ClassVar[str] = "Naming a class at random: one over their number."

    @property
    def name(self) -> str:
        """``attack@vantage``."""
        return f"{MIFace.name}@{self.vantage}"

    @property
    def title(self) -> str:
        """A few words for a heading."""
        of = "from the weights" if self.vantage == "holder" else f"by a copy from {self.vantage}"
        return f"What a class looks like, {of}"

    def measure(self, trial: Trial) -> Measurement:
        """Invert every class, and look the images up among the classes' mean training records."""
        model, queries = trial.run.output.value, None
        knowledge = Knowledge(input_shape=trial.task.input_shape, classes=trial.task.classes)
        if self.vantage != "holder":
            model, knowledge, queries = copied(trial, self.vantage)
        present, places = present_of(trial.members[1])
        means = class_means(trial.members[0], places, len(present))
        found = self.attack.invert(WhiteBox(model.float()), knowledge, present)
        n = len(present)
        hits = int((nearest_mean(found.images, means) == torch.arange(n)).sum())
        sure = float(found.confidences.median())
        return Measurement(
            metric=self.metric,
            value=hits / n,
            n=n,
            chance=1 / n,
            interval=clopper_pearson(hits, n),
            knowledge=knowledge.described(),
            why=f"{hits} of {n} classes named by their images; median confidence {sure:.2f}",
            saw=dict(_SAW[self.vantage]),
            queries=queries,
            details={
                "median_confidence": sure,
                "evaluator": {
                    "accuracy": trial.judge.accuracy,
                    "recognised": trial.judge.recognises(found.images, found.labels),
                    "controls": {
                        "mean records": trial.judge.recognises(means, found.labels),
                        "another class": trial.judge.recognises(found.images, found.labels.roll(1)),
                    },
                },
            },
            figures={"images": _pictures(found, means)},
        )


def _pictures(found: Inversion, means: Tensor) -> list[dict[str, Any]]:
    """Each class's mean record beside the image that was found; nothing where records are no images."""
    if means.dim() != 4:
        return []
    return [
        {
            "original": pixels(mean), "reconstruction": pixels(image.clamp(0, 1)), "caption": f"class {label}",
            "beside": "class mean",
        }
        for mean, image, label in zip(means, found.images, found.labels.tolist(), strict=True)
    ][:10]  # fmt: skip
