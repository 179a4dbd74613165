"""One loop that moves the bytes of all of a party's connections, whatever the party does meanwhile.

It reads whatever comes, whoever waits for whom, so that two parties that send each other more than a socket holds never
block each other; it sends what a socket did not take at once; it shakes hands with who connects. No party's work runs in
it.

A thread of its own runs the loop, so that bytes move while the party computes. But a change of threads costs more than a
small message: so whoever sends tries the socket first, under the pipe's lock, and a party that waits for a message runs
the loop itself until it has come (`Reactor.get`), without sleeping for a moment where the last one came at once. The loop's
own thread takes over a few milliseconds after nobody does.

Who has not shown a certificate is given little: a limited number of connections at once, of which the oldest gives way, and
a limited time.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import os
import queue
import selectors
import signal
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from tacit.core.errors import AuthenticationFailed, PeerDropped, ProtocolError, WireError
from tacit.core.wire import MAX_FRAME, Message, encode
from tacit.parties.credentials import explain
from tacit.parties.links.frames import FrameReader, Header, Kind
from tacit.parties.star import Seconds, refusal

_TOGETHER = 1 << 14  # a payload up to this travels in one piece with its header
_TURN = 1 << 22  # bytes that one pipe may read before others have their turn
_FRAME = 1 << 12  # as many bytes' worth of the turn is each frame
_BUFFER = 1 << 22
_AHEAD = 1 << 16
_RECORD = 1 << 14  # what TLS gives at once at most
_REST = 0.02  # seconds: longer than most computations between two messages, since a change of threads costs both
_UNSENT = 0.002  # seconds: where bytes wait to be sent
_SPIN = 0.0003  # seconds
_SOON = 0.001  # seconds
_give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: None)
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_FULL = (errno.ENFILE, errno.EMFILE)

T = TypeVar("T")

Again = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a party grants its peers.

    Args:
        frame: the largest message, bytes.
        window: of a pair, bytes that may be under way and not yet received by the other party's function.
        heartbeat: seconds of silence after which a word is asked for.
        patience: seconds without any byte after which a connection is given up; and seconds without a connection after
            which a peer is gone.
        handshake: seconds in which who connects must have shown who it is.
        pending: connections of which that is not known yet; beyond, the oldest is closed.
    """

    frame: int = MAX_FRAME
    window: int = 1 << 28
    heartbeat: Seconds = 5.0
    patience: Seconds = 30.0
    handshake: Seconds = 10.0
    pending: int = 256


class Timed(NamedTuple):
    """Something to be done later."""

    at: float
    number: int
    do: Callable[[], None]


class Reactor:
    """The loop, its timers, and the sockets that it watches.

    Args:
        name: of its thread.
        devoted: its own thread alone runs it: timers are then exact while the party computes.
    """

    def __init__(self, name: str, *, devoted: bool = False) -> None:
        self._selector = selectors.DefaultSelector()
        self._tasks: deque[Callable[[], None]] = deque()
        self._timers: list[Timed] = []
        self._numbers = itertools.count()
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain)
        self._devoted = devoted
        self._lead = threading.Lock()  # who holds it runs the loop
        self._leader = 0
        self._wanted = False  # somebody waits, and would rather run it
        self._left = 0.0  # when somebody last did
        self._turns = 0  # how often somebody did
        self._waited = 1.0  # seconds, the last time
        self._stir = threading.Event()  # the thread may be needed
        self._ended = False
        self.error: Exception | None = None  # of a defect: whoever waits raises it
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, do: Callable[[], None]) -> None:
        """Have something done in the loop, soon."""
        self._tasks.append(do)
        if threading.get_ident() != self._leader:
            with contextlib.suppress(OSError):  # full: it will wake anyway; or it has ended
                self._wake.send(b"\0")
            if not self._lead.locked():
                self._stir.set()

    def later(self, delay: Seconds, do: Callable[[], None]) -> None:
        """Have something done in the loop, after ``delay`` seconds."""
        self.at(time.monotonic() + delay, do)

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Have something done in the loop, at that time of `time.monotonic`; what is for one time, in this order."""
        timed = Timed(when, next(self._numbers), do)
        self.call(lambda: heapq.heappush(self._timers, timed))

    def watch(self, sock: socket.socket, events: int, ready: Callable[[int], None]) -> None:
        """Watch a socket, from inside the loop; ``events`` of 0 no more."""
        try:
            known = self._selector.get_map().get(sock)
            if not events:
                if known is not None:
                    self._selector.unregister(sock)
            elif known is None:
                self._selector.register(sock, events, ready)
            elif known.events != events or known.data is not ready:
                self._selector.modify(sock, events, ready)
        except (ValueError, KeyError, OSError):  # closed meanwhile
            pass

    def get(self, inbox: queue.SimpleQueue[T], timeout: Seconds) -> T:
        """The next of what the loop puts into ``inbox``; the calling thread runs the loop while it waits, if nobody does.

        Raises:
            queue.Empty: nothing came in time.
            PeerDropped: this side has ended.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                return inbox.get_nowait()
            except queue.Empty:
                if self.error is not None:
                    raise self.error from None
                if self._ended:
                    raise PeerDropped("this side has ended its links") from None
                left = end - time.monotonic()
                if left <= 0:
                    raise
            if self._devoted or not self._lead.acquire(blocking=False):
                self._wanted = True
                try:
                    return inbox.get(timeout=min(left, 0.05))
                except queue.Empty:
                    continue
            start = time.monotonic()
            try:
                self._leader, self._turns = threading.get_ident(), self._turns + 1
                # To sleep and be woken may take longer than what is waited for, where that comes soon.
                if self._waited < _SOON and _CORES > 1:
                    spun = start + _SPIN
                    while inbox.empty() and time.monotonic() < spun and not self._ended:
                        self._once(0.0)
                        _give_way()  # to whom it waits for, perhaps
                while inbox.empty() and left > 0 and not self._ended and self.error is None:
                    self._once(left)
                    left = end - time.monotonic()
            finally:
                self._leader, self._left = 0, time.monotonic()
                self._waited = self._left - start
                self._lead.release()
                if self._tasks or self._left - start > _REST:
                    self._stir.set()

    def close(self) -> None:
        """End the loop, after all that it was told to do so far."""

        def end() -> None:
            self._ended = True

        self.call(end)
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    def _drain(self, events: int) -> None:
        del events
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _run(self) -> None:
        while not self._ended:
            with self._lead:
                self._leader = threading.get_ident()
                while not self._ended and not self._wanted:
                    self._once(None)
                self._leader, self._wanted = 0, self._devoted and self._wanted
            self._rest()
        with self._lead:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):  # nobody else will close it
                    key.fileobj.close()
            self._selector.close()
            self._wake.close()

    def _rest(self) -> None:
        """Wait until nobody else has run the loop for a while."""
        if self._devoted:
            self._wanted = False
            return
        turn = -1
        while not self._ended:
            self._stir.clear()
            # Who runs the loop for longer than a rest says when that ends; nobody needs to look meanwhile.
            long = self._lead.locked() and turn == self._turns
            turn = self._turns
            rest = _UNSENT if self._tasks else _REST
            self._stir.wait(1.0 if long else rest)
            if not self._lead.locked() and time.monotonic() - self._left > rest:
                return

    def _once(self, most: Seconds | None) -> None:
        timeout = most
        if self._tasks:
            timeout = 0.0
        elif self._timers:
            due = max(0.0, self._timers[0].at - time.monotonic())
            timeout = due if most is None else min(due, most)
        try:
            ready = self._selector.select(timeout)
            due_now = bool(self._timers) and self._timers[0].at <= time.monotonic()
            if ready or self._tasks or due_now:
                with Unbroken():
                    self._do(ready)
        except Exception as error:
            self.error = error

    def _do(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, events in ready:
            key.data(events)
        for _ in range(len(self._tasks)):
            self._tasks.popleft()()
        now = time.monotonic()
        while self._timers and self._timers[0].at <= now:
            heapq.heappop(self._timers).do()


class Unbroken:
    """Ctrl-C takes effect after what is done inside: half a frame would be taken for the beginning of the next.

    Of use in the main thread, which alone is interrupted; elsewhere it does nothing.
    """

    __slots__ = ("_before", "_came")

    def __enter__(self) -> None:
        self._before: Any = None
        self._came = False
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):
                self._before = before
                signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: object) -> None:
        del number, frame
        self._came = True

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            if self._came:
                self._before(signal.SIGINT, None)


Payload = bytes | memoryview
OnFrame = Callable[[Header, Payload], None]
OnEnd = Callable[[Exception], None]


@dataclass(slots=True, eq=False)
class Pipe:
    """One connection: frames in, frames out, over TLS or, on one machine, a plain socket pair.

    Args:
        reactor: whose loop moves its bytes.
        sock: connected; TLS has shaken hands.
        limit: the largest DATA frame that is taken.
        on_frame: told of each frame, in the loop; an error that it raises ends the pipe.
        on_end: told once, why the pipe ended, in the loop.
    """

    reactor: Reactor
    sock: socket.socket
    limit: int
    on_frame: OnFrame
    on_end: OnEnd
    heard: float = field(init=False)
    closed: bool = field(init=False, default=False)
    _out: deque[memoryview] = field(init=False, default_factory=deque)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _reader: FrameReader = field(init=False)
    _writing: bool = field(init=False, default=False)
    _again: bool = field(init=False, default=False)  # more is to be read when others had their turn

    def __post_init__(self) -> None:
        self.heard = time.monotonic()
        self._reader = FrameReader(self.limit, ahead=_AHEAD)
        self.sock.setblocking(False)
        with contextlib.suppress(OSError):  # of a connection that is gone already
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                self.sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            if self.sock.family in (socket.AF_INET, socket.AF_INET6):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Begin to read."""
        self.reactor.call(self._begin)

    @property
    def busy(self) -> bool:
        """Something has not left yet."""
        return self._writing and not self.closed

    def _begin(self) -> None:
        self._watch()
        self._read()  # TLS may hold bytes that the selector does not see

    def send(self, header: Header, payload: bytes | memoryview = b"") -> None:
        """Send a frame, or queue what the socket does not take; from any thread. A closed pipe drops it."""
        head = header.packed(len(payload))
        with Unbroken():
            self._send(head, payload)

    def _send(self, head: bytes, payload: bytes | memoryview) -> None:
        with self._lock:
            if self.closed:
                return
            if len(payload) <= _TOGETHER:
                self._out.append(memoryview(head + bytes(payload)))
            else:
                self._out.extend((memoryview(head), memoryview(payload)))
            if self._writing:
                return  # the thread is at it, and keeps the order
            self._flush()
            if not self._out:
                return
            self._writing = True
        self.reactor.call(self._watch)

    def send_bytes(self, raw: bytes) -> None:
        """Send what may be no frame: for scripted faults."""
        with self._lock:
            if not self.closed and not self._writing:
                self._out.append(memoryview(raw))
                self._flush()

    def spoil(self) -> None:
        """Put bytes on the wire below TLS that it must refuse: for scripted faults, what a flipped bit comes to."""
        with self._lock, contextlib.suppress(OSError):
            if not self.closed:
                os.write(self.sock.fileno(), b"\x17\x03\x03\x00\x40" + bytes(64))

    def close(self, why: Exception, *, after: Callable[[], None] | None = None) -> None:
        """End the pipe; from any thread. ``after`` is called in the loop when it has ended."""
        with self._lock:
            before, self.closed = self.closed, True
            self._out.clear()
        if before:
            if after is not None:
                self.reactor.call(after)
            return

        def end() -> None:
            self.reactor.watch(self.sock, 0, self._ready)
            with contextlib.suppress(OSError):
                self.sock.close()
            self.on_end(why)
            if after is not None:
                after()

        self.reactor.call(end)

    def _watch(self) -> None:
        if self.closed:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._writing else 0)
        self.reactor.watch(self.sock, events, self._ready)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            with self._lock:
                if not self.closed:
                    self._flush()
                self._writing = bool(self._out)
            if not self._writing:
                self._watch()
        if events & selectors.EVENT_READ and not self._again:
            self._read()

    def _flush(self) -> None:
        """Send what the socket takes; the lock is held."""
        out = self._out
        try:
            while out:
                count = self.sock.send(out[0])
                if count == len(out[0]):
                    out.popleft()
                else:
                    out[0] = out[0][count:]
        except Again:
            return
        except OSError:  # the thread will see it when it reads
            out.clear()

    def _read(self) -> None:
        budget, self._again = _TURN, False
        try:
            while budget > 0 and not self.closed:
                frames, count, more = self._received()
                budget -= count + _FRAME * len(frames)
                for header, payload in frames:
                    self.on_frame(header, payload)
                if not more:
                    return  # the selector will say when there is more
        except Again:
            return
        except ssl.SSLError as error:
            self.close(AuthenticationFailed(explain(error)))
        except OSError as error:
            self.close(PeerDropped(f"the connection broke ({error.strerror or error})"))
        except ProtocolError as error:
            self._refuse(error)
        except Exception as error:  # of whatever a peer sent: it ends this connection and no other
            self.close(ProtocolError(f"what came could not be taken ({type(error).__name__})"))
        else:
            if budget <= 0 and not self._again:
                self._again = True
                self.reactor.call(self._read)  # others first

    def _received(self) -> tuple[list[tuple[Header, Payload]], int, bool]:
        """What can be read at once, up to some frames: these, how many bytes, and whether there may be more.

        Raises:
            PeerDropped: the other side has closed.
            OSError, WireError: the connection broke, or what came is no frame.
        """
        reader, sock, total = self._reader, self.sock, 0
        frames: list[tuple[Header, Payload]] = []
        more = True
        with self._lock:
            while more and not frames and total < _TURN and not self.closed:
                try:
                    count = sock.recv_into(reader.space)
                except Again:
                    more = False
                    break
                if not count:
                    raise PeerDropped("the connection was closed")
                total += count
                frames = reader.filled(count)
                if count < _RECORD:  # TLS may hold bytes that the selector does not see
                    more = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        if total:
            self.heard = time.monotonic()
        return frames, total, more and not self.closed

    def _refuse(self, error: ProtocolError) -> None:
        if isinstance(error, WireError):
            self.send(Header(kind=Kind.REFUSE), encode_refusal(error))
        self.close(error)


def encode_refusal(error: Exception, *, final: bool = True) -> bytes:
    """The payload of a REFUSE or BYE frame; it fits into one, whatever the error's text."""
    said = refusal(error)
    text = str(error)[:500].encode(errors="replace").decode()
    return encode(Message(said.tag, **{**said.fields, "text": text}, final=final))


# --- who connects


@dataclass(slots=True, eq=False)
class _Caller:
    """A connection of which it is not known who it is."""

    sock: socket.socket
    since: float
    number: int  # file descriptor
    secure: bool = False
    over: bool = False
    reader: FrameReader = field(default_factory=lambda: FrameReader(0))


OnHello = Callable[[socket.socket, Header, Payload], None]


class Acceptor:
    """Takes connections, and hands on those that have shaken hands and said a first frame.

    Args:
        reactor: whose loop does it.
        listening: a bound socket that listens.
        context: TLS of the server's side.
        limits: how many at once, and how long.
        on_hello: told of a connection with its first frame, in the loop; the connection is its own from then on.
        on_refused: told of a connection that got no further, and why.
    """

    def __init__(
        self,
        reactor: Reactor,
        listening: socket.socket,
        context: ssl.SSLContext,
        limits: Limits,
        on_hello: OnHello,
        on_refused: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._listening = listening
        self._context = context
        self._limits = limits
        self._on_hello = on_hello
        self._on_refused = on_refused
        self._callers: dict[int, _Caller] = {}  # by file descriptor, oldest first
        self._softly = 0  # connections that are closed and may still read what was said last
        listening.setblocking(False)
        reactor.call(lambda: self._watch(True))
        reactor.later(limits.handshake / 4, self._sweep)

    def _watch(self, yes: bool) -> None:
        self._reactor.watch(self._listening, selectors.EVENT_READ if yes else 0, self._accept)

    def close(self) -> None:
        """Take no more."""

        def end() -> None:
            self._watch(False)
            self._listening.close()
            for caller in list(self._callers.values()):
                self._drop(caller, "")

        self._reactor.call(end)

    def _accept(self, events: int) -> None:
        del events
        for _ in range(64):
            try:
                sock, _ = self._listening.accept()
            except Again:
                return
            except OSError as error:
                if error.errno not in _FULL:
                    return  # this connection's own failure
                if self._callers:
                    self._drop(next(iter(self._callers.values())), "too many connections")
                    continue
                # It would be told of the one that waits again and again: look later.
                self._watch(False)
                self._reactor.later(0.1, lambda: self._watch(True))
                return
            sock.setblocking(False)
            while len(self._callers) >= self._limits.pending:
                self._drop(next(iter(self._callers.values())), "too many connections")
            caller = _Caller(sock, time.monotonic(), sock.fileno())
            self._callers[caller.number] = caller
            # Memory for TLS is taken when the first byte comes, not before.
            self._reactor.watch(sock, selectors.EVENT_READ, lambda _, c=caller: self._step(c))  # type: ignore[misc]

    def _step(self, caller: _Caller) -> None:
        if caller.over:  # dropped since the selector looked
            return
        try:
            if not isinstance(caller.sock, ssl.SSLSocket):
                plain = caller.sock
                self._reactor.watch(plain, 0, lambda _: None)
                plain.getpeername()  # of a connection that is gone, TLS would leave a socket open
                caller.sock = self._context.wrap_socket(
                    plain, server_side=True, do_handshake_on_connect=False
                )
            tls = caller.sock
            if not caller.secure and isinstance(tls, ssl.SSLSocket):
                tls.do_handshake()
                caller.secure = True
            while True:
                count = tls.recv_into(caller.reader.space)
                if not count:
                    raise PeerDropped("closed before it said who it is")
                if whole := caller.reader.filled(count):
                    break
        except ssl.SSLWantWriteError:
            self._wait(caller, selectors.EVENT_WRITE)
        except Again:
            self._wait(caller, selectors.EVENT_READ)
        except ssl.SSLError as error:  # TLS has told the other side
            self._drop(caller, explain(error), softly=True)
        except WireError as error:
            with contextlib.suppress(OSError):
                payload = encode_refusal(error)
                caller.sock.send(Header(kind=Kind.REFUSE).packed(len(payload)) + payload)
            self._drop(caller, str(error), softly=True)
        except (OSError, ProtocolError) as error:
            self._drop(caller, str(error))
        else:
            self._forget(caller)
            self._on_hello(caller.sock, *whole[0])

    def _wait(self, caller: _Caller, events: int) -> None:
        self._reactor.watch(caller.sock, events, lambda _: self._step(caller))

    def _forget(self, caller: _Caller) -> None:
        caller.over = True
        self._reactor.watch(caller.sock, 0, lambda _: None)
        self._callers.pop(caller.number, None)

    def _drop(self, caller: _Caller, why: str, *, softly: bool = False) -> None:
        """Close a connection; ``softly`` where something was said last, and not too many are closed so."""
        self._forget(caller)
        if softly and self._softly < self._limits.pending:
            self._softly += 1
            close_softly(self._reactor, caller.sock, self._softened)
        else:
            with contextlib.suppress(OSError):
                caller.sock.close()
        if why:
            self._on_refused(why)

    def _softened(self) -> None:
        self._softly -= 1

    def _sweep(self) -> None:
        oldest = time.monotonic() - self._limits.handshake
        for caller in [c for c in self._callers.values() if c.since < oldest]:
            self._drop(caller, f"it did not say who it is within {self._limits.handshake:g} s")
        self._reactor.later(self._limits.handshake / 4, self._sweep)


def close_softly(
    reactor: Reactor, sock: socket.socket, done: Callable[[], None] = lambda: None
) -> None:
    """Close a connection whose other side shall still read what was sent last; in the loop. Then call ``done``.

    Bytes that nobody reads would make the system reset the connection, and the last words be lost.
    """
    try:
        raw = socket.socket(fileno=sock.detach())
    except (OSError, ValueError):  # it is closed already
        return done()
    over = False

    def end() -> None:
        nonlocal over
        if not over:
            over = True
            reactor.watch(raw, 0, drain)
            raw.close()
            done()

    def drain(events: int) -> None:
        del events
        try:
            for _ in range(64):  # who goes on and on has no more patience coming
                if not raw.recv(65536):
                    break
        except Again:
            return
        except OSError:
            pass
        end()

    try:
        raw.setblocking(False)
        raw.shutdown(socket.SHUT_WR)
    except OSError:
        return end()
    reactor.watch(raw, selectors.EVENT_READ, drain)
    reactor.later(0.5, end)
    return None
