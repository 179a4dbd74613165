"""What an audit concludes: its verdict, limits for scripts, and paragraphs that need no training to read.

The rule. The intervals of all attacks' AUCs hold together at 95 % (`jointly`), so that the strongest may be picked by
looking. Of A attacks, it ``leaks`` if one of them lies above 0.5, or if so many members score above the threshold of a
low false positive rate as chance would bring with probability at most 0.025 / (A times the number of rates); both together
cry wolf in at most 5 % of audits where there is nothing. Where members and non-members can be told apart without the model,
only an AUC above what that reaches counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from tacit.audit import words
from tacit.audit.statistics import FloatArray, negatives_needed
from tacit.core.errors import ConfigError, NotEnoughEvidence, UnknownName

Verdict = Literal["leaks", "nothing-found", "inconclusive"]
Entry = Mapping[str, Any]
Bools = npt.NDArray[np.bool_]

#: With fewer members or non-members an audit concludes nothing.
LEAST = 20
ERROR = 0.05
#: How often membership is dealt anew to see how alike attacks err.
DEALS = 1000
_AT_ONCE = 4_000_000  # numbers of a deal

_PLAIN = ("auc", "balanced_accuracy", "epsilon")


class Judged(NamedTuple):
    """A verdict, a sentence that says why, and the strongest attack's name, if any attack ran."""

    verdict: Verdict
    why: str
    strongest: str | None


def bonferroni(attacks: int) -> float:
    """The confidence of each of so many intervals that hold together at 95 %, whatever they are of."""
    return 1 - ERROR / max(1, attacks)


def jointly(scores: FloatArray, members: Bools, generator: torch.Generator) -> float:
    """The confidence of each AUC's interval with which the intervals of all attacks hold together at 95 %.

    Attacks that rank records alike err alike, so that each may be surer of itself than `bonferroni` says. How alike they
    are is seen where nothing leaks: membership is dealt anew at random, the same for all attacks, and the largest deviation
    of any AUC, in units of its own, is looked at.

    Args:
        scores: (attacks, n), at least one attack.
        members: (n,) bool.
        generator: deals.

    Returns:
        From 0.95, that of a single attack, to `bonferroni`.

    Source: Westfall & Young, Resampling-Based Multiple Testing, 1993 (single-step max T).
    """
    ranks = stats.rankdata(scores, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    spread = np.sqrt(np.square(ranks).sum(1, keepdims=True))
    units = torch.from_numpy(ranks[spread[:, 0] > 0] / spread[spread[:, 0] > 0])
    if len(units) < 2:
        return 1 - ERROR
    n, inside = len(members), int(members.sum())
    # Of a sum of `inside` of n numbers, drawn without replacement, whose squares sum to 1.
    deviation = math.sqrt(inside * (n - inside) / (n * (n - 1)))
    largest: list[Tensor] = []
    for part in torch.split(torch.arange(DEALS), max(1, _AT_ONCE // n)):
        keys = torch.rand(len(part), n, generator=generator, device=generator.device)
        dealt = torch.zeros(len(part), n, dtype=torch.float64)
        dealt.scatter_(1, keys.argsort(1)[:, :inside].cpu(), 1.0)
        largest.append((dealt @ units.T).abs().amax(1) / deviation)
    reached = float(torch.cat(largest).quantile(1 - ERROR))
    each = float(2 * stats.norm.cdf(reached) - 1)
    return min(max(each, 1 - ERROR), bonferroni(len(scores)))


def judged(attacks: Sequence[Entry], data: Entry) -> Judged:
    """The verdict on a target.

    Args:
        attacks: as in the report; metrics with ``value``, ``interval``, and ``p_value`` at low false positive rates.
        data: as in the report: how many members and non-members, and the checks.
    """
    if not attacks:
        return Judged(
            "inconclusive", "No attack on membership was run: see what was left out, and why.", None
        )
    strongest = max(attacks, key=lambda one: one["metrics"]["auc"]["interval"][0])
    if strongest["metrics"]["auc"]["interval"][0] <= 0.5:  # then a narrow interval is no strength
        strongest = max(attacks, key=lambda one: one["metrics"]["auc"]["value"])
    area = strongest["metrics"]["auc"]
    low, high = area["interval"]
    name, title = strongest["name"], strongest["title"]
    said = f"{title}: AUC {area['value']:.3f}, jointly 95 % {low:.3f} to {high:.3f}"
    fewest = min(data["members"], data["nonmembers"])
    if fewest < LEAST:
        why = f"Only {fewest} members or non-members: at least {LEAST} of each are needed."
        return Judged("inconclusive", why, name)
    apart = [c for c in data["checks"] if c["name"] == "same-inputs" and c["warning"]]
    if apart:
        blind = apart[0]["interval"][1]
        if low > blind:
            why = f"{said}; more than the {blind:.3f} at most that is told without the model."
            return Judged("leaks", why, name)
        why = (
            f"Members and non-members differ without the model (AUC {apart[0]['value']:.3f}), and no attack does clearly "
            f"better ({said}): what is found may be that difference. Take non-members from the same source."
        )
        return Judged("inconclusive", why, name)
    if low > 0.5:
        return Judged("leaks", f"{said}; guessing reaches 0.5.", name)
    tails = [
        (metric["p_value"], one, rate, metric)
        for one in attacks
        for rate, metric in one["metrics"].items()
        if rate.startswith("tpr@") and metric.get("p_value") is not None
    ]
    if tails:
        p_value, one, rate, metric = min(tails, key=lambda tail: tail[0])
        if p_value <= ERROR / 2 / len(tails):
            share = words.rate(rate) or 0.0
            why = (
                f"{one['title']} finds {100 * metric['value']:.1f} % of members while it accuses at most {100 * share:g} % "
                f"of non-members wrongly; by chance that happens with probability {p_value:.1g}."
            )
            return Judged("leaks", why, one["name"])
    if any(one["metrics"]["auc"]["interval"][1] < 0.5 for one in attacks):
        why = (
            "An attack ranks non-members above members more often than chance does: the two sets differ in something else "
            "than membership, or were exchanged."
        )
        return Judged("inconclusive", why, name)
    widest = max(one["metrics"]["auc"]["interval"][1] for one in attacks)
    why = f"Every attack's interval includes guessing; an AUC above {widest:.3f} is ruled out for each of them. {said}."
    return Judged("nothing-found", why, name)


# --- limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A figure that no attack may exceed, as ``tpr@0.01fpr=0.05``.

    Args:
        metric: ``auc``, ``balanced_accuracy``, ``epsilon`` or ``tpr@RATEfpr``.
        limit: the largest value that is accepted.
        rate: of ``tpr@RATEfpr``.
    """

    metric: str
    limit: float
    rate: float | None = None

    @staticmethod
    def parsed(text: str) -> Limit:
        """A limit from ``METRIC=VALUE``.

        Raises:
            UnknownName: no such metric.
            ConfigError: it is written otherwise, or a number is out of range.
        """
        metric, _, value = text.rpartition("=")
        try:
            rate = words.rate(metric)
            if metric and rate is None and metric not in _PLAIN:
                raise UnknownName("metric", metric, (*_PLAIN, "tpr@0.01fpr"))
            limit = float(value)
            if not metric or (rate is not None and not 0 < rate < 1) or not limit >= 0:
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"a limit as tpr@0.01fpr=0.05 expected (METRIC=VALUE, a rate in (0, 1), a value of at least 0), {text!r} "
                "came"
            ) from None
        return Limit(metric=metric if rate is None else f"tpr@{rate:g}fpr", limit=limit, rate=rate)

    def check(self, nonmembers: int) -> None:
        """Refuse a figure that so many non-members cannot support, before work begins.

        Raises:
            NotEnoughEvidence: with both numbers.
        """
        if self.rate is not None and nonmembers < (needed := negatives_needed(self.rate)):
            raise NotEnoughEvidence(
                f"{self.metric} needs at least {needed} non-members, {nonmembers} came: hold more out, or set a limit on a "
                "higher rate"
            )

    def held(self, attacks: Sequence[Entry], epsilon: Entry | None) -> dict[str, object]:
        """The limit beside the largest value of any attack, as plain values; None where no attack has this figure."""
        found = [
            (one["metrics"][self.metric]["value"], one["name"])
            for one in attacks
            if (one["metrics"].get(self.metric) or {}).get("value") is not None
        ]
        if self.metric == "epsilon" and epsilon is not None:
            found = [(epsilon["value"], epsilon["attack"])]
        value, attack = max(found, default=(None, None))
        exceeded = None if value is None else value > self.limit
        return {
            "metric": self.metric, "limit": self.limit, "value": value, "attack": attack, "exceeded": exceeded,
        }  # fmt: skip


# --- in words


def paragraphs(result: Entry) -> list[str]:
    """What was tried, what it means, and what it does not prove, for readers who do not know the field.

    Args:
        result: the report, complete but for this.
    """
    said = [_tried(result), _means(result), _of_model(result), _not_proved(result)]
    return [one for one in said if one]


def _tried(result: Entry) -> str:
    data, attacks = result["data"], result["attacks"]
    what = {
        "scores": "took the saved scores of",
        "answers": "took the model's saved answers on",
    }.get(result["target"]["kind"], "asked the model about")
    count = len(attacks)
    said = (
        f"This audit {what} {data['members']:,} records that the model is said to have been trained on (members) and "
        f"{data['nonmembers']:,} that it is said not to have seen (non-members). {count} attack{'s' if count != 1 else ''} "
        "then tried to tell which is which, without being told."
    )
    if result["shadows"]:
        said += (
            f" Some of them compared the model with {result['shadows']['models']} models that the audit trained in the same "
            "way on known parts of these records, as an adversary who knows how it was trained can."
        )
    if left := len(result["left_out"]):
        said += f" {left} more could not be used; the reasons are given below."
    return said


def _means(result: Entry) -> str:
    if result["verdict"] == "inconclusive":
        return f"The result is inconclusive. {result['why']}"
    one = next(one for one in result["attacks"] if one["name"] == result["strongest"])
    area = one["metrics"]["auc"]
    low, high = area["interval"]
    ranked = (
        f"Shown a member and a non-member, the strongest attack ({one['title']}) picks the member in "
        f"{100 * area['value']:.1f} % of cases (with 95 % confidence between {100 * low:.1f} and {100 * high:.1f} %); "
        "guessing is right in 50 %."
    )
    if result["verdict"] == "nothing-found":
        return (
            f"None of the attacks did better than guessing, as far as so many records can tell. {ranked} The upper end says "
            "how large a leak this audit could have overlooked; more records would narrow it."
        )
    found = [
        (rate, metric)
        for rate, metric in one["metrics"].items()
        if rate.startswith("tpr@") and metric.get("value") is not None
    ]
    if found:
        rate, metric = found[-1]
        share = words.rate(rate) or 0.0
        ranked += (
            f" If it may accuse {100 * share:g} % of non-members wrongly, it finds {100 * metric['value']:.1f} % of the "
            f"members; chance would find {100 * share:g} %."
        )
    return (
        f"The model tells who was in its training data. {ranked} Whoever has this access to the model can do the same, so "
        "if it is sensitive that a record was used for training, treat the model with the care that the data need."
    )


def _of_model(result: Entry) -> str:
    """What the attacks on the model itself found; nothing where there were none."""
    found = {one["name"]: one for one in result.get("model_attacks") or []}
    said = []
    copies = [found[name] for name in ("extraction-equations", "extraction-copy") if name in found]
    if copies:
        best = max(copies, key=lambda one: one["value"])
        said.append(
            f"A copy of the model, made from what it answered ({best['title'].lower()}) names the same class as "
            f"the model for {100 * best['value']:.1f} % of records that the copy was not made from; without asking, "
            f"{100 * best['chance']:.1f} % would be had."
        )
    if shown := found.get("model-inversion"):
        said.append(
            f"A search in the {'weights' if shown['access'] == 'weights' else 'copy'} for records that the model is sure of "
            f"found, for {100 * shown['value']:.0f} % of the classes, one that is most like the mean member of that class."
        )
    return " ".join(said)


def _not_proved(result: Entry) -> str:
    said = "An audit measures the attacks that were tried, on these records, with this access: it is no guarantee."
    if result["verdict"] != "leaks":
        said += (
            " A stronger attack, better knowledge of how the model was trained, or other records may find what these did "
            "not; only training with differential privacy bounds what any attack can find."
        )
    else:
        said += " A stronger attack may find more, and some records are more exposed than the average says."
    return (
        f"{said} It rests on the two lists being right, and alike in everything but membership. It does not look at other "
        f"leaks, such as {'' if result.get('model_attacks') else 'theft of the model or '}reconstruction of single records."
    )
