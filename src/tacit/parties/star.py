"""The star: one coordinator, many members ([2] [3] [6] [8]-[12]).

The coordinator is a plain blocking function over a `Hub`; dropouts and time enter only in `replies`. A member is pure: no
clock, no sockets; it can be exported after any message and restored elsewhere. `ask` is one wave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NewType, Protocol

from tacit.core.cost import CostMeter
from tacit.core.errors import PeerRefused, TooFewParties, WireError, by_name
from tacit.core.wire import Message
from tacit.parties.roles import Role
from tacit.parties.views import View

Seconds = float
Ticket = NewType("Ticket", int)

REFUSED = "refused"
SILENT = "no reply in time"


class Hub(Protocol):
    """The coordinator's side of a star."""

    @property
    def coordinator(self) -> Role:
        """The role at the centre."""
        ...

    @property
    def cost(self) -> CostMeter:
        """What the conversation has cost so far."""
        ...

    @property
    def views(self) -> Mapping[Role, View]:
        """The views that are at hand: all of them in one process, the coordinator's own across machines."""
        ...

    def members(self, kind: str | None = None) -> Sequence[Role]:
        """The members, or those of one kind, in ascending order."""
        ...

    def post(self, requests: Mapping[Role, Message]) -> Ticket:
        """Send each member its request and return at once. Replies to it will carry the ticket."""
        ...

    def replies(self, *, deadline: Seconds) -> Iterator[tuple[Role, Ticket, Message]]:
        """Replies as they come, to any ticket, until ``deadline`` seconds are over or none can come any more.

        More may be posted while iterating.
        """
        ...


class Member(Protocol):
    """A member: answers requests, one at a time."""

    def handle(self, request: Message) -> Message:
        """The reply. A `TacitError` raised here reaches the coordinator as a refusal."""
        ...

    def export(self) -> bytes:
        """All state that changes, for `restore`.

        It holds secrets: keep it encrypted. Where a reply spends a secret or a budget, the state after it must be durable
        before the reply leaves, or a restored member would spend it twice.
        """
        ...

    def restore(self, state: bytes) -> None:
        """Continue from an exported state."""
        ...


def refusal(error: Exception) -> Message:
    """The reply that stands for an error that a member raised on purpose."""
    return Message(REFUSED, kind=type(error).__name__, text=str(error))


def first_replies(
    hub: Hub, ticket: Ticket, asked: Iterable[Role], *, deadline: Seconds
) -> Iterator[tuple[Role, Message]]:
    """A wave as it comes: the reply or refusal of each that was asked, once. Replies to other tickets are dropped."""
    waiting = set(asked)
    for role, stamp, reply in hub.replies(deadline=deadline):
        if stamp == ticket and role in waiting:
            waiting.discard(role)
            yield role, reply
            if not waiting:
                return


def ask(
    hub: Hub,
    requests: Mapping[Role, Message],
    *,
    at_least: int | None = None,
    deadline: Seconds = 60.0,
) -> dict[Role, Message]:
    """One wave: post the requests and collect the replies. Replies to earlier tickets are dropped.

    Args:
        hub: the star.
        requests: one message a member.
        at_least: replies needed; all when None. The wave still waits for all until the deadline.
        deadline: seconds on the hub's clock.

    Returns:
        The replies by role, in ascending order of role.

    Raises:
        TooFewParties: fewer than ``at_least`` replied; names who is missing and why.
        TacitError: all were needed and a member refused: its own error, with its role.
    """
    if not requests:
        return {}
    needed = len(requests) if at_least is None else at_least
    got: dict[Role, Message] = {}
    refused: dict[Role, Message] = {}
    ticket = hub.post(requests)
    for role, reply in first_replies(hub, ticket, requests, deadline=deadline):
        (refused if reply.tag == REFUSED else got)[role] = reply
    if at_least is None:
        for role, reply in sorted(refused.items()):
            raise as_error(role, reply)
    if len(got) < needed:
        missing: dict[object, str] = {
            role: str(as_error(role, refused[role])) if role in refused else SILENT
            for role in sorted(requests)
            if role not in got
        }
        raise TooFewParties(needed, sorted(got), missing, wave=ticket)
    return dict(sorted(got.items()))


def as_error(role: Role, reply: Message) -> Exception:
    """The error that a refusal stands for, of its own class where that is one of tacit's."""
    try:
        kind, text = reply.text("kind"), reply.text("text")
    except WireError:
        return PeerRefused(f"{role} refused and gave no reason")
    said = "".join(c if c.isprintable() else " " for c in text[:500])  # it may end up on a terminal
    return by_name(kind)(f"{role}: {said}")
