"""`tacit bench serve`: what the endpoint adds to a bare call of the model, and whether a kill makes it forget.

The model is the MLP of the MNIST papers, 784-128-10, float32, with random weights: their values do not matter to the time.
The server is a process of its own, `tacit serve` with answers rounded to three digits and a budget, one thread each. One
client asks over one connection that is kept alive, with raw bodies; each request takes turns with a bare call of the model,
logits and no more, in the client's process. What the client does is in the figures too.

Then several clients ask at once, and the server is ended by SIGKILL while they do, and started again, three times.

==================  ===============================================================================================
metric              what
==================  ===============================================================================================
``overhead_ms``     median latency of a request less the median of the bare call
``p50_ms``          median latency; beside the bare call's
``p99_ms``          of all but one request in a hundred, at most; beside the bare call's
``requests_per_s``  one after another on one connection; and of four clients on four
``lost_records``    answered and not counted as spent, or counted and never sent; 0 unless something is wrong
``spent_records``   what the ledger says after the last kill; at least those answered, at most those sent
==================  ===============================================================================================
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tacit.audit.figures import one_thread
from tacit.core.errors import ConfigError, EndpointError
from tacit.nn.networks import initialise
from tacit.nn.spec import save_model
from tacit.prediction.client import Client

Note = Callable[[str], None]

BARE = "bare torch call"
DIGITS, BUDGET = 3, 10**9
CLIENTS, KILLS = 4, 3
REQUESTS, QUICK = 4000, 400


@dataclass(slots=True)
class Server:
    """`tacit serve` as a process of its own, on one state through restarts.

    Args:
        model: safetensors file.
        state: folder.
        options: of the command.
    """

    model: Path
    state: Path
    options: Sequence[str] = ()
    url: str = field(init=False)
    key: str = field(init=False, default="")
    process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        """Start it and wait until it takes connections.

        Raises:
            ConfigError: it ended; with what it said.
        """
        command = [sys.executable, "-m", "tacit.cli.main", "serve", str(self.model)]
        command += ["--state", str(self.state), "--port", "0", *self.options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 - this interpreter
        said = ""
        for line in self.process.stderr or ():
            said += line
            if line.startswith("key: "):
                self.key = line.split()[1]
            if line.startswith("serving "):
                self.url = line.split()[-1]
                return
        raise ConfigError(f"tacit serve ended: {said}")

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextmanager
def served(model: Path, state: Path, *options: str) -> Iterator[Server]:
    """A server while the context lasts."""
    found = Server(model, state, options)
    found.start()
    try:
        yield found
    finally:
        found.kill()


def serve(*, quick: bool, note: Note, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure the endpoint.

    Args:
        quick: fewer requests.
        note: told what is being measured.
        against: none; the bare call is always there.

    Raises:
        ConfigError: a peer was asked for.
    """
    if against:
        raise ConfigError("nothing is compared with in this benchmark: leave --against out")
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    initialise(model, generator)
    options = ("--digits", str(DIGITS), "--budget", str(BUDGET))
    with tempfile.TemporaryDirectory() as folder, one_thread():
        path = Path(folder) / "model.safetensors"
        save_model(model, (784,), path)
        rows = []
        with served(path, Path(folder) / "speed", *options) as server:
            for batch in (1, 64):
                requests = (QUICK if quick else REQUESTS) // (1 if batch == 1 else 4)
                note(f"batch {batch}: {requests} requests in turns with a bare call")
                inputs = torch.rand(batch, 784, generator=generator)
                rows += _latencies(server, model, inputs, requests)
                rows.append(_together(server, inputs, requests))
        note(f"{CLIENTS} clients, and {KILLS} times SIGKILL")
        with served(path, Path(folder) / "kill", *options) as server:
            rows += _killed(server, 0.3 if quick else 1.0)
        return rows


def _latencies(
    server: Server, model: nn.Module, inputs: torch.Tensor, requests: int
) -> list[dict[str, Any]]:
    bare, there = np.empty(requests), np.empty(requests)
    warm = requests // 10
    with Client(server.url, key=server.key) as client, torch.inference_mode():
        for at in range(-warm, requests):
            start = time.perf_counter()
            model(inputs)
            middle = time.perf_counter()
            client.scores(inputs)
            end = time.perf_counter()
            if at >= 0:
                bare[at], there[at] = middle - start, end - middle
    case = _case(len(inputs))
    half, most = (1000 * np.quantile(there, part) for part in (0.5, 0.99))
    bare_half, bare_most = (1000 * np.quantile(bare, part) for part in (0.5, 0.99))
    return [
        _row(case, "overhead_ms", half - bare_half),
        _row(case, "p50_ms", half, bare_half),
        _row(case, "p99_ms", most, bare_most),
        _row(case, "requests_per_s", requests / float(there.sum())),
    ]


def _together(server: Server, inputs: torch.Tensor, requests: int) -> dict[str, Any]:
    """Several clients at once, each in a thread of this process."""
    begin = threading.Barrier(CLIENTS + 1)

    def ask() -> None:
        with Client(server.url, key=server.key) as client:
            begin.wait()
            for _ in range(requests // CLIENTS):
                client.scores(inputs)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    return _row(
        f"{_case(len(inputs))} clients={CLIENTS}",
        "requests_per_s",
        CLIENTS * (requests // CLIENTS) / took,
    )


def _killed(server: Server, seconds: float) -> list[dict[str, Any]]:
    answered = sent = 0
    for _ in range(KILLS):
        told = under_load(server, seconds)
        answered, sent = answered + told[0], sent + told[1]
        server.start()
    with Client(server.url, key=server.key) as client:
        spent = client.spent()
    case = f"SIGKILL kills={KILLS} clients={CLIENTS}"
    return [
        _row(case, "lost_records", lost(answered, spent, sent)),
        _row(case, "answered_records", answered),
        _row(case, "spent_records", spent),
        _row(case, "sent_records", sent),
    ]


def lost(answered: int, spent: int, sent: int) -> int:
    """Records that were answered and not counted, or counted and never sent."""
    return max(0, answered - spent) + max(0, spent - sent)


def under_load(server: Server, seconds: float) -> tuple[int, int]:
    """Kill a server while clients ask it.

    Args:
        server: that runs; and runs no more afterwards.
        seconds: after which it is killed.

    Returns:
        Records that were answered, and that were sent.
    """
    answered, sent = [0] * CLIENTS, [0] * CLIENTS
    begin = threading.Barrier(CLIENTS + 1)

    def ask(which: int) -> None:
        with Client(server.url, key=server.key, retries=0) as client:
            shape = client.described.input_shape
            begin.wait()
            while True:
                count = 1 + (answered[which] + which) % 7
                try:
                    answered[which] += len(client.scores(torch.zeros(count, *shape)))
                except EndpointError:
                    break
                finally:
                    sent[which] = client.asked

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(CLIENTS)]
    for thread in threads:
        thread.start()
    begin.wait()
    time.sleep(seconds)
    server.kill()
    for thread in threads:
        thread.join()
    return sum(answered), sum(sent)


def _case(batch: int) -> str:
    return f"mnist mlp 784-128-10 batch={batch}"


def _row(case: str, metric: str, here: float, bare: float | None = None) -> dict[str, Any]:
    return {
        "case": case, "metric": metric, "tacit": float(here), "peer": None if bare is None else BARE,
        "peer_value": None if bare is None else float(bare), "ratio": None if bare is None else float(bare / here),
    }  # fmt: skip
