"""The loop, its pipes and links, with threads at them from all sides."""

from __future__ import annotations

import queue
import random  # noqa: TID251 - of tests alone, seeded
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tacit.core.errors import PeerDropped, ProtocolError, WireError
from tacit.core.wire import Message
from tacit.parties.links.frames import HEAD, Header, Kind
from tacit.parties.links.link import Came, Gone, Link, RoleTaken, Shape
from tacit.parties.links.reactor import Limits, Pipe, Reactor, Unbroken, close_softly
from tacit.parties.roles import Role

from .proxy import Running, until

HERE, THERE = Role("server", 0), Role("server", 1)
SESSION = b"together"
pytestmark = pytest.mark.usefixtures("nothing_is_left")


@contextmanager
def reactors(count: int = 1, **options: Any) -> Iterator[list[Reactor]]:
    made = [Reactor(f"loop {number}", **options) for number in range(count)]
    try:
        yield made
    finally:
        for one in made:
            one.close()


# --- the loop


def test_what_is_called_is_done_in_order_whoever_runs_the_loop() -> None:
    with reactors() as (loop,):
        done: list[int] = []
        inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        waiting = Running(lambda: loop.get(inbox, 5.0))
        for number in range(500):
            loop.call(partial(done.append, number))
            if number % 100 == 0:
                time.sleep(0.005)
        loop.call(lambda: inbox.put("end"))
        assert waiting.result() == "end" and done == list(range(500))


@pytest.mark.parametrize("devoted", [False, True])
def test_many_threads_wait_at_once_and_each_gets_its_own(devoted: bool) -> None:
    with reactors(devoted=devoted) as (loop,):
        inboxes: list[queue.SimpleQueue[int]] = [queue.SimpleQueue() for _ in range(4)]

        def wait(number: int) -> list[int]:
            return [loop.get(inboxes[number], 5.0) for _ in range(200)]

        waiting = [Running(partial(wait, n)) for n in range(4)]
        for value in range(200):
            for inbox in inboxes:
                loop.call(partial(inbox.put, value))
            if value % 20 == 0:
                time.sleep(0.003)
        for one in waiting:
            assert one.result() == list(range(200)) and one.seconds < 4.0


def test_nothing_in_time_is_empty_and_takes_that_time() -> None:
    with reactors() as (loop,):
        inbox: queue.SimpleQueue[int] = queue.SimpleQueue()
        for seconds in (0.0, -1.0, 0.05, 0.2):
            start = time.monotonic()
            with pytest.raises(queue.Empty):
                loop.get(inbox, seconds)
            assert max(0.0, seconds) <= time.monotonic() - start < max(0.0, seconds) + 0.15
        inbox.put(7)
        assert loop.get(inbox, -1.0) == 7  # what is there is taken, however late


def test_closing_ends_those_who_wait_at_once() -> None:
    for pause in (0.0, 0.001, 0.02):
        with reactors() as (loop,):
            waiting = [Running(lambda: loop.get(queue.SimpleQueue(), 30.0)) for _ in range(3)]
            time.sleep(pause)
            start = time.monotonic()
            loop.close()
            for one in waiting:
                assert isinstance(one.join(), PeerDropped)
            assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("attempt", range(20))
def test_what_was_called_before_the_end_is_done_and_nothing_after_it(attempt: int) -> None:
    with reactors() as (loop,):
        done: list[int] = []
        time.sleep(attempt / 5000)
        for number in range(20):
            loop.call(partial(done.append, number))
        loop.close()
        assert done == list(range(20))
        loop.call(lambda: done.append(99))
        loop.later(0.0, lambda: done.append(98))
        loop.close()
        assert done == list(range(20))


def test_several_threads_may_close_it() -> None:
    for _ in range(20):
        with reactors() as (loop,):
            for one in [Running(loop.close) for _ in range(4)]:
                assert one.join() is None and one.seconds < 1.0


@pytest.mark.parametrize("leads", [False, True])
def test_a_defect_in_the_loop_is_raised_by_who_waits(leads: bool) -> None:
    with reactors() as (loop,):
        inbox: queue.SimpleQueue[int] = queue.SimpleQueue()

        def wait() -> None:
            while True:
                loop.get(inbox, 30.0)

        def led() -> bool:  # after one of a few messages, the loop's own thread has given way
            loop.call(lambda: inbox.put(1))
            time.sleep(0.01)
            return loop._leader == waiting.thread.ident

        waiting = Running(wait)
        assert not leads or until(led)
        start = time.monotonic()
        loop.call(lambda: 1 // 0)
        assert isinstance(waiting.join(), ZeroDivisionError) and time.monotonic() - start < 1.0
        with pytest.raises(ZeroDivisionError):
            loop.get(inbox, 1.0)
        done = threading.Event()
        loop.call(done.set)  # and the loop goes on, for what must still be said
        assert done.wait(1.0)


def test_timers_come_in_their_order() -> None:
    with reactors() as (loop,):
        came: list[float] = []
        inbox: queue.SimpleQueue[int] = queue.SimpleQueue()
        delays = [place / 100 for place in (3, 9, 1, 5, 7, 2, 10, 4, 8, 6, 0)]
        start = time.monotonic()
        for delay in delays:
            loop.later(delay, partial(came.append, delay))
        loop.later(0.12, lambda: inbox.put(1))
        loop.get(inbox, 2.0)
        assert came == sorted(delays) and 0.12 <= time.monotonic() - start < 0.3


@pytest.mark.parametrize("wait", [0.0005, 0.005, 0.05, 0.3])
def test_the_loop_goes_on_soon_after_who_ran_it_has_something_else_to_do(wait: float) -> None:
    """However long it was run from outside."""
    with reactors() as (loop,):
        inbox: queue.SimpleQueue[int] = queue.SimpleQueue()
        loop.later(wait, lambda: inbox.put(1))
        loop.get(inbox, 2.0)
        done, ready, over = (threading.Event() for _ in range(3))
        start = time.monotonic()
        loop.call(done.set)
        assert done.wait(1.0) and time.monotonic() - start < 0.1
        here, there = socket.socketpair()
        with here, there:

            def take(events: int) -> None:
                here.recv(1)
                ready.set()

            loop.call(lambda: loop.watch(here, selectors.EVENT_READ, take))
            loop.later(wait, lambda: inbox.put(1))
            loop.get(inbox, 2.0)
            start = time.monotonic()
            there.send(b"x")
            assert ready.wait(1.0) and time.monotonic() - start < 0.1
            loop.call(lambda: loop.watch(here, 0, take))
            loop.call(over.set)
            assert over.wait(1.0)


def test_a_loop_that_somebody_runs_for_long_costs_nothing() -> None:
    with reactors(20) as loops:
        waiting = [Running(partial(one.get, queue.SimpleQueue(), 1.2)) for one in loops]
        time.sleep(0.3)
        start = time.process_time()
        time.sleep(0.8)
        assert time.process_time() - start < 0.2
        for one in waiting:
            assert isinstance(one.join(), queue.Empty)


def test_sockets_that_nobody_closed_are_closed_at_the_end() -> None:
    for _ in range(5):
        loop = Reactor("loop")
        here, there = socket.socketpair()
        here.setblocking(False)
        loop.call(lambda: loop.watch(here, 1, lambda events: None))  # noqa: B023
        last, read = socket.socketpair()
        loop.call(lambda: close_softly(loop, last))  # noqa: B023
        loop.close()
        assert here.fileno() == -1 and read.recv(1) == b""
        there.close(), read.close()


def test_a_soft_close_lets_the_last_words_be_read_and_has_an_end() -> None:
    with reactors() as (loop,):
        done: list[int] = []
        here, there = socket.socketpair()
        there.sendall(b"x" * 1000)  # what nobody reads
        here.sendall(b"last words")
        loop.call(lambda: close_softly(loop, here, lambda: done.append(1)))
        with there:
            there.settimeout(5)
            assert there.recv(100) == b"last words" and there.recv(1) == b""
            start = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() - start < 5:
                    there.sendall(b"more and more" * 1000)
            assert time.monotonic() - start < 2.0
        assert until(lambda: done == [1])
        here, there = socket.socketpair()
        here.close()
        loop.call(lambda: close_softly(loop, here, lambda: done.append(2)))
        assert until(lambda: done == [1, 2]) and loop.error is None
        there.close()


# --- pipes


class End:
    """One end of a pipe, with what came."""

    def __init__(self, loop: Reactor, sock: socket.socket, limit: int = 1 << 26) -> None:
        self.frames: list[tuple[Header, bytes]] = []
        self.ends: list[Exception] = []
        self.pipe = Pipe(loop, sock, limit, self.take, self.ends.append)
        self.pipe.start()

    def take(self, header: Header, payload: Any) -> None:
        self.frames.append((header, bytes(payload)))


@contextmanager
def ends() -> Iterator[tuple[End, End]]:
    with reactors(2) as (one, two):
        here, there = socket.socketpair()
        left, right = End(one, here), End(two, there)
        yield left, right
        for end in (left, right):
            end.pipe.close(PeerDropped("the end"))
            assert until(lambda: len(end.ends) == 1)  # noqa: B023


def test_threads_that_send_at_once_do_not_mix_their_frames() -> None:
    with ends() as (left, right):
        sizes = [0, 10, 5000, 1 << 14, (1 << 14) + 1, 200_000]

        def send(number: int) -> None:
            for turn in range(60):
                payload = bytes([number]) * sizes[turn % len(sizes)]
                left.pipe.send(Header(kind=Kind.DATA, ticket=number, sequence=turn), payload)

        for one in [Running(lambda n=n: send(n)) for n in range(4)]:
            one.result()
        assert until(lambda: len(right.frames) == 240)
        for number in range(4):
            mine = [(h.sequence, payload) for h, payload in right.frames if h.ticket == number]
            assert mine == [(t, bytes([number]) * sizes[t % len(sizes)]) for t in range(60)]


def test_large_frames_both_ways_at_once_pass_while_both_sides_are_busy() -> None:
    with ends() as (left, right):
        payload = bytes(30_000_000)
        start = time.monotonic()
        for end in (left, right):
            end.pipe.send(Header(kind=Kind.DATA), payload)
        assert time.monotonic() - start < 1.0  # nobody waits for who reads
        assert until(lambda: left.frames and right.frames, 10.0)
        assert not left.pipe.busy and not right.pipe.busy


@pytest.mark.parametrize("attempt", range(10))
def test_closing_from_many_threads_tells_once_and_calls_all(attempt: int) -> None:
    with ends() as (left, right):
        after: list[int] = []

        def close(number: int) -> None:
            left.pipe.close(PeerDropped(f"{attempt}"), after=lambda: after.append(number))

        for one in [Running(partial(close, number)) for number in range(4)]:
            one.result()
        assert until(lambda: sorted(after) == [0, 1, 2, 3])
        assert len(left.ends) == 1
        left.pipe.send(Header(kind=Kind.PING))  # dropped
        left.pipe.send_bytes(b"x")
        left.pipe.spoil()
        assert until(lambda: len(right.ends) == 1)
        assert isinstance(right.ends[0], PeerDropped)


@pytest.mark.parametrize("attempt", range(10))
def test_sending_and_closing_at_once_is_no_error(attempt: int) -> None:
    with ends() as (left, right):

        def send() -> None:
            for _ in range(100):
                left.pipe.send(Header(kind=Kind.DATA), bytes(40_000))

        sending = Running(send)
        time.sleep(attempt / 2000)
        right.pipe.close(PeerDropped("now"))
        assert sending.join() is None
        assert until(lambda: len(left.ends) == 1)


@pytest.mark.parametrize("error", [WireError("no"), ProtocolError("no")])
def test_an_error_of_the_protocol_ends_the_pipe_and_nothing_else(error: Exception) -> None:
    with ends() as (left, right):

        def refuse(header: Header, payload: Any) -> None:
            raise error

        right.pipe.on_frame = refuse
        left.pipe.send(Header(kind=Kind.DATA))
        assert until(lambda: right.ends == [error] and len(left.ends) == 1)
        assert [header.kind for header, _ in left.frames] == (
            [Kind.REFUSE] if isinstance(error, WireError) else []
        )
        assert right.pipe.reactor.error is None


def test_bytes_that_are_no_frame_end_the_pipe() -> None:
    with ends() as (left, right):
        left.pipe.send(Header(kind=Kind.PING))
        assert until(lambda: len(right.frames) == 1)
        left.pipe.send_bytes(bytes(HEAD))
        assert until(lambda: len(right.ends) == 1)
        assert isinstance(right.ends[0], WireError) and len(right.frames) == 1


# --- links


class Both:
    """Two links, and connections between them that come and go."""

    def __init__(self, loops: list[Reactor], **options: Any) -> None:
        self.came: tuple[list[bytes], list[bytes]] = ([], [])
        self.errors: list[Exception] = []
        limits = Limits(heartbeat=0.05, patience=5.0)
        self.links = [
            Link(
                peer, loop, limits, lambda came, c=came: self._take(c, came),
                lost=lambda link, why: self.errors.append(why), **options,
            )
            for peer, loop, came in zip((THERE, HERE), loops, self.came, strict=True)
        ]  # fmt: skip
        for link in self.links:
            link.renew(SESSION)
            self._beat(link)

    def _take(self, into: list[bytes], came: Came | Gone) -> None:
        assert isinstance(came, Came)
        into.append(bytes(came.payload))

    def _beat(self, link: Link) -> None:
        def beat() -> None:
            link.beat()
            link.reactor.later(0.02, beat)

        beat()

    def connect(self) -> None:
        """As a member does at a hub: it says what it has once its old connection is gone."""
        hub, member = self.links
        if member.pipe is not None:
            member.pipe.close(PeerDropped("cut"))
            assert until(lambda: member.pipe is None)
        here, there = socket.socketpair()
        had = member.received
        told: queue.SimpleQueue[int] = queue.SimpleQueue()

        def attach() -> None:
            told.put(hub.received)
            hub.attach(self._pipe(hub, here), had)

        hub.reactor.call(attach)
        member.attach(self._pipe(member, there), told.get(timeout=5))

    def _pipe(self, link: Link, sock: socket.socket) -> Pipe:
        pipe = Pipe(
            link.reactor,
            sock,
            1 << 24,
            lambda h, p: link.on_frame(pipe, h, p),
            lambda why: link.on_end(pipe, why),
        )
        return pipe

    def close(self) -> None:
        for link in self.links:
            if link.pipe is not None:
                link.pipe.close(PeerDropped("the end"))


@pytest.mark.parametrize("shape", [None, Shape(delay=0.002)], ids=["plain", "shaped"])
@pytest.mark.parametrize("seed", range(2))
def test_messages_posted_while_connections_come_and_go_arrive_once_and_in_order(
    seed: int, shape: Shape | None
) -> None:
    draw = random.Random(seed)
    with reactors(2, devoted=shape is not None) as loops:
        both = Both(loops, shape=shape)
        count = 400

        def post(link: Link, name: bytes) -> None:
            own = random.Random(f"{seed} {name!r}")
            for number in range(count):
                size = own.choice([0, 100, 20_000])
                link.post(name + number.to_bytes(2) + bytes(size), ticket=number)
                if own.random() < 0.1:
                    time.sleep(0.001)

        posting = [
            Running(lambda li=li, n=n: post(li, n))
            for li, n in zip(both.links, (b"h", b"m"), strict=True)
        ]
        while not all(one.ended for one in posting):
            both.connect()
            time.sleep(draw.random() * 0.01)
        for one in posting:
            one.result()
        both.connect()
        for came, name in zip(both.came, (b"m", b"h"), strict=True):
            assert until(lambda: len(came) >= count, 10.0), len(came)  # noqa: B023
            assert [c[:3] for c in came] == [name + number.to_bytes(2) for number in range(count)]
        for link in both.links:
            assert link.delivered(deadline=5.0)
            assert link.sent == link.arrived == count and link.received == count
            assert until(lambda: not link._outbox and link.unseen == 0)  # noqa: B023
            assert link.reactor.error is None
        both.close()


def test_what_is_posted_without_a_connection_waits_for_one() -> None:
    with reactors(2) as loops:
        both = Both(loops)
        for number in range(10):
            both.links[0].post(bytes([number]), ticket=number)
        assert not both.links[0].delivered(deadline=0.05)
        both.connect()
        assert both.links[0].delivered(deadline=5.0)
        assert both.came[1] == [bytes([number]) for number in range(10)]
        both.close()


def test_the_words_of_a_connection_that_was_replaced_are_not_heard() -> None:
    with reactors(2) as loops:
        both = Both(loops)
        both.connect()
        hub = both.links[0]
        old = hub.pipe
        both.connect()
        assert until(lambda: hub.pipe not in (old, None))
        hub.on_frame(old, Header(kind=Kind.BYE), b"")
        hub.on_end(old, PeerDropped("late"))
        assert hub.pipe is not None and not hub.over
        both.close()


def hello(session: bytes, received: int = 0) -> Message:
    return Message("hello", session=session, received=received)


def test_who_comes_back_goes_on_and_who_is_new_begins_anew() -> None:
    with reactors() as (loop,):
        link = Link(THERE, loop, Limits(), lambda came: None)
        assert link.resumed(hello(bytes(8))) == 0  # the first time
        first = link.session
        assert first != bytes(8)
        for number in range(3):
            link.post(b"x", ticket=number)
        assert link.resumed(hello(first, 2)) == 2 and link.session == first and link.sent == 3
        with pytest.raises(WireError):  # more than was sent
            link.resumed(hello(first, 4))
        assert link.resumed(hello(b"another!")) == 0 and link.session not in (first, b"another!")
        assert (link.sent, link.received, len(link._outbox), link.unseen) == (0, 0, 0, 0)
        here, there = socket.socketpair()
        link.attach(Both._pipe(None, link, here), 0)
        with pytest.raises(RoleTaken, match="is it running twice"):
            link.resumed(hello(bytes(8)))
        assert link.resumed(hello(link.session)) == 0
        link.pipe.close(PeerDropped("the end"))
        there.close()


def test_a_link_that_does_not_last_begins_once() -> None:
    with reactors() as (loop,):
        link = Link(THERE, loop, Limits(), lambda came: None, lasting=False)
        link.resumed(hello(bytes(8)))
        link.resumed(hello(link.session))
        for session in (bytes(8), b"another!"):
            with pytest.raises(PeerDropped, match="start all parties again"):
                link.resumed(hello(session))


def test_nothing_of_a_session_that_is_over_is_sent_in_the_next() -> None:
    with reactors() as (loop,):
        link = Link(THERE, loop, Limits(), lambda came: None)
        link.renew(b"session1")
        link.post(b"old", ticket=0, session=b"session1")
        link.renew(b"session2")
        link.post(b"late", ticket=1, session=b"session1")
        assert link.sent == 0 and not link._outbox
        link.post(b"new", ticket=0, session=b"session2")
        assert [(h.session, bytes(p)) for h, p in link._outbox] == [(b"session2", b"new")]


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (Header(kind=Kind.DATA, session=b"another!", sequence=1), ProtocolError),
        (Header(kind=Kind.DATA, session=SESSION, sequence=2), ProtocolError),
        (Header(kind=Kind.PING, session=SESSION, sequence=1), ProtocolError),
        (Header(kind=Kind.PONG, session=SESSION, sequence=1), ProtocolError),
        (Header(kind=Kind.DATA, session=SESSION, sequence=1, seen=1), ProtocolError),
        (Header(kind=Kind.HELLO, session=SESSION), WireError),
        (Header(kind=Kind.WELCOME, session=SESSION), WireError),
        (Header(kind=Kind.REFUSE), ProtocolError),
    ],
)
def test_a_frame_that_does_not_belong_ends_the_connection(header: Header, error: Any) -> None:
    with reactors(2) as loops:
        both = Both(loops)
        both.connect()
        hub, member = both.links
        member.pipe.send(header)
        assert until(lambda: any(type(one) is error for one in both.errors)), both.errors
        assert hub.pipe is None
        assert not both.came[0]
        member.post(b"right", ticket=0)
        both.connect()
        assert until(lambda: both.came[0] == [b"right"])
        both.close()


def test_no_message_is_shown() -> None:
    with reactors() as (loop,):
        link = Link(THERE, loop, Limits(), lambda came: None)
        link.post(b"a secret", ticket=0)
        assert "secret" not in repr(link) + repr(Came(THERE, 0, b"a secret"))


def test_an_interrupt_waits_until_what_must_not_break_is_done() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with Unbroken(), Unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
