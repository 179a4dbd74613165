"""Contracts that everything in the catalogue keeps."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import tacit
from tacit import catalogue
from tacit.audit.compare import Row
from tacit.core.claims import Basis, PrivacyLoss
from tacit.core.coins import Coins
from tacit.nn.federated import Task
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Run
from tacit.parties.views import FULL
from tacit.training.two_server import DEALER, SERVERS, TwoServer

ROWS = (*catalogue.rows(quick=True), *catalogue.sabotaged_rows(quick=True))
NAMED = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def trained(row: Row, task: Task) -> Run[Any]:
    return row.protection.train(
        task, coins=Coins.from_seed(b"contract"), recording=FULL, progress=lambda done, total: None
    )


def shortened(row: Row) -> Row:
    """The same protection with two rounds or epochs, small enough for a contract test."""
    names = {f.name for f in fields(row.protection)}  # type: ignore[arg-type]
    few = {name: 2 for name in ("rounds", "epochs") if name in names}
    return replace(row, protection=replace(row.protection, **few))  # type: ignore[type-var]


@NAMED
def test_every_run_has_claims_with_sources_cost_views_and_the_mark_of_seeded_coins(
    row: Row, task: Task
) -> None:
    run = trained(shortened(row), task)
    assert run.claims and all(
        claim.source and isinstance(claim.basis, Basis) for claim in run.claims
    )
    assert run.cost.total().bytes_sent == run.cost.total().bytes_received > 0
    assert run.cost.rounds > 0 and run.seeded is True
    more = {*SERVERS, DEALER} if isinstance(row.protection, TwoServer) else set()
    assert run.views.keys() == {SERVER, *(Role("owner", i) for i in range(3)), *more}


@NAMED
def test_every_run_reports_progress_to_its_end(row: Row, task: Task) -> None:
    told: list[tuple[int, int]] = []
    shortened(row).protection.train(
        task, coins=Coins(), recording=FULL, progress=lambda done, total: told.append((done, total))
    )
    assert told and told[-1][0] == told[-1][1] and told == sorted(told)


@NAMED
def test_every_role_observes_something_or_is_without_access(row: Row, task: Task) -> None:
    row = shortened(row)
    run = trained(row, task)
    for role, view in run.views.items():
        observation = row.protection.observe(view, role)
        assert observation.empty == (view.messages == 0)


@NAMED
def test_an_unprotected_row_says_so_and_a_control_bounds_nothing(row: Row, task: Task) -> None:
    run = trained(shortened(row), task)
    losses = [c.value for c in run.claims if isinstance(c.value, PrivacyLoss)]
    if row.unprotected:
        assert not losses
    if row.control:
        assert all(math.isinf(loss.epsilon) for loss in losses)


@NAMED
def test_received_equals_sent_frame_by_frame(row: Row, task: Task) -> None:
    run = trained(shortened(row), task)
    to_server = sorted(f.data for f in run.views[SERVER].frames())
    from_others = sorted(
        f.data
        for role in run.views
        if role != SERVER
        for f in run.views[role].sent()
        if f.peer == SERVER
    )
    assert to_server == from_others


def test_every_paper_has_its_number_once_and_a_module_that_exists_unless_planned() -> None:
    assert [p.number for p in catalogue.PAPERS] == list(range(1, 16))
    root = Path(tacit.__file__).parent
    for paper in catalogue.PAPERS:
        assert paper.citation and paper.protects and paper.against and paper.technique
        assert (root / paper.module).exists() == (paper.status != "planned"), paper.module
        assert paper.note or paper.status != "part", "what works so far must be said"


def test_each_protection_that_protects_has_a_sabotaged_twin() -> None:
    protecting = {type(r.protection) for r in catalogue.rows() if not r.unprotected}
    assert protecting == {type(r.protection) for r in catalogue.sabotaged_rows()}
