"""What commands say: results to standard output, all else to standard error."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def say(text: str) -> None:
    """A line to standard error; what a peer may have put into it moves no terminal."""
    shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    print(shown, file=sys.stderr, flush=True)


def names(listed: str | None) -> list[str] | None:
    """Names from a comma-separated list; None where none was given."""
    return None if listed is None else [name.strip() for name in listed.split(",") if name.strip()]


def print_json(result: object) -> None:
    """One JSON object to standard output."""
    print(json.dumps(result, allow_nan=False))


def progress_bar() -> Progress:
    """A bar on standard error that goes away when it is done."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip


def table_of_run(result: dict[str, Any]) -> None:
    """A trained model, what it cost, and what is claimed of the run."""
    table = Table(show_header=False, box=None)
    if result["accuracy"] is not None:
        low, high = result["accuracy_interval"]
        table.add_row(
            "accuracy", f"{100 * result['accuracy']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
        )
    table.add_row("parameters", f"{result['parameters']:,}")
    table.add_row("seconds", f"{result['seconds']:.1f}")
    sent = sum(cost["bytes_sent"] for cost in result["cost"].values())
    table.add_row("bytes sent", f"{sent:,.0f}")
    for claim in result["claims"]:
        value = f" {claim['value']}" if claim["value"] is not None else ""
        table.add_row(claim["basis"], escape(claim["statement"] + value))
    Console().print(table)
    if result["model"]:
        say(f"model: {result['model']}")
