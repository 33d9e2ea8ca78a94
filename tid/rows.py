"""Some rows of a sequence taken out and put back, both by looking rows up, forwards and backwards: what autograd makes
of `gather` and `scatter` copies everything once more and adds what is zero.

index (B, S) names for each row of the short sequence that of the long one, back (B, T) the other way round; −1: none.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def kept_rows(keep: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """index (B, size) and back (B, T) for a keep mask (B, T) of which no row keeps more than `size`; order is kept."""
    count = keep.cumsum(dim=1)
    nth = torch.arange(1, size + 1, device=keep.device).expand(len(keep), -1).contiguous()
    index = torch.searchsorted(count, nth)  # where the count first comes to n
    return torch.where(index < keep.shape[1], index, -1), torch.where(keep, count - 1, -1)


def look_up(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, C) that index (B, M) names, (B, M, C); −1: zeros."""
    found = x.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, x.shape[2]))
    return torch.where(index[..., None] >= 0, found, 0.0)


def filled(x: Tensor, y: Tensor, back: Tensor) -> Tensor:
    """x (B, T, C), with rows of y (B, S, C) where `back` names some."""
    found = y.gather(1, back.clamp(min=0)[..., None].expand(-1, -1, y.shape[2]))
    return torch.where(back[..., None] >= 0, found, x)


class TakenOut(Function):
    """x (B, T, C) → its rows at `index`, (B, S, C), and x for `PutBack`. model: has `look_up` and `filled`."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, back: Tensor, model: Any) -> tuple[Tensor, Tensor]:
        ctx.back, ctx.model = back, model
        return model.look_up(x, index), x

    @staticmethod
    def backward(ctx, dy: Tensor, dx: Tensor) -> tuple:
        return ctx.model.filled(dx, dy, ctx.back), None, None, None


class PutBack(Function):
    """x (B, T, C) from `TakenOut` and rows y (B, S, C) → `filled`. In the gradient of x the rows that were put back
    are left to `TakenOut`, which replaces them."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, index: Tensor, back: Tensor, model: Any) -> Tensor:
        ctx.index, ctx.model = index, model
        return model.filled(x, y, back)

    @staticmethod
    def backward(ctx, dx: Tensor) -> tuple:
        return dx, ctx.model.look_up(dx, ctx.index), None, None, None
