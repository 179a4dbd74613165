import csv
import gzip
import io
import math
import statistics
import tracemalloc
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ConfigError, DataError, UnknownName
from tacit.nn.data import load
from tacit.nn.tables import TABLES, Column, Table, load_table


def published(data_folder, name):
    """Each file's rows as dictionaries of text, read by nothing of ours."""
    return [
        list(
            csv.DictReader(io.StringIO(gzip.decompress((data_folder / file).read_bytes()).decode()))
        )
        for file in TABLES[name].files
    ]


def slowly_encoded(row, known, names, categories, low, high):
    """One row's inputs, cell by cell; ``known`` are the training rows' sorted numbers."""
    inputs = []
    for name in names:
        if name not in known:
            inputs += [high if row[name] == category else low for category in categories[name]]
            continue
        least, greatest = known[name][0], known[name][-1]
        value = statistics.median_low(known[name]) if row[name] == "?" else float(row[name])
        value = min(max(value, least), greatest)
        unit = (value - least) / (greatest - least) if greatest > least else 0.0
        inputs.append(low + (high - low) * unit)
    return inputs


@pytest.mark.parametrize(
    ("name", "label", "low", "high", "sampled"),
    [
        ("iris", "species", 0.0, 1.0, 150),
        ("wisconsin", "class_2benign_4malignant", -1.0, 1.0, 699),
        ("pima", "diabetes", -0.3, 0.7, 200),
        ("mushrooms", "odor", 0.0, 1.0, 300),
        ("adult", "race", -1.0, 1.0, 100),
    ],
)
def test_the_encoding_is_that_of_one_row_after_another(
    name, label, low, high, sampled, data_folder
):
    parts, source = published(data_folder, name), TABLES[name]
    rows = [row for part in parts for row in part]
    if len(parts) == 2:
        is_test = [False] * len(parts[0]) + [True] * len(parts[1])
    else:
        seen, is_test = Counter(), []
        for row in rows:
            seen[row[source.label]] += 1
            is_test.append(seen[row[source.label]] % 5 == 0)
    training = [row for row, test in zip(rows, is_test, strict=True) if not test]
    testing = [row for row, test in zip(rows, is_test, strict=True) if test]
    names = [column for column in rows[0] if column not in (label, "id")]
    categories = {column: sorted({row[column] for row in rows}) for column in rows[0]}
    known = {
        column: sorted(float(row[column]) for row in training if row[column] != "?")
        for column in source.numbers
    }

    data = load_table(name, data_folder).encoded(label, low=low, high=high)
    assert (len(data.inputs_train), len(data.inputs_test)) == (len(training), len(testing))
    assert data.class_names == tuple(categories[label])
    for inputs, labels, part in (
        (data.inputs_train, data.labels_train, training),
        (data.inputs_test, data.labels_test, testing),
    ):
        every = max(1, len(part) // sampled)
        for number in range(0, len(part), every):
            slow = slowly_encoded(part[number], known, names, categories, low, high)
            assert inputs[number].tolist() == pytest.approx(slow, abs=1e-6)
            assert data.class_names[labels[number]] == part[number][label]
    assert [feature.name for feature in data.features] == names
    for feature in data.features:
        assert (feature.bounds is None) == (feature.name not in source.numbers)
        assert feature.categories == (
            () if feature.name in source.numbers else tuple(categories[feature.name])
        )


def test_adult_is_encoded_as_in_model_extraction(data_folder):
    table = load_table("adult", data_folder)
    income, race = table.encoded(), table.encoded("race", low=-1.0)
    assert income.name == "adult"
    assert race.name == "adult-race"
    assert income.input_shape == (108,)
    assert race.input_shape == (105,)
    assert race.class_names == (
        "Amer-Indian-Eskimo",
        "Asian-Pac-Islander",
        "Black",
        "Other",
        "White",
    )
    was_rich = next(feature for feature in race.features if feature.name == "income")
    assert was_rich.categories == ("<=50K", ">50K")
    assert int((race.inputs_train[:, was_rich.columns] == 1)[:, 1].sum()) == 7841
    assert income.labels_train.bincount().tolist() == [24720, 7841]
    assert income.labels_test.bincount().tolist() == [12435, 3846]
    for data in (income, race):
        for feature in data.features:
            block = data.inputs_train[:, feature.columns]
            if feature.categories:  # exactly one is on
                assert ((block == data.high).sum(1) == 1).all()
                assert ((block == data.low).sum(1) == len(feature.categories) - 1).all()
            else:
                assert (block.min(), block.max()) == (data.low, data.high)
    age = next(feature for feature in income.features if feature.name == "age")
    assert age.bounds == (17.0, 90.0)
    marked = [column for column in table.columns if "?" in column.categories]
    assert {column.name for column in marked} == {"workclass", "occupation", "native-country"}
    missing = sum((c.values == c.categories.index("?")).int() for c in marked) > 0
    assert (int(missing[~table.is_test].sum()), int(missing[table.is_test].sum())) == (2399, 1221)


def test_the_small_tables_are_what_they_say(data_folder):
    def shape(name):
        data = load(name, data_folder)
        counts = data.labels_train.bincount() + data.labels_test.bincount()
        assert torch.equal(data.labels_test.bincount(), counts // 5)
        return data.input_shape, counts.tolist()

    assert shape("pima") == ((8,), [500, 268])
    assert shape("iris") == ((4,), [50, 50, 50])
    assert shape("wisconsin") == ((9,), [458, 241])
    assert shape("mushrooms") == ((117,), [4208, 3916])
    pima, wisconsin = load_table("pima", data_folder), load_table("wisconsin", data_folder)
    zeros = {c.name: int((c.values == 0).sum()) for c in pima.columns if not c.categories}
    assert zeros["insulin"] == 374
    assert zeros["glucose"] == 5
    assert int(wisconsin.column("bare_nuclei").values.isnan().sum()) == 16
    assert "id" not in {column.name for column in wisconsin.columns}
    mushrooms = load_table("mushrooms", data_folder)
    assert mushrooms.column("veil-type").categories == ("p",)
    assert "?" in mushrooms.column("stalk-root").categories


@pytest.mark.parametrize(
    ("name", "file"),
    [("iris", "iris.csv.gz"), ("mushrooms", "mushrooms.csv.gz"), ("wisconsin", "wisconsin_original.csv.gz")],
)  # fmt: skip
def test_a_table_packed_anew_passes_and_one_changed_cell_does_not(
    name, file, data_folder, tmp_path
):
    text = gzip.decompress((data_folder / file).read_bytes())
    (tmp_path / file).write_bytes(gzip.compress(text, 1))
    assert torch.equal(load(name, tmp_path).inputs_test, load(name, data_folder).inputs_test)
    lines = text.splitlines()
    cells = lines[1].split(b",")
    cells[3] = b"9" if name != "mushrooms" else b"y"
    assert b",".join(cells) != lines[1]
    (tmp_path / file).write_bytes(
        gzip.compress(b"\n".join([lines[0], b",".join(cells), *lines[2:]]))
    )
    with pytest.raises(DataError, match=f"{file}: what was decoded has SHA-256.*value was changed"):
        load(name, tmp_path)


# --- damaged files

HEADER = "sepal_length,sepal_width,petal_length,petal_width,species"
SPECIES = ("Iris-setosa", "Iris-versicolor", "Iris-virginica")


def iris_like():
    return [HEADER, *(f"{n}.5,2,3,4,{SPECIES[n % 3]}" for n in range(150))]


def packed(lines):
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def changed(number, line):
    lines = iris_like()
    lines[number] = line
    return packed(lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must begin with the line sepal_length.*begins with nothing"),
        (b"not gzip", "not a whole gzip"),
        (packed(iris_like())[:-9], "not a whole gzip"),
        (packed(iris_like())[:40], "not a whole gzip"),
        (packed(iris_like())[:60] + b"\0\1\2\3" + packed(iris_like())[64:], "not a whole gzip"),
        (gzip.compress(b"\xff\xfe", mtime=0), "not a whole gzip CSV"),
        (packed(iris_like()[1:]), r"must begin with .* but begins with 0\.5,2,3,4,Iris-setosa"),
        (packed(iris_like()[:-1]), "must hold 150 rows, but holds 149"),
        (packed([*iris_like(), "1,2,3,4,Iris-setosa"]), "holds 151"),
        (changed(3, "1,2,3,Iris-virginica"), "line 4: expected 5 cells, got 4"),
        (
            changed(3, "1,2,3,4,Iris-setosa"),
            r"species must be .* in \(50, 50, 50\).*\(51, 50, 49\)",
        ),
        (changed(3, "1,2,3,4,Iris"), r"\(50, 50, 49\)"),
        (changed(3, "?,2,3,4,Iris-virginica"), '0 rows must have a "\\?", but 1 do'),
        (changed(3, "many,2,3,4,Iris-virginica"), "sepal_length must hold numbers.*many"),
        (changed(3, f"{'1' * 101},2,3,4,Iris-virginica"), "line 4: a cell has more than 100"),
        (changed(3, "1e999,2,3,4,Iris-virginica"), "value was changed"),
        (packed(iris_like()), "value was changed"),
    ],
)
def test_a_file_that_is_not_the_table_is_refused(content, said, tmp_path):
    (tmp_path / "iris.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_table("iris", tmp_path)


def test_text_that_unpacks_to_too_much_is_not_taken_in(tmp_path, monkeypatch):
    monkeypatch.setattr("tacit.nn.files._TEXT_LIMIT", 5000)
    text = "\n".join(iris_like()).encode()
    (tmp_path / "iris.csv.gz").write_bytes(gzip.compress(text + b"\n" + b"0" * 4_000_000))
    tracemalloc.start()
    with pytest.raises(DataError, match="iris"):
        load_table("iris", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_missing_or_unknown_table_is_said(tmp_path):
    with pytest.raises(DataError, match=r"'adult': there is no file .*adult_train\.csv\.gz: put"):
        load_table("adult", tmp_path)
    (tmp_path / "adult_train.csv.gz").mkdir()
    with pytest.raises(DataError, match="no file"):
        load_table("adult", tmp_path)
    with pytest.raises(UnknownName, match="no table is called 'irs': did you mean iris"):
        load_table("irs", tmp_path)


# --- tables of one's own


def table(**changes):
    parts = {
        "name": "own",
        "columns": (
            Column(name="age", values=torch.tensor([30.0, math.nan, 20.0, 50.0, 99.0]).double()),
            Column(name="same", values=torch.tensor([7.0, 7.0, 7.0, 7.0, 8.0]).double()),
            Column(name="sex", values=torch.tensor([0, 1, 1, 0, 1]), categories=("f", "m")),
            Column(name="ill", values=torch.tensor([0, 1, 0, 1, 0]), categories=("no", "yes")),
        ),
        "is_test": torch.tensor([False, False, False, False, True]),
        "label": "ill",
        "citation": "nobody",
    }
    return Table(**{**parts, **changes})


def test_clamping_medians_and_constant_columns_by_hand():
    data = table().encoded(low=-1.0, high=1.0)
    third = pytest.approx(2 * 10 / 30 - 1)  # age 30 between 20 and 50, and the lower median
    assert data.inputs_train.tolist() == [
        [third, -1, 1, -1],
        [third, -1, -1, 1],
        [-1, -1, -1, 1],
        [1, -1, 1, -1],
    ]
    assert data.inputs_test.tolist() == [[1, -1, -1, 1]]  # 99 is clamped; 8 where training said 7
    assert [(f.name, f.start, f.stop, f.bounds) for f in data.features] == [
        ("age", 0, 1, (20.0, 50.0)),
        ("same", 1, 2, (7.0, 7.0)),
        ("sex", 2, 4, None),
    ]
    by_sex = table().encoded("sex")
    assert by_sex.name == "own-sex"
    assert by_sex.labels_train.tolist() == [0, 1, 1, 0]
    assert by_sex.inputs_test.tolist() == [[1, 0, 1, 0]]


@given(
    values=st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=20),
    low=st.floats(-5, 5),
    width=st.floats(0.01, 10),
)
def test_numbers_stay_in_range_and_in_order(values, low, width):
    rows = len(values)
    numbers = Column(name="n", values=torch.tensor(values, dtype=torch.float64))
    label = Column(name="l", values=torch.arange(rows) % 2, categories=("a", "b"))
    is_test = torch.arange(rows) == rows - 1
    own = table(columns=(numbers, label), is_test=is_test, label="l")
    data = own.encoded(low=low, high=low + width)  # which checks the range
    order = numbers.values[:-1].argsort()
    assert (data.inputs_train[order, 0].diff() >= 0).all()
    assert data.inputs_train.min() == torch.tensor(low)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"label": "age"}, ConfigError, "age of own is a number.*use one of sex, ill"),
        ({"label": "sexx"}, UnknownName, "no column of own is called 'sexx': did you mean sex"),
        ({"low": 1.0}, ConfigError, r"not 1\.0 and 1\.0"),
        ({"low": math.nan}, ConfigError, "low must be below high"),
        ({"high": math.inf}, ConfigError, "both finite"),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(arguments, kind, said):
    with pytest.raises(kind, match=said):
        table().encoded(**arguments)


def test_a_number_known_of_no_training_row_is_refused():
    values = torch.tensor([math.nan] * 4 + [1.0]).double()
    columns = (Column(name="new", values=values), table().columns[3])
    with pytest.raises(DataError, match="no training row has a value in new"):
        table(columns=columns).encoded()


@pytest.mark.parametrize(
    ("values", "categories", "said"),
    [
        (torch.zeros(3), (), r"float64 .* not torch.float32"),
        (torch.zeros(3).double(), ("a",), "int64"),
        (torch.zeros(3, 1).double(), (), r"\(3, 1\)"),
        (torch.zeros(0).double(), (), "at least one row"),
        (torch.tensor([0, 2]), ("a", "b"), r"0 \.\. 1, but lies in 0 \.\. 2"),
        (torch.tensor([0, 1]), ("b", "a"), "sorted"),
        (torch.tensor([0, 1]), ("a", "a"), "different"),
        (torch.tensor([0.0, math.inf]).double(), (), "infinity"),
    ],
)
def test_a_column_that_is_none_is_refused(values, categories, said):
    with pytest.raises(DataError, match=said):
        Column(name="c", values=values, categories=categories)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"columns": ()}, DataError, "two columns or more"),
        ({"columns": (table().columns[0],) * 2}, DataError, "different names"),
        ({"is_test": torch.zeros(4, dtype=torch.bool)}, DataError, r"lengths are \[4, 5\]"),
        ({"is_test": torch.zeros(5)}, DataError, "bool.*float32"),
        ({"is_test": torch.zeros(5, dtype=torch.bool)}, DataError, "both training and test"),
        ({"is_test": torch.ones(5, dtype=torch.bool)}, DataError, "both training and test"),
        ({"label": "income"}, UnknownName, "no column of own is called 'income'"),
    ],
)
def test_a_table_that_is_none_is_refused(changes, kind, said):
    with pytest.raises(kind, match=said):
        table(**changes)
