"""A server in a thread, and a client of HTTP that sends what it is told."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tacit.nn.networks import initialise
from tacit.prediction.ledger import Ledger
from tacit.prediction.plain import Keys, Limits, Service, access_from
from tacit.web.endpoint import AuditLog, Capacity, application, server


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    return initialise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), generator).to(
        dtype
    )


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        """Of an error, whose form is checked too."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"type", "message"}
        return self.json["error"]["type"]


@dataclass(frozen=True)
class Running:
    service: Service
    ledger: Ledger
    url: str
    port: int
    keys: dict[str, str]
    log: Path

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = "plain", **headers: str
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["authorization"] = f"Bearer {self.keys.get(key, key)}"
        if body is not None and not isinstance(body, bytes):
            body = body if hasattr(body, "__next__") else json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            line.request(method, path, body, sent)
            got = line.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            line.close()

    def predict(self, inputs: Any, **more: Any) -> Answer:
        return self.ask("POST", "/predict", {"inputs": inputs}, **more)

    def raw(self, data: bytes) -> bytes:
        """What comes back for bytes of any kind, until the server ends the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line:
            line.sendall(data)
            got = b""
            while part := line.recv(1 << 16):
                got += part
            return got

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def alive(self) -> bool:
        return self.ask("GET", "/health", key=None).json == {"status": "ok"}


Serve = Callable[..., Running]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serves a model in a thread until the test is over."""
    with ExitStack() as stack:

        def begin(
            model: nn.Module | None = None, access: dict[str, dict[str, Any]] | None = None, *,
            shape: tuple[int, ...] = (4,), limits: Limits | None = None, capacity: Capacity | None = None,
            tls: tuple[Path, Path] | None = None, anyone: dict[str, Any] | None = None, seconds: float = 10.0,
            connections: int | None = None,
        ) -> Running:  # fmt: skip
            keys, made = Keys(anyone=None if anyone is None else access_from("anyone", anyone)), {}
            for name, settings in ({"plain": {}} if access is None else access).items():
                keys, made[name] = keys.added(access_from(name, settings))
            ledger = Ledger(tmp_path / "ledger")
            service = Service(model or network(), shape, keys, ledger, limits)
            log = AuditLog(tmp_path / "audit.jsonl")
            listening = socket.create_server(("127.0.0.1", 0))
            started = threading.Event()
            app = application(service, log=log, capacity=capacity)
            running = server(
                app, tls=tls, seconds=seconds, connections=connections, ready=started.set
            )

            async def until_told() -> None:  # uvicorn's own looks ten times a second
                while not running.should_exit:
                    await asyncio.sleep(0.01)

            running.main_loop = until_told  # type: ignore[method-assign]
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
            thread.start()

            def end() -> None:
                running.should_exit = True
                thread.join(20)
                assert not thread.is_alive()
                for one in (listening, ledger, log):
                    one.close()

            stack.callback(end)
            assert started.wait(10)
            port = listening.getsockname()[1]
            url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            return Running(service, ledger, url, port, made, tmp_path / "audit.jsonl")

        yield begin
