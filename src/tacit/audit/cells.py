"""How one cell of the matrix is measured: an attack from its vantage, judged by ground truth that it never sees.

Each plan builds the access and knowledge of an adversary that stands at its vantage, runs the attack, and compares the
outcome with the truth and with the controls. A `Measurement` is what one trained row gave; `pooled` joins those of several
seeds into the cell that is reported.

Chance is measured where it is not known: for reconstructions it is the same attack against another update, that is, the
reconstruction from one update compared with the records behind another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, RoleView, TrainFunction
from tacit.attacks.curious import GradientLeakage, Leaked
from tacit.attacks.exposure import PlaintextExposure, standing
from tacit.attacks.gradient_matching import match_batch
from tacit.audit import statistics
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.nn.federated import Progress, Task, honest_work
from tacit.nn.local_work import HonestTraining, Share
from tacit.nn.lots import LotGradients
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.runs import Opened, Run
from tacit.parties.views import Observation, Recording, Update, View
from tacit.training.secure_aggregation import SecureAggregation

T = TypeVar("T")

VANTAGES = {"server": SERVER, "participant": Role("owner", 0)}
SHOWN = 10
"""Reconstructions that a cell keeps for the report."""


class Protection(Protocol):
    """What `compare` needs of a training scheme."""

    def train(
        self, task: Task, *, coins: Coins, recording: Recording, progress: Progress
    ) -> Run[Opened[nn.Module]]:
        """Train on the task's records."""
        ...

    def observe(self, view: View, role: Role) -> Observation:
        """What an adversary at ``role`` makes of its view."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """An evaluator network: another architecture, another seed and other records than any model that is attacked.

    Args:
        model: gives one score a class, and a last one for junk.
        accuracy: on records that it was not trained on, junk included.
    """

    model: nn.Module = field(repr=False)
    accuracy: float

    def recognises(self, images: Tensor, labels: Tensor) -> float:
        """The share of images that it takes for their label."""
        self.model.eval()
        with torch.no_grad():
            return float((self.model(images.clamp(0, 1)).argmax(1) == labels).float().mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A trained row with all that the audit knows of it.

    Args:
        protection: the scheme.
        run: its outcome.
        task: what was learned.
        members: records and labels that were trained on, owner by owner.
        nonmembers: as many that were not.
        population: records like them, disjoint from both.
        train_fn: the recipe that an adversary may imitate.
        judge: the evaluator.
        seed: of the attack's draws.
        coins: makes those of the run anew, so that the audit knows which records were in secret lots; None where it cannot.
        shared: what attacks with the same knowledge need not compute again, kept by all rows of a seed.
    """

    protection: Protection
    run: Run[Opened[nn.Module]] = field(repr=False)
    task: Task = field(repr=False)
    members: tuple[Tensor, Tensor] = field(repr=False)
    nonmembers: tuple[Tensor, Tensor] = field(repr=False)
    population: tuple[Tensor, Tensor] = field(repr=False)
    train_fn: TrainFunction = field(repr=False)
    judge: Judge = field(repr=False)
    seed: int
    coins: Callable[[], Coins] | None = field(default=None, repr=False)
    shared: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def knowledge(self) -> Knowledge:
        """What everybody who takes part knows: the architecture, the shape of records, the number of classes."""
        task = self.task
        return Knowledge(
            architecture=task.start, input_shape=task.input_shape, classes=task.classes
        )

    def observation(self, role: Role) -> Observation:
        """What an adversary at ``role`` makes of its view of the run."""
        return self.protection.observe(self.run.views[role], role)

    def generator(self, label: str) -> torch.Generator:
        """Draws for an attack: they follow from the seed and the label alone."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + sum(label.encode()))

    def once(self, label: str, made: Callable[[], T]) -> T:
        """What is made at first and then shared by all rows of the seed: it must follow from the knowledge alone."""
        if label not in self.shared:
            self.shared[label] = made()
        found: T = self.shared[label]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one attack gave on one trained row.

    Args:
        metric: name of the figure; higher means more leak.
        access: False where the observation is empty and the attack had nothing to run on.
        value: the figure; None where the attack could not run.
        n: what it rests on.
        counts: for rates, (successes, trials) of each update or set of records that succeeds or fails together.
        chance: what it reaches where nothing leaks.
        interval: of the figure.
        knowledge: what the adversary knew.
        why: one sentence on how it came about.
        saw: what the adversary had before it.
        queries: how often it asked the model; None where it asked nothing.
        details: further figures.
        figures: images and curves for the report.
        sums: the same attack on sums, where the role saw these beside single updates; `pooled` takes the stronger.
        second: the same attack at the second server, where there is one; `pooled` takes the stronger.
    """

    metric: str
    access: bool = True
    value: float | None = None
    n: int = 0
    counts: tuple[tuple[int, int], ...] | None = None
    chance: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    knowledge: dict[str, object] = field(default_factory=dict)
    why: str = ""
    saw: dict[str, object] = field(default_factory=dict)
    queries: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict, repr=False)
    sums: Measurement | None = field(default=None, repr=False)
    second: Measurement | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The measurement as plain values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Measurement:
        """A measurement saved by `as_json`."""
        counts, sums, second = saved["counts"], saved.get("sums"), saved.get("second")
        return cls(
            **{
                **saved,
                "sums": None if sums is None else cls.from_json(sums),
                "second": None if second is None else cls.from_json(second),
                "interval": tuple(saved["interval"]),
                "counts": None if counts is None else tuple((h, n) for h, n in counts),
            }
        )


About = Literal["records", "model"]


class Plan(Protocol):
    """How a cell is measured."""

    @property
    def name(self) -> str:
        """``attack@vantage``."""
        ...

    @property
    def title(self) -> str:
        """A few words for a heading."""
        ...

    @property
    def explains(self) -> str:
        """One sentence: what the metric counts."""
        ...

    @property
    def chance_means(self) -> str:
        """One sentence: what chance is here."""
        ...

    @property
    def metric(self) -> str:
        """Name of the figure."""
        ...

    @property
    def about(self) -> About:
        """What it takes: training records, or what any useful model tells of itself."""
        ...

    def measure(self, trial: Trial) -> Measurement:
        """Run the attack and judge it."""
        ...


Vantage = Literal["server", "participant"]


def _everywhere(
    trial: Trial, vantage: Vantage, measure: Callable[[Trial, Role], Measurement]
) -> Measurement:
    """An attack at a vantage; at each server, where a run has two."""
    first = measure(trial, VANTAGES[vantage])
    second = Role("server", 1)
    if vantage != "server" or second not in trial.run.views:
        return first
    return replace(first, second=measure(trial, second))


@dataclass(frozen=True, slots=True)
class ExposureAt:
    """Plaintext exposure at a role: the share of other parties' records that stand in the clear in what it sees."""

    vantage: Vantage
    metric: ClassVar[str] = "exposed"
    about: ClassVar[About] = "records"
    explains: ClassVar[str] = (
        "Share of the training records that stand in the clear in what this role receives."
    )
    chance_means: ClassVar[str] = "None: a record does not appear by accident."

    @property
    def name(self) -> str:
        """``attack@vantage``."""
        return f"{PlaintextExposure.name}@{self.vantage}"

    @property
    def title(self) -> str:
        """A few words for a heading."""
        return f"Records in the clear, at a {self.vantage}"

    def measure(self, trial: Trial) -> Measurement:
        """Count the records that an adversary at the vantage reads off; of two servers at each."""
        return _everywhere(trial, self.vantage, self._at)

    def _at(self, trial: Trial, role: Role) -> Measurement:
        observation = trial.observation(role)
        if observation.empty:
            return Measurement(metric=self.metric, access=False, why="the role receives nothing")
        saw = _saw(observation, trial.run.views[role])
        knowledge = Knowledge(input_shape=trial.task.input_shape)
        rows = PlaintextExposure().recover(RoleView(observation), knowledge)
        own = trial.task.records[role.index] if role.kind == "owner" else 0
        others = trial.members[0][own:]  # the participant is owner 0, whose records come first
        hits = sum(standing(others, rows))
        return Measurement(
            metric=self.metric,
            value=hits / len(others),
            counts=((hits, len(others)),),
            n=len(others),
            interval=statistics.clopper_pearson(hits, len(others)),
            knowledge=knowledge.described(),
            saw=saw,
            why=f"{hits} of {len(others)} records found among {len(rows)} rows of the observation",
        )


@dataclass(frozen=True, slots=True)
class LeakageAt:
    """Gradient leakage at a role: the share of attacked records that their reconstructions identify."""

    vantage: Vantage
    attack: GradientLeakage = field(default_factory=GradientLeakage)
    metric: ClassVar[str] = "reidentified"
    about: ClassVar[About] = "records"
    explains: ClassVar[str] = (
        "Share of the attacked records that are, among all training records, the nearest (by correlation) to a "
        "reconstruction from the update that they are behind."
    )
    chance_means: ClassVar[str] = (
        "The same attack against another update: its records instead of the attacked ones."
    )

    @property
    def name(self) -> str:
        """``attack@vantage``."""
        return f"{GradientLeakage.name}@{self.vantage}"

    @property
    def title(self) -> str:
        """A few words for a heading."""
        return f"Gradient leakage, at a {self.vantage}"

    def measure(self, trial: Trial) -> Measurement:
        """Reconstruct records from what the role saw, and look them up among all training records.

        Where the role saw updates of single owners and sums of several, both are attacked; and where a run has two servers,
        each is one from which to attack.
        """
        return _everywhere(trial, self.vantage, self._at)

    def _at(self, trial: Trial, role: Role) -> Measurement:
        observation = trial.observation(role)
        if observation.empty:
            return Measurement(metric=self.metric, access=False, why="the role receives nothing")
        saw = _saw(observation, trial.run.views[role])
        if not (observation.updates and observation.aggregates):
            return self._from(observation, saw, trial, role)
        single = self._from(replace(observation, aggregates=()), saw, trial, role)
        return replace(single, sums=self._from(replace(observation, updates=()), saw, trial, role))

    def _from(
        self, observation: Observation, saw: dict[str, object], trial: Trial, role: Role
    ) -> Measurement:
        knowledge = trial.knowledge
        try:
            leaked = self.attack.reconstruct(
                RoleView(observation), knowledge, trial.generator(self.name)
            )
        except NotEnoughEvidence as reason:
            return Measurement(
                metric=self.metric, knowledge=knowledge.described(), saw=saw, why=str(reason)
            )
        truth = _Truth(trial, role, observation)
        leaked = [item for item in leaked if truth.records(item.update)]  # a lot may be empty
        behind = [truth.records(item.update) for item in leaked]
        if not behind:
            why = "no record is behind the updates that were attacked"
            return Measurement(
                metric=self.metric, knowledge=knowledge.described(), saw=saw, why=why
            )
        control = [truth.others(item.update) for item in leaked]
        guesses = [_nearest(item.images, trial.members[0]) for item in leaked]
        n, others = sum(map(len, behind)), sum(map(len, control))
        counts = tuple(
            (len(g & set(rows)), len(rows)) for g, rows in zip(guesses, behind, strict=True)
        )
        misses = sum(len(g & set(rows)) for g, rows in zip(guesses, control, strict=True))
        # A guess that knows nothing names as many records at random.
        blind = sum(len(g) * len(rows) for g, rows in zip(guesses, behind, strict=True))
        chance = max(misses / others if others else 0.0, blind / n / len(trial.members[0]))
        return Measurement(
            metric=self.metric,
            value=sum(h for h, _ in counts) / n,
            counts=counts,
            n=n,
            chance=chance,
            interval=statistics.clustered_interval(counts),
            knowledge=knowledge.described() | _told(leaked[0].update),
            saw=saw,
            why=_story(leaked, n),
            details=_details(leaked, behind, trial, chance=misses / others if others else None),
            figures={"images": _pictures(leaked, behind, trial)},
        )


def _stronger(first: Measurement, second: Measurement, *named: str) -> Measurement:
    """The measurement that leaked more; the other, by its name, is told in `why`."""
    taken, other = (first, second) if _lead(first) >= _lead(second) else (second, first)
    which = named[0 if other is first else 1]
    reached = "could not run" if other.value is None else f"reached {other.value:.3g}"
    return replace(
        taken, why=f"{taken.why}; {which} the attack {reached} (chance {other.chance:.3g})"
    )


def _lead(measured: Measurement) -> tuple[bool, float]:
    """Whether an attack beat chance for certain, which the verdict looks at, and by how much it did at all."""
    if measured.value is None:
        return False, -1.0
    return measured.interval[0] > measured.chance, measured.value - measured.chance


def _saw(observation: Observation, view: View) -> dict[str, object]:
    """An observation in numbers."""
    found: dict[str, object] = {
        "messages received in all": view.messages,
        "bytes received in all": view.received,
        "updates of single owners": len(observation.updates),
        "means of several owners' updates": sum(
            one.records is None for one in observation.aggregates
        ),
        "gradients of steps, of what was opened": sum(
            one.records is not None for one in observation.aggregates
        ),
        "models": len(observation.outputs),
        "other arrays": len(observation.intermediates),
    }
    updates = observation.updates or observation.aggregates
    if updates and updates[0].seen is not None:
        seen, of = (
            sum(int(part.sum()) for part in updates[0].seen),
            sum(part.size for part in updates[0].seen),
        )
        found["of the first update"] = f"{seen} of {of} values"
    return {name: value for name, value in found.items() if value}


class _Truth:
    """Which training records are behind an update; rows count through all owners' records, each once."""

    def __init__(self, trial: Trial, role: Role, observation: Observation) -> None:
        self._trial = trial
        self._role = role
        self._seen = (*observation.updates, *observation.aggregates)
        sizes = list(trial.task.records)
        self._first = [sum(sizes[:index]) for index in range(len(sizes))]
        scheme, task, coins = trial.protection, trial.task, trial.coins
        self._lots: Mapping[Role, LotGradients] = {}
        if isinstance(scheme, SecureAggregation) and scheme.noisy:
            if coins is None:
                raise ConfigError("the lots of this run are secret: give the trial its coins")
            self._lots = scheme.lots(task, scheme.agreed(task), coins=coins())

    def _rows(self, update: Update, round: int, senders: Sequence[Role]) -> list[int]:
        share = Share.GRADIENT if update.steps == 1 else Share.CHANGE
        work: Mapping[Role, LotGradients | HonestTraining] = self._lots or honest_work(
            self._trial.task, share, batch_size=update.batch_size, local_steps=update.steps
        )
        rows = [
            self._first[role.index] + int(row)
            for role in senders
            for row in work[role].records(round)
        ]
        return list(dict.fromkeys(rows))

    def _senders(self, update: Update) -> list[Role]:
        if update.sender is not None:
            return [update.sender]
        return [role for role in owners(len(self._first)) if role != self._role]

    def records(self, update: Update) -> list[int]:
        """The records behind an update."""
        if update.records is not None:
            return list(update.records)
        return self._rows(update, update.round, self._senders(update))

    def others(self, update: Update) -> list[int]:
        """As many records behind another update: the next owner's, or the same owners' next round."""
        if update.records is not None:
            behind = set(update.records)
            after = (u.records for u in self._seen if u.round > update.round and u.records)
            return next((list(rows) for rows in after if behind.isdisjoint(rows)), [])
        if update.sender is not None:
            following = Role(update.sender.kind, (update.sender.index + 1) % len(self._first))
            return self._rows(update, update.round, [following])
        behind = set(self.records(update))
        later = self._rows(update, update.round + 1, self._senders(update))
        return [row for row in later if row not in behind]


def _nearest(images: Tensor, gallery: Tensor) -> set[int]:
    """The rows of the gallery that correlate most with an image; brightness and contrast do not count.

    A blank image, or one that is not finite, names none.
    """

    def centred(stack: Tensor) -> Tensor:
        flat = stack.flatten(1)
        return nn.functional.normalize(flat - flat.mean(1, keepdim=True), dim=1)

    likeness = (centred(images) @ centred(gallery).T).max(1)
    named = likeness.values.isfinite() & (likeness.values > 0)
    return {int(row) for row in likeness.indices[named]}


def _told(update: Update) -> dict[str, object]:
    """What the protocol itself tells every party."""
    return {
        "batch_size": update.batch_size,
        "local_steps": update.steps,
        "participants": update.senders,
    }


def _story(leaked: list[Leaked], n: int) -> str:
    first = leaked[0]
    each = n // len(leaked)
    noisy = " noisy" if first.update.noisy else ""
    behind = "1 record" if each == 1 else f"{each} records"
    return f"{first.road} on {len(leaked)}{noisy} updates with {behind} behind each, from round {first.update.round} on"


def _aligned(leaked: Leaked, rows: list[int], gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Originals and reconstructions in the same order."""
    originals = gallery[rows]
    images = leaked.images.clamp(0, 1)
    if len(images) < len(rows):  # a lot that is larger than on average
        images = images[torch.arange(len(rows)) % len(images)]
    return originals, images[match_batch(images, originals)]


def _details(
    leaked: list[Leaked], behind: list[list[int]], trial: Trial, *, chance: float | None
) -> dict[str, Any]:
    gallery, labels = trial.members
    pairs = [_aligned(item, rows, gallery) for item, rows in zip(leaked, behind, strict=True)]
    originals, images = (torch.cat(part) for part in zip(*pairs, strict=True))
    true = labels[[row for rows in behind for row in rows]]
    generator = trial.generator("controls")
    noise = torch.rand(images.shape, generator=generator)
    mean = trial.population[0].mean(0, keepdim=True).expand_as(images)
    guessed = [
        len(set(_counted(item.labels)) & set(_counted(labels[rows]))) / len(rows)
        for item, rows in zip(leaked, behind, strict=True)
    ]
    likeness = {"mean_absolute_error": float((originals - images).abs().mean())}
    if len(trial.task.input_shape) == 3:
        likeness = {
            "psnr_db": float(statistics.psnr(originals, images).median()),
            "ssim": float(statistics.ssim(originals, images).median()),
        }
    return {
        **likeness,
        "labels_inferred": sum(guessed) / len(guessed),
        "control_reidentified": chance,
        "evaluator": {
            "accuracy": trial.judge.accuracy,
            "recognised": trial.judge.recognises(images, true),
            "controls": {
                "noise": trial.judge.recognises(noise, true),
                "mean image": trial.judge.recognises(mean, true),
                "another victim": trial.judge.recognises(originals.roll(1, 0), true),
            },
        },
    }


def _counted(labels: Tensor) -> list[tuple[int, int]]:
    """Labels numbered among their equals, so that sets of them compare as multisets."""
    seen: dict[int, int] = {}
    out = []
    for label in labels.tolist():
        seen[label] = seen.get(label, 0) + 1
        out.append((label, seen[label]))
    return out


def _pictures(
    leaked: list[Leaked], behind: list[list[int]], trial: Trial
) -> list[dict[str, object]]:
    shown: list[dict[str, object]] = []
    if len(trial.task.input_shape) != 3:
        return shown
    for item, rows in zip(leaked, behind, strict=True):
        originals, images = _aligned(item, rows, trial.members[0])
        for original, image, row in zip(originals, images, rows, strict=True):
            if len(shown) == SHOWN:
                return shown
            shown.append(
                {
                    "original": pixels(original),
                    "reconstruction": pixels(image),
                    "caption": f"record {row}, round {item.update.round}",
                }
            )
    return shown


def pixels(image: Tensor) -> list[Any]:
    """An image (channels, height, width) as nested lists for a report, rounded to hundredths."""
    grid = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    return [[_rounded(value) for value in row] for row in grid.tolist()]


def _rounded(value: float | list[float]) -> Any:
    return [round(v, 2) for v in value] if isinstance(value, list) else round(value, 2)


def pooled(measurements: Sequence[Measurement]) -> Measurement:
    """One measurement of several seeds.

    Rates add up their counts, which may come in clusters. Where none are given (areas under the curve, images of one
    generator) the seeds' figures are averaged; their intervals, from independent seeds, shrink with the root of the number,
    and hold for the trainings that were made. Images, curves and further figures are the first seed's. Of single updates and
    sums the one that leaked more over all seeds is reported, and of two servers too; the other is told in `why`.
    """
    second = [m.second for m in measurements if m.second is not None]
    if second:
        first = pooled([replace(m, second=None) for m in measurements])
        return _stronger(first, pooled(second), "at server 0", "at server 1")
    sums = [m.sums for m in measurements if m.sums is not None]
    if sums:
        single = pooled([replace(m, sums=None) for m in measurements])
        return _stronger(
            single, pooled(sums), "on single owners' updates", "on sums of several owners' updates"
        )
    first = measurements[0]
    valid = [m for m in measurements if m.value is not None]
    if len(measurements) == 1 or not valid:
        return first
    n = sum(m.n for m in valid)
    chance = sum(m.chance * m.n for m in valid) / n
    details = {**first.details, "by_seed": [m.value for m in valid]}
    counts = tuple(count for m in valid for count in m.counts or ())
    if counts:
        value = sum(h for h, _ in counts) / n
        interval = statistics.clustered_interval(counts)
    else:
        value = sum(m.value or 0.0 for m in valid) / len(valid)
        below = math.sqrt(sum(((m.value or 0.0) - m.interval[0]) ** 2 for m in valid)) / len(valid)
        above = math.sqrt(sum((m.interval[1] - (m.value or 0.0)) ** 2 for m in valid)) / len(valid)
        interval = max(0.0, value - below), min(1.0, value + above)
    return Measurement(
        metric=first.metric,
        value=value,
        n=n,
        counts=counts or None,
        chance=chance,
        interval=interval,
        knowledge=first.knowledge,
        saw=first.saw,
        queries=first.queries,
        why=f"{first.why}; {len(valid)} seeds pooled, the further figures are the first seed's",
        details=details,
        figures=first.figures,
    )
