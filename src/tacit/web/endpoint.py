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

A body is refused by its declared length before it is read, and while it is read. Connections are bounded, requests whose
bodies come, those that wait for an answer, and the bytes that are held; where there are several keys, one gets at most half
of each of the last three. The audit log gets a line for each request whose headers came whole, without inputs, answers or
keys.

Small requests are answered where they are read; those that take longer than `INLINE` seconds, going by earlier ones of their
size, and those that have to wait for another process to charge, in a thread, so that the server goes on listening. One who
does not read an answer is dropped when less than `SLOWEST` bytes go in three times the seconds in which headers must come.
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from socket import SO_SNDBUF, SOL_SOCKET, socket
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
from tacit.prediction.ledger import LedgerBusy
from tacit.prediction.plain import AccessPolicy, ModelError, RateLimited, Service
from tacit.web.openapi import document

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

JSON, RAW = "application/json", "application/octet-stream"
#: Seconds that a request may take where it is read.
INLINE = 0.003
#: Seconds that another process which charges is waited for there.
INLINE_PATIENCE = 0.05
#: Bytes of a request's line and headers, at most; and of what follows the last chunk of a body.
HEAD = 1 << 15
#: Seconds that a connection is kept without a request.
KEPT = 15
#: Bytes that must go to one who reads, in each three periods in which headers must have come.
SLOWEST = 1 << 15
#: Bytes that the system holds for one who reads; Linux takes twice as many.
SENDING = 1 << 17
#: Connections, where the system allows twice as many files.
CONNECTIONS = 512
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
        waiting: requests that are there whole, and wait or are answered, at the same time.
        reading: requests whose bodies are still to come.
        held: bytes of bodies, all together.
        seconds: in which a request's headers must have come, and then its body.

    Raises:
        ConfigError: a limit is out of range.
    """

    body: int | None = None
    waiting: int = 64
    reading: int = 256
    held: int = 3 << 27
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if min(1 if self.body is None else self.body, self.waiting, self.reading, self.held) < 1:
            raise ConfigError("limits of at least 1 byte and 1 request expected")
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"a time above 0 seconds for a request expected, {self.seconds} came")


class AuditLog:
    """A line of JSON a request: time, key's name, route, status, records, charged, milliseconds. Nothing of what was asked.

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
        self, *, key: str | None, route: str, status: int, records: int, charged: int, milliseconds: float
    ) -> None:  # fmt: skip
        """Add a line; it is with the system when this returns."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "key": key, "route": route, "status": status,
            "records": records, "charged": charged, "milliseconds": round(milliseconds, 3),
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
    charged: int = 0
    read: bool = False  # the whole body


def application(
    service: Service, *, log: AuditLog | None = None, capacity: Capacity | None = None
) -> Starlette:
    """The service as an application.

    Args:
        service: the model and its keys.
        log: where requests are told of; None for nowhere.
        capacity: how much is taken on at once.

    Raises:
        ConfigError: a body may not be as large as one record is in JSON.
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


class _Room:
    """For so many at once, of whom one key has no more than its share."""

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self._taken: Counter[str] = Counter()

    def enter(self, key: str, *, shared: bool, amount: int = 1) -> None:
        """Take room, or raise."""
        own, all_ = self._taken[key], self._taken.total()
        if all_ + amount > self._most:
            raise _overloaded(f"{self._what} of other requests leave no room")
        if shared and own and own + amount > -(-self._most // 2):
            raise _overloaded(f"{self._what} of this key's other requests fill its share")
        self._taken[key] += amount

    def leave(self, key: str, amount: int = 1) -> None:
        """Give it back."""
        self._taken[key] -= amount
        if not self._taken[key]:
            del self._taken[key]


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
        if self._most < (one := _FRAME + width * _NUMBER):
            raise ConfigError(
                f"a body of at least {one} bytes expected, for one record in JSON; {self._most} came"
            )
        self._reading = _Room(capacity.reading, "the bodies")
        self._waiting = _Room(capacity.waiting, "the answers")
        self._held = _Room(capacity.held, "the bytes")
        self._stuck = -math.inf
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
        shared, body = len(self._service.keys.policies) > 1, bytearray()
        try:
            self._reading.enter(access.name, shared=shared)
            try:
                await self._read(request, body, note, access.name, shared)
            finally:
                self._reading.leave(access.name)
            self._waiting.enter(access.name, shared=shared)
            try:
                return await self._done(asked, body)
            finally:
                self._waiting.leave(access.name)
        finally:
            self._held.leave(access.name, len(body))

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

    async def _read(
        self, request: Request, body: bytearray, note: _Note, key: str, shared: bool
    ) -> None:
        """Read a body; what it holds of memory counts for all requests together."""
        most, declared = self._most, request.headers.get("content-length")
        if declared is not None and int(declared) > most:  # the parser has seen that it is a number
            raise _Refusal(
                413,
                f"a body of at most {most} bytes expected, {declared} declared: send fewer records",
            )
        self._held.enter(key, shared=shared, amount=int(declared or 0))  # whether it would fit
        self._held.leave(key, int(declared or 0))
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
                    self._held.enter(key, shared=shared, amount=len(part))
                    body += part
        except TimeoutError:
            raise _Refusal(
                408,
                f"the body within {self._capacity.seconds:g} s expected, {len(body)} bytes came",
            ) from None

    async def _done(self, asked: _Asked, body: bytearray) -> Response:
        """The answer, made here where that takes no time, by earlier requests of this size."""
        size = asked.kind, asked.wanted, len(body).bit_length()
        usual = self._pace.get(size, math.inf)
        work, loop = partial(_timed, asked, self._service, body), asyncio.get_running_loop()
        found: tuple[Response, float] | None = None
        if usual < INLINE and loop.time() >= self._stuck:
            try:
                found = work(INLINE_PATIENCE)
            except LedgerBusy:  # nothing was charged
                self._stuck = loop.time() + 1
        if found is None:
            found = await loop.run_in_executor(self._pool, work)
        response, took = found
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
                key=note.key, route=route, status=status, records=note.records, charged=note.charged, milliseconds=spent
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request for predictions whose body is there."""

    access: AccessPolicy
    kind: str
    wanted: str
    note: _Note

    def answer(self, service: Service, body: bytearray, patience: float | None = None) -> Response:
        inputs = (_raw if self.kind == RAW else _parsed)(service, self.access, body)
        self.note.records = len(inputs)
        try:
            answers = service.predict(self.access, inputs, patience=patience)
        except ModelError:
            self.note.charged = len(inputs)
            raise
        self.note.charged = len(inputs)
        if self.wanted == RAW:
            little = answers.numpy().astype(
                "<i8" if answers.dtype == torch.int64 else "<f8", copy=False
            )
            return Response(little.tobytes(), media_type=RAW)
        name = "labels" if self.access.policy.labels_only else "scores"
        return _json({name: answers.tolist(), "classes": service.classes})


def _timed(
    asked: _Asked, service: Service, body: bytearray, patience: float | None = None
) -> tuple[Response, float]:
    start = time.perf_counter()
    return asked.answer(service, body, patience), time.perf_counter() - start


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
            if math.isfinite(error.retry_after):
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
    """uvicorn's, with an end to connections, and to the patience for headers and for who does not read."""

    _seconds = 10.0
    _connections = CONNECTIONS
    _size, _unread = 0, math.inf
    _in_body = False  # between the end of the headers and that of the body
    _heard = False  # some of a body, in these data
    _patience: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait, or end it at once where there are too many."""
        if len(self.connections) >= self._connections:
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # so that anything unread is told of
        # The system's own buffer would grow to megabytes, of which nobody could tell whether they are read.
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, SENDING)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._wait_no_more()
        self._read_it()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """An answer is not read."""
        super().pause_writing()
        self._unread = math.inf  # until it was looked at: uvloop does not count it yet
        self._reader = self.loop.call_later(3 * self._seconds, self._look)

    def resume_writing(self) -> None:
        """It was."""
        super().resume_writing()
        self._read_it()

    def _read_it(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _look(self) -> None:
        """Go on where something was read; else drop the connection with what it was to get."""
        left = self.transport.get_write_buffer_size()
        if left > self._unread - SLOWEST:
            self._reader = None
            self.transport.abort()
            return
        self._unread = left
        self._reader = self.loop.call_later(3 * self._seconds, self._look)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        super()._start_asgi_task(cycle, partial(_while_open, cycle, app))

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
        self._heard = False
        super().data_received(data)
        if self._in_body:
            self._size = 0 if self._heard else self._size + len(data)
            if self._size > HEAD:
                self._refuse(
                    431,
                    "HeadersTooLarge",
                    f"after a body at most {HEAD} bytes of trailers expected",
                )

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one that follows a body says nothing here, and is not kept."""
        if not self._in_body:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Some of a body."""
        self._heard = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it."""
        self._in_body = False
        super().on_message_complete()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self._patience is None:
            self._wait()
            self._size = 1  # some of this data

    def on_headers_complete(self) -> None:
        """Its headers are there."""
        self._wait_no_more()
        self._in_body, self._size = True, 0
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
        begun = self.cycle is not None and not self.cycle.response_complete
        if begun and (self.pipeline or self.cycle.response_started or not self._in_body):
            self.transport.abort()  # an answer here would be taken for that of another request
        elif not self.transport.is_closing():
            body = json.dumps({"error": {"type": kind, "message": text}}).encode()
            lines = (
                f"HTTP/1.1 {status} {kind}",
                f"content-type: {JSON}",
                f"content-length: {len(body)}",
            )
            self.transport.write("\r\n".join([*lines, "connection: close", "", ""]).encode() + body)
            self.transport.close()


async def _while_open(cycle: Any, app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Answer a request; what no connection is left for is dropped without a word."""

    async def sent(message: Any) -> None:
        while cycle.flow.write_paused and not cycle.transport.is_closing():
            await cycle.flow.drain()
        cycle.disconnected |= cycle.transport.is_closing()
        await send(message)

    await app(scope, receive, sent)


def _connections() -> int:
    """As many as leave as many files again for other things."""
    if resource is None:
        return CONNECTIONS
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if files < 0 else max(1, min(CONNECTIONS, files // 2))


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
    connections: int | None = None,
    ready: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """What runs an application: ``server(app).run(sockets=[bound socket])``, until SIGINT, SIGTERM or ``should_exit``.

    Requests that are begun then are answered first.

    Args:
        app: see `application`.
        tls: certificate and key, see `check_tls`; None for plain HTTP.
        seconds: in which the headers of a request must have come.
        connections: that are kept at the same time, others are ended at once; None for `CONNECTIONS`, or half the files that
            the system allows.
        ready: called when connections are taken.
    """
    most = _connections() if connections is None else connections
    http = type("Protocol", (_Protocol,), {"_seconds": seconds, "_connections": most})
    config = uvicorn.Config(
        app, http=http, loop="auto", ws="none", lifespan="off", log_config=None, log_level="error",
        access_log=False,  # what others send is no warning of the server's
        server_header=False, proxy_headers=False, timeout_keep_alive=KEPT, timeout_graceful_shutdown=10,
        ssl_certfile=None if tls is None else tls[0], ssl_keyfile=None if tls is None else tls[1],
    )  # fmt: skip
    return _Server(config, ready)
