"""One training step: gather, score, select, drop, loss, backward, clip, update.

The step works on device tensors alone. Learning rate and drop rate are tables indexed by a step counter that is
itself a device tensor, and what it measures goes into a device buffer that the host reads when it logs. The host
decides what schedule and text tell without asking the device (`plan`): whether this step drops at all and, for modes
that gather, how many tokens a row can keep. On CUDA the step is compiled and captured, one graph for each decision.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tid import distributed
from tid.capture import fuse
from tid.data.batches import Batches
from tid.drop_modes import Batch, DropMode, Loss, all_nats, plain_loss
from tid.dropout import Choice, TokenDropout, cached, score_flops
from tid.flat import make_update
from tid.lengths import KeptLengths
from tid.model import Decoder
from tid.precision import autocast
from tid.replay import Replays
from tid.score_cache import Recalled, ScoreCache, Watch, leave_attention_to_eager, watching
from tid.timing import Stopwatch

COUNTS = ("dropped", "droppable", "bad_rows", "unscored", "score_ages")
COLUMNS = ("train_loss", "grad_norm", *COUNTS)
PLAIN = DropMode()


class TrainStep:
    """Model, optimizers and everything else that a step changes; call it once per update.

    `fast` (CUDA only) compiles and captures the step, and keeps the weights flat for optimizers that tid.flat knows;
    without it the same code runs eagerly on any device. `kernels`: see tid.pieces.by_hand_for.
    `shares_pass`: the mode's first pass is the scoring pass too.
    """

    TENSORS = ("step", "token_seen", "token_drops")

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
        fast: bool,
        kernels: str,
    ) -> None:
        self.model, self.mode, self.dropout, self.optim, self.batches = model, mode, dropout, optim, batches
        self.batch_size, self.accumulate_steps, self.precision = batch_size, accumulate_steps, precision
        self.device = device = model.norm.weight.device
        self.learned = nn.ParameterDict(mode.parameters(model.shape.hidden_size)).to(device)
        self.updating = make_update(
            model, self.learned, optim, precision, accumulate_steps > 1, fast, kernels, batches.context
        )
        batches.load_orders(0, self.samples)  # refuses a batch larger than the text
        self.make_tables(total_steps)
        self.make_buffers(window)
        caches = cached(dropout.scorer) and self.host_bands.any()
        self.cache = ScoreCache(dropout, mode, batches) if caches else None
        self.shares_pass = not self.cache and mode.sees_all and dropout.scorer.needs in ("logits", "attention")
        self.score_watch = Stopwatch(device)
        self.train_flops = self.score_flops = 0.0
        self.fast, self.replays = fast, Replays(self)
        if fast:
            self.compile()

    def make_tables(self, total_steps: int) -> None:
        """What is known of every step beforehand."""
        steps, device = range(total_steps), self.device
        self.lr_table = torch.tensor([self.optim.lr_at(s, total_steps) for s in steps], device=device)
        self.host_bands = np.array([self.dropout.band(s / total_steps) for s in steps])
        self.bands = torch.tensor(self.host_bands, device=device)  # float64: k = round(rate · n) as on paper
        exact = self.mode.exact_counts
        self.lengths = KeptLengths(self.dropout, self.batches, self.host_bands, self.samples) if exact else None
        rows = torch.arange(self.batch_size, device=device)
        # numbers of each micro-batch's samples, from the step's first on
        self.offsets = [micro * self.batch_size + rows for micro in range(self.accumulate_steps)]
        self.own_rows = distributed.share(self.batch_size)  # this process's rows

    def make_buffers(self, window: int) -> None:
        """What steps write on the device."""
        device, vocabulary = self.device, self.model.shape.vocab_size
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.metrics = torch.zeros(window, len(COLUMNS), device=device)
        self.token_seen = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        self.token_drops = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        self.last_scores = torch.full((self.batch_size, self.batches.context), torch.nan, device=device)

    @property
    def samples(self) -> int:
        """Sequences per update."""
        return self.batch_size * self.accumulate_steps

    @property
    def bad_step(self) -> Tensor:
        return self.updating.bad_step

    def compile(self) -> None:
        """Have torch compile what is worth fusing and has not been: a flat update's twins are made of such pieces. A
        handful of numbers takes as long as a thousand, so the bookkeeping is worth it too."""
        fuse(self, "micro_batch", "none_dropped", "counts", "tally", "record")
        if self.cache:
            fuse(self.cache, "recall", "store")
        if self.updating.capturable:
            fuse(self.updating, "judge", "gradient_norm", "move")
        else:
            leave_attention_to_eager()
            for block in self.model.blocks:  # compiled once for all layers
                block.compile(dynamic=False)
                block.with_mass = torch.compile(block.with_mass, dynamic=False)
            self.model.nats = torch.compile(self.model.nats, dynamic=False)
        self.dropout.compile()

    @property
    def trained(self) -> Decoder:
        """The model as the steps have left it, for evaluation: no gradients."""
        self.updating.settle()
        return self.updating.scoring

    def plan(self, step: int) -> tuple[bool, int]:
        """Does `step` drop, and what is the most tokens a row of its batch can keep? Host only, no device read."""
        self.batches.load_orders(step * self.samples, self.samples)
        drops = bool(self.host_bands[step, 1] > 0)
        return drops, self.lengths(step) if drops and self.lengths else self.batches.context

    def __call__(self, step: int) -> None:
        """Do update number `step`; steps come in order, from the one that the device counter holds."""
        drops, kept_max = self.plan(step)
        (self.replays if self.fast else self.update)(drops, kept_max)
        shape, context = self.model.shape, self.batches.context
        self.train_flops += self.samples * (self.mode if drops else PLAIN).flops(shape, context, kept_max)
        if drops and not self.cache and not self.shares_pass:
            self.score_flops += self.samples * score_flops(shape, context, self.dropout.scorer.needs)

    def update(self, drops: bool, kept_max: int) -> None:
        """The step itself. Nothing in it waits for the device, except optimizers that cannot be captured."""
        self.updating.begin()
        self.finish(*self.backward(drops, kept_max))

    def backward(self, drops: bool, kept_max: int) -> tuple[Tensor, Tensor]:
        """Backward passes of all micro-batches. Returns the summed objective (), and loss and COUNTS (6,), float32."""
        totals = torch.zeros(1 + len(COUNTS), device=self.device)
        objective = torch.zeros((), device=self.device)
        for micro, offsets in enumerate(self.offsets):
            samples, tokens, targets = self.micro_batch(offsets)
            mine = [x[self.own_rows] for x in (tokens, targets, samples)]
            with self.watching(drops, *mine) as watch, autocast(self.precision, self.device):
                nats = all_nats(self.updating.compute, *mine[:2]) if drops and self.shares_pass else None
                keep, counts = self.choose(tokens, samples, mine, watch) if drops else (None, self.none_dropped(tokens))
                loss = self.loss(*mine[:2], keep, kept_max, nats)
            if self.cache and not watch.wants_gradients:  # the backward pass need not wait
                with self.updating.beside(samples, *watch.seen, *(() if keep is None else (keep,))):
                    self.remember(watch, samples, keep)
            last = micro == self.accumulate_steps - 1
            self.updating.backward(loss.objective / (self.accumulate_steps * distributed.number()), last)
            if self.cache and watch.wants_gradients:
                self.remember(watch, samples, keep)
            self.tally(objective, totals, Loss(loss.objective.detach(), loss.nats.detach()), counts)
        return objective, totals

    def watching(self, drops: bool, *mine: Tensor) -> AbstractContextManager:
        """The context in which passes on tokens, targets and samples `mine` are watched, if they tell the scores."""
        if self.cache:
            return watching(self.dropout, self.updating, *mine, self.updating.beside)
        if drops and self.shares_pass:  # and needs them at once
            return watching(self.dropout, self.updating, *mine, lambda *read: nullcontext())
        return nullcontext()

    def loss(self, tokens: Tensor, targets: Tensor, keep: Tensor | None, kept_max: int, nats: Tensor | None) -> Loss:
        """The loss of this process's rows; keep, of all rows, is None in a step that drops nothing."""
        model = self.updating.compute
        if keep is None:
            return plain_loss(model, tokens, targets)
        if self.learned:  # a mode may use them before it embeds a token
            self.updating.wait_for_table()
        if nats is None and self.mode.sees_all:
            nats = all_nats(model, tokens, targets)
        return self.mode.loss(model, Batch(tokens, targets, keep[self.own_rows], kept_max, nats), self.learned)

    def micro_batch(self, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (B,), tokens and targets (B, T) of a micro-batch."""
        samples = self.step * self.samples + offsets
        return samples, *self.batches.gather(samples)

    def tally(self, objective: Tensor, totals: Tensor, loss: Loss, counts: Tensor) -> None:
        """Add a micro-batch's figures to those of the step."""
        objective += loss.objective
        totals += torch.cat(((loss.nats / self.accumulate_steps)[None], counts))

    def finish(self, objective: Tensor, totals: Tensor) -> None:
        """Update the weights, note the metrics, count the step."""
        objective, totals = distributed.mean(objective), distributed.mean(totals)
        grad_norm = self.updating(objective, self.now(self.lr_table), self.step)
        self.record(totals, grad_norm)

    def record(self, totals: Tensor, grad_norm: Tensor) -> None:
        """Note a step's figures, and count it."""
        row = torch.cat((totals[:1], grad_norm[None], totals[1:]))
        self.metrics.index_copy_(0, (self.step % len(self.metrics))[None], row[None])
        self.step += 1

    def choose(self, tokens: Tensor, samples: Tensor, mine: list[Tensor], watch: Watch | None) -> tuple[Tensor, Tensor]:
        """Keep mask (B, T) and COUNTS (5,) float32 of the whole batch: each process scores its own rows and all choose
        together. mine, watch: see `watching`."""
        with self.score_watch:
            recalled = self.cache.recall(samples, self.step) if self.cache else None
            if recalled:
                scores = recalled.scores
            elif self.shares_pass:
                scores = distributed.gather_rows(watch.scores())
            else:
                if self.dropout.scorer.needs == "embeddings":
                    self.updating.wait_for_table()
                table = self.updating.table
                scores = distributed.gather_rows(self.dropout.scores(self.updating.scoring, *mine, table))
            choice = self.dropout.choose(scores, tokens, self.now(self.bands), samples)
        with self.updating.beside(tokens, *vars(choice).values(), *(recalled or ())):
            return choice.keep, self.note(choice, tokens, recalled)

    def note(self, choice: Choice, tokens: Tensor, recalled: Recalled | None) -> Tensor:
        """Remember the scores and count who is dropped. Returns COUNTS (5,) float32."""
        self.last_scores.copy_(choice.scores)
        flat = tokens.flatten()
        self.token_seen.index_add_(0, flat, torch.ones_like(flat))
        self.token_drops.index_add_(0, flat, (~choice.keep).flatten().long())
        return self.counts(choice, recalled)

    def counts(self, choice: Choice, recalled: Recalled | None) -> Tensor:
        """COUNTS (5,) float32 of a micro-batch that drops."""
        dropped, droppable, bad_rows = choice.dropped, choice.droppable, choice.bad_rows
        unscored = ages = torch.zeros_like(dropped)
        if recalled:
            unseen_rows, unscored, ages = recalled.counts(choice.allowed)
            bad_rows = bad_rows - unseen_rows  # nothing is wrong with them
        return torch.stack((dropped, droppable, bad_rows, unscored, ages)).float()

    def remember(self, watch: Watch, samples: Tensor, keep: Tensor | None) -> None:
        """Keep the scores of the pass that `watch` has seen."""
        predictions = self.samples * self.batches.context  # the loss is their mean
        scores = watch.scores(predictions / self.updating.scale, self.updating.input_gradient)
        self.cache.store(samples, distributed.gather_rows(scores), keep, self.step)

    def none_dropped(self, tokens: Tensor) -> Tensor:
        """COUNTS (5,) of a micro-batch of a step that drops nothing."""
        droppable = self.dropout.droppable(tokens).sum().float()
        zero = torch.zeros_like(droppable)
        return torch.stack((zero, droppable, zero, zero, zero))

    def now(self, table: Tensor) -> Tensor:
        """The row of a table (total_steps, ...) for this step; table[step] would wait for the device."""
        return table.index_select(0, self.step[None]).squeeze(0)

    def state_dict(self) -> dict:
        """All that the next step depends on, and the unread part of the metrics."""
        return {
            **self.updating.state_dict(),
            "selector": self.dropout.state,
            "tensors": {name: getattr(self, name) for name in self.TENSORS},
            "metrics": self.metrics,
            "flops": (self.train_flops, self.score_flops),
            **({"cache": self.cache.state_dict()} if self.cache else {}),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`'s value; steps after it are those of an uninterrupted run."""
        self.updating.load_state_dict(state)
        for name, tensor in state["selector"].items():
            self.dropout.state[name].copy_(tensor)
        for name in self.TENSORS:
            getattr(self, name).copy_(state["tensors"][name])
        self.train_flops, self.score_flops = state["flops"]
        if self.cache:
            self.cache.load_state_dict(state["cache"])
        self.refill_metrics(state["metrics"])

    def refill_metrics(self, saved: Tensor) -> None:
        """Take over the newest rows of a buffer that may have another length: log_every may change between sittings."""
        done = int(self.step)
        steps = torch.arange(max(0, done - min(len(saved), len(self.metrics))), done)
        self.metrics[steps % len(self.metrics)] = saved[steps % len(saved)].to(self.device)
