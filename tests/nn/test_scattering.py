"""The scattering transform against convolutions as its definition has them, and what it promises."""

import math
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tacit.core.errors import ConfigError, DataError
from tacit.nn.scattering import scattered, scattering_channels


def padded_size(size, scales):
    return (math.ceil(size / 2**scales) + 2) * 2**scales


def mirrored(image, scales):
    height, width = image.shape
    margin = 2**scales
    ends = [padded_size(size, scales) - size - margin for size in (height, width)]
    return np.pad(image, ((margin, ends[0]), (margin, ends[1])), mode="reflect")


def wrapped(kernel_at, rows, columns):
    """A kernel on the torus: the sum over its turns around, at every (row, column) apart."""
    down, right = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return sum(
        kernel_at(right + a * columns, down + b * rows) for a in range(-4, 5) for b in range(-4, 5)
    )


def morlet(scale, direction, orientations, rows, columns):
    """In space, with a peak of about 1 in its transform: no Fourier transform is used here."""
    deviation, angle = 0.8 * 2**scale, math.pi * direction / orientations
    wave, stretch = 0.75 * math.pi / 2**scale, max(1, orientations / 4)

    def envelope(x, y):
        along = math.cos(angle) * x + math.sin(angle) * y
        across = math.cos(angle) * y - math.sin(angle) * x
        height = np.exp(-(along**2 + (across / stretch) ** 2) / (2 * deviation**2))
        return height / (2 * math.pi * deviation**2 * stretch), along

    def plain(x, y):
        return envelope(x, y)[0]

    def waved(x, y):
        height, along = envelope(x, y)
        return height * np.exp(1j * wave * along)

    rest, moved = wrapped(plain, rows, columns), wrapped(waved, rows, columns)
    return moved - moved.sum() / rest.sum() * rest


def convolved(image, kernel, every=1):
    """On the torus, at every so-manieth place, term by term."""
    rows, columns = image.shape
    out = np.zeros((rows // every, columns // every), complex)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            down = (i * every - np.arange(rows)) % rows
            right = (j * every - np.arange(columns)) % columns
            out[i, j] = (image * kernel[np.ix_(down, right)]).sum()
    return out


def gaussian(scales, rows, columns):
    deviation = 0.8 * 2 ** (scales - 1)
    kernel = wrapped(lambda x, y: np.exp(-(x**2 + y**2) / (2 * deviation**2)), rows, columns)
    return kernel / kernel.sum()


def averaged(moduli, every, scales, place):
    """The low-pass of what is known at every so-manieth place, at one place."""
    rows, columns = (size * every for size in moduli.shape)
    kernel = gaussian(scales, rows, columns)
    down = (place[0] - every * np.arange(moduli.shape[0])) % rows
    right = (place[1] - every * np.arange(moduli.shape[1])) % columns
    weights = kernel[np.ix_(down, right)]
    return (weights * moduli).sum() / weights.sum()


def test_coefficients_are_the_convolutions_of_the_definition():
    scales, orientations = 2, 3
    image = torch.rand((1, 1, 12, 14), generator=torch.Generator().manual_seed(1))
    found = scattered(image, scales, orientations)[0].double().numpy()
    x = mirrored(image[0, 0].double().numpy(), scales)
    rows, columns = x.shape
    wavelets = {
        (j, k): morlet(j, k, orientations, rows, columns)
        for j in range(scales)
        for k in range(orientations)
    }
    places = [(0, 0), (2, 1)]
    in_padded = [((1 + i) * 4, (1 + j) * 4) for i, j in places]
    low = [found[0][at] for at in places]
    np.testing.assert_allclose(low, [averaged(x, 1, scales, at) for at in in_padded], rtol=1e-5)

    # One constant scales all wavelets: the largest with which no frequency gains energy.
    moduli = {key: abs(convolved(x, w, 2 ** key[0])) for key, w in wavelets.items()}
    first = np.array(
        [[averaged(m, 2 ** key[0], scales, at) for at in in_padded] for key, m in moduli.items()]
    )
    ours = np.array([[plane[at] for at in places] for plane in found[1:7]])
    constant = (ours / first).mean()
    np.testing.assert_allclose(ours, constant * first, rtol=1e-4)
    power = [abs(np.fft.fft2(w)) ** 2 for w in wavelets.values()]
    power = sum((p + np.roll(p[::-1, ::-1], 1, (0, 1))) / 2 for p in power)
    left = 1 - abs(np.fft.fft2(gaussian(scales, rows, columns))) ** 2
    assert constant**2 == pytest.approx((left.flat[1:] / power.flat[1:]).min(), rel=1e-4)

    second = [
        [
            averaged(abs(convolved(moduli[0, k], wavelets[1, l], 2)), 2, scales, at)
            for at in in_padded
        ]
        for k in range(orientations)
        for l in range(orientations)  # noqa: E741
    ]
    ours = np.array([[plane[at] for at in places] for plane in found[7:]])
    np.testing.assert_allclose(ours, constant**2 * np.array(second), rtol=1e-4)


def test_three_scales_put_each_pair_of_scales_in_its_place():
    """Order 2 has its pairs of wavelets in the stated order, and takes moduli that are read every 2^j pixels."""
    scales, orientations = 3, 2
    image = torch.rand((1, 1, 18, 17), generator=torch.Generator().manual_seed(2))
    found = scattered(image, scales, orientations)[0].double().numpy()
    assert len(found) == scattering_channels(scales, orientations) == 1 + 6 + 12
    x = mirrored(image[0, 0].double().numpy(), scales)
    wavelets = {
        (j, k): morlet(j, k, orientations, *x.shape) for j in range(scales) for k in range(2)
    }
    first = abs(convolved(x, wavelets[0, 0], 1))
    constant = found[1][0, 0] / averaged(first, 1, scales, (8, 8))
    pairs = [(j, k, s, t) for j in (0, 1) for k in (0, 1) for s in range(j + 1, 3) for t in (0, 1)]
    for channel in (1, 6, 9, 10):
        j, k, s, t = pairs[channel]
        one = abs(convolved(x, wavelets[j, k], 2**j))
        # What is read every 2^j pixels is convolved with the wavelet read so too.
        coarse = wavelets[s, t][:: 2**j, :: 2**j] * 4**j
        two = abs(convolved(one, coarse, 2 ** (s - j)))
        expected = constant**2 * averaged(two, 2**s, scales, (8, 8))
        assert found[7 + channel][0, 0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("scales", "orientations"), [(1, 8), (2, 8), (3, 6)])
def test_no_two_images_move_apart(scales, orientations):
    """Read every 2^J pixels an average counts 4^J times: then distances stay below those of the mirrored images."""
    generator = torch.Generator().manual_seed(3)
    size = 32
    noise = torch.randn((6, 1, size, size), generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 7, 1, 3)
    digits = torch.zeros(6, 1, size, size)
    digits[..., 12:20, 12:20] = torch.from_numpy(load_digits().images[:6, None] / 16).float()
    wave = torch.sin(3 * math.pi / 4 * torch.arange(size)).expand(1, 1, size, size)
    images = torch.cat([noise, smooth, digits, wave, torch.zeros_like(wave)])
    found = scattered(images, scales, orientations).flatten(1)
    margin = 2**scales
    around = torch.nn.functional.pad(images, (margin,) * 4, mode="reflect").flatten(1)
    before, after = torch.cdist(around, around), 2**scales * torch.cdist(found, found)
    apart = before > 0
    ratio = (after[apart] / before[apart]).max()
    assert ratio <= 1
    assert ratio > 0.5  # else the bound would say little


def test_a_shift_by_one_pixel_moves_coefficients_far_less_than_pixels():
    digits = torch.from_numpy(load_digits().images[:50, None] / 16).float()
    images = torch.zeros(50, 1, 32, 32)
    images[..., 8:24, 8:24] = digits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    shifted = images.roll(1, 3)

    def moved(f):
        before, after = f(images).flatten(1), f(shifted).flatten(1)
        return ((before - after).norm(dim=1) / before.norm(dim=1)).mean()

    pixels = moved(lambda x: x)
    # More scales, more stable.
    stable = [float(moved(lambda x, j=j: scattered(x, j)) / pixels) for j in (1, 2, 3)]
    assert stable[0] > stable[1] > stable[2]
    assert stable[1] < 0.5


def test_a_constant_image_is_in_order_0_alone():
    found = scattered(torch.full((1, 1, 20, 24), 0.7))
    assert found[:, 0] == pytest.approx(0.7, rel=1e-5)
    assert found[:, 1:].abs().max() < 1e-5


def test_a_record_alone_gives_what_it_gives_among_others():
    images = torch.rand((9, 3, 16, 16), generator=torch.Generator().manual_seed(4))
    whole = scattered(images)
    for i in (0, 8):
        torch.testing.assert_close(scattered(images[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-6)
    # A plane's channels stand together.
    plane = scattered(images[:, 1:2])
    torch.testing.assert_close(whole[:, 81:162], plane, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "scales", "orientations", "expected"),
    [
        ((2, 1, 28, 28), 2, 8, (2, 81, 7, 7)),
        ((2, 3, 32, 32), 2, 8, (2, 243, 8, 8)),
        ((1, 1, 28, 28), 3, 4, (1, 61, 3, 3)),
        ((1, 1, 15, 30), 1, 5, (1, 6, 7, 15)),
        ((0, 1, 28, 28), 2, 8, (0, 81, 7, 7)),
    ],
)
def test_shapes(shape, scales, orientations, expected):
    found = scattered(torch.zeros(shape), scales, orientations)
    assert found.shape == expected
    assert found.dtype == torch.float32
    assert scattering_channels(scales, orientations) * shape[1] == expected[1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float16])
def test_any_real_type_is_taken(dtype):
    images = torch.arange(256).reshape(1, 1, 16, 16).to(dtype)
    torch.testing.assert_close(scattered(images), scattered(images.float()))


def test_bad_arguments_are_refused():
    with pytest.raises(DataError, match="planes"):
        scattered(torch.zeros(2, 28, 28))
    with pytest.raises(DataError, match="real"):
        scattered(torch.zeros(2, 1, 28, 28, dtype=torch.complex64))
    for scales, orientations in ((0, 8), (2, 0)):
        with pytest.raises(ConfigError, match="at least one"):
            scattered(torch.zeros(1, 1, 28, 28), scales, orientations)
    with pytest.raises(ConfigError, match="more than 16 pixels"):
        scattered(torch.zeros(1, 1, 16, 28), 3)


def test_seventy_thousand_digits_take_well_under_two_minutes():
    images = torch.rand((256, 1, 28, 28), generator=torch.Generator().manual_seed(5))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scattered(images[:16])
        took = []
        for _ in range(3):
            start = time.process_time()
            scattered(images)
            took.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(took) * 70_000 / len(images) < 110
