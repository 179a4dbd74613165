"""`tacit serve`, `tacit access` and `tacit predict` as a user meets them; and a server that is killed under load."""

from __future__ import annotations

import io
import json
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tacit.attacks.access import Scores
from tacit.audit.bench_serve import Server, under_load
from tacit.cli.main import run
from tacit.cli.serve import add
from tacit.core.errors import BudgetExhausted, EndpointRefused, TacitWarning
from tacit.nn.networks import initialise
from tacit.nn.policies import EVERYTHING, Policy
from tacit.nn.spec import load_model, save_model
from tacit.prediction import plain
from tacit.prediction.client import Client
from tacit.prediction.plain import read_keys
from tacit.web import endpoint

NETS = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

def half(records):
    return 0.5 + 0 * records[:, 0]

class Shares(nn.Module):
    def forward(self, records):
        return 0 * records[:, :2] + records.new_tensor([0.125, 0.875])

shares = Shares()

def firsts(records):
    return (0 * records[:, 0] + 2).astype("int64")
"""


@pytest.fixture
def tacit(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            run([*map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_KEY", raising=False)
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    save_model(initialise(made, generator), (4,), path := tmp_path / "model.safetensors")
    return path


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:

        def begin(*options: str) -> Server:
            server = Server(model, tmp_path / "state", options)
            server.start()
            stack.callback(server.kill)
            return server

        yield begin


def ended(server: Server, by: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    server.process.send_signal(by)
    said = server.process.stderr.read() if server.process.stderr else ""
    return server.process.wait(20), said


RECORDS = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))


def here(policy: Policy = EVERYTHING) -> torch.Tensor:
    return Scores(load_model("model.safetensors"), policy=policy).scores(RECORDS)


# --- a server as a process


def test_a_model_is_served_asked_stopped_and_served_again(tacit, start, tmp_path: Path) -> None:
    server = start("--digits", "3", "--budget", "12")
    key = server.key
    assert key.startswith("tacit_") and key not in (tmp_path / "state" / "key.toml").read_text()
    (tmp_path / "key.txt").write_text(key + "\n")
    np.save("records.npy", RECORDS.numpy())
    asked = ("predict", "records.npy", "--url", server.url, "--key-file", "key.txt")
    code, out, err = tacit(*asked)
    assert code == 0 and not err
    lines = out.splitlines()
    assert lines[0] == "p0,p1,p2" and len(lines) == 6
    assert [[float(cell) for cell in line.split(",")] for line in lines[1:]] == here(
        Policy(digits=3)
    ).tolist()
    code, out, _ = tacit(*asked, "--labels", "--json")
    said = json.loads(out)
    assert said["labels"] == here().argmax(1).tolist() and (said["n"], said["asked"]) == (5, 5)
    assert said["command"] == "predict" and said["policy"] == "digits3" and key not in out
    code, _, err = tacit(*asked)
    assert code == 2 and "BudgetExhausted" in err and "2 of 12 left" in err
    assert ended(server) == (0, "")

    server = start()  # under the policy that was kept
    assert server.key == ""  # it is shown once
    with Client(server.url, key=key) as client:
        assert client.described.spent == 10 and client.described.budget == 12
        assert torch.equal(client.scores(RECORDS[:2]), here(Policy(digits=3))[:2])
        with pytest.raises(BudgetExhausted):
            client.scores(RECORDS[:1])
    assert ended(server, signal.SIGTERM)[0] == 0
    lines = (tmp_path / "state" / "audit.jsonl").read_text().splitlines()
    spent = [
        (one["status"], one["records"])
        for one in map(json.loads, lines)
        if one["route"] == "/predict"
    ]
    assert spent == [(200, 5), (200, 5), (429, 5), (200, 2), (429, 1)]

    server = start("--new-key", "--top-k", "2")
    assert server.key not in ("", key)
    with pytest.raises(EndpointRefused, match="no such key"):
        Client(server.url, key=key)
    with Client(server.url, key=server.key) as client:
        assert client.described.spent == 12 and client.described.budget is None
        assert client.policy == Policy(top_k=2)


def test_a_server_that_is_killed_under_load_has_counted_every_answer(start) -> None:
    server = start("--digits", "3", "--budget", "100000000", "--rate", "100000000")
    answered, sent = under_load(server, 0.4)
    server.start()
    with Client(server.url, key=server.key) as client:
        assert 20 < answered <= client.spent() <= sent


def test_keys_of_a_file_each_with_its_policy_are_read_again_when_asked(
    tacit, start, tmp_path
) -> None:
    keys = {}
    for name, options in (("alice", ("--digits", 2)), ("bob", ("--labels-only", "--rate", 600))):
        code, out, err = tacit("access", "add", name, *options)
        keys[name] = out.strip()
        assert code == 0 and f"{name} is in access.toml" in err
    code, out, _ = tacit("access", "list")
    assert out.splitlines() == [
        f"{'alice':20} digits 2",
        f"{'bob':20} labels only True, rate 600.0",
    ]
    assert json.loads(tacit("access", "list", "--json")[1])["keys"]["alice"] == {"digits": 2}
    server = start("--access", str(tmp_path / "access.toml"))
    assert server.key == ""
    with Client(server.url, key=keys["alice"]) as alice, Client(server.url, key=keys["bob"]) as bob:
        assert torch.equal(alice.scores(RECORDS), here(Policy(digits=2)))
        assert torch.equal(bob.labels(RECORDS), here().argmax(1)) and bob.described.rate == 600
        assert tacit("access", "remove", "alice")[0] == 0
        server.process.send_signal(signal.SIGHUP)
        assert "read" in server.process.stderr.readline()  # type: ignore[union-attr]
        with pytest.raises(EndpointRefused, match="no such key"):
            alice.scores(RECORDS)
        assert len(bob.labels(RECORDS)) == 5
        Path("access.toml").write_text("junk")
        server.process.send_signal(signal.SIGHUP)
        assert "was not read again" in server.process.stderr.readline()  # type: ignore[union-attr]
        assert len(bob.labels(RECORDS)) == 5


# --- a server that is not run


class Stands:
    """In place of a server: what it would have run."""

    def __init__(self) -> None:
        self.service: Any = None
        self.runs = 0
        self.asked, self.answers = RECORDS, torch.empty(0)

    def application(self, service: Any, **given: Any) -> Any:
        self.service, self.given = service, given
        return self

    def server(self, app: Any, **given: Any) -> Any:
        given["ready"]()
        return self

    def run(self, sockets: Any) -> None:
        self.runs += 1
        if self.service.keys.anyone is not None:
            self.answers = self.service.predict(self.service.admit(None), self.asked)


@pytest.fixture
def stands(model: Path, monkeypatch: pytest.MonkeyPatch) -> Stands:
    made = Stands()
    monkeypatch.setattr(endpoint, "application", made.application)
    monkeypatch.setattr(endpoint, "server", made.server)
    return made


def test_options_are_the_policy_of_the_key(tacit, stands: Stands) -> None:
    code, out, err = tacit(
        "serve", "model.safetensors", "--port", 0, "--top-k", 2, "--digits", 4, "--temperature", 2, "--download",
        "--budget", 7, "--rate", 30, "--burst", 5, "--max-batch", 9, "--low", -1, "--high", 1, "--max-body", 1000,
    )  # fmt: skip
    assert code == 0 and stands.runs == 1 and not out
    key = next(line.split()[1] for line in err.splitlines() if line.startswith("key: "))
    access = stands.service.admit(key)
    assert access.policy == Policy(top_k=2, digits=4, temperature=2.0)
    assert (access.download, access.budget, access.rate, access.burst) == (True, 7, 30, 5)
    limits = stands.service.limits
    assert (limits.batch, limits.low, limits.high) == (9, -1, 1) and stands.given[
        "capacity"
    ].body == 1000
    assert tacit("serve", "model.safetensors", "--port", 0, "--open", "--labels-only")[0] == 0
    for sent in (None, key):  # one who has a key needs none either
        assert stands.service.admit(sent).policy == Policy(labels_only=True)


@pytest.mark.parametrize("option", ["budget", "digits", "top-k", "rate", "burst", "temperature"])
def test_a_limit_of_0_is_no_absence_of_a_limit(tacit, stands: Stands, option: str) -> None:
    rate = ("--rate", 5) if option == "burst" else ()
    for command in (("access", "add", "m"), ("serve", "model.safetensors", "--port", 0)):
        code, out, err = tacit(*command, f"--{option}", 0, *rate)
        if option == "budget":
            assert code == 0
        else:
            assert code == 2 and "expected" in err and not out
    if option == "budget":
        assert read_keys(Path("access.toml")).policies[0].budget == 0
        assert stands.service.keys.policies[0].budget == 0
        assert read_keys(Path("tacit-serve/key.toml")).policies[0].budget == 0
    else:
        assert stands.runs == 0 and not Path("access.toml").exists()


def test_a_key_keeps_its_policy_until_another_is_given(tacit, stands: Stands) -> None:
    served = ("serve", "model.safetensors", "--port", 0)
    _, _, err = tacit(*served, "--digits", 3, "--budget", 9)
    key = next(line.split()[1] for line in err.splitlines() if line.startswith("key: "))
    assert "serving model.safetensors (digits 3, budget 9) at http" in err
    for more in ((), ("--digits", 3, "--budget", 9)):
        _, _, err = tacit(*served, *more)
        assert "was" not in err and "(digits 3, budget 9)" in err
        access = stands.service.admit(key)
        assert (access.policy.digits, access.budget) == (3, 9)
    _, _, err = tacit(*served, "--budget", 12)
    assert "policy was: digits 3, budget 9; it is now: budget 12\n" in err
    assert "(budget 12)" in err
    _, _, err = tacit(*served, "--new-key")
    assert "(budget 12)" in err and "key: " in err
    with pytest.raises(EndpointRefused):
        stands.service.admit(key)
    _, _, err = tacit(*served, "--temperature", 1)
    assert "(all scores, without limit)" in err
    _, _, err = tacit(*served, "--open", "--labels-only")
    assert "(open, labels only True)" in err


def test_keys_that_are_added_at_the_same_time_are_all_kept(model, monkeypatch, capsys) -> None:
    real = plain.write_keys

    def slowly(keys: Any, path: Path) -> None:
        time.sleep(0.02)
        real(keys, path)

    monkeypatch.setattr(plain, "write_keys", slowly)
    threads = [threading.Thread(target=add, args=(f"k{number}",)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    found = read_keys(Path("access.toml"))
    keys = capsys.readouterr().out.split()
    assert len(keys) == 8 == len({found.admit(key).name for key in keys})


def test_models_of_ones_own_are_served(tacit, stands: Stands, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "served_nets.py").write_text(NETS)
    save_file(dict(load_model("model.safetensors").state_dict()), "w.safetensors")
    served = ("serve", "served_nets:make", "--weights", "w.safetensors", "--input-shape", 4)
    code, _, err = tacit(*served, "--port", 0, "--open")
    assert code == 0, err
    assert torch.equal(stands.answers, here())
    stands.asked = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1))
    code, _, err = tacit("serve", "served_nets:half", "--input-shape", "2,2", "--port", 0, "--open")
    assert code == 0, err
    assert stands.answers.tolist() == [[0.5, 0.5]] * 3
    stands.asked = RECORDS
    served = ("serve", "served_nets:shares", "--input-shape", 4, "--port", 0, "--open")
    code, _, err = tacit(*served, "--gives", "probabilities")
    assert code == 0, err
    assert stands.answers[0].tolist() == pytest.approx([0.125, 0.875])
    code, _, err = tacit(
        "serve", "served_nets:firsts", "--input-shape", 4, "--port", 0, "--open", "--labels-only", "--gives", "labels",
        "--classes", 3,
    )  # fmt: skip
    assert code == 0, err
    assert stands.answers.tolist() == [2] * 5 and stands.service.classes == 3
    runs = stands.runs
    for wrong, said in (
        (("--gives", "scores"), "'scores'"),
        (("--gives", "labels"), "--classes expected"),
    ):
        code, _, err = tacit(*served, *wrong)
        assert code == 2 and said in err
    assert stands.runs == runs


def test_in_the_clear_beyond_this_machine_is_warned_of(tacit, stands: Stands) -> None:
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)):
        with warnings.catch_warnings():
            warnings.simplefilter("always", TacitWarning)
            code, _, err = tacit("serve", "model.safetensors", "--port", 0, "--host", host)
        assert code == 0 and (f"in the clear to {host}" in err) == warned


def test_bad_input_ends_with_one_error(tacit, stands: Stands, tmp_path: Path, monkeypatch) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "key.toml").write_text("[keys]\n")
    (tmp_path / "served_nets.py").write_text(NETS)
    save_file({"w": torch.zeros(1)}, "w.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    served = ("serve", "model.safetensors", "--port", 0)
    wrong = {
        (
            "serve",
            "model.safetensors",
            "--port",
            taken.getsockname()[1],
        ): "cannot listen at 127.0.0.1",
        (*served, "--host", "nowhere.invalid"): "no address",
        ("serve", "none.safetensors", "--port", 0): "cannot be read as a safetensors file",
        ("serve", "junk.safetensors", "--port", 0): "cannot be read",
        ("serve", "w.safetensors", "--port", 0): "does not describe its model",
        ("serve", "served_nets:make", "--port", 0): "--input-shape expected",
        ("serve", "served_nets:make", "--input-shape", "4,x"): "--input-shape like",
        ("serve", "served_nets:make", "--input-shape", "5", "--port", 0, "--open"): "failed",
        (*served, "--input-shape", "5"): "leave it out",
        (*served, "--tls-cert", "junk"): "expected together",
        (*served, "--tls-cert", "junk", "--tls-key", "junk"): "both PEM",
        (*served, "--access", "none.toml"): "cannot be read",
        (*served, "--access", "junk"): "cannot be read",
        (*served, "--access", "junk", "--digits", 3): "both came",
        (*served, "--labels-only", "--digits", 3): "labels_only alone",
        (*served, "--top-k", 4): "top_k of at most 3",
        (*served, "--burst", 4): "with a rate",
        (*served, "--state", "junk"): "cannot be",
        (*served, "--low", 1, "--high", 0): "low below high",
        (*served, "--high", "inf"): "finite numbers",
        (
            *served,
            "--low=-inf",
        ): "finite numbers",
        (*served, "--low", "nan"): "finite numbers",
        (*served, "--rate", "1e19"): "a rate of 1e-06 to 1e+09",
        (*served, "--rate", "1e-310", "--burst", 1): "a rate of",
        (*served, "--rate", "nan"): "a rate of",
        (*served, "--rate", 1, "--burst", 1 << 53): "a burst of",
        (*served, "--budget", 1 << 53): "a budget of",
        (*served, "--temperature", "1e-320"): "a temperature of",
        (*served, "--temperature", "1e7"): "a temperature of",
        (*served, "--open", "--new-key"): "--open, or --new-key",
        (*served, "--state", "empty"): "one key expected",
        (*served, "--device", "nonsense"): "cannot be used",
        ("access", "add", "a b"): "a name of",
        ("access", "list", "--file", "none.toml"): "cannot be read",
    }
    with taken:
        for arguments, said in wrong.items():
            code, out, err = tacit(*arguments)
            assert code == 2 and said in err and not out, (arguments, err)
    assert stands.runs == 0
    (tmp_path / "tacit-serve").mkdir(exist_ok=True)
    (tmp_path / "tacit-serve" / "audit.jsonl").mkdir()
    code, _, err = tacit(*served)
    assert code == 2 and "the audit log" in err and stands.runs == 0


def test_without_the_extra_it_is_said_what_to_install(tacit, model, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tacit.web.endpoint", None)
    code, _, err = tacit("serve", "model.safetensors")
    assert code == 2 and "pip install 'tacit[web]'" in err


def test_keys_are_added_listed_and_removed(tacit, model) -> None:
    key = tacit("access", "add", "a", "--file", "k.toml", "--budget", 3)[1].strip()
    assert read_keys(Path("k.toml")).admit(key).budget == 3
    code, _, err = tacit("access", "add", "a", "--file", "k.toml")
    assert code == 2 and "different names" in err
    code, _, err = tacit("access", "remove", "b", "--file", "k.toml")
    assert code == 2 and "no key is called 'b'" in err
    assert tacit("access", "remove", "a", "--file", "k.toml")[0] == 0
    assert read_keys(Path("k.toml")).policies == ()


# --- what is asked


def test_a_wait_for_the_rate_is_said(tacit, start) -> None:
    server = start("--open", "--rate", "180", "--burst", "3")
    np.save("r.npy", RECORDS.numpy())
    code, out, err = tacit("predict", "r.npy", "--url", server.url)
    assert code == 0 and len(out.splitlines()) == 6
    assert err == "waiting 1 s: the key's rate; 3 of 5 answered\n"


def test_records_come_from_files_of_every_kind(tacit, start, tmp_path, monkeypatch) -> None:
    server = start("--open")
    rows = [[repr(value) for value in row] for row in RECORDS.double().tolist()]
    bare = "\n".join(",".join(row) for row in rows)
    named = "a,label,b,c,d\n" + "\n".join(",".join([row[0], "7", *row[1:]]) for row in rows)
    Path("bare.csv").write_text(bare)
    Path("named.csv").write_text(named)
    np.save("r.npy", RECORDS.numpy())
    np.save("double.npy", RECORDS.double().numpy())
    np.savez("r.npz", inputs=RECORDS.numpy(), labels=np.zeros(5, int))
    np.savez("x.npz", x=RECORDS.numpy())
    monkeypatch.setattr(sys, "stdin", io.StringIO(bare))
    expected = here()
    for source in ("bare.csv", "named.csv", "r.npy", "double.npy", "r.npz", "x.npz", "-"):
        code, _, err = tacit(
            "predict", source, "--url", server.url, "--out", "answers.npz", "--overwrite"
        )
        assert code == 0, err
        with np.load("answers.npz") as found:
            assert found["scores"].tolist() == expected.tolist()
    assert (
        tacit("predict", "r.npy", "--url", server.url, "--labels", "--out", "answers.csv")[0] == 0
    )
    assert Path("answers.csv").read_text().split() == [
        "predicted",
        *map(str, expected.argmax(1).tolist()),
    ]
    for _ in range(2):
        out = tacit("predict", "r.npy", "--url", server.url, "--memory", "m", "--json")[1]
    assert json.loads(out)["asked"] == 0

    Path("text.csv").write_text("1,2,3,4\n1,2,x,4\n")
    Path("ragged.csv").write_text("1,2,3,4\n1,2,3\n")
    Path("empty.csv").write_text("")
    Path("junk.npy").write_text("junk")
    Path("junk.npz").write_text("junk")
    np.save("wide.npy", np.zeros((2, 5)))
    np.save("text.npy", np.array(["a"]))
    np.save("one.npy", np.float64(3))
    np.savez("other.npz", z=np.zeros(4))
    np.save("object.npy", np.array([{}]), allow_pickle=True)
    for source in (
        "text.csv", "ragged.csv", "empty.csv", "junk.npy", "junk.npz", "wide.npy", "text.npy", "one.npy", "other.npz",
        "object.npy", "none.csv", "model.safetensors",
    ):  # fmt: skip
        code, out, err = tacit("predict", source, "--url", server.url)
        assert code == 2 and err.startswith("tacit: ") and not out, source


def test_what_cannot_be_asked_ends_with_one_error(tacit, model) -> None:
    np.save("r.npy", RECORDS.numpy())
    Path("there.npz").touch()
    Path("folder.npz").mkdir()
    begun = time.monotonic()
    for arguments, said in (
        (("--url", "nonsense"), "a URL like"),
        (("--url", "http://127.0.0.1:9", "--retries", 0), "EndpointUnreachable"),
        (("--url", "http://127.0.0.1:9", "--key-file", "none"), "cannot be read"),
        (("--url", "http://127.0.0.1:9", "--out", "x.txt"), ".npz or .csv"),
        (("--url", "http://127.0.0.1:9", "--out", "there.npz"), "--overwrite"),
        (("--url", "http://127.0.0.1:9", "--out", "folder.npz", "--overwrite"), "is there"),
        (("--url", "http://127.0.0.1:9", "--out", "none/x.npz"), "a folder to write in"),
    ):
        code, _, err = tacit("predict", "r.npy", *arguments)
        assert code == 2 and said in err
    assert time.monotonic() - begun < 10
