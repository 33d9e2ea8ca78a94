"""scorer.source=cached: importance from the pass that trained on a token an epoch ago, so that scoring costs no pass.

While a step trains, a `Watch` scores its tokens from what the pass computes anyway, and a `ScoreCache` keeps the scores
on the device until the sequence comes up again:

- In the first epoch nothing is known of a sequence: it is dropped from at random, at the rate of the schedule (kept
  whole by a selector that drops no exact count).
- A pass with dropped tokens tells nothing of how important these would have been, so they keep their older score,
  unless the score is about the token's own prediction (of=predicted) or the pass saw all tokens (loss_mask, mask_aux).
  Where the others' scores rise meanwhile, the same tokens go again and again.
- A token that never took part has no score yet, and counts as the one of its sequence that the selector drops last.

It takes 8 bytes for each token of each sequence, on the device and in every checkpoint.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tid import randomness
from tid.data.batches import Batches
from tid.dropout import TokenDropout
from tid.scorers import Evidence
from tid.update import Update


class Recalled(NamedTuple):
    """scores (B, T) float32, all NaN in the rows of which nothing is known; known (B, T) bool, which tokens have one
    of their own, and these scores' ages (B, T) in steps."""

    scores: Tensor
    known: Tensor
    ages: Tensor

    def counts(self, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the tokens that may be dropped, (B, T) bool, as 0-dim tensors: rows of which nothing is known, tokens
        without a score, and the sum of the other scores' ages."""
        unseen = ~self.known.any(dim=1, keepdim=True)
        return (
            (unseen & allowed).any(dim=1).sum(),
            (allowed & ~self.known).sum(),
            torch.where(allowed & self.known, self.ages, 0).sum(),
        )


def first_epoch(sequences: int, samples_per_step: int, bands: np.ndarray) -> str | None:
    """What is to be said of a run's first epoch, in which nothing is known; bands (total_steps, 2): its drop rates."""
    steps = -(-sequences // samples_per_step)
    if not bands[steps:].any():
        return (
            f"warning: all dropping is within the first {steps:,} steps, the first epoch: scorer.source=cached knows "
            "no scores there, so that every token goes at random; use scorer.source=fresh"
        )
    drops = bands[:steps].any()
    return f"until step {steps:,}, in its first epoch, it drops at random: no scores are known" if drops else None


class ScoreCache:
    """Scores (S, T) of all sequences of the text, NaN where there is none, and the steps at which they were taken."""

    def __init__(self, dropout: TokenDropout, mode: Any, batches: Batches) -> None:
        self.dropout, self.mode, self.batches = dropout, mode, batches
        size, device = (batches.num_sequences, batches.context), batches.stream.device
        self.scores = torch.full(size, torch.nan, device=device)
        self.taken = torch.zeros(size, dtype=torch.int32, device=device)

    @property
    def renews_dropped(self) -> bool:
        """Does a pass tell the scores of the tokens that were dropped from it, too?"""
        return self.mode.sees_all or self.dropout.scorer.about_prediction

    @torch.no_grad()
    def recall(self, samples: Tensor, step: Tensor) -> Recalled:
        """What is known of the tokens of samples (B,) at step ()."""
        sequences = self.batches.sequences_of(samples)
        found = self.scores.index_select(0, sequences)
        known = ~found.isnan()
        unseen = ~known.any(dim=1, keepdim=True)
        if self.dropout.selector.keeps_highest:
            safe = found.masked_fill(~known, -torch.inf).amax(dim=1, keepdim=True)
        else:
            safe = found.masked_fill(~known, torch.inf).amin(dim=1, keepdim=True)
        scores = torch.where(known, found, torch.where(unseen, torch.nan, safe))
        return Recalled(scores, known, step - self.taken.index_select(0, sequences))

    @torch.no_grad()
    def store(self, samples: Tensor, scores: Tensor, keep: Tensor | None, step: Tensor) -> None:
        """Keep the scores (B, T) of samples (B,), of a pass that dropped what `keep` says, None for nothing. A score
        that is not finite is not kept."""
        sequences = self.batches.sequences_of(samples)
        fresh = scores.isfinite()
        if keep is not None and not self.renews_dropped:
            fresh = fresh & keep
        # Where an epoch ends within a batch, a sequence may be there twice. Rows that are written to the same place
        # must be equal: each takes the last copy that is fresh, (B, 1, T) of the (B, B) pairs.
        numbers = torch.arange(len(samples), device=samples.device)
        same = (sequences[:, None] == sequences)[:, :, None] & fresh
        latest = torch.where(same, numbers[:, None], -1).amax(dim=1)
        rows, any_ = latest.clamp_min(0), latest >= 0
        kept, taken = (table.index_select(0, sequences) for table in (self.scores, self.taken))
        self.scores.index_copy_(0, sequences, torch.where(any_, scores.gather(0, rows), kept))
        self.taken.index_copy_(0, sequences, torch.where(any_, step.int(), taken))

    def remarks(self, samples_per_step: int, bands: np.ndarray) -> list[str]:
        """What is to be said of a run that goes by these scores; bands (total_steps, 2): its drop rates."""
        said = [first_epoch(self.batches.num_sequences, samples_per_step, bands)]
        if not self.renews_dropped:
            said.append(
                "a dropped token keeps the score of the last pass that saw it, and may go by it again and again: "
                "score_age_steps tells"
            )
        return list(filter(None, said))

    def state_dict(self) -> dict[str, Tensor]:
        return {"scores": self.scores, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.scores.copy_(state["scores"])
        self.taken.copy_(state["taken"])


@contextmanager
def watching(
    dropout: TokenDropout, updating: Update, tokens: Tensor, targets: Tensor, samples: Tensor, beside: Any
) -> Iterator["Watch"]:
    """Have the passes within watched: gives the Watch that scores their tokens."""
    model = updating.compute
    noise = dropout.uniform(randomness.SCORES, samples, tokens.shape[1])
    evidence = replace(dropout.evidence(model, tokens, targets, updating.table), noise=noise)
    watch = Watch(dropout, evidence, model.shape.num_layers, beside)
    model.observe(watch)
    try:
        yield watch
    finally:
        model.observe(None)


class Watch:
    """Looks on while a model trains on one micro-batch (`Decoder.observe`), and scores its tokens. Of several passes it
    sees the first.

    beside: the context for work that need not delay the pass.
    """

    def __init__(self, dropout: TokenDropout, evidence: Evidence, num_layers: int, beside: Any) -> None:
        self.dropout, self.e, self.num_layers, self.beside = dropout, evidence, num_layers, beside
        self.received: list[Tensor] = []
        self.found: Tensor | None = None
        self.hooked = False

    def inputs(self, x: Tensor) -> None:
        """x (B, T, C): the embeddings as they enter the first layer. Twins need not tell: their update knows."""
        if self.wants_gradients and not self.hooked:
            self.hooked = True
            x.register_hook(self.gradient)

    def gradient(self, gradient: Tensor) -> None:
        self.found = gradient.detach().float()

    @property
    def wants_gradients(self) -> bool:
        """Are its scores known only after the backward pass?"""
        return self.dropout.scorer.needs == "gradients"

    @property
    def seen(self) -> list[Tensor]:
        """What the scores of a forward pass are made from."""
        return self.received if self.found is None else [self.found]

    @property
    def wants_attention(self) -> bool:
        """Does it still wait for what the tokens of a layer receive?"""
        return self.dropout.scorer.needs == "attention" and len(self.received) < self.num_layers

    def attention(self, received: Any, q: Tensor, k: Tensor, visible: Tensor | None) -> None:
        """A layer's queries and keys; `received` makes the mass of each key of them."""
        if self.wants_attention:
            with self.beside(q, k, *([] if visible is None else [visible])), torch.no_grad():
                self.received.append(received(q.detach(), k.detach(), visible))

    @torch.no_grad()
    def logits(self, padded: Tensor, vocabulary: int) -> None:
        """Logits (B, T, rows) or (B · T, rows), of which the first `vocabulary` columns are tokens. All at once:
        compiled, a score is made while they are read; eager it takes several times their memory."""
        if self.dropout.scorer.needs == "logits" and self.found is None:
            shaped = padded.detach().view(*self.e.tokens.shape, -1)
            self.found = self.dropout.from_logits(shaped, vocabulary, self.e)

    @torch.no_grad()
    def scores(self, per_loss: Tensor | None = None, gradient: Tensor | None = None) -> Tensor:
        """Scores (B, T); those of gradients after the backward pass. per_loss: what turns its gradients into those of
        the summed loss; gradient: that of the embeddings, where the update knows it."""
        needs = self.dropout.scorer.needs
        if needs == "logits":
            return self.found
        if needs == "attention":
            return self.dropout.scorer(replace(self.e, attention=torch.stack(self.received))).float()
        found = self.found if gradient is None else gradient.view(*self.e.tokens.shape, -1).float()
        return self.dropout.scorer(replace(self.e, gradients=found * per_loss)).float()


@functools.cache
def leave_attention_to_eager() -> None:
    """Have torch.compile break off at `Watch.attention`. No decorator: it would import the compiler, and every command
    would start a second later."""
    Watch.attention = torch.compiler.disable(Watch.attention)
