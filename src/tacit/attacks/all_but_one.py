"""The adversary of the definition of differential privacy: who knows every record but one.

It has the finished model, and knows the architecture, the settings and all other records. Was the one record trained on? It
can train with and without that record itself, so that all it has to tell apart is two laws of models.

It looks at the record's logit margin, the log-odds that the model gives to its label: a model that was trained on the record
has a higher one. The direction is known beforehand, so the area under the ROC curve, which fits no threshold, needs no model
but those that are judged, and stays 1/2 on average where both laws are equal. Only where its own trainings refute the
direction beyond doubt (`in_order`) does the adversary read the margin the other way.

A training that draws nothing, with start and order fixed, gives one model with the record and one without: then the
adversary is certain. That is no artefact: such a training has no epsilon.

What is kept secret from whom: nothing here protects. An adversary who compares all weights may be stronger.

Source: Dwork, Roth, "The algorithmic foundations of differential privacy" (2014), section 2.3, for the adversary; Nasr et
al., "Adversary instantiation" (S&P 2021), for trainings with and without a record that is likely to be memorised; Carlini
et al., "Membership inference attacks from first principles" (S&P 2022), for the logit margin.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tacit.core.errors import NotEnoughEvidence

FloatArray = npt.NDArray[np.float64]

BEYOND_DOUBT = 10.0
"""How many times the wider side's range must lie between both sides before the direction counts as refuted."""


def logit_margin(model: nn.Module, inputs: Tensor, labels: Tensor) -> FloatArray:
    """By how much each record's true logit is above the log of the others' sum, (n,): the log-odds of its class."""
    model.eval()
    with torch.no_grad():
        logits = model(inputs).double()
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    margin: FloatArray = (true.squeeze(1) - others.logsumexp(1)).cpu().numpy()
    return margin


def in_order(among: FloatArray, without: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both sides' margins as scores: turned round if all lie the wrong way, further apart than chance ever puts them.

    Equal laws of four models or more a side practically never do so: the gap must be `BEYOND_DOUBT` times what either side
    spreads.

    Args:
        among: (a,) margins of models that were trained with the record.
        without: (b,) margins of models that were not.

    Raises:
        NotEnoughEvidence: fewer than 2 models on a side, which show no spread.
    """
    if min(len(among), len(without)) < 2:
        raise NotEnoughEvidence(
            f"at least 2 models with and without the record expected, got {len(among)} and {len(without)}"
        )
    gap = without.min() - among.max()
    wrong = gap > 0 and gap > BEYOND_DOUBT * max(np.ptp(among), np.ptp(without))
    return (-among, -without) if wrong else (among, without)
