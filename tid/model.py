"""A GPT-2-sized decoder in Llama's architecture: RoPE, RMSNorm, SwiGLU, tied embeddings, no bias anywhere.

Parameter names and the rotary layout follow Hugging Face's ``LlamaForCausalLM``, so weights move over
unchanged (`tests/test_model.py` holds the logits of both together).
"""

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init

from tid.component import component
from tid.rows import Residual, filled, look_up

PAD_VOCAB_TO = 64  # rows of the embedding are padded to this multiple: matrix units want it
SMALLEST_WEIGHT = 1e-30  # of a norm, that its output is divided by


@component
class GPT:
    """Shape of the model. ``build()`` makes it; Llama's own names for the fields.

    Raises ValueError when the heads do not divide the width into an even head size (RoPE rotates pairs).
    """

    num_layers: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=2)]
    num_heads: Annotated[int, Field(ge=1)]
    intermediate_size: Annotated[int, Field(ge=1)]
    vocab_size: Annotated[int, Field(ge=2)]
    rope_theta: Annotated[float, Field(gt=0)]
    norm_eps: Annotated[float, Field(gt=0)]
    init_std: Annotated[float, Field(gt=0)]
    init_from: Annotated[str, Field(min_length=1)] | None  # training starts from this folder's weights (tid.llama)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size must be an even multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        return math.ceil(self.vocab_size / PAD_VOCAB_TO) * PAD_VOCAB_TO

    def build(self, seed: int) -> "Decoder":
        """The model in float32 on the CPU, initialised from `seed` alone."""
        return Decoder(self, torch.Generator().manual_seed(seed))

    def flops_per_token(self, context: int) -> float:
        """Forward and backward floating-point operations per token: 6 per matrix weight and the attention
        products, causal half not subtracted (Chowdhery et al. 2022, PaLM, appendix B). A forward pass is a third."""
        return self.num_layers * self.layer_flops_per_token(context) + 6.0 * self.hidden_size * self.vocab_size

    def layer_flops_per_token(self, context: int) -> float:
        """One layer's share of `flops_per_token`."""
        weights = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        return 6.0 * weights + 12.0 * self.hidden_size * context


Rope = tuple[Tensor, Tensor]  # cosines and sines


def rope_table(length: int, head_size: int, theta: float, device: torch.device) -> Rope:
    """Cosines and sines (length, head_size), float32, of rotary position embedding (Su et al. 2021)."""
    frequency = theta ** (-torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, H, T, head_size) by its positions' angles, with −sin back; pairs are (i, i + head_size / 2)."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), in float32 whatever the precision around it.

    `eps` matters: at a zeroed token the Jacobian is 1/√eps, which at a dtype's own eps ends a bf16 run in NaN.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def matrix(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias, not initialised yet: Decoder does that from its own generator."""
    return skip_init(nn.Linear, inputs, outputs, bias=False)


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions."""

    watch: Any = None  # see Decoder.observe

    def __init__(self, shape: GPT) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, matrix(shape.hidden_size, shape.hidden_size))

    def queries_keys_values(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) → q, k, v (B, H, T, head_size), the first two rotated to their positions."""
        q, k, v = (
            proj(x).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, *rope), rotate(k, *rope), v

    def forward(self, x: Tensor, rope: Rope, visible: Tensor | None) -> Tensor:
        """x (B, T, C) → (B, T, C). `visible` (B, 1, T, T) replaces the causal mask; True = may attend."""
        q, k, v = self.queries_keys_values(x, rope)
        if self.watch:
            self.watch.attention(attention_received, q, k, visible)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def with_mass(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention that each token receives from all queries, averaged over heads, (B, T)."""
        y, weights = explicit_attention(*self.queries_keys_values(x, rope))
        return self.o_proj(y.transpose(1, 2).flatten(2)), weights.mean(dim=1).sum(dim=1)


def attention_weights(q: Tensor, k: Tensor, visible: Tensor | None = None) -> Tensor:
    """Causal attention's weights (B, H, T, T) float32 of q and k (B, H, T, head_size): SDPA returns none.
    `visible` as in Attention.forward. Memory is B·H·T² floats, 6 MiB a layer at the reference shape."""
    length = q.shape[2]
    logits = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])
    if visible is None:
        visible = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    return logits.masked_fill(~visible, -torch.inf).softmax(dim=-1)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention that shows its weights: (B, H, T, head_size) each → output and weights (B, H, T, T)."""
    weights = attention_weights(q, k)
    return weights.to(v.dtype) @ v, weights


def attention_received(q: Tensor, k: Tensor, visible: Tensor | None = None) -> Tensor:
    """What each token receives from all queries, averaged over heads: (B, T) float32."""
    return attention_weights(q, k, visible).mean(dim=1).sum(dim=1)


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020)."""

    def __init__(self, shape: GPT) -> None:
        super().__init__()
        self.gate_proj = matrix(shape.hidden_size, shape.intermediate_size)
        self.up_proj = matrix(shape.hidden_size, shape.intermediate_size)
        self.down_proj = matrix(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: GPT) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, rope: Rope, visible: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, visible)
        return x + self.mlp(self.post_attention_layernorm(x))

    def observe(self, watch: Any) -> None:
        """As Decoder.observe."""
        self.self_attn.watch = watch

    def with_mass(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention that each token receives, (B, T) float32."""
        y, mass = self.self_attn.with_mass(self.input_layernorm(x), rope)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), mass


class Decoder(nn.Module):
    """The model in three parts, so that tokens can be dropped between them: `embed`, `layers`, `logits`.

    Initialisation: every matrix is N(0, init_std²), the two that write into the residual stream
    (o_proj, down_proj) N(0, init_std² / (2 · num_layers)) as in GPT-2; norms are one.
    """

    look_up, filled = staticmethod(look_up), staticmethod(filled)
    watch: Any = None  # see `observe`

    def __init__(self, shape: GPT, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.ropes: dict[tuple, Rope] = {}
        rows = torch.empty(shape.padded_vocab_size, shape.hidden_size)  # skip_init would load torch's compiler
        self.embed_tokens = nn.Embedding(*rows.shape, _weight=rows)  # and output matrix
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                assert name.endswith("norm.weight"), f"{name} has no initialisation rule"
                continue  # norms start at one
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = self.shape.init_std / math.sqrt(2 * self.shape.num_layers) if residual else self.shape.init_std
            parameter.normal_(0.0, std, generator=generator)
        self.embed_tokens.weight[self.shape.vocab_size :] = 0.0

    @property
    def parameter_count(self) -> int:
        """Trainable parameters; the tied matrix counts once, padding rows not at all."""
        padding = self.shape.padded_vocab_size - self.shape.vocab_size
        return sum(p.numel() for p in self.parameters()) - padding * self.shape.hidden_size

    def rope(self, length: int) -> Rope:
        """Rotary cosines and sines (T, head_size) of positions 0 … T-1; made once per length and device."""
        key = (length, self.norm.weight.device)
        if key not in self.ropes:
            head_size = self.shape.hidden_size // self.shape.num_heads
            self.ropes[key] = rope_table(length, head_size, self.shape.rope_theta, key[1])
        return self.ropes[key]

    def observe(self, watch: Any) -> None:
        """Have `watch` (tid.score_cache.Watch) see what the passes from here on compute; None: nobody."""
        self.watch = watch
        for block in self.blocks:
            block.observe(watch)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings: (B, T) int64 → (B, T, C) float32."""
        return self.embed_tokens(tokens).float()

    def layers(
        self, x: Tensor, rope: Rope | None = None, visible: Tensor | None = None, counts: Tensor | None = None,
        first: int = 0, last: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Blocks `first` … `last`-1 on x (B, T, C). `rope` gives other positions than 0 … T-1, (B, 1, T, head_size);
        counts (B,) the tokens of each sequence, if it ends in filling, which only has to stay finite."""
        rope = self.rope(x.shape[1]) if rope is None else rope
        if self.watch and not first:
            self.watch.inputs(x)
        for block in self.blocks[first:last]:
            x = block(x, rope, visible)
        return x

    def residual(self, x: Tensor | Residual, **how: Any) -> Residual:
        """As `layers`, but the last sum may be left to what comes next: `nats`, or more layers."""
        return Residual(self.layers(Residual.of(x).total, **how))

    def attention_mass(self, x: Tensor) -> Tensor:
        """Attention probability that each token of x (B, T, C) receives in each layer, averaged over heads and summed
        over queries: (L, B, T) float32."""
        rope, received = self.rope(x.shape[1]), []
        for block in self.blocks:
            x, mass = block.with_mass(x, rope)
            received.append(mass)
        return torch.stack(received)

    def logits(self, x: Tensor) -> Tensor:
        """Last layer's output (B, T, C) → next-token logits (B, T, vocab_size); padding is cut off."""
        return self.padded_logits(x)[..., : self.shape.vocab_size]

    def padded_logits(self, x: Tensor) -> Tensor:
        """Last layer's output (B, T, C) → logits (B, T, rows of the embedding); those of padding mean nothing."""
        weight = self.embed_tokens.weight  # on a CPU without padding: to cut its logits off is to copy all
        return F.linear(self.norm(x), weight[: self.shape.vocab_size] if x.device.type == "cpu" else weight)

    def nats(self, x: Tensor | Residual, targets: Tensor) -> Tensor:
        """Last layer's output (B, T, C) and targets (B, T) int64 → cross-entropy of each prediction, (B, T) float32."""
        padded = self.padded_logits(Residual.of(x).total)
        if self.watch:
            self.watch.logits(padded, self.shape.vocab_size)
        return token_nats(padded[..., : self.shape.vocab_size], targets)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 → logits (B, T, vocab_size)."""
        return self.logits(self.layers(self.embed(tokens)))


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each prediction in nats: (B, T, V) and (B, T) int64 → (B, T) float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
