"""A link: what two parties have between them, through one connection after another.

What was sent is kept until the other side has seen it. After a reconnection each says what it has, and the rest is sent
again; a number that came before is dropped; a number that is missing ends the connection, so that it comes again on the
next. So a message arrives once and in order, or the link ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, PeerDropped, ProtocolError, WireError
from tacit.core.wire import Message, decode
from tacit.parties.faults import Fault, Harm
from tacit.parties.links.frames import SESSION, Header, Kind
from tacit.parties.links.reactor import Limits, Payload, Pipe, Reactor, encode_refusal
from tacit.parties.roles import Role
from tacit.parties.star import Seconds, as_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A network to measure on: what it adds to each message, at the sender.

    Args:
        delay: seconds that a message takes one way.
        bandwidth: bytes a second in one direction of a link; 0 for no limit.
    """

    delay: Seconds = 0.0
    bandwidth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay < 60 or not 0 <= self.bandwidth < 1e15:
            raise ConfigError(
                f"a delay from 0, below 60 s, and a bandwidth from 0 expected, got {self.delay} and {self.bandwidth}"
            )


LAN = Shape(delay=0.0001, bandwidth=1.25e9 / 10)
"""A gigabit network in one building: 0.1 ms one way."""
WAN = Shape(delay=0.04, bandwidth=1.25e7)
"""Between continents: 40 ms one way, 100 megabits a second."""


@dataclass(frozen=True, slots=True)
class Came:
    """A message that came over a link, in that session."""

    peer: Role
    ticket: int
    payload: Payload = field(repr=False)
    number: int = 0
    seconds: float = 0.0
    session: bytes = bytes(SESSION)


@dataclass(frozen=True, slots=True)
class Gone:
    """A peer that will not come back, or said goodbye; of a star, one for each request that it leaves open."""

    peer: Role
    error: Exception
    ticket: int = 0


_REFUSALS = 5  # in a row, of what is sent again each time


class RoleTaken(ProtocolError):
    """The role has a connection: it may be a dead one, so that trying again may help."""


@dataclass(slots=True, eq=False)
class Link:
    """One side of a link.

    Args:
        peer: who is at the other end.
        reactor: whose loop moves its bytes.
        limits: what the peer may do.
        deliver: told of each message, in order, in the loop.
        lost: told that the connection is gone, and why, in the loop.
        ended: told of the peer's goodbye, with its error if it had one, in the loop.
        shape: a network to imitate.
        eager: what came counts as seen at once; else when `consumed` says so.
        lasting: the peer may begin another session, after a restart for instance.
    """

    peer: Role
    reactor: Reactor
    limits: Limits
    deliver: Callable[[Came | Gone], None]
    lost: Callable[[Link, Exception], None] = field(default=lambda link, why: None)
    ended: Callable[[Link, Exception | None], None] = field(default=lambda link, why: None)
    shape: Shape | None = None
    eager: bool = True
    lasting: bool = True
    coins: Coins = field(default_factory=Coins, repr=False)
    session: bytes = bytes(SESSION)
    pipe: Pipe | None = field(init=False, default=None)
    since: float = field(init=False, default_factory=time.monotonic)  # of the last change of pipe
    sent: int = field(init=False, default=0)
    received: int = field(init=False, default=0)
    seen: int = field(init=False, default=0)
    unseen: int = field(init=False, default=0)  # bytes of the outbox
    arrived: int = field(
        init=False, default=0
    )  # the highest number that the peer is known to have received
    met: bool = field(init=False, default=False)  # there was a connection
    over: bool = field(init=False, default=False)  # the peer said goodbye
    gone: Exception | None = field(init=False, default=None)  # it will not come back, and why
    room: threading.Condition = field(init=False, default_factory=threading.Condition)
    _outbox: deque[tuple[Header, Payload]] = field(init=False, default_factory=deque, repr=False)
    _quiet: int = field(init=False, default=0)  # bytes taken of which the peer was not told
    _free_at: float = field(init=False, default=0.0)
    _held: tuple[Header, Payload] | None = field(init=False, default=None, repr=False)
    _left: bool = field(init=False, default=False)  # this side said goodbye
    _late: int = field(init=False, default=0)  # frames that the shape holds back
    _refused: int = field(init=False, default=0)  # refusals since something last arrived

    def renew(self, session: bytes) -> None:
        """Begin another session: nothing of the last one is sent again or taken.

        Raises:
            PeerDropped: there was one, and the link is not `lasting`.
        """
        with self.room:
            if not self.lasting and self.session != bytes(SESSION):
                raise PeerDropped(
                    f"{self.peer} has begun anew in the middle of a conversation: start all parties again"
                )
            self.session = session
            self.sent = self.received = self.seen = self.unseen = self.arrived = 0
            self.over = False
            self._outbox.clear()
            self._held = None

    def resumed(self, hello: Message) -> int:
        """Go on with the session of a hello, or begin a new one; gives back up to which number the peer has messages.

        Raises:
            RoleTaken: the peer has a connection, and this is another process's.
            PeerDropped: it would be a new one, and the link is not `lasting`.
            WireError: the hello is malformed.
        """
        session = hello.blob("session", length=SESSION)
        if session == self.session and session != bytes(SESSION):
            return hello.integer("received", low=0, high=self.sent)
        if self.pipe is not None:
            raise RoleTaken(
                f"{self.peer} is connected already: one connection a role; is it running twice?"
            )
        self.renew(self.coins.bytes(SESSION))
        return 0

    def post(
        self,
        payload: Payload,
        *,
        ticket: int,
        number: int = 0,
        seconds: float = 0.0,
        fault: Fault | None = None,
        session: bytes | None = None,
    ) -> None:
        """Send a message, now or when there is a connection; from any thread.

        Args:
            payload: the message; it is kept until it has arrived.
            ticket: see `Header`, as for ``number`` and ``seconds``.
            number: answers kept.
            seconds: of work.
            fault: what goes wrong with it.
            session: that it belongs to, None for any: if there is another, it is dropped.

        Raises:
            WireError: it is larger than a message may be.
        """
        self.check(len(payload))
        with self.room:
            if session is not None and session != self.session:
                return
            self.sent += 1
            header = Header(
                kind=Kind.DATA, session=self.session, sequence=self.sent, seen=self.seen, ticket=ticket, number=number,
                seconds=seconds,
            )  # fmt: skip
            self._outbox.append((header, payload))
            self.unseen += len(payload)
            if fault is not None:
                self._tamper(header, payload, fault)
            else:
                self._transmit(header, payload)
                if self._held is not None:
                    (held, body), self._held = self._held, None
                    self._transmit(held, body)

    def check(self, size: int) -> None:
        """Raise unless a message of ``size`` bytes may be sent.

        Raises:
            WireError: it is larger than a message may be.
        """
        if size > self.limits.frame:
            raise WireError(
                f"a message of {size} bytes to {self.peer}; at most {self.limits.frame} are taken: send less at once, or "
                "raise the limit at all parties"
            )

    def _transmit(self, header: Header, payload: Payload) -> None:
        pipe = self.pipe
        if pipe is None:
            return
        if self.shape is None:
            pipe.send(header, payload)
            return
        shape = self.shape
        takes = len(payload) / shape.bandwidth if shape.bandwidth else 0.0
        self._free_at = max(time.monotonic(), self._free_at) + takes
        self._late += 1

        def send() -> None:
            with self.room:
                self._late -= 1
            pipe.send(header, payload)

        self.reactor.at(self._free_at + shape.delay, send)

    @property
    def busy(self) -> bool:
        """Something has not left yet."""
        pipe = self.pipe
        return pipe is not None and not pipe.closed and (pipe.busy or self._late > 0)

    def _tamper(self, header: Header, payload: Payload, fault: Fault) -> None:
        """What a scripted fault makes of a message; the outbox still holds the true one."""
        pipe, harm = self.pipe, fault.harm
        if pipe is None or harm is Harm.DROP:
            return
        head = header.packed(len(payload))
        if harm is Harm.DOUBLE:
            self._transmit(header, payload)
            self._transmit(header, payload)
        elif harm is Harm.REORDER:
            self._held = header, payload
        elif harm is Harm.REPLAY:
            self._transmit(replace(header, session=b"\xff" * SESSION), payload)
        elif harm is Harm.WRONG_VERSION:
            pipe.send_bytes(head[:4] + bytes([head[4] + 1]) + head[5:] + bytes(payload))
        elif harm is Harm.OVERSIZE:
            pipe.send_bytes(header.packed(self.limits.frame + 1) + bytes(payload))
        elif harm is Harm.FLIP:
            pipe.spoil()
        elif harm is Harm.CUT:
            pipe.send_bytes(head + bytes(payload[: len(payload) // 2]))
            pipe.close(PeerDropped("the connection was cut, as scripted"))
        elif harm is Harm.DELAY:
            self.reactor.later(fault.seconds, lambda: pipe.send(header, payload))
        else:
            raise ConfigError(f"{harm.name} cannot be scripted on a link between processes")

    def delivered(self, *, deadline: Seconds) -> bool:
        """Wait until all that was sent has arrived, or the other side has ended."""
        end = time.monotonic() + deadline
        with self.room:
            while self.arrived < self.sent and not self.over and self.gone is None:
                self.word(Kind.PING)
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self.room.wait(min(1.0, left))
        return True

    def consumed(self, size: int) -> None:
        """One more of the messages that came was taken by who wanted it; says so when that is much."""
        with self.room:
            self.seen += 1
            self._quiet += size
            if self._quiet > self.limits.window // 8 or self.seen % 64 == 0:
                self._quiet = 0
                self.word(Kind.PONG)

    def attach(self, pipe: Pipe, there: int) -> None:
        """Go on over a new connection, whose other side has received the numbers up to ``there``."""
        with self.room:
            old, self.pipe, self.since = self.pipe, pipe, time.monotonic()
            self.met, self._held = True, None
            for header, payload in self._outbox:
                if header.sequence > there:
                    self._transmit(replace(header, seen=self.seen), payload)
        pipe.start()
        if old is not None:
            old.close(PeerDropped("another connection took its place"))

    def on_frame(self, pipe: Pipe, header: Header, payload: Payload) -> None:
        """Take a frame, in the loop.

        Raises:
            ProtocolError: it is of another session, or one before it is missing: the connection ends, the next brings it.
        """
        if pipe is not self.pipe:
            return
        if header.kind is Kind.BYE:
            with self.room:
                self.over = True
                self.room.notify_all()
            self.ended(self, error_in(self.peer, payload))
            return
        if header.kind is Kind.REFUSE:
            error = error_in(self.peer, payload) or ProtocolError(f"{self.peer} refused")
            self._refused += 1
            if self._refused == _REFUSALS:  # sending the same again will not help
                self.ended(self, error)
            raise error if isinstance(error, ProtocolError) else ProtocolError(str(error))
        if header.session != self.session:
            raise ProtocolError(f"{self.peer} sent a frame of another session")
        self._trim(header.seen)
        if header.kind is Kind.DATA:
            self._take(header, payload)
        elif header.kind in (Kind.PING, Kind.PONG):
            if header.sequence > self.received:
                raise ProtocolError(
                    f"message {self.received + 1} from {self.peer} was lost on its way"
                )
            with self.room:
                self.arrived = max(self.arrived, header.ticket)
                self.room.notify_all()
            # Answers to who reads nothing would fill the memory.
            if header.kind is Kind.PING and not pipe.busy:
                self.word(Kind.PONG)
        else:
            raise WireError(f"{self.peer} sent {header.kind.name} in the middle of a session")

    def _take(self, header: Header, payload: Payload) -> None:
        with self.room:
            if header.sequence <= self.received:
                return  # it came before
            if header.sequence > self.received + 1:
                raise ProtocolError(
                    f"message {self.received + 1} from {self.peer} was lost on its way"
                )
            self.received += 1
            if self.eager:
                self.seen = self.received
        self.deliver(
            Came(self.peer, header.ticket, payload, header.number, header.seconds, header.session)
        )

    def _trim(self, seen: int) -> None:
        with self.room:
            if seen > self.sent:
                raise ProtocolError(f"{self.peer} has seen messages that were never sent")
            while self._outbox and self._outbox[0][0].sequence <= seen:
                _, payload = self._outbox.popleft()
                self.unseen -= len(payload)
                self._refused = 0
            self.room.notify_all()

    def settle(self, ticket: int) -> None:
        """A reply stands for having seen what it answers, and all before that."""
        with self.room:
            places = [n for n, (header, _) in enumerate(self._outbox) if header.ticket == ticket]
            for _ in range(places[-1] + 1 if places else 0):
                _, payload = self._outbox.popleft()
                self.unseen -= len(payload)

    def word(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame that is no message; nothing after the goodbye."""
        with self.room:
            if self._left:
                return
            self._left = kind is Kind.BYE
            header = Header(
                kind=kind, session=self.session, sequence=self.sent, seen=self.seen, ticket=self.received
            )  # fmt: skip
            self._transmit(header, payload)  # it must not overtake a message

    def on_end(self, pipe: Pipe, why: Exception) -> None:
        """The connection is gone, in the loop."""
        if pipe is not self.pipe:
            return
        self.pipe, self.since = None, time.monotonic()
        self.lost(self, why)

    def beat(self) -> None:
        """Ask for a word after a silence, and give the connection up after a long one; in the loop."""
        pipe = self.pipe
        if pipe is None:
            return
        silent = time.monotonic() - pipe.heard
        if silent > self.limits.patience:
            pipe.close(PeerDropped(f"not a byte from {self.peer} for {silent:.0f} s"))
        elif silent > self.limits.heartbeat:
            self.word(Kind.PING)

    def give_up(self, error: Exception) -> None:
        """The peer will not come back: tell who waits for it, once."""
        with self.room:
            if self.gone is not None:
                return
            self.gone = error
            self.room.notify_all()
        self.deliver(Gone(self.peer, error))

    def goodbye(self, error: Exception | None = None) -> None:
        """Say that this side ends, and why."""
        self.word(Kind.BYE, encode_refusal(error) if error is not None else b"")


def error_in(peer: Role, payload: Payload) -> Exception | None:
    """The error that a goodbye or a refusal carries."""
    return as_error(peer, decode(payload)) if len(payload) else None


def keep_beating(reactor: Reactor, limits: Limits, links: Callable[[], Sequence[Link]]) -> None:
    """Have the links' connections looked after for as long as the reactor runs."""

    def beat() -> None:
        for link in links():
            link.beat()
        reactor.later(limits.heartbeat / 2, beat)

    reactor.later(limits.heartbeat / 2, beat)
