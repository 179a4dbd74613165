"""Division of the training data among owners: by row, by label, by column, or cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tacit.core.errors import ConfigError


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
    _check_owners("row", rows, owners)
    return list(torch.randperm(rows, generator=generator).tensor_split(owners))


def split_by_label(labels: Tensor, owners: int, generator: torch.Generator) -> list[Tensor]:
    """Deal rows out so that owners see different labels: the hard case of collaborative learning.

    With no more owners than labels, each label goes to one owner, in ascending order. With more, the
    rows are sorted by label and cut evenly, so that an owner sees one label, or some that adjoin.

    Args:
        labels: label of each row, shape (rows,).
        owners: among how many; each gets at least one row.
        generator: draws the order of rows within a label.

    Returns:
        For each owner its row numbers: int64, disjoint, together 0 .. rows - 1.

    Raises:
        ConfigError: fewer rows than owners, or no owner.
    """
    _check_owners("row", len(labels), owners)
    shuffled = torch.randperm(len(labels), generator=generator)
    present = torch.unique(labels)
    if owners <= len(present):
        groups = present.tensor_split(owners)
        return [shuffled[torch.isin(labels[shuffled], group)] for group in groups]
    by_label = torch.sort(labels[shuffled], stable=True).indices
    return list(shuffled[by_label].tensor_split(owners))


def split_by_cell(
    rows: int,
    features: int,
    owners: int,
    generator: torch.Generator,
    *,
    by: Literal["cell", "feature", "row"] = "cell",
    weights: Sequence[float] | None = None,
) -> list[Tensor]:
    """Deal the cells of a table out at random: data partitioned arbitrarily.

    Source: Yuan, Yu, Privacy preserving back-propagation neural network learning made practical with
    cloud computing, IEEE TPDS 2014, which lets any cell belong to any party. `cells_as_assigned`
    takes a partition that is not random.

    Args:
        rows: rows of the table.
        features: columns of the table.
        owners: among how many.
        generator: draws which owner gets what.
        by: what is dealt: single cells, whole columns (vertical), or whole rows (horizontal).
        weights: one for each owner. Each owner gets one piece; the rest go by weight, as closely as
            whole pieces allow. By default all weigh the same.

    Returns:
        For each owner its cells: bool, shape (rows, features), disjoint, together all.

    Raises:
        ConfigError: fewer pieces than owners, no owner, weights that are none, or another ``by``.
    """
    if min(rows, features) < 1:
        raise ConfigError(
            f"a table has rows and columns, at least one of each, not {rows} x {features}"
        )
    shapes = {"cell": (rows, features), "feature": (1, features), "row": (rows, 1)}
    if by not in shapes:
        raise ConfigError(f"by must be one of {', '.join(shapes)}, not {by!r}")
    pieces = math.prod(shapes[by])
    _check_owners("column" if by == "feature" else by, pieces, owners)
    owner = torch.arange(owners).repeat_interleave(_shares(pieces, owners, weights))
    shuffled = owner[torch.randperm(pieces, generator=generator)]
    return cells_as_assigned(shuffled.view(shapes[by]).expand(rows, features), owners)


def cells_as_assigned(assignment: Tensor, owners: int) -> list[Tensor]:
    """Each owner's cells of a table, of which any may belong to anyone.

    Args:
        assignment: the owner of each cell, int64 in 0 .. owners - 1, shape (rows, features).
        owners: how many there are; each must own a cell.

    Returns:
        For each owner its cells: bool, shape (rows, features), disjoint, together all.

    Raises:
        ConfigError: the assignment is not as above, or leaves an owner without a cell.
    """
    if assignment.dtype != torch.int64 or assignment.ndim != 2 or assignment.numel() == 0:
        raise ConfigError(
            "the assignment must be int64 of shape (rows, features) with at least one cell, "
            f"not {assignment.dtype} of shape {tuple(assignment.shape)}"
        )
    _check_owners("cell", assignment.numel(), owners)
    named = torch.unique(assignment)
    if named[0] < 0 or named[-1] >= owners:
        raise ConfigError(
            f"with {owners} owners the assignment must lie in 0 .. {owners - 1}, "
            f"but lies in {int(named[0])} .. {int(named[-1])}"
        )
    if len(named) < owners:
        idle = next(owner for owner in range(owners) if owner not in named)
        raise ConfigError(f"owner {idle} is assigned no cell: give it one, or name fewer owners")
    return [assignment == owner for owner in range(owners)]


def _shares(pieces: int, owners: int, weights: Sequence[float] | None) -> Tensor:
    """How many pieces each owner gets: one, and of the rest its share by largest remainders."""
    weight = torch.tensor([1.0] * owners if weights is None else list(weights), dtype=torch.float64)
    if len(weight) != owners or not (weight.isfinite() & (weight >= 0)).all() or weight.sum() == 0:
        raise ConfigError(
            f"expected {owners} weights, finite, none negative and not all zero, got {weights}"
        )
    exact = (pieces - owners) * (weight / weight.sum())
    shares = exact.floor().to(torch.int64)
    order = torch.sort(exact - shares, descending=True, stable=True).indices
    shares[order[: pieces - owners - int(shares.sum())]] += 1
    return shares + 1


def _check_owners(piece: str, pieces: int, owners: int) -> None:
    if not 1 <= owners <= pieces:
        raise ConfigError(
            f"cannot deal {pieces} {piece}s out among {owners} owners: "
            f"there must be at least one owner, and a {piece} for each"
        )
