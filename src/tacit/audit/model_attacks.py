"""What an audit finds out of the model itself: copies of it [15], and what it takes its classes to look like [1].

They look at the target as it is finished, not at single records, and so have figures of their own instead of an AUC:

- `COPY`: a network taught what the target answered about the population. No further query.
- `EQUATIONS`: the weights of a softmax or logistic regression from d + 1 queries; of any other model the best affine one.
- `INVERSION`: for each class a record that the target is sure of; of a target whose weights are not in reach, of the copy.

Copies are compared with the target on the non-members, which no copy was made from. An attack ``leaks`` where the whole 95 %
interval of its figure lies above chance; a model that is of use leaks here, whatever protected its training, and what the
figures say is how well its access hides it.

Source: [15] Tramèr et al., USENIX Security 2016; Orekondy, Schiele, Fritz, CVPR 2019; [1] Fredrikson, Jha, Ristenpart, CCS
2015.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, QueryCounter, Scores, WhiteBox
from tacit.attacks.extraction import Box, EquationSolving
from tacit.audit.audit_attacks import Attack, Case, Unable
from tacit.audit.cells import pixels
from tacit.audit.inversion_metrics import class_means, nearest_mean
from tacit.audit.model_cells import DESCENT, compared, present_of, taught
from tacit.audit.statistics import clopper_pearson
from tacit.core.errors import BudgetExhausted, TacitError
from tacit.nn.networks import mlp

#: Units of the hidden layer of a copy, where the target's architecture is not known.
HIDDEN = 128
#: Features beyond which the equations are not solved: they are dense, and cubic in them.
WIDEST = 2000
#: Parameters beyond which a module is not inverted, and classes beyond which none is.
LARGEST, MOST_CLASSES = 10_000_000, 200
#: Records of the population, at least, that a copy is made from.
FEWEST = 20
_SHOWN = 10

COPY = Attack(
    name="extraction-copy", title="Copy from answers", access="scores", source="Orekondy et al. 2019",
    explains="A network is taught what the model answered about the population, and compared with it on the non-members.",
)  # fmt: skip
EQUATIONS = Attack(
    name="extraction-equations", title="Weights by equations", access="scores", source="Tramèr et al. 2016",
    explains="Solves for the weights of a softmax or logistic regression from one query more than there are features; a "
    "model of another kind is met as far as planes go.",
)  # fmt: skip
INVERSION = Attack(
    name="model-inversion", title="What a class looks like", access="weights", source="Fredrikson et al. 2015",
    explains="Searches a record of each class that the model is sure of, and looks it up among the classes' mean members.",
)  # fmt: skip

MODEL_ATTACKS: tuple[Attack, ...] = (COPY, EQUATIONS, INVERSION)


@dataclass(slots=True, kw_only=True)
class Subject:
    """What these attacks are shown.

    Args:
        case: the records, the target and its answers.
        population: records (n, *record shape) beside `Case.population`'s answers; None where there are none.
        counter: counts further queries.
        generator: draws.
        copy: a network taught what the target answered; made when first needed.
    """

    case: Case
    population: Tensor | None
    counter: QueryCounter
    generator: torch.Generator
    copy: nn.Module | None = field(default=None, repr=False)


def run_model_attacks(
    subject: Subject,
    chosen: Collection[Attack],
    left: Callable[[], float],
    watch: Callable[[str, int, int], None],
) -> Iterator[dict[str, Any] | tuple[Attack, str]]:
    """Run those that are chosen, in order.

    Args:
        subject: what they are shown.
        chosen: of `MODEL_ATTACKS`.
        left: seconds of the budget that are left.
        watch: told what is going on.

    Yields:
        An entry of the report; or an attack that could not run, and why.
    """
    wanted = [attack for attack in MODEL_ATTACKS if attack in chosen]
    for k, attack in enumerate(wanted):
        watch(attack.title, k, len(wanted))
        begun, asked = time.perf_counter(), subject.counter.spent
        try:
            if left() <= 0:
                raise Unable("the seconds were over")
            found = _RUN[attack.name](subject)
        except (Unable, BudgetExhausted) as reason:
            yield attack, str(reason)
            continue
        except TacitError as error:
            yield attack, f"{type(error).__name__}: {error}"
            continue
        entry: dict[str, Any] = {
            "name": attack.name, "title": attack.title, "access": attack.access, "explains": attack.explains,
            "source": attack.source, "queries": subject.counter.spent - asked,
            "seconds": round(time.perf_counter() - begun, 4),
        }  # fmt: skip
        entry |= found
        leaks = entry["interval"][0] > entry["chance"]
        yield entry | {"verdict": "leaks" if leaks else "inconclusive"}


def _made(subject: Subject) -> nn.Module:
    """The copy."""
    if subject.copy is None:
        network, inputs, answers = _teaching(subject)
        shares = (
            nn.functional.one_hot(answers.argmax(1), answers.shape[1]).double()
            if subject.case.labels_only
            else answers.softmax(1)
        )
        subject.copy = taught(network, inputs, shares, subject.generator)
    return subject.copy


def _teaching(subject: Subject) -> tuple[nn.Module, Tensor, Tensor]:
    """The architecture of a copy, the records that it learns from and what the target answered, (n, classes) logits."""
    case, inputs = subject.case, subject.population
    if case.population is None or inputs is None or case.target is None or case.inputs is None:
        raise Unable(
            "needs a population: further records, and a model that can be asked about them"
        )
    if len(inputs) < FEWEST:
        raise Unable(f"needs a population of at least {FEWEST} records, {len(inputs)} came")
    answers = torch.from_numpy(case.population.answers[0]).double()
    shape, classes = tuple(inputs.shape[1:]), answers.shape[1]
    network = case.target.module or mlp(shape, (HIDDEN,), classes, generator=subject.generator)
    return network, inputs, answers


def _copy(subject: Subject) -> dict[str, Any]:
    case, copy = subject.case, _made(subject)
    network, inputs, answers = _teaching(subject)
    labels = torch.from_numpy(case.population.labels) if case.population else torch.empty(0)
    truth = nn.functional.one_hot(labels, answers.shape[1]).double()
    own = taught(network, inputs, truth, subject.generator)
    fresh, answered = _fresh(case)
    known = case.target is not None and case.target.module is not None
    return {
        "metric": "agreement", **_against(_same(copy, fresh, answered), _same(own, fresh, answered)),
        "access": "labels" if case.labels_only else "scores", "queries": len(inputs),
        "needs": "a population" + (" and the architecture" if known else ""),
        "chance_means": "The agreement of a network taught the population's true labels: what can be had without asking.",
        "why": f"taught from {len(inputs):,} answers, compared on {len(fresh):,} non-members",
    }  # fmt: skip


def _equations(subject: Subject) -> dict[str, Any]:
    case = subject.case
    if case.target is None or case.inputs is None or case.answers is None:
        raise Unable("needs a model that can be asked again: answers were saved")
    if case.labels_only:
        raise Unable("needs scores: the target gives labels alone")
    shape, classes = tuple(case.inputs.shape[1:]), case.answers.shape[2]
    width = math.prod(shape)
    if width > WIDEST:
        raise Unable(f"solves for at most {WIDEST} features, records have {width}")
    low, high = float(case.inputs.min()), float(case.inputs.max())
    if not low < high:
        raise Unable("all values of all records are the same")
    attack = EquationSolving(box=Box(low=low, high=high), queries=width + 1)
    # Policies of an endpoint are in the answers already: it is asked as if there were none.
    access = Scores(case.target.model, subject.counter)
    found = attack.extract(access, Knowledge(input_shape=shape, classes=classes), subject.generator)
    fresh, answered = _fresh(case)
    often = int(answered.bincount(minlength=classes).argmax())
    with torch.no_grad():
        own = torch.softmax(found.model(fresh), 1)
    told = torch.softmax(torch.from_numpy(case.answers[0][case.members :]).double(), 1)
    exact = float((own - told).abs().max())
    return {
        "metric": "agreement", **_against(_same(found.model, fresh, answered), answered == often), "needs": "nothing",
        "chance_means": f"Always naming class {often}, which the model names most often.",
        "largest_difference": exact,
        "why": f"{found.queries:,} queries; on non-members no probability differs by more than {exact:.2g}",
    }  # fmt: skip


def _inversion(subject: Subject) -> dict[str, Any]:
    case = subject.case
    if case.target is None or case.inputs is None or case.labels is None or case.answers is None:
        raise Unable("needs records and a model: answers were saved")
    module = case.target.module
    asked: dict[str, Any] = {"access": "weights", "needs": "nothing"}
    if module is None or case.target.gives != "logits":
        if case.population is None or subject.population is None:
            raise Unable(
                "needs a torch module that gives logits, or a population to copy the model from"
            )
        module = _made(subject)
        sees = "labels" if case.labels_only else "scores"
        asked = {"access": sees, "needs": "a population", "queries": len(subject.population)}
    size = sum(one.numel() for one in module.parameters())
    classes = case.answers.shape[2]
    if size > LARGEST or classes > MOST_CLASSES:
        raise Unable(
            f"takes at most {LARGEST:,} parameters and {MOST_CLASSES} classes, this has {size:,} and {classes}"
        )
    inputs, labels = case.inputs[: case.members], torch.from_numpy(case.labels[: case.members])
    present, places = present_of(labels)
    if len(present) < 2:
        raise Unable("needs members of at least two classes")
    low, high = float(inputs.min()), float(inputs.max())
    if not low < high:
        raise Unable("all values of all members are the same")
    knowledge = Knowledge(input_shape=tuple(inputs.shape[1:]), classes=classes)
    attack = replace(DESCENT, box=(low, high))
    found = attack.invert(WhiteBox(module), knowledge, present)
    means = class_means(inputs.float(), places, len(present))
    images = found.images.detach().float().cpu()
    hit = nearest_mean(images, means) == torch.arange(len(present))
    sure, hits, n = float(found.confidences.median()), int(hit.sum()), len(present)
    return {
        "metric": "reidentified", "value": hits / n, "interval": list(clopper_pearson(hits, n)), "n": n,
        "chance": 1 / n, **asked,
        "chance_means": "Naming a class at random.",
        "why": f"{hits} of {n} classes are named by what was found; median confidence {sure:.2f}",
        "images": _pictures(images, means, present, (low, high)),
    }  # fmt: skip


_RUN: dict[str, Callable[[Subject], dict[str, Any]]] = {
    COPY.name: _copy,
    EQUATIONS.name: _equations,
    INVERSION.name: _inversion,
}


def _fresh(case: Case) -> tuple[Tensor, Tensor]:
    """The non-members, and the class that the target named for each."""
    if case.inputs is None or case.answers is None:
        raise Unable("needs records and answers")
    answered = torch.from_numpy(case.answers[0][case.members :]).argmax(1)
    return case.inputs[case.members :], answered


def _same(model: nn.Module, records: Tensor, answered: Tensor) -> Tensor:
    with torch.no_grad():
        same: Tensor = model.eval()(records).argmax(1) == answered
    return same


def _against(hits: Tensor, others: Tensor) -> dict[str, Any]:
    found = compared(hits, others)
    return {
        "value": found.value, "interval": list(found.interval), "chance": found.chance, "n": len(hits),
    }  # fmt: skip


def _pictures(
    images: Tensor, means: Tensor, labels: Tensor, ends: tuple[float, float]
) -> list[dict[str, Any]]:
    if means.dim() != 4 or means.shape[1] not in (1, 3) or max(means.shape[2:]) > 256:
        return []
    low, high = ends
    return [
        {
            "original": pixels(((mean - low) / (high - low)).clamp(0, 1)),
            "reconstruction": pixels(((image - low) / (high - low)).clamp(0, 1)),
            "caption": f"class {label}", "beside": "class mean",
        }
        for mean, image, label in zip(means[:_SHOWN], images, labels.tolist(), strict=False)
    ]  # fmt: skip
