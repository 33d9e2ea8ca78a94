"""Validation counts every token once, exactly, with nothing dropped."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_model

from tid.model import token_nats
from tid.validation import Figures, Validation

CPU = torch.device("cpu")
EOT = 100


def stream(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    tokens, starts = [], []
    for document in documents:
        starts.append(len(tokens))
        tokens += [EOT, *document]
    return np.array([*tokens, EOT], np.uint16), np.array(starts)


def make(tokens, starts, context=8, stride=8, batch_size=3) -> Validation:
    lengths = np.where(np.arange(101) == EOT, 0, np.arange(101) % 5)
    return Validation(tokens, starts, lengths, 2 * lengths, context=context, stride=stride, batch_size=batch_size,
                      precision="fp32", device=CPU)  # fmt: skip


@pytest.fixture
def text():
    rng = np.random.default_rng(0)
    return stream([rng.integers(0, 100, n).tolist() for n in (5, 23, 1, 14)])


def slow_nats(model, tokens, context, stride) -> list[float]:
    """One prediction at a time, from the window that first covers it."""
    found = []
    for target in range(1, len(tokens)):
        window = max(0, -(-(target - context) // stride)) * stride
        inputs = torch.tensor(tokens[window:target].astype(np.int64))[None]
        logits = model(inputs)[:, -1:]
        found.append(token_nats(logits, torch.tensor([[int(tokens[target])]])).item())
    return found


@pytest.mark.parametrize("stride", [8, 5, 1])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_token_is_predicted_once_with_the_promised_context(text, stride, batch_size):
    model = tiny_model()
    with torch.no_grad():
        wanted = slow_nats(model, text[0], 8, stride)
    found = make(*text, stride=stride, batch_size=batch_size).nats(model)
    assert len(found) == len(text[0]) - 1
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_text_shorter_than_one_window_is_counted_whole():
    tokens, starts = stream([[1, 2, 3]])
    assert len(make(tokens, starts).nats(tiny_model())) == 4


def test_a_batch_holds_no_copies_of_a_short_text(text):
    whole, large = (make(*text, batch_size=size) for size in (1, 1000))
    assert len(large.batch_starts) == len(whole.starts)


def test_figures_are_ratios_of_exact_sums(text):
    validation = make(*text)
    nats = np.arange(len(text[0]) - 1, dtype=float)
    figures = validation.figures(nats)
    lengths = sum(int(t) % 5 for t in text[0][1:] if t != EOT)
    assert (figures.tokens, figures.characters, figures.bytes) == (len(nats), lengths, 2 * lengths)
    assert figures.loss == pytest.approx(nats.mean())
    assert figures.bpc == pytest.approx(nats.sum() / math.log(2) / lengths)
    assert figures.bpb == pytest.approx(figures.bpc / 2)
    assert figures.perplexity == pytest.approx(math.exp(nats.mean()))


def test_documents_share_out_the_whole_and_own_the_eot_that_ends_them(text):
    validation = make(*text)
    nats = np.random.default_rng(1).random(len(text[0]) - 1)
    totals, sizes = validation.document_nats(nats), validation.document_sizes()
    assert [tokens for tokens, _, _ in sizes] == [6, 24, 2, 15]
    assert totals.sum() == pytest.approx(nats.sum()) and totals[0] == pytest.approx(nats[:6].sum())


def test_halves_are_the_even_and_the_odd_documents(text):
    validation = make(*text)
    nats = np.random.default_rng(1).random(len(text[0]) - 1)
    even, odd = validation.halves(nats)
    assert (even.tokens, odd.tokens) == (6 + 2, 24 + 15)
    assert even.loss * 8 + odd.loss * 39 == pytest.approx(nats.sum())


def test_figures_of_nothing_are_not_a_number():
    assert math.isnan(Figures.of(0.0, 0, 0, 0).bpc)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_skips_tokens_is_refused(text, stride):
    with pytest.raises(ValueError, match=r"stride must be in \[1, context\]"):
        make(*text, stride=stride)
