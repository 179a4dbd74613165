"""The pair: two parties who talk at length ([5] [7] [13]), and feeders beside them (data owners, a dealer).

A pair protocol is two plain blocking functions over a `Channel`. Each line that sends shows that it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from tacit.core.wire import Array
from tacit.parties.roles import Role

T = TypeVar("T")


class Channel(Protocol):
    """One end of a conversation with one peer. Its deadline is set when it is made."""

    @property
    def peer(self) -> Role:
        """Who is at the other end."""
        ...

    def send(self, tag: str, *arrays: Array) -> None:
        """Send arrays under a tag."""
        ...

    def recv(self, tag: str) -> tuple[Array, ...]:
        """The arrays that the peer sent under that tag.

        Raises:
            ProtocolError: the next message has another tag.
            PeerDropped: the peer is gone.
            DeadlineExceeded: nothing came in time.
        """
        ...

    def during(
        self, phase: str | None = None, layer: str | None = None
    ) -> AbstractContextManager[None]:
        """Book what this party sends, receives and computes inside under that phase and layer."""
        ...

    def count_round(self) -> None:
        """Book a round under the current phase and layer: a protocol counts its own, both sides the same."""
        ...

    def exchange(self, tag: str, *arrays: Array) -> tuple[Array, ...]:
        """Send and receive under one tag: one round, both directions at once."""
        ...


Party = Callable[[Mapping[Role, Channel]], T]
"""A party's function: it gets its channels by peer and returns its output."""
