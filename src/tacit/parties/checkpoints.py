"""Where a coordinator was: what it needs to go on after it was killed.

A coordinator saves its state before any message that depends on it leaves. After a restart it asks again what it had asked,
word for word, and a `tacit.parties.durable.DurableMember` that had answered gives the same answer again: nothing is drawn
or spent twice, and the run ends as if nothing had happened.

The file holds what the coordinator knows anyway: models, and what members sent. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tacit.core.cost import CostMeter
from tacit.core.errors import ConfigError, DataError, WireError
from tacit.core.files import make_folder, write_file
from tacit.core.wire import Message, decode, encode


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
        except WireError as error:
            raise DataError(
                f"the checkpoint {self.path} is damaged ({error}): remove it to begin anew"
            ) from error
        if about != self.about:
            raise ConfigError(
                f"the checkpoint {self.path} belongs to a run with other settings: give these settings again, another "
                "folder, or remove it to begin anew"
            )
        cost.add(kept)
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
        """The run is finished: there is nothing to go on with."""
        self.path.unlink(missing_ok=True)
