"""Selective SGD with a parameter server: participants share a small, chosen part of what they learn.

Source: Reza Shokri, Vitaly Shmatikov, "Privacy-preserving deep learning", ACM CCS 2015 [3]. Its letters are kept:
theta_d, theta_u, gamma, tau, epsilon, c. Where the paper is quoted from memory, "(recalled)" says so.

Who holds what: each owner its records and a local copy of the parameters; the server the global parameters and, for
each, a counter of its updates. Kept from the server and from other owners: the records, and all but a theta_u-th of
what each turn changes. Against: a server and owners who are curious and follow the protocol.

Steps, for each turn of an owner (section 5; figures 3 and 4, recalled):

1. **Download.** The server sends the theta_d-th of the parameters that were updated most often (ties: the first in
   order); the owner overwrites its copies of them. At its first turn an owner gets all, so that all start from the
   same model.
2. **Local training.** SGD on its own records, one epoch unless set otherwise, from the local copy, at a rate that
   decays turn by turn.
3. **Selection.** Of the change of each parameter, clipped to [-gamma, gamma] if gamma is set, at most a theta_u-th is
   chosen: the largest in size, or any at random among those beyond tau.
4. **Upload.** Indices (`tacit.core.indices`) and values. The server adds each value to its parameter and counts the update.

Schedules: *round robin*; *random order*, drawn anew for each pass; *asynchronous*: every owner works all the time,
and what it uploads was learned from a model that others have moved on meanwhile. The first two are sequential: an
owner downloads after the one before it has uploaded.

**Differentially private variant** (section 5.3, recalled): indices and values are chosen by the sparse vector
technique (`tacit.dp.sparse_vector`) with c = theta_u * parameters hits, Delta f = 2 gamma, epsilon_1 = 8/9 epsilon,
epsilon_2 = 2/9 epsilon, s(x) = 2 c Delta f / x: threshold tau + Lap(s(epsilon_1)), fresh after each hit; queries
|clip(change)| + Lap(2 s(epsilon_1)), asked in random order; values clip(change) + Lap(s(epsilon_2)), clipped again.
The paper's epsilon adds up although 8/9 + 2/9 > 1, because s carries a factor 2: values cost epsilon_2 / 2. With
Delta f = 2 gamma for queries too, as printed, a turn costs epsilon; but |clip(change)| lies in [0, gamma] and so
moves by gamma at most, and the same noise costs 5/9 epsilon. The claim states that sum, over all turns. What is
bounded is any change of an owner's *whole* data: the unit is the participant. The paper plots epsilon / c, the budget
of one parameter in one turn; composed over parameters and turns it is huge, and the claim prints it.

What we changed: the first download is whole; local steps, a decaying rate and label smoothing are settings; indices
are packed.

**Leaks**: to the server, per turn, which parameters changed most and by how much, and the number of records behind it;
to each owner, the global parameters at each of its turns, and so sums of what the others uploaded between them.
Selection hides nothing on purpose: `tacit compare` shows how much of a record a hundredth of its gradient gives away.
**Cost**: a turn is two messages, a download and an upload (`upload_bytes`): 4 bytes a value and about
2 + log2(1 / theta_u) bits an index.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
from torch import nn

from tacit.core import indices
from tacit.core.claims import Basis, Claim, PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    CheatingDetected,
    ConfigError,
    Diverged,
    ProtocolError,
    TacitWarning,
    WireError,
)
from tacit.core.wire import Array, Message, decode, encode
from tacit.dp.sparse_vector import SparseVector
from tacit.nn.federated import (
    MOST,
    Progress,
    Task,
    carried,
    check_sgd,
    honest_work,
    silent,
    train_here,
    work_of,
)
from tacit.nn.local_work import (
    Share,
    load_parameters,
    parameters_of,
)
from tacit.nn.turns import Schedule, Turns, serve
from tacit.nn.updates import FloatArray, LocalWork, flattened, unflattened
from tacit.parties.checkpoints import NOTHING, Checkpoint, Keep, keep_nothing
from tacit.parties.durable import ANSWERS_ONCE
from tacit.parties.links.local import Timing
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Opened, Run
from tacit.parties.seats import Seat
from tacit.parties.star import Hub, Member, Seconds
from tacit.parties.views import COUNTS, Arrays, Frame, Observation, Recording, Update, View

Places = npt.NDArray[np.int64]

_LARGE = 1e30
"""More than any bound on a float32 value that means something."""


class Selection(Enum):
    """Which changes are uploaded."""

    LARGEST = "largest"
    RANDOM = "random"


# --- what travels


def share_of(theta: float, parameters: int) -> int:
    """How many parameters a theta-th is: at most that share, and at least one."""
    return max(1, math.floor(theta * parameters * (1 + 1e-12)))  # 0.29 * 100 is 28.999...


def packed(tag: str, places: Places, vector: FloatArray, **fields: int) -> Message:
    """A message with the values of a vector at some places."""
    return Message(
        tag,
        **fields,
        count=len(places),
        places=indices.encode(places, vector.size),
        values=vector[places],
    )


def unpacked(message: Message, parameters: int, most: int) -> tuple[Places, FloatArray]:
    """The places and values of a message.

    Raises:
        WireError: they are not well formed, or more than ``most``.
    """
    count = message.integer("count", low=0, high=most)
    places = indices.decode(message.blob("places"), count, parameters)
    values = message.array("values", dtype="float32", shape=(count,))
    return places, np.asarray(values, np.float32)


def upload_bytes(count: int, parameters: int, examples: int) -> int:
    """The size of an upload's frame: 4 bytes a value, the indices, and less than 100 bytes around them."""
    # Zeros of their length, not none: how far the values are padded depends on it.
    places = bytes(indices.encoded_bytes(count, parameters))
    nothing = Message(
        "upload", examples=examples, count=count, places=places, values=np.empty(0, np.float32)
    )
    return len(encode(nothing)) + 4 * count


# --- the owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """What of a change leaves an owner.

    Args:
        count: the most values that an upload may hold.
        selection: which of them.
        tau: random selection takes changes beyond it only; the sparse vector technique's threshold.
        gamma: values are clipped to [-gamma, gamma]; None for no clipping.
        private: the sparse vector technique that selects in place of ``selection``.
    """

    count: int
    selection: Selection
    tau: float
    gamma: float | None
    private: SparseVector | None

    def select(self, change: FloatArray, coins: Coins) -> tuple[Places, FloatArray]:
        """The places that are uploaded, ascending, and the vector whose values stand there."""
        if self.private is not None:  # a NaN would never be a hit: no noise would cover that
            change = np.nan_to_num(change, nan=0.0)
        if self.gamma is not None:
            change = change.clip(-self.gamma, self.gamma)
        if self.private is not None and self.gamma is not None:
            order = coins.permutation(change.size)
            # Again, in float64: float32(gamma) may lie above gamma, and with it the sensitivity.
            asked = change[order].astype(np.float64).clip(-self.gamma, self.gamma)
            hits, values = self.private.release(np.abs(asked), asked, coins)
            noisy = np.zeros_like(change)
            noisy[order[hits]] = values.clip(-self.gamma, self.gamma)
            return np.sort(order[hits]), noisy
        if self.selection is Selection.LARGEST and self.count == change.size:
            return np.arange(change.size), change
        if self.selection is Selection.LARGEST:
            chosen = np.argpartition(np.abs(change), change.size - self.count)[-self.count :]
        else:
            beyond = np.flatnonzero(np.abs(change) > self.tau)
            chosen = beyond[coins.permutation(len(beyond))[: self.count]]
        return np.sort(chosen), change


class SelectiveMember:
    """An owner: local copy, local training, selected upload. It takes each turn once.

    Args:
        work: what it does with its data.
        start: the model before training.
        selector: what leaves it.
        turns: how many turns it takes: what a privacy claim counts, the member must enforce.
        examples: records behind a turn, which is public.
        coins: of random selection, and of noise.
    """

    def __init__(
        self,
        work: LocalWork,
        start: Sequence[Array],
        *,
        selector: Selector,
        turns: int,
        examples: int,
        coins: Coins,
    ) -> None:
        self._work = work
        self._like = start
        self._local = flattened(start)
        self._selector = selector
        self._turns = turns
        self._examples = examples
        self._coins = coins
        self._next = 0  # the next turn that may be taken

    def handle(self, request: Message) -> Message:
        """The upload of a turn, or an acknowledgement of the finished model.

        Raises:
            ProtocolError: the turn was taken before, or the message is of another kind.
            BudgetExhausted: the turn is beyond those that were agreed on.
            Diverged: what came, or what was learned, is not finite.
        """
        if request.tag not in ("start", "turn", "finished"):
            raise ProtocolError(f"expected a turn or 'finished', came {request.tag!r}")
        turn = request.integer("turn", low=0, high=1 << 31)
        if request.tag != "finished" and turn < self._next:
            raise ProtocolError(f"turn {turn} was taken before; an upload is made once a turn")
        if request.tag != "finished" and turn >= self._turns:
            raise BudgetExhausted(f"turn {turn} asked, {self._turns} turns were agreed on")
        if request.tag == "turn":
            places, values = unpacked(request, self._local.size, self._local.size)
        else:
            places = np.arange(self._local.size)
            values = flattened(request.arrays("model", like=self._like))
        if not np.isfinite(values).all():
            raise Diverged(f"the parameters of turn {turn} are not finite; lower the learning rate")
        local = self._local.copy()
        local[places] = values
        if request.tag == "finished":
            self._local = local
            return Message("thanks")
        change = self._learned(local, turn)
        self._next, self._local = turn + 1, local + change
        # A stream a turn and local copy: a member that was restored from a backup, and starts from other parameters, must
        # not answer with the same noise, or the difference of both answers would have none.
        copied = hashlib.sha256(local.tobytes()).hexdigest()
        coins = self._coins.child(f"turn {turn}, copy {copied}")
        chosen, vector = self._selector.select(change, coins)
        return packed("upload", chosen, vector, examples=self._examples)

    def _learned(self, local: FloatArray, turn: int) -> FloatArray:
        try:
            return flattened(self._work.update(unflattened(local, self._like), turn).arrays)
        except Diverged:
            if self._selector.private is None:
                raise
            # That training diverged, or an error's text, would tell something that no epsilon covers.
            return np.zeros_like(local)

    def export(self) -> bytes:
        """The next turn and the local copy; the work draws everything else from its seed and the turn."""
        return encode(Message("state", next=self._next, local=self._local))

    def restore(self, state: bytes) -> None:
        """Continue from an exported state.

        Raises:
            WireError: these bytes are not one.
        """
        message = decode(state)
        local = message.array("local", dtype="float32", shape=self._local.shape)
        self._next, self._local = message.integer("next", low=0), np.array(local)


# --- the server


@dataclass(slots=True, kw_only=True)
class ParameterServer:
    """The server's state: global parameters, and how often each was updated.

    Args:
        like: arrays of the model's shapes.
        parameters: all of them as one vector.
        most_down: values in a download.
        most_up: values in an upload.
        gamma: as in `Selector`.
    """

    like: Sequence[Array] = field(repr=False)
    parameters: FloatArray = field(repr=False)
    most_down: int
    most_up: int
    gamma: float | None = None
    taken: dict[Role, int] = field(default_factory=dict)
    started: set[Role] = field(default_factory=set)
    counters: Places = field(init=False, repr=False)
    refreshed: npt.NDArray[np.bool_] = field(init=False, repr=False)
    clipped: int = 0
    values: int = 0

    def __post_init__(self) -> None:
        self.counters = np.zeros(self.parameters.size, np.int64)
        self.refreshed = np.zeros(self.parameters.size, np.bool_)

    def turn(self, role: Role, participants: int) -> Message:
        """An owner's next turn: the model until it has answered once, then the parameters that were updated most."""
        turn = self.taken.get(role, 0)
        self.taken[role] = turn + 1
        if role not in self.started:  # a lost first download must not be followed by a part
            return Message("start", turn=turn, participants=participants, model=self.model())
        if self.most_down == self.parameters.size:
            places = np.arange(self.parameters.size)
        else:
            places = np.sort(np.argsort(-self.counters, kind="stable")[: self.most_down])
        self.refreshed[places] = True
        return packed("turn", places, self.parameters, turn=turn)

    def add(self, role: Role, upload: Message) -> None:
        """Add an upload's values to the parameters.

        Raises:
            WireError: it is malformed or holds more values than agreed on; names the owner.
            ProtocolError: it is no upload.
            Diverged: a value is not finite; names the owner and the turn.
            CheatingDetected: a value is beyond gamma.
        """
        if upload.tag != "upload":
            raise ProtocolError(f"{role}: expected 'upload', came {upload.tag!r}")
        try:
            places, values = unpacked(upload, self.parameters.size, self.most_up)
            upload.integer("examples", low=1)
        except WireError as error:
            raise WireError(f"{role}: {error}") from error
        if not np.isfinite(values).all():
            turn = self.taken[role] - 1
            raise Diverged(
                f"turn {turn}: the upload of {role} is not finite; lower the learning rate"
            )
        if self.gamma is not None and (np.abs(values) > np.float32(self.gamma)).any():
            raise CheatingDetected(f"{role} uploaded a value beyond gamma = {self.gamma:g}")
        self.started.add(role)
        at = slice(None) if places.size == self.parameters.size else places  # much faster
        self.parameters[at] += values
        self.counters[at] += 1
        self.values += values.size
        if self.gamma is not None:
            self.clipped += int((np.abs(values) >= np.float32(self.gamma)).sum())

    def finished(self) -> Message:
        """The finished model, for everybody."""
        return Message("finished", turn=max(self.taken.values(), default=0), model=self.model())

    def export(self) -> Message:
        """Parameters, counters, and how many turns each owner was asked for."""
        roles = sorted(self.taken)
        return Message(
            "state",
            parameters=self.parameters,
            counters=self.counters,
            refreshed=self.refreshed,
            kinds=[role.kind for role in roles],
            turns=np.array(
                [[r.index, self.taken[r], r in self.started] for r in roles], np.int64
            ).reshape(-1, 3),
            clipped=self.clipped,
            values=self.values,
        )

    def restore(self, state: Message) -> None:
        """Continue from an exported state.

        Raises:
            WireError: it is not one of a model of this size.
        """
        size = (self.parameters.size,)
        self.parameters = np.array(state.array("parameters", dtype="<f4", shape=size), np.float32)
        self.counters = np.array(state.array("counters", dtype="<i8", shape=size), np.int64)
        self.refreshed = np.array(state.array("refreshed", dtype="?", shape=size), np.bool_)
        kinds, turns = state.fields.get("kinds"), state.array("turns", dtype="<i8")
        if not isinstance(kinds, list) or turns.shape != (len(kinds), 3):
            raise WireError("a state that does not say whose turns it counts")
        rows = zip(kinds, turns.tolist(), strict=True)
        known = [(Role(str(kind), index), taken, began) for kind, (index, taken, began) in rows]
        self.taken = {role: taken for role, taken, _ in known}
        self.started = {role for role, _, began in known if began}
        self.clipped, self.values = state.integer("clipped"), state.integer("values")

    def model(self) -> tuple[FloatArray, ...]:
        """The global parameters as the model's arrays; a copy, since a message is kept as it was sent."""
        return unflattened(self.parameters.copy(), self.like)

    def stale(self) -> int:
        """How many parameters were updated, but never sent out after the first download."""
        if not self.refreshed.any():  # no owner has taken a second turn
            return 0
        return int(((self.counters > 0) & ~self.refreshed).sum())


# --- the scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveSGD:
    """Selective SGD on any model.

    Args:
        theta_u: share of the parameters that an upload may hold, in (0, 1].
        theta_d: share of the parameters that a download holds, in (0, 1].
        selection: the largest changes, or random ones among those beyond ``tau``.
        gamma: bound on each uploaded value; None for none. Needed with ``epsilon_over_c``.
        tau: threshold of random selection and of the sparse vector technique.
        epsilon_over_c: budget of one uploaded value in one turn, as the paper states it; None adds no noise.
        epochs: turns that each owner takes.
        local_steps: SGD steps of a turn; 0 for as many as go through an owner's records once.
        batch_size: records a step.
        learning_rate: of the local steps.
        decay: the learning rate is multiplied by this after each of an owner's turns.
        label_smoothing: the share of each label that is spread over all classes.
        schedule: the order of turns.
        jitter: asynchronous owners take from 1 to 1 + jitter units of time a turn.
        at_least: owners who must take all their turns; None for all.
        deadline: seconds that a turn may take.
    """

    theta_u: float = 0.1
    theta_d: float = 1.0
    selection: Selection = Selection.LARGEST
    gamma: float | None = None
    tau: float = 1e-4
    epsilon_over_c: float | None = None
    epochs: int = 14
    local_steps: int = 0
    batch_size: int = 10
    learning_rate: float = 0.05
    decay: float = 0.85
    label_smoothing: float = 0.0
    schedule: Schedule = Schedule.ROUND_ROBIN
    jitter: float = 1.0
    at_least: int | None = None
    deadline: Seconds = 600.0

    def __post_init__(self) -> None:
        for name, theta in (("theta_u", self.theta_u), ("theta_d", self.theta_d)):
            if not 0 < theta <= 1:
                raise ConfigError(
                    f"{name} is a share of the parameters, above 0 and at most 1; got {theta}"
                )
        for name, chosen, kind in (
            ("selection", self.selection, Selection),
            ("schedule", self.schedule, Schedule),
        ):
            if not isinstance(chosen, kind):
                raise ConfigError(f"{name} is one of {', '.join(map(str, kind))}, got {chosen!r}")
        if self.gamma is not None and not 0 < self.gamma < _LARGE:
            raise ConfigError(f"gamma bounds a value: a number above 0, got {self.gamma}")
        if self.selection is Selection.RANDOM and self.gamma is not None and self.tau >= self.gamma:
            raise ConfigError(
                f"tau = {self.tau:g} must be below gamma = {self.gamma:g}: no clipped change is beyond it, and nothing "
                "would be uploaded"
            )
        if not 0 <= self.tau < math.inf:
            raise ConfigError(f"tau is a size: a finite number from 0, got {self.tau}")
        if self.epsilon_over_c is not None:
            if not 0 < self.epsilon_over_c < math.inf:
                raise ConfigError(
                    f"epsilon_over_c is a budget: finite and above 0, got {self.epsilon_over_c}; None adds no noise"
                )
            if self.gamma is None:
                raise ConfigError("epsilon_over_c needs gamma: without a bound no noise suffices")
        if not 1 <= self.epochs <= MOST or not 0 <= self.local_steps <= MOST:
            raise ConfigError(
                f"epochs from 1 and local_steps from 0 to {MOST} expected, got {self.epochs} and {self.local_steps}"
            )
        if (
            not 0 < self.decay <= 1
            or not 0 <= self.label_smoothing < 1
            or not 0 <= self.jitter < math.inf
        ):
            raise ConfigError(
                "decay in (0, 1], label_smoothing in [0, 1) and a jitter from 0 expected, got "
                f"{self.decay}, {self.label_smoothing} and {self.jitter}"
            )
        if (self.at_least is not None and self.at_least < 1) or not self.deadline > 0:
            raise ConfigError(
                f"at_least from 1 and a deadline above 0 expected, got {self.at_least} and {self.deadline}"
            )
        check_sgd(batch_size=self.batch_size, learning_rate=self.learning_rate)

    def sparse_vector(self, parameters: int) -> SparseVector | None:
        """The mechanism of a turn; None where no noise is added.

        Source: section 5.3 of the paper (recalled), with the sensitivities of this module's docstring.
        """
        if self.epsilon_over_c is None or self.gamma is None:
            return None
        c = share_of(self.theta_u, parameters)
        epsilon, sensitivity = self.epsilon_over_c * c, 2 * self.gamma

        def s(x: float) -> float:
            return 2 * c * sensitivity / x

        first, second = 8 / 9 * epsilon, 2 / 9 * epsilon
        return SparseVector(
            hits=c,
            threshold=self.tau,
            query_sensitivity=self.gamma,
            value_sensitivity=2 * self.gamma,
            threshold_scale=s(first),
            query_scale=2 * s(first),
            value_scale=s(second),
        )

    def selector(self, parameters: int) -> Selector:
        """What leaves an owner of a model with that many parameters."""
        return Selector(
            count=share_of(self.theta_u, parameters),
            selection=self.selection,
            tau=self.tau,
            gamma=self.gamma,
            private=self.sparse_vector(parameters),
        )

    def sign_kept(self) -> float:
        """How often a change of gamma keeps its sign under the noise on values: 0.5 is pure noise."""
        if self.epsilon_over_c is None:
            return 1.0
        return 1 - 0.5 * math.exp(-self.epsilon_over_c / 18)  # gamma over s(epsilon_2)

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
            coins: of random selection and of noise.
            recording: what to keep of the views.
            progress: told after each turn.
            keep: makes the checkpoint from which a run that was killed goes on; not in the asynchronous schedule.

        Raises:
            ConfigError: a batch is larger than an owner's records, or more owners are needed than there are.
            DataError: an owner's records are not finite; names the owner, before anything is sent.
            Diverged: names the owner and the turn.
            TooFewParties: fewer owners than needed took all their turns.

        Warns:
            TacitWarning: the noise leaves almost nothing (before training); gamma clips nearly every value, or theta_d
                never refreshes some parameters (after it).
        """
        timing = None
        if self.schedule is Schedule.ASYNCHRONOUS:
            timing = Timing(work=1.0, jitter=self.jitter, seed=f"{task.seed}".encode())
            keep = keep_nothing  # members have answered what the server has not read: no moment is the same for all
        return train_here(
            self,
            task,
            Seat(coins=coins),
            recording=recording,
            progress=progress,
            keep=keep,
            timing=timing,
        )

    def members_of(self, task: Task, seat: Seat) -> dict[Role, Member]:
        """A member for each owner whose records are in this process."""
        start = parameters_of(task.start)
        selector = self.selector(sum(array.size for array in start))
        honest = honest_work(
            task,
            Share.CHANGE,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            learning_rate=self.learning_rate,
            decay=self.decay,
            label_smoothing=self.label_smoothing,
        )
        work = work_of(task, honest)
        members = {
            role: SelectiveMember(
                work[role],
                start,
                selector=selector,
                turns=self.epochs,
                examples=one.local_steps * self.batch_size,
                coins=seat.coins.child(f"selective/{role}"),
            )
            for role, one in honest.items()
        }
        return carried(members, work)

    def run(
        self,
        hub: Hub,
        task: Task,
        seat: Seat,
        *,
        progress: Progress = silent,
        checkpoint: Checkpoint = NOTHING,
    ) -> Run[Opened[nn.Module]]:
        """The coordinator's part: hand out turns, keep the parameters. Raises and warns as `train` does.

        Args:
            hub: the star of `SelectiveMember` s.
            task: what is to be learned, by whom.
            seat: not drawn from: the server has no secrets.
            progress: told after each turn.
            checkpoint: where it stands is kept after each turn, and gone on with from there.
        """
        if self.at_least is not None and self.at_least > len(task.owners):
            raise ConfigError(
                f"at_least {self.at_least} owners needed, there are {len(task.owners)}"
            )
        self._warn_of_noise()
        start = parameters_of(task.start)
        vector = flattened(start)
        server = ParameterServer(
            like=start,
            parameters=vector,
            most_down=share_of(self.theta_d, vector.size),
            most_up=share_of(self.theta_u, vector.size),
            gamma=self.gamma,
        )
        turns = Turns(
            schedule=self.schedule,
            each=self.epochs,
            seed=task.seed,
            at_least=self.at_least,
            deadline=self.deadline,
        )
        serve(hub, server, turns, progress=progress, checkpoint=checkpoint)
        self._warn_of_losses(server)
        model = copy.deepcopy(task.start)
        load_parameters(model, server.model())
        return Run(
            output=Opened(model, (SERVER, *task.owners)),
            cost=hub.cost,
            views=hub.views,
            claims=self.claims(vector.size),
            settings={
                **asdict(self),
                "selection": self.selection.value,
                "schedule": self.schedule.value,
            },
            seeded=seat.coins.seeded,
        )

    def _warn_of_noise(self) -> None:
        if (kept := self.sign_kept()) < 0.55:
            warnings.warn(
                f"epsilon_over_c = {self.epsilon_over_c:g} leaves nearly pure noise: a change of gamma keeps its sign in "
                f"{100 * kept:.1f} % of uploads (50 % is chance); above 1.9 it keeps it in 55 %",
                TacitWarning,
                stacklevel=3,
            )

    def _warn_of_losses(self, server: ParameterServer) -> None:
        if self.epsilon_over_c is None and server.clipped > 0.95 * server.values:
            warnings.warn(
                f"gamma = {self.gamma:g} clips {100 * server.clipped / server.values:.1f} % of the uploaded values: little "
                "more than their signs is learned from; raise gamma or lower the learning rate",
                TacitWarning,
                stacklevel=3,
            )
        if stale := server.stale():
            warnings.warn(
                f"theta_d = {self.theta_d:g} never refreshed {stale} of {server.counters.size} parameters, although others "
                "updated them: owners went on with their own copies; raise theta_d",
                TacitWarning,
                stacklevel=3,
            )

    def claims(self, parameters: int) -> tuple[Claim, ...]:
        """What is claimed of a run on a model with that many parameters."""
        stay = Claim(
            statement="No record leaves its owner.",
            basis=Basis.PROVED,
            source="by construction: an owner's only reply is its selected changes",
            hides=("server", "owner"),
        )
        mechanism = self.sparse_vector(parameters)
        if mechanism is None:
            count = share_of(self.theta_u, parameters)
            part = Claim(
                statement=f"A turn tells the server at most {count} of {parameters} changes. What these say about "
                "records is not bounded: selection is not differential privacy.",
                basis=Basis.PROVED,
                source="[3] section 5; by construction",
            )
            return stay, part
        loss = PrivacyLoss(
            epsilon=self.epochs * mechanism.epsilon,
            delta=0.0,
            neighbouring="all data of one unit replaced, their number kept",
            unit="participant",
            accountant="sparse vector technique, per hit Q/T + 2Q/S + V/R, summed over hits and turns",
            composed=f"{self.epochs} turns of at most {mechanism.hits} values, {mechanism.epsilon:.4g} a turn "
            f"(the paper's epsilon / c = {self.epsilon_over_c:g} counts one value of one turn)",
        )
        noise = Claim(
            statement="Everything that leaves an owner, over all turns, is differentially private.",
            basis=Basis.ACCOUNTED,
            source="[3] section 5.3; Dwork, Roth 2014, theorems 3.23-3.25; Lyu, Su, Li 2017",
            value=loss,
            assumes=(
                "noise is drawn in floating point: its gaps (Mironov 2012) are not accounted for",
                "owners' data are independent of one another (records held by several are bounded by the sum of their "
                "epsilons), and the numbers of their records are public",
                "what a turn's length in time tells is not accounted for",
                ANSWERS_ONCE,
            ),
        )
        return stay, noise

    def observe(self, view: View, role: Role) -> Observation:
        """What an adversary at ``role`` makes of its view.

        At the server: each owner's selected changes, beside the model that it holds, as far as the server sent it. At an
        owner: the models of its turns; in round robin also the mean of what the others uploaded between two of them, its own
        upload taken away. In other schedules it cannot know whose turns lie between.
        """
        if role == SERVER:
            return self._at_server(view)
        return self._at_owner(view, role)

    def _update(self, sender: Role | None, turn: int, examples: int, **more: object) -> Update:
        made = Update(
            sender=sender,
            round=turn,
            arrays=(),
            model=(),
            scale=-self.learning_rate * self.decay**turn,
            steps=examples // self.batch_size,
            batch_size=self.batch_size,
            noisy=self.epsilon_over_c is not None,
            clipped=self.gamma is not None,
        )
        return replace(made, **more)  # type: ignore[arg-type]

    def _at_server(self, view: View) -> Observation:
        waiting: dict[Role, deque[Frame]] = {}
        for frame in view.sent():
            waiting.setdefault(frame.peer, deque()).append(frame)
        turn_of: dict[tuple[Role, int], int] = {}
        copies: dict[Role, _Copy] = {}
        updates, outputs = [], []
        for frame in view.frames():
            upload = frame.message()
            if upload.tag != "upload":
                continue
            known, sent = copies.setdefault(frame.peer, _Copy()), waiting.get(frame.peer, deque())
            while sent and sent[0].wave <= frame.wave:  # those that no upload answered count too
                request = sent[0].message()
                known.take(request)
                turn_of[frame.peer, sent.popleft().wave] = request.integer("turn")
            turn = turn_of.get((frame.peer, frame.wave))
            if turn is None:  # its request was not kept
                continue
            places, values = unpacked(upload, known.vector.size, known.vector.size)
            arrays, seen = known.sparse(places, values)
            model, examples = known.arrays(), upload.integer("examples", low=1)
            updates.append(
                self._update(frame.peer, turn, examples, arrays=arrays, model=model, seen=seen)
            )
            outputs.append((turn, model))
        return Observation(updates=tuple(updates), outputs=tuple(outputs))

    def _at_owner(self, view: View, role: Role) -> Observation:
        own = {frame.wave: m for frame in view.sent() if (m := frame.message()).tag == "upload"}
        known, outputs, aggregates = _Copy(), [], []
        before: tuple[int, Arrays, FloatArray, Places, Message] | None = None
        participants = 0
        for frame in view.frames():
            request = frame.message()
            if request.tag == "start":
                participants = request.integer("participants", low=1)
            turn, places = request.integer("turn"), known.take(request)
            # Between two turns every other owner has one; after its last, only those that come after it.
            others = participants - 1 - (role.index if request.tag == "finished" else 0)
            if (
                before is not None
                and turn == before[0] + 1
                and others > 0
                and self.schedule is Schedule.ROUND_ROBIN
            ):
                last, start, vector, held, mine = before
                at, values = unpacked(mine, vector.size, vector.size)
                moved = known.vector - vector
                moved[at] -= values
                both = np.intersect1d(held, places, assume_unique=True)
                arrays, seen = known.sparse(both, moved[both] / np.float32(others))
                examples = mine.integer("examples", low=1)
                more = {"arrays": arrays, "model": start, "senders": others, "seen": seen}
                aggregates.append(self._update(None, last, examples, **more))
            model, upload = known.arrays(), own.get(frame.wave)
            outputs.append((turn, model))
            before = None
            if upload is not None:
                before = turn, model, known.vector.copy(), places, upload
        return Observation(aggregates=tuple(aggregates), outputs=tuple(outputs))

    def sabotaged(self) -> SelectiveSGD:
        """The same scheme, deliberately broken: without noise if it adds any, else with everything shared and unclipped."""
        if self.epsilon_over_c is not None:
            return replace(self, epsilon_over_c=None)
        return replace(self, theta_u=1.0, theta_d=1.0, selection=Selection.LARGEST, gamma=None)


@dataclass(slots=True)
class _Copy:
    """An owner's copy of the model, as far as downloads tell."""

    like: Sequence[Array] = ()
    vector: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))

    def take(self, request: Message) -> Places:
        """Overwrite what a download holds; gives back its places."""
        if request.tag == "turn":
            places, values = unpacked(request, self.vector.size, self.vector.size)
        else:
            self.like = request.arrays("model")
            values = flattened(self.like)
            self.vector, places = np.empty_like(values), np.arange(values.size)
        self.vector[places] = values
        return places

    def arrays(self) -> Arrays:
        """The copy as the model's arrays."""
        return unflattened(self.vector.copy(), self.like)

    def sparse(self, places: Places, values: FloatArray) -> tuple[Arrays, Arrays | None]:
        """Values at some places as the model's arrays, and where they stand; None where that is everywhere."""
        vector, there = np.zeros(self.vector.size, np.float32), np.zeros(self.vector.size, np.bool_)
        vector[places], there[places] = values, True
        seen = None if there.all() else unflattened(there, self.like)  # type: ignore[arg-type]
        return unflattened(vector, self.like), seen
