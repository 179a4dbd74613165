"""Members on Flower answer as members in one process do, and who carries the messages can only drop them.

An in-memory grid hands every message to a new member, with a copy of the context, as Flower does. Where Flower is installed
its own records and messages are used, else stand-ins. What needs Flower's processes is marked slow: ``make flower`` first,
then ``.venv-flower/bin/pytest -m slow tests/parties/test_flower.py``.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tacit.core.coins import Coins
from tacit.core.errors import (
    CheatingDetected,
    ConfigError,
    PeerDropped,
    PeerRefused,
    ProtocolError,
    RangeError,
    TooFewParties,
    WireError,
)
from tacit.core.files import alone
from tacit.core.wire import Message, decode, encode
from tacit.crypto.keys import SigningKey, signing_key
from tacit.nn.federated import Collaborative, Task
from tacit.parties.checkpoints import FileCheckpoint
from tacit.parties.durable import FileWitness
from tacit.parties.links import flower
from tacit.parties.links.flower import ContextStore, FlowerHub, Pace, Party, Safe, client_app
from tacit.parties.links.local import LocalHub
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.seats import Seat
from tacit.parties.star import REFUSED, Member, Ticket, as_error, ask
from tacit.training.plain import FederatedAveraging
from tacit.training.secure_aggregation import SecureAggregation
from tacit.training.selective_sgd import SelectiveSGD

ROOT = Path(__file__).parents[2]
FLOWER = importlib.util.find_spec("flwr") is not None
DIGEST = bytes(range(32))
SEED = b"flower"


# --- stand-ins for Flower's types


class _Metadata:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields, _message_id="")

    @property
    def message_id(self) -> str:
        return self.__dict__["_message_id"]


class _Message:
    def __init__(
        self,
        content: Any,
        dst_node_id: int | None = None,
        message_type: str | None = None,
        *,
        ttl: float | None = None,
        group_id: str | None = None,
        reply_to: Any = None,
    ) -> None:
        is_error = isinstance(content, SimpleNamespace)
        self.error = content if is_error else None
        self.content = None if is_error else content
        before = "" if reply_to is None else reply_to.metadata.message_id
        self.metadata = _Metadata(
            dst_node_id=dst_node_id,
            message_type=message_type,
            reply_to_message_id=before,
            ttl=ttl,
            group_id=group_id,
        )

    def has_error(self) -> bool:
        return self.error is not None

    def has_content(self) -> bool:
        return self.content is not None


class _ClientApp:
    def query(self) -> Callable[[Any], Any]:
        def keep(function: Any) -> Any:
            self.function = function
            return function

        return keep

    def __call__(self, message: Any, context: Any) -> Any:
        return self.function(message, context)


@pytest.fixture(autouse=True)
def flwr(monkeypatch: pytest.MonkeyPatch) -> None:
    if FLOWER:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        return
    whole, app, client = (types.ModuleType(f"flwr{part}") for part in ("", ".app", ".clientapp"))
    app.ConfigRecord = app.RecordDict = dict
    app.Message = _Message
    app.Error = lambda code, reason=None: SimpleNamespace(code=code, reason=reason)
    client.ClientApp = _ClientApp
    for module in (whole, app, client):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def app_of_flower() -> Any:
    return importlib.import_module("flwr.app")


# --- a federation in memory


def keys_of(*roles: Role) -> dict[Role, SigningKey]:
    return {role: signing_key(Coins.from_seed(str(role).encode())) for role in roles}


@dataclass
class Node:
    """A SuperNode: its context, and the folder where its member's witness lies."""

    number: int
    app: Any
    state: Any = None
    run_config: Mapping[str, Any] = field(default_factory=dict)
    crash: bool = False
    silent: bool = False

    def __post_init__(self) -> None:
        self.state = app_of_flower().RecordDict({})

    def answer(self, message: Any) -> Any:
        context = SimpleNamespace(
            node_id=self.number,
            node_config={},
            run_config=self.run_config,
            state=copy.deepcopy(self.state),
        )
        try:
            if self.crash:
                raise RuntimeError("it broke\x1b[2J")
            reply = self.app(message, context)
        except Exception as error:
            text = f"{type(error)}:<'{error}'>"
            reply = app_of_flower().Message(app_of_flower().Error(2, text), reply_to=message)
        self.state = context.state
        return reply


class MemoryGrid:
    """Delivers when replies are pulled; what lies between can be changed on its way."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.number: node for node in nodes}
        self.waiting: dict[str, Any] = {}
        self.sent: list[Any] = []
        self.came: list[Any] = []
        self.on_request: Callable[[Any], Any] = lambda message: message
        self.on_reply: Callable[[Any], Any] = lambda message: message
        self.lost = 0  # messages that are not taken

    def get_node_ids(self) -> list[int]:
        return sorted(self.nodes)

    def push_messages(self, messages: Iterable[Any]) -> list[str | None]:
        numbers: list[str | None] = []
        for message in messages:
            if self.lost:
                self.lost -= 1
                numbers.append(None)
                continue
            number = f"message {len(self.sent)}"
            message.metadata.__dict__["_message_id"] = number
            self.sent.append(message)
            self.waiting[number] = message
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        replies = []
        for number in list(message_ids):
            if number not in self.waiting:
                continue
            message = self.waiting[number]
            node = self.nodes.get(message.metadata.dst_node_id)
            if node is None:
                error = app_of_flower().Error(5, "node unavailable")
                reply = app_of_flower().Message(error, reply_to=message)
            elif node.silent:
                continue
            else:
                reply = self.on_reply(node.answer(self.on_request(message)))
            del self.waiting[number]
            self.came.append(reply)
            replies.append(reply)
        return replies[::-1]  # no order is promised


class Counting:
    """Tells how often it was asked, over all its lives."""

    def __init__(self) -> None:
        self.asked = 0

    def handle(self, request: Message) -> Message:
        self.asked += 1
        if request.tag == "refuse":
            raise RangeError("too large")
        return Message("told", asked=self.asked, payload=request.array("payload"))

    def export(self) -> bytes:
        return encode(Message("state", asked=self.asked))

    def restore(self, state: bytes) -> None:
        self.asked = decode(state).integer("asked")


def request(tag: str = "ask", value: float = 1.0) -> Message:
    return Message(tag, payload=np.full(3, value, np.float32))


class World:
    """Three owners, each on a node, and what is needed to make hubs over them."""

    def __init__(
        self,
        folder: Path,
        make_member: Callable[[Role], Member] = lambda role: Counting(),
        *,
        owners_: int = 3,
        keep: bool = False,
    ) -> None:
        self.folder = folder
        self.roles = owners(owners_)
        self.keys = keys_of(SERVER, *self.roles)
        self.registry = {role: key.public for role, key in self.keys.items()}
        self.make_member = make_member
        self.keep = keep
        self.made = 0
        self.grid = MemoryGrid(self.node(100 + role.index, role) for role in self.roles)

    def party(self, role: Role, digest: bytes = DIGEST) -> Party:
        return Party(role=role, key=self.keys[role], registry=self.registry, digest=digest)

    def safe(self, role: Role) -> Safe:
        folder = self.folder / str(role)
        return Safe(key=bytes(32), folder=folder, state=folder / "state" if self.keep else None)

    def node(
        self, number: int, role: Role, *, digest: bytes = DIGEST, key: SigningKey | None = None
    ) -> Node:
        registry = dict(self.registry) if key is None else {**self.registry, role: key.public}
        party = Party(role=role, key=key or self.keys[role], registry=registry, digest=digest)

        def made(context: Any) -> Member:
            self.made += 1
            return self.make_member(role)

        return Node(number, client_app(made, lambda context: (party, self.safe(role))))

    def hub(self, **options: Any) -> FlowerHub:
        options = {"pace": Pace(enrolment=0.0, poll=0.0), **options}
        return FlowerHub(self.grid, self.party(SERVER), self.roles, **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def one(hub: FlowerHub, role: Role, message: Message) -> Message:
    """A request to one member, and what came."""
    ticket = hub.post({role: message})
    (came,) = [
        reply for at, stamp, reply in hub.replies(deadline=0) if (at, stamp) == (role, ticket)
    ]
    return came


def error_of(reply: Message) -> Exception:
    assert reply.tag == REFUSED
    return as_error(Role("owner"), reply)


# --- the same run


def booked(hub: Any) -> tuple[Any, int]:
    entries = hub.cost.entries().items()
    return {k: (c.messages, c.bytes_sent, c.bytes_received) for k, c in entries}, hub.cost.rounds


SCHEMES: tuple[Collaborative, ...] = (
    FederatedAveraging(rounds=3, local_steps=2, batch_size=4),
    SelectiveSGD(epochs=2, batch_size=4),
    SecureAggregation(rounds=3, local_steps=2, batch_size=4, session_rounds=2),
)


def seat() -> Seat:
    return Seat(coins=Coins.from_seed(SEED))


def members_on(task: Task, scheme: Collaborative) -> Callable[[Role], Member]:
    return lambda role: scheme.members_of(task.only(role), seat())[role]


def weights(run: Any) -> list[torch.Tensor]:
    return [value.detach().clone() for value in run.output.value.parameters()]


@pytest.mark.parametrize("keep", [False, True], ids=["context", "folder"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=["averaging", "selective", "secure"])
def test_bytes_rounds_and_weights_are_those_of_one_process(
    scheme: Collaborative, keep: bool, task: Task, tmp_path: Path
) -> None:
    local = LocalHub(scheme.members_of(task, seat()))
    expected = scheme.run(local, task.only(), seat())
    world = World(tmp_path, members_on(task, scheme), keep=keep)
    hub = world.hub()
    found = scheme.run(hub, task.only(), seat())
    assert booked(hub) == booked(local)
    assert all(map(torch.equal, weights(found), weights(expected)))
    assert hub.views[SERVER].received == local.views[SERVER].received
    requests = hub.cost.total(role=SERVER).messages
    assert world.made == requests + len(world.roles)  # a new member for each message
    assert sum(hub.numbers.values()) == requests


@pytest.mark.parametrize("keep", [False, True], ids=["context", "folder"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=["averaging", "selective", "secure"])
def test_a_coordinator_that_died_goes_on_from_its_checkpoint(
    scheme: Collaborative, keep: bool, task: Task, tmp_path: Path
) -> None:
    expected = scheme.run(LocalHub(scheme.members_of(task, seat())), task.only(), seat())
    world = World(tmp_path, members_on(task, scheme), keep=keep)

    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    path = tmp_path / "checkpoint"
    first = world.hub()
    with pytest.raises(Killed):
        scheme.run(first, task.only(), seat(), progress=kill, checkpoint=FileCheckpoint(path, b"a"))
    if keep:  # another flwr run: contexts are empty
        for node in world.grid.nodes.values():
            node.state = app_of_flower().RecordDict({})
    hub = world.hub(numbers=first.numbers)
    found = scheme.run(hub, task.only(), seat(), checkpoint=FileCheckpoint(path, b"a"))
    assert all(map(torch.equal, weights(found), weights(expected)))


def test_a_frame_goes_in_pieces_and_comes_back_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "PIECE", 64)
    hub = world.hub()
    big = Message("ask", payload=np.arange(500, dtype=np.float32))
    replies = ask(hub, dict.fromkeys(hub.members(), big))
    assert all((r.array("payload") == big.array("payload")).all() for r in replies.values())
    assert len(world.grid.sent[-1].content) > 30


# --- enrolment


def test_members_are_found_wherever_they_are(world: World) -> None:
    hub = world.hub()
    assert hub.coordinator == SERVER
    assert hub.members() == list(world.roles) and hub.members("dealer") == []
    assert hub.cost.entries() == {} and hub.cost.rounds == 0
    assert [r.integer("asked") for r in ask(hub, dict.fromkeys(world.roles, request())).values()] == [1, 1, 1]  # fmt: skip


def test_who_is_missing_is_named(world: World) -> None:
    del world.grid.nodes[101]
    world.grid.nodes[102].crash = True
    with pytest.raises(TooFewParties, match="owner 1: no node answered") as caught:
        world.hub()
    assert caught.value.replied == (Role("owner", 0),)
    assert set(caught.value.missing) == {Role("owner", 1), Role("owner", 2)}
    assert "it broke [2J" in str(caught.value)  # no escape reaches a terminal


def test_the_hub_waits_for_nodes_that_come_late(world: World) -> None:
    late = world.grid.nodes.pop(102)
    looked = []

    def ids() -> list[int]:
        looked.append(1)
        if len(looked) == 4:
            world.grid.nodes[102] = late
        return sorted(world.grid.nodes)

    world.grid.get_node_ids = ids  # type: ignore[method-assign]
    hub = world.hub(pace=Pace(enrolment=20.0, poll=0.001))
    assert len(looked) >= 4
    assert len(ask(hub, dict.fromkeys(world.roles, request()))) == 3


def test_with_enough_members_the_others_join_later(world: World) -> None:
    late = world.grid.nodes.pop(102)
    hub = world.hub(at_least=2)
    with pytest.raises(PeerDropped, match="owner 2: no node has enrolled"):
        ask(hub, dict.fromkeys(world.roles, request()))
    assert hub.cost.total(role=SERVER).messages == 2
    world.grid.nodes[102] = late
    ask(hub, {Role("owner", 0): request()})
    assert len(ask(hub, dict.fromkeys(world.roles, request()))) == 3


def test_a_member_comes_back_as_another_node(tmp_path: Path) -> None:
    world = World(tmp_path, keep=True)
    hub = world.hub()
    ask(hub, dict.fromkeys(world.roles, request()))
    del world.grid.nodes[101]
    world.grid.nodes[201] = world.node(201, Role("owner", 1))
    got = ask(hub, dict.fromkeys(world.roles, request(value=2.0)), at_least=2)
    assert Role("owner", 1) not in got  # Flower said that the node is gone
    got = ask(hub, dict.fromkeys(world.roles, request(value=3.0)))
    assert got[Role("owner", 1)].integer("asked") == 2


@pytest.mark.parametrize("harm", ["key", "digest", "role", "twice", "restored"])
def test_a_node_that_is_not_what_it_must_be_is_not_enrolled(world: World, harm: str) -> None:
    last = Role("owner", 2)
    if harm == "key":
        world.grid.nodes[102] = world.node(102, last, key=signing_key(Coins()))
        what = "owner 2: no node answered as it; node 102: the signature on the reply of owner 2"
    elif harm == "digest":
        world.grid.nodes[102] = world.node(102, last, digest=bytes(32))
        what = "owner 2: it takes part in something else"
    elif harm == "role":
        stranger = Role("dealer")
        world.keys[stranger] = signing_key(Coins())
        world.registry[stranger] = world.keys[stranger].public
        world.grid.nodes[102] = world.node(102, stranger)
        what = "node 102: it answers as somebody who does not take part"
    elif harm == "twice":
        world.grid.nodes[103] = world.node(103, Role("owner", 1))
        world.grid.nodes[104] = world.grid.nodes.pop(102)
        world.grid.nodes[104].number = 104
        with pytest.raises(ProtocolError, match="nodes 101 and 103 both answer as owner 1"):
            world.hub()
        return
    else:
        FileWitness(world.folder / str(last) / f"flower-{DIGEST.hex()[:32]}.number").note(1)
        what = "owner 2: .*restored from a backup"
    with pytest.raises(TooFewParties, match=what):
        world.hub()


def test_settings_of_a_hub_are_checked(world: World) -> None:
    with pytest.raises(ConfigError, match="at least one member"):
        FlowerHub(world.grid, world.party(SERVER), [])
    with pytest.raises(ConfigError, match="at least one member"):
        FlowerHub(world.grid, world.party(Role("owner", 0)), world.roles)
    with pytest.raises(ConfigError, match="no key of owner 9"):
        FlowerHub(world.grid, world.party(SERVER), [Role("owner", 9)])
    with pytest.raises(ConfigError, match="32 bytes"):
        world.party(SERVER, b"short")
    with pytest.raises(ConfigError, match="another key"):
        Party(role=SERVER, key=signing_key(Coins()), registry=world.registry, digest=DIGEST)
    with pytest.raises(ConfigError, match="32 bytes"):
        Safe(key=b"", folder=Path())
    with pytest.raises(ConfigError, match="no member is dealer 0"):
        world.hub().post({Role("dealer"): request()})


def test_without_flower_the_error_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flwr.clientapp", None)
    with pytest.raises(ConfigError, match="pip install"):
        client_app(lambda context: Counting(), lambda context: pytest.fail("not called"))


# --- refusals


def test_a_members_error_is_its_refusal(world: World) -> None:
    hub = world.hub()
    with pytest.raises(RangeError, match="owner 1: too large"):
        ask(hub, {Role("owner", 1): request("refuse")})
    assert ask(hub, {Role("owner", 1): request()})[Role("owner", 1)].integer("asked") == 2


def test_what_flower_reports_is_that_members_refusal(world: World) -> None:
    hub = world.hub()
    world.grid.nodes[100].crash = True
    del world.grid.nodes[101]
    hub.post(dict.fromkeys(world.roles, request()))
    came = {role: reply for role, _, reply in hub.replies(deadline=0)}
    assert isinstance(error_of(came[Role("owner", 0)]), PeerRefused)
    assert isinstance(error_of(came[Role("owner", 1)]), PeerDropped)
    assert came[Role("owner", 2)].tag == "told"
    assert hub.cost.total(role=Role("owner", 0)).messages == 0


def test_a_message_that_flower_does_not_take_is_a_refusal(world: World) -> None:
    hub = world.hub()
    world.grid.lost = 1
    assert isinstance(error_of(one(hub, Role("owner", 0), request())), PeerDropped)


def test_a_member_that_cannot_be_made_refuses(tmp_path: Path) -> None:
    def broken(role: Role) -> Member:
        raise RangeError("its data are not there")

    with pytest.raises(TooFewParties, match="its data are not there"):
        World(tmp_path, broken).hub()


def test_a_silent_member_is_missing_and_its_late_reply_disturbs_nobody(world: World) -> None:
    hub = world.hub()
    world.grid.nodes[101].silent = True
    with pytest.raises(TooFewParties, match="owner 1: no reply in time"):
        ask(hub, dict.fromkeys(world.roles, request()), at_least=3, deadline=0.05)
    world.grid.nodes[101].silent = False
    replies = ask(hub, dict.fromkeys(world.roles, request(value=2.0)))
    assert [reply.integer("asked") for reply in replies.values()] == [2, 2, 2]


def test_a_request_that_was_overtaken_is_refused(world: World) -> None:
    hub, role = world.hub(), Role("owner", 1)
    first = hub.post({role: request(value=1.0)})
    second = hub.post({role: request(value=2.0)})
    waiting = world.grid.waiting
    world.grid.waiting = dict(reversed(waiting.items()))
    pull = world.grid.pull_messages
    world.grid.pull_messages = lambda ids: pull(list(ids)[::-1])  # type: ignore[method-assign]
    came = {ticket: reply for _, ticket, reply in hub.replies(deadline=0)}
    assert came[second].integer("asked") == 1
    assert "overtaken" in str(error_of(came[first]))


# --- undecodable, forged and replayed replies


def forged(
    reply: Any, world: World, by: Role, frame: bytes | None = None, /, **changes: Any
) -> Any:
    """The reply with some fields of its head and its frame changed, signed by that member."""
    head, was = flower._unpacked(reply.content, "reply")
    fields = {k: v for k, v in head.fields.items() if k != "signature"} | changes
    frame = was if frame is None else frame
    reply.content = flower._packed(flower._signed("reply", world.keys[by], frame, **fields), frame)
    return reply


GARBAGE = (b"", b"\xac", bytes(100), b"\xac\x01\x01x\x01\x00\x01a")


@pytest.mark.parametrize("garbage", GARBAGE)
def test_bytes_that_are_no_frame_are_a_refusal_of_their_sender(
    world: World, garbage: bytes
) -> None:
    hub, role = world.hub(), Role("owner", 1)
    world.grid.on_reply = lambda reply: forged(reply, world, role, garbage)
    hub.post({role: request()})
    ((who, _, reply),) = hub.replies(deadline=0)
    assert who == role and isinstance(error_of(reply), WireError)


def empty(reply: Any, *, records: Any) -> Any:
    reply.content = app_of_flower().RecordDict(records)
    return reply


@pytest.mark.parametrize("kind", ["nothing", "head", "pieces", "count", "text", "kind"])
def test_records_that_are_none_of_ours_are_a_refusal(world: World, kind: str) -> None:
    hub, role = world.hub(), Role("owner", 1)
    record = app_of_flower().ConfigRecord
    records = {
        "nothing": {},
        "head": {
            "tacit": record({"head": bytes(9), "pieces": 1}),
            "tacit-0": record({"piece": b""}),
        },
        "pieces": {"tacit": record({"head": bytes(9), "pieces": 1})},
        "count": {"tacit": record({"head": bytes(9), "pieces": 1 << 40})},
        "text": {"tacit": record({"head": "head", "pieces": 1})},
        "kind": {
            "tacit": record({"head": encode(Message("request")), "pieces": 1}),
            "tacit-0": record({"piece": b"x"}),
        },
    }[kind]
    world.grid.on_reply = lambda reply: empty(reply, records=records)
    assert isinstance(error_of(one(hub, role, request())), WireError)


@pytest.mark.parametrize(
    "changes",
    [
        {"session": bytes(16)},
        {"ticket": 5},
        {"node": 102},
        {"role": "owner 2"},
        {"digest": bytes(32)},
        {"request": bytes(32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_reply_to_anything_else_is_refused(world: World, changes: dict[str, Any]) -> None:
    hub, role = world.hub(), Role("owner", 1)
    world.grid.on_reply = lambda reply: forged(reply, world, role, **changes)
    error = error_of(one(hub, role, request()))
    assert isinstance(error, CheatingDetected) and next(iter(changes)) in str(error)
    assert hub.cost.total(role=role).messages == 0 and hub.numbers[role] == 0


def test_a_reply_that_somebody_else_signed_or_changed_is_refused(world: World) -> None:
    hub, role = world.hub(), Role("owner", 1)
    world.grid.on_reply = lambda reply: forged(reply, world, Role("owner", 2))
    assert isinstance(error_of(one(hub, role, request())), CheatingDetected)

    def changed(reply: Any) -> Any:
        head = reply.content["tacit"]["head"]
        reply.content = flower._packed(head, encode(Message("told", asked=7)))
        return reply

    world.grid.on_reply = changed
    assert isinstance(error_of(one(hub, role, request(value=2.0))), CheatingDetected)


def test_an_earlier_reply_is_not_taken_for_another(world: World) -> None:
    hub, role = world.hub(), Role("owner", 1)
    one(hub, role, request())
    old = world.grid.came[-1].content

    def replay(reply: Any) -> Any:
        reply.content = old
        return reply

    world.grid.on_reply = replay
    error = error_of(one(hub, role, request(value=2.0)))
    assert isinstance(error, CheatingDetected) and "replayed" in str(error)


def test_two_members_replies_cannot_be_swapped(world: World) -> None:
    hub = world.hub()
    held: list[Any] = []

    def swap(reply: Any) -> Any:
        if held:
            reply.content, held[0].content = held[0].content, reply.content
        held.append(reply)
        return reply

    world.grid.on_reply = swap
    hub.post(dict.fromkeys(world.roles[:2], request()))
    assert {error_of(reply).__class__ for *_, reply in hub.replies(deadline=0)} == {
        CheatingDetected
    }


def test_a_signed_time_that_is_none_is_refused(world: World) -> None:
    hub, role = world.hub(), Role("owner", 1)
    world.grid.on_reply = lambda reply: forged(reply, world, role, seconds=float("nan"))
    assert isinstance(error_of(one(hub, role, request())), WireError)


# --- forged and replayed requests


def content_of(world: World, hub: FlowerHub, key: SigningKey | None = None, **changes: Any) -> Any:
    """A request to owner 1 as the coordinator makes it, but for the changes."""
    frame = changes.pop("frame", encode(request()))
    fields = {
        "session": hub.session, "digest": DIGEST, "node": 101, "role": "owner 1", "ticket": 0,
    } | changes  # fmt: skip
    return flower._packed(
        flower._signed("request", key or world.keys[SERVER], frame, **fields), frame
    )


def handed(world: World, content: Any) -> Any:
    """Hand the node of owner 1 a request by hand; an error goes through."""
    node = world.grid.nodes[101]
    message = app_of_flower().Message(content, dst_node_id=101, message_type="query")
    message.metadata.__dict__["_message_id"] = "by hand"
    context = SimpleNamespace(node_id=101, node_config={}, run_config={}, state=node.state)
    return node.app(message, context)


def test_a_request_of_the_coordinator_is_answered(world: World) -> None:
    hub = world.hub()
    _, frame = flower._unpacked(handed(world, content_of(world, hub)).content, "reply")
    assert decode(frame).integer("asked") == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"key": "owner"}, CheatingDetected),
        ({"node": 102}, CheatingDetected),
        ({"role": "owner 2"}, CheatingDetected),
        ({"role": ""}, CheatingDetected),
        ({"digest": bytes(32)}, CheatingDetected),
        ({"session": bytes(16)}, ProtocolError),
        ({"session": b""}, WireError),
        ({"ticket": -2}, WireError),
    ],
    ids=str,
)
def test_a_forged_request_never_reaches_the_member(
    world: World, changes: dict[str, Any], error: type[Exception]
) -> None:
    hub = world.hub()
    made = world.made
    if "key" in changes:
        changes = {"key": world.keys[Role("owner", 1)]}
    with pytest.raises(error):
        handed(world, content_of(world, hub, **changes))
    assert world.made == made


def test_a_frame_that_was_changed_on_its_way_never_reaches_the_member(world: World) -> None:
    hub = world.hub()
    made = world.made
    head = content_of(world, hub)["tacit"]["head"]
    with pytest.raises(CheatingDetected, match="signature on the request"):
        handed(world, flower._packed(head, encode(request(value=2.0))))
    assert world.made == made


def test_what_is_asked_twice_is_answered_once(world: World) -> None:
    hub = world.hub()
    role = Role("owner", 1)
    assert one(hub, role, request()).integer("asked") == 1
    again = world.grid.sent[-1].content
    _, frame = flower._unpacked(handed(world, again).content, "reply")
    assert decode(frame).integer("asked") == 1  # the same answer, and nothing was spent
    assert one(hub, role, request(value=2.0)).integer("asked") == 2
    made = world.made
    with pytest.raises(CheatingDetected, match="replayed"):
        handed(world, again)
    assert world.made == made


def test_a_session_that_is_over_is_over(world: World) -> None:
    first = world.hub()
    hello = next(m.content for m in world.grid.sent if m.metadata.dst_node_id == 101)
    one(first, Role("owner", 1), request())
    old = world.grid.sent[-1].content
    second = world.hub()
    for content in (hello, old):
        with pytest.raises(CheatingDetected, match="session that is over"):
            handed(world, content)
    assert one(second, Role("owner", 1), request(value=2.0)).integer("asked") == 2
    with pytest.raises(PeerRefused, match="session that is over"):
        ask(first, {Role("owner", 1): request(value=3.0)})


# --- state


def test_a_context_from_a_backup_is_refused(world: World) -> None:
    hub, role = world.hub(), Role("owner", 1)
    node = world.grid.nodes[101]
    one(hub, role, request(value=1.0))
    backup = copy.deepcopy(node.state)
    one(hub, role, request(value=2.0))
    node.state = backup
    error = error_of(one(hub, role, request(value=3.0)))
    assert isinstance(error, CheatingDetected) and "enrol this member anew" in str(error)
    with pytest.raises(TooFewParties, match="restored from a backup"):
        world.hub()


def test_a_context_that_was_lost_is_refused(world: World) -> None:
    hub, role = world.hub(), Role("owner", 1)
    one(hub, role, request())
    world.grid.nodes[101].state = app_of_flower().RecordDict({})
    with pytest.raises(TooFewParties, match="it was lost, or restored"):
        world.hub()
    assert isinstance(error_of(one(hub, role, request(value=2.0))), PeerRefused)


@pytest.mark.parametrize("again", [False, True], ids=["this hub", "the next"])
def test_a_witness_from_the_same_backup_does_not_help(world: World, again: bool) -> None:
    hub, role = world.hub(), Role("owner", 1)
    node = world.grid.nodes[101]
    one(hub, role, request(value=1.0))
    backup = copy.deepcopy(node.state)
    one(hub, role, request(value=2.0))
    one(hub, role, request(value=3.0))
    witness = FileWitness(world.folder / "owner 1" / f"flower-{DIGEST.hex()[:32]}.number")
    assert witness.number() == 3
    node.state = backup
    witness.note(1)
    if again:
        with pytest.raises(TooFewParties, match="but 3 were seen"):
            world.hub(numbers=hub.numbers)
    else:
        error = error_of(one(hub, role, request(value=4.0)))
        assert isinstance(error, CheatingDetected) and "but 3 were seen" in str(error)


def test_an_earlier_reply_that_counts_more_answers_is_refused(world: World) -> None:
    hub, role = world.hub(), Role("owner", 1)
    node = world.grid.nodes[101]
    node.silent = True
    first = hub.post({role: request(value=1.0)})
    assert list(hub.replies(deadline=0)) == []
    held = dict(world.grid.waiting)
    world.grid.waiting.clear()
    node.silent = False
    (number,) = held
    reply = node.answer(held[number])  # delivered after the next wave
    one(hub, role, request(value=2.0))
    world.grid.pull_messages = lambda ids: [forged(reply, world, role, number=9)]  # type: ignore[method-assign]
    ((_, ticket, came),) = hub.replies(deadline=0)
    assert ticket == first and isinstance(error_of(came), CheatingDetected)


def entry(number: int, before: bytes) -> bytes:
    return encode(Message("entry", number=number, before=before, sealed=b"x"))


def digest(entry: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(entry).digest()


def test_a_context_store_appends_only() -> None:
    state = app_of_flower().RecordDict({})
    store = ContextStore(state)
    assert store.load() is None
    first = entry(1, bytes(32))
    store.save(first)
    second = entry(2, digest(first))
    ContextStore(state).save(second)
    assert ContextStore(state).load() == second
    for wrong in (first, second, entry(2, digest(first)), entry(4, digest(second)), entry(3, digest(first))):  # fmt: skip
        with pytest.raises(CheatingDetected, match="does not follow"):
            store.save(wrong)
    assert store.load() == second
    with pytest.raises(WireError):
        store.save(b"nothing")
    state["tacit-state"]["entry"] = first
    with pytest.raises(CheatingDetected, match="not the newest"):
        store.load()


def test_what_is_kept_is_sealed(world: World) -> None:
    hub, role = world.hub(), Role("owner", 1)
    secret = np.frombuffer(b"a secret of 24 bytes !!!", np.float32)
    one(hub, role, Message("ask", payload=secret))
    kept = world.grid.nodes[101].state["tacit-state"]["entry"]
    assert secret.tobytes() not in kept and len(kept) > 100


def test_one_message_is_answered_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with alone(tmp_path / "a.lock"):
            order.append("second")

    with alone(tmp_path / "a.lock"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_two_messages_from_one_state_are_not_both_answered(world: World) -> None:
    """Two processes that got the same context: the second finds that the witness is ahead of it."""
    hub, role = world.hub(), Role("owner", 1)
    node = world.grid.nodes[101]
    tickets = [hub.post({role: request(value=value)}) for value in (1.0, 2.0)]
    same = copy.deepcopy(node.state)
    answer, node.answer = node.answer, None  # type: ignore[method-assign,assignment]

    def raced(message: Any) -> Any:
        node.state = copy.deepcopy(same)
        return answer(message)

    node.answer = raced  # type: ignore[method-assign]
    came: dict[Ticket, Message] = {ticket: reply for _, ticket, reply in hub.replies(deadline=0)}
    assert came[tickets[0]].integer("asked") == 1
    assert isinstance(error_of(came[tickets[1]]), CheatingDetected)


# --- Flower itself


@pytest.fixture
def python_with_flower() -> Iterator[Path]:
    python = ROOT / ".venv-flower/bin/python"
    if not python.exists():
        pytest.skip("needs Flower in .venv-flower: make flower")
    yield python


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheme", ["federated-averaging", "selective-sgd", "secure-aggregation"])
def test_on_flowers_own_processes(scheme: str, python_with_flower: Path) -> None:
    done = subprocess.run(
        [python_with_flower, ROOT / "scripts/flower_loopback.py", scheme],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
