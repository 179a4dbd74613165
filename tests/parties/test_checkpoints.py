"""A coordinator's checkpoint in a file: it comes back whole, or what is wrong with it is said."""

import errno
import hashlib
import os

import numpy as np
import pytest

from tacit.core import files
from tacit.core.cost import Cost, CostMeter
from tacit.core.errors import ConfigError, DataError, OutputError
from tacit.core.wire import Message, encode
from tacit.parties.checkpoints import NOTHING, FileCheckpoint
from tacit.parties.roles import SERVER, Role

ABOUT = b"about this run"
STATE = Message(
    "state",
    round=3,
    model=[np.linspace(0, 1, 5, dtype=np.float32), np.array([[np.nan, -0.0]], np.float32)],
    session=b"\x00bytes\xff",
    flags=np.array([True, False]),
    words=["a", "b"],
)


def booked():
    """A meter with something under a role, a phase and a layer, and seven rounds."""
    meter = CostMeter()
    meter.book(SERVER, messages=3, sent=50, received=1 << 40, seconds=0.1 + 0.2)
    with meter.during(phase="share", layer="first"):
        meter.book(Role("owner", 1), messages=1, sent=7)
    meter.chain(7)
    return meter


@pytest.fixture
def kept(tmp_path):
    """A checkpoint with a state and a cost."""
    checkpoint = FileCheckpoint(tmp_path / "run" / "checkpoint", ABOUT)
    checkpoint.save(STATE, booked())
    return checkpoint


def same(state):
    return state is not None and encode(state) == encode(STATE)


# --- there and back


def test_a_state_comes_back_bit_for_bit_and_its_folder_is_made(kept):
    state = kept.load(CostMeter())
    assert same(state) and state.tag == "state"
    assert os.listdir(kept.path.parent) == ["checkpoint"]
    assert kept.path.stat().st_mode & 0o077 == 0 == kept.path.parent.stat().st_mode & 0o077


def test_where_nothing_was_saved_nothing_is_there(tmp_path):
    meter = CostMeter()
    checkpoint = FileCheckpoint(tmp_path / "none" / "checkpoint", ABOUT)
    assert checkpoint.load(meter) is None
    checkpoint.remove()
    assert not (tmp_path / "none").exists() and meter == CostMeter()


def test_the_last_state_stays_and_it_can_be_removed(kept):
    for round in range(4):
        kept.save(Message("state", round=round), CostMeter())
    assert kept.load(CostMeter()).fields == {"round": 3}
    kept.remove()
    assert kept.load(CostMeter()) is None


def test_nothing_keeps_nothing():
    meter = booked()
    before = meter.entries()
    NOTHING.save(STATE, meter)
    assert NOTHING.load(meter) is None and meter.entries() == before


# --- what it cost


def test_what_the_run_had_cost_is_added_where_it_was_booked(kept):
    meter = CostMeter()
    meter.book(SERVER, messages=1, sent=5)
    kept.load(meter)
    assert meter.entries() == {
        ("server 0", "", ""): Cost(
            messages=4, bytes_sent=55, bytes_received=1 << 40, seconds=0.1 + 0.2
        ),
        ("owner 1", "share", "first"): Cost(messages=1, bytes_sent=7),
    }
    assert meter.total(role=SERVER).messages == meter.total(role="server 0").messages == 4
    assert meter.by(1)["share"] == Cost(messages=1, bytes_sent=7)


def test_rounds_go_on_where_they_were(kept):
    meter = CostMeter()
    kept.load(meter)
    assert meter.rounds == 7
    meter.chain(1)
    assert meter.rounds == 8
    meter.chain(4)
    assert meter.rounds == 11


def test_costs_add_up_over_many_restarts(kept):
    """Ten times killed and gone on with: nothing is counted twice, and nothing is lost that was saved."""
    for restart in range(1, 11):
        meter = CostMeter()
        kept.load(meter)
        assert meter.rounds == 7 + 2 * (restart - 1)
        meter.book(SERVER, messages=1)
        meter.chain(1)
        meter.chain(2)
        kept.save(STATE, meter)
    meter = CostMeter()
    kept.load(meter)
    assert meter.total(role=SERVER).messages == 13 and meter.rounds == 27
    assert meter.total(phase="share") == Cost(messages=1, bytes_sent=7)


def test_a_meter_with_nothing_on_it_is_kept_too(tmp_path):
    checkpoint, meter = FileCheckpoint(tmp_path / "c", ABOUT), CostMeter()
    checkpoint.save(STATE, CostMeter())
    assert same(checkpoint.load(meter)) and meter.entries() == {} and meter.rounds == 0


# --- what is wrong with it


def test_every_flipped_bit_is_noticed_and_costs_nothing(kept):
    whole = kept.path.read_bytes()
    for at in range(len(whole)):
        kept.path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        meter = CostMeter()
        with pytest.raises(DataError, match=r"is damaged .*: remove it to begin anew"):
            kept.load(meter)
        assert meter == CostMeter()
    kept.path.write_bytes(whole)
    assert same(kept.load(CostMeter()))


def test_every_truncation_and_anything_appended_is_noticed(kept):
    whole = kept.path.read_bytes()
    for length in range(len(whole)):
        kept.path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged"):
            kept.load(CostMeter())
    for tail in (b"\x00", b"\n", whole):
        kept.path.write_bytes(whole + tail)
        with pytest.raises(DataError, match="damaged"):
            kept.load(CostMeter())


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xac",
        encode(Message("checkpoint")),
        encode(Message("checkpoint", about=ABOUT)),
        encode(Message("checkpoint", about=ABOUT, state=b"no frame")),
        encode(Message("checkpoint", about=1, state=encode(STATE))),
        encode(Message("checkpoint", about=ABOUT, state="text")),
        encode(Message("checkpoint", about=ABOUT, state=encode(STATE))),
        encode(
            Message("checkpoint", about=ABOUT, state=encode(STATE), **{**booked().fields(), "rounds": -1})
        ),
        encode(
            Message("checkpoint", about=ABOUT, state=encode(STATE), **{**booked().fields(), "booked": [1, 2]})
        ),
        encode(
            Message("checkpoint", about=ABOUT, state=encode(STATE), **{**booked().fields(), "booked": [["a"], []]})
        ),
        encode(
            Message("checkpoint", about=ABOUT, state=encode(STATE), **{**booked().fields(), "booked": []})
        ),
        encode(
            Message(
                "checkpoint",
                about=ABOUT,
                state=encode(STATE),
                **{**booked().fields(), "costs": np.full((2, 4), np.nan)},
            )
        ),
    ],
)  # fmt: skip
def test_a_file_with_a_right_digest_and_wrong_contents_is_damaged_too(kept, frame):
    kept.path.write_bytes(hashlib.sha256(frame).digest() + frame)
    meter = CostMeter()
    with pytest.raises(DataError, match="damaged"):
        kept.load(meter)
    assert meter == CostMeter()


def test_a_run_with_other_settings_does_not_go_on_with_it(kept):
    whole = kept.path.read_bytes()
    for about in (b"", ABOUT + b"x", ABOUT[:-1]):
        meter = CostMeter()
        with pytest.raises(ConfigError, match="belongs to a run with other settings") as caught:
            FileCheckpoint(kept.path, about).load(meter)
        assert not isinstance(caught.value, DataError) and meter == CostMeter()
    assert kept.path.read_bytes() == whole and same(kept.load(CostMeter()))


def test_what_cannot_be_read_is_said(kept):
    for path in (kept.path.parent, kept.path / "below a file"):
        with pytest.raises(DataError, match="cannot be read"):
            FileCheckpoint(path, ABOUT).load(CostMeter())


# --- what cannot be written


@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_last_state(kept, monkeypatch, name):
    def full(*rest, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, name, full)
    with pytest.raises(OutputError, match="No space left"):
        kept.save(Message("state", round=99), CostMeter())
    monkeypatch.undo()
    meter = CostMeter()
    assert same(kept.load(meter)) and meter.rounds == 7
    assert os.listdir(kept.path.parent) == ["checkpoint"]


def test_a_place_that_cannot_be_written_is_said(kept):
    with pytest.raises(OutputError):
        FileCheckpoint(kept.path / "below a file", ABOUT).save(STATE, CostMeter())
    with pytest.raises(OutputError):
        FileCheckpoint(kept.path.parent, ABOUT).save(STATE, CostMeter())
    assert same(kept.load(CostMeter()))


def test_a_checkpoint_that_cannot_be_removed_is_said(kept):
    with pytest.raises(OutputError, match="cannot be removed"):
        FileCheckpoint(kept.path.parent, ABOUT).remove()
    assert same(kept.load(CostMeter()))
