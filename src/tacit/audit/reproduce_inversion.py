"""Model inversion [1] on AT&T faces and on tables: what a model shows of its classes, and tells of a record's attribute.

Three recognisers (softmax regression, an MLP of 3000 units, a stacked denoising autoencoder) are trained on seven images of
each of 40 people, and inverted for all people in one batch. Who is seen is said by two networks of another architecture,
trained on the same images, of which one has learned imitations of inverted images too, and by the nearest class mean. The
ways:

- ``softmax``: as printed, with steps of 5 in place of 0.1;
- ``mlp``: -log p in place of 1 - p, steps of 6, without a box, in the space of the first layer's rows;
  ``mlp-mean-face``: the same with steps of 20, from the mean training image, which is auxiliary knowledge;
  ``mlp-printed-cost``: 1 - p, which is flat where the descent starts;
- ``dae``: among codes, by -log p, steps of 20, images denoised and sharpened at every step;
  ``dae-every-10-steps``: these now and then, and steps of 1; ``dae-without-process``: never, and by 1 - p.

By queries: a softmax regression in float64 is extracted by d + 1 queries and then inverted; on images of 28 x 23 slopes come
from numeric gradients and from SPSA, and answers are rounded (the paper's countermeasure). On tables: a hidden attribute.

Each recogniser, seed and table is a case of its own: cases run side by side, and each finished one is kept, so that an
interrupted run goes on. Shares are pooled over the seeds; the seeds show the same 40 people, so that their intervals are
clustered by person. Those of attributes are Student's over the seeds, and of one seed they are over its records.
"""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tacit.audit.attribute_cases import METHODS, Attribute, run_attribute
from tacit.audit.figures import Effort, Figure, figure, over_seeds
from tacit.audit.inversion_cases import BlackBox, Extracted, Faces, Kind, run_faces
from tacit.audit.kept import Found, Kept, side_by_side
from tacit.audit.pictures import contact_sheet
from tacit.audit.provenance import plain
from tacit.audit.statistics import clopper_pearson, clustered_interval, paired_difference
from tacit.core.files import write_file
from tacit.nn.data import load
from tacit.nn.faces import FaceTraining
from tacit.nn.stacked import Recipe
from tacit.nn.tables import load_table

Case = Faces | Extracted | BlackBox | Attribute
Pairs = Sequence[tuple[Case, Found]]

#: Validation errors and seconds a face (all recalled).
_PAPER_ERRORS = {"softmax": 0.075, "mlp": 0.042, "dae": 0.033}
_PAPER_SECONDS = {"softmax": 1.4, "mlp": 1298.7, "dae": 692.5}
_LIKENESS = ("psnr_db", "ssim", "other_psnr_db", "other_ssim", "nearest_psnr_db", "nearest_ssim")

_SHARES = {
    "reached": "reached",
    "reidentified": "by_judge",
    "reidentified_clamped": "by_judge_clamped",
    "reidentified_by_plain_judge": "by_plain_judge",
    "reidentified_by_plain_judge_clamped": "by_plain_judge_clamped",
    "reidentified_by_correlation": "by_correlation",
    "reidentified_by_validation_means": "by_validation_means",
}
#: Of these there are controls.
_CONTROLLED = ("reidentified", "reidentified_by_correlation")

SOFTMAX = FaceTraining()
SMALL_SOFTMAX = FaceTraining(epochs=400)
MLP = FaceTraining()
AUTOENCODER = FaceTraining(epochs=60, batch_size=40)
#: Targets that are trained for long on few records, and so know these better than others.
ATTRIBUTES = (
    Attribute(
        name="adult/marital-status", seed=0, table="adult", column="marital-status", positive=4, members=1000,
        recipe=Recipe(epochs=200, batch_size=50, learning_rate=0.01),
    ),
    Attribute(
        name="adult/race", seed=0, table="adult", column="race", positive=2, members=1000,
        recipe=Recipe(epochs=200, batch_size=50, learning_rate=0.01),
    ),
    Attribute(
        name="pima/glucose", seed=0, table="pima", column="glucose", positive=2, bins=3, members=250,
        recipe=Recipe(epochs=600, batch_size=25, learning_rate=0.02),
        known=Recipe(epochs=60, batch_size=50, learning_rate=0.002),
    ),
)  # fmt: skip


def cases(effort: Effort) -> list[Case]:
    """The parts of the reproduction, the longest first.

    Args:
        effort: three seeds by default; ``quick``: one; ``full``: five.
    """
    seeds = range(effort.seed, effort.seed + (1 if effort.quick else 5 if effort.full else 3))
    recognisers: tuple[tuple[Kind, FaceTraining], ...] = (
        ("dae", AUTOENCODER), ("mlp", MLP), ("softmax", SOFTMAX)
    )  # fmt: skip
    made: list[Case] = [
        Faces(
            name=f"att-faces/{kind}", seed=seed, kind=kind, training=training, shown=seed == effort.seed
        )
        for kind, training in recognisers
        for seed in seeds
    ]  # fmt: skip
    for seed in seeds:
        made += [
            Extracted(name="att-faces/extract-then-invert", seed=seed, training=SOFTMAX),
            BlackBox(name="att-faces/black-box", seed=seed, training=SMALL_SOFTMAX),
            *(replace(attribute, seed=seed) for attribute in ATTRIBUTES),
        ]
    return made


def run_case(case: Case) -> Found:
    """What a case gives, as plain values.

    Args:
        case: the case.
    """
    return run_attribute(case) if isinstance(case, Attribute) else run_faces(case)


class _Kept(Kept):
    file = "1.json"
    numbers = ("seconds",)


def _side_by_side(todo: Sequence[Case]) -> Iterable[tuple[Case, Found]]:
    return side_by_side(todo, run_case)


def reproduce_inversion(effort: Effort) -> dict[str, object]:
    """Model inversion on AT&T faces, Adult and Pima.

    Args:
        effort: see `cases`; a contact sheet of the first seed is written to its folder.

    Raises:
        DataError: a data set is not there.
        OutputError: finished cases or the contact sheet cannot be kept.

    Source: Fredrikson, Jha & Ristenpart, CCS 2015, sections 4 to 6 (figures recalled).
    """
    load("att-faces")  # that they are not there must show before minutes of training
    for table in ("adult", "pima"):
        load_table(table)
    wanted = cases(effort)
    kept = _Kept.opened(effort.folder)
    for case, found in kept.finished(wanted, _side_by_side, effort.progress):
        effort.progress(f"{case.name}, seed {case.seed} ({found['seconds']:.0f} s)")
    pairs = [(case, kept.found[case.key]) for case in wanted]
    if effort.folder is not None:
        sheet = effort.folder / "inversion.png"
        rows = write_sheet(sheet, [found for _, found in pairs])
        effort.progress(f"{sheet}: {', '.join(rows)}, from the top")
    return {
        "paper": 1,
        "title": "model inversion",
        "quick": effort.quick,
        "full": effort.full,
        "seed": effort.seed,
        "computing_seconds": round(sum(found["seconds"] for _, found in pairs), 1),
        "figures": _figures(pairs),
    }


def write_sheet(path: Path, found: Iterable[Found], people: int = 20) -> list[str]:
    """Real faces above what each inversion took for them, as a PNG.

    Args:
        path: of the file.
        found: of cases; those without images are passed over.
        people: the first so many.

    Returns:
        What each row is.

    Raises:
        OutputError: it cannot be written.
    """
    shown: dict[str, dict[str, Any]] = {}
    for one in found:
        shown |= {
            name: images for name, images in one.get("shown", {}).items() if name not in shown
        }
    order = [name for name in (*_SHEET, *shown) if name in shown]
    order = list(dict.fromkeys(order))
    rows = [
        np.frombuffer(base64.b64decode(shown[name]["pixels"]), np.uint8)
        .reshape(shown[name]["shape"])[:people]
        .astype(np.float64)
        / 255
        for name in order
    ]
    if rows:
        write_file(path, contact_sheet(rows))
    return order


# From the top; what else there is follows.
_SHEET = (
    "real",
    "softmax",
    "mlp",
    "mlp-mean-face",
    "dae",
    "dae-every-10-steps",
    "dae-without-process",
)


# --- the figures


def _figures(pairs: Pairs) -> list[Figure]:
    by_name: dict[str, list[tuple[Any, Found]]] = {}
    for case, found in pairs:
        by_name.setdefault(case.name, []).append((case, found))
    made = _of_judges(pairs)
    for name, of in by_name.items():
        case, founds = of[0][0], [found for _, found in of]
        if isinstance(case, Faces):
            made += _of_recogniser(name, case, founds)
        elif isinstance(case, Extracted):
            made += _of_extraction(name, case, founds)
        elif isinstance(case, BlackBox):
            made += _of_queries(case, founds)
        else:
            made += _of_attribute(name, case, founds)
    return made


def _of_judges(pairs: Pairs) -> list[Figure]:
    """Of both judges, for large images and for small ones: one of each a seed, whichever cases it served in."""
    made: list[Figure] = []
    for stem, small in (("att-faces", False), ("att-faces/small", True)):
        own = {
            case.seed: found
            for case, found in pairs
            if not isinstance(case, Attribute) and isinstance(case, BlackBox) == small
        }
        for judge in ("judge", "plain-judge"):
            of = [found[judge] for found in own.values()]
            said = {"imitations": judge == "judge"}
            made += [
                _mean(f"{stem}/{judge}/accuracy", [one["accuracy"] for one in of], said | {"junk": "included"}),
                _share(f"{stem}/{judge}/accuracy-on-faces", _by_person([one["right_faces"] for one in of]), said),
            ]  # fmt: skip
    return made


def _of_recogniser(name: str, case: Faces, founds: Sequence[Found]) -> list[Figure]:
    wrong = [(held - right, held) for right, held in _by_person([one["right_faces"] for one in founds])]  # fmt: skip
    seconds = [round(found["training_seconds"], 1) for found in founds]
    said = {"training": plain(case.training), "training_seconds": seconds}
    made = [
        _share(f"{name}/validation-error", wrong, said, better="lower", paper=_PAPER_ERRORS[case.kind])
    ]  # fmt: skip
    for way in founds[0]["ways"]:
        of = [found["ways"][way] for found in founds]
        made += _of_way(f"att-faces/{way}", of, _PAPER_SECONDS.get(way))
    return made


def _of_way(stem: str, of: Sequence[Found], paper_seconds: float | None = None) -> list[Figure]:
    """Figures of one way to invert, over seeds."""
    said: dict[str, object] = {
        "start": of[0]["start"], "stopped": [one["stopped"] for one in of], **of[0].get("settings", {})
    }  # fmt: skip
    if paper_seconds is not None:
        said["paper_seconds_a_face"] = f"{paper_seconds:g} (recalled; another machine)"
    if "processor_seconds" in of[0]:  # beside seconds, on a machine that does other work too
        said["processor_seconds"] = [round(one["processor_seconds"], 2) for one in of]
    faces = sum(one["faces"] for one in of)

    controls = {
        name: {
            which: sum(one["controls"][name][which] for one in of) / faces
            for which in ("by_judge", "by_correlation")
        }
        for name in of[0]["controls"]
    }
    judged = said | {"controls": controls, "junk": [one["junk"] for one in of]}
    made = [
        _mean(f"{stem}/seconds", [one["seconds"] for one in of], said, better="lower"),
        _mean(f"{stem}/confidence", [one["confidence"] for one in of], said),
        _mean(f"{stem}/steps", [one["steps"] for one in of], said, better="lower"),
        *(
            _share(f"{stem}/{name}", _hits(of, key), judged if name in _CONTROLLED else said)
            for name, key in _SHARES.items()
        ),
    ]  # fmt: skip
    if "image_confidence" in of[0]:
        made.append(
            _mean(f"{stem}/image_confidence", [one["image_confidence"] for one in of], said)
        )
    for name in _LIKENESS:
        values = [one["likeness"][name] for one in of]
        of_one = (values[0][1], values[0][2])
        better = "lower" if name.startswith("other") else "higher"
        made.append(
            _mean(
                f"{stem}/{name}", [value[0] for value in values], {}, better, of_one, of[0]["faces"]
            )
        )
    return made


def _of_extraction(name: str, case: Extracted, founds: Sequence[Found]) -> list[Figure]:
    said = {"training": plain(case.training)}
    made = [
        _mean(f"{name}/queries", [found["queries"] for found in founds], said | {"for": "all people"}, "lower"),
        _mean(f"{name}/total_variation", [found["total_variation"] for found in founds], said, "lower"),
        _mean(f"{name}/agreement", [found["agreement"] for found in founds], said),
        _mean(f"{name}/extraction_seconds", [found["extraction_seconds"] for found in founds], said, "lower"),
        _mean(
            f"{name}/largest_difference", [found["largest_difference_of_images"] for found in founds],
            said | {"between": "images of the extracted model and of the target as a white box"}, "lower",
        ),
    ]  # fmt: skip
    reached = _by_person([_of_one_each(found["reached_at_target"]) for found in founds])
    white = [found["white_box"] for found in founds]
    made += [
        _share(f"{name}/reached_at_target", reached, said),
        _share(f"{name}/reidentified_as_white_box", _hits(white, "by_judge"), said),
        _mean(f"{name}/white_box_seconds", [one["seconds"] for one in white], said, "lower"),
    ]
    return made + _of_way(name, [found["inverted"] for found in founds])


def _of_queries(case: BlackBox, founds: Sequence[Found]) -> list[Figure]:
    """By queries and under rounding; of the latter what matters."""
    said: dict[str, object] = {
        "training": plain(case.training), "pool": case.pool, "step_size": case.step_size, "iterations": case.iterations
    }  # fmt: skip
    made: list[Figure] = []
    kinds = {
        f"att-faces/black-box/{name}": [found[name] for found in founds]
        for name in ("white-box", "numeric", "spsa")
    }
    for multiple in founds[0]["rounding"]:
        kinds[f"att-faces/rounding/{multiple}"] = [found["rounding"][multiple] for found in founds]
    for stem, of in kinds.items():
        more = said | {
            "slopes": of[0].get("slopes", "exact"),
            "stopped": [one["stopped"] for one in of],
        }
        better = "lower" if "/rounding/" in stem else "higher"
        for name, key in _SHARES.items():
            made.append(_share(f"{stem}/{name}", _hits(of, key), more, better=better))
        made.append(_mean(f"{stem}/confidence", [one["confidence"] for one in of], more, better))
        made.append(_mean(f"{stem}/seconds", [one["seconds"] for one in of], more, "lower"))
        if "queries" in of[0]:
            each = [one["queries"] / one["faces"] for one in of]
            made.append(_mean(f"{stem}/queries_a_face", each, more, "lower"))
    return made


def _of_attribute(name: str, case: Attribute, founds: Sequence[Found]) -> list[Figure]:
    first = founds[0]
    said: dict[str, object] = {
        "table": case.table, "values": first["values"], "positive": first["positive"], "members": case.members,
        "population": first["population"], "recipe": plain(case.recipe),
        "target_accuracy": [found["target_accuracy"] for found in founds],
        "target_training_accuracy": [found["target_training_accuracy"] for found in founds],
    }  # fmt: skip
    made: list[Figure] = []
    for method in METHODS:
        groups = {
            group: [found["outcomes"][group][method] for found in founds]
            for group in ("members", "nonmembers")
        }
        for group, of in groups.items():
            made += [
                _rate(f"{name}/{method}/{group}/{which}", [(one[hits], one[n]) for one in of], said)
                for which, hits, n in (
                    ("accuracy", "right", "records"), ("precision", "found", "said"), ("recall", "found", "true"),
                )
            ]  # fmt: skip
        both = list(zip(*groups.values(), strict=True))
        made.append(_gap(f"{name}/{method}/gap", both, _newcombe, said))
        if method != "most-frequent":
            made.append(_gap(f"{name}/{method}/gap_beyond_base_rate", both, _paired, said))
    return made


Outcome = Mapping[str, int]


def _gap(
    name: str,
    both: Sequence[tuple[Outcome, Outcome]],
    gap_of: Callable[[Outcome, Outcome], tuple[float, float]],
    said: Mapping[str, object],
) -> Figure:
    """A difference between members and others: Student's interval over seeds, or of one seed that over its records."""
    found = [gap_of(*pair) for pair in both]
    gaps = [gap for gap, _ in found]
    mean, several = statistics.mean(gaps), len(gaps) > 1
    reach = max(one for _, one in found)
    interval = _of_seeds(gaps) or (mean - reach, mean + reach)
    n = len(gaps) if several else sum(one["records"] for one in both[0])
    return figure(name, mean, interval, n, settings=_over(gaps, said, "over records"))


def _newcombe(members: Outcome, others: Outcome) -> tuple[float, float]:
    """The difference of two accuracies, and the longer side of Newcombe's interval (of Clopper and Pearson's)."""
    shares = [one["right"] / one["records"] for one in (members, others)]
    ends = [clopper_pearson(one["right"], one["records"]) for one in (members, others)]
    below = math.hypot(shares[0] - ends[0][0], ends[1][1] - shares[1])
    above = math.hypot(ends[0][1] - shares[0], shares[1] - ends[1][0])
    return shares[0] - shares[1], max(below, above)


def _paired(members: Outcome, others: Outcome) -> tuple[float, float]:
    """How much more a method adds to the most frequent value for members than for others, and its 95 % reach.

    A record counts 1 where the method alone is right, -1 where the most frequent value alone is, else 0.
    """
    groups = members, others
    added = [(one["better"] - one["worse"]) / one["records"] for one in groups]
    deviations = [
        paired_difference(one["better"], one["worse"], one["records"])[1] for one in groups
    ]
    return added[0] - added[1], 1.96 * math.hypot(*deviations)


def _rate(name: str, counts: Sequence[tuple[int, int]], said: Mapping[str, object]) -> Figure:
    """A share over seeds, by Student where each has records, else Clopper and Pearson's; without a record there is none."""
    hits, n = sum(one for one, _ in counts), sum(of for _, of in counts)
    if not n:
        return figure(name, math.nan, (0.0, 1.0), 0, settings=dict(said))
    rates = [one / of for one, of in counts if of]
    interval = _of_seeds(rates)
    settings = _over(rates, said, "Clopper and Pearson's over records")
    if interval is None:
        return figure(name, hits / n, clopper_pearson(hits, n), n, settings=settings)
    low, high = interval
    return figure(name, statistics.mean(rates), (max(low, 0.0), min(high, 1.0)), len(rates), settings=settings)  # fmt: skip


def _of_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval; None for one seed, or for seeds that agree to the last digit (all 0, for instance)."""
    return over_seeds(values) if len(set(values)) > 1 else None


def _of_one_each(hits: Sequence[int]) -> list[tuple[int, int]]:
    return [(hit, 1) for hit in hits]


def _by_person(by_seed: Iterable[Sequence[Sequence[int]]]) -> list[tuple[int, int]]:
    """(hits, trials) of each person over seeds."""
    return [(sum(hit for hit, _ in of), sum(n for _, n in of)) for of in zip(*by_seed, strict=True)]


def _hits(of: Sequence[Found], key: str) -> list[tuple[int, int]]:
    return _by_person([_of_one_each(one["hits"][key]) for one in of])


def _share(
    name: str,
    people: Sequence[tuple[int, int]],
    said: Mapping[str, object],
    *,
    better: str = "higher",
    paper: float | None = None,
) -> Figure:
    """A share pooled over people and seeds, its interval clustered by person; where all or none succeed, over people."""
    hits, n = sum(hit for hit, _ in people), sum(of for _, of in people)
    alike = hits in (0, n)
    interval = clopper_pearson(hits * len(people) / n, len(people)) if alike else clustered_interval(people)  # fmt: skip
    return figure(
        name, hits / n, interval, n, settings=dict(said) | {"people": len(people)}, paper=paper,
        recalled=paper is not None, better=better,
    )  # fmt: skip


def _over(values: Sequence[float], said: Mapping[str, object], of_one: str) -> dict[str, object]:
    by_student = len(set(values)) > 1
    return {
        **said,
        "by_seed": list(values),
        "interval": "Student's t over seeds" if by_student else f"one seed, or all alike: {of_one}",
    }


def _mean(
    name: str,
    values: Sequence[float],
    said: Mapping[str, object],
    better: str = "higher",
    of_one: tuple[float, float] | None = None,
    n: int = 1,
) -> Figure:
    """The mean over seeds, with Student's interval; of one seed what its faces say, or none, which is its value twice."""
    mean = statistics.mean(values)
    interval = over_seeds(values) or of_one or (mean, mean)
    settings = _over(values, said, "none" if of_one is None else "over its faces")
    return figure(
        name, mean, interval, len(values) if len(values) > 1 else n, settings=settings, better=better
    )  # fmt: skip
