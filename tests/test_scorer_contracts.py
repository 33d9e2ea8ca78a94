"""What every scorer in conf/scorer promises. A new YAML is held to it with no change here."""

import pytest
import torch
from tiny import CONTEXT, VOCAB, build, tiny_dropout, tiny_model, tiny_shape, tiny_step, variants, window

from tid import dropout
from tid.precision import autocast

SAMPLES = torch.arange(4)
CPU = torch.device("cpu")
VARIANTS = variants("scorer")
scorers = pytest.mark.parametrize(
    "scorer", [build("scorer", o, **c) for o, c in VARIANTS], ids=[f"{o}{c or ''}" for o, c in VARIANTS]
)


def scores_of(scorer, model, tokens, targets, samples=SAMPLES):
    return tiny_dropout(scorer).scores(model, tokens, targets, samples)


def with_another_future(tokens, targets, last: int):
    """The same rows, all tokens after position `last` changed, the last target included."""
    whole = torch.cat((tokens, targets[:, -1:]), dim=1)
    whole[:, last + 1 :] = (whole[:, last + 1 :] * 7 + 13) % VOCAB
    return whole[:, :-1], whole[:, 1:]


@scorers
def test_shape_dtype_and_finite_at_every_precision(model, scorer):
    tokens, targets = window()
    for precision in ("fp32", "bf16", "fp16"):
        with autocast(precision, CPU):
            scores = scores_of(scorer, model, tokens, targets)
        assert scores.shape == tokens.shape
        assert scores.dtype == torch.float32
        assert scores.isfinite().all(), precision
        assert not scores.requires_grad


@scorers
def test_declared_causality(model, scorer):
    tokens, targets = window()
    scores, changes = scores_of(scorer, model, tokens, targets), []
    for last in (0, 5, CONTEXT - 2, CONTEXT - 1):
        other = scores_of(scorer, model, *with_another_future(tokens, targets, last))
        changes.append((other - scores)[:, : last + 1].abs().max().item())
    if scorer.uses_labels:
        assert max(changes) > 1e-3 * scores.abs().max()
    else:
        assert max(changes) <= 1e-5 * scores.abs().max()


@scorers
def test_rows_do_not_depend_on_each_other(model, scorer):
    tokens, targets = window()
    together = scores_of(scorer, model, tokens, targets)
    alone = scores_of(scorer, model, tokens[2:3], targets[2:3], SAMPLES[2:3])
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=1e-4)


@scorers
def test_nothing_is_touched(model, scorer):
    tokens, targets = window()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    watched = [tokens, targets, SAMPLES, *model.parameters(), *(p.grad for p in model.parameters())]
    before = [t.clone() for t in [*watched, torch.get_rng_state()]]
    scores_of(scorer, model, tokens, targets)
    after = [*watched, torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@scorers
def test_scores_do_not_depend_on_the_loss_scale(scorer):
    if dropout.cached(scorer):
        pytest.skip("its scores are those of a pass that trains: tests/test_score_cache.py")
    scores = []
    for scale in (1.0, 2.0**16):
        step = tiny_step(scorer=scorer, precision="fp16", schedule=0.3)
        step.updating.scale.fill_(scale)
        step(0)
        scores.append(step.last_scores)
    torch.testing.assert_close(*scores, rtol=0, atol=0, equal_nan=True)
    assert scores[0].nan_to_num().any() == (step.dropout.band(0.0) != (0.0, 0.0))


@scorers
def test_only_what_is_declared_is_computed(model, scorer):
    calls = []
    for module in (model.blocks[0].mlp, model.norm):
        module.register_forward_hook(lambda module, x, y: calls.append(type(module).__name__))
    model.blocks[0].mlp.register_full_backward_hook(lambda *_: calls.append("backward"))
    scores_of(scorer, model, *window())
    expected = {
        "nothing": [], "embeddings": [], "logits": ["MLP", "RMSNorm"], "attention": ["MLP"],
        "gradients": ["MLP", "RMSNorm", "backward"],
    }  # fmt: skip
    assert calls == expected[scorer.needs]


class Spy:
    """Remembers what it was shown."""

    uses_labels = False

    def __init__(self, needs: str) -> None:
        self.needs, self.shown = needs, []

    def __call__(self, e):
        offered = ("embeddings", "logits", "attention", "gradients")
        self.shown.append({name for name in offered if getattr(e, name) is not None})
        return torch.zeros(e.tokens.shape, device=e.tokens.device)


@pytest.mark.parametrize("needs", ["nothing", "embeddings", "logits", "attention", "gradients"])
def test_a_scorer_gets_what_it_needs_and_no_more(model, needs):
    spy = Spy(needs)
    scores_of(spy, model, *window())
    assert spy.shown == [set() if needs == "nothing" else {"embeddings", needs}]


def test_unknown_need_is_refused():
    parts = [build(group, option) for group, option in (("selector", "lowest"), ("drop_mode", "zero"))]
    wanted = "nothing, embeddings, logits, attention, gradients"
    with pytest.raises(ValueError, match=f"needs 'hidden': wanted one of {wanted}"):
        dropout.check_combination(Spy("hidden"), *parts, build("drop_schedule", "constant"), tiny_shape(), 1)


def test_evidence_has_the_documented_shapes_and_dtypes(model):
    class Look(Spy):
        def __call__(self, e):
            self.e = e
            return super().__call__(e)

    looks = {needs: Look(needs) for needs in ("logits", "attention", "gradients")}
    for look in looks.values():
        with autocast("bf16", CPU):
            scores_of(look, model, *window())
    for needs, shape in {
        "logits": (4, CONTEXT, VOCAB), "attention": (3, 4, CONTEXT), "gradients": (4, CONTEXT, 32)
    }.items():  # fmt: skip
        value = getattr(looks[needs].e, needs)
        assert value.shape == shape
        assert value.dtype == torch.float32
        assert looks[needs].e.embeddings.shape == (VOCAB, 32)


@pytest.mark.parametrize("option", ["entropy", "surprisal", "logit_error"])
def test_scoring_row_by_row_gives_the_same_scores(monkeypatch, option):
    model, (tokens, targets) = tiny_model(), window()
    whole = scores_of(build("scorer", option), model, tokens, targets)
    monkeypatch.setattr(dropout, "LOGIT_CHUNK_BYTES", 4 * CONTEXT * VOCAB + 1)
    by_row = scores_of(build("scorer", option), model, tokens, targets)
    torch.testing.assert_close(by_row, whole, atol=1e-5, rtol=1e-5)
