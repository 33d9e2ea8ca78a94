"""What lies between two matrix products: each forward and each backward pass a function that fuses into one kernel.

The backward passes are written out, because what automatic differentiation makes of these functions reads and writes
more: a weight gradient summed over all rows by few threads, halves put together by a copy, a new tensor where the old
one's memory would do. `tests/test_fast.py` holds them to autograd's.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from tid.device import is_hopper
from tid.model import GPT, SMALLEST_WEIGHT, Rope, attention_received, explicit_attention, rotate
from tid.products import GRAM_ROWS, add_rows_
from tid.reductions import PADDING, log_sum_exp
from tid.rows import filled, look_up

BY_HAND = ("attention", "swiglu_gradient", "cross_entropy", "norm_gradient", "row_gradient")  # what tid.kernels has
GROUPS, FOLD = 128, 8  # a norm's weight gradient is first summed in at most so many groups of rows, so many at a time


def normed(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, branch: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """RMSNorm of x, or x + branch, (B, T, C), computed in float32 and given out as `dtype`, and 1 / rms (B, T, 1)."""
    x = (x if branch is None else x + branch).float()
    inverse = (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (x * inverse * weight).to(dtype), inverse


def rows_of(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows of the embedding (V, C) for tokens (B, T), float32."""
    return F.embedding(tokens, table).float()


def add_normed(x: Tensor, branch: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The residual stream x + branch (B, T, C), and `normed` of it."""
    x = x + branch
    return x, *normed(x, weight, eps, dtype)


def unweighted(h: Tensor, weight: Tensor) -> Tensor:
    """x / rms of `normed`'s input x, from its output h: float32, as exact as h's dtype. 0 where the weight is none."""
    return torch.where(weight.abs() < SMALLEST_WEIGHT, 0.0, h.float() / weight)


def normed_gradient(dh: Tensor, dx: Tensor | None, h: Tensor, inverse: Tensor, weight: Tensor, dtype) -> tuple:
    """Gradient (B, T, C) of `normed`'s input from that of its output h, plus dx that comes along the residual stream;
    in float32, and in `dtype` unless that is None.

    From the output, which the product after it keeps anyway: the float32 input need be neither kept nor read again. A
    channel whose weight is 0 tells nothing of its input there: it counts as 0, and such a weight stays as it is.
    """
    hat, g = unweighted(h, weight), dh.float() * weight
    found = inverse * (g - hat * (g * hat).mean(dim=-1, keepdim=True))
    found = found if dx is None else found + dx
    return found, None if dtype is None else found.to(dtype)


def add_norm_weight_gradient_(sums: Tensor, dh: Tensor, h: Tensor, weight: Tensor) -> None:
    """Add the gradient of the norm's weight to `sums` (groups, C) float32, of which each takes an equal part of the
    rows. Rows are added eight at a time, element by element, as long as that comes out even: as a reduction over rows
    it is ten times as slow."""
    rows = (dh.float() * unweighted(h, weight)).flatten(0, 1)
    while (each := len(rows) // len(sums)) > 1:
        if each % FOLD and each > FOLD:
            rows = rows.unflatten(0, (-1, each)).sum(1)
            break
        rows = functools.reduce(torch.add, rows.unflatten(0, (-1, min(each, FOLD))).unbind(1))
    sums += rows


class Norm(Function):
    """x (B, T, C) and `branch`, None or what is still to be added to it → their sum, None unless `keeps_sum`, and its
    RMSNorm as `dtype`. The weight's gradient goes to `sink`, if any."""

    @staticmethod
    def forward(ctx, x, branch, weight, eps: float, dtype: torch.dtype, pieces, sink: Any, keeps_sum: bool) -> tuple:
        if keeps_sum and branch is not None:
            total, h, inverse = pieces.add_normed(x, branch, weight, eps, dtype)
        else:
            total, (h, inverse) = x if keeps_sum else None, pieces.normed(x, weight, eps, dtype, branch)
        ctx.save_for_backward(h, inverse, weight)
        ctx.set_materialize_grads(False)
        ctx.pieces, ctx.sink, ctx.dtype = pieces, sink, dtype if branch is None else branch.dtype
        return total, h

    @staticmethod
    def backward(ctx, dtotal: Tensor | None, dh: Tensor) -> tuple:
        h, inverse, weight = ctx.saved_tensors
        dtype, pieces = ctx.dtype if ctx.needs_input_grad[1] else None, ctx.pieces
        if "norm_gradient" in pieces.by_hand:
            sums = ctx.sink.sums if ctx.sink else None
            found = pieces.kernels.norm_gradient(dh, dtotal, h, inverse, weight, dtype, sums)
        else:
            found = pieces.normed_gradient(dh, dtotal, h, inverse, weight, dtype)
            if ctx.sink:
                ctx.sink(pieces.add_norm_weight_gradient_, dh, h, weight)
        return *found, None, None, None, None, None, None


def split_heads(qkv: Tensor, num_heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, T, 3C) → q, k, v (B, T, H, head_size), the first two rotated to their positions."""
    q, k, v = qkv.unflatten(2, (3, num_heads, -1)).unbind(2)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def split_heads_gradient(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gradients (B, T, H, head_size) of q, k, v → that of qkv (B, T, 3C)."""
    return torch.stack((rotate(dq, cos, -sin), rotate(dk, cos, -sin), dv), dim=2).flatten(2)


class Heads(Function):
    """qkv (B, T, 3C) → q, k, v (B, H, T, head_size), rotated; in memory T stays before H, so that what attention gives
    out can be read as (B, T, C) without a copy."""

    @staticmethod
    def forward(ctx, qkv: Tensor, num_heads: int, rope: Rope, pieces: "Pieces") -> tuple:
        ctx.rope = tuple(t[:, None] if t.ndim == 2 else t.transpose(1, 2) for t in rope)  # (…, T, 1, head_size)
        ctx.pieces = pieces
        return tuple(t.transpose(1, 2) for t in pieces.split_heads(qkv, num_heads, *ctx.rope))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple:
        return ctx.pieces.split_heads_gradient(*(g.transpose(1, 2) for g in gradients), *ctx.rope), None, None, None


class ShortAttention(Function):
    """qkv (B, T, 3C) → causal attention (B, T, C) by tid.kernels, and with `mass` what each token receives, (B, T).
    counts: see Decoder.layers."""

    @staticmethod
    def forward(
        ctx, qkv: Tensor, num_heads: int, rope: Rope, kernels: Any, mass: bool, counts: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(qkv)
        ctx.num_heads, ctx.kernels, ctx.counts = num_heads, kernels, counts
        ctx.rope = tuple(t.squeeze(1) if t.ndim == 4 else t for t in rope)
        y, received = kernels.attention(qkv, num_heads, *ctx.rope, mass, counts)
        if mass:
            ctx.mark_non_differentiable(received)
        return y, received

    @staticmethod
    def backward(ctx, dy: Tensor, _: Any) -> tuple:
        (qkv,) = ctx.saved_tensors
        found = ctx.kernels.attention_gradient(dy.contiguous(), qkv, ctx.num_heads, *ctx.rope, ctx.counts)
        return found, None, None, None, None, None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up from both side by side, (B, T, 2F) → (B, T, F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_gradient(gate_up: Tensor, dy: Tensor) -> Tensor:
    """Gradient of `swiglu`'s input, (B, T, 2F), from that of its output, (B, T, F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    g, u, d = gate.float(), up.float(), dy.float()
    s = torch.sigmoid(g)
    return torch.cat((d * u * s * (1 + g * (1 - s)), d * g * s), dim=-1).to(dy.dtype)


class SwiGLU(Function):
    """`swiglu`."""

    @staticmethod
    def forward(ctx, gate_up: Tensor, pieces: "Pieces") -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.pieces = pieces
        return pieces.swiglu(gate_up)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        (gate_up,) = ctx.saved_tensors
        return ctx.pieces.swiglu_gradient(gate_up, dy), None


def attention_with_mass(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention (B, H, T, head_size), and what each token receives from all queries, averaged over heads, (B, T)
    float32."""
    y, weights = explicit_attention(q, k, v)
    return y, weights.mean(dim=1).sum(dim=1)


def cross_entropy(logits: Tensor, targets: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Nats and log-sum-exp, (N,) float32 each, of logits (N, rows) whose columns from `vocabulary` on are padding."""
    padding = torch.arange(logits.shape[1], device=logits.device) >= vocabulary
    log_sum = log_sum_exp(logits.float().masked_fill(padding, PADDING))
    return log_sum - logits.gather(1, targets[:, None])[:, 0].float(), log_sum


def scaled_rows(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of x (N, C) times factor (N,)."""
    return (x.float() * factor[:, None]).to(dtype)


def cross_entropy_gradient_(logits: Tensor, targets: Tensor, log_sum: Tensor, dnats: Tensor, vocabulary: int) -> None:
    """Turn logits (N, rows) into their gradient (softmax − one-hot) · dnats (N,)."""
    column = torch.arange(logits.shape[1], device=logits.device)
    p = (logits.float() - log_sum[:, None]).exp() - (column == targets[:, None]).float()
    logits.copy_(torch.where(column < vocabulary, p * dnats[:, None], 0.0))


def by_hand_for(kernels: str, shape: GPT, context: int, precision: str, device: torch.device) -> tuple[str, ...]:
    """Which of BY_HAND a model of this shape takes from tid.kernels, if its config has `kernels`: none, one of them,
    all that can be had here, or auto: these on Hopper GPUs, where they were timed and faster. Raises ValueError for one
    that cannot be had."""
    if kernels == "none" or (kernels == "auto" and not is_hopper(device)):
        return ()
    from tid.kernels import wants

    wanted = BY_HAND if kernels in ("auto", "all") else (kernels,)
    lacking = {name: wants(name, shape, context, precision, device) for name in wanted}
    if lacking.get(kernels):
        raise ValueError(f"{kernels} by hand wants {lacking[kernels]}")
    return tuple(name for name in wanted if not lacking[name])


class Pieces:
    """The functions of this file, each fused by torch.compile when `compiled`; one compilation serves all layers. Those
    `by_hand`, of BY_HAND, are left to tid.kernels."""

    FUNCTIONS = (
        rows_of, normed, add_normed, normed_gradient, add_norm_weight_gradient_, split_heads, split_heads_gradient,
        swiglu, swiglu_gradient, attention_with_mass, attention_received, cross_entropy, cross_entropy_gradient_,
        scaled_rows, look_up, filled,
    )  # fmt: skip

    def __init__(self, compiled: bool = False, by_hand: tuple[str, ...] = ()) -> None:
        if compiled:  # shapes differ with the batch, the pass and, with drop_mode=skip, the tokens kept
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        self.compiled, self.by_hand = compiled, by_hand
        for function in self.FUNCTIONS:
            setattr(self, function.__name__, self.fuse(function))
        if by_hand:
            from tid import kernels  # needs Triton, which not every machine has

            self.kernels = kernels
        if "swiglu_gradient" in by_hand:
            self.swiglu_gradient = kernels.swiglu_gradient

    def fuse(self, function: Callable) -> Callable:
        return torch.compile(function, dynamic=False) if self.compiled else function

    @property
    def norm_groups(self) -> int:
        """In how many groups of rows a norm's weight gradient is summed."""
        return self.kernels.PROGRAMS if "norm_gradient" in self.by_hand else GROUPS

    def attends(self, qkv: Tensor, num_heads: int, visible: Tensor | None) -> bool:
        """Is this attention left to tid.kernels?"""
        return "attention" in self.by_hand and self.kernels.attends(qkv, num_heads, visible)

    def orders_rows(self, count: int) -> bool:
        """Are the gradients of the embedding's rows that so many tokens name summed by tid.kernels?"""
        return "row_gradient" in self.by_hand and count > GRAM_ROWS

    def add_rows_(self, table: Tensor, rows: Tensor, places: Any) -> None:
        """Add rows (N, C) to those of table (V, C) that `places` names: tokens (N,), or what tid.kernels has made of
        them."""
        (add_rows_ if isinstance(places, Tensor) else self.kernels.add_rows_)(table, rows, places)
