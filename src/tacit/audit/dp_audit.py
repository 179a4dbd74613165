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

`strong_adversary` is the adversary of the definition of differential privacy, who knows all records but one, in the weaker
position of one who gets the finished model only: he trains with and without that record, many times over.

Source: Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run" (NeurIPS 2023); Nasr et al., "Adversary
instantiation" (S&P 2021), for canaries as gradients; Carlini et al., "Membership inference attacks from first principles"
(S&P 2022), for Gaussians fitted to logit margins.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from tacit.audit.statistics import Estimate, auc, auc_interval
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, NotEnoughEvidence
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


# --- who knows every record but one

Train = Callable[[Tensor, Tensor, Coins], nn.Module]
"""From records and labels to a trained model."""


def logit_margin(model: nn.Module, inputs: Tensor, labels: Tensor) -> FloatArray:
    """By how much each record's true logit is above the log of the others' sum, (n,): the log-odds of its class."""
    model.eval()
    with torch.no_grad():
        logits = model(inputs).double()
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    margin: FloatArray = (true.squeeze(1) - others.logsumexp(1)).cpu().numpy()
    return margin


def strong_adversary(
    train: Train,
    inputs: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    *,
    models: int,
    coins: Coins,
) -> Estimate:
    """How well one who knows all records but one tells from the finished model whether that one was in.

    For each target he trains ``models`` models with all records, which serve for all targets, and as many without it, fits
    a Gaussian to the target's logit margin on either side, and scores models that he has not trained, as many again of
    either kind, by the logarithm of the likelihood ratio.

    Args:
        train: the training that is attacked, start and settings fixed; what differs between calls are its coins.
        inputs: all records, (n, *input shape).
        labels: (n,) int64.
        targets: places of the records that are asked about, one after another.
        models: to fit on either side, and to be judged by.
        coins: a child of them goes to each training.

    Returns:
        The mean over the targets of the area under the ROC curve, and its interval: DeLong's for one target; for several
        Student's over the targets, within [0, 1], which leaves out that they share models.

    Raises:
        NotEnoughEvidence: fewer than 2 models, or no target.

    Cost: 2 * models * (1 + targets) trainings.
    """
    if models < 2 or not targets:
        raise NotEnoughEvidence(
            f"at least 2 models and one target expected, got {models} and {len(targets)}"
        )

    def margins(keep: Tensor, label: str) -> FloatArray:
        return np.array(
            [
                logit_margin(
                    train(inputs[keep], labels[keep], coins.child(f"{label} {k}")), inputs[places], labels[places]
                )
                for k in range(2 * models)
            ]
        )  # fmt: skip

    places = torch.tensor(list(targets), device=inputs.device)
    everything = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    among = margins(everything, "with all")
    areas, scores = [], []
    for column, target in enumerate(targets):
        rest = everything.clone()
        rest[target] = False
        without = margins(rest, f"without {target}")[:, column]
        ratio = _ratio(among[:models, column], without[:models])
        scores.append((ratio(among[models:, column]), ratio(without[models:])))
        areas.append(auc(*scores[-1]))
    if len(targets) == 1:
        return Estimate(value=areas[0], interval=auc_interval(*scores[0]), n=2 * models)
    mean = float(np.mean(areas))
    reach = float(
        stats.t.ppf(0.975, len(areas) - 1) * np.std(areas, ddof=1) / math.sqrt(len(areas))
    )
    return Estimate(
        value=mean, interval=(max(0.0, mean - reach), min(1.0, mean + reach)), n=len(areas)
    )


def _ratio(among: FloatArray, without: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """The log of the likelihood ratio of Gaussians fitted to either sample."""
    fits = [(float(s.mean()), max(float(s.std(ddof=1)), 1e-9)) for s in (among, without)]

    def ratio(x: FloatArray) -> FloatArray:
        inside, outside = (stats.norm.logpdf(x, *fit) for fit in fits)
        out: FloatArray = inside - outside
        return out

    return ratio
