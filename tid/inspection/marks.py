"""What scorers make of a text: for every token its score, rank and fate, and how well the model predicted it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tid.dropout import TokenDropout
from tid.model import Decoder
from tid.precision import autocast
from tid.schedules import NoDrop
from tid.scorers import Entropy, Evidence, Surprisal, of_token
from tid.selectors import ranks

SLIDER_RATES = tuple(step / 20 for step in range(1, 20))  # drop rates that a page can be set to
BATCH_TOKENS = {"cpu": 128, "cuda": 1024}  # scored at a time: at GPT-2's vocabulary 0.2 MB of logits each


@dataclass(frozen=True)
class Fate:
    """What one scorer does to N tokens, at one drop rate.

    scores (N,) float32; keep (N,) bool; rank (N,) int64, place by score among the droppable tokens of its sequence,
    1 the least important, 0 for a protected token; level (N,) int64, index in `rates` of the first drop rate that
    drops the token, len(rates) for one that stays.
    """

    scores: np.ndarray
    keep: np.ndarray
    rank: np.ndarray
    level: np.ndarray
    rates: tuple[float, ...]
    uses_labels: bool


@dataclass(frozen=True)
class Marks:
    """N tokens in reading order, cut into sequences as training cuts them. Arrays (N,).

    row, position: which sequence, and where in it; droppable: not protected; next: the token that follows.
    entropy, surprisal: of the token's own prediction, in nats, NaN at position 0, which nothing predicts;
    loss: of the prediction made at the token, in nats. fates: by scorer.
    """

    tokens: np.ndarray
    next: np.ndarray
    row: np.ndarray
    position: np.ndarray
    droppable: np.ndarray
    entropy: np.ndarray
    surprisal: np.ndarray
    loss: np.ndarray
    rate: float
    fates: dict[str, Fate]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Dropping:
    """How tokens are chosen. scorers: by the name to show; rate: of the droppable tokens of a sequence;
    counts (V,): of the training text; the rest as in TokenDropout."""

    scorers: dict[str, Any]
    selector: Any
    rate: float
    counts: Tensor
    protect_first: int
    protected_token: int
    seed: int

    def by(self, scorer: Any) -> TokenDropout:
        return TokenDropout(
            scorer, self.selector, NoDrop(), counts=self.counts, protect_first=self.protect_first,
            protected_token=self.protected_token, seed=self.seed,
        )  # fmt: skip


def sequences(stream: np.ndarray, context: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of a token stream (N + 1,), as training cuts it: (R, context) each, then what is left over.

    Raises ValueError for a stream of fewer than two tokens.
    """
    if len(stream) < 2:
        raise ValueError(f"the text has {len(stream)} tokens; at least 2 are needed")
    stream = torch.from_numpy(np.asarray(stream).astype(np.int64))
    whole = (len(stream) - 1) // context * context
    inputs, targets = stream[:-1], stream[1:]
    parts = [(inputs[:whole].view(-1, context), targets[:whole].view(-1, context))] if whole else []
    left = [(inputs[None, whole:], targets[None, whole:])] if whole < len(inputs) else []
    return parts + left


def mark(
    model: Decoder,
    stream: np.ndarray,
    context: int,
    dropping: Dropping,
    *,
    precision: str,
    first_sample: int = 0,
    batch_size: int | None = None,
) -> Marks:
    """Marks of every token of `stream` (N + 1,) but the last. Leaves the model, its gradients and every RNG alone.

    first_sample: running number of the first sequence; what is random about a choice is a function of it.
    batch_size: sequences at a time; only memory depends on it.
    """
    size = batch_size or max(1, BATCH_TOKENS[model.norm.weight.device.type] // context)
    marked, sample = [], first_sample
    for tokens, targets in sequences(stream, context):
        samples = torch.arange(sample, sample + len(tokens))
        marked.append(_mark_part(model, tokens, targets, samples, dropping, precision, size))
        sample += len(tokens)
    return _joined(marked, dropping)


def _mark_part(
    model: Decoder, tokens: Tensor, targets: Tensor, samples: Tensor, dropping: Dropping, precision: str, size: int
) -> dict:
    """Everything about sequences of one length, (R, T): arrays by name, and under "fates" by scorer."""
    device = model.norm.weight.device
    tokens, targets, samples = (part.to(device) for part in (tokens, targets, samples))
    at_once = {name: scorer for name, scorer in dropping.scorers.items() if scorer.needs == "logits"}
    together = Together((Surprisal("fresh", "predicting"), Entropy("fresh", "predicted"), *at_once.values()))
    batches = list(zip(*(part.split(size) for part in (tokens, targets, samples)), strict=True))
    loss, entropy, *scores = _scores(model, dropping.by(together), batches, precision).unbind(-1)
    scored = dict(zip(at_once, scores, strict=True))
    surprisal = of_token(loss, "predicted")
    for about_itself in (entropy, surprisal):
        about_itself[:, 0] = torch.nan
    fates = {}
    for name, scorer in dropping.scorers.items():
        chooser = dropping.by(scorer)
        if name not in scored:
            scored[name] = _scores(model, chooser, batches, precision)
        fates[name] = _fate(chooser, scored[name], tokens, samples, dropping.rate)
    arrays = {
        "tokens": tokens, "next": targets, "droppable": chooser.droppable(tokens), "entropy": entropy,
        "surprisal": surprisal, "loss": loss, "position": torch.arange(tokens.shape[1]).expand(tokens.shape),
    }  # fmt: skip
    return {name: array.cpu().numpy() for name, array in arrays.items()} | {"fates": fates}


@dataclass(frozen=True)
class Together:
    """Several scorers that read the same logits: scores (B, T, S)."""

    scorers: tuple
    needs: ClassVar = "logits"

    def __call__(self, e: Evidence) -> Tensor:
        return torch.stack([scorer(e) for scorer in self.scorers], dim=-1)


def _scores(model: Decoder, dropout: TokenDropout, batches: list[tuple], precision: str) -> Tensor:
    """Scores (R, T) float32 of batches of (tokens, targets, samples)."""
    with autocast(precision, model.norm.weight.device):
        return torch.cat([dropout.scores(model, *batch) for batch in batches])


def _fate(dropout: TokenDropout, scores: Tensor, tokens: Tensor, samples: Tensor, rate: float) -> dict:
    """Fate of tokens (R, T) as arrays: at the rate asked for, and at which of the slider's rates each would go."""
    rates = tuple(sorted({*SLIDER_RATES, rate} - {0.0}))
    keep = _keep(dropout, scores, tokens, samples, rate)
    level = torch.full(tokens.shape, len(rates), device=tokens.device)
    for index in reversed(range(len(rates))):
        level[~_keep(dropout, scores, tokens, samples, rates[index])] = index
    droppable = dropout.droppable(tokens)
    ordered = scores.masked_fill(~droppable, torch.inf)
    rank = torch.where(droppable, ranks(ordered, torch.zeros_like(scores)) + 1, 0)
    arrays = {"scores": scores, "keep": keep, "rank": rank, "level": level}
    return {name: array.cpu().numpy() for name, array in arrays.items()} | {"rates": rates}


def _keep(dropout: TokenDropout, scores: Tensor, tokens: Tensor, samples: Tensor, rate: float) -> Tensor:
    """Keep mask (R, T). A selector with a memory learns it from this very text, in a first call."""
    band = torch.tensor([rate, rate], dtype=torch.float64, device=tokens.device)
    dropout.state = {name: t.to(tokens.device) for name, t in dropout.selector.initial_state().items()}
    if not dropout.selector.exact:
        dropout.choose(scores, tokens, band, samples)
    return dropout.choose(scores, tokens, band, samples).keep


def _joined(parts: list[dict], dropping: Dropping) -> Marks:
    def flat(name: str, source: list[dict]) -> np.ndarray:
        return np.concatenate([part[name].reshape(-1) for part in source])

    lengths = [length for part in parts for length in [part["tokens"].shape[1]] * len(part["tokens"])]
    fates = {}
    for name, scorer in dropping.scorers.items():
        own = [part["fates"][name] for part in parts]
        arrays = [flat(key, own) for key in ("scores", "keep", "rank", "level")]
        fates[name] = Fate(*arrays, rates=own[0]["rates"], uses_labels=scorer.uses_labels)
    names = ("tokens", "next", "droppable", "entropy", "surprisal", "loss", "position")
    arrays = {name: flat(name, parts) for name in names}
    return Marks(**arrays, row=np.repeat(np.arange(len(lengths)), lengths), rate=dropping.rate, fates=fates)
