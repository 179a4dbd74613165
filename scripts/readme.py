"""Write the tables of README.md and docs/ from the catalogue and from results/: run after either changes.

python scripts/readme.py          rewrites the tables
python scripts/readme.py --check  fails if they are not up to date
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tacit.audit.words import STATES
from tacit.catalogue import PAPERS

ROOT = Path(__file__).resolve().parents[1]
SIGNS = {state.slug: f"{state.symbol} {state.word}" for state in STATES}


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


RECOGNISERS = {
    "softmax": "softmax regression",
    "mlp": "MLP, 3000 units",
    "dae": "autoencoder, 1000-300",
}
INVERSIONS = {
    "softmax": "softmax regression", "mlp": "MLP, -log p", "mlp-mean-face": "MLP, from the mean face",
    "mlp-printed-cost": "MLP, 1 - p", "dae": "autoencoder, processed at every step",
    "dae-every-10-steps": "every 10 steps", "dae-without-process": "never",
    "extract-then-invert": "softmax regression, extracted first",
}  # fmt: skip
ATTRIBUTES = {
    "adult/marital-status": "Adult, marital status",
    "adult/race": "Adult, race",
    "pima/glucose": "Pima, glucose in 3 ranges",
}
#: What the reproduction of [1] aims at: (figure, at least or at most, in words).
AIMS = (
    ("softmax/seconds", -5.0, "softmax regression in 5 s"), ("mlp/seconds", -60.0, "the MLP in 60 s"),
    ("dae/seconds", -60.0, "the autoencoder, processed at every step, in 60 s"),
    ("softmax/reached", 1.0, "confidence 0.99 of all on softmax regression"),
    ("mlp/reached", 1.0, "confidence 0.99 of all on the MLP"),
    ("dae/confidence", 0.95, "mean confidence 0.95 on the autoencoder"),
    ("softmax/reidentified", 0.95, "0.95 known by the judge, softmax regression"),
    ("dae/reidentified", 0.95, "0.95 known by the judge, autoencoder"),
    ("mlp/reidentified", 0.80, "0.80 known by the judge, MLP"),
    ("mlp-mean-face/reidentified", 0.95, "0.95 known by the judge, MLP from the mean face"),
    *((f"{one}/reidentified_by_correlation", 0.95, f"0.95 by training means, {one}") for one in RECOGNISERS),
)  # fmt: skip
INFERENCES = {
    "most-frequent": "the most frequent value", "without-model": "population, no model",
    "probability": "the label's probability", "confusion": "confusion matrix",
}  # fmt: skip


def _here(figures: dict[str, dict[str, Any]], name: str) -> str:
    return f"{figures[name]['here']:.3f}" if name in figures else "—"


def _said_if_measured(figures: dict[str, dict[str, Any]], name: str) -> str:
    return _said(figures, name) if name in figures else "—"


def _seconds(figure: dict[str, Any]) -> str:
    worked = figure["settings"].get("processor_seconds")
    return f"{figure['here']:.1f}" + (f" ({sum(worked) / len(worked):.1f})" if worked else "")


def _inverted(figures: dict[str, dict[str, Any]]) -> str:
    def plain(name: str, form: str) -> str:
        return format(figures[f"att-faces/{name}"]["here"], form)

    rows = [
        [
            title, _seconds(figures[f"att-faces/{name}/seconds"]), plain(f"{name}/reached", ".3f"),
            plain(f"{name}/confidence", ".3f"),
            *(
                f"{_said_if_measured(figures, f'att-faces/{name}/{of}')} ({_here(figures, f'att-faces/{name}/{beside}')})"
                for of, beside in (
                    ("reidentified", "reidentified_clamped"),
                    ("reidentified_by_plain_judge", "reidentified_by_plain_judge_clamped"),
                    ("reidentified_by_validation_means", "reidentified_by_correlation"),
                )
            ),
            f"{plain(f'{name}/ssim', '.2f')} ({plain(f'{name}/other_ssim', '.2f')})",
        ]
        for name, title in INVERSIONS.items()
    ]  # fmt: skip
    head = [
        "inverted", "seconds, 40 faces (of processor)", "confidence 0.99 reached", "confidence", "judge (values cut)",
        "plain judge (cut)", "nearest mean of unseen images (of training images)", "SSIM (next person)",
    ]  # fmt: skip
    return _table(head, rows)


def inversion() -> str:
    """All of results/reproduce-1.json: recognisers, inversions, queries, rounding, attributes."""
    result = _result("reproduce-1")
    figures = {f["name"]: f for f in result["figures"]}

    def plain(name: str, form: str) -> str:
        return format(figures[f"att-faces/{name}"]["here"], form)

    errors = [
        [title, _said(figures, f"att-faces/{name}/validation-error")]
        for name, title in RECOGNISERS.items()
    ]
    extracted = (
        f"Extract, then invert: {figures['att-faces/extract-then-invert/queries']['here']:,.0f} queries for all people, "
        f"total variation {plain('extract-then-invert/total_variation', '.1g')}; images differ from the white box's by at "
        f"most {plain('extract-then-invert/largest_difference', '.1g')}. In seconds: extraction "
        f"{_here(figures, 'att-faces/extract-then-invert/extraction_seconds')}, inversion of the target as a white box, in "
        f"float64, {_here(figures, 'att-faces/extract-then-invert/white_box_seconds')}."
    )
    judges = [
        [
            f"{title}, {size}",
            _said_if_measured(figures, f"att-faces/{stem}{judge}/accuracy-on-faces"),
            _here(figures, f"att-faces/{stem}{judge}/accuracy"),
        ]
        for stem, size in (("", "112 x 92"), ("small/", "28 x 23"))
        for judge, title in (("judge", "judge"), ("plain-judge", "plain judge"))
    ]
    missed = [
        f"{said} ({here:.3g})"
        for name, aim, said in AIMS
        if (here := figures[f"att-faces/{name}"]["here"]) * (1 if aim > 0 else -1) < aim
    ]
    aims = f"Of {len(AIMS)} aims set beforehand, missed: {'; '.join(missed) or 'none'}."
    asked = [
        [
            title, plain(f"{name}/queries_a_face", ",.0f"), plain(f"{name}/confidence", ".3f"),
            *(
                _said_if_measured(figures, f"att-faces/{name}/reidentified{by}")
                for by in ("", "_by_plain_judge", "_by_validation_means", "_by_correlation")
            ),
        ]
        for name, title in (
            ("black-box/numeric", "numeric gradients"), ("black-box/spsa", "SPSA"),
            *((f"rounding/{r}", f"numeric, rounded to {r}") for r in ("1e-05", "0.001", "0.005", "0.01", "0.05", "0.1")),
        )
    ]  # fmt: skip
    hidden = [
        [
            f"{title}: {how}",
            *(
                _said_if_measured(figures, f"{name}/{method}/{of}")
                for of in ("members/accuracy", "nonmembers/accuracy", "gap", "gap_beyond_base_rate")
            ),
        ]
        for name, title in ATTRIBUTES.items()
        for method, how in INFERENCES.items()
    ]
    known = ["judge", "plain judge", "nearest mean of unseen images", "of training images"]
    return "\n\n".join(
        [
            _table(["recogniser", "validation error"], errors),
            _inverted(figures),
            aims,
            extracted,
            _table(["judge, images", "knows of unseen photographs", "and of junk"], judges),
            _table(["images of 28 x 23", "queries a face", "confidence", *known], asked),
            _table(["attribute", "members", "others", "gap", "gap beyond the base rate"], hidden),
            _measured_on(result),
        ]
    )  # fmt: skip


def inversion_brief() -> str:
    """The inversions of results/reproduce-1.json."""
    result = _result("reproduce-1")
    return "\n\n".join([_inverted({f["name"]: f for f in result["figures"]}), _measured_on(result)])


FROM_SCORES = {
    "digits/softmax": "softmax, digits", "digits/softmax-float32": "softmax in float32, digits",
    "adult-race/softmax": "softmax, Adult by race", "digits/one-vs-rest": "one-vs-rest, digits",
    "adult-race/one-vs-rest": "one-vs-rest, Adult by race", "wisconsin/logistic": "logistic, Wisconsin",
    "pima/logistic": "logistic, Pima", "adult/logistic": "logistic, Adult by income",
    "mushrooms/logistic": "logistic, mushrooms",
    "digits/softmax/decimals5": "softmax, digits, 5 decimals", "digits/softmax/decimals3": "softmax, digits, 3 decimals",
    "digits/softmax/decimals2": "softmax, digits, 2 decimals", "adult-race/mlp20/2225": "20 tanh units, Adult by race",
    "adult-race/mlp20/4450": "20 tanh units, Adult by race", "digits/relu32": "32 ReLU units, digits",
    "digits/kernel10": "kernel, 10 representers, digits", "digits/kernel20": "kernel, 20 representers, digits",
}  # fmt: skip
FROM_LABELS = {
    "labels/linear/827": "linear, mean of six sets", "labels/linear/413": "linear, mean of six sets",
    "digits/softmax-labels/65000": "softmax, digits",
    "digits/softmax-labels/32500": "softmax, digits", "adult-race/mlp20-labels/108200": "20 tanh units, Adult by race",
    "adult-race/mlp20-labels/54100": "20 tanh units, Adult by race", "mnist/knockoff/2000": "knockoff, MNIST, from scores",
    "mnist/knockoff-adaptive/2000": "knockoff, adaptive, MNIST, from scores",
    "mnist/knockoff-labels/2000": "knockoff, MNIST, from labels",
}  # fmt: skip
#: Of these README tells.
BRIEFLY = (
    "digits/softmax", "adult-race/softmax", "digits/softmax/decimals2", "adult-race/mlp20/2225", "digits/relu32",
    "digits/kernel20", "labels/linear/413", "digits/softmax-labels/32500", "adult-race/mlp20-labels/54100",
    "mnist/knockoff-labels/2000",
)  # fmt: skip


def extraction() -> str:
    """All of results/reproduce-15.json but the single sets of linear models from labels."""
    return _extracted((*FROM_SCORES, *FROM_LABELS))


def extraction_brief() -> str:
    """Some of results/reproduce-15.json."""
    return _extracted(BRIEFLY)


def _extracted(names: tuple[str, ...]) -> str:
    result = _result("reproduce-15")
    figures = {f["name"]: f for f in result["figures"]}

    def percent(name: str, part: str) -> str:
        figure = figures.get(f"{name}/{part}")
        if figure is None:
            return "—"
        paper = "" if figure["paper"] is None else f" ({100 * figure['paper']:.4g})"
        return f"{100 * figure['here']:.2f}{paper}"

    rows = []
    for name in names:
        queries, took = figures[f"{name}/queries"], figures[f"{name}/seconds"]
        apart = figures.get(f"{name}/total_variation")
        always = figures[f"{name}/agreement_test"]["settings"].get("agreement_of_a_constant")
        beside = [
            "" if one["paper"] is None else f" ({one['paper']:{form}})" for one, form in ((queries, ",.0f"), (took, ".3g"))
        ]  # fmt: skip
        rows.append(
            [
                (FROM_SCORES | FROM_LABELS)[name] + ("" if name in FROM_SCORES or "knockoff" in name else ", from labels"),
                f"{queries['here']:,.0f}{beside[0]}", percent(name, "agreement_test"),
                "—" if always is None else f"{100 * sum(always) / len(always):.2f}", percent(name, "agreement_uniform"),
                "—" if apart is None else f"{apart['here']:.0e}",
                (f"{took['here']:.1f}" if took["here"] >= 0.1 else "< 0.1") + beside[1], str(took["n"]),
            ]
        )  # fmt: skip
    over = figures["http/digits/softmax/same_as_in_process"]["here"]
    head = [
        "target", "queries", "agreement on test records, %", "always one class, %", "on uniform ones, %", "total variation",
        "seconds of one core", "n",
    ]  # fmt: skip
    http = f"{figures['http/digits/softmax/queries']['here']:.0f} queries"
    told = (
        f"Over HTTP, {http}: the same weights to the last bit."
        if over == 1
        else f"Over HTTP, {http}: other weights."
    )
    constant = (
        "“Always one class” is the agreement on test records of a copy that always names the class that the target names "
        "most often; what is below it is no copy."
    )
    return "\n\n".join([_table(head, rows), constant, told, _measured_on(result)])


INSIDERS = {
    "mnist/two-party": "two, everything shared", "mnist/passive": "the same, passive insider",
    "mnist/gradient-ascent": "gradient ascent on that model", "mnist/theta_u0.1": "two, a tenth uploaded",
    "mnist/theta0.1": "two, a tenth uploaded and downloaded", "mnist/federated-sgd": "three, federated SGD",
    "mnist/averaging": "three, federated averaging", "mnist/secure-aggregation": "three, secure aggregation [6]",
    **{f"mnist/svt/epsilon_over_c{b}": f"two, sparse vectors, epsilon/c {b}" for b in ("100", "10", "1", "0.1")},
    **{f"mnist/local-dp/noise{n}": f"three, local DP, noise {n}" for n in ("0.001", "0.01", "0.1")},
    "mnist/user-level/noise0": "ten, clipped",
    **{f"mnist/user-level/noise{n}": f"ten, user-level DP, noise {n}" for n in ("0.1", "0.3", "1")},
    "att-faces": "AT&T, 41, everything shared",
}  # fmt: skip
#: Of these README tells.
INSIDERS_BRIEFLY = (
    "mnist/two-party", "mnist/passive", "mnist/gradient-ascent", "mnist/theta_u0.1", "mnist/averaging",
    "mnist/secure-aggregation", "mnist/svt/epsilon_over_c10", "mnist/local-dp/noise0.01", "mnist/user-level/noise1",
    "att-faces",
)  # fmt: skip


def _insiders(names: Iterable[str]) -> str:
    figures = {f["name"]: f for f in _result("reproduce-2")["figures"]}
    rows = []
    for name in names:
        rates = [figures[f"{name}/{of}"] for of in ("hit_rate", "junk_aware_hit_rate")]
        right, epsilon = (figures.get(f"{name}/{of}") for of in ("accuracy", "epsilon"))
        targets = len(rates[0]["settings"]["by_target"])
        rows.append(
            [
                INSIDERS[name], str(targets),
                *(
                    f"{100 * rate['here']:.1f}"
                    + (f" (least {100 * rate['settings']['least']:.1f})" if targets > 1 else "")
                    for rate in rates
                ),
                *(f"{figures[f'{name}/{of}']['here']:.2f}" for of in ("nn_ratio", "own_ratio")),
                "—" if right is None else f"{100 * right['here']:.1f}",
                "—" if epsilon is None else f"{epsilon['here']:.3g}",
            ]
        )  # fmt: skip
    head = [
        "participants", "targets", "plain judge, %", "junk-aware judge, %", "distance to the target's records",
        "to the insider's own over that to theirs", "accuracy of the model, %", "epsilon",
    ]  # fmt: skip
    return _table(head, rows)


def insider() -> str:
    """All of results/reproduce-2.json: kinds, single targets, what is seen of the attack."""
    result = _result("reproduce-2")
    figures = {f["name"]: f for f in result["figures"]}
    singles = []
    for name in ("mnist/two-party", "mnist/passive", "att-faces"):
        rate = figures[f"{name}/hit_rate"]["settings"]
        for of in ("hit_rate", "junk_aware_hit_rate", "nn_ratio"):
            values = figures[f"{name}/{of}"]["settings"]["by_target"]
            said = ", ".join(
                f"{target}: {value:.2f}"
                for target, value in zip(rate["targets"], values, strict=True)
            )
            singles.append([INSIDERS[name], f"`{of}`", said])
    seen = [
        [INSIDERS[f"mnist/{kind}"]]
        + [
            format(factor * figures[f"mnist/visibility/{kind}/{of}"]["here"], form)
            for of, factor, form in (
                ("accuracy_lost", 100, ".2g"),
                ("update_norm_ratio", 1, ".2g"),
                ("fresh_bias_raised_more", 100, ".0f"),
            )
        ]
        for kind in ("two-party", "averaging", "federated-sgd")
    ]
    return "\n\n".join(
        [
            _insiders(INSIDERS),
            _table(["", "figure", "by target"], singles),
            _table(
                [
                    "with the attack",
                    "points of accuracy lost",
                    "norm of its updates, over those of a passive one",
                    "of its updates in a hundred, how many more than of the others' raise the bias of the fresh class",
                ],
                seen,
            ),
            _measured_on(result),
        ]
    )


def insider_brief() -> str:
    """Some of results/reproduce-2.json."""
    return "\n\n".join([_insiders(INSIDERS_BRIEFLY), _measured_on(_result("reproduce-2"))])


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
    "papers": papers, "matrix": matrix, "matrix-of-model": matrix_of_model, "leakage": leakage, "selective": selective,
    "secure": secure, "secure-brief": secure_brief, "secagg": secagg, "transport": transport,
    "two-server": two_server, "private": private, "membership": membership, "membership-brief": membership_brief,
    "inversion": inversion, "inversion-brief": inversion_brief, "extraction": extraction,
    "extraction-brief": extraction_brief, "insider": insider, "insider-brief": insider_brief,
    "bench-extraction": lambda: two_parties("bench-extraction"),
    "bench-serve": lambda: two_parties("bench-serve"),
    "bench-shadows": lambda: two_parties("bench-shadows"),
    "bench-dp-sgd": lambda: two_parties("bench-dp-sgd"),
    "bench-two-party": lambda: two_parties("bench-two-party"),
    "bench-two-server": lambda: two_parties("bench-two-server"),
}  # fmt: skip
_ELSEWHERE = (
    "insider",
    "secure",
    "membership",
    "inversion",
    "extraction",
    "bench-extraction",
    "bench-serve",
    "bench-shadows",
    "bench-dp-sgd",
    "bench-two-party",
    "bench-two-server",
)
PAGES = {
    "README.md": tuple(name for name in TABLES if name not in _ELSEWHERE),
    "docs/papers/01-model-inversion.md": ("inversion",),
    "docs/papers/02-gan-insider.md": ("insider",),
    "docs/papers/03-selective-sgd.md": ("selective",),
    "docs/papers/04-dp-sgd.md": ("private", "bench-dp-sgd"),
    "docs/papers/06-secure-aggregation.md": ("secure", "secagg"),
    "docs/papers/14-membership.md": ("membership", "bench-shadows"),
    "docs/papers/15-extraction.md": ("extraction", "bench-extraction"),
    "docs/serve.md": ("bench-serve",),
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
