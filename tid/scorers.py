"""Importance scores: which input tokens matter? Higher = more important = kept.

A scorer is a component with two declarations and one method:

    needs         what it reads beyond the tokens: "nothing" | "embeddings" | "logits" | "attention" | "gradients".
                  Only what is needed is computed; for the first two the model does not run at all.
    uses_labels   does the score of token t depend on any token after t?
    __call__(e)   Evidence → scores (B, T), float32.

`tests/test_scorers.py` holds every scorer in conf/scorer to both declarations.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tid import reductions
from tid.component import component

Of = Literal["predicted", "predicting"]


@dataclass
class Evidence:
    """What a scorer may look at, from one un-dropped pass, or with source=cached from the pass that trains. V is the
    vocabulary, C the width, L the layers."""

    tokens: Tensor  # (B, T) int64, the inputs
    targets: Tensor  # (B, T) int64, targets[t] is the token after tokens[t]
    embeddings: Tensor | None  # (V, C) float32, the token embedding table; None if needs = "nothing"
    counts: Tensor  # (V,) float32, occurrences of each token in the training text
    noise: Tensor  # (B, T) uniform [0, 1), a fixed function of seed and sample
    logits: Tensor | None = None  # (B, T, V) float32; needs = "logits"
    attention: Tensor | None = None  # (L, B, T) float32, mass each key receives; needs = "attention"
    gradients: Tensor | None = None  # (B, T, C) float32, of the summed loss; needs = "gradients"
    padded_logits: Tensor | None = None  # logits with more columns, of probability 0: quicker to sum over on a GPU

    @property
    def summable(self) -> Tensor:
        """The logits, or the padded ones where there are any: (B, T, V or more), for sums over the vocabulary."""
        return self.logits if self.padded_logits is None else self.padded_logits


def of_token(at_prediction: Tensor, of: Of) -> Tensor:
    """Move a quantity of predictions (B, T) to the tokens it is about.

    The prediction made at position t is about token t+1. "predicting" leaves it at t; "predicted" gives
    token t the quantity of its own prediction, made at t-1. Position 0 has none: it gets 0 and must be protected.
    """
    if of == "predicting":
        return at_prediction
    return torch.cat((torch.zeros_like(at_prediction[:, :1]), at_prediction[:, :-1]), dim=1)


@component
class FromPass:
    """What scorers that need a pass of the model share. source: fresh runs one before the step, on the weights as they
    are; cached takes the score from the pass that trained on the token an epoch ago (tid.score_cache)."""

    source: Literal["fresh", "cached"]

    @property
    def about_prediction(self) -> bool:
        """Is the score of a token one of its own prediction, from the tokens before it? Then it is known of a token
        that was dropped, too."""
        return getattr(self, "of", None) == "predicted"


@component
class Entropy(FromPass):
    """Shannon entropy in nats of the predictive distribution; EntroDrop (arXiv 2512.23422) with of=predicted."""

    of: Of
    needs: ClassVar = "logits"
    uses_labels: ClassVar = False

    def __call__(self, e: Evidence) -> Tensor:
        return of_token(reductions.entropy(e.summable), self.of)


@component
class Surprisal(FromPass):
    """-ln p(token | prefix) in nats (Hale 2001). of=predicting reads the next token, which is a label."""

    of: Of
    needs: ClassVar = "logits"

    @property
    def uses_labels(self) -> bool:
        return self.of == "predicting"

    def __call__(self, e: Evidence) -> Tensor:
        chosen = e.logits.gather(-1, e.targets[..., None]).squeeze(-1)
        return of_token(reductions.log_sum_exp(e.summable) - chosen, self.of)


@component
class LogitError(FromPass):
    """EL2N: ‖p − onehot(label)‖₂, in [0, √2] (Paul et al. 2021, "Deep Learning on a Data Diet")."""

    of: Of
    needs: ClassVar = "logits"

    @property
    def uses_labels(self) -> bool:
        return self.of == "predicting"

    def __call__(self, e: Evidence) -> Tensor:
        p = (e.summable - reductions.log_sum_exp(e.summable)[..., None]).exp()
        chosen = p.gather(-1, e.targets[..., None]).squeeze(-1)
        # ‖p − onehot‖² written as a sum of non-negative terms: 1 − 2p + Σp² cancels when p is close to 1
        others = (p.square().sum(dim=-1) - chosen.square()).clamp_min(0)
        return of_token((others + (1 - chosen).square()).sqrt(), self.of)


@component
class GradNorm(FromPass):
    """‖∂L/∂e_t‖₂: norm of the summed loss's gradient with respect to each token's embedding (saliency,
    Simonyan et al. 2013). Every later prediction's loss flows into it."""

    needs: ClassVar = "gradients"
    uses_labels: ClassVar = True

    def __call__(self, e: Evidence) -> Tensor:
        return e.gradients.norm(dim=-1)


@component
class GradXInput(FromPass):
    """|∂L/∂e_t · e_t|: first-order change of the loss when the token's embedding is zeroed (Shrikumar et al. 2016)."""

    needs: ClassVar = "gradients"
    uses_labels: ClassVar = True

    def __call__(self, e: Evidence) -> Tensor:
        return (e.gradients * e.embeddings[e.tokens].detach()).sum(dim=-1).abs()


@component
class AttentionMass(FromPass):
    """Attention probability that token t receives as a key, averaged over heads and layers, as a multiple of what its
    position gives it. Raw sums only measure position: T − t queries see key t, and early ones see few other keys.
    `relative_to: uniform` divides by Σ_{q ≥ t} 1 / (q + 1), what attention to all alike would bring it; `queries` by
    T − t, the mean over the queries, which is still 5 times as high at the first of 128 positions as at the last.
    `layers: last` looks at the last only."""

    layers: Literal["all", "last"]
    relative_to: Literal["uniform", "queries"]
    needs: ClassVar = "attention"
    uses_labels: ClassVar = True

    def __call__(self, e: Evidence) -> Tensor:
        mass = e.attention[-1] if self.layers == "last" else e.attention.mean(dim=0)
        visible = torch.arange(1, mass.shape[-1] + 1, device=mass.device)  # keys that each query sees
        received = visible.reciprocal() if self.relative_to == "uniform" else torch.ones_like(visible)
        return mass / received.flip(0).cumsum(0).flip(0)


@component
class EmbeddingNorm:
    """‖e_t‖₂ of the token's embedding: frequent function words tend to have small ones."""

    needs: ClassVar = "embeddings"
    uses_labels: ClassVar = False

    def __call__(self, e: Evidence) -> Tensor:
        return e.embeddings.detach()[e.tokens].norm(dim=-1)


@component
class Unigram:
    """-ln of the token's frequency in the training text, add-`smoothing`: rare tokens are important."""

    smoothing: Annotated[float, Field(gt=0)]
    needs: ClassVar = "nothing"
    uses_labels: ClassVar = False

    def __call__(self, e: Evidence) -> Tensor:
        counts = e.counts + self.smoothing
        return (counts.sum().log() - counts.log())[e.tokens]


@component
class Position:
    """Distance from one end of the sequence. `important: late` drops the beginning first, `early` the end."""

    important: Literal["late", "early"]
    needs: ClassVar = "nothing"
    uses_labels: ClassVar = False

    def __call__(self, e: Evidence) -> Tensor:
        position = torch.arange(e.tokens.shape[1], device=e.tokens.device, dtype=torch.float32)
        return (position if self.important == "late" else -position).expand(e.tokens.shape)


@component
class Random:
    """Uniform noise: the control that every importance score has to beat at the same rate."""

    needs: ClassVar = "nothing"
    uses_labels: ClassVar = False

    def __call__(self, e: Evidence) -> Tensor:
        return e.noise


@component
class NoScorer:
    """No importance, so nothing is dropped: the plain baseline."""

    needs: ClassVar = "nothing"
    uses_labels: ClassVar = False

    def __call__(self, e: Evidence) -> Tensor:
        return torch.zeros(e.tokens.shape, device=e.tokens.device)
