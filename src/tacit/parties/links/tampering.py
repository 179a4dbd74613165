"""What scripted faults make of the frames of a local link, and how the one who gets them notices.

There is no TLS inside one process. Where faults are scripted, a local link models an authenticated line between each two
roles instead: every frame carries a seal over session, version, both ends, its number and its bytes, under a key of these
two. What does not fit is handed to nobody, and what came before is dropped.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from tacit.core.coins import Coins
from tacit.core.errors import ProtocolError, WireError
from tacit.parties.faults import Fault, Harm, cut, flipped
from tacit.parties.roles import Role

T = TypeVar("T")

Line = tuple[Role, Role]
"""Sender and recipient."""

VERSION = 1
_OLDER = bytes(8)
_STRANGER = Role("stranger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A frame as it goes over a line.

    Args:
        session: 8 bytes.
        version: of the link.
        sender: whose it says that it is.
        recipient: whom it is for.
        number: of the message on its line, from 0.
        length: of the frame, as announced.
        frame: the bytes.
        seal: over all of this.
    """

    session: bytes
    version: int
    sender: Role
    recipient: Role
    number: int
    length: int
    frame: bytes = field(repr=False)
    seal: bytes = b""

    def sealed(self, key: bytes) -> Sealed:
        """With its seal under that key."""
        about = f"{self.version}/{self.sender}/{self.recipient}/{self.number}/{self.length}/"
        seal = hashlib.blake2b(self.session + about.encode(), key=key, digest_size=16)
        seal.update(self.frame)
        return replace(self, seal=seal.digest())


@dataclass(slots=True)
class Lines(Generic[T]):
    """The lines of one conversation; ``T`` is what a link keeps beside a frame.

    Args:
        coins: for the keys.
    """

    coins: Coins = field(default_factory=Coins)
    _session: bytes = field(init=False)
    _keys: dict[Line, bytes] = field(init=False, default_factory=dict, repr=False)
    _sent: Counter[Line] = field(init=False, default_factory=Counter)
    _last: dict[Line, Sealed] = field(init=False, default_factory=dict)
    _held: dict[Line, list[tuple[T, Sealed]]] = field(init=False, default_factory=dict)
    _came: set[tuple[Line, int]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._session = self.coins.bytes(8)

    def put(
        self, line: Line, frame: bytes, note: T, fault: Fault | None
    ) -> list[tuple[float, T, Sealed]]:
        """What arrives, now or so many seconds later, when this frame is sent."""
        whole = self._sealed(line, self._sent[line], frame)
        self._sent[line] += 1
        came = [(note, sealed) for sealed in self._tampered(line, whole, fault)]
        before, self._last[line] = self._held.pop(line, []), whole
        if fault is not None and fault.harm is Harm.REORDER:
            self._held[line] = [(note, whole)]
        late = 0.0 if fault is None else fault.seconds
        return [(late, *one) for one in came + before]

    def _tampered(self, line: Line, whole: Sealed, fault: Fault | None) -> list[Sealed]:
        came = [whole]
        if fault is None:
            return came
        match fault.harm:
            case Harm.DROP | Harm.REORDER:
                came = []
            case Harm.DOUBLE:
                came = [whole, whole]
            case Harm.REPLAY:
                older = self._last.get(line, whole).frame
                came = [self._sealed(line, whole.number, older, session=_OLDER)]
            case Harm.FLIP:
                came = [replace(whole, frame=flipped(whole.frame, fault))]
            case Harm.CUT:
                came = [replace(whole, frame=cut(whole.frame, fault))]
            case Harm.OVERSIZE:
                came = [replace(whole, frame=whole.frame + b"\0")]
            case Harm.WRONG_PEER:
                came = [self._of_another(line, whole)]
            case Harm.WRONG_ROLE:
                posing = Role(whole.sender.kind, whole.sender.index + 1)
                came = [replace(whole, sender=posing).sealed(self._key(line))]
            case Harm.WRONG_VERSION:
                came = [self._sealed(line, whole.number, whole.frame, version=VERSION + 1)]
        return came

    def _of_another(self, line: Line, whole: Sealed) -> Sealed:
        """The last frame of another party the same way; before there is one, a stranger sends this frame."""
        for other, sealed in self._last.items():
            if (other[0] == line[0]) != (other[1] == line[1]):
                return sealed
        return self._sealed((_STRANGER, line[1]), whole.number, whole.frame)

    def _key(self, line: Line) -> bytes:
        ends = min(line), max(line)
        if ends not in self._keys:
            self._keys[ends] = self.coins.bytes(32)
        return self._keys[ends]

    def _sealed(
        self,
        line: Line,
        number: int,
        frame: bytes,
        *,
        session: bytes | None = None,
        version: int = VERSION,
    ) -> Sealed:
        sender, recipient = line
        return Sealed(
            session=session or self._session, version=version, sender=sender, recipient=recipient, number=number,
            length=len(frame), frame=frame,
        ).sealed(self._key(line))  # fmt: skip

    def opened(self, line: Line, came: Sealed) -> bytes | None:
        """The frame of what came over a line; None if it came before.

        Raises:
            WireError: it is of another version or length than it must be, or was changed.
            ProtocolError: it belongs to another line or session.
        """
        sender, recipient = line
        if came.version != VERSION:
            raise WireError(
                f"{recipient} has version {VERSION} of the link, but {sender} version {came.version}"
            )
        if len(came.frame) != came.length:
            raise WireError(
                f"{sender} announced {came.length} bytes to {recipient}, but {len(came.frame)} came"
            )
        if (came.sender, came.recipient) != line:
            raise ProtocolError(
                f"what {came.sender} sent to {came.recipient} came from {sender} to {recipient}"
            )
        if came.session != self._session:
            raise ProtocolError(f"what came from {sender} to {recipient} is of another session")
        if not hmac.compare_digest(came.seal, came.sealed(self._key(line)).seal):
            raise WireError(f"what came from {sender} to {recipient} was changed on its way")
        if (line, came.number) in self._came:
            return None
        self._came.add((line, came.number))
        return came.frame

    def lose(self, line: Line) -> None:
        """Nothing that waits for the next frame of a line arrives any more."""
        self._held.pop(line, None)
