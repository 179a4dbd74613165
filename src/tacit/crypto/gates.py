"""The gates of one level of a Boolean circuit on bit-sliced shares, 64 instances a word.

Two parties hold each wire by exclusive or. With masks a, b of two wires and their product c, all shared, and the opened
``u = x ^ a`` and ``v = y ^ b``, the wires' AND is ``u v ^ u b ^ v a ^ c``, which is linear in what is shared.

The C kernel takes a few kilobytes of all rows through all gates at a time; numpy takes gate by gate. No branch and no
address depends on a share.

Source: Beaver, "Efficient Multiparty Protocols Using Circuit Randomization" (CRYPTO 1991), for bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError
from tacit.crypto.circuits import Kind, Planes
from tacit.crypto.kernels import Native, native

Numbers = npt.NDArray[np.int32]


class MaskShares(NamedTuple):
    """A party's shares of the masks of a circuit's wires; rows count through the three parts.

    Args:
        own: the masks that this party alone knows, (owned[party], words).
        shared: its shares of those that nobody knows, (rows, words).
        owned: how many masks party 0 and party 1 know alone.
        party: 0 or 1.
    """

    own: Planes
    shared: Planes
    owned: tuple[int, int]
    party: int

    def row(self, number: int) -> Planes | None:
        """The share of a mask; None of one that the other party knows."""
        first, second = self.owned
        if number >= first + second:
            of, at = self.shared, number - first - second
        elif (number >= first) == self.party:
            of, at = self.own, number - self.party * first
        else:
            return None
        row: Planes = of[at]
        return row


def and_gates(
    wires: Planes, masks: MaskShares, opened: Planes, products: Planes, ands: Numbers
) -> None:
    """Write a party's shares of ANDs to their wires.

    Args:
        wires: (wires, words), changed.
        masks: the party's.
        opened: (masks, words): each masked wire less its mask.
        products: (ands, words): shares of the products of two masks each.
        ands: int32, (ands, 3): the output wire, and the rows of both inputs' masks.

    Raises:
        ConfigError: an array has another shape or type.
    """
    words = wires.shape[1]
    rows = sum(masks.owned) + len(masks.shared)
    shapes = (
        (masks.own, (masks.owned[masks.party], words)),
        (masks.shared, (len(masks.shared), words)),
        (opened, (rows, words)),
        (products, (len(ands), words)),
    )
    for array, shape in shapes:
        if array.shape != shape or array.dtype != np.uint64 or not array.flags.c_contiguous:
            raise ConfigError(f"uint64 {shape} expected, got {array.dtype} {array.shape}")
    loaded = native()
    if loaded is not None:
        _and_native(loaded, wires, masks, opened, products, ands)
        return
    for (out, left, right), c in zip(ands.tolist(), products, strict=True):
        u, v = opened[left], opened[right]
        a, b = masks.row(left), masks.row(right)
        total = c.copy()
        if masks.party == 0:
            total ^= u & v
        if b is not None:
            total ^= u & b
        if a is not None:
            total ^= v & a
        wires[out] = total


def linear_gates(wires: Planes, gates: Numbers, party: int) -> None:
    """Write a party's shares of the gates that need no round to their wires: XORs, NOTs, ANDs of what one party knows.

    Args:
        wires: (wires, words), changed.
        gates: int32, (gates, 4): what it does, the output wire and both inputs, in order. What it does is a `Kind`, of a
            NOT plus the party that inverts.
        party: 0 or 1.
    """
    loaded = native()
    if loaded is not None:
        lib, ffi = loaded
        lib.tacit_gates_linear(
            ffi.from_buffer("uint64_t[]", wires, require_writable=True), wires.shape[1],
            ffi.from_buffer("int32_t[]", gates), len(gates), party,
        )  # fmt: skip
        return
    for kind, out, a, b in gates.tolist():
        if kind == Kind.XOR:
            np.bitwise_xor(wires[a], wires[b], out=wires[out])
        elif kind == Kind.AND:
            np.bitwise_and(wires[a], wires[b], out=wires[out])
        else:
            wires[out] = ~wires[a] if kind - Kind.NOT == party else wires[a]


def _and_native(
    loaded: Native,
    wires: Planes,
    masks: MaskShares,
    opened: Planes,
    products: Planes,
    ands: Numbers,
) -> None:
    lib, ffi = loaded
    lib.tacit_gates_and(
        ffi.from_buffer("uint64_t[]", wires, require_writable=True), wires.shape[1],
        ffi.from_buffer("uint64_t[]", masks.own), ffi.from_buffer("uint64_t[]", masks.shared),
        ffi.new("int32_t[2]", masks.owned), ffi.from_buffer("uint64_t[]", opened),
        ffi.from_buffer("uint64_t[]", products), ffi.from_buffer("int32_t[]", ands), len(ands), masks.party,
    )  # fmt: skip
