"""The fast path against its references: twins and flat updates. Captured steps: test_capture.py."""

import io
import math

import pytest
import torch
from tiny import CONTEXT, build, tiny_model, window
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from tid.drop_modes import Batch, Skip, plain_loss
from tid.flat import FlatUpdate, flat_update
from tid.gradients import Gradients
from tid.model import Decoder, token_nats
from tid.pieces import GROUPS, Pieces, add_norm_weight_gradient_
from tid.precision import autocast
from tid.products import add_rows_
from tid.twin import Twin, matrices_of, twin_shapes
from tid.update import Update

CPU = torch.device("cpu")


def twin_of(model, dtype=torch.float32, sink=None) -> Twin:
    flat = torch.cat([p.detach().flatten() for p in matrices_of(model)]).to(dtype)
    return Twin(model, flat, sink)


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


@pytest.mark.parametrize("skips", [False, True])
def test_a_twins_gradients_are_the_models(model, skips):
    """Also where tokens are taken out between layers and put back."""
    tokens, targets = window()
    batch = Batch(tokens, targets, keep=tokens % 3 > 0, kept_max=CONTEXT)

    def loss(model: Decoder) -> torch.Tensor:
        skip = Skip(first_layers=1, last_layers=1)
        return (skip.loss(model, batch, {}) if skips else plain_loss(model, tokens, targets)).objective

    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.ndim == 1):
            weight.copy_(torch.linspace(-1.5, 1.5, len(weight)))
    gradients = Gradients(twin_shapes(model), torch.float32, CPU, Pieces())
    twin = twin_of(model, sink=gradients.sink)
    wanted, found = loss(model), loss(twin)
    torch.testing.assert_close(found, wanted)
    wanted.backward()
    gradients.backward(found, last=True)
    flat = torch.cat([p.grad.flatten() for p in matrices_of(model)])
    torch.testing.assert_close(gradients.flat, flat, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients.square_sums.sum(), flat.square().sum())
    norms = torch.cat([p.grad for p in model.parameters() if p.ndim == 1])
    torch.testing.assert_close(gradients.norms(), norms, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 16), (10, 250), (3, 5), (1, 1), (12, 100), (30, 50)])
def test_a_norms_weight_gradient_takes_few_sums_whatever_the_shape(shape):
    dh, h, weight = torch.rand(*shape, 4), torch.rand(*shape, 4), torch.tensor([0.5, -1.0, 2.0, 0.0])
    sums = torch.zeros(math.gcd(dh[..., 0].numel(), GROUPS), 4)
    traced = make_fx(add_norm_weight_gradient_)(sums.clone(), dh, h, weight)
    assert len(traced.graph.nodes) < 100  # what is unrolled has to be compiled
    add_norm_weight_gradient_(sums, dh, h, weight)
    wanted = (dh * h / weight).sum(dim=(0, 1))
    torch.testing.assert_close(sums.sum(dim=0), torch.where(weight == 0, 0.0, wanted))


@pytest.mark.parametrize(("count", "dtype"), [(5, torch.float32), (5000, torch.float32), (50, torch.bfloat16)])
def test_rows_are_added_once_for_each_token_that_names_them(count, dtype):
    table, tokens, rows = torch.rand(7, 4).to(dtype), torch.arange(count) % 5, torch.rand(count, 4)
    wanted = table.float().index_add(0, tokens, rows)
    add_rows_(table, rows, tokens)
    torch.testing.assert_close(table.float(), wanted, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-4)


def pair(precision="fp32", accumulates=False, vector=False, optim="adamw") -> tuple[Update, FlatUpdate]:
    """The reference and the flat update of two equal models, wide enough for 8 and 4 bits."""
    optim = build("optim", optim, lr=1e-2, clip_norm=0.5)
    made = []
    for flat in (False, True):
        model = tiny_model(hidden_size=64, intermediate_size=128)
        learned = nn.ParameterDict({"mask_vector": nn.Parameter(torch.ones(64))} if vector else {})
        more = (accumulates, Pieces()) if flat else ()
        made.append((flat_update(optim, model) if flat else Update)(model, learned, optim, precision, *more))
    return made[0], made[1]


@pytest.fixture
def uncompiled():
    """torchao compiles its optimizers, which takes long on a CPU."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def objective(update: Update, seed: int, drops: bool = True) -> torch.Tensor:
    tokens, targets = window(seed=seed)
    x = update.compute.embed(tokens)
    if drops and "mask_vector" in update.learned:
        x = torch.where(tokens[..., None] % 3 == 0, update.learned["mask_vector"], x)
    return update.compute.nats(update.compute.residual(x), targets).mean()


def take_step(update: Update, number: int, micros: int = 1) -> None:
    """Of the first steps one drops nothing: what it would have learned of dropped tokens has no gradient."""
    update.begin()
    total = torch.zeros(())
    for micro in range(micros):
        loss = objective(update, 10 * number + micro, drops=number != 0) / micros
        update.backward(loss, last=micro == micros - 1)
        total += loss.detach()
    norm = update(total, torch.tensor(0.01 / (number + 1)), torch.tensor(number))
    assert norm > 0.5  # clipping is at work


def on_disk(state: dict) -> dict:
    """The state as a checkpoint keeps it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_state_before_the_first_update_is_zeros_and_a_part_of_one_is_none():
    reference, flat = pair()
    for number in range(2):
        take_step(flat, number)
    state = flat.state_dict()
    flat.load_state_dict(reference.state_dict())
    (optimizer,) = flat.optimizers
    assert not any(moment.any() for of in optimizer.state.values() for moment in of.values())
    del state["optimizers"][0]["state"][0]["exp_avg"]
    with pytest.raises(KeyError, match="exp_avg"):
        flat.load_state_dict(state)


def assert_same_weights(one: Update, other: Update, tolerance: float = 1e-4) -> None:
    """Adam turns the sign of a gradient near zero into a whole step, so single weights may differ: norms may not."""
    for update in (one, other):
        update.settle()
    for mine, its in zip(one.parameters, other.parameters, strict=True):
        assert (mine - its).norm() < tolerance * mine.norm()


# Muon turns the gradient in bf16, and low bits round: a last bit of a gradient is worth more there
OPTIMS = [("adamw", 1e-4), ("adamw_8bit", 3e-3), ("adamw_4bit", 1e-2), ("muon", 1e-2)]


@pytest.mark.parametrize(("optim", "tolerance"), OPTIMS)
@pytest.mark.parametrize(("vector", "micros"), [(False, 1), (True, 3)])
def test_flat_updates_are_those_of_the_torch_optimizers(vector, micros, optim, tolerance, uncompiled):
    plain, flat = pair(accumulates=micros > 1, vector=vector, optim=optim)
    for number in range(5):
        for update in (plain, flat):
            take_step(update, number, micros)
    assert_same_weights(plain, flat, tolerance)


@pytest.mark.parametrize(("optim", "tolerance"), OPTIMS)
def test_flat_and_plain_checkpoints_are_interchangeable(optim, tolerance, uncompiled):
    plain, flat = pair(vector=True, optim=optim)
    for number in range(2):
        for update in (plain, flat):
            take_step(update, number)
    swapped = pair(vector=True, optim=optim)
    swapped[0].load_state_dict(on_disk(flat.state_dict()))
    swapped[1].load_state_dict(on_disk(plain.state_dict()))
    for update in (plain, flat, *swapped):
        take_step(update, 2)
    for other in (flat, *swapped):
        assert_same_weights(plain, other, tolerance)


def test_an_update_that_is_due_is_carried_out_once():
    _, flat = pair()
    before = flat.flat.clone()
    take_step(flat, 0)
    assert torch.equal(flat.flat, before) and flat.count == 0  # the next step will
    flat.settle()
    after = flat.flat.clone()
    flat.settle()
    assert not torch.equal(after, before) and torch.equal(flat.flat, after) and flat.count == 1


@pytest.mark.parametrize("optim", [optim for optim, _ in OPTIMS])
def test_a_broken_loss_leaves_flat_weights_moments_and_copies_alone(optim):
    _, flat = pair("bf16", optim=optim)
    with autocast("bf16", torch.device("cpu")):
        take_step(flat, 0)
        flat.settle()
        loss = objective(flat, 1)
    tensors = [flat.flat, flat.copy, flat.flat_vectors, *flat.vector_moments.tensors]
    tensors += [t for m in getattr(flat, "moments", []) for t in m.tensors]
    tensors += [*flat.momenta, *flat.embedding_moments.tensors] if optim == "muon" else []
    before = [t.clone() for t in tensors]
    flat.begin()
    flat.backward(loss * float("nan"))
    flat(loss.detach() * float("nan"), torch.tensor(0.01), torch.tensor(7))
    flat.settle()
    assert flat.bad_step == 7 and flat.count == 1
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
