"""What every machine-readable output begins with: what ran, on what, with which settings."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tacit
from tacit.crypto.kernels import kernel_names


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "kernels": kernel_names(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def commit() -> str | None:
    """The commit of the checkout that the package runs from; None for an installed package."""
    root = Path(tacit.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def header(
    command: str, settings: Mapping[str, object], seconds: float, *, seeded: bool
) -> dict[str, Any]:
    """What every machine-readable output begins with."""
    return {
        "command": command,
        "version": tacit.__version__,
        "commit": commit(),
        "machine": machine(),
        "settings": dict(settings),
        "seconds": round(seconds, 3),
        "seeded": seeded,
    }


def plain(value: Any) -> Any:
    """Settings as plain values: dataclasses become dicts, enums their values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def sources_digest(users: Sequence[object] = ()) -> str:
    """A digest of the package's code and of the files that the user's own protections and attacks come from."""
    root = Path(tacit.__file__).parent
    paths = set(root.rglob("*.py"))
    for item in users:
        file = getattr(sys.modules.get(type(item).__module__), "__file__", None)
        if file is not None:
            paths.add(Path(file))
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
