"""Membership inference [14] on Location-30: Shokri et al.'s attack, mitigations, other shadow data; and what came later.

The target is a network of one hidden layer of 128 tanh units, trained on 1,600 of the 5,010 records; judged are its members
and 1,600 others. Shadow models are trained on as many records, of two kinds of data:

- ``shared``: all 3,410 non-members, those that are judged included;
- ``strict``: the 1,810 that are not judged.

The mitigations and the other shadow data are measured on ``strict``. Noisy and drawn shadow data take its place, as many
records. L2 regularisation is the target's and, as the adversary knows the recipe, the shadow models' too.

The attacks that came later share one ensemble over 3,200 records, each in half of the models: each model is once the target,
and of the others those are its references that do not give its records away (`tacit.attacks.shadows.References.against`).
They are run on CIFAR-10 as well, with the same number of records, few references and a small convolutional network.

Each target of a kind is a case of its own: cases run side by side, and each finished one is kept, so that an interrupted run
goes on. Figures are means over targets; of a single target the interval is over its records.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, QueryCounter, Scores
from tacit.attacks.evidence import Evidence, ReferenceAttack
from tacit.attacks.likelihood_ratio import LiRA, StudentLiRA
from tacit.attacks.membership import ShadowModels
from tacit.attacks.rmia import RMIA
from tacit.attacks.score_attacks import AttackR, Loss
from tacit.attacks.shadow_data import (
    MarginalRecords,
    NoisyRecords,
    RealRecords,
    ShadowData,
    SynthesisedRecords,
)
from tacit.attacks.shadows import ShadowEnsemble, halves
from tacit.audit import membership_statistics
from tacit.audit.figures import Effort, Figure, figure, one_thread
from tacit.audit.kept import Found, Kept, key_of, side_by_side
from tacit.audit.membership_statistics import Unsupported, over_targets
from tacit.audit.null_control import NullControl, null_figures, run_null
from tacit.audit.provenance import plain
from tacit.audit.statistics import auc, auc_interval, balanced_accuracy, clopper_pearson
from tacit.core.errors import TacitWarning
from tacit.nn.data import DataSet, load
from tacit.nn.local_work import accuracy
from tacit.nn.networks import cnn, mlp
from tacit.nn.policies import EVERYTHING, Policy
from tacit.nn.stacked import Recipe, Trainer

RECIPE = Recipe(epochs=60, batch_size=100, learning_rate=0.002)
#: On images: until they are learned by heart.
ON_IMAGES = Recipe(epochs=25, batch_size=50, learning_rate=0.003)

POLICIES = (
    EVERYTHING, Policy(top_k=3), Policy(top_k=1), Policy(labels_only=True), Policy(digits=3), Policy(digits=1),
    Policy(temperature=5), Policy(temperature=20),
)  # fmt: skip
#: The paper's lambda: so much of the squared parameters is added to the loss, twice that of each to its gradient.
L2 = (0.001, 0.005)
ATTACKS: tuple[ReferenceAttack, ...] = (
    LiRA(), LiRA(online=False), StudentLiRA(), RMIA(), RMIA(online=True), AttackR(), Loss(),
)  # fmt: skip

# Precision on Location of the paper's black-box target (recalled).
_PAPER = {
    "location30/shared/shokri/precision": 0.678,
    "location30/shadow-data/noisy0.1/precision": 0.666,
    "location30/shadow-data/noisy0.2/precision": 0.613,
}
_RATES = (0.1, 0.01)

Split = Literal["shared", "strict"]
Network = Literal["mlp", "cnn"]
Source = Literal["real", "noisy0.1", "noisy0.2", "marginal", "synthesised"]


def source_of(name: Source, records: int, classes: int) -> ShadowData:
    """Shadow data by their name, about as many records as are asked for."""
    sources: Mapping[str, Callable[[], ShadowData]] = {
        "real": RealRecords,
        "noisy0.1": lambda: NoisyRecords(share=0.1),
        "noisy0.2": lambda: NoisyRecords(share=0.2),
        "marginal": lambda: MarginalRecords(count=records),
        "synthesised": lambda: SynthesisedRecords(per_class=math.ceil(records / classes)),
    }
    return sources[name]()


# --- the cases


@dataclass(frozen=True, slots=True, kw_only=True)
class Shokri:
    """Shokri et al.'s attack on one target.

    Args:
        name: of its figures.
        seed: of the split, the target, the shadow models and the attack.
        split: whether the shadow data may hold what is judged.
        source: of the shadow data.
        policies: each is attacked on its own; target and shadow models are the same.
        recipe: of target and shadow models.
        members: that the target is trained on, as many others are judged.
        attack: its shadow models and networks; its `data` is not used.
    """

    name: str
    seed: int
    split: Split = "strict"
    source: Source = "real"
    policies: tuple[Policy, ...] = (EVERYTHING,)
    recipe: Recipe = RECIPE
    members: int = 1600
    attack: ShadowModels = ShadowModels(shadows=60)  # noqa: RUF009
    data: ClassVar[str] = "location30"

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Attacks by reference models that are each once the target.

    Args:
        name: of its figures.
        seed: of the pool, the halves and the models.
        models: trained on a half of the pool each; even. A target has two references fewer.
        targets: how many of the models are attacked.
        data: name of the data set.
        network: ``mlp``: one hidden layer of tanh; ``cnn``: `tacit.nn.networks.cnn`.
        width: hidden units, or channels of the first convolution.
        recipe: of all.
        pool: how many records.
    """

    name: str
    seed: int
    models: int
    targets: int
    data: str = "location30"
    network: Network = "mlp"
    width: int = 128
    recipe: Recipe = RECIPE
    pool: int = 3200

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


Case = Shokri | Ensemble | NullControl


def cases(effort: Effort) -> list[Case]:
    """The parts of the reproduction, the longest first.

    Args:
        effort: by default four targets, of L2 and of each kind of other shadow data one, 60 shadow models, and 34 models in
            the ensemble, on CIFAR-10 10; ``quick``: two targets, 20 shadow models, 10 models in the ensemble of which four
            are attacked, on CIFAR-10 8 narrow ones of 2,000 records, and for the null control 20 audits in place of 200;
            ``full``: eight targets, four of L2 and of each kind of shadow data, and 18 models on CIFAR-10.
    """
    count = 2 if effort.quick else 8 if effort.full else 4
    attack = ShadowModels(shadows=20 if effort.quick else 60)
    targets = range(effort.seed, effort.seed + count)
    some = targets[: 4 if effort.full else 1]
    models, attacked = (10, 4) if effort.quick else (34, 34)
    images = Ensemble(
        name="cifar10", seed=effort.seed, models=18 if effort.full else 10, targets=18 if effort.full else 10,
        data="cifar10", network="cnn", width=16, recipe=ON_IMAGES,
    )  # fmt: skip
    if effort.quick:
        images = replace(images, models=8, targets=4, width=8, pool=2000)
    made: list[Case] = [
        images,
        Ensemble(name="location30", seed=effort.seed, models=models, targets=attacked),
    ]
    for seed in targets:
        made.append(Shokri(name="location30/strict", seed=seed, policies=POLICIES, attack=attack))
        made.append(Shokri(name="location30/shared", seed=seed, split="shared", attack=attack))
    sources: tuple[Source, ...] = ("synthesised", "marginal", "noisy0.1", "noisy0.2")
    for source in sources:
        name = f"location30/shadow-data/{source}"
        made += [Shokri(name=name, seed=seed, source=source, attack=attack) for seed in some]
    audits, parts = (10, 2) if effort.quick else (50, 4)
    for part in range(parts):
        made.append(NullControl(seed=1000 * effort.seed + part * audits, audits=audits))
    for strength in L2:
        recipe = replace(RECIPE, weight_decay=2 * strength)
        name = f"location30/mitigation/l2-{strength:g}"
        made += [Shokri(name=name, seed=seed, recipe=recipe, attack=attack) for seed in some]
    return made


def run_case(case: Case, data: DataSet | None = None) -> Found:
    """What a case gives, as plain values.

    Args:
        case: the case.
        data: in place of the data set that it names.
    """
    begun = time.perf_counter()
    used = data or _data(case.data)
    with one_thread():
        if isinstance(case, NullControl):
            found = run_null(case, used)
        else:
            found = _attacked(case, used) if isinstance(case, Shokri) else _compared(case, used)
    return found | {"seconds": time.perf_counter() - begun}


@cache
def _data(name: str) -> DataSet:
    return load(name)


def _all_of(data: DataSet) -> tuple[Tensor, Tensor]:
    """Training and test records together: the experiment splits anew."""
    inputs = torch.cat([data.inputs_train, data.inputs_test])
    return inputs, torch.cat([data.labels_train, data.labels_test])


def _trainer(data: DataSet, recipe: Recipe, network: Network = "mlp", width: int = 128) -> Trainer:
    def drawn(generator: torch.Generator) -> nn.Module:
        if network == "cnn":
            return cnn(data.input_shape, data.classes, width, generator=generator)
        return mlp(data.input_shape, (width,), data.classes, nn.Tanh, generator=generator)

    return Trainer(network=drawn, recipe=recipe)


# --- Shokri et al.


class Parts(NamedTuple):
    """Whose records are whose, as indices: of the members, the others that are judged, and the shadow data."""

    members: Tensor
    nonmembers: Tensor
    pool: Tensor


def parts(records: int, members: int, split: Split, generator: torch.Generator) -> Parts:
    """Split the records at random.

    Args:
        records: how many there are.
        members: of the target; as many others are judged.
        split: ``shared``: the shadow data are all that are not members; ``strict``: those that are not judged either.
        generator: draws the split.
    """
    order = torch.randperm(records, generator=generator)
    outside = order[members:]
    pool = outside if split == "shared" else outside[members:]
    return Parts(order[:members], outside[:members], pool)


def _attacked(case: Shokri, data: DataSet) -> Found:
    """One target, its shadow models, and the attack under each policy."""
    generator = torch.Generator().manual_seed(case.seed)
    inputs, labels = _all_of(data)
    mine, others, pool = parts(len(inputs), case.members, case.split, generator)
    trainer = _trainer(data, case.recipe)
    target = trainer(inputs[mine], labels[mine], generator)

    knowledge = Knowledge(
        population=(inputs[pool], labels[pool]), input_shape=data.input_shape, classes=data.classes, train_fn=trainer,
    )  # fmt: skip
    source, counter = source_of(case.source, len(pool), data.classes), QueryCounter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TacitWarning)  # of a class that the target hardly ever says
        shadow_inputs, shadow_labels = source.records(Scores(target, counter), knowledge, generator)
    trained_on = min(case.members, len(shadow_inputs) * 9 // 10)
    inside = np.zeros((case.attack.shadows, len(shadow_inputs)), np.bool_)
    for row in inside:
        row[torch.randperm(len(row), generator=generator)[:trained_on].numpy()] = True
    references = ShadowEnsemble(train_fn=trainer).train(
        shadow_inputs, shadow_labels, inside, generator
    )

    by_policy: dict[str, object] = {}
    for policy in case.policies:
        drawn = torch.Generator().manual_seed(case.seed)
        networks = case.attack.taught(references, drawn, policy)
        access = Scores(target, policy=policy)
        scores = [case.attack.judged(networks, access, inputs[of], labels[of]) for of in (mine, others)]  # fmt: skip
        by_policy[policy.name] = _outcome(*scores)
    return {
        "policies": by_policy,
        "accuracy": accuracy(target, inputs[others], labels[others]),
        "training_accuracy": accuracy(target, inputs[mine], labels[mine]),
        "shadow_records": len(shadow_inputs),
        "trained_on": trained_on,
        "queries_for_shadow_data": counter.spent,
        "agrees": float((target(shadow_inputs).argmax(1) == shadow_labels).double().mean()),
    }


def _outcome(inside: Tensor, outside: Tensor) -> dict[str, object]:
    """What the scores of as many members as others say; above 0 means "member"."""
    judged = balanced_accuracy(inside, outside, threshold=0.0)
    return {
        "members": len(inside), "nonmembers": len(outside),
        "found": int((inside > 0).sum()), "accused": int((outside > 0).sum()),
        "accuracy": judged.value, "accuracy_interval": list(judged.interval),
        "auc": auc(inside, outside), "auc_interval": list(auc_interval(inside, outside)),
    }  # fmt: skip


# --- what came later


def _compared(case: Ensemble, data: DataSet) -> Found:
    """AUC and true positives of each attack on each target, and how accurate the targets are."""
    generator = torch.Generator().manual_seed(case.seed)
    inputs, labels = _all_of(data)
    chosen = torch.randperm(len(inputs), generator=generator)[: case.pool]
    inside = halves(len(chosen), case.models, generator)
    trainer = _trainer(data, case.recipe, case.network, case.width)
    references = ShadowEnsemble(train_fn=trainer).train(
        inputs[chosen], labels[chosen], inside, generator
    )
    found: dict[str, dict[str, list[float | None]]] = {}
    right: tuple[list[float], list[float]] = [], []  # on others, on members
    count = 0
    for k in range(case.targets):
        rest, answers, members = references.against(k)
        evidence = Evidence.gather(answers, references.labels, rest)
        count = evidence.count
        hits = answers[0].argmax(1) == references.labels
        for shares, of in zip(right, (~members, members), strict=True):
            shares.append(float(hits[of].mean()))
        for attack in ATTACKS:
            scores = attack.score(evidence)
            figures = membership_statistics.figures(scores[members], scores[~members], rates=_RATES)
            for name, one in figures.items():
                value = None if isinstance(one, Unsupported) else one.value
                found.setdefault(attack.name, {}).setdefault(name, []).append(value)
    accuracies = {"accuracy": right[0], "training_accuracy": right[1]}
    return {"attacks": found, "references": count} | accuracies


# --- the reproduction


class _Kept(Kept):
    file = "14.json"
    numbers = ("seconds",)


def _side_by_side(todo: Sequence[Case]) -> Iterable[tuple[Case, Found]]:
    return side_by_side(todo, run_case)


def reproduce_membership(effort: Effort) -> dict[str, object]:
    """Membership inference on Location-30: Shokri et al.'s attack, mitigations, shadow data; later attacks, on CIFAR-10 too.

    Args:
        effort: see `cases`.

    Raises:
        DataError: Location-30 or CIFAR-10 is not there.
        OutputError: finished cases cannot be kept.

    Source: Shokri et al., S&P 2017, sections VI to VIII (figures recalled).
    """
    wanted = cases(effort)
    for name in sorted({case.data for case in wanted}):
        _data(name)  # that it is not there must show before minutes of training
    kept = _Kept.opened(effort.folder)
    for case, found in kept.finished(wanted, _side_by_side, effort.progress):
        effort.progress(f"{case.name}, seed {case.seed} ({found['seconds']:.0f} s)")
    pairs = [(case, kept.found[case.key]) for case in wanted]
    return {
        "paper": 14,
        "title": "membership inference",
        "quick": effort.quick,
        "full": effort.full,
        "seed": effort.seed,
        "computing_seconds": round(sum(found["seconds"] for _, found in pairs), 1),
        "figures": _figures(pairs),
    }


# --- the figures


def _figures(pairs: Sequence[tuple[Case, Found]]) -> list[Figure]:
    shokri: dict[str, list[tuple[Shokri, Found]]] = {}
    null: list[tuple[NullControl, Found]] = []
    made: list[Figure] = []
    for case, found in pairs:
        if isinstance(case, Shokri):
            shokri.setdefault(case.name, []).append((case, found))
        elif isinstance(case, NullControl):
            null.append((case, found))
        else:
            made += _of_ensemble(case, found)
    made += null_figures(null)
    return _of_targets(shokri["location30/strict"]) + [
        one for name, of in shokri.items() for one in _of_attack(name, of)
    ] + made  # fmt: skip


def _of_targets(pairs: Sequence[tuple[Shokri, Found]]) -> list[Figure]:
    made = []
    for name, of in (("accuracy", "accuracy"), ("training-accuracy", "training_accuracy")):
        shares, tested = [found[of] for _, found in pairs], pairs[0][0].members
        interval = clopper_pearson(round(shares[0] * tested), tested)
        said = {"recipe": plain(pairs[0][0].recipe)}
        made.append(_mean(f"location30/target/{name}", shares, interval, tested, said))
    return made


def _of_attack(name: str, pairs: Sequence[tuple[Shokri, Found]]) -> list[Figure]:
    """Figures of one kind of case: all policies of all its targets."""
    case, first = pairs[0]
    made: list[Figure] = []
    for policy in case.policies:
        outcomes = [found["policies"][policy.name] for _, found in pairs]
        mitigated = policy != EVERYTHING or "/mitigation/" in name
        stem = f"location30/mitigation/{policy.name}" if policy != EVERYTHING else name
        if name in ("location30/strict", "location30/shared") and policy == EVERYTHING:
            stem = f"{name}/shokri"
        said = {
            "split": case.split, "shadow_data": case.source, "shadows": case.attack.shadows,
            "shadow_records": first["shadow_records"], "trained_on": first["trained_on"],
            "queries_for_shadow_data": first["queries_for_shadow_data"], "policy": plain(policy),
            "recipe": plain(case.recipe), "target_accuracy": [found["accuracy"] for _, found in pairs],
            "labels_that_the_target_agrees_with": first["agrees"],
        }  # fmt: skip
        for of in ("accuracy", "precision", "recall", "auc"):
            values = [_value(of, one) for one in outcomes]
            n = outcomes[0]["members"] + outcomes[0]["nonmembers"]
            better = "lower" if mitigated else "higher"
            made.append(_mean(f"{stem}/{of}", values, _over_records(of, outcomes[0]), n, said, better))  # fmt: skip
    return made


def _value(of: str, outcome: Mapping[str, Any]) -> float:
    said = outcome["found"] + outcome["accused"]
    match of:
        case "precision":
            return float(outcome["found"] / said) if said else math.nan
        case "recall":
            return float(outcome["found"] / outcome["members"])
        case _:
            return float(outcome[of])


def _over_records(of: str, outcome: Mapping[str, Any]) -> tuple[float, float]:
    said = outcome["found"] + outcome["accused"]
    match of:
        case "precision":
            return clopper_pearson(outcome["found"], said) if said else (0.0, 1.0)
        case "recall":
            return clopper_pearson(outcome["found"], outcome["members"])
        case _:
            low, high = outcome[f"{of}_interval"]
            return low, high


def _mean(
    name: str,
    values: Sequence[float],
    of_one: tuple[float, float],
    n: int,
    said: dict[str, object],
    better: str = "higher",
) -> Figure:
    """The mean over targets, with Student's interval; of one target what its records say."""
    paper = _PAPER.get(name)
    several = len(values) > 1 and all(map(math.isfinite, values))
    interval = over_targets(values).interval if several else of_one
    settings = said | {
        "by_target": [value if math.isfinite(value) else None for value in values],
        "interval": "Student's t over targets" if several else "over the records of the first target",
    }  # fmt: skip
    return figure(
        name, statistics.mean(values), interval, len(values) if several else n, settings=settings, paper=paper,
        recalled=paper is not None, better=better,
    )  # fmt: skip


def _of_ensemble(case: Ensemble, found: Found) -> list[Figure]:
    said: dict[str, object] = {
        "references": found["references"], "pool": case.pool, "network": f"{case.network}, width {case.width}",
        "recipe": plain(case.recipe), "target_accuracy": found["accuracy"],
        "target_training_accuracy": found["training_accuracy"],
        "targets": "of one ensemble: they share a pool, and each is a reference of the others",
    }  # fmt: skip
    made = []
    for attack, figures in found["attacks"].items():
        for name, values in figures.items():
            if None in values:
                continue  # too few records: of a small pool alone
            made.append(_mean(f"{case.name}/{attack}/{name}", values, (0.0, 1.0), 1, said))
    return made
