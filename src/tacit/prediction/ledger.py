"""What has been asked of a prediction endpoint, kept so that neither a restart nor a kill forgets it.

A ledger is one SQLite file. It holds, for every name, the records spent and the state of a token bucket; and a salt, drawn
once, under which an endpoint names its model. A charge looks at both limits and is committed in one transaction, before
the model is asked. It is never undone, whatever happens to the answer: an answer that was not paid for could have been read.

Several processes may serve from one file: a transaction takes the write lock before it reads. Another process that holds
it is waited for in short turns, for as long as the caller has patience; what has been spent is read without waiting for it.

A committed charge survives a process that is killed. It survives a power loss too where `durable` is set, at the cost of
a sync to disk a request; otherwise the last charges before the loss may be gone.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tacit.core.coins import Coins
from tacit.core.errors import BudgetExhausted, OutputError, StoreError
from tacit.core.files import make_folder

_TURN = 0.05  # seconds that the lock is waited for at a time
_FORMAT = 1  # in the file's user_version
_TABLES = """
CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, spent INTEGER NOT NULL, tokens REAL, at REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS salt (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Account:
    """What a name has used.

    Args:
        spent: records charged so far.
        tokens: records that its bucket holds; None where no rate was ever set.
    """

    spent: int = 0
    tokens: float | None = None


class LedgerBusy(StoreError):
    """Another process writes, for longer than there was patience; nothing was charged."""


class Ledger:
    """Counts the records that each name has asked about.

    Args:
        path: the file, made if it is not there; None keeps the ledger in memory, and a restart forgets it.
        durable: sync every charge to disk.
        clock: seconds since some fixed moment, the same for all processes and after a restart. A clock that goes back
            refills no bucket.
        patience: seconds to wait for another process that writes.

    Raises:
        OutputError: the file cannot be made or written.
        StoreError: it is not a ledger, or damaged.
    """

    def __init__(
        self, path: Path | None = None, *, durable: bool = False, clock: Callable[[], float] = time.time,
        patience: float = 5.0,
    ) -> None:  # fmt: skip
        self.durable = durable
        self._clock, self._lock, self._place = clock, threading.Lock(), path or ":memory:"
        self._patience, self._reading = patience, self._lock
        if path is not None:
            make_folder(path.parent, private=True)
            try:
                path.touch(mode=0o600)
            except OSError as error:
                raise OutputError(
                    f"{path} cannot be written ({error.strerror or error}): give another --state"
                ) from error
        try:
            self._base = sqlite3.connect(
                self._place, timeout=patience, isolation_level=None, check_same_thread=False
            )
            with self._reported():
                (version,) = self._base.execute("PRAGMA user_version").fetchone()
                (tables,) = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if version != _FORMAT and (version or tables):
                    raise StoreError(
                        f"{self._place} is not a ledger of an endpoint: give another file"
                    )
                self._base.execute("PRAGMA journal_mode = WAL")
                self._base.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._base.executescript(
                    f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_FORMAT}; COMMIT;"
                )
                self._base.execute(
                    "INSERT OR IGNORE INTO salt VALUES (1, ?)", (Coins("ledger").bytes(32),)
                )
                (self.salt,) = self._base.execute("SELECT value FROM salt").fetchone()
                turn = min(_TURN, patience)
                self._base.execute(f"PRAGMA busy_timeout = {int(1000 * turn)}")
                self._reader = self._base
                if path is not None:
                    self._reader = sqlite3.connect(
                        path, timeout=turn, isolation_level=None, check_same_thread=False
                    )
                    self._reader.execute("PRAGMA query_only = ON")
                    self._reading = threading.Lock()
        except BaseException:
            if hasattr(self, "_base"):
                self._base.close()
            raise

    def charge(
        self, name: str, records: int, *, budget: int | None = None, rate: float | None = None, burst: int | None = None,
        patience: float | None = None,
    ) -> float:  # fmt: skip
        """Count records against a name's limits; committed when this returns.

        Args:
            name: whose.
            records: how many, at least 1.
            budget: records that it may ask about in all; None for no limit.
            rate: records a minute; None for no limit.
            burst: records that the bucket holds when full; needed with a rate.
            patience: seconds to wait for another process that writes; None for those of the ledger.

        Returns:
            0 where they were charged. Else nothing was, and this is the seconds after which the bucket holds enough;
            infinite where it never will.

        Raises:
            BudgetExhausted: they would exceed the budget; nothing was charged.
            LedgerBusy: another process writes.
            StoreError: the file cannot be written; nothing was charged.
        """
        end = time.monotonic() + (self._patience if patience is None else patience)
        while True:
            try:
                return self._charge(name, records, budget, rate, burst)
            except LedgerBusy:
                if time.monotonic() >= end:
                    raise

    def _charge(
        self, name: str, records: int, budget: int | None, rate: float | None, burst: int | None
    ) -> float:
        with self._lock, self._reported():  # for a turn: others wait behind this lock
            self._base.execute("BEGIN IMMEDIATE")
            try:
                now = self._clock()
                spent, tokens, last = self._base.execute(
                    "SELECT spent, tokens, at FROM accounts WHERE name = ?", (name,)
                ).fetchone() or (0, None, now)
                if budget is not None and spent + records > budget:
                    raise BudgetExhausted(
                        f"{records} more records asked, {max(0, budget - spent)} of {budget} left: ask about fewer, or have "
                        "the budget raised"
                    )
                if rate is not None:
                    full = math.ceil(rate) if burst is None else burst
                    refilled = max(0.0, now - last) * rate / 60
                    tokens = full if tokens is None else min(full, tokens + refilled)
                    if records > tokens:
                        self._base.execute("ROLLBACK")
                        return math.inf if records > full else (records - tokens) * 60 / rate
                    tokens -= records
                self._base.execute(
                    "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)",
                    (name, spent + records, tokens, now),
                )
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise
        return 0.0

    def account(self, name: str) -> Account:
        """What a name has used so far; its bucket as it was at the last charge.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._reading, self._reported():
            found = self._reader.execute(
                "SELECT spent, tokens FROM accounts WHERE name = ?", (name,)
            ).fetchone()
        return Account(*found) if found else Account()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._base.close()
        with self._reading:
            self._reader.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            raise (LedgerBusy if busy else StoreError)(
                f"the ledger {self._place} cannot be used ({error}): free space, repair it, or give another"
            ) from error
