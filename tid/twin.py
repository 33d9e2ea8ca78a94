"""The same model on other storage: 16-bit copies of the matrices, and one product where the plain model has several.

A `Twin` is to `Decoder` what a fast path is to its reference: the same functions of the same weights. Its matrices are
views that somebody else keeps up to date; q, k and v are one matrix, and so are gate and up, because each group lies
in one piece. What lies between two products is one fused kernel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tid.model import Decoder, RMSNorm, Rope
from tid.pieces import Heads, Norm, Pieces, ShortAttention, SwiGLU
from tid.products import Nats, NatsByHand, Product, Rows
from tid.rows import Residual

FEW_TOKENS = 4096
OTHERS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MakeSink = Callable[[str, int], Any]  # what takes the gradients of what: see tid.gradients.Gradients.sink


class FusedNorm(RMSNorm):
    """RMSNorm of a sum, on the weight of another norm."""

    def __init__(self, norm: RMSNorm, dtype: torch.dtype, pieces: Pieces, sink: Any) -> None:
        super().__init__(norm.weight.shape[0], norm.eps)
        self.weight = nn.Parameter(norm.weight.data, requires_grad=False)
        self.dtype, self.pieces, self.sink = dtype, pieces, sink

    def add(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, C) and what is still to be added to it → their sum, and its norm."""
        return Norm.apply(x, branch, self.weight, self.eps, self.dtype, self.pieces, self.sink, True)

    def of_sum(self, x: Tensor, branch: Tensor | None) -> Tensor:
        """Their sum's norm alone."""
        return Norm.apply(x, branch, self.weight, self.eps, self.dtype, self.pieces, self.sink, False)[1]


class FusedBlock(nn.Module):
    """`tid.model.Block`, between whose products nothing is written twice.

    The sum of residual stream and last branch is left to the next block's first kernel: both are handed on.
    """

    watch: Any = None  # see Decoder.observe

    def __init__(self, block: nn.Module, products: list[Callable], norms: list[FusedNorm], pieces: Pieces) -> None:
        super().__init__()
        self.num_heads, self.pieces = block.self_attn.num_heads, pieces
        self.qkv, self.out, self.gate_up, self.down = products
        self.attention_norm, self.mlp_norm = norms

    def forward(
        self, x: Tensor, branch: Tensor | None, rope: Rope, visible: Tensor | None, counts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x, h = self.attention_norm.add(x, branch)
        return self.finish(x, self.attend(self.qkv(h), rope, visible, counts))

    def attend(self, qkv: Tensor, rope: Rope, visible: Tensor | None, counts: Tensor | None) -> Tensor:
        """qkv (B, T, 3C) → (B, T, C)."""
        if self.pieces.attends(qkv, self.num_heads, visible):
            mass = self.watch is not None and self.watch.wants_attention
            y, received = ShortAttention.apply(qkv, self.num_heads, rope, self.pieces.kernels, mass, counts)
            if mass:
                self.watch.received.append(received)
            return y
        q, k, v = Heads.apply(qkv, self.num_heads, rope, self.pieces)
        if self.watch:
            self.watch.attention(self.pieces.attention_received, q, k, visible)
        return attention(q, k, v, visible).transpose(1, 2).flatten(2)

    def finish(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What follows attention: x and y (B, T, C) → x, and what is still to be added to it."""
        x, h = self.mlp_norm.add(x, self.out(y))
        return x, self.down(SwiGLU.apply(self.gate_up(h), self.pieces))

    def observe(self, watch: Any) -> None:
        self.watch = watch

    def with_mass(self, x: Tensor, branch: Tensor | None, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        x, h = self.attention_norm.add(x, branch)
        qkv = self.qkv(h)
        if self.pieces.attends(qkv, self.num_heads, None):
            y, mass = ShortAttention.apply(qkv, self.num_heads, rope, self.pieces.kernels, True, None)
        else:
            y, mass = self.pieces.attention_with_mass(*Heads.apply(qkv, self.num_heads, rope, self.pieces))
            y = y.transpose(1, 2).flatten(2)
        return *self.finish(x, y), mass


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """torch's attention (B, H, T, head_size). Short batches are quicker by FlashAttention than by cuDNN, long ones the
    other way round: 3.29 against 3.42 ms per step of 1,024 tokens, 30.6 against 30.1 of 16,384 (H200)."""
    if visible is None and q.is_cuda and q.shape[0] * q.shape[2] <= FEW_TOKENS:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, *OTHERS], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, visible, is_causal=visible is None)


def product(matrix: Tensor, sink: Any, x: Tensor) -> Tensor:
    if sink and torch.is_grad_enabled():
        sink.expect()
    return Product.apply(x, matrix, sink)


class Twin(Decoder):
    """`model` on the storage `flat` (N,), which holds its matrices one after the other in the order of `matrices_of`.

    sink: gives what takes the gradient of each matrix and, by "norm", of each norm, by its number, and of the
    embedding's rows, ("rows", 0); without it the twin takes no gradients.
    ready: events after which the embedding, and each block's matrices, are up to date; None when all are.
    """

    def __init__(
        self, model: Decoder, flat: Tensor, sink: MakeSink | None = None, pieces: Pieces | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.shape, self.ropes = model.shape, model.ropes
        self.pieces = pieces = pieces or Pieces()
        self.look_up, self.filled = pieces.look_up, pieces.filled
        sink = sink or (lambda kind, number: None)
        table, *matrices = split_like(flat, twin_shapes(model))
        self.embed_tokens = nn.Embedding(*table.shape, _weight=table)
        self.head_sink, self.row_sink = sink("matrix", 0), sink("rows", 0)
        self.embed_tokens.weight.requires_grad_(bool(self.row_sink))  # for autograd to come by; it makes no gradient
        products = [partial(product, m, sink("matrix", n)) for n, m in enumerate(matrices, 1)]
        norms = [
            FusedNorm(norm, flat.dtype, pieces, sink("norm", number))
            for number, norm in enumerate(m for m in model.modules() if isinstance(m, RMSNorm))
        ]
        self.blocks = nn.ModuleList(
            FusedBlock(block, products[4 * i : 4 * i + 4], norms[2 * i : 2 * i + 2], pieces)
            for i, block in enumerate(model.blocks)
        )
        self.norm = norms[-1]
        self.ready: list | None = None

    def wait(self, part: int) -> None:
        if self.ready:
            torch.cuda.current_stream().wait_event(self.ready[part])

    def embed(self, tokens: Tensor) -> Tensor:
        self.wait(0)
        if self.row_sink is None or not torch.is_grad_enabled():
            return self.pieces.rows_of(self.embed_tokens.weight, tokens)
        return Rows.apply(tokens, self.embed_tokens.weight, self.pieces, self.row_sink)

    def layers(self, x: Tensor, **how: Any) -> Tensor:
        return self.residual(x, **how).total

    def residual(
        self,
        x: Tensor | Residual,
        rope: Rope | None = None,
        visible: Tensor | None = None,
        counts: Tensor | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> Residual:
        x, branch = Residual.of(x)
        rope = self.rope(x.shape[1]) if rope is None else rope
        for number in range(*slice(first, last).indices(len(self.blocks))):
            self.wait(number + 1)
            x, branch = self.blocks[number](x, branch, rope, visible, counts)
        return Residual(x, branch)

    def attention_mass(self, x: Tensor) -> Tensor:
        rope, branch, received = self.rope(x.shape[1]), None, []
        for number, block in enumerate(self.blocks):
            self.wait(number + 1)
            x, branch, mass = block.with_mass(x, branch, rope)
            received.append(mass)
        return torch.stack(received)

    def nats(self, x: Tensor | Residual, targets: Tensor) -> Tensor:
        table, h = self.embed_tokens.weight.detach(), self.norm.of_sum(*Residual.of(x)).flatten(0, 1)
        if self.head_sink and torch.is_grad_enabled():
            self.head_sink.expect()
        watch = self.watch and self.watch.logits
        function = NatsByHand if "cross_entropy" in self.pieces.by_hand else Nats
        nats = function.apply(h, table, targets.flatten(), self.shape.vocab_size, self.pieces, self.head_sink, watch)
        return nats.view_as(targets)


def matrices_of(model: Decoder) -> list[nn.Parameter]:
    """The model's matrices in the order in which they are laid out."""
    return [p for p in model.parameters() if p.ndim == 2]


def twin_shapes(model: Decoder) -> list[torch.Size]:
    """Shapes of the twin's matrices: the embedding, then qkv, out, gate_up, down of each block."""
    width, inner = model.shape.hidden_size, model.shape.intermediate_size
    block = [(3 * width, width), (width, width), (2 * inner, width), (width, inner)]
    return [model.embed_tokens.weight.shape, *(torch.Size(s) for _ in model.blocks for s in block)]


def split_like(flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Views of `flat` (N,) of the given shapes, one after the other."""
    pieces = flat.split([shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
