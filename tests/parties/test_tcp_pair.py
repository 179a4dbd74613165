"""The pair over TCP says what the pair in one process says, and ends well or in a typed error."""

from __future__ import annotations

import random  # noqa: TID251 - of tests alone, seeded
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tacit.core.errors import (
    AuthenticationFailed,
    CheatingDetected,
    ConfigError,
    DeadlineExceeded,
    PeerDropped,
    ProtocolError,
    WireError,
)
from tacit.core.wire import Message, encode
from tacit.parties.credentials import Credentials
from tacit.parties.links.link import LAN, WAN, Shape
from tacit.parties.links.local import outputs_of, run_pair
from tacit.parties.links.reactor import Limits
from tacit.parties.links.tcp import listen
from tacit.parties.links.tcp_pair import PartyRun, channel_over, run_party
from tacit.parties.roles import Role
from tacit.parties.views import FULL

from .conftest import LEAKY
from .proxy import HOST, QUICK, ByHand, Harm, Proxy, Running, descriptors, in_processes, until

Parties = Callable[[Role], Credentials]
ONE, TWO, DEALER = Role("server", 0), Role("server", 1), Role("dealer")
U = np.uint64
pytestmark = [pytest.mark.usefixtures("nothing_is_left"), pytest.mark.filterwarnings(LEAKY)]


def number(value: int) -> Any:
    return np.array([value], U)


SECRETS = (1234, 5678)
TRIPLE = {ONE: (11, 22, 33), TWO: (44, 55, (11 + 44) * (22 + 55) - 33)}
PRODUCT = SECRETS[0] * SECRETS[1]


def dealer(channels: Any) -> str:
    for role, (a, b, c) in TRIPLE.items():
        channels[role].send("triple", number(a), number(b), number(c))
    return "dealt"


def multiplier(role: Role, x: int, y: int) -> Callable[[Any], int]:
    def party(channels: Any) -> int:
        peer = channels[TWO if role == ONE else ONE]
        a, b, c = channels[DEALER].recv("triple")
        d, e = number(x) - a, number(y) - b
        with peer.during("online"):
            their_d, their_e = peer.exchange("masked", d, e)
        d, e = d + their_d, e + their_e
        z = c + d * b + e * a + (d * e if role == ONE else U(0))
        with peer.during("online", "last"):
            (theirs,) = peer.exchange("product", z)
        return int((z + theirs)[0])

    return party


CREW = {ONE: multiplier(ONE, 1000, 5000), TWO: multiplier(TWO, 234, 678), DEALER: dealer}


def started(
    parties: Parties,
    crew: Mapping[Role, Callable[[Any], Any]],
    through: Callable[[Role, tuple[str, int]], tuple[str, int]] = lambda role, address: address,
    **options: Any,
) -> dict[Role, Running]:
    """Every party in a thread of its own; ``through`` gives the address where others reach a role."""
    options = {"limits": QUICK, "first": 5.0, "deadline": 10.0, **options}
    sockets = {role: listen((HOST, 0)) for role in crew}
    addresses = {role: through(role, sock.getsockname()[:2]) for role, sock in sockets.items()}

    def live(role: Role) -> Callable[[], Any]:
        return lambda: run_party(
            crew[role], parties(role), addresses, listening=sockets[role], **options
        )

    return {role: Running(live(role), name=str(role)) for role in crew}


def finished(running: Mapping[Role, Running], seconds: float = 20.0) -> dict[Role, PartyRun[Any]]:
    return {role: one.result(seconds) for role, one in running.items()}


def outputs(parties: Parties, crew: Any, **options: Any) -> dict[Role, Any]:
    return {role: run.output for role, run in finished(started(parties, crew, **options)).items()}


def errors(parties: Parties, crew: Any, **options: Any) -> dict[Role, Any]:
    return {role: one.join(20.0) for role, one in started(parties, crew, **options).items()}


def pair(one: Callable[[Any], Any], two: Callable[[Any], Any]) -> dict[Role, Callable[[Any], Any]]:
    """Two functions, each of its only channel."""
    return {ONE: lambda channels: one(channels[TWO]), TWO: lambda channels: two(channels[ONE])}


# --- the contract


def described(run: Any, view: Any, role: Role) -> dict[str, Any]:
    cost = run.cost
    return {
        "entries": {
            key: (c.messages, c.bytes_sent, c.bytes_received)
            for key, c in cost.entries().items()
            if key[0] == str(role) and c.messages + c.bytes_received
        },
        "shape": sorted(view.shape),
        "frames": sorted((f.peer, f.wave, f.data) for f in view.frames()),
        "sent": sorted((f.peer, f.wave, f.data) for f in view.sent()),
        "received": (view.messages, view.received),
    }


@pytest.mark.parametrize("shape", [None, Shape()], ids=["plain", "shaped"])
def test_every_party_sees_and_costs_what_it_does_in_one_process(
    parties: Parties, shape: Shape | None
) -> None:
    local = run_pair(CREW, recording=FULL)
    runs = finished(started(parties, CREW, recording=FULL, shape=shape))
    assert {role: run.output for role, run in runs.items()} == outputs_of(local)
    for role, run in runs.items():
        assert described(run, run.view, role) == described(local, local.views[role], role)
        assert {key[0] for key in run.cost.entries()} == {str(role)}
    assert max(run.cost.rounds for run in runs.values()) == local.cost.rounds == 3
    assert {role: run.cost.rounds for role, run in runs.items()} == {ONE: 3, TWO: 3, DEALER: 1}


def test_the_protocol_repeats_whatever_the_threads_do(parties: Parties) -> None:
    for _ in range(15):
        assert outputs(parties, CREW) == {ONE: PRODUCT, TWO: PRODUCT, DEALER: "dealt"}


def test_processes_say_the_same(parties: Parties) -> None:
    def said(done: PartyRun[Any]) -> list[Any]:
        total = done.cost.total()
        return [done.output, total.messages, total.bytes_sent]

    far, local = in_processes(CREW, parties, said), run_pair(CREW)
    for role in CREW:
        total = local.cost.total(role=role)
        assert far[role] == [local.outputs[role], total.messages, total.bytes_sent]


def test_what_arrives_cannot_be_written_to(parties: Parties) -> None:
    def receiving(channel: Any) -> list[Any]:
        return [channel.recv("x")[0] for _ in range(2)]

    def sending(channel: Any) -> None:
        array = np.arange(100_000.0)
        for stop in (3, 100_000):
            channel.send("x", array[:stop])
        array[:] = -1.0

    small, large = outputs(parties, pair(sending, receiving))[TWO]
    assert small.tolist() == [0.0, 1.0, 2.0] and (large == np.arange(100_000.0)).all()
    assert not small.flags.writeable and not large.flags.writeable


def test_a_party_that_has_nothing_to_say_may_come_and_go(parties: Parties) -> None:
    crew = {
        **pair(lambda c: c.exchange("x"), lambda c: c.exchange("x")),
        DEALER: lambda channels: "none",
    }
    for _ in range(5):
        assert outputs(parties, crew) == {ONE: (), TWO: (), DEALER: "none"}


def test_who_left_before_all_have_met_has_said_what_it_had_to_say(parties: Parties) -> None:
    """The dealer is long gone when the second server comes."""
    sockets = {role: listen((HOST, 0)) for role in CREW}
    addresses = {role: sock.getsockname()[:2] for role, sock in sockets.items()}

    def live(role: Role, wait: float) -> Running:
        def run() -> Any:
            time.sleep(wait)
            return run_party(
                slow[role],
                parties(role),
                addresses,
                listening=sockets[role],
                limits=QUICK,
                first=5.0,
            ).output

        return Running(run)

    met = threading.Event()

    def dealing(channels: Any) -> str:
        met.set()
        return dealer(channels)

    slow = {**CREW, DEALER: dealing}
    one, two, feeder = live(ONE, 0.0), live(TWO, 0.0), live(DEALER, 0.3)
    assert (one.result(), two.result(), feeder.result()) == (PRODUCT, PRODUCT, "dealt")
    assert met.is_set()


# --- much at once


def test_fifty_megabytes_both_ways_at_once(parties: Parties) -> None:
    array = np.arange(50_000_000 // 8, dtype=U)

    def party(channel: Any) -> bool:
        (theirs,) = channel.exchange("x", array)
        return bool((theirs == array).all())

    start = time.monotonic()
    assert outputs(parties, pair(party, party), deadline=30.0) == {ONE: True, TWO: True}
    assert time.monotonic() - start < 20.0


def test_who_is_far_ahead_waits_and_goes_on(parties: Parties) -> None:
    limits = Limits(window=1_000_000, heartbeat=0.2, patience=2.0)
    sent: list[int] = []
    ahead: list[int] = []
    piece = np.zeros(300_000, np.uint8)

    def sending(channel: Any) -> None:
        for count in range(30):
            channel.send("x", piece)
            sent.append(count)
            assert channel.link.unseen <= 1_000_000

    def receiving(channel: Any) -> None:
        assert until(lambda: len(sent) == 3)
        time.sleep(0.3)
        ahead.append(len(sent))
        for _ in range(30):
            channel.recv("x")

    outputs(parties, pair(sending, receiving), limits=limits)
    assert ahead == [3] and len(sent) == 30


def test_a_message_larger_than_the_window_is_sent_by_itself(parties: Parties) -> None:
    limits = Limits(window=1000, heartbeat=0.2, patience=2.0)

    def sending(channel: Any) -> None:
        for size in (10, 100_000, 10, 10, 100_000):
            channel.send("x", np.zeros(size, np.uint8))

    def receiving(channel: Any) -> list[int]:
        return [channel.recv("x")[0].size for _ in range(5)]

    assert outputs(parties, pair(sending, receiving), limits=limits)[TWO] == [
        10,
        100_000,
        10,
        10,
        100_000,
    ]


def test_who_waits_for_room_that_is_there_waits_not_for_the_heartbeat(parties: Parties) -> None:
    """What was taken last was too little to say so at once."""
    limits = Limits(window=1_000_000, heartbeat=30.0, patience=60.0)

    def sending(channel: Any) -> float:
        channel.send("x", np.zeros(100_000, np.uint8))
        start = time.monotonic()
        channel.send("x", np.zeros(950_000, np.uint8))
        return time.monotonic() - start

    def receiving(channel: Any) -> None:
        for _ in range(2):
            channel.recv("x")

    assert outputs(parties, pair(sending, receiving), limits=limits)[ONE] < 1.0


def test_who_waits_for_room_learns_that_the_other_is_gone(parties: Parties) -> None:
    limits = Limits(window=1000, heartbeat=0.2, patience=2.0)

    def sending(channel: Any) -> None:
        for _ in range(3):
            channel.send("x", np.zeros(900, np.uint8))

    def failing(channel: Any) -> None:
        time.sleep(0.2)
        raise CheatingDetected("no")

    running = started(parties, pair(sending, failing), limits=limits)
    error = running[ONE].join()
    assert isinstance(error, PeerDropped) and "server 1: it ended with CheatingDetected" in str(
        error
    )
    assert running[ONE].seconds < 1.5
    assert isinstance(running[TWO].join(), CheatingDetected)


def test_who_takes_nothing_is_given_up_at_the_deadline(parties: Parties) -> None:
    limits = Limits(window=1000, heartbeat=0.2, patience=5.0)
    done = threading.Event()

    def sending(channel: Any) -> None:
        try:
            for _ in range(3):
                channel.send("x", np.zeros(900, np.uint8))
        finally:
            done.set()

    came = errors(parties, pair(sending, lambda channel: done.wait(5)), limits=limits, deadline=0.4)
    assert isinstance(came[ONE], DeadlineExceeded) and "within 0.4 s" in str(came[ONE])


def test_what_was_sent_last_arrives_though_its_sender_ends(parties: Parties) -> None:
    array = np.arange(3_000_000, dtype=U)

    def sending(channel: Any) -> None:
        for _ in range(3):
            channel.send("x", array)

    def receiving(channel: Any) -> bool:
        time.sleep(0.3)
        return all((channel.recv("x")[0] == array).all() for _ in range(3))

    assert outputs(parties, pair(sending, receiving))[TWO] is True


# --- what goes wrong in a protocol


def test_a_wrong_tag_names_both_tags_and_both_roles(parties: Parties) -> None:
    came = errors(parties, pair(lambda c: c.send("apples"), lambda c: c.recv("pears")))
    assert came[ONE] is None and type(came[TWO]) is ProtocolError
    assert str(came[TWO]) == "server 1: expected 'pears' from server 0, came 'apples'"


def test_nothing_in_time_is_a_deadline(parties: Parties) -> None:
    start = time.monotonic()
    came = errors(parties, pair(lambda c: time.sleep(0.6), lambda c: c.recv("x")), deadline=0.3)
    assert isinstance(came[TWO], DeadlineExceeded) and time.monotonic() - start < 3.0
    assert str(came[TWO]) == "server 1: nothing from server 0 within 0.3 s"
    assert came[ONE] is None


@pytest.mark.parametrize("culprit", [ONE, TWO, DEALER], ids=str)
@pytest.mark.parametrize("error", [CheatingDetected("a bad triple"), ZeroDivisionError("a secret")])
def test_when_a_party_fails_the_others_learn_at_once_that_it_did(
    parties: Parties, culprit: Role, error: Exception
) -> None:
    def failing(channels: Any) -> None:
        raise error

    running = started(parties, {**CREW, culprit: failing}, deadline=30.0)
    came = {role: one.join() for role, one in running.items()}
    assert came.pop(culprit) is error
    told = [str(other) for role, other in came.items() if role != DEALER]
    assert all(isinstance(other, PeerDropped) for role, other in came.items() if role != DEALER)
    assert any(f"{culprit}: it ended with {type(error).__name__}" in text for text in told)
    assert not any("secret" in text for text in told)
    assert all(one.seconds < 2.5 for one in running.values())


def test_who_ended_has_said_what_it_had_to_say(parties: Parties) -> None:
    def early(channel: Any) -> None:
        channel.send("x", number(1))

    def asking(channel: Any) -> None:
        time.sleep(0.2)
        channel.recv("x")
        channel.recv("x")

    start = time.monotonic()
    came = errors(parties, pair(early, asking))
    assert isinstance(came[TWO], PeerDropped) and time.monotonic() - start < 2.0
    assert "server 1: server 0 is gone: server 0 has ended" in str(came[TWO])


def test_a_message_that_is_too_large_is_refused_by_its_sender(parties: Parties) -> None:
    limits = Limits(frame=10_000, heartbeat=0.2, patience=1.0)
    came = errors(
        parties, pair(lambda c: c.send("x", np.zeros(20_000)), lambda c: c.recv("x")), limits=limits
    )
    assert isinstance(came[ONE], WireError) and "at most 10000" in str(came[ONE])
    assert "it ended with WireError" in str(came[TWO])


def test_a_message_that_the_other_refuses_again_and_again_ends_in_typed_errors(
    parties: Parties,
) -> None:
    """One takes less than the other sends."""
    small = Limits(frame=1000, heartbeat=0.1, patience=0.8)
    large = Limits(heartbeat=0.1, patience=0.8)
    for sender, taker in ((ONE, TWO), (TWO, ONE)):
        sockets = {role: listen((HOST, 0)) for role in (ONE, TWO)}
        addresses = {role: sock.getsockname()[:2] for role, sock in sockets.items()}

        def sending(channels: Any, peer: Role = taker) -> None:
            channels[peer].send("x", np.zeros(5000))
            channels[peer].recv("y")

        def taking(channels: Any, peer: Role = sender) -> None:
            channels[peer].recv("x")

        def live(role: Role, run: Any, limits: Limits) -> Running:
            options = {"listening": sockets[role], "limits": limits, "deadline": 10.0}  # noqa: B023
            return Running(lambda: run_party(run, parties(role), addresses, **options))  # noqa: B023

        one, other = live(sender, sending, large), live(taker, taking, small)
        assert "at most 1000 are taken" in str(one.join(9.0))
        assert isinstance(other.join(9.0), PeerDropped)


# --- connections


def test_a_party_without_an_address_or_a_certificate_is_a_wrong_setting(parties: Parties) -> None:
    here = (HOST, 1)
    with pytest.raises(ConfigError, match="server 0 has no address; those of server 1 do"):
        run_party(dealer, parties(ONE), {TWO: here})
    with pytest.raises(ConfigError, match="owner 77 has no certificate"):
        run_party(dealer, parties(ONE), {ONE: here, Role("owner", 77): here})


def test_a_port_that_is_taken_is_a_wrong_setting(parties: Parties) -> None:
    with listen((HOST, 0)) as taken:
        address = taken.getsockname()[:2]
        with pytest.raises(ConfigError, match="choose another port"):
            run_party(dealer, parties(ONE), {ONE: address, TWO: (HOST, 1)})


@pytest.mark.parametrize("role", [ONE, TWO], ids=str)
def test_who_never_comes_is_dropped_in_time(parties: Parties, role: Role) -> None:
    with listen((HOST, 0)) as unused:
        nobody = unused.getsockname()[:2]
    start = time.monotonic()
    with pytest.raises(PeerDropped, match=r"did not connect within|could not be reached for"):
        run_party(dealer, parties(role), {ONE: nobody, TWO: nobody}, first=0.5, limits=QUICK)
    assert 0.5 <= time.monotonic() - start < 2.5


def test_another_role_where_the_peer_should_be_is_refused(parties: Parties) -> None:
    sock = listen((HOST, 0))
    addresses = {ONE: sock.getsockname()[:2], TWO: (HOST, 1)}
    # The dealer listens where the first server should.
    options = {"first": 1.0, "limits": QUICK}
    impostor = Running(
        lambda: run_party(
            dealer,
            parties(DEALER),
            {DEALER: addresses[ONE], TWO: (HOST, 1)},
            listening=sock,
            **options,
        )
    )
    with pytest.raises(
        AuthenticationFailed, match="server 0 was expected there, and it is dealer 0"
    ):
        run_party(dealer, parties(TWO), addresses, **options)
    assert isinstance(impostor.join(), PeerDropped)


def test_who_begins_anew_in_the_middle_cannot_go_on_as_if_nothing_were(parties: Parties) -> None:
    waiting, release = threading.Event(), threading.Event()

    def party(channel: Any) -> int:
        total = int(channel.exchange("x", number(1))[0][0])
        waiting.set()
        release.wait(5)
        return total + int(channel.exchange("x", number(2))[0][0])

    sock = listen((HOST, 0))
    addresses = {ONE: sock.getsockname()[:2], TWO: (HOST, 1)}
    one = Running(
        lambda: run_party(
            lambda channels: party(channels[TWO]),
            parties(ONE),
            addresses,
            listening=sock,
            limits=QUICK,
            deadline=5.0,
        )
    )
    with ByHand(parties(TWO), addresses[ONE]) as two:
        two.welcomed()
        two.request()
        two.data(encode(Message("x", arrays=[number(5)])), ticket=1)
        assert until(waiting.is_set)
    with ByHand(parties(TWO), addresses[ONE]) as anew:
        refused = anew.refused()
        assert isinstance(refused, PeerDropped) and "start all parties again" in str(refused)
    release.set()
    assert isinstance(one.join(9.0), ProtocolError)


def test_a_listener_that_begins_anew_is_noticed(parties: Parties) -> None:
    with Proxy((HOST, 1)) as proxy:
        first, second = listen((HOST, 0)), listen((HOST, 0))
        proxy.target = first.getsockname()[:2]
        addresses = {ONE: proxy.address, TWO: (HOST, 1)}
        two = Running(
            lambda: run_party(
                lambda channels: channels[ONE].recv("x"),
                parties(TWO),
                addresses,
                limits=QUICK,
                deadline=9.0,
            )
        )

        def listener(sock: socket.socket) -> Running:
            return Running(
                lambda: run_party(
                    lambda channels: channels[TWO].recv("y"), parties(ONE), addresses, listening=sock, limits=QUICK,
                    deadline=9.0, first=0.5,
                )
            )  # fmt: skip

        one = listener(first)
        assert until(lambda: len(proxy.passed) == 1 and proxy.passed[0]["down"] > 1500)
        time.sleep(0.1)
        again = listener(second)
        proxy.target = second.getsockname()[:2]
        proxy.cut_all()
        error = two.join()
        assert isinstance(error, PeerDropped) and "start all parties again" in str(error)
        one.join(), again.join()


def talk(turns: int = 6, size: int = 40_000) -> dict[Role, Callable[[Any], Any]]:
    """A conversation in which every message matters."""

    def party(role: Role) -> Callable[[Any], int]:
        def run(channel: Any) -> int:
            state = int(role.index) + 1
            for turn in range(turns):
                array = np.full(size if turn % 2 else 3, state, U)
                (theirs,) = channel.exchange(f"turn {turn}", array)
                assert (theirs == theirs[0]).all()
                state = (state * 31 + int(theirs[0])) % (1 << 40)
            return state

        return run

    return pair(party(ONE), party(TWO))


EXACT = outputs_of(run_pair(talk()))


@pytest.mark.parametrize("seed", range(3))
def test_a_connection_that_is_cut_again_and_again_changes_nothing(
    parties: Parties, seed: int
) -> None:
    draw = random.Random(seed)
    kinds = ["cut", "reset", "flip", "half", "double", "fill"]
    harms = [
        Harm(
            draw.choice(kinds),
            draw.randrange(2500, 400_000),
            draw.choice(["up", "down"]),
            count=draw.randint(1, 50),
        )
        for _ in range(5)
    ]
    proxies: list[Proxy] = []

    def through(role: Role, address: tuple[str, int]) -> tuple[str, int]:
        if role == TWO:
            return address
        proxies.append(Proxy(address, *harms))
        return proxies[0].address

    try:
        assert outputs(parties, talk(), through=through) == EXACT
        assert len(proxies[0].passed) > 1
    finally:
        proxies[0].close()


# --- other networks


def trips(count: int) -> dict[Role, Callable[[Any], Any]]:
    def asking(channel: Any) -> float:
        best = 9.0
        for _ in range(count):
            start = time.monotonic()
            channel.send("x", number(1))
            channel.recv("y")
            best = min(best, time.monotonic() - start)
        return best

    def answering(channel: Any) -> None:
        for _ in range(count):
            channel.recv("x")
            channel.send("y", number(1))

    return pair(asking, answering)


def test_a_delay_is_seen_in_every_round_trip(parties: Parties) -> None:
    best = outputs(parties, trips(8), shape=Shape(delay=0.02))[ONE]
    assert 0.04 <= best < 0.06
    assert outputs(parties, trips(20))[ONE] < 0.02


def test_a_bandwidth_is_seen_in_every_transfer(parties: Parties) -> None:
    def sending(channel: Any) -> float:
        start = time.monotonic()
        for _ in range(4):
            channel.send("x", np.zeros(500_000, np.uint8))
        channel.recv("done")
        return time.monotonic() - start

    def receiving(channel: Any) -> None:
        for _ in range(4):
            channel.recv("x")
        channel.send("done")

    seconds = outputs(parties, pair(sending, receiving), shape=Shape(delay=0.01, bandwidth=4e6))[
        ONE
    ]
    assert 0.52 <= seconds < 0.8
    assert 0 < LAN.delay < WAN.delay and LAN.bandwidth > WAN.bandwidth


def test_words_do_not_overtake_messages_that_a_slow_network_holds(parties: Parties) -> None:
    """The heartbeat asks again and again while messages are under way, and what was sent last still arrives."""
    notes: list[str] = []
    limits = Limits(heartbeat=0.02, patience=2.0, handshake=1.0)
    options = {"shape": Shape(delay=0.1, bandwidth=1e6), "limits": limits, "note": notes.append}

    def sending(channel: Any) -> None:
        for _ in range(5):
            channel.send("x", np.zeros(40_000, np.uint8))

    def receiving(channel: Any) -> int:
        return sum(channel.recv("x")[0].size for _ in range(5))

    assert outputs(parties, pair(sending, receiving), **options)[TWO] == 200_000
    assert len(notes) == 1 and "connected to" in notes[0]


@pytest.mark.parametrize(
    "wrong", [{"delay": -1.0}, {"delay": 60.0}, {"bandwidth": -1.0}, {"delay": float("nan")}]
)
def test_a_network_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="a delay from 0"):
        Shape(**wrong)


# --- a socket pair


def over(
    sock: socket.socket, role: Role, peer: Role, run: Callable[[Any], Any], **options: Any
) -> Running:
    def live() -> Any:
        with channel_over(sock, role, peer, **{"deadline": 10.0, **options}) as channel:
            return run(channel)

    return Running(live)


def both(
    one: Callable[[Any], Any], two: Callable[[Any], Any], **options: Any
) -> tuple[Running, Running]:
    here, there = socket.socketpair()
    return over(here, ONE, TWO, one, **options), over(there, TWO, ONE, two, **options)


def test_a_socket_pair_carries_the_same_conversation() -> None:
    talking = talk()
    one, two = both(lambda c: talking[ONE]({TWO: c}), lambda c: talking[TWO]({ONE: c}))
    assert {ONE: one.result(), TWO: two.result()} == EXACT


def test_a_socket_pair_carries_much_both_ways_and_what_was_sent_last() -> None:
    array = np.arange(50_000_000 // 8, dtype=U)

    def party(channel: Any) -> bool:
        (theirs,) = channel.exchange("x", array)
        channel.send("last", array)
        time.sleep(0.05)
        return bool((theirs == array).all() and (channel.recv("last")[0] == array).all())

    one, two = both(party, party)
    assert one.result() and two.result()


def test_what_was_sent_last_over_a_socket_pair_arrives_though_nobody_reads_for_long() -> None:
    array = np.arange(2_000_000, dtype=U)

    def sending(channel: Any) -> None:
        channel.send("x", array)

    def receiving(channel: Any) -> bool:
        time.sleep(0.3)
        return bool((channel.recv("x")[0] == array).all())

    one, two = both(sending, receiving)
    one.result()
    assert two.result()


def test_over_a_socket_pair_the_end_of_the_other_side_is_seen_at_once() -> None:
    def failing(channel: Any) -> None:
        raise CheatingDetected("no")

    one, two = both(lambda c: c.recv("x"), failing)
    error = one.join()
    assert isinstance(error, PeerDropped) and "it ended with CheatingDetected" in str(error)
    assert one.seconds < 1.0 and isinstance(two.join(), CheatingDetected)
    here, there = socket.socketpair()
    one = over(here, ONE, TWO, lambda c: (c.send("x", number(1)), there.close()))
    assert one.join() is None and one.seconds < 1.0  # nobody is there to wait for


def test_a_socket_that_reaches_other_machines_is_refused() -> None:
    with socket.create_server((HOST, 0)) as listening:
        for sock in (
            socket.create_connection(listening.getsockname()),
            socket.socket(socket.AF_INET6),
        ):
            with sock, pytest.raises(ConfigError, match="use run_party with certificates"):
                over(sock, ONE, TWO, lambda channel: None).result()


def test_starting_and_ending_leaves_nothing_behind(parties: Parties) -> None:
    before = descriptors(), threading.active_count()
    for _ in range(20):
        outputs(parties, CREW)
    assert until(lambda: (descriptors(), threading.active_count()) == before)
