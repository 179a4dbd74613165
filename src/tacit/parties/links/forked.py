"""A star on one machine whose members work in forked processes: for benchmarks and long runs with many members.

Requests and replies are encoded and go through socket pairs, so bytes are real and members work side by side. A worker holds
several members and handles one request at a time; it gets the next when its reply is taken, so that replies that nobody
has read yet never pile up. Time is the real one.

This is no boundary of trust: all processes are one user's, and start with a copy of all members. Members' views are not
recorded. `Coins` draw other streams in each process, seeded ones too. A slow member delays the others of its worker past a
deadline. A member's error that is not tacit's ends its worker, and the worker's members never answer again. Make it before
the first torch operation: a fork after torch has started threads may hang.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from types import TracebackType

from tacit.core.cost import CostMeter
from tacit.core.errors import ConfigError, TacitError
from tacit.core.wire import Message, decode, encode
from tacit.parties.roles import SERVER, Role
from tacit.parties.star import Member, Seconds, Ticket, refusal
from tacit.parties.views import View

# place among the worker's members, seconds, processor seconds, peak memory in bytes, length of the frame that follows
_HEAD = struct.Struct("<qddqq")
_BUFFER = 1 << 22


class ForkedHub:
    """A star whose members work in forked processes; a context manager that ends them.

    Args:
        members: the members by role.
        workers: processes, among which the members are dealt in turn.
        coordinator: the role at the centre.

    Raises:
        ConfigError: no member, no worker, or a system that cannot fork.

    Attributes:
        cpu: processor seconds of each member: decoding, handling, encoding.
        peak: peak memory of each worker so far, bytes.
    """

    def __init__(
        self, members: Mapping[Role, Member], *, workers: int = 2, coordinator: Role = SERVER
    ) -> None:
        if not members or workers < 1 or coordinator in members:
            raise ConfigError(
                "a star needs at least one worker and one member, none of them in the coordinator's role"
            )
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ConfigError("this system cannot fork processes: use LocalHub")
        context = multiprocessing.get_context("fork")
        self.coordinator = coordinator
        self.cost = CostMeter()
        self.cpu: dict[Role, float] = dict.fromkeys(sorted(members), 0.0)
        self.views: Mapping[Role, View] = {coordinator: View(coordinator)}
        self._tickets = 0
        self._links: list[socket.socket] = []
        self._roles: list[list[Role]] = []
        self._queues: list[deque[tuple[Role, Ticket, Message]]] = []
        self._busy: dict[int, tuple[Role, Ticket]] = {}
        self._processes = []
        self._at: dict[Role, int] = {}
        for number in range(min(workers, len(members))):
            own = list(self.cpu)[number::workers]
            here, there = socket.socketpair()
            for end in (here, there):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            process = context.Process(
                target=_serve,
                args=(there, [members[role] for role in own], [*self._links, here]),
                daemon=True,
            )
            process.start()
            there.close()
            self._links.append(here)
            self._roles.append(own)
            self._queues.append(deque())
            self._processes.append(process)
            self._at |= dict.fromkeys(own, number)
        self.peak = [0] * len(self._links)

    def __enter__(self) -> ForkedHub:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for link in self._links:
            link.close()  # at the end of its input a worker ends
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def members(self, kind: str | None = None) -> Sequence[Role]:
        """The members, or those of one kind, in ascending order."""
        return [role for role in self.cpu if kind is None or role.kind == kind]

    def post(self, requests: Mapping[Role, Message]) -> Ticket:
        """Queue each member its request and return at once; a request is encoded when its worker is free.

        Raises:
            ConfigError: a role that is not a member.
        """
        if strangers := [role for role in requests if role not in self._at]:
            raise ConfigError(f"no member is {strangers[0]}")
        ticket = Ticket(self._tickets)
        self._tickets += 1
        for role, message in requests.items():
            self._queues[self._at[role]].append((role, ticket, message))
        for number in range(len(self._links)):
            self._feed(number)
        return ticket

    def replies(self, *, deadline: Seconds) -> Iterator[tuple[Role, Ticket, Message]]:
        """Replies as they come, until ``deadline`` seconds are over or no request is open.

        Members of a worker that died never answer.
        """
        end = time.monotonic() + deadline
        while self._busy:
            links = {id(self._links[number]): number for number in self._busy}
            ready = wait([self._links[number] for number in links.values()], end - time.monotonic())
            if not ready:
                return
            for link in ready:
                number = links[id(link)]
                role, ticket = self._busy.pop(number)
                try:
                    _, seconds, cpu, peak, frame = _receive(self._links[number])
                except OSError:
                    self._queues[number].clear()
                    continue
                self._feed(number)
                self.cpu[role] += cpu
                self.peak[number] = peak
                message = decode(frame)
                self.cost.book(role, messages=1, sent=len(frame), seconds=seconds)
                self.cost.book(self.coordinator, received=len(frame))
                self.views[self.coordinator].receive(role, message.tag, ticket, frame)
                yield role, ticket, message

    def _feed(self, number: int) -> None:
        """Send a worker that is free its next request."""
        queue = self._queues[number]
        if number in self._busy or not queue:
            return
        role, ticket, message = queue.popleft()
        frame = encode(message)
        try:
            _send(self._links[number], frame, self._roles[number].index(role))
        except OSError:
            queue.clear()
            return
        self._busy[number] = role, ticket
        self.cost.book(self.coordinator, messages=1, sent=len(frame))
        self.cost.book(role, received=len(frame))


def _serve(
    link: socket.socket, members: Sequence[Member], inherited: Sequence[socket.socket]
) -> None:
    """A worker: answers requests until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's; it closes the links
    for one in inherited:  # or the ends of other workers' links would stay open here
        one.close()
    while True:
        try:
            place, _, _, _, frame = _receive(link)
        except OSError:
            return
        start, cpu = time.perf_counter(), time.process_time()
        try:
            answer = members[place].handle(decode(frame))
        except TacitError as error:
            answer = refusal(error)
        reply = encode(answer)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        try:
            _send(link, reply, place, seconds, cpu, peak_memory())
        except OSError:  # nobody waits for it any more
            return


def _send(
    link: socket.socket, frame: bytes, place: int, seconds: float = 0, cpu: float = 0, peak: int = 0
) -> None:
    link.sendall(_HEAD.pack(place, seconds, cpu, peak, len(frame)))
    link.sendall(frame)


def _receive(link: socket.socket) -> tuple[int, float, float, int, bytes]:
    place, seconds, cpu, peak, length = _HEAD.unpack(_exactly(link, _HEAD.size))
    return place, seconds, cpu, peak, _exactly(link, length)


def _exactly(link: socket.socket, count: int) -> bytes:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        got = link.recv_into(view)
        if not got:
            raise ConnectionError("the other end is gone")
        view = view[got:]
    return bytes(buffer)


def peak_memory() -> int:
    """The most memory that this process held at once, bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0
