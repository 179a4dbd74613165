"""Write the tables of README.md and docs/ from the catalogue and from results/: run after either changes.

python scripts/readme.py          rewrites the tables
python scripts/readme.py --check  fails if they are not up to date
"""

from __future__ import annotations

import json
import math
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


def _measured_on(result: dict[str, Any], *, kernels: bool = False) -> str:
    machine = result["machine"]
    took = f"{result['seconds']:.0f} s"
    for work in ("training", "computing"):
        if f"{work}_seconds" in result:
            took = f"{result[f'{work}_seconds']:.0f} s of {work}, in processes side by side,"
    if result.get("quick") or result["settings"].get("quick"):
        took += " (a quick run)"
    return (
        f"Measured in {took} on {machine['cores']} cores of {machine['processor']}, "
        f"torch {machine['torch']}" + (f", {machine['kernels']}." if kernels else ".")
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
    """The matrix of results/compare-digits.json: attacks on records."""
    return _matrix("records")


def matrix_of_model() -> str:
    """The same: attacks on the finished model itself."""
    return _matrix("model")


def _matrix(about: str) -> str:
    result = _result("compare-digits")
    attacks = [a["name"] for a in result["attacks"] if a.get("about", "records") == about]
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


def _figures(name: str, *, leave_out: Callable[[dict[str, Any]], bool] | None = None) -> str:
    """The figures of a reproduction."""
    result = _result(name)
    rows = []
    for f in result["figures"]:
        if leave_out is not None and leave_out(f):
            continue
        paper = (
            "—"
            if f["paper"] is None
            else f"{f['paper']:g}" + (" (recalled)" if f["recalled"] else "")
        )
        low, high = f["interval"]
        between = "—" if low == high == f["here"] else f"{low:.4g} to {high:.4g}"
        here = "—" if f["here"] is None else f"{f['here']:.4g}"
        rows.append([f"`{f['name']}`", paper, here, between])
    return (
        _table(["figure", "paper", "here", "95 % interval"], rows) + "\n\n" + _measured_on(result)
    )


def leakage() -> str:
    """The figures of results/reproduce-leakage.json."""
    return _figures("reproduce-leakage")


def selective() -> str:
    """The figures of results/reproduce-3.json."""
    return _figures("reproduce-3")


def secure() -> str:
    """The figures of results/reproduce-6.json; of the mistakes those that were not caught, and how many were."""
    return _figures("reproduce-6", leave_out=_caught)


def secure_brief() -> str:
    """The figures of results/reproduce-6.json in two small tables."""
    result = _result("reproduce-6")
    figures = {f["name"]: f for f in result["figures"]}
    trained = [
        [
            f"{float(drop):.0%}",
            *(f"{figures[f'mnist/n100/drop{drop}/{name}']['here']:.4f}" for name in TRAINED),
        ]
        for drop in ("0", "0.1", "0.3")
    ]
    attacked = []
    for records, path in ((20, ""), (4, "four-records/"), (1, "one-record/")):
        cells = [figures[f"mnist/leakage/{path}{row}/reidentified"] for row in ATTACKED]
        attacked.append([str(records), *(_judged(cell) for cell in cells)])
    caught, passed = figures["mutants/caught"]["here"], figures["view/checks_passed"]["here"]
    checked = (
        f"On {figures['view/limbs']['here']:,} masked values honest members pass all {passed} checks of the server's view; "
        f"{caught:.0f} members with one mistake each are caught."
    )
    return "\n\n".join(
        [
            _table(["cut off", *TRAINED.values()], trained),
            _table(["records of an owner behind an update", *ATTACKED.values()], attacked),
            checked,
            _measured_on(result),
        ]
    )


TRAINED = {
    "accuracy": "accuracy",
    "unprotected/accuracy": "unprotected",
    "mean_error_over_bound": "largest error / bound",
}
ATTACKED = {
    "unprotected": "unprotected",
    "masked": "masked vectors",
    "secure": "the sums, too",
    "sabotaged": "masks left out",
}


def _judged(figure: dict[str, Any]) -> str:
    said = figure["settings"]
    return f"{SIGNS[said['verdict']]} {figure['here']:.2f} (chance {said['chance']:.2f})"


def _caught(figure: dict[str, Any]) -> bool:
    parts = str(figure["name"]).split("/")
    return parts[0] == "mutants" and len(parts) == 3 and figure["here"] == 1.0


def secagg() -> str:
    """The rounds of results/bench-secagg.json, a row each; the peer's figure and the ratio stand behind ours."""
    result = _result("bench-secagg")
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        cases.setdefault(row["case"], {})[row["metric"]] = row
    rows = [[case, *(_beside(of.get(metric)) for metric in ROUND)] for case, of in cases.items()]
    peers = sorted({r["peer"] for r in result["rows"] if r["peer"]})
    said = (
        f"\n\nBehind the strokes: {', '.join(peers)}, and how many times better tacit is."
        if peers
        else ""
    )
    return (
        _table(["round", *ROUND.values()], rows)
        + said
        + "\n\n"
        + _measured_on(result, kernels=True)
    )


ROUND = {
    "server_cpu_s": "server CPU, s",
    "client_cpu_s": "member CPU, s",
    "unmask_s": "unmask, s",
    "total_s": "all parties, s",
    "peak_rss_mb": "memory, MB",
    "traffic_ratio": "traffic / 16 bits",
    "failure_probability": "graph fails",
}


def _beside(row: dict[str, Any] | None) -> str:
    if row is None:
        return "—"
    if row["metric"] == "failure_probability":
        return f"2^{math.log2(row['tacit']):.2f}"
    if row["ratio"] is None:
        return _digits(row["tacit"])
    return f"**{_digits(row['tacit'])}** / {_digits(row['peer_value'])} / {_digits(row['ratio'])}×"


def _digits(value: float) -> str:
    """Three digits that count, more before the point, never an exponent: 0.00123, 12.3, 12,345."""
    places = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def transport() -> str:
    """The rows of results/bench-transport.json."""
    result = _result("bench-transport")
    rows = [
        [
            row["case"],
            row["metric"],
            f"{row['tacit']:.3g}",
            "—" if row["peer"] is None else f"{row['peer_value']:.3g}",
            "—" if row["ratio"] is None else f"{row['ratio']:.2f}×",
        ]
        for row in result["rows"]
    ]
    head = ["case", "metric", "here", "bare TLS socket", "here is better by"]
    return _table(head, rows) + "\n\n" + _measured_on(result)


def two_parties(name: str) -> str:
    """The rows of results/bench-two-party.json, bench-two-server.json, bench-dp-sgd.json or bench-shadows.json."""
    result = _result(name)
    rows = [
        [
            row["case"],
            row["metric"],
            f"{row['tacit']:.3g}",
            row["peer"] or "—",
            "—" if row["peer"] is None else f"{row['peer_value']:.3g}",
            "—" if row["ratio"] is None else f"{row['ratio']:.3g}×",
        ]
        for row in result["rows"]
    ]
    head = ["case", "metric", "here", "peer", "the peer", "here is better by"]
    return _table(head, rows) + "\n\n" + _measured_on(result, kernels=True)


def two_server() -> str:
    """The trainings of results/reproduce-5.json, and what was extrapolated from samples."""
    result = _result("reproduce-5")
    figures = {f["name"]: f for f in result["figures"]}

    def said(name: str, form: str = "{:.4g}", scale: float = 1.0) -> str:
        figure = figures[f"mnist/{name}"]
        paper = figure["paper"]
        beside = "" if paper is None else f" ({form.format(scale * paper)})"
        return form.format(scale * figure["here"]) + beside

    rows = []
    for name, title in TRAININGS.items():
        rows.append(
            [
                title,
                str(figures[f"mnist/{name}/accuracy"]["settings"]["protection"]["fraction"]),
                said(f"{name}/accuracy", "{:.2f} %", 100),
                said(f"{name}/plain_accuracy", "{:.2f} %", 100),
                *(said(f"{name}/{of}_s", "{:,.1f}") for of in ("online", "offline")),
                *(said(f"{name}/{of}_bytes", "{:,.1f}", 1e-9) for of in ("online", "offline")),
                said(f"{name}/online_rounds", "{:,.0f}"),
                said(f"{name}/expected_failures", "{:.1g}"),
            ]
        )
    head = [
        "training", "fraction", "accuracy", "in the clear", "online, s", "offline, s", "online, GB", "offline, GB", "rounds",
        "wrong truncations",
    ]  # fmt: skip
    samples = [
        [title, f"{figures[f'mnist/nn/squared-error/{name}']['here']:,.0f}"]
        for name, title in SAMPLES.items()
    ]
    return "\n\n".join(
        [
            _table(head, rows),
            _table(["squared error, extrapolated from a sample of steps", "seconds"], samples),
            _measured_on(result, kernels=True),
        ]
    )


TRAININGS = {
    "nn/squared-error": "network, squared error",
    "nn/squared-error/f16": "network, squared error",
    "nn/relu-sum": "network, relu-sum",
    "nn/relu-sum/f16": "network, relu-sum",
    "logistic-0": "logistic regression, 0 or not",
    "linear-0": "linear regression, 0 or not",
}
SAMPLES = {
    "lan/online_s_extrapolated": "online, 1 GB/s and 0.17 ms there and back",
    "wan/online_s_extrapolated": "online, 9 MB/s and 72 ms there and back",
    "transfers/offline_s_an_epoch_extrapolated": "offline by oblivious transfer, one epoch",
    "transfers/online_s_an_epoch_extrapolated": "online after that, one epoch",
}


def private() -> str:
    """The trainings of results/reproduce-4.json, its audits, and its noise."""
    result = _result("reproduce-4")
    figures = {f["name"]: f for f in result["figures"]}
    rows = []
    for name, found in figures.items():
        recipe, _, last = name.rpartition("/")
        if last != "accuracy":
            continue
        low, high = found["interval"]
        paper = f" ({found['paper']:.0%})" if found["paper"] is not None else ""
        spent = [figures[f"{recipe}/epsilon/{of}"]["here"] for of in ("moments", "rdp", "pld")]
        said = found["settings"]
        rows.append(
            [
                f"`{recipe}`", f"{found['here']:.2%}{paper}", f"{low:.2%} to {high:.2%}", str(len(said["seeds"])),
                *(f"{epsilon:.3g}" for epsilon in spent),
            ]
        )  # fmt: skip
    honest = figures["audit/honest_below_claim"]
    audits = honest["settings"]["audits"]
    caught = [
        f"{name.rpartition('/')[2].replace('-', ' ')} {f['settings']['count']} of {f['settings']['audits']}"
        for name, f in figures.items()
        if name.startswith("audit/caught/")
    ]
    told = {kind: figures[f"noise/{kind}/advantage"] for kind in ("discrete", "float")}
    between = " to ".join(f"{end:.2f}" for end in told["discrete"]["interval"])
    return "\n\n".join(
        [
            _table(["recipe", "accuracy", "95 % interval", "seeds", "ε, moments", "ε, RDP", "ε, PLD"], rows),
            f"Audits: {honest['settings']['count']} of {audits} honest trainings stay at or below their claim; "
            f"mistakes that are caught: {', '.join(caught)}. The discrete noise: chi-square p = "
            f"{figures['noise/chi_square_p']['here']:.2g} on {figures['noise/chi_square_p']['n']:,} draws, "
            f"{figures['noise/draws_a_second']['here'] / 1e6:.0f} million draws a second; an attack on the last bits gains "
            f"{told['discrete']['here']:.2f} ({between}) there, and {told['float']['here']:.2f} on noise in floats.",
            _measured_on(result),
        ]
    )  # fmt: skip


LATER = {
    "lira-online": "LiRA, online", "lira-offline": "LiRA, offline", "student-lira-online": "LiRA, Student",
    "rmia-online": "RMIA, online",
    "rmia-offline": "RMIA, offline", "reference": "Reference", "loss": "Loss",
}  # fmt: skip
MITIGATIONS = {
    "location30/strict/shokri": "all probabilities", "location30/mitigation/top3": "the top 3",
    "location30/mitigation/top1": "the top 1", "location30/mitigation/labels": "the label",
    "location30/mitigation/digits3": "3 digits", "location30/mitigation/digits1": "1 digit",
    "location30/mitigation/temperature5": "temperature 5", "location30/mitigation/temperature20": "temperature 20",
    "location30/mitigation/l2-0.001": "L2, 0.001", "location30/mitigation/l2-0.005": "L2, 0.005",
}  # fmt: skip
SOURCES = {
    "location30/shared/shokri": "real, judged records among them", "location30/strict/shokri": "real, disjoint from them",
    "location30/shadow-data/noisy0.1": "a tenth of the features wrong",
    "location30/shadow-data/noisy0.2": "a fifth wrong", "location30/shadow-data/marginal": "drawn from marginals",
    "location30/shadow-data/synthesised": "hill climbing on the target",
}  # fmt: skip


def _said(figures: dict[str, Any], name: str) -> str:
    """A figure with its interval, the paper's beside it."""
    found = figures[name]
    if found["here"] is None:
        return "—"
    low, high = found["interval"]
    paper = "" if found["paper"] is None else f" (paper {found['paper']:.3f}, recalled)"
    return f"{found['here']:.3f} [{low:.3f}, {high:.3f}]{paper}"


def _rows_of(
    figures: dict[str, Any], names: dict[str, str], of: tuple[str, ...]
) -> list[list[str]]:
    return [[title, *(_said(figures, f"{name}/{one}") for one in of)] for name, title in names.items()]  # fmt: skip


def membership_brief() -> str:
    """The headlines of results/reproduce-14.json."""
    result = _result("reproduce-14")
    figures = {f["name"]: f for f in result["figures"]}
    shokri = dict(list(SOURCES.items())[:2])
    of = ("auc", "tpr@0.01fpr")
    later = [
        [title, *(_said(figures, f"{data}/{name}/{one}") for data in ("location30", "cifar10") for one in of)]
        for name, title in LATER.items()
    ]  # fmt: skip
    null = figures["null-control/strongest-covers-chance"]
    all_of = figures["null-control/all-cover-chance"]
    wrong = figures["null-control/called-leaks"]
    head = ["attack by reference models"]
    head += [
        f"{data}{of}"
        for data in ("Location-30, ", "CIFAR-10, ")
        for of in ("AUC", "TPR at 1 % FPR")
    ]
    terms = ("accuracy", "precision", "recall")
    return "\n\n".join(
        [
            _table(["shadow data", *terms], _rows_of(figures, shokri, terms)),
            _table(head, later),
            f"Null control: of {null['n']} audits of models that saw neither set the interval of the strongest attack "
            f"covers chance in {null['here']:.1%}, all intervals together in {all_of['here']:.1%}, and {wrong['here']:.1%} "
            "call a leak.",
            _measured_on(result),
        ]
    )


def membership() -> str:
    """All of results/reproduce-14.json: shadow data, mitigations, and what came later."""
    result = _result("reproduce-14")
    figures = {f["name"]: f for f in result["figures"]}
    of = ("accuracy", "precision", "recall", "auc")
    head = [*of[:3], "AUC"]
    return "\n\n".join(
        [
            _table(["shadow data", *head], _rows_of(figures, SOURCES, of)),
            _table(["what the target gives", *head], _rows_of(figures, MITIGATIONS, of)),
            membership_brief().partition("\n\n")[2],
        ]
    )


def curve() -> str:
    """Accuracy against the budget of one value, from results/reproduce-3.json, as a picture."""
    figures = {f["name"]: f for f in _result("reproduce-3")["figures"]}
    stem = "mnist/n30/svt/epsilon_over_c"
    points = sorted(
        (
            float(name.removeprefix(stem).split("/")[0]),
            figure["here"],
            figures[name.replace("accuracy", "composed_epsilon")]["here"],
        )
        for name, figure in figures.items()
        if name.startswith(stem) and name.endswith("/accuracy")
    )
    levels = [
        ("together, no noise", figures["mnist/n30/theta0.1/accuracy"]["here"]),
        ("alone", figures["mnist/alone/accuracy"]["here"]),
    ]
    left, right, top, bottom = 96, 640, 40, 262
    first, last = (math.log10(points[end][0]) for end in (0, -1))

    def x(budget: float) -> float:
        return left + 40 + (right - left - 80) * (math.log10(budget) - first) / (last - first)

    def y(share: float) -> float:
        return bottom - (bottom - top) * share

    style = (ROOT / "docs/images/vantage-server.svg").read_text()
    said = "; ".join(f"{100 * a:.1f} % at {b:g}, composed epsilon {e:.3g}" for b, a, e in points)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 744 344" width="744" height="344" role="img" '
        'aria-labelledby="curve-title curve-desc">',
        '  <title id="curve-title">What the noise of the sparse vector technique costs</title>',
        f'  <desc id="curve-desc">Accuracy on MNIST against the budget of one value: {said}.</desc>',
        style[style.index("  <style>") : style.index("</style>") + 8],
        '  <rect class="panel" x="0.5" y="0.5" width="743" height="343" rx="8"/>',
    ]

    def text(
        at: float, height: float, said: str, kind: str = "small quiet", anchor: str = "middle"
    ) -> None:
        parts.append(
            f'  <text class="{kind}" x="{at:.0f}" y="{height:.0f}" text-anchor="{anchor}">{said}</text>'
        )

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'  <path class="line" d="M{left} {y(share):.0f}H{right}" stroke-opacity="0.35"/>'
        )
        text(left - 10, y(share) + 4, f"{100 * share:.0f} %", anchor="end")
    for place, (name, share) in enumerate(levels):
        parts.append(
            f'  <path class="line" d="M{left} {y(share):.1f}H{right}" stroke-dasharray="5 4"/>'
        )
        text(right + 6, y(share) + (-2, 14)[place], name.split(",")[0], anchor="start")
    path = "L".join(f"{x(b):.1f} {y(a):.1f}" for b, a, _ in points)
    parts.append(f'  <path class="seen" d="M{path}"/>')
    for budget, share, epsilon in points:
        parts.append(f'  <circle class="pupil" cx="{x(budget):.1f}" cy="{y(share):.1f}" r="5"/>')
        above = share < 0.8
        text(x(budget), y(share) + (-12 if above else 24), f"{100 * share:.1f} %", "small hot")
        text(x(budget), bottom + 22, f"{budget:g}", "small")
        text(x(budget), bottom + 42, f"{epsilon:.2g}".replace("e+0", "e"))
    text(left - 10, bottom + 22, "epsilon / c", "small", "end")
    text(left - 10, bottom + 42, "composed", anchor="end")
    text((left + right) / 2, 24, "Accuracy on MNIST, 30 participants, a tenth shared", "name")
    text(
        (left + right) / 2,
        bottom + 68,
        "budget of one value in one turn, and epsilon of a participant over all turns",
    )
    return "\n".join([*parts, "</svg>", ""])


PICTURES: dict[str, Callable[[], str]] = {"docs/images/plot-selective-svt.svg": curve}
TABLES: dict[str, Callable[[], str]] = {
    "papers": papers, "matrix": matrix, "leakage": leakage, "selective": selective,
    "secure": secure, "secure-brief": secure_brief, "secagg": secagg, "transport": transport,
    "two-server": two_server, "private": private, "membership": membership, "membership-brief": membership_brief,
    "bench-shadows": lambda: two_parties("bench-shadows"),
    "bench-dp-sgd": lambda: two_parties("bench-dp-sgd"),
    "bench-two-party": lambda: two_parties("bench-two-party"),
    "bench-two-server": lambda: two_parties("bench-two-server"),
}  # fmt: skip
_ELSEWHERE = (
    "secure",
    "membership",
    "bench-shadows",
    "bench-dp-sgd",
    "bench-two-party",
    "bench-two-server",
)
PAGES = {
    "README.md": tuple(name for name in TABLES if name not in _ELSEWHERE),
    "docs/papers/03-selective-sgd.md": ("selective",),
    "docs/papers/04-dp-sgd.md": ("private", "bench-dp-sgd"),
    "docs/papers/06-secure-aggregation.md": ("secure", "secagg"),
    "docs/papers/14-membership.md": ("membership", "bench-shadows"),
    "docs/federation.md": ("transport",),
    "docs/two-party.md": ("bench-two-party",),
    "docs/two-server.md": ("two-server", "bench-two-server"),
}


def rewritten(text: str, page: str = "README.md") -> str:
    """A page's text with every table between its markers made anew."""
    for name in PAGES[page]:
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        body = TABLES[name]()
        text, count = re.subn(
            pattern, lambda m, body=body: m[1] + body + "\n" + m[2], text, flags=re.S
        )
        if count != 1:
            raise SystemExit(f"{page} needs exactly one pair of markers for {name}, it has {count}")
    return text


def main() -> None:
    """Rewrite, or check."""
    made = {page: rewritten((ROOT / page).read_text(), page) for page in PAGES}
    made |= {picture: draw() for picture, draw in PICTURES.items()}
    for page, after in made.items():
        path = ROOT / page
        before = path.read_text() if path.exists() else ""
        if "--check" not in sys.argv:
            path.write_text(after)
        elif before != after:
            raise SystemExit(f"{page} is out of date: run python scripts/readme.py")


if __name__ == "__main__":
    main()
