"""GPT-2 (Radford et al. 2019) in plain PyTorch, as nanoGPT has it by default: no biases, no dropout, the embedding also
as output matrix.

It is here to be timed: a model of our depth, width and vocabulary in the code that most people start from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tid.model import GPT


class Layer(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT2(nn.Module):
    """Logits (B, T, V) for tokens (B, T); V is the vocabulary rounded up, as ours."""

    def __init__(self, shape: GPT, context: int) -> None:
        super().__init__()
        width = shape.hidden_size
        self.tokens, self.positions = nn.Embedding(shape.padded_vocab_size, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(Layer(width, shape.num_heads) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=shape.init_std)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tokens.weight)


def flops_per_token(shape: GPT, context: int) -> float:
    """Of training: ours, with two matrices of 4 · width in place of SwiGLU's three."""
    width = shape.hidden_size
    return shape.flops_per_token(context) + 6 * shape.num_layers * width * (8 * width - 3 * shape.intermediate_size)
