"""One round of Flower's SecAgg+ on a complete graph, in one process, timed party by party.

Run in the environment that `make peers` makes:

    .peers/flower/bin/python benchmarks/peers/flower_secagg.py --participants 10 --values 1000000

What runs is Flower's own code and all of it: the four stages of
`flwr.server.workflow.SecAggPlusWorkflow` (`setup_stage`, `share_keys_stage`,
`collect_masked_vectors_stage`, `unmask_stage`) and, for each member,
`flwr.client.mod.secaggplus_mod` with the state it keeps from stage to stage. Hence P-384 key pairs
and agreement, Shamir shares of the mask seed and of the private key, Fernet on each share,
stochastic quantisation, masks, `ndarray_to_bytes` and back, the sum, the recovery of both kinds of
secrets, and dequantisation are called by Flower, in its order, with its checks. Nothing is patched.

This file supplies what surrounds them: a `Grid` that hands each message to its addressee and the
answer back, a strategy that picks everyone, and "training" that draws a vector. These are not
timed. Left out, so that Flower is not charged for it: network, processes and Ray; protobuf and
hashing of the messages; storing a member's state between its stages; turning the update into
Flower's `Parameters`; `FedAvg`, which would average equal copies of the result once more. Timed,
because stage functions do it: reading the update from `Parameters`, and writing the mean to them
(a few milliseconds a million values). A tiny round before the measured one pays for whatever
happens once in a process.

Members that drop have shared their keys and never answer in the stage that collects masked vectors.
Members weigh the same, `num_examples = max_weight`: no precision goes to the weights.

Prints one JSON object:

* `client_cpu_s`: process CPU of one member's four answers, mean over the members that stay.
* `server_cpu_s`: process CPU of the workflow. CPU counts the threads in which Flower does Shamir.
* `unmask_s`: wall time from the last answer of the unmask stage to the mean that the strategy gets.
* `total_s`: wall time of server and all members one after another; dropped members' share included.
* `peak_rss_mb`: peak resident memory of the process in 10^6 bytes, imports (some 70) included.
* `bytes_per_client`: Flower's deflated message objects, those a client pulls and pushes by HTTP, of
  one staying member in all four stages, both ways. The model download is empty; HTTP is left out.
* `max_error`: largest difference to the float mean of the members that stay.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.compat.common.recorddict_compat import fitres_to_recorddict, parameters_to_arrayrecord
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp.grid import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable

MODULUS = 2**32  # Flower's default
NUM_EXAMPLES = 1000  # Flower's default max_weight: every member has weight one


class Clock:
    """CPU and wall time between `start` and `stop`, added up."""

    def __init__(self) -> None:
        self.cpu = 0.0
        self.wall = 0.0

    def start(self) -> None:
        """Begin a span."""
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def stop(self) -> None:
        """End the span begun last."""
        self.cpu += time.process_time() - self._cpu
        self.wall += time.perf_counter() - self._wall


class Member:
    """One client: its own Flower context, its own clock, and a vector drawn from its own seed."""

    def __init__(self, node_id: int, values: int, clip: float, seed: tuple[int, int]) -> None:
        self.clock = Clock()
        self._context = Context(TaskIdentity.run_id, node_id, {}, RecordDict(), {})
        self._values, self._clip, self._seed = values, clip, seed

    def update(self) -> np.ndarray:
        """Its update, float32, uniform in [-clip, clip]."""
        uniform = np.random.default_rng(self._seed).random(self._values, dtype=np.float32)
        return (2 * uniform - 1) * np.float32(self._clip)

    def answer(self, message: Message) -> Message:
        """Let Flower's mod answer a message of the server."""
        self.clock.start()
        reply = secaggplus_mod(message, self._context, self._train)
        self.clock.stop()
        return reply

    def _train(self, message: Message, _context: Context) -> Message:
        self.clock.stop()
        result = FitRes(
            status=Status(Code.OK, ""),
            parameters=ndarrays_to_parameters([self.update()]),
            num_examples=NUM_EXAMPLES,
            metrics={},
        )
        reply = Message(fitres_to_recorddict(result, keep_input=True), reply_to=message)
        self.clock.start()
        return reply


class DirectGrid(Grid):
    """Hands the server's messages to the members one after another; the server's clock rests."""

    def __init__(self, members: dict[int, Member], dropped: set[int], watched: int) -> None:
        self.clock = Clock()
        self.waves = 0
        self.answered_at = 0.0
        self.watched_bytes = 0
        self._members, self._dropped, self._watched = members, dropped, watched

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Collect the answers of one stage, without those of dropped members from the third on."""
        self.clock.stop()
        self.waves += 1
        replies = []
        for message in messages:
            node_id = message.metadata.dst_node_id
            if self.waves >= 3 and node_id in self._dropped:
                continue
            # The server gives one object to several members: each gets a copy, as over a network.
            received = message_from_proto(
                ProtoMessage.FromString(message_to_proto(message).SerializeToString())
            )
            if node_id == self._watched:
                self.watched_bytes += wire_size(received)
            reply = self._members[node_id].answer(received)
            if node_id == self._watched:
                self.watched_bytes += wire_size(reply)
            replies.append(reply)
        self.clock.start()
        self.answered_at = time.perf_counter()
        return replies

    def set_run(self, run: Any) -> None:
        """Not used by the workflow."""
        raise NotImplementedError

    run = property(set_run)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not used by the workflow."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Not used by the workflow."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used by the workflow."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used by the workflow."""
        raise NotImplementedError


class TakeAll:
    """The two methods of a Flower strategy that the workflow calls: pick everyone, keep the mean."""

    def __init__(self, grid: DirectGrid, node_ids: list[int]) -> None:
        self.mean: Parameters | None = None
        self.unmask_s = 0.0
        self._grid, self._node_ids = grid, node_ids

    def configure_fit(self, _round: int, parameters: Parameters, _manager: Any) -> list[Any]:
        """Ask every member for an update."""
        return [
            (SimpleNamespace(node_id=node_id), FitIns(parameters, {})) for node_id in self._node_ids
        ]

    def aggregate_fit(self, _round: int, results: list[Any], _failures: list[Any]) -> Any:
        """Keep the mean, which the workflow has put into every result."""
        self.unmask_s = time.perf_counter() - self._grid.answered_at
        self.mean = results[0][1].parameters
        return self.mean, {}


def wire_size(message: Message) -> int:
    """Bytes of the objects that Flower pushes for a message."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(message).values())


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB; getrusage's begins with that of who started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * 1024 / 1e6


def aggregate(
    *,
    participants: int,
    values: int,
    dropped: int,
    threshold: int,
    clip: float,
    bits: int,
    seed: int,
) -> dict[str, float]:
    """Run one round, check its result against the float mean and return the measurements."""
    node_ids = [int(i) for i in np.random.default_rng(seed).integers(1, 2**63, participants)]
    members = {
        node_id: Member(node_id, values, clip, (seed, place))
        for place, node_id in enumerate(node_ids)
    }
    stayed = node_ids[: participants - dropped]
    grid = DirectGrid(members, set(node_ids[len(stayed) :]), watched=stayed[0])
    strategy = TakeAll(grid, node_ids)

    state = RecordDict()
    state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(
        Parameters(tensors=[], tensor_type="numpy.ndarray"), keep_input=True
    )
    context = LegacyContext(
        Context(TaskIdentity.run_id, SUPERLINK_NODE_ID, {}, state, {}), strategy=strategy
    )
    workflow = SecAggPlusWorkflow(
        num_shares=participants,
        reconstruction_threshold=threshold,
        max_weight=float(NUM_EXAMPLES),
        clipping_range=clip,
        quantization_range=2**bits,
        modulus_range=MODULUS,
    )
    grid.clock.start()
    workflow(grid, context)
    grid.clock.stop()
    peak = peak_rss_mb()

    if strategy.mean is None:
        raise RuntimeError(f"Flower halted the round after {grid.waves} of 4 stages: see its log.")
    (mean,) = parameters_to_ndarrays(strategy.mean)
    expected = np.zeros(values)
    for node_id in stayed:
        expected += members[node_id].update()
    expected /= len(stayed)
    max_error = float(np.abs(mean - expected).max())
    # Stochastic rounding moves a value by less than one step; the rest is float32.
    allowed = 2 * (2 * clip / 2**bits) + clip * 2**-21
    if not max_error <= allowed:
        raise RuntimeError(f"Wrong mean: it is off by {max_error:.3g}, allowed is {allowed:.3g}.")
    return {
        "client_cpu_s": sum(members[i].clock.cpu for i in stayed) / len(stayed),
        "server_cpu_s": grid.clock.cpu,
        "unmask_s": strategy.unmask_s,
        "total_s": grid.clock.wall + sum(m.clock.wall for m in members.values()),
        "peak_rss_mb": peak,
        "bytes_per_client": grid.watched_bytes,
        "max_error": max_error,
    }


def settings(argv: list[str] | None = None) -> dict[str, Any]:
    """Read the command line and refuse what Flower cannot run, or would answer wrongly."""
    parser = argparse.ArgumentParser(description="Times one round of Flower's SecAgg+.")
    parser.add_argument("--participants", type=int, default=10)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--drop", type=float, default=0.3, help="share of members that drop")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--bits", type=int, default=16, help="quantisation levels: 2**bits")
    parser.add_argument("--threshold", type=int, help="default: 0.6 of the members, rounded up")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    threshold = -(-6 * args.participants // 10) if args.threshold is None else args.threshold
    dropped = round(args.drop * args.participants)
    if args.participants < 3:
        parser.error("--participants: Flower shares a key among 3 or more.")
    if not 2 <= threshold < args.participants:
        parser.error(f"--threshold: expected 2 to participants - 1, got {threshold}.")
    if not 0 <= dropped <= args.participants - threshold:
        parser.error(f"--drop: {dropped} drop of {args.participants}; {threshold} must stay.")
    if args.values < 1 or args.clip <= 0 or args.bits < 1:
        parser.error("--values, --clip and --bits must be positive.")
    if args.participants * 2**args.bits >= MODULUS:
        parser.error("--bits: the sum would wrap around Flower's modulus of 2**32.")
    return {
        "participants": args.participants,
        "values": args.values,
        "dropped": dropped,
        "threshold": threshold,
        "clip": args.clip,
        "bits": args.bits,
        "seed": args.seed,
    }


def main() -> None:
    """Measure one round and print it."""
    TaskIdentity.task_id, TaskIdentity.run_id = 1, 1
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    chosen = settings()
    aggregate(participants=3, values=16, dropped=1, threshold=2, clip=1.0, bits=16, seed=1)
    measured = aggregate(**chosen)
    peer = {"peer": f"flwr {version('flwr')}", "settings": chosen}
    print(json.dumps(peer | {name: round(value, 9) for name, value in measured.items()}))


if __name__ == "__main__":
    main()
