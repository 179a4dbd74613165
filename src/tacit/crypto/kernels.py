"""The optional C kernels: where they were built they are used, and give bit for bit what the numpy code beside them gives.

``TACIT_NATIVE=0`` in the environment turns them off.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any, NamedTuple


class Native(NamedTuple):
    """The loaded extension.

    Args:
        lib: its functions, as native/kernels.h declares them; they do not hold Python's global lock.
        ffi: cffi's interface to it.
    """

    lib: Any
    ffi: Any


@cache
def _load() -> Native | None:
    try:
        module: Any = importlib.import_module("tacit.crypto._native")
    except ImportError:
        return None
    return Native(module.lib, module.ffi)


def _off() -> bool:
    return os.environ.get("TACIT_NATIVE") == "0"


def native() -> Native | None:
    """The C kernels, or None where they were not built or are turned off; the environment is read at each call."""
    return None if _off() else _load()


def kernel_names() -> str:
    """What is in use, in words: ``C kernels, VAES-256``, ``numpy only (the C kernels were not built)`` ..."""
    if _off():
        return "numpy only (TACIT_NATIVE=0)"
    found = _load()
    if found is None:
        return "numpy only (the C kernels were not built)"
    names = ("masks by numpy: no AES instructions", "AES-NI", "VAES-256", "VAES-512")
    return f"C kernels, {names[found.lib.tacit_masks_level()]}"
