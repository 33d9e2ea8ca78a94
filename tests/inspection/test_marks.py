"""Marks of a text: the scores, masks and losses that training would see."""

import numpy as np
import pytest
import torch
from tiny import CONTEXT, EOT, build, options, tiny_dropout, tiny_model, tiny_text, token_counts, weights
from tiny import tiny_step as make_step

from tid.inspection.marks import Dropping, mark, sequences
from tid.model import token_nats
from tid.scorers import Entropy

LENGTH = 5 * CONTEXT + 7  # not a whole number of sequences


def dropping(scorers=("random",), selector="lowest", rate=0.3) -> Dropping:
    found = {name: build("scorer", name) for name in scorers}
    return Dropping(found, build("selector", selector), rate, token_counts(), 1, EOT, 7)


def marked(model, wanted, length=LENGTH, **more):
    return mark(model, tiny_text()[: length + 1], CONTEXT, wanted, precision="fp32", **more)


def test_the_text_is_cut_as_training_cuts_it():
    parts = sequences(tiny_text()[: LENGTH + 1], CONTEXT)
    assert [tuple(inputs.shape) for inputs, _ in parts] == [(5, CONTEXT), (1, 7)]
    inputs = torch.cat([part.flatten() for part, _ in parts])
    targets = torch.cat([part.flatten() for _, part in parts])
    assert inputs.tolist() == tiny_text()[:LENGTH].tolist() and targets.tolist() == tiny_text()[1 : LENGTH + 1].tolist()
    assert [tuple(inputs.shape) for inputs, _ in sequences(tiny_text()[:6], CONTEXT)] == [(1, 5)]
    with pytest.raises(ValueError, match="the text has 1 tokens"):
        sequences(tiny_text()[:1], CONTEXT)


def test_scores_and_masks_are_those_of_training(model):
    """Of every scorer in conf/: the very numbers of TokenDropout on the same batch."""
    names = [name for name in options("scorer") if name != "none"]
    found = marked(model, dropping(names), length=4 * CONTEXT)
    inputs, targets = sequences(tiny_text()[: 4 * CONTEXT + 1], CONTEXT)[0]
    band, samples = torch.tensor([0.3, 0.3], dtype=torch.float64), torch.arange(4)
    for name in names:
        dropout = tiny_dropout(name)
        scores = dropout.scores(model, inputs, targets, samples)
        keep = dropout.choose(scores, inputs, band, samples).keep
        torch.testing.assert_close(torch.from_numpy(found.fates[name].scores), scores.flatten())
        assert found.fates[name].keep.tolist() == keep.flatten().tolist(), name


def test_losses_are_of_the_next_token_and_surprisals_of_the_token_itself(model):
    found = marked(model, dropping(), length=2 * CONTEXT)
    inputs, targets = sequences(tiny_text()[: 2 * CONTEXT + 1], CONTEXT)[0]
    with torch.no_grad():
        logits = model(inputs)
    nats = token_nats(logits, targets).numpy()
    np.testing.assert_allclose(found.loss, nats.flatten(), rtol=1e-4)
    surprisal, entropy = found.surprisal.reshape(2, -1), found.entropy.reshape(2, -1)
    assert np.isnan(surprisal[:, 0]).all() and np.isnan(entropy[:, 0]).all()
    np.testing.assert_allclose(surprisal[:, 1:], nats[:, :-1], rtol=1e-4)
    p = logits.softmax(-1).numpy()
    np.testing.assert_allclose(entropy[:, 1:], -(p * np.log(p)).sum(-1)[:, :-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("selector", options("selector"))
def test_the_slider_agrees_with_the_mask_at_the_rate_asked_for(model, selector):
    found = marked(model, dropping(["random"], selector, rate=0.37))
    fate = found.fates["random"]
    assert 0.37 in fate.rates and list(fate.rates) == sorted(fate.rates)
    assert ((fate.level > fate.rates.index(0.37)) == fate.keep).all()
    assert (fate.level[~found.droppable] == len(fate.rates)).all() and (~fate.keep).sum() > 10


def test_ranks_order_the_droppable_tokens_of_a_sequence(model):
    found = marked(model, dropping(["unigram"]))
    fate = found.fates["unigram"]
    assert (fate.rank[~found.droppable] == 0).all()
    for row in range(found.row.max() + 1):
        own = found.droppable & (found.row == row)
        assert sorted(fate.rank[own]) == list(range(1, own.sum() + 1))
        assert (np.diff(fate.scores[own][fate.rank[own].argsort()]) >= 0).all()


def test_marking_leaves_the_model_and_its_random_numbers_alone():
    step = make_step(scorer="grad_norm")
    before, state = weights(step), torch.get_rng_state()
    marked(step.model, dropping(["grad_norm", "entropy", "random"]))
    assert all(torch.equal(before[name], value) for name, value in weights(step).items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in step.model.parameters())


def test_batches_do_not_change_the_marks(model):
    one, many = (marked(model, dropping(["grad_norm", "entropy"]), batch_size=size) for size in (1, 4))
    for name in one.fates:
        np.testing.assert_allclose(one.fates[name].scores, many.fates[name].scores, rtol=1e-4, atol=1e-6)


def test_later_readings_draw_anew_what_is_random(model):
    one, again, later = (marked(model, dropping(["random", "entropy"]), first_sample=n) for n in (0, 0, 6))
    assert (one.fates["random"].keep == again.fates["random"].keep).all()
    assert (one.fates["random"].keep != later.fates["random"].keep).any()
    assert (one.fates["entropy"].keep == later.fates["entropy"].keep).all()


def test_scorers_of_logits_share_one_pass(monkeypatch):
    model, passes = tiny_model(), []
    layers = type(model).layers
    monkeypatch.setattr(type(model), "layers", lambda self, *a, **k: passes.append(1) or layers(self, *a, **k))
    scorers = {"entropy": Entropy("fresh", "predicted"), "surprisal": build("scorer", "surprisal")}
    mark(
        model, tiny_text()[: 2 * CONTEXT + 1], CONTEXT,
        Dropping(scorers, build("selector", "lowest"), 0.3, token_counts(), 1, EOT, 7), precision="fp32",
    )  # fmt: skip
    assert len(passes) == 1
