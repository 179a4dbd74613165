"""The null control of `tacit.audit`: audits of models that saw neither members nor non-members must find nothing.

Each audit has its own target, trained on records of its own, and two further sets from the same source that are called
members and non-members; reference models are trained on these as in any audit. What is counted: whether the interval of the
attack that looks strongest covers 0.5, whether every interval does, and whether the verdict is ``leaks``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tacit.audit.figures import Figure, figure
from tacit.audit.kept import Found, key_of
from tacit.audit.membership_audit import audit
from tacit.audit.provenance import plain
from tacit.audit.statistics import clopper_pearson
from tacit.core.errors import TacitWarning
from tacit.nn.data import DataSet
from tacit.nn.networks import mlp
from tacit.nn.stacked import Recipe, Trainer

NAME = "null-control"
RECIPE = Recipe(epochs=30, batch_size=20, learning_rate=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class NullControl:
    """Some audits of digit classifiers that saw neither set.

    Args:
        seed: of the first audit; the others follow.
        audits: how many.
        records: members, and as many non-members, and as many that the target is trained on.
        shadows: reference models of each audit.
        recipe: of target and reference models.
        name: of its figures.
    """

    seed: int
    audits: int
    records: int = 120
    shadows: int = 8
    recipe: Recipe = RECIPE
    name: str = NAME
    data: ClassVar[str] = "digits"

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


def run_null(case: NullControl, data: DataSet) -> Found:
    """Counts over a case's audits of classifiers of this data, as plain values."""
    inputs = torch.cat([data.inputs_train, data.inputs_test]).flatten(1)
    labels = torch.cat([data.labels_train, data.labels_test])
    covered = everything = leaks = intervals = missed = 0
    for seed in range(case.seed, case.seed + case.audits):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(inputs), generator=generator)
        own, members, nonmembers = torch.split(order[: 3 * case.records], case.records)
        network = mlp(tuple(inputs.shape[1:]), (32,), data.classes, generator=generator)
        target = Trainer(network=network, recipe=case.recipe)(inputs[own], labels[own], generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TacitWarning)  # of a check that now and then errs
            report = audit(
                target, members=(inputs[members], labels[members]), nonmembers=(inputs[nonmembers], labels[nonmembers]),
                train_fn=case.recipe, shadows=case.shadows, seed=seed,
            )  # fmt: skip
        areas = [one["metrics"]["auc"] for one in report["attacks"]]
        covers = [one["interval"][0] <= 0.5 <= one["interval"][1] for one in areas]
        best = max(range(len(areas)), key=lambda k: areas[k]["value"])
        covered += covers[best]
        everything += all(covers)
        leaks += report["verdict"] == "leaks"
        intervals += len(covers)
        missed += covers.count(False)
    return {
        "audits": case.audits, "covered": covered, "everything": everything, "leaks": leaks, "intervals": intervals,
        "missed": missed,
    }  # fmt: skip


def null_figures(pairs: Sequence[tuple[NullControl, Found]]) -> list[Figure]:
    """What all cases together say."""
    total = {
        name: sum(found[name] for _, found in pairs) for name in pairs[0][1] if name != "seconds"
    }
    case, audits = pairs[0][0], total["audits"]
    said = {
        "records": case.records, "shadows": case.shadows, "recipe": plain(case.recipe), "intervals": total["intervals"],
        "intervals_that_miss": total["missed"],
    }  # fmt: skip
    made = []
    for name, of, better in (
        ("strongest-covers-chance", "covered", "higher"),
        ("all-cover-chance", "everything", "higher"),
        ("called-leaks", "leaks", "lower"),
    ):
        hits = total[of]
        made.append(
            figure(
                f"{NAME}/{name}",
                hits / audits,
                clopper_pearson(hits, audits),
                audits,
                settings=said,
                better=better,
            )
        )
    return made
