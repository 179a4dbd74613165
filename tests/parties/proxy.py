"""What tests of links over TCP have in common: members in threads, and a proxy that harms what it passes on."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tacit
from tacit.core.errors import Diverged
from tacit.core.wire import MAX_FRAME, Message, decode, encode
from tacit.parties.credentials import Credentials, client_context
from tacit.parties.durable import DurableMember
from tacit.parties.links.frames import FrameReader, Header, Kind
from tacit.parties.links.reactor import Limits
from tacit.parties.links.tcp import TcpHub, listen, serve_member
from tacit.parties.links.tcp_pair import PartyRun, run_party
from tacit.parties.pair import Party
from tacit.parties.roles import Role
from tacit.parties.star import as_error, ask

HOST = "127.0.0.1"
SERVER = Role("server")
QUICK = Limits(heartbeat=0.2, patience=1.0, handshake=1.0)


class Adder:
    """Adds up what it is sent, and remembers each request that it handled."""

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.handled: list[int] = []

    def handle(self, request: Message) -> Message:
        if request.tag == "fail":
            raise Diverged("the loss is not finite")
        if request.tag == "break":
            raise ZeroDivisionError
        if request.tag == "sleep":
            time.sleep(request.integer("milliseconds", low=0) / 1000)
            return Message("slept")
        if request.tag == "finished":
            return Message("heard")
        if request.tag == "odd":
            return Message("odd", value=object())
        add = request.integer("add", low=0)
        self.handled.append(add)
        self.total += add
        data = np.zeros(0, np.uint8)
        if "data" in request.fields:
            data = np.asarray(request.array("data"), np.uint8) + np.uint8(1)
        return Message("total", total=self.total, data=data)

    def export(self) -> bytes:
        return encode(Message("state", total=self.total))

    def restore(self, state: bytes) -> None:
        self.total = decode(state).integer("total")


def add(amount: int, size: int = 0) -> Message:
    return Message("add", add=amount, data=np.full(size, amount % 200, np.uint8))


def wave(hub: Any, amount: int, size: int = 0, **options: Any) -> dict[Role, int]:
    """One wave to all members: their totals, after a look at what else came back."""
    replies = ask(hub, dict.fromkeys(hub.members(), add(amount, size)), **options)
    for reply in replies.values():
        data = reply.array("data", dtype="u1", shape=(size,))
        assert (np.asarray(data) == amount % 200 + 1).all()
    return {role: reply.integer("total") for role, reply in replies.items()}


def until(done: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until something holds; whether it does."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


class Running:
    """A function in a thread, with what came of it."""

    def __init__(self, run: Callable[[], Any], name: str = "running") -> None:
        self.output: Any = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        self._run = run
        self.thread = threading.Thread(target=self._live, name=name, daemon=True)
        self.thread.start()

    def _live(self) -> None:
        start = time.monotonic()
        try:
            self.output = self._run()
        except BaseException as error:
            self.error = error
        self.seconds = time.monotonic() - start

    @property
    def ended(self) -> bool:
        return not self.thread.is_alive()

    def join(self, seconds: float = 8.0) -> BaseException | None:
        """The error that it ended with, None where it ended well."""
        self.thread.join(seconds)
        assert self.ended, f"{self.thread.name} does not end"
        return self.error

    def result(self, seconds: float = 20.0) -> Any:
        if error := self.join(seconds):
            raise error
        return self.output


def serving(
    member: Any, credentials: Credentials, address: tuple[str, int], **options: Any
) -> Running:
    """A member that serves in a thread."""
    durable = member if isinstance(member, DurableMember) else DurableMember(member)
    options = {"limits": QUICK, "first": 5.0, **options}
    return Running(
        lambda: serve_member(durable, credentials, address, **options),
        name=f"{credentials.role} serves",
    )


@dataclass
class Star:
    """A hub, and its members in threads."""

    hub: TcpHub
    members: Mapping[Role, Adder]
    running: dict[Role, Running]
    notes: list[str] = field(default_factory=list)

    def join(self) -> dict[Role, BaseException | None]:
        return {role: one.join() for role, one in self.running.items()}


@contextmanager
def star(
    parties: Callable[[Role], Credentials],
    roles: Sequence[Role],
    *,
    server: Role = SERVER,
    through: Callable[[tuple[str, int]], tuple[str, int]] = lambda address: address,
    members: Mapping[Role, Any] | None = None,
    of_members: Mapping[str, Any] | None = None,
    faults_at: Mapping[Role, Sequence[Any]] | None = None,
    only: Sequence[Role] | None = None,
    wait: bool = True,
    **options: Any,
) -> Iterator[Star]:
    """A star on loopback; ``through`` gives the address that members connect to, ``only`` those who do."""
    notes: list[str] = []
    options = {"limits": QUICK, "note": notes.append, **options}
    crew = dict(members or {role: Adder() for role in roles})
    with TcpHub(parties(server), roles, (HOST, 0), **options) as hub:
        address = through(hub.address)
        running = {
            role: serving(
                crew[role], parties(role), address,
                **{"coordinator": server, "faults": (faults_at or {}).get(role, ()), **(of_members or {})},
            )
            for role in (roles if only is None else only)
        }  # fmt: skip
        if wait:
            hub.wait(deadline=10.0)
        one = Star(hub, crew, running, notes)
        yield one
    one.join()


# --- a proxy


@dataclass(frozen=True)
class Harm:
    """What befalls one connection.

    Args:
        kind: of pass, cut, reset, flip, swallow, drip, delay, double, half, fill.
        at: the byte from which on, of that way.
        way: "up" to who listens, "down" to who connected.
        seconds: of a delay, and between the bytes of a drip.
        count: bytes that come twice, that drip, or that are put in.
    """

    kind: str = "pass"
    at: int = 0
    way: str = "up"
    seconds: float = 0.0
    count: int = 1


PASS = Harm()


class Proxy:
    """Passes bytes on between who connects and an address, each connection with its own harm.

    Args:
        target: the address.
        harms: of the first connections; later ones are passed on as they are.
    """

    def __init__(self, target: tuple[str, int], *harms: Harm, later: Harm = PASS) -> None:
        self.target = target
        self._harms = list(harms)
        self._later = later
        self.passed: list[dict[str, int]] = []  # bytes by way, of each connection
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._listening = socket.create_server((HOST, 0), backlog=128)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                here, _ = self._listening.accept()
            except OSError:
                return
            try:
                there = socket.create_connection(self.target, timeout=5)
            except OSError:
                here.close()
                continue
            there.settimeout(None)
            for sock in (here, there):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = len(self.passed)
            harm = self._harms[number] if number < len(self._harms) else self._later
            self.passed.append({"up": 0, "down": 0})
            self._socks += [here, there]
            for way, source, sink in (("up", here, there), ("down", there, here)):
                mine = harm if harm.way in (way, "both") else PASS
                self._start(self._pump, source, sink, way, mine, number)

    def _pump(
        self, source: socket.socket, sink: socket.socket, way: str, harm: Harm, number: int
    ) -> None:
        count = 0
        try:
            while data := source.recv(65536):
                start, count = count, count + len(data)
                self.passed[number][way] = count
                if harm.kind == "delay":
                    self._over.wait(harm.seconds)
                if harm.kind == "pass" or harm.kind == "delay" or count <= harm.at:
                    sink.sendall(data)
                    continue
                before = max(0, harm.at - start)
                if not self._do(harm, sink, source, data[:before], data[before:], start <= harm.at):
                    return
        except OSError:
            pass
        finally:
            for sock, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
                with contextlib.suppress(OSError):
                    sock.shutdown(how)

    def _do(
        self, harm: Harm, sink: socket.socket, source: socket.socket, before: bytes, after: bytes, first: bool
    ) -> bool:  # fmt: skip
        """Harm a piece; False where nothing more is passed on that way."""
        if before:
            sink.sendall(before)
        if harm.kind in ("cut", "reset"):
            for sock in (sink, source):
                if harm.kind == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.shutdown(socket.SHUT_RD)  # the other way's thread may be reading
                    time.sleep(0.005)
                    sock.close()
                else:
                    sock.shutdown(socket.SHUT_RDWR)
            return False
        if harm.kind == "half":
            sink.shutdown(socket.SHUT_WR)
            return self._swallow(source)
        if harm.kind == "swallow":
            return self._swallow(source)
        if harm.kind == "drip":
            for place in range(min(len(after), harm.count)):
                sink.sendall(after[place : place + 1])
                if harm.seconds and self._over.wait(harm.seconds):
                    return False
            sink.sendall(after[harm.count :])
            return True
        if first:
            if harm.kind == "flip":
                after = bytes([after[0] ^ 1 << harm.count % 8]) + after[1:]
            elif harm.kind == "double":
                after = after[: harm.count] + after
            elif harm.kind == "fill":
                after = os.urandom(harm.count) + after
        sink.sendall(after)
        return True

    def _swallow(self, source: socket.socket) -> bool:
        while source.recv(65536):
            pass
        self._over.wait(30.0)  # or the end of this way would be passed on
        return False

    def cut_all(self) -> None:
        """Break every connection that is open."""
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut_all()
        for thread in self._threads:
            thread.join(5)
        for sock in self._socks:
            sock.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- processes


class Forked:
    """A process that runs a function of an address, once it is told which; a context manager that ends it.

    Make it before anything that has threads or sockets, or the process holds on to those. If it does not end in time,
    `wait` tells where its threads stand.
    """

    def __init__(self, run: Callable[[tuple[str, int]], Any]) -> None:
        self._here, there = socket.socketpair()
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid:
            there.close()
            return
        code = 1
        try:
            self._here.close()
            faulthandler.register(signal.SIGUSR1, there, all_threads=True)
            if said := there.recv(100):
                host, port = said.decode().split()
                run((host, int(port)))
                code = 0
        except BaseException as error:
            with contextlib.suppress(OSError):
                there.sendall(f"{type(error).__name__}: {error}".encode()[:60_000])
        finally:
            os._exit(code)

    def go(self, address: tuple[str, int]) -> None:
        self._here.sendall("{} {}".format(*address).encode())

    def wait(self, seconds: float = 15.0) -> int:
        """How it ended: 0, or 1 for an error, or the negative number of the signal."""
        end = time.monotonic() + seconds
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise AssertionError(f"the process does not end:\n{self._standing()}")
            else:
                time.sleep(0.005)
        return self._code

    def _standing(self) -> str:
        """Where each of its threads stands."""
        os.kill(self.pid, signal.SIGUSR1)
        self._here.settimeout(1)
        said = b""
        with contextlib.suppress(TimeoutError):
            while more := self._here.recv(65536):
                said += more
        return said.decode()

    def said(self) -> str:
        """The error that it ended with."""
        self._here.settimeout(5)
        return self._here.recv(65536).decode()

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self._here.close()


def in_processes(
    crew: Mapping[Role, Party[Any]],
    credentials_of: Callable[[Role], Credentials],
    said: Callable[[PartyRun[Any]], Any],
) -> dict[Role, Any]:
    """What is said, in JSON, of the run of each party, in a process of its own."""
    credentials = {role: credentials_of(role) for role in crew}
    sockets = {role: listen((HOST, 0)) for role in crew}
    addresses = {role: sock.getsockname()[:2] for role, sock in sockets.items()}

    def live(role: Role) -> Callable[[Any], None]:
        def run(_: Any) -> None:
            mine = sockets[role]
            done = run_party(crew[role], credentials[role], addresses, listening=mine, limits=QUICK)
            raise SystemExit(json.dumps(said(done)))

        return run

    with contextlib.ExitStack() as stack:
        forked = {role: stack.enter_context(Forked(live(role))) for role in crew}
        for sock in sockets.values():
            sock.close()
        for one in forked.values():
            one.go((HOST, 1))
        for one in forked.values():
            one.wait()
        return {
            role: json.loads(one.said().removeprefix("SystemExit: "))
            for role, one in forked.items()
        }


# --- the process


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def memory(name: str = "VmRSS", pid: int | str = "self") -> int:
    """Bytes of that name in the process's status."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def drained(inbox: queue.SimpleQueue[Any]) -> list[Any]:
    out = []
    while not inbox.empty():
        out.append(inbox.get())
    return out


# --- who speaks the link by hand


class ByHand:
    """One end of a link whose frames a test makes itself."""

    def __init__(self, credentials: Credentials, address: tuple[str, int], **said: Any) -> None:
        self.sock = client_context(credentials).wrap_socket(
            socket.create_connection(address, timeout=5)
        )
        self._reader = FrameReader(MAX_FRAME)
        self.session = bytes(8)
        self.sent = 0
        self.received = 0
        try:
            self.hello(**said)
        except OSError:
            self.sock.close()
            raise

    def hello(self, **said: Any) -> None:
        fields = {
            "version": tacit.__version__, "about": b"", "session": bytes(8), "received": 0, "number": 0, **said,
        }  # fmt: skip
        self.frame(Kind.HELLO, encode(Message("hello", **fields)))

    def welcomed(self) -> Message:
        header, payload = self.read()
        assert header.kind is Kind.WELCOME, as_error(SERVER, decode(payload))
        self.session = header.session
        return decode(payload)

    def frame(self, kind: Kind, payload: bytes = b"", **head: Any) -> None:
        head = {"session": self.session, "sequence": self.sent, "seen": self.received, **head}
        self.sock.sendall(Header(kind=kind, **head).packed(len(payload)) + payload)

    def data(self, payload: bytes, **head: Any) -> None:
        self.sent += 1
        self.frame(Kind.DATA, payload, **head)

    def read(self) -> tuple[Header, bytes]:
        while True:
            count = self.sock.recv_into(self._reader.space)
            if not count:
                raise EOFError
            if whole := self._reader.filled(count):
                header, payload = whole[0]
                self.received += header.kind is Kind.DATA
                return header, bytes(payload)

    def request(self) -> tuple[Header, Message]:
        """The next message, past words."""
        while True:
            header, payload = self.read()
            if header.kind is Kind.DATA:
                return header, decode(payload)

    def refused(self) -> Exception:
        header, payload = self.read()
        assert header.kind is Kind.REFUSE, header
        return as_error(SERVER, decode(payload))

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
