"""What anything gives back: a `Run`, with its output, cost, views, claims and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

from tacit.core.claims import Claim
from tacit.core.cost import CostMeter
from tacit.parties.roles import Role
from tacit.parties.views import Views

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Opened(Generic[T]):
    """A result in the clear, and to whom the protocol opened it."""

    value: T = field(repr=False)
    to: tuple[Role, ...]


@dataclass(frozen=True, slots=True)
class Held(Generic[T]):
    """A result that stays shared or encrypted: each holder's part."""

    by: Mapping[Role, T] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Generic[T]):
    """The outcome of a protocol.

    Args:
        output: what came out.
        cost: per role, phase and layer.
        views: what each role saw, as far as it was recorded.
        claims: what is claimed of this run.
        settings: the settings that it ran with, as plain values.
        seeded: secrets were drawn from seeded coins: a test or a reproduction, whose claims protect nobody.
    """

    output: T
    cost: CostMeter = field(repr=False)
    views: Views = field(repr=False)
    claims: tuple[Claim, ...]
    settings: Mapping[str, object]
    seeded: bool


def plain_settings(scheme: DataclassInstance) -> dict[str, object]:
    """A scheme's settings as plain values."""
    return {k: v.value if isinstance(v, Enum) else v for k, v in asdict(scheme).items()}
