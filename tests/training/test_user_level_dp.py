"""Participant-level differential privacy: what is clipped, drawn and added, what is claimed, and what each role sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from tacit.core.claims import Basis, PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import ConfigError, Diverged, TacitWarning, TooFewParties
from tacit.core.wire import Array, Message, decode, encode
from tacit.dp.accounting import Accountant
from tacit.dp.mechanisms import gaussian_epsilon
from tacit.nn.federated import Task, honest_work
from tacit.nn.local_work import Share, parameters_of
from tacit.nn.updates import LocalUpdate, flattened
from tacit.parties.links.local import LocalHub
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.runs import Run
from tacit.parties.seats import Seat
from tacit.parties.views import DIGEST, FULL
from tacit.training.plain import FederatedAveraging
from tacit.training.user_level_dp import UserLevelDP, clipped

PLAIN = UserLevelDP(rounds=3, local_steps=2, batch_size=2, clip=1e6, noise_multiplier=0.0)


def coins() -> Coins:
    return Coins.from_seed(b"user-level")


def weights(run: Run[Any]) -> Any:
    return flattened(parameters_of(run.output.value))


def claim_of(scheme: UserLevelDP, participants: int = 100, coordinates: int = 1000) -> PrivacyLoss:
    (claim, *_) = scheme.claims(participants, coordinates)
    assert isinstance(claim.value, PrivacyLoss)
    return claim.value


# --- what a round does


def test_without_noise_and_with_a_wide_clip_it_is_federated_averaging(task: Task) -> None:
    usual = FederatedAveraging(rounds=3, local_steps=2, batch_size=2).train(task, coins=coins())
    np.testing.assert_allclose(weights(PLAIN.train(task, coins=coins())), weights(usual), atol=1e-6)


def test_every_update_is_clipped_as_one_vector_by_its_owner(task: Task) -> None:
    scheme = replace(PLAIN, clip=0.01, rounds=1)
    run = scheme.train(task, coins=coins(), recording=FULL)
    honest = honest_work(task, Share.CHANGE, batch_size=2, local_steps=2, learning_rate=0.1)
    start = parameters_of(task.start)
    for update in scheme.observe(run.views[SERVER], SERVER).updates:
        assert update.sender is not None
        vector, full = (
            flattened(update.arrays),
            flattened(honest[update.sender].update(start, 0).arrays),
        )
        assert np.linalg.norm(full) > 0.02
        np.testing.assert_allclose(vector, full * (0.01 / np.linalg.norm(full)), rtol=1e-5)


@dataclass
class Loud:
    """Work whose update is far too large, or no number."""

    size: float

    def update(self, model: Any, round: int) -> LocalUpdate:
        return LocalUpdate(
            arrays=tuple(np.full(a.shape, self.size, np.float32) for a in model), examples=4
        )


class Louder:
    """A member that does not even clip."""

    def __init__(self, size: float) -> None:
        self.work = Loud(size)

    def handle(self, request: Message) -> Message:
        if request.tag != "round":
            return Message("thanks")
        update = self.work.update(request.arrays("model"), 0)
        return Message("update", update=update.arrays, examples=4)

    def export(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("size", [1e6, math.inf, math.nan])
def test_the_server_clips_again_and_takes_what_is_no_number_for_nothing(
    size: float, task: Task
) -> None:
    scheme = replace(PLAIN, clip=0.3, rounds=1)
    members = {**scheme.members_of(task, Seat(coins=coins())), Role("owner", 1): Louder(size)}
    run = scheme.run(LocalHub(members), task, Seat(coins=coins()))
    moved = np.linalg.norm(weights(run) - flattened(parameters_of(task.start)))
    assert moved <= 0.3 * 1.0001, "the mean of three clipped changes"


def test_an_owner_whose_training_diverges_sends_nothing_and_no_error(task: Task) -> None:
    who = Role("owner", 0)

    class Broken:
        def update(self, model: Any, round: int) -> LocalUpdate:
            raise Diverged("a secret")

    for broken in (Broken(), Loud(math.nan)):
        scheme = replace(PLAIN, rounds=2)
        told = replace(task, instead={who: lambda honest, one=broken: one})  # type: ignore[misc]
        run = scheme.train(told, coins=coins(), recording=FULL)
        sent = [u for u in scheme.observe(run.views[SERVER], SERVER).updates if u.sender == who]
        assert len(sent) == 2 and not any(flattened(u.arrays).any() for u in sent)


def test_the_noise_on_the_mean_has_the_deviation_that_is_claimed(task: Task) -> None:
    scheme = replace(PLAIN, clip=0.5, noise_multiplier=2.0, rounds=40, learning_rate=1e-30)
    run = scheme.train(task, coins=coins(), recording=FULL)
    models = dict(scheme.observe(run.views[Role("owner", 0)], Role("owner", 0)).outputs)
    steps = [flattened(models[r + 1]) - flattened(models[r]) for r in range(40)]
    drawn = np.concatenate(steps)
    assert drawn.size > 9000  # so that 5 % are over 6 standard errors
    np.testing.assert_allclose(drawn.std(), 2.0 * 0.5 / 3, rtol=0.05)
    apart = np.corrcoef(steps[0], steps[1])[0, 1]
    assert abs(apart) < 0.35, "fresh noise in each round"


def test_each_takes_part_on_its_own_with_the_probability_that_is_accounted(task: Task) -> None:
    scheme = replace(PLAIN, sampled=1, rounds=300, local_steps=1, learning_rate=1e-6)
    run = scheme.train(task, coins=coins(), recording=FULL)
    took = np.zeros((300, 3))
    for update in scheme.observe(run.views[SERVER], SERVER).updates:
        assert update.sender is not None
        took[update.round, update.sender.index] += 1
    assert took.max() == 1
    # 900 draws of 1/3 each: 5 deviations on either side; that lots vary and may be empty tells Poisson from a fixed number
    assert abs(took.sum() - 300) < 5 * math.sqrt(900 * 2 / 9)
    sizes = np.bincount(took.sum(1).astype(int), minlength=4)
    assert np.all(np.abs(sizes - 300 * np.array([8, 12, 6, 1]) / 27) < 5 * np.sqrt(300 / 4))


def test_an_empty_round_is_noise_alone_over_the_expected_number(task: Task) -> None:
    scheme = replace(PLAIN, sampled=1, rounds=1, clip=1.0, noise_multiplier=1.0)
    for seed in range(40):
        drawn = Coins.from_seed(f"empty {seed}".encode())
        run = scheme.train(task, coins=drawn, recording=FULL)
        if not scheme.observe(run.views[SERVER], SERVER).updates:
            moved = weights(run) - flattened(parameters_of(task.start))
            np.testing.assert_allclose(moved.std(), 1.0, rtol=0.3)
            return
    pytest.fail("no empty round in 40, which happens once in a million")


# --- what is claimed


def test_the_claim_names_participants_and_composes_all_rounds() -> None:
    loss = claim_of(UserLevelDP(rounds=50, noise_multiplier=5.0))
    assert loss.unit == "participant" and "one participant's data added or" in loss.neighbouring
    assert "50 releases" in loss.composed
    # all take part: one Gaussian mechanism
    np.testing.assert_allclose(loss.epsilon, gaussian_epsilon(math.sqrt(50) / 5, 1e-5), rtol=1e-2)


def test_sampling_amplifies_and_every_accountant_bounds() -> None:
    whole = claim_of(UserLevelDP(noise_multiplier=2.0)).epsilon
    drawn = [claim_of(UserLevelDP(noise_multiplier=2.0, sampled=10, accountant=a)).epsilon for a in Accountant]  # fmt: skip
    assert max(drawn) < whole
    by = dict(zip(Accountant, drawn, strict=True))
    assert by[Accountant.PLD] <= by[Accountant.RDP] <= by[Accountant.MOMENTS]


def test_epsilon_is_met_and_hardly_undercut() -> None:
    for sampled, accountant in ((None, Accountant.PLD), (10, Accountant.RDP)):
        scheme = UserLevelDP(epsilon=3.0, sampled=sampled, accountant=accountant)
        assert 2.99 < claim_of(scheme).epsilon <= 3.0
        assert claim_of(scheme).delta == pytest.approx(1e-5, rel=1e-3)


def test_a_control_claims_nothing(task: Task) -> None:
    broken = UserLevelDP(epsilon=3.0).sabotaged()
    first, _ = broken.claims(10, 100)
    assert first.basis is Basis.PROVED and isinstance(first.value, PrivacyLoss)
    assert math.isinf(first.value.epsilon)
    assert replace(broken, rounds=1).train(task, coins=coins()).seeded


def test_noise_that_is_too_little_for_any_statement_states_none() -> None:
    """From where exp(epsilon) times the distance of a draw from its law is no part of delta any more."""
    little = UserLevelDP(rounds=100, noise_multiplier=0.5, accountant=Accountant.RDP)
    first, _ = little.claims(10, 100_000)
    assert isinstance(first.value, PrivacyLoss) and math.isinf(first.value.epsilon)
    assert "not bounded" in first.statement
    second, _ = replace(little, noise_multiplier=2.0).claims(10, 100_000)
    assert isinstance(second.value, PrivacyLoss) and second.value.epsilon < 60
    assert second.basis is Basis.ACCOUNTED and second.value.delta == pytest.approx(1e-5, rel=1e-3)


def test_a_large_delta_gets_a_word(task: Task) -> None:
    with pytest.warns(TacitWarning, match="delta = 0.5"):
        replace(PLAIN, delta=0.5, noise_multiplier=9.0, clip=1.0).train(task, coins=coins())


# --- what is seen


def test_the_server_sees_updates_and_an_owner_the_others_noisy_mean(task: Task) -> None:
    run = PLAIN.train(task, coins=coins(), recording=FULL)
    server = PLAIN.observe(run.views[SERVER], SERVER)
    assert sorted({u.sender for u in server.updates if u.sender}) == list(owners(3))
    assert not any(u.noisy for u in server.updates)
    mine = Role("owner", 0)
    seen = PLAIN.observe(run.views[mine], mine)
    assert not seen.updates and len(seen.outputs) == 4 and len(seen.aggregates) == 3
    for mean in seen.aggregates:
        others = [flattened(u.arrays) for u in server.updates if u.round == mean.round and u.sender != mine]  # fmt: skip
        np.testing.assert_allclose(flattened(mean.arrays), np.mean(others, axis=0), atol=1e-5)
        assert mean.senders == 2 and not mean.noisy
    noisy = replace(PLAIN, noise_multiplier=1.0, clip=1.0)
    seen = noisy.observe(noisy.train(task, coins=coins(), recording=FULL).views[mine], mine)
    assert all(u.noisy for u in seen.aggregates)


def test_the_servers_view_has_the_same_shape_whatever_the_others_records_are(task: Task) -> None:
    (inputs, labels) = task.shards[1]  # type: ignore[misc]
    other = replace(task, shards=(task.shards[0], (1 - inputs, (labels + 1) % 4), task.shards[2]))
    scheme = replace(PLAIN, sampled=2, noise_multiplier=1.0, clip=1.0, rounds=5)
    shapes = [
        scheme.train(t, coins=coins(), recording=DIGEST).views[SERVER].shape for t in (task, other)
    ]
    assert shapes[0] == shapes[1]


# --- killed and gone on with


class Killed(Exception):
    """The coordinator's end."""


@dataclass
class Dying:
    """Keeps states as bytes, and kills the coordinator after a number of them."""

    lives: int
    state: bytes | None = field(default=None)

    def load(self, cost: CostMeter) -> Message | None:
        del cost
        return None if self.state is None else decode(self.state)

    def save(self, state: Message, cost: CostMeter) -> None:
        del cost
        self.state = encode(state)
        self.lives -= 1
        if self.lives == 0:
            raise Killed


def test_a_coordinator_that_is_killed_anywhere_goes_on_to_the_same_model(task: Task) -> None:
    scheme = replace(PLAIN, sampled=2, noise_multiplier=1.0, clip=1.0)
    seat = lambda: Seat(coins=coins())  # noqa: E731
    whole = weights(scheme.train(task, coins=coins()))
    for lives in range(1, 7):
        hub = LocalHub(scheme.members_of(task, seat()))
        kept = Dying(lives)
        with pytest.raises(Killed):
            scheme.run(hub, task, seat(), checkpoint=kept)
        np.testing.assert_array_equal(
            weights(scheme.run(hub, task, seat(), checkpoint=kept)), whole
        )


def test_an_owner_that_does_not_answer_ends_the_round(task: Task) -> None:
    class Gone(Louder):
        def handle(self, request: Message) -> Message:
            raise Diverged("no")

    members = {**PLAIN.members_of(task, Seat(coins=coins())), Role("owner", 1): Gone(1.0)}
    with pytest.raises((TooFewParties, Diverged), match="owner 1"):
        PLAIN.run(LocalHub(members), task, Seat(coins=coins()))


# --- bad input


def test_settings_out_of_range_are_refused(task: Task) -> None:
    wrong: list[dict[str, Any]] = [
        {"rounds": 0}, {"clip": 0.0}, {"clip": math.nan}, {"noise_multiplier": -1.0}, {"delta": 0.0},
        {"epsilon": 0.0}, {"epsilon": math.inf}, {"sampled": 0}, {"batch_size": 0}, {"deadline": 0.0},
    ]  # fmt: skip
    for one in wrong:
        with pytest.raises(ConfigError, match=r"expected"):
            UserLevelDP(**one)
    with pytest.raises(ConfigError, match="4 owners a round on average wanted, there are 3"):
        replace(PLAIN, sampled=4).train(task, coins=coins())
    with pytest.raises(ConfigError, match="out of reach"):
        UserLevelDP(epsilon=1e-9, accountant=Accountant.MOMENTS).release(10, 100)


def test_clipping_shortens_long_vectors_alone() -> None:
    arrays: tuple[Array, ...] = (np.array([3.0], np.float32), np.array([[4.0]], np.float32))
    assert [float(a.squeeze()) for a in clipped(arrays, 10)] == [3.0, 4.0]
    np.testing.assert_allclose(
        [float(a.squeeze()) for a in clipped(arrays, 1)], [0.6, 0.8], rtol=1e-6
    )
    with pytest.raises(Diverged):
        clipped((np.array([np.inf], np.float32),), 1)
