"""Some rows of a sequence taken out and put back, both by looking rows up, forwards and backwards: what autograd makes
of `gather` and `scatter` copies everything once more and adds what is zero.

index (B, S) names for each row of the short sequence that of the long one, back (B, T) the other way round; −1: none.
What is looked up are rows of sums: see `Residual`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function


class Residual(NamedTuple):
    """The residual stream (B, T, C), and a branch that is still to be added to it: the kernel that reads the sum next
    can do that on the way."""

    x: Tensor
    branch: Tensor | None = None

    @property
    def total(self) -> Tensor:
        return self.x if self.branch is None else self.x + self.branch

    @classmethod
    def of(cls, x: "Tensor | Residual") -> "Residual":
        return x if isinstance(x, Residual) else cls(x)


Found = tuple[Tensor, Tensor | None]


def kept_rows(keep: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """index (B, size) and back (B, T) for a keep mask (B, T) of which no row keeps more than `size`; order is kept."""
    count = keep.cumsum(dim=1)
    nth = torch.arange(1, size + 1, device=keep.device).expand(len(keep), -1).contiguous()
    index = torch.searchsorted(count, nth)  # where the count first comes to n
    return torch.where(index < keep.shape[1], index, -1), torch.where(keep, count - 1, -1)


def gathered(x: Tensor, branch: Tensor | None, index: Tensor) -> Tensor:
    """Rows of x + branch (B, N, C) that index (B, M) names, (B, M, C); −1: the first."""
    at = index.clamp(min=0)[..., None].expand(-1, -1, x.shape[2])
    return x.gather(1, at) if branch is None else x.gather(1, at) + branch.gather(1, at)


def look_up(x: Tensor, branch: Tensor | None, index: Tensor, dtype: torch.dtype | None = None) -> Found:
    """Rows of x + branch (B, N, C) that index (B, M) names, (B, M, C); −1: zeros. As they are and, unless it is None,
    in `dtype`."""
    found = torch.where(index[..., None] >= 0, gathered(x, branch, index), 0.0)
    return found, None if dtype is None else found.to(dtype)


def filled(
    x: Tensor, branch: Tensor | None, y: Tensor, y_branch: Tensor | None, back: Tensor, dtype: torch.dtype | None = None
) -> Found:
    """x + branch (B, T, C), with rows of y + y_branch (B, S, C) where `back` names some. As `look_up`."""
    found = torch.where(back[..., None] >= 0, gathered(y, y_branch, back), x if branch is None else x + branch)
    return found, None if dtype is None else found.to(dtype)


def dtype_of(branch: Tensor | None) -> torch.dtype | None:
    return None if branch is None else branch.dtype


class TakenOut(Function):
    """x + branch (B, T, C) → its rows at `index`, (B, S, C), and x and branch for `PutBack`. model: has `look_up` and
    `filled`."""

    @staticmethod
    def forward(ctx, x: Tensor, branch: Tensor | None, index: Tensor, back: Tensor, model: Any) -> tuple:
        ctx.back, ctx.model, ctx.dtype = back, model, dtype_of(branch)
        ctx.set_materialize_grads(False)
        return model.look_up(x, branch, index)[0], x, branch

    @staticmethod
    def backward(ctx, dy: Tensor, dx: Tensor, _: None) -> tuple:
        return *ctx.model.filled(dx, None, dy, None, ctx.back, ctx.dtype), None, None, None


class PutBack(Function):
    """x + branch (B, T, C) from `TakenOut` and rows y + y_branch (B, S, C) → `filled`. The gradient of x + branch is
    left to `TakenOut`, which replaces the rows that were put back."""

    @staticmethod
    def forward(ctx, x, branch, y: Tensor, y_branch: Tensor | None, index: Tensor, back: Tensor, model: Any) -> Tensor:
        ctx.index, ctx.model, ctx.dtype = index, model, dtype_of(y_branch)
        return model.filled(x, branch, y, y_branch, back)[0]

    @staticmethod
    def backward(ctx, dx: Tensor) -> tuple:
        return dx, None, *ctx.model.look_up(dx, None, ctx.index, ctx.dtype), None, None, None
