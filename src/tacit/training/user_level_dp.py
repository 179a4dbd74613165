"""Federated averaging whose models are differentially private in a whole participant: a trusted server clips and adds noise.

McMahan, Ramage, Talwar, Zhang, "Learning differentially private recurrent language models", ICLR 2018 (recalled).

Who holds what: each owner its records; the server the model and, in the clear, the update of everybody who takes part.
Kept from owners, and from whoever gets a model: whether any one owner's data is among what was learned, whatever it is,
up to the stated epsilon. Nothing is kept from the server: secure aggregation would keep single updates from it. What one
owner alone holds is what the model may not depend on; so the threat that this answers is an owner, or a reader of the
model, who wants to know what another one has (`tacit.attacks.gan_insider`, membership, inversion), and the price is that
the model does not learn it.

Steps, in each round (algorithm 1): (1) the server draws who takes part: each owner on its own, with probability ``sampled``
over their number; (2) it sends them the model; (3) each takes local steps, and sends the change of the model, clipped *as
one vector* to an L2 norm of ``clip``; (4) the server clips again, sums, adds Gaussian noise of ``noise_multiplier * clip``
to each coordinate of the sum, divides by the *expected* number, and moves the model by that.

Unit and relation: to add or remove all of one participant's data, that is to put its updates in or leave them out, moves
the sum by at most ``clip``. The number of participants is public: it is in the divisor and the sampling rate. Rounds
compose, and who is drawn is secret, so that sampling amplifies. An owner whose training diverges sends a zero change: an
error would tell what no epsilon covers.

What we changed: every owner weighs the same, whatever it holds; noise is on a grid of integers (`tacit.dp.noise`); the total
is stated by any of three accountants; the settings of the local steps do not depend on who takes part.

**Leaks**: to the server, each update of each round. To an owner, the models of the rounds that it takes part in; together
with the finished one, as much about any other participant as epsilon says.
**Cost**: a round is two messages in a chain, and 4 bytes a parameter to and from each owner that takes part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from tacit.core.claims import Basis, Claim, PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, Diverged
from tacit.core.wire import Array, Message
from tacit.dp.accounting import Accountant, Releases, least_noise, warn_of_delta
from tacit.dp.mechanisms import clip
from tacit.dp.noise import NoisySum, summation_error
from tacit.dp.sampling import poisson_sample
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
    silent,
    train_here,
    work_of,
)
from tacit.nn.local_work import Share, load_parameters, parameters_of
from tacit.nn.updates import LocalUpdate, LocalWork, flattened, unflattened
from tacit.parties.checkpoints import NOTHING, Checkpoint, Keep, keep_nothing
from tacit.parties.durable import ANSWERS_ONCE
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Opened, Run, plain_settings
from tacit.parties.seats import Seat
from tacit.parties.star import Hub, Member, Seconds, ask
from tacit.parties.views import COUNTS, Observation, Recording, View

_SPARE = 1e-6
"""Share of delta that is kept for what noise on a grid differs by from normal noise."""

_MOST_EPSILON = 700.0
"""Beyond, exp(epsilon) is no float, and epsilon says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedWork:
    """Local work whose update leaves clipped, and as nothing where it is not finite.

    Args:
        work: what makes the update.
        bound: on its L2 norm.
        examples: records behind each update, which is public.
    """

    work: LocalWork
    bound: float
    examples: int

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        """The clipped update of a round."""
        try:
            made = self.work.update(model, round)
            arrays = clipped(made.arrays, self.bound)
        except Diverged:
            arrays = tuple(np.zeros(a.shape, np.float32) for a in model)
        return LocalUpdate(arrays=arrays, examples=self.examples)


def clipped(arrays: Sequence[Array], bound: float) -> tuple[Array, ...]:
    """The arrays as one vector of an L2 norm of at most ``bound``, up to the rounding of float32.

    Raises:
        Diverged: their norm is not finite.
    """
    vector = clip(flattened(arrays).astype(np.float64), bound, 2)
    return unflattened(vector.astype(np.float32), arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLevelDP:
    """Federated averaging, differentially private in a participant, by a trusted server.

    Args:
        rounds: number of rounds.
        local_steps: steps of each owner in a round; 0 for as many as go through its records once.
        batch_size: records a step.
        learning_rate: of the local steps.
        clip: bound on the L2 norm of an owner's change.
        noise_multiplier: deviation of the noise over ``clip``; 0 adds none and protects nothing. Not used with ``epsilon``.
        epsilon: choose the least noise with which the whole run stays within it.
        delta: of the claim.
        sampled: owners that take part in a round, on average; None for all, in every round.
        accountant: moments, rdp or pld: how the total is computed.
        deadline: seconds that a round may take.
    """

    rounds: int = 120
    local_steps: int = 5
    batch_size: int = 4
    learning_rate: float = 0.1
    clip: float = 0.5
    noise_multiplier: float = 1.0
    epsilon: float | None = None
    delta: float = 1e-5
    sampled: int | None = None
    accountant: Accountant = Accountant.PLD
    deadline: Seconds = 600.0

    def __post_init__(self) -> None:
        _ = self._rounds
        check_sgd(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            local_steps=self.local_steps or 1,
        )
        _ = NoisySum(clip=self.clip, noise_multiplier=self.noise_multiplier, coordinates=1)
        if not 0 < self.delta < 1 or not self.deadline > 0:
            raise ConfigError(
                f"delta between 0 and 1 and a deadline above 0 expected, got {self.delta} and {self.deadline}"
            )
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ConfigError(f"a finite epsilon above 0 expected, got {self.epsilon}")
        if self.sampled is not None and self.sampled < 1:
            raise ConfigError(
                f"at least one owner a round on average expected, got sampled = {self.sampled}"
            )

    @property
    def _rounds(self) -> Rounds:
        return Rounds(rounds=self.rounds, rate=1.0, deadline=self.deadline)

    def expected(self, participants: int) -> int:
        """How many of so many owners take part in a round, on average.

        Raises:
            ConfigError: there are fewer owners than that.
        """
        wanted = participants if self.sampled is None else self.sampled
        if wanted > participants:
            raise ConfigError(
                f"{wanted} owners a round on average wanted, there are {participants}: lower sampled"
            )
        return wanted

    def release(self, participants: int, coordinates: int) -> NoisySum:
        """The mechanism of a round, with the noise that meets ``epsilon``, if there is one.

        Args:
            participants: how many owners there are.
            coordinates: of the model.

        Raises:
            ConfigError: epsilon cannot be met; says the smallest that can.
        """
        # what float32 does to a clipped vector, and the sum in float64, may add to its norm
        off = participants * self.clip * 2.0**-23 + summation_error(
            participants, self.clip, np.float64
        )

        def made(noise: float) -> NoisySum:
            return NoisySum(
                clip=self.clip, noise_multiplier=noise, coordinates=coordinates, rounding=off
            )

        if self.epsilon is None:
            return made(self.noise_multiplier)
        wanted = least_noise(
            self.epsilon, self.delta * (1 - _SPARE), rate=self.expected(participants) / participants,
            steps=self.rounds, accountant=self.accountant,
        )  # fmt: skip
        return made(wanted * (1 + 1e-9) * wanted / made(wanted).accounted().noise_multiplier)

    def loss(self, participants: int, coordinates: int) -> PrivacyLoss:
        """What a run tells about one of so many participants, at most.

        Delta includes what the noise differs by from normal noise. Where that leaves nothing of it, because there is so
        little noise that epsilon says nothing either (from about 60), epsilon is infinite.
        """
        release = self.release(participants, coordinates)
        found = release.accounted()
        rate = self.expected(participants) / participants
        parts = [Releases(rate, found.noise_multiplier, self.rounds)]
        loss = self.accountant.loss(parts, self.delta * (1 - _SPARE))
        delta = math.inf
        if loss.epsilon < _MOST_EPSILON:
            delta = max(self.delta, loss.delta + found.delta(loss.epsilon, self.rounds))
        return replace(
            loss,
            epsilon=loss.epsilon if delta < 1 else math.inf,
            delta=delta if delta < 1 else self.delta,
            unit="participant",
            neighbouring="one participant's data added or removed, the number of participants public",
            composed=loss.composed.replace("on all records", "on all participants"),
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
        """Train on the task's records, all parties in this process.

        Args:
            task: what is to be learned, by whom.
            coins: of who takes part and of the noise.
            recording: what to keep of the views.
            progress: told after each round.
            keep: makes the checkpoint from which a run that was killed goes on.

        Raises:
            ConfigError: a batch is larger than an owner's records; more owners are drawn than there are; epsilon cannot be
                met.
            DataError: an owner's records are not finite; names the owner, before anything is sent.
            Diverged: the model is not finite; names the round.
        """
        return train_here(
            self, task, Seat(coins=coins), recording=recording, progress=progress, keep=keep
        )

    def members_of(self, task: Task, seat: Seat) -> dict[Role, Member]:
        """A member for each owner whose records are in this process."""
        del seat
        honest = honest_work(
            task,
            Share.CHANGE,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            learning_rate=self.learning_rate,
        )
        work = work_of(task, honest)
        bounded = {
            role: ClippedWork(
                work=one, bound=self.clip, examples=honest[role].local_steps * self.batch_size
            )
            for role, one in work.items()
        }
        return carried(federated_members(task, bounded, self._rounds), work)

    def run(
        self,
        hub: Hub,
        task: Task,
        seat: Seat,
        *,
        progress: Progress = silent,
        checkpoint: Checkpoint = NOTHING,
    ) -> Run[Opened[nn.Module]]:
        """The coordinator's part: draw, collect, clip, add noise, move.

        Args:
            hub: the star of members.
            task: what is to be learned, by whom.
            seat: its coins draw who takes part, and the noise.
            progress: told after each round.
            checkpoint: where it stands is kept before and after each round, and gone on with from there.

        Raises:
            TooFewParties: somebody who was drawn did not answer.
            Diverged: the model is not finite; names the round.

        Warns:
            TacitWarning: delta is not below one over the number of participants.
        """
        start = parameters_of(task.start)
        participants = len(task.owners)
        release = self.release(participants, sum(array.size for array in start))
        warn_of_delta(self.delta, participants)
        server = _Server(
            scheme=self, release=release, members=sorted(hub.members()),
            coins=seat.coins.child(f"user-level {seat.coins.bytes(16).hex()}"), model=start,
        )  # fmt: skip
        if (state := checkpoint.load(hub.cost)) is not None:
            server.restore(state)
        for round in range(server.round, self.rounds):
            drawn = server.draw()
            checkpoint.save(server.export(), hub.cost)
            expected = self.expected(participants)
            request = Message("round", model=server.model, round=round, expected=expected)
            replies = ask(hub, dict.fromkeys(drawn, request), deadline=self.deadline)
            with hub.cost.timed(hub.coordinator):
                server.move(replies)
            checkpoint.save(server.export(), hub.cost)
            progress(round + 1, self.rounds)
        finished = Message("finished", model=server.model, round=self.rounds)
        ask(hub, dict.fromkeys(hub.members(), finished), deadline=self.deadline)
        model = copy.deepcopy(task.start)
        load_parameters(model, server.model)
        return Run(
            output=Opened(model, (SERVER, *task.owners)),
            cost=hub.cost,
            views=hub.views,
            claims=self.claims(participants, release.coordinates),
            settings=plain_settings(self),
            seeded=seat.coins.seeded,
        )

    def claims(self, participants: int, coordinates: int) -> tuple[Claim, ...]:
        """What is claimed of a run with so many participants, on a model with so many parameters."""
        loss = self.loss(participants, coordinates)
        release = self.release(participants, coordinates)
        stay = Claim(
            statement="No record leaves its owner; updates do, to the server, and may determine records.",
            basis=Basis.PROVED,
            source="by construction: a member's only reply is its clipped update",
            hides=("server", "owner"),
        )
        if math.isinf(loss.epsilon):
            nothing = Claim(
                statement="What the models say about one participant is not bounded: there is no noise, or too little.",
                basis=Basis.PROVED,
                source=f"by construction, or {self.accountant.title}",
                value=loss,
            )
            return nothing, stay
        noise = Claim(
            statement="All models, over all rounds, are differentially private in a whole participant. The server sees "
            "updates.",
            basis=Basis.ACCOUNTED,
            source="McMahan et al., ICLR 2018, algorithm 1 and theorem 1 (recalled); noise on a grid: tacit.dp.noise",
            value=loss,
            assumes=(
                "the server follows the protocol and keeps updates, noise, and who takes part in a round to itself",
                *self._secret_draws,
                *release.assumes,
                "that a participant who was drawn does not answer does not depend on its data",
                ANSWERS_ONCE,
            ),
        )
        return noise, stay

    @property
    def _secret_draws(self) -> tuple[str, ...]:
        if self.sampled is None:
            return ()
        return ("nobody but the server and an owner itself can tell whether it takes part in a round",)  # fmt: skip

    def observe(self, view: View, role: Role) -> Observation:
        """At the server: every clipped update in the clear. At an owner: the models of its rounds, and what moved them.

        Where an owner has the models of two successive rounds, it has the noisy sum behind their difference, and takes its
        own part away.
        """
        seen = Seen(
            rate=1.0, scale=-self.learning_rate, steps=self.local_steps, batch_size=self.batch_size
        )
        if role == SERVER:
            return observe_federated(view, role, seen)
        seen = replace(seen, noisy=self.epsilon is not None or self.noise_multiplier > 0)
        requests = {frame.wave: frame.message() for frame in view.frames()}
        models = {m.integer("round"): tuple(m.arrays("model")) for m in requests.values()}
        aggregates = []
        for frame in view.sent():
            mine, request = frame.message(), requests[frame.wave]
            round = request.integer("round")
            if mine.tag != "update" or round + 1 not in models:
                continue
            # how many took part is secret: the mean is over as many as do on average
            if (count := request.integer("expected", low=1)) > 1:
                mean = _others(models, round, mine, count)
                aggregates.append(seen.update(None, round, mean, models[round], count - 1))
        return Observation(aggregates=tuple(aggregates), outputs=tuple(sorted(models.items())))

    def sabotaged(self) -> UserLevelDP:
        """The same scheme, deliberately broken: it clips and adds no noise."""
        return replace(self, epsilon=None, noise_multiplier=0.0)


def _others(
    models: dict[int, tuple[Array, ...]], round: int, mine: Message, count: int
) -> tuple[Array, ...]:
    """The mean change of the others between two successive models."""
    before, after, own = models[round], models[round + 1], mine.arrays("update")
    return tuple(
        (count * (np.asarray(b, np.float32) - np.asarray(a, np.float32)) - np.asarray(o, np.float32))
        / np.float32(count - 1)
        for a, b, o in zip(before, after, own, strict=True)
    )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _Server:
    """Where the server stands: the model, the round, and who takes part in it."""

    scheme: UserLevelDP
    release: NoisySum
    members: Sequence[Role]
    coins: Coins = field(repr=False)
    model: list[Array]
    round: int = 0
    drawn: tuple[Role, ...] | None = None

    def draw(self) -> tuple[Role, ...]:
        """Who takes part in this round, unless that was drawn before."""
        if self.drawn is None:
            count = len(self.members)
            places = poisson_sample(
                self.coins.child(f"sample {self.round}"), count, self.scheme.expected(count)
            )
            self.drawn = tuple(self.members[place] for place in places)
        return self.drawn

    def move(self, replies: dict[Role, Message]) -> None:
        """Add the noisy sum of the changes, over the expected number, to the model."""
        total = [np.zeros(array.shape, np.float64) for array in self.model]
        for reply in replies.values():
            try:
                arrays = clipped(reply.arrays("update", like=self.model), self.scheme.clip)
            except Diverged:
                continue  # counts as nothing
            total = [t + np.asarray(a, np.float64) for t, a in zip(total, arrays, strict=True)]
        # a stream a round; a round that is done again has been shown to nobody
        noisy = self.release.release(total, self.coins.child(f"noise {self.round}"))
        expected = np.float32(self.scheme.expected(len(self.members)))
        self.model = [
            np.asarray(m, np.float32) + np.asarray(n, np.float32) / expected
            for m, n in zip(self.model, noisy, strict=True)
        ]
        if not all(np.isfinite(array).all() for array in self.model):
            raise Diverged(f"the model of round {self.round} is not finite; lower the noise")
        self.round, self.drawn = self.round + 1, None

    def export(self) -> Message:
        drawn = [] if self.drawn is None else [self.members.index(role) for role in self.drawn]
        return Message(
            "state", model=self.model, round=self.round, known=int(self.drawn is not None),
            drawn=np.array(drawn, np.int64),
        )  # fmt: skip

    def restore(self, state: Message) -> None:
        self.model = [np.array(a, np.float32) for a in state.arrays("model", like=self.model)]
        self.round = state.integer("round", low=0)
        places = state.array("drawn", dtype="<i8").tolist()
        known = state.integer("known", low=0, high=1)
        self.drawn = tuple(self.members[place] for place in places) if known else None
