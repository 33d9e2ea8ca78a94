"""The statistics at hand-computed points, and held to scipy's own functions."""

import math

import numpy as np
import pytest
from scipy import stats

from tid.comparison.statistics import Difference, adjusted, band, by_documents, by_seeds, spread


def test_spread_is_the_mean_the_sample_sd_and_the_t_interval():
    found = spread([1.0, 2.0, 4.0], 0.95)
    assert found.mean == pytest.approx(7 / 3)
    assert found.sd == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    half = 4.302652729911275 * found.sd / math.sqrt(3)  # t with 2 degrees of freedom, 97.5 %
    assert (found.low, found.high) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert found.n == 3


def test_one_value_has_no_spread_and_none_has_no_mean():
    one, none = spread([2.0], 0.95), spread([float("nan")], 0.95)
    assert one.mean == 2.0 and math.isnan(one.sd) and math.isnan(one.low)
    assert none.n == 0 and math.isnan(none.mean)


def test_equal_values_have_an_interval_of_no_width():
    found = spread([0.3, 0.3, 0.3], 0.95)
    assert (found.sd, found.low, found.high) == pytest.approx((0, 0.3, 0.3), abs=1e-15)


def test_paired_by_seed_at_a_hand_computed_point():
    """Differences -0.5, -0.1, -0.4: mean -1/3, sd 0.2082, t = -2.7735 with 2 degrees of freedom."""
    found = by_seeds([1.0, 2.0, 3.0], [1.5, 2.1, 3.4], [0, 1, 2], 0.95)
    assert found.method == "seeds" and found.pairs == 3
    assert found.estimate == pytest.approx(-1 / 3)
    half = 4.302652729911275 * 0.2081665999 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((-1 / 3 - half, -1 / 3 + half))
    assert found.p == pytest.approx(0.10912919, abs=1e-8)


def test_pairing_removes_what_the_seeds_have_in_common():
    luck = np.array([0.0, 1.0, -2.0, 3.0])
    ours, theirs = luck - 0.1 + [0.001, -0.001, 0.002, 0.0], luck
    assert by_seeds(list(ours), list(theirs), [0, 1, 2, 3], 0.95).p < 1e-5
    assert stats.ttest_ind(ours, theirs).pvalue > 0.9


def test_one_difference_with_every_seed_is_told_without_a_test():
    found = by_seeds([1.1, 2.1], [1.0, 2.0], [0, 1], 0.95)
    assert found.method == "point" and found.estimate == pytest.approx(0.1) and math.isnan(found.p)
    assert "no spread" in found.why


def test_documents_agree_with_scipys_paired_bootstrap_of_the_ratio():
    rng = np.random.default_rng(3)
    sizes = rng.integers(100, 2000, 60).astype(float)
    ours = rng.normal(2, 0.2, (3, 60)) * sizes
    theirs = rng.normal(2.02, 0.2, (3, 60)) * sizes
    estimates, lows, highs = by_documents(ours - theirs, sizes, 0.9)

    def ratio(a, b, size, axis=-1):
        return (a - b).sum(axis) / size.sum(axis)

    for k in range(3):
        reference = stats.bootstrap(
            (ours[k], theirs[k], sizes), ratio, paired=True, vectorized=True, n_resamples=9999,
            confidence_level=0.9, method="BCa", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert estimates[k] == pytest.approx(ours[k].sum() / sizes.sum() - theirs[k].sum() / sizes.sum())
        assert (lows[k], highs[k]) == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_documents_cover_the_truth_as_often_as_they_say():
    """60 experiments of 100 documents with a true difference of 1: about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(3):  # each with its own documents, 20 comparisons at once
        sizes = rng.integers(50, 500, 100).astype(float)
        nats = sizes * rng.normal(1.0, 0.5, (20, 100))
        _, lows, highs = by_documents(nats, sizes, 0.95)
        held += list((lows < 1) & (highs > 1))
    assert 0.85 <= np.mean(held) <= 1.0


def test_the_correction_is_over_all_that_were_tested():
    """Benjamini-Hochberg by hand: 0.01 * 3/1, 0.02 * 3/2, 0.5 * 3/3, made monotone from the right."""
    found = [Difference("seeds", p=p) for p in (0.02, 0.5, 0.01)]
    untested = Difference("point", estimate=1.0)
    corrected = adjusted([found[0], untested, *found[1:]], "bh")
    assert [d.p_adjusted for d in corrected if d.method == "seeds"] == pytest.approx([0.03, 0.5, 0.03])
    assert math.isnan(corrected[1].p_adjusted)
    harmonic = 1 + 1 / 2 + 1 / 3  # Benjamini-Yekutieli: the same times this
    assert adjusted(found, "by")[2].p_adjusted == pytest.approx(0.03 * harmonic)
    assert adjusted([untested], "bh") == [untested]


def test_many_that_are_worse_do_not_make_it_easy_to_be_better():
    worse = [Difference("seeds", estimate=1.0, p=1e-6) for _ in range(30)]
    ours = Difference("seeds", estimate=-1.0, p=0.02)
    assert adjusted([*worse, ours], "bh")[-1].p_adjusted == pytest.approx(0.02 * 31)
    assert adjusted(worse, "bh")[0].p_adjusted == pytest.approx(1e-6)
    assert adjusted([ours], "bh", never_made=9)[0].p_adjusted == pytest.approx(0.2)


def test_band_is_over_runs():
    mean, sd = band(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert mean.tolist() == [2, 5] and sd == pytest.approx([math.sqrt(2), 0])
    assert band(np.array([[1.0, 5.0]]))[1].tolist() == [0, 0]
