"""The other parts of `python -m tid.bench`: the whole loop, what fits, and both on a GPU."""

import itertools
import os

import pytest
import torch
from benches import rules, tiny_setup, variant
from tiny import CPU, build, tiny_shape, tiny_text

from tid.benchmark import fit, peers, race, start, variants, whole
from tid.benchmark.variants import Variant
from tid.drop_modes import DropMode

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CADENCE = whole.Cadence(1000, 2, 100, 100, 4, 200)


# ------------------------------------------------------------------------------------------------- whole


def test_our_loop_and_the_bare_one_take_turns():
    calls: list[int] = []

    class Counting:
        device = CPU

        def __call__(self, number: int) -> None:
            calls.append(number)

    turns = whole.Turns(Counting(), lambda: calls.append(-1), turn_steps=2, turns=3)
    for number in range(whole.WARM_UP_STEPS + 3 * 2 + 1):
        turns(number)
    assert calls == [0, 1, 2, 3, 4, -1, -1, 5, 6, -1, -1, 7, 8, -1, -1, 9, 10, -1, -1, 11]
    assert len(turns.ours) == 3 and len(turns.others) == 4


def test_each_turn_is_held_against_the_bare_ones_around_it():
    over = whole.Overhead(ours=[(3.0, 8.0), (6.0, 4.0)], bare=[(1.0, 2.0), (2.0, 2.0), (4.0, 2.0)], turn_steps=1)
    assert over.ratios() == [2.0, 2.0] and over.ratios(1) == [4.0, 2.0]


@pytest.mark.parametrize("values", [(200, 50, 100, 100), (200, 7, 60, 33), (7, 50, 50, 50), (12, 2, 4, 3)])
def test_a_runs_rows_evaluations_and_checkpoints_are_counted_as_fit_makes_them(values):
    total, log_every, eval_every, checkpoint_every = values
    rows = evals = saves = 0
    for done in range(1, total + 1):
        last = done == total
        eval_due = done % eval_every == 0 or last
        rows += done % log_every == 0 or last or eval_due
        evals += eval_due
        saves += eval_due or done % checkpoint_every == 0
    counts = whole.Cadence(*values, 16, 100).counts()
    assert counts == {"rows": rows, "evaluations": evals, "checkpoints": saves}


def test_shares_of_a_run():
    share = whole.Share(
        whole.Cadence(1000, 10, 100, 100, 16, 100), "no drop", step=0.01, row=0.001, evaluation=0.02,
        first_evaluation=0.12, checkpoint=0.05, checkpoint_bytes=1, measured_tokens=100,
    )  # fmt: skip
    assert share.seconds() == pytest.approx({"steps": 10.0, "rows": 0.1, "evaluations": 0.3, "checkpoints": 0.5})
    assert share.shares()["checkpoints"] == pytest.approx(0.5 / 10.9)


def no_drop() -> Variant:
    return Variant("none", "", "adamw", build("scorer", "none"), DropMode(), build("optim", "adamw", warmup_steps=0), 4)


def test_the_bare_loop_trains_the_same_model_on_the_same_batches():
    setup, plain = tiny_setup(), no_drop()
    step = variants.train_step(setup, plain, total_steps=8, window=8)
    bare = peers.bare_step(setup, plain.optim, batch_size=4)
    losses = []
    bare.loss = lambda *batch, loss=bare.loss: losses.append(loss(*batch)) or losses[-1]
    for number in range(3):
        step(number)
        bare()
    assert [x.item() for x in losses] == pytest.approx(step.metrics[:3, 0].tolist(), rel=1e-3)
    assert losses[0] != losses[1]


def test_the_whole_loop_is_timed_and_leaves_nothing_behind(tmp_path):
    setup, plain = tiny_setup(), no_drop()
    over = whole.overhead(setup, plain, peers.bare_step(setup, plain.optim, 4), CADENCE, 4, 1e-9, tmp_path)
    assert len(over.ratios()) == len(over.ratios(1)) == 4 and over.turn_steps == 1
    assert list(tmp_path.iterdir()) == []


def test_one_of_each_of_a_runs_chores_is_timed(tmp_path):
    text = whole.made_up_validation(tiny_text(), 200, 101)
    share = whole.share_of_run(tiny_setup(), variant("entropy"), text, CADENCE, 1e-9, tmp_path)
    assert min(share.step, share.row, share.evaluation, share.checkpoint) > 0
    assert share.measured_tokens == 200 and share.checkpoint_bytes > 12 * 30_000  # weights and two moments
    assert list(tmp_path.iterdir()) == []


def test_the_peer_has_our_size():
    pytest.importorskip("transformers")
    setup = tiny_setup()
    step = peers.llama_step(setup, build("optim", "adamw"), 4, compiled=False)
    assert sum(p.numel() for p in step.parameters) == setup.shape.build(0).parameter_count
    before = step.parameters[0].detach().clone()
    step()
    assert not torch.equal(step.parameters[0], before)
    assert step.flops == 4 * 16 * setup.shape.flops_per_token(16)


def test_the_plain_gpt2_has_our_width_and_depth():
    setup = tiny_setup()
    step, shape = peers.gpt2_step(setup, build("optim", "adamw"), 4, compiled=False), setup.shape
    width, rows = shape.hidden_size, shape.build(0).embed_tokens.weight.shape[0]
    layers = shape.num_layers * (12 * width**2 + 2 * width)
    assert sum(p.numel() for p in step.parameters) == (rows + 16) * width + layers + width
    before = [p.detach().clone() for p in step.parameters]
    step()
    assert not any(torch.equal(a, b) for a, b in zip(step.parameters, before, strict=True))
    more = 6 * shape.num_layers * (8 * width**2 - 3 * width * shape.intermediate_size)
    assert step.flops == 4 * 16 * (shape.flops_per_token(16) + more)


def test_an_empty_compile_cache_for_a_while(monkeypatch):
    monkeypatch.setenv(start.CACHE, "/somewhere")
    monkeypatch.setenv(start.TRITON_CACHE, "/elsewhere")
    with start.empty_cache() as folder:
        assert os.environ[start.CACHE] == str(folder) and list(folder.iterdir()) == []
        assert start.TRITON_CACHE not in os.environ  # it would not be empty
    assert (os.environ[start.CACHE], os.environ[start.TRITON_CACHE]) == ("/somewhere", "/elsewhere")
    assert not folder.exists()


# --------------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("limit", [*range(0, 140, 4), 5000])
def test_the_largest_batch_is_found(limit):
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    found = fit.largest_batch(fits, step=8, most=128)
    assert found == (min(limit, 128) // 8 * 8 or None)
    assert len(tried) <= 10 and all(size % 8 == 0 and size <= 128 for size in tried)


def test_the_largest_model_is_found():
    for count, limit in itertools.product(range(1, 9), range(9)):
        expected = min(limit, count) - 1
        assert fit.largest_index(lambda i, limit=limit: i < limit, count) == (None if expected < 0 else expected)


def test_models_are_tried_by_size_and_counted_without_building_them():
    models = fit.models_of(tiny_shape(), [[2, 64, 4], [1, 16, 2]])
    sizes = [fit.parameters(shape) for shape in models]
    assert sizes == sorted(sizes) and tiny_shape() in models and len(models) == 3
    assert sizes == [shape.build(0).parameter_count for shape in models]
    assert models[-1].intermediate_size == 192  # 8/3 of 64, up to a multiple of 64


def test_a_trial_says_why_it_failed():
    setup = tiny_setup(shape=tiny_shape(num_layers=2))
    assert "no layer to skip" in fit.attempt(setup, variant(mode="skip"), 4).failed
    assert fit.attempt(tiny_setup(), variant(), 4).failed is None


def test_no_drop_needs_no_mode():
    plain = Variant("none", "", "adamw", build("scorer", "none"), DropMode(), build("optim", "adamw"), 4)
    step = variants.train_step(tiny_setup(), plain, total_steps=2)
    step(0)
    assert step.metrics[0, 2] == 0 and not plain.drops


# ------------------------------------------------------------------------------------------------- on a GPU


@gpu
@pytest.mark.gpu
def test_captured_steps_race_and_are_measured():
    device = torch.device("cuda")
    setup = tiny_setup(device=device, fast=True, precision="bf16")
    chosen = variant("none"), variant("entropy", "skip")
    contenders = [variants.contender(setup, v, False, "auto") for v in chosen]
    found = race.race(contenders, rules(repeats=2, device=device, turn_seconds=0.01))
    assert [r.failed for r in found] == [None, None]
    assert all(r.peak_bytes > 0 and r.reserved_bytes >= 0 and r.flops > 0 for r in found)


@gpu
@pytest.mark.gpu
def test_the_cap_holds_and_is_lifted():
    device = torch.device("cuda")
    with fit.Cap(2**28, device), pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**29, dtype=torch.uint8, device=device)
    torch.empty(2**29, dtype=torch.uint8, device=device)


@gpu
@pytest.mark.gpu
@pytest.mark.timeout(400)
def test_what_fits_is_found_on_the_device():
    """Each trial is a process of its own, ten seconds long; the text, of 43 sequences, keeps them few."""
    setup = tiny_setup(device=torch.device("cuda"), text=tiny_text(700))
    with fit.Cap(2**30, setup.device):
        found = fit.what_fits(setup, variant("none", batch_size=8), [[2, 64, 4]], lambda text: None)
    assert found.reference.failed is None and found.batch_size == 40 and found.model is not None
