"""`tacit compare`: every attack against every protection, from the vantage where that adversary stands.

For each seed the data are dealt anew: members (split among the owners), non-members, and a population that is disjoint
from both and from which adversaries learn. Each protection trains on the members; every role's view of the first rounds
is recorded in full; each attack runs on what its vantage may touch. Controls are protections that were broken on purpose:
the attack must win there, or its silence elsewhere shows nothing.

The verdict rule is `tacit.audit.statistics.verdict`; "the unprotected row" is any row that protects nothing.

Finished cells are kept in ``progress.json`` beside the report, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import tacit
from tacit.audit import statistics
from tacit.audit.cells import Measurement, Plan, Protection, Trial, pooled
from tacit.audit.figures import one_thread
from tacit.audit.provenance import header, plain, sources_digest
from tacit.audit.report import read_report, write_report
from tacit.audit.world import Settings, World, check_rows, deal, imitation
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, DataError, OutputError, TacitError
from tacit.core.files import write_file
from tacit.nn.data import DataSet, load
from tacit.nn.local_work import accuracy
from tacit.parties.views import Level, Recording

try:
    import fcntl
except ImportError:  # not on Windows: there a second run in one folder is not noticed
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
KEPT = 5
"""Frames that a view keeps from each peer, and to each, where a row does not say more."""

Watch = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A protection in the matrix.

    Args:
        name: as in the report.
        title: a few words.
        protection: the scheme with its settings.
        paper: number of its paper, if it has one.
        unprotected: it protects nothing: attacks that fail elsewhere must succeed on such a row.
        control: it was broken on purpose.
        twin_of: the row that a control is the broken twin of.
        frames: kept of what every role gets from each peer, and sends it: enough for the attacks, and flat in memory.
    """

    name: str
    title: str
    protection: Protection
    paper: int | None = None
    unprotected: bool = False
    control: bool = False
    twin_of: str | None = None
    frames: int = KEPT


# --- the run


@dataclass(slots=True)
class _Progress:
    """Finished cells, by seed, row and cell; saved after each."""

    path: Path | None
    fingerprint: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def opened(cls, folder: Path | None, fingerprint: str, *, overwrite: bool) -> _Progress:
        """What an unfinished run of these very settings left; with ``overwrite`` another run's is forgotten."""
        path = folder / "progress.json" if folder is not None else None
        if path is None or not path.exists():
            return cls(path, fingerprint)
        try:
            saved = json.loads(path.read_text())
            same = saved["fingerprint"] == fingerprint
            rows = {name: _checked(row) for name, row in saved["rows"].items()} if same else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if overwrite:
                return cls(path, fingerprint)
            raise DataError(
                f"{path} is damaged: delete it to start over, or choose another folder"
            ) from None
        if not same and not overwrite:
            raise ConfigError(
                f"{path.parent} holds an unfinished run with other settings or of another version: choose another "
                "folder with --out, or start over with --overwrite"
            )
        return cls(path, fingerprint, rows)

    def row(self, seed: int, row: str) -> dict[str, Any]:
        return self.rows.setdefault(f"{seed}/{row}", {"cells": {}})

    def save(self) -> None:
        if self.path is None:
            return
        text = json.dumps({"fingerprint": self.fingerprint, "rows": self.rows})
        write_file(self.path, text)

    def any_cell(self) -> bool:
        return any(kept["cells"] for kept in self.rows.values())

    def errors(self) -> bool:
        return any(
            "error" in cell for kept in self.rows.values() for cell in kept["cells"].values()
        )

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """A row's saved cells, each of which is an error's text or a measurement."""
    for cell in row["cells"].values():
        if "error" not in cell:
            Measurement.from_json(cell["measurement"])
        float(cell["seconds"])
    return row


def _fingerprint(
    settings: Settings, rows: Sequence[Row], plans: Sequence[Plan], data: DataSet
) -> str:
    """What a run's results follow from: results of other settings, data or code are not mixed with them."""
    said = {
        "schema": SCHEMA,
        "version": tacit.__version__,
        "sources": sources_digest([*(r.protection for r in rows), *plans]),
        "settings": plain(settings),
        "rows": [
            (
                r.name,
                r.unprotected,
                r.control,
                r.frames,
                type(r.protection).__name__,
                plain(r.protection),
            )
            for r in rows
        ],
        "plans": [(plan.name, type(plan).__name__, plain(plan)) for plan in plans],
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=_unnamed).encode())
    for tensor in (data.inputs_train, data.labels_train, data.inputs_test, data.labels_test):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _unnamed(value: object) -> str:
    """A setting that has no plain form counts by its type: its address would change with every run."""
    return type(value).__name__


def compare(
    settings: Settings,
    rows: Sequence[Row],
    plans: Sequence[Plan],
    *,
    out: Path | None = None,
    overwrite: bool = False,
    quick: bool = False,
    watch: Watch | None = None,
    data: DataSet | None = None,
) -> dict[str, Any]:
    """Run every plan on every row.

    Args:
        settings: sizes and seeds.
        rows: protections, controls among them.
        plans: attacks at their vantages.
        out: folder for report.html, report.json and, until all is done, progress.json. None writes nothing.
        overwrite: replace what the folder holds of another run.
        quick: only noted in the report.
        watch: told after each step.
        data: in place of the data set that ``settings`` names.

    Returns:
        The report: see `tacit.audit.report`.

    Raises:
        ConfigError: a setting is out of range, or the folder holds another run.
        DataError: the data set is missing or damaged.
        OutputError: the folder cannot be written to.
        Diverged: a training diverged; names the role, the round and the epoch.
    """
    _check_names(rows, plans)
    data = data or load(settings.dataset)
    check_rows(data, settings)
    fingerprint = _fingerprint(settings, rows, plans, data)
    with _held(out):
        if out is not None and not overwrite:
            finished = _finished(out, fingerprint)
            if finished is not None:
                return finished
        comparison = _Comparison(
            settings=settings,
            rows=rows,
            plans=plans,
            data=data,
            quick=quick,
            progress=_Progress.opened(out, fingerprint, overwrite=overwrite),
            watch=watch or _nobody,
        )
        try:
            with one_thread():
                comparison.run()
        except (KeyboardInterrupt, TacitError):
            if out is not None and comparison.progress.any_cell():
                write_report(comparison.report(complete=False), out)
            raise
        result = comparison.report(complete=True)
        if out is not None:
            write_report(result, out)
        if not comparison.progress.errors():  # the same command tries failed cells again
            comparison.progress.remove()
        return result


def _nobody(what: str, done: int, total: int) -> None:
    del what, done, total


def _check_names(rows: Sequence[Row], plans: Sequence[Plan]) -> None:
    for kind, names in (
        ("protection", [r.name for r in rows]),
        ("attack", [p.name for p in plans]),
    ):
        if not names:
            raise ConfigError(f"at least one {kind} is needed")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{kind} {twice[0]!r} is asked for twice")


def _finished(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The report that the folder holds, if it is of this very run and complete.

    Raises:
        ConfigError: it is of another run.
        DataError: it is damaged, or another version's.
    """
    if not (out / "report.json").exists():
        return None
    try:
        found = read_report(out)
    except DataError as reason:
        raise DataError(f"{reason} (or replace it with --overwrite)") from None
    if found.get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{out} holds the report of another run (other settings or another version): choose another folder with "
            "--out, or replace it with --overwrite"
        )
    return found if found.get("complete") is True and not (out / "progress.json").exists() else None


@contextmanager
def _held(out: Path | None) -> Iterator[None]:
    """Make the folder and hold it against a second run; a new one in which nothing was finished goes again.

    Raises:
        OutputError: it cannot be made or written to.
        ConfigError: another run holds it (where the system can lock files).
    """
    if out is None:
        yield
        return
    lock = out / ".lock"
    try:
        new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written to: {error.strerror}; choose another folder with --out"
        ) from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another run is using {out}: wait for it, or choose another --out"
                ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if new and not any(out.iterdir()):
                out.rmdir()


@dataclass(slots=True, kw_only=True)
class _Comparison:
    settings: Settings
    rows: Sequence[Row]
    plans: Sequence[Plan]
    data: DataSet
    quick: bool
    progress: _Progress
    watch: Watch
    started: float = field(default_factory=time.perf_counter)
    done: int = 0

    @property
    def seeds(self) -> range:
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)

    def tell(self, what: str) -> None:
        self.watch(what, self.done, len(self.seeds) * len(self.rows) * len(self.plans))

    def run(self) -> None:
        """Fill every cell that is not there yet."""
        for seed in self.seeds:
            world: World | None = None
            for row in self.rows:
                kept = self.progress.row(seed, row.name)
                cells = kept["cells"]
                todo = [p for p in self.plans if "measurement" not in cells.get(p.name, {})]
                self.done += len(self.plans) - len(todo)
                if todo:
                    self.tell(f"seed {seed}: dealing records")
                    world = world or deal(self.data, self.settings, seed)
                    self._fill(kept, row, todo, world)
        self.tell("done")

    def _fill(self, kept: dict[str, Any], row: Row, todo: Sequence[Plan], world: World) -> None:
        trial = self._trained(kept, row, world)
        for plan in todo:
            self.tell(f"seed {world.seed}: {row.name}: {plan.name}")
            kept["cells"][plan.name] = _measured(plan, trial)
            self.done += 1
            self.progress.save()

    def _trained(self, kept: dict[str, Any], row: Row, world: World) -> Trial:
        def training(step: int, steps: int) -> None:
            if step % max(1, steps // 20) == 0:
                self.tell(f"seed {world.seed}: {row.name}: training {100 * step // steps} %")

        def coins() -> Coins:
            return Coins.from_seed(f"compare/{world.seed}/{row.name}".encode())

        start = time.perf_counter()
        try:
            run = row.protection.train(
                world.task,
                coins=coins(),
                recording=Recording(level=Level.FULL, each=row.frames),
                progress=training,
            )
        except TacitError as error:
            error.args = (f"{row.name}: {error}",)
            raise
        model, count = run.output.value, len(world.nonmembers[0])
        kept |= {
            "accuracy": [round(accuracy(model, *world.nonmembers) * count), count],
            "accuracy_members": accuracy(model, *world.members),
            "seconds": time.perf_counter() - start,
            "cost": {role: cost.described() for role, cost in run.cost.by().items()},
            "rounds": run.cost.rounds,
            "claims": [claim.described() for claim in run.claims],
            "settings": plain(dict(run.settings)),
            "seeded": run.seeded,
            "opened_to": [str(role) for role in run.output.to],
        }
        return Trial(
            protection=row.protection,
            run=run,
            task=world.task,
            members=world.members,
            nonmembers=world.nonmembers,
            population=world.population,
            train_fn=imitation(world.task, self.settings),
            judge=world.judge,
            seed=world.seed,
            coins=coins,
            shared=world.shared,
        )

    def report(self, *, complete: bool) -> dict[str, Any]:
        """What is known so far, as `tacit.audit.report` reads it."""
        kept = {
            row.name: [self.progress.rows.get(f"{s}/{row.name}", {"cells": {}}) for s in self.seeds]
            for row in self.rows
        }
        cells = {r.name: {p.name: _cell(kept[r.name], p) for p in self.plans} for r in self.rows}
        judge_cells(self.rows, cells)
        return {
            **header(
                "compare",
                {**plain(self.settings), "quick": self.quick},
                time.perf_counter() - self.started,
                seeded=any(k.get("seeded", False) for found in kept.values() for k in found),
            ),
            "schema": SCHEMA,
            "fingerprint": self.progress.fingerprint,
            "complete": complete,
            "dataset": self.data.name,
            "data": {"citation": self.data.citation, "classes": self.data.classes},
            "attacks": [
                {
                    "name": plan.name,
                    "title": plan.title,
                    "metric": plan.metric,
                    "about": plan.about,
                    "explains": plan.explains,
                    "chance_means": plan.chance_means,
                }
                for plan in self.plans
            ],
            "protections": [_entry(row, kept[row.name], cells[row.name]) for row in self.rows],
        }


def _measured(plan: Plan, trial: Trial) -> dict[str, Any]:
    """The cell's measurement, or the error in its place: one failing attack does not cost the others their results."""
    start = time.perf_counter()
    try:
        outcome: dict[str, Any] = {"measurement": plan.measure(trial).as_json()}
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    return outcome | {"seconds": time.perf_counter() - start}


# --- the report


def _cell(kept: Iterable[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    found = [k["cells"][plan.name] for k in kept if plan.name in k["cells"]]
    if not found:
        return {
            "metric": plan.metric,
            "value": None,
            "verdict": None,
            "why": "not run yet",
            "error": None,
        }
    errors = [cell["error"] for cell in found if "error" in cell]
    if errors:
        return {
            "metric": plan.metric,
            "value": None,
            "verdict": None,
            "why": "",
            "error": errors[0],
        }
    joined = pooled([Measurement.from_json(cell["measurement"]) for cell in found])
    return {
        "metric": plan.metric,
        "value": joined.value,
        "chance": joined.chance,
        "interval": list(joined.interval),
        "n": joined.n,
        "verdict": None if joined.access else "no-access",
        "knowledge": joined.knowledge,
        "why": joined.why,
        "saw": joined.saw,
        "attack_settings": _settings_of(plan),
        "queries": joined.queries,
        "seconds": round(sum(cell["seconds"] for cell in found), 3),
        "error": None,
        "details": joined.details,
        "figures": joined.figures,
    }


def _settings_of(plan: Plan) -> dict[str, Any]:
    described = plain(plan)  # a plan of the user's need not be a dataclass
    return {k: v for k, v in described.items() if k != "title"} if is_dataclass(plan) else {}


def judge_cells(rows: Sequence[Row], cells: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """Fill in every cell's verdict by the one rule; "no-access" stands already where it is due."""
    for plan in next(iter(cells.values()), {}):
        column = {row.name: cells[row.name][plan] for row in rows}

        def leaks(cell: dict[str, Any]) -> bool:
            return cell["value"] is not None and cell["interval"][0] > cell["chance"]

        for row in rows:
            cell = column[row.name]
            if cell["verdict"] is not None or cell["error"] is not None or "interval" not in cell:
                continue
            if cell["value"] is None:
                cell["verdict"] = "inconclusive"
                continue
            elsewhere = any(leaks(column[r.name]) for r in rows if r.unprotected and r is not row)
            cell["verdict"] = statistics.verdict(
                cell["value"],
                (cell["interval"][0], cell["interval"][1]),
                cell["chance"],
                baseline_leaks=elsewhere,
            )
            if cell["verdict"] == "inconclusive" and not elsewhere:
                cell["why"] += (
                    "; the attack leaks on no unprotected row either, so its silence shows nothing"
                )


def _entry(row: Row, kept: Sequence[Mapping[str, Any]], cells: Mapping[str, Any]) -> dict[str, Any]:
    trained = [k for k in kept if "accuracy" in k]
    entry: dict[str, Any] = {
        "name": row.name,
        "title": row.title,
        "paper": row.paper,
        "control": row.control,
        "unprotected": row.unprotected,
        "accuracy": None,
        "accuracy_interval": None,
        "cost": None,
        "claims": [],
        "settings": {},
        "opened": None,
        "cells": dict(cells),
    }
    if not trained:
        return entry
    hits, n = (sum(k["accuracy"][part] for k in trained) for part in (0, 1))
    roles = trained[0]["cost"]
    entry |= {
        "accuracy": hits / n,
        "accuracy_interval": list(statistics.clopper_pearson(hits, n)),
        "accuracy_members": sum(k["accuracy_members"] for k in trained) / len(trained),
        "cost": {
            "seconds": round(sum(k["seconds"] for k in trained) / len(trained), 3),
            "bytes": sum(int(cost["bytes_sent"]) for cost in roles.values()),
            "messages": sum(int(cost["messages"]) for cost in roles.values()),
            "rounds": trained[0]["rounds"],
            "per_role": roles,
        },
        "claims": trained[0]["claims"],
        "settings": trained[0]["settings"],
        "opened_to": trained[0]["opened_to"],
    }
    return entry
