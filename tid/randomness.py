"""Random numbers that are a pure function of (seed, purpose, sample, position).

A counter-based generator has no state: nothing to checkpoint, nothing that scoring could disturb, and a
sample gets the same numbers on CPU and GPU, captured or eager, alone or split over several processes.
"""

import torch
from torch import Tensor

MASK32 = 0xFFFF_FFFF


def mix32(x: Tensor) -> Tensor:
    """Bijective 32-bit hash held in int64: C. Wellons' hash-prospector, [16 21f0aaad 15 d35a2d97 15]."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & MASK32
    x = ((x ^ (x >> 15)) * 0xD35A2D97) & MASK32
    return x ^ (x >> 15)


def uniform(seed: int, purpose: int, samples: Tensor, length: int) -> Tensor:
    """Uniform [0, 1) float32 (B, length) for int64 `samples` (B,): the running number of each sequence visited.

    `purpose` keeps the streams of different uses apart.
    """
    key = mix32(torch.full_like(samples, (seed * 0x9E3779B1 + purpose * 0x85EBCA77) & MASK32))
    row = mix32(key ^ (samples & MASK32)) ^ mix32((key + (samples >> 32) + 0x9E3779B9) & MASK32)
    position = torch.arange(length, device=samples.device)
    bits = mix32(mix32(row)[:, None] ^ mix32((position + 0x68E31DA4) & MASK32)[None, :])
    return (bits >> 8).float() * 2.0**-24


SELECTION, SCORES, ROW_RATE = 1, 2, 3  # purposes
