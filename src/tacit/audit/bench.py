"""`tacit bench`: speed, bytes and memory, as rows of the machine-readable contract.

A row names its case and metric; ``peer`` and ``ratio`` are null where no peer was measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tacit.audit.bench_dp_sgd import dp_sgd
from tacit.audit.bench_extraction import extraction
from tacit.audit.bench_secagg import secagg
from tacit.audit.bench_serve import serve
from tacit.audit.bench_shadows import shadows
from tacit.audit.bench_transport import Echo, between_processes
from tacit.audit.bench_two_party import two_party
from tacit.audit.bench_two_server import two_server
from tacit.core.errors import ConfigError, UnknownName
from tacit.core.wire import Message
from tacit.parties.links.local import LocalHub, outputs_of, run_pair
from tacit.parties.pair import Channel
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.star import ask

Note = Callable[[str], None]


def _row(case: str, metric: str, value: float) -> dict[str, Any]:
    return {
        "case": case,
        "metric": metric,
        "tacit": value,
        "peer": None,
        "peer_value": None,
        "ratio": None,
    }


def _wave(members: int, payload: int) -> tuple[LocalHub, Callable[[], float]]:
    hub = LocalHub({role: Echo() for role in owners(members)})

    def once() -> float:
        requests = {
            role: Message("ask", payload=np.zeros(payload, np.uint8)) for role in hub.members()
        }
        start = time.perf_counter()
        ask(hub, requests)
        return time.perf_counter() - start

    return hub, once


def transport(*, quick: bool, note: Note, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The star and the pair, in one process and between processes over TLS: waves, overhead, throughput, round trips.

    Rows of links between processes have a peer: a bare TLS socket, measured in turns with them (`bench_transport`).

    Args:
        quick: fewer repetitions.
        note: told what is being measured.
        against: none; the bare socket is always there.

    Raises:
        ConfigError: a peer was asked for.
    """
    if against:
        raise ConfigError("nothing is compared with in this benchmark: leave --against out")
    repeats = 5 if quick else 25
    rows = between_processes(quick=quick, note=note)  # first, since a fork takes no threads along

    note("hub: 1000 members, a distinct message of 1000 bytes each way")
    _, once = _wave(1000, 1000)
    once()
    rows.append(
        _row("hub n=1000 payload=1000", "wave_s", statistics.median(once() for _ in range(repeats)))
    )

    note("hub: 10 members, four waves")
    hub, once = _wave(10, 1000)
    once()
    overheads = []
    for _ in range(repeats):
        inside = sum(hub.cost.total(role=role).seconds for role in hub.members())
        wall = sum(once() for _ in range(4))
        overheads.append(
            wall - (sum(hub.cost.total(role=role).seconds for role in hub.members()) - inside)
        )
    rows.append(_row("hub n=10", "overhead_s", statistics.median(overheads)))

    note("hub: 16 MB arrays")
    size = 16_000_000
    _, once = _wave(2, size)
    once()
    seconds = statistics.median(once() for _ in range(repeats))
    rows.append(_row("hub n=2 payload=16000000", "bytes_per_s", 4 * size / seconds))

    note("channel: 16 MB arrays exchanged")
    first, second = SERVER, Role("server", 1)

    def party(peer: Role) -> Callable[[Mapping[Role, Channel]], float]:
        def talk(channels: Mapping[Role, Channel]) -> float:
            array = np.zeros(size // 4, np.float32)
            channels[peer].exchange("warm", array)
            start = time.perf_counter()
            for _ in range(repeats):
                channels[peer].exchange("open", array)
            return time.perf_counter() - start

        return talk

    took = max(outputs_of(run_pair({first: party(second), second: party(first)})).values())
    rows.append(_row("channel payload=16000000", "bytes_per_s", 2 * size * repeats / took))
    return rows


BENCHES: Mapping[str, Callable[..., list[dict[str, Any]]]] = {
    "transport": transport,
    "secagg": secagg,
    "dp-sgd": dp_sgd,
    "shadows": shadows,
    "extraction": extraction,
    "serve": serve,
    "two-party": two_party,
    "two-server": two_server,
}


def bench(
    name: str, *, quick: bool = False, against: Sequence[str] = (), note: Note = print
) -> dict[str, Any]:
    """Run a benchmark.

    Args:
        name: one of `BENCHES`.
        quick: fewer repetitions.
        against: peers that are measured in the same run, where they are installed.
        note: told what is being measured.

    Raises:
        UnknownName: there is no such benchmark, or no such peer.
        ConfigError: it has no peers.
    """
    if name not in BENCHES:
        raise UnknownName("benchmark", name, BENCHES)
    return {"bench": name, "rows": BENCHES[name](quick=quick, note=note, against=against)}
