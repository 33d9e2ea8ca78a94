"""Kernels that torch.compile does not find, by hand in Triton. Training does not use them; `tid.bench kernels=…` races
them against what `tid.pieces` compiles. They are imported on a GPU only.

Attention, forward and backward, on sequences of up to LONGEST tokens: all scores of a head fit one multiprocessor, so a
kernel reads the product qkv, rotates, attends and writes what the next product reads. Nothing but qkv is kept between
the two, and nothing is summed by several programs: results are the same on every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST, HEAD_SIZES = 128, (32, 64)
GAIN = 256.0  # of a cross-entropy gradient: 16-bit floats with 5 bits of exponent lose probabilities below 6e-5
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_turned(base, cos, sin, rows, columns, stride, length, SIZE: tl.constexpr):
    """Both halves, float32, of the vectors at `rows`, rotated to their positions (`tid.model.rotate`), and the cosines
    and sines of it; columns are 0 … SIZE / 2 − 1."""
    inside = (rows < length)[:, None]
    at = base + rows[:, None] * stride + columns[None, :]
    left = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(at + SIZE // 2, mask=inside, other=0.0).to(tl.float32)
    angle = rows[:, None] * SIZE + columns[None, :]
    c, s = tl.load(cos + angle, mask=inside, other=0.0), tl.load(sin + angle, mask=inside, other=0.0)
    return left * c - right * s, right * c + left * s, c, s


@triton.jit
def store_turned_back(base, left, right, cos, sin, rows, columns, stride, length, SIZE: tl.constexpr):
    """Rotate gradients of rotated vectors back, and store them."""
    kind = base.dtype.element_ty
    inside = (rows < length)[:, None]
    at = base + rows[:, None] * stride + columns[None, :]
    tl.store(at, (left * cos + right * sin).to(kind), mask=inside)
    tl.store(at + SIZE // 2, (right * cos - left * sin).to(kind), mask=inside)


@triton.jit
def causal_weights(ql, qr, kl, kr, queries, keys, scale):
    """Attention weights (queries, keys), float32."""
    scores = tl.dot(ql, tl.trans(kl)) + tl.dot(qr, tl.trans(kr))
    scores = tl.where(queries[:, None] >= keys[None, :], scores * (scale * LOG2_E), float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def attention_kernel(
    qkv, cos, sin, y, received, length, rope_stride, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """One program for each head of each sequence; QUERIES at a time."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    WIDTH: tl.constexpr = HEADS * SIZE
    kind = y.dtype.element_ty
    keys, half, whole = tl.arange(0, BLOCK), tl.arange(0, SIZE // 2), tl.arange(0, SIZE)
    q, out = qkv + row * length * (3 * WIDTH) + head * SIZE, y + row * length * WIDTH + head * SIZE
    cos, sin = cos + row * rope_stride, sin + row * rope_stride
    kl, kr, kc, ks = load_turned(q + WIDTH, cos, sin, keys, half, 3 * WIDTH, length, SIZE)
    kl, kr = kl.to(kind), kr.to(kind)
    at = q + 2 * WIDTH + keys[:, None] * (3 * WIDTH) + whole[None, :]
    v = tl.load(at, mask=(keys < length)[:, None], other=0.0)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, BLOCK, QUERIES):
        queries = start + tl.arange(0, QUERIES)
        inside = (queries < length)[:, None]
        ql, qr, qc, qs = load_turned(q, cos, sin, queries, half, 3 * WIDTH, length, SIZE)
        weights = causal_weights(ql.to(kind), qr.to(kind), kl, kr, queries, keys, scale)
        tl.store(out + queries[:, None] * WIDTH + whole[None, :], tl.dot(weights.to(kind), v).to(kind), mask=inside)
        if MASS:
            mass += tl.sum(tl.where(inside, weights, 0.0), axis=0)
    if MASS:
        tl.store(received + (row * HEADS + head) * length + keys, mass, mask=keys < length)


@triton.jit
def attention_gradient_kernel(
    qkv, cos, sin, dy, dqkv, length, rope_stride, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """As `attention_kernel`, backwards, with the weights made again."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    WIDTH: tl.constexpr = HEADS * SIZE
    kind = qkv.dtype.element_ty
    keys, half, whole = tl.arange(0, BLOCK), tl.arange(0, SIZE // 2), tl.arange(0, SIZE)
    first = row * length * (3 * WIDTH) + head * SIZE
    q, dq, dout = qkv + first, dqkv + first, dy + row * length * WIDTH + head * SIZE
    cos, sin = cos + row * rope_stride, sin + row * rope_stride
    kl, kr, kc, ks = load_turned(q + WIDTH, cos, sin, keys, half, 3 * WIDTH, length, SIZE)
    kl, kr = kl.to(kind), kr.to(kind)
    values = 2 * WIDTH + keys[:, None] * (3 * WIDTH) + whole[None, :]
    v = tl.load(q + values, mask=(keys < length)[:, None], other=0.0)
    dkl, dkr = tl.zeros((BLOCK, SIZE // 2), tl.float32), tl.zeros((BLOCK, SIZE // 2), tl.float32)
    dv = tl.zeros((BLOCK, SIZE), tl.float32)
    for start in range(0, BLOCK, QUERIES):
        queries = start + tl.arange(0, QUERIES)
        ql, qr, qc, qs = load_turned(q, cos, sin, queries, half, 3 * WIDTH, length, SIZE)
        ql, qr = ql.to(kind), qr.to(kind)
        at = dout + queries[:, None] * WIDTH + whole[None, :]
        d = tl.load(at, mask=(queries < length)[:, None], other=0.0)
        weights = causal_weights(ql, qr, kl, kr, queries, keys, scale)
        dweights = tl.dot(d, tl.trans(v))
        ds = weights * (dweights - tl.sum(weights * dweights, axis=1)[:, None]) * scale
        ds = ds.to(kind)
        dv += tl.dot(tl.trans(weights.to(kind)), d)
        dkl += tl.dot(tl.trans(ds), ql)
        dkr += tl.dot(tl.trans(ds), qr)
        store_turned_back(dq, tl.dot(ds, kl), tl.dot(ds, kr), qc, qs, queries, half, 3 * WIDTH, length, SIZE)
    store_turned_back(dq + WIDTH, dkl, dkr, kc, ks, keys, half, 3 * WIDTH, length, SIZE)
    tl.store(dq + values, dv.to(kind), mask=(keys < length)[:, None])


def attends(qkv: Tensor, num_heads: int, visible: Tensor | None) -> bool:
    """Can `attention` take this product (B, T, 3C), in place of causal attention or one with the mask `visible`?"""
    _, length, width = qkv.shape
    low = qkv.element_size() == 2 or not qkv.is_cuda  # as float32 it does not fit
    return visible is None and low and length <= LONGEST and width // 3 // num_heads in HEAD_SIZES


def attention_launch(qkv: Tensor, num_heads: int, cos: Tensor) -> tuple[tuple, tuple, dict]:
    """Grid, numbers and constants of both kernels for qkv (B, T, 3C) and cosines (T, head_size) or (B, T, head_size).

    A Hopper GPU does all queries at once without spilling a register, earlier ones sixteen at a time (ptxas -v)."""
    batch, length, width = qkv.shape
    size = width // 3 // num_heads
    block = max(16, triton.next_power_of_2(length))
    at_once = block if not qkv.is_cuda or torch.cuda.get_device_capability(qkv.device) >= (9, 0) else 16
    numbers = (length, cos.stride(0) if cos.ndim == 3 else 0, size**-0.5)
    constants = {"HEADS": num_heads, "SIZE": size, "BLOCK": block, "QUERIES": at_once, "num_warps": 8, "num_stages": 1}
    return (num_heads, batch), numbers, constants


def attention(qkv: Tensor, num_heads: int, cos: Tensor, sin: Tensor, mass: bool) -> tuple[Tensor, Tensor | None]:
    """Causal attention (B, T, C) of qkv (B, T, 3C), rotated by cos and sin, float32, (T, head_size) or (B, T,
    head_size); with `mass` also what each token receives from all queries, averaged over heads, (B, T) float32."""
    grid, numbers, constants = attention_launch(qkv, num_heads, cos)
    y = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    received = torch.empty(len(y), num_heads, y.shape[1], device=y.device) if mass else None
    attention_kernel[grid](qkv, cos, sin, y, received, *numbers, MASS=mass, **constants)
    return y, received.mean(dim=1) if mass else None


def attention_gradient(dy: Tensor, qkv: Tensor, num_heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Gradient (B, T, 3C) of `attention`'s qkv from that of its output, (B, T, C)."""
    grid, numbers, constants = attention_launch(qkv, num_heads, cos)
    dqkv = torch.empty_like(qkv)
    attention_gradient_kernel[grid](qkv, cos, sin, dy, dqkv, *numbers, **constants)
    return dqkv


@triton.jit
def swiglu_gradient_kernel(gate_up, dy, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """One program for BLOCK columns of a row: both halves of the gradient read the same three numbers."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kind = out.dtype.element_ty
    inside, at = column < SIZE, row * (2 * SIZE) + column
    g = tl.load(gate_up + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gate_up + at + SIZE, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(dy + row * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(out + at, (d * u * s * (1 + g * (1 - s))).to(kind), mask=inside)
    tl.store(out + at + SIZE, (d * g * s).to(kind), mask=inside)


def swiglu_gradient(gate_up: Tensor, dy: Tensor) -> Tensor:
    """`tid.pieces.swiglu_gradient`."""
    out, size, block = torch.empty_like(gate_up), dy.shape[-1], 1024
    swiglu_gradient_kernel[dy.numel() // size, triton.cdiv(size, block)](gate_up, dy, out, size, block)
    return out


@triton.jit
def cross_entropy_kernel(
    logits, targets, nats, vocabulary, gain, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr
):
    """One program for each row: its log-sum-exp, then its gradient in place: the row is still in the cache."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * COLUMNS
    top, total = tl.full((BLOCK,), -1e30, tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(base + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    highest = tl.max(top, axis=0)
    log_sum = highest + tl.log(tl.sum(total * tl.exp(top - highest), axis=0))
    target = tl.load(targets + row)
    tl.store(nats + row, log_sum - tl.load(base + target).to(tl.float32))
    if GRADIENT:
        for start in range(0, COLUMNS, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(base + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
            p = tl.exp(x - log_sum) - tl.where(column == target, 1.0, 0.0)
            tl.store(base + column, (p * gain).to(logits.dtype.element_ty), mask=column < COLUMNS)


def cross_entropy_(logits: Tensor, targets: Tensor, vocabulary: int, gradient: bool) -> Tensor:
    """Nats (N,) float32 of logits (N, rows) whose columns from `vocabulary` on are padding. With `gradient` the logits
    become GAIN · (softmax − one-hot)."""
    nats = torch.empty(len(logits), device=logits.device)
    constants = {"COLUMNS": logits.shape[1], "BLOCK": 4096, "GRADIENT": gradient, "num_warps": 8}
    cross_entropy_kernel[(len(logits),)](logits, targets, nats, vocabulary, GAIN, **constants)
    return nats
