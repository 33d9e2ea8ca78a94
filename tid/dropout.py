"""Token-importance dropout: gather what the scorer needs, score, select. One object per run."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tid import randomness
from tid.model import GPT, Decoder
from tid.reductions import PADDING
from tid.schedules import NoDrop, rate_band
from tid.scorers import Evidence, NoScorer

NEEDS = ("nothing", "embeddings", "logits", "attention", "gradients")
LOGIT_CHUNK_BYTES = 1 << 30  # scoring from logits goes row by row once (B, T, V) float32 would be larger


def check_combination(scorer: Any, selector: Any, mode: Any, schedule: Any, shape: GPT, protect_first: int) -> None:
    """Raise ValueError, with the reason, for components that make no sense together."""
    if isinstance(scorer, NoScorer) or isinstance(schedule, NoDrop):
        return  # the baseline: the rest is not used
    for thousandth in range(1001):
        rate_band(schedule, thousandth / 1000)  # refuses what leaves [0, 1)
    if getattr(scorer, "needs", None) not in NEEDS:
        needs = repr(scorer.needs) if hasattr(scorer, "needs") else "what it does not say"
        raise ValueError(f"scorer {type(scorer).__name__} needs {needs}: wanted one of {', '.join(NEEDS)}")
    if cached(scorer) and scorer.needs in ("nothing", "embeddings"):
        raise ValueError(
            f"scorer.source=cached: scorer {type(scorer).__name__} needs {scorer.needs!r}, so there is no pass to "
            "spare: use scorer.source=fresh"
        )
    if cached(scorer) and scorer.needs == "attention" and mode.exact_counts:
        raise ValueError(
            f"scorer.source=cached: drop_mode {type(mode).__name__} trains most layers on the kept tokens alone, whose "
            "attention says nothing of the others: use scorer.source=fresh or another drop_mode"
        )
    if cached(scorer) and scorer.needs == "gradients" and not mode.whole_loss:
        raise ValueError(
            f"scorer.source=cached: drop_mode {type(mode).__name__} trains on a part of the loss, whose gradient is "
            "not the score: use scorer.source=fresh or another drop_mode"
        )
    mode.check(shape)
    if getattr(scorer, "of", None) == "predicted" and protect_first < 1:
        raise ValueError(
            f"scorer {type(scorer).__name__} with of=predicted has no score for the first position, which nothing "
            "predicts: set protect_first=1 or more, or scorer.of=predicting"
        )
    if mode.exact_counts and not selector.exact:
        raise ValueError(
            f"drop_mode {type(mode).__name__} gathers a known number of tokens, but selector "
            f"{type(selector).__name__} only approaches the rate: use selector=lowest, highest or sampled"
        )


def cached(scorer: Any) -> bool:
    """Are a scorer's scores those of an epoch ago (tid.score_cache)?"""
    return getattr(scorer, "source", "fresh") == "cached"


def embedding_gradients(model: Decoder, tokens: Tensor, targets: Tensor) -> Tensor:
    """∂L/∂e_t for every input token, (B, T, C) float32, L the loss summed over all predictions.

    `torch.autograd.grad` leaves every `.grad` alone. The sum, not the mean, keeps fp16 gradients away from
    underflow without any scale, so the scores do not depend on the GradScaler's.
    """
    with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):  # see tid.gradients
        inputs = model.embed(tokens).detach().requires_grad_()
        loss = model.nats(model.residual(inputs), targets).sum()
        return torch.autograd.grad(loss, inputs)[0].float()


def score_flops(shape: GPT, context: int, needs: str) -> float:
    """Floating-point operations of scoring one sequence, from the training pass's: a forward pass is a third of it
    (attention needs no output matrix), a backward pass that stops at the inputs another third."""
    layers, whole = shape.num_layers * shape.layer_flops_per_token(context), shape.flops_per_token(context)
    thirds = {"nothing": 0.0, "embeddings": 0.0, "logits": whole, "attention": layers, "gradients": 2 * whole}
    return thirds[needs] / 3 * context


@dataclass
class Choice:
    """keep (B, T) bool; scores (B, T) float32 as the scorer gave them; allowed (B, T) bool, what may be dropped;
    bad (B, 1) bool, rows with a score that is not finite. Its counts, 0-dim, are made when asked for: the pass on what
    is kept waits for none."""

    keep: Tensor
    scores: Tensor
    allowed: Tensor
    bad: Tensor

    @property
    def dropped(self) -> Tensor:
        return (~self.keep).sum()

    @property
    def droppable(self) -> Tensor:
        return self.allowed.sum()

    @property
    def bad_rows(self) -> Tensor:
        return self.bad.sum()


class TokenDropout:
    """Chooses which input tokens of a batch are dropped.

    `counts` (V,) are the training text's token counts, `protected_token` (EOT) is never dropped, nor are the first
    `protect_first` positions. `state` is the selector's memory; it belongs into the checkpoint.
    """

    def __init__(
        self,
        scorer: Any,
        selector: Any,
        schedule: Any,
        *,
        counts: Tensor,
        protect_first: int,
        protected_token: int,
        seed: int,
    ) -> None:
        self.scorer, self.selector, self.schedule = scorer, selector, schedule
        self.counts, self.seed = counts, seed
        self.protect_first, self.protected_token = protect_first, protected_token
        self.state = {name: t.to(counts.device) for name, t in selector.initial_state().items()}

    def band(self, progress: float) -> tuple[float, float]:
        """Lowest and highest drop rate that a sequence may draw at `progress`."""
        return (0.0, 0.0) if isinstance(self.scorer, NoScorer) else rate_band(self.schedule, progress)

    def row_rates(self, band: Tensor, samples: Tensor) -> Tensor:
        """Drop rate (B,) float64 of each sequence; `band` holds (low, high), `samples` (B,) its running numbers."""
        u = randomness.uniform(self.seed, randomness.ROW_RATE, samples, 1)[:, 0].double()
        return torch.lerp(band[0].expand_as(u), band[1].expand_as(u), u)

    def uniform(self, purpose: int, samples: Tensor, length: int) -> Tensor:
        """The run's random numbers (B, length) in [0, 1) for a purpose: tid.randomness."""
        return randomness.uniform(self.seed, purpose, samples, length)

    def droppable(self, tokens: Tensor) -> Tensor:
        """(B, T) bool: everything but EOT and the first positions."""
        allowed = tokens != self.protected_token
        allowed[:, : self.protect_first] = False
        return allowed

    def compile(self) -> None:
        """Have torch fuse scoring from logits, the selection, and what is drawn for them, from here on."""
        self.from_last_layer = torch.compile(self.from_last_layer, dynamic=False)
        self.from_logits = torch.compile(self.from_logits, dynamic=False)
        self.choose = torch.compile(self.choose, dynamic=False)
        self.uniform = torch.compile(self.uniform, dynamic=False)

    def scores(
        self, model: Decoder, tokens: Tensor, targets: Tensor, samples: Tensor, table: Tensor | None = None
    ) -> Tensor:
        """Importance (B, T) float32 from the model as it stands, on un-dropped inputs. Touches no `.grad` or batch.

        table: the float32 token embeddings, (V or more, C); without it the model's own.
        """
        e = self.evidence(model, tokens, targets, table)
        needs = self.scorer.needs
        if needs == "logits":
            return self.logit_scores(model, e, samples)
        e.noise = self.uniform(randomness.SCORES, samples, tokens.shape[1])
        if needs == "gradients":
            e.gradients = embedding_gradients(model, tokens, targets)
        elif needs == "attention":
            with torch.no_grad():
                e.attention = model.attention_mass(model.embed(tokens))
        with torch.no_grad():
            return self.scorer(e).float()

    def evidence(self, model: Decoder, tokens: Tensor, targets: Tensor, table: Tensor | None = None) -> Evidence:
        """What is known of a batch before any pass; `table` as in `scores`."""
        table = model.embed_tokens.weight if table is None else table
        embeddings = None if self.scorer.needs == "nothing" else table[: model.shape.vocab_size]
        return Evidence(tokens, targets, embeddings, self.counts, torch.empty(0))

    @torch.no_grad()
    def logit_scores(self, model: Decoder, e: Evidence, samples: Tensor) -> Tensor:
        """Scores (B, T) of a scorer that needs logits, in as many row chunks as keep the logits small."""
        x = model.layers(model.embed(e.tokens))
        row_bytes = 4 * e.tokens.shape[1] * model.shape.vocab_size
        size = max(1, LOGIT_CHUNK_BYTES // row_bytes)
        per_row = zip(*(t.split(size) for t in (x, e.tokens, e.targets, samples)), strict=True)
        return torch.cat([
            self.from_last_layer(model, part, replace(e, tokens=tokens, targets=targets), rows)
            for part, tokens, targets, rows in per_row
        ])  # fmt: skip

    def from_last_layer(self, model: Decoder, x: Tensor, e: Evidence, samples: Tensor) -> Tensor:
        """Scores of rows whose last layer's output is x (B, T, C)."""
        noise = self.uniform(randomness.SCORES, samples, x.shape[1])  # free when compiled, unless it is used
        return self.from_logits(model.padded_logits(x), model.shape.vocab_size, replace(e, noise=noise))

    def from_logits(self, padded: Tensor, vocabulary: int, e: Evidence) -> Tensor:
        """Scores of rows of logits (B, T, rows), of which the first `vocabulary` columns are tokens."""
        padded = padded.float()
        if not padded.is_cuda:  # where rows of an odd length are as quick, and masking is a copy
            return self.scorer(replace(e, logits=padded[..., :vocabulary])).float()
        padding = torch.arange(padded.shape[-1], device=padded.device) >= vocabulary
        padded = padded.masked_fill(padding, PADDING)
        return self.scorer(replace(e, logits=padded[..., :vocabulary], padded_logits=padded)).float()

    @torch.no_grad()
    def choose(self, scores: Tensor, tokens: Tensor, band: Tensor, samples: Tensor) -> Choice:
        """Keep mask for scores (B, T).

        A score that is not finite decides nothing: its whole row is `bad` and chosen at random,
        or kept whole by a selector that drops no exact count.
        """
        if scores.shape != tokens.shape:
            wanted, got = tuple(tokens.shape), tuple(scores.shape)
            raise ValueError(f"scorer {type(self.scorer).__name__}: wanted scores (B, T) of shape {wanted}, got {got}")
        noise = randomness.uniform(self.seed, randomness.SELECTION, samples, tokens.shape[1])
        droppable = self.droppable(tokens)
        bad = (~scores.isfinite() & droppable).any(dim=1, keepdim=True)
        ranked = torch.where(bad, noise, scores.masked_fill(~droppable, 0.0))
        chosen_from = droppable if self.selector.exact else droppable & ~bad
        keep = self.selector(ranked, chosen_from, self.row_rates(band, samples), noise, self.state)
        return Choice(keep, scores, droppable, bad)
