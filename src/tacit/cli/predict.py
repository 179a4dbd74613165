"""`tacit predict`: ask a prediction endpoint about records in a file."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from tacit.cli.output import Json, print_json, say
from tacit.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from tacit.prediction.client import Described

_BESIDE = ("label", "y", "group")  # columns that are no inputs


def predict(
    records: Annotated[
        str,
        typer.Argument(
            help="Records: .npy; .npz with inputs (or x); .csv of numbers, with or without a header line; - for CSV from "
            "standard input. A column label or group is left out."
        ),
    ],
    url: Annotated[str, typer.Option(help="Of the endpoint, as in http://127.0.0.1:8000.")],
    key_file: Annotated[
        Path | None,
        typer.Option(help="File that holds the key; the variable TACIT_KEY by default."),
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Give labels, no scores.")] = False,
    ca: Annotated[
        Path | None,
        typer.Option(help="Certificate (PEM) that an https endpoint's must be signed by."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one attempt.")] = 10.0,
    retries: Annotated[int, typer.Option(help="Attempts after the first.")] = 5,
    memory: Annotated[
        Path | None,
        typer.Option(
            help="File that keeps answers: what is in it is not asked again, so that Ctrl-C loses nothing."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write answers to this .npz or .csv file instead of standard output."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask an endpoint about records, and print what it says: a line a record, scores or label.

        tacit predict --url http://127.0.0.1:8000 --key-file key.txt records.npy --out answers.npz

    Answers are the bits that the endpoint computed, as far as its policy gives them.
    """
    from tacit.audit.provenance import header
    from tacit.core.files import write_file
    from tacit.prediction.client import Client

    start = time.perf_counter()
    if out is not None and out.suffix not in (".npz", ".csv"):
        raise ConfigError(f"--out: a .npz or .csv file expected, {out} came")
    if out is not None:
        _check_place(out, overwrite)
    with Client(
        url, key=key_from(key_file), timeout=timeout, retries=retries, ca=ca, memory=memory, told=say
    ) as client:  # fmt: skip
        inputs = _inputs(records, client.described)
        plain = labels or client.policy.labels_only
        answers = client.labels(inputs) if plain else client.scores(inputs)
        asked, policy = client.asked, client.policy
    name = "labels" if plain else "scores"
    if out is not None:
        write_file(out, _npz(name, answers) if out.suffix == ".npz" else _table(name, answers))
        say(f"{len(answers)} answers: {out}")
    if as_json:
        settings = {
            "url": url, "records": records, "labels": labels, "timeout": timeout, "retries": retries,
            "out": None if out is None else str(out),
        }  # fmt: skip
        said = header("predict", settings, time.perf_counter() - start, seeded=False)
        given = {} if out is not None else {name: answers.tolist()}
        print_json({**said, "policy": policy.name, "n": len(answers), "asked": asked, **given})
    elif out is None:
        sys.stdout.write(_table(name, answers))


def _check_place(out: Path, overwrite: bool) -> None:
    """Before anything is spent: whether answers can be written there."""
    if out.exists() and not (overwrite and out.is_file()):
        raise ConfigError(f"--out: {out} is there: give another, or --overwrite to replace a file")
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise ConfigError(f"--out: a folder to write in expected, {out.parent} is none")


def key_from(path: Path | None) -> str | None:
    """A key from a file, or else from the variable ``TACIT_KEY``; None where there is neither."""
    if path is None:
        return os.environ.get("TACIT_KEY") or None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--key-file: {path} cannot be read ({getattr(error, 'strerror', None) or 'no text'})"
        ) from error


def _inputs(source: str, described: Described) -> torch.Tensor:
    """Records as the endpoint takes them: doubles stay doubles, whole numbers and text take the model's type."""
    import numpy as np
    import torch

    suffix = Path(source).suffix.lower()
    if source != "-" and not Path(source).is_file():
        raise ConfigError(f"there is no file {source}")
    try:
        if suffix in (".npy", ".npz"):
            values = _array(source)
        elif source == "-":
            values = _numbers(sys.stdin)
        elif suffix == ".csv":
            with Path(source).open(encoding="utf-8", newline="") as file:
                values = _numbers(file)
        else:
            raise ConfigError(f"a .npy, .npz or .csv file, or -, expected, {source} came")
    except (OSError, ValueError, EOFError, csv.Error, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: records expected, but {error}") from error
    if values.dtype.kind not in "fiub" or values.ndim < 1:
        raise DataError(f"{source}: an array of numbers (n, ...) expected, {values.dtype} came")
    kind = np.float64 if described.dtype == torch.float64 else np.float32
    if values.dtype.kind == "f" and suffix in (".npy", ".npz"):
        kind = np.float32 if values.dtype.itemsize <= 4 else np.float64
    shape = described.input_shape
    size = int(np.prod(shape))
    if values.size != len(values) * size:
        raise DataError(
            f"{source}: records of shape {list(shape)} expected, an array of shape {list(values.shape)} came"
        )
    return torch.from_numpy(np.array(values, dtype=kind)).reshape(-1, *shape)


def _array(source: str) -> Any:
    import numpy as np

    found: Any = np.load(source, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found:
        for name in ("inputs", "x"):
            if name in found:
                return found[name]
        raise ValueError(f"an array inputs (or x) is needed, it has {', '.join(found) or 'none'}")


def _numbers(file: TextIO) -> Any:
    """A table's numbers; a first line that holds text names the columns."""
    import numpy as np

    rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise ValueError("it is empty")
    kept = list(range(len(rows[0])))
    try:
        [float(cell) for cell in rows[0]]
    except ValueError:
        kept = [at for at, name in enumerate(rows[0]) if name.strip().lower() not in _BESIDE]
        del rows[0]
    for number, row in enumerate(rows):
        if len(row) <= max(kept, default=0) or len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} cells, others {len(rows[0])}")
    return np.array([[float(row[at]) for at in kept] for row in rows], dtype=np.float64)


def _npz(name: str, answers: torch.Tensor) -> bytes:
    import numpy as np

    file = io.BytesIO()
    arrays = {name: answers.numpy()}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _table(name: str, answers: torch.Tensor) -> str:
    """CSV, numbers so that they are read back as they were."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if name == "labels":
        writer.writerow(["predicted"])
        writer.writerows([value] for value in answers.tolist())
    else:
        writer.writerow([f"p{at}" for at in range(answers.shape[1])])
        writer.writerows(answers.tolist())
    return file.getvalue()
