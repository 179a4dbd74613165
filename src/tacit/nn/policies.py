"""What an endpoint says of a model's answer: all probabilities, rounded ones, the top few, or the label.

The mitigations of [14] that need no new training. Each takes something from the vector of class probabilities before it is
given out, and none changes the predicted label. The fifth of the paper, L2 regularisation, is a setting of the training
(`weight_decay` of `tacit.nn.stacked.Recipe`).

What is kept secret from whom: part of the answer, from whoever asks. **Leaks**: whatever is left; the label alone still
tells members from others where the model is more accurate on members. No policy is a guarantee, and one who asks about many
neighbours of a record learns more than one answer says.

Source:
    [14] R. Shokri, M. Stronati, C. Song, V. Shmatikov. Membership Inference Attacks against Machine Learning Models. IEEE
    S&P 2017, section VIII (recalled).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.core.errors import ConfigError

#: Beyond so many decimal digits float64 has nothing to round.
MOST_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is done to an answer, in this order: temperature, the top classes, rounding. The default does nothing.

    Args:
        top_k: of so many of the likeliest classes the probability is given, of all others zero; of equal ones the lower
            class is the likelier. What is given is not scaled up to one. None: of all.
        digits: probabilities are rounded to the nearest multiple of 10^-digits, so that they need not sum to one; 1 to 15.
            None: not rounded.
        temperature: what logits are divided by before the softmax; above 1 flattens the answer.
        labels_only: the answer is 1 for the likeliest class and 0 for all others; nothing else may be set then.

    Raises:
        ConfigError: a setting is out of range, or has no effect beside `labels_only`.
    """

    top_k: int | None = None
    digits: int | None = None
    temperature: float = 1.0
    labels_only: bool = False

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k of at least 1 expected, {self.top_k} came: None gives all")
        if self.digits is not None and not 1 <= self.digits <= MOST_DIGITS:
            raise ConfigError(
                f"1 to {MOST_DIGITS} digits expected, {self.digits} came: None does not round"
            )
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"a temperature above 0 expected, {self.temperature} came")
        others = (self.top_k, self.digits, self.temperature) != (None, None, 1)
        if self.labels_only and others:
            raise ConfigError(
                "labels_only alone expected: top_k, digits and temperature do nothing to a label"
            )

    def answers(self, logits: Tensor) -> Tensor:
        """What is given out.

        Args:
            logits: (..., classes) logits or log-probabilities.

        Returns:
            (..., classes) float64 in [0, 1].

        Raises:
            ConfigError: the model has fewer classes than `top_k`.
        """
        classes = logits.shape[-1]
        if self.top_k is not None and self.top_k > classes:
            raise ConfigError(f"top_k of at most {classes} classes expected, {self.top_k} came")
        kept = 1 if self.labels_only else self.top_k
        probabilities = torch.softmax(logits.double() / self.temperature, -1)
        if kept is not None:
            # A stable sort, for topk leaves open which of equal ones comes first. By logits: a high
            # temperature rounds different ones to equal probabilities.
            order = logits.argsort(dim=-1, descending=True, stable=True)[..., :kept]
            chosen = probabilities.gather(-1, order)
            if self.labels_only:
                chosen = torch.ones_like(chosen)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, chosen)
        if self.digits is not None:
            probabilities = probabilities.round(decimals=self.digits)
        return probabilities

    @property
    def name(self) -> str:
        """In a few letters, as for a row of a table: ``none``, ``top3``, ``top3-digits2``, ``temperature5``, ``labels``."""
        parts = [
            f"temperature{self.temperature:g}" if self.temperature != 1 else "",
            f"top{self.top_k}" if self.top_k is not None else "",
            f"digits{self.digits}" if self.digits is not None else "",
            "labels" if self.labels_only else "",
        ]
        return "-".join(part for part in parts if part) or "none"


#: All probabilities as they are.
EVERYTHING = Policy()
