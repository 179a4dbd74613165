"""Where a coordinator was: what it needs to go on after it was killed.

A coordinator saves its state before any message that depends on it leaves. After a restart it asks again what it had asked,
word for word, and a `tacit.parties.durable.DurableMember` that had answered gives the same answer again: nothing is drawn
or spent twice, and the run ends as if nothing had happened.

The file holds what the coordinator knows anyway: models, and what members sent. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tacit.core.cost import CostMeter
from tacit.core.errors import ConfigError, DataError, OutputError, WireError
from tacit.core.files import make_folder, write_file
from tacit.core.wire import Message, decode, encode
from tacit.parties.roles import Role
from tacit.parties.star import Member


class Checkpoint(Protocol):
    """Keeps the newest state of a coordinator."""

    def load(self, cost: CostMeter) -> Message | None:
        """The state that was saved last, None where there is none; adds what the run had cost by then to ``cost``."""
        ...

    def save(self, state: Message, cost: CostMeter) -> None:
        """Keep a state, and what the run has cost so far, in place of the last one.

        Raises:
            OutputError: it cannot be kept; the last one still is.
        """
        ...


class _Nothing:
    """Keeps nothing."""

    def load(self, cost: CostMeter) -> Message | None:
        del cost
        return None

    def save(self, state: Message, cost: CostMeter) -> None:
        del state, cost


NOTHING: Checkpoint = _Nothing()
"""A run that starts over when it is killed."""


@dataclass(slots=True)
class FileCheckpoint:
    """A checkpoint in a file.

    Args:
        path: of the file; its folder is made.
        about: a digest of everything that must be the same for a run to go on.
    """

    path: Path
    about: bytes

    def load(self, cost: CostMeter) -> Message | None:
        """The state that was saved last.

        Raises:
            ConfigError: it was saved by a run with other settings.
            DataError: the file is damaged.
        """
        try:
            whole = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"the checkpoint {self.path} cannot be read ({error})") from error
        seal, frame = whole[:32], whole[32:]
        try:
            if hashlib.sha256(frame).digest() != seal:
                raise WireError("its digest is another")
            kept = decode(frame)
            about, state = kept.blob("about"), decode(kept.blob("state"))
            if about == self.about:
                cost.add(kept)
        except WireError as error:
            raise DataError(
                f"the checkpoint {self.path} is damaged ({error}): remove it to begin anew"
            ) from error
        if about != self.about:
            raise ConfigError(
                f"the checkpoint {self.path} belongs to a run with other settings: give these settings again, another "
                "folder, or remove it to begin anew"
            )
        return state

    def save(self, state: Message, cost: CostMeter) -> None:
        """Keep a state in place of the last one.

        Raises:
            OutputError: it cannot be written; the last one is still there.
        """
        make_folder(self.path.parent, private=True)
        frame = encode(
            Message("checkpoint", about=self.about, state=encode(state), **cost.fields())
        )
        write_file(self.path, hashlib.sha256(frame).digest() + frame, private=True)

    def remove(self) -> None:
        """The run is finished: there is nothing to go on with.

        Raises:
            OutputError: it cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"the checkpoint {self.path} cannot be removed ({error.strerror or error}): remove it, or the next run "
                "goes on with it"
            ) from error


Keep = Callable[[Mapping[Role, Member]], Checkpoint]
"""What makes the checkpoint of a run whose parties are all in this process."""


def keep_nothing(members: Mapping[Role, Member]) -> Checkpoint:
    """Begin anew when killed."""
    del members
    return NOTHING


@dataclass(slots=True)
class Snapshot:
    """All parties of one process at once: the coordinator's state and its members', every few seconds.

    Nothing that they said to each other has left the process, so that all may go back to the same moment together.

    Args:
        file: where it is kept.
        members: by role.
        every: seconds between two snapshots.
    """

    file: FileCheckpoint
    members: Mapping[Role, Member]
    every: float = 2.0
    _last: float = field(init=False, default_factory=time.monotonic)

    @classmethod
    def of(cls, file: FileCheckpoint, *, every: float = 2.0) -> Keep:
        """Snapshots in a file, once the members are known."""
        return lambda members: cls(file, members, every)

    def load(self, cost: CostMeter) -> Message | None:
        """The coordinator's state; the members' are restored.

        Raises:
            ConfigError: it is of a run with other settings.
            DataError: the file is damaged.
        """
        if (kept := self.file.load(cost)) is None:
            return None
        states = kept.fields.get("members")
        if not isinstance(states, list) or len(states) != len(self.members):
            raise DataError(f"{self.file.path} is no snapshot of {len(self.members)} members")
        for (_, member), state in zip(sorted(self.members.items()), states, strict=True):
            if isinstance(state, bytes):
                member.restore(state)
        return decode(kept.blob("coordinator"))

    def save(self, state: Message, cost: CostMeter) -> None:
        """Keep a snapshot, if the last one is old enough.

        Raises:
            OutputError: it cannot be written; the last one is still there.
        """
        if time.monotonic() - self._last < self.every:
            return
        states = [member.export() for _, member in sorted(self.members.items())]
        snapshot = Message("snapshot", coordinator=encode(state), members=states)
        self.file.save(snapshot, cost)
        self._last = time.monotonic()
