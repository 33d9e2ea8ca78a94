"""The same model on other storage: 16-bit copies of the matrices, and one product where the plain model has several.

A `Twin` is to `Decoder` what a fast path is to its reference: the same functions of the same weights. Its matrices are
views that somebody else keeps up to date; q, k and v are one matrix, and so are gate and up, because each group lies
in one piece.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tid.model import Decoder, RMSNorm, Rope, explicit_attention, rotate, token_nats


class FusedBlock(nn.Module):
    """`tid.model.Block` with q, k, v in one product, and gate and up in another."""

    def __init__(self, block: nn.Module, matrices: list[Tensor], trainable: bool) -> None:
        super().__init__()
        self.num_heads = block.self_attn.num_heads
        self.qkv, self.out, self.gate_up, self.down = (nn.Parameter(m, requires_grad=trainable) for m in matrices)
        self.attention_norm = shared_norm(block.input_layernorm, trainable)
        self.mlp_norm = shared_norm(block.post_attention_layernorm, trainable)

    def queries_keys_values(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        qkv = F.linear(self.attention_norm(x), self.qkv).unflatten(2, (3, self.num_heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return rotate(q, *rope), rotate(k, *rope), v

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows attention: x the residual stream (B, T, C), y (B, H, T, head_size)."""
        x = x + F.linear(y.transpose(1, 2).flatten(2), self.out)
        gate, up = F.linear(self.mlp_norm(x), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)

    def forward(self, x: Tensor, rope: Rope, visible: Tensor | None = None) -> Tensor:
        q, k, v = self.queries_keys_values(x, rope)
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, visible, is_causal=visible is None))

    def with_mass(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        y, weights = explicit_attention(*self.queries_keys_values(x, rope))
        return self.finish(x, y), weights.mean(dim=1).sum(dim=1)


def shared_norm(norm: RMSNorm, trainable: bool) -> RMSNorm:
    """A norm on the same weight, with a gradient of its own."""
    twin = RMSNorm(norm.weight.shape[0], norm.eps)
    twin.weight = nn.Parameter(norm.weight.data, requires_grad=trainable)
    return twin


class Twin(Decoder):
    """`model` on the storage `flat` (N,), which holds its matrices one after the other in the order of `matrices_of`.

    With `trainable` its parameters take gradients: `self.matrices` in the order of `flat`, `self.vectors` the norms.
    """

    def __init__(self, model: Decoder, flat: Tensor, trainable: bool) -> None:
        nn.Module.__init__(self)
        self.shape, self.ropes = model.shape, model.ropes
        pieces = iter(split_like(flat, twin_shapes(model)))
        table = next(pieces)
        self.embed_tokens = nn.Embedding(*table.shape, _weight=table)
        self.embed_tokens.weight.requires_grad_(trainable)
        self.blocks = nn.ModuleList(
            FusedBlock(block, [next(pieces) for _ in range(4)], trainable) for block in model.blocks
        )
        self.norm = shared_norm(model.norm, trainable)
        self.matrices = [p for p in self.parameters() if p.ndim == 2]
        self.vectors = [p for p in self.parameters() if p.ndim == 1]

    def nats(self, x: Tensor, targets: Tensor) -> Tensor:
        """As `Decoder.nats`. Padding is masked, not cut off: rows of the padded length can be read in whole vectors,
        which made the loss of 16,384 predictions three times as fast (H200)."""
        logits = F.linear(self.norm(x), self.embed_tokens.weight).float()
        padding = torch.arange(logits.shape[-1], device=logits.device) >= self.shape.vocab_size
        return token_nats(logits.masked_fill(padding, -torch.inf), targets)


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
