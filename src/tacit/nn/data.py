"""Data sets for experiments, checked as they are read, and their division among owners.

``digits`` comes with scikit-learn. The others are ``.npz`` files in the folder that the environment
variable ``TACIT_DATA`` names. A file is read array by array: each array's type and shape are checked
against what is expected before its values are read, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit.core.errors import ConfigError, DataError, UnknownName

Bytes = NDArray[np.uint8]

_VARIABLE = "TACIT_DATA"
_TEN_DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSet:
    """Labelled examples for training and, apart from them, for testing.

    Attributes:
        name: what the data set is called.
        inputs_train: float32 in [0, 1], shape (rows, ``*input_shape``).
        labels_train: int64 in 0 .. classes - 1, shape (rows,).
        inputs_test: as ``inputs_train``, other rows.
        labels_test: as ``labels_train``, other rows.
        classes: number of classes.
        class_names: one name per class.
        citation: the publication to credit.

    Raises:
        DataError: a tensor's type, shape or values are not as above.
    """

    name: str
    inputs_train: Tensor
    labels_train: Tensor
    inputs_test: Tensor
    labels_test: Tensor
    classes: int
    class_names: tuple[str, ...]
    citation: str

    def __post_init__(self) -> None:
        if self.classes < 1 or len(self.class_names) != self.classes:
            raise DataError(
                f"data set {self.name}: expected one name per class and at least one class, got "
                f"{self.classes} classes and {len(self.class_names)} names"
            )
        self._check_part("train", self.inputs_train, self.labels_train)
        self._check_part("test", self.inputs_test, self.labels_test)
        if self.inputs_train.shape[1:] != self.inputs_test.shape[1:]:
            raise DataError(
                f"data set {self.name}: training inputs have shape {self.input_shape} but test "
                f"inputs have {tuple(self.inputs_test.shape[1:])}"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.inputs_train.shape[1:])

    def _check_part(self, part: str, inputs: Tensor, labels: Tensor) -> None:
        name = f"data set {self.name}: inputs_{part}"
        if inputs.dtype != torch.float32 or inputs.ndim < 2 or len(inputs) == 0:
            raise DataError(
                f"{name} must be float32 of shape (rows, ...) with at least one row, "
                f"not {inputs.dtype} of shape {tuple(inputs.shape)}"
            )
        low, high = (bound.item() for bound in torch.aminmax(inputs))
        # Written so that NaN, which aminmax hands on, fails too.
        if not (low >= 0 and high <= 1):
            check_finite(name, inputs)
            raise DataError(f"{name} must lie in [0, 1], but lies in [{low:g}, {high:g}]: scale it")
        _check_labels(f"data set {self.name}: labels_{part}", labels, len(inputs), self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What can be said of a data set without reading it.

    Attributes:
        name: what `load` takes.
        where: the file, or for a missing folder what to set; "scikit-learn" for the bundled set.
        present: whether the file is there (its contents are checked when it is loaded).
        why_not: why it is not present; empty if it is.
        rows_train: number of training rows.
        rows_test: number of test rows.
        input_shape: shape of one input.
        classes: number of classes.
        citation: the publication to credit.
    """

    name: str
    where: str
    present: bool
    why_not: str
    rows_train: int
    rows_test: int
    input_shape: tuple[int, ...]
    classes: int
    citation: str


def load(name: str, folder: Path | str | None = None) -> DataSet:
    """Read a data set and check it.

    - ``digits``: 8x8 grey images. Of each class, in the published order, every fifth row is a test
      row, so that both parts come from the same writers.
    - ``mnist``: 28x28 grey images, the official split.
    - ``cifar10``: 32x32 colour images, a stratified subset of 20,000 + 4,000 of the official split.

    Args:
        name: one of the above.
        folder: where the files are; by default what the environment variable ``TACIT_DATA`` says.

    Raises:
        UnknownName: there is no such data set.
        DataError: the folder or file is missing, damaged, or not the data it should be.
    """
    source = _SOURCES.get(name)
    if source is None:
        raise UnknownName("data set", name, _SOURCES)
    if source.file is None:
        return source.read(Path())
    path, why_not = _locate(source.file, folder)
    if why_not:
        raise DataError(f"data set {name!r}: {why_not}")
    return source.read(path)


def available(folder: Path | str | None = None) -> list[Listing]:
    """Every data set, present or not, without reading any.

    Args:
        folder: where the files are; by default what the environment variable ``TACIT_DATA`` says.
    """
    return [_listing(name, source, folder) for name, source in _SOURCES.items()]


def split_iid(rows: int, owners: int, generator: torch.Generator) -> list[Tensor]:
    """Deal rows out at random, as evenly as can be.

    Args:
        rows: how many there are.
        owners: among how many; each gets at least one row.
        generator: draws the permutation.

    Returns:
        For each owner its row numbers: int64, disjoint, together 0 .. rows - 1.

    Raises:
        ConfigError: fewer rows than owners, or no owner.
    """
    _check_owners(rows, owners)
    return list(torch.randperm(rows, generator=generator).tensor_split(owners))


def split_by_label(labels: Tensor, owners: int, generator: torch.Generator) -> list[Tensor]:
    """Deal rows out so that owners see different labels: the hard case of collaborative learning.

    With no more owners than labels, each label goes to one owner, in ascending order. With more, the
    rows are sorted by label and cut evenly, so that an owner sees one label, or two that adjoin.

    Args:
        labels: label of each row, shape (rows,).
        owners: among how many; each gets at least one row.
        generator: draws the order of rows within a label.

    Returns:
        For each owner its row numbers: int64, disjoint, together 0 .. rows - 1.

    Raises:
        ConfigError: fewer rows than owners, or no owner.
    """
    _check_owners(len(labels), owners)
    shuffled = torch.randperm(len(labels), generator=generator)
    present = torch.unique(labels)
    if owners <= len(present):
        groups = present.tensor_split(owners)
        return [shuffled[torch.isin(labels[shuffled], group)] for group in groups]
    by_label = torch.sort(labels[shuffled], stable=True).indices
    return list(shuffled[by_label].tensor_split(owners))


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse values that are infinite or not a number.

    Args:
        name: what the tensor is called in the message.
        tensor: any shape; examples along the first axis.

    Raises:
        DataError: some are; says how many and in which row the first.
    """
    finite = torch.isfinite(tensor)
    if finite.all():
        return
    bad = (~finite).nonzero()
    where = f", the first in row {int(bad[0, 0])}" if tensor.ndim else ""
    raise DataError(
        f"{name} must be finite, but {len(bad)} of {tensor.numel()} values are not{where}: "
        "repair or leave out those rows"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    file: str | None
    rows_train: int
    rows_test: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    citation: str
    read: Callable[[Path], DataSet]


def _read_digits(_path: Path) -> DataSet:
    # Imported here: it takes a second, which listing and the other sets need not wait for.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    pixels, digits = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels).to(torch.float32).div_(16).view(-1, 1, 8, 8)
    labels = torch.from_numpy(digits).to(torch.int64)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        is_test[(labels == label).nonzero()[4::5]] = True
    return DataSet(
        name="digits",
        inputs_train=inputs[~is_test],
        labels_train=labels[~is_test],
        inputs_test=inputs[is_test],
        labels_test=labels[is_test],
        classes=10,
        class_names=_TEN_DIGITS,
        citation=_SOURCES["digits"].citation,
    )


def _read_mnist(path: Path) -> DataSet:
    shapes = {
        "X_train": (60000, 28, 28),
        "y_train": (60000,),
        "X_test": (10000, 28, 28),
        "y_test": (10000,),
    }
    arrays = _read_arrays(path, shapes)
    first = arrays["y_train"][:5].tolist()
    if first != [5, 0, 4, 1, 9]:
        raise DataError(f"{path}: MNIST's first labels are 5 0 4 1 9, but y_train has {first}")
    for name, mean in (("X_train", 33.3184), ("X_test", 33.7912)):
        found = round(float(arrays[name].mean()), 4)
        if found != mean:
            raise DataError(f"{path}: the mean pixel of {name} is {mean} in MNIST, here {found}")
    return DataSet(
        name="mnist",
        inputs_train=_unit(arrays["X_train"]).unsqueeze(1),
        labels_train=_labels(path, "y_train", arrays["y_train"]),
        inputs_test=_unit(arrays["X_test"]).unsqueeze(1),
        labels_test=_labels(path, "y_test", arrays["y_test"]),
        classes=10,
        class_names=_TEN_DIGITS,
        citation=_SOURCES["mnist"].citation,
    )


def _read_cifar10(path: Path) -> DataSet:
    shapes = {
        "R_train": (3, 20000, 32, 32),
        "y_train": (20000,),
        "R_test": (3, 4000, 32, 32),
        "y_test": (4000,),
    }
    arrays = _read_arrays(path, shapes)
    for name in ("y_train", "y_test"):
        per_class = len(arrays[name]) // 10
        counts = np.bincount(arrays[name], minlength=10).tolist()
        if counts != [per_class] * 10:
            raise DataError(
                f"{path}: {name} must hold {per_class} labels of each of 10 classes, not {counts}"
            )
    train = _pixels(path, "R_train", arrays["R_train"], _CIFAR_TRAIN_SHA256)
    test = _pixels(path, "R_test", arrays["R_test"], _CIFAR_TEST_SHA256)
    return DataSet(
        name="cifar10",
        inputs_train=_unit(train),
        labels_train=_labels(path, "y_train", arrays["y_train"]),
        inputs_test=_unit(test),
        labels_test=_labels(path, "y_test", arrays["y_test"]),
        classes=10,
        class_names=_SOURCES["cifar10"].class_names,
        citation=_SOURCES["cifar10"].citation,
    )


_CIFAR_TRAIN_SHA256 = "c635babed24c62cd15b29821038552d445e99e5572fb62230dc9b211c76ace0d"
_CIFAR_TEST_SHA256 = "83012eb25a30f10299c789c16e99f1c8e1ac325160f502094a1d1ee6ca6ccba5"

_SOURCES: Mapping[str, _Source] = {
    "digits": _Source(
        file=None,
        rows_train=1442,
        rows_test=355,
        input_shape=(1, 8, 8),
        class_names=_TEN_DIGITS,
        citation=(
            "Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, "
            "UCI Machine Learning Repository, 1998"
        ),
        read=_read_digits,
    ),
    "mnist": _Source(
        file="mnist.npz",
        rows_train=60000,
        rows_test=10000,
        input_shape=(1, 28, 28),
        class_names=_TEN_DIGITS,
        citation=(
            "LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document "
            "recognition, Proceedings of the IEEE, 1998"
        ),
        read=_read_mnist,
    ),
    "cifar10": _Source(
        file="cifar10_24k.npz",
        rows_train=20000,
        rows_test=4000,
        input_shape=(3, 32, 32),
        class_names=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        citation="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
        read=_read_cifar10,
    ),
}


def _locate(file: str, folder: Path | str | None) -> tuple[Path, str]:
    named = os.environ.get(_VARIABLE, "") if folder is None else folder
    if not str(named):
        return Path(file), (
            f"the environment variable {_VARIABLE} is not set: "
            f"set it to the folder that holds {file}, or use 'digits', which needs no file"
        )
    path = Path(named) / file
    if not path.parent.is_dir():
        return path, f"there is no folder {path.parent}: set {_VARIABLE} to the one with {file}"
    if not path.is_file():
        return path, f"there is no file {path}: put {file} there, or set {_VARIABLE} to its folder"
    return path, ""


def _listing(name: str, source: _Source, folder: Path | str | None) -> Listing:
    where, why_not = "scikit-learn", ""
    if source.file is not None:
        path, why_not = _locate(source.file, folder)
        where = str(path)
    return Listing(
        name=name,
        where=where,
        present=not why_not,
        why_not=why_not,
        rows_train=source.rows_train,
        rows_test=source.rows_test,
        input_shape=source.input_shape,
        classes=len(source.class_names),
        citation=source.citation,
    )


def _read_arrays(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Bytes]:
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        raise _damaged(f"{path} is not a whole .npz file", error) from error
    with archive:
        return {name: _read_array(archive, path, name, shape) for name, shape in shapes.items()}


def _read_array(archive: zipfile.ZipFile, path: Path, name: str, shape: tuple[int, ...]) -> Bytes:
    member = f"{name}.npy"
    if member not in archive.namelist():
        held = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist()[:20]))
        raise DataError(f"{path} must hold an array {name}, but holds {held or 'nothing'}")
    what = f"{path}: array {name}"
    # Shape and type first, so that no memory is claimed on a damaged header's word.
    found_shape, dtype = _header(archive, member, what)
    if found_shape != shape or dtype != np.uint8:
        raise DataError(
            f"{what} must be uint8 of shape {shape}, not {dtype} of shape {found_shape}"
        )
    try:
        with archive.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(f"{what} is damaged", error) from error


def _header(
    archive: zipfile.ZipFile, member: str, what: str
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    except Exception as error:
        raise _damaged(f"{what} is damaged", error) from error
    return shape, dtype


def _damaged(what: str, error: Exception) -> DataError:
    """On foreign bytes zipfile, zlib, numpy and Python's parser raise a dozen kinds of error."""
    said = str(error).partition("\n")[0][:100]
    return DataError(f"{what} ({type(error).__name__}: {said}): fetch it again")


def _pixels(path: Path, name: str, residuals: Bytes, sha256: str) -> Bytes:
    """Undo the lossless coding: differences along both axes, red and blue less green."""
    planes = np.cumsum(np.cumsum(residuals, 2, dtype=np.uint8), 3, dtype=np.uint8)
    planes[0] += planes[1]
    planes[2] += planes[1]
    digest = hashlib.sha256(np.ascontiguousarray(np.moveaxis(planes, 0, 3)).data).hexdigest()
    if digest != sha256:
        raise DataError(
            f"{path}: the images decoded from {name} have SHA-256 {digest}, expected {sha256}: "
            "fetch the file again"
        )
    return np.ascontiguousarray(planes.swapaxes(0, 1))


def _unit(pixels: Bytes) -> Tensor:
    return torch.from_numpy(pixels).to(torch.float32).div_(255)


def _labels(path: Path, name: str, array: Bytes) -> Tensor:
    labels = torch.from_numpy(array).to(torch.int64)
    _check_labels(f"{path}: {name}", labels, len(labels), 10)
    return labels


def _check_labels(name: str, labels: Tensor, rows: int, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (rows,):
        raise DataError(
            f"{name} must be int64 of shape ({rows},), "
            f"not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{name} must lie in 0 .. {classes - 1}, but lies in {low} .. {high}")


def _check_owners(rows: int, owners: int) -> None:
    if not 1 <= owners <= rows:
        raise ConfigError(
            f"cannot deal {rows} rows out among {owners} owners: "
            "there must be at least one owner, and a row for each"
        )
