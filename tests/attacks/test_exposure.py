"""A record in the clear is found where its values were rounded, and only there."""

from __future__ import annotations

import pytest
import torch

from tacit.attacks.exposure import TOLERANCE, standing


def drawn(rows: int, size: int = 24) -> torch.Tensor:
    return torch.rand(rows, 2, size // 2, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("fraction", [10, 13, 16, 24])
def test_records_in_fixed_point_are_found_among_many_rows(fraction: int) -> None:
    records, rows = drawn(30), drawn(5000)
    rounded = (records * 2.0**fraction).round() / 2.0**fraction
    among = torch.cat([rows[:2500], rounded[:20], rows[2500:]])
    assert standing(records, among) == [True] * 20 + [False] * 10


def test_a_value_that_is_off_by_more_than_rounding_is_no_record() -> None:
    records = drawn(5)
    close = records.clone()
    close[:, 1, 3] += 1.01 * TOLERANCE * records.flatten(1).amax(1)
    assert standing(records, close) == [False] * 5
    close[:, 1, 3] = records[:, 1, 3] + 0.9 * TOLERANCE * records.flatten(1).amax(1)
    assert standing(records, close) == [True] * 5


def test_odd_rows_and_none_are_no_records() -> None:
    records = drawn(3)
    odd = torch.full((4, 2, 12), 1e30)
    odd[1], odd[2] = float("nan"), float("inf")
    odd[3] = 0.0
    assert standing(records, odd) == [False] * 3
    assert standing(records, odd[:0]) == [False] * 3
    assert standing(torch.zeros(1, 2, 12), odd) == [True]
    assert standing(records, torch.cat([odd, records])) == [True] * 3
