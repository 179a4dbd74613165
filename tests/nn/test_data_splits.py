import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ConfigError
from tacit.nn.data import cells_as_assigned, split_by_cell

SIZES = {"cell": lambda r, f: r * f, "feature": lambda _, f: f, "row": lambda r, _: r}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(data=st.data(), rows=st.integers(1, 12), features=st.integers(1, 9), seed=st.integers(0, 99))
@pytest.mark.parametrize("by", SIZES)
def test_every_cell_has_one_owner_and_every_owner_its_share(by, data, rows, features, seed):
    pieces = SIZES[by](rows, features)
    owners = data.draw(st.integers(1, pieces))
    masks = split_by_cell(rows, features, owners, generator(seed), by=by)
    assert len(masks) == owners
    assert all(mask.dtype == torch.bool and mask.shape == (rows, features) for mask in masks)
    assert torch.equal(torch.stack(masks).sum(0), torch.ones(rows, features, dtype=torch.int64))
    held = [int(mask.sum()) * pieces // (rows * features) for mask in masks]
    assert min(held) >= 1
    assert max(held) - min(held) <= 1
    if by == "feature":
        assert all((mask == mask[0]).all() for mask in masks)
    if by == "row":
        assert all((mask == mask[:, :1]).all() for mask in masks)


@given(
    weights=st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(lambda w: sum(w) > 1e-3),
    pieces=st.integers(6, 60),
)
def test_weights_are_kept_as_closely_as_whole_cells_allow(weights, pieces):
    masks = split_by_cell(1, pieces, len(weights), generator(), weights=weights)
    held = [int(mask.sum()) for mask in masks]
    assert sum(held) == pieces
    for count, weight in zip(held, weights, strict=True):
        exact = 1 + (pieces - len(weights)) * weight / sum(weights)
        assert exact - 1 - 1e-9 <= count <= exact + 1 + 1e-9


def test_cells_are_dealt_by_the_generator_alone():
    once, again, other = (split_by_cell(20, 5, 3, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(once, other, strict=True))
    # By cell an owner holds parts of rows and parts of columns: neither of the special cases.
    assert any(0 < int(row.sum()) < 5 for row in once[0])
    assert all(0 < int(column.sum()) < 20 for column in once[0].T)


def test_an_assignment_is_taken_as_it_is():
    assignment = torch.tensor([[0, 2, 1], [2, 2, 0]])
    first, second, third = cells_as_assigned(assignment, 3)
    assert first.tolist() == [[True, False, False], [False, False, True]]
    assert second.tolist() == [[False, False, True], [False, False, False]]
    assert third.tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.parametrize(
    ("assignment", "owners", "said"),
    [
        (torch.tensor([0, 1]), 2, r"shape \(rows, features\).*\(2,\)"),
        (torch.tensor([[0.0, 1.0]]), 2, "int64.*float32"),
        (torch.zeros(0, 3, dtype=torch.int64), 1, "at least one cell"),
        (torch.tensor([[0, 2]]), 2, r"0 \.\. 1, but lies in 0 \.\. 2"),
        (torch.tensor([[0, -1]]), 2, r"lies in -1 \.\. 0"),
        (torch.tensor([[0, 2, 2]]), 3, "owner 1 is assigned no cell"),
        (torch.tensor([[0, 1]]), 3, "2 cells out among 3 owners"),
        (torch.tensor([[0, 1]]), 0, "among 0 owners"),
    ],
)
def test_an_assignment_that_is_none_is_refused(assignment, owners, said):
    with pytest.raises(ConfigError, match=said):
        cells_as_assigned(assignment, owners)


@pytest.mark.parametrize(
    ("arguments", "changes", "said"),
    [
        ((2, 3, 7), {}, "6 cells out among 7 owners"),
        ((2, 3, 4), {"by": "feature"}, "3 columns out among 4 owners"),
        ((2, 3, 3), {"by": "row"}, "2 rows out among 3 owners"),
        ((2, 3, 0), {}, "among 0 owners"),
        ((0, 3, 1), {}, "0 x 3"),
        ((2, 3, 1), {"by": "column"}, "cell, feature, row, not 'column'"),
        ((2, 3, 2), {"weights": [1.0]}, "expected 2 weights"),
        ((2, 3, 2), {"weights": [1.0, -1.0]}, "none negative"),
        ((2, 3, 2), {"weights": [0.0, 0.0]}, "not all zero"),
        ((2, 3, 2), {"weights": [1.0, math.nan]}, "finite"),
    ],
)
def test_what_cannot_be_dealt_is_refused(arguments, changes, said):
    with pytest.raises(ConfigError, match=said):
        split_by_cell(*arguments, generator(), **changes)
