"""Gradient leakage: training records read back from the updates that they caused.

The adversary stands where updates arrive (a parameter server, a coordinator, whoever taps it). It
is honest but curious: it changes nothing.

Holds:
    the model that the victim started from (architecture and weights), and the victim's update: a
    gradient, or the change of the weights after some local SGD steps; all of it, or only the
    coordinates that a protection lets through, or a sum over participants, or a noisy copy.
Recovers:
    the records behind the update and their labels.
Assumes:
    a cross-entropy loss averaged over the batch, and for the search the numbers in its
    `UpdateRecipe` (batch size, local steps, learning rate, participants).

Three attacks, from the closed form to the search; the closed forms are in this file:

1. A fully connected first layer with a bias divides out: for unit i, dL/dW_i = dL/db_i · x, so that
   one record is exact from any unit that it activates (`exact_recovery`, `exact_candidates`), and
   a part of the gradient, or a noisy one, still gives it away (`spectral_recovery`).
2. The last layer's bias gradient is (probability - one-hot), negative only at the label
   (`infer_label`, `infer_labels`; without a bias `infer_label_from_weights`).
3. Gradient matching: dummy records are moved until the update that they would cause equals the one
   that was seen (`tacit.attacks.gradient_matching`).

Sources:
    Phong, Aono, Hayashi, Wang, Moriai, "Privacy-preserving deep learning via additively homomorphic
    encryption", IEEE TIFS 2018 (ePrint 2017/715), section 3 (the division); Zhu, Liu, Han, "Deep
    leakage from gradients", NeurIPS 2019 (DLG); Zhao, Mopuri, Bilen, "iDLG: improved deep leakage
    from gradients", 2020 (the label); Geiping, Bauermeister, Dröge, Moeller, "Inverting gradients",
    NeurIPS 2020 (cosine, total variation, signed Adam, several local steps).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tacit.core.errors import ConfigError


def exact_candidates(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """The input of a fully connected layer as each of its units gives it away.

    With one record behind the gradient every active unit gives that record. With several, a unit
    that a single record activates gives that one, and any other a mixture.

    Args:
        weight_gradient: (..., units, d), dL/dW of the first layer.
        bias_gradient: (..., units), dL/db of it.

    Returns:
        (..., units, d); NaN in the row of a unit whose bias gradient is zero.

    Raises:
        ConfigError: the shapes do not belong together.

    Source: Phong et al., section 3.
    """
    if weight_gradient.dim() < 2 or weight_gradient.shape[:-1] != bias_gradient.shape:
        raise ConfigError(
            "gradients of a layer's weight (..., units, d) and bias (..., units) expected, shapes "
            f"{tuple(weight_gradient.shape)} and {tuple(bias_gradient.shape)} came: pass those of one "
            "fully connected layer"
        )
    divisor = bias_gradient.unsqueeze(-1)
    return torch.where(divisor == 0, math.nan, weight_gradient / divisor)


def exact_recovery(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """The one record behind a gradient, by division at the unit with the largest |dL/db|.

    Args:
        weight_gradient: (..., units, d), dL/dW of a fully connected first layer.
        bias_gradient: (..., units), dL/db of it.

    Returns:
        (..., d); NaN where no unit was active, since nothing divides out there.

    Raises:
        ConfigError: the shapes do not belong together.

    Source: Phong et al., section 3.
    """
    candidates = exact_candidates(weight_gradient, bias_gradient)
    unit = bias_gradient.abs().argmax(-1)[..., None, None]
    return candidates.take_along_dim(unit, -2).squeeze(-2)


def spectral_recovery(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """The one record behind a gradient of which only a part was seen, or that was clipped, or carries noise.

    The layer's gradient has rank one: (dL/dW, dL/db) = dL/db ⊗ (x, 1). The leading singular vector is the direction that
    most of what was seen agrees on; noise and gaps spread over all the others. Its scale is lost, so that the largest value
    is set to 1, and its sign is the one that makes the record's sum positive.

    Args:
        weight_gradient: (units, d), dL/dW of a fully connected first layer; 0 where it was not seen.
        bias_gradient: (units,), dL/db of it; 0 where it was not seen.

    Returns:
        (d,).

    Raises:
        ConfigError: the shapes do not belong together.

    Source: Phong et al., section 3, for the rank; Eckart, Young, "The approximation of one matrix by another of lower rank",
    Psychometrika 1936, for the fit.
    """
    if weight_gradient.dim() != 2 or weight_gradient.shape[:1] != bias_gradient.shape:
        raise ConfigError(
            "gradients of a layer's weight (units, d) and bias (units,) expected, shapes "
            f"{tuple(weight_gradient.shape)} and {tuple(bias_gradient.shape)} came"
        )
    matrix = torch.cat([weight_gradient, bias_gradient[:, None]], 1)
    record: Tensor = torch.linalg.svd(matrix, full_matrices=False).Vh[0, :-1]
    record *= torch.where(record.sum() < 0, -1.0, 1.0)
    return record.div_(record.abs().max().clamp_min(1e-30))


def infer_label(last_bias_gradient: Tensor) -> Tensor:
    """The label of the one record behind a gradient: the only class whose bias gradient is negative.

    Args:
        last_bias_gradient: (..., classes), of the layer whose outputs are the scores.

    Returns:
        (...) int64.

    Source: Zhao et al. (iDLG).
    """
    return last_bias_gradient.argmin(-1)


def infer_label_from_weights(last_weight_gradient: Tensor) -> Tensor:
    """The label of the one record behind a gradient of a last layer that has no bias.

    Row c of the weight gradient is (p_c - y_c) · features. Its sum has the sign of (p_c - y_c)
    **only if the features are non-negative** (after ReLU or sigmoid); after tanh it may be wrong.

    Args:
        last_weight_gradient: (..., classes, features).

    Returns:
        (...) int64.

    Source: Zhao et al. (iDLG), section 3.
    """
    return last_weight_gradient.sum(-1).argmin(-1)


def infer_labels(last_bias_gradient: Tensor, batch_size: int) -> Tensor:
    """The labels of a batch, by a greedy heuristic.

    The bias gradient at class c is the batch's mean probability of c minus the share of records
    labelled c. So the most negative class is taken, its gradient raised by 1 / batch_size, and so
    on until the batch is full. Exact while the share 1 / batch_size outweighs the differences
    between the classes' mean probabilities (a fresh model, small batches); a guess otherwise.

    Args:
        last_bias_gradient: (..., classes), of a loss averaged over the batch.
        batch_size: records in the batch.

    Returns:
        (..., batch_size) int64, sorted: a gradient says nothing about the order.

    Raises:
        ConfigError: ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ConfigError(f"a batch of at least one record expected, {batch_size} came")
    rest = last_bias_gradient.detach().clone()
    found = []
    for _ in range(batch_size):
        label = rest.argmin(-1, keepdim=True)
        found.append(label)
        rest.scatter_add_(-1, label, torch.full_like(label, 1, dtype=rest.dtype) / batch_size)
    return torch.cat(found, -1).sort(-1).values
