import math

import pytest
import torch
from tiny import build, options, tiny_dropout

from tid.config import ConfigError
from tid.schedules import rate_band

PROGRESS = [i / 1000 for i in range(1001)]
every = pytest.mark.parametrize("option", options("drop_schedule"))


@every
def test_rates_are_legal_and_reach_the_rate_and_no_more(option):
    schedule = build("drop_schedule", option)
    bands = [rate_band(schedule, p) for p in PROGRESS]
    assert all(0 <= low <= high < 1 for low, high in bands)
    top = getattr(schedule, "rate", 0.0)
    assert max(high for _, high in bands) == pytest.approx(top, rel=0.01)
    assert max(high for _, high in bands) <= top


@every
def test_schedule_is_pure(option):
    schedule = build("drop_schedule", option)
    forwards = [schedule(p) for p in PROGRESS]
    backwards = [schedule(p) for p in reversed(PROGRESS)]
    assert forwards == backwards[::-1]
    another = build("drop_schedule", option)
    assert forwards == [another(p) for p in PROGRESS]


POINTS = [
    ("none", {}, {0.0: 0.0, 0.5: 0.0, 1.0: 0.0}),
    ("constant", {"rate": 0.2}, {0.0: 0.2, 0.5: 0.2, 1.0: 0.2}),
    ("linear_decay", {"rate": 0.4, "end_rate": 0.0}, {0.0: 0.4, 0.25: 0.3, 0.5: 0.2, 1.0: 0.0}),
    ("linear_decay", {"rate": 0.4, "end_rate": 0.2}, {0.0: 0.4, 0.5: 0.3, 1.0: 0.2}),
    ("linear_ramp", {"start_rate": 0.1, "rate": 0.5}, {0.0: 0.1, 0.25: 0.2, 1.0: 0.5}),
    ("cosine_decay", {"rate": 0.4, "end_rate": 0.0}, {0.0: 0.4, 1 / 3: 0.3, 0.5: 0.2, 2 / 3: 0.1, 1.0: 0.0}),
    ("cosine_decay", {"rate": 0.4, "end_rate": 0.2}, {0.0: 0.4, 0.5: 0.3, 1.0: 0.2}),
    ("sigmoid_ramp", {"rate": 0.6, "midpoint": 0.5, "steepness": 10.0},
     {0.0: 0.6 / (1 + math.exp(5)), 0.5: 0.3, 1.0: 0.6 / (1 + math.exp(-5))}),
    ("sigmoid_ramp", {"rate": 0.6, "midpoint": 1.0, "steepness": 500.0}, {0.0: 0.0, 0.9: 0.0, 1.0: 0.3}),
    ("early", {"rate": 0.3, "until": 0.25}, {0.0: 0.3, 0.249: 0.3, 0.25: 0.0, 1.0: 0.0}),
    ("late", {"rate": 0.3, "start": 0.75}, {0.0: 0.0, 0.749: 0.0, 0.75: 0.3, 1.0: 0.3}),
    ("step", {"rate": 0.4, "factor": 0.5, "boundaries": [0.5, 0.75]},
     {0.0: 0.4, 0.499: 0.4, 0.5: 0.2, 0.75: 0.1, 1.0: 0.1}),
    ("step", {"rate": 0.4, "factor": 0.0, "boundaries": [0.5]}, {0.0: 0.4, 0.5: 0.0}),
    ("cyclic", {"low": 0.1, "rate": 0.5, "cycles": 2},
     {0.0: 0.1, 0.125: 0.3, 0.25: 0.5, 0.375: 0.3, 0.5: 0.1, 0.75: 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("option", "fields", "points"), POINTS)
def test_values_by_hand(option, fields, points):
    schedule = build("drop_schedule", option, **fields)
    for progress, rate in points.items():
        assert schedule(progress) == pytest.approx(rate, abs=1e-12), progress


def test_every_schedule_has_hand_computed_points():
    ours = {o for o in options("drop_schedule") if type(build("drop_schedule", o)).__module__ == "tid.schedules"}
    assert ours == {option for option, *_ in POINTS} | {"uniform"}


def test_shipped_defaults():
    assert build("drop_schedule", "linear_decay")(0.0) == 0.3
    assert build("drop_schedule", "linear_decay")(1.0) == 0.0
    assert build("drop_schedule", "uniform")(0.5) == (0.0, 0.5)


def rates_of_rows(schedule, samples: int, seed: int = 7) -> torch.Tensor:
    dropout = tiny_dropout(schedule=schedule, seed=seed)
    band = torch.tensor(dropout.band(0.5), dtype=torch.float64)
    return dropout.row_rates(band, torch.arange(samples))


def test_uniform_gives_each_row_a_rate_of_its_own():
    n = 20_000
    schedule = build("drop_schedule", "uniform", low=0.1, rate=0.5)
    rates = rates_of_rows(schedule, n)
    assert rates.dtype == torch.float64
    assert rates.min() >= 0.1
    assert rates.max() < 0.5
    # Kolmogorov-Smirnov: the greatest distance from the uniform distribution, 1.95 / √n at p = 0.001
    position = ((rates.sort().values - 0.1) / 0.4 - (torch.arange(n) + 0.5) / n).abs().max().item()
    assert position < 1.95 / math.sqrt(n)
    assert torch.equal(rates[:100], rates_of_rows(schedule, 100))
    assert not torch.equal(rates[:100], rates_of_rows(schedule, 100, seed=8))


def test_one_rate_is_every_rows_rate_to_the_bit():
    for rate in (0.0, 0.1, 0.3, 0.7, 0.99):
        assert (rates_of_rows(rate, 500) == rate).all()


@pytest.mark.parametrize("bad", [1.0, -0.1, float("nan"), (0.5, 0.2), (0.0, 1.0)])
def test_rates_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"gives drop rate .* at progress 0\.250: wanted 0 <= low <= high"):
        rate_band(lambda progress: bad, 0.25)


WITH_RATE = [option for option in options("drop_schedule") if hasattr(build("drop_schedule", option), "rate")]


@pytest.mark.parametrize("option", WITH_RATE)
@pytest.mark.parametrize("rate", [1.0, -0.01, "much"])
def test_a_rate_field_out_of_range_is_refused_when_built(option, rate):
    with pytest.raises(ConfigError, match="drop_schedule.rate"):
        build("drop_schedule", option, rate=rate)
