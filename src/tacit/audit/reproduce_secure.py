"""Secure aggregation [6] on MNIST: what it costs in accuracy and bytes, and what its server sees.

A hundred clients hold 600 images each and train together by federated averaging. In each round none, a tenth or three
tenths of them are cut off after they trained: their masked updates are lost. Beside it the same clients train without
protection, with the same first model, the same order of records and the same losses, so that what differs is the
aggregation alone. In every round the mean that was opened is compared with that of the survivors' updates in floats.

The server's side: gradient leakage, from single masked updates and from the sums, with twenty records behind each client's
update; with four and with one, where the attack wins outright if nothing hides the update, and where a sum over the clients
says most about a record; the checks of `tacit.audit.secure_view`; and the members with a mistake that these must catch.

The paper has no training and no such attack, so none of its figures stands beside these. Its running times and traffic
are `tacit bench`'s.

Each training and each attack is a case of its own: cases run side by side, and each finished one is kept, so that an
interrupted run goes on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tacit.attacks.curious import GradientLeakage
from tacit.audit.cells import LeakageAt
from tacit.audit.compare import Row, compare
from tacit.audit.figures import Effort, Figure, figure, one_thread
from tacit.audit.kept import Found, Kept, key_of, side_by_side
from tacit.audit.provenance import plain
from tacit.audit.secure_mutants import MUTANTS
from tacit.audit.secure_view import ENDED, Subject, battery, combined, examine
from tacit.audit.statistics import clopper_pearson, clustered_interval
from tacit.audit.world import Settings
from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import ConfigError, TacitError
from tacit.core.wire import Array
from tacit.nn.data import DataSet, load
from tacit.nn.federated import FederatedMember, Progress, Rounds, Task, train_federated
from tacit.nn.local_work import load_parameters, parameters_of
from tacit.nn.networks import mlp
from tacit.nn.updates import LocalUpdate, LocalWork, flattened
from tacit.parties.faults import Fault, Harm
from tacit.parties.links.local import LocalHub
from tacit.parties.roles import Role
from tacit.parties.runs import Opened, Run
from tacit.parties.secure_sum.agreement import Agreement, Masks
from tacit.parties.secure_sum.server import Aggregate
from tacit.parties.star import Member
from tacit.parties.views import Observation, Recording, View
from tacit.training.plain import FederatedAveraging
from tacit.training.secure_aggregation import SecureAggregation

DROPPED = (0.0, 0.1, 0.3)
HIDDEN = 64
_ATTACK = "gradient-leakage@server"


# --- the cases


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training with secure aggregation, and the same one without.

    Args:
        name: of its figures.
        protection: the scheme with its settings.
        participants: how many, each with as many records.
        records: of each.
        dropped: the share of them that is cut off in each round.
        seed: of the split, the first weights, the losses and the keys.
    """

    name: str
    protection: SecureAggregation
    participants: int = 100
    records: int = 600
    dropped: float
    seed: int

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """Gradient leakage at the server, with and without secure aggregation, and with its masks left out.

    Args:
        name: of its figures.
        settings: how many clients, records and seeds.
        batch_size: records a step of a client.
        local_steps: steps behind a client's update.
        rounds: of training.
        iterations: of the attack, where it has to match gradients.
        seed: the first one.
    """

    name: str
    settings: Settings
    batch_size: int
    local_steps: int = 1
    rounds: int = 2
    iterations: int
    seed: int

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The checks of the server's view, on honest members and on none that mask.

    Args:
        name: of its figures.
        dimension: values of an update.
        seed: of keys, masks and inputs.
    """

    name: str = "view"
    dimension: int
    seed: int

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistakes:
    """The same checks on members with one mistake each.

    Args:
        name: of its figures.
        dimension: values of an update.
        seed: of keys, masks and inputs.
    """

    name: str = "mutants"
    dimension: int
    seed: int

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


Case = Training | Leakage | Sight | Mistakes


def cases(effort: Effort) -> list[Case]:
    """The parts of the reproduction, the longest first.

    Args:
        effort: ``quick``: fewer rounds, steps and seeds of the attack, and values of the view.
    """
    quick, seed = effort.quick, effort.seed
    protection = SecureAggregation(
        rounds=6 if quick else 40, local_steps=0, batch_size=30, learning_rate=0.6, clip=4.0
    )
    victims = Settings(
        dataset="mnist",
        owners=100,
        records=40,
        population=400 if quick else 2000,
        hidden=HIDDEN,
        seeds=1 if quick else 3,
        seed=seed,
    )
    trainings = [
        Training(
            name=f"mnist/n100/drop{dropped:g}", protection=protection, dropped=dropped, seed=seed
        )
        for dropped in DROPPED
    ]
    # Five steps of four records, as in the matrix; and how little may be behind a sum before it leaks itself.
    averaging = Leakage(
        name="mnist/leakage",
        settings=replace(victims, seeds=1 if quick else 2),
        batch_size=4,
        local_steps=5,
        iterations=60 if quick else 150,
        seed=seed,
    )
    few = [
        Leakage(
            name=f"mnist/leakage/{name}",
            settings=victims,
            batch_size=records,
            iterations=150 if quick else 300,
            seed=seed,
        )
        for name, records in (("four-records", 4), ("one-record", 1))
    ]
    return [
        averaging,
        *trainings,
        *few,
        Mistakes(dimension=4_000, seed=seed),
        Sight(dimension=12_000 if quick else 60_000, seed=seed),
    ]


def run_case(case: Case, data: DataSet | None = None) -> Found:
    """What a case gives, as plain values.

    Args:
        case: the case.
        data: in place of MNIST.
    """
    start = time.perf_counter()
    with one_thread():
        match case:
            case Training():
                found = _trained(case, data or _mnist())
            case Leakage():
                found = _leaked(case, data or _mnist())
            case Sight():
                found = _seen(case)
            case Mistakes():
                found = _mistaken(case)
    return found | {"seconds": time.perf_counter() - start}


@cache
def _mnist() -> DataSet:
    return load("mnist")


# --- training


def task_of(case: Training, data: DataSet) -> Task:
    """The training set split at random, and the first model."""
    generator = torch.Generator().manual_seed(case.seed)
    inputs, labels = data.inputs_train, data.labels_train
    order = torch.randperm(len(inputs), generator=generator)
    parts = torch.split(order[: case.participants * case.records], case.records)
    if len(parts) < case.participants or len(parts[-1]) < case.records:
        raise ConfigError(
            f"{case.participants} participants of {case.records} records each need more than {len(inputs)} records"
        )
    return Task(
        name=data.name,
        start=mlp(data.input_shape, (HIDDEN,), data.classes, generator=generator),
        shards=tuple((inputs[rows], labels[rows]) for rows in parts),
        input_shape=data.input_shape,
        classes=data.classes,
        seed=case.seed,
    )


def losses_of(case: Training) -> list[list[Role]]:
    """Who is cut off in each round."""
    generator = torch.Generator().manual_seed(case.seed + 7_919)
    count = round(case.dropped * case.participants)
    return [
        [
            Role("owner", int(place))
            for place in torch.randperm(case.participants, generator=generator)[:count]
        ]
        for _ in range(case.protection.rounds)
    ]


def _lost(losses: Sequence[Sequence[Role]], *, first: int, each: int) -> list[Fault]:
    """The answer to request ``first + each * round`` is lost."""
    return [
        Fault(role=role, at=first + each * round, harm=Harm.DROP)
        for round, roles in enumerate(losses)
        for role in roles
    ]


@dataclass(slots=True)
class _Remembering:
    """Work that keeps its last update, for the comparison with what was opened."""

    work: LocalWork
    last: LocalUpdate | None = field(default=None, repr=False)

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        """The work's update."""
        self.last = self.work.update(model, round)
        return self.last


def _trained(case: Training, data: DataSet) -> Found:
    task, losses = task_of(case, data), losses_of(case)
    model, secure_cost, worst, clipped = _secure(case, task, losses)
    plain_model, plain_cost = _unprotected(case, task, losses)
    right, plainly_right = (_right(m, data) for m in (model, plain_model))
    return {
        "hits": int(right.sum()),
        "unprotected_hits": int(plainly_right.sum()),
        "gained": int((right & ~plainly_right).sum()),
        "given_up": int((~right & plainly_right).sum()),
        "tested": len(right),
        "mean_error_over_bound": worst,
        "clipped": clipped,
        "traffic": _a_client_and_round(secure_cost, case),
        "unprotected_traffic": _a_client_and_round(plain_cost, case),
        "parameters": sum(array.size for array in parameters_of(model)),
    }


def _right(model: nn.Module, data: DataSet) -> Tensor:
    """Which test images the model tells."""
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(part).argmax(1) for part in torch.split(data.inputs_test, 1024)])
    return guesses == data.labels_test


def _a_client_and_round(cost: CostMeter, case: Training) -> dict[str, float]:
    """Bytes that a client sends and receives in a round; what goes once (keys, the finished model) is spread over all."""
    owners = [c for role, c in cost.by().items() if role.startswith("owner")]
    shares = case.participants * case.protection.rounds
    return {
        "sent": sum(c.bytes_sent for c in owners) / shares,
        "received": sum(c.bytes_received for c in owners) / shares,
    }


def _secure(
    case: Training, task: Task, losses: Sequence[Sequence[Role]]
) -> tuple[nn.Module, CostMeter, float, float]:
    """The model; the cost; the largest error of a mean over its bound; the largest share of values that were limited."""
    protection = case.protection
    if protection.session_rounds < protection.rounds:
        raise ConfigError("the script of losses holds for one session: raise session_rounds")
    coins = Coins.from_seed(f"reproduce/6/{case.key}".encode())
    honest = protection.work(task)
    work = {role: _Remembering(one) for role, one in honest.items()}
    start = parameters_of(task.start)
    agreement = protection.agree(
        len(work),
        dimension=sum(array.size for array in start),
        max_examples=max(one.batch_size * one.local_steps for one in honest.values()),
    )
    hub = LocalHub(
        protection.members(work, agreement, start, coins=coins),
        # A member's requests: keys, shares, then two a round.
        faults=_lost(losses, first=2, each=2),
    )
    errors: list[float] = []
    clipped: list[float] = []

    def watch(round: int, found: Aggregate, model: Sequence[Array]) -> None:
        del model
        errors.append(_error_over_bound(found, work, agreement, set(losses[round])))
        clipped.append(found.clipped)

    trained = protection.coordinate(hub, start, agreement, coins=coins.child("server"), watch=watch)
    return _with(task.start, trained), hub.cost, max(errors), max(clipped)


def _error_over_bound(
    found: Aggregate, work: Mapping[Role, _Remembering], agreement: Agreement, lost: set[Role]
) -> float:
    """How far the opened mean is from that of the clipped updates, in float64, over what the agreement allows."""
    if set(found.survivors) != set(work) - lost:
        raise ConfigError("others dropped out than the script says")
    total, examples = np.zeros(agreement.dimension), 0
    for role in found.survivors:
        update = work[role].last
        if update is not None:
            values = flattened(update.arrays).astype(np.float64)
            total += update.examples * np.clip(values, -agreement.clip, agreement.clip)
            examples += update.examples
    error = float(np.abs(found.mean - total / examples).max())
    return error / agreement.error_bound(len(found.survivors), found.examples)


def _unprotected(
    case: Training, task: Task, losses: Sequence[Sequence[Role]]
) -> tuple[nn.Module, CostMeter]:
    """The same training by plain federated averaging, and its cost."""
    like, rounds = parameters_of(task.start), case.protection.rounds
    members: dict[Role, Member] = {
        role: FederatedMember(one, like, rounds=rounds)
        for role, one in case.protection.work(task).items()
    }
    hub = LocalHub(members, faults=_lost(losses, first=0, each=1))
    settings = Rounds(rounds=rounds, rate=1.0, at_least=len(members) - len(losses[0]))
    return _with(task.start, train_federated(hub, task.start, settings)), hub.cost


def _with(module: nn.Module, parameters: Sequence[Array]) -> nn.Module:
    model = copy.deepcopy(module)
    load_parameters(model, parameters)
    return model


# --- the server's side


@dataclass(frozen=True, slots=True, kw_only=True)
class _MaskedOnly:
    """Secure aggregation as a server sees it that looks at single masked updates alone."""

    protection: SecureAggregation

    def train(
        self, task: Task, *, coins: Coins, recording: Recording, progress: Progress
    ) -> Run[Opened[nn.Module]]:
        """Train with the protection."""
        return self.protection.train(task, coins=coins, recording=recording, progress=progress)

    def observe(self, view: View, role: Role) -> Observation:
        """Without the sums, and without the models, whose differences are the sums."""
        return replace(self.protection.observe(view, role), aggregates=(), outputs=())


def _rows(case: Leakage) -> tuple[Row, ...]:
    average = FederatedAveraging(
        rounds=case.rounds, local_steps=case.local_steps, batch_size=case.batch_size
    )
    secure = SecureAggregation(
        rounds=case.rounds, local_steps=case.local_steps, batch_size=case.batch_size, clip=4.0
    )
    unprotected = Row(
        name="unprotected", title="Federated averaging", protection=average, unprotected=True
    )
    return (
        unprotected,
        Row(name="secure", title="Secure aggregation", protection=secure, paper=6),
        Row(
            name="masked",
            title="Secure aggregation, masked updates alone",
            protection=_MaskedOnly(protection=secure),
            paper=6,
        ),
        Row(
            name="sabotaged",
            title="Secure aggregation with its masks left out",
            protection=secure.sabotaged(),
            control=True,
            twin_of="secure",
        ),
    )


def _leaked(case: Leakage, data: DataSet) -> Found:
    """The attack's cells by row."""
    plan = LeakageAt("server", GradientLeakage(iterations=case.iterations))
    report = compare(case.settings, _rows(case), [plan], data=data)
    for row in report["protections"]:
        if error := row["cells"][_ATTACK].get("error"):
            raise TacitError(f"{case.name}, {row['name']}: the attack failed: {error}")
    kept = ("value", "chance", "interval", "n", "verdict", "why", "error", "saw", "knowledge")
    return {
        row["name"]: {name: row["cells"][_ATTACK].get(name) for name in kept}
        for row in report["protections"]
    }


def _seen(case: Sight) -> Found:
    honest = battery(Subject(dimension=case.dimension, seed=case.seed))
    unmasked = examine(
        Subject(masks=Masks.NONE, dimension=case.dimension, seed=case.seed), "uniformity/masked"
    )
    return {"checks": [asdict(one) for one in honest], "unmasked": asdict(unmasked)}


def _mistaken(case: Mistakes) -> Found:
    found: Found = {}
    for mutant in MUTANTS:
        subject = Subject(member=mutant.member, dimension=case.dimension, seed=case.seed)
        failed = {one.name: one.says for one in battery(subject) if not one.passed}
        found[mutant.name] = {
            # a check that could not be made to its end has caught nothing
            "caught": float(not failed.get(mutant.caught_by, ENDED).startswith(ENDED)),
            "mistake": mutant.mistake,
            "check": mutant.caught_by,
            "says": failed.get(mutant.caught_by, ""),
            "fails_too": sorted(failed.keys() - {mutant.caught_by}),
        }
    return found


# --- the reproduction


class _Kept(Kept):
    file = "6.json"
    numbers = ("seconds",)


def _side_by_side(todo: Sequence[Case]) -> Iterable[tuple[Case, Found]]:
    return side_by_side(todo, run_case)


def reproduce_secure(effort: Effort) -> dict[str, object]:
    """Secure aggregation on MNIST: accuracy and exactness under dropouts, traffic, and what its server sees.

    Args:
        effort: see `cases`.

    Raises:
        ConfigError: more than the default effort is asked for.
        DataError: MNIST is not there.
        OutputError: finished cases cannot be kept.

    Source: Bonawitz et al., CCS 2017.
    """
    if effort.full:
        raise ConfigError("secure aggregation has no --full: the default is all of it")
    _mnist()
    wanted = cases(effort)
    kept = _Kept.opened(effort.folder)
    for case, found in kept.finished(wanted, _side_by_side, effort.progress):
        done = sum(case.key in kept.found for case in wanted)
        effort.progress(
            f"{done}/{len(wanted)} {case.name}, seed {case.seed} ({found['seconds']:.0f} s)"
        )
    pairs = [(case, kept.found[case.key]) for case in wanted]
    return {
        "paper": 6,
        "title": "Practical secure aggregation",
        "seeded": True,
        "quick": effort.quick,
        "full": effort.full,
        "seed": effort.seed,
        "computing_seconds": round(sum(found["seconds"] for _, found in pairs), 1),
        "figures": _figures(pairs),
    }


# --- the figures


def _figures(pairs: Sequence[tuple[Case, Found]]) -> list[Figure]:
    trainings: dict[str, list[tuple[Training, Found]]] = {}
    made: list[Figure] = []
    for case, found in pairs:
        match case:
            case Training():
                trainings.setdefault(case.name, []).append((case, found))
            case Leakage():
                made += _of_leakage(case, found)
            case Sight():
                made += _of_sight(found)
            case Mistakes():
                made += _of_mistakes(found)
    return [one for name, of in trainings.items() for one in _of_training(name, of)] + made


def _of_training(name: str, pairs: Sequence[tuple[Training, Found]]) -> list[Figure]:
    (case, first), found = pairs[0], [found for _, found in pairs]
    tested = [one["tested"] for one in found]
    said: dict[str, object] = {
        "participants": case.participants,
        "records": case.records,
        "dropped": case.dropped,
        "network": f"784-{HIDDEN}-10, {first['parameters']} parameters",
        "seeds": [one.seed for one, _ in pairs],
        "protection": plain(case.protection),
    }
    return [
        _share(f"{name}/accuracy", [one["hits"] for one in found], tested, said),
        _share(
            f"{name}/unprotected/accuracy", [one["unprotected_hits"] for one in found], tested, said
        ),
        _gain(f"{name}/accuracy_minus_unprotected", found, said),
        _exactly(
            f"{name}/mean_error_over_bound",
            max(one["mean_error_over_bound"] for one in found),
            len(found) * case.protection.rounds,
            {"unit": "of the bound, the largest over all values, rounds and seeds"},
        ),
        _exactly(
            f"{name}/clipped",
            max(one["clipped"] for one in found),
            len(found) * case.protection.rounds,
            {"unit": "share of a round's values, the largest", "clip": case.protection.clip},
        ),
        _traffic(f"{name}/traffic_bytes", found, case),
    ]


def _share(
    name: str, hits: Sequence[int], tested: Sequence[int], said: dict[str, object]
) -> Figure:
    counts = list(zip(hits, tested, strict=True))
    here = sum(hits) / sum(tested)
    by_seed = {"by_seed": [h / n for h, n in counts]}
    return figure(name, here, clustered_interval(counts), sum(tested), settings=said | by_seed)


def _gain(name: str, found: Sequence[Found], said: dict[str, object]) -> Figure:
    """The difference over the same test images: those that only one of the two models tells."""
    tested = sum(one["tested"] for one in found)
    gained, given_up = (
        clustered_interval([(one[part], one["tested"]) for one in found], 0.975)
        for part in ("gained", "given_up")
    )
    here = sum(one["gained"] - one["given_up"] for one in found) / tested
    return figure(
        name,
        here,
        (gained[0] - given_up[1], gained[1] - given_up[0]),
        tested,
        settings={
            "unit": "share of the test images",
            "interval": "both shares of images that only one model tells, at 97.5 % each",
            "seeds": said["seeds"],
        },
        better="equal",
    )


def _exactly(
    name: str, here: float, n: int, said: dict[str, object], *, better: str = "lower"
) -> Figure:
    return figure(name, here, (here, here), n, settings=said, better=better)


def _traffic(name: str, found: Sequence[Found], case: Training) -> Figure:
    def whole(kind: str) -> float:
        each = [one[kind]["sent"] + one[kind]["received"] for one in found]
        return float(sum(each) / len(each))

    sent = found[0]["traffic"]["sent"]
    return _exactly(
        name,
        whole("traffic"),
        len(found) * case.protection.rounds,
        {
            "unit": "bytes that a client sends and receives in a round",
            "sent": sent,
            "received": found[0]["traffic"]["received"],
            "unprotected": whole("unprotected_traffic"),
            "ratio_to_unprotected": whole("traffic") / whole("unprotected_traffic"),
            "sent_over_16_bits_a_value": sent / (2 * found[0]["parameters"]),
        },
    )


def _of_leakage(case: Leakage, found: Found) -> list[Figure]:
    asked: dict[str, object] = {
        "clients": case.settings.owners,
        "records": case.settings.records,
        "records_an_update": case.batch_size * case.local_steps,
        "seeds": case.settings.seeds,
        "iterations": case.iterations,
    }
    made = []
    for row in ("unprotected", "secure", "masked", "sabotaged"):
        cell = found[row]
        low, high = cell["interval"] or (0.0, 1.0)
        said = {
            name: cell[name] for name in ("chance", "verdict", "why", "error", "saw", "knowledge")
        }
        made.append(
            figure(
                f"{case.name}/{row}/reidentified",
                float("nan") if cell["value"] is None else cell["value"],
                (low, high),
                cell["n"] or 0,
                settings={**said, "interval": "95 %, records of one update together", **asked},
                better="lower" if row in ("secure", "masked") else "higher",
            )
        )
    return made


def _of_sight(found: Found) -> list[Figure]:
    checks = {one["name"]: one for one in found["checks"]}
    uniform = [one for name, one in checks.items() if name.startswith("uniformity/")]
    passed = sum(one["passed"] for one in checks.values())
    unmasked = found["unmasked"]
    return [
        _exactly(
            "view/limbs",
            checks["uniformity/masked"]["n"],
            checks["uniformity/masked"]["n"],
            {"unit": "masked values whose bytes were counted"},
            better="higher",
        ),
        _p_value(
            "view/uniformity/p_value",
            combined([one["p_value"] for one in uniform]),
            sum(one["n"] for one in uniform),
            {"by_check": {one["name"]: one["p_value"] for one in uniform}},
        ),
        _p_value(
            "view/two_inputs/p_value",
            checks["two-inputs"]["p_value"],
            checks["two-inputs"]["n"],
            {"says": checks["two-inputs"]["says"]},
        ),
        _exactly(
            "view/unmasked/p_value",
            unmasked["p_value"],
            unmasked["n"],
            {"says": "control: the same members without masks"},
        ),
        figure(
            "view/checks_passed",
            passed,
            (passed, passed),
            len(checks),
            settings={"checks": list(checks.values())},
        ),
    ]


def _p_value(name: str, here: float | None, n: int, said: dict[str, object]) -> Figure:
    value = float("nan") if here is None else here
    return figure(name, value, (value, value), n, settings=said)


def _of_mistakes(found: Found) -> list[Figure]:
    mutants: dict[str, dict[str, Any]] = {m.name: found[m.name] for m in MUTANTS}
    caught = sum(one["caught"] for one in mutants.values())
    made = [
        figure(
            f"mutants/{name}/caught",
            one["caught"],
            (one["caught"], one["caught"]),
            1,
            settings={said: value for said, value in one.items() if said != "caught"},
        )
        for name, one in mutants.items()
    ]
    total = figure(
        "mutants/caught",
        caught,
        (caught, caught),
        len(mutants),
        settings={"interval": clopper_pearson(caught, len(mutants)), "of": len(mutants)},
    )
    return [*made, total]
