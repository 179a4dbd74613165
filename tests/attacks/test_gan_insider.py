"""The GAN insider: when it begins, what it injects, what it refuses, and that it works against a class it does not hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tacit.attacks.gan_insider import GANInsider, Insider, InsiderSlot, place
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, Diverged, WireError
from tacit.core.wire import Array
from tacit.nn.data import load
from tacit.nn.federated import Task, honest_work
from tacit.nn.generators import image_generator, latents, strided_cnn
from tacit.nn.local_work import HonestTraining, Share, load_parameters, parameters_of
from tacit.nn.networks import mlp
from tacit.parties.roles import Role, owners
from tacit.training.plain import FederatedAveraging

AVERAGED = {"averaged": 0.9, "spread": 0.05, "smooth": True}
ATTACK = GANInsider(
    target=0, fresh=4, start_accuracy=0.0, steps=2, batch=6, injected=3, latent=5, width=4, seed=1
)
VICTIM, WHO = owners(2)


@pytest.fixture
def two() -> Task:
    """A victim with all of four classes, and a participant without class 0; the model has an output for a fifth."""
    generator = torch.Generator().manual_seed(3)
    shards = []
    for labels in ([0, 1, 2, 3] * 3, [1, 2, 3] * 4):
        shards.append((torch.rand(12, 1, 4, 4, generator=generator), torch.tensor(labels)))
    start = mlp((1, 4, 4), (12,), 5, generator=generator)
    return Task(name="two", start=start, shards=tuple(shards), input_shape=(1, 4, 4), classes=5)


def honest_of(task: Task, share: Share = Share.CHANGE, **settings: float) -> HonestTraining:
    chosen: dict[str, float] = {"batch_size": 3}
    if share is Share.CHANGE:
        chosen |= {"local_steps": 2, "learning_rate": 0.1}
    return honest_work(task, share, **(chosen | settings))[WHO]  # type: ignore[arg-type]


def same(one: tuple[Array, ...], other: tuple[Array, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# --- what it sends


@pytest.mark.parametrize("share", Share)
def test_what_it_sends_is_the_step_on_its_own_batches_with_generated_records_beside_them(
    two: Task, share: Share
) -> None:
    start = parameters_of(two.start)
    insider = Insider(ATTACK, honest_of(two, share))
    sent = insider.update(start, 0)

    # by hand: the generator as it is now, drawn from for this round
    twin, model = honest_of(two, share), honest_of(two, share).module
    load_parameters(model, start)
    drawn = ATTACK.draws("injected", 0)
    gradients: list[torch.Tensor] = []
    for batch in twin.records(0).split(3):
        made = insider._generator(latents(6, 5, drawn)).detach()[:3]
        x = torch.cat([twin.inputs[batch], made])
        y = torch.cat([twin.labels[batch], torch.full((3,), 4)])
        loss = nn.functional.cross_entropy(model(x), y)
        gradients = list(torch.autograd.grad(loss, list(model.parameters())))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.sub_(g, alpha=twin.learning_rate)
    expected = gradients
    if share is Share.CHANGE:
        expected = [p.detach() - torch.from_numpy(m) for p, m in zip(model.parameters(), start, strict=True)]  # fmt: skip
    for array, wanted in zip(sent.arrays, expected, strict=True):
        np.testing.assert_allclose(array, wanted.numpy(), atol=1e-7)
    usual = twin.update(start, 0)
    assert sent.examples == usual.examples
    assert [(a.shape, a.dtype) for a in sent.arrays] == [(a.shape, a.dtype) for a in usual.arrays]
    assert not same(sent.arrays, usual.arrays)


def test_before_it_begins_and_without_injection_it_sends_what_an_honest_one_would(
    two: Task,
) -> None:
    start = parameters_of(two.start)
    usual = honest_of(two).update(start, 0)
    for attack in (replace(ATTACK, start_round=1), replace(ATTACK, injected=0)):
        insider = Insider(attack, honest_of(two))
        assert same(insider.update(start, 0).arrays, usual.arrays)
        assert (insider.began is None) is not attack.passive


def test_it_begins_once_the_model_is_right_on_its_own_records_and_never_stops(two: Task) -> None:
    insider = Insider(replace(ATTACK, start_accuracy=0.6), honest_of(two))
    knows = parameters_of(two.start)
    module = honest_of(two).module
    inputs, labels = two.here()[WHO]
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    nothing = [np.zeros_like(array) for array in knows]  # calls everything class 0
    for round, model in enumerate((nothing, parameters_of(module), nothing)):
        insider.update(model, round)
    assert insider.began == 1
    assert [m.accuracy >= 0.6 for m in insider.moments] == [False, True, False]
    assert [m.confidence is not None for m in insider.moments] == [False, True, True]


def test_a_boost_multiplies_what_has_injected_records_behind_it_and_nothing_else(two: Task) -> None:
    start = parameters_of(two.start)
    usual = Insider(ATTACK, honest_of(two)).update(start, 0)
    louder = Insider(replace(ATTACK, boost=8.0), honest_of(two)).update(start, 0)
    assert louder.examples == usual.examples
    assert same(louder.arrays, tuple(np.float32(8) * array for array in usual.arrays))
    silent = replace(ATTACK, boost=8.0, injected=0)
    honest = honest_of(two).update(start, 0).arrays
    assert same(Insider(silent, honest_of(two)).update(start, 0).arrays, honest)


def test_all_its_draws_follow_from_seed_and_round(two: Task) -> None:
    start = parameters_of(two.start)
    before = torch.random.get_rng_state()
    runs = []
    for attack in (ATTACK, ATTACK, replace(ATTACK, seed=2)):
        insider = Insider(attack, honest_of(two))
        runs.append([insider.update(start, round).arrays for round in (0, 1)])
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(same(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(same(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_the_discriminator_is_the_model_of_the_round_and_is_not_changed_by_the_generator(
    two: Task,
) -> None:
    start = parameters_of(two.start)
    insider = Insider(replace(ATTACK, injected=0), honest_of(two))
    insider.update(start, 0)
    assert same(tuple(parameters_of(insider._discriminator)), tuple(start))


# --- its state


@pytest.mark.parametrize("more", [{}, AVERAGED], ids=["", "averaged"])
def test_its_state_is_the_generator_s_and_a_restored_one_goes_on_to_the_bit(
    two: Task, more: dict[str, Any]
) -> None:
    start = parameters_of(two.start)
    one, other = (Insider(replace(ATTACK, **more), honest_of(two)) for _ in range(2))
    fresh = other.export()
    one.update(start, 0)
    one.update(start, 1)
    other.restore(one.export())
    assert same(one.update(start, 2).arrays, other.update(start, 2).arrays)
    assert torch.equal(one.samples(4), other.samples(4)) and other.began == 0
    other.restore(fresh)
    assert other.began is None and other.export() == fresh


def test_what_is_shown_is_a_moving_average_that_makes_half_of_what_is_injected(two: Task) -> None:
    start = parameters_of(two.start)
    insider = Insider(replace(ATTACK, averaged=0.5), honest_of(two))
    by_hand = [p.detach().clone() for p in insider._generator.parameters()]
    for round in range(8):
        insider.update(start, round)
        stays = min(0.5, (1 + round) / (10 + round))
        trained = insider._generator.parameters()
        by_hand = [stays * a + (1 - stays) * p.detach() for a, p in zip(by_hand, trained, strict=True)]  # fmt: skip
    shown = list(insider._shown.parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(by_hand, shown, strict=True))
    drawn = insider.attack.draws("injected", 8)
    made, labels = next(insider._injected(8))
    with torch.no_grad():
        own, averaged = (
            network(latents(ATTACK.batch, ATTACK.latent, drawn))
            for network in (insider._generator, insider._shown)
        )
    assert torch.equal(made[1::2], own[: len(made)][1::2]) and labels.tolist() == [4] * 3
    assert torch.equal(made[::2], averaged[: len(made[::2])]) and not torch.equal(own, averaged)


def test_spread_sets_images_apart(two: Task) -> None:
    start = parameters_of(two.start)

    def apart(spread: float) -> float:
        insider = Insider(replace(ATTACK, spread=spread, learning_rate=1e-2), honest_of(two))
        for round in range(20):
            insider.update(start, round)
        made = insider.samples(30)
        return float((made - made.flip(0)).abs().mean())

    assert apart(1.0) > 1.5 * apart(0.0)


def test_a_state_that_is_none_is_refused_and_changes_nothing(two: Task) -> None:
    insider = Insider(ATTACK, honest_of(two))
    insider.update(parameters_of(two.start), 0)
    held = insider.export()
    wider = Insider(replace(ATTACK, width=8), honest_of(two)).export()
    for state in (b"", held[:-1], wider):
        with pytest.raises(WireError):
            insider.restore(state)
    assert insider.export() == held


# --- outcomes


@pytest.mark.parametrize("averaged", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_generator_that_diverges_ends_the_attack_and_not_the_run(
    two: Task, steps: int, averaged: float
) -> None:
    start = parameters_of(two.start)
    # not even its images are finite after a step
    attack = replace(ATTACK, learning_rate=1e38, steps=steps, averaged=averaged)
    insider = Insider(attack, honest_of(two))
    sent = [insider.update(start, round) for round in (0, 1)]
    assert insider.ended is not None and "diverged" in insider.ended
    assert not insider.attacking and insider.moments[-1].confidence is None
    honest = honest_of(two)
    assert all(same(s.arrays, honest.update(start, r).arrays) for r, s in enumerate(sent))
    twin = Insider(attack, honest_of(two))
    twin.restore(insider.export())
    assert twin.ended == insider.ended


def test_training_that_diverges_says_so_as_an_honest_one_s_does(two: Task) -> None:
    start = [np.full_like(array, 1e30) for array in parameters_of(two.start)]
    with pytest.raises(Diverged, match="round 0"):
        honest_of(two).update(start, 0)
    with pytest.raises(Diverged, match="round 0"):
        Insider(ATTACK, honest_of(two)).update(start, 0)


# --- bad input


def test_settings_out_of_range_are_refused() -> None:
    wrong: list[dict[str, object]] = [
        {"target": 4}, {"target": -1}, {"start_accuracy": 1.1}, {"start_round": -1}, {"steps": 0},
        {"batch": 1}, {"injected": -1}, {"learning_rate": 0.0}, {"boost": 0.0}, {"momentum": 1.0}, {"watched": -1},
        {"averaged": 1.0}, {"averaged": -0.1}, {"spread": -1.0}, {"spread": float("inf")}, {"target": 0.5},
    ]  # fmt: skip
    for one in wrong:
        with pytest.raises(ConfigError, match="expected, got"):
            replace(ATTACK, **one)  # type: ignore[arg-type]


def test_a_generator_that_does_not_fit_is_refused(two: Task) -> None:
    def wrong(drawn: torch.Generator) -> nn.Module:
        return image_generator((1, 2, 2), ATTACK.latent, 4, generator=drawn)

    with pytest.raises(ConfigError, match=r"makes records of \(1, 2, 2\)"):
        Insider(replace(ATTACK, network=wrong), honest_of(two))
    with pytest.raises(ConfigError, match="takes no"):
        Insider(replace(ATTACK, latent=9, network=lambda _: nn.Linear(5, 16)), honest_of(two))
    with pytest.raises(ConfigError, match="a count from 1"):
        Insider(ATTACK, honest_of(two)).samples(0)


def test_a_model_without_room_for_the_fresh_class_is_refused_and_says_how_to_add_one(
    two: Task,
) -> None:
    with pytest.raises(ConfigError, match=r"5 outputs and no room .* classes=6"):
        place(two, {WHO: replace(ATTACK, fresh=5)})
    with pytest.raises(ConfigError, match="classes=6"):
        Insider(replace(ATTACK, fresh=5), honest_of(two))


def test_a_target_that_nobody_or_that_the_insider_holds_is_refused(two: Task) -> None:
    (inputs, labels), insider = two.shards  # type: ignore[misc]
    without = replace(two, shards=((inputs, labels.clamp(min=1)), insider))
    with pytest.raises(ConfigError, match="nobody holds class 0: there is no victim"):
        place(without, {WHO: ATTACK})
    with pytest.raises(ConfigError, match="owner 0 holds records of the target class 0 itself"):
        place(two, {VICTIM: ATTACK})
    with pytest.raises(ConfigError, match="holds records of the target class 1"):
        Insider(replace(ATTACK, target=1), honest_of(two))


def test_a_fresh_class_that_somebody_holds_is_refused(two: Task) -> None:
    (inputs, labels), insider = two.shards  # type: ignore[misc]
    used = replace(two, shards=((inputs, labels.where(labels != 1, 4)), insider))
    with pytest.raises(ConfigError, match="owner 0 holds records of class 4, so that it is not fr"):
        place(used, {WHO: ATTACK})
    with pytest.raises(ConfigError, match="the insider holds records of class 3"):
        Insider(replace(ATTACK, fresh=3), honest_of(two))


def test_an_insider_must_be_an_owner_whose_records_are_here(two: Task) -> None:
    with pytest.raises(ConfigError, match="owner 7 is no owner"):
        place(two, {Role("owner", 7): ATTACK})
    with pytest.raises(ConfigError, match="train first"):
        _ = InsiderSlot(ATTACK).insider


# --- the networks


def test_the_generator_is_drawn_from_its_generator_alone_and_makes_images_of_any_shape() -> None:
    for shape in ((1, 28, 28), (1, 64, 64), (3, 32, 32), (1, 8, 8), (2, 4, 4)):
        one, other = (
            image_generator(shape, 5, 4, generator=torch.Generator().manual_seed(1)) for _ in "12"
        )
        noise = latents(3, 5, torch.Generator().manual_seed(2))
        images = one(noise).detach()
        assert images.shape == (3, *shape) and 0 < float(images.min()) < float(images.max()) < 1
        assert torch.equal(images, other(noise))
        assert not list(one.buffers())
        scores = strided_cnn(shape, 7, 4, 6, generator=torch.Generator().manual_seed(1))(images)
        assert scores.shape == (3, 7)
    assert float(noise.min()) >= -1 and float(noise.max()) <= 1


@pytest.mark.parametrize("shape", [(1, 30, 30), (28, 28), (1, 0, 28)])
def test_images_that_cannot_be_halved_are_refused(shape: tuple[int, ...]) -> None:
    for made in (image_generator, strided_cnn):
        with pytest.raises(ConfigError, match=r"cannot be halved|expected"):
            made(shape, 10, generator=torch.Generator().manual_seed(1))  # type: ignore[operator]


# --- that it works


def test_on_digits_it_draws_a_class_that_it_does_not_hold_and_a_passive_one_draws_junk() -> None:
    data = load("digits")
    x, y = data.inputs_train, data.labels_train
    target = 0
    theirs = (y <= 4).nonzero().squeeze(1)
    own = (y > 4).nonzero().squeeze(1)
    task = Task(
        name="digits",
        start=strided_cnn(data.input_shape, 11, 32, 64, generator=torch.Generator().manual_seed(0)),
        shards=((x[theirs], y[theirs]), (x[own], y[own])),
        input_shape=data.input_shape,
        classes=11,
    )
    scheme = FederatedAveraging(rounds=30, local_steps=10, batch_size=32, learning_rate=0.1)
    attack = GANInsider(target=target, fresh=10, start_accuracy=0.0, start_round=5, width=32)
    distances = {}
    for injected in (32, 0):
        placed, slots = place(task, {WHO: replace(attack, injected=injected)})
        scheme.train(placed, coins=Coins())
        made = slots[WHO].insider.samples(100).flatten(1)
        real = x[y == target].flatten(1)
        distances[injected] = float(torch.cdist(made, real).min(1).values.median())
    held = data.inputs_test[data.labels_test == target].flatten(1)
    usual = float(torch.cdist(held, real).min(1).values.median())
    assert distances[32] < 1.6 * usual < 2.0 * usual < distances[0]
