"""What an audit of a model of one's own is given: records, or what a model said of them; and whether they serve.

An attack is judged by how well it tells members, on which the model was trained, from non-members. That says something of
the model only if the two were drawn from one source: `checks` asks that of the records, before any model is asked.

Files of records hold inputs and labels:

===========  ==============================================================================================================
``.npz``     ``inputs`` (or ``x``) (n, *record shape), ``labels`` (or ``y``) (n,), perhaps ``groups`` (n,) of text
``.csv``     a header line with a column ``label``, perhaps ``group``; all others are numbers, the inputs in their order
===========  ==============================================================================================================

Files of scores hold what `SavedScores` says:

===========  ==============================================================================================================
``.npz``     arrays with the names of its fields, ``members`` and ``nonmembers`` at least
``.csv``     a column ``member`` (0 or 1) and ``score``; or ``label`` and ``p0``, ``p1``, ... (or ``predicted``, for labels);
             perhaps ``group``
===========  ==============================================================================================================

A ``.csv`` may be compressed as ``.csv.gz``. Nothing is unpickled. Records are taken as they are: nothing is scaled.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import chi2_contingency
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from tacit.attacks.evidence import Population
from tacit.attacks.shadows import References
from tacit.audit.statistics import Interval, auc, auc_interval
from tacit.audit.targets import Gives, logits_from
from tacit.core.errors import ConfigError, DataError, UnknownName
from tacit.nn.files import read_headers, read_typed

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]

#: Records of each kind that a comparison of the two needs.
LEAST = 50
#: Records of both kinds that inputs are compared on, at most.
COMPARED = 4000
#: Features that inputs are compared by, at most.
FEATURES = 64
#: Below this p-value the classes of members and non-members are called different.
LEVEL = 0.01
#: Share of a set that may repeat other records of it without a word.
REPEATED = 0.01

_ROUNDS = 100  # of gradient boosting
_NUMBERS, _TEXT = "biuf", "U"
_KINDS = {_NUMBERS: "numbers", "iu": "whole numbers", "b": "truth values"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """Records as a model takes them.

    Args:
        inputs: (n, *record shape) float32, finite; at least one.
        labels: (n,) int64 classes, from 0.
        groups: (n,) names of the slices that a report tells apart; None for no slices.

    Raises:
        DataError: they are not.
    """

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    groups: tuple[str, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        count = len(self.inputs) if self.inputs.dim() else 0
        if self.inputs.dim() < 2 or not self.inputs.numel() or self.inputs.dtype != torch.float32:
            raise DataError(
                f"float32 inputs (n, *record shape) expected, {self.inputs.dtype} of shape {tuple(self.inputs.shape)} came"
            )
        if tuple(self.labels.shape) != (count,) or self.labels.dtype != torch.int64:
            raise DataError(
                f"int64 labels ({count},) expected, {self.labels.dtype} of shape {tuple(self.labels.shape)} came"
            )
        if int(self.labels.min()) < 0:
            raise DataError(f"labels from 0 expected, {int(self.labels.min())} came")
        bad = torch.nonzero(~torch.isfinite(self.inputs.reshape(count, -1)).all(1))
        if len(bad):
            raise DataError(
                f"finite inputs expected, {len(bad)} of {count} records hold NaN, infinity or more than float32 takes, "
                f"first record {int(bad[0])}"
            )
        if self.groups is not None and len(self.groups) != count:
            raise DataError(f"{count} groups expected, {len(self.groups)} came")

    def __len__(self) -> int:
        """How many records there are."""
        return len(self.labels)


def records_of(given: Records | tuple[Any, Any], name: str) -> Records:
    """Inputs and labels as records; they may share memory with what was given.

    Args:
        given: (n, *record shape) numbers and (n,) whole numbers, as arrays or tensors; or records.
        name: what they are called in an error.

    Raises:
        DataError: they are not.
    """
    if isinstance(given, Records):
        return given
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise DataError(
            f"{name}: a pair (inputs, labels) or Records expected, {type(given).__name__} came"
        )
    try:
        inputs, labels = (_tensor(one) for one in given)
        return Records(inputs=inputs.to(torch.float32), labels=_whole(labels, "labels"))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _tensor(given: Any) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach()
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise DataError(f"arrays of numbers expected: {error}") from error
    if array.dtype.kind not in _NUMBERS:
        raise DataError(
            f"arrays of numbers expected, {array.dtype} came: number the classes, and give features as floats"
        )
    # A tensor takes neither another byte order, nor all kinds of numbers, nor memory that is not to be written to.
    kind = {"f": "f4" if array.dtype.itemsize <= 4 else "f8", "b": "?"}.get(array.dtype.kind, "i8")
    return torch.from_numpy(np.require(array, kind, ["C", "W"]))


def _whole(values: Tensor, name: str) -> Tensor:
    """Whole numbers as int64."""
    if values.is_floating_point() and not bool((values == values.round()).all()):
        raise DataError(f"whole numbers expected as {name}")
    return values.to(torch.int64)


# --- what a model said


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedScores:
    """What a model said of members and non-members, or the scores of an attack; nothing is asked any more.

    Args:
        members: (m,) one score a record, higher is more member-like. Or answers, then with labels: (m, classes) logits or
            probabilities, (m, 1) those of class 1 of a binary model, or (m,) predicted labels where ``gives`` says so.
        nonmembers: the same of n others.
        member_labels: (m,) true classes, with answers.
        nonmember_labels: (n,).
        gives: what answers are; scores are scores whatever it says, but for ``labels``.
        references: (K, m + n, classes) what K reference models said, members first; of the same kind.
        inside: (K, m + n) whether a reference model was trained on a record.
        population: (p, classes) what the model said of records that no model was trained on.
        population_labels: (p,) true classes.
        population_references: (K, p, classes) what the reference models said of them.
        member_groups: (m,) names of the slices that a report tells apart.
        nonmember_groups: (n,).
        name: what they are called in a report.

    Raises:
        DataError: shapes, types or values are not these; a label is not a class; a score is not a number.
    """

    members: FloatArray = field(repr=False)
    nonmembers: FloatArray = field(repr=False)
    member_labels: IntArray | None = field(default=None, repr=False)
    nonmember_labels: IntArray | None = field(default=None, repr=False)
    gives: Gives = "probabilities"
    references: FloatArray | None = field(default=None, repr=False)
    inside: BoolArray | None = field(default=None, repr=False)
    population: FloatArray | None = field(default=None, repr=False)
    population_labels: IntArray | None = field(default=None, repr=False)
    population_references: FloatArray | None = field(default=None, repr=False)
    member_groups: tuple[str, ...] | None = field(default=None, repr=False)
    nonmember_groups: tuple[str, ...] | None = field(default=None, repr=False)
    name: str = "scores"

    def __post_init__(self) -> None:
        for one in (self.members, self.nonmembers):
            if not isinstance(one, np.ndarray) or not one.ndim or not one.size:
                raise DataError("at least one member and one non-member expected, as arrays")
        m, n, shape = len(self.members), len(self.nonmembers), self.members.shape[1:]
        if len(shape) > 1:
            raise DataError(f"members (m,) or (m, classes) expected, {self.members.shape} came")
        self._check_complete()
        count = 0 if self.references is None else len(self.references)
        others = 0 if self.population is None else len(self.population)
        for name, array, wanted, kinds in (
            ("members", self.members, (m, *shape), _NUMBERS),
            ("nonmembers", self.nonmembers, (n, *shape), _NUMBERS),
            ("member_labels", self.member_labels, (m,), "iu"),
            ("nonmember_labels", self.nonmember_labels, (n,), "iu"),
            ("references", self.references, (count, m + n, *shape), _NUMBERS),
            ("inside", self.inside, (count, m + n), "b"),
            ("population", self.population, (others, *shape), _NUMBERS),
            ("population_labels", self.population_labels, (others,), "iu"),
            ("population_references", self.population_references, (count, others, *shape), _NUMBERS),
        ):  # fmt: skip
            if array is None:
                continue
            if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
                came = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise DataError(f"{name}: an array of {_KINDS[kinds]} expected, {came} came")
            if array.shape != wanted:
                raise DataError(f"{name} of shape {wanted} expected, {array.shape} came")
            if kinds == _NUMBERS and (bad := int(np.isnan(array).sum())):
                raise DataError(f"numbers expected in {name}, {bad} of {array.size} are NaN")
        for name, groups, size in (
            ("member_groups", self.member_groups, m),
            ("nonmember_groups", self.nonmember_groups, n),
        ):
            if groups is not None and len(groups) != size:
                raise DataError(f"{size} {name} expected, {len(groups)} came")
        for name, labels in (
            ("labels", self.labels),
            ("population_labels", self.population_labels),
        ):
            if labels is not None and len(labels):
                low, high = int(labels.min()), int(labels.max())
                if low < 0 or (self.kind == "answers" and high >= self.classes):
                    raise DataError(
                        f"{name} from 0, and below {self.classes} of answers, expected, {low} to {high} came"
                    )

    def _check_complete(self) -> None:
        """What comes with what."""
        answers = self.kind == "answers"
        for given, name, needed, what in (
            (answers, "answers", self.member_labels, "member_labels"),
            (answers, "answers", self.nonmember_labels, "nonmember_labels"),
            (self.references, "references", answers or None, "answers as members and nonmembers"),
            (self.population, "population", answers or None, "answers as members and nonmembers"),
            (self.references, "references", self.inside, "inside"),
            (self.inside, "inside", self.references, "references"),
            (self.population, "population", self.population_labels, "population_labels"),
            (self.population_labels, "population_labels", self.population, "population"),
            (self.population_references, "population_references", self.population, "population"),
            (self.population_references, "population_references", self.references, "references"),
            (self.member_groups, "member_groups", self.nonmember_groups, "nonmember_groups"),
            (self.nonmember_groups, "nonmember_groups", self.member_groups, "member_groups"),
        ):
            if given is not None and given is not False and needed is None:
                raise DataError(f"{name} came without {what}: give both")
        both = self.population is not None and self.references is not None
        if both and self.population_references is None:
            raise DataError(
                "population and references came without population_references: give what the reference models said of the "
                "population, or leave one of the two out"
            )

    @property
    def kind(self) -> str:
        """``scores`` or ``answers``."""
        return "answers" if self.members.ndim == 2 or self.gives == "labels" else "scores"

    @property
    def labels(self) -> IntArray | None:
        """(m + n,) true classes, members first."""
        if self.member_labels is None or self.nonmember_labels is None:
            return None
        return np.concatenate([self.member_labels, self.nonmember_labels])

    @property
    def groups(self) -> tuple[str, ...] | None:
        """(m + n,) names of slices, members first."""
        if self.member_groups is None or self.nonmember_groups is None:
            return None
        return self.member_groups + self.nonmember_groups

    @property
    def classes(self) -> int:
        """How many classes answers tell apart; of labels, as many as occur."""
        if self.gives != "labels":
            return max(2, int(self.members.shape[-1]))
        seen = (self.members, self.nonmembers, self.labels, self.population, self.population_labels)
        highest = max(one.max() for one in seen if one is not None and len(one))
        return max(2, 1 + int(min(highest, 1 << 31)))

    @property
    def answers(self) -> Float32Array:
        """(1, m + n, classes) logits or log-probabilities, as `Evidence.gather` reads them.

        Raises:
            DataError: values are not what ``gives`` says, or not finite.
        """
        return self._logits(np.concatenate([self.members, self.nonmembers])[None], "answers")

    @property
    def compared(self) -> References | None:
        """What the reference models said.

        Raises:
            DataError: see `answers`.
        """
        if self.references is None or self.inside is None or self.labels is None:
            return None
        logits = self._logits(self.references, "references")[:, None]
        return References(inside=self.inside, logits=logits, labels=self.labels)

    @property
    def others(self) -> Population | None:
        """What the model and the reference models said of the population.

        Raises:
            DataError: see `answers`.
        """
        if self.population is None or self.population_labels is None:
            return None
        of_references = self.population_references
        return Population(
            answers=self._logits(self.population[None], "population"),
            labels=self.population_labels,
            references=None if of_references is None
            else self._logits(of_references, "population_references")[:, None],
        )  # fmt: skip

    def _logits(self, models: FloatArray, name: str) -> Float32Array:
        """Of answers (K, n) or (K, n, classes), (K, n, classes) float32."""
        found = np.empty((*models.shape[:2], self.classes), np.float32)
        for row, one in zip(found, models, strict=True):
            values = torch.from_numpy(np.array(one, np.float64))
            row[:] = logits_from(values, self.gives, self.classes, name=f"{self.name}: {name}",
                records=len(row),
            )  # fmt: skip
        return found


# --- files


def read_records(path: Path) -> Records:
    """Records from a file, see above.

    Raises:
        ConfigError: there is no such file, or none of these kinds.
        DataError: it is damaged, or does not hold records.
    """
    if _is_table(path):
        table = _read_table(path)
        if "label" not in table.names or len(table.names) < 2:
            raise DataError(
                f"{path}: a column label and at least one other expected, {_few(table.names)} came"
            )
        at = table.names.index("label")
        given = np.delete(table.values, at, 1), table.values[:, at]
        return _grouped(records_of(given, str(path)), table.groups, path)
    names = {**dict.fromkeys(("inputs", "x", "labels", "y"), _NUMBERS), "groups": _NUMBERS + _TEXT}
    found = _read_npz(path, names, others=True)
    pair = [[found[one] for one in both if one in found] for both in (("inputs", "x"), ("labels", "y"))]  # fmt: skip
    if [len(one) for one in pair] != [1, 1]:
        raise DataError(
            f"{path}: arrays inputs and labels (or x and y) expected, {_few(found)} came"
        )
    return _grouped(
        records_of((pair[0][0], pair[1][0]), str(path)), _texts(found.get("groups")), path
    )


def _grouped(records: Records, groups: tuple[str, ...] | None, path: Path) -> Records:
    try:
        return Records(inputs=records.inputs, labels=records.labels, groups=groups)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_scores(path: Path, gives: Gives | None = None) -> SavedScores:
    """Scores or answers from a file, see above.

    Args:
        path: of the file.
        gives: what answers are; None takes what an ``.npz`` file says, else probabilities.

    Raises:
        ConfigError: there is no such file, none of these kinds, or it says that answers are something else.
        DataError: it is damaged, or does not hold scores.
    """
    found = _scores_of_table(path, gives) if _is_table(path) else _scores_of_arrays(path)
    if gives is not None and found.setdefault("gives", gives) != gives:
        raise ConfigError(
            f"{path} holds {found['gives']}, as it says: {gives} came as what it gives"
        )
    try:
        return SavedScores(**{"name": path.name, **found})
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _scores_of_arrays(path: Path) -> dict[str, Any]:
    texts, groups = ("gives", "name"), ("member_groups", "nonmember_groups")
    kinds = {
        one.name: _TEXT
        if one.name in texts
        else _NUMBERS + _TEXT
        if one.name in groups
        else _NUMBERS
        for one in fields(SavedScores)
    }
    arrays = _read_npz(path, kinds)
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if name in groups:
            found[name] = _texts(array)
        elif name in texts:
            found[name] = str(array)
        elif name == "inside":
            if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
                raise DataError(f"{path}: 0 and 1, or false and true, expected in inside")
            found[name] = array.astype(np.bool_)
        elif name.endswith("labels"):
            found[name] = _whole(_tensor(array), f"{path}: {name}").numpy()
        else:
            found[name] = array.astype(np.float32 if array.dtype == np.float32 else np.float64)
    if lacking := [one for one in ("members", "nonmembers") if one not in found]:
        raise DataError(f"{path}: an array {lacking[0]} expected, {_few(found)} came")
    return found


def _scores_of_table(path: Path, gives: Gives | None) -> dict[str, Any]:
    table = _read_table(path)
    names = table.names
    classes = sum(one.startswith("p") and one[1:].isdecimal() for one in names)
    answers = ["predicted"] if gives == "labels" else [f"p{at}" for at in range(classes)]
    columns = ["score"] if "score" in names else answers
    wanted = {"member", *columns, *(() if "score" in names else ("label",))}
    if not columns or set(names) - {"label"} != wanted - {"label"} or not wanted <= set(names):
        said = "predicted" if gives == "labels" else "p0, p1, ..."
        raise DataError(
            f"{path}: columns member and score expected, or member, label and {said}; perhaps group. {_few(names)} came"
        )
    column = dict(zip(names, table.values.T, strict=True))
    if not np.isin(column["member"], (0, 1)).all():
        raise DataError(f"{path}: 0 and 1 expected as member")
    inside = column["member"] == 1
    values = np.stack([column[one] for one in columns], 1)
    if columns in (["score"], ["predicted"]):
        values = values[:, 0]
    found: dict[str, Any] = {"members": values[inside], "nonmembers": values[~inside]}
    if "label" in column:
        labels = _whole(torch.tensor(column["label"]), f"{path}: label").numpy()
        found |= {"member_labels": labels[inside], "nonmember_labels": labels[~inside]}
    if table.groups is not None:
        groups = np.array(table.groups)
        found |= {"member_groups": _texts(groups[inside]), "nonmember_groups": _texts(groups[~inside])}  # fmt: skip
    return found


def _texts(array: npt.NDArray[Any] | None) -> tuple[str, ...] | None:
    return None if array is None else tuple(map(str, array.reshape(-1).tolist()))


def _few(names: Any) -> str:
    found = [str(one)[:30] for one in names]
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return (", ".join(found[:6]) or "nothing") + more


def _is_table(path: Path) -> bool:
    """Whether a file is a table, and not arrays."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return True
    if name.endswith(".npz"):
        return False
    raise ConfigError(f"a .npz, .csv or .csv.gz file expected, {path} came")


def _read_npz(
    path: Path, kinds: Mapping[str, str], *, others: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of these names that a file holds, each of one of these kinds of type."""
    headers = read_headers(path)
    if not others and (unknown := sorted(headers.keys() - kinds.keys())):
        raise UnknownName(f"array of saved scores in {path}", unknown[0], list(kinds))
    wanted = {name: header for name, header in headers.items() if name in kinds}
    for name, header in wanted.items():
        if header.dtype.kind not in kinds[name]:
            what = "text" if kinds[name] == _TEXT else "numbers"
            raise DataError(f"{path}: {what} expected as array {name}, {header.dtype} came")
    return read_typed(path, wanted)


class _Table(NamedTuple):
    """Columns of numbers (n, columns) float64, and the one of text, if there is one."""

    names: list[str]
    values: npt.NDArray[np.float64]
    groups: tuple[str, ...] | None


def _read_table(path: Path) -> _Table:
    try:
        with _text_of(path) as text:
            reader = csv.reader(text, strict=True)
            names = [one.strip() for one in next(reader, [])]
            if len(set(names)) < len(names):
                twice = next(one for one in names if names.count(one) > 1)
                raise DataError(f"{path}: the column {twice!r} comes twice")
            at = names.index("group") if "group" in names else None
            groups, rows = [], []
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(names)} cells expected, {len(cells)} came"
                    )
                if at is not None:
                    groups.append(cells.pop(at))
                rows.append(_numbers(cells))
                if rows[-1] is None:
                    bad = next(k for k, cell in enumerate(cells) if _numbers([cell]) is None)
                    numbered = [one for k, one in enumerate(names) if k != at]
                    raise DataError(
                        f"{path}, line {reader.line_num}, column {numbered[bad]}: a number expected, {cells[bad][:30]!r} "
                        "came"
                    )
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (ValueError, EOFError, csv.Error, zlib.error) as error:
        raise DataError(f"{path} is not a whole CSV file in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"{path}: a header line and at least one row expected, none came")
    return _Table(
        [one for one in names if one != "group"],
        np.stack(cast("list[npt.NDArray[np.float64]]", rows)),
        None if at is None else tuple(groups),
    )


def _numbers(cells: list[str]) -> npt.NDArray[np.float64] | None:
    """Cells as numbers; None if one is not."""
    try:
        found = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return None if np.isnan(found).any() else found


def _text_of(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


# --- whether the records serve


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Of the records alone; no model is asked.

    Args:
        name: ``overlap``, ``duplicates``, ``same-labels`` or ``same-inputs``.
        test: which test, or why there was none.
        value: its figure; None where there was none.
        interval: of the value, where it has one.
        p_value: where there is one.
        warning: what is wrong with the records, and what it does to the audit; None where nothing was found.
    """

    name: str
    test: str
    value: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    warning: str | None = None

    def as_json(self) -> dict[str, object]:
        """The check as plain values."""
        return {**asdict(self), "interval": None if self.interval is None else list(self.interval)}


def checks(
    members: Records, nonmembers: Records, population: Records | None, generator: torch.Generator
) -> list[Check]:
    """Whether members, non-members and population are what an audit takes them for.

    ===============  =====================================================  ================================================
    check            test                                                   warns
    ===============  =====================================================  ================================================
    ``overlap``      records in two of the sets, inputs and label equal     at one
                     bit by bit; the value is how many
    ``duplicates``   records equal to an earlier one of their own set; the  above 1 % of a set
                     value is how many
    ``same-labels``  chi-square of class by membership, classes of which    at p < 0.01
                     fewer than 5 of a kind are expected taken together;
                     the value is Cramer's V
    ``same-inputs``  AUC with which a classifier (gradient boosting) that   where the 99 % interval lies above 0.5
                     learnt on half of the records tells members from
                     non-members among the other half, by inputs alone
    ===============  =====================================================  ================================================

    Inputs of more than 64 numbers are brought down to 60 random projections and each record's mean, deviation, least and
    greatest number; more than 4,000 records are drawn from, half of each kind.

    Args:
        members: the first set.
        nonmembers: the second.
        population: the third, where there is one.
        generator: draws the projections, the halves and the records; on the CPU.

    Returns:
        The four in this order. A test for which there are too few records says so instead of a value.

    Raises:
        DataError: records of the sets are of different shapes.
    """
    sets = {"members": members, "non-members": nonmembers}
    if population is not None:
        sets["population"] = population
    shapes = {name: tuple(one.inputs.shape[1:]) for name, one in sets.items()}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DataError(f"records of one shape expected, {said} came")
    keys = {name: _keys(one) for name, one in sets.items()}
    return [
        _overlap(keys), _duplicates(keys), _same_labels(members, nonmembers),
        _same_inputs(members, nonmembers, generator),
    ]  # fmt: skip


def _keys(records: Records) -> list[bytes]:
    """A digest of each record."""
    rows = records.inputs.cpu().reshape(len(records), -1).contiguous().numpy()
    return [
        hashlib.blake2b(row.data, digest_size=16, key=label.to_bytes(8, "big")).digest()
        for row, label in zip(rows, records.labels.tolist(), strict=True)
    ]


def _places(places: Sequence[int]) -> str:
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return ", ".join(map(str, places[:5])) + more


def _overlap(keys: Mapping[str, Sequence[bytes]]) -> Check:
    said, total, names = [], 0, list(keys)
    for a, first in enumerate(names):
        for second in names[a + 1 :]:
            held = set(keys[first])
            if places := [at for at, key in enumerate(keys[second]) if key in held]:
                total += len(places)
                said.append(
                    f"{len(places)} of the {second} are {first} too (places {_places(places)})"
                )
    warning = f"{'; '.join(said)}: no attack can be right about them. Keep each record in one set."
    test = "Records in two of the sets, inputs and label equal bit by bit."
    return Check(name="overlap", test=test, value=total, warning=warning if said else None)


def _duplicates(keys: Mapping[str, Sequence[bytes]]) -> Check:
    said, total = [], 0
    for name, own in keys.items():
        seen: set[bytes] = set()
        places = []
        for at, key in enumerate(own):
            if key in seen:
                places.append(at)
            seen.add(key)
        total += len(places)
        if len(places) > REPEATED * len(own):
            said.append(f"{len(places)} of {len(own)} {name} repeat an earlier one (places {_places(places)})")  # fmt: skip
    return Check(
        name="duplicates", test="Records equal bit by bit to an earlier one of their own set.", value=total,
        warning=f"{'; '.join(said)}: they count several times, and intervals are narrower than they should be." if said
        else None,
    )  # fmt: skip


def _same_labels(members: Records, nonmembers: Records) -> Check:
    name, test = "same-labels", "Chi-square test of class by membership, rare classes together"
    if why := _too_few(members, nonmembers):
        return Check(name=name, test=f"{test}; left out: {why}.")
    both = [one.labels.cpu().numpy() for one in (members, nonmembers)]
    _, which = np.unique(np.concatenate(both), return_inverse=True)
    parts = np.split(which, [len(members)])
    table = np.stack([np.bincount(one, minlength=which.max() + 1) for one in parts])
    table = table[:, np.argsort(table.sum(0))]
    expected = table.sum(0) * (table.sum(1).min() / table.sum())
    if rare := int((expected < 5).sum()):
        rare = max(rare, 1 + int(np.searchsorted(expected.cumsum(), 5)))
    pooled = np.column_stack([table[:, :rare].sum(1), table[:, rare:]]) if rare else table
    if pooled.shape[1] < 2:
        return Check(name=name, test=f"{test}; left out: one class is left.")
    found = chi2_contingency(pooled, correction=False)
    p_value = float(found.pvalue)
    share = np.abs(np.diff(table / table.sum(1, keepdims=True), axis=0)).sum() / 2
    warning = (
        f"Members and non-members are not of the same classes (p = {p_value:.2g}; {share:.1%} of one side would have to "
        "change class): part or all of what attacks find may be that, and not the model."
    )
    return Check(
        name=name, test=f"{test}.", value=math.sqrt(float(found.statistic) / pooled.sum()), p_value=p_value,
        warning=warning if p_value < LEVEL else None,
    )  # fmt: skip


def _too_few(members: Records, nonmembers: Records) -> str | None:
    if min(len(members), len(nonmembers)) >= LEAST:
        return None
    return f"{len(members)} members and {len(nonmembers)} non-members came, at least {LEAST} of each are needed"


def _same_inputs(members: Records, nonmembers: Records, generator: torch.Generator) -> Check:
    name = "same-inputs"
    test = "A classifier (gradient boosting) learns from half of the records to tell members by inputs alone; AUC"
    if why := _too_few(members, nonmembers):
        return Check(name=name, test=f"{test}; left out: {why}.")
    orders = [torch.randperm(len(one), generator=generator) for one in (members, nonmembers)]
    drawn = [order[: COMPARED // 2] for order in orders]
    width = members.inputs[0].numel()
    # Four places are for what `_features` says of a record as a whole.
    directions = None
    if width > FEATURES:
        directions = torch.randn(width, FEATURES - 4, generator=generator, dtype=torch.float64)
    pairs = zip((members, nonmembers), drawn, strict=True)
    features = np.concatenate([_features(one.inputs, at, directions) for one, at in pairs])
    truth = np.repeat([True, False], [len(one) for one in drawn])
    learnt = np.concatenate([np.arange(len(one)) < len(one) // 2 for one in drawn])
    model = HistGradientBoostingClassifier(
        max_iter=_ROUNDS, max_leaf_nodes=15, early_stopping=False, random_state=0
    )
    with threadpool_limits(1, "openmp"):  # threads wait for each other longer than they work
        scores = model.fit(features[learnt], truth[learnt]).decision_function(features[~learnt])
    truth = truth[~learnt]
    value = auc(scores[truth], scores[~truth])
    low, high = auc_interval(scores[truth], scores[~truth], 0.99)
    warning = (
        f"Members and non-members can be told apart without the model (AUC {value:.3f}, at 99 % at least {low:.3f}): part "
        "or all of what attacks find may be that. Draw both at random from one source."
    )
    return Check(
        name=name, test=f"{test} on the other {len(truth)} with its 99 % interval.", value=value, interval=(low, high),
        warning=warning if low > 0.5 else None,
    )  # fmt: skip


def _features(inputs: Tensor, at: Tensor, directions: Tensor | None) -> npt.NDArray[np.float64]:
    """(m, at most `FEATURES`) numbers that stand for the inputs at m places."""
    found = []
    for places in torch.split(at, 256):
        flat = inputs[places.to(inputs.device)].cpu().reshape(len(places), -1).double()
        if directions is not None:
            about = torch.stack([flat.mean(1), flat.std(1), flat.amin(1), flat.amax(1)], 1)
            flat = torch.cat([flat @ directions, about], 1)
        found.append(flat.numpy())
    return np.concatenate(found)
