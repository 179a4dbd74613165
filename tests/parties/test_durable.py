"""A member that is killed at any moment, and whose store is lost, old, damaged or another's."""

import errno
import itertools
import os
import re

import pytest

from tacit.core import files
from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    CheatingDetected,
    ConfigError,
    DataError,
    DecryptionFailed,
    OutputError,
    PeerRefused,
    TacitError,
    WireError,
)
from tacit.core.wire import Message, decode, encode
from tacit.parties.durable import DurableMember, FileStore, FileWitness
from tacit.parties.links.local import LocalHub
from tacit.parties.roles import owners
from tacit.parties.star import ask

KEY, ABOUT = bytes(range(32)), b"federation, owner 0, settings"
CANARY = b"the canary in the state of a member "
A, B, C = owners(3)


class Drawer:
    """Each answer holds fresh coins, so that one given twice would show. Its state holds a secret."""

    def __init__(self):
        self.secret = CANARY
        self.total = 0
        self.handled = 0  # not part of its state

    def handle(self, request):
        self.handled += 1
        if request.tag == "break":
            raise ZeroDivisionError
        if request.tag == "unsendable":
            self.total += 1
            return Message("reply", what=object())
        self.total += request.integer("add", low=-5)
        if request.tag == "fail":
            raise BudgetExhausted(f"{self.total} spent")
        return Message("reply", total=self.total, drawn=Coins().bytes(16), canary=CANARY)

    def export(self):
        return encode(Message("state", total=self.total, secret=self.secret))

    def restore(self, state):
        message = decode(state)
        self.total, self.secret = message.integer("total"), message.blob("secret")


def add(amount, tag="add"):
    return Message(tag, add=amount)


class Killed(Exception):
    """Where a process ends."""


class Place:
    """The folders of a member: its store, and its witness apart from it."""

    def __init__(self, folder):
        self.store = FileStore(folder / "store" / "entry")
        self.witness = FileWitness(folder / "witness" / "number")

    def start(self, **other):
        """A process that starts: a new member over what is there."""
        given = {"key": KEY, "about": ABOUT, "store": self.store, "witness": self.witness, **other}
        return DurableMember(given.pop("member", None) or Drawer(), **given)

    def put(self, entry, number=None):
        self.store.path.write_bytes(entry)
        if number is not None:
            self.witness.path.write_bytes(b"%d\n" % number)

    @property
    def entry(self):
        return self.store.path.read_bytes()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def answer(member, request):
    """The reply as bytes, as a link would send it."""
    return encode(member.handle(request))


SCRIPT = [add(1), add(2), add(3, "fail"), add(4), Message("add"), add(-9), add(5)]
"""Answers and refusals of several kinds."""


# --- the same request


@pytest.mark.parametrize("key", [KEY, None])
def test_the_same_request_gets_the_same_reply_without_work(place, key):
    member = place.start(key=key)
    for number, request in enumerate(SCRIPT, start=1):
        first = answer(member, request)
        assert member.number == number
        for _ in range(3):
            assert answer(member, decode(encode(request))) == first
        assert member.member.handled == number == member.number
    assert place.store.path.exists() == (key is not None)


def test_only_the_last_reply_is_given_again(place):
    member = place.start()
    first, second = answer(member, add(1)), answer(member, add(2))
    assert answer(member, add(2)) == second
    third = answer(member, add(1))  # another question: that it was asked before, the member decides
    assert third != first and decode(third).integer("total") == 4


def test_a_request_that_differs_in_anything_is_another_one(place):
    member = place.start()
    replies = [
        answer(member, m)
        for m in (add(1), add(1, "add2"), Message("add", add=1, x=0), Message("add", add=1, x=False))
    ]  # fmt: skip
    assert len(set(replies)) == 4 == member.member.handled


def test_what_gets_a_reply_back_cannot_change_the_one_that_is_given_again(place):
    member = place.start()
    reply = member.handle(add(1))
    whole = encode(reply)
    reply.fields["total"] = 99
    assert answer(member, add(1)) == whole


# --- restarts


def test_a_restart_after_every_message_gives_the_same_conversation(place, tmp_path):
    class Plain(Drawer):
        def handle(self, request):
            reply = super().handle(request)
            return Message(reply.tag, **{**reply.fields, "drawn": b""})

    steady = Place(tmp_path / "steady").start(member=Plain())
    for number, request in enumerate(SCRIPT, start=1):
        came = answer(place.start(member=Plain()), request)
        assert came == answer(steady, request)
        again = place.start(member=Plain())
        assert again.number == number and answer(again, request) == came
        assert again.member.handled == 0 and again.member.secret == CANARY
        assert place.witness.number() == number


def test_a_reply_that_was_lost_is_given_again_after_a_restart_to_the_bit(place):
    for request in SCRIPT:  # each reply holds coins that no second answer would hold
        came = answer(place.start(), request)
        for _ in range(2):
            assert answer(place.start(), request) == came


def test_refusals_are_given_again_too_and_their_state_is_kept(place):
    member = place.start()
    refused = member.handle(add(7, "fail"))
    assert refused.fields == {"kind": "BudgetExhausted", "text": "7 spent"}
    again = place.start()
    assert again.member.total == 7 and answer(again, add(7, "fail")) == encode(refused)
    assert again.member.handled == 0
    hub = LocalHub({A: again})
    with pytest.raises(BudgetExhausted, match="owner 0: 7 spent"):
        ask(hub, {A: add(7, "fail")})


def test_a_mistake_in_the_member_is_not_hidden_and_keeps_nothing(place):
    member = place.start()
    came = answer(member, add(1))
    entry = place.entry
    with pytest.raises(ZeroDivisionError):
        member.handle(Message("break"))
    with pytest.raises(WireError, match="cannot be sent"):
        member.handle(Message("unsendable"))
    assert place.entry == entry and answer(place.start(), add(1)) == came


def test_it_is_restored_from_its_store_alone(place):
    member = place.start()
    member.handle(add(3))
    with pytest.raises(ConfigError, match="from its store"):
        member.restore(member.export())
    assert decode(member.export()).integer("total") == 3


# --- killed, or out of space, between any two steps


def killed_at(step, place, monkeypatch, error):
    """Starts a member whose ``step``-th call to the disk fails; what it was doing is never finished."""
    calls = itertools.count()
    kept = {name: getattr(os, name) for name in ("open", "fsync", "replace")}

    def patched(name):
        def call(*rest, **more):
            if next(calls) == step:
                raise error
            return kept[name](*rest, **more)

        return call

    member = place.start()
    for name in kept:
        monkeypatch.setattr(files.os, name, patched(name))
    return member


ENOUGH = 40
"""More calls to the disk than a reply makes."""


def test_killed_at_every_step_it_goes_on_and_answers_once(place, tmp_path, monkeypatch):
    """The reply leaves only after the last step; what left is given again; what did not may be drawn anew, once."""
    finished = 0
    for step in range(ENOUGH):
        here = Place(tmp_path / f"{step}")
        first = answer(here.start(), add(1))
        member = killed_at(step, here, monkeypatch, Killed())
        left = None
        try:
            left = answer(member, add(2))
        except Killed:
            pass
        finally:
            monkeypatch.undo()
        finished += left is not None
        again = here.start()
        assert again.number in ((2,) if left else (1, 2))
        if again.number == 1:  # nothing of the second was kept
            assert answer(here.start(), add(1)) == first
        came = answer(again, add(2))
        assert left in (None, came) and decode(came).integer("total") == 3
        assert answer(here.start(), add(2)) == came
        assert here.witness.number() == 2
        assert not [name for name in os.listdir(here.store.path.parent) if name != "entry"]
    assert 0 < finished < ENOUGH - 6  # some steps were hit, and the last were not


def test_killed_between_the_store_and_the_witness_it_goes_on_with_the_same_reply(place):
    class Deadly(FileWitness):
        def note(self, number):
            raise Killed

    answer(place.start(), add(1))
    member = place.start(witness=Deadly(place.witness.path))
    with pytest.raises(Killed):
        member.handle(add(2))
    assert place.witness.number() == 1
    again = place.start()
    assert again.number == 2 and again.member.total == 3
    came = answer(again, add(2))
    assert again.member.handled == 0 and decode(came).integer("total") == 3
    answer(again, add(3))
    assert place.witness.number() == 3 == place.start().number


def test_a_reply_that_leaves_after_such_a_restart_cannot_be_wound_back(place, monkeypatch):
    """The store is one ahead of the witness: it must not stay so once the reply is given, or the store before passes."""
    answer(place.start(), add(1))
    before = place.entry
    monkeypatch.setattr(FileWitness, "note", lambda self, number: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        place.start().handle(add(2))
    with pytest.raises(Killed):  # nor does it start before it could be noted
        place.start()
    monkeypatch.undo()
    answer(place.start(), add(2))  # leaves
    place.put(before)
    with pytest.raises(CheatingDetected):  # and is asked another challenge
        place.start()


def test_on_a_full_disk_no_reply_leaves_and_after_a_restart_the_request_is_answered_anew(
    place, monkeypatch
):
    member = place.start()
    first = answer(member, add(1))
    entry = place.entry

    def full(*rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for _ in range(3):
        with pytest.raises(OutputError, match="No space left"):
            member.handle(add(2))
    for other in (add(1), add(5), add(2, "fail")):  # nor does any other
        with pytest.raises(OutputError):
            member.handle(other)
    assert member.number == 1 and place.entry == entry
    monkeypatch.undo()
    again = place.start()
    assert again.member.total == 1 and answer(again, add(1)) == first
    assert decode(answer(again, add(2))).integer("total") == 3


@pytest.mark.parametrize("disk", ["store", "witness"])
def test_once_there_is_space_the_same_process_gives_the_reply_that_it_could_not_keep(
    place, monkeypatch, disk
):
    """It has moved on: asked again, it must neither refuse as if it had answered nor answer twice."""
    member = place.start()
    answer(member, add(1))
    kind = FileStore if disk == "store" else FileWitness

    def full(self, what):
        raise OutputError("no space")

    monkeypatch.setattr(kind, "save" if disk == "store" else "note", full)
    for _ in range(3):
        with pytest.raises(OutputError):
            member.handle(add(2))
    monkeypatch.undo()
    assert decode(answer(member, add(2))).integer("total") == 3
    assert member.number == 2 == member.member.handled == place.witness.number()
    assert answer(place.start(), add(2)) == answer(member, add(2))


def test_one_number_is_never_of_two_different_answers(place, monkeypatch):
    """A store that said it failed but did not, a member that goes on: who copied the store between cannot wind it back."""
    member = place.start()
    answer(member, add(1))
    entries, save = [], FileStore.save

    def lying(self, entry):
        save(self, entry)
        entries.append(entry)
        raise OutputError("cannot tell")

    monkeypatch.setattr(FileStore, "save", lying)
    with pytest.raises(OutputError):
        member.handle(add(2))
    monkeypatch.undo()
    answer(member, add(3))  # another challenge
    (copied,) = entries
    place.put(copied)
    with pytest.raises(CheatingDetected, match="of answer 2, but 3 were given"):
        place.start()


def test_an_error_of_the_disk_reaches_the_coordinator_as_a_refusal_and_the_run_can_go_on(
    place, monkeypatch
):
    hub = LocalHub({A: place.start()})

    def full(*rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(PeerRefused, match="No space left"):
        ask(hub, {A: add(1)})
    monkeypatch.undo()
    assert ask(hub, {A: add(1)})[A].integer("total") == 1


# --- two processes with one store


def test_of_two_processes_with_one_store_only_one_answers(place):
    """Each would answer another challenge from the same secrets."""
    answer(place.start(), add(1))
    one, two = place.start(), place.start()
    came = answer(one, add(2))
    for challenge in (add(3), add(2), add(4)):
        with pytest.raises(ConfigError, match="another process"):
            two.handle(challenge)
    assert answer(one, add(2)) == came and decode(answer(one, add(5))).integer("total") == 8
    assert place.start().member.total == 8


def test_a_member_that_was_replaced_answers_nothing_new(place):
    old = place.start()
    came = answer(old, add(1))
    answer(place.start(), add(2))
    assert answer(old, add(1)) == came  # this one had left already
    with pytest.raises(ConfigError, match="another process"):
        old.handle(add(2))


# --- lost, old, another's


def conversation(place, count=4):
    """A member that answered so often; all entries it made."""
    entries = []
    for number in range(1, count + 1):
        place.start().handle(add(number))
        entries.append(place.entry)
    return entries


def test_a_store_that_is_older_than_its_witness_is_refused(place):
    for entry in conversation(place)[:-1]:
        place.put(entry)
        member = Drawer()
        with pytest.raises(CheatingDetected, match=r"of answer [123], but 4 were given.*enrol"):
            place.start(member=member)
        assert member.handled == 0


def test_a_store_that_is_lost_is_refused(place):
    conversation(place, 1)
    place.store.path.unlink()
    with pytest.raises(CheatingDetected, match="of answer 0, but 1 were given"):
        place.start()
    place.store.path.parent.rmdir()
    with pytest.raises(CheatingDetected):
        place.start()


def test_an_older_entry_is_not_newer_with_another_number_on_it(place):
    *_, old, newest = conversation(place)
    outer = decode(old)
    for number in (4, 5, 1 << 40):
        place.put(encode(Message("entry", **{**outer.fields, "number": number})))
        with pytest.raises(DecryptionFailed):
            place.start()
    place.put(encode(Message("entry", **{**decode(newest).fields, "sealed": outer.blob("sealed")})))
    with pytest.raises(DecryptionFailed):
        place.start()


@pytest.mark.parametrize(
    "other",
    [
        {"key": bytes(32)},
        {"key": KEY[:-1] + b"x"},
        {"about": b""},
        {"about": ABOUT + b"x"},
        {"about": ABOUT.replace(b"owner 0", b"owner 1")},
    ],
)
def test_another_key_or_another_role_does_not_open_it(place, other):
    (entry,) = conversation(place, 1)
    member = Drawer()
    with pytest.raises(DecryptionFailed, match="does not open"):
        place.start(member=member, **other)
    assert member.total == 0 and place.entry == entry
    assert place.start().member.total == 1


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_key_has_32_bytes(place, length):
    with pytest.raises(ConfigError, match="32 bytes"):
        place.start(key=bytes(length))
    assert not place.store.path.exists()


def test_every_flipped_byte_is_noticed_and_the_member_stays_as_it_was(place):
    (entry,) = conversation(place, 1)
    untouched = Drawer().export()
    for at, flip in zip(range(len(entry)), itertools.cycle((0x01, 0x80, 0xFF, 0x10)), strict=False):
        place.put(entry[:at] + bytes([entry[at] ^ flip]) + entry[at + 1 :])
        member = Drawer()
        with pytest.raises(DecryptionFailed):
            place.start(member=member)
        assert member.export() == untouched and member.handled == 0
    place.put(entry)
    assert place.start().member.total == 1


def test_every_truncation_and_whatever_else_lies_there_is_noticed(place):
    (entry,) = conversation(place, 1)
    outer = decode(entry).fields
    wrong = [entry[:length] for length in range(len(entry))]
    wrong += [entry + b"\x00", entry * 2, b"\xff" * 100, encode(Message("entry"))]
    wrong += [
        encode(Message("entry", **{**outer, name: value}))
        for name, value in (
            ("sealed", b""), ("sealed", bytes(12)), ("sealed", bytes(5)), ("sealed", bytes(28)), ("sealed", 1),
            ("number", 0), ("number", -1), ("number", True), ("number", 1 << 200), ("before", b""), ("before", bytes(31)),
        )
    ]  # fmt: skip
    for one in wrong:
        place.put(one)
        with pytest.raises(DecryptionFailed):
            place.start()


def test_a_witness_that_says_nothing_is_refused(place):
    conversation(place, 2)
    for text in (b"", b"\n", b"two", b"-2", b"2.0", b"0x2", b"\xff", b"9" * 30, b"1\n2\n"):
        place.witness.path.write_bytes(text)
        with pytest.raises(DataError, match="holds no number"):
            place.start()
    place.witness.path.write_bytes(b"2")
    assert place.start().number == 2


def test_what_cannot_be_read_is_said(place, tmp_path):
    conversation(place, 1)
    for folder in (tmp_path, place.store.path / "below a file"):
        with pytest.raises(DataError, match="cannot be read"):
            place.start(store=FileStore(folder))
        with pytest.raises(DataError, match="cannot be read"):
            place.start(witness=FileWitness(folder))


def test_a_state_of_another_member_is_its_members_to_refuse(place):
    class Picky(Drawer):
        def restore(self, state):
            raise WireError("not mine")

    conversation(place, 1)
    with pytest.raises(TacitError, match="not mine"):
        place.start(member=Picky())


# --- what lies on the disk


def test_no_secret_of_the_state_or_the_reply_lies_in_the_store(place):
    member = place.start()
    assert CANARY in member.export()
    for number in range(5):
        assert CANARY in answer(member, add(number))
        for path in (place.store.path, place.witness.path):
            seen = path.read_bytes()
            assert not any(CANARY[at : at + 8] in seen for at in range(len(CANARY) - 8))
            assert KEY[:8] not in seen and ABOUT not in seen
    assert re.fullmatch(rb"5\n", place.witness.path.read_bytes())


def test_a_store_without_a_seal_would_show_the_canary(place, monkeypatch):
    """The control: the search would find it."""

    class Open:
        def __init__(self, key):
            pass

        def encrypt(self, nonce, plain, head):
            return plain

    monkeypatch.setattr("tacit.parties.durable.AESGCM", Open)
    place.start().handle(add(1))
    assert place.entry.count(CANARY) == 2


def test_what_is_kept_is_its_users_alone(place):
    conversation(place, 2)
    for path in (place.store.path, place.witness.path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("seed", [None, b"the same after every restart"])
def test_no_two_entries_share_a_nonce_even_where_coins_repeat(place, seed):
    """A nonce that comes twice under one key gives away the exclusive or of two states, and the key of the seal."""
    nonces = set()
    for number in range(1, 21):
        coins = Coins() if seed is None else Coins.from_seed(seed)
        place.start(coins=coins).handle(add(number))
        nonces.add(decode(place.entry).blob("sealed")[:12])
        assert len(nonces) == number


@pytest.mark.parametrize("seed", [None, b"the same after every restart"])
def test_two_answers_from_one_state_do_not_share_a_nonce(place, seed):
    """A store and a witness that were wound back, or a process that was killed before it kept its first answer."""
    nonces = set()
    conversation(place, 1)
    before = place.entry
    for challenge in range(20):
        coins = Coins() if seed is None else Coins.from_seed(seed)
        place.put(before, 1)
        place.start(coins=coins).handle(add(challenge))
        nonces.add(decode(place.entry).blob("sealed")[:12])
    assert len(nonces) == 20


def test_the_chain_names_each_entry_before(place):
    import hashlib

    before = bytes(32)
    for entry in conversation(place, 4):
        assert decode(entry).blob("before") == before
        before = hashlib.sha256(entry).digest()
