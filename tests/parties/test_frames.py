"""Frames put together from every chunking, and from bytes that are none."""

from __future__ import annotations

import math
import os
import random  # noqa: TID251 - of tests alone, seeded
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from tacit.core.errors import WireError
from tacit.core.wire import MAX_FRAME
from tacit.parties.links.frames import (
    CONTROL,
    HEAD,
    MAGIC,
    SESSION,
    VERSION,
    FrameReader,
    Header,
    Kind,
    header_of,
)

from .proxy import memory

LIMIT = 1 << 20
Whole = list[tuple[Header, bytes]]


def packed(header: Header, payload: bytes = b"") -> bytes:
    return header.packed(len(payload)) + payload


def frames(seed: int, count: int = 20) -> Whole:
    draw = random.Random(seed)
    out = []
    for number in range(count):
        kind = draw.choice(list(Kind))
        size = draw.choice([0, 0, 1, 7, 63, 64, 65, 500, draw.randrange(9000)])
        header = Header(
            kind=kind, session=draw.randbytes(SESSION), sequence=number, seen=draw.getrandbits(62),
            ticket=draw.getrandbits(62), number=draw.getrandbits(62), seconds=draw.random() * 1e3, length=size,
        )  # fmt: skip
        out.append((header, draw.randbytes(size)))
    return out


def stream(sent: Whole) -> bytes:
    return b"".join(packed(header, payload) for header, payload in sent)


def read(reader: FrameReader, raw: bytes, sizes: Iterable[int]) -> Whole:
    """What a reader makes of bytes that come in pieces of those sizes."""
    came: Whole = []
    at = 0
    for size in sizes:
        piece = raw[at : at + size]
        while piece:
            space = reader.space
            assert len(space)
            taken = min(len(space), len(piece))
            space[:taken] = piece[:taken]
            came += [(header, bytes(payload)) for header, payload in reader.filled(taken)]
            piece, at = piece[taken:], at + taken
        if at >= len(raw):
            break
    return came


def chunkings(total: int) -> dict[str, Callable[[], Iterable[int]]]:
    def drawn(seed: int, most: int) -> Iterable[int]:
        draw = random.Random(seed)
        while True:
            yield draw.randint(1, most)

    return {
        "one byte": lambda: [1] * total,
        "all": lambda: [total],
        "a head": lambda: [HEAD] * (total // HEAD + 1),
        "less": lambda: [HEAD - 1] * (total // (HEAD - 1) + 1),
        "more": lambda: [HEAD + 1] * (total // (HEAD + 1) + 1),
        **{f"up to {most}": lambda m=most: drawn(m, m) for most in (3, 100, 5000, 70000)},
    }


@pytest.mark.parametrize("ahead", [0, 1, 63, 64, 1000, 1 << 16])
def test_every_chunking_gives_the_same_frames(ahead: int) -> None:
    for seed in range(3):
        sent = frames(seed)
        raw = stream(sent)
        for name, sizes in chunkings(len(raw)).items():
            assert read(FrameReader(LIMIT, ahead=ahead), raw, sizes()) == sent, name


def test_frames_that_arrive_exactly_come_one_by_one() -> None:
    sent = frames(1)
    reader = FrameReader(LIMIT, ahead=1 << 16)
    for header, payload in sent:
        raw = packed(header, payload)
        assert read(reader, raw, [len(raw)]) == [(header, payload)]


def test_many_frames_in_one_piece_come_at_once() -> None:
    sent = [(Header(kind=Kind.PING, sequence=n), b"") for n in range(500)]
    reader = FrameReader(LIMIT, ahead=1 << 16)
    raw = stream(sent)
    reader.space[: len(raw)] = raw
    assert [(header, bytes(payload)) for header, payload in reader.filled(len(raw))] == sent


@pytest.mark.parametrize("size", [0, 1, 64, 1000])
def test_a_reader_that_looks_not_ahead_takes_no_byte_of_the_next_frame(size: int) -> None:
    raw = packed(Header(kind=Kind.DATA), bytes(size))
    for step in (1, 7, 1 << 20):
        reader, at = FrameReader(LIMIT), 0
        while True:
            taken = min(len(reader.space), step, len(raw) + 1000 - at)
            reader.space[:taken] = (raw + bytes(1000))[at : at + taken]
            at += taken
            if whole := reader.filled(taken):
                break
        assert at == len(raw) and len(whole) == 1 and len(whole[0][1]) == size


def test_what_a_reader_gives_is_not_written_to_later() -> None:
    reader = FrameReader(LIMIT, ahead=1 << 12)
    first = read_raw(reader, packed(Header(kind=Kind.DATA), b"a" * 100))
    second = read_raw(reader, packed(Header(kind=Kind.DATA), b"b" * 9000))
    read_raw(reader, packed(Header(kind=Kind.DATA), b"c" * 9000))
    assert bytes(first[0][1]) == b"a" * 100 and bytes(second[0][1]) == b"b" * 9000
    for _, payload in (*first, *second):
        assert memoryview(payload).readonly


def read_raw(reader: FrameReader, raw: bytes) -> list[tuple[Header, bytes | memoryview]]:
    out, at = [], 0
    while at < len(raw):
        taken = min(len(reader.space), len(raw) - at)
        reader.space[:taken] = raw[at : at + taken]
        out += reader.filled(taken)
        at += taken
    return out


# --- what is no frame


def bad(offset: int, value: bytes) -> bytes:
    raw = Header(kind=Kind.DATA, session=b"sessions").packed(100)
    return raw[:offset] + value + raw[offset + len(value) :]


BAD = {
    "magic": (bad(0, b"fact"), "no frame of a tacit link"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n".ljust(HEAD), "no frame of a tacit link"),
    "older": (bad(4, bytes([VERSION - 1])), f"version {VERSION - 1}, this side's {VERSION}"),
    "newer": (bad(4, bytes([VERSION + 1])), "install the same version"),
    "kind 0": (bad(5, b"\x00"), "unknown kind 0"),
    "kind 8": (bad(5, b"\x08"), "unknown kind 8"),
    "kind 255": (bad(5, b"\xff"), "unknown kind 255"),
    "zero field": (bad(6, b"\x01"), "unknown kind"),
    "long data": (bad(56, struct.pack("<Q", LIMIT + 1)), f"announces {LIMIT + 1} bytes; at most"),
    "longest data": (bad(56, b"\xff" * 8), "announces 18446744073709551615 bytes"),
    "long word": (Header(kind=Kind.BYE).packed(CONTROL + 1), f"at most {CONTROL}"),
    "NaN": (bad(48, struct.pack("<d", math.nan)), "a time or a number that cannot be"),
    "infinite": (bad(48, struct.pack("<d", math.inf)), "a time or a number that cannot be"),
    "long": (bad(48, struct.pack("<d", 1.1e9)), "a time or a number that cannot be"),
    "ticket": (bad(32, struct.pack("<Q", 1 << 62)), "a time or a number that cannot be"),
    "answers": (bad(40, struct.pack("<Q", 1 << 63)), "a time or a number that cannot be"),
    "negative": (bad(48, struct.pack("<d", -1.0)), "a time or a number that cannot be"),
}


@pytest.mark.parametrize(("raw", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_no_frame_is_refused_by_name(raw: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        header_of(raw, LIMIT)
    for ahead in (0, 1000):
        with pytest.raises(WireError, match=words):
            read(FrameReader(LIMIT, ahead=ahead), raw, [1] * HEAD)


def test_the_places_that_every_version_shares() -> None:
    raw = Header(kind=Kind.HELLO).packed(0)
    assert raw[:4] == MAGIC == b"tact" and raw[4] == VERSION and raw[5] == Kind.HELLO
    assert len(raw) == HEAD == 64


def test_a_header_keeps_all_that_it_was_given() -> None:
    for header, _ in frames(7, 200):
        assert header_of(header.packed(header.length), LIMIT) == header
    edge = Header(kind=Kind.DATA, sequence=2**62 - 1, seconds=1e9, length=LIMIT)
    assert header_of(edge.packed(LIMIT), LIMIT) == edge
    assert header_of(Header(kind=Kind.BYE).packed(CONTROL), 0).length == CONTROL


def test_a_length_beyond_the_limit_takes_no_memory() -> None:
    raw = bad(56, struct.pack("<Q", LIMIT + 1))
    reader = FrameReader(LIMIT)
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            read(reader, raw, [HEAD])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_announcing_two_gigabytes_costs_nothing_until_they_come() -> None:
    readers = [FrameReader(MAX_FRAME, ahead=1 << 16) for _ in range(16)]
    before = memory()
    for reader in readers:
        assert not read(reader, Header(kind=Kind.DATA).packed(MAX_FRAME) + bytes(100), [HEAD + 100])
        assert len(reader.space) == MAX_FRAME - 100
    assert memory() - before < 64 << 20  # a large page each, at most


def test_more_than_the_machine_has_is_refused_and_no_other_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(WireError, match="no memory"):
        read(FrameReader(MAX_FRAME), Header(kind=Kind.DATA).packed(MAX_FRAME), [HEAD])


# --- mutated streams


def mutated(raw: bytes, draw: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(out) + 1)
        match draw.randrange(6):
            case 0 if place < len(out):
                out[place] ^= 1 << draw.randrange(8)
            case 1 if place < len(out):
                out[place] = draw.randrange(256)
            case 2:
                out[place:place] = draw.randbytes(draw.randint(1, 40))
            case 3:
                del out[place : place + draw.randint(1, 100)]
            case 4:
                out += out[place : place + draw.randint(1, 200)]
            case _:
                out[place : place + 8] = draw.choice(
                    [b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 31)]
                )
    return bytes(out)


def fuzz(count: int) -> None:
    draw = random.Random(2026)
    starts = [stream(frames(seed, 6)) for seed in range(20)]
    slowest, refused, before = 0.0, 0, memory()
    for number in range(count):
        raw = mutated(draw.choice(starts), draw)
        reader = FrameReader(
            draw.choice([0, 1000, LIMIT, MAX_FRAME]), ahead=draw.choice([0, 100, 1 << 14])
        )
        start = time.perf_counter()
        try:
            for _, payload in read(reader, raw, iter(lambda: draw.randint(1, 4000), 0)):
                assert len(payload) <= len(raw)
        except WireError:
            refused += 1
        slowest = max(slowest, time.perf_counter() - start)
        if number % 1000 == 0:
            assert memory() - before < 100 << 20
    assert slowest < 1.0
    assert count // 10 < refused < count  # some are whole all the same, and some not


def test_mutated_streams_raise_wire_errors_alone() -> None:
    fuzz(10_000)


@pytest.mark.slow
def test_many_mutated_streams_raise_wire_errors_alone() -> None:
    fuzz(int(os.environ.get("TACIT_FUZZ", "1000000")))
