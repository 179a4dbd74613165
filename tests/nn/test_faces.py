"""The three face recognisers learn, take plain images, and an autoencoder's codes are cleaned as the paper does."""

import math

import pytest
import torch
from torch import nn

from tacit.core.errors import ConfigError, Diverged
from tacit.nn.faces import (
    DenoiseAndSharpen,
    FaceTraining,
    non_local_means,
    sharpen,
    train_autoencoder,
    train_mlp,
    train_softmax,
)
from tacit.nn.local_work import accuracy

PEOPLE, SHAPE = 5, (1, 8, 6)
QUICK = FaceTraining(epochs=60, batch_size=16, learning_rate=0.02)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def people(images, seed=1):
    """So many images of each of five made-up people, bright as faces are, far from centred."""
    centres = 0.5 + 0.4 * torch.rand(PEOPLE, *SHAPE, generator=seeded(0))
    labels = torch.arange(PEOPLE).repeat_interleave(images)
    noise = 0.05 * torch.randn(len(labels), *SHAPE, generator=seeded(seed))
    return (centres[labels] + noise).clamp(0, 1), labels


def training_of(kind):
    return {
        "softmax": train_softmax,
        "mlp": lambda *data, **rest: train_mlp(*data, hidden=20, **rest),
        "autoencoder": lambda *data, **rest: train_autoencoder(*data, widths=(24, 12), **rest),
    }[kind]


def trained(kind, training=QUICK, seed=2):
    return training_of(kind)(*people(7), PEOPLE, training=training, generator=seeded(seed))


@pytest.fixture(scope="module")
def autoencoder():
    return trained("autoencoder")


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_recognisers_know_people_in_images_they_have_not_seen(kind):
    model = trained(kind)
    assert accuracy(model, *people(3, seed=9)) == 1
    assert isinstance(model[0], nn.Flatten)
    assert not model.training


def test_the_mean_image_is_part_of_the_first_bias():
    # Images that differ by a shift are the same images less their mean, so the first layer's outputs are.
    images, labels = people(7)
    short = FaceTraining(epochs=3, batch_size=16, learning_rate=0.02)
    dark, bright = images * 0.5, images * 0.5 + 0.4
    first = []
    for data in (dark, bright):
        model = training_of("mlp")(data, labels, PEOPLE, training=short, generator=seeded(2))
        first.append(model[:2](data))
    assert torch.allclose(first[0], first[1], atol=1e-3)


def test_the_autoencoder_carries_the_mean_image_through_its_training():
    # With steps of next to nothing, what is left is the folding: before, between and after.
    images, labels = people(7)
    still = FaceTraining(epochs=1, learning_rate=1e-12)
    codes = []
    for data in (images * 0.5, images * 0.5 + 0.4):
        found = train_autoencoder(
            data, labels, PEOPLE, widths=(24, 12), training=still, generator=seeded(2)
        )
        codes.append(found.encoder[:3](data))
    assert torch.allclose(codes[0], codes[1], atol=1e-5)
    assert codes[0].std() > 0.01
    # The outermost decoder starts from the mean image too.
    bias, mean = found.decoder[-3].bias, (images * 0.5 + 0.4).flatten(1).mean(0)
    assert torch.allclose(bias.sigmoid(), mean, atol=1e-5)


def test_masks_change_what_is_learned():
    images, labels = people(7)
    short = FaceTraining(epochs=2, learning_rate=0.01)
    with_none, with_half = (
        train_autoencoder(
            images, labels, PEOPLE, widths=(9,), masked=share, training=short, generator=seeded(2)
        )
        for share in (0.0, 0.5)
    )
    assert not torch.allclose(with_none.encoder[1].weight, with_half.encoder[1].weight, atol=1e-4)


def test_the_first_weights_of_the_mlp_are_small():
    model = trained("mlp", FaceTraining(epochs=1, learning_rate=1e-12))
    assert model[1].weight.std().item() == pytest.approx(1e-3, rel=0.1)


def test_weight_decay_shrinks_weights():
    plain, shrunk = (
        trained("softmax", FaceTraining(epochs=100, learning_rate=0.01, weight_decay=decay))
        for decay in (0.0, 0.01)
    )
    assert shrunk[1].weight.norm() < 0.8 * plain[1].weight.norm()


def test_softmax_regression_sees_images_as_they_are():
    # From zero, a step of Adam moves each weight by the learning rate, against its gradient: sum of (p - share) x.
    images, labels = people(7)
    model = trained("softmax", FaceTraining(epochs=1, batch_size=35, learning_rate=0.01))
    residual = torch.full((35, PEOPLE), 1 / PEOPLE) - nn.functional.one_hot(labels, PEOPLE)
    slope = residual.T @ images.flatten(1)
    clear = slope.abs() > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.allclose(model[1].weight[clear], -0.01 * slope.sign()[clear], atol=1e-5)


def test_training_depends_on_the_generator_alone():
    short = FaceTraining(epochs=2, batch_size=16)
    for kind in ("softmax", "mlp"):
        once, again, other = (trained(kind, short, seed) for seed in (3, 3, 4))
        for one, two, three in zip(*(m.parameters() for m in (once, again, other)), strict=True):
            assert torch.equal(one, two)
            assert not torch.equal(one, three)


def test_the_autoencoder_recognises_and_restores(autoencoder):
    images, labels = people(3, seed=9)
    assert accuracy(autoencoder.recogniser, images, labels) == 1
    codes = autoencoder.encoder(images)
    assert codes.shape == (15, 12)
    assert (codes > 0).all() and (codes < 1).all()
    assert torch.equal(autoencoder.head(codes), autoencoder.recogniser(images))
    restored = autoencoder.decoder(codes)
    assert restored.shape == images.shape
    of_mean = (images - people(7)[0].mean(0)).square().mean()
    assert (restored - images).square().mean() < of_mean / 2


def test_training_teaches_to_restore_masked_images():
    plain = trained("autoencoder", FaceTraining(epochs=1, batch_size=16))
    images, _ = people(3, seed=9)
    longer = trained("autoencoder")
    hidden = images * (torch.rand(images.shape, generator=seeded(5)) >= 0.3)
    errors = [
        (one.decoder(one.encoder(hidden)) - images).square().mean() for one in (plain, longer)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_diverging_is_said():
    with pytest.raises(Diverged, match="lower the learning rate"):
        trained("mlp", FaceTraining(epochs=9, learning_rate=3e37))


# --- denoise and sharpen ----------------------------------------------------------------------------


def slow_means(image, strength, patch, search):
    """Non-local means of one image (channels, height, width), pixel by pixel."""
    channels, height, width = image.shape

    def at(y, x):
        return image[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    def inside(y, x):
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            total, weights = torch.zeros(channels, dtype=image.dtype), 0.0
            for down in range(-search, search + 1):
                for across in range(-search, search + 1):
                    apart = []
                    for v in range(-patch, patch + 1):
                        for u in range(-patch, patch + 1):
                            py, px = inside(y + v, x + u)
                            difference = at(py, px) - at(py + down, px + across)
                            apart.append(difference.square().mean().item())
                    weight = math.exp(-sum(apart) / len(apart) / strength**2)
                    total += weight * at(y + down, x + across)
                    weights += weight
            result[:, y, x] = total / weights
    return result


@pytest.mark.parametrize("channels", [1, 2])
def test_non_local_means_is_the_slow_one(channels):
    images = torch.rand(2, channels, 5, 4, generator=seeded(6)).double()
    found = non_local_means(images, strength=0.3, patch=1, search=2)
    for image, one in zip(images, found, strict=True):
        assert torch.allclose(one, slow_means(image, 0.3, 1, 2))


def test_non_local_means_takes_noise_and_leaves_edges():
    clean = torch.zeros(1, 1, 20, 20)
    clean[..., 10:] = 1
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=seeded(7))
    found = non_local_means(noisy, strength=0.1)
    assert (found - clean).square().mean() < (noisy - clean).square().mean() / 4
    assert (found[..., 10] - found[..., 9]).min() > 0.85


def test_sharpening_is_unsharp_masking():
    image = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).expand(4, 4)[None, None]
    found = sharpen(image, amount=0.5)
    blurred = torch.tensor([0.2, 0.35, 0.65, 0.8])
    assert torch.allclose(found[0, 0, 1], image[0, 0, 1] + 0.5 * (image[0, 0, 1] - blurred))
    assert torch.equal(sharpen(image, amount=0.0), image)
    assert sharpen(image, amount=50.0).unique().tolist() == pytest.approx(
        [0, 0.2, 0.8, 1], abs=1e-4
    )


def test_a_code_is_decoded_cleaned_and_encoded_again(autoencoder):
    codes = torch.rand(4, 12, generator=seeded(8))
    process = DenoiseAndSharpen(autoencoder=autoencoder, strength=0.2, amount=0.7)
    images = autoencoder.decoder(codes)
    better = sharpen(non_local_means(images, strength=0.2), amount=0.7)
    assert torch.equal(process(codes), autoencoder.encoder(better))
    assert torch.allclose(process(codes)[:1], process(codes[:1]), atol=1e-6)
    assert not process(codes).requires_grad


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"weight_decay": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match="expected"):
        FaceTraining(**setting)


@pytest.mark.parametrize("kind", ["softmax", "mlp", "autoencoder"])
def test_images_that_do_not_fit_are_refused(kind):
    images, labels = people(2)
    for inputs, targets in [
        (images, labels[1:]),
        (images, labels + 1),
        (images, labels - 1),
        (images[:0], labels[:0]),
        (images * 255, labels),
    ]:
        with pytest.raises(ConfigError, match="expected"):
            training_of(kind)(inputs, targets, PEOPLE, training=QUICK, generator=seeded(0))


def test_processing_that_makes_no_sense_is_refused():
    images, labels = people(1)
    for wrong in (
        lambda: non_local_means(images[0]),
        lambda: non_local_means(images, strength=0.0),
        lambda: non_local_means(images, search=-1),
        lambda: sharpen(images, amount=-1.0),
        lambda: sharpen(images[0]),
        lambda: train_autoencoder(
            images, labels, PEOPLE, widths=(), training=QUICK, generator=seeded(0)
        ),
        lambda: train_autoencoder(
            images, labels, PEOPLE, masked=1.0, training=QUICK, generator=seeded(0)
        ),
    ):
        with pytest.raises(ConfigError, match="expected"):
            wrong()
