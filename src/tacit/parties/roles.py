"""Who takes part: a role is a kind and an index."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Role:
    """A party of a protocol, for instance ``Role("owner", 3)``.

    Args:
        kind: server, owner, authority, dealer, client, host ...
        index: tells roles of one kind apart.
    """

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.index}"


SERVER = Role("server")


def owners(count: int) -> tuple[Role, ...]:
    """The roles owner 0 to owner ``count - 1``."""
    return tuple(Role("owner", index) for index in range(count))
