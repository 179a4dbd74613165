"""What a process brings to a run of a scheme: its coins, whom it can sign as, and whose signatures it can check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tacit.core.coins import Coins
from tacit.crypto.keys import SigningKey, signing_key
from tacit.parties.roles import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A process's part in a run.

    Args:
        coins: for all secrets of the parties in this process.
        identities: the signing keys of the parties in this process.
        registry: everybody's public signing keys, by role; they must be authentic. Certificates bring them; empty where none
            were given, and a scheme that needs some draws them if all parties are in this process.
    """

    coins: Coins
    identities: Mapping[Role, SigningKey] = field(default_factory=dict, repr=False)
    registry: Mapping[Role, bytes] = field(default_factory=dict, repr=False)

    def with_identities(self, roles: Sequence[Role]) -> Seat:
        """The same with signing keys for all of ``roles``, if it has no registry; the same coins give the same keys."""
        if self.registry:
            return self
        coins = self.coins.child(
            "identities"
        )  # not drawn from: what else they give must not depend on it
        drawn = {role: signing_key(coins.child(str(role))) for role in roles}
        registry = {role: key.public for role, key in drawn.items()}
        return Seat(coins=self.coins, identities=drawn, registry=registry)
