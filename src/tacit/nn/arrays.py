"""The data sets that are arrays: pictures, and the check-ins of Location-30."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tacit.core.errors import DataError
from tacit.nn.dataset import DataSet, check_labels, every_fifth
from tacit.nn.files import Bytes, Source, check_digest, read_arrays, required

Arrays = dict[str, Bytes]

_TEN_DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySource(Source):
    """A data set in one ``.npz`` file.

    Attributes:
        shapes: the arrays in the file and their shapes.
        decode: checks what is known of the arrays and undoes their coding.
        test_rows: picks the test rows by label where the file does not tell them apart.
    """

    shapes: Mapping[str, tuple[int, ...]]
    decode: Callable[[Path, Arrays], Arrays]
    test_rows: Callable[[Tensor], Tensor] = every_fifth


def load_arrays(source: ArraySource, folder: Path | str | None) -> DataSet:
    """Read a data set and check it.

    Raises:
        DataError: the file is missing, damaged, or not the data it should be.
    """
    (path,) = required(source, folder)
    arrays = source.decode(path, read_arrays(path, source.shapes))
    inputs, labels = {}, {}
    for name, array in arrays.items():
        kind, _, part = name.partition("_")
        if kind == "X":
            inputs[part] = _inputs(array, source.input_shape)
        else:
            labels[part] = torch.from_numpy(array).to(torch.int64)
            check_labels(f"{path}: {name}", labels[part], len(array), len(source.class_names))
    check_digest(source, arrays)
    if "" in labels:
        is_test = source.test_rows(labels[""])
        inputs = {"train": inputs[""][~is_test], "test": inputs[""][is_test]}
        labels = {"train": labels[""][~is_test], "test": labels[""][is_test]}
    return _data_set(source, inputs, labels)


def load_digits() -> DataSet:
    """Read the 8x8 digits that come with scikit-learn."""
    # Imported here: it takes a second, which listing and the other sets need not wait for.
    from sklearn import datasets  # noqa: PLC0415

    pixels, digits = datasets.load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels).to(torch.float32).div_(16).view(-1, *DIGITS.input_shape)
    labels = torch.from_numpy(digits).to(torch.int64)
    is_test = every_fifth(labels)
    return _data_set(
        DIGITS,
        {"train": inputs[~is_test], "test": inputs[is_test]},
        {"train": labels[~is_test], "test": labels[is_test]},
    )


def _data_set(
    source: Source, inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]
) -> DataSet:
    return DataSet(
        name=source.name,
        inputs_train=inputs["train"],
        labels_train=labels["train"],
        inputs_test=inputs["test"],
        labels_test=labels["test"],
        classes=len(source.class_names),
        class_names=source.class_names,
        citation=source.citation,
    )


def _inputs(array: Bytes, input_shape: tuple[int, ...]) -> Tensor:
    """Pictures, (rows, height, width) or (rows, height, width, 3), become planes in [0, 1]."""
    if array.ndim == 4:
        array = np.ascontiguousarray(np.moveaxis(array, 3, 1))
    inputs = torch.from_numpy(array).to(torch.float32).view(-1, *input_shape)
    return inputs if len(input_shape) == 1 else inputs.div_(255)


def _decode_mnist(path: Path, arrays: Arrays) -> Arrays:
    first = arrays["y_train"][:5].tolist()
    if first != [5, 0, 4, 1, 9]:
        raise DataError(f"{path}: MNIST's first labels are 5 0 4 1 9, but y_train has {first}")
    _check_mean(path, "MNIST", "X_train", arrays, 33.3184)
    _check_mean(path, "MNIST", "X_test", arrays, 33.7912)
    return arrays


def _decode_cifar10(path: Path, arrays: Arrays) -> Arrays:
    """Undo the lossless coding of the pixels: differences along both axes, red and blue less green."""
    decoded = {}
    for part in ("train", "test"):
        labels = arrays[f"y_{part}"]
        per_class = len(labels) // 10
        counts = np.bincount(labels, minlength=10).tolist()
        if counts != [per_class] * 10:
            raise DataError(
                f"{path}: y_{part} must hold {per_class} labels of each of 10 classes, not {counts}"
            )
        planes = np.cumsum(arrays[f"R_{part}"], 2, dtype=np.uint8)
        planes = np.cumsum(planes, 3, dtype=np.uint8)
        planes[0] += planes[1]
        planes[2] += planes[1]
        decoded[f"X_{part}"] = np.ascontiguousarray(np.moveaxis(planes, 0, 3))
        decoded[f"y_{part}"] = labels
    return decoded


def _decode_faces(path: Path, arrays: Arrays) -> Arrays:
    if not np.array_equal(arrays["y"], np.arange(400) // 10):
        raise DataError(f"{path}: y must hold the people 0 .. 39 in order, ten times each")
    _check_mean(path, "the AT&T faces", "X", arrays, 112.6313)
    different = len({face.tobytes() for face in arrays["X"]})
    if different != 400:
        raise DataError(f"{path}: the 400 faces must all differ, but {different} do")
    return arrays


def _decode_location30(path: Path, arrays: Arrays) -> Arrays:
    counts = np.bincount(arrays["y"], minlength=30)
    if len(counts) != 30 or (counts.min(), counts.max()) != (97, 308):
        raise DataError(
            f"{path}: y must hold 30 classes of 97 to 308 rows, "
            f"not {len(counts)} of {counts.min()} to {counts.max()}"
        )
    if arrays["X"].max() > 1:
        raise DataError(f"{path}: X must hold 0 and 1 only, but holds {arrays['X'].max()}")
    ones = round(float(arrays["X"].sum(1).mean()), 1)
    if ones != 53.7:
        raise DataError(f"{path}: a row of Location-30 has 53.7 ones on average, here {ones}")
    return arrays


def _check_mean(path: Path, what: str, name: str, arrays: Arrays, mean: float) -> None:
    found = round(float(arrays[name].mean()), 4)
    if found != mean:
        raise DataError(f"{path}: the mean pixel of {name} is {mean} in {what}, here {found}")


def _last_three_of_ten(labels: Tensor) -> Tensor:
    return torch.arange(len(labels)) % 10 >= 7


DIGITS = Source(
    name="digits",
    files=(),
    rows_train=1442,
    rows_test=355,
    input_shape=(1, 8, 8),
    class_names=_TEN_DIGITS,
    citation=(
        "Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository, 1998"
    ),
    sha256="",
)
ARRAYS: Mapping[str, ArraySource] = {
    source.name: source
    for source in (
        ArraySource(
            name="mnist",
            files=("mnist.npz",),
            rows_train=60000,
            rows_test=10000,
            input_shape=(1, 28, 28),
            class_names=_TEN_DIGITS,
            citation=(
                "LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document "
                "recognition, Proceedings of the IEEE, 1998"
            ),
            sha256="a9dd7b11abd6b5795be93dd3bdb31d6e0bd991830fa27c203bdf7f2c340b2798",
            shapes={
                "X_train": (60000, 28, 28),
                "y_train": (60000,),
                "X_test": (10000, 28, 28),
                "y_test": (10000,),
            },
            decode=_decode_mnist,
        ),
        ArraySource(
            name="cifar10",
            files=("cifar10_24k.npz",),
            rows_train=20000,
            rows_test=4000,
            input_shape=(3, 32, 32),
            class_names=(
                *("airplane", "automobile", "bird", "cat", "deer"),
                *("dog", "frog", "horse", "ship", "truck"),
            ),
            citation="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
            sha256="e00b5ba49260572e1bc2539214f45559a3ca03807c53e9a447758d8672410add",
            shapes={
                "R_train": (3, 20000, 32, 32),
                "y_train": (20000,),
                "R_test": (3, 4000, 32, 32),
                "y_test": (4000,),
            },
            decode=_decode_cifar10,
        ),
        ArraySource(
            name="att-faces",
            files=("att_faces.npz",),
            rows_train=280,
            rows_test=120,
            input_shape=(1, 112, 92),
            class_names=tuple(f"s{person}" for person in range(1, 41)),
            citation=(
                "Samaria, Harter, Parameterisation of a stochastic model for human face "
                "identification, WACV 1994 (AT&T Laboratories Cambridge)"
            ),
            sha256="164f812bf151d747358cd4ffc05f228a00a3f8b75fa1894e3dbf2a1deadeef5b",
            shapes={"X": (400, 112, 92), "y": (400,)},
            decode=_decode_faces,
            test_rows=_last_three_of_ten,
        ),
        ArraySource(
            name="location30",
            files=("location30.npz",),
            rows_train=4021,
            rows_test=989,
            input_shape=(446,),
            class_names=tuple(str(group) for group in range(1, 31)),
            citation=(
                "Shokri, Stronati, Song, Shmatikov, Membership inference attacks against machine "
                "learning models, IEEE S&P 2017; check-ins of Yang, Zhang, Qu, ACM TIST 2016"
            ),
            sha256="8d5b4e90ae7e3ba874fe188742c2fa85d49caa12620367e6e3a6aa3872feb8b0",
            shapes={"X": (5010, 446), "y": (5010,)},
            decode=_decode_location30,
        ),
    )
}
