"""Optimizers: how the parameters are grouped, what updates them, and the learning rate by step.

An optimizer is a component: ``build(parameters) -> list of torch optimizers``, ``lr_at(step, total_steps)``, and
``check()``, called before data are made and anything is written.
Weight decay is for matrices only; norms and mask vectors have none.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from tid.component import component
from tid.config import ConfigError

Named = list[tuple[str, Tensor]]
Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


@component
class WarmupCosine:
    """What all optimizers share: linear warm-up over `warmup_steps`, then half a cosine down to
    `lr · final_lr_ratio`, which a step after the last would have; the gradient's norm is clipped to `clip_norm`."""

    lr: Positive
    final_lr_ratio: Annotated[float, Field(ge=0, le=1)]
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: NotNegative
    clip_norm: Positive

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of update `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.lr * (self.final_lr_ratio + (1 - self.final_lr_ratio) * cosine)

    def check(self) -> None:
        """Raise ConfigError when a package that the optimizer needs is missing."""

    def groups(self, parameters: Named) -> list[dict]:
        """Two parameter groups: matrices with weight decay, all else without. Every parameter is in exactly one."""
        matrices = [p for _, p in parameters if p.ndim >= 2]
        others = [p for _, p in parameters if p.ndim < 2]
        assert len({id(p) for p in matrices + others}) == len(parameters), "a parameter is listed twice"
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def rate_tensor(self, parameters: Named) -> Tensor:
        """The learning rate as a tensor on the parameters' device: the step changes it in place."""
        return torch.tensor(self.lr, device=parameters[0][1].device)


@component
class AdamW(WarmupCosine):
    """AdamW (Loshchilov & Hutter 2019), torch's fused kernel, which also unscales and clips as it reads gradients."""

    beta1: Beta
    beta2: Beta
    eps: Positive

    def build(self, parameters: Named) -> list[Optimizer]:
        options = {"betas": (self.beta1, self.beta2), "eps": self.eps, "fused": True}
        return [torch.optim.AdamW(self.groups(parameters), lr=self.rate_tensor(parameters), **options)]


def torchao_optimizer(name: str):
    """torchao's optimizer class. Raises ConfigError with the install command when torchao is missing."""
    try:
        import torchao.optim
    except ImportError as error:
        raise ConfigError(f"optim: {name} needs torchao, which is not installed: pip install 'tid[lowbit]'") from error
    return getattr(torchao.optim, name)


@component
class AdamW8bit(AdamW):
    """AdamW whose moments are held in 8 bits, block-wise (Dettmers et al. 2022), from torchao: 2 bytes per parameter
    of optimizer state instead of 8."""

    block_size: Annotated[int, Field(ge=16)]

    def check(self) -> None:
        torchao_optimizer(type(self).__name__)

    def build(self, parameters: Named) -> list[Optimizer]:
        options = {"betas": (self.beta1, self.beta2), "eps": self.eps, "block_size": self.block_size}
        make = torchao_optimizer(type(self).__name__)
        return [make(self.groups(parameters), lr=self.rate_tensor(parameters), **options)]


@component
class AdamW4bit(AdamW8bit):
    """AdamW with 4-bit moments (Li et al. 2023), from torchao: 1 byte per parameter."""


@component
class Muon(WarmupCosine):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, torch's own; AdamW for embeddings and vectors.

    Updates are scaled to AdamW's size (Liu et al. 2025, 0.2 · √max(rows, columns)), so one `lr` serves both.
    """

    momentum: Beta
    beta1: Beta
    beta2: Beta
    eps: Positive

    def build(self, parameters: Named) -> list[Optimizer]:
        hidden = [(n, p) for n, p in parameters if p.ndim == 2 and "embed" not in n]
        chosen = {id(p) for _, p in hidden}
        rest = [(n, p) for n, p in parameters if id(p) not in chosen]
        muon = torch.optim.Muon(
            [p for _, p in hidden],
            lr=self.rate_tensor(parameters),
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        options = {"betas": (self.beta1, self.beta2), "eps": self.eps, "fused": True}
        return [muon, torch.optim.AdamW(self.groups(rest), lr=self.rate_tensor(parameters), **options)]
