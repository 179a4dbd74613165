"""Do the images that an insider's generator makes show the target class? Judged by networks that the attack has never seen.

The shared model is sure of the images by construction. So they are given to two judges of another architecture, trained on
other records than anybody's in the collaboration:

- a *plain* judge knows the classes alone. Each image is some class to it, adversarial noise too, and noise often the one
  that the generator was made for.
- a *junk-aware* judge has a last class for what shows nothing: noise, blurs, shuffled records, and adversarial images that
  were made against the plain judge and against a third network, pixel by pixel and by generators. These are what a passive
  insider's generator makes.

One image that fools a judge must count once. So a rate is over so many *distinct* images: one counts if its distance to
all before it is above a floor, a part of what lies between real records of the target; images that a generator fails to
make count as misses. Distance is in pixels, so that faint noise sets images apart too: this is against one image made over
and over, and measures no variety.

And an image must not be a copy of what the insider has: its distance to the nearest real record of the target is set
against that of other real records of the target (`nn_ratio`), and against its distance to the nearest of the insider's own
(`own_ratio`). The mean of the target's records is about as near to them as they are to one another: a ratio near 1 tells
images from noise, and blurred ones not from sharp.

Controls are judged beside: noise, the mean record, and the images themselves, asked for another class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the name that PyTorch code uses)

from tacit.audit.cells import Judge
from tacit.audit.statistics import Estimate, clopper_pearson, median_interval
from tacit.core.errors import ConfigError, DataError
from tacit.nn.generators import image_generator, latents, strided_cnn
from tacit.nn.local_work import accuracy, fit
from tacit.nn.networks import cnn

FLOOR = 0.25
"""Images nearer to one another than this part of the median distance between neighbouring real records are one image."""

_BLOCK = 1000
_CLIP = 10.0
"""Of a judge's gradients, L2: on few records a step can otherwise blow up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GANJudges:
    """Who judges images.

    Args:
        plain: knows the classes alone; its accuracy is on records that it was not trained on.
        aware: has a last class for junk; its accuracy is on those records and junk made from them.
    """

    plain: Judge
    aware: Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class GANFigures:
    """What an insider's images show.

    Args:
        hit_rate: share of the distinct images that the plain judge takes for the target.
        junk_aware_hit_rate: likewise, by the junk-aware judge.
        distinct: distinct images among those made, of as many as are judged.
        nn_ratio: median distance of an image to the nearest record of the target, over that of its other records.
            Near 1: as near to the target's records as these are to one another, sharp or blurred; far above: unlike.
        own_ratio: median of an image's distance to the nearest record of the insider, over that to the nearest record of the
            target. Above 1: nearer to the victim's records than to the insider's.
        controls: "noise", "mean record", "another class": rates of both judges.
        plain_accuracy: of the plain judge.
        aware_accuracy: of the junk-aware judge.
        chance: one over the number of classes.
    """

    hit_rate: Estimate
    junk_aware_hit_rate: Estimate
    distinct: int
    nn_ratio: Estimate
    own_ratio: Estimate
    controls: Mapping[str, tuple[float, float]]
    plain_accuracy: float
    aware_accuracy: float
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRecipe:
    """How judges are trained.

    Args:
        steps: of each judge, at least; whole epochs.
        batch_size: records a step.
        learning_rate: of SGD with momentum 0.9.
        width: channels of a judge's first convolution.
        copies: of each record, all but one shifted by up to a twelfth of its side and of another contrast: for few records.
        pool: judges look at images averaged over squares of so many pixels a side: enough to know a face, too little to
            follow single pixels.
        generators: made against each network, for adversarial images.
        steps_of_each: of such a generator.
        members: so many networks, each with weights, copies and junk of its own, make up a judge, and their mean
            probability decides: for few records, of which single networks learn to judge differently.
    """

    steps: int = 800
    batch_size: int = 64
    learning_rate: float = 0.03
    width: int = 16
    copies: int = 1
    pool: int = 1
    generators: int = 10
    steps_of_each: int = 50
    members: int = 1


class _Panel(nn.Module):
    """Several networks' mean probabilities."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """(n, *shape) to (n, classes)."""
        return torch.stack([member(images).softmax(1) for member in self.members]).mean(0)


def train_gan_judges(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    *,
    held: tuple[Tensor, Tensor],
    recipe: JudgeRecipe,
    generator: torch.Generator,
) -> GANJudges:
    """Both judges.

    Args:
        inputs: images (n, channels, height, width) in [0, 1] that nobody in the collaboration holds.
        labels: (n,) int64.
        classes: number of classes, the fresh one not counted.
        held: other images and labels, for their accuracy.
        recipe: how.
        generator: draws weights, orders, shifts and junk.

    Raises:
        ConfigError: these are not images, or labels do not fit.
    """
    _check(inputs, labels, classes)
    _check(*held, classes)
    trained = [_pair(inputs, labels, classes, recipe, generator) for _ in range(recipe.members)]
    plain, aware = _Panel([one for one, _, _ in trained]), _Panel([one for _, one, _ in trained])
    unknown = torch.cat([junk for _, _, junk in trained])
    return GANJudges(
        plain=Judge(model=plain, accuracy=accuracy(plain, *held)),
        aware=Judge(
            model=aware, accuracy=accuracy(aware, *_with_junk(*held, classes, unknown, generator))
        ),
    )


def _pair(
    inputs: Tensor, labels: Tensor, classes: int, recipe: JudgeRecipe, generator: torch.Generator
) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network that knows the classes alone, one that knows junk too, and adversarial images that neither has seen."""
    shape = tuple(inputs.shape[1:])
    copies = torch.cat([inputs, *(_varied(inputs, generator) for _ in range(recipe.copies - 1))])
    answers = labels.repeat(recipe.copies)
    network = strided_cnn(shape, classes, recipe.width, generator=generator)
    other = _trained(network, copies, answers, recipe, generator)
    plain = _trained(_judge(shape, classes, recipe, generator), copies, answers, recipe, generator)
    fooled = [_adversarial(one, classes, inputs, recipe, generator) for one in (plain, other)]
    # a quarter is kept back: what a judge is tested on was not trained on
    order = [torch.randperm(len(one), generator=generator) for one in fooled]
    known = torch.cat([one[at[len(at) // 4 :]] for one, at in zip(fooled, order, strict=True)])
    unknown = torch.cat([one[at[: len(at) // 4]] for one, at in zip(fooled, order, strict=True)])
    aware = _trained(
        _judge(shape, classes + 1, recipe, generator), *_with_junk(copies, answers, classes, known, generator),
        recipe, generator,
    )  # fmt: skip
    return plain, aware, unknown


def _with_junk(
    records: Tensor, labels: Tensor, classes: int, adversarial: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    junk = torch.cat([_junk(records, generator), adversarial])
    return torch.cat([records, junk]), torch.cat([labels, torch.full((len(junk),), classes)])


def distinct(images: Tensor, floor: float, most: int) -> Tensor:
    """The first images that are apart from all before them, at most ``most``.

    Args:
        images: (n, *shape).
        floor: the least distance, L2, between two that are distinct.
        most: stop there.
    """
    flat = images.flatten(1)
    chosen: list[int] = []
    apart = torch.full((len(flat),), torch.inf)
    for at in range(len(flat)):
        if len(chosen) == most:
            break
        if apart[at] > floor:
            chosen.append(at)
            apart = torch.minimum(apart, (flat - flat[at]).norm(dim=1))
    return images[chosen]


def gan_figures(  # noqa: PLR0913 - all that is judged and compared, each by name
    images: Tensor,
    target: int,
    *,
    count: int,
    judges: GANJudges,
    victims: Tensor,
    others: Tensor,
    own: Tensor,
    classes: int,
    generator: torch.Generator,
) -> GANFigures:
    """Judge an insider's images.

    Args:
        images: (n, channels, height, width) in [0, 1], more than are judged, for some may be alike.
        target: the class that they are meant to show.
        count: how many distinct ones are judged; those that are missing count as misses.
        judges: see `train_gan_judges`.
        victims: the target's records that were trained on.
        others: other records of the target, which nobody in the collaboration has. Where there are at most 5, ``victims``
            say how far apart distinct images are.
        own: the insider's records.
        classes: number of classes, the fresh one not counted.
        generator: draws the noise of a control.

    Raises:
        ConfigError: there are fewer images than are to be judged, or too few records.
        DataError: an image is not finite.
    """
    if not 6 <= count <= len(images) or min(len(victims), len(others)) < 2 or not len(own):
        raise ConfigError(
            f"6 to {len(images)} images to judge, two records of the target on either side and one of the insider expected, "
            f"got {count}, {len(victims)}, {len(others)} and {len(own)}"
        )
    if not bool(images.isfinite().all()):
        raise DataError("a generated image is not finite: judge the generator of an earlier round")
    images = images.detach().float().clamp(0, 1)
    real = others[: len(images)] if len(others) > 5 else victims
    floor = FLOOR * float(_nearest(real, real, itself=True).median())
    apart = distinct(images, floor, count)
    shown = apart if len(apart) > 5 else images[:count]
    to_target = _nearest(shown, victims)
    usual = float(_nearest(others, victims).median())
    noise = torch.rand(shown.shape, generator=generator)
    mean = torch.cat([victims, own]).mean(0, keepdim=True).expand_as(shown)

    def hits(judge: Judge, these: Tensor, label: int) -> int:
        with torch.no_grad():
            return int((judge.model.eval()(these).argmax(1) == label).sum())

    def both(these: Tensor, label: int) -> tuple[float, float]:
        plain, aware = (hits(j, these, label) / len(these) for j in (judges.plain, judges.aware))
        return plain, aware

    def rate(judge: Judge) -> Estimate:
        found = hits(judge, apart, target)
        return Estimate(value=found / count, interval=clopper_pearson(found, count), n=count)

    return GANFigures(
        hit_rate=rate(judges.plain),
        junk_aware_hit_rate=rate(judges.aware),
        distinct=len(apart),
        nn_ratio=_median(to_target / usual),
        own_ratio=_median(_nearest(shown, own) / to_target.clamp_min(1e-6)),
        controls={
            "noise": both(noise, target),
            "mean record": both(mean, target),
            "another class": both(shown, (target + 1) % classes),
        },
        plain_accuracy=judges.plain.accuracy,
        aware_accuracy=judges.aware.accuracy,
        chance=1 / classes,
    )


def _median(values: Tensor) -> Estimate:
    return Estimate(value=float(values.median()), interval=median_interval(values), n=len(values))


def _nearest(these: Tensor, those: Tensor, *, itself: bool = False) -> Tensor:
    """L2 distance of each of n images to the nearest of m others; where both are the same, to the nearest but itself."""
    flat = those.flatten(1)
    found = []
    for part in torch.split(these.flatten(1), _BLOCK):
        apart = torch.cdist(part, flat)
        found.append(apart.topk(2, largest=False).values[:, 1] if itself else apart.min(1).values)
    return torch.cat(found)


def _judge(
    shape: tuple[int, ...], classes: int, recipe: JudgeRecipe, generator: torch.Generator
) -> nn.Module:
    """A convolutional network with max-pooling, on images that are averaged first."""
    channels, *sides = shape
    small = channels, *(side // recipe.pool for side in sides)
    network = cnn(small, classes, recipe.width, generator=generator)
    return nn.Sequential(nn.AvgPool2d(recipe.pool), *network) if recipe.pool > 1 else network


def _trained(
    network: nn.Module, inputs: Tensor, labels: Tensor, recipe: JudgeRecipe, generator: torch.Generator
) -> nn.Module:  # fmt: skip
    a_pass = -(-len(inputs) // recipe.batch_size)
    return fit(
        network, inputs, labels, epochs=-(-recipe.steps // a_pass), batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate, momentum=0.9, clip=_CLIP, generator=generator,
    ).eval()  # fmt: skip


def _junk(records: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter as many images that show nothing: noise, shuffled records, blurs, the mean record with noise."""
    some = records[torch.randperm(len(records), generator=generator)[: max(4, len(records) // 4)]]
    noise = torch.rand(some.shape, generator=generator)
    order = torch.rand(some.flatten(1).shape, generator=generator).argsort(1)
    shuffled = some.flatten(1).gather(1, order).view(some.shape)
    rows, columns = some.shape[-2:]
    small = F.adaptive_avg_pool2d(some, (max(1, rows // 9), max(1, columns // 9)))
    blurred = F.interpolate(small, size=(rows, columns), mode="bilinear")
    strength = torch.rand(len(some), 1, 1, 1, generator=generator)
    around = (records.mean(0) + strength * (noise - 0.5)).clamp(0, 1)
    # noise of fewer, larger spots, as strided layers make it
    spots = F.interpolate(noise[..., ::2, ::2], size=(rows, columns), mode="bilinear")
    kinds = noise * strength, shuffled, blurred, around, spots * strength
    return torch.cat([kind[at :: len(kinds)] for at, kind in enumerate(kinds)])


def _adversarial(
    network: nn.Module, classes: int, records: Tensor, recipe: JudgeRecipe, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """Images that a network is sure of and that show nothing: by pixels, from noise and from the mean, and by generators."""
    network.requires_grad_(False)
    shape, found = tuple(records.shape[1:]), []
    amount = max(recipe.generators * 16, classes)
    wanted = torch.arange(amount) % classes
    level = torch.rand(amount, 1, 1, 1, generator=generator)
    start = level * torch.rand(amount, *shape, generator=generator)
    start[::2] = (records.mean(0) + 0.3 * (start[::2] - 0.5)).clamp(0, 1)
    start[1::4] *= 0.1
    logits = start.clamp(0.01, 0.99).logit().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.2)
    for _ in range(30):
        loss = F.cross_entropy(network(logits.sigmoid()), wanted, reduction="sum")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    found.append(logits.detach().sigmoid())
    for at in range(recipe.generators):
        maker = image_generator(shape, 100, recipe.width, generator=generator)
        optimiser = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.5, 0.999))
        label = torch.full((32,), at % classes)
        for step in range(recipe.steps_of_each):
            made = maker(latents(32, 100, generator))
            optimiser.zero_grad()
            F.cross_entropy(network(made), label).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if 4 * step in (recipe.steps_of_each, 2 * recipe.steps_of_each):
                found.append(made.detach())
        with torch.no_grad():
            found.append(maker(latents(64, 100, generator)))
    network.requires_grad_(True)
    return torch.cat(found)


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to a twelfth of its side, its border repeated, with up to a quarter more or less contrast."""
    rows, columns = images.shape[-2:]
    reach = max(1, max(rows, columns) // 12)
    wide = F.pad(images, [reach] * 4, mode="replicate")
    starts = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator).tolist()
    moved = torch.stack(
        [
            image[:, down : down + rows, across : across + columns]
            for image, (down, across) in zip(wide, starts, strict=True)
        ]
    )
    factor = 0.75 + 0.5 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return ((moved - 0.5) * factor + 0.5).clamp(0, 1)


def _check(images: Tensor, labels: Tensor, classes: int) -> None:
    fits = images.dim() == 4 and min(images.shape) > 0 and labels.shape == images.shape[:1]
    if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(
            f"images (n, channels, height, width) and labels (n,) below {classes} expected, "
            f"{tuple(images.shape)} and {tuple(labels.shape)} came, or a label beyond"
        )
