"""From gradients to new weights: unscale, clip, judge, update. `Update` works with any torch optimizer."""

from typing import Any

import torch
from torch import Tensor, nn

from tid.model import Decoder

INITIAL_SCALE, SMALLEST_SCALE = 2.0**16, 2.0**-24  # fp16 gradients that overflow even at the last are broken


class Update:
    """The parameters, their optimizers and the loss scale.

    `compute` is the model to train through, `scoring` the one to score with: here both are the model itself.

    After a loss or gradient that is not finite the weights stay as they were before that step, whatever follows:
    `bad_step` then holds its number, else -1. (An overflow of fp16 gradients is no such case: the step is skipped
    and the loss scale halved, as usual.)

    `capturable`: may a call be captured in a CUDA graph? torch's optimizers other than AdamW read numbers back.
    """

    capturable = False

    def __init__(self, model: Decoder, learned: nn.ParameterDict, optim: Any, precision: str) -> None:
        self.model, self.learned, self.clip_norm, self.precision = model, learned, optim.clip_norm, precision
        self.compute = self.scoring = model
        device = model.norm.weight.device
        named = [*model.named_parameters(), *learned.named_parameters()]
        self.parameters = [p for _, p in named]
        self.optimizers = optim.build(named)
        listed = sorted(id(p) for o in self.optimizers for g in o.param_groups for p in g["params"])
        assert listed == sorted(id(p) for p in self.parameters), "each parameter belongs in one optimizer group"
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.scale = torch.full((), INITIAL_SCALE if precision == "fp16" else 1.0, device=device)
        self.scale_growth = torch.zeros((), dtype=torch.int32, device=device)

    def backward(self, objective: Tensor, micro: int) -> None:
        """Add the gradient of micro-batch number `micro`'s share of the loss."""
        (objective * self.scale).backward()

    @torch.no_grad()
    def __call__(self, objective: Tensor, lr: Tensor, step: Tensor) -> Tensor:
        """Update number `step` at learning rate `lr`, then forget the gradients; all 0-dim tensors. Returns the
        gradient's norm before clipping, 0-dim float32. Unscaling and clipping are one factor."""
        norm = self.gradient_norm() / self.scale
        overflow = ~norm.isfinite()
        hopeless = self.scale < SMALLEST_SCALE if self.precision == "fp16" else torch.ones_like(overflow)
        broken = ~objective.isfinite() | (overflow & hopeless)
        self.bad_step.copy_(torch.where((self.bad_step < 0) & broken, step, self.bad_step))
        skip = overflow | (self.bad_step >= 0)
        clip = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        self.move(lr, clip / self.scale, skip)
        if self.precision == "fp16":
            torch._amp_update_scale_(self.scale, self.scale_growth, overflow.float(), 2.0, 0.5, 2000)
        return norm

    def gradient_norm(self) -> Tensor:
        """Norm of the whole, still scaled gradient."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))

    def move(self, lr: Tensor, factor: Tensor, skip: Tensor) -> None:
        """Let the optimizers use `factor` × the gradient, unless `skip`; the fused one does both as it reads them."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"].copy_(lr)
            if optimizer.defaults.get("fused"):
                optimizer.grad_scale, optimizer.found_inf = 1 / factor, skip.float()
                optimizer.step()
            elif not skip:
                own = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
                torch._foreach_mul_(own, factor)
                optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    TENSORS = ("bad_step", "scale", "scale_growth")

    def state_dict(self) -> dict:
        """Weights, optimizers and loss scale."""
        return {
            "model": self.model.state_dict(),
            "learned": self.learned.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "scaler": {name: getattr(self, name) for name in self.TENSORS},
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.learned.load_state_dict(state["learned"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # on this device, and the tensor that a captured step may know
        for name in self.TENSORS:
            getattr(self, name).copy_(state["scaler"][name])
