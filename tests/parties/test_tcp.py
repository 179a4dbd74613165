"""The star over TCP keeps the contract of the star in one process, whatever is scripted to go wrong."""

from __future__ import annotations

import os
import random  # noqa: TID251 - of tests alone, seeded
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tacit.core.coins import Coins
from tacit.core.cost import Cost, CostMeter
from tacit.core.errors import (
    CheatingDetected,
    ConfigError,
    Diverged,
    PeerDropped,
    TooFewParties,
    WireError,
)
from tacit.core.wire import Message, decode, encode
from tacit.parties.credentials import Credentials, folder_name, issue_all, load
from tacit.parties.durable import DurableMember, FileStore, FileWitness
from tacit.parties.faults import Fault, Harm, Way
from tacit.parties.links import reactor
from tacit.parties.links.frames import Header, Kind
from tacit.parties.links.local import LocalHub
from tacit.parties.links.reactor import Limits
from tacit.parties.links.tcp import TcpHub, serve_member
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.star import REFUSED, ask, first_replies
from tacit.parties.views import FULL

from .conftest import LEAKY
from .proxy import (
    HOST,
    QUICK,
    Adder,
    ByHand,
    Forked,
    Proxy,
    Running,
    add,
    descriptors,
    drained,
    memory,
    serving,
    star,
    until,
    wave,
)

Parties = Callable[[Role], Credentials]

A, B, C = owners(3)
pytestmark = [pytest.mark.usefixtures("nothing_is_left"), pytest.mark.filterwarnings(LEAKY)]


# --- the contract


def everyone(hub: Any, message: Message) -> dict[Role, Message]:
    return dict.fromkeys(hub.members(), message)


def told(reply: Message) -> tuple[Any, ...]:
    return reply.tag, reply.fields.get("total"), reply.fields.get("kind"), reply.fields.get("text")


def converse(hub: Any) -> list[Any]:
    """A conversation with everything in it that a star knows; what came of it. No request is one that came before."""
    out: list[Any] = []
    for amount in (1, 1 << 70, 5):
        out.append({r: told(m) for r, m in ask(hub, everyone(hub, add(amount, 1000))).items()})
    out.append({r: told(m) for r, m in ask(hub, {B: add(7), A: add(9)}).items()})
    requests = {A: add(1), B: Message("fail"), C: add(2)}
    out.append({r: told(m) for r, m in ask(hub, requests, at_least=2).items()})
    for wrong in ({A: add(3), B: Message("fail", x=1)}, {A: Message("add")}, {C: Message("odd")}):
        with pytest.raises((Diverged, WireError)) as caught:
            ask(hub, wrong)
        out.append((type(caught.value), str(caught.value)))
    with pytest.raises(TooFewParties) as few:
        ask(hub, {A: add(4), B: Message("fail", x=2), C: add(6)}, at_least=3)
    out.append((few.value.replied, few.value.missing, str(few.value)))
    tickets = [
        hub.post(m) for m in (everyone(hub, add(8)), {B: add(10)}, {A: Message("fail", x=3)})
    ]
    assert len(set(tickets)) == 3
    out.append(sorted((t, r, told(m)) for r, t, m in hub.replies(deadline=5.0)))
    assert not list(hub.replies(deadline=60.0))  # nothing can come, so nothing is waited for
    for role in hub.members():
        ask(hub, {role: add(11)})
    chained = []
    hub.post({A: add(12)})
    for role, _, reply in hub.replies(deadline=5.0):  # posting while iterating
        chained.append(told(reply))
        if len(chained) < 4:
            hub.post({role: add(12 + len(chained))})
    return [*out, chained, ask(hub, {})]


def booked(meter: CostMeter) -> dict[Any, Cost]:
    return {
        key: Cost(messages=c.messages, bytes_sent=c.bytes_sent, bytes_received=c.bytes_received)
        for key, c in meter.entries().items()
    }


def test_the_same_conversation_gives_the_same_replies_costs_and_view(parties: Parties) -> None:
    local = LocalHub({role: DurableMember(Adder()) for role in owners(3)}, recording=FULL)
    expected = converse(local)
    with star(parties, owners(3), recording=FULL) as one:
        assert converse(one.hub) == expected
        assert booked(one.hub.cost) == booked(local.cost)
        assert one.hub.cost.rounds == local.cost.rounds
        assert one.hub.cost.total(role=A).seconds > 0
        mine, view = local.views[SERVER], one.hub.views[SERVER]
        assert list(one.hub.views) == [SERVER]
        assert (view.messages, view.received) == (mine.messages, mine.received)
        for ours, theirs in ((view.frames(), mine.frames()), (view.sent(), mine.sent())):
            key = lambda f: (f.peer, f.wave, f.data)  # noqa: E731
            assert sorted(map(key, ours)) == sorted(map(key, theirs))
        assert sorted(view.shape) == sorted(mine.shape)
        assert one.hub.coordinator == SERVER and one.hub.members() == [A, B, C]


def test_members_of_two_kinds_live_in_one_star(parties: Parties) -> None:
    dealer = Role("dealer")
    with star(parties, [B, dealer, A]) as one:
        assert one.hub.members() == [dealer, A, B] and one.hub.members("owner") == [A, B]
        assert wave(one.hub, 2) == {dealer: 2, A: 2, B: 2}


def test_posting_to_a_stranger_is_refused_and_sends_nothing(parties: Parties) -> None:
    with star(parties, [A, B], recording=FULL) as one:
        with pytest.raises(
            ConfigError, match=r"no member is owner 7; members are owner 0, owner 1"
        ):
            one.hub.post({A: add(1), Role("owner", 7): add(1)})
        assert one.hub.cost.total() == Cost() and not list(one.hub.views[SERVER].sent())
        assert wave(one.hub, 1) == {A: 1, B: 1}


def test_a_message_that_the_wire_does_not_carry_is_refused_and_the_star_goes_on(
    parties: Parties,
) -> None:
    with star(parties, [A], limits=Limits(frame=10_000, heartbeat=0.2, patience=1.0)) as one:
        for bad in (Message("add", add=object()), add(1, 20_000)):
            with pytest.raises(WireError):
                one.hub.post({A: bad})
        assert not list(one.hub.replies(deadline=5.0))
        assert wave(one.hub, 1) == {A: 1}


def test_a_star_needs_members_who_are_enrolled_and_not_the_coordinator(parties: Parties) -> None:
    for members in ([], [SERVER], [A, SERVER]):
        with pytest.raises(ConfigError, match="at least one member"):
            TcpHub(parties(SERVER), members, (HOST, 0))
    with pytest.raises(ConfigError, match=r"owner 99 has no certificate in .*registry.pem"):
        TcpHub(parties(SERVER), [A, Role("owner", 99)], (HOST, 0))


def test_any_role_may_be_the_coordinator(parties: Parties) -> None:
    with star(parties, [SERVER, B], server=A, of_members={"coordinator": A}) as one:
        assert wave(one.hub, 3) == {B: 3, SERVER: 3}


# --- time


def sleep(seconds: float) -> Message:
    return Message("sleep", milliseconds=int(seconds * 1000))


def test_ask_drops_the_late_reply_to_an_earlier_wave(parties: Parties) -> None:
    with star(parties, owners(3)) as one:
        requests = {A: add(1), B: sleep(0.4), C: add(1)}
        start = time.monotonic()
        assert list(ask(one.hub, requests, at_least=2, deadline=0.2)) == [A, C]
        assert 0.2 <= time.monotonic() - start < 0.4
        assert wave(one.hub, 10) == {A: 11, B: 10, C: 11}
        assert one.hub.views[SERVER].messages == 6 and not list(one.hub.replies(deadline=5.0))


def test_a_late_reply_is_told_apart_by_its_ticket(parties: Parties) -> None:
    with star(parties, owners(3)) as one:
        first = one.hub.post({A: add(1), B: sleep(0.4), C: add(1)})
        on_time = [(role, ticket) for role, ticket, _ in one.hub.replies(deadline=0.2)]
        assert sorted(on_time) == [(A, first), (C, first)]
        second = one.hub.post({A: add(10)})
        came = [(role, ticket, reply.tag) for role, ticket, reply in one.hub.replies(deadline=5.0)]
        assert came == [(A, second, "total"), (B, first, "slept")]


def test_a_wave_without_replies_ends_at_its_deadline(parties: Parties) -> None:
    with star(parties, [A, B]) as one:
        start = time.monotonic()
        with pytest.raises(TooFewParties) as caught:
            ask(one.hub, {A: sleep(0.5), B: add(1)}, deadline=0.3)
        assert 0.3 <= time.monotonic() - start < 0.5
        assert caught.value.replied == (B,) and caught.value.missing == {A: "no reply in time"}
        assert wave(one.hub, 2) == {A: 2, B: 3}


def test_a_wave_as_it_comes(parties: Parties) -> None:
    with star(parties, owners(3)) as one:
        hub = one.hub
        hub.post({A: add(1)})  # dropped
        ticket = hub.post({A: sleep(0.2), B: Message("fail"), C: add(1)})
        came = [(r, m.tag) for r, m in first_replies(hub, ticket, [A, B, C], deadline=5.0)]
        assert sorted(came[:2]) == [(B, REFUSED), (C, "total")] and came[2] == (A, "slept")


def test_who_is_not_there_in_time_is_named(parties: Parties) -> None:
    with TcpHub(parties(SERVER), [A, B], (HOST, 0), limits=QUICK) as hub:
        with ByHand(parties(B), hub.address) as there:
            there.welcomed()
            hub.wait(at_least=1, deadline=5.0)
            start = time.monotonic()
            with pytest.raises(TooFewParties, match="owner 0: not connected") as caught:
                hub.wait(deadline=0.2)
            assert time.monotonic() - start < 1.0 and caught.value.replied == (B,)
        # and requests to it are answered, by a refusal, once it is away for longer than is borne
        with pytest.raises(PeerDropped, match=r"owner 0: no connection for 1 s"):
            ask(hub, {A: add(1)}, deadline=10.0)
        assert time.monotonic() - start < 3.0


# --- much at once


def test_large_messages_go_both_ways_at_once(parties: Parties) -> None:
    size = 20_000_000
    with star(parties, [A, B]) as one:
        tickets = [one.hub.post(everyone(one.hub, add(amount, size))) for amount in (1, 2, 3)]
        came = [(r, t, m.integer("total")) for r, t, m in one.hub.replies(deadline=30.0)]
        assert sorted(came) == [
            (r, t, n) for r in (A, B) for t, n in zip(tickets, (1, 3, 6), strict=True)
        ]


def test_sixty_four_members(tmp_path: Path) -> None:
    roles = owners(64)
    issue_all(tmp_path, "many", (SERVER, *roles), coins=Coins.from_seed(b"many"))
    parties = {role: load(tmp_path / folder_name(role)) for role in (SERVER, *roles)}
    patient = Limits(heartbeat=2.0, patience=10.0, handshake=10.0)
    options = {"limits": patient, "of_members": {"limits": patient, "first": 20.0}}
    with star(parties.__getitem__, roles, **options) as one:
        for amount in (1, 2, 3):
            assert len(set(wave(one.hub, amount, 1000).values())) == 1
        assert all(member.handled == [1, 2, 3] for member in one.members.values())
        assert one.hub.cost.rounds == 6


def test_posting_to_who_does_not_read_returns_at_once(parties: Parties) -> None:
    patient = Limits(heartbeat=0.2, patience=60.0)
    much = add(1, 40_000_000)
    with (
        TcpHub(parties(SERVER), [A, B], (HOST, 0), limits=patient) as hub,
        by_hand(hub, parties, A),  # and it reads no more
        by_hand(hub, parties, B) as there,
    ):
        hub.wait(deadline=5.0)
        start = time.monotonic()
        hub.post({A: much})
        assert time.monotonic() - start < 4.0
        total = encode(Message("total", total=1))
        answering = Running(lambda: there.data(total, ticket=there.request()[0].ticket))
        assert ask(hub, {B: add(1)}, deadline=5.0)[B].integer("total") == 1
        answering.join()
        start = time.monotonic()
        hub.close()
        assert time.monotonic() - start < 5.0  # nor does the end wait for it


# --- members that fail


def test_a_member_whose_error_is_not_tacits_ends_and_the_hub_says_so_at_once(
    parties: Parties,
) -> None:
    with star(parties, owners(3)) as one:
        start = time.monotonic()
        with pytest.raises(PeerDropped, match=r"^owner 1: it ended with ZeroDivisionError"):
            ask(one.hub, {A: add(1), B: Message("break"), C: add(1)})
        with pytest.raises(TooFewParties) as caught:
            wave(one.hub, 2, at_least=3, deadline=30.0)
        assert time.monotonic() - start < 0.9  # and not after the patience
        assert caught.value.missing == {B: "owner 1: it ended with ZeroDivisionError"}
        assert wave(one.hub, 3, at_least=2) == {A: 6, C: 6}
    assert isinstance(one.join()[B], ZeroDivisionError)


def by_hand(hub: TcpHub, parties: Parties, role: Role = A, **said: Any) -> ByHand:
    one = ByHand(parties(role), hub.address, **said)
    one.welcomed()
    return one


def answered(hub: TcpHub, there: ByHand, *payloads: bytes, **head: Any) -> Any:
    """One wave to who answers that by hand."""

    def answer() -> None:
        ticket = there.request()[0].ticket
        for payload in payloads:
            there.data(payload, **{"ticket": ticket, **head})

    running = Running(answer)
    try:
        return ask(hub, {A: add(1)}, deadline=2.0)
    finally:
        running.join()


TOTAL = encode(Message("total", total=5))


def test_a_reply_that_is_no_message_is_a_refusal(parties: Parties) -> None:
    with (
        TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as hub,
        by_hand(hub, parties) as there,
    ):
        for garbage in (b"garbage", b"", TOTAL[:-1], TOTAL + b"\0", b"\xff" * 100_000):
            with pytest.raises(WireError, match="owner 0: "):
                answered(hub, there, garbage)
        assert answered(hub, there, TOTAL)[A].integer("total") == 5


def test_a_second_reply_to_one_request_is_dropped(parties: Parties) -> None:
    with (
        TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as hub,
        by_hand(hub, parties) as there,
    ):
        other = encode(Message("total", total=6))
        for _ in range(3):
            assert answered(hub, there, TOTAL, other, other)[A].integer("total") == 5
        assert hub.cost.total(role=A).messages == hub.views[SERVER].messages == 3


def test_replies_that_nobody_asked_for_take_no_memory(parties: Parties) -> None:
    with (
        TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as hub,
        by_hand(hub, parties) as there,
    ):
        assert answered(hub, there, TOTAL)
        for ticket in range(100):
            there.data(bytes(1_000_000), ticket=ticket)
        hub.post({A: add(1)})
        assert there.request()[0].ticket == 1
        assert until(lambda: hub._links[A].received == 101)
        assert len(drained(hub._inbox)) <= 1


def test_who_asks_for_words_and_reads_none_takes_no_memory(
    parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor, "_BUFFER", 1 << 16)
    patient = Limits(heartbeat=0.2, patience=60.0)
    with (
        TcpHub(parties(SERVER), [A], (HOST, 0), limits=patient) as hub,
        by_hand(hub, parties) as there,
    ):
        ping = Header(kind=Kind.PING, session=there.session).packed(0)
        there.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        for _ in range(20):
            there.sock.sendall(ping * 1000)
        link = hub._links[A]
        assert until(lambda: link.pipe is not None)
        assert until(lambda: time.monotonic() - link.pipe.heard > 0.1, 20.0)
        assert len(link.pipe._out) < 100


def test_what_a_member_says_of_its_seconds_is_booked(parties: Parties) -> None:
    with (
        TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as hub,
        by_hand(hub, parties) as there,
    ):
        hub.post({A: add(1)})
        header, _ = there.request()
        time.sleep(0.2)
        there.data(encode(Message("total", total=0)), ticket=header.ticket, seconds=0.125)
        next(hub.replies(deadline=5.0))
        assert hub.cost.total(role=A).seconds == 0.125


# --- ends


def test_closing_ends_the_members(parties: Parties) -> None:
    with star(parties, owners(3)) as one:
        wave(one.hub, 1)
        start = time.monotonic()
    assert one.join() == dict.fromkeys(owners(3))
    assert time.monotonic() - start < 1.0


def test_members_learn_why_the_coordinator_ended(parties: Parties) -> None:
    with pytest.raises(Diverged), star(parties, [A, B]) as one:
        wave(one.hub, 1)
        raise Diverged("the loss is not finite")
    for error in one.join().values():
        assert isinstance(error, Diverged) and "server 0: the loss is not finite" in str(error)


@pytest.mark.parametrize(
    "error", [KeyError("a secret"), UnicodeError("\ud800" * 3), Diverged("\ud800" + "x" * 100_000)]
)
def test_of_an_error_that_is_not_tacits_members_learn_no_more_than_its_name(
    parties: Parties, error: Exception
) -> None:
    with pytest.raises(type(error)), star(parties, [A]) as one:
        wave(one.hub, 1)
        raise error
    came = one.join()[A]
    assert type(came) is (Diverged if isinstance(error, Diverged) else PeerDropped)
    assert "secret" not in str(came) and len(str(came)) < 600
    assert isinstance(error, Diverged) or type(error).__name__ in str(came)


def test_ctrl_c_in_the_coordinator_closes_all(parties: Parties) -> None:
    import _thread

    with pytest.raises(KeyboardInterrupt), star(parties, [A, B]) as one:
        wave(one.hub, 1)
        one.hub.post({A: sleep(0.5)})
        timer = threading.Timer(0.1, _thread.interrupt_main)
        timer.start()
        list(one.hub.replies(deadline=10.0))
    timer.join()
    for error in one.join().values():  # an ordinary end would tell them that all was done
        assert isinstance(error, PeerDropped) and "it was interrupted" in str(error)


def test_closing_twice_and_using_what_is_closed(parties: Parties) -> None:
    with star(parties, [A]) as one:
        wave(one.hub, 1)
    one.hub.close()
    hub = TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK)
    hub.close()
    hub.post({A: add(1)})
    start = time.monotonic()
    with pytest.raises(PeerDropped, match="this side has ended"):
        list(hub.replies(deadline=5.0))
    assert time.monotonic() - start < 1.0


def test_closing_a_hub_to_which_nobody_came_frees_its_port(parties: Parties) -> None:
    hub = TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK)
    address = hub.address
    hub.close()
    with TcpHub(parties(SERVER), [A], address, limits=QUICK) as other:
        assert other.address == address


def test_opening_and_closing_leaves_nothing_behind(parties: Parties) -> None:
    for _ in range(30):
        with star(parties, [A, B]) as one:
            wave(one.hub, 1)
    for _ in range(20):
        with star(parties, [A, B], wait=False, of_members={"first": 0.05}):
            pass  # members may be in the middle of connecting


def test_waves_leave_nothing_behind(parties: Parties) -> None:
    with star(parties, owners(8)) as one:
        figures = []
        for count in range(1, 51):
            assert set(wave(one.hub, count, 100_000).values()) == {count * (count + 1) // 2}
            if count in (10, 50):
                figures.append((memory(), threading.active_count(), descriptors()))
        (rss, threads, fds), after = figures
        assert after[0] - rss < 16 << 20 and after[1:] == (threads, fds)
        for link in one.hub._links.values():
            assert len(link._outbox) <= 1


# --- scripted faults

HEALS = [
    Harm.DROP, Harm.DOUBLE, Harm.REORDER, Harm.REPLAY, Harm.FLIP, Harm.CUT, Harm.OVERSIZE, Harm.WRONG_VERSION, Harm.DELAY,
]  # fmt: skip
WAVES = (1, 2, 3, 4)
HASTY = Limits(heartbeat=0.04, patience=1.0, handshake=1.0)


def faults(harm: Harm, way: Way, at: int, *roles: Role) -> list[Fault]:
    late = 0.1 if harm is Harm.DELAY else 0.0
    return [Fault(role=role, at=at, harm=harm, way=way, seconds=late) for role in roles]


def scripted(script: list[Fault]) -> dict[str, Any]:
    """Options of a star in which each fault is where its message is sent."""
    return {
        "limits": HASTY,
        "faults": [fault for fault in script if fault.way is Way.REQUEST],
        "of_members": {"limits": HASTY},
        "faults_at": {
            role: [f for f in script if f.role == role and f.way is Way.REPLY] for role in owners(3)
        },
    }


@pytest.mark.parametrize("way", Way, ids=lambda way: way.name)
@pytest.mark.parametrize("harm", HEALS, ids=lambda harm: harm.name)
def test_a_fault_at_any_message_heals_and_each_message_is_handled_once(
    parties: Parties, harm: Harm, way: Way
) -> None:
    for at in range(len(WAVES)):
        with star(parties, owners(3), **scripted(faults(harm, way, at, *owners(3)))) as one:
            for number, amount in enumerate(WAVES):
                size = 100_000 if number % 2 else 10
                total = sum(WAVES[: number + 1])
                assert wave(one.hub, amount, size, deadline=10.0) == dict.fromkeys(owners(3), total)
            handled = [member.handled for member in one.members.values()]
            assert handled == [list(WAVES)] * 3, (at, handled)
        assert one.join() == dict.fromkeys(owners(3))


@pytest.mark.parametrize("seed", range(4))
def test_many_faults_of_all_kinds_heal(parties: Parties, seed: int) -> None:
    draw = random.Random(seed)
    script = [
        fault
        for at in range(12)
        for role in owners(3)
        for way in Way
        if draw.random() < 0.3
        for fault in faults(draw.choice(HEALS), way, at, role)
    ]
    with star(parties, owners(3), **scripted(script)) as one:
        for amount in range(1, 13):
            size = draw.choice([0, 1000, 300_000])
            total = amount * (amount + 1) // 2
            assert wave(one.hub, amount, size, deadline=10.0) == dict.fromkeys(owners(3), total)
        assert all(m.handled == list(range(1, 13)) for m in one.members.values())


@pytest.mark.parametrize(
    "harm", [Harm.DRIP, Harm.WRONG_PEER, Harm.WRONG_ROLE], ids=lambda h: h.name
)
def test_what_cannot_be_scripted_over_tcp_is_said(parties: Parties, harm: Harm) -> None:
    late = 1.0 if harm is Harm.DRIP else 0.0
    script = [Fault(role=A, at=0, harm=harm, way=Way.REQUEST, seconds=late)]
    with star(parties, [A], faults=script) as one, pytest.raises(ConfigError, match=harm.name):
        wave(one.hub, 1)


def test_a_message_that_the_other_side_refuses_again_and_again_ends_in_a_typed_error(
    parties: Parties,
) -> None:
    """A member that takes less than the coordinator sends."""
    small = Limits(frame=1000, heartbeat=0.2, patience=1.0)
    with star(parties, [A, B], of_members={"limits": small}) as one:
        assert wave(one.hub, 1, 100) == {A: 1, B: 1}
        start = time.monotonic()
        with pytest.raises(WireError, match=r"owner 0: .*at most 1000 are taken"):
            ask(one.hub, {A: add(2, 5000)}, deadline=20.0)
        assert time.monotonic() - start < 10.0
        assert ask(one.hub, {B: add(2, 100)})[B].integer("total") == 3


def test_a_reply_that_is_larger_than_it_may_be_is_a_refusal(parties: Parties) -> None:
    small = Limits(frame=3000, heartbeat=0.2, patience=1.0)

    class Wordy(Adder):
        def handle(self, request: Message) -> Message:
            return add(1, 5000 if request.tag == "much" else 10)

    with star(
        parties, [A], members={A: Wordy()}, limits=small, of_members={"limits": small}
    ) as one:
        with pytest.raises(WireError, match=r"owner 0: a message of .* at most 3000 are taken"):
            ask(one.hub, {A: Message("much")})
        assert ask(one.hub, {A: Message("little")})[A].tag == "add"


# --- gone and back


def test_a_refusal_of_who_was_gone_does_not_answer_what_is_asked_of_it_later(
    parties: Parties,
) -> None:
    with TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as hub:
        there = by_hand(hub, parties)
        first = hub.post({A: add(1)})
        there.request()
        there.close()
        assert until(lambda: A in hub._gone)
        with ByHand(parties(A), hub.address, session=there.session, received=1) as back:
            assert back.welcomed().integer("received") == 0
            assert until(lambda: A not in hub._gone)
            second = hub.post({A: add(2)})
            header, request = back.request()
            assert (header.ticket, request.integer("add")) == (second, 2)
            back.data(TOTAL, ticket=second)
            came = [(ticket, reply.tag) for _, ticket, reply in hub.replies(deadline=2.0)]
            assert came == [(first, REFUSED), (second, "total")]


def test_the_reply_of_who_was_gone_counts_if_it_comes_before_the_refusal_is_read(
    parties: Parties,
) -> None:
    with TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as hub:
        there = by_hand(hub, parties)
        first = hub.post({A: add(1)})
        there.request()
        there.close()
        assert until(lambda: A in hub._gone)
        with ByHand(parties(A), hub.address, session=there.session, received=1) as back:
            back.welcomed()
            back.data(TOTAL, ticket=first)
            assert until(lambda: hub._links[A].received == 1)
            came = [(ticket, reply.tag) for _, ticket, reply in hub.replies(deadline=2.0)]
            assert came == [(first, "total")]


def test_who_is_restarted_gets_again_what_it_has_not_answered_and_nothing_else(
    parties: Parties,
) -> None:
    with TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as hub:
        there = by_hand(hub, parties)
        tickets = [hub.post({A: add(amount)}) for amount in (1, 2, 3)]
        assert there.request()[0].ticket == tickets[0]
        there.data(TOTAL, ticket=tickets[0])
        assert until(lambda: hub._links[A].received == 1)  # and nobody has read it yet
        there.close()
        with ByHand(parties(A), hub.address) as back:
            assert back.welcomed().integer("received") == 0 and back.session != there.session
            for ticket, amount in zip(tickets[1:], (2, 3), strict=True):
                header, request = back.request()
                assert (header.ticket, request.integer("add")) == (ticket, amount)
                back.data(TOTAL, ticket=ticket)
            assert [t for _, t, _ in hub.replies(deadline=2.0)] == tickets


def test_a_reply_to_a_coordinator_that_is_no_more_is_not_taken_by_the_next(
    parties: Parties,
) -> None:
    with TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as old, Proxy(old.address) as proxy:
        member = Adder()
        running = serving(member, parties(A), proxy.address)
        old.wait(deadline=5.0)
        tickets = [old.post({A: m}) for m in (sleep(0.4), add(7))]
        time.sleep(0.1)  # it is at the first of them, and has the second
        with TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as new:
            proxy.target = new.address
            proxy.cut_all()
            new.wait(deadline=5.0)
            assert new.post({A: add(1)}) == tickets[0]  # another coordinator counts from 0 again
            came = [(t, reply.tag) for _, t, reply in new.replies(deadline=5.0)]
            assert came == [(tickets[0], "total")] and member.handled == [1]
        running.join()


def test_who_has_a_connection_keeps_it(parties: Parties) -> None:
    with star(parties, [A]) as one:
        start = time.monotonic()
        error = serving(Adder(), parties(A), one.hub.address, first=0.5).join()
        assert isinstance(error, PeerDropped) and "owner 0 is connected already" in str(error)
        assert 0.5 <= time.monotonic() - start < 3.0
        assert wave(one.hub, 1) == {A: 1}


def test_a_state_that_is_older_than_what_was_answered_is_refused_on_both_sides(
    parties: Parties,
) -> None:
    with TcpHub(parties(SERVER), [A, B], (HOST, 0), limits=QUICK, numbers={A: 5}) as hub:
        notes = serving(Adder(), parties(A), hub.address).join()
        assert isinstance(notes, CheatingDetected) and "state of answer 0, but gave 5" in str(notes)
        start = time.monotonic()
        with pytest.raises(CheatingDetected, match=r"owner 0: .*restored from a backup"):
            ask(hub, {A: add(1)}, deadline=5.0)
        assert time.monotonic() - start < 1.0


def test_a_state_that_is_older_does_not_stop_the_right_one(parties: Parties) -> None:
    with star(parties, [A]) as one:
        wave(one.hub, 1)
        assert until(lambda: one.hub.numbers[A] == 1)
        error = serving(Adder(), parties(A), one.hub.address).join()
        assert isinstance(error, CheatingDetected)
        assert wave(one.hub, 2) == {A: 3} and one.hub.numbers == {A: 2}


# --- processes that die


def kept(folder: Path, store: Any = None) -> DurableMember:
    return DurableMember(
        Adder(),
        bytes(32),
        b"about",
        store or FileStore(folder / "state"),
        FileWitness(folder / "number"),
    )


@dataclass(frozen=True)
class Deadly(FileStore):
    """A store whose process dies once it has kept that many entries."""

    last: int = 0

    def save(self, entry: bytes) -> None:
        super().save(entry)
        if decode(entry).integer("number") == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("killed", ["before it is handled", "after it is kept"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_killed_member_that_is_restarted_ends_the_run_exactly(
    parties: Parties, tmp_path: Path, killed: str, at: int
) -> None:
    creds = parties(B)

    def first(address: Any) -> None:
        before = killed == "before it is handled"
        script = [Fault(role=B, at=at, harm=Harm.DIE)] if before else []
        store = None if before else Deadly(tmp_path / "state", at + 1)
        serve_member(kept(tmp_path, store), creds, address, limits=QUICK, faults=script)

    def second(address: Any) -> None:
        serve_member(kept(tmp_path), creds, address, limits=QUICK)

    with Forked(first) as one, Forked(second) as two:
        with TcpHub(parties(SERVER), [A, B], (HOST, 0), limits=QUICK) as hub:
            other = serving(Adder(), parties(A), hub.address)
            one.go(hub.address)
            hub.wait(deadline=10.0)
            watching = Running(lambda: (one.wait(), two.go(hub.address)))
            for number, amount in enumerate(WAVES):
                total = sum(WAVES[: number + 1])
                assert wave(hub, amount, 1000, deadline=10.0) == {A: total, B: total}
            watching.result()
            assert hub.numbers == {A: 4, B: 4}
        assert two.wait() == 0
        other.join()
    assert kept(tmp_path).number == 4


def test_a_killed_member_counts_as_gone_until_it_is_back(parties: Parties, tmp_path: Path) -> None:
    creds = parties(B)
    script = [Fault(role=B, at=1, harm=Harm.DIE)]

    def first(address: Any) -> None:
        serve_member(kept(tmp_path), creds, address, limits=QUICK, faults=script)

    def second(address: Any) -> None:
        serve_member(kept(tmp_path), creds, address, limits=QUICK)

    with Forked(first) as one, Forked(second) as two:
        with TcpHub(parties(SERVER), [A, B], (HOST, 0), limits=QUICK) as hub:
            other = serving(Adder(), parties(A), hub.address)
            one.go(hub.address)
            hub.wait(deadline=10.0)
            assert wave(hub, 1) == {A: 1, B: 1}
            start = time.monotonic()
            assert wave(hub, 2, at_least=1, deadline=20.0) == {A: 3}
            assert 0.9 < time.monotonic() - start < 3.0
            with pytest.raises(PeerDropped, match=r"owner 1: no connection for 1 s"):
                ask(hub, {B: add(9)}, deadline=20.0)
            two.go(hub.address)
            assert until(lambda: B not in hub._gone)
            assert wave(hub, 4) == {A: 7, B: 5}  # what it was refused for is not asked again
        assert two.wait() == 0
        other.join()


def test_a_member_that_hangs_is_missing_at_the_deadline(parties: Parties) -> None:
    creds = parties(B)
    script = [Fault(role=B, at=1, harm=Harm.HANG)]

    def hanging(address: Any) -> None:
        serve_member(DurableMember(Adder()), creds, address, limits=QUICK, faults=script)

    with Forked(hanging) as one, TcpHub(parties(SERVER), [A, B], (HOST, 0), limits=QUICK) as hub:
        other = serving(Adder(), parties(A), hub.address)
        one.go(hub.address)
        hub.wait(deadline=10.0)
        assert wave(hub, 1) == {A: 1, B: 1}
        for amount in (2, 3):
            start = time.monotonic()
            with pytest.raises(TooFewParties) as caught:
                wave(hub, amount, at_least=2, deadline=0.7)
            assert 0.7 <= time.monotonic() - start < 1.5
            assert caught.value.missing == {B: "no reply in time"}
            assert hub._links[B].pipe is not None  # its connection lives
        hub.close()
        other.join()


@pytest.mark.slow
def test_a_long_run_with_forked_members_leaves_nothing_behind(parties: Parties) -> None:
    roles = owners(8)

    def serve(role: Role) -> Callable[[Any], None]:
        return lambda address: serve_member(DurableMember(Adder()), parties(role), address)

    for role in roles:
        parties(role)
    with ExitStack() as stack:
        crew = [stack.enter_context(Forked(serve(role))) for role in roles]
        with TcpHub(parties(SERVER), roles, (HOST, 0)) as hub:
            for one in crew:
                one.go(hub.address)
            hub.wait()
            figures = []
            for count in range(1, 201):
                total = count * (count + 1) // 2
                assert set(wave(hub, count, 1_000_000).values()) == {total}
                if count in (50, 200):
                    figures.append([
                        (memory(pid=pid), len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))
                        for pid in (os.getpid(), *(one.pid for one in crew))
                    ])  # fmt: skip
            for (rss, *rest), (later, *then) in zip(*figures, strict=True):
                assert rest == then and later - rss < 24 << 20
        assert [one.wait() for one in crew] == [0] * 8
