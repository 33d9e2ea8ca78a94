"""scorer.source=cached: the scores of an epoch ago are the right ones, for the right tokens."""

import copy

import numpy as np
import pytest
import torch
from tiny import CONTEXT, assert_same, build, run, tiny_shape, tiny_step, variants, weights

from tid.dropout import check_combination
from tid.flat import flat_update
from tid.loop import cache_figures
from tid.pieces import Pieces
from tid.schedules import Late
from tid.score_cache import ScoreCache, first_epoch
from tid.scorers import FromPass
from tid.step import COLUMNS

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SCORERS = [option for option, changes in variants("scorer") if changes.get("source") == "cached"]
EPOCH = 19  # updates that read the tiny text once, and 2 sequences again: it has 74, 4 at a time


def step_of(scorer: str, source: str, *, learns: bool = False, epochs: int = 3, **changes):
    """A step of the tiny model; unless it `learns`, its weights stay as they are."""
    optim = build("optim", "adamw", lr=3e-3 if learns else 1e-30, weight_decay=0.0, warmup_steps=0)
    steps = epochs * EPOCH
    fields = {"total_steps": steps, "window": steps, "optim": optim, "schedule": 0.3}
    return tiny_step(scorer=build("scorer", scorer, source=source), **(fields | changes))


def column(step, name: str) -> list[float]:
    return step.metrics[:, COLUMNS.index(name)].tolist()


def assert_same_choices(fresh, cached, first: int, last: int) -> None:
    """Both steps, taken from `first` to `last`, have the same scores and drop the same tokens."""
    for number in range(first, last):
        for step in (fresh, cached):
            step(number)
        # position 0 is protected, and counts by other tokens' scores for nothing
        torch.testing.assert_close(cached.last_scores, fresh.last_scores, atol=1e-5, rtol=1e-4)
        assert torch.equal(cached.token_drops, fresh.token_drops)


@pytest.mark.parametrize("scorer", SCORERS)
def test_after_epochs_without_dropping_cached_scores_are_fresh_ones(scorer):
    fresh, cached = (step_of(scorer, source, schedule=Late(rate=0.3, start=2 / 3)) for source in ("fresh", "cached"))
    for step in (fresh, cached):
        run(step, 2 * EPOCH)
    assert_same_choices(fresh, cached, 2 * EPOCH, 3 * EPOCH - 2)  # then the fourth epoch begins
    assert sum(column(cached, "dropped")) > 0 == sum(column(cached, "unscored"))


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("mode", ["loss_mask", "mask_aux"])
def test_a_mode_that_sees_all_tokens_refreshes_all_scores(scorer, mode):
    if mode == "loss_mask" and build("scorer", scorer).needs == "gradients":
        with pytest.raises(ValueError, match="LossMask trains on a part of the loss"):
            check(scorer, mode)
        return
    fresh, cached = (step_of(scorer, source, mode=mode, epochs=2) for source in ("fresh", "cached"))
    for step in (fresh, cached):
        run(step, EPOCH)
        step.token_drops.zero_()
    assert column(fresh, "dropped") == column(cached, "dropped")  # at random, but as many
    assert_same_choices(fresh, cached, EPOCH, 2 * EPOCH)


@pytest.mark.parametrize(("micros", "precision"), [(2, "fp32"), (1, "bf16")])
def test_accumulated_and_16_bit_steps_keep_scores_too(micros, precision):
    for scorer in ("surprisal", "grad_norm"):
        steps = [
            step_of(scorer, source, mode="mask_aux", batch_size=4 // micros, accumulate_steps=micros,
                    precision=precision, epochs=2)
            for source in ("fresh", "cached")
        ]  # fmt: skip
        for step in steps:
            run(step, EPOCH + 1)
        fresh, cached = (step.last_scores for step in steps)
        torch.testing.assert_close(cached, fresh, atol=1e-5, rtol=1e-4 if precision == "fp32" else 3e-2)


def test_a_dropped_token_keeps_its_score_and_a_kept_one_gets_a_new_one():
    step = step_of("grad_norm", "cached", learns=True, epochs=4)
    run(step, 2 * EPOCH)
    cache = step.cache
    before = copy.deepcopy(cache.state_dict())
    samples, tokens, _ = step.micro_batch(step.offsets[0])
    rows = step.batches.sequences_of(samples)
    drops = step.token_drops.clone()
    step(2 * EPOCH)
    renewed = cache.taken[rows] == 2 * EPOCH
    dropped = torch.bincount(tokens[~renewed], minlength=len(drops))
    assert torch.equal(dropped, step.token_drops - drops)
    assert torch.equal(cache.scores[rows][~renewed].nan_to_num(-1), before["scores"][rows][~renewed].nan_to_num(-1))
    assert (cache.scores[rows][renewed] != before["scores"][rows][renewed]).float().mean() > 0.9
    others = torch.ones(len(cache.scores), dtype=torch.bool)
    others[rows] = False
    assert torch.equal(cache.scores[others].nan_to_num(-1), before["scores"][others].nan_to_num(-1))


def test_what_is_recalled_by_hand():
    step = step_of("entropy", "cached")
    cache, samples = ScoreCache(step.dropout, step.mode, step.batches), torch.arange(2)
    step.batches.load_orders(0, 2)
    allowed = torch.ones(2, CONTEXT, dtype=torch.bool)
    allowed[:, 0] = False
    nothing = cache.recall(samples, torch.tensor(5))
    assert nothing.scores.isnan().all()
    assert nothing.counts(allowed) == (2, 2 * (CONTEXT - 1), 0)
    known = step.batches.sequences_of(samples)[0]
    cache.scores[known, 1:4] = torch.tensor([0.5, -2.0, 7.0])
    cache.taken[known, 1:4] = torch.tensor([2, 3, 4], dtype=torch.int32)
    some = cache.recall(samples, torch.tensor(5))
    assert some.scores[0, 1:4].tolist() == [0.5, -2.0, 7.0]
    assert set(some.scores[0, 4:].tolist()) == {7.0}  # as the one that is dropped last
    assert some.scores[1].isnan().all()
    assert some.counts(allowed) == (1, 2 * (CONTEXT - 1) - 3, 3 + 2 + 1)


@pytest.mark.parametrize("scorer", ["grad_norm", "attention_mass"])
@pytest.mark.parametrize("selector", ["lowest", "highest"])
def test_tokens_without_a_score_are_kept_until_they_have_one(selector, scorer):
    step = run(step_of(scorer, "cached", learns=True, selector=selector, epochs=3), 3 * EPOCH)
    unscored = column(step, "unscored")
    assert sum(unscored[EPOCH + 1 : 2 * EPOCH]) > 0 and sum(unscored[2 * EPOCH + 1 :]) == 0


def test_age_and_share_without_a_score_are_logged():
    step = run(step_of("entropy", "cached", epochs=2), 2 * EPOCH)
    columns = {name: step.metrics[EPOCH + 1 :, number].numpy() for number, name in enumerate(COLUMNS)}
    assert cache_figures(step, columns)["unscored_share"] == 0
    assert abs(cache_figures(step, columns)["score_age_steps"] - EPOCH) < EPOCH / 2
    first = {name: step.metrics[:1, number].numpy() for number, name in enumerate(COLUMNS)}
    assert cache_figures(step, first) == {"score_age_steps": 0.0, "unscored_share": 1.0}
    assert not any(column(step, "bad_rows"))
    assert cache_figures(step_of("entropy", "fresh"), columns) == {}
    assert step.score_flops == 0


def test_threshold_drops_nothing_of_what_it_does_not_know():
    step = run(step_of("entropy", "cached", selector="threshold", epochs=2), EPOCH - 1)
    assert not any(column(step, "dropped"))
    run(step, EPOCH, first=EPOCH - 1)
    assert sum(column(step, "dropped")) > 0


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_run_resumes_with_its_scores(scorer):
    whole = run(step_of(scorer, "cached", learns=True), 2 * EPOCH)
    first = run(step_of(scorer, "cached", learns=True), EPOCH + 3)
    second = step_of(scorer, "cached", learns=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, EPOCH - 3, first=EPOCH + 3)
    assert torch.equal(second.metrics, whole.metrics)
    assert_same(weights(second), weights(whole))


def test_at_rate_0_nothing_is_kept_and_the_run_is_the_baseline():
    plain = run(tiny_step(scorer="none"), 8)
    cached = run(tiny_step(scorer=build("scorer", "entropy", source="cached"), schedule=0.0), 8)
    assert cached.cache is None
    assert_same(weights(plain), weights(cached))


def check(scorer: str, mode: str) -> None:
    scorer = build("scorer", scorer, source="cached")
    parts = (scorer, build("selector", "lowest"), build("drop_mode", mode), build("drop_schedule", "constant"))
    check_combination(*parts, tiny_shape(), protect_first=1)


def test_attention_of_gathered_tokens_is_refused():
    with pytest.raises(ValueError, match="scorer.source=cached: drop_mode Skip"):
        check("attention_mass", "skip")


@pytest.mark.parametrize("wanted", ["nothing", "embeddings"])
def test_a_scorer_without_a_pass_has_none_to_spare(wanted):
    class Passless(FromPass):
        needs, uses_labels = wanted, False

    parts = (build(group, option) for group, option in [("selector", "lowest"), ("drop_mode", "zero")])
    with pytest.raises(ValueError, match=f"scorer Passless needs '{wanted}', so there is no pass to spare"):
        check_combination(Passless("cached"), *parts, build("drop_schedule", "constant"), tiny_shape(), protect_first=1)


def test_a_score_that_is_no_number_is_not_kept():
    step = step_of("entropy", "cached")
    samples = torch.arange(2)
    step.batches.load_orders(0, 2)
    good, bad = torch.rand(2, CONTEXT), torch.rand(2, CONTEXT)
    bad[0, 3], bad[1, 5] = torch.inf, torch.nan
    for number, scores in enumerate((good, bad)):
        step.cache.store(samples, scores, None, torch.tensor(number))
    rows = step.cache.scores[step.batches.sequences_of(samples)]
    assert rows[0, 3] == good[0, 3] and rows[1, 5] == good[1, 5]
    assert (rows == bad).sum() == 2 * CONTEXT - 2


def test_of_a_sequence_that_is_there_twice_the_last_copy_counts():
    step = step_of("grad_norm", "cached")
    count = step.batches.num_sequences
    for start in range(0, 40 * count, 4):  # where an epoch ends within a batch
        sequences = step.batches.sequences(start, 4)
        if len(set(sequences)) < 4:
            break
    twice = [row for row in range(4) if (sequences == sequences[row]).sum() == 2]
    samples, scores = torch.arange(start, start + 4), torch.arange(4.0)[:, None].expand(4, CONTEXT)
    keep = torch.ones(4, CONTEXT, dtype=torch.bool)
    keep[twice[1], 2] = keep[twice[0], 3] = False
    step.cache.store(samples, scores, keep, torch.tensor(9))
    found = step.cache.scores[int(sequences[twice[0]])]
    assert found[2] == twice[0] and found[3] == twice[1] and set(found[4:].tolist()) == {twice[1]}


def test_what_is_said_of_the_first_epoch():
    bands = np.full((40, 2), 0.3)
    assert first_epoch(74, 4, bands) == "until step 19, in its first epoch, it drops at random: no scores are known"
    bands[19:] = 0
    assert "every token goes at random; use scorer.source=fresh" in first_epoch(74, 4, bands)
    late = bands[::-1].copy()
    late[:19] = 0
    assert first_epoch(74, 4, late) is None


@pytest.mark.parametrize("mode", ["zero", "hide", "mask_aux"])
@pytest.mark.parametrize("scorer", ["grad_norm", "entropy", "attention_mass"])
def test_flat_steps_keep_the_same_scores(scorer, mode):
    """On a GPU the gradient of the embeddings is handed over by the twin, the attention seen by its blocks."""
    plain, flat = (step_of(scorer, "cached", mode=mode, epochs=2) for _ in range(2))
    make = flat_update(flat.optim, flat.model)
    flat.updating = make(flat.model, flat.learned, flat.optim, "fp32", False, Pieces())
    for step in (plain, flat):
        run(step, EPOCH + 3)
    torch.testing.assert_close(flat.cache.scores, plain.cache.scores, atol=1e-4, rtol=1e-3, equal_nan=True)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("mode", ["zero", "hide", "mask_aux"])
def test_captured_steps_keep_the_scores_that_eager_ones_do(scorer, mode):
    torch._dynamo.reset()
    steps = [
        step_of(scorer, "cached", mode=mode, device=torch.device("cuda"), fast=fast, epochs=2) for fast in (True, False)
    ]
    for step in steps:
        run(step, 2 * EPOCH)
    captured, eager = (step.cache.scores for step in steps)
    torch.testing.assert_close(captured, eager, atol=1e-3, rtol=1e-2, equal_nan=True)
