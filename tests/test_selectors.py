import math

import pytest
import torch
from tiny import build, options

from tid import selectors
from tid.randomness import SELECTION, uniform
from tid.selectors import Sampled, Threshold

RATES = [0.0, 0.01, 0.1, 0.25, 0.3, 0.5, 0.75, 0.77, 0.9, 0.99]
EXACT = [name for name in options("selector") if build("selector", name).exact]
every_exact = pytest.mark.parametrize("option", EXACT)


def noise(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return uniform(seed, SELECTION, torch.arange(rows), length)


def normal(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))


def some_droppable(rows: int, length: int) -> torch.Tensor:
    """Row 0 wholly droppable, the last not at all, the others in part."""
    droppable = torch.rand(rows, length, generator=torch.Generator().manual_seed(5)) < 0.8
    droppable[0], droppable[-1] = True, False
    return droppable


def select(selector, scores, droppable, rate, seed: int = 0, state: dict | None = None) -> torch.Tensor:
    """keep, with one rate for all rows and fresh state."""
    rates = torch.full((len(scores),), rate, dtype=torch.float64)
    state = selector.initial_state() if state is None else state
    return selector(scores, droppable, rates, noise(*scores.shape, seed), state)


SCORES = {
    "distinct": normal(6, 40),
    "few values": normal(6, 40).round(),
    "all equal": torch.full((6, 40), 0.3),
    "all zero": torch.zeros(6, 40),
    "tiny": normal(6, 40) * 1e-30,
    "huge": normal(6, 40) * 1e30,
    "one outlier": torch.where(torch.arange(40) == 7, 3e38, normal(6, 40)),
}


@pytest.mark.parametrize("kind", SCORES)
@every_exact
def test_exact_counts(option, kind):
    scores, droppable = SCORES[kind], some_droppable(6, 40)
    for rate in RATES:
        keep = select(build("selector", option), scores, droppable, rate)
        expected = [round(rate * int(row.sum())) for row in droppable]
        assert (~keep).sum(dim=1).tolist() == expected, rate
        assert keep[~droppable].all(), rate


@every_exact
def test_each_row_has_its_own_rate(option):
    scores, droppable = normal(4, 40), torch.ones(4, 40, dtype=torch.bool)
    rates = torch.tensor([0.0, 0.25, 0.5, 0.9], dtype=torch.float64)
    keep = build("selector", option)(scores, droppable, rates, noise(4, 40), {})
    assert (~keep).sum(dim=1).tolist() == [0, 10, 20, 36]


@pytest.mark.parametrize("option", options("selector"))
def test_rate_0_keeps_all_and_protected_survive(option):
    selector, droppable = build("selector", option), some_droppable(6, 40)
    state = selector.initial_state()
    for seed in range(5):  # a threshold drops only once it has seen scores
        scores = normal(6, 40, seed)
        assert select(selector, scores, droppable, 0.0, seed, state).all()
        scores[~droppable] = -1e6 if option != "highest" else 1e6
        assert select(selector, scores, droppable, 0.9, seed, state)[~droppable].all()


@pytest.mark.parametrize("option", options("selector"))
def test_rows_differ(option):
    selector, droppable = build("selector", option), torch.ones(8, 40, dtype=torch.bool)
    state = selector.initial_state()
    select(selector, normal(8, 40), droppable, 0.5, 0, state)
    keep = select(selector, normal(8, 40, seed=1), droppable, 0.5, 1, state)
    assert keep.unique(dim=0).shape[0] == 8


@pytest.mark.parametrize("option", options("selector"))
def test_inputs_are_left_alone(option):
    selector = build("selector", option)
    inputs = [normal(6, 40), some_droppable(6, 40), torch.full((6,), 0.3, dtype=torch.float64), noise(6, 40)]
    before = [t.clone() for t in [*inputs, torch.get_rng_state()]]
    selector(*inputs, selector.initial_state())
    assert all(torch.equal(a, b) for a, b in zip(before, [*inputs, torch.get_rng_state()], strict=True))


def test_lowest_drops_the_lowest_and_highest_the_highest():
    scores = torch.tensor([[0.5, -2.0, 9.0, 0.1, 7.0]])
    droppable = torch.tensor([[True, False, True, True, True]])
    expected = {"lowest": [[False, True, True, False, True]], "highest": [[True, True, False, True, False]]}
    for option, keep in expected.items():
        assert select(build("selector", option), scores, droppable, 0.5).tolist() == keep


def test_highest_is_the_inverse_of_lowest():
    scores, droppable = normal(6, 40), some_droppable(6, 40)
    lowest, highest = build("selector", "lowest"), build("selector", "highest")
    for rate in RATES:
        dropped = ~select(highest, scores, droppable, rate)
        assert torch.equal(dropped, ~select(lowest, -scores, droppable, rate))
        rank = (scores[:, None, :] > scores[:, :, None]) & droppable[:, None, :]
        above = rank.sum(dim=-1)  # droppable tokens more important than this one
        count = (droppable.sum(dim=1) * rate).round()[:, None]
        assert torch.equal(dropped, (above < count) & droppable)


@every_exact
def test_ties_are_not_broken_by_position(option):
    rows, length = 4000, 16
    scores, droppable = torch.full((rows, length), 0.3), torch.ones(rows, length).bool()
    keep = select(build("selector", option), scores, droppable, 0.25)
    frequency = (~keep).double().mean(dim=0)
    assert (frequency - 0.25).abs().max() < 4.5 * math.sqrt(0.25 * 0.75 / rows)


@every_exact
def test_rows_do_not_depend_on_each_other(option):
    scores, droppable = normal(6, 40), some_droppable(6, 40)
    rates = torch.full((6,), 0.4, dtype=torch.float64)
    selector, u = build("selector", option), noise(6, 40)
    alone = [selector(scores[i : i + 1], droppable[i : i + 1], rates[:1], u[i : i + 1], {}) for i in range(6)]
    assert torch.equal(torch.cat(alone), selector(scores, droppable, rates, u, {}))


# -------------------------------------------------------------------------------- sampled


def test_sampled_becomes_lowest_as_the_temperature_falls():
    scores, droppable = normal(6, 40), some_droppable(6, 40)
    lowest = select(build("selector", "lowest"), scores, droppable, 0.4)
    assert torch.equal(select(Sampled(temperature=1e-6), scores, droppable, 0.4), lowest)
    assert not torch.equal(select(Sampled(temperature=1.0), scores, droppable, 0.4), lowest)


def test_sampled_is_random_at_a_high_temperature():
    rows, scores = 4000, normal(1, 16).sort().values.expand(4000, 16)
    keep = select(Sampled(temperature=1e6), scores, torch.ones(rows, 16).bool(), 0.25)
    frequency = (~keep).double().mean(dim=0)
    assert (frequency - 0.25).abs().max() < 4.5 * math.sqrt(0.25 * 0.75 / rows)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sampled_drops_one_of_four_with_softmax_probability(temperature):
    rows, scores = 20_000, torch.tensor([1.0, 2.0, 4.0, 9.0])
    z = (scores - scores.mean()) / scores.std(correction=0)
    expected = (-z / temperature).double().softmax(0)  # Gumbel-max: the first of a top-k sample
    keep = select(Sampled(temperature=temperature), scores.expand(rows, 4), torch.ones(rows, 4).bool(), 0.25)
    frequency = (~keep).double().mean(dim=0)
    assert ((frequency - expected).abs() < 4.5 * (expected * (1 - expected) / rows).sqrt() + 1e-9).all()


def test_sampled_means_the_same_for_scores_of_any_size_and_offset():
    scores, droppable = normal(6, 40), some_droppable(6, 40)
    plain = select(Sampled(temperature=1.0), scores, droppable, 0.4)
    for scaled in (scores * 1e-12, scores * 1e12, scores * 3 + 50):
        assert torch.equal(select(Sampled(temperature=1.0), scaled, droppable, 0.4), plain)


# -------------------------------------------------------------------------------- threshold


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.7])
def test_threshold_approaches_the_rate(rate):
    selector, droppable = build("selector", "threshold"), torch.rand(8, 64) < 0.9
    state, dropped = selector.initial_state(), []
    for step in range(600):
        keep = select(selector, normal(8, 64, step).exp() + 5, droppable, rate, step, state)
        dropped.append((~keep).sum() / droppable.sum())
    assert dropped[0] == 0
    assert torch.stack(dropped[100:]).mean().item() == pytest.approx(rate, abs=0.01)


def drops(selector, shift, rates, steps=400) -> torch.Tensor:
    """Fractions dropped (steps,) of scores that move by `shift` standard deviations per step, at rates (steps,)."""
    state, found, droppable = selector.initial_state(), [], torch.ones(8, 64).bool()
    for step in range(steps):
        keep = select(selector, normal(8, 64, step) + shift * step, droppable, rates[step], step, state)
        found.append((~keep).double().mean())
    return torch.stack(found)


@pytest.mark.parametrize("shift", [0.01, -0.01])
def test_threshold_follows_scores_that_drift(shift):
    rates = [0.3] * 400
    late, later = drops(Threshold(momentum=0.0), shift, rates), drops(Threshold(momentum=0.9), shift, rates)
    assert late[1:].mean().item() == pytest.approx(0.3, abs=0.01)
    assert later[50:].mean().item() == pytest.approx(0.3, abs=0.05)
    assert (later[50:].mean() - 0.3) * shift < 0  # too few of rising scores, too many of falling ones
    assert (later[50:].mean() - 0.3).abs() > 2 * (late[50:].mean() - 0.3).abs()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_threshold_goes_with_the_schedule(momentum):
    rates = [0.6 * (1 - step / 400) for step in range(400)]
    found = drops(Threshold(momentum=momentum), 0.0, rates)
    for part in (slice(1, 50), slice(100, 150), slice(350, 400)):
        assert found[part].mean().item() == pytest.approx(sum(rates[part]) / len(rates[part]), abs=0.015)


def test_threshold_cuts_each_row_at_its_own_rate():
    selector, droppable = build("selector", "threshold"), torch.ones(3, 4000).bool()
    state, rates = selector.initial_state(), torch.tensor([0.0, 0.2, 0.7], dtype=torch.float64)
    for step in range(2):
        keep = selector(normal(3, 4000, step), droppable, rates, noise(3, 4000), state)
    assert (~keep).double().mean(dim=1).tolist() == pytest.approx(rates.tolist(), abs=0.03)
    assert keep[0].all()


@pytest.mark.parametrize("count", [1, 2, 37, 60])
def test_quantiles_are_torchs(count):
    values = torch.cat([normal(1, count)[0].sort().values, torch.full((60 - count,), torch.inf)])
    at = torch.linspace(0, 1, 33)
    assert torch.allclose(selectors.quantiles(values, torch.tensor(count - 1), at), values[:count].quantile(at))


def test_threshold_decides_each_token_without_its_neighbours():
    selector, droppable = Threshold(momentum=0.9), torch.ones(4, 32).bool()
    state = selector.initial_state()
    for step in range(20):
        select(selector, normal(4, 32, step), droppable, 0.5, step, state)
    scores, copy = normal(4, 32, 99), {name: t.clone() for name, t in state.items()}
    keep = select(selector, scores, droppable, 0.5, 0, state)
    changed = scores.clone()
    changed[:, 20:] -= 10
    other = select(selector, changed, droppable, 0.5, 0, copy)
    assert torch.equal(other[:, :20], keep[:, :20])
    assert not other[:, 20:].any()
    assert keep[:, 20:].any()


def test_threshold_keeps_its_estimate_over_a_batch_without_droppable_tokens():
    selector, droppable = Threshold(momentum=0.9), torch.ones(8, 64).bool()
    state = selector.initial_state()
    for step in range(5):
        select(selector, normal(8, 64, step) + 10, droppable, 0.5, step, state)
    estimates = state["quantiles"] / state["weight"]
    assert estimates[selectors.RATES // 2].item() == pytest.approx(10, abs=0.2)
    for step in range(20):
        assert select(selector, normal(8, 64, step), ~droppable, 0.5, step, state).all()
    assert torch.allclose(state["quantiles"] / state["weight"], estimates)


def test_long_rows_rank_as_short_ones_do(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    order = torch.randint(0, 5, (4, 40), generator=rng).float()
    tie = torch.randint(0, 3, (4, 40), generator=rng).float()
    pairwise = selectors.ranks(order, tie)
    rows = zip(order.tolist(), tie.tolist(), strict=True)
    wanted = [sorted(range(40), key=lambda i, o=o, t=t: (o[i], t[i], i)) for o, t in rows]
    assert pairwise.argsort(dim=1).tolist() == wanted
    monkeypatch.setattr(selectors, "PAIRWISE_LENGTH", 0)
    assert torch.equal(selectors.ranks(order, tie), pairwise)
