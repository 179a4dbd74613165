"""The tables of docs/two-party.md against the meter: rounds exactly, bytes to the byte, framing computed from the codec."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tests.parties.tampered import Tampering

from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.wire import Array, Message, encode
from tacit.crypto.bits import words_of
from tacit.crypto.circuits import Circuit, carries_of_sum, sign_of_sum, sum_of_shares
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.ring import Z32, Z64, Ring
from tacit.crypto.sharing import share, share_bits
from tacit.parties.links.local import outputs_of, run_pair
from tacit.parties.pair import Channel
from tacit.parties.roles import Role
from tacit.parties.two_party import arithmetic, boolean, garbling
from tacit.parties.two_party.boolean import Bits
from tacit.parties.two_party.correlations import Plan
from tacit.parties.two_party.dealer import Dealt, deal
from tacit.parties.two_party.garbling import Labels
from tacit.parties.two_party.oblivious import ByTransfer
from tacit.parties.two_party.schedule import schedule_of
from tacit.parties.two_party.session import OFFLINE, ONLINE, Session, start, traced
from tacit.parties.two_party.store import MemoryStore

PAGE = Path(__file__).resolve().parents[3] / "docs" / "two-party.md"
SERVERS, DEALER = (Role("server", 0), Role("server", 1)), Role("dealer")
FRACTION = 13
NOT_THE_OPERATION = {"start", "end", "oblivious transfer start", "fix"}


# --- the page


def table(*head: str) -> list[list[str]]:
    """The rows of the one table of the page whose head begins so, without the ticks of code."""
    lines = PAGE.read_text().splitlines()
    begin = "| " + " | ".join(head) + " |"
    (at,) = [number for number, line in enumerate(lines) if line.startswith(begin)]
    out = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        out.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return out


def online() -> dict[str, list[str]]:
    """What the page says of each operation."""
    return {row[0]: row[1:] for row in table("operation", "rounds")}


def offline() -> dict[str, list[str]]:
    """What it says of each operation's correlations."""
    return {row[0]: row[1:] for row in table("operation", "dealer to party 1")}


def formula(text: str, letters: Mapping[str, float]) -> float:
    """The value of a formula as the page writes it: ``16 l w + e n``."""
    tokens = re.findall(r"\d+|[a-z]|[-+/()]", text)
    assert "".join(tokens) == text.replace(" ", ""), text
    written = ""
    for before, token in zip(["+", *tokens], tokens, strict=False):
        factors = re.match(r"[\da-z)]", before) and re.match(r"[\da-z(]", token)
        written += (" * " if factors else "") + token
    tree = ast.parse(written, mode="eval")
    allowed = (ast.Expression, ast.BinOp, ast.operator, ast.Name, ast.Constant, ast.expr_context)
    assert all(isinstance(node, allowed) for node in ast.walk(tree)), text
    return float(eval(compile(tree, text, "eval"), {"__builtins__": {}}, dict(letters)))


def by_ring(text: str, ring: Ring, letters: Mapping[str, float]) -> float:
    """A cell that holds one formula, or a number for 64 bits and one for 32."""
    both = re.fullmatch(r"([\d.]+) / ([\d.]+)", text)
    return float(both[1 if ring.bits == 64 else 2]) if both else formula(text, letters)


def test_formulas_are_read_as_they_are_written() -> None:
    letters = {"e": 8.0, "l": 64.0, "n": 3.0, "w": 64.0}
    assert formula("0", letters) == 0
    assert formula("16 l w + n l (l + 1) / 16", letters) == 16 * 64 * 64 + 3 * 64 * 65 / 16
    assert formula("2 (e n + w / 8)", letters) == 64
    assert by_ring("7 / 6", Z64, letters) == 7 and by_ring("7 / 6", Z32, letters) == 6
    for wrong in ("2 ** n", "n.real", "q"):
        with pytest.raises((AssertionError, NameError)):
            formula(wrong, letters)


# --- running an operation


class Counting(Tampering):
    """A channel that also adds up what the codec adds to the arrays that are sent, by phase and layer."""

    def __init__(self, channel: Channel, framing: dict[tuple[str, str], int]) -> None:
        super().__init__(channel, self._counted)
        self.framing, self.label = framing, ("", "")

    def _counted(self, tag: str, arrays: list[Array]) -> tuple[str, list[Array]]:
        zeros = [np.zeros(array.shape, array.dtype) for array in arrays]
        more = len(encode(Message(tag, arrays=zeros))) - sum(array.nbytes for array in arrays)
        self.framing[self.label] = self.framing.get(self.label, 0) + more
        return tag, arrays

    @contextmanager
    def during(self, phase: str | None = None, layer: str | None = None) -> Iterator[None]:
        """Book under that phase and layer."""
        before, self.label = self.label, (phase or self.label[0], layer or self.label[1])
        with super().during(phase, layer):
            yield
        self.label = before


Own = tuple[object, ...]
"""A party's shares."""


@dataclass
class Case:
    """How an operation of the page is run.

    Args:
        run: gets a session and the party's shares.
        letters: of the formulas, beside ``e`` and ``l``.
        shares: what both parties hold.
    """

    run: Callable[..., object]
    letters: dict[str, float]
    shares: tuple[Own, Own]


def elements(ring: Ring, *shapes: tuple[int, ...]) -> tuple[Own, Own]:
    """Both parties' shares of uniform values."""
    coins = Coins.from_seed(b"doc table")
    pairs = [
        share(ring.uniform(coins, shape), ring, coins.child(str(at)))
        for at, shape in enumerate(shapes)
    ]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


def planes(bits: int, n: int, *more: Own) -> tuple[Own, Own]:
    """Both parties' shares of bits, and what else they hold."""
    coins = Coins.from_seed(b"doc table bits")
    pair = share_bits(coins.uint64((bits, words_of(n))), coins)
    own = more or ((), ())
    return (Bits(pair[0], (n,)), *own[0]), (Bits(pair[1], (n,)), *own[1])


def circuit_letters(circuit: Circuit) -> dict[str, float]:
    """Depth, all ANDs, those that need correlations, what each party opens, and the ANDs for which party 1 chooses."""
    schedule = schedule_of(circuit)
    first, second, shared = schedule.masks
    owner = np.repeat([0, 1, 2], schedule.masks)
    needed = [
        int(((owner[schedule.left] != 1 - of) & (owner[schedule.right] != of)).sum())
        for of in (0, 1)
    ]
    products = len(schedule.left)
    assert first == second and needed[0] == products
    return {
        "d": circuit.depth,
        "c": circuit.ands,
        "g": first + shared,
        "a": products,
        "b": needed[1],
    }


def cases(ring: Ring, n: int) -> dict[str, Case]:
    """Every operation of the page, on n values."""
    lanes = 64 * words_of(n)
    many = {"n": float(n), "w": float(lanes)}
    one, two = elements(ring, (n,)), elements(ring, (n,), (n,))
    m, k, c = 4, 16, 5
    shapes = {"m": float(m), "k": float(k), "n": float(c)}
    matrices = elements(ring, (m, k), (k, c))
    images, filters = (2, 4, 3, 3), (4, 4, 2, 2)
    seen = {"i": float(math.prod(images)), "f": float(math.prod(filters)), "o": 4.0, "p": 8.0}
    sign, total = sign_of_sum(ring.bits), sum_of_shares(ring.bits)
    small = sum_of_shares(ring.bits, shallow=False)
    carries = carries_of_sum(ring.bits, FRACTION)
    own = tuple((Coins.from_seed(b"own").uint64((ring.bits, words_of(n))),) for _ in (0, 1))

    def of(circuit: Circuit) -> dict[str, float]:
        return {**many, **circuit_letters(circuit)}

    def garbles(circuit: Circuit) -> dict[str, float]:
        return {**many, "c": float(circuit.ands)}

    def relabelled(session: Session, bits: Array) -> object:
        """A circuit of one AND on labels that are there."""
        blocks = Coins.from_seed(b"labels").uint64((ring.bits, lanes, 2))
        labels = Labels(blocks, (n,))
        return garbling.garbled(session, small, bits, labels=labels)  # type: ignore[arg-type]

    def both_fixed(session: Session, left: Array, right: Array) -> object:
        fixed = [
            arithmetic.fix(session, name, value) for name, value in (("l", left), ("r", right))
        ]
        return arithmetic.matmul(session, *fixed)

    empty: tuple[Own, Own] = ((), ())
    return {
        "arithmetic.share_input": Case(
            lambda s: arithmetic.share_input(s, 0, ring.zeros((n,)) if s.party == 0 else (n,)),
            many,
            empty,
        ),
        "arithmetic.open_to_both": Case(arithmetic.open_to_both, many, one),
        "arithmetic.open_to": Case(lambda s, x: arithmetic.open_to(s, 1, x), many, one),
        "arithmetic.add_public": Case(
            lambda s, x: arithmetic.add_public(s, x, ring.zeros((n,))), many, one
        ),
        "arithmetic.truncate": Case(arithmetic.truncate, many, one),
        "arithmetic.fix": Case(lambda s, x: arithmetic.fix(s, "x", x), many, one),
        "arithmetic.multiply": Case(arithmetic.multiply, many, two),
        "arithmetic.square": Case(arithmetic.square, many, one),
        "arithmetic.matmul": Case(arithmetic.matmul, shapes, matrices),
        "arithmetic.matmul, left operand fixed": Case(
            lambda s, x, y: arithmetic.matmul(s, arithmetic.fix(s, "x", x), y), shapes, matrices
        ),
        "arithmetic.matmul, both fixed": Case(both_fixed, shapes, matrices),
        "arithmetic.conv2d": Case(arithmetic.conv2d, seen, elements(ring, images, filters)),
        "boolean.sign": Case(boolean.sign, of(sign), one),
        "boolean.less_than": Case(boolean.less_than, of(sign), two),
        "boolean.to_bits": Case(boolean.to_bits, of(total), one),
        "boolean.evaluate": Case(lambda s, x: boolean.evaluate(s, small, x), of(small), own),  # type: ignore[arg-type]
        "boolean.inverted": Case(boolean.inverted, many, planes(1, n)),
        "boolean.open_bits": Case(boolean.open_bits, {**many, "p": 3.0}, planes(3, n)),
        "boolean.each_from_bits": Case(boolean.each_from_bits, {**many, "p": 3.0}, planes(3, n)),
        "boolean.from_bits": Case(boolean.from_bits, {**many, "p": 3.0}, planes(3, n)),
        "boolean.select": Case(boolean.select, many, planes(1, n, *one)),
        "boolean.relu": Case(boolean.relu, of(sign), one),
        "boolean.truncate_exactly": Case(boolean.truncate_exactly, of(carries), one),
        "garbling.sign": Case(garbling.sign, garbles(small), one),
        "garbling.to_labels": Case(garbling.to_labels, garbles(small), one),
        "garbling.garbled": Case(lambda s, x: garbling.garbled(s, small, x), garbles(small), own),  # type: ignore[arg-type]
        "garbling.garbled, on labels": Case(relabelled, garbles(small), own),  # type: ignore[arg-type]
        "garbling.to_bits": Case(
            lambda s: garbling.to_bits(Labels(np.zeros((1, lanes, 2), np.uint64), (n,))),
            many,
            empty,
        ),
        "garbling.prepared_sum": Case(
            lambda s, x: garbling.prepared_sum(s, small, x), garbles(small), one
        ),
    }


@dataclass
class Booked:
    """What the meter booked on the parties, and what the codec added."""

    cost: CostMeter
    framing: dict[Role, dict[tuple[str, str], int]]

    def rounds(self, left_out: set[str]) -> tuple[int, int]:
        """Of the operation, online, as each party counts."""
        first, second = (
            sum(
                cost.rounds
                for (role, of, layer), cost in self.cost.entries().items()
                if role == str(server) and of == ONLINE and layer not in left_out
            )
            for server in SERVERS
        )
        return first, second

    def payload(self, role: Role, phase: str, *, left_out: set[str] = NOT_THE_OPERATION) -> int:
        """Bytes that a party sent for the operation, without framing."""
        sent = sum(
            cost.bytes_sent
            for (who, of, layer), cost in self.cost.entries().items()
            if who == str(role) and of == phase and layer not in left_out
        )
        framing = self.framing[role].items()
        return sent - sum(
            more for (of, layer), more in framing if of == phase and layer not in left_out
        )


def run(case: Case, ring: Ring, *, dealt: bool) -> Booked:
    """Run an operation; its correlations by a dealer, or by transfer."""
    fixed = FixedPoint(FRACTION, ring)
    plan: Plan = traced(lambda session: case.run(session, *case.shares[0]), fixed)
    coins = Coins.from_seed(b"doc table run")
    dealt = dealt and bool(plan.correlations)
    framing: dict[Role, dict[tuple[str, str], int]] = {
        role: {} for role in (*SERVERS, *([DEALER] if dealt else []))
    }

    def party(number: int) -> Callable[[Mapping[Role, Channel]], None]:
        def side(channels: Mapping[Role, Channel]) -> None:
            mine = coins.child(f"party {number}")
            counts = framing[SERVERS[number]]
            peer = Counting(channels[SERVERS[1 - number]], counts)
            transfers = None
            if not plan.correlations:
                store = MemoryStore(plan, bytes(16), [])
            elif dealt:
                made = Dealt(Counting(channels[DEALER], counts), number, plan)
                store = MemoryStore.filled(made)
                made.close()
            else:
                alone = ByTransfer(peer, number, plan, mine)
                store, transfers = MemoryStore.filled(alone), alone.transfers
            session = start(peer, number, fixed, store, mine, transfers=transfers)
            case.run(session, *case.shares[number])

        return side

    def dealer(channels: Mapping[Role, Channel]) -> None:
        servers = tuple(Counting(channels[server], framing[DEALER]) for server in SERVERS)
        deal(plan, (servers[0], servers[1]), coins.child("dealer"))

    parties = {server: party(number) for number, server in enumerate(SERVERS)}
    done = run_pair({**parties, DEALER: dealer} if dealt else parties)
    outputs_of(done)
    return Booked(done.cost, framing)


GARBLED = "garbling.prepared_sum"  # a dealer does not garble
RINGS = (Z64, Z32)
names = sorted(cases(Z64, 64))


@cache
def booked(name: str, ring: Ring, n: int, *, dealt: bool) -> tuple[Booked, dict[str, float]]:
    """An operation's run, and the letters of its formulas."""
    case = cases(ring, n)[name]
    letters = {"e": ring.bits / 8, "l": float(ring.bits), **case.letters}
    return run(case, ring, dealt=dealt), letters


# --- the page says what the meter does


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("name", names)
def test_an_operation_costs_what_the_page_says(name: str, ring: Ring) -> None:
    rounds, *sent, _each, _uses = online()[name]
    for n in (200, 64):
        found, letters = booked(name, ring, n, dealt=name != GARBLED)
        expected = by_ring(rounds, ring, letters)
        left_out = NOT_THE_OPERATION - ({"fix"} if name == "arithmetic.fix" else set())
        assert found.rounds(left_out) == (expected, expected)
        for server, text in zip(SERVERS, sent, strict=True):
            assert found.payload(server, ONLINE, left_out=left_out) == formula(text, letters)


ONE_OF_MANY = {"arithmetic.share_input", "boolean.evaluate", "garbling.garbled", "garbling.garbled, on labels"}  # fmt: skip
"""What one value takes says nothing there: it is for whole inputs, or for any circuit."""


def a_value(sent: tuple[str, ...], letters: Mapping[str, float]) -> str:
    """What the parties send for each of many values; one number where it is the same."""
    shown = [f"{formula(text, letters) / letters['n']:.1f}".removesuffix(".0") for text in sent]
    return shown[0] if len(set(shown)) == 1 else " / ".join(shown)


@pytest.mark.parametrize("name", names)
def test_bytes_of_a_value_are_those_of_the_formulas(name: str) -> None:
    """Of many values in the ring of 64 bits; one number for both parties, or two."""
    _, first, second, each, _ = online()[name]
    letters = {"e": 8.0, "l": 64.0, **cases(Z64, 64)[name].letters}
    if each == "—":
        assert {"m", "i", "p"} & set(letters) or name in ONE_OF_MANY
    else:
        assert each == a_value((first, second), letters)


@pytest.mark.parametrize("name", sorted(offline()))
@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_correlations_cost_what_the_page_says(name: str, ring: Ring) -> None:
    dealer, *sent, each = offline()[name]
    found, letters = booked(name, ring, 200, dealt=False)
    many = {"e": 8.0, "l": 64.0, **cases(Z64, 64)[name].letters}
    if each == "—":
        assert {"m", "i", "p"} & set(many) or name in ONE_OF_MANY
    else:
        least = "—" if dealer == "—" else a_value((dealer,), many)
        assert each == f"{least}; {a_value(tuple(sent), many)}"
    for server, text in zip(SERVERS, sent, strict=True):
        assert found.payload(server, OFFLINE) == formula(text, letters)
    if dealer == "—":
        assert name == GARBLED
        return
    found, _ = booked(name, ring, 200, dealt=True)
    # Beside what is dealt, 80 bytes to each server begin, and each window is asked for in 16.
    assert found.payload(DEALER, "", left_out=set()) - 160 == formula(dealer, letters)
    assert found.payload(SERVERS[1], OFFLINE, left_out={"start", "end"}) == 16


@pytest.mark.parametrize("swapped", [False, True])
def test_the_smaller_side_of_a_product_of_matrices_chooses(*, swapped: bool) -> None:
    """The page's formula is for m <= n, and has both exchanged else."""
    m, k, n = (5, 16, 4) if swapped else (4, 16, 5)
    found = run(Case(arithmetic.matmul, {}, elements(Z64, (m, k), (k, n))), Z64, dealt=False)
    letters = {"e": 8.0, "l": 64.0, "m": min(m, n), "k": k, "n": max(m, n)}
    text = offline()["arithmetic.matmul"][1]
    assert found.payload(SERVERS[0], OFFLINE) == formula(text, letters)


def test_only_operations_without_correlations_are_left_out_of_the_second_table() -> None:
    fixed = FixedPoint(FRACTION, Z64)
    for name, case in cases(Z64, 64).items():
        plan = traced(lambda session, case=case: case.run(session, *case.shares[0]), fixed)  # type: ignore[misc]
        used = {type(correlation).__name__ for correlation in plan.correlations}
        if name != "arithmetic.fix":
            used -= {"Mask"}  # which costs nothing
        assert set(online()[name][-1].split(", ")) == (used or {"—"}), name
        assert (name in offline()) == bool(used - {"Mask"}), name


def test_every_operation_is_in_the_table() -> None:
    """All public functions that take a session."""
    known = set()
    for module in (arithmetic, boolean, garbling):
        for name, found in inspect.getmembers(module, inspect.isfunction):
            takes = list(inspect.signature(found).parameters)[:1]
            if (
                found.__module__ == module.__name__
                and takes in (["session"], ["labels"])
                and name[0] != "_"
            ):
                known.add(f"{module.__name__.rpartition('.')[2]}.{name}")
    known.remove("arithmetic.product")  # what multiply, matmul and conv2d are
    assert {name.partition(",")[0] for name in online()} == known
    assert set(online()) == set(names)


@pytest.mark.parametrize("row", table("circuit", "rounds d"), ids=lambda row: row[0])
def test_circuits_are_what_the_page_says(row: list[str]) -> None:
    name, *figures = row
    made = {"sign_of_sum": sign_of_sum, "sum_of_shares": sum_of_shares}
    shallow = "small" not in name
    for ring in RINGS:
        if name.startswith("carries_of_sum"):
            circuit = carries_of_sum(ring.bits, FRACTION)
        else:
            circuit = made[name.partition(",")[0]](ring.bits, shallow=shallow)
        letters = circuit_letters(circuit)
        said = [by_ring(figure, ring, {}) for figure in figures]
        assert said == [letters[letter] for letter in "dcgab"]


def test_what_it_takes_to_begin() -> None:
    text = PAGE.read_text()
    found, _ = booked("arithmetic.multiply", Z64, 64, dealt=False)
    for layer, phase, said in (
        ("start", ONLINE, r"1 round and (\d+) bytes each way"),
        ("start", OFFLINE, r"3 rounds and (\d+) bytes each way"),
    ):
        (figure,) = re.findall(said, text)
        for server in SERVERS:
            cost = found.cost.total(role=server, phase=phase, layer=layer)
            framing = found.framing[server][phase, layer]
            assert cost.bytes_sent - framing == int(figure)
            assert cost.rounds == int(said[0])


def test_the_ways_to_a_sign_are_compared_by_the_figures_of_the_tables() -> None:
    ways = {row[0]: row[1:] for row in table("way", "rounds")}
    assert set(ways) == {"boolean.sign", "garbling.sign", "garbling.prepared_sum"}
    said, before = online(), offline()
    for name, (rounds, each, prepared, _) in ways.items():
        assert rounds == said[name][0].partition(" / ")[0] and each == said[name][3]
        assert prepared == (before[name][3].partition("; ")[2] if name in before else "0")
    saved = int(ways["boolean.sign"][0]) - int(ways["garbling.sign"][0])
    letters = {"w": 1.0, "l": 64.0}
    more = formula(said["garbling.sign"][1], {**letters, "c": 63.0}) - formula(
        said["boolean.sign"][1], {**letters, **circuit_letters(sign_of_sum(64))}
    )
    assert f"{saved} D B / {more:.0f} values" in PAGE.read_text()
