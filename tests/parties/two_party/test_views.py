"""What a server sees tells it nothing: the same messages whatever inputs the other has, and fair bits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tacit.crypto.ring import Z32, Z64, Elements, Ring
from tacit.parties.links.local import PairRun, outputs_of
from tacit.parties.views import FULL

from .conftest import DEALER, DEALT, S0, S1, SERVERS, TRANSFERRED, Setting, at, drawn, run
from .views import FALSE_ALARM, everything, findings, kind, p_fair, said, suspicious

N = 150
cases = pytest.mark.parametrize(
    "ring, by", [(ring, by) for ring in (Z64, Z32) for by in (DEALT, TRANSFERRED)], ids=str
)


def inputs(ring: Ring) -> dict[str, Elements]:
    """Values that would be seen through a mask that is not uniform."""
    return {
        "zeros": ring.zeros((N,)),
        "ones": ~ring.zeros((N,)),
        "counting": np.arange(N).astype(ring.dtype),
        "any": drawn("any", ring, N),
    }


@cache
def seen(ring: Ring, by: str, one: str, two: str, seed: bytes = b"views", n: int = N) -> PairRun:
    values = inputs(ring)[one][:n], inputs(ring)[two][:n]
    how = Setting(at(ring), by=by, seed=seed, recording=FULL)
    ran = run(everything(values, by), how)
    outputs_of(ran)
    return ran


def shape(ran: PairRun, role) -> tuple[list, list]:
    """Number, order, sizes, tags and destinations of all that a role received and sent."""
    view = ran.views[role]
    sent = [(f.peer, f.wave, f.message().tag, len(f.data)) for f in view.sent()]
    return view.shape, sent


@cases
@pytest.mark.parametrize("party", [0, 1])
def test_messages_are_the_same_whatever_the_other_party_has(
    ring: Ring, by: str, party: int
) -> None:
    """Number, order, size, tags and destination; other coins change nothing in them either."""
    others = ("zeros", "counting", "any")
    runs = [seen(ring, by, *(("any", one) if party == 0 else (one, "any"))) for one in others]
    runs.append(seen(ring, by, "any", "any", seed=b"others"))
    shapes = [shape(ran, SERVERS[party]) for ran in runs]
    assert all(one == shapes[0] for one in shapes)
    assert len(shapes[0][0]) > 60
    if by == DEALT:
        assert len({str(shape(ran, DEALER)) for ran in runs}) == 1


@cases
@pytest.mark.parametrize("one, two", [("zeros", "zeros"), ("any", "counting")])
def test_all_that_is_received_and_opened_is_fair(ring: Ring, by: str, one: str, two: str) -> None:
    """False alarm, had the coins not been seeded: `FALSE_ALARM` a check, some hundred checks a run."""
    found = findings(seen(ring, by, one, two))
    assert len(found) > 40
    assert [name for name, p in found.items() if p < FALSE_ALARM] == []


@cases
def test_every_operation_that_sends_is_looked_at(ring: Ring, by: str) -> None:
    ran = seen(ring, by, "any", "any")
    found = findings(ran)
    for party in (0, 1):
        tags = {
            kind(tag) for tag, arrays in said(ran, SERVERS[party], SERVERS[1 - party]) if arrays
        }
        unseen = {tag for tag in tags if f"sent by: {party}: {tag}[0]" not in found}
        assert unseen <= NOT_LOOKED_AT
    for name in ("multiply", "square", "matmul", "conv2d", "fix", "select", "sign", "from bits"):
        at_values = f"turn/{name}[{int(name == 'select')}]"
        assert {f"twice: added: {at_values}", f"xored: {at_values}"} <= found.keys()


NOT_LOOKED_AT = {
    "two-party start",
    "name of the preprocessing",
    "open",
    "open to one",
}


@pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
def test_the_outputs_are_the_same_whatever_the_coins(ring: Ring) -> None:
    """So that what differs between runs with other coins is masks alone."""
    for by in (DEALT, TRANSFERRED):
        results = [
            outputs_of(seen(ring, by, "any", "any", seed=seed))[role]
            for seed in (b"views", b"others")
            for role in SERVERS
        ]
        for other in results[1:]:
            assert all(np.array_equal(other[name], results[0][name]) for name in results[0])


@cases
def test_with_the_same_coins_inputs_change_what_their_masks_hide_and_nothing_before(
    ring: Ring, by: str
) -> None:
    """Party 1's input changes: the seeds and the dealer's words do not, and what masks hide does."""
    one, two = (seen(ring, by, "any", other) for other in ("counting", "any"))
    for sender, to in ((S0, S1), (S1, S0)):
        pairs = zip(said(one, sender, to), said(two, sender, to), strict=True)
        differing = {
            kind(tag)
            for (tag, first), (_, second) in pairs
            if any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        }
        assert not {"turn/share input", "two-party start", "choose", "chosen"} & differing
        if sender == S1:
            assert {
                f"turn/{name}" for name in ("multiply", "matmul", "sign", "select")
            } <= differing
            assert "turn/garbled sign choices" in differing and "turn/square" not in differing
    if by == DEALT:
        for role in SERVERS:
            same = zip(said(one, DEALER, role), said(two, DEALER, role), strict=True)
            assert all(
                np.array_equal(a, b) for (_, x), (_, y) in same for a, b in zip(x, y, strict=True)
            )


def test_seeds_of_inputs_are_whole_keys() -> None:
    """32 bytes each, no two alike, and their bytes fair: from 6 runs with other coins."""
    keys = []
    for number in range(6):
        ran = seen(Z32, DEALT, "zeros", "zeros", seed=b"seed %d" % number, n=16)
        for role in SERVERS:
            for tag, arrays in said(ran, role, SERVERS[1 - role.index]):
                if "share input" in tag:
                    keys += [array.tobytes() for array in arrays]
    assert len(set(keys)) == len(keys) == 24 and {len(key) for key in keys} == {32}

    assert p_fair(np.frombuffer(b"".join(keys), np.uint8)) > FALSE_ALARM


def test_an_honest_run_after_real_base_transfers_is_fair_too() -> None:
    values = inputs(Z64)["zeros"], inputs(Z64)["ones"]
    for by in (DEALT, TRANSFERRED):
        ran = run(everything(values, by), Setting(at(Z64), by=by, recording=FULL, base=True))
        outputs_of(ran)
        assert suspicious(ran) == []
