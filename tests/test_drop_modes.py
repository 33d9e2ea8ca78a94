import pytest
import torch
from tiny import CONTEXT, EOT, VOCAB, build, options, tiny_model, tiny_shape, window
from torch import nn

from tid.drop_modes import Batch, all_nats, fill, plain_loss
from tid.model import token_nats
from tid.precision import autocast

CPU = torch.device("cpu")
MODES = options("drop_mode")
every_mode = pytest.mark.parametrize("option", MODES)


def learned_by(mode, width: int = 32, value: float | None = None) -> nn.ParameterDict:
    learned = nn.ParameterDict(mode.parameters(width))
    if value is not None:
        for parameter in learned.values():
            nn.init.constant_(parameter, value)
    return learned


def some_keep(rate: float, rows: int = 4, seed: int = 0) -> torch.Tensor:
    """Keep masks that drop about `rate` of each row at random, never the first position."""
    keep = torch.rand(rows, CONTEXT, generator=torch.Generator().manual_seed(seed)) >= rate
    keep[:, 0] = True
    return keep


def batch_of(keep: torch.Tensor, tokens=None, targets=None) -> Batch:
    if tokens is None:
        tokens, targets = window(len(keep))
    return Batch(tokens, targets, keep, int(keep.sum(dim=1).max()))


def seen(mode, model, batch: Batch) -> Batch:
    """The batch as the step gives it to the mode."""
    return batch._replace(nats=all_nats(model, batch.tokens, batch.targets)) if mode.sees_all else batch


def loss_of(mode, model, batch, value: float | None = None):
    return mode.loss(model, seen(mode, model, batch), learned_by(mode, value=value))


# -------------------------------------------------------------------------------- every mode


@every_mode
def test_loss_is_two_float32_scalars_with_gradients(model, option):
    mode = build("drop_mode", option)
    for precision in ("fp32", "bf16", "fp16"):
        model.zero_grad()
        batch = batch_of(some_keep(0.4))
        before = [t.clone() for t in batch[:3]]
        learned = learned_by(mode)
        with autocast(precision, CPU):
            objective, nats = mode.loss(model, seen(mode, model, batch), learned)
        assert objective.shape == nats.shape == ()
        assert objective.dtype == nats.dtype == torch.float32
        objective.backward()
        for name, parameter in [*model.named_parameters(), *learned.named_parameters()]:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        assert all(torch.equal(a, b) for a, b in zip(before, batch[:3], strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kept", ["nothing", "first"])
@every_mode
def test_whole_rows_dropped_stay_finite(option, kept, precision):
    model = tiny_model(init_std=0.02)  # at zero each norm's slope is 1/√eps = 316
    mode, keep = build("drop_mode", option), torch.ones(4, CONTEXT, dtype=torch.bool)
    keep[1:] = False
    keep[1:, 0] = kept == "first"
    for batch in (batch_of(keep), batch_of(keep[1:], *window(3))):
        learned = learned_by(mode)
        with autocast(precision, CPU):
            loss = mode.loss(model, seen(mode, model, batch), learned)
        gradients = torch.autograd.grad(loss.objective, [*model.parameters(), *learned.parameters()])
        assert loss.objective.isfinite()
        assert loss.nats.isfinite()
        assert all(g.isfinite().all() for g in gradients)


@every_mode
def test_keeping_all_is_the_plain_loss(model, option):
    mode, batch = build("drop_mode", option), batch_of(torch.ones(4, CONTEXT, dtype=torch.bool))
    loss, plain = loss_of(mode, model, batch, value=0.5), plain_loss(model, batch.tokens, batch.targets)
    weight = getattr(mode, "weight", 0.0)  # of a second, masked pass
    if option == "hide":  # another kernel: an explicit mask
        torch.testing.assert_close(loss.nats, plain.nats)
    else:
        assert torch.equal(loss.nats, plain.nats)
    torch.testing.assert_close(loss.objective, (1 + weight) * plain.objective)


@every_mode
def test_a_row_does_not_depend_on_what_its_batch_mates_drop(model, option):
    mode, keep = build("drop_mode", option), some_keep(0.5)
    tokens, targets = window()
    rows = [batch_of(keep[i : i + 1], tokens[i : i + 1], targets[i : i + 1]) for i in range(4)]
    alone = torch.stack([loss_of(mode, model, row).nats for row in rows])
    torch.testing.assert_close(loss_of(mode, model, batch_of(keep, tokens, targets)).nats, alone.mean())


@pytest.mark.parametrize("option", [m for m in MODES if m not in ("hide", "skip", "loss_mask")])
def test_what_a_filled_token_was_leaves_no_trace_in_the_input(model, option):
    mode, keep = build("drop_mode", option), some_keep(0.4)
    tokens, targets = window()
    other = torch.where(keep, tokens, (tokens + 5) % VOCAB)
    plain = [plain_loss(model, t, targets).nats for t in (tokens, other)]
    objective = [loss_of(mode, model, batch_of(keep, t, targets)).objective for t in (tokens, other)]
    clean_part = plain[0] - plain[1] if option == "mask_aux" else torch.zeros(())
    torch.testing.assert_close(objective[0] - objective[1], clean_part, atol=1e-5, rtol=0)


def test_fill_keeps_infinite_dropped_values_out_of_the_gradient():
    x = torch.tensor([[[1.0, 2.0], [torch.inf, torch.nan]]], requires_grad=True)
    fill(x, torch.tensor([[True, False]]), 0.0).square().sum().backward()
    assert x.grad.tolist() == [[[2.0, 4.0], [0.0, 0.0]]]


# -------------------------------------------------------------------------------- zero, mask_token


def test_zero_and_mask_token_by_hand(model):
    keep, (tokens, targets) = some_keep(0.4), window()
    x = model.embed(tokens).detach()
    for option, value in (("zero", 0.0), ("mask_token", 0.7)):
        x[~keep] = value
        expected = token_nats(model.logits(model.layers(x)), targets).mean()
        loss = loss_of(build("drop_mode", option), model, batch_of(keep), value=value)
        assert torch.equal(loss.objective, expected)
        assert torch.equal(loss.nats, expected)


def test_mask_vector_starts_as_an_embedding_does_and_always_the_same():
    (vector,) = build("drop_mode", "mask_token").parameters(4096).values()
    assert vector.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(vector, build("drop_mode", "mask_aux", fill="mask_token").parameters(4096)["mask_vector"])


# -------------------------------------------------------------------------------- hide


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_hide_is_as_if_the_hidden_tokens_were_not_there(model, rate):
    keep, (tokens, targets) = some_keep(rate), window()
    keep[:, 5] = False
    sums = []
    for row in range(len(tokens)):
        for query in range(CONTEXT):  # each query with the kept tokens before it, at their true positions
            places = [p for p in range(query) if keep[row, p]] + [query]
            rope = tuple(table[places][None, None] for table in model.rope(CONTEXT))
            logits = model.logits(model.layers(model.embed(tokens[row : row + 1, places]), rope=rope))
            sums.append(token_nats(logits, targets[row : row + 1, places])[0, -1])
    loss = loss_of(build("drop_mode", "hide"), model, batch_of(keep))
    torch.testing.assert_close(loss.nats, torch.stack(sums).mean(), atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------- loss_mask, mask_aux


def test_loss_mask_by_hand(model):
    tokens, targets = window(2)
    keep = torch.ones(2, CONTEXT, dtype=torch.bool)
    keep[0, [0, 3, 4]] = False  # position 0 is nobody's target; positions 3 and 4 are the targets at 2 and 3
    keep[1, 15] = False
    nats = token_nats(model(tokens), targets)
    left = torch.ones(2, CONTEXT, dtype=torch.bool)
    left[0, [2, 3]] = False
    left[1, 14] = False
    loss = loss_of(build("drop_mode", "loss_mask"), model, batch_of(keep, tokens, targets))
    torch.testing.assert_close(loss.objective, nats[left].mean())
    torch.testing.assert_close(loss.nats, nats.mean())
    assert not loss.nats.requires_grad


@pytest.mark.parametrize("filling", ["zero", "mask_token"])
def test_mask_aux_is_the_clean_loss_and_a_weighted_masked_one(model, filling):
    batch, mode = batch_of(some_keep(0.4)), build("drop_mode", "mask_aux", weight=0.25, fill=filling)
    assert list(mode.parameters(32)) == (["mask_vector"] if filling == "mask_token" else [])
    masked = loss_of(build("drop_mode", filling), model, batch, value=0.3).objective
    clean = plain_loss(model, batch.tokens, batch.targets).nats
    loss = loss_of(mode, model, batch, value=0.3)
    torch.testing.assert_close(loss.objective, clean + 0.25 * masked)
    assert torch.equal(loss.nats, clean)


# -------------------------------------------------------------------------------- skip


def dense_skip(model, batch, first: int, last: int):
    """Slow: middle layers on all tokens, dropped ones invisible as keys and handed through unchanged."""
    end = model.shape.num_layers - last
    keep, length = batch.keep, batch.tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = ((causal & keep[:, None, :]) | torch.eye(length, dtype=torch.bool))[:, None]
    x = model.layers(model.embed(batch.tokens), last=first)
    for layer in range(first, end):
        x = torch.where(keep[..., None], model.layers(x, visible=visible, first=layer, last=layer + 1), x)
    return token_nats(model.logits(model.layers(x, first=end)), batch.targets).mean()


@pytest.mark.parametrize(("first", "last"), [(1, 1), (0, 0), (2, 0), (0, 2)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_skip_equals_a_dense_masked_reference(rate, first, last):
    model, keep, (tokens, targets) = tiny_model(num_layers=4), some_keep(rate, rows=8), window(8)
    keep |= tokens == EOT
    assert (tokens == EOT).sum() > 4
    batch = batch_of(keep, tokens, targets)
    gradients = []
    for loss in (
        loss_of(build("drop_mode", "skip", first_layers=first, last_layers=last), model, batch).objective,
        dense_skip(model, batch, first, last),
    ):
        gradients.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for gathered, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(gathered, dense, atol=1e-5, rtol=1e-4)


def test_skip_that_keeps_all_is_the_dense_model_to_the_bit(model):
    batch = batch_of(torch.ones(4, CONTEXT, dtype=torch.bool))
    skip = build("drop_mode", "skip")
    losses = loss_of(skip, model, batch).objective, plain_loss(model, *batch[:2]).objective
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_skip_does_not_depend_on_how_loose_the_bound_is(model):
    batch, mode = batch_of(some_keep(0.5)), build("drop_mode", "skip")
    losses = [loss_of(mode, model, batch._replace(kept_max=k)).objective for k in (batch.kept_max, 15, 16)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


@pytest.mark.parametrize(("first", "last"), [(3, 0), (0, 3), (2, 1), (5, 5)])
def test_skip_without_a_middle_layer_is_refused(first, last):
    with pytest.raises(ValueError, match="must be less than model.num_layers 3"):
        build("drop_mode", "skip", first_layers=first, last_layers=last).check(tiny_shape())


def test_flops():
    shape, dense = tiny_shape(num_layers=3), tiny_shape().flops_per_token(16) * 16
    flops = {option: build("drop_mode", option).flops(shape, 16, 8) for option in MODES}
    middle = shape.layer_flops_per_token(16) * 16 - shape.layer_flops_per_token(8) * 8
    assert flops == dict.fromkeys(MODES, dense) | {"mask_aux": 2 * dense, "skip": dense - middle}
