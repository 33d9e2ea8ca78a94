"""Kernels that torch.compile does not find, by hand in Triton. `tid.pieces.by_hand_for` says who takes them;
`tid.bench kernels=…` times them against what `tid.pieces` compiles.
"""

from tid.kernels.between import GAIN, PROGRAMS, cross_entropy_, norm_gradient, swiglu_gradient
from tid.kernels.self_attention import attends, attention, attention_gradient

__all__ = [
    "GAIN", "PROGRAMS", "attends", "attention", "attention_gradient", "cross_entropy_", "norm_gradient",
    "swiglu_gradient",
]  # fmt: skip
