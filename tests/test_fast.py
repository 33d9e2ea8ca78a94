"""The fast path against its references: twins and flat AdamW anywhere, captured steps on a GPU (make test-gpu)."""

import copy

import pytest
import torch
from tiny import CONTEXT, build, tiny_model, tiny_step, variants, weights, window
from torch import nn

from tid.flat import FlatAdamW
from tid.model import token_nats
from tid.precision import autocast
from tid.twin import Twin, matrices_of
from tid.update import Update

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = torch.device("cuda")


def twin_of(model, dtype=torch.float32, trainable=False) -> Twin:
    flat = torch.cat([p.detach().flatten() for p in matrices_of(model)]).to(dtype)
    return Twin(model, flat, trainable)


def test_a_twin_computes_what_the_model_does(model):
    tokens, targets = window()
    twin = twin_of(model)
    torch.testing.assert_close(twin(tokens), model(tokens), atol=1e-5, rtol=1e-5)
    x = model.embed(tokens)
    torch.testing.assert_close(twin.nats(x, targets), token_nats(model.logits(x), targets))
    torch.testing.assert_close(twin.attention_mass(x), model.attention_mass(x), atol=1e-5, rtol=1e-5)
    visible = torch.ones(4, 1, CONTEXT, CONTEXT, dtype=torch.bool).tril()
    torch.testing.assert_close(twin.layers(x, visible=visible), model.layers(x, visible=visible), atol=1e-5, rtol=1e-5)


def test_a_16_bit_twin_is_the_model_under_autocast(model):
    tokens, _ = window()
    with autocast("bf16", torch.device("cpu")):
        twin, plain = twin_of(model, torch.bfloat16)(tokens), model(tokens)
    assert (twin - plain).float().norm() < 0.02 * plain.float().norm()  # q, k, v in one product round differently


def test_a_twins_gradients_are_the_models(model):
    tokens, targets = window()
    twin = twin_of(model, trainable=True)
    model.nats(model.layers(model.embed(tokens)), targets).mean().backward()
    twin.nats(twin.layers(twin.embed(tokens)), targets).mean().backward()
    flat = torch.cat([p.grad.flatten() for p in matrices_of(model)])
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in twin.matrices]), flat, atol=1e-5, rtol=1e-4)
    assert len(twin.matrices) + len(twin.vectors) == len(list(twin.parameters()))


def pair(precision="fp32", accumulates=False, vector=False) -> tuple[Update, FlatAdamW]:
    """The reference and the flat update of two equal models."""
    optim = build("optim", "adamw", lr=1e-2, clip_norm=0.5)
    made = []
    for make in (Update, lambda *a: FlatAdamW(*a, accumulates=accumulates, compiled=False)):
        learned = nn.ParameterDict({"mask_vector": nn.Parameter(torch.ones(32))} if vector else {})
        made.append(make(tiny_model(), learned, optim, precision))
    return made[0], made[1]


def objective(update: Update, seed: int) -> torch.Tensor:
    tokens, targets = window(seed=seed)
    x = update.compute.embed(tokens)
    if "mask_vector" in update.learned:
        x = torch.where(tokens[..., None] % 3 == 0, update.learned["mask_vector"], x)
    return update.compute.nats(update.compute.layers(x), targets).mean()


def assert_same_weights(one: Update, other: Update) -> None:
    """Adam turns the sign of a gradient near zero into a whole step, so single weights may differ: norms may not."""
    for mine, its in zip(one.parameters, other.parameters, strict=True):
        assert (mine - its).norm() < 1e-4 * mine.norm()


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("micros", [1, 3])
def test_flat_adamw_updates_as_torchs_does(vector, micros):
    both = pair(accumulates=micros > 1, vector=vector)
    for step in range(5):
        for update in both:
            total = torch.zeros(())
            for micro in range(micros):
                loss = objective(update, 10 * step + micro) / micros
                update.backward(loss, micro)
                total += loss.detach()
            norm = update(total, torch.tensor(0.01 / (step + 1)), torch.tensor(step))
            assert norm > 0.5  # clipping is at work
    plain, flat = both
    assert_same_weights(plain, flat)


def test_flat_and_plain_checkpoints_are_interchangeable():
    plain, flat = pair(vector=True)
    for update in (plain, flat):
        update.backward(objective(update, 0), 0)
        update(torch.zeros(()), torch.tensor(0.01), torch.tensor(0))
    swapped = pair(vector=True)
    swapped[0].load_state_dict(copy.deepcopy(flat.state_dict()))
    swapped[1].load_state_dict(copy.deepcopy(plain.state_dict()))
    for update in (plain, flat, *swapped):
        update.backward(objective(update, 1), 0)
        update(torch.zeros(()), torch.tensor(0.01), torch.tensor(1))
    for other in (flat, *swapped):
        assert_same_weights(plain, other)


def test_a_broken_loss_leaves_flat_weights_moments_and_copies_alone():
    _, flat = pair("bf16")
    with autocast("bf16", torch.device("cpu")):
        loss = objective(flat, 0)
    flat.backward(loss * float("nan"), 0)
    before = [t.clone() for t in (flat.flat, flat.copy, *flat.moments, flat.flat_vectors)]
    flat(loss.detach() * float("nan"), torch.tensor(0.01), torch.tensor(7))
    assert flat.bad_step == 7 and flat.count == 0
    after = (flat.flat, flat.copy, *flat.moments, flat.flat_vectors)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# ------------------------------------------------------------------------------------------ on a GPU


@pytest.fixture(autouse=True)
def compile_anew():
    """Every test compiles models of its own."""
    torch._dynamo.reset()


def losses(steps: int = 12, **settings) -> tuple[list[float], dict]:
    step = tiny_step(device=CUDA, **({"total_steps": 12, "window": 12} | settings))
    for number in range(steps):
        step(number)
    assert int(step.bad_step) == -1
    return step.metrics[:steps].cpu().tolist(), weights(step)


SCORERS = [pytest.param(option, id=option) for option, changes in variants("scorer") if not changes]
MODES = [pytest.param(option, id=option) for option, changes in variants("drop_mode") if not changes]


def assert_alike(one, other, rtol=2e-3) -> None:
    torch.testing.assert_close(torch.tensor(one)[:, 0], torch.tensor(other)[:, 0], rtol=rtol, atol=rtol)
    assert torch.equal(torch.tensor(one)[:, 2:], torch.tensor(other)[:, 2:])  # counts: dropped, droppable, bad rows


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("scorer", SCORERS)
def test_captured_scorers_train_as_eager_ones(scorer):
    settings = {"scorer": scorer, "schedule": 0.3}
    assert_alike(losses(**settings, fast=True)[0], losses(**settings)[0])


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("schedule", ["linear_decay", "uniform"])
def test_captured_modes_train_as_eager_ones(mode, schedule):
    settings = {"scorer": "random", "mode": mode, "schedule": schedule}
    assert_alike(losses(**settings, fast=True)[0], losses(**settings)[0])


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("selector", ["lowest", "highest", "sampled", "threshold"])
def test_captured_selectors_train_as_eager_ones(selector):
    settings = {"scorer": "unigram", "selector": selector, "schedule": 0.3}
    assert_alike(losses(**settings, fast=True)[0], losses(**settings)[0])


@gpu
@pytest.mark.gpu
def test_captured_rate_0_is_the_captured_baseline_to_the_bit():
    plain, dropping = losses(scorer="none", fast=True), losses(scorer="entropy", schedule=0.0, fast=True)
    assert plain[0] == dropping[0]
    assert all(torch.equal(plain[1][name], weight) for name, weight in dropping[1].items())


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_captured_16_bit_steps_follow_eager_ones(precision):
    settings = {"scorer": "random", "schedule": 0.3, "precision": precision}
    assert_alike(losses(**settings, fast=True)[0], losses(**settings)[0], rtol=3e-2)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("optim", ["muon", "adamw_8bit", "adamw_4bit"])
def test_captured_gradients_serve_other_optimizers(optim):
    settings = {"optim": optim, "scorer": "random", "schedule": 0.3}
    assert_alike(losses(**settings, fast=True)[0], losses(**settings)[0])


@gpu
@pytest.mark.gpu
def test_capture_resumes_and_interchanges_with_eager():
    whole = losses(fast=True, scorer="random", schedule=0.3)
    first = tiny_step(device=CUDA, fast=True, scorer="random", schedule=0.3, total_steps=12, window=12)
    for number in range(5):
        first(number)
    second = tiny_step(device=CUDA, fast=True, scorer="random", schedule=0.3, total_steps=12, window=12)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for number in range(5, 12):
        second(number)
    assert second.metrics[:12].cpu().tolist() == whole[0]
