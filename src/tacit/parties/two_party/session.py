"""A session: two parties who have agreed on ring, precision and correlations, and compute step by step in the same order.

Every message of a session carries the operation's name and number, so that two parties who are not at the same place stop
at once. What comes from the peer is checked against what must come before anything is done with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, ProtocolError, StoreError, WireError
from tacit.core.wire import Array
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.ring import Elements, Ring
from tacit.parties.pair import Channel
from tacit.parties.two_party.correlations import Correlation, Material, Plan, Size
from tacit.parties.two_party.store import TripleStore

if TYPE_CHECKING:
    from tacit.parties.two_party.transfers import Transfers

OFFLINE, ONLINE = "offline", "online"
"""Phases under which costs are booked."""


class Expected(NamedTuple):
    """An array that must come."""

    shape: Size
    dtype: str = "<u8"


class Wire(Protocol):
    """What a session says to the other side and hears from it."""

    def send(self, tag: str, *arrays: Array) -> None:
        """Send arrays."""
        ...

    def recv(self, tag: str, expected: Sequence[Expected]) -> tuple[Elements, ...]:
        """The arrays that the peer sent under that tag, which are what they must be."""
        ...

    def exchange(
        self, tag: str, arrays: Sequence[Array], expected: Sequence[Expected]
    ) -> tuple[Elements, ...]:
        """Both directions at once: one round."""
        ...

    def pieces(self, rounds: int) -> AbstractContextManager[None]:
        """What is sent and received inside are pieces of so many rounds."""
        ...

    def during(
        self, phase: str | None = None, layer: str | None = None
    ) -> AbstractContextManager[None]:
        """Book what this party sends, receives and computes inside under that phase and layer."""
        ...


@dataclass(slots=True)
class CheckedWire:
    """A channel whose messages are checked and whose rounds are counted.

    Messages one after another in one direction are a round, an exchange is one; both sides count the same.

    Args:
        channel: to the other party.
    """

    channel: Channel
    _last: str = ""
    _uncounted: bool = False

    def _count(self, direction: str) -> None:
        if not self._uncounted and (direction != self._last or not direction):
            self.channel.count_round()
        self._last = direction

    def send(self, tag: str, *arrays: Array) -> None:
        """Send arrays."""
        self._count("sent")
        self.channel.send(tag, *arrays)

    def recv(self, tag: str, expected: Sequence[Expected]) -> tuple[Elements, ...]:
        """The arrays that the peer sent under that tag.

        Raises:
            WireError: they are of other numbers, shapes or types than they must be.
            ProtocolError: the peer is at another operation.
        """
        self._count("received")
        return self._checked(tag, expected)

    def exchange(
        self, tag: str, arrays: Sequence[Array], expected: Sequence[Expected]
    ) -> tuple[Elements, ...]:
        """Send and receive under one tag; raises as `recv`."""
        self._count("")
        self.channel.send(tag, *arrays)
        return self._checked(tag, expected)

    def _checked(self, tag: str, expected: Sequence[Expected]) -> tuple[Elements, ...]:
        arrays = self.channel.recv(tag)
        if [(array.shape, array.dtype) for array in arrays] != [
            (shape, np.dtype(dtype)) for shape, dtype in expected
        ]:
            came = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays[:8])
            wanted = ", ".join(f"{np.dtype(dtype)}{list(shape)}" for shape, dtype in expected[:8])
            raise WireError(
                f"{tag} from {self.channel.peer}: {wanted} expected, came {came or 'nothing'}"
            )
        return arrays

    @contextmanager
    def pieces(self, rounds: int) -> Iterator[None]:
        """What is sent and received inside are pieces of so many rounds, in which nobody waits for the other in between."""
        for _ in range(rounds):
            self.channel.count_round()
        self._uncounted = True
        try:
            yield
        finally:
            self._uncounted, self._last = False, ""

    @contextmanager
    def during(self, phase: str | None = None, layer: str | None = None) -> Iterator[None]:
        """Book what this party does inside under that phase and layer; a round begins."""
        self._last = ""
        with self.channel.during(phase, layer):
            yield
        self._last = ""


@dataclass(slots=True)
class Session:
    """One party's side of a computation; made by `start`.

    Args:
        wire: to the other party.
        party: 0 or 1; the two do not do the same.
        fixed: ring and precision.
        store: of correlations.
        coins: for what this party draws while it computes.
        transfers: oblivious transfers with the other party, where some were begun.
    """

    wire: Wire
    party: int
    fixed: FixedPoint
    store: TripleStore = field(repr=False)
    coins: Coins = field(repr=False)
    transfers: Transfers | None = None
    _operations: int = 0
    _layer: str = ""

    @property
    def tracing(self) -> bool:
        """Nobody is at the other end: the computation is run for its plan (`traced`)."""
        return isinstance(self.wire, _Unheard)

    @property
    def ring(self) -> Ring:
        """In which values are shared."""
        return self.fixed.ring

    @contextmanager
    def within(self, layer: str) -> Iterator[None]:
        """Name what is done inside ``layer/operation``, in costs and messages."""
        before, self._layer = self._layer, f"{self._layer}{layer}/"
        try:
            yield
        finally:
            self._layer = before

    @contextmanager
    def step(self, operation: str, uses: Correlation | None = None) -> Iterator[Step]:
        """An operation: its costs are booked under its name, those of its correlation apart, as offline.

        Args:
            operation: the name.
            uses: what it takes out of the store.

        Raises:
            StoreError: the store has something else, or nothing.
        """
        layer = self._layer + operation
        tag = f"{layer} {self._operations}"
        material: Material = {}
        self._operations += 1
        if uses is not None:
            with self.wire.during(OFFLINE, layer):
                number, material = self.store.take(uses)
            tag += f" #{number}"
        with self.wire.during(ONLINE, layer):
            yield Step(self, tag, material)


@dataclass(slots=True)
class Step:
    """An operation of a session, which speaks under its own tag.

    Args:
        session: the session.
        tag: the operation's name and number, and that of its correlation.
        material: this party's part of the correlation.
    """

    session: Session
    tag: str
    material: Material = field(repr=False)

    def send(self, *arrays: Array) -> None:
        """Send arrays."""
        self.session.wire.send(self.tag, *arrays)

    def recv(self, *expected: Expected) -> tuple[Elements, ...]:
        """What the peer sends in the same operation."""
        return self.session.wire.recv(self.tag, expected)

    def exchange(
        self, *arrays: Elements, expected: Sequence[Expected] | None = None
    ) -> tuple[Elements, ...]:
        """Both send arrays, of the same shapes and types unless others are expected: one round."""
        if expected is None:
            expected = [Expected(array.shape, array.dtype.str) for array in arrays]
        return self.session.wire.exchange(self.tag, arrays, expected)

    @contextmanager
    def pieces(self, rounds: int) -> Iterator[None]:
        """What is sent and received inside are pieces of so many rounds, in which nobody waits for the other in between."""
        with self.session.wire.pieces(rounds):
            yield

    def opened(self, *shares: Elements) -> tuple[Elements, ...]:
        """The values of shared ring elements: one round."""
        theirs = self.exchange(*shares)
        return tuple(mine + other for mine, other in zip(shares, theirs, strict=True))


_VERSION = 1


def start(
    channel: Channel,
    party: int,
    fixed: FixedPoint,
    store: TripleStore,
    coins: Coins,
    *,
    transfers: Transfers | None = None,
) -> Session:
    """Agree with the peer and begin: one round, 96 bytes each way.

    Where the two stores have come to different places, both go on from the further one: whatever one of them may have used
    is used by neither again.

    Args:
        channel: to the other party.
        party: this one: 0 or 1.
        fixed: ring and precision.
        store: of correlations.
        coins: for what this party draws while it computes.
        transfers: oblivious transfers with the other party, where the preprocessing has begun some.

    Raises:
        ConfigError: the party is neither 0 nor 1, or the store was prepared for another ring or precision.
        ProtocolError: the peer has another part, ring, precision, plan or store.
    """
    if party not in (0, 1):
        raise ConfigError(f"party 0 or 1 expected, got {party}")
    plan = store.plan
    if (plan.ring, plan.fraction) != (fixed.ring, fixed.fraction):
        raise ConfigError(
            f"the store was prepared for {plan.ring} with {plan.fraction} fractional bits, and "
            f"{fixed.ring} with {fixed.fraction} is asked for"
        )
    wire = CheckedWire(channel)
    numbers = np.array(
        [_VERSION, 1 - party, fixed.ring.bits, fixed.fraction, len(plan.correlations), store.position],
        "<i8",
    )  # fmt: skip
    said = numbers.copy()
    said[1] = party
    about = np.frombuffer(plan.digest, np.uint8), np.frombuffer(store.name, np.uint8)
    with wire.during(ONLINE, "start"):
        theirs, *their = wire.exchange(
            "two-party start",
            (said, *about),
            [Expected((len(numbers),), "<i8"), Expected((32,), "u1"), Expected((16,), "u1")],
        )
    known = (
        "version", "party", "bits in the ring", "fractional bits", "correlations in the plan",
    )  # fmt: skip
    for name, ours, came in zip(known, numbers[:-1].tolist(), theirs[:-1].tolist(), strict=True):
        if ours != came:
            raise ProtocolError(
                f"{channel.peer} must have {ours} as its {name} and has {came}: give both parties the same settings"
            )
    for name, ours, came in zip(("plan", "store"), about, their, strict=True):
        if not np.array_equal(ours, came):
            raise ProtocolError(
                f"{channel.peer} has another {name}: prepare both parties' correlations in one preprocessing"
            )
    if transfers is not None:
        if not isinstance(transfers.wire, CheckedWire) or transfers.wire.channel is not channel:
            raise ConfigError(
                "the transfers were begun with another peer, or on a line that is gone"
            )
        transfers.wire = wire
    try:
        store.skip_to(max(store.position, int(theirs[-1])))
    except StoreError as error:
        raise ProtocolError(f"{channel.peer} is where this store cannot go: {error}") from error
    return Session(wire, party, fixed, store, coins, transfers)


# --- plans from functions


@dataclass(slots=True)
class _Unheard:
    """A wire with nobody at the other end: whatever is expected comes as zeros."""

    layer: str = ""

    def send(self, tag: str, *arrays: Array) -> None:
        pass

    def recv(self, tag: str, expected: Sequence[Expected]) -> tuple[Elements, ...]:
        return tuple(np.zeros(shape, dtype) for shape, dtype in expected)

    def exchange(
        self, tag: str, arrays: Sequence[Array], expected: Sequence[Expected]
    ) -> tuple[Elements, ...]:
        return self.recv(tag, expected)

    @contextmanager
    def pieces(self, rounds: int) -> Iterator[None]:
        yield

    @contextmanager
    def during(self, phase: str | None = None, layer: str | None = None) -> Iterator[None]:
        self.layer = layer or self.layer
        yield


@dataclass(slots=True)
class _Noting:
    """A store of zeros, which notes what is taken."""

    fixed: FixedPoint
    wire: _Unheard
    taken: list[Correlation] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    name: bytes = bytes(16)

    @property
    def plan(self) -> Plan:
        return Plan(self.fixed.ring, self.fixed.fraction, tuple(self.taken), tuple(self.names))

    @property
    def position(self) -> int:
        return len(self.taken)

    def take(self, wanted: Correlation) -> tuple[int, Material]:
        self.taken.append(wanted)
        self.names.append(self.wire.layer)
        zeros = {
            part.name: np.zeros(part.shape, np.uint64 if part.bits else self.fixed.ring.dtype)
            for part in (*wanted.free(), *wanted.derived())
        }
        return len(self.taken) - 1, zeros

    def skip_to(self, position: int) -> None:
        pass


def traced(computation: Callable[[Session], object], fixed: FixedPoint) -> Plan:
    """The plan of a computation: what it takes out of its store, found by running it on zeros, alone.

    Args:
        computation: gets party 0's session, and must use the same correlations whatever the values are.
        fixed: ring and precision.
    """
    wire = _Unheard()
    store = _Noting(fixed, wire)
    computation(Session(wire, 0, fixed, store, Coins("traced")))
    return store.plan
