"""Both shapes of conversation inside one process.

Every frame is encoded and decoded, so bytes are real. Scripted faults change what arrives, and when; each party checks what
arrives as over an authenticated line (`tacit.parties.links.tampering`). The star runs on a virtual clock: hangs, stragglers
and asynchronous schedules take no real time and come out the same on every run. The pair runs one thread a party; since the
link sees who waits for whom, a conversation that cannot go on is ended at once instead of after a deadline.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import (
    ConfigError,
    DeadlineExceeded,
    Deadlock,
    PeerDropped,
    ProtocolError,
    TacitError,
    WireError,
)
from tacit.core.wire import Array, Message, decode, encode
from tacit.parties.faults import GONE, SLOW, Fault, Faults, Way
from tacit.parties.links.tampering import Line, Lines, Sealed
from tacit.parties.pair import Channel, Party
from tacit.parties.roles import SERVER, Role
from tacit.parties.star import Member, Seconds, Ticket, refusal
from tacit.parties.views import COUNTS, Recording, View

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long things take on the virtual clock of a local star.

    Args:
        link: seconds of each message, either way.
        work: seconds of each handling, for all members or by role.
        jitter: each of these is multiplied by a factor drawn uniformly from [1, 1 + jitter].
        seed: where the factors come from.
    """

    link: Seconds = 0.0
    work: Seconds | Mapping[Role, Seconds] = 0.0
    jitter: float = 0.0
    seed: bytes = b"timing"


class Event(NamedTuple):
    """A frame on its way, to a member or back."""

    role: Role
    ticket: Ticket
    frame: bytes
    tag: str
    depth: int
    is_reply: bool
    sealed: Sealed | None = None  # where faults are scripted: what arrives


class LocalHub:
    """A star in one process, on a virtual clock.

    Args:
        members: the members by role.
        recording: what to keep of every role's view.
        faults: what goes wrong.
        timing: how long messages and handling take; nothing, by default, so that replies come in order of posting.
        coordinator: the role at the centre.

    Attributes:
        now: seconds on the virtual clock.
    """

    def __init__(
        self,
        members: Mapping[Role, Member],
        *,
        recording: Recording = COUNTS,
        faults: Sequence[Fault] = (),
        timing: Timing | None = None,
        coordinator: Role = SERVER,
    ) -> None:
        if not members or coordinator in members:
            raise ConfigError(
                "a star needs at least one member, none of them in the coordinator's role"
            )
        self.now: Seconds = 0.0
        self._coordinator = coordinator
        self._views = {role: View(role, recording) for role in (coordinator, *sorted(members))}
        self._cost = CostMeter()
        self._members = dict(sorted(members.items()))
        self._faults = Faults(tuple(faults))
        self._faults.check(members)
        self._lines: Lines[Event] = Lines()
        self._timing = timing or Timing()
        self._jitter = Coins.from_seed(self._timing.seed)
        # By time; at the same time replies go first, so that a coordinator can let go of one before the next is made.
        self._events: list[tuple[Seconds, bool, int, Event]] = []
        self._sequence = 0
        self._tickets = 0
        self._open: Counter[Role] = Counter()  # requests without a reply so far
        self._depth = dict.fromkeys(self._views, 0)
        self._busy = dict.fromkeys(self._members, 0.0)

    @property
    def coordinator(self) -> Role:
        """The role at the centre."""
        return self._coordinator

    @property
    def views(self) -> Mapping[Role, View]:
        """Every role's view."""
        return self._views

    @property
    def cost(self) -> CostMeter:
        """What the conversation has cost so far."""
        return self._cost

    def members(self, kind: str | None = None) -> Sequence[Role]:
        """The members, or those of one kind, in ascending order."""
        return [role for role in self._members if kind is None or role.kind == kind]

    def replace(self, role: Role, member: Member) -> None:
        """Put a restarted member in the place of one that died or hung; what was under way to it is lost."""
        if role not in self._members:
            raise ConfigError(
                f"no member is {role}; members are {', '.join(map(str, self._members))}"
            )
        self._members[role] = member
        self._faults.revive(role)
        self._lines.lose((self.coordinator, role))
        self._busy[role] = self.now
        self._events[:] = [e for e in self._events if e[-1].role != role or e[-1].is_reply]
        heapq.heapify(self._events)
        self._open[role] = sum(event.role == role for *_, event in self._events)

    def post(self, requests: Mapping[Role, Message]) -> Ticket:
        """Send each member its request and return at once. Replies to it will carry the ticket.

        Raises:
            ConfigError: a role that is not a member.
        """
        if strangers := [role for role in requests if role not in self._members]:
            raise ConfigError(
                f"no member is {strangers[0]}; members are {', '.join(map(str, self._members))}"
            )
        ticket = Ticket(self._tickets)
        self._tickets += 1
        depth = self._depth[self.coordinator] + 1
        self._cost.chain(depth)
        sent = 0
        last: Message | None = None
        frame = b""
        for role, message in requests.items():
            if message is not last:  # a broadcast is encoded once
                frame, last = encode(message), message
            sent += len(frame)
            self.views[self.coordinator].send(role, ticket, frame)
            event = Event(role, ticket, frame, message.tag, depth, is_reply=False)
            self._schedule(self._stretched(self._timing.link), event)
        self._open.update(requests.keys())
        self._cost.book(self.coordinator, messages=len(requests), sent=sent)
        return ticket

    def _schedule(self, delay: Seconds, event: Event) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay, not event.is_reply, self._sequence, event))

    def _stretched(self, delay: Seconds) -> Seconds:
        if not delay or not self._timing.jitter:
            return delay
        return delay * (1.0 + self._timing.jitter * float(self._jitter.unit(1)[0]))

    def replies(self, *, deadline: Seconds) -> Iterator[tuple[Role, Ticket, Message]]:
        """Replies as they come, until ``deadline`` virtual seconds are over or no request is open.

        Waiting for what never comes moves the clock to the deadline and takes no real time.
        """
        end = self.now + deadline
        events = self._events
        while events and events[0][0] <= end:
            at, *_, event = heapq.heappop(events)
            self.now = max(self.now, at)
            if not event.is_reply:
                self.deliver(event)
                continue
            try:
                reply = self._arrived(event)
            except ProtocolError as error:
                reply = refusal(error)
            if reply is None:
                continue
            self._open[event.role] -= 1
            self._depth[self.coordinator] = max(self._depth[self.coordinator], event.depth)
            self._cost.book(self.coordinator, received=len(event.frame))
            yield event.role, event.ticket, reply
        if self._open.total():
            self.now = max(self.now, end)

    def _line(self, event: Event) -> Line:
        ends = self.coordinator, event.role
        return ends[::-1] if event.is_reply else ends

    def _send(self, delay: Seconds, event: Event) -> None:
        """Schedule what of a frame arrives."""
        if not self._faults.script:
            self._schedule(delay, event)
            return
        fault = self._faults.meet(event.role, Way.REPLY if event.is_reply else Way.REQUEST)
        for late, sent, sealed in self._lines.put(self._line(event), event.frame, event, fault):
            self._schedule(delay + late, sent._replace(frame=sealed.frame, sealed=sealed))

    def _arrived(self, event: Event) -> Message | None:
        """The message of a frame that arrived; None if it arrived before.

        Raises:
            ProtocolError: it does not come from whom it should, as it should, or is no message.
        """
        sender, recipient = line = self._line(event)
        if event.sealed is not None and self._lines.opened(line, event.sealed) is None:
            return None
        self.views[recipient].receive(sender, event.tag, event.ticket, event.frame)
        return decode(event.frame)

    def deliver(self, event: Event) -> None:
        """Hand a member its request, and schedule its reply; called by `replies`."""
        role = event.role
        if self._faults.script and event.sealed is None:
            self._send(0.0, event)
            return
        if role in self._faults.dead or role in self._faults.hung:
            return
        try:
            message = self._arrived(event)
        except ProtocolError as error:  # it goes no further than the member's end of the line
            answer, seconds = refusal(error), 0.0
        else:
            if message is None:
                return
            start = time.perf_counter()
            try:
                answer = self._members[role].handle(message)
            except TacitError as error:
                answer = refusal(error)
            seconds = time.perf_counter() - start
        try:
            reply = encode(answer)
        except WireError as error:
            answer = refusal(error)
            reply = encode(answer)
        self.views[role].send(self.coordinator, event.ticket, reply)
        self._cost.book(
            role, messages=1, sent=len(reply), received=len(event.frame), seconds=seconds
        )
        self._depth[role] = max(self._depth[role], event.depth)
        self._cost.chain(self._depth[role] + 1)
        work = self._timing.work
        base = work.get(role, 0.0) if isinstance(work, Mapping) else work
        self._busy[role] = max(self.now, self._busy[role]) + self._stretched(base)
        delay = self._busy[role] - self.now + self._stretched(self._timing.link)
        depth = self._depth[role] + 1
        self._send(delay, Event(role, event.ticket, reply, answer.tag, depth, is_reply=True))


# --- the pair


@dataclass(frozen=True, slots=True)
class PairRun(Generic[T]):
    """What came of a conversation of two parties and their feeders.

    Args:
        outputs: by role, of those who finished.
        errors: by role, of those who did not.
        views: what each received.
        cost: what it cost.
    """

    outputs: Mapping[Role, T] = field(repr=False)
    errors: Mapping[Role, Exception]
    views: Mapping[Role, View] = field(repr=False)
    cost: CostMeter = field(repr=False)


class _Silenced(BaseException):
    """Ends the thread of a party that a fault killed or hung; never seen outside."""


class _Frame(NamedTuple):
    """A frame on its way between two parties; its number is that of the message on its line."""

    number: int
    tag: str
    depth: int
    frame: bytes
    sealed: Sealed | None = None


@dataclass(slots=True)
class _Exchange:
    """The frames under way and who waits for whom; one lock for all, on which each party waits for its own sake."""

    deadline: Seconds
    views: Mapping[Role, View]
    faults: Faults
    cost: CostMeter = field(default_factory=CostMeter)
    lock: threading.RLock = field(default_factory=threading.RLock)
    changed: dict[Role, threading.Condition] = field(default_factory=dict)
    queues: dict[Line, deque[_Frame]] = field(default_factory=dict)
    running: set[Role] = field(default_factory=set)
    waiting: dict[Role, Role] = field(default_factory=dict)
    depth: dict[Role, int] = field(default_factory=dict)
    posted: dict[tuple[Role, Role], int] = field(default_factory=dict)
    numbers: dict[tuple[Role, Role], int] = field(default_factory=dict)
    labels: dict[Role, tuple[str, str]] = field(default_factory=dict)
    since: dict[Role, float] = field(default_factory=dict)
    lines: Lines[tuple[int, str, int]] = field(default_factory=Lines)
    lost: bool = False
    aborted: bool = False

    def __post_init__(self) -> None:
        self.changed = {role: threading.Condition(self.lock) for role in self.running}

    def wake_all(self) -> None:
        """Have every party look at how things stand; the lock is held."""
        for changed in self.changed.values():
            changed.notify_all()

    def relabel(self, role: Role, label: tuple[str, str]) -> tuple[str, str]:
        """Book the party's seconds so far under its label and give it another; called in the party's own thread."""
        with self.lock:
            now, old = time.thread_time(), self.labels.get(role, ("", ""))
            self.cost.book(role, seconds=now - self.since.get(role, now), under=old)
            self.since[role], self.labels[role] = now, label
            return old

    def put(self, sender: Role, to: Role, tag: str, frame: bytes) -> None:
        with self.lock:
            fault = None
            if self.faults.script:  # what it sends is all that is counted
                gone = self.faults.meet(sender, Way.REQUEST)
                fault = self.faults.meet(sender, Way.REPLY)
                if gone is not None:
                    raise _Silenced
            depth = self.depth.get(sender, 0) + 1
            self.cost.chain(depth)
            under = self.labels.get(sender)
            self.cost.book(sender, messages=1, sent=len(frame), under=under)
            number = self.posted.get((sender, to), 0)
            self.posted[sender, to] = number + 1
            self.views[sender].send(to, number, frame)
            queue = self.queues.setdefault((sender, to), deque())
            if self.faults.script:
                self.lost = self.lost or fault is not None
                note = number, tag, depth
                for _, known, sealed in self.lines.put((sender, to), frame, note, fault):
                    queue.append(_Frame(*known, sealed.frame, sealed))
            else:
                queue.append(_Frame(number, tag, depth, frame))
            self.changed[to].notify_all()

    def get(self, sender: Role, to: Role) -> tuple[str, bytes, int]:
        end = time.monotonic() + self.deadline
        with self.lock:
            came = self._next(sender, to, end)
            expected = self.numbers.get((sender, to), 0)
            self.numbers[sender, to] = came.number + 1
            if (
                came.number != expected
            ):  # or a later message under the same tag would be taken for it
                raise ProtocolError(f"{to}: message {expected} from {sender} was lost on its way")
            self.views[to].receive(sender, came.tag, came.number, came.frame)
            self.cost.book(to, received=len(came.frame), under=self.labels.get(to))
            return came.tag, came.frame, came.depth

    def _next(self, sender: Role, to: Role, end: float) -> _Frame:
        """The next frame that did not come before."""
        queue = self.queues.setdefault((sender, to), deque())
        while True:
            self.waiting[to] = sender
            if self._stuck():
                self.wake_all()
            try:
                while not queue:
                    self._check(sender, to, end)
                    self.changed[to].wait(max(0.0, end - time.monotonic()))
            finally:
                del self.waiting[to]
            came = queue.popleft()
            if came.sealed is None or self.lines.opened((sender, to), came.sealed) is not None:
                return came

    def _check(self, sender: Role, to: Role, end: float) -> None:
        if self.aborted:
            raise _Silenced
        if sender in self.faults.hung:
            raise DeadlineExceeded(f"{to}: nothing from {sender} within {self.deadline:g} s")
        if sender not in self.running:
            raise PeerDropped(f"{to}: {sender} is gone and has sent nothing more")
        stuck = self._stuck()
        if (stuck and (self.lost or self.faults.hung)) or time.monotonic() >= end:
            raise DeadlineExceeded(f"{to}: nothing from {sender} within {self.deadline:g} s")
        if stuck:
            raise Deadlock(
                f"{to} waits for {sender}, and so do all others wait: check the order of send and recv"
            )

    def _stuck(self) -> bool:
        """Everybody waits, for somebody who is there and has sent nothing."""
        waiting, queues = self.waiting, self.queues
        return all(
            waiting.get(role) in self.running and not queues.get((waiting[role], role))
            for role in self.running - self.faults.hung
        )


@dataclass(frozen=True, slots=True)
class _LocalChannel:
    exchange_: _Exchange
    role: Role
    peer: Role

    def send(self, tag: str, *arrays: Array) -> None:
        self.exchange_.put(self.role, self.peer, tag, encode(Message(tag, arrays=arrays)))

    def recv(self, tag: str) -> tuple[Array, ...]:
        came, frame, depth = self.exchange_.get(self.peer, self.role)
        if came != tag:
            raise ProtocolError(f"{self.role}: expected {tag!r} from {self.peer}, came {came!r}")
        seen = self.exchange_.depth
        seen[self.role] = max(seen.get(self.role, 0), depth)
        return tuple(decode(frame).arrays("arrays"))

    def count_round(self) -> None:
        with self.exchange_.lock:
            self.exchange_.cost.book(self.role, rounds=1, under=self.exchange_.labels[self.role])

    @contextmanager
    def during(self, phase: str | None = None, layer: str | None = None) -> Iterator[None]:
        old = self.exchange_.labels.get(self.role, ("", ""))
        self.exchange_.relabel(self.role, (phase or old[0], layer or old[1]))
        try:
            yield
        finally:
            self.exchange_.relabel(self.role, old)

    def exchange(self, tag: str, *arrays: Array) -> tuple[Array, ...]:
        self.send(tag, *arrays)
        return self.recv(tag)


def run_pair(
    parties: Mapping[Role, Party[T]],
    *,
    recording: Recording = COUNTS,
    faults: Sequence[Fault] = (),
    deadline: Seconds = 60.0,
) -> PairRun[T]:
    """Run two parties, and those who feed them, to their end.

    Args:
        parties: each role's function; it gets a channel to every other role.
        recording: what to keep of every role's view.
        faults: what goes wrong; ``at`` counts the messages that the role sends.
        deadline: seconds that a party waits for a message.

    Returns:
        Outputs of those who finished and errors of those who did not: raise the latter with `outputs_of`.
    """
    script = Faults(tuple(faults))
    script.check(parties)
    for fault in faults:
        if fault.harm in SLOW:
            raise ConfigError(f"a pair has no virtual clock: {fault.harm.name} is for stars")
        if fault.way is Way.REQUEST and fault.harm not in GONE:
            raise ConfigError("a pair has no requests: a fault is at a message that a party sends")
    views = {role: View(role, recording) for role in sorted(parties)}
    exchange = _Exchange(deadline, views, script, running=set(parties))
    outputs: dict[Role, T] = {}
    errors: dict[Role, Exception] = {}

    def live(role: Role) -> None:
        exchange.relabel(role, ("", ""))
        channels: dict[Role, Channel] = {
            peer: _LocalChannel(exchange, role, peer) for peer in parties if peer != role
        }
        try:
            outputs[role] = parties[role](channels)
        except _Silenced:
            how = "hung" if role in exchange.faults.hung else "killed"
            errors[role] = PeerDropped(f"{role} was {how} by a scripted fault")
        except Exception as error:
            errors[role] = error
        except BaseException as stop:
            # SystemExit and the like: gone, and the others must learn of it
            errors[role] = PeerDropped(f"{role} ended with {type(stop).__name__}")
        finally:
            exchange.relabel(role, ("", ""))
            with exchange.lock:
                if role not in exchange.faults.hung:  # a hung party is there, and silent
                    exchange.running.discard(role)
                exchange.wake_all()

    threads = [
        threading.Thread(target=live, args=(role,), name=str(role), daemon=True) for role in parties
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C: nobody waits for a deadline
        with exchange.lock:
            exchange.aborted = True
            exchange.wake_all()
        raise
    return PairRun(
        dict(sorted(outputs.items())), dict(sorted(errors.items())), views, exchange.cost
    )


def outputs_of(run: PairRun[T]) -> Mapping[Role, T]:
    """The outputs of a conversation in which every party finished.

    Raises:
        Exception: the first error that is not merely the echo of another party's.
    """
    echoes = (PeerDropped, DeadlineExceeded)
    first = sorted(run.errors.items(), key=lambda entry: isinstance(entry[1], echoes))
    if first:
        raise first[0][1]
    return run.outputs
