"""The typed wire codec: what every message is on its way between parties.

A `Message` is a tag and named fields. A field is a bool, an int of any size, a float, a str, bytes, a numeric array, or a
list of those. Encoding is canonical: one message has one encoding, and `decode` refuses everything that `encode` would not
have made. Nothing in a frame is executed. Memory stays within a small multiple of the frame: arrays come back as read-only
views into it, announced lengths are checked against the bytes that are left, and lists hold at most 2^20 values.

Layout, integers little-endian::

    frame  = 0xAC version(1) tag fields(u16) field*
    tag    = length(u8) utf-8
    field  = length(u8) utf-8 value                     names strictly ascending
    value  = 'T' | 'F' | 'i' i64 | 'I' u32 two's-complement | 'f' f64 | 's' u32 utf-8 | 'b' u32 bytes
           | 'l' u32 value*                             at most 4 deep
           | 'a' dtype(u8) rank(u8) dim(u64)* zeros-to-8 data
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tacit.core.errors import WireError

Array = npt.NDArray[np.generic]
Value = bool | int | float | str | bytes | Array | Sequence["Value"]

Part = bytes | memoryview

VERSION = 1
MAX_RANK = 8
MAX_DEPTH = 4
MAX_FIELDS = 1024
MAX_ITEMS = 1 << 20
MAX_INT_BYTES = 1 << 16
MAX_FRAME = 1 << 31

_DTYPES = tuple(
    np.dtype(name)
    for name in ("<f4", "<f8", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "?", "<f2")
)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
_I64 = struct.Struct("<q")
_F64 = struct.Struct("<d")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_PAD = tuple(bytes(k) for k in range(8))


class Message:
    """A tag and named fields, as one party sends them to another.

    Args:
        tag: what the message is, at most 255 bytes.
        fields: the values by name. Arrays are not copied: do not change them after.
    """

    __slots__ = ("fields", "tag")

    def __init__(self, tag: str, /, **fields: Value) -> None:
        self.tag = tag
        self.fields: Mapping[str, Value] = fields

    def __repr__(self) -> str:
        # Values may be secrets (shares, seeds): only their kinds are shown.
        kinds = ", ".join(f"{name}: {_kind(value)}" for name, value in self.fields.items())
        return f"Message({self.tag!r}, {kinds})"

    def _field(self, name: str) -> Value:
        if name not in self.fields:
            raise WireError(
                f"message {self.tag!r} lacks the field {name!r}; it has "
                + (", ".join(repr(own) for own in list(self.fields)[:8]) or "none")
            )
        return self.fields[name]

    def _wrong(self, name: str, expected: str, value: Value) -> WireError:
        return WireError(
            f"message {self.tag!r}, field {name!r}: expected {expected}, came {_kind(value)}"
        )

    def array(
        self, name: str, *, dtype: str | None = None, shape: tuple[int | None, ...] | None = None
    ) -> Array:
        """The array of that name.

        Args:
            name: the field.
            dtype: numpy name that it must have.
            shape: sizes that it must have; None in a place allows any size there.

        Raises:
            WireError: there is none, or it is something else.
        """
        value = self._field(name)
        if not isinstance(value, np.ndarray):
            raise self._wrong(name, "an array", value)
        fits = shape is None or (
            len(shape) == value.ndim
            and all(
                want is None or want == got for want, got in zip(shape, value.shape, strict=True)
            )
        )
        if not fits or (dtype is not None and value.dtype != np.dtype(dtype)):
            raise self._wrong(name, f"{dtype or 'any dtype'} of shape {shape or 'any'}", value)
        return value

    def arrays(self, name: str, *, like: Sequence[Array] | None = None) -> list[Array]:
        """The list of arrays of that name, each of the dtype and shape of its fellow in ``like``.

        Raises:
            WireError: there is none, or it is something else.
        """
        value = self._field(name)
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(v, np.ndarray) for v in value
        ):
            raise self._wrong(name, "a list of arrays", value)
        out = [v for v in value if isinstance(v, np.ndarray)]
        if like is not None and [(v.dtype, v.shape) for v in out] != [
            (w.dtype, w.shape) for w in like
        ]:
            expected = ", ".join(f"{w.dtype}{list(w.shape)}" for w in like)
            raise self._wrong(name, f"arrays {expected}", value)
        return out

    def integer(self, name: str, *, low: int | None = None, high: int | None = None) -> int:
        """The int of that name, within [low, high].

        Raises:
            WireError: there is none, or it is something else.
        """
        value = self._field(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "an int", value)
        if (low is not None and value < low) or (high is not None and value > high):
            # The value stays out of the message: it may be a secret, and it may have thousands of digits.
            raise WireError(f"message {self.tag!r}, field {name!r}: outside [{low}, {high}]")
        return value

    def text(self, name: str) -> str:
        """The str of that name.

        Raises:
            WireError: there is none, or it is something else.
        """
        value = self._field(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a str", value)
        return value

    def blob(self, name: str, *, length: int | None = None) -> bytes:
        """The bytes of that name, exactly ``length`` of them where that is given.

        Raises:
            WireError: there is none, or it is something else.
        """
        value = self._field(name)
        if not isinstance(value, bytes) or (length is not None and len(value) != length):
            raise self._wrong(name, "bytes" if length is None else f"{length} bytes", value)
        return value


def _kind(value: Value) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, (str, bytes)):
        return f"{type(value).__name__} of length {len(value)}"
    if isinstance(value, (list, tuple)):
        return f"list of {len(value)}"
    return type(value).__name__


# --- encoding


def encode(message: Message) -> bytes:
    """The frame of a message.

    Raises:
        WireError: a field is of a kind that the wire does not carry, or a frame is larger than `MAX_FRAME`.
    """
    parts, _ = _encode(message)
    return b"".join(parts)


_LARGE = 1 << 20


def encode_view(message: Message) -> bytes | memoryview:
    """`encode`, for links: a large frame is put together while other threads go on, and comes as a read-only view.

    Raises:
        WireError: as `encode`.
    """
    parts, size = _encode(message)
    if size < _LARGE:
        return b"".join(parts)
    frame, at = np.empty(size, np.uint8), 0
    for part in parts:
        count = part.nbytes if isinstance(part, memoryview) else len(part)
        frame[at : at + count] = np.frombuffer(part, np.uint8)  # numpy lets others run meanwhile
        at += count
    return frame.data.toreadonly()


def _encode(message: Message) -> tuple[list[Part], int]:
    """The parts of a frame, and its size."""
    try:
        return _parts(message)
    except UnicodeEncodeError:
        raise WireError("text that is not valid Unicode: it holds a lone surrogate") from None


def _parts(message: Message) -> tuple[list[Part], int]:
    tag = message.tag.encode()
    if not 0 < len(tag) < 256 or len(message.fields) > MAX_FIELDS:
        raise WireError(f"a tag has 1 to 255 bytes and a message at most {MAX_FIELDS} fields")
    parts: list[Part] = [
        bytes((0xAC, VERSION, len(tag))), tag, _U16.pack(len(message.fields)),
    ]  # fmt: skip
    size = 5 + len(tag)
    for name in sorted(message.fields):
        label = name.encode()
        if not 0 < len(label) < 256:
            raise WireError(f"a field name has 1 to 255 bytes, not {len(label)}")
        parts.append(bytes((len(label),)) + label)
        size = _put(parts, message.fields[name], size + 1 + len(label), 0, name)
        if size > MAX_FRAME:
            raise WireError(f"field {name!r}: the frame grows past {MAX_FRAME} bytes")
    if len(parts) > MAX_ITEMS and sum(map(_items, message.fields.values())) > MAX_ITEMS:
        raise WireError(f"more than {MAX_ITEMS} values in lists; send arrays")
    return parts, size


def _items(value: Value) -> int:
    if not isinstance(value, (list, tuple)):
        return 0
    return len(value) + sum(map(_items, value))


def _put(parts: list[Part], value: Value, at: int, depth: int, name: str) -> int:
    if isinstance(value, np.ndarray):
        return _put_array(parts, value, at, name)
    if isinstance(value, (list, tuple)):
        if depth >= MAX_DEPTH:
            raise WireError(f"field {name!r}: lists nest at most {MAX_DEPTH} deep")
        parts.append(b"l" + _U32.pack(len(value)))
        at += 5
        for item in value:
            at = _put(parts, item, at, depth + 1, name)
        return at
    piece = _scalar(value, name)
    parts.append(piece)
    return at + len(piece)


def _scalar(value: object, name: str) -> bytes:
    if isinstance(value, bool):
        return b"T" if value else b"F"
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 63:
            return b"i" + _I64.pack(value)
        body = value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, "little", signed=True)
        if len(body) > MAX_INT_BYTES:
            raise WireError(f"field {name!r}: an int of {len(body)} bytes; at most {MAX_INT_BYTES}")
        return b"I" + _U32.pack(len(body)) + body
    if isinstance(value, float):
        return b"f" + _F64.pack(value)
    if isinstance(value, str):
        body = value.encode()
        return b"s" + _U32.pack(len(body)) + body
    if isinstance(value, bytes):
        return b"b" + _U32.pack(len(value)) + value
    raise WireError(
        f"field {name!r}: the wire carries bool, int, float, str, bytes, arrays and lists, not {type(value).__name__}"
    )


def _put_array(parts: list[Part], value: Array, at: int, name: str) -> int:
    dtype = value.dtype.newbyteorder("<")
    code = _CODES.get(dtype)
    if code is None or value.ndim > MAX_RANK:
        raise WireError(
            f"field {name!r}: arrays of rank up to {MAX_RANK} and dtype "
            f"{', '.join(str(d) for d in _DTYPES)}, not {value.dtype} of rank {value.ndim}"
        )
    head = struct.pack(f"<cBB{value.ndim}Q", b"a", code, value.ndim, *value.shape)
    at += len(head)
    pad = -at % 8
    parts.append(head + _PAD[pad])
    if value.size:
        data = np.ascontiguousarray(value, dtype).reshape(-1).view(np.uint8)
        if dtype.kind == "b" and (data > 1).any():
            raise WireError(f"field {name!r}: a bool array with a byte that is neither 0 nor 1")
        parts.append(data.data)
    elif _room(value.shape) > MAX_FRAME:
        raise WireError(f"field {name!r}: an empty array of shape {value.shape}")
    return at + pad + value.nbytes


def _room(shape: tuple[int, ...]) -> int:
    return math.prod(max(dim, 1) for dim in shape)  # a zero must not hide huge sizes


# --- decoding


def decode(frame: bytes | memoryview, *, limit: int = MAX_FRAME) -> Message:
    """The message of a frame; its arrays are read-only views into the frame.

    Args:
        frame: the bytes; a view of bytes must be read-only and stay as it is.
        limit: refuse longer frames; a link sets what its peer may send.

    Raises:
        WireError: the frame is not one that `encode` makes. No other exception leaves here, whatever the bytes.
    """
    if len(frame) > limit:
        raise WireError(f"a frame of {len(frame)} bytes; at most {limit}")
    try:
        return _Reader(frame).message()
    except (struct.error, IndexError):
        raise WireError(f"a frame of {len(frame)} bytes ends in the middle of a value") from None
    except UnicodeDecodeError:
        raise WireError("a frame with text that is not UTF-8") from None


class _Reader:
    __slots__ = ("at", "frame", "items", "size")

    def __init__(self, frame: bytes | memoryview) -> None:
        self.frame = frame
        self.size = len(frame)
        self.at = 0
        self.items = 0  # in lists

    def message(self) -> Message:
        frame = self.frame
        if frame[0] != 0xAC or frame[1] != VERSION:
            raise WireError(
                f"not a frame of version {VERSION}: it begins with {frame[:2].hex()}; is the peer of another version?"
            )
        self.at = 2
        tag = self.label()
        (count,) = _U16.unpack_from(frame, self.at)
        self.at += 2
        if count > MAX_FIELDS:
            raise WireError(f"{count} fields; at most {MAX_FIELDS}")
        message = Message(tag)
        fields: dict[str, Value] = {}
        last = ""
        for _ in range(count):
            name = self.label()
            if name <= last:
                raise WireError("field names are not in strictly ascending order")
            fields[name] = self.value(0)
            last = name
        if self.at != self.size:
            raise WireError(f"{self.size - self.at} bytes after the last field")
        message.fields = fields
        return message

    def label(self) -> str:
        length = self.frame[self.at]
        if length == 0:
            raise WireError("an empty tag or field name")
        self.at += 1
        return self.take(length).decode()

    def take(self, count: int) -> bytes:
        start = self.at
        if count > self.size - start:
            raise WireError(f"{count} bytes announced where {self.size - start} are left")
        self.at = start + count
        return bytes(self.frame[start : self.at])

    def length(self) -> int:
        (count,) = _U32.unpack_from(self.frame, self.at)
        self.at += 4
        return int(count)

    def value(self, depth: int) -> Value:
        kind = self.frame[self.at]
        self.at += 1
        if kind == 0x61:  # a
            return self.array()
        if kind == 0x69:  # i
            return int(_I64.unpack(self.take(8))[0])
        if kind == 0x73:  # s
            return self.take(self.length()).decode()
        if kind == 0x62:  # b
            return self.take(self.length())
        if kind == 0x66:  # f
            return float(_F64.unpack(self.take(8))[0])
        if kind == 0x6C:  # l
            return self.list(depth)
        if kind == 0x49:  # I
            return self.big()
        if kind in (0x54, 0x46):  # T F
            return kind == 0x54
        raise WireError(f"unknown kind of value 0x{kind:02x}")

    def list(self, depth: int) -> list[Value]:
        if depth >= MAX_DEPTH:
            raise WireError(f"lists nest more than {MAX_DEPTH} deep")
        count = self.length()
        self.items += count
        # a Python object is many times larger than the byte that asks for it
        if self.items > MAX_ITEMS:
            raise WireError(f"more than {MAX_ITEMS} values in lists; send arrays")
        if count > self.size - self.at:  # every value takes at least one byte
            raise WireError(
                f"a list of {count} values announced where {self.size - self.at} bytes are left"
            )
        return [self.value(depth + 1) for _ in range(count)]

    def big(self) -> int:
        count = self.length()
        if not 9 <= count <= MAX_INT_BYTES:
            raise WireError(f"an int of {count} bytes; long ints have 9 to {MAX_INT_BYTES}")
        body = self.take(count)
        value = int.from_bytes(body, "little", signed=True)
        if _scalar(value, "")[5:] != body:
            raise WireError("an int that is not in its shortest form")
        return value

    def array(self) -> Array:
        frame = self.frame
        code, rank = frame[self.at], frame[self.at + 1]
        if code >= len(_DTYPES) or rank > MAX_RANK:
            raise WireError(
                f"an array of dtype code {code}, rank {rank}; at most {len(_DTYPES) - 1} and {MAX_RANK}"
            )
        shape = struct.unpack_from(f"<{rank}Q", frame, self.at + 2)
        self.at += 2 + 8 * rank
        dtype = _DTYPES[code]
        if _room(shape) > MAX_FRAME:
            raise WireError(f"an array of shape {shape} is larger than any frame")
        if any(self.take(-self.at % 8)):
            raise WireError("padding that is not zero")
        count = math.prod(shape)
        start = self.at
        if count * dtype.itemsize > self.size - start:
            raise WireError(
                f"an array of {count * dtype.itemsize} bytes announced where {self.size - start} are left"
            )
        self.at = start + count * dtype.itemsize
        if count == 0:
            return _frozen(np.empty(shape, dtype))
        out: Array = np.ndarray(shape, dtype, frame, start)
        if dtype.kind == "b" and (out.view(np.uint8) > 1).any():
            raise WireError("a bool array with a byte that is neither 0 nor 1")
        return out


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
