"""`tacit bench shadows`: shadow models trained together beside the same trained one by one.

16 networks of 600 inputs, 128 tanh units and 100 classes, batches of 100, Adam, on binary records as of purchases. One
thread, CPU time of a model's step, medians of blocks in which all take turns: each block trains every model anew, with
drawing the weights and making the optimisers. Where there is a CUDA device, 64 models on it too, by the clock.

Peers: a tight loop with torch's fused Adam and with its default one, always; ART's `PyTorchClassifier.fit`, where
``make peers`` has installed it, in a process of its own.

Metric: ``model_step_s``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tacit.audit.figures import one_thread
from tacit.audit.peers import PEERS, Peer
from tacit.core.errors import UnknownName
from tacit.nn.networks import initialise
from tacit.nn.stacked import Recipe, Stack, Trainer

Note = Callable[[str], None]

_INPUTS, _HIDDEN, _CLASSES = 600, 128, 100


class Case(NamedTuple):
    """What is trained.

    Args:
        models: how many.
        records: of each model.
        epochs: over them.
        device: where.
        batch: records a step.
    """

    models: int
    records: int = 1000
    epochs: int = 2
    device: str = "cpu"
    batch: int = 100

    @property
    def name(self) -> str:
        """As in the report."""
        where = "" if self.device == "cpu" else f" {self.device}"
        return f"mlp {_INPUTS}-{_HIDDEN}-{_CLASSES} k={self.models} batch={self.batch}{where}"

    @property
    def steps(self) -> int:
        """Of all models together."""
        return self.models * self.epochs * -(-self.records // self.batch)


def network() -> nn.Sequential:
    """The architecture."""
    return nn.Sequential(nn.Linear(_INPUTS, _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, _CLASSES))


class Pool(NamedTuple):
    """Records, and which each model has."""

    inputs: Tensor
    labels: Tensor
    rows: Sequence[Tensor]


def pool(case: Case) -> Pool:
    """Twice as many records as a model has; their values do not matter to the time."""
    generator = torch.Generator().manual_seed(0)
    count = 2 * case.records
    inputs = (torch.rand(count, _INPUTS, generator=generator) < 0.3).float()
    labels = torch.randint(0, _CLASSES, (count,), generator=generator)
    rows = [torch.randperm(count, generator=generator)[: case.records] for _ in range(case.models)]
    device = torch.device(case.device)
    return Pool(inputs.to(device), labels.to(device), [one.to(device) for one in rows])


def _generators(case: Case) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(case.models)]


def together(case: Case, given: Pool) -> Stack:
    """All at once."""
    recipe = Recipe(epochs=case.epochs, batch_size=case.batch, learning_rate=0.001)
    return Trainer(network=network(), recipe=recipe).together(*given, _generators(case))


def one_by_one(case: Case, given: Pool, *, fused: bool) -> list[nn.Module]:
    """A loop with nothing in it that could be left out; gives back the models."""
    found: list[nn.Module] = []
    for rows, generator in zip(given.rows, _generators(case), strict=True):
        model = initialise(network(), generator).to(given.inputs.device)
        inputs, labels = given.inputs[rows], given.labels[rows]
        optimiser = torch.optim.Adam(model.parameters(), lr=0.001, fused=fused)
        for _ in range(case.epochs):
            order = torch.randperm(case.records, generator=generator).to(inputs.device)
            for batch in torch.split(order, case.batch):
                loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
        found.append(model)
    return found


WAYS: dict[str, Callable[[Case, Pool], object]] = {
    "together": together,
    "loop with fused Adam": partial(one_by_one, fused=True),
    "loop with default Adam": partial(one_by_one, fused=False),
}


def spent(way: str, case: Case, given: Pool) -> float:
    """Seconds a model's step: of the processor, or by the clock on an accelerator."""
    if case.device == "cpu":
        begun = time.process_time()
        WAYS[way](case, given)
        return (time.process_time() - begun) / case.steps
    torch.cuda.synchronize()
    start = time.perf_counter()
    WAYS[way](case, given)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / case.steps


def shadows(*, quick: bool, note: Note, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure every case.

    Args:
        quick: three blocks instead of fifteen.
        note: told what is being measured.
        against: peers beside the loops: art.

    Raises:
        UnknownName: no such peer.
        TacitError: a peer failed.
    """
    for name in against:
        if name != "art":
            raise UnknownName("peer", name, ["art"])
    beside = "art" in against
    if beside and not PEERS["art"].python.exists():
        note("art is not installed: run make peers in tacit's source tree; its figure stays empty")
        beside = False
    blocks = 3 if quick else 15
    peer = Peer("art") if beside else None
    try:
        rows = _of_case(Case(16), blocks, note, peer, asked="art" in against)
    finally:
        if peer is not None:
            peer.close()
    if torch.cuda.is_available():
        rows += _of_case(Case(64, device="cuda"), blocks, note)
    return rows


def _of_case(
    case: Case, blocks: int, note: Note, peer: Peer | None = None, *, asked: bool = False
) -> list[dict[str, Any]]:
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    theirs: list[float] = []
    given = pool(case)
    with one_thread():
        for block in range(blocks + 1):
            note(f"{case.name}: block {block} of {blocks}")
            for way, seconds in taken.items():
                seconds.append(spent(way, case, given))
            if peer is not None:
                request = case._asdict()
                del request["device"]
                theirs.append(float(peer.measure(request)["cpu_s"]) / case.steps)
    # The first block warms up.
    medians = {way: statistics.median(seconds[1:]) for way, seconds in taken.items()}
    here = medians.pop("together")
    rows = [_row(case, here, way, there) for way, there in medians.items()]
    if asked:
        name = None if peer is None else peer.name
        rows.append(_row(case, here, name, statistics.median(theirs[1:]) if theirs else None))
    return rows


def _row(case: Case, here: float, peer: str | None, there: float | None) -> dict[str, Any]:
    return {
        "case": case.name, "metric": "model_step_s", "tacit": here, "peer": peer, "peer_value": there,
        "ratio": None if there is None else there / here,
    }  # fmt: skip
