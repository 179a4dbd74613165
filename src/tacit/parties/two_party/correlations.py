"""Correlations: what two parties must hold, of no input, before they compute. And plans: which of them, in which order.

A correlation is a list of fields. The free ones are uniform and, unless one party owns it, shared; the derived ones are
shares of what follows from them, for instance of the product of two masks. Ring elements are shared by addition, bits by
exclusive or. A correlation is used for one operation and never again: to use a mask twice would open the difference of
what it hid. The one exception is `Mask`, which hides one operand that stays the same, and is opened once.

Source: Beaver, "Efficient Multiparty Protocols Using Circuit Randomization" (CRYPTO 1991); matrix triples and masks of a
fixed operand: Mohassel and Zhang, "SecureML" (IEEE S&P 2017), section 4.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple, Protocol

import numpy as np

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, StoreError
from tacit.crypto.bits import unpack_plane, words_of
from tacit.crypto.circuits import Circuit
from tacit.crypto.ring import Elements, Ring, Sides, both
from tacit.parties.two_party.schedule import schedule_of

Size = tuple[int, ...]
Material = Mapping[str, Elements]
"""One party's part of a correlation, by field."""


class Field(NamedTuple):
    """A part of a correlation.

    Args:
        name: the key in `Material`.
        shape: of the array.
        bits: uint64 words shared by exclusive or; otherwise ring elements shared by addition.
        owner: the party that knows it, and whose material alone has it; None where it is shared.
    """

    name: str
    shape: Size
    bits: bool = False
    owner: int | None = None


def uniform(fields: Sequence[Field], ring: Ring, coins: Coins, party: int) -> dict[str, Elements]:
    """A party's share of uniform fields: those that it owns, and those that nobody owns alone."""
    return {
        field.name: coins.uint64(field.shape) if field.bits else ring.uniform(coins, field.shape)
        for field in fields
        if field.owner in (None, party)
    }


class Correlation(Protocol):
    """What one operation uses up. Its text is the same in every process, and two that differ have different texts."""

    def free(self) -> tuple[Field, ...]:
        """The uniform fields."""
        ...

    def derived(self) -> tuple[Field, ...]:
        """The fields that follow from them."""
        ...

    def derive(
        self, ring: Ring, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, ...]:
        """The derived fields' values.

        Args:
            ring: of the elements.
            free: the free fields' values.
            masks: the values of earlier `Mask`s by name.
        """
        ...


class Bilinear(Protocol):
    """A product of two operands, linear in each."""

    def apply(self, ring: Ring, left: Elements, right: Elements) -> Elements:
        """The product."""
        ...

    def shape(self, left: Size, right: Size) -> Size:
        """Of the product of operands of these shapes.

        Raises:
            ConfigError: they do not fit.
        """
        ...


@dataclass(frozen=True, slots=True)
class Elementwise:
    """The product of two arrays of one shape, element by element."""

    def apply(self, ring: Ring, left: Elements, right: Elements) -> Elements:
        """The product."""
        out: Elements = ring.require(left) * ring.require(right)
        return out

    def shape(self, left: Size, right: Size) -> Size:
        """Of the product."""
        if left != right:
            raise ConfigError(f"two arrays of one shape expected, got {left} and {right}")
        return left


@dataclass(frozen=True, slots=True)
class MatMul:
    """The product of matrices."""

    def apply(self, ring: Ring, left: Elements, right: Elements) -> Elements:
        """The product."""
        return ring.matmul(left, right)

    def shape(self, left: Size, right: Size) -> Size:
        """Of the product."""
        if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
            raise ConfigError(f"matrices that fit expected, got {left} and {right}")
        return left[0], right[1]


@dataclass(frozen=True, slots=True)
class Scale:
    """Each row of a matrix times the row's number: (n,) and (n, columns)."""

    def apply(self, ring: Ring, left: Elements, right: Elements) -> Elements:
        """The product."""
        out: Elements = ring.require(left)[:, None] * ring.require(right)
        return out

    def shape(self, left: Size, right: Size) -> Size:
        """Of the product."""
        if len(left) != 1 or len(right) != 2 or left[0] != right[0]:
            raise ConfigError(f"a number a row of a matrix expected, got {left} and {right}")
        return right


@dataclass(frozen=True, slots=True)
class Conv2d:
    """The cross-correlation of images and filters (`tacit.crypto.ring.Ring.conv2d`).

    Args:
        stride: in both directions, or down and across.
        padding: zeros on each side, or above and below, and left and right.
    """

    stride: Sides = 1
    padding: Sides = 0

    def apply(self, ring: Ring, left: Elements, right: Elements) -> Elements:
        """The product."""
        return ring.conv2d(left, right, stride=self.stride, padding=self.padding)

    def shape(self, left: Size, right: Size) -> Size:
        """Of the product."""
        if len(left) != 4 or len(right) != 4 or left[1] != right[1] or min(both(self.stride)) < 1:
            raise ConfigError(f"images and filters that fit expected, got {left} and {right}")
        height, width = (
            (left[i + 2] + 2 * both(self.padding)[i] - right[i + 2]) // both(self.stride)[i] + 1
            for i in (0, 1)
        )
        if height < 1 or width < 1:
            raise ConfigError(f"filters of {right} are larger than padded images of {left}")
        return left[0], right[0], height, width


@dataclass(frozen=True, slots=True)
class FilterGradient:
    """The gradient of a convolution's filters, from its images and the gradient of its output.

    Args:
        conv: the convolution.
        window: of its filters: (rows, columns).
    """

    conv: Conv2d
    window: tuple[int, int]

    def apply(self, ring: Ring, left: Elements, right: Elements) -> Elements:
        """The product: (out, channels, rows, columns)."""
        seen, errors = self.matrices(ring, left, right)
        flat = ring.matmul(errors, seen)
        return flat.reshape(right.shape[1], left.shape[1], *self.window)

    def matrices(self, ring: Ring, left: Elements, right: Elements) -> tuple[Elements, Elements]:
        """What each output position saw, (positions, channels * rows * columns), and its errors, (out, positions)."""
        seen = ring.patches(left, self.window, stride=self.conv.stride, padding=self.conv.padding)
        errors = right.transpose(1, 0, 2, 3).reshape(right.shape[1], -1)
        return seen.reshape(errors.shape[1], -1), errors

    def shape(self, left: Size, right: Size) -> Size:
        """Of the product."""
        filters = right[1], left[1], *self.window
        if len(right) != 4 or self.conv.shape(left, filters) != right:
            raise ConfigError(f"images and a gradient that fit expected, got {left} and {right}")
        return filters


@dataclass(frozen=True, slots=True)
class ImageGradient:
    """The gradient of a convolution's images, from the gradient of its output and its filters.

    Args:
        conv: the convolution.
        image: its images' (height, width).
    """

    conv: Conv2d
    image: tuple[int, int]

    def apply(self, ring: Ring, left: Elements, right: Elements) -> Elements:
        """The product: (n, channels, height, width)."""
        errors, filters = self.matrices(left, right)
        return self.folded(ring, ring.matmul(errors, filters), left.shape, right.shape)

    def matrices(self, left: Elements, right: Elements) -> tuple[Elements, Elements]:
        """The errors of each output position, (positions, out), and the filters, (out, channels * rows * columns)."""
        return left.transpose(0, 2, 3, 1).reshape(-1, left.shape[1]), right.reshape(len(right), -1)

    def folded(self, ring: Ring, columns: Elements, left: Size, right: Size) -> Elements:
        """What came for each output position added up where the position looked."""
        seen = columns.reshape(left[0], *left[2:], -1)
        image = right[1], *self.image
        return ring.fold(seen, image, right[2:], stride=self.conv.stride, padding=self.conv.padding)

    def shape(self, left: Size, right: Size) -> Size:
        """Of the product."""
        images = left[0], right[1], *self.image
        if len(left) != 4 or self.conv.shape(images, right) != left:
            raise ConfigError(f"a gradient and filters that fit expected, got {left} and {right}")
        return images


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a `Mask`, as an operand.

    Args:
        mask: its name.
        shape: of the whole.
        start: the first row.
        stop: the row after the last.
        transposed: a matrix whose rows become columns.
    """

    mask: str
    shape: Size
    start: int
    stop: int
    transposed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.shape[0]:
            raise ConfigError(
                f"mask {self.mask} has {self.shape[0]} rows, not {self.start}..{self.stop}"
            )
        if self.transposed and len(self.shape) != 2:
            raise ConfigError(f"mask {self.mask} of shape {self.shape} is no matrix")

    @property
    def size(self) -> Size:
        """The shape of the operand."""
        rows = self.stop - self.start, *self.shape[1:]
        return rows[::-1] if self.transposed else rows

    def of(self, whole: Elements) -> Elements:
        """The operand, of all rows."""
        rows = whole[self.start : self.stop]
        return rows.T if self.transposed else rows


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of an operand that stays the same for many products.

    Args:
        name: no other mask of the plan has it.
        shape: of the operand.
    """

    name: str
    shape: Size

    def free(self) -> tuple[Field, ...]:
        """The mask."""
        return (Field("a", self.shape),)

    def derived(self) -> tuple[Field, ...]:
        """Nothing."""
        return ()

    def derive(
        self, ring: Ring, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, ...]:
        """Nothing."""
        return ()


Operand = Size | Mask | Part


def size_of(operand: Operand) -> Size:
    """The shape of an operand."""
    match operand:
        case Part():
            return operand.size
        case Mask():
            return operand.shape
        case _:
            return operand


@dataclass(frozen=True, slots=True)
class Product:
    """A Beaver triple of any bilinear product: masks a and b, and c = a * b.

    Args:
        op: the product.
        left: the shape of the left operand; or a `Mask`, which is made here, and which later products may use again; or rows
            of one that was made before, which then has no mask of its own here.
        right: likewise.
    """

    op: Bilinear
    left: Operand
    right: Operand

    def free(self) -> tuple[Field, ...]:
        """The masks of operands that have none yet."""
        named = (("a", self.left), ("b", self.right))
        return tuple(Field(name, size_of(of)) for name, of in named if not isinstance(of, Part))

    def derived(self) -> tuple[Field, ...]:
        """The product."""
        return (Field("c", self.op.shape(size_of(self.left), size_of(self.right))),)

    def derive(
        self, ring: Ring, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, ...]:
        """The product of the masks."""
        a, b = self.operands(free, masks)
        return (self.op.apply(ring, a, b),)

    def operands(
        self, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, Elements]:
        """Both masks, or both of a party's shares of them."""
        try:
            a, b = (
                of.of(masks[of.mask]) if isinstance(of, Part) else free[name]
                for name, of in (("a", self.left), ("b", self.right))
            )
        except KeyError as error:
            raise StoreError(
                f"the mask {error} was not prepared with the products that need it: prepare them anew together"
            ) from error
        return a, b


@dataclass(frozen=True, slots=True)
class Square:
    """A mask a and its square, element by element.

    Args:
        shape: of what is squared.
    """

    shape: Size

    def free(self) -> tuple[Field, ...]:
        """The mask."""
        return (Field("a", self.shape),)

    def derived(self) -> tuple[Field, ...]:
        """Its square."""
        return (Field("c", self.shape),)

    def derive(
        self, ring: Ring, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, ...]:
        """The square."""
        return (free["a"] * free["a"],)


@dataclass(frozen=True, slots=True)
class CircuitMasks:
    """Masks of the wires of a circuit that its ANDs read, one a wire, and the product of the two masks of each AND.

    Wires that one party knows have masks that it alone knows.

    Args:
        circuit: to be evaluated on bit-sliced shares.
        words: of 64 instances each.
    """

    circuit: Circuit
    words: int

    def free(self) -> tuple[Field, ...]:
        """The masks."""
        first, second, shared = schedule_of(self.circuit).masks
        return (
            Field("first", (first, self.words), bits=True, owner=0),
            Field("second", (second, self.words), bits=True, owner=1),
            Field("shared", (shared, self.words), bits=True),
        )

    def derived(self) -> tuple[Field, ...]:
        """The products."""
        count = len(schedule_of(self.circuit).left)
        return (Field("products", (count, self.words), bits=True),)

    def derive(
        self, ring: Ring, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, ...]:
        """The products."""
        schedule = schedule_of(self.circuit)
        rows = [*free["first"], *free["second"], *free["shared"]]
        out = np.empty((len(schedule.left), self.words), np.uint64)
        for to, a, b in zip(out, schedule.left.tolist(), schedule.right.tolist(), strict=True):
            np.bitwise_and(rows[a], rows[b], out=to)
        return (out,)

    def __str__(self) -> str:
        return f"CircuitMasks({self.circuit.digest.hex()}, {self.words})"


@dataclass(frozen=True, slots=True)
class Selection:
    """To multiply shared values by shared bits: random bits, shared both ways, masks, and their products.

    Args:
        count: of values.
    """

    count: int

    def free(self) -> tuple[Field, ...]:
        """The bits, and the masks."""
        return Field("bits", (words_of(self.count),), bits=True), Field("a", (self.count,))

    def derived(self) -> tuple[Field, ...]:
        """The bits as ring elements, and times the masks."""
        return Field("r", (self.count,)), Field("ra", (self.count,))

    def derive(
        self, ring: Ring, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, ...]:
        """Both."""
        bits = unpack_plane(free["bits"], self.count).astype(ring.dtype)
        return bits, bits * free["a"]


@dataclass(frozen=True, slots=True)
class DaBits:
    """Random bits, shared by exclusive or and by addition.

    Source: Rotaru and Wood, "MArBled Circuits" (INDOCRYPT 2019).

    Args:
        count: of bits.
    """

    count: int

    def free(self) -> tuple[Field, ...]:
        """The bits."""
        return (Field("bits", (words_of(self.count),), bits=True),)

    def derived(self) -> tuple[Field, ...]:
        """The bits as ring elements."""
        return (Field("r", (self.count,)),)

    def derive(
        self, ring: Ring, free: Mapping[str, Elements], masks: Mapping[str, Elements]
    ) -> tuple[Elements, ...]:
        """The bits as ring elements."""
        return (unpack_plane(free["bits"], self.count).astype(ring.dtype),)


def masks_made(correlation: Correlation) -> tuple[tuple[str, str], ...]:
    """The fields of a correlation that are masks which later ones use again: (field, name of the mask)."""
    match correlation:
        case Mask():
            return (("a", correlation.name),)
        case Product():
            sides = ("a", correlation.left), ("b", correlation.right)
            return tuple((key, of.name) for key, of in sides if isinstance(of, Mask))
        case _:
            return ()


def renamed(correlation: Correlation, name: Callable[[str], str]) -> Correlation:
    """The same with other names for its masks."""

    def operand(of: Operand) -> Operand:
        match of:
            case Mask():
                return replace(of, name=name(of.name))
            case Part():
                return replace(of, mask=name(of.mask))
            case _:
                return of

    match correlation:
        case Mask():
            return replace(correlation, name=name(correlation.name))
        case Product():
            left, right = operand(correlation.left), operand(correlation.right)
            return replace(correlation, left=left, right=right)
        case _:
            return correlation


def bytes_of(correlation: Correlation, ring: Ring) -> int:
    """What a party's part of it takes in memory, at most."""
    return sum(
        prod(field.shape) * (8 if field.bits else ring.bits // 8)
        for field in (*correlation.free(), *correlation.derived())
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """The correlations of a computation, in the order in which it uses them.

    Args:
        ring: of elements.
        fraction: fractional bits, on which the two parties must agree too.
        correlations: in order.
        names: for each the operation that uses it, under which its costs are booked; the two parties need not agree on them.
    """

    ring: Ring
    fraction: int
    correlations: tuple[Correlation, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for one in self.correlations:
            for _, name in masks_made(one):
                if name in seen:
                    raise ConfigError(
                        f"two fixed operands are called {name!r}: each needs a name of its own"
                    )
                seen.add(name)

    def name(self, number: int) -> str:
        """Under which the costs of a correlation are booked."""
        return self.names[number] if self.names else type(self.correlations[number]).__name__

    @property
    def digest(self) -> bytes:
        """SHA-256 of the plan: the same for the same plan in every process."""
        text = "\n".join(map(str, (self.ring, self.fraction, *self.correlations)))
        return hashlib.sha256(b"tacit/plan/1\n" + text.encode()).digest()

    @property
    def bytes(self) -> int:
        """What a party's store of it takes, about."""
        return sum(bytes_of(correlation, self.ring) for correlation in self.correlations)

    def last_uses(self) -> Mapping[int, Sequence[str]]:
        """By correlation, the masks that none after it uses: who makes correlations may forget them then."""
        last: dict[str, int] = {}
        for number, one in enumerate(self.correlations):
            last.update((name, number) for _, name in masks_made(one))
            if isinstance(one, Product):
                sides = (one.left, one.right)
                last.update((of.mask, number) for of in sides if isinstance(of, Part))
        out: dict[int, list[str]] = {}
        for name, number in last.items():
            out.setdefault(number, []).append(name)
        return out

    def windows(self, size: int) -> Sequence[range]:
        """Runs of correlations, in order, each of about ``size`` bytes or a single larger one."""
        out, start, held = [], 0, 0
        for number, correlation in enumerate(self.correlations):
            needed = bytes_of(correlation, self.ring)
            if number > start and held + needed > size:
                out.append(range(start, number))
                start, held = number, 0
            held += needed
        if start < len(self.correlations):
            out.append(range(start, len(self.correlations)))
        return out


class Masks(dict[str, Elements]):
    """The masks of a plan that are needed again, by name: kept when they are made, forgotten after their last use.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._last = plan.last_uses()

    def keep(self, correlation: Correlation, free: Mapping[str, Elements]) -> None:
        """Keep the masks that a correlation makes."""
        self.update((name, free[key]) for key, name in masks_made(correlation))

    def done(self, number: int) -> None:
        """That correlation was made."""
        for name in self._last.get(number, ()):
            self.pop(name, None)


def all_masks(own: Material, counts: tuple[int, int, int], party: int) -> Elements:
    """A party's shares of all masks of a `CircuitMasks`, in the order of its rows: zeros of those that the other knows."""
    known = own[("first", "second")[party]]
    zeros = np.zeros((counts[1 - party], known.shape[1]), np.uint64)
    parts = (known, zeros) if party == 0 else (zeros, known)
    return np.concatenate([*parts, own["shared"]])
