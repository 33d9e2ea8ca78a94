"""Rows taken out of a sequence and put back: as by gather and scatter, gradients too."""

import pytest
import torch

from tid import rows
from tid.rows import PutBack, TakenOut, kept_rows


def masks() -> torch.Tensor:
    keep = torch.rand(5, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[0], keep[1] = True, False
    return keep


@pytest.mark.parametrize("size", [12, 15])
def test_kept_rows_and_the_way_back(size):
    index, back = kept_rows(masks(), size)
    assert index.shape == (5, size) and back.shape == (5, 12)
    for keep, forth, its in zip(masks(), index.tolist(), back.tolist(), strict=True):
        kept = keep.nonzero()[:, 0].tolist()
        assert forth == kept + [-1] * (size - len(kept))
        assert [its[position] for position in kept] == list(range(len(kept)))
        assert all(its[position] == -1 for position in range(12) if position not in kept)


@pytest.mark.parametrize("branches", [False, True])
def test_rows_are_changed_where_they_were_and_gradients_follow(branches):
    keep = masks()
    size = int(keep.sum(dim=1).max())
    index, back = kept_rows(keep, size)
    x, branch = torch.randn(2, 5, 12, 3, dtype=torch.float64, requires_grad=True)

    def changed(x: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        residual = (x, branch) if branches else (x + branch, None)
        short, *residual = TakenOut.apply(*residual, index, back, rows)
        y = (short.sin(), short.sin()) if branches else (short.sin() * 2, None)
        return PutBack.apply(*residual, *y, index, back, rows)

    total = x + branch
    torch.testing.assert_close(changed(x, branch), torch.where(keep[..., None], total.sin() * 2, total))
    assert torch.autograd.gradcheck(changed, (x, branch))
