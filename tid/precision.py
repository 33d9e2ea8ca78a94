"""Autocast by name."""

from contextlib import AbstractContextManager, nullcontext

import torch

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which the model runs at `precision`: "fp32" | "bf16" | "fp16". Parameters stay float32."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()
