"""Audits of differentially private SGD: a lower bound on epsilon from one training, and the adversary of the definition.

`audit_run` trains once, with many canaries, each among the records or not by a fair coin of its own, and guesses the coins
from what was released (`tacit.dp.audit` says what right guesses show). It runs the training's own loop: the lots come from
its ledger, canaries are taken by them as records are, and the noise is what is added in earnest. Two kinds:

- `GradientCanaries`: whoever sees each noisy sum. A canary's gradient is a long vector along one parameter, its own; the
  training's clipping brings it to the length of the clip, or does not. All else is known: of each released sum the real
  records' part is taken away. What is left of a canary's coordinate, over the clip, is y = [it was drawn] + noise, and its
  score is the log of the likelihood ratio of all steps, sum log(1 - q + q exp((2 y - 1) / 2 s^2)), q the rate of lots and s
  the noise's deviation, which the auditor measures himself (a median over the canaries) instead of trusting.
- `RecordCanaries`: whoever has the finished model. The canaries are records, and the score is by how much the training has
  lowered the loss on each.

That the auditor knows the other records, and when lots took them, weakens nothing: epsilon is promised whatever the other
records are, and each joins a lot on its own.

A bound above the claim shows, up to its confidence, that the claim is false. One below it shows only that this auditor did
not find out more, and guarantees nothing.

The adversary who knows all records but one, and trains with and without it many times over, is `tacit.audit.all_but_one`.

Source: Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run" (NeurIPS 2023); Nasr et al., "Adversary
instantiation" (S&P 2021), for canaries as gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.core.wire import Array
from tacit.dp.audit import Bools, FloatArray, audited
from tacit.dp.sampling import Indices
from tacit.nn.persample import ClipRule, clipped_sum, cross_entropy
from tacit.training.dp_sgd import DPSGD

_QUARTILE = float(stats.norm.ppf(0.75))  # the median size of a normal variable, in deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCanaries:
    """Canaries for who sees each noisy sum.

    Args:
        count: how many; at most the model's trainable numbers.
        length: of a canary's gradient before clipping, over the clip.
        known_steps: (count,) int64, in which step's lot each canary is drawn if it is in, for an auditor who knows; none
            where lots are drawn at random.

    Raises:
        ConfigError: a number is out of range.
    """

    count: int
    length: float = 100.0
    known_steps: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        steps = self.known_steps
        if self.count < 1 or not 1 <= self.length < math.inf:
            raise ConfigError(
                f"at least one canary, at least as long as the clip, expected, got {self.count} and {self.length}"
            )
        if steps is not None and steps.shape != (self.count,):
            raise ConfigError(
                f"one step for each of {self.count} canaries expected, got {steps.shape}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCanaries:
    """Canaries for who has the finished model.

    Args:
        inputs: (m, *input shape), records that the model would not get right of itself: random ones, or mislabelled.
        labels: (m,) int64.

    Raises:
        ConfigError: there are none, or not as many labels.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if not len(self.inputs) or self.labels.shape != (len(self.inputs),):
            raise ConfigError(
                f"records and a label for each expected, got {len(self.inputs)} and {tuple(self.labels.shape)}"
            )

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.inputs)


class _Gradients:
    """`GradientCanaries` at work: adds their gradients, and follows their coordinates of what is released."""

    def __init__(
        self, canaries: GradientCanaries, scheme: DPSGD, rate: float, included: Bools
    ) -> None:
        self.count, self._known_steps = canaries.count, canaries.known_steps
        self._clip, self._rate, self._included = scheme.clip, rate, included
        length = canaries.length * scheme.clip
        norms = torch.tensor([[length]], dtype=torch.float64)
        self._height = length * float(scheme.rule.weights(norms))
        self._step = 0
        self.scores = np.zeros(self.count)

    def add(self, places: Indices, sums: Sequence[Array]) -> None:
        size = sum(array.size for array in sums)
        if self.count > size:
            raise ConfigError(
                f"{self.count} canaries need a trainable number of the model each, and it has {size}: take fewer"
            )
        self._at = np.arange(self.count) * size // self.count
        self._known = self._coordinates(sums)
        for array, within in _cut(sums, self._at[places[self._included[places]]]):
            array.flat[within] = np.add(array.flat[within], self._height)

    def released(self, noisy: Sequence[Array]) -> None:
        y = (self._coordinates(noisy) - self._known) / self._clip
        if self._known_steps is not None:
            self.scores += np.where(self._known_steps == self._step, y, 0.0)
        else:
            deviation = max(float(np.median(np.abs(y))) / _QUARTILE, 1e-3)
            exponent = (2 * y - 1) / (2 * deviation**2)
            with np.errstate(divide="ignore"):  # where every record is in every lot
                self.scores += np.logaddexp(np.log1p(-self._rate), math.log(self._rate) + exponent)
        self._step += 1

    def _coordinates(self, arrays: Sequence[Array]) -> FloatArray:
        found = [array.flat[within] for array, within in _cut(arrays, self._at)]
        return np.concatenate(found, dtype=np.float64)


def _cut(arrays: Sequence[Array], at: Indices) -> Iterator[tuple[Array, Indices]]:
    """Each array with those of the ascending places ``at`` of all arrays together that are in it, counted in it."""
    start = 0
    for array in arrays:
        low, high = np.searchsorted(at, (start, start + array.size))
        yield array, at[low:high] - start
        start += array.size


class _Records:
    """`RecordCanaries` at work: adds the clipped gradients of those that are in."""

    def __init__(
        self, canaries: RecordCanaries, model: nn.Module, rule: ClipRule, included: Bools
    ) -> None:
        self.count = canaries.count
        self._canaries, self._model, self._rule, self._included = canaries, model, rule, included
        self._before = self._losses()

    def add(self, places: Indices, sums: Sequence[Array]) -> None:
        rows = torch.from_numpy(places[self._included[places]]).to(self._canaries.inputs.device)
        found = clipped_sum(
            self._model, cross_entropy, self._canaries.inputs[rows], self._canaries.labels[rows], self._rule
        )  # fmt: skip
        for whole, part in zip(sums, found.gradients, strict=True):
            np.add(whole, part.cpu().numpy(), out=whole)

    def released(self, noisy: Sequence[Array]) -> None:
        """Nothing is seen but the finished model."""

    @property
    def scores(self) -> FloatArray:
        return self._before - self._losses()

    def _losses(self) -> FloatArray:
        self._model.eval()
        with torch.no_grad():
            losses = cross_entropy(self._model(self._canaries.inputs), self._canaries.labels)
        out: FloatArray = losses.double().cpu().numpy()
        return out


def audit_run(
    scheme: DPSGD,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    canaries: GradientCanaries | RecordCanaries,
    *,
    coins: Coins,
    confidence: float = 0.95,
    tries: Sequence[tuple[int, int]] | None = None,
) -> dict[str, object]:
    """Train once with canaries, and say what their coins' guessing shows of epsilon.

    The canaries count as records: lots are drawn from, and epsilon is claimed for, as many more. By the usual tries at 95 %
    it takes 4.4 exp(epsilon) guesses, all right, to show that an epsilon is exceeded; up to 2 in 5 canaries are guessed.

    Args:
        scheme: what is audited; its loss is cross-entropy.
        model: where it starts; left as it is.
        inputs: the real records, (n, *input shape).
        labels: (n,) int64.
        canaries: whose eyes are looked through, and how many canaries there are.
        coins: of the training and of the canaries.
        confidence: of the lower bound, in (0, 1).
        tries: numbers of guesses (in, out), fixed beforehand; `tacit.dp.audit.usual_tries` by default.

    Returns:
        ``claim``, ``delta``, ``accountant``: what is claimed of the run; ``lower_bound`` and its ``confidence``;
        ``exceeded``: whether it is above the claim; ``view``: ``noisy-sums`` or ``model``; ``canaries``, ``guesses`` and
        how many were ``right``; ``seeded``.

    Raises:
        ConfigError: more canaries than the model has trainable numbers, or a number is out of range.
        And whatever `tacit.training.dp_sgd.DPSGD.fit` raises.

    Cost: one training; with `RecordCanaries` two backward passes a step.
    """
    model = copy.deepcopy(model)
    included = coins.child("canaries").below(2, canaries.count).astype(bool)
    watcher: _Gradients | _Records
    if isinstance(canaries, GradientCanaries):
        rate = min(1.0, scheme.lot_size / (len(inputs) + canaries.count))
        watcher = _Gradients(canaries, scheme, rate, included)
    else:
        watcher = _Records(canaries, model, scheme.rule, included)
    fit = scheme.fit_watched(model, inputs, labels, watcher, coins=coins.child("training"))
    loss = fit.ledger.loss(scheme.accountant)
    found = audited(watcher.scores, included, scheme.delta, confidence=confidence, tries=tries)
    return {
        "claim": loss.epsilon,
        "delta": loss.delta,
        "accountant": scheme.accountant.value,
        "lower_bound": found.epsilon,
        "confidence": confidence,
        "exceeded": found.epsilon > loss.epsilon,
        "view": "noisy-sums" if isinstance(canaries, GradientCanaries) else "model",
        "canaries": found.canaries,
        "guesses": found.guesses,
        "right": found.right,
        "seeded": coins.seeded,
    }
