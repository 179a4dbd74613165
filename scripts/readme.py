"""Write README.md's tables from the catalogue and from results/: run after either changes.

python scripts/readme.py          rewrites the tables
python scripts/readme.py --check  fails if they are not up to date
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tacit.catalogue import PAPERS

ROOT = Path(__file__).resolve().parents[1]
SIGNS = {"leaks": "▲ leaks", "contained": "○ contained", "inconclusive": "? inconclusive"}


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / f"{name}.json").read_text())
    return found


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _measured_on(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"Measured in {result['seconds']:.0f} s on {machine['cores']} cores of {machine['processor']}, "
        f"torch {machine['torch']}."
    )


def papers() -> str:
    """The fifteen systems."""
    here = {"planned": "planned", "part": "in part", "done": "yes"}
    return _table(
        ["", "system", "protects / attacks", "against", "works here"],
        [
            [
                f"[{p.number}]",
                p.name,
                p.protects,
                p.against,
                here[p.status] + (f": {p.note}" if p.status == "part" else ""),
            ]
            for p in PAPERS
        ],
    )


def matrix() -> str:
    """The matrix of results/compare-digits.json."""
    result = _result("compare-digits")
    attacks = [a["name"] for a in result["attacks"]]
    rows = []
    for p in result["protections"]:
        name = f"{p['name']} *(control)*" if p["control"] else p["name"]
        cells = [_cell(p["cells"][a]) for a in attacks]
        rows.append(
            [name, f"{100 * p['accuracy']:.1f} %", f"{p['cost']['bytes'] / 1e6:.3g} MB", *cells]
        )
    head = ["protection", "accuracy", "traffic", *(a.replace("@", " @ ") for a in attacks)]
    return _table(head, rows) + "\n\n" + _measured_on(result)


def _cell(cell: dict[str, Any]) -> str:
    verdict = SIGNS.get(cell["verdict"], cell["verdict"])
    return verdict if cell["value"] is None else f"{verdict} {cell['value']:.2f}"


def leakage() -> str:
    """The figures of results/reproduce-leakage.json."""
    result = _result("reproduce-leakage")
    rows = []
    for f in result["figures"]:
        paper = (
            "—"
            if f["paper"] is None
            else f"{f['paper']:g}" + (" (recalled)" if f["recalled"] else "")
        )
        interval = f.get("interval")
        between = "—" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
        rows.append([f"`{f['name']}`", paper, f"{f['here']:.4g}", between])
    return (
        _table(["figure", "paper", "here", "95 % interval"], rows) + "\n\n" + _measured_on(result)
    )


def transport() -> str:
    """The rows of results/bench-transport.json."""
    result = _result("bench-transport")
    rows = [[r["case"], r["metric"], f"{r['tacit']:.3g}"] for r in result["rows"]]
    return _table(["case", "metric", "here"], rows) + "\n\n" + _measured_on(result)


TABLES: dict[str, Callable[[], str]] = {
    "papers": papers, "matrix": matrix, "leakage": leakage, "transport": transport,
}  # fmt: skip


def rewritten(text: str) -> str:
    """README's text with every table between its markers made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        body = make()
        text, count = re.subn(
            pattern, lambda m, body=body: m[1] + body + "\n" + m[2], text, flags=re.S
        )
        if count != 1:
            raise SystemExit(
                f"README.md needs exactly one pair of markers for {name}, it has {count}"
            )
    return text


def main() -> None:
    """Rewrite, or check."""
    path = ROOT / "README.md"
    before = path.read_text()
    after = rewritten(before)
    if "--check" in sys.argv:
        if before != after:
            raise SystemExit("README.md's tables are out of date: run python scripts/readme.py")
        return
    path.write_text(after)


if __name__ == "__main__":
    main()
