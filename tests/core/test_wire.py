import math
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tacit.core import wire
from tacit.core.coins import Coins
from tacit.core.errors import WireError
from tacit.core.wire import Message, decode, encode, encode_view

DTYPES = ("<f4", "<f8", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "?", "<f2")

# The same examples on every run, and no limit on real time: the machine may be busy.
steady = settings(derandomize=True, deadline=None, max_examples=200)

EDGES = [
    sign * (1 << bits) + step
    for bits in (0, 7, 8, 31, 32, 62, 63, 64, 71, 72, 127, 4096)
    for sign in (1, -1)
    for step in (-1, 0, 1)
]

ints = st.one_of(st.integers(), st.integers(-(1 << 300), 1 << 300), st.sampled_from(EDGES))
texts = st.text(max_size=20)
labels = st.text(min_size=1, max_size=20)
scalars = st.one_of(st.booleans(), ints, st.floats(), texts, st.binary(max_size=40))


def arrays(dtypes=DTYPES):
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    return st.sampled_from(dtypes).flatmap(lambda dtype: hnp.arrays(dtype, shapes))


def nested(depth):
    leaves = st.one_of(scalars, arrays())
    return leaves if depth == 0 else st.one_of(leaves, st.lists(nested(depth - 1), max_size=3))


@st.composite
def messages(draw):
    message = Message(draw(labels))
    message.fields = draw(st.dictionaries(labels, nested(3), max_size=4))
    return message


def same(one, other):
    """Equal in kind and in every bit."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.shape == other.shape
            and one.dtype.newbyteorder("<") == other.dtype
            and one.astype(other.dtype).tobytes() == other.tobytes()
        )
    if isinstance(one, (list, tuple)):
        return (
            isinstance(other, list)
            and len(one) == len(other)
            and all(map(same, one, other))
        )  # fmt: skip
    if isinstance(one, float):
        return isinstance(other, float) and struct.pack("<d", one) == struct.pack("<d", other)
    return type(one) is type(other) and one == other


def back(value):
    return decode(encode(Message("t", x=value))).fields["x"]


def frame_of(body):
    """A frame with tag "t" and one field "x" of that encoded value."""
    return b"\xac\x01\x01t" + struct.pack("<H", 1) + b"\x01x" + body


# --- round trips


@steady
@given(messages())
def test_every_message_comes_back_equal(message):
    came = decode(encode(message))
    assert came.tag == message.tag
    assert list(came.fields) == sorted(message.fields)
    assert all(same(message.fields[name], came.fields[name]) for name in came.fields)


@steady
@given(messages())
def test_a_decoded_message_encodes_to_the_same_bytes(message):
    frame = encode(message)
    assert encode(decode(frame)) == frame


@steady
@given(ints)
def test_ints_of_any_size_come_back(value):
    assert back(value) == value and type(back(value)) is int


def test_the_longest_int_comes_back_and_a_longer_one_is_refused():
    top = (1 << (8 * wire.MAX_INT_BYTES - 1)) - 1
    assert back(top) == top and back(-top - 1) == -top - 1
    for value in (top + 1, -top - 2):
        with pytest.raises(WireError, match="at most"):
            encode(Message("t", x=value))


def test_the_bits_of_every_nan_are_kept():
    for bits in (0x7FF8000000000001, 0xFFF8000000000000, 0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF):
        body = b"f" + struct.pack("<Q", bits)
        assert encode(decode(frame_of(body))) == frame_of(body)
    assert math.isnan(back(math.nan)) and back(-math.inf) == -math.inf
    assert math.copysign(1.0, back(-0.0)) == -1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3), (2, 1, 2, 1, 2, 1, 2, 3)])
def test_arrays_of_every_dtype_and_rank_come_back(dtype, shape):
    count = math.prod(shape)
    array = Coins.from_seed(b"array").below(2, shape if shape else (1,)).astype(dtype)
    array = array.reshape(shape)
    came = back(array)
    assert array.size == count and same(array, came)
    assert came.dtype == np.dtype(dtype) and came.shape == shape


def test_big_endian_and_scattered_arrays_come_back_little_endian_and_packed():
    grid = np.arange(24, dtype=">i4").reshape(4, 6)
    for array in (grid, grid.T, grid[::2, ::-1], np.asfortranarray(grid), np.broadcast_to(grid, (2, 4, 6))):  # fmt: skip
        came = back(array)
        assert np.array_equal(came, array) and came.dtype == np.dtype("<i4")
        assert came.flags.c_contiguous


def test_an_array_lies_aligned_in_its_frame_and_is_read_only():
    for pad in range(9):
        message = Message("t" * (pad + 1), x=np.arange(4.0), y=np.zeros((0, 3)))
        frame = encode(message)
        came = decode(frame)
        x = came.array("x")
        assert frame.index(x.tobytes()) % 8 == 0
        assert not x.flags.writeable and not came.array("y").flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            x[0] = 1.0


def test_tuples_travel_as_lists():
    came = back((np.zeros(1), [np.ones(2), "a"], 3))
    assert isinstance(came, list) and [type(item) for item in came] == [np.ndarray, list, int]


# --- what does not travel


class Stranger:
    pass


@pytest.mark.parametrize(
    "value",
    [
        None,
        Stranger(),
        {"a": 1},
        {1, 2},
        1j,
        np.int64(3),
        np.bool_(True),
        bytearray(b"a"),
        np.zeros(2, complex),
        np.array([None]),
        np.array(["a"]),
        np.zeros(2, "datetime64[s]"),
        np.zeros((1,) * 9),
        np.zeros((0, 1 << 32), np.uint8),
        [[[[[]]]]],
        "\ud800",
        [1, "\udfff"],
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_another_kind_are_refused_by_encode(value):
    with pytest.raises(WireError):
        encode(Message("t", x=value))


def test_a_list_that_holds_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(WireError, match="nest"):
        encode(Message("t", x=loop))


@pytest.mark.parametrize("tag", ["", "t" * 256, "é" * 128, "\ud800"])
def test_tags_and_names_have_1_to_255_bytes_of_text(tag):
    with pytest.raises(WireError):
        encode(Message(tag))
    message = Message("t")
    message.fields = {tag: 1}
    with pytest.raises(WireError):
        encode(message)


def test_the_longest_tag_the_most_fields_and_the_deepest_list_travel():
    message = Message("t" * 255)
    message.fields = {f"{'n' * 250}{i}": i for i in range(wire.MAX_FIELDS)}
    assert decode(encode(message)).fields == message.fields
    assert back([[[["deep"]]]]) == [[[["deep"]]]]
    message.fields = {f"n{i}": i for i in range(wire.MAX_FIELDS + 1)}
    with pytest.raises(WireError, match="at most 1024 fields"):
        encode(message)


def test_a_frame_past_the_limit_is_refused_at_both_ends(monkeypatch):
    frame = encode(Message("t", x=bytes(1000)))
    monkeypatch.setattr(wire, "MAX_FRAME", 999)
    with pytest.raises(WireError, match="999"):
        encode(Message("t", x=bytes(1000)))
    with pytest.raises(WireError, match="at most 999"):
        decode(frame, limit=999)


# --- hostile bytes

U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
HUGE = (1 << 64) - 1
NOT_FRAMES = {
    "nothing": b"",
    "one byte": b"\xac",
    "another magic": b"\xad\x01\x01t\x00\x00",
    "another version": b"\xac\x02\x01t\x00\x00",
    "an empty tag": b"\xac\x01\x00\x00\x00",
    "a tag that is cut": b"\xac\x01\xfft",
    "a tag that is not UTF-8": b"\xac\x01\x01\xff\x00\x00",
    "an overlong UTF-8 tag": b"\xac\x01\x02\xc0\x80\x00\x00",
    "a surrogate in UTF-8": b"\xac\x01\x03\xed\xa0\x80\x00\x00",
    "too many fields": b"\xac\x01\x01t\x01\x04",
    "fields that are not there": b"\xac\x01\x01t\x01\x00",
    "a byte too many": frame_of(b"T") + b"\x00",
    "names out of order": b"\xac\x01\x01t\x02\x00\x01bT\x01aT",
    "a name twice": b"\xac\x01\x01t\x02\x00\x01aT\x01aT",
    "an empty name": b"\xac\x01\x01t\x01\x00\x00T",
    "an unknown kind": frame_of(b"z"),
    "no kind": frame_of(b""),
    "half an int": frame_of(b"i1234"),
    "half a float": frame_of(b"f1234567"),
    "a long int that is short": frame_of(b"I" + U32(8) + b"\x01" * 8),
    "a long int with a byte to spare": frame_of(b"I" + U32(10) + b"\x01" * 9 + b"\x00"),
    "a negative one with a byte to spare": frame_of(b"I" + U32(10) + b"\x81" * 9 + b"\xff"),
    "a long int that would fit": frame_of(b"I" + U32(9) + b"\x01" * 8 + b"\x00"),
    "a long int longer than any": frame_of(b"I" + U32(65537) + b"\x01" * 65537),
    "a str of 4 GiB": frame_of(b"s" + U32(0xFFFFFFFF) + b"abc"),
    "bytes of 4 GiB": frame_of(b"b" + U32(0xFFFFFFFF) + b"abc"),
    "a str that is not UTF-8": frame_of(b"s" + U32(1) + b"\xff"),
    "a list of 2^32 - 1": frame_of(b"l" + U32(0xFFFFFFFF) + b"T" * 10),
    "a list with one too few": frame_of(b"l" + U32(3) + b"TT"),
    "a list 5 deep": frame_of((b"l" + U32(1)) * 5 + b"T"),
    "a list very deep": frame_of((b"l" + U32(1)) * 100_000 + b"T"),
    "an array of no dtype": frame_of(b"a"),
    "an array of unknown dtype": frame_of(b"a\x0c\x00" + bytes(16)),
    "an array of rank 9": frame_of(b"a\x02\x09" + U64(1) * 9 + bytes(16)),
    "an array of rank 255": frame_of(b"a\x02\xff" + bytes(4096)),
    "an array without dimensions": frame_of(b"a\x02\x02" + U64(1)),
    "an array of 2^64 - 1": frame_of(b"a\x02\x01" + U64(HUGE) + bytes(64)),
    "an array of 2^512": frame_of(b"a\x02\x08" + U64(HUGE) * 8 + bytes(64)),
    "sizes whose product wraps to 0": frame_of(b"a\x02\x02" + U64(1 << 32) * 2 + bytes(64)),
    "a zero that hides a huge size": frame_of(b"a\x01\x02" + U64(0) + U64(HUGE) + bytes(5)),
    "padding that is not zero": frame_of(b"a\x02\x00" + b"\x01" * 5 + b"\x07"),
    "padding that is cut": frame_of(b"a\x02\x00"),
    "an array with a byte too few": frame_of(b"a\x00\x00" + bytes(5) + b"123"),
    "a bool that is 2": frame_of(b"a\x0a\x00" + bytes(5) + b"\x02"),
}


@pytest.mark.parametrize("frame", NOT_FRAMES.values(), ids=NOT_FRAMES)
def test_what_is_not_a_frame_is_refused(frame):
    with pytest.raises(WireError):
        decode(frame)


def test_the_crafted_frames_are_wrong_in_one_place_only():
    """Their well-formed fellows pass, so each is refused for the reason that it names."""
    good = [
        b"\xac\x01\x01t\x02\x00\x01aT\x01bT",
        frame_of(b"I" + U32(9) + b"\x01" * 9),
        frame_of(b"l" + U32(2) + b"TT"),
        frame_of((b"l" + U32(1)) * 4 + b"T"),
        frame_of(b"a\x02\x00" + bytes(5) + b"\x07"),
        frame_of(b"a\x00\x00" + bytes(5) + b"1234"),
        frame_of(b"a\x0a\x00" + bytes(5) + b"\x01"),
        frame_of(b"a\x01\x02" + U64(0) + U64(1 << 31) + bytes(5)),
    ]
    for frame in good:
        assert encode(decode(frame)) == frame


def samples():
    """Frames of every kind, small enough to be mutated by the thousand."""
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    return [
        encode(message)
        for message in (
            Message("t"),
            Message("model", a=[grid, grid.T, np.float64(2.5) * grid], round=3),
            Message("numbers", big=1 << 90, float=math.pi, no=False, small=-3, yes=True),
            Message("text", blob=b"\x00\x01\x02" * 5, inner=[[["é", b""], []], 5], word="word"),
            Message(
                "arrays", b=np.array([True, False]), e=np.zeros((0, 4)), s=np.array(7, np.uint8)
            ),
            Message("long", ints=[1 << 200, -(1 << 70), (1 << 63), 0], tail=np.arange(9)),
        )
    ]


LENGTHS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", U64(HUGE), U64(1 << 63), U64(0)]  # fmt: skip


def mutants(count, seed):
    """``count`` damaged frames: bits flipped, cut, bytes inserted, doubled, or lengths blown up; up to three times."""
    frames = samples()
    draws = iter(Coins.from_seed(seed).below(1 << 62, count * 20).tolist())
    for _ in range(count):
        frame = bytearray(frames[next(draws) % len(frames)])
        for _ in range(next(draws) % 3 + 1):
            harm, at, what = next(draws) % 6, next(draws) % (len(frame) + 1), next(draws)
            if harm == 0:
                if at < len(frame):
                    frame[at] ^= 1 << what % 8
            elif harm == 1:
                del frame[at:]
            elif harm == 2:
                frame[at:at] = what.to_bytes(8, "little")[: what % 8 + 1]
            elif harm == 3:
                length = LENGTHS[what % len(LENGTHS)]
                frame[at : at + len(length)] = length
            elif harm == 4:
                del frame[at : at + what % 8 + 1]
            else:
                other = frames[what % len(frames)]
                frame[at:] = other[min(at, len(other)) :]
        yield bytes(frame)


def test_of_20_000_hostile_frames_each_is_refused_or_canonical_and_none_takes_long():
    refused = accepted = 0
    longest = 0.0
    for frame in mutants(20_000, b"hostile"):
        start = time.perf_counter()
        try:
            message = decode(frame)
        except WireError:
            refused += 1
            message = None
        longest = max(longest, time.perf_counter() - start)
        if message is not None:
            accepted += 1
            assert encode(message) == frame
    assert refused > 5_000 and accepted > 500  # the loop reaches both sides
    assert longest < 1.0


@steady
@given(st.binary(max_size=200), st.sampled_from(samples()), st.integers(0, 300))
def test_any_bytes_that_decode_encode_to_themselves(noise, frame, at):
    spliced = frame[:at] + noise + frame[at + len(noise) :]
    for candidate in (noise, spliced, frame_of(noise)):
        try:
            message = decode(candidate)
        except WireError:
            continue
        assert encode(message) == candidate


def peak_of_decoding(frame):
    tracemalloc.start()
    try:
        decode(frame)
    except WireError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_no_hostile_frame_allocates_more_than_a_small_multiple_of_itself():
    frames = [*mutants(2_000, b"memory"), *NOT_FRAMES.values()]
    frames += [frame_of(b"l" + U32(len(body)) + body) for body in (b"T" * 50_000,)]
    for element in (b"l" + U32(0), b"s" + U32(0), b"i" + bytes(8)):
        frames.append(frame_of(b"l" + U32(5_000) + element * 5_000))
    frames.append(encode(Message("t", x=[np.array(1, np.uint8)] * 5_000)))
    frames.append(encode(Message("t", x=[np.zeros((0,) * 8)] * 5_000)))
    for frame in frames:
        assert peak_of_decoding(frame) < 32 * len(frame) + 16_384


def test_arrays_are_not_copied_on_the_way_in():
    frame = encode(Message("t", x=np.zeros(1 << 20)))
    assert peak_of_decoding(frame) < 16_384
    assert len(frame) > 1 << 23


# --- accessors


@pytest.fixture
def message():
    return Message(
        "update",
        blob=b"1234",
        flag=True,
        grid=np.zeros((2, 3), np.float32),
        grids=[np.zeros(2, np.float32), np.ones((1, 2))],
        mixed=[np.zeros(2), 3],
        round=7,
        word="hello",
    )


def test_accessors_give_what_is_there(message):
    assert message.array("grid", dtype="<f4", shape=(2, None)).shape == (2, 3)
    assert [a.shape for a in message.arrays("grids", like=message.fields["grids"])] == [(2,), (1, 2)]  # fmt: skip
    assert message.integer("round", low=7, high=7) == 7
    assert message.text("word") == "hello" and message.blob("blob", length=4) == b"1234"


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.array("absent"),
        lambda m: m.array("round"),
        lambda m: m.array("grids"),
        lambda m: m.array("grid", dtype="<f8"),
        lambda m: m.array("grid", shape=(2,)),
        lambda m: m.array("grid", shape=(2, 4)),
        lambda m: m.array("grid", shape=(None, 3, None)),
        lambda m: m.arrays("grid"),
        lambda m: m.arrays("mixed"),
        lambda m: m.arrays("grids", like=[np.zeros(2, np.float32)]),
        lambda m: m.arrays("grids", like=[np.zeros(2, np.float32), np.ones((2, 1))]),
        lambda m: m.arrays("grids", like=[np.zeros(2), np.ones((1, 2))]),
        lambda m: m.integer("flag"),
        lambda m: m.integer("word"),
        lambda m: m.integer("round", low=8),
        lambda m: m.integer("round", high=6),
        lambda m: m.text("blob"),
        lambda m: m.text("absent"),
        lambda m: m.blob("word"),
        lambda m: m.blob("blob", length=5),
    ],
)
def test_accessors_refuse_what_is_something_else(message, ask):
    with pytest.raises(WireError, match="'update'"):
        ask(message)


def test_errors_and_repr_show_kinds_and_never_values():
    secret = 314_159_265
    message = Message("t", a=np.full(3, secret), b=b"secret", i=secret, l=[secret], s="secret")
    shown = [repr(message)]
    for ask in (message.text, message.array, message.arrays, message.blob, message.integer):
        for name in message.fields:
            try:
                ask(name)
            except WireError as error:
                shown.append(str(error))
    with pytest.raises(WireError) as caught:
        message.integer("i", high=5)
    shown.append(str(caught.value))
    assert len(shown) > 15
    assert not [text for text in shown if str(secret) in text or "secret" in text]
    assert "a: int64[3]" in shown[0] and "b: bytes of length 6" in shown[0]


def test_an_int_with_too_many_digits_to_print_is_out_of_range_like_any_other():
    huge = 1 << 40_000
    assert sys.get_int_max_str_digits() < 12_000  # so printing it would fail
    with pytest.raises(WireError, match="outside"):
        decode(encode(Message("t", x=huge))).integer("x", low=0, high=9)


def test_lists_of_too_many_values_are_refused_at_both_ends_and_a_link_can_lower_the_limit():
    many = Message("t", x=[[1] * (wire.MAX_ITEMS // 2)] * 2)
    with pytest.raises(WireError, match="send arrays"):
        encode(many)
    most = Message("t", x=[True] * wire.MAX_ITEMS)
    assert len(decode(encode(most)).fields["x"]) == wire.MAX_ITEMS
    body = struct.pack("<I", wire.MAX_ITEMS + 1) + b"T" * (wire.MAX_ITEMS + 1)
    with pytest.raises(WireError, match="send arrays"):
        decode(b"\xac\x01\x01t" + struct.pack("<H", 1) + b"\x01xl" + body)
    frame = encode(Message("t", x=b"12345"))
    with pytest.raises(WireError, match="at most 8"):
        decode(frame, limit=8)


@pytest.mark.parametrize("size", [0, 10, (1 << 20) - 64, 1 << 20, 3_000_001])
def test_a_frame_for_a_link_is_the_same_frame(size: int) -> None:
    message = Message("m", a=np.arange(size, dtype=np.uint8), b=[b"x" * size, 3], text="t")
    view = encode_view(message)
    assert bytes(view) == encode(message) and memoryview(view).readonly
    array = decode(view).array("a")
    assert (
        not array.flags.writeable and array.tobytes() == np.arange(size, dtype=np.uint8).tobytes()
    )
