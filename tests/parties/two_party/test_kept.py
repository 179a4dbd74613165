"""Operands that several products use: masked with the first product, opened once, forgotten after the last."""

from __future__ import annotations

import pytest

from tacit.core.errors import ConfigError
from tacit.crypto.ring import Z64
from tacit.parties.two_party import arithmetic
from tacit.parties.two_party.arithmetic import Kept
from tacit.parties.two_party.correlations import (
    Conv2d,
    Elementwise,
    FilterGradient,
    ImageGradient,
    Mask,
    Masks,
    MatMul,
    Part,
    Plan,
    Product,
    Scale,
    renamed,
)
from tacit.parties.two_party.session import traced

from .conftest import DEALT, TRANSFERRED, Setting, agrees, at, drawn, opens

both = pytest.mark.parametrize("by", [DEALT, TRANSFERRED])
CONV = Conv2d((2, 1), (1, 0))
IMAGES, FILTERS = drawn("images", Z64, (2, 3, 5, 4)), drawn("filters", Z64, (2, 3, 3, 2))
ERRORS = drawn("errors", Z64, CONV.shape(IMAGES.shape, FILTERS.shape))


@both
@pytest.mark.parametrize(
    "op, left, right",
    [
        (Scale(), drawn("l", Z64, 6), drawn("r", Z64, (6, 3))),
        (FilterGradient(CONV, (3, 2)), IMAGES, ERRORS),
        (ImageGradient(CONV, (5, 4)), ERRORS, FILTERS),
        (CONV, IMAGES, FILTERS),
    ],
    ids=lambda one: type(one).__name__,
)
def test_products_of_plain_and_kept_operands_are_exact(by: str, op, left, right) -> None:
    """Plain, kept on either side, and kept on both."""

    def work(session, x, y):
        out = [arithmetic.product(session, op, x, y, "plain")]
        one, two = Kept("x", x), Kept("y", y)
        out.append(arithmetic.product(session, op, one, y, "left"))
        out.append(arithmetic.product(session, op, x, two, "right"))
        out.append(arithmetic.product(session, op, one, two, "both"))
        return tuple(out)

    agrees(
        opens(left, right, work=work), Setting(at(Z64), by=by), *[op.apply(Z64, left, right)] * 4
    )


@both
def test_a_kept_matrix_serves_forward_and_transposed(by: str) -> None:
    x, w = drawn("x", Z64, (4, 3)), drawn("w", Z64, (3, 5))

    def work(session, a, b):
        weights = Kept("w", b)
        out = arithmetic.matmul(session, a, weights)
        return out, arithmetic.matmul(session, out, weights.transposed)

    first = Z64.matmul(x, w)
    agrees(opens(x, w, work=work), Setting(at(Z64), by=by), first, Z64.matmul(first, w.T.copy()))


def test_what_is_kept_is_used_only_after_its_first_product_and_once_by_name() -> None:
    with pytest.raises(ConfigError, match="w is transposed before its first product"):
        _ = Kept("w", Z64.zeros((2, 2))).transposed

    def twice(session):
        for _ in range(2):
            x = Z64.zeros((2,))
            arithmetic.multiply(session, Kept("x", x), x)

    with pytest.raises(ConfigError, match="two fixed operands are called 'x'"):
        traced(twice, at(Z64))


def plan() -> Plan:
    a, b = Mask("a", (2, 2)), Mask("b", (2, 2))
    part = lambda name: Part(name, (2, 2), 0, 2)  # noqa: E731
    products = (a, Product(MatMul(), part("a"), b), Product(MatMul(), part("b"), (2, 2)))
    return Plan(
        Z64,
        9,
        (
            *products,
            Product(Elementwise(), (2,), (2,)),
            Product(MatMul(), part("a"), Mask("c", (2, 2))),
        ),
    )


def test_masks_are_forgotten_after_their_last_use() -> None:
    made = plan()
    assert {k: sorted(v) for k, v in made.last_uses().items()} == {2: ["b"], 4: ["a", "c"]}
    masks, held = Masks(made), []
    for number, one in enumerate(made.correlations):
        masks.keep(one, {"a": Z64.zeros((2, 2)), "b": Z64.zeros((2, 2))})
        masks.done(number)
        held.append(sorted(masks))
    assert held == [["a"], ["a", "b"], ["a"], ["a"], []]


def test_renamed_changes_the_names_of_masks_and_nothing_else() -> None:
    old = plan()
    new = Plan(Z64, 9, tuple(renamed(one, lambda name: f"new {name}") for one in old.correlations))
    assert new.digest != old.digest
    back = tuple(renamed(one, lambda name: name.removeprefix("new ")) for one in new.correlations)
    assert back == old.correlations
    assert {name for names in new.last_uses().values() for name in names} == {
        "new a",
        "new b",
        "new c",
    }
