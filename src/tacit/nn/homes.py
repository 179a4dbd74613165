"""Where data sets have a public home, and how what lies there becomes the files that are read here.

Nothing is written and nothing is trusted: what is unpacked is bounded, and whether the result is the
data set is for the checks of `tacit.nn.data.load` to say.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tacit.core.errors import DataError
from tacit.nn.files import Bytes, damaged
from tacit.nn.tables import TABLES

_GITHUB = "https://raw.githubusercontent.com"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where a data set can be fetched.

    Attributes:
        base: what every address begins with.
        paths: how each goes on.
        size: bytes of all of them together, as far as known; none may be larger than twice that.
        convert: makes of their contents, in the order of ``paths``, the files that `load` reads.
            Raises DataError if they are not of the expected kind.
    """

    base: str
    paths: tuple[str, ...]
    size: int
    convert: Callable[[Sequence[bytes]], dict[str, bytes]]


def _tables(name: str, *, headed: bool = False) -> Callable[[Sequence[bytes]], dict[str, bytes]]:
    source = TABLES[name]

    def convert(contents: Sequence[bytes]) -> dict[str, bytes]:
        header = [] if headed else [",".join(source.header)]
        return {
            file: gzip.compress("\n".join([*header, *_lines(raw), ""]).encode(), mtime=0)
            for file, raw in zip(source.files, contents, strict=True)
        }

    return convert


def _lines(raw: bytes) -> list[str]:
    """UCI's tables have spaces after commas, empty last lines and, in Adult's test part, full stops."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged("what came is not text", error) from error
    return [
        ",".join(cell.strip() for cell in line.split(",")).removesuffix(".")
        for line in text.splitlines()
        if line.strip()
    ]


def _faces(contents: Sequence[bytes]) -> dict[str, bytes]:
    faces = np.stack([parse_pgm(raw, 112, 92) for raw in contents])
    return {"att_faces.npz": _npz(X=faces, y=(np.arange(len(faces)) // 10).astype(np.uint8))}


def _location30(contents: Sequence[bytes]) -> dict[str, bytes]:
    (packed,) = contents
    lines = read_tar_member(packed, "bangkok", 8 * _MIB).replace(b'"', b"").splitlines()
    try:
        table = np.array([[int(cell) for cell in line.split(b",")] for line in lines], np.uint8)
        labels, values = table[:, 0], table[:, 1:]
    except (ValueError, IndexError, OverflowError) as error:
        raise damaged("bangkok must hold rows of small whole numbers", error) from error
    return {"location30.npz": _npz(X=values, y=labels - np.uint8(1))}


def _mnist(contents: Sequence[bytes]) -> dict[str, bytes]:
    names = ("X_train", "y_train", "X_test", "y_test")
    arrays = {
        name: parse_idx(gunzip(raw, 64 * _MIB)) for name, raw in zip(names, contents, strict=True)
    }
    return {"mnist.npz": _npz(**arrays)}


def parse_pgm(raw: bytes, height: int, width: int) -> Bytes:
    """A grey picture in the binary PGM format with 8 bits a pixel and no comments.

    Raises:
        DataError: it is not one of that size.
    """
    head = re.match(rb"P5\s+(\d{1,5})\s+(\d{1,5})\s+255\s", raw)
    if not head or (int(head[1]), int(head[2]), len(raw) - head.end()) != (
        width,
        height,
        width * height,
    ):
        raise DataError(
            f"expected a binary PGM picture of {width} x {height} pixels of 8 bits, "
            f"got {len(raw)} bytes that begin with {raw[:16]!r}"
        )
    return np.frombuffer(raw, np.uint8, offset=head.end()).reshape(height, width)


def parse_idx(raw: bytes) -> Bytes:
    """An array of bytes in MNIST's own format: type, number of axes, their lengths, values.

    Raises:
        DataError: it is not one.
    """
    axes = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", raw[4:start]) if axes and len(raw) >= start else ()
    if not shape or math.prod(shape) != len(raw) - start:
        raise DataError(
            f"expected an IDX file of bytes, got {len(raw)} bytes that begin with {raw[:16]!r}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def gunzip(packed: bytes, limit: int) -> bytes:
    """Unpack gzip data of at most ``limit`` bytes.

    Raises:
        DataError: it is not whole gzip data, or there is more in it.
    """
    unpacking = zlib.decompressobj(wbits=31)
    try:
        raw = unpacking.decompress(packed, limit + 1)
    except zlib.error as error:
        raise damaged("what came is not gzip data", error) from error
    if len(raw) > limit:
        raise DataError(f"what came unpacks to more than {limit:,} bytes: it is something else")
    if not unpacking.eof:
        raise DataError("what came is gzip data that was cut short")
    return raw


def read_tar_member(packed: bytes, name: str, limit: int) -> bytes:
    """One file out of a ``.tgz`` archive, in memory; no path in the archive is ever used.

    Raises:
        DataError: it is not such an archive, or has no plain file of that name and size.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(gunzip(packed, limit)), mode="r:") as archive:
            member = archive.getmember(name)
            if member.isreg() and member.size <= limit:
                stream = archive.extractfile(member)
                raw = b"" if stream is None else stream.read()
                if len(raw) == member.size:
                    return raw
    except (tarfile.TarError, KeyError, EOFError, ValueError, OSError) as error:
        raise damaged(f"what came is not an archive with {name}", error) from error
    raise DataError(f"{name} in the archive that came is no whole plain file of {limit:,} bytes")


def _npz(**arrays: Bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return stream.getvalue()


_BROWNLEE = f"{_GITHUB}/jbrownlee/Datasets/d20fcb6402ae34e653d4513b00f39257bb37ed7f/"

HOMES: Mapping[str, Home] = {
    "mnist": Home(
        base="https://ossci-datasets.s3.amazonaws.com/mnist/",
        paths=(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        size=11_594_722,
        convert=_mnist,
    ),
    "att-faces": Home(
        base=(
            f"{_GITHUB}/hakawa-bernardi/orl-face-recognition-pca-svm/"
            "3edc842bc89bddbd3d6bcf12d23a4f9c2a493883/"
        ),
        paths=tuple(
            f"orl_faces/s{person}/{picture}.pgm"
            for person in range(1, 41)
            for picture in range(1, 11)
        ),
        size=400 * 10_318,
        convert=_faces,
    ),
    "location30": Home(
        base=f"{_GITHUB}/privacytrustlab/datasets/169de9de00de049dd2e571cf7279e64698ac046a/",
        paths=("dataset_location.tgz",),
        size=287_293,
        convert=_location30,
    ),
    "adult": Home(
        base=_BROWNLEE,
        paths=("adult-train.csv", "adult-test.csv"),
        size=5_977_437,
        convert=_tables("adult"),
    ),
    "pima": Home(
        base=_BROWNLEE,
        paths=("pima-indians-diabetes.csv",),
        size=23_278,
        convert=_tables("pima"),
    ),
    "iris": Home(base=_BROWNLEE, paths=("iris.csv",), size=4_549, convert=_tables("iris")),
    "wisconsin": Home(
        base=_BROWNLEE,
        paths=("breast-cancer-wisconsin.data",),
        size=19_889,
        convert=_tables("wisconsin"),
    ),
    "mushrooms": Home(
        base=f"{_GITHUB}/Zanderax/ID3/abd54a75f990b84eb47a99d329a0b6d5f585c01b/",
        paths=("agaricus-lepiota.data",),
        size=374_007,
        convert=_tables("mushrooms", headed=True),
    ),
}

NO_HOME: Mapping[str, str] = {
    "digits": "it comes with scikit-learn and needs no file",
    "cifar10": (
        "its 24,000 images are a subset of our own choice that lies nowhere in public: "
        "put cifar10_24k.npz into the folder"
    ),
}
