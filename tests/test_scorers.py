"""Values of the scorers, at hand-computed points and against slow references."""

import math

import pytest
import torch
from tiny import CONTEXT, VOCAB, build, tiny_dropout, token_counts, window

from tid.model import token_nats
from tid.scorers import Evidence

SAMPLES = torch.arange(4)


def evidence(logits=None, targets=None, **more) -> Evidence:
    tokens, shifted = window()
    table = torch.ones(VOCAB, 2)
    fields = {"tokens": tokens, "targets": shifted if targets is None else targets, "embeddings": table,
              "counts": token_counts(), "noise": torch.rand(4, CONTEXT), "logits": logits}  # fmt: skip
    return Evidence(**(fields | more))


def random_logits(scale: float) -> torch.Tensor:
    return torch.randn(4, CONTEXT, VOCAB, generator=torch.Generator().manual_seed(0)) * scale


def slow_entropy(logits, targets):
    p = logits.double().softmax(-1)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)


def slow_surprisal(logits, targets):
    return -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def slow_logit_error(logits, targets):
    onehot = torch.nn.functional.one_hot(targets, VOCAB)
    return (logits.double().softmax(-1) - onehot).norm(dim=-1)


SLOW = {"entropy": slow_entropy, "surprisal": slow_surprisal, "logit_error": slow_logit_error}
UNIFORM = {"entropy": math.log(VOCAB), "surprisal": math.log(VOCAB), "logit_error": math.sqrt(1 - 1 / VOCAB)}


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("option", SLOW)
def test_logit_scorers_against_float64(option, scale):
    e = evidence(random_logits(scale))
    scores = build("scorer", option, of="predicting")(e)
    torch.testing.assert_close(scores.double(), SLOW[option](e.logits, e.targets), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("option", SLOW)
def test_logit_scorers_of_uniform_predictions(option):
    scores = build("scorer", option, of="predicting")(evidence(torch.full((4, CONTEXT, VOCAB), 3.0)))
    torch.testing.assert_close(scores, torch.full((4, CONTEXT), UNIFORM[option]))


@pytest.mark.parametrize("option", SLOW)
def test_logit_scorers_stay_finite_at_extreme_logits(option):
    logits = random_logits(1.0).sign() * 1e4
    logits[0, :, 0] = 2e4  # one certain row among the ties
    scores = build("scorer", option, of="predicting")(evidence(logits))
    assert scores.isfinite().all()
    assert (scores >= 0).all()


def test_certain_predictions_by_hand():
    targets = torch.zeros(4, CONTEXT, dtype=torch.int64)
    right, wrong = torch.zeros(2, 4, CONTEXT, VOCAB)
    right[..., 0] = wrong[..., 1] = 1e4
    expected = {"entropy": (0, 0), "surprisal": (0, 1e4), "logit_error": (0, math.sqrt(2))}
    for option, (if_right, if_wrong) in expected.items():
        scorer = build("scorer", option, of="predicting")
        assert (scorer(evidence(right, targets)) == if_right).all(), option
        wrong_scores = scorer(evidence(wrong, targets))
        torch.testing.assert_close(wrong_scores, torch.full_like(wrong_scores, if_wrong))


def test_entropy_of_a_fair_coin_is_ln_2():
    logits = torch.full((4, CONTEXT, VOCAB), -1e4)
    logits[..., [3, 5]] = 0.0
    scores = build("scorer", "entropy", of="predicting")(evidence(logits))
    torch.testing.assert_close(scores, torch.full((4, CONTEXT), math.log(2)))


def test_logit_error_is_accurate_where_the_prediction_is_nearly_right():
    targets = torch.zeros(4, CONTEXT, dtype=torch.int64)
    logits = torch.zeros(4, CONTEXT, VOCAB)
    logits[..., 0] = torch.linspace(5, 16, CONTEXT)
    scores = build("scorer", "logit_error", of="predicting")(evidence(logits, targets))
    torch.testing.assert_close(scores.double(), slow_logit_error(logits, targets), rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("option", SLOW)
def test_predicted_is_predicting_moved_to_the_token_it_is_about(option):
    e = evidence(random_logits(2.0))
    predicting = build("scorer", option, of="predicting")(e)
    predicted = build("scorer", option, of="predicted")(e)
    assert torch.equal(predicted[:, 1:], predicting[:, :-1])
    assert not predicted[:, 0].any()


def test_surprisal_of_a_token_is_the_loss_of_its_prediction(model):
    tokens, targets = window()
    nats = token_nats(model(tokens), targets)
    scores = tiny_dropout("surprisal").scores(model, tokens, targets, SAMPLES)
    torch.testing.assert_close(scores[:, 1:], nats[:, :-1], atol=1e-5, rtol=1e-5)
    assert torch.equal(targets[:, :-1], tokens[:, 1:])


def retained_gradient(model, tokens, targets):
    """The embeddings' gradient of the summed loss, by retain_grad, one row at a time."""
    rows = []
    for row in range(len(tokens)):
        x = model.embed(tokens[row : row + 1])
        x.retain_grad()
        token_nats(model.logits(model.layers(x)), targets[row : row + 1]).sum().backward()
        rows.append((x.grad, x.detach()))
    return (torch.cat(parts) for parts in zip(*rows, strict=True))


def test_gradient_scores_against_retain_grad(model):
    tokens, targets = window()
    gradient, x = retained_gradient(model, tokens, targets)
    norm = tiny_dropout("grad_norm").scores(model, tokens, targets, SAMPLES)
    product = tiny_dropout("grad_x_input").scores(model, tokens, targets, SAMPLES)
    torch.testing.assert_close(norm, gradient.square().sum(-1).sqrt(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(product, (gradient * x).sum(-1).abs(), atol=1e-5, rtol=1e-4)


def test_grad_x_input_is_the_slope_of_the_loss_as_a_token_fades(model):
    (tokens, targets), step = window(1), 2e-3
    scores = tiny_dropout("grad_x_input").scores(model, tokens, targets, SAMPLES[:1])
    for position in (0, 7, 15):
        losses = []
        for scale in (1 + step, 1 - step):
            x = model.embed(tokens).detach()
            x[:, position] *= scale
            losses.append(token_nats(model.logits(model.layers(x)), targets).double().sum())
        slope = (losses[0] - losses[1]).abs() / (2 * step)
        assert scores[0, position].item() == pytest.approx(slope.item(), rel=0.05, abs=0.02)


def slow_attention(model, tokens) -> torch.Tensor:
    """Attention weights (L, B, H, T, T) in float64 by complex rotation and an explicit softmax."""
    caught = []
    for block in model.blocks:
        for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
            projection.register_forward_hook(lambda module, x, y: caught.append(y.detach().double()))
    model(tokens)
    half = model.shape.hidden_size // model.shape.num_heads // 2
    speed = model.shape.rope_theta ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones(CONTEXT, half).double(), torch.arange(CONTEXT).double()[:, None] * speed)
    layers = []
    for q, k in zip(caught[::2], caught[1::2], strict=True):
        q, k = (z.view(len(tokens), CONTEXT, -1, 2, half).transpose(1, 2) for z in (q, k))
        q, k = (torch.complex(z[..., 0, :], z[..., 1, :]) * turn for z in (q, k))
        logits = (q @ k.mH).real / math.sqrt(2 * half)
        weights = torch.zeros_like(logits)
        for query in range(CONTEXT):
            weights[..., query, : query + 1] = logits[..., query, : query + 1].softmax(-1)
        layers.append(weights)
    return torch.stack(layers)


@pytest.mark.parametrize("layers", ["all", "last"])
def test_attention_mass_against_explicit_softmax(model, layers):
    tokens, targets = window()
    weights = slow_attention(model, tokens)
    weights = weights[-1:] if layers == "last" else weights
    expected = torch.empty(4, CONTEXT)
    for key in range(CONTEXT):
        expected[:, key] = weights[..., key:, key].mean(dim=(0, 2, 3))  # layers, heads, queries
    dropout = tiny_dropout(build("scorer", "attention_mass", layers=layers, relative_to="queries"))
    scores = dropout.scores(model, tokens, targets, SAMPLES)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)


def test_attention_to_all_alike_gives_every_token_the_same_mass():
    uniform = torch.ones(CONTEXT, CONTEXT).tril() / torch.arange(1, CONTEXT + 1)[:, None]
    twice = uniform.clone()
    twice[5:, 3] *= 2
    mass = torch.stack((uniform.sum(dim=0), twice.sum(dim=0)))[None]
    scores = build("scorer", "attention_mass")(evidence(attention=mass))
    torch.testing.assert_close(scores[0], torch.ones(CONTEXT))
    assert scores[1].argmax() == 3 and scores[1, 3] < 2


def test_embedding_norm(model):
    tokens, targets = window()
    scores = tiny_dropout("embedding_norm").scores(model, tokens, targets, SAMPLES)
    torch.testing.assert_close(scores, model.embed(tokens).square().sum(-1).sqrt().detach())


def test_unigram_by_hand():
    counts = torch.tensor([0.0, 3.0, 6.0])
    tokens = torch.tensor([[0, 1, 2, 2]])
    scores = build("scorer", "unigram", smoothing=1.0)(evidence(tokens=tokens, counts=counts))
    torch.testing.assert_close(scores, -torch.tensor([[1 / 12, 4 / 12, 7 / 12, 7 / 12]]).log())


def test_position():
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    late = build("scorer", "position", important="late")(evidence(tokens=tokens))
    early = build("scorer", "position", important="early")(evidence(tokens=tokens))
    assert late.tolist() == [[0, 1, 2, 3]] * 2
    assert early.tolist() == [[0, -1, -2, -3]] * 2


def test_random_is_uniform_and_new_for_each_sample(model):
    tokens, targets = (t.repeat(250, 1) for t in window())
    scores = tiny_dropout("random").scores(model, tokens, targets, torch.arange(1000))
    again = tiny_dropout("random").scores(model, tokens, targets, torch.arange(1000))
    assert torch.equal(scores, again)
    assert scores.unique(dim=0).shape[0] == 1000
    by_position = 5 * math.sqrt(1 / 12 / 1000)
    torch.testing.assert_close(scores.mean(dim=0), torch.full((CONTEXT,), 0.5), atol=by_position, rtol=0)
    assert scores.std().item() == pytest.approx(math.sqrt(1 / 12), rel=0.02)


def test_no_scorer_finds_all_tokens_alike(model):
    assert not tiny_dropout("none").scores(model, *window(), SAMPLES).any()
