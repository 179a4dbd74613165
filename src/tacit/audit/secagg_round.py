"""One measured round of secure aggregation, in a process of its own: ``python -m tacit.audit.secagg_round '{...}'``.

A process of its own makes the peak memory that of the round, and needs no torch. Inputs are made as they are asked for,
uniform in [-clip, clip], and their making is not counted. Members who drop out have shared their secrets and never send a
masked vector. The result is checked against the float mean of the survivors' inputs before any figure is printed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, PeerDropped, TacitError
from tacit.core.wire import Array, Message
from tacit.crypto.kernels import kernel_names
from tacit.crypto.masks import expand_add
from tacit.crypto.packing import packed_bytes
from tacit.nn.updates import LocalUpdate
from tacit.parties.links.forked import ForkedHub, peak_memory
from tacit.parties.links.local import Event, LocalHub
from tacit.parties.neighbours import Sharing, choose_sharing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.secure_sum.agreement import Adversary, Agreement, least_threshold
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import advertise_keys, aggregate, share_keys
from tacit.parties.star import Member


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
        threads: in which masks are expanded; one at each member where there are workers.
        workers: processes in which the members work side by side; 0 for one process, one member after another.
        seed: of the inputs, and of who drops out.
    """

    participants: int
    values: int
    drop: float = 0.0
    bits: int = 16
    regular: bool = False
    corrupted: float = 0.1
    threads: int = 1
    workers: int = 0
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
class _Work:
    """Makes a member's vector, and keeps count of the processor time that this takes."""

    settings: RoundSettings
    number: int
    spent: float = 0.0

    def vector(self) -> npt.NDArray[np.float32]:
        """Follows from the seed and the number alone."""
        start = time.process_time()
        said = f"secagg round {self.settings.seed}, input {self.number}"
        seed = np.frombuffer(hashlib.sha256(said.encode()).digest()[:16], np.uint8)
        words = np.zeros(self.settings.values, np.uint32)
        expand_add(words, seed[None], np.ones(1, np.int8))
        vector = words.view(np.int32).astype(np.float32)
        vector *= np.float32(2.0**-31)
        self.spent += time.process_time() - start
        return vector

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        del model, round
        return LocalUpdate(arrays=(self.vector(),), examples=1)


class _Leaving:
    """A member that is gone when it is asked for its masked vector.

    Args:
        member: what it was until then.
    """

    def __init__(self, member: Member) -> None:
        self.export, self.restore = member.export, member.restore
        self._member = member

    def handle(self, request: Message) -> Message:
        if request.tag == "mask":
            raise PeerDropped("gone")
        return self._member.handle(request)


class _TimedHub(LocalHub):
    """Books the processor time of everything that happens at a member: decoding, handling, encoding.

    Attributes:
        cpu: seconds by member.
    """

    def __init__(self, members: Mapping[Role, Member]) -> None:
        LocalHub.__init__(self, members)
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
        seconds on the clock; ``peak_rss_mb`` (10^6 bytes, all processes together); ``bytes_per_client`` sent and received by
        a survivor (mean), and ``vector_bytes`` of them; ``max_error`` and ``error_bound``; ``sharing`` in words, its
        ``failure`` probability, and the ``kernels``.

    Raises:
        TacitError: the round failed, or its result is not the mean.
    """
    n, sharing = settings.participants, settings.sharing()
    agreement = Agreement(
        participants=n, dimension=settings.values, clip=1.0, bits=settings.bits, max_examples=1,
        adversary=Adversary.SEMI_HONEST, sharing=sharing,
    )  # fmt: skip
    roles, coins = owners(n), Coins()
    draws = Coins.from_seed(f"secagg round {settings.seed}".encode())
    gone = {roles[i] for i in draws.permutation(n)[: round(settings.drop * n)]}
    members: dict[Role, Member] = {}
    works = [_Work(settings, number) for number in range(n)]
    for number, role in enumerate(roles):
        members[role] = member = SecureAggregationMember(
            works[number], agreement, number, coins=coins.child(str(role)), rounds=1,
            threads=1 if settings.workers else settings.threads,
        )  # fmt: skip
        if role in gone:
            members[role] = _Leaving(member)
    with _hub(settings, members) as hub:
        cpu, wall = time.process_time(), time.perf_counter()
        session = advertise_keys(hub, agreement, coins=coins, threads=settings.threads)
        share_keys(session, round=0)
        found = aggregate(session, [], round=0)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = peak_memory() + (sum(hub.peak) if isinstance(hub, ForkedHub) else 0)
    survivors = [role for role in roles if role not in gone]
    made, total = sum(work.spent for work in works), np.zeros(settings.values)
    for role in survivors:
        total += works[role.index].vector()
    # What workers spent on inputs is not seen here: it is taken to be what making them again took.
    making = made or sum(work.spent for work in works)
    error = float(np.abs(found.mean - total / len(survivors)).max())
    bound = agreement.error_bound(len(survivors), found.examples)
    if found.survivors != tuple(survivors) or error > bound:
        raise TacitError(f"the sum is wrong: off by {error}, at most {bound} expected")
    costs = hub.cost.by()
    bytes_of = [costs[str(r)].bytes_sent + costs[str(r)].bytes_received for r in survivors]
    return {
        "server_cpu_s": cpu - (0.0 if settings.workers else sum(hub.cpu.values())),
        "client_cpu_s": (sum(hub.cpu[role] for role in survivors) - making) / len(survivors),
        "unmask_s": hub.cost.total(role=SERVER, phase="unmask").seconds,
        "total_s": wall,
        "peak_rss_mb": peak / 1e6,
        "bytes_per_client": sum(bytes_of) / len(bytes_of),
        "vector_bytes": packed_bytes(agreement.length, agreement.width),
        "width": agreement.width,
        "max_error": error,
        "error_bound": bound,
        "sharing": str(sharing),
        "failure": sharing.failure,
        "kernels": kernel_names(),
        "settings": asdict(settings),
    }


@contextmanager
def _hub(
    settings: RoundSettings, members: Mapping[Role, Member]
) -> Iterator[_TimedHub | ForkedHub]:
    if not settings.workers:
        yield _TimedHub(members)
        return
    with ForkedHub(members, workers=settings.workers) as hub:
        yield hub


if __name__ == "__main__":
    asked = RoundSettings(**json.loads(sys.argv[1]))
    small = replace(asked, participants=3, values=16, drop=0.0, regular=False, workers=0)
    measure(small)  # loads what is loaded once
    print(json.dumps(measure(asked)))
