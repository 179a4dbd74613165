"""`tacit bench two-party`: operations of two parties, beside SPU and CrypTen where ``make peers`` has installed them.

Both sides of a comparison are two processes of this machine with one thread each, alive all the time, which take turns: in
a turn tacit and then every peer run the case three times, one after another, and medians over all are reported. Inputs are
shared before the clock starts; it stops when both parties have their share of the result. SPU is measured twice: held to one
thread, which it is not by its own settings, and as it comes.

Rows of `matmul` and `relu` have the dealer in the loop, as SPU's SEMI2K and CrypTen have theirs: in the process of a server,
which is not secure, and spares all of them a third process and what it would send. Rows ``without dealer`` are what two
parties do alone: oblivious transfers, tables and all that is sent are in the figures, but for the base transfers, which
happen once; SPU's CHEETAH is measured in the same way. ``tls`` rows are the same over mutually authenticated TLS.

Metrics: ``seconds``; ``bytes_sent``, by the party that sends more, and ``rounds``, both of the online phase where there is a
dealer; ``offline_bytes``, what the party that sends more sends before, or what a dealer of its own would send; and
``offline_cpu_s`` and ``online_cpu_s``, computing of the slower party. Kernels: gates and transfers a second on one core.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tacit.audit.peers import PEERS, Measured, Peer
from tacit.core.coins import Coins
from tacit.core.cost import Cost
from tacit.core.errors import TacitError, UnknownName
from tacit.crypto.bits import unpack_plane
from tacit.crypto.circuits import sign_of_sum
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.garbled import evaluate, garble
from tacit.crypto.kernels import kernel_names, native
from tacit.crypto.ot import (
    ExtensionReceiver,
    ExtensionSender,
    delta_of,
    random_keys_receiver,
    random_keys_sender,
)
from tacit.crypto.ring import Z64, Elements
from tacit.crypto.sharing import share
from tacit.parties.credentials import issue_all, load
from tacit.parties.links.tcp import listen
from tacit.parties.links.tcp_pair import LinkChannel, channel_over, run_party
from tacit.parties.roles import Role
from tacit.parties.two_party import arithmetic, boolean, garbling
from tacit.parties.two_party.correlations import Correlation, Masks, Material, Plan, uniform
from tacit.parties.two_party.dealer import KEY_BYTES, NAME_BYTES, Arriving, draw, split
from tacit.parties.two_party.oblivious import ByTransfer
from tacit.parties.two_party.session import (
    OFFLINE,
    ONLINE,
    CheckedWire,
    Expected,
    Session,
    start,
    traced,
)
from tacit.parties.two_party.store import Preprocessor, StreamedStore
from tacit.parties.two_party.transfers import Transfers, begin

Note = Callable[[str], None]

SERVERS = Role("server", 0), Role("server", 1)
FIXED = FixedPoint(16)
IN_A_ROW = 3

_LONG = 3600.0  # seconds that a party waits while peers are measured
_ASKED = {"spu": ("spu", "spu-threads", "cheetah"), "crypten": ("crypten",)}


# --- what is computed


@dataclass(frozen=True, slots=True)
class Case:
    """A computation that is measured.

    Args:
        name: of it and its size.
        request: what peers are asked for.
        shapes: of its inputs.
        dealer: whether there is one.
        peers: who is measured beside it.
        draw: makes the inputs; uniform ones if left out.
        in_a_row: runs in a turn.
        turns: at most so many, and none for warmth; 0 for as many as are asked for.
        tolerance: how far a result may be off.
        apart: give offline and online bytes, rounds and seconds rows of their own.
    """

    name: str
    request: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    compute: Callable[[Session, Sequence[Elements]], Elements]
    expected: Callable[[Sequence[Any]], Any]
    dealer: bool = True
    peers: tuple[str, ...] = ()
    draw: Callable[[Coins], list[Any]] | None = None
    in_a_row: int = IN_A_ROW
    turns: int = 0
    tolerance: float = 2.0**-6
    apart: bool = False


def _matmul(session: Session, inputs: Sequence[Elements]) -> Elements:
    return arithmetic.truncate(session, arithmetic.matmul(session, *inputs))


def _relu(session: Session, inputs: Sequence[Elements]) -> Elements:
    return boolean.relu(session, inputs[0])[0]


def _relu_alone(session: Session, inputs: Sequence[Elements]) -> Elements:
    positive = boolean.inverted(session, garbling.sign(session, inputs[0]))
    return boolean.select(session, positive, inputs[0])


def cases() -> tuple[Case, ...]:
    """The computations of the benchmark."""
    matmul = {"case": "matmul", "shape": [128, 784, 128]}
    relu = {"case": "relu", "shape": [100_000]}
    both = "spu", "spu-threads", "crypten"
    return (
        Case(
            "matmul 128x784x128", matmul, ((128, 784), (784, 128)), _matmul,
            lambda x: x[0] @ x[1], peers=both,
        ),
        Case("relu n=100000", relu, ((100_000,),), _relu, lambda x: np.maximum(x[0], 0), peers=both),
        Case(
            "relu n=100000 without dealer", relu, ((100_000,),), _relu_alone,
            lambda x: np.maximum(x[0], 0), dealer=False, peers=("cheetah",),
        ),
    )  # fmt: skip


# --- the dealer in the loop


class Colocated:
    """Preprocessing with the dealer in server 1's process: for measurements alone, since server 1 then knows every mask.

    Server 0 expands all that it needs from a key, as with any dealer; what server 1 lacks stays where it is made.

    Args:
        channel: to the other server.
        party: 0 or 1.
        plan: the correlations.
        coins: of server 1.
    """

    def __init__(self, channel: LinkChannel, party: int, plan: Plan, coins: Coins) -> None:
        self.plan, self._party = plan, party
        self._wire = wire = CheckedWire(channel)
        if party == 0:
            sizes = KEY_BYTES, NAME_BYTES
            key, name = wire.recv("dealer start", [Expected((size,), "u1") for size in sizes])
            self.name = name.tobytes()
            self._coins = Coins.expanding(key.tobytes()), Coins.expanding(bytes(KEY_BYTES))
        else:
            keys, self.name = [coins.bytes(KEY_BYTES) for _ in SERVERS], coins.bytes(NAME_BYTES)
            wire.send(
                "dealer start", *(np.frombuffer(part, np.uint8) for part in (keys[0], self.name))
            )
            self._coins = Coins.expanding(keys[0]), Coins.expanding(keys[1])
        self._masks = Masks(plan)

    def prepare(self, numbers: range) -> Sequence[Material]:
        """This server's part of these correlations."""
        return [self._one(number, self.plan.correlations[number]) for number in numbers]

    def _one(self, number: int, correlation: Correlation) -> Material:
        ring, derived = self.plan.ring, correlation.derived()
        if self._party == 0:
            fields = (*correlation.free(), *derived)
            return uniform(fields, ring, self._coins[0], 0)
        both, free = draw(correlation, ring, self._coins)
        self._masks.keep(correlation, free)
        names = [field.name for field in derived]

        def make() -> Mapping[str, Elements]:
            with self._wire.during(OFFLINE):
                _, lacking = split(correlation, ring, self._coins[0], free, self._masks)
                self._masks.done(number)
            return dict(zip(names, lacking, strict=True))

        return Arriving(both[1], names, make)


# --- two processes


@dataclass(slots=True)
class Worker:
    """One party of the pair that is measured; both run `live` in step.

    Args:
        channel: to the other.
        party: 0 or 1.
    """

    channel: LinkChannel
    party: int
    coins: Coins = field(default_factory=Coins)
    transfers: Transfers | None = None
    dealt: int = 0
    _store: StreamedStore | None = None
    _prepared: dict[str, tuple[list[Elements], Any]] = field(default_factory=dict)

    def ready(self, case: Case, inputs: Sequence[Elements]) -> Callable[[], Elements]:
        """Everything that is not timed: the plan, keys, base transfers, the session's start."""
        plan = traced(
            lambda session: [case.compute(session, inputs) for _ in range(case.in_a_row)], FIXED
        )
        preprocessor: Preprocessor
        if case.dealer:
            derived = [part for one in plan.correlations for part in one.derived()]
            self.dealt = 8 * sum(prod(part.shape) for part in derived) // case.in_a_row
            preprocessor = Colocated(self.channel, self.party, plan, self.coins)
        else:
            if self.transfers is None:
                self.transfers = begin(CheckedWire(self.channel), self.party, self.coins)
            preprocessor = ByTransfer(self.channel, self.party, plan, self.coins, self.transfers)
        self._store = StreamedStore(preprocessor, 1)
        session = start(
            self.channel, self.party, FIXED, self._store, self.coins, transfers=self.transfers
        )
        return lambda: case.compute(session, inputs)

    def run(self, case: Case) -> list[Measured]:
        """One turn, of this party."""
        if case.name not in self._prepared:
            values = _inputs(case)
            shared = [
                share(FIXED.encode(value), Z64, Coins.from_seed(b"shares")) for value in values
            ]
            mine = [both[self.party] for both in shared]
            self._prepared[case.name] = mine, case.expected(values)
        inputs, expected = self._prepared[case.name]
        once = self.ready(case, inputs)
        found = [self._timed(once, expected) for _ in range(case.in_a_row)]
        if case.dealer:
            for one in found:
                one[OFFLINE]["bytes_sent"] = self.dealt
        return found

    def _timed(self, once: Callable[[], Elements], expected: Any) -> Measured:
        before, waited = self._costs(), self._waited()
        self.channel.exchange("go")
        begun = time.perf_counter()
        mine = once()
        seconds = time.perf_counter() - begun
        after = self._costs()
        (theirs,) = self.channel.exchange("open", mine)
        error = float(np.abs(FIXED.decode(mine + theirs) - expected).max())
        waited = self._waited() - waited
        found: Measured = {"seconds": seconds, "error": error, "waited": waited}
        for phase in (OFFLINE, ONLINE):
            found[phase] = {
                name: getattr(after[phase], name) - getattr(before[phase], name)
                for name in ("bytes_sent", "rounds", "seconds")
            }
        return found

    def _waited(self) -> float:
        return self._store.seconds if self._store else 0.0

    def _costs(self) -> dict[str, Cost]:
        books = self.channel.books
        books.relabel(books.label)
        return {phase: books.cost.total(phase=phase) for phase in (OFFLINE, ONLINE)}


def _inputs(case: Case) -> list[Any]:
    """The same in both processes."""
    coins = Coins.from_seed(case.name.encode())
    if case.draw is not None:
        return case.draw(coins)
    scale = 4.0 if case.request["case"] == "relu" else 1.0
    return [scale * (2.0 * coins.unit(shape) - 1.0) for shape in case.shapes]


def _follow(channel: LinkChannel, known: Mapping[str, Case]) -> None:
    """Party 1: run what party 0 says."""
    worker = Worker(channel, 1)
    while True:
        (asked,) = channel.recv("case")
        name = asked.tobytes().decode()
        if not name:
            return
        found = worker.run(known[name])
        channel.send("measured", np.frombuffer(json.dumps(found).encode(), np.uint8))


@dataclass(slots=True)
class Pair:
    """Party 0, here, and party 1, in a process of its own.

    Args:
        worker: party 0.
    """

    worker: Worker

    def measure(self, case: Case) -> list[tuple[Measured, Measured]]:
        """One turn: what both parties measured."""
        channel = self.worker.channel
        channel.send("case", np.frombuffer(case.name.encode(), np.uint8))
        mine = self.worker.run(case)
        (other,) = channel.recv("measured")
        return list(zip(mine, json.loads(other.tobytes()), strict=True))


def _one_thread() -> None:
    import torch  # noqa: PLC0415 - and the fork below goes before it starts threads

    torch.set_num_threads(1)


@contextmanager
def _forked(run: Callable[[], None]) -> Iterator[None]:
    def alone() -> None:
        _one_thread()
        with suppress(TacitError, OSError):
            run()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=alone, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def plain_pair(known: Mapping[str, Case]) -> Iterator[Pair]:
    """Two processes and a socket pair between them, without TLS."""
    here, there = socket.socketpair()

    def far() -> None:
        here.close()
        with channel_over(there, SERVERS[1], SERVERS[0], deadline=_LONG) as channel:
            _follow(channel, known)

    with _forked(far):
        there.close()
        with channel_over(here, SERVERS[0], SERVERS[1], deadline=_LONG) as channel:
            yield Pair(Worker(channel, 0))
            channel.send("case", np.empty(0, np.uint8))


def over_tls(known: Mapping[str, Case], measure: Callable[[Pair], None]) -> None:
    """Two processes with TLS between them, on loopback."""
    with tempfile.TemporaryDirectory(prefix="tacit-") as made:
        folder = Path(made)
        issue_all(folder, "bench", SERVERS, coins=Coins())
        door = listen(("127.0.0.1", 0))
        addresses = {SERVERS[0]: door.getsockname()[:2], SERVERS[1]: ("127.0.0.1", 0)}

        def far() -> None:
            door.close()

            def follow(channels: Any) -> None:
                _follow(channels[SERVERS[0]], known)

            run_party(follow, load(folder / "server-1"), addresses, deadline=_LONG)

        def near(channels: Any) -> None:
            channel = channels[SERVERS[1]]
            measure(Pair(Worker(channel, 0)))
            channel.send("case", np.empty(0, np.uint8))

        with _forked(far):
            run_party(near, load(folder / "server-0"), addresses, listening=door, deadline=_LONG)


# --- kernels


def _rate(count: int, run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return count / statistics.median(seconds)


def kernel_rates(repeats: int) -> dict[str, float]:
    """Gates and transfers a second, on one core, as called from Python."""
    coins, circuit, lanes = Coins(), sign_of_sum(64, shallow=False), 2048
    own = coins.uint64((64, lanes // 64))
    delta, key = delta_of(coins), coins.bytes(16)
    zero = coins.uint64((64, lanes, 2))
    made = garble(circuit, own, zero, delta, key)
    gates = circuit.ands * lanes
    words = 1 << 12
    pairs = np.frombuffer(coins.bytes(128 * 32), np.uint8).reshape(128, 2, 16)
    chosen = pairs[np.arange(128), unpack_plane(delta, 128)]
    bits = coins.uint64((words,))
    receiver, sender = ExtensionReceiver(pairs), ExtensionSender(delta, chosen)
    u, _ = ExtensionReceiver(pairs).extend(bits)

    def receive() -> None:
        random_keys_receiver(receiver.extend(bits)[1], key, 0)

    def send() -> None:
        random_keys_sender(sender.extend(u), delta, key, 0)

    return {
        "garble_and_per_s": _rate(gates, lambda: garble(circuit, own, zero, delta, key), repeats),
        "evaluate_and_per_s": _rate(
            gates, lambda: evaluate(circuit, zero, made.tables, key), repeats
        ),
        "iknp_ot_per_s": min(_rate(64 * words, run, repeats) for run in (receive, send)),
    }


@contextmanager
def _numpy_only() -> Iterator[None]:
    before = os.environ.get("TACIT_NATIVE")
    os.environ["TACIT_NATIVE"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TACIT_NATIVE"]
        else:
            os.environ["TACIT_NATIVE"] = before


# --- rows


def two_party(*, quick: bool, note: Note, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure every case.

    Args:
        quick: two turns instead of seven, and nothing over TLS.
        note: told what is being measured.
        against: peers: spu, crypten.

    Raises:
        UnknownName: no such peer.
        TacitError: a result was wrong, or a peer failed.
    """
    wanted = installed(against, note)
    repeats, known = 2 if quick else 7, {case.name: case for case in cases()}
    rows = beside_peers(known, wanted, repeats, note)
    if not quick:

        def measure(pair: Pair) -> None:
            for case in known.values():
                rows.extend(_case_rows(case, pair, {}, repeats, note, tls=True))

        over_tls(known, measure)
    note("kernels")
    times = 3 if quick else 15
    if native() is not None:
        rows += [_row("kernels C", name, rate) for name, rate in kernel_rates(times).items()]
    with _numpy_only():
        rows += [_row("kernels numpy", name, rate) for name, rate in kernel_rates(times).items()]
    return rows


def installed(against: Sequence[str], note: Note) -> list[str]:
    """Those of `PEERS` that are asked for and there; says which are not.

    Raises:
        UnknownName: no such peer.
    """
    wanted: list[str] = []
    for name in against:
        if name not in _ASKED:
            raise UnknownName("peer", name, _ASKED)
        if PEERS[name].python.exists():
            wanted += _ASKED[name]
        else:
            note(
                f"{name} is not installed: run make peers in tacit's source tree; its figures stay empty"
            )
    return wanted


def beside_peers(
    known: Mapping[str, Case], wanted: Sequence[str], repeats: int, note: Note
) -> list[dict[str, Any]]:
    """The rows of cases, measured in turns with those of the ``wanted`` peers that they name.

    Raises:
        TacitError: a result was wrong, or a peer failed.
    """
    with ExitStack() as stack:
        pair = stack.enter_context(plain_pair(known))  # first, since a fork takes no threads along
        _one_thread()
        peers = {
            name: Peer(name) for name in wanted if any(name in c.peers for c in known.values())
        }
        for peer in peers.values():
            stack.callback(peer.close)
        return [
            row for case in known.values() for row in _case_rows(case, pair, peers, repeats, note)
        ]


def _row(
    case: str,
    metric: str,
    here: float,
    peer: str | None = None,
    there: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    ratio = None if there is None else there / here if here else None
    return {
        "case": case, "metric": metric, "tacit": here, "peer": peer, "peer_value": there, "ratio": ratio,
        "kernels": kernel_names(), **more,
    }  # fmt: skip


def _case_rows(
    case: Case,
    pair: Pair,
    peers: Mapping[str, Peer],
    repeats: int,
    note: Note,
    *,
    tls: bool = False,
) -> list[dict[str, Any]]:
    beside = [peers[name] for name in case.peers if name in peers]
    ours: list[tuple[Measured, Measured]] = []
    theirs: dict[str, list[Measured]] = {peer.name: [] for peer in beside}
    name = f"{case.name} tls" if tls else case.name
    if case.turns:
        repeats = min(repeats, case.turns)
    else:  # warm
        pair.measure(case)
        for peer in beside:
            peer.measure(case.request)
    for number in range(repeats):
        note(f"{name} ({number + 1} of {repeats})")
        ours += pair.measure(case)
        for peer in beside:
            theirs[peer.name] += [peer.measure(case.request) for _ in range(case.in_a_row)]
    if (worst := max(one["error"] for both in ours for one in both)) > case.tolerance:
        raise TacitError(f"{name}: wrong by {worst:g}")
    seconds = [max(one["seconds"] for one in both) for both in ours]
    counted = ONLINE if case.dealer else None
    here = {
        "seconds": statistics.median(seconds),
        "bytes_sent": max(_sent(one, counted) for one in ours[-1]),
        "rounds": max(_rounds(one, counted) for one in ours[-1]),
    }
    rows = []
    for rival in theirs or ("",):
        found = theirs.get(rival, [])
        for metric, value in here.items():
            there = (
                statistics.median(
                    max(one[metric]) if metric == "bytes_sent" else one[metric] for one in found
                )
                if found
                else None
            )
            spread: dict[str, Any] = {}
            if metric == "seconds":
                spread = {"range": [min(seconds), max(seconds)], "turns": repeats}
                if found:
                    times = [one["seconds"] for one in found]
                    spread["peer_range"] = [min(times), max(times)]
            rows.append(_row(name, metric, value, rival or None, there, **spread))
    rows.append(_row(name, "offline_bytes", max(_sent(one, OFFLINE) for one in ours[-1])))
    for phase in (OFFLINE, ONLINE):
        computing = statistics.median(max(one[phase]["seconds"] for one in both) for both in ours)
        rows.append(_row(name, f"{phase}_cpu_s", computing))
    if case.apart:
        rows.append(_row(name, "online_bytes", max(_sent(one, ONLINE) for one in ours[-1])))
        for phase in (OFFLINE, ONLINE):
            rows.append(_row(name, f"{phase}_rounds", max(_rounds(one, phase) for one in ours[-1])))
        waited = [max(one["waited"] for one in both) for both in ours]
        rows.append(_row(name, "offline_s", statistics.median(waited)))
    return rows


def _sent(one: Measured, phase: str | None) -> int:
    return sum(one[part]["bytes_sent"] for part in (OFFLINE, ONLINE) if phase in (None, part))


def _rounds(one: Measured, phase: str | None) -> int:
    return sum(one[part]["rounds"] for part in (OFFLINE, ONLINE) if phase in (None, part))
