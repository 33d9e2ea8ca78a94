"""Updates for a GPU that waits for nothing: all matrices in one piece of memory, moved under the next forward pass.

An update is only noted down when its gradient is known. The next step carries it out on a second stream, part by part
in the order in which the forward pass needs them: an optimizer is bound by memory, a forward pass is not. Whoever
reads the weights between two steps calls `settle` first.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tid import distributed
from tid.adamw import LEAST_QUANTISED, Constants, FloatMoments, LowMoments
from tid.gradients import Gradients
from tid.model import Decoder
from tid.optim import AdamW, AdamW4bit, AdamW8bit, Muon
from tid.pieces import Pieces, by_hand_for
from tid.precision import AUTOCAST
from tid.twin import Twin, matrices_of, split_like, twin_shapes
from tid.update import Update

MOST_AT_ONCE, ALIGNED = 2**23, 256  # weights that one kernel updates, and of what their number is a multiple


class FlatUpdate(Update):
    """`Update` on flat storage, of which the weights of `model` become views; passes go through twins.

    The torch optimizers hold the state, as views too, so checkpoints are those of `Update`.
    """

    capturable = True

    def __init__(
        self, model: Decoder, learned: nn.ParameterDict, optim: Any, precision: str, accumulates: bool, pieces: Pieces
    ) -> None:
        super().__init__(model, learned, optim, precision)
        self.by_hand = pieces.by_hand
        self.moment_updates = {kind: pieces.fuse(kind.update_) for kind in (FloatMoments, LowMoments)}
        self.constants = Constants(optim.weight_decay, optim.beta1, optim.beta2, optim.eps)
        self.matrices, self.vectors = matrices_of(model), [p for p in self.parameters if p.ndim == 1]
        self.flat, self.flat_vectors = flatten(self.matrices), flatten(self.vectors)
        low = AUTOCAST[precision]
        self.copy = self.flat.to(low) if low else None
        storage = self.flat if self.copy is None else self.copy
        # one micro-batch's gradient is as exact as its products, 16 bits; a sum over many needs more
        dtype = torch.float32 if accumulates else storage.dtype
        self.gradients = Gradients(twin_shapes(model), dtype, storage.device, pieces)
        self.compute = Twin(model, storage, self.gradients.sink, pieces)
        self.scoring = Twin(model, storage, pieces=pieces)
        self.vector_gradient = torch.zeros_like(self.flat_vectors)

        device = storage.device
        self.count = torch.zeros((), device=device)  # updates made
        self.due_lr, self.due_factor = torch.zeros((), device=device), torch.zeros((), device=device)
        self.nothing_due = torch.ones((), dtype=torch.bool, device=device)
        self.vector_moments = FloatMoments(len(self.flat_vectors), device)

    def matrices_in_parts(self) -> Iterator[list[nn.Parameter]]:
        """The matrices of each part of the gradient."""
        matrices = iter(self.matrices)
        for part in self.gradients.parts:
            size, inside = len(part), []
            while size:
                inside.append(next(matrices))
                size -= inside[-1].numel()
            yield inside

    def shared_state(self, optimizer: Optimizer, parameters: list[Tensor], moments: Any) -> None:
        """Show flat moments as the state of a torch optimizer."""
        views = moments.views([p.shape for p in parameters])
        for p, (m, v) in zip(parameters, views, strict=True):
            optimizer.state[p] = {"step": self.count, "exp_avg": m, "exp_avg_sq": v}

    def backward(self, objective: Tensor, last: bool = True) -> None:
        self.gradients.backward(objective * self.scale, last)
        if last:
            learned = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.learned.values()]
            torch.cat([self.gradients.norms(), *learned], out=self.vector_gradient)
            distributed.sum_([self.vector_gradient])
            for p in self.learned.values():
                p.grad = None

    def gradient_norm(self) -> Tensor:
        vectors = self.vector_gradient.square().sum()
        return (self.gradients.square_sums.sum() + vectors).sqrt() / self.scale

    def move(self, lr: Tensor, factor: Tensor, skip: Tensor) -> None:
        """Note the update down. It is carried out by `begin` or `settle`."""
        self.due_lr.copy_(lr)
        self.due_factor.copy_(factor)
        self.nothing_due.copy_(skip)

    @torch.no_grad()
    def begin(self) -> None:
        """Carry out the update that is due, beside what is launched next; the twins wait for the parts they use."""
        with self.gradients.beside():
            events = [self.carry_out(part) for part in range(len(self.gradients.parts))]
            self.count += (~self.nothing_due).float()
            self.nothing_due.fill_(True)
        self.compute.ready = self.scoring.ready = events if self.gradients.stream else None
        self.gradients.begin()

    def carry_out(self, part: int) -> torch.cuda.Event | None:
        """Update one part of the matrices, with the first the vectors too. Returns the event of its end."""
        due = (self.count + 1, self.due_lr, self.due_factor, self.nothing_due)
        if part == 0:
            vectors = Constants(0.0, self.constants.beta1, self.constants.beta2, self.constants.eps)
            self.update_(self.flat_vectors, self.vector_gradient, None, self.vector_moments, due, vectors)
        self.update_part(part, due)
        return self.gradients.stream.record_event() if self.gradients.stream else None

    def update_(self, p: Tensor, g: Tensor, copy: Tensor | None, moments: Any, due: tuple, c: Constants) -> None:
        """AdamW's update in place, of one piece after the other: torch tunes a kernel on copies of what it changes."""
        bits = (moments.bits,) if isinstance(moments, LowMoments) else ()
        size = piece_size(len(p), math.lcm(ALIGNED, *(state.block_size for state in getattr(moments, "states", ()))))
        for start in range(0, len(p), size):
            here = slice(start, start + size)
            its = moments.piece(start, start + size)
            low = None if copy is None else copy[here]
            self.moment_updates[type(moments)](p[here], g[here], low, *its, *due, c, *bits)

    def part_of(self, flat: Tensor | None, part: int) -> Tensor | None:
        """The part of flat storage (N,) that is gradient part `part`."""
        return None if flat is None else flat.split([len(p) for p in self.gradients.parts])[part]

    def update_part(self, part: int, due: tuple) -> None:
        """Carry out the update of the matrices of a part."""
        raise NotImplementedError

    def settle(self) -> None:
        self.begin()
        self.gradients.join()
        self.compute.ready = self.scoring.ready = None

    @contextmanager
    def beside(self, *read: Tensor) -> Iterator[None]:
        with self.gradients.beside():
            yield
        self.gradients.hold(*read)

    @property
    def input_gradient(self) -> Tensor:
        return self.gradients.input_gradient

    def wait_for_table(self) -> None:
        self.scoring.wait(0)

    def state_dict(self) -> dict:
        self.settle()
        state = super().state_dict()
        for optimizer in state["optimizers"]:
            # torch's own optimizers count in place, so each parameter needs a counter that it shares with none
            counted = {number: of for number, of in optimizer["state"].items() if "step" in of}
            optimizer["state"] |= {number: of | {"step": of["step"].clone()} for number, of in counted.items()}
        return state

    def load_optimizer(self, optimizer: Optimizer, saved: dict) -> None:
        """Copy the state into the flat moments: torch would first make another of it on the device."""
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        own = [p for group in optimizer.param_groups for p in group["params"]]
        for number, p in zip(numbers, own, strict=True):
            found = saved["state"].get(number)  # nothing before the first update
            for name in optimizer.state[p].keys() - {"step"}:  # of which there is one for all
                optimizer.state[p][name].copy_(found[name] if found else torch.zeros(p.shape, device=p.device))

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        counts = [of["step"] for optimizer in state["optimizers"] for of in optimizer["state"].values() if "step" in of]
        self.count.fill_(max(map(float, counts), default=0.0))  # torch counts only updates with a gradient
        self.nothing_due.fill_(True)
        if self.copy is not None:
            self.copy.copy_(self.flat)


class FlatAdamW(FlatUpdate):
    """AdamW with moments in 32, 8 or 4 bits."""

    def __init__(
        self, model: Decoder, learned: nn.ParameterDict, optim: Any, precision: str, accumulates: bool, pieces: Pieces
    ) -> None:
        super().__init__(model, learned, optim, precision, accumulates, pieces)
        (optimizer,) = self.optimizers
        bits = {AdamW8bit: 8, AdamW4bit: 4}.get(type(optim))
        self.moments = []
        for part, inside in zip(self.gradients.parts, self.matrices_in_parts(), strict=True):
            low = bits and LowMoments(len(part), part.device, bits, optim.block_size)
            self.moments.append(low or FloatMoments(len(part), part.device))
            self.shared_state(optimizer, inside, self.moments[-1])
        self.shared_state(optimizer, self.vectors, self.vector_moments)

    @staticmethod
    def suits(optim: Any, model: Decoder) -> bool:
        """Can it stand in for the optimizer? torchao keeps small or odd matrices in float32, which it does not."""
        if type(optim) not in (AdamW8bit, AdamW4bit):
            return type(optim) is AdamW
        sizes = [p.numel() for p in matrices_of(model)]
        return min(sizes) >= LEAST_QUANTISED and not any(size % optim.block_size for size in sizes)

    def update_part(self, part: int, due: tuple) -> None:
        p, copy = self.part_of(self.flat, part), self.part_of(self.copy, part)
        self.update_(p, self.gradients.parts[part], copy, self.moments[part], due, self.constants)


class FlatMuon(FlatUpdate):
    """torch's Muon for the matrices of the blocks, captured; AdamW for the embedding and the vectors."""

    def __init__(
        self, model: Decoder, learned: nn.ParameterDict, optim: Any, precision: str, accumulates: bool, pieces: Pieces
    ) -> None:
        super().__init__(model, learned, optim, precision, True, pieces)  # it wants float32 gradients
        self.muon, adamw = self.optimizers
        self.embedding_moments = FloatMoments(self.matrices[0].numel(), self.flat.device)
        self.shared_state(adamw, self.matrices[:1], self.embedding_moments)
        self.shared_state(adamw, self.vectors, self.vector_moments)
        parts, inside = self.gradients.parts[1:], list(self.matrices_in_parts())[1:]
        self.momenta = [torch.zeros(len(part), device=part.device) for part in parts]
        self.blocks = []  # the matrices of each, with their gradients
        for part, momentum, own in zip(parts, self.momenta, inside, strict=True):
            shapes = [p.shape for p in own]
            for p, buffer in zip(own, split_like(momentum, shapes), strict=True):
                self.muon.state[p] = {"momentum_buffer": buffer}
            self.blocks.append(list(zip(own, split_like(part, shapes), strict=True)))

    @staticmethod
    def suits(optim: Any, model: Decoder) -> bool:
        return type(optim) is Muon

    def update_part(self, part: int, due: tuple) -> None:
        p, copy = self.part_of(self.flat, part), self.part_of(self.copy, part)
        if part == 0:
            self.update_(p, self.gradients.parts[0], copy, self.embedding_moments, due, self.constants)
        else:
            self.orthogonal_update(p, copy, self.momenta[part - 1], self.blocks[part - 1], *due[1:])

    def orthogonal_update(
        self, weights: Tensor, copy: Tensor | None, momentum: Tensor, block: list, lr: Tensor, factor: Tensor,
        skip: Tensor,
    ) -> None:  # fmt: skip
        """Muon's step of a block. Its learning rate and decay are numbers of the host's, so it steps from zero at rate
        1: what it leaves is minus the update, which does not depend on the weights."""
        before, momentum_before = weights.clone(), momentum.clone()
        (group,) = self.muon.param_groups
        for p, gradient in block:  # torch passes over those that have none
            gradient.copy_(torch.where(skip, 0.0, gradient * factor))
            p.grad = gradient
        weights.zero_()
        kept = {name: group[name] for name in ("lr", "weight_decay")}
        group.update(lr=1.0, weight_decay=0.0)
        try:
            self.muon.step()
        finally:
            group.update(kept)
            for p, _ in block:
                p.grad = None
        moved = before * (1 - lr * self.constants.decay) + lr * weights
        weights.copy_(torch.where(skip, before, moved))
        momentum.copy_(torch.where(skip, momentum_before, momentum))
        if copy is not None:
            copy.copy_(weights)


def flat_update(optim: Any, model: Decoder) -> type[FlatUpdate] | None:
    """The flat update that stands in for the optimizer, None for one that nobody knows here."""
    return next((kind for kind in (FlatAdamW, FlatMuon) if kind.suits(optim, model)), None)


def make_update(
    model: Decoder, learned: nn.ParameterDict, optim: Any, precision: str, accumulates: bool, fast: bool, kernels: str,
    context: int,
) -> Update:  # fmt: skip
    """The update of a model: with `fast` the flat one where there is one. accumulates: over several micro-batches.
    kernels, context: see tid.pieces.by_hand_for."""
    flat = flat_update(optim, model) if fast else None
    if flat is None:
        return Update(model, learned, optim, precision)
    by_hand = by_hand_for(kernels, model.shape, context, precision, model.norm.weight.device)
    pieces = Pieces(compiled=True, by_hand=by_hand)
    return flat(model, learned, optim, precision, accumulates, pieces)


def piece_size(size: int, multiple: int) -> int:
    """The largest whole fraction of `size` up to MOST_AT_ONCE that is a multiple of `multiple`, or else `size`."""
    for count in range(-(-size // MOST_AT_ONCE), 1024):
        if size % (count * multiple) == 0:
            return size // count
    return size


def flatten(parameters: list[nn.Parameter]) -> Tensor:
    """Move parameters into one new piece of memory (N,), of which they become views."""
    flat = torch.cat([p.data.flatten() for p in parameters])
    for p, view in zip(parameters, split_like(flat, [p.shape for p in parameters]), strict=True):
        p.data = view
    return flat
