"""Parties as processes over TLS give what one process gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tacit import catalogue
from tacit.audit.train import Setting
from tacit.audit.train import train as train_here

Make = Callable[..., Any]
SETTINGS: dict[str, dict[str, str]] = {
    "federated-averaging": {"rounds": "4", "local_steps": "2"},
    "selective-sgd": {"epochs": "2", "local_steps": "2", "batch_size": "4", "theta_u": "0.1"},
    "secure-aggregation": {"rounds": "4", "local_steps": "2"},
}


@pytest.mark.parametrize("scheme", SETTINGS)
def test_three_processes_give_the_weights_and_bytes_of_one(scheme: str, parties: Make) -> None:
    run = parties(scheme, count=3, settings=SETTINGS[scheme])
    run.start_all()
    there = run.wait(60.0)
    protection = catalogue.scheme_with(scheme, [f"{k}={v}" for k, v in SETTINGS[scheme].items()])
    setting = Setting(dataset="digits", owners=3, records=12)
    here = train_here(scheme, protection, setting, secret_seed="kill")
    assert there["weights_sha256"] == here["weights_sha256"]
    assert there["rounds"] == here["rounds"] and there["claims"] == here["claims"]
    for role, cost in here["cost"].items():
        for name in ("messages", "bytes_sent", "bytes_received"):
            assert there["cost"][role][name] == cost[name], (role, name)


def test_a_run_with_fresh_coins_says_so(parties: Make) -> None:
    run = parties("secure-aggregation", count=3, settings={"rounds": "2"}, secret_seed=None)
    run.start_all()
    found = run.wait(60.0)
    assert found["seeded"] is False
