"""Garbled circuits: they decode to what the circuit computes, in every implementation alike, and mistakes are found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto import garbled, kernels
from tacit.crypto.circuits import Builder, Circuit, Kind, relu_of_sum, sign_of_sum, sum_of_shares
from tacit.crypto.garbled import Garbled, colours, evaluate, garble, labels_of, next_tweak

COINS = Coins.from_seed(b"garbled")
KEY = COINS.bytes(16)
steady = settings(derandomize=True, deadline=None, max_examples=40)
Words = npt.NDArray[np.uint64]

RIPPLE = sign_of_sum(16, shallow=False)


CHAIN = Builder((1, 2))  # ANDs that read one another, and nothing between them
LINKS = [CHAIN.both(0, 1)]
for _ in range(9):
    LINKS.append(CHAIN.both(LINKS[-1], 2))
CHAINED = CHAIN.circuit("a chain of ANDs", LINKS)


# --- circuits


@st.composite
def circuits(draw: st.DrawFn, kinds: tuple[Kind, ...] = tuple(Kind)) -> Circuit:
    """Any circuit: unused gates, a wire with itself, inputs and repeated wires as outputs are among them."""
    inputs = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any))
    gates: list[tuple[int, int, int]] = []
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=40)):
        wire = st.integers(0, sum(inputs) + len(gates) - 1)
        a = draw(wire)
        gates.append((kind, a, a if kind == Kind.NOT else draw(wire)))
    outputs = draw(st.lists(st.integers(0, sum(inputs) + len(gates) - 1), min_size=1, max_size=5))
    table = np.array(gates, np.int32).reshape(-1, 3)
    return Circuit("any", inputs, table, np.array(outputs, np.int32))


def wide_circuit(count: int) -> Circuit:
    """More independent ANDs than numpy takes at once, in two levels, each result used."""
    make = Builder((count, count))
    low = make.each(make.both, make.first, make.second)
    high = make.each(make.both, low, [*low[1:], make.second[0]])
    total = low[0]
    for wire in (*low[1:], *high):
        total = make.xor(total, wire)
    return make.circuit("wide", [total, high[-1]])


class Case(NamedTuple):
    """Both parties' inputs, and what goes with them."""

    circuit: Circuit
    own: Words
    bits: Words
    zero: Words
    delta: Words

    @property
    def active(self) -> Words:
        return labels_of(self.zero, self.delta, self.bits)

    @property
    def instances(self) -> int:
        return self.zero.shape[1]


def delta_of() -> Words:
    delta = COINS.uint64(2)
    delta[0] |= np.uint64(1)
    return delta


def case_of(circuit: Circuit, words: int) -> Case:
    mine, others = circuit.inputs
    return Case(
        circuit,
        COINS.uint64((mine, words)),
        COINS.uint64((others, words)),
        COINS.uint64((others, 64 * words, 2)),
        delta_of(),
    )


# --- the slow one: Python's integers, one instance, gate by gate, AES block by block


def pi(key: bytes, block: int) -> int:
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return int.from_bytes(aes.update(block.to_bytes(16, "little")), "little")


def slow_hash(key: bytes, block: int, tweak: int) -> int:
    once = pi(key, block)
    return pi(key, once ^ tweak) ^ once


def shorter_hash(key: bytes, block: int, tweak: int) -> int:
    """The one that is not to be used."""
    return pi(key, block ^ tweak) ^ block ^ tweak


def as_int(block: Words) -> int:
    low, high = block.tolist()
    return low | high << 64


def bit_of(planes: Words, row: int, instance: int) -> int:
    return int(planes[row, instance // 64]) >> instance % 64 & 1


SlowHash = Callable[[bytes, int, int], int]


def slow_garble(
    case: Case, key: bytes, first: int, i: int, hashed: SlowHash = slow_hash
) -> tuple[list[tuple[int, int]], list[int]]:
    """Tables and outputs' zero-labels of instance i, as figure 2 of the paper has them."""
    delta = as_int(case.delta)
    zero = [bit_of(case.own, row, i) * delta for row in range(case.circuit.inputs[0])]
    zero += [as_int(case.zero[row, i]) for row in range(case.circuit.inputs[1])]
    tables: list[tuple[int, int]] = []
    for kind, a, b in case.circuit.gates.tolist():
        if kind == Kind.XOR:
            zero.append(zero[a] ^ zero[b])
        elif kind == Kind.NOT:
            zero.append(zero[a] ^ delta)
        else:
            at = first + 2 * (len(tables) * case.instances + i)
            a0, a1, b0, b1 = zero[a], zero[a] ^ delta, zero[b], zero[b] ^ delta
            generator = hashed(key, a0, at) ^ hashed(key, a1, at) ^ (b0 & 1) * delta
            out_g = hashed(key, a0, at) ^ (a0 & 1) * generator
            evaluator = hashed(key, b0, at + 1) ^ hashed(key, b1, at + 1) ^ a0
            out_e = hashed(key, b0, at + 1) ^ (b0 & 1) * (evaluator ^ a0)
            tables.append((generator, evaluator))
            zero.append(out_g ^ out_e)
    return tables, [zero[out] for out in case.circuit.outputs.tolist()]


def slow_evaluate(
    case: Case, tables: list[tuple[int, int]], key: bytes, first: int, i: int
) -> list[int]:
    active = [0] * case.circuit.inputs[0]
    active += [
        as_int(case.zero[row, i]) ^ bit_of(case.bits, row, i) * as_int(case.delta)
        for row in range(case.circuit.inputs[1])
    ]
    done = 0
    for kind, a, b in case.circuit.gates.tolist():
        if kind == Kind.XOR:
            active.append(active[a] ^ active[b])
        elif kind == Kind.NOT:
            active.append(active[a])
        else:
            at = first + 2 * (done * case.instances + i)
            generator, evaluator = tables[done]
            done += 1
            half_g = slow_hash(key, active[a], at) ^ (active[a] & 1) * generator
            half_e = slow_hash(key, active[b], at + 1)
            half_e ^= (active[b] & 1) * (evaluator ^ active[a])
            active.append(half_g ^ half_e)
    return [active[out] for out in case.circuit.outputs.tolist()]


# --- the checks


def check_decoding(case: Case, first: int = 0) -> None:
    """The evaluator's label of each output is the one of its bit: never the other, never a third."""
    made = garble(case.circuit, case.own, case.zero, case.delta, KEY, first)
    outputs = evaluate(case.circuit, case.active, made.tables, KEY, first)
    plain = case.circuit.in_the_clear(case.own, case.bits)
    right = labels_of(made.outputs, case.delta, plain)
    assert (outputs == right).all()
    assert ((right ^ case.delta) != outputs).any(axis=-1).all()
    assert (colours(outputs) ^ colours(made.outputs) == plain).all()


def check_against_the_slow_one(case: Case, first: int = 0) -> None:
    made = garble(case.circuit, case.own, case.zero, case.delta, KEY, first)
    outputs = evaluate(case.circuit, case.active, made.tables, KEY, first)
    for i in {0, 1, 63, case.instances - 1}:
        tables, zero = slow_garble(case, KEY, first, i)
        assert [(as_int(g), as_int(e)) for g, e in made.tables[:, i]] == tables
        assert [as_int(label) for label in made.outputs[:, i]] == zero
        active = slow_evaluate(case, tables, KEY, first, i)
        assert [as_int(label) for label in outputs[:, i]] == active


def check_fresh_tweaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over batches under one key no two hash calls of the evaluator have a tweak in common."""
    monkeypatch.setenv("TACIT_NATIVE", "0")
    seen: list[int] = []
    plain = garbled._hash

    def watched(
        pi: garbled.Permutation,
        buffers: list[garbled.Buffer],
        tweaks: Words,
        shape: tuple[int, ...],
    ) -> None:
        seen.extend(as_int(tweak) for tweak in tweaks.reshape(-1, 2))
        plain(pi, buffers, tweaks, shape)

    first = 40
    with monkeypatch.context() as patch:
        patch.setattr(garbled, "_hash", watched)
        for words in (1, 20, 2):  # the second is more than numpy takes at once
            case = case_of(RIPPLE, words)
            garble(RIPPLE, case.own, case.zero, case.delta, KEY, first)
            first = garbled.next_tweak(RIPPLE, case.instances, first)
    total = 2 * RIPPLE.ands * 64 * 23
    assert len(seen) == total
    assert sorted(seen) == list(range(40, 40 + total))


class Implementation(NamedTuple):
    name: str
    garble: Callable[[Case, int], Garbled]
    evaluate: Callable[[Case, Words, int], Words]


def room_for(case: Case) -> Garbled:
    outputs = len(case.circuit.outputs)
    return Garbled(
        np.full((case.circuit.ands, case.instances, 2, 2), 7, np.uint64),
        np.full((outputs, case.instances, 2), 7, np.uint64),
    )


def implementations(built: kernels.Native) -> list[Implementation]:
    """numpy's, and C's at each level that this processor has."""

    def by_numpy(case: Case, first: int) -> Garbled:
        made, public = room_for(case), garbled._Public(KEY, first)
        garbled._garble_numpy(case.circuit, case.own, case.zero, case.delta, public, made)
        return made

    def by_numpy_evaluated(case: Case, tables: Words, first: int) -> Words:
        out, public = room_for(case).outputs, garbled._Public(KEY, first)
        garbled._evaluate_numpy(case.circuit, case.active, tables, public, out)
        return out

    def at(level: int) -> Implementation:
        def by_c(case: Case, first: int) -> Garbled:
            made, public = room_for(case), garbled._Public(KEY, first)
            garbled._garble_native(
                built, level, case.circuit, case.own, case.zero, case.delta, public, made
            )
            return made

        def by_c_evaluated(case: Case, tables: Words, first: int) -> Words:
            out, public = room_for(case).outputs, garbled._Public(KEY, first)
            garbled._evaluate_native(built, level, case.circuit, case.active, tables, public, out)
            return out

        return Implementation(f"C {level}", by_c, by_c_evaluated)

    levels = range(1, built.lib.tacit_masks_level() + 1)
    return [Implementation("numpy", by_numpy, by_numpy_evaluated), *map(at, levels)]


@pytest.fixture(params=["C", "numpy"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The public functions, with C kernels where there are any and without."""
    monkeypatch.setenv("TACIT_NATIVE", "1" if request.param == "C" else "0")
    return str(request.param)


both = pytest.mark.parametrize("off", ["1", "0"])


# --- garbling computes the circuit


@both
@pytest.mark.parametrize(
    "circuit",
    [
        RIPPLE,
        sign_of_sum(64),
        sign_of_sum(64, shallow=False),
        sum_of_shares(16),
        relu_of_sum(8),
        wide_circuit(90),
        CHAINED,
    ],
    ids=repr,
)
def test_known_circuits_decode_to_what_they_compute(
    circuit: Circuit, off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_NATIVE", off)
    for words in (1, 3, 17):
        check_decoding(case_of(circuit, words), first=2**40)


def test_the_sign_of_a_sum_of_numbers(kernel: str) -> None:
    """Numbers in, a bit out: what it is for."""
    x, y = COINS.uint64(256), COINS.uint64(256)
    circuit = sign_of_sum(64, shallow=False)
    sliced = [
        np.packbits(
            (v[None] >> np.arange(64, dtype=np.uint64)[:, None] & np.uint64(1)).astype(np.uint8),
            axis=1,
            bitorder="little",
        ).view(np.uint64)
        for v in (x, y)
    ]
    zero, delta = COINS.uint64((64, 256, 2)), delta_of()
    made = garble(circuit, sliced[0], zero, delta, KEY)
    out = evaluate(circuit, labels_of(zero, delta, sliced[1]), made.tables, KEY)
    decoded = np.unpackbits(
        (colours(out) ^ colours(made.outputs)).view(np.uint8), bitorder="little"
    )
    assert decoded.tolist() == ((x + y) >> np.uint64(63)).tolist()


@settings(steady, max_examples=80)
@given(circuits(), st.integers(1, 3))
def test_any_circuit_decodes_to_what_it_computes(circuit: Circuit, words: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for off in ("1", "0"):
            patch.setenv("TACIT_NATIVE", off)
            check_decoding(case_of(circuit, words))


@steady
@given(circuits(kinds=(Kind.XOR, Kind.NOT)), st.integers(1, 2))
def test_circuits_without_and_need_no_tables(circuit: Circuit, words: int) -> None:
    case = case_of(circuit, words)
    assert next_tweak(circuit, case.instances, 5) == 5
    with pytest.MonkeyPatch.context() as patch:
        for off in ("1", "0"):
            patch.setenv("TACIT_NATIVE", off)
            made = garble(circuit, case.own, case.zero, case.delta, KEY)
            assert made.tables.shape == (0, case.instances, 2, 2) and not made.tables.nbytes
            check_decoding(case)


def test_the_garblers_wires_carry_nothing(kernel: str) -> None:
    """The evaluator's label on them is zero whatever the bit, through XORs of them too; that of a NOT stays."""
    make = Builder((2, 1))
    a, b = make.first
    wires = [a, b, make.xor(a, b), make.invert(a), make.xor(a, make.second[0]), make.second[0]]
    case = case_of(make.circuit("own", wires), 2)
    made = garble(case.circuit, case.own, case.zero, case.delta, KEY)
    out = evaluate(case.circuit, case.active, made.tables, KEY)
    assert not out[:4].any()
    assert (out[4] == case.active[0]).all() and (out[5] == case.active[0]).all()
    bits = np.array([case.own[0], case.own[1], case.own[0] ^ case.own[1], ~case.own[0]])
    nothing = np.zeros((4, case.instances, 2), np.uint64)
    assert (made.outputs[:4] == labels_of(nothing, case.delta, bits)).all()


def test_no_instances_give_nothing(kernel: str) -> None:
    case = case_of(RIPPLE, 0)
    made = garble(RIPPLE, case.own, case.zero, case.delta, KEY)
    assert made.tables.shape == (15, 0, 2, 2) and made.outputs.shape == (1, 0, 2)
    assert evaluate(RIPPLE, case.active, made.tables, KEY).shape == (1, 0, 2)


# --- every implementation gives the same bits

KNOWN = [
    "bae2c5f0906a04088ae4046807e368bc",
    "3c25a8978068aad8769382f6bdd0f13a",
    "f812f1608c4a45af00306084b2915106",
]


@both
@steady
@given(circuits(), st.integers(1, 2), st.sampled_from([0, 1, 2**40 + 3, 2**63]))
def test_each_instance_is_garbled_as_the_paper_says(
    off: str, circuit: Circuit, words: int, first: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TACIT_NATIVE", off)
        check_against_the_slow_one(case_of(circuit, words), first)


def test_a_ripple_is_garbled_as_the_paper_says(kernel: str) -> None:
    check_against_the_slow_one(case_of(RIPPLE, 3), first=7)
    last = 2**64 - next_tweak(RIPPLE, 192)
    check_against_the_slow_one(case_of(RIPPLE, 3), first=last)


@pytest.mark.parametrize("off", ["1", "0"])
def test_known_answers(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned, so that no version garbles otherwise than the one that it talks to evaluates."""
    monkeypatch.setenv("TACIT_NATIVE", off)
    coins = Coins.from_seed(b"known answers")
    circuit = sum_of_shares(8, shallow=False)
    own, bits, zero = coins.uint64((8, 2)), coins.uint64((8, 2)), coins.uint64((8, 128, 2))
    delta = coins.uint64(2)
    delta[0] |= np.uint64(1)
    made = garble(circuit, own, zero, delta, bytes(range(16)), 9)
    out = evaluate(circuit, labels_of(zero, delta, bits), made.tables, bytes(range(16)), 9)
    digests = [
        hashlib.sha256(part.astype("<u8").tobytes()).hexdigest()[:32]
        for part in (made.tables, made.outputs, out)
    ]
    assert digests == KNOWN


@settings(steady, max_examples=30)
@given(circuits(), st.integers(1, 4), st.sampled_from([0, 5, 2**50]))
def test_c_and_numpy_agree_in_every_bit(
    built: kernels.Native, circuit: Circuit, words: int, first: int
) -> None:
    agree(built, case_of(circuit, words), first)


@pytest.mark.parametrize("words", [1, 2, 15, 16, 17, 33, 65])
def test_they_agree_about_the_borders_of_chunks_and_batches(
    built: kernels.Native, words: int
) -> None:
    for circuit in (RIPPLE, sum_of_shares(16), wide_circuit(40), CHAINED):
        agree(built, case_of(circuit, words), 11)


def test_they_agree_where_slots_leave_room_for_few_instances(built: kernels.Native) -> None:
    agree(built, case_of(wide_circuit(1500), 3), 0)


def agree(built: kernels.Native, case: Case, first: int) -> None:
    results = set()
    for each in implementations(built):
        made = each.garble(case, first)
        out = each.evaluate(case, made.tables, first)
        results.add((made.tables.tobytes(), made.outputs.tobytes(), out.tobytes()))
    assert len(results) == 1


def test_a_level_that_the_processor_lacks_is_refused(built: kernels.Native) -> None:
    case, public = case_of(RIPPLE, 1), garbled._Public(KEY, 0)
    for level in (-1, 0, built.lib.tacit_masks_level() + 1, 4):
        made = room_for(case)
        with pytest.raises(ConfigError, match="no AES instructions of level"):
            garbled._garble_native(
                built, level, RIPPLE, case.own, case.zero, case.delta, public, made
            )
        with pytest.raises(ConfigError, match="no AES instructions of level"):
            garbled._evaluate_native(
                built, level, RIPPLE, case.active, made.tables, public, made.outputs
            )
        assert (made.tables == 7).all() and (made.outputs == 7).all()


@pytest.mark.parametrize("way", ["C", "numpy", "no AES instructions"])
def test_the_public_functions_take_what_there_is(
    way: str, built: kernels.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for name in ("_garble_native", "_garble_numpy", "_evaluate_native", "_evaluate_numpy"):
        plain = getattr(garbled, name)
        monkeypatch.setattr(garbled, name, lambda *a, f=plain, n=name: (used.append(n), f(*a)))
    if way == "no AES instructions":
        monkeypatch.setattr(garbled, "aes_level", lambda: (None, 0))
    else:
        monkeypatch.setenv("TACIT_NATIVE", "1" if way == "C" else "0")
    if way == "C" and not built.lib.tacit_masks_level():
        pytest.skip("this processor has no AES instructions")
    check_decoding(case_of(RIPPLE, 1))
    kind = "native" if way == "C" else "numpy"
    assert used == [f"_garble_{kind}", f"_evaluate_{kind}"]


def test_parts_of_larger_arrays_count_as_they_read(kernel: str) -> None:
    case = case_of(RIPPLE, 6)
    strided = np.zeros((*case.zero.shape[:2], 4), np.uint64)
    strided[..., ::2] = case.zero
    same = np.broadcast_to(case.zero[:1], case.zero.shape)
    for zero in (
        case.zero[:, 64:192],
        case.zero[::-1, 64:192],
        strided[:, 64:192, ::2],
        same[:, 64:192],
    ):
        own = case.own[:, 1:3]
        given = Case(RIPPLE, own, case.bits[:, 1:3], zero, case.delta)
        whole = Case(RIPPLE, own.copy(), given.bits, zero.copy(), case.delta)
        parts = garble(RIPPLE, given.own, given.zero, given.delta, KEY)
        assert (
            parts.tables == garble(RIPPLE, whole.own, whole.zero, whole.delta, KEY).tables
        ).all()
        turned = np.empty((128, RIPPLE.ands, 2, 2), np.uint64).transpose(1, 0, 2, 3)
        turned[...] = parts.tables
        frozen = parts.tables.copy()
        frozen.flags.writeable = False
        for tables in (turned, frozen):
            out = evaluate(RIPPLE, given.active, tables, KEY)
            assert (
                colours(out) ^ colours(parts.outputs) == RIPPLE.in_the_clear(own, given.bits)
            ).all()


def odd(array: Words) -> Words:
    """The same numbers at an odd address, where a frame may have put them."""
    room = np.empty(array.nbytes + 1, np.uint8)
    moved = room[1:].view(np.uint64).reshape(array.shape)
    moved[...] = array
    return moved


def test_arrays_at_odd_addresses_count_as_they_read(kernel: str) -> None:
    case = case_of(RIPPLE, 2)
    made = garble(RIPPLE, case.own, case.zero, case.delta, KEY)
    moved = garble(RIPPLE, odd(case.own), odd(case.zero), odd(case.delta), KEY)
    assert (made.tables == moved.tables).all() and (made.outputs == moved.outputs).all()
    out = evaluate(RIPPLE, odd(case.active), odd(made.tables), KEY)
    assert (out == evaluate(RIPPLE, case.active, made.tables, KEY)).all()
    assert (colours(odd(out)) == colours(out)).all()


# --- what the evaluator sees


def test_tables_have_one_shape_and_look_uniform_whatever_the_garblers_bits() -> None:
    """Each of 256 bits of a table is 1 half the time; 6.5 deviations off is one false alarm in 20 million."""
    case = case_of(RIPPLE, 64)
    for own in (np.zeros_like(case.own), ~np.zeros_like(case.own)):
        made = garble(RIPPLE, own, case.zero, case.delta, KEY)
        tables = made.tables.reshape(-1, 4)
        ones = np.unpackbits(tables.view(np.uint8), axis=1).sum(axis=0, dtype=np.int64)
        count = RIPPLE.ands * case.instances
        assert ones.shape == (256,) and (abs(ones - count / 2) < 6.5 * count**0.5 / 2).all()


def test_with_the_shorter_hash_one_table_gives_delta_away_and_with_this_one_not() -> None:
    """The garbler's bit is 1 on the AND's second wire, the evaluator knows the label of the first."""
    make = Builder((1, 1))
    case = case_of(make.circuit("and", [make.both(make.second[0], make.first[0])]), 1)
    case.own[...] = ~np.uint64(0)
    delta = as_int(case.delta)
    for hashed, found in ((shorter_hash, True), (slow_hash, False)):
        guesses = set()
        for i in range(8):
            [(generator, _)], _ = slow_garble(case, KEY, 0, i, hashed)
            active, tweak = as_int(case.active[0, i]), 2 * i
            other = generator ^ hashed(KEY, active, tweak)  # H(active ^ delta) ^ delta
            decrypt = Cipher(algorithms.AES(KEY), modes.ECB()).decryptor()
            sent = (other ^ active ^ tweak).to_bytes(16, "little")
            back = int.from_bytes(decrypt.update(sent), "little")
            guesses.add(back ^ active ^ tweak)
        assert (guesses == {delta}) is found
        assert (delta in guesses) is found


def test_what_holds_secrets_does_not_show_them() -> None:
    case = case_of(RIPPLE, 1)
    made = garble(RIPPLE, case.own, case.zero, case.delta, KEY)
    assert repr(made) == "Garbled(ands=15, instances=64, outputs=1)"


# --- mistakes that must be found


def test_a_hash_without_its_tweak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parties agree, so it decodes; it is not what the paper says."""
    monkeypatch.setenv("TACIT_NATIVE", "0")

    def none(*given: object) -> None:
        given[-1][...] = 0  # type: ignore[index]

    case = case_of(RIPPLE, 1)
    check_against_the_slow_one(case)
    monkeypatch.setattr(garbled, "_tweaks", none)
    check_decoding(case)
    with pytest.raises(AssertionError):
        check_against_the_slow_one(case)
    with pytest.raises(AssertionError):
        check_fresh_tweaks(monkeypatch)


def test_batches_use_no_tweak_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fresh_tweaks(monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda circuit, instances, first=0: first,
        lambda circuit, instances, first=0: first + circuit.ands * instances,
        lambda circuit, instances, first=0: 2 * circuit.ands * instances,
    ],
    ids=["the same again", "half as many", "from zero"],
)
def test_a_range_of_tweaks_used_twice_is_found(
    wrong: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbled, "next_tweak", wrong)
    with pytest.raises(AssertionError):
        check_fresh_tweaks(monkeypatch)


def test_an_even_delta_is_refused_and_would_not_decode(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(RIPPLE, 1)
    case.delta[0] ^= np.uint64(1)
    with pytest.raises(ConfigError, match="lowest bit is 1"):
        garble(RIPPLE, case.own, case.zero, case.delta, KEY)
    with pytest.raises(ConfigError, match="lowest bit is 1"):
        labels_of(case.zero, case.delta, case.bits)
    monkeypatch.setattr(garbled, "_check_delta", lambda delta: None)
    with pytest.raises(AssertionError):
        check_decoding(case)


@pytest.mark.parametrize("change", ["swapped halves", "one bit", "another gate's", "first tweak"])
def test_tables_that_are_not_the_garblers_do_not_decode(
    kernel: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit counts where the colour of a label takes that half."""
    plain = garbled.evaluate
    case = case_of(RIPPLE, 2)
    check_decoding(case)

    def changed(
        circuit: Circuit, labels: Words, tables: Words, key: bytes, first: int = 0
    ) -> Words:
        if change == "swapped halves":
            tables = tables[:, :, ::-1]
        elif change == "another gate's":
            tables = np.roll(tables, 1, axis=0)
        elif change == "one bit":
            tables = tables.copy()
            tables[0, :, 1, 1] ^= np.uint64(1 << 63)
        else:
            first += 1
        return plain(circuit, labels, tables, key, first)

    monkeypatch.setitem(check_decoding.__globals__, "evaluate", changed)
    with pytest.raises(AssertionError):
        check_decoding(case)


@pytest.mark.parametrize("row", range(3))
def test_mistakes_in_a_half_gate_are_found(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A colour ignored, a gate's two halves hashed with one tweak, the garbler's bits left out."""
    monkeypatch.setenv("TACIT_NATIVE", "0")
    case = case_of(RIPPLE, 1)
    if row == 0:

        def nothing(bits: Words, out: Words) -> Words:
            out[...] = 0
            return out

        monkeypatch.setattr(garbled, "_doubled", nothing)
    elif row == 1:
        plain = garbled._tweaks

        def same(*given: object) -> None:
            plain(*given)  # type: ignore[arg-type]
            given[-1][1] = given[-1][0]  # type: ignore[index]

        monkeypatch.setattr(garbled, "_tweaks", same)
    else:

        def left_out(planes: Words, out: Words) -> Words:
            out[...] = 0
            return out

        monkeypatch.setattr(garbled, "_spread", left_out)
    with pytest.raises(AssertionError):
        check_against_the_slow_one(case)


# --- programs


def test_slots_are_used_again() -> None:
    for by_level in (False, True):
        program = garbled._program(sign_of_sum(64, shallow=False), by_level=by_level)
        assert program.slots <= 5 and program.planes <= 3
        tree = garbled._program(sign_of_sum(64), by_level=by_level)
        assert tree.slots < sign_of_sum(64).ands


def test_a_circuit_is_prepared_once() -> None:
    first = garbled._program(RIPPLE, by_level=False)
    again = Circuit("another name", RIPPLE.inputs, RIPPLE.gates, RIPPLE.outputs)
    assert garbled._program(again, by_level=False) is first


@steady
@given(circuits(), st.booleans())
def test_a_program_reads_only_what_is_there(circuit: Circuit, by_level: bool) -> None:
    """Every slot and plane that is read was written, or is zero, all ones or an input; every AND comes once."""
    program = garbled._program(circuit, by_level=by_level)
    labels = {0, *range(program.slots, program.slots + circuit.inputs[1])}
    planes = {0, 1, *range(program.planes, program.planes + circuit.inputs[0])}
    numbers = []
    for kind, to, a, b, plane_a, plane_b, number, _ in program.steps.tolist():
        if kind == garbled._PLANE:
            assert {a, b} <= planes and 2 <= to < program.planes
            planes.add(to)
        else:
            assert {a, b} <= labels and 1 <= to < program.slots
            labels.add(to)
        if kind == garbled._AND:
            assert {plane_a, plane_b} <= planes
            numbers.append(number)
    assert sorted(numbers) == list(range(circuit.ands))
    assert by_level or numbers == sorted(numbers)
    assert all(slot in labels and plane in planes for slot, plane in program.outputs.tolist())


# --- colours and labels


def test_colours_are_the_low_bits() -> None:
    blocks = COINS.uint64((3, 192, 2))
    planes = colours(blocks)
    assert planes.shape == (3, 3) and planes.dtype == np.uint64
    for row in range(3):
        for i in range(192):
            assert bit_of(planes, row, i) == int(blocks[row, i, 0]) & 1
    assert (colours(blocks[::-1, 64:]) == planes[::-1, 1:]).all()


def test_labels_are_a_delta_apart_where_the_bit_is_1() -> None:
    zero, delta, planes = COINS.uint64((3, 128, 2)), delta_of(), COINS.uint64((3, 2))
    active = labels_of(zero, delta, planes)
    for row in range(3):
        for i in range(128):
            expected = as_int(zero[row, i]) ^ bit_of(planes, row, i) * as_int(delta)
            assert as_int(active[row, i]) == expected
    assert (colours(active) ^ colours(zero) == planes).all()
    assert (labels_of(zero[:, 64:], delta, planes[:, 1:]) == active[:, 64:]).all()


# --- what is refused


def wrong_calls() -> dict[str, tuple[Callable[[], object], str]]:
    own, zero = np.zeros((16, 2), np.uint64), np.zeros((16, 128, 2), np.uint64)
    tables, delta = np.zeros((15, 128, 2, 2), np.uint64), np.ones(2, np.uint64)

    def made(**change: object) -> Callable[[], object]:
        given = {"own": own, "labels": zero, "delta": delta, "key": KEY, "first": 0} | change
        return lambda: garble(RIPPLE, **given)  # type: ignore[arg-type]

    def evaluated(**change: object) -> Callable[[], object]:
        given = {"labels": zero, "tables": tables, "key": KEY, "first": 0} | change
        return lambda: evaluate(RIPPLE, **given)  # type: ignore[arg-type]

    beyond = 2**64 - 2 * 15 * 128 + 1
    return {
        "bits of bytes": (
            made(own=own.view(np.uint8)),
            r"own bits as uint64 \(16, 2\) expected, got uint8",
        ),
        "too few bits": (made(own=own[1:]), r"own bits .* got uint64 \(15, 2\)"),
        "too few words": (made(own=own[:, 1:]), r"own bits .* got uint64 \(16, 1\)"),
        "too few labels": (
            made(labels=zero[1:]),
            r"zero-labels as uint64 \(16, 128, 2\) .*\(15, 128, 2\)",
        ),
        "a part of a word": (
            made(labels=zero[:, 1:]),
            r"multiple of 64, 2\) expected, got uint64 \(16, 127, 2\)",
        ),
        "flat labels": (made(labels=zero.reshape(16, 256)), r"got uint64 \(16, 256\)"),
        "labels of bytes": (made(labels=zero.view(np.uint8)), "got uint8"),
        "labels of another sort": (made(labels=zero.astype(">u8")), "got >u8"),
        "a delta each": (
            made(delta=np.ones((16, 2), np.uint64)),
            r"delta as uint64 \(2,\) expected",
        ),
        "signed delta": (made(delta=np.ones(2, np.int64)), "got int64"),
        "no delta": (made(delta=np.zeros(2, np.uint64)), "lowest bit is 1"),
        "short key": (made(key=KEY[1:]), "got 15 bytes"),
        "negative tweak": (made(first=-1), "tweaks within"),
        "tweaks past the word": (made(first=beyond), "tweaks within"),
        "too few active labels": (
            evaluated(labels=zero[1:]),
            r"active labels as uint64 \(16, 128, 2\)",
        ),
        "a table missing": (
            evaluated(tables=tables[1:]),
            r"tables as uint64 \(15, 128, 2, 2\) expected, got uint64 \(14",
        ),
        "an instance missing": (evaluated(tables=tables[:, 1:]), r"got uint64 \(15, 127, 2, 2\)"),
        "half a table": (evaluated(tables=tables[:, :, :1]), r"got uint64 \(15, 128, 1, 2\)"),
        "flat tables": (evaluated(tables=tables.reshape(15, 128, 4)), r"got uint64 \(15, 128, 4\)"),
        "tables of floats": (evaluated(tables=tables.astype(float)), "got float64"),
        "evaluated with a long key": (evaluated(key=KEY * 2), "got 32 bytes"),
        "evaluated past the word": (evaluated(first=beyond), "tweaks within"),
        "colours of flat labels": (lambda: colours(zero.reshape(16, 256)), "labels as uint64"),
        "colours of parts of words": (lambda: colours(zero[:, :65]), r"got uint64 \(16, 65, 2\)"),
        "bits for other wires": (
            lambda: labels_of(zero, delta, own[1:]),
            r"bits as uint64 \(16, 2\)",
        ),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_what_is_wrong_is_refused(case: str) -> None:
    call, said = wrong_calls()[case]
    with pytest.raises(ConfigError, match=said):
        call()


def test_the_last_tweak_may_be_used(kernel: str) -> None:
    check_decoding(case_of(RIPPLE, 1), first=2**64 - next_tweak(RIPPLE, 64))
