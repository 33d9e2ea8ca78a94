"""Figures about what is dropped, from the marks of a text: plain tables of numbers, shown by others."""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from tid.inspection.kinds import KINDS, kinds
from tid.inspection.marks import Fate, Marks

POSITION_BINS = 16
MIN_SEEN = 5  # a token seen more rarely is never or always dropped by chance too easily
Z95 = 1.959963984540054  # of the normal distribution
EXACT_UP_TO = 400  # occurrences; above, the chance information of a token follows from a series


@dataclass(frozen=True)
class Rates:
    """Drop rate by group. groups: their names; seen (G,): droppable tokens in each; rates: by scorer, (G,), NaN for an
    empty group; by `low` and `high`: 95% Wilson intervals that take tokens as independent."""

    title: str
    note: str
    groups: list[str]
    seen: np.ndarray
    rates: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]


@dataclass(frozen=True)
class Channel:
    """Bits per droppable token that the keep mask tells about a token. `mask` is the entropy of the bit itself, the
    most it could tell; `measured` the plug-in estimate; `chance` what a mask that knows nothing would show on as few
    tokens; `told` the estimate corrected for that."""

    mask: float
    measured: float
    chance: float
    told: float


@dataclass(frozen=True)
class Extremes:
    """Among the distinct tokens seen MIN_SEEN times or more: share never and share always dropped, and what the same
    number of drops at random would give; `kinds` of them there are."""

    kinds: int
    never: float
    always: float
    never_by_chance: float
    always_by_chance: float


@dataclass(frozen=True)
class Diagnostics:
    """All figures of one text. correlation: Spearman's, square, of `names` (scorers, then position and log-frequency);
    own, following: what the mask tells of the token itself and of the one after it, by scorer."""

    tokens: int
    droppable: int
    rate: float
    drop_rate: dict[str, float]
    by: dict[str, Rates]
    names: list[str]
    correlation: np.ndarray
    extremes: dict[str, Extremes]
    own: dict[str, Channel]
    following: dict[str, Channel]
    churn: list[dict] = field(default_factory=list)


def diagnose(marks: Marks, counts: np.ndarray, pieces: tuple[bytes, ...]) -> Diagnostics:
    """counts (V,): of each token in the training text; pieces: bytes of each token.

    Raises ValueError when no token is droppable.
    """
    where = marks.droppable
    if not where.any():
        raise ValueError(f"none of the {len(marks)} tokens may be dropped: give a longer text")
    names = [*marks.fates, "position", "log-frequency"]
    columns = [fate.scores[where] for fate in marks.fates.values()]
    columns += [marks.position[where], np.log1p(counts[marks.tokens[where]])]
    return Diagnostics(
        tokens=len(marks),
        droppable=int(where.sum()),
        rate=marks.rate,
        drop_rate={name: float((~fate.keep[where]).mean()) for name, fate in marks.fates.items()},
        by=drop_rates(marks, counts, pieces),
        names=names,
        correlation=spearman(columns),
        extremes={name: extremes(marks, fate) for name, fate in marks.fates.items()},
        own={n: channel(marks.tokens[where], ~f.keep[where]) for n, f in marks.fates.items()},
        following={n: channel(marks.next[where], ~f.keep[where]) for n, f in marks.fates.items()},
    )


def plain(value: Any) -> Any:
    """Figures as JSON has them: mappings, lists and numbers."""
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


# ------------------------------------------------------------------------------------------------ drop rates


def drop_rates(marks: Marks, counts: np.ndarray, pieces: tuple[bytes, ...]) -> dict[str, Rates]:
    """Drop rate by position, frequency, entropy decile and part of word."""
    groupings = {
        "position": (*positions(marks), "position in the sequence", ""),
        "frequency": (*frequencies(counts[marks.tokens]), "occurrences in the training text", ""),
        "entropy": (*deciles(marks), "decile of entropy", "1: the model was surest of what would come here"),
        "word": (*parts(marks, pieces), "part of word", ""),
    }
    return {
        name: rates_by(marks, group, labels, title, note) for name, (group, labels, title, note) in groupings.items()
    }


def rates_by(marks: Marks, group: np.ndarray, labels: list[str], title: str, note: str) -> Rates:
    """group (N,) int64: index in labels, or −1 for a token that belongs to none."""
    where = marks.droppable & (group >= 0)
    seen = np.bincount(group[where], minlength=len(labels))
    used = np.flatnonzero(seen)
    rates, low, high = {}, {}, {}
    for name, fate in marks.fates.items():
        dropped = np.bincount(group[where & ~fate.keep], minlength=len(labels))[used]
        rates[name] = dropped / seen[used]
        low[name], high[name] = wilson(dropped, seen[used])
    return Rates(title, note, [labels[i] for i in used], seen[used], rates, low, high)


def wilson(hits: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval of a proportion (1927)."""
    middle = (hits + Z95**2 / 2) / (of + Z95**2)
    half = Z95 / (of + Z95**2) * np.sqrt(hits * (of - hits) / of + Z95**2 / 4)
    return np.maximum(0, middle - half), np.minimum(1, middle + half)


def positions(marks: Marks) -> tuple[np.ndarray, list[str]]:
    length = int(marks.position.max()) + 1
    edges = np.unique(np.linspace(0, length, min(POSITION_BINS, length) + 1).round().astype(int))
    labels = [f"{a}–{b - 1}" if b - a > 1 else f"{a}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return np.searchsorted(edges, marks.position, side="right") - 1, labels


def frequencies(seen: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Powers of ten of the occurrences in the training text, those never seen apart."""
    power = np.where(seen > 0, np.log10(np.maximum(seen, 1)).astype(int) + 1, 0)
    tens = ("1–9", "10–99", "100–999", "1k–9k", "10k–99k", "100k–999k", "1M–9M", "10M–99M", "100M–999M")
    return np.minimum(power, len(tens)), ["0", *tens]


def deciles(marks: Marks) -> tuple[np.ndarray, list[str]]:
    """Decile of entropy among the droppable tokens; −1 where there is no entropy."""
    known = np.isfinite(marks.entropy)
    reference = marks.entropy[known & marks.droppable]
    if not len(reference):
        return np.full(len(marks), -1), [str(n + 1) for n in range(10)]
    edges = np.quantile(reference, np.arange(1, 10) / 10)
    return np.where(known, np.searchsorted(edges, marks.entropy, side="right"), -1), [str(n + 1) for n in range(10)]


def parts(marks: Marks, pieces: tuple[bytes, ...]) -> tuple[np.ndarray, list[str]]:
    before = np.concatenate(([-1], marks.tokens[:-1]))
    return kinds(marks.tokens, before, marks.next, pieces), list(KINDS)


# ------------------------------------------------------------------------------------------------ correlation


def spearman(columns: list[np.ndarray]) -> np.ndarray:
    """Spearman's rank correlations of every pair of columns, square; NaN with a column that is constant."""
    from scipy.stats import spearmanr  # takes a second, which only a run with diagnostics waits for

    size = len(columns)
    found = np.full((size, size), math.nan)
    for i in range(size):
        for j in range(i, size):
            if np.ptp(columns[i]) > 0 and np.ptp(columns[j]) > 0:
                found[i, j] = found[j, i] = spearmanr(columns[i], columns[j]).statistic
    return found


# ------------------------------------------------------------------------------------------------ extremes, churn


def extremes(marks: Marks, fate: Fate) -> Extremes:
    where = marks.droppable
    tokens, dropped = marks.tokens[where], ~fate.keep[where]
    seen, drops = np.bincount(tokens), np.bincount(tokens, dropped)
    often = seen >= MIN_SEEN
    if not often.any():
        return Extremes(0, *[math.nan] * 4)
    p = dropped.mean()
    seen, drops = seen[often], drops[often]
    return Extremes(
        kinds=int(often.sum()),
        never=float((drops == 0).mean()),
        always=float((drops == seen).mean()),
        never_by_chance=float(((1 - p) ** seen).mean()),
        always_by_chance=float((p**seen).mean()),
    )


def churn(before: Marks, after: Marks, name: str) -> float:
    """Share of the tokens that scorer `name` dropped in `before` and no longer drops in `after`; NaN if it dropped
    none. Masks that have nothing to do with each other reach 1 − drop rate."""
    dropped = ~before.fates[name].keep
    return float(after.fates[name].keep[dropped].mean()) if dropped.any() else math.nan


# ------------------------------------------------------------------------------------------------ the mask as a channel


def channel(tokens: np.ndarray, dropped: np.ndarray) -> Channel:
    """Mutual information in bits of a token (N,) and its dropped bit (N,): how well does the mask alone tell the token?

    Counts of rare tokens make the plug-in estimate too large: a token seen once always seems to know its bit. What
    a mask drawn independently at the same rate shows on the same counts is computed exactly (binomial), and the
    estimate is adjusted for it as Vinh, Epps & Bailey (JMLR 2010) adjust mutual information:
    H · (measured − chance) / (H − chance), H the entropy of the bit. That is 0 on average for an independent mask
    and H for one that is a function of the token.
    """
    seen = np.bincount(tokens)
    drops = np.bincount(tokens, dropped)[seen > 0]
    return channel_of_counts(seen[seen > 0], drops)


def channel_of_counts(seen: np.ndarray, drops: np.ndarray) -> Channel:
    """The same from counts: how often each of K distinct tokens was seen, and dropped. Zero bits when all or none
    was dropped."""
    total, p = seen.sum(), drops.sum() / seen.sum()
    mask = float(entropy_bits(p))
    if mask == 0:
        return Channel(0.0, 0.0, 0.0, 0.0)
    measured = mask - float((seen * entropy_bits(drops / seen)).sum() / total)
    sizes, kinds_of_size = np.unique(seen, return_counts=True)
    left = [chance_entropy(int(n), p) for n in sizes]
    chance = mask - float((sizes * kinds_of_size * left).sum() / total)
    told = mask * (measured - chance) / (mask - chance) if mask - chance > 1e-12 else 0.0
    return Channel(mask, measured, chance, told)


def entropy_bits(p: np.ndarray | float) -> np.ndarray:
    """Entropy in bits of a bit that is 1 with probability p."""
    p = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p), 0) + np.where(p < 1, (1 - p) * np.log2(1 - p), 0)
    return -terms


def chance_entropy(n: int, p: float) -> float:
    """Expected plug-in entropy in bits of n independent bits of probability p; for large n Miller's series (1955)."""
    if n > EXACT_UP_TO:
        return float(entropy_bits(p)) - 1 / (2 * n * math.log(2))
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.log(np.arange(1, n + 1)).cumsum()))
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    weight = np.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))
    return float((weight * entropy_bits(k / n)).sum())
