"""What benchmarks measure tacit beside: each peer in an environment of its own, which ``make peers`` makes, and a process.

A peer's script lies in ``benchmarks/peers``. It says who it is in a first line, and then answers each request, a JSON object
a line, with a line.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tacit.core.errors import TacitError, UnknownName

Measured = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[3]


class Script(NamedTuple):
    """How a peer is started.

    Args:
        environment: below ``.peers``.
        file: below ``benchmarks/peers``.
        arguments: of the script.
        extra: of the process's environment, beside this one's.
    """

    environment: str
    file: str
    arguments: tuple[str, ...] = ()
    extra: Mapping[str, str] = {}

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return _ROOT / ".peers" / self.environment / "bin" / "python"

    def command(self, *more: str) -> list[str]:
        """What starts it, with further arguments."""
        script = _ROOT / "benchmarks" / "peers" / self.file
        return [str(self.python), str(script), *self.arguments, *more]


PEERS: Mapping[str, Script] = {
    "spu": Script("spu", "spu_two_party.py", ("--protocol", "semi2k")),
    "spu-threads": Script("spu", "spu_two_party.py", ("--protocol", "semi2k"), {"TACIT_PEER_THREADS": "1"}),
    "cheetah": Script("spu", "spu_two_party.py", ("--protocol", "cheetah")),
    "crypten": Script("crypten", "crypten_two_party.py"),
    "art": Script("art", "art_shadows.py", (), {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
    "art-extraction": Script("art", "art_extraction.py", (), {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
    "opacus": Script("opacus", "opacus_dp_sgd.py", (), {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
}  # fmt: skip


class Peer:
    """A peer's process.

    Args:
        name: of `PEERS`.

    Raises:
        UnknownName: no such peer.
        TacitError: it is not installed, or ended at once.
    """

    def __init__(self, name: str) -> None:
        if name not in PEERS:
            raise UnknownName("peer", name, PEERS)
        script = PEERS[name]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own scripts
                script.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, env={**os.environ, **script.extra},
            )  # fmt: skip
        except FileNotFoundError:
            raise TacitError(
                f"{name} is not installed: run make peers in tacit's source tree"
            ) from None
        banner = self._line()
        self.name = f"{banner['peer']} {banner['protocol']}"

    def _line(self) -> Measured:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise TacitError("a peer ended; run its script by itself to see why")
        found: Measured = json.loads(line)
        if "refused" in found:
            raise TacitError(f"a peer refused: {found['refused']}")
        return found

    def measure(self, request: Mapping[str, Any]) -> Measured:
        """One run.

        Raises:
            TacitError: the peer refused, or ended.
        """
        if self._process.stdin is None:
            raise TacitError("a peer that nobody can talk to")
        with suppress(BrokenPipeError):  # the line that is missing says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """End it."""
        for pipe in self._process.stdin, self._process.stdout:
            with suppress(BrokenPipeError):  # of a peer that ended before
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
