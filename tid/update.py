"""From gradients to new weights: unscale, clip, judge, update. `Update` works with any torch optimizer."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tid import distributed
from tid.model import Decoder

INITIAL_SCALE, SMALLEST_SCALE = 2.0**16, 2.0**-24  # fp16 gradients that overflow even at the last are broken


class Update:
    """The parameters, their optimizers and the loss scale.

    `compute` is the model to train through, `scoring` the one to score with: here both are the model itself.

    After a loss or gradient that is not finite the weights stay as they were before that step, whatever follows:
    `bad_step` then holds its number, else -1. (An overflow of fp16 gradients is no such case: the step is skipped
    and the loss scale halved, as usual.)

    `capturable`: may a call be captured in a CUDA graph? Those of tid.flat may; some optimizers read numbers back.
    """

    capturable = False
    by_hand: tuple[str, ...] = ()  # what tid.kernels does for it

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

    def begin(self) -> None:
        """A step begins: its passes may use the weights from here on."""

    def settle(self) -> None:
        """Between steps: have the weights, and all else that belongs to the state, up to date."""

    def beside(self, *read: Tensor) -> AbstractContextManager:
        """The context for work that reads the tensors `read`, and that nothing before `backward` has to wait for."""
        return nullcontext()

    @property
    def input_gradient(self) -> Tensor | None:
        """After `backward`: the gradient of the embeddings in the micro-batch's first pass, (B · T, C), 0 where a token
        was dropped; None where nobody noted it."""
        return None

    @property
    def table(self) -> Tensor:
        """The float32 token embeddings (V or more, C): up to date once a pass of this step has looked tokens up, or
        after `wait_for_table`."""
        return self.model.embed_tokens.weight.detach()

    def wait_for_table(self) -> None:
        """Within a step: what follows reads `table`, or vectors that a drop mode learns."""

    def backward(self, objective: Tensor, last: bool = True) -> None:
        """Add the gradient of a micro-batch's share of the loss; `last`: no other follows. What a step that drops
        nothing does not use has the gradient 0, so that all parameters are updated equally often."""
        (objective * self.scale).backward()
        if last:
            for p in self.learned.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad

    @torch.no_grad()
    def __call__(self, objective: Tensor, lr: Tensor, step: Tensor) -> Tensor:
        """Update number `step` at learning rate `lr`, then forget the gradients; all 0-dim tensors. Returns the
        gradient's norm before clipping, 0-dim float32. Unscaling and clipping are one factor."""
        self.sum_gradients()
        norm = distributed.from_first(self.gradient_norm())
        factor, skip, overflow = self.judge(norm, objective, step)
        self.move(lr, factor, skip)
        if self.precision == "fp16":
            torch._amp_update_scale_(self.scale, self.scale_growth, overflow.float(), 2.0, 0.5, 2000)
        return norm

    def judge(self, norm: Tensor, objective: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the gradient is to be multiplied by, unscaled and clipped at once; whether there is no update; whether
        the gradient overflowed. All 0-dim."""
        overflow = ~norm.isfinite()
        hopeless = self.scale < SMALLEST_SCALE if self.precision == "fp16" else torch.ones_like(overflow)
        broken = ~objective.isfinite() | (overflow & hopeless)
        self.bad_step.copy_(torch.where((self.bad_step < 0) & broken, step, self.bad_step))
        clip = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return clip / self.scale, overflow | (self.bad_step >= 0), overflow

    def sum_gradients(self) -> None:
        """Add up the gradients of all processes that train together."""
        distributed.sum_(p.grad for p in self.parameters if p.grad is not None)

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient, unscaled."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))) / self.scale

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
            "scaler": {name: getattr(self, name) for name in self.TENSORS} | {"precision": self.precision},
        }

    def load_optimizer(self, optimizer: Optimizer, saved: dict) -> None:
        """Give one of the optimizers the state that it once had."""
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(saved)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # on this device, and the tensor that a captured step may know

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.learned.load_state_dict(state["learned"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            self.load_optimizer(optimizer, saved)
        saved = state["scaler"]
        same = saved.get("precision", self.precision) == self.precision  # else fp16 would begin at a scale of 1
        for name in self.TENSORS if same else ("bad_step",):
            getattr(self, name).copy_(saved[name])
