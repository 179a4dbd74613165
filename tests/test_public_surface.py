"""The names that users may rely on, and the example in the package's docstring."""

from __future__ import annotations

import doctest

import pytest

import tacit


def test_the_public_names_are_these_and_load() -> None:
    assert sorted(tacit.__all__) == ["Coins", "__version__", "audit", "compare", "train"]
    assert callable(tacit.compare) and callable(tacit.Coins)
    with pytest.raises(AttributeError, match="no attribute 'comparee'"):
        _ = tacit.comparee


def test_the_example_in_the_docstring_is_true() -> None:
    failed, tried = doctest.testmod(tacit)
    assert tried == 3 and failed == 0
