"""AdamW for a GPU that waits for nothing: all matrices in one piece of memory, updated by one kernel.

The kernel reads a gradient, a weight and two moments and writes the weight, the moments and the weight's 16-bit copy,
28 bytes per parameter in all: clipping, unscaling and the cast that autocast would do at every use come for free.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tid.model import Decoder
from tid.precision import AUTOCAST
from tid.twin import Twin, matrices_of, split_like, twin_shapes
from tid.update import Update


def adamw_(p, m, v, g, copy, count, lr, factor, skip, decay: float, beta1: float, beta2: float, eps: float) -> None:
    """One AdamW update (Loshchilov & Hutter 2019) in place, of flat tensors (N,): weights p, moments m and v, gradient
    g, and copy, None or the weights in 16 bits. `count` is the number of this update, from 1; with `skip` nothing
    changes. Four arguments are 0-dim tensors so that nothing is compiled into a constant."""
    g = g.float() * factor
    new_m, new_v = torch.lerp(m, g, 1 - beta1), torch.lerp(v, g * g, 1 - beta2)
    step = (new_m / (1 - beta1**count)) / ((new_v / (1 - beta2**count)).sqrt() + eps)
    new_p = torch.where(skip, p, p * (1 - lr * decay) - lr * step)
    p.copy_(new_p)
    m.copy_(torch.where(skip, m, new_m))
    v.copy_(torch.where(skip, v, new_v))
    if copy is not None:
        copy.copy_(new_p)


def square_sum(x: Tensor) -> Tensor:
    return x.float().square().sum()


class FlatAdamW(Update):
    """`Update` for optim=adamw on CUDA. The weights of `model` become views of flat storage; passes go through twins.

    Its torch optimizer keeps the state, as views too, but never steps: checkpoints are those of `Update`.
    """

    capturable = True

    def __init__(
        self, model: Decoder, learned: nn.ParameterDict, optim: Any, precision: str, accumulates: bool, compiled: bool
    ) -> None:
        super().__init__(model, learned, optim, precision)
        self.optim = optim
        matrices, self.vectors = matrices_of(model), [p for p in self.parameters if p.ndim == 1]
        self.flat = flatten(matrices)
        self.flat_vectors = flatten(self.vectors)
        low = AUTOCAST[precision]
        self.copy = self.flat.to(low) if low else None
        storage = self.flat if self.copy is None else self.copy
        self.compute, self.scoring = Twin(model, storage, trainable=True), Twin(model, storage, trainable=False)
        shapes = twin_shapes(model)
        # one micro-batch's gradient is as exact as its products, 16 bits; a sum of several needs more
        self.grad = torch.zeros_like(self.flat if accumulates else storage)
        self.grads = split_like(self.grad, shapes)
        self.grad_vectors = torch.zeros_like(self.flat_vectors)
        self.count = torch.zeros((), device=self.flat.device)
        self.moments = [torch.zeros_like(self.flat), torch.zeros_like(self.flat)]
        self.vector_moments = [torch.zeros_like(self.flat_vectors), torch.zeros_like(self.flat_vectors)]
        self.attach_state(matrices)
        self.adamw_ = torch.compile(adamw_, dynamic=False) if compiled else adamw_
        self.square_sum = torch.compile(square_sum, dynamic=False) if compiled else square_sum

    def attach_state(self, matrices: list[nn.Parameter]) -> None:
        """Show the flat moments as the torch optimizer's state."""
        (optimizer,) = self.optimizers
        for parameters, moments in ((matrices, self.moments), (self.vectors, self.vector_moments)):
            views = (split_like(moment, [p.shape for p in parameters]) for moment in moments)
            for p, m, v in zip(parameters, *views, strict=True):
                optimizer.state[p] = {"step": self.count, "exp_avg": m, "exp_avg_sq": v}

    def vector_leaves(self) -> list[Tensor]:
        """What takes the gradients of `self.vectors`: the twin's norms, and the mode's own parameters themselves."""
        return [*self.compute.vectors, *self.learned.parameters()]

    def backward(self, objective: Tensor, micro: int) -> None:
        super().backward(objective, micro)
        with torch.no_grad():
            leaves = self.compute.matrices
            collect(self.grads, [p.grad for p in leaves], add=micro > 0)
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.vector_leaves()]
            collect(split_like(self.grad_vectors, [p.shape for p in found]), found, add=micro > 0)
        for p in (*leaves, *self.vector_leaves()):
            p.grad = None

    def gradient_norm(self) -> Tensor:
        return (self.square_sum(self.grad) + self.square_sum(self.grad_vectors)).sqrt()

    def move(self, lr: Tensor, factor: Tensor, skip: Tensor) -> None:
        o = self.optim
        count = self.count + 1
        more = (count, lr, factor, skip)
        self.adamw_(self.flat, *self.moments, self.grad, self.copy, *more, o.weight_decay, o.beta1, o.beta2, o.eps)
        self.adamw_(
            self.flat_vectors, *self.vector_moments, self.grad_vectors, None, *more, 0.0, o.beta1, o.beta2, o.eps
        )
        self.count.copy_(torch.where(skip, self.count, count))

    def state_dict(self) -> dict:
        state = super().state_dict()
        (saved,) = state["optimizers"]
        # torch's own optimizers count in place, so each parameter needs a counter that it shares with none
        alone = {number: {**of, "step": of["step"].clone()} for number, of in saved["state"].items()}
        return state | {"optimizers": [{**saved, "state": alone}]}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        (optimizer,) = self.optimizers
        loaded = dict(optimizer.state)
        matrices = matrices_of(self.model)
        self.attach_state(matrices)
        for p, found in loaded.items():
            for name, value in found.items():
                optimizer.state[p][name].copy_(value)
        if self.copy is not None:
            self.copy.copy_(self.flat)


def flatten(parameters: list[nn.Parameter]) -> Tensor:
    """Move parameters into one new piece of memory (N,), of which they become views."""
    flat = torch.cat([p.data.flatten() for p in parameters])
    for p, view in zip(parameters, split_like(flat, [p.shape for p in parameters]), strict=True):
        p.data = view
    return flat


def collect(into: list[Tensor], grads: list[Tensor], add: bool) -> None:
    """Copy gradients to where they are summed, or add them."""
    if add:
        torch._foreach_add_(into, [g.to(i.dtype) for g, i in zip(grads, into, strict=True)])
    else:
        torch._foreach_copy_(into, grads)
