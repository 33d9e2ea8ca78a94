import math

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB, build, options, tiny_model, tiny_shape, window

from tid.model import explicit_attention, token_nats


def llama_with_weights_of(model, tied: bool):
    """transformers' LlamaForCausalLM with the same weights."""
    transformers = pytest.importorskip("transformers")
    shape = model.shape
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        rope_theta=shape.rope_theta,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=tied,
    )
    weights = {f"model.{name.replace('blocks.', 'layers.')}": p for name, p in model.state_dict().items()}
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][: shape.vocab_size]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    llama = transformers.LlamaForCausalLM(config)
    llama.load_state_dict(weights)
    return llama


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("changes", [{}, {"rope_theta": 100.0}, {"norm_eps": 0.1}, {"num_heads": 1}])
def test_logits_equal_transformers_llama(tied, changes):
    model = tiny_model(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    tokens, _ = window()
    expected = llama_with_weights_of(model, tied)(tokens).logits
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_close(model, dtype):
    tokens, _ = window()
    with torch.autocast("cpu", dtype):
        logits = model(tokens)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), model(tokens), atol=0.15, rtol=0.05)


def test_no_prediction_depends_on_the_future(model):
    tokens, _ = window()
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCAB
    torch.testing.assert_close(model(changed)[:, :9], model(tokens)[:, :9])
    assert not torch.allclose(model(changed)[:, 9:], model(tokens)[:, 9:])


def test_padded_vocabulary_never_counts(model):
    tokens, targets = window()
    logits, rows = model(tokens), model.embed_tokens.weight
    assert logits.shape == (*tokens.shape, VOCAB)
    assert rows.shape[0] == 128
    with torch.no_grad():
        assert not rows[VOCAB:].any()
        rows[VOCAB:] = 1e4
    assert torch.equal(model(tokens), logits)
    token_nats(model(tokens), targets).mean().backward()
    assert not rows.grad[VOCAB:].any()
    assert rows.grad[:VOCAB].any(dim=1).all()  # tied: as an output, every token has a gradient


def test_reference_model_has_124_million_parameters():
    attention, feed_forward, norms = 4 * 768 * 768, 3 * 768 * 2048, 2 * 768
    by_hand = 50257 * 768 + 12 * (attention + feed_forward + norms) + 768
    assert by_hand == 123_551_232
    assert build("model", "gpt_125m").build(seed=0).parameter_count == by_hand


@pytest.mark.parametrize("option", [name for name in options("model") if name != "gpt_125m"])
def test_parameter_count(option):
    shape = build("model", option)
    width, inner = shape.hidden_size, shape.intermediate_size
    layer = 4 * width * width + 3 * width * inner + 2 * width
    assert shape.build(seed=0).parameter_count == shape.vocab_size * width + shape.num_layers * layer + width


def test_every_parameter_is_initialised_as_documented():
    shape = tiny_shape(hidden_size=128, intermediate_size=256, num_layers=2, init_std=0.02, vocab_size=1000)
    for name, parameter in shape.build(seed=0).named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 0.02 / math.sqrt(2 * 2) if residual else 0.02
        values = parameter[: shape.vocab_size]
        assert values.std().item() == pytest.approx(std, rel=0.02), name
        assert abs(values.mean().item()) < 5 * std / math.sqrt(values.numel()), name
        assert values.abs().max() > 3 * std, name  # normal, not uniform


def test_initialisation_is_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    one = tiny_model(seed=5).state_dict()
    torch.manual_seed(2)
    again, other = tiny_model(seed=5).state_dict(), tiny_model(seed=6).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.equal(one[name], other[name]) == (one[name].ndim == 1) for name in one)


@pytest.mark.parametrize("heads", [3, 32])
def test_heads_that_do_not_divide_the_width_into_even_sizes_are_refused(heads):
    with pytest.raises(ValueError, match="even multiple of num_heads, got 32 and"):
        tiny_shape(num_heads=heads)


def test_explicit_attention_equals_sdpa(model):
    q, k, v = torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(0))
    output, weights = explicit_attention(q, k, v)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 16))
    assert not weights.triu(1).any()

    x = model.embed(window()[0])
    y, mass = model.blocks[0].with_mass(x, model.rope(16))
    torch.testing.assert_close(y, model.blocks[0](x, model.rope(16)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mass.sum(dim=1), torch.full((4,), 16.0))
    assert model.attention_mass(x).shape == (3, 4, 16)


def test_layers_in_parts_equal_layers_in_one_go(model):
    x = model.embed(window()[0])
    in_parts = model.layers(model.layers(model.layers(x, last=1), first=1, last=2), first=2)
    assert torch.equal(in_parts, model.layers(x))


def test_flops_by_hand():
    shape = tiny_shape(num_layers=2, hidden_size=4, num_heads=1, intermediate_size=6, vocab_size=10)
    layer_weights = 4 * 16 + 3 * 24
    # attention at context 8: 2 products of 2 · 8 · 4 operations, thrice (forward, and backward twice)
    assert shape.flops_per_token(8) == 2 * (6 * layer_weights + 3 * 2 * 2 * 8 * 4) + 6 * 40


def test_token_nats_against_float64(model):
    tokens, targets = window()
    logits = model(tokens)
    expected = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(token_nats(logits, targets).double(), expected, atol=1e-5, rtol=1e-5)
    assert token_nats(logits.bfloat16(), targets).dtype == torch.float32
