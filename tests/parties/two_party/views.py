"""Checks of what two servers see of each other, for honest code and for code with a planted mistake.

`findings` gives a p-value for each check of a recorded run. The null hypothesis is that bits are fair and independent. For
honest code it holds up to the security of AES, so that the chance that any of the checks of a run fails, had its coins not
been seeded, is at most `FALSE_ALARM` times the number of checks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

from tacit.crypto.ring import Elements
from tacit.parties.links.local import PairRun
from tacit.parties.two_party import arithmetic, boolean, garbling
from tacit.parties.two_party.session import Session

from .conftest import DEALER, SERVERS, TRANSFERRED, _prepared_relu, shared

FALSE_ALARM = 1e-6
"""Of one check."""

# Public, or no bit strings: who, which and how many; points of a curve; openings, which are to tell something.
OPEN = re.compile(r"two-party start|oblivious transfer start|deal|.*open( to one| bits)? \d+")
Octets = npt.NDArray[np.uint8]


def p_fair(octets: Octets) -> float:
    """Of all bytes by chi-square, and of each place in words of 8 bytes by the normal law: the least of both."""
    counts = np.bincount(octets, minlength=256)
    mean = octets.size / 256
    chi = scipy.special.chdtrc(255, ((counts - mean) ** 2 / mean).sum()) if mean >= 5 else 1.0
    width = 8 if octets.size % 8 == 0 and octets.size >= 512 else 1
    places = np.unpackbits(octets.reshape(-1, width), axis=1)
    rows = len(places)
    z = np.abs(places.sum(0, dtype=np.int64) - rows / 2).max() / np.sqrt(rows / 4)
    return float(min(1.0, 2 * chi, 2 * 8 * width * 2 * scipy.special.ndtr(-z)))


def octets(arrays: list[Any]) -> Octets:
    return np.concatenate([np.ascontiguousarray(one).reshape(-1).view(np.uint8) for one in arrays])


def said(ran: PairRun[Any], sender: Any, to: Any) -> Iterator[tuple[str, list[Elements]]]:
    for frame in ran.views[sender].sent():
        message = frame.message()
        if frame.peer == to:
            yield message.tag, list(message.arrays("arrays"))


def kind(tag: str) -> str:
    """The operation's name without its numbers."""
    return re.sub(r" \d+( #\d+)?", "", tag)


Opened = Iterator[tuple[str, Elements]]


def opened(ran: PairRun[Any], together: Callable[[Elements, Elements], Elements]) -> Opened:
    """What both parties sent under one tag, added or XORed: the masked values that both then know."""
    sides = []
    for at in (0, 1):
        by_tag: dict[str, list[Elements]] = defaultdict(list)
        for tag, arrays in said(ran, SERVERS[at], SERVERS[1 - at]):
            if not OPEN.fullmatch(tag) and "#" in tag:
                by_tag[tag] += arrays
        sides.append(by_tag)
    for tag in sides[0]:
        pairs = zip(sides[0][tag], sides[1].get(tag, []), strict=False)
        for number, (mine, theirs) in enumerate(pairs):
            if mine.shape == theirs.shape:
                yield f"{tag}[{number % 2}]", together(mine, theirs)


def alone(ran: PairRun[Any]) -> Iterator[tuple[str, Elements]]:
    """What one party sends under a tag for the other to know: masked wires, moved shares, turned choices, labels."""
    for at in (0, 1):
        for tag, arrays in said(ran, SERVERS[at], SERVERS[1 - at]):
            if not OPEN.fullmatch(tag):
                yield from (
                    (f"{at}: {tag}[{number % 2}]", array)
                    for number, array in enumerate(arrays)
                    if array.size
                )


def groups(found: Opened) -> dict[str, list[Elements]]:
    out: dict[str, list[Elements]] = defaultdict(list)
    for tag, array in found:
        out[kind(tag)].append(array)
    return out


def p_twice(
    arrays: list[Elements], apart: Callable[[Elements, Elements], Elements]
) -> float | None:
    """Of each two of one size: who masks both with one mask shows how far they are from each other."""
    sizes: dict[tuple[Any, str], list[Elements]] = defaultdict(list)
    for array in arrays:
        if array.nbytes >= 64:
            sizes[array.shape, array.dtype.str].append(array)
    pairs = [pair for same in sizes.values() for pair in combinations(same[:4], 2)]
    found = [p_fair(octets([apart(one, two)])) for one, two in pairs]
    return min(1.0, len(found) * min(found)) if found else None


def findings(ran: PairRun[Any]) -> dict[str, float]:
    """The p-value of each check."""
    found = {
        "sent by": (alone(ran), np.bitwise_xor),
        "added": (opened(ran, np.add), np.subtract),
        "xored": (opened(ran, np.bitwise_xor), np.bitwise_xor),
    }
    if DEALER in ran.views:
        for role in SERVERS:
            dealt = ((tag, one) for tag, arrays in said(ran, DEALER, role) for one in arrays[-9:])
            found[f"dealt to {role}"] = dealt, np.bitwise_xor
    out: dict[str, float] = {}
    for check, (those, apart) in found.items():
        for name, arrays in groups(those).items():
            if sum(array.nbytes for array in arrays) >= 64:
                out[f"{check}: {name}"] = p_fair(octets(arrays))
            if (p := p_twice(arrays, apart)) is not None:
                out[f"twice: {check}: {name}"] = p
    return out


def suspicious(ran: PairRun[Any]) -> list[str]:
    return [name for name, p in findings(ran).items() if p < FALSE_ALARM]


# --- a computation with every operation, on values that look least like masks


def everything(
    values: tuple[Elements, Elements], by: str
) -> Callable[[Session], dict[str, Elements]]:
    """Every operation, most of them twice, on party 0's and party 1's values; their results, opened."""
    x, y = values

    def computation(s: Session) -> dict[str, Elements]:
        out: dict[str, Elements] = {}
        for turn in range(2):
            with s.within("turn"):
                (a,), (b,) = shared(s, x, owner=0), shared(s, y, owner=1)
                n = int(np.sqrt(x.size))
                square = [one[: n * n].reshape(n, n) for one in (a, b)]
                images = [one[: 4 * n].reshape(1, 1, 4, n) for one in (a, b)]
                fixed = arithmetic.fix(s, f"a{turn}", a)
                out |= {
                    "multiply": arithmetic.multiply(s, a, b),
                    "square": arithmetic.square(s, a),
                    "matmul": arithmetic.matmul(s, *square),
                    "conv2d": arithmetic.conv2d(s, *images, padding=1),
                    "fixed": arithmetic.multiply(s, fixed, b),
                    "both fixed": arithmetic.multiply(s, fixed, fixed),
                    "bits": boolean.from_bits(s, boolean.to_bits(s, a)),
                    "relu": boolean.relu(s, b)[0],
                    "exact": boolean.truncate_exactly(s, b),
                    "garbled": boolean.select(s, garbling.sign(s, b), a),
                    "labels": boolean.from_bits(s, garbling.to_bits(garbling.to_labels(s, a))),
                }
                if by == TRANSFERRED:
                    out["prepared"] = _prepared_relu(s, b, a)
        arithmetic.open_to(s, 1, *out.values())
        return dict(zip(out, arithmetic.open_to_both(s, *out.values()), strict=True))

    return computation
