"""Tables of named columns, numbers or categories, and their encoding as inputs of a network.

The encoding is that of the model extraction papers (Tramèr, Zhang, Juels, Reiter, Ristenpart, Stealing
machine learning models via prediction APIs, USENIX Security 2016): every category of a column gets an
input of its own, and every input is scaled to the same range. Adult then has 108 inputs with income as
the label and 105 with race, as in that paper, which counts "?" as a category as we do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit.core.errors import ConfigError, DataError, UnknownName
from tacit.nn.dataset import DataSet, Feature, check_labels, every_fifth
from tacit.nn.files import Source, check_digest, read_columns, required

_MISSING = "?"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """One column of a table, of numbers or of categories.

    Attributes:
        name: what it is called.
        values: for numbers float64, NaN where missing; for categories int64, the number of each row's
            category; shape (rows,).
        categories: their names, sorted, "?" among them where some are missing; empty for numbers.

    Raises:
        DataError: type, shape or values are not as above.
    """

    name: str
    values: Tensor
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wanted = torch.int64 if self.categories else torch.float64
        if self.values.dtype != wanted or self.values.ndim != 1 or len(self.values) == 0:
            raise DataError(
                f"column {self.name} must be {wanted} of shape (rows,) with at least one row, "
                f"not {self.values.dtype} of shape {tuple(self.values.shape)}"
            )
        if list(self.categories) != sorted(set(self.categories)):
            raise DataError(f"column {self.name}: categories must be sorted and all different")
        if self.categories:
            check_labels(f"column {self.name}", self.values, len(self.values), len(self.categories))
        elif self.values.isinf().any():
            raise DataError(f"column {self.name} must be finite or missing, but holds infinity")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """A table as published, divided into training and test rows.

    Attributes:
        name: what it is called.
        columns: at least two, of equal length, no two of one name.
        is_test: which rows are for testing, bool, shape (rows,); both parts have some.
        label: the column that is the label unless another is asked for.
        citation: the publication to credit.

    Raises:
        DataError: the columns or the division are not as above.
        UnknownName: the label is no column.
    """

    name: str
    columns: tuple[Column, ...]
    is_test: Tensor
    label: str
    citation: str

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(names) < 2 or len(set(names)) < len(names):
            raise DataError(
                f"table {self.name} needs two columns or more of different names: {names}"
            )
        rows = {len(column.values) for column in self.columns} | {len(self.is_test)}
        if self.is_test.dtype != torch.bool or self.is_test.ndim != 1 or len(rows) > 1:
            raise DataError(
                f"table {self.name}: is_test must be bool, as long as every column, "
                f"but lengths are {sorted(rows)} and is_test is {self.is_test.dtype}"
            )
        if self.is_test.all() or not self.is_test.any():
            raise DataError(f"table {self.name} must have both training and test rows")
        self.column(self.label)

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            UnknownName: there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise UnknownName(f"column of {self.name}", name, [column.name for column in self.columns])

    def encoded(self, label: str | None = None, *, low: float = 0.0, high: float = 1.0) -> DataSet:
        """All columns but one as inputs, that one as the label.

        A column of categories becomes one input a category, in the table's sorted order over all its
        rows: ``high`` for the row's own, ``low`` for the others. A column of numbers becomes one input,
        scaled so that its least value among the *training* rows is ``low`` and its greatest ``high``;
        a test row beyond is clamped, and a column whose training rows all agree is ``low`` throughout.
        A missing number becomes the lower median of the training rows. Adult's income is an input like
        any other where race is the label.

        Args:
            label: a column of categories; by default the table's own.
            low: the least input.
            high: the greatest input.

        Returns:
            A data set with a `Feature` for each of those columns, called as the table is, with
            ``-LABEL`` after it where the label is not the table's own.

        Raises:
            UnknownName: the label is no column.
            ConfigError: the label is a column of numbers, or ``low`` is not below ``high``.
            DataError: no training row has a value in a column of numbers.
        """
        if not -np.inf < low < high < np.inf:
            raise ConfigError(f"low must be below high, both finite, not {low} and {high}")
        target = self.column(self.label if label is None else label)
        if not target.categories:
            known = ", ".join(column.name for column in self.columns if column.categories)
            raise ConfigError(
                f"{target.name} of {self.name} is a number, and a label has classes: use one of {known}"
            )
        features, blocks, start = [], [], 0
        for column in self.columns:
            if column is target:
                continue
            stop = start + (len(column.categories) or 1)
            bounds = None
            if column.categories:
                unit = torch.nn.functional.one_hot(column.values, len(column.categories)).double()
            else:
                unit, bounds = self._scaled(column)
            blocks.append((low + (high - low) * unit).clamp(low, high))
            features.append(
                Feature(
                    name=column.name,
                    start=start,
                    stop=stop,
                    categories=column.categories,
                    bounds=bounds,
                )
            )
            start = stop
        inputs = torch.cat(blocks, 1).to(torch.float32)
        return DataSet(
            name=self.name if target.name == self.label else f"{self.name}-{target.name}",
            inputs_train=inputs[~self.is_test],
            labels_train=target.values[~self.is_test],
            inputs_test=inputs[self.is_test],
            labels_test=target.values[self.is_test],
            classes=len(target.categories),
            class_names=target.categories,
            citation=self.citation,
            low=low,
            high=high,
            features=tuple(features),
        )

    def _scaled(self, column: Column) -> tuple[Tensor, tuple[float, float]]:
        """Numbers, shape (rows, 1), the training rows' in [0, 1]; and what 0 and 1 stand for."""
        known = column.values[~self.is_test & ~column.values.isnan()]
        if len(known) == 0:
            raise DataError(
                f"table {self.name}: no training row has a value in {column.name}: leave it out"
            )
        values = column.values.nan_to_num(known.median().item())
        least, greatest = (bound.item() for bound in known.aminmax())
        span = greatest - least or np.inf
        return ((values - least) / span)[:, None], (least, greatest)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource(Source):
    """A table in one gzip CSV file, or in two: training rows, then test rows.

    Attributes:
        header: the columns in the file.
        numbers: those that hold numbers; the others hold categories.
        left_out: those that are no property of what a row describes.
        label: the label unless another column is asked for.
        class_rows: for each file how many rows there are of each class.
        rows_missing: for each file how many rows have a "?".
    """

    header: tuple[str, ...]
    numbers: frozenset[str]
    label: str
    class_rows: tuple[tuple[int, ...], ...]
    rows_missing: tuple[int, ...]
    left_out: frozenset[str] = frozenset()


def load_table(name: str, folder: Path | str | None = None) -> Table:
    """Read a table and check it.

    - ``adult``: who earns more than 50,000 dollars a year, census of 1994; the official split. All 14
      attributes are kept, the sampling weight ``fnlwgt`` and ``education-num``, which says the same as
      ``education``, too, as in the papers.
    - ``pima``: diabetes within five years. Zeros that stand for missing values (glucose,
      blood_pressure, skin_thickness, insulin, bmi) are left zero: the source does not mark them.
    - ``iris``: three species.
    - ``wisconsin``: breast cancer, class 2 benign and 4 malignant; 16 missing values of bare_nuclei.
      The sample code number is left out: it describes no cell.
    - ``mushrooms``: edible or poisonous; "?" in stalk-root is a category, veil-type has only one. That
      makes 117 inputs, where Tramèr et al. count 112.

    Of the sources without a split of their own, of each class of the label every fifth row is a test
    row.

    Args:
        name: one of the above.
        folder: where the files are; by default what the environment variable ``TACIT_DATA`` says.

    Raises:
        UnknownName: there is no such table.
        DataError: the folder or file is missing, damaged, or not the data it should be.
    """
    source = TABLES.get(name)
    if source is None:
        raise UnknownName("table", name, TABLES)
    paths = required(source, folder)
    parts = [
        _read_part(source, path, classes, missing)
        for path, classes, missing in zip(
            paths, source.class_rows, source.rows_missing, strict=True
        )
    ]
    texts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    check_digest(source, texts)
    columns = tuple(_column(name, values) for name, values in texts.items())
    if len(parts) == 2:
        is_test = torch.arange(sum(map(sum, source.class_rows))) >= sum(source.class_rows[0])
    else:
        is_test = every_fifth(next(c.values for c in columns if c.name == source.label))
    return Table(
        name=name, columns=columns, is_test=is_test, label=source.label, citation=source.citation
    )


Values = NDArray[np.float64] | NDArray[np.str_]


def _read_part(
    source: TableSource, path: Path, class_rows: tuple[int, ...], rows_missing: int
) -> dict[str, Values]:
    cells = dict(
        zip(source.header, read_columns(path, source.header, sum(class_rows)), strict=True)
    )
    found = tuple(cells[source.label].count(name) for name in source.class_names)
    if found != class_rows:
        raise DataError(
            f"{path}: {source.label} must be {' / '.join(source.class_names)} in {class_rows} rows, "
            f"but is in {found}: fetch it again"
        )
    missing = sum(_MISSING in row for row in zip(*cells.values(), strict=True))
    if missing != rows_missing:
        raise DataError(
            f'{path}: {rows_missing} rows must have a "?", but {missing} do: fetch it again'
        )
    return {
        name: _numbers(f"{path}: {name}", texts) if name in source.numbers else np.array(texts)
        for name, texts in cells.items()
        if name not in source.left_out
    }


def _numbers(what: str, texts: list[str]) -> NDArray[np.float64]:
    try:
        return np.array([np.nan if text == _MISSING else float(text) for text in texts])
    except ValueError as error:
        raise DataError(f"{what} must hold numbers ({error}): fetch it again") from error


def _column(name: str, values: Values) -> Column:
    if values.dtype == np.float64:
        return Column(name=name, values=torch.from_numpy(values))
    texts = values.tolist()
    categories = tuple(sorted(set(texts)))
    code = {category: number for number, category in enumerate(categories)}
    return Column(
        name=name,
        values=torch.tensor([code[text] for text in texts]),
        categories=categories,
    )


_ADULT = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
    *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week"),
    *("native-country", "income"),
)
_PIMA = (
    *("pregnancies", "glucose", "blood_pressure", "skin_thickness", "insulin", "bmi"),
    *("pedigree", "age", "diabetes"),
)
_IRIS = ("sepal_length", "sepal_width", "petal_length", "petal_width", "species")
_WISCONSIN = (
    *("id", "clump_thickness", "cell_size", "cell_shape", "adhesion", "epithelial_size"),
    *("bare_nuclei", "bland_chromatin", "normal_nucleoli", "mitoses", "class_2benign_4malignant"),
)
_MUSHROOMS = (
    *("edibility", "cap-shape", "cap-surface", "cap-color", "bruises", "odor", "gill-attachment"),
    *("gill-spacing", "gill-size", "gill-color", "stalk-shape", "stalk-root"),
    *("stalk-surface-above-ring", "stalk-surface-below-ring", "stalk-color-above-ring"),
    *("stalk-color-below-ring", "veil-type", "veil-color", "ring-number", "ring-type"),
    *("spore-print-color", "population", "habitat"),
)

TABLES: Mapping[str, TableSource] = {
    source.name: source
    for source in (
        TableSource(
            name="adult",
            files=("adult_train.csv.gz", "adult_test.csv.gz"),
            rows_train=32561,
            rows_test=16281,
            input_shape=(108,),
            class_names=("<=50K", ">50K"),
            citation="Becker, Kohavi, Adult, UCI Machine Learning Repository, 1996",
            sha256="82b26c1e9dbd3fe94b38853284d5cc24c096a2974f623a72d8611aad564b8210",
            header=_ADULT,
            numbers=frozenset(
                {"age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week"}
            ),
            label="income",
            class_rows=((24720, 7841), (12435, 3846)),
            rows_missing=(2399, 1221),
        ),
        TableSource(
            name="pima",
            files=("pima_diabetes.csv.gz",),
            rows_train=615,
            rows_test=153,
            input_shape=(8,),
            class_names=("0", "1"),
            citation=(
                "Smith, Everhart, Dickson, Knowler, Johannes, Using the ADAP learning algorithm to "
                "forecast the onset of diabetes mellitus, 1988"
            ),
            sha256="f54ff0e9023c07cd32e34efe5649c85cc2f96b47ea7a1017af31642911f72345",
            header=_PIMA,
            numbers=frozenset(_PIMA[:-1]),
            label="diabetes",
            class_rows=((500, 268),),
            rows_missing=(0,),
        ),
        TableSource(
            name="iris",
            files=("iris.csv.gz",),
            rows_train=120,
            rows_test=30,
            input_shape=(4,),
            class_names=("Iris-setosa", "Iris-versicolor", "Iris-virginica"),
            citation="Fisher, The use of multiple measurements in taxonomic problems, 1936",
            sha256="6ace38abd9f2fe6928b6a12381041db707a7197f4c3db379b852ad26c1b4cba4",
            header=_IRIS,
            numbers=frozenset(_IRIS[:-1]),
            label="species",
            class_rows=((50, 50, 50),),
            rows_missing=(0,),
        ),
        TableSource(
            name="wisconsin",
            files=("wisconsin_original.csv.gz",),
            rows_train=560,
            rows_test=139,
            input_shape=(9,),
            class_names=("2", "4"),
            citation=(
                "Wolberg, Breast Cancer Wisconsin (Original), UCI Machine Learning Repository, 1992"
            ),
            sha256="e54f90e2226a8150b0ee7e95a75e791098726f3b05ba6e872e8641cdc106f854",
            header=_WISCONSIN,
            numbers=frozenset(_WISCONSIN[1:-1]),
            left_out=frozenset({"id"}),
            label="class_2benign_4malignant",
            class_rows=((458, 241),),
            rows_missing=(16,),
        ),
        TableSource(
            name="mushrooms",
            files=("mushrooms.csv.gz",),
            rows_train=6500,
            rows_test=1624,
            input_shape=(117,),
            class_names=("e", "p"),
            citation="Schlimmer, Mushroom, UCI Machine Learning Repository, 1987",
            sha256="d476af7c0e2a3f0db1643f6d4575ded488c685416fd52f427813ca94f99002dc",
            header=_MUSHROOMS,
            numbers=frozenset(),
            label="edibility",
            class_rows=((4208, 3916),),
            rows_missing=(2480,),
        ),
    )
}
