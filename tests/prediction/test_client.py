"""The client against an endpoint that misbehaves: retries, waits, typed errors, and nothing taken for an answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    EndpointJunk,
    EndpointRefused,
    EndpointUnreachable,
    StoreError,
)
from tacit.prediction import client as module
from tacit.prediction.client import Client

JSON = "application/json"
MODEL: dict[str, Any] = {
    "input_shape": [2], "classes": 2, "dtype": "float32", "download": True, "budget": None, "spent": 0, "rate": None,
    "burst": None, "max_batch": 3, "range": [None, None], "model": "m",
    "policy": {"top_k": None, "digits": None, "temperature": 1.0, "labels_only": False},
}  # fmt: skip
GOOD = {"scores": [[0.25, 0.75]] * 3, "classes": 2}
Reply = Callable[[BaseHTTPRequestHandler], None]


def reply(status: int, body: Any, kind: str = JSON, **headers: str) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {
            "content-type": kind,
            "content-length": str(len(data)),
            **headers,
        }.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return send


def error(status: int, kind: str, **headers: str) -> Reply:
    return reply(status, {"error": {"type": kind, "message": "because"}}, **headers)


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"scores": [[')
    handler.close_connection = True


def late(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.6)
    drop(handler)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    for _ in range(8):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)
    drop(handler)


def not_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    drop(handler)


class Stub:
    """An endpoint that does as the script says, request by request, and then answers well."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.model: Any = MODEL
        self.seen: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                reply(200, stub.model)(self)

            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                self.rfile.read(size)
                stub.seen.append(self.headers["content-type"])
                usual = {"scores": [[0.25, 0.75]] * (size // 8), "classes": 2}
                (stub.script.pop(0) if stub.script else reply(200, usual))(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.01)
    made = Stub()
    yield made
    made.server.shutdown()
    made.server.server_close()


RECORDS = torch.zeros(3, 2)


@pytest.mark.parametrize(
    "trouble",
    [
        drop, cut, error(500, "ModelError"), error(503, "Overloaded", retry_after="0"), reply(502, b"<html>", "text/html"),
    ],
    ids=["dropped", "cut", "500", "503", "502"],
)  # fmt: skip
def test_what_passes_is_tried_again(stub: Stub, trouble: Reply) -> None:
    stub.script = [trouble, trouble]
    with Client(stub.url) as client:
        assert client.scores(RECORDS).tolist() == GOOD["scores"]
        assert client.asked >= 9 and len(stub.seen) == 3  # each attempt may have been charged


def test_what_does_not_come_in_time_is_tried_again_and_then_given_up(stub: Stub) -> None:
    with Client(stub.url, timeout=0.2, retries=1) as client:
        stub.script = [late]
        assert client.scores(RECORDS).tolist() == GOOD["scores"]
        stub.script = [late, drip]
        with pytest.raises(
            EndpointUnreachable, match=r"2 attempts, last: nothing, or not all, came in 0.2 s"
        ):
            client.scores(RECORDS)


def test_after_all_retries_the_last_reason_is_said(stub: Stub) -> None:
    with Client(stub.url, retries=2) as client:
        stub.script = [drop, drop, error(500, "ModelError")] + [error(503, "Overloaded")] * 9
        with pytest.raises(
            EndpointUnreachable, match="3 attempts, last: status 503 Overloaded: because"
        ):
            client.scores(RECORDS)


def test_nobody_there_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(EndpointUnreachable, match="1 attempts, last: ConnectionRefused"):
        Client(f"http://127.0.0.1:{port}", retries=0)


def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits of this thread, which takes none from now on; those of the stub's are real."""
    slept: list[float] = []
    own, real = threading.get_ident(), time.sleep
    monkeypatch.setattr(
        module.time,
        "sleep",
        lambda wait: slept.append(wait) if threading.get_ident() == own else real(wait),
    )
    return slept


def test_a_wait_is_as_long_as_told_and_no_failure(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = sleeps(monkeypatch)
    limited = error(429, "RateLimited", retry_after="7")
    stub.script = [limited] * 5
    told: list[str] = []
    with Client(stub.url, retries=0, told=told.append) as client:
        assert client.scores(RECORDS).tolist() == GOOD["scores"] and slept == [7.0] * 5
        assert told == ["waiting 7 s: the key's rate; 0 of 3 answered"] * 5
        stub.script = [error(429, "RateLimited", retry_after="599"), limited]
        with pytest.raises(EndpointRefused, match="asked to wait 7 s more after 599 s") as caught:
            client.scores(RECORDS)
        assert caught.value.status == 429
        stub.script = [error(503, "Overloaded", retry_after="99999")]
        with pytest.raises(EndpointUnreachable, match="asked to wait 99999 s more"):
            client.scores(RECORDS)
        stub.script = [error(429, "RateLimited", retry_after="0")] * 3
        client.scores(RECORDS)
        assert slept[-3:] == [0.01] * 3  # but not at once, and not for ever
        stub.script = [error(429, "RateLimited")]  # without a time
        with pytest.raises(EndpointRefused):
            client.scores(RECORDS)


def test_waits_between_attempts_grow_and_are_not_alike(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = sleeps(monkeypatch)
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.1)
    stub.script = [error(500, "ModelError")] * 12
    with Client(stub.url, retries=12) as client:
        client.scores(RECORDS)
    assert len(slept) == 12 and len(set(slept)) == 12
    for at, wait in enumerate(slept):
        full = min(10.0, 0.1 * 2**at)
        assert full / 2 <= wait <= full


def test_a_budget_is_never_asked_for_twice(stub: Stub) -> None:
    stub.script = [error(429, "BudgetExhausted", retry_after="1")] * 2
    with Client(stub.url) as client, pytest.raises(BudgetExhausted, match="because"):
        client.scores(RECORDS)
    assert len(stub.seen) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 422, 418, 302])
def test_a_refusal_is_not_asked_again(stub: Stub, status: int) -> None:
    stub.script = [error(status, "Whatever")] * 2
    with Client(stub.url) as client:
        with pytest.raises(EndpointRefused, match=f"status {status} Whatever: because") as caught:
            client.scores(RECORDS)
        assert caught.value.status == status and len(stub.seen) == 1


def scores(rows: Any) -> Reply:
    return reply(200, {"scores": rows, "classes": 2})


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b"<html>hello</html>", "text/html"), reply(200, b""), reply(200, b"\xff"), reply(200, [1]),
        reply(200, {"labels": [0, 0, 0]}), reply(200, b'{"scores": [[NaN, 1]]}'), scores([[0.5, 0.5]] * 2),
        scores([[0.5, 0.5, 0.0]] * 3), scores([[0.5, 0.25]] * 3), scores([[1.5, -0.5]] * 3), scores([["a", "b"]] * 3),
        scores([[0.5, None]] * 3), scores([[0.5], [0.5, 0.5], [1]]), scores("text"), scores(None),
        scores([[True, False]] * 3),
        scores([[1e999, 0]] * 3), scores([[1e308, 1e308]] * 3), reply(200, b"[" * 9999),
        reply(200, bytes(47), "application/octet-stream"),
        reply(200, np.array([[np.inf, -np.inf]] * 3).tobytes(), "application/octet-stream"),
        reply(200, bytes(48), "application/octet-stream"), reply(200, b"\xff" * 48, "application/octet-stream"), not_http,
        reply(200, b" " * (1 << 21)),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_not_taken_for_one(stub: Stub, answer: Reply) -> None:
    stub.script = [answer]
    with Client(stub.url) as client:
        with pytest.raises(EndpointJunk):
            client.scores(RECORDS)
        assert client.scores(RECORDS).tolist() == GOOD["scores"]  # and the next one is


@pytest.mark.parametrize(
    ("policy", "rows", "good"),
    [
        ({"digits": 1}, [[0.3, 0.6]], True), ({"digits": 1}, [[0.3, 0.5]], False), ({"top_k": 1}, [[0.0, 0.6]], True),
        ({"top_k": 1}, [[0.4, 0.6]], False), ({"digits": 3}, [[0.3, 0.6]], False),
    ],
)  # fmt: skip
def test_sums_are_those_that_the_policy_leaves(
    stub: Stub, policy: Any, rows: Any, good: bool
) -> None:
    stub.model = {**MODEL, "policy": {**MODEL["policy"], **policy}}
    stub.script = [scores(rows)]
    with Client(stub.url) as client:
        if good:
            assert client.scores(RECORDS[:1]).tolist() == rows
        else:
            with pytest.raises(EndpointJunk, match="probabilities under the policy"):
                client.scores(RECORDS[:1])


def test_labels_that_are_none_are_not_taken(stub: Stub) -> None:
    stub.model = {**MODEL, "policy": {**MODEL["policy"], "labels_only": True}}
    with Client(stub.url) as client:
        stub.script = [reply(200, {"labels": [0, 1, 1], "classes": 2})]
        assert client.scores(RECORDS).tolist() == [[1, 0], [0, 1], [0, 1]]
        for labels in ([0, 1, 2], [0, -1, 1], [0, 0.5, 1], [0, 1], ["a", 1, 1], [0, 1, 10**30]):
            stub.script = [reply(200, {"labels": labels, "classes": 2})]
            with pytest.raises(EndpointJunk):
                client.labels(RECORDS)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 1}, {"classes": "2"}, {"input_shape": []}, {"input_shape": [-1]}, {"input_shape": 3}, {"dtype": "int8"},
        {"max_batch": 0}, {"max_batch": True}, {"policy": {}}, {"policy": None}, {"range": [0]}, {"spent": None},
        {"policy": {**MODEL["policy"], "digits": 99}}, {"model": 3}, {"download": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_is_none_is_junk(stub: Stub, change: Any) -> None:
    stub.model = {**MODEL, **change}
    with pytest.raises(EndpointJunk, match="/model"):
        Client(stub.url)


def test_a_model_that_is_none_is_junk(stub: Stub, tmp_path) -> None:
    with Client(stub.url) as client:
        with pytest.raises(EndpointJunk, match="a model expected"):
            client.model()  # the stub answers every GET with its description
        with pytest.raises(EndpointJunk):
            client.download(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_connection_that_the_server_ended_meanwhile_is_no_failure(stub: Stub) -> None:
    with Client(stub.url, retries=0) as client:
        client.scores(RECORDS)
        (line,) = client._line._idle
        line.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        assert client.scores(RECORDS).tolist() == GOOD["scores"]


def test_an_answer_that_is_remembered_is_not_asked_for(stub: Stub, tmp_path) -> None:
    inputs = torch.arange(12.0).reshape(6, 2)
    with Client(stub.url, memory=tmp_path / "m", retries=0) as client:
        stub.script = [scores([[0.5, 0.5]] * 3), error(500, "ModelError")]
        with pytest.raises(EndpointUnreachable):  # after the first batch
            client.scores(inputs)
    with Client(stub.url, memory=tmp_path / "m") as client:
        stub.script = [scores([[0.25, 0.75]] * 3)]
        assert client.scores(inputs).tolist() == [[0.5, 0.5]] * 3 + [[0.25, 0.75]] * 3
        assert client.asked == 3
    stub.model = {**MODEL, "model": "another"}
    with Client(stub.url, memory=tmp_path / "m") as client:
        client.scores(inputs)
        assert client.asked == 6
    assert (tmp_path / "m").stat().st_mode & 0o077 == 0


def test_records_that_are_alike_are_asked_once_and_the_memory_can_be_asked(
    stub: Stub, tmp_path
) -> None:
    inputs = torch.tensor([[0.0, 1], [2, 3], [0, 1], [0, 1], [4, 5]])
    with Client(stub.url, memory=tmp_path / "m") as client:
        assert client.remembers(inputs) == 0 == client.remembers(inputs[:0])
        stub.script = [scores([[0.5, 0.5], [0.25, 0.75]])]
        got = client.scores(inputs[:3])
        assert got.tolist() == [[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]] and client.asked == 2
        assert client.remembers(inputs) == 4 and client.remembered() == 2
    with Client(stub.url) as client:
        assert client.remembers(inputs) == 0


def test_records_that_would_be_refused_are_not_sent(stub: Stub) -> None:
    stub.model = {**MODEL, "range": [-1, 2.0]}
    with Client(stub.url, batch=1) as client:
        for wrong, said in (
            (float("nan"), "record 3 holds another"),
            (float("inf"), "record 3 holds another"),
            (1e300, "record 3 holds another"),  # of float32
            (2.5, "from -1 to 2.0 expected, record 3 holds 0 to 2.5"),
            (-1.5, "record 3 holds -1.5 to 0"),
        ):
            inputs = torch.zeros(5, 2, dtype=torch.float64)
            inputs[3, 1] = wrong
            with pytest.raises(EndpointRefused, match=said):
                client.scores(inputs)
        assert not stub.seen and client.asked == 0
        inputs[3, 1] = 2
        stub.script = [scores([[0.5, 0.5]])] * 5
        assert len(client.scores(inputs)) == 5


def test_tls_where_there_is_none_is_said(stub: Stub) -> None:
    with pytest.raises(EndpointUnreachable, match=r"is it http\?"):
        Client(stub.url.replace("http:", "https:"))


def test_a_memory_that_is_none_is_refused(stub: Stub, tmp_path) -> None:
    (tmp_path / "m").write_text("no database" * 200)
    with pytest.raises(StoreError, match="cannot be used"):
        Client(stub.url, memory=tmp_path / "m")


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:80", "ftp://x", "http://", "http://a:b@x", "http://x:99999", "http://x y", "http://x?q", "http://x\n", "file:///etc",
     f"http://{'a' * 70}.com", "http://a..b"],
)  # fmt: skip
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="a URL like"):
        Client(url)


def test_settings_that_make_no_sense_are_refused(tmp_path) -> None:
    (tmp_path / "junk").write_text("junk")
    url = "http://127.0.0.1:9"
    for settings in (
        {"timeout": 0}, {"timeout": 86401}, {"timeout": float("nan")},
        {"retries": -1}, {"batch": 0}, {"key": "a\nb"}, {"key": "é"}, {"key": ""}, {"ca": tmp_path / "junk"},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            Client(url, **settings)
    with pytest.raises(ConfigError, match="certificates in PEM"):
        Client("https://127.0.0.1:9", ca=tmp_path / "junk")
