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
from tacit.nn.data import DataSet, available, check_finite, load, split_by_label, split_iid


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
    for name in ("digits", "mnist"):
        data = load(name)
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
    assert [(entry.name, entry.present) for entry in available()] == [
        ("digits", True),
        ("mnist", False),
        ("cifar10", False),
    ]
    assert all(entry.present or "TACIT_DATA" in entry.why_not for entry in available())
    (tmp_path / "mnist.npz").write_bytes(b"not read")
    present = {entry.name: entry for entry in available(tmp_path)}
    assert present["mnist"].present
    assert present["mnist"].where == str(tmp_path / "mnist.npz")
    assert not present["cifar10"].present
    assert "cifar10_24k.npz" in present["cifar10"].why_not


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


def test_other_images_or_labels_than_cifar10s_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "cifar10_24k.npz", **cifar_like())
    with pytest.raises(DataError, match="R_train have SHA-256"):
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
    ],
)
def test_a_data_set_that_is_not_what_it_says_is_refused(changes, said):
    with pytest.raises(DataError, match=said):
        small(**changes)


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
