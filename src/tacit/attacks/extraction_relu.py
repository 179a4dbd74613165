"""Exact extraction of networks with one hidden layer of ReLU, from the kinks of their answers.

The scores of such a network are A relu(W x + b) + c, a function that is affine in pieces; the logarithms of the
probabilities, less their mean over the classes, are the scores up to what softmax forgets. On a line the function bends only
where a hidden unit switches:

1. on lines through the domain find the kinks: where the slopes at the two ends of an interval differ, the tangents meet at
   the kink, if it is the only one; else the interval is halved (`_kinks`);
2. on either side of a kink measure the gradient. The two differ by the unit's outgoing weights times its incoming ones, a
   matrix of rank one: its right singular vector is the unit's row of W up to a factor, and the kink gives its bias;
3. go on with further lines, passing over kinks that known units explain, until some lines bring nothing new;
   where the solution then differs from the target, further lines begin where it differs most;
4. all scores are linear in what is left: one least-squares solution of [1, x, relu(w_j x + b_j)] gives A and c;
5. a row's sign is open, as relu(z) = relu(-z) + z; the part of the solution that is linear in x says which signs are wrong,
   by least squares again, and vanishes when they are put right.

What is kept secret from whom: the model's weights, from whoever asks; nothing here protects. **Leaks**: the function on all
of the domain, and the hidden layer up to order and positive factors. Units that never switch in the domain are affine
there and are found as that, with `determined` false; duplicates are found as one unit, and `determined` is true unless
their number is told.

What we changed: the paper finds rows by second differences along each axis, and signs by solving for a preimage or by global
search; gradients on the two sides give the row at once, with its relative signs, and least squares gives the units' signs.
It works on log-probabilities, so that an endpoint need not give logits.

Source:
    M. Jagielski, N. Carlini, D. Berthelot, A. Kurakin, N. Papernot. High Accuracy and High Fidelity Extraction of Neural
    Networks. USENIX Security 2020, section on functionally equivalent extraction (recalled).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, Scores
from tacit.attacks.extraction import (
    Asked,
    Box,
    Extraction,
    check_classes,
    extraction,
    need_probabilities,
    needed,
)
from tacit.attacks.extraction_fit import SMALLEST, with_one
from tacit.core.errors import ConfigError, NotEnoughEvidence

#: Slopes of an interval are taken over this share of it.
TANGENT = 1 / 256
#: Lines stay so far inside the box, as a share of it: room for the steps around a kink.
MARGIN = 0.01
#: Differences of scores below this, in units of the largest score, are rounding.
ROUNDING = 1e-11
#: Second singular value of a kink's matrix, as a share of the first, above which more than one unit switched.
RANK_ONE = 1e-5
#: So many times the steps around a kink are made smaller before it is given up.
NARROWER = 6
#: Records on which the solution is checked.
PROBES = 200
#: So many times the search goes on where the solution differs from the target.
AGAIN = 4
#: Open intervals of a line, beyond which some must have held a kink alone.
CROWDED = 1024
#: Bends that are given up, vanish in both halves or belong to no unit: so many more than kinks, or units, are no ReLU's.
BLURRED = 16
#: Scores of the solution, in units of the largest, may differ by so much from the target's.
SOLVED = 1e-6
#: Up to this the solution is given all the same where no further unit is found, as one that is not determined.
NEARLY = 1e-4
#: What is said of a target that bends elsewhere than at kinks.
SMOOTH = (
    "pieces that are straight expected, a line bends everywhere: the target is no network of ReLU, or does not answer in "
    "float64"
)


class PiecewiseModel(nn.Module):
    """A network with one hidden layer of ReLU as an attack recovered it, in float64 whatever comes.

    Args:
        inner: (h, 1 + d) weights of the hidden layer, the bias first.
        outer: (c, h).
        affine: (c, 1 + d) what is added, the bias first; beyond the bias zero where all signs were found.
    """

    def __init__(self, inner: Tensor, outer: Tensor, affine: Tensor) -> None:
        super().__init__()
        self.inner = nn.Parameter(inner.double())
        self.outer = nn.Parameter(outer.double())
        self.affine = nn.Parameter(affine.double())

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-scores (n, c) of ``inputs`` (n, *shape)."""
        points = with_one(inputs)
        return torch.relu(points @ self.inner.T) @ self.outer.T + points @ self.affine.T


@dataclass(frozen=True, slots=True, kw_only=True)
class KinkSearch:
    """Finds the hidden units of a network with one layer of ReLU by the kinks of its answers.

    Needs `input_shape` and `classes`. The target must answer in float64 and take it.

    Args:
        box: the records that the target takes.
        hidden: units of the hidden layer, if that is known: the search ends when so many are found.
        lines: the most lines that are searched.
        patience: lines without a new unit after which the search ends.
        shortest: an interval that is still not understood at this share of its line is given up.
        most: the most queries of the search.

    Raises:
        ConfigError: a setting is out of range.

    Cost: some 6 queries a piece of each line, 2 d + 3 a unit, and 2 (d + h + 1) for the last layer.

    Source: Jagielski et al. 2020 (recalled).
    """

    name: ClassVar[str] = "extraction-kinks"
    access: ClassVar[type[Scores]] = Scores

    box: Box = field(default_factory=lambda: Box(dtype=torch.float64))
    hidden: int | None = None
    lines: int = 300
    patience: int = 30
    shortest: float = 1e-5
    most: int = 300_000

    def __post_init__(self) -> None:
        if self.box.dtype != torch.float64:
            raise ConfigError(
                "a box of float64 expected, one of float32 came: kinks drown in its rounding"
            )
        if self.hidden is not None and self.hidden < 1:
            raise ConfigError(f"at least 1 hidden unit expected, {self.hidden} came")
        if min(self.lines, self.patience, self.most) < 1 or not 0 < self.shortest < 0.1:
            raise ConfigError(
                "at least 1 line, 1 line of patience, 1 query and a shortest interval between 0 and 0.1 expected, "
                f"{self.lines}, {self.patience}, {self.most} and {self.shortest} came"
            )

    def extract(
        self, access: Scores, knowledge: Knowledge, generator: torch.Generator
    ) -> Extraction:
        """Ask the target and solve.

        Args:
            access: the target.
            knowledge: `input_shape` and `classes`.
            generator: draws lines and records, on its device.

        Returns:
            `determined` says that every unit's sign was found, as many units as `hidden` says where it says so, and that
            the scores are the target's; a unit too faint to be found can leave a difference, which `residual` shows.

        Raises:
            ConfigError: something needed is unknown, the policy hides or rounds what is needed, or the target answers with
                another number of classes or does not take float64.
            DataError: an answer is not a number.
            NotEnoughEvidence: the answers do not bend as those of one hidden layer of ReLU do, or `most` does not do.
            Unfinished: the budget does not do.
        """
        shape, classes = needed(self.name, knowledge)
        need_probabilities(self.name, access.policy, classes)
        if access.policy.digits is not None:
            raise ConfigError(
                f"{self.name} needs all digits and the policy gives {access.policy.digits}: extract by retraining"
            )
        target = Asked(access.scores, self.box)
        oracle = _Oracle(target, shape, classes, access.policy.temperature, self.most)
        width = math.prod(shape)
        rows = torch.empty(0, 1 + width, dtype=torch.float64, device=generator.device)
        rows = self._units(oracle, rows, None, generator)
        for again in range(1 + AGAIN):
            model, signed = _last_layer(oracle, self.box, rows, generator)
            probe = _spread(self.box, PROBES, width, generator)
            with torch.no_grad():
                own = model(probe)
            apart = (own - own.mean(1, keepdim=True) - oracle.scores(probe)).abs().amax(1)
            if bool(apart.max() <= SOLVED * oracle.scale):
                break
            more = rows
            if again < AGAIN:
                more = self._units(oracle, rows, probe[apart.argsort(descending=True)], generator)
            if len(more) == len(rows) and bool(apart.max() <= NEARLY * oracle.scale):
                signed = False
                break
            if len(more) == len(rows):
                raise NotEnoughEvidence(
                    f"{len(rows)} hidden units found, and the scores that they give differ from the target's by "
                    f"{float(apart.max()):.2g}: search more lines, or the target is no network of one hidden layer of ReLU "
                    "in float64"
                )
            rows = more
        found = extraction(model, target, access.policy, determined=signed)
        if self.hidden is None or len(rows) == self.hidden:
            return found
        return Extraction(
            model=model, queries=found.queries, residual=found.residual, determined=False
        )

    def _units(
        self, oracle: _Oracle, rows: Tensor, aims: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Rows (h, 1 + d) of unit norm without the bias, each of a hidden unit, beside those that are known.

        With ``aims`` (n, d) lines begin there, in turn, until one brings a new unit.
        """
        width, known, idle, vain = rows.shape[1] - 1, len(rows), 0, 0
        for k in range(self.lines):
            if idle >= self.patience or (self.hidden is not None and len(rows) >= self.hidden):
                break
            start, end = _ends(self.box, width, generator)
            if aims is not None:
                if len(rows) > known:
                    break
                middle = (self.box.low + self.box.high) / 2
                start = middle + (1 - 2 * MARGIN) * (aims[k % len(aims)] - middle)
            before = len(rows)
            for kink in _kinks(oracle, start, end, self.shortest):
                place = start + kink.part * (end - start)
                if _explained(rows, place, end - start, kink.reach):
                    continue
                row = _row(oracle, place, end - start, kink.reach, generator)
                if row is not None:
                    rows = _with(rows, row)
                    continue
                vain += 1
                if vain > BLURRED + len(rows):
                    raise NotEnoughEvidence(SMOOTH)
            idle = 0 if len(rows) > before else idle + 1
        return rows


class _Oracle:
    """Scores of the target as far as its probabilities tell them: less their mean over the classes."""

    def __init__(
        self, target: Asked, shape: tuple[int, ...], classes: int, temperature: float, most: int
    ) -> None:
        self._target, self._shape, self._classes = target, shape, classes
        self._temperature, self._left = temperature, most
        self._found: list[Tensor] = []
        self.scale = 1.0

    @property
    def inputs(self) -> Tensor:
        """All records so far, (n, d)."""
        return self._target.inputs.flatten(1)

    @property
    def found(self) -> Tensor:
        """Their scores, (n, c)."""
        return torch.cat(self._found)

    def scores(self, records: Tensor) -> Tensor:
        """(n, c) float64 for ``records`` (n, d)."""
        self._left -= len(records)
        if self._left < 0:
            raise NotEnoughEvidence(
                "the most queries of the search did not do: raise KinkSearch.most, or the target is no network of one "
                "hidden layer of ReLU"
            )
        answers = self._target.about(records.reshape(-1, *self._shape))
        check_classes(answers, self._classes)
        if not bool((answers >= SMALLEST).all()):
            raise NotEnoughEvidence(
                "probabilities above 0 expected, some are 0 and have no logarithm: choose a narrower box"
            )
        logarithms = self._temperature * answers.log()
        found = logarithms - logarithms.mean(1, keepdim=True)
        self.scale = max(self.scale, float(found.abs().max()))
        self._found.append(found)
        return found


@dataclass(frozen=True, slots=True)
class _Kink:
    """Where a line bends: at which share of it, and how far on either side no other kink was seen."""

    part: float
    reach: float


def _ends(box: Box, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ends of a line: corners of the box with a share of high features that is drawn for each, a little inside."""
    drawn = torch.rand(
        2, 1 + width, generator=generator, device=generator.device, dtype=torch.float64
    )
    corners = 2 * (drawn[:, 1:] < drawn[:, :1]).double() - 1
    start, end = box.placed((1 - 2 * MARGIN) * corners)
    return start, end


def _spread(box: Box, rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Records (rows, d): half of them uniform in the box, half anywhere on lines."""
    lines = [_ends(box, width, generator) for _ in range(rows // 2)]
    parts = torch.rand(len(lines), generator=generator, device=generator.device).double()
    on = [a + part * (b - a) for (a, b), part in zip(lines, parts, strict=True)]
    return torch.cat([box.drawn(rows - len(on), (width,), generator), *(one[None] for one in on)])


def _kinks(oracle: _Oracle, start: Tensor, end: Tensor, shortest: float) -> list[_Kink]:
    """The kinks of a line that stand alone in an interval; each call of the target asks about all open intervals."""
    found: list[_Kink] = []
    pieces, blurred = 8, 0
    halves = False
    open_ = [(k / pieces, (k + 1) / pieces) for k in range(pieces)]
    while open_:
        low, high = torch.tensor(open_, dtype=torch.float64, device=start.device).T
        step = TANGENT * (high - low)
        values = oracle.scores(_on(start, end, torch.cat([low, low + step, high - step, high])))
        first, second, third, last = values.view(4, len(low), -1)
        into, out = (second - first) / step[:, None], (last - third) / step[:, None]
        wide = (high - low)[:, None]
        # Rounding of a slope grows by 1 / TANGENT over the interval.
        allowed = 4 * ROUNDING * oracle.scale / TANGENT
        straight = ((first + into * wide - last).abs() < allowed).all(1)
        straight &= ((into - out) * wide).abs().amax(1) < allowed
        change = into - out
        lead = change.abs().argmax(1, keepdim=True)
        gap = (last - first - out * wide).gather(1, lead) / change.gather(1, lead)
        gap = gap.squeeze(1).nan_to_num(-1.0)
        inside = ~straight & (gap > 2 * step) & (gap < (high - low) - 2 * step)
        alone = torch.zeros_like(inside)
        if bool(inside.any()):
            # Two kinks of opposite sign can lie beside the place where the tangents meet: ask on both sides of it, too.
            places = torch.stack([gap - step, gap, gap + step], 1)[inside]
            met = oracle.scores(_on(start, end, (low[inside, None] + places).flatten()))
            met = met.view(*places.shape, -1)
            before = first[inside, None] + into[inside, None] * places[:, :, None]
            after = last[inside, None] - out[inside, None] * (
                wide[inside, None] - places[:, :, None]
            )
            apart = torch.maximum((met - before)[:, :2].abs(), (met - after)[:, 1:].abs())
            alone[inside] = apart.amax((1, 2)) < allowed
        for k in torch.nonzero(alone).flatten().tolist():
            part = float(low[k] + gap[k])
            found.append(_Kink(part, min(part - open_[k][0], open_[k][1] - part)))
        # Of an interval that holds a kink one half holds it; what bends smoothly is straight in both, if they are short.
        if halves:
            blurred += int((straight[::2] & straight[1::2]).sum())
        blurred += int((~straight & ~alone & (high - low <= 2 * shortest)).sum())
        halves = True
        open_ = [
            half
            for k, (a, b) in enumerate(open_)
            if not (straight[k] or alone[k]) and b - a > 2 * shortest
            for half in ((a, a + 0.47 * (b - a)), (a + 0.47 * (b - a), b))
        ]
        few = len(found) < len(open_) / 16
        if blurred > BLURRED + len(found) or (len(open_) > CROWDED and few):
            raise NotEnoughEvidence(SMOOTH)
    return found


def _on(start: Tensor, end: Tensor, parts: Tensor) -> Tensor:
    return start + parts[:, None] * (end - start)


def _explained(rows: Tensor, place: Tensor, line: Tensor, reach: float) -> bool:
    """Whether a known unit switches at a place, as near as a line tells it."""
    if not len(rows):
        return False
    heights = (rows[:, 0] + rows[:, 1:] @ place).abs()
    slopes = (rows[:, 1:] @ line).abs()
    return bool((heights <= slopes * min(1e-7, reach / 10) + 1e-12).any())


def _row(
    oracle: _Oracle, place: Tensor, line: Tensor, reach: float, generator: torch.Generator
) -> Tensor | None:
    """The unit that switches at a place (1 + d), the bias first; None where it cannot be told from others."""
    width = len(place)
    away = reach / 2
    for _ in range(NARROWER):
        sides = torch.stack([place + away * line, place - away * line])
        step = away * float(line.norm()) / math.sqrt(width) / 16
        turned = torch.sign(
            torch.rand(width, generator=generator, device=place.device).double() - 0.5
        )
        moves = torch.cat([torch.diag(turned), turned[None]]) * step
        asked = torch.cat([sides, (sides[:, None, :] + moves).flatten(0, 1)])
        values = oracle.scores(asked)
        bases, moved = values[:2], values[2:].view(2, width + 1, -1)
        rises = moved - bases[:, None, :]
        # All moves at once: the sum of the single ones if no kink lies between.
        together = (rises[:, -1] - rises[:, :-1].sum(1)).abs().max()
        slopes = (rises[:, :-1] * (turned / step)[:, None]).transpose(1, 2)
        _, values_of, directions = torch.linalg.svd(slopes[0] - slopes[1], full_matrices=False)
        crossed = float(together) > 8 * width * ROUNDING * oracle.scale
        blurred = len(values_of) > 1 and float(values_of[1]) > RANK_ONE * float(values_of[0])
        if not (crossed or blurred):
            direction = directions[0]
            return torch.cat([-(direction @ place)[None], direction])
        away /= 4
    return None


def _with(rows: Tensor, row: Tensor) -> Tensor:
    """A row more, unless it is one of them up to sign."""
    if len(rows):
        signs = torch.sign(rows[:, 1:] @ row[1:])[:, None]
        if bool(((rows - signs * row).norm(dim=1) < 1e-4 * (1 + row[0].abs())).any()):
            return rows
    return torch.cat([rows, row[None]])


def _last_layer(
    oracle: _Oracle, box: Box, rows: Tensor, generator: torch.Generator
) -> tuple[PiecewiseModel, bool]:
    """The model with these units, and whether their signs could be told."""
    width = rows.shape[1] - 1
    oracle.scores(_spread(box, 2 * (1 + width + len(rows)), width, generator))
    points, wanted = with_one(oracle.inputs), oracle.found

    def solved(rows: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        design = torch.cat([points[:, :columns], torch.relu(points @ rows.T)], 1)
        found = torch.linalg.lstsq(design.cpu(), wanted.cpu(), driver="gelsd").solution
        found = found.to(points.device)
        return found[:columns].T, found[columns:].T

    affine, outer = solved(rows, 1 + width)
    if not len(rows):
        return PiecewiseModel(rows, outer, affine), True
    # Which rows to turn, as relu(z) = relu(-z) + z: affine = - sum over j of turn_j outer_j row_j.
    each = torch.einsum("ch,hd->hcd", outer, rows[:, 1:]).flatten(1)
    turn = torch.linalg.lstsq(
        each.T.cpu(), -affine[:, 1:].reshape(-1, 1).cpu(), driver="gelsd"
    ).solution.flatten()
    near = turn.round().clamp(0, 1)
    left = affine[:, 1:].flatten().cpu() + near @ each.cpu()
    signed = bool((turn - near).abs().max() < 1e-2) and float(left.norm()) < 1e-4 * (
        float(affine[:, 1:].norm()) + float(outer.norm())
    )
    if not signed:
        return PiecewiseModel(rows, outer, affine), False
    rows = rows * (1 - 2 * near.to(rows.device))[:, None]
    bias, outer = solved(rows, 1)
    return PiecewiseModel(rows, outer, nn.functional.pad(bias, (0, width))), True
