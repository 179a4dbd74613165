"""`tacit serve` and `tacit access`: a model as a prediction endpoint, and the keys that it knows."""

from __future__ import annotations

import ipaddress
import signal
import socket
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from tacit.cli.output import Json, print_json, say
from tacit.core.errors import ConfigError, TacitWarning, UnknownName

if TYPE_CHECKING:
    from torch import nn

    from tacit.prediction.plain import AccessPolicy, Keys, Service

LabelsOnly = Annotated[bool, typer.Option("--labels-only", help="Give the predicted label alone.")]
TopK = Annotated[
    int | None, typer.Option(help="Give the probabilities of so many likeliest classes.")
]
Digits = Annotated[int | None, typer.Option(help="Round probabilities to so many decimals.")]
Temperature = Annotated[
    float | None, typer.Option(help="Divide logits by this; above 1 flattens answers.")
]
Download = Annotated[bool, typer.Option("--download", help="Allow to fetch the model itself.")]
Budget = Annotated[
    int | None, typer.Option(help="Records that may be asked about, ever. Never given back.")
]
Rate = Annotated[float | None, typer.Option(help="Records a minute.")]
Burst = Annotated[
    int | None, typer.Option(help="With --rate: records at once after a pause; a minute's worth.")
]
AccessFile = Annotated[Path, typer.Option("--file", help="The TOML file of keys.")]

access_app = typer.Typer(
    no_args_is_help=True,
    help="""Keys of a prediction endpoint: who may ask it, and what each gets to see.

They are kept in a TOML file, by their SHA-256: a key is shown once, when it is made.

    tacit access add alice --digits 3 --budget 10000

    tacit access add auditor --download

    tacit serve model.safetensors --access access.toml
    """,
)

_NAME, _KEY = "default", "key.toml"


def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="A .safetensors file of tacit train; or, with --input-shape, module:factory with --weights, "
            "module:function, or a .onnx file."
        ),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="safetensors file for what module:factory gives.")
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(help="Of one record, as in 784 or 1,28,28; a .safetensors file says it."),
    ] = None,
    access: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of keys, each with its policy: see tacit access. Read again on SIGHUP."
        ),
    ] = None,
    anyone: Annotated[
        bool, typer.Option("--open", help="Answer without a key, under the policy given here.")
    ] = False,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make a new key; the old one is no longer taken.")
    ] = False,
    labels_only: LabelsOnly = False,
    top_k: TopK = None,
    digits: Digits = None,
    temperature: Temperature = None,
    download: Download = False,
    budget: Budget = None,
    rate: Rate = None,
    burst: Burst = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM, with its chain), for https.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    state: Annotated[
        Path,
        typer.Option(
            help="Folder of what was spent, of the audit log, and of the key's digest and policy. The default lies in "
            "the folder that this is run from: from another one, budgets begin anew."
        ),
    ] = Path("tacit-serve"),
    durable: Annotated[
        bool,
        typer.Option(
            "--durable", help="Sync each charge to disk: it then survives a power loss too."
        ),
    ] = False,
    max_batch: Annotated[int, typer.Option(help="Records a request.", min=1)] = 1024,
    max_body: Annotated[
        int | None, typer.Option(help="Bytes a request; what a batch takes in JSON.", min=1)
    ] = None,
    low: Annotated[float | None, typer.Option(help="Least value of a record.")] = None,
    high: Annotated[float | None, typer.Option(help="Greatest value of a record.")] = None,
    gives: Annotated[
        str | None,
        typer.Option(
            help="What the model answers: logits, probabilities or labels. By default logits of a torch module, "
            "probabilities of others."
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="With --gives labels: how many classes there are.", min=2)
    ] = None,
    device: Annotated[str, typer.Option(help="Where a torch module computes.")] = "cpu",
) -> None:
    """Serve a model over HTTP: predictions under a policy for each key, with budgets that survive a restart.

        tacit serve model.safetensors --digits 3 --budget 10000

    makes a key at the first start, prints it once, and answers its holder until Ctrl-C:

        tacit predict --url http://127.0.0.1:8000 --key-file key.txt records.npy

    For several keys with a policy each, see `tacit access`. What each policy still gives away is said in docs/serve.md.
    """
    try:
        from tacit.web.endpoint import AuditLog, Capacity, application, check_tls, server
    except ImportError as error:
        raise ConfigError(
            f"tacit serve needs starlette and uvicorn, not here ({error}): pip install 'tacit[web]'"
        ) from error
    from tacit.prediction.ledger import Ledger
    from tacit.prediction.plain import Limits, Service, write_keys

    settings = _settings(
        labels_only=labels_only, top_k=top_k, digits=digits, temperature=temperature, download=download, budget=budget,
        rate=rate, burst=burst,
    )  # fmt: skip
    if access is not None and (settings or anyone or new_key):
        raise ConfigError(
            "--access FILE, or a policy for the one key here, expected, both came: the file has a policy for each key"
        )
    if anyone and new_key:
        raise ConfigError("--open, or --new-key, expected, both came: who needs no key gets none")
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert and --tls-key expected together, one came")
    tls = None
    if tls_cert is not None and tls_key is not None:
        tls = tls_cert, tls_key
        check_tls(*tls)
    limits = Limits(batch=max_batch, low=low, high=high)
    capacity = Capacity(body=max_body, held=max(3 << 27, 2 * (max_body or 0)))
    module, shape = _model(model, weights, input_shape, device, gives, classes)
    with ExitStack() as stack:
        listening = stack.enter_context(_listening(host, port))
        ledger = stack.enter_context(closing(Ledger(state / "ledger.sqlite", durable=durable)))
        keys, key = _keys(access, state, settings, anyone=anyone, new_key=new_key)
        service = Service(module, shape, keys, ledger, limits)
        log = stack.enter_context(closing(AuditLog(state / "audit.jsonl")))
        app = application(service, log=log, capacity=capacity)
        if access is None and not anyone:
            write_keys(keys, state / _KEY)
        if key is not None:
            say(f"key: {key}\nkeep it: it is shown this once")
        if tls is None and not _loopback(host):
            warnings.warn(
                f"records, answers and keys travel in the clear to {host}: give --tls-cert and --tls-key, or put a server "
                "with TLS in front",
                TacitWarning,
                stacklevel=1,
            )
        where = listening.getsockname()[:2]
        url = f"{'http' if tls is None else 'https'}://{_bracketed(where[0])}:{where[1]}"
        # uvicorn raises a signal again when it has ended by it: that is no error here.
        _on(stack, signal.SIGINT, lambda *_: None)
        _on(stack, signal.SIGTERM, lambda *_: None)
        if access is not None and hasattr(signal, "SIGHUP"):
            _on(stack, signal.SIGHUP, lambda *_: _read_again(service, access))
        who = f"{len(keys.entries)} keys of {access}" if access else _said(keys.policies[0])
        ready = partial(say, f"serving {model} ({'open, ' if anyone else ''}{who}) at {url}")
        server(app, tls=tls, ready=ready).run(sockets=[listening])


def _on(stack: ExitStack, one: signal.Signals, do: Callable[..., None]) -> None:
    stack.callback(signal.signal, one, signal.signal(one, do))


@access_app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Who gets it: letters, digits and ._-")],
    file: AccessFile = Path("access.toml"),
    labels_only: LabelsOnly = False,
    top_k: TopK = None,
    digits: Digits = None,
    temperature: Temperature = None,
    download: Download = False,
    budget: Budget = None,
    rate: Rate = None,
    burst: Burst = None,
) -> None:
    """Make a key and print it, this once, on standard output. Without options its holder sees all scores."""
    from tacit.core.files import alone
    from tacit.prediction.plain import Keys, access_from, read_keys, write_keys

    settings = _settings(
        labels_only=labels_only, top_k=top_k, digits=digits, temperature=temperature, download=download, budget=budget,
        rate=rate, burst=burst,
    )  # fmt: skip
    with alone(_beside(file)):
        known = read_keys(file) if file.exists() else Keys()
        keys, key = known.added(access_from(name, settings))
        write_keys(keys, file)
    print(key)
    say(f"{name} is in {file}; the key is shown this once")


@access_app.command("list")
def listed(file: AccessFile = Path("access.toml"), as_json: Json = False) -> None:
    """Who has a key, and what each may do."""
    from tacit.audit.provenance import header
    from tacit.prediction.plain import read_keys, settings_of

    found = {access.name: settings_of(access) for access in read_keys(file).policies}
    if as_json:
        print_json({**header("access list", {"file": str(file)}, 0.0, seeded=False), "keys": found})
        return
    for name, settings in found.items():
        said = ", ".join(f"{one.replace('_', ' ')} {value}" for one, value in settings.items())
        print(f"{name:20} {said or 'all scores'}")


@access_app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Whose key.")],
    file: AccessFile = Path("access.toml"),
) -> None:
    """Take a key out of the file; a server that runs reads it again on SIGHUP.

    What its name has spent stays in the ledger, for a new key of that name.
    """
    from tacit.core.files import alone
    from tacit.prediction.plain import read_keys, write_keys

    with alone(_beside(file)):
        write_keys(read_keys(file).without(name), file)
    say(f"{name} is no longer in {file}")


def _beside(file: Path) -> Path:
    """What is locked while a file of keys is read and written anew."""
    return file.with_name(f".{file.name}.lock")


def _settings(**given: Any) -> dict[str, Any]:
    # By identity: 0 equals False, and is a limit.
    return {
        name: value for name, value in given.items() if value is not None and value is not False
    }


def _said(access: AccessPolicy) -> str:
    """A policy in words."""
    from tacit.prediction.plain import settings_of

    found = settings_of(access).items()
    said = ", ".join(f"{one.replace('_', ' ')} {value}" for one, value in found)
    return said or "all scores, without limit"


def _keys(
    access: Path | None, state: Path, settings: dict[str, Any], *, anyone: bool, new_key: bool
) -> tuple[Keys, str | None]:
    """The keys to serve, and the one that was made now."""
    from tacit.prediction.plain import Keys, access_from, read_keys

    if access is not None:
        return read_keys(access), None
    policy = access_from(_NAME, settings)
    if anyone:
        return Keys(anyone=policy), None
    own = state / _KEY
    if not own.exists():
        return Keys().added(policy)
    kept = read_keys(own).entries
    if len(kept) != 1:
        raise ConfigError(f"{own}: one key expected, {len(kept)} came: delete it to make a new one")
    ((digest, before),) = kept
    before = replace(before, name=_NAME)
    if not settings:
        policy = before
    elif policy != before:
        say(f"the key's policy was: {_said(before)}; it is now: {_said(policy)}")
    return Keys().added(policy) if new_key else (Keys(((digest, policy),)), None)


def _model(
    name: str,
    weights: Path | None,
    input_shape: str | None,
    device: str,
    gives: str | None,
    classes: int | None,
) -> tuple[nn.Module, tuple[int, ...]]:
    """The model, and the shape of its records."""
    import torch

    from tacit.audit.targets import Gives, open_target
    from tacit.nn.spec import load_model

    kind: Any = gives
    if gives is not None and gives not in get_args(Gives):
        raise UnknownName("kind of answer", gives, get_args(Gives))
    if gives == "labels" and classes is None:
        raise ConfigError(
            "--classes expected with --gives labels, which do not say how many there are"
        )
    shape = None if input_shape is None else _shape(input_shape)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: {device} cannot be used ({error})") from error
    if name.lower().endswith(".safetensors") and weights is None:
        spec = _spec(Path(name))
        if shape not in (None, spec):
            raise ConfigError(f"--input-shape: {name} says {spec}, {shape} came: leave it out")
        if gives is None:
            return load_model(Path(name)).to(place), spec
        shape = spec
    if shape is None:
        raise ConfigError(f"--input-shape expected, as in 784 or 1,28,28: {name} does not say it")
    opened = open_target(name, weights=weights, gives=kind, classes=classes)
    return opened.model.to(place), shape


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) < 1 << 31 for part in parts):
        raise ConfigError(f"--input-shape like 784 or 1,28,28 expected, {text!r} came")
    return tuple(int(part) for part in parts)


def _spec(path: Path) -> tuple[int, ...]:
    """The shape of a record, as a model's file says."""
    from safetensors import SafetensorError, safe_open

    from tacit.nn.spec import ModelSpec

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("tacit.spec")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as a safetensors file: {error}") from error
    if text is None:
        raise ConfigError(
            f"{path} does not describe its model: name module:factory, with --weights {path} and --input-shape"
        )
    return ModelSpec.from_json(text).input_shape


def _listening(host: str, port: int) -> socket.socket:
    """A socket bound to that place, before anything slow begins."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host: {host} is no address ({error.strerror or error})") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        made.listen(1024)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): give another --port; 0 takes a free one"
        ) from error
    return made


def _read_again(service: Service, access: Path) -> None:
    from tacit.core.errors import TacitError
    from tacit.prediction.plain import read_keys

    try:
        service.keys = read_keys(access)
    except TacitError as error:
        say(f"tacit: {access} was not read again, the keys stay as they are: {error}")
    else:
        say(f"read {access} again: {len(service.keys.entries)} keys")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
