"""A member with a valid certificate that does what it likes: it harms nobody but itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tacit.core.errors import PeerDropped, ProtocolError
from tacit.core.wire import Message, encode
from tacit.parties.checkpoints import FileCheckpoint
from tacit.parties.credentials import Credentials
from tacit.parties.durable import DurableMember
from tacit.parties.links.frames import Kind
from tacit.parties.links.reactor import Limits
from tacit.parties.links.tcp import Few, TcpHub, last_word, serve_member
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.star import REFUSED, ask

from .proxy import ByHand

Parties = Callable[[Role], Credentials]
LIMITS = Limits(heartbeat=1.0, patience=10.0, handshake=5.0)
BAD, GOOD = owners(2)


class Echo:
    def handle(self, request: Message) -> Message:
        return Message("echo", payload=request.array("payload"))

    def export(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        del state


@contextmanager
def beside(parties: Parties) -> Iterator[tuple[TcpHub, ByHand]]:
    """A hub with one honest member, and one that a test plays."""
    with TcpHub(parties(SERVER), [BAD, GOOD], ("127.0.0.1", 0), limits=LIMITS) as hub:
        arguments = DurableMember(Echo()), parties(GOOD), hub.address
        honest = threading.Thread(
            target=serve_member, args=arguments, kwargs={"limits": LIMITS}, daemon=True
        )
        honest.start()
        bad = ByHand(parties(BAD), hub.address)
        bad.welcomed()
        hub.wait(deadline=10.0)
        try:
            yield hub, bad
        finally:
            bad.close()
    honest.join(10)


def honest_wave(hub: TcpHub, size: int = 1000) -> float:
    start = time.monotonic()
    came = ask(hub, {GOOD: Message("ask", payload=np.zeros(size, np.uint8))}, deadline=20.0)
    assert came[GOOD].array("payload").shape == (size,)
    return time.monotonic() - start


@pytest.mark.parametrize(
    "kind", ["Diverged", "RangeError", "TacitError", "ConfigError", "KeyError"]
)
def test_a_refusal_of_any_class_ends_its_own_connection_alone(kind: str, parties: Parties) -> None:
    with beside(parties) as (hub, bad):
        bad.frame(Kind.REFUSE, encode(Message(REFUSED, kind=kind, text="boo", final=True)))
        assert honest_wave(hub) < 5.0
        assert hub._reactor.error is None


def test_numbers_and_times_that_cannot_be_kept_are_refused(parties: Parties, tmp_path: Any) -> None:
    for head in ({"number": 1 << 63}, {"seconds": 1.7e308}, {"ticket": (1 << 64) - 1}):
        with beside(parties) as (hub, bad):
            ticket = hub.post({BAD: Message("ask", payload=np.zeros(1, np.uint8))})
            header, _ = bad.request()
            bad.data(encode(Message("echo")), **{"ticket": header.ticket, **head})
            honest_wave(hub)
            checkpoint = FileCheckpoint(tmp_path / "checkpoint", b"about")
            checkpoint.save(Message("state"), hub.cost)
            assert checkpoint.load(type(hub.cost)()) is not None
            assert hub.numbers[BAD] == 0 and ticket >= 0


def test_seconds_are_a_member_s_word_within_reason(parties: Parties) -> None:
    with beside(parties) as (hub, bad):
        hub.post({BAD: Message("ask", payload=np.zeros(1, np.uint8))})
        header, _ = bad.request()
        bad.data(encode(Message("echo")), ticket=header.ticket, seconds=1e8)
        assert next(hub.replies(deadline=5.0))[0] == BAD
        assert hub.cost.total(role=BAD).seconds < 5.0


def test_an_answer_that_nobody_asked_for_counts_nothing(parties: Parties) -> None:
    with beside(parties) as (hub, bad):
        bad.data(encode(Message("echo")), ticket=77, number=1000)
        honest_wave(hub)
        assert hub.numbers[BAD] == 0


def test_a_flood_of_pings_that_reads_nothing_costs_neither_memory_nor_others(
    parties: Parties,
) -> None:
    with beside(parties) as (hub, bad):
        stop, sent = threading.Event(), [0]
        bad.sock.settimeout(0.2)

        def flood() -> None:
            while not stop.is_set():
                try:
                    bad.frame(Kind.PING)
                    sent[0] += 1
                except OSError:
                    time.sleep(0.01)

        flooding = threading.Thread(target=flood, daemon=True)
        flooding.start()
        waves = [honest_wave(hub) for _ in range(30)]
        end = time.monotonic() + 20.0
        while sent[0] < 50_000 and time.monotonic() < end:
            waves.append(honest_wave(hub))
        pipe = hub._links[BAD].pipe
        stop.set()
        flooding.join(5)
        assert sent[0] > 10_000
        assert pipe is None or len(pipe._out) < 1000, "words that nobody reads pile up"
        assert max(waves) < 5.0 and len(hub._reactor._tasks) < 100


def test_a_reply_lets_go_of_its_request_whatever_the_member_says_it_has_seen(
    parties: Parties,
) -> None:
    with beside(parties) as (hub, bad):
        for _ in range(5):
            hub.post({BAD: Message("ask", payload=np.zeros(100_000, np.uint8))})
            header, _ = bad.request()
            bad.data(encode(Message("echo")), ticket=header.ticket, seen=0)
            assert next(hub.replies(deadline=5.0))[0] == BAD
        assert hub._links[BAD].unseen == 0 and not hub._links[BAD]._outbox


def test_a_coordinator_that_asks_too_much_at_once_is_not_listened_to(parties: Parties) -> None:
    class Slow(Echo):
        def handle(self, request: Message) -> Message:
            time.sleep(0.5)
            return super().handle(request)

    small = Limits(heartbeat=1.0, patience=1.0, handshake=5.0, frame=1 << 20, window=1 << 20)
    with TcpHub(parties(SERVER), [GOOD], ("127.0.0.1", 0), limits=LIMITS) as hub:
        notes: list[str] = []
        failed: list[Exception] = []

        def serve() -> None:
            try:
                serve_member(
                    DurableMember(Slow()),
                    parties(GOOD),
                    hub.address,
                    limits=small,
                    note=notes.append,
                )
            except Exception as error:
                failed.append(error)

        member = threading.Thread(target=serve, daemon=True)
        member.start()
        hub.wait(deadline=10.0)
        for _ in range(8):
            hub.post({GOOD: Message("ask", payload=np.zeros(500_000, np.uint8))})
        end = time.monotonic() + 10.0
        while not any("more than can be taken" in note for note in notes):
            assert time.monotonic() < end, notes
            time.sleep(0.05)
    member.join(15)


def test_what_others_are_told_of_an_interruption_is_no_ordinary_end() -> None:
    assert isinstance(last_word(KeyboardInterrupt()), PeerDropped)
    assert "ValueError" in str(last_word(ValueError("a secret"))) and "secret" not in str(
        last_word(ValueError("a secret"))
    )
    assert last_word(None) is None
    assert isinstance(last_word(ProtocolError("x")), ProtocolError)


def test_notes_are_few_and_the_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [100.0], []
    monkeypatch.setattr("tacit.parties.links.tcp.time.monotonic", lambda: now[0])
    few = Few(said.append)
    for number in range(1000):
        few(f"refused {number}")
    assert len(said) == 5
    now[0] += 1.5
    few("refused again")
    assert said[5:] == ["and 995 more of the same kind", "refused again"]


def test_an_address_that_is_no_name_ends_typed(parties: Parties) -> None:
    start = time.monotonic()
    with pytest.raises(PeerDropped, match="could not be reached"):
        serve_member(
            DurableMember(Echo()),
            parties(GOOD),
            ("hospital..example", 1),
            limits=LIMITS,
            first=30.0,
        )
    assert time.monotonic() - start < 10.0
