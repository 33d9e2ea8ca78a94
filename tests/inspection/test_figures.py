"""Figures about what is dropped, at points computed by hand and against scipy."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from tid.inspection import figures
from tid.inspection.kinds import KINDS, kinds
from tid.inspection.marks import Fate, Marks

PIECES = (b"", b" the", b" cat", b"s", b".", b" 42", b"\n", b"\xe2\x80", b"The", b" sat")
RNG = np.random.default_rng(0)


def marks(tokens: list[int], keep: list[bool] | np.ndarray, scores: np.ndarray | None = None, row: int = 4) -> Marks:
    """Sequences of `row` tokens; token 0 is protected. Entropy rises with the place."""
    tokens = np.array(tokens)
    size = len(tokens)
    fate = Fate(
        scores=np.arange(size, dtype=np.float32) if scores is None else scores, keep=np.array(keep),
        rank=np.ones(size, np.int64), level=np.zeros(size, np.int64), rates=(0.5,), uses_labels=False,
    )  # fmt: skip
    return Marks(
        tokens=tokens, next=np.append(tokens[1:], 0), row=np.arange(size) // row, position=np.arange(size) % row,
        droppable=tokens != 0, entropy=np.where(np.arange(size) % row, np.arange(size), np.nan).astype(float),
        surprisal=np.ones(size), loss=np.ones(size), rate=0.5, fates={"own": fate},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- part of word


def test_parts_of_words():
    text = [8, 2, 3, 9, 4, 5, 6, 7, 0, 1, 3]  # "The", " cat"+"s", " sat", ".", " 42", "\n", part, end, " the"+"s"
    tokens = np.array(text)
    before, after = np.append(-1, tokens[:-1]), np.append(tokens[1:], -1)
    assert [KINDS[kind] for kind in kinds(tokens, before, after, PIECES)] == [
        "stop word", "first piece", "continuation", "whole word", "punctuation", "digits", "space", "other", "other",
        "first piece", "continuation",
    ]  # fmt: skip


def test_a_piece_with_no_word_before_it_is_a_word_itself():
    found = kinds(np.array([3]), np.array([4]), np.array([4]), PIECES)
    assert KINDS[found[0]] == "whole word"


# ---------------------------------------------------------------------------------------------- drop rates


def test_drop_rate_by_group_counts_droppable_tokens_only():
    found = marks([0, 1, 2, 3, 0, 1, 1, 1], [True, False, True, True, True, False, False, True])
    rates = figures.drop_rates(found, counts=np.array([5, 0, 9, 10, 3, 0, 0, 0, 0, 0]), pieces=PIECES)
    assert rates["position"].groups == ["1", "2", "3"]  # at 0 nothing may be dropped
    assert rates["position"].seen.tolist() == [2, 2, 2]
    assert rates["position"].rates["own"].tolist() == [1.0, 0.5, 0.0]
    assert rates["frequency"].groups == ["0", "1–9", "10–99"]
    assert rates["frequency"].rates["own"].tolist() == [0.75, 0.0, 0.0]


def test_entropy_deciles_hold_a_tenth_of_the_droppable_tokens_each():
    size = 400
    found = marks([1] * size, np.arange(size) >= 40, row=400)
    group, labels = figures.deciles(found)
    assert group[0] == -1 and labels == [str(n) for n in range(1, 11)]
    assert sorted(np.bincount(group[1:])) == [39] + [40] * 9
    rates = figures.drop_rates(found, np.ones(10), PIECES)["entropy"].rates["own"]
    assert rates[0] == 39 / 40 and not rates[1:].any()


@pytest.mark.parametrize(("hits", "of"), [(0, 10), (3, 10), (10, 10), (200, 1000)])
def test_wilson_interval(hits, of):
    low, high = figures.wilson(np.array([hits]), np.array([of]))
    wanted = binomtest(hits, of).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


# ---------------------------------------------------------------------------------------------- correlation


def test_rank_correlation_is_scipys_and_none_with_a_constant():
    a, b = RNG.random(50), RNG.random(50)
    found = figures.spearman([a, b, np.ones(50)])
    assert found[0, 1] == pytest.approx(spearmanr(a, b).statistic) and found[0, 0] == pytest.approx(1)
    assert np.isnan(found[2]).all()


# ---------------------------------------------------------------------------------------------- extremes, churn


def test_never_and_always_dropped():
    tokens = [1] * 6 + [2] * 5 + [3] * 5 + [4]
    keep = [True] * 6 + [False] * 5 + [True, False] * 2 + [True] + [False]
    found = figures.extremes(marks(tokens, keep), marks(tokens, keep).fates["own"])
    assert found.kinds == 3  # token 4 is too rare
    assert (found.never, found.always) == (1 / 3, 1 / 3)
    p = 8 / 17
    assert found.never_by_chance == pytest.approx(((1 - p) ** 6 + 2 * (1 - p) ** 5) / 3)


def test_churn_is_the_share_of_dropped_tokens_that_came_back():
    one = marks([1] * 6, [False, False, False, False, True, True])
    other = marks([1] * 6, [True, False, False, False, False, True])
    assert figures.churn(one, other, "own") == 1 / 4
    assert math.isnan(figures.churn(marks([1], [True]), other, "own"))


# ---------------------------------------------------------------------------------------------- the mask as a channel


def test_a_mask_that_is_a_function_of_the_token_tells_its_whole_bit():
    tokens = RNG.integers(0, 300, 5000)
    found = figures.channel(tokens, tokens % 4 == 0)
    assert found.told == pytest.approx(found.mask) == pytest.approx(figures.entropy_bits((tokens % 4 == 0).mean()))


def test_a_mask_that_knows_nothing_tells_nothing_however_rare_the_tokens():
    told, measured = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tokens = np.minimum(rng.zipf(1.3, 3000), 3000)  # most are seen once
        found = figures.channel(tokens, rng.random(3000) < 0.3)
        told.append(found.told)
        measured.append(found.measured)
    assert np.mean(measured) > 0.1  # what an estimate without correction would claim
    assert abs(np.mean(told)) < 3 * np.std(told) / np.sqrt(30) + 0.002


def test_mutual_information_of_a_known_channel():
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 2, 200_000)
    dropped = rng.random(200_000) < np.where(tokens, 0.9, 0.1)
    wanted = 1 - figures.entropy_bits(0.1)  # a binary symmetric channel
    assert figures.channel(tokens, dropped).told == pytest.approx(wanted, abs=0.005)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_entropy_by_chance_is_the_mean_over_all_masks(n):
    p, mean = 0.3, 0.0
    for mask in range(2**n):
        ones = bin(mask).count("1")
        mean += p**ones * (1 - p) ** (n - ones) * float(figures.entropy_bits(ones / n))
    assert figures.chance_entropy(n, p) == pytest.approx(mean)


def test_entropy_by_chance_has_no_step_where_the_series_begins():
    exact, series = (figures.chance_entropy(figures.EXACT_UP_TO + more, 0.3) for more in (0, 1))
    assert series == pytest.approx(exact, abs=1e-4)


def test_nothing_or_everything_dropped_tells_nothing():
    assert figures.channel(np.array([1, 2, 2]), np.zeros(3, bool)) == figures.Channel(0, 0, 0, 0)


def test_a_text_without_droppable_tokens_is_refused():
    with pytest.raises(ValueError, match="none of the 2 tokens may be dropped"):
        figures.diagnose(marks([0, 0], [True, True]), np.ones(10), PIECES)
