"""A member that survives being killed, and never answers twice.

Before a reply leaves, the member's state and that reply are durable. A request that comes again, byte for byte, gets the
same reply again; nothing is drawn or spent for it. So a coordinator that was killed can ask its last wave once more, and a
member that was killed goes on where it stood.

What is kept is sealed (AES-256-GCM, a random nonce each) under a key that does not lie beside it, and numbered: each entry
names the digest of the one before. The number of the newest is also kept apart from it (`Witness`), and the coordinator
remembers the highest that it met. A member whose state is older than either was restored from a backup: it could be made to
answer other challenges from the same secrets, so it answers nothing and must be enrolled anew, with a new key.

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

ANSWERS_ONCE = (
    "a member's state is durable before its reply leaves (tacit.parties.durable), so that nothing is answered twice; a "
    "member that was restored from a backup is enrolled anew"
)
"""What a claim assumes of members whose answers spend a secret or a budget."""

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
        text = _read(self.path)
        if text is None:
            return 0
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
        ConfigError: the key has not 32 bytes.
        DataError: the store or the witness cannot be read.
        OutputError: the witness lacks the newest number, and cannot be told.
        DecryptionFailed: what it holds was changed, sealed under another key, or belongs to something else.

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
    _unkept: bytes = field(init=False, default=b"", repr=False)  # an entry that is not durable yet

    def __post_init__(self) -> None:
        if self.key is None:
            return
        if len(self.key) != 32:
            raise ConfigError(f"a key of 32 bytes expected, got {len(self.key)}")
        entry, newest = self.store.load(), self.witness.number()
        if entry is not None:
            self._open(entry, self.key)
        if self.number < newest:
            raise CheatingDetected(
                f"the state that was found is of answer {self.number}, but {newest} were given: it was lost, or restored "
                "from a backup. Going on could tell the coordinator what one answer alone would not: enrol this member "
                "anew, with a new key, a new certificate and an empty state"
            )
        if self.number > newest:  # it was killed between the two, and its reply has not left so far
            self.witness.note(self.number)

    def handle(self, request: Message) -> Message:
        """The reply, once it and the state after it are durable; to the last request, the reply that it got before.

        Raises:
            OutputError: they cannot be kept. Nothing is answered before they are; the same request then gets this reply.
            ConfigError: another process has answered with the same state.
        """
        asked = hashlib.sha256(encode(request)).digest()
        if self._unkept:
            self._keep()
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
            self._unkept = self._entry(asked, reply, self.key)
        self._asked, self._reply = asked, reply
        if self._unkept:
            self._keep()
        else:
            self.number += 1
        return answer

    def _entry(self, asked: bytes, reply: bytes, key: bytes) -> bytes:
        number = self.number + 1
        plain = encode(Message("kept", state=self.member.export(), asked=asked, reply=reply))
        head = self._head(number, self._before)
        # Bound to what is sealed: coins from a seed, the same after every restart, do not give two entries one nonce.
        sealed = hashlib.sha256(head + plain).hexdigest()
        nonce = self.coins.child(f"entry {sealed}").bytes(_NONCE)
        return encode(
            Message(
                "entry",
                number=number,
                before=self._before,
                sealed=nonce + AESGCM(key).encrypt(nonce, plain, head),
            )
        )

    def _keep(self) -> None:
        found = self.store.load()
        digest = hashlib.sha256(found or b"").digest()
        if found is not None and found != self._unkept and digest != self._before:
            raise ConfigError(
                "another process has answered with this member's state in the meantime: end one of them"
            )
        self.store.save(self._unkept)
        self.witness.note(self.number + 1)
        self.number, self._before = self.number + 1, hashlib.sha256(self._unkept).digest()
        self._unkept = b""

    def _head(self, number: int, before: bytes) -> bytes:
        return encode(Message("head", about=self.about, number=number, before=before))

    def _open(self, entry: bytes, key: bytes) -> None:
        try:
            outer = decode(entry)
            if outer.tag != "entry" or len(outer.fields) != 3:
                raise WireError("no entry")
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
