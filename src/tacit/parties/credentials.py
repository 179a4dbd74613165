"""The certificates of a federation: who is who on a network that nobody trusts.

A federation has an authority of its own: an Ed25519 key that signs one certificate for each role. The certificate binds a
party's Ed25519 key to ``tacit://<federation>/<kind>/<index>``, its one subject alternative name. The common name repeats the
role for readers, and nothing reads it. Parties speak TLS 1.3 and trust this authority alone, whatever a host is called.

1. Somebody whom all trust to say who is who makes the authority: `make_authority`.
2. Each party makes its key where it will be used, and sends a request for a certificate: `request`. The key stays there.
3. The authority makes sure, by a way of its own, that the request came from that party, and answers: `sign`.
4. When all have answers, each party puts its own, the authority's certificate and the registry of all in place: `accept`.

`issue_all` does all four on one machine. A party's folder holds ``key.pem``, ``certificate.pem``, ``ca.pem`` and
``registry.pem``, and ``request.pem``, to be sent again when the certificate has ended.

**Trust**: the authority can name any key as any role. It could give each party another registry: parties compare
`registry_fingerprint` by another way. Nothing is revoked: after the handshake a link checks that `peer_key` is the key that
the registry has for `peer_role`, so that a role that enrolled anew is known by its new key alone.

**Leaks**: certificates are public: federation, roles, keys, dates. TLS 1.3 hides them from who only listens.

Source: RFC 5280 (certificates), RFC 8410 (Ed25519 in them), RFC 8446 (TLS 1.3), RFC 5869 (HKDF).
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tacit.core.coins import Coins
from tacit.core.errors import AuthenticationFailed, ConfigError
from tacit.core.files import make_folder, write_file
from tacit.crypto.keys import SigningKey, signing_key
from tacit.parties.roles import SERVER, Role

DAYS = 365
"""How long a certificate is good, if nothing else is said."""

_FROM_AUTHORITY = "get it from the authority, then `tacit keys accept`"
_HOW = {
    "key.pem": "make it here, with `tacit keys request`",
    "request.pem": "`tacit keys request` makes it, beside the key",
    "certificate.pem": f"send request.pem to the authority; {_FROM_AUTHORITY}",
    "ca.pem": _FROM_AUTHORITY,
    "registry.pem": _FROM_AUTHORITY,
    "ca.key": "make an authority, with `tacit keys authority`",
}
_FEDERATION = re.compile("[a-z0-9-]{1,64}")
_URI = re.compile("tacit://([a-z0-9-]{1,64})/([a-z]{1,32})/(0|[1-9][0-9]{0,8})")
_BAD = (
    ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion,
    x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType,
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a party shows and checks: made by `load`. Its ``repr`` shows no secret.

    Args:
        federation: the federation's name.
        role: who this party is.
        key: its key.
        folder: where its files are.
        registry: the Ed25519 public key, 32 bytes, of every party, this one too.
        fingerprint: SHA-256 of its certificate, in hexadecimal digits.
    """

    federation: str
    role: Role
    key: SigningKey
    folder: Path
    registry: Mapping[Role, bytes]
    fingerprint: str

    def __repr__(self) -> str:
        return (
            f"Credentials({self.role} of {self.federation}, 1 of {len(self.registry)}, "
            f"fingerprint={self.fingerprint[:16]}...)"
        )


# --- making them


def issue_all(
    out: Path, federation: str, roles: Sequence[Role], *, days: int = DAYS, coins: Coins
) -> None:
    """Make the authority and the folder of every party, all in ``out`` and on this machine.

    It is for machines of one owner, and for trying out: **who runs it knows everybody's keys**. Several owners use `request`
    each, and one of them, or somebody else, `sign`.

    Args:
        out: gets the folders ``authority``, ``server-0``, ``owner-0`` ...
        federation: its name, 1 to 64 of a-z, 0-9 and -.
        roles: who takes part, each once.
        days: how long the certificates are good.
        coins: for keys and serial numbers.

    Raises:
        ConfigError: a name is malformed, a role is there twice, or a key is in place already: then nothing was made.
    """
    if not roles or len(set(roles)) != len(roles):
        raise ConfigError("at least one role expected, and each once")
    for role in roles:
        _uri(federation, role)
        _refuse_existing(out / folder_name(role) / "key.pem")
    authority = make_authority(out, federation, days=days, coins=coins)
    folders = [request(out, federation, role, coins=coins) for role in roles]
    asked = [folder / "request.pem" for folder in folders]
    issued = sign_all(authority, asked, days=days, coins=coins)
    for folder, certificate in zip(folders, issued, strict=True):
        _write(folder / "certificate.pem", certificate.read_bytes())
        for name in ("ca.pem", "registry.pem"):
            _write(folder / name, (authority / name).read_bytes())


def make_authority(out: Path, federation: str, *, days: int = DAYS, coins: Coins) -> Path:
    """Make ``out/authority`` with ``ca.key`` and ``ca.pem``, and return that folder.

    No certificate that it signs outlives its own.

    Raises:
        ConfigError: the name is malformed, or an authority is there already.
    """
    _uri(federation)
    folder = out / "authority"
    _refuse_existing(folder / "ca.pem")
    key = signing_key(coins)
    made = _certificate(federation, key.public, key.secret, days=days, coins=coins)
    _write_key(folder / "ca.key", key)
    _write(folder / "ca.pem", made.public_bytes(pem.Encoding.PEM))
    return folder


def request(out: Path, federation: str, role: Role, *, coins: Coins) -> Path:
    """Make a party's folder in ``out``, with its ``key.pem`` and the ``request.pem`` to send; return that folder.

    Raises:
        ConfigError: a name is malformed, or a key is in place already.
    """
    name = _alternative(_uri(federation, role))
    folder = out / folder_name(role)
    place, answer = folder / "key.pem", folder / "request.pem"
    unfinished = place.exists() and not answer.exists()  # it was killed in between
    key = _read_key(place) if unfinished else signing_key(coins)
    asked = x509.CertificateSigningRequestBuilder(_subject(str(role)))
    asked = asked.add_extension(name, critical=False)
    if not unfinished:
        _write_key(place, key)
    _write(answer, asked.sign(key.secret, None).public_bytes(pem.Encoding.PEM))
    return folder


def sign(
    authority: Path, request: Path, *, days: int = DAYS, coins: Coins, renew: bool = False
) -> Path:
    """Answer one request: `sign_all` for it alone."""
    return sign_all(authority, [request], days=days, coins=coins, renew=renew)[0]


def sign_all(
    authority: Path,
    requests: Sequence[Path],
    *,
    days: int = DAYS,
    coins: Coins,
    renew: bool = False,
) -> list[Path]:
    """Answer requests: write ``issued/<role>.pem`` in the authority's folder, and ``registry.pem`` there anew.

    It cannot know who sent a request: who calls it vouches for that.

    Args:
        authority: the folder that `make_authority` returned.
        requests: the parties' ``request.pem``.
        days: how long the certificates are good.
        coins: for serial numbers.
        renew: replace the certificate that a role has, by one for the same key or another.

    Returns:
        The certificates' paths. If one request is refused, none is answered.

    Raises:
        ConfigError: a role has a certificate and ``renew`` is not set, or another role has its key.
        AuthenticationFailed: a request is not signed by its key, or is for another federation or no well-formed role; or
            the authority's certificate has ended.
    """
    ca, key = read_certificate(authority / "ca.pem"), _read_key(authority / "ca.key")
    federation = _federation_of(ca, datetime.now(UTC))
    if _key_of(ca, "ca.pem") != key.public:
        raise AuthenticationFailed(f"ca.key in {authority} is not the key of ca.pem there")
    issued = authority / "issued"
    keys = {path: _key_of(read_certificate(path), str(path)) for path in issued.glob("*.pem")}
    made: dict[Path, bytes] = {}
    for path in requests:
        named, role, public = requested(path)
        if named != federation:
            raise AuthenticationFailed(f"{path} is for {named!r}, expected {federation!r}")
        place = issued / f"{folder_name(role)}.pem"
        if place in made or (place in keys and not renew):
            raise ConfigError(f"{role} has a certificate already: to enrol anew, give --renew")
        keys[place] = public
        uri = _uri(federation, role)
        one = _certificate(str(role), public, key.secret, ca=ca, uri=uri, days=days, coins=coins)
        made[place] = one.public_bytes(pem.Encoding.PEM)
    if len(set(keys.values())) != len(keys):
        raise ConfigError("two roles ask for certificates of one key: each makes its own")
    for place, content in made.items():
        _write(place, content)
    _write(authority / "registry.pem", b"".join(place.read_bytes() for place in sorted(keys)))
    return list(made)


def requested(path: Path) -> tuple[str, Role, bytes]:
    """The federation, role and public key, 32 bytes, that a request is for.

    Raises:
        ConfigError: the file is missing or damaged.
        AuthenticationFailed: it is not signed by its key, or names no well-formed role.
    """
    asked = _parsed(x509.load_pem_x509_csr, _read(path, path.name), str(path))
    public = _key_of(asked, str(path))
    if not asked.is_signature_valid:
        raise AuthenticationFailed(f"{path} was changed after it was signed: ask for it again")
    return *_named(asked, str(path)), public


def accept(folder: Path, *, certificate: Path, ca: Path, registry: Path) -> Credentials:
    """Put what the authority returned into the party's folder, if it fits the key and the request there.

    Called again, it renews certificate and registry. A folder never changes its authority: before the first call make sure,
    by another way, that `fingerprint` of ``ca`` is the authority's.

    Raises:
        ConfigError: a file is missing or damaged, or the folder trusts another authority.
        AuthenticationFailed: as `load`, or the certificate is for another role than ``request.pem``.
    """
    came = {"ca.pem": ca, "certificate.pem": certificate, "registry.pem": registry}
    files = {name: _read(path, name) for name, path in came.items()}
    held = _checked(folder, files, datetime.now(UTC))
    if requested(folder / "request.pem")[:2] != (held.federation, held.role):
        raise AuthenticationFailed(
            f"{certificate} is for {held.role} of {held.federation!r}, which is not what request.pem asked for: tell the "
            "authority"
        )
    trusted = folder / "ca.pem"
    if trusted.exists() and read_certificate(trusted) != read_certificate(ca):
        raise ConfigError(f"{trusted} is another authority than {ca}: make a new folder for it")
    for name, content in files.items():
        _write(folder / name, content)
    return held


# --- reading them


def load(folder: Path, *, now: datetime | None = None) -> Credentials:
    """The credentials in a party's folder, after every check that can be made alone.

    Args:
        folder: holds ``key.pem``, ``certificate.pem``, ``ca.pem`` and ``registry.pem``.
        now: the time to check dates against, with its time zone; that of this machine by default.

    Raises:
        ConfigError: a file is missing or damaged, or others may read the key.
        AuthenticationFailed: a certificate is not signed by ``ca.pem``, has ended or not begun, or is of another federation
            or no well-formed role; the key is not the certificate's; a role or a key is in the registry twice; this party
            is not in it, or with another key.
    """
    names = ("ca.pem", "certificate.pem", "registry.pem")
    files = {name: _read(folder / name, name) for name in names}
    return _checked(folder, files, now or datetime.now(UTC))


def _checked(folder: Path, files: Mapping[str, bytes], now: datetime) -> Credentials:
    key = _read_key(folder / "key.pem")
    ca, own = (_one(files[name], name) for name in ("ca.pem", "certificate.pem"))
    federation = _federation_of(ca, now)
    role = _role_of(own, ca, federation, now)
    if _key_of(own, "certificate.pem") != key.public:
        raise AuthenticationFailed(
            f"key.pem in {folder} is not the key of the certificate of {role}: put back that of request.pem"
        )
    registry: dict[Role, bytes] = {}
    for one in _all(files["registry.pem"], "registry.pem"):
        peer, public = _role_of(one, ca, federation, now), _key_of(one, "registry.pem")
        if peer in registry or public in registry.values():
            raise AuthenticationFailed(
                f"registry.pem has {peer} or its key twice: who is two parties has what they keep from each other; "
                f"{_FROM_AUTHORITY}"
            )
        registry[peer] = public
    if registry.get(role) != key.public:
        raise AuthenticationFailed(
            f"registry.pem lacks {role}, or has another key for it: the authority has a newer one; {_FROM_AUTHORITY}"
        )
    everybody = MappingProxyType(dict(sorted(registry.items())))
    return Credentials(federation, role, key, folder, everybody, fingerprint(own))


def read_certificate(path: Path) -> x509.Certificate:
    """The one certificate in a PEM file, unchecked.

    Raises:
        ConfigError: the file is missing or damaged, or holds several.
    """
    return _one(_read(path, path.name), str(path))


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, in hexadecimal digits."""
    return certificate.fingerprint(SHA256()).hex()


def registry_fingerprint(registry: Mapping[Role, bytes]) -> str:
    """SHA-256 of all roles and keys, in hexadecimal digits: the same at all parties, if the authority is honest."""
    lines = [f"{role} {registry[role].hex()}\n" for role in sorted(registry)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def state_key(credentials: Credentials, purpose: str) -> bytes:
    """32 bytes to encrypt with what this party keeps on disk: another key for each purpose.

    It follows from the party's private key: what was kept does not open with a new one.

    Source: RFC 5869, with SHA-256.
    """
    secret = credentials.key.secret.private_bytes_raw()
    return HKDF(SHA256(), 32, None, b"tacit/" + purpose.encode()).derive(secret)


# --- TLS


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """TLS 1.3 for who accepts connections: a peer must show a certificate of this federation's authority.

    Checking `peer_role` and `peer_key` after the handshake is the caller's.

    Raises:
        ConfigError: the files changed since they were loaded.
    """
    context = _context(credentials, ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # nothing is resumed: every connection shows its certificate
    return context


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """TLS 1.3 for who connects: as `server_context`.

    A client's handshake ends before the server has looked at its certificate: it learns of a refusal when it first reads.

    Raises:
        ConfigError: the files changed since they were loaded.
    """
    return _context(credentials, ssl.PROTOCOL_TLS_CLIENT)


def _context(credentials: Credentials, protocol: int) -> ssl.SSLContext:
    own, key = credentials.folder / "certificate.pem", credentials.folder / "key.pem"
    ca = read_certificate(credentials.folder / "ca.pem")
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # roles are checked, not host names
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.load_verify_locations(cadata=ca.public_bytes(pem.Encoding.DER))
    try:
        same = fingerprint(read_certificate(own)) == credentials.fingerprint
        context.load_cert_chain(own, key)
    except OSError:  # an ssl.SSLError is one
        same = False
    if not same:
        raise ConfigError(f"{credentials.folder} changed since it was loaded: load it again")
    return context


def peer_role(der: bytes | None, federation: str, *, now: datetime | None = None) -> Role:
    """The role that a peer's certificate names; TLS has checked who signed it.

    Args:
        der: what ``SSLSocket.getpeercert(binary_form=True)`` gives.
        federation: whose role it must be.
        now: the time to check dates against, with its time zone; that of this machine by default.

    Raises:
        AuthenticationFailed: there is no certificate, or it is an authority's, or names another federation, or no role,
            several or a malformed one, or has ended or not begun.
    """
    peer = _peer(der)
    named, role = _named(peer, "the peer's certificate")
    if named != federation:
        raise AuthenticationFailed(f"the peer is {role} of {named!r}, expected {federation!r}")
    _check_dates(peer, str(role), now or datetime.now(UTC))
    return role


def peer_key(der: bytes | None) -> bytes:
    """The Ed25519 public key, 32 bytes, of a peer's certificate: it must be the one in the registry.

    Raises:
        AuthenticationFailed: there is no certificate, or it has another kind of key.
    """
    return _key_of(_peer(der), "the peer's certificate")


def _peer(der: bytes | None) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der or b"")
    except _BAD:
        raise AuthenticationFailed("the peer showed no certificate that can be read") from None


_FOREIGN = "the peer's certificate is not signed by this federation's authority"
_NO_TLS_1_3 = "the peer does not speak TLS 1.3, and nothing older is spoken here: update it"
_VERIFY = {  # by OpenSSL's X509_V_ERR codes
    7: "the peer's certificate was changed after it was signed: the peer must get it again",
    9: "the peer's certificate is not good yet: check both machines' clocks",
    10: "the peer's certificate has ended: check this machine's clock, or the peer must renew it",
    18: f"{_FOREIGN} but by itself",
    19: _FOREIGN,
    20: _FOREIGN,
    24: f"{_FOREIGN} but by a party",
    25: _FOREIGN,
    26: "the peer's certificate is not a party's",
    79: f"{_FOREIGN} but by a party",
}
_REASONS = {  # by a part of the name of OpenSSL's reason; an alert is what the peer said
    "HTTP_REQUEST": "the peer speaks plain HTTP and not TLS: check address, port and proxy",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS: check address, port and proxy",
    "PROTOCOL": _NO_TLS_1_3,
    "NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate: it must use client_context",
    "ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate and got none: use client_context",
    "ALERT_CERTIFICATE_EXPIRED": "the peer says that this party's certificate has ended: check the clocks, or renew it",
    "ALERT_UNKNOWN_CA": "the peer does not know this party's authority: are both in one federation?",
    "ALERT_BAD_CERTIFICATE": "the peer refused this party's certificate: not good yet (check the clocks), or damaged",
    "ALERT_UNSUPPORTED_CERTIFICATE": "the peer refused this party's certificate: it is not a party's",
    "ALERT_DECRYPT_ERROR": "the peer refused this party's certificate: it was changed after it was signed",
    "RECORD_MAC": "bytes were changed on their way: check the network between, and connect again",
    "EOF": "the peer closed the connection in the middle: its log may say why",
}


def explain(error: ssl.SSLError) -> str:
    """What a failed handshake means and what to do; the error's own text where nothing better is known."""
    code = getattr(error, "verify_code", 0)  # errors that OpenSSL did not raise have neither
    if code in _VERIFY:
        return _VERIFY[code]
    gone = isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    reason = "EOF" if gone else getattr(error, "reason", None) or ""
    return next((words for part, words in _REASONS.items() if part in reason), str(error))


# --- one certificate

_Named = x509.Certificate | x509.CertificateSigningRequest


def folder_name(role: Role) -> str:
    """The name of a party's folder, for instance ``owner-3``."""
    return f"{role.kind}-{role.index}"


def _uri(federation: str, role: Role = SERVER) -> str:
    """What a certificate names, if federation and role are well-formed."""
    uri = f"tacit://{federation}/{role.kind}/{role.index}"
    if not _FEDERATION.fullmatch(federation):
        raise ConfigError(f"1 to 64 of a-z, 0-9 and - name a federation, not {federation!r}")
    if not _URI.fullmatch(uri):
        raise ConfigError(
            f"a role is a word of a-z and a number, as in 'owner 3', not {str(role)!r}"
        )
    return uri


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _certificate(
    subject: str, public: bytes, secret: Ed25519PrivateKey, *, days: int, coins: Coins,
    ca: x509.Certificate | None = None, uri: str = "",
) -> x509.Certificate:  # fmt: skip
    """A certificate signed with the authority's ``secret``: its own, or under ``ca`` that of the party ``uri``."""
    if not 1 <= days <= 36500:
        raise ConfigError(f"a certificate is good for 1 to 36500 days, not {days}")
    key, root = Ed25519PublicKey.from_public_bytes(public), ca is None
    now = datetime.now(UTC).replace(microsecond=0)
    end = now + timedelta(days=days)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(_subject(subject) if ca is None else ca.subject)
        .subject_name(_subject(subject))
        .public_key(key)
        .serial_number(1 + int.from_bytes(coins.bytes(16)))
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(end if ca is None else min(end, ca.not_valid_after_utc))
    )
    usage = x509.KeyUsage(not root, False, False, False, False, root, False, False, False)
    both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(root, 0 if root else None), True),
        (usage, True),
        (x509.SubjectKeyIdentifier.from_public_key(key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(secret.public_key()), False),
    ]
    if not root:
        extensions += [(_alternative(uri), False), (x509.ExtendedKeyUsage(both), False)]
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(secret, None)


def _federation_of(ca: x509.Certificate, now: datetime) -> str:
    """The federation whose authority that is."""
    names = [str(one.value) for one in ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1 or not _FEDERATION.fullmatch(names[0]) or not _may_sign(ca):
        raise AuthenticationFailed("ca.pem is not the certificate of a federation's authority")
    _check_signed(ca, ca, "ca.pem")
    _check_dates(ca, "the authority", now)
    return names[0]


def _role_of(one: x509.Certificate, ca: x509.Certificate, federation: str, now: datetime) -> Role:
    """The role whose certificate that is, if the authority signed it, for this federation and for now."""
    _check_signed(one, ca, one.subject.rfc4514_string())
    named, role = _named(one, one.subject.rfc4514_string())
    if named != federation:
        raise AuthenticationFailed(f"a certificate is for {named!r}, expected {federation!r}")
    _check_dates(one, str(role), now)
    return role


def _named(one: _Named, what: str) -> tuple[str, Role]:
    """The federation and role that a certificate or request names."""
    try:
        names = list(one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except _BAD:
        names = []
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    match = _URI.fullmatch(uris[0]) if len(uris) == len(names) == 1 else None
    if match is None or (isinstance(one, x509.Certificate) and _may_sign(one)):
        raise AuthenticationFailed(
            f"{what}: a party's, with one name tacit://<federation>/<kind>/<index>, expected; get another from the authority"
        )
    return match[1], Role(match[2], int(match[3]))


def _may_sign(one: x509.Certificate) -> bool:
    try:
        return one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except _BAD:
        return False


def _check_signed(one: x509.Certificate, ca: x509.Certificate, what: str) -> None:
    try:
        one.verify_directly_issued_by(ca)
    except _BAD:
        raise AuthenticationFailed(
            f"{what}: not signed by the authority in ca.pem, or changed since; {_FROM_AUTHORITY}"
        ) from None


def _check_dates(one: x509.Certificate, whose: str, now: datetime) -> None:
    start, end = one.not_valid_before_utc, one.not_valid_after_utc
    if not start <= now <= end:
        is_now = "not good yet" if now < start else "expired"
        raise AuthenticationFailed(
            f"the certificate of {whose} is {is_now}: it is for {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and "
            f"here it is {now.astimezone(UTC):%Y-%m-%d %H:%M}: check this machine's clock, or renew the certificate"
        )


def _key_of(one: _Named, what: str) -> bytes:
    try:
        key: object = one.public_key()
    except _BAD:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise AuthenticationFailed(f"{what}: an Ed25519 key expected, came another kind")
    return key.public_bytes_raw()


# --- files


def _parsed(parse: Callable[[bytes], T], content: bytes, what: str) -> T:
    try:
        return parse(content)
    except _BAD:
        raise ConfigError(f"{what} is damaged or not PEM: get it again, or make it anew") from None


def _all(content: bytes, what: str) -> list[x509.Certificate]:
    found = _parsed(x509.load_pem_x509_certificates, content, what)
    if len(found) != content.count(b"-----BEGIN "):
        raise ConfigError(f"{what} is damaged, or holds more than certificates: get it again")
    return found


def _one(content: bytes, what: str) -> x509.Certificate:
    found = _all(content, what)
    if len(found) != 1:
        raise ConfigError(f"{what}: one certificate expected, came {len(found)}")
    return found[0]


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        how = _HOW.get(name, "give another")
        raise ConfigError(f"{path} cannot be read ({error.strerror}): {how}") from error


def _read_key(path: Path) -> SigningKey:
    content = _read(path, path.name)
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigError(f"others than its owner may use the key {path}: chmod 600 {path}")
    secret = _parsed(lambda key: pem.load_pem_private_key(key, None), content, str(path))
    if not isinstance(secret, Ed25519PrivateKey):
        raise ConfigError(f"{path}: an Ed25519 key expected, came another kind")
    return SigningKey(secret, secret.public_key().public_bytes_raw())


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path} is there, and a key is never overwritten: give another folder")


def _write_key(path: Path, key: SigningKey) -> None:
    _refuse_existing(path)
    form, bare = pem.PrivateFormat.PKCS8, pem.NoEncryption()
    _write(path, key.secret.private_bytes(pem.Encoding.PEM, form, bare), secret=True)


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    make_folder(path.parent, private=True)
    write_file(path, content, private=secret)
