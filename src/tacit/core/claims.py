"""What is claimed of a run, and on what ground.

An attack that failed is MEASURED and is never printed as a guarantee. A claim with an epsilon names whose change it
covers (the neighbouring relation and the unit), the accountant, and what was composed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from tacit.core.errors import ConfigError


class Basis(Enum):
    """The ground that a claim stands on."""

    PROVED = "PROVED"
    ACCOUNTED = "ACCOUNTED"
    MEASURED = "MEASURED"
    ASSUMED = "ASSUMED"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyLoss:
    """An (epsilon, delta) with all that gives it a meaning.

    Args:
        epsilon: the bound; infinite where nothing is bounded.
        delta: the probability outside the bound.
        neighbouring: which two inputs are compared, for instance "replace one participant's data".
        unit: what is protected: record, participant, epoch.
        accountant: how the total was computed.
        composed: what was composed, for instance "600 releases".
    """

    epsilon: float
    delta: float
    neighbouring: str
    unit: str
    accountant: str
    composed: str

    def __post_init__(self) -> None:
        if math.isnan(self.epsilon) or self.epsilon < 0 or not 0 <= self.delta < 1:
            raise ConfigError(
                f"epsilon >= 0 and 0 <= delta < 1 expected, got {self.epsilon}, {self.delta}"
            )
        for name in ("neighbouring", "unit", "accountant", "composed"):
            if not getattr(self, name):
                raise ConfigError(f"a claim with an epsilon must name its {name}")

    def __str__(self) -> str:
        return (
            f"epsilon = {self.epsilon:.4g}, delta = {self.delta:.2g} per {self.unit} "
            f"({self.neighbouring}; {self.composed}; {self.accountant})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement about a run.

    Args:
        statement: the sentence that is claimed.
        basis: its ground.
        source: paper and section, or the measurement.
        value: the figure, where there is one.
        interval: its 95 % interval, where it is MEASURED.
        assumes: what must hold for it.
        hides: the kinds of roles in whose views no training record stands in the clear, if the claim is about that;
            tests plant canaries and look for them there.
    """

    statement: str
    basis: Basis
    source: str
    value: float | PrivacyLoss | None = None
    interval: tuple[float, float] | None = None
    assumes: tuple[str, ...] = ()
    hides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.statement or not self.source:
            raise ConfigError("a claim needs a statement and a source")
        figure = isinstance(self.value, (int, float))
        if self.basis is Basis.MEASURED and figure and self.interval is None:
            raise ConfigError("a measured figure needs its interval")

    def described(self) -> dict[str, object]:
        """The claim as plain values for a report."""
        return {
            "statement": self.statement,
            "basis": self.basis.value,
            "source": self.source,
            "value": str(self.value) if isinstance(self.value, PrivacyLoss) else self.value,
            "interval": list(self.interval) if self.interval else None,
            "assumes": list(self.assumes),
        }
