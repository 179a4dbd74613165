"""All parties of a run as processes of this machine, over TLS: `tacit train --link tcp`.

Certificates are made for the run, the parties are started by the commands that one would type on several machines
(`tacit coordinate`, `tacit join`), and one that is killed is started again and goes on. All processes are one user's, so
this shows what a scheme does and costs between processes; it keeps nothing from who runs it.
"""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tacit.audit.federation import describe
from tacit.audit.train import Setting, prepare
from tacit.core import errors
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, PeerDropped, TacitError
from tacit.core.files import make_folder, write_file
from tacit.nn.federated import Collaborative, Progress, silent
from tacit.parties.credentials import folder_name, issue_all
from tacit.parties.links.link import Shape
from tacit.parties.links.tcp import Note, unheard
from tacit.parties.roles import SERVER, Role, owners
from tacit.training.two_server import DEALER, NOBODY, SERVERS, Preprocessing, TwoServer

RESTARTS = 3
"""How often a party that was killed is started again."""

_NAME = "here"
_LISTENING = "listening on "


@dataclass(slots=True)
class _Party:
    """A process, and what it has said."""

    role: Role
    command: Sequence[str]
    said: queue.SimpleQueue[tuple[Role, str]]
    process: subprocess.Popen[str] = field(init=False)
    printed: list[str] = field(init=False, default_factory=list)
    last: str = ""  # the last line that is an error
    starts: int = 0
    _readers: list[threading.Thread] = field(init=False, default_factory=list)

    def start(self) -> None:
        self.starts += 1
        self.printed.clear()
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter, with arguments made here
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        streams = (self.process.stdout, self._print), (self.process.stderr, self._say)
        self._readers = [
            threading.Thread(target=_read, args=(stream, take), daemon=True)
            for stream, take in streams
        ]
        for reader in self._readers:
            reader.start()

    def _print(self, line: str) -> None:
        self.printed.append(line)

    def _say(self, line: str) -> None:
        if line.startswith("tacit: "):
            self.last = line
        self.said.put((self.role, line))

    def drained(self) -> None:
        for reader in self._readers:
            reader.join(5)
        for stream, reader in zip(
            (self.process.stdout, self.process.stderr), self._readers, strict=True
        ):
            if stream is not None and not reader.is_alive():
                stream.close()

    def end(self) -> None:
        if not self.starts:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.drained()

    def error(self) -> TacitError:
        """What the process ended with."""
        kind, _, text = self.last.removeprefix("tacit: ").partition(": ")
        found = getattr(errors, kind, None)
        if isinstance(found, type) and issubclass(found, TacitError) and text:
            made = found.__new__(found)
            made.args = (text,)
            return made
        return PeerDropped(
            f"{self.role} ended with status {self.process.returncode}: {self.last or 'it said nothing'}"
        )


def _read(stream: IO[str] | None, take: Any) -> None:
    for line in stream or ():
        take(line.rstrip("\n"))


def launch(  # noqa: PLR0913 - each is an option of `tacit train`
    scheme: str,
    protection: Collaborative | TwoServer,
    changes: Sequence[str],
    setting: Setting,
    *,
    shape: Shape | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    note: Note = unheard,
    secret_seed: str | None = None,
) -> dict[str, Any]:
    """Start all parties, wait for the run's end, and give back what the coordinator found.

    Args:
        scheme: what is run.
        protection: the same with its settings, which are checked by now.
        changes: the settings, as the parties are told them.
        setting: what it is run on.
        shape: a network to imitate.
        out: folder for model.safetensors and run.json; what a killed run left there is gone on with.
        overwrite: replace a model, or a run of other settings, that the folder holds.
        progress: told how much is done.
        note: told what the parties say.
        secret_seed: secrets follow from it: for tests alone.

    Raises:
        ConfigError: the folder holds another run.
        TacitError: what the coordinator ended with.
        PeerDropped: it was killed too often.
    """
    if isinstance(protection, TwoServer) and protection.open_to == NOBODY:
        raise ConfigError("open_to is nobody, so that no model comes out: name who gets it")
    with ExitStack() as stack:
        if out is None:
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="tacit-"))
            folder = Path(temporary)
        else:
            prepare(out, overwrite)
            folder = out / ".unfinished-tcp"
        about = f"{protection!r}|{setting!r}|{secret_seed}"
        others = _others(protection)
        roles = SERVER, *others, *owners(setting.owners)
        _lay_out(folder, roles, about, overwrite=overwrite)
        # Written each time: the ports of a run that is gone on with may be taken.
        places = dict(zip(SERVERS, _free(2), strict=True)) if others else {SERVER: ("127.0.0.1", 0)}
        text = describe(
            _NAME, scheme, setting, dict(change.split("=", 1) for change in changes), places[SERVER],
            {role: places.get(role) for role in others},
        )  # fmt: skip
        write_file(folder / "federation.toml", text)
        said: queue.SimpleQueue[tuple[Role, str]] = queue.SimpleQueue()
        first = SERVER
        if isinstance(protection, TwoServer):
            first, *_ = protection.receivers(owners(setting.owners)) or (SERVER,)
        parties = [
            _Party(role, _command(role, folder, first, shape, secret_seed, two=bool(others)), said)
            for role in (SERVER, *others, *owners(setting.owners))
        ]
        for party in parties:
            stack.callback(party.end)
        result = (
            _run_two(parties, first, said, progress, note)
            if others
            else _run(parties, folder, said, progress, note)
        )
        if out is not None:
            for name in ("model.safetensors", "run.json"):
                shutil.copyfile(folder / "out" / name, out / name)
            result["model"] = str(out / "model.safetensors")
            write_file(out / "run.json", json.dumps(result, indent=1) + "\n")
            shutil.rmtree(folder)
        else:
            result["model"] = None
    return result


def _others(protection: Collaborative | TwoServer) -> tuple[Role, ...]:
    """Who takes part beside server 0 and the owners."""
    if not isinstance(protection, TwoServer):
        return ()
    dealt = protection.preprocessing is Preprocessing.DEALER
    return (SERVERS[1], DEALER) if dealt else (SERVERS[1],)


def _free(count: int) -> list[tuple[str, int]]:
    """Ports of this machine that were free a moment ago."""
    with ExitStack() as stack:
        doors = [stack.enter_context(socket.socket()) for _ in range(count)]
        for door in doors:
            door.bind(("127.0.0.1", 0))
        return [("127.0.0.1", int(door.getsockname()[1])) for door in doors]


def _lay_out(folder: Path, roles: Sequence[Role], about: str, *, overwrite: bool) -> None:
    """Certificates, once; a folder of the same run is gone on with."""
    digest = hashlib.sha256(about.encode()).hexdigest()
    mark = folder / "about"
    if folder.exists() and any(folder.iterdir()):
        if mark.exists() and mark.read_text() == digest and not overwrite:
            return
        if mark.exists() and not overwrite:
            raise ConfigError(
                f"{folder} holds an unfinished run with other settings: give these again, another --out, or --overwrite"
            )
        shutil.rmtree(folder)
    make_folder(folder, private=True)
    issue_all(folder / "keys", _NAME, roles, coins=Coins())
    write_file(mark, digest)


def _command(
    role: Role,
    folder: Path,
    first: Role,
    shape: Shape | None,
    secret_seed: str | None,
    *,
    two: bool,
) -> list[str]:
    """The command of a party; ``first`` writes the model."""
    name = folder_name(role)
    command = [
        sys.executable,
        "-m",
        "tacit.cli.main",
        "coordinate" if role == SERVER and not two else "join",
    ]
    command += [str(folder / "federation.toml"), "--keys", str(folder / "keys" / name)]
    command += ["--state", str(folder / "state" / name)]
    if role == first:
        command += ["--out", str(folder / "out"), "--overwrite"]
    if role == first or two:
        command += ["--json"]
    if shape is not None:
        command += ["--delay", str(shape.delay), "--bandwidth", str(shape.bandwidth)]
    if secret_seed is not None:
        command += ["--secret-seed", secret_seed]
    return command


def _run(
    parties: Sequence[_Party],
    folder: Path,
    said: queue.SimpleQueue[tuple[Role, str]],
    progress: Progress,
    note: Note,
) -> dict[str, Any]:
    server, *members = parties
    server.command = [*server.command, "--address", "127.0.0.1:0"]
    server.start()
    address = ""
    while True:
        try:
            role, line = said.get(timeout=0.2)
        except queue.Empty:
            role, line = SERVER, ""
        if role == SERVER and line.startswith(_LISTENING) and not address:
            address = line.removeprefix(_LISTENING)
            for party in parties:  # one that is started again finds the others at the same place
                head = party.command[:-2] if party is server else party.command
                party.command = [*head, "--address", address]
            for member in members:
                member.start()
        elif role == SERVER and line.startswith("progress "):
            done, _, total = line.removeprefix("progress ").partition("/")
            progress(int(done), int(total))
        elif line:
            note(f"{role}: {line}")
        if server.process.poll() is not None:
            server.drained()
            if server.process.returncode == 0:
                break
        _restart(parties, note)
    _wait_for(members)
    result: dict[str, Any] = json.loads("\n".join(server.printed))
    return result


def _run_two(
    parties: Sequence[_Party],
    first: Role,
    said: queue.SimpleQueue[tuple[Role, str]],
    progress: Progress,
    note: Note,
) -> dict[str, Any]:
    """All parties of two-server training, to the end; if one is killed all begin again, the servers where they were."""
    losses: dict[int, float] = {}
    for party in parties:
        party.start()
    while not all(party.process.poll() == 0 for party in parties):
        _hear(said, losses, progress, note)
        if any(party.process.poll() for party in parties):
            _all_again(parties, note)
    for party in parties:
        party.drained()
    while not said.empty():
        _hear(said, losses, progress, note)
    results = {party.role: json.loads("\n".join(party.printed)) for party in parties}
    found: dict[str, Any] = results[first]
    found["cost"] = {name: cost for one in results.values() for name, cost in one["cost"].items()}
    found["rounds"] = max(one["rounds"] for one in results.values())
    if losses:
        found["losses"] = sorted(losses.items())
    return found


def _hear(
    said: queue.SimpleQueue[tuple[Role, str]],
    losses: dict[int, float],
    progress: Progress,
    note: Note,
) -> None:
    try:
        role, line = said.get(timeout=0.2)
    except queue.Empty:
        return
    what, _, rest = line.partition(" ")
    if role == SERVER and what == "progress":
        done, _, total = rest.partition("/")
        progress(int(done), int(total))
    elif role == SERVER and what == "loss":
        step, _, value = rest.partition(" ")
        losses[int(step)] = float(value)
        note(line)
    elif line:
        note(f"{role}: {line}")


def _all_again(parties: Sequence[_Party], note: Note) -> None:
    """One has ended, and the others cannot go on without it."""
    time.sleep(1.0)  # who ended because another was killed may be the first that is seen
    statuses = {party.role: party.process.poll() for party in parties}
    killed = [party for party in parties if (statuses[party.role] or 0) < 0]
    failed = [party for party in parties if (statuses[party.role] or 0) > 0]
    for party in parties:
        party.end()
    if not killed or parties[0].starts > RESTARTS:
        errors = [party.error() for party in (failed or killed)]
        raise next((error for error in errors if not isinstance(error, PeerDropped)), errors[0])
    gone = killed[0]
    note(f"{gone.role} was killed by signal {-gone.process.returncode}: all are started again")
    for party in parties:
        party.start()


def _restart(parties: Sequence[_Party], note: Note) -> None:
    """Start again who was killed; raise what the coordinator, or a member before it began, ended with."""
    for party in parties:
        if not party.starts or (status := party.process.poll()) is None or status == 0:
            continue
        party.drained()
        if status < 0 and party.starts <= RESTARTS:
            note(f"{party.role} was killed by signal {-status}: it is started again")
            party.start()
        elif party.role == SERVER or status < 0:
            raise party.error()


def _wait_for(members: Sequence[_Party]) -> None:
    """The coordinator has said goodbye to them."""
    end = time.monotonic() + 10
    for member in members:
        try:
            member.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            member.process.kill()
