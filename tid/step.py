"""One training step: gather, score, select, drop, loss, backward, clip, update.

The step works on device tensors alone. Learning rate and drop rate are tables indexed by a step counter that is
itself a device tensor, and what it measures goes into a device buffer that the host reads when it logs. The host
decides one thing: whether this step drops at all (`plan`), which the schedule tells without asking the device.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tid.data.batches import Batches
from tid.drop_modes import Batch, DropMode, plain_loss
from tid.dropout import TokenDropout, score_flops
from tid.model import Decoder
from tid.precision import autocast
from tid.timing import Stopwatch

COLUMNS = ("train_loss", "grad_norm", "dropped", "droppable", "bad_rows")
INITIAL_SCALE, SMALLEST_SCALE = 2.0**16, 2.0**-24  # fp16 gradients that overflow even at the last are broken
PLAIN = DropMode()


class TrainStep:
    """Model, optimizers and everything else that a step changes; call it once per update.

    After a loss or gradient that is not finite the weights stay as they were before that step, whatever follows:
    `bad_step` then holds its number, else -1. (An overflow of fp16 gradients is no such case: the step is skipped
    and the loss scale halved, as usual.)
    """

    def __init__(
        self,
        model: Decoder,
        mode: Any,
        dropout: TokenDropout,
        optim: Any,
        batches: Batches,
        *,
        batch_size: int,
        accumulate_steps: int,
        total_steps: int,
        window: int,
        precision: str,
    ) -> None:
        self.model, self.mode, self.dropout, self.optim, self.batches = model, mode, dropout, optim, batches
        self.batch_size, self.accumulate_steps, self.precision = batch_size, accumulate_steps, precision
        self.device = device = model.norm.weight.device
        self.learned = nn.ParameterDict(mode.parameters(model.shape.hidden_size)).to(device)
        named = [*model.named_parameters(), *self.learned.named_parameters()]
        self.parameters = [p for _, p in named]
        self.optimizers = optim.build(named)
        listed = sorted(id(p) for o in self.optimizers for g in o.param_groups for p in g["params"])
        assert listed == sorted(id(p) for p in self.parameters), "each parameter belongs in one optimizer group"

        steps = range(total_steps)
        self.lr_table = torch.tensor([optim.lr_at(s, total_steps) for s in steps], device=device)
        self.host_bands = np.array([dropout.band(s / total_steps) for s in steps])
        self.bands = torch.tensor(self.host_bands, device=device)  # float64: k = round(rate · n) as on paper
        batches.load_orders(0, batch_size * accumulate_steps)  # refuses a batch larger than the text
        self.rows = torch.arange(batch_size, device=device)

        vocabulary = model.shape.vocab_size
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.scale = torch.full((), INITIAL_SCALE if precision == "fp16" else 1.0, device=device)
        self.scale_growth = torch.zeros((), dtype=torch.int32, device=device)
        self.metrics = torch.zeros(window, len(COLUMNS), device=device)
        self.token_seen = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        self.token_drops = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        self.last_scores: Tensor | None = None  # (B, T), of the last step that dropped; for histograms
        self.score_watch = Stopwatch(device)
        self.train_flops, self.score_flops = 0.0, 0.0

    def plan(self, step: int) -> tuple[bool, int]:
        """Does `step` drop, and what is the most tokens a row of its batch can keep? Host only, no device read."""
        samples = self.batch_size * self.accumulate_steps
        self.batches.load_orders(step * samples, samples)
        if self.host_bands[step, 1] == 0:
            return False, self.batches.context
        if not self.mode.exact_counts:
            return True, self.batches.context
        first = np.arange(step * samples, (step + 1) * samples)
        protected = self.batches.protected_counts[self.batches.sequences(first[0], samples)]
        rates = self.dropout.row_rates(torch.tensor(self.host_bands[step]), torch.from_numpy(first)).numpy()
        # EOT among the first positions is counted twice: the bound is then loose by that one
        droppable = np.maximum(0, self.batches.context - self.dropout.protect_first - protected)
        return True, int((self.batches.context - np.round(droppable * rates)).max())

    def __call__(self, step: int) -> None:
        """Do update number `step`; steps come in order, from the one that the device counter holds."""
        drops, kept_max = self.plan(step)
        self.update(drops, kept_max)
        samples = self.batch_size * self.accumulate_steps
        shape, context = self.model.shape, self.batches.context
        self.train_flops += samples * (self.mode if drops else PLAIN).flops(shape, context, kept_max)
        self.score_flops += samples * score_flops(shape, context, self.dropout.scorer.needs) if drops else 0.0

    def update(self, drops: bool, kept_max: int) -> None:
        """The step itself. Nothing in it waits for the device, except optimizers that cannot skip by themselves."""
        totals = torch.zeros(4, device=self.device)
        objective = torch.zeros((), device=self.device)
        for micro in range(self.accumulate_steps):
            samples = (self.step * self.accumulate_steps + micro) * self.batch_size + self.rows
            tokens, targets = self.batches.gather(samples)
            keep, counts = self.choose(tokens, targets, samples) if drops else (None, totals.new_zeros(3))
            with autocast(self.precision, self.device):
                if drops:
                    loss = self.mode.loss(self.model, Batch(tokens, targets, keep, kept_max), self.learned)
                else:
                    loss = plain_loss(self.model, tokens, targets)
                (loss.objective * (self.scale / self.accumulate_steps)).backward()
            objective += loss.objective.detach()
            totals += torch.cat(((loss.nats.detach() / self.accumulate_steps)[None], counts))
        grad_norm = self.apply(objective)
        row = torch.cat((totals[:1], grad_norm[None], totals[1:]))
        self.metrics.index_copy_(0, (self.step % len(self.metrics))[None], row[None])
        self.step += 1

    def choose(self, tokens: Tensor, targets: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Keep mask (B, T), and the counts dropped, droppable, bad rows as (3,) float32."""
        with self.score_watch, autocast(self.precision, self.device):
            scores = self.dropout.scores(self.model, tokens, targets, samples)
            choice = self.dropout.choose(scores, tokens, self.bands[self.step], samples)
        self.last_scores = choice.scores
        flat = tokens.flatten()
        self.token_seen.index_add_(0, flat, torch.ones_like(flat))
        self.token_drops.index_add_(0, flat, (~choice.keep).flatten().long())
        return choice.keep, torch.stack((choice.dropped, choice.droppable, choice.bad_rows)).float()

    @torch.no_grad()
    def apply(self, objective: Tensor) -> Tensor:
        """Clip, update, forget the gradients. Returns the gradient's norm before clipping, 0-dim float32.

        Unscaling and clipping are one factor, which the fused optimizer applies as it reads the gradients.
        """
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))) / self.scale
        overflow = ~norm.isfinite()
        hopeless = self.scale < SMALLEST_SCALE if self.precision == "fp16" else torch.ones_like(overflow)
        broken = ~objective.isfinite() | (overflow & hopeless)
        self.bad_step.copy_(torch.where((self.bad_step < 0) & broken, self.step, self.bad_step))
        skip = (overflow | (self.bad_step >= 0)).float()
        clip = (self.optim.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"].copy_(self.lr_table[self.step])
            if optimizer.defaults.get("fused"):
                optimizer.grad_scale, optimizer.found_inf = self.scale / clip, skip
                optimizer.step()
            elif not skip:
                own = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
                torch._foreach_mul_(own, clip / self.scale)
                optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        if self.precision == "fp16":
            torch._amp_update_scale_(self.scale, self.scale_growth, overflow.float(), 2.0, 0.5, 2000)
        return norm

    TENSORS = ("step", "bad_step", "scale", "scale_growth", "token_seen", "token_drops")

    def state_dict(self) -> dict:
        """All that the next step depends on, and the unread part of the metrics."""
        return {
            "model": self.model.state_dict(),
            "learned": self.learned.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "selector": self.dropout.state,
            "tensors": {name: getattr(self, name) for name in self.TENSORS},
            "metrics": self.metrics,
            "flops": (self.train_flops, self.score_flops),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`'s value; steps after it are those of an uninterrupted run."""
        self.model.load_state_dict(state["model"])
        self.learned.load_state_dict(state["learned"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, tensor in state["selector"].items():
            self.dropout.state[name].copy_(tensor)
        for name in self.TENSORS:
            getattr(self, name).copy_(state["tensors"][name])
        self.refill_metrics(state["metrics"])
        self.train_flops, self.score_flops = state["flops"]

    def refill_metrics(self, saved: Tensor) -> None:
        """Take over the newest rows of a buffer that may have another length: log_every may change between sittings."""
        done = int(self.step)
        for step in range(max(0, done - min(len(saved), len(self.metrics))), done):
            self.metrics[step % len(self.metrics)] = saved[step % len(saved)]
