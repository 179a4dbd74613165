"""Garbled circuits between two parties: party 0 garbles, party 1 evaluates, in few rounds.

The labels of party 1's input bits come from correlated transfers under the garbling's own offset: the transfer's rows are
the labels, and no message carries them. Party 0's bits are built into the tables. At the end each party holds labels of
every output (`Labels`), whose colours are shares of the output bits: from there on nothing needs to be sent (`to_bits`).

`garbled` does all at once. `prepared_sum` splits the work for circuits of additive shares: tables and random input labels
are made before the inputs are known (`Garbling`); then party 0 sends how far its share is from what it garbled with, party 1
says which of its labels to turn, and gets them.

Source: Yao (FOCS 1986), in the form of Zahur, Rosulek, Evans (EUROCRYPT 2015); labels by correlated transfer: Asharov et al.
(CCS 2013), section 5; conversions between kinds of shares: Demmler, Schneider, Zohner, "ABY" (NDSS 2015), section III.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.bits import join_bits, slice_bits, words_of
from tacit.crypto.circuits import Circuit, Planes, sign_of_sum, sum_of_shares
from tacit.crypto.garbled import colours, evaluate, garble, labels_of, next_tweak
from tacit.crypto.hashing import Blocks
from tacit.crypto.ring import Elements, Ring
from tacit.parties.two_party.boolean import Bits
from tacit.parties.two_party.correlations import Field, Material, Size
from tacit.parties.two_party.session import Expected, Session
from tacit.parties.two_party.transfers import Transfers, transfers_of

BATCH = 32
"""Words of 64 instances that are garbled at a time: tables of a few megabytes, while they are still in the cache."""

_AHEAD = 4  # batches for which labels are asked before their tables come


@dataclass(frozen=True, slots=True, repr=False)
class Labels:
    """A party's side of garbled bits (a Yao share): of each the zero-label for party 0, the active label for party 1.

    Args:
        blocks: uint64, (bits, 64 * words, 2).
        shape: of the elements.
    """

    blocks: Blocks
    shape: Size

    def __repr__(self) -> str:
        return f"Labels(bits={len(self.blocks)}, shape={self.shape})"


def to_bits(labels: Labels) -> Bits:
    """Shares of garbled bits (Y2B): the labels' colours. **Leaks**: nothing. **Cost**: nothing."""
    return Bits(colours(labels.blocks), labels.shape)


def _batches(words: int) -> list[slice]:
    return [slice(start, min(words, start + BATCH)) for start in range(0, words, BATCH)]


def _lanes(words: slice) -> slice:
    return slice(64 * words.start, 64 * words.stop)


def garbled(
    session: Session,
    circuit: Circuit,
    own: Planes,
    *,
    labels: Labels | None = None,
    name: str = "garbled",
) -> Blocks:
    """A circuit on both parties' bits, garbled.

    Args:
        session: of this party.
        circuit: to evaluate.
        own: this party's bits, (inputs[party], words); party 1's are not looked at where ``labels`` are given.
        labels: garbled bits that take the place of party 1's input; made with this session's transfers, since labels
            under another offset evaluate to nonsense, unnoticed.
        name: of the operation.

    Returns:
        Labels of the outputs, (outputs, 64 * words, 2).

    **Leaks**: nothing, to who follows the protocol.

    **Cost**: 2 rounds for 10,240 instances at a time, 1 in all if ``labels`` are given; for each instance 16 bytes from
    party 1 for each of its bits, and 32 bytes from party 0 for each AND.
    """
    words, party = own.shape[1], session.party
    if party == 0 or labels is None:
        wanted = circuit.inputs[party], words
        if own.shape != wanted:
            raise ConfigError(f"{circuit}: bits (inputs[{party}], words) expected, got {own.shape}")
    out = np.zeros((len(circuit.outputs), 64 * words, 2), np.uint64)
    if session.tracing:
        return out
    transfers = transfers_of(session)
    batches, key = _batches(words), transfers.hash_keys[0]
    rounds = 1 if labels is not None else 2 * -(-len(batches) // (_AHEAD + 1))
    with session.step(name) as step, step.pieces(rounds):
        ask = f"{step.tag} choices"
        asked: deque[Blocks] = deque()

        def request(batch: slice) -> None:
            asked.append(transfers.choose(ask, np.ascontiguousarray(own[:, batch]).reshape(-1)))

        if party == 1 and labels is None:
            for batch in batches[:_AHEAD]:
                request(batch)
        for number, batch in enumerate(batches):
            lanes, many = _lanes(batch), 64 * (batch.stop - batch.start)
            first = transfers.tweaks(0, next_tweak(circuit, many))
            shape = circuit.inputs[1], many, 2
            if party == 0:
                if labels is None:
                    given = transfers.offer(ask, circuit.inputs[1] * (batch.stop - batch.start))
                else:
                    given = labels.blocks[:, lanes]
                mine = np.ascontiguousarray(own[:, batch])
                made = garble(circuit, mine, given.reshape(shape), transfers.delta, key, first)
                step.send(made.tables)
                out[:, lanes] = made.outputs
            else:
                if labels is None:
                    active = asked.popleft().reshape(shape)
                    if number + _AHEAD < len(batches):
                        request(batches[number + _AHEAD])
                else:
                    active = labels.blocks[:, lanes]
                (tables,) = step.recv(Expected((circuit.ands, many, 2, 2)))
                out[:, lanes] = evaluate(circuit, active, tables, key, first)
    return out


def _sliced(session: Session, share: Elements) -> Planes:
    return slice_bits(np.ascontiguousarray(session.ring.require(share)).reshape(-1))


def to_labels(session: Session, share: Elements) -> Labels:
    """All bits of shared values, garbled (A2Y): the circuit of the sum of both shares.

    **Leaks**: nothing. **Cost**: 2 rounds; for each value of 64 bits 1 kB from party 1 and 2 kB from party 0.
    """
    circuit = sum_of_shares(session.ring.bits, shallow=False)
    own = _sliced(session, share)
    return Labels(garbled(session, circuit, own, name="to labels"), share.shape)


def sign(session: Session, share: Elements) -> Bits:
    """Whether shared values are negative in two's complement, by a garbled circuit: one bit each.

    **Leaks**: nothing. **Cost**: 2 rounds; for each value of 64 bits 1 kB from party 1 and 2 kB from party 0.
    """
    circuit = sign_of_sum(session.ring.bits, shallow=False)
    own = _sliced(session, share)
    return to_bits(Labels(garbled(session, circuit, own, name="garbled sign"), share.shape))


# --- prepared


@dataclass(frozen=True, slots=True)
class Garbling:
    """Tables of a circuit of additive shares, and labels of random input bits; made by oblivious transfer.

    Party 0's inputs are its share, lowest bit first, and then whatever else the circuit takes; party 1's are its share.

    Args:
        circuit: to evaluate.
        words: of 64 instances each.
    """

    circuit: Circuit
    words: int

    def free(self) -> tuple[Field, ...]:
        """The bits that party 0 garbles with, and those that party 1 has labels of."""
        first, second = self.circuit.inputs
        return (
            Field("own", (first, self.words), bits=True, owner=0),
            Field("choices", (second, self.words), bits=True, owner=1),
        )

    def derived(self) -> tuple[Field, ...]:
        """Party 0's pads, offset and output zero-labels; party 1's labels and tables, and their key and tweak."""
        lanes, ins, outs = 64 * self.words, self.circuit.inputs[1], len(self.circuit.outputs)
        return (
            Field("pads", (ins, lanes, 2), bits=True, owner=0),
            Field("delta", (2,), bits=True, owner=0),
            Field("outputs", (outs, lanes, 2), bits=True, owner=0),
            Field("labels", (ins, lanes, 2), bits=True, owner=1),
            Field("tables", (self.circuit.ands * lanes, 2, 2), bits=True, owner=1),
            Field("key", (2,), bits=True, owner=1),
            Field("tweaks", (len(_batches(self.words)),), bits=True, owner=1),
        )

    def derive(
        self, ring: Ring, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, ...]:
        """Not by a dealer.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a dealer does not garble: prepare garblings by oblivious transfer, or evaluate on bit-sliced shares"
        )

    def __str__(self) -> str:
        return f"Garbling({self.circuit.digest.hex()}, {self.words})"


def prepare_garbling(transfers: Transfers, wanted: Garbling, coins: Coins) -> Material:
    """One party's part of a `Garbling`.

    **Cost**: 2 rounds; as `garbled`.
    """
    circuit, words, key = wanted.circuit, wanted.words, transfers.hash_keys[0]
    ins, lanes = circuit.inputs[1], 64 * words
    fields = {field.name: field.shape for field in (*wanted.free(), *wanted.derived())}
    tag = "prepare garbling"
    if transfers.party == 0:
        own = coins.uint64(fields["own"])
        zero = coins.uint64(fields["labels"])
        outputs = np.empty(fields["outputs"], np.uint64)
        for batch in _batches(words):
            at, many = _lanes(batch), 64 * (batch.stop - batch.start)
            first = transfers.tweaks(0, next_tweak(circuit, many))
            mine = np.ascontiguousarray(own[:, batch])
            made = garble(circuit, mine, zero[:, at], transfers.delta, key, first)
            transfers.wire.send(tag, made.tables)
            outputs[:, at] = made.outputs
        rows = transfers.offer(tag, ins * words).reshape(ins, lanes, 2)
        zero ^= rows
        return {"own": own, "pads": zero, "delta": transfers.delta, "outputs": outputs}
    choices = coins.uint64(fields["choices"])
    tables = np.empty(fields["tables"], np.uint64)
    tweaks, done = [], 0
    labels = transfers.choose(tag, choices.reshape(-1)).reshape(ins, lanes, 2)
    for batch in _batches(words):
        many = 64 * (batch.stop - batch.start)
        tweaks.append(transfers.tweaks(0, next_tweak(circuit, many)))
        (came,) = transfers.wire.recv(tag, [Expected((circuit.ands, many, 2, 2))])
        tables[done : done + circuit.ands * many] = came.reshape(-1, 2, 2)
        done += circuit.ands * many
    return {
        "choices": choices, "labels": labels, "tables": tables,
        "key": np.frombuffer(key, np.uint64), "tweaks": np.array(tweaks, np.uint64),
    }  # fmt: skip


def prepared_sum(session: Session, circuit: Circuit, share: Elements) -> tuple[Blocks, Planes]:
    """A circuit of additive shares, whose tables were prepared.

    Args:
        session: of this party.
        circuit: party 1 puts in its share, party 0 its share and then, where the circuit takes more, random bits.
        share: of the values.

    Returns:
        Labels of the outputs; and, for party 0, the random bits that the circuit took, (more, words).

    **Leaks**: nothing, to who follows the protocol, if inputs do not depend on the tables, which party 1 had before: the
    cited proof is for inputs that are fixed when it sees them.

    **Cost**: 3 rounds; for each value an element from party 0, a bit from party 1 for each of its bits, and 16 bytes back
    for each.
    """
    ring = session.ring
    flat = np.ascontiguousarray(ring.require(share)).reshape(-1)
    if circuit.inputs[1] != ring.bits or circuit.inputs[0] < ring.bits:
        raise ConfigError(f"{circuit} is no circuit of a sum in {ring}")
    words = words_of(flat.size)
    with session.step("prepared garbling", Garbling(circuit, words)) as step:
        ready, ins, lanes = step.material, ring.bits, 64 * words
        out = np.zeros((len(circuit.outputs), lanes, 2), np.uint64)
        if session.tracing:
            return out, np.zeros((circuit.inputs[0] - ins, words), np.uint64)
        if session.party == 0:
            garbled_with = join_bits(ready["own"][:ins], flat.size, ring.dtype)
            step.send(flat - garbled_with)
            (turned,) = step.recv(Expected((ins, words)))
            step.send(labels_of(ready["pads"], ready["delta"], turned))
            return ready["outputs"], ready["own"][ins:]
        (moved,) = step.recv(Expected(flat.shape, ring.dtype.str))
        bits: Planes = slice_bits(flat + moved)
        step.send(bits ^ ready["choices"])
        (turned,) = step.recv(Expected((ins, lanes, 2)))
        active = np.bitwise_xor(turned, ready["labels"])
        done, key = 0, ready["key"].tobytes()
        for batch, first in zip(_batches(words), ready["tweaks"].tolist(), strict=True):
            at, many = _lanes(batch), 64 * (batch.stop - batch.start)
            tables = ready["tables"][done : done + circuit.ands * many]
            tables = tables.reshape(circuit.ands, many, 2, 2)
            out[:, at] = evaluate(circuit, active[:, at], tables, key, first)
            done += circuit.ands * many
        return out, np.empty((0, words), np.uint64)
