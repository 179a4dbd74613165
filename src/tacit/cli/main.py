"""The command line: parse, call, render.

Results go to standard output, all else to standard error. With ``--json`` standard output is exactly one JSON object. Exit
codes: 0 done, 1 what was asked for in CI failed (``audit --fail-above``, ``report diff --fail-on-worse``), 2 bad input, 130
interrupted (finished work is kept and a rerun goes on).
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TextIO

import click
import typer
from rich.console import Console
from rich.table import Table

import tacit
from tacit.cli.audit import audit
from tacit.cli.data import data_app
from tacit.cli.federation import coordinate, join
from tacit.cli.keys import keys_app
from tacit.cli.output import Json, names, print_json, progress_bar, say, table_of_run
from tacit.cli.predict import predict
from tacit.cli.report import app as report_app
from tacit.cli.serve import access_app, serve
from tacit.core.errors import TacitError, TacitWarning, UnknownName

app = typer.Typer(
    help="Measure what a neural network leaks; train, share and serve networks without leaking.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.command()(audit)
app.command()(coordinate)
app.command()(join)
app.command()(predict)
app.command()(serve)
app.add_typer(access_app, name="access")
app.add_typer(keys_app, name="keys")
app.add_typer(report_app, name="report")

Quick = Annotated[
    bool, typer.Option("--quick", help="The same code with fewer seeds and smaller sizes.")
]

_INTERRUPTED = 130


@app.command()
def compare(
    dataset: Annotated[
        str,
        typer.Option(
            help="digits (bundled), mnist, cifar10, att-faces, location30, adult ...: see `tacit data list`."
        ),
    ] = "digits",
    protections: Annotated[
        str | None, typer.Option(help="Rows, comma-separated; all by default.")
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(help="Columns, as attack@vantage, comma-separated; all by default."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting: PROTECTION.SETTING=VALUE. May be given more than once."
        ),
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="Add protections that were broken on purpose.")
    ] = True,
    seeds: Annotated[
        int | None, typer.Option(help="Independent repetitions, pooled (3; 1 with --quick).")
    ] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    owners: Annotated[
        int | None, typer.Option(help="Owners among whom the training records are split.")
    ] = None,
    records: Annotated[int | None, typer.Option(help="Training records of each owner.")] = None,
    split: Annotated[str, typer.Option(help="iid, or label: each owner holds few labels.")] = "iid",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report (tacit-report/DATASET).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace a report of another run in that folder.")
    ] = False,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Run every attack against every protection and report leak, accuracy and cost.

    The matrix is printed and written as report.html and report.json. Ctrl-C keeps the finished cells; the same command goes
    on from there.
    """
    from tacit import catalogue
    from tacit.audit.terminal import matrix_table

    folder = out or Path("tacit-report") / (dataset + ("-quick" if quick else ""))
    with progress_bar() as bar:
        task, told = bar.add_task("starting", total=None), -1

        def watch(what: str, done: int, total: int) -> None:
            nonlocal told
            bar.update(task, description=what, completed=done, total=total)
            if done > told and not bar.console.is_terminal:  # a log gets a line a cell
                told = done
                say(f"{done}/{total} {what}")

        result = catalogue.compare(
            dataset,
            protections=names(protections),
            attacks=names(attacks),
            changes=setting or (),
            controls=controls,
            seeds=seeds,
            seed=seed,
            owners=owners,
            records=records,
            split=split,
            out=folder,
            overwrite=overwrite,
            quick=quick,
            watch=watch,
        )
    if as_json:
        print_json(result)
        return
    console = Console()
    console.print(matrix_table(result, width=console.width))
    say(f"report: {folder / 'report.html'} and {folder / 'report.json'}")


@app.command()
def train(
    scheme: Annotated[
        str,
        typer.Argument(
            help="centralised, dp-sgd, federated-sgd, federated-averaging, local-dp, selective-sgd, "
            "secure-aggregation, two-server"
        ),
    ],
    dataset: Annotated[str, typer.Option(help="See `tacit data list`.")] = "digits",
    model: Annotated[
        str,
        typer.Option(
            help="mlp, cnn, tanh-cnn (that of selective SGD), or module:factory, your function of (input_shape, classes)."
        ),
    ] = "mlp",
    epsilon: Annotated[
        float | None, typer.Option(help="dp-sgd: the least noise that stays within it is chosen.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="dp-sgd: of the claim; 1e-5 by default.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting of the scheme: SETTING=VALUE. May be given often."
        ),
    ] = None,
    owners: Annotated[
        int, typer.Option(help="Owners among whom the training rows are dealt.")
    ] = 10,
    records: Annotated[int | None, typer.Option(help="Rows of each; all by default.")] = None,
    split: Annotated[str, typer.Option(help="iid, or label: each owner holds few labels.")] = "iid",
    seed: Annotated[
        int, typer.Option(help="Of dealing, weights and order; secrets do not follow from it.")
    ] = 0,
    link: Annotated[
        str,
        typer.Option(
            help="local: all parties in this process; tcp: each a process of this machine, over TLS."
        ),
    ] = "local",
    delay: Annotated[
        float, typer.Option(help="tcp: imitate a network, seconds that a message takes one way.")
    ] = 0.0,
    bandwidth: Annotated[
        float, typer.Option(help="tcp: imitate a network, bytes a second; 0 for no limit.")
    ] = 0.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for model.safetensors and run.json.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model in that folder.")] = False,
    secret_seed: Annotated[
        str | None,
        typer.Option(help="For tests alone: secrets follow from this text.", hidden=True),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train with one scheme, and say what is claimed and what it cost.

    Schemes: centralised, dp-sgd, federated-sgd, federated-averaging, local-dp, selective-sgd, secure-aggregation,
    two-server.

    With --out, a run that was killed goes on where it was when the same command is given again.

    For instance selective SGD on MNIST, thirty owners who share a hundredth of what they learn:

        tacit train selective-sgd --dataset mnist --model tanh-cnn --owners 30 --records 600 --set theta_u=0.01 --out model

    Or your own model, differentially private: make(input_shape, classes) in nets.py gives a torch module:

        tacit train dp-sgd --model nets:make --dataset mnist --epsilon 2 --delta 1e-5 --set lot_size=512 --set epochs=20

    The settings of a scheme are those of its class; a wrong name lists them.
    """
    from tacit import catalogue
    from tacit.parties.links.link import Shape

    budget = [
        f"{name}={value}"
        for name, value in (("epsilon", epsilon), ("delta", delta))
        if value is not None
    ]

    shape = Shape(delay=delay, bandwidth=bandwidth) if delay or bandwidth else None
    with progress_bar() as bar:
        task = bar.add_task(f"training by {scheme}", total=None)
        result = catalogue.train(
            scheme,
            dataset=dataset,
            model=model,
            changes=[*budget, *(setting or ())],
            owners=owners,
            records=records,
            split=split,
            seed=seed,
            link=link,
            shape=shape,
            out=out,
            overwrite=overwrite,
            note=say,
            secret_seed=secret_seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(result)
        return
    table_of_run(result)


@app.command()
def papers(
    number: Annotated[int | None, typer.Argument(help="Show one system in full.")] = None,
    as_json: Json = False,
) -> None:
    """The fifteen systems of the survey: what each protects, from whom, and what works here."""
    from tacit.audit.provenance import header
    from tacit.catalogue import PAPERS

    known = {str(paper.number): paper for paper in PAPERS}
    if number is not None and str(number) not in known:
        raise UnknownName("paper", str(number), known)
    chosen = PAPERS if number is None else (known[str(number)],)
    if as_json:
        entries = [{f.name: getattr(paper, f.name) for f in fields(paper)} for paper in chosen]
        said = header("papers", {"number": number}, 0.0, seeded=False)
        print_json({**said, "papers": entries})
        return
    if number is not None:
        table = Table(show_header=False, box=None)
        for f in fields(chosen[0]):
            table.add_row(f"[bold]{f.name}[/bold]", str(getattr(chosen[0], f.name)) or "—")
    else:
        table = Table("", "system", "protects", "against", "here")
        for paper in chosen:
            table.add_row(
                f"[{paper.number}]", paper.name, paper.protects, paper.against, paper.status
            )
    Console().print(table)


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(help="What to rerun: a paper's number (1 to 6, 14 or 15), or leakage.")
    ],
    quick: Quick = False,
    full: Annotated[bool, typer.Option("--full", help="Also what takes long.")] = False,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder in which finished trainings are kept.")] = Path(
        "tacit-reproduce"
    ),
    as_json: Json = False,
) -> None:
    """Rerun a headline result on its data and print the paper's figure beside ours.

    Ctrl-C keeps the parts that are finished, and the same command goes on from there (not leakage).
    """
    from tacit.audit.figures import Effort
    from tacit.audit.provenance import header
    from tacit.audit.reproduce import reproduce as run_reproduce

    start = time.perf_counter()
    effort = Effort(quick=quick, full=full, seed=seed, folder=out, progress=say)
    result = run_reproduce(name, effort)
    said = header(
        "reproduce",
        {"quick": quick, "full": full, "seed": seed},
        time.perf_counter() - start,
        seeded=bool(result.get("seeded")),
    )
    figures: Any = result["figures"]
    if as_json:
        print_json({**said, **result})
        return
    table = Table("figure", "paper", "here", "95 % interval", "n", title=f"reproduce {name}")
    for figure in figures:
        paper = (
            "—"
            if figure["paper"] is None
            else f"{figure['paper']:g}{' (recalled)' if figure['recalled'] else ''}"
        )
        here, ends = figure["here"], figure.get("interval")
        exact = ends is None or list(ends) == [here, here]
        interval = "—" if exact else " to ".join(f"{end:.4g}" for end in ends)
        value = "—" if here is None else f"{here:.4g}"
        table.add_row(figure["name"], paper, value, interval, str(figure.get("n", "")))
    Console().print(table)


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="What to measure: transport, secagg, dp-sgd, shadows, extraction, serve, two-party, or two-server."
        ),
    ],
    against: Annotated[
        str,
        typer.Option(
            help="Peers in the same run, comma-separated: flower in secagg, opacus in dp-sgd, art in shadows and "
            "extraction, spu and crypten in two-party and two-server."
        ),
    ] = "",
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Measure speed and bytes on this machine, beside peers where there are any.

    Peers are installed by make peers, each in an environment of its own; one that is not there leaves its column empty.
    """
    from tacit.audit.bench import bench as run_bench
    from tacit.audit.provenance import header

    start = time.perf_counter()
    peers = [peer for peer in against.split(",") if peer]
    result = run_bench(name, quick=quick, against=peers, note=say)
    result = {
        **header(
            "bench", {"quick": quick, "against": peers}, time.perf_counter() - start, seeded=False
        ),
        **result,
    }
    if as_json:
        print_json(result)
        return
    table = Table("case", "metric", "tacit", "peer", "ratio", title=f"bench {name}")
    for row in result["rows"]:
        table.add_row(
            row["case"],
            row["metric"],
            f"{row['tacit']:.4g}",
            row["peer"] or "—",
            "—" if row["ratio"] is None else f"{row['ratio']:.4g}",
        )
    Console().print(table)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del file, line
    own = issubclass(category, TacitWarning)
    say(
        f"tacit: warning: {message}"
        if own
        else f"{filename}:{lineno}: {category.__name__}: {message}"
    )


def _version(show: bool) -> None:
    if show:
        print(f"tacit {tacit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure what a neural network leaks; train, share and serve networks without leaking."""
    del version, debug


def run(arguments: list[str] | None = None) -> None:
    """Entry point: run the command and turn errors into exit codes."""
    given = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _warn
    try:
        code = app(args=given, prog_name="tacit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TacitError as error:
        if "--debug" in given:
            raise
        say(f"tacit: {type(error).__name__}: {error}")
        sys.exit(2)
    if code == _INTERRUPTED:
        say(
            "tacit: interrupted; where a command keeps finished parts, the same command goes on from there"
        )
    if isinstance(code, int) and code:
        sys.exit(code)


if __name__ == "__main__":
    run()
