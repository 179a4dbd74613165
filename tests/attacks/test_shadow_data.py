"""Shadow data: noise of the stated share, marginals kept and ties broken, and algorithm 1 line by line."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, QueryCounter, Scores
from tacit.attacks.shadow_data import (
    Features,
    MarginalRecords,
    NoisyRecords,
    RealRecords,
    SynthesisedRecords,
    Unfinished,
)
from tacit.core.errors import BudgetExhausted, ConfigError, NotEnoughEvidence, TacitWarning
from tacit.nn.policies import Policy

WIDTH = 40


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Blocks(nn.Module):
    """Class c of four is likely where the features of block c are high."""

    def __init__(self, *, silent: int | None = None, sharpness: float = 1.5) -> None:
        super().__init__()
        self.silent, self.sharpness = silent, sharpness
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        logits = self.sharpness * x.reshape(len(x), 4, -1).sum(2)
        if self.silent is not None:
            logits[:, self.silent] = -100.0
        return logits


@pytest.fixture
def population() -> tuple[Tensor, Tensor]:
    generator = seeded(0)
    share = torch.linspace(0, 1, WIDTH)
    inputs = (torch.rand(2000, WIDTH, generator=generator) < share).float()
    inputs[:, 21] = inputs[:, 20]  # two features that always agree
    return inputs, torch.randint(4, (2000,), generator=generator)


@pytest.fixture
def knowledge(population: tuple[Tensor, Tensor]) -> Knowledge:
    return Knowledge(population=population, classes=4, input_shape=(WIDTH,))


def test_real_records_are_the_population(knowledge: Knowledge) -> None:
    inputs, labels = RealRecords().records(None, knowledge, seeded(1))
    assert knowledge.population is not None
    assert torch.equal(inputs, knowledge.population[0])
    assert torch.equal(labels, knowledge.population[1])


@pytest.mark.parametrize(("share", "changed"), [(0.1, 4), (0.2, 8), (1.0, 40)])
def test_noise_flips_the_stated_share_of_every_record(
    share: float, changed: int, knowledge: Knowledge
) -> None:
    assert knowledge.population is not None
    before = knowledge.population[0].clone()
    inputs, labels = NoisyRecords(share=share).records(None, knowledge, seeded(1))
    assert torch.equal(knowledge.population[0], before) and set(inputs.unique().tolist()) == {0, 1}
    flipped = inputs != before
    assert flipped.sum(1).tolist() == [changed] * 2000
    assert torch.equal(labels, knowledge.population[1])
    # every feature as often as any other: within 6 deviations
    assert bool(((flipped.double().mean(0) - share).abs() < 6 * (0.25 / 2000) ** 0.5).all())


def test_noise_of_real_values_is_a_fresh_value_of_their_range() -> None:
    images = torch.full((500, 1, 4, 10), 5.0)
    known = Knowledge(population=(images, torch.zeros(500, dtype=torch.int64)))
    source = NoisyRecords(share=0.5, features=Features(low=-1, high=7, binary=False))
    inputs, _ = source.records(None, known, seeded(1))
    assert inputs.shape == images.shape
    fresh = inputs[inputs != 5]
    assert len(fresh) == 500 * 20 and -1 <= fresh.min() < -0.9 and 6.9 < fresh.max() <= 7
    assert abs(float(fresh.mean()) - 3) < 0.15
    with pytest.raises(ConfigError, match=r"features -1 to 4 expected, 5 came"):
        narrow = Features(low=-1, high=4, binary=False)
        NoisyRecords(features=narrow).records(None, known, seeded(1))
    with pytest.raises(ConfigError, match=r"features 0 or 1 expected, 5 came"):
        NoisyRecords().records(None, known, seeded(1))


def test_marginals_are_kept_what_ties_features_is_not_and_the_target_labels(
    knowledge: Knowledge,
) -> None:
    target = Blocks()
    access = Scores(target, QueryCounter(budget=3000))
    inputs, labels = MarginalRecords(count=3000).records(access, knowledge, seeded(1))
    assert inputs.shape == (3000, WIDTH) and access.counter.spent == 3000
    assert torch.equal(labels, Blocks()(inputs).argmax(1))
    assert knowledge.population is not None
    assert float((inputs.mean(0) - knowledge.population[0].mean(0)).abs().max()) < 0.08
    assert 0.4 < float((inputs[:, 20] == inputs[:, 21]).double().mean()) < 0.6  # was 1
    with pytest.raises(BudgetExhausted):
        MarginalRecords(count=1).records(access, knowledge, seeded(1))
    with pytest.raises(ConfigError, match="marginal shadow data are made by asking the target"):
        MarginalRecords(count=1).records(None, knowledge, seeded(1))


# --- algorithm 1

SEARCH = SynthesisedRecords(
    per_class=25, most_changed=16, least_changed=2, rejections=3, confidence=0.7, iterations=300
)


def test_the_target_is_sure_of_what_is_synthesised_in_every_class(knowledge: Knowledge) -> None:
    target, told = Blocks(), []
    access = Scores(target)
    search = replace(SEARCH, progress=lambda done, total: told.append((done, total)))
    blind = replace(knowledge, population=None)
    inputs, labels = search.records(access, blind, seeded(1))
    assert inputs.shape == (100, WIDTH) and set(inputs.unique().tolist()) == {0, 1}
    assert torch.bincount(labels).tolist() == [25] * 4
    sure = Scores(Blocks()).scores(inputs)
    assert torch.equal(sure.argmax(1), labels) and float(sure.max(1).values.min()) > 0.7
    assert access.counter.spent == sum(len(asked) for asked in target.asked)
    assert told[-1] == (100, 100) and told == sorted(told)
    # at once: a call of the target for every candidate of all searches
    assert len(target.asked) <= 300 and len(target.asked[0]) == 100


def test_real_values_and_few_at_once_are_climbed_too(knowledge: Knowledge) -> None:
    target = Blocks()
    search = replace(SEARCH, features=Features(low=-1, high=1, binary=False), at_once=10)
    known = Knowledge(classes=4, input_shape=(1, 4, 10))
    inputs, labels = search.records(Scores(target), known, seeded(1))
    assert inputs.shape == (100, 1, 4, 10) and float(inputs.abs().max()) <= 1
    assert len(inputs.unique()) > 1000
    assert torch.equal(Scores(Blocks()).scores(inputs).argmax(1), labels)
    assert max(len(asked) for asked in target.asked) == 10


def one_search(model: nn.Module, **settings: float) -> list[Tensor]:
    """The candidates of a single search that is never content, for class 0."""
    search = SynthesisedRecords(
        per_class=1, most_changed=16, least_changed=2, rejections=3, starts=1, confidence=1 - 1e-9, **settings,
    )  # type: ignore[arg-type]  # fmt: skip
    known = Knowledge(classes=2, input_shape=(WIDTH,))
    asked: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x[:1].clone())
            logits: Tensor = model(x)
            return logits

    with pytest.raises(NotEnoughEvidence, match="no record found"):
        search.records(Scores(Spy()), known, seeded(2))
    return asked


def test_k_is_halved_after_too_many_rejections_and_stays_at_its_least() -> None:
    class OnceOnly(nn.Module):
        """The first record is the best there ever is; class 1 is always the first choice."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.tensor([[0.0 if self.calls == 1 else -1.0, 5.0]]).repeat(len(x), 1)

    asked = one_search(OnceOnly(), iterations=24)
    assert len(asked) == 24
    moved = [int((one != asked[0]).sum()) for one in asked[1:]]
    # 4 rejections in a row are more than 3: k = 16, 8, 4, 2, and 2 it stays
    assert moved == [16] * 4 + [8] * 4 + [4] * 4 + [2] * 11


def test_an_accepted_record_is_the_next_ones_start_and_a_worse_one_is_not() -> None:
    class ZigZag(nn.Module):
        """Better, then worse, by turns."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            up = 0.1 * self.calls if self.calls % 2 else -9.0
            return torch.tensor([[up, 9.0]]).repeat(len(x), 1)

    asked = one_search(ZigZag(), iterations=6)
    for best, worse, following in ((0, 1, 2), (2, 3, 4)):
        assert int((asked[worse] != asked[best]).sum()) == 16
        assert int((asked[following] != asked[best]).sum()) == 16


def test_a_sure_record_is_taken_with_the_targets_probability() -> None:
    """The share of first candidates that are taken is the probability, and not all of those above the least."""

    class Even(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.8, 0.2]]).log().repeat(len(x), 1)

    search = SynthesisedRecords(per_class=2000, iterations=1, starts=1, confidence=0.75)
    known = Knowledge(classes=2, input_shape=(WIDTH,))
    with pytest.warns(TacitWarning, match=r"missing of class 0 \(\d+\), 1 \(2000\)"):
        inputs, labels = search.records(Scores(Even()), known, seeded(1))
    assert not labels.any() and abs(len(inputs) - 1600) < 6 * (2000 * 0.8 * 0.2) ** 0.5
    with pytest.warns(
        TacitWarning, match=r"missing of class 0"
    ):  # 1 is likely enough, and not the first choice
        _, labels = replace(search, confidence=0.1).records(Scores(Even()), known, seeded(1))
    assert not labels.any()
    with pytest.raises(NotEnoughEvidence, match=r"surer of than 0\.85"):
        replace(search, confidence=0.85).records(Scores(Even()), known, seeded(1))


def test_a_failed_search_starts_anew_as_often_as_it_may(knowledge: Knowledge) -> None:
    target = Blocks(silent=2)
    with pytest.warns(TacitWarning, match=r"75 of 100 records found; missing of class 2 \(25\)"):
        _, labels = replace(SEARCH, starts=2, iterations=100).records(
            Scores(target), knowledge, seeded(1)
        )
    assert torch.bincount(labels, minlength=4).tolist() == [25, 25, 0, 25]
    assert len(target.asked) == 200  # two searches of a hundred candidates
    jumped = (target.asked[100][-25:] != target.asked[99][-25:]).sum(1)
    assert int(jumped.min()) > 5  # from other random records, not a few features on


def test_a_budget_that_ends_early_says_how_far_it_came_and_keeps_what_was_found(
    knowledge: Knowledge,
) -> None:
    whole = Scores(Blocks())
    SEARCH.records(whole, knowledge, seeded(1))
    budget = whole.counter.spent // 2
    access = Scores(Blocks(), QueryCounter(budget=budget))
    with pytest.raises(Unfinished, match=f"of 100 records found .* {budget} queries") as caught:
        SEARCH.records(access, knowledge, seeded(1))
    assert access.counter.spent == budget
    kept = caught.value
    assert kept.wanted == 100 and 0 < len(kept.inputs) == len(kept.labels) < 100
    assert torch.equal(Scores(Blocks()).scores(kept.inputs).argmax(1), kept.labels)
    assert isinstance(kept, BudgetExhausted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = Scores(Blocks(), QueryCounter(budget=whole.counter.spent))
        assert len(SEARCH.records(exact, knowledge, seeded(1))[0]) == 100  # exactly enough


def test_a_budget_of_nothing_finds_nothing(knowledge: Knowledge) -> None:
    access = Scores(Blocks(), QueryCounter(budget=0))
    with pytest.raises(Unfinished, match="0 of 100 records") as caught:
        SEARCH.records(access, knowledge, seeded(1))
    assert len(caught.value.inputs) == 0


def test_labels_alone_are_searched_at_random(knowledge: Knowledge) -> None:
    access = Scores(Blocks(), policy=Policy(labels_only=True))
    inputs, labels = SEARCH.records(access, knowledge, seeded(1))
    assert torch.equal(Blocks()(inputs).argmax(1), labels)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"per_class": 0}, "at least 1 record"),
        ({"iterations": 0}, "at least 1 record, iteration"),
        ({"least_changed": 9, "most_changed": 8}, "least_changed <= most_changed"),
        ({"least_changed": 0}, "1 <= least_changed"),
        ({"confidence": 1.0}, r"a confidence in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SynthesisedRecords(**({"per_class": 1} | settings))  # type: ignore[arg-type]


def test_what_is_missing_or_wrong_is_said(knowledge: Knowledge) -> None:
    access = Scores(Blocks())
    with pytest.raises(ConfigError, match="real shadow data needs to know population"):
        RealRecords().records(None, Knowledge(), seeded(1))
    with pytest.raises(ConfigError, match="needs to know input_shape, classes"):
        SEARCH.records(access, Knowledge(), seeded(1))
    with pytest.raises(ConfigError, match="5 classes are known, the target answers with 4"):
        SEARCH.records(access, replace(knowledge, classes=5), seeded(1))
    with pytest.raises(ConfigError, match="give access to its scores"):
        SEARCH.records(None, knowledge, seeded(1))
    with pytest.raises(ConfigError, match="a share in"):
        NoisyRecords(share=0)
    with pytest.raises(ConfigError, match="at least 1 record"):
        MarginalRecords(count=0)
    with pytest.raises(ConfigError, match="low below high"):
        Features(low=1, high=1)
