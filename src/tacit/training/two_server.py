"""Training on data that neither of two servers sees ([5]).

Mohassel and Zhang, "SecureML: a system for scalable privacy-preserving machine learning", IEEE S&P 2017. (Section numbers
here are recalled.)

Who holds what: each owner its records. Two servers hold shares: of all records and targets, of the weights, and of all that
lies between. A dealer, who may be an owner that takes no other part, makes correlations and sees no data; without one the
servers make them by oblivious transfer. Kept from either server, from the dealer, and from other owners: the records, and,
until it is opened, the model. They must not collude: both servers together know everything, and so does a server with the
dealer.

Steps: (1) All say what they were told to run, and stop where it differs. (2) Each owner encodes its records as fixed-point
numbers, with 13 fractional bits unless told otherwise, and shares them: a seed to server 0, the rest to server 1 (section
4.1). (3) The servers trace the training into a plan of correlations, which are made a window at a time (section 4.1.2;
client-aided: section 7). (4) Each batch is masked and opened the first time it is used, and that serves all epochs (4.2).
(5) Step by step: forward, the error at the output, backward, weights less the rate times the gradient; products by Beaver
triples, truncation by each server on its own share (theorem 1), activations by Boolean circuits on shares. (6) The model is
opened to those whom the owners agreed on, each of whom gets both servers' shares.

What differs from the paper: signs are found by bit-sliced circuits with a dealer, in 6 rounds, and by garbled ones without,
as there; the division of relu-sum is one reciprocal a row; weights and activations are masked once a step.

**Leaks**: to servers and dealer, what all agreed on: the network, the first weights, numbers of records, classes, the order
of batches. To who gets the model, the model: what it says about a record is not bounded (see the matrix). If losses are
shown, each is opened to both servers: the mean over one batch of the squared error, which bounds how well that batch is
known and, batch by batch, tells records that are learned late. **Cost**: see docs/two-server.md.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from tacit.core.claims import Basis, Claim
from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import ConfigError, DataError, ProtocolError
from tacit.core.wire import Array, Message
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.ring import Elements, Ring
from tacit.nn.federated import Progress, Shard, Task, check_sgd, no_insiders, silent
from tacit.nn.local_work import load_parameters, parameters_of
from tacit.nn.spec import ModelSpec
from tacit.parties.checkpoints import NOTHING, Checkpoint, Keep, keep_nothing
from tacit.parties.links.local import PairRun, outputs_of, run_pair
from tacit.parties.pair import Channel, Party
from tacit.parties.roles import Role, owners
from tacit.parties.runs import Held, Opened, Run, plain_settings
from tacit.parties.two_party.arithmetic import Fixed, Kept, open_to_both, square
from tacit.parties.two_party.correlations import Correlation, Material, Part, Plan, renamed, uniform
from tacit.parties.two_party.dealer import KEY_BYTES, Dealt, deal
from tacit.parties.two_party.engine import OnShares
from tacit.parties.two_party.network import Loss, Network, Rate, encode, encoded, network_of
from tacit.parties.two_party.oblivious import ByTransfer
from tacit.parties.two_party.session import OFFLINE, CheckedWire, Expected, Session, start, traced
from tacit.parties.two_party.store import WINDOW, Preprocessor, StreamedStore
from tacit.parties.views import COUNTS, Observation, Recording, Update, View

SERVERS = Role("server", 0), Role("server", 1)
DEALER = Role("dealer")
NOBODY = "nobody"

SAVED_EVERY = 100
"""Steps between two checkpoints."""

_PIECE = 1 << 24  # bytes of a message of shares
_LONGEST = 1 << 20  # bytes of terms
_ENOUGH = 30 * 24 * 3600.0  # seconds; nobody in one process waits for a machine


class Preprocessing(Enum):
    """Who makes correlations."""

    DEALER = "dealer"
    TRANSFERS = "transfers"


class Masks(Enum):
    """What hides opened values. NONE is for controls: it protects nothing."""

    UNIFORM = "uniform"
    NONE = "none"


Told = Callable[[int, float], None]
"""Given the number of a step and the loss of its batch."""


def _unheard(step: int, loss: float) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoServer:
    """Mini-batch SGD by two servers on shares.

    Args:
        loss: squared-error, relu-sum (in place of softmax) or relu-sum-tangent, or logistic (one output, or one a class).
        epochs: passes over the records.
        batch_size: records a step.
        learning_rate: of a step; over the batch's size it is rounded to 8 bits, exactly if both are powers of two.
        decay: the learning rate of an epoch over that of the one before.
        fraction: fractional bits.
        preprocessing: dealer, or transfers between the servers alone.
        window: bytes of correlations that are made at a time.
        apart: make a window whole before it is used, so that offline and online seconds are told apart.
        show_loss: open the loss of one batch in so many steps to both servers; 0 for never.
        open_to: who gets the model: owners, one of them such as "owner 3", or nobody: it stays shared.
        masks: none is for controls: it protects nothing.
    """

    loss: Loss = Loss.SQUARED_ERROR
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.125
    decay: float = 1.0
    fraction: int = 13
    preprocessing: Preprocessing = Preprocessing.DEALER
    window: int = WINDOW
    apart: bool = False
    show_loss: int = 0
    open_to: str = "owners"
    masks: Masks = Masks.UNIFORM

    def __post_init__(self) -> None:
        check_sgd(batch_size=self.batch_size, learning_rate=self.learning_rate)
        _ = FixedPoint(self.fraction)
        if min(self.epochs, self.window) < 1 or self.show_loss < 0 or not 0 < self.decay <= 1:
            raise ConfigError(
                "epochs and window of at least 1, show_loss from 0 and decay above 0, at most 1, expected, got "
                f"{self.epochs}, {self.window}, {self.show_loss} and {self.decay}"
            )
        kind, _, index = self.open_to.partition(" ")
        if self.open_to not in ("owners", NOBODY) and not (kind == "owner" and index.isdigit()):
            raise ConfigError(
                f'open_to: owners, one of them such as "owner 0", or nobody; got {self.open_to!r}'
            )

    @property
    def fixed(self) -> FixedPoint:
        """Ring and precision."""
        return FixedPoint(self.fraction)

    def train(
        self,
        task: Task,
        *,
        coins: Coins,
        recording: Recording = COUNTS,
        progress: Progress = silent,
        keep: Keep = keep_nothing,
        told: Told = _unheard,
    ) -> Run[Opened[nn.Module]]:
        """Train on the task's records, all parties in this process, and open the model.

        Args:
            task: what is to be learned, by whom.
            coins: where all secrets come from.
            recording: what to keep of the views.
            progress: told after each step.
            keep: makes the checkpoint from which a run that was killed goes on.
            told: given each loss that is opened.

        Raises:
            UnsupportedLayer: the model has a layer that cannot be computed on shares.
            RangeError: a value is out of the fixed-point range; names whose, and what would fit.
            ConfigError: the model stays shared (`hold`).
        """
        if self.open_to == NOBODY:
            raise ConfigError("open_to is nobody, so that no model comes out: use hold, or open it")
        run, outputs = self._run(task, coins, recording, progress, keep, told)
        to = self.receivers(task.owners)
        return Run(
            output=Opened(outputs[to[0]], to), cost=run.cost, views=run.views,
            claims=claims_of(self), settings=plain_settings(self), seeded=coins.seeded,
        )  # fmt: skip

    def hold(
        self,
        task: Task,
        *,
        coins: Coins,
        recording: Recording = COUNTS,
        progress: Progress = silent,
        keep: Keep = keep_nothing,
    ) -> Run[Held[Sequence[Elements]]]:
        """As `train`; the model stays shared, for instance for `Prediction`."""
        run, outputs = replace(self, open_to=NOBODY)._run(
            task, coins, recording, progress, keep, _unheard
        )
        held = {role: outputs[role].weights for role in SERVERS}
        return Run(
            output=Held(held), cost=run.cost, views=run.views,
            claims=claims_of(self), settings=plain_settings(self), seeded=coins.seeded,
        )  # fmt: skip

    def _run(
        self,
        task: Task,
        coins: Coins,
        recording: Recording,
        progress: Progress,
        keep: Keep,
        told: Told,
    ) -> tuple[PairRun[Any], Mapping[Role, Any]]:
        no_insiders(task, "owners share their records out, and two servers train")
        checkpoints = _joint(keep({}))
        parties = self.parties_of(
            task, coins, progress=progress, checkpoints=checkpoints, told=told
        )
        done = run_pair(parties, recording=recording, deadline=_ENOUGH)
        return done, outputs_of(done)

    def receivers(self, all_owners: Sequence[Role]) -> tuple[Role, ...]:
        """Who gets the model.

        Raises:
            ConfigError: there is no such owner.
        """
        if self.open_to == NOBODY:
            return ()
        chosen = [o for o in all_owners if self.open_to in ("owners", str(o))]
        if not chosen:
            raise ConfigError(
                f"open_to is {self.open_to!r}, and the last owner is {all_owners[-1]}"
            )
        return tuple(chosen)

    def parties_of(
        self,
        task: Task,
        coins: Coins,
        *,
        progress: Progress = silent,
        checkpoints: Mapping[Role, Checkpoint] | None = None,
        told: Told = _unheard,
        columns: Sequence[str] = (),
    ) -> dict[Role, Party[Any]]:
        """The function of every party: both servers, the owners whose records are here, and the dealer if there is one.

        Args:
            task: what is to be learned, by whom.
            coins: where all secrets come from.
            progress: told by server 0 after each step.
            checkpoints: of the servers.
            told: given each loss that is opened, at server 0.
            columns: names of the records' columns, the same for all owners.
        """
        terms = Terms.of(self, task, columns)
        kept = checkpoints or {}

        def serve(party: int) -> Party[Outcome]:
            role = SERVERS[party]
            return lambda channels: server(
                channels, party, terms, coins.child(str(role)), checkpoint=kept.get(role, NOTHING),
                progress=progress if party == 0 else silent, told=told if party == 0 else _unheard,
            )  # fmt: skip

        def own(role: Role, shard: Shard) -> Party[nn.Module | None]:
            return lambda channels: owner(channels, role, terms, shard, coins.child(str(role)))

        parties: dict[Role, Party[Any]] = {role: serve(role.index) for role in SERVERS}
        for role, shard in task.here().items():
            parties[role] = own(role, shard)
        if self.preprocessing is Preprocessing.DEALER:
            parties[DEALER] = lambda channels: dealer(channels, terms, coins.child(str(DEALER)))
        return parties

    def observe(self, view: View, role: Role) -> Observation:
        """At a server: what it computes from its view, by running its part again on what it received.

        That is each batch as it was opened, less its mask, and the gradients that come of what was opened in each step; but
        where its own draws or its checkpoint are needed too, which are not in a view, the words that it was sent. At an
        owner: the model, if it gets one. At the dealer: the step from which the servers go on.
        """
        if role in SERVERS:
            return _replayed(self, view, role.index)
        if role == DEALER:
            told = [frame.message() for frame in view.frames()]
            steps = [array for one in told if one.tag == "from" for array in one.arrays("arrays")]
            return Observation(intermediates=tuple(("first step", array) for array in steps))
        outputs = []
        if role.kind == "owner":
            shares = [frame.message() for frame in view.frames() if frame.message().tag == "model"]
            if len(shares) == len(SERVERS):
                both = zip(*(tuple(one.arrays("arrays")) for one in shares), strict=True)
                weights = tuple(self.fixed.decode(a + b).astype(np.float32) for a, b in both)
                outputs.append((0, weights))
        return Observation(outputs=tuple(outputs))

    def sabotaged(self) -> TwoServer:
        """The same scheme, deliberately broken: what is opened has no mask."""
        return replace(self, masks=Masks.NONE)


def claims_of(scheme: TwoServer) -> tuple[Claim, ...]:
    """What holds for a run with these settings."""
    if scheme.masks is Masks.NONE:
        return (
            Claim(
                statement="Nothing here hides a record or a weight from the servers: masks are left out.",
                basis=Basis.PROVED,
                source="by construction",
            ),
        )
    assumes = ["the servers follow the protocol, and do not collude with each other"]
    if scheme.preprocessing is Preprocessing.DEALER:
        assumes.append("the dealer follows it too, and colludes with neither")
    return (
        Claim(
            statement="Neither server learns anything about the records or the weights beyond their numbers and sizes"
            + (", and the losses that were opened." if scheme.show_loss else "."),
            basis=Basis.PROVED,
            source="Mohassel and Zhang, S&P 2017, section 4 (recalled): each opened value is masked once, uniformly",
            assumes=(*assumes, "AES-256-CTR and SHA-256 are what they are taken for"),
            hides=("server", "dealer"),
        ),
    )


# --- what all agree on


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every party must have been told, each in the same words.

    Args:
        scheme: settings.
        spec: the network.
        start: its first weights, float32, which are public.
        counts: records of each owner.
        classes: of the labels.
        seed: of the order of the records.
        columns: names of the records' columns, where they have some.
    """

    scheme: TwoServer
    spec: ModelSpec
    start: tuple[npt.NDArray[np.float32], ...] = field(repr=False)
    counts: tuple[int, ...]
    classes: int
    seed: int
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, scheme: TwoServer, task: Task, columns: Sequence[str] = ()) -> Terms:
        """The terms of a task.

        Raises:
            UnsupportedLayer: the model has a layer that cannot be computed on shares.
            ConfigError: outputs, loss and classes do not go together.
            RangeError: a weight is out of range.
        """
        spec = ModelSpec.of(task.start, task.input_shape)
        terms = cls(
            scheme=scheme, spec=spec, counts=task.records,
            start=tuple(np.asarray(array, np.float32) for array in parameters_of(task.start)),
            classes=task.classes, seed=task.seed, columns=tuple(columns),
        )  # fmt: skip
        terms.network(0)
        terms.outputs  # noqa: B018 - checks itself
        scheme.receivers(task.owners)
        return terms

    @property
    def owners(self) -> tuple[Role, ...]:
        """Everybody who has records."""
        return owners(len(self.counts))

    @property
    def outputs(self) -> int:
        """Numbers in a target: one a class, or a single one for two classes."""
        shape = self.spec.output_shape
        binary = shape == (1,) and self.classes == 2
        if shape != (self.classes,) and not binary:
            raise ConfigError(
                f"a model with one output a class, {self.classes}, or one output for two classes expected; its outputs "
                f"are of shape {shape}"
            )
        if binary and self.scheme.loss in (Loss.RELU_SUM, Loss.RELU_SUM_TANGENT):
            raise ConfigError(
                "relu-sum of one output is always 1: give the model one output a class"
            )
        return shape[0]

    def said(self) -> dict[str, str]:
        """By name, as text."""
        first = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in self.start))
        return {
            "version": "1",
            **{name: str(value) for name, value in plain_settings(self.scheme).items()},
            "network": self.spec.to_json(),
            "first weights (SHA-256)": first.hexdigest(),
            "records": json.dumps(self.counts),
            "classes": str(self.classes),
            "seed": str(self.seed),
            "columns": json.dumps(self.columns),
        }

    def network(self, party: int) -> Network:
        """The network with the first weights, as a server has them: server 0 the weights, server 1 zeros."""
        arrays = encoded(self.spec, self.scheme.fixed, self.start)
        shares = [array if party == 0 else np.zeros_like(array) for array in arrays]
        return network_of(self.spec, self.scheme.fixed, shares)

    def targets(self, labels: Array) -> npt.NDArray[np.float64]:
        """What the network should say of each record: (n, outputs)."""
        if self.outputs == 1:
            return labels.astype(np.float64)[:, None]
        return np.eye(self.classes)[np.asarray(labels, np.int64)]

    # --- the order of the records

    def order(self) -> Array:
        """The order in which records are cut into batches: public, and the same in every epoch."""
        return Coins.from_seed(f"order {self.seed}".encode()).permutation(sum(self.counts))

    def batches(self) -> list[slice]:
        """Rows of each batch, after `order`; the last may be smaller."""
        count, size = sum(self.counts), self.scheme.batch_size
        return [slice(at, min(at + size, count)) for at in range(0, count, size)]

    def schedule(self) -> list[int]:
        """The batch of each step: every epoch all of them, in an order of its own."""
        count = len(self.batches())
        epochs = range(self.scheme.epochs)
        turns = [Coins.from_seed(f"{self.seed}/{e}".encode()).permutation(count) for e in epochs]
        return [int(batch) for turn in turns for batch in turn]

    def rate(self, step: int, count: int) -> Rate:
        """Of a step, over the size of its batch."""
        epoch = step // -(-sum(self.counts) // self.scheme.batch_size)
        return Rate.of(self.scheme.learning_rate * self.scheme.decay**epoch, count)


def agree(channels: Mapping[Role, Channel], terms: Terms) -> None:
    """Tell each peer the terms, and stop if it was told others.

    Raises:
        ProtocolError: names the peer and what differs.

    **Cost**: 1 round; the terms, some kilobytes.
    """
    mine = terms.said()
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    for channel in channels.values():
        channel.send("terms", text)
    for peer, channel in channels.items():
        theirs = _read_terms(peer, channel.recv("terms"))
        for name in sorted({*mine, *theirs}):
            ours, other = mine.get(name, "nothing"), theirs.get(name, "nothing")
            if ours != other:
                raise ProtocolError(
                    f"{peer} was told another {name} than this party: {_short(other)} there, {_short(ours)} here; give all "
                    "parties the same settings, model and records"
                )


def _read_terms(peer: Role, arrays: Sequence[Array]) -> dict[str, str]:
    try:
        (came,) = arrays
        if came.dtype != np.uint8 or came.ndim != 1 or came.size > _LONGEST:
            raise ValueError("no text")
        said = json.loads(came.tobytes())
        if not isinstance(said, dict) or not all(isinstance(v, str) for v in said.values()):
            raise ValueError("no table of texts")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the terms of {peer} cannot be read: {error}") from error
    return said


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- owners


def owner(
    channels: Mapping[Role, Channel], role: Role, terms: Terms, shard: Shard, coins: Coins
) -> nn.Module | None:
    """An owner's part: share the records between the servers, and wait for the model.

    Args:
        channels: to both servers.
        role: this owner.
        terms: what was agreed on.
        shard: records and labels.
        coins: for the shares.

    Returns:
        The model, if this owner is one of those to whom it is opened.

    Raises:
        RangeError: a value is out of range; names the column, and the precision that would fit.
        DataError: the records are not as agreed.

    **Leaks**: nothing, to either server alone. **Cost**: 32 bytes to server 0, eight for each value to server 1.
    """
    here = {peer: channels[peer] for peer in SERVERS}
    inputs, labels = (part.numpy() for part in shard)
    if len(inputs) != terms.counts[role.index]:
        raise DataError(
            f"{role} has {len(inputs)} records where {terms.counts[role.index]} were agreed on"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < terms.classes:
        raise DataError(f"the labels of {role} must be from 0 to {terms.classes - 1}")
    values = [
        _encoded_records(role, terms, inputs),
        terms.scheme.fixed.encode(terms.targets(labels)),
    ]
    agree(here, terms)
    _share(here, terms.scheme.fixed.ring, values, coins)
    if role not in terms.scheme.receivers(terms.owners):
        for channel in here.values():
            channel.recv("end")
        return None
    both = [here[peer].recv("model") for peer in SERVERS]
    shapes = [array.shape for array in terms.start]
    for peer, arrays in zip(SERVERS, both, strict=True):
        if [array.shape for array in arrays] != shapes or {a.dtype for a in arrays} != {
            np.dtype("<u8")
        }:
            raise ProtocolError(
                f"{peer} opens a model of another form than the one that was agreed on"
            )
    model = terms.spec.build()
    decoded = [terms.scheme.fixed.decode(a + b) for a, b in zip(*both, strict=True)]
    load_parameters(model, decoded)
    return model


def _encoded_records(role: Role, terms: Terms, inputs: Array) -> Elements:
    fixed, flat = terms.scheme.fixed, inputs.reshape(len(inputs), -1)
    most = np.abs(flat).max(axis=0, initial=0.0)
    worst = int(np.nan_to_num(most, nan=np.inf).argmax()) if most.size else 0
    column = f"{terms.columns[worst]!r}" if terms.columns else f"{worst}"
    return encode(fixed, np.asarray(inputs, np.float32), f"records of {role}, column {column}")


def _share(
    channels: Mapping[Role, Channel], ring: Ring, arrays: Sequence[Elements], coins: Coins
) -> None:
    """Share arrays between the servers: a key, from which server 0 draws its shares, and the rest to server 1."""
    key = coins.bytes(KEY_BYTES)
    channels[SERVERS[0]].send("key", np.frombuffer(key, np.uint8))
    stream = Coins.expanding(key, seeded=coins.seeded)
    for number, values in enumerate(arrays):
        mask = ring.uniform(stream.child(str(number)), values.shape)
        for rows in _pieces(values.shape):
            channels[SERVERS[1]].send("rows", values[rows] - mask[rows])


def _received(
    wire: CheckedWire, party: int, ring: Ring, shapes: Sequence[tuple[int, ...]]
) -> list[Elements]:
    """A server's shares of arrays that somebody shares with `_share`."""
    if party == 0:
        (key,) = wire.recv("key", [Expected((KEY_BYTES,), "u1")])
        stream = Coins.expanding(key.tobytes())
        return [ring.uniform(stream.child(str(k)), shape) for k, shape in enumerate(shapes)]
    parts = [ring.zeros(shape) for shape in shapes]
    for part in parts:
        for rows in _pieces(part.shape):
            (part[rows],) = wire.recv("rows", [Expected(part[rows].shape, ring.dtype.str)])
    return parts


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows that fit into one message."""
    each = max(1, _PIECE // max(1, 8 * prod(shape[1:])))
    for at in range(0, shape[0], each):
        yield slice(at, min(shape[0], at + each))


# --- servers


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a server has at the end.

    Args:
        weights: its shares of the weights, in torch's order and shapes.
        steps: how many steps it took, in this run.
        seconds: that the steps took.
        offline_s: of these, in which it waited for correlations; all that they took, if they were made apart.
    """

    weights: Sequence[Elements] = field(repr=False)
    steps: int
    seconds: float
    offline_s: float


Watch = Callable[[int, Kept | Fixed, Network], None]
"""Given, before a step changes the weights, its number, the batch with its mask, and the network with its gradients."""


def server(
    channels: Mapping[Role, Channel],
    party: int,
    terms: Terms,
    coins: Coins,
    *,
    checkpoint: Checkpoint = NOTHING,
    progress: Progress = silent,
    told: Told = _unheard,
    watch: Watch | None = None,
) -> Outcome:
    """A server's part.

    Args:
        channels: to the other server, all owners, and the dealer if there is one.
        party: 0 or 1.
        terms: what was agreed on.
        coins: for its own draws; with a dealer nothing but half of this run's name.
        checkpoint: where its shares of the weights are kept, and gone on with from there.
        progress: told after each step.
        told: given each loss that is opened.
        watch: shown what this server has of each step: for audits.

    Raises:
        ProtocolError: a peer was told other terms, or breaks the protocol.
    """
    scheme, peer = terms.scheme, SERVERS[1 - party]
    agree(channels, terms)
    _same_weights(channels[peer], terms)
    records, targets = _gathered(channels, party, terms)
    network = terms.network(party)
    begin, name = _resumed(channels[peer], terms, checkpoint, network, coins)
    at = begin.step
    if DEALER in channels:
        channels[DEALER].send("from", np.array([at], "<i8"))
    with _between(channels, party, scheme, plan_of(terms, at), coins) as (session, store):
        learner = _Learner(
            session=session, terms=terms, network=network, records=records, targets=targets, begin=begin, name=name,
            watch=watch,
        )  # fmt: skip
        begun = time.perf_counter()
        learner.run(checkpoint, progress, told)
        seconds = time.perf_counter() - begun
    weights = network.weights()
    receivers = scheme.receivers(terms.owners)
    for role in terms.owners:
        if role in receivers:
            channels[role].send("model", *(np.ascontiguousarray(one) for one in weights))
        else:
            channels[role].send("end")
    return Outcome(weights, len(terms.schedule()) - at, seconds, store.seconds)


@contextmanager
def _between(
    channels: Mapping[Role, Channel], party: int, scheme: TwoServer, plan: Plan, coins: Coins
) -> Iterator[tuple[Session, StreamedStore]]:
    """A session with the other server, and its store; after it the dealer is told that no more is needed."""
    peer = channels[SERVERS[1 - party]]
    made: Preprocessor
    transfers = None
    if scheme.masks is Masks.NONE:
        made = _Unmasked(plan, party)
    elif scheme.preprocessing is Preprocessing.DEALER:
        made = Dealt(channels[DEALER], party, plan, seeded=coins.seeded)
    else:
        made = ByTransfer(peer, party, plan, coins)
        transfers = made.transfers
    store = StreamedStore(made, scheme.window, apart=scheme.apart)
    yield start(peer, party, scheme.fixed, store, coins, transfers=transfers), store
    if isinstance(made, Dealt):
        made.close()


@dataclass(slots=True)
class _Unmasked:
    """Correlations that hide nothing: all zeros. For controls.

    What follows from the masks is shared as ever, by numbers that everybody knows: truncation needs shares that are uniform.
    """

    plan: Plan
    party: int
    name: bytes = bytes(16)

    def prepare(self, numbers: range) -> Sequence[Material]:
        ring, out = self.plan.ring, list[Material]()
        for number in numbers:
            one, coins = (
                self.plan.correlations[number],
                Coins.from_seed(f"no mask {number}".encode()),
            )
            parts = {
                of.name: np.zeros(of.shape, np.uint64 if of.bits else ring.dtype)
                for of in one.free()
            }
            known = uniform(one.derived(), ring, coins, 0)
            for of in one.derived():
                parts[of.name] = known[of.name] if self.party == 0 or of.bits else -known[of.name]
            out.append(parts)
        return out


def _same_weights(channel: Channel, terms: Terms) -> None:
    """The first weights are public; said once more, they make a server's view complete by itself."""
    theirs = channel.exchange("first weights", *terms.start)
    if len(theirs) != len(terms.start) or not all(map(np.array_equal, theirs, terms.start)):
        raise ProtocolError(f"{channel.peer} begins with other weights: give all the same model")


def _gathered(
    channels: Mapping[Role, Channel], party: int, terms: Terms
) -> tuple[Elements, Elements]:
    """This server's shares of all records and targets, in `Terms.order`, each owner's as it sends them."""
    ring = terms.scheme.fixed.ring
    shapes = terms.spec.input_shape, (terms.outputs,)
    found: list[list[Elements]] = [[], []]
    for role, count in zip(terms.owners, terms.counts, strict=True):
        wire = CheckedWire(channels[role])
        with wire.during(OFFLINE, "records"):
            parts = _received(wire, party, ring, [(count, *shape) for shape in shapes])
        for have, part in zip(found, parts, strict=True):
            have.append(part)
    order = terms.order()
    records, targets = (np.concatenate(parts)[order] for parts in found)
    return records, targets


@dataclass(slots=True, kw_only=True)
class _Learner:
    """A server at work, after all shares have come."""

    session: Session
    terms: Terms
    network: Network
    records: Elements
    targets: Elements
    begin: _Point
    name: bytes
    watch: Watch | None

    def run(self, checkpoint: Checkpoint, progress: Progress, told: Told) -> None:
        terms, network = self.terms, self.network
        engine = _engine(self.session, terms.scheme)
        rows, schedule, inputs = terms.batches(), terms.schedule(), network.rows(self.records)
        masked: dict[int, Fixed] = {}
        saved = [self.begin]
        for step in range(self.begin.step, len(schedule)):
            batch = schedule[step]
            here = rows[batch]
            values = masked.get(batch) or Kept(f"batch {batch}", inputs[here])
            look = None if self.watch is None else partial(self.watch, step, values, network)
            loss = _step(engine, terms, network, values, self.targets[here], step, str(step), look)
            if isinstance(values, Kept) and values.fixed is not None:
                # What was opened and the mask are the share: it need not be kept.
                masked[batch] = replace(values.fixed, share=values.fixed.share[:0])
            if loss is not None:
                told(step, loss)
            done = step + 1
            if done % SAVED_EVERY == 0 and done < len(schedule):
                saved = [*saved, _Point(done, self.name, network.weights())][-2:]
                checkpoint.save(_kept_message(saved), CostMeter())
            progress(done, len(schedule))


def _engine(session: Session, scheme: TwoServer) -> OnShares:
    return OnShares(session, garbled=scheme.preprocessing is Preprocessing.TRANSFERS)


def _step(
    engine: OnShares,
    terms: Terms,
    network: Network,
    values: Kept | Fixed,
    targets: Elements,
    step: int,
    use: str,
    look: Callable[[], None] | None = None,
) -> float | None:
    """A step, and its loss if it is shown."""
    scheme, count = terms.scheme, len(targets)
    errors = network.learn(engine, values, targets, scheme.loss, use)
    if look is not None:
        look()
    network.move(engine, terms.rate(step, count))
    if not _shows(scheme, step):
        return None
    session, fixed = engine.session, scheme.fixed
    with session.within("show loss"):
        total = square(session, errors).sum(dtype=errors.dtype).reshape(1)
        (opened,) = open_to_both(session, engine.truncate(total, fixed.fraction))
    return float(fixed.decode(opened)[0]) / count


def _shows(scheme: TwoServer, step: int) -> bool:
    return scheme.show_loss > 0 and step % scheme.show_loss == 0


def plan_of(terms: Terms, at: int = 0) -> Plan:
    """The correlations of all steps from one on.

    A step is traced once for each size of batch, with a batch that is masked for the first time and with one that was.
    """
    scheme, rows, schedule = terms.scheme, terms.batches(), terms.schedule()
    traces: dict[tuple[int, bool, bool], Plan] = {}
    correlations: list[Correlation] = []
    names: list[str] = []
    seen: set[int] = set()
    for step in range(at, len(schedule)):
        batch = schedule[step]
        count = rows[batch].stop - rows[batch].start
        kind = count, batch in seen, _shows(scheme, step)
        if kind not in traces:
            traces[kind] = _traced(terms, *kind)
        seen.add(batch)
        name = _Names(str(step), f"batch {batch}")
        correlations += [renamed(one, name) for one in traces[kind].correlations]
        names += traces[kind].names
    ring = scheme.fixed.ring
    return Plan(ring, scheme.fraction, tuple(correlations), tuple(names))


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of masks of a step, from those of its trace."""

    step: str
    batch: str

    def __call__(self, name: str) -> str:
        return self.batch if name == "batch" else self.step + name.removeprefix("step")


def _traced(terms: Terms, count: int, masked: bool, shows: bool) -> Plan:
    scheme = terms.scheme
    network = terms.network(1)
    ring = scheme.fixed.ring
    inputs = network.rows(ring.zeros((count, *terms.spec.input_shape)))
    targets = ring.zeros((count, terms.outputs))
    part = Part("batch", inputs.shape, 0, count)
    values = Fixed(part, inputs, inputs, inputs) if masked else Kept("batch", inputs)
    at = 0 if shows else 1
    settings = replace(scheme, show_loss=2 if shows else 0)
    told = replace(terms, scheme=settings)
    return traced(
        lambda session: _step(
            _engine(session, scheme), told, copy.deepcopy(network), values, targets, at, "step"
        ),
        scheme.fixed,
    )


# --- going on after a kill


_NAME_BYTES = 16
_KEPT_BYTES = 2 * (8 + _NAME_BYTES)  # names of the two newest points


@dataclass(frozen=True, slots=True)
class _Point:
    """Where a server has been: a step, the run in which it got there, and its shares of the weights then.

    Both servers' shares fit together only if they are of the same run: another one gets to the same step with other masks,
    and rounds otherwise.
    """

    step: int
    run: bytes
    weights: Sequence[Elements] = field(repr=False)


def _kept_message(saved: Sequence[_Point]) -> Message:
    return Message(
        "two-server",
        steps=np.array([point.step for point in saved], "<i8"),
        runs=[point.run for point in saved],
        weights=[np.ascontiguousarray(one) for point in saved for one in point.weights],
    )


def _places(state: Message) -> list[tuple[int, bytes]]:
    steps, runs = state.array("steps", dtype="<i8").tolist(), state.fields.get("runs")
    if not isinstance(runs, list) or [type(run) for run in runs] != [bytes] * len(steps):
        raise DataError("the checkpoint does not say of which runs it is: remove it to begin anew")
    return list(zip(steps, [bytes(run) for run in runs if isinstance(run, bytes)], strict=True))


def _resumed(
    channel: Channel, terms: Terms, checkpoint: Checkpoint, network: Network, coins: Coins
) -> tuple[_Point, bytes]:
    """Where to go on from, the last step of which both servers have kept their shares of one run; and this run's name.

    Everything after it is made anew, with new masks: no correlation of the run that was killed is used again.
    """
    kept: dict[bytes, _Point] = {}
    if (state := checkpoint.load(CostMeter())) is not None:
        arrays, each, dtype = (
            list(state.arrays("weights")),
            len(terms.start),
            terms.scheme.fixed.ring.dtype,
        )
        for k, (step, run) in enumerate(_places(state)):
            weights = [np.asarray(one, dtype) for one in arrays[k * each : (k + 1) * each]]
            kept[step.to_bytes(8, "little") + run] = _Point(step, run, weights)
    newest = b"".join(list(kept)[-2:])
    half = coins.child("name of the run").bytes(_NAME_BYTES)
    mine = np.frombuffer(newest.ljust(_KEPT_BYTES, b"\0") + half, np.uint8)
    (came,) = CheckedWire(channel).exchange("kept", (mine,), [Expected(mine.shape, "u1")])
    theirs = came.tobytes()
    common = [
        p
        for key, p in kept.items()
        if key in (theirs[: _KEPT_BYTES // 2], theirs[_KEPT_BYTES // 2 : _KEPT_BYTES])
    ]
    begin = max(common, key=lambda point: point.step, default=_Point(0, b"", ()))
    if begin.step:
        network.load(begin.weights)
    else:
        begin = _Point(0, bytes(_NAME_BYTES), network.weights())
    both = sorted(
        (half, theirs[_KEPT_BYTES:])
    )  # of seeded coins the halves are those of the last run, but not where it began
    name = hashlib.sha256(b"".join([*both, begin.step.to_bytes(8, "little"), begin.run]))
    return begin, name.digest()[:_NAME_BYTES]


class _OnePart:
    """One server's part of a checkpoint of both."""

    def __init__(self, joint: _Joint, party: int) -> None:
        self._joint, self._party = joint, party

    def load(self, cost: CostMeter) -> Message | None:
        """This server's state."""
        return self._joint.load(self._party)

    def save(self, state: Message, cost: CostMeter) -> None:
        """Kept when both have one."""
        self._joint.save(self._party, state)


class _Joint:
    """The checkpoints of two servers in one process, in one file: written when both stand at the same steps."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._lock = checkpoint, threading.Lock()
        self._loaded = checkpoint.load(CostMeter())
        self._newest: dict[int, Message] = {}

    def load(self, party: int) -> Message | None:
        state = self._loaded
        if state is None:
            return None
        arrays = list(state.arrays("weights"))
        half = len(arrays) // 2
        return Message(
            "two-server",
            steps=state.array("steps"),
            runs=state.fields["runs"],
            weights=arrays[party * half : (party + 1) * half],
        )

    def save(self, party: int, state: Message) -> None:
        with self._lock:
            self._newest[party] = state
            first, second = (self._newest.get(p) for p in (0, 1))
            if first is None or second is None or _places(first) != _places(second):
                return
            weights = [*first.arrays("weights"), *second.arrays("weights")]
            joint = Message(
                "two-server",
                steps=first.array("steps"),
                runs=first.fields["runs"],
                weights=weights,
            )
            self._checkpoint.save(joint, CostMeter())


def _joint(checkpoint: Checkpoint) -> dict[Role, Checkpoint]:
    if checkpoint is NOTHING:
        return {}
    joint = _Joint(checkpoint)
    return {role: _OnePart(joint, role.index) for role in SERVERS}


# --- the dealer


def dealer(channels: Mapping[Role, Channel], terms: Terms, coins: Coins) -> None:
    """The dealer's part: correlations for both servers, and nothing of the data."""
    servers = channels[SERVERS[0]], channels[SERVERS[1]]
    agree({role: channels[role] for role in SERVERS}, terms)
    asked = [
        int(CheckedWire(channel).recv("from", [Expected((1,), "<i8")])[0][0]) for channel in servers
    ]
    if asked[0] != asked[1] or not 0 <= asked[0] < len(terms.schedule()):
        raise ProtocolError(f"the servers go on from different steps: {asked[0]} and {asked[1]}")
    if terms.scheme.masks is Masks.NONE:
        return
    deal(plan_of(terms, asked[0]), servers, coins)


# --- prediction on shares


CLIENT = Role("client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a client and the servers must agree on to predict with a model that stays shared (`TwoServer.hold`).

    Args:
        scheme: with which the model was trained; its loss says what a prediction is.
        spec: the network.
        count: how many inputs the client has.
        batch_size: inputs that are computed at a time.
    """

    scheme: TwoServer
    spec: ModelSpec
    count: int
    batch_size: int = 128

    def __post_init__(self) -> None:
        if min(self.count, self.batch_size) < 1:
            raise ConfigError(
                f"count and batch_size of at least 1 expected, got {self.count} and {self.batch_size}"
            )

    def run(
        self,
        held: Held[Sequence[Elements]],
        inputs: Array,
        *,
        coins: Coins,
        recording: Recording = COUNTS,
    ) -> Run[Array]:
        """Predict with all parties in this process: the client, both servers, and the dealer if there is one.

        Args:
            held: both servers' shares of the weights.
            inputs: (count, *input shape); the client's.
            coins: where all secrets come from.
            recording: what to keep of the views.

        Returns:
            Predictions, (count, outputs): scores, shares of a sum, or 0 to 1, by the loss.

        Raises:
            RangeError: an input is out of range.
            ConfigError: shares or inputs do not fit the network.
        """
        plan = self.plan()
        servers = {
            role: partial(self.server, party=role.index, weights=held.by[role], plan=plan, coins=coins.child(str(role)))
            for role in SERVERS
        }  # fmt: skip
        parties: dict[Role, Party[Any]] = {
            **servers,
            CLIENT: partial(self.client, inputs=inputs, coins=coins.child(str(CLIENT))),
        }
        if self.scheme.preprocessing is Preprocessing.DEALER:
            parties[DEALER] = lambda channels: deal(
                plan, (channels[SERVERS[0]], channels[SERVERS[1]]), coins.child(str(DEALER))
            )
        done = run_pair(parties, recording=recording, deadline=_ENOUGH)
        return Run(
            output=outputs_of(done)[CLIENT], cost=done.cost, views=done.views,
            claims=claims_of(self.scheme), settings=plain_settings(self.scheme), seeded=coins.seeded,
        )  # fmt: skip

    def plan(self) -> Plan:
        """The correlations of all batches; weights are masked once."""
        ring = self.scheme.fixed.ring
        network = self._network([ring.zeros(shape) for shape in _shapes(self.spec)])
        inputs = ring.zeros((self.count, *self.spec.input_shape))
        return traced(lambda session: self._forward(session, network, inputs), self.scheme.fixed)

    def client(self, channels: Mapping[Role, Channel], inputs: Array, coins: Coins) -> Array:
        """The client's part: share the inputs, and add up both servers' shares of the predictions.

        **Leaks**: nothing, to either server alone. **Cost**: 32 bytes to server 0, eight for each value to server 1; eight
        from each for each output.
        """
        fixed = self.scheme.fixed
        if inputs.shape != (self.count, *self.spec.input_shape):
            raise ConfigError(
                f"inputs of shape {(self.count, *self.spec.input_shape)} expected, got {inputs.shape}"
            )
        values = encode(fixed, np.asarray(inputs, np.float32), "inputs")
        _share(channels, fixed.ring, [values], coins)
        shape = self.count, *self.spec.output_shape
        both = [
            CheckedWire(channels[role]).recv("prediction", [Expected(shape, fixed.ring.dtype.str)])[
                0
            ]
            for role in SERVERS
        ]
        return fixed.decode(both[0] + both[1])

    def server(
        self,
        channels: Mapping[Role, Channel],
        party: int,
        weights: Sequence[Elements],
        plan: Plan,
        coins: Coins,
    ) -> None:
        """A server's part: it learns neither inputs nor predictions."""
        ring, wire = self.scheme.fixed.ring, CheckedWire(channels[CLIENT])
        if [one.shape for one in weights] != _shapes(self.spec):
            raise ConfigError("the shares of the weights do not fit the network")
        (inputs,) = _received(wire, party, ring, [(self.count, *self.spec.input_shape)])
        with _between(channels, party, self.scheme, plan, coins) as (session, _):
            out = self._forward(session, self._network(weights), inputs)
        wire.send("prediction", out)

    def _network(self, weights: Sequence[Elements]) -> Network:
        return network_of(self.spec, self.scheme.fixed, weights)

    def _forward(self, session: Session, network: Network, inputs: Elements) -> Elements:
        engine, rows = _engine(session, self.scheme), network.rows(inputs)
        out = []
        for at in range(0, self.count, self.batch_size):
            scores = network.forward(
                engine, rows[at : at + self.batch_size], "predict", learning=False
            )
            out.append(self.scheme.loss.predicted(engine, scores))
        return np.concatenate(out)


def _shapes(spec: ModelSpec) -> list[tuple[int, ...]]:
    return [tuple(one.shape) for one in spec.build().parameters()]


# --- what a server can make of its view


class _RecordEnds(Exception):
    """No more was recorded of what a role received."""


@dataclass(slots=True)
class _Recorded:
    """A channel that repeats what was received, as far as it was recorded, and sends nothing."""

    peer: Role
    messages: Iterator[Message]

    def send(self, tag: str, *arrays: Array) -> None:
        pass

    def recv(self, tag: str) -> tuple[Array, ...]:
        message = next(self.messages, None)
        if message is None:
            raise _RecordEnds
        if message.tag != tag:
            raise ProtocolError(f"the view of {self.peer} does not have {tag!r} where it must")
        return tuple(message.arrays("arrays"))

    def exchange(self, tag: str, *arrays: Array) -> tuple[Array, ...]:
        return self.recv(tag)

    def count_round(self) -> None:
        pass

    @contextmanager
    def during(self, phase: str | None = None, layer: str | None = None) -> Iterator[None]:
        yield


def _as_sent(messages: Sequence[Message], fixed: FixedPoint) -> Observation:
    sent = [(one.tag, array) for one in messages for array in one.arrays("arrays")]
    words = [(tag, array) for tag, array in sent if array.dtype == fixed.ring.dtype]
    return Observation(intermediates=tuple((tag, fixed.decode(array)) for tag, array in words))


def _replayed(scheme: TwoServer, view: View, party: int) -> Observation:
    received: dict[Role, list[Message]] = {}
    for frame in view.frames():
        received.setdefault(frame.peer, []).append(frame.message())
    peer = SERVERS[1 - party]
    first = received.get(peer, [])
    if [message.tag for message in first[:2]] != ["terms", "first weights"]:
        return Observation()
    if scheme.preprocessing is Preprocessing.TRANSFERS and scheme.masks is Masks.UNIFORM:
        return _as_sent(first[2:], scheme.fixed)  # it draws while it prepares
    said = _read_terms(peer, first[0].arrays("arrays"))
    terms = Terms(
        scheme=scheme, spec=ModelSpec.from_json(said["network"]), counts=tuple(json.loads(said["records"])),
        start=tuple(np.asarray(array, np.float32) for array in first[1].arrays("arrays")),
        classes=int(said["classes"]), seed=int(said["seed"]), columns=tuple(json.loads(said["columns"])),
    )  # fmt: skip
    fixed, order, rows, schedule = scheme.fixed, terms.order(), terms.batches(), terms.schedule()
    opened: dict[int, tuple[str, Array]] = {}
    updates: list[Update] = []

    def watch(step: int, values: Kept | Fixed, network: Network) -> None:
        batch = values.fixed if isinstance(values, Kept) else values
        which = order[rows[schedule[step]]]
        if batch is not None and schedule[step] not in opened:
            images = fixed.decode(batch.opened).astype(np.float32)
            shaped = images.reshape(-1, *terms.spec.input_shape)
            opened[schedule[step]] = f"batch {schedule[step]} less its mask", shaped
        weights = []
        for one in network.parameters:
            # Of a matrix of weights what was opened; of a bias, which never is, this server's share.
            seen = (
                one.value if one.kept is None or one.kept.fixed is None else one.kept.fixed.opened
            )
            weight = fixed.decode(seen).reshape(one.value.shape)
            weights.append(np.asarray(weight.T if weight.ndim == 2 else weight, np.float32))
        arrays = [
            np.asarray(np.ldexp(fixed.decode(gradient), -one.extra) / len(which), np.float32)
            for gradient, one in zip(network.opened_gradients(), network.parameters, strict=True)
        ]
        updates.append(
            Update(
                sender=None, round=step, arrays=tuple(arrays),
                model=terms.start if step == 0 else tuple(weights), batch_size=len(which),
                noisy=scheme.masks is not Masks.NONE, records=tuple(int(row) for row in which),
                squared_error=scheme.loss is Loss.SQUARED_ERROR,
            )
        )  # fmt: skip

    channels = {role: _Recorded(role, iter(messages)) for role, messages in received.items()}
    try:
        with suppress(_RecordEnds):
            server(channels, party, terms, Coins("replayed"), watch=watch)
    except ProtocolError:
        kept = next((one for one in first if one.tag == "kept"), None)
        if kept is None or not any(array[:_KEPT_BYTES].any() for array in kept.arrays("arrays")):
            raise
        return _as_sent(first[2:], fixed)  # both went on from a checkpoint
    return Observation(aggregates=tuple(updates), intermediates=tuple(opened.values()))
