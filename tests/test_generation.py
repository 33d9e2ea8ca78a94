"""Generation with a cache says what the model without one says, and samples from the promised distribution."""

import pytest
import torch
from tiny import VOCAB, tiny_model

from tid.data.tokenizer import EOT, encode, fast_encoding, load_tokenizer
from tid.generation import TextStream, choose, generate

NEVER = VOCAB  # an end token that no sample comes to
PROMPT = torch.tensor([100, 3, 1, 4, 1, 5])


def continued(model, prompt=PROMPT, *, seed=0, **changes) -> torch.Tensor:
    """Continuations (num_samples, new tokens); greedy unless `changes` say otherwise."""
    settings = {
        "context": 16, "num_samples": 1, "max_new_tokens": 10, "temperature": 0.0, "top_k": None, "top_p": None,
        "end": NEVER, "generator": torch.Generator().manual_seed(seed),
    }  # fmt: skip
    return torch.stack(list(generate(model, prompt, **settings | changes)), dim=1)


def greedy_without_cache(model, prompt, new_tokens: int, context: int) -> list[int]:
    """The slow reference: everything is read again for each token, after the documented rule about the context."""
    seen, made = prompt[-context:].tolist(), []
    for _ in range(new_tokens):
        if len(seen) > context:
            seen = seen[-max(1, context // 2) :]
        made.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
        seen.append(made[-1])
    return made


@pytest.mark.parametrize("seed", [0, 1, 2])
@torch.no_grad()
def test_greedy_equals_the_model_without_a_cache(seed):
    model = tiny_model(seed)
    made = continued(model)[0].tolist()
    assert made == greedy_without_cache(model, PROMPT, 10, context=16)
    assert len(set(made)) > 1


@pytest.mark.parametrize("context", [2, 3, 8, 16])
@pytest.mark.parametrize("prompt", [PROMPT[:1], PROMPT, torch.arange(40)])
@torch.no_grad()
def test_beyond_the_context_the_older_half_is_forgotten(context, prompt):
    model = tiny_model(1)
    made = continued(model, prompt, max_new_tokens=37, context=context)[0].tolist()
    assert made == greedy_without_cache(model, prompt, 37, context)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_greedy_on_a_gpu_equals_the_model_without_a_cache():
    model = tiny_model(1)
    expected = greedy_without_cache(model, PROMPT, 30, context=16)
    generator = torch.Generator("cuda").manual_seed(0)
    made = continued(model.to("cuda"), max_new_tokens=30, num_samples=2, generator=generator)
    assert made.tolist() == [expected, expected]


@torch.no_grad()
def test_the_model_never_sees_more_than_the_context(monkeypatch):
    model, lengths = tiny_model(), []
    rope = model.rope
    monkeypatch.setattr(model, "rope", lambda length: lengths.append(length) or rope(length))
    continued(model, torch.arange(40), max_new_tokens=30)
    assert set(lengths) == {16}


def test_samples_of_a_batch_differ_and_greedy_ones_do_not(model):
    assert len(set(map(tuple, continued(model, num_samples=8, temperature=1.0).tolist()))) == 8
    greedy = continued(model, num_samples=3)
    assert (greedy == greedy[0]).all()


def test_randomness_comes_from_the_generator_alone(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = continued(model, temperature=1.0, num_samples=2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(one, continued(model, temperature=1.0, num_samples=2, seed=5))
    assert not torch.equal(one, continued(model, temperature=1.0, num_samples=2, seed=6))


def test_a_sample_ends_at_the_end_token_and_all_end_together(model):
    free = continued(model, temperature=1.0, num_samples=4, max_new_tokens=200, seed=1)
    end = int(free[0, 5])
    bound = continued(model, temperature=1.0, num_samples=4, max_new_tokens=200, seed=1, end=end)
    firsts = [row.index(end) for row in bound.tolist()]
    assert max(firsts) == bound.shape[1] - 1 and min(firsts) < max(firsts)
    for row, first in zip(bound, firsts, strict=True):
        assert (row[first:] == end).all() and not (row[:first] == end).any()


def test_sampling_follows_the_models_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -3.0]]).expand(40_000, -1)
    made = choose(logits, 0.5, None, None, torch.Generator().manual_seed(0))
    expected = (logits[0] / 0.5).softmax(-1)
    torch.testing.assert_close(made.bincount(minlength=4) / 40_000, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (None, None, {0, 1, 2, 3}),
        (1, None, {0}),
        (2, None, {0, 1}),
        (9, None, {0, 1, 2, 3}),
        (None, 0.4, {0}),  # 0.5 alone is enough
        (None, 0.5, {0}),
        (None, 0.51, {0, 1}),
        (None, 0.9, {0, 1, 2}),
        (None, 1.0, {0, 1, 2, 3}),
        (2, 0.6, {0}),  # among the two best the first has 0.625
    ],
)
def test_top_k_and_top_p_keep_what_they_should(top_k, top_p, kept):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[[2, 0, 3, 1]].expand(4000, -1)
    made = choose(logits, 1.0, top_k, top_p, torch.Generator().manual_seed(0))
    assert {(2, 0, 3, 1)[token] for token in made.tolist()} == kept


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 5, None), (1.3, None, 0.8), (1.0, 20, 0.5)])
def test_the_filters_are_those_of_transformers(temperature, top_k, top_p):
    transformers = pytest.importorskip("transformers")
    logits = torch.randn(50, VOCAB, generator=torch.Generator().manual_seed(3)) * 3
    theirs = transformers.TemperatureLogitsWarper(temperature)(None, logits)
    theirs = transformers.TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
    theirs = transformers.TopPLogitsWarper(top_p)(None, theirs) if top_p else theirs
    expected = torch.multinomial(theirs.softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    assert torch.equal(choose(logits, temperature, top_k, top_p, torch.Generator().manual_seed(0)), expected)


@pytest.mark.parametrize("temperature", [1e-30, 1.2e-38, 1e-38, 1e-45, 1e-300, 0.0])  # float32 ends at 1.2e-38
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (5, 0.9)])
def test_a_tiny_temperature_is_greedy_and_finite(temperature, top_k, top_p):
    logits = torch.randn(20, VOCAB, generator=torch.Generator().manual_seed(3)) * 10
    assert torch.equal(choose(logits, temperature, top_k, top_p, torch.Generator()), logits.argmax(-1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs(model, precision):
    made = continued(model, precision=precision, num_samples=2, max_new_tokens=30)
    assert made.shape == (2, 30) and int(made.max()) < VOCAB


# ------------------------------------------------------------------------------------------------- text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tmp_path_factory.mktemp("tokenizer"))


TEXTS = ["Hello, wörld!", "日本語 🤗👩‍👩‍👧 naïve", "a\n\n\tb  c", "", "\u200b\ufeffé"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_appears_whole_character_by_character(tokenizer, text):
    stream, pieces = TextStream(fast_encoding(tokenizer), EOT), []
    for token in encode(tokenizer, text):
        pieces.append(stream.add(token))
        assert "\ufffd" not in pieces[-1]
        assert text.startswith("".join(pieces))
    assert "".join(pieces) == text and stream.finish() == ""


def test_broken_bytes_become_a_replacement_character(tokenizer):
    emoji = encode(tokenizer, "🤗")
    assert len(emoji) > 1
    stream = TextStream(fast_encoding(tokenizer), EOT)
    assert stream.add(emoji[0]) == ""
    assert stream.add(encode(tokenizer, "a")[0]) == "\ufffda"
    assert stream.add(emoji[0]) == ""
    assert stream.add(EOT) == "\ufffd" and stream.finish() == ""
