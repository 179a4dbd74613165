"""Measure what a neural network leaks; train, share and serve networks without leaking.

>>> import tacit
>>> report = tacit.compare("digits", quick=True, protections=["federated-sgd"],
...                        attacks=["gradient-leakage@server"])
>>> report["protections"][0]["cells"]["gradient-leakage@server"]["verdict"]
'leaks'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Coins", "__version__", "audit", "compare", "train"]

if TYPE_CHECKING:
    from tacit.audit.membership_audit import audit
    from tacit.catalogue import compare, train
    from tacit.core.coins import Coins


def __getattr__(name: str) -> object:
    """Load public names on first use, so that ``import tacit`` and ``tacit --help`` stay quick."""
    if name in ("compare", "train"):
        from tacit import catalogue  # noqa: PLC0415

        return getattr(catalogue, name)
    if name == "audit":  # the package, which can be called
        return importlib.import_module("tacit.audit")
    if name == "Coins":
        from tacit.core.coins import Coins  # noqa: PLC0415

        return Coins
    raise AttributeError(f"module 'tacit' has no attribute {name!r}")
