"""Correlations from a dealer, who helps and sees no data: client-aided preprocessing.

The dealer gives each server a key, from which it expands its uniform fields; server 0 expands its shares of the derived
fields too, and server 1 is sent what it lacks: for a product of masks the dealer expands both servers' masks, multiplies,
and takes server 0's share away.

The dealer knows every mask. It must not collude with a server, which would then know all; it sees no message between them. A
data owner who takes no part in the computation otherwise may be the dealer (SecureML, section 7: client-aided).

Source: Mohassel and Zhang, "SecureML" (IEEE S&P 2017), section 7.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tacit.core.coins import Coins
from tacit.core.errors import ProtocolError, StoreError
from tacit.crypto.ring import Elements, Ring
from tacit.parties.pair import Channel
from tacit.parties.two_party.correlations import Correlation, Field, Masks, Material, Plan, uniform
from tacit.parties.two_party.session import OFFLINE, CheckedWire, Expected

KEY_BYTES = 32
NAME_BYTES = 16


def _added(field: Field, first: Elements, second: Elements) -> Elements:
    out: Elements = first ^ second if field.bits else first + second
    return out


def draw(
    correlation: Correlation, ring: Ring, coins: tuple[Coins, Coins]
) -> tuple[list[dict[str, Elements]], dict[str, Elements]]:
    """Both servers' shares of the free fields, from their streams, and the fields' values."""
    both = [uniform(correlation.free(), ring, stream, party) for party, stream in enumerate(coins)]
    values = {
        field.name: _added(field, both[0][field.name], both[1][field.name])
        if field.owner is None
        else both[field.owner][field.name]
        for field in correlation.free()
    }
    return both, values


def split(
    correlation: Correlation,
    ring: Ring,
    coins: Coins,
    free: Mapping[str, Elements],
    masks: Masks,
) -> tuple[dict[str, Elements], list[Elements]]:
    """Server 0's shares of the derived fields, from its stream, and what server 1 lacks: its own, in order.

    Args:
        correlation: whose.
        ring: of elements.
        coins: server 0's stream, after the free fields.
        free: the free fields' values.
        masks: the values of masks that are needed again; those of the correlation are added.
    """
    masks.keep(correlation, free)
    kept = uniform(correlation.derived(), ring, coins, 0)
    values = correlation.derive(ring, free, masks)
    return kept, [
        value ^ kept[field.name] if field.bits else value - kept[field.name]
        for field, value in zip(correlation.derived(), values, strict=True)
    ]


class Arriving(Mapping[str, Elements]):
    """Material whose derived fields are made, or arrive, when one of them is first looked at.

    What needs the masks alone can begin meanwhile.

    Args:
        here: the fields that are there.
        names: of those that are not.
        complete: fetches them.
    """

    def __init__(
        self,
        here: dict[str, Elements],
        names: Sequence[str],
        complete: Callable[[], Mapping[str, Elements]],
    ) -> None:
        self._here, self._names, self._complete = here, tuple(names), complete

    def __getitem__(self, name: str) -> Elements:
        if name not in self._here and name in self._names:
            self.arrive()
        return self._here[name]

    def arrive(self) -> None:
        """Fetch what is not there yet."""
        if self._names:
            self._here.update(self._complete())
            self._names = ()

    def __iter__(self) -> Iterator[str]:
        return iter((*self._here, *self._names))

    def __len__(self) -> int:
        return len(self._here) + len(self._names)


def deal(plan: Plan, servers: tuple[Channel, Channel], coins: Coins) -> None:
    """The dealer's side: serve server 1 until it needs no more.

    Args:
        plan: the correlations.
        servers: channels to server 0 and server 1.
        coins: for the servers' keys.

    Raises:
        ProtocolError: server 1 asks for what the plan does not have, or for something twice.

    **Leaks**: to the dealer nothing but how far the servers are.

    **Cost**: 80 bytes to each server; then, for each window, 16 bytes from server 1 and, back, its shares of the derived
    fields.
    """
    keys, name = [coins.bytes(KEY_BYTES) for _ in servers], coins.bytes(NAME_BYTES)
    wires = [CheckedWire(channel) for channel in servers]
    for wire, key in zip(wires, keys, strict=True):
        wire.send(
            "dealer start", *(np.frombuffer(part, np.uint8) for part in (key, name, plan.digest))
        )
    streams = [Coins.expanding(key, seeded=coins.seeded) for key in keys]
    masks, done = Masks(plan), 0
    while True:
        (asked,) = wires[1].recv("deal", [Expected((2,), "<i8")])
        numbers = range(*asked.tolist())
        if not numbers:
            return
        if not done <= numbers.start < numbers.stop <= len(plan.correlations):
            raise ProtocolError(
                f"{servers[1].peer} asks for correlations {numbers.start} to {numbers.stop} of "
                f"{len(plan.correlations)}, of which {done} were dealt"
            )
        done = numbers.stop
        for number in numbers:
            first, second = (stream.child(str(number)) for stream in streams)
            correlation = plan.correlations[number]
            _, free = draw(correlation, plan.ring, (first, second))
            _, lacking = split(correlation, plan.ring, first, free, masks)
            masks.done(number)
            if lacking:
                wires[1].send("dealt", *lacking)


class Dealt:
    """A server's side: what it expands, and what the dealer sends.

    Args:
        channel: to the dealer, who runs `deal`.
        party: 0 or 1.
        plan: the correlations.
        seeded: whether the dealer's coins are, so that results can say so.

    Raises:
        ProtocolError: the dealer has another plan.
    """

    def __init__(self, channel: Channel, party: int, plan: Plan, *, seeded: bool = False) -> None:
        self.plan = plan
        self._party, self._wire = party, CheckedWire(channel)
        with self._wire.during(OFFLINE, "start"):
            key, name, digest = self._wire.recv(
                "dealer start",
                [Expected((size,), "u1") for size in (KEY_BYTES, NAME_BYTES, len(plan.digest))],
            )
        if digest.tobytes() != plan.digest:
            raise ProtocolError(
                f"{channel.peer} deals another plan than this server's: give all the same settings"
            )
        self.name = name.tobytes()
        self._coins = Coins.expanding(key.tobytes(), seeded=seeded)
        self._under_way: deque[Arriving] = deque()
        self._done = 0

    def prepare(self, numbers: range) -> Sequence[Material]:
        """This server's part of these correlations; server 1 asks the dealer for what it lacks."""
        if not numbers:
            return []
        if numbers.start < self._done:  # the same masks would go out again
            raise StoreError(
                f"correlations {numbers.start} to {numbers.stop} are asked for, and those before {self._done} "
                "have been handed out: prepare anew"
            )
        self._done = numbers.stop
        if self._party == 1:
            with self._wire.during(OFFLINE, self.plan.name(numbers.start)):
                self._wire.send("deal", np.array([numbers.start, numbers.stop], "<i8"))
        return [self._one(number, self._coins.child(str(number))) for number in numbers]

    def _one(self, number: int, coins: Coins) -> Material:
        ring, correlation = self.plan.ring, self.plan.correlations[number]
        derived = correlation.derived()
        with self._wire.during(OFFLINE, self.plan.name(number)):
            part = uniform(correlation.free(), ring, coins, self._party)
            if self._party == 0:
                part.update(uniform(derived, ring, coins, 0))
        if self._party == 0 or not derived:
            return part

        def complete() -> Mapping[str, Elements]:
            while self._under_way[0] is not arriving:  # what the dealer sent earlier comes first
                self._under_way[0].arrive()
            with self._wire.during(OFFLINE, self.plan.name(number)):
                came = self._wire.recv("dealt", [expected_of(field, ring) for field in derived])
            self._under_way.popleft()
            return dict(zip((field.name for field in derived), came, strict=True))

        arriving = Arriving(part, [field.name for field in derived], complete)
        self._under_way.append(arriving)
        return arriving

    def close(self) -> None:
        """Tell the dealer that no more is needed; server 1 does."""
        if self._party == 1:
            with self._wire.during(OFFLINE, "end"):
                self._wire.send("deal", np.array([0, 0], "<i8"))


def expected_of(field: Field, ring: Ring) -> Expected:
    """What arrives of a field."""
    return Expected(field.shape, "<u8" if field.bits else ring.dtype.str)
