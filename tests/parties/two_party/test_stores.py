"""Stores of correlations: each once, in order, and the one on disk through kills, power cuts, full disks and damage."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import stat
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tacit.core import files
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, OutputError, StoreError
from tacit.core.wire import decode
from tacit.crypto.circuits import sign_of_sum
from tacit.crypto.ring import Z32, Z64
from tacit.parties.two_party import file_store
from tacit.parties.two_party.correlations import (
    CircuitMasks,
    DaBits,
    Elementwise,
    Field,
    Mask,
    MatMul,
    Part,
    Plan,
    Product,
    Selection,
    Square,
)
from tacit.parties.two_party.file_store import FileStore
from tacit.parties.two_party.store import MemoryStore, StreamedStore

KEY = bytes(range(32))
MIXED = Plan(
    Z64,
    13,
    (
        Mask("x", (4, 3)),
        Product(MatMul(), Part("x", (4, 3), 0, 2), (3, 2)),
        Square((5,)),
        Square((5,)),
        CircuitMasks(sign_of_sum(4), 2),
        Selection(70),
        DaBits(3),
        Product(Elementwise(), (2, 2), (2, 2)),
    ),
)
"""One of each kind, and two that are equal."""


@dataclass(frozen=True)
class Blob:
    """Many bytes, and some that one party alone has."""

    words: int
    owned: int = 0

    def free(self):
        """Shared, and each party's own."""
        own = [Field(f"own{i}", (self.owned,), bits=True, owner=i) for i in (0, 1)]
        return Field("a", (self.words,)), *own

    def derived(self):
        """Nothing."""
        return ()

    def derive(self, ring, free, masks):
        """Nothing."""
        raise NotImplementedError


def blobs(count, words=1, ring=Z64):
    return Plan(ring, 13, (Blob(words),) * count)


class Fake:
    """Makes a party's part of a plan from a seed: the same for every store, so that a test can tell what must come out."""

    def __init__(self, plan=MIXED, party=0, name=b"0123456789abcdef", spoil=None):
        self.plan, self.party, self.name, self.spoil = plan, party, name, spoil
        self.made = []

    def material(self, number):
        coins = Coins.from_seed(b"stores").child(f"{self.party} {number}")
        correlation, ring = self.plan.correlations[number], self.plan.ring
        return {
            field.name: (Z64 if field.bits else ring).uniform(coins.child(field.name), field.shape)
            for field in (*correlation.free(), *correlation.derived())
            if field.owner in (None, self.party)
        }

    def prepare(self, numbers):
        assert not self.made or self.made[-1].stop <= numbers.start  # each once, in order
        self.made.append(numbers)
        materials = [self.material(number) for number in numbers]
        return materials if self.spoil is None else self.spoil(materials)


def same(material, other):
    return material.keys() == other.keys() and all(
        value.dtype == other[name].dtype
        and value.shape == other[name].shape
        and (value == other[name]).all()
        for name, value in material.items()
    )


def taken(store, fake, count=None):
    """Take so many, or all, and check what comes; the numbers."""
    stop = len(fake.plan.correlations) if count is None else store.position + count
    numbers = []
    while store.position < stop:
        number, material = store.take(fake.plan.correlations[store.position])
        assert same(material, fake.material(number))
        numbers.append(number)
    return numbers


def filled(folder, fake=None, key=KEY, **more):
    """A folder with a store in it."""
    fake = fake or Fake()
    FileStore.fill(folder, fake, party=fake.party, key=key, **more)
    return folder


def opened(folder, fake=None, key=KEY):
    fake = fake or Fake()
    return FileStore.open(folder, fake.plan, party=fake.party, key=key)


def used(mark: Path | bytes):
    """What a mark says."""
    return decode(mark if isinstance(mark, bytes) else mark.read_bytes()).integer("used")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def small_steps(monkeypatch):
    """Two records are reserved at a time."""
    monkeypatch.setattr(file_store, "RESERVED", 2)


@pytest.fixture
def no_sync(monkeypatch):
    """For tests that are not about power cuts."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# --- every store

KINDS = ("memory", "streamed", "streamed at once", "file")


@pytest.fixture(params=KINDS)
def make(request, tmp_path):
    """Makes a store of one kind of what a preprocessor makes."""
    folders = (tmp_path / f"store {number}" for number in itertools.count())
    with ExitStack() as left:
        left.enter_context(mock.patch.object(os, "fsync", lambda handle: None))

        def one(fake):
            store = made(request.param, fake, next(folders))
            return left.enter_context(store) if isinstance(store, FileStore) else store

        yield one


def made(kind, fake, place):
    if kind == "memory":
        return MemoryStore.filled(fake)
    if kind.startswith("streamed"):
        return StreamedStore(fake, 200) if kind == "streamed" else StreamedStore(fake)
    return opened(filled(place, fake, window=200), fake)


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("ring", [Z64, Z32])
def test_all_come_in_order_and_then_no_more(make, party, ring):
    fake = Fake(Plan(ring, 13, MIXED.correlations), party)
    store = make(fake)
    assert store.plan == fake.plan and store.name == fake.name and store.position == 0
    assert taken(store, fake) == list(range(8))
    assert store.position == 8
    for wanted in (MIXED.correlations[0], MIXED.correlations[7]):
        with pytest.raises(
            StoreError, match=r"all 8 correlations of the store are used up.*prepare more"
        ):
            store.take(wanted)
    assert store.position == 8


def test_two_equal_correlations_are_two(make):
    store = make(Fake(blobs(5)))
    numbers, values = zip(*(store.take(Blob(1)) for _ in range(5)), strict=True)
    assert numbers == tuple(range(5)) and len({int(value["a"][0]) for value in values}) == 5


def test_another_correlation_is_not_given_and_nothing_is_used(make):
    fake = Fake()
    store = make(fake)
    taken(store, fake, 2)
    for wanted in (Square((4,)), DaBits(3), Mask("x", (4, 3)), Mask("y", (4, 3))):
        with pytest.raises(
            StoreError, match=r"correlation 2 of the plan is Square.*another computation"
        ):
            store.take(wanted)
        assert store.position == 2
    assert taken(store, fake) == list(range(2, 8))


@pytest.mark.parametrize("before", [0, 2, 5, 8])
def test_it_goes_on_where_it_is_told_to(make, before):
    for to in range(9):
        fake = Fake()
        store = make(fake)
        taken(store, fake, before)
        if to < before:
            said = f"at correlation {before} of 8 cannot go on at {to}"
            with pytest.raises(StoreError, match=said):
                store.skip_to(to)
        else:
            store.skip_to(to)
        at = max(before, to)
        assert store.position == at
        for beyond in (9, 1 << 70, -1):
            with pytest.raises(StoreError, match="cannot go on"):
                store.skip_to(beyond)
        assert taken(store, fake) == list(range(at, 8))


def test_what_it_shows_of_itself_is_no_secret(make):
    fake = Fake()
    store = make(fake)
    taken(store, fake, 3)
    assert "3 of 8 used" in repr(store) and len(repr(store)) < 200


def test_an_empty_plan_is_used_up_at_once(make):
    store = make(Fake(Plan(Z64, 13, ())))
    with pytest.raises(StoreError, match="used up"):
        store.take(Blob(1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.just("take"), st.just("again"), st.integers(-1, 9)), max_size=12))
def test_whatever_is_done_nothing_comes_twice(steps):
    """All kinds at once, beside a model that only counts; "again" closes the file and opens it."""
    with _short_lived() as place, mock.patch.object(os, "fsync", lambda handle: None):
        fakes = [Fake() for _ in KINDS]
        stores = [made(kind, fake, place) for kind, fake in zip(KINDS, fakes, strict=True)]
        at = 0
        for step in steps:
            if step == "again":
                stores[-1].close()
                stores[-1] = opened(place)
            for store, fake in zip(stores, fakes, strict=True):
                if step == "take":
                    if at < 8:
                        assert taken(store, fake, 1) == [at]
                elif step != "again":
                    with suppress(StoreError):
                        store.skip_to(step)
            if step == "take":
                at = min(at + 1, 8)
            elif step != "again" and at <= step <= 8:
                at = step
            assert [store.position for store in stores] == [at] * len(KINDS)
        stores[-1].close()


@contextmanager
def _short_lived() -> Iterator[Path]:
    """A new folder for one example."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        yield Path(place) / "store"


def test_a_memory_store_takes_as_many_parts_as_the_plan_has():
    fake = Fake()
    for count in (7, 9):
        with pytest.raises(StoreError, match=f"8 correlations, and {count} came"):
            MemoryStore(fake.plan, fake.name, [{}] * count)


def test_a_streamed_store_makes_windows_when_they_are_needed_and_not_those_that_are_skipped():
    fake = Fake(blobs(10))
    store = StreamedStore(fake, 16)
    assert fake.made == []
    taken(store, fake, 1)
    assert fake.made == [range(2)]
    store.skip_to(7)
    assert fake.made == [range(2)]
    taken(store, fake)
    assert fake.made == [range(2), range(7, 8), range(8, 10)]
    with pytest.raises(ConfigError, match="at least one byte"):
        StreamedStore(fake, 0)


# --- the file: filling


def test_it_is_filled_window_by_window_and_says_how_far(folder):
    fake, told = Fake(blobs(10)), []
    filled(folder, fake, window=24, progress=lambda *numbers: told.append(numbers))
    assert fake.made == [range(3), range(3, 6), range(6, 9), range(9, 10)]
    assert told == [(3, 10), (6, 10), (9, 10), (10, 10)]
    assert sorted(os.listdir(folder)) == ["lock", "mark", "records"]


def test_memory_stays_flat_while_it_is_filled_and_used(folder, tmp_path):
    megabyte = 1 << 20
    plan = blobs(64, megabyte // 32)  # a quarter of a MB each, 16 MB in all

    def peak(work):
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # the least of a few: the interpreter's own tables may grow by megabytes at any moment of a long run
    folders = [folder, tmp_path / "second", tmp_path / "third"]
    by_windows = min(peak(lambda f=f: filled(f, Fake(plan), window=megabyte)) for f in folders)
    at_once = peak(lambda: filled(tmp_path / "at once", Fake(plan), window=1 << 30))
    assert by_windows < 2.5 * megabyte and at_once > 16 * megabyte

    def use(folder):
        with opened(folder, Fake(plan)) as store:
            for _ in range(64):
                store.take(Blob(megabyte // 32))

    assert min(peak(lambda f=f: use(f)) for f in folders) < 1.5 * megabyte


def test_only_its_user_may_read_it_and_the_arrays_are_not_there_in_the_clear(folder):
    fake = Fake(blobs(3, 64))
    before = os.umask(0)
    try:
        filled(folder, fake)
        with opened(folder, fake) as store:
            taken(store, fake, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    whole = (folder / "records").read_bytes()
    for number in range(3):
        secret = fake.material(number)["a"].tobytes()
        assert all(secret[at : at + 8] not in whole for at in range(0, len(secret), 8))


def test_two_fillings_under_one_name_and_key_share_no_key_stream(folder, tmp_path):
    """AES-GCM with one key and nonce for two records would open the difference of what they hold."""
    plan = blobs(2, 64)
    one, two = (
        (filled(tmp_path / name, Fake(plan)) / "records").read_bytes() for name in ("one", "two")
    )
    shift = len(one) - 2 * 16 - 16 - 64  # in the middle of the second record
    assert len(one) == len(two)
    assert all(one[at : at + 8] != two[at : at + 8] for at in range(file_store._HEAD, shift, 8))


def test_the_store_is_durable_before_it_has_its_name_and_so_is_its_mark(folder, monkeypatch):
    """Else a power cut leaves a store that is half there, or one that nobody knows the use of."""
    done, sync, replace = [], os.fsync, os.replace

    def synced(handle):
        status = os.fstat(handle)
        if not stat.S_ISDIR(status.st_mode):
            done.append(("file", status.st_size))
        elif status.st_ino == folder.stat().st_ino:
            done.append("folder")
        sync(handle)

    def moved(source, target):
        done.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    filled(folder, Fake(blobs(20, 1000)))
    sizes = {name: ("file", (folder / name).stat().st_size) for name in ("records", "mark")}
    assert done == [sizes["records"], sizes["mark"], "mark", "folder", "records", "folder"]


def test_a_store_is_never_replaced(folder):
    filled(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fake = Fake()
    with pytest.raises(StoreError, match=r"a store already.*not replaced.*FileStore\.remove"):
        filled(folder, fake)
    assert fake.made == []
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


SPOILT = {
    "one too few": lambda all_: all_[:-1],
    "one too many": lambda all_: [*all_, {}],
    "a field too few": lambda all_: [*all_[:-1], {}],
    "a field too many": lambda all_: [*all_[:-1], {**all_[-1], "b": all_[-1]["a"]}],
    "another shape": lambda all_: [*all_[:-1], {"a": all_[-1]["a"][:0]}],
    "another rank": lambda all_: [*all_[:-1], {"a": all_[-1]["a"][None]}],
    "another ring": lambda all_: [*all_[:-1], {"a": all_[-1]["a"].astype(np.uint32)}],
    "signed": lambda all_: [*all_[:-1], {"a": all_[-1]["a"].view(np.int64)}],
    "another name": lambda all_: [*all_[:-1], {"c": all_[-1]["a"]}],
    "no array": lambda all_: [*all_[:-1], {"a": 3}],
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_was_made_wrongly_is_not_kept(folder, how):
    plan = Plan(Z64, 13, (Mask("a", (3,)), Mask("b", (3,)), Mask("c", (3,))))
    with pytest.raises(StoreError, match=r"prepare anew"):
        filled(folder, Fake(plan, spoil=SPOILT[how]), window=1)
    assert os.listdir(folder) == ["lock"]
    filled(folder, Fake(plan), window=1)


def test_a_partys_field_is_not_the_others(folder):
    fake = Fake(Plan(Z64, 13, (Blob(2, 3),)), party=1)
    filled(folder, fake)
    with opened(folder, fake) as store:
        assert store.take(Blob(2, 3))[1].keys() == {"a", "own1"}
    other = Fake(fake.plan, spoil=lambda _: [fake.material(0)])
    with pytest.raises(StoreError, match=r"party 0 has a uint64.2., own0 uint64.3., and a .* own1"):
        filled(folder / "other", other)


def test_what_comes_out_is_checked_against_the_plan_too(folder, monkeypatch, no_sync):
    """A filling that did not check, as an older version might."""
    plan = Plan(Z64, 13, (Mask("a", (3,)),))
    for number, how in enumerate(sorted(set(SPOILT) - {"one too few", "one too many"})):
        monkeypatch.setattr(file_store, "_material", lambda found, *rest: dict(found))
        filled(folder / f"{number}", Fake(plan, spoil=SPOILT[how]))
        monkeypatch.undo()
        with opened(folder / f"{number}", Fake(plan)) as store:
            with pytest.raises(StoreError, match=r"correlation 0.*party 0 has a uint64.3., and"):
                store.take(Mask("a", (3,)))
            assert store.position == 0


def test_a_disk_without_room_is_said_before_anything_is_made(folder, monkeypatch):
    fake = Fake(blobs(10, 1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: mock.Mock(free=79_000))
    with pytest.raises(OutputError, match=r"takes 8e-05 GB, and .* has 7.9e-05 GB left"):
        filled(folder, fake)
    assert fake.made == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: mock.Mock(free=81_000))
    filled(folder, fake)


def test_a_record_that_is_too_large_is_said(folder, monkeypatch):
    monkeypatch.setattr(file_store, "_LARGEST", 100)
    with pytest.raises(
        StoreError, match=r"correlation 0 of .* bytes is too large.*smaller batches"
    ):
        filled(folder, Fake(blobs(1, 20)))


def test_an_error_of_the_preprocessing_is_not_the_disks(folder):
    def broken(materials):
        raise ConnectionResetError("the other party")

    with pytest.raises(ConnectionResetError):
        filled(folder, Fake(spoil=broken))
    assert os.listdir(folder) == ["lock"]


def test_settings_that_are_wrong_are_said(folder):
    filled(folder)
    for wrong, said in (
        ({"key": bytes(31)}, "32 bytes expected, got 31"),
        ({"party": 2}, "party 0 or 1"),
        ({"party": -1}, "party 0 or 1"),
        ({"window": 0}, "window of at least one byte"),
        ({"preprocessor": Fake(name=b"short")}, "name of 16 bytes, not 5"),
    ):
        given_ = {"preprocessor": Fake(), "party": 0, "key": KEY, **wrong}
        with pytest.raises(ConfigError, match=said):
            FileStore.fill(folder / "new", given_.pop("preprocessor"), **given_)
        assert not (folder / "new").exists()
    with pytest.raises(ConfigError, match="32 bytes expected, got 0"):
        opened(folder, key=b"")


# --- the file: opening


def test_it_is_opened_as_often_as_there_is_something_left(folder):
    fake = Fake()
    filled(folder, fake)
    for at in range(8):
        with opened(folder) as store:
            assert store.position == at and store.name == fake.name and store.party == 0
            taken(store, fake, 1)
        assert used(folder / "mark") == at + 1
    with opened(folder) as store, pytest.raises(StoreError, match="used up"):
        store.take(MIXED.correlations[0])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"key": bytes(32)}, "sealed under another key"),
        ({"key": KEY[:-1] + b"x"}, "sealed under another key"),
        ({"fake": Fake(party=1)}, "store of party 0, and party 1 opens it"),
        ({"fake": Fake(Plan(Z64, 13, MIXED.correlations[:-1]))}, "8 correlations for another"),
        ({"fake": Fake(Plan(Z64, 14, MIXED.correlations))}, "another computation"),
        ({"fake": Fake(Plan(Z32, 13, MIXED.correlations))}, "another computation"),
        ({"fake": Fake(Plan(Z64, 13, MIXED.correlations[::-1]))}, "another computation"),
    ],
)
def test_another_key_party_or_plan_does_not_open_it(folder, other, said):
    filled(folder)
    before = (folder / "mark").read_bytes()
    with pytest.raises(StoreError, match=said):
        opened(folder, **other)
    assert (folder / "mark").read_bytes() == before
    with opened(folder) as store:
        taken(store, Fake())


def test_where_there_is_no_store_it_is_said_and_nothing_is_made(folder, tmp_path):
    for place in (folder, tmp_path, tmp_path / "a file" / "below"):
        (tmp_path / "a file").write_bytes(b"")
        with pytest.raises(StoreError, match=r"holds no store.*FileStore\.fill"):
            opened(place)
    assert os.listdir(tmp_path) == ["a file"]


def test_a_closed_store_gives_nothing(folder):
    filled(folder)
    with opened(folder) as store:
        taken(store, Fake(), 2)
    for use in (lambda: store.take(MIXED.correlations[2]), lambda: store.skip_to(5)):
        with pytest.raises(StoreError, match="closed: open it again"):
            use()
    store.close()  # twice does nothing
    assert store.position == 2 == used(folder / "mark") and "closed" in repr(store)


def test_what_it_hands_out_cannot_be_written(folder):
    filled(folder)
    with opened(folder) as store:
        _, material = store.take(MIXED.correlations[0])
    assert not material["a"].flags.writeable and material["a"].flags.aligned


# --- the file: single use


class Power:
    """What would be left after a power cut: of the mark, what was synced, under a name that was synced."""

    def __init__(self, folder: Path) -> None:
        self.mark = (folder / "mark").read_bytes()
        self._folder, self._synced, self._named = folder, {}, None
        self._sync, self._replace = os.fsync, os.replace

    def fsync(self, handle):
        status = os.fstat(handle)
        if not stat.S_ISDIR(status.st_mode):
            self._synced[status.st_ino] = status.st_size
        elif status.st_ino == self._folder.stat().st_ino and self._named is not None:
            inode, content = self._named
            self.mark = content[: self._synced.get(inode, 0)]
        self._sync(handle)

    def replace(self, source, target):
        if Path(target) == self._folder / "mark":
            self._named = Path(source).stat().st_ino, Path(source).read_bytes()
        self._replace(source, target)


def handed_out_twice_after_a_power_cut(folder, monkeypatch):
    """The numbers that a store handed out although, had the power gone then, it would hand them out again."""
    fake = Fake()
    filled(folder, fake)
    power, found = Power(folder), []
    monkeypatch.setattr(os, "fsync", power.fsync)
    monkeypatch.setattr(os, "replace", power.replace)
    store = opened(folder, fake)
    for wanted in fake.plan.correlations:
        number, _ = store.take(wanted)
        if used(power.mark) <= number:
            found.append(number)
    store._opened.close()
    return found


def test_it_is_durable_that_a_record_is_used_before_it_is_handed_out(
    folder, monkeypatch, small_steps
):
    assert handed_out_twice_after_a_power_cut(folder, monkeypatch) == []


def _forgets(store, up_to):
    store._marked = up_to


def _writes_without_sync(store, up_to):
    (store.folder / "mark").write_bytes(store._seal.mark(up_to))
    store._marked = up_to


def _writes_the_file_and_not_its_name(store, up_to):
    with mock.patch.object(files, "sync_folder", lambda folder: None):
        files.write_file(store.folder / "mark", store._seal.mark(up_to))
    store._marked = up_to


def _marks_too_little(store, up_to):
    files.write_file(store.folder / "mark", store._seal.mark(up_to - 1))
    store._marked = up_to


@pytest.mark.parametrize(
    "mutant",
    [_forgets, _writes_without_sync, _writes_the_file_and_not_its_name, _marks_too_little],
)
def test_a_store_that_reserves_wrongly_is_caught(folder, monkeypatch, small_steps, mutant):
    """The control of the test above."""
    monkeypatch.setattr(FileStore, "_mark", mutant)
    assert handed_out_twice_after_a_power_cut(folder, monkeypatch)


CALLS = ("open", "fsync", "replace", "unlink")
"""Of the system, that change what is on the disk or make it durable; and `write` to files."""


@contextmanager
def acting_at(step: int, act: Callable[[], object]) -> Iterator[None]:
    """``act`` comes in place of that one of the calls to the disk."""
    calls = itertools.count()

    def tick():
        if next(calls) == step:
            act()

    def patched(call):
        def other(*rest, **more):
            tick()
            return call(*rest, **more)

        return other

    class Written:
        def __init__(self, file):
            self._file = file

        def write(self, data):
            tick()
            return self._file.write(data)

        def __enter__(self):
            return self

        def __exit__(self, *rest):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

    fdopen = os.fdopen
    with mock.patch.multiple(
        os,
        fdopen=lambda *rest, **more: Written(fdopen(*rest, **more)),
        **{name: patched(getattr(os, name)) for name in CALLS},
    ):
        yield


def forked(work: Callable[[Callable[[int], None]], None]) -> tuple[int, list[int]]:
    """Do it in a process of its own: how that ended, and the numbers that it told before."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reader)
            work(lambda number: os.write(writer, bytes([number])) and None)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        numbers = list(told.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), numbers


def kill():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def test_killed_at_every_step_it_hands_nothing_out_again(tmp_path, small_steps, no_sync):
    fake = Fake()
    for step in range(200):
        folder = filled(tmp_path / f"{step}", fake := Fake())

        def use(tell, folder=folder, fake=fake, step=step):
            with acting_at(step, kill), opened(folder, fake) as store:
                for _ in range(3):
                    tell(store.take(fake.plan.correlations[store.position])[0])
                store.skip_to(6)
                tell(5)
                tell(store.take(fake.plan.correlations[6])[0])

        ended, told = forked(use)
        assert told == [0, 1, 2, 5, 6][: len(told)]
        with opened(folder, fake) as store:  # the lock ended with the process
            # Behind what was told, and not further than what was reserved, or skipped, by then.
            assert max(told, default=-1) < store.position <= (2, 2, 4, 6, 8, 8)[len(told)]
            if not ended:
                assert store.position == 7
            at = store.position
            assert taken(store, fake) == list(range(at, 8))
        if not ended:
            break
    assert ended == 0 and step > 20  # every step was hit, and then none


def test_a_process_that_is_killed_anywhere_else_hands_nothing_out_again(folder):
    """From outside, while it takes as fast as it can."""
    fake = Fake(blobs(200))
    filled(folder, fake)
    behind = -1
    for _ in range(3):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                with opened(folder, fake) as store:
                    while True:
                        number, _ = store.take(Blob(1))
                        os.write(writer, bytes([number]))
                        time.sleep(0.001)
            finally:
                os._exit(1)
        os.close(writer)
        numbers = [os.read(reader, 1)[0] for _ in range(5)]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := os.read(reader, 100):
            numbers += rest
        os.close(reader)
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) and numbers[0] > behind
        behind = numbers[-1]
    with opened(folder, fake) as store:
        assert store.position > behind


def test_killed_at_every_step_of_the_filling_there_is_a_whole_store_or_none(tmp_path, no_sync):
    plan = blobs(6, 3)
    for step in range(200):
        folder = tmp_path / f"{step}"

        def fill(tell, folder=folder, step=step):
            with acting_at(step, kill):
                filled(folder, Fake(plan), window=40)

        ended, _ = forked(fill)
        assert ended in (0, -signal.SIGKILL)
        if not (folder / "records").exists():
            with pytest.raises(StoreError, match="holds no store"):
                opened(folder, Fake(plan))
            filled(folder, Fake(plan), window=40)
        with opened(folder, Fake(plan)) as store:
            assert store.position == 0
            taken(store, Fake(plan))
        assert sorted(os.listdir(folder)) == ["lock", "mark", "records"]
        if not ended:
            break
    assert ended == 0 and step > 15


def fail():
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("act", [fail, interrupt])
def test_a_disk_that_fails_at_any_step_of_the_filling_leaves_a_whole_store_or_none(
    tmp_path, act, no_sync
):
    plan, refused = blobs(6, 3), 0
    for step in range(200):
        folder = tmp_path / f"{step}"
        try:
            with acting_at(step, act):
                filled(folder, Fake(plan), window=40)
        except (OutputError, KeyboardInterrupt) as error:
            assert isinstance(error, KeyboardInterrupt) == (act is interrupt)
            refused += 1
            if not (folder / "records").exists():
                with pytest.raises(StoreError, match="holds no store"):
                    opened(folder, Fake(plan))
                filled(folder, Fake(plan), window=40)
        with opened(folder, Fake(plan)) as store:
            taken(store, Fake(plan))
        assert sorted(os.listdir(folder)) == ["lock", "mark", "records"]
        if refused < step - 4:
            break
    assert 15 < refused < 100


def test_a_disk_that_fails_while_it_is_used_costs_nothing_and_hands_out_nothing(
    tmp_path, small_steps, no_sync
):
    refused = 0
    for step in range(200):
        folder, fake, numbers, failed = filled(tmp_path / f"{step}"), Fake(), [], False
        with opened(folder) as store, acting_at(step, fail):
            while store.position < 8:
                at = store.position
                try:
                    numbers += taken(store, fake, 1) if at != 4 else (store.skip_to(7) or [])
                except OutputError as error:
                    assert "No space left" in str(error) and store.position == at
                    failed = True
        assert numbers == [0, 1, 2, 3, 7] and store.position == 8 == used(folder / "mark")
        refused += failed
        if refused < step - 4:
            break
    assert 10 < refused < 100


def test_a_store_that_cannot_keep_where_it_is_says_so_and_is_closed(folder, monkeypatch):
    filled(folder)
    store = opened(folder)
    taken(store, Fake(), 3)
    with acting_at(0, fail), pytest.raises(OutputError, match="No space left"):
        store.close()
    store.close()
    with opened(folder) as again:
        assert again.position == 8  # all were reserved


def test_who_leaves_with_an_error_has_used_what_was_taken(folder):
    filled(folder)
    with pytest.raises(ZeroDivisionError), opened(folder) as store:
        taken(store, Fake(), 3)
        raise ZeroDivisionError
    with opened(folder) as again:
        assert again.position == 3


def test_to_skip_is_kept_too(folder, small_steps):
    """Else a party that was killed would offer again what the other has used."""
    filled(folder)
    store = opened(folder)
    store.skip_to(5)
    assert used(folder / "mark") == 5
    taken(store, Fake(), 1)
    assert used(folder / "mark") == 7
    store.skip_to(7)
    store._opened.close()  # killed
    with opened(folder) as again:
        assert again.position == 7


def marks(folder, fake):
    """What the mark says after each record, without those that say the same."""
    filled(folder, fake)
    said = []
    with opened(folder, fake) as store:
        for wanted in fake.plan.correlations:
            store.take(wanted)
            said.append(used(folder / "mark"))
    return sorted(set(said))


def test_the_disk_is_waited_for_rarely(folder, monkeypatch, no_sync):
    assert file_store.RESERVED == 64 == file_store.SHARE
    assert file_store._RESERVED_BYTES == 1 << 26
    assert marks(folder / "1", Fake(blobs(150))) == [64, 128, 150]
    monkeypatch.setattr(file_store, "RESERVED", 4)
    assert marks(folder / "2", Fake(blobs(10))) == [4, 8, 10]
    monkeypatch.setattr(file_store, "SHARE", 4)
    assert marks(folder / "3", Fake(blobs(40))) == [10, 20, 30, 40]
    monkeypatch.setattr(file_store, "SHARE", 64)
    monkeypatch.setattr(file_store, "_RESERVED_BYTES", 1000)
    assert marks(folder / "4", Fake(blobs(7, 40))) == [2, 4, 6, 7]  # some 400 bytes each
    assert marks(folder / "5", Fake(blobs(3, 400))) == [1, 2, 3]


def test_threads_do_not_get_the_same_record(folder, monkeypatch):
    plan, read = blobs(40), FileStore._read
    filled(folder, Fake(plan))

    def slow(store, number):
        time.sleep(0.0005)
        return read(store, number)

    monkeypatch.setattr(FileStore, "_read", slow)
    with opened(folder, Fake(plan)) as store:
        numbers = []

        def use():
            numbers.extend(store.take(Blob(1))[0] for _ in range(10))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers) == list(range(40))


# --- the file: one process


def refused_elsewhere(work):
    """How another process fares with it: the text of its ConfigError."""
    said = []

    def attempt(tell):
        try:
            work()
        except ConfigError as error:
            for letter in str(error).encode():
                tell(letter)

    ended, said = forked(attempt)
    assert ended == 0
    return bytes(said).decode()


def test_one_process_at_a_time_has_it(folder):
    filled(folder)
    attempts = (
        lambda: opened(folder).close(),
        lambda: filled(folder),
        lambda: FileStore.remove(folder),
    )
    with opened(folder) as store:
        for attempt in attempts:
            assert "another process" in refused_elsewhere(attempt)
            with pytest.raises(ConfigError, match="another process"):  # nor twice in this one
                attempt()
        assert taken(store, Fake()) == list(range(8))
    assert refused_elsewhere(attempts[0]) == ""


def test_while_it_is_filled_nobody_else_opens_fills_or_removes_it(folder):
    plan, said = blobs(2), []

    def meanwhile(materials):
        said.append(refused_elsewhere(lambda: filled(folder, Fake(plan))))
        said.append(refused_elsewhere(lambda: FileStore.remove(folder)))
        said.append(refused_elsewhere(lambda: opened(folder, Fake(plan))))
        return materials

    filled(folder, Fake(plan, spoil=meanwhile))
    assert "another process" in said[0] and "another process" in said[1]
    assert "its filling is under way, or did not end" in said[2]


def test_a_fork_gives_nothing_and_leaves_the_mark_and_the_lock_as_they_are(folder, small_steps):
    filled(folder)
    with opened(folder) as store:
        taken(store, Fake(), 1)
        before = (folder / "mark").read_bytes()
        for use in (lambda: store.take(MIXED.correlations[1]), lambda: store.skip_to(5)):
            assert "belongs to the process that opened it" in refused_elsewhere(use)
        assert refused_elsewhere(store.close) == ""
        # Were it put back to 1, a kill of this process would bring back what it takes from here on.
        assert (folder / "mark").read_bytes() == before and used(before) == 2
        assert "another process" in refused_elsewhere(lambda: opened(folder))
        assert taken(store, Fake()) == list(range(1, 8))


# --- the file: damaged, exchanged, old


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a store that was used up to 2."""
    folder = filled(tmp_path_factory.mktemp("whole") / "store")
    with opened(folder) as store:
        taken(store, Fake(), 2)
    return {name: (folder / name).read_bytes() for name in ("records", "mark")}


def put(folder, contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def refused(folder):
    """Use up what is there: whether it was refused, and that nothing wrong came before."""
    fake = Fake()
    try:
        with opened(folder, fake) as store:
            assert store.position == 2
            taken(store, fake)
    except StoreError as error:
        assert "prepare a new" in str(error)
        return True
    return False


def test_every_flipped_byte_of_head_index_and_mark_is_noticed_at_once(folder, whole, no_sync):
    put(folder, whole)
    ends = [
        *range(file_store._HEAD),
        *range(len(whole["records"]) - 8 * 8 - 16, len(whole["records"])),
    ]
    flips = itertools.cycle((0x01, 0x80, 0xFF, 0x10))
    for name, places in (("records", ends), ("mark", range(len(whole["mark"])))):
        for at in places:
            content = bytearray(whole[name])
            content[at] ^= next(flips)
            (folder / name).write_bytes(content)
            with pytest.raises(StoreError):
                opened(folder)
        (folder / name).write_bytes(whole[name])
    assert not refused(folder)


EDITS = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.just(0)),
    st.tuples(st.just("add"), st.binary(min_size=1, max_size=40), st.just(0)),
    st.tuples(st.just("leave out"), st.floats(0, 1, exclude_max=True), st.integers(1, 300)),
    st.tuples(st.just("put in"), st.floats(0, 1), st.integers(1, 300)),
)


def edited(content: bytes, edit) -> bytes:
    how, where, much = edit
    if how == "add":
        return content + where
    at = int(where * len(content))
    return {
        "flip": content[:at] + bytes([content[min(at, len(content) - 1)] ^ 1 << much % 8]) + content[at + 1 :],
        "cut": content[:at],
        "leave out": content[:at] + content[at + much :],
        "put in": content[:at] + content[:much] + content[at:],
    }[how]  # fmt: skip


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["records", "mark"]), EDITS)
def test_whatever_is_changed_is_noticed_before_anything_wrong_comes_out(whole, name, edit):
    with _short_lived() as folder, mock.patch.object(os, "fsync", lambda handle: None):
        changed = edited(whole[name], edit)
        assert changed != whole[name]
        put(folder, {**whole, name: changed})
        # What was used already is not read again, and may be damaged.
        if name == "records" and len(changed) == len(whole[name]):
            at = next(
                i for i, (a, b) in enumerate(zip(changed, whole[name], strict=True)) if a != b
            )
            if file_store._HEAD <= at < start_of(folder, whole, 2):
                assert not refused(folder)
                return
        assert refused(folder)


def start_of(folder, whole, number):
    """Where a record of the whole store begins."""
    other = folder / "whole"
    put(other, whole)
    with opened(other) as store:
        return store._starts[number]


def test_a_store_that_grew_or_shrank_is_noticed_at_once(folder, whole):
    """Not only at the record where it did, hours later."""
    content, middle = whole["records"], len(whole["records"]) // 2
    for other in (
        content[:middle] + content[middle + 1 :],
        content[:middle] + b"\x00" + content[middle:],
        content[:-1] + b"\x00" + content[-1:],
        content[: file_store._HEAD] + content[-8 * 8 - 16 :],
    ):
        put(folder, {"records": other, "mark": whole["mark"]})
        with pytest.raises(StoreError, match=r"has not the length|does not open"):
            opened(folder)


def test_a_store_cannot_be_passed_off_as_anothers_by_its_head(folder, whole):
    """Of a plan with the same shapes, for instance with other fractional bits."""
    head = file_store._Head.read(whole["records"][: file_store._HEAD])
    plan = Plan(Z64, 14, MIXED.correlations)
    for changed, fake in (
        (head._replace(plan=plan.digest), Fake(plan)),
        (head._replace(party=1), Fake(party=1)),
        (head._replace(name=bytes(16)), Fake()),
        (head._replace(salt=bytes(32)), Fake()),
    ):
        records = changed.written() + whole["records"][file_store._HEAD :]
        put(folder, {"records": records, "mark": whole["mark"]})
        with pytest.raises(StoreError, match="does not open"):
            opened(folder, fake)


def test_records_that_change_places_are_noticed(folder, whole, no_sync):
    """Two of the same length, for equal correlations."""
    content = whole["records"]
    put(folder, whole)
    a, b, end = (start_of(folder, whole, number) for number in (2, 3, 4))
    assert b - a == end - b
    for swapped in (
        content[:a] + content[b:end] + content[a:b] + content[end:],
        content[:a] + content[b:end] + content[b:],
        content[:b] + content[a:b] + content[end:],
    ):
        put(folder, {"records": swapped, "mark": whole["mark"]})
        said = pytest.raises(StoreError, match=r"correlation [23] in .* is damaged, or another's")
        with opened(folder) as store, said:
            taken(store, Fake())


@pytest.mark.parametrize("key", [KEY, bytes(32)])
def test_nothing_of_another_store_fits(folder, tmp_path, whole, no_sync, key):
    """Not even of another filling with the same name, plan and party."""
    other = filled(tmp_path / "other", key=key)
    theirs = {name: (other / name).read_bytes() for name in whole}
    mine, size = whole["records"], len(whole["records"])
    assert size == len(theirs["records"])
    a, b = start_of(tmp_path, whole, 2), start_of(tmp_path, whole, 3)
    head, index = file_store._HEAD, size - 8 * 8 - 16
    for cut in ((a, b), (0, head), (index, size), (head, index), (0, index)):
        mixed = mine[: cut[0]] + theirs["records"][slice(*cut)] + mine[cut[1] :]
        put(folder, {"records": mixed, "mark": whole["mark"]})
        assert refused(folder)
    for records, mark in ((theirs, whole), (whole, theirs)):
        put(folder, {"records": records["records"], "mark": mark["mark"]})
        with pytest.raises(StoreError, match=r"mark does not say how far|does not open"):
            opened(folder)


def test_a_mark_that_is_lost_is_not_read_as_zero(folder, whole):
    put(folder, whole)
    (folder / "mark").unlink()
    for _ in range(2):
        with pytest.raises(
            StoreError, match=r"does not say how far.*No such file.*FileStore\.remove"
        ):
            opened(folder)
    (folder / "mark").mkdir()
    with pytest.raises(StoreError, match="does not say how far"):
        opened(folder)


def test_a_mark_that_is_garbage_or_beyond_the_end_is_refused(folder, whole, no_sync):
    put(folder, whole)
    with opened(folder) as store:
        seal = store._seal
    beyond = [seal.mark(number) for number in (9, 10, 1 << 40)]
    for mark in (
        b"",
        b"2",
        b"\x00" * 80,
        b"\xff" * 300,
        whole["records"],
        whole["mark"] * 2,
        *beyond,
    ):
        (folder / "mark").write_bytes(mark)
        with pytest.raises(StoreError, match="does not say how far the store was used"):
            opened(folder)
    for number in (8, 3):
        (folder / "mark").write_bytes(seal.mark(number))
        with opened(folder) as store:
            assert store.position == number


def test_a_file_that_shrinks_while_it_is_open_is_noticed(folder):
    fake = Fake(blobs(3, 4000))  # more than a reader has in its buffer
    filled(folder, fake)
    with opened(folder, fake) as store:
        taken(store, fake, 1)
        os.truncate(folder / "records", store._starts[2] - 1)
        with pytest.raises(StoreError, match=r"correlation 1 in .* is damaged"):
            taken(store, fake, 1)
        assert store.position == 1


def test_a_disk_that_cannot_be_read_is_said(folder, monkeypatch):
    filled(folder)
    with opened(folder) as store:
        monkeypatch.setattr(
            store,
            "_records",
            mock.Mock(seek=mock.Mock(side_effect=OSError(errno.EIO, "I/O error"))),
        )
        with pytest.raises(StoreError, match=r"cannot be read .I/O error"):
            taken(store, Fake(), 1)
        assert store.position == 0


def test_a_restored_backup_repeats_itself_unless_the_other_party_says_how_far_it_is(
    folder, tmp_path
):
    """The documented limit, and what helps against it."""
    filled(folder)
    with opened(folder) as store:
        taken(store, Fake(), 2)
    shutil.copytree(folder, tmp_path / "backup")
    with opened(folder) as store:
        taken(store, Fake(), 3)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    with opened(folder) as store:
        assert store.position == 2  # nothing in the folder could tell
        store.skip_to(5)  # where the other party is
        assert taken(store, Fake()) == [5, 6, 7]


# --- the file: removed


def test_a_removed_store_is_gone_and_its_folder_can_be_used_again(folder):
    filled(folder)
    with opened(folder) as store:
        taken(store, Fake(), 3)
    FileStore.remove(folder)
    assert os.listdir(folder) == ["lock"] and (folder / "lock").read_bytes() == b""
    FileStore.remove(folder)
    with pytest.raises(StoreError, match="holds no store"):
        opened(folder)
    filled(folder)
    with opened(folder) as store:
        assert store.position == 0


def test_the_records_are_gone_for_good_before_the_mark_is(folder, monkeypatch):
    """Else a power cut brings the records back, and the next filling removes them at best."""
    filled(folder)
    done, sync, unlink = [], os.fsync, os.unlink
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "unlink", lambda path: (done.append(Path(path).name), unlink(path)))
    FileStore.remove(folder)
    assert done[:2] == ["records", "sync"] and done.index("mark") > 1


def test_to_remove_what_is_not_there_changes_nothing(tmp_path):
    (tmp_path / "other").write_bytes(b"x")
    FileStore.remove(tmp_path)
    FileStore.remove(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == ["other"]


def test_killed_at_every_step_of_removing_it_is_refused_or_as_it_was(tmp_path, no_sync):
    for step in range(50):
        folder = filled(tmp_path / f"{step}")
        with opened(folder) as store:
            taken(store, Fake(), 3)

        def remove(tell, folder=folder, step=step):
            with acting_at(step, kill):
                FileStore.remove(folder)

        ended, _ = forked(remove)
        if (folder / "records").exists():
            with opened(folder) as store:
                assert store.position == 3
        FileStore.remove(folder)
        filled(folder)
        if not ended:
            break
    assert ended == 0 and step > 3
