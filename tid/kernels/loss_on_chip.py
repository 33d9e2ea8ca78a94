"""Cross-entropy and its gradient over the logits, as `tid.kernels.loss`, of rows that fit into shared memory. There
they wait between their log-sum and their gradient: memory is read once and written once.

In Gluon, Triton's own language for what it otherwise decides itself, here the shared memory.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from tid.device import is_hopper
from tid.kernels.self_attention import LOG2_E

BLOCK, WIDTH = 4096, 8  # columns that are waited for together; how many, side by side, a thread takes: 16 bytes
PROGRAMS = 2  # on a multiprocessor: one computes while the other waits for its row
EXTRA = 2048  # bytes beside a row: 64 for the sums, 1024 that the driver keeps


@gluon.jit
def in_float(slot, column, start: gl.constexpr, VOCABULARY: gl.constexpr, layout: gl.constexpr):
    """The block of logits from column `start` on, −inf from the vocabulary on."""
    x = slot.load(layout).to(gl.float32)
    if start + slot.shape[0] * slot.shape[1] > VOCABULARY:
        x = gl.where(column + start < VOCABULARY, x, float("-inf"))
    return x


@gluon.jit
def cross_entropy_on_chip_kernel(
    logits, targets, nats, log_gain, VOCABULARY: gl.constexpr, COLUMNS: gl.constexpr, BLOCK: gl.constexpr,
    WIDTH: gl.constexpr, GRADIENT: gl.constexpr
):  # fmt: skip
    """One program for each row, whose blocks are all asked for at once, each into memory of its own. Logarithms are to
    base 2; a thread's running sum is rescaled once for WIDTH logits, since exponentials are what it would wait for."""
    layout: gl.constexpr = gl.BlockedLayout([1, WIDTH], [32, 1], [gl.num_warps(), 1], [1, 0])
    threads: gl.constexpr = gl.SliceLayout(1, layout)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0])
    group = gl.arange(0, BLOCK // WIDTH, layout=threads)[:, None]
    column = group * WIDTH + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))[None, :]

    row = gl.program_id(0)
    base = logits + row.to(gl.int64) * COLUMNS
    slots = ()
    for start in gl.static_range(0, COLUMNS, BLOCK):
        slot = gl.allocate_shared_memory(logits.dtype.element_ty, [BLOCK // WIDTH, WIDTH], flat)
        async_copy.async_copy_global_to_shared(slot, base + (column + start), mask=column + start < COLUMNS)
        async_copy.commit_group()
        slots = slots + (slot,)
    target = gl.load(targets + row).to(gl.int32)
    chosen = gl.load(base + target).to(gl.float32)

    top = gl.full([BLOCK // WIDTH], -1e30, gl.float32, layout=threads)
    total = gl.full([BLOCK // WIDTH], 0.0, gl.float32, layout=threads)
    for start in gl.static_range(0, COLUMNS, BLOCK):
        async_copy.wait_group((COLUMNS - 1 - start) // BLOCK)
        x = in_float(slots[start // BLOCK], column, start, VOCABULARY, layout)
        higher = gl.maximum(top, gl.max(x, axis=1) * LOG2_E)
        total = total * gl.exp2(top - higher) + gl.sum(gl.exp2(x * LOG2_E - higher[:, None]), axis=1)
        top = higher
    highest = gl.max(top, axis=0)
    log_sum = highest + gl.log2(gl.sum(total * gl.exp2(top - highest), axis=0))
    gl.store(nats + row, log_sum / LOG2_E - chosen)

    if GRADIENT:
        below, gain = log_sum - log_gain, gl.exp2(log_gain)
        for start in gl.static_range(0, COLUMNS, BLOCK):
            p = gl.exp2(in_float(slots[start // BLOCK], column, start, VOCABULARY, layout) * LOG2_E - below)
            p = gl.where(column + start == target, p - gain, p).to(logits.dtype.element_ty)
            gl.store(base + (column + start), p, mask=column + start < COLUMNS, eviction_policy="evict_first")


def shared_bytes(columns: int) -> int:
    """Of shared memory, at most, that a program takes for a row."""
    return 2 * BLOCK * -(-columns // BLOCK) + EXTRA


def fits_on_chip(logits: Tensor) -> bool:
    """Is this a Hopper GPU, where this was timed, and do PROGRAMS rows of logits (N, rows), in 16 bits and whole
    vectors, fit into a multiprocessor's shared memory?"""
    if not is_hopper(logits.device) or logits.element_size() != 2 or logits.shape[1] % WIDTH or logits.data_ptr() % 16:
        return False
    has = torch.cuda.get_device_properties(logits.device).shared_memory_per_multiprocessor
    return PROGRAMS * shared_bytes(logits.shape[1]) <= has


def cross_entropy_on_chip_(logits: Tensor, targets: Tensor, vocabulary: int, log_gain: float, gradient: bool) -> Tensor:
    """`tid.kernels.loss.cross_entropy_` of logits that fit."""
    nats = torch.empty(len(logits), device=logits.device)
    cross_entropy_on_chip_kernel[(len(logits),)](
        logits, targets, nats, log_gain, VOCABULARY=vocabulary, COLUMNS=logits.shape[1], BLOCK=BLOCK, WIDTH=WIDTH,
        GRADIENT=gradient, num_warps=16,
    )  # fmt: skip
    return nats
