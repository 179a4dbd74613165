"""Turns: owners of a star work on a shared model one after another, or all the time.

Shared by the schemes in which a server adds each upload as it comes. What a turn holds and what becomes of an upload is the
scheme's `TurnServer`.

Source: Shokri, Shmatikov, "Privacy-preserving deep learning" (CCS 2015), section 5 (recalled), for the schedules; Dean et
al., "Large scale distributed deep networks" (NIPS 2012), for asynchronous SGD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np

from tacit.core.errors import TooFewParties
from tacit.core.wire import Message, decode, encode
from tacit.nn.federated import Progress, silent
from tacit.parties.checkpoints import NOTHING, Checkpoint
from tacit.parties.roles import Role
from tacit.parties.star import REFUSED, Hub, Seconds, as_error, ask


class Schedule(Enum):
    """The order of turns."""

    ROUND_ROBIN = "round-robin"
    RANDOM_ORDER = "random-order"
    ASYNCHRONOUS = "asynchronous"


class TurnServer(Protocol):
    """What the server holds between turns."""

    def turn(self, role: Role, participants: int) -> Message:
        """The request for an owner's next turn."""
        ...

    def add(self, role: Role, upload: Message) -> None:
        """Take what came of a turn."""
        ...

    def finished(self) -> Message:
        """What everybody gets after the last turn."""
        ...

    def export(self) -> Message:
        """Its state, for `restore`."""
        ...

    def restore(self, state: Message) -> None:
        """Continue from an exported state."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How turns are taken.

    Args:
        schedule: in which order.
        each: turns of every owner.
        seed: of random orders.
        at_least: owners who must take all their turns; None for all. Others may drop out and come back.
        deadline: seconds that a turn may take; in the asynchronous schedule, seconds in which no owner answers.
    """

    schedule: Schedule
    each: int
    seed: int = 0
    at_least: int | None = None
    deadline: Seconds = 600.0


@dataclass(slots=True, kw_only=True)
class _Book:
    """How far the turns are, and where that is kept.

    Args:
        hub: the star.
        server: what is trained.
        turns: how turns are taken.
        progress: told after each turn.
        checkpoint: keeps it.
        asked: turns that are over, in the sequential schedules.
        added: turns of each owner whose upload was added.
        waiting: what each owner at work was asked, in the asynchronous schedule; None until it has begun.
        left: turns that each of them has still to be asked for.
    """

    hub: Hub
    server: TurnServer
    turns: Turns
    progress: Progress
    checkpoint: Checkpoint
    asked: int = 0
    added: dict[Role, int] = field(init=False)
    waiting: dict[Role, Message] | None = None
    left: dict[Role, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        members = self.hub.members()
        self.added = dict.fromkeys(members, 0)
        if (state := self.checkpoint.load(self.hub.cost)) is None:
            return
        self.server.restore(decode(state.blob("server")))
        self.asked = state.integer("asked", low=0)
        added = state.array("added", dtype="<i8", shape=(len(members),)).tolist()
        self.added = dict(zip(members, added, strict=True))
        places, frames = state.array("places", dtype="<i8"), state.fields.get("frames")
        if isinstance(frames, list) and state.integer("asynchronous"):
            left = state.array("left", dtype="<i8", shape=places.shape).tolist()
            at_work = [members[place] for place in places.tolist()]
            self.left = dict(zip(at_work, left, strict=True))
            self.waiting = {
                role: decode(frame)
                for role, frame in zip(at_work, frames, strict=True)
                if isinstance(frame, bytes)
            }

    def add(self, role: Role, upload: Message) -> None:
        with self.hub.cost.timed(self.hub.coordinator):
            self.server.add(role, upload)
        self.added[role] += 1
        self.progress(sum(self.added.values()), self.turns.each * len(self.added))

    def keep(self) -> None:
        members = list(self.added)
        waiting = self.waiting or {}
        self.checkpoint.save(
            Message(
                "turns",
                server=encode(self.server.export()),
                asked=self.asked,
                added=np.array(list(self.added.values()), np.int64),
                asynchronous=int(self.waiting is not None),
                places=np.array([members.index(role) for role in waiting], np.int64),
                left=np.array([self.left[role] for role in waiting], np.int64),
                frames=[encode(message) for message in waiting.values()],
            ),
            self.hub.cost,
        )


def serve(
    hub: Hub,
    server: TurnServer,
    turns: Turns,
    *,
    progress: Progress = silent,
    checkpoint: Checkpoint = NOTHING,
) -> None:
    """The coordinator's part: hand out turns by the schedule, add what comes, hand out the finished model.

    Args:
        hub: the star.
        server: what is trained.
        turns: how turns are taken.
        progress: told after each turn.
        checkpoint: where it stands is kept after each turn, and gone on with from there.

    Raises:
        TooFewParties: fewer owners than needed took all their turns.
        TacitError: all are needed and one refused: its own error, with its role.
        Diverged: an upload is not finite.
        OutputError: the checkpoint cannot be written.
    """
    book = _Book(hub=hub, server=server, turns=turns, progress=progress, checkpoint=checkpoint)
    if turns.schedule is Schedule.ASYNCHRONOUS:
        _concurrently(book)
    else:
        _one_by_one(book)
    members, added = hub.members(), book.added
    through = [role for role in members if added[role] == turns.each]
    needed = len(members) if turns.at_least is None else turns.at_least
    if len(through) < needed:
        missing: dict[object, str] = {
            role: f"{added[role]} of {turns.each} turns" for role in members if role not in through
        }
        raise TooFewParties(needed, through, missing, wave="of turns")
    progress(turns.each * len(members), turns.each * len(members))
    finished = dict.fromkeys(members, server.finished())
    ask(hub, finished, at_least=turns.at_least, deadline=turns.deadline)


def _one_by_one(book: _Book) -> None:
    hub, turns = book.hub, book.turns
    members = list(hub.members())
    needed = None if turns.at_least is None else 0  # who is lost or refuses is counted at the end
    order = [role for number in range(turns.each) for role in _order(members, turns, number)]
    for role in order[book.asked :]:
        request = {role: book.server.turn(role, len(members))}
        came = ask(hub, request, at_least=needed, deadline=turns.deadline)
        if role in came:
            book.add(role, came[role])
        book.asked += 1
        book.keep()


def _order(members: Sequence[Role], turns: Turns, number: int) -> Sequence[Role]:
    """The order of one pass."""
    if turns.schedule is Schedule.ROUND_ROBIN:
        return members
    # Who is next is no secret: it follows from the seed, and another pass has another order.
    keys = {role: hashlib.sha256(f"{turns.seed}/{number}/{role}".encode()) for role in members}
    return sorted(members, key=lambda role: keys[role].digest())


def _concurrently(book: _Book) -> None:
    hub, turns, server = book.hub, book.turns, book.server
    members = hub.members()
    if book.waiting is None:
        book.waiting = {role: server.turn(role, len(members)) for role in members}
        book.left = dict.fromkeys(members, turns.each - 1)
        book.keep()
    waiting, left = book.waiting, book.left
    for role, message in list(waiting.items()):
        hub.post({role: message})
    while waiting:
        came = next(iter(hub.replies(deadline=turns.deadline)), None)
        if came is None:
            return  # whoever is left is gone
        role, _, upload = came
        if role not in waiting:
            continue
        if upload.tag == REFUSED:
            if turns.at_least is None:
                raise as_error(role, upload)
            del waiting[role], left[role]
            continue
        book.add(role, upload)
        if left[role]:
            left[role] -= 1
            # Who was asked last stands last: after a restart they are asked in the same order.
            del waiting[role]
            waiting[role] = server.turn(role, len(members))
            book.keep()
            hub.post({role: waiting[role]})
        else:
            del waiting[role], left[role]
            book.keep()
