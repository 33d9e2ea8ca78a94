"""Matrix products whose weight gradients go straight to where the optimizer reads them.

Autograd makes a weight's gradient, waits, and adds it to `.grad`. Here a product hands its two factors to a sink (see
tid.gradients), which multiplies them into the flat gradient on a second stream, under the rest of the backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

GRAM_ROWS = 4096  # up to so many tokens, equal ones are summed by a product with their (N, N) equality matrix


class Product(Function):
    """x (..., inputs), weight (outputs, inputs) → x @ weightᵀ; the weight's gradient goes to `sink(dy, x)`, if any."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, sink: Callable | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.sink = weight, sink
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        if ctx.sink:
            ctx.sink(dy.flatten(0, -2), x.flatten(0, -2))
        return dy @ ctx.weight, None, None


class Rows(Function):
    """Rows of a table (V, C) for tokens (B, T), float32; the gradient (B · T, C) goes to `sink(gradient, places)`, with
    what the sink has made of the tokens beforehand."""

    @staticmethod
    def forward(ctx, tokens: Tensor, table: Tensor, pieces: Any, sink: Any) -> Tensor:
        ctx.places, ctx.sink = sink.expect(tokens.flatten()), sink
        return pieces.rows_of(table, tokens)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        ctx.sink(dy.flatten(0, 1), ctx.places)
        return None, None, None, None


class Nats(Function):
    """Cross-entropy (N,) float32 in nats of targets (N,) from x (N, C) and the output matrix `table` (rows, C), of
    which only the first `vocabulary` rows are tokens.

    The logits are made once, and become their own gradient in place: at 16,384 predictions they are 1.6 GB in 16 bits.
    Padding is masked, not cut off: rows of the padded length can be read in whole vectors, which made the loss three
    times as fast (H200).
    """

    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, targets: Tensor, vocabulary: int, pieces, sink, watch) -> Tensor:
        logits = F.linear(x, table)
        if watch:
            watch(logits, vocabulary)
        nats, log_sum = pieces.cross_entropy(logits, targets, vocabulary)
        ctx.save_for_backward(x, targets, log_sum)
        ctx.logits, ctx.table, ctx.vocabulary, ctx.pieces, ctx.sink = logits, table, vocabulary, pieces, sink
        return nats

    @staticmethod
    def backward(ctx, dnats: Tensor) -> tuple:
        x, targets, log_sum = ctx.saved_tensors
        dlogits, ctx.logits = ctx.logits, None
        ctx.pieces.cross_entropy_gradient_(dlogits, targets, log_sum, dnats, ctx.vocabulary)
        if ctx.sink:
            ctx.sink(dlogits, x)
        return dlogits @ ctx.table, None, None, None, None, None, None


class NatsByHand(Function):
    """`Nats` by tid.kernels: the same kernel makes the gradient in the forward pass, up to the factor of its row, which
    is left to what it is multiplied with."""

    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, targets: Tensor, vocabulary: int, pieces, sink, watch) -> Tensor:
        logits = F.linear(x, table)
        if watch:
            watch(logits, vocabulary)
        ctx.save_for_backward(x)
        ctx.logits, ctx.table, ctx.pieces, ctx.sink = logits, table, pieces, sink
        return pieces.kernels.cross_entropy_(logits, targets, vocabulary, gradient=ctx.needs_input_grad[0])

    @staticmethod
    def backward(ctx, dnats: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        dlogits, ctx.logits = ctx.logits, None
        factor, scaled_rows = dnats / ctx.pieces.kernels.GAIN, ctx.pieces.scaled_rows
        if ctx.sink:
            ctx.sink(dlogits, scaled_rows(x, factor, x.dtype))
        return scaled_rows(dlogits @ ctx.table, factor, x.dtype), None, None, None, None, None, None


@torch.no_grad()
def add_rows_(table: Tensor, rows: Tensor, tokens: Tensor) -> None:
    """Add rows (N, C) to those of `table` (V, C) that tokens (N,) name, the same on every run.

    index_add_ is atomic on a GPU and so rounds differently each time. Few rows are summed by a product: row i of the
    equality matrix of the tokens picks all rows of token i, and equal tokens then write equal sums. In float32 that
    product would round to TF32.
    """
    if len(tokens) > GRAM_ROWS or table.dtype == torch.float32:
        table += torch.ops.aten.embedding_dense_backward(rows.to(table.dtype), tokens, len(table), -1, False)
        return
    same = (tokens[:, None] == tokens).to(table.dtype)
    sums = table.index_select(0, tokens) + same @ rows.to(table.dtype)
    table.index_copy_(0, tokens, sums)
