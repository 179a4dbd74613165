"""What the coordinator and the owners must agree on; its digest is signed with every message."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tacit.audit.train import Setting, task_of
from tacit.catalogue import SCHEMES
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, UnknownName
from tacit.core.wire import Message, encode
from tacit.nn.data import load as load_data
from tacit.nn.federated import Task
from tacit.parties.credentials import Credentials, registry_fingerprint
from tacit.parties.links.flower import Party
from tacit.parties.seats import Seat

ROUNDS = {
    "federated-averaging": "rounds",
    "selective-sgd": "epochs",
    "secure-aggregation": "rounds",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: a scheme of the catalogue on the digits data."""

    scheme: str
    protection: Any
    setting: Setting
    run: str
    seed: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Plan:
        """The plan in a run's configuration."""
        scheme = str(config["scheme"])
        if scheme not in ROUNDS:
            raise UnknownName("scheme", scheme, ROUNDS)
        protection = replace(SCHEMES[scheme], **{ROUNDS[scheme]: int(config["rounds"])})
        setting = Setting(owners=int(config["owners"]))
        return cls(scheme, protection, setting, str(config["run"]), int(config["seed"]))

    def task(self) -> Task:
        """Everybody's records: the digits are public, and each owner keeps to its own."""
        return task_of(self.setting, load_data(self.setting.dataset))

    def coins(self) -> Coins:
        """The system's coins, or a test's."""
        return Coins() if self.seed < 0 else Coins.from_seed(str(self.seed).encode())

    def seat(self, credentials: Credentials | None = None) -> Seat:
        """This process's part."""
        if credentials is None:
            return Seat(coins=self.coins())
        identities = {credentials.role: credentials.key}
        return Seat(coins=self.coins(), identities=identities, registry=credentials.registry)

    def party(self, credentials: Credentials) -> Party:
        """Who this process is in this run."""
        said = Message(
            "flower", federation=credentials.federation, settings=repr(self),
            registry=registry_fingerprint(credentials.registry),
        )  # fmt: skip
        return Party(
            role=credentials.role,
            key=credentials.key,
            registry=credentials.registry,
            digest=hashlib.sha256(encode(said)).digest(),
        )


def folder(config: Mapping[str, Any], name: str, what: str) -> Path:
    """A folder that a configuration names.

    Raises:
        ConfigError: it names none.
    """
    if not config.get(name):
        raise ConfigError(f"{name} must name {what}, as a whole path")
    return Path(str(config[name]))
