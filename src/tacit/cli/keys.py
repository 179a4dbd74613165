"""``tacit keys``: the certificates by which the parties of a federation know each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tacit.cli.output import print_json, say
from tacit.core.errors import ConfigError

if TYPE_CHECKING:
    from tacit.parties.roles import Role

_HELP = """Certificates: who is who in a federation.

Every party has a folder with its key, its certificate, the authority's, and the registry of all. On one machine, to try out
or where one owner has all machines:

    tacit keys new --federation hospitals --owners 3

Among several owners no key leaves the machine it was made on. One of them is the authority; each of the others asks, gets an
answer, and puts it in place:

    tacit keys authority --federation hospitals

    tacit keys request --federation hospitals --role "owner 0"

    tacit keys sign keys/authority request.pem

    tacit keys accept keys/owner-0 --certificate owner-0.pem --ca ca.pem --registry registry.pem
"""

keys_app = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode="markdown")

Federation = Annotated[str, typer.Option(help="Its name: 1 to 64 of a-z, 0-9 and -.")]
Out = Annotated[Path, typer.Option(help="The folder to make the folders in.")]
Days = Annotated[int, typer.Option(help="How long the certificates are good.")]

_OUT = Path("keys")
_DAYS = 365


@keys_app.command()
def new(
    federation: Federation,
    owners: Annotated[int, typer.Option(min=0, help="How many owners: owner 0, owner 1 ...")],
    out: Out = _OUT,
    days: Days = _DAYS,
    role: Annotated[
        list[str] | None,
        typer.Option(help="Another role, for instance 'client 0'. May be given more than once."),
    ] = None,
) -> None:
    """Make an authority, and keys and certificates for server 0, all owners and every other role, on this machine.

    Who runs this knows everybody's keys: it is for machines of one owner, and for trying out. Move each folder to its
    party's machine and delete it here. Several owners use `tacit keys request` each, and one of them `tacit keys sign`.
    """
    from tacit.core.coins import Coins
    from tacit.parties import roles
    from tacit.parties.credentials import folder_name, issue_all

    others = [_role(text) for text in role or ()]
    everybody = list(dict.fromkeys((roles.SERVER, *roles.owners(owners), *others)))
    issue_all(out, federation, everybody, days=days, coins=Coins("keys"))
    for one in everybody:
        say(f"{one}: {out / folder_name(one)}")
    say(f"authority: {out / 'authority'}; who holds ca.key there can name any key as any role")


@keys_app.command()
def authority(federation: Federation, out: Out = _OUT, days: Days = _DAYS) -> None:
    """Make the authority of a federation: the key that says who is who.

    Keep ca.key where only those get at it whom every party trusts with that. Give each party ca.pem, and tell it the
    fingerprint by another way. No certificate outlives the authority's.
    """
    from tacit.core.coins import Coins
    from tacit.parties.credentials import fingerprint, make_authority, read_certificate

    folder = make_authority(out, federation, days=days, coins=Coins("keys"))
    say(f"authority: {folder}; send ca.pem to every party, and ca.key to nobody")
    say(f"fingerprint of ca.pem: {fingerprint(read_certificate(folder / 'ca.pem'))}")


@keys_app.command()
def request(
    federation: Federation,
    role: Annotated[str, typer.Option(help="Who this party is, for instance 'owner 3'.")],
    out: Out = _OUT,
) -> None:
    """Make this party's key, and the request for a certificate to send to the authority.

    Run it on the machine that will use the key: key.pem stays there. Tell the authority the key's number by another way, so
    that it knows whose request it signs.
    """
    from tacit.core.coins import Coins
    from tacit.parties.credentials import request as make_request
    from tacit.parties.credentials import requested

    folder = make_request(out, federation, _role(role), coins=Coins("keys"))
    _, _, key = requested(folder / "request.pem")
    say(f"send {folder / 'request.pem'} to the authority; key {key.hex()}")


@keys_app.command()
def sign(
    folder: Annotated[Path, typer.Argument(help="The authority's folder.", metavar="AUTHORITY")],
    requests: Annotated[
        list[Path], typer.Argument(help="The request.pem of a party.", metavar="REQUEST...")
    ],
    days: Days = _DAYS,
    renew: Annotated[
        bool, typer.Option("--renew", help="Replace the certificate that the role has already.")
    ] = False,
) -> None:
    """Sign requests, as the authority of a federation.

    Nothing in REQUEST shows who sent it: hand its certificate out when its party has told you the same key by another way.
    AUTHORITY/registry.pem is complete when all have asked; every party needs it, and that of a later day if a role enrols
    anew.
    """
    from tacit.core.coins import Coins
    from tacit.parties.credentials import requested, sign_all

    places = sign_all(folder, requests, days=days, coins=Coins("keys"), renew=renew)
    for path, place in zip(requests, places, strict=True):
        _, role, key = requested(path)
        say(f"{role}: {place}; key {key.hex()}")
    say(f"for all: {folder / 'ca.pem'} and {folder / 'registry.pem'}")


@keys_app.command()
def accept(
    folder: Annotated[Path, typer.Argument(help="The party's folder, with its key.")],
    certificate: Annotated[
        Path | None, typer.Option(help="From the authority; else that in FOLDER.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="The authority's own; else that in FOLDER.")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="All parties' certificates; else that in FOLDER.")
    ] = None,
) -> None:
    """Put what the authority returned into this party's folder, after checking that it fits.

    Compare the fingerprint of ca.pem with what the authority told you, and that of the registry with the other parties:
    both by another way than the files came. Given again, with the registry alone, it learns of parties that joined.
    """
    from tacit.parties import credentials

    held = credentials.accept(
        folder,
        certificate=certificate or folder / "certificate.pem",
        ca=ca or folder / "ca.pem",
        registry=registry or folder / "registry.pem",
    )
    say(f"{held.role} of {held.federation}, one of {len(held.registry)}: {folder}")
    trusted = credentials.read_certificate(folder / "ca.pem")
    say(f"fingerprint of ca.pem: {credentials.fingerprint(trusted)}")
    say(f"fingerprint of the registry: {credentials.registry_fingerprint(held.registry)}")


@keys_app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A party's folder.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Check a party's folder and say who it is, until when, whom it trusts and whom it knows.

    The fingerprints of the authority and of the registry are the same at all parties. If one differs, do not go on: that
    party was given other keys. Nothing that is shown is secret.
    """
    from tacit.audit.provenance import header
    from tacit.parties.credentials import (
        fingerprint,
        load,
        read_certificate,
        registry_fingerprint,
    )

    held = load(folder)
    own, ca = (read_certificate(folder / name) for name in ("certificate.pem", "ca.pem"))
    found: dict[str, str] = {
        "federation": held.federation,
        "role": str(held.role),
        "expires": own.not_valid_after_utc.isoformat(),
        "fingerprint": held.fingerprint,
        "authority": fingerprint(ca),
        "authority_expires": ca.not_valid_after_utc.isoformat(),
        "registry": registry_fingerprint(held.registry),
    }
    parties = {str(role): key.hex() for role, key in held.registry.items()}
    if as_json:
        said = header("keys show", {"folder": str(folder)}, 0.0, seeded=False)
        print_json({**said, **found, "parties": parties})
        return
    for name, value in (
        *found.items(),
        *((f"key of {name}", key) for name, key in parties.items()),
    ):
        print(f"{name.replace('_', ' '):20} {value}")


def _role(text: str) -> Role:
    from tacit.parties.roles import Role

    match = re.fullmatch("([a-z]+)[ -]?([0-9]{1,9})", text.strip())
    if match is None:
        raise ConfigError(f"a role is a word of a-z and a number, as in 'owner 3', not {text!r}")
    return Role(match[1], int(match[2]))
