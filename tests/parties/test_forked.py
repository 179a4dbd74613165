"""Members that work in forked processes answer as members in one process do."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, PeerDropped, RangeError, TooFewParties
from tacit.core.wire import Message
from tacit.nn.updates import LocalUpdate
from tacit.parties.links.forked import ForkedHub, peak_memory
from tacit.parties.links.local import LocalHub
from tacit.parties.neighbours import Sharing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.secure_sum.agreement import Adversary, Agreement, least_threshold
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import advertise_keys, aggregate, share_keys
from tacit.parties.star import Hub, ask


class Counting:
    """Tells how often it was asked, by whom it lives, and what it got."""

    def __init__(self) -> None:
        self.asked = 0

    def handle(self, request: Message) -> Message:
        self.asked += 1
        if request.tag == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if request.tag == "sleep":
            time.sleep(30)
        if request.tag == "refuse":
            raise RangeError("too large")
        return Message("told", asked=self.asked, pid=os.getpid(), payload=request.array("payload"))

    def export(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        del state


def request(tag: str = "ask", size: int = 3) -> Message:
    return Message(tag, payload=np.arange(size, dtype=np.float32))


def star(count: int = 5, workers: int = 2) -> ForkedHub:
    return ForkedHub({role: Counting() for role in owners(count)}, workers=workers)


def test_members_keep_their_state_and_live_in_as_many_processes_as_were_asked_for() -> None:
    with star() as hub:
        for wave in (1, 2, 3):
            replies = ask(hub, dict.fromkeys(hub.members(), request()))
            assert list(replies) == list(owners(5))
            assert {reply.integer("asked") for reply in replies.values()} == {wave}
        pids = {reply.integer("pid") for reply in replies.values()}
        assert len(pids) == 2 and os.getpid() not in pids


def test_large_messages_go_both_ways_at_once() -> None:
    with star(4) as hub:
        asked = dict.fromkeys(hub.members(), request(size=3_000_000))
        for reply in ask(hub, asked).values():
            assert reply.array("payload", dtype="<f4", shape=(3_000_000,))[-1] == 2_999_999


def test_bytes_are_counted_as_in_one_process() -> None:
    local = LocalHub({role: Counting() for role in owners(3)})
    with star(3) as forked:
        for hub in (local, forked):
            ask(hub, dict.fromkeys(owners(3), Message("refuse")), at_least=0)
        for role in (SERVER, *owners(3)):
            one, other = local.cost.total(role=role), forked.cost.total(role=role)
            assert (one.messages, one.bytes_sent, one.bytes_received) == (
                other.messages, other.bytes_sent, other.bytes_received,
            )  # fmt: skip
        assert set(forked.cpu) == set(owners(3)) and min(forked.cpu.values()) > 0
        assert forked.views[SERVER].messages == 3


def test_a_refusal_is_the_members_error() -> None:
    with star(3) as hub, pytest.raises(RangeError, match="owner 0: too large"):
        ask(hub, dict.fromkeys(hub.members(), request("refuse")))


def test_members_of_a_worker_that_died_never_answer_and_the_others_do() -> None:
    with star(4) as hub:
        roles = hub.members()
        first = {roles[0]: request("die"), **dict.fromkeys(roles[1:], request())}
        with pytest.raises(TooFewParties) as raised:
            ask(hub, first, deadline=20)
        assert set(raised.value.missing) == {roles[0], roles[2]}  # dealt to the same worker
        again = ask(hub, dict.fromkeys(roles, request()), at_least=2, deadline=20)
        assert set(again) == {roles[1], roles[3]}


def test_nothing_comes_after_the_deadline() -> None:
    with star(2) as hub:
        start = time.monotonic()
        asked = {owners(2)[0]: request("sleep"), owners(2)[1]: request()}
        with pytest.raises(TooFewParties):
            ask(hub, asked, deadline=0.5)
        assert time.monotonic() - start < 10


def test_a_star_needs_members_and_workers() -> None:
    for members, workers in (({}, 2), ({owners(1)[0]: Counting()}, 0), ({SERVER: Counting()}, 1)):
        with pytest.raises(ConfigError):
            ForkedHub(members, workers=workers)
    with star(2) as hub, pytest.raises(ConfigError, match="owner 7"):
        hub.post({Role("owner", 7): request()})


def test_peak_memory_is_this_processs_own() -> None:
    before = peak_memory()
    held = np.ones(before, np.uint8)  # more than it ever held beside what it holds now
    assert peak_memory() > before and held.all()


class Given:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def update(self, model, round) -> LocalUpdate:
        if model is None:
            raise PeerDropped("never")
        return LocalUpdate(arrays=(self.values,), examples=1)


def test_secure_aggregation_gives_the_same_sum_over_both_stars() -> None:
    n = 5
    values = Coins.from_seed(b"forked").below(16, (n, 4)).astype(np.float32) - np.float32(7.5)
    agreement = Agreement(
        participants=n, dimension=4, clip=7.5, bits=4, max_examples=1, adversary=Adversary.SEMI_HONEST,
        sharing=Sharing(degree=n - 1, threshold=least_threshold(n, Adversary.SEMI_HONEST)),
    )  # fmt: skip

    def members() -> dict[Role, SecureAggregationMember]:
        return {
            role: SecureAggregationMember(Given(values[i]), agreement, i, coins=Coins(), rounds=2)
            for i, role in enumerate(owners(n))
        }

    def two_rounds(hub: Hub) -> list[list[int]]:
        session = advertise_keys(hub, agreement, coins=Coins())
        share_keys(session, round=0)
        found = [aggregate(session, [], round=r, share_next=r == 0) for r in (0, 1)]
        return [np.rint(one.mean * n).astype(int).tolist() for one in found]

    with ForkedHub(members(), workers=2) as forked:
        expected = [np.rint(values.sum(0)).astype(int).tolist()] * 2
        assert two_rounds(forked) == two_rounds(LocalHub(members())) == expected
