"""Shadow models: models like the target, of which the adversary knows who was in, shared by every membership attack.

Attacks that compare a target with models trained with and without a record ([14]'s shadow models, LiRA's, RMIA's reference
models) all need the same thing: K models, each trained on some of a pool's records, and what each says of every record of
the pool. `ShadowEnsemble` trains them once, together (`tacit.nn.stacked`), and keeps their logits only, in a folder that a
killed run goes on from. `References` is what attacks read.

`halves` decides who is in: models come in pairs, a random half of the records and the other half, so that each record is in
exactly K / 2 models and out of as many. A model can play the target: `References.against` leaves out its partner too, since
who is in the one tells who is in the other; the rest stay balanced, and say nothing of the target's records.

What is kept secret from whom: nothing here protects. The pool is the adversary's. **Leaks**: logits of models that were
trained on a record tell of the record; a folder is as confidential as the pool.

Source:
    [14] R. Shokri, M. Stronati, C. Song, V. Shmatikov. Membership Inference Attacks against Machine Learning Models. IEEE
    S&P 2017, section V-C (shadow models). N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr. Membership
    Inference Attacks From First Principles. IEEE S&P 2022, section V (each record in half of the models).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from tacit.attacks.access import TrainFunction
from tacit.core.errors import ConfigError, DataError, Diverged, OutputError, TacitWarning
from tacit.core.files import alone as one_process
from tacit.core.files import make_folder, write_file
from tacit.nn.stacked import (
    ANSWERED,
    Stack,
    Trainer,
    alone,
    is_out_of_memory,
    logits_of,
)

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

#: An augmentation: records in, as many records of one shape out, each made from its own alone, the same at every call.
Query = Callable[[Tensor], Tensor]

#: A train_fn whose models do not know their records passes `Control` by chance in this share of runs.
LEVEL = 0.05

_STATE, _LOGITS, _INSIDE, _LABELS = "shadows.json", "logits.npy", "inside.npy", "labels.npy"


class NothingLearned(TacitWarning):
    """Shadow models are no surer of their own records than of others: see `Control`."""


def as_it_is(inputs: Tensor) -> Tensor:
    """The query that asks about the record itself."""
    return inputs


def _silent(done: int, total: int) -> None:
    del done, total


def halves(records: int, models: int, generator: torch.Generator) -> BoolArray:
    """Who is in which model: each record in half of the models, each model with half of the records.

    Models 2i and 2i + 1 are a random half and the rest. Whether a record is in model 2i is independent of all other pairs.

    Args:
        records: n, at least 2.
        models: K, even.
        generator: draws the halves.

    Returns:
        (K, n) bool; each column sums to K / 2, each row to n // 2 or n - n // 2.

    Raises:
        ConfigError: an odd number of models, or fewer than 2 records.
    """
    if models < 2 or models % 2:
        raise ConfigError(
            f"an even number of models expected, {models} came: each record is in half of them"
        )
    if records < 2:
        raise ConfigError(f"at least 2 records expected, {records} came")
    inside = np.zeros((models, records), np.bool_)
    for pair in range(0, models, 2):
        order = torch.randperm(records, generator=generator, device=generator.device).cpu().numpy()
        inside[pair, order[: records // 2]] = True
        inside[pair + 1] = ~inside[pair]
    return inside


class Control(NamedTuple):
    """Whether the shadow models know their records better than others: without that, attacks built on them find nothing.

    Args:
        gap: a model's mean loss on records outside less that on its own, in nats, mean over the models.
        p_value: how often a gap as large comes where the models do not know their records; None below 4 models, where no
            gap could tell.

    The p-value is that of a permutation test: if training ignores which records it is given, any model's losses fit any
    other model's records as well as its own. Hard records do not hide a gap: they weigh the same in every permutation. All
    permutations of up to 6 models, 999 random ones of more.
    """

    gap: float
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What K shadow models say of a pool of n records, and who was in.

    Args:
        inside: (K, n) bool; whether a model was trained on a record.
        logits: (K, queries, n, classes) float32; memory-mapped where there is a folder.
        labels: (n,) int64, the true classes.
        control: whether the models know their records; None where it was not measured.

    Raises:
        ConfigError: the shapes do not fit, or a label is not a class.
    """

    inside: BoolArray = field(repr=False)
    logits: Float32Array = field(repr=False)
    labels: IntArray = field(repr=False)
    control: Control | None = None

    def __post_init__(self) -> None:
        shape = self.logits.shape
        if (
            len(shape) != 4
            or self.inside.shape != (shape[0], shape[2])
            or self.labels.shape != (shape[2],)
        ):
            raise ConfigError(
                "inside (K, n), logits (K, queries, n, classes) and labels (n,) expected, "
                f"{self.inside.shape}, {shape} and {self.labels.shape} came"
            )
        if self.inside.dtype != np.bool_ or self.logits.dtype != np.float32:
            raise ConfigError(
                f"bool and float32 expected, {self.inside.dtype} and {self.logits.dtype} came"
            )
        if not (self.labels.min() >= 0 and self.labels.max() < shape[3]):
            raise ConfigError(
                f"labels 0 to {shape[3] - 1} expected, {self.labels.min()} to {self.labels.max()} came"
            )

    @property
    def models(self) -> int:
        """K."""
        return int(self.logits.shape[0])

    @property
    def queries(self) -> int:
        """Augmentations of each record that the models were asked about."""
        return int(self.logits.shape[1])

    @property
    def records(self) -> int:
        """Of the pool, n."""
        return int(self.logits.shape[2])

    @property
    def classes(self) -> int:
        """Classes that the models tell apart."""
        return int(self.logits.shape[3])

    def first(self, models: int) -> References:
        """Some of the models, without a copy; an even number keeps the pairs of `halves`.

        Raises:
            ConfigError: more than there are, or none.
        """
        if not 1 <= models <= self.models:
            raise ConfigError(f"1 to {self.models} models expected, {models} came")
        return References(
            inside=self.inside[:models], logits=self.logits[:models], labels=self.labels
        )

    def at(self, records: IntArray) -> References:
        """Some of the records, a copy of their logits.

        Args:
            records: (m,) indices.
        """
        return References(
            inside=self.inside[:, records], logits=self.logits[:, :, records], labels=self.labels[records],
        )  # fmt: skip

    def against(self, model: int) -> tuple[References, Float32Array, BoolArray]:
        """One model as the target, the others as its references, without those that give its records away.

        A model of exactly the same or exactly the other records (its partner of `halves`) is left out.

        Args:
            model: the target, 0 to K - 1.

        Returns:
            The references, a copy of their logits; the target's logits (queries, n, classes); who was in it (n,).

        Raises:
            ConfigError: there is no such model, or none is left as a reference.
        """
        if not 0 <= model < self.models:
            raise ConfigError(f"a model from 0 to {self.models - 1} expected, {model} came")
        shared = (self.inside == self.inside[model]).sum(1)
        kept = np.flatnonzero((shared != 0) & (shared != self.records))
        if not len(kept):
            raise ConfigError(
                "no reference is left once the target and its partner are out: train at least 4 models"
            )
        rest = References(inside=self.inside[kept], logits=self.logits[kept], labels=self.labels)
        return rest, self.logits[model], self.inside[model]

    def measured(self, generator: torch.Generator) -> Control:
        """Whether the models know their records; the first query counts.

        Args:
            generator: see `control_of`.
        """
        labels = torch.from_numpy(self.labels)
        losses = [
            torch.nn.functional.cross_entropy(
                torch.from_numpy(np.array(own[0])).double(), labels, reduction="none"
            ).numpy()
            for own in self.logits
        ]
        return control_of(np.stack(losses), self.inside, generator)

    def save(self, folder: Path) -> None:
        """Write them where `open` finds them.

        Raises:
            OutputError: they cannot be written.
            ConfigError: the folder holds something else.
        """
        store = _Store(folder, self.inside, self.labels, self.queries, {"saved": True})
        with store.opened():
            array = store.array(self.classes)
            array[:] = self.logits
            store.finish(range(self.models), self.control)

    @staticmethod
    def open(folder: Path) -> References:
        """What a finished `ShadowEnsemble` left in its folder; the logits stay on disk until they are read.

        Raises:
            DataError: there are none, they are not finished, or a file is damaged.
        """
        state = _read_state(folder)
        inside, labels = _read_array(folder / _INSIDE), _read_array(folder / _LABELS)
        if len(state["finished"]) < len(inside):
            raise DataError(
                f"{folder} holds {len(state['finished'])} of {len(inside)} shadow models: go on training them first"
            )
        logits = _read_array(folder / _LOGITS, mapped="r")
        control = None if state["control"] is None else Control(*state["control"])
        try:
            return References(inside=inside, logits=logits, labels=labels, control=control)
        except ConfigError as error:
            raise DataError(f"{folder} is damaged: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowEnsemble:
    """Trains K shadow models on given parts of a pool and keeps what they say of all of it.

    Args:
        train_fn: trains one model on the records it is handed. A `tacit.nn.stacked.Trainer` trains many at once.
        folder: keeps the logits and goes on after a kill; None keeps them in memory.
        queries: augmentations that each model is asked about, the record itself (`as_it_is`) first.
        memory: bytes, by estimate, for the models that are trained at once and their batches: stacks are cut to fit. Without
            a folder half of it is for the logits. It does not bound what another train_fn takes.
        workers: processes (joblib's back end) that train side by side, sharing `memory`, with their logits besides.
        progress: told how many models of all are finished.

    Raises:
        ConfigError: a setting is out of range.
    """

    train_fn: TrainFunction
    folder: Path | None = None
    queries: Sequence[Query] = (as_it_is,)
    memory: int = 2 << 30
    workers: int = 1
    progress: Callable[[int, int], None] = field(default=_silent, repr=False)

    def __post_init__(self) -> None:
        if min(self.memory, self.workers, len(self.queries)) < 1:
            raise ConfigError(
                "at least 1 byte, 1 worker and 1 query expected, "
                f"{self.memory}, {self.workers} and {len(self.queries)} came"
            )

    def train(
        self, inputs: Tensor, labels: Tensor, inside: BoolArray, generator: torch.Generator
    ) -> References:
        """Train the models that are not there yet.

        Model k draws from a generator of its own, which depends on k and one draw from ``generator``: how many are trained
        at once changes nothing but rounding. To go on in a folder, call again with a generator in the same state.

        Args:
            inputs: the pool, (n, *record shape); training runs on their device.
            labels: (n,) int64.
            inside: (K, n) bool, from `halves` or of the caller's choice.
            generator: draws the models' seeds, once.

        Raises:
            ConfigError: shapes do not fit, a model has no record inside or none outside, the folder holds other models, two
                models of different records came out the same to the bit, or memory does not do for one model.
            Diverged: a model's loss or logits are not finite.
            DataError: a file in the folder is damaged.
            OutputError: the folder cannot be written, or is full.

        Warns:
            TacitWarning: stacks had to be made smaller.
            NothingLearned: the models do not know their records (`Control` at `LEVEL`).

        **Cost**: K trainings and K * queries * n answers; 4 bytes for each of K * queries * n * classes logits.
        """
        labels, inside = labels.cpu(), np.ascontiguousarray(inside)
        _check_pool(inputs, labels, inside)
        if self.workers > 1 and inputs.device.type != "cpu":
            raise ConfigError(
                f"1 worker expected with a pool on {inputs.device}: stacks fill the accelerator by themselves"
            )
        _check_queries(self.queries, inputs)
        seed = torch.randint(0, 1 << 32, (), generator=generator, device=generator.device).item()
        job = _Job(
            self.train_fn, inputs, labels, inside, tuple(self.queries), int(seed), generator.device
        )
        store = _Store(
            self.folder, inside, labels.numpy(), len(self.queries), job.fingerprint(),
            limit=self.memory // 2,
        )  # fmt: skip
        with store.opened():
            if len(store.finished) < len(inside):
                self._run(job, store)
            array = store.array().view()
            array.flags.writeable = False
            if store.control is None:
                _check_differ(array, inside)
                known = References(
                    inside=inside, logits=array, labels=labels.numpy().astype(np.int64)
                )
                store.finish((), known.measured(torch.Generator().manual_seed(int(seed))))
        control = store.control
        if control is not None and control.p_value is not None and control.p_value > LEVEL:
            warnings.warn(
                f"the {len(inside)} shadow models are no surer of their own records than of others (gap {control.gap:.3g} "
                f"nats, p = {control.p_value:.2g}): either train_fn ignores the records it is given, or its models tell "
                "nothing of them; attacks that compare with these models will find nothing",
                NothingLearned,
                stacklevel=2,
            )
        return References(
            inside=inside, logits=array, labels=labels.numpy().astype(np.int64), control=control
        )

    def _run(self, job: _Job, store: _Store) -> None:
        memory = self.memory if self.folder else self.memory // 2
        size = job.stack_size(memory // self.workers)
        pending = job.groups([k for k in range(len(job.inside)) if k not in store.finished], size)
        while pending:
            try:
                for group in self._answered(job, store, pending):
                    pending.remove(group)
                    # A train_fn that does nothing shows at its second model.
                    early = len(store.finished) < 2
                    store.finish(group, None)
                    if early and len(store.finished) > 1:
                        two = sorted(store.finished)[:2]
                        _check_differ(store.array()[two], job.inside[two])
                    self.progress(len(store.finished), len(job.inside))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                size = max(len(group) for group in pending)
                if size == 1:
                    raise ConfigError(
                        f"memory does not do for one shadow model ({error}): use smaller batches, or fewer workers"
                    ) from error
            else:
                continue
            size //= 2
            warnings.warn(
                f"memory ran out: stacks of {size} shadow models are trained from here on",
                TacitWarning,
                stacklevel=3,
            )
            if job.inputs.device.type == "cuda":
                torch.cuda.empty_cache()
            pending = job.groups([k for group in pending for k in group], size)

    def _answered(self, job: _Job, store: _Store, pending: Sequence[_Group]) -> Iterator[_Group]:
        """Groups, as the logits of each have been written."""
        if self.workers == 1 or len(pending) == 1:
            for group in list(pending):
                stack = job.trained(group)
                array = store.array(job.classes_of(stack, len(group)))
                job.answer(stack, [array[k] for k in group])
                del stack  # before the next takes its memory
                yield group
            return
        # As an array, which joblib hands over by a file instead of with every group.
        pool = job.inputs.numpy()
        found = Parallel(n_jobs=self.workers, return_as="generator_unordered")(
            delayed(_elsewhere)(job._replace(inputs=job.inputs[:0]), pool, group)
            for group in list(pending)
        )
        for group, logits in found:
            array = store.array(logits.shape[-1])
            for k, own in zip(group, logits, strict=True):
                array[k] = own
            yield group


_Group = tuple[int, ...]


def _elsewhere(job: _Job, pool: npt.NDArray[Any], group: _Group) -> tuple[_Group, Float32Array]:
    """In another process: a group's logits, (models, queries, n, classes)."""
    job = job._replace(inputs=torch.from_numpy(np.array(pool)))
    stack = job.trained(group)
    shape = (
        len(group), len(job.queries), len(job.inputs), job.classes_of(stack, len(group)),
    )  # fmt: skip
    logits = np.empty(shape, np.float32)
    job.answer(stack, list(logits))
    return group, logits


class _Job(NamedTuple):
    """What is to be trained, and how."""

    train_fn: TrainFunction
    inputs: Tensor
    labels: Tensor
    inside: BoolArray
    queries: tuple[Query, ...]
    seed: int
    drawn_on: torch.device

    def generator(self, model: int) -> torch.Generator:
        """A model's own: torch's CPU generator uses 32 bits of a seed, and an odd multiplier keeps them apart."""
        seed = (self.seed + (model + 1) * 0x9E3779B1) % (1 << 32)
        return torch.Generator(device=self.drawn_on).manual_seed(seed)

    def rows(self, model: int) -> Tensor:
        """The records inside a model."""
        return torch.from_numpy(np.flatnonzero(self.inside[model])).to(self.inputs.device)

    def sample(self, trainer: Trainer) -> nn.Module:
        """A network as it is drawn, for its size and shape."""
        generator = torch.Generator(device=self.drawn_on).manual_seed(0)
        return trainer.drawn(generator).to(self.inputs.device)

    def stack_size(self, memory: int) -> int:
        """How many models are trained at once."""
        if not isinstance(self.train_fn, Trainer):
            return 1
        module = self.sample(self.train_fn)
        if not self.train_fn.worth_stacking(module, self.inputs[:2]):
            return 1
        return max(1, memory // self.train_fn.bytes_of(module, self.inputs))

    def groups(self, models: Sequence[int], size: int) -> deque[_Group]:
        """Models that are trained together: they make the same number of steps."""
        if not isinstance(self.train_fn, Trainer):
            return deque((k,) for k in models)
        recipe = self.train_fn.recipe
        by_steps: dict[int, list[int]] = {}
        for k in models:
            by_steps.setdefault(recipe.steps(int(self.inside[k].sum())), []).append(k)
        return deque(
            tuple(alike[low : low + size])
            for alike in by_steps.values()
            for low in range(0, len(alike), size)
        )

    def trained(self, group: _Group) -> Stack:
        """The models of a group."""
        if isinstance(self.train_fn, Trainer):
            return self.train_fn.together(
                self.inputs, self.labels, [self.rows(k) for k in group],
                [self.generator(k) for k in group],
            )  # fmt: skip
        (k,) = group
        rows = self.rows(k)
        labels = self.labels[rows.cpu()].to(self.inputs.device)
        return alone(self.train_fn(self.inputs[rows], labels, self.generator(k)))

    def classes_of(self, stack: Stack, models: int) -> int:
        """How many logits the models give.

        Raises:
            ConfigError: they do not give one row of logits a record, or too few for the labels.
        """
        logits = logits_of(stack, self.queries[0](self.inputs[:2]), models)
        if logits.dim() != 3 or logits.shape[:2] != (models, 2):
            raise ConfigError(
                f"models that give logits (n, classes) expected, for 2 records came {tuple(logits.shape[1:])}"
            )
        if int(self.labels.max()) >= logits.shape[2]:
            raise ConfigError(
                f"labels 0 to {logits.shape[2] - 1} expected, as many as the models' logits, {int(self.labels.max())} came"
            )
        return logits.shape[2]

    def answer(self, stack: Stack, arrays: Sequence[Float32Array]) -> None:
        """Write each model's logits into its array (queries, n, classes).

        Raises:
            Diverged: a logit is not finite.
        """
        for low in range(0, len(self.inputs), ANSWERED):
            part = self.inputs[low : low + ANSWERED]
            for q, query in enumerate(self.queries):
                logits = logits_of(stack, query(part), len(arrays)).float()
                if not bool(torch.isfinite(logits).all()):
                    raise Diverged(
                        "a shadow model answers with logits that are not finite: lower the learning rate of its training"
                    )
                for array, own in zip(arrays, logits.cpu().numpy(), strict=True):
                    array[q, low : low + ANSWERED] = own

    def fingerprint(self) -> dict[str, object]:
        """What tells these shadow models from others; code of a train_fn is told by its name alone."""
        asked = [query(self.inputs[:2]) for query in self.queries]
        said: dict[str, object] = {
            "pool": _digest(self.inputs, self.labels),
            "inside": _digest(torch.from_numpy(self.inside)),
            "queries": _digest(*asked),
            "seed": self.seed,
        }
        if isinstance(self.train_fn, Trainer):
            module = self.sample(self.train_fn)
            said["recipe"] = repr(self.train_fn.recipe)
            said["network"] = f"{module!r} {_digest(*module.state_dict().values())}"
        else:
            name = getattr(self.train_fn, "__qualname__", type(self.train_fn).__qualname__)
            said["train_fn"] = f"{self.train_fn.__module__}.{name}"
        return said


def _digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _check_pool(inputs: Tensor, labels: Tensor, inside: BoolArray) -> None:
    if labels.shape != (len(inputs),) or labels.dtype != torch.int64 or len(inputs) < 2:
        raise ConfigError(
            f"at least 2 records and one int64 label for each expected, {len(inputs)} records and labels "
            f"{labels.dtype} of shape {tuple(labels.shape)} came"
        )
    if int(labels.min()) < 0:
        raise ConfigError(f"labels of at least 0 expected, {int(labels.min())} came")
    if inside.dtype != np.bool_ or inside.ndim != 2 or inside.shape[1] != len(inputs):
        raise ConfigError(
            f"inside of shape (models, {len(inputs)}) and type bool expected, {inside.shape} {inside.dtype} came"
        )
    counts = inside.sum(1)
    if not len(inside) or counts.min() < 1 or counts.max() == len(inputs):
        raise ConfigError(
            "a record inside and one outside of each model expected: who is in would tell nothing"
        )


def _check_queries(queries: Sequence[Query], inputs: Tensor) -> None:
    for q, query in enumerate(queries):
        once, again = query(inputs[:2]), query(inputs[:2])
        if len(once) != 2:
            raise ConfigError(f"query {q} gave {len(once)} records for 2: one for each expected")
        if not torch.equal(once, again):
            raise ConfigError(
                f"query {q} gave other records at its second call: the target must be asked the same as its shadow models; "
                "fix what it draws beforehand"
            )


def _check_differ(array: Float32Array, inside: BoolArray) -> None:
    """No two models of different records are the same to the bit."""
    known: dict[bytes, int] = {}
    for k, own in enumerate(array):
        digest = hashlib.sha256(np.ascontiguousarray(own).data).digest()
        other = known.setdefault(digest, k)
        if not np.array_equal(inside[other], inside[k]):
            raise ConfigError(
                f"shadow models {other} and {k} were trained on different records and are the same to the bit: "
                "train_fn must train on the records it is given, from scratch"
            )


def control_of(
    losses: npt.NDArray[np.float64], inside: BoolArray, generator: torch.Generator
) -> Control:
    """Whether models know their records: the permutation test of `Control`.

    Args:
        losses: (K, n) of each model on each record.
        inside: (K, n) bool; in each row some are in and some out.
        generator: draws the permutations of more than 6 models.
    """
    count = len(losses)
    inner = inside / inside.sum(1, keepdims=True)
    outer = ~inside / (~inside).sum(1, keepdims=True)
    gap = float((losses * (outer - inner)).sum(1).mean())
    if count < 4:
        return Control(gap, None)
    # gaps[k, j]: the gap of model k if its records had been those of model j
    gaps = losses @ (outer - inner).T
    every = np.arange(count)
    if count <= 6:
        orders = np.array(list(itertools.permutations(every)))
    else:
        keys = torch.rand(999, count, generator=generator, device=generator.device)
        orders = np.concatenate([every[None], keys.argsort(1).cpu().numpy()])
    sums = gaps[every, orders].sum(1)
    least = gaps.trace() - 1e-9 * np.abs(gaps).max()  # sums of the same numbers in another order
    return Control(gap, float((sums >= least).mean()))


# --- what is kept


class _Store:
    """The logits, and which models are finished: in a folder, or in memory.

    Args:
        folder: None for memory.
        inside: as in `References`.
        labels: as in `References`.
        queries: how many.
        fingerprint: what the folder's content must have been made from.
        limit: bytes that logits in memory may take.
    """

    def __init__(
        self, folder: Path | None, inside: BoolArray, labels: IntArray, queries: int,
        fingerprint: Mapping[str, object], *, limit: int | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._fingerprint, self._limit = folder, dict(fingerprint), limit
        self._inside, self._labels, self._queries = inside, labels, queries
        self._array: Float32Array | None = None
        self.finished: set[int] = set()
        self.control: Control | None = None

    def opened(self) -> ExitStack:
        """Hold the folder alone, and take over what is in it."""
        held = ExitStack()
        if self._folder is None:
            return held
        make_folder(self._folder, private=True)
        held.enter_context(one_process(self._folder / ".lock", wait=False))
        try:
            self._take_over(self._folder)
        except BaseException:
            held.close()
            raise
        return held

    def _take_over(self, folder: Path) -> None:
        if not (folder / _STATE).exists():
            if there := [name for name in (_LOGITS, _INSIDE, _LABELS) if (folder / name).exists()]:
                raise ConfigError(
                    f"{folder} holds {there[0]} of something else: give another folder, or empty it"
                )
            self._say(folder)
            return
        state = _read_state(folder)
        found = state["fingerprint"]
        names = sorted({*found, *self._fingerprint})
        if other := [one for one in names if found.get(one) != self._fingerprint.get(one)]:
            raise ConfigError(
                f"{folder} holds shadow models of another {', '.join(other)}: give another folder, or delete this one to "
                "train anew"
            )
        self.finished = set(state["finished"])
        self.control = None if state["control"] is None else Control(*state["control"])
        if self.finished:
            _read_array(folder / _LOGITS, mapped="r")  # where r+ fills up what a short file lacks
            array = _read_array(folder / _LOGITS, mapped="r+")
            if array.shape[:3] != (len(self._inside), self._queries, len(self._labels)):
                raise DataError(f"{folder / _LOGITS} is of shape {array.shape}: delete the folder")
            self._array = array

    def array(self, classes: int | None = None) -> Float32Array:
        """The logits, (K, queries, n, classes); made when the number of classes is first known.

        Raises:
            ConfigError: another number of classes than before, or too large for memory.
            OutputError: there is no space.
        """
        if self._array is None:
            if classes is None:
                raise ConfigError("no shadow model is finished")
            self._array = self._made((len(self._inside), self._queries, len(self._labels), classes))
        if classes not in (None, self._array.shape[3]):
            raise ConfigError(
                f"a shadow model gives {classes} logits, others {self._array.shape[3]}: models of one kind expected"
            )
        return self._array

    def _made(self, shape: tuple[int, int, int, int]) -> Float32Array:
        size = 4 * int(np.prod(shape))
        if self._folder is None:
            if self._limit is not None and size > self._limit:
                raise ConfigError(
                    f"{size} bytes of logits do not fit in {self._limit}: give a folder, or more memory"
                )
            return np.zeros(shape, np.float32)
        path = self._folder / _LOGITS
        try:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            if hasattr(os, "posix_fallocate"):  # a full disk shows here, and not as a crash later
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error}): {size} bytes are needed"
            ) from error
        return array

    def finish(self, models: Iterable[int], control: Control | None) -> None:
        """Mark models as finished, and what was measured of all; durable when this returns."""
        self.finished.update(models)
        self.control = control
        if self._folder is not None:
            if isinstance(self._array, np.memmap):
                self._array.flush()
            self._say(self._folder)

    def _say(self, folder: Path) -> None:
        for name, array in ((_INSIDE, self._inside), (_LABELS, self._labels.astype(np.int64))):
            if not (folder / name).exists():
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                write_file(folder / name, content.getvalue(), private=True)
        state = {
            "fingerprint": self._fingerprint,
            "finished": sorted(self.finished),
            "control": self.control,
        }
        write_file(folder / _STATE, json.dumps(state, indent=1), private=True)


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / _STATE).read_text("utf-8"))
        fits = (
            isinstance(state["fingerprint"], dict)
            and all(isinstance(k, int) for k in state["finished"])
            and (state["control"] is None or len(state["control"]) == 2)
        )
    except FileNotFoundError:
        raise DataError(f"{folder} holds no shadow models: train them first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _STATE} is damaged ({error}): delete the folder") from error
    if not fits:
        raise DataError(f"{folder / _STATE} is damaged: delete the folder")
    return state


def _read_array(path: Path, mapped: Any = None) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode=mapped, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is missing or damaged ({error}): delete the folder") from error
    return array
