"""The star between processes and machines: TLS 1.3, both sides with certificates of the federation's authority.

The coordinator listens, members connect. A member's role is that of its certificate; nothing that it says changes it. The
first words on a connection are the version of the link, a digest of what the parties agreed on, and, after a broken
connection, the session to go on with: see `tacit.parties.links.link`. One connection a role: another one is refused while
the first lives. A member that was restarted gets again what it has not answered.

A member that is without a connection for `Limits.patience` counts as gone until it is back; requests to it are answered by a
refusal that says so. Deadlines are those of the waves, on this machine's monotonic clock: nothing depends on the clocks of
two machines but the dates in certificates.

**Leaks**: to who watches the network, who talks to whom, when, and how much. **Cost**: `HEAD` bytes a frame, TLS's about 22
bytes in 16 kB, and the handshake's about 2.5 kB a connection; `CostMeter` counts the frames' payloads, as in one process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import tacit
from tacit.core.cost import CostMeter
from tacit.core.errors import (
    AuthenticationFailed,
    CheatingDetected,
    ConfigError,
    PeerDropped,
    ProtocolError,
    TacitError,
    TooFewParties,
    WireError,
)
from tacit.core.wire import Message, decode, encode, encode_view
from tacit.parties.credentials import (
    Credentials,
    client_context,
    explain,
    peer_key,
    peer_role,
    server_context,
)
from tacit.parties.durable import DurableMember
from tacit.parties.faults import Fault, Faults, Harm, Way
from tacit.parties.links.frames import SESSION, FrameReader, Header, Kind
from tacit.parties.links.link import (
    Came,
    Gone,
    Link,
    RoleTaken,
    Shape,
    error_in,
    keep_beating,
)
from tacit.parties.links.reactor import (
    Acceptor,
    Limits,
    Payload,
    Pipe,
    Reactor,
    close_softly,
    encode_refusal,
)
from tacit.parties.roles import SERVER, Role
from tacit.parties.star import Seconds, Ticket, refusal
from tacit.parties.views import COUNTS, Level, Recording, View

Address = tuple[str, int]
Note = Callable[[str], None]


def unheard(text: str) -> None:
    """Notes that nobody reads."""


@dataclass(slots=True)
class Few:
    """Passes on a few notes a second and counts the others: whoever connects must not fill a log."""

    note: Note
    each: int = 5
    _second: int = 0
    _said: int = 0

    def __call__(self, text: str) -> None:
        """Pass it on, or count it."""
        now = int(time.monotonic())
        if now != self._second:
            left, self._second, self._said = self._said - self.each, now, 0
            if left > 0:
                self.note(f"and {left} more of the same kind")
        self._said += 1
        if self._said <= self.each:
            self.note(text)


def listen(address: Address) -> socket.socket:
    """A socket that listens; port 0 for any that is free.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        sock.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({getattr(error, 'strerror', None) or error}): is another coordinator "
            "running? choose another port, or an address of this machine"
        ) from error
    return sock


@dataclass(slots=True)
class _Asked:
    """A request whose reply nobody has taken so far."""

    payload: Payload = field(repr=False)
    depth: int
    answered: bool = False  # the reply is there
    since: float = field(default_factory=time.monotonic)


class TcpHub:
    """The coordinator's side of a star whose members are other processes; a context manager.

    Args:
        credentials: the coordinator's.
        members: who is expected.
        address: to listen on; port 0 for any that is free.
        about: a digest of what all must have agreed on.
        limits: what members may do.
        recording: what to keep of the coordinator's view.
        shape: a network to imitate, at this side.
        faults: what goes wrong with requests.
        numbers: by role, how many answers a member is known to have kept: one that has fewer was restored from a backup.
        note: told of connections that were refused, and of members that come and go.

    Raises:
        ConfigError: the port is taken; a member has no certificate in the registry.

    Attributes:
        address: where it listens.
    """

    def __init__(  # noqa: PLR0913 - what a star over a network is, each by name
        self,
        credentials: Credentials,
        members: Sequence[Role],
        address: Address,
        *,
        about: bytes = b"",
        limits: Limits | None = None,
        recording: Recording = COUNTS,
        shape: Shape | None = None,
        faults: Sequence[Fault] = (),
        numbers: Mapping[Role, int] | None = None,
        note: Note = unheard,
    ) -> None:
        self._role = credentials.role
        if not members or self._role in members:
            raise ConfigError(
                "a star needs at least one member, none of them in the coordinator's role"
            )
        if unknown := [role for role in members if role not in credentials.registry]:
            raise ConfigError(
                f"{unknown[0]} has no certificate in {credentials.folder / 'registry.pem'}: have it enrolled, and get the "
                "new registry"
            )
        self._credentials = credentials
        self._members = sorted(members)
        self._about = about
        self._limits = limits or Limits()
        self._faults = Faults(tuple(faults))
        self._faults.check(members)
        self._note = few = Few(note)
        self._cost = CostMeter()
        self._view = View(self._role, recording)
        self._tickets = 0
        self._depth = dict.fromkeys((self._role, *self._members), 0)
        self._open: dict[Role, dict[int, _Asked]] = {role: {} for role in self._members}
        self._lock = threading.Lock()  # of _open, _gone and numbers
        self._gone: dict[Role, Exception] = {}
        self.numbers = dict.fromkeys(self._members, 0) | dict(numbers or {})
        self._inbox: queue.SimpleQueue[Came | Gone] = queue.SimpleQueue()
        self._arrived = threading.Condition()
        context = server_context(credentials)
        listening = listen(address)
        self.address: Address = listening.getsockname()[:2]
        self._reactor = Reactor(f"{self._role} links", devoted=shape is not None)
        self._links = {
            role: Link(
                role, self._reactor, self._limits, self._came, self._lost, self._ended, shape
            )
            for role in self._members
        }
        self._acceptor = Acceptor(
            self._reactor, listening, context, self._limits, self._hello,
            lambda why: few(f"a connection was refused: {why}"),
        )  # fmt: skip
        keep_beating(self._reactor, self._limits, lambda: list(self._links.values()))
        self._reactor.later(self._limits.patience / 4, self._look_around)

    # the star

    @property
    def coordinator(self) -> Role:
        """The role at the centre."""
        return self._role

    @property
    def cost(self) -> CostMeter:
        """What the conversation has cost so far; members' seconds are those that they report."""
        return self._cost

    @property
    def views(self) -> Mapping[Role, View]:
        """The coordinator's own view."""
        return {self._role: self._view}

    def members(self, kind: str | None = None) -> Sequence[Role]:
        """The members, or those of one kind, in ascending order."""
        return [role for role in self._members if kind is None or role.kind == kind]

    def wait(self, *, at_least: int | None = None, deadline: Seconds = 300.0) -> None:
        """Wait until members are connected.

        Args:
            at_least: how many; all when None.
            deadline: seconds.

        Raises:
            TooFewParties: fewer came in time; names who is missing.
        """
        needed = len(self._members) if at_least is None else at_least
        end = time.monotonic() + deadline
        with self._arrived:
            while True:
                there = [role for role in self._members if self._links[role].pipe is not None]
                if len(there) >= needed:
                    return
                left = end - time.monotonic()
                if left <= 0:
                    missing = {r: "not connected" for r in self._members if r not in there}
                    raise TooFewParties(needed, there, missing, wave="of connecting")
                self._arrived.wait(min(left, 1.0))
                self._check()

    def post(self, requests: Mapping[Role, Message]) -> Ticket:
        """Send each member its request and return at once. Replies to it will carry the ticket.

        Raises:
            ConfigError: a role that is not a member.
            WireError: a request that cannot be sent; then none was.
        """
        if strangers := [role for role in requests if role not in self._links]:
            raise ConfigError(
                f"no member is {strangers[0]}; members are {', '.join(map(str, self._members))}"
            )
        frames: dict[Role, Payload] = {}
        last: Message | None = None
        frame: Payload = b""
        for role, message in requests.items():
            if message is not last:  # a broadcast is encoded once
                frame, last = encode_view(message), message
            self._links[role].check(len(frame))
            frames[role] = frame
        ticket = Ticket(self._tickets)
        self._tickets += 1
        depth = self._depth[self._role] + 1
        self._cost.chain(depth)
        for role, frame in frames.items():
            if self._view.recording.level > Level.COUNTS:
                self._view.send(role, ticket, bytes(frame))
            fault = self._faults.meet(role, Way.REQUEST) if self._faults.script else None
            with self._lock:
                self._open[role][ticket] = _Asked(frame, depth)
                gone = self._gone.get(role)
                if gone is None:
                    self._links[role].post(frame, ticket=ticket, fault=fault)
            if gone is not None:
                self._inbox.put(Gone(role, gone, ticket))
        self._cost.book(self._role, messages=len(frames), sent=sum(map(len, frames.values())))
        return ticket

    def replies(self, *, deadline: Seconds) -> Iterator[tuple[Role, Ticket, Message]]:
        """Replies as they come, until ``deadline`` seconds are over or no request is open.

        Requests to a member that is gone are answered by a refusal that says so.
        """
        end = time.monotonic() + deadline
        while any(self._open.values()):
            try:
                came = self._reactor.get(self._inbox, min(end - time.monotonic(), 1.0))
            except queue.Empty:
                if time.monotonic() >= end:
                    return
                continue
            with self._lock:
                asked = self._open[came.peer].get(came.ticket)
                if asked is None or (isinstance(came, Gone) and asked.answered):
                    continue  # it was given up, or is answered all the same
                del self._open[came.peer][came.ticket]
            reply = refusal(came.error) if isinstance(came, Gone) else self._taken(came, asked)
            yield came.peer, Ticket(came.ticket), reply

    def _taken(self, came: Came, asked: _Asked) -> Message:
        """Book a reply and decode it."""
        role, size = came.peer, len(came.payload)
        depth = self._depth[role] = max(self._depth[role], asked.depth)
        self._cost.chain(depth + 1)
        self._depth[self._role] = max(self._depth[self._role], depth + 1)
        seconds = min(came.seconds, time.monotonic() - asked.since)  # its word, within reason
        self._cost.book(role, messages=1, sent=size, received=len(asked.payload), seconds=seconds)
        self._cost.book(self._role, received=size)
        try:
            message = decode(came.payload)
        except WireError as error:
            message = refusal(error)
        recorded = (
            bytes(came.payload) if self._view.recording.level > Level.COUNTS else came.payload
        )
        self._view.receive(role, message.tag, came.ticket, recorded)  # type: ignore[arg-type]
        return message

    def _check(self) -> None:
        if self._reactor.error is not None:
            raise self._reactor.error

    # connections; all of these run in the loop

    def _hello(self, sock: socket.socket, header: Header, payload: Payload) -> None:
        try:
            role, hello = admit(sock, header, payload, self._credentials, self._links, self._about)
            number, link = hello.integer("number", low=0, high=1 << 62), self._links[role]
            if number < self.numbers[role]:
                cheating = CheatingDetected(
                    f"{role} has the state of answer {number}, but gave {self.numbers[role]}: it was restored from a "
                    "backup, or lost. Enrol it anew, with a new key and certificate"
                )
                if link.pipe is None:
                    self._give_up(role, cheating)
                raise cheating
            with self._lock:
                there = link.resumed(hello)
                if not link.sent:
                    for ticket, asked in self._open[role].items():
                        if not asked.answered:
                            link.post(asked.payload, ticket=ticket)
        except ProtocolError as error:
            self._note(f"a connection was refused: {error}")
            refuse(self._reactor, sock, error)
            return
        attach(link, self._reactor, sock, self._limits, there)
        with self._lock:
            again = self._gone.pop(link.peer, None)
        self._note(f"{link.peer} is connected{' again' if again else ''}")
        with self._arrived:
            self._arrived.notify_all()

    def _came(self, came: Came | Gone) -> None:
        with self._lock:
            asked = self._open[came.peer].get(came.ticket)
            if asked is None or asked.answered:
                return  # or who sends what nobody asked for would fill the memory
            asked.answered = True
            if isinstance(came, Came):
                self.numbers[came.peer] = max(self.numbers[came.peer], came.number)
        self._links[came.peer].settle(came.ticket)
        self._inbox.put(came)

    def _lost(self, link: Link, why: Exception) -> None:
        if link.peer not in self._gone:
            self._note(f"{link.peer} lost its connection: {why}")

    def _ended(self, link: Link, error: Exception | None) -> None:
        self._give_up(link.peer, error or PeerDropped("it has left"))

    def _look_around(self) -> None:
        now, patience = time.monotonic(), self._limits.patience
        for role, link in self._links.items():
            if link.pipe is None and role not in self._gone and now - link.since > patience:
                self._give_up(role, PeerDropped(f"no connection for {patience:g} s"))
        self._reactor.later(patience / 4, self._look_around)

    def _give_up(self, role: Role, error: Exception) -> None:
        """Answer what is asked of a member by a refusal, until it is back."""
        # Who reads a refusal puts the role before it.
        said = type(error)(str(error).removeprefix(f"{role}: ").removeprefix(f"{role} "))
        with self._lock:
            self._gone[role] = said
            tickets = [t for t, asked in self._open[role].items() if not asked.answered]
        for ticket in tickets:
            self._inbox.put(Gone(role, said, ticket))

    # its end

    def close(self, error: Exception | None = None) -> None:
        """Say goodbye to all members, with the reason where there is one, and end."""
        for link in self._links.values():
            link.goodbye(error)
        self._acceptor.close()
        finish(self._reactor, list(self._links.values()))

    def __enter__(self) -> TcpHub:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(last_word(error))


def last_word(error: BaseException | None) -> Exception | None:
    """What others are told of the error that ended a party: of one that is not tacit's its name, which holds no secret."""
    if error is None or isinstance(error, TacitError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return PeerDropped("it was interrupted")
    return PeerDropped(f"it ended with {type(error).__name__}")


# --- what all who listen do with who connects; in the loop


def admit(
    sock: socket.socket,
    header: Header,
    payload: Payload,
    credentials: Credentials,
    expected: Collection[Role],
    about: bytes,
) -> tuple[Role, Message]:
    """Who connected, by its certificate, and its hello.

    Raises:
        AuthenticationFailed: it is none of those who are expected.
        ProtocolError: it speaks another version, or agreed on something else.
    """
    if header.kind is not Kind.HELLO or not isinstance(sock, ssl.SSLSocket):
        raise WireError("a first frame that is no hello")
    role = _role_of(sock, credentials)
    if role not in expected:
        raise AuthenticationFailed(f"{role} connected, which is not expected here")
    hello = decode(payload)
    if (version := hello.text("version")) != tacit.__version__:
        raise ProtocolError(
            f"{role} runs tacit {version[:20]!r}, {credentials.role} runs {tacit.__version__!r}: install the same"
        )
    if hello.blob("about") != about:
        raise ProtocolError(
            f"{role} agreed on something else than {credentials.role}: give all the same federation.toml"
        )
    return role, hello


def refuse(reactor: Reactor, sock: socket.socket, error: ProtocolError) -> None:
    """Tell who connected why not."""
    said = encode_refusal(error, final=not isinstance(error, RoleTaken))
    with contextlib.suppress(OSError):
        sock.send(Header(kind=Kind.REFUSE).packed(len(said)) + said)
    close_softly(reactor, sock)


def attach(link: Link, reactor: Reactor, sock: socket.socket, limits: Limits, there: int) -> None:
    """Welcome who connected, and go on with its link."""
    pipe = _piped(link, reactor, sock, limits)
    head = Header(kind=Kind.WELCOME, session=link.session, sequence=link.sent)
    pipe.send(head, encode(Message("welcome", received=link.received)))
    link.attach(pipe, there)


def _role_of(sock: ssl.SSLSocket, credentials: Credentials) -> Role:
    """Who is at the other end, by its certificate and the registry."""
    der = sock.getpeercert(binary_form=True)
    role = peer_role(der, credentials.federation)
    if peer_key(der) != credentials.registry.get(role):
        raise AuthenticationFailed(
            f"{role} showed a certificate that is not the one in the registry: it may have enrolled anew, and all need the "
            "new registry"
        )
    return role


def _piped(link: Link, reactor: Reactor, sock: socket.socket, limits: Limits) -> Pipe:
    def on_frame(header: Header, payload: Payload) -> None:
        link.on_frame(pipe, header, payload)

    pipe = Pipe(
        reactor, sock, limits.frame, on_frame=on_frame, on_end=lambda why: link.on_end(pipe, why)
    )
    return pipe


def finish(reactor: Reactor, links: Sequence[Link]) -> None:
    """Let last words leave, close all connections, end the thread."""
    end = time.monotonic() + 2.0
    while any(link.busy for link in links) and time.monotonic() < end:
        time.sleep(0.005)
    left = threading.Semaphore(0)
    for link in links:
        link.lost = lambda link, why: None
    pipes = [pipe for link in links if (pipe := link.pipe) is not None]
    for pipe in pipes:
        pipe.close(PeerDropped("this side has ended"), after=left.release)
    for _ in pipes:
        left.acquire(timeout=2.0)
    reactor.close()


# --- a member


class Upstream:
    """A party's connection to one that listens, made again when it breaks.

    Args:
        credentials: this party's.
        peer: who is expected to listen there.
        address: where.
        about: a digest of what all must have agreed on.
        number: tells how many answers this party has kept.
        limits: as for the hub; ``patience`` is also how long it tries to connect again.
        first: seconds that it tries to connect for the first time.
        shape: a network to imitate, at this side.
        note: told of connections that are lost and made again.
        reactor: whose loop moves its bytes; its own when None.
        deliver: told of what comes, and that the peer is gone; `inbox` gets it when None.
        eager: as for `Link`.
        lasting: as for `Link`.
    """

    def __init__(  # noqa: PLR0913 - what a connection is, each by name
        self,
        credentials: Credentials,
        peer: Role,
        address: Address,
        *,
        about: bytes = b"",
        number: Callable[[], int] = lambda: 0,
        limits: Limits | None = None,
        first: Seconds = 300.0,
        shape: Shape | None = None,
        note: Note = unheard,
        reactor: Reactor | None = None,
        deliver: Callable[[Came | Gone], None] | None = None,
        eager: bool = True,
        lasting: bool = True,
    ) -> None:
        if peer not in credentials.registry:
            raise ConfigError(f"{peer} has no certificate in {credentials.folder / 'registry.pem'}")
        self._credentials = credentials
        self._context = client_context(credentials)
        self._address = address
        self._about = about
        self._number = number
        self._limits = limits or Limits()
        self._first = first
        self._note = note
        self._own = reactor is None
        self._reactor = reactor or Reactor(f"{credentials.role} link", devoted=shape is not None)
        self.inbox: queue.SimpleQueue[Came | Gone] = queue.SimpleQueue()
        self._waiting = 0  # bytes of it
        self._down = threading.Event()
        self._over = threading.Event()
        self._changing = threading.Lock()  # of _over and the link's connection
        self.link = Link(
            peer, self._reactor, self._limits, deliver or self._take, self._lost, self._ended, shape, eager, lasting,
        )  # fmt: skip
        if self._own:
            keep_beating(self._reactor, self._limits, lambda: [self.link])
        self._thread = threading.Thread(
            target=self._keep, name=f"{credentials.role} connecting", daemon=True
        )
        self._thread.start()

    def _lost(self, link: Link, why: Exception) -> None:
        if not self._over.is_set():
            self._note(f"the connection to {link.peer} is lost: {why}")
        self._down.set()

    def _ended(self, link: Link, error: Exception | None) -> None:
        self._over.set()
        self._down.set()
        link.give_up(error or _Finished(f"{link.peer} has ended"))

    def _keep(self) -> None:
        """Connect, and again whenever the connection is lost, until that fails for too long."""
        link, host = self.link, "{}:{}".format(*self._address)
        since, patience, pause = time.monotonic(), self._first, _PAUSE
        while True:
            self._down.clear()
            if self._over.is_set():
                return None
            try:
                self._connect()
            except _Final as final:
                return link.give_up(final.error)
            except (OSError, ProtocolError, UnicodeError) as error:
                if time.monotonic() - since > patience or isinstance(error, UnicodeError):
                    why = explain(error) if isinstance(error, ssl.SSLError) else str(error)
                    said = f"{link.peer} at {host} could not be reached for {patience:g} s: {why}"
                    return link.give_up(PeerDropped(said))
                self._over.wait(pause)
                pause = min(1.0, 2 * pause)
                continue
            self._note(f"connected to {link.peer} at {host}")
            start, received = time.monotonic(), link.received
            self._down.wait()
            since, patience = time.monotonic(), self._limits.patience
            if link.received > received or since - start > 1.0:
                pause = _PAUSE
            else:  # it did not last, and the next may not either
                self._over.wait(pause)
                pause = min(1.0, 2 * pause)

    def _connect(self) -> None:
        """One try.

        Raises:
            OSError, ProtocolError: it failed, and may not the next time.
            _Final: it will fail again.
        """
        # Of a side that was the right one before, somebody on the way may have made another: try again.
        first = self.link.session == bytes(SESSION)
        sock: socket.socket = socket.create_connection(
            self._address, timeout=self._limits.handshake
        )
        try:
            sock.getpeername()  # of a connection that is gone, TLS would leave a socket open
            sock = tls = self._context.wrap_socket(sock)
            if (role := _role_of(tls, self._credentials)) != self.link.peer:
                raise AuthenticationFailed(f"{self.link.peer} was expected there, and it is {role}")
            there = self._introduce(tls)
            with self._changing:
                if self._over.is_set():
                    raise PeerDropped("this side has ended")
                self.link.attach(_piped(self.link, self._reactor, tls, self._limits), there)
        except BaseException as error:
            sock.close()
            if first and isinstance(error, AuthenticationFailed):
                raise _Final(error) from None
            if first and isinstance(error, ssl.SSLError) and _hopeless(error):
                raise _Final(AuthenticationFailed(explain(error))) from None
            raise

    def _introduce(self, sock: ssl.SSLSocket) -> int:
        """Say who this is and what it has; gives back up to which number the other side has this side's messages."""
        link = self.link
        hello = Message(
            "hello", version=tacit.__version__, about=self._about, session=link.session, received=link.received,
            number=self._number(),
        )  # fmt: skip
        payload = encode(hello)
        sock.sendall(Header(kind=Kind.HELLO).packed(len(payload)) + payload)
        reader = FrameReader(0)
        whole: list[tuple[Header, Payload]] = []
        while not whole:
            count = sock.recv_into(reader.space)
            if not count:
                raise PeerDropped("the connection was closed before it began")
            try:
                whole = reader.filled(count)
            except WireError as error:
                raise _Final(error) from error
        header, answer = whole[0]
        if header.kind is Kind.REFUSE:
            why = error_in(link.peer, answer) or ProtocolError(f"{link.peer} refused")
            if len(answer) and decode(answer).fields.get("final") is False:
                raise ProtocolError(str(why))
            raise _Final(why)
        if header.kind is not Kind.WELCOME:
            raise _Final(WireError(f"{link.peer} answered a hello by {header.kind.name}"))
        there = decode(answer).integer("received", low=0)
        if header.session != link.session:
            try:
                link.renew(header.session)
            except PeerDropped as error:
                raise _Final(error) from None
            there = 0
        return there

    def _take(self, came: Came | Gone) -> None:
        if isinstance(came, Came):
            with self.link.room:
                self._waiting += len(came.payload)
                if self._waiting > max(self._limits.window, self._limits.frame):
                    raise ProtocolError(f"{came.peer} asks for more than can be taken at once")
        self.inbox.put(came)

    def get(self) -> Came | Gone:
        """The next message, or the news that the other side is gone."""
        while True:
            try:
                came = self._reactor.get(self.inbox, 60.0)
            except queue.Empty:
                continue
            if isinstance(came, Came):
                with self.link.room:
                    self._waiting -= len(came.payload)
            return came

    def close(self, error: Exception | None = None) -> None:
        """Say goodbye, with the reason where there is one, and end."""
        with self._changing:
            self._over.set()
        self._down.set()
        self.link.goodbye(error)
        if self._own:
            finish(self._reactor, [self.link])
        self._thread.join(
            1.0
        )  # a connection that is being made may take longer, and is closed then


def _hopeless(error: ssl.SSLError) -> bool:
    """A handshake that failed for a certificate fails again."""
    return isinstance(error, ssl.SSLCertVerificationError) or any(
        part in (error.reason or "") for part in ("CERT", "UNKNOWN_CA")
    )


_PAUSE = 0.05  # seconds until the next try, at first


class _Final(Exception):
    """A connection that will be refused again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Finished(PeerDropped):
    """The other side said goodbye, and nothing else."""


def serve_member(  # noqa: PLR0913 - what a member's process needs, each by name
    member: DurableMember,
    credentials: Credentials,
    address: Address,
    *,
    coordinator: Role = SERVER,
    about: bytes = b"",
    limits: Limits | None = None,
    first: Seconds = 300.0,
    shape: Shape | None = None,
    faults: Sequence[Fault] = (),
    note: Note = unheard,
) -> Message | None:
    """A member's process: answer the coordinator until it says goodbye.

    Args:
        member: what answers.
        credentials: the member's.
        address: of the coordinator.
        coordinator: its role.
        about: a digest of what all must have agreed on.
        limits: ``patience`` is how long it tries to connect again.
        first: seconds that it tries to connect for the first time.
        shape: a network to imitate, at this side.
        faults: what goes wrong with this member, or its replies; DIE kills the process.
        note: told of connections that are lost and made again.

    Returns:
        The message with which the coordinator handed out what came of it, if one came.

    Raises:
        PeerDropped: the coordinator is gone.
        AuthenticationFailed: one side's certificate is not what it must be.
        CheatingDetected: this member was restored from a backup.
        OutputError: its state cannot be kept; nothing was answered.
        TacitError: the coordinator ended with that.
    """
    script = Faults(tuple(faults))
    script.check([credentials.role])
    upstream = Upstream(
        credentials, coordinator, address, about=about, number=lambda: member.number,
        limits=limits, first=first, shape=shape, note=note,
    )  # fmt: skip
    finished: Message | None = None
    try:
        while True:
            came = upstream.get()
            if isinstance(came, Gone):
                if isinstance(came.error, _Finished) or (
                    finished is not None and isinstance(came.error, PeerDropped)
                ):
                    upstream.close()
                    return finished
                raise came.error
            if script.script:
                _suffer(script.meet(credentials.role, Way.REQUEST))
            if came.session != upstream.link.session:
                continue  # the coordinator began anew, and will ask again what it wants to know
            start = time.perf_counter()
            request, answer = _answer(member, came.payload, upstream.link)
            seconds = time.perf_counter() - start
            finished = request if request.tag == "finished" else finished
            fault = script.meet(credentials.role, Way.REPLY) if script.script else None
            upstream.link.post(
                answer, ticket=came.ticket, number=member.number, seconds=seconds, fault=fault, session=came.session
            )  # fmt: skip
    except BaseException as error:
        upstream.close(last_word(error))
        raise


def _answer(member: DurableMember, payload: Payload, link: Link) -> tuple[Message, Payload]:
    """The request and the reply; what is no message, or makes none that can be sent, is answered by a refusal."""
    request = Message("unread")
    try:
        request = decode(payload)
        answer = encode_view(member.handle(request))
        link.check(len(answer))
    except WireError as error:
        answer = encode(refusal(error))
    return request, answer


def _suffer(fault: Fault | None) -> None:
    """A scripted fault of the party itself."""
    if fault is not None and fault.harm is Harm.DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault is not None and fault.harm is Harm.HANG:
        threading.Event().wait()
