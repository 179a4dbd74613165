"""A participant's part of differentially private SGD: the clipped gradients of a secret lot of its own records, summed.

The noise is not added here: `tacit.parties.secure_sum` puts the sum on a grid and adds the participant's share of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tacit.core.coins import Coins
from tacit.core.errors import Diverged, TacitWarning, UnsupportedLayer
from tacit.core.wire import Array
from tacit.dp.sampling import poisson_sample
from tacit.nn.local_work import load_parameters
from tacit.nn.persample import ClipRule, clipped_sum, cross_entropy
from tacit.nn.updates import LocalUpdate


@dataclass(slots=True, kw_only=True)
class LotGradients:
    """The sum, over a Poisson lot of a participant's records, of each one's clipped gradient.

    Each record joins a round's lot independently with probability lot / total. The lot follows from ``coins`` and the round
    alone.

    Args:
        module: the architecture; its weights are overwritten at each update.
        inputs: records, (n, *input shape).
        labels: classes, (n,).
        rule: how gradients are clipped.
        lot: the expected size of all participants' lots together.
        total: records of all participants together, at least n.
        coins: where lots come from; kept from everybody else.

    Raises:
        UnsupportedLayer: a parameter is frozen: updates carry all of them.

    **Guarantee**: to add or remove one record moves the update by ``rule.bound`` in L2 norm at most, up to rounding.
    **Leaks**: nothing here is noisy. How long an update takes tells how large the lot was.
    """

    module: nn.Module = field(repr=False)
    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    rule: ClipRule
    lot: int
    total: int
    coins: Coins = field(repr=False)

    def __post_init__(self) -> None:
        if frozen := [n for n, p in self.module.named_parameters() if not p.requires_grad]:
            raise UnsupportedLayer(
                f"the parameter {frozen[0]!r} is frozen, and updates carry all: make the fixed part a transformation of the "
                "records"
            )

    def records(self, round: int) -> Tensor:
        """Which of the own records are in the lot of a round, ascending, int64; there may be none."""
        # The own records are the first of all, as far as the lot is concerned: each place is drawn on its own.
        places = poisson_sample(self.coins.child(f"lot {round}"), self.total, self.lot)
        return torch.from_numpy(places[: np.searchsorted(places, len(self.inputs))])

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        """The sum of clipped gradients over the lot of that round.

        Raises:
            Diverged: the model is not finite.
            UnsupportedLayer: the model mixes records.

        Warns:
            TacitWarning: gradients that are not finite, which add nothing. The participant alone is told.
        """
        if not all(np.isfinite(array).all() for array in model):
            raise Diverged(f"the model of round {round} is not finite: lower the learning rate")
        load_parameters(self.module, model)
        self.module.train()
        rows = self.records(round)
        found = clipped_sum(
            self.module, cross_entropy, self.inputs[rows], self.labels[rows], self.rule
        )
        if found.nonfinite:
            warnings.warn(
                f"round {round}: {found.nonfinite} gradients of {len(rows)} were not finite and added nothing: lower the "
                "learning rate, or look for records that are not finite",
                TacitWarning,
                stacklevel=2,
            )
        arrays = tuple(gradient.numpy() for gradient in found.gradients)
        return LocalUpdate(arrays=arrays, examples=len(rows))
