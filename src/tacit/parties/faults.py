"""Scripted faults: what goes wrong, at whom, at which message.

The same script gives the same run: links consult it at each message and draw nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tacit.core.errors import ConfigError
from tacit.parties.roles import Role


class Harm(Enum):
    """What happens at the message."""

    DROP_REQUEST = "the message to the party is lost"
    DROP_REPLY = "the party's answer is lost"
    HANG = "the party never answers it, nor anything after it"
    DIE = "the party is gone before it handles it"
    DELAY = "the answer comes late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Args:
        role: at whom. In a pair, the sender of the message.
        at: number of the message, from 0: of the requests to a member; of the messages that a party of a pair sends.
        harm: what happens.
        seconds: how late, for DELAY, on the link's clock.
    """

    role: Role
    at: int
    harm: Harm
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.at < 0 or (self.harm is Harm.DELAY) != (self.seconds > 0):
            raise ConfigError(
                "a fault is at message 0 or later, and DELAY (alone) takes seconds > 0"
            )


@dataclass(slots=True)
class Faults:
    """A script of faults, with the state that it needs: messages counted by role, who hangs, who died."""

    script: Sequence[Fault] = ()
    hung: set[Role] = field(default_factory=set)
    dead: set[Role] = field(default_factory=set)
    _seen: dict[Role, int] = field(default_factory=dict)

    def check(self, roles: Iterable[Role]) -> None:
        """Raise unless every fault is at one of ``roles``: a script that misses its aim tests nothing.

        Raises:
            ConfigError: names the role that does not take part.
        """
        known = set(roles)
        for fault in self.script:
            if fault.role not in known:
                raise ConfigError(f"a fault at {fault.role}, who does not take part")

    def meet(self, role: Role) -> Fault | None:
        """The fault, if any, at the next message of ``role``; counts the message."""
        number = self._seen.get(role, 0)
        self._seen[role] = number + 1
        for fault in self.script:
            if fault.role == role and fault.at == number:
                if fault.harm is Harm.HANG:
                    self.hung.add(role)
                elif fault.harm is Harm.DIE:
                    self.dead.add(role)
                return fault
        return None

    def revive(self, role: Role) -> None:
        """The party is back, restarted."""
        self.hung.discard(role)
        self.dead.discard(role)
