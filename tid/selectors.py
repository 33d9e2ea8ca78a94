"""From scores to a keep mask: which tokens go?

A selector is a component: ``selector(scores, droppable, rate, noise, state) -> keep`` with

    scores     (B, T) float32, finite; higher = more important
    droppable  (B, T) bool, False = protected
    rate       (B,) float64 in [0, 1), the fraction of the droppable tokens to drop
    noise      (B, T) uniform [0, 1)
    state      what the selector remembers between steps, tensors changed in place; made by `initial_state`
    keep       (B, T) bool, False = dropped

`exact` says whether exactly round(rate · droppable) tokens of each row go, `keeps_highest` at which end of the scores a
token is safe. No shape depends on the rate, so one compiled step serves the whole schedule.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tid.component import component

PAIRWISE_LENGTH = 512
RATES = 1024  # rates, evenly spaced, whose quantiles a threshold remembers


def drop_counts(droppable: Tensor, rate: Tensor) -> Tensor:
    """Tokens to drop per row, (B,) int64: round(rate · droppable), half to even as Python's round."""
    return (droppable.sum(dim=1) * rate).round().long()


def ranks(order: Tensor, tie: Tensor) -> Tensor:
    """Rank (B, T) int64 of each element of a row by (order, tie, position), 0 for the smallest.

    Rows of usual length compare all pairs, which is one fused pass on a GPU where a sort is many; long ones sort.
    """
    if order.shape[1] > PAIRWISE_LENGTH:
        shuffle = tie.argsort(dim=1, stable=True)
        ranked = shuffle.gather(1, order.gather(1, shuffle).argsort(dim=1, stable=True))
        return ranked.argsort(dim=1)
    mine, other = order[:, :, None], order[:, None, :]
    earlier = torch.ones(order.shape[1], order.shape[1], dtype=torch.bool, device=order.device).tril(-1)
    first = (tie[:, None, :] < tie[:, :, None]) | (tie[:, None, :] == tie[:, :, None]) & earlier
    return ((other < mine) | (other == mine) & first).sum(dim=2)


def drop_first(order: Tensor, droppable: Tensor, rate: Tensor, noise: Tensor) -> Tensor:
    """Keep mask (B, T) that drops, in each row, the droppable tokens smallest in `order` (B, T).

    Ties are broken by `noise`: by position they would drop the first of several equal tokens every time.
    """
    rank = ranks(order.masked_fill(~droppable, torch.inf), noise)
    return (rank >= drop_counts(droppable, rate)[:, None]) | ~droppable


class Selector:
    """Selectors without memory."""

    exact: ClassVar = True
    keeps_highest: ClassVar = True

    def initial_state(self) -> dict[str, Tensor]:
        return {}


@component
class Lowest(Selector):
    """Drop the least important tokens."""

    def __call__(self, scores: Tensor, droppable: Tensor, rate: Tensor, noise: Tensor, state: dict) -> Tensor:
        return drop_first(scores, droppable, rate, noise)


@component
class Highest(Selector):
    """Drop the most important tokens: the inverse control. A score that matters must lose here."""

    keeps_highest: ClassVar = False

    def __call__(self, scores: Tensor, droppable: Tensor, rate: Tensor, noise: Tensor, state: dict) -> Tensor:
        return drop_first(-scores, droppable, rate, noise)


@component
class Sampled(Selector):
    """Drop at random, unimportant tokens more often: Gumbel top-k (Kool et al. 2019), which samples without
    replacement with log-weight −z/temperature, z the score standardised over the row's droppable tokens.

    Temperature → 0 is `lowest`, → ∞ is random; standardising gives it the same meaning for every scorer.
    """

    temperature: Annotated[float, Field(gt=0)]

    def __call__(self, scores: Tensor, droppable: Tensor, rate: Tensor, noise: Tensor, state: dict) -> Tensor:
        count = droppable.sum(dim=1, keepdim=True).clamp_min(1)
        scores = scores.double()  # squares of any float32 are finite
        centred = scores - (scores * droppable).sum(dim=1, keepdim=True) / count
        deviation = ((centred.square() * droppable).sum(dim=1, keepdim=True) / count).sqrt()
        z = centred / deviation.clamp_min(1e-150)
        gumbel = -(-(noise + 2.0**-25).log()).log()
        return drop_first(z / self.temperature - gumbel, droppable, rate, 1 - noise)


def quantiles(ordered: Tensor, last: Tensor | int, at: Tensor) -> Tensor:
    """Quantiles of ordered[0 … last], ascending, at fractions `at` in [0, 1], of any shape, on straight lines between
    the values (numpy's default, R's type 7)."""
    place = at * last
    below = place.long()
    return torch.lerp(ordered[below], ordered[(below + 1).clamp(max=last)], (place - below).to(ordered.dtype))


@component
class Threshold(Selector):
    """Drop every token whose score is below the `rate` quantile of earlier batches' scores.

    Causal within the sequence: a token's fate depends on its own score and on earlier batches, never on its
    neighbours. Remembered are the quantiles at all rates, so that a row is cut at its own, whatever the schedule does:
    those of the last batch, or with `momentum` an exponential moving average. Where scores rise or fall from batch to
    batch the threshold comes late, by more with more momentum, and too few or too many go: the realised rate is logged,
    and tid.compare takes no random control of another rate. The first step drops nothing.
    """

    momentum: Annotated[float, Field(ge=0, lt=1)]
    exact: ClassVar = False

    def initial_state(self) -> dict[str, Tensor]:
        return {"quantiles": torch.zeros(RATES + 1), "weight": torch.tensor(0.0)}

    def __call__(self, scores: Tensor, droppable: Tensor, rate: Tensor, noise: Tensor, state: dict) -> Tensor:
        known, weight = state["quantiles"], state["weight"]
        threshold = quantiles(known / weight.clamp_min(1e-12), RATES, rate)
        keep = (scores >= threshold[:, None]) | ~droppable | (weight == 0) | (rate == 0)[:, None]
        ordered = scores.masked_fill(~droppable, torch.inf).flatten().sort().values
        total = droppable.sum()
        here = quantiles(ordered, (total - 1).clamp_min(0), torch.arange(RATES + 1, device=rate.device) / RATES)
        known.lerp_(torch.where(total > 0, here, known), 1 - self.momentum)
        weight.lerp_(torch.where(total > 0, 1.0, weight), 1 - self.momentum)
        return keep
