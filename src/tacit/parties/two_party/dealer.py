"""Correlations from a dealer, who helps and sees no data: client-aided preprocessing.

The dealer gives each server a key, from which it expands its uniform fields; server 0 expands its shares of the derived
fields too, and server 1 is sent what it lacks: for a product of masks the dealer expands both servers' masks, multiplies,
and takes server 0's share away.

The dealer knows every mask. It must not collude with a server, which would then know all; it sees no message between them. A
data owner who takes no part in the computation otherwise may be the dealer (SecureML, section 7: client-aided).

Source: Mohassel and Zhang, "SecureML" (IEEE S&P 2017), section 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tacit.core.coins import Coins
from tacit.core.errors import ProtocolError
from tacit.crypto.ring import Elements, Ring
from tacit.parties.pair import Channel
from tacit.parties.two_party.correlations import Field, Mask, Material, Plan, uniform
from tacit.parties.two_party.session import OFFLINE, CheckedWire, Expected

KEY_BYTES = 32
NAME_BYTES = 16


def _added(field: Field, first: Elements, second: Elements) -> Elements:
    out: Elements = first ^ second if field.bits else first + second
    return out


def corrections(
    plan: Plan, numbers: range, coins: tuple[Coins, Coins], masks: dict[str, Elements]
) -> Iterator[list[Elements]]:
    """What server 1 lacks of each of these correlations: its shares of the derived fields.

    Args:
        plan: the correlations.
        numbers: which.
        coins: the servers' streams, for this window.
        masks: the values of `Mask`s by name; those of the window are added.
    """
    for number in numbers:
        correlation = plan.correlations[number]
        both = [
            uniform(correlation.free(), plan.ring, stream, party)
            for party, stream in enumerate(coins)
        ]
        free = {
            field.name: _added(field, *(part[field.name] for part in both))
            if field.owner is None
            else both[field.owner][field.name]
            for field in correlation.free()
        }
        if isinstance(correlation, Mask):
            masks[correlation.name] = free["a"]
        kept = uniform(correlation.derived(), plan.ring, coins[0], 0)
        values = correlation.derive(plan.ring, free, masks)
        yield [
            value ^ kept[field.name] if field.bits else value - kept[field.name]
            for field, value in zip(correlation.derived(), values, strict=True)
        ]


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
    masks: dict[str, Elements] = {}
    done = 0
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
        first, second = (stream.child(_window(numbers)) for stream in streams)
        for shares in corrections(plan, numbers, (first, second), masks):
            if shares:
                wires[1].send("dealt", *shares)


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

    def prepare(self, numbers: range) -> Sequence[Material]:
        """This server's part of these correlations; server 1 asks the dealer for what it lacks."""
        coins = self._coins.child(_window(numbers))
        if self._party == 1:
            with self._wire.during(OFFLINE, self.plan.name(numbers.start)):
                self._wire.send("deal", np.array([numbers.start, numbers.stop], "<i8"))
        return [self._one(number, coins) for number in numbers]

    def _one(self, number: int, coins: Coins) -> Material:
        ring, correlation = self.plan.ring, self.plan.correlations[number]
        derived = correlation.derived()
        with self._wire.during(OFFLINE, self.plan.name(number)):
            part = uniform(correlation.free(), ring, coins, self._party)
            if self._party == 0:
                part.update(uniform(derived, ring, coins, 0))
            elif derived:
                came = self._wire.recv("dealt", [_expected(field, ring) for field in derived])
                part.update(zip((field.name for field in derived), came, strict=True))
        return part

    def close(self) -> None:
        """Tell the dealer that no more is needed; server 1 does."""
        if self._party == 1:
            with self._wire.during(OFFLINE, "end"):
                self._wire.send("deal", np.array([0, 0], "<i8"))


def _expected(field: Field, ring: Ring) -> Expected:
    return Expected(field.shape, "<u8" if field.bits else ring.dtype.str)


def _window(numbers: range) -> str:
    return f"{numbers.start}..{numbers.stop}"
