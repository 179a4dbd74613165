"""The GAN insider [2] on MNIST and on AT&T faces: in which schemes it works, what sees it, and what stops it.

On MNIST the victim holds the target and the four classes after it, the insider the other five, of 20,000 images; judges are
trained on 20,000 others, and the test set measures them and the shared model. Kinds of cases, each with a scheme and a
target of its own:

- ``two-party``: selective SGD with everything shared, a step a turn; ``passive`` the same without injection. A passive
  insider sends what an honest one would, to the bit: so this is also the run *without* the attack, which tells how visible
  it is. On its final model ``gradient-ascent`` descends on -log p from noise, as the paper compares.
- ``theta0.1``: a tenth uploaded and downloaded; ``theta_u0.1``: a tenth uploaded, all downloaded. With a tenth downloaded
  the insider's copy is mostly its own work, and no longer what the victim teaches the model.
- ``averaging``, ``federated-sgd`` and ``secure-aggregation``: three participants, of whom two share the victim's part. The
  first and the last differ in nothing but who sees updates. The first two have a ``passive`` twin.
- ``svt/epsilon_over_c...``: the paper's sparse vectors, 15 steps a turn; ``local-dp/noise...``: noise on every gradient.
- ``user-level/...``: participant-level differential privacy among ten, of whom one alone holds the target; first with clips
  and no noise, as a control.

On AT&T 40 participants hold a person each, and a 41st, the insider, three images of the person after the target. Faces are
scaled to 64x64; six images a person are trained on, the judges on four others. They take turns as in ``two-party``, with
batches of 3. With so few records of a class a generator runs in circles, or ends in one image: here its average is shown,
images are made to differ, and it interpolates in place of transposed convolutions.

Batches of 64 stand in for the paper's 1. Settings were chosen on other seeds than those of the figures, on the targets 1, 3,
4, 7 and 9, and on four faces. Each run is a case of its own: cases run side by side, and each finished one is kept.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, WhiteBox
from tacit.attacks.gan_insider import GANInsider, Insider, place
from tacit.attacks.model_inversion import Cost, MIFace, Start
from tacit.audit.figures import Effort, Figure, figure, one_thread, over_seeds
from tacit.audit.gan_cells import turns
from tacit.audit.gan_metrics import (
    GANFigures,
    GANJudges,
    JudgeRecipe,
    gan_figures,
    train_gan_judges,
)
from tacit.audit.kept import Found, Kept, key_of, side_by_side
from tacit.audit.pictures import contact_sheet
from tacit.audit.provenance import plain
from tacit.audit.statistics import Estimate, clopper_pearson
from tacit.core.claims import PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import Diverged, TacitWarning
from tacit.core.files import write_file
from tacit.core.wire import Array
from tacit.dp.accounting import Accountant
from tacit.nn.data import DataSet, load
from tacit.nn.federated import Shard, Task
from tacit.nn.generators import strided_cnn
from tacit.nn.local_work import HonestTraining, Instead, Share, accuracy
from tacit.nn.updates import LocalUpdate, LocalWork, flattened
from tacit.parties.roles import Role
from tacit.training.local_dp import LocalDP
from tacit.training.plain import FederatedAveraging, FederatedSGD
from tacit.training.secure_aggregation import SecureAggregation
from tacit.training.selective_sgd import SelectiveSGD
from tacit.training.user_level_dp import UserLevelDP

Scheme = (
    FederatedAveraging | FederatedSGD | LocalDP | SecureAggregation | SelectiveSGD | UserLevelDP
)
Data = Literal["mnist", "att-faces"]

DIGITS = 10
FACES = 40
_RECORDS = 20_000
_SHOWN = 8
_MADE = 4
"""So many images are made for each that is judged, since some may be alike."""

_ONE = 3
"""The target of kinds that have one."""

_ATTACK = GANInsider(
    target=0, fresh=DIGITS, start_accuracy=0.0, start_round=3, injected=8, width=16
)
_OFTEN = replace(_ATTACK, start_round=30, steps=2)
"""In rounds of one step, of which there are ten times as many."""

_VISIBLE = ("averaging", "federated-sgd")
"""Kinds with a passive twin, beside ``two-party``."""

_NOT_QUICK = tuple(
    f"mnist/{name}"
    for name in ("theta0.1", "averaging/passive", "federated-sgd", "federated-sgd/passive")
)

_TURNS = SelectiveSGD(
    theta_u=1.0, epochs=600, local_steps=1, batch_size=64, learning_rate=0.04, decay=1.0
)
_AVERAGE = FederatedAveraging(rounds=60, local_steps=15, batch_size=64, learning_rate=0.08)
_SGD = FederatedSGD(rounds=600, batch_size=64, learning_rate=0.08)
_PRIVATE = replace(
    _TURNS, theta_u=0.1, gamma=0.003, tau=0.0003, epochs=60, local_steps=15
)  # a turn draws noise for every parameter
_BUDGETS: tuple[float, ...] = (100.0, 10.0, 1.0, 0.1)
_LOCAL_NOISE: tuple[float, ...] = (0.001, 0.01, 0.1)
_USERS = UserLevelDP(
    rounds=80, local_steps=15, batch_size=32, learning_rate=0.1, clip=2.0, noise_multiplier=0.0, delta=1e-3,
    accountant=Accountant.RDP,
)  # fmt: skip
_USER_NOISE: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0)

_ASCENT = MIFace(iterations=500, step_size=1.0, cost=Cost.MINUS_LOG_P, confidence=0.99)

_FACES = SelectiveSGD(
    theta_u=1.0, epochs=90, local_steps=1, batch_size=3, learning_rate=0.02, decay=1.0
)
_ON_FACES = GANInsider(
    target=0, fresh=FACES, start_accuracy=0.0, start_round=20, steps=6, batch=16, learning_rate=1e-3, injected=12,
    averaged=0.95, spread=0.05, width=16, smooth=True,
)  # fmt: skip
_FACE_JUDGES = JudgeRecipe(
    steps=1500, batch_size=32, learning_rate=0.02, copies=8, pool=2, generators=10, members=5
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run with an insider, and what its images show.

    Args:
        name: of its figures.
        seed: of everything that is drawn, with the target.
        target: the class that the insider is after.
        scheme: how all train.
        attack: how the insider goes about it; target and seed are filled in.
        data: mnist, or att-faces.
        participants: the insider is the last.
        alone: whether one participant holds the target and nothing else, and all others share the other classes; else
            the insider alone holds the other half of the classes.
        width: of the shared model's first convolution.
        judged: distinct images that are judged.
        judges: how judges are trained.
        ascent: also descend on the final model.
        shown: images of some rounds are kept for a contact sheet.
    """

    name: str
    seed: int
    target: int
    scheme: Scheme
    attack: GANInsider = _ATTACK
    data: Data = "mnist"
    participants: int = 2
    alone: bool = False
    width: int = 16
    judged: int = 500
    judges: JudgeRecipe = JudgeRecipe()  # noqa: RUF009
    ascent: bool = False
    shown: bool = False

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


def cases(effort: Effort) -> list[Case]:
    """The parts of the reproduction, the longest first.

    Args:
        effort: by default three digits of ten and two faces, and one target of each other kind; ``quick``: one digit, no
            faces, fewer kinds, less noise to choose from, three quarters of the rounds, quicker judges and fewer images
            judged; ``full``: all digits and ten faces.
    """
    seed = effort.seed
    digits = range(DIGITS) if effort.full else (_ONE,) if effort.quick else (1, 3, 9)
    budgets, noises, on_users = _BUDGETS, _LOCAL_NOISE, _USER_NOISE
    if effort.quick:
        budgets, noises, on_users = _BUDGETS[::2], _LOCAL_NOISE[1:2], _USER_NOISE[::3]
    made: list[Case] = []
    if not effort.quick:
        people = range(0, FACES, 4) if effort.full else (0, 20)
        made += [
            Case(
                name="att-faces", seed=seed, target=person, scheme=_FACES, attack=_ON_FACES, data="att-faces",
                participants=FACES + 1, judged=100, judges=_FACE_JUDGES,
            )
            for person in people
        ]  # fmt: skip
    for target in digits:
        like = Case(name="mnist/two-party", seed=seed, target=target, scheme=_TURNS, attack=_OFTEN)
        quiet = replace(like, name="mnist/passive", attack=replace(_OFTEN, injected=0), ascent=True)
        made += [like, quiet]
    three: tuple[tuple[str, Scheme, GANInsider], ...] = (
        ("averaging", _AVERAGE, _ATTACK),
        ("secure-aggregation", _secure(_AVERAGE), _ATTACK),
        ("federated-sgd", _SGD, _OFTEN),
    )
    for name, down in (("theta0.1", 0.1), ("theta_u0.1", 1.0)):
        part = replace(_TURNS, theta_u=0.1, theta_d=down)
        made.append(Case(name=f"mnist/{name}", seed=seed, target=_ONE, scheme=part, attack=_OFTEN))
    for name, scheme, attack in three:
        like = Case(
            name=f"mnist/{name}", seed=seed, target=_ONE, scheme=scheme, attack=attack, participants=3
        )  # fmt: skip
        made.append(like)
        if name in _VISIBLE:
            twin = f"{like.name}/passive"
            made.append(replace(like, name=twin, attack=replace(attack, injected=0)))
    for budget in budgets:
        name = f"mnist/svt/epsilon_over_c{budget:g}"
        private = replace(_PRIVATE, epsilon_over_c=budget)
        made.append(Case(name=name, seed=seed, target=_ONE, scheme=private))
    for noise in noises:
        scheme = LocalDP(
            rounds=_SGD.rounds, batch_size=64, learning_rate=_SGD.learning_rate, noise_multiplier=noise
        )  # fmt: skip
        made.append(
            Case(
                name=f"mnist/local-dp/noise{noise:g}", seed=seed, target=_ONE, scheme=scheme, attack=_OFTEN,
                participants=3,
            )
        )  # fmt: skip
    for noise in on_users:
        made.append(
            Case(
                name=f"mnist/user-level/noise{noise:g}", seed=seed, target=_ONE, participants=10, alone=True,
                scheme=replace(_USERS, noise_multiplier=noise),
            )
        )  # fmt: skip
    first: dict[str, Case] = {}
    for case in made:
        first.setdefault(case.name, case)
    sheets = ("mnist/two-party", "mnist/passive", "att-faces")
    made = [replace(c, shown=c.name in sheets and first[c.name] is c) for c in made]
    return [_quick(c) for c in made if c.name not in _NOT_QUICK] if effort.quick else made


def _secure(like: FederatedAveraging) -> SecureAggregation:
    return SecureAggregation(
        rounds=like.rounds, local_steps=like.local_steps, batch_size=like.batch_size, learning_rate=like.learning_rate
    )  # fmt: skip


def _quick(case: Case) -> Case:
    """Three quarters of the rounds, with quicker judges and fewer images."""
    scheme, fewer = case.scheme, math.ceil(turns(case.scheme) * 3 / 4)
    shorter = (
        replace(scheme, epochs=fewer)
        if isinstance(scheme, SelectiveSGD)
        else replace(scheme, rounds=fewer)
    )
    return replace(
        case, scheme=shorter, judged=100,
        judges=replace(case.judges, steps=600, width=8, generators=5),
    )  # fmt: skip


# --- who holds what


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Whose records are whose.

    Args:
        task: of all participants; the insider is the last.
        inside: what the judges and nobody else learn from, with labels.
        tested: what measures the judges and the shared model, with labels. On faces these are the participants' own records:
            the accuracy there only says that the training has converged.
        others: records of the target that nobody in the collaboration has; on faces they are the judges'.
        classes: the fresh one not counted.
    """

    task: Task = field(repr=False)
    inside: Shard = field(repr=False)
    tested: Shard = field(repr=False)
    others: Tensor = field(repr=False)
    classes: int

    @property
    def insider(self) -> Role:
        """Who attacks."""
        return self.task.owners[-1]


def divide(case: Case, data: DataSet) -> Division:
    """A case's participants and judges.

    Args:
        case: the case.
        data: MNIST or AT&T, or the like.
    """
    return _faces(case, data) if case.data == "att-faces" else _digits(case, data)


def _digits(case: Case, data: DataSet) -> Division:
    inputs, labels = data.inputs_train, data.labels_train
    drawn = torch.Generator().manual_seed(1000 * case.seed + case.target)
    half = min(_RECORDS, len(inputs) // 2)
    # the same for every target of a seed, so that a process trains judges once
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(case.seed))
    shared, judges = order[:half], order[half : 2 * half]
    # the target and as many classes after it as make half of them; or it alone
    span = 1 if case.alone else data.classes // 2
    theirs = (labels[shared] - case.target) % data.classes < span
    victims, rest = shared[theirs], shared[~theirs]
    many = case.participants - 1
    parts = [victims, *rest.chunk(many)] if case.alone else [*victims.chunk(many), rest]
    shape = data.input_shape
    return Division(
        task=Task(
            name=data.name,
            start=strided_cnn(shape, data.classes + 1, case.width, generator=drawn),
            shards=tuple((inputs[rows], labels[rows]) for rows in parts),
            input_shape=shape,
            classes=data.classes + 1,
            seed=case.seed,
        ),
        inside=(inputs[judges], labels[judges]),
        tested=(data.inputs_test, data.labels_test),
        others=data.inputs_test[data.labels_test == case.target],
        classes=data.classes,
    )


def _faces(case: Case, data: DataSet) -> Division:
    inputs = torch.cat([data.inputs_train, data.inputs_test])
    labels = torch.cat([data.labels_train, data.labels_test])
    inputs = scaled(inputs)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(case.seed))
    by_person = [order[labels[order] == person] for person in range(data.classes)]
    shared, judges = [rows[:6] for rows in by_person], torch.cat([rows[6:] for rows in by_person])
    known = (case.target + 1) % data.classes
    parts = [rows if person != known else rows[:3] for person, rows in enumerate(shared)]
    parts.append(shared[known][3:])
    shape = tuple(inputs.shape[1:])
    drawn = torch.Generator().manual_seed(1000 * case.seed + case.target)
    together = torch.cat(shared)
    return Division(
        task=Task(
            name=data.name,
            start=strided_cnn(shape, data.classes + 1, case.width, centred=True, generator=drawn),
            shards=tuple((inputs[rows], labels[rows]) for rows in parts),
            input_shape=shape,
            classes=data.classes + 1,
            seed=case.seed,
        ),
        inside=(inputs[judges], labels[judges]),
        tested=(inputs[together], labels[together]),
        others=inputs[judges][labels[judges] == case.target],
        classes=data.classes,
    )


def scaled(images: Tensor, side: int = 64) -> Tensor:
    """Images averaged down to ``side`` pixels each way."""
    grown = nn.functional.interpolate(images, size=(2 * side, 2 * side), mode="bilinear")
    return nn.functional.avg_pool2d(grown, 2)


# --- a case


class _Watched:
    """An owner's work, and of each of its updates what a server can compute that sees it.

    Attributes:
        norms: L2, update by update.
        raises: whether it moves the bias of the fresh class up; a gradient, which is stepped against, is taken with its
            sign turned.
    """

    def __init__(self, make: Instead | None) -> None:
        self._make = make
        self._sign = 1
        self.norms: list[float] = []
        self.raises: list[bool] = []
        self._work: LocalWork | None = None

    def __call__(self, honest: HonestTraining) -> _Watched:
        self._sign = -1 if honest.share is Share.GRADIENT else 1
        self._work = honest if self._make is None else self._make(honest)
        return self

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        if self._work is None:
            raise Diverged("this work has no training")
        made = self._work.update(model, round)
        self.norms.append(float(np.linalg.norm(flattened(made.arrays).astype(np.float64))))
        self.raises.append(
            self._sign * float(made.arrays[-1][-1]) > 0
        )  # the last bias: the fresh class's
        return made


def run_case(case: Case, data: DataSet | None = None) -> Found:
    """What a case gives, as plain values.

    Args:
        case: the case.
        data: in place of the data set that it names.
    """
    begun = time.perf_counter()
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", TacitWarning
        )  # of noise: it goes to where nothing else is left
        divided = divide(case, data or load(case.data))
        judges = _judges(case, divided) if data else _kept_judges(case.data, case.seed, case.judges)
        found = _attacked(case, divided, judges)
    return found | {"seconds": time.perf_counter() - begun}


@cache
def _kept_judges(name: Data, seed: int, recipe: JudgeRecipe) -> GANJudges:
    """A process trains the judges of a seed once."""
    case = Case(name=name, seed=seed, target=0, scheme=_TURNS, data=name, judges=recipe)
    return _judges(case, divide(case, load(name)))


def _judges(case: Case, divided: Division) -> GANJudges:
    return train_gan_judges(
        *divided.inside, divided.classes, held=divided.tested, recipe=case.judges,
        generator=torch.Generator().manual_seed(1_000_003 + case.seed),
    )  # fmt: skip


def _attacked(case: Case, divided: Division, judges: GANJudges) -> Found:
    who = divided.insider
    attack = replace(
        case.attack, target=case.target, seed=1000 * case.seed + case.target,
        watched=turns(case.scheme) // _SHOWN if case.shown else 0,
    )  # fmt: skip
    task, slots = place(divided.task, {who: attack})
    watched = {role: _Watched(task.instead.get(role)) for role in task.owners}
    task = replace(task, instead=watched)
    diverged = ""
    run = None
    try:
        run = case.scheme.train(task, coins=Coins.from_seed(case.key.encode()))
    except Diverged as error:  # of all, as noise may do: an outcome too
        diverged = str(error)
    insider = slots[who].insider
    own, _ = divided.task.here()[who]
    theirs = torch.cat([x[y == case.target] for x, y in divided.task.here().values()])

    def judged(images: Tensor, count: int = case.judged) -> GANFigures:
        return gan_figures(
            images, case.target, count=count, judges=judges, victims=theirs, others=divided.others, own=own,
            classes=divided.classes, generator=torch.Generator().manual_seed(case.seed),
        )  # fmt: skip

    made = insider.samples(_MADE * case.judged).nan_to_num()  # of a generator that diverged: black
    found = plain_figures(judged(made))
    model = None if run is None else run.output.value
    if case.ascent and model is not None:
        found["ascent"] = plain_figures(judged(_ascended(case, divided, model), 50))
    if case.shown:
        found["pictures"] = _pictures(insider, theirs)
    losses = [c.value for c in run.claims if isinstance(c.value, PrivacyLoss)] if run else []
    return found | {
        "accuracy": 0.0 if model is None else accuracy(model, *divided.tested),
        "tested": len(divided.tested[0]),
        "norms": _medians(watched, who, insider),
        "raises_fresh": _raising(watched, who, insider),
        "began": insider.began,
        "ended": insider.ended,
        "diverged": diverged or None,
        "confidence": next((m.confidence for m in reversed(insider.moments) if m.confidence is not None), None),
        "epsilon": [loss.epsilon for loss in losses if math.isfinite(loss.epsilon)],
        "claims": [str(loss) for loss in losses],
    }  # fmt: skip


def _pictures(insider: Insider, theirs: Tensor) -> list[Any]:
    """Some images of each round that was watched, and real ones last, as 0 to 255."""
    rows = [m.images for m in insider.moments if m.images is not None] + [theirs[:8]]
    fewest = min(map(len, rows))
    return [(row[:fewest, 0] * 255).round().int().tolist() for row in rows]


def _medians(watched: Mapping[Role, _Watched], who: Role, insider: Insider) -> dict[str, float]:
    """Median norms of updates since the attack began, before any protection: of the insider's, and of the others'."""
    since = insider.began or 0
    norms = _parted({role: one.norms[since:] for role, one in watched.items()}, who)
    return {name: statistics.median(of) if of else 0.0 for name, of in norms.items()}


def _raising(watched: Mapping[Role, _Watched], who: Role, insider: Insider) -> dict[str, float]:
    """Shares of updates since the attack began that raise the bias of the fresh class, likewise."""
    since = insider.began or 0
    raises = _parted({role: one.raises[since:] for role, one in watched.items()}, who)
    return {name: statistics.mean(of) if of else 0.0 for name, of in raises.items()}


def _parted(of: Mapping[Role, Sequence[float]], who: Role) -> dict[str, list[float]]:
    """The insider's, and all others' together."""
    others = [one for role, these in of.items() if role != who for one in these]
    return {"insider": list(of[who]), "others": others}


def _ascended(case: Case, divided: Division, model: nn.Module) -> Tensor:
    """The target by descent on -log p of the final model, from different noise each time."""
    drawn = torch.Generator().manual_seed(case.seed)
    task = divided.task
    noise = 0.3 * torch.rand(100, 1, *task.input_shape, generator=drawn)
    found = _ASCENT.invert(
        WhiteBox(model),
        Knowledge(input_shape=task.input_shape, classes=task.classes),
        torch.full((len(noise),), case.target),
        start=Start(name="noise", images=noise),
    )
    return found.images


def plain_figures(found: GANFigures) -> Found:
    """Figures as plain values."""

    def of(one: Estimate) -> dict[str, object]:
        return one.as_json()

    return {
        "hit_rate": of(found.hit_rate),
        "junk_aware_hit_rate": of(found.junk_aware_hit_rate),
        "nn_ratio": of(found.nn_ratio),
        "own_ratio": of(found.own_ratio),
        "distinct": found.distinct,
        "controls": {name: list(rates) for name, rates in found.controls.items()},
        "judge_accuracy": found.plain_accuracy,
        "junk_aware_judge_accuracy": found.aware_accuracy,
        "chance": found.chance,
    }


# --- the reproduction


class _Kept(Kept):
    file = "2.json"
    numbers = ("seconds", "accuracy")


def _side_by_side(todo: Sequence[Case]) -> Iterable[tuple[Case, Found]]:
    return side_by_side(todo, run_case)


def reproduce_gan(effort: Effort) -> dict[str, object]:
    """The GAN insider on MNIST and AT&T faces, in every kind of scheme, beside a passive one and gradient ascent.

    Args:
        effort: see `cases`; contact sheets are written to its folder.

    Raises:
        DataError: MNIST is not there; or AT&T, unless ``quick``.
        OutputError: finished cases or a contact sheet cannot be kept.

    Source: Hitaj, Ateniese, Perez-Cruz, CCS 2017, section 6: it shows pictures and gives no rates.
    """
    wanted = cases(effort)
    for name in sorted({case.data for case in wanted}):
        load(name)  # that it is not there must show before hours of training
    kept = _Kept.opened(effort.folder)
    for case, found in kept.finished(wanted, _side_by_side, effort.progress):
        effort.progress(
            f"{case.name}, target {case.target}: plain judge {found['hit_rate']['value']:.1%}, junk-aware "
            f"{found['junk_aware_hit_rate']['value']:.1%} ({found['seconds']:.0f} s)"
        )
    pairs = [(case, kept.found[case.key]) for case in wanted]
    if effort.folder is not None:
        _show(effort.folder, pairs)
    return {
        "paper": 2,
        "title": "Hitaj, Ateniese, Perez-Cruz: GAN insider in collaborative training",
        "seeded": True,
        "quick": effort.quick,
        "full": effort.full,
        "seed": effort.seed,
        "computing_seconds": round(sum(found["seconds"] for _, found in pairs), 1),
        "figures": figures(pairs),
    }


def _show(folder: Path, pairs: Sequence[tuple[Case, Found]]) -> None:
    """Contact sheets: a row for each round that was watched, and a last one of real records."""
    for case, found in pairs:
        if "pictures" in found:
            rows = [np.asarray(row, np.float64) / 255 for row in found["pictures"]]
            name = f"gan-{case.name.replace('/', '-')}-{case.target}.png"
            write_file(folder / name, contact_sheet(rows))


# --- the figures

_RATES = ("hit_rate", "junk_aware_hit_rate", "nn_ratio", "own_ratio")


def figures(pairs: Sequence[tuple[Case, Found]]) -> list[Figure]:
    """All figures of some cases and what they gave: means over targets."""
    kinds: dict[str, list[tuple[Case, Found]]] = {}
    for case, found in pairs:
        kinds.setdefault(case.name, []).append((case, found))
    made = [one for name, of in kinds.items() for one in _of_kind(name, of)]
    twins = {"two-party": "mnist/passive"} | {name: f"mnist/{name}/passive" for name in _VISIBLE}
    for name, passive in twins.items():
        made += _visible(name, kinds.get(f"mnist/{name}", []), kinds.get(passive, []))
    return made


def _of_kind(name: str, pairs: Sequence[tuple[Case, Found]]) -> list[Figure]:
    case, first = pairs[0]
    attacked = case.attack.injected > 0
    said = {
        "targets": [one.target for one, _ in pairs],
        "scheme": {"name": type(case.scheme).__name__, **plain_scheme(case)},
        "attack": plain(case.attack), "participants": case.participants, "distinct": [f["distinct"] for _, f in pairs],
        "began": [f["began"] for _, f in pairs], "ended": [f["ended"] for _, f in pairs],
        "diverged": [f["diverged"] for _, f in pairs], "judges": plain(case.judges),
        "judge_accuracy": first["judge_accuracy"], "junk_aware_judge_accuracy": first["junk_aware_judge_accuracy"],
        "controls (plain, junk-aware)": [f["controls"] for _, f in pairs], "claims": first["claims"],
    }  # fmt: skip
    made = [_mean(f"{name}/{of}", [f[of] for _, f in pairs], said, attacked) for of in _RATES]
    shares = [float(f["accuracy"]) for _, f in pairs]
    right = _over_targets(shares, clopper_pearson(round(shares[0] * first["tested"]), first["tested"]))  # fmt: skip
    of = "training_accuracy" if case.data == "att-faces" else "accuracy"
    made.append(figure(f"{name}/{of}", statistics.mean(shares), right, len(shares), settings=said))
    if epsilons := [e for _, f in pairs for e in f["epsilon"]]:
        value = max(epsilons)
        made.append(figure(f"{name}/epsilon", value, (value, value), 1, settings=said, better="lower"))  # fmt: skip
    if "ascent" in first:
        of_model = [f["ascent"] for _, f in pairs if "ascent" in f]
        ascended: dict[str, object] = {
            "targets": said["targets"], "model": f"the final one of {name}", "attack": plain(_ASCENT),
            "distinct": [one["distinct"] for one in of_model],
            "controls (plain, junk-aware)": [one["controls"] for one in of_model],
        }  # fmt: skip
        stem = "mnist/gradient-ascent"
        made += [_mean(f"{stem}/{of}", [one[of] for one in of_model], ascended, True) for of in _RATES]  # fmt: skip
    return made


def plain_scheme(case: Case) -> dict[str, object]:
    """A case's scheme as plain values."""
    found = plain(case.scheme)
    return found if isinstance(found, dict) else {}


def _mean(
    name: str, estimates: Sequence[Mapping[str, Any]], said: dict[str, object], attacked: bool
) -> Figure:
    """The mean over targets with Student's interval; of one target what its images say."""
    values = [float(one["value"]) for one in estimates]
    low, high = estimates[0]["interval"]
    is_rate = name.endswith("hit_rate")
    better = "higher" if is_rate == attacked or name.endswith("own_ratio") else "lower"
    settings = said | {
        "by_target": values, "least": min(values), "most": max(values),
        "interval": "Student's t over targets" if len(values) > 1 else "over the images of one target",
    }  # fmt: skip
    interval = _over_targets(values, (low, high))
    n = len(values) if len(values) > 1 else int(estimates[0]["n"])
    return figure(name, statistics.mean(values), interval, n, settings=settings, better=better)


def _over_targets(values: Sequence[float], of_one: tuple[float, float]) -> tuple[float, float]:
    found = over_seeds(values)
    return of_one if found is None else found


def _visible(
    kind: str, active: Sequence[tuple[Case, Found]], passive: Sequence[tuple[Case, Found]]
) -> list[Figure]:
    """What differs, for the server and for all, from the run without the attack."""
    without = {case.target: found for case, found in passive}
    both = [(found, without[case.target]) for case, found in active if case.target in without]
    if not both:
        return []
    lost = [w["accuracy"] - a["accuracy"] for a, w in both]
    norms = [a["norms"]["insider"] / (w["norms"]["insider"] or math.inf) for a, w in both]
    raising = [a["raises_fresh"]["insider"] - a["raises_fresh"]["others"] for a, _ in both]
    seen = "accuracy", "norms", "raises_fresh"
    said: dict[str, object] = {
        "with": [{of: a[of] for of in seen} for a, _ in both],
        "without": [{of: w[of] for of in seen} for _, w in both],
        "norms": "medians over the updates since the attack began; no loss is sent in any of these schemes",
        "raises_fresh": "shares of those updates that move the bias of the fresh class up, which nobody has records of",
    }  # fmt: skip
    first, twin = both[0]
    return [
        figure(
            f"mnist/visibility/{kind}/{name}", statistics.mean(values), _over_targets(values, of_one), len(values),
            settings=said, better=better,
        )
        for name, values, of_one, better in (
            ("accuracy_lost", lost, _apart(lost[0], first, twin), "lower"),
            ("update_norm_ratio", norms, (norms[0], norms[0]), "equal"),
            ("fresh_bias_raised_more", raising, (raising[0], raising[0]), "lower"),
        )
    ]  # fmt: skip


def _apart(lost: float, one: Found, other: Found) -> tuple[float, float]:
    """Of a difference of two accuracies as if on different records, so rather too wide: 95 %."""
    spread = sum(f["accuracy"] * (1 - f["accuracy"]) / f["tested"] for f in (one, other))
    return lost - 1.96 * math.sqrt(spread), lost + 1.96 * math.sqrt(spread)
