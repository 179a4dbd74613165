"""Parts of the reproduction of model inversion on faces: white boxes, queries, and extraction first.

Each part draws its own split of the images (seven of a person for training, the others for validation), trains its target
and its judges, and gives what the attack found as plain values. Both judges are convolutional networks, which no target is,
trained on the same seven images a person; one has also learned imitations of inverted images, the plain one has not. See
`tacit.audit.inversion_metrics`.

Extract, then invert: a softmax regression in float64 answers d + 1 records, whose coordinates are distinct waves of the
discrete cosine transform of that order (the design of `tacit.attacks.extraction`). Least squares in the log-ratios is then
one transform of the answers, which needs neither the d^2 numbers of the records at once nor d^3 operations. What it gives is
inverted as a white box.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from scipy.fft import dct
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, QueryCounter, Scores, WhiteBox
from tacit.attacks.extraction import check_classes, needed
from tacit.attacks.extraction_fit import SMALLEST, AffineModel
from tacit.attacks.model_inversion import Cost, Inversion, MIFace, Start, Stop
from tacit.attacks.model_inversion_queries import SPSA, NumericGradients, QueryInversion
from tacit.attacks.model_inversion_rows import invert_in_row_space
from tacit.audit.extraction_metrics import fidelity
from tacit.audit.figures import one_thread
from tacit.audit.inversion_metrics import (
    InversionFigures,
    Known,
    class_means,
    inversion_figures,
    nearest_mean,
    train_inversion_judge,
)
from tacit.audit.kept import Found, key_of
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.nn.data import load
from tacit.nn.dataset import DataSet
from tacit.nn.faces import (
    Autoencoder,
    DenoiseAndSharpen,
    FaceTraining,
    train_autoencoder,
    train_mlp,
    train_softmax,
)
from tacit.nn.policies import EVERYTHING, Policy

Kind = Literal["softmax", "mlp", "dae"]
#: Of the images of a person.
TRAINED_ON = 7
CONFIDENCE = 0.99
_RECORDS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Faces:
    """One recogniser, inverted for all people in each of the ways that are its own.

    Args:
        name: of its figures.
        seed: of the split, the target and the judge.
        kind: ``softmax``, ``mlp`` or ``dae``.
        training: of the target.
        hidden: units of the MLP.
        widths: codes of the autoencoder.
        judge_steps: of the judge's training.
        iterations: the most steps of a descent.
        shown: images are kept for the contact sheet.
    """

    name: str
    seed: int
    kind: Kind
    training: FaceTraining
    hidden: int = 3000
    widths: tuple[int, ...] = (1000, 300)
    judge_steps: int = 600
    iterations: int = 5000
    shown: bool = False

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """A softmax regression in float64, extracted and then inverted, beside its inversion as a white box.

    Args:
        name: of its figures.
        seed: of the split, the target, the judge and the records.
        training: of the target.
        judge_steps: of the judge's training.
    """

    name: str
    seed: int
    training: FaceTraining
    judge_steps: int = 600

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlackBox:
    """A softmax regression on small images, inverted by queries, its answers whole or rounded.

    Args:
        name: of its figures.
        seed: of the split, the target, the judge and the directions.
        training: of the target.
        pool: images are averaged over squares of so many pixels a side.
        roundings: multiples of which the answers are rounded to, in turn.
        step_size: of the descent.
        iterations: the most steps of a descent.
        judge_steps: of the judge's training.
    """

    name: str
    seed: int
    training: FaceTraining
    pool: int = 4
    roundings: tuple[float, ...] = (1e-5, 0.001, 0.005, 0.01, 0.05, 0.1)
    step_size: float = 20.0
    iterations: int = 300
    judge_steps: int = 600

    @property
    def key(self) -> str:
        """Tells cases apart."""
        return key_of(self)


class Split(NamedTuple):
    """Images and labels of training and of validation."""

    inputs: Tensor
    labels: Tensor
    validation_inputs: Tensor
    validation_labels: Tensor
    classes: int


@cache
def _faces() -> DataSet:
    return load("att-faces")


def split(data: DataSet, seed: int, pool: int = 1) -> Split:
    """Seven images of each person for training, drawn anew, and the others for validation.

    Args:
        data: its division into training and test records is not used.
        seed: of the draw.
        pool: images are averaged over squares of so many pixels a side.
    """
    inputs = torch.cat([data.inputs_train, data.inputs_test])
    inputs = nn.functional.avg_pool2d(inputs, pool) if pool > 1 else inputs
    labels = torch.cat([data.labels_train, data.labels_test])
    generator = torch.Generator().manual_seed(seed)
    trained: list[Tensor] = []
    others: list[Tensor] = []
    for person in range(data.classes):
        own = (labels == person).nonzero().squeeze(1)
        own = own[torch.randperm(len(own), generator=generator)]
        trained.append(own[:TRAINED_ON])
        others.append(own[TRAINED_ON:])
    mine, rest = torch.cat(trained), torch.cat(others)
    return Split(inputs[mine], labels[mine], inputs[rest], labels[rest], data.classes)


def run_faces(case: Faces | Extracted | BlackBox, data: DataSet | None = None) -> Found:
    """What a case gives, as plain values.

    Args:
        case: the case.
        data: in place of the faces.

    Raises:
        DataError: the data set is not there.
    """
    begun = time.perf_counter()
    used = data or _faces()
    with one_thread():
        if isinstance(case, Faces):
            found = _white_box(case, used)
        else:
            found = (
                _extracted(case, used) if isinstance(case, Extracted) else _by_queries(case, used)
            )
    return found | {"seconds": time.perf_counter() - begun}


class _Bench:
    """A split with its two judges: what inverted images are measured by."""

    def __init__(self, parts: Split, seed: int, judge_steps: int) -> None:
        self.parts, self.seed = parts, seed
        self.judge, self.plain_judge = (
            train_inversion_judge(
                parts.inputs, parts.labels, parts.classes, held=parts[2:4], steps=judge_steps, imitations=imitations,
                generator=torch.Generator().manual_seed(first + seed),
            )
            for imitations, first in ((True, 1_000_003), (False, 2_000_003))
        )  # fmt: skip
        self.everyone = torch.arange(parts.classes)
        self.knowledge = Knowledge(input_shape=tuple(parts.inputs.shape[1:]), classes=parts.classes)

    def about(self) -> Found:
        """What each judge can do: on all that it has not seen, and on faces alone, of which how many a person."""
        return {
            name: {"accuracy": judge.accuracy, "right_faces": self.right_faces(judge.model)}
            for name, judge in (("judge", self.judge), ("plain-judge", self.plain_judge))
        }

    def right_faces(self, model: nn.Module) -> list[list[int]]:
        """For each person how many of the validation images the model knows, and of how many."""
        images, labels, classes = self.parts[2:]
        known = labels[_answers(model, images) == labels]
        counts = [torch.bincount(these, minlength=classes).tolist() for these in (known, labels)]
        return [list(pair) for pair in zip(*counts, strict=True)]

    def measured(self, found: Inversion, seconds: float, images: Tensor | None = None) -> Found:
        """An inversion as plain values; ``images`` where they are not what the descent moved."""
        shown = (found.images if images is None else images).detach().float()
        parts = self.parts
        figures = inversion_figures(
            shown, self.everyone, judge=self.judge, records=parts[:2], gallery=parts[:2],
            generator=torch.Generator().manual_seed(self.seed),
        )  # fmt: skip
        validation, training = (class_means(*of, parts.classes) for of in (parts[2:4], parts[:2]))
        named = {
            "by_judge": _answers(self.judge.model, shown),
            "by_judge_clamped": _answers(self.judge.model, shown.clamp(0, 1)),
            "by_plain_judge": _answers(self.plain_judge.model, shown),
            "by_plain_judge_clamped": _answers(self.plain_judge.model, shown.clamp(0, 1)),
            "by_correlation": nearest_mean(shown, training),
            "by_validation_means": nearest_mean(shown, validation),
        }
        hits = {way: _ones(answers == self.everyone) for way, answers in named.items()}
        return {
            "seconds": seconds,
            "faces": parts.classes,
            "hits": hits | {"reached": _ones(found.confidences >= CONFIDENCE)},
            "confidence": float(found.confidences.mean()),
            "steps": float(found.steps.double().mean()),
            "stopped": {stop.value: found.stopped.count(stop) for stop in Stop},
            "start": found.start,
            **_plain(figures, parts.classes),
        }


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        answers: Tensor = model.eval()(images).argmax(1)
    return answers


def _ones(hits: Tensor) -> list[int]:
    """One number a person: 1 or 0."""
    return [int(hit) for hit in hits.tolist()]


def _plain(figures: InversionFigures, classes: int) -> Found:
    def counts(known: Known) -> Found:
        return {
            "by_judge": round(known.by_judge.value * classes),
            "by_correlation": round(known.by_mean.value * classes),
            "junk": known.junk,
        }

    likeness = {
        name: [getattr(figures, name).value, *getattr(figures, name).interval]
        for name in (
            "psnr_db", "ssim", "other_psnr_db", "other_ssim", "nearest_psnr_db", "nearest_ssim",
        )
    }  # fmt: skip
    controls = {name: counts(known) for name, known in figures.controls.items()}
    return {"junk": figures.inverted.junk, "likeness": likeness, "controls": controls}


# --- as a white box


class _Way(NamedTuple):
    """One way to invert a recogniser: gives what was found, and the images where these are others than the descent moved."""

    settings: Mapping[str, object]
    run: Callable[[], tuple[Inversion, Tensor | None]]


def _white_box(case: Faces, data: DataSet) -> Found:
    parts = split(data, case.seed)
    bench = _Bench(parts, case.seed, case.judge_steps)
    begun = time.perf_counter()
    generator = torch.Generator().manual_seed(case.seed)
    training = (parts.inputs, parts.labels, parts.classes)
    target: nn.Sequential | Autoencoder
    if case.kind == "softmax":
        recogniser = target = train_softmax(*training, training=case.training, generator=generator)
    elif case.kind == "mlp":
        recogniser = target = train_mlp(
            *training, hidden=case.hidden, training=case.training, generator=generator
        )
    else:
        target = train_autoencoder(
            *training, widths=case.widths, training=case.training, generator=generator
        )
        recogniser = target.recogniser
    trained = time.perf_counter() - begun
    ways = (
        _of_codes(case, bench, target)
        if isinstance(target, Autoencoder)
        else _of_images(case, bench, target)
    )
    found: Found = {}
    shown = {"real": _small(parts.inputs[::TRAINED_ON])} if case.shown else {}
    for name, way in ways.items():
        begun, worked = time.perf_counter(), time.process_time()
        inverted, images = way.run()
        seconds, worked = time.perf_counter() - begun, time.process_time() - worked
        found[name] = bench.measured(inverted, seconds, images) | {
            "settings": dict(way.settings), "processor_seconds": worked
        }  # fmt: skip
        if images is not None:
            with torch.no_grad():
                sure = recogniser(images).softmax(1).diagonal()
            found[name]["image_confidence"] = float(sure.mean())
        if case.shown:
            shown[name] = _small(inverted.images if images is None else images)
    return {
        "ways": found, "shown": shown, "training_seconds": trained, "right_faces": bench.right_faces(recogniser),
        **bench.about(),
    }  # fmt: skip


def _of_images(case: Faces, bench: _Bench, model: nn.Sequential) -> dict[str, _Way]:
    """Softmax regression as printed, with a longer step; the MLP in the space of its first layer's rows."""
    access, everyone = WhiteBox(model), bench.everyone
    if case.kind == "softmax":
        plain = MIFace(step_size=5.0, box=None, iterations=case.iterations)
        return {"softmax": _Way(_said(plain), lambda: (plain.invert(access, bench.knowledge, everyone), None))}  # fmt: skip

    def way(settings: MIFace, start: Start | None = None) -> _Way:
        said = _said(settings) | {"start": "zero" if start is None else start.name}

        def run() -> tuple[Inversion, None]:
            found = invert_in_row_space(settings, access, bench.knowledge, everyone, start=start)
            return found, None

        return _Way(said, run)

    steep = MIFace(step_size=6.0, cost=Cost.MINUS_LOG_P, box=None, iterations=case.iterations)
    printed = MIFace(step_size=6.0, box=None, iterations=case.iterations)
    # A short step leaves the mean face as it is, but for what makes the model sure.
    far = MIFace(step_size=20.0, cost=Cost.MINUS_LOG_P, box=None, iterations=case.iterations)
    mean = Start(name="mean face", images=bench.parts.inputs.mean(0, keepdim=True))
    return {"mlp": way(steep), "mlp-mean-face": way(far, mean), "mlp-printed-cost": way(printed)}


def _of_codes(case: Faces, bench: _Bench, target: Autoencoder) -> dict[str, _Way]:
    """The autoencoder: descent among codes, its images processed at every step, now and then, or never."""
    access, classes = WhiteBox(target.head), bench.parts.classes
    knowledge = Knowledge(input_shape=(case.widths[-1],), classes=classes)
    process = DenoiseAndSharpen(autoencoder=target, strength=0.05, amount=0.2)

    def way(settings: MIFace, processed: DenoiseAndSharpen | None) -> _Way:
        def run() -> tuple[Inversion, Tensor]:
            found = settings.invert(access, knowledge, bench.everyone, process=processed)
            with torch.no_grad():
                images: Tensor = target.decoder(found.images)
            return found, images

        return _Way(_said(settings) | {"processed": processed is not None}, run)

    def settings(step_size: float, cost: Cost, every: int = 1) -> MIFace:
        return MIFace(step_size=step_size, cost=cost, process_every=every, iterations=case.iterations)  # fmt: skip

    return {
        "dae": way(settings(20.0, Cost.MINUS_LOG_P), process),
        "dae-every-10-steps": way(settings(1.0, Cost.MINUS_LOG_P, 10), process),
        "dae-without-process": way(settings(1.0, Cost.ONE_MINUS_P), None),
    }


def _said(settings: MIFace) -> dict[str, object]:
    return {
        "step_size": settings.step_size, "cost": settings.cost.value, "iterations": settings.iterations,
        "patience": settings.patience, "process_every": settings.process_every,
        "box": None if settings.box is None else list(settings.box),
    }  # fmt: skip


def _small(images: Tensor) -> Found:
    """Images for a contact sheet: half as large where they are large, each with its contrast stretched to [0, 1]."""
    half = nn.functional.avg_pool2d(images.detach().float().mean(1, keepdim=True), 1 + (images.shape[-1] > 60))  # fmt: skip
    flat = half.flatten(1)
    low, high = flat.quantile(0.01, 1)[:, None], flat.quantile(0.99, 1)[:, None]
    bytes_ = ((flat - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).mul(255).round().byte()
    packed = base64.b64encode(bytes_.numpy().tobytes()).decode("ascii")
    return {"pixels": packed, "shape": [len(half), *half.shape[-2:]]}


# --- extract, then invert


def _extracted(case: Extracted, data: DataSet) -> Found:
    parts = split(data, case.seed)
    bench = _Bench(parts, case.seed, case.judge_steps)
    generator = torch.Generator().manual_seed(case.seed)
    target = train_softmax(
        parts.inputs, parts.labels, parts.classes, training=case.training, generator=generator
    ).double()
    counter = QueryCounter()
    begun = time.perf_counter()
    model = extract_by_waves(
        Scores(target, counter), bench.knowledge, torch.Generator().manual_seed(case.seed)
    )
    extracted = time.perf_counter() - begun
    attack = MIFace(step_size=5.0, box=None)
    start = Start(name="zero", images=torch.zeros_like(parts.inputs[:1]).double())

    def inverted(which: nn.Module) -> tuple[Inversion, float]:
        began = time.perf_counter()
        images = attack.invert(WhiteBox(which), bench.knowledge, bench.everyone, start=start)
        return images, time.perf_counter() - began

    (found, took), (own, took_white) = inverted(model), inverted(target)
    with torch.no_grad():
        sure = target(found.images).softmax(1).diagonal()
    alike = fidelity(target, model, parts.validation_inputs.double())
    return {
        "queries": counter.spent,
        "extraction_seconds": extracted,
        "total_variation": alike.total_variation,
        "agreement": alike.agreement.value,
        "largest_difference_of_images": float((found.images - own.images).abs().max()),
        "reached_at_target": _ones(sure >= CONFIDENCE),
        "inverted": bench.measured(found, extracted + took),
        "white_box": bench.measured(own, took_white),
        **bench.about(),
    }


def extract_by_waves(
    access: Scores, knowledge: Knowledge, generator: torch.Generator
) -> AffineModel:
    """The weights of a softmax regression on records in [0, 1], from d + 1 records whose least squares is a transform.

    Args:
        access: a target that takes float64 and gives all probabilities as they are.
        knowledge: `input_shape` and `classes`.
        generator: draws which wave each value of a record follows, and its sign.

    Raises:
        ConfigError: the shape or the classes are unknown or not the target's, or the policy takes from the answers.
        NotEnoughEvidence: a probability is below the least normal number, and so has no logarithm to rely on.
        BudgetExhausted: the budget does not do.

    Cost: d + 1 queries; O(c d log d) operations beside those of forming the records.
    """
    shape, classes = needed("extraction-waves", knowledge)
    if access.policy != EVERYTHING:
        raise ConfigError(
            f"probabilities as they are expected, policy {access.policy.name} came: use EquationSolving"
        )
    width = math.prod(shape)
    rows = width + 1
    waves = 1 + torch.randperm(width, generator=generator)
    signs = 2.0 * torch.randint(2, (width,), generator=generator, dtype=torch.float64) - 1
    # cos(pi k (2 i + 1) / (2 n)) has 4 n values.
    cosines = torch.cos(math.pi / (2 * rows) * torch.arange(4 * rows, dtype=torch.float64))
    answers = []
    for row in torch.split(torch.arange(rows), _RECORDS_AT_ONCE):
        wave = cosines[((2 * row + 1)[:, None] * waves) % (4 * rows)]
        answers.append(access.scores((0.5 + 0.5 * signs * wave).view(-1, *shape)))
        check_classes(answers[-1], classes)  # before more is asked
        lost = int((~(answers[-1] >= SMALLEST)).sum())
        if lost:
            raise NotEnoughEvidence(
                f"probabilities of at least {SMALLEST:.3g} expected, {lost} of {answers[-1].numel()} are below: "
                "use EquationSolving, which leaves these out"
            )
    logarithms = torch.cat(answers).log()
    wanted = logarithms - logarithms.mean(1, keepdim=True)
    parts = torch.from_numpy(dct(wanted.numpy(), type=2, axis=0)) / rows
    weight = (2 * signs[:, None] * parts[waves]).T
    return AffineModel(weight, parts[0] / 2 - weight.sum(1) / 2)


# --- by queries


class Rounded:
    """An endpoint that rounds probabilities to multiples of something.

    Args:
        model: gives logits.
        multiple: of which the answers are.
    """

    def __init__(self, model: nn.Module, multiple: float) -> None:
        self._whole, self._multiple = Scores(model), multiple

    def scores(self, inputs: Tensor) -> Tensor:
        """Rounded probabilities, (n, classes) float64."""
        return (self._whole.scores(inputs) / self._multiple).round() * self._multiple

    def labels(self, inputs: Tensor) -> Tensor:
        """Predicted classes, (n,)."""
        return self._whole.scores(inputs).argmax(1)


def rounding(model: nn.Module, multiple: float | None, counter: QueryCounter) -> Scores:
    """Access to rounded answers: by `Policy` where the multiple is a power of ten; None rounds nothing."""
    if multiple is None:
        return Scores(model, counter)
    digits = -math.log10(multiple)
    if abs(digits - round(digits)) < 1e-9:
        return Scores(model, counter, Policy(digits=round(digits)))
    return Scores(Rounded(model, multiple), counter, EVERYTHING)


def _by_queries(case: BlackBox, data: DataSet) -> Found:
    parts = split(data, case.seed, case.pool)
    bench = _Bench(parts, case.seed, case.judge_steps)
    generator = torch.Generator().manual_seed(case.seed)
    target = train_softmax(
        parts.inputs, parts.labels, parts.classes, training=case.training, generator=generator
    )
    descent = MIFace(step_size=case.step_size, iterations=case.iterations)

    def by(slopes: NumericGradients | SPSA, multiple: float | None) -> Found:
        counter = QueryCounter()
        attack = QueryInversion(descent=descent, slopes=slopes, at_once=4096)
        begun = time.perf_counter()
        found = attack.invert(
            rounding(target, multiple, counter),
            bench.knowledge,
            bench.everyone,
            generator=generator,
        )
        measured = bench.measured(found, time.perf_counter() - begun)
        with torch.no_grad():  # what a rounded answer says is not what the model says
            sure = target(found.images).softmax(1).diagonal()
        measured["hits"]["reached"] = _ones(sure >= CONFIDENCE)
        measured["confidence"] = float(sure.mean())
        return measured | {"queries": counter.spent, "slopes": repr(slopes)}

    begun = time.perf_counter()
    white = descent.invert(WhiteBox(target), bench.knowledge, bench.everyone)
    return {
        "white-box": bench.measured(white, time.perf_counter() - begun),
        "numeric": by(NumericGradients(), None),
        "spsa": by(SPSA(directions=32), None),
        # Steps as wide as the box: a change is seen where rounding leaves one.
        "rounding": {f"{multiple:g}": by(NumericGradients(width=1.0), multiple) for multiple in case.roundings},
        **bench.about(),
    }  # fmt: skip
