"""Three face recognisers, as model inversion was shown on: softmax regression, a wide MLP, a stacked denoising autoencoder.

Each is trained on a few images a person and gives one logit a person. The autoencoder's recogniser is a linear layer on its
code, so that an adversary who has it may search among codes: `DenoiseAndSharpen` is what it does to a code after a step.

What we changed: the two networks with hidden layers see images less the mean training image, which is folded into the first
layer's bias when training ends, for they learn several times faster so. A black image then lies far from all that they have
seen, and they are sure of some class for it; softmax regression sees images as they are. The autoencoder's decoder is fitted
once more to the codes that the recogniser's training has left. Adam trains all of them.

Source:
    M. Fredrikson, S. Jha, T. Ristenpart. Model Inversion Attacks that Exploit Confidence Information and Basic
    Countermeasures. CCS 2015, section 5.1 and algorithm 2: 3000 sigmoid units; codes of 1000 and 300 (recalled). P. Vincent
    et al. Stacked Denoising Autoencoders. JMLR 2010, section 3 (layers trained one after another on masked inputs). A.
    Buades, B. Coll, J.-M. Morel. A Non-Local Algorithm for Image Denoising. CVPR 2005.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the name that PyTorch code uses)

from tacit.core.errors import ConfigError, Diverged
from tacit.nn.networks import mlp

#: The spread of the MLP's first weights: thousands of pixels must not saturate its units at the start.
_FIRST_WEIGHTS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceTraining:
    """Adam on mini-batches of a fresh order every epoch.

    Args:
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: of Adam.
        weight_decay: times each parameter, added to its gradient.

    Raises:
        ConfigError: a setting is out of range.
    """

    epochs: int = 150
    batch_size: int = 280
    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise ConfigError(
                f"at least 1 epoch and 1 image a batch expected, {self.epochs} and {self.batch_size} came"
            )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                "a learning rate above 0 and a weight decay of at least 0 expected, "
                f"{self.learning_rate} and {self.weight_decay} came"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder:
    """A stacked denoising autoencoder and the recogniser on its code.

    Args:
        encoder: (n, *input shape) -> (n, code), values in (0, 1).
        decoder: (n, code) -> (n, *input shape), values in (0, 1).
        head: (n, code) -> (n, classes) logits.
    """

    encoder: nn.Sequential = field(repr=False)
    decoder: nn.Sequential = field(repr=False)
    head: nn.Sequential = field(repr=False)

    @property
    def recogniser(self) -> nn.Sequential:
        """Encoder and head in one, with the same parameters: (n, *input shape) -> (n, classes) logits."""
        return nn.Sequential(*self.encoder, *self.head)


def train_softmax(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    *,
    training: FaceTraining,
    generator: torch.Generator,
) -> nn.Sequential:
    """Softmax regression from weights of zero.

    Args:
        inputs: (n, *input shape) in [0, 1].
        labels: (n,) int64.
        classes: number of people.
        training: steps of Adam.
        generator: draws the order of the images.

    Raises:
        ConfigError: inputs and labels do not belong together.
        Diverged: the loss is not finite.
    """
    _check(inputs, labels, classes)
    model = mlp(tuple(inputs.shape[1:]), (), classes, generator=generator)
    nn.init.zeros_(_linear(model[1]).weight)
    nn.init.zeros_(_linear(model[1]).bias)
    return _recogniser(model, inputs, labels, torch.zeros_like(inputs[0]), training, generator)


def train_mlp(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    *,
    hidden: int = 3000,
    training: FaceTraining,
    generator: torch.Generator,
) -> nn.Sequential:
    """One hidden layer of sigmoid units.

    Args:
        inputs: (n, *input shape) in [0, 1].
        labels: (n,) int64.
        classes: number of people.
        hidden: units.
        training: steps of Adam.
        generator: draws the first weights and the order of the images.

    Raises:
        ConfigError: inputs and labels do not belong together, or a size is not positive.
        Diverged: the loss is not finite.
    """
    _check(inputs, labels, classes)
    model = mlp(tuple(inputs.shape[1:]), (hidden,), classes, nn.Sigmoid, generator=generator)
    first = _linear(model[1]).weight
    with torch.no_grad():
        first.copy_(_FIRST_WEIGHTS * torch.randn(first.shape, generator=generator))
    return _recogniser(model, inputs, labels, inputs.mean(0), training, generator)


def train_autoencoder(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    *,
    widths: tuple[int, ...] = (1000, 300),
    masked: float = 0.3,
    training: FaceTraining,
    generator: torch.Generator,
) -> Autoencoder:
    """A stacked denoising autoencoder, layer by layer, then a recogniser on its code, trained through all layers.

    Args:
        inputs: (n, *input shape) in [0, 1].
        labels: (n,) int64.
        classes: number of people.
        widths: of the codes, from the image inwards; the last is the recogniser's.
        masked: the share of a layer's inputs that is hidden from it while it learns to restore them, in [0, 1).
        training: steps of Adam, for each layer, for the recogniser, and for the decoder.
        generator: draws weights, masks and orders.

    Raises:
        ConfigError: inputs and labels do not belong together, or a setting is out of range.
        Diverged: a loss is not finite.
    """
    _check(inputs, labels, classes)
    if not widths or not 0 <= masked < 1:
        raise ConfigError(
            f"at least one width and a masked share from 0 to below 1 expected, {widths} and {masked} came"
        )
    shape, flat = tuple(inputs.shape[1:]), inputs.flatten(1)
    layers, below = [], flat
    for width in widths:
        encoder, decoder = _restorer(below, width, masked, training, generator)
        layers.append((encoder, decoder))
        with torch.no_grad():
            below = encoder(below)
    encoder = nn.Sequential(nn.Flatten(), *(part for inward, _ in layers for part in inward))
    head = mlp((widths[-1],), (), classes, generator=generator)
    _fold(_linear(encoder[1]), -flat.mean(0))
    _recogniser(nn.Sequential(*encoder, *head), inputs, labels, inputs.mean(0), training, generator)
    decoder = nn.Sequential(*(part for _, outward in reversed(layers) for part in outward))
    with torch.no_grad():
        codes = encoder(inputs)
    _fit(
        decoder.parameters(),
        lambda rows: F.binary_cross_entropy(decoder(codes[rows]), flat[rows]),
        len(flat),
        training,
        generator,
    )
    return Autoencoder(
        encoder=encoder.eval(),
        decoder=nn.Sequential(*decoder, nn.Unflatten(1, shape)).eval(),
        head=head.eval(),
    )


# --- what the adversary does to a code --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseAndSharpen:
    """A code decoded, its image denoised and sharpened, and encoded again (algorithm 2).

    Args:
        autoencoder: whose codes they are.
        strength: of `non_local_means`.
        amount: of `sharpen`.
    """

    autoencoder: Autoencoder
    strength: float = 0.1
    amount: float = 0.5

    def __call__(self, codes: Tensor) -> Tensor:
        """The codes (k, code) of the better images."""
        with torch.no_grad():
            images = self.autoencoder.decoder(codes)
            better = sharpen(non_local_means(images, strength=self.strength), amount=self.amount)
            processed: Tensor = self.autoencoder.encoder(better)
        return processed


def non_local_means(
    images: Tensor, *, strength: float = 0.1, patch: int = 2, search: int = 5
) -> Tensor:
    """Each pixel as the mean of those near it, weighted by how alike their surroundings are.

    The weight of a pixel is exp(-d / strength^2), d the mean squared difference of the two patches; what lies beyond the
    border is like what lies at it.

    Args:
        images: (n, channels, height, width).
        strength: in units of pixel values; differences well below it are smoothed away.
        patch: radius of a patch.
        search: radius of the square in which pixels are compared.

    Raises:
        ConfigError: a setting is out of range, or these are not images.

    Source: Buades, Coll & Morel 2005.
    """
    if images.dim() != 4 or not strength > 0 or patch < 0 or search < 0:
        raise ConfigError(
            "images (n, channels, height, width), a strength above 0 and radii of at least 0 expected, "
            f"{tuple(images.shape)}, {strength}, {patch} and {search} came"
        )
    height, width = images.shape[-2:]
    wide = F.pad(images, [search] * 4, mode="replicate")
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    side = 2 * patch + 1
    scale = -1 / (strength * side) ** 2
    for down, across in itertools.product(range(2 * search + 1), repeat=2):
        other = wide[..., down : down + height, across : across + width]
        apart = F.pad(
            (images - other).square().mean(1, keepdim=True), [patch] * 4, mode="replicate"
        )
        # Sums of shifted copies, one side after the other, take a fifth of the time of a pooling.
        weight = _summed(_summed(apart, side, 3), side, 2).mul_(scale).exp_()
        total += weight * other
        weights += weight
    return total / weights


def _summed(values: Tensor, count: int, axis: int) -> Tensor:
    """Sums of ``count`` neighbours along an axis."""
    size = values.shape[axis] - count + 1
    total = values.narrow(axis, 0, size).clone()
    for start in range(1, count):
        total += values.narrow(axis, start, size)
    return total


def sharpen(images: Tensor, *, amount: float = 0.5) -> Tensor:
    """Unsharp masking: x + amount (x - blurred x), kept in [0, 1]; blurred by a 3x3 binomial window.

    Args:
        images: (n, channels, height, width) in [0, 1].
        amount: at least 0; 0 does nothing.

    Raises:
        ConfigError: ``amount`` is below 0, or these are not images.
    """
    if images.dim() != 4 or not amount >= 0:
        raise ConfigError(
            "images (n, channels, height, width) and an amount of at least 0 expected, "
            f"{tuple(images.shape)} and {amount} came"
        )
    line = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    channels = images.shape[1]
    window = torch.outer(line, line).expand(channels, 1, 3, 3)
    blurred = F.conv2d(F.pad(images, [1] * 4, mode="replicate"), window, groups=channels)
    return (images + amount * (images - blurred)).clamp(0, 1)


# --- pieces -----------------------------------------------------------------------------------------


def _recogniser(
    model: nn.Sequential,
    inputs: Tensor,
    labels: Tensor,
    centre: Tensor,
    training: FaceTraining,
    generator: torch.Generator,
) -> nn.Sequential:
    """``model`` (Flatten, Linear, and more or nothing) trained in place; as it comes, it is for images less ``centre``."""
    centred = inputs - centre
    _fit(
        model.parameters(),
        lambda rows: F.cross_entropy(model(centred[rows]), labels[rows]),
        len(inputs),
        training,
        generator,
    )
    _fold(_linear(model[1]), centre.flatten())
    return model.eval()


def _restorer(
    below: Tensor, width: int, masked: float, training: FaceTraining, generator: torch.Generator
) -> tuple[nn.Sequential, nn.Sequential]:
    """One layer of the stack: an encoder and a decoder that restores ``below`` (n, size) in (0, 1) from masked copies."""
    size, centre = below.shape[1], below.mean(0)
    encoder, decoder = (
        _sigmoid_layer(size, width, generator),
        _sigmoid_layer(width, size, generator),
    )
    with torch.no_grad():
        _linear(decoder[0]).bias.copy_(centre.clamp(0.01, 0.99).logit())

    def loss(rows: Tensor) -> Tensor:
        seen = torch.rand((len(rows), size), generator=generator) >= masked
        return F.binary_cross_entropy(decoder(encoder(below[rows] * seen - centre)), below[rows])

    _fit([*encoder.parameters(), *decoder.parameters()], loss, len(below), training, generator)
    _fold(_linear(encoder[0]), centre)
    return encoder, decoder


def _sigmoid_layer(inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    layer = mlp((inputs,), (), outputs, generator=generator)
    return nn.Sequential(layer[1], nn.Sigmoid())


def _fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    records: int,
    training: FaceTraining,
    generator: torch.Generator,
) -> None:
    optimiser = torch.optim.Adam(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    for epoch in range(training.epochs):
        for rows in torch.split(torch.randperm(records, generator=generator), training.batch_size):
            now = loss(rows)
            optimiser.zero_grad()
            now.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        if not bool(now.isfinite()):
            raise Diverged(
                f"training diverged in epoch {epoch}: loss {now.item():g}; lower the learning rate"
            )


def _fold(layer: nn.Linear, centre: Tensor) -> None:
    """What ``layer`` did with x - centre it does with x."""
    with torch.no_grad():
        layer.bias.sub_(layer.weight @ centre)


def _linear(layer: nn.Module) -> nn.Linear:
    if not isinstance(layer, nn.Linear):
        raise ConfigError(f"a linear layer expected, {type(layer).__name__} came")
    return layer


def _check(inputs: Tensor, labels: Tensor, classes: int) -> None:
    fits = inputs.dim() > 1 and labels.shape == inputs.shape[:1] and len(labels) > 0
    if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(
            f"images (n, *shape) and labels (n,) below {classes} expected, {tuple(inputs.shape)} and "
            f"{tuple(labels.shape)} came, or a label beyond"
        )
    if not bool(((inputs >= 0) & (inputs <= 1)).all()):
        raise ConfigError("image values in [0, 1] expected: rescale the images first")
