"""What is read where, and that the figures of each prediction are the model's own."""

import numpy as np
import pytest
import torch
from tiny import tiny_model

from tid.data import TokenFile
from tid.predictions import document_windows, packed_windows, predict, sample_documents
from tid.validation import Validation

EOT = 100
LENGTHS = (5, 23, 1, 0, 16, 17, 14)  # around the context, and an empty document


@pytest.fixture
def text() -> TokenFile:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 100, n).tolist() for n in LENGTHS]
    starts = np.cumsum([0, *(len(d) + 1 for d in documents[:-1])])
    return TokenFile(np.array([*(t for d in documents for t in (EOT, *d)), EOT], np.uint16), starts)


def read(model, tokens, windows, batch_size=3, context=16, precision="fp32"):
    return predict(model, tokens, windows, context=context, batch_size=batch_size, precision=precision)


@pytest.mark.parametrize("stride", [16, 7, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_packed_nats_are_those_of_validation_bit_by_bit(model, text, stride, batch_size):
    nothing = np.zeros(101, np.int64)
    validation = Validation(text.tokens, text.doc_starts, nothing, nothing, context=16, stride=stride,
                            batch_size=batch_size, precision="fp32", device=torch.device("cpu"))  # fmt: skip
    found = read(model, text.tokens, packed_windows(len(text.tokens), 16, stride), batch_size)
    assert np.array_equal(found.nats, validation.nats(model))
    assert np.array_equal(found.index, np.arange(len(text.tokens) - 1))
    assert np.array_equal(found.target, text.tokens[1:])
    assert (found.before[: 16 - stride] == np.arange(1, 17 - stride)).all()
    assert (found.before[16:] > 16 - stride).all() and found.before.max() == 16


def rolled(tokens: list[int], context: int, stride: int) -> list[tuple[list[int], int]]:
    """lm-evaluation-harness' rolling windows of one document (its get_rolling_token_windows and
    make_disjoint_window): for each predicted token what comes before it in its window."""
    found, done = [], 0
    while done < len(tokens):
        fresh = min(len(tokens) - done, stride if done else context)
        end = done + fresh
        inputs = tokens[end - context - 1 : end - 1] if done else [EOT, *tokens[: end - 1]]
        found += [(inputs[: len(inputs) - fresh + i + 1], tokens[done + i]) for i in range(fresh)]
        done = end
    return found


@pytest.mark.parametrize("stride", [16, 7, 1])
@torch.no_grad()
def test_documents_are_read_as_lm_evaluation_harness_does(model, text, stride):
    ends = [*text.doc_starts[1:], len(text.tokens) - 1]
    documents = [text.tokens[a + 1 : b].tolist() for a, b in zip(text.doc_starts, ends, strict=True)]
    expected = [pair for document in documents for pair in rolled(document, 16, stride)]
    found = read(model, text.tokens, document_windows(len(text.tokens), text.doc_starts, 16, stride))
    assert found.target.tolist() == [token for _, token in expected] == [t for d in documents for t in d]
    assert found.before.tolist() == [len(inputs) for inputs, _ in expected]
    for at, (inputs, token) in enumerate(expected):
        logs = model(torch.tensor([inputs]))[0, -1].log_softmax(-1)
        assert found.nats[at] == pytest.approx(-logs[token].item(), abs=1e-4)
    assert (text.tokens[found.index + 1] == found.target).all()


@torch.no_grad()
def test_entropy_confidence_and_correct_against_float64(model, text):
    found = read(model, text.tokens, packed_windows(len(text.tokens), 16, 16))
    inputs = torch.from_numpy(text.tokens[:16].astype(np.int64))[None]
    distribution = model(inputs)[0].double().softmax(-1)
    np.testing.assert_allclose(found.entropy[:16], -(distribution * distribution.log()).sum(-1), atol=1e-4)
    np.testing.assert_allclose(found.confidence[:16], distribution.amax(-1), atol=1e-5)
    assert found.correct[:16].tolist() == (distribution.argmax(-1).numpy() == text.tokens[1:17]).tolist()
    best = int(distribution[3].argmax())
    sure = read(model, np.array([*text.tokens[:4], best], np.uint16), packed_windows(5, 16, 16))
    assert sure.correct[3] and sure.confidence[3] == pytest.approx(np.exp(-sure.nats[3]), rel=1e-4)


def test_half_precision_is_close(text):
    model = tiny_model()
    windows = packed_windows(len(text.tokens), 16, 16)
    half, full = (read(model, text.tokens, windows, precision=p) for p in ("bf16", "fp32"))
    np.testing.assert_allclose(half.nats, full.nats, atol=0.3)
    np.testing.assert_allclose(half.entropy, full.entropy, atol=0.2)


def test_a_text_of_empty_documents_is_refused(model):
    starts = np.array([0, 1])
    with pytest.raises(ValueError, match="no token to predict"):
        read(model, np.array([EOT, EOT, EOT], np.uint16), document_windows(3, starts, 16, 16))


@pytest.mark.parametrize("count", [1, 3, 7, 99])
def test_sampled_documents_are_whole_and_evenly_spaced(text, count):
    sample = sample_documents(text, count)
    count = min(count, len(LENGTHS))
    assert len(sample.doc_starts) == count and (sample.tokens[sample.doc_starts] == EOT).all()
    assert sample.tokens[-1] == EOT and (sample.tokens == EOT).sum() == count + 1
    lengths = np.diff([*sample.doc_starts, len(sample.tokens) - 1]) - 1
    assert lengths.tolist() == [LENGTHS[i * len(LENGTHS) // count] for i in range(count)]
    if count == len(LENGTHS):
        assert np.array_equal(sample.tokens, text.tokens) and np.array_equal(sample.doc_starts, text.doc_starts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same(text):
    windows = packed_windows(len(text.tokens), 16, 7)
    cpu, gpu = (read(tiny_model().to(device), text.tokens, windows) for device in ("cpu", "cuda"))
    for name in ("nats", "entropy", "confidence"):
        np.testing.assert_allclose(getattr(gpu, name), getattr(cpu, name), atol=1e-3)
    assert np.array_equal(gpu.index, cpu.index)
