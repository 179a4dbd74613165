"""What the two-party peers share: cases, line protocol, and two processes that end with this one.

A peer's script starts two processes, one a party, which talk over loopback and stay alive. It then
reads requests from stdin, one JSON object a line, and answers each with one line on stdout (logs of
all three processes go to stderr), so that a benchmark can take turns between peers:

    {"case": "matmul", "shape": [m, k, n]}   an m x k by a k x n matrix, in [-1, 1]
    {"case": "relu", "shape": [n, ...]}      values in [-4, 4]
    {"case": "mlp", "shape": [batch]}        forward through 784-128-128-10, ReLU, without biases
    {"case": "sgd-step", "shape": [batch]}   forward, backward with (output - target) / batch as the
                                             error at the output, gradients, weights less 1/8 of them;
                                             with "softmax": "relu-sum", what each output's positive
                                             part is of their sum takes the place of the output
    {"quit": true}                           ends, as closing stdin or SIGTERM does

    {"seconds": 0.2, "cpu_seconds": [0.2, 0.2], "bytes_sent": [10, 10], "rounds": 2, "error": 1e-4}

or `{"refused": "why"}`. Inputs of a case are drawn, shared and kept when it is first asked for, and
it is run once for warmth. Then, and for each request to come: both parties meet at a barrier, run
the case on the shares they hold into shares of the result, and only then open it to find the
largest error against float. `seconds` is the wall time of party 0 from the barrier to its shares of
the result. `cpu_seconds` is process CPU of either party in that span, network threads included: what
computes has one thread a party.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

LAYERS = (784, 128, 128, 10)
RATE = 0.125
# What libraries read when the parties load them. The limit binds those that ask OpenMP for more
# threads than the default, as SPU does for products of matrices.
ONE_THREAD = {
    "OMP_THREAD_LIMIT": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "YACL_NUM_THREADS": "1",
}
UNIT = 2.0**-16  # for each output, added to a sum that is divided by
RELU_SUM = "relu-sum"
DIMENSIONS = {"matmul": (3,), "relu": (1, 2, 3, 4), "mlp": (1,), "sgd-step": (1,)}


class Case(NamedTuple):
    """What to compute, and on what size."""

    name: str
    shape: tuple[int, ...]
    softmax: str = ""


class Traffic(NamedTuple):
    """What one party sent in one run: payload bytes, and messages or rounds as the peer counts."""

    bytes_sent: int
    rounds: int


class Party(Protocol):
    """One party of a peer's protocol, connected to the other."""

    def load(self, case: Case, arrays: list[np.ndarray]) -> None:
        """Share the inputs, keep the shares, compile, and run once."""

    def barrier(self) -> None:
        """Wait for the other party."""

    def run(self, case: Case) -> None:
        """Compute shares of the result from the shares kept."""

    def traffic(self, case: Case) -> Traffic:
        """What this party sent in the last run of the case."""

    def reveal(self, case: Case) -> list[np.ndarray]:
        """Open the result of the last run; empty but at party 0."""


def draw(case: Case) -> list[np.ndarray]:
    """The inputs of a case, float32, the same at every call."""
    rng = np.random.default_rng(2017)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(np.float32)

    if case.name == "matmul":
        m, k, n = case.shape
        return [uniform(-1, 1, m, k), uniform(-1, 1, k, n)]
    if case.name == "relu":
        return [uniform(-4, 4, *case.shape)]
    (batch,) = case.shape
    arrays = [uniform(0, 1, batch, LAYERS[0])]
    if case.name == "sgd-step":
        arrays.append(np.eye(LAYERS[-1], dtype=np.float32)[rng.integers(0, LAYERS[-1], batch)])
    for wide, narrow in itertools.pairwise(LAYERS):
        arrays.append(uniform(-1, 1, wide, narrow) / np.float32(wide**0.5))
    return arrays


def compute(xp: Any, case: Case, arrays: Sequence[Any]) -> list[Any]:
    """The results of a case, in `xp`, which is numpy or has its functions."""
    if case.name == "matmul":
        return [arrays[0] @ arrays[1]]
    if case.name == "relu":
        return [xp.maximum(arrays[0], 0)]
    if case.name == "mlp":
        x, w1, w2, w3 = arrays
        return [xp.maximum(xp.maximum(x @ w1, 0) @ w2, 0) @ w3]
    x, target, w1, w2, w3 = arrays
    z1 = x @ w1
    on1 = z1 > 0
    a1 = xp.where(on1, z1, 0)
    z2 = a1 @ w2
    on2 = z2 > 0
    a2 = xp.where(on2, z2, 0)
    predicted = a2 @ w3
    if case.softmax:
        positive = xp.maximum(predicted, 0)
        whole = xp.sum(positive, axis=1, keepdims=True) + LAYERS[-1] * UNIT
        predicted = positive / whole
    e3 = (predicted - target) * (1 / case.shape[0])
    e2 = xp.where(on2, e3 @ w3.T, 0)
    e1 = xp.where(on1, e2 @ w2.T, 0)
    return [w1 - x.T @ e1 * RATE, w2 - a1.T @ e2 * RATE, w3 - a2.T @ e3 * RATE]


def settings(description: str) -> argparse.ArgumentParser:
    """The options that every peer has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--port", type=int, default=0, help="first of two loopback ports; default: two free ones"
    )
    return parser


def choose_ports(first: int) -> tuple[int, int]:
    """The two ports from `first` on, or two that were free a moment ago."""
    if first:
        return first, first + 1
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def serve(banner: dict[str, str], connect: Callable[..., Party], *arguments: Any) -> None:
    """Start two processes that call `connect(rank, *arguments)`, and answer requests from stdin."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if "TACIT_PEER_THREADS" not in os.environ:  # for the figure that a peer has as it comes
        os.environ |= ONE_THREAD  # the parties inherit it
    spawn = multiprocessing.get_context("spawn")
    ends, processes = [], []
    try:
        for rank in range(2):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_live, args=(theirs, connect, rank, *arguments))
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        _gather(ends)
        print(json.dumps(banner), file=out, flush=True)
        for line in sys.stdin:
            try:
                case = _read(line)
            except ValueError as error:
                print(json.dumps({"refused": str(error)}), file=out, flush=True)
                continue
            if case is None:
                break
            for end in ends:
                end.send_bytes(json.dumps(case).encode())
            print(json.dumps(_merge(_gather(ends))), file=out, flush=True)
    except (BrokenPipeError, EOFError):
        sys.exit("A party, or who reads the answers, has ended.")
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _read(line: str) -> Case | None:
    """The case that a line asks for; None to quit."""
    try:
        request = json.loads(line)
        if "quit" in request:
            return None
        case = Case(request["case"], tuple(request["shape"]), request.get("softmax", ""))
        possible = DIMENSIONS[case.name]
    except (ValueError, KeyError, TypeError) as error:
        wanted = f'{{"case": one of {", ".join(DIMENSIONS)}, "shape": [..]}}'
        raise ValueError(f"expected {wanted}, got {line.strip()}") from error
    if len(case.shape) not in possible or any(type(n) is not int or n < 1 for n in case.shape):
        raise ValueError(f"{case.name} takes {possible} sizes of 1 or more, got {case.shape}")
    if case.softmax and (case.name, case.softmax) != ("sgd-step", RELU_SUM):
        raise ValueError(f"softmax is {RELU_SUM} or left out, and for sgd-step alone")
    return case


def _gather(ends: list[Connection]) -> list[Any]:
    """The next message of either party; EOFError as soon as one of them has ended."""
    messages: dict[Connection, Any] = {}
    while len(messages) < len(ends):
        for end in connection.wait([end for end in ends if end not in messages]):
            messages[end] = json.loads(end.recv_bytes())
    return [messages[end] for end in ends]


def _merge(parties: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": parties[0]["seconds"],
        "cpu_seconds": [party["cpu_seconds"] for party in parties],
        "bytes_sent": [party["bytes_sent"] for party in parties],
        "rounds": parties[0]["rounds"],
        "error": parties[0]["error"],
    }


def _live(end: Connection, connect: Callable[..., Party], rank: int, *arguments: Any) -> None:
    """A party's process: answer until the parent's end of the pipe closes, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends both
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    party = connect(rank, *arguments)
    loaded: set[Case] = set()
    with contextlib.suppress(EOFError):
        end.send_bytes(b"null")
        while True:
            name, shape, softmax = json.loads(end.recv_bytes())
            case = Case(name, tuple(shape), softmax)
            arrays = draw(case)
            if case not in loaded:
                party.load(case, arrays)
                loaded.add(case)
            end.send_bytes(json.dumps(_measure(party, case, arrays)).encode())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _measure(party: Party, case: Case, arrays: list[np.ndarray]) -> dict[str, Any]:
    gc.collect()
    party.barrier()
    cpu = time.process_time()
    wall = time.perf_counter()
    party.run(case)
    seconds = time.perf_counter() - wall
    cpu_seconds = time.process_time() - cpu
    traffic = party.traffic(case)
    opened = party.reveal(case)
    expected = compute(np, case, [array.astype(np.float64) for array in arrays])
    error = max(
        (float(np.abs(o - e).max()) for o, e in zip(opened, expected, strict=False)), default=0.0
    )
    return {
        "seconds": round(seconds, 9),
        "cpu_seconds": round(cpu_seconds, 9),
        "bytes_sent": traffic.bytes_sent,
        "rounds": traffic.rounds,
        "error": error,
    }
