"""tid.kernels against tid.pieces. On a GPU test_kernels.py calls these; without one it runs this file with Triton's
interpreter (TRITON_INTERPRET=1), which has to be chosen before Triton is imported."""

from unittest import mock

import torch
from tiny import CONTEXT, tiny_model, window
from torch import Tensor

from tid import kernels, pieces
from tid.gradients import Gradients
from tid.kernels import loss
from tid.model import explicit_attention, rope_table, token_nats
from tid.pieces import Pieces
from tid.twin import Twin, matrices_of, twin_shapes

SHAPES = [(2, 24, 3, 32), (2, 64, 2, 64), (1, 100, 2, 64), (2, 128, 1, 64), (3, 1, 2, 32)]  # B, T, heads, head_size


def close(found: Tensor, wanted: Tensor, low: float = 1e-2) -> None:
    """By norm: on a CPU float32 to rounding, on a GPU 16 bits to `low`."""
    tolerance = low if found.is_cuda else 1e-5
    error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    assert error < tolerance, f"off by {error:.2e}"


def kind(device: torch.device) -> dict:
    return {"device": device, "dtype": torch.bfloat16 if device.type == "cuda" else torch.float32}


def check_attention(device: torch.device) -> None:
    several = (80 if device.type == "cuda" else 3, 100, 2, 64)  # more heads than multiprocessors
    for batch, length, heads, size in [*SHAPES, several]:
        cos, sin = rope_table(length, size, 1e4, device)
        backwards = tuple(t.flip(0).expand(batch, -1, -1).contiguous() for t in (cos, sin))
        for rope in ((cos, sin), backwards):  # positions of all rows alike, and each row's own
            qkv = torch.randn(batch, length, 3 * heads * size, **kind(device), requires_grad=True)
            dy = torch.randn(batch, length, heads * size, **kind(device))
            mine = tuple(t[:, None] for t in rope) if rope is backwards else rope
            y, weights = explicit_attention(*pieces.Heads.apply(qkv, heads, mine, Pieces(False)))
            y = y.transpose(1, 2).flatten(2)
            (wanted,) = torch.autograd.grad(y, qkv, dy)
            assert kernels.attends(qkv, heads, None)
            found, received = kernels.attention(qkv.detach(), heads, *rope, mass=True)
            close(found, y)
            close(received, weights.mean(dim=1).sum(dim=1))
            without, nothing = kernels.attention(qkv.detach(), heads, *rope, mass=False)
            assert torch.equal(without, found) and nothing is None
            close(kernels.attention_gradient(dy, qkv.detach(), heads, *rope), wanted)


def check_filling(device: torch.device) -> None:
    """Sequences that have fewer tokens than the longest: what they have is as without counts, the rest is finite, and
    zero where a smaller block was enough."""
    batch, heads, size = (80 if device.type == "cuda" else 3), 2, 64
    for length in (65, 70, 72, 90):  # the last is too long for two sizes of blocks
        counts = torch.arange(batch, device=device) % 3 * 4 + length - 8
        there = torch.arange(length, device=device) < counts[:, None]
        rope = tuple(t.expand(batch, -1, -1) for t in rope_table(length, size, 1e4, device))
        qkv = torch.randn(batch, length, 3 * heads * size, **kind(device)) * there[..., None]
        dy = torch.randn(batch, length, heads * size, **kind(device)) * there[..., None]
        smaller = (counts <= 64) & (length < 90)
        y, short = (kernels.attention(qkv, heads, *rope, False, c)[0] for c in (None, counts))
        gradient, its = (kernels.attention_gradient(dy, qkv, heads, *rope, c) for c in (None, counts))
        for wanted, found in ((y, short), (gradient, its)):
            close(found * there[..., None], wanted * there[..., None])
            assert found.isfinite().all() and not found[smaller, 64:].any()


def check_what_attends(device: torch.device) -> None:
    fits = torch.zeros(2, 128, 3 * 2 * 64, **kind(device))
    assert kernels.attends(fits, 2, None)
    assert not kernels.attends(fits, 2, torch.ones(2, 1, 128, 128, dtype=torch.bool, device=device))
    assert not kernels.attends(fits, 8, None)  # heads of 16
    assert not kernels.attends(fits.repeat(1, 2, 1), 2, None)
    assert device.type == "cpu" or not kernels.attends(fits.float(), 2, None)


def check_swiglu(device: torch.device) -> None:
    for rows, size in ((5, 48), (2, 2048), (3, 1500)):
        gate_up, dy = torch.randn(rows, 3, 2 * size, **kind(device)), torch.randn(rows, 3, size, **kind(device))
        close(kernels.swiglu_gradient(gate_up, dy), pieces.swiglu_gradient(gate_up, dy))


def check_cross_entropy(device: torch.device) -> None:
    shapes = [(7, 320, 300), (3, 5056, 5003), (2, 4096, 4096), (3, 5003, 4999), (4, 8192, 300), (2, 50304, 50257)]
    if device.type == "cuda":  # more rows than there is room for, and rows too long for shared memory
        shapes += [(1000, 50304, 50257), (5, 100352, 100277)]
    for rows, columns, vocabulary in shapes:
        for size in (0.1, 4.0):  # nearly alike, where no single gradient hides the others; far apart
            logits = size * torch.randn(rows, columns, **kind(device))
            targets = torch.randint(vocabulary, (rows,), device=device)
            targets[0], targets[1] = vocabulary - 1, min(4096, vocabulary - 1)
            check_losses(logits, targets, vocabulary)
            if device.type == "cuda":
                check_losses(logits.half(), targets, vocabulary)
                with mock.patch.object(loss, "fits_on_chip", return_value=False):
                    check_losses(logits, targets, vocabulary)


def check_losses(logits: Tensor, targets: Tensor, vocabulary: int) -> None:
    """Nats and every row of the gradient, apart from the target's own, which is far larger."""
    wanted, log_sum = pieces.cross_entropy(logits, targets, vocabulary)
    gradient = logits.clone()
    pieces.cross_entropy_gradient_(gradient, targets, log_sum, torch.ones_like(wanted), vocabulary)
    mine = logits.clone()
    close(kernels.cross_entropy_(mine, targets, vocabulary, gradient=False), wanted, low=1e-5)
    assert torch.equal(mine, logits)
    close(kernels.cross_entropy_(mine, targets, vocabulary, gradient=True), wanted, low=1e-5)
    assert not mine[:, vocabulary:].any()
    close(mine / kernels.GAIN, gradient)
    for row, (found, right) in enumerate(zip(mine.float() / kernels.GAIN, gradient.float(), strict=True)):
        found[targets[row]] = right[targets[row]] = 0.0
        for ours, theirs in zip(found[:vocabulary].split(4096), right[:vocabulary].split(4096), strict=True):
            assert (ours - theirs).norm() <= 1e-2 * theirs.norm() + 1e-6


@mock.patch.object(pieces, "GRAM_ROWS", 0)
def check_twin(device: torch.device) -> None:
    """A twin whose pieces are by hand has another's losses and gradients, and sees what tokens receive."""
    model = tiny_model(hidden_size=64, num_heads=2, intermediate_size=96).to(device)
    tokens, targets = (t.to(device) for t in window())
    dtype = kind(device)["dtype"]
    flat = torch.cat([p.detach().flatten() for p in matrices_of(model)]).to(dtype)
    weights = torch.arange(tokens.numel(), device=device).view_as(tokens) % 3 / tokens.numel()  # rows unlike each other
    x, made = model.embed(tokens), []
    for by_hand in ((), pieces.BY_HAND):
        own = Pieces(by_hand=by_hand)
        gradients = Gradients(twin_shapes(model), dtype, device, own)
        twin = Twin(model, flat, gradients.sink, own)
        with torch.no_grad():
            unwatched = twin.nats(twin.residual(twin.embed(tokens)), targets)
        nats = twin.nats(twin.residual(twin.embed(tokens)), targets)
        assert torch.equal(nats, unwatched)
        gradients.backward((nats * weights).sum(), last=True)
        made.append((nats, gradients.flat, gradients.norms(), twin.attention_mass(x)))
    for wanted, found in zip(*made, strict=True):
        close(found, wanted, low=5e-2)  # in 16 bits either's gradients are that far from float32's
    close(made[1][0], token_nats(model.logits(model.layers(x)), targets))
    visible = torch.ones(4, 1, CONTEXT, CONTEXT, dtype=torch.bool, device=device).tril()
    close(twin.layers(x, visible=visible), model.layers(x), low=5e-2)


def check_norm(device: torch.device) -> None:
    dtype, groups = kind(device)["dtype"], kernels.PROGRAMS if device.type == "cuda" else 8  # interpreting takes long
    for rows, size in ((5, 48), (300, 96), (4100 if device.type == "cuda" else 130, 64)):
        x, dx, weight = (torch.randn(shape, device=device) for shape in ((rows, size), (rows, size), (size,)))
        weight[0] = 0.0
        dh = torch.randn(rows, size, **kind(device))
        h, inverse = pieces.normed(x, weight, 1e-5, dtype)
        for along in (dx, None):
            sums = torch.ones(groups, size, device=device)  # what another pass has added
            wanted, low = pieces.normed_gradient(dh, along, h, inverse, weight, dtype)
            found, its_low = kernels.norm_gradient(dh, along, h, inverse, weight, dtype, sums)
            close(found, wanted)
            close(its_low, low)
            close(sums.sum(dim=0)[1:] - groups, (dh.float() * x * inverse).sum(dim=0)[1:])
        alone, nothing = kernels.norm_gradient(dh, None, h, inverse, weight, None, None)
        assert torch.equal(alone, found) and nothing is None


def check_rows(device: torch.device) -> None:
    """Tokens that come once, so often that several programs share them, and not at all; sums are the same on every
    run."""
    for count, size, vocabulary in ((1, 96, 5), (700, 300, 3), (16_000 if device.type == "cuda" else 90, 768, 4000)):
        tokens = torch.randint(vocabulary, (count,), device=device)
        tokens[: count // 3] = vocabulary - 1
        table, rows = torch.randn(vocabulary + 3, size, **kind(device)), torch.randn(count, size, device=device)
        wanted = table.float().index_add(0, tokens, rows)
        again = table.clone()
        for into in (table, again):
            kernels.add_rows_(into, rows, kernels.in_order(tokens))
        close(table, wanted)
        assert torch.equal(table, again)


CHECKS = [
    check_attention, check_filling, check_what_attends, check_swiglu, check_cross_entropy, check_norm, check_rows,
    check_twin,
]  # fmt: skip

if __name__ == "__main__":
    torch.manual_seed(0)
    for check in CHECKS:
        check(torch.device("cpu"))
        print(check.__name__)
