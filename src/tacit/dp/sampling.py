"""Poisson lots and the books of what they cost, in one object, so that the two cannot disagree.

A `Ledger` is made for terms that are agreed beforehand (`Lots`). It draws every lot itself, books it before it hands it
out, and computes epsilon from what it booked. It refuses what would make that figure untrue: more lots than agreed, another
number of records, a resumed run with other terms or other data, an older state of itself, and parameters that something
else than a private step has changed.

The lots are Poisson: each record joins independently with probability lot / records, so their size varies and may be 0. The
claim is about that, and about division by the *expected* size: a mean over the drawn size has another sensitivity.

Source: Abadi et al., "Deep learning with differential privacy" (CCS 2016), algorithm 1 (line "Take a random sample L_t with
sampling probability L/N"; divide by L).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from tacit.core.claims import PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import BudgetExhausted, ConfigError, DataError, TacitWarning, WireError
from tacit.core.wire import Message, decode, encode
from tacit.dp.accounting import Accountant, Parts, Releases, warn_of_delta

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.unsignedinteger[Any]]

_TAG = "tacit/ledger/1"
_CHUNK = 1 << 20
_AHEAD = 16  # lots that are drawn together, where the records are few


def poisson_sample(coins: Coins, records: int, lot: int) -> Indices:
    """The records of one lot: each of 0..records-1 independently with probability lot / records.

    A record is in if a 72-bit uniform integer is below floor(lot * 2^72 / records). Its low 64 bits are drawn only where the
    high 8 do not decide, which changes nothing in the distribution. A record's probability is at most lot / records and less
    than 2^-72 below it: the whole lot is within records * 2^-72 of an exact one in statistical distance.

    Args:
        coins: where the sample comes from.
        records: how many there are.
        lot: the expected size, in 1..records.

    Returns:
        Their places, ascending; there may be none.
    """
    if lot == records:
        return np.arange(records, dtype=np.int64)
    high, low = divmod((lot << 72) // records, 1 << 64)
    buffer = np.empty(min(records, _CHUNK), np.uint8)
    found = []
    for start in range(0, records, _CHUNK):
        top = buffer[: records - start]
        coins.fill(top)
        maybe = np.flatnonzero(top <= high)
        tied = np.flatnonzero(top[maybe] == high)
        out = tied[coins.uint64(tied.size) >= np.uint64(low)]
        found.append(np.delete(maybe, out) + start)
    return np.concatenate(found).astype(np.int64, copy=False)


def duplicates(inputs: npt.NDArray[np.generic]) -> int:
    """How many records repeat an earlier one, byte for byte; warns if there are any.

    Args:
        inputs: one record a row, (n, ...).
    """
    flat = np.ascontiguousarray(inputs).reshape(len(inputs), math.prod(inputs.shape[1:]))
    rows = flat.view(np.uint8)
    kinds = {hashlib.blake2b(row.data, digest_size=16).digest() for row in rows}
    repeats = len(rows) - len(kinds)
    if repeats:
        warnings.warn(
            f"{repeats} of {len(rows)} records repeat another one: epsilon is per record, and who is in the data k times "
            "is protected by k times that epsilon, at a larger delta. Remove the copies, or say so with the claim",
            TacitWarning,
            stacklevel=2,
        )
    return repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Lots:
    """What is agreed before the first lot is drawn.

    Args:
        records: how many records the data set has.
        lot: the expected size of a lot.
        noise_multiplier: standard deviation of the noise on a lot's sum over the sensitivity to one record.
        steps: how many lots may be drawn.
        delta: of the claim, in (0, 1).

    Raises:
        ConfigError: a number is out of range.
    """

    records: int
    lot: int
    noise_multiplier: float
    steps: int
    delta: float

    def __post_init__(self) -> None:
        if not (1 <= self.lot <= self.records < 1 << 62 and self.steps >= 1):
            raise ConfigError(
                "an expected lot of 1 to all records and at least one step expected, "
                f"got lots of {self.lot} of {self.records} records and {self.steps} steps"
            )
        if not (0 <= self.noise_multiplier < math.inf and 0 < self.delta < 1):
            raise ConfigError(
                "a finite noise multiplier that is not negative and 0 < delta < 1 expected, "
                f"got {self.noise_multiplier} and {self.delta}"
            )

    @property
    def rate(self) -> float:
        """The probability with which a record joins a lot."""
        return self.lot / self.records

    def releases(self, steps: int) -> Releases:
        """The first ``steps`` lots, for an accountant."""
        return Releases(self.rate, self.noise_multiplier, steps)


class _Watch:
    """A copy of a module's parameters, to tell which have changed.

    Bytes are compared, because PyTorch's version counters miss what is written through ``.data``.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._views: dict[str, tuple[tuple[object, ...], Words]] = {}
        self._kept: dict[str, tuple[object, Words | torch.Tensor]] = {}
        self.seal()

    def _bytes(self, name: str, parameter: torch.Tensor) -> Words | torch.Tensor:
        """The parameter's memory, on the device that it lies on: a view of it, where there can be one."""
        if not (parameter.is_cpu and parameter.is_contiguous()):
            return parameter.detach().reshape(-1).view(torch.uint8)
        # To make a view takes as long as to compare what it shows, so views are kept; numpy wakes no threads.
        place = (parameter.data_ptr(), parameter.shape, parameter.dtype)
        known = self._views.get(name)
        if known is None or known[0] != place:
            flat: Words = parameter.detach().reshape(-1).view(torch.uint8).numpy()
            known = place, flat.view(np.uint64) if flat.size % 8 == 0 else flat
            self._views[name] = known
        return known[1]

    def seal(self) -> None:
        """Take the parameters as they are."""
        kept: dict[str, tuple[object, Words | torch.Tensor]] = {}
        for name, p in self._module.named_parameters():
            now, old = self._bytes(name, p), self._kept.get(name)
            if isinstance(now, torch.Tensor):
                kept[name] = p.shape, now.clone()
            elif old is not None and isinstance(old[1], np.ndarray) and old[1].shape == now.shape:
                np.copyto(old[1], now)
                kept[name] = p.shape, old[1]
            else:
                kept[name] = p.shape, now.copy()
        self._kept = kept

    def changed(self) -> list[str]:
        """The names of the parameters that are not as they were."""
        now = dict(self._module.named_parameters())
        gone = [name for name in self._kept if name not in now]
        return gone + [name for name, p in now.items() if not self._as_kept(name, p)]

    def _as_kept(self, name: str, parameter: torch.Tensor) -> bool:
        if name not in self._kept:
            return False
        shape, old = self._kept[name]
        new = self._bytes(name, parameter)
        if shape != parameter.shape:
            return False
        if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
            return old.device == new.device and torch.equal(old, new)
        same = isinstance(old, np.ndarray) and isinstance(new, np.ndarray)
        return same and np.array_equal(old, new)


class Ledger:
    """Hands out Poisson lots and books each before it is handed out.

    A resumed run gives `restore` what `export` gave. So that a killed run cannot forget lots that it drew after it last
    saved its model, write every state that ``keep`` is called with where it survives, and resume from the last of these:
    lots drawn in vain count.

    Lots are drawn a few ahead, and each is booked before it is handed out. Those from lot k on, k a multiple of so many,
    come from ``coins.child("lots from k on")``: with seeded coins a resumed run draws what an unbroken one would have drawn.

    Args:
        lots: what is agreed.
        coins: where the lots come from; their mark ``seeded`` is this ledger's.
        fingerprint: a digest of the data set.
        extra: what else is released about the same records, for instance a private PCA's share.
        keep: called with the state that books a lot, before that lot is handed out.
        model: the module whose parameters only private steps may change, if that is to be watched (it costs a copy).

    Raises:
        ConfigError: a part of ``extra`` is out of range.

    A delta of 1 / records or more draws a `TacitWarning`.
    """

    def __init__(
        self,
        lots: Lots,
        coins: Coins,
        *,
        fingerprint: bytes,
        extra: Parts = (),
        keep: Callable[[bytes], None] | None = None,
        model: torch.nn.Module | None = None,
    ) -> None:
        warn_of_delta(lots.delta, lots.records)
        self.lots = lots
        self.extra = tuple(Releases(*part) for part in extra)
        Accountant.MOMENTS.epsilon(self.extra, lots.delta)  # refuses parts out of range now
        self.seeded = coins.seeded
        self._coins = coins
        self._fingerprint = fingerprint
        self._keep = keep
        self._watch = _Watch(model) if model is not None else None
        self._spent = 0
        self._ahead: tuple[int, list[Indices]] = (0, [])

    @property
    def spent(self) -> int:
        """How many lots were drawn."""
        return self._spent

    @property
    def divisor(self) -> int:
        """What a lot's sum is divided by: the expected size of a lot, never the drawn one."""
        return self.lots.lot

    def draw(self, records: int) -> Indices:
        """Book the next lot and hand it out.

        Args:
            records: how many records the caller is about to take the lot from.

        Returns:
            Places of records, int64, ascending; there may be none, and then the step is noise alone.

        Raises:
            DataError: that is not the number of records that was agreed.
            BudgetExhausted: all lots that were agreed are drawn.
        """
        if records != self.lots.records:
            raise DataError(
                f"lots of {self.lots.records} records were agreed, and the data has {records}: each rate, and with it "
                "epsilon, would be another. Make a new ledger for other data"
            )
        if self._spent >= self.lots.steps:
            raise BudgetExhausted(
                f"all {self.lots.steps} lots that were agreed are drawn: stop here, or agree on more before the first lot"
            )
        self._spent += 1
        if self._keep is not None:
            self._keep(self.export())
        return self._lot(self._spent - 1)

    def _lot(self, number: int) -> Indices:
        """A lot by its number, from 0 on: several are a single one from as many times the records."""
        records = self.lots.records
        together = min(_AHEAD, max(1, _CHUNK // records))
        first = number - number % together
        known, lots = self._ahead
        if not lots or known != first:
            coins = self._coins.child(f"lots from {first} on")
            drawn = poisson_sample(coins, together * records, together * self.lots.lot)
            ends = np.searchsorted(drawn, records * np.arange(1, together))
            lots = [part - k * records for k, part in enumerate(np.split(drawn, ends))]
            self._ahead = first, lots
        return lots[number - first]

    def parts(self, *, planned: bool = False) -> Sequence[Releases]:
        """All that is composed: ``extra``, and the lots drawn so far or, if ``planned``, all that may be."""
        steps = self.lots.steps if planned else self._spent
        return (*self.extra, *([self.lots.releases(steps)] if steps else []))

    def loss(self, accountant: Accountant, *, planned: bool = False) -> PrivacyLoss:
        """What was spent so far or, if ``planned``, what all agreed lots cost, ``extra`` included."""
        return accountant.loss(self.parts(planned=planned), self.lots.delta)

    # --- the model changes in private steps only

    @contextmanager
    def private_step(self) -> Iterator[None]:
        """What changes the watched model inside this is the private step; at its start nothing may have changed yet.

        Raises:
            ConfigError: something else than a private step has changed the model.
        """
        self._refuse_changes()
        yield
        self._seal()

    def _refuse_changes(self) -> None:
        changed = self._watch.changed() if self._watch else []
        if changed:
            more = f" and {len(changed) - 1} more parameters" if len(changed) > 1 else ""
            raise ConfigError(
                f"{changed[0]!r}{more} changed since the last private step: something that is not in the books has updated "
                "the model, so epsilon would not hold. Change the model through the private optimiser only"
            )

    def _seal(self) -> None:
        if self._watch:
            self._watch.seal()

    # --- state

    def _terms(self) -> dict[str, int | float | bytes | list[list[float]]]:
        return {
            **asdict(self.lots),
            "fingerprint": self._fingerprint,
            "extra": [[float(value) for value in part] for part in self.extra],
        }

    def export(self) -> bytes:
        """The terms and what was spent."""
        return encode(Message(_TAG, spent=self._spent, seeded=self.seeded, **self._terms()))

    def restore(self, state: bytes) -> None:
        """Take up the spending of a ledger with the same terms. The model is watched from its present values on.

        Raises:
            DataError: the state is damaged, of another version, or of another data set.
            ConfigError: the state's terms are others, or it has spent less than this ledger already has.
        """
        try:
            message = decode(state)
            if message.tag != _TAG:
                raise WireError(f"the tag {message.tag!r}")
            spent = message.integer("spent", low=0)
            theirs = dict(message.fields)
        except WireError as error:
            raise DataError(
                f"a ledger's state ({_TAG}) expected: {error}. Take the file that was kept, or start anew"
            ) from None
        ours = self._terms()
        differ = [name for name in ours if theirs.get(name) != ours[name]]
        if differ:
            told = "; ".join(
                "another data set, by its fingerprint"
                if name == "fingerprint"
                else f"{name}: {ours[name]!r} here, {theirs.get(name)!r} in the state"
                for name in differ
            )
            kind = DataError if {"records", "fingerprint"} & set(differ) else ConfigError
            raise kind(f"the state is of a training on other terms ({told}): resume with the same")
        if not self._spent <= spent <= self.lots.steps:
            raise ConfigError(
                f"the state has spent {spent} lots of {self.lots.steps}, this ledger {self._spent}: what was spent "
                "cannot be taken back. Restore the latest state into a new ledger"
            )
        self._spent = spent
        self.seeded = self.seeded or theirs.get("seeded") is not False
        self._seal()

    def __repr__(self) -> str:
        return f"Ledger({self._spent} of {self.lots.steps} lots drawn, {self.lots})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Ledger cannot be copied: each copy would spend the same budget; use export()"
        )
