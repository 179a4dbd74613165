"""`tacit bench extraction`: how long extraction takes, from how many queries, and how near the copy comes.

Cases and targets are those of `tacit reproduce 15`, one of each kind of attack; seconds are of the processor, on one thread.

Peer: ART's `KnockoffNets`, where ``make peers`` has installed it, in a process of its own: on the same target, records and
number of queries, with as many epochs of the same batches and the same learning rate, from labels. Ratios of agreement are
of the records on which a copy errs. ART has no equation solving and no retraining on labels. Its extraction of ReLU networks
did not end three runs in 200 s, neither on a network of the digits of 4 units nor on one of 8, so that no row has it as a
peer.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter
from tacit.attacks.extraction_knockoff import Knockoff
from tacit.audit.extraction_metrics import fidelity
from tacit.audit.extraction_targets import Data, data_of, own, target_of
from tacit.audit.figures import one_thread
from tacit.audit.peers import PEERS
from tacit.audit.reproduce_extraction import Case, run_case
from tacit.core.errors import TacitError, UnknownName
from tacit.nn.networks import mlp
from tacit.nn.stacked import Recipe

Note = Callable[[str], None]

_ART = PEERS["art-extraction"]

CASES = (
    Case(name="digits/softmax", seed=0, data="digits", target="softmax"),
    Case(name="digits/one-vs-rest", seed=0, data="digits", target="one-vs-rest"),
    Case(name="digits/softmax/decimals3", seed=0, data="digits", target="softmax", digits=3, queries=650),
    Case(name="digits/kernel10", seed=0, data="digits", target="kernel10", method="kernel"),
    Case(name="digits/relu32", seed=0, data="digits", target="relu32", method="kinks"),
    Case(name="adult-race/softmax", seed=0, data="adult-race", target="softmax"),
    Case(name="adult-race/mlp20", seed=0, data="adult-race", target="mlp20", method="network", queries=2225),
    Case(name="wisconsin/linear-labels", seed=0, data="wisconsin", target="softmax", method="labels", queries=90),
    Case(name="digits/softmax-labels", seed=0, data="digits", target="softmax", method="labels", queries=32_500),
    Case(
        name="adult-race/mlp20-labels", seed=0, data="adult-race", target="mlp20", method="network-labels",
        queries=54_100,
    ),
)  # fmt: skip
#: Too long for a quick run.
_LONG = ("adult-race/mlp20", "digits/softmax-labels", "adult-race/mlp20-labels")

HIDDEN, QUERIES = (256, 64), 2000
RECIPE = Recipe(epochs=20, batch_size=32, learning_rate=0.002)


def extraction(*, quick: bool, note: Note, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure every case.

    Args:
        quick: without those that take a minute, and one knockoff in place of three.
        note: told what is being measured.
        against: peers beside knockoffs: art.

    Raises:
        UnknownName: no such peer.
        DataError: a data set is not there.
        TacitError: a peer failed.
    """
    for name in against:
        if name != "art":
            raise UnknownName("peer", name, ["art"])
    rows = []
    for case in CASES:
        if quick and case.name in _LONG:
            continue
        note(case.name)
        found = run_case(case)
        for metric in ("seconds", "queries", "agreement_test", "agreement_uniform"):
            value = found["attack_seconds" if metric == "seconds" else metric]
            rows.append(_row(case.name, metric, value))
        if "residual" in found:
            rows.append(_row(case.name, "total_variation", found["total_variation"]))
    return rows + _knockoffs(1 if quick else 3, note, asked="art" in against)


def _knockoffs(seeds: int, note: Note, *, asked: bool) -> list[dict[str, Any]]:
    """Knockoffs of a network on MNIST from labels, beside the peer's on the same target and records."""
    data = data_of("mnist")
    beside = asked and _ART.python.exists()
    if asked and not beside:
        note("art is not installed: run make peers in tacit's source tree; its figures stay empty")
    mine: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    peer = None
    for seed in range(seeds):
        note(f"mnist/knockoff-labels, seed {seed}")
        with one_thread():
            target = target_of("mlp128", data, 0).float()
            mine.append(_knockoff(data, target, seed))
        if beside:
            peer, found = _by_art(data, target, seed)
            theirs.append((found["cpu_s"], found["agreement"]))
    name = f"mnist/knockoff-labels q={QUERIES}"
    seconds, agreement = (statistics.mean(one) for one in zip(*mine, strict=True))
    rows = [_row(name, "seconds", seconds), _row(name, "agreement_test", agreement)]
    if theirs:
        slow, near = (statistics.mean(one) for one in zip(*theirs, strict=True))
        rows[0] |= {"peer": peer, "peer_value": slow, "ratio": slow / seconds}
        ratio = (1 - near) / (1 - agreement) if agreement < 1 else None
        rows[1] |= {"peer": peer, "peer_value": near, "ratio": ratio}
    return rows


def _knockoff(data: Data, target: nn.Module, seed: int) -> tuple[float, float]:
    """Seconds and agreement on the test records."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = own(data)
    knowledge = Knowledge(
        architecture=mlp(data.shape, HIDDEN, data.classes, generator=generator),
        population=(inputs.float(), labels),
        classes=data.classes,
    )
    attack = Knockoff(queries=QUERIES, recipe=RECIPE)
    start = time.process_time()
    found = attack.extract(Labels(target, QueryCounter()), knowledge, generator)
    seconds = time.process_time() - start
    return seconds, fidelity(target, found.model, data.test[0].float()).agreement.value


def _by_art(data: Data, target: nn.Module, seed: int) -> tuple[str, dict[str, float]]:
    """Who it was, and the same by ART.

    Raises:
        TacitError: it failed.
    """
    inputs, labels = own(data)
    with TemporaryDirectory() as name:
        folder = Path(name)
        layers = [module for module in target.modules() if isinstance(module, nn.Linear)]
        for k, layer in enumerate(layers):
            np.save(folder / f"weight{k}.npy", layer.weight.detach().numpy())
            np.save(folder / f"bias{k}.npy", layer.bias.detach().numpy())
        np.save(folder / "records.npy", inputs.flatten(1).float().numpy())
        np.save(folder / "labels.npy", labels.numpy())
        np.save(folder / "tests.npy", data.test[0].flatten(1).float().numpy())
        asked = {
            "folder": name, "seed": seed, "queries": QUERIES, "choice": "random", "hidden": HIDDEN,
            "epochs": RECIPE.epochs, "batch": RECIPE.batch_size, "rate": RECIPE.learning_rate,
        }  # fmt: skip
        done = subprocess.run(  # noqa: S603 - our own script
            _ART.command(), input=json.dumps(asked) + "\n", capture_output=True, text=True, check=False,
            env=dict(_ART.extra),
        )  # fmt: skip
    lines = done.stdout.splitlines()
    if len(lines) < 2:
        raise TacitError(f"art gave no answer: {done.stderr[-500:]}")
    banner, found = json.loads(lines[0]), json.loads(lines[1])
    return f"{banner['peer']} {banner['protocol']}", found


def _row(case: str, metric: str, value: float) -> dict[str, Any]:
    return {
        "case": case, "metric": metric, "tacit": value, "peer": None, "peer_value": None, "ratio": None,
    }  # fmt: skip
