"""``tacit data``: what data sets there are, and fetching those that have a public home."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from tacit.cli.output import Json, print_json, say
from tacit.core.errors import ConfigError, TacitError

data_app = typer.Typer(
    help="Data sets: what is known, at hand, and to be had.", no_args_is_help=True
)


_BAD_INPUT = 2


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """The data sets that tacit knows, whether they are at hand, and whether `fetch` gets them."""
    from tacit.audit.provenance import header
    from tacit.nn.data import available

    listings = available()
    if as_json:
        entries = [asdict(listing) for listing in listings]
        print_json({**header("data list", {}, 0.0, seeded=False), "datasets": entries})
        return
    table = Table("name", "rows (train + test)", "shape", "classes", "at hand", "can be fetched")
    for item in listings:
        table.add_row(
            item.name,
            f"{item.rows_train} + {item.rows_test}",
            " x ".join(map(str, item.input_shape)),
            str(item.classes),
            "yes" if item.present else "no",
            "yes" if item.fetchable else "no",
        )
    Console().print(table)
    for item in listings:
        if not item.present:
            say(f"{item.name}: {item.why_not}; or `tacit data fetch` those that can be fetched")
            break  # one is enough: the others are missing in the same way


@data_app.command("fetch")
def data_fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="The data sets; see `tacit data list`.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put them ($TACIT_DATA); made if absent.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that have a public home.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Fetch and replace what is there already.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download data sets from their public homes, check every value, and put them in place.

    What fails leaves the folder's files as they were; the same command goes on where it stopped.
    """
    from tacit.audit.provenance import header
    from tacit.nn.homes import HOMES

    if everything == bool(names):
        raise ConfigError(f"name data sets to fetch, or give --all: {', '.join(sorted(HOMES))}")
    start = time.perf_counter()
    results = [_fetch(name, folder, overwrite) for name in dict.fromkeys(names or HOMES)]
    if as_json:
        settings = {
            "names": list(names or HOMES),
            "folder": None if folder is None else str(folder),
            "overwrite": overwrite,
        }
        said = header("data fetch", settings, time.perf_counter() - start, seeded=False)
        print_json({**said, "datasets": results})
    else:
        table = Table("name", "outcome", "files")
        for result in results:
            table.add_row(result["name"], result["outcome"], " and ".join(result["files"]) or "—")
        Console().print(table)
    if any(result["outcome"] == "failed" for result in results):
        raise typer.Exit(_BAD_INPUT)


def _fetch(name: str, folder: Path | None, overwrite: bool) -> dict[str, Any]:
    """One set's entry of the result; an error is told and ends this set only."""
    from tacit.nn.fetch import fetch
    from tacit.nn.homes import HOMES

    result: dict[str, Any] = {"name": name, "outcome": "failed", "files": [], "error": None}
    try:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            console=Console(stderr=True), transient=True,
        ) as bar:  # fmt: skip
            task, announced = bar.add_task(name, total=None), False

            def watch(came: int, expected: int) -> None:
                nonlocal announced
                if not announced:
                    say(
                        f"{name}: about {expected:,} bytes, and at most {2 * expected:,}, "
                        f"from {HOMES[name].base}"
                    )
                announced = True
                bar.update(task, completed=came, total=max(came, expected))

            fetched = fetch(name, folder, overwrite=overwrite, watch=watch)
    except TacitError as error:
        say(f"tacit: {type(error).__name__}: {error}")
        result["error"] = {"type": type(error).__name__, "message": str(error)}
        return result
    outcome = "fetched" if fetched.fresh else "at hand"
    say(f"{name}: {outcome}, every value checked")
    return {**result, "outcome": outcome, "files": list(map(str, fetched.files))}
