"""Differentially private SGD ([4]).

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, "Deep learning with differential privacy", CCS 2016. (Section
numbers here are recalled.)

Who holds what: the server all records, as in centralised training; the finished model goes to everybody. Kept from who
queries or holds the finished model: whether any one record was among the training data, up to the stated epsilon.
Nothing is kept from the server.

Steps: (1) Before: where components are asked for, the principal directions of all records, from noisy second moments
(section 4; `tacit.dp.pca`), become the model's first layer, which stays fixed. (2) Algorithm 1, in each step: a lot, which
each record joins with probability lot / n on its own; the gradient of each record in it, clipped; their sum, made noisy;
over the *expected* lot, a step of an optimiser. (3) The ledger (`tacit.dp.sampling.Ledger`) draws each lot and books it
first, so that what is claimed is what was drawn; it is kept with the checkpoint, and a run that goes on goes on spending.

What differs from the paper: noise is drawn on a grid of integers unless floats are asked for (`tacit.dp.noise`); any
optimiser may take the step; clipping may be flat, by layer or automatic; the total may be stated by three accountants.

**Leaks**: to the server, everything. To who gets the model: as much about each record as epsilon says; the architecture,
the number of records and all settings are public. How many gradients were not finite is told to the server alone.
**Cost**: that of centralised training; see `tacit bench dp-sgd` for a step's.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tacit.core.claims import Basis, Claim
from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import ConfigError, DataError, Diverged, TacitWarning, UnsupportedLayer
from tacit.core.wire import Array, Message
from tacit.dp.accounting import Accountant, Releases, least_noise
from tacit.dp.noise import GaussianKind, NoisySum
from tacit.dp.pca import component_release, private_components
from tacit.dp.sampling import Indices, Ledger, Lots, duplicates
from tacit.nn.collected import (
    SERVER_SEES_RECORDS,
    observe_collected,
    record_holders,
    train_on_collected,
)
from tacit.nn.federated import MOST, Progress, Task, check_sgd, no_insiders, silent, train_here
from tacit.nn.persample import Clipping, ClipRule, Loss, clipped_sum, cross_entropy
from tacit.parties.checkpoints import NOTHING, Checkpoint, Keep, keep_nothing
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Opened, Run, plain_settings
from tacit.parties.seats import Seat
from tacit.parties.star import Hub, Member
from tacit.parties.views import COUNTS, Observation, Recording, View

SAVED_EVERY = 200
"""Steps between two checkpoints."""

LOOKED_EVERY = 20
"""Steps between two looks whether the model is finite."""

Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimiser of parameters; its learning rate is set before each step."""


class Canaries(Protocol):
    """Fictitious records, which follow the real ones in the lots, and who watches what is released.

    Each may be in the data or not, which only `add` knows: one that is not adds nothing when a lot takes it, which is, for
    all that is released, as if no lot did.
    """

    @property
    def count(self) -> int:
        """How many there are, in the data or not."""

    def add(self, places: Indices, sums: Sequence[Array]) -> None:
        """Add to the sums over a lot's real records, in place, the clipped gradients of the canaries that it took.

        Args:
            places: of the canaries in the lot, 0 to count - 1, ascending.
            sums: an array for each trainable parameter.
        """

    def released(self, noisy: Sequence[npt.NDArray[np.float32]]) -> None:
        """Told what was released of a lot: the noisy sums, before they are divided."""


class Planned(NamedTuple):
    """What a run on so many records will do.

    Args:
        lots: what the ledger keeps to.
        release: of each lot's sum.
        components: of the second moments, if they are released.
    """

    lots: Lots
    release: NoisySum
    components: NoisySum | None

    @property
    def before(self) -> tuple[Releases, ...]:
        """What is spent before the first lot."""
        return () if self.components is None else (_once(self.components),)


def _once(release: NoisySum) -> Releases:
    return Releases(1.0, release.accounted().noise_multiplier, 1)


@dataclass(slots=True)
class PrivateFit:
    """What a private training left beside the model.

    Args:
        plan: what was agreed.
        ledger: what was spent.
        losses: mean loss of each lot, NaN for an empty one: not private, for who holds the records.
        clipped: share of the gradients that were scaled down.
        nonfinite: how many gradients were not finite, and so added nothing.
    """

    plan: Planned
    ledger: Ledger
    losses: list[float]
    clipped: float
    nonfinite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DPSGD:
    """Centralised training by differentially private SGD.

    Args:
        epochs: passes over the records; the number of steps is epochs * records / lot_size.
        lot_size: records in a lot, on average; all of them, where there are fewer.
        clip: bound on the L2 norm of a record's gradient.
        clipping: flat, per-layer, or automatic.
        noise_multiplier: deviation of the noise over ``clip``; 0 adds none and protects nothing. Not used with ``epsilon``.
        epsilon: choose the least noise with which the whole run stays within it.
        delta: of the claim.
        accountant: moments, rdp or pld: how the total is computed.
        noise: discrete, or float: noise with gaps, for comparison.
        learning_rate: of a step.
        final_rate: the learning rate falls to it in equal steps; none keeps it.
        momentum: of SGD.
        components: set the model's first Linear layer, which must have so many outputs and no bias, to the principal
            directions of the records, and keep it; 0 does nothing.
        component_noise: deviation of the noise on their second moments.
        micro: at most so many records at a time, to save memory.
    """

    epochs: int = 60
    lot_size: int = 64
    clip: float = 1.0
    clipping: Clipping = Clipping.FLAT
    noise_multiplier: float = 1.0
    epsilon: float | None = None
    delta: float = 1e-5
    accountant: Accountant = Accountant.PLD
    noise: GaussianKind = GaussianKind.DISCRETE
    learning_rate: float = 0.5
    final_rate: float | None = None
    momentum: float = 0.0
    components: int = 0
    component_noise: float = 16.0
    micro: int | None = None

    def __post_init__(self) -> None:
        check_sgd(batch_size=self.lot_size, learning_rate=self.learning_rate)
        if not 1 <= self.epochs <= MOST:
            raise ConfigError(f"epochs from 1 to {MOST} expected, got {self.epochs}")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta between 0 and 1 expected, got {self.delta}")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ConfigError(f"epsilon above 0 expected, got {self.epsilon}")
        if not 0 <= self.momentum < 1 or not 0 <= self.components <= MOST:
            raise ConfigError(
                f"momentum from 0, below 1, and components from 0 expected, got {self.momentum} and {self.components}"
            )
        if self.final_rate is not None and not 0 < self.final_rate <= self.learning_rate:
            raise ConfigError(
                f"final_rate above 0, at most the learning rate, expected, got {self.final_rate}"
            )
        if self.micro is not None and self.micro < 1:
            raise ConfigError(f"micro of at least 1 expected, got {self.micro}")
        _ = self.rule
        _ = NoisySum(
            clip=self.clip, noise_multiplier=self.noise_multiplier, coordinates=1, kind=self.noise
        )

    @property
    def rule(self) -> ClipRule:
        """How gradients are clipped."""
        return ClipRule(bound=self.clip, how=self.clipping)

    def planned(self, records: int, coordinates: int, dimensions: int = 0) -> Planned:
        """What a run will do, with the noise that meets ``epsilon``, if there is one.

        Args:
            records: of all owners together.
            coordinates: trainable numbers of the model.
            dimensions: of a record, where components are asked for.

        Raises:
            ConfigError: epsilon cannot be met; says the smallest that can.
        """
        lot = min(self.lot_size, records)
        rate, steps = lot / records, max(1, round(self.epochs * records / lot))
        components = None
        spent: tuple[Releases, ...] = ()
        if self.components:
            components = component_release(dimensions, self.component_noise, self.noise)
            spent = (_once(components),)

        def release(noise: float) -> NoisySum:
            return NoisySum(
                clip=self.clip, noise_multiplier=noise, coordinates=coordinates, kind=self.noise
            )

        noise = self.noise_multiplier
        if self.epsilon is not None:
            wanted = least_noise(
                self.epsilon, self.delta * (1 - 1e-6), rate=rate, steps=steps, accountant=self.accountant, spent=spent
            )  # fmt: skip
            # What an accountant takes it for is a little less.
            noise = wanted * (1 + 1e-9) * wanted / release(wanted).accounted().noise_multiplier
        made = release(noise)
        lots = Lots(
            records=records, lot=lot, noise_multiplier=made.accounted().noise_multiplier, steps=steps,
            delta=self.delta,
        )  # fmt: skip
        return Planned(lots, made, components)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        if self.final_rate is None:
            return self.learning_rate
        return self.learning_rate + (self.final_rate - self.learning_rate) * step / max(
            1, steps - 1
        )

    def fit(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        *,
        coins: Coins,
        loss: Loss = cross_entropy,
        optimiser: Optimiser | None = None,
        progress: Progress = silent,
        checkpoint: Checkpoint = NOTHING,
    ) -> PrivateFit:
        """Train a model in place on records that are here.

        Args:
            model: any module whose samples do not mix; frozen parameters stay.
            inputs: records, (n, *input shape).
            labels: (n, ...), given to ``loss``.
            coins: where lots and noise come from.
            loss: from outputs and labels to losses, one a record.
            optimiser: takes the step; SGD with ``momentum`` by default.
            progress: told after each step.
            checkpoint: where model, optimiser and ledger are kept.

        Raises:
            UnsupportedLayer: the model mixes records, or has no first Linear layer for components.
            ConfigError: epsilon cannot be met, the checkpoint is of other settings, or somebody else changed the model.
            DataError: the checkpoint is of other data.
            BudgetExhausted: the checkpoint is of a run that has spent all.
            Diverged: the model is not finite; names the step.
        """
        return _Private(self, model, inputs, labels, coins, loss).run(
            optimiser, progress, checkpoint
        )

    def fit_watched(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        canaries: Canaries,
        *,
        coins: Coins,
        loss: Loss = cross_entropy,
    ) -> PrivateFit:
        """`fit` with canaries among the records, for an audit (`tacit.audit.dp_audit`).

        The canaries count as records: lots are drawn from, and the ledger books, ``len(inputs) + canaries.count``.

        Args:
            model: as for `fit`, which also says what is raised.
            inputs: real records, (n, *input shape).
            labels: (n, ...), given to ``loss``.
            canaries: asked in every step for what they add, and then told what is released.
            coins: where lots and noise come from.
            loss: from outputs and labels to losses, one a record.
        """
        return _Private(self, model, inputs, labels, coins, loss, canaries).run(
            None, silent, NOTHING
        )

    def train(
        self,
        task: Task,
        *,
        coins: Coins,
        recording: Recording = COUNTS,
        progress: Progress = silent,
        keep: Keep = keep_nothing,
    ) -> Run[Opened[nn.Module]]:
        """Train on the task's records, all parties in this process; see `fit`."""
        return train_here(
            self, task, Seat(coins=coins), recording=recording, progress=progress, keep=keep
        )

    def members_of(self, task: Task, seat: Seat) -> dict[Role, Member]:
        """A member for each owner whose records are in this process."""
        del seat
        no_insiders(task, "the server trains, on everybody's records")
        return record_holders(task)

    def run(
        self,
        hub: Hub,
        task: Task,
        seat: Seat,
        *,
        progress: Progress = silent,
        checkpoint: Checkpoint = NOTHING,
    ) -> Run[Opened[nn.Module]]:
        """The coordinator's part: `train_on_collected`, privately."""
        model = copy.deepcopy(task.start)
        found: list[PrivateFit] = []

        def learn(inputs: Tensor, labels: Tensor) -> None:
            found.append(
                self.fit(
                    model,
                    inputs,
                    labels,
                    coins=seat.coins,
                    progress=progress,
                    checkpoint=checkpoint,
                )
            )

        train_on_collected(hub, model, learn, classes=task.classes)
        return Run(
            output=Opened(model, (SERVER, *task.owners)), cost=hub.cost, views=hub.views,
            claims=self.claims(found[0]), settings=plain_settings(self), seeded=seat.coins.seeded,
        )  # fmt: skip

    def claims(self, fit: PrivateFit) -> tuple[Claim, ...]:
        """What is claimed of the model of a run."""
        loss = fit.ledger.loss(self.accountant)
        if math.isinf(loss.epsilon):
            private = Claim(
                statement="Nothing here is differentially private: no noise is added.",
                basis=Basis.PROVED, source="by construction", value=loss,
            )  # fmt: skip
        else:
            private = Claim(
                statement="The finished model, with all models on the way to it, is differentially private.",
                basis=Basis.ACCOUNTED, source="Abadi et al., CCS 2016, algorithm 1 and theorem 2 (recalled)", value=loss,
                assumes=(
                    *fit.plan.release.assumes,
                    "a person stands behind one record only; records that occur twice are two",
                    "how often and when somebody trains is not told by the data",
                    "settings were not chosen by looking at the results of other runs on the same records",
                ),
            )  # fmt: skip
        return (
            private,
            SERVER_SEES_RECORDS,
        )

    def observe(self, view: View, role: Role) -> Observation:
        """At the server: the records. At an owner: the finished model."""
        return observe_collected(view, role)

    def sabotaged(self) -> DPSGD:
        """The same scheme, deliberately broken: no noise, and gradients as large as they are."""
        return replace(self, noise_multiplier=0.0, epsilon=None, clip=1e6, clipping=Clipping.FLAT)


class _Private:
    """A training under way."""

    def __init__(
        self,
        scheme: DPSGD,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        coins: Coins,
        loss: Loss,
        canaries: Canaries | None = None,
    ) -> None:
        if not len(inputs) or len(inputs) != len(labels):
            raise DataError(
                f"as many labels as records expected, got {len(labels)} for {len(inputs)}"
            )
        self.scheme, self.model, self.loss, self.coins = scheme, model, loss, coins
        self.inputs, self.labels, self.canaries = inputs, labels, canaries
        self.records = len(inputs) + (canaries.count if canaries is not None else 0)
        self.front = _front(model, scheme.components) if scheme.components else None
        self.parameters = [
            p
            for p in model.parameters()
            if p.requires_grad and (self.front is None or p is not self.front.weight)
        ]
        dimensions = self.front.in_features if self.front is not None else 0
        self.plan = scheme.planned(
            self.records, sum(p.numel() for p in self.parameters), dimensions
        )
        duplicates(inputs.cpu().numpy())
        digest = hashlib.sha256()
        for part in (inputs, labels):
            digest.update(np.ascontiguousarray(part.cpu().numpy()).data)
        self.fingerprint = digest.digest()

    def run(
        self, optimiser: Optimiser | None, progress: Progress, checkpoint: Checkpoint
    ) -> PrivateFit:
        scheme, model, steps = self.scheme, self.model, self.plan.lots.steps
        made = optimiser or (
            lambda of: torch.optim.SGD(of, lr=scheme.learning_rate, momentum=scheme.momentum)
        )
        taken = made(self.parameters)
        state = checkpoint.load(CostMeter())
        if state is not None:
            self._restore(state, taken)
        elif self.front is not None:
            self._set_components(self.front)
        ledger = Ledger(
            self.plan.lots, self.coins.child("lots"), fingerprint=self.fingerprint, extra=self.plan.before, model=model
        )  # fmt: skip
        if state is not None:
            ledger.restore(state.blob("ledger"))
        fit = PrivateFit(self.plan, ledger, [], 0.0, 0)
        drawn = clipped = 0
        noise: Coins | None = None
        model.train()
        with _frozen(self.front):
            for step in range(ledger.spent, steps):
                # One stream a checkpoint: who goes on from there draws the same.
                if noise is None or step % SAVED_EVERY == 0:
                    noise = self.coins.child(f"noise from {step} on")
                lot = ledger.draw(self.records)
                real = lot[: np.searchsorted(lot, len(self.inputs))]
                rows = torch.from_numpy(real).to(self.inputs.device)
                found = clipped_sum(
                    model,
                    self.loss,
                    self.inputs[rows],
                    self.labels[rows],
                    scheme.rule,
                    micro=scheme.micro,
                )
                drawn, clipped = drawn + len(rows), clipped + found.clipped
                fit.nonfinite += found.nonfinite
                fit.losses.append(float(found.losses.mean()) if len(rows) else math.nan)
                sums = [g.cpu().numpy() for g in found.gradients]
                if self.canaries is not None:
                    self.canaries.add(lot[len(real) :] - len(self.inputs), sums)
                noisy = self.plan.release.release(sums, noise)
                if self.canaries is not None:
                    self.canaries.released(noisy)
                for group in taken.param_groups:
                    group["lr"] = scheme.rate(step, steps)
                with ledger.private_step():
                    for p, g in zip(self.parameters, noisy, strict=True):
                        p.grad = torch.from_numpy(g).div_(ledger.divisor).to(p)
                    taken.step()
                    for p in self.parameters:
                        p.grad = None
                looked = (step + 1) % LOOKED_EVERY == 0 or step + 1 == steps
                if looked and not all(bool(torch.isfinite(p).all()) for p in self.parameters):
                    raise Diverged(
                        f"the model is not finite after step {step}: lower the learning rate"
                    )
                if (step + 1) % SAVED_EVERY == 0 and step + 1 < steps:
                    checkpoint.save(self._state(ledger, taken), CostMeter())
                progress(step + 1, steps)
        fit.clipped = clipped / max(1, drawn)
        if fit.nonfinite:
            warnings.warn(
                f"{fit.nonfinite} gradients of {drawn} were not finite and added nothing: lower the learning rate, or look "
                "for records that are not finite",
                TacitWarning,
                stacklevel=3,
            )
        return fit

    def _set_components(self, front: nn.Linear) -> None:
        if self.plan.components is None:
            raise ConfigError("no components were planned")
        rows = self.inputs.reshape(len(self.inputs), -1).cpu().numpy()
        found = private_components(
            rows, self.scheme.components, self.plan.components, self.coins.child("components")
        )
        with torch.no_grad():
            front.weight.copy_(torch.from_numpy(found))

    # --- checkpoints

    def _state(self, ledger: Ledger, taken: torch.optim.Optimizer) -> Message:
        arrays, said = _flattened(taken.state_dict()["state"])
        weights = [p.detach().cpu().numpy() for p in self.model.parameters()]
        return Message(
            "dp-sgd",
            ledger=ledger.export(),
            weights=weights,
            optimiser=json.dumps(said),
            arrays=arrays,
        )

    def _restore(self, state: Message, taken: torch.optim.Optimizer) -> None:
        own = list(self.model.parameters())
        like = [p.detach().cpu().numpy() for p in own]
        with torch.no_grad():
            for p, kept in zip(own, state.arrays("weights", like=like), strict=True):
                p.copy_(torch.from_numpy(np.array(kept)))
        before = taken.state_dict()
        before["state"] = _unflattened(
            json.loads(state.text("optimiser")), list(state.arrays("arrays"))
        )
        taken.load_state_dict(before)


@contextmanager
def _frozen(front: nn.Linear | None) -> Iterator[None]:
    """The components take no part in the training."""
    weight = None if front is None else front.weight
    was = weight is not None and weight.requires_grad
    if weight is not None:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        if weight is not None:
            weight.requires_grad_(was)


def _front(model: nn.Module, components: int) -> nn.Linear:
    """The layer that is set to the components."""
    first = next(
        (m for m in model.modules() if next(iter(m.parameters(recurse=False)), None) is not None),
        None,
    )
    if (
        not isinstance(first, nn.Linear)
        or first.bias is not None
        or first.out_features != components
    ):
        raise UnsupportedLayer(
            f"for {components} components the model's first layer must be Linear(inputs, {components}, bias=False) on "
            "flat records"
        )
    return first


def _flattened(
    state: dict[int, dict[str, Any]],
) -> tuple[list[Array], list[tuple[int, str, object]]]:
    """An optimiser's state as arrays and plain values: (parameter, name, number or None for the next array)."""
    arrays: list[Array] = []
    said: list[tuple[int, str, object]] = []
    for index, entries in state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                arrays.append(value.detach().cpu().numpy())
                said.append((index, name, None))
            else:
                said.append((index, name, [value]))
    return arrays, said


def _unflattened(
    said: Sequence[tuple[int, str, list[Any] | None]], arrays: Sequence[Array]
) -> dict[int, dict[str, Any]]:
    left = iter(arrays)
    state: dict[int, dict[str, Any]] = {}
    for index, name, value in said:
        state.setdefault(index, {})[name] = (
            torch.from_numpy(np.array(next(left))) if value is None else value[0]
        )
    return state
