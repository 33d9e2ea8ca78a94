"""The tables at points computed by hand."""

import numpy as np
import pytest

from tid.breakdown import (
    breakdown,
    by_confidence,
    by_entropy,
    by_position,
    by_training_count,
    calibration_error,
    doubling_bins,
    equal_bins,
)
from tid.predictions import Predictions


def predictions(**changes) -> Predictions:
    """Eight predictions; `changes` replace arrays."""
    arrays = {
        "index": np.arange(8),
        "target": np.array([0, 1, 2, 3, 3, 3, 2, 0]),
        "nats": np.array([8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 4.0, 6.0]),
        "entropy": np.array([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        "confidence": np.linspace(0.1, 0.8, 8),
        "correct": np.array([0, 0, 0, 1, 1, 1, 0, 0], bool),
        "before": np.array([1, 2, 3, 4, 5, 6, 7, 8]),
    }
    return Predictions(**arrays | changes)


def test_doubling_bins():
    values = np.array([0, 1, 2, 3, 4, 7, 8, 2**40 - 1, 2**40])
    group, edges = doubling_bins(values)
    assert edges[:4] == [(0, 0), (1, 1), (2, 3), (4, 7)]
    assert all(edges[g][0] <= value <= edges[g][1] for g, value in zip(group, values, strict=True))


@pytest.mark.parametrize(("size", "count"), [(10, 3), (3, 10), (100, 15), (1, 1)])
def test_equal_bins_differ_by_one_at_most_and_follow_the_order(size, count):
    values = np.random.default_rng(0).random(size)
    group = equal_bins(values, count)
    sizes = np.bincount(group, minlength=count)
    assert sizes.max() - sizes.min() <= 1 and group.max() < count
    assert (np.diff(group[np.argsort(values)]) >= 0).all()


def test_by_training_count():
    rows = by_training_count(predictions(), np.array([0, 1, 5, 6]))
    assert [(row["from"], row["to"], row["tokens"]) for row in rows] == [(0, 0, 2), (1, 1, 1), (2, 3, 0), (4, 7, 5)]
    assert [row["loss"] for row in rows[:2]] == [7.0, 4.0] and rows[2]["loss"] is None
    assert rows[3]["loss"] == pytest.approx(9 / 5) and rows[3]["accuracy"] == pytest.approx(3 / 5)


def test_by_position():
    rows = by_position(predictions())
    assert [(row["from"], row["to"], row["tokens"]) for row in rows] == [(1, 1, 1), (2, 3, 2), (4, 7, 4), (8, 15, 1)]
    assert [row["loss"] for row in rows] == [8.0, 3.0, 7 / 4, 6.0]


def test_by_entropy():
    halves = by_entropy(predictions(), 2)
    assert [(row["from"], row["to"], row["tokens"], row["loss"]) for row in halves] == [
        (0.1, 0.4, 4, 3.0),
        (0.5, 0.8, 4, 15 / 4),
    ]
    deciles = by_entropy(predictions())  # of eight
    assert len(deciles) == 8 and [row["loss"] for row in deciles] == predictions().nats[::-1].tolist()


def test_calibration_error_by_hand():
    found = predictions(confidence=np.full(8, 0.5))
    assert calibration_error([{"tokens": 8, "accuracy": 3 / 8, "confidence": 0.5}]) == 1 / 8
    rows = by_confidence(found)  # eight bins of one: each is off by a half
    assert len(rows) == 8 and calibration_error(rows) == 0.5


def test_a_calibrated_predictor_has_next_to_no_error_and_a_boastful_one_has_its_boast():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 0.8, 60_000)
    many = {name: np.zeros(60_000) for name in ("index", "target", "nats", "entropy", "before")}
    honest = Predictions(**many, confidence=confidence, correct=rng.random(60_000) < confidence)
    assert len(by_confidence(honest)) == 15
    assert calibration_error(by_confidence(honest)) < 0.01
    boastful = Predictions(**many, confidence=confidence + 0.1, correct=rng.random(60_000) < confidence)
    assert calibration_error(by_confidence(boastful)) == pytest.approx(0.1, abs=0.01)


def test_each_table_shares_out_all_predictions():
    found = predictions()
    result = breakdown(found, np.array([0, 1, 5, 6]))
    for name in ("by_training_count", "by_position", "by_entropy", "by_confidence"):
        rows = [row for row in result[name] if row["tokens"]]
        assert sum(row["tokens"] for row in rows) == 8
        for key, values in (("loss", found.nats), ("entropy", found.entropy), ("confidence", found.confidence)):
            assert sum(row["tokens"] * row[key] for row in rows) == pytest.approx(values.sum())
    assert result["accuracy"] == 3 / 8 and result["entropy"] == pytest.approx(0.45)
    assert result["low_entropy"]["loss"] == 3.0 and result["high_entropy"]["loss"] == 15 / 4
