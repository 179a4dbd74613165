"""Judges of generated images: what they take for a class, for junk, for one image, and for a copy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tacit.audit.gan_metrics import (
    FLOOR,
    GANFigures,
    GANJudges,
    JudgeRecipe,
    distinct,
    gan_figures,
    train_gan_judges,
)
from tacit.core.errors import ConfigError, DataError
from tacit.nn.generators import image_generator, latents, strided_cnn
from tacit.nn.local_work import fit

RECIPE = JudgeRecipe(steps=300, batch_size=32, width=8, generators=8, steps_of_each=40)
CLASSES = 4


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """12x12 images of one bright bar of some brightness, in one of four directions, moved about, with noise."""
    generator = drawn(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.1 * torch.rand(count, 1, 12, 12, generator=generator)
    moves = torch.randint(-2, 3, (count, 2), generator=generator).tolist()
    bright = 0.6 + 0.3 * torch.rand(count, generator=generator)
    line = torch.arange(12)
    for at, (label, (down, across)) in enumerate(zip(labels.tolist(), moves, strict=True)):
        shape = torch.zeros(12, 12)
        if label == 0:
            shape[5:7] = 1
        elif label == 1:
            shape[:, 5:7] = 1
        elif label == 2:
            shape[line, line] = 1
        else:
            shape[line, 11 - line] = 1
        images[at, 0] += bright[at] * shape.roll((down, across), (0, 1))
    return images.clamp(0, 1), labels


INSIDE, TESTED, VICTIMS = (bars(400, seed) for seed in (1, 2, 3))
OWN = bars(200, 4)[0][1::2]  # of classes 1 and 3


@pytest.fixture(scope="module")
def judges() -> GANJudges:
    return train_gan_judges(*INSIDE, CLASSES, held=TESTED, recipe=RECIPE, generator=drawn(5))


def judged(judges: GANJudges, images: Tensor, target: int = 0, count: int = 40) -> GANFigures:
    return gan_figures(
        images, target, count=count, judges=judges, victims=of(VICTIMS, target), others=of(TESTED, target), own=OWN,
        classes=CLASSES, generator=drawn(6),
    )  # fmt: skip


def of(records: tuple[Tensor, Tensor], target: int) -> Tensor:
    return records[0][records[1] == target]


def test_both_judges_know_the_classes_and_one_knows_junk(judges: GANJudges) -> None:
    assert judges.plain.accuracy > 0.95 and judges.aware.accuracy > 0.9
    assert judges.plain.model(INSIDE[0][:2]).shape == (2, CLASSES)
    assert judges.aware.model(INSIDE[0][:2]).shape == (2, CLASSES + 1)


def test_real_records_of_the_target_are_taken_for_it_and_lie_where_such_records_lie(
    judges: GANJudges,
) -> None:
    found = judged(judges, of(bars(400, 7), 0))
    assert found.hit_rate.value > 0.95 and found.junk_aware_hit_rate.value > 0.9
    assert found.distinct == 40 and 0.8 < found.nn_ratio.value < 1.25
    assert found.own_ratio.value > 1.2, "nearer to the victim's than to the insider's"
    low, high = found.junk_aware_hit_rate.interval
    assert low < found.junk_aware_hit_rate.value <= high
    assert found.controls["another class"] == (0.0, 0.0)
    assert found.controls["noise"][1] < 0.1 and found.controls["mean record"][1] < 0.1


def test_records_of_the_insider_are_found_out(judges: GANJudges) -> None:
    found = judged(judges, OWN[:80])
    assert found.hit_rate.value < 0.05
    assert found.own_ratio.value < 0.1


def test_one_image_over_and_over_counts_once(judges: GANJudges) -> None:
    one = of(VICTIMS, 0)[:1]
    found = judged(judges, one + 1e-3 * torch.rand(160, 1, 12, 12, generator=drawn(8)))
    assert found.distinct == 1
    assert found.hit_rate.value == pytest.approx(1 / 40), "the images that are missing are misses"


def test_adversarial_noise_fools_the_plain_judge_and_not_the_other(judges: GANJudges) -> None:
    """A generator is trained against a network that no judge was trained with, as a passive insider's is."""
    shared = strided_cnn((1, 12, 12), CLASSES, 8, 32, generator=drawn(9))
    fit(shared, *VICTIMS, epochs=10, batch_size=32, learning_rate=0.05, momentum=0.9, generator=drawn(10))  # fmt: skip
    rates = []
    for target in range(CLASSES):
        maker = image_generator((1, 12, 12), 20, 8, generator=drawn(11 + target))
        optimiser = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.5, 0.999))
        for _ in range(80):
            optimiser.zero_grad()
            loss = F.cross_entropy(
                shared(maker(latents(32, 20, drawn(_)))), torch.full((32,), target)
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        found = judged(judges, maker(latents(160, 20, drawn(20))), target)
        assert found.nn_ratio.value > 1.5
        rates.append((found.hit_rate.value, found.junk_aware_hit_rate.value))
    plain, aware = (sum(of_kind) / CLASSES for of_kind in zip(*rates, strict=True))
    assert aware < plain - 0.15 and aware < 0.3


def test_judges_of_averaged_images_do_not_follow_single_pixels() -> None:
    coarse = train_gan_judges(
        *INSIDE,
        CLASSES,
        held=TESTED,
        recipe=replace(RECIPE, pool=2, generators=2),
        generator=drawn(5),
    )
    assert coarse.plain.accuracy > 0.9 and coarse.aware.accuracy > 0.8
    images = TESTED[0][:40] * 0.8 + 0.1
    board = 0.1 * (1 - 2.0 * ((torch.arange(12)[:, None] + torch.arange(12)) % 2))
    for judge in (coarse.plain, coarse.aware):
        with torch.no_grad():
            torch.testing.assert_close(judge.model(images + board), judge.model(images))


def test_members_of_a_judge_decide_by_their_mean_probability() -> None:
    recipe = replace(RECIPE, steps=30, generators=1, steps_of_each=4, members=3)
    panel = train_gan_judges(*INSIDE, CLASSES, held=TESTED, recipe=recipe, generator=drawn(5))
    alone = train_gan_judges(
        *INSIDE, CLASSES, held=TESTED, recipe=replace(recipe, members=1), generator=drawn(5)
    )
    images = TESTED[0][:20]
    for judge, single, classes in ((panel.plain, alone.plain, 4), (panel.aware, alone.aware, 5)):
        members = list(judge.model.members)  # type: ignore[arg-type]
        with torch.no_grad():
            each = torch.stack([member(images).softmax(1) for member in members])
            torch.testing.assert_close(judge.model(images), each.mean(0))
            torch.testing.assert_close(single.model(images), each[0])  # drawn as the first
        assert each.shape == (3, 20, classes) and not torch.equal(each[0], each[1])


def test_images_are_distinct_beyond_the_floor_from_all_before() -> None:
    line = torch.tensor([0.0, 0.5, 1.0, 1.4, 2.1, 0.0]).reshape(-1, 1, 1, 1)
    assert distinct(line, 0.9, 10).flatten().tolist() == pytest.approx([0.0, 1.0, 2.1])
    assert distinct(line, 0.9, 2).flatten().tolist() == [0.0, 1.0]
    assert 0 < FLOOR < 1


def test_what_cannot_be_judged_is_refused(judges: GANJudges) -> None:
    images = of(VICTIMS, 0)[:40]
    for wrong in ({"count": 41}, {"count": 5}):
        with pytest.raises(ConfigError, match="images to judge"):
            judged(judges, images, **wrong)
    broken = images.clone()
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        judged(judges, broken)
    for inputs, labels in ((INSIDE[0][:, 0], INSIDE[1]), (INSIDE[0], INSIDE[1] + 1)):
        with pytest.raises(ConfigError, match="expected"):
            train_gan_judges(
                inputs, labels, CLASSES, held=TESTED, recipe=replace(RECIPE, steps=1), generator=drawn(1)
            )  # fmt: skip
