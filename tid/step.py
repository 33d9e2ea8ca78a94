"""One training step: gather, score, select, drop, loss, backward, clip, update.

The step works on device tensors alone. Learning rate and drop rate are tables indexed by a step counter that is
itself a device tensor, and what it measures goes into a device buffer that the host reads when it logs. The host
decides what schedule and text tell without asking the device (`plan`): whether this step drops at all and, for modes
that gather, how many tokens a row can keep. On CUDA the step is compiled and captured, one graph for each decision.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tid.capture import Graph, to_cpu
from tid.data.batches import Batches
from tid.drop_modes import Batch, DropMode, plain_loss
from tid.dropout import TokenDropout, score_flops
from tid.flat import FlatAdamW
from tid.model import Decoder
from tid.optim import AdamW
from tid.precision import autocast
from tid.timing import Stopwatch
from tid.update import Update

COLUMNS = ("train_loss", "grad_norm", "dropped", "droppable", "bad_rows")
PLAIN = DropMode()


class TrainStep:
    """Model, optimizers and everything else that a step changes; call it once per update.

    `fast` (CUDA only) compiles the model block by block and captures the step, and with AdamW keeps the weights flat;
    without it the same code runs eagerly on any device.
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
        fast: bool = False,
    ) -> None:
        self.model, self.mode, self.dropout, self.optim, self.batches = model, mode, dropout, optim, batches
        self.batch_size, self.accumulate_steps, self.precision = batch_size, accumulate_steps, precision
        self.device = device = model.norm.weight.device
        self.learned = nn.ParameterDict(mode.parameters(model.shape.hidden_size)).to(device)
        if fast and type(optim) is AdamW:
            self.updating: Update = FlatAdamW(
                model, self.learned, optim, precision, accumulates=accumulate_steps > 1, compiled=True
            )
        else:
            self.updating = Update(model, self.learned, optim, precision)

        steps = range(total_steps)
        self.lr_table = torch.tensor([optim.lr_at(s, total_steps) for s in steps], device=device)
        self.host_bands = np.array([dropout.band(s / total_steps) for s in steps])
        self.bands = torch.tensor(self.host_bands, device=device)  # float64: k = round(rate · n) as on paper
        batches.load_orders(0, self.samples)  # refuses a batch larger than the text
        self.rows = torch.arange(batch_size, device=device)

        vocabulary = model.shape.vocab_size
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.metrics = torch.zeros(window, len(COLUMNS), device=device)
        self.token_seen = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        self.token_drops = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        self.last_scores = torch.zeros(batch_size, batches.context, device=device)  # for histograms
        self.score_watch = Stopwatch(device)
        self.train_flops, self.score_flops = 0.0, 0.0
        self.fast, self.graphs, self.pool = fast, {}, None
        if fast:
            self.compile()

    @property
    def samples(self) -> int:
        """Sequences per update."""
        return self.batch_size * self.accumulate_steps

    @property
    def bad_step(self) -> Tensor:
        return self.updating.bad_step

    def compile(self) -> None:
        """Have torch compile the parts of the step that are worth fusing. A block is compiled once for all layers."""
        for model in {id(m): m for m in (self.updating.compute, self.updating.scoring)}.values():
            for block in model.blocks:
                block.compile(dynamic=False)
                block.with_mass = torch.compile(block.with_mass, dynamic=False)
            model.nats = torch.compile(model.nats, dynamic=False)
        self.dropout.compile()

    def plan(self, step: int) -> tuple[bool, int]:
        """Does `step` drop, and what is the most tokens a row of its batch can keep? Host only, no device read."""
        self.batches.load_orders(step * self.samples, self.samples)
        if self.host_bands[step, 1] == 0:
            return False, self.batches.context
        if not self.mode.exact_counts:
            return True, self.batches.context
        first = np.arange(step * self.samples, (step + 1) * self.samples)
        protected = self.batches.protected_counts[self.batches.sequences(first[0], self.samples)]
        rates = self.dropout.row_rates(torch.tensor(self.host_bands[step]), torch.from_numpy(first)).numpy()
        # EOT among the first positions is counted twice: the bound is then loose by that one
        droppable = np.maximum(0, self.batches.context - self.dropout.protect_first - protected)
        kept_max = int((self.batches.context - np.round(droppable * rates)).max())
        return True, self.mode.bucket(self.batches.context, kept_max)

    def __call__(self, step: int) -> None:
        """Do update number `step`; steps come in order, from the one that the device counter holds."""
        drops, kept_max = self.plan(step)
        (self.replay if self.fast else self.update)(drops, kept_max)
        shape, context = self.model.shape, self.batches.context
        self.train_flops += self.samples * (self.mode if drops else PLAIN).flops(shape, context, kept_max)
        self.score_flops += self.samples * score_flops(shape, context, self.dropout.scorer.needs) if drops else 0.0

    def replay(self, drops: bool, kept_max: int) -> None:
        """`update`, captured: whole, or up to the optimizer where that cannot be captured."""
        self.score_watch.label = (drops, kept_max)
        graph = self.graph(drops, kept_max)
        if self.updating.capturable:
            graph()
            return
        *sums, gradients = graph()
        for parameter, gradient in zip(self.updating.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.finish(*sums)

    def graph(self, drops: bool, kept_max: int) -> Graph:
        """The captured step. Capturing needs a few runs first; their effects are undone."""
        key = (drops, kept_max)

        def gradients() -> tuple:
            return *self.gradients(*key), [p.grad for p in self.updating.parameters]

        if key not in self.graphs:
            before = to_cpu(self.state_dict())
            Graph.prepare(lambda: self.update(*key))
            self.load_state_dict(before)
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            function = (lambda: self.update(*key)) if self.updating.capturable else gradients
            self.graphs[key] = Graph(function, self.pool)
            self.updating.forget()
        return self.graphs[key]

    def update(self, drops: bool, kept_max: int) -> None:
        """The step itself. Nothing in it waits for the device, except optimizers that cannot be captured."""
        self.finish(*self.gradients(drops, kept_max))

    def gradients(self, drops: bool, kept_max: int) -> tuple[Tensor, Tensor]:
        """Backward passes of all micro-batches. Returns the summed objective (), and loss, dropped, droppable, bad
        rows (4,), float32."""
        totals = torch.zeros(4, device=self.device)
        objective = torch.zeros((), device=self.device)
        for micro in range(self.accumulate_steps):
            samples = (self.step * self.accumulate_steps + micro) * self.batch_size + self.rows
            tokens, targets = self.batches.gather(samples)
            keep, counts = self.choose(tokens, targets, samples) if drops else (None, self.none_dropped(tokens))
            with autocast(self.precision, self.device):
                if drops:
                    loss = self.mode.loss(self.updating.compute, Batch(tokens, targets, keep, kept_max), self.learned)
                else:
                    loss = plain_loss(self.updating.compute, tokens, targets)
            self.updating.backward(loss.objective / self.accumulate_steps, micro)
            objective += loss.objective.detach()
            totals += torch.cat(((loss.nats.detach() / self.accumulate_steps)[None], counts))
        return objective, totals

    def finish(self, objective: Tensor, totals: Tensor) -> None:
        """Update the weights, note the metrics, count the step."""
        grad_norm = self.updating(objective, self.now(self.lr_table), self.step)
        row = torch.cat((totals[:1], grad_norm[None], totals[1:]))
        self.metrics.index_copy_(0, (self.step % len(self.metrics))[None], row[None])
        self.step += 1

    def choose(self, tokens: Tensor, targets: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Keep mask (B, T), and the counts dropped, droppable, bad rows as (3,) float32."""
        with self.score_watch, autocast(self.precision, self.device):
            table = self.model.embed_tokens.weight.detach()
            scores = self.dropout.scores(self.updating.scoring, tokens, targets, samples, table)
            choice = self.dropout.choose(scores, tokens, self.now(self.bands), samples)
        self.last_scores.copy_(choice.scores)
        flat = tokens.flatten()
        self.token_seen.index_add_(0, flat, torch.ones_like(flat))
        self.token_drops.index_add_(0, flat, (~choice.keep).flatten().long())
        return choice.keep, torch.stack((choice.dropped, choice.droppable, choice.bad_rows)).float()

    def none_dropped(self, tokens: Tensor) -> Tensor:
        """Dropped, droppable and bad rows (3,) of a micro-batch of a step that drops nothing."""
        droppable = self.dropout.droppable(tokens).sum().float()
        return torch.stack((torch.zeros_like(droppable), droppable, torch.zeros_like(droppable)))

    def now(self, table: Tensor) -> Tensor:
        """The row of a table (total_steps, ...) for this step; table[step] would wait for the device."""
        return table.index_select(0, self.step[None]).squeeze(0)

    TENSORS = ("step", "token_seen", "token_drops")

    def state_dict(self) -> dict:
        """All that the next step depends on, and the unread part of the metrics."""
        return {
            **self.updating.state_dict(),
            "selector": self.dropout.state,
            "tensors": {name: getattr(self, name) for name in self.TENSORS},
            "metrics": self.metrics,
            "flops": (self.train_flops, self.score_flops),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`'s value; steps after it are those of an uninterrupted run."""
        self.updating.load_state_dict(state)
        for name, tensor in state["selector"].items():
            self.dropout.state[name].copy_(tensor)
        for name in self.TENSORS:
            getattr(self, name).copy_(state["tensors"][name])
        self.train_flops, self.score_flops = state["flops"]
        self.refill_metrics(state["metrics"])

    def refill_metrics(self, saved: Tensor) -> None:
        """Take over the newest rows of a buffer that may have another length: log_every may change between sittings."""
        done = int(self.step)
        for step in range(max(0, done - min(len(saved), len(self.metrics))), done):
            self.metrics[step % len(self.metrics)] = saved[step % len(saved)]
