"""Training over secure aggregation: it is federated training, rounded, and the server sees sums."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.claims import Basis
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, TacitWarning, TooFewParties
from tacit.core.wire import Array
from tacit.crypto.quantisation import Quantiser
from tacit.nn.federated import Task, honest_work
from tacit.nn.local_work import LocalUpdate, Share, accuracy, parameters_of
from tacit.parties.faults import Fault, Harm, Way
from tacit.parties.links.local import LocalHub
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.secure_sum.agreement import Adversary, Masks
from tacit.parties.secure_sum.server import Aggregate
from tacit.parties.views import DIGEST, FULL
from tacit.training.plain import FederatedAveraging, FederatedSGD
from tacit.training.secure_aggregation import Federated, Graph, SecureAggregation

COINS = Coins.from_seed(b"training over secure aggregation")
AVERAGING = SecureAggregation(rounds=3, local_steps=2, batch_size=2)
SGD = SecureAggregation(
    federated=Federated.SGD, rounds=3, local_steps=1, batch_size=2, learning_rate=0.3
)
BOTH = pytest.mark.parametrize("scheme", [AVERAGING, SGD], ids=["averaging", "sgd"])
VARIANTS = pytest.mark.parametrize("adversary", Adversary, ids=lambda a: a.value)


def plain(scheme: SecureAggregation) -> FederatedAveraging | FederatedSGD:
    """The same training without protection."""
    if scheme.federated is Federated.SGD:
        return FederatedSGD(
            rounds=scheme.rounds,
            batch_size=scheme.batch_size,
            learning_rate=scheme.learning_rate,
        )
    return FederatedAveraging(
        rounds=scheme.rounds,
        local_steps=scheme.local_steps,
        batch_size=scheme.batch_size,
        learning_rate=scheme.learning_rate,
    )


def flat(arrays: Sequence[Array]) -> np.ndarray:
    return np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays])


def distance(one: nn.Module, other: nn.Module) -> float:
    return float(np.abs(flat(parameters_of(one)) - flat(parameters_of(other))).max())


def shards_of(task: Task, *sizes: int) -> Task:
    """The task with so many records at each owner."""
    inputs, labels = (torch.cat(part) for part in zip(*task.shards, strict=True))
    cuts = np.cumsum((0, *sizes))
    shards = tuple((inputs[a:b], labels[a:b]) for a, b in pairwise(cuts.tolist()))
    return replace(task, shards=shards)


def five(task: Task) -> Task:
    return shards_of(task, 4, 4, 4, 4, 4)


# --- it trains as plain federated training does


FLOAT32 = 4e-7
"""Sums of the plain scheme are in float32: a few units in the last place of values below 1."""


@BOTH
@pytest.mark.parametrize("bits", [8, 16, 24])
def test_one_round_is_a_plain_round_within_the_bound(
    scheme: SecureAggregation, bits: int, task: Task
) -> None:
    scheme = replace(scheme, rounds=1, bits=bits)
    ours = scheme.train(task, coins=COINS).output.value
    theirs = plain(scheme).train(task, coins=COINS).output.value
    agreement = scheme.agree(3, dimension=1, max_examples=scheme.batch_size * scheme.local_steps)
    bound = abs(scheme.rate) * agreement.error_bound(3, 3 * agreement.max_examples)
    assert distance(ours, theirs) <= bound + FLOAT32
    assert distance(ours, task.start) > 10 * FLOAT32
    if bits == 8:  # the bound is not so loose that anything would pass
        assert distance(ours, theirs) > 0.2 * bound


@BOTH
@VARIANTS
def test_many_rounds_are_plain_training_within_the_sum_of_their_bounds(
    scheme: SecureAggregation, adversary: Adversary, task: Task
) -> None:
    task = five(task)
    scheme = replace(scheme, rounds=6, adversary=adversary)
    ours = scheme.train(task, coins=Coins.from_seed(b"many rounds")).output.value
    theirs = plain(scheme).train(task, coins=COINS).output.value
    agreement = scheme.agree(5, dimension=1, max_examples=scheme.batch_size * scheme.local_steps)
    each = abs(scheme.rate) * agreement.error_bound(5, 5 * agreement.max_examples) + FLOAT32
    # What one round is off moves the gradients of the next: at these rates an error grows by less than a half a round.
    assert distance(ours, theirs) <= sum(each * 1.5**k for k in range(scheme.rounds))
    assert distance(ours, task.start) > 100 * each


def test_owners_weigh_as_many_examples_as_they_went_through(task: Task) -> None:
    task = shards_of(task, 2, 5, 8, 9)
    scheme = replace(AVERAGING, rounds=1, local_steps=0, batch_size=2, bits=24)
    ours = scheme.train(task, coins=COINS).output.value
    work = honest_work(task, Share.CHANGE, batch_size=2, local_steps=0, learning_rate=0.1)
    start = parameters_of(task.start)
    updates = [work[role].update(start, 0) for role in owners(4)]
    assert [update.examples for update in updates] == [2, 4, 8, 8]
    mean = sum(update.examples * flat(update.arrays) for update in updates) / 22
    agreement = scheme.agree(4, dimension=1, max_examples=8)
    off = np.abs(flat(parameters_of(ours)) - flat(start) - mean).max()
    assert off <= agreement.error_bound(4, 22) + FLOAT32
    unweighted = sum(flat(update.arrays) for update in updates) / 4
    assert np.abs(mean - unweighted).max() > 100 * (agreement.error_bound(4, 22) + FLOAT32)


def test_it_learns(task: Task) -> None:
    inputs, labels = (torch.cat(part) for part in zip(*task.shards, strict=True))
    for scheme in (
        SecureAggregation(rounds=40, batch_size=2),
        replace(SGD, rounds=100, batch_size=2, clip=8.0),
    ):
        model = scheme.train(task, coins=COINS).output.value
        assert accuracy(model, inputs, labels) >= 0.9 > accuracy(task.start, inputs, labels)


def test_any_module_can_be_trained(task: Task) -> None:
    torch_generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.GroupNorm(1, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(48, 4, bias=False),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch_generator))
    task = replace(task, start=net)
    scheme = replace(AVERAGING, rounds=2, bits=20)
    ours = scheme.train(task, coins=COINS).output.value
    theirs = plain(scheme).train(task, coins=COINS).output.value
    assert distance(ours, theirs) < 1e-4 < distance(ours, net)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in net.parameters()]


def test_a_regular_graph_trains_the_same_model(task: Task) -> None:
    task = shards_of(task, *[2] * 12)
    scheme = replace(AVERAGING, rounds=2, batch_size=1, bits=20, dropped=0.1, failure=0.4)
    models = [replace(scheme, graph=graph).train(task, coins=COINS).output.value for graph in Graph]
    agreement = replace(scheme, graph=Graph.REGULAR).agree(12, dimension=1, max_examples=2)
    assert agreement.sharing.degree < 11
    assert distance(*models) < 1e-4


# --- sessions, and repeating


@VARIANTS
@pytest.mark.parametrize("session_rounds", [1, 2, 3, 5])
def test_keys_are_renewed_after_session_rounds(
    session_rounds: int, adversary: Adversary, task: Task
) -> None:
    task = five(task)
    scheme = replace(AVERAGING, rounds=5, session_rounds=session_rounds, adversary=adversary)
    run = scheme.train(task, coins=COINS, recording=FULL)
    messages = [frame.message() for frame in run.views[Role("owner", 2)].frames()]
    opened = [m.integer("round") for m in messages if m.tag == "advertise"]
    assert opened == list(range(0, 5, session_rounds))
    names = [m.blob("session") for m in messages if m.tag == "advertise"]
    assert len(set(names)) == len(names)
    keys = [
        f.message().blob("public")
        for f in run.views[SERVER].frames()
        if "public" in f.message().fields
    ]
    assert len(set(keys)) == len(keys) == 5 * len(opened)
    waves = 2 if adversary is Adversary.SEMI_HONEST else 3
    assert run.cost.rounds == 2 * (
        2 * len(opened) + 5 * waves + 1
    )  # and one that hands out the model


def test_renewing_keys_does_not_change_what_is_learned(task: Task) -> None:
    runs = [
        replace(AVERAGING, rounds=4, bits=24, session_rounds=n).train(task, coins=COINS)
        for n in (1, 100)
    ]
    assert distance(*(run.output.value for run in runs)) < 1e-5


@BOTH
def test_a_seeded_run_repeats_bit_for_bit_and_an_unseeded_one_does_not(
    scheme: SecureAggregation, task: Task
) -> None:
    runs = [scheme.train(task, coins=Coins.from_seed(b"twice"), recording=DIGEST) for _ in range(2)]
    assert all(run.seeded for run in runs)
    assert distance(*(run.output.value for run in runs)) == 0
    assert [v.digest for v in runs[0].views.values()] == [v.digest for v in runs[1].views.values()]
    fresh = scheme.train(task, coins=Coins(), recording=DIGEST)
    assert not fresh.seeded
    assert fresh.views[SERVER].digest != runs[0].views[SERVER].digest
    assert fresh.views[SERVER].shape == runs[0].views[SERVER].shape


def test_the_start_is_left_alone_and_the_model_is_opened_to_all(task: Task) -> None:
    before = flat(parameters_of(task.start))
    told: list[tuple[int, int]] = []
    run = AVERAGING.train(task, coins=COINS, progress=lambda done, of: told.append((done, of)))
    assert (flat(parameters_of(task.start)) == before).all()
    assert run.output.to == (SERVER, *owners(3))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert run.settings["adversary"] == "semi-honest" and run.settings["rounds"] == 3


# --- what an observer makes of it


def real_updates(scheme: SecureAggregation, task: Task, models: Mapping[int, Sequence[Array]]):
    """Every owner's update of every round, from the models that were handed out."""
    work = scheme.work(task)
    return {
        (role, round): work[role].update([np.array(a) for a in models[round]], round)
        for role in work
        for round in range(scheme.rounds)
    }


@BOTH
def test_the_server_observes_masked_updates_and_the_means_between_models(
    scheme: SecureAggregation, task: Task
) -> None:
    run = scheme.train(task, coins=COINS, recording=FULL)
    found = scheme.observe(run.views[SERVER], SERVER)
    assert {(u.sender, u.round) for u in found.updates} == {
        (role, round) for role in owners(3) for round in range(3)
    }
    assert all(update.noisy for update in found.updates)
    models = dict(found.outputs)
    assert sorted(models) == [0, 1, 2, 3]
    assert (flat(models[0]) == flat(parameters_of(task.start))).all()
    assert (flat(models[3]) == flat(parameters_of(run.output.value))).all()
    assert [(a.round, a.senders, a.noisy) for a in found.aggregates] == [
        (round, 3, False) for round in range(3)
    ]
    real = real_updates(scheme, task, models)
    for mean in found.aggregates:
        moved = flat(models[mean.round + 1]) - flat(models[mean.round])
        np.testing.assert_allclose(flat(mean.arrays) * scheme.rate, moved, atol=1e-6)
        average = sum(flat(real[role, mean.round].arrays) for role in owners(3)) / 3
        assert np.abs(flat(mean.arrays) - average).max() < 1e-4
        assert all((a == b).all() for a, b in zip(mean.model, models[mean.round], strict=True))
    for update in found.updates:  # nothing like the real one
        truth = flat(real[update.sender, update.round].arrays)
        seen = flat(update.arrays)
        assert (
            np.abs(np.corrcoef(seen, truth)[0, 1]) < 0.35
        )  # 256 values: 1 of 10^7 with other coins
        assert np.median(np.abs(seen - truth)) > 0.1


@BOTH
def test_the_server_of_the_sabotaged_twin_observes_the_owners_real_updates(
    scheme: SecureAggregation, task: Task
) -> None:
    broken = scheme.sabotaged()
    assert broken == replace(scheme, masks=Masks.NONE)
    run = broken.train(task, coins=Coins.from_seed(b"twin"), recording=FULL)
    found = broken.observe(run.views[SERVER], SERVER)
    real = real_updates(scheme, task, dict(found.outputs))
    step = Quantiser(clip=scheme.clip, bits=scheme.bits).step
    assert len(found.updates) == 9
    for update in found.updates:
        assert not update.noisy and update.senders == 1
        truth = real[update.sender, update.round].arrays
        assert [a.shape for a in update.arrays] == [a.shape for a in truth]
        limited = np.clip(flat(truth), -scheme.clip, scheme.clip)
        assert np.abs(flat(update.arrays) - limited).max() <= step + 1e-6
        assert update.scale == (1.0 if scheme.federated is Federated.SGD else -0.1)
    whole = scheme.train(task, coins=Coins.from_seed(b"twin"))  # and the twin trains the same model
    assert distance(whole.output.value, run.output.value) == 0


@BOTH
@VARIANTS
def test_an_owner_observes_models_and_means_only(
    scheme: SecureAggregation, adversary: Adversary, task: Task
) -> None:
    task = five(task)
    scheme = replace(scheme, adversary=adversary)
    run = scheme.train(task, coins=COINS, recording=FULL)
    at_server = scheme.observe(run.views[SERVER], SERVER)
    for role in owners(5):
        found = scheme.observe(run.views[role], role)
        assert found.updates == () and found.intermediates == ()
        assert [round for round, _ in found.outputs] == [0, 1, 2, 3]
        assert [(m.round, m.senders) for m in found.aggregates] == [(r, 5) for r in range(3)]
        for mine, theirs in zip(found.aggregates, at_server.aggregates, strict=True):
            assert (flat(mine.arrays) == flat(theirs.arrays)).all()


def test_means_are_over_those_who_stayed(task: Task) -> None:
    task = five(task)
    start = parameters_of(task.start)
    work = AVERAGING.work(task)
    agreement = AVERAGING.agree(5, dimension=flat(start).size, max_examples=4)
    members = AVERAGING.members(work, agreement, start, coins=COINS.child("stayed"))
    # the first masked input
    gone = Fault(role=Role("owner", 3), at=2, harm=Harm.DROP, way=Way.REQUEST)
    hub = LocalHub(members, recording=FULL, faults=[gone])
    seen: list[Aggregate] = []
    AVERAGING.coordinate(
        hub, start, agreement, coins=COINS.child("s"), watch=lambda round, a, model: seen.append(a)
    )
    assert [len(a.survivors) for a in seen] == [4, 5, 5]  # out of one sum, and back
    found = AVERAGING.observe(hub.views[SERVER], SERVER)
    assert [a.senders for a in found.aggregates] == [4, 5, 5]
    real = real_updates(AVERAGING, task, dict(found.outputs))
    for mean, aggregate in zip(found.aggregates, seen, strict=True):
        average = sum(flat(real[role, mean.round].arrays) for role in aggregate.survivors)
        assert np.abs(flat(mean.arrays) - average / len(aggregate.survivors)).max() < 1e-4


# --- claims


@BOTH
def test_no_record_stands_in_the_view_of_a_role_that_a_claim_hides_it_from(
    scheme: SecureAggregation, task: Task
) -> None:
    for one in (scheme, scheme.sabotaged()):
        run = one.train(task, coins=COINS, recording=FULL)
        hidden = {kind for claim in run.claims for kind in claim.hides}
        assert hidden == {"server", "owner"}
        for role, view in run.views.items():
            seen = b"".join(frame.data for frame in view.frames())
            for owner, (inputs, _) in zip(owners(3), task.shards, strict=True):
                if role != owner:
                    records = [record.numpy().tobytes() for record in inputs]
                    assert not any(record[:16] in seen for record in records)


def test_claims_say_who_must_not_collude_and_which_graph_was_drawn(task: Task) -> None:
    semi, active = (replace(AVERAGING, adversary=a) for a in Adversary)
    said = {}
    for name, scheme, n in (
        ("semi", semi, 5),
        ("active", active, 5),
        ("regular", replace(semi, graph=Graph.REGULAR), 1000),
        ("none", semi.sabotaged(), 5),
    ):
        agreement = scheme.agree(n, dimension=10, max_examples=4)
        claims = scheme.claims(agreement)
        assert all(claim.source and claim.basis is Basis.PROVED for claim in claims)
        said[name] = (agreement, claims)
    assert any("follow the protocol" in one for c in said["semi"][1] for one in c.assumes)
    assert any("authentic" in one for c in said["active"][1] for one in c.assumes)
    agreement, claims = said["regular"]
    assert agreement.sharing.degree < 100
    once = agreement.sharing.failure_over(1, 3)
    assert agreement.sharing.failure < once < 3 * agreement.sharing.failure
    assert any(c.value == once and "1 sessions and 3 rounds" in c.statement for c in claims)
    assert any("30%" in one or "300 drop out" in one for c in claims for one in c.assumes)
    assert not any("learns" in c.statement for c in said["none"][1])


# --- what can go wrong


def train_with(
    scheme: SecureAggregation,
    task: Task,
    *,
    spoil: Callable[[int, LocalUpdate], LocalUpdate] | None = None,
    faults: Sequence[Fault] = (),
) -> list[Array]:
    """Train with owner 1's updates spoilt."""
    work = dict(scheme.work(task))
    start = parameters_of(task.start)
    agreement = scheme.agree(len(work), dimension=flat(start).size, max_examples=4)
    if spoil is not None:
        work[Role("owner", 1)] = Spoilt(work[Role("owner", 1)], spoil)
    members = scheme.members(work, agreement, start, coins=COINS.child("spoilt"))
    hub = LocalHub(members, faults=faults)
    return scheme.coordinate(hub, start, agreement, coins=COINS.child("spoilt server"))


class Spoilt:
    def __init__(self, inner, spoil) -> None:
        self.inner, self.spoil = inner, spoil

    def update(self, model, round):
        return self.spoil(round, self.inner.update(model, round))


def test_clipped_values_are_warned_of_with_how_many_and_when(task: Task) -> None:
    tight = replace(AVERAGING, clip=1e-3)
    with pytest.warns(
        TacitWarning, match=r"in 3 of 3 rounds values of updates were beyond \+-0\.001"
    ):
        tight.train(task, coins=COINS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AVERAGING.train(task, coins=COINS)


def test_a_clipped_run_moves_by_the_mean_of_the_clipped_updates(task: Task) -> None:
    tight = replace(AVERAGING, rounds=1, clip=0.01, bits=20)
    with pytest.warns(TacitWarning, match="raise clip"):
        ours = tight.train(task, coins=COINS).output.value
    start = parameters_of(task.start)
    work = tight.work(task)
    updates = [flat(work[role].update(start, 0).arrays) for role in owners(3)]
    assert max(np.abs(u).max() for u in updates) > 0.01
    mean = sum(np.clip(u, -0.01, 0.01) for u in updates) / 3
    step = Quantiser(clip=0.01, bits=20).step
    assert np.abs(flat(parameters_of(ours)) - flat(start) - mean).max() <= step + FLOAT32


def test_an_owner_that_refuses_is_warned_of_once_and_the_others_go_on(task: Task) -> None:
    def broken(round: int, update: LocalUpdate) -> LocalUpdate:
        return replace(update, arrays=tuple(a * np.float32(np.nan) for a in update.arrays))

    with pytest.warns(TacitWarning, match="owner 1 did not take part") as warned:
        trained = train_with(AVERAGING, five(task), spoil=broken)
    assert len(warned) == 1 and "round 0" in str(warned[0].message)
    assert (
        np.isfinite(flat(trained)).all()
        and (flat(trained) != flat(parameters_of(task.start))).any()
    )


def test_an_owner_that_is_only_silent_is_not_warned_of(task: Task) -> None:
    silent = [Fault(role=Role("owner", 1), at=2, harm=Harm.DIE)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_with(AVERAGING, five(task), faults=silent)


def test_below_the_threshold_training_ends_typed_and_the_start_is_as_it_was(task: Task) -> None:
    task = five(task)
    before = copy.deepcopy(parameters_of(task.start))
    dying = [Fault(role=role, at=4, harm=Harm.DIE) for role in owners(5)[:3]]
    with pytest.raises(TooFewParties, match="round 1") as caught:
        train_with(AVERAGING, task, faults=dying)
    assert set(caught.value.missing) == set(owners(5)[:3])
    assert all((a == b).all() for a, b in zip(parameters_of(task.start), before, strict=True))


def test_too_few_owners_or_a_batch_larger_than_a_shard_are_refused_at_once(task: Task) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        replace(AVERAGING, threshold=4).train(task, coins=COINS)
    with pytest.raises(ConfigError, match="batch"):
        replace(AVERAGING, batch_size=9).train(task, coins=COINS)
    with pytest.raises(ConfigError):
        replace(AVERAGING, bits=2).train(task, coins=COINS)  # 4 examples do not fit 2 bits


def test_an_owner_who_missed_the_start_of_a_session_joins_the_next(task: Task) -> None:
    scheme = replace(AVERAGING, rounds=4, session_rounds=2)
    task = five(task)
    start = parameters_of(task.start)
    agreement = scheme.agree(5, dimension=flat(start).size, max_examples=4)
    members = scheme.members(scheme.work(task), agreement, start, coins=COINS.child("late"))
    late = Role("owner", 4)
    hub = LocalHub(members, faults=[Fault(role=late, at=0, harm=Harm.DROP, way=Way.REQUEST)])
    seen: list[bool] = []
    scheme.coordinate(
        hub, start, agreement, coins=COINS.child("late server"),
        watch=lambda round, found, model: seen.append(late in found.survivors),
    )  # fmt: skip
    assert seen == [False, False, True, True]
