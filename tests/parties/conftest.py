"""What tests of links over TCP share: a federation, and a look at what a test leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tacit.core.coins import Coins
from tacit.parties.credentials import Credentials, folder_name, issue_all, load
from tacit.parties.roles import SERVER, Role, owners

from .proxy import descriptors, until

Parties = Callable[[Role], Credentials]


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of two servers, a dealer and eight owners; not to be changed."""
    out = tmp_path_factory.mktemp("federation")
    roles = (SERVER, Role("server", 1), Role("dealer"), *owners(8))
    issue_all(out, "hospitals", roles, coins=Coins.from_seed(b"links"))
    return out


@pytest.fixture(scope="session")
def parties(federation: Path) -> Parties:
    """Anybody's credentials."""
    return cache(lambda role: load(federation / folder_name(role)))


LEAKY = "ignore:unclosed <ssl.SSLSocket:ResourceWarning"
"""Python's `ssl` leaves a socket to the collector if its connection is reset while it is wrapped; they are counted here."""


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No thread and no file descriptor outlives the test."""
    threads, before = set(threading.enumerate()), descriptors()
    yield
    until(lambda: set(threading.enumerate()) <= threads)
    left = [thread.name for thread in set(threading.enumerate()) - threads]
    assert not left
    until(lambda: descriptors() <= before, 2.0)
    assert descriptors() <= before
