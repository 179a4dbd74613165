"""Training without protection: the baseline of every comparison.

Centralised: every owner sends its records to the server, which trains and hands out the model. (Survey, "Centralized
Training": "all training data are submitted to a third party".)

Federated SGD: in each round every owner sends the gradient of one mini-batch; the server steps against their mean.

Federated averaging: in each round every owner takes some local SGD steps and sends the change of the model; the server adds
the mean change. Both: McMahan et al., AISTATS 2017, algorithm 1 (all clients take part in each round, C = 1).

Nothing is kept secret from the server: not the records (centralised), or not the updates (federated), which determine
records to a large extent (`tacit.attacks.gradient_leakage`). The finished model goes to everybody.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from tacit.core.claims import Basis, Claim
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.nn.collected import (
    SERVER_SEES_RECORDS,
    observe_collected,
    record_holders,
    train_on_collected,
)
from tacit.nn.federated import (
    MOST,
    Progress,
    Rounds,
    Seen,
    Task,
    check_sgd,
    federated_members,
    honest_work,
    no_insiders,
    observe_federated,
    run_federated,
    silent,
    train_here,
    work_of,
)
from tacit.nn.local_work import Share, fit
from tacit.parties.checkpoints import NOTHING, Checkpoint, Keep, keep_nothing
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Opened, Run
from tacit.parties.seats import Seat
from tacit.parties.star import Hub, Member
from tacit.parties.views import COUNTS, Observation, Recording, View

MCMAHAN = "McMahan et al., AISTATS 2017, algorithm 1"

RECORDS_STAY = Claim(
    statement="No record leaves its owner; updates do, and may determine records.",
    basis=Basis.PROVED,
    source=f"{MCMAHAN}; by construction: a member's only reply is its update",
    hides=("server", "owner"),
)


# --- centralised


@dataclass(frozen=True, slots=True, kw_only=True)
class Centralised:
    """All records go to the server, which trains.

    Args:
        epochs: passes over the records.
        batch_size: records a step.
        learning_rate: of each step.
    """

    epochs: int = 60
    batch_size: int = 16
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= MOST:
            raise ConfigError(f"epochs from 1 to {MOST} expected, got {self.epochs}")
        check_sgd(batch_size=self.batch_size, learning_rate=self.learning_rate)

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
            coins: not used: nothing is protected.
            recording: what to keep of the views.
            progress: told after each epoch.
            keep: makes the checkpoint from which a run that was killed goes on.
        """
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
        """The coordinator's part: see `train_on_collected`. A run that was killed begins anew."""
        del checkpoint
        model = copy.deepcopy(task.start)

        def learn(inputs: Tensor, labels: Tensor) -> None:
            fit(
                model, inputs, labels, epochs=self.epochs, batch_size=self.batch_size,
                learning_rate=self.learning_rate, generator=torch.Generator().manual_seed(task.seed), progress=progress,
            )  # fmt: skip

        train_on_collected(hub, model, learn, classes=task.classes)
        return Run(
            output=Opened(model, (SERVER, *task.owners)),
            cost=hub.cost,
            views=hub.views,
            claims=(SERVER_SEES_RECORDS,),
            settings=asdict(self),
            seeded=seat.coins.seeded,
        )

    def observe(self, view: View, role: Role) -> Observation:
        """At the server: the records. At an owner: the finished model."""
        return observe_collected(view, role)


# --- federated


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedSGD:
    """Every owner sends the gradient of one mini-batch a round.

    Args:
        rounds: number of rounds.
        batch_size: records behind each gradient.
        learning_rate: of the server's step.
    """

    rounds: int = 600
    batch_size: int = 1
    learning_rate: float = 0.3

    def __post_init__(self) -> None:
        _ = self._rounds  # checks itself
        check_sgd(batch_size=self.batch_size, learning_rate=self.learning_rate)

    @property
    def _rounds(self) -> Rounds:
        return Rounds(rounds=self.rounds, rate=-self.learning_rate)

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
            coins: not used: nothing is protected.
            recording: what to keep of the views.
            progress: told after each round.
            keep: makes the checkpoint from which a run that was killed goes on.

        Raises:
            Diverged: names the owner, the round and its epoch.
        """
        return train_here(
            self, task, Seat(coins=coins), recording=recording, progress=progress, keep=keep
        )

    def members_of(self, task: Task, seat: Seat) -> dict[Role, Member]:
        """A member for each owner whose records are in this process."""
        del seat
        work = honest_work(task, Share.GRADIENT, batch_size=self.batch_size)
        return federated_members(task, work_of(task, work), self._rounds)

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
            claims=(RECORDS_STAY,),
            settings=asdict(self),
            seeded=seat.coins.seeded,
        )

    def observe(self, view: View, role: Role) -> Observation:
        """At the server: every owner's gradients. At an owner: the models, and the others' mean gradients."""
        seen = Seen(rate=-self.learning_rate, scale=1.0, steps=1, batch_size=self.batch_size)
        return observe_federated(view, role, seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedAveraging:
    """Every owner takes local SGD steps and sends the change of the model.

    Args:
        rounds: number of rounds.
        local_steps: steps of each owner in a round.
        batch_size: records a step.
        learning_rate: of the local steps.
    """

    rounds: int = 120
    local_steps: int = 5
    batch_size: int = 4
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        _ = self._rounds  # checks itself
        check_sgd(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            local_steps=self.local_steps,
        )

    @property
    def _rounds(self) -> Rounds:
        return Rounds(rounds=self.rounds, rate=1.0)

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
            coins: not used: nothing is protected.
            recording: what to keep of the views.
            progress: told after each round.
            keep: makes the checkpoint from which a run that was killed goes on.

        Raises:
            Diverged: names the owner, the round and its epoch.
        """
        return train_here(
            self, task, Seat(coins=coins), recording=recording, progress=progress, keep=keep
        )

    def members_of(self, task: Task, seat: Seat) -> dict[Role, Member]:
        """A member for each owner whose records are in this process."""
        del seat
        work = honest_work(
            task,
            Share.CHANGE,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            learning_rate=self.learning_rate,
        )
        return federated_members(task, work_of(task, work), self._rounds)

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
            claims=(RECORDS_STAY,),
            settings=asdict(self),
            seeded=seat.coins.seeded,
        )

    def observe(self, view: View, role: Role) -> Observation:
        """At the server: every owner's change. At an owner: the models, and the others' mean change."""
        seen = Seen(
            rate=1.0, scale=-self.learning_rate, steps=self.local_steps, batch_size=self.batch_size
        )
        return observe_federated(view, role, seen)
