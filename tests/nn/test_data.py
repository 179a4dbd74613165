import dataclasses
import hashlib
import io
import itertools
import math
import struct
import zipfile

import numpy as np
import pytest
import torch

from tacit.core.errors import ConfigError, DataError, UnknownName
from tacit.nn.data import (
    SOURCES,
    DataSet,
    Feature,
    available,
    check_finite,
    load,
    split_by_label,
    split_iid,
)
from tacit.nn.files import digest


def small(**changes):
    parts = {
        "name": "small",
        "inputs_train": torch.linspace(0, 1, 24).view(6, 2, 2),
        "labels_train": torch.tensor([0, 1, 2, 0, 1, 2]),
        "inputs_test": torch.zeros(2, 2, 2),
        "labels_test": torch.tensor([0, 2]),
        "classes": 3,
        "class_names": ("a", "b", "c"),
        "citation": "nobody",
    }
    return DataSet(**{**parts, **changes})


def mnist_like(**changes):
    """Arrays of MNIST's types and shapes, all zero: whatever is changed, they compress to little."""
    arrays = {
        "X_train": np.zeros((60000, 28, 28), np.uint8),
        "y_train": np.zeros(60000, np.uint8),
        "X_test": np.zeros((10000, 28, 28), np.uint8),
        "y_test": np.zeros(10000, np.uint8),
    }
    arrays["y_train"][:5] = [5, 0, 4, 1, 9]
    arrays.update(changes)
    return {name: array for name, array in arrays.items() if array is not None}


def test_digits_are_whole_and_divided_as_documented():
    data = load("digits")
    from sklearn.datasets import load_digits

    published = load_digits()
    assert data.input_shape == (1, 8, 8)
    assert len(data.labels_train) == 1442
    assert len(data.labels_test) == 355
    for label in range(10):
        images = torch.from_numpy(published.images[published.target == label]).float() / 16
        in_test = torch.arange(len(images)) % 5 == 4
        assert torch.equal(data.inputs_test[data.labels_test == label, 0], images[in_test])
        assert torch.equal(data.inputs_train[data.labels_train == label, 0], images[~in_test])


def test_mnist_is_mnist(data_folder):
    data = load("mnist", data_folder)
    assert data.inputs_train.shape == (60000, 1, 28, 28)
    assert data.inputs_test.shape == (10000, 1, 28, 28)
    assert data.inputs_train.dtype == torch.float32
    assert data.labels_train.dtype == torch.int64
    assert data.labels_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.labels_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.inputs_train.max() == 1
    assert data.inputs_train.double().mean() * 255 == pytest.approx(33.3184, abs=1e-4)
    assert data.inputs_test.double().mean() * 255 == pytest.approx(33.7912, abs=1e-4)


def test_cifar10_is_the_subset_it_says(data_folder):
    data = load("cifar10", data_folder)
    assert data.input_shape == (3, 32, 32)
    assert data.labels_train.bincount().tolist() == [2000] * 10
    assert data.labels_test.bincount().tolist() == [400] * 10
    pixels = (data.inputs_test * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    assert digest == "83012eb25a30f10299c789c16e99f1c8e1ac325160f502094a1d1ee6ca6ccba5"
    means = data.inputs_train.mean((0, 2, 3)).tolist()
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)
    assert data.class_names[0] == "airplane"
    assert data.class_names[9] == "truck"


def test_the_environment_says_where_the_data_are(data_folder, monkeypatch):
    monkeypatch.setenv("TACIT_DATA", str(data_folder))
    listed = {listing.name: listing for listing in available()}
    assert all(listing.present for listing in listed.values())
    for name in SOURCES:
        if name == "cifar10":
            continue  # two seconds
        data = load(name)
        assert data.name == name
        assert data.class_names == SOURCES[name].class_names
        assert (data.low, data.high) == (0, 1)
        assert len(data.labels_train) == listed[name].rows_train
        assert len(data.labels_test) == listed[name].rows_test
        assert data.input_shape == listed[name].input_shape
        assert data.citation == listed[name].citation


@pytest.mark.parametrize(("name", "file"), [("mnist", "mnist.npz"), ("cifar10", "cifar10_24k.npz")])
def test_a_missing_variable_folder_or_file_is_said(name, file, tmp_path, monkeypatch):
    monkeypatch.delenv("TACIT_DATA", raising=False)
    with pytest.raises(DataError, match=f"TACIT_DATA is not set.*{file}.*digits"):
        load(name)
    monkeypatch.setenv("TACIT_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=f"no folder .*gone.*TACIT_DATA.*{file}"):
        load(name)
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"no file .*{file}"):
        load(name)


def test_listing_says_what_is_there_without_reading_it(tmp_path, monkeypatch):
    monkeypatch.delenv("TACIT_DATA", raising=False)
    assert [(entry.name, entry.present, entry.fetchable) for entry in available()] == [
        ("digits", True, False),
        ("mnist", False, True),
        ("cifar10", False, False),
        ("att-faces", False, True),
        ("location30", False, True),
        ("adult", False, True),
        ("pima", False, True),
        ("iris", False, True),
        ("wisconsin", False, True),
        ("mushrooms", False, True),
    ]
    assert all(entry.present or "TACIT_DATA" in entry.why_not for entry in available())
    (tmp_path / "mnist.npz").write_bytes(b"not read")
    present = {entry.name: entry for entry in available(tmp_path)}
    assert present["mnist"].present
    assert present["mnist"].where == str(tmp_path / "mnist.npz")
    assert not present["cifar10"].present
    assert "cifar10_24k.npz" in present["cifar10"].why_not
    (tmp_path / "adult_train.csv.gz").write_bytes(b"one of two")
    adult = next(entry for entry in available(tmp_path) if entry.name == "adult")
    assert not adult.present
    assert "adult_test.csv.gz" in adult.why_not


def test_an_unknown_name_lists_the_close_ones():
    with pytest.raises(UnknownName, match="no data set is called 'minst': did you mean mnist"):
        load("minst")


def header_only(shape, descr="|u1", version=(1, 0)):
    """A .npy member whose header claims what it likes, with no data behind it."""
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    write = (
        np.lib.format.write_array_header_1_0
        if version == (1, 0)
        else np.lib.format.write_array_header_2_0
    )
    write(stream, header)
    return stream.getvalue()


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 100, b"\x93NUMPY\x01\x00v\x00"]
)
def test_a_file_that_is_no_archive_is_refused(content, tmp_path):
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"mnist\.npz is not a whole \.npz file.*fetch"):
        load("mnist", tmp_path)


def test_a_folder_in_the_files_place_is_refused(tmp_path):
    (tmp_path / "mnist.npz").mkdir()
    with pytest.raises(DataError, match="no file"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("array", "came"),
    [
        (np.zeros(3, np.uint8), r"not uint8 of shape \(3,\)"),
        (np.zeros((3, 28, 28), np.float32), r"not float32 of shape \(3, 28, 28\)"),
        (np.array([{}, []], dtype=object), r"not object of shape \(2,\)"),
        (np.array("text"), "not <U4"),
    ],
)
def test_an_array_of_another_kind_is_refused(array, came, tmp_path):
    np.savez(tmp_path / "mnist.npz", X_train=array)
    with pytest.raises(
        DataError, match=r"X_train must be uint8 of shape \(60000, 28, 28\), " + came
    ):
        load("mnist", tmp_path)


def test_an_array_of_the_right_shape_and_another_type_is_refused(tmp_path):
    zipped(tmp_path / "mnist.npz", {"X_train": header_only((60000, 28, 28), descr="<f4")})
    with pytest.raises(DataError, match=r"must be uint8 of shape .*, not float32"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_claimed_size_is_checked_before_memory_is_taken(version, tmp_path):
    zipped(tmp_path / "mnist.npz", {"X_train": header_only((1 << 50, 28, 28), version=version)})
    with pytest.raises(DataError, match="must be uint8"):
        load("mnist", tmp_path)


GARBLED = {
    "empty": b"",
    "no magic": b"garbage" * 10,
    "magic only": b"\x93NUMPY\x01\x00",
    "header cut": header_only((60000, 28, 28))[:40],
    "no data": header_only((60000, 28, 28)),
    "unknown version": b"\x93NUMPY\x09\x00" + b"\0" * 50,
    "header not a literal": b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"__import__('os')   \n",
    "header nested": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
    "header of signs": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"-" * 8999 + b"1",
    "header unclosed string": b"\x93NUMPY\x01\x00"
    + struct.pack("<H", 20)
    + b"{'descr': '''       ",
    "header not text": b"\x93NUMPY\x03\x00" + struct.pack("<I", 20) + b"\xff" * 20,
    "type nonsense": header_only((60000, 28, 28), descr="|zz9"),
}


@pytest.mark.parametrize("data", GARBLED.values(), ids=GARBLED.keys())
def test_a_garbled_array_is_refused(data, tmp_path):
    zipped(tmp_path / "mnist.npz", {"X_train": data})
    with pytest.raises(DataError, match="array X_train is damaged"):
        load("mnist", tmp_path)


def test_flipped_and_cut_bytes_are_refused(tmp_path):
    pixels = np.arange(60000 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(60000, 28, 28)
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, X_train=pixels)
    whole = path.read_bytes()
    for position in (100, 500, len(whole) // 2):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(DataError, match="damaged"):
            load("mnist", tmp_path)
    for length in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a whole"):
            load("mnist", tmp_path)


def test_an_encrypted_or_unknown_compression_is_refused(tmp_path):
    path = tmp_path / "mnist.npz"
    zipped(path, {"X_train": header_only((60000, 28, 28))})
    whole = path.read_bytes()
    central = whole.index(b"PK\x01\x02")
    for offset, value in ((6, 0), (8, 1), (10, 99)):
        data = bytearray(whole)
        data[central + offset] = value or 255
        path.write_bytes(data)
        with pytest.raises(DataError):
            load("mnist", tmp_path)


def test_a_missing_array_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "mnist.npz", images=np.zeros(1), labels=np.zeros(1))
    with pytest.raises(DataError, match="must hold an array X_train, but holds images, labels"):
        load("mnist", tmp_path)
    zipped(tmp_path / "mnist.npz", {})
    with pytest.raises(DataError, match="holds nothing"):
        load("mnist", tmp_path)


def test_arrays_of_the_right_kind_that_are_not_mnist_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "mnist.npz", **mnist_like())
    with pytest.raises(DataError, match=r"mean pixel of X_train is 33\.3184 in MNIST, here 0\.0"):
        load("mnist", tmp_path)
    np.savez_compressed(tmp_path / "mnist.npz", **mnist_like(y_train=np.ones(60000, np.uint8)))
    with pytest.raises(
        DataError, match=r"first labels are 5 0 4 1 9, but y_train has \[1, 1, 1, 1, 1\]"
    ):
        load("mnist", tmp_path)


def test_a_label_out_of_range_is_refused(data_folder, tmp_path):
    with np.load(data_folder / "mnist.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["y_test"][7] = 10
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(DataError, match=r"y_test must lie in 0 \.\. 9, but lies in 0 \.\. 10"):
        load("mnist", tmp_path)


def cifar_like(**changes):
    arrays = {
        "R_train": np.zeros((3, 20000, 32, 32), np.uint8),
        "y_train": np.arange(20000) % 10,
        "R_test": np.zeros((3, 4000, 32, 32), np.uint8),
        "y_test": np.arange(4000) % 10,
    }
    return {name: np.asarray(array, np.uint8) for name, array in {**arrays, **changes}.items()}


def faces_like(**changes):
    # Pixels 112 and 113 so that the mean is right, then one pixel of each face moved to tell faces apart.
    faces = np.full((400, 112 * 92), 112, np.uint8)
    faces[:, :6505] = 113
    faces[np.arange(400), np.arange(400)] += 1
    faces[np.arange(400), np.arange(400) + 5000] -= 1
    arrays = {"X": faces.reshape(400, 112, 92), "y": np.arange(400) // 10, **changes}
    return {name: np.asarray(array, np.uint8) for name, array in arrays.items()}


def test_other_faces_than_the_laboratorys_are_refused(tmp_path):
    same = faces_like()["X"]
    same[7] = same[8]
    for changes, said in (
        ({"y": np.arange(400) % 40}, "people 0 .. 39 in order"),
        (
            {"X": np.zeros((400, 112, 92))},
            r"mean pixel of X is 112\.6313 in the AT&T faces, here 0\.0",
        ),
        ({"X": same}, "400 faces must all differ, but 399 do"),
        ({}, "some value was changed"),
    ):
        np.savez(tmp_path / "att_faces.npz", **faces_like(**changes))
        with pytest.raises(DataError, match=said):
            load("att-faces", tmp_path)


def location_like(**changes):
    labels = np.repeat(np.arange(30), [97, 308, *[164] * 23, *[166] * 5][:30])
    labels = np.concatenate([labels, np.full(5010 - len(labels), 5)])
    values = np.zeros((5010, 446))
    values[:, :54] = 1
    values[:1503, 0] = 0
    arrays = {"X": values, "y": labels, **changes}
    return {name: np.asarray(array, np.uint8) for name, array in arrays.items()}


def test_another_table_of_check_ins_is_refused(tmp_path):
    for changes, said in (
        ({"y": np.arange(5010) % 30}, "97 to 308 rows, not 30 of 167 to 167"),
        ({"y": np.arange(5010) % 31}, "not 31 of"),
        ({"X": np.full((5010, 446), 2)}, "0 and 1 only, but holds 2"),
        ({"X": np.ones((5010, 446))}, r"53\.7 ones on average, here 446"),
        ({}, "some value was changed"),
    ):
        np.savez_compressed(tmp_path / "location30.npz", **location_like(**changes))
        with pytest.raises(DataError, match=said):
            load("location30", tmp_path)


def test_the_digest_is_that_of_the_values_alone():
    whole, text = np.array([[1, 2], [3, 4]], np.int32), np.array(["é", "ab"])
    said = b"n <i4 (2, 2)\n" + struct.pack("<4i", 1, 2, 3, 4)
    said += b"t <U2 (2,)\n" + "é\0ab".encode("utf-32-le")
    expected = hashlib.sha256(said).hexdigest()
    assert digest({"n": whole, "t": text}) == expected
    assert digest({"n": np.asfortranarray(whole.astype(">i4")), "t": text}) == expected
    for other in (
        {"t": text, "n": whole},
        {"n": whole.ravel(), "t": text},
        {"n": whole.astype(np.int64), "t": text},
        {"m": whole, "t": text},
        {"n": whole + 1, "t": text},
    ):
        assert digest(other) != expected


@pytest.mark.parametrize(
    ("name", "file"), [("location30", "location30.npz"), ("att-faces", "att_faces.npz")]
)
def test_a_file_packed_anew_passes_and_one_changed_value_does_not(
    name, file, data_folder, tmp_path
):
    with np.load(data_folder / file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(tmp_path / file, **arrays)
    assert (tmp_path / file).read_bytes() != (data_folder / file).read_bytes()
    assert torch.equal(load(name, tmp_path).inputs_test, load(name, data_folder).inputs_test)
    flat = arrays["X"].reshape(-1)
    first, second = 0, int((flat != flat[0]).nonzero()[0][0])
    flat[[first, second]] = flat[[second, first]]  # no sum tells
    np.savez(tmp_path / file, **arrays)
    with pytest.raises(DataError, match="some value was changed"):
        load(name, tmp_path)


def test_faces_are_divided_seven_to_three_a_person(data_folder):
    data = load("att-faces", data_folder)
    with np.load(data_folder / "att_faces.npz", allow_pickle=False) as archive:
        faces = archive["X"].reshape(40, 10, 112, 92)
    assert data.input_shape == (1, 112, 92)
    assert data.labels_train.bincount().tolist() == [7] * 40
    assert data.labels_test.bincount().tolist() == [3] * 40
    for person in range(40):
        train = (data.inputs_train[data.labels_train == person, 0] * 255).round().byte()
        test = (data.inputs_test[data.labels_test == person, 0] * 255).round().byte()
        assert np.array_equal(train.numpy(), faces[person, :7])
        assert np.array_equal(test.numpy(), faces[person, 7:])
    both = torch.cat([data.inputs_train, data.inputs_test]) * 255
    assert both.double().mean() == pytest.approx(112.6313, abs=1e-4)
    assert len(torch.unique(both.view(400, -1), dim=0)) == 400


def test_location30_has_the_published_sizes(data_folder):
    data = load("location30", data_folder)
    counts = data.labels_train.bincount() + data.labels_test.bincount()
    assert (int(counts.min()), int(counts.max()), int(counts.sum())) == (97, 308, 5010)
    assert torch.equal(data.labels_test.bincount(), counts // 5)
    both = torch.cat([data.inputs_train, data.inputs_test])
    assert both.shape == (5010, 446)
    assert set(both.unique().tolist()) == {0, 1}
    assert both.sum(1).mean() == pytest.approx(53.7, abs=0.05)


def test_other_images_or_labels_than_cifar10s_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "cifar10_24k.npz", **cifar_like())
    with pytest.raises(
        DataError, match=r"cifar10_24k\.npz: what was decoded has SHA-256 .* changed, fetch"
    ):
        load("cifar10", tmp_path)
    np.savez_compressed(tmp_path / "cifar10_24k.npz", **cifar_like(y_test=np.arange(4000) % 11))
    with pytest.raises(DataError, match="y_test must hold 400 labels"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"inputs_train": torch.zeros(6, 2, 2, dtype=torch.float64)},
            r"inputs_train must be float32.*float64",
        ),
        ({"inputs_train": torch.zeros(6)}, r"inputs_train must be.*\(6,\)"),
        ({"inputs_test": torch.zeros(0, 2, 2)}, "inputs_test must be.*at least one row"),
        ({"inputs_test": torch.zeros(2, 2, 3)}, r"\(2, 2\) but test inputs have \(2, 3\)"),
        ({"inputs_train": torch.full((6, 2, 2), 1.5)}, r"in \[0, 1\].*\[1\.5, 1\.5\].*scale"),
        ({"inputs_train": torch.full((6, 2, 2), -0.1)}, r"in \[0, 1\]"),
        ({"inputs_train": torch.full((6, 2, 2), math.nan)}, "finite.*24 of 24.*row 0"),
        ({"inputs_test": torch.full((2, 2, 2), math.inf)}, "finite"),
        (
            {"labels_train": torch.tensor([0, 1, 2, 0, 1])},
            r"labels_train must be int64 of shape \(6,\).*\(5,\)",
        ),
        ({"labels_train": torch.zeros(6)}, "float32"),
        ({"labels_test": torch.tensor([0, 3])}, r"0 \.\. 2, but lies in 0 \.\. 3"),
        ({"labels_test": torch.tensor([-1, 0])}, r"-1 \.\. 0"),
        ({"class_names": ("a", "b")}, "3 classes and 2 names"),
        ({"classes": 0, "class_names": ()}, "at least one class"),
        ({"low": 0.1}, r"in \[0\.1, 1\], but lies in \[0, 1\]"),
        ({"high": 0.9}, r"in \[0, 0\.9\]"),
        (
            {"features": (Feature(name="f", start=0, stop=1),)},
            r"take 1 input columns, but an input has shape \(2, 2\)",
        ),
    ],
)
def test_a_data_set_that_is_not_what_it_says_is_refused(changes, said):
    with pytest.raises(DataError, match=said):
        small(**changes)


def tabular(*features):
    return small(inputs_train=torch.zeros(6, 3), inputs_test=torch.zeros(2, 3), features=features)


def test_features_must_take_the_input_columns_in_order():
    number = Feature(name="n", start=0, stop=1, bounds=(3.0, 4.0))
    letters = Feature(name="l", start=1, stop=3, categories=("a", "b"))
    data = tabular(number, letters)
    assert data.inputs_test[:, letters.columns].shape == (2, 2)
    for features, said in (
        ((number,), "take 1 input columns"),
        ((letters,), "l must take the input columns 0 .. 1, not 1 .. 2"),
        ((number, dataclasses.replace(letters, stop=2)), "1 .. 2, not 1 .. 1"),
        ((number, number, number), "n must take the input columns 1 .. 1, not 0 .. 0"),
    ):
        with pytest.raises(DataError, match=said):
            tabular(*features)


def test_bounds_are_rounded_as_the_inputs_are():
    for bound in (0.1, 0.7):  # float32(0.1) is above 0.1, float32(0.7) below 0.7
        inputs = torch.full((2, 2, 2), bound)
        small(inputs_train=inputs.repeat(3, 1, 1), inputs_test=inputs, low=bound, high=bound)


def test_a_data_set_is_frozen():
    data = small()
    assert data.input_shape == (2, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.classes = 4


def assert_partition(parts, rows):
    assert all(part.dtype == torch.int64 and len(part) > 0 for part in parts)
    assert sorted(torch.cat(parts).tolist()) == list(range(rows))


@pytest.mark.parametrize(("rows", "owners"), [(1, 1), (10, 1), (10, 3), (10, 10), (1797, 50)])
def test_iid_split_covers_evenly_and_shuffles(rows, owners, generator):
    parts = split_iid(rows, owners, generator)
    assert len(parts) == owners
    assert_partition(parts, rows)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if rows >= 10:
        assert torch.cat(parts).tolist() != list(range(rows))


def test_splits_depend_on_the_generator_only():
    labels = torch.arange(100) % 7
    for split in (lambda g: split_iid(100, 6, g), lambda g: split_by_label(labels, 6, g)):
        once, again, other = (split(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(once, other, strict=True))


@pytest.mark.parametrize("owners", [1, 2, 3, 7])
def test_label_split_gives_each_label_to_one_owner(owners, generator):
    labels = (torch.arange(200) ** 2) % 13 + 5
    parts = split_by_label(labels, owners, generator)
    assert len(parts) == owners
    assert_partition(parts, 200)
    held = [set(labels[part].tolist()) for part in parts]
    assert sum(len(one) for one in held) == len(set(labels.tolist()))
    for lower, upper in itertools.pairwise(held):
        assert max(lower) < min(upper)


@pytest.mark.parametrize("owners", [4, 10, 30])
def test_label_split_among_more_owners_than_labels(owners, generator):
    labels = torch.arange(30) % 3
    parts = split_by_label(labels, owners, generator)
    assert len(parts) == owners
    assert_partition(parts, 30)
    assert all(len(set(labels[part].tolist())) <= 2 for part in parts)


@pytest.mark.parametrize("owners", [11, 0, -1])
def test_more_owners_than_rows_is_refused_with_both_numbers(owners, generator):
    with pytest.raises(ConfigError, match=f"10 rows out among {owners} owners"):
        split_iid(10, owners, generator)
    with pytest.raises(ConfigError, match=f"10 rows out among {owners} owners"):
        split_by_label(torch.arange(10), owners, generator)


def test_check_finite_counts_and_places():
    check_finite("ages", torch.tensor([[1.0, 2.0]]))
    check_finite("counts", torch.tensor([1, 2]))
    with pytest.raises(
        DataError, match="ages must be finite, but 2 of 6 values are not, the first in row 1"
    ):
        check_finite("ages", torch.tensor([[1.0, 2.0], [math.nan, 2.0], [math.inf, 2.0]]))
    with pytest.raises(DataError, match="1 of 1"):
        check_finite("loss", torch.tensor(math.nan))
