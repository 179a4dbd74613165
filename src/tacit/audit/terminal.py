"""The matrix of a comparison as a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from tacit.audit import words
from tacit.audit.words import Result


def matrix_table(result: Result, *, width: int = 100) -> Table:
    """The matrix for a terminal: protections down, attacks across.

    Args:
        result: what ``tacit compare --json`` prints.
        width: columns of the terminal.

    Returns:
        A table; with many attacks several parts below each other.
    """
    attacks = list(result.get("attacks") or [])
    each = max(1, (width - 25) // 15)  # names and costs take 25 columns, an attack 15
    groups = [attacks[i : i + each] for i in range(0, len(attacks), each)] or [[]]
    tables = [_terminal_part(result, group, first=i == 0) for i, group in enumerate(groups)]
    shown = {
        words.state(cell).slug
        for p in words.protections(result)
        for cell in words.cells(p, attacks)
    }
    used = [state for state in words.STATES if state.slug in shown]
    legend = Text("  ".join(f"{state.symbol} {state.word}" for state in used), style="dim")
    legend.append("\nbelow: value, [95 % interval]; contained is measured, not proved", style="dim")
    whole = Table.grid(padding=(0, 0, 1, 0))
    for table in tables:
        whole.add_row(table)
    whole.add_row(legend)
    return whole


def _terminal_part(result: Result, attacks: Sequence[Result], *, first: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, leading=1
    )
    table.add_column(Text("protection"), width=14, overflow="fold")
    if first:
        table.add_column(Text("accuracy\nand cost"), width=8, overflow="fold")
    for attack in attacks:
        table.add_column(Text(_broken(attack["name"])), width=14, overflow="fold")
    protections = sorted(words.protections(result), key=lambda p: bool(p.get("control")))
    for protection in protections:
        control = bool(protection.get("control"))
        name = Text(_broken(protection["name"]), style="italic" if control else "bold")
        if control:
            name.append("\n(a control,\nbroken on\npurpose)", style="dim")
        row = [name]
        if first:
            cost = protection.get("cost") or {}
            lines = [
                words.percent(protection.get("accuracy")),
                words.seconds(cost.get("seconds")),
                words.size(words.traffic(cost)),
            ]
            row.append(Text("\n".join(lines)))
        for cell in words.cells(protection, attacks):
            state = words.state(cell)
            text = Text(f"{state.symbol} {state.word}", style=state.style)
            if cell and words.measured(cell):
                metric = str(cell.get("metric") or "")
                text.append(
                    f"\n{words.figure(cell.get('value'), metric)}", style="default not bold"
                )
                text.append(
                    f"\n{words.interval(cell.get('interval'), metric)}", style="dim not bold"
                )
            row.append(text)
        table.add_row(*row)
    return table


def _broken(name: str, width: int = 14) -> str:
    """A name over several lines, broken at its own signs: what one would type stays readable."""
    lines = [""]
    for part in re.findall(r"@?[^-@]*-?", words.printable(name)):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
