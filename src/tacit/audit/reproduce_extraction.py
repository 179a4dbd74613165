"""Model extraction [15]: how near a copy comes to its target, and from how many queries.

Targets are trained on real tables and images (`tacit.audit.extraction_targets`) and answer in float64, but where a name says
otherwise. The copy and the target are compared on the test records and on 10,000 records uniform in the domain. Figures, by
what the adversary is given:

- probabilities: logistic, softmax and one-vs-rest regression from the fewest records that determine them; softmax rounded
  to 5, 3 and 2 decimals, from 650 records; a network of 20 tanh units from as many records as it has weights and twice as
  many; kernel regression, whose training records come out; a network of ReLU by its kinks;
- labels: linear models of two classes, softmax regression and the network, each within the paper's budget and half of it;
- natural records: knockoffs of another architecture than the target's;
- the endpoint of `tacit serve` over HTTP, which must give what the same attack gives in process.

Each target of a kind is a case of its own: cases run side by side, and each finished one is kept, so that an interrupted run
goes on. Figures are means over seeds; of a single one the interval is over its records.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter, Scores
from tacit.attacks.extraction import Box, EquationSolving, Extraction
from tacit.attacks.extraction_kernel import KernelEquations, KernelModel
from tacit.attacks.extraction_knockoff import Knockoff
from tacit.attacks.extraction_labels import LabelExtraction, Retraining
from tacit.attacks.extraction_network import NetworkEquations
from tacit.attacks.extraction_network_labels import NetworkRetraining
from tacit.attacks.extraction_relu import KinkSearch
from tacit.audit.bench_serve import served
from tacit.audit.extraction_metrics import accuracy, answers, elsewhere, fidelity
from tacit.audit.extraction_targets import GAMMA, HIDDEN, Data, data_of, own, target_of
from tacit.audit.figures import Effort, Figure, figure, one_thread, over_seeds
from tacit.audit.kept import Found, Kept, key_of, side_by_side
from tacit.audit.provenance import plain
from tacit.audit.statistics import clopper_pearson
from tacit.core.errors import ConfigError
from tacit.nn.networks import mlp
from tacit.nn.policies import Policy
from tacit.nn.spec import save_model
from tacit.prediction.client import Client

#: Records uniform in the domain on which models are compared, as in the paper.
UNIFORM = 10_000
#: A representer counts as found if what was found is nearer to it than this share of the way to the next training record.
FOUND = 0.1
#: Sets of two classes for linear models from labels, the last two generated.
LINEAR = ("wisconsin", "pima", "adult", "mushrooms", "moons", "blobs")
#: Queries a weight (d + 1) on average over them: the paper's 827 and half of that.
PER_WEIGHT = {"827": 19, "413": 9}

_PAPER: dict[str, float] = {
    "digits/softmax/queries": 650,
    "digits/softmax/total_variation": 1e-7,
    "digits/softmax/agreement_test": 1.0,
    "digits/softmax/agreement_uniform": 1.0,
    "adult-race/softmax/queries": 530,
    "adult-race/softmax/agreement_test": 1.0,
    "adult-race/softmax/agreement_uniform": 1.0,
    "adult-race/softmax/seconds": 3.1,
    "adult-race/one-vs-rest/queries": 530,
    "adult-race/one-vs-rest/agreement_test": 1.0,
    "adult-race/one-vs-rest/agreement_uniform": 1.0,
    "adult-race/one-vs-rest/seconds": 3.5,
    "adult-race/mlp20/2225/agreement_test": 0.9868,
    "adult-race/mlp20/2225/agreement_uniform": 0.9723,
    "adult-race/mlp20/2225/seconds": 168,
    "adult-race/mlp20/4450/agreement_test": 0.9989,
    "adult-race/mlp20/4450/agreement_uniform": 0.9982,
    "adult-race/mlp20/4450/seconds": 195,
    "digits/softmax-labels/65000/queries": 65_000,
    "digits/softmax-labels/65000/agreement_test": 0.999,
    "digits/softmax-labels/65000/agreement_uniform": 0.999,
    "adult-race/mlp20-labels/108200/queries": 108_200,
    "adult-race/mlp20-labels/108200/agreement_test": 0.9916,
    "adult-race/mlp20-labels/108200/agreement_uniform": 0.9824,
    "labels/linear/827/queries": 827,
    "labels/linear/827/agreement_test": 0.99,
    "labels/linear/827/agreement_uniform": 0.99,
    "digits/kernel20/queries": 5000,
}
#: What a paper's value is, where it is not quite the same thing.
_MEANT = {
    "digits/softmax/total_variation": "below this, over all data sets",
    "digits/softmax-labels/65000/agreement_test": "above this",
    "digits/softmax-labels/65000/agreement_uniform": "above this",
    "adult-race/mlp20-labels/108200/agreement_test": "on average over its data sets",
    "adult-race/mlp20-labels/108200/agreement_uniform": "on average over its data sets",
    "labels/linear/827/agreement_test": "above this",
    "labels/linear/827/agreement_uniform": "above this",
    "digits/kernel20/queries": "50,000 equations of 10 classes, in the range -1 to 1",
}

Method = Literal[
    "equations", "network", "kernel", "kinks", "labels", "network-labels",
    "knockoff", "knockoff-adaptive", "knockoff-labels",
]  # fmt: skip
#: Methods that are given labels, or copy without matching probabilities.
_NAMES_ONLY = ("labels", "network-labels", "knockoff", "knockoff-adaptive", "knockoff-labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One target and one attack.

    Args:
        name: of its figures.
        seed: of the target, the queries and the comparison.
        data: see `data_of`.
        target: see `target_of`.
        method: of the attack.
        queries: None for what the attack takes by itself.
        digits: decimals that the target gives; None for all.
        single: whether the target computes in float32.
        http: whether it is asked over HTTP.
    """

    name: str
    seed: int
    data: str
    target: str
    method: Method = "equations"
    queries: int | None = None
    digits: int | None = None
    single: bool = False
    http: bool = False

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


def cases(effort: Effort) -> list[Case]:
    """The parts of the reproduction, the longest first.

    Args:
        effort: by default three seeds of what is trained or fitted in a minute, and one of what takes longer; ``quick``: one
            seed, and of the trainings on labels of softmax regression and networks a sixth of the queries, which their names
            then hold; ``full``: five
            and three seeds.
    """
    seeds = range(effort.seed, effort.seed + (1 if effort.quick else 5 if effort.full else 3))
    few = seeds[:3] if effort.full else seeds[:1]
    share = 6 if effort.quick else 1
    made = []
    for queries in (108_200 // share, 54_100 // share):
        made += [
            Case(
                name=f"adult-race/mlp20-labels/{queries}", seed=seed, data="adult-race", target="mlp20",
                method="network-labels", queries=queries,
            )
            for seed in few
        ]  # fmt: skip
    for queries in (65_000 // share, 32_500 // share):
        made += [
            Case(
                name=f"digits/softmax-labels/{queries}", seed=seed, data="digits", target="softmax",
                method="labels", queries=queries,
            )
            for seed in few
        ]  # fmt: skip
    for representers in (20, 10):
        target = f"kernel{representers}"
        made += [
            Case(name=f"digits/{target}", seed=seed, data="digits", target=target, method="kernel")
            for seed in few
        ]
    for queries in (4450, 2225):
        made += [
            Case(
                name=f"adult-race/mlp20/{queries}", seed=seed, data="adult-race", target="mlp20",
                method="network", queries=queries,
            )
            for seed in seeds
        ]  # fmt: skip
    methods: tuple[Method, ...] = ("knockoff", "knockoff-adaptive", "knockoff-labels")
    for method in methods:
        made += [
            Case(name=f"mnist/{method}/2000", seed=seed, data="mnist", target="mlp128", method=method, queries=2000)
            for seed in few
        ]  # fmt: skip
    made += [
        Case(name="digits/relu32", seed=seed, data="digits", target="relu32", method="kinks")
        for seed in seeds
    ]
    for data in ("adult-race", "digits"):
        made += [Case(name=f"{data}/one-vs-rest", seed=seed, data=data, target="one-vs-rest") for seed in few]  # fmt: skip
    for name, weight in PER_WEIGHT.items():
        for data in LINEAR:
            made += [
                Case(
                    name=f"{data}/linear-labels/{name}", seed=seed, data=data, target="softmax",
                    method="labels", queries=weight * (data_of(data).width + 1),
                )
                for seed in seeds
            ]  # fmt: skip
    for decimals in (5, 3, 2):
        made += [
            Case(
                name=f"digits/softmax/decimals{decimals}", seed=seed, data="digits", target="softmax", digits=decimals,
                queries=650,
            )
            for seed in seeds
        ]  # fmt: skip
    for seed in seeds:
        made += [
            Case(name=f"{data}/logistic", seed=seed, data=data, target="softmax") for data in LINEAR[:4]
        ]  # fmt: skip
        made += [
            Case(name="adult-race/softmax", seed=seed, data="adult-race", target="softmax"),
            Case(name="digits/softmax", seed=seed, data="digits", target="softmax"),
            Case(name="digits/softmax-float32", seed=seed, data="digits", target="softmax", single=True),
        ]  # fmt: skip
    if can_serve():
        made += [Case(name="http/digits/softmax", seed=effort.seed, data="digits", target="softmax", http=True)]  # fmt: skip
    return made


def can_serve() -> bool:
    """Whether what serves models over HTTP is installed."""
    return all(find_spec(name) is not None for name in ("starlette", "uvicorn"))


# --- a case

Attack = (
    EquationSolving | NetworkEquations | KernelEquations | KinkSearch | Retraining
    | NetworkRetraining | Knockoff
)  # fmt: skip


def attack_of(case: Case, data: Data) -> Attack:
    """The attack of a case, with its settings.

    Raises:
        ConfigError: it needs a number of queries and none is set.
    """
    box = Box(low=data.low, dtype=torch.float32 if case.single else torch.float64)
    match case.method:
        case "equations":
            link: Literal["one-vs-rest", "softmax"]
            link = "one-vs-rest" if case.target == "one-vs-rest" else "softmax"
            return EquationSolving(box=box, link=link, queries=case.queries)
        case "network":
            return NetworkEquations(box=box, hidden=HIDDEN, queries=case.queries)
        case "kernel":
            count = int(case.target.removeprefix("kernel"))
            return KernelEquations(representers=count, gamma=GAMMA, box=box, queries=case.queries)
        case "kinks":
            return KinkSearch(box=box)
        case _:
            pass
    if case.queries is None:
        raise ConfigError(f"{case.name}: a number of queries expected, none came")
    match case.method:
        case "labels":
            if data.classes == 2:
                return Retraining(queries=case.queries, box=box)
            return Retraining(queries=case.queries, box=box, rounds=16, ridge=1e-7)
        case "network-labels":
            return NetworkRetraining(queries=case.queries, box=box, hidden=HIDDEN)
        case _:
            adaptive = case.method == "knockoff-adaptive"
            return Knockoff(queries=case.queries, choice="adaptive" if adaptive else "random")


def knowledge_of(case: Case, data: Data) -> Knowledge:
    """What the adversary knows: shape and number of classes; for a knockoff records and an architecture of its own."""
    if not case.method.startswith("knockoff"):
        return Knowledge(input_shape=data.shape, classes=data.classes)
    generator = torch.Generator().manual_seed(case.seed)
    network = mlp(data.shape, (256, 64), data.classes, nn.ReLU, generator=generator)
    inputs, labels = own(data)
    return Knowledge(
        architecture=network, population=(inputs.float(), labels), classes=data.classes
    )


def run_case(case: Case) -> Found:
    """What a case gives, as plain values."""
    begun = time.perf_counter()
    with one_thread():
        data = data_of(case.data)
        target = target_of(case.target, data, case.seed)
        # A knockoff asks about images as they are, in float32.
        single = case.single or case.method.startswith("knockoff")
        if single:
            target = target.float()
        found = _over_http(case, data, target) if case.http else _attacked(case, data, target)[1]
    return found | {"seconds": time.perf_counter() - begun}


def _attacked(
    case: Case, data: Data, target: nn.Module
) -> tuple[Extraction | LabelExtraction, Found]:
    policy, counter = Policy(digits=case.digits), QueryCounter()
    found, seconds = _extracted(case, data, Scores(target, counter, policy), Labels(target, counter))  # fmt: skip
    return found, _compared(case, data, target, found) | {
        "attack_seconds": seconds,
        "queries": counter.spent,
    }


def _extracted(
    case: Case, data: Data, scores: Scores, labels: Labels
) -> tuple[Extraction | LabelExtraction, float]:
    """The copy, and the seconds that it took: of the processor, as cases run side by side; over HTTP those of a clock."""
    attack, knowledge = attack_of(case, data), knowledge_of(case, data)
    generator = torch.Generator().manual_seed(1000 + case.seed)
    clock = time.perf_counter if case.http else time.process_time
    start = clock()
    found: Extraction | LabelExtraction
    if isinstance(attack, Knockoff):
        access = labels if case.method == "knockoff-labels" else scores
        found = attack.extract(access, knowledge, generator)
    elif isinstance(attack, Retraining | NetworkRetraining):
        found = attack.extract(labels, knowledge, generator)
    else:
        found = attack.extract(scores, knowledge, generator)
    return found, clock() - start


def _compared(
    case: Case, data: Data, target: nn.Module, found: Extraction | LabelExtraction
) -> Found:
    """Copy beside target, on test records and uniform ones."""
    dtype = next(target.parameters()).dtype
    drawn = torch.Generator().manual_seed(2000 + case.seed)
    box = Box(low=data.low, dtype=dtype)
    tests, labels = data.test[0].to(dtype), data.test[1]
    test = fidelity(target, found.model, tests)
    uniform = fidelity(target, found.model, box.drawn(UNIFORM, data.shape, drawn))
    theirs, ours = answers(target, tests), answers(found.model, tests)
    constant, others = elsewhere(theirs, ours)
    said: Found = {
        "agreement_test": test.agreement.value,
        "agreement_uniform": uniform.agreement.value,
        "total_variation": test.total_variation,
        "total_variation_uniform": uniform.total_variation,
        "largest_difference": max(test.largest_difference, uniform.largest_difference),
        "accuracy": accuracy(ours, labels).value,
        "target_accuracy": accuracy(theirs, labels).value,
        "agreement_of_a_constant": constant,
        "agreement_elsewhere": others,
        "tests": len(tests),
    }
    if isinstance(found, Extraction):
        said["residual"] = found.residual
    if isinstance(target, KernelModel) and isinstance(found.model, KernelModel):
        said |= _representers(target, found.model, data.train[0].flatten(1))
    return said


def _representers(target: KernelModel, found: KernelModel, training: Tensor) -> Found:
    """How near the representers that were found come to the real ones."""
    real, ours = target.representers.detach(), found.representers.detach()
    nearest = torch.cdist(real, ours).min(1).values
    others = torch.cdist(real, training)
    others = others.masked_fill(others < 1e-9, math.inf).min(1).values
    errors = nearest.square() / real.shape[1]
    return {
        "recovered": float((nearest < FOUND * others).double().mean()),
        "representers": len(real),
        "distance": float(nearest.median()),
        "distance_of_another": float(others.median()),
        "psnr": float((-10 * errors.clamp_min(1e-30).log10()).median()),
    }


def _over_http(case: Case, data: Data, target: nn.Module) -> Found:
    """The attack in process and over HTTP, and whether both give the same weights to the last bit."""
    inside, _ = _attacked(case, data, target)
    counter = QueryCounter()
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        save_model(target, data.shape, model)
        with (
            served(model, Path(folder) / "state") as server,
            Client(server.url, key=server.key) as client,
        ):
            scores = Scores(client, counter, client.policy)
            found, seconds = _extracted(case, data, scores, Labels(client, counter))
            charged = client.spent()
    pairs = zip(inside.model.parameters(), found.model.parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    return _compared(case, data, target, found) | {
        "attack_seconds": seconds, "queries": counter.spent, "charged": charged, "same_as_in_process": float(same),
    }  # fmt: skip


# --- the reproduction


class _Kept(Kept):
    file = "15.json"
    numbers = ("seconds",)


def _side_by_side(todo: Sequence[Case]) -> Iterable[tuple[Case, Found]]:
    return side_by_side(todo, run_case)


def reproduce_extraction(effort: Effort) -> dict[str, object]:
    """Model extraction from probabilities, rounded ones, labels and natural records, in process and over HTTP.

    Args:
        effort: see `cases`.

    Raises:
        DataError: a data set is not there.
        OutputError: finished cases cannot be kept.

    Source: Tramèr et al., USENIX Security 2016, sections 4, 6 and 7.
    """
    wanted = cases(effort)
    for name in sorted({case.data for case in wanted}):
        data_of(name)  # that it is not there must show before minutes of fitting
    if not can_serve():
        effort.progress("nothing is served over HTTP: install tacit[web]; its figures are left out")
    kept = _Kept.opened(effort.folder)
    for case, found in kept.finished(wanted, _side_by_side, effort.progress):
        effort.progress(f"{case.name}, seed {case.seed} ({found['seconds']:.0f} s)")
    pairs = [(case, kept.found[case.key]) for case in wanted]
    return {
        "paper": 15,
        "title": "model extraction",
        "quick": effort.quick,
        "full": effort.full,
        "seed": effort.seed,
        "computing_seconds": round(sum(found["seconds"] for _, found in pairs), 1),
        "figures": _figures(pairs),
    }


# --- the figures

#: Of each figure its name, and which direction is better.
_AGREEMENT = (("agreement_test", "higher"), ("agreement_uniform", "higher"))
_NEARNESS = (("total_variation", "lower"), ("largest_difference", "lower"))
_COST = (("queries", "lower"), ("seconds", "lower"))
#: What seconds are.
_CPU = "of the processor, of the attack alone; the paper's are of a clock"


def _told(case: Case) -> tuple[tuple[str, str], ...]:
    """What figures a case has."""
    if case.method.startswith("knockoff"):
        return (*_AGREEMENT[:1], ("accuracy", "higher"), *_COST)
    if case.method in _NAMES_ONLY:
        return (*_AGREEMENT, *_COST)
    found: tuple[tuple[str, str], ...] = (*_AGREEMENT, *_NEARNESS, *_COST)
    if case.method == "kernel":
        found = (*found, ("recovered", "higher"), ("psnr", "higher"))
    return (*found, ("same_as_in_process", "equal")) if case.http else found


def _figures(pairs: Sequence[tuple[Case, Found]]) -> list[Figure]:
    by_name: dict[str, list[tuple[Case, Found]]] = {}
    for case, found in pairs:
        by_name.setdefault(case.name, []).append((case, found))
    made = []
    for name, of in by_name.items():
        made += [_figure(name, metric, better, of) for metric, better in _told(of[0][0])]
    for budget in PER_WEIGHT:
        made += _over_sets(budget, by_name)
    return made


def _value(metric: str, found: Found) -> float:
    return float(found["attack_seconds" if metric == "seconds" else metric])


def _figure(name: str, metric: str, better: str, of: Sequence[tuple[Case, Found]]) -> Figure:
    """The mean over seeds."""
    case, first = of[0]
    values = [_value(metric, found) for _, found in of]
    said: dict[str, Any] = {
        **plain(case),
        "target_accuracy": [found["target_accuracy"] for _, found in of],
        "agreement_of_a_constant": [found["agreement_of_a_constant"] for _, found in of],
        "agreement_elsewhere": [found["agreement_elsewhere"] for _, found in of],
        "by_seed": values,
    }
    if metric == "seconds":
        said["seconds"] = "of a clock" if case.http else _CPU
    for extra in (
        "residual",
        "distance",
        "distance_of_another",
        "charged",
        "total_variation_uniform",
    ):
        if extra in first:
            said[extra] = [found[extra] for _, found in of]
    return _made(f"{name}/{metric}", values, _interval(metric, values, first), len(of), said, better)  # fmt: skip


def _interval(metric: str, values: Sequence[float], first: Found) -> tuple[float, float]:
    """Student's over seeds that differ; of a single one, or where all agree, Clopper and Pearson's over its records."""
    records = {
        "agreement_test": first["tests"], "accuracy": first["tests"], "agreement_uniform": UNIFORM,
        "recovered": first.get("representers"),
    }.get(metric)  # fmt: skip
    if len(set(values)) > 1:
        low, high = over_seeds(values) or (values[0], values[0])
        return max(0.0, low), min(1.0, high) if records else high
    if records:
        return clopper_pearson(round(values[0] * records), records)
    return values[0], values[0]


def _over_sets(budget: str, by_name: dict[str, list[tuple[Case, Found]]]) -> list[Figure]:
    """The means over data sets of linear models from labels, and the worst agreement."""
    made = []
    sets = {
        data: [found for _, found in by_name[f"{data}/linear-labels/{budget}"]] for data in LINEAR
    }
    for metric, better in (*_AGREEMENT, *_COST):
        means = [statistics.mean(_value(metric, found) for found in of) for of in sets.values()]
        low, high = over_seeds(means) or (means[0], means[0])
        share = (metric, better) in _AGREEMENT
        interval = max(0.0, low), min(1.0, high) if share else high
        if metric == "queries":  # they are set, not drawn
            interval = statistics.mean(means), statistics.mean(means)
        said: dict[str, Any] = {
            "by_set": dict(zip(LINEAR, means, strict=True)),
            "least": min(means),
            "agreement_of_a_constant": [
                statistics.mean(found["agreement_of_a_constant"] for found in of)
                for of in sets.values()
            ],
            "interval": "Student's t over data sets",
        }
        if metric == "seconds":
            said["seconds"] = _CPU
        made.append(_made(f"labels/linear/{budget}/{metric}", means, interval, len(means), said, better))  # fmt: skip
    return made


def _made(
    name: str,
    values: Sequence[float],
    interval: tuple[float, float],
    n: int,
    said: dict[str, Any],
    better: str,
) -> Figure:
    paper = _PAPER.get(name)
    if name in _MEANT:
        said = {**said, "paper_says": _MEANT[name]}
    return figure(name, statistics.mean(values), interval, n, settings=said, paper=paper, better=better)  # fmt: skip
