"""Every scorer in conf/ with every drop mode: at rate 0 it is the plain baseline; counts are exact."""

import functools

import pytest
import torch
from tiny import (
    CONTEXT,
    EOT,
    assert_same,
    build,
    options,
    run,
    tiny_model,
    tiny_step,
    variants,
    weights,
    window,
)

STEPS = 3
TOO_LITTLE = 1e-4  # a rate at which round(rate · droppable) is 0 in every row, yet the dropping path is taken
SCORERS = [name for name in options("scorer") if name != "none"]
MODES = variants("drop_mode")
every_mode = pytest.mark.parametrize("mode", MODES, ids=[f"{o}{c or ''}" for o, c in MODES])


def every_pair(test):
    return pytest.mark.parametrize("scorer", SCORERS)(every_mode(test))


def trained(scorer: str, mode: tuple[str, dict], schedule, steps: int = STEPS, **changes):
    built = build("drop_mode", mode[0], **mode[1])
    return run(tiny_step(scorer=scorer, mode=built, schedule=schedule, **changes), steps)


@functools.cache
def baseline():
    step = trained("none", ("zero", {}), 0.3)
    return step.metrics.clone(), weights(step)


@every_pair
def test_rate_0_is_the_baseline_to_the_bit(scorer, mode):
    step = trained(scorer, mode, 0.0)
    metrics, plain = baseline()
    assert torch.equal(step.metrics, metrics)
    assert_same(weights(step), plain)
    for name, vector in step.mode.parameters(step.model.shape.hidden_size).items():
        assert torch.equal(step.learned[name], vector), name


@every_pair
def test_dropping_nothing_is_the_baseline(scorer, mode):
    """The dropping path itself, with a rate too small to drop a token."""
    step = trained(scorer, mode, TOO_LITTLE)
    metrics, plain = baseline()
    assert step.last_scores is not None
    assert not step.metrics[:, 2].any()
    if mode[0] == "mask_aux":  # its objective has a second part: only the first step's clean loss is the same
        assert torch.equal(step.metrics[0, 0], metrics[0, 0])
    elif mode[0] == "hide":  # attention with an explicit mask is another kernel
        torch.testing.assert_close(step.metrics[:, :2], metrics[:, :2], atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(step.metrics[:, :2], metrics[:, :2])
        assert_same(weights(step), plain)


@every_pair
def test_realised_counts_are_exact_and_training_differs(scorer, mode):
    rate, step = 0.3, trained(scorer, mode, 0.3)
    differs = [not torch.equal(w, weights(step)[name]) for name, w in baseline()[1].items()]
    assert all(differs)
    for number in range(STEPS):
        step.batches.load_orders(number * 4, 4)
        tokens, _ = step.batches.gather(torch.arange(number * 4, number * 4 + 4))
        droppable = [sum(int(t) != EOT for t in row[1:]) for row in tokens]
        dropped = sum(round(rate * n) for n in droppable)
        assert step.metrics[number, 2:5].tolist() == [dropped, sum(droppable), 0]
    assert step.token_drops.sum() == step.metrics[:, 2].sum()
    assert step.token_seen.sum() == STEPS * 4 * CONTEXT
    assert step.token_drops[EOT] == 0
    assert (step.token_drops <= step.token_seen).all()


@every_mode
def test_a_run_that_drops_is_reproducible(mode):
    steps = [trained("grad_norm", mode, 0.5) for _ in range(2)]
    assert torch.equal(steps[0].metrics, steps[1].metrics)
    assert_same(weights(steps[0]), weights(steps[1]))


@every_mode
def test_evaluation_never_drops(mode):
    step, (tokens, _) = trained("random", mode, 0.5), window()
    plain = tiny_model(seed=99)
    plain.load_state_dict(step.model.state_dict())
    assert torch.equal(step.model(tokens), plain(tokens))
    other = torch.where(torch.arange(CONTEXT) == 5, (tokens + 1) % EOT, tokens)
    changed = (step.model(other) != step.model(tokens)).any(dim=-1)
    assert changed[:, 5:].all()  # every token counts


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("scorer", ["random", "grad_norm"])
@every_mode
def test_training_stays_finite_with_whole_rows_dropped(mode, scorer, precision):
    changes = {"protect_first": 0, "precision": precision, "total_steps": 12, "window": 12}
    step = trained(scorer, mode, 0.99, steps=12, model=tiny_model(init_std=0.02), **changes)
    assert (step.metrics[:, 2] == step.metrics[:, 3]).any()  # every droppable token of a batch
    assert step.bad_step == -1
    assert step.metrics[:, 0].isfinite().all()
    assert all(w.isfinite().all() for w in weights(step).values())
    assert not torch.equal(step.model.norm.weight, torch.ones(32))  # it did train
