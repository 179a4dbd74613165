"""A model that answers whoever holds a key, as a machine-learning service does: no cryptography, policies only.

Who holds what: the service holds the model, in the clear, and sees every record it is asked about. A client holds a key and
sees answers. The service keeps the model from clients as far as its access policy goes; nothing keeps a client's records
from the service.

An answer is made in this order:

1. the key is looked up: kept as its SHA-256, compared with all in constant time;
2. the records are checked: number, shape, finite, within the declared range. What is refused until here is free;
3. they are charged to the key's budget and rate, and the charge is committed;
4. the model is asked. Whatever happens from here on, the charge stands: an answer that is lost may have been read;
5. the policy takes from the answer what the key may not see (`tacit.nn.policies`).

**Leaks**, by policy. Access policies are no guarantee; these attacks are in this package, to be tried against an endpoint:

==================  ====================================================================================================
a key may           then who holds it can
==================  ====================================================================================================
download            do everything: the model is its own
see all scores      solve for a linear model's weights exactly in as many records as it has inputs, and one more; train a
                    copy of a network; invert classes; tell members of the training set by confidence
see rounded scores  the same with some ten times the records for two or three digits, and less exactly
see the top few     the same for models of few classes; for others by the classes that it sees
see labels only     copy a linear model by searching its boundary, a network by retraining; tell members where the model is
                    right on members more often, or more robustly
spend a budget      do so much of it as the budget pays for: what each attack needs is what the audit prints
==================  ====================================================================================================

Without any key, one who reaches the endpoint learns the shape of a record and the number of classes from its OpenAPI
document. How long an answer takes is not hidden. Differential privacy in training is what bounds inference about its
records, whatever the policy.

Source:
    [15] F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart. Stealing Machine Learning Models via Prediction APIs.
    USENIX Security 2016 (the setting: a service that sells predictions and keeps the model).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tacit.core.coins import Coins
from tacit.core.errors import (
    ConfigError,
    EndpointError,
    EndpointRefused,
    UnknownName,
)
from tacit.core.files import write_file
from tacit.nn.policies import EVERYTHING, Policy
from tacit.nn.spec import save_model

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_POLICY = tuple(one.name for one in fields(Policy))
#: Beyond these a setting could be kept and every request fail: a double counts to 2^53, SQLite to 2^63, and logits that are
#: divided by next to nothing are infinite.
_WHOLE, _SLOWEST, _FASTEST, _COLDEST, _HOTTEST = 1 << 53, 1e-6, 1e9, 1e-6, 1e6


class RateLimited(EndpointRefused):
    """More records than the key's rate allows for now.

    Attributes:
        retry_after: seconds after which they would be answered.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(message, status=429)


class ModelError(EndpointError):
    """The model failed on records that are as they should be, or answered with what is no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPolicy:
    """What the holder of a key may do.

    Args:
        name: of the account that is charged; letters, digits and ``._-``. A key that is replaced under the same name goes on
            with the same budget.
        policy: what is taken from its answers.
        download: whether it may have the model itself.
        budget: records that it may ask about, ever; None for no limit.
        rate: records a minute, 1e-6 to 1e9; None for no limit.
        burst: records at once after a pause; None for a minute's worth.

    Raises:
        ConfigError: a setting is out of range; a temperature is not from 1e-6 to 1e6.
    """

    name: str
    policy: Policy = EVERYTHING
    download: bool = False
    budget: int | None = None
    rate: float | None = None
    burst: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"a name of 1 to 64 letters, digits and ._- expected for a key, {self.name!r} came"
            )
        if self.budget is not None and (
            isinstance(self.budget, bool) or not 0 <= self.budget < _WHOLE
        ):
            raise ConfigError(f"a budget of 0 to 2^53 - 1 records expected, {self.budget} came")
        if self.rate is not None and not _SLOWEST <= self.rate <= _FASTEST:
            raise ConfigError(
                f"a rate of {_SLOWEST:g} to {_FASTEST:g} records a minute expected, {self.rate} came"
            )
        if self.burst is not None and (self.rate is None or not 1 <= self.burst < _WHOLE):
            raise ConfigError(
                f"a burst of 1 to 2^53 - 1 records, with a rate, expected, {self.burst} came"
            )
        if not _COLDEST <= self.policy.temperature <= _HOTTEST:
            raise ConfigError(
                f"a temperature of {_COLDEST:g} to {_HOTTEST:g} expected, {self.policy.temperature} came"
            )

    @property
    def at_once(self) -> int | None:
        """Records that its bucket holds when it is full; None without a rate."""
        return None if self.rate is None else self.burst or math.ceil(self.rate)


class Accounts(Protocol):
    """Where charges are kept, as `tacit.prediction.ledger.Ledger` does."""

    salt: bytes

    def charge(
        self, name: str, records: int, *, budget: int | None = None, rate: float | None = None, burst: int | None = None,
        patience: float | None = None,
    ) -> float:  # fmt: skip
        """Charge records; 0, or nothing was charged and this is the seconds to wait. BudgetExhausted is raised."""
        ...

    def account(self, name: str) -> Any:
        """What a name has used: `spent`."""
        ...


# --- keys


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that an endpoint knows, each by its SHA-256; the keys themselves are kept nowhere.

    Args:
        entries: SHA-256 of a key and what its holder may do; names differ.
        anyone: what one without a key may do; None refuses.
    """

    entries: tuple[tuple[bytes, AccessPolicy], ...] = field(default=(), repr=False)
    anyone: AccessPolicy | None = None

    def __post_init__(self) -> None:
        named = [access.name for access in self.policies]
        if len(set(named)) < len(named):
            raise ConfigError(f"keys of different names expected, {', '.join(sorted(named))} came")
        of: dict[bytes, str] = {}
        for digest, access in self.entries:
            if (other := of.setdefault(digest, access.name)) != access.name:
                raise ConfigError(
                    f"a key for each name expected, {other} and {access.name} have one sha256: make another for one of them"
                )

    @property
    def policies(self) -> tuple[AccessPolicy, ...]:
        """What all of them may do."""
        return (*(access for _, access in self.entries), *([self.anyone] if self.anyone else []))

    def admit(self, key: str | None) -> AccessPolicy:
        """What the holder of a key may do. Where nobody has one and anyone may ask, any key is taken.

        Raises:
            EndpointRefused: there is no such key, or none came and one is needed (status 401).
        """
        if (key is None or not self.entries) and self.anyone is not None:
            return self.anyone
        if key is None:
            raise EndpointRefused(
                "a key expected in the header Authorization: Bearer KEY", status=401
            )
        found, digest = None, _digest(key)
        for known, access in self.entries:  # all of them, so that time tells nothing of which
            if hmac.compare_digest(known, digest):
                found = access
        if found is None:
            raise EndpointRefused("no such key: ask whoever runs this endpoint for one", status=401)
        return found

    def added(self, access: AccessPolicy, coins: Coins | None = None) -> tuple[Keys, str]:
        """These keys and a new one, and the new key itself: it is nowhere else.

        Args:
            access: what its holder may do; of another name than the keys that are there.
            coins: draw the key, 256 bits.

        Raises:
            ConfigError: there is a key of that name.
        """
        drawn = (coins or Coins("key")).bytes(32)
        key = "tacit_" + base64.urlsafe_b64encode(drawn).decode().rstrip("=")
        return Keys((*self.entries, (_digest(key), access)), self.anyone), key

    def without(self, name: str) -> Keys:
        """These keys but the one of that name.

        Raises:
            UnknownName: there is none.
        """
        if name not in (known := [access.name for _, access in self.entries]):
            raise UnknownName("key", name, known)
        return Keys(tuple(one for one in self.entries if one[1].name != name), self.anyone)


def read_keys(path: Path) -> Keys:
    """Keys from a TOML file: a table ``[keys.NAME]`` for each, with ``sha256`` and its settings.

    Raises:
        ConfigError: it cannot be read, is not TOML, or a setting is wrong.
        UnknownName: there is no such setting.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"a TOML file of keys expected, {path} cannot be read ({getattr(error, 'strerror', None) or error}): "
            "tacit access add makes one"
        ) from error
    tables = found.get("keys")
    if set(found) != {"keys"} or not isinstance(tables, dict):
        raise ConfigError(f"{path}: tables [keys.NAME] and nothing else expected")
    try:
        return Keys(tuple(_entry(name, table) for name, table in tables.items()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_keys(keys: Keys, path: Path) -> None:
    """Write what `read_keys` reads; the file is its user's alone.

    Raises:
        OutputError: it cannot be written.
    """
    lines = [
        "# Keys of a prediction endpoint, by their SHA-256. See tacit access --help.\n[keys]\n"
    ]
    for digest, access in keys.entries:
        lines.append(f'\n[keys."{access.name}"]\nsha256 = "{digest.hex()}"\n')
        for name, value in settings_of(access).items():
            lines.append(f"{name} = {str(value).lower() if isinstance(value, bool) else value}\n")
    write_file(path, "".join(lines), private=True)


def settings_of(access: AccessPolicy) -> dict[str, Any]:
    """The settings of a key that are not the default, but for its name, as plain values."""
    said = {name: getattr(access.policy, name) for name in _POLICY}
    said |= {name: getattr(access, name) for name in _OWN}
    usual = AccessPolicy(name="x")
    return {
        name: value for name, value in said.items()
        if value != getattr(usual.policy if name in _POLICY else usual, name)
    }  # fmt: skip


_OWN = ("download", "budget", "rate", "burst")
_KINDS: Mapping[str, tuple[type, ...]] = {
    "top_k": (int,), "digits": (int,), "temperature": (float, int), "labels_only": (bool,),
    "download": (bool,), "budget": (int,), "rate": (float, int), "burst": (int,),
}  # fmt: skip


def access_from(name: str, settings: Mapping[str, Any]) -> AccessPolicy:
    """A key's policy from plain values, as files and command lines give them.

    Raises:
        ConfigError: a value is of another kind or out of range.
        UnknownName: there is no such setting.
    """
    for setting, value in settings.items():
        kinds = _KINDS.get(setting)
        if kinds is None:
            raise UnknownName("setting of a key", setting, _KINDS)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"key {name}: {setting} = {value!r} is not {kinds[0].__name__}")
    policy = Policy(**{one: value for one, value in settings.items() if one in _POLICY})
    own = {one: value for one, value in settings.items() if one in _OWN}
    return AccessPolicy(name=name, policy=policy, **own)


def _entry(name: str, table: Any) -> tuple[bytes, AccessPolicy]:
    digest = table.get("sha256") if isinstance(table, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ConfigError(f"key {name}: sha256 of 64 hexadecimal digits expected")
    return bytes.fromhex(digest), access_from(
        name, {k: v for k, v in table.items() if k != "sha256"}
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


# --- the service


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for.

    Args:
        batch: records.
        numbers: in them all together; of large records fewer make a batch, but always one.
        low: the least value that a record may hold; None for no limit.
        high: the greatest.

    Raises:
        ConfigError: a limit is out of range.
    """

    batch: int = 1024
    numbers: int = 1 << 22
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.numbers < 1:
            raise ConfigError(
                f"batches of at least 1 record and number expected, {self.batch} and {self.numbers} came"
            )
        low, high = self.low, self.high
        if not all(one is None or math.isfinite(one) for one in (low, high)):
            raise ConfigError(
                f"finite numbers, or none, expected as the range of a record, {low} to {high} came"
            )
        if low is not None and high is not None and low >= high:
            raise ConfigError(f"a range with low below high expected, {low} to {high} came")


class Service:
    """A model behind access policies. Threads may share it.

    Args:
        model: gives one logit a class, (n, classes), for (n, *input_shape); put into evaluation mode. Asked in its own type
            of float and on its own device; 16-bit weights are brought to float32 in place.
        input_shape: shape of one record.
        keys: who may ask.
        ledger: where charges are kept.
        limits: of a request.

    Raises:
        ConfigError: the model does not take such records, or gives no scores of two classes or more; a policy does not fit.
        UnsupportedLayer: a key may download a model that cannot be written as `tacit.nn.spec.save_model` does.
    """

    def __init__(
        self, model: nn.Module, input_shape: tuple[int, ...], keys: Keys, ledger: Accounts, limits: Limits | None = None
    ) -> None:  # fmt: skip
        self.input_shape, self.limits = tuple(input_shape), limits or Limits()
        self._model, self._ledger = model.eval(), ledger
        held = [one for one in (*model.parameters(), *model.buffers()) if one.is_floating_point()]
        self.dtype = (
            torch.float64 if any(one.dtype == torch.float64 for one in held) else torch.float32
        )
        model.to(self.dtype)
        self._device = held[0].device if held else torch.device("cpu")
        self.classes = self._count_classes()
        self._name = _identity(model, ledger.salt)
        self._weights: bytes | None = None
        self.keys = keys

    @property
    def keys(self) -> Keys:
        """Who may ask; may be set while the service runs."""
        return self._keys

    @keys.setter
    def keys(self, keys: Keys) -> None:
        for access in keys.policies:
            if (kept := access.policy.top_k) is not None and kept > self.classes:
                raise ConfigError(
                    f"key {access.name}: top_k of at most {self.classes} classes expected, {kept} came"
                )
        if self._weights is None and any(access.download for access in keys.policies):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.safetensors"
                save_model(self._model, self.input_shape, path)
                self._weights = path.read_bytes()
        self._keys = keys

    @property
    def record_size(self) -> int:
        """Numbers in a record."""
        return math.prod(self.input_shape)

    def admit(self, key: str | None) -> AccessPolicy:
        """See `Keys.admit`."""
        return self._keys.admit(key)

    def most(self, access: AccessPolicy) -> int:
        """Records that a request with this key may hold."""
        fit = max(1, self.limits.numbers // self.record_size)
        return min(self.limits.batch, fit, access.at_once or fit)

    def check_count(self, access: AccessPolicy, count: int) -> None:
        """Whether a request may hold so many records.

        Raises:
            EndpointRefused: there are none (status 422), or too many (413).
        """
        if count < 1:
            raise EndpointRefused("at least one record expected, none came", status=422)
        if count > (most := self.most(access)):
            raise EndpointRefused(
                f"at most {most} records a request expected, {count} came: send them in parts",
                status=413,
            )

    def predict(
        self, access: AccessPolicy, inputs: Tensor, *, patience: float | None = None
    ) -> Tensor:
        """What the policy leaves of the model's answers.

        Args:
            access: of whoever asks.
            inputs: (n, *input_shape) floats on the CPU.
            patience: seconds to wait for another process that charges; None for those of the ledger.

        Returns:
            (n, classes) float64; or (n,) int64 labels where the policy gives labels only.

        Raises:
            EndpointRefused: the records are not as they should be (status 422), or too many (413); nothing was charged.
            BudgetExhausted: the key's budget does not do; nothing was charged.
            RateLimited: its rate does not; nothing was charged.
            StoreError: the charge cannot be kept; nothing was charged.
            ModelError: the model failed. The charge stands.
        """
        records = self._checked(access, inputs)
        wait = self._ledger.charge(
            access.name, len(records), budget=access.budget, rate=access.rate, burst=access.at_once, patience=patience
        )  # fmt: skip
        if wait:
            raise RateLimited(
                f"at most {access.rate:g} records a minute for this key: {len(records)} would be answered after "
                f"{wait:.3g} s",
                retry_after=wait,
            )
        return self._answers(access.policy, records)

    def describe(self, access: AccessPolicy) -> dict[str, Any]:
        """What the holder of a key may know of the service, as plain values."""
        policy = access.policy
        return {
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "dtype": str(self.dtype).removeprefix("torch."),
            "model": self._name,
            "policy": {name: getattr(policy, name) for name in _POLICY},
            "download": access.download,
            "budget": access.budget,
            "spent": self._ledger.account(access.name).spent,
            "rate": access.rate,
            "burst": access.at_once,
            "max_batch": self.most(access),
            "range": [self.limits.low, self.limits.high],
        }

    def weights(self, access: AccessPolicy) -> bytes:
        """The model as a safetensors file with its description.

        Raises:
            EndpointRefused: the key may not have it (status 403).
        """
        if not access.download or self._weights is None:
            raise EndpointRefused("this key may ask the model and not have it", status=403)
        return self._weights

    def _checked(self, access: AccessPolicy, inputs: Tensor) -> Tensor:
        shape = tuple(inputs.shape)
        if shape[1:] != self.input_shape or not shape:
            raise EndpointRefused(
                f"records of shape {list(self.input_shape)} expected, an array of shape {list(shape)} came",
                status=422,
            )
        self.check_count(access, len(inputs))
        records = inputs.to(self.dtype)
        low, high = torch.aminmax(records)
        least, most = float(low), float(high)
        if not (math.isfinite(least) and math.isfinite(most)):
            bad = int((~torch.isfinite(records.reshape(len(records), -1)).all(1)).nonzero()[0])
            raise EndpointRefused(
                f"finite numbers that {str(self.dtype).removeprefix('torch.')} takes expected, record {bad} holds another",
                status=422,
            )
        limits = self.limits
        if (limits.low is not None and least < limits.low) or (
            limits.high is not None and most > limits.high
        ):
            raise EndpointRefused(
                f"numbers from {limits.low} to {limits.high} expected, {least:g} to {most:g} came",
                status=422,
            )
        return records.to(self._device)

    def _answers(self, policy: Policy, records: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                logits = self._model(records)
                answers = policy.answers(logits).cpu()
        except Exception as error:
            raise ModelError(f"the model failed ({type(error).__name__})") from error
        if tuple(answers.shape) != (len(records), self.classes):
            raise ModelError(
                f"{self.classes} scores a record expected of the model, {list(answers.shape)} came"
            )
        # Of log-probabilities some may be minus infinity; NaN is the greatest of any row that holds one.
        if not bool(torch.isfinite(logits.amax(1)).all()):
            raise ModelError("the model answered with what is no number")
        if not bool(torch.isfinite(answers).all()):
            raise ModelError("what the policy leaves of the model's answer is no number")
        return answers.argmax(1) if policy.labels_only else answers

    def _count_classes(self) -> int:
        try:
            with torch.inference_mode():
                found = self._model(
                    torch.zeros(1, *self.input_shape, dtype=self.dtype, device=self._device)
                )
        except Exception as error:
            raise ConfigError(
                f"a model of records of shape {list(self.input_shape)} expected, asked about one it failed: {error}"
            ) from error
        if (
            not isinstance(found, Tensor)
            or found.dim() != 2
            or len(found) != 1
            or found.shape[1] < 2
        ):
            said = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"a model that gives (n, classes) logits of two classes or more expected, for one record it gave {said}"
            )
        return int(found.shape[1])


def _identity(model: nn.Module, salt: bytes) -> str:
    """Names a model to its clients; tells nothing of the weights, being salted."""
    state = model.state_dict()
    digest = hmac.new(salt, digestmod=hashlib.sha256)
    for name, value in state.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    # A model without weights of its own may be another one after a restart.
    digest.update(b"" if state else Coins("model").bytes(16))
    return digest.hexdigest()[:32]
