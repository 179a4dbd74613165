"""Runs that are killed anywhere and gone on with: the same model to the bit, and no question is answered in two ways."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from tacit.core import files
from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import OutputError, TacitError, TooFewParties
from tacit.core.wire import Array, Message, decode, encode
from tacit.nn.federated import Collaborative, Task
from tacit.nn.local_work import parameters_of
from tacit.nn.turns import Schedule
from tacit.nn.updates import flattened
from tacit.parties.checkpoints import NOTHING, Checkpoint, FileCheckpoint
from tacit.parties.durable import DurableMember, FileStore, FileWitness
from tacit.parties.faults import Fault, Harm, Way
from tacit.parties.links.local import LocalHub, Timing
from tacit.parties.roles import SERVER, Role
from tacit.parties.seats import Seat
from tacit.parties.secure_sum.agreement import Adversary
from tacit.parties.star import REFUSED
from tacit.parties.views import FULL
from tacit.training.local_dp import LocalDP
from tacit.training.plain import FederatedAveraging, FederatedSGD
from tacit.training.secure_aggregation import SecureAggregation
from tacit.training.selective_sgd import Selection, SelectiveSGD, unpacked

pytestmark = pytest.mark.filterwarnings("ignore:theta_d = 0.5 never refreshed")
KEY, ABOUT = bytes(range(32)), b"this run"
DEADLINE = 5.0

TURNS = SelectiveSGD(epochs=2, local_steps=1, batch_size=2, theta_u=0.2, deadline=DEADLINE)
SECURE = SecureAggregation(
    rounds=3, session_rounds=2, local_steps=1, batch_size=2, deadline=DEADLINE
)
SCHEMES: dict[str, Collaborative] = {
    "federated-averaging": FederatedAveraging(rounds=3, local_steps=1, batch_size=2),
    "federated-sgd": FederatedSGD(rounds=3, batch_size=2),
    "local-dp": LocalDP(rounds=3, batch_size=2),
    "round-robin": replace(TURNS, theta_d=0.5),
    "random-order": replace(TURNS, schedule=Schedule.RANDOM_ORDER, selection=Selection.RANDOM),
    "asynchronous": replace(TURNS, schedule=Schedule.ASYNCHRONOUS, theta_d=0.5),
    "private-turns": replace(TURNS, gamma=0.1, epsilon_over_c=20.0, theta_u=0.02),
    "two-of-three": replace(TURNS, at_least=2),
    "asynchronous-two-of-three": replace(TURNS, schedule=Schedule.ASYNCHRONOUS, at_least=2),
    "secure": SECURE,
    "secure-active": replace(SECURE, adversary=Adversary.ACTIVE),
}
ALL = pytest.mark.parametrize("name", SCHEMES)
SECURED = {"secure", "secure-active"}
TOLERANT = {"two-of-three", "asynchronous-two-of-three"} | SECURED
"""Those in which an owner may be missing from a wave."""
ORDERED = set(SCHEMES) - TOLERANT - {"asynchronous"}
"""Those in which nobody goes on while one is missing, so that it changes nothing."""


class Killed(Exception):
    """Where a process ends; no error of tacit, so that nothing handles it."""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power. (Some file systems write a file out when it replaces another.)"""

    def moved(source: Path, target: Path) -> None:
        Path(target).unlink(missing_ok=True)
        os.rename(source, target)

    monkeypatch.setattr(files.os, "fsync", lambda handle: None)
    monkeypatch.setattr(files.os, "replace", moved)


# --- a coordinator that is killed


@dataclass(frozen=True, slots=True)
class Point:
    """Where the coordinator is killed.

    Args:
        what: "saving" and "saved", before and after a checkpoint is written; "posting", before requests leave; "reply", as
            one comes.
        at: at which of them, from 0.
        drained: what was under way to members still reaches them, and their replies are lost.
    """

    what: str
    at: int
    drained: bool = False


@dataclass(slots=True)
class Clock:
    """Counts what happens, and kills at a point."""

    point: Point | None = None
    seen: dict[str, int] = field(default_factory=dict)

    def tick(self, what: str, before: Callable[[], object] = lambda: None) -> None:
        at = self.seen.get(what, 0)
        self.seen[what] = at + 1
        if self.point is not None and (what, at) == (self.point.what, self.point.at):
            if self.point.drained:
                before()
            raise Killed

    def points(self) -> list[Point]:
        """All there were."""
        return [
            Point(what, at, drained)
            for what, count in self.seen.items()
            for at, drained in product(range(count), (False, True) if what == "reply" else (False,))
        ]


@dataclass(slots=True)
class Mortal:
    """A checkpoint beside which the coordinator may be killed."""

    inner: Checkpoint
    clock: Clock

    def load(self, cost: CostMeter) -> Message | None:
        return self.inner.load(cost)

    def save(self, state: Message, cost: CostMeter) -> None:
        self.clock.tick("saving")
        self.inner.save(state, cost)
        self.clock.tick("saved")


class MortalHub:
    """A star whose coordinator may be killed at each message."""

    def __init__(self, inner: LocalHub, clock: Clock) -> None:
        self.inner, self.clock = inner, clock
        self.coordinator, self.cost, self.views = inner.coordinator, inner.cost, inner.views
        self.members = inner.members

    def post(self, requests):
        self.clock.tick("posting")
        return self.inner.post(requests)

    def replies(self, *, deadline):
        for reply in self.inner.replies(deadline=deadline):
            self.clock.tick("reply", lambda: list(self.inner.replies(deadline=1e9)))
            yield reply


# --- the world around it


@dataclass(slots=True)
class World:
    """The members of a scheme, the coordinator's checkpoint, and what every member was asked and answered.

    Args:
        scheme: what they run.
        task: what they learn.
        folder: of the checkpoint and the stores.
        stores: each coordinator meets members that were restored from their stores; else they live on in memory.
        timing: of the local star.
    """

    scheme: Collaborative
    task: Task
    folder: Path
    stores: bool = False
    timing: Timing | None = None
    answers: list[tuple[Role, Message, bytes, bytes]] = field(default_factory=list)
    coordinators: int = 0
    seat: Seat = field(init=False)
    members: dict[Role, DurableMember] = field(init=False)

    def __post_init__(self) -> None:
        self.seat = Seat(coins=Coins.from_seed(b"keys")).with_identities(self.task.owners)
        self.members = self.restored()

    def seated(self, seed: bytes) -> Seat:
        return replace(self.seat, coins=Coins.from_seed(seed))

    def restored(self) -> dict[Role, DurableMember]:
        """Members of new processes."""
        made = self.scheme.members_of(self.task, self.seated(b"members"))
        if not self.stores:
            return {role: DurableMember(member) for role, member in made.items()}
        return {
            role: DurableMember(
                member,
                key=KEY,
                about=ABOUT + str(role).encode(),
                store=FileStore(self.folder / "store" / str(role)),
                witness=FileWitness(self.folder / "witness" / str(role)),
            )
            for role, member in made.items()
        }

    @property
    def checkpoint(self) -> FileCheckpoint:
        return FileCheckpoint(self.folder / "checkpoint", ABOUT)

    def coordinate(
        self,
        clock: Clock | None = None,
        *,
        checkpoint: Checkpoint | None = None,
        faults: Sequence[Fault] = (),
        hub_of: Callable[[LocalHub], object] = lambda hub: hub,
    ) -> list[Array]:
        """A coordinator's process, with coins of its own, from its start to its end."""
        clock = clock or Clock()
        if self.stores and self.coordinators:
            self.members = self.restored()
        hub = LocalHub(self.members, recording=FULL, faults=faults, timing=self.timing)
        self.coordinators += 1
        seat = self.seated(b"coordinator %d" % self.coordinators)
        kept = self.checkpoint if checkpoint is None else checkpoint
        try:
            run = self.scheme.run(
                MortalHub(hub_of(hub), clock), self.task, seat, checkpoint=Mortal(kept, clock)
            )
            return parameters_of(run.output.value)
        finally:
            self.note(hub)

    def killed(self, point: Point) -> None:
        with pytest.raises(Killed):
            self.coordinate(Clock(point))

    def note(self, hub: LocalHub) -> None:
        """What each member was asked and answered, whether or not the coordinator saw it."""
        for role in self.members:
            asked = {frame.wave: frame for frame in hub.views[role].frames()}
            for frame in hub.views[role].sent():
                request = asked[frame.wave]
                self.answers.append((role, request.message(), request.data, frame.data))

    def check(self, *, refusals: bool = False) -> None:
        """No question was asked in two forms, nor answered in two ways; nobody worked twice.

        Args:
            refusals: some questions were refused; those do not count, and the model may end as another one.
        """
        questions: dict[tuple[object, ...], tuple[bytes, bytes]] = {}
        for role, request, asked, answered in self.answers:
            refused = decode(answered).tag == REFUSED
            assert refusals or not refused, decode(answered).fields
            if not refused and not (refusals and request.tag == "finished"):
                question = role, request.tag, number_of(request)
                assert questions.setdefault(question, (asked, answered)) == (asked, answered)
        if not refusals:
            for role, member in self.members.items():
                assert member.number == sum(question[0] == role for question in questions)


def number_of(request: Message) -> int:
    return request.integer("turn" if "turn" in request.fields else "round")


def same(one: Sequence[Array], other: Sequence[Array]) -> bool:
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, other, strict=True)
    )


def shared_among(task: Task, owners: int) -> Task:
    """The task's first records, four at each owner."""
    inputs, labels = (torch.cat(part) for part in zip(*task.shards, strict=True))
    cuts = range(0, 4 * owners + 1, 4)
    return replace(
        task, shards=tuple((inputs[a:b], labels[a:b]) for a, b in pairwise(cuts))
    )  # fmt: skip


@dataclass(slots=True)
class Undisturbed:
    """A run to its end: what came of it, and where it could have been killed."""

    task: Task
    weights: list[Array]
    points: list[Point]
    messages: dict[Role, int]
    cost: CostMeter


@pytest.fixture
def undisturbed(task: Task, tmp_path: Path) -> Callable[[str], Undisturbed]:
    def made(name: str) -> Undisturbed:
        here = shared_among(task, 4 if name == "secure-active" else 3)
        clock = Clock()
        world = World(SCHEMES[name], here, tmp_path / "undisturbed" / name)
        meters: list[CostMeter] = []
        weights = world.coordinate(clock, hub_of=lambda hub: meters.append(hub.cost) or hub)
        world.check()
        assert not same(weights, parameters_of(here.start))
        messages = {role: member.number for role, member in world.members.items()}
        return Undisturbed(here, weights, clock.points(), messages, meters[0])

    return made


def some(points: Sequence[Point], name: str, most: int) -> Iterator[Point]:
    """At most so many, evenly, and others for each scheme."""
    step = max(1, -(-len(points) // most))
    return iter(points[sum(name.encode()) % step :: step])


# --- the coordinator is killed


@pytest.mark.parametrize("stores", [False, True], ids=["members-live", "members-restart"])
@ALL
def test_killed_anywhere_the_next_coordinator_ends_with_the_same_model(
    name: str, stores: bool, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    known = undisturbed(name)
    most = 8 if stores else {"secure": 24, "secure-active": 8}.get(name, 30)
    for number, point in enumerate(some(known.points, name, most)):
        world = World(SCHEMES[name], known.task, tmp_path / f"{number}", stores=stores)
        world.killed(point)
        assert same(world.coordinate(), known.weights), point
        world.check()
        assert {role: m.number for role, m in world.members.items()} == known.messages, point


@ALL
def test_killed_again_and_again_it_still_ends_with_the_same_model(
    name: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """Every life is killed at its n-th message or checkpoint; each gets a little farther than the last."""
    known = undisturbed(name)
    for what, at, drained in (("reply", 2, True), ("saved", 0, False), ("posting", 1, False)):
        world = World(SCHEMES[name], known.task, tmp_path / what, stores=True)
        for life in range(60):
            try:  # a wave of many replies takes some more
                weights = world.coordinate(Clock(Point(what, at + life // 3, drained)))
                break
            except Killed:
                continue
        assert same(weights, known.weights) and world.coordinators > 2
        world.check()


@ALL
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    name: str,
    undisturbed: Callable[[str], Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = undisturbed(name)
    saves = sum(point.what == "saving" for point in known.points)
    move = os.replace
    for k in range(0, saves, 3 if name in SECURED else 1):
        world, count = World(SCHEMES[name], known.task, tmp_path / f"{k}"), [0]

        def full(source: Path, target: Path, k: int = k, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] > k:
                raise OSError(28, "No space left on device")
            move(source, target)

        monkeypatch.setattr(files.os, "replace", full)
        with pytest.raises(OutputError, match="No space left"):
            world.coordinate()
        monkeypatch.setattr(files.os, "replace", move)
        assert world.checkpoint.path.exists() == (k > 0)
        assert same(world.coordinate(), known.weights)
        world.check()


@ALL
def test_a_finished_run_that_is_started_again_hands_out_the_same_model(
    name: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    known = undisturbed(name)
    for stores in (False, True):
        world = World(SCHEMES[name], known.task, tmp_path / f"{stores}", stores=stores)
        for _ in range(3):
            assert same(world.coordinate(), known.weights)
        world.check()


def test_what_a_run_cost_before_it_was_killed_is_counted_once(
    undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    for name in ("federated-averaging", "round-robin", "secure"):
        known = undisturbed(name)
        for k in range(0, sum(point.what == "saved" for point in known.points), 2):
            world = World(SCHEMES[name], known.task, tmp_path / name / f"{k}")
            world.killed(Point("saved", k))  # with nothing under way
            meters: list[CostMeter] = []
            world.coordinate(hub_of=lambda hub, m=meters: m.append(hub.cost) or hub)
            for key, cost in known.cost.entries().items():
                found = meters[0].entries()[key]
                assert (found.messages, found.bytes_sent, found.bytes_received) == (
                    cost.messages,
                    cost.bytes_sent,
                    cost.bytes_received,
                ), (name, k, key)
            assert meters[0].rounds == known.cost.rounds


@pytest.mark.parametrize("at_least", [None, 2])
def test_asynchronous_owners_take_each_turn_once_whatever_the_timing(
    at_least: int | None, task: Task, tmp_path: Path
) -> None:
    """Who is faster may be another one after a restart: the model may differ, but is the sum of one upload a turn."""
    scheme = replace(TURNS, schedule=Schedule.ASYNCHRONOUS, at_least=at_least, epochs=3)
    timing = Timing(work=1.0, jitter=2.0, seed=b"who is faster")
    clock = Clock()
    World(scheme, task, tmp_path / "undisturbed", timing=timing).coordinate(clock)
    start = flattened(parameters_of(task.start))
    for number, point in enumerate(clock.points()[at_least or 0 :: 3]):
        world = World(scheme, task, tmp_path / f"{number}", stores=number % 5 == 0, timing=timing)
        world.killed(point)
        weights = flattened(world.coordinate())
        world.check()
        uploads = {
            (role, number_of(request)): decode(answered)
            for role, request, _, answered in world.answers
            if request.tag != "finished"
        }
        assert len(uploads) == 9
        total = start.astype(np.float64)
        for upload in uploads.values():
            places, values = unpacked(upload, start.size, start.size)
            total[places] += values
        assert np.abs(total - weights).max() < 1e-6


# --- members are killed


@pytest.mark.parametrize("harm", [Harm.DIE, Harm.DROP], ids=lambda harm: harm.name)
@ALL
def test_a_member_that_is_killed_at_any_message_comes_back_from_its_store(
    name: str, harm: Harm, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """Its request is lost, or its reply: the wave ends without it. Then it is back; this coordinator goes on, or another."""
    known = undisturbed(name)
    exact = others = 0
    for role, count in known.messages.items():
        step = 7 if name in SECURED else 2
        for at in range(role.index % step, count, step):
            world = World(SCHEMES[name], known.task, tmp_path / f"{role} {at}", stores=True)
            fault = Fault(role=role, at=at, harm=harm)

            class Reviving:
                """A member that died is back before the next message."""

                def __init__(self, hub: LocalHub, role: Role = role, world: World = world) -> None:
                    self.hub, self.role, self.world = hub, role, world
                    self.served = 0

                def __getattr__(self, name: str) -> object:
                    return getattr(self.hub, name)

                def post(self, requests):
                    if self.role in self.hub._faults.dead:
                        self.world.members[self.role] = self.world.restored()[self.role]
                        self.hub.replace(self.role, self.world.members[self.role])
                    return self.hub.post(requests)

            try:
                weights = world.coordinate(faults=[fault], hub_of=Reviving)
            except TooFewParties as error:
                assert role in error.missing
                weights = world.coordinate()
            world.check(refusals=name in TOLERANT)
            exact += same(weights, known.weights)
            others += not same(weights, known.weights)
            assert all(np.isfinite(array).all() for array in weights)
    assert exact and (name not in ORDERED or not others)


def test_a_secure_sum_is_over_those_who_stayed_whoever_was_killed_and_came_back(
    undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """A member misses a wave and is restored; the coordinator is killed in the next: the mean is that of the survivors."""
    known = undisturbed("secure")
    scheme, task = SECURE, known.task
    late = task.owners[1]
    for at, second in product(range(5), (7, 11)):
        world = World(scheme, task, tmp_path / f"{at} {second}", stores=True)
        fault = Fault(role=late, at=at, harm=Harm.DROP, way=Way.REQUEST)
        with pytest.raises(Killed):
            world.coordinate(Clock(Point("reply", second, drained=True)), faults=[fault])
        hub = LocalHub(world.restored(), recording=FULL)
        models = {0: parameters_of(task.start)}
        survivors = {}

        def watch(round, found, model, survivors=survivors, models=models):
            survivors[round], models[round + 1] = found.survivors, [np.array(a) for a in model]

        seat = world.seated(b"another coordinator")
        scheme.coordinate(
            hub, parameters_of(task.start), scheme.agreed(task), coins=seat.coins,
            checkpoint=world.checkpoint, watch=watch,
        )  # fmt: skip
        world.note(hub)
        world.check(refusals=True)
        work = scheme.work(task)
        for round, there in survivors.items():
            if round not in models:  # it ended in the life before
                continue
            made = [flattened(work[role].update(models[round], round).arrays) for role in there]
            moved = flattened(models[round + 1]) - flattened(models[round])
            assert len(there) >= 2 and np.abs(moved - sum(made) / len(made)).max() < 1e-4


# --- a coordinator that restarts at will


def changed(request: Message) -> list[Message]:
    """The same question with something else in it."""
    out = []
    for name, value in request.fields.items():
        if name in ("round", "turn"):
            continue
        if isinstance(value, np.ndarray) and value.size:
            other = np.array(value)
            other.reshape(-1)[0] = ~other.reshape(-1)[0] if other.dtype.kind in "bui" else 0.123
        elif isinstance(value, list) and value:
            other = [np.array(one) for one in value]
            other[0].reshape(-1)[0] += np.float32(0.125)
        elif isinstance(value, bytes) and value:
            other = bytes([value[0] ^ 1]) + value[1:]
        elif isinstance(value, int):
            other = 1 - value
        else:
            continue
        out.append(Message(request.tag, **{**request.fields, name: other}))
    return [*out, Message(request.tag, **request.fields, more=1)]


@ALL
def test_no_other_question_of_the_same_round_gets_an_answer_after_a_restart(
    name: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """A coordinator that restarts at will, and asks what it asked with another model, another list of survivors, ..."""
    known = undisturbed(name)
    replies = [p for p in known.points if p.what == "reply" and p.drained]
    for number, point in enumerate(some(replies, name, 4)):
        world = World(SCHEMES[name], known.task, tmp_path / f"{number}", stores=True)
        world.killed(point)
        asked: dict[tuple[Role, bytes], Message] = {
            (role, data): request
            for role, request, data, _ in world.answers
            if request.tag != "finished"
        }
        last = {role: (data, answered) for role, _, data, answered in world.answers}
        for role, (data, answered) in last.items():  # the control: this one is answered again
            assert encode(world.members[role].handle(decode(data))) == answered
        restored = world.restored()
        for (role, data), request in asked.items():
            for other in changed(request):
                assert encode(other) != data
                reply = restored[role].handle(other)
                assert reply.tag == REFUSED, (other.tag, other.fields)
        with suppress(
            TacitError
        ):  # what it was asked last was another question: the last reply is gone
            assert same(world.coordinate(), known.weights) or name in TOLERANT
        world.check(refusals=True)


@ALL
def test_an_old_checkpoint_or_none_gets_no_second_answer(
    name: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """A coordinator that was restored from a backup, or lost its checkpoint: a typed error, or the same model."""
    known = undisturbed(name)

    class Copying:
        def __init__(self, inner: FileCheckpoint) -> None:
            self.inner, self.copies = inner, [b""]

        def load(self, cost: CostMeter) -> Message | None:
            return self.inner.load(cost)

        def save(self, state: Message, cost: CostMeter) -> None:
            self.inner.save(state, cost)
            self.copies.append(self.inner.path.read_bytes())

    finished = World(SCHEMES[name], known.task, tmp_path / "finished", stores=True)
    copying = Copying(finished.checkpoint)
    finished.coordinate(checkpoint=copying)
    path, exact = finished.checkpoint.path, 0
    stores = {p: p.read_bytes() for p in finished.folder.rglob("owner *")}
    for copy in copying.copies:
        for p, content in stores.items():
            p.write_bytes(content)
        path.write_bytes(copy) if copy else path.unlink()
        try:
            exact += same(finished.coordinate(), known.weights)
        except TacitError:
            assert copy != copying.copies[-1]
        finished.check(refusals=True)
    assert exact >= 1  # the newest


@ALL
def test_without_a_checkpoint_a_killed_run_does_not_begin_anew_on_members_who_answered(
    name: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    known = undisturbed(name)
    points = [p for p in known.points if p.what == "reply" and p.drained]
    ended = 0
    for number, point in enumerate(points[:: max(1, len(points) // 8)]):
        world = World(SCHEMES[name], known.task, tmp_path / f"{number}", stores=True)
        world.killed(point)
        try:
            weights = world.coordinate(checkpoint=NOTHING)
        except TacitError:
            ended += 1
        else:  # nobody was farther than the first question, which is the same for every coordinator; or not too many were
            assert name in TOLERANT or same(weights, known.weights)
        world.check(refusals=True)
    assert ended


def test_members_that_were_wound_back_would_answer_again(task: Task, tmp_path: Path) -> None:
    """The control of the checks above: with stores and witnesses restored from a backup they find a second answer."""
    world = World(LocalDP(rounds=2, batch_size=2), task, tmp_path, stores=True)
    world.killed(Point("reply", 0, drained=True))
    for path in (*tmp_path.glob("store/*"), *tmp_path.glob("witness/*")):
        path.unlink()
    moved = [p + torch.tensor(0.5) for p in map(torch.as_tensor, parameters_of(task.start))]
    start = replace(task, start=type(task.start)(*task.start))
    with torch.no_grad():
        for parameter, value in zip(start.start.parameters(), moved, strict=True):
            parameter.copy_(value)
    again = World(world.scheme, start, tmp_path, stores=True, answers=world.answers)
    again.coordinate(checkpoint=NOTHING)
    with pytest.raises(AssertionError):
        again.check(refusals=True)


def test_secure_waves_that_are_sent_again_are_the_same_bytes(
    undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """Masked vectors and unmasking answers of a member and round, over both lives: one each, and the first went out."""
    for name in ("secure", "secure-active"):
        known = undisturbed(name)
        replies = [p for p in known.points if p.what == "reply" and p.drained]
        again = 0
        for number, point in enumerate(some(replies, name, 4)):
            world = World(SCHEMES[name], known.task, tmp_path / f"{name} {number}", stores=True)
            world.killed(point)
            world.coordinate()
            for tag in ("masked", "unmasked", "signed", "shares", "keys"):
                found: dict[tuple[Role, int], list[bytes]] = {}
                for role, request, _, answered in world.answers:
                    if decode(answered).tag == tag:
                        found.setdefault((role, number_of(request)), []).append(answered)
                assert found or (tag == "signed" and name == "secure")
                assert all(len(set(sent)) == 1 for sent in found.values())
                again += sum(len(sent) > 1 for sent in found.values())
        assert again > 5  # some were sent twice


def test_the_coordinators_checkpoint_is_its_users_alone_and_holds_no_update(
    undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """It holds what the server sees anyway: of a secure run, no update of anybody stands in any version of it."""
    known = undisturbed("secure")
    work = SECURE.work(known.task)
    start = parameters_of(known.task.start)
    made = [work[role].update(start, 0).arrays[1] for role in known.task.owners]
    clear = [array[array != 0].tobytes() for array in made]
    world = World(SECURE, known.task, tmp_path / "w")
    for k in range(sum(point.what == "saved" for point in known.points)):
        with suppress(Killed):
            world.coordinate(Clock(Point("saved", 1 if k else 0)))
        whole = world.checkpoint.path.read_bytes()
        assert not any(update[at : at + 4] in whole for update in clear for at in range(0, 16, 4))
        assert world.checkpoint.path.stat().st_mode & 0o777 == 0o600
    assert SERVER not in world.members
