"""Models trained together end where each ends alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tacit.core.errors import ConfigError, Diverged, UnsupportedLayer
from tacit.nn import stacked
from tacit.nn.stacked import Recipe, Trainer, is_out_of_memory, logits_of, stackable

N, CLASSES = 61, 5


def pool(*shape: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(N, *shape, generator=g), torch.randint(0, CLASSES, (N,), generator=g)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 9), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + torch.tanh(self.first(x)))


class Looks(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.sum() > 0 else x)


class Tied(nn.Sequential):
    pass


MLP = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, CLASSES, bias=False))
CNN = nn.Sequential(
    nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)
)
ADAM = Recipe(epochs=4, batch_size=10, learning_rate=0.01, weight_decay=1e-3)
SGD = Recipe(
    epochs=4, batch_size=10, learning_rate=0.1, optimiser="sgd", momentum=0.9, label_smoothing=0.1, schedule="cosine",
)  # fmt: skip


@pytest.mark.parametrize(
    ("network", "shape", "recipe", "kind"),
    [
        (MLP, (3, 3), ADAM, "_Chain"),
        (MLP[1:], (9,), SGD, "_Chain"),
        (CNN, (1, 3, 3), ADAM, "_Mapped"),
        (CNN, (1, 3, 3), SGD, "_Mapped"),
        (Residual(), (9,), ADAM, "_Mapped"),
    ],
)
def test_each_of_a_stack_is_what_it_would_be_alone(network, shape, recipe, kind) -> None:
    inputs, labels = pool(*shape)
    trainer = Trainer(network=network, recipe=recipe)
    # As many steps for all, and last batches of one record, of five, and a full one.
    g = torch.Generator().manual_seed(1)
    rows = [torch.randperm(N, generator=g)[:size] for size in (31, 35, 40)]
    stack = trainer.together(inputs, labels, rows, seeded(5, 6, 7))
    assert type(stack).__name__ == kind
    found = logits_of(stack, inputs, 3)
    for k, own in enumerate(rows):
        module = trainer(inputs[own], labels[own], seeded(5 + k)[0])
        module.eval()
        with torch.no_grad():
            torch.testing.assert_close(found[k], module(inputs), atol=2e-5, rtol=1e-4)
    assert float((found[0] - found[1]).detach().abs().max()) > 0.01


@pytest.mark.parametrize("recipe", [ADAM, SGD], ids=["adam", "sgd"])
def test_the_recipe_is_that_of_torch(recipe: Recipe) -> None:
    """A loop with torch's plain optimisers, written out."""
    inputs, labels = pool(9)
    found = Trainer(network=MLP[1:], recipe=recipe)(inputs, labels, seeded(3)[0])
    generator = seeded(3)[0]
    module = Trainer(network=MLP[1:], recipe=recipe).drawn(generator)
    optimiser: torch.optim.Optimizer = torch.optim.Adam(
        module.parameters(), 0.01, weight_decay=1e-3, fused=False
    )
    smoothing = 0.0
    if recipe is SGD:
        optimiser = torch.optim.SGD(module.parameters(), 0.1, 0.9)
        smoothing = 0.1
    for epoch in range(4):
        for step, batch in enumerate(torch.randperm(N, generator=generator).split(10)):
            if recipe is SGD:
                turn = math.pi * (epoch * 7 + step) / 28
                optimiser.param_groups[0]["lr"] = 0.05 * (1 + math.cos(turn))
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(
                module(inputs[batch]), labels[batch], label_smoothing=smoothing
            )
            loss.backward()
            optimiser.step()
    torch.testing.assert_close(list(found.parameters()), list(module.parameters()), atol=1e-5, rtol=1e-4)  # fmt: skip
    rates = [SGD.rate(epoch, step, 5) for epoch in range(4) for step in range(5)]
    assert rates[0] == 0.1 and rates[10] == pytest.approx(0.05) and 0 < rates[-1] < 0.002
    assert rates == sorted(rates, reverse=True) and ADAM.rate(3, 4, 5) == 0.01


def test_what_can_be_stacked() -> None:
    flat, image = pool(9)[0], pool(1, 3, 3)[0]
    assert stackable(MLP, image) and stackable(CNN, image) and stackable(Residual(), flat)
    normed = nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    assert not stackable(normed, flat)  # batches of padded records, and statistics that change
    assert not stackable(Looks(), flat)
    trainer = Trainer(network=normed, recipe=ADAM)
    rows = [torch.arange(20), torch.arange(20, 40)]
    with pytest.raises(ConfigError, match="cannot be stacked"):
        trainer.together(flat, pool(9)[1], rows, seeded(1, 2))
    assert type(trainer.together(flat, pool(9)[1], rows[:1], seeded(1))).__name__ == "_Alone"


def test_chains_with_shared_weights_or_other_shapes_are_left_to_vmap() -> None:
    twice = nn.Linear(9, 9)
    assert not stacked._is_chain(nn.Sequential(twice, nn.Tanh(), twice), (9,))
    tied = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    tied[1].weight = tied[0].weight
    assert not stacked._is_chain(tied, (9,))
    assert not stacked._is_chain(MLP[1:], (3, 9)) and not stacked._is_chain(Tied(*MLP), (3, 3))
    assert stacked._is_chain(MLP[1:], (9,))


@pytest.mark.parametrize("network", [MLP, CNN], ids=["chain", "vmap"])
def test_frozen_parameters_stay_and_dropout_differs_between_models(network) -> None:
    inputs, labels = pool(1, 3, 3)

    def drawn(generator: torch.Generator) -> nn.Module:
        made = Trainer(network=network, recipe=ADAM).drawn(generator)
        made = nn.Sequential(*made[:-1], nn.Dropout(0.5), made[-1])
        made[-1].requires_grad_(False)
        return made

    trainer = Trainer(network=drawn, recipe=ADAM)
    rows = [torch.arange(30)] * 2
    stack = trainer.together(inputs, labels, rows, seeded(4, 4))
    before = drawn(seeded(4)[0])
    last = [one for one in stack.trained if one.shape[-1] == CLASSES or CLASSES in one.shape[1:2]]
    assert len(stack.trained) == sum(p.requires_grad for p in before.parameters()) and not last
    # The same weights and orders: only dropout tells the two apart.
    first, second = logits_of(stack, inputs, 2)
    assert float((first - second).abs().max()) > 1e-4
    torch.testing.assert_close(logits_of(stack, inputs, 2)[0], first)  # and it is off in answers


def test_bad_settings_are_refused() -> None:
    good = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}
    for wrong in (
        {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"optimiser": "lion"},
        {"momentum": 0.9}, {"optimiser": "sgd", "momentum": 1.0}, {"weight_decay": -1.0}, {"label_smoothing": 1.0},
        {"schedule": "linear"},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="expected"):
            Recipe(**(good | wrong))


def test_bad_data_are_refused() -> None:
    inputs, labels = pool(9)
    trainer = Trainer(network=MLP[1:], recipe=ADAM)
    with pytest.raises(ConfigError, match="as many steps"):
        trainer.together(inputs, labels, [torch.arange(10), torch.arange(11)], seeded(1, 2))
    with pytest.raises(ConfigError, match="0 to 0 records"):
        trainer(inputs[:0], labels[:0], seeded(1)[0])
    inputs[3] = torch.nan
    with pytest.raises(Diverged, match="model 1 of 2 diverged in epoch 0"):
        trainer.together(inputs, labels, [torch.arange(9, 13), torch.arange(4)], seeded(1, 2))
    with pytest.raises(UnsupportedLayer, match="no parameter"):
        Trainer(network=nn.Flatten(), recipe=ADAM)(inputs, labels, seeded(1)[0])

    def any_size(generator: torch.Generator) -> nn.Module:
        width = int(torch.randint(3, 1000, (), generator=generator))
        return nn.Sequential(nn.Linear(9, width), nn.Linear(width, CLASSES))

    with pytest.raises(ConfigError, match="one shape"):
        Trainer(network=any_size, recipe=ADAM).together(
            inputs, labels, [torch.arange(4)] * 2, seeded(1, 2)
        )


def test_memory_is_estimated_from_weights_and_batches() -> None:
    inputs, _ = pool(9)
    trainer = Trainer(network=MLP[1:], recipe=ADAM)
    weights = 4 * (9 * 8 + 8 + 8 * CLASSES)
    module = trainer.drawn(seeded(1)[0])
    assert trainer.bytes_of(module, inputs) == 5 * weights + 256 * 4 * (9 + 2 * 8)
    large = Trainer(network=MLP[1:], recipe=replace(SGD, batch_size=100))
    assert large.bytes_of(module, inputs) == 4 * weights + 100 * 4 * (9 + 4 * (8 + 8 + CLASSES))
    assert (ADAM.copies, SGD.copies) == (4, 3)


def test_large_convolutions_are_left_alone_on_a_processor() -> None:
    made = 4 * (3 * 16 + 16 + CLASSES)  # convolution, norm and activation; flattened; scores
    for batch, worth in ((stacked.CONVOLVED // made, True), (stacked.CONVOLVED // made + 1, False)):
        trainer = Trainer(network=CNN, recipe=replace(ADAM, batch_size=batch))
        assert trainer.worth_stacking(CNN, pool(1, 3, 3)[0]) is worth
        assert Trainer(network=MLP, recipe=trainer.recipe).worth_stacking(MLP, pool(1, 3, 3)[0])
    assert not Trainer(network=Looks(), recipe=ADAM).worth_stacking(Looks(), pool(9)[0])


def test_what_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as met:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(met.value) and is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shapes"))
