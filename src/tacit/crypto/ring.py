"""The rings of integers modulo 2^64 and 2^32, in which two-party computation works.

An element is a numpy unsigned integer, which adds, subtracts and multiplies modulo the ring's size by itself. Products of
matrices are exact too. On a processor with AVX-512 they are the C kernel's; elsewhere, and where they are large enough for
many threads, torch's, whose integer products wrap in the same way and are five to forty times as fast as numpy's. Small ones
are left to numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.kernels import Native, native

Elements = npt.NDArray[Any]
"""Ring elements: uint64 or uint32, any shape."""

Sides = int | tuple[int, int]
"""A number for both directions of an image, or one for down and one for across."""

_FEW = 1024  # multiplications, below which numpy is faster
_MANY = 1 << 28  # from here on torch's threads are


@dataclass(frozen=True, slots=True)
class Ring:
    """Integers modulo 2^bits.

    Args:
        bits: 64 or 32.

    Raises:
        ConfigError: another number of bits.
    """

    bits: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ConfigError(f"a ring of 64 or 32 bits expected, got {self.bits}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of elements."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def signed(self) -> np.dtype[Any]:
        """Of elements read in two's complement."""
        return np.dtype(f"<i{self.bits // 8}")

    def zeros(self, shape: tuple[int, ...]) -> Elements:
        """Zeros of that shape."""
        return np.zeros(shape, self.dtype)

    def uniform(self, coins: Coins, shape: tuple[int, ...]) -> Elements:
        """Uniform elements of that shape."""
        out = np.empty(shape, self.dtype)
        coins.fill(out.reshape(-1).view(np.uint8))
        return out

    def require(self, values: Elements, name: str = "values") -> Elements:
        """The values, if they are elements of this ring.

        Raises:
            ConfigError: they are not.
        """
        if values.dtype != self.dtype:
            raise ConfigError(f"{name}: elements of {self} are {self.dtype}, got {values.dtype}")
        return values

    def matmul(self, left: Elements, right: Elements) -> Elements:
        """The exact product of (m, k) and (k, n).

        Raises:
            ConfigError: the shapes do not fit, or the values are of another ring.
        """
        self.require(left, "left"), self.require(right, "right")
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise ConfigError(f"matrices that fit expected, got {left.shape} and {right.shape}")
        out = self.zeros((left.shape[0], right.shape[1]))
        self.matmul_add(left, right, out)
        return out

    def matmul_add(self, left: Elements, right: Elements, out: Elements) -> None:
        """Add the exact product of (m, k) and (k, n) to ``out``, contiguous (m, n), in place."""
        (m, k), n = left.shape, right.shape[1]
        loaded = native()
        if m * k * n < _FEW:
            out += left @ right
        elif m * k * n < _MANY and loaded is not None and loaded.lib.tacit_ring_level():
            _multiply_add_native(loaded, left, right, out)
        elif min(m, n) == 1:
            out += left @ right
        else:
            import torch  # noqa: PLC0415 - a party without products of matrices needs none of it

            pair = torch.from_numpy(self._writeable(left)), torch.from_numpy(self._writeable(right))
            out += (pair[0] @ pair[1]).numpy().view(self.dtype)

    def _writeable(self, values: Elements) -> Elements:
        """The values as torch takes them: signed, not read-only, which it warns of, and forwards in memory."""
        fine = values.flags.writeable and min(values.strides) >= 0
        return (values if fine else values.copy()).view(self.signed)

    def conv2d(
        self, images: Elements, filters: Elements, *, stride: Sides = 1, padding: Sides = 0
    ) -> Elements:
        """The exact cross-correlation, as torch's ``conv2d`` without groups and dilation.

        Args:
            images: (n, channels, height, width).
            filters: (out, channels, rows, columns).
            stride: in both directions, or down and across.
            padding: zeros on each side, or above and below, and left and right.

        Returns:
            (n, out, ...).
        """
        columns = self.patches(images, filters.shape[2:], stride=stride, padding=padding)
        n, height, width, _ = columns.shape
        flat = self.matmul(
            columns.reshape(n * height * width, -1), filters.reshape(len(filters), -1).T
        )
        return np.ascontiguousarray(flat.reshape(n, height, width, -1).transpose(0, 3, 1, 2))

    def patches(
        self, images: Elements, window: tuple[int, ...], *, stride: Sides = 1, padding: Sides = 0
    ) -> Elements:
        """What each output position of a convolution sees: (n, height, width, channels * rows * columns).

        Raises:
            ConfigError: the window is larger than the padded images, or a shape or setting is wrong.
        """
        (down, across), (rows, columns) = both(stride), both(padding)
        if (
            self.require(images, "images").ndim != 4
            or min(down, across) < 1
            or min(rows, columns) < 0
        ):
            raise ConfigError(
                f"images (n, channels, height, width), stride from 1 and padding from 0 expected, got {images.shape}, "
                f"{stride} and {padding}"
            )
        if rows or columns:
            images = np.pad(images, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
        if window[0] > images.shape[2] or window[1] > images.shape[3]:
            raise ConfigError(f"a window of {window} does not fit into images of {images.shape}")
        seen = np.lib.stride_tricks.sliding_window_view(images, window, axis=(2, 3))
        seen = seen[:, :, ::down, ::across].transpose(0, 2, 3, 1, 4, 5)
        return seen.reshape(*seen.shape[:3], -1)

    def fold(
        self,
        seen: Elements,
        image: tuple[int, ...],
        window: tuple[int, ...],
        *,
        stride: Sides = 1,
        padding: Sides = 0,
    ) -> Elements:
        """The transpose of `patches`: what stands at each output position added up where the position looked.

        Args:
            seen: (n, height, width, channels * rows * columns), of output positions.
            image: (channels, height, width) of an image.
            window: (rows, columns).
            stride: as in `patches`.
            padding: as in `patches`.

        Returns:
            (n, channels, height, width).
        """
        (down, across), (above, left) = both(stride), both(padding)
        n, height, width, _ = seen.shape
        channels, tall, wide = image
        out = self.zeros((n, channels, tall + 2 * above, wide + 2 * left))
        columns = seen.reshape(n, height, width, channels, *window).transpose(0, 3, 1, 2, 4, 5)
        for row in range(window[0]):
            for column in range(window[1]):
                rows = slice(row, row + down * (height - 1) + 1, down)
                across_ = slice(column, column + across * (width - 1) + 1, across)
                out[:, :, rows, across_] += columns[..., row, column]
        return out[:, :, above : above + tall, left : left + wide]

    def __str__(self) -> str:
        return f"Z_2^{self.bits}"


def both(sides: Sides) -> tuple[int, int]:
    """Down and across."""
    return (sides, sides) if isinstance(sides, int) else sides


def _multiply_add_native(loaded: Native, left: Elements, right: Elements, out: Elements) -> None:
    lib, ffi = loaded
    # A copy must live until C has read it.
    left, right = (of.copy() if min(of.strides) < 0 else of for of in (left, right))
    scratch = np.empty(lib.tacit_ring_scratch() + 64, np.uint8)
    skip = -scratch.ctypes.data % 64
    failed = lib.tacit_ring_multiply_add(
        *_strided(ffi, left), *_strided(ffi, right), ffi.from_buffer(out, require_writable=True),
        *left.shape, right.shape[1], out.itemsize == 8, ffi.from_buffer(scratch[skip:]),
    )  # fmt: skip
    if failed:
        raise ConfigError("this processor has no AVX-512")


def _strided(ffi: Any, values: Elements) -> tuple[Any, Any]:
    """A matrix as C takes it: where it begins, and its strides in elements."""
    steps = [stride // values.itemsize for stride in values.strides]
    return ffi.cast("void *", values.ctypes.data), ffi.new("size_t[2]", steps)


Z64 = Ring(64)
Z32 = Ring(32)
