"""A channel whose messages go out changed: for tests of what the other side makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tacit.core.wire import Array
from tacit.parties.pair import Channel
from tacit.parties.roles import Role

Change = Callable[[str, list[Array]], tuple[str, list[Array]]]


def only(number: int, change: Change) -> Change:
    """Changes the message of that number, counted over all that are sent through it."""
    at = iter(range(1 << 62))
    return lambda tag, arrays: change(tag, arrays) if next(at) == number else (tag, arrays)


class Tampering:
    """A channel that changes what it sends."""

    def __init__(self, channel: Channel, change: Change) -> None:
        self.channel, self.change = channel, change

    @property
    def peer(self) -> Role:
        return self.channel.peer

    def send(self, tag: str, *arrays: Array) -> None:
        tag, changed = self.change(tag, list(arrays))
        self.channel.send(tag, *changed)

    def recv(self, tag: str) -> tuple[Array, ...]:
        return self.channel.recv(tag)

    def exchange(self, tag: str, *arrays: Array) -> tuple[Array, ...]:
        self.send(tag, *arrays)
        return self.recv(tag)

    def count_round(self) -> None:
        self.channel.count_round()

    @contextmanager
    def during(self, phase: str | None = None, layer: str | None = None) -> Iterator[Any]:
        with self.channel.during(phase, layer):
            yield
