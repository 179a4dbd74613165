"""A party that dies, hangs, or says something else, at any message: typed errors at once, and never a wrong model."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tests.conftest import small_task
from tests.parties.tampered import Tampering, only
from torch import nn

from tacit.core.coins import Coins
from tacit.core.errors import ProtocolError, TacitError, WireError
from tacit.nn.federated import Task
from tacit.nn.local_work import parameters_of
from tacit.nn.networks import initialise
from tacit.parties.faults import Fault, Harm
from tacit.parties.links.local import outputs_of, run_pair
from tacit.parties.roles import Role
from tacit.parties.two_party.network import Loss
from tacit.training.two_server import DEALER, SERVERS, Preprocessing, TwoServer

TINY = TwoServer(epochs=1, batch_size=4, loss=Loss.LOGISTIC, open_to="owner 0")
OWNER = Role("owner", 0)
QUICK = 10.0
ROLES = (*SERVERS, OWNER, Role("owner", 1), DEALER)


def coins() -> Coins:
    return Coins.from_seed(b"hostile")


def tiny() -> Task:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    task = small_task(owners=2, records=2)
    return replace(task, start=initialise(model, torch.Generator().manual_seed(1)))


@cache
def honest(by: Preprocessing):
    """The model, and how many messages each party sends."""
    ran = run_pair(replace(TINY, preprocessing=by).parties_of(tiny(), coins()), deadline=QUICK)
    model = outputs_of(ran)[OWNER]
    return parameters_of(model), {r: ran.cost.total(role=r).messages for r in ran.views}


def never_wrong(ran, by: Preprocessing = Preprocessing.DEALER) -> None:
    """All errors are typed; a model that somebody got all the same is the right one."""
    for role, error in ran.errors.items():
        assert isinstance(error, TacitError), (role, error)
    if isinstance(model := ran.outputs.get(OWNER), nn.Module):
        pairs = zip(parameters_of(model), honest(by)[0], strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


# --- gone, or silent


@pytest.mark.parametrize("harm", [Harm.DIE, Harm.HANG], ids=lambda harm: harm.name)
@pytest.mark.parametrize("by", Preprocessing, ids=lambda p: p.value)
def test_a_party_that_is_gone_or_silent_ends_the_run_at_once(by: Preprocessing, harm: Harm) -> None:
    """At each message of a run with a dealer; at every fifteenth of one with transfers."""
    _, messages = honest(by)
    began = time.monotonic()
    every = 1 if by is Preprocessing.DEALER else 15
    for role, count in messages.items():
        for number in range(0, count, every if count > every else 1):
            fault = Fault(role=role, at=number, harm=harm)
            parties = replace(TINY, preprocessing=by).parties_of(tiny(), coins())
            ran = run_pair(parties, faults=(fault,), deadline=60.0)
            assert role in ran.errors
            never_wrong(ran, by)
            if role == OWNER:
                assert OWNER not in ran.outputs
    assert time.monotonic() - began < 50.0  # of the deadlines, a minute each, none was waited for


# --- messages that are none


CHANGES = {
    "another tag": lambda tag, arrays: (tag + "!", arrays),
    "one more": lambda tag, arrays: (tag, [*arrays, np.zeros(1, np.uint64)]),
    "nothing": lambda tag, arrays: (tag, []),
    "floats": lambda tag, arrays: (tag, [one.astype(np.float64) for one in arrays]),
    "longer": lambda tag, arrays: (tag, [np.concatenate([one, one[:1]]) for one in arrays]),
    "shorter": lambda tag, arrays: (tag, [one[:-1] for one in arrays]),
    "flat": lambda tag, arrays: (tag, [one[None] for one in arrays]),
    "a scalar": lambda tag, arrays: (tag, [np.zeros((), one.dtype) for one in arrays]),
}


def tampered(culprit: Role, number: int, change):
    """A run in which a culprit's message of that number is another one."""
    parties = TINY.parties_of(tiny(), coins())
    turn, work = only(number, change), parties[culprit]
    parties[culprit] = lambda channels: work({r: Tampering(c, turn) for r, c in channels.items()})
    return run_pair(parties, deadline=QUICK)


@pytest.mark.parametrize("culprit", ROLES, ids=str)
def test_a_message_of_another_form_is_refused_whichever_it_is(culprit: Role) -> None:
    """Each message of each party in turn, with another tag, and with the other changes in rotation."""
    others = [name for name in CHANGES if name != "another tag"]
    for number in range(honest(Preprocessing.DEALER)[1][culprit]):
        for name in (
            "another tag",
            others[number % len(others)],
            others[(number + 3) % len(others)],
        ):
            changed: list[bool] = []

            def change(tag, arrays, name=name, changed=changed):
                changed.append(bool(arrays) or name in ("another tag", "one more"))
                return CHANGES[name](tag, arrays)

            ran = tampered(culprit, number, change)
            never_wrong(ran)
            if changed[0] and not (name == "one more" and not ran.errors):
                refused = [e for r, e in ran.errors.items() if r != culprit]
                assert any(
                    isinstance(e, ProtocolError | WireError) and str(culprit) in str(e) for e in refused
                ), (number, name, ran.errors)  # fmt: skip


TERMS = {
    "nothing": [],
    "two": [np.zeros(3, np.uint8)] * 2,
    "no text": [np.zeros(4, np.float64)],
    "no UTF-8": [np.full(9, 255, np.uint8)],
    "no JSON": [np.frombuffer(b"{", np.uint8)],
    "no table": [np.frombuffer(b"[1, 2]", np.uint8)],
    "numbers": [np.frombuffer(b'{"epochs": 1}', np.uint8)],
    "an empty table": [np.frombuffer(b"{}", np.uint8)],
    "deep": [np.frombuffer(b"[" * 100_000, np.uint8)],
    "a long number": [np.frombuffer(b"9" * 10_000, np.uint8)],
    "too long": [np.frombuffer(b" " * (1 << 21), np.uint8)],
}


@pytest.mark.parametrize("culprit", [SERVERS[1], OWNER, DEALER], ids=str)
@pytest.mark.parametrize("what", TERMS)
def test_terms_that_are_none_are_refused(what: str, culprit: Role) -> None:
    ran = tampered(culprit, 0, lambda tag, arrays: (tag, TERMS[what]))
    assert OWNER not in ran.outputs
    for error in ran.errors.values():
        assert isinstance(error, TacitError), ran.errors
    assert any(isinstance(e, ProtocolError) and str(culprit) in str(e) for e in ran.errors.values())
