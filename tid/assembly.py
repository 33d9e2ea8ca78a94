"""A training step, put together from its components."""

from typing import Any

import numpy as np
import torch

from tid.data.batches import Batches
from tid.dropout import TokenDropout
from tid.step import TrainStep


def put_together(
    model: Any, text: np.ndarray, *, scorer: Any, selector: Any, drop_schedule: Any, drop_mode: Any, optim: Any,
    protect_first: int, protected_token: int, context: int, stride: int, seed: int, **how: Any,
) -> TrainStep:  # fmt: skip
    """The step over `model`, on its device. text: uint16 tokens (N,), from which the batches are cut and the tokens
    counted; how: the other arguments of TrainStep."""
    device = model.norm.weight.device
    counts = np.bincount(text, minlength=model.shape.vocab_size)
    dropout = TokenDropout(
        scorer,
        selector,
        drop_schedule,
        counts=torch.from_numpy(counts).float().to(device),
        protect_first=protect_first,
        protected_token=protected_token,
        seed=seed,
    )
    batches = Batches(text, context=context, stride=stride, seed=seed, protected_token=protected_token, device=device)
    return TrainStep(model, drop_mode, dropout, optim, batches, **how)
