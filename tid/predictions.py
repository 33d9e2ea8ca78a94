"""What a model says about every token of a text, beyond its loss; and the windows in which it reads the text.

Slower than tid.validation, which training uses; the same model's nats are the same, bit by bit, in the same windows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tid.data import TokenFile
from tid.data.progress import progress
from tid.model import Decoder
from tid.precision import autocast


@dataclass(frozen=True)
class Windows:
    """Window w reads `context` tokens from starts[w] on; of its predictions those at first[w] … last[w] − 1 count.

    Arrays (W,) int64. No prediction counts twice.
    """

    starts: np.ndarray
    first: np.ndarray
    last: np.ndarray


def packed_windows(num_tokens: int, context: int, stride: int) -> Windows:
    """The stream as one text, as in training: each document sees the end of the one before it.

    Predicts every token but the first, the end-of-text tokens too, each with at least context − stride tokens before
    it where there are so many.
    """
    predicted = num_tokens - 1
    starts = np.arange(1 + max(0, -(-(predicted - context) // stride))) * stride
    first = np.full_like(starts, context - stride)
    first[0] = 0
    return Windows(starts, first, np.minimum(context, predicted - starts))


def document_windows(num_tokens: int, doc_starts: np.ndarray, context: int, stride: int) -> Windows:
    """Each document by itself after its end-of-text token, as lm-evaluation-harness rolls over it.

    Predicts every token of a document, the end-of-text token after it not. The first window predicts up to `context`
    tokens, each later one the next `stride`; a last one that has fewer left to predict sees the more before them.
    (get_rolling_token_windows in lm_eval/utils.py, with context_len = context − stride + 1.)
    """
    found = []
    ends = np.append(doc_starts[1:], num_tokens - 1)
    for start, length in zip(doc_starts.tolist(), (ends - doc_starts - 1).tolist(), strict=True):
        done = min(context, length)
        found += [(start, 0, done)] if length else []
        while done < length:
            fresh = min(stride, length - done)
            done += fresh
            found.append((start + done - context, context - fresh, context))
    return Windows(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


@dataclass(frozen=True)
class Predictions:
    """Of the predictions that count, in the order of the text, arrays (P,).

    index: which token is predicted, its place in the stream less 1. target: its id. nats: its cost. entropy: of the
    predicted distribution, in nats. confidence: the probability of the likeliest token, and correct: whether that was
    the one. before: tokens that the model saw before it, from 1.
    """

    index: np.ndarray
    target: np.ndarray
    nats: np.ndarray
    entropy: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    before: np.ndarray


@torch.no_grad()
def predict(
    model: Decoder, tokens: np.ndarray, windows: Windows, *, context: int, batch_size: int, precision: str,
    label: str = "reading",
) -> Predictions:  # fmt: skip
    """Read tokens (N,) in these windows. Batches are whole and made as in tid.validation, for the same nats.

    label: what is said to be done while it takes its time. Raises ValueError when no prediction counts.
    """
    if not len(windows.starts):
        raise ValueError("the text has no token to predict")
    device = model.norm.weight.device
    batch_size = min(batch_size, len(windows.starts))  # more would be copies
    padded = np.concatenate((np.asarray(tokens), np.zeros(context, np.uint16)))
    stream = torch.from_numpy(padded.view(np.int16)).to(device)
    offset, found = np.arange(context), []
    with progress(label, len(windows.starts), " windows") as shown:
        for at in range(0, len(windows.starts), batch_size):
            chosen = np.arange(at, at + batch_size) % len(windows.starts)  # the last batch is filled from the beginning
            inside = torch.from_numpy(windows.starts[chosen][:, None] + np.arange(context + 1)).to(device)
            figures = batch_figures(model, stream[inside].long() & 0xFFFF, precision).double().cpu().numpy()
            chosen = chosen[: len(windows.starts) - at]
            row, before = np.nonzero((windows.first[chosen, None] <= offset) & (offset < windows.last[chosen, None]))
            found.append((windows.starts[chosen][row] + before, before + 1, *figures[:, row, before]))
            shown.advance(len(chosen))
    index, before, nats, entropy, confidence, correct = map(np.concatenate, zip(*found, strict=True))
    target = np.asarray(tokens)[index + 1].astype(np.int64)
    return Predictions(index, target, nats, entropy, confidence, correct.astype(bool), before)


def batch_figures(model: Decoder, window: Tensor, precision: str) -> Tensor:
    """nats, entropy, confidence and correct (0 or 1) of a batch of windows (B, T + 1): (4, B, T) float32.

    The distributions, (T, V) float32, are looked at row by row, since all of them may not fit into memory.
    """
    inputs, targets = window[:, :-1], window[:, 1:]
    with autocast(precision, window.device):
        x = model.layers(model.embed(inputs))
        nats = model.nats(x, targets)
        rows = []
        for one, right in zip(x, targets, strict=True):
            logs = model.logits(one[None])[0].float().log_softmax(dim=-1)
            likeliest = logs.max(dim=-1)
            probabilities = logs.exp()
            entropy = -(probabilities * logs).sum(dim=-1)
            rows.append(torch.stack((entropy, likeliest.values.exp(), (likeliest.indices == right).float())))
    return torch.cat((nats.float()[None], torch.stack(rows, dim=1)))


def sample_documents(text: TokenFile, count: int) -> TokenFile:
    """`count` documents evenly spaced over the text, or all if there are no more, as a stream of their own."""
    count = min(count, len(text.doc_starts))
    chosen = np.arange(count) * len(text.doc_starts) // count
    ends = np.append(text.doc_starts[1:], len(text.tokens) - 1)
    pieces = [np.asarray(text.tokens[text.doc_starts[d] : ends[d]]) for d in chosen]
    starts = np.cumsum([0, *map(len, pieces[:-1])])
    return TokenFile(np.concatenate([*pieces, text.tokens[-1:]]), starts)
