"""The column of the matrix that trains each row again with a GAN insider [2] among the participants.

`InsiderAt` takes the records of one class, the target, from the last owner, gives the model one output more, for the fresh
class, and lets that owner attack while the row's scheme trains (`tacit.attacks.gan_insider`). Two judges that learned from
the population say what its images show (`tacit.audit.gan_metrics`).

Chance is the same training with a passive insider in the same place: its updates are an honest one's to the bit, so that its
generator shows what the models of the rounds tell by themselves. What counts beyond that is what the others' training, on
their records, answers to injected images. So the column is about records: a finished model does not give it away, and rows
differ in it.

A cell's interval is over images of the trainings that were made, each of one generator. Generators of several seeds differ
by more: what each showed stands beside (`by_seed`), and three say little of a fourth.

Source: Hitaj, Ateniese, Perez-Cruz, CCS 2017.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tacit.attacks.gan_insider import GANInsider, Insider, place
from tacit.audit.cells import SHOWN, VANTAGES, About, Measurement, Protection, Trial, pixels
from tacit.audit.gan_metrics import (
    GANFigures,
    GANJudges,
    JudgeRecipe,
    gan_figures,
    train_gan_judges,
)
from tacit.audit.statistics import clopper_pearson
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, Diverged, NotEnoughEvidence, TacitError
from tacit.nn.federated import Task, silent
from tacit.nn.local_work import accuracy
from tacit.nn.networks import initialise
from tacit.parties.views import COUNTS

#: How the insider goes about it; target, fresh class, seed, start and steps of a round are filled in.
ATTACK = GANInsider(
    target=0, fresh=1, start_accuracy=0.5, batch=32, injected=16, width=16, latent=20
)

#: How its judges are trained: of few records, so that junk, of which generators make much, must not drown among copies.
JUDGES = JudgeRecipe(steps=1200, width=8, generators=20)

_MADE = 4
"""So many images are made for each that is judged, since some may be alike."""


def with_fresh_class(start: nn.Module, classes: int, generator: torch.Generator) -> nn.Module:
    """The same architecture with one output more, drawn anew.

    Args:
        start: a model whose last layer with parameters is linear, one output a class.
        classes: how many outputs it has.
        generator: draws all parameters.

    Raises:
        ConfigError: the last layer is another.
        UnsupportedLayer: no scheme is known for a layer's parameters.
    """
    grown = deepcopy(start)
    last = [m for m in grown.modules() if list(m.parameters(recurse=False))][-1]
    if not isinstance(last, nn.Linear) or last.out_features != classes:
        raise ConfigError(
            f"the model ends in {type(last).__name__}: a linear layer with {classes} outputs, one a class, can be given "
            "another for the fresh class"
        )
    last.out_features = classes + 1
    last.weight = nn.Parameter(last.weight.new_empty(classes + 1, last.in_features))
    if last.bias is not None:
        last.bias = nn.Parameter(last.bias.new_empty(classes + 1))
    return initialise(grown, generator)


class _Ran(NamedTuple):
    """A training with an insider."""

    insider: Insider
    images: Tensor
    found: GANFigures
    accuracy: float | None
    diverged: str | None


@dataclass(frozen=True, slots=True)
class InsiderAt:
    """The GAN insider as a participant of the row's own training.

    The target is drawn by the seed among the classes that others hold; the insider keeps its other records. Where a row's
    participants see no model before the finished one, there is nothing to take part in, and no access. A training that
    diverges is an outcome: the generator is judged as it stands.

    Args:
        attack: how the insider goes about it, from a twelfth of the rounds on.
        steps: of the generator, over all rounds that it takes part in; at least one a round.
        judged: distinct images.
        judges: how the judges are trained.
    """

    attack: GANInsider = ATTACK
    steps: int = 600
    judged: int = 100
    judges: JudgeRecipe = JUDGES
    name: ClassVar[str] = "gan-insider@participant"
    title: ClassVar[str] = "GAN insider, at a participant"
    metric: ClassVar[str] = "class_shown"
    about: ClassVar[About] = "records"
    explains: ClassVar[str] = (
        "Share of an insider's distinct images from which the class that others alone hold is named: a judge that knows "
        "junk takes them for it, or, where it does not, a guess among all classes is right."
    )
    chance_means: ClassVar[str] = (
        "The same with a passive insider, who injects nothing; at least a guess, one over the number of classes."
    )

    def measure(self, trial: Trial) -> Measurement:
        """Train the row's protection with an insider, and with a passive one, and judge their images."""
        known = trial.knowledge.described()
        if len(trial.observation(VANTAGES["participant"]).outputs) < 2:
            return Measurement(
                metric=self.metric, access=False, knowledge=known,
                why="a participant gets the finished model alone: there is no training to take part in",
            )  # fmt: skip
        rounds = turns(trial.protection)
        attack = replace(
            self.attack, start_round=rounds // 12, steps=max(1, round(self.steps / rounds)),
            watched=max(1, rounds // SHOWN), seed=trial.seed,
        )  # fmt: skip
        try:
            target = _target(trial)
            task, own = _divided(trial, target)
            knowledge = known | {"target": target, "own_records": own}
            ran, passive = (
                self._ran(
                    trial,
                    task,
                    replace(attack, target=target, fresh=trial.task.classes, injected=injected),
                )
                for injected in (attack.injected, 0)
            )
        except TacitError as reason:
            return Measurement(metric=self.metric, knowledge=known, why=f"not run: {reason}")
        value, chance = (
            named(one.found.junk_aware_hit_rate.value, trial.task.classes) for one in (ran, passive)
        )
        hits = round(value * self.judged)
        return Measurement(
            metric=self.metric,
            value=hits / self.judged,
            n=self.judged,
            chance=chance,
            interval=clopper_pearson(hits, self.judged),
            knowledge=knowledge,
            why=_story(ran, passive, target),
            saw={"models": len(ran.insider.moments)},
            details={
                **_described(ran),
                "steps_a_round": attack.steps,
                "passive": _described(passive),
            },
            figures={"images": _pictures(ran, _held(task, target), target)},
        )

    def _ran(self, trial: Trial, task: Task, attack: GANInsider) -> _Ran:
        who, target = task.owners[-1], attack.target
        task, slots = place(task, {who: attack})
        judges = trial.once(f"{self.name}/judges", lambda: self._judges(trial))
        right, diverged = None, None
        try:
            run = trial.protection.train(
                task, coins=Coins.from_seed(f"{self.name}/{trial.seed}".encode()), recording=COUNTS, progress=silent
            )  # fmt: skip
            right = accuracy(run.output.value, *trial.nonmembers)
        except Diverged as reason:
            diverged = str(reason)
        insider = slots[who].insider
        images = insider.samples(_MADE * self.judged).nan_to_num()
        others, labels = trial.nonmembers
        found = gan_figures(
            images, target, count=self.judged, judges=judges, victims=_held(task, target),
            others=others[labels == target], own=task.here()[who][0], classes=trial.task.classes,
            generator=trial.generator(f"{self.name}/noise"),
        )  # fmt: skip
        return _Ran(insider, images, found, right, diverged)

    def _judges(self, trial: Trial) -> GANJudges:
        return train_gan_judges(
            *trial.population, trial.task.classes, held=trial.nonmembers, recipe=self.judges,
            generator=trial.generator(f"{self.name}/judges"),
        )  # fmt: skip


def turns(protection: Protection) -> int:
    """How often each owner trains, as a scheme's settings have it."""
    found: int = getattr(protection, "rounds", 0) or getattr(protection, "epochs", 0)
    return max(1, found)


def named(hit_rate: float, classes: int) -> float:
    """The share of images whose class is named right, by the judge or, where it sees none, by a guess."""
    return hit_rate + (1 - hit_rate) / classes


def _target(trial: Trial) -> int:
    """A class that others than the last owner hold, that is not all that it has, and that non-members have too."""
    if len(trial.task.input_shape) != 3:
        raise NotEnoughEvidence("the records are no images: there is nothing to draw")
    held = [labels for _, labels in trial.task.here().values()]
    counts, own, fresh = (
        torch.bincount(labels, minlength=trial.task.classes)
        for labels in (torch.cat(held[:-1]), held[-1], trial.nonmembers[1])
    )
    fits = (counts > 1) & (fresh > 1) & (own < len(held[-1]))
    if not bool(fits.any()):
        raise NotEnoughEvidence(
            "no class has two records at others and two elsewhere, and is not all that the insider has"
        )
    drawn = torch.rand(len(fits), generator=trial.generator(f"{InsiderAt.name}/target"))
    return int((drawn * fits).argmax())


def _divided(trial: Trial, target: int) -> tuple[Task, int]:
    """The row's task without the target's records at the last owner, with a fresh class; and how many it keeps."""
    *others, (inputs, labels) = trial.task.here().values()
    kept = labels != target
    start = with_fresh_class(
        trial.task.start, trial.task.classes, trial.generator(f"{InsiderAt.name}/start")
    )
    shards = (*others, (inputs[kept], labels[kept]))
    task = replace(
        trial.task, start=start, shards=shards, classes=trial.task.classes + 1, counts=()
    )
    return task, int(kept.sum())


def _held(task: Task, target: int) -> Tensor:
    return torch.cat([inputs[labels == target] for inputs, labels in task.here().values()])


def _story(ran: _Ran, passive: _Ran, target: int) -> str:
    insider = ran.insider
    begun = (
        f"from round {insider.began} on"
        if insider.began is not None
        else "which never began, as the model knew too little"
    )
    rates = [f"{one.found.junk_aware_hit_rate.value:.0%}" for one in (ran, passive)]
    ended = "".join(f"; {what}" for what in (insider.ended, ran.diverged) if what)
    return (
        f"a judge takes {rates[0]} of the images for class {target}, {rates[1]} of a passive insider's; attack {begun}"
        + ended
    )


def _described(ran: _Ran) -> dict[str, Any]:
    found = ran.found
    return {
        "junk_aware_hit_rate": found.junk_aware_hit_rate.as_json(),
        "hit_rate": found.hit_rate.as_json(),
        "distinct": found.distinct,
        "nn_ratio": found.nn_ratio.value,
        "own_ratio": found.own_ratio.value,
        "began": ran.insider.began,
        "ended": ran.insider.ended,
        "diverged": ran.diverged,
        "accuracy": ran.accuracy,
        "evaluator": {
            "accuracy": found.aware_accuracy,
            "accuracy_plain": found.plain_accuracy,
            "controls": {
                name: {"plain": plain, "junk_aware": aware}
                for name, (plain, aware) in found.controls.items()
            },
        },
    }


def _pictures(ran: _Ran, records: Tensor, target: int) -> list[dict[str, Any]]:
    """Images of the end, of rounds that were watched (last first), and more of the end, each beside the nearest record."""
    watched = [(f"round {m.round}", m.images[:1]) for m in ran.insider.moments if m.images is not None]  # fmt: skip
    end = ran.images[:SHOWN]
    shown = [("the end", end[:1]), *reversed(watched[-SHOWN:]), ("the end", end[1:])]
    return [
        {
            "original": pixels(records[int(torch.cdist(image.reshape(1, -1), records.flatten(1)).argmin())]),
            "reconstruction": pixels(image.nan_to_num().clamp(0, 1)), "caption": f"class {target}, {when}",
            "beside": "nearest real record",
        }
        for when, images in shown
        for image in images
    ]  # fmt: skip
