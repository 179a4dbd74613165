"""The parties of two-server training, each a process: two servers, a dealer, and the owners of the records.

All have the same ``federation.toml`` (`tacit.audit.federation`)::

    name = "demo"
    scheme = "two-server"

    [settings]
    epochs = 5

    [data]
    dataset = "digits"             # or input_shape, classes, and names of columns, where owners bring their own records

    [[party]]
    role = "server 0"
    address = "127.0.0.1:7443"

    [[party]]
    role = "server 1"
    address = "127.0.0.1:7444"

    [[party]]
    role = "dealer 0"              # not with preprocessing = "transfers"

    [[party]]
    role = "owner 0"               # with own records: records = 600

The servers listen; dealer and owners connect to both of them, and not to each other. Each server keeps its shares of the
weights in its state folder. When a party is gone all others end; started again, they go on from the last step of which both
servers have kept their shares, with new masks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from tacit.audit.federation import (
    Federation,
    Place,
    about_of,
    credentials_of,
    task_for,
)
from tacit.audit.figures import one_thread
from tacit.audit.provenance import header, plain
from tacit.audit.train import finish, noted_warnings, prepare
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.core.files import alone
from tacit.nn.federated import Progress, Task, silent
from tacit.parties.checkpoints import Checkpoint, FileCheckpoint
from tacit.parties.links.tcp import Address
from tacit.parties.links.tcp_pair import PartyRun, run_party
from tacit.parties.roles import Role
from tacit.parties.runs import Opened, Run, plain_settings
from tacit.parties.star import Seconds
from tacit.training.two_server import (
    DEALER,
    NOBODY,
    SERVERS,
    Preprocessing,
    Told,
    TwoServer,
    claims_of,
)

BETWEEN: Seconds = 120.0
"""Seconds that a server waits for a message. A peer that is gone is noticed sooner, by its silence."""

_WHOLE: Seconds = 30 * 24 * 3600.0  # owners and the dealer wait as long as the training takes


def check(federation: Federation, scheme: TwoServer) -> None:
    """Find out what cannot be before anybody connects.

    Raises:
        ConfigError: the parties are not those that the settings need, or nobody gets the model.
    """
    dealt = scheme.preprocessing is Preprocessing.DEALER
    if dealt is not (DEALER in federation.others):
        raise ConfigError(
            f"preprocessing is {scheme.preprocessing.value}, "
            + (f"and there is no party {DEALER}" if dealt else f"which takes no {DEALER}")
            + f": {'add' if dealt else 'remove'} it in federation.toml, or change the setting"
        )
    if scheme.open_to == NOBODY:
        raise ConfigError("open_to is nobody, so that no model comes out: name who gets it")
    scheme.receivers(federation.owners)
    if federation.dataset is None and not all(federation.counts):
        least = federation.counts.index(0)
        raise ConfigError(
            f"owner {least}: records = NUMBER expected in federation.toml, since the steps follow from it"
        )


def join(  # noqa: PLR0913 - each is an option of `tacit join`
    federation: Federation,
    scheme: TwoServer,
    role: Role,
    place: Place,
    *,
    records: Path | None = None,
    address: Address | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    told: Told = lambda step, loss: None,
) -> dict[str, Any]:
    """One party's process, from its connections to its end.

    Args:
        federation: what was agreed on.
        scheme: the settings.
        role: who this is.
        place: where this process runs.
        records: an owner's .npz file, where no data set is dealt.
        address: where a server listens, if not where the description says.
        out: an owner's folder for the model and the run.
        overwrite: replace a model that the folder holds.
        progress: told by server 0 after each step.
        told: given each loss that is opened, at server 0.

    Returns:
        What this party's part cost; at an owner that gets the model, the run as ``tacit train --json`` prints it.

    Raises:
        ConfigError: certificates of another federation or role, no such party, or parties that do not fit the settings.
        DataError: the records are not of the form that was agreed on.
        PeerDropped: another party is gone.
        ProtocolError: another party was told something else.
    """
    start = time.perf_counter()
    if role not in federation.parties:
        raise ConfigError(
            f"{role} is no party of {federation.name}: those are {', '.join(map(str, federation.parties))}"
        )
    check(federation, scheme)
    gets = role in scheme.receivers(federation.owners)
    if out is not None and not gets:
        raise ConfigError(
            f"{role} does not get the model: leave --out out, or change open_to for all"
        )
    if address is not None and role not in SERVERS:
        raise ConfigError(
            f"{role} listens nowhere: leave --address out; that of a server is in the description"
        )
    if records is not None and role not in federation.owners:
        raise ConfigError(f"{role} has no records: leave --records out")
    held = credentials_of(federation, place.keys, role)
    task, data = task_for(federation, role, records)
    if out is not None:
        prepare(out, overwrite)
    coins = Coins() if place.secret_seed is None else Coins.from_seed(place.secret_seed.encode())
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        said = stack.enter_context(noted_warnings())
        kept: dict[Role, Checkpoint] = {}
        file: FileCheckpoint | None = None
        about = about_of(federation, scheme, place)
        if role in SERVERS and place.state is not None:
            stack.enter_context(alone(place.state / "lock", wait=False))
            file = FileCheckpoint(place.state / f"{federation.digest.hex()[:16]}.checkpoint", about)
            kept[role] = file
        parties = scheme.parties_of(
            task if role in federation.owners else task.only(), coins, progress=progress, told=told, checkpoints=kept,
            columns=federation.columns,
        )  # fmt: skip
        done = run_party(
            parties[role], held, _peers(federation, role, address), about=about, first=place.wait, limits=place.limits,
            deadline=BETWEEN if role in SERVERS else _WHOLE, shape=place.shape, note=place.note,
        )  # fmt: skip
        if file is not None:
            file.remove()
    seconds = time.perf_counter() - start
    if isinstance(done.output, nn.Module):
        run = _opened(done, done.output, scheme, task, coins)
        return finish(
            run, task, data, command="join", scheme=federation.scheme, protection=scheme, seconds=seconds,
            settings=_settings(federation, role), warnings=said, out=out,
        )  # fmt: skip
    return {
        **header("join", _settings(federation, role), seconds, seeded=coins.seeded),
        "scheme": federation.scheme,
        "protection": plain(scheme),
        "cost": _cost(done),
        "rounds": done.cost.rounds,
        "model": None,
    }


def _settings(federation: Federation, role: Role) -> dict[str, object]:
    return {"federation": federation.name, "role": str(role), "link": "tcp"}


def _cost(done: PartyRun[Any]) -> dict[str, dict[str, float]]:
    return {role: cost.described() for role, cost in done.cost.by().items()}


def _opened(
    done: PartyRun[Any], model: nn.Module, scheme: TwoServer, task: Task, coins: Coins
) -> Run[Opened[nn.Module]]:
    return Run(
        output=Opened(model, scheme.receivers(task.owners)), cost=done.cost, views={done.view.role: done.view},
        claims=claims_of(scheme), settings=plain_settings(scheme), seeded=coins.seeded,
    )  # fmt: skip


def _peers(
    federation: Federation, role: Role, address: Address | None
) -> Mapping[Role, Address | None]:
    """Where those are with whom a party talks; None for those who only connect."""
    listen: dict[Role, Address | None] = dict(federation.addresses)
    if role not in SERVERS:
        return {**listen, role: None}
    if address is not None:
        listen[role] = address
    rest = [one for one in federation.parties if one not in SERVERS]
    return {**listen, **dict.fromkeys(rest)}
