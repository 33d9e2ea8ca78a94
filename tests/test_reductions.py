"""Sums over a vocabulary, against torch's in float64."""

import pytest
import torch

from tid.reductions import PADDING, entropy, in_lanes, log_sum_exp


def logits(length: int, spread: float) -> torch.Tensor:
    return spread * torch.randn(3, 4, length, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("length", [1, 101, 128, 1280])
def test_sums_of_pieces_are_those_of_the_row(length, spread):
    x = logits(length, spread)
    exact = x.double()
    torch.testing.assert_close(log_sum_exp(x).double(), exact.logsumexp(-1), rtol=1e-6, atol=1e-6)
    wanted = torch.distributions.Categorical(logits=exact).entropy()
    torch.testing.assert_close(entropy(x).double(), wanted, rtol=1e-5, atol=1e-6)
    assert (entropy(x) >= 0).all()


def test_padding_has_no_part_even_where_it_fills_whole_pieces():
    x = logits(200, 2.0)
    padded = torch.cat((x, torch.full((3, 4, 568), PADDING)), dim=-1)
    assert in_lanes(padded).shape == (3, 4, 6, 128)
    torch.testing.assert_close(entropy(padded), entropy(x))
    torch.testing.assert_close(log_sum_exp(padded), log_sum_exp(x))
