"""Attacks paired with protections, and what came of it; called, it is `tacit.audit.membership_audit.audit`.

``tacit.audit(model, members=..., nonmembers=...)`` and this package share a name: the package can be called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _Audit(ModuleType):
    @property
    def __call__(self) -> Callable[..., dict[str, Any]]:
        """`tacit.audit.membership_audit.audit`, loaded when it is first called."""
        from tacit.audit.membership_audit import audit  # noqa: PLC0415

        return audit

    @property
    def __signature__(self) -> Signature:
        return signature(self.__call__)


sys.modules[__name__].__class__ = _Audit
