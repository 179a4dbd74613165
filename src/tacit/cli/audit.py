"""``tacit audit``: what a model of one's own tells of who was in its training data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from tacit.cli.output import Json, names, print_json, progress_bar, say
from tacit.cli.predict import key_from
from tacit.core.errors import ConfigError, DataError, UnknownName

if TYPE_CHECKING:
    from tacit.nn.stacked import Recipe

_BUDGET = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|q)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SCORES = (".npz", ".csv", ".csv.gz")


def audit(
    target: Annotated[
        str | None,
        typer.Argument(
            help="The model: module:factory (with --weights) or module:function, importable from here; a .onnx file; a "
            ".safetensors file of tacit train. Or what it answered: saved scores, .npz or .csv. Left out with --url.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Instead of TARGET: an endpoint that tacit serve runs, as in https://host:8000."
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="With --url: the file that holds the key; the variable TACIT_KEY by default."
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            help="With --url: certificate (PEM) that an https endpoint's must be signed by."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="safetensors file for what module:factory gives.")
    ] = None,
    members: Annotated[
        Path | None,
        typer.Option(
            help="Records that the model was trained on: .npz with inputs and labels, or .csv with a column label."
        ),
    ] = None,
    nonmembers: Annotated[
        Path | None,
        typer.Option(
            help="Records of the same source that it was not trained on; with 1,000 and more, rates of 1 % can be judged."
        ),
    ] = None,
    population: Annotated[
        Path | None,
        typer.Option(help="Further records that it was not trained on: some attacks need them."),
    ] = None,
    gives: Annotated[
        str | None,
        typer.Option(
            help="What the model answers: logits, probabilities or labels. By default logits of a torch module, "
            "probabilities of others."
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="How such a model is trained: a function of (inputs, labels, generator) that gives one. With it reference "
            "models are trained, and the strongest attacks can run.",
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Instead of --train, for a torch module: how it was trained, epochs=20 batch_size=64 learning_rate=0.001 "
            "and more. May be given often.",
        ),
    ] = None,
    shadows: Annotated[
        int, typer.Option(help="Reference models to train, an even number of 4 or more.")
    ] = 32,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AMOUNT",
            help="What it may cost: 600s, 10m or 2h of time, 5000q queries. May be given once for each.",
        ),
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Attacks, comma-separated; all by default.")
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            help="Names of classes 0, 1 and so on, comma-separated; or @FILE with one a line."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=LIMIT",
            help="Exit with 1 if an attack exceeds it: auc=0.6, tpr@0.01fpr=0.05, balanced_accuracy=0.6 or epsilon=2. May "
            "be given often. For CI.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for report.html and report.json, as confidential as the records."
        ),
    ] = Path("tacit-audit"),
    overwrite: Annotated[bool, typer.Option(help="Replace a report in that folder.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what your own model gives away: who was in its training data, and the model itself.

    TARGET is the model: module:factory with --weights, or module:function, importable from here; a .onnx file; or a
    .safetensors file of tacit train. Or it is what a model answered: a .npz or .csv file of saved scores.

    Every attack that this access permits is run: on membership, copies of the model, what its classes look like. What they
    found is said in plain words, and written as a page. It takes records that the model was trained on, and others of the
    same source that it was not trained on.

    A torch module: make() in nets.py gives the network, its weights are a safetensors file. With the recipe of its training
    32 reference models are trained, for the strongest attacks:

        tacit audit nets:make --weights model.safetensors --members train.npz --nonmembers held-out.npz
        --recipe epochs=20 --recipe batch_size=64 --recipe learning_rate=0.001

    A model of any framework, exported to ONNX. In CI, exit code 1 if over 5 % of the members are found while at most 1 % of
    the others are accused:

        tacit audit model.onnx --members train.npz --nonmembers held-out.npz --fail-above tpr@0.01fpr=0.05

    Without the model: a CSV file with the columns member (0 or 1) and score, or with label and p0, p1 ... instead of score:

        tacit audit scores.csv --out audit-of-scores

    An endpoint, as whoever holds this key meets it. Its budget and rate are kept; answers are kept in the folder, so that
    an interrupted audit asks nothing twice:

        tacit audit --url https://host:8000 --key-file key.txt --members train.npz --nonmembers held-out.npz

    Exit codes: 0 done, 1 a limit of --fail-above was exceeded, 2 bad input, or a limit on a figure that so few records
    cannot support. Ctrl-C keeps the reference models that are finished; the same command goes on from there.
    """
    from rich.console import Console

    from tacit.audit.membership_audit import audit as run_audit
    from tacit.audit.terminal import audit_table

    settings = _settings(
        recipe=recipe, train=train, budget=budget, class_names=class_names, gives=gives
    )
    records: dict[str, Any] = {}
    files = (members, nonmembers, population)
    if url is not None:
        _alone("--url", {"TARGET": target, "--weights": weights, "--gives": gives})
        records = _records(files)
        model: Any = _endpoint(url, key_file, ca, out, overwrite=overwrite)
    elif ca is not None or key_file is not None:
        raise ConfigError("--url of an endpoint expected with --key-file and --ca")
    elif target is None:
        raise ConfigError(
            "a model expected: TARGET, or --url of an endpoint; see tacit audit --help"
        )
    elif target.lower().endswith(_SCORES):
        given = {
            "--weights": weights, "--members": members, "--nonmembers": nonmembers, "--population": population,
            "--train": train, "--recipe": recipe,
        }  # fmt: skip
        model = _scores(target, gives, given)
    else:
        model, records = _model(target, weights, gives, _records(files), settings)
    with progress_bar() as bar, ExitStack() as stack:
        if url is not None:
            stack.callback(model.close)
        task = bar.add_task("starting", total=None)
        tell = _logged()

        def watch(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not bar.console.is_terminal:
                tell(what, done, total)

        result = run_audit(
            model,
            **records,
            **settings,
            shadows=shadows,
            attacks=names(attacks),
            fail_above=fail_above or (),
            seed=seed,
            out=out,
            overwrite=overwrite,
            watch=watch,
        )
    if as_json:
        print_json(result)
    else:
        console = Console()
        console.print(audit_table(result), width=min(100, console.width))
        say(f"report: {out / 'report.html'} and {out / 'report.json'}")
    if any(limit["exceeded"] for limit in result["limits"]):
        raise typer.Exit(1)


def _settings(
    *,
    recipe: Sequence[str] | None,
    train: str | None,
    budget: Sequence[str] | None,
    class_names: str | None,
    gives: str | None,
) -> dict[str, Any]:
    """What options of text say, before anything slow begins."""
    from tacit.audit.importing import imported
    from tacit.audit.targets import Gives

    if gives is not None and gives not in get_args(Gives):
        raise UnknownName("kind of answer", gives, get_args(Gives))
    if train is not None and recipe:
        raise ConfigError("--train or --recipe expected, both came: a recipe trains by itself")
    seconds, queries = read_budget(budget or ())
    return {
        "train_fn": read_recipe(recipe) if recipe else None if train is None else imported(train),
        "seconds": seconds,
        "queries": queries,
        "class_names": _class_names(class_names),
    }


def _scores(target: str, gives: str | None, given: Mapping[str, object]) -> Any:
    from tacit.audit.audited_data import read_scores

    if too_many := [name for name, value in given.items() if value]:
        raise ConfigError(
            f"{target} holds saved scores, and nothing else is needed: leave out {', '.join(too_many)}; a model is "
            "module:factory or a .onnx file"
        )
    kind: Any = gives
    return read_scores(Path(target), kind)


def _alone(name: str, given: Mapping[str, object]) -> None:
    if too_many := [other for other, value in given.items() if value]:
        raise ConfigError(f"{name} alone expected: leave out {', '.join(too_many)}")


def _endpoint(
    url: str, key_file: Path | None, ca: Path | None, out: Path, *, overwrite: bool
) -> Any:
    """An endpoint as the target; what it answers is kept in the folder of the report."""
    from tacit.audit.endpoint import MEMORY, open_endpoint
    from tacit.core.errors import OutputError
    from tacit.core.files import make_folder

    if (out / "report.json").exists() and not overwrite:  # before anything is asked
        raise OutputError(f"{out} holds a report already: give another --out, or --overwrite")
    make_folder(out, private=True)
    return open_endpoint(url, key=key_from(key_file), ca=ca, memory=out / MEMORY)


def _records(files: tuple[Path | None, Path | None, Path | None]) -> dict[str, Any]:
    """Members, non-members, and the population where there is one."""
    from tacit.audit.audited_data import read_records

    roles = ("members", "nonmembers", "population")
    for role, path in zip(roles[:2], files, strict=False):
        if path is None:
            raise ConfigError(
                f"--{role} FILE expected: without records that it was trained on (--members) and others (--nonmembers) a "
                "model cannot be audited; a file holds inputs and labels (.npz), or a column label (.csv)"
            )
    return {
        role: read_records(path)
        for role, path in zip(roles, files, strict=True)
        if path is not None
    }


def _model(
    target: str,
    weights: Path | None,
    gives: str | None,
    records: dict[str, Any],
    settings: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The target, and the records that it is asked about."""
    from tacit.audit.targets import open_target

    kind: Any = gives
    classes = None if settings["class_names"] is None else len(settings["class_names"])
    if classes is None and gives == "labels":  # which do not say how many there are
        classes = 1 + max(int(one.labels.max()) for one in records.values())
    return open_target(target, weights=weights, gives=kind, classes=classes), records


def read_budget(given: Sequence[str]) -> tuple[float | None, int | None]:
    """Seconds and queries from texts like ``10m`` and ``5000q``; None for no limit.

    Raises:
        ConfigError: one is written otherwise, or one kind comes twice.
    """
    seconds: float | None = None
    queries: int | None = None
    for text in given:
        found = _BUDGET.fullmatch(text)
        if found is None or (found[2] == "q" and "." in found[1]):
            raise ConfigError(f"a budget like 600s, 10m, 2h or 5000q expected, {text!r} came")
        if (queries if found[2] == "q" else seconds) is not None:
            raise ConfigError(
                f"one budget of time and one of queries expected, {text!r} is the second of its kind"
            )
        if found[2] == "q":
            queries = int(found[1])
        else:
            seconds = float(found[1]) * _SECONDS[found[2]]
    return seconds, queries


def read_recipe(given: Sequence[str]) -> Recipe:
    """A recipe from texts like ``epochs=20``.

    Raises:
        UnknownName: there is no such setting.
        ConfigError: a value is not of its type or out of range, or a setting that has no default is missing.
    """
    from tacit.nn.stacked import Recipe

    kinds = get_type_hints(Recipe)
    known = [one.name for one in fields(Recipe)]
    values: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            raise UnknownName("setting of a recipe", name, known)
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise ConfigError(
                f"--recipe {text}: {kinds[name].__name__} expected, got {value!r}"
            ) from None
    needed = [one.name for one in fields(Recipe) if one.default is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ConfigError(
            f"--recipe {missing[0]}=VALUE expected too: a recipe needs {', '.join(needed)}, as the model was trained with"
        )
    return Recipe(**values)


def _class_names(given: str | None) -> list[str] | None:
    if given is None or not given.startswith("@"):
        return names(given)
    path = Path(given[1:])
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"a text file with a name of a class a line expected, {path} cannot be read "
            f"({getattr(error, 'strerror', None) or error})"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _logged() -> Callable[[str, int, int], None]:
    """Progress for a log: a line where something else begins, and for each tenth of it."""
    told: tuple[str, int] | None = None

    def tell(what: str, done: int, total: int) -> None:
        nonlocal told
        now = what, 10 * done // max(1, total)
        if now != told:
            told = now
            say(f"{done}/{total} {what}")

    return tell
