"""The checks of the server's view: honest members pass, and each mistake is caught by the check that is meant for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tacit.audit import secure_view as module
from tacit.audit.secure_mutants import MUTANTS, Mutant
from tacit.audit.secure_view import (
    CHECKS,
    FALSE_ALARM,
    Subject,
    battery,
    combined,
    disclosed,
    examine,
)
from tacit.core.errors import ConfigError, ProtocolError, UnknownName
from tacit.parties.faults import Harm
from tacit.parties.roles import SERVER
from tacit.parties.secure_sum.agreement import Masks
from tacit.parties.secure_sum.member import SecureAggregationMember

SMALL = Subject(dimension=2_000)
EARLY = "the run ended early"


@pytest.mark.parametrize("seed", range(3))
def test_honest_members_pass_every_check(seed: int) -> None:
    found = battery(replace(SMALL, seed=seed))
    assert [f.name for f in found] == list(CHECKS)
    assert [f.says for f in found if not f.passed] == []
    for one in found:
        assert one.n > 0 and one.says and 0 <= one.false_alarm <= FALSE_ALARM
        assert (one.p_value is None) == (one.false_alarm == 0)
        assert one.p_value is None or one.p_value >= FALSE_ALARM


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mistake_is_caught_by_the_check_that_is_meant_for_it(mutant: Mutant) -> None:
    found = examine(replace(SMALL, member=mutant.member), mutant.caught_by)
    assert not found.passed and not found.says.startswith(EARLY), found


def test_every_check_has_a_mistake_that_it_alone_is_meant_for_or_the_sabotaged_run() -> None:
    meant = {mutant.caught_by for mutant in MUTANTS}
    assert meant | {"uniformity/masked"} == set(CHECKS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_members_with_other_numbers_pass_too() -> None:
    for subject in (
        Subject(members=5, dimension=1_000, rounds=2),
        Subject(members=8, dimension=500),
    ):
        assert all(f.passed for f in battery(subject)), subject


def test_a_run_without_masks_fails_where_values_are_looked_at_and_sums_stay_exact() -> None:
    found = {f.name: f for f in battery(replace(SMALL, masks=Masks.NONE))}
    assert not found["uniformity/masked"].passed and found["uniformity/masked"].p_value == 0
    assert not found["two-inputs"].passed
    assert found["exact-sum"].passed and found["range"].passed


def test_the_server_recovers_what_members_drew_and_what_is_left_adds_up_to_the_sum() -> None:
    subject = Subject(members=5, rounds=3, dimension=40)
    grid = module._on_grid(subject, 5, 3, 40)
    faults = module._missing_in_turn(5, range(3), Harm.DELAY)
    hub, session = module._opened_session(subject, module._values(grid), "test", faults=faults)
    module._aggregates(session, 3)
    list(hub.replies(deadline=1e6))
    seen = disclosed(hub.views[SERVER], session.agreement)
    assert len(seen.masked) == 15  # those that came late too
    assert len(seen.secrets["self"]) == 12 and len(seen.secrets["recovery"]) == 3
    assert len(seen.secrets["pairwise"]) == 12
    for round in range(3):
        stayed = [n for n in range(5) if seen.survived(round, n)]
        assert stayed == [n for n in range(5) if n != round]
        left = sum(seen.bare[round, n].astype(np.int64) for n in stayed) % (1 << seen.width)
        assert (left[:40] == grid[stayed, round].sum(0)).all()
        one = seen.bare[round, stayed[0]][:40]
        assert (one != grid[stayed[0], round]).mean() > 0.9


def test_statistics_tell_a_small_bias_and_pass_uniform_values() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(0, 1 << 19, (200_000,), generator=generator).numpy().astype(np.uint32)
    assert module._p_uniform([values], 19) > 0.001
    biased = values.copy()
    biased[::50] &= 0xFFFFF00  # 2 % of the low bytes are zero
    assert module._p_uniform([biased], 19) < FALSE_ALARM
    high = values.copy()
    high[::20] &= 0x3FFFF  # 5 % of the highest bits
    assert module._p_uniform([high], 19) < FALSE_ALARM
    assert module._p_same([values[:100_000]], [values[100_000:]], 19) > 0.001
    assert module._p_same([values], [biased], 19) < FALSE_ALARM
    secrets = [row.tobytes() for row in values[:400].reshape(100, 4).view(np.uint8)]
    assert module._p_fair(secrets) < FALSE_ALARM  # 13 bits of 32 are never set


def test_a_protocol_that_does_not_come_to_its_end_fails_its_checks() -> None:
    class Refuses(SecureAggregationMember):
        def _masked_input(self, request, round):
            raise ProtocolError("no")

    found = examine(Subject(member=Refuses, dimension=10), "exact-sum")
    assert not found.passed and found.says.startswith(EARLY)


def test_bad_requests_are_typed_errors() -> None:
    with pytest.raises(ConfigError, match="5 members"):
        Subject(members=4)
    with pytest.raises(UnknownName, match="uniformity/masked"):
        examine(SMALL, "uniformity/maskd")


def test_several_p_values_are_combined_by_their_least() -> None:
    assert combined([0.5, 0.01, None]) == 0.02
    assert combined([0.9, 0.8]) == 1 and combined([None]) == 1
