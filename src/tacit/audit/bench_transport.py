"""Links between processes beside a bare TLS socket: bytes a second, round trips, waves.

Both sides of every comparison are processes of one machine, on loopback, with the same certificates and ciphers, measured in
turns. The bare socket is Python's own, blocking, with nothing around it: it sends bytes that are there already, and counts
them. The channel encodes and decodes messages, keeps what the other side has not seen, and checks every header.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tacit.core.coins import Coins
from tacit.core.wire import Message
from tacit.parties.credentials import client_context, issue_all, load, server_context
from tacit.parties.durable import DurableMember
from tacit.parties.links.tcp import Address, TcpHub, listen, serve_member
from tacit.parties.links.tcp_pair import channel_over, run_party
from tacit.parties.pair import Channel
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.star import ask

BARE = "bare TLS socket"

FIRST, SECOND = Role("owner", 0), SERVER  # the lower role listens


def bare_send(sock: ssl.SSLSocket, payload: bytes) -> None:
    """What the bare socket does to send."""
    sock.sendall(payload)


def bare_recv(sock: ssl.SSLSocket, buffer: memoryview) -> None:
    """What the bare socket does to receive as many bytes as the buffer holds."""
    at = 0
    while at < len(buffer):
        count = sock.recv_into(buffer[at:])
        if not count:
            raise ConnectionError("the other side is gone")
        at += count


@contextmanager
def _bare(folder: Path, other: Callable[[ssl.SSLSocket], None]) -> Iterator[ssl.SSLSocket]:
    """A bare TLS socket to a process that does ``other`` with its end."""
    listening = listen(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listening.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with server_context(load(folder / "server-0")).wrap_socket(sock, server_side=True) as tls:
            other(tls)

    with _forked(serve):
        raw = socket.create_connection(listening.getsockname())
        listening.close()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client_context(load(folder / "owner-0")).wrap_socket(raw) as tls:
            yield tls


@contextmanager
def _forked(run: Callable[[], None]) -> Iterator[None]:
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(run,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _alone(run: Callable[[], None]) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        run()
    os._exit(0)


def _row(case: str, metric: str, here: float, bare: float | None, better: str) -> dict[str, Any]:
    ratio = None
    if bare is not None:
        ratio = here / bare if better == "higher" else bare / here
    return {
        "case": case, "metric": metric, "tacit": here, "peer": None if bare is None else BARE, "peer_value": bare,
        "ratio": ratio,
    }  # fmt: skip


def _far_stream(channel: Channel, frames: int, repeats: int) -> None:
    for _ in range(repeats):
        for _ in range(frames):
            channel.recv("bytes")
        channel.send("done")


def _far_echo(channel: Channel, count: int) -> None:
    for _ in range(count):
        channel.send("back", *channel.recv("there"))


def channel_rows(folder: Path, *, quick: bool, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The channel of a pair: a stream of large frames, and round trips of small ones."""
    size, frames, repeats = 16_000_000, 4, 3 if quick else 9
    trips, rounds = 300, 3 if quick else 9
    note(f"channel: {frames} frames of 16 MB, {repeats} times, beside a bare TLS socket")
    array, payload = np.zeros(size, np.uint8), bytes(size)
    addresses: dict[Role, Address] = {}

    def far(channels: Any) -> None:
        _far_stream(channels[SECOND], frames, repeats + 1)
        _far_echo(channels[SECOND], trips * rounds + trips)

    def bare_far(sock: ssl.SSLSocket) -> None:
        buffer, small = memoryview(bytearray(size)), memoryview(bytearray(1000))
        for _ in range(repeats + 1):
            for _ in range(frames):
                bare_recv(sock, buffer)
            bare_send(sock, b"d")
        for _ in range(trips * rounds + trips):
            bare_recv(sock, small)
            bare_send(sock, bytes(small))

    listening = listen(("127.0.0.1", 0))
    addresses = {FIRST: listening.getsockname()[:2], SECOND: ("127.0.0.1", 0)}
    found: dict[str, list[float]] = {"stream": [], "bare": [], "trip": [], "bare trip": []}

    def run_far() -> None:
        run_party(far, load(folder / "owner-0"), addresses, listening=listening)

    with _forked(run_far), _bare(folder, bare_far) as sock:
        listening.close()

        def near(channels: Any) -> None:
            channel, done = channels[FIRST], memoryview(bytearray(1))
            small, thousand = memoryview(bytearray(1000)), np.zeros(1000, np.uint8)

            def stream() -> float:
                start = time.perf_counter()
                for _ in range(frames):
                    channel.send("bytes", array)
                channel.recv("done")
                return time.perf_counter() - start

            def bare_stream() -> float:
                start = time.perf_counter()
                for _ in range(frames):
                    bare_send(sock, payload)
                bare_recv(sock, done)
                return time.perf_counter() - start

            stream(), bare_stream()
            for _ in range(repeats):
                found["stream"].append(stream())
                found["bare"].append(bare_stream())
            note(f"channel: {trips} exchanges of 1 kB, {rounds} times, beside a bare TLS socket")
            for number in range(rounds + 1):
                start = time.perf_counter()
                for _ in range(trips):
                    channel.send("there", thousand)
                    channel.recv("back")
                middle = time.perf_counter()
                for _ in range(trips):
                    bare_send(sock, payload[:1000])
                    bare_recv(sock, small)
                if number:
                    found["trip"].append((middle - start) / trips)
                    found["bare trip"].append((time.perf_counter() - middle) / trips)

        run_party(near, load(folder / "server-0"), addresses)
    middle = {name: statistics.median(values) for name, values in found.items()}
    total = frames * size
    return [
        _row(
            "tls channel payload=16000000", "bytes_per_s", total / middle["stream"], total / middle["bare"], "higher"
        ),
        _row("tls channel payload=1000", "round_trip_s", middle["trip"], middle["bare trip"], "lower"),
    ]  # fmt: skip


class Echo:
    """A member that sends back what it got."""

    def handle(self, request: Message) -> Message:
        """The request's payload."""
        return Message("reply", payload=request.array("payload"))

    def export(self) -> bytes:
        """Nothing."""
        return b""

    def restore(self, state: bytes) -> None:
        """Nothing to restore."""


def hub_rows(folder: Path, *, quick: bool, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """A wave of a star: 64 members are each sent 100 kB and send it back, beside bare sockets one after another."""
    count, size, repeats = 64, 100_000, 5 if quick else 15
    note(
        f"hub: waves of 100 kB to {count} members and back, {repeats} times, beside bare TLS sockets"
    )
    roles, payload = owners(count), bytes(size)
    held = load(folder / "server-0")
    doors = listen(("127.0.0.1", 0)), listen(("127.0.0.1", 0))
    places: list[Address] = [door.getsockname()[:2] for door in doors]

    def member(role: Role) -> None:
        """One process: a member, and a bare socket that does the same."""
        for door in doors:
            door.close()
        own = load(folder / f"owner-{role.index}")
        raw = socket.create_connection(places[1])
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = client_context(own).wrap_socket(raw)
        threading.Thread(target=bare_echo, args=(sock,), daemon=True).start()
        serve_member(DurableMember(Echo()), own, places[0])

    def bare_echo(sock: ssl.SSLSocket) -> None:
        buffer = memoryview(bytearray(size))
        with suppress(ConnectionError, ssl.SSLError):
            while True:
                bare_recv(sock, buffer)
                bare_send(sock, bytes(buffer))

    found: dict[str, list[float]] = {"hub": [], "bare": []}
    with ExitStack() as stack:
        for role in roles:
            stack.enter_context(_forked(partial(member, role)))
        context, sockets = server_context(held), []
        for _ in roles:
            raw, _ = doors[1].accept()
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets.append(context.wrap_socket(raw, server_side=True))
        for door in doors:
            door.close()
        with TcpHub(held, roles, places[0]) as hub:
            hub.wait()
            array, buffer = np.zeros(size, np.uint8), memoryview(bytearray(size))
            for number in range(repeats + 1):
                requests = {role: Message("ask", payload=array) for role in roles}
                start = time.perf_counter()
                ask(hub, requests)
                middle = time.perf_counter()
                for sock in sockets:
                    bare_send(sock, payload)
                    bare_recv(sock, buffer)
                if number:
                    found["hub"].append(middle - start)
                    found["bare"].append(time.perf_counter() - middle)
        for sock in sockets:
            sock.close()
    middle_of = {name: statistics.median(values) for name, values in found.items()}
    return [
        _row("tls hub n=64 payload=100000", "wave_s", middle_of["hub"], middle_of["bare"], "lower")
    ]


def plain_rows(*, quick: bool, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The same channel over a socket pair without TLS, between two processes of this machine."""
    size, frames, repeats, trips = 16_000_000, 4, 3 if quick else 9, 300
    note("channel over a socket pair")
    here, there = socket.socketpair()

    def far() -> None:
        here.close()
        with channel_over(there, FIRST, SECOND) as channel:
            _far_stream(channel, frames, repeats + 1)
            _far_echo(channel, trips)
            channel.recv("end")

    array, thousand, seconds = np.zeros(size, np.uint8), np.zeros(1000, np.uint8), []
    with _forked(far):
        there.close()
        with channel_over(here, SECOND, FIRST) as channel:
            for _ in range(repeats + 1):
                start = time.perf_counter()
                for _ in range(frames):
                    channel.send("bytes", array)
                channel.recv("done")
                seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(trips):
                channel.send("there", thousand)
                channel.recv("back")
            trip = (time.perf_counter() - start) / trips
            channel.send("end")
    rate = frames * size / statistics.median(seconds[1:])
    return [
        _row("socketpair channel payload=16000000", "bytes_per_s", rate, None, "higher"),
        _row("socketpair channel payload=1000", "round_trip_s", trip, None, "lower"),
    ]


def between_processes(*, quick: bool, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """All rows of links between processes."""
    with tempfile.TemporaryDirectory(prefix="tacit-") as made:
        folder = Path(made)
        issue_all(folder, "bench", (SERVER, *owners(64)), coins=Coins())
        return [
            *channel_rows(folder, quick=quick, note=note),
            *hub_rows(folder, quick=quick, note=note),
            *plain_rows(quick=quick, note=note),
        ]
