"""`tacit bench dp-sgd`: a step of differentially private SGD beside a plain one, and beside Opacus's ghost clipping.

One thread, CPU time. Private and plain steps take turns inside one training (`tacit.audit.dp_sgd_step`); Opacus's, where
``make peers`` has installed it, in a process of its own, its private and plain steps in turns too, and blocks of both
processes alternate. Medians over all steps.

Metrics: ``step_s``; ``step_vs_plain``, over the plain step of the same process; ``extra_memory_mb`` (10^6 bytes), the
largest memory of a process that takes private steps less that of one that takes plain ones. Opacus steps on one batch that
stays the same, without lots, and with noise of torch's generator.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tacit.audit.dp_sgd_step import steps
from tacit.audit.figures import one_thread
from tacit.audit.peers import PEERS, Peer
from tacit.core.errors import TacitError, UnknownName
from tacit.dp.noise import GaussianKind

Note = Callable[[str], None]

_ONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Case(NamedTuple):
    """A network and a lot.

    Args:
        network: mlp, cnn or encoder.
        batch: records.
        steps: in a block.
    """

    network: str
    batch: int
    steps: int

    @property
    def name(self) -> str:
        """As in the report."""
        return f"{self.network} {'lot' if self.network == 'mlp' else 'batch'}={self.batch}"


CASES = Case("mlp", 600, 100), Case("cnn", 256, 50), Case("encoder", 16, 8)


def dp_sgd(*, quick: bool, note: Note, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure every case.

    Args:
        quick: one block instead of five, and no memory.
        note: told what is being measured.
        against: peers: opacus.

    Raises:
        UnknownName: no such peer.
        TacitError: a peer failed.
    """
    for name in against:
        if name != "opacus":
            raise UnknownName("peer", name, ["opacus"])
    beside = "opacus" in against
    if beside and not PEERS["opacus"].python.exists():
        note(
            "opacus is not installed: run make peers in tacit's source tree; its figures stay empty"
        )
        beside = False
    peer = Peer("opacus") if beside else None
    rows: list[dict[str, Any]] = []
    try:
        for case in CASES:
            note(case.name)
            rows += _of_case(case, peer, 1 if quick else 5, memory=not quick)
    finally:
        if peer is not None:
            peer.close()
    return rows


def _of_case(case: Case, peer: Peer | None, blocks: int, *, memory: bool) -> list[dict[str, Any]]:
    taken: dict[str, list[float]] = {}
    for _ in range(blocks):
        for kind in GaussianKind:
            with one_thread():
                private, plain = steps(case.network, case.batch, kind, case.steps)
            taken.setdefault(kind.value, []).extend(private)
            taken.setdefault(f"{kind.value} plain", []).extend(plain)
        if peer is not None:
            said = peer.measure({"case": case.network, "batch": case.batch, "steps": case.steps})
            for mode, seconds in said["cpu_seconds"].items():
                taken.setdefault(f"peer {mode}", []).extend(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    name = None if peer is None else peer.name
    rows = []
    for kind in GaussianKind:
        step, ratio = medians[kind.value], medians[kind.value] / medians[f"{kind.value} plain"]
        there = medians.get("peer ghost")
        over = None if there is None else there / medians["peer plain"]
        rows.append(_row(case, f"step_s noise={kind.value}", step, name, there))
        rows.append(_row(case, f"step_vs_plain noise={kind.value}", ratio, name, over))
    if memory:
        ours = _peak(case, "float") - _peak(case, "plain")
        theirs = None if peer is None else _peer_peak(case, "ghost") - _peer_peak(case, "plain")
        rows.append(_row(case, "extra_memory_mb", ours, name, theirs))
    return rows


def _row(
    case: Case, metric: str, here: float, peer: str | None, there: float | None
) -> dict[str, Any]:
    return {
        "case": case.name, "metric": metric, "tacit": here, "peer": peer, "peer_value": there,
        "ratio": None if there is None or here <= 0 else there / here,
    }  # fmt: skip


def _peak(case: Case, mode: str) -> float:
    command = [sys.executable, "-m", "tacit.audit.dp_sgd_step", case.network, str(case.batch), mode]
    return _asked(command)


def _peer_peak(case: Case, mode: str) -> float:
    return _asked(PEERS["opacus"].command("--memory", case.network, str(case.batch), mode))


def _asked(command: Sequence[str]) -> float:
    done = subprocess.run(  # noqa: S603 - this interpreter, or a peer's
        command, capture_output=True, text=True, check=False, env=_environment(),
    )  # fmt: skip
    if done.returncode:
        raise TacitError(f"{' '.join(command)} failed: {done.stderr[-300:]}")
    return float(json.loads(done.stdout)["peak_bytes"]) / 1e6


def _environment() -> Mapping[str, str]:
    return {**os.environ, **_ONE}
