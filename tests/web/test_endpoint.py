"""The endpoint as HTTP: what it answers, every status that it refuses with, and that it lives on."""

from __future__ import annotations

import json
import socket
import sqlite3
import struct
import threading
import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.errors import ConfigError
from tacit.nn.policies import Policy
from tacit.prediction.plain import Limits
from tacit.web.endpoint import HEAD, Capacity, application

RAW = "application/octet-stream"


def network(dtype=torch.float32):
    from tacit.nn.networks import initialise

    generator = torch.Generator().manual_seed(0)
    return initialise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), generator).to(
        dtype
    )


def records(count=5):
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(1))


def wanted(policy, inputs, dtype=torch.float32):
    with torch.no_grad():
        return policy.answers(network(dtype)(inputs.to(dtype)))


# --- answers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_json_and_raw_give_the_bits_of_the_policy(serve, dtype) -> None:
    running = serve(network(dtype), {"plain": {}, "few": {"digits": 3, "top_k": 2}})
    for name, policy in (("plain", Policy()), ("few", Policy(digits=3, top_k=2))):
        expected = wanted(policy, records(), dtype)
        got = running.predict(records().tolist(), key=name)
        assert got.status == 200 and got.headers["content-type"] == "application/json"
        assert got.json == {"scores": expected.tolist(), "classes": 3}
        body = records().numpy().tobytes()
        got = running.ask("POST", "/predict", body, key=name, content_type=RAW)
        assert got.headers["content-type"] == RAW and got.body == expected.numpy().tobytes()
        got = running.ask(
            "POST", "/predict", body, key=name, content_type=RAW, accept="application/json"
        )
        assert got.json["scores"] == expected.tolist()
        got = running.predict(records().tolist(), key=name, accept=RAW)
        assert got.body == expected.numpy().tobytes()
    assert running.ledger.account("few").spent == 20


def test_labels_only_says_labels_in_both_ways(serve) -> None:
    running = serve(access={"plain": {"labels_only": True}})
    labels = wanted(Policy(), records()).argmax(1)
    assert running.predict(records().tolist()).json == {"labels": labels.tolist(), "classes": 3}
    got = running.ask("POST", "/predict", records().numpy().tobytes(), content_type=RAW)
    assert got.body == struct.pack("<5q", *labels.tolist())


def test_records_of_more_than_one_axis(serve) -> None:
    running = serve(nn.Sequential(nn.Flatten(), network()), shape=(2, 2))
    given = records().reshape(-1, 2, 2)
    assert running.predict(given.tolist()).json["scores"] == wanted(Policy(), records()).tolist()
    assert running.predict(records().tolist()).kind == "WrongInputs"
    assert running.predict([[[1.0, 2.0], [3.0]]]).kind == "WrongInputs"


def test_model_says_what_the_key_may_know(serve) -> None:
    running = serve(
        access={"plain": {"budget": 9, "rate": 600, "burst": 4}, "other": {"download": True}}
    )
    running.predict(records(2).tolist())
    said = running.ask("GET", "/model").json
    assert len(said.pop("model")) == 32
    assert said == {
        "input_shape": [4], "classes": 3, "dtype": "float32", "download": False, "budget": 9, "spent": 2, "rate": 600,
        "burst": 4, "max_batch": 4, "range": [None, None],
        "policy": {"top_k": None, "digits": None, "temperature": 1.0, "labels_only": False},
    }  # fmt: skip
    assert running.ask("GET", "/model/weights").kind == "Forbidden"
    assert running.ask("GET", "/model/weights", key="other").status == 200


def test_open_without_keys(serve) -> None:
    running = serve(access={}, anyone={"digits": 1})
    for key in (None, "any"):
        assert running.predict([[0.0] * 4], key=key).status == 200
    assert {line["key"] for line in running.lines()} == {"anyone"}


def test_open_beside_keys_takes_no_wrong_one(serve) -> None:
    running = serve(anyone={"digits": 1})
    for key, status in ((None, 200), ("plain", 200), ("wrong", 401)):
        assert running.predict([[0.0] * 4], key=key).status == status


# --- refusals


def test_without_a_key_or_with_another_nothing_is_told(serve) -> None:
    running = serve()
    for method, path in (("POST", "/predict"), ("GET", "/model"), ("GET", "/model/weights")):
        for key in (None, "tacit_wrong", ""):
            got = running.ask(method, path, key=key)
            assert got.status == 401 and got.kind == "UnknownKey"
            assert got.headers["www-authenticate"] == "Bearer"
    key = running.keys["plain"]
    assert running.ask("GET", "/model", key=None, authorization=f"Basic {key}").status == 401
    assert running.ask("GET", "/model", key=None, authorization=f"bearer  {key} ").status == 200


def test_other_places_and_methods(serve) -> None:
    running = serve()
    for path in ("/", "/predict/", "/model/weights/x", "/%2e%2e/etc/passwd", "/docs"):
        got = running.ask("GET", path)
        assert got.status == 404 and got.kind == "NotFound"
    for method, path, allowed in (
        ("GET", "/predict", {"POST"}),
        ("POST", "/model", {"GET", "HEAD"}),
    ):
        got = running.ask(method, path)
        assert got.status == 405 and got.kind == "MethodNotAllowed"
        assert set(got.headers["allow"].split(", ")) == allowed


NO_JSON = [
    b"", b"{", b"nonsense", b'{"inputs": [[NaN, 0, 0, 0]]}', b'{"inputs": [[Infinity, 0, 0, 0]]}', b"\xff\xfe", b'"',
    b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}",
]  # fmt: skip


def test_what_is_not_json_is_malformed(serve) -> None:
    running = serve(limits=Limits(batch=9000))
    for body in NO_JSON:
        got = running.ask("POST", "/predict", body, content_type="application/json")
        assert (got.status, got.kind) == (400, "Malformed")
        assert running.alive()


NO_BATCH = [
    {}, [], 3, None, "text", {"inputs": 3}, {"inputs": {}}, {"inputs": []}, {"inputs": [[]]}, {"inputs": [1, 2, 3, 4]},
    {"inputs": [[1, 2, 3]]}, {"inputs": [[1, 2, 3, 4], [1, 2, 3]]}, {"inputs": [["1", "2", "3", "4"]]},
    {"inputs": [[1, 2, 3, None]]}, {"inputs": [[True, 2, 3, 4]]}, {"inputs": [[[1], [2], [3], [4]]]},
    {"inputs": [[1, 2, 3, 4]], "labels": [1]}, {"inputs": [[1, 2, 3, 10**400]]}, {"inputs": [[1, 2, 3, 1e39]]},
    {"inputs": [{"a": 1}]}, {"inputs": [[1, 2, 3, [4]]]}, {"inputs": [[1, 2, 3, {}]]},
]  # fmt: skip


def test_what_is_no_batch_of_records_is_refused_and_free(serve) -> None:
    running = serve()
    for body in NO_BATCH:
        got = running.ask(
            "POST", "/predict", json.dumps(body).encode(), content_type="application/json"
        )
        assert (got.status, got.kind) == (422, "WrongInputs")
        assert running.ledger.account("plain").spent == 0


def test_raw_bodies_that_are_no_records(serve) -> None:
    running = serve(limits=Limits(batch=3))
    for body in (b"", b"1234567", bytes(17), np.full(4, np.nan, "<f4").tobytes()):
        got = running.ask("POST", "/predict", body, content_type=RAW)
        assert (got.status, got.kind) == (422, "WrongInputs")
    got = running.ask("POST", "/predict", bytes(16 * 4), content_type=RAW)
    assert (got.status, got.kind) == (413, "TooLarge")
    assert running.predict([[0] * 4] * 4).status == 413
    assert running.ledger.account("plain").spent == 0


def test_a_declared_range_is_kept(serve) -> None:
    running = serve(limits=Limits(low=0.0, high=1.0))
    assert running.predict([[0, 1, 0.5, 1]]).status == 200
    got = running.predict([[0, 1, 0.5, 1.25]])
    assert got.status == 422 and "0.0 to 1.0" in got.json["error"]["message"]


def test_bodies_of_other_types(serve) -> None:
    running = serve()
    for kind in ("text/plain", "multipart/form-data", "", "application/jsonx"):
        got = running.ask("POST", "/predict", b"{}", content_type=kind)
        assert (got.status, got.kind) == (415, "UnsupportedMediaType")
    got = running.ask(
        "POST", "/predict", b"{}", content_type="application/json", content_encoding="gzip"
    )
    assert got.status == 415
    typed = running.ask(
        "POST", "/predict", {"inputs": [[0] * 4]}, content_type="Application/JSON; charset=utf-8"
    )
    assert typed.status == 200


def test_too_large_a_body_is_refused_by_its_word_and_as_it_comes(serve) -> None:
    running = serve(capacity=Capacity(body=1000))
    got = running.ask("POST", "/predict", b"[" * 1001, content_type="application/json")
    assert (got.status, got.kind) == (413, "TooLarge")

    def parts():
        for _ in range(30):
            yield b"[" * 100

    got = running.ask("POST", "/predict", parts(), content_type="application/json")
    assert (got.status, got.kind) == (413, "TooLarge")
    # Gigabytes that are only announced: answered at once, without waiting for them, and the connection ends.
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.keys['plain']}\r\ncontent-type: {RAW}\r\n"
    got = running.raw(f"{head}content-length: {1 << 40}\r\n\r\n".encode())
    assert got.startswith(b"HTTP/1.1 413") and b"connection: close" in got
    assert running.alive()


def test_a_batch_is_as_large_as_a_body_takes(serve) -> None:
    running = serve(limits=Limits(numbers=40), capacity=Capacity(body=256 + 5 * 4 * 32))
    assert running.service.most(running.service.admit(running.keys["plain"])) == 10
    assert running.ask("GET", "/model").json["max_batch"] == 5
    assert running.predict([[-1.2345678901234567e-300] * 4] * 5).status == 200
    assert running.ask("POST", "/predict", bytes(16 * 11), content_type=RAW).status == 413


def test_values_of_two_bytes_do_not_fill_memory(serve) -> None:
    running = serve(limits=Limits(batch=4), capacity=Capacity(body=1 << 22))
    for body in (
        b'{"inputs":[' + b"1," * 100_000 + b"1]}",
        b'{"inputs":[' + b"[]," * 100_000 + b"[]]}",
    ):
        got = running.ask("POST", "/predict", body, content_type="application/json")
        assert (got.status, got.kind) == (413, "TooLarge")


def test_a_budget_ends_and_a_rate_waits(serve) -> None:
    running = serve(access={"plain": {"budget": 5}, "slow": {"rate": 60, "burst": 3}})
    assert running.predict(records(3).tolist()).status == 200
    got = running.predict(records(3).tolist())
    assert (got.status, got.kind) == (429, "BudgetExhausted") and "retry-after" not in got.headers
    assert running.predict(records(2).tolist()).status == 200
    assert running.predict(records(3).tolist(), key="slow").status == 200
    got = running.predict(records(2).tolist(), key="slow")
    assert (got.status, got.kind) == (429, "RateLimited") and got.headers["retry-after"] == "2"


class Slow(nn.Module):
    """Waits, and fails where it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.go.set()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.begun.release()
        self.go.wait(20)
        if float(inputs.sum()) == 7:
            raise RuntimeError("secret of the model")
        return inputs[:, :3].sqrt()


def test_a_model_that_fails_gives_a_reason_and_no_more(serve, capsys) -> None:
    running = serve(Slow())
    for inputs in ([[-1.0, 0, 0, 0]], [[7.0, 0, 0, 0]]):
        got = running.predict(inputs)
        assert (got.status, got.kind) == (500, "ModelError")
        assert b"secret" not in got.body and b"Runtime" not in got.body
    assert running.ledger.account("plain").spent == 2  # nothing is given back
    assert [line["charged"] for line in running.lines()] == [1, 1]
    assert running.predict([[1.0, 0, 0, 0]]).status == 200
    assert "secret of the model" in capsys.readouterr().err


def test_an_error_of_the_server_itself_is_told_to_its_owner_alone(
    serve, monkeypatch, capsys
) -> None:
    running = serve()
    monkeypatch.setattr(running.service, "describe", lambda access: 1 / 0)
    got = running.ask("GET", "/model")
    assert (got.status, got.kind) == (500, "InternalError") and b"ZeroDivision" not in got.body
    assert "ZeroDivisionError" in capsys.readouterr().err and running.alive()


def test_a_ledger_that_cannot_be_written_answers_nothing(serve, monkeypatch) -> None:
    running = serve()
    running.ledger.close()
    got = running.predict([[0.0] * 4])
    assert (got.status, got.kind) == (503, "Unavailable") and got.headers["retry-after"] == "1"
    assert running.alive()


def test_more_than_may_wait_is_turned_away_and_health_still_answers(serve) -> None:
    slow = Slow()
    running = serve(slow, capacity=Capacity(waiting=3))
    slow.go.clear()
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(running.predict([[1.0, 0, 0, 0]])))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 9  # whichever come first wait; the others are answered at once
    while len(got) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [(one.status, one.kind, one.headers["retry-after"]) for one in got] == [(503, "Overloaded", "1")] * 2  # fmt: skip
    assert running.alive()
    slow.go.set()
    for thread in threads:
        thread.join(20)
    assert sorted(one.status for one in got) == [200, 200, 200, 503, 503]
    assert running.predict([[1.0, 0, 0, 0]]).status == 200


def test_a_limit_below_one_record_is_refused(serve) -> None:
    running = serve(capacity=Capacity(body=256 + 4 * 32))
    assert running.predict([[-1e-300] * 4]).status == 200
    with pytest.raises(ConfigError, match="one record in JSON"):
        application(running.service, capacity=Capacity(body=256 + 4 * 32 - 1))


def test_answers_of_the_policy_that_are_no_numbers_are_no_answers(serve) -> None:
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight.fill_(1e300)
    running = serve(model, access={"plain": {"temperature": 1e-6}})
    assert running.predict([[1.0, 0, 0, 0]]).status == 200
    got = running.predict([[1e5, 0, 0, 0]])  # finite, until it is divided
    assert (got.status, got.kind) == (500, "ModelError")


def begun(running, key, line, size=16, sent=b"123"):
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.keys[key]}\r\ncontent-type: {RAW}\r\n"
    line.sendall(f"{head}content-length: {size}\r\n\r\n".encode() + sent)


@pytest.mark.parametrize("capacity", [{"reading": 4}, {"held": 2000}], ids=["reading", "held"])
def test_one_key_that_withholds_bodies_does_not_lock_out_others(serve, capacity) -> None:
    running = serve(
        access={"bad": {}, "good": {}}, capacity=Capacity(waiting=1, seconds=8, **capacity)
    )
    with ExitStack() as stack:
        for _ in range(6):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            begun(running, "bad", line, 480, bytes(440))
        deadline = time.monotonic() + 5
        body = bytes(16 * 10)
        while running.ask("POST", "/predict", body, key="bad", content_type=RAW).status != 503:
            assert time.monotonic() < deadline
        for _ in range(3):
            assert running.predict([[0.0] * 4], key="good").status == 200


def test_a_process_that_holds_the_ledger_holds_nobody_else_up(serve, tmp_path) -> None:
    running = serve()
    for _ in range(20):  # are soon answered where they are read
        assert running.predict([[0.0] * 4]).status == 200
    other = sqlite3.connect(tmp_path / "ledger", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    got: list[int] = []
    asking = [
        threading.Thread(target=lambda: got.append(running.predict([[0.0] * 4]).status))
        for _ in range(6)
    ]
    for one in asking:
        one.start()
    slowest, end = 0.0, time.monotonic() + 1.0
    while time.monotonic() < end:
        start = time.monotonic()
        assert running.alive() and running.ask("GET", "/model").json["spent"] == 20
        slowest = max(slowest, time.monotonic() - start)
    assert not got and slowest < 0.8
    other.execute("ROLLBACK")
    other.close()
    for one in asking:
        one.join(10)
    assert got == [200] * 6 and running.ledger.account("plain").spent == 26


def test_bodies_together_fill_no_more_memory_than_set_aside(serve) -> None:
    running = serve(capacity=Capacity(held=1000, seconds=5))
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.keys['plain']}\r\ncontent-type: {RAW}\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as line:
        line.sendall(f"{head}content-length: 960\r\n\r\n".encode() + bytes(900))
        deadline = time.monotonic() + 4
        body = bytes(16 * 10)
        while (got := running.ask("POST", "/predict", body, content_type=RAW)).status == 200:
            assert time.monotonic() < deadline
        assert (got.status, got.kind) == (503, "Overloaded")
        line.sendall(bytes(60))
        assert line.recv(100).startswith(b"HTTP/1.1 200")
    assert running.ask("POST", "/predict", body, content_type=RAW).status == 200


# --- time and bytes


def test_a_body_that_does_not_come_is_not_waited_for(serve) -> None:
    running = serve(capacity=Capacity(seconds=0.3))
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.keys['plain']}\r\ncontent-type: {RAW}\r\n"
    got = running.raw(f"{head}content-length: 16\r\n\r\n123".encode())
    assert got.startswith(b"HTTP/1.1 408") and b'"TooSlow"' in got
    assert running.lines()[-1]["status"] == 408 and running.alive()


def test_headers_that_do_not_come_are_not_waited_for(serve) -> None:
    running = serve(seconds=0.3)
    assert running.raw(b"") == b""  # nothing at all
    assert running.raw(b"GET /health HTTP/1.1\r\nhost").startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as line:
        whole = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
        line.sendall(whole)
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        line.sendall(whole[:-4])  # the next request of the connection
        assert line.recv(1000).startswith(b"HTTP/1.1 408")
    assert running.alive()


@pytest.mark.parametrize("slowly", [False, True])
def test_headers_without_end_are_refused(serve, slowly) -> None:
    running = serve()
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx: ")
        got = b""
        with_it = b"y" * (100 if slowly else 2 * HEAD)
        try:
            for _ in range(2 * HEAD // len(with_it) + 1):
                line.sendall(with_it)
                if slowly and _ % 50 == 0:
                    time.sleep(0.001)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            while part := line.recv(1000):
                got += part
        except ConnectionResetError:
            pass
    assert not got or got.startswith(b"HTTP/1.1 431")
    assert running.alive()
    assert running.ask("GET", "/health", x="y" * (HEAD - 1000)).status == 200


def test_trailers_without_end_are_refused(serve) -> None:
    running = serve()
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    for many in (b"x: y\r\n" * 200, b"y" * 1200):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as line:
            line.sendall(head + b"1\r\n{\r\n0\r\nx: ")
            sent = 0
            try:
                while sent < 100 * HEAD:
                    sent += line.send(many)
                    time.sleep(0.0005)
            except OSError:
                pass
            assert sent < 100 * HEAD
    key = running.keys["plain"].encode()
    head = (
        head[:-2]
        + b"authorization: Bearer "
        + key
        + b"\r\ncontent-type: application/octet-stream\r\n"
    )
    got = running.raw(
        head
        + b"connection: close\r\n\r\n10\r\n"
        + bytes(16)
        + b"\r\n0\r\nexpect: x\r\nz: y\r\n\r\n"
    )
    assert got.startswith(b"HTTP/1.1 200")
    assert running.alive()


def test_connections_beyond_the_most_are_ended_at_once(serve) -> None:
    running = serve(connections=3)
    with ExitStack() as stack:
        for _ in range(3):
            line = stack.enter_context(
                socket.create_connection(("127.0.0.1", running.port), timeout=5)
            )
            line.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.1 200")
        with suppress(ConnectionError):
            assert running.raw(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n") == b""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert running.alive()
            break
        except ConnectionError:
            pass
    else:
        pytest.fail("no connection is taken any more")


class Wide(nn.Module):
    def forward(self, inputs):
        return inputs[:, :1] * torch.arange(200_000.0)


def test_one_who_does_not_read_is_dropped_and_one_who_reads_slowly_is_not(serve, capfd) -> None:
    running = serve(Wide(), seconds=0.1, limits=Limits(batch=50))
    body = bytes(16 * 10)  # the answer has 16 MB
    with ExitStack() as stack:
        lines = []
        for _ in range(2):
            line = stack.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
            line.connect(("127.0.0.1", running.port))
            line.settimeout(10)
            begun(running, "plain", line, len(body), body)
            lines.append(line)
        whole = len(lines[1].recv(1 << 17))
        for _ in range(12):  # over more than three periods
            time.sleep(0.1)
            whole += len(lines[1].recv(1 << 17))
        while whole < 10 * 200_000 * 8:
            part = len(lines[1].recv(1 << 20))
            assert part
            whole += part
        got = 0
        try:
            while part := len(lines[0].recv(1 << 20)):
                got += part
        except ConnectionError:
            pass
        assert got < 10 * 200_000 * 8
    assert running.alive() and capfd.readouterr().err == ""


def test_junk_says_nothing_on_the_servers_own_terminal(serve, capfd) -> None:
    running = serve()
    running.raw(b"nonsense\r\n\r\n")
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as line:
        line.sendall(
            b"GET /health HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
        )
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
    whole = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    running.raw(whole * 3 + b"nonsense\r\n\r\n")
    assert running.alive() and capfd.readouterr().err == ""


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100,
    b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", b"POST /predict HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /predict HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    b"POST /predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
]  # fmt: skip


def test_what_is_not_http_is_answered_and_outlived(serve) -> None:
    running = serve(seconds=0.5)
    for junk in NO_HTTP:
        got = running.raw(junk)
        assert got.startswith(b"HTTP/1.1 4") and b'{"error"' in got
        assert running.alive()


def test_a_client_that_goes_away_disturbs_nobody(serve) -> None:
    running = serve(capacity=Capacity(seconds=5))
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.keys['plain']}\r\ncontent-type: {RAW}\r\n"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", running.port)) as line:
            line.sendall(f"{head}content-length: 160\r\n\r\n".encode() + bytes(16))
    deadline = time.monotonic() + 5
    while sum(line["status"] == 499 for line in running.lines()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert running.alive() and running.ledger.account("plain").spent == 0


def test_requests_of_one_connection_are_answered_in_turn(serve) -> None:
    running = serve()
    one = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    got = running.raw(one * 19 + one[:-2] + b"connection: close\r\n\r\n")
    assert got.count(b'{"status":"ok"}') == 20


# --- the log


def test_the_log_has_a_line_a_request_and_nothing_of_what_was_asked(serve) -> None:
    running = serve()
    running.predict([[0.123456] * 4] * 3)
    running.predict([[0.5] * 3])
    running.ask("GET", "/model", key="tacit_guess")
    running.ask("GET", "/secret?key=hidden")
    said = [
        (one["key"], one["route"], one["status"], one["records"], one["charged"])
        for one in running.lines()
    ]
    assert said == [
        ("plain", "/predict", 200, 3, 3), ("plain", "/predict", 422, 1, 0), (None, "/model", 401, 0, 0),
        (None, "-", 404, 0, 0),
    ]  # fmt: skip
    assert all(
        one["milliseconds"] > 0 and one["time"].endswith("+00:00") for one in running.lines()
    )
    text = running.log.read_text()
    assert not any(
        one in text for one in ("0.123456", "guess", "hidden", running.keys["plain"], "scores")
    )
    assert running.log.stat().st_mode & 0o077 == 0
