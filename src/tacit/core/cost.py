"""What a run costs, per role, phase and layer: messages, bytes, rounds, seconds.

A round is a link in the longest causal chain of messages: a request and its reply are two, whatever the number of members
asked at once; an exchange of two parties, both directions at once, is one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np

from tacit.core.errors import WireError
from tacit.core.wire import Message, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A cost; costs add up.

    Args:
        messages: messages sent.
        bytes_sent: encoded bytes sent.
        bytes_received: encoded bytes received.
        seconds: seconds of computing, waiting left out.
        rounds: those that a pair protocol counts (`tacit.parties.pair.Channel.count_round`); stars book none here, theirs
            are those of the whole run (`CostMeter.rounds`).
    """

    messages: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    rounds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            messages=self.messages + other.messages,
            bytes_sent=self.bytes_sent + other.bytes_sent,
            bytes_received=self.bytes_received + other.bytes_received,
            seconds=self.seconds + other.seconds,
            rounds=self.rounds + other.rounds,
        )

    def described(self) -> dict[str, float]:
        """The cost as plain values for a report; rounds where some are booked."""
        out = asdict(self)
        if not self.rounds:
            del out["rounds"]
        return out


@dataclass(slots=True)
class CostMeter:
    """Adds up costs under (role, phase, layer) while a protocol runs.

    `phase` and `layer` name what is going on; they are empty where a protocol does not say.
    """

    rounds: int = 0
    phase: str = ""
    layer: str = ""
    _entries: dict[tuple[object, str, str], list[float]] = field(default_factory=dict)
    _before: int = 0  # rounds of a run that this one goes on with

    def book(
        self,
        role: object,
        *,
        messages: int = 0,
        sent: int = 0,
        received: int = 0,
        seconds: float = 0.0,
        rounds: int = 0,
        under: tuple[str, str] | None = None,
    ) -> None:
        """Book messages, bytes, seconds and rounds on a role, in the current phase and layer or ``under`` others."""
        key = (role, *(under or (self.phase, self.layer)))
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = [0, 0, 0, 0.0, 0]
        entry[0] += messages
        entry[1] += sent
        entry[2] += received
        entry[3] += seconds
        entry[4] += rounds

    def chain(self, depth: int) -> None:
        """A message that is the ``depth``-th of its causal chain was sent."""
        self.rounds = max(self.rounds, self._before + depth)

    @contextmanager
    def during(self, phase: str | None = None, layer: str | None = None) -> Iterator[None]:
        """Book what happens inside under that phase and layer."""
        before = self.phase, self.layer
        self.phase, self.layer = phase or before[0], layer or before[1]
        try:
            yield
        finally:
            self.phase, self.layer = before

    @contextmanager
    def timed(self, role: object) -> Iterator[None]:
        """Book the seconds spent inside on a role."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.book(role, seconds=time.perf_counter() - start)

    def entries(self) -> dict[tuple[str, str, str], Cost]:
        """All that was booked, by (role, phase, layer)."""
        out: dict[tuple[str, str, str], Cost] = {}
        for (role, phase, layer), (m, s, r, t, n) in self._entries.items():
            key = str(role), phase, layer
            booked = Cost(
                messages=int(m), bytes_sent=int(s), bytes_received=int(r), seconds=t, rounds=int(n)
            )
            out[key] = out.get(key, Cost()) + booked
        return out

    def fields(self) -> dict[str, Value]:
        """All that was booked, as fields of a message, for `add`."""
        entries = self.entries()
        rows = [
            (c.messages, c.bytes_sent, c.bytes_received, c.seconds, c.rounds)
            for c in entries.values()
        ]
        return {
            "booked": [list(key) for key in entries],
            "costs": np.array(rows, np.float64).reshape(-1, 5),
            "rounds": self.rounds,
        }

    def add(self, kept: Message) -> None:
        """Add what another meter had booked: that of the run that this one goes on with.

        Raises:
            WireError: the message lacks it.
        """
        keys, costs = kept.fields.get("booked"), kept.array("costs", dtype="<f8", shape=(None, 5))
        before = kept.integer("rounds", low=0)
        if (
            not isinstance(keys, list)
            or len(keys) != len(costs)
            or not all(isinstance(key, list) and len(key) == 3 for key in keys)
            or not np.isfinite(costs).all()
        ):
            raise WireError("costs that are not booked under anything, or are no numbers")
        for key, row in zip(keys, np.asarray(costs, np.float64).tolist(), strict=True):
            role, phase, layer = map(str, key)
            messages, sent, received, seconds, rounds = row
            self.book(
                role, messages=int(messages), sent=int(sent), received=int(received), seconds=seconds,
                rounds=int(rounds), under=(phase, layer),
            )  # fmt: skip
        self._before = before
        self.rounds += before

    def total(
        self, *, role: object | None = None, phase: str | None = None, layer: str | None = None
    ) -> Cost:
        """The sum over all entries that match what is given."""
        wanted = (None if role is None else str(role), phase, layer)
        matching = (
            cost
            for key, cost in self.entries().items()
            if all(want is None or want == have for want, have in zip(wanted, key, strict=True))
        )
        return sum(matching, start=Cost())

    def by(self, part: int = 0) -> dict[str, Cost]:
        """Sums by role (0), phase (1) or layer (2)."""
        out: dict[str, Cost] = {}
        for key, cost in self.entries().items():
            out[key[part]] = out.get(key[part], Cost()) + cost
        return out
