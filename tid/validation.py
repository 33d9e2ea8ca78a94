"""Validation: every token of the held-out text, nothing dropped, counted per token, character and byte."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from tid import distributed
from tid.capture import Graph, Graphs
from tid.model import Decoder
from tid.precision import autocast


@dataclass(frozen=True)
class Figures:
    """What a set of predictions costs. `loss` in nats per token; bpc and bpb in bits per character and UTF-8 byte.

    All are ratios of exact sums: bpc = Σ nats / ln 2 / characters of the predicted tokens. The EOT between
    documents is predicted like any token and has no characters.
    """

    loss: float
    perplexity: float
    bpc: float
    bpb: float
    tokens: int
    characters: int
    bytes: int

    @classmethod
    def of(cls, nats: float, tokens: int, characters: int, size: int) -> "Figures":
        def ratio(a: float, b: float) -> float:
            return a / b if b else math.nan

        loss, bits = ratio(nats, tokens), nats / math.log(2)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return cls(loss, perplexity, ratio(bits, characters), ratio(bits, size), tokens, characters, size)

    def row(self, prefix: str) -> dict[str, float]:
        """The figures for a metrics row, e.g. val_loss, val_bpc."""
        return {f"{prefix}_{name}": value for name, value in asdict(self).items() if isinstance(value, float)}


class Validation:
    """A pass over a token stream (N,) in windows of `context`, `stride` apart.

    Each token but the first is predicted exactly once, with at least context − stride tokens before it where there
    are so many. stride = context is the plain cut into pieces; a smaller one costs more and shows the model at its
    best. `fast` (CUDA only) captures the pass over a batch.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        doc_starts: np.ndarray,
        token_chars: np.ndarray,
        token_bytes: np.ndarray,
        *,
        context: int,
        stride: int,
        batch_size: int,
        precision: str,
        device: torch.device,
        fast: bool = False,
    ) -> None:
        if not 1 <= stride <= context:
            raise ValueError(f"stride must be in [1, context] = [1, {context}], got {stride}")
        if len(tokens) < 2:
            raise ValueError(f"the validation text has {len(tokens)} tokens; at least 2 are needed")
        self.context, self.stride, self.precision, self.device = context, stride, precision, device
        predicted = np.asarray(tokens[1:]).astype(np.int64)
        self.chars, self.bytes = token_chars[predicted], token_bytes[predicted]
        # the EOT that opens document d+1 is the last prediction of document d
        self.document = np.searchsorted(doc_starts, np.arange(1, len(tokens)), side="left") - 1
        self.num_documents = len(doc_starts)

        windows = 1 + max(0, -(-(len(predicted) - context) // stride))
        batch_size = min(batch_size, windows)  # more would be copies
        starts = np.arange(-(-windows // batch_size) * batch_size) % windows * stride  # whole batches only
        self.starts = torch.from_numpy(starts).to(device).split(batch_size)
        last = int(starts.max()) + context + 1
        padded = np.concatenate((np.asarray(tokens), np.zeros(max(0, last - len(tokens)), np.uint16)))
        self.stream = torch.from_numpy(padded.view(np.int16)).to(device)
        self.offsets = torch.arange(context + 1, device=device)
        self.fast, self.graphs, self.model = fast, Graphs(), None
        self.batch_starts = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def batch_nats(self, model: Decoder, starts: Tensor) -> Tensor:
        """Nats (B, T) float32 of the predictions in the windows that start at `starts` (B,)."""
        window = self.stream[starts[:, None] + self.offsets].long() & 0xFFFF
        with autocast(self.precision, self.device):
            return model.nats(model.residual(model.embed(window[:, :-1])), window[:, 1:])

    @torch.no_grad()
    def nats(self, model: Decoder, graphs: Graphs | None = None) -> np.ndarray:
        """Nats (N − 1,) float64 of every prediction, aligned with tokens[1:]. Several processes share the batches out,
        and all get all nats; which batch a window is in does not depend on their number. graphs: the run's, among
        which that of this pass is kept; None: its own."""
        out = torch.zeros(len(self.stream), device=self.device)
        fresh = self.offsets[-1 - self.stride : -1]  # a window's predictions that earlier windows did not make
        batch_nats = self.captured(model, graphs) if self.fast else lambda starts: self.batch_nats(model, starts)
        mine = range(distributed.rank(), len(self.starts), distributed.number())
        for number in mine:
            starts = self.starts[number]
            nats = batch_nats(starts)
            out[starts[:, None] + fresh] = nats[:, -self.stride :]
            if number == 0:  # nothing comes before the first window
                out[: self.context] = nats[0]
        if len(self.starts) - 1 not in mine:  # it is filled up with windows of the first batch, and comes after it
            out[self.starts[-1][:, None] + fresh] = 0.0
        distributed.sum_([out])
        return out[: len(self.chars)].double().cpu().numpy()

    def captured(self, model: Decoder, graphs: Graphs | None) -> Callable[[Tensor], Tensor]:
        """`batch_nats` of `model` as a CUDA graph, captured at the first use. CUDA only."""
        graphs = self.graphs if graphs is None else graphs
        if self.model is not model:
            graphs.forget(self)
            self.model = model
        if self not in graphs:

            def work() -> Tensor:
                return self.batch_nats(model, self.batch_starts)

            graphs.capture(self, "a validation", work, lambda: Graph.prepare(work))

        def replayed(starts: Tensor) -> Tensor:
            self.batch_starts.copy_(starts)
            return graphs[self]()

        return replayed

    def figures(self, nats: np.ndarray, where: np.ndarray | slice = slice(None)) -> Figures:
        """Figures of the predictions `where`, from `nats` (N − 1,)."""
        chosen = nats[where]
        return Figures.of(float(chosen.sum()), chosen.size, int(self.chars[where].sum()), int(self.bytes[where].sum()))

    def document_nats(self, nats: np.ndarray) -> np.ndarray:
        """Σ nats (D,) of each document's predictions, in the order of the text."""
        return np.bincount(self.document, nats, self.num_documents)

    def document_sizes(self) -> list[tuple[int, int, int]]:
        """Predicted tokens, characters and bytes of each document."""
        sums = (np.bincount(self.document, weights, self.num_documents) for weights in (None, self.chars, self.bytes))
        return [(int(t), int(c), int(b)) for t, c, b in zip(*sums, strict=True)]

    def halves(self, nats: np.ndarray) -> tuple[Figures, Figures]:
        """Figures of the even and of the odd documents: one half selects a checkpoint, the other reports it."""
        even = self.document % 2 == 0
        return self.figures(nats, even), self.figures(nats, ~even if self.num_documents > 1 else even)
