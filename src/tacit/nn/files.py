"""Reading files of data: array by array or row by row, nothing unpickled, nothing trusted.

Each array's type and shape are checked against what is expected before its values are read; a table's
text is read up to a limit. What was read is known by the SHA-256 of the decoded values, so that a file
that was compressed anew passes and one with another value does not.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tacit.core.errors import DataError

Bytes = NDArray[np.uint8]

_VARIABLE = "TACIT_DATA"
_TEXT_LIMIT = 64 << 20
_CELL_LIMIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is known of a data set without reading it.

    Attributes:
        name: what it is called.
        files: the files that hold it; none if it is bundled.
        rows_train: number of training rows.
        rows_test: number of test rows.
        input_shape: shape of one input.
        class_names: one name per class.
        citation: the publication to credit.
        sha256: `digest` of the decoded arrays; empty if bundled.
    """

    name: str
    files: tuple[str, ...]
    rows_train: int
    rows_test: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    citation: str
    sha256: str


def folder_of(folder: Path | str | None) -> str:
    """The folder given, else the one that the environment names; empty if neither is."""
    return os.environ.get(_VARIABLE, "") if folder is None else str(folder)


def locate(source: Source, folder: Path | str | None) -> tuple[tuple[Path, ...], str]:
    """Where a data set's files are, and why not if they are not; empty if they are."""
    named, files = folder_of(folder), " and ".join(source.files)
    if not named:
        return tuple(map(Path, source.files)), (
            f"the environment variable {_VARIABLE} is not set: "
            f"set it to the folder that holds {files}, or use 'digits', which needs no file"
        )
    root = Path(named)
    paths = tuple(root / file for file in source.files)
    if not root.is_dir():
        return paths, f"there is no folder {root}: set {_VARIABLE} to the one with {files}"
    for path in paths:
        if not path.is_file():
            return paths, (
                f"there is no file {path}: put {path.name} there, or set {_VARIABLE} to its folder"
            )
    return paths, ""


def required(source: Source, folder: Path | str | None) -> tuple[Path, ...]:
    """Where a data set's files are.

    Raises:
        DataError: one is missing; says which, and what to do.
    """
    paths, why_not = locate(source, folder)
    if why_not:
        raise DataError(f"data set {source.name!r}: {why_not}")
    return paths


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of decoded values, whatever file they came from.

    For each array in the order given, what is hashed is the line ``name dtype shape`` in UTF-8, dtype
    as numpy writes it (``|u1``, ``<f8``, ``<U6``) and shape as Python does, then the values' bytes in
    row-major order, least significant byte first.
    """
    total = hashlib.sha256()
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        total.update(f"{name} {plain.dtype.str} {plain.shape}\n".encode())
        total.update(plain.view(np.uint8).data)
    return total.hexdigest()


def check_digest(source: Source, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse values other than the published ones.

    Raises:
        DataError: `digest` is not the source's.
    """
    found = digest(arrays)
    if found != source.sha256:
        raise DataError(
            f"{' and '.join(source.files)}: what was decoded has SHA-256 {found}, but {source.name} "
            f"has {source.sha256}: some value was changed, fetch it again"
        )


class Header(NamedTuple):
    """Of an array in an ``.npz`` file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read_arrays(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Bytes]:
    """Read uint8 arrays from an ``.npz`` file.

    Args:
        path: the file.
        shapes: which arrays, and the shape that each must have.

    Raises:
        DataError: it is not such a file, or an array is absent, damaged or of another kind.
    """
    return read_typed(
        path, {name: Header(shape, np.dtype(np.uint8)) for name, shape in shapes.items()}
    )


def read_headers(path: Path) -> dict[str, Header]:
    """Shape and type of each array of an ``.npz`` file, without their values.

    Raises:
        DataError: it is not such a file, or a header is damaged or promises more than the file holds.
    """
    found = {}
    with _opened(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            found[name] = header = _header(archive, entry.filename, f"{path}: array {name}")
            size = 0 if header.dtype.hasobject else math.prod(header.shape) * header.dtype.itemsize
            if size > entry.file_size:
                raise DataError(
                    f"{path}: array {name} is damaged: {header.dtype} of shape {header.shape} does not fit in "
                    f"{entry.file_size} bytes"
                )
    return found


def read_typed(path: Path, headers: Mapping[str, Header]) -> dict[str, NDArray[Any]]:
    """Read arrays of known shapes and types from an ``.npz`` file.

    Args:
        path: the file.
        headers: which arrays, and the shape and type that each must have.

    Raises:
        DataError: as `read_arrays`.
    """
    with _opened(path) as archive:
        return {name: _read_array(archive, path, name, header) for name, header in headers.items()}


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        raise damaged(f"{path} is not a whole .npz file", error) from error


def read_columns(path: Path, names: Sequence[str], rows: int) -> list[list[str]]:
    """Read a gzip CSV file with a header line.

    Args:
        path: the file.
        names: what the header must say.
        rows: how many must follow.

    Returns:
        For each column its cells, as text.

    Raises:
        DataError: it is not such a file, or not of that size.
    """
    try:
        with gzip.open(path) as stream:
            text = stream.read(_TEXT_LIMIT)
        table = list(csv.reader(text.decode("utf-8").splitlines(), strict=True))
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise damaged(f"{path} is not a whole gzip file", error) from error
        raise DataError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        raise damaged(f"{path} is not a whole gzip CSV file", error) from error
    if not table or table[0] != list(names):
        came = ",".join(table[0])[:200] if table else "nothing"
        raise DataError(
            f"{path} must begin with the line {','.join(names)}, but begins with {came}"
        )
    for number, cells in enumerate(table, 1):
        if len(cells) != len(names):
            raise DataError(f"{path}, line {number}: expected {len(names)} cells, got {len(cells)}")
        if max(map(len, cells)) > _CELL_LIMIT:
            raise DataError(f"{path}, line {number}: a cell has more than {_CELL_LIMIT} characters")
    if len(table) != rows + 1:
        raise DataError(f"{path} must hold {rows} rows, but holds {len(table) - 1}: fetch it again")
    return [list(column) for column in zip(*table[1:], strict=True)]


def damaged(what: str, error: Exception) -> DataError:
    """On foreign bytes zipfile, zlib, numpy and Python's parser raise a dozen kinds of error."""
    said = str(error).partition("\n")[0][:100]
    return DataError(f"{what} ({type(error).__name__}: {said}): fetch it again")


def _read_array(archive: zipfile.ZipFile, path: Path, name: str, wanted: Header) -> NDArray[Any]:
    member = f"{name}.npy"
    if member not in archive.namelist():
        held = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist()[:20]))
        raise DataError(f"{path} must hold an array {name}, but holds {held or 'nothing'}")
    what = f"{path}: array {name}"
    # Shape and type first, so that no memory is claimed on a damaged header's word.
    found = _header(archive, member, what)
    if found != wanted:
        raise DataError(
            f"{what} must be {wanted.dtype} of shape {wanted.shape}, not {found.dtype} of shape {found.shape}"
        )
    try:
        with archive.open(member) as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            return array
    except MemoryError:
        raise
    except Exception as error:
        raise damaged(f"{what} is damaged", error) from error


def _header(archive: zipfile.ZipFile, member: str, what: str) -> Header:
    try:
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    except Exception as error:
        raise damaged(f"{what} is damaged", error) from error
    return Header(shape, dtype)
