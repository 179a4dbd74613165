"""Planted mistakes, each of which a check finds that honest code passes.

Checks: outputs are exact; what is seen is fair (`views.findings`); a tweak of the hash serves once; equal blocks with other
tweaks hash to other blocks; base transfers gave each receiver the key that its own fair bits chose.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto import garbled as garbled_circuits
from tacit.crypto.bits import unpack_plane
from tacit.crypto.circuits import Builder, sign_of_sum
from tacit.crypto.hashing import hash_blocks, hash_expand
from tacit.crypto.ot import _Streams
from tacit.crypto.ring import Z64
from tacit.parties.links.local import PairRun, outputs_of, run_pair
from tacit.parties.two_party import (
    arithmetic,
    boolean,
    correlations,
    dealer,
    garbling,
    transfers,
)
from tacit.parties.two_party.correlations import DaBits, Selection
from tacit.parties.two_party.session import CheckedWire
from tacit.parties.two_party.transfers import Transfers
from tacit.parties.views import FULL

from . import conftest as shared_by_tests
from .conftest import (
    DEALER,
    DEALT,
    ELEMENTWISE,
    S0,
    S1,
    SERVERS,
    TRANSFERRED,
    Operation,
    Setting,
    at,
    coins_of,
    drawn,
    ready,
    run,
)
from .views import everything, suspicious

OPERATIONS = {operation.name: operation for operation in ELEMENTWISE}
X, Y = Z64.zeros((128,)), ~Z64.zeros((128,))
RANDOM = drawn("x", Z64, 128), drawn("y", Z64, 128)[::-1].copy()
Patch = pytest.MonkeyPatch


# --- the checks: what they find wrong, nothing where all is well


def recorded(how: Setting, values=(X, Y)) -> PairRun[Any]:
    return run(everything(values, how.by), how)


def unfair(how: Setting) -> list[str]:
    ran = recorded(how)
    outputs_of(ran)
    return suspicious(ran)


def wrong(how: Setting) -> list[str]:
    """Operations whose outputs are not exact; one by one, on values of all kinds."""
    out = []
    for operation in (
        OPERATIONS[name] for name in ("multiply", "sign", "relu", "garbled sign", "to bits")
    ):
        try:
            came = outputs_of(run(exact(operation), how))
        except (ConfigError, ValueError) as error:
            out.append(f"{operation.name}: {error}")
            continue
        if not all(
            np.array_equal(one, operation.clear(Z64, *RANDOM)) for one in (came[S0], came[S1])
        ):
            out.append(operation.name)
    return out


def exact(operation: Operation):
    def computation(session):
        x, y = (
            arithmetic.share_input(session, owner, value if session.party == owner else value.shape)
            for owner, value in enumerate(RANDOM)
        )
        return arithmetic.open_to_both(session, operation.work(session, x, y))[0]

    return computation


def repeated(how: Setting) -> list[str]:
    """Ranges of tweaks that a receiver or evaluator uses twice under one key; the sender hashes both keys with each."""
    with Patch.context() as patch:
        used: dict[tuple[bytes, str], list[tuple[int, int]]] = defaultdict(list)

        def note(key: bytes, first: int, count: int) -> None:
            used[key, threading.current_thread().name].append((first, first + count))

        def hashing(function, key, blocks, *rest):
            note(key, rest[-1], len(blocks))
            return function(key, blocks, *rest)

        def evaluating(circuit, labels, tables, key, first=0):
            note(key, first, 2 * circuit.ands * labels.shape[1])
            return garbled_circuits.evaluate(circuit, labels, tables, key, first)

        patch.setattr(transfers, "hash_blocks", partial(hashing, transfers.hash_blocks))
        patch.setattr(transfers, "hash_expand", partial(hashing, transfers.hash_expand))
        patch.setattr(garbling, "evaluate", evaluating)
        outputs_of(recorded(how))
    keys = ready(None, 0, how.seed).hash_keys
    found, looked = [], 0
    for sender, key in enumerate(keys):
        ranges = sorted(used[key, str(SERVERS[1 - sender])])
        looked += len(ranges)
        found += [f"{sender}: {a} {b}" for a, b in pairwise(ranges) if a[1] > b[0]]
    assert looked >= 4
    return found


def untweaked(how: Setting) -> list[str]:
    """Functions of the protocol that give equal blocks with other tweaks the same."""
    key, block = bytes(16), np.zeros((200, 2), np.uint64)
    circuit = sign_of_sum(8, shallow=False)
    zero, own = np.zeros((8, 256, 2), np.uint64), np.zeros((8, 4), np.uint64)
    delta = np.array([1, 5], np.uint64)
    made = [
        ("hash_blocks", transfers.hash_blocks(key, block, 7)),
        ("hash_expand", transfers.hash_expand(key, block, 3, 7).reshape(-1, 2)),
        ("garble", garbling.garble(circuit, own, zero, delta, key, 7).tables.reshape(-1, 2)),
    ]
    return [name for name, rows in made if len(np.unique(rows, axis=0)) != len(rows)]


def ill_based(how: Setting) -> list[str]:
    """Of real base transfers: a chosen key that is not the one of delta's bit, a delta that is no coin tosses."""
    sides: dict[int, Transfers] = {}

    def side(party: int):
        def live(channels):
            wire = CheckedWire(channels[SERVERS[1 - party]])
            sides[party] = transfers.begin(wire, party, coins_of(b"base", party))

        return live

    outputs_of(run_pair({S0: side(0), S1: side(1)}))
    out = []
    for party in (0, 1):
        bits = unpack_plane(sides[party].delta, 128)
        chosen, pairs = sides[party].sender._streams.keys, sides[1 - party].receiver._streams.keys
        both = pairs.reshape(128, 2, 16)
        if not np.array_equal(both[np.arange(128), bits], chosen.reshape(128, 16)):
            out.append(f"party {party} has other keys than its delta's")
        if not 30 <= bits.sum() <= 98:  # a false alarm in 10^9
            out.append(f"party {party}'s delta has {bits.sum()} ones")
        if (both[:, 0] == both[:, 1]).all(-1).any():
            out.append(f"party {party} could have had both keys")
    return out


BY_DEALER = Setting(at(Z64), recording=FULL, seed=b"mutants")
BY_TRANSFER = Setting(at(Z64), by=TRANSFERRED, recording=FULL, seed=b"mutants")
Check = Callable[[Setting], list[str]]
CHECKS: tuple[Check, ...] = (unfair, wrong, repeated, untweaked, ill_based)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("how", [BY_DEALER, BY_TRANSFER], ids=[DEALT, TRANSFERRED])
def test_honest_code_passes(check: Check, how: Setting) -> None:
    assert check(how) == []


# --- the mistakes


class Wrapped:
    """A store that hands out something else than the one within."""

    def __init__(self, store, change) -> None:
        self.store, self.change = store, change
        self.plan, self.name = store.plan, store.name

    @property
    def position(self):
        return self.store.position

    def take(self, wanted):
        number, material = self.store.take(wanted)
        return number, self.change(wanted, material)

    def skip_to(self, position):
        self.store.skip_to(position)


class Again:
    """What it gave for a correlation it gives for every equal one."""

    def __init__(self) -> None:
        self.first: dict[str, Any] = {}

    def __call__(self, wanted, material):
        return self.first.setdefault(str(wanted), material)


def handed_out_twice(how: Setting, patch: Patch) -> Setting:
    return _kept(how, lambda store, party: Wrapped(store, Again()))


def without_masks(wanted, material):
    zeros = {name: np.zeros_like(one) for name, one in material.items()}
    return material if isinstance(wanted, DaBits | correlations.CircuitMasks) else zeros


def zero_masks(how: Setting, patch: Patch) -> Setting:
    """Products are right, and what is opened is the operand."""
    return _kept(how, lambda store, party: Wrapped(store, without_masks))


def no_wire_masks(how: Setting, patch: Patch) -> Setting:
    def change(wanted, material):
        if not isinstance(wanted, correlations.CircuitMasks):
            return material
        return {name: np.zeros_like(one) for name, one in material.items()}

    return _kept(how, lambda store, party: Wrapped(store, change))


def _kept(how: Setting, keep) -> Setting:
    return Setting(at(Z64), by=how.by, recording=FULL, seed=how.seed, keep=keep)


class _Same(Coins):
    """Every key that it draws is the first one."""

    def bytes(self, count: int) -> bytes:
        return b"\7" * 32 if count == 32 else super().bytes(count)


class _Short(Coins):
    """Seeds of 32 bits."""

    def bytes(self, count: int) -> bytes:
        return super().bytes(4) + bytes(28) if count == 32 else super().bytes(count)


def same_keys_for_both(how: Setting, patch: Patch) -> Setting:
    """What server 1 masks with is what server 0 has."""
    return _drawing(how, _Same, (DEALER,))


def short_seeds(how: Setting, patch: Patch) -> Setting:
    return _drawing(how, _Short, SERVERS)


def _drawing(how: Setting, kind: type[Coins], parties) -> Setting:
    def coins(party) -> Coins:
        role = SERVERS[party] if party in (0, 1) else party
        return (kind if role in parties else Coins).from_seed(how.seed + str(role).encode())

    return Setting(at(Z64), by=how.by, recording=FULL, seed=how.seed, coins=coins)


def select_in_the_open(how: Setting, patch: Patch) -> Setting:
    """The bit is hidden, and the value is sent as it is: the product comes out right."""

    def select(session, bits, share):
        flat = share.reshape(-1)
        with session.step("select", Selection(flat.size)) as step:
            hidden = bits.planes[0] ^ step.material["bits"], flat
            theirs = step.exchange(*hidden)
            flip = unpack_plane(hidden[0] ^ theirs[0], flat.size)
            product = (flat + theirs[1]) * step.material["r"]
            return np.where(flip, flat - product, product).reshape(share.shape)

    patch.setattr(boolean, "select", select)
    return how


def tweaks_again(how: Setting, patch: Patch) -> Setting:
    """Every batch is garbled, and every extension hashed, from the first tweak on."""
    patch.setattr(Transfers, "tweaks", lambda self, sender, count: 0)
    return how


def no_tweaks(how: Setting, patch: Patch) -> Setting:
    def alike(key, blocks, first):
        return np.concatenate([hash_blocks(key, one[None], 0) for one in blocks])

    patch.setattr(transfers, "hash_blocks", alike)
    return how


def no_tweaks_in_numbers(how: Setting, patch: Patch) -> Setting:
    def alike(key, blocks, count, first):
        return np.concatenate([hash_expand(key, one[None], count, 0) for one in blocks])

    patch.setattr(transfers, "hash_expand", alike)
    return how


def no_tweaks_in_gates(how: Setting, patch: Patch) -> Setting:
    patch.setattr(garbled_circuits, "aes_level", lambda: (None, 0))  # numpy garbles
    patch.setattr(garbled_circuits, "_tweaks", lambda *args: args[-1].fill(0))
    return how


def another_delta(how: Setting, patch: Patch) -> Setting:
    """One that is not the transfers'."""
    honest = ready

    def other(channel, party, seed=b""):
        made = honest(channel, party, seed)
        made.delta = made.delta ^ np.array([2, 0], np.uint64)
        return made

    patch.setattr(shared_by_tests, "ready", other)
    return how


def even_delta(how: Setting, patch: Patch) -> Setting:
    """Colours would not tell labels apart; garbling refuses it."""
    honest = ready

    def other(channel, party, seed=b""):
        made = honest(channel, party, seed)
        made.delta = made.delta & ~np.array([1, 0], np.uint64)
        return made

    patch.setattr(shared_by_tests, "ready", other)
    return how


def wrong_carry(how: Setting, patch: Patch) -> Setting:
    """What comes out of the second highest bit is forgotten."""
    make = Builder((64, 64))
    x, y = make.first, make.second
    carry = make.both(x[62], y[62])
    circuit = make.circuit("wrong", [make.xor(make.xor(x[63], y[63]), carry)])
    patch.setattr(boolean, "sign_of_sum", lambda bits, shallow=True: circuit)
    return how


def base_choices_are_zero(how: Setting, patch: Patch) -> Setting:
    honest = transfers.choose
    patch.setattr(
        transfers, "choose", lambda theirs, bits, *rest: honest(theirs, np.zeros_like(bits), *rest)
    )
    return how


def base_choices_are_constant(how: Setting, patch: Patch) -> Setting:
    """All is right but for the sender's secret, which everybody knows."""
    patch.setattr(transfers, "delta_of", lambda coins: np.array([1, 0], np.uint64))
    return how


def streams_start_again(how: Setting, patch: Patch) -> Setting:
    """Each extension takes the key streams from their beginning: two of them show how choices differ."""
    patch.setattr(_Streams, "take", lambda self, words: 0)
    return how


def derived_in_the_open(how: Setting, patch: Patch) -> Setting:
    """The dealer sends server 1 what it should only have a share of, and server 0's share is zero."""
    honest = dealer.uniform

    def uniform(fields, ring, coins, party):
        drawn = honest(fields, ring, coins, party)
        derived = {"c", "r", "ra", "products"}
        return {k: np.zeros_like(v) if k in derived else v for k, v in drawn.items()}

    patch.setattr(dealer, "uniform", uniform)
    return how


class Mutant(NamedTuple):
    plant: Callable[[Setting, Patch], Setting]
    how: Setting
    check: Check
    finds: str  # in what the check says


MUTANTS = [
    Mutant(handed_out_twice, BY_DEALER, unfair, "twice: added: turn/multiply"),
    Mutant(handed_out_twice, BY_TRANSFER, unfair, "twice: added: turn/matmul"),
    Mutant(zero_masks, BY_DEALER, unfair, "added: turn/multiply"),
    Mutant(zero_masks, BY_DEALER, unfair, "added: turn/square"),
    Mutant(no_wire_masks, BY_DEALER, unfair, "xored: turn/sign"),
    Mutant(same_keys_for_both, BY_DEALER, unfair, "added: turn/multiply"),
    Mutant(select_in_the_open, BY_DEALER, unfair, "added: turn/select"),
    Mutant(select_in_the_open, BY_TRANSFER, unfair, "added: turn/select"),
    Mutant(short_seeds, BY_DEALER, unfair, "sent by: 0: turn/share input"),
    Mutant(derived_in_the_open, BY_DEALER, unfair, "dealt to server 1"),
    Mutant(streams_start_again, BY_TRANSFER, unfair, "twice: sent by: 0: choose"),
    Mutant(tweaks_again, BY_TRANSFER, repeated, ""),
    Mutant(tweaks_again, BY_DEALER, repeated, ""),
    Mutant(no_tweaks, BY_TRANSFER, untweaked, "hash_blocks"),
    Mutant(no_tweaks_in_numbers, BY_TRANSFER, untweaked, "hash_expand"),
    Mutant(no_tweaks_in_gates, BY_TRANSFER, untweaked, "garble"),
    Mutant(another_delta, BY_TRANSFER, wrong, "garbled sign"),
    Mutant(another_delta, BY_TRANSFER, wrong, "multiply"),
    Mutant(even_delta, BY_TRANSFER, wrong, "lowest bit is 1"),
    Mutant(wrong_carry, BY_DEALER, wrong, "sign"),
    Mutant(wrong_carry, BY_TRANSFER, wrong, "relu"),
    Mutant(base_choices_are_zero, BY_TRANSFER, ill_based, "other keys"),
    Mutant(base_choices_are_constant, BY_TRANSFER, ill_based, "has 1 ones"),
]


@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda m: f"{m.plant.__name__}-{m.how.by}-{m.finds}"
)
def test_the_mistake_is_found(mutant: Mutant, monkeypatch: Patch) -> None:
    how = mutant.plant(mutant.how, monkeypatch)
    found = mutant.check(how)
    assert any(mutant.finds in one for one in found), found


def test_mistakes_that_leave_outputs_exact_are_found_by_looking_at_views_alone(monkeypatch: Patch) -> None:  # fmt: skip
    for plant in (
        handed_out_twice,
        zero_masks,
        same_keys_for_both,
        select_in_the_open,
        short_seeds,
    ):
        with monkeypatch.context() as patch:
            how = plant(BY_DEALER, patch)
            assert wrong(how) == []
