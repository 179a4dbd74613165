"""Scripted faults: what goes wrong, at whom, at which message.

The same script gives the same run: links consult it at each message and draw nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tacit.core.errors import ConfigError
from tacit.parties.roles import Role


class Way(Enum):
    """Which messages of a party are counted."""

    REQUEST = "on its way to the party"
    REPLY = "on its way from the party"


class Harm(Enum):
    """What happens at the message."""

    DROP = "it is lost"
    DOUBLE = "it arrives twice"
    REORDER = "it arrives after the next one of the same party and way; if none follows, it is lost"
    REPLAY = "one of an older session arrives in its place"
    FLIP = "one bit of it is flipped"
    CUT = "it ends early"
    OVERSIZE = "it is longer than it may be"
    DRIP = "it arrives byte by byte, too slowly"
    DELAY = "it comes late"
    WRONG_PEER = "what another party sent, or was sent, arrives in its place"
    WRONG_ROLE = "it says that it is another role's"
    WRONG_VERSION = "it is of another version of the link"
    HANG = "the party never answers it, nor anything after it"
    DIE = "the party is gone before it handles it"


SLOW = (Harm.DELAY, Harm.DRIP)
"""What takes seconds."""
GONE = (Harm.HANG, Harm.DIE)
"""What befalls the party and not the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Args:
        role: at whom. In a pair, the sender of the message.
        at: number of the message, from 0: of the requests to a member, or of its replies; of the messages that a party of a
            pair sends. HANG and DIE count requests whatever the way.
        harm: what happens.
        way: which messages of a member are counted; REPLY in a pair.
        seconds: how late, for DELAY and DRIP, on the link's clock.
    """

    role: Role
    at: int
    harm: Harm
    way: Way = Way.REPLY
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.at < 0 or (self.harm in SLOW) != (self.seconds > 0):
            raise ConfigError(
                "a fault is at message 0 or later, and DELAY and DRIP (they alone) take seconds > 0"
            )

    @property
    def counts(self) -> Way:
        """Which messages of the role are counted."""
        return Way.REQUEST if self.harm in GONE else self.way

    def pick(self, count: int) -> int:
        """A number below ``count`` that follows from the fault."""
        about = f"{self.role}/{self.counts.name}/{self.at}/{self.harm.name}"
        return int.from_bytes(hashlib.sha256(about.encode()).digest()[:8], "little") % count


def flipped(frame: bytes, fault: Fault) -> bytes:
    """The frame with one bit flipped; which one follows from the fault."""
    place, bit = divmod(fault.pick(8 * len(frame)), 8)
    return frame[:place] + bytes([frame[place] ^ 1 << bit]) + frame[place + 1 :]


def cut(frame: bytes, fault: Fault) -> bytes:
    """The beginning of the frame; where it ends follows from the fault."""
    return frame[: fault.pick(len(frame))]


@dataclass(slots=True)
class Faults:
    """A script of faults, with the state that it needs: messages counted by role and way, who hangs, who died."""

    script: Sequence[Fault] = ()
    hung: set[Role] = field(default_factory=set)
    dead: set[Role] = field(default_factory=set)
    _seen: Counter[tuple[Role, Way]] = field(default_factory=Counter)
    _by_message: dict[tuple[Role, Way, int], Fault] = field(init=False)

    def __post_init__(self) -> None:
        self._by_message = {
            (one.role, one.counts, one.at): one for one in reversed(self.script)
        }  # the first of several at one message

    def check(self, roles: Iterable[Role]) -> None:
        """Raise unless every fault is at one of ``roles``: a script that misses its aim tests nothing.

        Raises:
            ConfigError: names the role that does not take part.
        """
        known = set(roles)
        for fault in self.script:
            if fault.role not in known:
                raise ConfigError(f"a fault at {fault.role}, who does not take part")

    def meet(self, role: Role, way: Way) -> Fault | None:
        """The fault, if any, at the next message of ``role`` that way; counts the message."""
        fault = self._by_message.get((role, way, self._seen[role, way]))
        self._seen[role, way] += 1
        if fault is not None and fault.harm is Harm.HANG:
            self.hung.add(role)
        elif fault is not None and fault.harm is Harm.DIE:
            self.dead.add(role)
        return fault

    def revive(self, role: Role) -> None:
        """The party is back, restarted."""
        self.hung.discard(role)
        self.dead.discard(role)
