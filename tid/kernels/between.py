"""What lies between two products: the gradients of SwiGLU and of a norm."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tid.model import SMALLEST_WEIGHT

PROGRAMS = 256  # of a norm's gradient; each sums its rows' part of the weight's


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
def norm_gradient_kernel(
    dh, dx, h, inverse, weight, out, low, sums, rows, each,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, AHEAD: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """One program for `each` rows, AT_ONCE at a time, of which so many are read ahead; dx, low and sums may be None."""
    program, column = tl.program_id(0), tl.arange(0, BLOCK)
    there = column < SIZE
    w = tl.load(weight + column, mask=there, other=0.0)
    unweighted = tl.where(tl.abs(w) < SMALLEST, 0.0, 1 / w)
    total = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    for start in tl.range(0, each, AT_ONCE, num_stages=AHEAD):
        own = start + tl.arange(0, AT_ONCE)
        row = program * each + own  # an element's number fits 32 bits up to 2.7 million rows of 768
        mine = (own < each) & (row < rows)
        inside = mine[:, None] & there[None, :]
        at = row[:, None] * SIZE + column[None, :]
        d = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(inverse + row, mask=mine, other=0.0)[:, None]
        hat, g = v * unweighted[None, :], d * w[None, :]
        found = r * (g - hat * (tl.sum(g * hat, axis=1) / SIZE)[:, None])
        if dx is not None:
            found += tl.load(dx + at, mask=inside, other=0.0)
        tl.store(out + at, found, mask=inside)
        if low is not None:
            tl.store(low + at, found.to(low.dtype.element_ty), mask=inside)
        total += d * hat
    if sums is not None:
        at = sums + program * SIZE + column
        tl.store(at, tl.load(at, mask=there, other=0.0) + tl.sum(total, axis=0), mask=there)


def norm_gradient(
    dh: Tensor, dx: Tensor | None, h: Tensor, inverse: Tensor, weight: Tensor, dtype: torch.dtype | None,
    sums: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`tid.pieces.normed_gradient`; the gradient of the norm's weight is added to `sums` (programs, C) float32, by each
    program that of its rows, unless that is None."""
    size, rows, programs = h.shape[-1], inverse.numel(), PROGRAMS if sums is None else len(sums)
    out = torch.empty(h.shape, device=h.device)
    low = None if dtype is None else torch.empty(h.shape, device=h.device, dtype=dtype)
    each = triton.cdiv(rows, programs)
    ahead = 3 if each >= 16 else 1
    dh, h, dx = dh.contiguous(), h.contiguous(), None if dx is None else dx.contiguous()
    norm_gradient_kernel[(programs,)](
        dh, dx, h, inverse, weight, out, low, sums, rows, each,
        size, triton.next_power_of_2(size), 2, ahead, SMALLEST_WEIGHT, num_warps=4,
    )  # fmt: skip
    return out, low
