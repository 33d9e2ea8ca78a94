"""Drop modes: what is done to a dropped token?

A drop mode is a component with

    parameters(width)                     tensors it learns, by name; most learn nothing
    loss(model, batch, learned)           the training loss of one micro-batch, given the keep mask
    flops(shape, context, kept_max)       what training on one sequence costs
    check(shape)                          does it fit the model?

and the declarations `exact_counts`: does it need to know beforehand how many tokens a row keeps (tid.lengths)?
`sees_all`: does its first pass see all tokens as they are, so that they can be scored by it? and `whole_loss`: is the
loss of that pass the mean over all predictions? Evaluation never comes here: it calls the model itself.

With several processes each has the loss of its own rows, and their mean is what is minimised: a loss that divides by
anything but the number of predictions has to divide by its mean over the processes (`tid.distributed.mean`).
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from tid import distributed
from tid.component import component
from tid.model import GPT, Decoder
from tid.rows import PutBack, Residual, TakenOut, kept_rows


class Loss(NamedTuple):
    """`objective` is what is minimised; `nats` the mean loss per prediction that is logged. Scalars, float32."""

    objective: Tensor
    nats: Tensor


class Batch(NamedTuple):
    """tokens, targets (B, T) int64; keep (B, T) bool; kept_max: no row keeps more tokens than this; nats (B, T):
    what `all_nats` is of them, for modes that see all."""

    tokens: Tensor
    targets: Tensor
    keep: Tensor
    kept_max: int
    nats: Tensor | None = None


def fill(x: Tensor, keep: Tensor, vector: Tensor | float) -> Tensor:
    """x (B, T, C) with `vector` in place of dropped tokens. `where`, never x * keep: inf · 0 is NaN backwards."""
    return torch.where(keep[..., None], x, vector)


def all_nats(model: Decoder, tokens: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (B, T) of every prediction with nothing dropped."""
    return model.nats(model.residual(model.embed(tokens)), targets)


def plain_loss(model: Decoder, tokens: Tensor, targets: Tensor) -> Loss:
    """Mean next-token cross-entropy with nothing dropped: the baseline, and every mode at rate 0."""
    nats = all_nats(model, tokens, targets).mean()
    return Loss(nats, nats)


def filled_loss(model: Decoder, batch: Batch, vector: Tensor | float) -> Tensor:
    """Mean cross-entropy of all predictions from inputs whose dropped tokens read `vector`."""
    x = fill(model.embed(batch.tokens), batch.keep, vector)
    return model.nats(model.residual(x), batch.targets).mean()


class DropMode:
    """Modes that learn nothing and work with any selector."""

    exact_counts: ClassVar = False
    sees_all: ClassVar = False
    whole_loss: ClassVar = True

    def check(self, shape: GPT) -> None:
        """Raise ValueError when the mode cannot work on a model of this shape."""

    def parameters(self, width: int) -> dict[str, nn.Parameter]:
        return {}

    def flops(self, shape: GPT, context: int, kept_max: int) -> float:
        """Floating-point operations of training on one sequence; see GPT.flops_per_token."""
        return shape.flops_per_token(context) * context


@component
class Zero(DropMode):
    """The token's embedding becomes the zero vector; it is still predicted and still predicts."""

    def loss(self, model: Decoder, batch: Batch, learned: nn.ParameterDict) -> Loss:
        nats = filled_loss(model, batch, 0.0)
        return Loss(nats, nats)


def learned_vector(width: int) -> nn.Parameter:
    """A mask embedding (C,), N(0, 0.02²) as GPT-2's token embeddings, the same for every seed.

    Not zero: there RMSNorm's slope is 1/√eps, and this one vector's gradient outweighs that of all other weights
    (measured at step 0: 69 against 5.4 with 3 layers), so that clipping leaves them nothing.
    """
    return nn.Parameter(0.02 * torch.randn(width, generator=torch.Generator().manual_seed(0)))


@component
class MaskToken(DropMode):
    """The token's embedding becomes one learned vector, as BERT's [MASK]."""

    def parameters(self, width: int) -> dict[str, nn.Parameter]:
        return {"mask_vector": learned_vector(width)}

    def loss(self, model: Decoder, batch: Batch, learned: nn.ParameterDict) -> Loss:
        nats = filled_loss(model, batch, learned["mask_vector"])
        return Loss(nats, nats)


@component
class Hide(DropMode):
    """Nobody attends to the token but itself; its embedding and its own prediction stay."""

    def loss(self, model: Decoder, batch: Batch, learned: nn.ParameterDict) -> Loss:
        length = batch.tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=batch.tokens.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=batch.tokens.device)
        visible = (causal & batch.keep[:, None, :] | itself)[:, None]
        x = model.residual(model.embed(batch.tokens), visible=visible)
        nats = model.nats(x, batch.targets).mean()
        return Loss(nats, nats)


@component
class Skip(DropMode):
    """Dropped tokens skip the middle layers, which see only the kept ones at their true positions: compute is saved.

    The first `first_layers` and the last `last_layers` layers see everything (random-LTD, Yao et al. 2022). Kept
    tokens keep their order, so the causal mask of the gathered sequence is the true one.
    """

    first_layers: Annotated[int, Field(ge=0)]
    last_layers: Annotated[int, Field(ge=0)]
    exact_counts: ClassVar = True

    def check(self, shape: GPT) -> None:
        if self.first_layers + self.last_layers >= shape.num_layers:
            raise ValueError(
                f"drop_mode Skip leaves no layer to skip: first_layers {self.first_layers} + last_layers "
                f"{self.last_layers} must be less than model.num_layers {shape.num_layers}"
            )

    def flops(self, shape: GPT, context: int, kept_max: int) -> float:
        size = kept_max
        middle = shape.num_layers - self.first_layers - self.last_layers
        dense, short = shape.layer_flops_per_token(context) * context, shape.layer_flops_per_token(size) * size
        return shape.flops_per_token(context) * context - middle * (dense - short)

    def loss(self, model: Decoder, batch: Batch, learned: nn.ParameterDict) -> Loss:
        end = model.shape.num_layers - self.last_layers
        x = model.residual(model.embed(batch.tokens), last=self.first_layers)
        x = self.middle(model, x, batch, end)
        nats = model.nats(model.residual(x, first=end), batch.targets).mean()
        return Loss(nats, nats)

    def middle(self, model: Decoder, residual: Residual, batch: Batch, end: int) -> Tensor:
        """Middle layers on the kept tokens of a residual stream (B, T, C); dropped ones pass unchanged."""
        index, back = kept_rows(batch.keep, max(1, batch.kept_max))  # rows that keep fewer are filled up with zeros
        rope = tuple(table[index][:, None] for table in model.rope(batch.keep.shape[1]))
        kept, *residual = TakenOut.apply(*residual, index, back, model)
        counts = batch.keep.sum(dim=1) if batch.kept_max < batch.keep.shape[1] else None
        y = model.residual(kept, rope=rope, counts=counts, first=self.first_layers, last=end)
        return PutBack.apply(*residual, *y, index, back, model)


@component
class LossMask(DropMode):
    """The token stays an input but is not trained on as a target, as in selective language modelling (Rho-1,
    Lin et al. 2024). The mean is over the targets that are left in the micro-batch, of all processes: where
    sequences keep different numbers, as with drop_schedule=uniform, `accumulate_steps` changes what each weighs."""

    sees_all: ClassVar = True
    whole_loss: ClassVar = False

    def loss(self, model: Decoder, batch: Batch, learned: nn.ParameterDict) -> Loss:
        nats = batch.nats
        # the token at position t+1 is the target at t; the last target is no input and is always kept
        kept = torch.cat((batch.keep[:, 1:], torch.ones_like(batch.keep[:, :1])), dim=1)
        count = distributed.mean(kept.sum())  # as if one process had the whole batch
        return Loss(torch.where(kept, nats, 0.0).sum() / count, nats.detach().mean())


@component
class MaskAux(DropMode):
    """Clean loss + `weight` × the loss from inputs whose dropped tokens are filled: masked-input regularisation
    (arXiv 2606.06888, weight 0.4). `fill` is the zero vector or a learned one. Two passes; the clean loss is logged."""

    weight: Annotated[float, Field(gt=0)]
    fill: Literal["zero", "mask_token"]
    sees_all: ClassVar = True

    def parameters(self, width: int) -> dict[str, nn.Parameter]:
        return {"mask_vector": learned_vector(width)} if self.fill == "mask_token" else {}

    def flops(self, shape: GPT, context: int, kept_max: int) -> float:
        return 2 * super().flops(shape, context, kept_max)

    def loss(self, model: Decoder, batch: Batch, learned: nn.ParameterDict) -> Loss:
        clean = batch.nats.mean()
        masked = filled_loss(model, batch, learned["mask_vector"] if self.fill == "mask_token" else 0.0)
        return Loss(clean + self.weight * masked, clean)
