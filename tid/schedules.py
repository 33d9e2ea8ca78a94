"""Drop schedules: what fraction of the droppable tokens goes, as a pure function of progress = step / total_steps.

A schedule is a component: ``schedule(progress) -> drop rate in [0, 1)``, or a pair (low, high) between which each
sequence draws its own rate uniformly. In every schedule `rate` is the largest rate reached.
"""

import math
from typing import Annotated

from pydantic import Field

from tid.component import component

Rate = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def check_at_most(name: str, value: float, rate: float) -> None:
    """Raise ValueError when `value` is larger than `rate`, which is the largest rate reached."""
    if value > rate:
        raise ValueError(f"{name} must be at most rate ({rate}), got {value}")


@component
class NoDrop:
    """Nothing is dropped: the plain baseline."""

    def __call__(self, progress: float) -> float:
        return 0.0


@component
class Constant:
    """`rate` throughout."""

    rate: Rate

    def __call__(self, progress: float) -> float:
        return self.rate


@component
class LinearDecay:
    """From `rate` straight down to `end_rate`."""

    rate: Rate
    end_rate: Rate

    def __post_init__(self) -> None:
        check_at_most("end_rate", self.end_rate, self.rate)

    def __call__(self, progress: float) -> float:
        return self.rate + (self.end_rate - self.rate) * progress


@component
class LinearRamp:
    """From `start_rate` straight up to `rate`."""

    start_rate: Rate
    rate: Rate

    def __post_init__(self) -> None:
        check_at_most("start_rate", self.start_rate, self.rate)

    def __call__(self, progress: float) -> float:
        return self.start_rate + (self.rate - self.start_rate) * progress


@component
class CosineDecay:
    """From `rate` down to `end_rate` along half a cosine (Loshchilov & Hutter 2017)."""

    rate: Rate
    end_rate: Rate

    def __post_init__(self) -> None:
        check_at_most("end_rate", self.end_rate, self.rate)

    def __call__(self, progress: float) -> float:
        return self.end_rate + (self.rate - self.end_rate) * 0.5 * (1 + math.cos(math.pi * progress))


@component
class SigmoidRamp:
    """rate / (1 + e^(−steepness · (progress − midpoint))): EntroDrop's curriculum (arXiv 2512.23422)."""

    rate: Rate
    midpoint: Fraction
    steepness: Annotated[float, Field(gt=0, le=500)]

    def __call__(self, progress: float) -> float:
        return self.rate / (1 + math.exp(-self.steepness * (progress - self.midpoint)))


@component
class Early:
    """`rate` until `until`, then nothing: early dropout against under-fitting (Liu et al. 2023)."""

    rate: Rate
    until: Fraction

    def __call__(self, progress: float) -> float:
        return self.rate if progress < self.until else 0.0


@component
class Late:
    """Nothing until `start`, then `rate`: late dropout against over-fitting (Liu et al. 2023)."""

    rate: Rate
    start: Fraction

    def __call__(self, progress: float) -> float:
        return self.rate if progress >= self.start else 0.0


@component
class Step:
    """`rate`, multiplied by `factor` at each of the `boundaries`."""

    rate: Rate
    factor: Fraction
    boundaries: list[Fraction]

    def __call__(self, progress: float) -> float:
        return self.rate * self.factor ** sum(progress >= boundary for boundary in self.boundaries)


@component
class Cyclic:
    """`cycles` triangles from `low` up to `rate` and back."""

    low: Rate
    rate: Rate
    cycles: Annotated[int, Field(ge=1)]

    def __post_init__(self) -> None:
        check_at_most("low", self.low, self.rate)

    def __call__(self, progress: float) -> float:
        phase = progress * self.cycles % 1.0
        return self.low + (self.rate - self.low) * (1 - abs(2 * phase - 1))


@component
class Uniform:
    """Each sequence draws its own rate from U[low, rate]: [0, 0.5] in arXiv 2606.06888 (MIR)."""

    low: Rate
    rate: Rate

    def __post_init__(self) -> None:
        check_at_most("low", self.low, self.rate)

    def __call__(self, progress: float) -> tuple[float, float]:
        return self.low, self.rate


def rate_band(schedule, progress: float) -> tuple[float, float]:
    """The schedule's (low, high) at `progress`, equal where it gives one rate.

    Raises ValueError when a rate is not a number in [0, 1) or low > high.
    """
    value = schedule(progress)
    low, high = value if isinstance(value, tuple) else (value, value)
    if not 0 <= low <= high < 1:  # also refuses NaN
        raise ValueError(
            f"{type(schedule).__name__} gives drop rate {value} at progress {progress:.3f}: "
            "wanted 0 <= low <= high < 1; check the rates of drop_schedule"
        )
    return low, high
