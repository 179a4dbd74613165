"""Over TLS between threads or processes, two-party computation says, costs and gives what it does in one process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from tacit.core.cost import CostMeter
from tacit.crypto.ring import Z32, Z64, Ring
from tacit.parties.credentials import Credentials
from tacit.parties.links.link import LAN, WAN, Shape
from tacit.parties.links.local import PairRun, outputs_of, run_pair
from tacit.parties.links.tcp import listen
from tacit.parties.links.tcp_pair import PartyRun, run_party
from tacit.parties.roles import Role
from tacit.parties.two_party import arithmetic
from tacit.parties.two_party.session import traced
from tacit.parties.views import FULL

from ..conftest import LEAKY  # noqa: TID252 - tests are no package
from ..proxy import HOST, QUICK, Running, in_processes  # noqa: TID252
from .conftest import DEALT, S0, S1, SERVERS, TRANSFERRED, Setting, at, crew, drawn, opens
from .views import everything

Parties = Callable[[Role], Credentials]
pytestmark = [pytest.mark.usefixtures("nothing_is_left"), pytest.mark.filterwarnings(LEAKY)]


@cache
def planned(ring: Ring, by: str, base: bool = True) -> dict[Role, Callable[[Any], Any]]:
    values = drawn("x", ring, 40), drawn("y", ring, 40)[::-1].copy()
    work = everything(values, by)
    return crew(work, Setting(at(ring), by=by, base=base), traced(work, at(ring)))


def over_tls(parties: Parties, sides: dict, **options: Any) -> dict[Role, PartyRun[Any]]:
    """Every party in a thread of its own."""
    options = {"limits": QUICK, "first": 5.0, "deadline": 10.0, **options}
    sockets = {role: listen((HOST, 0)) for role in sides}
    addresses = {role: sock.getsockname()[:2] for role, sock in sockets.items()}

    def live(role: Role) -> Callable[[], Any]:
        return lambda: run_party(
            sides[role], parties(role), addresses, listening=sockets[role], **options
        )

    running = {role: Running(live(role), name=str(role)) for role in sides}
    return {role: one.result() for role, one in running.items()}


def booked(cost: CostMeter, role: Role) -> dict[tuple[str, str], tuple[int, ...]]:
    """Messages, bytes both ways and rounds, by phase and operation."""
    return {
        (phase, layer): (one.messages, one.bytes_sent, one.bytes_received, one.rounds)
        for (who, phase, layer), one in cost.entries().items()
        if who == str(role) and (one.messages or one.bytes_received or one.rounds)
    }


def same(one: Any, two: Any) -> bool:
    if one is None or two is None:
        return one is two
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def frames(view: Any) -> list[tuple[Any, ...]]:
    return sorted((f.peer, f.wave, f.data) for f in (*view.frames(), *view.sent()))


@pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
@pytest.mark.parametrize("by", [DEALT, TRANSFERRED])
def test_over_tls_everything_is_as_in_one_process(parties: Parties, ring: Ring, by: str) -> None:
    """The same seeds: the same outputs, bytes and rounds of every operation, and the same frames to the last bit.

    Keys of base transfers follow from seeds too.
    """
    sides = planned(ring, by)
    local: PairRun[Any] = run_pair(sides, recording=FULL)
    far = over_tls(parties, sides, recording=FULL)
    for role, output in outputs_of(local).items():
        assert same(far[role].output, output)
        assert booked(far[role].cost, role) == booked(local.cost, role)
        assert len(booked(local.cost, role)) > (15 if role in SERVERS else 0)
        assert frames(far[role].view) == frames(local.views[role])


def summary(output: Any, cost: CostMeter) -> list[Any]:
    parts = sorted(output.items()) if output else []
    digest = hashlib.sha256(b"".join(value.tobytes() for _, value in parts)).hexdigest()
    total = cost.total()
    return [digest, total.messages, total.bytes_sent, total.rounds]


@pytest.mark.parametrize("by", [DEALT, TRANSFERRED])
def test_processes_say_the_same(parties: Parties, by: str) -> None:
    sides = planned(Z32, by)
    far = in_processes(sides, parties, lambda done: summary(done.output, done.cost))
    local = run_pair(sides)
    for role in sides:
        total = local.cost.total(role=role)
        expected = summary(local.outputs[role], local.cost)[:1]
        expected += [total.messages, total.bytes_sent, total.rounds]
        assert far[role] == expected


def test_a_slow_network_is_paid_for_by_the_round_and_changes_nothing_else(parties: Parties) -> None:
    """A LAN, and a WAN nearer than most: each round waits for its delay, and costs and outputs are the same."""
    x, y = drawn("x", Z64, 8), drawn("y", Z64, 8)
    work = opens(x, y, work=lambda s, x, y: arithmetic.multiply(s, arithmetic.square(s, x), y))
    sides = crew(work, Setting(at(Z64), by=TRANSFERRED), traced(work, at(Z64)))
    local = run_pair(sides)
    rounds = local.cost.total(role=S0).rounds
    assert rounds == local.cost.total(role=S1).rounds > 8
    seconds = {}
    far_away = Shape(delay=0.02, bandwidth=WAN.bandwidth)
    for shape in (LAN, far_away):
        began = time.monotonic()
        far = over_tls(parties, sides, shape=shape)
        seconds[shape] = time.monotonic() - began
        for role in SERVERS:
            (output,) = far[role].output
            assert np.array_equal(output, x * x * y)
            assert booked(far[role].cost, role) == booked(local.cost, role)
    assert seconds[far_away] >= local.cost.rounds * far_away.delay
