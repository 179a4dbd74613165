"""A prediction endpoint from the client's side, by the standard library alone.

The client holds records and a key; the endpoint sees both, and the client sees what the key's policy leaves of the answers.
A `Client` is what `tacit.attacks.access.Scores` and `Labels` take as their model, so that an attack runs against an endpoint
as it does in process: ``Scores(client, QueryCounter(), client.policy)``.

Answers are the bits that the endpoint computed: float32 records travel raw, float64 ones as JSON doubles at full precision,
scores as raw float64. They equal answers in process if records are asked about in batches of the same size.

What goes wrong on the way is tried again: connections that are refused or lost, answers that do not come in time, statuses
5xx, and 429 where the endpoint says after how long. A server of tacit charges a request before it answers and gives nothing
back, so that a request which was lost after it was read **is charged twice** when it is tried again; `memory` keeps answers
that did arrive from being asked for again.

**Leaks**: every record, to the endpoint, and, without TLS, records, answers and the key to whoever is on the way.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import sqlite3
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, socket
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor, nn

from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    EndpointJunk,
    EndpointRefused,
    EndpointUnreachable,
    StoreError,
)
from tacit.core.files import make_folder, write_file
from tacit.nn.policies import Policy
from tacit.nn.spec import load_model

#: Seconds that a client waits, in all, because an endpoint asks it to, for one request.
LONGEST_WAIT = 600.0
#: How far a sum of unrounded probabilities may be from 1: services compute in float32, too.
ROUNDING = 1e-4

_JSON, _RAW = "application/json", "application/octet-stream"
_TEXT = 1 << 20  # bytes of an answer that is not predictions
_MODEL = 1 << 33  # of a downloaded model
_FIRST_WAIT, _LAST_WAIT = 0.1, 10.0
_DAY = 86_400
_OFTEN = 10.0  # seconds after which it is told how far work is
#: What OpenSSL calls an answer that is not TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "UNKNOWN_PROTOCOL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What an endpoint says of itself and of a key.

    Args:
        input_shape: shape of one record.
        classes: how many.
        dtype: the model's type of float.
        model: names the model; another model has another name.
        budget: records that the key may ask about in all; None for no limit.
        spent: records that it was charged, when this was asked.
        rate: records a minute; None for no limit.
        download: whether it may have the model itself.
        max_batch: records a request.
        low: the least value of a record; None for no limit.
        high: the greatest.
    """

    input_shape: tuple[int, ...]
    classes: int
    dtype: torch.dtype
    model: str
    budget: int | None
    spent: int
    rate: float | None
    download: bool
    max_batch: int
    low: float | None
    high: float | None


class _Lost(Exception):
    """Nothing, or not all, came back; it may be tried again.

    Attributes:
        stale: on a connection that was kept, which the other side may have ended long ago.
    """

    def __init__(self, why: str, *, stale: bool = False) -> None:
        self.stale = stale
        super().__init__(why)


class Client:
    """Asks an endpoint. Threads may share it; connections are kept alive.

    Args:
        url: of the endpoint, ``http://host:port`` or ``https://``; perhaps with a path before its routes.
        key: of this client; None where the endpoint asks for none.
        timeout: seconds for one attempt at a request, at most a day's.
        retries: attempts after the first.
        ca: certificates that the endpoint's must be signed by, PEM; None for those the system trusts.
        batch: records a request; None for as many as the endpoint takes.
        memory: a file that keeps answers and is asked first, so that work which was interrupted and is done again asks
            nothing twice. It knows records by their SHA-256 and holds the answers, and is as confidential as they are. Made
            if it is not there.
        told: hears in a few words why a wait is long, and how far a long piece of work is.

    Attributes:
        policy: what the endpoint does to answers.
        described: what it said of itself when the client was made.
        asked: records that were sent, those of requests that were tried again too.

    Raises:
        ConfigError: the URL, key, certificates or a setting are not what they should be; the memory cannot be used.
        EndpointUnreachable: nobody answers.
        EndpointRefused: the key is not known (status 401).
        EndpointJunk: what answers is no such endpoint.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = 10.0, retries: int = 5, ca: Path | str | None = None,
        batch: int | None = None, memory: Path | str | None = None, told: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        if not 0 < timeout <= _DAY or retries < 0 or (batch is not None and batch < 1):
            raise ConfigError(
                f"a timeout above 0 s and of at most {_DAY} s, no negative number of retries, and batches of at least 1 "
                "expected"
            )
        if key is not None and not (key.isascii() and key.isprintable() and key):
            raise ConfigError("a key of printable ASCII characters expected")
        self._line = _Line(url, key, timeout, ca)
        self.url, self._retries, self._coins, self._told = url, retries, Coins("jitter"), told
        self._lock, self.asked = threading.Lock(), 0
        self._memory: _Memory | None = None
        try:
            self.described, self.policy = _described(
                self._once_more("GET", "/model", limit=_TEXT)[1]
            )
            self._batch = min(self.described.max_batch, batch or self.described.max_batch)
            if memory is not None:
                kind = f"{self.described.model} {self.policy.name} {self.described.classes}"
                who = hashlib.sha256((key or "").encode()).hexdigest()
                self._memory = _Memory(Path(memory), f"{url.rstrip('/')} {who} {kind}")
        except BaseException:
            self.close()
            raise

    def scores(self, inputs: Tensor) -> Tensor:
        """What is given out of the class probabilities.

        Args:
            inputs: (n, *input_shape) of float32 or float64.

        Returns:
            (n, classes) float64 on the device of the inputs; 1 at the label and 0 elsewhere where the policy gives labels.

        Raises:
            BudgetExhausted: the key's budget does not do.
            EndpointUnreachable: nobody answers, or not in time, after all retries.
            EndpointRefused: the endpoint will not answer this; records that are not finite or out of its range are not sent.
            EndpointJunk: it answers with something that is no answer.
            ConfigError: the inputs are not floats of its shape.
        """
        answers = self._answers(inputs)
        if self.policy.labels_only:
            answers = nn.functional.one_hot(answers.long(), self.described.classes).double()
        return answers.to(inputs.device)

    def labels(self, inputs: Tensor) -> Tensor:
        """Predicted classes, (n,) int64; see `scores`. Of scores that rounding made equal the first class is taken."""
        answers = self._answers(inputs)
        return (answers if self.policy.labels_only else answers.argmax(1)).to(inputs.device)

    def download(self, path: Path | str) -> None:
        """Write the model to a safetensors file, whole or not at all.

        Raises:
            EndpointRefused: the key may not have it (status 403).
            EndpointJunk: what came is no model.
            OutputError: the file cannot be written.
        """
        write_file(Path(path), self._downloaded()[0])

    def model(self) -> nn.Sequential:
        """The model, in evaluation mode; see `download`."""
        return self._downloaded()[1]

    def spent(self) -> int:
        """Records that the key has been charged until now, by all who use it."""
        return _described(self._once_more("GET", "/model", limit=_TEXT)[1])[0].spent

    def remembered(self) -> int:
        """Records whose answers are in the memory; 0 where there is none."""
        return 0 if self._memory is None else self._memory.count()

    def remembers(self, inputs: Tensor) -> int:
        """How many of these records, (n, *input_shape), have answers in the memory; 0 where there is none.

        Raises:
            ConfigError, EndpointRefused: as for `scores`.
        """
        records = self._checked_records(inputs)
        if self._memory is None:
            return 0
        names = _fingerprints(records)
        known = self._memory.known(set(names))
        return sum(name in known for name in names)

    def close(self) -> None:
        """End the connections and let go of the memory."""
        self._line.close()
        if self._memory is not None:
            self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _downloaded(self) -> tuple[bytes, nn.Sequential]:
        kind, data = self._once_more("GET", "/model/weights", limit=_MODEL)
        del kind
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(data)
            try:
                return data, load_model(path)
            except ConfigError as error:
                raise EndpointJunk(
                    f"{self.url}/model/weights: a model expected, but {error}"
                ) from error

    def _checked_records(self, inputs: Tensor) -> Tensor:
        """Records on the CPU, if the endpoint takes them."""
        said = self.described
        if (
            inputs.dtype not in (torch.float32, torch.float64)
            or tuple(inputs.shape[1:]) != said.input_shape
        ):
            raise ConfigError(
                f"float32 or float64 records (n, {', '.join(map(str, said.input_shape))}) expected, {inputs.dtype} of shape "
                f"{tuple(inputs.shape)} came"
            )
        records = inputs.detach().cpu().contiguous()
        rows = records.to(said.dtype).flatten(1)
        wrong = ~torch.isfinite(rows).all(1)
        if bool(wrong.any()):
            raise EndpointRefused(
                f"finite numbers that {str(said.dtype).removeprefix('torch.')} takes expected, record "
                f"{int(wrong.nonzero()[0])} holds another; nothing was sent",
                status=422,
            )
        least = -math.inf if said.low is None else said.low
        most = math.inf if said.high is None else said.high
        wrong = ((rows < least) | (rows > most)).any(1)
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            low, high = (float(one) for one in torch.aminmax(rows[at]))
            raise EndpointRefused(
                f"numbers from {said.low} to {said.high} expected, record {at} holds {low:g} to {high:g}; nothing was sent",
                status=422,
            )
        return records

    def _answers(self, inputs: Tensor) -> Tensor:
        records, size, found, said = (
            self._checked_records(inputs),
            self._batch,
            [],
            time.monotonic(),
        )
        for at in range(0, len(records), size):
            so_far = f"{at} of {len(records)} answered"
            if time.monotonic() > said + _OFTEN:
                self._told(so_far)
                said = time.monotonic()
            found.append(self._recalled(records[at : at + size], so_far))
        if len(found) == 1:
            return found[0]
        return torch.cat(found) if found else self._empty()

    def _empty(self) -> Tensor:
        if self.policy.labels_only:
            return torch.empty(0, dtype=torch.int64)
        return torch.empty(0, self.described.classes, dtype=torch.float64)

    def _recalled(self, records: Tensor, so_far: str) -> Tensor:
        """Answers for a batch, from memory where it has them."""
        if self._memory is None:
            return self._fetched(records, so_far)
        names = _fingerprints(records)
        known = self._memory.known(names)
        first = {name: at for at, name in reversed([*enumerate(names)]) if name not in known}
        lacking = sorted(first.values())  # each of equal ones once
        if lacking:
            answers = self._fetched(records[lacking], so_far)
            new = {
                names[at]: row.tobytes() for at, row in zip(lacking, answers.numpy(), strict=True)
            }
            self._memory.keep(new)
            known |= new
        empty = self._empty()
        rows = np.frombuffer(bytearray().join(known[name] for name in names), empty.numpy().dtype)
        return torch.from_numpy(rows).reshape(len(names), *empty.shape[1:])

    def _fetched(self, records: Tensor, so_far: str) -> Tensor:
        """Answers for a batch, from the endpoint."""
        if records.dtype == torch.float32:
            kind, body = _RAW, records.numpy().astype("<f4", copy=False).tobytes()
        else:
            kind, body = _JSON, json.dumps({"inputs": records.tolist()}).encode()
        count, classes = len(records), self.described.classes
        limit = max(_TEXT, 40 * count * classes)
        kind, data = self._once_more(
            "POST", "/predict", body, kind, limit=limit, records=count, so_far=so_far
        )
        return self._checked(kind, data, count)

    def _checked(self, kind: str, data: bytes, count: int) -> Tensor:
        """An answer as what it should be."""
        wanted, like = f"{self.url}/predict: ", self._empty()
        shape = (count, *like.shape[1:])
        if kind == _RAW:
            if len(data) != 8 * math.prod(shape):
                raise EndpointJunk(
                    f"{wanted}{8 * math.prod(shape)} bytes expected, {len(data)} came"
                )
            little = np.frombuffer(bytearray(data), like.numpy().dtype.newbyteorder("<"))
            values = torch.from_numpy(little.astype(like.numpy().dtype, copy=False)).reshape(shape)
        else:
            name = "labels" if self.policy.labels_only else "scores"
            values = _tensor(_parsed(wanted, data).get(name), like.dtype, wanted + name)
        if tuple(values.shape) != shape:
            raise EndpointJunk(
                f"{wanted}an answer of shape {list(shape)} expected, {list(values.shape)} came"
            )
        if self.policy.labels_only:
            if int(values.min()) < 0 or int(values.max()) >= self.described.classes:
                raise EndpointJunk(
                    f"{wanted}labels from 0 to {self.described.classes - 1} expected, others came"
                )
            return values
        _check_scores(values, self.policy, wanted)
        return values

    def _once_more(
        self, method: str, route: str, body: bytes | None = None, kind: str | None = None, *, limit: int, records: int = 0,
        so_far: str = "",
    ) -> tuple[str, bytes]:  # fmt: skip
        """A request, tried again where that may help."""
        failed, waited = 0, 0.0
        while True:
            limited = False
            with self._lock:
                self.asked += records
            try:
                status, headers, data = self._line.request(method, route, body, kind, limit)
            except _Lost as lost:
                if lost.stale:
                    continue  # at once: each such connection is lost only once
                why, wait = str(lost), None
            else:
                if status == 200:
                    return headers.get("content-type", "").partition(";")[0].strip().lower(), data
                name, text = _error(data)
                why = f"status {status}{f' {name}' if name else ''}: {text}"
                wait = _seconds(headers.get("retry-after"))
                if status == 429 and name == "BudgetExhausted":
                    raise BudgetExhausted(f"{self.url}: {text}")
                if status < 500 and not (status == 408 or (status == 429 and wait is not None)):
                    raise EndpointRefused(f"{self.url}{route}: {why}", status=status)
                if wait is not None:
                    wait = max(wait, _FIRST_WAIT)
                    if waited + wait > LONGEST_WAIT:
                        why += f"; asked to wait {wait:.0f} s more after {waited:.0f} s"
                        if status == 429:
                            raise EndpointRefused(f"{self.url}{route}: {why}", status=status)
                        failed = self._retries
                limited = status == 429
                failed -= limited  # that wait is no failure
            failed += 1
            if failed > self._retries:
                raise EndpointUnreachable(
                    f"{self.url}{route} did not answer in {failed} attempts, last: {why}; see that it runs, or allow "
                    "more time"
                )
            if wait is None:
                wait = min(_LAST_WAIT, _FIRST_WAIT * 2 ** (failed - 1))
                with self._lock:
                    wait *= 0.5 + 0.5 * float(self._coins.unit(1)[0])
            waited += wait
            if wait >= 1:
                reason = "the key's rate" if limited else why
                self._told(f"waiting {wait:.0f} s: {reason}{so_far and f'; {so_far}'}")
            time.sleep(wait)


# --- a connection


class _Line:
    """Connections to an endpoint: as many as are used at the same time, kept alive."""

    def __init__(self, url: str, key: str | None, timeout: float, ca: Path | str | None) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            (host or "").encode("idna")
        except ValueError:  # of labels that are too long, too
            host = port = None
            parts = urlsplit("")
        plain = url.isascii() and url.isprintable() and " " not in url
        if (
            parts.scheme not in ("http", "https")
            or not host
            or parts.username
            or parts.query
            or not plain
        ):
            raise ConfigError(f"a URL like http://127.0.0.1:8000 expected, {url!r} came")
        self._host, self._port, self._path = host, port, parts.path.rstrip("/")
        self._timeout, self._idle, self._closed = timeout, list[http.client.HTTPConnection](), False
        self._answered = False
        self._tls = _context(ca) if parts.scheme == "https" else None
        if ca is not None and self._tls is None:
            raise ConfigError(
                f"certificates came for {url}, which has no TLS: give an https URL, or leave them out"
            )
        self._headers = {"Authorization": f"Bearer {key}"} if key is not None else {}

    def request(
        self, method: str, route: str, body: bytes | None, kind: str | None, limit: int
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One attempt.

        Raises:
            _Lost: it may be tried again.
            EndpointUnreachable: it may not.
            EndpointJunk: the answer is longer than any can be, or not HTTP.
        """
        headers = {**self._headers, "Accept": f"{_RAW}" if body is not None else f"{_JSON}, {_RAW}"}
        if kind is not None:
            headers["Content-Type"] = kind
        try:
            line = self._idle.pop()
        except IndexError:
            line = self._new()
        kept, whole = line.sock is not None, False
        try:
            answer = self._sent(line, method, self._path + route, body, headers, limit)
            whole = True
        except ssl.SSLCertVerificationError as error:
            raise EndpointUnreachable(
                f"{self._host}: its certificate is not to be trusted ({error.verify_message}): give the authority's as ca"
            ) from error
        except ssl.SSLError as error:
            if not self._answered and error.reason in _NO_TLS:
                raise EndpointUnreachable(
                    f"{self._host} does not answer in TLS ({error.reason}): is it http?"
                ) from error
            raise _Lost(f"{type(error).__name__} {error}") from error
        except TimeoutError:
            raise _Lost(f"nothing, or not all, came in {self._timeout:g} s") from None
        except (OSError, http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
            stale = kept and isinstance(error, ConnectionError)
            ended = isinstance(error, ConnectionResetError)
            hint = ": is it https?" if ended and not self._answered and self._tls is None else ""
            raise _Lost(f"{type(error).__name__} {error}".strip() + hint, stale=stale) from error
        except (http.client.HTTPException, ValueError) as error:
            # A server of TLS says in TLS that it was not spoken to in TLS.
            hint = ": is it https?" if "\x15\x03" in str(error) else ""
            raise EndpointJunk(
                f"{route}: an answer of HTTP expected, {type(error).__name__} came{hint}"
            ) from error
        finally:
            if not whole or self._closed:
                line.close()
        self._answered = True
        if not self._closed:
            self._idle.append(line)
        return answer

    def _sent(
        self,
        line: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        limit: int,
    ) -> tuple[int, Mapping[str, str], bytes]:
        end = time.monotonic() + self._timeout
        if line.sock is None:
            line.connect()
            _at_once(line.sock)
        with suppress(BrokenPipeError):  # refused before it was all sent; the answer says why
            line.request(method, path, body, headers)
        response = line.getresponse()
        data = bytearray()
        while part := response.read1(1 << 16):
            data += part
            if len(data) > limit:
                raise EndpointJunk(
                    f"{path}: an answer of at most {limit} bytes expected, more came"
                )
            if time.monotonic() > end:
                raise TimeoutError
        left = response.length
        response.close()  # the connection stays
        if left:
            raise http.client.IncompleteRead(bytes(data), left)
        return (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            bytes(data),
        )

    def close(self) -> None:
        """End all connections that are not in use, and those as soon as they are not."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _new(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout, context=self._tls
        )


def _at_once(connected: socket | None) -> None:
    if connected is not None:
        connected.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)


def _context(ca: Path | str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise ConfigError(f"certificates in PEM expected, {ca} holds none ({error})") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _seconds(text: str | None) -> float | None:
    """Of a header Retry-After; dates are not understood."""
    return float(text) if text is not None and text.isdecimal() and len(text) < 10 else None


# --- answers


def _error(data: bytes) -> tuple[str, str]:
    """Type and text of an error; text of others is not repeated beyond a line."""
    try:
        found = json.loads(data)["error"]
        return str(found["type"])[:100], str(found["message"])[:500]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", " ".join(data[:100].decode("utf-8", "replace").split()) or "no text"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _parsed(wanted: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise EndpointJunk(f"{wanted}JSON expected, but {error}") from error
    if not isinstance(found, dict):
        raise EndpointJunk(f"{wanted}an object of JSON expected, {type(found).__name__} came")
    return found


def _tensor(values: Any, dtype: torch.dtype, what: str) -> Tensor:
    try:
        array = np.array(values)
        if array.dtype.kind not in ("i" if dtype == torch.int64 else "fi"):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise EndpointJunk(f"{what}: an array of numbers expected, another thing came") from error
    return torch.from_numpy(array).to(dtype)


def _check_scores(values: Tensor, policy: Policy, wanted: str) -> None:
    """Whether rows are what the policy leaves of probabilities."""
    rows = values.numpy()
    with np.errstate(all="ignore"):  # of infinities; see below
        sums = rows.sum(1)
    least, most = float(sums.min()), float(sums.max())
    if not math.isfinite(least + most):
        raise EndpointJunk(f"{wanted}finite scores expected, NaN or infinity came")
    half = 0.0 if policy.digits is None else 0.5 * 10.0**-policy.digits
    kept = rows.shape[1] if policy.top_k is None else policy.top_k
    slack = ROUNDING + kept * half
    wrong = float(rows.min()) < -ROUNDING or most > 1 + slack
    wrong |= policy.top_k is None and least < 1 - slack
    wrong |= policy.top_k is not None and int(np.count_nonzero(rows, axis=1).max()) > kept
    if wrong:
        raise EndpointJunk(
            f"{wanted}probabilities under the policy {policy.name} expected, rows that sum to {least:.6g} to {most:.6g} came"
        )


def _described(data: bytes) -> tuple[Described, Policy]:
    """What ``/model`` says, taken for nothing that it is not."""
    found = _parsed("/model: ", data)
    try:
        policy = Policy(**{one.name: found["policy"][one.name] for one in fields(Policy)})
        dtype = {"float32": torch.float32, "float64": torch.float64}[found["dtype"]]
        shape, (low, high) = tuple(found["input_shape"]), found["range"]
        described = Described(
            input_shape=shape, classes=found["classes"], dtype=dtype, model=found["model"], budget=found["budget"],
            spent=found["spent"], rate=found["rate"], download=found["download"], max_batch=found["max_batch"], low=low,
            high=high,
        )  # fmt: skip
        whole: Iterable[Any] = (*shape, described.classes, described.max_batch, described.spent)
        good = all(type(one) is int and one >= 0 for one in whole)
        good &= all(
            one is None or type(one) in (int, float)
            for one in (low, high, described.rate, described.budget)
        )
        good &= type(described.download) is bool and type(described.model) is str
        if (
            not good
            or not shape
            or described.classes < 2
            or described.max_batch < 1
            or math.prod(shape) < 1
        ):
            raise ValueError("its values make no sense")
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise EndpointJunk(
            f"/model: the description of a model expected, {type(error).__name__} {error}: is this an endpoint of tacit?"
        ) from error
    return described, policy


# --- memory


def _fingerprints(records: Tensor) -> list[bytes]:
    """SHA-256 of each record's type and bytes."""
    begun = hashlib.sha256(f"{records.dtype}\n".encode())
    found = []
    for row in records.flatten(1).numpy():
        one = begun.copy()
        one.update(row.data)
        found.append(one.digest())
    return found


class _Memory:
    """Answers in a SQLite file, by what was asked of whom."""

    def __init__(self, path: Path, scope: str) -> None:
        self._path, self._scope = path, hashlib.sha256(scope.encode()).digest()
        self._lock = threading.Lock()
        make_folder(path.parent)
        try:
            path.touch(mode=0o600)
        except OSError as error:
            raise StoreError(
                f"the memory {path} cannot be written ({error.strerror or error})"
            ) from error
        with self._reported():
            self._base = sqlite3.connect(
                path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = NORMAL")
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS answers (scope BLOB, record BLOB, answer BLOB NOT NULL, "
                "PRIMARY KEY (scope, record)) WITHOUT ROWID"
            )

    def known(self, names: Iterable[bytes]) -> dict[bytes, bytes]:
        """What is there of these."""
        found = {}
        with self._lock, self._reported():
            for name in names:
                row = self._base.execute(
                    "SELECT answer FROM answers WHERE scope = ? AND record = ?", (self._scope, name)
                ).fetchone()
                if row is not None:
                    found[name] = row[0]
        return found

    def keep(self, answers: Mapping[bytes, bytes]) -> None:
        """Add answers, all or none."""
        rows = [(self._scope, name, answer) for name, answer in answers.items()]
        with self._lock, self._reported():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                self._base.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)
                self._base.execute("COMMIT")
            except BaseException:
                self._base.execute("ROLLBACK")
                raise

    def count(self) -> int:
        """How many answers are there."""
        with self._lock, self._reported():
            found: int = self._base.execute(
                "SELECT COUNT(*) FROM answers WHERE scope = ?", (self._scope,)
            ).fetchone()[0]
        return found

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"the memory {self._path} cannot be used ({error}): give another file"
            ) from error
