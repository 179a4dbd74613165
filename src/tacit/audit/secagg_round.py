"""One measured round of secure aggregation, in a process of its own: ``python -m tacit.audit.secagg_round '{...}'``.

A process of its own makes the peak memory that of the round, and needs no torch. Inputs are made as they are asked for,
uniform in [-clip, clip], and their making is not counted. Members who drop out have shared their secrets and never send a
masked vector. The result is checked against the float mean of the survivors' inputs before any figure is printed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, TacitError
from tacit.core.wire import Array
from tacit.crypto.kernels import kernel_names
from tacit.crypto.packing import packed_bytes
from tacit.nn.updates import LocalUpdate
from tacit.parties.faults import Fault, Harm
from tacit.parties.links.local import Event, LocalHub
from tacit.parties.neighbours import Sharing, choose_sharing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.secure_sum.agreement import Adversary, Agreement, least_threshold
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import advertise_keys, aggregate, share_keys
from tacit.parties.star import Member

_MASK = 2
"""Number of the request in which a member's masked vector is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """What is measured.

    Args:
        participants: members.
        values: of each member's vector.
        drop: the share of members who drop out before they send it.
        bits: of a quantised value.
        regular: use the regular graph for ``corrupted``, ``drop`` and a failure probability of 2^-30.
        corrupted: the share of members that may collude with the server.
        threads: in which masks are expanded.
        seed: of the inputs, and of who drops out.
    """

    participants: int
    values: int
    drop: float = 0.0
    bits: int = 16
    regular: bool = False
    corrupted: float = 0.1
    threads: int = 1
    seed: int = 0

    def sharing(self) -> Sharing:
        """Neighbours and threshold.

        Raises:
            ConfigError: there is no such regular graph.
        """
        n = self.participants
        if not self.regular:
            return Sharing(degree=n - 1, threshold=least_threshold(n, Adversary.SEMI_HONEST))
        found = choose_sharing(n, corrupted=self.corrupted, dropped=self.drop, failure=2.0**-30)
        if found is None:
            raise ConfigError(f"no regular graph over {n} members fails with less than 2^-30")
        return found


@dataclass(slots=True)
class _Inputs:
    """Makes members' vectors when they are asked for, and adds them up for the check."""

    settings: RoundSettings
    coins: Coins
    total: npt.NDArray[np.float64]
    cpu: float = 0.0

    def vector(self, number: int) -> npt.NDArray[np.float32]:
        start = time.process_time()
        words = np.empty(self.settings.values, np.uint32)
        self.coins.child(f"input {number}").fill(words.view(np.uint8))
        vector = words.astype(np.float32)
        vector *= np.float32(2.0**-31)
        vector -= np.float32(1.0)
        self.total += vector
        self.cpu += time.process_time() - start
        return vector


@dataclass(frozen=True, slots=True)
class _Work:
    inputs: _Inputs
    number: int

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        del model, round
        return LocalUpdate(arrays=(self.inputs.vector(self.number),), examples=1)


class _TimedHub(LocalHub):
    """Books the processor time of everything that happens at a member: decoding, handling, encoding.

    Attributes:
        cpu: seconds by member.
    """

    def __init__(self, members: Mapping[Role, Member], faults: Sequence[Fault]) -> None:
        LocalHub.__init__(self, members, faults=faults)
        self.cpu: Counter[Role] = Counter()

    def deliver(self, event: Event) -> None:
        """Time what happens at the member."""
        start = time.process_time()
        LocalHub.deliver(self, event)
        self.cpu[event.role] += time.process_time() - start  # type: ignore[assignment]


def measure(settings: RoundSettings) -> dict[str, object]:
    """Run the round and measure it.

    Returns:
        ``server_cpu_s`` and ``client_cpu_s`` (mean of the survivors), processor seconds; ``unmask_s`` and ``total_s``,
        seconds on the clock; ``peak_rss_mb`` (10^6 bytes); ``bytes_per_client`` sent and received by a survivor (mean), and
        ``vector_bytes`` of them; ``max_error`` and ``error_bound``; ``sharing`` in words, its ``failure`` probability, and
        the ``kernels``.

    Raises:
        TacitError: the round failed, or its result is not the mean.
    """
    n, d = settings.participants, settings.values
    coins = Coins.from_seed(f"secagg round {settings.seed}".encode())
    sharing = settings.sharing()
    agreement = Agreement(
        participants=n, dimension=d, clip=1.0, bits=settings.bits, max_examples=1,
        adversary=Adversary.SEMI_HONEST, sharing=sharing,
    )  # fmt: skip
    inputs = _Inputs(settings, coins.child("inputs"), np.zeros(d))
    roles = owners(n)
    gone = {roles[i] for i in coins.child("dropped").permutation(n)[: round(settings.drop * n)]}
    secret = Coins()
    members = {
        role: SecureAggregationMember(
            _Work(inputs, number), agreement, number, coins=secret.child(str(role)), rounds=1,
            threads=settings.threads,
        )
        for number, role in enumerate(roles)
    }  # fmt: skip
    hub = _TimedHub(members, [Fault(role=role, at=_MASK, harm=Harm.DIE) for role in gone])
    cpu, wall = time.process_time(), time.perf_counter()
    session = advertise_keys(hub, agreement, coins=secret.child("server"), threads=settings.threads)
    share_keys(session, round=0)
    found = aggregate(session, [], round=0)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    survivors = [role for role in roles if role not in gone]
    error = float(np.abs(found.mean - inputs.total / len(survivors)).max())
    bound = agreement.error_bound(len(survivors), found.examples) + 2.0**-22
    if found.survivors != tuple(survivors) or error > bound:
        raise TacitError(f"the sum is wrong: off by {error}, at most {bound} expected")
    costs = [hub.cost.total(role=role) for role in survivors]
    at_members = sum(hub.cpu.values())
    of_survivors = sum(hub.cpu[role] for role in survivors) - inputs.cpu
    return {
        "server_cpu_s": cpu - at_members,
        "client_cpu_s": of_survivors / len(survivors),
        "unmask_s": hub.cost.total(role=SERVER, phase="unmask").seconds,
        "total_s": wall,
        "peak_rss_mb": _peak_kilobytes() * 1024 / 1e6,
        "bytes_per_client": sum(c.bytes_sent + c.bytes_received for c in costs) / len(costs),
        "vector_bytes": packed_bytes(agreement.length, agreement.width),
        "width": agreement.width,
        "max_error": error,
        "error_bound": bound,
        "sharing": str(sharing),
        "failure": sharing.failure,
        "kernels": kernel_names(),
        "settings": asdict(settings),
    }


def _peak_kilobytes() -> int:
    """The process's own peak: getrusage's, which the fallback takes, begins with that of who started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    asked = RoundSettings(**json.loads(sys.argv[1]))
    measure(
        replace(asked, participants=3, values=16, drop=0.0, regular=False)
    )  # loads what is loaded once
    print(json.dumps(measure(asked)))
