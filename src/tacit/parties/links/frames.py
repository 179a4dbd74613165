"""Frames of a link between processes: a header of fixed size, and what it announces.

Every frame carries the session, a sequence number, and the highest number that came the other way, so that after a broken
connection each side knows what the other lacks: what was lost is sent again, what came twice is dropped, and nothing of
another session is taken. Who sends is not said: the connection's certificate says it.

Layout, integers little-endian, 64 bytes::

    "tact" version(u8) kind(u8) zero(u16) session(8) sequence(u64) seen(u64) ticket(u64) number(u64) seconds(f64) length(u64)

The first six bytes have this place in every version, so that two versions can tell each other apart.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from tacit.core.errors import WireError
from tacit.core.wire import MAX_FRAME

VERSION = 1
MAGIC = b"tact"
SESSION = 8
CONTROL = 1 << 16
"""The most bytes that a frame other than DATA may announce."""

_HEAD = struct.Struct("<4sBBH8sQQQQdQ")
HEAD = _HEAD.size


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1  # who connects, and what it has of the session
    WELCOME = 2  # the session that goes on or begins
    REFUSE = 3  # why not
    DATA = 4  # a message of the protocol
    PING = 5  # still here, and so far
    PONG = 6  # the answer to it
    BYE = 7  # the end, with what there is to say of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands before a frame's payload.

    Args:
        kind: what the frame is.
        session: 8 bytes, of the session that the link belongs to; zero before there is one.
        sequence: of DATA its own number, from 1; of others the last that was sent.
        seen: the highest number that came the other way.
        ticket: what a request and its reply have in common; of a pair, the sender's depth in the causal chain.
        number: answers that the sender has kept (`tacit.parties.durable`); 0 where that is nothing to say.
        seconds: of work behind a reply.
        length: bytes that follow.
    """

    kind: Kind
    session: bytes = bytes(SESSION)
    sequence: int = 0
    seen: int = 0
    ticket: int = 0
    number: int = 0
    seconds: float = 0.0
    length: int = 0

    def packed(self, length: int) -> bytes:
        """The 64 bytes before a payload of ``length`` bytes."""
        return _HEAD.pack(
            MAGIC, VERSION, self.kind, 0, self.session, self.sequence, self.seen, self.ticket, self.number, self.seconds,
            length,
        )  # fmt: skip


def header_of(head: bytes | bytearray | memoryview, limit: int) -> Header:
    """The header of 64 bytes.

    Args:
        head: the bytes.
        limit: the most bytes that a DATA frame may announce.

    Raises:
        WireError: they are no header of this version, or announce too much.
    """
    magic, version, kind, zero, session, *counts, seconds, length = _HEAD.unpack(head)
    if magic != MAGIC:
        raise WireError("what came is no frame of a tacit link: does the other side speak tacit?")
    if version != VERSION:
        raise WireError(
            f"the other side's link has version {version}, this side's {VERSION}: install the same version of tacit"
        )
    if kind not in _KINDS or zero:
        raise WireError(f"a frame of unknown kind {kind}")
    most = limit if kind == Kind.DATA else CONTROL
    if length > most:
        raise WireError(f"a frame announces {length} bytes; at most {most} are taken")
    if not 0 <= seconds <= _SECONDS or max(counts) >= _COUNTS:
        raise WireError("a frame with a time or a number that cannot be")
    sequence, seen, ticket, number = counts
    return Header(
        kind=Kind(kind), session=session, sequence=sequence, seen=seen, ticket=ticket, number=number, seconds=seconds,
        length=length,
    )  # fmt: skip


_KINDS = frozenset(Kind)
_COUNTS = 1 << 62  # fits where it is kept
_SECONDS = 1e9


class FrameReader:
    """Puts frames together from bytes as they come; does no input or output itself.

    Args:
        limit: the most bytes that a DATA frame may announce.
        ahead: bytes that `space` offers beyond the frame that is under way; 0 reads no byte of the next frame.

    A caller writes into `space`, and tells `filled` how much. A payload's memory is reserved when it is announced and taken
    up as its bytes come.
    """

    __slots__ = ("_at", "_header", "_room", "_stage", "_to", "limit")

    def __init__(self, limit: int = MAX_FRAME, *, ahead: int = 0) -> None:
        self.limit = limit
        self._stage = memoryview(bytearray(HEAD + ahead))
        self._to = 0  # bytes of the stage that are taken
        self._header: Header | None = None
        self._room: memoryview | None = None  # of a payload that is under way
        self._at = 0

    @property
    def space(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return self._stage[self._to :] if self._room is None else self._room[self._at :]

    def filled(self, count: int) -> list[tuple[Header, bytes | memoryview]]:
        """Take note of ``count`` bytes; gives back the frames that are whole now.

        Raises:
            WireError: they are no frames of this version, or announce too much.
        """
        if self._room is not None and self._header is not None:
            self._at += count
            if self._at < len(self._room):
                return []
            whole = self._header, self._room.toreadonly()
            self._header = self._room = None
            return [whole]
        self._to += count
        out: list[tuple[Header, bytes | memoryview]] = []
        stage, start, stop = self._stage, 0, self._to
        while stop - start >= HEAD:
            header = header_of(stage[start : start + HEAD], self.limit)
            start += HEAD
            have = stop - start
            if header.length <= have:
                out.append((header, bytes(stage[start : start + header.length])))
                start += header.length
            else:
                try:
                    room = np.empty(header.length, np.uint8).data
                except MemoryError:
                    raise WireError(f"no memory for a frame of {header.length} bytes") from None
                room[:have] = stage[start:stop]
                self._header, self._room = header, room
                self._at, start = have, stop
        left = stop - start
        if start and left:
            stage[:left] = bytes(stage[start:stop])
        self._to = left
        return out
