import math

import pytest
import torch

from tid.randomness import ROW_RATE, SCORES, SELECTION, mix32, uniform

SAMPLES = torch.arange(512)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())).double())[0, 1].item()


def reference_mix32(x: int) -> int:
    """The published C function, in unbounded integers cut to 32 bits."""
    x ^= x >> 16
    x = x * 0x21F0AAAD % 2**32
    x ^= x >> 15
    x = x * 0xD35A2D97 % 2**32
    return x ^ (x >> 15)


def test_mix32_against_integers():
    points = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xDEADBEEF, 0xFFFFFFFF]
    assert mix32(torch.tensor(points)).tolist() == [reference_mix32(x) for x in points]


def test_mix32_has_no_collisions():
    assert mix32(torch.arange(1 << 16) * 65521 % 2**32).unique().numel() == 1 << 16


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_values_are_uniform(seed):
    values = uniform(seed, SELECTION, SAMPLES, 128)
    assert values.dtype == torch.float32
    assert values.shape == (512, 128)
    assert values.min() >= 0
    assert values.max() < 1
    n = values.numel()
    assert values.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / n))
    observed = torch.histc(values, 256, 0, 1)
    chi_square = ((observed - n / 256).square() / (n / 256)).sum().item()
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


def test_neighbours_are_uncorrelated():
    values, bound = uniform(0, SELECTION, SAMPLES, 128), 5 / math.sqrt(512 * 127)
    assert abs(correlation(values[:, 1:], values[:, :-1])) < bound
    assert abs(correlation(values[1:], values[:-1])) < bound


@pytest.mark.parametrize(
    "other",
    [
        uniform(1, SELECTION, SAMPLES, 128),
        uniform(0, SCORES, SAMPLES, 128),
        uniform(0, ROW_RATE, SAMPLES, 128),
        uniform(0, SELECTION, SAMPLES + 512, 128),
        uniform(0, SELECTION, SAMPLES + 2**32, 128),  # the high half of a sample's number counts
        uniform(0, SELECTION, SAMPLES + 2**40, 128),
    ],
    ids=["seed", "scores", "row_rate", "samples", "beyond 32 bits", "beyond 40 bits"],
)
def test_streams_are_independent(other):
    values = uniform(0, SELECTION, SAMPLES, 128)
    assert abs(correlation(values, other)) < 5 / math.sqrt(values.numel())
    assert (values == other).float().mean() < 1e-3


def test_a_sample_has_its_numbers_in_any_company_and_length():
    values = uniform(3, SCORES, SAMPLES, 64)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(3, SCORES, SAMPLES[order], 64), values[order])
    assert torch.equal(uniform(3, SCORES, SAMPLES[7:8], 64), values[7:8])
    assert torch.equal(uniform(3, SCORES, SAMPLES, 16), values[:, :16])


def test_no_two_rows_agree():
    values = uniform(0, SELECTION, torch.arange(4096), 16)
    assert values.unique(dim=0).shape[0] == 4096


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    uniform(0, SCORES, SAMPLES, 8)
    assert torch.equal(torch.get_rng_state(), before)
