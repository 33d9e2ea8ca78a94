import math
from pathlib import Path

import pytest
import torch
from tiny import CONTEXT, EOT, build, options, tiny_dropout, tiny_model, tiny_shape, window

from tid import scorers
from tid.config import ConfigError
from tid.dropout import check_combination, score_flops

ROOT = Path(__file__).parents[1]
SAMPLES = torch.arange(4)
EXACT = [name for name in options("selector") if build("selector", name).exact]


def choose(dropout, scores, tokens, rate: float, samples=SAMPLES):
    return dropout.choose(scores, tokens, torch.tensor([rate, rate], dtype=torch.float64), samples)


def normal(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, CONTEXT, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("protect_first", [0, 1, 5, CONTEXT, 99])
def test_eot_and_the_first_positions_are_protected(protect_first):
    tokens, _ = window()
    assert (tokens == EOT).any()
    droppable = tiny_dropout(protect_first=protect_first).droppable(tokens)
    for row in range(4):
        for place in range(CONTEXT):
            assert droppable[row, place] == (tokens[row, place] != EOT and place >= protect_first)


@pytest.mark.parametrize("protect_first", [0, 3])
@pytest.mark.parametrize("option", EXACT)
def test_realised_counts_are_exact(option, protect_first):
    tokens, dropout = window()[0], tiny_dropout(selector=option, protect_first=protect_first)
    for rate in (0.0, 0.1, 0.3, 0.5, 0.99):
        choice = choose(dropout, normal(), tokens, rate)
        droppable = dropout.droppable(tokens)
        expected = [round(rate * int(row.sum())) for row in droppable]
        assert (~choice.keep).sum(dim=1).tolist() == expected
        assert choice.keep[~droppable].all()
        assert (choice.dropped, choice.droppable, choice.bad_rows) == (sum(expected), droppable.sum(), 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("option", EXACT)
def test_a_score_that_is_not_finite_decides_nothing(option, bad):
    tokens, dropout = window()[0], tiny_dropout(selector=option)
    tokens[1] = torch.where(tokens[1] == EOT, 0, tokens[1])
    clean = choose(dropout, normal(), tokens, 0.4)
    keeps = []
    for places in ([3], [7, 8], list(range(1, CONTEXT))):
        scores = normal()
        scores[1, places] = bad
        choice = choose(dropout, scores, tokens, 0.4)
        assert choice.bad_rows == 1
        assert choice.dropped == clean.dropped
        assert torch.equal((~choice.keep).sum(dim=1), (~clean.keep).sum(dim=1))
        assert torch.equal(choice.keep[[0, 2, 3]], clean.keep[[0, 2, 3]])
        keeps.append(choice.keep[1])
    assert torch.equal(keeps[0], keeps[1])
    assert torch.equal(keeps[0], keeps[2])


@pytest.mark.parametrize("option", EXACT)
def test_bad_rows_are_chosen_at_random(option):
    rows, dropout = 4000, tiny_dropout(selector=option, protect_first=0)
    tokens = torch.zeros(rows, CONTEXT, dtype=torch.int64)
    scores = torch.arange(CONTEXT, dtype=torch.float32).repeat(rows, 1)
    scores[:, 0] = torch.nan
    dropped = ~choose(dropout, scores, tokens, 0.25, torch.arange(rows)).keep
    assert (dropped.double().mean(dim=0) - 0.25).abs().max() < 4.5 * math.sqrt(0.25 * 0.75 / rows)


def test_scores_of_protected_tokens_do_not_matter():
    tokens = window()[0]
    for option in options("selector"):
        keeps = []
        for junk in (0.0, torch.nan, torch.inf, -1e9, 1e30):
            dropout = tiny_dropout(selector=option)
            for seed in range(3):
                scores = normal(seed).masked_fill(~dropout.droppable(tokens), junk)
                choice = choose(dropout, scores, tokens, 0.4)
            assert choice.bad_rows == 0
            keeps.append(choice.keep)
        assert all(torch.equal(keeps[0], keep) for keep in keeps[1:]), option


def test_threshold_keeps_bad_rows_and_learns_nothing_from_them():
    tokens = window()[0]
    dropouts = [tiny_dropout(selector="threshold") for _ in range(2)]
    for seed in range(5):
        for dropout, bad in zip(dropouts, (torch.nan, torch.inf), strict=True):
            scores = normal(seed)
            scores[1, 5] = bad
            choice = choose(dropout, scores, tokens, 0.4)
            assert choice.keep[1].all()
    assert (~choice.keep).any()
    assert torch.equal(dropouts[0].state["quantiles"], dropouts[1].state["quantiles"])
    assert dropouts[0].state["quantiles"].isfinite().all()


def test_choice_is_a_function_of_seed_and_sample():
    tokens, zeros = window()[0], torch.zeros(4, CONTEXT)
    keep = choose(tiny_dropout(), zeros, tokens, 0.5).keep
    assert torch.equal(keep, choose(tiny_dropout(), zeros, tokens, 0.5).keep)
    assert not torch.equal(keep, choose(tiny_dropout(), zeros, tokens, 0.5, SAMPLES + 4).keep)
    assert not torch.equal(keep, choose(tiny_dropout(seed=8), zeros, tokens, 0.5).keep)
    rows = [slice(i, i + 1) for i in range(4)]
    each = [choose(tiny_dropout(), zeros[row], tokens[row], 0.5, SAMPLES[row]).keep for row in rows]
    assert torch.equal(torch.cat(each), keep)


def test_random_scores_and_the_noise_that_breaks_ties_are_different():
    """With one stream for both, the `sampled` selector would see scores that know its own noise."""
    tokens = torch.zeros(500, CONTEXT, dtype=torch.int64)
    samples, dropout = torch.arange(500), tiny_dropout("random")
    ties = choose(dropout, torch.zeros(500, CONTEXT), tokens, 0.5, samples).keep
    scores = dropout.scores(tiny_shape().build(0), tokens, tokens, samples)
    lowest = choose(dropout, scores, tokens, 0.5, samples).keep
    agreement = (ties == lowest)[:, 1:].double().mean().item()
    assert agreement == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("scorer", "schedule"), [("none", 0.5), ("entropy", "none"), ("none", "none")])
def test_baselines_have_rate_0(scorer, schedule):
    dropout = tiny_dropout(scorer, schedule=schedule)
    assert all(dropout.band(p / 10) == (0.0, 0.0) for p in range(11))


# -------------------------------------------------------------------------------- combinations


def check(scorer="entropy", selector="lowest", mode="zero", schedule="constant", protect_first=1, **fields):
    scorer = build("scorer", scorer, **fields) if isinstance(scorer, str) else scorer
    schedule = build("drop_schedule", schedule) if isinstance(schedule, str) else schedule
    mode = build("drop_mode", mode) if isinstance(mode, str) else mode
    check_combination(scorer, build("selector", selector), mode, schedule, tiny_shape(), protect_first)


def test_the_scorer_of_the_readme_works_and_is_refused_where_the_first_position_has_no_score():
    code = (ROOT / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names = vars(scorers).copy()
    exec(code, names)
    margin = names["Margin"](of="predicted")
    tokens, targets = window()
    scores = tiny_dropout(scorer=margin).scores(tiny_model(), tokens, targets, SAMPLES)
    assert (scores[:, 0] == 0).all() and (scores[:, 1:] < 0).all()  # unprotected, the first would always be kept
    check(margin, protect_first=1)
    check(names["Margin"](of="predicting"), protect_first=0)
    with pytest.raises(ValueError, match="of=predicted has no score for the first position"):
        check(margin, protect_first=0)


def test_every_combination_on_disk_is_allowed_but_skip_with_threshold():
    refused = set()
    for scorer in options("scorer"):
        for selector in options("selector"):
            for mode in options("drop_mode"):
                try:
                    check(scorer, selector, mode)
                except ValueError:
                    refused.add((selector, mode))
    assert refused == {("threshold", "skip")}


def test_a_scorer_that_does_not_say_what_it_needs_is_refused():
    with pytest.raises(ValueError, match="scorer object needs what it does not say: wanted one of nothing"):
        check(object())


def test_scores_of_another_shape_are_refused_by_the_scorers_name():
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"scorer Random: wanted scores \(B, T\) of shape \(2, 8\), got \(2, 7\)"):
        tiny_dropout(scorer="random").choose(torch.rand(2, 7), tokens, torch.tensor([0.3, 0.3]), torch.arange(2))


def test_skip_with_threshold_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="Skip gathers a known number.*Threshold only approaches the rate"):
        check(selector="threshold", mode="skip")
    check("none", selector="threshold", mode="skip")  # the baseline uses neither


@pytest.mark.parametrize("option", ["entropy", "surprisal", "logit_error"])
def test_predicted_scores_need_a_protected_first_position(option):
    with pytest.raises(ValueError, match="no score for the first position"):
        check(option, protect_first=0, of="predicted")
    check(option, protect_first=0, of="predicting")


def test_a_mode_that_does_not_fit_the_model_is_refused():
    with pytest.raises(ValueError, match="leaves no layer to skip"):
        check(mode=build("drop_mode", "skip", first_layers=2, last_layers=1))


def test_a_schedule_that_leaves_the_range_is_refused():
    with pytest.raises(ConfigError, match=r"low must be at most rate \(0.5\), got 0.6"):
        build("drop_schedule", "uniform", low=0.6, rate=0.5)
    with pytest.raises(ValueError, match="wanted 0 <= low <= high < 1"):
        check(schedule=lambda progress: (0.6, 0.5))
    with pytest.raises(ValueError, match=r"at progress 0\.900"):
        check(schedule=lambda progress: progress + 0.1)


def test_score_flops_are_thirds_of_a_training_pass():
    shape = tiny_shape()
    whole = shape.flops_per_token(CONTEXT) * CONTEXT
    layers = 3 * shape.layer_flops_per_token(CONTEXT) * CONTEXT
    costs = {"nothing": 0, "embeddings": 0, "logits": whole / 3, "attention": layers / 3, "gradients": 2 * whole / 3}
    for needs, cost in costs.items():
        assert score_flops(shape, CONTEXT, needs) == pytest.approx(cost)
