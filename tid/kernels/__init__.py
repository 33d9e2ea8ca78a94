"""Kernels that torch.compile does not find, by hand in Triton. `tid.pieces.by_hand_for` says who takes them;
`tid.bench kernels=…` times them against what `tid.pieces` compiles.
"""

import torch

from tid.device import is_hopper
from tid.kernels.between import PROGRAMS, norm_gradient, swiglu_gradient
from tid.kernels.loss import GAIN, cross_entropy_
from tid.kernels.row_gradient import add_rows_, in_order
from tid.kernels.self_attention import HEAD_SIZES, LONGEST, attends, attention, attention_gradient
from tid.model import GPT

__all__ = [
    "GAIN", "PROGRAMS", "add_rows_", "attends", "attention", "attention_gradient", "cross_entropy_",
    "in_order", "norm_gradient", "swiglu_gradient", "wants",
]  # fmt: skip


def wants(name: str, shape: GPT, context: int, precision: str, device: torch.device) -> str | None:
    """What a kernel, of tid.pieces.BY_HAND, would need and does not find; None: nothing."""
    if name == "attention":
        if precision == "fp32":
            return "16-bit precision"
        if not is_hopper(device):
            return "a Hopper GPU (H100, H200)"
        if context > LONGEST:
            return f"a context of at most {LONGEST} tokens"
        if shape.hidden_size // shape.num_heads not in HEAD_SIZES:
            return f"a head size of {' or '.join(map(str, HEAD_SIZES))}"
    return None
