"""A federation whose parties are processes that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tacit import catalogue
from tacit.audit.federation import (
    Federation,
    Place,
    coordinate,
    describe,
    join,
    read_federation,
)
from tacit.audit.train import Setting
from tacit.core.coins import Coins
from tacit.core.errors import TacitError
from tacit.nn.data import load
from tacit.parties.credentials import folder_name, issue_all
from tacit.parties.links.reactor import Limits
from tacit.parties.roles import SERVER, Role, owners

FORK = multiprocessing.get_context("fork")
PATIENT = Limits(heartbeat=0.5, patience=20.0, handshake=5.0)
QUICK = Limits(heartbeat=0.3, patience=1.5, handshake=5.0)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Parties:
    """Starts, kills and restarts the processes of one run."""

    folder: Path
    keys: Path
    scheme: str
    count: int = 4
    settings: dict[str, str] = field(default_factory=dict)
    patient: bool = True
    running: dict[Role, Any] = field(default_factory=dict)
    secret_seed: str | None = "kill"

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        setting = Setting(dataset="digits", owners=self.count, records=12)
        address = ("127.0.0.1", free_port())
        text = describe("kills", self.scheme, setting, self.settings, address)
        self.path = self.folder / "federation.toml"
        self.path.write_text(text)
        load("digits")  # in this process, so that the forks have it

    @property
    def federation(self) -> Federation:
        return read_federation(self.path)

    @property
    def roles(self) -> tuple[Role, ...]:
        return (SERVER, *owners(self.count))

    def place(self, role: Role) -> Place:
        name = folder_name(role)
        keys = self.folder / "keys" / name
        if (
            not keys.exists()
        ):  # each run has its own, since a member's number of answers lies beside its key
            keys.mkdir(parents=True)
            for file in (self.keys / name).iterdir():
                (keys / file.name).write_bytes(file.read_bytes())
                (keys / file.name).chmod(0o600)
        return Place(
            keys=keys,
            state=self.folder / "state" / name,
            limits=PATIENT if self.patient else QUICK,
            wait=20.0,
            secret_seed=self.secret_seed,
        )

    @property
    def checkpoint(self) -> Path:
        """Of the coordinator, once it has one."""
        name = self.federation.digest.hex()[:16]
        return self.folder / "state" / "server-0" / f"{name}.checkpoint"

    def _work(self, role: Role) -> None:
        federation = self.federation
        scheme = catalogue.scheme_of(federation)
        if role == SERVER:
            out = self.folder / "out"
            result = coordinate(federation, scheme, self.place(role), out=out, overwrite=True)
            (self.folder / "result.json").write_text(json.dumps(result))
        else:
            join(federation, scheme, role, self.place(role))

    def start(self, role: Role) -> None:
        ended = self.folder / f"{folder_name(role)}.ended"
        ended.unlink(missing_ok=True)

        def run() -> None:
            try:
                self._work(role)
                ended.write_text("done")
            except TacitError as error:
                ended.write_text(f"{type(error).__name__}: {error}")
            except BaseException:
                ended.write_text("defect: " + traceback.format_exc())
            sys.stdout.flush()
            os._exit(0)

        process = FORK.Process(target=run, daemon=True)
        process.start()
        self.running[role] = process

    def start_all(self) -> None:
        for role in self.roles:
            self.start(role)

    def kill(self, role: Role) -> None:
        process = self.running[role]
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join(10)

    def said(self, role: Role) -> str:
        ended = self.folder / f"{folder_name(role)}.ended"
        return ended.read_text() if ended.exists() else ""

    def wait(self, deadline: float, during: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The coordinator's result, or what it ended with; fails where it hangs."""
        end = time.monotonic() + deadline
        while self.running[SERVER].is_alive():
            assert time.monotonic() < end, f"it hangs: {[self.said(r) for r in self.roles]}"
            during()
            time.sleep(0.01)
        said = self.said(SERVER)
        assert not said.startswith("defect"), said
        if said == "done":
            found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
            return found
        return {"error": said}

    def stop(self) -> None:
        for process in self.running.values():
            if process.is_alive():
                process.kill()
            process.join(10)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    issue_all(folder, "kills", (SERVER, *owners(8)), coins=Coins())
    return folder


@pytest.fixture
def parties(tmp_path: Path, certificates: Path) -> Iterator[Callable[..., Parties]]:
    made: list[Parties] = []

    def make(scheme: str, name: str = "run", **more: Any) -> Parties:
        one = Parties(tmp_path / name, certificates, scheme, **more)
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()
