"""The benchmark of two servers: its cases compute what float says, and become rows."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tacit.audit import bench_two_server
from tacit.audit.bench import BENCHES
from tacit.audit.bench_two_party import SERVERS, Case, Measured, Pair, Worker, _case_rows
from tacit.audit.bench_two_server import cases, forward, step, step_alone
from tacit.core.coins import Coins
from tacit.core.errors import TacitError, UnknownName
from tacit.parties.links.tcp_pair import channel_over
from tacit.parties.two_party.network import Loss


def both(case: Case) -> list[tuple[Measured, Measured]]:
    """A turn of both parties, each in a thread."""
    ends, found = socket.socketpair(), {}

    def party(number: int) -> None:
        with channel_over(ends[number], SERVERS[number], SERVERS[1 - number]) as channel:
            found[number] = Worker(channel, number).run(case)

    other = threading.Thread(target=party, args=(1,))
    other.start()
    party(0)
    other.join()
    return list(zip(found[0], found[1], strict=True))


SMALL = [forward(3), step(4), step(4, Loss.RELU_SUM), replace(step_alone(1), in_a_row=2)]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_case_computes_what_float_says_in_every_run_of_a_turn(case: Case) -> None:
    turn = both(case)
    assert len(turn) == case.in_a_row > 1
    for one in turn:
        assert max(party["error"] for party in one) < case.tolerance
        sent = {json.dumps([p[k]["rounds"] for k in ("offline", "online")]) for p in one}
        assert len(sent) == 1, "both parties count the same rounds"
    first, second = ([p["online"]["bytes_sent"] for p in one] for one in turn[:2])
    assert first == pytest.approx(second, rel=1e-3), "nothing is kept from run to run"


def test_what_is_waited_for_without_a_dealer_is_told_apart() -> None:
    ((one, _),) = both(step_alone(1))
    assert 0 < one["waited"] < one["seconds"]
    assert one["offline"]["bytes_sent"] > one["online"]["bytes_sent"] > 0


@pytest.mark.parametrize("loss", [Loss.SQUARED_ERROR, Loss.RELU_SUM])
def test_a_step_that_left_a_layer_alone_would_be_noticed(loss: Loss) -> None:
    case = step(128, loss)
    assert case.draw is not None
    values = case.draw(Coins.from_seed(case.name.encode()))
    new, at = case.expected(values), 0
    for weight in values[2:]:
        moved = np.abs(new[at : at + weight.size] - weight.reshape(-1)).max()
        assert moved > 2 * case.tolerance
        at += weight.size
    assert at == len(new)


def test_peers_are_asked_for_the_same_computations() -> None:
    asked = [(case.request, case.peers, case.dealer) for case in cases()]
    threes = "spu", "spu-threads", "crypten"
    assert asked == [
        ({"case": "mlp", "shape": [128]}, threes, True),
        ({"case": "mlp", "shape": [1]}, threes, True),
        ({"case": "sgd-step", "shape": [128]}, threes, True),
        ({"case": "sgd-step", "shape": [128], "softmax": "relu-sum"}, threes, True),
        ({"case": "sgd-step", "shape": [128]}, ("cheetah",), False),
    ]


class Told(Pair):
    """A pair that has measured already."""

    def __init__(self, *runs: Measured) -> None:
        self.runs, self.asked = runs, 0

    def measure(self, case: Case) -> list[tuple[Measured, Measured]]:
        self.asked += 1
        return [(one, one) for one in self.runs]


def run_of(error: float = 0.0) -> Measured:
    phase = {"bytes_sent": 5, "rounds": 2, "seconds": 0.5}
    return {
        "seconds": 3.0, "error": error, "waited": 2.0,
        "offline": {**phase, "bytes_sent": 70}, "online": phase,
    }  # fmt: skip


def rows_of(case: Case, run: Measured, repeats: int = 7) -> tuple[dict[str, Any], int]:
    told = Told(run)
    rows = _case_rows(case, told, {}, repeats, lambda said: None)
    return {row["metric"]: row["tacit"] for row in rows}, told.asked


def test_without_a_dealer_both_phases_have_rows_and_few_turns_are_taken() -> None:
    rows, asked = rows_of(step_alone(1), run_of())
    assert asked == 3
    assert (rows["seconds"], rows["offline_s"]) == (3.0, 2.0)
    assert (rows["bytes_sent"], rows["offline_bytes"], rows["online_bytes"]) == (75, 70, 5)
    assert (rows["rounds"], rows["offline_rounds"], rows["online_rounds"]) == (4, 2, 2)


def test_with_a_dealer_what_is_online_is_counted_after_a_turn_for_warmth() -> None:
    rows, asked = rows_of(step(1), run_of(), repeats=2)
    assert asked == 3 and (rows["bytes_sent"], rows["rounds"]) == (5, 2)
    assert "offline_s" not in rows


def test_a_wrong_result_ends_the_benchmark() -> None:
    with pytest.raises(TacitError, match=r"sgd-step batch=1: wrong by 0\.5"):
        rows_of(step(1), run_of(error=0.5))


def test_an_unknown_peer_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_two_server, "beside_peers", lambda *args: pytest.fail("measured"))
    with pytest.raises(UnknownName, match="crypten"):
        BENCHES["two-server"](quick=True, note=print, against=["crypton"])
