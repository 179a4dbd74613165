"""SPU's two-party protocols, each party a process of its own, timed case by case.

Run in the environment that `make peers` makes:

    .peers/spu/bin/python benchmarks/peers/spu_two_party.py --protocol semi2k

and ask it line by line as `two_party.py` beside it says. What runs is SPU's own code and all of it:
the case, written for JAX, is compiled by SPU's front end, and each party has `libspu.link.create_brpc`
for its link and an `spu.api.Runtime` that runs the executable on its shares. The ring is FM64, values
have 18 fractional bits (SPU's default for that ring), and the rest is SPU's defaults but for threads:
`max_concurrency` is 1, and OMP_THREAD_LIMIT holds Eigen to one thread, which SPU would give several
whatever OMP_NUM_THREADS says. Where two parties share two cores those several, waiting for each other
in a loop, made a product of matrices five times slower. brpc has network threads besides. With
TACIT_PEER_THREADS in the environment the limit is left away, and SPU runs as it comes.

Timed: `Runtime.run` alone, from shares to shares. Left out: compiling, encoding, sharing, opening.

* SEMI2K: SPU's default source of triples is a trusted first party: party 0 knows the seeds of
  both, and deals. Its makers offer it for tests, not as secure between two parties. SPU has no
  offline phase that could be told apart, so this dealer's work is in the figures.
* CHEETAH: secure between two parties that follow the protocol. Triples come from homomorphic
  encryption and oblivious transfer while the case runs, so these are in the figures too. Left out
  is what happens once: keys and first transfers, set up in the run for warmth. When its stock of
  transfers runs out SPU makes many at once: the run in which that falls takes longer and sends more
  (of 100,000 ReLUs, most runs).

`bytes_sent` and `rounds` are what SPU's profile of the same run says of the link: payload bytes that
a party sent, and party 0's send actions. Those are messages: parties that send at the same time, once
each, count as one round, and a party that sends twice before it waits counts two.
"""

from __future__ import annotations

import os
import re
import tempfile
from importlib.metadata import version
from typing import TextIO

import jax.numpy as jnp
import numpy as np
import two_party
from spu import api, libspu
from spu.utils import frontend

PROTOCOLS = {"semi2k": libspu.ProtocolKind.SEMI2K, "cheetah": libspu.ProtocolKind.CHEETAH}
FRACTION_BITS = 18
LINK_DETAILS = re.compile(r"Link details: total send bytes (\d+), .* send actions (\d+)")


class SpuParty:
    """One party's link and runtime."""

    def __init__(self, rank: int, protocol: str, ports: tuple[int, int]) -> None:
        self._rank = rank
        self._log = _read_log()
        desc = libspu.link.Desc()
        desc.recv_timeout_ms = 600_000
        for place, port in enumerate(ports):
            desc.add_party(f"party{place}", f"127.0.0.1:{port}")
        self._link = libspu.link.create_brpc(desc, rank)
        config = libspu.RuntimeConfig(PROTOCOLS[protocol], libspu.FieldType.FM64, FRACTION_BITS)
        config.max_concurrency = 1
        config.enable_pphlo_profile = True
        self._io = api.Io(2, config)
        self._runtime = api.Runtime(self._link, config)
        self._executables: dict[two_party.Case, libspu.Executable] = {}

    def load(self, case: two_party.Case, arrays: list[np.ndarray]) -> None:
        """Compile the case, take over this party's shares of the inputs, and run once."""
        label = f"{case.name}{case.softmax}-{'x'.join(map(str, case.shape))}"
        names = [f"{label}-in{i}" for i in range(len(arrays))]
        executable, _ = frontend.compile(
            frontend.Kind.JAX,
            lambda *inputs: two_party.compute(jnp, case, inputs),
            arrays,
            {},
            names,
            [libspu.Visibility.VIS_SECRET] * len(arrays),
            lambda outputs: [f"{label}-out{i}" for i in range(len(outputs))],
        )
        for name, array in zip(names, arrays, strict=True):
            # Sharing is random: one party does it for both.
            mine, theirs = self._io.make_shares(array, libspu.Visibility.VIS_SECRET)
            if self._rank == 0:
                self._send(theirs)
            else:
                mine = self._receive(theirs.meta)
            self._runtime.set_var(name, mine)
        self._executables[case] = executable
        self.barrier()
        self.run(case)
        self.traffic(case)

    def barrier(self) -> None:
        """Wait for the other party."""
        self._link.barrier()

    def run(self, case: two_party.Case) -> None:
        """Run the executable on the shares that the runtime holds."""
        self._runtime.run(self._executables[case])

    def traffic(self, _case: two_party.Case) -> two_party.Traffic:
        """Read the link's counts for the last run from SPU's profile."""
        (found,) = LINK_DETAILS.findall(self._log.read())
        return two_party.Traffic(int(found[0]), int(found[1]))

    def reveal(self, case: two_party.Case) -> list[np.ndarray]:
        """Send the result's shares to party 0, which puts them together."""
        opened = []
        for name in self._executables[case].output_names:
            mine = self._runtime.get_var(name)
            if self._rank == 0:
                opened.append(self._io.reconstruct([mine, self._receive(mine.meta)]))
            else:
                self._send(mine)
        return opened

    def _send(self, share: libspu.Share) -> None:
        self._link.send(1 - self._rank, str(len(share.share_chunks)))
        for chunk in share.share_chunks:
            self._link.send(1 - self._rank, chunk)

    def _receive(self, meta: bytes) -> libspu.Share:
        share = libspu.Share()
        share.meta = meta
        count = int(self._link.recv(1 - self._rank))
        share.share_chunks = [self._link.recv(1 - self._rank) for _ in range(count)]
        return share


def _read_log() -> TextIO:
    """Send SPU's log, which holds its profile, to a file that only this process reads."""
    options = libspu.logging.LogOptions()
    options.enable_console_logger = False
    handle, options.system_log_path = tempfile.mkstemp()
    libspu.logging.setup_logging(options)
    os.unlink(options.system_log_path)  # open here and there: gone when this process is
    return os.fdopen(handle)


def main() -> None:
    """Start both parties and answer requests."""
    parser = two_party.settings("Times SPU's two-party protocols.")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="semi2k")
    chosen = parser.parse_args()
    threads = ", threads as it comes" if "TACIT_PEER_THREADS" in os.environ else ""
    protocol = chosen.protocol.upper() + threads
    banner = {"peer": f"spu {version('spu')}", "protocol": protocol}
    two_party.serve(banner, SpuParty, chosen.protocol, two_party.choose_ports(chosen.port))


if __name__ == "__main__":
    main()
