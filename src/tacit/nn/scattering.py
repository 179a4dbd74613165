"""The wavelet scattering transform of images: fixed, public features, each record's from that record alone.

A wavelet of scale j and direction l is a Morlet wavelet, psi(u) = a (exp(i xi . u) - k) exp(-(s^2 + (t / r)^2) / 2 sigma^2)
with s and t the parts of u along and across the direction l pi / L, xi of size 3/4 pi 2^-j in that direction, sigma = 0.8
2^j, r the greater of 1 and L / 4, and k such that its mean is 0. The low-pass phi is a Gaussian of deviation 0.8 2^(J-1).
Of an image x there are, averaged by phi and read every 2^J pixels,

    order 0: x * phi,    order 1: |x * psi(j, l)| * phi,    order 2: ||x * psi(j, l)| * psi(j', l')| * phi for j' > j,

1 + J L + L^2 J (J - 1) / 2 channels in this order, the later indices faster. A modulus at scale j is read every 2^j pixels,
about as finely as it varies. Images are mirrored at their edges.

One constant scales all wavelets: the largest for which |phi(w)|^2 plus half the sum over them of |psi(w)|^2 + |psi(-w)|^2
is at most 1 at each frequency w. Then the averages of two images, before they are read coarsely, are together no farther
apart than the mirrored images are. What is read, taken 4^J times for all that is not, keeps to this in the tests.

No privacy is spent by it: what a record becomes depends on no other.

Source: Bruna, Mallat, "Invariant scattering convolution networks", TPAMI 2013; filters and sizes as in Andreux et al.,
"Kymatio: scattering transforms in Python", JMLR 2020 (recalled); Tramèr, Boneh, "Differentially private learning needs
better features (or much more data)", ICLR 2021, for its use here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tacit.core.errors import ConfigError, DataError

_PART = 8  # planes at a time: what is made of them stays near the processor
_ALIASES = (-2, -1, 0, 1, 2)  # turns of 2 pi: beyond, the transforms of all filters are below 1e-20

FloatArray = npt.NDArray[np.floating]


def scattering_channels(scales: int, orientations: int) -> int:
    """Channels of the transform of one plane: 1 + J L + L^2 J (J - 1) / 2."""
    return 1 + scales * orientations + orientations**2 * (scales * (scales - 1) // 2)


def scattered(images: Tensor, scales: int = 2, orientations: int = 8) -> Tensor:
    """Scattering coefficients of orders 0, 1 and 2.

    Args:
        images: real, (n, planes, height, width), on any device.
        scales: J, at least 1; height and width must be more than 2^(J+1).
        orientations: L, at least 1.

    Returns:
        float32, (n, planes * K, height // 2^J, width // 2^J), K = `scattering_channels`; a plane's channels stand
        together. For 28x28, J = 2 and L = 8: (n, 81, 7, 7).

    Raises:
        ConfigError: a setting is out of range, or the images are too small for it.
        DataError: the images are not real numbers (n, planes, height, width).

    **Guarantee**: a record's coefficients depend on that record only.
    """
    if images.ndim != 4 or images.is_complex():
        raise DataError(
            f"real images (n, planes, height, width) expected, got {images.dtype} of shape {tuple(images.shape)}"
        )
    if scales < 1 or orientations < 1:
        raise ConfigError(
            f"at least one scale and one orientation expected, got {scales} and {orientations}"
        )
    n, planes, height, width = images.shape
    if min(height, width) <= 2 << scales:
        raise ConfigError(
            f"{scales} scales need images of more than {2 << scales} pixels each way, not {height}x{width}: take fewer"
        )
    bank = _Bank.of(height, width, scales, orientations, images.device)
    flat = images.detach().reshape(n * planes, height, width)
    each = scattering_channels(scales, orientations)
    size = each, height >> scales, width >> scales
    out = torch.empty((n * planes, *size), device=images.device)
    for start in range(0, len(flat), _PART):
        part = slice(start, start + _PART)
        out[part] = bank.transform(flat[part].to(torch.float32)).reshape(-1, *size)
    return out.reshape(n, planes * each, *size[1:])


@dataclass(frozen=True, slots=True)
class _Bank:
    """The filters for images of one size.

    Args:
        margins: pixels mirrored at the left, right, top and bottom.
        wavelets: of each scale, (L, rows, columns): their Fourier transforms, which are real, over the padded image.
        rows: of each scale and, last, of the image: low-pass and coarse reading of what is read every 2^j rows.
        columns: likewise, transposed.
    """

    margins: tuple[int, int, int, int]
    wavelets: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, height: int, width: int, scales: int, orientations: int, device: torch.device
    ) -> _Bank:
        def there(array: FloatArray) -> Tensor:
            return torch.from_numpy(array).to(device, torch.float32)

        margin, padded = 1 << scales, [_padded(size, scales) for size in (height, width)]
        right, below = padded[1] - width - margin, padded[0] - height - margin
        levels = [*range(scales), 0]
        return cls(
            (margin, right, margin, below),
            tuple(
                there(bank).to(torch.complex64)
                for bank in _wavelets(padded[0], padded[1], scales, orientations)
            ),
            tuple(there(_averages(height, scales, level)) for level in levels),
            tuple(there(_averages(width, scales, level).T.copy()) for level in levels),
        )

    def transform(self, x: Tensor) -> Tensor:
        """Coefficients of (n, height, width): (n, K, h, w)."""
        x = nn.functional.pad(x, self.margins, mode="reflect").unsqueeze(1)
        first, second = [self._averaged(x, -1)], []
        spectrum = torch.fft.fft2(x)
        for j in range(len(self.wavelets)):
            moduli = self._moduli(spectrum, j, 0)
            first.append(self._averaged(moduli, j))
            if j + 1 < len(self.wavelets):
                # Of each plane, the wavelets of all larger scales.
                n, planes, spectra = *moduli.shape[:2], torch.fft.fft2(moduli)
                deeper = [
                    self._averaged(self._moduli(spectra, k, j), k)
                    for k in range(j + 1, len(self.wavelets))
                ]
                parts = [part.reshape(n, planes, -1, *part.shape[2:]) for part in deeper]
                second.append(torch.cat(parts, 2).flatten(1, 2))
        return torch.cat(first + second, 1)

    def _moduli(self, spectra: Tensor, scale: int, level: int) -> Tensor:
        """Of the planes of these spectra, known every 2^level pixels: |plane * psi(scale, l)|, read every 2^scale.

        (n, planes, rows, columns) in, (n, planes * L, rows', columns') out.
        """
        filters = _folded(self.wavelets[scale], 1 << level)
        fold = 1 << (scale - level)
        # To read every fold-th pixel is to average over the frequencies that then coincide.
        spectra, filters = _blocks(spectra.unsqueeze(2), fold), _blocks(filters, fold)
        pieces = [
            (spectra[..., a, :, b, :], filters[..., a, :, b, :]) for a, b in np.ndindex(fold, fold)
        ]
        total = pieces[0][0] * pieces[0][1]
        for piece in pieces[1:]:
            total.addcmul_(*piece)
        moduli: Tensor = torch.fft.ifft2(total).abs().flatten(1, 2)
        return moduli.div_(fold**2)

    def _averaged(self, x: Tensor, level: int) -> Tensor:
        return self.rows[level] @ x @ self.columns[level]


def _blocks(grid: Tensor, fold: int) -> Tensor:
    """(..., rows, columns) as (..., fold, rows / fold, fold, columns / fold)."""
    *rest, rows, columns = grid.shape
    return grid.view(*rest, fold, rows // fold, fold, columns // fold)


def _folded(filters: Tensor, fold: int) -> Tensor:
    """The transforms of the same filters read every ``fold`` pixels, times fold^2."""
    return _blocks(filters, fold).sum((-4, -2))


def _padded(size: int, scales: int) -> int:
    """The size with a margin of 2^J on either side, rounded up to a multiple of 2^J."""
    return (-(-size >> scales) + 2) << scales


def _gaussian(
    at: tuple[FloatArray, FloatArray], angle: float, deviation: float, stretch: float, centre: float
) -> FloatArray:
    """The transform of a Gaussian times a wave, 1 at its height, on a grid of frequencies.

    Args:
        at: frequencies, of columns and of rows.
        angle: the direction of the wave.
        deviation: of the Gaussian in space along it.
        stretch: how many times that across it.
        centre: the wave's frequency.
    """
    total = np.zeros(np.broadcast_shapes(at[0].shape, at[1].shape))
    for a in _ALIASES:
        for b in _ALIASES:
            x, y = at[0] + 2 * math.pi * a, at[1] + 2 * math.pi * b
            along = math.cos(angle) * x + math.sin(angle) * y - centre
            across = math.cos(angle) * y - math.sin(angle) * x
            total += np.exp(-(deviation**2) / 2 * (along**2 + (stretch * across) ** 2))
    return total


def _wavelets(rows: int, columns: int, scales: int, orientations: int) -> list[FloatArray]:
    """Transforms of the wavelets of each scale, (L, rows, columns)."""
    at = (2 * math.pi * np.fft.fftfreq(columns)[None, :], 2 * math.pi * np.fft.fftfreq(rows)[:, None])  # fmt: skip
    found = []
    for j in range(scales):
        bank = np.empty((orientations, rows, columns))
        for direction in range(orientations):
            shape = math.pi * direction / orientations, 0.8 * 2**j, max(1.0, orientations / 4)
            wave, rest = _gaussian(at, *shape, 0.75 * math.pi / 2**j), _gaussian(at, *shape, 0.0)
            bank[direction] = wave - wave[0, 0] / rest[0, 0] * rest
        found.append(bank)
    power = sum(np.sum(bank**2, axis=0) for bank in found)
    power = (power + np.roll(np.flip(power), 1, (0, 1))) / 2
    low = _gaussian(at, 0.0, 0.8 * 2 ** (scales - 1), 1.0, 0.0) ** 2
    room = np.divide(1 - low, power, out=np.full_like(power, np.inf), where=power > 1e-12)
    return [bank * math.sqrt(room.min()) for bank in found]


def _averages(size: int, scales: int, level: int) -> FloatArray:
    """Low-pass along one side of a padded image that is read every 2^level pixels, (size // 2^J, padded / 2^level)."""
    padded = _padded(size, scales)
    places = np.arange(1, 1 + (size >> scales)) << scales
    apart = np.abs(places[:, None] - np.arange(0, padded, 1 << level))
    apart = np.minimum(apart, padded - apart)
    weights = np.exp(-(apart**2) / (2 * (0.8 * 2 ** (scales - 1)) ** 2))
    out: FloatArray = weights / weights.sum(axis=1, keepdims=True)
    return out
