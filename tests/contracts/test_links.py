"""Every scheme of the catalogue gives the same model and the same metered bytes, whatever carries its messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tacit import catalogue
from tacit.core.claims import Basis
from tacit.core.coins import Coins
from tacit.nn.federated import Collaborative, Task
from tacit.nn.local_work import parameters_of
from tacit.parties.credentials import load
from tacit.parties.durable import DurableMember
from tacit.parties.links.local import LocalHub
from tacit.parties.links.reactor import Limits
from tacit.parties.links.tcp import TcpHub, serve_member
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Run
from tacit.parties.seats import Seat
from tacit.parties.secure_sum.agreement import Adversary
from tacit.training.secure_aggregation import SecureAggregation
from tacit.training.selective_sgd import Schedule, SelectiveSGD

LIMITS = Limits(heartbeat=0.5, patience=5.0)


def shortened(scheme: Any) -> Any:
    names = {f.name for f in fields(scheme)}
    return replace(scheme, **{name: 2 for name in ("rounds", "epochs") if name in names})


ROWS = (*catalogue.rows(quick=True), *catalogue.sabotaged_rows(quick=True))
SCHEMES: Mapping[str, Any] = {
    **{
        row.name: shortened(row.protection) for row in ROWS if hasattr(row.protection, "members_of")
    },
    "secure-aggregation-active": SecureAggregation(rounds=2, adversary=Adversary.ACTIVE),
    "selective-random-order": SelectiveSGD(
        epochs=2, local_steps=1, batch_size=1, schedule=Schedule.RANDOM_ORDER
    ),
}
NAMED = pytest.mark.parametrize("name", SCHEMES)


def coins() -> Coins:
    return Coins.from_seed(b"links")


def in_process(scheme: Collaborative, task: Task) -> Run[Any]:
    return scheme.train(task, coins=coins())


@contextmanager
def over_tls(scheme: Collaborative, task: Task, certificates: Path) -> Iterator[TcpHub]:
    """A coordinator here, and members that know their own records alone, each with a connection of its own."""
    ended: list[Exception] = []

    def serve(role: Role, address: tuple[str, int]) -> None:
        held = load(certificates / f"owner-{role.index}")
        seat = Seat(coins=coins(), identities={role: held.key}, registry=held.registry)
        (member,) = scheme.members_of(task.only(role), seat).values()
        try:
            serve_member(DurableMember(member), held, address, limits=LIMITS)
        except Exception as error:
            ended.append(error)

    server = load(certificates / "server-0")
    with TcpHub(server, task.owners, ("127.0.0.1", 0), limits=LIMITS) as hub:
        threads = [
            threading.Thread(target=serve, args=(role, hub.address), daemon=True)
            for role in task.owners
        ]
        for thread in threads:
            thread.start()
        hub.wait(deadline=30)
        yield hub
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert not ended


def weights(run: Run[Any]) -> list[Any]:
    return parameters_of(run.output.value)


def metered(run: Run[Any]) -> dict[tuple[str, str, str], tuple[int, int, int]]:
    return {
        key: (cost.messages, cost.bytes_sent, cost.bytes_received)
        for key, cost in run.cost.entries().items()
        if cost.messages or cost.bytes_sent or cost.bytes_received
    }


@NAMED
def test_a_run_over_tls_is_the_run_in_process(name: str, task: Task, certificates: Path) -> None:
    scheme = SCHEMES[name]
    here = in_process(scheme, task)
    with over_tls(scheme, task, certificates) as hub:
        server = load(certificates / "server-0")
        seat = Seat(coins=coins(), identities={SERVER: server.key}, registry=server.registry)
        there = scheme.run(hub, task.only(), seat)
    for one, other in zip(weights(here), weights(there), strict=True):
        np.testing.assert_array_equal(one, other)
    assert metered(there) == metered(here)
    assert there.cost.rounds == here.cost.rounds
    assert there.claims == here.claims and there.settings == here.settings
    assert set(there.views) == {SERVER}, "another party's view is not at hand"


@NAMED
def test_a_coordinator_needs_nobody_s_records(name: str, task: Task) -> None:
    scheme = SCHEMES[name]
    assert scheme.members_of(task.only(), Seat(coins=coins())) == {}
    one = task.owners[1]
    seat = Seat(coins=coins()).with_identities(task.owners)
    assert list(scheme.members_of(task.only(one), seat)) == [one]


@NAMED
def test_members_of_one_process_each_are_those_of_all_in_one(name: str, task: Task) -> None:
    """Together they run as a star that was made in one place."""
    scheme = SCHEMES[name]
    seat: Callable[[], Seat] = lambda: Seat(coins=coins()).with_identities(task.owners)  # noqa: E731
    apart = {}
    for role in task.owners:
        apart |= scheme.members_of(task.only(role), seat())
    hub = LocalHub(apart)
    there = scheme.run(hub, task.only(), seat())
    here = in_process(scheme, task)
    for one, other in zip(weights(here), weights(there), strict=True):
        np.testing.assert_array_equal(one, other)


def test_claims_that_need_durable_members_say_so() -> None:
    """A member that was restored from a backup must be enrolled anew: the claims that depend on it name that."""
    for name in ("local-dp-low", "sparse-vector-low", "secure-aggregation"):
        row = next(row for row in ROWS if row.name == name)
        scheme: Any = row.protection
        if isinstance(scheme, SecureAggregation):
            claims = scheme.claims(scheme.agree(10, dimension=100, max_examples=20))
        elif isinstance(scheme, SelectiveSGD):
            claims = scheme.claims(1000)
        else:
            claims = scheme.claims()
        assumed = [a for c in claims if c.basis is not Basis.ASSUMED for a in c.assumes]
        assert any("enrolled anew" in one for one in assumed), name
