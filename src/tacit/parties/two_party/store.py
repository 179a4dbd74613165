"""Where a party keeps its correlations until it uses them, each once.

A store belongs to one preprocessing: both parties' stores have its name, which nobody else's have. Correlations are handed
out in the order of the plan, never twice. Two parties who start on their stores tell each other how far each has come and go
on from the further one (`tacit.parties.two_party.session`): what one of them has used, or may have used before it was
killed, the other does not use either.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from tacit.core.errors import ConfigError, StoreError
from tacit.parties.two_party.correlations import Correlation, Material, Plan

WINDOW = 1 << 26
"""Bytes of correlations that are made at a time."""


class Preprocessor(Protocol):
    """Makes a party's correlations, with the other party or a dealer."""

    @property
    def plan(self) -> Plan:
        """What it makes."""
        ...

    @property
    def name(self) -> bytes:
        """16 bytes that both parties of this preprocessing have, and no other has."""
        ...

    def prepare(self, numbers: range) -> Sequence[Material]:
        """This party's part of these correlations of the plan; some of it may still arrive, when it is looked at.

        Both parties ask for the same ranges in the same order, each correlation once and in the order of the plan; some
        may be left out.
        """
        ...


class TripleStore(Protocol):
    """A party's correlations, each to be used once."""

    @property
    def plan(self) -> Plan:
        """What the store holds, or will."""
        ...

    @property
    def name(self) -> bytes:
        """Of the preprocessing: the other party's store has the same."""
        ...

    @property
    def position(self) -> int:
        """The number, in the plan, of the next correlation."""
        ...

    def take(self, wanted: Correlation) -> tuple[int, Material]:
        """The next correlation's number and this party's part of it, which the store keeps no longer.

        Raises:
            StoreError: the next one is another than wanted, or there is none.
        """
        ...

    def skip_to(self, position: int) -> None:
        """Go on at that number; what lies before it will not be used.

        Raises:
            StoreError: it lies behind, or beyond the end.
        """
        ...


def next_of(plan: Plan, position: int, wanted: Correlation) -> None:
    """Check that the next correlation of a plan is the one that is wanted.

    Raises:
        StoreError: it is not.
    """
    if position >= len(plan.correlations):
        raise StoreError(
            f"all {len(plan.correlations)} correlations of the store are used up; {wanted} is wanted: prepare more"
        )
    if plan.correlations[position] != wanted:
        raise StoreError(
            f"correlation {position} of the plan is {plan.correlations[position]}, and {wanted} is wanted: "
            "the store was prepared for another computation"
        )


def check_skip(plan: Plan, position: int, to: int) -> None:
    """Check that a store may go on at a number.

    Raises:
        StoreError: it lies behind, or beyond the end.
    """
    if not position <= to <= len(plan.correlations):
        raise StoreError(
            f"a store at correlation {position} of {len(plan.correlations)} cannot go on at {to}: prepare a new one"
        )


def check_process(process: int) -> None:
    """Check that a store, or what else must not be used twice, is still with the process that made it.

    Raises:
        StoreError: this is a fork, in which it would be used a second time.
    """
    if process != os.getpid():
        raise StoreError(
            "correlations and transfers belong to the process that made them: prepare others after the fork"
        )


class MemoryStore:
    """A store of all correlations at once, in memory.

    Args:
        plan: the correlations.
        name: of the preprocessing.
        materials: this party's part of each.

    Raises:
        StoreError: there are more or fewer parts than the plan has correlations.
    """

    def __init__(self, plan: Plan, name: bytes, materials: Sequence[Material]) -> None:
        if len(materials) != len(plan.correlations):
            raise StoreError(
                f"the plan has {len(plan.correlations)} correlations, and {len(materials)} came"
            )
        self.plan, self.name = plan, name
        self._left = deque(materials)
        self._process = os.getpid()

    @classmethod
    def filled(cls, preprocessor: Preprocessor) -> MemoryStore:
        """A store of all that a preprocessor makes."""
        plan = preprocessor.plan
        materials = preprocessor.prepare(range(len(plan.correlations)))
        return cls(plan, preprocessor.name, [dict(part) for part in materials])  # all that arrives

    @property
    def position(self) -> int:
        """The number of the next correlation."""
        return len(self.plan.correlations) - len(self._left)

    def take(self, wanted: Correlation) -> tuple[int, Material]:
        """The next correlation's number and this party's part of it."""
        check_process(self._process)
        number = self.position
        next_of(self.plan, number, wanted)
        return number, self._left.popleft()

    def skip_to(self, position: int) -> None:
        """Go on at that number."""
        check_skip(self.plan, self.position, position)
        for _ in range(position - self.position):
            self._left.popleft()

    def __repr__(self) -> str:
        return f"MemoryStore({self.position} of {len(self.plan.correlations)} used)"


class StreamedStore:
    """A store that has its correlations made a window at a time, when they are needed.

    Args:
        preprocessor: makes them; it must be able to talk to its peer while the computation waits.
        window: bytes, about, of a window.
        apart: wait for all of a window before any of it is used, so that `seconds` has all that the making took; otherwise
            what can begin does.
    """

    def __init__(
        self, preprocessor: Preprocessor, window: int = WINDOW, *, apart: bool = False
    ) -> None:
        if window < 1:
            raise ConfigError(f"a window of at least one byte expected, got {window}")
        self.plan, self.name = preprocessor.plan, preprocessor.name
        self.position = 0
        self._preprocessor = preprocessor
        self._windows = deque(self.plan.windows(window))
        self._held: deque[Material] = deque()
        self._process = os.getpid()
        self._apart = apart
        self.seconds = 0.0

    def take(self, wanted: Correlation) -> tuple[int, Material]:
        """The next correlation's number and this party's part of it; a window is made if none is left."""
        next_of(self.plan, self.position, wanted)
        if not self._held:
            begun = time.perf_counter()
            made = self._preprocessor.prepare(self._windows[0])
            self._held.extend([dict(part) for part in made] if self._apart else made)
            self._windows.popleft()
            self.seconds += time.perf_counter() - begun
        check_process(self._process)
        self.position += 1
        return self.position - 1, self._held.popleft()

    def skip_to(self, position: int) -> None:
        """Go on at that number; windows that lie before it are not made."""
        check_skip(self.plan, self.position, position)
        dropped = min(position - self.position, len(self._held))
        for _ in range(dropped):
            self._held.popleft()
        while self._windows and self._windows[0].stop <= position:
            self._windows.popleft()
        if not self._held and self._windows:
            window = self._windows[0]
            self._windows[0] = range(max(window.start, position), window.stop)
        self.position = position

    def __repr__(self) -> str:
        return f"StreamedStore({self.position} of {len(self.plan.correlations)} used)"
