"""The parties of a pair protocol as processes of this machine, over TLS, for measurements: each a fork of this process."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tacit.core.coins import Coins
from tacit.core.errors import PeerDropped, TacitError
from tacit.core.wire import Array, Message, decode, encode
from tacit.parties.credentials import folder_name, issue_all, load
from tacit.parties.links.link import Shape
from tacit.parties.links.tcp import listen
from tacit.parties.links.tcp_pair import PartyRun, run_party
from tacit.parties.pair import Party
from tacit.parties.roles import Role

Found = tuple[dict[str, Any], list[Array]]
"""What a party's process gives back: plain values, and arrays."""


def run_processes(
    parties: Mapping[Role, Party[Any]],
    gives: Callable[[Role, PartyRun[Any]], Found],
    *,
    talks: Callable[[Role, Role], bool],
    shape: Shape | None = None,
    deadline: float = 3600.0,
) -> dict[Role, Found]:
    """Run every party in a process of its own, to its end.

    Args:
        parties: their functions.
        gives: what is taken back of a party's run; called in its process.
        talks: which of two talk to each other.
        shape: a network to imitate.
        deadline: seconds that a party waits for a message.

    Raises:
        TacitError: a party failed; says which, and how.
    """
    torch.set_num_threads(1)  # a fork takes no threads along
    with tempfile.TemporaryDirectory(prefix="tacit-") as made:
        folder = Path(made)
        issue_all(folder, "here", tuple(parties), coins=Coins())
        doors = {role: listen(("127.0.0.1", 0)) for role in parties}
        places = {role: door.getsockname()[:2] for role, door in doors.items()}
        context = multiprocessing.get_context("fork")
        running = []
        for role in parties:
            ours, theirs = context.Pipe(duplex=False)
            near = {peer: at for peer, at in places.items() if peer == role or talks(role, peer)}

            def live(role: Role = role, to: Connection = theirs, near: Any = near) -> None:
                for other, door in doors.items():
                    if other != role:
                        door.close()
                try:
                    done = run_party(
                        parties[role], load(folder / folder_name(role)), near,
                        listening=doors[role], deadline=deadline, shape=shape,
                    )  # fmt: skip
                    values, arrays = gives(role, done)
                    message = Message("done", values=json.dumps(values), arrays=arrays)
                except TacitError as error:
                    message = Message(
                        "failed", values=json.dumps(f"{type(error).__name__}: {error}")
                    )
                to.send_bytes(encode(message))
                os._exit(0)

            process = context.Process(target=live, daemon=True)
            process.start()
            theirs.close()
            running.append((role, process, ours))
        for door in doors.values():
            door.close()
        found: dict[Role, Found] = {}
        failed: dict[Role, str] = {}
        for role, _, pipe in running:
            try:
                message = decode(pipe.recv_bytes())
            except EOFError:
                failed[role] = "its process ended"
                continue
            said = json.loads(message.text("values"))
            if message.tag == "failed":
                failed[role] = said
            else:
                found[role] = said, [np.array(array) for array in message.arrays("arrays")]
        for _, process, _ in running:
            process.join()
    if failed:
        first = min(failed, key=lambda role: ("PeerDropped" in failed[role], role))
        raise PeerDropped(f"{first}: {failed[first]}")
    return found
