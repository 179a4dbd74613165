"""``tacit data`` as a user meets it."""

from __future__ import annotations

import dataclasses
import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tacit.cli.main import run
from tacit.nn.homes import HOMES


@pytest.fixture
def tacit(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            run(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def home(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Iris's home is on this machine, and pima's too, where pima is missing."""
    text = gzip.decompress((data_folder / "iris.csv.gz").read_bytes()).split(b"\n", 1)[1]

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if not self.path.endswith("iris.csv"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    for name in ("iris", "pima"):
        moved = dataclasses.replace(HOMES[name], base=f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setitem(HOMES, name, moved)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_list_says_what_is_at_hand_and_what_can_be_fetched(tacit, tmp_path, monkeypatch) -> None:
    (tmp_path / "iris.csv.gz").write_bytes(b"not read")
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    code, out, _ = tacit("data", "list", "--json")
    result = json.loads(out)
    assert code == 0 and result["command"] == "data list"
    listed = {entry["name"]: entry for entry in result["datasets"]}
    assert listed["iris"]["present"] and not listed["pima"]["present"]
    assert {name for name, entry in listed.items() if entry["fetchable"]} == set(HOMES)
    assert listed["adult"]["input_shape"] == [108] and listed["att-faces"]["classes"] == 40
    code, out, err = tacit("data", "list")
    assert code == 0 and all(name in out for name in listed)
    assert "there is no file" in err and "tacit data fetch" in err


@pytest.mark.usefixtures("home")
def test_fetch_gets_a_set_once(tacit, tmp_path) -> None:
    where = ["--folder", str(tmp_path / "new"), "--json"]
    code, out, err = tacit("data", "fetch", "iris", *where)
    result = json.loads(out)
    assert code == 0 and result["command"] == "data fetch"
    assert result["settings"] == {"names": ["iris"], "folder": where[1], "overwrite": False}
    file = tmp_path / "new" / "iris.csv.gz"
    assert result["datasets"] == [
        {"name": "iris", "outcome": "fetched", "files": [str(file)], "error": None}
    ]
    assert "iris: about 4,549 bytes, and at most 9,098, from http://127.0.0.1" in err
    _, out, _ = tacit("data", "fetch", "iris", *where)
    assert json.loads(out)["datasets"][0]["outcome"] == "at hand"
    file.write_bytes(b"damaged")
    code, out, err = tacit("data", "fetch", "iris", *where)
    assert code == 2 and "left alone" in err and file.read_bytes() == b"damaged"
    code, out, _ = tacit("data", "fetch", "iris", "--overwrite", *where[:2])
    assert code == 0 and "fetched" in out and len(file.read_bytes()) > 500


@pytest.mark.usefixtures("home")
def test_what_fails_does_not_stop_the_others_and_the_code_says_so(tacit, tmp_path) -> None:
    code, out, err = tacit("data", "fetch", "pima", "cifar10", "iris", "--folder", str(tmp_path), "--json")  # fmt: skip
    results = {entry["name"]: entry for entry in json.loads(out)["datasets"]}
    assert code == 2
    assert {name: entry["outcome"] for name, entry in results.items()} == {
        "pima": "failed",
        "cifar10": "failed",
        "iris": "fetched",
    }
    assert results["pima"]["error"]["type"] == "DataError"
    assert "404" in results["pima"]["error"]["message"] and "404" in err
    assert "cifar10_24k.npz" in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["iris.csv.gz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "or give --all: adult, att-faces, iris"),
        (["--all", "iris"], "name data sets to fetch, or give --all"),
        (["irsi", "--folder", "x"], "did you mean iris"),
        (["iris"], "name one, or set TACIT_DATA"),
    ],
)
def test_what_cannot_be_meant_is_said(tacit, arguments, message, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("TACIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    code, _, err = tacit("data", "fetch", *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_all_is_every_set_with_a_home(tacit, tmp_path, monkeypatch) -> None:
    for name, moved in HOMES.items():
        monkeypatch.setitem(HOMES, name, dataclasses.replace(moved, base="http://example.org/"))
    code, out, err = tacit("data", "fetch", "--all", "--folder", str(tmp_path), "--json")
    results = json.loads(out)["datasets"]
    assert code == 2 and [entry["name"] for entry in results] == list(HOMES)
    assert err.count("must begin with https://") == len(HOMES)
