"""Parties killed with SIGKILL at any moment: the run ends as if nothing had happened, or with a typed error in time."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tacit.parties.credentials import load
from tacit.parties.roles import SERVER, Role

SETTINGS: dict[str, dict[str, str]] = {
    "federated-averaging": {"rounds": "6", "local_steps": "2"},
    "selective-sgd": {"epochs": "3", "local_steps": "2", "batch_size": "4"},
    "secure-aggregation": {"rounds": "6", "local_steps": "2", "session_rounds": "4"},
}
DEADLINE = 90.0
SCHEME = pytest.mark.parametrize("scheme", SETTINGS)

Make = Callable[..., Any]
_KNOWN: dict[str, tuple[str, float]] = {}


def undisturbed(make: Make, scheme: str) -> tuple[str, float]:
    """The weights of the run that nobody killed, and how long it took; once a scheme."""
    if scheme not in _KNOWN:
        run = make(scheme, name="undisturbed", settings=SETTINGS[scheme])
        start = time.monotonic()
        run.start_all()
        result = run.wait(DEADLINE)
        assert "error" not in result, result
        _KNOWN[scheme] = result["weights_sha256"], time.monotonic() - start
    return _KNOWN[scheme]


def killed(make: Make, scheme: str, who: Sequence[Role], after: float) -> dict[str, Any]:
    """Kill parties so many seconds after the start, and start them again at once."""
    run = make(scheme, name="killed", settings=SETTINGS[scheme])
    start, done = time.monotonic(), False
    run.start_all()

    def disturb() -> None:
        nonlocal done
        if not done and time.monotonic() - start >= after:
            done = True
            for role in who:
                run.kill(role)
            for role in who:
                if not run.said(role):  # it had not ended
                    run.start(role)

    found: dict[str, Any] = run.wait(DEADLINE, disturb)
    return found


@SCHEME
@pytest.mark.parametrize("who", [SERVER, Role("owner", 1)], ids=str)
def test_a_party_killed_in_the_middle_goes_on(scheme: str, who: Role, parties: Make) -> None:
    weights, took = undisturbed(parties, scheme)
    result = killed(parties, scheme, [who], 0.6 * took)
    assert result.get("weights_sha256") == weights, result


def test_a_machine_that_restarts_with_all_parties_goes_on(parties: Make) -> None:
    weights, took = undisturbed(parties, "secure-aggregation")
    everybody = [SERVER, *(Role("owner", index) for index in range(4))]
    result = killed(parties, "secure-aggregation", everybody, 0.6 * took)
    assert result.get("weights_sha256") == weights, result


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
@SCHEME
def test_a_party_killed_at_any_moment_goes_on(scheme: str, part: int, parties: Make) -> None:
    """Sixty runs: each scheme, the coordinator and the owners in turn, at moments spread over the whole run."""
    weights, took = undisturbed(parties, scheme)
    who = SERVER if part % 2 == 0 else Role("owner", part // 2 % 4)
    result = killed(parties, scheme, [who], took * (part + 0.5) / 20)
    assert result.get("weights_sha256") == weights, result


def test_an_owner_that_never_comes_back_is_left_out_of_the_sum(parties: Make) -> None:
    run = parties(
        "secure-aggregation",
        settings={"rounds": "200", "local_steps": "2", "deadline": "20"},
        patient=False,
    )
    run.start_all()
    state = run.checkpoint

    def kill_once_it_runs() -> None:
        if state.exists() and run.running[Role("owner", 2)].is_alive():
            run.kill(Role("owner", 2))

    result = run.wait(DEADLINE, kill_once_it_runs)
    assert "error" not in result, result
    assert any("owner 2 did not take part" in said for said in result["warnings"])


def test_below_the_threshold_the_run_ends_typed_and_goes_on_when_they_are_back(
    parties: Make,
) -> None:
    settings = {"rounds": "200", "local_steps": "2", "deadline": "20"}
    run = parties("secure-aggregation", settings=settings, patient=False)
    run.start_all()
    state = run.checkpoint

    def kill_two() -> None:
        if state.exists():
            for index in (1, 2):
                if run.running[Role("owner", index)].is_alive():
                    run.kill(Role("owner", index))

    result = run.wait(DEADLINE, kill_two)
    assert "error" in result and result["error"].startswith("TooFewParties"), result
    for role in run.roles:
        run.kill(role)
        run.start(role)
    result = run.wait(DEADLINE)
    assert "error" not in result, result
    assert not state.exists(), "a finished run leaves nothing to go on with"


def test_an_interrupted_coordinator_ends_no_member_s_run(parties: Make) -> None:
    weights, _ = undisturbed(parties, "federated-averaging")
    run = parties("federated-averaging", settings=SETTINGS["federated-averaging"])
    run.start_all()
    end = time.monotonic() + DEADLINE
    while not run.checkpoint.exists():
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(run.running[SERVER].pid, signal.SIGINT)
    for role in run.roles:
        run.running[role].join(20)
    if "KeyboardInterrupt" in run.said(SERVER):  # else it was done first
        assert all("interrupted" in run.said(Role("owner", n)) for n in range(4))
        run.start_all()
        assert run.wait(DEADLINE).get("weights_sha256") == weights


def test_a_coordinator_that_restarts_goes_on_without_who_is_gone(parties: Make) -> None:
    settings = {"rounds": "400", "local_steps": "2", "deadline": "20"}
    run = parties("secure-aggregation", settings=settings, patient=False)
    run.start_all()
    gone, restarted = Role("owner", 2), False

    def disturb() -> None:
        nonlocal restarted
        if run.checkpoint.exists() and not restarted:
            restarted = True
            run.kill(gone)
            run.kill(SERVER)
            run.start(SERVER)

    result = run.wait(DEADLINE, disturb)
    assert restarted and "error" not in result, result
    assert any("owner 2 did not take part" in said for said in result["warnings"])


def test_a_member_s_answers_are_counted_by_its_key_and_not_by_its_certificate(
    parties: Make,
) -> None:
    """A certificate that is renewed for the same key must not forget how many answers were given."""
    run = parties("federated-averaging", count=2, settings={"rounds": "2"})
    run.start_all()
    assert "error" not in run.wait(DEADLINE)
    place = run.place(Role("owner", 0))
    who = hashlib.sha256(load(place.keys).key.public).hexdigest()[:16]
    (count,) = [p for p in place.keys.glob("answers-*") if p.suffix != ".lock"]
    assert count.name.endswith(who) and count.read_text().strip() == "3"
