"""`tacit train`: run one scheme on a data set and keep what came out.

The data set's training rows are dealt to the owners, its test rows measure the model. Unlike in `tacit compare`, secrets
are drawn from the operating system's coins, so that the claims hold for this run.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

import tacit
from tacit.audit.figures import one_thread
from tacit.audit.importing import imported
from tacit.audit.provenance import header, plain
from tacit.audit.statistics import clopper_pearson
from tacit.core.coins import Coins
from tacit.core.errors import (
    ConfigError,
    OutputError,
    TacitWarning,
    UnknownName,
    UnsupportedLayer,
)
from tacit.core.files import make_folder, write_file
from tacit.nn.data import DataSet, load, split_by_label, split_iid
from tacit.nn.federated import Collaborative, Progress, Task, silent
from tacit.nn.local_work import accuracy, parameters_of
from tacit.nn.networks import cnn, mlp, tanh_cnn
from tacit.nn.spec import save_model
from tacit.parties.checkpoints import FileCheckpoint, Snapshot, keep_nothing
from tacit.parties.links.tcp import Note, unheard
from tacit.parties.runs import Opened, Run
from tacit.parties.views import COUNTS
from tacit.training.two_server import TwoServer

MODELS = ("mlp", "cnn", "tanh-cnn")
SPLITS = ("iid", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a scheme is run on.

    Args:
        dataset: name of the data set.
        model: mlp (64 hidden units), cnn, tanh-cnn (that of selective SGD), or ``module:factory``, a function of one's own
            of (input_shape, classes) that gives a torch module; its first weights are its own affair.
        owners: among whom the training rows are dealt.
        records: rows of each; None deals all of them.
        split: iid, or label: each owner holds few labels.
        seed: of the dealing, the first weights and the order of training; secrets do not follow from it.

    Raises:
        UnknownName: no such model or split.
        ConfigError: a number is out of range.
    """

    dataset: str = "digits"
    model: str = "mlp"
    owners: int = 10
    records: int | None = None
    split: str = "iid"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS and ":" not in self.model:
            raise UnknownName("model", self.model, MODELS)
        if self.split not in SPLITS:
            raise UnknownName("way to split", self.split, SPLITS)
        least = min(self.owners, 1 if self.records is None else self.records)
        if least < 1 or not 0 <= self.seed < 1 << 31:
            raise ConfigError(
                "at least one owner, one record of each and a seed from 0, below 2^31 expected, got "
                f"{self.owners}, {self.records} and {self.seed}"
            )


def task_of(setting: Setting, data: DataSet) -> Task:
    """Deal a data set's training rows, and draw the first model.

    Raises:
        ConfigError: there are not enough rows, or the model does not fit the data.
    """
    generator = torch.Generator().manual_seed(setting.seed)
    rows = torch.randperm(len(data.inputs_train), generator=generator)
    wanted = len(rows) if setting.records is None else setting.owners * setting.records
    if wanted > len(rows):
        raise ConfigError(
            f"{setting.owners} owners of {setting.records} records need {wanted} rows; {data.name} has {len(rows)} to train "
            "on: use fewer owners or records"
        )
    rows = rows[:wanted]
    labels = data.labels_train[rows]
    if setting.split == "label":
        parts = split_by_label(labels, setting.owners, generator)
    else:
        parts = split_iid(wanted, setting.owners, generator)
    shards = tuple((data.inputs_train[rows[part]], labels[part]) for part in parts)
    return Task(
        name=data.name,
        start=network(setting.model, data.input_shape, data.classes, generator),
        shards=shards,
        input_shape=data.input_shape,
        classes=data.classes,
        seed=setting.seed,
    )


def network(
    name: str, input_shape: tuple[int, ...], classes: int, generator: torch.Generator
) -> nn.Module:
    """One of `MODELS` with drawn weights, or what a factory gives.

    Raises:
        ConfigError: it does not fit records of that shape, or there is no such factory.
    """
    if ":" in name:
        return _made(name, input_shape, classes)
    if name == "mlp":
        return mlp(input_shape, (64,), classes, generator=generator)
    make = cnn if name == "cnn" else tanh_cnn
    return make(input_shape, classes, generator=generator)


def _made(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """What the user's own factory gives, with the weights that it has."""
    model = imported(name, "module:factory")(input_shape, classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{name} must give a torch.nn.Module for (input_shape, classes), gave {type(model).__name__}"
        )
    return model


def train(
    scheme: str,
    protection: Collaborative | TwoServer,
    setting: Setting,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    note: Note = unheard,
    secret_seed: str | None = None,
) -> dict[str, Any]:
    """Train with all parties in this process, measure, and write model.safetensors and run.json.

    Where there is a folder to write to, a snapshot of all parties is kept there every few seconds, and a run that was killed
    goes on from it.

    Args:
        scheme: what the protection is called.
        protection: the scheme with its settings.
        setting: what it is run on.
        out: folder for the model and the run; None writes nothing.
        overwrite: replace a model, or a snapshot of other settings, that the folder holds.
        progress: told how much is done.
        note: told what is opened on the way: losses, in two-server training with show_loss.
        secret_seed: secrets follow from it: for tests alone.

    Returns:
        The run as ``tacit train --json`` prints it.

    Raises:
        ConfigError: a setting is out of range, or the folder holds a model or another run's snapshot.
        DataError: the data set is missing or damaged.
        OutputError: the folder cannot be written to.
        TacitError: whatever the scheme raises.
    """
    start = time.perf_counter()
    data = load(setting.dataset)
    task = task_of(setting, data)
    coins = Coins() if secret_seed is None else Coins.from_seed(secret_seed.encode())
    file = None
    if out is not None:
        prepare(out, overwrite)
        about = f"{tacit.__version__}|{scheme}|{protection!r}|{setting!r}"
        file = FileCheckpoint(out / ".unfinished", hashlib.sha256(about.encode()).digest())
        if overwrite:
            file.remove()
    keep = keep_nothing if file is None else Snapshot.of(file)
    with one_thread(), noted_warnings() as said:
        if isinstance(protection, TwoServer):
            run = protection.train(
                task, coins=coins, progress=progress, keep=keep,
                told=lambda step, loss: note(loss_line(step, loss)),
            )  # fmt: skip
        else:
            run = protection.train(
                task, coins=coins, recording=COUNTS, progress=progress, keep=keep
            )
    result = finish(
        run, task, data, command="train", scheme=scheme, protection=protection, seconds=time.perf_counter() - start,
        settings=plain(setting), warnings=said, out=out,
    )  # fmt: skip
    if file is not None:
        file.remove()
    return result


def loss_line(step: int, loss: float) -> str:
    """What is said of a loss that was opened."""
    return f"loss {step} {loss:.6g}"


def finish(  # noqa: PLR0913 - what a run's result says, each by name
    run: Run[Opened[nn.Module]],
    task: Task,
    data: DataSet | None,
    *,
    command: str,
    scheme: str,
    protection: object,
    seconds: float,
    settings: Mapping[str, object],
    warnings: Sequence[str],
    out: Path | None,
) -> dict[str, Any]:
    """Measure a trained model, write model.safetensors and run.json, and give back the run as plain values."""
    model = run.output.value
    share = interval = tested = None
    if data is not None:
        with one_thread():
            share = accuracy(model, data.inputs_test, data.labels_test)
        tested = len(data.inputs_test)
        interval = list(clopper_pearson(round(share * tested), tested))
    weights = hashlib.sha256(b"".join(array.tobytes() for array in parameters_of(model)))
    result = {
        **header(command, settings, seconds, seeded=run.seeded),
        "scheme": scheme,
        "protection": plain(protection),
        "dataset": task.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": share,
        "accuracy_interval": interval,
        "tested": tested,
        "weights_sha256": weights.hexdigest(),
        "cost": {role: cost.described() for role, cost in run.cost.by().items()},
        "rounds": run.cost.rounds,
        "opened_to": [str(role) for role in run.output.to],
        "claims": [claim.described() for claim in run.claims],
        "warnings": list(warnings),
        "model": None,
    }
    if out is not None:
        path = out / "model.safetensors"
        try:
            save_model(model, task.input_shape, path)
        except UnsupportedLayer as error:  # of a factory: it must be there to load the weights into
            write_file(
                path, safetensors_bytes({k: v.contiguous() for k, v in model.state_dict().items()})
            )
            result["warnings"] = [
                *warnings,
                f"the file holds weights without a description of the model: {error}",
            ]
        result["model"] = str(path)
        write_file(out / "run.json", json.dumps(result, indent=1) + "\n")
    return result


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """Warnings are shown as they come, and noted for the result."""
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", TacitWarning)
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, TacitWarning):
                said.append(str(message))
            show(message, category, *rest)

        warnings.showwarning = note  # type: ignore[assignment]
        yield said


def prepare(
    out: Path, overwrite: bool, names: Sequence[str] = ("model.safetensors", "run.json")
) -> None:
    """Find out before the training whether its result can be kept."""
    make_folder(out)
    for name in names:
        path = out / name
        if path.is_dir():
            raise OutputError(
                f"{path} is a folder where a file is to be written: give another --out"
            )
        if path.exists() and not overwrite:
            raise ConfigError(
                f"{out} holds {name} of another run: choose another folder with --out, or replace it with --overwrite"
            )
    probe = out / f".{uuid.uuid4().hex}"
    write_file(probe, "")
    probe.unlink()
