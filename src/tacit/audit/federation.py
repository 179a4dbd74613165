"""A federation that is described in a file: who takes part, what is trained, and each party's process.

``federation.toml`` says what all parties agree on; everybody has the same, and a digest of it is compared before anything
else is said::

    name = "demo"                  # as in the certificates
    scheme = "secure-aggregation"  # one of `tacit train`
    model = "mlp"
    seed = 0                       # of dealing, first weights and order; secrets do not follow from it
    run = "first"                  # members answer each run once: another training needs another name

    [settings]                     # of the scheme
    rounds = 20

    [data]
    dataset = "digits"             # its training rows are dealt among the owners; or input_shape and classes, where each
    split = "iid"                  # owner brings its own records

    [[party]]
    role = "server 0"              # the coordinator
    address = "127.0.0.1:7443"

    [[party]]
    role = "owner 0"               # with own records: records = 600

The scheme "two-server" has two servers with an address each, and a dealer (`tacit.audit.two_server_parties`).

A party has a folder of certificates (`tacit.parties.credentials`) and one for its state. The coordinator keeps a checkpoint
and how many answers each member has given; a member its sealed state, and, beside its key, the number of its answers. So
each of them may be killed at any moment, and the same command goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tacit
from tacit.audit.figures import one_thread
from tacit.audit.train import (
    MODELS,
    SPLITS,
    Setting,
    finish,
    network,
    noted_warnings,
    prepare,
    task_of,
)
from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import (
    ConfigError,
    DataError,
    PeerDropped,
    TooFewParties,
    UnknownName,
    WireError,
)
from tacit.core.files import alone, write_file
from tacit.core.wire import Message, decode, encode
from tacit.nn.data import DataSet, load
from tacit.nn.federated import Collaborative, Progress, Shard, Task, silent
from tacit.nn.local_work import load_parameters, parameters_of
from tacit.nn.spec import save_model
from tacit.parties import credentials as certificates
from tacit.parties.checkpoints import NOTHING, FileCheckpoint
from tacit.parties.credentials import Credentials, state_key
from tacit.parties.durable import DurableMember, FileStore, FileWitness
from tacit.parties.faults import Fault
from tacit.parties.links.link import Shape
from tacit.parties.links.reactor import Limits
from tacit.parties.links.tcp import Address, Note, TcpHub, serve_member, unheard
from tacit.parties.roles import Role
from tacit.parties.seats import Seat
from tacit.parties.star import Seconds
from tacit.training.two_server import DEALER, SERVERS, TwoServer

_KEYS: Mapping[str, frozenset[str]] = {
    "": frozenset({"name", "run", "scheme", "model", "seed", "settings", "data", "party"}),
    "data": frozenset({"dataset", "split", "records", "input_shape", "classes", "columns"}),
    "party": frozenset({"role", "address", "records"}),
}


TWO_SERVER = "two-server"
"""The scheme whose parties form no star."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """What ``federation.toml`` says.

    Args:
        name: of the federation, as in the certificates.
        run: tells runs of the same settings apart.
        scheme: what is run.
        model: of the networks that `tacit train` knows.
        seed: of dealing, first weights and order.
        settings: of the scheme, as text.
        dataset: whose training rows are dealt; None where owners bring their own.
        split: how they are dealt.
        records: rows of each, where the data set is dealt; None for all.
        input_shape: of own records.
        classes: of own records.
        columns: names of their columns, if they have some.
        coordinator: who coordinates; server 0 of two.
        address: where.
        owners: who has records.
        others: everybody else, in two-server: server 1, the dealer.
        addresses: of those who listen.
        counts: own records of each owner, 0 where it is not said.
        digest: of all of it but the address.
    """

    name: str
    run: str
    scheme: str
    model: str
    seed: int
    settings: Mapping[str, str]
    dataset: str | None
    split: str
    records: int | None
    input_shape: tuple[int, ...]
    classes: int
    columns: tuple[str, ...] = ()
    coordinator: Role
    address: Address
    owners: tuple[Role, ...]
    others: tuple[Role, ...] = ()
    addresses: Mapping[Role, Address]
    counts: tuple[int, ...]
    digest: bytes = field(repr=False)

    @property
    def parties(self) -> tuple[Role, ...]:
        """Everybody."""
        return (self.coordinator, *self.others, *self.owners)


def read_federation(path: Path) -> Federation:
    """Read and check a description.

    Raises:
        ConfigError: the file is missing or malformed, or says something that cannot be; names where.
        UnknownName: a key, model or way to split that is not known.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}: `tacit coordinate --help` shows how to write one"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return _Reading(str(path)).federation(said)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Checks one description; ``path`` is for messages."""

    path: str

    def federation(self, said: dict[str, Any]) -> Federation:
        self._known("", said)
        data, parties = said.get("data", {}), said.get("party", [])
        if not isinstance(data, dict) or not isinstance(parties, list):
            raise ConfigError(f"{self.path}: [data] and [[party]] expected")
        self._known("data", data)
        model, split = self._text(said, "model", "mlp"), self._text(data, "split", "iid")
        if model not in MODELS:
            raise UnknownName("model", model, MODELS)
        if split not in SPLITS:
            raise UnknownName("way to split", split, SPLITS)
        scheme = self._text(said, "scheme")
        found = self._found(parties)
        owners = self._owners(found)
        addresses = self._two(found) if scheme == TWO_SERVER else self._one(found)
        columns = data.get("columns", [])
        dataset = self._text(data, "dataset", "") or None
        shape = data.get("input_shape", [])
        classes = self._number(data, "classes", 0)
        own = isinstance(shape, list) and len(shape) > 0
        if (dataset is None) is not own or (own and classes < 2):
            raise ConfigError(
                f"{self.path}, [data]: either a dataset, or input_shape and classes (2 or more) of the owners' own records"
            )
        if own and not all(isinstance(side, int) and 1 <= side <= 1 << 20 for side in shape):
            raise ConfigError(f"{self.path}, [data]: input_shape is a list of sizes, got {shape}")
        named = isinstance(columns, list) and all(isinstance(one, str) for one in columns)
        if not named or (columns and len(columns) != math.prod(shape)):
            raise ConfigError(
                f"{self.path}, [data]: columns is a list of names, one for each of {math.prod(shape)} numbers of a record"
            )
        settings = said.get("settings", {})
        if not isinstance(settings, dict):
            raise ConfigError(f"{self.path}: [settings] expected")
        agreed = {**said, "party": [{**one, "address": ""} for one in parties]}
        canonical = json.dumps(agreed, sort_keys=True, default=str)
        return Federation(
            name=self._text(said, "name"),
            run=self._text(said, "run", ""),
            scheme=scheme,
            model=model,
            seed=self._number(said, "seed", 0),
            settings={name: _as_text(value) for name, value in settings.items()},
            dataset=dataset,
            split=split,
            records=self._number(data, "records", 0) or None,
            input_shape=tuple(shape),
            classes=classes,
            columns=tuple(columns),
            coordinator=min(addresses),
            address=addresses[min(addresses)],
            owners=owners,
            others=tuple(sorted(set(found) - {min(addresses), *owners})),
            addresses=addresses,
            counts=tuple(self._number(found[role], "records", 0) for role in owners),
            digest=hashlib.sha256(canonical.encode()).digest(),
        )

    def _known(self, section: str, said: Mapping[str, object]) -> None:
        for name in said:
            if name not in _KEYS[section]:
                where = f"key of [{section}]" if section else "key"
                raise UnknownName(f"{where} in {self.path}", name, _KEYS[section])

    def _text(self, said: Mapping[str, object], name: str, default: str | None = None) -> str:
        value = said.get(name, default)
        if not isinstance(value, str):
            raise ConfigError(f'{self.path}: {name} = "..." expected, got {value!r}')
        return value

    def _number(self, said: Mapping[str, object], name: str, default: int) -> int:
        value = said.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise ConfigError(f"{self.path}: {name}, a number from 0, expected; got {value!r}")
        return value

    def _found(self, parties: Sequence[object]) -> dict[Role, Mapping[str, object]]:
        found: dict[Role, Mapping[str, object]] = {}
        for one in parties:
            if not isinstance(one, dict):
                raise ConfigError(f"{self.path}: [[party]] expected, got {one!r}")
            self._known("party", one)
            role = role_of(self._text(one, "role"))
            if role in found:
                raise ConfigError(f"{self.path}: {role} is a party twice: each role once")
            found[role] = one
        return found

    def _one(self, found: Mapping[Role, Mapping[str, object]]) -> dict[Role, Address]:
        servers = [role for role in found if role.kind == "server"]
        if len(servers) != 1:
            raise ConfigError(
                f"{self.path}: one coordinator expected, a party of role server 0; got {len(servers)}: "
                f"{', '.join(map(str, servers)) or 'none'}"
            )
        self._no_strangers(found, {"server", "owner"}, "server or owner")
        address = self._address(self._text(found[servers[0]], "address", ""))
        return {servers[0]: address}

    def _two(self, found: Mapping[Role, Mapping[str, object]]) -> dict[Role, Address]:
        servers = sorted(role for role in found if role.kind == "server")
        if tuple(servers) != SERVERS:
            raise ConfigError(
                f"{self.path}: parties server 0 and server 1 expected, got {', '.join(map(str, servers)) or 'none'}"
            )
        self._no_strangers(found, {"server", "owner", "dealer"}, "server, owner or dealer")
        if extra := [role for role in found if role.kind == "dealer" and role != DEALER]:
            raise ConfigError(f"{self.path}: one dealer at most, {DEALER}; got {extra[0]}")
        addresses = {
            role: self._address(self._text(found[role], "address", "")) for role in SERVERS
        }
        if addresses[SERVERS[0]] == addresses[SERVERS[1]]:
            raise ConfigError(f"{self.path}: both servers have the same address: each its own")
        return addresses

    def _no_strangers(
        self, found: Mapping[Role, Mapping[str, object]], kinds: set[str], known: str
    ) -> None:
        if strangers := sorted(role for role in found if role.kind not in kinds):
            raise ConfigError(f"{self.path}: {strangers[0]} has no part in this scheme: {known}")

    def _owners(self, found: Mapping[Role, Mapping[str, object]]) -> tuple[Role, ...]:
        owners = tuple(sorted(role for role in found if role.kind == "owner"))
        if [role.index for role in owners] != list(range(len(owners))) or not owners:
            raise ConfigError(
                f"{self.path}: parties owner 0, owner 1 and so on expected, got "
                f"{', '.join(map(str, owners)) or 'none'}"
            )
        return owners

    def _address(self, text: str) -> Address:
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or not 0 <= int(port) < 1 << 16:
            raise ConfigError(
                f'{self.path}: a server\'s address = "host:port" expected, got {text!r}'
            )
        return host.strip("[]"), int(port)


def _as_text(value: object) -> str:
    return "none" if value is None else str(value)


def role_of(text: str) -> Role:
    """The role that "owner 3" names.

    Raises:
        ConfigError: it names none.
    """
    kind, _, index = text.strip().partition(" ")
    if not kind.isalpha() or not kind.islower() or not index.isdigit() or len(index) > 9:
        raise ConfigError(f"a role such as 'owner 3' expected, got {text!r}")
    return Role(kind, int(index))


def describe(
    name: str,
    scheme: str,
    setting: Setting,
    settings: Mapping[str, str],
    address: Address,
    others: Mapping[Role, Address | None] | None = None,
) -> str:
    """A description as text: that of a data set that is dealt among owners; ``others`` are server 1 and a dealer."""
    lines = [
        f"name = {json.dumps(name)}", f"scheme = {json.dumps(scheme)}", f"model = {json.dumps(setting.model)}",
        f"seed = {setting.seed}", "", "[settings]",
        *(f"{key} = {json.dumps(value)}" for key, value in settings.items()), "", "[data]",
        f"dataset = {json.dumps(setting.dataset)}", f"split = {json.dumps(setting.split)}",
        *([f"records = {setting.records}"] if setting.records else []), "", "[[party]]", 'role = "server 0"',
        f'address = "{address[0]}:{address[1]}"',
    ]  # fmt: skip
    for role, place in (others or {}).items():
        lines += ["", "[[party]]", f'role = "{role}"']
        lines += [] if place is None else [f'address = "{place[0]}:{place[1]}"']
    for index in range(setting.owners):
        lines += ["", "[[party]]", f'role = "owner {index}"']
    return "\n".join(lines) + "\n"


# --- what each party works with


def task_for(
    federation: Federation, role: Role, records: Path | None = None
) -> tuple[Task, DataSet | None]:
    """The task as a party has it, with its own records and nobody else's; and the data set, if one is dealt.

    Args:
        federation: what was agreed on.
        role: whose process it is.
        records: an .npz file with the owner's records, ``inputs`` and ``labels``, where no data set is dealt.

    Raises:
        ConfigError: there are not enough rows, or no file where one is needed.
        DataError: the records are not of the form that was agreed on.
    """
    if federation.dataset is not None:
        if records is not None:
            raise ConfigError(
                f"the rows of {federation.dataset} are dealt among the owners: leave --records out, or describe own records "
                "by input_shape and classes"
            )
        setting = Setting(
            dataset=federation.dataset, model=federation.model, owners=len(federation.owners), records=federation.records,
            split=federation.split, seed=federation.seed,
        )  # fmt: skip
        data = load(federation.dataset)
        return task_of(setting, data).only(role), data
    shards: list[Shard | None] = [None] * len(federation.owners)
    if role in federation.owners:
        if records is None:
            raise ConfigError(
                f"{role} brings its own records: give --records FILE.npz with inputs and labels"
            )
        shards[role.index] = read_records(records, federation.columns)
    generator = torch.Generator().manual_seed(federation.seed)
    start = network(federation.model, federation.input_shape, federation.classes, generator)
    task = Task(
        name=federation.name, start=start, shards=tuple(shards), input_shape=federation.input_shape,
        classes=federation.classes, seed=federation.seed, counts=_whole(federation, shards),
    )  # fmt: skip
    return task, None


def _whole(federation: Federation, shards: Sequence[Shard | None]) -> tuple[int, ...]:
    """Everybody's number of records; where none is said, the own one is taken as it is."""
    return tuple(
        count or (0 if shard is None else len(shard[0]))
        for count, shard in zip(federation.counts, shards, strict=True)
    )


def read_records(path: Path, columns: Sequence[str] = ()) -> Shard:
    """Records and labels from an .npz file.

    Args:
        path: of the file.
        columns: names that its ``columns`` must have, in this order; without any it must have none.

    Raises:
        DataError: the file is missing or damaged, lacks one of them, or has other columns.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            inputs, labels = file["inputs"], file["labels"]
            named = tuple(map(str, file["columns"])) if "columns" in file else ()
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path} is no .npz file with arrays inputs (float32, one row a record) and labels (int64): {error}"
        ) from error
    if inputs.dtype != np.float32 or labels.dtype != np.int64:
        raise DataError(
            f"{path}: inputs must be float32 and labels int64, not {inputs.dtype} and {labels.dtype}"
        )
    if named != tuple(columns):
        raise DataError(f"{path}: {_other_columns(named, columns)}")
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def _other_columns(named: Sequence[str], columns: Sequence[str]) -> str:
    if not columns:
        return "it names its columns, and [data] of the description does not: say columns there, for all to compare"
    if not named:
        return f"it does not name its columns: add an array columns, {columns[0]!r} and so on"
    if len(named) != len(columns):
        return f"it has {len(named)} columns, and {len(columns)} were agreed on"
    at = next(k for k, (own, other) in enumerate(zip(named, columns, strict=True)) if own != other)
    return f"its column {at} is {named[at]!r}, and {columns[at]!r} was agreed on: put its columns in the same order"


def credentials_of(federation: Federation, keys: Path, role: Role | None) -> Credentials:
    """A party's certificates, if they are of this federation and role."""
    held = certificates.load(keys)
    if held.federation != federation.name:
        raise ConfigError(
            f"{keys} holds certificates of {held.federation}, the description is of {federation.name}: give the right folder"
        )
    if role is not None and held.role != role:
        raise ConfigError(f"{keys} is the folder of {held.role}, {role} was expected")
    if missing := [r for r in federation.parties if r not in held.registry]:
        raise ConfigError(
            f"{missing[0]} is a party of {federation.name}, and has no certificate in {keys / 'registry.pem'}"
        )
    return held


def _seat(credentials: Credentials, secret_seed: str | None) -> Seat:
    coins = Coins() if secret_seed is None else Coins.from_seed(secret_seed.encode())
    return Seat(
        coins=coins,
        identities={credentials.role: credentials.key},
        registry=credentials.registry,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how a party's process runs.

    Args:
        keys: folder of its certificates.
        state: folder of its checkpoint, or sealed state; None keeps none, and a process that was killed cannot go on.
        shape: a network to imitate.
        limits: what peers may do, and how long they are waited for.
        wait: seconds in which all must be connected.
        faults: what goes wrong, for tests.
        secret_seed: secrets follow from it: for tests alone.
        note: told what happens to connections.
    """

    keys: Path
    state: Path | None = None
    shape: Shape | None = None
    limits: Limits = field(default_factory=Limits)
    wait: Seconds = 300.0
    faults: Sequence[Fault] = ()
    secret_seed: str | None = None
    note: Note = unheard


def place(  # noqa: PLR0913 - each is an option of `tacit coordinate` and `tacit join`
    description: Path,
    name: str,
    *,
    keys: Path | None,
    state: Path | None,
    delay: float,
    bandwidth: float,
    patience: Seconds,
    wait: Seconds,
    secret_seed: str | None,
    note: Note,
) -> Place:
    """Where a party's process runs: folders beside the description where none are given.

    Raises:
        ConfigError: a number is out of range.
    """
    if not 0 < patience < 1e9 or not 0 < wait < 1e9:
        raise ConfigError(f"wait and patience above 0 expected, got {wait} and {patience}")
    return Place(
        keys=keys or description.parent / "keys" / name,
        state=state or description.parent / "state" / name,
        shape=Shape(delay=delay, bandwidth=bandwidth) if delay or bandwidth else None,
        limits=Limits(patience=patience, heartbeat=min(5.0, patience / 3)),
        wait=wait,
        secret_seed=secret_seed,
        note=note,
    )


def coordinate(
    federation: Federation,
    scheme: Collaborative,
    place: Place,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    address: Address | None = None,
    progress: Progress = silent,
    listening: Callable[[Address], None] = lambda address: None,
) -> dict[str, Any]:
    """The coordinator's process: wait for the members, train, measure, and write model.safetensors and run.json.

    Args:
        federation: what was agreed on.
        scheme: the scheme with its settings.
        place: where this process runs.
        out: folder for the model and the run.
        overwrite: replace a model that the folder holds.
        address: where to listen, if not where the description says.
        progress: told how much is done.
        listening: told where it listens.

    Returns:
        The run, as ``tacit coordinate --json`` prints it.

    Raises:
        ConfigError: certificates of another federation, a port that is taken, a folder that holds another run.
        TooFewParties: not enough members are connected, or answer.
        TacitError: whatever the scheme raises.
    """
    start = time.perf_counter()
    held = credentials_of(federation, place.keys, federation.coordinator)
    task, data = task_for(federation, federation.coordinator)
    about = about_of(federation, scheme, place)
    kept: _Answers | None = None
    if place.state is not None:
        name = federation.digest.hex()[:16]
        kept = _Answers(FileCheckpoint(place.state / f"{name}.checkpoint", about), held.registry)
    again = kept is not None and kept.file.path.exists()
    if out is not None:
        prepare(out, overwrite or again)  # what an unfinished run has written there is its own
    lock = nullcontext() if place.state is None else alone(place.state / "lock", wait=False)
    with (
        lock,
        one_thread(),
        noted_warnings() as said,
        TcpHub(
            held, federation.owners, address or federation.address, about=about, limits=_limits(place, task),
            shape=place.shape, faults=place.faults, numbers=kept.numbers() if kept is not None else None, note=place.note,
        ) as hub,
    ):  # fmt: skip
        listening(hub.address)
        _gather(hub, place, again=again)
        if kept is not None:
            kept.of = hub
        seat, checkpoint = _seat(held, place.secret_seed), kept or NOTHING
        run = scheme.run(hub, task, seat, progress=progress, checkpoint=checkpoint)
        seconds = time.perf_counter() - start
        result = finish(  # before goodbye: a coordinator that is killed here needs its members once more
            run, task, data, command="coordinate", scheme=federation.scheme, protection=scheme, seconds=seconds,
            settings={"federation": federation.name, "link": "tcp"}, warnings=said, out=out,
        )  # fmt: skip
    if kept is not None:
        kept.file.remove()
    return result


def join(
    federation: Federation,
    scheme: Collaborative,
    role: Role,
    place: Place,
    *,
    records: Path | None = None,
    address: Address | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """An owner's process: answer the coordinator until it has ended.

    Args:
        federation: what was agreed on.
        scheme: the scheme with its settings.
        role: who this is.
        place: where this process runs.
        records: an .npz file with own records, where no data set is dealt.
        address: where the coordinator is, if not where the description says.
        out: folder for the finished model.
        overwrite: replace a model that the folder holds.

    Raises:
        ConfigError: certificates of another federation or role, or no such party.
        CheatingDetected: the state was lost or restored from a backup.
        PeerDropped: the coordinator is gone.
        TacitError: whatever ended it.
    """
    if role not in federation.owners:
        raise ConfigError(
            f"{role} is no owner of {federation.name}: those are {', '.join(map(str, federation.owners))}"
        )
    held = credentials_of(federation, place.keys, role)
    task, _ = task_for(federation, role, records)
    if out is not None:
        prepare(out, overwrite, ("model.safetensors",))
    seat, about = _seat(held, place.secret_seed), about_of(federation, scheme, place)
    member = scheme.members_of(task, seat)[role]
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        mark, durable = None, DurableMember(member)
        if place.state is not None:
            name = federation.digest.hex()[:16]  # of the run: another one begins with another state
            # Beside the key, where a backup of the state does not reach; a new key begins a new count.
            who = hashlib.sha256(held.key.public).hexdigest()[:16]
            count = place.keys / f"answers-{name}-{who}"
            stack.enter_context(alone(count.with_suffix(".lock"), wait=False))
            mark = place.state / f"{name}.ended"
            if mark.exists():
                raise ConfigError(
                    f"{role} has answered this run to its end. For another one with the same settings give it another name, "
                    'for all: run = "second" in federation.toml'
                )
            durable = DurableMember(
                member,
                key=state_key(held, "state"),
                about=about + str(role).encode(),
                store=FileStore(place.state / name),
                witness=FileWitness(count),
            )
        finished = serve_member(
            durable, held, address or federation.address, coordinator=federation.coordinator, about=about,
            limits=_limits(place, task), first=place.wait, shape=place.shape, faults=place.faults, note=place.note,
        )  # fmt: skip
        if finished is None:
            raise PeerDropped(
                f"{federation.coordinator} has ended before the run was finished: start both again, and it goes on"
            )
        if out is not None:
            load_parameters(task.start, finished.arrays("model", like=parameters_of(task.start)))
            save_model(task.start, task.input_shape, out / "model.safetensors")
        if mark is not None:
            write_file(mark, "")


def about_of(federation: Federation, scheme: Collaborative | TwoServer, place: Place) -> bytes:
    """What is compared: who draws secrets from a seed takes part in no run whose parties do not."""
    about = agreed(federation, scheme)
    return about if place.secret_seed is None else hashlib.sha256(b"seeded" + about).digest()


def _limits(place: Place, task: Task) -> Limits:
    """What peers may do, with messages that are no larger than any that the task needs."""
    parameters = sum(array.size for array in parameters_of(task.start))
    records = 8 * max(task.records) * math.prod(task.input_shape)
    most = (1 << 26) + 64 * parameters + records
    return replace(place.limits, frame=min(place.limits.frame, most))


def _gather(hub: TcpHub, place: Place, *, again: bool) -> None:
    """Wait for the members; those of a run that goes on are missed for as long as any that is gone."""
    try:
        hub.wait(deadline=min(place.wait, place.limits.patience) if again else place.wait)
    except TooFewParties as missed:
        if not again or not missed.replied:
            raise
        place.note(f"going on with {', '.join(map(str, missed.replied))}: {missed}")


def agreed(federation: Federation, scheme: Collaborative | TwoServer) -> bytes:
    """A digest of all that the parties must have in common: the description, the scheme's settings, the version."""
    said = f"{tacit.__version__}|{scheme!r}|".encode()
    return hashlib.sha256(said + federation.digest).digest()


@dataclass(slots=True)
class _Answers:
    """A coordinator's checkpoint that also keeps how many answers each member has given, under which key."""

    file: FileCheckpoint
    registry: Mapping[Role, bytes]
    of: TcpHub | None = None

    def numbers(self) -> dict[Role, int]:
        """By role, for those whose key is still the same."""
        kept = self.file.load(CostMeter())
        if kept is None:
            return {}
        names, numbers = kept.fields.get("keys"), kept.array("numbers", dtype="<i8")
        if not isinstance(names, list) or len(names) != len(numbers):
            raise WireError("a checkpoint that does not say whose answers it counts")
        by_key = dict(zip(names, numbers.tolist(), strict=True))
        return {role: by_key.get(key, 0) for role, key in self.registry.items()}

    def load(self, cost: CostMeter) -> Message | None:
        kept = self.file.load(cost)
        return None if kept is None else decode(kept.blob("scheme"))

    def save(self, state: Message, cost: CostMeter) -> None:
        numbers = dict(self.of.numbers) if self.of is not None else {}
        self.file.save(
            Message(
                "numbered",
                scheme=encode(state),
                keys=[self.registry[role] for role in numbers],
                numbers=np.array(list(numbers.values()), np.int64),
            ),
            cost,
        )
