"""Federated SGD in which every owner clips its whole gradient and adds noise before it leaves.

The survey: "Conducting Differentially Private Randomization on Local Gradients ... known as the local DP solution.
Differentially private mechanisms add just the right amount of randomness (noise) ... for example, Laplace or Gaussian
noises".

Who holds what: each owner its records; the server the model. Kept from the server and from the other owners: each owner's
data, up to the stated epsilon. Steps, in each round: (1) the server hands out the model; (2) each owner computes the
gradient of a mini-batch, clips it *as one vector* to an L2 (Gaussian) or L1 (Laplace) norm of ``clip``, adds noise of
``noise_multiplier`` times the sensitivity 2 * clip to every coordinate, and sends that; (3) the server steps against the
mean.

Unit and relation: replacing *all* of an owner's data moves its clipped gradient by at most 2 * clip, so the unit is the
participant, per round; rounds compose. That total is large at any noise that lets so few owners learn, and it is
printed. Nothing is amplified by sampling: an owner takes part in every round.

**Leaks**: to the server, each owner's noisy gradient of each round; to each owner, the model of each round.
**Cost**: the bytes and rounds of federated SGD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from torch import nn

from tacit.core.claims import Basis, Claim
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, Diverged
from tacit.core.wire import Array
from tacit.dp.mechanisms import Noise, NoisyVector
from tacit.nn.federated import (
    Progress,
    Rounds,
    Seen,
    Task,
    carried,
    check_sgd,
    federated_members,
    honest_work,
    observe_federated,
    run_federated,
    silent,
    train_here,
    work_of,
)
from tacit.nn.local_work import Share
from tacit.nn.updates import LocalUpdate, LocalWork
from tacit.parties.checkpoints import NOTHING, Checkpoint, Keep, keep_nothing
from tacit.parties.durable import ANSWERS_ONCE
from tacit.parties.roles import Role
from tacit.parties.runs import Opened, Run
from tacit.parties.seats import Seat
from tacit.parties.star import Hub, Member
from tacit.parties.views import COUNTS, Observation, Recording, View


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyWork:
    """Local work whose update leaves clipped and noisy.

    Args:
        work: what makes the update.
        mechanism: how it is clipped and what noise it gets.
        examples: records behind each update, which is public.
        coins: where the noise comes from.
    """

    work: LocalWork
    mechanism: NoisyVector
    examples: int
    coins: Coins = field(repr=False)

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        """The noisy update of a round.

        Where the gradient is not finite, noise around zero is released: that it is not finite, or an error's text, would
        tell something about the records that no epsilon covers.
        """
        try:
            clear = self.work.update(model, round)
            arrays, examples = clear.arrays, clear.examples
        except Diverged:
            arrays, examples = tuple(np.zeros(a.shape, np.float32) for a in model), self.examples
        # A stream a round and model: a member that was restored from a backup, and is asked about another model, must not
        # answer with the same noise, or the difference of both answers would have none.
        asked = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in model))
        noisy = self.mechanism.release(
            arrays, self.coins.child(f"round {round}, model {asked.hexdigest()}")
        )
        return LocalUpdate(arrays=tuple(noisy), examples=examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDP:
    """Federated SGD under local differential privacy.

    Args:
        clip: bound on the norm of an owner's gradient.
        noise_multiplier: noise in units of the sensitivity 2 * clip; 0 adds none and protects nothing.
        noise: Gaussian (L2 norm) or Laplace (L1 norm).
        rounds: number of rounds.
        batch_size: records behind each gradient.
        learning_rate: of the server's step.
        delta: of the claim.
    """

    clip: float = 1.0
    noise_multiplier: float = 0.1
    noise: Noise = Noise.GAUSSIAN
    rounds: int = 600
    batch_size: int = 1
    learning_rate: float = 0.3
    delta: float = 1e-5

    def __post_init__(self) -> None:
        _ = self.mechanism, self._rounds  # both check what they are given
        check_sgd(batch_size=self.batch_size, learning_rate=self.learning_rate)
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta between 0 and 1 expected, got {self.delta}")

    @property
    def _rounds(self) -> Rounds:
        return Rounds(rounds=self.rounds, rate=-self.learning_rate)

    @property
    def mechanism(self) -> NoisyVector:
        """The mechanism that every update goes through."""
        return NoisyVector(clip=self.clip, noise_multiplier=self.noise_multiplier, noise=self.noise)

    def train(
        self,
        task: Task,
        *,
        coins: Coins,
        recording: Recording = COUNTS,
        progress: Progress = silent,
        keep: Keep = keep_nothing,
    ) -> Run[Opened[nn.Module]]:
        """Train on the task's records, all parties in this process.

        Args:
            task: what is to be learned, by whom.
            coins: where the noise comes from.
            recording: what to keep of the views.
            progress: told after each round.
            keep: makes the checkpoint from which a run that was killed goes on.

        Raises:
            DataError: an owner's records are not finite; names the owner, before anything is sent.
            Diverged: the model is not finite; names the round.
        """
        return train_here(
            self, task, Seat(coins=coins), recording=recording, progress=progress, keep=keep
        )

    def members_of(self, task: Task, seat: Seat) -> dict[Role, Member]:
        """A member for each owner whose records are in this process."""
        work = work_of(task, honest_work(task, Share.GRADIENT, batch_size=self.batch_size))
        noisy = {
            role: NoisyWork(
                work=one,
                mechanism=self.mechanism,
                examples=self.batch_size,
                coins=seat.coins.child(f"noise/{role}"),
            )
            for role, one in work.items()
        }
        return carried(federated_members(task, noisy, self._rounds), work)

    def run(
        self,
        hub: Hub,
        task: Task,
        seat: Seat,
        *,
        progress: Progress = silent,
        checkpoint: Checkpoint = NOTHING,
    ) -> Run[Opened[nn.Module]]:
        """The coordinator's part: see `tacit.nn.federated.train_federated`."""
        return Run(
            output=run_federated(hub, task, self._rounds, progress=progress, checkpoint=checkpoint),
            cost=hub.cost,
            views=hub.views,
            claims=self.claims(),
            settings={**asdict(self), "noise": self.noise.value},
            seeded=seat.coins.seeded,
        )

    def claims(self) -> tuple[Claim, ...]:
        """What is claimed of a run with these settings."""
        loss = self.mechanism.loss(releases=self.rounds, delta=self.delta, unit="participant")
        noise = Claim(
            statement="Everything that leaves an owner, over all rounds, is differentially private.",
            basis=Basis.ACCOUNTED,
            source="Dwork, Roth 2014, section 3.3 and appendix A; survey, local DP",
            value=loss,
            assumes=(
                "noise is drawn in floating point: its gaps (Mironov 2012) are not accounted for",
                "owners' data are independent of one another",
                ANSWERS_ONCE,
            ),
        )
        if self.noise_multiplier == 0:
            noise = Claim(
                statement="Nothing here is differentially private: no noise is added.",
                basis=Basis.PROVED,
                source="by construction",
                value=loss,
            )
        return (
            noise,
            Claim(
                statement="No record leaves its owner.",
                basis=Basis.PROVED,
                source="by construction: a member's only reply is its noisy update",
                hides=("server", "owner"),
            ),
        )

    def observe(self, view: View, role: Role) -> Observation:
        """At the server: every owner's noisy gradients. At an owner: models, and the others' mean noisy gradients."""
        seen = Seen(
            rate=-self.learning_rate,
            scale=1.0,
            steps=1,
            batch_size=self.batch_size,
            noisy=self.noise_multiplier > 0,
        )
        return observe_federated(view, role, seen)

    def sabotaged(self) -> LocalDP:
        """The same scheme, deliberately broken: it clips and adds no noise."""
        return replace(self, noise_multiplier=0.0)
