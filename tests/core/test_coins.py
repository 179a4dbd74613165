import copy
import gc
import os
import pickle  # noqa: TID251

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.hmac import HMAC
from scipy import stats

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError

FALSE_ALARM = 1e-9  # of each statistical test; the seeds are fixed, so a pass stays a pass


def seeded(seed=b"seed"):
    return Coins.from_seed(seed)


# --- streams


def test_the_same_seed_and_label_give_the_same_stream():
    assert seeded().bytes(1000) == seeded().bytes(1000)
    assert seeded().child("a").bytes(1000) == seeded().child("a").bytes(1000)


def test_different_seeds_labels_and_depths_give_different_streams():
    root = seeded()
    streams = [
        root,
        seeded(b"other"),
        seeded(b""),
        root.child("a"),
        root.child("b"),
        root.child(""),
        root.child("a/b"),
        root.child("a").child("b"),
        root.child("stream"),
        root.child("child/a"),
    ]
    drawn = [stream.bytes(32) for stream in streams]
    assert len(set(drawn)) == len(drawn)


def test_a_child_does_not_depend_on_what_its_parent_drew():
    idle, busy = seeded(), seeded()
    busy.bytes(12_345)
    busy.child("other").bytes(10)
    assert idle.child("a").bytes(100) == busy.child("a").bytes(100)


def test_a_parent_does_not_depend_on_what_its_children_drew():
    alone, parent = seeded(), seeded()
    parent.child("a").bytes(12_345)
    assert alone.bytes(100) == parent.bytes(100)


def test_unseeded_coins_never_repeat_and_their_label_does_not_matter():
    drawn = {Coins("same").bytes(32) for _ in range(100)}
    assert len(drawn) == 100


def test_the_seeded_mark_is_inherited():
    assert seeded().seeded and seeded().child("a").child("b").seeded
    assert not Coins().seeded and not Coins().child("a").child("b").seeded


def test_the_stream_is_aes_256_ctr_under_the_derived_key():
    def hmac(key, data):
        mac = HMAC(key, SHA256())
        mac.update(b"tacit/coins/1\x00" + data)
        return mac.finalize()

    digest = Hash(SHA256())
    digest.update(b"tacit/seed\x00" + b"seed")
    root = digest.finalize()
    for coins, key in (
        (seeded(), root),
        (seeded().child("a"), hmac(root, b"child/a")),
        (seeded().child("a").child("b"), hmac(hmac(root, b"child/a"), b"child/b")),
    ):
        cipher = Cipher(algorithms.AES(hmac(key, b"stream")), modes.CTR(bytes(16))).encryptor()
        expected = cipher.update(bytes(3_000_000))
        assert coins.bytes(7) + coins.bytes(2_500_000) + coins.bytes(499_993) == expected


def test_the_first_bytes_of_a_seeded_stream_never_change():
    """Figures that were reproduced with a seed rest on it."""
    assert seeded().bytes(16).hex() == "d9b7970c5dc295b5ef2a7b52a4007093"


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1 << 20, (1 << 20) + 1, (1 << 21) + 5])
def test_fill_gives_the_same_stream_as_bytes(size):
    buffer = np.zeros(size, np.uint8)
    filled, drawn = seeded(), seeded()
    filled.fill(buffer)
    assert buffer.tobytes() == drawn.bytes(size)
    assert filled.bytes(50) == drawn.bytes(50)  # both are as far


def test_fill_reaches_every_byte_of_an_array_of_any_rank_and_only_of_a_contiguous_one():
    grid = np.zeros((50, 40), np.uint8)
    seeded().fill(grid)
    assert grid.tobytes() == seeded().bytes(2_000)
    with pytest.raises(TypeError):
        seeded().fill(grid[:, ::2])


def test_a_negative_count_is_refused():
    with pytest.raises(ConfigError, match="-1"):
        seeded().bytes(-1)


# --- forks


def drawn_by_a_fork(draw):
    """What ``draw()`` gives in a forked process that does nothing else."""
    read, write = os.pipe()
    gc.collect()
    child = os.fork()
    if child == 0:  # no pytest, no exit handlers: write and leave
        try:
            os.write(write, draw())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        out = pipe.read()
    os.waitpid(child, 0)
    return out


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("make", [seeded, Coins], ids=["seeded", "unseeded"])
def test_after_a_fork_the_processes_draw_different_bytes(make):
    coins = make()
    child = coins.child("a")
    coins.bytes(5)
    drawn = [
        drawn_by_a_fork(lambda: coins.bytes(32)),
        drawn_by_a_fork(lambda: coins.child("b").bytes(32)),
        drawn_by_a_fork(lambda: child.bytes(32)),
        drawn_by_a_fork(lambda: child.uint64(4).tobytes()),
        coins.bytes(32),
        child.bytes(32),
        coins.child("b").bytes(32),
    ]
    assert [len(part) for part in drawn] == [32] * 7
    assert len(set(drawn)) == 7


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_keeps_the_seeded_mark_and_leaves_the_parents_stream_alone():
    coins = seeded()
    marks = drawn_by_a_fork(lambda: coins.bytes(1) and bytes([coins.seeded, coins.child("a").seeded]))  # fmt: skip
    assert marks == b"\x01\x01"
    assert coins.bytes(32) == seeded().bytes(32)


# --- copies


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("make", [seeded, Coins], ids=["seeded", "unseeded"])
def test_coins_refuse_to_be_copied(copying, make):
    for held in (make(), make().child("a"), [make()], {"coins": make()}):
        if copying is copy.copy and not isinstance(held, Coins):
            continue  # a shallow copy of a container shares its coins
        with pytest.raises(TypeError, match="child"):
            copying(held)


def test_repr_shows_the_label_and_the_mark_and_no_key():
    coins = seeded().child("masks")
    assert repr(coins) == "Coins('seeded/masks', seeded)"
    assert repr(Coins("here")) == "Coins('here')"
    assert coins._key.hex() not in repr(coins) and not hasattr(coins, "__dict__")


# --- numbers


@pytest.mark.parametrize("bound", [2, 3, 7, 10, 64, 100])
def test_below_is_uniform(bound):
    """Chi-square over 60,000 draws; false alarm 1e-9."""
    drawn = seeded(b"below").below(bound, 60_000)
    counts = np.bincount(drawn, minlength=bound)
    assert len(counts) == bound
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_below_redraws_where_a_remainder_would_be_biased():
    """Below 3 * 2^61, a plain remainder of 64 bits falls into the lower two thirds in 3/4 of all draws."""
    bound, count = 3 << 61, 20_000
    low = int((seeded(b"bias").below(bound, count) < 1 << 62).sum())
    assert stats.binomtest(low, count, 2 / 3).pvalue > FALSE_ALARM
    biased = seeded(b"bias").uint64(count) % np.uint64(bound)  # the control
    assert stats.binomtest(int((biased < 1 << 62).sum()), count, 2 / 3).pvalue < FALSE_ALARM


@pytest.mark.parametrize("bound", [1, 2, 3, (1 << 62) + 1, (1 << 63) - 1, 1 << 63])
def test_below_stays_inside_its_bounds_at_every_size(bound):
    drawn = seeded().below(bound, (20, 100))
    assert drawn.shape == (20, 100) and drawn.dtype == np.int64
    assert drawn.min() >= 0 and int(drawn.max()) < bound
    if bound > 1 << 60:  # 2,000 draws come within a hundredth of the top, but for 2e-9
        assert int(drawn.max()) > bound * 0.99
    assert seeded().below(bound, 0).shape == (0,) and seeded().below(bound, ()).shape == ()


@pytest.mark.parametrize("bound", [0, -1, (1 << 63) + 1, 1 << 64])
def test_below_refuses_bounds_out_of_range(bound):
    with pytest.raises(ConfigError, match="bound"):
        seeded().below(bound, 1)


class Rigged(Coins):
    """Coins that draw the two extremes."""

    def uint64(self, shape):
        return np.array([0, (1 << 64) - 1], np.uint64)


def test_unit_stays_strictly_inside_0_and_1_at_both_extremes():
    low, high = Rigged().unit(2)
    assert 0.0 < low == 2.0**-53 and high == 1.0 - 2.0**-53 < 1.0
    assert low == 1.0 - high  # the midpoints are symmetric, so that noise has no bias


def test_unit_is_uniform():
    """Kolmogorov-Smirnov over 50,000 draws; false alarm 1e-9."""
    drawn = seeded(b"unit").unit(50_000)
    assert stats.kstest(drawn, "uniform").pvalue > FALSE_ALARM
    assert seeded().unit((3, 4)).shape == (3, 4) and seeded().unit(()).shape == ()


def test_uint64_uses_every_bit():
    """Each bit is set in half of 10,000 draws, within 6.5 standard deviations; false alarm 64 * 8e-11."""
    drawn = seeded(b"bits").uint64((100, 100)).reshape(-1)
    ones = np.unpackbits(drawn.view(np.uint8)).reshape(10_000, 64).sum(axis=0)
    assert np.abs(ones.astype(int) - 5_000).max() < 6.5 * 50


@pytest.mark.parametrize("count", [0, 1, 2, 1_000])
def test_a_permutation_holds_each_number_once(count):
    drawn = seeded().permutation(count)
    assert drawn.dtype == np.int64 and sorted(drawn.tolist()) == list(range(count))


def test_every_permutation_is_as_likely_as_any_other():
    """Chi-square over 12,000 permutations of four; false alarm 1e-9."""
    coins = seeded(b"permutation")
    codes = [int(coins.permutation(4) @ [64, 16, 4, 1]) for _ in range(12_000)]
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > FALSE_ALARM
