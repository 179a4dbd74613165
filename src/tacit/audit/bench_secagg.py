"""`tacit bench secagg`: rounds of secure aggregation, beside Flower's SecAgg+ where ``make peers`` has installed it.

Every round runs in a process of its own (`tacit.audit.secagg_round`; the peer's script in ``benchmarks/peers``), rounds of
both alternate, and medians are reported. Both are timed over the whole path: keys, sharing, quantising, masking,
serialising, summing, unmasking, dequantising. Both use the same quantisation, threshold and dropouts: these have
shared their secrets and never send a masked vector.

Metrics: ``server_cpu_s``; ``client_cpu_s``, one surviving member's; ``unmask_s``, from the last answer to the result;
``total_s``, all parties, the making of tacit's inputs included, one after another in one process up to 50 members, and in as
many processes as there are cores beyond; ``peak_rss_mb`` (10^6 bytes, all processes together);
``traffic_ratio``, bytes that a surviving member sends and receives over two bytes a value.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tacit.audit.secagg_round import RoundSettings
from tacit.core.errors import TacitError, UnknownName
from tacit.crypto.packing import packed_bytes

Note = Callable[[str], None]
Measured = dict[str, Any]

_METRICS = ("server_cpu_s", "client_cpu_s", "unmask_s", "total_s", "peak_rss_mb", "traffic_ratio")
_ROOT = Path(__file__).resolve().parents[3]
_PEERS = {"flower": ("flower", "flower_secagg.py")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A round that is measured.

    Args:
        settings: of the round.
        repeats: how often.
        peer: whether peers run it too.
        native: with the C kernels.
        traffic_at: tell the traffic at so many values: only the masked vector's length depends on it.
    """

    settings: RoundSettings
    repeats: int = 1
    peer: bool = False
    native: bool = True
    traffic_at: int | None = None

    @property
    def name(self) -> str:
        """As in the report: ``n=10 d=1000000 drop=0.3``."""
        s = self.settings
        graph = f" regular corrupted={s.corrupted:g}" if s.regular else ""
        kernels = "" if self.native else " numpy"
        return f"n={s.participants} d={self.traffic_at or s.values} drop={s.drop:g}{graph}{kernels}"


def cases(*, quick: bool) -> list[Case]:
    """The rounds of the benchmark; ``quick``: fewer repetitions, and no more than 50 members."""
    ten = RoundSettings(participants=10, values=1_000_000, drop=0.3)
    fifty = RoundSettings(participants=50, values=100_000, drop=0.3)
    cores = os.cpu_count() or 1
    complete = replace(fifty, participants=500, threads=cores, workers=cores)
    regular = replace(complete, participants=1000, values=1_000_000, regular=True)
    wide = replace(complete, participants=1024, values=1024, drop=0.0)
    small = [
        Case(settings=ten, repeats=3 if quick else 7, peer=True),
        Case(settings=fifty, repeats=1 if quick else 3, peer=True),
    ]
    small += [replace(case, native=False, peer=False) for case in small]
    if quick:
        return small
    large = [Case(settings=complete, repeats=3), Case(settings=regular, repeats=3)]
    return [
        *small,
        *large,
        *(replace(case, native=False, repeats=1) for case in large),
        Case(settings=wide, traffic_at=1 << 20),
    ]


def secagg(*, quick: bool, note: Note, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure every case.

    Args:
        quick: see `cases`.
        note: told what is being measured.
        against: peers: flower.

    Raises:
        UnknownName: no such peer.
        TacitError: a round failed, or gave a wrong result.
    """
    for name in against:
        if name not in _PEERS:
            raise UnknownName("peer", name, _PEERS)
        if not _peer_python(name).exists():
            note(
                f"{name} is not installed: run make peers in tacit's source tree; its figures stay empty"
            )
    rows = []
    for case in cases(quick=quick):
        ours: list[Measured] = []
        theirs: list[Measured] = []
        for repeat in range(case.repeats):
            note(f"{case.name} ({repeat + 1} of {case.repeats})")
            settings = replace(case.settings, seed=repeat)
            ours.append(_ours(settings, native=case.native))
            for name in against if case.peer else ():
                if _peer_python(name).exists():
                    note(f"{case.name}: {name}")
                    theirs.append(_theirs(name, settings))
        rows += _rows(case, ours, theirs)
    return rows


def _peer_python(name: str) -> Path:
    return _ROOT / ".peers" / _PEERS[name][0] / "bin" / "python"


def _ours(settings: RoundSettings, *, native: bool) -> Measured:
    command = [sys.executable, "-m", "tacit.audit.secagg_round", json.dumps(asdict(settings))]
    return _run(command, {} if native else {"TACIT_NATIVE": "0"})


def _theirs(name: str, settings: RoundSettings) -> Measured:
    command = [
        str(_peer_python(name)), str(_ROOT / "benchmarks" / "peers" / _PEERS[name][1]),
        "--participants", str(settings.participants), "--values", str(settings.values),
        "--drop", str(settings.drop), "--clip", "1.0", "--bits", str(settings.bits),
        "--threshold", str(settings.sharing().threshold), "--seed", str(settings.seed),
    ]  # fmt: skip
    return _run(command, {})


def _run(command: Sequence[str], environment: dict[str, str]) -> Measured:
    done = subprocess.run(  # noqa: S603 - our own scripts
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TacitError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
    try:
        found: Measured = json.loads(done.stdout)
    except ValueError:
        raise TacitError(f"{command[0]} printed no figures: {done.stdout.strip()[:200]}") from None
    return found


def _rows(case: Case, ours: Sequence[Measured], theirs: Sequence[Measured]) -> list[dict[str, Any]]:
    peer = theirs[0]["peer"] if theirs else None
    rows = []
    for metric in ("traffic_ratio",) if case.traffic_at else _METRICS:
        here = [_value(one, metric, case) for one in ours]
        there = [_value(one, metric, case) for one in theirs]
        mine, other = statistics.median(here), statistics.median(there) if there else None
        rows.append(
            {
                "case": case.name,
                "metric": metric,
                "tacit": mine,
                "peer": peer,
                "peer_value": other,
                "ratio": None if other is None else other / mine,
                "range": [min(here), max(here)],
                "peer_range": [min(there), max(there)] if there else None,
                "repeats": len(here),
                "kernels": ours[0]["kernels"],
                "sharing": ours[0]["sharing"],
            }
        )
    if ours[0]["failure"]:
        rows.append(
            {**rows[0], "metric": "failure_probability", "tacit": ours[0]["failure"], "range": None}
        )
    return rows


def _value(measured: Measured, metric: str, case: Case) -> float:
    if metric != "traffic_ratio":
        return float(measured[metric])
    values, sent = case.settings.values, measured["bytes_per_client"]
    if case.traffic_at:
        sent += packed_bytes(case.traffic_at + 2, measured["width"]) - measured["vector_bytes"]
        values = case.traffic_at
    return float(sent / (2 * values))
