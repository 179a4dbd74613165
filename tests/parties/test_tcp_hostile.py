"""Who may not connect, connections that break in every way, and floods: the honest run goes on and is exact."""

from __future__ import annotations

import contextlib
import os
import random  # noqa: TID251 - of tests alone, seeded
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tacit.core.errors import (
    AuthenticationFailed,
    ConfigError,
    PeerDropped,
    ProtocolError,
    WireError,
)
from tacit.core.wire import Message, encode
from tacit.crypto.keys import SigningKey
from tacit.parties.credentials import (
    Credentials,
    client_context,
    fingerprint,
    server_context,
)
from tacit.parties.links.frames import CONTROL, HEAD, Header, Kind
from tacit.parties.links.reactor import Limits
from tacit.parties.links.tcp import TcpHub, listen
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.star import ask

from .conftest import LEAKY
from .proxy import (
    HOST,
    PASS,
    QUICK,
    Adder,
    ByHand,
    Forked,
    Harm,
    Proxy,
    Running,
    Star,
    add,
    descriptors,
    memory,
    serving,
    star,
    until,
    wave,
)
from .test_credentials import DAY, NOW, Signer, forge, rogue, signer

Parties = Callable[[Role], Credentials]
A, B, C = owners(3)
pytestmark = [pytest.mark.usefixtures("nothing_is_left"), pytest.mark.filterwarnings(LEAKY)]


@pytest.fixture(scope="module")
def authority(federation: Path) -> Signer:
    return signer(federation / "authority" / "ca.pem", federation / "authority" / "ca.key")


@pytest.fixture
def honest(parties: Parties) -> Iterator[Star]:
    """A star of two owners, of whom the second works; it must be exact before and after."""
    with star(parties, [A, B], wait=False, members={A: Adder(), B: Adder()}, only=[B]) as one:
        one.hub.wait(at_least=1, deadline=5.0)
        assert still(one, 1)
        yield one
        assert still(one, 2)
        assert one.hub._reactor.error is None


def still(one: Star, amount: int) -> bool:
    before = one.members[B].total
    got = ask(one.hub, {B: add(amount)}, deadline=5.0)[B].integer("total")
    return got == before + amount


def odd(
    folder: Path, federation: Path, shown: Signer, parties: Parties, *, role: Role = A
) -> Credentials:
    """What a party would have that shows that certificate and takes itself for right."""
    folder.mkdir(mode=0o700)
    (folder / "ca.pem").write_bytes((federation / "authority" / "ca.pem").read_bytes())
    (folder / "certificate.pem").write_bytes(shown.pem())
    (folder / "key.pem").write_bytes(shown.key_pem())
    key = SigningKey(shown.key, shown.key.public_key().public_bytes_raw())
    return replace(
        parties(role), key=key, folder=folder, fingerprint=fingerprint(shown.certificate)
    )


HOSPITALS = "tacit://hospitals/owner/0"
Made = Callable[[Signer], Signer]
WRONG: dict[str, tuple[Made, str, str]] = {
    # what is shown, what the other side notes, what who shows it is told
    "expired": (
        lambda ca: forge(HOSPITALS, by=ca, start=NOW - 2 * DAY, end=NOW - DAY),
        "the peer's certificate has ended: check this machine's clock",
        "certificate has ended: check the clocks, or renew it",
    ),
    "not yet valid": (
        lambda ca: forge(HOSPITALS, by=ca, start=NOW + DAY, end=NOW + 2 * DAY),
        "not good yet: check both machines' clocks",
        "not good yet .check the clocks.",
    ),
    "self-signed": (
        lambda ca: forge(HOSPITALS),
        "not signed by this federation's authority but by itself",
        "does not know this party's authority",
    ),
    "of a foreign authority": (
        lambda ca: forge(HOSPITALS, by=forge(ca=True, common="hospitals")),
        "not signed by this federation's authority",
        "does not know this party's authority",
    ),
    "of another federation": (
        lambda ca: forge("tacit://clinics/owner/0", by=ca),
        "owner 0 of 'clinics', expected 'hospitals'",
        "owner 0 of 'clinics', expected 'hospitals'",
    ),
    "of no role": (
        lambda ca: forge("tacit://hospitals/owner/0", "tacit://hospitals/owner/1", by=ca),
        "with one name",
        "with one name",
    ),
    "of a key that is not the registry's": (
        lambda ca: forge(HOSPITALS, by=ca),
        "not the one in the registry",
        "not the one in the registry: it may have enrolled anew",
    ),
    "of a role that is not expected": (
        lambda ca: forge("tacit://hospitals/owner/6", by=ca),
        "not the one in the registry",
        "not the one in the registry",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_a_member_with_a_wrong_certificate_is_refused_and_told_why(
    honest: Star, parties: Parties, federation: Path, authority: Signer, tmp_path: Path, case: Any
) -> None:
    make, noted, told = case
    credentials = odd(tmp_path / "odd", federation, make(authority), parties)
    start = time.monotonic()
    with pytest.raises(AuthenticationFailed, match=told):
        serving(Adder(), credentials, honest.hub.address).result()
    assert time.monotonic() - start < 3.0  # and not until it gives up
    assert until(lambda: any(noted in note for note in honest.notes)), honest.notes
    assert honest.hub._links[A].pipe is None


def test_the_control_of_the_wrong_ones(
    parties: Parties, federation: Path, authority: Signer, tmp_path: Path
) -> None:
    """A forged certificate connects where the registry has its key: it is what was wrong that is refused."""
    credentials = odd(tmp_path / "odd", federation, forge(HOSPITALS, by=authority), parties)
    server = parties(SERVER)
    known = replace(server, registry={**server.registry, A: credentials.key.public})
    with TcpHub(known, [A], (HOST, 0), limits=QUICK) as hub:
        running = serving(Adder(), credentials, hub.address)
        assert wave(hub, 1, deadline=5.0) == {A: 1}
    assert running.join() is None


def test_who_enrolled_anew_is_known_by_its_new_certificate_alone(
    parties: Parties, federation: Path, authority: Signer, tmp_path: Path
) -> None:
    renewed = odd(tmp_path / "odd", federation, forge(HOSPITALS, by=authority), parties)
    registry = {**parties(SERVER).registry, A: renewed.key.public}
    with TcpHub(replace(parties(SERVER), registry=registry), [A], (HOST, 0), limits=QUICK) as hub:
        with pytest.raises(AuthenticationFailed, match="all need the new registry"):
            serving(Adder(), parties(A), hub.address).result()
        running = serving(Adder(), renewed, hub.address)
        assert wave(hub, 1, deadline=5.0) == {A: 1}
    running.join()
    # and the other way round: a coordinator that enrolled anew, and a member with the old registry
    other = forge("tacit://hospitals/server/0", by=authority)
    server = odd(tmp_path / "server", federation, other, parties, role=SERVER)
    with TcpHub(server, [A], (HOST, 0), limits=QUICK) as hub:
        error = serving(Adder(), parties(A), hub.address).join()
    assert isinstance(error, AuthenticationFailed)
    assert "server 0 showed a certificate that is not the one in the registry" in str(error)


def test_a_role_that_is_not_expected_is_refused(honest: Star, parties: Parties) -> None:
    for role in (Role("dealer"), Role("server", 1), owners(5)[4]):
        with pytest.raises(AuthenticationFailed, match=f"{role} connected, which is not expected"):
            serving(Adder(), parties(role), honest.hub.address).result()


def test_an_owner_that_listens_is_not_taken_for_the_coordinator(parties: Parties) -> None:
    owner = owners(4)[3]
    with TcpHub(parties(owner), [A], (HOST, 0), limits=QUICK) as hub:
        error = serving(Adder(), parties(A), hub.address).join()
    assert isinstance(error, AuthenticationFailed)
    assert str(error) == "server 0 was expected there, and it is owner 3"


@pytest.mark.parametrize(
    "name", ["expired", "not yet valid", "self-signed", "of a foreign authority"]
)
def test_a_coordinator_with_a_wrong_certificate_is_refused(
    parties: Parties, federation: Path, authority: Signer, tmp_path: Path, name: str
) -> None:
    make, words, _ = WRONG[name]
    shown = make(authority)
    context = rogue(federation, tmp_path, ssl.PROTOCOL_TLS_SERVER, [shown.pem()], shown.key_pem())
    with answering(lambda sock: context.wrap_socket(sock, server_side=True).recv(1)) as address:
        error = serving(Adder(), parties(A), address).join()
    assert isinstance(error, AuthenticationFailed) and words in str(error)


@contextlib.contextmanager
def answering(serve: Callable[[socket.socket], Any]) -> Iterator[tuple[str, int]]:
    """Somebody who listens and does that with each connection."""
    over = threading.Event()
    with socket.create_server((HOST, 0)) as listening:

        def accept() -> None:
            while not over.is_set():
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                sock.settimeout(5)
                with sock, contextlib.suppress(OSError):
                    serve(sock)

        running = Running(accept)
        try:
            yield listening.getsockname()[:2]
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            running.join()


# --- what is no TLS, or another


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"POST /round HTTP/1.1\r\nHost: server\r\n\r\n", "plain HTTP"),
        (b"\xac\x01\x05hello" + bytes(64), "does not speak TLS"),
        (Header(kind=Kind.HELLO).packed(0), "does not speak TLS"),
        (b"\x16\x03\x01\x00\x05hello", ""),
        (b"\x15\x03\x03\x00\x02\x02\x30", ""),  # an alert
        (b"\xff" * 20_000, ""),
        (b"\x00", None),
        (b"", None),
    ],
    ids=["http", "message", "frame", "record", "alert", "noise", "one byte", "nothing"],
)
def test_what_is_no_tls_is_dropped(honest: Star, sent: bytes, words: str | None) -> None:
    before = len(honest.notes)
    for ending in ("close", "reset", "wait"):
        with (
            socket.create_connection(honest.hub.address, timeout=5) as sock,
            contextlib.suppress(ConnectionError),
        ):
            sock.sendall(sent)
            if ending == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if ending == "wait":
                while sock.recv(4096):
                    pass
    assert until(lambda: len(honest.notes) >= before + 3)
    assert not words or until(lambda: any(words in note for note in honest.notes))


def test_a_connection_that_is_gone_before_it_is_looked_at_leaves_nothing(honest: Star) -> None:
    for _ in range(30):
        socks = [socket.create_connection(honest.hub.address) for _ in range(10)]
        for sock in socks:
            sock.sendall(b"\x16")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
    assert until(lambda: not honest.hub._acceptor._callers)


def test_an_older_tls_is_refused(
    honest: Star, federation: Path, authority: Signer, tmp_path: Path
) -> None:
    shown = forge(HOSPITALS, by=authority)
    context = rogue(federation, tmp_path, ssl.PROTOCOL_TLS_CLIENT, [shown.pem()], shown.key_pem())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    sock = socket.create_connection(honest.hub.address, timeout=5)
    with sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock)
    assert until(lambda: any("does not speak TLS 1.3" in note for note in honest.notes))


def test_who_shows_no_certificate_is_refused(honest: Star, federation: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(federation / "authority" / "ca.pem")
    tls = context.wrap_socket(socket.create_connection(honest.hub.address, timeout=5))
    with tls, pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        tls.recv(1)
    assert until(lambda: any("showed no certificate" in note for note in honest.notes))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
        (b"220 mail ESMTP\r\n", "does not speak TLS"),
        (b"", "could not be reached"),
    ],
)
def test_a_member_at_a_port_of_something_else_says_so(
    parties: Parties, answer: bytes, words: str
) -> None:
    with answering(lambda sock: (sock.recv(4096), sock.sendall(answer))) as address:
        start = time.monotonic()
        with pytest.raises(PeerDropped, match=words):
            serving(Adder(), parties(A), address, first=0.3).result()
        assert 0.3 <= time.monotonic() - start < 3.0


def test_a_member_at_a_port_where_nobody_listens_gives_up_in_time(parties: Parties) -> None:
    with listen((HOST, 0)) as unused:
        nobody = unused.getsockname()[:2]
    start = time.monotonic()
    with pytest.raises(
        PeerDropped, match=r"server 0 at 127.0.0.1:\d+ could not be reached for 0.5 s"
    ):
        serving(Adder(), parties(A), nobody, first=0.5).result()
    assert 0.5 <= time.monotonic() - start < 2.5


def test_a_member_at_a_port_that_says_nothing_gives_up_in_time(parties: Parties) -> None:
    limits = Limits(heartbeat=0.2, patience=1.0, handshake=0.2)
    with answering(lambda sock: sock.recv(4096) and sock.recv(4096)) as address:
        start = time.monotonic()
        with pytest.raises(PeerDropped, match="could not be reached"):
            serving(Adder(), parties(A), address, first=0.5, limits=limits).result()
        assert time.monotonic() - start < 3.0


def test_a_port_that_is_taken_or_not_this_machines_is_a_wrong_setting(parties: Parties) -> None:
    with listen((HOST, 0)) as taken:
        for address in (taken.getsockname()[:2], ("192.0.2.1", 0), (HOST, 70_000)):
            with pytest.raises(ConfigError, match="choose another port"):
                TcpHub(parties(SERVER), [A], address)


# --- the first words


def test_who_agreed_on_something_else_is_refused(parties: Parties) -> None:
    with TcpHub(parties(SERVER), [A], (HOST, 0), about=b"one thing", limits=QUICK) as hub:
        with pytest.raises(ProtocolError, match=r"give all the same federation\.toml") as caught:
            serving(Adder(), parties(A), hub.address, about=b"another").result()
        assert type(caught.value) is ProtocolError
        running = serving(Adder(), parties(A), hub.address, about=b"one thing")
        assert wave(hub, 1, deadline=5.0) == {A: 1}
    running.join()


def test_another_version_of_the_package_is_refused(honest: Star, parties: Parties) -> None:
    for version in ("9.9.9", "", "\x1b[2J" * 100):
        with ByHand(parties(A), honest.hub.address, version=version) as one:
            said = str(one.refused())
            assert (
                "owner 0 runs tacit" in said and "install the same" in said and said.isprintable()
            )
    assert all(note.isprintable() for note in honest.notes)


def newer(header: Header, length: int = 0) -> bytes:
    raw = header.packed(length)
    return raw[:4] + bytes([raw[4] + 1]) + raw[5:]


def test_another_version_of_the_link_is_refused_on_both_sides(
    honest: Star, parties: Parties
) -> None:
    sock = client_context(parties(A)).wrap_socket(
        socket.create_connection(honest.hub.address, timeout=5)
    )
    with sock:
        sock.sendall(newer(Header(kind=Kind.HELLO)))
        came = b""
        while piece := sock.recv(4096):
            came += piece
        assert came[5] == Kind.REFUSE and b"install the same version of tacit" in came
    assert until(lambda: any("has version 2, this side's 1" in note for note in honest.notes))

    def serve(raw: socket.socket) -> None:
        with server_context(parties(SERVER)).wrap_socket(raw, server_side=True) as tls:
            tls.recv(4096)
            tls.sendall(newer(Header(kind=Kind.WELCOME)))
            tls.recv(4096)

    with (
        answering(serve) as address,
        pytest.raises(WireError, match="has version 2, this side's 1: install the same"),
    ):
        serving(Adder(), parties(A), address).result()


@pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.WELCOME], ids=lambda k: k.name)
def test_a_coordinator_that_answers_a_hello_by_something_else_is_refused(
    parties: Parties, kind: Kind
) -> None:
    def serve(raw: socket.socket) -> None:
        with server_context(parties(SERVER)).wrap_socket(raw, server_side=True) as tls:
            tls.recv(4096)
            tls.sendall(Header(kind=kind).packed(0))
            tls.recv(4096)

    with (
        answering(serve) as address,
        pytest.raises(ProtocolError, match=r"answered a hello by|refused"),
    ):
        serving(Adder(), parties(A), address).result()


HELLO = {"version": "1", "about": b"", "session": bytes(8), "received": 0, "number": 0}


@pytest.mark.parametrize(
    "first",
    [
        *(Header(kind=kind).packed(0) for kind in Kind),
        Header(kind=Kind.HELLO).packed(CONTROL) + bytes(CONTROL),
        Header(kind=Kind.HELLO).packed(CONTROL + 1),
        Header(kind=Kind.DATA).packed(1 << 31) + bytes(1000),
        bytes(HEAD),
        os.urandom(1000),
        *(
            Header(kind=Kind.HELLO).packed(len(payload)) + payload
            for wrong in (
                {"session": bytes(7)}, {"session": "text"}, {"received": -1}, {"received": 1 << 200}, {"received": "x"},
                {"number": -1}, {"number": None}, {"about": 3}, {"session": b"unknown!", "received": 5},
            )
            for payload in [encode(Message("hello", **{
                key: value for key, value in {**HELLO, "version": __import__("tacit").__version__, **wrong}.items()
                if value is not None
            }))]
        ),
    ],
)  # fmt: skip
def test_first_words_that_are_wrong_are_refused_and_stop_nobody(
    honest: Star, parties: Parties, first: bytes
) -> None:
    sock = client_context(parties(A)).wrap_socket(
        socket.create_connection(honest.hub.address, timeout=5)
    )
    with sock:
        sock.sendall(first)
        came = b""
        with contextlib.suppress(ConnectionError):
            came = sock.recv(4096)
        assert came and came[5] in (Kind.REFUSE, Kind.WELCOME)
    assert still(honest, 5)


def test_who_says_nothing_is_closed_in_time(honest: Star, parties: Parties) -> None:
    start = time.monotonic()
    silent = socket.create_connection(honest.hub.address, timeout=5)
    tls = client_context(parties(A)).wrap_socket(
        socket.create_connection(honest.hub.address, timeout=5)
    )
    tls.sendall(Header(kind=Kind.HELLO).packed(100)[:40])
    with silent, tls:
        with contextlib.suppress(ConnectionError):
            assert silent.recv(1) == b""
        with contextlib.suppress(OSError):
            assert tls.recv(1) == b""
    assert 0.9 < time.monotonic() - start < 2.5
    assert until(
        lambda: sum("did not say who it is within 1 s" in note for note in honest.notes) == 2
    )


@pytest.mark.parametrize("seed", range(2))
def test_any_bytes_after_the_welcome_stop_nobody(honest: Star, parties: Parties, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(12):
        with ByHand(parties(A), honest.hub.address) as one:
            if not until(lambda: honest.hub._links[A].pipe is not None, 1.0):
                continue
            one.welcomed()
            frames = [
                Header(
                    kind=draw.choice(list(Kind)), session=draw.choice([one.session, bytes(8)]),
                    sequence=draw.choice([0, 1, 2, 1 << 63]), seen=draw.choice([0, 1, 1 << 63]),
                    ticket=draw.choice([0, 1, 1 << 63]), number=draw.choice([0, 1 << 40]),
                ).packed(size) + draw.randbytes(size)
                for size in (draw.choice([0, 1, 100]) for _ in range(4))
            ]  # fmt: skip
            raw = b"".join(frames) if draw.random() < 0.7 else draw.randbytes(500)
            with contextlib.suppress(OSError):
                one.sock.sendall(raw)
                one.sock.settimeout(0.05)
                one.sock.recv(4096)
        assert until(lambda: honest.hub._links[A].pipe is None)
        assert still(honest, draw.randrange(1 << 30))


# --- connections that break

BREAKS = Limits(heartbeat=0.1, patience=0.4, handshake=1.0)
TURNS = (1, 2, 3, 4)


def conversation(
    parties: Parties,
    *harms: Harm,
    later: Harm = PASS,
    size: int = 20_000,
    limits: Limits = BREAKS,
) -> tuple[list[dict[str, int]], float]:
    """A run of three members, of whom one is behind the proxy; it must be exact."""
    start, total = time.monotonic(), 0
    with (
        TcpHub(parties(SERVER), owners(3), (HOST, 0), limits=limits) as hub,
        Proxy(hub.address, *harms, later=later) as proxy,
    ):
        members = {role: Adder() for role in owners(3)}
        running = [
            serving(members[role], parties(role), address, limits=limits)
            for role, address in ((A, proxy.address), (B, hub.address), (C, hub.address))
        ]
        hub.wait(deadline=8.0)
        for number, amount in enumerate(TURNS):
            total += amount
            much = size if number % 2 else 10
            assert wave(hub, amount, much, deadline=8.0) == dict.fromkeys(owners(3), total)
        # Who has heard this needs no goodbye, which may be lost.
        finished = {role: Message("finished") for role in owners(3)}
        assert len(ask(hub, finished, deadline=8.0)) == 3
        hub.close()
        for one in running:
            assert one.result().tag == "finished"
        assert all(member.handled == list(TURNS) for member in members.values())
    return proxy.passed, time.monotonic() - start


@pytest.fixture(scope="module")
def lengths(parties: Parties) -> dict[str, int]:
    """How many bytes pass in a conversation that nothing befalls."""
    return conversation(parties)[0][0]


def places(length: int, count: int, *seed: object) -> list[int]:
    """Some bytes of a way: in the handshake, in the first frames, and all over."""
    draw = random.Random(f"{seed}")
    return sorted({0, 1, draw.randrange(2, 700), draw.randrange(700, 2500), *(
        draw.randrange(2500, length) for _ in range(count)
    )})  # fmt: skip


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("kind", ["cut", "reset", "flip", "half", "double", "fill"])
def test_a_connection_that_breaks_at_any_byte_changes_nothing(
    parties: Parties, lengths: dict[str, int], kind: str, way: str
) -> None:
    for at in places(lengths[way], 3, kind, way):
        passed, seconds = conversation(parties, Harm(kind, at, way, count=1 + at % 37))
        assert len(passed) >= 1 and seconds < 6.0, at


@pytest.mark.slow
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("kind", ["cut", "reset", "flip", "half", "double", "fill", "swallow"])
def test_a_connection_that_breaks_at_many_bytes_changes_nothing(
    parties: Parties, lengths: dict[str, int], kind: str, way: str
) -> None:
    for at in places(lengths[way], 60, kind, way):
        conversation(parties, Harm(kind, at, way, count=1 + at % 37))


@pytest.mark.parametrize("way", ["up", "down", "both"])
def test_a_connection_that_falls_silent_is_given_up_and_made_again(
    parties: Parties, lengths: dict[str, int], way: str
) -> None:
    length = lengths["up"]
    for at in (random.Random(way).randrange(2500), random.Random(way).randrange(3000, length)):
        passed, _ = conversation(parties, Harm("swallow", at, way))
        assert len(passed) > 1, at


def test_a_connection_that_is_late_or_drips_is_borne(parties: Parties) -> None:
    for harm in (
        Harm("delay", 0, "both", seconds=0.01),
        Harm("drip", 0, "both", count=2800),
        Harm("drip", 3000, "up", count=30, seconds=0.01),
    ):
        patient = Limits(heartbeat=0.1, patience=10.0, handshake=10.0)
        passed, _ = conversation(parties, harm, limits=patient)
        assert len(passed) == 1


def test_connections_that_break_one_after_another_change_nothing(parties: Parties) -> None:
    draw = random.Random(5)
    harms = [
        Harm(
            draw.choice(["cut", "reset", "flip", "fill"]),
            draw.randrange(60_000),
            draw.choice(["up", "down"]),
        )
        for _ in range(8)
    ]
    patient = Limits(heartbeat=0.1, patience=4.0, handshake=1.0)
    passed, _ = conversation(parties, *harms, size=60_000, limits=patient)
    assert len(passed) > 3


def test_a_network_that_stays_broken_ends_in_typed_errors_on_both_sides(parties: Parties) -> None:
    with (
        TcpHub(parties(SERVER), [A], (HOST, 0), limits=BREAKS) as hub,
        Proxy(hub.address, Harm("cut", 20_000, "down"), later=Harm("cut", 0, "up")) as proxy,
    ):
        running = serving(Adder(), parties(A), proxy.address, limits=BREAKS)
        hub.wait(deadline=5.0)
        assert wave(hub, 1) == {A: 1}
        start = time.monotonic()
        with pytest.raises(PeerDropped, match=r"owner 0: no connection for 0\.4 s"):
            ask(hub, {A: add(2, 50_000)}, deadline=10.0)
        error = running.join()
        assert isinstance(error, PeerDropped) and "could not be reached for 0.4 s" in str(error)
        assert time.monotonic() - start < 3.0


def test_a_stranger_on_the_way_of_a_running_session_does_not_end_it(
    parties: Parties, federation: Path, authority: Signer, tmp_path: Path
) -> None:
    """For a while the coordinator's address is answered by somebody else; then it is the coordinator again."""
    shown = forge("tacit://hospitals/server/0", by=forge(ca=True, common="hospitals"))
    context = rogue(federation, tmp_path, ssl.PROTOCOL_TLS_SERVER, [shown.pem()], shown.key_pem())
    with (
        TcpHub(parties(SERVER), [A], (HOST, 0), limits=QUICK) as hub,
        answering(lambda sock: context.wrap_socket(sock, server_side=True).recv(1)) as stranger,
        Proxy(hub.address) as proxy,
    ):
        member = Adder()
        running = serving(member, parties(A), proxy.address)
        hub.wait(deadline=5.0)
        assert wave(hub, 1) == {A: 1}
        proxy.target = stranger
        proxy.cut_all()
        assert until(lambda: len(proxy.passed) > 2)
        proxy.target = hub.address
        assert wave(hub, 2, deadline=5.0) == {A: 3} and member.handled == [1, 2]
        hub.close()
        assert running.join() is None


# --- floods


def client_hello() -> bytes:
    """What TLS says first."""
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


def flooded_hub(server: Credentials, told: socket.socket) -> Callable[[tuple[str, int]], None]:
    def run(address: tuple[str, int]) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        with TcpHub(server, owners(3), address, limits=Limits(handshake=1.0)) as hub:
            hub.wait(deadline=10.0)
            total = 1
            assert wave(hub, 1, 2000) == dict.fromkeys(owners(3), total)
            before, size = descriptors(), memory()
            told.sendall(b"r")  # ready
            told.setblocking(False)
            count, most, slowest, over = 1, 0, 0.0, False
            while not over:
                count += 1
                total += count
                start = time.monotonic()
                assert wave(hub, count, 2000, deadline=10.0) == dict.fromkeys(owners(3), total)
                slowest = max(slowest, time.monotonic() - start)
                most = max(most, descriptors())
                with contextlib.suppress(BlockingIOError):
                    over = told.recv(1) == b"s"  # stop
            assert count > 5 and slowest < 5.0
            assert before + 50 < most < 1000  # the flood was there
            assert until(lambda: descriptors() == before), (descriptors(), before)
            assert memory("VmHWM") - size < 200 << 20

    return run


def test_a_flood_of_strangers_stops_nobody_and_costs_little(parties: Parties) -> None:
    here, there = socket.socketpair()
    with Forked(flooded_hub(parties(SERVER), there)) as hub, listen((HOST, 0)) as free:
        there.close()
        address = free.getsockname()[:2]
        free.close()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        strangers: list[socket.socket] = []

        def connect() -> socket.socket:
            strangers.append(socket.create_connection(address, timeout=5))
            return strangers[-1]

        def say(socks: list[socket.socket], words: bytes) -> None:
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(words)

        try:
            running = [serving(Adder(), parties(role), address) for role in owners(3)]
            hub.go(address)
            here.settimeout(15)
            assert here.recv(1) == b"r"
            hello = client_hello()
            say([connect() for _ in range(1000)][::2], hello)  # and no answer to what comes back
            drips = [connect() for _ in range(200)]
            for place in range(40):
                say(drips, hello[place : place + 1])
                say(
                    [connect() for _ in range(10)], b"\x16"
                )  # the oldest give way, in the middle of it
                time.sleep(0.02)
            here.sendall(b"s")
            for sock in strangers:
                sock.close()
            assert hub.wait() == 0, hub.said()
            for one in running:
                assert one.join() is None
        finally:
            for sock in strangers:
                sock.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            here.close()


def test_descriptors_that_run_out_are_made_room_for(parties: Parties) -> None:
    """More connections than the process may have files, and all of it is pending."""
    here, there = socket.socketpair()
    server = parties(SERVER)

    def run(address: tuple[str, int]) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 40,) * 2)
        with TcpHub(server, [A], address, limits=Limits(handshake=1.0, pending=1000)) as hub:
            there.sendall(b"r")
            hub.wait(deadline=10.0)
            assert wave(hub, 1) == {A: 1}
            start, cpu = time.monotonic(), time.process_time()
            assert there.recv(1) == b"s"
            assert (time.process_time() - cpu) < 0.5 * (
                time.monotonic() - start
            ) + 0.3  # no spinning
            assert wave(hub, 2) == {A: 3}

    with Forked(run) as hub, listen((HOST, 0)) as free:
        there.close()
        address = free.getsockname()[:2]
        free.close()
        hub.go(address)
        here.settimeout(15)
        assert here.recv(1) == b"r"
        strangers = [socket.create_connection(address, timeout=5) for _ in range(200)]
        running = serving(Adder(), parties(A), address, first=10.0)
        time.sleep(0.5)
        more = [socket.create_connection(address, timeout=5) for _ in range(100)]
        time.sleep(0.5)
        here.sendall(b"s")
        code = hub.wait()
        for sock in (*strangers, *more, here):
            sock.close()
        assert code == 0, hub.said()
        assert running.join() is None
