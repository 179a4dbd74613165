"""A member that survives being killed, and never answers twice.

Before a reply leaves, the member's state and that reply are durable. A request that comes again, byte for byte, gets the
same reply again; nothing is drawn or spent for it. So a coordinator that was killed can ask its last wave once more, and a
member that was killed goes on where it stood.

What is kept is sealed (AES-256-GCM, a random nonce each) under a key that does not lie beside it, and numbered: each entry
names the digest of the one before. The number of the newest is also kept apart from it (`Witness`), and the coordinator
remembers the highest that it met. A member whose state is older than either was restored from a backup: it could be made to
answer other challenges from the same secrets, so it answers nothing and must be enrolled anew, with a new certificate.

**Leaks**: to who holds the store, the size of the state and the number of answers. A store and a witness that are both
restored from the same backup are told from the truth by the coordinator alone: against a coordinator that colludes with who
restored them, nothing helps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tacit.core.coins import Coins
from tacit.core.errors import (
    CheatingDetected,
    ConfigError,
    DataError,
    DecryptionFailed,
    TacitError,
    WireError,
)
from tacit.core.files import make_folder, write_file
from tacit.core.wire import Message, decode, encode
from tacit.parties.star import Member, refusal

_NONCE = 12


class Store(Protocol):
    """Where the newest entry of a member lies; it may be read and copied by others."""

    def load(self) -> bytes | None:
        """The newest entry, None before the first."""
        ...

    def save(self, entry: bytes) -> None:
        """Keep an entry; it is durable when this returns.

        Raises:
            OutputError: it cannot be kept; the one before still is.
        """
        ...


class Witness(Protocol):
    """Remembers how many entries a member has kept, apart from the store and its backups."""

    def number(self) -> int:
        """The number of the newest entry, 0 before the first."""
        ...

    def note(self, number: int) -> None:
        """Remember a number; durable when this returns.

        Raises:
            OutputError: it cannot be.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileStore:
    """A store in a file."""

    path: Path

    def load(self) -> bytes | None:
        """The newest entry.

        Raises:
            DataError: the file cannot be read.
        """
        return _read(self.path)

    def save(self, entry: bytes) -> None:
        """Keep an entry in place of the last one."""
        make_folder(self.path.parent, private=True)
        write_file(self.path, entry, private=True)


@dataclass(frozen=True, slots=True)
class FileWitness:
    """A witness in a file: it belongs where no backup of the store reaches, beside the member's key for instance."""

    path: Path

    def number(self) -> int:
        """The number of the newest entry.

        Raises:
            DataError: the file cannot be read, or holds no number.
        """
        text = _read(self.path) or b"0"
        if not text.strip().isdigit() or len(text) > 20:
            raise DataError(f"{self.path} holds no number: enrol this member anew")
        return int(text)

    def note(self, number: int) -> None:
        """Remember a number."""
        make_folder(self.path.parent, private=True)
        write_file(self.path, f"{number}\n", private=True)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


@dataclass(slots=True)
class _Forgetful:
    """A store and witness in memory: a member that starts over when its process ends."""

    entry: bytes | None = None
    newest: int = 0

    def load(self) -> bytes | None:
        return self.entry

    def save(self, entry: bytes) -> None:
        self.entry = entry

    def number(self) -> int:
        return self.newest

    def note(self, number: int) -> None:
        self.newest = number


@dataclass(slots=True)
class DurableMember:
    """A member whose state is durable before its reply leaves.

    Args:
        member: the member, as it is before its first message.
        key: 32 bytes that seal what is kept; None keeps the last reply in memory alone.
        about: what the entries belong to: the federation, the role, the settings.
        store: where the state lies.
        witness: remembers the number of the newest entry, apart from the store.
        coins: for nonces.

    Raises:
        CheatingDetected: the store is older than the witness: it was restored from a backup.
        ConfigError: what it holds belongs to something else.
        DecryptionFailed: it was changed, or sealed under another key.

    Attributes:
        number: of the newest entry: how many requests were answered. A coordinator remembers the highest.
    """

    member: Member
    key: bytes | None = field(default=None, repr=False)
    about: bytes = b""
    store: Store = field(default_factory=_Forgetful)
    witness: Witness = field(default_factory=_Forgetful)
    coins: Coins = field(default_factory=Coins)
    number: int = field(init=False, default=0)
    _before: bytes = field(init=False, default=bytes(32), repr=False)  # digest of the newest entry
    _asked: bytes = field(init=False, default=b"", repr=False)  # digest of the last request
    _reply: bytes = field(init=False, default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.key is None:
            return
        entry, newest = self.store.load(), self.witness.number()
        if entry is not None:
            self._open(entry, self.key)
        if self.number < newest:
            raise CheatingDetected(
                f"the state that was found is of answer {self.number}, but {newest} were given: it was lost, or restored "
                "from a backup. Going on could tell the coordinator what one answer alone would not: enrol this member "
                "anew, with a new certificate and an empty state"
            )

    def handle(self, request: Message) -> Message:
        """The reply, once it and the state after it are durable; to the last request, the reply that it got before."""
        asked = hashlib.sha256(encode(request)).digest()
        if asked == self._asked:
            return decode(self._reply)
        try:
            answer = self.member.handle(request)
        except (
            TacitError
        ) as error:  # the state may have changed, and this answer must not change either
            answer = refusal(error)
        try:
            reply = encode(answer)
        except WireError as error:
            raise WireError(f"an answer that cannot be sent: {error}") from error
        if self.key is not None:
            self._keep(asked, reply, self.key)
        else:
            self.number += 1
        self._asked, self._reply = asked, reply
        return answer

    def _keep(self, asked: bytes, reply: bytes, key: bytes) -> None:
        number = self.number + 1
        plain = encode(Message("kept", state=self.member.export(), asked=asked, reply=reply))
        head, nonce = self._head(number, self._before), self.coins.bytes(_NONCE)
        entry = encode(
            Message(
                "entry",
                number=number,
                before=self._before,
                sealed=nonce + AESGCM(key).encrypt(nonce, plain, head),
            )
        )
        self.store.save(entry)
        self.witness.note(number)
        self.number, self._before = number, hashlib.sha256(entry).digest()

    def _head(self, number: int, before: bytes) -> bytes:
        return encode(Message("head", about=self.about, number=number, before=before))

    def _open(self, entry: bytes, key: bytes) -> None:
        try:
            outer = decode(entry)
            number, before = outer.integer("number", low=1), outer.blob("before", length=32)
            sealed = outer.blob("sealed")
            head = self._head(number, before)
            inner = decode(AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], head))
            state, asked, reply = (inner.blob(name) for name in ("state", "asked", "reply"))
        except (InvalidTag, WireError, ValueError) as error:
            raise DecryptionFailed(
                "the state of this member does not open: it was damaged, sealed under another key, or belongs to another "
                "role, federation or other settings. Give the right folder, or enrol the member anew"
            ) from error
        self.member.restore(state)
        self.number, self._before = number, hashlib.sha256(entry).digest()
        self._asked, self._reply = asked, reply

    def export(self) -> bytes:
        """The state of the member alone."""
        return self.member.export()

    def restore(self, state: bytes) -> None:
        """Refused: its state comes from its store.

        Raises:
            ConfigError: always.
        """
        del state
        raise ConfigError("a durable member's state comes from its store; make it with that store")
