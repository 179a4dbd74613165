"""Data sets for experiments, checked as they are read, and their division among owners.

``digits`` comes with scikit-learn. The others are files in the folder that the environment variable
``TACIT_DATA`` names; ``tacit data fetch`` gets those that have a public home.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tacit.core.errors import UnknownName
from tacit.nn.arrays import ARRAYS, DIGITS, load_arrays, load_digits
from tacit.nn.dataset import DataSet, Feature, check_finite
from tacit.nn.files import Source, locate
from tacit.nn.homes import HOMES
from tacit.nn.splits import cells_as_assigned, split_by_cell, split_by_label, split_iid
from tacit.nn.tables import TABLES, Column, Table, load_table

__all__ = [
    "SOURCES",
    "Column",
    "DataSet",
    "Feature",
    "Listing",
    "Table",
    "available",
    "cells_as_assigned",
    "check_finite",
    "load",
    "load_table",
    "split_by_cell",
    "split_by_label",
    "split_iid",
]

SOURCES: Mapping[str, Source] = {"digits": DIGITS, **ARRAYS, **TABLES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What can be said of a data set without reading it.

    Attributes:
        name: what `load` takes.
        where: its files, or for a missing folder what to set; "scikit-learn" for the bundled set.
        present: whether the files are there (their contents are checked when they are loaded).
        why_not: why it is not present; empty if it is.
        fetchable: whether ``tacit data fetch`` can get it.
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
    fetchable: bool
    rows_train: int
    rows_test: int
    input_shape: tuple[int, ...]
    classes: int
    citation: str


def load(name: str, folder: Path | str | None = None) -> DataSet:
    """Read a data set and check it, down to the SHA-256 of its values.

    - ``digits``: 8x8 grey images. Of each class, in the published order, every fifth row is a test
      row, so that both parts come from the same writers.
    - ``mnist``: 28x28 grey images, the official split.
    - ``cifar10``: 32x32 colour images, a stratified subset of 20,000 + 4,000 of the official split.
    - ``att-faces``: 112x92 grey images of 40 people; of each the first seven are training rows and the
      last three test rows, a division by seven and three as in the model inversion papers.
    - ``location30``: 446 regions and kinds of place, visited (1) or not (0), and 30 groups of visitors.
      Of each class every fifth row is a test row; the source has no split.
    - ``adult``, ``pima``, ``iris``, ``wisconsin``, ``mushrooms``: tables, see
      `tacit.nn.tables.load_table`, with their own label and inputs in [0, 1]. For another label or
      range use ``load_table(name).encoded(...)``.

    Args:
        name: one of the above.
        folder: where the files are; by default what the environment variable ``TACIT_DATA`` says.

    Raises:
        UnknownName: there is no such data set.
        DataError: the folder or file is missing, damaged, or not the data it should be.
    """
    if name not in SOURCES:
        raise UnknownName("data set", name, SOURCES)
    if name in TABLES:
        return load_table(name, folder).encoded()
    return load_arrays(ARRAYS[name], folder) if name in ARRAYS else load_digits()


def available(folder: Path | str | None = None) -> list[Listing]:
    """Every data set, present or not, without reading any.

    Args:
        folder: where the files are; by default what the environment variable ``TACIT_DATA`` says.
    """
    return [_listing(source, folder) for source in SOURCES.values()]


def _listing(source: Source, folder: Path | str | None) -> Listing:
    where, why_not = "scikit-learn", ""
    if source.files:
        paths, why_not = locate(source, folder)
        where = " and ".join(map(str, paths))
    return Listing(
        name=source.name,
        where=where,
        present=not why_not,
        why_not=why_not,
        fetchable=source.name in HOMES,
        rows_train=source.rows_train,
        rows_test=source.rows_test,
        input_shape=source.input_shape,
        classes=len(source.class_names),
        citation=source.citation,
    )
