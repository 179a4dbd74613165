"""The attacks that an audit knows, and how each is run on what the audit has.

An attack sees a `Case`: the target's answers on members and non-members in one heap, reference models' answers where there
are any, and the target itself where it can be asked again. It is not told who is a member. What it lacks it says (`Unable`).

Source: named by each `Attack`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter
from tacit.attacks.evidence import Evidence, Population, ReferenceAttack
from tacit.attacks.label_only import LabelRobustness
from tacit.attacks.likelihood_ratio import LiRA, StudentLiRA
from tacit.attacks.membership import ShadowModels
from tacit.attacks.rmia import RMIA
from tacit.attacks.score_attacks import (
    AttackP,
    AttackR,
    Entropy,
    Loss,
    MaxConfidence,
    ModifiedEntropy,
)
from tacit.attacks.shadows import References
from tacit.audit.targets import Target

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """An attack that an audit knows.

    Args:
        name: lower case, stable across releases.
        title: a few words.
        access: what it is shown of the target: ``scores`` (all that is answered) or ``labels``.
        explains: how it tells members, in a sentence.
        source: who published it.
        by: what scores from an `Evidence`; None for the attacks that work otherwise.
    """

    name: str
    title: str
    access: str
    explains: str
    source: str
    by: ReferenceAttack | None = None


SAVED = Attack(
    name="saved-scores", title="Saved scores", access="scores", source="given",
    explains="The scores as they were saved, one a record; higher means member.",
)  # fmt: skip
LABEL_GAP = Attack(
    name="label-gap", title="Right label", access="labels", source="Yeom et al. 2018",
    explains="Says member where the predicted label is right.",
)  # fmt: skip
ROBUSTNESS = Attack(
    name="label-robustness", title="Robust label", access="labels",
    source="Choquette-Choo et al. 2021",
    explains="Says member where the label stays right when the record is disturbed.",
)  # fmt: skip
NETWORKS = Attack(
    name="shadow-models", title="Shadow models", access="scores", source="Shokri et al. 2017",
    explains="Learns from models trained alike, one network a class, what answers on members look like.",
)  # fmt: skip


def _by(by: ReferenceAttack, title: str, explains: str, source: str) -> Attack:
    return Attack(name=by.name, title=title, access="scores", explains=explains, source=source, by=by)  # fmt: skip


ATTACKS: tuple[Attack, ...] = (
    SAVED,
    LABEL_GAP,
    _by(Loss(), "Loss", "Says member where the model is sure of the true class.", "Yeom et al. 2018"),
    _by(MaxConfidence(), "Confidence", "Says member where the model is sure of any class.", "Salem et al. 2019"),
    _by(Entropy(), "Entropy", "Says member where the answer is concentrated on few classes.", "Salem et al. 2019"),
    _by(ModifiedEntropy(), "Modified entropy", "As entropy, but a sure and wrong answer speaks against membership.",
        "Song, Mittal 2021"),
    _by(AttackP(), "Population", "Says member where few other records have so high a confidence.", "Ye et al. 2022"),
    _by(AttackR(), "Reference", "Says member where models not trained on the record are less sure of it.", "Ye et al. 2022"),
    _by(LiRA(), "LiRA", "Compares the confidence with that of models trained with the record and without it.",
        "Carlini et al. 2022"),
    _by(StudentLiRA(), "LiRA, Student", "As LiRA, with what few models leave open integrated out.",
        "after Carlini et al. 2022; own prior"),
    _by(RMIA(online=True), "RMIA, online", "Counts other records whose confidence rose less over that of reference models.",
        "Zarifzadeh et al. 2024"),
    _by(RMIA(), "RMIA, offline", "As RMIA, from models that did not see the record alone.", "Zarifzadeh et al. 2024"),
    NETWORKS,
    ROBUSTNESS,
)  # fmt: skip


# --- what they are shown


@dataclass(slots=True, kw_only=True)
class Case:
    """The records that are asked about, members first, and all that is known of them.

    Args:
        members: how many of the first are members.
        places: (n,) each record's place in the file or array that it came from.
        labels: (n,) true classes, where they are known.
        answers: (q, n, classes) of the target, where it was asked or they were saved.
        scores: (n,) saved scores, where that is all there is.
        groups: (n,) slice of each record, where there are any.
        inputs: (n, *record shape).
        population: answers on other records.
        references: reference models' answers.
        labels_only: the answers are labels.
        target: where it can be asked again.
        no_references: what would have to be given for reference models.
    """

    members: int
    places: IntArray
    labels: IntArray | None = None
    answers: npt.NDArray[np.floating] | None = field(default=None, repr=False)
    scores: FloatArray | None = field(default=None, repr=False)
    groups: tuple[str, ...] | None = None
    inputs: Tensor | None = field(default=None, repr=False)
    population: Population | None = field(default=None, repr=False)
    references: Any = field(default=None, repr=False)
    labels_only: bool = False
    target: Target | None = field(default=None, repr=False)
    no_references: str = "reference models: give train_fn, or the recipe of a module"

    @property
    def truth(self) -> Bools:
        """(n,) whether a record is a member; attacks are not shown it."""
        return np.arange(len(self.places)) < self.members


class Unable(Exception):
    """An attack cannot be run; the text says what it lacks."""


def evidence_of(case: Case) -> Evidence | None:
    """What attacks on scores read; None where there are no answers, or labels alone."""
    if case.answers is None or case.labels is None or case.labels_only:
        return None
    return Evidence.gather(case.answers, case.labels, case.references, case.population)


def scores_of(
    attack: Attack,
    case: Case,
    evidence: Evidence | None,
    counter: QueryCounter,
    generator: torch.Generator,
) -> tuple[FloatArray, str]:
    """Run an attack.

    Args:
        attack: one of `ATTACKS`.
        case: the records, and what is known of them.
        evidence: `evidence_of` the case.
        counter: counts the queries that it makes besides.
        generator: draws what it draws.

    Returns:
        (n,) scores, higher for members; and what was needed besides the target.

    Raises:
        Unable: it lacks something.
        BudgetExhausted: no queries are left for it.
    """
    if attack is SAVED:
        if case.scores is None:
            raise Unable("no score of each record was saved")
        return case.scores, "nothing"
    if case.answers is None or case.labels is None:
        raise Unable("needs the model's answers and true labels: one score a record was saved")
    if attack is LABEL_GAP:
        return (case.answers[0].argmax(1) == case.labels).astype(np.float64), "nothing"
    if attack is ROBUSTNESS:
        return _robustness(case, counter, generator), "more queries"
    if evidence is None:
        raise Unable("needs scores: the target gives labels alone")
    compared = attack is NETWORKS or (attack.by is not None and "references-out" in attack.by.needs)
    if compared and case.references is None:
        raise Unable(f"needs {case.no_references}")
    with_models = f"{evidence.count} reference models"
    if attack.by is None:
        return _networks(case, generator), with_models
    if "population" in attack.by.needs and case.population is None:
        raise Unable("needs a population: further records that the model was not trained on")
    if lacking := evidence.lacks(attack.by.needs):
        raise Unable(f"needs {'; and '.join(lacking)}")
    others = "a population" if attack.by.needs else "nothing"
    return attack.by.score(evidence), with_models if compared else others


def _robustness(case: Case, counter: QueryCounter, generator: torch.Generator) -> FloatArray:
    if case.target is None or case.inputs is None or case.labels is None:
        raise Unable("needs a model that can be asked again: answers were saved")
    attack, asked, model = _disturbance(case.inputs, case.target.model)
    device = case.target.device
    labels = torch.from_numpy(case.labels).to(device)
    scores = attack.score(Labels(model, counter), Knowledge(), asked.to(device), labels, generator)
    found: FloatArray = scores.cpu().numpy()
    return found


def _networks(case: Case, generator: torch.Generator) -> FloatArray:
    """Shokri et al.'s networks, taught by the reference models."""
    if case.answers is None or case.labels is None:
        raise Unable("needs the model's answers and true labels")
    references = References(
        inside=np.asarray(case.references.inside), logits=np.asarray(case.references.logits, np.float32), labels=case.labels,
    )  # fmt: skip
    networks = ShadowModels(shadows=references.models).taught(references, generator)
    answers = torch.softmax(torch.from_numpy(np.array(case.answers[0])).double(), 1)
    found: FloatArray = networks.log_odds(answers, torch.from_numpy(case.labels)).numpy()
    return found


class _Rescaled(nn.Module):
    """A model whose records are in units of each feature's deviation, so that one strength of noise suits all."""

    def __init__(self, model: nn.Module, centre: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.model, self.centre, self.scale = model, centre, scale

    def forward(self, records: Tensor) -> Tensor:
        """The model's answers on the records in their own units."""
        answers: Tensor = self.model(records * self.scale.to(records) + self.centre.to(records))
        return answers


def _disturbance(inputs: Tensor, model: nn.Module) -> tuple[LabelRobustness, Tensor, nn.Module]:
    """Shifts of images, flips of binary features, noise of a tenth of a deviation on others; records and model for it."""
    if inputs.dim() >= 4 and min(inputs.shape[-2:]) > 2:
        return LabelRobustness(perturbation="shifts", strength=1), inputs, model
    if bool(((inputs == 0) | (inputs == 1)).all()):
        return LabelRobustness(perturbation="flips", strength=0.03, copies=16), inputs, model
    centre, scale = inputs.mean(0), inputs.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    noise = LabelRobustness(perturbation="noise", strength=0.1, copies=16)
    return noise, (inputs - centre) / scale, _Rescaled(model, centre, scale)
