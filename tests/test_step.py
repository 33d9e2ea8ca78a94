"""The step: accumulation, the update, learning, resuming."""

import copy
import io

import numpy as np
import pytest
import torch
from tiny import (
    CONTEXT,
    EOT,
    assert_same,
    build,
    optimizer_values,
    options,
    run,
    tiny_step,
    tiny_text,
    variants,
    weights,
)

from tid.drop_modes import plain_loss
from tid.flat import flat_update
from tid.pieces import Pieces
from tid.step import COLUMNS

OPTIMIZERS = ["adamw", "muon"]


def test_a_score_that_is_not_finite_is_counted_and_decides_nothing():
    class Blind:
        """Random scores, NaN in the second row of each batch."""

        needs, uses_labels = "nothing", False

        def __call__(self, e):
            return torch.where(torch.arange(4)[:, None] == 1, torch.nan, e.noise)

    step, sighted = run(tiny_step(scorer=Blind()), 3), run(tiny_step(scorer="random"), 3)
    assert step.metrics[:3, 4].tolist() == [1, 1, 1]
    assert torch.equal(step.metrics[:, 2:4], sighted.metrics[:, 2:4])
    assert step.bad_step == -1


@pytest.mark.parametrize(
    ("scorer", "mode", "waits"), [("random", "zero", 0), ("embedding_norm", "zero", 1), ("random", "mask_token", 1)]
)
def test_only_who_reads_them_waits_for_the_updates_of_embeddings_and_vectors(monkeypatch, scorer, mode, waits):
    step, calls = tiny_step(scorer=scorer, mode=mode), []
    monkeypatch.setattr(step.updating, "wait_for_table", lambda: calls.append(1))
    step(0)
    assert len(calls) == waits


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_like_float32(precision):
    reference = run(tiny_step(), 6)
    step = run(tiny_step(precision=precision), 6)
    torch.testing.assert_close(step.metrics[:6, 0], reference.metrics[:6, 0], atol=0.05, rtol=0.02)
    assert all(p.dtype == torch.float32 for p in step.model.parameters())


# -------------------------------------------------------------------------------- the update


@pytest.mark.parametrize("mode", ["zero", "mask_token", "hide", "skip", "mask_aux"])
def test_accumulation_equals_one_larger_batch(mode):
    whole = run(tiny_step(mode=mode, batch_size=8), 4)
    parts = run(tiny_step(mode=mode, batch_size=4, accumulate_steps=2), 4)
    torch.testing.assert_close(parts.metrics, whole.metrics, atol=1e-4, rtol=1e-4)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("clip_norm", [0.3, 1e9])
def test_update_equals_plain_adamw_with_torchs_clipping(clip_norm):
    optim = build("optim", "adamw", lr=3e-3, warmup_steps=2, clip_norm=clip_norm)
    step = tiny_step(scorer="none", optim=optim)
    model = copy.deepcopy(step.model)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False,
    )  # fmt: skip
    for number in range(6):
        step(number)
        tokens, targets = step.batches.gather(torch.arange(number * 4, number * 4 + 4))
        loss = plain_loss(model, tokens, targets).objective
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        for group in reference.param_groups:
            group["lr"] = optim.lr_at(number, 8)
        reference.step()
        reference.zero_grad()
        expected = torch.stack((loss, norm)).detach()
        torch.testing.assert_close(step.metrics[number, :2], expected, atol=1e-4, rtol=1e-4)
    assert (norm > clip_norm) == (clip_norm < 1)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weights(step)[name], weight.detach(), atol=1e-5, rtol=1e-4, msg=name)


def test_gradients_are_forgotten_and_padding_stays_zero():
    step = run(tiny_step(mode="mask_token"), 3)
    assert all(p.grad is None for p in step.updating.parameters)
    assert not step.model.embed_tokens.weight[101:].any()
    assert step.learned["mask_vector"].any()


def test_training_learns():
    text = np.tile(np.array([EOT, 1, 5, 9, 2, 7, 3, 8], dtype=np.uint16), 200)
    step = run(tiny_step(text=text, total_steps=60, window=60, schedule=0.1), 60)
    assert step.metrics[0, 0] > 3
    assert step.metrics[-1, 0] < 0.6


def test_same_seed_same_run_and_another_seed_another_run():
    torch.manual_seed(1)
    one = run(tiny_step(scorer="entropy"), 3)
    torch.manual_seed(2)
    again, other = run(tiny_step(scorer="entropy"), 3), run(tiny_step(scorer="entropy", seed=4), 3)
    assert torch.equal(one.metrics, again.metrics)
    assert_same(weights(one), weights(again))
    assert not torch.equal(one.metrics[:3, 0], other.metrics[:3, 0])


def test_metrics_are_a_ring_of_rows():
    step, names = run(tiny_step(window=4, total_steps=8), 6), dict(zip(COLUMNS, range(len(COLUMNS)), strict=True))
    reference = run(tiny_step(window=8, total_steps=8), 6)
    assert torch.equal(step.metrics, reference.metrics[[4, 5, 2, 3]])
    assert step.step == 6
    assert (step.metrics[:, names["dropped"]] < step.metrics[:, names["droppable"]]).all()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("mode", ["loss_mask", "mask_aux"])
@pytest.mark.parametrize("scorer", ["entropy", "surprisal", "logit_error", "attention_mass"])
def test_a_pass_that_sees_all_is_the_scoring_pass_too(scorer, mode, flat):
    """Twice the same, once with a scoring pass of its own."""
    steps = []
    for shared in (True, False):
        step = tiny_step(scorer=scorer, mode=mode, schedule="linear_decay", accumulate_steps=2)
        if flat:
            make = flat_update(step.optim, step.model)
            step.updating = make(step.model, step.learned, step.optim, "fp32", True, Pieces())
        assert step.shares_pass
        step.shares_pass = shared
        steps.append(run(step, 8))
    one, two = steps
    torch.testing.assert_close(one.metrics, two.metrics, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.last_scores, two.last_scores, atol=1e-4, rtol=1e-3)
    assert one.metrics[:, COLUMNS.index("dropped")].any()
    assert one.score_flops == 0 < two.score_flops


@pytest.mark.parametrize(("scorer", "mode"), [("entropy", "zero"), ("grad_norm", "mask_aux"), ("random", "loss_mask")])
def test_no_other_pass_is_the_scoring_pass(scorer, mode):
    assert not tiny_step(scorer=scorer, mode=mode).shares_pass


def test_scoring_is_timed():
    step = run(tiny_step(scorer="grad_norm"), 3)
    times = step.score_watch.read()
    assert len(times) == 3
    assert all(0.01 < ms < 60_000 for ms in times)
    assert run(tiny_step(scorer="none"), 3).score_watch.read() == step.score_watch.read() == []


# -------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("protect_first", [0, 1, 5])
@pytest.mark.parametrize("schedule", options("drop_schedule"))
def test_plan_bounds_what_a_row_keeps(schedule, protect_first):
    settings = {"mode": "skip", "schedule": schedule, "protect_first": protect_first}
    step, slack = tiny_step(**settings, total_steps=60, accumulate_steps=2), []
    for number in range(60):
        drops, kept_max = step.plan(number)
        low, high = step.host_bands[number]
        assert drops == (high > 0)
        samples = torch.arange(number * 8, number * 8 + 8)
        tokens, _ = step.batches.gather(samples)
        choice = step.dropout.choose(torch.rand(8, CONTEXT), tokens, torch.tensor([low, high]), samples)
        slack.append(kept_max - int(choice.keep.sum(dim=1).max()))
    assert min(slack) >= 0
    assert schedule == "none" or np.mean(slack) < 2


def test_modes_that_need_no_counts_are_not_bounded():
    assert tiny_step(mode="zero", schedule=0.9).plan(0) == (True, CONTEXT)
    assert tiny_step(mode="zero", schedule=0.0).plan(0) == (False, CONTEXT)


# -------------------------------------------------------------------------------- state


def saved_and_loaded(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("optim", "selector", "precision"),
    [*(("adamw", selector, "fp32") for selector in options("selector")),
     ("adamw", "threshold", "fp16"), ("muon", "lowest", "fp32"), ("muon", "lowest", "fp16")],
)  # fmt: skip
def test_resumed_is_the_same_to_the_bit(optim, selector, precision):
    settings = {"optim": optim, "selector": selector, "mode": "mask_token", "schedule": "uniform"}
    settings |= {"precision": precision, "text": tiny_text(300)}  # epochs of 18 sequences
    straight = run(tiny_step(**settings), 8)
    resumed = tiny_step(**settings)
    resumed.load_state_dict(saved_and_loaded(run(tiny_step(**settings), 5).state_dict()))
    run(resumed, 3, first=5)
    assert torch.equal(resumed.metrics, straight.metrics)
    assert_same(weights(resumed), weights(straight))
    assert_same(optimizer_values(resumed), optimizer_values(straight))
    assert_same(dict(resumed.learned), dict(straight.learned))
    assert_same(resumed.dropout.state, straight.dropout.state)
    assert torch.equal(resumed.token_drops, straight.token_drops)
    assert resumed.train_flops == straight.train_flops


@pytest.mark.parametrize("window", [1, 2, 20])
def test_resuming_with_another_log_interval(window):
    """log_every is not part of a run's identity, so the same run may be resumed with another window."""
    straight, resumed = run(tiny_step(window=8), 7), tiny_step(window=window)
    resumed.load_state_dict(saved_and_loaded(run(tiny_step(window=8), 5).state_dict()))
    for number in (5, 6):
        resumed(number)
        assert torch.equal(resumed.metrics[number % window], straight.metrics[number])
    assert_same(weights(resumed), weights(straight))
    if window == 20:  # the steps before are still there to be read
        assert torch.equal(resumed.metrics[:7], straight.metrics[:7])


@pytest.mark.parametrize(("option", "changes"), variants("drop_mode"))
def test_every_parameter_is_in_one_group_of_one_optimizer(option, changes):
    for optim in OPTIMIZERS:
        step = tiny_step(mode=build("drop_mode", option, **changes), optim=optim)
        listed = [id(p) for o in step.updating.optimizers for group in o.param_groups for p in group["params"]]
        expected = {id(p) for p in [*step.model.parameters(), *step.learned.parameters()]}
        assert len(listed) == len(expected)
        assert set(listed) == expected
