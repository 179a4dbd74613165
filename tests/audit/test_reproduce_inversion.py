"""What the reproduction of model inversion runs: faces inverted in every way, an exact extraction, rounding, attributes."""

import base64
import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tacit.audit.reproduce_inversion as module
from tacit.attacks.access import Knowledge, QueryCounter, Scores
from tacit.attacks.extraction import Box, EquationSolving
from tacit.audit.attribute_cases import METHODS, Attribute, hidden, run_attribute
from tacit.audit.figures import Effort
from tacit.audit.inversion_cases import (
    BlackBox,
    Extracted,
    Faces,
    extract_by_waves,
    rounding,
    run_faces,
    split,
)
from tacit.audit.pictures import contact_sheet
from tacit.audit.reproduce import REPRODUCTIONS
from tacit.audit.reproduce_inversion import cases, reproduce_inversion
from tacit.audit.statistics import clopper_pearson
from tacit.core.errors import BudgetExhausted, ConfigError, NotEnoughEvidence
from tacit.nn.dataset import DataSet, Feature
from tacit.nn.faces import FaceTraining
from tacit.nn.policies import Policy
from tacit.nn.stacked import Recipe

PEOPLE, SHAPE = 8, (1, 14, 12)
QUICK = FaceTraining(epochs=60, batch_size=56, learning_rate=0.02)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def faces():
    """Ten noisy images of each of eight smooth made-up patterns."""
    coarse = torch.rand(PEOPLE, 1, 4, 4, generator=seeded(0))
    centres = nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear")
    labels = torch.arange(PEOPLE).repeat_interleave(10)
    noise = 0.03 * torch.randn(len(labels), *SHAPE, generator=seeded(1))
    images = (0.1 + 0.8 * centres[labels] + noise).clamp(0, 1)
    test = torch.arange(len(labels)) % 10 >= 7
    return DataSet(
        name="patterns", inputs_train=images[~test], labels_train=labels[~test], inputs_test=images[test],
        labels_test=labels[test], classes=PEOPLE, class_names=tuple("abcdefgh"), citation="made for this test",
    )  # fmt: skip


@pytest.fixture(scope="module")
def visitors():
    """Records of a colour, a number near the colour's and noise; the label follows from the colour and a coin."""
    n, generator = 900, seeded(2)
    colour = torch.randint(3, (n,), generator=generator)
    number = (colour / 3 + 0.3 * torch.rand(n, generator=generator))[:, None]
    noise = torch.rand(n, 2, generator=generator)
    labels = ((colour == 2) ^ (torch.rand(n, generator=generator) < 0.25)).long()
    inputs = torch.cat([number, nn.functional.one_hot(colour, 3), noise], 1).clamp(0, 1)
    features = (
        Feature(name="size", start=0, stop=1, bounds=(0.0, 1.0)),
        Feature(name="colour", start=1, stop=4, categories=("blue", "green", "red")),
        Feature(name="a", start=4, stop=5, bounds=(0.0, 1.0)),
        Feature(name="b", start=5, stop=6, bounds=(0.0, 1.0)),
    )
    return DataSet(
        name="visitors", inputs_train=inputs[:600], labels_train=labels[:600], inputs_test=inputs[600:],
        labels_test=labels[600:], classes=2, class_names=("no", "yes"), citation="made for this test", features=features,
    )  # fmt: skip


def total(pairs):
    return sum(hits for hits, _ in pairs)


def small(kind, **settings):
    case = Faces(
        name=f"att-faces/{kind}", seed=0, kind=kind, training=QUICK, hidden=40, widths=(40, 20), judge_steps=150,
        iterations=300, shown=True,
    )  # fmt: skip
    return replace(case, **settings)


# --- faces


def test_seven_images_of_each_person_are_trained_on_and_three_are_not(faces):
    one, again, other = split(faces, 3), split(faces, 3), split(faces, 4)
    assert torch.bincount(one.labels).tolist() == [7] * PEOPLE
    assert torch.bincount(one.validation_labels).tolist() == [3] * PEOPLE
    rows = {row.numpy().tobytes() for row in torch.cat([one.inputs, one.validation_inputs])}
    assert len(rows) == 10 * PEOPLE
    assert torch.equal(one.inputs, again.inputs)
    assert not torch.equal(one.inputs, other.inputs)
    assert split(faces, 3, 2).inputs.shape == (56, 1, 7, 6)


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("softmax", {"softmax"}),
        ("mlp", {"mlp", "mlp-mean-face", "mlp-printed-cost"}),
        ("dae", {"dae", "dae-every-10-steps", "dae-without-process"}),
    ],
)
def test_every_recogniser_is_inverted_in_its_ways(faces, kind, ways):
    found = run_faces(small(kind), faces)
    assert found["ways"].keys() == ways
    assert [held for _, held in found["right_faces"]] == [3] * PEOPLE
    assert total(found["right_faces"]) >= 20
    for judge in ("judge", "plain-judge"):
        assert (
            total(found[judge]["right_faces"]) > 0.9 * 3 * PEOPLE and found[judge]["accuracy"] > 0.9
        )
    first = found["ways"][kind]
    hits = first["hits"]
    assert {len(of) for of in hits.values()} == {PEOPLE} and all(
        {*of} <= {0, 1} for of in hits.values()
    )
    assert hits.keys() == {*module._SHARES.values()}
    assert sum(hits["by_correlation"]) >= 7
    assert first["controls"]["another class"]["by_correlation"] == 0
    assert first["likeness"]["ssim"][0] > first["likeness"]["other_ssim"][0]
    assert sum(first["stopped"].values()) == first["faces"] == PEOPLE
    assert found["shown"].keys() == ways | {"real"}
    assert ("image_confidence" in first) == (kind == "dae")
    if kind == "mlp":
        assert found["ways"]["mlp-mean-face"]["start"] == "mean face"
        assert found["ways"]["mlp-printed-cost"]["settings"]["cost"] == "1 - p"
    assert json.dumps(found) and found["seconds"] > 0


def test_the_extracted_model_is_the_target_and_so_are_its_images(faces):
    found = run_faces(
        Extracted(name="att-faces/extract-then-invert", seed=0, training=QUICK, judge_steps=60), faces
    )  # fmt: skip
    assert found["queries"] == math.prod(SHAPE) + 1
    assert found["total_variation"] < 1e-12 and found["agreement"] == 1
    assert found["largest_difference_of_images"] < 1e-8
    assert found["inverted"]["hits"] == found["white_box"]["hits"]
    assert found["reached_at_target"] == [1] * PEOPLE
    assert found["inverted"]["seconds"] > found["extraction_seconds"] > 0
    assert found["white_box"]["seconds"] > 0


def affine(seed=0, width=12, classes=4):
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, classes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    return model


def test_waves_give_what_equation_solving_gives():
    model, knowledge = affine(), Knowledge(input_shape=(1, 4, 3), classes=4)
    counter = QueryCounter(budget=13)
    found = extract_by_waves(Scores(model, counter), knowledge, seeded(1))
    slow = EquationSolving(box=Box(dtype=torch.float64)).extract(
        Scores(model), knowledge, seeded(1)
    )
    assert counter.spent == 13 == slow.queries
    weight = model[1].weight - model[1].weight.mean(0)
    assert torch.allclose(found.weight, weight, atol=1e-12)
    assert torch.allclose(found.weight, slow.model.weight, atol=1e-12)
    inputs = torch.rand(20, 1, 4, 3, generator=seeded(2), dtype=torch.float64)
    assert torch.allclose(found(inputs).softmax(1), model(inputs).softmax(1), atol=1e-13)
    with pytest.raises(BudgetExhausted):
        extract_by_waves(Scores(model, QueryCounter(budget=12)), knowledge, seeded(1))
    for wrong in (
        (Scores(model, policy=Policy(digits=3)), knowledge),
        (Scores(model), replace(knowledge, classes=5)),
        (Scores(model), replace(knowledge, input_shape=None)),
    ):
        with pytest.raises(ConfigError):
            extract_by_waves(*wrong, seeded(1))


def test_waves_stop_at_the_first_answers_that_cannot_do():
    large, known = affine(width=1200), Knowledge(input_shape=(1, 40, 30), classes=4)
    with torch.no_grad():
        large[1].weight.mul_(40)  # probabilities fall below the least normal number
    for model, knowledge, error in (
        (large, known, NotEnoughEvidence), (affine(width=1200), replace(known, classes=3), ConfigError),
    ):  # fmt: skip
        counter = QueryCounter()
        with pytest.raises(error, match=r"expected|known"):
            extract_by_waves(Scores(model, counter), knowledge, seeded(1))
        assert 0 < counter.spent < 1201


@pytest.mark.parametrize("multiple", [0.1, 0.05, 0.01, 0.005, 1e-5])
def test_answers_are_rounded_to_multiples(multiple):
    model, inputs = affine(), torch.rand(30, 1, 4, 3, generator=seeded(3), dtype=torch.float64)
    counter = QueryCounter()
    whole = rounding(model, None, counter).scores(inputs)
    given = rounding(model, multiple, counter).scores(inputs)
    assert counter.spent == 60
    assert (given - whole).abs().max() <= multiple / 2 + 1e-9
    assert ((given / multiple) - (given / multiple).round()).abs().max() < 1e-6
    assert not torch.equal(given, whole)


def test_coarse_rounding_stops_what_queries_find(faces):
    case = BlackBox(
        name="att-faces/black-box", seed=0, training=QUICK, pool=2, roundings=(0.001, 0.3), iterations=30,
        judge_steps=60,
    )  # fmt: skip
    found = run_faces(case, faces)
    assert found["rounding"].keys() == {"0.001", "0.3"}
    assert found["numeric"]["queries"] > found["spsa"]["faces"]
    fine, coarse = (found["rounding"][multiple]["hits"] for multiple in ("0.001", "0.3"))
    assert sum(found["numeric"]["hits"]["by_correlation"]) >= 7
    assert sum(fine["reached"]) == PEOPLE > sum(coarse["reached"])
    assert sum(coarse["by_correlation"]) < sum(fine["by_correlation"])
    figures = {one["name"] for one in module._of_queries(case, [found])}
    assert "att-faces/rounding/0.3/reidentified" in figures
    assert "att-faces/black-box/spsa/queries_a_face" in figures


# --- attributes


def test_a_category_has_its_columns_and_a_number_its_bins(visitors):
    inputs, some = visitors.inputs_train, torch.arange(100)
    size, colour = visitors.features[:2]
    found, truth = hidden(inputs, some, colour, 0)
    assert torch.equal(found.values, torch.eye(3)) and found.start == 1
    assert torch.equal(truth, inputs[:, 1:4].argmax(1))
    assert found.prior.tolist() == torch.bincount(truth[:100]).tolist()
    found, truth = hidden(inputs, some, size, 4)
    assert found.values.shape == (4, 1) and found.values.flatten().diff().min() > 0
    assert found.prior.tolist() == [25] * 4
    assert all(
        inputs[truth == low, 0].max() <= inputs[truth == low + 1, 0].min() for low in range(3)
    )
    with pytest.raises(ConfigError, match="2 bins"):
        hidden(inputs, some, size, 0)
    with pytest.raises(ConfigError, match="too few"):
        hidden(inputs.round(), some, size, 9)


@pytest.mark.parametrize(("column", "bins"), [("colour", 0), ("size", 3)])
def test_an_attribute_is_inferred_beside_those_who_have_no_model(visitors, column, bins):
    case = Attribute(
        name="visitors/it", seed=1, table="visitors", column=column, positive=2, bins=bins, members=150,
        recipe=Recipe(epochs=100, batch_size=25, learning_rate=0.01),
        known=Recipe(epochs=40, batch_size=50, learning_rate=0.01),
    )  # fmt: skip
    found = run_attribute(case, visitors)
    members, others = (found["outcomes"][group] for group in ("members", "nonmembers"))
    assert members.keys() == set(METHODS) and members["probability"]["records"] == 150
    assert found["target_training_accuracy"] > 0.6 and found["target_accuracy"] > 0.6
    for group in (members, others):  # the label tells of the colour, the size tells the colour
        assert group["without-model"]["right"] > group["most-frequent"]["right"]
        if column == "colour":
            assert group["probability"]["right"] > group["most-frequent"]["right"]
    assert all(one["found"] <= min(one["said"], one["true"]) for one in others.values())
    right = members["probability"]["right"]
    gap = (right - others["probability"]["right"]) / 150
    base = (members["most-frequent"]["right"] - others["most-frequent"]["right"]) / 150
    other = run_attribute(replace(case, seed=2), visitors)
    for founds in ([found], [found, other]):
        made = {one["name"]: one for one in module._of_attribute(case.name, case, founds)}
        accuracy = made["visitors/it/probability/members/accuracy"]
        assert accuracy["settings"]["by_seed"][0] == right / 150
        assert accuracy["n"] == (150 if len(founds) == 1 else 2)
        whole, beyond = (
            made[f"visitors/it/probability/{w}"] for w in ("gap", "gap_beyond_base_rate")
        )
        assert whole["settings"]["by_seed"][0] == pytest.approx(gap)
        assert beyond["settings"]["by_seed"][0] == pytest.approx(gap - base)
        for one in (whole, beyond):
            assert one["interval"][0] < one["here"] < one["interval"][1]
        assert json.dumps(list(made.values()), allow_nan=False)


def test_the_gap_beyond_the_base_rate_covers_and_is_paired():
    """Over draws of two alike groups its interval holds zero about as often as it says; one that adds nothing has width."""
    generator, held = seeded(3), 0
    for _ in range(300):
        drawn = torch.rand(2, 2, 200, generator=generator)
        groups = [
            {"better": int((u < 0.15).sum()), "worse": int((v < 0.05).sum()), "records": 200} for u, v in drawn
        ]  # fmt: skip
        gap, reach = module._paired(*groups)
        held += abs(gap) <= reach
    assert 275 <= held <= 297
    none = {"better": 0, "worse": 0, "records": 200}
    gap, reach = module._paired(none, none)
    assert gap == 0 < reach < 0.02
    whole = module._gap(
        "it", [(none, none)] * 3, module._paired, {}
    )  # seeds that agree prove no more than one
    assert whole["interval"] == [-reach, reach]
    assert module._rate("it", [(0, 20)] * 3, {})["interval"] == list(clopper_pearson(0, 60))


def test_a_share_is_as_sure_as_its_people_are_many():
    """The same people over seeds are no new people."""
    one, again = [(1, 1)] * 30 + [(0, 1)] * 10, [(3, 3)] * 30 + [(0, 3)] * 10
    first, pooled = (module._share("it", of, {}) for of in (one, again))
    assert first["interval"] == list(clopper_pearson(30, 40))
    low, high = pooled["interval"]
    assert pooled["n"] == 120 and high - low > 0.9 * (first["interval"][1] - first["interval"][0])
    whole = module._share("it", [(3, 3)] * 40, {})
    assert whole["interval"] == list(clopper_pearson(40, 40)) and whole["here"] == 1


def test_a_table_without_the_column_or_with_few_records_is_refused(visitors):
    case = Attribute(name="v", seed=1, table="visitors", column="shape", positive=0, members=10)
    for wrong in (case, replace(case, column="colour", members=450)):
        with pytest.raises(ConfigError, match="expected"):
            run_attribute(wrong, visitors)


# --- the whole


def test_a_contact_sheet_holds_all_images_and_refuses_unequal_rows():
    png = contact_sheet([np.zeros((3, 4, 5)), np.ones((3, 4, 5))], gap=1)
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24]) == (18, 10)
    for wrong in ([], [np.zeros((3, 4, 5)), np.zeros((2, 4, 5))], [np.zeros((4, 5))]):
        with pytest.raises(ConfigError, match="one size expected"):
            contact_sheet(wrong)


def made_up(case):
    """What a case might have given."""
    if isinstance(case, Attribute):
        counts = {
            "records": 100, "right": 60 + case.seed, "said": 0, "true": 30, "found": 0, "better": 9, "worse": 5,
        }  # fmt: skip
        group = dict.fromkeys(METHODS, counts)
        return {
            "outcomes": {"members": group, "nonmembers": group}, "values": 3, "positive": "x", "population": 50,
            "target_accuracy": 0.8, "target_training_accuracy": 1.0, "seconds": 1.0,
        }  # fmt: skip
    likeness = {name: [20.0, 19.0, 21.0] for name in module._LIKENESS}
    control = {"by_judge": 1, "by_correlation": 1, "junk": 0.5}
    hits = dict.fromkeys(module._SHARES.values(), [1] * 40)
    hits |= {
        "by_judge": [1] * (38 + case.seed) + [0] * (2 - case.seed),
        "by_plain_judge": [1] * 30 + [0] * 10,
    }
    way = {
        "seconds": 2.0, "faces": 40, "confidence": 0.99, "steps": 90.0, "stopped": {"confident": 40},
        "start": "zero", "hits": hits, "junk": 0.0,
        "likeness": likeness, "controls": {"noise": control}, "queries": 4000, "slopes": "some",
    }  # fmt: skip
    judge = {"accuracy": 0.98, "right_faces": [[3, 3]] * 39 + [[2, 3]]}
    base = {"judge": judge, "plain-judge": judge, "seconds": 3.0}
    if isinstance(case, Extracted):
        return base | {
            "queries": 10305, "total_variation": 1e-15, "agreement": 1.0, "extraction_seconds": 3.0,
            "largest_difference_of_images": 1e-12, "reached_at_target": [1] * 40, "inverted": way, "white_box": way,
        }  # fmt: skip
    if isinstance(case, BlackBox):
        rounded = {f"{multiple:g}": way for multiple in case.roundings}
        return base | {"white-box": way, "numeric": way, "spsa": way, "rounding": rounded}
    pixels = {"pixels": base64.b64encode(bytes(40 * 6)).decode(), "shape": [40, 3, 2]}
    return base | {
        "ways": {case.kind: way | {"settings": {"step_size": 5.0}}}, "training_seconds": 9.0,
        "right_faces": [[2, 3]] * 5 + [[3, 3]] * 35, "shown": {"real": pixels, case.kind: pixels} if case.shown else {},
    }  # fmt: skip


def test_figures_have_their_names_and_finished_cases_are_kept(tmp_path, monkeypatch):
    ran, said = [], []

    def some(todo, most=1000):
        for case in todo:
            if len(ran) == most:
                raise KeyboardInterrupt
            ran.append(case.key)
            yield case, made_up(case)

    assert REPRODUCTIONS["1"] is reproduce_inversion
    opened = []
    monkeypatch.setattr(module, "load", opened.append)
    monkeypatch.setattr(module, "load_table", opened.append)
    monkeypatch.setattr(module, "_side_by_side", lambda todo: some(todo, 5))
    effort = Effort(folder=tmp_path, progress=said.append)
    with pytest.raises(KeyboardInterrupt):
        reproduce_inversion(effort)
    assert opened == ["att-faces", "adult", "pima"]  # what is missing shows before anything runs
    monkeypatch.setattr(module, "_side_by_side", some)
    result = reproduce_inversion(effort)
    assert len(ran) == len(set(ran)) == 3 * 8
    figures = {one["name"]: one for one in result["figures"]}
    assert len(figures) == len(result["figures"])
    assert json.dumps(result, allow_nan=False)
    error = figures["att-faces/softmax/validation-error"]
    assert error["here"] == pytest.approx(15 / 360) and error["paper"] == 0.075
    assert error["recalled"] and error["better"] == "lower" and error["n"] == 360
    known = figures["att-faces/mlp/reidentified"]
    assert known["here"] == (38 + 39 + 40) / 120 and known["n"] == 120
    assert known["settings"]["controls"]["noise"]["by_judge"] == 3 / 120
    assert figures["att-faces/mlp/reidentified_by_plain_judge"]["here"] == 0.75
    assert (
        figures["att-faces/judge/accuracy"]["n"] == 3
    )  # one judge a seed, however many cases it served in
    assert figures["att-faces/dae/seconds"]["here"] == 2.0
    assert figures["att-faces/extract-then-invert/queries"]["here"] == 10305
    for name in (
        "att-faces/judge/accuracy", "att-faces/dae/confidence", "att-faces/softmax/reidentified_by_correlation",
        "att-faces/plain-judge/accuracy-on-faces", "att-faces/small/plain-judge/accuracy",
        "att-faces/softmax/reidentified_clamped", "att-faces/rounding/0.1/reidentified",
        "att-faces/extract-then-invert/white_box_seconds", "adult/race/probability/gap_beyond_base_rate",
        "adult/race/confusion/nonmembers/recall", "pima/glucose/without-model/gap",
    ):  # fmt: skip
        assert name in figures
    assert (
        figures["adult/race/confusion/members/precision"]["here"] is None
    )  # nobody was said to be one
    sheet = tmp_path / "inversion.png"
    assert struct.unpack(">II", sheet.read_bytes()[16:24]) == (20 * 4, 4 * 5)
    assert f"{sheet}: real, softmax, mlp, dae, from the top" in said


def test_less_and_more_have_the_same_names():
    quick, usual, full = (cases(Effort(quick=q, full=f, seed=5)) for q, f in ((1, 0), (0, 0), (0, 1)))  # fmt: skip
    assert len({tuple(sorted({case.name for case in some})) for some in (quick, usual, full)}) == 1
    assert (len(quick), len(usual), len(full)) == (8, 24, 40)
    assert len({case.key for case in full}) == 40
    assert {case.seed for case in usual} == {5, 6, 7}
    assert [case.kind for case in usual if getattr(case, "shown", False)] == [
        "dae",
        "mlp",
        "softmax",
    ]
