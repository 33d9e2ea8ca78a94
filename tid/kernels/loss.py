"""Cross-entropy and its gradient, in one kernel that writes over the logits."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tid.kernels.self_attention import LOG2_E

GAIN = 256.0  # of the gradient: 16-bit floats with 5 bits of exponent lose probabilities below 6e-5
LONGEST_ROW = 57_344  # columns of 16 bits that a multiprocessor's registers hold beside all else
ONCE_ROWS = 4096  # from so many rows on it pays that a row fills a multiprocessor


@triton.jit
def write_gradient(base, x, column, target, below, gain, COLUMNS: tl.constexpr):
    """gain · (softmax − one-hot) in place of the logits x; below = log-sum-exp − ln gain, to base 2."""
    p = tl.exp2(x.to(tl.float32) * LOG2_E - below)
    p = tl.where(column == target, p - gain, p)
    tl.store(base + column, p.to(base.dtype.element_ty), mask=column < COLUMNS)


@triton.jit
def cross_entropy_kernel(
    logits, targets, nats, vocabulary, log_gain, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr
):
    """One program for each row: its log-sum-exp, then its gradient in place. Logarithms are to base 2."""
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
            x = tl.load(base + column, mask=column < vocabulary, other=float("-inf"))
            write_gradient(base, x, column, target, below, gain, COLUMNS)


def cross_entropy_(logits: Tensor, targets: Tensor, vocabulary: int, gradient: bool) -> Tensor:
    """Nats (N,) float32 of logits (N, rows) whose columns from `vocabulary` on are padding. With `gradient` the logits
    become GAIN · (softmax − one-hot)."""
    if len(logits) >= ONCE_ROWS and logits.element_size() == 2 and logits.shape[1] <= LONGEST_ROW:
        return cross_entropy_once_(logits, targets, vocabulary, gradient)
    nats = torch.empty(len(logits), device=logits.device)
    constants = {"COLUMNS": logits.shape[1], "BLOCK": 4096, "GRADIENT": gradient, "num_warps": 16}
    cross_entropy_kernel[(len(logits),)](logits, targets, nats, vocabulary, math.log2(GAIN), **constants)
    return nats


@triton.jit
def stretch(base, vocabulary, START: tl.constexpr, SIZE: tl.constexpr):
    """Columns of a row as they are stored, and their numbers; −inf in place of padding."""
    column = START + tl.arange(0, SIZE)
    return tl.load(base + column, mask=column < vocabulary, other=float("-inf")), column


@triton.jit
def weight(x, top):
    return tl.sum(tl.exp2(x.to(tl.float32) * LOG2_E - top), axis=0)


@triton.jit
def cross_entropy_once_kernel(
    logits, targets, nats, vocabulary, log_gain,
    COLUMNS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """As `cross_entropy_kernel`, but the row stays in registers, in its 16 bits: it is read once. Blocks have sizes
    that are powers of 2, so it is cut into three, and only the last is longer than what it holds."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * COLUMNS
    target = tl.load(targets + row)
    chosen = tl.load(base + target).to(tl.float32)
    a, a_column = stretch(base, vocabulary, 0, FIRST)
    b, b_column = stretch(base, vocabulary, FIRST, SECOND)
    c, c_column = stretch(base, vocabulary, FIRST + SECOND, THIRD)
    top = tl.maximum(tl.maximum(tl.max(a, axis=0), tl.max(b, axis=0)), tl.max(c, axis=0)).to(tl.float32) * LOG2_E
    log_sum = top + tl.log2(weight(a, top) + weight(b, top) + weight(c, top))
    tl.store(nats + row, log_sum / LOG2_E - chosen)
    if GRADIENT:
        below, gain = log_sum - log_gain, tl.exp2(log_gain)
        write_gradient(base, a, a_column, target, below, gain, COLUMNS)
        write_gradient(base, b, b_column, target, below, gain, COLUMNS)
        write_gradient(base, c, c_column, target, below, gain, COLUMNS)


def stretches(columns: int) -> dict[str, int]:
    """Three powers of 2 that cover a row: the largest in it, the largest in the rest, and what holds what is left."""
    first = 2 ** (columns.bit_length() - 1)
    second = 2 ** max(0, (columns - first).bit_length() - 1)
    return {"FIRST": first, "SECOND": second, "THIRD": triton.next_power_of_2(max(1, columns - first - second))}


def cross_entropy_once_(logits: Tensor, targets: Tensor, vocabulary: int, gradient: bool) -> Tensor:
    """`cross_entropy_` for rows of up to LONGEST_ROW numbers of 16 bits."""
    columns, nats = logits.shape[1], torch.empty(len(logits), device=logits.device)
    constants = {"COLUMNS": columns, **stretches(columns), "GRADIENT": gradient, "num_warps": once_warps(columns)}
    cross_entropy_once_kernel[(len(logits),)](logits, targets, nats, vocabulary, math.log2(GAIN), **constants)
    return nats


def once_warps(columns: int) -> int:
    """So many that no thread holds more than 64 numbers, and of long rows none less than 32."""
    return max(1, min(32, triton.next_power_of_2(columns) // 2048))
