"""Does an inverted image show the person? Judged by a network and by means that the attack has never seen, beside controls.

A model that was inverted is sure of the image by construction, so its own word counts for nothing. Here an image is given
to a judge: a network of another architecture and seed, trained on records of the same classes, with a class for junk;
and it is compared with each class's mean record. The same is done with images that show no victim (controls). What the judge
can do at all is its accuracy on real records.

Inverted images are no records: from a blank start they are what sets a class apart from what all have in common. A person
sees who that is; a classifier of records need not. A judge may therefore be taught imitations of such images, made of
records alone (``imitations``). One that was not is the plain judge, and the stricter.

Source:
    M. Fredrikson, S. Jha, T. Ristenpart. Model Inversion Attacks that Exploit Confidence Information and Basic
    Countermeasures. CCS 2015, section 5.3, where people judged (recalled); a network in their place is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tacit.audit.cells import Judge
from tacit.audit.statistics import Estimate, clopper_pearson, median_interval, psnr, ssim
from tacit.core.errors import ConfigError
from tacit.nn.local_work import accuracy, fit
from tacit.nn.networks import cnn

#: The longer side of what a judge looks at, in pixels: enough to know a face, too little to follow single pixels.
_SIDE = 28
_COPIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """How many of a set of images are taken for their label.

    Args:
        by_judge: by the judge.
        by_mean: by the nearest class mean.
        junk: the share that the judge calls junk.
    """

    by_judge: Estimate
    by_mean: Estimate
    junk: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionFigures:
    """What n inverted images show.

    Args:
        inverted: of the images.
        controls: of images without the victim: "noise", "mean record", "another class" (asked for the next label).
        judge_accuracy: of the judge, on records that it was not trained on, junk included.
        chance: one over the number of classes.
        psnr_db: median over the images, against the class's mean record; of 100 dB at most.
        ssim: likewise.
        other_psnr_db: as `psnr_db` against the next class's mean record: what likeness there is without the victim.
        other_ssim: likewise.
        nearest_psnr_db: median over the images, against the class's record that correlates most with the image.
        nearest_ssim: likewise.
    """

    inverted: Known
    controls: Mapping[str, Known]
    judge_accuracy: float
    chance: float
    psnr_db: Estimate
    ssim: Estimate
    other_psnr_db: Estimate
    other_ssim: Estimate
    nearest_psnr_db: Estimate
    nearest_ssim: Estimate


def train_inversion_judge(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    *,
    held: tuple[Tensor, Tensor],
    steps: int = 600,
    imitations: bool = True,
    generator: torch.Generator,
) -> Judge:
    """A convolutional judge of small images, for few records a class, with a last class for junk.

    It looks at records averaged down to some 28 pixels a side and freed of brightness and contrast, which an inverted image
    has of its own. Each record is learned several times: shifted by up to a twelfth of its side; with ``imitations``
    also less a part of the mean record, half of these with nothing below zero, as inverted images are. Junk is uniform
    noise, records with their pixels shuffled, and the mean record with noise of up to 0.3.

    Args:
        inputs: (n, channels, height, width) in [0, 1]: what the model that is judged has seen, or others like it.
        labels: (n,) int64.
        classes: number of classes.
        steps: of training, at least; whole epochs. Half as many follow at a tenth of the rate.
        held: other records and labels, for its accuracy.
        imitations: it learns imitations of inverted images too; else shifted records alone (a plain judge).
        generator: draws weights, orders, shifts and junk.

    Raises:
        ConfigError: these are not images of at least 4x4 pixels, labels do not fit, or there is no step.
    """
    _check_images(inputs, labels, classes)
    _check_images(*held, classes)
    if steps < 1:
        raise ConfigError(f"at least 1 step expected, {steps} came")
    rows, columns = inputs.shape[-2:]
    pool = max(1, max(rows, columns) // _SIDE)
    small = (inputs.shape[1], rows // pool, columns // pool)
    network = cnn(small, classes + 1, width=16, generator=generator)
    model = nn.Sequential(_Looking(pool), *network)
    reach = max(1, max(rows, columns) // 12)
    copies = [inputs]
    for _ in range(_COPIES - 1):
        varied = _less_mean(inputs, generator) if imitations else inputs
        copies.append(_shifted(varied, reach, generator))
    answers = labels.repeat(_COPIES)
    mean = inputs.mean(0)
    records, right = _with_junk(torch.cat(copies), answers, classes, mean, generator)
    epochs = -(-steps // -(-len(records) // 32))
    for passes, rate in ((epochs, 0.02), (-(-epochs // 2), 0.002)):
        fit(
            model,
            records,
            right,
            epochs=passes,
            batch_size=32,
            learning_rate=rate,
            momentum=0.9,
            generator=generator,
        )
    return Judge(
        model=model.eval(), accuracy=accuracy(model, *_with_junk(*held, classes, mean, generator))
    )


def inversion_figures(
    images: Tensor,
    labels: Tensor,
    *,
    judge: Judge,
    records: tuple[Tensor, Tensor],
    gallery: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> InversionFigures:
    """Judge inverted images.

    Args:
        images: (n, channels, height, width); values outside [0, 1] are cut off for PSNR and SSIM, and for nothing else.
        labels: (n,) int64, all different: the classes that they are meant to show.
        judge: see `train_inversion_judge`.
        records: the target's training records and labels, for likeness; every class occurs.
        gallery: records and labels whose class means name an image; others than `records` where there are any.
        generator: draws the noise of a control.

    Raises:
        ConfigError: shapes and labels do not belong together, or a class has no record.
        NotEnoughEvidence: fewer than 6 images; a median has no interval then.
        DataError: an image is not finite.
    """
    classes = int(records[1].max()) + 1
    _check_images(images, labels, classes)
    if len(set(labels.tolist())) != len(labels) or classes < 2:
        raise ConfigError("one image for each of several labels expected, some label came twice")
    images = images.detach().float()
    shown = images.clamp(0, 1)
    means, named = (class_means(*which, classes) for which in (records, gallery))
    following = (labels + 1) % classes

    def known(these: Tensor, wanted: Tensor) -> Known:
        return _known(these, wanted, judge, named, classes)

    noise = torch.rand(images.shape, generator=generator)
    controls = {
        "noise": known(noise, labels),
        "mean record": known(records[0].mean(0, keepdim=True).expand_as(images), labels),
        "another class": known(images, following),
    }
    nearest = torch.stack(
        [_nearest(image, label, records) for image, label in zip(shown, labels, strict=True)]
    )
    return InversionFigures(
        inverted=known(images, labels),
        controls=controls,
        judge_accuracy=judge.accuracy,
        chance=1 / classes,
        psnr_db=_median(psnr(means[labels], shown)),
        ssim=_median(ssim(means[labels], shown)),
        other_psnr_db=_median(psnr(means[following], shown)),
        other_ssim=_median(ssim(means[following], shown)),
        nearest_psnr_db=_median(psnr(nearest, shown)),
        nearest_ssim=_median(ssim(nearest, shown)),
    )


def class_means(inputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean record of each class, (classes, *input shape).

    Raises:
        ConfigError: a class has no record.
    """
    counts = torch.bincount(labels, minlength=classes)
    if len(counts) != classes or int(counts.min()) == 0:
        raise ConfigError(f"records of each of {classes} classes and of no other expected")
    sums = torch.zeros(classes, *inputs.shape[1:], dtype=inputs.dtype).index_add_(0, labels, inputs)
    return sums / counts.view(-1, *[1] * (inputs.dim() - 1))


def nearest_mean(images: Tensor, means: Tensor) -> Tensor:
    """The class whose mean correlates most with each image, (n,) int64; brightness and contrast do not count.

    An image without any contrast, or that correlates with none, names -1.

    Args:
        images: (n, *shape).
        means: (classes, *shape).
    """
    likeness = _correlation(images, means).max(1)
    return torch.where(likeness.values > 0, likeness.indices, -1)


def _correlation(images: Tensor, others: Tensor) -> Tensor:
    """(n, k) correlations of n images with k others; 0 for one without contrast (rounding leaves a flat image a little)."""

    def centred(stack: Tensor) -> Tensor:
        flat = stack.flatten(1).double()
        flat = flat - flat.mean(1, keepdim=True)
        flat = torch.where(flat.abs().amax(1, keepdim=True) < 1e-6, 0, flat)
        return nn.functional.normalize(flat, dim=1)

    return centred(images) @ centred(others).T


def _nearest(image: Tensor, label: Tensor, records: tuple[Tensor, Tensor]) -> Tensor:
    """The record of the label that correlates most with the image."""
    own = records[0][records[1] == label]
    nearest: Tensor = own[_correlation(image[None], own).argmax()]
    return nearest.float()


class _Looking(nn.Module):
    """Images averaged over squares of pixels, then of mean 0 and deviation 1 each."""

    def __init__(self, pool: int) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(images, self.pool)
        centred = small - small.mean((1, 2, 3), keepdim=True)
        return centred / (centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-3)


def _known(images: Tensor, labels: Tensor, judge: Judge, means: Tensor, classes: int) -> Known:
    with torch.no_grad():
        said = judge.model.eval()(images).argmax(1)
    return Known(
        by_judge=_share(said == labels),
        by_mean=_share(nearest_mean(images, means) == labels),
        junk=float((said == classes).float().mean()),
    )


def _share(hits: Tensor) -> Estimate:
    found, n = int(hits.sum()), len(hits)
    return Estimate(value=found / n, interval=clopper_pearson(found, n), n=n)


def _median(values: Tensor) -> Estimate:
    interval = median_interval(values)
    return Estimate(value=float(values.quantile(0.5)), interval=interval, n=len(values))


def _with_junk(
    inputs: Tensor, labels: Tensor, classes: int, mean: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The records and a third as many of junk, labelled ``classes``."""
    noise = torch.rand(inputs.shape, generator=generator)
    order = torch.rand(inputs.flatten(1).shape, generator=generator).argsort(1)
    shuffled = inputs.flatten(1).gather(1, order).view(inputs.shape)
    strength = 0.6 * torch.rand(len(inputs), 1, 1, 1, generator=generator)
    around = (mean + strength * (noise - 0.5)).clamp(0, 1)
    junk = torch.cat([noise[::9], shuffled[1::9], around[2::9]])
    return torch.cat([inputs, junk]), torch.cat([labels, torch.full((len(junk),), classes)])


def _less_mean(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image less up to all of the mean image, half of them with nothing below zero: imitations of inverted images."""
    part, clip = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    rest = images - part * images.mean(0)
    return torch.where(clip < 0.5, rest.clamp_min(0), rest)


def _shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to ``reach`` pixels each way, its border repeated."""
    rows, columns = images.shape[-2:]
    wide = nn.functional.pad(images, [reach] * 4, mode="replicate")
    starts = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack(
        [
            image[:, down : down + rows, across : across + columns]
            for image, (down, across) in zip(wide, starts, strict=True)
        ]
    )


def _check_images(images: Tensor, labels: Tensor, classes: int) -> None:
    fits = images.dim() == 4 and min(images.shape) > 0 and labels.shape == images.shape[:1]
    if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(
            f"images (n, channels, height, width) and labels (n,) below {classes} expected, "
            f"{tuple(images.shape)} and {tuple(labels.shape)} came, or a label beyond"
        )
