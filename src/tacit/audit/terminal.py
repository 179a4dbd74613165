"""A comparison, the difference between two, and an audit, as tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tacit.audit import difference, words
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


def difference_table(found: Mapping[str, Any], *, width: int = 100) -> Table:
    """Two reports, compared, for a terminal.

    Args:
        found: what `tacit.audit.difference.difference` found.
        width: columns of the terminal.
    """
    said = difference.in_words(found)
    whole = Table.grid(padding=(0, 0, 1, 0))
    top = Text(words.printable(said["headline"]), style="bold")
    top.append(f"\nbefore: {words.printable(said['before'])}", style="default not bold")
    top.append(f"\nafter:  {words.printable(said['after'])}", style="default not bold")
    whole.add_row(top)
    if said["unfair"]:
        reasons = "\n".join(f"- {words.printable(reason)}" for reason in said["unfair"])
        whole.add_row(Text(f"Not a like-for-like comparison:\n{reasons}", style="yellow"))
    if said["cells"]:
        cells = _narrow("protection", "attack", "change", "before", "after")
        for cell in said["cells"]:
            change = Text(cell["said"], style=_CHANGE_STYLES[cell["change"]])
            change.append("\nmoved" if cell["moved"] and "moved" not in cell["said"] else "")
            sides = [_side(cell[side]) for side in ("before", "after")]
            names = (Text(_broken(cell[key])) for key in ("protection", "attack"))
            cells.add_row(*names, change, *sides)
        whole.add_row(cells)
    for sentence in said["only"]:
        whole.add_row(Text(words.printable(sentence)))
    if said["rows"]:
        rows = _narrow("protection", "accuracy", "time", "sent", "")
        for row in said["rows"]:
            pairs = [" → ".join(row[key]) for key in ("accuracy", "seconds", "bytes")]
            moved = "accuracy moved" if row["moved"] else ""
            rows.add_row(Text(_broken(row["protection"])), *pairs, moved)
        whole.add_row(rows)
    if said["unlike"]:
        unlike = _narrow("of", "setting that differs", "before", "after")
        for item in said["unlike"]:
            keys = ("where", "setting", "before", "after")
            unlike.add_row(*(Text(words.printable(item[key])) for key in keys))
        whole.add_row(unlike)
    whole.width = width
    return whole


_CHANGE_STYLES = {"worse": "bold red", "lost": "bold magenta", "better": "blue", "other": "default"}


def _narrow(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def _side(side: Mapping[str, Any]) -> Text:
    state = side["state"]
    text = Text(f"{state.symbol} {state.word}", style=state.style)
    if side["value"]:
        text.append(f"\n{side['value']} {side['interval']}", style="dim not bold")
    return text


def audit_table(result: Result) -> Group:
    """An audit for a terminal: the verdict, what it means, a row for each attack, and limits.

    Args:
        result: what ``tacit audit --json`` prints.
    """
    state = words.audit_state(result)
    top = Text(f"{state.symbol} {state.word}", style=state.style)
    top.append(f"  {words.audit_headline(result)}", style="default bold")
    paragraphs = [Text(words.printable(said)) for said in result.get("paragraphs") or []]
    parts: list[RenderableType] = [top, *paragraphs]
    attacks = list(result.get("attacks") or [])
    if attacks:
        parts.append(_attack_rows(result, attacks))
    if on_model := list(result.get("model_attacks") or []):
        parts.append(_model_rows(on_model))
    reasons: dict[str, list[str]] = {}
    for one in result.get("left_out") or []:
        reasons.setdefault(str(one.get("why")), []).append(words.title(one))
    if reasons:
        lines = (f"{', '.join(titles)}: {why}" for why, titles in reasons.items())
        parts.append(Text("\n".join(["left out", *map(words.printable, lines)]), style="dim"))
    if bound := result.get("epsilon"):
        value, delta = words.figure(bound.get("value")), words.figure(bound.get("delta"))
        assumed = words.printable(bound.get("assumes"))
        said = f"epsilon is at least {value} at delta {delta}, if one assumes: {assumed}"
        if words.warned_checks(result):
            said += "; a check of the data warns: if the two sets differ in more than membership, this says nothing"
        parts.append(Text(said, style="dim"))
    for limit in result.get("limits") or []:
        state = words.limit_state(limit)
        line = Text(f"{state.symbol} {state.word}", style=state.style)
        metric, most = words.printable(limit["metric"]), words.figure(limit["limit"])
        line.append(
            f"  {metric}: at most {most} allowed, {words.figure(limit['value'])} reached",
            style="default not bold",
        )
        parts.append(line)
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def _attack_rows(result: Result, attacks: Sequence[Result]) -> Table:
    tprs = [
        name
        for name in words.tpr_metrics(attacks)
        if any((one["metrics"].get(name) or {}).get("value") is not None for one in attacks)
    ]
    table = _narrow("attack", "AUC", *map(words.metric, tprs))
    for one in attacks:
        name = Text(words.printable(words.title(one)))
        name.append("\nstrongest" if one["name"] == result.get("strongest") else "", style="dim")
        auc = one["metrics"].get("auc") or {}
        state = words.beside_chance(auc, 0.5)
        text = Text(f"{state.symbol} {state.word}", style=state.style)
        text.append(
            f"\n{words.figure(auc.get('value'))} {words.interval(auc.get('interval'), '')}",
            style="default not bold",
        )
        table.add_row(name, text, *(_supported(one["metrics"].get(name) or {}) for name in tprs))
    return table


def _model_rows(attacks: Sequence[Result]) -> Table:
    table = _narrow("the model itself", "figure", "chance")
    for one in attacks:
        state = words.beside_chance(one, one.get("chance") or 0.0)
        text = Text(f"{state.symbol} {state.word}", style=state.style)
        text.append(
            f"\n{words.figure(one.get('value'))} {words.interval(one.get('interval'), '')}",
            style="default not bold",
        )
        name = Text(words.printable(words.title(one)))
        name.append(f"\n{words.metric(str(one.get('metric')))}", style="dim")
        table.add_row(name, text, words.figure(one.get("chance")))
    return table


def _supported(entry: Result) -> Text:
    if entry.get("value") is None:
        return Text(words.printable(str(entry.get("why") or "–").partition(",")[0]), style="dim")
    text = Text(words.figure(entry["value"]))
    text.append(f"\n{words.interval(entry.get('interval'), '')}", style="dim")
    return text
