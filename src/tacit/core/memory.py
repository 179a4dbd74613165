"""Memory that a process frees and soon needs again."""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them


@cache
def keep_freed_memory(kept: int = 1 << 28) -> bool:
    """Have the process keep what it frees, up to a limit, instead of giving it back and asking for it anew.

    Two parties that exchange megabytes many times a second spend most of their time on pages of fresh memory otherwise. It
    concerns the whole process and lasts; only GNU's C library is told, others are left as they are.

    Args:
        kept: bytes at the most.

    Returns:
        Whether the C library took it.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(tune(_TRIM_THRESHOLD, kept) and tune(_MMAP_THRESHOLD, 1 << 25))
