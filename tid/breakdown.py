"""Loss by what kind of token it is, and calibration: tables of one row per group of predictions."""

import numpy as np

from tid.predictions import Predictions

CALIBRATION_BINS = 15


def grouped(found: Predictions, group: np.ndarray, num_groups: int) -> list[dict]:
    """Tokens, loss and mean entropy in nats per token, accuracy and mean confidence of each group; group (P,) int.

    A group without tokens has null figures.
    """
    tokens = np.bincount(group, minlength=num_groups)
    sums = {
        "loss": found.nats,
        "entropy": found.entropy,
        "accuracy": found.correct.astype(np.float64),
        "confidence": found.confidence,
    }
    means = {name: np.bincount(group, values, num_groups) / np.maximum(tokens, 1) for name, values in sums.items()}
    return [
        {"tokens": int(tokens[g])} | {name: float(mean[g]) if tokens[g] else None for name, mean in means.items()}
        for g in range(num_groups)
    ]


def doubling_bins(values: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Bins 0, 1, 2–3, 4–7, … of non-negative integers: the bin of each value, and each bin's first and last value."""
    number = np.zeros(len(values), dtype=np.int64)
    positive = values > 0
    number[positive] = np.frexp(values[positive])[1]  # 1 + floor(log2), exact for integers below 2^53
    edges = [(0, 0)] + [(2**k, 2 ** (k + 1) - 1) for k in range(int(number.max()))]
    return number, edges


def equal_bins(values: np.ndarray, count: int) -> np.ndarray:
    """The bin 0 … count − 1 of each value, bins of equal size (to within one) in the order of the values."""
    group = np.empty(len(values), dtype=np.int64)
    group[np.argsort(values, kind="stable")] = np.arange(len(values)) * count // len(values)
    return group


def by_training_count(found: Predictions, counts: np.ndarray) -> list[dict]:
    """By how often the predicted token occurs in the training text: counts (V,), bins that double."""
    group, edges = doubling_bins(counts[found.target])
    rows = grouped(found, group, len(edges))
    return [{"from": a, "to": b, **row} for (a, b), row in zip(edges, rows, strict=True)]


def by_position(found: Predictions) -> list[dict]:
    """By the number of tokens in the window before the predicted one, in bins that double: 1, 2–3, 4–7, …"""
    group, edges = doubling_bins(found.before)
    rows = grouped(found, group, len(edges))
    return [{"from": a, "to": b, **row} for (a, b), row in zip(edges, rows, strict=True)][1:]


def by_entropy(found: Predictions, bins: int = 10) -> list[dict]:
    """By the entropy of the model's own prediction, lowest first, bins of equal size: deciles, or halves with 2."""
    group = equal_bins(found.entropy, bins)
    edges = [found.entropy[group == g] for g in range(bins)]
    rows = grouped(found, group, bins)
    return [
        {"from": float(e.min()), "to": float(e.max()), **row} for e, row in zip(edges, rows, strict=True) if len(e)
    ]


def by_confidence(found: Predictions) -> list[dict]:
    """The reliability table: bins of equal size by the probability of the likeliest token; accuracy beside it."""
    return [row for row in grouped(found, equal_bins(found.confidence, CALIBRATION_BINS), CALIBRATION_BINS)
            if row["tokens"]]  # fmt: skip


def calibration_error(reliability: list[dict]) -> float:
    """Expected calibration error in [0, 1]: the mean of |accuracy − confidence| over the bins, weighted by tokens
    (Guo et al. 2017; bins of equal size as in Nixon et al. 2019)."""
    total = sum(row["tokens"] for row in reliability)
    return sum(row["tokens"] * abs(row["accuracy"] - row["confidence"]) for row in reliability) / total


def breakdown(found: Predictions, training_counts: np.ndarray) -> dict:
    """All tables, and the expected calibration error."""
    low, high = by_entropy(found, 2) if len(found.nats) > 1 else by_entropy(found, 1) * 2
    reliability = by_confidence(found)
    return {
        "accuracy": float(found.correct.mean()),
        "entropy": float(found.entropy.mean()),
        "calibration_error": calibration_error(reliability),
        "low_entropy": low,
        "high_entropy": high,
        "by_training_count": by_training_count(found, training_counts),
        "by_position": by_position(found),
        "by_entropy": by_entropy(found),
        "by_confidence": reliability,
    }
