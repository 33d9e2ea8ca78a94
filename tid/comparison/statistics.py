"""The statistics of the comparison. Every one is scipy's; here they are only put to the right numbers."""

import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

RESAMPLES = 9999
BATCH = 500  # resamples at a time: (500, documents) float64 in memory


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (ddof = 1) of n values, and the t interval of the mean. NaN where n is too small."""

    values: tuple[float, ...]
    mean: float
    sd: float
    low: float
    high: float

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Difference:
    """A configuration minus its control. method: "seeds" (paired t-test over seeds), "documents" (paired bootstrap
    over validation documents of one seed), "point" (a number without an interval) or "none"; why: in words, for the
    last two. p and p_adjusted are NaN but for "seeds"."""

    method: str
    estimate: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    p_adjusted: float = float("nan")
    seeds: tuple[int, ...] = field(default=())
    why: str = ""

    @property
    def pairs(self) -> int:
        return len(self.seeds)


def spread(values: list[float], confidence: float) -> Spread:
    """Of the values that are numbers."""
    kept = [float(value) for value in values if np.isfinite(value)]
    if len(kept) < 2:
        nan = float("nan")
        return Spread(tuple(kept), kept[0] if kept else nan, nan, nan, nan)
    mean = float(stats.tmean(kept))
    if all_equal(kept):
        return Spread(tuple(kept), mean, 0.0, mean, mean)
    sd = float(stats.tstd(kept))  # ddof = 1
    low, high = stats.ttest_1samp(kept, 0).confidence_interval(confidence)
    return Spread(tuple(kept), mean, sd, float(low), float(high))


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (ddof = 1; 0 for one run) over the runs of curves (R, E)."""
    mean = stats.tmean(values, axis=0)
    if len(values) == 1:
        return mean, np.zeros_like(mean)
    with warnings.catch_warnings(category=RuntimeWarning, action="ignore"):  # where all runs are equal it is 0
        return mean, stats.tstd(values, axis=0)


def all_equal(values: np.ndarray | list[float]) -> bool:
    """But for rounding, which would otherwise become a spread, and a tiny p-value."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, np.abs(values).max()))


def by_seeds(ours: list[float], theirs: list[float], seeds: list[int], confidence: float) -> Difference:
    """Student's paired t-test over the seeds: (S,) values of each side, S ≥ 2, the same seed at the same place."""
    differences = np.subtract(ours, theirs)
    mean = float(stats.tmean(differences))
    if all_equal(differences):
        why = "the same difference with every seed: there is no spread to test against"
        return Difference("point", mean, seeds=tuple(seeds), why=why)
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(confidence)
    return Difference("seeds", mean, float(low), float(high), float(test.pvalue), seeds=tuple(seeds))


def by_documents(nats: np.ndarray, sizes: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paired bootstrap (BCa) over documents, of K comparisons at once: estimates, lower and upper ends (K,).

    nats: (K, D), ours minus theirs of each document, in the unit's own logarithm; sizes: (D,) tokens, characters or
    bytes. The statistic is Σ nats / Σ sizes. Each resample draws D documents and takes both runs' figures of each:
    scipy's own way of pairing (it resamples indices), which here serves all K comparisons.
    """
    count, documents = nats.shape

    def ratios(index: np.ndarray, axis: int = -1) -> np.ndarray:
        index = np.moveaxis(np.asarray(index, dtype=np.int64), axis, -1)
        leading, rows = index.shape[:-1], index.reshape(-1, index.shape[-1])
        places = (rows + documents * np.arange(len(rows))[:, None]).ravel()
        drawn = np.bincount(places, minlength=len(rows) * documents).reshape(len(rows), documents).astype(float)
        values = (drawn @ nats.T) / (drawn @ sizes)[:, None]
        return np.moveaxis(values.reshape(*leading, count), -1, 0)

    result = stats.bootstrap(
        (np.arange(documents),), ratios, n_resamples=RESAMPLES, batch=BATCH, vectorized=True,
        confidence_level=confidence, method="BCa", rng=np.random.default_rng(0),
    )  # fmt: skip
    return nats.sum(1) / sizes.sum(), result.confidence_interval.low, result.confidence_interval.high


def adjusted(found: list[Difference], method: str, never_made: int = 0) -> list[Difference]:
    """The same differences with p_adjusted: Benjamini-Hochberg ("bh") or Benjamini-Yekutieli ("by") over all that
    have a p-value, and over tests that were `never_made`, which count as p = 1.

    Those below zero and those above are corrected apart, each with the others as p = 1: many that are clearly worse
    would otherwise make it easy to be called better.
    """
    corrected, tested = list(found), [place for place, d in enumerate(found) if np.isfinite(d.p)]
    for below in (True, False):
        mine = {place: found[place] for place in tested if (found[place].estimate < 0) == below}
        if mine:
            others = [1.0] * (len(tested) - len(mine) + never_made)
            values = stats.false_discovery_control([*(d.p for d in mine.values()), *others], method=method)
            for (place, d), value in zip(mine.items(), values, strict=False):
                corrected[place] = replace(d, p_adjusted=float(value))
    return corrected
