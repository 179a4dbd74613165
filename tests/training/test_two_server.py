"""Training on shares: the plain fixed-point run up to truncation, the same messages whatever the data."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import small_task
from tests.parties.two_party.views import FALSE_ALARM, OPEN, octets, p_fair, suspicious
from torch import nn

from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import (
    ConfigError,
    DataError,
    ProtocolError,
    RangeError,
    TacitError,
    UnsupportedLayer,
)
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.ring import Elements
from tacit.nn.federated import Task
from tacit.nn.local_work import parameters_of
from tacit.nn.networks import initialise
from tacit.parties.checkpoints import FileCheckpoint
from tacit.parties.links.local import outputs_of, run_pair
from tacit.parties.roles import Role
from tacit.parties.two_party import arithmetic
from tacit.parties.two_party.arithmetic import Kept
from tacit.parties.two_party.correlations import Correlation, Material
from tacit.parties.two_party.engine import InTheClear
from tacit.parties.two_party.network import Loss, Rate, encoded, network_of
from tacit.parties.two_party.session import Session
from tacit.parties.two_party.store import StreamedStore
from tacit.parties.views import FULL, Recording
from tacit.training import two_server
from tacit.training.two_server import (
    DEALER,
    NOBODY,
    SERVERS,
    Masks,
    Preprocessing,
    Terms,
    TwoServer,
    claims_of,
)

COINS = Coins.from_seed(b"two servers")
SMALL = TwoServer(epochs=3, batch_size=4, loss=Loss.RELU_SUM)
"""15 records: three batches of four and one of three."""


def task_of(records: int = 5, seed: int = 0) -> Task:
    return small_task(seed, records=records)


def coins(seed: str = "two servers") -> Coins:
    return Coins.from_seed(seed.encode())


def simulated(
    scheme: TwoServer, task: Task, engine: InTheClear | None = None
) -> tuple[list[Elements], list[float]]:
    """The same training in plain fixed point, truncated to the nearest unless told: weights, and each step's loss."""
    engine = engine or InTheClear(scheme.fixed)
    terms, fixed = Terms.of(scheme, task), scheme.fixed
    net = network_of(terms.spec, fixed, encoded(terms.spec, fixed, terms.start))
    inputs, labels = (torch.cat(part).numpy() for part in zip(*task.shards, strict=True))
    order, rows = terms.order(), terms.batches()
    x = fixed.encode(inputs)[order]
    y = fixed.encode(terms.targets(labels))[order]
    losses = []
    for step, batch in enumerate(terms.schedule()):
        here = rows[batch]
        values = Kept(f"batch {step}", net.rows(x[here]))
        errors = net.learn(engine, values, y[here], scheme.loss, str(step))
        net.move(engine, Rate.of(scheme.learning_rate, len(x[here])))
        losses.append(float((fixed.decode(errors) ** 2).sum()) / len(x[here]))
    return net.weights(), losses


def apart(fixed: FixedPoint, model: nn.Module, weights: Sequence[Elements]) -> float:
    """The largest difference, in units of the last fractional bit."""
    both = zip(parameters_of(model), weights, strict=True)
    most = max(float(np.abs(a - fixed.decode(np.ascontiguousarray(b))).max()) for a, b in both)
    return most * 2.0**fixed.fraction


def bound(scheme: TwoServer, task: Task) -> float:
    """Units by which two runs that truncate otherwise may differ in these small networks: an allowance, not derived.

    `test_a_training_is_the_plain_fixed_point_one_up_to_truncation` is exact; where this stands, all the rest of a run has to
    be right and truncations are not looked at. A step rounds a weight's change twice, and its gradient is off by what grows
    going back.
    """
    return len(Terms.of(scheme, task).schedule()) * (3 + scheme.learning_rate * 24)


Truncated = tuple[Elements, int, Elements]
"""What was truncated, by how many bits, and what came of it."""


@contextmanager
def noted_truncations() -> Iterator[list[Truncated]]:
    """All truncations of a run on shares, in order: values, not shares."""
    sides: dict[int, list[Truncated]] = {0: [], 1: []}
    honest = arithmetic.truncate

    def truncate(session: Session, share: Elements, bits: int | None = None) -> Elements:
        out = honest(session, share, bits)
        cut = session.fixed.fraction if bits is None else bits
        if not session.tracing:
            sides[session.party].append((share.copy(), cut, out.copy()))
        return out

    found: list[Truncated] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "truncate", truncate)
        yield found
    for (x0, bits, y0), (x1, other, y1) in zip(sides[0], sides[1], strict=True):
        assert bits == other
        found.append((x0 + x1, bits, y0 + y1))


class Followed(InTheClear):
    """Truncates as two servers did, if they truncated the same values; whatever else they did otherwise is noticed."""

    def __init__(self, fixed: FixedPoint, noted: list[Truncated]) -> None:
        super().__init__(fixed)
        self.noted = iter(noted)

    def truncate(self, values: Elements, bits: int) -> Elements:
        before, cut, after = next(self.noted)
        assert cut == bits and np.array_equal(before, values)
        return after


# --- a whole training


@pytest.mark.parametrize("loss", Loss, ids=lambda loss: loss.value)
@pytest.mark.parametrize("preprocessing", Preprocessing, ids=lambda p: p.value)
def test_a_training_is_the_plain_fixed_point_one_up_to_truncation(
    loss: Loss, preprocessing: Preprocessing
) -> None:
    """Each truncation is within a unit of its own value, and all else is the same, to the last bit."""
    epochs = 3 if preprocessing is Preprocessing.DEALER else 1
    scheme = replace(SMALL, loss=loss, preprocessing=preprocessing, epochs=epochs)
    task = task_of()
    with noted_truncations() as noted:
        run = scheme.train(task, coins=coins())
    for before, bits, after in noted:
        off = (after << np.uint64(bits)) - before
        assert np.abs(off.view(np.int64)).max() < 1 << bits
    engine = Followed(scheme.fixed, noted)
    weights, _ = simulated(scheme, task, engine)
    assert next(engine.noted, None) is None
    for opened, simple in zip(parameters_of(run.output.value), weights, strict=True):
        assert np.array_equal(opened, scheme.fixed.decode(simple).astype(np.float32))
    start = zip(parameters_of(run.output.value), Terms.of(scheme, task).start, strict=True)
    assert not any(np.array_equal(opened, first) for opened, first in start)


def test_the_same_coins_give_the_same_model_and_others_one_within_truncation() -> None:
    task = task_of()
    one, again, other = (
        SMALL.train(task, coins=coins(seed)).output.value for seed in ("a", "a", "b")
    )
    same = [np.array_equal(a, b) for a, b in zip(*map(parameters_of, (one, again)), strict=True)]
    assert all(same)
    second = [SMALL.fixed.encode(a) for a in parameters_of(other)]
    assert 0 < apart(SMALL.fixed, one, second) <= 2 * bound(SMALL, task)


@pytest.mark.parametrize("changes", [{"window": 1}, {"window": 5000, "apart": True}], ids=str)
def test_windows_change_nothing(changes: dict) -> None:
    task = task_of()
    one, other = (s.train(task, coins=coins()) for s in (SMALL, replace(SMALL, **changes)))
    both = zip(*(parameters_of(run.output.value) for run in (one, other)), strict=True)
    assert all(np.array_equal(a, b) for a, b in both)


def test_a_single_output_for_two_classes_learns_by_the_logistic_loss() -> None:
    task = task_of()
    shards = tuple((x, y % 2) for x, y in task.shards)
    model = initialise(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), torch.Generator().manual_seed(0)
    )
    binary = replace(task, start=model, shards=shards, classes=2)
    scheme = replace(SMALL, loss=Loss.LOGISTIC)
    run = scheme.train(binary, coins=coins())
    weights, _ = simulated(scheme, binary)
    assert apart(scheme.fixed, run.output.value, weights) <= bound(scheme, binary)
    with pytest.raises(ConfigError, match="relu-sum of one output is always 1"):
        SMALL.train(binary, coins=coins())


# --- to whom


def test_the_shares_that_servers_hold_add_up_to_what_is_opened_with_the_same_coins() -> None:
    task = task_of()
    opened = SMALL.train(task, coins=coins()).output.value
    held = SMALL.hold(task, coins=coins()).output.by
    assert set(held) == set(SERVERS)
    for a, b, wanted in zip(*held.values(), parameters_of(opened), strict=True):
        whole = SMALL.fixed.decode(np.ascontiguousarray(a + b)).astype(np.float32)
        assert np.array_equal(whole, wanted)
        alone = SMALL.fixed.decode(np.ascontiguousarray(a))
        assert np.median(np.abs(alone)) > 2.0**30  # a share alone is as large as the ring


@pytest.mark.parametrize("to, who", [("owners", (0, 1, 2)), ("owner 1", (1,)), (NOBODY, ())])
def test_only_those_whom_the_owners_agreed_on_get_the_model(to: str, who: tuple[int, ...]) -> None:
    task, scheme = task_of(), replace(SMALL, open_to=to, epochs=1)
    ran = run_pair(scheme.parties_of(task, coins()), recording=FULL)
    outputs = outputs_of(ran)
    for role in task.owners:
        got = isinstance(outputs[role], nn.Module)
        assert got == (role.index in who)
        tags = [frame.message().tag for frame in ran.views[role].frames()]
        assert tags == ["terms"] * 2 + (["model"] if got else ["end"]) * 2
        seen = scheme.observe(ran.views[role], role)
        assert len(seen.outputs) == got
        if got:
            pairs = zip(seen.outputs[0][1], parameters_of(outputs[role]), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)
    assert scheme.receivers(task.owners) == tuple(Role("owner", i) for i in who)


def test_a_model_for_nobody_is_not_trained_but_held() -> None:
    with pytest.raises(ConfigError, match="use hold"):
        replace(SMALL, open_to=NOBODY).train(task_of(), coins=coins())
    with pytest.raises(ConfigError, match="the last owner is owner 2"):
        replace(SMALL, open_to="owner 3").train(task_of(), coins=coins())


# --- losses


def test_losses_that_are_shown_are_those_of_the_plain_run() -> None:
    task, told = task_of(), []
    scheme = replace(SMALL, show_loss=3, loss=Loss.SQUARED_ERROR)
    outputs_of(run_pair(scheme.parties_of(task, coins(), told=lambda *said: told.append(said))))
    _, losses = simulated(scheme, task)
    assert [step for step, _ in told] == [0, 3, 6, 9]
    for step, loss in told:
        assert abs(loss - losses[step]) < 0.002
    assert losses[9] < losses[0]


def opened_tags(views, party: int) -> set[str]:
    return {tag for _, tag, _, _ in views[SERVERS[party]].shape if OPEN.fullmatch(tag)}


def test_nothing_is_opened_where_no_loss_is_shown() -> None:
    task = task_of()
    for every, count in ((0, 0), (4, 3)):
        scheme = replace(SMALL, show_loss=every)
        run = scheme.train(task, coins=coins(), recording=FULL)
        for party in (0, 1):
            tags = {tag for tag in opened_tags(run.views, party) if "open" in tag}
            assert len(tags) == count
        assert ("losses that were opened" in claims_of(scheme)[0].statement) == bool(every)


# --- views


@cache
def seen(kind: str, by: Preprocessing, masks: Masks = Masks.UNIFORM, seed: str = "views"):
    """A step of every batch, recorded, on records of a kind."""
    scheme = TwoServer(epochs=1, batch_size=8, loss=Loss.RELU_SUM, preprocessing=by, masks=masks)
    task = small_task(records=8)
    if kind != "any":
        fill = {"zeros": 0.0, "ones": 1.0, "canary": 0.3125}[kind]
        labels = {"zeros": 0, "ones": 3, "canary": 1}[kind]
        task = replace(
            task,
            shards=tuple((torch.full_like(x, fill), torch.full_like(y, labels)) for x, y in task.shards),
        )  # fmt: skip
    return scheme, task, scheme.train(task, coins=coins(seed), recording=FULL)


each_way = pytest.mark.parametrize("by", Preprocessing, ids=lambda p: p.value)


@each_way
def test_messages_are_the_same_whatever_the_records_are(by: Preprocessing) -> None:
    """Number, order, sizes and tags of all that a server or the dealer receives and sends."""
    runs = [seen(kind, by)[2] for kind in ("zeros", "any")]
    for role in (*SERVERS, *([DEALER] if by is Preprocessing.DEALER else [])):
        shapes = []
        for run in runs:
            sent = [(f.peer, f.wave, f.message().tag, len(f.data)) for f in run.views[role].sent()]
            shapes.append((run.views[role].shape, sent))
        assert shapes[0] == shapes[1] and len(shapes[0][1]) > 10


PUBLIC = {"terms", "first weights", "kept", "from"}


@each_way
@pytest.mark.parametrize("kind", ["zeros", "any"])
def test_all_that_servers_see_is_fair(by: Preprocessing, kind: str) -> None:
    """False alarm, had the coins not been seeded: `FALSE_ALARM` a check, some hundred checks a run.

    What all were told and the first weights are public.
    """
    found = [name for name in suspicious(_Secret(seen(kind, by)[2])) if "two-party" not in name]
    assert found == []


class _Secret:
    """A run without the messages that are public."""

    def __init__(self, run) -> None:
        self.views = {role: _SecretView(view) for role, view in run.views.items()}


class _SecretView:
    def __init__(self, view) -> None:
        self.view = view

    def sent(self):
        return (frame for frame in self.view.sent() if frame.message().tag not in PUBLIC)


@each_way
def test_what_owners_send_to_server_1_is_fair(by: Preprocessing) -> None:
    """It is each record less a mask; of zeros, the mask alone."""
    run = seen("zeros", by)[2]
    rows = [
        array
        for frame in run.views[SERVERS[1]].frames()
        if frame.peer.kind == "owner" and frame.message().tag == "rows"
        for array in frame.message().arrays("arrays")
    ]
    assert len(rows) == 6 and p_fair(octets(rows)) > FALSE_ALARM


@each_way
def test_the_sabotaged_twin_is_found(by: Preprocessing) -> None:
    run = seen("zeros", by, Masks.NONE)[2]
    assert any(name.startswith("added: ") for name in suspicious(_Secret(run)))
    assert all(not claim.hides for claim in claims_of(seen("zeros", by, Masks.NONE)[0]))


def canary_in(run, fixed: FixedPoint, role: Role) -> bool:
    """Whether a record of the canary stands in a frame, as ring elements or floats, or in sums of both servers' parts."""
    needles = [
        fixed.encode(np.full(16, 0.3125)).tobytes(),
        np.full(16, 0.3125, np.float32).tobytes(),
    ]
    frames = [frame.data for frame in (*run.views[role].frames(), *run.views[role].sent())]
    return any(needle in data for needle in needles for data in frames)


@each_way
@pytest.mark.parametrize("masks", Masks, ids=lambda m: m.value)
def test_a_planted_record_is_seen_by_nobody_unless_the_masks_are_gone(
    by: Preprocessing, masks: Masks
) -> None:
    scheme, _, run = seen("canary", by, masks)
    roles = [role for role in run.views if role in (*SERVERS, DEALER)]
    assert not any(canary_in(run, scheme.fixed, role) for role in roles)
    for role in SERVERS:
        if by is Preprocessing.TRANSFERS and masks is Masks.UNIFORM:
            continue  # a server's part in transfers hangs on its own coins, and cannot be run again from its view
        observed = scheme.observe(run.views[role], role)
        assert not observed.empty and len(observed.aggregates) == 3
        clear = [np.allclose(array, 0.3125) for _, array in observed.intermediates]
        assert len(clear) == 3
        assert all(clear) if masks is Masks.NONE else not any(clear)


def test_observed_records_of_the_sabotaged_twin_are_the_owners_in_the_order_that_is_said() -> None:
    scheme, task, run = seen("any", Preprocessing.DEALER, Masks.NONE)
    records = torch.cat([x for x, _ in task.shards]).numpy()
    observed = scheme.observe(run.views[SERVERS[1]], SERVERS[1])
    for (_, images), update in zip(observed.intermediates, observed.aggregates, strict=True):
        assert np.abs(images - records[list(update.records)]).max() <= 2.0**-14
    honest = seen("any", Preprocessing.DEALER)
    for _, images in honest[0].observe(honest[2].views[SERVERS[1]], SERVERS[1]).intermediates:
        assert np.median(np.abs(images)) > 2.0**40


def test_the_sabotaged_twin_learns_the_same() -> None:
    scheme, task, run = seen("any", Preprocessing.DEALER, Masks.NONE)
    assert apart(scheme.fixed, run.output.value, simulated(scheme, task)[0]) <= bound(scheme, task)


# --- going on after a kill


class Killed(Exception):
    """No error of tacit."""


def killed_at(step: int):
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("by, steps", [(Preprocessing.DEALER, (1, 2, 5, 11, 12)), (Preprocessing.TRANSFERS, (3,))]
)  # fmt: skip
def test_a_run_that_was_killed_goes_on_to_the_same_model(
    by: Preprocessing, steps: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_server, "SAVED_EVERY", 2)
    task = task_of()
    scheme = replace(SMALL, preprocessing=by, loss=Loss.SQUARED_ERROR)
    wanted, _ = simulated(scheme, task)
    for step in steps:
        file = FileCheckpoint(tmp_path / f"{step}", b"this run")
        keep = lambda members, file=file: file  # noqa: E731
        with pytest.raises(Exception) as stopped:
            scheme.train(task, coins=coins("one"), keep=keep, progress=killed_at(step))
        assert stopped.type is Killed or isinstance(stopped.value, TacitError)
        told: list[int] = []
        run = scheme.train(
            task, coins=coins("two"), keep=keep, progress=lambda done, total, told=told: told.append(done)
        )  # fmt: skip
        # What both had kept by then; server 0 is killed before it saves only where the other is not behind.
        assert told[-1] == 12 and len(told) >= 12 - step
        assert told[0] > 1 or step < 3
        assert apart(scheme.fixed, run.output.value, wanted) <= bound(scheme, task)


def test_after_a_kill_no_mask_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened of the same batch is another number in every life, whatever it hides."""
    monkeypatch.setattr(two_server, "SAVED_EVERY", 2)
    task, file = task_of(), FileCheckpoint(tmp_path / "kept", b"this run")
    seeds = iter(("one", "two"))
    sent: list[set[int]] = []
    for progress in (killed_at(7), lambda done, total: None):
        parties = SMALL.parties_of(
            task, coins(next(seeds)), progress=progress, checkpoints=two_server._joint(file)
        )
        ran = run_pair(parties, recording=FULL)
        frames = [
            frame.message() for frame in ran.views[SERVERS[1]].frames() if frame.peer == SERVERS[0]
        ]
        arrays = [array for one in frames if "#" in one.tag for array in one.arrays("arrays")]
        sent.append(
            {word for array in arrays if array.size >= 48 for word in array.reshape(-1).tolist()}
        )
    assert file.load(CostMeter()) is not None
    assert all(len(words) > 100 for words in sent)
    assert not sent[0] & sent[1]


def test_checkpoints_of_two_runs_are_not_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stand at the same step, and their shares add up to no model: the servers begin anew."""
    monkeypatch.setattr(two_server, "SAVED_EVERY", 2)
    task, scheme = task_of(), replace(SMALL, loss=Loss.SQUARED_ERROR)
    files = {
        (seed, role): FileCheckpoint(tmp_path / f"{seed} {role}", b"this run")
        for seed in ("one", "two")
        for role in SERVERS
    }

    def alive(first: str, second: str, seed: str, progress=lambda done, total: None):
        mine = dict(
            zip(SERVERS, (files[first, SERVERS[0]], files[second, SERVERS[1]]), strict=True)
        )
        parties = scheme.parties_of(task, coins(seed), checkpoints=mine, progress=progress)
        return run_pair(parties, deadline=10.0)

    for seed in ("one", "two"):
        assert alive(seed, seed, seed, killed_at(7)).errors
    steps = [file.load(CostMeter()).array("steps").tolist() for file in files.values()]
    assert steps[0] == steps[2] == [4, 6]
    told: list[int] = []
    ran = alive("one", "two", "three", lambda done, total: told.append(done))
    model = outputs_of(ran)[Role("owner", 0)]
    assert told[0] == 1
    assert apart(scheme.fixed, model, simulated(scheme, task)[0]) <= bound(scheme, task)


def test_of_a_run_that_went_on_a_server_s_messages_are_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_server, "SAVED_EVERY", 2)
    task, file = task_of(), FileCheckpoint(tmp_path / "kept", b"this run")
    with pytest.raises((Killed, TacitError)):
        SMALL.train(task, coins=coins("one"), keep=lambda _: file, progress=killed_at(7))
    run = SMALL.train(task, coins=coins("two"), keep=lambda _: file, recording=FULL)
    for role in SERVERS:
        observed = SMALL.observe(run.views[role], role)
        assert observed.intermediates and not observed.aggregates


# --- a planted mistake


class Repeating(StreamedStore):
    """Both servers' parts of a correlation in one step are those of the first step that had such a one."""

    first: dict[int, dict[str, Material]] = {}  # noqa: RUF012 - emptied by the test

    def take(self, wanted: Correlation) -> tuple[int, Material]:
        number, material = super().take(wanted)
        party = threading.get_ident()
        shape = re.sub(r"'[0-9]+/", "'", str(wanted))
        return number, self.first.setdefault(party, {}).setdefault(shape, material)


def test_a_mask_that_is_used_in_two_steps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is right all the same; what both servers see of weights and activations tells how far they moved."""
    scheme = TwoServer(epochs=3, batch_size=24, loss=Loss.SQUARED_ERROR)
    task = small_task(records=8)

    def found() -> list[str]:
        run = scheme.train(task, coins=coins("views"), recording=FULL)
        assert apart(scheme.fixed, run.output.value, simulated(scheme, task)[0]) < 2**7  # 1/64
        return [name for name in suspicious(_Secret(run)) if "two-party" not in name]

    assert found() == []
    Repeating.first.clear()
    monkeypatch.setattr(two_server, "StreamedStore", Repeating)
    names = found()
    assert any(name.startswith("twice: added: ") and "matmul" in name for name in names)


# --- terms


OTHER = {
    "loss": {"loss": Loss.LOGISTIC},
    "epochs": {"epochs": 4},
    "batch_size": {"batch_size": 5},
    "learning_rate": {"learning_rate": 0.25},
    "fraction": {"fraction": 12},
    "window": {"window": 1000},
    "show_loss": {"show_loss": 2},
    "open_to": {"open_to": "owner 0"},
    "masks": {"masks": Masks.NONE},
    "apart": {"apart": True},
}


def mixed(task: Task, other: Task, culprit: Role, scheme: TwoServer, theirs: TwoServer, **more):
    """All are told one thing, and one party another."""
    parties = scheme.parties_of(task, coins(), **more.get("here", {}))
    parties[culprit] = theirs.parties_of(other, coins(), **more.get("there", {}))[culprit]
    return run_pair(parties, deadline=10.0)


@pytest.mark.parametrize("culprit", [SERVERS[1], Role("owner", 0), DEALER], ids=str)
@pytest.mark.parametrize("named", OTHER)
def test_a_party_with_another_setting_is_named_with_it(named: str, culprit: Role) -> None:
    task = task_of()
    ran = mixed(task, task, culprit, SMALL, replace(SMALL, **OTHER[named]))
    errors = [e for r, e in ran.errors.items() if r != culprit and str(culprit) in str(e)]
    assert any(
        isinstance(e, ProtocolError) and f"{culprit} was told another {named} " in str(e)
        for e in errors
    ), ran.errors
    assert not ran.outputs.keys() & set(task.owners)


def _other_tasks(task: Task) -> dict[str, Task]:
    weights = deepcopy(task.start)
    with torch.no_grad():
        next(iter(weights.parameters()))[0, 0] += 2.0**-20
    deeper = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    x, y = task.shards[2]
    return {
        "first weights (SHA-256)": replace(task, start=weights),
        "network": replace(task, start=deeper),
        "seed": replace(task, seed=9),
        "records": replace(task, shards=(*task.shards[:2], (x[:-1], y[:-1]))),
    }


@pytest.mark.parametrize("named", ["first weights (SHA-256)", "network", "seed", "records"])
def test_a_party_with_another_model_order_or_records_is_named_with_it(named: str) -> None:
    task = task_of()
    for culprit in (SERVERS[1], Role("owner", 0), DEALER):
        ran = mixed(task, _other_tasks(task)[named], culprit, SMALL, SMALL)
        texts = [str(e) for e in ran.errors.values() if isinstance(e, ProtocolError)]
        # A peer of another network has other first weights too, which come first in the alphabet.
        names = (named, "first weights (SHA-256)") if named == "network" else (named,)
        assert any(
            f"{culprit} was told another {name} " in text for text in texts for name in names
        )


def test_owners_whose_columns_differ_stop() -> None:
    task = task_of()
    names = [f"column {k}" for k in range(16)]
    turned = {"here": {"columns": names}, "there": {"columns": names[::-1]}}
    ran = mixed(task, task, Role("owner", 1), SMALL, SMALL, **turned)
    texts = [str(e) for e in ran.errors.values() if isinstance(e, ProtocolError)]
    assert any("owner 1 was told another columns" in text for text in texts)
    assert not ran.outputs.keys() & set(task.owners)


# --- records and models that cannot be


def test_records_out_of_range_name_the_owner_the_column_and_a_precision_that_fits() -> None:
    task = task_of()
    x, y = task.shards[1]
    x = x.clone()
    x[2, 0, 1, 1] = -(2.0**37)
    large = replace(task, shards=(task.shards[0], (x, y), task.shards[2]))
    with pytest.raises(RangeError, match=r"owner 1, column 5: .*12 fractional bits would fit"):
        SMALL.train(large, coins=coins())
    x[2, 0, 1, 1] = float("nan")
    with pytest.raises(RangeError, match="owner 1, column 5: a value is not finite"):
        SMALL.train(large, coins=coins())


def test_an_unsupported_model_is_refused_before_anybody_begins() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Sigmoid())
    with pytest.raises(UnsupportedLayer, match="2 Sigmoid cannot be computed on shares"):
        SMALL.train(replace(task_of(), start=model), coins=coins())
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ConfigError, match="one output a class, 4"):
        SMALL.train(replace(task_of(), start=model), coins=coins())


def test_an_owner_whose_records_are_not_as_agreed_stops() -> None:
    task = task_of()
    terms = Terms.of(SMALL, task)
    x, y = task.shards[0]
    for shard, match in (((x[:-1], y[:-1]), "has 4 records where 5"), ((x, y + 4), "from 0 to 3")):
        parties = SMALL.parties_of(task, coins())
        role = Role("owner", 0)
        parties[role] = lambda channels, shard=shard: two_server.owner(
            channels, Role("owner", 0), terms, shard, coins()
        )
        ran = run_pair(parties, deadline=10.0)
        with pytest.raises(DataError, match=match):
            raise ran.errors[role]
        assert not ran.outputs


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0}, {"window": 0}, {"show_loss": -1}, {"batch_size": 0}, {"learning_rate": 0.0},
        {"fraction": 31}, {"open_to": "somebody"}, {"open_to": "owner x"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        TwoServer(**changes)


def test_digest_recordings_are_enough_for_counts() -> None:
    run = replace(SMALL, epochs=1).train(task_of(), coins=coins(), recording=Recording())
    assert run.seeded and run.views[SERVERS[0]].messages > 0
