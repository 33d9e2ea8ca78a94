"""Continue a text: one token at a time, several samples at once, with the keys and values of the past kept."""

import codecs
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tid.model import Attention, Decoder, Rope
from tid.precision import autocast


class Cache:
    """Keys and values (B, H, context, head_size) of the tokens read so far, for every layer; room for `context`."""

    def __init__(self, model: Decoder, context: int) -> None:
        self.context, self.length = context, 0
        self.rope = model.rope(context)
        self.keys: list[Tensor | None] = [None] * model.shape.num_layers
        self.values: list[Tensor | None] = [None] * model.shape.num_layers

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of T new tokens, (B, H, T, head_size) each; returns those of all tokens so far."""
        end = self.length + keys.shape[2]
        if self.keys[layer] is None:
            room = (*keys.shape[:2], self.context, keys.shape[3])
            self.keys[layer], self.values[layer] = keys.new_zeros(room), values.new_zeros(room)
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def read(model: Decoder, tokens: Tensor, cache: Cache) -> Tensor:
    """Read tokens (B, T), all of a text's beginning or one more; logits (B, V) float32 of the token after them."""
    assert cache.length == 0 or tokens.shape[1] == 1
    cos, sin = (table[cache.length : cache.length + tokens.shape[1]] for table in cache.rope)
    x = model.embed(tokens)
    for layer, block in enumerate(model.blocks):
        x = x + attend(block.self_attn, block.input_layernorm(x), (cos, sin), cache, layer)
        x = x + block.mlp(block.post_attention_layernorm(x))
    cache.length += tokens.shape[1]
    return model.logits(x[:, -1:])[:, 0].float()


def attend(attention: Attention, x: Tensor, rope: Rope, cache: Cache, layer: int) -> Tensor:
    """`Attention.forward` of new tokens x (B, T, C), with the cache's tokens before them."""
    q, k, v = attention.queries_keys_values(x, rope)
    k, v = cache.extend(layer, k, v)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)
    return attention.o_proj(y.transpose(1, 2).flatten(2))


def choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """The next token of each row of logits (B, V): (B,) int64.

    temperature: 0, or less than float32 can divide by, takes the likeliest; else logits are divided by it. top_k: only
    the k likeliest tokens; top_p: only the smallest set whose probabilities sum to at least top_p (nucleus sampling,
    Holtzman et al. 2020).
    """
    if temperature < torch.finfo(torch.float32).tiny:
        return logits.argmax(dim=-1)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature  # 0 at most: no tiny one makes NaN
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None:
        ordered, tokens = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(dim=-1)
        beyond = probability.cumsum(dim=-1) - probability >= top_p
        kept = ordered.masked_fill(beyond, -torch.inf)
        logits = torch.empty_like(kept).scatter(-1, tokens, kept)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: Tensor,
    *,
    context: int,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    end: int,
    generator: torch.Generator,
    precision: str = "fp32",
) -> Iterator[Tensor]:
    """Continuations of prompt (T,) int64, T ≥ 1: yields (num_samples,) int64 per new token, until all have come to
    the token `end` or max_new_tokens are made. A sample that has ended goes on with `end`.

    The model never sees more than `context` tokens. When they are full the oldest are forgotten, all but context // 2,
    and the rest is read again from position 0; of a longer prompt the last `context` tokens are read.
    generator: on the model's device; the same one gives the same samples.
    """
    tokens = prompt[-context:].to(model.norm.weight.device).expand(num_samples, -1)
    cache, unread = Cache(model, context), tokens
    ended = torch.zeros(num_samples, dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        if cache.length + unread.shape[1] > context:
            tokens = tokens[:, -max(1, context // 2) :]
            cache, unread = Cache(model, context), tokens
        with autocast(precision, tokens.device):
            logits = read(model, unread, cache)
        unread = choose(logits, temperature, top_k, top_p, generator).masked_fill(ended, end)[:, None]
        tokens = torch.cat((tokens, unread), dim=1)
        ended |= unread[:, 0] == end
        yield unread[:, 0]
        if ended.all():
            return


class TextStream:
    """Tokens to text as they come: a character whose bytes are spread over several tokens appears with the last.

    Bytes that are no UTF-8 appear as U+FFFD. encoding: a tiktoken.Encoding; end: this token has no text.
    """

    def __init__(self, encoding, end: int) -> None:
        self.encoding, self.end = encoding, end
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that is complete with this token, often one word, possibly none."""
        if token == self.end:
            return self.finish()
        return self.decoder.decode(self.encoding.decode_single_token_bytes(token))

    def finish(self) -> str:
        """What is left of an unfinished character."""
        return self.decoder.decode(b"", final=True)
