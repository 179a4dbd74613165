"""``tacit report``: what to do with the reports that ``tacit compare`` wrote."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.cli.output import say

_HELP = """Send on, compare and export the reports that `tacit compare` wrote.

A report is a folder with report.json in it (the one named in `tacit compare --out`), or such a JSON file itself.

One page for several data sets, a single file without scripts that can be sent by mail:

    tacit report build tacit-report/digits tacit-report/mnist --out reports.html

What changed since the last run; in CI, exit code 1 if a cell leaks that did not:

    tacit report diff before after --fail-on-worse

Every figure as CSV, for a spreadsheet or a plot of your own:

    tacit report export tacit-report/digits --out figures
"""

app = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode="markdown")

_REPORT = "A folder with report.json, or such a file."


@app.command()
def build(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help=f"{_REPORT} One for each data set."),
    ],
    out: Annotated[Path, typer.Option(help="The page to write, for instance reports.html.")],
) -> None:
    """Make one self-contained page of several reports, each of another data set.

    Each FOLDER holds a report.json, or is such a file itself.
    It begins with an overview over all data sets; each data set is a section with its drawing, its matrix and its details.
    """
    from tacit.audit.report import read_report, render_reports

    page = render_reports([read_report(folder) for folder in folders])
    _write(out, page)
    say(f"{len(folders)} reports, {len(page.encode()) / 1e6:.1f} MB: {out}")


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help=_REPORT)],
    after: Annotated[Path, typer.Argument(help=_REPORT)],
    out: Annotated[Path | None, typer.Option(help="Write the difference as a page, too.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    fail_on_worse: Annotated[
        bool,
        typer.Option(
            "--fail-on-worse",
            help="Exit with 1 if a cell leaks that did not, or has lost its verdict. For CI.",
        ),
    ] = False,
) -> None:
    """Compare two reports: verdicts, figures beyond both intervals, accuracy, cost, and settings that differ.

    BEFORE and AFTER are folders with a report.json, or such files themselves.

    Worse is a cell that leaks and did not; lost is one whose attack failed or was not run any more; a figure has moved when
    each of the two lies outside the other's 95 % interval. Where data, settings, code or machine differ, it says so: then
    what changed need not come from the protections. Rows and columns that are in one report only are listed, and are
    neither worse nor lost.
    """
    from rich.console import Console

    from tacit.audit.difference import difference, is_worse
    from tacit.audit.provenance import header
    from tacit.audit.report import read_report, render_difference
    from tacit.audit.terminal import difference_table

    start = time.perf_counter()
    found = difference(read_report(before), read_report(after))
    if out is not None:
        _write(out, render_difference(found))
        say(f"difference: {out}")
    if as_json:
        settings: dict[str, Any] = {"before": str(before), "after": str(after)}
        said = header("report diff", settings, time.perf_counter() - start, seeded=False)
        print(json.dumps({**said, **found}, allow_nan=False))
    else:
        console = Console()
        console.print(difference_table(found, width=console.width))
    if fail_on_worse and is_worse(found):
        raise typer.Exit(1)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help=_REPORT)],
    out: Annotated[Path, typer.Option(help="A folder for the files; made if it does not exist.")],
) -> None:
    """Write every figure of a report as CSV, the reconstructions as PNG, and a README on the files.

    FOLDER holds a report.json, or is such a file itself.
    Figures keep all their digits. Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    from tacit.audit.export import write_tables
    from tacit.audit.report import read_report

    paths = write_tables(read_report(folder), out)
    say(f"{len(paths)} files: {paths[0]} says what is in them")


def _write(path: Path, page: str) -> None:
    from tacit.core.files import make_folder, write_file

    make_folder(path.parent)
    write_file(path, page)
