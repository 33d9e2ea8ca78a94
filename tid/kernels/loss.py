"""Cross-entropy and its gradient, in a kernel that writes over the logits; where a row of them fits into shared memory,
in the one of `tid.kernels.loss_on_chip`."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tid.kernels.self_attention import LOG2_E

try:
    from tid.kernels.loss_on_chip import cross_entropy_on_chip_, fits_on_chip
except ImportError:  # a Triton whose Gluon, which is experimental, lies elsewhere

    def fits_on_chip(logits: Tensor) -> bool:
        return False


GAIN = 256.0  # of the gradient: 16-bit floats with 5 bits of exponent lose probabilities below 6e-5


@triton.jit
def cross_entropy_kernel(
    logits, targets, nats, vocabulary, log_gain, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr
):
    """One program for each row: its log-sum-exp, then its gradient in place, which is not read again soon and so leaves
    the cache first. Logarithms are to base 2."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * COLUMNS
    target = tl.load(targets + row)
    chosen = tl.load(base + target).to(tl.float32)
    top, total = tl.full((BLOCK,), -1e30, tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(base + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32) * LOG2_E
        higher = tl.maximum(top, x)
        total = total * tl.exp2(top - higher) + tl.exp2(x - higher)
        top = higher
    highest = tl.max(top, axis=0)
    log_sum = highest + tl.log2(tl.sum(total * tl.exp2(top - highest), axis=0))
    tl.store(nats + row, log_sum / LOG2_E - chosen)
    if GRADIENT:
        below, gain = log_sum - log_gain, tl.exp2(log_gain)
        for start in range(0, COLUMNS, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(base + column, mask=column < vocabulary, other=float("-inf"), eviction_policy="evict_first")
            p = tl.exp2(x.to(tl.float32) * LOG2_E - below)
            p = tl.where(column == target, p - gain, p).to(base.dtype.element_ty)
            tl.store(base + column, p, mask=column < COLUMNS, eviction_policy="evict_first")


def cross_entropy_(logits: Tensor, targets: Tensor, vocabulary: int, gradient: bool) -> Tensor:
    """Nats (N,) float32 of contiguous logits (N, rows) whose columns from `vocabulary` on are padding. With `gradient`
    the logits become GAIN · (softmax − one-hot)."""
    if fits_on_chip(logits):
        return cross_entropy_on_chip_(logits, targets, vocabulary, math.log2(GAIN), gradient)
    nats = torch.empty(len(logits), device=logits.device)
    constants = {"COLUMNS": logits.shape[1], "BLOCK": 4096, "GRADIENT": gradient, "num_warps": 16}
    cross_entropy_kernel[(len(logits),)](logits, targets, nats, vocabulary, math.log2(GAIN), **constants)
    return nats
