"""Turns: owners of a star work on a shared model one after another, or all the time.

Shared by the schemes in which a server adds each upload as it comes. What a turn holds and what becomes of an upload is the
scheme's `TurnServer`.

Source: Shokri, Shmatikov, "Privacy-preserving deep learning" (CCS 2015), section 5 (recalled), for the schedules; Dean et
al., "Large scale distributed deep networks" (NIPS 2012), for asynchronous SGD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from tacit.core.errors import TooFewParties
from tacit.core.wire import Message
from tacit.nn.federated import Progress, silent
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


def serve(hub: Hub, server: TurnServer, turns: Turns, *, progress: Progress = silent) -> None:
    """The coordinator's part: hand out turns by the schedule, add what comes, hand out the finished model.

    Raises:
        TooFewParties: fewer owners than needed took all their turns.
        TacitError: all are needed and one refused: its own error, with its role.
        Diverged: an upload is not finite.
    """
    members = hub.members()
    added = dict.fromkeys(members, 0)
    taken = (
        _concurrently(hub, server, turns)
        if turns.schedule is Schedule.ASYNCHRONOUS
        else _one_by_one(hub, server, turns)
    )
    for role, upload in taken:
        with hub.cost.timed(hub.coordinator):
            server.add(role, upload)
        added[role] += 1
        progress(sum(added.values()), turns.each * len(members))
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


def _one_by_one(hub: Hub, server: TurnServer, turns: Turns) -> Iterator[tuple[Role, Message]]:
    members = list(hub.members())
    needed = None if turns.at_least is None else 0  # who is lost or refuses is counted at the end
    for number in range(turns.each):
        order = members
        if turns.schedule is Schedule.RANDOM_ORDER:
            # Who is next is no secret: it follows from the seed, and another pass has another order.
            keys = {r: hashlib.sha256(f"{turns.seed}/{number}/{r}".encode()) for r in members}
            order = sorted(members, key=lambda role: keys[role].digest())
        for role in order:
            request = {role: server.turn(role, len(members))}
            came = ask(hub, request, at_least=needed, deadline=turns.deadline)
            if role in came:
                yield role, came[role]


def _concurrently(hub: Hub, server: TurnServer, turns: Turns) -> Iterator[tuple[Role, Message]]:
    members = hub.members()
    left = dict.fromkeys(members, turns.each - 1)  # turns to hand out, for those who are at work
    for role in members:
        hub.post({role: server.turn(role, len(members))})
    while left:
        came = next(iter(hub.replies(deadline=turns.deadline)), None)
        if came is None:
            return  # whoever is left is gone
        role, _, upload = came
        if upload.tag == REFUSED:
            if turns.at_least is None:
                raise as_error(role, upload)
            del left[role]
            continue
        yield role, upload
        if left[role]:
            left[role] -= 1
            hub.post({role: server.turn(role, len(members))})
        else:
            del left[role]
