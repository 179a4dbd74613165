"""A star whose members are nodes of a Flower federation: the same coordinator, and the same members, on many machines.

The coordinator is a Flower ServerApp that works over a `FlowerHub`, a member a Flower ClientApp made by `client_app`. Flower
carries the frames, starts the processes and knows who is online. It is not trusted with more: who runs the SuperLink can
drop, delay and read messages, but neither forge nor replay them.

1. *Enrolment*. The hub draws a session and asks every node who it is. A node answers with its role, the digest of what it
   takes part in, and the number of its state, all signed.
2. *A request* is signed by the coordinator: session, digest, node, role, ticket, and the digest of the frame. The member
   checks that before anything else. It answers no session that another has followed, and in a session no ticket below one
   that it has answered.
3. *A reply* is signed by the member: the same, the digest of the request's frame, and the number of its state. The hub
   refuses a number below one that it has seen.

Flower starts a new process for every message. So a member is made anew each time, by a function that the caller gives, and
goes on from its state: a `DurableMember` over a `ContextStore`, and a witness in a file that is no part of the context.
Messages to one member are handled one after the other, under a lock, so that no two are answered from the same state.

**Leaks**: to who runs the SuperLink, all frames, roles and times: what a member seals for another stays sealed. TLS hides
them from all others. To who holds a node's context, the size of the state and the number of answers.
**Cost**: beside the frames, which are what is metered, some 400 bytes each way and a message each way at enrolment.

Flower is imported where it is used: this module loads without it. It speaks to flwr 1.41.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import (
    CheatingDetected,
    ConfigError,
    PeerDropped,
    PeerRefused,
    ProtocolError,
    TacitError,
    TooFewParties,
    WireError,
)
from tacit.core.files import alone
from tacit.core.wire import Message, Value, decode, encode
from tacit.crypto.keys import SigningKey, verify
from tacit.parties.durable import DurableMember, FileStore, FileWitness, Store
from tacit.parties.roles import SERVER, Role
from tacit.parties.star import REFUSED, Member, Seconds, Ticket, as_error, refusal
from tacit.parties.views import COUNTS, Recording, View

PIECE = 1 << 22
"""Bytes of a frame that one record carries; Flower sends each record as an object of its own."""

_RECORD = "tacit"
_MOST_PIECES = 1 << 9
_HEAD = 1 << 12  # bytes of a head at most
_HELLO = -1  # the ticket of enrolment
_SESSIONS = 1 << 12  # that one member takes part in, under one digest
_GONE = (3, 4, 5, 8)  # Flower's codes: message, reply or node unavailable; the app crashed


class Grid(Protocol):
    """What is needed of ``flwr.serverapp.Grid``."""

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online."""
        ...

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str | None]:
        """Send messages; their numbers, None for one that could not be sent."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        """The replies to these that have come."""
        ...


class Context(Protocol):
    """What is needed of ``flwr.app.Context``."""

    node_id: int
    node_config: Mapping[str, Any]
    run_config: Mapping[str, Any]
    state: MutableMapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Who a party is, whose signatures it can check, and what it takes part in.

    Args:
        role: its role.
        key: its signing key.
        registry: everybody's public signing keys by role, 32 bytes each; they must be authentic.
        digest: 32 bytes: a digest of all that must be the same at all parties (federation, scheme, settings), and of the
            run's name. A member's state belongs to one digest: another name begins anew.
        coordinator: the role at the centre.

    Raises:
        ConfigError: the digest has another length, or a key is missing in the registry, or is another.
    """

    role: Role
    key: SigningKey
    registry: Mapping[Role, bytes] = field(repr=False)
    digest: bytes
    coordinator: Role = SERVER

    def __post_init__(self) -> None:
        if len(self.digest) != 32:
            raise ConfigError(f"a digest of 32 bytes expected, got {len(self.digest)}")
        for role in (self.role, self.coordinator):
            if role not in self.registry:
                raise ConfigError(f"the registry has no key of {role}: get it from the authority")
        if self.registry[self.role] != self.key.public:
            raise ConfigError(f"the registry has another key for {self.role} than the one given")


@dataclass(frozen=True, slots=True, kw_only=True)
class Safe:
    """Where a member keeps what it must not lose.

    Args:
        key: 32 bytes that seal the state; they must not follow from anything that lies beside it.
        folder: of the witness and the lock, on the member's machine; no backup of the state may reach it.
        state: folder of the sealed state. None keeps it in Flower's context, which ends with the ``flwr run`` and with the
            SuperNode's process: a member whose state was lost so is refused afterwards, under the same digest.

    Raises:
        ConfigError: the key has another length.
    """

    key: bytes = field(repr=False)
    folder: Path
    state: Path | None = None

    def __post_init__(self) -> None:
        if len(self.key) != 32:
            raise ConfigError(f"a key of 32 bytes expected, got {len(self.key)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a hub waits.

    Args:
        enrolment: seconds until all members must have enrolled.
        poll: seconds between two looks for replies.
        ttl: seconds that Flower keeps a message and its reply; None leaves that to Flower (12 hours).
    """

    enrolment: Seconds = 300.0
    poll: Seconds = 0.5
    ttl: Seconds | None = None


# --- what goes over the wire: a signed head, and the frame in pieces


def _signed(kind: str, key: SigningKey, frame: bytes, **fields: Value) -> bytes:
    """The head of a frame: fields, and a signature over them and the frame."""
    return encode(Message(kind, **fields, signature=key.sign(_said(kind, fields, frame))))


def _said(kind: str, fields: Mapping[str, Value], frame: bytes) -> bytes:
    said = Message(f"tacit/flower/{kind}/1", **fields, frame=hashlib.sha256(frame).digest())
    return encode(said)


def _check_signature(head: Message, frame: bytes, *, signer: bytes, what: str) -> None:
    fields = {name: value for name, value in head.fields.items() if name != "signature"}
    signature = head.blob("signature", length=64)
    verify(signature, _said(head.tag, fields, frame), signer=signer, what=what)


def _packed(head: bytes, frame: bytes) -> Any:
    """A Flower ``RecordDict`` of a head and its frame."""
    app = _flower("app")
    pieces = [frame[at : at + PIECE] for at in range(0, len(frame), PIECE)]
    records = {f"{_RECORD}-{at}": app.ConfigRecord({"piece": p}) for at, p in enumerate(pieces)}
    records[_RECORD] = app.ConfigRecord({"head": head, "pieces": len(pieces)})
    return app.RecordDict(records)


def _unpacked(content: Any, kind: str) -> tuple[Message, bytes]:
    """The head and frame of a ``RecordDict``.

    Raises:
        WireError: it holds none.
    """
    try:
        head, count = content[_RECORD]["head"], content[_RECORD]["pieces"]
        if not isinstance(head, bytes) or not isinstance(count, int):
            raise TypeError
        if not 0 < count <= _MOST_PIECES:
            raise WireError(f"a frame in {count} pieces; from 1 to {_MOST_PIECES}")
        frame = b"".join(content[f"{_RECORD}-{at}"]["piece"] for at in range(count))
    except (LookupError, TypeError, ValueError, AttributeError):
        raise WireError(f"a Flower message that carries no {kind} of this package") from None
    read = decode(head, limit=_HEAD)
    if read.tag != kind:
        raise WireError(f"a head of kind {kind!r} expected, came {read.tag!r}")
    return read, frame


def _flower(part: str) -> Any:
    """A module of Flower's.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(f"flwr.{part}")
    except ImportError as error:
        raise ConfigError(
            f"Flower is not installed here ({error}): pip install 'tacit[flower]'"
        ) from error


# --- the coordinator's side


@dataclass(frozen=True, slots=True)
class _Open:
    """A request that was sent and not answered."""

    role: Role | None  # None where a node is asked who it is
    node: int
    ticket: int
    depth: int
    size: int
    digest: bytes  # of its frame


class FlowerHub:
    """A star over a Flower ``Grid``: for the ``main`` function of a ServerApp.

    It returns once enough members have enrolled. Who has not is asked again with every post, and who comes back as another
    node takes its place when Flower no longer knows the old node; its requests are refused until then.

    Bytes, messages and rounds are booked as by `tacit.parties.links.local.LocalHub`: frames only, and not enrolment. What
    Flower reports of a member (its node is gone, its app failed) comes as that member's refusal and is not booked.

    Args:
        grid: ``flwr.serverapp.Grid``, or what behaves like one.
        party: the coordinator.
        roles: who takes part.
        at_least: how many must have enrolled; all when None.
        numbers: the highest state number that is known of each member, from an earlier hub's ``numbers``.
        recording: what to keep of the coordinator's view.
        pace: how long it waits.
        coins: for the session's name.

    Raises:
        ConfigError: nobody takes part, the coordinator is among them, or a key is missing; or Flower is not installed.
        ProtocolError: two nodes answered as the same member.
        TooFewParties: too few enrolled in time; names who is missing and what is known of why.

    Attributes:
        numbers: the highest state number of each member so far. Keep them: see `tacit.parties.durable`.
        session: 16 bytes, the name of this conversation.
    """

    def __init__(
        self,
        grid: Grid,
        party: Party,
        roles: Iterable[Role],
        *,
        at_least: int | None = None,
        numbers: Mapping[Role, int] = MappingProxyType({}),
        recording: Recording = COUNTS,
        pace: Pace | None = None,
        coins: Coins | None = None,
    ) -> None:
        self._roles = sorted(set(roles))
        if not self._roles or party.coordinator in self._roles or party.role != party.coordinator:
            raise ConfigError(
                "a star needs its coordinator and at least one member, none of them in the coordinator's role"
            )
        if missing := [role for role in self._roles if role not in party.registry]:
            raise ConfigError(f"the registry has no key of {missing[0]}: get it from the authority")
        self._grid = grid
        self._party = party
        self._pace = pace or Pace()
        self._cost = CostMeter()
        self._views = {party.role: View(party.role, recording)}
        self.session = (coins or Coins()).bytes(16)
        self.numbers = {role: numbers.get(role, 0) for role in self._roles}
        self._newest = dict.fromkeys(self._roles, _HELLO)  # ticket of the newest reply
        self._depth = dict.fromkeys((party.role, *self._roles), 0)
        self._nodes: dict[Role, int] = {}
        self._greeted: set[int] = set()
        self._why: dict[Role, str] = {}  # did not enrol
        self._strange: dict[int, str] = {}
        self._twice = ""
        self._open: dict[str, _Open] = {}
        self._ready: list[tuple[Role, Ticket, Message]] = []  # refusals that this side makes
        self._tickets = 0
        self._enrol(len(self._roles) if at_least is None else at_least)

    @property
    def coordinator(self) -> Role:
        """The role at the centre."""
        return self._party.role

    @property
    def cost(self) -> CostMeter:
        """What the conversation has cost so far."""
        return self._cost

    @property
    def views(self) -> Mapping[Role, View]:
        """The coordinator's view: members keep theirs."""
        return self._views

    def members(self, kind: str | None = None) -> Sequence[Role]:
        """The members, or those of one kind, in ascending order: all that take part, enrolled or not."""
        return [role for role in self._roles if kind is None or role.kind == kind]

    # enrolment

    def _enrol(self, needed: int) -> None:
        end = time.monotonic() + self._pace.enrolment
        while True:
            self._greet()
            self._pull()
            told = len({*self._nodes, *self._why})
            if told == len(self._roles) or time.monotonic() >= end:
                break
            time.sleep(self._pace.poll)
        if self._twice:
            raise ProtocolError(self._twice)
        if len(self._nodes) < needed:
            raise TooFewParties(needed, sorted(self._nodes), self._missing(), wave="of enrolment")

    def _missing(self) -> dict[object, str]:
        told = [f"node {node}: {why}" for node, why in sorted(self._strange.items())]
        unknown = "; ".join(["no node answered as it", *told[:4]])
        return {r: self._why.get(r, unknown) for r in self._roles if r not in self._nodes}

    def _greet(self) -> None:
        """Ask every node that was not asked yet who it is."""
        new = sorted(set(self._grid.get_node_ids()) - self._greeted)
        self._greeted |= set(new)
        hello = encode(Message("hello"))
        self._push([(None, node, hello, _HELLO, 0) for node in new])

    def _take_hello(self, asked: _Open, reply: Any) -> None:
        node = asked.node
        try:
            head, frame = _unpacked(_content(reply), "reply")
            said = head.text("role")
            role = next((one for one in self._roles if str(one) == said), None)
            if role is None:
                raise ProtocolError("it answers as somebody who does not take part")
            self._check(role, asked, head, frame)
        except TacitError as error:
            self._strange[node] = str(error)
            return
        try:
            if head.blob("digest") != self._party.digest:
                raise ProtocolError(
                    "it takes part in something else: compare settings, registry and the run's name with the coordinator's"
                )
            if (answer := decode(frame)).tag == REFUSED:
                raise as_error(role, answer)
            self._check_number(role, asked.ticket, head)
            before = self._nodes.get(role)
            if before not in (None, node) and before in set(self._grid.get_node_ids()):
                self._twice = f"nodes {before} and {node} both answer as {role}: stop one of them, and run again"
                return
        except TacitError as error:
            self._why[role] = str(error)
            return
        self._nodes[role] = node
        self._why.pop(role, None)

    # requests

    def post(self, requests: Mapping[Role, Message]) -> Ticket:
        """Send each member its request and return at once. Replies to it will carry the ticket.

        Raises:
            ConfigError: a role that is not a member.
        """
        if strangers := [role for role in requests if role not in self._newest]:
            raise ConfigError(
                f"no member is {strangers[0]}; members are {', '.join(map(str, self._roles))}"
            )
        self._greet()
        ticket = Ticket(self._tickets)
        self._tickets += 1
        depth = self._depth[self.coordinator] + 1
        sent, out = 0, []
        last: Message | None = None
        frame = b""
        for role, message in requests.items():
            if message is not last:  # a broadcast is encoded once
                frame, last = encode(message), message
            if role not in self._nodes:
                why = self._missing()[role]
                self._refuse(role, ticket, PeerDropped(f"no node has enrolled as it: {why}"))
                continue
            sent += len(frame)
            self._views[self.coordinator].send(role, ticket, frame)
            out.append((role, self._nodes[role], frame, ticket, depth))
        if out:
            self._cost.chain(depth)
            self._cost.book(self.coordinator, messages=len(out), sent=sent)
            self._push(out)
        return ticket

    def _push(self, out: Sequence[tuple[Role | None, int, bytes, int, int]]) -> None:
        if not out:
            return
        party, messages, opened = self._party, [], []
        for role, node, frame, ticket, depth in out:
            head = _signed(
                "request", party.key, frame, session=self.session, digest=party.digest, node=node,
                role="" if role is None else str(role), ticket=ticket,
            )  # fmt: skip
            message = _flower("app").Message(
                _packed(head, frame), dst_node_id=node, message_type="query", ttl=self._pace.ttl,
                group_id=str(ticket),
            )  # fmt: skip
            messages.append(message)
            digest = hashlib.sha256(frame).digest()
            opened.append(_Open(role, node, ticket, depth, len(frame), digest))
        numbers = list(self._grid.push_messages(messages)) or [None] * len(opened)
        for one, number in zip(opened, numbers, strict=True):
            if number:
                self._open[number] = one
            elif one.role is None:
                self._greeted.discard(one.node)
            else:
                lost = PeerDropped("Flower did not take the message: see the ServerApp's log")
                self._refuse(one.role, Ticket(one.ticket), lost)

    def _refuse(self, role: Role, ticket: Ticket, error: Exception) -> None:
        self._ready.append((role, ticket, refusal(error)))

    # replies

    def replies(self, *, deadline: Seconds) -> Iterator[tuple[Role, Ticket, Message]]:
        """Replies as they come, until ``deadline`` seconds are over or no request is open.

        What is not this member's signed reply to this request, or no frame, is a refusal of that member.
        """
        end = time.monotonic() + deadline
        while True:
            while self._ready:
                yield self._ready.pop(0)
            if not any(one.role is not None for one in self._open.values()):
                return
            self._pull()
            left = end - time.monotonic()
            if self._ready:
                continue
            if left <= 0:
                return
            time.sleep(min(left, self._pace.poll))

    def _pull(self) -> None:
        """Take what has come, in the order of posting."""
        if not self._open:
            return
        came = []
        for reply in self._grid.pull_messages(list(self._open)):
            asked = self._open.pop(str(reply.metadata.reply_to_message_id), None)
            if asked is not None:
                came.append((asked.ticket, asked.node, asked, reply))
        for *_, asked, reply in sorted(came, key=lambda one: one[:2]):
            if asked.role is None:
                self._take_hello(asked, reply)
            else:
                self._take(asked.role, asked, reply)

    def _take(self, role: Role, asked: _Open, reply: Any) -> None:
        ticket = Ticket(asked.ticket)
        try:
            head, frame = _unpacked(_content(reply), "reply")
            self._check(role, asked, head, frame)
            self._check_number(role, asked.ticket, head)
        except TacitError as error:
            self._refuse(role, ticket, error)
            return
        self._book(role, asked, frame, head)
        try:
            message = decode(frame)
        except WireError as error:
            message = refusal(error)
        self._views[self.coordinator].receive(role, message.tag, ticket, frame)
        self._ready.append((role, ticket, message))

    def _check(self, role: Role, asked: _Open, head: Message, frame: bytes) -> None:
        """Raise unless the member signed this reply to this very request."""
        what = f"the reply of {role}"
        _check_signature(head, frame, signer=self._party.registry[role], what=what)
        expected: dict[str, Value] = {
            "session": self.session,
            "node": asked.node,
            "role": str(role),
            "ticket": asked.ticket,
            "request": asked.digest,
        }
        if asked.role is not None:
            expected["digest"] = self._party.digest
        if wrong := [name for name, value in expected.items() if head.fields.get(name) != value]:
            raise CheatingDetected(
                f"{what} belongs to another request ({', '.join(wrong)}): it was replayed or swapped"
            )
        seconds = head.fields.get("seconds")
        if not isinstance(seconds, float) or not 0 <= seconds <= 1e9:
            raise WireError(f"{what} does not say how long it took")

    def _check_number(self, role: Role, ticket: int, head: Message) -> None:
        """A member's state never gets older."""
        number, newest = head.integer("number", low=0, high=1 << 62), self.numbers[role]
        if _HELLO < ticket < self._newest[role]:  # an earlier reply that comes late
            if number > newest:
                raise CheatingDetected(f"an earlier reply of {role} counts more answers")
            return
        if number < newest:
            raise CheatingDetected(
                f"the state of {role} is of answer {number}, but {newest} were seen: it was restored from a backup. Enrol "
                "this member anew, with a new key, a new certificate and an empty state"
            )
        self.numbers[role], self._newest[role] = number, max(ticket, self._newest[role])

    def _book(self, role: Role, asked: _Open, frame: bytes, head: Message) -> None:
        seconds = head.fields["seconds"]
        self._cost.book(
            role, messages=1, sent=len(frame), received=asked.size,
            seconds=seconds if isinstance(seconds, float) else 0.0,
        )  # fmt: skip
        self._cost.book(self.coordinator, received=len(frame))
        depth = self._depth[role] = max(self._depth[role], asked.depth)
        self._cost.chain(depth + 1)
        self._depth[self.coordinator] = max(self._depth[self.coordinator], depth + 1)


def _content(reply: Any) -> Any:
    """The content of a Flower message.

    Raises:
        PeerDropped: Flower says that the node is gone, or its app died.
        PeerRefused: Flower says that the app raised an error. Nobody signed what Flower says.
        WireError: there is neither content nor an error.
    """
    if reply.has_error():
        code, reason = reply.error.code, str(reply.error.reason or "no reason given")
        said = "".join(c if c.isprintable() else " " for c in reason[:400])
        text = f"Flower reports error {code}: {said}"
        raise PeerDropped(text) if code in _GONE else PeerRefused(text)
    if not reply.has_content():
        raise WireError("a Flower message without content")
    return reply.content


# --- the member's side


@dataclass(slots=True)
class ContextStore:
    """A member's newest entry in Flower's ``context.state``, which Flower hands from one process to the next.

    It appends only: the numbers of entries ascend one by one, and each names the digest of the one before. The digests of
    all entries that it held are kept, so that none comes back.

    Args:
        state: ``context.state``.
        name: of the record in it.
    """

    state: MutableMapping[str, Any]
    name: str = f"{_RECORD}-state"

    def load(self) -> bytes | None:
        """The newest entry.

        Raises:
            CheatingDetected: it is not the one that was kept last.
        """
        entry, digests = self._read()
        if entry is None:
            return None
        if not digests or digests[-1] != hashlib.sha256(entry).digest():
            raise CheatingDetected(
                "the entry in this node's context is not the newest that was kept there: the context was changed, or "
                "restored from a backup. Enrol this member anew"
            )
        return entry

    def save(self, entry: bytes) -> None:
        """Keep an entry after the newest.

        Raises:
            CheatingDetected: it does not follow the newest entry, or was there before.
            WireError: it is no entry.
        """
        _, digests = self._read()
        outer, digest = decode(entry), hashlib.sha256(entry).digest()
        number, before = outer.integer("number", low=1), outer.blob("before", length=32)
        newest = digests[-1] if digests else bytes(32)
        if number != len(digests) + 1 or before != newest or digest in digests:
            raise CheatingDetected(
                f"entry {number} does not follow the newest in this node's context, {len(digests)}: two processes answered "
                "from one state, or it was restored from a backup. Nothing was answered"
            )
        record = {"entry": entry, "digests": b"".join((*digests, digest))}
        self.state[self.name] = _flower("app").ConfigRecord(record)

    def _read(self) -> tuple[bytes | None, list[bytes]]:
        if self.name not in self.state:
            return None, []
        record = self.state[self.name]
        entry, joined = record["entry"], record["digests"]
        return entry, [joined[at : at + 32] for at in range(0, len(joined), 32)]


@dataclass(slots=True)
class _Plain:
    """A store of what needs no order, in ``context.state``."""

    state: MutableMapping[str, Any]
    name: str = f"{_RECORD}-session"

    def load(self) -> bytes | None:
        return self.state[self.name]["entry"] if self.name in self.state else None

    def save(self, entry: bytes) -> None:
        self.state[self.name] = _flower("app").ConfigRecord({"entry": entry})


@dataclass(slots=True)
class _Sessions:
    """Which conversations a member knows, and how far the newest is."""

    store: Store
    past: list[bytes] = field(default_factory=list)
    session: bytes = b""
    ticket: int = _HELLO

    def __post_init__(self) -> None:
        if (entry := self.store.load()) is not None:
            kept = decode(entry)
            joined = kept.blob("past")
            self.past = [joined[at : at + 16] for at in range(0, len(joined), 16)]
            self.session, self.ticket = kept.blob("session", length=16), kept.integer("ticket")

    def meet(self, session: bytes, ticket: int) -> None:
        """Raise unless this request may come now.

        Raises:
            CheatingDetected: it is of a past session, or of an earlier ticket.
            ProtocolError: this session did not begin here.
        """
        if session in self.past:
            raise CheatingDetected("a request of a session that is over: it was replayed")
        if ticket == _HELLO:
            if session == self.session:
                return  # asked again; the ticket stays
            if len(self.past) >= _SESSIONS:
                raise ProtocolError(f"{_SESSIONS} sessions of one run: give it another name")
            if self.session:
                self.past.append(self.session)
            self.session, self.ticket = session, _HELLO
        elif session != self.session:
            raise ProtocolError(
                "this node was not asked who it is in this session: its context was lost; run again"
            )
        elif ticket < self.ticket:
            raise CheatingDetected(
                f"a request of ticket {ticket} after one of {self.ticket}: it was replayed, or overtaken"
            )
        else:
            self.ticket = ticket
        past = b"".join(self.past)
        self.store.save(
            encode(Message("session", past=past, session=self.session, ticket=self.ticket))
        )


def answer(
    content: Any,
    context: Context,
    *,
    party: Party,
    safe: Safe,
    make_member: Callable[[], Member],
) -> Any:
    """A member's answer to one Flower message; the member is made for it, if the coordinator signed it.

    Args:
        content: the message's ``RecordDict``.
        context: ``flwr.app.Context``.
        party: the member.
        safe: where it keeps its state.
        make_member: makes it as it is before its first message; a `TacitError` raised here is a refusal.

    Returns:
        The reply's ``RecordDict``.

    Raises:
        WireError: the message is none of this package's.
        CheatingDetected: the coordinator did not sign it, or not for this node now. Flower reports that as an error.
    """
    head, frame = _unpacked(content, "request")
    what = "the request"
    _check_signature(head, frame, signer=party.registry[party.coordinator], what=what)
    session, ticket = head.blob("session", length=16), head.integer("ticket", low=_HELLO)
    hello = ticket == _HELLO
    if head.integer("node") != context.node_id or head.text("role") != (
        "" if hello else str(party.role)
    ):
        raise CheatingDetected(f"{what} is for another node: it was swapped on its way")
    if not hello and head.blob("digest") != party.digest:
        raise CheatingDetected(f"{what} belongs to another run or other settings")
    if head.blob("digest") != party.digest:  # the coordinator will say so
        return _reply(Message("here"), head, frame, context, party=party, number=0, seconds=0.0)
    name = f"flower-{party.digest.hex()[:32]}"
    with alone(safe.folder / f"{name}.lock"):
        store: Store
        remembered: Store
        if safe.state is None:
            store, remembered = ContextStore(context.state), _Plain(context.state)
        else:
            store = FileStore(safe.state / f"{name}.state")
            remembered = FileStore(safe.state / f"{name}.session")
        _Sessions(remembered).meet(session, ticket)
        start = time.perf_counter()
        witness = FileWitness(safe.folder / f"{name}.number")
        number, reply = 0, Message("here")
        try:
            about = party.digest + str(party.role).encode()
            member = DurableMember(
                make_member(), key=safe.key, about=about, store=store, witness=witness
            )
            number = member.number
            if not hello:
                reply = member.handle(decode(frame))
                number = member.number
        except TacitError as error:
            reply = refusal(error)
            number = max(number, witness.number())
        seconds = time.perf_counter() - start
        return _reply(reply, head, frame, context, party=party, number=number, seconds=seconds)


def _reply(
    reply: Message,
    head: Message,
    frame: bytes,
    context: Context,
    *,
    party: Party,
    number: int,
    seconds: float,
) -> Any:
    """The signed answer to a request."""
    out = encode(reply)
    signed = _signed(
        "reply", party.key, out, session=head.blob("session"), digest=party.digest, node=context.node_id,
        role=str(party.role), ticket=head.integer("ticket"), request=hashlib.sha256(frame).digest(),
        number=number, seconds=seconds,
    )  # fmt: skip
    return _packed(signed, out)


def client_app(
    make_member: Callable[[Context], Member],
    enrolled: Callable[[Context], tuple[Party, Safe]],
    *,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Any:
    """The ``flwr.clientapp.ClientApp`` of a member.

    Args:
        make_member: makes the member as it is before its first message; called for every message, in a new process, once
            the coordinator's signature was checked. Its settings, its data, and what it draws from a seed must be the same
            each time.
        enrolled: who the node is and where its state lies.
        around: a context in which the member is made and works, for instance one thread.

    Raises:
        ConfigError: Flower is not installed.
    """
    app = _flower("clientapp").ClientApp()

    def handle(message: Any, context: Context) -> Any:
        party, safe = enrolled(context)

        def made() -> Member:
            return make_member(context)

        with around():
            content = answer(message.content, context, party=party, safe=safe, make_member=made)
        return _flower("app").Message(content, reply_to=message)

    app.query()(handle)
    return app
