"""CrypTen between two parties, each a process of its own, timed case by case.

Run in the environment that `make peers` makes:

    .peers/crypten/bin/python benchmarks/peers/crypten_two_party.py

and ask it line by line as `two_party.py` beside it says. What runs is CrypTen's own tensors and
all below them: `crypten.init` on torch.distributed's gloo over loopback, its default provider
`TrustedFirstParty`, its default 16 fractional bits in a ring of 64, one torch thread a party (gloo has a
network thread besides). The step of gradient descent is written out in tensors rather than left to
CrypTen's autograd, which would compare twice and take a gradient by the inputs as well.

Timed: the tensor operations alone, from shares to shares. Left out: encoding, sharing, opening.
Inside is the trusted first party, who draws all triples in the clear while the case runs: CrypTen
has no generator of triples that is secure between two parties, and no offline phase.

`bytes_sent` and `rounds` come from CrypTen's own counters, which the run for warmth switches on; later
runs of a case send the same. CrypTen counts what a party sends and what it receives; in these cases
parties only exchange tensors of one size, so half of that is sent. A round is one exchange; gloo's
headers, and how it splits an exchange into messages, are not counted.

Two things are worked around. CrypTen 0.4.1 looks for a module that torch has moved, for its ONNX
import, which is not used here: an empty one takes its place. And its decoder puts some negative
values one too low: the opened ring elements are divided by the scale here instead.
"""

from __future__ import annotations

import os
import socket
import sys
import types
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import two_party

_moved = types.ModuleType("torch.onnx._internal.registration")
_moved.registry = None
sys.modules[_moved.__name__] = _moved

import crypten  # noqa: E402 - needs the module above


class CrypTenParty:
    """One party's place in CrypTen's process group."""

    def __init__(self, rank: int, port: int) -> None:
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        os.environ |= {
            "DISTRIBUTED_BACKEND": "gloo",
            "RENDEZVOUS": f"tcp://127.0.0.1:{port}",
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "GLOO_SOCKET_IFNAME": loopback(),
        }
        crypten.init()
        self._rank = rank
        self._inputs: dict[two_party.Case, list[crypten.CrypTensor]] = {}
        self._outputs: dict[two_party.Case, list[crypten.CrypTensor]] = {}
        self._traffic: dict[two_party.Case, two_party.Traffic] = {}

    def load(self, case: two_party.Case, arrays: list[np.ndarray]) -> None:
        """Let party 0 share the inputs, and run once with CrypTen's counters on."""
        self._inputs[case] = [
            crypten.cryptensor(torch.from_numpy(array), src=0) for array in arrays
        ]
        self.barrier()
        crypten.reset_communication_stats()
        with crypten.cfg.temp_override({"communicator.verbose": True}):
            self.run(case)
        counts = crypten.communicator.get().get_communication_stats()
        self._traffic[case] = two_party.Traffic(int(counts["bytes"]) // 2, counts["rounds"])

    def barrier(self) -> None:
        """Wait for the other party."""
        crypten.communicator.get().barrier()

    def run(self, case: two_party.Case) -> None:
        """Compute on the shares that this party holds."""
        self._outputs[case] = compute(case, self._inputs[case])

    def traffic(self, case: two_party.Case) -> two_party.Traffic:
        """What CrypTen counted in the run for warmth."""
        return self._traffic[case]

    def reveal(self, case: two_party.Case) -> list[np.ndarray]:
        """Open the ring elements to both, and decode them at party 0."""
        outputs = self._outputs[case]
        opened = [output.reveal().numpy() / output.encoder.scale for output in outputs]
        return opened if self._rank == 0 else []


def compute(case: two_party.Case, inputs: list[Any]) -> list[Any]:
    """The results of a case, in CrypTen's tensors."""
    if case.name == "matmul":
        return [inputs[0].matmul(inputs[1])]
    if case.name == "relu":
        return [inputs[0].relu()]
    if case.name == "mlp":
        x, w1, w2, w3 = inputs
        return [x.matmul(w1).relu().matmul(w2).relu().matmul(w3)]
    x, target, w1, w2, w3 = inputs
    z1 = x.matmul(w1)
    on1 = z1.ge(0)
    a1 = z1 * on1
    z2 = a1.matmul(w2)
    on2 = z2.ge(0)
    a2 = z2 * on2
    predicted = a2.matmul(w3)
    if case.softmax:
        positive = predicted.relu()
        whole = positive.sum(1, keepdim=True) + two_party.LAYERS[-1] * two_party.UNIT
        with crypten.cfg.temp_override({"functions.reciprocal_all_pos": True}):
            predicted = positive * whole.reciprocal()
    e3 = (predicted - target) / case.shape[0]
    e2 = e3.matmul(w3.t()) * on2
    e1 = e2.matmul(w2.t()) * on1
    rate = two_party.RATE
    return [
        w1 - x.t().matmul(e1) * rate,
        w2 - a1.t().matmul(e2) * rate,
        w3 - a2.t().matmul(e3) * rate,
    ]


def loopback() -> str:
    """The name of the loopback interface."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def main() -> None:
    """Start both parties and answer requests."""
    chosen = two_party.settings("Times CrypTen between two parties.").parse_args()
    banner = {"peer": f"crypten {version('crypten')}", "protocol": "TrustedFirstParty"}
    two_party.serve(banner, CrypTenParty, two_party.choose_ports(chosen.port)[0])


if __name__ == "__main__":
    main()
