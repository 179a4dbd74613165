"""Spent budgets and rates: counted once, whatever happens to the process."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tacit.core.errors import BudgetExhausted, OutputError, StoreError
from tacit.prediction.ledger import Account, Ledger, LedgerBusy


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_is_spent_record_by_record_and_no_further() -> None:
    ledger = Ledger()
    assert ledger.account("a") == Account()
    assert ledger.charge("a", 7, budget=10) == 0
    with pytest.raises(BudgetExhausted, match="4 more records asked, 3 of 10 left"):
        ledger.charge("a", 4, budget=10)
    assert ledger.account("a").spent == 7  # a refusal is free
    ledger.charge("a", 3, budget=10)
    ledger.charge("b", 5)
    assert (ledger.account("a").spent, ledger.account("b").spent) == (10, 5)
    with pytest.raises(BudgetExhausted, match="0 of 5 left"):
        ledger.charge("a", 1, budget=5)  # it was lowered


def test_a_bucket_holds_a_burst_and_refills_by_the_clock() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    limits = {"rate": 60.0, "burst": 10}
    assert ledger.charge("a", 10, **limits) == 0
    assert ledger.charge("a", 2, **limits) == pytest.approx(2)
    clock.now += 1.5
    assert ledger.charge("a", 2, **limits) == pytest.approx(0.5)
    clock.now += 0.5
    assert ledger.charge("a", 2, **limits) == 0
    assert ledger.charge("a", 11, **limits) == math.inf  # no pause is long enough
    clock.now += 1e6
    assert ledger.charge("a", 10, **limits) == 0
    assert ledger.charge("a", 1, **limits) > 0  # it held ten, and no more
    clock.now -= 500  # a clock that goes back refills nothing
    assert ledger.charge("a", 1, **limits) > 0
    assert ledger.account("a").spent == 22


def test_what_the_rate_refuses_is_not_charged_to_the_budget() -> None:
    ledger = Ledger(clock=Clock())
    ledger.charge("a", 5, budget=100, rate=1.0, burst=5)
    assert ledger.charge("a", 5, budget=100, rate=1.0, burst=5) == pytest.approx(300)
    assert ledger.account("a").spent == 5


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "state" / "ledger"
    ledger = Ledger(path, clock=clock)
    ledger.charge("a", 8, budget=10, rate=60.0, burst=9)
    salt = ledger.salt
    ledger.close()
    clock.now += 2
    ledger = Ledger(path, clock=clock)
    assert ledger.salt == salt and ledger.account("a").spent == 8
    assert ledger.charge("a", 2, budget=10, rate=60.0, burst=9) == 0
    assert ledger.charge("a", 2, rate=60.0, burst=9) == pytest.approx(1)
    assert path.stat().st_mode & 0o077 == 0


def _charge(path: Path, times: int, done: multiprocessing.Queue) -> None:
    ledger, charged = Ledger(path, patience=30), 0
    for _ in range(times):
        try:
            charged += ledger.charge("a", 3, budget=200) == 0
        except BudgetExhausted:
            break
    done.put(charged)


def test_processes_that_share_a_file_never_spend_more_than_there_is(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    path = tmp_path / "ledger"
    Ledger(path).close()
    workers = [context.Process(target=_charge, args=(path, 100, done)) for _ in range(3)]
    for worker in workers:
        worker.start()
    charged = sum(done.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert charged == 66 and Ledger(path).account("a").spent == 198


KILLED = """
import sys
import threading
import time
from pathlib import Path
from tacit.prediction.ledger import Ledger, LedgerBusy
ledger = Ledger(Path(sys.argv[1]))
while True:
    ledger.charge("a", 1)
    sys.stdout.write("x")
    sys.stdout.flush()
"""


def test_a_killed_process_has_counted_every_record_that_it_told_of(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE
    ) as process:
        told = process.stdout.read(200)
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.read()
    assert len(told) <= Ledger(path).account("a").spent <= len(told) + 1


def test_durable_syncs_each_charge(tmp_path: Path) -> None:
    for durable, level in ((False, 1), (True, 2)):
        ledger = Ledger(tmp_path / f"{durable}", durable=durable)
        assert ledger._base.execute("PRAGMA synchronous").fetchone() == (level,)
        assert ledger._base.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_is_no_ledger_is_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("not a database, but long enough to be looked at" * 30)
    with pytest.raises(StoreError, match="cannot be used"):
        Ledger(text)
    base = sqlite3.connect(other)
    base.execute("CREATE TABLE mine (x)")
    base.commit()
    base.close()
    with pytest.raises(StoreError, match="not a ledger"):
        Ledger(other)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        Ledger(tmp_path / "file" / "ledger")


def test_a_charge_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, patience=0.05)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            ledger.charge("a", 1)
        other.execute("ROLLBACK")
    other.close()
    assert ledger.charge("a", 1) == 0 and ledger.account("a").spent == 1


def test_a_process_that_holds_the_file_is_waited_for_as_long_as_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, patience=20)
    ledger.charge("a", 2)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with pytest.raises(LedgerBusy, match="locked"):
        ledger.charge("a", 1, patience=0.05)
    assert ledger.account("a").spent == 2 and time.monotonic() - begun < 2
    threading.Timer(0.3, other.execute, ("ROLLBACK",)).start()
    assert ledger.charge("a", 1) == 0 and ledger.account("a").spent == 3
    other.close()
    ledger.close()
