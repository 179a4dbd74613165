"""`tacit train two-server`: in one process, as processes over TLS, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tacit import catalogue
from tacit.audit import launch
from tacit.audit.federation import Place, read_federation, read_records
from tacit.audit.two_server_parties import check, join
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, DataError
from tacit.parties.credentials import folder_name, issue_all
from tacit.parties.roles import Role, owners
from tacit.training.two_server import DEALER, SERVERS, TwoServer

QUICK = ["epochs=1", "show_loss=1"]
TOML = """
name = "two"
scheme = "two-server"
[settings]
epochs = 1
[data]
dataset = "digits"
records = 40
[[party]]
role = "server 0"
address = "127.0.0.1:7443"
[[party]]
role = "server 1"
address = "127.0.0.1:7444"
[[party]]
role = "dealer 0"
[[party]]
role = "owner 0"
[[party]]
role = "owner 1"
"""


def described(tmp_path: Path, text: str = TOML) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(text)
    return path


def test_processes_give_the_weights_of_one_process_and_tell_losses(tmp_path: Path) -> None:
    said: list[str] = []
    options = {"owners": 2, "records": 40, "secret_seed": "two"}
    here = catalogue.train("two-server", changes=QUICK, **options)  # type: ignore[arg-type]
    there = catalogue.train(
        "two-server", changes=QUICK, link="tcp", out=tmp_path, note=said.append, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    assert there["weights_sha256"] == here["weights_sha256"]
    assert set(there["cost"]) == {"server 0", "server 1", "dealer 0", "owner 0", "owner 1"}
    assert [line for line in said if line.startswith("loss 0 ")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "run.json"]
    assert json.loads((tmp_path / "run.json").read_text())["losses"][0][0] == 0


@pytest.mark.slow
def test_a_party_that_is_killed_is_started_again_with_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` after some checkpoint; they go on from it."""
    role = SERVERS[1]
    started: dict[Role, list[int]] = {}
    start = launch._Party.start

    def noted(party: launch._Party) -> None:
        start(party)
        started.setdefault(party.role, []).append(party.process.pid)

    monkeypatch.setattr(launch._Party, "start", noted)
    said: list[str] = []
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if done >= 110 and len(started[role]) == 1:
            with suppress(ProcessLookupError):  # it is dead, and launch has not looked yet
                os.kill(started[role][0], signal.SIGKILL)

    changes = ["epochs=8", "batch_size=4", "loss=logistic", "learning_rate=0.03125"]
    result = catalogue.train(
        "two-server", changes=changes, owners=2, records=40, link="tcp", out=tmp_path, progress=progress, note=said.append,
    )  # fmt: skip
    assert any(f"{role} was killed by signal 9: all are started again" in line for line in said)
    assert all(len(pids) == 2 for pids in started.values()) and len(started) == 5
    again = told[next(i for i, (one, two) in enumerate(pairwise(told)) if two < one) + 1 :]
    assert again[0] == 101 and again[-1] == 160
    assert result["accuracy"] > 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace('"server 1"', '"server 2"'), "server 0 and server 1"),
        (lambda t: t.replace("7444", "7443"), "same address"),
        (lambda t: t.replace('"dealer 0"', '"dealer 1"'), "one dealer"),
        (lambda t: t.replace('[[party]]\nrole = "dealer 0"\n', ""), "no party dealer 0"),
        (lambda t: t.replace("epochs = 1", 'preprocessing = "transfers"'), "takes no dealer 0"),
        (lambda t: t.replace("epochs = 1", 'open_to = "nobody"'), "nobody"),
        (lambda t: t.replace("epochs = 1", 'open_to = "owner 7"'), "owner 7"),
        (
            lambda t: t.replace(
                'dataset = "digits"\nrecords = 40', "input_shape = [4]\nclasses = 2"
            ),
            "owner 0: records",
        ),
    ],
)
def test_parties_that_cannot_be_are_refused(
    change: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    changed = change(TOML)
    assert changed != TOML
    with pytest.raises(ConfigError, match=message):
        federation = read_federation(described(tmp_path, changed))
        scheme = catalogue.scheme_of(federation)
        assert isinstance(scheme, TwoServer)
        check(federation, scheme)


def test_a_folder_of_another_role_and_misplaced_options_are_refused(tmp_path: Path) -> None:
    everybody = (*SERVERS, DEALER, *owners(2))
    issue_all(tmp_path / "keys", "two", everybody, coins=Coins())
    federation = read_federation(described(tmp_path))
    scheme = TwoServer(epochs=1)
    place = Place(keys=tmp_path / "keys" / folder_name(SERVERS[1]))
    with pytest.raises(ConfigError, match="folder of server 1, server 0 was expected"):
        join(federation, scheme, SERVERS[0], place)
    with pytest.raises(ConfigError, match="does not get the model"):
        join(federation, scheme, SERVERS[1], place, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="listens nowhere"):
        join(federation, scheme, Role("owner"), place, address=("127.0.0.1", 1))
    with pytest.raises(ConfigError, match="no party"):
        join(federation, scheme, Role("owner", 9), place)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["b", "a"], "column 0 is 'b'"),
        (["a"], "1 columns"),
        (None, "does not name"),
        (["a", "b"], ""),
    ],
)
def test_columns_are_those_that_were_agreed_on(
    columns: list[str] | None, message: str, tmp_path: Path
) -> None:
    arrays = {"inputs": np.zeros((3, 2), np.float32), "labels": np.zeros(3, np.int64)}
    named = {} if columns is None else {"columns": np.array(columns)}
    np.savez(tmp_path / "own.npz", **arrays, **named)
    if not message:
        assert len(read_records(tmp_path / "own.npz", ("a", "b"))[0]) == 3
        return
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / "own.npz", ("a", "b"))
