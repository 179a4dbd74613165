"""What a role sees, and what an adversary that stands there makes of it.

A `View` is everything that a role received, its own inputs and its coins: the word of the literature. How much of it is kept
is the recording's choice, because a soak of a million messages wants counts only, while an audit attacks the frames.

An `Observation` is a view decoded by the protection that made the frames. Masked or noisy vectors count as updates: the
attack runs on them. Only an empty observation may be called "no access".
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from tacit.core.errors import ConfigError, OutputError
from tacit.core.wire import Array, Message, decode
from tacit.parties.roles import Role


class Level(IntEnum):
    """How much of a view is kept."""

    COUNTS = 0
    DIGEST = 1
    FULL = 2
    SPOOL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What to keep of the views.

    Args:
        level: COUNTS keeps numbers only (flat in memory); DIGEST adds the shape of each frame and a SHA-256 over all; FULL
            keeps the frames in memory; SPOOL writes them to files and reads them back one at a time.
        each: keep only the first so many frames from each peer, and to each; later ones are counted.
        folder: where SPOOL writes.
    """

    level: Level = Level.COUNTS
    each: int | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if (self.level is Level.SPOOL) != (self.folder is not None):
            raise ConfigError("SPOOL needs a folder, and the other levels take none")


COUNTS = Recording()
DIGEST = Recording(level=Level.DIGEST)
FULL = Recording(level=Level.FULL)


@dataclass(frozen=True, slots=True)
class Frame:
    """One message that a role received or sent.

    Args:
        peer: who sent it, or to whom it was sent.
        wave: number of the wave (star) or of the message on its channel (pair).
        data: the encoded message.
    """

    peer: Role
    wave: int
    data: bytes = field(repr=False)

    def message(self) -> Message:
        """The decoded message."""
        return decode(self.data)


@dataclass(slots=True)
class _Kept:
    """Frames in memory, or in a file that has no name."""

    folder: Path | None
    frames: list[Frame] = field(default_factory=list)
    places: list[tuple[Role, int, int, int]] = field(default_factory=list)
    file: BinaryIO | None = None

    def add(self, frame: Frame) -> None:
        if self.folder is None:
            self.frames.append(frame)
            return
        try:
            if self.file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - open as long as the view
            start = self.file.seek(0, 2)
            self.file.write(frame.data)
            self.file.flush()  # a full disk shows here, not at a later read
        except OSError as error:
            raise OutputError(
                f"views cannot be spooled to {self.folder}: {error.strerror}; give a folder that can be written to "
                "and has room"
            ) from error
        self.places.append((frame.peer, frame.wave, start, len(frame.data)))

    def __iter__(self) -> Iterator[Frame]:
        yield from self.frames
        for peer, wave, start, length in self.places:
            if self.file is not None:
                self.file.seek(start)
                yield Frame(peer, wave, self.file.read(length))

    def __del__(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # of a disk that was full
                self.file.close()


class View:
    """Everything a role received, and what it sent.

    The frames that a role sent stand for its own inputs and coins, from which they follow: an adversary there knows them (a
    participant its own update, a server the model that it handed out).

    Args:
        role: whose view it is.
        recording: what is kept.

    Attributes:
        messages: frames received.
        received: encoded bytes received.
        shape: (sender, tag, bytes, wave) of each frame received and kept, in order; from DIGEST on. Two runs that differ
            only in another party's secrets must agree on it exactly.
    """

    __slots__ = (
        "_hash",
        "_kept",
        "_received",
        "_sent",
        "messages",
        "received",
        "recording",
        "role",
        "shape",
    )

    def __init__(self, role: Role, recording: Recording = COUNTS) -> None:
        self.role = role
        self.recording = recording
        self.messages = 0
        self.received = 0
        self.shape: list[tuple[Role, str, int, int]] = []
        self._received = _Kept(recording.folder)
        self._sent = _Kept(recording.folder)
        self._hash = hashlib.sha256()
        self._kept: Counter[tuple[Role, bool]] = Counter()  # frames from (True) and to each peer

    def __repr__(self) -> str:
        return f"View({self.role}, {self.recording.level.name}, {self.messages} messages)"

    def receive(self, sender: Role, tag: str, wave: int, data: bytes) -> None:
        """Note a frame that arrived.

        Raises:
            OutputError: SPOOL cannot write to its folder.
        """
        self.messages += 1
        self.received += len(data)
        if self.recording.level is Level.COUNTS or not self._keeps(sender, True):
            return
        self.shape.append((sender, tag, len(data), wave))
        self._hash.update(f"{sender}|{wave}|{len(data)}|".encode())
        self._hash.update(data)
        if self.recording.level >= Level.FULL:
            self._received.add(Frame(sender, wave, data))

    def send(self, to: Role, wave: int, data: bytes) -> None:
        """Note a frame that the role sent; kept where received frames are.

        Raises:
            OutputError: SPOOL cannot write to its folder.
        """
        if self.recording.level >= Level.FULL and self._keeps(to, False):
            self._sent.add(Frame(to, wave, data))

    def _keeps(self, peer: Role, received: bool) -> bool:
        self._kept[peer, received] += 1
        return self.recording.each is None or self._kept[peer, received] <= self.recording.each

    @property
    def digest(self) -> str:
        """SHA-256 over all frames received and kept, hexadecimal.

        Raises:
            ConfigError: only counts were recorded.
        """
        if self.recording.level is Level.COUNTS:
            raise ConfigError(
                f"the view of {self.role} was recorded at COUNTS; record at DIGEST or above"
            )
        return self._hash.hexdigest()

    def frames(self) -> Iterator[Frame]:
        """The frames kept, in the order of their arrival.

        Raises:
            ConfigError: the recording keeps no frames.
        """
        return iter(self._frames(self._received))

    def sent(self) -> Iterator[Frame]:
        """The frames kept of those that the role sent; ``peer`` is whom it sent them to.

        Raises:
            ConfigError: the recording keeps no frames.
        """
        return iter(self._frames(self._sent))

    def _frames(self, kept: _Kept) -> _Kept:
        if self.recording.level < Level.FULL:
            raise ConfigError(f"the view of {self.role} has no frames; record at FULL or SPOOL")
        return kept


Arrays = tuple[Array, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An update as its receiver holds it: clear, masked or noisy.

    Args:
        sender: whose update; None for a sum over several.
        round: training round, from 0.
        arrays: one array a model parameter, in the model's order.
        model: the model that it was made from, as far as the observer knows it.
        scale: the update is ``scale`` times a gradient (1 for gradients, the negative learning rate for changes of a model).
        steps: local steps behind it.
        batch_size: records behind each step of each sender.
        senders: how many senders are summed in it (their mean is what the arrays hold).
        noisy: it carries noise or a mask.
        clipped: its values were bounded one by one.
        seen: where only a part of the update was seen, one boolean array a parameter; elsewhere the arrays hold 0.
        squared_error: the loss behind it is the squared error, not cross-entropy.
        records: the records behind it, numbered through all owners' in turn, where the protocol's order says which.
    """

    sender: Role | None
    round: int
    arrays: Arrays = field(repr=False)
    model: Arrays = field(repr=False)
    scale: float = 1.0
    steps: int = 1
    batch_size: int = 1
    senders: int = 1
    noisy: bool = False
    clipped: bool = False
    seen: Arrays | None = field(default=None, repr=False)
    squared_error: bool = False
    records: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What an adversary that stands at a role can lay hands on.

    Args:
        updates: updates of single senders.
        aggregates: sums or means over several senders.
        outputs: models that it received: (round, arrays).
        intermediates: everything else: records, activations, shares: (name, array).
    """

    updates: tuple[Update, ...] = field(default=(), repr=False)
    aggregates: tuple[Update, ...] = field(default=(), repr=False)
    outputs: tuple[tuple[int, Arrays], ...] = field(default=(), repr=False)
    intermediates: tuple[tuple[str, Array], ...] = field(default=(), repr=False)

    @property
    def empty(self) -> bool:
        """True where there is nothing to attack: the only ground for "no access"."""
        return not (self.updates or self.aggregates or self.outputs or self.intermediates)

    def arrays(self) -> Iterator[Array]:
        """Every array in it."""
        for update in (*self.updates, *self.aggregates):
            yield from update.arrays
        for _, arrays in self.outputs:
            yield from arrays
        for _, array in self.intermediates:
            yield array


Views = Mapping[Role, View]
