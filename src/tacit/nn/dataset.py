"""Labelled examples, and what every data set promises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.core.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """The input columns that one column of a table became.

    Attributes:
        name: the table's column.
        start: its first input column.
        stop: one past its last.
        categories: what each of the columns stands for; empty for a number, which has one column.
        bounds: for a number, the training rows' least and greatest value, which became the lower and
            the upper end of the inputs' range; ``None`` for categories.
    """

    name: str
    start: int
    stop: int
    categories: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None

    @property
    def columns(self) -> slice:
        """The input columns: ``inputs[:, feature.columns]``."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSet:
    """Labelled examples for training and, apart from them, for testing.

    Attributes:
        name: what the data set is called.
        inputs_train: float32 in [low, high], shape (rows, ``*input_shape``).
        labels_train: int64 in 0 .. classes - 1, shape (rows,).
        inputs_test: as ``inputs_train``, other rows.
        labels_test: as ``labels_train``, other rows.
        classes: number of classes.
        class_names: one name per class.
        citation: the publication to credit.
        low: no input is less.
        high: no input is greater.
        features: for a table, which input columns came from which of its columns, in order and
            together all; empty for anything else.

    Raises:
        DataError: a tensor's type, shape or values are not as above, or the features do not fit them.
    """

    name: str
    inputs_train: Tensor
    labels_train: Tensor
    inputs_test: Tensor
    labels_test: Tensor
    classes: int
    class_names: tuple[str, ...]
    citation: str
    low: float = 0.0
    high: float = 1.0
    features: tuple[Feature, ...] = ()

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
        if self.features:
            self._check_features()

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
        least, greatest = torch.aminmax(inputs)
        # The bounds are rounded as the inputs are. Written so that NaN, which aminmax hands on, fails too.
        if not (least >= self.low and greatest <= self.high):
            check_finite(name, inputs)
            raise DataError(
                f"{name} must lie in [{self.low:g}, {self.high:g}], "
                f"but lies in [{least.item():g}, {greatest.item():g}]: scale it"
            )
        check_labels(f"data set {self.name}: labels_{part}", labels, len(inputs), self.classes)

    def _check_features(self) -> None:
        at = 0
        for feature in self.features:
            width = len(feature.categories) or 1
            if (feature.start, feature.stop) != (at, at + width):
                raise DataError(
                    f"data set {self.name}: feature {feature.name} must take the input columns "
                    f"{at} .. {at + width - 1}, not {feature.start} .. {feature.stop - 1}"
                )
            at += width
        if self.input_shape != (at,):
            raise DataError(
                f"data set {self.name}: the features take {at} input columns, "
                f"but an input has shape {self.input_shape}"
            )


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


def check_labels(name: str, labels: Tensor, rows: int, classes: int) -> None:
    """Refuse labels that are not int64 of shape (rows,) in 0 .. classes - 1.

    Raises:
        DataError: they are not.
    """
    if labels.dtype != torch.int64 or labels.shape != (rows,):
        raise DataError(
            f"{name} must be int64 of shape ({rows},), "
            f"not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{name} must lie in 0 .. {classes - 1}, but lies in {low} .. {high}")


def every_fifth(labels: Tensor) -> Tensor:
    """Of each class every fifth row, in their order: the test rows of a source that names none.

    Args:
        labels: label of each row, shape (rows,).

    Returns:
        bool, shape (rows,).
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        chosen[(labels == label).nonzero()[4::5]] = True
    return chosen
