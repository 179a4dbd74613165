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
    protection: Collaborative,
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
    with ExitStack() as stack:
        if out is None:
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="tacit-"))
            folder = Path(temporary)
        else:
            prepare(out, overwrite)
            folder = out / ".unfinished-tcp"
        about = f"{protection!r}|{setting!r}|{secret_seed}"
        _lay_out(folder, scheme, changes, setting, about, overwrite=overwrite)
        said: queue.SimpleQueue[tuple[Role, str]] = queue.SimpleQueue()
        parties = [
            _Party(role, _command(role, folder, shape, secret_seed), said)
            for role in (SERVER, *owners(setting.owners))
        ]
        for party in parties:
            stack.callback(party.end)
        result = _run(parties, folder, said, progress, note)
        if out is not None:
            for name in ("model.safetensors", "run.json"):
                shutil.copyfile(folder / "out" / name, out / name)
            result["model"] = str(out / "model.safetensors")
            write_file(out / "run.json", json.dumps(result, indent=1) + "\n")
            shutil.rmtree(folder)
        else:
            result["model"] = None
    return result


def _lay_out(
    folder: Path,
    scheme: str,
    changes: Sequence[str],
    setting: Setting,
    about: str,
    *,
    overwrite: bool,
) -> None:
    """Certificates and the description, once; a folder of the same run is gone on with."""
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
    issue_all(folder / "keys", _NAME, (SERVER, *owners(setting.owners)), coins=Coins())
    settings = dict(change.split("=", 1) for change in changes)
    text = describe(_NAME, scheme, setting, settings, ("127.0.0.1", 0))
    write_file(folder / "federation.toml", text)
    write_file(mark, digest)


def _command(role: Role, folder: Path, shape: Shape | None, secret_seed: str | None) -> list[str]:
    name = folder_name(role)
    command = [sys.executable, "-m", "tacit.cli.main", "coordinate" if role == SERVER else "join"]
    command += [str(folder / "federation.toml"), "--keys", str(folder / "keys" / name)]
    command += ["--state", str(folder / "state" / name)]
    if role == SERVER:
        command += ["--out", str(folder / "out"), "--overwrite", "--json"]
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
