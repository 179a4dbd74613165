"""`tacit.audit`: every attack that the access permits, on a model of one's own.

Who holds what. The auditor holds the target, or what it answered, and two sets of records: members, which it was trained on,
and non-members, which it was not and which come from the same source. An attack is shown the target's answers on all of them
in one heap, never which is which; that is used to judge it alone. With a `train_fn` (or a `Recipe` and the target's
architecture) the auditor trains reference models on known halves of the same records, as the strongest adversary of the
literature does, who holds candidates and the training recipe. With a population, further records of the same source that no
model is trained on, come the attacks that compare with those.

Steps: check the records; ask the target about each once (or once for each augmentation); train reference models; score by
every membership attack; judge; then copy the model and look for what its classes look like (`tacit.audit.model_attacks`).
What an attack would have needed and did not get is said (`left_out`), never guessed.

Source: `tacit.audit.audit_attacks` names each attack's paper; `tacit.audit.audit_verdict` has the rule of the verdict.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tacit.attacks.access import QueryCounter, TrainFunction
from tacit.attacks.evidence import Population
from tacit.attacks.shadows import LEVEL, Query, as_it_is
from tacit.audit import membership_statistics, statistics
from tacit.audit.audit_attacks import (
    ATTACKS,
    SAVED,
    Attack,
    Case,
    FloatArray,
    Unable,
    evidence_of,
    scores_of,
)
from tacit.audit.audit_page import SCHEMA, write_audit
from tacit.audit.audit_references import reference_models
from tacit.audit.audit_verdict import Limit, bonferroni, jointly, judged, paragraphs
from tacit.audit.audited_data import Records, SavedScores, checks, records_of
from tacit.audit.figures import one_thread
from tacit.audit.membership_statistics import FALSE_POSITIVE_RATES, Unsupported
from tacit.audit.model_attacks import MODEL_ATTACKS, Subject, run_model_attacks
from tacit.audit.provenance import header, plain
from tacit.audit.targets import BATCH, Gives, Predict, Target, target_of, train_function
from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    EndpointError,
    NotEnoughEvidence,
    OutputError,
    TacitWarning,
    UnknownName,
)
from tacit.core.files import make_folder
from tacit.nn.stacked import Recipe, Trainer

Given = Records | tuple[Any, Any]
Watch = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and of how much."""

SHADOWS = 32
DELTA = 1e-5
#: Parameters below which a module is trained and asked by one thread.
SMALL = 1_000_000
_EXPOSED = 20
_CURVE = 200


def _quiet(what: str, done: int, total: int) -> None:
    del what, done, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a model is audited, apart from its records: see `audit` for each.

    Raises:
        ConfigError: a setting is out of range.
    """

    shadows: int
    augmentations: Sequence[Query]
    seconds: float | None
    queries: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.shadows < 4 or self.shadows % 2:
            raise ConfigError(
                f"an even number of at least 4 shadow models expected, {self.shadows} came: each record is in half of them"
            )
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigError(f"a budget above 0 seconds expected, {self.seconds} came")
        if self.queries is not None and self.queries < 4:
            raise ConfigError(
                f"a budget of at least 4 queries expected, {self.queries} came: two members and two non-members"
            )
        if not self.augmentations:
            raise ConfigError("at least one augmentation expected: as_it_is asks about the record itself")  # fmt: skip


def audit(  # noqa: PLR0913 - each is an option of `tacit audit`
    model: nn.Module | Predict | Target | SavedScores,
    *,
    members: Given | None = None,
    nonmembers: Given | None = None,
    population: Given | None = None,
    gives: Gives | None = None,
    train_fn: Callable[..., Any] | Recipe | None = None,
    shadows: int = SHADOWS,
    augmentations: Sequence[Query] = (as_it_is,),
    attacks: Sequence[str] | None = None,
    seconds: float | None = None,
    queries: int | None = None,
    fail_above: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    overwrite: bool = False,
    watch: Watch = _quiet,
) -> dict[str, Any]:
    """Measure what a model tells of who was in its training data, and how well it can be copied and inverted.

    Args:
        model: a torch module that gives logits (n, classes); a function of float32 arrays (n, *record shape) that gives
            probabilities, such as a classifier's ``predict_proba``; or `SavedScores`.
        members: records that the model was trained on, and their labels: arrays, tensors, or `Records`.
        nonmembers: records of the same source that it was not trained on.
        population: further records that it was not trained on, for the attacks that compare with those.
        gives: ``logits``, ``probabilities`` or ``labels``, where it is not what is said under `model`.
        train_fn: how a model like this is trained: ``train_fn(inputs, labels, generator)`` gives a module or a function; or,
            for a module, the `Recipe` by which it was trained from scratch. None: no reference models.
        shadows: reference models, even, at least 4; each record is in half of them.
        augmentations: see `tacit.attacks.shadows.ShadowEnsemble`; the target is asked the same.
        attacks: names in `ATTACKS` and `MODEL_ATTACKS`; all by default.
        seconds: a budget: when it is over no further reference models are trained and no further attack is begun.
        queries: a budget: the most records that the target is asked about. If it does not do for all, fewer are audited.
        fail_above: limits such as ``tpr@0.01fpr=0.05``; the report says which are exceeded.
        class_names: one a class.
        seed: of all that is drawn.
        out: folder for report.html, report.json and the reference models' answers, with which an interrupted audit goes on.
            It is as confidential as the records.
        overwrite: replace a report in that folder.
        watch: told what is going on, how much of it is done, and of how much.

    Returns:
        The report, as ``tacit audit --json`` prints it.

    Raises:
        ConfigError: a setting is out of range, or members and non-members are missing.
        DataError: records, labels or answers are not what they should be.
        UnknownName: no such attack or metric.
        NotEnoughEvidence: a limit is set on a figure that the records cannot support, or fewer than 2 of a kind came.
        BudgetExhausted: the queries do not do for two records of a kind.
        OutputError: the folder cannot be written, or holds a report.

    Warns:
        TacitWarning: what the report's ``warnings`` say too.
    """
    asking = Asking(
        shadows=shadows, augmentations=augmentations, seconds=seconds, queries=queries, seed=seed
    )
    limits, chosen = [Limit.parsed(text) for text in fail_above], _chosen(attacks)
    folder = None if out is None else Path(out)
    if folder is not None:
        if (folder / "report.json").exists() and not overwrite:
            raise OutputError(
                f"{folder} holds a report already: give another folder, or overwrite it"
            )
        make_folder(folder, private=True)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", TacitWarning)
        run = _Run(asking, watch)
        if isinstance(model, SavedScores):
            if any(one is not None for one in (members, nonmembers, population, train_fn)):
                raise ConfigError("saved scores alone expected: they hold members and non-members")
            _check_limits(limits, len(model.members), len(model.nonmembers))
            run.open_saved(model)
            _check_names(class_names, run.data["classes"])
        else:
            if members is None or nonmembers is None:
                raise ConfigError("members and nonmembers expected: records, with labels, of both")
            parts = _Parts(
                records_of(members, "members"), records_of(nonmembers, "nonmembers"),
                None if population is None else records_of(population, "population"),
            )  # fmt: skip
            _check_limits(limits, len(parts.members.labels), len(parts.nonmembers.labels))
            target = model
            if not isinstance(target, Target):
                classes = max(parts.classes, len(class_names or ())) if gives == "labels" else None
                target = target_of(target, gives=gives, classes=classes)
            if target.queries is not None:
                run.limit(
                    target.queries(torch.cat([parts.members.inputs, parts.nonmembers.inputs]))
                )
            trainer = _trainer(train_fn, target, parts.members)
            with _threads(target):
                run.open_model(target, parts)
                _check_names(class_names, run.data["classes"])  # before what takes long
                if trainer is not None:
                    run.train_references(trainer, parts, folder)
        scored = list(run.scored([one for one in chosen if one in ATTACKS]))
        rates = {*FALSE_POSITIVE_RATES, *(one.rate for one in limits if one.rate)}
        with _threads(run.case.target) if run.case.target else nullcontext():
            on_model = run.on_model(chosen, named=attacks is not None)
        result = run.result(scored, on_model, sorted(rates, reverse=True), class_names)
        result["limits"] = [one.held(result["attacks"], result["epsilon"]) for one in limits]
    _say_again(heard, result["warnings"])
    result["paragraphs"] = paragraphs(result)
    settings = {
        "attacks": None if attacks is None else list(attacks), "shadows": shadows, "seconds": seconds, "queries": queries,
        "augmentations": len(augmentations), "fail_above": list(fail_above), "seed": seed,
        "class_names": None if class_names is None else list(class_names),
        "recipe": plain(train_fn) if isinstance(train_fn, Recipe) else None,
    }  # fmt: skip
    said = header("audit", settings, run.spent, seeded=False)
    report = {**said, "schema": SCHEMA, **result}
    if folder is not None:
        write_audit(report, folder)
    if missing := [str(one["metric"]) for one in report["limits"] if one["exceeded"] is None]:
        raise NotEnoughEvidence(
            f"no attack gave {', '.join(missing)}, so that the limit cannot be judged: see in the report what was left out"
        )
    return report


def _threads(target: Target) -> AbstractContextManager[None]:
    """One thread for small modules on a processor: waiting for a second one can cost ten times what it saves."""
    small = target.parameters is not None and target.parameters < SMALL
    return one_thread() if small and target.device.type == "cpu" else nullcontext()


def _chosen(names: Sequence[str] | None) -> list[Attack]:
    known = {attack.name: attack for attack in (*ATTACKS, *MODEL_ATTACKS)}
    for name in names or ():
        if name not in known:
            raise UnknownName("attack", name, known)
    return [attack for attack in known.values() if names is None or attack.name in names]


def _check_names(names: Sequence[str] | None, classes: int | None) -> None:
    if names is not None and classes is not None and len(names) < classes:
        raise ConfigError(f"names of {classes} classes expected, {len(names)} came")


def _check_limits(limits: Sequence[Limit], members: int, nonmembers: int) -> None:
    if min(members, nonmembers) < 2:
        raise NotEnoughEvidence(
            f"at least 2 members and 2 non-members expected, {members} and {nonmembers} came"
        )
    for limit in limits:
        limit.check(nonmembers)


def _trainer(
    train_fn: Callable[..., Any] | Recipe | None, target: Target, records: Records
) -> TrainFunction | None:
    """What trains reference models; None where nothing does, or where labels are all that they could be compared by."""
    if train_fn is None or target.gives == "labels":
        return None
    if not isinstance(train_fn, Recipe):
        # What a function of records gives is told by the target only where that is one too.
        usual = target.kind != "module" and target.gives == "probabilities"
        return train_function(train_fn, None if usual else target.gives)
    if target.module is None:
        raise ConfigError(
            f"train_fn as a function expected: the architecture of a {target.kind} is not known, so a recipe is not enough"
        )
    with torch.no_grad():
        shape = tuple(target.module(records.inputs[:2].to(target.device)).shape)
    if target.gives != "logits" or len(shape) != 2 or shape[1] < 2:
        raise ConfigError(
            "a module that gives logits (n, classes) expected with a recipe, which trains by their cross-entropy; "
            f"{target.name} gives {target.gives} {shape}: give train_fn as a function"
        )
    return Trainer(network=target.module, recipe=train_fn)


def _say_again(heard: Sequence[warnings.WarningMessage], said: list[str]) -> None:
    """Ours join what the report says; all are given to the caller."""
    for one in heard:
        if not issubclass(one.category, TacitWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        elif (text := str(one.message)) not in said:
            said.append(text)
    for text in said:
        warnings.warn(text, TacitWarning, stacklevel=3)


class _Parts(NamedTuple):
    members: Records
    nonmembers: Records
    population: Records | None

    @property
    def classes(self) -> int:
        """As many as the labels need."""
        return 1 + max(int(one.labels.max()) for one in self if one is not None and len(one.labels))


class _Scored(NamedTuple):
    attack: Attack
    scores: FloatArray
    queries: int
    seconds: float
    needs: str


@dataclass(slots=True)
class _Run:
    """One audit under way: what is known so far, and what is to be said of it."""

    asking: Asking
    watch: Watch
    begun: float = field(default_factory=time.perf_counter)
    generator: torch.Generator = field(default_factory=torch.Generator)
    case: Case = field(default_factory=lambda: Case(members=0, places=np.zeros(0, np.int64)))
    counter: QueryCounter = field(default_factory=QueryCounter)
    answered: int = 0
    others: Tensor | None = None
    target: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    shadows: dict[str, Any] | None = None
    left_out: list[dict[str, str]] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.asking.seed)
        self.counter.budget = self.asking.queries

    def limit(self, queries: int) -> None:
        """Take the target's own budget where it is smaller than the caller's."""
        if self.asking.queries is None or queries < self.asking.queries:
            self.asking = replace(self.asking, queries=queries)
            self.counter.budget = queries

    @property
    def spent(self) -> float:
        """Seconds."""
        return time.perf_counter() - self.begun

    def left(self) -> float:
        """Seconds; infinity without a budget."""
        return math.inf if self.asking.seconds is None else self.asking.seconds - self.spent

    def left_for_training(self) -> float:
        """Seconds, of which a tenth of the budget is kept for the attacks."""
        return self.left() - (self.asking.seconds or 0.0) / 10

    def drawn(self) -> torch.Generator:
        """A generator that takes nothing from the others."""
        return torch.Generator().manual_seed(self.asking.seed)

    # -- what is audited

    def open_saved(self, saved: SavedScores) -> None:
        """What a model said before."""
        m, n = len(saved.members), len(saved.nonmembers)
        case = Case(members=m, places=np.concatenate([np.arange(m), np.arange(n)]), groups=saved.groups)  # fmt: skip
        case.no_references = "reference models' answers: save references and inside with the others"
        if saved.kind == "scores":
            case.scores = np.concatenate([saved.members, saved.nonmembers]).astype(np.float64)
        else:
            case.answers, case.labels = saved.answers, saved.labels
            case.population, case.references = saved.others, saved.compared
            case.labels_only = saved.gives == "labels"
        classes = None if case.answers is None else case.answers.shape[2]
        self.case = case
        self.target = {
            "kind": saved.kind, "name": saved.name, "gives": saved.gives if classes else "scores", "parameters": None,
            "accuracy": _accuracies(case),
        }  # fmt: skip
        self.data = {
            "members": m, "nonmembers": n, "population": 0 if case.population is None else len(case.population.labels),
            "classes": classes, "input_shape": None, "checks": [],
        }  # fmt: skip
        if case.references is not None:
            inside = case.references.inside
            self.shadows = {
                "models": len(inside), "inside_each": int(inside.sum(1).mean()), "seconds": None, "control": None,
                "kept_in": None,
            }  # fmt: skip

    def open_model(self, target: Target, parts: _Parts) -> None:
        """Check the records and ask the target about them."""
        self.watch("checking the records", 0, 1)
        checked = [one.as_json() for one in checks(*parts, self.drawn())]
        self.warned += [str(one["warning"]) for one in checked if one["warning"]]
        self.case = case = self._chosen_of(parts)
        case.target, case.labels_only = target, target.gives == "labels"
        population = parts.population
        self.others = None if population is None else population.inputs
        if case.inputs is None or case.labels is None:  # never: of records come both
            return
        case.answers = self._answers(target, case.inputs, "asking the target")
        self.answered = self.counter.spent
        classes = case.answers.shape[2]
        if not case.labels_only and case.labels.max() >= classes:
            raise ConfigError(
                f"labels 0 to {classes - 1} expected, as many as the target's classes, {case.labels.max()} came"
            )
        self.target = {
            "kind": target.kind, "name": target.name, "gives": target.gives, "parameters": target.parameters,
            "accuracy": _accuracies(case),
        }  # fmt: skip
        if population is not None:
            try:
                answers = self._answers(target, population.inputs, "asking about the population")
                case.population = Population(answers=answers, labels=population.labels.numpy())
            except BudgetExhausted as reason:
                self.warned.append(f"The population was not asked about: {reason}.")
        self.data = {
            "members": case.members, "nonmembers": len(case.places) - case.members,
            "population": 0 if case.population is None else len(case.population.labels),
            "classes": parts.classes if case.labels_only else classes, "input_shape": list(case.inputs.shape[1:]),
            "checks": checked,
        }  # fmt: skip

    def _chosen_of(self, parts: _Parts) -> Case:
        """All members and non-members, or as many of each as the queries do for."""
        both = (parts.members, parts.nonmembers)
        sizes, each = [len(one.labels) for one in both], len(self.asking.augmentations)
        places = [torch.arange(size) for size in sizes]
        if self.asking.queries is not None and self.asking.queries < sum(sizes) * each:
            fewer = [int(self.asking.queries / (sum(sizes) * each) * size) for size in sizes]
            if min(fewer) < 2:
                raise BudgetExhausted(
                    f"{self.asking.queries} queries do for {fewer[0]} members and {fewer[1]} non-members, 2 of each are "
                    "needed: raise the budget"
                )
            places = [
                torch.randperm(size, generator=self.generator)[:kept].sort().values
                for size, kept in zip(sizes, fewer, strict=True)
            ]
            self.warned.append(
                f"{self.asking.queries} queries do for {fewer[0]} of {sizes[0]} members and {fewer[1]} of {sizes[1]} "
                "non-members, drawn at random; the others were not audited."
            )
        groups: list[str] | None = []
        for one, at in zip(both, places, strict=True):
            if groups is not None and one.groups is not None:
                groups += [one.groups[k] for k in at.tolist()]
            else:
                groups = None
        return Case(
            members=len(places[0]), places=torch.cat(places).numpy(), groups=None if groups is None else tuple(groups),
            labels=torch.cat([one.labels[at] for one, at in zip(both, places, strict=True)]).numpy(),
            inputs=torch.cat([one.inputs[at] for one, at in zip(both, places, strict=True)]),
        )  # fmt: skip

    def _answers(self, target: Target, inputs: Tensor, what: str) -> npt.NDArray[np.floating]:
        """(q, n, classes) of the target."""
        queries = (as_it_is,) if target.gives == "labels" else self.asking.augmentations
        total, found = len(inputs) * len(queries), []
        self.counter.charge(total)
        target.model.eval()
        with torch.no_grad():
            for q, query in enumerate(queries):
                parts = []
                for low in range(0, len(inputs), BATCH):
                    self.watch(what, q * len(inputs) + low, total)
                    asked = query(inputs[low : low + BATCH].to(target.device))
                    parts.append(target.model(asked).detach().cpu().numpy())
                found.append(np.concatenate(parts))
        return np.stack(found)

    def train_references(self, trainer: TrainFunction, parts: _Parts, folder: Path | None) -> None:
        """Train reference models on halves of the records."""
        case, others, begun = self.case, parts.population, self.spent
        if case.target is None or case.inputs is None or case.labels is None or case.labels_only:
            return
        n = len(case.places)
        try:
            references = reference_models(
                trainer, (case.inputs.to(case.target.device), torch.from_numpy(case.labels)),
                None if others is None or case.population is None else (others.inputs, others.labels),
                models=self.asking.shadows, queries=self.asking.augmentations, folder=folder, generator=self.generator,
                left=self.left_for_training, told=lambda done, total: self.watch("training reference models", done, total),
            )  # fmt: skip
        except BudgetExhausted as reason:
            case.no_references = f"reference models: {reason}"
            return
        if references.classes != self.data["classes"]:
            raise ConfigError(
                f"reference models that give {self.data['classes']} classes expected, as the target does; they give "
                f"{references.classes}: correct train_fn"
            )
        case.references = references.at(np.arange(n))
        if case.population is not None:
            case.population = replace(case.population, references=references.logits[:, :, n:])
        control = references.control
        if references.models < self.asking.shadows:
            self.warned.append(
                f"{references.models} of {self.asking.shadows} reference models were trained in the seconds given."
            )
        if control is not None and control.p_value is not None and control.p_value > LEVEL:
            self.warned.append(
                f"The reference models are no surer of their own records than of others (p = {control.p_value:.2g}): either "
                "train_fn ignores the records that it is given, or such models tell nothing of them. Attacks that compare "
                "with them find nothing then."
            )
        self.shadows = {
            "models": references.models, "inside_each": int(references.inside[0].sum()),
            "seconds": round(self.spent - begun, 3), "control": None if control is None else control._asdict(),
            "kept_in": None if folder is None else str(folder),
        }  # fmt: skip

    # -- attacks

    def scored(self, chosen: Sequence[Attack]) -> Iterator[_Scored]:
        """Run what can be run; note down what cannot."""
        self.watch("reading the answers", 0, 1)
        evidence = evidence_of(self.case)
        for k, attack in enumerate(chosen):
            self.watch(attack.title, k, len(chosen))
            begun, asked = self.spent, self.counter.spent
            try:
                if self.left() <= 0:
                    raise Unable("the seconds were over")
                scores, needs = scores_of(attack, self.case, evidence, self.counter, self.generator)
            except (Unable, BudgetExhausted, EndpointError) as reason:
                if attack is SAVED and self.case.scores is None and len(chosen) > 1:
                    continue  # nobody misses it where there are answers
                self.left_out.append({"name": attack.name, "title": attack.title, "why": str(reason)})  # fmt: skip
                continue
            queries = self.answered + self.counter.spent - asked
            yield _Scored(attack, scores, queries, round(self.spent - begun, 4), needs)

    def on_model(self, chosen: Sequence[Attack], *, named: bool) -> list[dict[str, Any]]:
        """Run what attacks the model itself; note down what cannot be run."""
        if self.case.target is None and not named:
            return []  # nobody misses them where answers were saved
        subject = Subject(
            case=self.case, population=self.others, counter=self.counter, generator=self.generator
        )
        found = []
        for one in run_model_attacks(subject, chosen, self.left, self.watch):
            if isinstance(one, tuple):
                self.left_out.append({"name": one[0].name, "title": one[0].title, "why": one[1]})
            else:
                found.append(one)
        return found

    # -- what is said

    def result(
        self, scored: Sequence[_Scored], on_model: Sequence[dict[str, Any]], rates: Sequence[float],
        class_names: Sequence[str] | None,
    ) -> dict[str, Any]:  # fmt: skip
        """All but the header, as plain values."""
        confidence = 1.0
        if scored:
            table = np.stack([one.scores for one in scored])
            confidence = jointly(table, self.case.truth, self.drawn())
        attacks = [self._entry(one, rates, confidence) for one in scored]
        said = judged(attacks, self.data)
        best = next((one for one in scored if one.attack.name == said.strongest), None)
        more: dict[str, Any] = {"epsilon": None, "classes": {}, "groups": {}, "exposed": []}
        if best is not None:
            more = self._of_strongest(best, class_names, bonferroni(len(scored)))
        each = f"each {100 * confidence:.2f} %, those of one figure jointly 95 % over {len(scored)} attacks"
        return {
            "target": self.target, "data": self.data, "attacks": attacks, "model_attacks": list(on_model),
            "left_out": self.left_out,
            "confidence": {"auc": each, "tpr": each}, "verdict": said.verdict, "why": said.why,
            "strongest": said.strongest, **more, "shadows": self.shadows,
            "budget": {
                "seconds": self.asking.seconds, "queries": self.asking.queries, "queries_spent": self.counter.spent,
            },
            "warnings": list(self.warned),
        }  # fmt: skip

    def _entry(self, one: _Scored, rates: Sequence[float], confidence: float) -> dict[str, Any]:
        inside, outside = one.scores[self.case.truth], one.scores[~self.case.truth]
        metrics = membership_statistics.figures(inside, outside, rates=rates, confidence=confidence)
        said = {name: metric.as_json() for name, metric in metrics.items()}
        for rate in rates:
            if not isinstance(metrics[name := f"tpr@{rate:g}fpr"], Unsupported):
                said[name]["p_value"] = membership_statistics.tail_p_value(inside, outside, rate)
        held = membership_statistics.held_out_accuracy(
            inside, outside, generator=self.drawn(), confidence=confidence
        )
        fpr, tpr = membership_statistics.log_log_roc(inside, outside, _CURVE)
        attack = one.attack
        return {
            "name": attack.name, "title": attack.title, "access": attack.access, "needs": one.needs,
            "explains": attack.explains, "source": attack.source, "queries": one.queries, "seconds": one.seconds,
            "metrics": {"auc": said.pop("auc"), "balanced_accuracy": held.as_json(), **said},
            "roc": {"fpr": fpr.round(6).tolist(), "tpr": tpr.round(6).tolist()},
        }  # fmt: skip

    def _of_strongest(
        self, one: _Scored, class_names: Sequence[str] | None, confidence: float
    ) -> dict[str, Any]:
        case, truth = self.case, self.case.truth
        # Of the attack that did best: each must hold at the joint confidence.
        bound = membership_statistics.epsilon_lower_bound(
            one.scores[truth], one.scores[~truth], delta=DELTA, generator=self.drawn(), confidence=confidence
        )  # fmt: skip
        classes = {} if case.labels is None else membership_statistics.class_slices(case.labels, class_names)  # fmt: skip
        groups = np.array(case.groups or [], dtype=str)
        tables = [
            {
                name: {key: figure.as_json() for key, figure in figures.items()}
                for name, figures in membership_statistics.by_slice(one.scores, truth, slices).items()
            }
            for slices in (classes, {str(name): groups == name for name in np.unique(groups)})
        ]  # fmt: skip
        return {
            "epsilon": {
                "value": bound.epsilon, "delta": DELTA, "confidence": 0.95, "attack": one.attack.name,
                "assumes": "scores of different records as independent as those of as many trainings; members and "
                "non-members from one source",
                "says": bound.says, "members": list(bound.members), "nonmembers": list(bound.nonmembers),
            },
            "classes": tables[0], "groups": tables[1],
            "exposed": [
                {
                    "record": int(case.places[record.record]),
                    "label": None if case.labels is None else int(case.labels[record.record]), "score": record.score,
                    "false_positive_rate": record.false_positive_rate, "at_most": record.at_most,
                    "image": None if case.inputs is None else _image(case.inputs[record.record]),
                }
                for record in membership_statistics.most_exposed(one.scores, truth, _EXPOSED)
            ],
        }  # fmt: skip


def _accuracies(case: Case) -> dict[str, object] | None:
    if case.answers is None or case.labels is None:
        return None
    right = case.answers[0].argmax(1) == case.labels
    said: dict[str, object] = {}
    for name, of in (("members", case.truth), ("nonmembers", ~case.truth)):
        hits, total = int(right[of].sum()), int(of.sum())
        interval = statistics.clopper_pearson(hits, total)
        said[name] = {"value": hits / total, "interval": list(interval), "n": total}
    return said


def _image(record: Tensor) -> list[Any] | None:
    """An image with values in [0, 1] as nested lists, H x W or H x W x 3; None for anything else."""
    if record.dim() != 3 or record.shape[0] not in (1, 3) or max(record.shape[1:]) > 256:
        return None
    if not bool(((record >= 0) & (record <= 1)).all()):
        return None
    pixels = record[0] if record.shape[0] == 1 else record.permute(1, 2, 0)
    found: list[Any] = (pixels.double() * 100).round().div(100).tolist()
    return found
