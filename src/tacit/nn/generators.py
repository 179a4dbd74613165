"""Networks that make images, and the convolutional networks that tell classes apart without losing how.

The two are each other's mirror: strided 4x4 convolutions that halve an image until its sides are at most 7 pixels, and
transposed ones that double it from there. A discriminator of strided convolutions and leaky units passes a slope to every
pixel, which max-pooling does not. No layer keeps running statistics, so that a discriminator can be shared in updates.

Source: Radford, Metz, Chintala, "Unsupervised representation learning with deep convolutional generative adversarial
networks" (ICLR 2016), section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tacit.core.errors import ConfigError
from tacit.nn.networks import initialise

#: The longest side at which halving stops.
_LEAST = 7
_SLOPE = 0.2


class Centred(nn.Module):
    """Images from 0 to 1 as values from -2 to 2."""

    def forward(self, images: Tensor) -> Tensor:
        """(n, *shape) to the same shape."""
        return 4 * images - 2


def strided_cnn(
    input_shape: tuple[int, ...],
    classes: int,
    width: int = 32,
    hidden: int = 200,
    *,
    centred: bool = False,
    generator: torch.Generator,
) -> nn.Sequential:
    """4x4 convolutions of stride 2 with leaky ReLUs, one hidden layer, scores.

    Args:
        input_shape: (channels, height, width); both sides can be halved until they are at most 7 pixels.
        classes: number of classes.
        width: channels of the first convolution; each that follows has twice as many.
        hidden: units of the hidden layer.
        centred: look at images from -2 to 2 in place of 0 to 1: for images that are grey all over, such as faces.
        generator: draws the parameters.

    Raises:
        ConfigError: the images are not of that form, or a size is not positive.
    """
    channels, rows, columns, halvings = _sizes(input_shape, classes, width, hidden)
    layers: list[nn.Module] = [Centred()] if centred else []
    for step in range(halvings):
        out = width << step
        convolution = nn.Conv2d(channels, out, 4, stride=2, padding=1, device="meta")
        layers += [convolution.to_empty(device="cpu"), nn.LeakyReLU(_SLOPE)]
        channels = out
    layers += [nn.Flatten(), _linear(channels * rows * columns, hidden), nn.LeakyReLU(_SLOPE)]
    return initialise(nn.Sequential(*layers, _linear(hidden, classes)), generator)


def image_generator(
    input_shape: tuple[int, ...],
    latent: int = 100,
    width: int = 32,
    *,
    smooth: bool = False,
    generator: torch.Generator,
) -> nn.Sequential:
    """Latent vectors, (n, latent), to images in (0, 1), (n, *input shape).

    A linear layer to maps of at most 7 pixels a side, then transposed 4x4 convolutions of stride 2, each after batch
    normalisation and ReLU, and a sigmoid. Norms are those of the batch at hand, when it draws too: ask for many images at
    once.

    With ``smooth``, bilinear interpolation and convolutions (3x3, and 5x5 at last) double the sides in place of transposed
    ones, which can draw a checkerboard (Odena, Dumoulin, Olah, "Deconvolution and checkerboard artifacts", 2016) where a
    model that is not certain of single pixels is no judge of it. It costs about twice as much.

    Args:
        input_shape: (channels, height, width); both sides can be halved until they are at most 7 pixels.
        latent: numbers that an image is made from.
        width: channels before the last convolution; each before has twice as many.
        smooth: interpolate in place of transposed convolutions.
        generator: draws the parameters.

    Raises:
        ConfigError: the images are not of that form, or a size is not positive.
    """
    channels, rows, columns, halvings = _sizes(input_shape, latent, width)
    maps = width << max(halvings - 1, 0)
    layers: list[nn.Module] = [
        _linear(latent, maps * rows * columns),
        nn.Unflatten(1, (maps, rows, columns)),
        _norm(maps),
        nn.ReLU(),
    ]
    for step in reversed(range(halvings)):
        out = width << (step - 1) if step else channels
        if smooth:
            reach = 1 if step else 2
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            layers.append(nn.Conv2d(maps, out, 2 * reach + 1, padding=reach, device="meta"))
        else:
            layers.append(nn.ConvTranspose2d(maps, out, 4, stride=2, padding=1, device="meta"))
        layers[-1].to_empty(device="cpu")
        if step:
            layers += [_norm(out), nn.ReLU()]
        maps = out
    if not halvings:
        layers.append(nn.Conv2d(maps, channels, 3, padding=1, device="meta").to_empty(device="cpu"))
    made = nn.Sequential(*layers, nn.Sigmoid())
    for layer in made:
        _draw(layer, generator)
    return made


def latents(count: int, latent: int, generator: torch.Generator) -> Tensor:
    """Latent vectors, uniform in [-1, 1], (count, latent)."""
    return 2 * torch.rand(count, latent, generator=generator) - 1


def _sizes(input_shape: tuple[int, ...], *sizes: int) -> tuple[int, int, int, int]:
    """Channels, height and width after halving, and how often that is done."""
    if len(input_shape) != 3 or min(*input_shape, *sizes) < 1:
        raise ConfigError(
            f"images (channels, height, width) and positive sizes expected, not {input_shape} and {sizes}"
        )
    channels, rows, columns = input_shape
    halvings = 0
    while max(rows, columns) > _LEAST:
        if rows % 2 or columns % 2:
            raise ConfigError(
                f"images of {input_shape[1]}x{input_shape[2]} pixels cannot be halved until their sides are at most "
                f"{_LEAST}: scale them, to 32x32 or 64x64 for instance"
            )
        rows, columns, halvings = rows // 2, columns // 2, halvings + 1
    return channels, rows, columns, halvings


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")


def _norm(maps: int) -> nn.Module:
    return nn.BatchNorm2d(maps, track_running_stats=False)


def _draw(layer: nn.Module, generator: torch.Generator) -> None:
    """Weights and biases in +-1 / sqrt(fan in), as `tacit.nn.networks.initialise` has it; norms stay the identity."""
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        initialise(layer, generator)
    elif isinstance(layer, nn.ConvTranspose2d):
        # Each output pixel is reached by (kernel / stride)^2 weights of every map that comes in.
        bound = 1 / math.sqrt(layer.in_channels * 4)
        with torch.no_grad():
            for parameter in layer.parameters():
                drawn = torch.empty_like(parameter).uniform_(-bound, bound, generator=generator)
                parameter.copy_(drawn)
