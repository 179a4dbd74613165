"""SecureML [5] on MNIST: two servers train on shares, beside the same training in the clear.

The paper's network, 784-128-128-10, on all 60,000 images, with the squared error and with relu-sum at its output, and its
logistic and linear regression that tell the digit 0 from the others. Owners, servers and dealer are processes of this
machine that talk over mutually authenticated TLS. A window of correlations is made before any of it is used, so that
offline and online seconds are told apart; the dealer has no other work, and shares the processors with both servers.

Beside each training stands the plain fixed-point run: the same integers, order of batches and rates, each truncation one of
two shares drawn for it, no network. Their accuracies differ by chance alone.

What a network of the paper's kinds would cost is measured on a sample of steps over links that delay and hold back what is
sent, and extrapolated to the whole run, and so is preprocessing by oblivious transfer, without a dealer: figures whose names
end in ``extrapolated`` are a sample's figure times the number of steps.

Each training is a case of its own, one after another since all are timed, and each finished one is kept, so that an
interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tacit.audit.figures import Effort, Figure, figure, one_thread
from tacit.audit.kept import Found, Kept, key_of
from tacit.audit.processes import run_processes
from tacit.audit.provenance import plain
from tacit.audit.statistics import clopper_pearson
from tacit.core.coins import Coins
from tacit.core.wire import Array
from tacit.nn.data import DataSet, load
from tacit.nn.federated import Task
from tacit.nn.local_work import load_parameters, parameters_of
from tacit.nn.networks import initialise, mlp
from tacit.parties.links.link import Shape
from tacit.parties.links.tcp_pair import PartyRun
from tacit.parties.roles import Role
from tacit.parties.two_party.engine import InTheClear
from tacit.parties.two_party.network import Loss
from tacit.parties.two_party.session import OFFLINE, ONLINE
from tacit.training.two_server import SERVERS, Outcome, Preprocessing, Terms, TwoServer

OWNERS = 2
EPOCHS = 15
PAPER_WAN = Shape(delay=0.036, bandwidth=9e6)
"""The paper's WAN (recalled): 72 ms there and back, 9 MB/s."""
PAPER_LAN = Shape(delay=0.000085, bandwidth=1e9)
"""The paper's LAN (recalled): 0.17 ms there and back, 1 GB/s."""

_SQUARED = TwoServer(loss=Loss.SQUARED_ERROR, epochs=EPOCHS, learning_rate=0.5, apart=True)
_RELU_SUM = replace(_SQUARED, loss=Loss.RELU_SUM_TANGENT, learning_rate=0.25, decay=0.8)
_LOGISTIC = replace(_SQUARED, loss=Loss.LOGISTIC, epochs=5, learning_rate=0.25)
_LINEAR = replace(_SQUARED, epochs=5, learning_rate=0.03125)
_PAPER = {  # recalled
    "mnist/nn/relu-sum/accuracy": 0.934,
    "mnist/nn/relu-sum/online_s": 4239.7,
    "mnist/logistic-0/accuracy": 0.9862,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training.

    Args:
        name: of its figures.
        protection: the scheme with its settings.
        model: nn, or zero: one output that tells 0 from other digits.
        records: of all owners together.
        seed: of the first weights and the order.
        shape: a network to imitate; None for none.
        plain: whether the same training in the clear is run beside it.
        bias: added to the first bias of the output, so that relu-sum begins with something to divide.
    """

    name: str
    protection: TwoServer
    model: str = "nn"
    records: int = 60_000
    seed: int
    shape: Shape | None = None
    plain: bool = True
    bias: float = 0.0

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


def cases(effort: Effort) -> list[Case]:
    """The trainings of a reproduction.

    Args:
        effort: ``quick``: 6,000 records and 3 epochs.
    """
    seed, few = effort.seed, 6_000 if effort.quick else 60_000
    epochs = 3 if effort.quick else EPOCHS

    def case(name: str, protection: TwoServer, **more: Any) -> Case:
        shorter = replace(protection, epochs=min(protection.epochs, epochs))
        return Case(name=name, protection=shorter, seed=seed, records=few, **more)

    made = [
        case("nn/squared-error", _SQUARED),
        case("nn/squared-error/f16", replace(_SQUARED, fraction=16)),
        case("nn/relu-sum", _RELU_SUM, bias=1.0),
        case("nn/relu-sum/f16", replace(_RELU_SUM, fraction=16), bias=1.0),
        case("logistic-0", _LOGISTIC, model="zero"),
        case("linear-0", _LINEAR, model="zero"),
    ]
    sample = replace(_SQUARED, epochs=5)
    made += [
        Case(name=f"nn/squared-error/{name}", protection=sample, seed=seed, shape=shape, plain=False, records=128 * batches)
        for name, shape, batches in (("lan", PAPER_LAN, 10), ("wan", PAPER_WAN, 2))
    ]  # fmt: skip
    transfers = replace(_SQUARED, epochs=1, preprocessing=Preprocessing.TRANSFERS)
    made.append(
        Case(
            name="nn/squared-error/transfers", protection=transfers, seed=seed, plain=False,
            records=128 * (1 if effort.quick else 3),
        )
    )  # fmt: skip
    return made


@cache
def _mnist() -> DataSet:
    return load("mnist")


def task_of(case: Case, data: DataSet) -> Task:
    """The records of two owners, and the first model."""
    generator = torch.Generator().manual_seed(case.seed)
    inputs, labels = data.inputs_train[: case.records], data.labels_train[: case.records]
    start: nn.Module
    if case.model == "zero":
        labels = (labels == 0).long()
        start = initialise(nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 1)), generator)
    else:
        start = mlp(data.input_shape, (128, 128), data.classes, generator=generator)
    if case.bias:
        with torch.no_grad():
            list(start.parameters())[-1].add_(case.bias)
    half = len(inputs) // OWNERS
    return Task(
        name=data.name,
        start=start,
        shards=((inputs[:half], labels[:half]), (inputs[half:], labels[half:])),
        input_shape=data.input_shape,
        classes=2 if case.model == "zero" else data.classes,
        seed=case.seed,
    )


def share_right(case: Case, model: nn.Module, data: DataSet) -> float:
    """The share of test images that the model names."""
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(x) for x in torch.split(data.inputs_test, 1024)])
    if case.model != "zero":
        return float((scores.argmax(1) == data.labels_test).float().mean())
    least = 0.0 if case.protection.loss is Loss.LOGISTIC else 0.5
    return float(((scores[:, 0] > least) == (data.labels_test == 0)).float().mean())


def in_the_clear(
    terms: Terms, inputs: Tensor, labels: Tensor, coins: Coins
) -> tuple[list[Array], float]:
    """The same training of values that are known: the weights, and how many truncations of shares would fail, on average."""
    scheme, engine = terms.scheme, InTheClear(terms.scheme.fixed, coins)
    network, order, rows = terms.network(0), terms.order(), terms.batches()
    values = network.rows(scheme.fixed.encode(inputs.numpy()))[order]
    targets = scheme.fixed.encode(terms.targets(labels.numpy()))[order]
    for step, batch in enumerate(terms.schedule()):
        here = rows[batch]
        network.learn(engine, values[here], targets[here], scheme.loss, str(step))
        network.move(engine, terms.rate(step, here.stop - here.start))
    return [scheme.fixed.decode(one) for one in network.weights()], engine.failures


def run_case(case: Case, effort: Effort, data: DataSet | None = None) -> Found:
    """Train on shares, and in the clear.

    Args:
        case: the training.
        effort: is told how far it is.
        data: in place of MNIST.
    """
    data = data or _mnist()
    task = task_of(case, data)
    terms = Terms.of(case.protection, task)
    with one_thread():
        found = _protected(case, task, data)
        if case.plain:
            inputs, labels = (torch.cat(parts) for parts in zip(*task.here().values(), strict=True))
            begun = time.perf_counter()
            weights, failures = in_the_clear(
                terms, inputs, labels, Coins.from_seed(f"reproduce/5/{case.key}".encode())
            )
            found |= {
                "plain_accuracy": share_right(case, _model_of(terms, weights), data),
                "plain_s": time.perf_counter() - begun,
                "expected_failures": failures,
            }
    effort.progress(
        f"{case.name}: online {found['online_s']:.1f} s, offline {found['offline_s']:.1f} s"
    )
    return found


def _model_of(terms: Terms, weights: Sequence[Array]) -> nn.Module:
    model = terms.spec.build()
    load_parameters(model, weights)
    return model


def _talk(one: Role, other: Role) -> bool:
    return one in SERVERS or other in SERVERS


def _gives(role: Role, done: PartyRun[Any]) -> tuple[dict[str, Any], list[Array]]:
    if isinstance(done.output, nn.Module):
        return {}, parameters_of(done.output)
    if not isinstance(done.output, Outcome):
        return {"sent": done.cost.total().bytes_sent}, []
    booked = {phase: done.cost.total(phase=phase).described() for phase in (OFFLINE, ONLINE)}
    out = done.output
    return {"steps": out.steps, "seconds": out.seconds, "offline_s": out.offline_s, **booked}, []


def _protected(case: Case, task: Task, data: DataSet) -> Found:
    coins = Coins()
    parties = case.protection.parties_of(task, coins)
    found = run_processes(parties, _gives, talks=_talk, shape=case.shape)
    first, second = (found[role][0] for role in SERVERS)
    terms = Terms.of(case.protection, task)
    model = _model_of(terms, found[task.owners[0]][1])
    # Server 1 waits for what the dealer sends; server 0, which has all from its key, waits for server 1.
    offline = max(first["offline_s"], second["offline_s"])
    return {
        "accuracy": share_right(case, model, data),
        "tested": len(data.inputs_test),
        "steps": first["steps"],
        "online_s": max(first["seconds"], second["seconds"]) - offline,
        "offline_s": offline,
        "online_bytes": max(one[ONLINE]["bytes_sent"] for one in (first, second)),
        "online_rounds": max(one[ONLINE]["rounds"] for one in (first, second)),
        "offline_bytes": max(
            *(one[OFFLINE]["bytes_sent"] for one in (first, second)),
            second[OFFLINE]["bytes_received"],
        ),
    }


class _Kept(Kept):
    file = "5.json"
    numbers = (
        "accuracy",
        "steps",
        "online_s",
        "offline_s",
        "online_bytes",
        "online_rounds",
        "offline_bytes",
    )


def reproduce_two_server(effort: Effort) -> dict[str, object]:
    """SecureML on MNIST: accuracy beside the plain fixed-point run, seconds online and offline, bytes and rounds.

    Args:
        effort: see `cases`.

    Raises:
        DataError: MNIST is not there.
        OutputError: finished cases cannot be kept.

    Source: Mohassel, Zhang, S&P 2017, section 6 (figures recalled).
    """
    _mnist()
    wanted, kept = cases(effort), _Kept.opened(effort.folder)
    for case in wanted:
        if case.key not in kept.found:
            kept.keep(case, run_case(case, effort))
    pairs = {case.name: (case, kept.found[case.key]) for case in wanted}
    return {
        "paper": 5,
        "title": "SecureML: two-server training on shares",
        "quick": effort.quick,
        "full": effort.full,
        "seed": effort.seed,
        "figures": _figures(pairs),
    }


# --- the figures


def _figures(pairs: Mapping[str, tuple[Case, Found]]) -> list[Figure]:
    made: list[Figure] = []
    for case, found in pairs.values():
        made += _trained(case, found) if case.plain else []
    steps = pairs["nn/squared-error"][1]["steps"]
    for name in ("lan", "wan"):
        case, found = pairs[f"nn/squared-error/{name}"]
        each = found["online_s"] / found["steps"]
        path = f"mnist/{case.name}"
        said = _said(case) | {
            "sample_steps": found["steps"],
            "online_s_a_step": each,
            "steps": steps,
        }
        made.append(_one(f"{path}/online_s_extrapolated", each * steps, said, "lower"))
    case, found = pairs["nn/squared-error/transfers"]
    epoch = steps // pairs["nn/squared-error"][0].protection.epochs
    for kind in ("offline_s", "offline_bytes", "online_s"):
        each = found[kind] / found["steps"]
        said = _said(case) | {"sample_steps": found["steps"], "a_step": each, "steps": epoch}
        name = f"mnist/{case.name}/{kind}"
        made.append(_one(f"{name}_a_step", each, said, "lower"))
        made.append(_one(f"{name}_an_epoch_extrapolated", each * epoch, said, "lower"))
    return made


def _said(case: Case) -> dict[str, object]:
    return {
        "records": case.records, "owners": OWNERS, "protection": plain(case.protection),
        "shape": plain(case.shape) if case.shape else None,
    }  # fmt: skip


def _one(name: str, value: float, said: dict[str, object], better: str, n: int = 1) -> Figure:
    paper = _PAPER.get(name)
    return figure(
        name, value, (value, value), n, settings=said, paper=paper, recalled=paper is not None, better=better
    )  # fmt: skip


def _trained(case: Case, found: Found) -> list[Figure]:
    path, said, tested = f"mnist/{case.name}", _said(case), found["tested"]
    made = []
    for name in ("accuracy", "plain_accuracy"):
        share, paper = found[name], _PAPER.get(f"{path}/{name}")
        made.append(
            figure(
                f"{path}/{name}", share, clopper_pearson(round(share * tested), tested), tested,
                settings=said, paper=paper, recalled=paper is not None,
            )
        )  # fmt: skip
    made.append(
        _one(
            f"{path}/accuracy_less_plain", found["accuracy"] - found["plain_accuracy"],
            said | {"unit": "share of the test images"}, "equal",
        )
    )  # fmt: skip
    for name in (
        "online_s",
        "offline_s",
        "online_bytes",
        "online_rounds",
        "offline_bytes",
        "plain_s",
    ):
        made.append(_one(f"{path}/{name}", found[name], said | {"steps": found["steps"]}, "lower"))
    made.append(
        _one(
            f"{path}/expected_failures", found["expected_failures"],
            said | {"unit": "truncations of shares that are wrong altogether, on average in such a run"}, "lower",
        )
    )  # fmt: skip
    return made
