"""Differentially private SGD [4] on MNIST: accuracy at a stated epsilon, by three accountants.

The paper's network on the first 60 private principal components at epsilon 0.5, 2 and 8 of the moments accountant, the
components' share included; then two later recipes at epsilon 3 of Rényi DP: a convolutional network with tanh
(Papernot et al., AAAI 2021) and a linear layer on scattering features (Tramèr, Boneh, ICLR 2021). Noise is discrete.
Settings were chosen on 10,000 of the training images, and figures are on the test images.

Each training is a case of its own: cases run side by side, and each finished one is kept, so that an interrupted run goes
on.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from tacit.audit.figures import Effort, Figure, figure, one_thread, over_seeds
from tacit.audit.kept import Found, Kept, key_of, side_by_side
from tacit.audit.provenance import plain
from tacit.audit.statistics import clopper_pearson
from tacit.core.coins import Coins
from tacit.core.errors import TacitWarning
from tacit.dp.accounting import Accountant
from tacit.nn.data import DataSet, load
from tacit.nn.local_work import accuracy
from tacit.nn.networks import projected_mlp, softmax_regression, tempered_cnn
from tacit.nn.scattering import scattered
from tacit.training.dp_sgd import DPSGD

_PAPERS = DPSGD(
    lot_size=2400, clip=4.0, components=60, accountant=Accountant.MOMENTS, final_rate=0.01
)
_LATER = DPSGD(clip=0.1, momentum=0.9, epsilon=3.0, accountant=Accountant.RDP)
_RECIPES = {
    "mnist/cnn": (
        "tempered",
        replace(_LATER, epochs=30, lot_size=2048, learning_rate=5.0, final_rate=1.0, micro=256),
    ),
    "mnist/scattering": (
        "scattering",
        replace(_LATER, epochs=30, lot_size=4096, learning_rate=8.0),
    ),
    "mnist/eps8": (
        "projected",
        replace(
            _PAPERS, epsilon=8.0, epochs=60, learning_rate=1.6, final_rate=0.02, component_noise=4.0
        ),
    ),
    "mnist/eps2": (
        "projected",
        replace(_PAPERS, epsilon=2.0, epochs=40, learning_rate=0.72, component_noise=7.0),
    ),
    "mnist/eps0.5": (
        "projected",
        replace(
            _PAPERS, epsilon=0.5, epochs=6, lot_size=600, learning_rate=0.2, component_noise=16.0
        ),
    ),
}
_LONG = ("mnist/cnn", "mnist/scattering")
_PAPER = {
    "mnist/eps0.5/accuracy": 0.90,
    "mnist/eps2/accuracy": 0.95,
    "mnist/eps8/accuracy": 0.97,
}  # recalled


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training.

    Args:
        name: of its figures: data set and recipe.
        seed: of first weights, lots and noise.
        model: projected, tempered or scattering.
        protection: the scheme with its settings.
    """

    name: str
    seed: int
    model: str
    protection: DPSGD

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


def cases(effort: Effort) -> list[Case]:
    """The trainings of a reproduction, the longest first.

    Args:
        effort: ``quick``: one seed, and of the longest a quarter of the epochs.
    """
    seeds = range(effort.seed, effort.seed + (1 if effort.quick else 3))
    known = {
        name: (model, replace(of, epochs=max(1, of.epochs // 4)) if effort.quick and name in _LONG else of)
        for name, (model, of) in _RECIPES.items()
    }  # fmt: skip
    return [
        Case(name=name, seed=seed, model=model, protection=of)
        for name, (model, of) in known.items()
        for seed in seeds
    ]


@cache
def _data(name: str) -> DataSet:
    return load(name)


@cache
def _features(name: str) -> tuple[Tensor, Tensor]:
    data = _data(name)
    return scattered(data.inputs_train), scattered(data.inputs_test)


def _prepared(case: Case, data: DataSet) -> tuple[Tensor, Tensor, nn.Module]:
    """Training inputs, test inputs, and the first model."""
    generator = torch.Generator().manual_seed(case.seed)
    shape, classes = data.input_shape, data.classes
    if case.model == "scattering":
        inputs, tests = _features(data.name)
        shape = tuple(inputs.shape[1:])
        groups = nn.GroupNorm(shape[0] // 3, shape[0], affine=False)
        model = nn.Sequential(groups, *softmax_regression(shape, classes, generator=generator))
        return inputs, tests, model
    made = (
        projected_mlp(shape, case.protection.components, 1000, classes, generator=generator)
        if case.model == "projected"
        else tempered_cnn(shape, classes, generator=generator)
    )
    # Each image to mean 0 and variance 1: a public function of one record.
    inputs, tests = (
        nn.functional.layer_norm(x, shape) for x in (data.inputs_train, data.inputs_test)
    )
    return inputs, tests, made


def run_case(case: Case, data: DataSet | None = None) -> Found:
    """Train, measure, and account by all three accountants.

    Args:
        case: the training.
        data: in place of the data set that its name says.
    """
    data = data or _data(case.name.split("/")[0])
    inputs, tests, model = _prepared(case, data)
    begun = time.perf_counter()
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TacitWarning)  # images that occur twice
        fit = case.protection.fit(
            model,
            inputs,
            data.labels_train,
            coins=Coins.from_seed(f"reproduce/4/{case.key}".encode()),
        )
        share = accuracy(model, tests, data.labels_test)
    return {
        "accuracy": share,
        "tested": len(tests),
        "seconds": time.perf_counter() - begun,
        "noise_multiplier": fit.plan.release.noise_multiplier,
        "steps": fit.plan.lots.steps,
        "clipped": fit.clipped,
        **{of.value: fit.ledger.loss(of).epsilon for of in Accountant},
    }


class _Kept(Kept):
    file = "4.json"
    numbers = (
        "accuracy",
        "tested",
        "seconds",
        "noise_multiplier",
        "steps",
        "moments",
        "rdp",
        "pld",
    )


def _side_by_side(todo: Sequence[Case]) -> Iterable[tuple[Case, Found]]:
    return side_by_side(todo, run_case)


def reproduce_dp(effort: Effort) -> dict[str, object]:
    """Differentially private SGD on MNIST: accuracy, and epsilon by three accountants.

    Args:
        effort: see `cases`.

    Raises:
        DataError: MNIST is not there.
        OutputError: finished cases cannot be kept.

    Source: Abadi et al., CCS 2016, section 5 (figures recalled).
    """
    wanted = cases(effort)
    for name in dict.fromkeys(case.name.split("/")[0] for case in wanted):
        _data(name)  # that it is not there must show before hours of training
    kept = _Kept.opened(effort.folder)
    for case, found in _side_by_side([case for case in wanted if case.key not in kept.found]):
        kept.keep(case, found)
        effort.progress(f"{case.name}, seed {case.seed}: {found['accuracy']:.4f}")
    pairs = [(case, kept.found[case.key]) for case in wanted]
    return {
        "paper": 4,
        "title": "differentially private SGD",
        "quick": effort.quick,
        "full": effort.full,
        "seed": effort.seed,
        "training_seconds": round(sum(found["seconds"] for _, found in pairs), 1),
        "figures": _figures(pairs),
    }


def _figures(pairs: Sequence[tuple[Case, Found]]) -> list[Figure]:
    by_name: dict[str, list[tuple[Case, Found]]] = {}
    for case, found in pairs:
        by_name.setdefault(case.name, []).append((case, found))
    return [one for name in _RECIPES for one in _of_name(name, by_name[name])]


def _of_name(name: str, pairs: Sequence[tuple[Case, Found]]) -> list[Figure]:
    case, first = pairs[0]
    shares, tested = [found["accuracy"] for _, found in pairs], first["tested"]
    said = {
        "seeds": [c.seed for c, _ in pairs], "by_seed": shares, "protection": plain(case.protection),
        "steps": first["steps"], "noise_multiplier": first["noise_multiplier"], "delta": case.protection.delta,
        "interval": "Student's t over seeds" if len(shares) > 1 else "Clopper-Pearson over test images",
    }  # fmt: skip
    paper = _PAPER.get(f"{name}/accuracy")
    made = [
        figure(
            f"{name}/accuracy", statistics.mean(shares),
            over_seeds(shares) or clopper_pearson(round(shares[0] * tested), tested),
            len(shares) if len(shares) > 1 else tested, settings=said, paper=paper, recalled=paper is not None,
        )
    ]  # fmt: skip
    for accountant in Accountant:
        epsilon = first[accountant.value]
        made.append(
            figure(
                f"{name}/epsilon/{accountant.value}", epsilon, (epsilon, epsilon), 1,
                settings={"accountant": accountant.title, "delta": case.protection.delta}, better="lower",
            )
        )  # fmt: skip
    return made
