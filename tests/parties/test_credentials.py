"""Certificates as files, and as what real TLS connections accept and refuse."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tacit.core.coins import Coins
from tacit.core.errors import AuthenticationFailed, ConfigError, OutputError, ProtocolError
from tacit.parties.credentials import (
    Credentials,
    accept,
    client_context,
    explain,
    fingerprint,
    folder_name,
    issue_all,
    load,
    make_authority,
    peer_key,
    peer_role,
    read_certificate,
    registry_fingerprint,
    request,
    requested,
    server_context,
    sign,
    sign_all,
    state_key,
)
from tacit.parties.roles import SERVER, Role, owners

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
OWNER = Role("owner", 0)
ROLES = (SERVER, *owners(3))


@dataclass(frozen=True)
class Signer:
    """A key and the certificate for it."""

    key: Any
    certificate: x509.Certificate

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def forge(
    *uris: str,
    by: Signer | None = None,
    key: Any = None,
    start: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    ca: bool = False,
    common: str = "owner 0",
) -> Signer:
    """A certificate as anybody could make one, signed by that signer or by itself."""
    key = key or Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    signer = by.key if by else key
    usage = x509.KeyUsage(not ca, False, False, False, False, ca, False, False, False)
    both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by.certificate.subject if by else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    return Signer(
        key, builder.sign(signer, None if isinstance(signer, Ed25519PrivateKey) else SHA256())
    )


def signer(certificate: Path, key: Path) -> Signer:
    return Signer(load_pem_private_key(key.read_bytes(), None), read_certificate(certificate))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation of a server and three owners; not to be changed."""
    out = tmp_path_factory.mktemp("federation")
    issue_all(out, "hospitals", ROLES, coins=Coins.from_seed(b"credentials"))
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture(scope="module")
def authority(made: Path) -> Signer:
    return signer(made / "authority" / "ca.pem", made / "authority" / "ca.key")


# --- handshakes


def side(context: ssl.SSLContext, sock: socket.socket, *, server: bool) -> Any:
    """What one end of a connection came to: the peer's certificate, or the error."""
    try:
        with context.wrap_socket(sock, server_side=server) as tls:
            if server:
                tls.sendall(b"welcome")
            came = tls.recv(7)
            if not server:
                tls.sendall(b"thanks")
            assert came == (b"thanks" if server else b"welcome")
            assert tls.version() == "TLSv1.3" and tls.compression() is None
            return tls.getpeercert(binary_form=True)
    except OSError as error:
        return error
    finally:
        sock.close()


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[Any, Any]:
    """What the server and the client came to."""
    here, there = socket.socketpair()
    for end in (here, there):
        end.settimeout(5)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(side(server, here, server=True)))
    thread.start()
    of_client = side(client, there, server=False)
    thread.join()
    return results[0], of_client


def rogue(made: Path, tmp_path: Path, protocol: int, chain: Sequence[bytes], key: bytes) -> Any:
    """A context of somebody who shows what certificates he likes, and trusts the authority."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(made / "authority" / "ca.pem")
    (tmp_path / "chain.pem").write_bytes(b"".join(chain))
    (tmp_path / "rogue.pem").write_bytes(key)
    if chain:
        context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "rogue.pem")
    return context


def test_right_certificates_connect_and_each_end_learns_the_others_role_and_key(made: Path) -> None:
    server, owner = load(made / "server-0"), load(made / "owner-2")
    at_server, at_owner = handshake(server_context(server), client_context(owner))
    assert peer_role(at_server, "hospitals") == Role("owner", 2)
    assert peer_role(at_owner, "hospitals") == SERVER
    assert peer_key(at_server) == owner.key.public == server.registry[Role("owner", 2)]
    assert peer_key(at_owner) == server.key.public == owner.registry[SERVER]


def test_they_connect_over_tcp_too(made: Path) -> None:
    results: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def serve() -> None:
            sock, _ = listener.accept()
            results.append(side(server_context(load(made / "server-0")), sock, server=True))

        thread = threading.Thread(target=serve)
        thread.start()
        sock = socket.create_connection(listener.getsockname(), timeout=5)
        results.append(side(client_context(load(made / "owner-0")), sock, server=False))
        thread.join()
    assert {peer_role(der, "hospitals") for der in results} == {SERVER, OWNER}


def test_the_contexts_allow_nothing_else(made: Path) -> None:
    for make in (server_context, client_context):
        context = make(load(made / "owner-0"))
        assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED and not context.check_hostname
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert len(context.get_ca_certs()) == 1
        assert context.keylog_filename is None
    assert server_context(load(made / "owner-0")).num_tickets == 0


def test_nothing_is_there_to_resume(made: Path) -> None:
    here, there = socket.socketpair()
    server = server_context(load(made / "server-0"))
    thread = threading.Thread(target=side, args=(server, here), kwargs={"server": True})
    thread.start()
    there.settimeout(5)
    with client_context(load(made / "owner-0")).wrap_socket(there) as tls:
        assert tls.recv(7) == b"welcome"
        assert tls.session is None or not tls.session.has_ticket
        tls.sendall(b"thanks")
        thread.join()


Case = Callable[[Path, Signer], tuple[list[bytes], bytes]]


def of(made: Signer, *more: Signer) -> tuple[list[bytes], bytes]:
    return [made.pem(), *(one.pem() for one in more)], made.key_pem()


def right(_made: Path, authority: Signer) -> Any:
    return of(forge("tacit://hospitals/owner/0", by=authority))


def expired(_made: Path, authority: Signer) -> Any:
    return of(forge("tacit://hospitals/owner/0", by=authority, start=NOW - 2 * DAY, end=NOW - DAY))


def not_yet_valid(_made: Path, authority: Signer) -> Any:
    return of(forge("tacit://hospitals/owner/0", by=authority, start=NOW + DAY, end=NOW + 2 * DAY))


def self_signed(_made: Path, _authority: Signer) -> Any:
    return of(forge("tacit://hospitals/owner/0"))


def foreign_authority(_made: Path, authority: Signer) -> Any:
    return of(forge("tacit://hospitals/owner/0", by=forge(ca=True, common="hospitals")))


def foreign_authority_shown(_made: Path, _authority: Signer) -> Any:
    other = forge(ca=True, common="clinics")
    return of(forge("tacit://hospitals/owner/0", by=other), other)


def authority_as_party(_made: Path, authority: Signer) -> Any:
    return of(authority)


def party_as_issuer(made: Path, _authority: Signer) -> Any:
    party = signer(made / "owner-1" / "certificate.pem", made / "owner-1" / "key.pem")
    return of(forge("tacit://hospitals/server/0", by=party), party)


def authority_under_authority(_made: Path, authority: Signer) -> Any:
    middle = forge(by=authority, ca=True, common="middle")
    return of(forge("tacit://hospitals/server/0", by=middle), middle)


def tampered(made: Path, _authority: Signer) -> Any:
    own = made / "owner-1"
    der = read_certificate(own / "certificate.pem").public_bytes(Encoding.DER)
    changed = der.replace(b"tacit://hospitals/owner/1", b"tacit://hospitals/owner/2")
    assert changed != der
    return [ssl.DER_cert_to_PEM_cert(changed).encode()], (own / "key.pem").read_bytes()


AUTHORITY = "not signed by this federation's authority"
UNKNOWN = "the peer does not know this party's authority"

# who is refused, OpenSSL's code, what who refuses is told, what who is refused is told
REFUSED: list[tuple[Case, int, str, str]] = [
    (expired, 10, "the peer's certificate has ended: check this machine's clock", "check the clocks, or renew it"),
    (not_yet_valid, 9, "not good yet: check both machines' clocks", "not good yet (check the clocks)"),
    (self_signed, 18, f"{AUTHORITY} but by itself", UNKNOWN),
    (foreign_authority, 20, AUTHORITY, UNKNOWN),
    (foreign_authority_shown, 19, AUTHORITY, UNKNOWN),
    (authority_as_party, 26, "the peer's certificate is not a party's", "it is not a party's"),
    (party_as_issuer, 79, f"{AUTHORITY} but by a party", UNKNOWN),
    (authority_under_authority, 25, AUTHORITY, UNKNOWN),
    (tampered, 7, "was changed after it was signed", "was changed after it was signed"),
]  # fmt: skip
IDS = [case[0].__name__ for case in REFUSED]


def test_a_rogue_with_a_right_certificate_connects(
    made: Path, authority: Signer, tmp_path: Path
) -> None:
    # The control of what follows: it is the certificate that is refused.
    chain, key = right(made, authority)
    client = rogue(made, tmp_path, ssl.PROTOCOL_TLS_CLIENT, chain, key)
    at_server, _ = handshake(server_context(load(made / "server-0")), client)
    assert peer_role(at_server, "hospitals") == OWNER
    server = rogue(made, tmp_path, ssl.PROTOCOL_TLS_SERVER, chain, key)
    _, at_client = handshake(server, client_context(load(made / "owner-1")))
    assert peer_role(at_client, "hospitals") == OWNER


@pytest.mark.parametrize("rogue_serves", [False, True], ids=["client", "server"])
@pytest.mark.parametrize(("case", "code", "checker", "refused"), REFUSED, ids=IDS)
def test_a_wrong_certificate_is_refused_and_both_ends_are_told_why(
    made: Path, authority: Signer, tmp_path: Path, rogue_serves: bool,
    case: Case, code: int, checker: str, refused: str,
) -> None:  # fmt: skip
    chain, key = case(made, authority)
    if rogue_serves:
        server = rogue(made, tmp_path, ssl.PROTOCOL_TLS_SERVER, chain, key)
        theirs, ours = handshake(server, client_context(load(made / "owner-0")))
    else:
        client = rogue(made, tmp_path, ssl.PROTOCOL_TLS_CLIENT, chain, key)
        ours, theirs = handshake(server_context(load(made / "server-0")), client)
    assert isinstance(ours, ssl.SSLCertVerificationError), ours
    assert isinstance(theirs, ssl.SSLError), theirs
    assert ours.verify_code == code
    assert checker in explain(ours) and "ssl.c" not in explain(ours)
    assert refused in explain(theirs)


def unshown(made: Path, protocol: int) -> ssl.SSLContext:
    """A context without a certificate that trusts the authority."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.load_verify_locations(made / "authority" / "ca.pem")
    return context


def test_a_client_without_a_certificate_is_refused(made: Path) -> None:
    at_server, at_client = handshake(
        server_context(load(made / "server-0")), unshown(made, ssl.PROTOCOL_TLS_CLIENT)
    )
    assert isinstance(at_server, ssl.SSLError) and isinstance(at_client, ssl.SSLError)
    assert "the peer showed no certificate" in explain(at_server)
    assert "wants a certificate and got none" in explain(at_client)


def test_tls_1_2_is_refused_from_a_client(made: Path, authority: Signer, tmp_path: Path) -> None:
    chain, key = right(made, authority)
    client = rogue(made, tmp_path, ssl.PROTOCOL_TLS_CLIENT, chain, key)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    for error in handshake(server_context(load(made / "server-0")), client):
        assert isinstance(error, ssl.SSLError)
        assert "does not speak TLS 1.3" in explain(error)


def test_tls_1_2_is_refused_from_a_server(made: Path, authority: Signer, tmp_path: Path) -> None:
    chain, key = right(made, authority)
    server = rogue(made, tmp_path, ssl.PROTOCOL_TLS_SERVER, chain, key)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    for error in handshake(server, client_context(load(made / "owner-0"))):
        assert isinstance(error, ssl.SSLError)
        assert "does not speak TLS 1.3" in explain(error)


@pytest.mark.parametrize("serves", [False, True], ids=["client", "server"])
@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"POST /round HTTP/1.1\r\nHost: server\r\n\r\n", "speaks plain HTTP|not speak TLS: check"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS: check address, port"),
        (b"\xac\x01\x05hello" + bytes(64), "does not speak TLS: check address, port"),
        (b"", "closed the connection in the middle"),
    ],
    ids=["request", "answer", "frame", "nothing"],
)
def test_what_is_not_tls_is_refused(made: Path, sent: bytes, words: str, serves: bool) -> None:
    here, there = socket.socketpair()
    here.settimeout(5)
    with there:
        there.sendall(sent)
        there.shutdown(socket.SHUT_WR)
        make = client_context if serves else server_context
        error = side(make(load(made / "owner-0")), here, server=not serves)
    assert isinstance(error, ssl.SSLError)
    assert any(word in explain(error) for word in words.split("|"))


def test_http_is_called_by_its_name(made: Path) -> None:
    here, there = socket.socketpair()
    with there:
        there.sendall(b"GET / HTTP/1.1\r\n\r\n")
        error = side(server_context(load(made / "server-0")), here, server=True)
    assert "plain HTTP" in explain(error)


def test_bytes_that_were_changed_on_their_way_are_refused(made: Path) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(load(made / "server-0")).wrap_bio(
        to_server, to_client, server_side=True
    )
    client = client_context(load(made / "owner-0")).wrap_bio(to_client, to_server)
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    client.write(b"an update")
    sent = bytearray(to_server.read())
    sent[-1] ^= 1
    to_server.write(bytes(sent))
    with pytest.raises(ssl.SSLError) as changed:
        server.read(9)
    assert "changed on their way" in explain(changed.value)
    with pytest.raises(ssl.SSLError) as told:
        client.read(9)
    assert "changed on their way" in explain(told.value)


def test_a_peer_that_says_goodbye_closed_the_connection() -> None:
    assert "closed the connection" in explain(
        ssl.SSLZeroReturnError(6, "TLS/SSL connection closed")
    )


def test_an_error_that_is_not_known_keeps_its_text() -> None:
    assert explain(ssl.SSLError(1, "something rare")) == str(ssl.SSLError(1, "something rare"))
    rare = ssl.SSLCertVerificationError(1, "something rarer")
    rare.verify_code, rare.reason = 66, "CERTIFICATE_VERIFY_FAILED"
    assert "something rarer" in explain(rare)


# --- the role of a peer


def der_of(signed: Signer) -> bytes:
    return signed.certificate.public_bytes(Encoding.DER)


NAMES = [
    ((), "one name"),
    (("tacit://hospitals/owner/0", "tacit://hospitals/server/0"), "one name"),
    (("tacit://hospitals/owner/0", "tacit://hospitals/owner/0"), "one name"),
    (("tacit://clinics/owner/0",), "owner 0 of 'clinics', expected 'hospitals'"),
    (("tacit://hospitals/owner/00",), "one name"),
    (("tacit://hospitals/owner/-1",), "one name"),
    (("tacit://hospitals/owner/",), "one name"),
    (("tacit://hospitals/owner/1000000000",), "one name"),
    (("tacit://hospitals/Owner/0",), "one name"),
    (("tacit://hospitals/owner/0/",), "one name"),
    (("tacit://hospitals/owner/0\n",), "one name"),
    (("tacit://hospitals//0",), "one name"),
    (("tacit:///owner/0",), "one name"),
    (("http://hospitals/owner/0",), "one name"),
    ((" tacit://hospitals/owner/0",), "one name"),
]


@pytest.mark.parametrize(("uris", "words"), NAMES)
def test_a_name_that_tls_lets_through_is_no_role(
    made: Path, authority: Signer, tmp_path: Path, uris: tuple[str, ...], words: str
) -> None:
    chain, key = of(forge(*uris, by=authority))
    client = rogue(made, tmp_path, ssl.PROTOCOL_TLS_CLIENT, chain, key)
    at_server, _ = handshake(server_context(load(made / "server-0")), client)
    assert isinstance(at_server, bytes)
    with pytest.raises(AuthenticationFailed, match=words):
        peer_role(at_server, "hospitals")


def test_an_owner_that_serves_is_known_for_an_owner(made: Path) -> None:
    owner = load(made / "owner-1")
    _, at_client = handshake(server_context(owner), client_context(load(made / "owner-0")))
    assert peer_role(at_client, "hospitals") == Role("owner", 1) != SERVER


def test_a_dns_name_beside_the_role_is_refused(authority: Signer) -> None:
    name = x509.NameAttribute(NameOID.COMMON_NAME, "owner 0")
    for names, good in (
        ([x509.UniformResourceIdentifier("tacit://hospitals/owner/0")], True),
        ([x509.UniformResourceIdentifier("tacit://hospitals/owner/0"), x509.DNSName("x")], False),
        ([x509.DNSName("tacit://hospitals/owner/0")], False),
        ([x509.DirectoryName(x509.Name([name]))], False),
    ):  # fmt: skip
        builder = x509.CertificateBuilder(x509.Name([name]), x509.Name([name]))
        builder = builder.public_key(authority.key.public_key()).serial_number(1)
        builder = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        der = builder.sign(authority.key, None).public_bytes(Encoding.DER)
        if good:
            assert peer_role(der, "hospitals") == OWNER
        else:
            with pytest.raises(AuthenticationFailed, match="one name"):
                peer_role(der, "hospitals")


def test_dates_are_checked_again_and_the_clock_is_named(authority: Signer) -> None:
    der = der_of(forge("tacit://hospitals/owner/0", by=authority))
    assert peer_role(der, "hospitals", now=NOW) == OWNER
    for late, word in ((2 * DAY, "expired"), (-2 * DAY, "not good yet")):
        with pytest.raises(AuthenticationFailed, match=f"owner 0 is {word}.*this machine's clock"):
            peer_role(der, "hospitals", now=NOW + late)
    old = forge("tacit://hospitals/owner/0", by=authority, start=NOW - 2 * DAY, end=NOW - DAY)
    with pytest.raises(AuthenticationFailed, match="expired"):
        peer_role(der_of(old), "hospitals")


def test_an_authority_is_no_party_even_if_it_names_one(authority: Signer) -> None:
    with pytest.raises(AuthenticationFailed):
        peer_role(der_of(authority), "hospitals")
    with pytest.raises(AuthenticationFailed):
        peer_role(der_of(forge("tacit://hospitals/owner/0", by=authority, ca=True)), "hospitals")


@pytest.mark.parametrize("der", [None, b"", b"garbage", bytes(500)])
def test_what_is_no_certificate_has_no_role_and_no_key(der: bytes | None) -> None:
    with pytest.raises(AuthenticationFailed, match="no certificate"):
        peer_role(der, "hospitals")
    with pytest.raises(AuthenticationFailed, match="no certificate"):
        peer_key(der)


def test_a_cut_or_changed_certificate_raises_nothing_else(made: Path) -> None:
    der = read_certificate(made / "owner-0" / "certificate.pem").public_bytes(Encoding.DER)
    damaged = [der[:cut] for cut in range(0, len(der), 7)]
    damaged += [der[:at] + bytes([der[at] ^ 0xFF]) + der[at + 1 :] for at in range(len(der))]
    refused = 0
    for one in damaged:
        for read in (lambda der: peer_role(der, "hospitals"), peer_key):
            try:
                read(one)
            except AuthenticationFailed:
                refused += 1
    assert refused > len(damaged)


def test_another_kind_of_key_is_refused(authority: Signer) -> None:
    other = forge(
        "tacit://hospitals/owner/0", by=authority, key=ec.generate_private_key(ec.SECP256R1())
    )
    with pytest.raises(AuthenticationFailed, match="Ed25519"):
        peer_key(der_of(other))


# --- files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_and_files_are_as_promised(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        issue_all(tmp_path / "f", "hospitals", ROLES, coins=Coins())
    finally:
        os.umask(before)
    parties = [folder_name(role) for role in ROLES]
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == sorted(
        [*parties, "authority"]
    )
    for name in parties:
        folder = tmp_path / "f" / name
        assert mode(folder) == 0o700 and mode(folder / "key.pem") == 0o600
        assert sorted(path.name for path in folder.iterdir()) == [
            "ca.pem", "certificate.pem", "key.pem", "registry.pem", "request.pem",
        ]  # fmt: skip
    authority = tmp_path / "f" / "authority"
    assert mode(authority) == 0o700 and mode(authority / "ca.key") == 0o600


def test_a_key_is_never_wider_even_for_a_moment(tmp_path: Path, monkeypatch: Any) -> None:
    opened: list[tuple[str, int, int]] = []
    real = os.open

    def watch(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        opened.append((Path(path).name, flags, mode))
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", watch)
    issue_all(tmp_path, "hospitals", ROLES, coins=Coins())
    keys = [entry for entry in opened if entry[0].startswith((".key.pem", ".ca.key"))]
    assert len(keys) == len(ROLES) + 1
    assert all(
        mode == 0o600 and flags & os.O_EXCL and flags & os.O_CREAT for _, flags, mode in keys
    )


def test_the_certificates_say_what_they_should(made: Path) -> None:
    ca = read_certificate(made / "authority" / "ca.pem")
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and basic.value == x509.BasicConstraints(True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign and not usage.digital_signature
    for role in ROLES:
        one = read_certificate(made / folder_name(role) / "certificate.pem")
        assert one.subject.rfc4514_string() == f"CN={role}"
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = one.extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature and not usage.key_cert_sign
        assert set(one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
            ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH,
        }  # fmt: skip
        names = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [name.value for name in names] == [f"tacit://hospitals/{role.kind}/{role.index}"]
        assert (
            NOW - DAY - timedelta(minutes=5) < one.not_valid_before_utc <= datetime.now(UTC) - DAY
        )
        assert one.not_valid_after_utc <= ca.not_valid_after_utc
        assert one.not_valid_after_utc - one.not_valid_before_utc > 365 * DAY
    serials = {read_certificate(path).serial_number for path in made.glob("*/c*.pem")}
    assert len(serials) == len(ROLES) + 1  # of ca.pem one


def test_keys_and_serial_numbers_come_from_the_coins(made: Path, tmp_path: Path) -> None:
    issue_all(tmp_path, "hospitals", ROLES, coins=Coins.from_seed(b"credentials"))
    issue_all(tmp_path / "else", "hospitals", ROLES, coins=Coins())
    same, other = load(tmp_path / "owner-1"), load(tmp_path / "else" / "owner-1")
    assert same.registry == load(made / "owner-1").registry
    assert not set(same.registry.values()) & set(other.registry.values())
    serials = [
        read_certificate(at / "owner-1" / "certificate.pem").serial_number
        for at in (made, tmp_path, tmp_path / "else")
    ]
    assert serials[0] == serials[1] != serials[2]


def test_no_key_is_overwritten(out: Path) -> None:
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for attempt in (
        lambda: issue_all(out, "hospitals", ROLES, coins=Coins()),
        lambda: issue_all(out, "hospitals", (Role("client"), OWNER), coins=Coins()),
        lambda: make_authority(out, "hospitals", coins=Coins()),
        lambda: request(out, "hospitals", OWNER, coins=Coins()),
    ):
        with pytest.raises(ConfigError, match="never overwritten"):
            attempt()
    assert files == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "authority" / "ca.key").unlink()  # kept elsewhere: its certificate stays too
    with pytest.raises(ConfigError, match="never overwritten"):
        make_authority(out, "hospitals", coins=Coins())
    (out / "authority" / "ca.pem").unlink()
    make_authority(out, "hospitals", coins=Coins())
    with pytest.raises(ConfigError, match="never overwritten"):
        make_authority(out, "hospitals", coins=Coins())


def test_one_key_in_the_way_and_nothing_is_made(tmp_path: Path) -> None:
    request(tmp_path, "hospitals", owners(3)[2], coins=Coins())
    with pytest.raises(ConfigError, match="never overwritten"):
        issue_all(tmp_path, "hospitals", ROLES, coins=Coins())
    assert [path.name for path in tmp_path.iterdir()] == ["owner-2"]


@pytest.mark.parametrize("name", ["", "Hospitals", "a b", "a/b", "a.b", "ä", "a\n", "x" * 65, ".."])
def test_a_federation_has_a_plain_name(tmp_path: Path, name: str) -> None:
    for attempt in (
        lambda: make_authority(tmp_path, name, coins=Coins()),
        lambda: request(tmp_path, name, OWNER, coins=Coins()),
        lambda: issue_all(tmp_path, name, ROLES, coins=Coins()),
    ):
        with pytest.raises(ConfigError, match="a-z, 0-9 and -"):
            attempt()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "role",
    [Role(""), Role("Owner"), Role("owner2"), Role("a/b"), Role(".."), Role("owner", -1), Role("x" * 33),
     Role("owner", 10**9), Role("owner\n")],
)  # fmt: skip
def test_a_role_is_a_word_and_a_number(tmp_path: Path, role: Role) -> None:
    with pytest.raises(ConfigError, match="a word of a-z and a number"):
        request(tmp_path, "hospitals", role, coins=Coins())
    with pytest.raises(ConfigError, match="a word of a-z and a number"):
        issue_all(tmp_path, "hospitals", [OWNER, role], coins=Coins())
    assert not list(tmp_path.iterdir())


def test_the_longest_names_fit(tmp_path: Path) -> None:
    role = Role("x" * 32, 10**9 - 1)
    issue_all(tmp_path, "-" * 64, [role], coins=Coins())
    assert load(tmp_path / folder_name(role)).role == role


@pytest.mark.parametrize("roles", [(), (OWNER, SERVER, OWNER)])
def test_each_role_is_there_once(tmp_path: Path, roles: Sequence[Role]) -> None:
    with pytest.raises(ConfigError, match="each once"):
        issue_all(tmp_path, "hospitals", roles, coins=Coins())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_days_have_bounds(tmp_path: Path, days: int) -> None:
    with pytest.raises(ConfigError, match="1 to 36500 days"):
        issue_all(tmp_path, "hospitals", ROLES, days=days, coins=Coins())
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be one"):
        make_authority(tmp_path / "file", "hospitals", coins=Coins())


def test_a_request_that_was_killed_after_its_key_is_made_from_that_key(tmp_path: Path) -> None:
    folder = request(tmp_path, "clinics", ROLES[1], coins=Coins())
    key = (folder / "key.pem").read_bytes()
    (folder / "request.pem").unlink()
    request(tmp_path, "clinics", ROLES[1], coins=Coins())
    assert (folder / "key.pem").read_bytes() == key and (folder / "request.pem").exists()
    with pytest.raises(ConfigError, match="never overwritten"):
        request(tmp_path, "clinics", ROLES[1], coins=Coins())


# --- request, sign, accept


def enrol(out: Path, authority: Path, *roles: Role) -> list[Path]:
    """The folders of roles that asked, each on its own, and were answered."""
    folders = [request(out, "clinics", role, coins=Coins()) for role in roles]
    for folder in folders:
        sign(authority, folder / "request.pem", coins=Coins())
    for folder in folders:
        take(folder, authority)
    return folders


def take(folder: Path, authority: Path, **other: Path) -> Credentials:
    files = {
        "certificate": authority / "issued" / f"{folder.name}.pem",
        "ca": authority / "ca.pem",
        "registry": authority / "registry.pem",
    }
    return accept(folder, **{**files, **other})


def test_parties_enrol_without_showing_their_keys(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "clinics", coins=Coins())
    folder = request(tmp_path, "clinics", OWNER, coins=Coins())
    assert sorted(path.name for path in folder.iterdir()) == ["key.pem", "request.pem"]
    assert b"PRIVATE" not in (folder / "request.pem").read_bytes()
    place = sign(authority, folder / "request.pem", coins=Coins())
    assert place == authority / "issued" / "owner-0.pem"
    other = request(tmp_path, "clinics", SERVER, coins=Coins())
    sign(authority, other / "request.pem", coins=Coins())
    held = take(folder, authority)
    assert held.federation == "clinics" and held.role == OWNER
    assert held.fingerprint == load(folder).fingerprint
    server = take(other, authority)
    assert held.registry == server.registry == {OWNER: held.key.public, SERVER: server.key.public}
    at_server, at_owner = handshake(server_context(server), client_context(held))
    assert peer_role(at_server, "clinics") == OWNER and peer_role(at_owner, "clinics") == SERVER


def test_a_request_says_for_whom_it_is(tmp_path: Path) -> None:
    folder = request(tmp_path, "clinics", OWNER, coins=Coins())
    key = load_pem_private_key((folder / "key.pem").read_bytes(), None).public_key()
    assert requested(folder / "request.pem") == ("clinics", OWNER, key.public_bytes_raw())  # type: ignore[union-attr]


def test_a_later_party_needs_a_new_registry_at_the_others(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "clinics", coins=Coins())
    (first,) = enrol(tmp_path, authority, OWNER)
    enrol(tmp_path, authority, Role("owner", 1))
    assert set(load(first).registry) == {OWNER}
    accept(
        first, certificate=first / "certificate.pem", ca=first / "ca.pem", registry=authority / "registry.pem"
    )  # fmt: skip
    assert set(load(first).registry) == {OWNER, Role("owner", 1)}


def test_a_role_gets_a_second_certificate_only_by_renewal(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "clinics", days=30, coins=Coins())
    (folder,) = enrol(tmp_path, authority, OWNER)
    first = load(folder)
    with pytest.raises(ConfigError, match=r"owner 0 has a certificate already.*--renew"):
        sign(authority, folder / "request.pem", coins=Coins())
    sign(authority, folder / "request.pem", coins=Coins(), renew=True)
    again = take(folder, authority)
    assert again.key.public == first.key.public and again.fingerprint != first.fingerprint


def test_a_role_that_enrols_anew_is_known_by_its_new_key_alone(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "clinics", coins=Coins())
    old, server = enrol(tmp_path, authority, OWNER, SERVER)
    new = request(tmp_path / "new", "clinics", OWNER, coins=Coins())
    with pytest.raises(ConfigError, match="--renew"):
        sign(authority, new / "request.pem", coins=Coins())
    sign(authority, new / "request.pem", coins=Coins(), renew=True)
    held, at_server = take(new, authority), take(server, authority)
    assert at_server.registry[OWNER] == held.key.public
    # The old certificate still gets through TLS; its key gives it away.
    der, _ = handshake(server_context(at_server), client_context(load(old)))
    assert peer_role(der, "clinics") == OWNER and peer_key(der) != at_server.registry[OWNER]
    with pytest.raises(AuthenticationFailed, match="another key"):
        accept(
            old, certificate=old / "certificate.pem", ca=old / "ca.pem", registry=authority / "registry.pem"
        )  # fmt: skip


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "clinics", days=10, coins=Coins())
    folder = request(tmp_path, "clinics", OWNER, coins=Coins())
    place = sign(authority, folder / "request.pem", days=100, coins=Coins())
    ends = [read_certificate(path).not_valid_after_utc for path in (place, authority / "ca.pem")]
    assert ends[0] == ends[1]
    place = sign(authority, folder / "request.pem", days=2, coins=Coins(), renew=True)
    assert read_certificate(place).not_valid_after_utc < NOW + 3 * DAY


def csr(*uris: str, key: Any = None, names: Sequence[x509.GeneralName] = ()) -> bytes:
    key = key or Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "owner 0")])
    builder = x509.CertificateSigningRequestBuilder(name)
    wanted = [*map(x509.UniformResourceIdentifier, uris), *names]
    if wanted:
        builder = builder.add_extension(x509.SubjectAlternativeName(wanted), critical=False)
    digest = None if isinstance(key, Ed25519PrivateKey) else SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (csr("tacit://clinics/owner/0"), AuthenticationFailed, "for 'clinics', expected 'hospitals'"),
        (csr(), AuthenticationFailed, "one name"),
        (csr("tacit://hospitals/client/0", "tacit://hospitals/client/1"), AuthenticationFailed, "one name"),
        (csr("tacit://hospitals/client/01"), AuthenticationFailed, "one name"),
        (csr("tacit://hospitals/../0"), AuthenticationFailed, "one name"),
        (csr("tacit://hospitals/client/0", names=[x509.DNSName("x")]), AuthenticationFailed, "one name"),
        (csr("tacit://hospitals/client/0", key=ec.generate_private_key(ec.SECP256R1())), AuthenticationFailed,
         "Ed25519"),
        (b"garbage", ConfigError, "damaged"),
        (b"", ConfigError, "damaged"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused(
    out: Path, asked: bytes, error: type[Exception], words: str
) -> None:
    before = (out / "authority" / "registry.pem").read_bytes()
    (out / "asked.pem").write_bytes(asked)
    with pytest.raises(error, match=words):
        sign(out / "authority", out / "asked.pem", coins=Coins())
    assert (out / "authority" / "registry.pem").read_bytes() == before


def test_a_request_that_was_changed_is_refused(out: Path) -> None:
    asked = x509.load_pem_x509_csr(csr("tacit://hospitals/client/1")).public_bytes(Encoding.DER)
    changed = asked.replace(b"client/1", b"client/2")
    pem = x509.load_der_x509_csr(changed).public_bytes(Encoding.PEM)
    (out / "asked.pem").write_bytes(pem)
    with pytest.raises(AuthenticationFailed, match="changed after it was signed"):
        sign(out / "authority", out / "asked.pem", coins=Coins())


def test_what_else_a_request_asks_for_is_not_given(out: Path) -> None:
    key = Ed25519PrivateKey.generate()
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    uri = x509.UniformResourceIdentifier("tacit://hospitals/client/0")
    builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    (out / "asked.pem").write_bytes(builder.sign(key, None).public_bytes(Encoding.PEM))
    one = read_certificate(sign(out / "authority", out / "asked.pem", coins=Coins()))
    assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert one.subject.rfc4514_string() == "CN=client 0"


def test_a_key_that_another_role_has_is_refused(out: Path) -> None:
    key = load_pem_private_key((out / "owner-0" / "key.pem").read_bytes(), None)
    (out / "asked.pem").write_bytes(csr("tacit://hospitals/client/0", key=key))
    with pytest.raises(ConfigError, match="one key"):
        sign(out / "authority", out / "asked.pem", coins=Coins())
    assert not (out / "authority" / "issued" / "client-0.pem").exists()


def test_of_several_requests_all_are_answered_or_none(out: Path) -> None:
    places = []
    for index in range(2):
        (out / f"{index}.pem").write_bytes(csr(f"tacit://hospitals/client/{index}"))
        places.append(out / "authority" / "issued" / f"client-{index}.pem")
    (out / "bad.pem").write_bytes(csr("tacit://clinics/client/0"))
    good = [out / "0.pem", out / "1.pem"]
    with pytest.raises(AuthenticationFailed):
        sign_all(out / "authority", [*good, out / "bad.pem"], coins=Coins())
    with pytest.raises(ConfigError, match="client 0 has a certificate already"):
        sign_all(out / "authority", [*good, good[0]], coins=Coins(), renew=True)
    assert not any(place.exists() for place in places)
    assert sign_all(out / "authority", good, coins=Coins()) == places
    assert take(out / "owner-0", out / "authority").registry.keys() >= {
        Role("client", 0),
        Role("client", 1),
    }


def test_an_authority_with_another_key_or_an_open_one_signs_nothing(
    out: Path, tmp_path: Path
) -> None:
    (out / "asked.pem").write_bytes(csr("tacit://hospitals/client/0"))
    key = out / "authority" / "ca.key"
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        sign(out / "authority", out / "asked.pem", coins=Coins())
    key.write_bytes(forge().key_pem())
    key.chmod(0o600)
    with pytest.raises(AuthenticationFailed, match=r"not the key of ca\.pem"):
        sign(out / "authority", out / "asked.pem", coins=Coins())
    key.unlink()
    with pytest.raises(ConfigError, match="tacit keys authority"):
        sign(out / "authority", out / "asked.pem", coins=Coins())


def test_an_authority_whose_time_is_over_signs_nothing(out: Path) -> None:
    (out / "asked.pem").write_bytes(csr("tacit://hospitals/client/0"))
    old = forge(ca=True, common="hospitals", start=NOW - 2 * DAY, end=NOW - DAY)
    (out / "authority" / "ca.pem").write_bytes(old.pem())
    (out / "authority" / "ca.key").write_bytes(old.key_pem())
    with pytest.raises(AuthenticationFailed, match="the authority is expired"):
        sign(out / "authority", out / "asked.pem", coins=Coins())


def test_only_what_was_asked_for_is_accepted(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "clinics", coins=Coins())
    one, two = enrol(tmp_path, authority, OWNER, Role("owner", 1))
    before = {path: path.read_bytes() for path in one.iterdir()}
    with pytest.raises(AuthenticationFailed, match="not the key of the certificate of owner 1"):
        take(one, authority, certificate=two / "certificate.pem")
    # An authority that answers with another role for the right key.
    ca = signer(authority / "ca.pem", authority / "ca.key")
    key = load_pem_private_key((one / "key.pem").read_bytes(), None)
    other = forge("tacit://clinics/server/0", by=ca, key=key)
    (tmp_path / "other.pem").write_bytes(other.pem())
    with pytest.raises(AuthenticationFailed, match=r"not what request\.pem asked for"):
        take(one, authority, certificate=tmp_path / "other.pem", registry=tmp_path / "other.pem")
    with pytest.raises(ConfigError, match="cannot be read"):
        take(one, authority, certificate=tmp_path / "nothing.pem")
    assert before == {path: path.read_bytes() for path in one.iterdir()}


def test_a_folder_keeps_its_authority(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "clinics", coins=Coins())
    (folder,) = enrol(tmp_path, authority, OWNER)
    rival = make_authority(tmp_path / "rival", "clinics", coins=Coins())
    sign(rival, folder / "request.pem", coins=Coins())
    with pytest.raises(ConfigError, match="another authority"):
        take(folder, rival)
    assert read_certificate(folder / "ca.pem") == read_certificate(authority / "ca.pem")


# --- load


def test_load_gives_all(made: Path) -> None:
    held = load(made / "owner-1")
    assert held.federation == "hospitals" and held.role == Role("owner", 1)
    assert held.folder == made / "owner-1" and tuple(held.registry) == tuple(sorted(ROLES))
    for role in ROLES:
        key = load_pem_private_key((made / folder_name(role) / "key.pem").read_bytes(), None)
        assert held.registry[role] == key.public_key().public_bytes_raw()  # type: ignore[union-attr]
    own = read_certificate(made / "owner-1" / "certificate.pem")
    assert held.fingerprint == fingerprint(own) == own.fingerprint(SHA256()).hex()
    with pytest.raises(FrozenInstanceError):
        held.role = SERVER  # type: ignore[misc]
    with pytest.raises(TypeError):
        held.registry[OWNER] = bytes(32)  # type: ignore[index]


def test_repr_shows_no_secret(made: Path) -> None:
    held = load(made / "owner-1")
    secret = held.key.secret.private_bytes_raw()
    pem = (made / "owner-1" / "key.pem").read_text().splitlines()[1]
    shown = repr(held) + repr(held.key) + str(held)
    assert "owner 1 of hospitals" in shown and held.fingerprint[:16] in shown
    assert secret.hex() not in shown and repr(secret)[2:-1] not in shown and pem not in shown


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("key.pem", "tacit keys request"),
        ("certificate.pem", "send request.pem to the authority"),
        ("ca.pem", "tacit keys accept"),
        ("registry.pem", "tacit keys accept"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(out: Path, name: str, how: str) -> None:
    path = out / "owner-0" / name
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ConfigError, match=how) as missing:
        load(out / "owner-0")
    assert str(path) in str(missing.value)
    for bad in (b"", b"garbage", content[:-50], bytes([0xFF]) * 50):
        path.write_bytes(bad)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=f"{name} is damaged"):
            load(out / "owner-0")


@pytest.mark.parametrize("open_to", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_key_that_others_may_use_is_refused(out: Path, open_to: int) -> None:
    key = out / "owner-0" / "key.pem"
    key.chmod(open_to)
    with pytest.raises(ConfigError, match="chmod 600"):
        load(out / "owner-0")
    key.chmod(0o400)
    load(out / "owner-0")


def test_a_locked_or_other_key_is_refused(out: Path) -> None:
    path = out / "owner-0" / "key.pem"
    key = load_pem_private_key(path.read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    path.write_bytes(locked)
    with pytest.raises(ConfigError, match=r"key\.pem is damaged or not PEM"):
        load(out / "owner-0")
    path.write_bytes(Signer(ec.generate_private_key(ec.SECP256R1()), None).key_pem())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Ed25519"):
        load(out / "owner-0")
    path.write_bytes(forge().key_pem())
    with pytest.raises(AuthenticationFailed, match="not the key of the certificate of owner 0"):
        load(out / "owner-0")


@pytest.mark.parametrize(("late", "word"), [(-2 * DAY, "not good yet"), (366 * DAY, "expired")])
def test_dates_are_checked_and_the_clock_is_named(made: Path, late: timedelta, word: str) -> None:
    load(made / "owner-0", now=NOW - DAY + timedelta(hours=1))  # clocks differ
    load(made / "owner-0", now=NOW + 364 * DAY)
    with pytest.raises(AuthenticationFailed, match=f"{word}.*check this machine's clock, or renew"):
        load(made / "owner-0", now=NOW + late)


def put(folder: Path, own: Signer, *others: Signer) -> None:
    """Make a folder of that certificate and its key, and a registry of it and those."""
    (folder / "key.pem").write_bytes(own.key_pem())
    (folder / "certificate.pem").write_bytes(own.pem())
    (folder / "registry.pem").write_bytes(own.pem() + b"".join(one.pem() for one in others))


def test_a_party_whose_certificate_is_over_is_named(out: Path, authority: Signer) -> None:
    own = forge("tacit://hospitals/owner/0", by=authority)
    old = forge("tacit://hospitals/owner/7", by=authority, start=NOW - 2 * DAY, end=NOW - DAY)
    put(out / "owner-0", own)
    assert (
        load(out / "owner-0").role == OWNER
    )  # the control: a forged one of the authority is right
    put(out / "owner-0", own, old)
    with pytest.raises(AuthenticationFailed, match="owner 7 is expired"):
        load(out / "owner-0")
    put(out / "owner-0", Signer(old.key, old.certificate))
    with pytest.raises(AuthenticationFailed, match="owner 7 is expired"):
        load(out / "owner-0")


def test_who_the_authority_did_not_sign_is_refused(out: Path, authority: Signer) -> None:
    own = forge("tacit://hospitals/owner/0", by=authority)
    rival = forge(ca=True, common="hospitals")
    chain, _ = tampered(out, authority)
    for stranger in (
        forge("tacit://hospitals/owner/7"),
        forge("tacit://hospitals/owner/7", by=rival),
        forge("tacit://hospitals/owner/7", by=own),
        Signer(None, x509.load_pem_x509_certificate(chain[0])),
    ):
        put(out / "owner-0", own, stranger)
        with pytest.raises(AuthenticationFailed, match=r"not signed by the authority in ca\.pem"):
            load(out / "owner-0")
        if stranger.key is not None:
            put(out / "owner-0", stranger)
            with pytest.raises(
                AuthenticationFailed, match=r"not signed by the authority in ca\.pem"
            ):
                load(out / "owner-0")


def test_a_registry_with_a_role_or_a_key_twice_is_refused(out: Path, authority: Signer) -> None:
    own = forge("tacit://hospitals/owner/0", by=authority)
    for twice in (
        own,
        forge("tacit://hospitals/owner/0", by=authority),
        forge("tacit://hospitals/owner/7", by=authority, key=own.key),
    ):
        put(out / "owner-0", own, twice)
        with pytest.raises(AuthenticationFailed, match="twice"):
            load(out / "owner-0")


def test_a_registry_of_others_is_refused(out: Path, authority: Signer) -> None:
    own = forge("tacit://hospitals/owner/0", by=authority)
    foreign = forge("tacit://clinics/owner/7", by=authority)
    put(out / "owner-0", own, foreign)
    with pytest.raises(AuthenticationFailed, match="for 'clinics', expected 'hospitals'"):
        load(out / "owner-0")
    put(out / "owner-0", foreign)
    with pytest.raises(AuthenticationFailed, match="for 'clinics', expected 'hospitals'"):
        load(out / "owner-0")
    put(out / "owner-0", own)
    registry = out / "owner-0" / "registry.pem"
    registry.write_bytes(forge("tacit://hospitals/owner/1", by=authority).pem())
    with pytest.raises(AuthenticationFailed, match="lacks owner 0"):
        load(out / "owner-0")
    registry.write_bytes(forge("tacit://hospitals/owner/0", by=authority).pem())
    with pytest.raises(AuthenticationFailed, match="another key"):
        load(out / "owner-0")
    registry.write_bytes(own.pem() + authority.pem())
    with pytest.raises(AuthenticationFailed):
        load(out / "owner-0")


def test_a_party_has_one_role_and_another_key_kind_is_no_party(
    out: Path, authority: Signer
) -> None:
    own = forge("tacit://hospitals/owner/0", by=authority)
    two = forge("tacit://hospitals/owner/7", "tacit://hospitals/server/0", by=authority)
    curve = ec.generate_private_key(ec.SECP256R1())
    for other, words in (
        (two, "one name"),
        (forge("tacit://hospitals/owner/7", by=authority, key=curve), "Ed25519"),
        (forge("tacit://hospitals/owner/7", by=authority, ca=True), "a party's"),
    ):
        put(out / "owner-0", own, other)
        with pytest.raises(AuthenticationFailed, match=words):
            load(out / "owner-0")


def test_one_authority_is_trusted_and_it_is_one(out: Path, authority: Signer) -> None:
    ca = out / "owner-0" / "ca.pem"
    ca.write_bytes(authority.pem() + forge(ca=True, common="hospitals").pem())
    with pytest.raises(ConfigError, match="one certificate expected, came 2"):
        load(out / "owner-0")
    ca.write_bytes(forge(common="hospitals").pem())  # signs itself, and may sign nobody
    with pytest.raises(
        AuthenticationFailed, match="not the certificate of a federation's authority"
    ):
        load(out / "owner-0")
    middle = forge(ca=True, common="hospitals", by=authority)  # may sign, and is signed by another
    put(out / "owner-0", forge("tacit://hospitals/owner/0", by=middle))
    ca.write_bytes(middle.pem())
    with pytest.raises(AuthenticationFailed, match=r"ca\.pem: not signed"):
        load(out / "owner-0")
    certificate = out / "owner-1" / "certificate.pem"
    certificate.write_bytes(certificate.read_bytes() * 2)
    with pytest.raises(ConfigError, match="one certificate expected, came 2"):
        load(out / "owner-1")


def test_files_that_changed_since_are_not_used(out: Path, authority: Signer) -> None:
    held = load(out / "owner-0")
    for make in (server_context, client_context):
        make(held)
    put(out / "owner-0", forge("tacit://hospitals/owner/0", by=authority))
    for make in (server_context, client_context):
        with pytest.raises(ConfigError, match="changed since it was loaded"):
            make(held)
    held = load(out / "owner-0")
    (out / "owner-0" / "key.pem").write_bytes(forge().key_pem())
    with pytest.raises(ConfigError, match="changed since it was loaded"):
        client_context(held)


def test_the_registrys_fingerprint_is_the_same_at_all_and_changes_with_it(made: Path) -> None:
    registry = load(made / "owner-0").registry
    shown = {registry_fingerprint(load(made / folder_name(role)).registry) for role in ROLES}
    assert len(shown) == 1 and registry_fingerprint(dict(reversed(registry.items()))) in shown
    swapped = {**registry, OWNER: registry[SERVER], SERVER: registry[OWNER]}
    fewer = {role: key for role, key in registry.items() if role != OWNER}
    assert len({*shown, registry_fingerprint(swapped), registry_fingerprint(fewer)}) == 3


def test_state_keys_follow_from_key_and_purpose_alone(made: Path) -> None:
    one, two = load(made / "owner-0"), load(made / "owner-1")
    secret = one.key.secret.private_bytes_raw()
    assert state_key(one, "rounds") == HKDF(SHA256(), 32, None, b"tacit/rounds").derive(secret)
    keys = {state_key(one, "rounds"), state_key(one, "round"), state_key(two, "rounds")}
    assert len(keys) == 3 and {len(key) for key in keys} == {32}
    assert state_key(load(made / "owner-0"), "rounds") in keys


def test_the_error_is_one_of_the_protocol() -> None:
    assert issubclass(AuthenticationFailed, ProtocolError)
