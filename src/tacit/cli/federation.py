"""`tacit coordinate` and `tacit join`: the parties of a federation, each started from its own terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.cli.output import Json, print_json, progress_bar, say, table_of_run
from tacit.core.errors import ConfigError

Description = Annotated[
    Path, typer.Argument(help="federation.toml: the same file for all parties.")
]
Keys = Annotated[
    Path | None,
    typer.Option(
        help="Folder of this party's certificates; keys/ROLE beside the description by default."
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        help="Folder in which to keep what it takes to go on after a kill; state/ROLE beside the description by default."
    ),
]
Where = Annotated[
    str | None, typer.Option("--address", help="host:port, if not the one in the description.")
]
Wait = Annotated[float, typer.Option(help="Seconds in which all must be connected.")]
Patience = Annotated[
    float, typer.Option(help="Seconds after which a party without connection counts as gone.")
]
Delay = Annotated[
    float, typer.Option(help="Imitate a network: seconds that a message takes one way.")
]
Bandwidth = Annotated[
    float, typer.Option(help="Imitate a network: bytes a second; 0 for no limit.")
]
SecretSeed = Annotated[
    str | None, typer.Option(help="For tests alone: secrets follow from this text.", hidden=True)
]


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) >= 1 << 16:
        raise ConfigError(f"--address: host:port expected, got {text!r}")
    return host.strip("[]"), int(port)


def _progress(bar: Any, what: str) -> Callable[[int, int], None]:
    """A bar, and, where no terminal shows it, a line a second."""
    task, told = bar.add_task(what, total=None), [0.0]

    def progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if not sys.stderr.isatty() and (now - told[0] > 1 or done == total):
            told[0] = now
            say(f"progress {done}/{total}")

    return progress


def coordinate(
    federation: Description,
    keys: Keys = None,
    state: State = None,
    address: Where = None,
    wait: Wait = 300.0,
    patience: Patience = 30.0,
    delay: Delay = 0.0,
    bandwidth: Bandwidth = 0.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for model.safetensors and run.json.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model in that folder.")] = False,
    secret_seed: SecretSeed = None,
    as_json: Json = False,
) -> None:
    """Coordinate a federation: wait for its members, train with them, and keep the model.

    All parties have the same federation.toml, for instance:

        name = "demo"
        scheme = "secure-aggregation"
        model = "mlp"

        [settings]
        rounds = 20

        [data]
        dataset = "digits"

        [[party]]
        role = "server 0"
        address = "127.0.0.1:7443"

        [[party]]
        role = "owner 0"

        [[party]]
        role = "owner 1"

    and each its own certificates: `tacit keys new --federation demo --owners 2` makes them all, for a try on one machine.
    Then, in three terminals: `tacit coordinate federation.toml --out model`,
    `tacit join federation.toml --role "owner 0"`, and the same for owner 1. Any of them may be killed and started again:
    the run goes on where it was.
    """
    from tacit import catalogue
    from tacit.audit import federation as parties
    from tacit.parties.credentials import folder_name
    from tacit.training.two_server import TwoServer

    described = parties.read_federation(federation)
    name = folder_name(described.coordinator)
    place = parties.place(
        federation, name, keys=keys, state=state, delay=delay, bandwidth=bandwidth, patience=patience, wait=wait,
        secret_seed=secret_seed, note=say,
    )  # fmt: skip
    scheme = catalogue.scheme_of(described)
    if isinstance(scheme, TwoServer):
        raise ConfigError(
            "two-server has no coordinator: each party, servers too, takes part by `tacit join`"
        )
    with progress_bar() as bar:
        progress = _progress(bar, f"coordinating {described.name}")
        result = parties.coordinate(
            described, scheme, place, out=out, overwrite=overwrite, address=_address(address),
            progress=progress, listening=lambda at: say(f"listening on {at[0]}:{at[1]}"),
        )  # fmt: skip
    if as_json:
        print_json(result)
    else:
        table_of_run(result)


def join(
    federation: Description,
    role: Annotated[
        str | None,
        typer.Option(help='Who this is, as "owner 0"; what the certificate says by default.'),
    ] = None,
    keys: Keys = None,
    state: State = None,
    records: Annotated[
        Path | None,
        typer.Option(
            help="Own records: an .npz file with inputs (float32) and labels (int64), where no data set is dealt."
        ),
    ] = None,
    address: Where = None,
    wait: Wait = 300.0,
    patience: Patience = 30.0,
    delay: Delay = 0.0,
    bandwidth: Bandwidth = 0.0,
    out: Annotated[Path | None, typer.Option(help="Folder for the finished model.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model in that folder.")] = False,
    secret_seed: SecretSeed = None,
    as_json: Json = False,
) -> None:
    """Take part in a federation as one of its owners, until the coordinator has ended; in two-server, as any party.

    See `tacit coordinate --help` for the description that all share. Killed, the same command goes on; but a member whose
    state was lost or restored from a backup is refused, because it could be made to answer twice: enrol it anew, with
    `tacit keys request` in a new folder, `tacit keys sign --renew`, and an empty state.
    """
    from tacit import catalogue
    from tacit.audit import federation as parties
    from tacit.audit import two_server_parties as two
    from tacit.audit.train import loss_line
    from tacit.parties.credentials import folder_name, load
    from tacit.training.two_server import TwoServer

    described = parties.read_federation(federation)
    if role is None and keys is None:
        raise ConfigError('say who this is: --role "owner 0", or --keys FOLDER')
    who = parties.role_of(role) if role is not None else load(keys or Path()).role
    place = parties.place(
        federation, folder_name(who), keys=keys, state=state, delay=delay, bandwidth=bandwidth, patience=patience,
        wait=wait, secret_seed=secret_seed, note=say,
    )  # fmt: skip
    scheme = catalogue.scheme_of(described)
    if isinstance(scheme, TwoServer):
        with progress_bar() as bar:
            result = two.join(
                described, scheme, who, place, records=records, address=_address(address), out=out, overwrite=overwrite,
                progress=_progress(bar, f"{who} of {described.name}"),
                told=lambda step, loss: say(loss_line(step, loss)),
            )  # fmt: skip
        if as_json:
            print_json(result)
        elif "accuracy" in result:
            table_of_run(result)
        else:
            say(f"{who}: {described.name} has ended")
        return
    if as_json:
        raise ConfigError(
            "a member has nothing to print as JSON: give --json to `tacit coordinate`"
        )
    parties.join(
        described, scheme, who, place, records=records, address=_address(address), out=out,
        overwrite=overwrite,
    )  # fmt: skip
    say(
        f"{who}: {described.name} has ended"
        + (f"; model: {out / 'model.safetensors'}" if out else "")
    )
