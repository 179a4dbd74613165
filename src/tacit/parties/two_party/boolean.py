"""Boolean circuits on bit-sliced shares, and the way between ring elements and bits.

Each function is run by both parties at the same time, each with its own share. A vector of bits is shared by exclusive or,
64 instances in a word, so that one processor instruction works on 64 gates. A round evaluates all ANDs of one level of the
circuit: each wire that an AND reads is masked and opened once, whatever the number of ANDs that read it, and wires that
one party knows are opened by that party alone.

Source: Goldreich, Micali, Wigderson (STOC 1987) with Beaver's masks; comparison by the sign of a difference and its carry
tree; `from_bits` and `select` by random bits that are shared both ways (Rotaru and Wood, INDOCRYPT 2019).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from tacit.core.errors import ConfigError
from tacit.crypto.bits import slice_bits, unpack_plane, words_of
from tacit.crypto.circuits import (
    Circuit,
    Planes,
    carries_of_sum,
    sign_of_sum,
    sum_of_shares,
)
from tacit.crypto.gates import MaskShares, and_gates, linear_gates
from tacit.crypto.ring import Elements
from tacit.parties.two_party.correlations import CircuitMasks, DaBits, Selection, Size
from tacit.parties.two_party.schedule import schedule_of
from tacit.parties.two_party.session import Expected, Session


@dataclass(frozen=True, slots=True)
class Bits:
    """A party's share of bits.

    Args:
        planes: uint64, (bits, words): bit b of every element, lowest first; the share is by exclusive or.
        shape: of the elements.
    """

    planes: Planes = field(repr=False)
    shape: Size

    @property
    def count(self) -> int:
        """How many elements."""
        return prod(self.shape)


def inverted(session: Session, bits: Bits) -> Bits:
    """The bits' opposites: one party flips its share. **Cost**: nothing."""
    return Bits(~bits.planes, bits.shape) if session.party == 0 else bits


def open_bits(session: Session, bits: Bits) -> Planes:
    """The planes of shared bits.

    **Leaks**: the bits, to both. **Cost**: 1 round, a bit each way for each.
    """
    with session.step("open bits") as step:
        (theirs,) = step.exchange(bits.planes)
        return bits.planes ^ theirs


def evaluate(session: Session, circuit: Circuit, own: Planes, *, name: str = "circuit") -> Planes:
    """A circuit on both parties' private bits.

    Args:
        session: of this party.
        circuit: to evaluate.
        own: this party's bits, (inputs[party], words).
        name: of the operation.

    Returns:
        This party's share of the outputs, (outputs, words).

    **Leaks**: nothing: what is opened is uniform.

    **Cost**: as many rounds as the circuit is deep; a bit each way for each shared wire that an AND reads, and one way for
    each such wire that one party knows.
    """
    words = own.shape[-1]
    if own.shape != (circuit.inputs[session.party], words) or own.dtype != np.uint64:
        raise ConfigError(
            f"{circuit}: party {session.party} puts in uint64 ({circuit.inputs[session.party]}, words), "
            f"got {own.dtype} {own.shape}"
        )
    schedule, mine, theirs = schedule_of(circuit), session.party, 1 - session.party
    wires = np.empty((circuit.wires, words), np.uint64)
    ends = 0, circuit.inputs[0], sum(circuit.inputs)
    wires[ends[mine] : ends[mine + 1]] = own
    wires[ends[theirs] : ends[theirs + 1]] = 0
    first, second, _ = schedule.masks
    with session.step(name, CircuitMasks(circuit, words)) as step:
        material = step.material
        known, shared = material[("first", "second")[mine]], material["shared"]
        masks = MaskShares(known, shared, (first, second), mine)
        opened = np.empty((sum(schedule.masks), words), np.uint64)
        for level in schedule.levels:
            linear_gates(wires, level.linear, mine)
            rows = level.masks
            own_rows, both_rows = (opened[rows[part]] for part in (mine, 2))
            np.bitwise_xor(
                wires[level.wires[mine]], known[_less(rows[mine], mine * first)], out=own_rows
            )
            hidden = wires[level.wires[2]]
            hidden ^= shared[_less(rows[2], first + second)]
            other_rows = opened[rows[theirs]]
            came, other = step.exchange(
                own_rows, hidden, expected=(Expected(other_rows.shape), Expected(hidden.shape))
            )
            other_rows[:] = came
            np.bitwise_xor(hidden, other, out=both_rows)
            and_gates(wires, masks, opened, material["products"][level.products], level.ands)
        linear_gates(wires, schedule.linear, mine)
        return wires[circuit.outputs]


def _less(rows: slice, first: int) -> slice:
    """Rows of all masks as rows of the part that begins at ``first``."""
    return slice(rows.start - first, rows.stop - first) if rows.stop else rows


# --- from ring elements to bits


def _sliced(session: Session, share: Elements) -> Planes:
    return slice_bits(np.ascontiguousarray(session.ring.require(share)).reshape(-1))


def to_bits(session: Session, share: Elements) -> Bits:
    """All bits of shared values (A2B): the circuit of the sum of both shares.

    **Leaks**: nothing. **Cost**: 6 rounds with 64 bits, 5 with 32; see the table in docs/two-party.md.
    """
    circuit = sum_of_shares(session.ring.bits)
    planes = evaluate(session, circuit, _sliced(session, share), name="to bits")
    return Bits(planes, share.shape)


def sign(session: Session, share: Elements) -> Bits:
    """Whether shared values are negative in two's complement: one bit each.

    **Leaks**: nothing. **Cost**: 6 rounds with 64 bits, 5 with 32; see the table in docs/two-party.md.
    """
    circuit = sign_of_sum(session.ring.bits)
    planes = evaluate(session, circuit, _sliced(session, share), name="sign")
    return Bits(planes, share.shape)


def less_than(session: Session, left: Elements, right: Elements) -> Bits:
    """Whether left < right, in two's complement, for values whose difference fits the ring. **Cost**: as `sign`."""
    return sign(session, left - right)


# --- from bits to ring elements


def each_from_bits(session: Session, bits: Bits) -> Elements:
    """The ring elements 0 and 1 of shared bits, each plane by itself: (planes, elements).

    **Leaks**: nothing: what is opened is uniform. **Cost**: 1 round, a bit each way for each.
    """
    rows, words = bits.planes.shape
    with session.step("from bits", DaBits(64 * rows * words)) as step:
        own = bits.planes ^ step.material["bits"].reshape(rows, words)
        (theirs,) = step.exchange(own)
        opened = unpack_plane(own ^ theirs, bits.count)
        r = step.material["r"].reshape(rows, 64 * words)[:, : bits.count]
        out: Elements = np.where(opened, np.negative(r), r)  # opened + r - 2 opened r
        if session.party == 0:
            out += opened
        return out


def from_bits(session: Session, bits: Bits) -> Elements:
    """The ring elements of shared bits (B2A), the lowest plane first; as `each_from_bits`."""
    dtype = session.ring.dtype
    weights = np.left_shift(dtype.type(1), np.arange(len(bits.planes), dtype=dtype))
    total: Elements = (each_from_bits(session, bits) * weights[:, None]).sum(axis=0, dtype=dtype)
    return total.reshape(bits.shape)


def select(session: Session, bits: Bits, share: Elements) -> Elements:
    """Shared values where shared bits are 1, else 0.

    Args:
        session: of this party.
        bits: one plane.
        share: ring elements of the bits' shape.

    **Leaks**: nothing: what is opened is uniform. **Cost**: 1 round; each way an element and a bit for each value.
    """
    if bits.planes.shape != (1, words_of(share.size)) or bits.shape != share.shape:
        raise ConfigError(f"one bit for each of {share.shape} expected, got {bits}")
    flat = session.ring.require(share).reshape(-1)
    with session.step("select", Selection(flat.size)) as step:
        hidden = bits.planes[0] ^ step.material["bits"], flat - step.material["a"]
        theirs = step.exchange(*hidden)
        flip = unpack_plane(hidden[0] ^ theirs[0], flat.size)
        delta = hidden[1] + theirs[1]
        delta *= step.material["r"]
        delta += step.material["ra"]  # the random bit times the value
        out: Elements = np.where(flip, flat - delta, delta)
        return out.reshape(share.shape)


def relu(session: Session, share: Elements) -> tuple[Elements, Bits]:
    """``max(x, 0)`` of shared values, and the bits that say where x >= 0, for the derivative.

    **Leaks**: nothing. **Cost**: `sign` and `select`: 7 rounds with 64 bits.
    """
    positive = inverted(session, sign(session, share))
    return select(session, positive, share), positive


def truncate_exactly(session: Session, share: Elements, bits: int | None = None) -> Elements:
    """A shared value divided by ``2^bits``, the fraction by default, and rounded down: always exact.

    The shares are shifted; what carries between them, into the lowest bit that is kept and out of the ring, is found by a
    circuit and added.

    **Leaks**: nothing. **Cost**: 7 rounds with 64 bits; see the table in docs/two-party.md.
    """
    ring, bits = session.ring, session.fixed.fraction if bits is None else bits
    if not 1 <= bits < ring.bits:
        raise ConfigError(f"1 to {ring.bits - 1} bits can be taken away, got {bits}")
    half = ring.dtype.type(1 << (ring.bits - 1))
    moved = share + half if session.party == 0 else share  # two's complement is now unsigned
    circuit = carries_of_sum(ring.bits, bits)
    planes = evaluate(session, circuit, _sliced(session, moved), name="truncate exactly")
    into, out = each_from_bits(session, Bits(planes, share.shape)).reshape(2, *share.shape)
    shift, top = ring.dtype.type(bits), ring.dtype.type(1 << (ring.bits - bits))
    result: Elements = (moved >> shift) + into - out * top
    if session.party == 0:
        result -= half >> shift
    return result
