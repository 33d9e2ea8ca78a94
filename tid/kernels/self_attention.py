"""Attention, forward and backward, on sequences of up to LONGEST tokens.

All scores of a head fit one multiprocessor, so a kernel reads the product qkv, rotates, attends and writes what the
next product reads. Nothing but qkv is kept between the two, and nothing is summed by several programs: results are the
same on every run.

A block is a power of two. Sequences that are hardly longer than one, and of which some end in filling instead of
tokens, take two launches where there are more heads than multiprocessors: one with the smaller block for those whose
tokens fit it, and one for the others; programs of the other kind end at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tid.device import is_hopper

LONGEST, HEAD_SIZES = 128, (32, 64)
HARDLY = 8  # tokens more than a block
FORWARD, BACKWARD = (3, 0), (3, 2)  # what was quickest on an H200: see `launches`
INTERPRETED = 4  # multiprocessors, where there is no GPU and Triton interprets
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_angles(cos, sin, rows, columns, length, SIZE: tl.constexpr):
    at, inside = rows[:, None] * SIZE + columns[None, :], (rows < length)[:, None]
    return tl.load(cos + at, mask=inside, other=0.0), tl.load(sin + at, mask=inside, other=0.0)


@triton.jit
def load_halves(base, rows, columns, stride, length, SIZE: tl.constexpr):
    """Both halves of the vectors at `rows`; columns are 0 … SIZE / 2 − 1."""
    at, inside = base + rows[:, None] * stride + columns[None, :], (rows < length)[:, None]
    return tl.load(at, mask=inside, other=0.0), tl.load(at + SIZE // 2, mask=inside, other=0.0)


@triton.jit
def store_halves(base, left, right, rows, columns, stride, length, SIZE: tl.constexpr):
    at, inside = base + rows[:, None] * stride + columns[None, :], (rows < length)[:, None]
    tl.store(at, left.to(base.dtype.element_ty), mask=inside)
    tl.store(at + SIZE // 2, right.to(base.dtype.element_ty), mask=inside)


@triton.jit
def turned(left, right, cos, sin):
    """Halves of vectors rotated (`tid.model.rotate`), float32; by −sin they are turned back."""
    left, right = left.to(tl.float32), right.to(tl.float32)
    return left * cos - right * sin, right * cos + left * sin


@triton.jit
def causal_weights(ql, qr, kl, kr, rows, scale):
    """Attention weights (queries, keys), float32."""
    scores = tl.dot(ql, tl.trans(kl)) + tl.dot(qr, tl.trans(kr))
    scores = tl.where(rows[:, None] >= rows[None, :], scores * (scale * LOG2_E), float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def attend(
    item, qkv, cos, sin, y, received, length, rope_stride, scale, c, s,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, SHARED: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """One head of one sequence."""
    WIDTH: tl.constexpr = HEADS * SIZE
    STRIDE: tl.constexpr = 3 * WIDTH
    kind = y.dtype.element_ty
    rows, half, whole = tl.arange(0, BLOCK), tl.arange(0, SIZE // 2), tl.arange(0, SIZE)
    inside = (rows < length)[:, None]
    head, row = item % HEADS, tl.cast(item // HEADS, tl.int64)
    q, out = qkv + row * length * STRIDE + head * SIZE, y + row * length * WIDTH + head * SIZE
    ql, qr = load_halves(q, rows, half, STRIDE, length, SIZE)
    kl, kr = load_halves(q + WIDTH, rows, half, STRIDE, length, SIZE)
    v = tl.load(q + 2 * WIDTH + rows[:, None] * STRIDE + whole[None, :], mask=inside, other=0.0)
    if not SHARED:
        c, s = load_angles(cos + row * rope_stride, sin + row * rope_stride, rows, half, length, SIZE)
    ql, qr = turned(ql, qr, c, s)
    kl, kr = turned(kl, kr, c, s)
    weights = causal_weights(ql.to(kind), qr.to(kind), kl.to(kind), kr.to(kind), rows, scale)
    tl.store(out + rows[:, None] * WIDTH + whole[None, :], tl.dot(weights.to(kind), v).to(kind), mask=inside)
    if MASS:
        mass = tl.sum(tl.where(inside, weights, 0.0), axis=0)
        tl.store(received + (row * HEADS + head) * length + rows, mass, mask=rows < length)


@triton.jit
def attend_back(
    item, qkv, cos, sin, dy, dqkv, length, rope_stride, scale, c, s,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The gradient of `attend`, with the weights made again."""
    WIDTH: tl.constexpr = HEADS * SIZE
    STRIDE: tl.constexpr = 3 * WIDTH
    kind = qkv.dtype.element_ty
    rows, half, whole = tl.arange(0, BLOCK), tl.arange(0, SIZE // 2), tl.arange(0, SIZE)
    inside, values = (rows < length)[:, None], 2 * WIDTH + rows[:, None] * STRIDE + whole[None, :]
    head, row = item % HEADS, tl.cast(item // HEADS, tl.int64)
    first = row * length * STRIDE + head * SIZE
    q, dq, dout = qkv + first, dqkv + first, dy + row * length * WIDTH + head * SIZE
    ql, qr = load_halves(q, rows, half, STRIDE, length, SIZE)
    kl, kr = load_halves(q + WIDTH, rows, half, STRIDE, length, SIZE)
    v = tl.load(q + values, mask=inside, other=0.0)
    d = tl.load(dout + rows[:, None] * WIDTH + whole[None, :], mask=inside, other=0.0)
    if not SHARED:
        c, s = load_angles(cos + row * rope_stride, sin + row * rope_stride, rows, half, length, SIZE)
    ql, qr = turned(ql, qr, c, s)
    kl, kr = turned(kl, kr, c, s)
    ql, qr, kl, kr = ql.to(kind), qr.to(kind), kl.to(kind), kr.to(kind)
    weights = causal_weights(ql, qr, kl, kr, rows, scale)
    dweights = tl.dot(d, tl.trans(v))
    ds = (weights * (dweights - tl.sum(weights * dweights, axis=1)[:, None]) * scale).to(kind)
    tl.store(dq + values, tl.dot(tl.trans(weights.to(kind)), d).to(kind), mask=inside)
    left, right = turned(tl.dot(ds, kl), tl.dot(ds, kr), c, -s)
    store_halves(dq, left, right, rows, half, STRIDE, length, SIZE)
    ds = tl.trans(ds)
    left, right = turned(tl.dot(ds, ql), tl.dot(ds, qr), c, -s)
    store_halves(dq + WIDTH, left, right, rows, half, STRIDE, length, SIZE)


@triton.jit
def clear_filling(base, stride, length, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros for the vectors after the block."""
    rows, columns = BLOCK + tl.arange(0, BLOCK), tl.arange(0, SIZE)
    at = base + rows[:, None] * stride + columns[None, :]
    tl.store(at, tl.zeros((BLOCK, SIZE), base.dtype.element_ty), mask=(rows < length)[:, None])


@triton.jit
def attention_kernel(
    qkv, cos, sin, y, received, counts, items, length, rope_stride, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, SHARED: tl.constexpr, MASS: tl.constexpr,
    AHEAD: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """`items` are the heads of all sequences: one for each program, or with AHEAD several, of which AHEAD − 1 are read
    before they are needed. SHARED: all sequences have the same positions. counts: None, or the tokens of each sequence:
    those that have LEAST to BLOCK are done."""
    rows, half = tl.arange(0, BLOCK), tl.arange(0, SIZE // 2)
    c, s = load_angles(cos, sin, rows, half, length, SIZE) if SHARED else (0.0, 0.0)
    if counts is not None:
        item = tl.program_id(0)
        row, count = tl.cast(item // HEADS, tl.int64), tl.load(counts + item // HEADS)
        if (count >= LEAST) & (count <= BLOCK):
            attend(item, qkv, cos, sin, y, received, length, rope_stride, scale, c, s, HEADS, SIZE, BLOCK, SHARED, MASS)
            clear_filling(y + row * length * HEADS * SIZE + item % HEADS * SIZE, HEADS * SIZE, length, SIZE, BLOCK)
    elif AHEAD == 0:
        item = tl.program_id(0)
        attend(item, qkv, cos, sin, y, received, length, rope_stride, scale, c, s, HEADS, SIZE, BLOCK, SHARED, MASS)
    else:
        for item in tl.range(tl.program_id(0), items, tl.num_programs(0), num_stages=AHEAD):
            attend(item, qkv, cos, sin, y, received, length, rope_stride, scale, c, s, HEADS, SIZE, BLOCK, SHARED, MASS)


@triton.jit
def attention_gradient_kernel(
    qkv, cos, sin, dy, dqkv, counts, items, length, rope_stride, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, SHARED: tl.constexpr, AHEAD: tl.constexpr,
    LEAST: tl.constexpr,
):  # fmt: skip
    """As `attention_kernel`."""
    rows, half = tl.arange(0, BLOCK), tl.arange(0, SIZE // 2)
    c, s = load_angles(cos, sin, rows, half, length, SIZE) if SHARED else (0.0, 0.0)
    if counts is not None:
        item = tl.program_id(0)
        row, count = tl.cast(item // HEADS, tl.int64), tl.load(counts + item // HEADS)
        if (count >= LEAST) & (count <= BLOCK):
            attend_back(item, qkv, cos, sin, dy, dqkv, length, rope_stride, scale, c, s, HEADS, SIZE, BLOCK, SHARED)
            for part in tl.static_range(3):
                first = dqkv + (row * length * 3 + part) * HEADS * SIZE + item % HEADS * SIZE
                clear_filling(first, 3 * HEADS * SIZE, length, SIZE, BLOCK)
    elif AHEAD == 0:
        item = tl.program_id(0)
        attend_back(item, qkv, cos, sin, dy, dqkv, length, rope_stride, scale, c, s, HEADS, SIZE, BLOCK, SHARED)
    else:
        for item in tl.range(tl.program_id(0), items, tl.num_programs(0), num_stages=AHEAD):
            attend_back(item, qkv, cos, sin, dy, dqkv, length, rope_stride, scale, c, s, HEADS, SIZE, BLOCK, SHARED)


def attends(qkv: Tensor, num_heads: int, visible: Tensor | None) -> bool:
    """Can `attention` take this product (B, T, 3C), in place of causal attention or one with the mask `visible`? On a
    GPU only if it is a Hopper: others lack registers for all scores of a head, or the memory to read ahead."""
    _, length, width = qkv.shape
    room = not qkv.is_cuda or (qkv.element_size() == 2 and is_hopper(qkv.device))
    return visible is None and room and length <= LONGEST and width // 3 // num_heads in HEAD_SIZES


def launches(
    qkv: Tensor, num_heads: int, cos: Tensor, ahead: tuple[int, int], counts: Tensor | None
) -> list[tuple[tuple, tuple, dict]]:
    """Grid, arguments from `counts` on and constants of each launch of a kernel for qkv (B, T, 3C) and cosines
    (T, head_size) or (B, T, head_size). ahead: AHEAD of a single launch where there are more heads than
    multiprocessors, if positions are shared, and if not."""
    batch, length, width = qkv.shape
    items, size, shared = batch * num_heads, width // 3 // num_heads, cos.ndim == 2
    block = max(16, triton.next_power_of_2(length))
    programs = torch.cuda.get_device_properties(qkv.device).multi_processor_count if qkv.is_cuda else INTERPRETED
    numbers = (items, length, 0 if shared else cos.stride(0), size**-0.5)
    constants = {"HEADS": num_heads, "SIZE": size, "SHARED": shared}

    def of(block: int, **more: int) -> dict:
        return constants | {"BLOCK": block, "num_warps": 8 if block > 64 else 4, "AHEAD": 0, "LEAST": 0} | more

    many = items > programs and block > 64
    if many and counts is not None and length <= block // 2 + HARDLY:
        return [((items,), (counts, *numbers), of(block // 2)),
                ((items,), (counts, *numbers), of(block, LEAST=block // 2 + 1))]  # fmt: skip
    read_ahead = (ahead[0] if shared else ahead[1]) if many else 0
    return [((programs if read_ahead else items,), (None, *numbers), of(block, AHEAD=read_ahead))]


def attention(
    qkv: Tensor, num_heads: int, cos: Tensor, sin: Tensor, mass: bool, counts: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Causal attention (B, T, C) of qkv (B, T, 3C), rotated by cos and sin, float32, (T, head_size) or (B, T,
    head_size); with `mass` also what each token receives from all queries, averaged over heads, (B, T) float32.
    counts (B,): tokens of each sequence, if the rest of it is filling, of which the outcome may be anything finite;
    without `mass`."""
    assert counts is None or not mass
    y = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    received = torch.empty(len(y), num_heads, y.shape[1], device=y.device) if mass else None
    for grid, arguments, constants in launches(qkv, num_heads, cos, FORWARD, counts):
        attention_kernel[grid](qkv, cos, sin, y, received, *arguments, MASS=mass, **constants)
    return y, received.mean(dim=1) if mass else None


def attention_gradient(
    dy: Tensor, qkv: Tensor, num_heads: int, cos: Tensor, sin: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Gradient (B, T, 3C) of `attention`'s qkv from that of its output, (B, T, C), which is 0 where filling is."""
    dqkv = torch.empty_like(qkv)
    for grid, arguments, constants in launches(qkv, num_heads, cos, BACKWARD, counts):
        attention_gradient_kernel[grid](qkv, cos, sin, dy, dqkv, *arguments, **constants)
    return dqkv
