import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tacit.core.errors import ConfigError, OutputError
from tacit.core.wire import Message, encode
from tacit.parties import views
from tacit.parties.links.local import LocalHub, run_pair
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.star import ask
from tacit.parties.views import (
    COUNTS,
    DIGEST,
    FULL,
    Frame,
    Level,
    Observation,
    Recording,
    Update,
    View,
)

A, B = owners(2)
FRAMES = [encode(Message("x", value=value)) for value in (1, 1 << 80, "text", bytes(100))]


def recorded(recording, frames=FRAMES):
    """The server's view after those frames, from A and B in turn, one a wave; it sent one to A first."""
    view = View(SERVER, recording)
    view.send(A, 0, b"sent")
    for wave, data in enumerate(frames):
        view.receive((A, B)[wave % 2], "x", wave, data)
    return view


def spool(folder, **options):
    return Recording(level=Level.SPOOL, folder=folder, **options)


def test_every_level_counts_messages_and_bytes(tmp_path):
    for recording in (COUNTS, DIGEST, FULL, spool(tmp_path)):
        view = recorded(recording)
        assert view.messages == 4 and view.received == sum(map(len, FRAMES))


def test_the_shape_is_kept_from_digest_on(tmp_path):
    shape = [((A, B)[wave % 2], "x", len(data), wave) for wave, data in enumerate(FRAMES)]
    assert recorded(COUNTS).shape == []
    for recording in (DIGEST, FULL, spool(tmp_path)):
        assert recorded(recording).shape == shape


def growth(recording):
    """Bytes that a view grows by over 20,000 messages."""
    view = View(SERVER, recording)
    data = encode(Message("x", value=bytes(64)))

    def receive(count):
        for wave in range(count):
            view.receive(A, "x", wave, data[:])
            view.send(A, wave, data[:])

    receive(100)
    tracemalloc.start()
    receive(20_000)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return grown


def test_counts_are_flat_in_memory():
    assert growth(COUNTS) < 2_000
    assert growth(DIGEST) > 200_000  # the control: the shape grows


# --- digests


def test_digests_are_equal_for_equal_frames_and_at_every_level(tmp_path):
    one = recorded(DIGEST).digest
    assert len(one) == 64
    assert one == recorded(DIGEST).digest == recorded(FULL).digest == recorded(spool(tmp_path)).digest  # fmt: skip


def test_digests_differ_where_anything_does():
    def of(*received):
        view = View(SERVER, DIGEST)
        for sender, wave, data in received:
            view.receive(sender, "x", wave, data)
        return view.digest

    assert of() == hashlib.sha256().hexdigest()
    digests = [
        of(),
        of((A, 0, b"abc")),
        of((A, 0, b"abd")),
        of((B, 0, b"abc")),
        of((A, 1, b"abc")),
        of((A, 0, b"abc"), (A, 0, b"")),
        of((A, 0, b"ab"), (A, 0, b"c")),
        of((A, 0, b"a"), (A, 0, b"bc")),
        of((A, 0, b"c"), (A, 0, b"ab")),
    ]
    assert len(set(digests)) == len(digests)


def test_what_is_not_kept_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="recorded at COUNTS; record at DIGEST"):
        _ = recorded(COUNTS).digest
    for recording in (COUNTS, DIGEST):
        with pytest.raises(ConfigError, match="record at FULL or SPOOL"):
            next(recorded(recording).frames())
        with pytest.raises(ConfigError, match="record at FULL or SPOOL"):
            next(recorded(recording).sent())


# --- frames


def test_full_and_spooled_views_give_back_the_same_frames_in_order(tmp_path):
    expected = [Frame((A, B)[wave % 2], wave, data) for wave, data in enumerate(FRAMES)]
    for view in (recorded(FULL), recorded(spool(tmp_path))):
        assert list(view.frames()) == expected == list(view.frames())
        assert [frame.message().fields["value"] for frame in view.frames()][:2] == [1, 1 << 80]
        assert list(view.sent()) == [Frame(A, 0, b"sent")]


def test_a_spooled_view_can_be_read_while_it_is_written(tmp_path):
    view = recorded(spool(tmp_path))
    reading = view.frames()
    assert next(reading).data == FRAMES[0]
    view.receive(A, "x", 9, b"more")
    assert [frame.data for frame in reading] == [*FRAMES[1:], b"more"]


def test_a_spooled_view_keeps_its_frames_on_disk_and_not_in_memory(tmp_path):
    def held(recording):
        view = View(SERVER, recording)
        tracemalloc.start()
        for wave in range(50):
            view.receive(A, "x", wave, np.full(100_000, wave, np.uint8).tobytes())
            view.send(A, wave, np.full(100_000, wave, np.uint8).tobytes())
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert [frame.data[0] for frame in view.frames()] == list(range(50))
        assert [frame.data[0] for frame in view.sent()] == list(range(50))
        return held

    assert held(spool(tmp_path)) < 100_000
    assert held(FULL) > 9_000_000  # the control


def test_a_spool_leaves_no_file_behind(tmp_path):
    folder = tmp_path / "not" / "yet"
    view = recorded(spool(folder))
    assert len(list(view.frames())) == 4
    del view
    assert list(folder.iterdir()) == []


def test_the_views_of_one_run_share_a_spool_folder(tmp_path):
    one, other = (View(role, spool(tmp_path)) for role in (A, B))
    one.receive(SERVER, "x", 0, b"one")
    other.receive(SERVER, "x", 0, b"other")
    one.receive(SERVER, "x", 1, b"more")
    assert [f.data for f in one.frames()] == [b"one", b"more"]
    assert [f.data for f in other.frames()] == [b"other"]


def test_a_spool_that_cannot_be_written_is_an_output_error(tmp_path):
    """Below a regular file no folder can be made, not even by root."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="views cannot be spooled to") as caught:
        recorded(spool(tmp_path / "file" / "spool"))
    assert str(tmp_path / "file" / "spool") in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_spool_that_fills_its_disk_is_an_output_error(tmp_path, monkeypatch):
    def full(**_):
        return open("/dev/full", "w+b")

    monkeypatch.setattr(views.tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match="No space left"):
        recorded(spool(tmp_path))


@pytest.mark.parametrize("limit", [0, 1, 3, 100])
def test_a_limit_for_each_peer_limits_what_is_kept_and_not_what_is_counted(tmp_path, limit):
    for recording in (Recording(level=Level.FULL, each=limit), spool(tmp_path, each=limit)):
        view = recorded(recording)
        assert [frame.wave for frame in view.frames()] == list(range(min(2 * limit, 4)))
        assert len(list(view.sent())) == min(limit, 1)
        assert view.messages == 4 and view.received == sum(map(len, FRAMES))
        assert view.shape == recorded(DIGEST).shape[: 2 * limit]
        assert view.digest == recorded(DIGEST, FRAMES[: 2 * limit]).digest


def test_a_recording_has_a_folder_just_where_it_spools(tmp_path):
    for level in (Level.COUNTS, Level.DIGEST, Level.FULL):
        with pytest.raises(ConfigError, match="SPOOL needs a folder"):
            Recording(level=level, folder=tmp_path)
    with pytest.raises(ConfigError, match="SPOOL needs a folder"):
        Recording(level=Level.SPOOL)


def test_repr_shows_no_frame_and_no_update():
    view = recorded(FULL, [b"the secret"])
    secret = (np.full(2, 314_159.0),)
    update = Update(sender=A, round=0, arrays=secret, model=secret)
    observation = Observation(updates=(update,), intermediates=(("record", secret[0]),))
    for thing in (view, *view.frames(), update, observation):
        assert "secret" not in repr(thing) and "314159" not in repr(thing)


# --- what stands in an observation


def test_an_observation_is_empty_only_where_it_holds_nothing():
    arrays = (np.zeros(2), np.ones(3))
    update = Update(sender=A, round=0, arrays=arrays, model=())
    held = {
        "updates": (update,),
        "aggregates": (update,),
        "outputs": ((0, arrays),),
        "intermediates": (("x", arrays[0]),),
    }
    assert Observation().empty and not list(Observation().arrays())
    for name, value in held.items():
        assert not Observation(**{name: value}).empty
    found = list(Observation(**held).arrays())
    assert [array.size for array in found] == [2, 3, 2, 3, 2, 3, 2]


# --- in conversation


class Echo:
    def handle(self, request):
        return request

    def export(self):
        return b""

    def restore(self, state):
        pass


def test_every_role_of_a_star_and_of_a_pair_is_recorded_alike(tmp_path):
    def talk(channels):
        (peer,) = channels.values()
        peer.exchange("x", np.arange(3.0))

    for recording in (FULL, spool(tmp_path)):
        hub = LocalHub({A: Echo(), B: Echo()}, recording=recording)
        ask(hub, {A: Message("a", x=1), B: Message("b", x=2)})
        pair = run_pair({A: talk, B: talk}, recording=recording)
        for found in (hub.views, pair.views):
            for role, view in found.items():
                assert view.role == role
                for frame in view.frames():  # each frame received is one that its peer sent
                    twins = [f.data for f in found[frame.peer].sent() if f.peer == role]
                    assert frame.data in twins
                assert view.messages == len(list(view.frames())) > 0


def test_two_runs_that_differ_in_one_members_data_differ_in_digest_and_not_in_shape():
    def run(secret):
        hub = LocalHub({A: Echo(), B: Echo()}, recording=DIGEST)
        ask(hub, {A: Message("a", x=secret), B: Message("b", x=0)})
        return hub.views

    one, other = run(1), run(2)
    assert one[SERVER].shape == other[SERVER].shape and one[A].shape == other[A].shape
    assert one[SERVER].digest != other[SERVER].digest and one[A].digest != other[A].digest
    assert one[B].digest == other[B].digest


def test_roles_are_ordered_by_kind_and_then_by_number():
    assert owners(3) == (A, B, Role("owner", 2)) and str(B) == "owner 1"
    assert sorted([B, SERVER, A, Role("owner", 10), Role("owner", 2)]) == [
        A, B, Role("owner", 2), Role("owner", 10), SERVER,
    ]  # fmt: skip
