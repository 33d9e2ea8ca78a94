"""The gradient of an embedding's rows, summed over the places that name them, the same on every run."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, AT_ONCE = 256, 16  # of a program, and the rows that it reads at a time


class Places(NamedTuple):
    """Tokens (N,) in order, and for each place in it: which it was before, and where its token ends."""

    tokens: Tensor
    order: Tensor
    ends: Tensor


def in_order(tokens: Tensor) -> Places:
    """What `add_rows_` has to know of tokens (N,) int64."""
    tokens, order = tokens.sort(stable=True)
    return Places(tokens, order, torch.searchsorted(tokens, tokens, right=True))


@triton.jit
def add_rows_kernel(
    table, added, tokens, order, ends,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One program for each place and BLOCK columns; those at which a token begins sum all its rows."""
    place, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token, there = tl.load(tokens + place), column < SIZE
    if token != tl.load(tokens + place - 1, mask=place > 0, other=-1):
        end = tl.load(ends + place).to(tl.int32)
        total = tl.zeros((AT_ONCE, BLOCK), tl.float32)
        for start in tl.range(place, end, AT_ONCE):
            own = start + tl.arange(0, AT_ONCE)
            row = tl.load(order + own, mask=own < end, other=0)
            at, inside = row[:, None] * SIZE + column[None, :], (own < end)[:, None] & there[None, :]
            total += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
        at = table + token * SIZE + column
        sums = tl.load(at, mask=there, other=0.0).to(tl.float32) + tl.sum(total, axis=0)
        tl.store(at, sums.to(table.dtype.element_ty), mask=there)


def add_rows_(table: Tensor, rows: Tensor, places: Places) -> None:
    """Add rows (N, C) to those of `table` (V, C) that the tokens (N,) name of which `places` is the order."""
    size = table.shape[1]
    grid = (len(rows), triton.cdiv(size, COLUMNS))
    add_rows_kernel[grid](table, rows.contiguous(), *places, size, COLUMNS, AT_ONCE, num_warps=4)
