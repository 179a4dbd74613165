"""The pair between processes and machines, and those who feed it: TLS 1.3 between every two of them.

Each party listens where the others can reach it; of two, the one of the higher role connects, or the one that has no
address, since it only connects. What a party sends is under
way at once and is received by a thread of the other's, whatever its function does meanwhile, so that two that send each
other large messages never block each other. A party may be `Limits.window` bytes ahead of what the other's function has
taken; `send` waits beyond that.

`channels_over` gives the same channel over a socket pair, without TLS: for tests and measurements on one machine.
"""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tacit.core.cost import CostMeter
from tacit.core.errors import (
    ConfigError,
    DeadlineExceeded,
    PeerDropped,
    ProtocolError,
    WireError,
)
from tacit.core.memory import keep_freed_memory
from tacit.core.wire import Array, Message, decode, encode_view
from tacit.parties.credentials import Credentials, server_context
from tacit.parties.links.frames import Header, Kind
from tacit.parties.links.link import Came, Gone, Link, Shape, keep_beating
from tacit.parties.links.reactor import Acceptor, Limits, Payload, Pipe, Reactor
from tacit.parties.links.tcp import (
    Address,
    Few,
    Note,
    Upstream,
    admit,
    attach,
    finish,
    listen,
    refuse,
    unheard,
)
from tacit.parties.pair import Channel, Party
from tacit.parties.roles import Role
from tacit.parties.star import Seconds
from tacit.parties.views import COUNTS, Level, Recording, View

T = TypeVar("T")

_LOOK = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class PartyRun(Generic[T]):
    """What came of a party's part in a conversation.

    Args:
        output: what its function returned.
        view: what it received.
        cost: what it sent, received and computed.
    """

    output: T = field(repr=False)
    view: View = field(repr=False)
    cost: CostMeter = field(repr=False)


@dataclass(slots=True)
class _Books:
    """What one party's channels have in common."""

    role: Role
    deadline: Seconds
    view: View
    cost: CostMeter = field(default_factory=CostMeter)
    depth: int = 0
    label: tuple[str, str] = ("", "")
    since: float = field(default_factory=time.thread_time)

    def relabel(self, label: tuple[str, str]) -> tuple[str, str]:
        """Book the party's seconds so far under its label and give it another."""
        now, old = time.thread_time(), self.label
        self.cost.book(self.role, seconds=now - self.since, under=old)
        self.since, self.label = now, label
        return old


@dataclass(slots=True)
class LinkChannel:
    """A channel over a link; its party's thread alone uses it."""

    link: Link
    inbox: queue.SimpleQueue[Came | Gone]
    books: _Books
    _gone: Exception | None = None
    _sent: int = 0

    @property
    def peer(self) -> Role:
        """Who is at the other end."""
        return self.link.peer

    def send(self, tag: str, *arrays: Array) -> None:
        """Send arrays under a tag.

        Raises:
            PeerDropped: the peer is gone.
            DeadlineExceeded: the peer takes too little, and the window is full.
            WireError: it is larger than a message may be.
        """
        frame = encode_view(Message(tag, arrays=arrays))
        books, link = self.books, self.link
        link.check(len(frame))
        end = time.monotonic() + books.deadline
        with link.room:
            while link.unseen and link.unseen + len(frame) > link.limits.window:
                if link.gone is not None:
                    raise PeerDropped(
                        f"{books.role}: {self.peer} is gone: {link.gone}"
                    ) from link.gone
                left = end - time.monotonic()
                if left <= 0:
                    raise DeadlineExceeded(
                        f"{books.role}: {self.peer} has taken too little of {link.unseen} bytes within {books.deadline:g} s"
                    )
                if not link.room.wait(min(left, _LOOK)):
                    link.word(Kind.PING)  # the other side may have taken some and not said so
        depth = books.depth + 1
        books.cost.chain(depth)
        books.cost.book(books.role, messages=1, sent=len(frame), under=books.label)
        if books.view.recording.level > Level.COUNTS:
            books.view.send(self.peer, self._sent, bytes(frame))
        self._sent += 1
        link.post(frame, ticket=depth)

    def recv(self, tag: str) -> tuple[Array, ...]:
        """The arrays that the peer sent under that tag.

        Raises:
            ProtocolError: the next message has another tag.
            PeerDropped: the peer is gone.
            DeadlineExceeded: nothing came in time.
        """
        books = self.books
        came = self._next(time.monotonic() + books.deadline)
        size = len(came.payload)
        books.cost.book(books.role, received=size, under=books.label)
        books.depth = max(books.depth, came.ticket)
        self.link.consumed(size)
        try:
            message = decode(came.payload)
        except WireError as error:
            raise WireError(f"{books.role}: from {self.peer}: {error}") from error
        if books.view.recording.level > Level.COUNTS:
            books.view.receive(self.peer, message.tag, self.link.seen - 1, bytes(came.payload))
        else:
            books.view.receive(self.peer, message.tag, 0, came.payload)  # type: ignore[arg-type]
        if message.tag != tag:
            raise ProtocolError(
                f"{books.role}: expected {tag!r} from {self.peer}, came {message.tag[:80]!r}"
            )
        return tuple(message.arrays("arrays"))

    def _next(self, end: float) -> Came:
        """The next message; of a peer that is gone, those that came before."""
        books = self.books
        while True:
            try:
                left = 0.0 if self._gone else end - time.monotonic()
                came = self.link.reactor.get(self.inbox, left)
            except queue.Empty:
                if self._gone is not None:
                    raise PeerDropped(
                        f"{books.role}: {self.peer} is gone: {self._gone}"
                    ) from self._gone
                raise DeadlineExceeded(
                    f"{books.role}: nothing from {self.peer} within {books.deadline:g} s"
                ) from None
            if isinstance(came, Came):
                return came
            self._gone = came.error

    def exchange(self, tag: str, *arrays: Array) -> tuple[Array, ...]:
        """Send and receive under one tag: one round, both directions at once."""
        self.send(tag, *arrays)
        return self.recv(tag)

    def count_round(self) -> None:
        """Book a round under the current phase and layer."""
        self.books.cost.book(self.books.role, rounds=1, under=self.books.label)

    @contextmanager
    def during(self, phase: str | None = None, layer: str | None = None) -> Iterator[None]:
        """Book what this party sends, receives and computes inside under that phase and layer."""
        old = self.books.label
        self.books.relabel((phase or old[0], layer or old[1]))
        try:
            yield
        finally:
            self.books.relabel(old)


def run_party(  # noqa: PLR0913 - what a party's process needs, each by name
    party: Party[T],
    credentials: Credentials,
    addresses: Mapping[Role, Address | None],
    *,
    listening: socket.socket | None = None,
    about: bytes = b"",
    deadline: Seconds = 60.0,
    limits: Limits | None = None,
    first: Seconds = 60.0,
    shape: Shape | None = None,
    recording: Recording = COUNTS,
    note: Note = unheard,
) -> PartyRun[T]:
    """Run one party of a pair, or a feeder, in this process, to its end.

    Args:
        party: its function; it gets a channel to every other role of ``addresses``.
        credentials: this party's.
        addresses: where every party listens, this one too; None for one that only connects, to those that listen.
        listening: a socket that listens there already (see `listen`), for ports that the system chose.
        about: a digest of what all must have agreed on.
        deadline: seconds that the party waits for a message.
        limits: what peers may do.
        first: seconds in which all must be connected.
        shape: a network to imitate, at this side.
        recording: what to keep of its view.
        note: told of connections that are refused, lost and made again.

    Raises:
        ConfigError: the port is taken, or this party has no address.
        PeerDropped: a peer is gone, or was never there.
        Exception: whatever the party's function raises; the others learn that it ended.
    """
    keep_freed_memory()
    role, limits, note = credentials.role, limits or Limits(), Few(note)
    if role not in addresses:
        raise ConfigError(f"{role} has no address; those of {', '.join(map(str, addresses))} do")
    if unknown := [peer for peer in addresses if peer not in credentials.registry]:
        raise ConfigError(
            f"{unknown[0]} has no certificate in {credentials.folder / 'registry.pem'}"
        )
    inboxes: dict[Role, queue.SimpleQueue[Came | Gone]] = {
        peer: queue.SimpleQueue() for peer in sorted(addresses) if peer != role
    }
    here, ahead = addresses[role], _ahead(role, addresses)
    context = server_context(credentials)
    if listening is None and here is not None and len(ahead) < len(inboxes):
        listening = listen(here)
    reactor = Reactor(f"{role} links", devoted=shape is not None)
    books = _Books(role, deadline, View(role, recording))
    below = {
        peer: Link(
            peer, reactor, limits, inboxes[peer].put,
            ended=lambda link, error: link.give_up(error or PeerDropped(f"{link.peer} has ended")),
            shape=shape, eager=False, lasting=False,
        )
        for peer in inboxes if peer not in ahead
    }  # fmt: skip
    acceptor = None
    if listening is not None:

        def hello(sock: socket.socket, header: Header, payload: Payload) -> None:
            try:
                caller, said = admit(sock, header, payload, credentials, below, about)
                link = below[caller]
                there = link.resumed(said)
            except ProtocolError as error:
                note(f"a connection was refused: {error}")
                refuse(reactor, sock, error)
                return
            attach(link, reactor, sock, limits, there)

        acceptor = Acceptor(
            reactor, listening, context, limits, hello,
            lambda why: note(f"a connection was refused: {why}"),
        )  # fmt: skip
    above = {
        peer: Upstream(
            credentials, peer, there, about=about, limits=limits, first=first, shape=shape, note=note,
            reactor=reactor, deliver=inboxes[peer].put, eager=False, lasting=False,
        )
        for peer, there in ahead.items()
    }  # fmt: skip
    links = {**below, **{peer: upstream.link for peer, upstream in above.items()}}
    keep_beating(reactor, limits, lambda: list(links.values()))
    error: Exception | None = None
    try:
        _meet(links, first)
        _watch_patience(reactor, limits, below)
        channels: dict[Role, Channel] = {
            peer: LinkChannel(link, inboxes[peer], books) for peer, link in links.items()
        }
        books.since = time.thread_time()
        output = party(channels)
        books.relabel(books.label)
        for (
            link
        ) in links.values():  # or its connection would end under what the other side still needs
            link.delivered(deadline=limits.patience)
        return PartyRun(output, books.view, books.cost)
    except BaseException as raised:
        error = PeerDropped(f"it ended with {type(raised).__name__}")
        raise
    finally:
        for link in below.values():
            link.goodbye(error)
        for upstream in above.values():
            upstream.close(error)
        if acceptor is not None:
            acceptor.close()
        finish(reactor, list(links.values()))


def _ahead(role: Role, addresses: Mapping[Role, Address | None]) -> dict[Role, Address]:
    """Whom a party connects to; all others connect to it."""
    here, ahead = addresses[role], {}
    for peer, there in addresses.items():
        if there is None and here is None and peer != role:
            raise ConfigError(f"{role} and {peer} both have no address: one of the two must listen")
        if there is not None and peer != role and (here is None or peer < role):
            ahead[peer] = there
    return ahead


def _meet(links: Mapping[Role, Link], first: Seconds) -> None:
    """Wait until every link has had its connection."""
    end = time.monotonic() + first
    for peer, link in links.items():
        while not link.met:  # who was there may have left again
            if link.gone is not None:
                raise link.gone
            if link.reactor.error is not None:
                raise link.reactor.error
            if time.monotonic() > end:
                raise PeerDropped(f"{peer} did not connect within {first:g} s")
            time.sleep(0.002)


def _watch_patience(reactor: Reactor, limits: Limits, links: Mapping[Role, Link]) -> None:
    """Of a peer that is expected to connect and does not for too long, tell who waits for it."""

    def look() -> None:
        now = time.monotonic()
        for link in links.values():
            if link.pipe is None and now - link.since > limits.patience:
                link.give_up(PeerDropped(f"no connection for {limits.patience:g} s"))
        reactor.later(limits.patience / 4, look)

    reactor.later(limits.patience / 4, look)


@contextmanager
def channel_over(
    sock: socket.socket, role: Role, peer: Role, *, deadline: Seconds = 60.0
) -> Iterator[LinkChannel]:
    """A channel over one end of `socket.socketpair`, without TLS: for one machine alone.

    Raises:
        ConfigError: the socket reaches other machines.
    """
    if sock.family != socket.AF_UNIX:
        raise ConfigError(
            "a link without TLS is for socket pairs on one machine: use run_party with certificates"
        )
    keep_freed_memory()
    reactor, inbox = Reactor(f"{role} link"), queue.SimpleQueue[Came | Gone]()
    link = Link(
        peer, reactor, Limits(), inbox.put,
        lost=lambda link, why: link.give_up(why),
        ended=lambda link, error: link.give_up(error or PeerDropped(f"{peer} has ended")),
        eager=False,
    )  # fmt: skip

    def on_frame(header: Header, payload: Payload) -> None:
        link.on_frame(pipe, header, payload)

    pipe = Pipe(reactor, sock, link.limits.frame, on_frame, lambda why: link.on_end(pipe, why))
    link.attach(pipe, 0)
    error: Exception | None = None
    try:
        yield LinkChannel(link, inbox, _Books(role, deadline, View(role)))
        link.delivered(deadline=deadline)
    except BaseException as raised:
        error = PeerDropped(f"it ended with {type(raised).__name__}")
        raise
    finally:
        link.goodbye(error)
        finish(reactor, [link])
