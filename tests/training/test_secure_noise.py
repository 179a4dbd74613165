"""Noise shared out inside secure aggregation: the opened sum is the plain sum with every share of the noise, and no more is
claimed than the fewest shares give.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from tests.conftest import small_task
from tests.training.test_resume import Clock, World, no_waiting_for_the_disk, same

from tacit.audit import cells
from tacit.core.claims import Basis, PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, TacitWarning, TooFewParties, UnsupportedLayer
from tacit.core.wire import Array
from tacit.dp.accounting import Accountant, Releases
from tacit.nn.federated import Task
from tacit.nn.local_work import accuracy, parameters_of
from tacit.nn.lots import LotGradients
from tacit.nn.persample import ClipRule, clipped_sum, cross_entropy
from tacit.nn.updates import LocalUpdate, flattened
from tacit.parties.faults import Fault, Harm, Way
from tacit.parties.links.local import LocalHub
from tacit.parties.neighbours import Sharing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.secure_sum.agreement import EXTRA, Adversary, Agreement, Masks
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import Aggregate, advertise_keys, aggregate, share_keys
from tacit.parties.views import FULL
from tacit.training.secure_aggregation import Federated, Graph, SecureAggregation

__all__ = ["no_waiting_for_the_disk"]  # a fixture

FALSE_ALARM = 1e-6  # of each statistical test; the seeds are fixed, so a pass stays a pass
NOISY = SecureAggregation(
    federated=Federated.SGD, rounds=3, local_steps=1, batch_size=2, learning_rate=0.3, clip=0.5,
    epsilon=8.0, delta=1e-3, accountant=Accountant.RDP,
)  # fmt: skip
VARIANTS = pytest.mark.parametrize("adversary", Adversary, ids=lambda a: a.value)


@pytest.fixture
def five() -> Task:
    return small_task(owners=5)


def coins(label: str = "noise shared out") -> Coins:
    return Coins.from_seed(label.encode())


class Fixed:
    """Work whose update is always this vector."""

    def __init__(self, vector: Array) -> None:
        self.vector = np.asarray(vector, np.float32)

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        return LocalUpdate(arrays=(self.vector,), examples=0)


def agreed(n: int, dimension: int, **changed: object) -> Agreement:
    known = {
        "participants": n, "dimension": dimension, "clip": 1.0, "bits": 8, "max_examples": 3, "records": 3 * n, "lot": n,
        "adversary": Adversary.SEMI_HONEST, "sharing": Sharing(degree=n - 1, threshold=n // 2 + 1), "noise_multiplier": 2.0,
    }  # fmt: skip
    return Agreement(**(known | changed))


def member_coins(number: int) -> Coins:
    return coins(f"member {number}")


def opened(
    agreement: Agreement, vectors: Sequence[Array], *, faults: Sequence[Fault] = (), rounds: int = 1
) -> list[Aggregate]:
    """What a server learns of members with these vectors, in each round of a session."""
    members = {
        role: SecureAggregationMember(
            Fixed(vectors[role.index]), agreement, role.index, coins=member_coins(role.index),
            rounds=rounds,
        )
        for role in owners(agreement.participants)
    }  # fmt: skip
    session = advertise_keys(LocalHub(members, faults=faults), agreement, coins=coins("session"))
    share_keys(session, round=0)
    return [
        aggregate(session, [], round=round, share_next=round + 1 < rounds)
        for round in range(rounds)
    ]


def shares(agreement: Agreement, vectors: Sequence[Array], round: int = 0) -> list[np.ndarray]:
    """Every member's integers, drawn as it draws them."""
    release = agreement.release
    return [
        release.share(
            [np.asarray(v, np.float64)], member_coins(i).child(f"rounding {round}"),
            participants=agreement.participants,
        )
        for i, v in enumerate(vectors)
    ]  # fmt: skip


# --- the opened sum


@pytest.mark.parametrize("gone", [(), (1,), (0, 3)], ids=["all", "one gone", "two gone"])
def test_the_opened_sum_is_the_plain_sum_with_all_shares_of_those_who_stayed(
    gone: tuple[int, ...],
) -> None:
    agreement = agreed(5, 40)
    generator = np.linspace(-1, 1, 200).reshape(5, 40) ** 3
    faults = [Fault(role=owners(5)[i], at=2, harm=Harm.DROP, way=Way.REQUEST) for i in gone]
    (found,) = opened(agreement, generator, faults=faults)
    left = [i for i in range(5) if i not in gone]
    assert [role.index for role in found.survivors] == left
    whole = sum(shares(agreement, generator)[i] for i in left)
    expected = (whole * agreement.release.step).astype(np.float32).astype(np.float64)
    assert np.array_equal(found.mean, expected / agreement.lot)
    noiseless = sum(np.rint(generator[i] / agreement.release.step) for i in left)
    assert (whole != noiseless).any()
    assert found.examples == len(left) and found.clipped == 0


def test_the_noise_in_the_opened_sums_has_the_deviation_of_the_shares_that_are_in_it() -> None:
    d, rounds = 4000, 3
    agreement = agreed(5, d)
    vectors = np.zeros((5, d))
    vectors[2] = 0.5
    lost = [Fault(role=owners(5)[4], at=2, harm=Harm.DROP, way=Way.REQUEST)]
    for faults, part in (([], 1.0), (lost, 0.8)):
        found = opened(agreement, vectors, faults=faults, rounds=rounds)[:: rounds - 1]
        first, last = (f.mean * agreement.lot - 0.5 for f in found)
        deviation = agreement.release.deviation * math.sqrt(part)
        assert stats.kstest(first / deviation, "norm").pvalue > FALSE_ALARM
        assert (first**2).mean() / deviation**2 == pytest.approx(1, abs=5 * math.sqrt(2 / d))
        # another round has noise of its own, with everybody's share again
        assert abs(np.corrcoef(first, last)[0, 1]) < 5 / math.sqrt(d)
        full = agreement.release.deviation
        assert (last**2).mean() / full**2 == pytest.approx(1, abs=5 * math.sqrt(2 / d))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_at_the_end_of_the_ring_does_not_wrap(
    sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every member holds all its records' vectors in one coordinate, a rounding too long, and draws the largest noise."""
    agreement = agreed(3, 2, bits=22)
    most = agreement.max_examples * agreement.clip
    ends = sign * np.array([[most * (1 + 1e-6), -most * (1 + 1e-6)]] * 3)
    share = agreement.release._share(3)
    far = share.reach * sign * np.array([1, -1])
    monkeypatch.setattr(type(share), "draw", lambda self, coins, count: far.copy())
    (found,) = opened(agreement, ends)
    whole = 3 * (sign * np.array([1, -1]) * round(most / agreement.release.step) + far)
    assert np.array_equal(found.mean * agreement.lot, whole * agreement.release.step)
    top = np.abs(whole).max()
    assert top == 3 * agreement.reach  # the bound is met, and the ring is no wider than it must be
    assert 2 * top < 1 << agreement.width <= 4 * top


def test_more_records_need_more_room_and_a_modulus_that_cannot_be_is_refused() -> None:
    small, large = agreed(3, 2), agreed(3, 2, max_examples=3000, records=9000)
    step = small.release.step
    assert large.reach - small.reach == round((3000 - 3) / step)
    with pytest.raises(ConfigError, match="fewer bits"):
        agreed(3, 2, bits=39, noise_multiplier=1e-6, max_examples=1000, records=3000)


def test_values_that_are_not_finite_are_refused_by_the_member() -> None:
    agreement = agreed(3, 2)
    (found,) = opened(agreement, [[0.0, 0.0], [math.inf, 0.0], [0.0, 0.0]])
    assert [role.index for role in found.survivors] == [0, 2]
    assert "not finite" in found.missing[owners(3)[1]]


def test_what_a_member_sends_tells_nothing_of_how_many_records_are_behind() -> None:
    agreement = agreed(2, 3, sharing=Sharing(degree=1, threshold=2))
    member = SecureAggregationMember(
        Fixed(np.zeros(3)), agreement, 0, coins=member_coins(0), rounds=1
    )
    update = LocalUpdate(arrays=(np.zeros(3, np.float32),), examples=0)
    one, other = (
        member._quantised(replace(update, examples=e), coins("same")).tolist() for e in (0, 3)
    )
    assert one == other and one[-EXTRA:] == [1, 0]


@pytest.mark.parametrize(
    "other", [{"noise_multiplier": 1.0}, {"records": 16}, {"lot": 4}, {"noise_multiplier": 0.0}],
    ids=str,
)  # fmt: skip
def test_a_member_that_agreed_on_other_noise_is_left_out(other: dict[str, float]) -> None:
    agreement = agreed(5, 3)
    members = {
        role: SecureAggregationMember(
            Fixed(np.zeros(3)), replace(agreement, **other) if role.index == 1 else agreement, role.index,
            coins=member_coins(role.index), rounds=1,
        )
        for role in owners(5)
    }  # fmt: skip
    session = advertise_keys(LocalHub(members), agreement, coins=coins("session"))
    assert f"agreed on {next(iter(other))} = " in session.missing[owners(5)[1]]


# --- lots


def lots_of(task: Task, role: Role, **changed: object) -> LotGradients:
    inputs, labels = task.here()[role]
    known = {
        "module": task.start, "inputs": inputs, "labels": labels, "rule": ClipRule(bound=0.5), "lot": 10, "total": 40,
        "coins": coins("lots"),
    }  # fmt: skip
    return LotGradients(**(known | changed))


def test_every_record_joins_with_the_public_rate_on_its_own(five: Task) -> None:
    work = lots_of(five, owners(5)[0])
    drawn = np.zeros((2000, 8))
    for round in range(len(drawn)):
        drawn[round, work.records(round).numpy()] = 1
    assert drawn.mean() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / drawn.size))
    sizes = np.bincount(drawn.sum(1).astype(int), minlength=9)
    expected = stats.binom.pmf(np.arange(9), 8, 0.25) * len(drawn)
    merged = [np.append(x[:5], x[5:].sum()) for x in (sizes, expected)]
    assert stats.chisquare(*merged).pvalue > FALSE_ALARM
    each = np.corrcoef(drawn.T)
    assert np.abs(each[~np.eye(8, dtype=bool)]).max() < 5 / math.sqrt(len(drawn))


def test_the_update_is_the_sum_of_the_lots_clipped_gradients(five: Task) -> None:
    work, start = lots_of(five, owners(5)[1]), parameters_of(five.start)
    again = lots_of(five, owners(5)[1])
    sizes = set()
    for round in range(6):
        rows = work.records(round)
        sizes.add(len(rows))
        update = work.update(start, round)
        each = [
            clipped_sum(five.start, cross_entropy, work.inputs[i : i + 1], work.labels[i : i + 1], work.rule)
            for i in rows.tolist()
        ]  # fmt: skip
        plain = sum((flattened([g.numpy() for g in one.gradients]) for one in each), np.float32(0))
        assert np.allclose(flattened(update.arrays), plain, atol=1e-6)
        assert np.linalg.norm(flattened(update.arrays)) <= 0.5 * len(rows) + 1e-5
        # the same round, asked again, gives the same to the bit
        assert np.array_equal(
            flattened(again.update(start, round).arrays), flattened(update.arrays)
        )
    assert len(sizes) > 2


def test_an_empty_lot_gives_zeros_and_a_lot_of_all_gives_all(five: Task) -> None:
    none = lots_of(five, owners(5)[0], lot=1, total=10**7)
    assert len(none.records(0)) == 0
    assert not flattened(none.update(parameters_of(five.start), 0).arrays).any()
    assert lots_of(five, owners(5)[0], lot=40).records(0).tolist() == list(range(8))


def test_gradients_that_are_not_finite_add_nothing_and_the_owner_alone_is_told(five: Task) -> None:
    inputs = five.here()[owners(5)[0]][0].clone()
    inputs[3] = math.nan
    work = lots_of(five, owners(5)[0], inputs=inputs, lot=40)
    with pytest.warns(TacitWarning, match="1 gradients of 8 were not finite"):
        update = work.update(parameters_of(five.start), 0)
    assert np.isfinite(flattened(update.arrays)).all()


def test_a_frozen_parameter_is_refused(five: Task) -> None:
    module = replace(five).start
    next(module.parameters()).requires_grad_(False)
    with pytest.raises(UnsupportedLayer, match="frozen"):
        lots_of(five, owners(5)[0], module=module)


# --- what is claimed


def private_claim(scheme: SecureAggregation, agreement: Agreement) -> PrivacyLoss:
    (claim,) = (c for c in scheme.claims(agreement) if c.basis is Basis.ACCOUNTED)
    assert isinstance(claim.value, PrivacyLoss)
    return claim.value


def recomputed(scheme: SecureAggregation, agreement: Agreement, present: int) -> float:
    """Epsilon where a sum has so many shares of noise that the server does not know."""
    n = agreement.participants
    noise = agreement.release.accounted(participants=n, missing=n - present).noise_multiplier
    release = Releases(agreement.lot / agreement.records, noise, scheme.rounds)
    return scheme.accountant.epsilon([release], scheme.delta * (1 - 1e-6))


@pytest.mark.parametrize("accountant", Accountant, ids=lambda a: a.value)
def test_the_claim_is_that_of_the_fewest_shares_and_a_share_less_would_break_it(
    accountant: Accountant,
) -> None:
    scheme = replace(NOISY, rounds=50, accountant=accountant, bits=12)
    agreement = scheme.agree(10, dimension=2000, max_examples=40, records=400)
    assert agreement.least_sum == agreement.sharing.threshold == 7 and agreement.lot == 20
    loss = private_claim(scheme, agreement)
    assert loss.epsilon == recomputed(scheme, agreement, 6)  # one of the seven tells the server
    assert 0.999 * scheme.epsilon < loss.epsilon <= scheme.epsilon and loss.delta == scheme.delta
    assert recomputed(scheme, agreement, 5) > 1.05 * scheme.epsilon
    assert "50 releases" in loss.composed and "rate 0.05" in loss.composed


def test_more_who_may_drop_out_or_collude_need_more_noise() -> None:
    def noise(**changed: object) -> float:
        scheme = replace(NOISY, **changed)
        agreement = scheme.agree(10, dimension=100, max_examples=8, records=80)
        assert private_claim(scheme, agreement).epsilon <= 8
        return agreement.noise_multiplier

    calm, usual, few = noise(dropped=0.0), noise(), noise(corrupted=0.3)
    assert usual / calm == pytest.approx(math.sqrt(9 / 6), rel=1e-3)
    assert few / usual == pytest.approx(math.sqrt(6 / 4), rel=1e-3)
    assert noise(threshold=6) / usual == pytest.approx(math.sqrt(6 / 5), rel=1e-3)
    assert noise(dropped=0.4, corrupted=0.1) == noise(threshold=6)


def test_the_regular_graph_and_the_active_variant_have_their_own_fewest_shares() -> None:
    regular = replace(NOISY, graph=Graph.REGULAR, dropped=0.2)
    agreement = regular.agree(1000, dimension=10, max_examples=8, records=8000)
    assert agreement.least_sum == 800 and agreement.sharing.degree < 999
    loss = private_claim(regular, agreement)
    assert loss.epsilon == recomputed(regular, agreement, 700) <= 8
    active = replace(NOISY, adversary=Adversary.ACTIVE, dropped=0.0)
    agreement = active.agree(10, dimension=10, max_examples=8, records=80)
    assert agreement.least_sum == 10 and private_claim(active, agreement).epsilon == recomputed(
        active, agreement, 9
    )


def test_the_accounted_claim_names_what_it_rests_on() -> None:
    agreement = NOISY.agree(10, dimension=10, max_examples=8, records=80)
    (claim,) = (c for c in NOISY.claims(agreement) if c.basis is Basis.ACCOUNTED)
    said = " ".join(claim.assumes)
    needed = "6 of 10 shares|at most 1 of 10 owners|enrolled anew|size of a lot|of the exact one"
    assert all(word in said for word in needed.split("|"))
    statements = " ".join(c.statement for c in NOISY.claims(agreement))
    assert "not bounded" not in statements and "examples in all" not in statements


def test_noise_that_bounds_nothing_is_not_claimed_to() -> None:
    scheme = replace(NOISY, epsilon=None, noise_multiplier=1e-3)
    agreement = scheme.agree(5, dimension=10, max_examples=8, records=40)
    assert scheme.loss(agreement) is None
    statements = [c.statement for c in scheme.claims(agreement)]
    assert any("not bounded" in s for s in statements)
    assert all(c.basis is Basis.PROVED for c in scheme.claims(agreement))


def test_a_coarse_grid_adds_to_delta_and_is_refused_where_epsilon_was_asked_for() -> None:
    given = replace(NOISY, epsilon=None, noise_multiplier=4.0, bits=4)
    agreement = given.agree(200, dimension=10, max_examples=8, records=1600)  # 1.1 steps a share
    loss = given.loss(agreement)
    assert loss is not None and loss.epsilon < 8
    apart = agreement.release.accounted(participants=200, missing=80).distance
    more = (1 + math.exp(loss.epsilon)) * given.rounds * apart
    assert loss.delta == pytest.approx(given.delta + more, rel=2e-6) and more > 1e-4 * given.delta
    with pytest.raises(ConfigError, match="take more bits"):
        replace(NOISY, bits=4).agree(400, dimension=10, max_examples=8, records=3200)
    with pytest.raises(ConfigError, match="more bits"):  # no noise is enough beside the rounding
        replace(NOISY, bits=4, epsilon=0.1).agree(5, dimension=10**6, max_examples=8, records=40)


def test_an_epsilon_that_cannot_be_met_is_refused_with_the_least_that_can(five: Task) -> None:
    with pytest.raises(ConfigError, match="out of reach: the least by the moments"):
        replace(NOISY, epsilon=0.01, accountant=Accountant.MOMENTS).train(five, coins=coins())


WRONG = {
    "averaging": ({"federated": Federated.AVERAGING}, "federated=sgd"),
    "both": ({"noise_multiplier": 1.0}, "not both"),
    "no noise": ({"epsilon": None, "noise_multiplier": 0.0}, "above 0"),
    "little noise": ({"epsilon": None, "noise_multiplier": 1e-9}, "at least 1e-6"),
    "epsilon": ({"epsilon": 0.0}, "epsilon above 0"),
    "infinite": ({"epsilon": math.inf}, "epsilon above 0"),
    "delta": ({"delta": 1.0}, "delta between"),
    "bits": ({"bits": 3}, "4 to 39 bits"),
    "shares": ({"dropped": 0.95}, "less than 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_do_not_go_together_are_refused(name: str) -> None:
    changed, said = WRONG[name]
    with pytest.raises(ConfigError, match=said):
        replace(NOISY, **changed)


def test_more_colluders_than_sums_bear_are_refused_when_the_parties_agree() -> None:
    with pytest.raises(ConfigError, match="lower corrupted"):
        replace(NOISY, corrupted=0.6, threshold=6).agree(10, dimension=2, max_examples=8, records=80)  # fmt: skip
    with pytest.raises(ConfigError, match="lower corrupted"):
        replace(NOISY, corrupted=0.4, dropped=0.0, threshold=7, adversary=Adversary.ACTIVE).agree(
            10, dimension=2, max_examples=8, records=80
        )
    with pytest.raises(ConfigError, match="expected lot"):
        NOISY.agree(10, dimension=2, max_examples=8)


# --- training


@VARIANTS
def test_a_round_moves_the_model_by_the_noisy_sum_over_the_expected_lot(
    adversary: Adversary, five: Task
) -> None:
    scheme = replace(NOISY, rounds=1, adversary=adversary)
    run = scheme.train(five, coins=coins())
    agreement, start = scheme.agreed(five), parameters_of(five.start)
    work = scheme.lots(five, agreement, coins=coins())
    plain = sum(flattened(work[role].update(start, 0).arrays) for role in five.owners)
    moved = flattened(parameters_of(run.output.value)) - flattened(start)
    noise = moved / scheme.rate * agreement.lot - plain
    size = len(noise)
    assert agreement.lot == 10 and agreement.records == 40
    assert stats.kstest(noise / agreement.release.deviation, "norm").pvalue > FALSE_ALARM
    assert abs((noise**2).mean() / agreement.release.deviation**2 - 1) < 5 * math.sqrt(2 / size)
    assert scheme.claims(agreement) == run.claims


def test_it_learns_and_dropouts_within_the_tolerance_are_borne(five: Task) -> None:
    scheme = replace(NOISY, rounds=40, batch_size=4, learning_rate=2.0, delta=1e-2, epsilon=20.0)
    agreement, start = scheme.agreed(five), parameters_of(five.start)
    members = scheme.members(
        scheme.lots(five, agreement, coins=coins()), agreement, start, coins=coins("learns")
    )
    gone = [Fault(role=owners(5)[3], at=2 + 2 * r, harm=Harm.DROP, way=Way.REQUEST) for r in (0, 9)]
    seen: list[Aggregate] = []
    model = scheme.coordinate(
        LocalHub(members, faults=gone), start, agreement, coins=coins("server"),
        watch=lambda round, found, model: seen.append(found),
    )  # fmt: skip
    assert sorted({len(found.survivors) for found in seen}) == [4, 5]
    trained = replace(five).start
    for p, a in zip(trained.parameters(), model, strict=True):
        p.data.copy_(torch.from_numpy(np.array(a)))
    inputs, labels = (torch.cat(part) for part in zip(*five.shards, strict=True))
    assert accuracy(trained, inputs, labels) >= 0.85


def test_below_the_fewest_shares_nothing_is_opened(five: Task) -> None:
    agreement, start = NOISY.agreed(five), parameters_of(five.start)
    assert agreement.least_sum == 4
    members = NOISY.members(
        NOISY.lots(five, agreement, coins=coins()), agreement, start, coins=coins("few")
    )
    gone = [Fault(role=role, at=2, harm=Harm.DIE) for role in owners(5)[:2]]
    with pytest.raises(TooFewParties, match="round 0"):
        NOISY.coordinate(LocalHub(members, faults=gone), start, agreement, coins=coins("server"))


def test_members_made_again_from_the_same_coins_draw_other_lots_and_noise(five: Task) -> None:
    one = coins()
    models = [flattened(parameters_of(NOISY.train(five, coins=one).output.value)) for _ in range(2)]
    assert (models[0] != models[1]).all()
    agreement = NOISY.agreed(five)
    first, second = (NOISY.lots(five, agreement, coins=one) for _ in range(2))
    rows = [[w[owners(5)[0]].records(r).tolist() for r in range(9)] for w in (first, second)]
    assert rows[0] != rows[1]
    assert rows[0] != [first[owners(5)[1]].records(r).tolist() for r in range(9)]
    repeated = [
        flattened(parameters_of(NOISY.train(five, coins=coins()).output.value)) for _ in range(2)
    ]
    assert np.array_equal(*repeated)


@pytest.mark.parametrize("stores", [False, True], ids=["members-live", "members-restart"])
def test_killed_anywhere_the_next_coordinator_ends_with_the_same_model_and_noise(
    stores: bool, tmp_path: Path
) -> None:
    """No round's lot or noise is drawn anew: what was answered is answered again to the byte."""
    task, scheme = small_task(), replace(NOISY, rounds=2, session_rounds=1)
    clock = Clock()
    whole = World(scheme, task, tmp_path / "undisturbed").coordinate(clock)
    points = [p for p in clock.points() if p.what == "reply" and p.drained]
    for number, point in enumerate(points[stores::5]):
        world = World(scheme, task, tmp_path / f"{number}", stores=stores)
        world.killed(point)
        assert same(world.coordinate(), whole), point
        world.check()


def test_owners_with_few_records_take_part_and_unequal_ones_have_one_rate(five: Task) -> None:
    shards = list(five.shards)
    shards[2] = (shards[2][0][:1], shards[2][1][:1])
    task = replace(five, shards=tuple(shards))
    agreement = NOISY.agreed(task)
    assert (agreement.records, agreement.max_examples, agreement.lot) == (33, 8, 10)
    rates = {(w.lot, w.total) for w in NOISY.lots(task, agreement, coins=coins()).values()}
    assert rates == {(10, 33)}
    NOISY.train(task, coins=coins())


def test_a_delta_that_one_record_in_all_meets_is_warned_of(five: Task) -> None:
    with pytest.warns(TacitWarning, match="one over the number of records"):
        replace(NOISY, delta=0.03).train(five, coins=coins())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NOISY.train(five, coins=coins())


# --- what an observer makes of it


def test_the_server_observes_masked_vectors_and_noisy_means(five: Task) -> None:
    run = NOISY.train(five, coins=coins(), recording=FULL)
    found = NOISY.observe(run.views[SERVER], SERVER)
    assert len(found.updates) == 15 and len(found.aggregates) == 3
    assert all(u.noisy and u.steps == 1 and u.scale == 1 for u in found.updates)
    assert all(a.noisy and a.senders == 5 for a in found.aggregates)
    agreement, models = NOISY.agreed(five), dict(found.outputs)
    work = NOISY.lots(five, agreement, coins=coins())
    for mean in found.aggregates:
        model = [np.array(a) for a in models[mean.round]]
        plain = sum(flattened(work[role].update(model, mean.round).arrays) for role in five.owners)
        noise = flattened(mean.arrays) * agreement.lot - plain
        assert stats.kstest(noise / agreement.release.deviation, "norm").pvalue > FALSE_ALARM
    for update in found.updates:
        real = flattened(work[update.sender].update(models[update.round], update.round).arrays)
        assert not real.any() or abs(np.corrcoef(real, flattened(update.arrays))[0, 1]) < 0.4


def test_the_server_of_the_sabotaged_twin_observes_each_owners_sum(five: Task) -> None:
    broken = NOISY.sabotaged()
    assert broken.masks is Masks.NONE and broken.epsilon is None
    run = broken.train(five, coins=coins("twin"), recording=FULL)
    found = broken.observe(run.views[SERVER], SERVER)
    agreement, models = broken.agreed(five), dict(found.outputs)
    work = broken.lots(five, agreement, coins=coins("twin"))
    for update in found.updates:
        real = work[update.sender].update([np.array(a) for a in models[update.round]], update.round)
        # over two records, which an owner's lot has on average
        assert np.abs(flattened(update.arrays) - flattened(real.arrays) / 2).max() < 1e-5
    assert not any(c.basis is Basis.ACCOUNTED for c in run.claims)
    assert any("masks are left out" in c.statement for c in run.claims)


def test_the_audit_knows_which_records_were_in_a_secret_lot(five: Task) -> None:
    broken = NOISY.sabotaged()
    run = broken.train(five, coins=coins("audited"), recording=FULL)
    found = broken.observe(run.views[SERVER], SERVER)
    given = {"protection": broken, "task": five, "coins": lambda: coins("audited")}
    truth = cells._Truth(SimpleNamespace(**given), SERVER, found)
    inputs, labels = (torch.cat(part) for part in zip(*five.shards, strict=True))
    sizes = set()
    for update in found.updates[:5]:  # of the first round, whose model is the start
        rows = truth.records(update)
        sizes.add(len(rows))
        real = clipped_sum(
            five.start, cross_entropy, inputs[rows], labels[rows], ClipRule(bound=0.5)
        )
        plain = flattened([g.numpy() for g in real.gradients]) / 2
        assert np.abs(flattened(update.arrays) - plain).max() < 1e-5
    assert len(sizes) > 1
    whole = [row for update in found.updates[:5] for row in truth.records(update)]
    assert sorted(truth.records(found.aggregates[0])) == sorted(whole)
    with pytest.raises(ConfigError, match="give the trial its coins"):
        cells._Truth(SimpleNamespace(**given | {"coins": None}), SERVER, found)


def test_settings_are_plain_and_none_of_them_changes_what_was_there() -> None:
    names = {"epsilon", "noise_multiplier", "delta", "accountant"}
    assert names <= {f.name for f in fields(SecureAggregation)}
    plain = SecureAggregation().agree(5, dimension=3, max_examples=20)
    assert plain.release is None and plain.noise_multiplier == 0 and plain.sharing.threshold == 3
    assert plain.most == 2**16 - 1 and plain.width == 19
