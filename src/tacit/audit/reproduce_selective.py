"""Selective SGD [3] on MNIST: alone, together, and with everything in one place.

Every participant draws 600 of the 60,000 training images, independently of the others, and trains the paper's convolutional
network. Settings were chosen on 5,000 training images that no participant had drawn (`results/README.md`); figures are on
the 10,000 test images.

Alone is measured twice: with the same local work as together, which tells what the exchange is worth, and for longer, with
settings of its own, which is what a participant would do who has nobody.

Each training is a case of its own: cases run side by side, and each finished one is kept, so that an interrupted run
goes on.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from tacit.audit.figures import Effort, Figure, figure, one_thread, over_seeds
from tacit.audit.kept import Kept, key_of, side_by_side
from tacit.audit.provenance import plain
from tacit.audit.statistics import clopper_pearson
from tacit.core import indices
from tacit.core.claims import PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import TacitWarning
from tacit.nn.data import DataSet, load
from tacit.nn.federated import Task
from tacit.nn.local_work import accuracy
from tacit.nn.networks import tanh_cnn
from tacit.training.selective_sgd import SelectiveSGD, share_of

PARAMETERS = 105_506
RECORDS = 600

_TOGETHER = SelectiveSGD(epochs=12, learning_rate=0.05, decay=0.85, label_smoothing=0.1)
_SETTINGS = {
    "alone": replace(_TOGETHER, theta_u=1.0, learning_rate=0.1),
    "alone-longer": replace(_TOGETHER, theta_u=1.0, epochs=40, decay=0.95),
    "centralised": SelectiveSGD(
        theta_u=1.0, epochs=6, learning_rate=0.05, decay=0.6, label_smoothing=0.1
    ),
    "theta1": replace(_TOGETHER, theta_u=1.0),
    "theta0.1": replace(_TOGETHER, learning_rate=0.1),
    "theta0.01": replace(_TOGETHER, theta_u=0.01, learning_rate=0.15),
    "svt": replace(_TOGETHER, gamma=0.003, tau=0.0003),
}
_BUDGETS = (1.0, 10.0, 100.0, 1000.0)
_PAPER = {"mnist/alone/accuracy": 0.9316, "mnist/centralised/accuracy": 0.9917}
_PAPER_SELECTIVE = 0.9914  # at theta_u = 0.1; with how many participants is not recalled


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training.

    Args:
        name: of its figures.
        protection: the scheme with its settings.
        participants: how many.
        records: of each; 0 for the whole training set.
        seed: of the draws of records, the first weights and the noise.
    """

    name: str
    protection: SelectiveSGD
    participants: int
    records: int = RECORDS
    seed: int

    @property
    def key(self) -> str:
        """Tells cases apart: the name, the seed and a digest of all settings."""
        return key_of(self)


def cases(effort: Effort) -> list[Case]:
    """The trainings of a reproduction, the longest kinds first.

    Args:
        effort: ``quick``: one seed, two thirds of the epochs, two budgets; ``full``: also 150 participants, one seed.
    """
    seeds = range(effort.seed, effort.seed + (1 if effort.quick else 3))

    def settings(name: str) -> SelectiveSGD:
        found = _SETTINGS[name]
        if not effort.quick:
            return found
        # The same fall of the learning rate in fewer turns.
        return replace(found, epochs=math.ceil(found.epochs * 2 / 3), decay=found.decay**1.5)

    made = []
    if effort.full:
        together = settings("theta0.1")
        many = Case(name="n150/theta0.1", protection=together, participants=150, seed=effort.seed)
        made.append(many)
    for seed in seeds:
        made.append(
            Case(
                name="centralised",
                protection=settings("centralised"),
                participants=1,
                records=0,
                seed=seed,
            )
        )
        made += [
            Case(name=f"n30/{theta}", protection=settings(theta), participants=30, seed=seed)
            for theta in ("theta1", "theta0.1", "theta0.01")
        ]
        made += [
            Case(name=name, protection=settings(name), participants=1, seed=seed)
            for name in ("alone", "alone-longer")
        ]
    for budget in _BUDGETS[1:3] if effort.quick else _BUDGETS:
        private = replace(settings("svt"), epsilon_over_c=budget)
        name = f"n30/svt/epsilon_over_c{budget:g}"
        made.append(Case(name=name, protection=private, participants=30, seed=effort.seed))
    return made


@cache
def _mnist() -> DataSet:
    return load("mnist")


def task_of(case: Case, data: DataSet) -> Task:
    """The participants' records, drawn independently, so that they overlap, and the first model."""
    generator = torch.Generator().manual_seed(case.seed)
    inputs, labels = data.inputs_train, data.labels_train
    wanted = case.records or len(inputs)
    drawn = [
        torch.randperm(len(inputs), generator=generator)[:wanted] for _ in range(case.participants)
    ]
    return Task(
        name=data.name,
        start=tanh_cnn(data.input_shape, data.classes, generator=generator),
        shards=tuple((inputs[rows], labels[rows]) for rows in drawn),
        input_shape=data.input_shape,
        classes=data.classes,
        seed=case.seed,
    )


def run_case(case: Case, data: DataSet | None = None) -> dict[str, Any]:
    """Train, and measure on the test set.

    Args:
        case: the training.
        data: in place of MNIST.
    """
    data = data or _mnist()
    start = time.perf_counter()
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TacitWarning)  # the curve goes to where only noise is left
        run = case.protection.train(
            task_of(case, data), coins=Coins.from_seed(f"reproduce/3/{case.key}".encode())
        )
        share = accuracy(run.output.value, data.inputs_test, data.labels_test)
    owners = {role: cost for role, cost in run.cost.by().items() if role.startswith("owner")}
    losses = [c.value for c in run.claims if isinstance(c.value, PrivacyLoss)]
    return {
        "accuracy": share,
        "tested": len(data.inputs_test),
        # each owner sends one upload a turn, and one word of thanks
        "upload_bytes": sum(cost.bytes_sent for cost in owners.values())
        / (len(owners) * case.protection.epochs),
        "epsilon": losses[0].epsilon if losses else None,
        "seconds": time.perf_counter() - start,
    }


def reproduce_selective(effort: Effort) -> dict[str, object]:
    """Selective SGD on MNIST: accuracy alone, together and centralised; bytes; the private variant's curve.

    Args:
        effort: see `cases`.

    Raises:
        DataError: MNIST is not there.
        OutputError: finished cases cannot be kept.

    Source: Shokri, Shmatikov, CCS 2015, section 7 (figures recalled).
    """
    _mnist()
    wanted = cases(effort)
    kept = _Kept.opened(effort.folder)
    todo = [case for case in wanted if case.key not in kept.found]
    if len(todo) < len(wanted):
        effort.progress(f"{len(wanted) - len(todo)} of {len(wanted)} trainings are done already")
    for case, found in _side_by_side(todo):
        kept.keep(case, found)
        done = sum(case.key in kept.found for case in wanted)
        effort.progress(
            f"{done}/{len(wanted)} {case.name}, seed {case.seed}: {100 * found['accuracy']:.2f} % "
            f"({found['seconds']:.0f} s)"
        )
    pairs = [(case, kept.found[case.key]) for case in wanted]
    return {
        "paper": 3,
        "title": "Selective SGD with a parameter server",
        "seeded": True,
        "quick": effort.quick,
        "full": effort.full,
        "seed": effort.seed,
        "training_seconds": round(sum(found["seconds"] for _, found in pairs), 1),
        "figures": _figures(pairs),
    }


def _side_by_side(todo: Sequence[Case]) -> Iterable[tuple[Case, dict[str, Any]]]:
    return side_by_side(todo, run_case)


class _Kept(Kept):
    file = "3.json"
    numbers = ("accuracy", "tested", "upload_bytes", "seconds")


# --- the figures


def _figures(pairs: Sequence[tuple[Case, dict[str, Any]]]) -> list[Figure]:
    by_name: dict[str, list[tuple[Case, dict[str, Any]]]] = {}
    for case, found in pairs:
        by_name.setdefault(case.name, []).append((case, found))
    order = sorted(by_name, key=lambda name: (name.startswith("n"), "svt" in name))
    made = [one for name in order for one in _of_name(name, by_name[name])]
    together = by_name["n30/theta0.1"]
    for name in ("alone", "alone-longer"):
        alone = {c.seed: f["accuracy"] for c, f in by_name[name]}
        gains = [f["accuracy"] - alone[c.seed] for c, f in together]
        made.append(
            figure(
                f"mnist/n30/theta0.1/gain_over_{name}",
                statistics.mean(gains),
                over_seeds(gains) or _of_difference(alone, together),
                len(gains),
                settings={"unit": "share of the test images"},
            )
        )
    return made


def _of_name(name: str, pairs: Sequence[tuple[Case, dict[str, Any]]]) -> list[Figure]:
    case, first = pairs[0]
    shares = [found["accuracy"] for _, found in pairs]
    hits, tested = round(shares[0] * first["tested"]), first["tested"]
    path = f"mnist/{name}"
    said = {
        "participants": case.participants,
        "records": case.records or "all",
        "seeds": [c.seed for c, _ in pairs],
        "by_seed": shares,
        "interval": "Student's t over seeds"
        if len(shares) > 1
        else "Clopper-Pearson over test images",
        "protection": plain(case.protection),
    }
    paper = _PAPER_SELECTIVE if name == "n150/theta0.1" else _PAPER.get(f"{path}/accuracy")
    made = [
        figure(
            f"{path}/accuracy",
            statistics.mean(shares),
            over_seeds(shares) or clopper_pearson(hits, tested),
            len(shares) if len(shares) > 1 else tested,
            settings=said,
            paper=paper,
            recalled=paper is not None,
        )
    ]
    if case.participants > 1 and "svt" not in name:
        count = share_of(case.protection.theta_u, PARAMETERS)
        places = indices.encoded_bytes(count, PARAMETERS)
        sent = first["upload_bytes"]
        made.append(
            figure(
                f"{path}/upload_bytes",
                sent,
                (sent, sent),
                len(pairs),
                settings={
                    "values": count,
                    "bytes_a_value": sent / count,
                    "index_bytes_a_value": places / count,
                    "ratio_to_4_plus_index": sent / (4 * count + places),
                },
                better="lower",
            )
        )
    if first["epsilon"] is not None:
        made.append(
            figure(
                f"{path}/composed_epsilon",
                first["epsilon"],
                (first["epsilon"], first["epsilon"]),
                1,
                settings={"unit": "participant", "delta": 0, "turns": case.protection.epochs},
                better="lower",
            )
        )
    return made


def _of_difference(
    alone: dict[int, float], pairs: Sequence[tuple[Case, dict[str, Any]]]
) -> tuple[float, float]:
    """One seed: the interval of two shares' difference, as if the test images were not the same."""
    ((case, found),) = pairs
    low, high = (
        clopper_pearson(round(share * found["tested"]), found["tested"])
        for share in (alone[case.seed], found["accuracy"])
    )
    return high[0] - low[1], high[1] - low[0]
