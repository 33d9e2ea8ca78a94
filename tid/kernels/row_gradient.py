"""The gradient of an embedding's rows, summed over the places that name them, the same on every run."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, AT_ONCE = 256, 16  # of a program, and the rows that it reads at a time
SHARE = 128  # rows that one program sums; a frequent token's are shared by several


class Places(NamedTuple):
    """Tokens (N,) in order, and for each place in it: which it was before, and where its token begins and ends."""

    tokens: Tensor
    order: Tensor
    starts: Tensor
    ends: Tensor


def in_order(tokens: Tensor) -> Places:
    """What `add_rows_` has to know of tokens (N,) int64."""
    tokens, order = tokens.sort(stable=True)
    starts, ends = (torch.searchsorted(tokens, tokens, right=right) for right in (False, True))
    return Places(tokens, order, starts, ends)


@triton.jit
def add_to_row(table, token, sums, column, there, SIZE: tl.constexpr):
    at = table + token * SIZE + column
    sums += tl.load(at, mask=there, other=0.0).to(tl.float32)
    tl.store(at, sums.to(table.dtype.element_ty), mask=there)


@triton.jit
def add_rows_kernel(
    table, shares, added, tokens, order, starts, ends, slots,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """One program for each place and BLOCK columns. Those at which a token begins sum its next SHARE rows, and so does
    every SHARE-th after them: into the table, or where a token has more than one such share into shares (2, slots,
    SIZE), one half for its first. No two of a half are nearer than SHARE, so place // SHARE tells them apart."""
    place, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, end, there = tl.load(starts + place).to(tl.int32), tl.load(ends + place).to(tl.int32), column < SIZE
    if (place - begin) % SHARE == 0:
        stop = tl.minimum(place + SHARE, end)
        total = tl.zeros((AT_ONCE, BLOCK), tl.float32)
        for start in tl.range(place, stop, AT_ONCE):
            own = start + tl.arange(0, AT_ONCE)
            row = tl.load(order + own, mask=own < stop, other=0)
            at, inside = row[:, None] * SIZE + column[None, :], (own < stop)[:, None] & there[None, :]
            total += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
        sums = tl.sum(total, axis=0)
        if end - begin <= SHARE:
            add_to_row(table, tl.load(tokens + place), sums, column, there, SIZE)
        else:
            slot = place // SHARE + tl.where(place > begin, slots, 0)
            tl.store(shares + slot * SIZE + column, sums, mask=there)


@triton.jit
def add_shares_kernel(
    table, shares, tokens, starts, ends, slots, SIZE: tl.constexpr, BLOCK: tl.constexpr, SHARE: tl.constexpr
):
    """One program for each place: where a token begins that has several shares, they are summed into the table."""
    place, column = tl.program_id(0), tl.arange(0, BLOCK)
    begin, end, there = tl.load(starts + place).to(tl.int32), tl.load(ends + place).to(tl.int32), column < SIZE
    if (place == begin) & (end - begin > SHARE):
        sums = tl.load(shares + place // SHARE * SIZE + column, mask=there, other=0.0)
        for other in tl.range(place + SHARE, end, SHARE):
            sums += tl.load(shares + (slots + other // SHARE) * SIZE + column, mask=there, other=0.0)
        add_to_row(table, tl.load(tokens + place), sums, column, there, SIZE)


def add_rows_(table: Tensor, rows: Tensor, places: Places) -> None:
    """Add rows (N, C) to those of `table` (V, C) that the tokens (N,) name of which `places` is the order."""
    count, size = rows.shape
    tokens, order, starts, ends = places
    slots = count // SHARE + 1
    shares = torch.empty(2, slots, size, device=rows.device)
    grid = (count, triton.cdiv(size, COLUMNS))
    add_rows_kernel[grid](
        table, shares, rows.contiguous(), tokens, order, starts, ends, slots, size, COLUMNS, AT_ONCE, SHARE, num_warps=4
    )
    add_shares_kernel[(count,)](
        table, shares, tokens, starts, ends, slots, size, triton.next_power_of_2(size), SHARE, num_warps=4
    )
