"""A store of correlations on disk: made on one day, used on others, and nothing twice, whenever the process is killed.

A folder holds the records, one correlation each and sealed (AES-256-GCM), and a mark: up to which number records may have
been used. The mark is durable before a record that it covers is handed out, so that a process that starts again, after
whatever end the last one had, goes on behind everything that has left. It covers many records at a time: the disk is waited
for rarely, and who is killed loses the rest of what was covered. `FileStore.close` puts the mark where the store stands.

Every record is bound to its number, its party, its plan and its filling, and the mark to the filling: what was damaged,
moved, cut, exchanged or lost is refused. What nobody can tell from the folder alone is that *all* of it, or its mark, is an
older copy of itself: a restored backup would hand out again what was used since. Against that stands the other party, whose
own mark is further: when the two begin, they tell each other where they are and go on from the further one
(`tacit.parties.two_party.session`), which skips what the backup would repeat. If both parties restore backups of the same
day, nothing notices, and masks are used twice: never restore a store, remove it and prepare a new one.

**Leaks**: to who reads the folder without the key, the plan's digest, the sizes of the records and how many were used. With
the key, records open even after their use, until `FileStore.remove`: the key belongs elsewhere than the folder.

**Source**: NIST SP 800-38D (AES-GCM); RFC 5869 (HKDF with SHA-256); RFC 2104 (HMAC).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, OutputError, StoreError, WireError
from tacit.core.files import alone, make_folder, sync_folder, write_file
from tacit.core.wire import Message, decode, encode, encode_view
from tacit.crypto.ring import Elements, Ring
from tacit.parties.two_party.correlations import Correlation, Field, Material, Plan
from tacit.parties.two_party.store import WINDOW, Preprocessor, check_skip, next_of

RESERVED = 64
"""So many records are marked as used at a time, if they are no more than 64 MB."""
SHARE = 64
"""But at least the store's size divided by this: in a large store the disk is waited for about so often, in all."""

_MAGIC = b"tacit/store/1\n"
_RECORDS, _DRAFT, _MARK, _LOCK = "records", "records.draft", "mark", "lock"
_RESERVED_BYTES = 1 << 26
_TAG = 16  # bytes that a seal adds
_LARGEST = (1 << 31) - 1 - _TAG  # what AES-GCM seals at once, in the library
_NAME = 16
_ANEW = "remove the store (FileStore.remove) and prepare a new one, together with the other party"


Progress = Callable[[int, int], None]
"""Told how many correlations are kept, and of how many."""


class _Head(NamedTuple):
    """What the records of a filling belong to; it stands before them.

    Args:
        party: 0 or 1.
        plan: its digest.
        correlations: how many.
        name: of the preprocessing.
        salt: of this filling: a preprocessing that is tried again under one name does not meet the same keys.
    """

    party: int
    plan: bytes
    correlations: int
    name: bytes
    salt: bytes

    def written(self) -> bytes:
        """As it stands in the file; of one length whatever it says."""
        return _MAGIC + encode(Message("store", **self._asdict()))

    @classmethod
    def read(cls, written: bytes) -> _Head:
        """What was written.

        Raises:
            WireError: it was something else.
        """
        if not written.startswith(_MAGIC):
            raise WireError(f"it does not begin with {_MAGIC!r}: another version, or no store")
        message = decode(written[len(_MAGIC) :])
        if message.tag != "store" or set(message.fields) != set(cls._fields):
            raise WireError("its head has other fields")
        return cls(
            message.integer("party", low=0, high=1),
            message.blob("plan", length=32),
            message.integer("correlations", low=0),
            message.blob("name", length=_NAME),
            message.blob("salt", length=32),
        )


_HEAD = len(_Head(0, bytes(32), 0, bytes(_NAME), bytes(32)).written())


class _Seal:
    """Seals and opens the records of one filling, and its mark."""

    def __init__(self, head: _Head, key: bytes) -> None:
        if len(key) != 32:
            raise ConfigError(f"a key of 32 bytes expected, got {len(key)}")
        info = b"tacit/store/1/" + bytes([head.party]) + head.name
        keys = HKDF(SHA256(), 64, head.salt, info).derive(key)
        self._records, self._mark = AESGCM(keys[:32]), keys[32:]
        self._digest = hashlib.sha256(head.written()).digest()

    def close(self, number: int, plain: bytes | memoryview) -> bytes:
        """A sealed record; each number is used once."""
        return self._records.encrypt(number.to_bytes(12), plain, self._about(number))

    def open(self, number: int, sealed: bytes) -> bytes:
        """What a record holds.

        Raises:
            InvalidTag: it is not that record.
        """
        return self._records.decrypt(number.to_bytes(12), sealed, self._about(number))

    def mark(self, used: int) -> bytes:
        """A mark: records up to that number, without it, may have been used."""
        return encode(Message("mark", used=used, seal=self._signed(used)))

    def marked(self, mark: bytes, count: int) -> int:
        """The number that a mark holds.

        Raises:
            WireError: it is no mark of this filling.
        """
        message = decode(mark)
        if message.tag != "mark" or set(message.fields) != {"used", "seal"}:
            raise WireError("no mark")
        used = message.integer("used", low=0, high=count)
        if not hmac.compare_digest(message.blob("seal"), self._signed(used)):
            raise WireError("the mark of another store, or changed")
        return used

    def _about(self, number: int) -> bytes:
        return self._digest + number.to_bytes(8)

    def _signed(self, used: int) -> bytes:
        return hmac.digest(self._mark, self._about(used), "sha256")


def _fields(correlation: Correlation, party: int) -> list[Field]:
    """What a party has of a correlation."""
    fields = (*correlation.free(), *correlation.derived())
    return [field for field in fields if field.owner in (None, party)]


def _dtype(field: Field, ring: Ring) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u8") if field.bits else ring.dtype


def _material(
    found: Mapping[str, object], correlation: Correlation, ring: Ring, party: int, number: int
) -> dict[str, Elements]:
    """A party's part of a correlation, if it is exactly what the correlation says.

    Raises:
        StoreError: it is not.
    """
    wanted = {f.name: (_dtype(f, ring), f.shape) for f in _fields(correlation, party)}
    out = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    came = {name: (value.dtype, value.shape) for name, value in out.items()}
    if came != wanted or len(out) != len(found):
        expected, got = (
            ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in sorted(of.items()))
            for of in (wanted, came)
        )
        raise StoreError(
            f"correlation {number}, {correlation}: party {party} has {expected or 'nothing'}, and {got or 'nothing'} came: "
            "it was made for another computation, or by another version; prepare anew"
        )
    return out


class FileStore:
    """A store of correlations in a folder; made by `fill`, and opened by `open` as often as there is something left.

    It is one process's as long as it is open, and ends with ``with`` or `close`. The arrays that it hands out are read-only.
    What is used stays in the file, sealed, and takes its space until `remove`.

    **Guarantee**: no record is handed out twice from a folder that is not put back to an earlier state, whenever its
    processes are killed and whenever the power fails, if the disk keeps what it says it has kept. What comes out is what was
    filled in, at its place in the plan, or a `StoreError` does.

    **Cost**: a record takes 8 bytes of index, a seal of 16 bytes and some 50 bytes of names and shapes more than its arrays.
    The disk is waited for once every `RESERVED` records (or 64 MB, if that is less), or once in a 64th of the store where
    that is more; a kill loses as much at most.

    Attributes:
        folder: where it is.
        plan: what it holds.
        name: of the preprocessing.
        party: whose it is.
    """

    def __init__(
        self, folder: Path, plan: Plan, head: _Head, seal: _Seal, records: BinaryIO,
        lengths: list[int], position: int, opened: ExitStack,
    ) -> None:  # fmt: skip
        self.folder, self.plan, self.name, self.party = folder, plan, head.name, head.party
        self._position = position
        self._marked = position  # what the mark says
        self._seal, self._records, self._opened = seal, records, opened
        self._starts = list(accumulate(lengths, initial=_HEAD))
        self._process = os.getpid()
        self._one_at_a_time = threading.Lock()
        self._is_open = True

    # --- filling

    @classmethod
    def fill(
        cls,
        folder: Path,
        preprocessor: Preprocessor,
        *,
        party: int,
        key: bytes,
        window: int = WINDOW,
        progress: Progress | None = None,
    ) -> None:
        """Have all correlations made and keep them, a window at a time.

        The store is there when this returns, whole and durable. Where it fails or is killed there is none, and what was
        written is of no use: begin anew, with a new preprocessing. The next filling removes it.

        Args:
            folder: for this store alone; made if it is not there, its user's alone.
            preprocessor: makes them.
            party: 0 or 1: whose part it makes.
            key: 32 bytes that seal the store (`tacit.parties.credentials.state_key`); not kept in the folder.
            window: bytes, about, that are made at a time and held in memory.
            progress: told after each window.

        Raises:
            ConfigError: the key, the party or the window is not what it must be, or another process is at work here.
            StoreError: there is a store already, or what was made is not what the plan says.
            OutputError: the disk is full, or the folder cannot be written.
        """
        plan = preprocessor.plan
        if party not in (0, 1) or window < 1:
            raise ConfigError(
                f"party 0 or 1 and a window of at least one byte expected, got {party} and {window}"
            )
        if len(preprocessor.name) != _NAME:
            raise ConfigError(
                f"a preprocessing has a name of {_NAME} bytes, not {len(preprocessor.name)}"
            )
        salt = Coins().bytes(32)
        head = _Head(party, plan.digest, len(plan.correlations), preprocessor.name, salt)
        seal = _Seal(head, key)
        make_folder(folder, private=True)
        with alone(folder / _LOCK, wait=False):
            if (folder / _RECORDS).exists():
                raise StoreError(
                    f"{folder} holds a store already, and it is not replaced: open it, give another folder, or remove it "
                    "(FileStore.remove)"
                )
            _remove_rest(folder)
            _require_room(folder, plan, party)
            draft = folder / _DRAFT
            try:
                with _new(draft) as file:
                    _write(file, draft, _parts(preprocessor, head, seal, window, progress))
                # The mark first: a store without one is refused.
                write_file(folder / _MARK, seal.mark(0), private=True)
                with _writing(folder / _RECORDS):
                    os.replace(draft, folder / _RECORDS)
                    sync_folder(folder)
            finally:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)

    # --- opening

    @classmethod
    def open(cls, folder: Path, plan: Plan, *, party: int, key: bytes) -> Self:
        """Open a store, where it was left.

        Args:
            folder: of the store.
            plan: of the computation that begins.
            party: 0 or 1.
            key: the one that it was filled with.

        Raises:
            StoreError: there is no store, or it is damaged, of another plan, party or key, or it cannot be told how far it
                was used.
            ConfigError: the key has not 32 bytes, or another process has the store open.
        """
        with _reading(folder):
            there, begun = ((folder / name).exists() for name in (_RECORDS, _DRAFT))
        if not there:
            raise StoreError(
                f"{folder} holds no store of correlations"
                + (": its filling is under way, or did not end" if begun else "")
                + "; fill one (FileStore.fill), or give another folder"
            )
        with ExitStack() as opened:
            opened.enter_context(alone(folder / _LOCK, wait=False))
            with _reading(folder / _RECORDS):
                records = opened.enter_context((folder / _RECORDS).open("rb"))
            head = _read_head(folder, records, plan, party)
            seal = _Seal(head, key)
            lengths = _read_index(folder, records, head, seal)
            position = _read_mark(folder, head, seal)
            return cls(folder, plan, head, seal, records, lengths, position, opened.pop_all())

    # --- using

    @property
    def position(self) -> int:
        """The number of the next correlation."""
        return self._position

    def take(self, wanted: Correlation) -> tuple[int, Material]:
        """The next correlation's number and this party's part of it; that it is used is durable before.

        Raises:
            StoreError: the next one is another than wanted, or there is none, or it is damaged, or the store is closed.
            OutputError: it cannot be made durable that it is used; nothing is handed out.
        """
        with self._one_at_a_time:
            self._require_open()
            number = self._position
            next_of(self.plan, number, wanted)
            if number >= self._marked:
                self._mark(self._reserved(number))
            material = self._read(number)
            self._position = number + 1
        return number, material

    def skip_to(self, position: int) -> None:
        """Go on at that number; it is durable that what lies before it counts as used.

        Raises:
            StoreError: it lies behind, or beyond the end, or the store is closed.
            OutputError: it cannot be made durable; the store stays where it is.
        """
        with self._one_at_a_time:
            self._require_open()
            check_skip(self.plan, self._position, position)
            if position > self._marked:
                self._mark(position)
            self._position = position

    def close(self) -> None:
        """Keep exactly how far the store was used, and let others open it. Closing twice does nothing.

        Raises:
            OutputError: it cannot be kept; some records that are not used will count as used.
        """
        with self._one_at_a_time:
            if not self._is_open:
                return
            self._is_open = False
            with self._opened:
                # A process that was forked from the one that opened the store does not know how far that one is.
                if self._position != self._marked and os.getpid() == self._process:
                    self._mark(self._position)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        used = f"{self._position} of {len(self.plan.correlations)} used"
        return (
            f"FileStore({str(self.folder)!r}, party {self.party}, {used}"
            f"{'' if self._is_open else ', closed'})"
        )

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove a store, used up or not. The folder stays, with the empty file that is its lock.

        The disk is not overwritten: what lay there opens to who finds it and has the key.

        Raises:
            ConfigError: another process is at work here.
            OutputError: it cannot be removed.
        """
        if any((folder / name).exists() for name in (_RECORDS, _DRAFT, _MARK)):
            with alone(folder / _LOCK, wait=False):
                with _writing(folder / _RECORDS):
                    (folder / _RECORDS).unlink(missing_ok=True)
                    sync_folder(folder)  # before the mark: no records without one
                _remove_rest(folder)

    def _require_open(self) -> None:
        if not self._is_open:
            raise StoreError(f"the store {self.folder} is closed: open it again")
        if os.getpid() != self._process:
            raise StoreError(
                f"the store {self.folder} belongs to the process that opened it, and this one was forked from it: both "
                "would use the same correlations"
            )

    def _reserved(self, number: int) -> int:
        """Up to where records are marked as used, from that one on."""
        count = len(self.plan.correlations)
        stop, end = number + 1, min(number + RESERVED, count)
        while stop < end and self._starts[stop + 1] - self._starts[number] <= _RESERVED_BYTES:
            stop += 1
        return min(max(stop, number + count // SHARE), count)

    def _mark(self, used: int) -> None:
        write_file(self.folder / _MARK, self._seal.mark(used), private=True)
        self._marked = used

    def _read(self, number: int) -> dict[str, Elements]:
        path, start = self.folder / _RECORDS, self._starts[number]
        with _reading(path):
            self._records.seek(start)
            sealed = self._records.read(self._starts[number + 1] - start)
        try:
            message = decode(self._seal.open(number, sealed))
        except (InvalidTag, ValueError, WireError) as error:
            raise StoreError(
                f"correlation {number} in {path} is damaged, or another's: {_ANEW}"
            ) from error
        wanted = self.plan.correlations[number]
        return _material(message.fields, wanted, self.plan.ring, self.party, number)


def _parts(
    preprocessor: Preprocessor, head: _Head, seal: _Seal, window: int, progress: Progress | None
) -> Iterator[bytes]:
    """What the file holds: the head, the records, and the index, which is their lengths, sealed."""
    yield head.written()
    lengths = []
    for numbers in preprocessor.plan.windows(window):
        for record in _sealed(preprocessor, numbers, head.party, seal):
            lengths.append(len(record))
            yield record
        if progress is not None:
            progress(numbers.stop, head.correlations)
    yield seal.close(head.correlations, np.array(lengths, "<u8").tobytes())


def _write(file: BinaryIO, path: Path, parts: Iterator[bytes]) -> None:
    """Write the parts, durably. What is raised where they are made is not the file's."""
    for part in parts:
        with _writing(path):
            file.write(part)
    with _writing(path):
        file.flush()
        os.fsync(file.fileno())


def _sealed(preprocessor: Preprocessor, numbers: range, party: int, seal: _Seal) -> Iterator[bytes]:
    """The sealed records of a window."""
    plan = preprocessor.plan
    materials = preprocessor.prepare(numbers)
    if len(materials) != len(numbers):
        raise StoreError(
            f"{len(numbers)} correlations were to be made, and {len(materials)} came: prepare anew"
        )
    for number, material in zip(numbers, materials, strict=True):
        arrays = _material(material, plan.correlations[number], plan.ring, party, number)
        try:
            plain = encode_view(Message("record", **arrays))
        except WireError as error:
            raise StoreError(f"correlation {number} cannot be kept: {error}") from error
        if len(plain) > _LARGEST:
            raise StoreError(
                f"correlation {number} of {len(plain)} bytes is too large to be kept: use smaller batches"
            )
        yield seal.close(number, plain)


def _read_head(folder: Path, records: BinaryIO, plan: Plan, party: int) -> _Head:
    path = folder / _RECORDS
    with _reading(path):
        written = records.read(_HEAD)
    try:
        head = _Head.read(written)
    except WireError as error:
        raise StoreError(f"{path} is no store, or damaged ({error}): {_ANEW}") from error
    if head.party != party:
        raise StoreError(
            f"{folder} is the store of party {head.party}, and party {party} opens it: give the right folder"
        )
    if head.plan != plan.digest or head.correlations != len(plan.correlations):
        raise StoreError(
            f"{folder} holds {head.correlations} correlations for another computation than this one, which has "
            f"{len(plan.correlations)}: give the folder, or the settings, that it was prepared for, or prepare a new store"
        )
    return head


def _read_index(folder: Path, records: BinaryIO, head: _Head, seal: _Seal) -> list[int]:
    """The lengths of the records, if the file is as long as they say. That they open shows that key and head are right."""
    path, length = folder / _RECORDS, 8 * head.correlations + _TAG
    with _reading(path):
        size = records.seek(0, os.SEEK_END)
        records.seek(max(size - length, 0))
        sealed = records.read(length)
    try:
        index = seal.open(head.correlations, sealed)
    except (InvalidTag, ValueError) as error:
        raise StoreError(
            f"{path} does not open: it was sealed under another key, or it is damaged. Give the key that it was filled "
            f"with; or {_ANEW}"
        ) from error
    lengths: list[int] = np.frombuffer(index, "<u8").tolist()
    if _HEAD + sum(lengths) + length != size:
        raise StoreError(f"{path} has not the length that it must have, it is damaged: {_ANEW}")
    return lengths


def _read_mark(folder: Path, head: _Head, seal: _Seal) -> int:
    path = folder / _MARK
    try:
        return seal.marked(path.read_bytes(), head.correlations)
    except (OSError, WireError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StoreError(
            f"{path} does not say how far the store was used ({why}), and no correlation may be used twice: {_ANEW}"
        ) from error


def _remove_rest(folder: Path) -> None:
    """Remove the mark, and what a killed process left: drafts."""
    with _writing(folder):
        for path in (folder / _DRAFT, folder / _MARK, *folder.glob(f".{_MARK}.*")):
            path.unlink(missing_ok=True)


def _require_room(folder: Path, plan: Plan, party: int) -> None:
    """Before hours are spent on what does not fit."""
    needed = sum(
        prod(field.shape) * _dtype(field, plan.ring).itemsize
        for correlation in plan.correlations
        for field in _fields(correlation, party)
    )
    with _writing(folder):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the store takes {needed / 1e9:.3g} GB, and {folder} has {free / 1e9:.3g} GB left: free space, or give another"
        )


@contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    """A new file, its user's alone."""
    with _writing(path):
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    try:
        yield file
    finally:
        with suppress(OSError):  # after a failure the rest cannot be written either
            file.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): free space, change its rights, or choose another folder"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read ({error.strerror or error}): give the right folder; if it is lost, {_ANEW}"
        ) from error
