"""Sums over a vocabulary that read the logits once: first within short pieces of a row, then over the pieces.

A whole row of 50,304 logits does not fit where a GPU's threads keep numbers, and would be read once for its maximum and
again for its sum.
"""

import math

from torch import Tensor

LANES, LEAST_LANES = 128, 16  # logits in a piece; a row that cuts only into smaller ones is left whole
PADDING = -1e30  # the logit of no token; finite, because its product with its probability, 0, has to be 0


def in_lanes(logits: Tensor) -> Tensor:
    """(..., V) → (..., pieces, lanes)."""
    lanes = math.gcd(logits.shape[-1], LANES)
    return logits.unflatten(-1, (-1, lanes if lanes >= LEAST_LANES else logits.shape[-1]))


def log_sum_exp(logits: Tensor) -> Tensor:
    """ln Σ exp over the last dimension, (..., V) float32 → (...)."""
    return in_lanes(logits).logsumexp(dim=-1).logsumexp(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats of softmax(logits), (..., V) float32 → (...); never below 0.

    With w = exp(x − max), H = ln Σw − Σ w (x − max) / Σw, both sums taken piece by piece.
    """
    x = in_lanes(logits)
    top = x.amax(dim=-1, keepdim=True)
    x = x - top
    w = x.exp()
    weight, moment = w.sum(dim=-1), (w * x).sum(dim=-1)
    below = (top - top.amax(dim=-2, keepdim=True)).squeeze(-1)
    factor = below.exp()
    total = (weight * factor).sum(dim=-1)
    return total.log() - ((moment + below * weight) * factor).sum(dim=-1) / total
