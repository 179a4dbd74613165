"""A model over HTTP: the service of `tacit.prediction.plain` as a Starlette application, and the server that runs it.

==========================  ===========================================================================================
``POST /predict``           JSON ``{"inputs": [record, ...]}``, or raw little-endian float32 (``application/octet-stream``);
                            answered in kind, or as ``Accept`` says: ``{"scores": [[...], ...], "classes": c}`` with doubles
                            at full precision, or raw float64; where the key gives labels only, ``{"labels": [...],
                            "classes": c}`` or raw int64
``GET /model``              what the key may know and do, and has spent
``GET /model/weights``      the model, a safetensors file with its description, where the key may have it
``GET /health``             whether the server lives; no key
``GET /openapi.json``       all of this for machines; no key
==========================  ===========================================================================================

The key is sent as ``Authorization: Bearer KEY``. An error is JSON ``{"error": {"type": ..., "message": ...}}``:

======  ==========================================  ======  ===========================================================
status  type                                        status  type
======  ==========================================  ======  ===========================================================
400     ``Malformed``: not HTTP, not JSON           415     ``UnsupportedMediaType``
401     ``UnknownKey``: or none                     422     ``WrongInputs``: shape, range, not finite
403     ``Forbidden``: not with this key            429     ``BudgetExhausted``: for good
404     ``NotFound``                                429     ``RateLimited``: until ``Retry-After``
405     ``MethodNotAllowed``: see ``Allow``         431     ``HeadersTooLarge``
408     ``TooSlow``: the body did not come          500     ``ModelError``, ``InternalError``
413     ``TooLarge``: the body, or the batch        503     ``Overloaded``, ``Unavailable``: until ``Retry-After``
======  ==========================================  ======  ===========================================================

A body is refused by its declared length before it is read, and while it is read. Requests that wait are bounded, and so are
the bytes of theirs that are held. The audit log gets a line a request, without inputs, answers or keys.

Small requests are answered where they are read; those that take longer than `INLINE` seconds, going by earlier ones of their
size, in a thread, so that the server goes on listening.
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, TextIO

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from torch import Tensor
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    EndpointRefused,
    OutputError,
    StoreError,
)
from tacit.prediction.plain import AccessPolicy, ModelError, RateLimited, Service
from tacit.web.openapi import document

JSON, RAW = "application/json", "application/octet-stream"
#: Seconds that a request may take where it is read.
INLINE = 0.003
#: Bytes of a request's line and headers, at most.
HEAD = 1 << 15
#: Bytes of a number in JSON with its comma, brackets and blanks, and of what is around them all.
_NUMBER, _FRAME = 32, 256
_THREADS = 2
_DISCONNECTED = 499  # in the log: nobody was there any more to be answered

_TYPES = {
    400: "Malformed", 401: "UnknownKey", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed", 408: "TooSlow",
    413: "TooLarge", 415: "UnsupportedMediaType", 422: "WrongInputs", 431: "HeadersTooLarge",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much the server takes on at once.

    Args:
        body: bytes of a request, at most; None for what a batch of the greatest size takes in JSON.
        waiting: requests that are read, waited for or answered at the same time.
        held: bytes of their bodies, all together.
        seconds: in which a request's headers must have come, and then its body.

    Raises:
        ConfigError: a limit is out of range.
    """

    body: int | None = None
    waiting: int = 64
    held: int = 1 << 28
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if (self.body is not None and self.body < 1) or self.waiting < 1 or self.held < 1:
            raise ConfigError("limits of at least 1 byte and 1 request expected")
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"a time above 0 seconds for a request expected, {self.seconds} came")


class AuditLog:
    """A line of JSON a request: time, key's name, route, status, records, milliseconds. Nothing of what was asked.

    Args:
        path: appended to; its user's alone if it is new.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.touch(mode=0o600)
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"the audit log {path} cannot be written ({error.strerror or error})"
            ) from error

    def write(
        self, *, key: str | None, route: str, status: int, records: int, milliseconds: float
    ) -> None:
        """Add a line; it is with the system when this returns."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "key": key, "route": route, "status": status,
            "records": records, "milliseconds": round(milliseconds, 3),
        }  # fmt: skip
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:  # served all the same: the charge is in the ledger
            print(
                f"tacit: the audit log {self._path} cannot be written: {error}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class _Refusal(Exception):
    """A request that is not answered, for reasons of HTTP's."""

    def __init__(
        self, status: int, message: str, *, kind: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self.status, self.kind, self.headers = status, kind or _TYPES[status], headers or {}
        super().__init__(message)


@dataclass(slots=True)
class _Note:
    """What the log is told of a request."""

    key: str | None = None
    records: int = 0
    read: bool = False  # the whole body


def application(
    service: Service, *, log: AuditLog | None = None, capacity: Capacity | None = None
) -> Starlette:
    """The service as an application.

    Args:
        service: the model and its keys.
        log: where requests are told of; None for nowhere.
        capacity: how much is taken on at once.
    """
    door = _Door(service, log, capacity or Capacity())
    app = Starlette(
        routes=[
            Route("/predict", door.told("/predict", door.predict), methods=["POST"]),
            Route("/model", door.told("/model", door.model), methods=["GET"]),
            Route("/model/weights", door.told("/model/weights", door.weights), methods=["GET"]),
            Route("/health", door.told("/health", door.health), methods=["GET"]),
            Route("/openapi.json", door.told("/openapi.json", door.openapi), methods=["GET"]),
        ],
        exception_handlers={HTTPException: door.elsewhere},
    )
    app.router.redirect_slashes = False
    return app


Handler = Callable[[Request, _Note], Awaitable[Response]]


class _Door:
    """The routes."""

    def __init__(self, service: Service, log: AuditLog | None, capacity: Capacity) -> None:
        self._service, self._log, self._capacity = service, log, capacity
        width = service.record_size
        batch = min(service.limits.batch, max(1, service.limits.numbers // width))
        self._most = capacity.body or _FRAME + batch * width * _NUMBER
        self._batch = max(1, (self._most - _FRAME) // (width * _NUMBER))
        self._pool = ThreadPoolExecutor(_THREADS, "predict")
        self._waiting = self._held = 0
        self._pace: dict[tuple[str, str, int], float] = {}

    def told(self, route: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """A handler whose errors are answered and whose requests are logged."""

        async def answered(request: Request) -> Response:
            start, note = time.perf_counter(), _Note()
            try:
                response = await handler(request, note)
            except ClientDisconnect:
                response = Response(status_code=_DISCONNECTED)
            except Exception as error:
                response = _refused(error)
            await self._finish(request, response, note)
            self._tell(note, route, response.status_code, start)
            return response

        return answered

    async def predict(self, request: Request, note: _Note) -> Response:
        """Ask the model."""
        access = self._admitted(request, note)
        headers = request.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (JSON, RAW):
            raise _Refusal(
                415, f"{JSON} or {RAW} expected as the type of the body, {kind or 'none'} came"
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise _Refusal(415, "a body without content-encoding expected")
        accept = headers.get("accept", "")
        asked = _Asked(
            access, kind, JSON if JSON in accept else RAW if RAW in accept else kind, note
        )
        if self._waiting >= self._capacity.waiting:
            raise _overloaded(f"{self._waiting} requests wait already")
        self._waiting += 1
        body = bytearray()
        try:
            await self._read(request, body, note)
            return await self._done(asked, body)
        finally:
            self._waiting -= 1
            self._held -= len(body)

    async def model(self, request: Request, note: _Note) -> Response:
        """What the key may know."""
        said = self._service.describe(self._admitted(request, note))
        # As many as a body takes in either form.
        return _json({**said, "max_batch": min(said["max_batch"], self._batch)})

    async def weights(self, request: Request, note: _Note) -> Response:
        """The model itself."""
        data = self._service.weights(self._admitted(request, note))
        return Response(data, media_type=RAW)

    async def health(self, request: Request, note: _Note) -> Response:
        """Whether the server lives."""
        return _json({"status": "ok"})

    async def openapi(self, request: Request, note: _Note) -> Response:
        """The description for machines."""
        return _json(document(self._service, self._most))

    async def elsewhere(self, request: Request, error: Exception) -> Response:
        """What no route takes."""
        start, note = time.perf_counter(), _Note()
        response = _refused(error)
        await self._finish(request, response, note)
        self._tell(note, "-", response.status_code, start)
        return response

    def _admitted(self, request: Request, note: _Note) -> AccessPolicy:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        access = self._service.admit(key.strip() if scheme.lower() == "bearer" else None)
        note.key = access.name
        return access

    async def _read(self, request: Request, body: bytearray, note: _Note) -> None:
        """Read a body; what it holds of memory counts for all requests together."""
        most, declared = self._most, request.headers.get("content-length")
        if declared is not None and int(declared) > most:  # the parser has seen that it is a number
            raise _Refusal(
                413,
                f"a body of at most {most} bytes expected, {declared} declared: send fewer records",
            )
        if self._held + int(declared or 0) > self._capacity.held:
            raise _overloaded("the bodies of other requests fill the memory that is set aside")
        more = True
        try:
            async with asyncio.timeout(self._capacity.seconds):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    part, more = message.get("body", b""), message.get("more_body", False)
                    note.read = not more
                    if len(body) + len(part) > most:
                        raise _Refusal(
                            413, f"a body of at most {most} bytes expected: send fewer records"
                        )
                    if self._held + len(part) > self._capacity.held:
                        raise _overloaded(
                            "the bodies of other requests fill the memory that is set aside"
                        )
                    body += part
                    self._held += len(part)
        except TimeoutError:
            raise _Refusal(
                408,
                f"the body within {self._capacity.seconds:g} s expected, {len(body)} bytes came",
            ) from None

    async def _done(self, asked: _Asked, body: bytearray) -> Response:
        """The answer, made here where that takes no time, by earlier requests of this size."""
        size = asked.kind, asked.wanted, len(body).bit_length()
        usual = self._pace.get(size, math.inf)
        work = partial(_timed, asked, self._service, body)
        if usual < INLINE:
            response, took = work()
        else:
            response, took = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        # Falls at once and rises slowly: a machine that is busy with other things makes no request a slow one.
        self._pace[size] = took if took < usual else 0.9 * usual + 0.1 * min(took, 4 * usual)
        return response

    async def _finish(self, request: Request, response: Response, note: _Note) -> None:
        """Read what is left of a small body, so that the answer is read too; else end the connection after it."""
        headers = request.headers
        if note.read or not ("content-length" in headers or "transfer-encoding" in headers):
            return
        left = 2 * self._most
        if "expect" not in headers and int(headers.get("content-length", 0)) <= left:
            try:
                async with asyncio.timeout(min(2.0, self._capacity.seconds)):
                    while left > 0:
                        message = await request.receive()
                        if message["type"] == "http.disconnect" or not message.get(
                            "more_body", False
                        ):
                            return
                        left -= len(message.get("body", b""))
            except TimeoutError:
                pass
        response.headers["connection"] = "close"

    def _tell(self, note: _Note, route: str, status: int, start: float) -> None:
        if self._log is not None:
            spent = 1000 * (time.perf_counter() - start)
            self._log.write(
                key=note.key, route=route, status=status, records=note.records, milliseconds=spent
            )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request for predictions whose body is there."""

    access: AccessPolicy
    kind: str
    wanted: str
    note: _Note

    def answer(self, service: Service, body: bytearray) -> Response:
        inputs = (_raw if self.kind == RAW else _parsed)(service, self.access, body)
        self.note.records = len(inputs)
        answers = service.predict(self.access, inputs)
        if self.wanted == RAW:
            little = answers.numpy().astype(
                "<i8" if answers.dtype == torch.int64 else "<f8", copy=False
            )
            return Response(little.tobytes(), media_type=RAW)
        name = "labels" if self.access.policy.labels_only else "scores"
        return _json({name: answers.tolist(), "classes": service.classes})


def _timed(asked: _Asked, service: Service, body: bytearray) -> tuple[Response, float]:
    start = time.perf_counter()
    return asked.answer(service, body), time.perf_counter() - start


def _raw(service: Service, access: AccessPolicy, body: bytearray) -> Tensor:
    """Records from raw little-endian float32."""
    size = 4 * service.record_size
    if not body or len(body) % size:
        raise _Refusal(
            422, f"a whole number of records of {size} bytes expected, {len(body)} bytes came"
        )
    service.check_count(access, len(body) // size)
    values = np.frombuffer(body, "<f4").astype(np.float32, copy=False)
    return torch.from_numpy(values).reshape(-1, *service.input_shape)


def _parsed(service: Service, access: AccessPolicy, body: bytearray) -> Tensor:
    """Records from JSON, as doubles."""
    most, shape = service.most(access), service.input_shape
    # Counted before anything is made of them: a value of two bytes takes 32 of memory, an empty list more.
    arrays = 1 + most * sum(math.prod(shape[:depth]) for depth in range(len(shape)))
    if (
        body.count(b",") > most * service.record_size
        or body.count(b"[") > arrays
        or body.count(b"{") > most
    ):
        raise _Refusal(
            413,
            f"at most {most} records of shape {list(shape)} a request expected, more values came",
        )
    try:
        found = json.loads(body.decode("utf-8"), parse_int=float, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise _Refusal(400, f"JSON in UTF-8 expected: {reason}") from None
    if (
        not isinstance(found, dict)
        or set(found) != {"inputs"}
        or not isinstance(found["inputs"], list)
    ):
        raise _Refusal(422, 'a body {"inputs": [record, ...]} expected, without other names')
    service.check_count(access, len(found["inputs"]))
    try:
        values = np.array(found["inputs"])
    except ValueError:
        values = np.empty(0, object)
    # Truth values would pass as numbers beside floats; no number has these letters.
    if values.dtype != np.float64 or b"true" in body or b"false" in body:
        raise _Refusal(422, f"records of shape {list(shape)}, of numbers and all alike, expected")
    return torch.from_numpy(values)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


# --- answers


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers, JSON)


def _refused(error: Exception) -> Response:
    """An error as an answer; of what was not foreseen nothing is told but that it happened."""
    headers: dict[str, str] = {}
    match error:
        case _Refusal():
            status, kind, text, headers = error.status, error.kind, str(error), error.headers
        case RateLimited():
            status, kind, text = 429, "RateLimited", str(error)
            headers = {"retry-after": str(math.ceil(error.retry_after))}
        case BudgetExhausted():
            status, kind, text = 429, "BudgetExhausted", str(error)
        case EndpointRefused():
            status, kind, text = error.status, _TYPES[error.status], str(error)
        case HTTPException():
            status, headers = error.status_code, dict(error.headers or {})
            kind = _TYPES.get(status, "Malformed")
            text = "no such place: see /openapi.json" if status == 404 else error.detail
        case StoreError():
            print(f"tacit: {error}", file=sys.stderr, flush=True)
            status, kind, text = (
                503,
                "Unavailable",
                "what was asked cannot be counted now: try again",
            )
            headers = {"retry-after": "1"}
        case ModelError():
            print(f"tacit: {error}: {error.__cause__!r}", file=sys.stderr, flush=True)
            status, kind, text = 500, "ModelError", "the model gave no answer to these records"
        case _:
            traceback.print_exception(error, file=sys.stderr)
            status, kind, text = (
                500,
                "InternalError",
                "the server met an error of its own; it was logged",
            )
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    return _json({"error": {"type": kind, "message": text}}, status, headers)


def _overloaded(why: str) -> _Refusal:
    return _Refusal(503, f"{why}: try again", kind="Overloaded", headers={"retry-after": "1"})


# --- the server


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with an end to the patience for headers that do not come or do not end."""

    _seconds = 10.0
    _size = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before the end of the headers."""
        if self._patience is not None or self.cycle is None or self.cycle.response_complete:
            self._size += len(data)
            super().data_received(data[: HEAD + 1])
            if self._patience is not None and self._size > HEAD:
                self._refuse(
                    431,
                    "HeadersTooLarge",
                    f"a request line and headers of at most {HEAD} bytes expected",
                )
            elif len(data) > HEAD + 1 and not self.transport.is_closing():
                super().data_received(data[HEAD + 1 :])
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self._patience is None:
            self._wait()
            self._size = 1  # some of this data

    def on_headers_complete(self) -> None:
        """Its headers are there."""
        self._wait_no_more()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP."""
        self._refuse(400, "Malformed", "HTTP/1.1 expected")

    def _wait(self) -> None:
        self._patience = self.loop.call_later(self._seconds, self._tired)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _tired(self) -> None:
        self._patience = None
        if self._size:
            self._refuse(408, "TooSlow", f"headers within {self._seconds:g} s expected")
        else:
            self.transport.close()

    def _refuse(self, status: int, kind: str, text: str) -> None:
        if not self.transport.is_closing():
            body = json.dumps({"error": {"type": kind, "message": text}}).encode()
            lines = (
                f"HTTP/1.1 {status} {kind}",
                f"content-type: {JSON}",
                f"content-length: {len(body)}",
            )
            self.transport.write("\r\n".join([*lines, "connection: close", "", ""]).encode() + body)
            self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Tell that it is there."""
        await super().startup(sockets)
        self._ready()


def check_tls(certificate: Path, key: Path) -> None:
    """Whether a server can be who these files say.

    Raises:
        ConfigError: a file is missing, is not PEM, needs a password, or the two do not belong together.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"a certificate and its key without a password, both PEM, expected; {certificate} and {key} are not ({error})"
        ) from error


def server(
    app: Starlette,
    *,
    tls: tuple[Path, Path] | None = None,
    seconds: float = 10.0,
    ready: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """What runs an application: ``server(app).run(sockets=[bound socket])``, until SIGINT, SIGTERM or ``should_exit``.

    Requests that are begun then are answered first.

    Args:
        app: see `application`.
        tls: certificate and key, see `check_tls`; None for plain HTTP.
        seconds: in which the headers of a request must have come.
        ready: called when connections are taken.
    """
    http = type("Protocol", (_Protocol,), {"_seconds": seconds})
    config = uvicorn.Config(
        app, http=http, loop="auto", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=75, timeout_graceful_shutdown=10,
        ssl_certfile=None if tls is None else tls[0], ssl_keyfile=None if tls is None else tls[1],
    )  # fmt: skip
    return _Server(config, ready)
