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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, OutputError
from tacit.core.wire import Array, Message, Value, decode
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
        level: COUNTS keeps numbers only (flat in memory); DIGEST adds a SHA-256 over all frames; FULL keeps the frames in
            memory; SPOOL writes them to files and reads them back one at a time.
        waves: of FULL and SPOOL, keep the frames of the first so many waves (pair protocols: messages) only.
        folder: where SPOOL writes.
    """

    level: Level = Level.COUNTS
    waves: int | None = None
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
class View:
    """Everything a role received, with its own inputs and coins.

    Args:
        role: whose view it is.
        recording: what is kept.

    Attributes:
        messages: frames received.
        received: encoded bytes received.
        shape: (sender, tag, bytes, wave) of each frame received, in order; kept from DIGEST on. Two runs that differ only
            in another party's secrets must agree on it exactly.
        inputs: the role's own inputs, as far as the protocol notes them.
        coins: the role's own coins, as far as the protocol notes them.

    The frames that the role sent are kept beside those that it received: they follow from its inputs and coins, and an
    adversary there knows them (a participant its own update, a server the model that it handed out).
    """

    role: Role
    recording: Recording = COUNTS
    messages: int = 0
    received: int = 0
    shape: list[tuple[Role, str, int, int]] = field(default_factory=list, repr=False)
    inputs: dict[str, Value] = field(default_factory=dict, repr=False)
    coins: Coins | None = None
    _frames: list[Frame] = field(default_factory=list, repr=False)
    _sent: list[Frame] = field(default_factory=list, repr=False)
    _spooled: list[tuple[Role, int, int, int]] = field(default_factory=list, repr=False)
    _file: BinaryIO | None = field(default=None, repr=False)
    _hash: hashlib._Hash | None = field(default=None, repr=False)

    def receive(self, sender: Role, tag: str, wave: int, data: bytes) -> None:
        """Note a frame that arrived.

        Raises:
            OutputError: SPOOL cannot write to its folder.
        """
        self.messages += 1
        self.received += len(data)
        level = self.recording.level
        if level is Level.COUNTS:
            return
        self.shape.append((sender, tag, len(data), wave))
        if self._hash is None:
            self._hash = hashlib.sha256()
        self._hash.update(f"{sender}|{wave}|{len(data)}|".encode() + data)
        if level is Level.DIGEST or not self._keeps(wave):
            return
        if level is Level.FULL:
            self._frames.append(Frame(sender, wave, data))
        else:
            self._spool(sender, wave, data)

    def send(self, to: Role, wave: int, data: bytes) -> None:
        """Note a frame that the role sent; kept in memory, and only where received frames are kept."""
        if self.recording.level >= Level.FULL and self._keeps(wave):
            self._sent.append(Frame(to, wave, data))

    def _keeps(self, wave: int) -> bool:
        return self.recording.waves is None or wave < self.recording.waves

    def sent(self) -> Iterator[Frame]:
        """The frames kept of those that the role sent; ``peer`` is whom it sent them to."""
        yield from self._sent

    def _spool(self, sender: Role, wave: int, data: bytes) -> None:
        try:
            if self._file is None:
                folder = self.recording.folder or Path()
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder, prefix=f"{self.role.kind}-")  # noqa: SIM115
            start = self._file.seek(0, 2)
            self._file.write(data)
            self._file.flush()  # a full disk shows here, not at a later read
        except OSError as error:
            raise OutputError(
                f"the view of {self.role} cannot be spooled to {self.recording.folder}: {error.strerror}; "
                "give a folder that can be written to and has room"
            ) from error
        self._spooled.append((sender, wave, start, len(data)))

    def __del__(self) -> None:
        if (file := getattr(self, "_file", None)) is not None:
            with contextlib.suppress(OSError):  # of a disk that was full
                file.close()

    @property
    def digest(self) -> str:
        """SHA-256 over all frames received, hexadecimal.

        Raises:
            ConfigError: only counts were recorded.
        """
        if self.recording.level is Level.COUNTS:
            raise ConfigError(
                f"the view of {self.role} was recorded at COUNTS; record at DIGEST or above"
            )
        return (self._hash or hashlib.sha256()).hexdigest()

    def frames(self) -> Iterator[Frame]:
        """The frames kept, in the order of their arrival.

        Raises:
            ConfigError: the recording keeps no frames.
        """
        if self.recording.level < Level.FULL:
            raise ConfigError(f"the view of {self.role} has no frames; record at FULL or SPOOL")
        yield from self._frames
        for sender, wave, start, length in self._spooled:
            if self._file is not None:
                self._file.seek(start)
                yield Frame(sender, wave, self._file.read(length))


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
