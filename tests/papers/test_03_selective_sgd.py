"""Selective SGD with a parameter server [3]: what its lines say, who sees what, and what its noise is worth."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import beta, chi2

from tacit.attacks.access import Knowledge, RoleView
from tacit.attacks.curious import GradientLeakage
from tacit.core.claims import Basis, PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    CheatingDetected,
    ConfigError,
    DataError,
    Diverged,
    ProtocolError,
    TacitWarning,
    TooFewParties,
    WireError,
)
from tacit.core.wire import Message, decode, encode
from tacit.dp.mechanisms import laplace
from tacit.nn.federated import Task, honest_work
from tacit.nn.local_work import (
    Share,
    parameters_of,
)
from tacit.nn.networks import mlp
from tacit.nn.updates import FloatArray, LocalUpdate, LocalWork, flattened, unflattened
from tacit.parties.faults import Fault, Harm, Way
from tacit.parties.links.local import LocalHub, Timing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.runs import Opened, Run
from tacit.parties.views import DIGEST, FULL, Recording, View
from tacit.training import selective_sgd
from tacit.training.selective_sgd import (
    ParameterServer,
    Schedule,
    Selection,
    SelectiveMember,
    SelectiveSGD,
    Selector,
    Turns,
    packed,
    serve,
    share_of,
    unpacked,
    upload_bytes,
)

COINS = Coins.from_seed(b"selective")
steady = settings(derandomize=True, deadline=None)
SMALL = SelectiveSGD(epochs=3, batch_size=4, learning_rate=0.1)
PRIVATE = replace(SMALL, theta_u=0.05, gamma=0.01, tau=1e-3, epsilon_over_c=40.0)
SCHEDULES = pytest.mark.parametrize("schedule", Schedule, ids=lambda s: s.value)
ONE, OTHERS = Role("owner", 1), (Role("owner", 0), Role("owner", 2))


@dataclass(slots=True)
class Spy:
    """Local work that remembers what it was given and what it made of it."""

    inner: LocalWork
    calls: list[tuple[int, FloatArray, FloatArray]] = field(default_factory=list)

    def update(self, model: Sequence[np.ndarray], round: int) -> LocalUpdate:
        given = flattened(model)
        made = self.inner.update(model, round)
        self.calls.append((round, given, flattened(made.arrays)))
        return made


@dataclass(slots=True)
class Fixed:
    """Local work that answers each round with a vector, or with an error."""

    like: Sequence[np.ndarray]
    answers: dict[int, FloatArray | Exception]

    def update(self, model: Sequence[np.ndarray], round: int) -> LocalUpdate:
        answer = self.answers[round]
        if isinstance(answer, Exception):
            raise answer
        return LocalUpdate(arrays=unflattened(answer, self.like), examples=1)


@dataclass(slots=True)
class Stage:
    """A run whose parts are at hand."""

    hub: LocalHub
    server: ParameterServer
    turns: Turns
    work: dict[Role, Spy]
    members: dict[Role, SelectiveMember]
    scheme: SelectiveSGD
    start: FloatArray

    def run(self, **more: object) -> FloatArray:
        serve(self.hub, self.server, self.turns, **more)  # type: ignore[arg-type]
        return self.server.parameters

    def uploads(self, role: Role | None = None) -> list[Message]:
        return [
            message
            for frame in self.hub.views[SERVER].frames()
            if (message := frame.message()).tag == "upload" and role in (None, frame.peer)
        ]


def member(
    task: Task, scheme: SelectiveSGD, work: LocalWork, role: Role = ONE, coins: Coins = COINS
) -> SelectiveMember:
    start = parameters_of(task.start)
    return SelectiveMember(
        work,
        start,
        selector=scheme.selector(flattened(start).size),
        turns=scheme.epochs,
        examples=8,
        coins=coins.child(f"selective/{role}"),
    )


def work_of(task: Task, scheme: SelectiveSGD) -> dict[Role, Spy]:
    honest = honest_work(
        task,
        Share.CHANGE,
        batch_size=scheme.batch_size,
        local_steps=scheme.local_steps,
        learning_rate=scheme.learning_rate,
        decay=scheme.decay,
        label_smoothing=scheme.label_smoothing,
    )
    return {role: Spy(work) for role, work in honest.items()}


def stage(
    task: Task,
    scheme: SelectiveSGD,
    *,
    faults: Sequence[Fault] = (),
    broken: dict[Role, LocalWork] | None = None,
    recording: Recording = FULL,
) -> Stage:
    start = flattened(parameters_of(task.start))
    work = work_of(task, scheme)
    members = {
        role: member(task, scheme, (broken or {}).get(role, spy), role)
        for role, spy in work.items()
    }
    late = scheme.schedule is Schedule.ASYNCHRONOUS
    timing = Timing(work=1.0, jitter=scheme.jitter, seed=b"0") if late else None
    server = ParameterServer(
        like=parameters_of(task.start),
        parameters=start.copy(),
        most_down=share_of(scheme.theta_d, start.size),
        most_up=share_of(scheme.theta_u, start.size),
        gamma=scheme.gamma,
    )
    turns = Turns(
        schedule=scheme.schedule, each=scheme.epochs, seed=task.seed,
        at_least=scheme.at_least, deadline=scheme.deadline,
    )  # fmt: skip
    hub = LocalHub(members, recording=recording, faults=faults, timing=timing)
    return Stage(hub, server, turns, work, members, scheme, start)


def weights(run: Run[Opened[torch.nn.Module]]) -> FloatArray:
    return flattened(parameters_of(run.output.value))


def train(task: Task, scheme: SelectiveSGD, coins: Coins = COINS) -> FloatArray:
    return weights(scheme.train(task, coins=coins))


def alone(task: Task) -> Task:
    return replace(task, shards=task.shards[:1])


# --- what is computed


def test_one_owner_that_shares_everything_does_plain_local_sgd_bit_for_bit(task: Task) -> None:
    scheme = replace(SMALL, theta_u=1.0, theta_d=1.0, epochs=4)
    [work] = work_of(alone(task), scheme).values()
    expected = parameters_of(task.start)
    for turn in range(4):
        moved = work.update(expected, turn).arrays
        expected = [a + b for a, b in zip(expected, moved, strict=True)]
    np.testing.assert_array_equal(train(alone(task), scheme), flattened(expected))


@pytest.mark.parametrize("owners_", [1, 3])
def test_round_robin_that_shares_everything_is_sgd_through_one_owner_after_the_other(
    task: Task, owners_: int
) -> None:
    task = replace(task, shards=task.shards[:owners_])
    scheme = replace(SMALL, theta_u=1.0, decay=0.7, label_smoothing=0.1, local_steps=3)
    model = copy.deepcopy(task.start)
    order = {role: spy.inner for role, spy in work_of(task, scheme).items()}
    for turn in range(3):
        for role, work in order.items():
            inputs, labels = task.shards[role.index]
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1 * 0.7**turn)
            for batch in torch.split(work.records(turn), 4):  # type: ignore[attr-defined]
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(
                    model(inputs[batch]), labels[batch], label_smoothing=0.1
                ).backward()
                optimiser.step()
    np.testing.assert_allclose(
        train(task, scheme), flattened(parameters_of(model)), rtol=1e-4, atol=2e-6
    )


def test_a_turn_without_a_number_of_steps_goes_through_all_records_once(task: Task) -> None:
    run = replace(SMALL, epochs=1).train(task, coins=COINS, recording=FULL)
    for update in SMALL.observe(run.views[SERVER], SERVER).updates:
        assert (update.steps, update.batch_size) == (2, 4)


def test_selective_sgd_learns_from_a_tenth_of_the_changes(task: Task) -> None:
    inputs, labels = (torch.cat(part) for part in zip(*task.shards, strict=True))
    scheme = replace(SMALL, epochs=60, learning_rate=0.5, decay=1.0)
    for selection in Selection:
        model = replace(scheme, selection=selection).train(task, coins=COINS).output.value
        right = (model(inputs).argmax(1) == labels).float().mean()
        assert float(right) >= 0.9


@SCHEDULES
def test_the_finished_model_is_the_start_plus_every_upload_and_nothing_else(
    task: Task, schedule: Schedule
) -> None:
    on = stage(task, replace(SMALL, schedule=schedule))
    found, expected = on.run(), on.start.copy()
    counted = np.zeros(expected.size, int)
    for upload in on.uploads():
        places, values = unpacked(upload, expected.size, expected.size)
        for place, value in zip(places, values, strict=True):  # float32, one after the other
            expected[place] = expected[place] + value
            counted[place] += 1
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(on.server.counters, counted)
    finished = [
        [f for f in on.hub.views[role].frames() if f.message().tag == "finished"]
        for role in on.members
    ]
    for [frame] in finished:
        np.testing.assert_array_equal(flattened(frame.message().arrays("model")), expected)


# --- the server


def server_of(size: int, down: int, up: int | None = None) -> ParameterServer:
    like = [np.zeros(size, np.float32)]
    return ParameterServer(
        like=like, parameters=np.arange(size, dtype=np.float32), most_down=down, most_up=up or size
    )


def upload(places: Sequence[int], size: int, value: float = 1.0, examples: int = 1) -> Message:
    vector = np.full(size, value, np.float32)
    return packed("upload", np.array(places, np.int64), vector, examples=examples)


@steady
@given(st.lists(st.sets(st.integers(0, 19), min_size=1), max_size=6), st.integers(1, 20))
def test_later_downloads_are_the_most_updated_parameters_and_of_equals_the_first(
    chosen: list[set[int]], down: int
) -> None:
    server = server_of(20, down)
    first = server.turn(ONE, 2)
    assert first.tag == "start"
    np.testing.assert_array_equal(first.arrays("model")[0], np.arange(20))
    server.add(ONE, upload([], 20))
    for places in chosen:
        server.add(ONE, upload(sorted(places), 20))
    counted = [sum(place in places for places in chosen) for place in range(20)]
    expected = sorted(sorted(range(20), key=lambda place: (-counted[place], place))[:down])
    places, values = unpacked(server.turn(ONE, 2), 20, 20)
    assert places.tolist() == expected
    np.testing.assert_array_equal(values, server.parameters[expected])


def test_every_owner_gets_the_whole_current_model_at_its_first_turn(task: Task) -> None:
    on = stage(task, replace(SMALL, theta_d=0.5, epochs=2))
    on.run()
    expected = on.start.copy()
    for number, role in enumerate(on.members):
        np.testing.assert_array_equal(on.work[role].calls[0][1], expected)
        places, values = unpacked(on.uploads()[number], expected.size, expected.size)
        expected[places] += values


def test_what_was_never_updated_again_does_not_count_as_stale_before_a_second_turn() -> None:
    server = server_of(10, 2)
    server.turn(ONE, 1)
    server.add(ONE, upload([1, 2, 3, 4], 10))
    assert server.stale() == 0
    server.turn(ONE, 1)
    assert server.stale() == 2  # two of the four were sent


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"count": 2}, WireError, "owner 1"),
        ({"count": -1}, WireError, "owner 1.*outside"),
        ({"count": 1 << 70}, WireError, "owner 1.*outside"),
        ({"count": "3"}, WireError, "owner 1.*expected an int"),
        ({"places": b""}, WireError, "owner 1.*bytes expected"),
        ({"places": b"\xff" * 4}, WireError, "owner 1"),
        ({"places": 7}, WireError, "owner 1.*expected bytes"),
        ({"values": np.zeros(4, np.float32)}, WireError, "owner 1.*float32 of shape"),
        ({"values": np.zeros(3, np.float64)}, WireError, "owner 1.*float32 of shape"),
        ({"values": np.array([0, np.nan, 0], np.float32)}, Diverged, "turn 0.*owner 1"),
        ({"values": np.array([0, np.inf, 0], np.float32)}, Diverged, "turn 0.*owner 1"),
    ],
    ids=str,
)
def test_a_malformed_upload_is_refused_with_its_sender_named_and_changes_nothing(
    fields: dict[str, int], error: type[Exception], match: str
) -> None:
    server = server_of(20, 20, up=5)
    server.turn(ONE, 2)
    good = upload([3, 5, 11], 20)
    with pytest.raises(error, match=match):
        server.add(ONE, Message("upload", **{**good.fields, **fields}))
    np.testing.assert_array_equal(server.parameters, np.arange(20))
    assert not server.counters.any()


def test_too_many_values_or_another_message_are_no_upload() -> None:
    server = server_of(20, 20, up=5)
    server.turn(ONE, 2)
    with pytest.raises(WireError, match=r"owner 1.*'count': outside \[0, 5\]"):
        server.add(ONE, upload(range(6), 20))
    with pytest.raises(ProtocolError, match="owner 1: expected 'upload', came 'thanks'"):
        server.add(ONE, Message("thanks"))
    with pytest.raises(WireError, match=r"owner 1.*lacks the field"):
        server.add(ONE, Message("upload"))
    assert not server.counters.any()


# --- the owner


def test_parameters_that_were_not_downloaded_keep_the_owners_own_values(task: Task) -> None:
    """Its copy is what it downloaded, and its own, unselected training everywhere else."""
    on = stage(task, replace(SMALL, theta_d=0.1, theta_u=0.3, epochs=4))
    on.run()
    for role, spy in on.work.items():
        local = on.start.copy()
        requests = [f.message() for f in on.hub.views[role].frames()][:-1]
        for request, (_, used, change) in zip(requests, spy.calls, strict=True):
            if request.tag == "start":
                local = flattened(request.arrays("model")).copy()
            else:
                places, values = unpacked(request, local.size, share_of(0.1, local.size))
                assert len(places) == 25
                local[places] = values
            np.testing.assert_array_equal(used, local)
            local = local + change


@steady
@given(arrays(np.float32, 30, elements=st.floats(-2, 2, width=32)), st.integers(1, 30))
def test_largest_selection_takes_the_largest_sizes_and_leaves_values_as_they_are(
    change: FloatArray, count: int
) -> None:
    selector = Selector(count=count, selection=Selection.LARGEST, tau=0.0, gamma=None, private=None)
    places, vector = selector.select(change.copy(), COINS)
    assert len(places) == count and (np.diff(places) > 0).all()
    sizes = sorted(map(abs, change.tolist()))
    assert sorted(map(abs, change[places].tolist())) == sizes[-count:]
    np.testing.assert_array_equal(vector[places], change[places])


@steady
@given(arrays(np.float32, 30, elements=st.floats(-2, 2, width=32)), st.integers(1, 30))
def test_random_selection_takes_only_what_is_beyond_tau_and_never_too_many(
    change: FloatArray, count: int
) -> None:
    selector = Selector(count=count, selection=Selection.RANDOM, tau=0.5, gamma=None, private=None)
    places, _ = selector.select(change, COINS)
    beyond = {i for i, value in enumerate(change.tolist()) if abs(value) > 0.5}
    assert set(places.tolist()) <= beyond
    assert len(places) == min(count, len(beyond))
    assert (np.diff(places) > 0).all()


def test_random_selection_is_uniform_among_what_is_beyond_tau() -> None:
    """Chi-square over inclusion counts of 4 of 12, false alarm 1e-6; the largest are no likelier."""
    change = np.zeros(20, np.float32)
    change[4:16] = np.linspace(0.6, 60, 12)
    selector = Selector(count=4, selection=Selection.RANDOM, tau=0.5, gamma=None, private=None)
    seen, runs = np.zeros(20), 4000
    for run in range(runs):
        seen[selector.select(change, COINS.child(f"uniform {run}"))[0]] += 1
    assert not seen[:4].any() and not seen[16:].any()
    p = 4 / 12  # without replacement: inclusions are correlated, hence the factor 11/12
    statistic = ((seen[4:16] - runs * p) ** 2).sum() / (runs * p * (1 - p)) * 11 / 12
    assert statistic < chi2.isf(1e-6, 11)


@pytest.mark.parametrize("selection", Selection)
def test_values_are_clipped_to_gamma_before_they_are_selected(selection: Selection) -> None:
    change = np.array([5.0, -5.0, 0.1, -0.1, 0.0], np.float32)
    selector = Selector(count=5, selection=selection, tau=0.05, gamma=0.25, private=None)
    places, vector = selector.select(change, COINS)
    expected = np.array([0.25, -0.25, 0.1, -0.1, 0.0], np.float32)
    np.testing.assert_array_equal(vector[places], expected[places])
    assert {0, 1, 2, 3} <= set(places.tolist())
    assert change[0] == 5.0  # the owner's own copy moves by what it learned, unclipped


def test_tau_is_compared_with_what_is_clipped_so_that_a_tau_of_gamma_lets_nothing_through() -> None:
    selector = Selector(count=5, selection=Selection.RANDOM, tau=0.25, gamma=0.25, private=None)
    assert len(selector.select(np.full(5, 9.0, np.float32), COINS)[0]) == 0


def test_a_share_is_at_most_that_share_and_at_least_one_parameter() -> None:
    assert [share_of(t, 140_106) for t in (1.0, 0.1, 0.01)] == [140_106, 14_010, 1_401]
    assert share_of(1e-9, 100) == 1


# --- the differentially private variant


def test_private_selection_is_the_sparse_vector_technique_on_clipped_sizes_in_random_order() -> (
    None
):
    """Line by line with the same coins: order, query noise, thresholds, value noise, and the second clipping."""
    scheme = replace(PRIVATE, theta_u=0.2)
    selector, mechanism = scheme.selector(60), scheme.sparse_vector(60)
    assert mechanism is not None
    hits = 0
    for seed in range(30):
        change = (0.04 * (Coins.from_seed(f"c{seed}".encode()).unit(60) - 0.5)).astype(np.float32)
        places, vector = selector.select(change, Coins.from_seed(f"s{seed}".encode()))
        coins = Coins.from_seed(f"s{seed}".encode())
        clipped = [
            float(np.float32(min(max(v, np.float32(-0.01)), np.float32(0.01)))) for v in change
        ]
        order = coins.permutation(60).tolist()
        query_noise = laplace(coins, mechanism.query_scale, 60)
        limits = list(mechanism.threshold + laplace(coins, mechanism.threshold_scale, 12))
        found = []
        for place, noise in zip(order, query_noise, strict=True):
            if len(found) < 12 and abs(clipped[place]) + noise >= limits[len(found)]:
                found.append(place)
        value_noise = laplace(coins, mechanism.value_scale, len(found))
        released = {
            place: np.float32(min(max(clipped[place] + noise, -0.01), 0.01))
            for place, noise in zip(found, value_noise, strict=True)
        }
        assert places.tolist() == sorted(found)
        assert {int(p): vector[p] for p in places} == released
        assert len(places) <= 12
        hits += len(places)
    assert hits > 30


def test_the_scales_are_those_of_the_paper_and_the_loss_is_five_ninths_of_what_it_states() -> None:
    parameters, gamma, each = 140_106, 0.001, 0.5
    scheme = SelectiveSGD(theta_u=0.1, gamma=gamma, epsilon_over_c=each)
    mechanism = scheme.sparse_vector(parameters)
    assert mechanism is not None
    c, delta_f = 14_010, 2 * gamma
    epsilon = each * c
    assert mechanism.hits == c and mechanism.threshold == scheme.tau
    assert mechanism.threshold_scale == pytest.approx(2 * c * delta_f / (8 / 9 * epsilon))
    assert mechanism.query_scale == pytest.approx(2 * 2 * c * delta_f / (8 / 9 * epsilon))
    assert mechanism.value_scale == pytest.approx(2 * c * delta_f / (2 / 9 * epsilon))
    assert mechanism.epsilon == pytest.approx(5 / 9 * epsilon)
    as_printed = replace(mechanism, query_sensitivity=delta_f)
    assert as_printed.epsilon == pytest.approx(epsilon)


class Caught(Exception):
    """Carries what was about to be asked."""


class Asked:
    """Stands where the sparse vector technique does, and tells what it was asked."""

    def release(self, queries: np.ndarray, values: np.ndarray, coins: Coins) -> None:
        raise Caught(queries, values)


@steady
@given(
    arrays(np.float32, 8, elements=st.floats(width=32)),
    arrays(np.float32, 8, elements=st.floats(width=32)),
    st.floats(1e-6, 10.0),
)
def test_whatever_two_owners_learned_queries_differ_by_gamma_and_values_by_twice_that(
    one: FloatArray, other: FloatArray, gamma: float
) -> None:
    """All float32: NaN, infinities, and a gamma that as a float32 is larger than itself."""
    scheme = replace(PRIVATE, gamma=gamma)
    mechanism = scheme.sparse_vector(256)
    assert mechanism is not None
    fake = replace(scheme.selector(256), private=Asked())  # type: ignore[arg-type]
    seen = []
    for change in (one, other):
        with pytest.raises(Caught) as caught:
            fake.select(change, Coins.from_seed(b"one order"))
        seen.append(caught.value.args)
    (queries, values), (queries_, values_) = seen
    assert (np.abs(queries - queries_) <= mechanism.query_sensitivity).all()
    assert (np.abs(values - values_) <= mechanism.value_sensitivity).all()
    assert (queries == np.abs(values)).all() and (queries <= gamma).all()


def test_a_change_that_is_no_number_counts_as_none_or_no_noise_would_hide_it() -> None:
    """A comparison with NaN is never a hit: a place that hits with positive probability elsewhere."""
    selector = replace(PRIVATE, theta_u=1.0, tau=0.0).selector(40)
    odd, plain = np.zeros((2, 40), np.float32)
    odd[::4], odd[1::4], odd[2::4] = np.nan, np.inf, -np.inf
    plain[1::4], plain[2::4] = 0.01, -0.01
    results = [selector.select(x, Coins.from_seed(b"nan")) for x in (odd, plain)]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert any(place % 4 == 0 for place in results[0][0])


@pytest.mark.parametrize("noisy", [True, False], ids=["private", "its sabotaged twin"])
def test_what_a_turn_surely_loses_in_many_runs_is_below_its_claim_only_with_its_noise(
    noisy: bool,
) -> None:
    """Two opposite owners, 12,000 turns each; every event of places and signs, bounds wrong once in a million."""
    scheme = replace(PRIVATE, theta_u=0.5, gamma=1.0, tau=0.4, epsilon_over_c=4.0)
    mechanism, runs = scheme.sparse_vector(3), 12_000
    assert mechanism is not None and mechanism.epsilon == pytest.approx(4.0 * 5 / 9)
    selector = (scheme if noisy else scheme.sabotaged()).selector(3)
    tallies: list[Counter[tuple[int, ...]]] = []
    for number, change in enumerate(([1.0, 0.0, 0.0], [0.0, -9.0, -9.0])):
        coins, tally = Coins.from_seed(f"many {number}".encode()), Counter[tuple[int, ...]]()
        for _ in range(runs):
            places, vector = selector.select(np.array(change, np.float32), coins)
            tally[(*places.tolist(), *np.sign(vector[places]).astype(int).tolist())] += 1
        tallies.append(tally)
    worst = 0.0
    for event in set(tallies[0]) | set(tallies[1]):
        for one, other in (tallies, tallies[::-1]):
            low = beta.ppf(1e-6, one[event], runs - one[event] + 1) if one[event] else 0.0
            high = beta.ppf(1 - 1e-6, other[event] + 1, runs - other[event])
            worst = max(worst, math.log(low / high) if low else 0.0)
    assert worst > 0.4
    assert (worst <= mechanism.epsilon) is noisy, worst


def test_training_that_diverges_shows_in_the_plain_variant_and_is_hidden_under_noise(
    task: Task,
) -> None:
    like = parameters_of(task.start)
    size = flattened(like).size
    request = Message("start", turn=0, participants=3, model=like)
    broken = Fixed(like, {0: Diverged("training diverged, loss 1234")})
    with pytest.raises(Diverged, match="1234"):
        member(task, SMALL, broken).handle(request)
    still = Fixed(like, {0: np.zeros(size, np.float32)})
    hidden, other = (member(task, PRIVATE, work).handle(request) for work in (broken, still))
    assert encode(hidden) == encode(other)


def test_a_rate_that_diverges_ends_a_plain_run_with_owner_and_round_and_not_a_private_one(
    task: Task,
) -> None:
    with pytest.raises(Diverged, match=r"owner \d.*round \d"):
        replace(SMALL, learning_rate=1e30).train(task, coins=COINS)
    assert np.isfinite(train(task, replace(PRIVATE, learning_rate=1e30))).all()


@pytest.mark.parametrize("turns", [1, 7])
def test_the_claim_adds_up_all_hits_of_all_turns_and_names_the_participant(turns: int) -> None:
    scheme = SelectiveSGD(theta_u=0.1, gamma=0.001, epsilon_over_c=2.0, epochs=turns)
    stay, noise = scheme.claims(1000)
    by_hand = turns * 100 * 2.0 * 5 / 9
    assert isinstance(noise.value, PrivacyLoss)
    assert noise.value.epsilon == pytest.approx(by_hand)
    assert noise.value.delta == 0.0 and noise.value.unit == "participant"
    assert noise.basis is Basis.ACCOUNTED
    text = str(noise.value)
    assert f"epsilon = {by_hand:.4g}, delta = 0 per participant" in text
    assert f"{turns} turns of at most 100 values, {100 * 2 * 5 / 9:.4g} a turn" in text
    assert "epsilon / c = 2 counts one value of one turn" in text
    assert stay.basis is Basis.PROVED and set(stay.hides) == {"server", "owner"}


def test_without_noise_no_epsilon_is_claimed_and_the_share_is_stated() -> None:
    for scheme in (SMALL, replace(SMALL, gamma=0.1)):
        claims = scheme.claims(1000)
        assert not any(isinstance(claim.value, PrivacyLoss) for claim in claims)
        assert any("at most 100 of 1000 changes" in claim.statement for claim in claims)
        assert any("not differential privacy" in claim.statement for claim in claims)


def test_an_upload_under_noise_stays_within_gamma_and_within_its_share(task: Task) -> None:
    run = PRIVATE.train(task, coins=COINS, recording=FULL)
    updates = PRIVATE.observe(run.views[SERVER], SERVER).updates
    assert len(updates) == 9 and all(update.noisy for update in updates)
    for update in updates:
        assert np.abs(flattened(update.arrays)).max() <= np.float32(0.01)
        assert 0 < flattened(update.seen or ()).sum() <= 12


def test_the_noise_of_a_turn_depends_on_the_turn_and_the_owner_and_on_nothing_that_went_before(
    task: Task,
) -> None:
    """A member restored from a backup draws what it would have drawn, and another owner draws anew."""
    like = parameters_of(task.start)
    still = Fixed(like, {t: np.zeros(flattened(like).size, np.float32) for t in range(3)})

    def reply(turns: Sequence[int], role: Role = ONE) -> bytes:
        asked = member(task, PRIVATE, still, role)
        for turn in turns:
            last = asked.handle(Message("start", turn=turn, participants=3, model=like))
        return encode(last)

    assert reply([0, 1, 2]) == reply([2])
    assert len({reply([0]), reply([1]), reply([2]), reply([2], Role("owner", 0))}) == 4


def test_without_its_noise_the_private_variant_uploads_the_clipped_changes_themselves(
    task: Task,
) -> None:
    broken = PRIVATE.sabotaged()
    on = stage(task, broken)
    on.run()
    assert broken.epsilon_over_c is None and broken.claims(256)[1].value is None
    for role, spy in on.work.items():
        for message, (_, _, change) in zip(on.uploads(role), spy.calls, strict=True):
            places, values = unpacked(message, change.size, change.size)
            np.testing.assert_array_equal(values, change[places].clip(-0.01, 0.01))


def test_the_sabotaged_plain_variant_shares_everything_as_it_is(task: Task) -> None:
    broken = replace(SMALL, gamma=0.01, theta_d=0.3, selection=Selection.RANDOM).sabotaged()
    on = stage(task, broken)
    on.run()
    for role, spy in on.work.items():
        for message, (_, _, change) in zip(on.uploads(role), spy.calls, strict=True):
            places, values = unpacked(message, change.size, change.size)
            assert len(places) == change.size
            np.testing.assert_array_equal(values, change)


# --- schedules


def replayed(on: Stage) -> list[tuple[Role, bool]]:
    """Each upload's sender, and whether it was learned from a model that has been changed meanwhile."""
    view = on.hub.views[SERVER]
    sent = {(frame.wave, frame.peer): frame.message() for frame in view.sent()}
    current, found = on.start.copy(), []
    for frame in view.frames():
        message = frame.message()
        if message.tag != "upload":
            continue
        request = sent[frame.wave, frame.peer]
        if request.tag == "start":
            held = flattened(request.arrays("model"))
        else:
            held = unpacked(request, current.size, current.size)[1]
        found.append((frame.peer, not np.array_equal(held, current)))
        places, values = unpacked(message, current.size, current.size)
        current[places] += values
    return found


@SCHEDULES
def test_the_same_seeds_give_the_same_weights_and_transcript_bit_for_bit(
    task: Task, schedule: Schedule
) -> None:
    for scheme in (replace(SMALL, schedule=schedule), replace(PRIVATE, schedule=schedule)):
        runs = [
            scheme.train(task, coins=Coins.from_seed(b"same"), recording=DIGEST) for _ in range(2)
        ]
        np.testing.assert_array_equal(*map(weights, runs))
        assert runs[0].views[SERVER].digest == runs[1].views[SERVER].digest
    other = scheme.train(task, coins=Coins(), recording=DIGEST)
    assert other.views[SERVER].digest != runs[0].views[SERVER].digest


def test_round_robin_asks_owners_in_turn_and_each_works_on_the_model_of_the_last(
    task: Task,
) -> None:
    on = stage(task, SMALL)
    on.run()
    assert replayed(on) == [(role, False) for role in owners(3)] * 3


def test_random_order_asks_each_owner_once_a_pass_in_orders_that_differ(task: Task) -> None:
    on = stage(task, replace(SMALL, schedule=Schedule.RANDOM_ORDER, epochs=8))
    on.run()
    found = replayed(on)
    passes = [tuple(role for role, _ in found[3 * n : 3 * n + 3]) for n in range(8)]
    assert all(sorted(order) == list(owners(3)) for order in passes)
    assert len(set(passes)) > 1
    assert not any(stale for _, stale in found)
    other = stage(replace(task, seed=1), replace(SMALL, schedule=Schedule.RANDOM_ORDER, epochs=8))
    other.run()
    assert [role for role, _ in replayed(other)] != [role for role, _ in found]


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_asynchronous_owners_upload_what_they_learned_from_models_that_others_have_changed(
    task: Task, jitter: float
) -> None:
    scheme = replace(SMALL, schedule=Schedule.ASYNCHRONOUS, jitter=jitter, epochs=6)
    on = stage(task, scheme)
    model = on.run().copy()
    stale = [stale for _, stale in replayed(on)]
    assert sum(stale) >= 10 and not stale[0]  # the very first upload is the only sure one
    assert [len(on.uploads(role)) for role in owners(3)] == [6, 6, 6]
    assert not np.array_equal(model, train(task, replace(SMALL, epochs=6)))
    np.testing.assert_array_equal(model, train(task, scheme))


def test_asynchronous_owners_of_different_speed_do_not_wait_for_each_other(task: Task) -> None:
    on = stage(task, replace(SMALL, schedule=Schedule.ASYNCHRONOUS, epochs=6, jitter=1.0))
    on.run()
    order = [role for role, _ in replayed(on)]
    passes = [sorted(order[n : n + 3]) for n in range(0, 18, 3)]
    assert any(turns != list(owners(3)) for turns in passes)


# --- who sees what


@SCHEDULES
@pytest.mark.parametrize("scheme", [SMALL, replace(SMALL, theta_d=0.2, theta_u=0.03), PRIVATE])
def test_the_servers_view_has_the_stated_bytes_and_is_decoded_to_the_last_one(
    task: Task, schedule: Schedule, scheme: SelectiveSGD
) -> None:
    scheme = replace(scheme, schedule=schedule)
    on = stage(task, scheme)
    on.run()
    view = on.hub.views[SERVER]
    seen = scheme.observe(view, SERVER).updates
    frames = [frame for frame in view.frames() if frame.message().tag == "upload"]
    thanks = 3 * len(encode(Message("thanks")))
    counts = [frame.message().integer("count") for frame in frames]
    assert view.received == sum(upload_bytes(n, 256, 8) for n in counts) + thanks
    if scheme.epsilon_over_c is None:
        assert view.received == 9 * upload_bytes(share_of(scheme.theta_u, 256), 256, 8) + thanks
    for update, frame in zip(seen, frames, strict=True):
        assert update.seen is not None and update.sender == frame.peer
        places = np.flatnonzero(flattened(update.seen))
        again = packed(
            "upload", places, flattened(update.arrays), examples=update.steps * update.batch_size
        )
        assert encode(again) == frame.data


@pytest.mark.parametrize("count", [0, 1, 7, 25, 128, 255, 256])
def test_the_size_of_an_upload_is_the_closed_form(count: int) -> None:
    message = packed("upload", np.arange(count), np.ones(256, np.float32), examples=600)
    assert len(encode(message)) == upload_bytes(count, 256, 600)
    around = upload_bytes(count, 256, 600) - 4 * count - len(message.blob("places"))
    assert 0 < around < 100


@pytest.mark.parametrize("theta", [1.0, 0.1, 0.01])
def test_upload_bytes_fall_with_theta_and_an_index_costs_what_the_docstring_says(
    theta: float,
) -> None:
    n = 140_106
    count = share_of(theta, n)
    expected = count * (4 + ((2 + math.log2(1 / theta)) / 8 if theta < 1 else 0))
    assert abs(upload_bytes(count, n, 600) - expected) < 0.02 * expected + 100


def test_a_turn_is_two_messages_and_their_bytes_are_those_of_the_meter(task: Task) -> None:
    on = stage(task, replace(SMALL, theta_d=0.5))
    on.run()
    total = on.hub.cost.total()
    assert total.messages == 2 * 3 * 3 + 2 * 3
    assert on.hub.cost.rounds == 2 * 3 * 3 + 2  # one after the other
    frames = [frame for view in on.hub.views.values() for frame in view.frames()]
    assert total.bytes_sent == total.bytes_received == sum(len(frame.data) for frame in frames)


@SCHEDULES
@pytest.mark.parametrize("theta_d", [1.0, 0.15])
def test_what_the_server_observes_is_what_the_owners_computed_as_far_as_they_chose_it(
    task: Task, schedule: Schedule, theta_d: float
) -> None:
    scheme = replace(SMALL, schedule=schedule, theta_d=theta_d, epochs=4)
    on = stage(task, scheme)
    on.run()
    observed = scheme.observe(on.hub.views[SERVER], SERVER)
    assert len(observed.updates) == len(observed.outputs) == 12
    for update in observed.updates:
        assert update.sender is not None
        round_, given, change = on.work[update.sender].calls[update.round]
        mask = flattened(update.seen or ()).astype(bool)
        assert round_ == update.round and mask.sum() == share_of(0.1, 256)
        np.testing.assert_array_equal(flattened(update.arrays), np.where(mask, change, 0))
        assert update.scale == pytest.approx(-0.1 * 0.85**update.round)
        if theta_d == 1.0 or update.round == 0:
            np.testing.assert_array_equal(flattened(update.model), given)
        else:  # what the owner was sent it holds; elsewhere it went on by itself
            assert 0.15 < (flattened(update.model) == given).mean() < 1


def test_everything_shared_is_seen_without_a_mask(task: Task) -> None:
    scheme = replace(SMALL, theta_u=1.0)
    run = scheme.train(task, coins=COINS, recording=FULL)
    assert all(u.seen is None for u in scheme.observe(run.views[SERVER], SERVER).updates)
    at_owner = scheme.observe(run.views[ONE], ONE)
    assert all(u.seen is None for u in at_owner.aggregates)


@pytest.mark.parametrize("theta_u", [1.0, 0.2])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_in_round_robin_an_owner_gets_the_mean_of_what_the_others_uploaded_between_its_turns(
    task: Task, theta_u: float, index: int
) -> None:
    scheme, role = replace(SMALL, theta_u=theta_u), Role("owner", index)
    on = stage(task, scheme)
    on.run()
    order = [r for r, _ in replayed(on)]
    mine = [at for at, r in enumerate(order) if r == role]
    between = [range(a + 1, b) for a, b in zip(mine, [*mine[1:], len(order)], strict=True)]
    dense = []
    for message in on.uploads():
        places, values = unpacked(message, 256, 256)
        dense.append(np.zeros(256, np.float32))
        dense[-1][places] = values
    found = scheme.observe(on.hub.views[role], role).aggregates
    expected = [[dense[at] for at in numbers] for numbers in between if len(numbers)]
    assert [update.senders for update in found] == [len(group) for group in expected]
    for update, group in zip(found, expected, strict=True):
        np.testing.assert_allclose(flattened(update.arrays), np.mean(group, axis=0), atol=1e-7)
        assert update.sender is None
    assert len(found) == (2 if index == 2 else 3)  # nobody comes after the last one


def test_with_partial_downloads_an_owner_sees_the_others_only_where_it_was_sent_both_models(
    task: Task,
) -> None:
    scheme, role = replace(SMALL, theta_d=0.3, epochs=4), Role("owner", 0)
    on = stage(task, scheme)
    on.run()
    dense = []
    for message in on.uploads():
        places, values = unpacked(message, 256, 256)
        dense.append(np.zeros(256, np.float32))
        dense[-1][places] = values
    requests = [frame.message() for frame in on.hub.views[role].frames()]
    held = [
        set(unpacked(r, 256, 256)[0].tolist()) if r.tag == "turn" else set(range(256))
        for r in requests
    ]
    for update in scheme.observe(on.hub.views[role], role).aggregates:
        both = held[update.round] & held[update.round + 1]
        assert set(np.flatnonzero(flattened(update.seen or ())).tolist()) == both
        others = np.mean([dense[3 * update.round + n] for n in (1, 2)], axis=0)
        mask = np.isin(np.arange(256), list(both))
        np.testing.assert_allclose(flattened(update.arrays), np.where(mask, others, 0), atol=1e-7)


def test_two_passes_of_the_others_are_not_taken_for_one_where_an_owner_missed_a_turn(
    task: Task,
) -> None:
    role = Role("owner", 0)
    scheme = replace(SMALL, theta_u=1.0, epochs=4, at_least=2)
    on = stage(task, scheme, faults=[Fault(role=role, at=1, harm=Harm.DROP, way=Way.REQUEST)])
    on.run()
    dense = {
        (frame.peer, update.round): flattened(update.arrays)
        for frame, update in zip(
            (f for f in on.hub.views[SERVER].frames() if f.message().tag == "upload"),
            scheme.observe(on.hub.views[SERVER], SERVER).updates,
            strict=True,
        )
    }
    found = scheme.observe(on.hub.views[role], role).aggregates
    assert [update.round for update in found] == [2, 3]  # not 0: four uploads followed on it
    for update in found:
        others = [dense[Role("owner", n), update.round] for n in (1, 2)]
        np.testing.assert_allclose(flattened(update.arrays), np.mean(others, axis=0), atol=1e-7)


@pytest.mark.parametrize("schedule", [Schedule.RANDOM_ORDER, Schedule.ASYNCHRONOUS])
def test_where_turns_have_no_known_order_an_owner_sees_models_and_no_mean(
    task: Task, schedule: Schedule
) -> None:
    scheme = replace(SMALL, schedule=schedule)
    run = scheme.train(task, coins=COINS, recording=FULL)
    for role in owners(3):
        seen = scheme.observe(run.views[role], role)
        assert len(seen.outputs) == 4 and not seen.aggregates and not seen.updates
        np.testing.assert_array_equal(flattened(seen.outputs[-1][1]), weights(run))


def test_a_recording_of_the_first_frames_is_decoded_as_far_as_it_goes(task: Task) -> None:
    scheme, first_two = replace(SMALL, theta_d=0.3), Recording(level=FULL.level, each=2)
    some, every = (
        scheme.observe(on.hub.views[SERVER], SERVER).updates
        for on in (stage(task, scheme, recording=kept) for kept in (first_two, FULL))
        if on.run().size
    )
    assert len(some) == 6
    for a, b in zip(some, every, strict=False):
        assert (a.sender, a.round) == (b.sender, b.round)
        np.testing.assert_array_equal(flattened(a.arrays), flattened(b.arrays))
        np.testing.assert_array_equal(flattened(a.model), flattened(b.model))


def canary_seen(scheme: SelectiveSGD, task: Task) -> list[Role]:
    canary = torch.from_numpy(np.array(Coins.from_seed(b"canary").unit((1, 4, 4)), np.float32))
    shards = list(task.shards)
    shards[1] = (canary.expand(8, 1, 4, 4).clone(), shards[1][1])
    run = scheme.train(replace(task, shards=tuple(shards)), coins=COINS, recording=FULL)
    patterns = [canary.numpy().astype(w).tobytes()[:32] for w in ("<f4", "<f8")]

    def holds(view: View) -> bool:
        return any(p in frame.data for frame in view.frames() for p in patterns)

    return [role for role, view in run.views.items() if holds(view)]


@SCHEDULES
@pytest.mark.parametrize("scheme", [SMALL, PRIVATE, replace(SMALL, theta_u=1.0)])
def test_no_record_stands_in_the_clear_in_any_view(
    task: Task, schedule: Schedule, scheme: SelectiveSGD
) -> None:
    assert canary_seen(replace(scheme, schedule=schedule), task) == []


def test_the_canary_would_be_found_if_an_owner_uploaded_a_record(task: Task) -> None:
    """Negative control: with a change that is a record, the same search finds it."""
    canary = np.asarray(Coins.from_seed(b"canary").unit(16), np.float32)
    change = np.zeros(256, np.float32)
    change[:16] = canary
    frame = encode(packed("upload", np.arange(256), change, examples=1))
    assert canary.tobytes()[:32] in frame


def test_another_owners_records_change_no_frames_size_without_noise(task: Task) -> None:
    shards = list(task.shards)
    shards[2] = (1 - shards[2][0], shards[2][1].flip(0))
    runs = [
        SMALL.train(t, coins=COINS, recording=DIGEST)
        for t in (task, replace(task, shards=tuple(shards)))
    ]
    for role in runs[0].views:
        assert runs[0].views[role].shape == runs[1].views[role].shape


def test_a_curious_server_reads_records_off_a_twentieth_of_their_gradients_and_not_off_the_noise() -> (
    None
):
    """Forty owners with one record each; chance is 1/40. The attack must win on the sabotaged twin."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 1, 8, 8, generator=generator).pow(3)
    labels = torch.randint(10, (40,), generator=generator)
    task = Task(
        name="one each", start=mlp((1, 8, 8), (32,), 10, generator=generator),
        shards=tuple((x[None], y[None]) for x, y in zip(images, labels, strict=True)),
        input_shape=(1, 8, 8), classes=10,
    )  # fmt: skip
    selective = SelectiveSGD(theta_u=0.05, epochs=1, batch_size=1, learning_rate=0.01)
    private = replace(selective, gamma=1e-3, epsilon_over_c=2.0)
    rates = {}
    for name, scheme in (
        ("selective", selective), ("all", selective.sabotaged()),
        ("private", private), ("unprotected", private.sabotaged()),
    ):  # fmt: skip
        run = scheme.train(task, coins=COINS, recording=FULL)
        leaked = GradientLeakage().reconstruct(
            RoleView(observation=scheme.observe(run.views[SERVER], SERVER)),
            Knowledge(architecture=task.start, input_shape=(1, 8, 8), classes=10),
            torch.Generator().manual_seed(1),
        )
        found = torch.stack([item.images[0].flatten() for item in leaked])
        near = torch.nn.functional.cosine_similarity(
            found[:, None], images.flatten(1)[None], dim=-1
        )
        true = torch.tensor([item.update.sender.index for item in leaked if item.update.sender])
        rates[name] = float((near.argmax(1) == true).float().mean())
    assert rates["all"] == 1.0 and rates["selective"] >= 0.85, rates
    assert rates["unprotected"] >= 0.85 and rates["private"] <= 0.2, rates


# --- members: once a turn, never beyond the budget, restored


def asked(task: Task, turn: int, tag: str = "start") -> Message:
    return Message(tag, turn=turn, participants=3, model=parameters_of(task.start))


def test_a_member_takes_a_turn_once_and_none_beyond_what_was_agreed_on(task: Task) -> None:
    scheme = replace(PRIVATE, epochs=3)
    owner = member(task, scheme, work_of(task, scheme)[ONE])
    assert owner.handle(asked(task, 1)).tag == "upload"
    for past in (0, 1):
        with pytest.raises(ProtocolError, match=f"turn {past} was taken before"):
            owner.handle(asked(task, past))
    with pytest.raises(BudgetExhausted, match="turn 3 asked, 3 turns were agreed on"):
        owner.handle(asked(task, 3))
    assert owner.handle(asked(task, 2)).tag == "upload"
    assert owner.handle(asked(task, 99, "finished")).tag == "thanks"


@pytest.mark.parametrize(
    ("message", "error", "match"),
    [
        (Message("other", turn=0), ProtocolError, "expected a turn"),
        (Message("start"), WireError, "lacks the field 'turn'"),
        (Message("start", turn=-1), WireError, "outside"),
        (Message("start", turn=0, model=[np.zeros(3, np.float32)]), WireError, "expected arrays"),
        (Message("turn", turn=0, count=3, places=b"", values=np.zeros(3, np.float32)), WireError, "bytes expected"),
        (Message("turn", turn=0, count=999, places=b"", values=np.zeros(3, np.float32)), WireError, "outside"),
        (packed("turn", np.arange(2), np.full(256, np.nan, np.float32), turn=0), Diverged, "turn 0 are not finite"),
    ],
    ids=lambda value: getattr(value, "tag", None),
)  # fmt: skip
def test_a_member_refuses_what_is_no_turn_and_takes_the_right_one_after(
    task: Task, message: Message, error: type[Exception], match: str
) -> None:
    owner = member(task, SMALL, work_of(task, SMALL)[ONE])
    with pytest.raises(error, match=match):
        owner.handle(message)
    assert owner.handle(asked(task, 0)).tag == "upload"


@SCHEDULES
@pytest.mark.parametrize("scheme", [replace(SMALL, selection=Selection.RANDOM), PRIVATE])
def test_a_member_replaced_by_its_restored_self_in_mid_training_changes_nothing(
    task: Task, schedule: Schedule, scheme: SelectiveSGD
) -> None:
    """theta_d below 1: the local copy is state too."""
    scheme = replace(scheme, theta_d=0.2, epochs=4, schedule=schedule)
    undisturbed, on = stage(task, scheme).run(), stage(task, scheme)
    fresh = member(task, scheme, work_of(task, scheme)[ONE])
    ready: list[int] = []

    def restart(done: int, total: int) -> None:
        if not ready and len(on.uploads(ONE)) == 2:
            ready.append(done)
            fresh.restore(on.members[ONE].export())
            on.hub.replace(ONE, fresh)

    np.testing.assert_array_equal(on.run(progress=restart), undisturbed)
    assert ready
    with pytest.raises(ProtocolError, match="turn 3 was taken before"):
        fresh.handle(asked(task, 3))


def test_bytes_that_are_no_state_are_refused(task: Task) -> None:
    owner = member(task, SMALL, work_of(task, SMALL)[ONE])
    state = decode(owner.export())
    for wrong in (
        b"",
        b"\0" * 40,
        encode(Message("state", next=1)),
        encode(Message("state", next=-1, local=state.array("local"))),
        encode(Message("state", next=1, local=np.zeros(3, np.float32))),
    ):
        with pytest.raises(WireError):
            owner.restore(wrong)
    assert owner.handle(asked(task, 0)).tag == "upload"  # nothing of them was taken


# --- faults

HARMS = pytest.mark.parametrize(
    ("harm", "way"),
    [(Harm.DIE, Way.REQUEST), (Harm.HANG, Way.REQUEST), (Harm.DROP, Way.REQUEST), (Harm.DROP, Way.REPLY)],
    ids=lambda one: one.name,
)  # fmt: skip


@SCHEDULES
@HARMS
@pytest.mark.parametrize("at", [0, 2])
def test_where_all_are_needed_a_lost_turn_ends_training_in_time_and_names_the_owner(
    task: Task, schedule: Schedule, harm: Harm, way: Way, at: int
) -> None:
    scheme = replace(SMALL, schedule=schedule, deadline=30.0)
    on = stage(task, scheme, faults=[Fault(role=ONE, at=at, harm=harm, way=way)])
    with pytest.raises(TooFewParties, match="owner 1") as caught:
        on.run()
    assert list(caught.value.missing) == [ONE]
    working = 2.0 * 3 if schedule is Schedule.ASYNCHRONOUS else 0.0
    assert on.hub.now <= working + 30.0


@SCHEDULES
@HARMS
@pytest.mark.parametrize("at", [0, 1, 2])
def test_where_fewer_are_needed_training_goes_on_and_holds_exactly_what_came(
    task: Task, schedule: Schedule, harm: Harm, way: Way, at: int
) -> None:
    scheme = replace(SMALL, schedule=schedule, deadline=30.0, at_least=2, theta_d=0.4)
    on = stage(task, scheme, faults=[Fault(role=ONE, at=at, harm=harm, way=way)])
    found, expected = on.run(), on.start.copy()
    for message in on.uploads():
        places, values = unpacked(message, expected.size, expected.size)
        expected[places] += values
    np.testing.assert_array_equal(found, expected)
    assert [len(on.uploads(role)) for role in OTHERS] == [3, 3]
    gone = harm in (Harm.DIE, Harm.HANG) or schedule is Schedule.ASYNCHRONOUS
    assert len(on.uploads(ONE)) == (at if gone else 2)
    for role in OTHERS:
        *_, last = on.hub.views[role].frames()
        np.testing.assert_array_equal(flattened(last.message().arrays("model")), expected)
    for role in on.hub.views:  # every view can be read, whatever was lost
        observed = scheme.observe(on.hub.views[role], role)
        for update in observed.updates:
            assert update.sender is not None
            [change] = [c for r, _, c in on.work[update.sender].calls if r == update.round]
            mask = flattened(update.seen or ()).astype(bool)
            np.testing.assert_array_equal(flattened(update.arrays), np.where(mask, change, 0))


@pytest.mark.parametrize("way", Way, ids=lambda way: way.name)
def test_an_owner_whose_first_turn_was_lost_still_starts_from_the_whole_model(
    task: Task, way: Way
) -> None:
    scheme = replace(SMALL, theta_d=0.1, at_least=2)
    on = stage(task, scheme, faults=[Fault(role=ONE, at=0, harm=Harm.DROP, way=way)])
    on.run()
    sent = [frame.message() for frame in on.hub.views[SERVER].sent() if frame.peer == ONE]
    assert [message.tag for message in sent] == ["start", "start", "turn", "finished"]
    [second] = [given for round_, given, _ in on.work[ONE].calls if round_ == 1]
    np.testing.assert_array_equal(second, flattened(sent[1].arrays("model")))


def test_fewer_than_needed_end_training_with_the_turns_that_each_took(task: Task) -> None:
    faults = [Fault(role=role, at=1, harm=Harm.DIE) for role in OTHERS]
    for schedule in Schedule:
        on = stage(task, replace(SMALL, schedule=schedule, at_least=2), faults=faults)
        with pytest.raises(TooFewParties, match="owner 0: 1 of 3 turns; owner 2: 1 of 3 turns"):
            on.run()


def test_a_late_upload_of_a_turn_that_was_given_up_is_seen_and_never_added(task: Task) -> None:
    """Owner 1's first turn takes 8 s of the 5 allowed; it comes in while owner 2 is waited for."""
    faults = [
        Fault(role=ONE, at=0, harm=Harm.DELAY, seconds=8.0),
        Fault(role=Role("owner", 2), at=1, harm=Harm.DELAY, seconds=4.0),
    ]
    scheme = replace(SMALL, at_least=2, deadline=5.0)
    on = stage(task, scheme, faults=faults)
    found, expected = on.run(), on.start.copy()
    observed = scheme.observe(on.hub.views[SERVER], SERVER).updates
    assert [u.round for u in observed if u.sender == ONE] == [1, 0, 2]
    for update in observed:
        if (update.sender, update.round) != (ONE, 0):
            expected += flattened(update.arrays)
    np.testing.assert_array_equal(found, expected)


@SCHEDULES
def test_a_refusal_ends_training_where_all_are_needed_and_not_where_fewer_are(
    task: Task, schedule: Schedule
) -> None:
    like = parameters_of(task.start)
    broken: dict[Role, LocalWork] = {
        ONE: Fixed(like, {t: Diverged("its loss is not finite") for t in range(3)})
    }
    scheme = replace(SMALL, schedule=schedule)
    with pytest.raises(Diverged, match="owner 1: its loss is not finite"):
        stage(task, scheme, broken=broken).run()
    on = stage(task, replace(scheme, at_least=2), broken=broken)
    on.run()
    assert [len(on.uploads(role)) for role in owners(3)] == [3, 0, 3]


def test_records_that_are_not_finite_stop_training_before_anything_is_sent(task: Task) -> None:
    shards = list(task.shards)
    shards[1] = (torch.full_like(shards[1][0], float("nan")), shards[1][1])
    for scheme in (SMALL, PRIVATE):
        with pytest.raises(DataError, match=r"records of owner 1 .* not finite"):
            scheme.train(replace(task, shards=tuple(shards)), coins=COINS)


# --- settings and warnings


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        *(({name: value}, name) for name in ("theta_u", "theta_d")
          for value in (0.0, -0.1, 1.01, math.nan, math.inf)),
        *(({"gamma": value}, "gamma bounds") for value in (0.0, -1.0, math.nan, math.inf)),
        *(({"tau": value}, "tau is a size") for value in (-1e-9, math.nan, math.inf)),
        *(({"epsilon_over_c": value, "gamma": 1.0}, "is a budget")
          for value in (0.0, -1.0, math.nan, math.inf)),
        ({"epsilon_over_c": 1.0}, "needs gamma"),
        *(({"epochs": value}, "epochs from 1") for value in (0, -1, 10**9)),
        *(({"local_steps": value}, "local_steps from 0") for value in (-1, 10**9)),
        *(({"decay": value}, "decay in") for value in (0.0, 1.1, math.nan)),
        *(({"label_smoothing": value}, "label_smoothing") for value in (-0.1, 1.0, math.nan)),
        *(({"jitter": value}, "jitter") for value in (-0.1, math.inf, math.nan)),
        *(({"batch_size": value}, "batch_size") for value in (0, -1)),
        *(({"learning_rate": value}, "learning_rate") for value in (0.0, -1.0, math.nan, math.inf)),
        ({"at_least": 0}, "at_least from 1"),
        *(({"deadline": value}, "deadline above 0") for value in (0.0, -1.0, math.nan)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_setting_without_a_meaning_is_refused(wrong: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(SelectiveSGD(), **wrong)  # type: ignore[arg-type]


def test_what_does_not_fit_the_task_is_refused_before_training(task: Task) -> None:
    with pytest.raises(ConfigError, match="a batch of 9 cannot be drawn from 8 records"):
        replace(SMALL, batch_size=9).train(task, coins=COINS)
    with pytest.raises(ConfigError, match="at_least 4 owners needed, there are 3"):
        replace(SMALL, at_least=4).train(task, coins=COINS)


def test_pure_noise_is_warned_of_before_any_work_is_done(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def work(*args: object, **more: object) -> None:
        raise Reached

    monkeypatch.setattr(selective_sgd, "serve", work)
    scheme = replace(PRIVATE, epsilon_over_c=0.5)
    said = r"epsilon_over_c = 0\.5 leaves nearly pure noise.*51\.4 %"
    with pytest.warns(TacitWarning, match=said), pytest.raises(Reached):
        scheme.train(task, coins=COINS)
    with pytest.raises(Reached):  # and 2 is above the bound of 1.9 that it names
        replace(PRIVATE, epsilon_over_c=2.0).train(task, coins=COINS)


@pytest.mark.parametrize("each", [0.5, 1.9, 18.0])
def test_how_often_a_sign_is_kept_is_what_the_noise_on_values_makes_of_it(each: float) -> None:
    scheme = replace(PRIVATE, epsilon_over_c=each)
    mechanism = scheme.sparse_vector(256)
    assert mechanism is not None and scheme.gamma is not None
    noise = laplace(Coins.from_seed(b"signs"), mechanism.value_scale, 100_000)
    kept = float((scheme.gamma + noise > 0).mean())
    assert abs(kept - scheme.sign_kept()) < 5.5 * math.sqrt(0.25 / 100_000)
    assert replace(scheme, epsilon_over_c=None).sign_kept() == 1.0


def test_a_gamma_that_clips_nearly_everything_is_warned_of(task: Task) -> None:
    with pytest.warns(TacitWarning, match="gamma = 1e-07 clips 100.0 % of the uploaded values"):
        replace(SMALL, gamma=1e-7).train(task, coins=COINS)
    replace(SMALL, gamma=10.0).train(task, coins=COINS)


def test_a_theta_d_that_never_refreshes_what_others_changed_is_warned_of(task: Task) -> None:
    with pytest.warns(TacitWarning, match=r"theta_d = 0\.01 never refreshed \d+ of 256 parameters"):
        replace(SMALL, theta_d=0.01).train(task, coins=COINS)


@SCHEDULES
@pytest.mark.parametrize("epochs", [1, 2])
def test_nothing_is_warned_of_where_every_download_is_whole(
    task: Task, schedule: Schedule, epochs: int
) -> None:
    """Warnings are errors here. One turn each is no reason to complain of downloads that never came."""
    replace(SMALL, schedule=schedule, epochs=epochs).train(task, coins=COINS)


def test_a_run_says_with_what_it_was_made_and_who_holds_the_model(task: Task) -> None:
    run = PRIVATE.train(task, coins=COINS)
    assert run.settings["schedule"] == "round-robin" and run.settings["selection"] == "largest"
    assert run.settings["epsilon_over_c"] == 40.0
    assert run.output.to == (SERVER, *owners(3)) and run.seeded
    assert not PRIVATE.train(task, coins=Coins()).seeded


def test_progress_counts_every_turn_and_ends_at_all(task: Task) -> None:
    told: list[tuple[int, int]] = []
    SMALL.train(task, coins=COINS, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 9) for n in range(1, 10)] + [(9, 9)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"selection": "largest"}, "selection is one of"),
        ({"schedule": "asynchronous"}, "schedule is one of"),
        ({"selection": Selection.RANDOM, "gamma": 0.1, "tau": 0.1}, "nothing would be uploaded"),
        ({"gamma": 1e39}, "gamma bounds a value"),
        ({"learning_rate": 1e39}, "learning_rate"),
    ],
)
def test_settings_that_would_do_something_else_than_they_say_are_refused(
    wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(SMALL, **wrong)


def test_a_value_beyond_gamma_or_an_upload_without_its_records_is_caught() -> None:
    server = replace_gamma(server_of(4, 4), 0.5)
    server.turn(ONE, 2)
    far = packed("upload", np.array([1]), np.array([0, 0.6, 0, 0], np.float32), examples=3)
    with pytest.raises(CheatingDetected, match="owner 1 uploaded a value beyond gamma"):
        server.add(ONE, far)
    bare = packed("upload", np.array([1]), np.array([0, 0.5, 0, 0], np.float32))
    with pytest.raises(WireError, match="owner 1"):
        server.add(ONE, bare)
    assert not server.parameters.any() and not server.counters.any()
    server.add(
        ONE, packed("upload", np.array([1]), np.array([0, 0.5, 0, 0], np.float32), examples=3)
    )
    assert server.parameters[1] == 0.5


def replace_gamma(server: ParameterServer, gamma: float) -> ParameterServer:
    server.gamma = gamma
    server.parameters[:] = 0
    return server


def test_the_same_values_at_other_places_get_other_noise(task: Task) -> None:
    size = flattened(parameters_of(task.start)).size
    scheme = replace(PRIVATE, theta_d=0.5, epsilon_over_c=1e-3)
    half = size // 2

    def answer(places: np.ndarray) -> bytes:
        work = Fixed(parameters_of(task.start), {0: np.zeros(size, np.float32)})
        vector = np.zeros(size, np.float32)
        vector[places] = 1
        return encode(member(task, scheme, work).handle(packed("turn", places, vector, turn=0)))

    assert answer(np.arange(half)) != answer(np.arange(half, 2 * half))


def test_a_restored_member_answers_other_parameters_with_other_noise(task: Task) -> None:
    size = flattened(parameters_of(task.start)).size
    scheme = replace(PRIVATE, epsilon_over_c=1e-3)  # the answer is the noise

    def answer(model: FloatArray) -> bytes:
        work = Fixed(parameters_of(task.start), {0: np.zeros(size, np.float32)})
        asked = unflattened(model, parameters_of(task.start))
        request = Message("start", turn=0, participants=3, model=list(asked))
        return encode(member(task, scheme, work).handle(request))

    model = np.zeros(size, np.float32)
    assert answer(model) == answer(model) != answer(model + 1)
