"""Federated averaging, or SGD, whose server learns sums of updates and no single one ([6]); with noise shared out, if asked.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017. The protocol, with its
waves, what was changed from the paper and the argument for sessions, stands in `tacit.parties.secure_sum`; this file
trains over it.

Who holds what: each owner its records; the server the model. Kept from the server, even together with some of the owners
(`Agreement.colluders`): every single owner's update and how many examples are behind it. Steps, in each round: (1) the
server hands out the model; (2) each owner computes its update by its `LocalWork`, limits every value to [-clip, clip],
weighs it by its examples over max_examples, and quantises it with stochastic rounding; (3) owners and server run secure
aggregation over it, beside the number of examples and the share of values that had to be limited; (4) the server moves the
model by the weighted mean.

Owners who drop out of a round are not in its sum, and back in the next. With too few left the round ends in `TooFewParties`;
`SecureAggregation.coordinate` tells its ``watch`` the model of each whole round.

**With noise** (``epsilon`` or ``noise_multiplier``) this is differentially private SGD ([4]) whose server need not be
trusted. Each owner draws a secret Poisson lot of its own records in each round, sums their clipped gradients, rounds the
sum to a grid, and adds its share of a discrete Gaussian (`tacit.dp.noise`): what is opened carries all shares. The server
divides by the expected lot, and steps. No count of examples is weighed in or summed. What is accounted is the noise of the
fewest owners that a sum may be over, less those who may tell the server theirs: it holds whoever drops out or colludes, as
far as the protocol bears it. The bound on a record holds for whatever model the server hands out.

**Leaks**: to the server, the weighted mean of each round, the examples in all, the share of values that were limited, and
who took part; to owners, the model of each round. What a sum says about one record is not bounded: see the matrix. With
noise: to the server, noisy sums and who took part, to owners, the models; together, as much as epsilon says about a record.
**Cost**: two waves a round (active: three), two more a session, and
`tacit.parties.secure_sum.agreement.bytes_of_round` bytes an owner, beside the model.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypedDict

import numpy as np
from torch import nn

from tacit.core.claims import Basis, Claim, PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, TacitWarning
from tacit.core.wire import Array, Message, decode, encode
from tacit.crypto import keys
from tacit.crypto.packing import unpack
from tacit.crypto.quantisation import Quantiser
from tacit.dp.accounting import (
    LARGEST_NOISE,
    Accountant,
    Releases,
    least_noise,
    warn_of_delta,
)
from tacit.dp.noise import Accounted, NoisySum
from tacit.dp.sampling import duplicates
from tacit.nn.federated import (
    Progress,
    Rounds,
    Task,
    carried,
    check_sgd,
    honest_work,
    no_insiders,
    silent,
    train_here,
    work_of,
)
from tacit.nn.local_work import HonestTraining, Share, load_parameters, parameters_of
from tacit.nn.lots import LotGradients
from tacit.nn.persample import ClipRule
from tacit.nn.updates import LocalWork, unflattened
from tacit.parties.checkpoints import NOTHING, Checkpoint, Keep, keep_nothing
from tacit.parties.durable import ANSWERS_ONCE
from tacit.parties.neighbours import Sharing, choose_sharing
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Opened, Run, plain_settings
from tacit.parties.seats import Seat
from tacit.parties.secure_sum.agreement import EXTRA, Adversary, Agreement, Masks, least_threshold
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import (
    Aggregate,
    Session,
    aggregate,
    collect_keys,
    open_session,
    share_keys,
)
from tacit.parties.star import SILENT, Hub, Member, Seconds, ask
from tacit.parties.views import COUNTS, Observation, Recording, Update, View

_PRIMITIVES = (
    "X25519, HKDF- and HMAC-SHA-256, AES-128-CTR, AES-256-GCM and Ed25519 are what they are taken for",
    ANSWERS_ONCE,
)

_SPARE = 1e-6
"""Share of delta that is kept for what noise on a grid differs by from normal noise."""

_MOST_EPSILON = 700.0
"""Beyond, exp(epsilon) is no float, and epsilon says nothing."""


_NO_NOISE = 1e-6
"""The least that there is a grid for."""


class _Noise(TypedDict):
    noise_multiplier: float
    records: int
    lot: int


class Graph(Enum):
    """Who shares secrets with whom."""

    COMPLETE = "complete"
    REGULAR = "regular"


class Federated(Enum):
    """What an update is, and how the model moves."""

    AVERAGING = "averaging"  # the change of the model over local steps; the model moves by the mean
    SGD = "sgd"  # the gradient of one batch; the model moves against the mean


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureAggregation:
    """Federated averaging, or SGD, whose server sees sums only.

    Args:
        federated: averaging, or sgd.
        rounds: number of rounds.
        local_steps: steps of each owner in a round; 0 for as many as go through its records once. 1 for sgd.
        batch_size: records a step.
        learning_rate: of the local steps (averaging), or of the server's step (sgd).
        clip: each value of an update is limited to [-clip, clip]; what had to be limited is reported. With noise: bound on
            the L2 norm of a record's gradient.
        bits: of a quantised value. With noise: its deviation is 2^bits grid steps, or up to twice as many.
        epsilon: share out the least noise with which a record's loss in the whole run stays within it; sgd only, and with
            ``batch_size`` records an owner on average.
        noise_multiplier: or share out this noise: the deviation of the sum of all shares over ``clip``.
        delta: with noise: of the claim.
        accountant: with noise: moments, rdp or pld: how the total is computed.
        graph: complete, or regular: for hundreds of owners and more; where none fails with less than the wanted
            probability, because there are too few owners, the complete graph is used.
        threshold: shares that recover a secret in the complete graph; by default the least that is safe; with noise, the
            least that is safe and with which no more than ``dropped`` may be missing.
        corrupted: regular graph, or noise: the share of owners that may collude with the server.
        dropped: regular graph, or noise: the share of owners that may drop out of a round.
        failure: regular graph: the wanted bound on the probability that the graph fails.
        adversary: semi-honest, or active.
        session_rounds: rounds before keys are renewed, and owners who missed the last session's start can join.
        deadline: seconds that a wave may take.
        threads: in which masks are expanded.
        masks: none is for controls: it protects nothing.
    """

    federated: Federated = Federated.AVERAGING
    rounds: int = 120
    local_steps: int = 5
    batch_size: int = 4
    learning_rate: float = 0.1
    clip: float = 1.0
    bits: int = 16
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    accountant: Accountant = Accountant.PLD
    graph: Graph = Graph.COMPLETE
    threshold: int | None = None
    corrupted: float = 0.1
    dropped: float = 0.3
    failure: float = 2.0**-30
    adversary: Adversary = Adversary.SEMI_HONEST
    session_rounds: int = 100
    deadline: Seconds = 600.0
    threads: int = 1
    masks: Masks = Masks.BOTH

    def __post_init__(self) -> None:
        _ = Rounds(rounds=self.rounds, rate=1.0)
        if self.noisy:
            self._check_noise()
        else:
            _ = Quantiser(clip=self.clip, bits=self.bits)
        check_sgd(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            local_steps=self.local_steps or 1,
        )
        if self.federated is Federated.SGD and self.local_steps != 1:
            raise ConfigError(
                f"sgd shares one gradient a round: local_steps must be 1, got {self.local_steps}"
            )
        if self.graph is Graph.REGULAR and self.adversary is Adversary.ACTIVE:
            raise ConfigError("the active variant needs the complete graph: graph=complete")
        if self.graph is Graph.REGULAR and self.threshold is not None:
            raise ConfigError(
                "the regular graph's threshold follows from corrupted, dropped and failure: leave it out"
            )
        if min(self.session_rounds, self.threads) < 1 or not self.deadline > 0:
            raise ConfigError(
                "session_rounds and threads of at least 1 and a deadline above 0 expected, got "
                f"{self.session_rounds}, {self.threads} and {self.deadline}"
            )

    def _check_noise(self) -> None:
        if self.federated is not Federated.SGD or self.local_steps != 1:
            raise ConfigError(
                "noise is for the gradients of single records: with epsilon or noise_multiplier give federated=sgd and "
                "local_steps=1"
            )
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ConfigError("give epsilon or noise_multiplier, not both: the other one follows")
        if self.epsilon is not None and not 0 < self.epsilon <= _MOST_EPSILON:
            raise ConfigError(
                f"epsilon above 0, at most {_MOST_EPSILON:g}, expected, got {self.epsilon}"
            )
        if self.noise_multiplier == 0:
            raise ConfigError("a noise_multiplier above 0 expected; none adds no noise")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta between 0 and 1 expected, got {self.delta}")
        if not (self.corrupted >= 0 and self.dropped >= 0 and self.corrupted + self.dropped < 1):
            raise ConfigError(
                "shares of corrupted and dropped that add up to less than 1 expected, got "
                f"{self.corrupted} and {self.dropped}"
            )
        _ = NoisySum(
            clip=self.clip, noise_multiplier=self.noise_multiplier or 1.0, coordinates=1, bits=self.bits
        )  # fmt: skip

    @property
    def noisy(self) -> bool:
        """Whether noise is shared out."""
        return self.epsilon is not None or self.noise_multiplier is not None

    @property
    def _noise_shows(self) -> bool:
        return self.noisy and self.noise_multiplier != _NO_NOISE

    @property
    def rate(self) -> float:
        """The model moves by ``rate`` times the mean update."""
        return 1.0 if self.federated is Federated.AVERAGING else -self.learning_rate

    def agree(
        self, participants: int, *, dimension: int, max_examples: int, records: int = 0
    ) -> Agreement:
        """What so many parties agree on.

        Args:
            participants: how many.
            dimension: values of an update.
            max_examples: the most examples that an update counts; with noise: the most records of one participant.
            records: with noise: of all participants.

        Raises:
            ConfigError: the settings do not go together with these numbers; epsilon cannot be met.
        """
        least = least_threshold(participants, self.adversary)
        if self.noisy:
            least = max(least, participants - math.floor(self.dropped * participants))
        sharing = Sharing(degree=participants - 1, threshold=self.threshold or least)
        if self.graph is Graph.REGULAR:
            found = choose_sharing(
                participants, corrupted=self.corrupted, dropped=self.dropped, failure=self.failure
            )
            sharing = found or sharing
        agreement = Agreement(
            participants=participants,
            dimension=dimension,
            clip=self.clip,
            bits=self.bits,
            max_examples=max_examples,
            adversary=self.adversary,
            sharing=sharing,
            **self._noise(participants, records),
        )
        if self.noisy:
            self._accounted(agreement)
        return agreement if self.epsilon is None else self._planned(agreement, self.epsilon)

    def _noise(self, participants: int, records: int) -> _Noise:
        if not self.noisy:
            return {"noise_multiplier": 0.0, "records": 0, "lot": 0}
        lot = min(self.batch_size * participants, records)
        return {"noise_multiplier": self.noise_multiplier or 1.0, "records": records, "lot": lot}

    def _planned(self, agreement: Agreement, epsilon: float) -> Agreement:
        """With the noise that meets epsilon."""
        wanted = least_noise(
            epsilon, self.delta * (1 - _SPARE), rate=agreement.lot / agreement.records, steps=self.rounds,
            accountant=self.accountant,
        )  # fmt: skip
        coarse = ConfigError(
            f"epsilon = {epsilon:g} is out of reach on a grid of {self.bits} bits: take more bits"
        )
        noise, found = wanted, Accounted(0.0, 1.0)
        while found.noise_multiplier < wanted:  # again where more noise has a coarser grid
            if noise > LARGEST_NOISE:
                raise coarse
            agreement = replace(agreement, noise_multiplier=noise)
            found, _, _ = self._accounted(agreement)
            noise *= wanted / found.noise_multiplier * (1 + 1e-9)
        if found.delta(epsilon, self.rounds) > self.delta * _SPARE:
            raise coarse
        return agreement

    def colluding(self, agreement: Agreement) -> int:
        """With noise: owners that may tell the server theirs. At least one: an owner knows its own, and sees the models.

        Raises:
            ConfigError: more than secure aggregation bears, or than always leaves the noise of one.
        """
        corrupted = max(1, math.ceil(self.corrupted * agreement.participants))
        most = agreement.least_sum - 1
        if agreement.sharing.dropouts is None:
            most = min(most, agreement.colluders)
        if corrupted > most:
            raise ConfigError(
                f"{corrupted} owners who collude, of {agreement.participants}, are more than {most}, the most that sums "
                f"over at least {agreement.least_sum} bear: lower corrupted or dropped, or raise the threshold"
            )
        return corrupted

    def _accounted(self, agreement: Agreement) -> tuple[Accounted, int, int]:
        """What a round is to an accountant, with the fewest shares of noise that it may have; these; those who collude."""
        release = agreement.release
        if release is None:
            raise ConfigError("no noise was agreed on: give epsilon or noise_multiplier")
        n, corrupted = agreement.participants, self.colluding(agreement)
        shares = agreement.least_sum - corrupted
        return release.accounted(participants=n, missing=n - shares), shares, corrupted

    def loss(self, agreement: Agreement) -> PrivacyLoss | None:
        """With noise: what a run tells about one record, at most; None where that is not bounded.

        Delta includes what the noise differs by from normal noise.
        """
        found, _, _ = self._accounted(agreement)
        release = Releases(agreement.lot / agreement.records, found.noise_multiplier, self.rounds)
        loss = self.accountant.loss([release], self.delta * (1 - _SPARE))
        if loss.epsilon > _MOST_EPSILON:
            return None
        delta = max(self.delta, loss.delta + found.delta(loss.epsilon, self.rounds))
        return replace(loss, delta=delta) if delta < 1 else None

    def members(
        self,
        work: Mapping[Role, LocalWork],
        agreement: Agreement,
        like: Sequence[Array],
        *,
        coins: Coins,
        roles: Sequence[Role] = (),
        seat: Seat | None = None,
    ) -> dict[Role, SecureAggregationMember]:
        """A member around each role's work.

        Args:
            work: what each does with its data.
            agreement: what all agreed on.
            like: arrays of the model's shapes.
            coins: for all secrets; drawn from, so that members made from the same coins later have other secrets.
            roles: all participants, where some of them are in other processes; those of ``work`` by default.
            seat: brings signing keys and the registry for the active variant; by default they are drawn, in a registry that
                all trust.
        """
        roles = roles or sorted(work)
        coins = coins.child(f"members {coins.bytes(16).hex()}")
        identities: Mapping[Role, keys.SigningKey] = {}
        registry: tuple[bytes, ...] = ()
        if self.adversary is Adversary.ACTIVE:
            seat = (seat or Seat(coins=coins)).with_identities(roles)
            identities, registry = seat.identities, _in_order(seat.registry, roles)
        return {
            role: SecureAggregationMember(
                work[role],
                agreement,
                number,
                coins=coins.child(f"member/{role}"),
                rounds=self.rounds,
                like=like,
                masks=self.masks,
                identity=identities.get(role),
                registry=registry,
                threads=self.threads,
            )
            for number, role in enumerate(roles)
            if role in work
        }

    def coordinate(
        self,
        hub: Hub,
        start: Sequence[Array],
        agreement: Agreement,
        *,
        coins: Coins,
        registry: Sequence[bytes] = (),
        progress: Progress = silent,
        watch: Callable[[int, Aggregate, Sequence[Array]], None] | None = None,
        checkpoint: Checkpoint = NOTHING,
    ) -> list[Array]:
        """The server's part: train, and hand out the finished model.

        Args:
            hub: the star of `SecureAggregationMember` s.
            start: the model's parameters, float32.
            agreement: what all agreed on.
            coins: for sessions' names and graphs.
            registry: everybody's public signing keys by number, for the active variant.
            progress: told after each round.
            watch: given, after each round, its number, what the server learned, and the model.
            checkpoint: where it stands is kept before each wave, and gone on with from there.

        Returns:
            The model's parameters.

        Raises:
            TooFewParties: too few were left. `watch` had the model of the last whole round.
            CheatingDetected: somebody's messages do not fit; names who.

        Warns:
            TacitWarning: values were clipped; an owner refused to take part, or returned wrong shares.
        """
        coins = coins.child(f"coordinator {coins.bytes(16).hex()}")
        at = _Stand(model=[np.asarray(array, np.float32) for array in start])
        said: set[Role] = set()

        def opened(round: int) -> Session:
            session = open_session(
                hub, agreement, coins=coins.child(f"session {round}"), round=round, deadline=self.deadline,
                masks=self.masks, threads=self.threads,
            )  # fmt: skip
            session.keep = lambda: checkpoint.save(at.export(), hub.cost)
            return session

        if (state := checkpoint.load(hub.cost)) is not None:
            at.restore(state, opened)
        for round in range(at.round, self.rounds):
            if at.session is None or (
                round % self.session_rounds == 0 and at.session.opened != round
            ):
                at.session = opened(round)
            session = at.session
            if not session.advertised:
                collect_keys(session, coins=coins.child(f"probe {round}"), registry=registry)
            if session.shared is None:
                share_keys(session, round=round)
            last = round + 1 == self.rounds or (round + 1) % self.session_rounds == 0
            found = aggregate(session, at.model, round=round, share_next=not last)
            with hub.cost.timed(hub.coordinator):
                move = unflattened((self.rate * found.mean).astype(np.float32), at.model)
                at.model = [
                    np.asarray(m, np.float32) + u for m, u in zip(at.model, move, strict=True)
                ]
            at.clipped.append(found.clipped)
            at.round = round + 1
            checkpoint.save(at.export(), hub.cost)
            _warn_of(found, round, said)
            if watch is not None:
                watch(round, found, at.model)
            progress(round + 1, self.rounds)
        model, clipped = at.model, at.clipped
        if max(clipped) > 0:
            count, worst = sum(share > 0 for share in clipped), max(clipped)
            warnings.warn(
                f"in {count} of {self.rounds} rounds values of updates were beyond +-{self.clip:g} and were "
                f"limited to it, up to {worst:.2%} of a round's (round {clipped.index(worst)}): raise clip",
                TacitWarning,
                stacklevel=3,
            )
        finished = Message("finished", model=model, round=self.rounds)
        ask(hub, dict.fromkeys(hub.members(), finished), at_least=0, deadline=self.deadline)
        return model

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
            coins: where all secrets come from.
            recording: what to keep of the views.
            progress: told after each round.
            keep: makes the checkpoint from which a run that was killed goes on.

        Raises:
            ConfigError: the settings do not go together with the number of owners.
            DataError: an owner's records are not finite; names the owner.
            TooFewParties: fewer owners than the threshold were left.
            Diverged: the same, because training diverged at them; names one, and the round.
        """
        seat = Seat(coins=coins)
        if self.adversary is Adversary.ACTIVE:
            seat = seat.with_identities(task.owners)
        return train_here(self, task, seat, recording=recording, progress=progress, keep=keep)

    def agreed(self, task: Task) -> Agreement:
        """What the parties of a task agree on."""
        start = parameters_of(task.start)
        steps = [self.local_steps or max(1, count // self.batch_size) for count in task.records]
        return self.agree(
            len(task.owners),
            dimension=sum(array.size for array in start),
            max_examples=max(task.records) if self.noisy else self.batch_size * max(steps),
            records=sum(task.records),
        )

    def members_of(self, task: Task, seat: Seat) -> dict[Role, Member]:
        """A member for each owner whose records are in this process.

        Raises:
            ConfigError: with noise, an owner is to do something in place of honest training.
        """
        if self.noisy:
            no_insiders(
                task,
                "what an owner adds to a noisy sum are clipped gradients of single records in a secret lot, and no update "
                "over steps; take noise away, or another scheme",
            )
        agreement = self.agreed(task)
        work: Mapping[Role, LocalWork] = (
            self.lots(task, agreement, coins=seat.coins)
            if self.noisy
            else work_of(task, self.work(task))
        )
        made = self.members(
            work, agreement, parameters_of(task.start),
            coins=seat.coins, roles=task.owners, seat=seat,
        )  # fmt: skip
        return carried(made, work)

    def run(
        self,
        hub: Hub,
        task: Task,
        seat: Seat,
        *,
        progress: Progress = silent,
        checkpoint: Checkpoint = NOTHING,
    ) -> Run[Opened[nn.Module]]:
        """The coordinator's part: see `coordinate`. The active variant takes the registry from the seat."""
        agreement = self.agreed(task)
        if self.noisy:
            warn_of_delta(self.delta, agreement.records)
        model = copy.deepcopy(task.start)
        trained = self.coordinate(
            hub,
            parameters_of(task.start),
            agreement,
            coins=seat.coins,
            registry=_in_order(seat.registry, task.owners) if seat.registry else (),
            progress=progress,
            checkpoint=checkpoint,
        )
        load_parameters(model, trained)
        return Run(
            output=Opened(model, (SERVER, *task.owners)),
            cost=hub.cost,
            views=hub.views,
            claims=self.claims(agreement),
            settings=plain_settings(self),
            seeded=seat.coins.seeded,
        )

    def lots(self, task: Task, agreement: Agreement, *, coins: Coins) -> dict[Role, LotGradients]:
        """With noise: the work of every owner whose records are here: sums of clipped gradients over secret lots.

        Args:
            task: what is to be learned.
            agreement: what all agreed on.
            coins: for the lots; drawn from, so that other work made from the same coins later has other lots.

        Raises:
            DataError: an owner's records are not finite; names the owner.
            UnsupportedLayer: a parameter of the model is frozen.

        Warns:
            TacitWarning: an owner's records repeat; the model has dropout.
        """
        coins = coins.child(f"lots {coins.bytes(16).hex()}")
        made = {}
        for role, honest in honest_work(task, Share.GRADIENT, batch_size=1).items():
            duplicates(honest.inputs.numpy())
            made[role] = LotGradients(
                module=honest.module,
                inputs=honest.inputs,
                labels=honest.labels,
                rule=ClipRule(bound=self.clip),
                lot=agreement.lot,
                total=agreement.records,
                coins=coins.child(f"lot/{role}"),
            )
        return made

    def work(self, task: Task) -> dict[Role, HonestTraining]:
        """Without noise: honest training on its own records for every owner whose records are here.

        Raises:
            DataError: an owner's records are not finite; names the owner.
        """
        averaging = self.federated is Federated.AVERAGING
        return honest_work(
            task,
            Share.CHANGE if averaging else Share.GRADIENT,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            learning_rate=self.learning_rate if averaging else 0.0,
        )

    def claims(self, agreement: Agreement) -> tuple[Claim, ...]:
        """What is claimed of a run with these settings."""
        records = Claim(
            statement="No record leaves its owner.",
            basis=Basis.PROVED,
            source="by construction: a member's only replies are keys, signatures, shares, seeds and commitments, and its "
            "update, masked or not",
            hides=("server", "owner"),
        )
        if self.masks is Masks.NONE:
            return (
                Claim(
                    statement="Nothing here hides an update: masks are left out.",
                    basis=Basis.PROVED,
                    source="by construction",
                ),
                records,
            )
        sharing, regular = agreement.sharing, agreement.sharing.dropouts is not None
        sessions = -(-self.rounds // self.session_rounds)
        told = (
            "with their shares of the noise"
            if self.noisy
            else "their examples in all, the share of values that were limited"
        )
        return (
            Claim(
                statement="Of the owners' updates the server learns, in each round, the sum over those who stayed, at least "
                f"{agreement.least_sum}, {told}, and nothing more ({sharing}"
                + (f"; value: over {sessions} sessions and {self.rounds} rounds" if regular else "")
                + ").",
                basis=Basis.PROVED,
                source="[6] section 6 (Bell et al. 2020 for the regular graph; both recalled); keys that serve many rounds: "
                "the argument in tacit.parties.secure_sum",
                value=sharing.failure_over(sessions, self.rounds) if regular else None,
                assumes=(*self._who_may_collude(agreement), *_PRIMITIVES),
            ),
            records,
            *(self._private(agreement) if self.noisy else self._exact(agreement)),
        )

    def _private(self, agreement: Agreement) -> tuple[Claim, ...]:
        loss, (_, shares, corrupted) = self.loss(agreement), self._accounted(agreement)
        release = agreement.release
        if loss is None or release is None:
            return (
                Claim(
                    statement="What the sums and the models say about one record is not bounded: there is too little noise.",
                    basis=Basis.PROVED,
                    source=f"{self.accountant.title}, of noise shared out: tacit.dp.noise",
                ),
            )
        return (
            Claim(
                statement="All sums that are opened, and all models, are differentially private.",
                basis=Basis.ACCOUNTED,
                source="Abadi et al., CCS 2016, algorithm 1 and theorem 2 (recalled); noise shared out: tacit.dp.noise",
                value=loss,
                assumes=(
                    f"at most {corrupted} of {agreement.participants} owners tell the server their noise, or add none: of a "
                    f"round's noise {shares} of {agreement.participants} shares are accounted",
                    *self._who_may_collude(agreement),
                    *release.assumes,
                    "nobody tells the size of a lot by the time that an owner takes",
                    "who drops out does not depend on an owner's lot or noise",
                    "a person stands behind one record only; records that occur twice are two",
                    "settings were not chosen by looking at the results of other runs on the same records",
                    *_PRIMITIVES,
                ),
            ),
        )

    def _exact(self, agreement: Agreement) -> tuple[Claim, ...]:
        return (
            Claim(
                statement="A value of the mean update differs from that of the clipped updates by at most so much, where "
                "every owner counts max_examples.",
                basis=Basis.PROVED,
                source="stochastic rounding, by construction: tacit.parties.secure_sum.agreement.Agreement.error_bound",
                value=agreement.error_bound(1, agreement.max_examples),
            ),
            Claim(
                statement="What the sums and the models say about one record is not bounded, nor what sums over different "
                "owners from the same model say together.",
                basis=Basis.PROVED,
                source="by construction: sums are opened exactly, without noise",
            ),
        )

    def _who_may_collude(self, agreement: Agreement) -> tuple[str, ...]:
        several = f"at most {agreement.colluders} of any owner's holders collude with the server"
        if self.adversary is Adversary.ACTIVE:
            return several, "the server deviates as it likes, but public signing keys are authentic"
        honest = (
            "the server and the owners follow the protocol, and the server relays keys unchanged"
        )
        if agreement.sharing.dropouts is None:
            return several, honest
        n = agreement.participants
        return (
            f"at most {math.ceil(self.corrupted * n)} of {n} owners collude with the server, and at most "
            f"{agreement.sharing.dropouts} drop out of a round",
            "who does, does not depend on the order that the server draws",
            honest,
        )

    def observe(self, view: View, role: Role) -> Observation:
        """At the server: every owner's masked vector, and the means that it opened. At an owner: models and means.

        An owner's means hold its own update too. In the regular graph it sees its neighbours' dropouts alone.
        """
        sent = {(frame.wave, frame.peer): frame.message() for frame in view.sent()}
        came = [(frame, frame.message()) for frame in view.frames()]
        asked = list(sent.values()) if role == SERVER else [message for _, message in came]
        agreed = next((m for m in asked if m.tag == "advertise"), None)
        if agreed is None:
            return Observation()
        agreement = self.agree(
            agreed.integer("participants"),
            dimension=agreed.integer("dimension"),
            max_examples=agreed.integer("max_examples"),
            records=agreed.integer("records"),
        )
        with_model = [m for m in asked if m.tag in ("mask", "finished")]
        models = {m.integer("round"): tuple(m.arrays("model")) for m in with_model}
        updates = []
        for frame, message in came:
            if message.tag == "masked":
                round = sent[frame.wave, frame.peer].integer("round")
                values = self._as_values(message, models[round], agreement)
                updates.append(self._seen(frame.peer, round, values, models[round]))
        if role == SERVER:
            senders = Counter(m.integer("round") for m in asked if m.tag == "unmask")
        else:
            lists = {m.integer("round"): m.array("survivors") for m in asked if m.tag == "unmask"}
            senders = Counter(
                {
                    r: agreement.participants - flags.size + int(flags.sum())
                    for r, flags in lists.items()
                }
            )
        means = [
            replace(
                self._seen(
                    None,
                    round,
                    _difference(models[round + 1], models[round], self.rate),
                    models[round],
                ),
                senders=count,
                noisy=self._noise_shows,
            )
            for round, count in sorted(senders.items())
            if round + 1 in models
        ]
        return Observation(
            updates=tuple(updates), aggregates=tuple(means), outputs=tuple(sorted(models.items()))
        )

    def _seen(
        self, sender: Role | None, round: int, arrays: tuple[Array, ...], model: tuple[Array, ...]
    ) -> Update:
        averaging = self.federated is Federated.AVERAGING
        return Update(
            sender=sender,
            round=round,
            arrays=arrays,
            model=model,
            scale=-self.learning_rate if averaging else 1.0,
            steps=self.local_steps,
            batch_size=self.batch_size,
            noisy=self.masks is Masks.BOTH or self._noise_shows,
        )

    def _as_values(
        self, masked: Message, model: Sequence[Array], agreement: Agreement
    ) -> tuple[Array, ...]:
        """A masked vector, read as if nothing masked it: with noise, its sum over the expected lot of one owner."""
        packed = np.array(masked.array("vector", dtype="u1"), np.uint8)
        whole = unpack(packed, agreement.length, agreement.width, agreement.dtype)
        values = agreement.decoded(whole[:-EXTRA], 1, agreement.max_examples)
        if self.noisy:
            values *= agreement.participants
        return unflattened(values.astype(np.float32), model)

    def sabotaged(self) -> SecureAggregation:
        """The same scheme, deliberately broken: updates leave without masks, and with as good as no noise."""
        if self.noisy:
            return replace(self, masks=Masks.NONE, epsilon=None, noise_multiplier=_NO_NOISE)
        return replace(self, masks=Masks.NONE)


@dataclass(slots=True)
class _Stand:
    """Where the server stands: the model, the next round, and its session."""

    model: list[Array]
    round: int = 0
    clipped: list[float] = field(default_factory=list)
    session: Session | None = None

    def export(self) -> Message:
        session = b"" if self.session is None else encode(self.session.export())
        clipped = np.array(self.clipped, np.float64)
        return Message(
            "server", model=self.model, round=self.round, clipped=clipped, session=session
        )

    def restore(self, state: Message, opened: Callable[[int], Session]) -> None:
        self.model = [np.array(a, np.float32) for a in state.arrays("model", like=self.model)]
        self.round = state.integer("round", low=0)
        clipped = state.array("clipped", dtype="<f8", shape=(self.round,))
        self.clipped = np.asarray(clipped, np.float64).tolist()
        if session := state.blob("session"):
            self.session = opened(self.round)
            self.session.restore(decode(session))


def _in_order(registry: Mapping[Role, bytes], roles: Sequence[Role]) -> tuple[bytes, ...]:
    """Public signing keys by number.

    Raises:
        ConfigError: a participant has none.
    """
    if missing := [role for role in roles if role not in registry]:
        raise ConfigError(
            f"no signing key of {missing[0]} is registered: the registry must name every owner of the federation"
        )
    return tuple(registry[role] for role in roles)


def _difference(after: Sequence[Array], before: Sequence[Array], rate: float) -> tuple[Array, ...]:
    """The mean update between two models."""
    return tuple(
        (np.asarray(a, np.float32) - np.asarray(b, np.float32)) / np.float32(rate)
        for a, b in zip(after, before, strict=True)
    )


def _warn_of(found: Aggregate, round: int, said: set[Role]) -> None:
    """A word, once an owner, on those who refused to take part, or returned wrong shares."""
    for role, why in found.missing.items():
        if role not in said and not why.endswith(SILENT):
            said.add(role)
            warnings.warn(
                f"round {round}: {role} did not take part ({why})", TacitWarning, stacklevel=4
            )
    for role in sorted({*found.cheated, *(one for pair in found.disputed for one in pair)} - said):
        said.add(role)
        fault = "returned or dealt" if role in found.cheated else "may have returned or dealt"
        warnings.warn(
            f"round {round}: {role} {fault} shares that do not fit; the sum was recovered without them",
            TacitWarning,
            stacklevel=4,
        )
