"""The federated round: the coordinator hands out the model, members send updates, their mean moves the model.

Shared by every scheme in which a server sees (perhaps protected) updates of single members; how an update is protected is
the `LocalWork` that the member is built around.

What each role sees: the server every update, as it was sent; a member the model of every round, and so, from two of them,
the mean update of that round, from which it can take its own away.

**Cost**: a round is two messages in a chain and 2 * members * (4 * parameters + about 100) bytes.
Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-efficient learning of deep networks from
decentralized data" (AISTATS 2017), algorithm 1.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    DataError,
    Diverged,
    ProtocolError,
    TacitWarning,
)
from tacit.core.wire import Array, Message, decode, encode
from tacit.nn.local_work import (
    HonestTraining,
    Instead,
    Share,
    Stateful,
    load_parameters,
    parameters_of,
)
from tacit.nn.updates import LocalWork
from tacit.parties.checkpoints import NOTHING, Checkpoint, Keep, keep_nothing
from tacit.parties.links.local import LocalHub, Timing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.runs import Opened, Run
from tacit.parties.seats import Seat
from tacit.parties.star import Hub, Member, Seconds, ask
from tacit.parties.views import COUNTS, Arrays, Observation, Recording, Update, View

FloatArray = npt.NDArray[np.float32]

Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""


MOST = 10_000_000
"""The most rounds, steps or records of a batch that a setting may ask for."""


Shard = tuple[Tensor, Tensor]
"""An owner's records, float32 (n, *input shape), and their labels, int64 (n,)."""


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be learned, by whom.

    Args:
        name: of the data set.
        start: the model before training.
        shards: each owner's records and labels; None for an owner whose records are not in this process.
        input_shape: of one record.
        classes: number of classes.
        seed: of the order in which owners go through their records.
        counts: each owner's number of records, which is public; needed where shards are not here.
        instead: what some owners do in place of honest training, in the process that holds their records: see `Instead`.
            Nothing of it travels, and nobody else is told.

    Raises:
        ConfigError: there is no owner, or a size is not positive; ``instead`` names somebody without records here.
        DataError: an owner's records or labels are not of that form, or not as many as ``counts`` says; names the owner.
    """

    name: str
    start: nn.Module = field(repr=False)
    shards: tuple[Shard | None, ...] = field(repr=False)
    input_shape: tuple[int, ...]
    classes: int
    seed: int = 0
    counts: tuple[int, ...] = ()
    instead: Mapping[Role, Instead] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.shards or self.classes < 1:
            raise ConfigError(
                f"at least one owner and one class expected, got {len(self.shards)} and {self.classes}"
            )
        if self.counts and len(self.counts) != len(self.shards):
            raise ConfigError(
                f"{len(self.counts)} numbers of records for {len(self.shards)} owners"
            )
        if strangers := self.instead.keys() - self.here().keys():
            raise ConfigError(
                f"{min(strangers)} cannot do anything in place of honest training: it has no records in this process"
            )
        for role, (inputs, _) in self.here().items():
            if self.counts and len(inputs) != self.counts[role.index]:
                raise DataError(
                    f"{role} has {len(inputs)} records where {self.counts[role.index]} were agreed on: change the number "
                    "for all, or the records"
                )
        self._check_shards()

    @property
    def owners(self) -> tuple[Role, ...]:
        """Everybody who has records."""
        return owners(len(self.shards))

    @property
    def records(self) -> tuple[int, ...]:
        """Each owner's number of records; 0 where nothing says so."""
        said = self.counts or (0,) * len(self.shards)
        return tuple(
            count if shard is None else len(shard[0])
            for shard, count in zip(self.shards, said, strict=True)
        )

    def here(self) -> dict[Role, Shard]:
        """The records that are in this process."""
        return {
            role: shard
            for role, shard in zip(self.owners, self.shards, strict=True)
            if shard is not None
        }

    def only(self, *roles: Role) -> Task:
        """The same task with nobody's records but those of ``roles``."""
        kept = tuple(
            shard if role in roles else None
            for role, shard in zip(self.owners, self.shards, strict=True)
        )
        others = {role: one for role, one in self.instead.items() if role in roles}
        return replace(self, shards=kept, counts=self.records, instead=others)

    def _check_shards(self) -> None:
        for role, (inputs, labels) in self.here().items():
            shape, dtype = tuple(inputs.shape), inputs.dtype
            if dtype != torch.float32 or shape[1:] != self.input_shape or not len(inputs):
                raise DataError(
                    f"the records of {role} must be float32, at least one row of shape {self.input_shape} each, not {dtype} "
                    f"of shape {shape}"
                )
            if labels.dtype != torch.int64 or labels.shape != (len(inputs),):
                raise DataError(
                    f"the labels of {role} must be int64 of shape ({len(inputs)},), one a record, not {labels.dtype} of "
                    f"shape {tuple(labels.shape)}"
                )
            low, high = (int(bound) for bound in torch.aminmax(labels))
            if low < 0 or high >= self.classes:
                raise DataError(
                    f"the labels of {role} must be from 0 to {self.classes - 1}, but are from {low} to {high}"
                )


class FederatedMember:
    """A member that answers each round once, with the update of its work.

    Args:
        work: what it does with its data.
        like: the model's shapes.
        rounds: how many rounds it answers: what a privacy claim counts, the member must enforce.
    """

    def __init__(self, work: LocalWork, like: Sequence[Array], *, rounds: int) -> None:
        self._work = work
        self._like = like
        self._rounds = rounds
        self._next = 0  # the next round that may be answered

    def handle(self, request: Message) -> Message:
        """The update of a round, or an acknowledgement of the finished model.

        Raises:
            ProtocolError: the round was answered before, or the message is of another kind.
            BudgetExhausted: the round is beyond those that were agreed on.
            Diverged: the model is not finite.
        """
        model = request.arrays("model", like=self._like)
        if request.tag == "finished":
            return Message("thanks")
        if request.tag != "round":
            raise ProtocolError(f"expected 'round' or 'finished', came {request.tag!r}")
        round = request.integer("round", low=0, high=1 << 31)
        if round < self._next:
            raise ProtocolError(
                f"round {round} was answered before; an update is sent once a round"
            )
        if round >= self._rounds:
            raise BudgetExhausted(f"round {round} asked, {self._rounds} rounds were agreed on")
        if not all(np.isfinite(_float(array)).all() for array in model):
            raise Diverged(f"the model of round {round} is not finite; lower the learning rate")
        self._next = round + 1
        update = self._work.update(model, round)
        return Message("update", update=update.arrays, examples=update.examples)

    def export(self) -> bytes:
        """The next round to answer; the work draws everything else from its seed and the round."""
        return encode(Message("state", next=self._next))

    def restore(self, state: bytes) -> None:
        """Continue from an exported state.

        Raises:
            WireError: these bytes are not one.
        """
        self._next = decode(state).integer("next", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How federated training runs.

    Args:
        rounds: number of rounds.
        rate: the model moves by ``rate`` times the mean update: minus the learning rate for gradients, 1 for changes.
        at_least: members that must reply; None for all.
        deadline: seconds that a round may take.
    """

    rounds: int
    rate: float
    at_least: int | None = None
    deadline: Seconds = 600.0

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MOST or self.rate == 0 or not math.isfinite(self.rate):
            raise ConfigError(
                f"rounds from 1 to {MOST} and a finite rate other than 0 expected, got {self.rounds} and {self.rate}"
            )


def check_sgd(*, batch_size: int, learning_rate: float, local_steps: int = 1) -> None:
    """Check the settings of SGD.

    Raises:
        ConfigError: one is out of range.
    """
    sizes = (batch_size, local_steps)
    if min(sizes) < 1 or max(sizes) > MOST or not 0 < learning_rate < 1e38:
        raise ConfigError(
            f"batch_size and local_steps from 1 to {MOST} and a finite learning_rate above 0 expected, got "
            f"{batch_size}, {local_steps} and {learning_rate}"
        )


def train_federated(
    hub: Hub,
    start: nn.Module,
    settings: Rounds,
    *,
    progress: Progress = silent,
    checkpoint: Checkpoint = NOTHING,
) -> list[Array]:
    """The coordinator's part: run all rounds and hand out the finished model.

    Args:
        hub: the star of `FederatedMember` s.
        start: the model before the first round.
        settings: how it runs.
        progress: told after each round.
        checkpoint: where it stands is kept after each round, and gone on with from there.

    Returns:
        The model's parameters, float32.

    Raises:
        TooFewParties: a round got fewer replies than needed.
        Diverged: an update is not finite.
        OutputError: the checkpoint cannot be written.

    **Leaks**: to the server, each member's update of each round; to each member, the model of each round.
    """
    model = parameters_of(start)
    members = hub.members()
    first = counted = examples = 0  # counted: behind the mean that led to the model handed out
    if (state := checkpoint.load(hub.cost)) is not None:
        model = state.arrays("model", like=model)
        first, counted, examples = (state.integer(n) for n in ("round", "counted", "examples"))
    for round in range(first, settings.rounds):
        request = Message("round", model=model, round=round, counted=counted, examples=examples)
        replies = ask(
            hub,
            dict.fromkeys(members, request),
            at_least=settings.at_least,
            deadline=settings.deadline,
        )
        counted, examples = (
            len(replies),
            sum(r.integer("examples", low=1) for r in replies.values()),
        )
        with hub.cost.timed(hub.coordinator):
            move = mean_update(replies, model, round)
            model = [
                _float(m) + np.float32(settings.rate) * u for m, u in zip(model, move, strict=True)
            ]
        checkpoint.save(
            Message("state", model=model, round=round + 1, counted=counted, examples=examples),
            hub.cost,
        )
        progress(round + 1, settings.rounds)
    finished = Message(
        "finished", model=model, round=settings.rounds, counted=counted, examples=examples
    )
    ask(
        hub,
        dict.fromkeys(members, finished),
        at_least=settings.at_least,
        deadline=settings.deadline,
    )
    return model


def mean_update(
    replies: dict[Role, Message], model: Sequence[Array], round: int
) -> list[FloatArray]:
    """The mean of the updates, weighted by examples.

    Raises:
        Diverged: an update is not finite; names its sender and the round.
    """
    total = sum(reply.integer("examples", low=1, high=1 << 40) for reply in replies.values())
    mean = [np.zeros(m.shape, np.float32) for m in model]
    for role, reply in replies.items():
        arrays = reply.arrays("update", like=model)
        if not all(np.isfinite(_float(array)).all() for array in arrays):
            raise Diverged(
                f"round {round}: the update of {role} is not finite; lower the learning rate"
            )
        weight = np.float32(reply.integer("examples") / total)
        mean = [m + weight * _float(array) for m, array in zip(mean, arrays, strict=True)]
    return mean


def _float(array: Array) -> FloatArray:
    return np.asarray(array, np.float32)


def honest_work(
    task: Task,
    share: Share,
    *,
    batch_size: int,
    local_steps: int = 1,
    learning_rate: float = 0.0,
    decay: float = 1.0,
    label_smoothing: float = 0.0,
) -> dict[Role, HonestTraining]:
    """Honest training on its own shard for every owner whose records are here: see `HonestTraining`.

    That of owners who do something else is here too: `work_of` puts their work in its place.

    ``local_steps`` of 0 are as many as go through an owner's records once.

    Warns:
        TacitWarning: the model has dropout, whose masks do not follow from any seed here.

    Raises:
        DataError: an owner's records are not finite; names the owner.
    """
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in task.start.modules()):
        warnings.warn(
            "the model has dropout: its masks come from torch's global generator, so that a run with the same seed gives "
            "another model; leave it out, or use label_smoothing or a smaller model",
            TacitWarning,
            stacklevel=3,
        )
    for role, (inputs, _) in task.here().items():
        if not bool(inputs.isfinite().all()):
            raise DataError(
                f"the records of {role} hold values that are not finite: clean them first"
            )
    return {
        role: HonestTraining(
            module=copy.deepcopy(task.start),
            inputs=inputs,
            labels=labels,
            share=share,
            batch_size=batch_size,
            local_steps=local_steps or max(1, len(inputs) // batch_size),
            learning_rate=learning_rate,
            decay=decay,
            label_smoothing=label_smoothing,
            seed=task.seed * 100_003 + role.index,
        )
        for role, (inputs, labels) in task.here().items()
    }


def work_of(task: Task, honest: Mapping[Role, HonestTraining]) -> dict[Role, LocalWork]:
    """What each owner really does: the honest training that it is given, or what the task says in its place.

    The audit, which asks for the records behind an honest update, keeps to `honest_work`.
    """
    return {
        role: task.instead[role](one) if role in task.instead else one
        for role, one in honest.items()
    }


def no_insiders(task: Task, why: str) -> None:
    """For schemes in which no owner trains, or not as it likes.

    Raises:
        ConfigError: somebody should do something else.
    """
    if task.instead:
        raise ConfigError(
            f"{min(task.instead)} cannot do anything in place of honest training here: {why}"
        )


class _Carrying:
    """A member whose work has a state of its own."""

    def __init__(self, member: Member, work: Stateful) -> None:
        self._member = member
        self._work = work

    def handle(self, request: Message) -> Message:
        return self._member.handle(request)

    def export(self) -> bytes:
        return encode(Message("carried", member=self._member.export(), work=self._work.export()))

    def restore(self, state: bytes) -> None:
        message = decode(state)
        member, work = message.blob("member"), message.blob("work")
        self._work.restore(work)
        self._member.restore(member)


def carried(members: Mapping[Role, Member], work: Mapping[Role, LocalWork]) -> dict[Role, Member]:
    """The members, of which those whose work has a state of its own (`Stateful`) keep it with theirs."""
    made = dict(members)
    for role, one in work.items():
        if isinstance(one, Stateful):
            made[role] = _Carrying(made[role], one)
    return made


def federated_members(
    task: Task, work: Mapping[Role, LocalWork], rounds: Rounds
) -> dict[Role, Member]:
    """A member around each role's work."""
    like = parameters_of(task.start)
    members: dict[Role, Member] = {
        role: FederatedMember(one, like, rounds=rounds.rounds) for role, one in work.items()
    }
    return carried(members, work)


def run_federated(
    hub: Hub,
    task: Task,
    rounds: Rounds,
    *,
    progress: Progress = silent,
    checkpoint: Checkpoint = NOTHING,
) -> Opened[nn.Module]:
    """`train_federated`, and the model as a module, which every role holds.

    Raises:
        Diverged: names the owner, the round and its epoch.
    """
    model = copy.deepcopy(task.start)
    trained = train_federated(hub, task.start, rounds, progress=progress, checkpoint=checkpoint)
    load_parameters(model, trained)
    return Opened(model, (SERVER, *task.owners))


class Collaborative(Protocol):
    """A scheme whose parties form a star, wherever they run."""

    def train(
        self,
        task: Task,
        *,
        coins: Coins,
        recording: Recording = COUNTS,
        progress: Progress = silent,
        keep: Keep = keep_nothing,
    ) -> Run[Opened[nn.Module]]:
        """Train on the task's records, all parties in this process."""
        ...

    def members_of(self, task: Task, seat: Seat) -> dict[Role, Member]:
        """A member for each owner whose records are in this process."""
        ...

    def run(
        self,
        hub: Hub,
        task: Task,
        seat: Seat,
        *,
        progress: Progress = silent,
        checkpoint: Checkpoint = NOTHING,
    ) -> Run[Opened[nn.Module]]:
        """The coordinator's part; it needs nobody's records.

        Args:
            hub: the star of this scheme's members.
            task: what is to be learned, by whom.
            seat: this process's coins and keys.
            progress: told how much is done.
            checkpoint: where it stands is kept, and gone on with from there.
        """
        ...


def train_here(
    scheme: Collaborative,
    task: Task,
    seat: Seat,
    *,
    recording: Recording,
    progress: Progress,
    keep: Keep,
    timing: Timing | None = None,
) -> Run[Opened[nn.Module]]:
    """Run a scheme with all parties in this process: its members, a star between them, its coordinator."""
    members = scheme.members_of(task, seat)
    hub = LocalHub(members, recording=recording, timing=timing)
    return scheme.run(hub, task, seat, progress=progress, checkpoint=keep(members))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How to read the frames of federated rounds.

    Args:
        rate: as in `Rounds`.
        scale: an update is ``scale`` times a gradient.
        steps: local steps behind an update.
        batch_size: records a step.
        noisy: updates carry noise.
    """

    rate: float
    scale: float
    steps: int
    batch_size: int
    noisy: bool = False

    def update(
        self, sender: Role | None, round: int, arrays: Arrays, model: Arrays, senders: int = 1
    ) -> Update:
        """An update with these settings filled in."""
        return Update(
            sender=sender, round=round, arrays=arrays, model=model, scale=self.scale, steps=self.steps,
            batch_size=self.batch_size, senders=senders, noisy=self.noisy,
        )  # fmt: skip


def observe_federated(view: View, role: Role, seen: Seen) -> Observation:
    """What an adversary at ``role`` makes of its view of federated rounds.

    At the server: every member's update beside the model that it was made from. At a member: the models of all rounds, and
    the mean update of the others in each round: its own is taken away, by the example counts that the server hands out.
    """
    if role == SERVER:
        return _at_server(view, seen)
    requests = {frame.wave: frame.message() for frame in view.frames()}
    rounds = {wave: message.integer("round") for wave, message in requests.items()}
    handed = {rounds[wave]: message for wave, message in requests.items()}
    own = {rounds[f.wave]: m for f in view.sent() if (m := f.message()).tag == "update"}
    models = {round: tuple(message.arrays("model")) for round, message in sorted(handed.items())}
    aggregates = []
    for round, mine in own.items():
        after = handed.get(round + 1)
        if after is None or after.integer("counted") < 2:
            continue
        total, share = after.integer("examples"), mine.integer("examples")
        others = tuple(
            (total * (_float(b) - _float(a)) / np.float32(seen.rate) - share * _float(o))
            / (total - share)
            for a, b, o in zip(models[round], models[round + 1], mine.arrays("update"), strict=True)
        )
        senders = after.integer("counted") - 1
        aggregates.append(seen.update(None, round, others, models[round], senders))
    return Observation(aggregates=tuple(aggregates), outputs=tuple(models.items()))


def _at_server(view: View, seen: Seen) -> Observation:
    asked = {(frame.wave, frame.peer): frame.message() for frame in view.sent()}
    updates = []
    for frame in view.frames():
        message = frame.message()
        if message.tag == "update":
            request = asked[frame.wave, frame.peer]
            arrays, model = tuple(message.arrays("update")), tuple(request.arrays("model"))
            updates.append(seen.update(frame.peer, request.integer("round"), arrays, model))
    models = {m.integer("round"): tuple(m.arrays("model")) for m in asked.values()}
    return Observation(updates=tuple(updates), outputs=tuple(models.items()))
