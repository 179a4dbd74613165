"""The baselines and the first protection: what they compute, who sees what, and what a canary shows."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tacit.core.claims import PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    DataError,
    Diverged,
    ProtocolError,
    TooFewParties,
    WireError,
)
from tacit.core.wire import Message
from tacit.dp.mechanisms import Noise, NoisyVector
from tacit.nn.federated import FederatedMember, Rounds, Task, honest_work, train_federated
from tacit.nn.local_work import Share, accuracy, load_parameters, parameters_of
from tacit.nn.updates import LocalUpdate
from tacit.parties.faults import Fault, Harm
from tacit.parties.links.local import LocalHub
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.views import DIGEST, FULL
from tacit.training.local_dp import LocalDP, NoisyWork
from tacit.training.plain import Centralised, FederatedAveraging, FederatedSGD

COINS = Coins.from_seed(b"training tests")
ALL = (
    Centralised(epochs=5, batch_size=4),
    FederatedSGD(rounds=6, batch_size=2),
    FederatedAveraging(rounds=3, local_steps=2, batch_size=2),
    LocalDP(rounds=6, batch_size=2),
)


def test_federated_sgd_equals_sgd_on_the_union_of_the_batches(task: Task) -> None:
    run = FederatedSGD(rounds=5, batch_size=2, learning_rate=0.5).train(task, coins=COINS)
    reference = copy.deepcopy(task.start)
    work = honest_work(task, Share.GRADIENT, batch_size=2)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.5)
    for round in range(5):
        inputs = torch.cat([task.shards[r.index][0][work[r].records(round)] for r in work])
        labels = torch.cat([task.shards[r.index][1][work[r].records(round)] for r in work])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(reference(inputs), labels).backward()
        optimiser.step()
    for a, b in zip(parameters_of(run.output.value), parameters_of(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_federated_averaging_with_one_step_equals_federated_sgd(task: Task) -> None:
    average = FederatedAveraging(rounds=4, local_steps=1, batch_size=2, learning_rate=0.3)
    sgd = FederatedSGD(rounds=4, batch_size=2, learning_rate=0.3)
    models = [p.train(task, coins=COINS).output.value for p in (average, sgd)]
    for a, b in zip(*map(parameters_of, models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "scheme",
    [
        Centralised(epochs=60, batch_size=4),
        FederatedSGD(rounds=200),
        FederatedAveraging(rounds=40, batch_size=2),
        LocalDP(rounds=300, noise_multiplier=0.01, clip=2.0),
    ],
)
def test_every_scheme_learns(scheme: FederatedSGD, task: Task) -> None:
    inputs, labels = (torch.cat(part) for part in zip(*task.shards, strict=True))
    model = scheme.train(task, coins=COINS).output.value
    assert accuracy(model, inputs, labels) >= 0.9 > accuracy(task.start, inputs, labels)


def test_local_dp_without_noise_and_with_a_wide_clip_is_federated_sgd(task: Task) -> None:
    plain = FederatedSGD(rounds=5, batch_size=2).train(task, coins=COINS).output.value
    wide = LocalDP(rounds=5, batch_size=2, clip=1e6).sabotaged()
    for a, b in zip(
        parameters_of(plain), parameters_of(wide.train(task, coins=COINS).output.value), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_what_leaves_an_owner_under_local_dp_is_clipped_in_its_norm(task: Task) -> None:
    for noise, order in ((Noise.GAUSSIAN, 2), (Noise.LAPLACE, 1)):
        scheme = LocalDP(rounds=3, clip=0.05, noise_multiplier=0.0, noise=noise)
        run = scheme.train(task, coins=COINS, recording=FULL)
        for update in scheme.observe(run.views[SERVER], SERVER).updates:
            flat = np.concatenate([a.reshape(-1) for a in update.arrays])
            assert np.linalg.norm(flat, order) <= 0.05 * (1 + 1e-5)


def test_the_noise_of_local_dp_has_the_claimed_deviation_and_differs_everywhere(task: Task) -> None:
    scheme = LocalDP(rounds=30, clip=0.5, noise_multiplier=0.7)
    runs = [
        s.train(task, coins=Coins.from_seed(b"n"), recording=FULL)
        for s in (scheme, scheme.sabotaged())
    ]
    first = [
        s.observe(r.views[SERVER], SERVER).updates[:3]
        for s, r in zip((scheme, scheme.sabotaged()), runs, strict=True)
    ]
    noise = [
        np.concatenate(
            [(a - b).reshape(-1) for a, b in zip(noisy.arrays, clear.arrays, strict=True)]
        )
        for noisy, clear in zip(*first, strict=True)
    ]
    # 3 x 256 coordinates of N(0, 0.7^2): the deviation is within 15 % but for 1 run in 10^8
    assert abs(np.std(np.concatenate(noise)) / 0.7 - 1) < 0.15
    assert not np.allclose(noise[0], noise[1])
    assert runs[0].seeded


def test_a_gradient_that_is_not_finite_is_released_as_noise_and_not_told(task: Task) -> None:
    class Broken:
        def update(self, model: object, round: int) -> LocalUpdate:
            raise Diverged("loss nan")

    mechanism = NoisyVector(clip=1.0, noise_multiplier=0.5)
    work = NoisyWork(work=Broken(), mechanism=mechanism, examples=2, coins=Coins.from_seed(b"n"))
    update = work.update(parameters_of(task.start), 0)
    assert update.examples == 2 and all(np.isfinite(a).all() for a in update.arrays)
    assert 0.5 < np.std(np.concatenate([a.reshape(-1) for a in update.arrays])) < 1.5


def test_each_round_has_noise_of_its_own_however_often_a_member_is_restored(task: Task) -> None:
    honest = honest_work(task, Share.GRADIENT, batch_size=2)[Role("owner", 0)]
    mechanism = NoisyVector(clip=1e-9, noise_multiplier=1e9)

    def noise(round: int) -> np.ndarray:
        work = NoisyWork(work=honest, mechanism=mechanism, examples=2, coins=Coins.from_seed(b"n"))
        return work.update(parameters_of(task.start), round).arrays[0]

    assert not np.allclose(noise(0), noise(1), atol=0.1)


def test_the_claim_of_local_dp_names_unit_relation_accountant_and_the_composed_total() -> None:
    value = LocalDP(rounds=100, noise_multiplier=1.0).claims()[0].value
    assert isinstance(value, PrivacyLoss)
    assert (value.unit, value.delta) == ("participant", 1e-5)
    assert "replaced" in value.neighbouring and "100 gaussian releases" in value.composed
    assert 50 < value.epsilon < 150
    laplace = LocalDP(rounds=100, noise_multiplier=2.0, noise=Noise.LAPLACE).claims()[0].value
    assert isinstance(laplace, PrivacyLoss) and laplace.epsilon == 50.0
    sabotaged = LocalDP().sabotaged().claims()[0].value
    assert isinstance(sabotaged, PrivacyLoss) and sabotaged.epsilon == math.inf


# --- who sees what


def test_the_server_observes_every_update_beside_the_model_that_it_was_made_from(
    task: Task,
) -> None:
    scheme = FederatedSGD(rounds=3, batch_size=2)
    run = scheme.train(task, coins=COINS, recording=FULL)
    seen = scheme.observe(run.views[SERVER], SERVER)
    work = honest_work(task, Share.GRADIENT, batch_size=2)
    assert [(u.sender, u.round) for u in seen.updates] == [
        (role, round) for round in range(3) for role in owners(3)
    ]
    for update in seen.updates:
        again = work[update.sender].update(update.model, update.round)
        for a, b in zip(update.arrays, again.arrays, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "scheme",
    [
        FederatedSGD(rounds=3, batch_size=2),
        FederatedAveraging(rounds=3, batch_size=2, local_steps=2),
    ],
)
def test_a_participant_observes_the_mean_update_of_the_others(
    scheme: FederatedSGD, task: Task
) -> None:
    run = scheme.train(task, coins=COINS, recording=FULL)
    me = Role("owner", 1)
    at_me, at_server = (scheme.observe(run.views[role], role) for role in (me, SERVER))
    assert not at_me.updates and len(at_me.outputs) == 4
    assert [u.round for u in at_me.aggregates] == [0, 1, 2]
    for aggregate in at_me.aggregates:
        others = [u for u in at_server.updates if u.round == aggregate.round and u.sender != me]
        assert aggregate.senders == len(others) == 2
        for part, array in enumerate(aggregate.arrays):
            expected = np.mean([u.arrays[part] for u in others], axis=0)
            np.testing.assert_allclose(array, expected, atol=2e-5)


def test_a_participant_takes_its_own_update_away_rightly_where_replies_are_lost(task: Task) -> None:
    like = parameters_of(task.start)
    work = honest_work(task, Share.GRADIENT, batch_size=2)
    faults = (Fault(role=Role("owner", 2), at=1, harm=Harm.DROP),)
    members = {r: FederatedMember(w, like, rounds=3) for r, w in work.items()}
    hub = LocalHub(members, faults=faults, recording=FULL)
    train_federated(hub, task.start, Rounds(rounds=3, rate=-0.3, at_least=2))
    scheme = FederatedSGD(rounds=3, batch_size=2, learning_rate=0.3)
    aggregates = scheme.observe(hub.views[Role("owner", 0)], Role("owner", 0)).aggregates
    assert [a.senders for a in aggregates] == [2, 1, 2]
    at_server = scheme.observe(hub.views[SERVER], SERVER).updates
    [other] = [u for u in at_server if u.round == 1 and u.sender == Role("owner", 1)]
    for a, b in zip(aggregates[1].arrays, other.arrays, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_centralised_training_shows_records_to_the_server_and_the_model_to_owners(
    task: Task,
) -> None:
    scheme = Centralised(epochs=2, batch_size=4)
    run = scheme.train(task, coins=COINS, recording=FULL)
    records = scheme.observe(run.views[SERVER], SERVER).intermediates
    np.testing.assert_array_equal(records[2][1], task.shards[2][0].numpy())
    at_owner = scheme.observe(run.views[Role("owner", 0)], Role("owner", 0))
    assert len(at_owner.outputs) == 1 and not at_owner.intermediates and not at_owner.aggregates


def _views_with_canary(scheme: FederatedSGD, task: Task, victim: int) -> dict[Role, bool]:
    """In which roles' views a canary planted in one owner's records is found, in the clear."""
    canary = torch.from_numpy(np.array(Coins.from_seed(b"canary").unit((1, 4, 4)), np.float32))
    shards = list(task.shards)
    inputs = shards[victim][0].clone()
    inputs[:] = canary  # every record, so that it is behind each update
    shards[victim] = (inputs, shards[victim][1])
    run = scheme.train(replace(task, shards=tuple(shards)), coins=COINS, recording=FULL)
    # Eight values in a row: an update cannot hold them by accident, and a scaled copy is not the clear.
    for width in ("<f4", "<f8"):
        pattern = canary.numpy().astype(width).tobytes()[: 8 * np.dtype(width).itemsize]
        found = {
            role: any(pattern in f.data for f in view.frames()) for role, view in run.views.items()
        }
        if any(found.values()):
            return found
    return found


@pytest.mark.parametrize("scheme", ALL, ids=lambda s: type(s).__name__)
def test_a_canary_is_found_in_no_view_where_the_claim_says_so(
    scheme: FederatedSGD, task: Task
) -> None:
    found = _views_with_canary(scheme, task, victim=1)
    run = scheme.train(task, coins=COINS)
    hidden = {kind for claim in run.claims for kind in claim.hides}
    assert hidden, "every scheme here claims something about records in the clear"
    for role, here in found.items():
        if role.kind in hidden:
            assert not here, f"the canary of owner 1 stands in the view of {role}"


def test_the_canary_test_can_fail_it_finds_the_canary_at_the_central_server(task: Task) -> None:
    found = _views_with_canary(ALL[0], task, victim=1)
    assert [role for role, here in found.items() if here] == [SERVER]


@pytest.mark.parametrize("scheme", ALL[1:], ids=lambda s: type(s).__name__)
def test_another_owners_records_change_neither_number_nor_size_of_messages(
    scheme: FederatedSGD, task: Task
) -> None:
    shards = list(task.shards)
    shards[2] = (1 - shards[2][0], shards[2][1].flip(0))
    other = replace(task, shards=tuple(shards))
    runs = [scheme.train(t, coins=Coins.from_seed(b"s"), recording=DIGEST) for t in (task, other)]
    for role in runs[0].views:
        assert runs[0].views[role].shape == runs[1].views[role].shape
    assert runs[0].views[SERVER].digest != runs[1].views[SERVER].digest


def test_the_same_seeds_give_the_same_transcript_and_fresh_coins_another(task: Task) -> None:
    scheme = ALL[3]
    digests = [
        scheme.train(task, coins=coins, recording=DIGEST).views[SERVER].digest
        for coins in (Coins.from_seed(b"a"), Coins.from_seed(b"a"), Coins(), Coins())
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


# --- cost, members, faults


@pytest.mark.parametrize("rounds", [1, 4])
def test_the_stated_cost_is_what_the_meter_says(rounds: int, task: Task) -> None:
    """`tacit.nn.federated`: a round is two messages in a chain and 2 * members * (4 * parameters + about 100) bytes."""
    run = FederatedSGD(rounds=rounds).train(task, coins=COINS)
    parameters = sum(p.numel() for p in task.start.parameters())
    total = run.cost.total()
    assert run.cost.rounds == 2 * (rounds + 1)
    assert total.messages == 2 * 3 * (rounds + 1)
    stated = 2 * 3 * rounds * (4 * parameters + 100)
    finishing = 3 * (4 * parameters + 100)
    assert abs(total.bytes_sent - stated - finishing) < 0.1 * stated
    assert total.bytes_sent == total.bytes_received


def test_a_member_answers_a_round_once_and_refuses_other_shapes(task: Task) -> None:
    like = parameters_of(task.start)
    member = FederatedMember(
        honest_work(task, Share.GRADIENT, batch_size=1)[Role("owner", 0)], like, rounds=5
    )
    request = Message("round", model=like, round=3, counted=0, examples=0)
    assert member.handle(request).tag == "update"
    with pytest.raises(ProtocolError, match="answered before"):
        member.handle(request)
    with pytest.raises(BudgetExhausted, match="round 5 asked, 5 rounds were agreed on"):
        member.handle(Message("round", model=like, round=5, counted=0, examples=0))
    with pytest.raises(Diverged, match="model of round 4 is not finite"):
        broken = [np.full_like(a, np.nan) for a in like]
        member.handle(Message("round", model=broken, round=4, counted=0, examples=0))
    with pytest.raises(ProtocolError, match="expected 'round'"):
        member.handle(Message("other", model=like))
    with pytest.raises(WireError, match="expected arrays"):
        member.handle(Message("round", model=like[:1], round=4, counted=0, examples=0))


def test_a_member_replaced_by_its_restored_self_in_mid_training_changes_nothing(task: Task) -> None:
    like, role = parameters_of(task.start), Role("owner", 1)

    def members() -> dict[Role, FederatedMember]:
        work = honest_work(task, Share.GRADIENT, batch_size=2)
        return {r: FederatedMember(w, like, rounds=4) for r, w in work.items()}

    undisturbed = train_federated(LocalHub(members()), task.start, Rounds(rounds=4, rate=-0.3))
    before, after = members(), members()[role]
    hub = LocalHub(before)

    def restart(done: int, total: int) -> None:
        if done == 2:
            after.restore(before[role].export())
            hub.replace(role, after)

    again = train_federated(hub, task.start, Rounds(rounds=4, rate=-0.3), progress=restart)
    for a, b in zip(undisturbed, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ProtocolError, match="answered before"):  # the restored one did the last two
        after.handle(Message("round", model=like, round=3, counted=0, examples=0))


def test_a_member_that_dies_ends_training_that_needs_all(task: Task) -> None:
    like = parameters_of(task.start)
    work = honest_work(task, Share.GRADIENT, batch_size=2)
    faults = (Fault(role=Role("owner", 1), at=2, harm=Harm.DIE),)
    hub = LocalHub({r: FederatedMember(w, like, rounds=4) for r, w in work.items()}, faults=faults)
    with pytest.raises(TooFewParties, match="owner 1: no reply in time"):
        train_federated(hub, task.start, Rounds(rounds=4, rate=-0.3))


def test_training_goes_on_without_a_dropped_member_where_fewer_are_allowed(task: Task) -> None:
    like = parameters_of(task.start)
    work = honest_work(task, Share.GRADIENT, batch_size=2)
    faults = (Fault(role=Role("owner", 2), at=1, harm=Harm.DIE),)
    hub = LocalHub({r: FederatedMember(w, like, rounds=4) for r, w in work.items()}, faults=faults)
    model = train_federated(hub, task.start, Rounds(rounds=4, rate=-0.3, at_least=2))
    trained = copy.deepcopy(task.start)
    load_parameters(trained, model)
    assert not np.allclose(model[0], like[0])


@pytest.mark.parametrize("scheme", ALL, ids=lambda s: type(s).__name__)
def test_records_that_are_not_finite_stop_training_and_name_the_owner(
    scheme: FederatedSGD, task: Task
) -> None:
    shards = list(task.shards)
    shards[1] = (torch.full_like(shards[1][0], float("nan")), shards[1][1])
    with pytest.raises(DataError, match=r"records of owner 1 .* not finite"):
        scheme.train(replace(task, shards=tuple(shards)), coins=COINS)


def test_a_learning_rate_that_diverges_stops_with_owner_round_and_epoch(task: Task) -> None:
    with pytest.raises(Diverged, match=r"owner \d+.*round \d+ \(epoch \d+"):
        FederatedSGD(rounds=200, learning_rate=1e30).train(task, coins=COINS)
