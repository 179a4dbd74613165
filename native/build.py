"""How the C kernels are built: `tacit.crypto._native`, a cffi extension that setup.py leaves out where it does not compile.

No flag names a processor: what needs more than its architecture's base is compiled by function and chosen at run time.
"""

from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
SOURCES = (
    "masks.c",
    "quantisation.c",
    "gaussian.c",
    "packing.c",
    "shamir.c",
    "bits.c",
    "ot.c",
    "gates.c",
    "ring.c",
    "garbling.c",
)

DECLARED = [
    line
    for line in (HERE / "kernels.h").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]

ffibuilder = cffi.FFI()
ffibuilder.cdef("\n".join(DECLARED))
ffibuilder.set_source(
    "tacit.crypto._native",
    '#include "kernels.h"',
    sources=[f"native/{name}" for name in SOURCES],
    depends=[
        "native/kernels.h",
        "native/masks_tile.h",
        "native/bits_square.h",
        "native/ring_tile.h",
        "native/aes.h",
        "native/garbling_gates.h",
    ],
    include_dirs=["native"],
    # Contracted operations would round once where numpy rounds twice. That nothing waits for floating-point traps changes no
    # value, and loops with comparisons are vectorised.
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-trapping-math"],
    optional=True,
)
