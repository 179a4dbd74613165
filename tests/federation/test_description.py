"""federation.toml: what it may say, and what is told of what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tacit import catalogue
from tacit.audit.federation import (
    Federation,
    Place,
    agreed,
    coordinate,
    describe,
    join,
    read_federation,
    read_records,
    role_of,
    task_for,
)
from tacit.audit.train import Setting
from tacit.core.errors import ConfigError, DataError, TooFewParties, UnknownName
from tacit.parties.roles import SERVER, Role

GOOD = """
name = "demo"
scheme = "federated-averaging"
model = "mlp"
[settings]
rounds = 3
[data]
dataset = "digits"
records = 20
[[party]]
role = "server 0"
address = "127.0.0.1:7443"
[[party]]
role = "owner 0"
[[party]]
role = "owner 1"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "federation.toml"
    path.write_text(text)
    return path


def read(folder: Path, text: str = GOOD) -> Federation:
    return read_federation(written(folder, text))


def test_a_description_says_who_takes_part_and_what_is_trained(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.coordinator == SERVER and found.address == ("127.0.0.1", 7443)
    assert found.owners == (Role("owner", 0), Role("owner", 1))
    assert found.settings == {"rounds": "3"} and found.dataset == "digits"
    scheme: Any = catalogue.scheme_of(found)
    assert scheme.rounds == 3


def test_what_describe_writes_is_read_back(tmp_path: Path) -> None:
    setting = Setting(dataset="digits", owners=3, records=10, split="label", seed=5)
    text = describe("here", "selective-sgd", setting, {"theta_u": "0.5"}, ("::1", 80))
    found = read(tmp_path, text)
    assert (found.name, found.scheme, found.seed, found.split) == (
        "here",
        "selective-sgd",
        5,
        "label",
    )
    assert found.address == ("::1", 80) and len(found.owners) == 3 and found.records == 10


@pytest.mark.parametrize(
    ("change", "to", "said"),
    [
        ('name = "demo"', 'nam = "demo"', "did you mean name"),
        ('name = "demo"', "", "name"),
        ('name = "demo"', "name = 3", "name"),
        ('scheme = "federated-averaging"', "", "scheme"),
        ('model = "mlp"', 'model = "mpl"', "did you mean mlp"),
        ("rounds = 3", "rounds = 3\n[data2]\nx = 1", "data2"),
        ('dataset = "digits"', 'datset = "digits"', "did you mean dataset"),
        ('dataset = "digits"', 'dataset = "digits"\ninput_shape = [64]\nclasses = 10', "either"),
        ('dataset = "digits"', "", "either"),
        ('dataset = "digits"', "input_shape = [64]", "either"),
        ('dataset = "digits"', "input_shape = [-1]\nclasses = 10", "input_shape"),
        ("records = 20", "records = -1", "records"),
        ("records = 20", 'split = "odd"', "split"),
        ('role = "owner 1"', 'role = "server 1"\naddress = "x:1"', "one coordinator"),
        ('role = "server 0"\naddress = "127.0.0.1:7443"', 'role = "owner 2"', "one coordinator"),
        ('role = "owner 1"', 'role = "owner 0"', "twice"),
        ('role = "owner 1"', 'role = "owner 2"', "owner 0, owner 1"),
        ('role = "owner 1"', 'role = "client 0"', "no part"),
        ('role = "owner 1"', 'role = "owner"', "owner 3"),
        ('role = "owner 1"', 'role = "owner 1"\nadress = "x"', "did you mean address"),
        ('address = "127.0.0.1:7443"', "", "address"),
        ('address = "127.0.0.1:7443"', 'address = "127.0.0.1"', "host:port"),
        ('address = "127.0.0.1:7443"', 'address = "127.0.0.1:99999"', "host:port"),
        ('name = "demo"', 'name = "demo', "cannot be read"),
        ('name = "demo"', 'name = "demo"\nparty = 3', "cannot be read"),
        ('name = "demo"', 'name = "demo"\nseed = -1', "seed"),
        ('name = "demo"', 'name = "demo"\nseed = true', "seed"),
    ],
)  # fmt: skip
def test_what_it_may_not_say_is_refused_by_name(
    change: str, to: str, said: str, tmp_path: Path
) -> None:
    assert change in GOOD
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, GOOD.replace(change, to))


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        read_federation(tmp_path / "nowhere.toml")
    (tmp_path / "federation.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_federation(tmp_path / "federation.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_federation(tmp_path)


def test_an_unknown_scheme_or_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="secure-aggregation"):
        catalogue.scheme_of(
            read(tmp_path, GOOD.replace("federated-averaging", "secure-agregation"))
        )
    with pytest.raises(UnknownName, match="rounds"):
        catalogue.scheme_of(read(tmp_path, GOOD.replace("rounds = 3", "round = 3")))


def test_all_but_the_address_must_be_the_same_for_all(tmp_path: Path) -> None:
    one = read(tmp_path)
    scheme = catalogue.scheme_of(one)
    same = [GOOD.replace("127.0.0.1:7443", "example.org:1"), GOOD + "# a word\n"]
    for text in same:
        assert agreed(read(tmp_path, text), scheme) == agreed(one, scheme)
    for change, to in (("rounds = 3", "rounds = 4"), ('"mlp"', '"cnn"'), ("= 20", "= 21")):
        other = read(tmp_path, GOOD.replace(change, to))
        assert agreed(other, catalogue.scheme_of(other)) != agreed(one, scheme)


@pytest.mark.parametrize(
    "text", ["", "owner", "owner x", "Owner 1", "owner -1", "owner 1 2", "0 owner"]
)
def test_what_is_no_role(text: str) -> None:
    with pytest.raises(ConfigError, match="owner 3"):
        role_of(text)


def test_each_party_has_its_own_records_alone(tmp_path: Path) -> None:
    federation = read(tmp_path)
    for role in (*federation.owners, SERVER):
        task, data = task_for(federation, role)
        assert list(task.here()) == ([role] if role != SERVER else [])
        assert task.records == (20, 20) and data is not None
    with pytest.raises(ConfigError, match="dealt"):
        task_for(federation, Role("owner", 0), tmp_path / "mine.npz")


OWN = GOOD.replace('dataset = "digits"\nrecords = 20', "input_shape = [1, 4, 4]\nclasses = 4").replace(
    'role = "owner 0"', 'role = "owner 0"\nrecords = 6'
)  # fmt: skip


def test_own_records_come_from_a_file(tmp_path: Path) -> None:
    federation = read(tmp_path, OWN)
    inputs, labels = np.zeros((6, 1, 4, 4), np.float32), np.arange(6) % 4
    np.savez(tmp_path / "mine.npz", inputs=inputs, labels=labels)
    task, data = task_for(federation, Role("owner", 0), tmp_path / "mine.npz")
    assert data is None and task.records == (6, 0)
    other, _ = task_for(federation, SERVER)
    for one, two in zip(task.start.parameters(), other.start.parameters(), strict=True):
        assert torch.equal(one, two), "all begin from the same model"
    with pytest.raises(ConfigError, match="--records"):
        task_for(federation, Role("owner", 0))


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"inputs": np.zeros((6, 1, 4, 4), np.float32)},
        {"inputs": np.zeros((6, 1, 4, 4)), "labels": np.arange(6) % 4},
        {"inputs": np.zeros((6, 1, 4, 4), np.float32), "labels": np.zeros(6, np.int32)},
        {"inputs": np.array([{}], object), "labels": np.zeros(1, np.int64)},
    ],
)  # fmt: skip
def test_a_records_file_that_is_none(arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError):
        read_records(tmp_path / "bad.npz")


def test_records_that_do_not_fit_what_was_agreed_on(tmp_path: Path) -> None:
    federation = read(tmp_path, OWN)
    for bad in ((5, 1, 4, 4), (6, 1, 5, 5)):
        labels = np.arange(bad[0]) % 4
        np.savez(tmp_path / "bad.npz", inputs=np.zeros(bad, np.float32), labels=labels)
        with pytest.raises(DataError, match="owner 0"):
            task_for(federation, Role("owner", 0), tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="npz"):
        read_records(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="npz"):
        read_records(tmp_path / "nowhere.npz")


def test_certificates_of_another_federation_role_or_nowhere(
    tmp_path: Path, certificates: Path
) -> None:
    federation = read(tmp_path)
    scheme = catalogue.scheme_of(federation)
    with pytest.raises(ConfigError, match=r"kills.*demo"):
        coordinate(federation, scheme, Place(keys=certificates / "server-0"))
    ours = read(tmp_path, GOOD.replace('"demo"', '"kills"'))
    with pytest.raises(ConfigError, match=r"owner 0.*server 0"):
        coordinate(ours, scheme, Place(keys=certificates / "owner-0"))
    with pytest.raises(ConfigError, match=r"owner 1.*owner 0"):
        join(ours, scheme, Role("owner", 0), Place(keys=certificates / "owner-1"))
    with pytest.raises(ConfigError, match="no owner"):
        join(ours, scheme, Role("owner", 7), Place(keys=certificates / "owner-7"))
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        join(ours, scheme, Role("owner", 0), Place(keys=tmp_path / "nowhere"))
    many = GOOD.replace('"demo"', '"kills"') + "".join(
        f'[[party]]\nrole = "owner {n}"\n' for n in range(2, 12)
    )
    large = read(tmp_path, many)
    with pytest.raises(ConfigError, match=r"owner 8.*registry\.pem"):
        coordinate(large, scheme, Place(keys=certificates / "server-0"))


def test_a_coordinator_whose_members_never_come_says_who(
    tmp_path: Path, certificates: Path
) -> None:
    ours = read(tmp_path, GOOD.replace('"demo"', '"kills"'))
    place = Place(keys=certificates / "server-0", wait=0.3)
    with pytest.raises(TooFewParties, match=r"owner 0.*owner 1"):
        coordinate(ours, catalogue.scheme_of(ours), place, address=("127.0.0.1", 0))
