"""AdamW on one flat piece of memory: one kernel reads gradient, weight and moments, and writes weight, moments and the
weight's 16-bit copy. With float32 moments that is 28 bytes per parameter in all: clipping, unscaling, and the cast
that autocast would do at every use, come for free.
"""

import importlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_QUANTISED = 4096  # torchao keeps smaller tensors in float32


class Constants(NamedTuple):
    """What does not change while training."""

    decay: float
    beta1: float
    beta2: float
    eps: float


def adamw(p, m, v, g, count, lr, c: Constants) -> tuple[Tensor, Tensor, Tensor]:
    """One AdamW update (Loshchilov & Hutter 2019) of weights p (N,) with moments m and v by the gradient g, all
    float32: their new values. `count` is the number of this update, from 1; it and `lr` are 0-dim."""
    m, v = torch.lerp(m, g, 1 - c.beta1), torch.lerp(v, g * g, 1 - c.beta2)
    step = (m / (1 - c.beta1**count)) / ((v / (1 - c.beta2**count)).sqrt() + c.eps)
    return p * (1 - lr * c.decay) - lr * step, m, v


def float_adamw_(p, g, copy, m, v, count, lr, factor, skip, c: Constants) -> None:
    """`adamw` in place, by factor · g; `copy` is None or the weights in 16 bits; with `skip` nothing changes."""
    new = adamw(p, m, v, g.float() * factor, count, lr, c)
    for into, value in zip((p, m, v), new, strict=True):
        into.copy_(torch.where(skip, into, value))
    if copy is not None:
        copy.copy_(p)


class FloatMoments:
    """The moments of N weights in float32."""

    update_ = staticmethod(float_adamw_)

    def __init__(self, size: int, device: torch.device) -> None:
        self.tensors = torch.zeros(2, size, device=device).unbind()

    def piece(self, start: int, end: int) -> list[Tensor]:
        """What `update_` wants for the weights start … end − 1."""
        return [t[start:end] for t in self.tensors]

    def views(self, shapes: list[torch.Size]) -> Iterator[tuple[Tensor, Tensor]]:
        """Both moments of each parameter, for a torch optimizer's state; they share memory with these."""
        parts = (moment.split([shape.numel() for shape in shapes]) for moment in self.tensors)
        for shape, m, v in zip(shapes, *parts, strict=True):
            yield m.view(shape), v.view(shape)


def unpacked(codes: Tensor, bits: int) -> Tensor:
    return codes if bits == 8 else torch.stack((codes >> 4, codes & 15), dim=-1).flatten()


def packed(codes: Tensor, bits: int) -> Tensor:
    return codes if bits == 8 else (codes[::2] << 4) | codes[1::2]


def low_adamw_(p, g, copy, codes_m, scale_m, map_m, codes_v, scale_v, map_v, count, lr, factor, skip, c, bits) -> None:
    """As `float_adamw_`, with moments of `bits` (8 or 4) per number: a scale for each block of them, and codes that
    name the entries of a map."""
    from torchao.optim import quant_utils as q

    m, v = (
        q.dequant_with_qmap(unpacked(codes, bits), table, scale)
        for codes, scale, table in ((codes_m, scale_m, map_m), (codes_v, scale_v, map_v))
    )
    new_p, m, v = adamw(p, m, v, g.float() * factor, count, lr, c)
    p.copy_(torch.where(skip, p, new_p))
    if copy is not None:
        copy.copy_(p)
    quantise = q.quantize_8bit_with_qmap if bits == 8 else q.quantize_4bit_with_qmap
    for moment, codes, scale, table in ((m, codes_m, scale_m, map_m), (v, codes_v, scale_v, map_v)):
        scaled, new_scale = q.scale_tensor(moment, len(moment) // len(scale))
        codes.copy_(torch.where(skip, codes, packed(quantise(scaled, table), bits)))
        scale.copy_(torch.where(skip, scale, new_scale))


class LowMoments:
    """The moments of N weights in 8 or 4 bits, as torchao's optimizers keep them, block by block."""

    update_ = staticmethod(low_adamw_)

    def __init__(self, size: int, device: torch.device, bits: int, block_size: int) -> None:
        module = importlib.import_module(f"torchao.optim.subclass_{bits}bit")
        self.make, self.bits = getattr(module, f"OptimState{bits}bit"), bits
        self.states = [self.make.zeros((size,), signed, block_size, device) for signed in (True, False)]
        self.tensors = [t for state in self.states for t in (state.codes, state.scale, state.qmap)]

    def piece(self, start: int, end: int) -> list[Tensor]:
        """As FloatMoments.piece; both in whole blocks."""
        return [t for state in self.states for t in (*self.cut(state, start, end), state.qmap)]

    def cut(self, state: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of the numbers start … end − 1."""
        per_byte, block = 8 // self.bits, state.block_size
        return state.codes[start // per_byte : end // per_byte], state.scale[start // block : end // block]

    def views(self, shapes: list[torch.Size]) -> Iterator[tuple[Tensor, Tensor]]:
        """As FloatMoments.views."""
        start = 0
        for shape in shapes:
            yield tuple(self.view(state, start, shape) for state in self.states)
            start += shape.numel()

    def view(self, state: Tensor, start: int, shape: torch.Size) -> Tensor:
        codes, scale = self.cut(state, start, start + shape.numel())
        if self.bits == 8:
            return self.make(codes.view(shape), scale, state.qmap, state.signed, torch.float32)
        return self.make(codes, scale, state.qmap, state.signed, shape, torch.float32)
