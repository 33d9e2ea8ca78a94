"""Steps timed in turns: A B C, A B C, … so that what the machine does besides meets all of them alike."""

import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tid.benchmark.ceilings import wait_for
from tid.benchmark.memory import Meter, give_back
from tid.config import ConfigError
from tid.messages import out_of_memory

WARM_UP_STEPS = 3
MAX_TURN_STEPS = 200
OUT_OF_MEMORY = "out of memory"
ANEW = 5  # times that a turn is repeated because something was captured in it


class Step(Protocol):
    """What is timed. `flops` and `moved_bytes` are of one step."""

    flops: float
    moved_bytes: float

    def __call__(self) -> None: ...


@dataclass(frozen=True)
class Contender:
    """A step to be built and timed. `compiled`: torch compiles it without capturing it, so its code must stay."""

    label: str
    batch_size: int
    context: int
    make: Callable[[], Step]
    facts: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False


@dataclass
class Result:
    """ms: per step, one for each round. ratios, extra_ms: to the reference's in the same round, None for one that was
    timed alone. start_seconds: until the first step had been made. Bytes: see tid.benchmark.memory."""

    contender: Contender
    ms: list[float] = field(default_factory=list)
    turn_steps: int = 0
    ratios: list[float] | None = None
    extra_ms: list[float] | None = None
    scoring_ms: float | None = None
    start_seconds: float | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    flops: float = 0.0
    moved_bytes: float = 0.0
    alone: bool = False
    failed: str | None = None
    trace: str | None = None  # of the error

    @property
    def median_ms(self) -> float:
        return statistics.median(self.ms)

    @property
    def tokens_per_second(self) -> float:
        return 1000 * self.contender.batch_size * self.contender.context / self.median_ms


@dataclass(frozen=True)
class Rules:
    """How long is timed."""

    repeats: int
    turn_seconds: float
    device: torch.device
    say: Callable[[str], None]


def race(contenders: list[Contender], rules: Rules) -> list[Result]:
    """Build all, then time all in turns. One that fails says why; one that does not fit beside the others is timed by
    itself afterwards. The first that is timed with the others is the reference of the ratios."""
    results, steps = [], {}
    for number, contender in enumerate(contenders):
        result, step = prepared(contender, rules)
        results.append(result)
        if step is not None:
            steps[number] = step
        state = result.failed or f"{result.start_seconds:.1f} s to its first step"
        rules.say(f"  {number + 1}/{len(contenders)} {contender.label}: {state}")
    in_turns(results, steps, rules)
    compare(results)
    step = None  # nothing may hold on to a step while another has its memory
    steps.clear()
    for number, result in enumerate(results):
        if result.failed == OUT_OF_MEMORY and len(results) > 1:
            rules.say(f"  {contenders[number].label}: once more, by itself")
            results[number] = by_itself(contenders[number], rules)
    forget_compiled()
    give_back(rules.device)
    return results


def prepared(contender: Contender, rules: Rules) -> tuple[Result, Step | None]:
    """The step built and warm, with what that took; None in its place when it failed."""
    meter = Meter(rules.device)
    result = Result(contender)
    step = None
    try:
        started = time.perf_counter()
        step = contender.make()
        step()
        wait_for(rules.device)
        result.start_seconds = time.perf_counter() - started
        step()
        result.turn_steps = turn_steps(timed_steps(step, WARM_UP_STEPS, rules.device), rules.turn_seconds)
        result.peak_bytes, result.reserved_bytes = meter.peak(), meter.peak_reserved()
        result.moved_bytes = step.moved_bytes
    except Exception as error:  # whatever one step suffers, the others are timed
        result.failed, result.trace, step = reason(error), traceback.format_exc(), None
    if not contender.compiled:
        forget_compiled()
    if step is None:
        give_back(rules.device)
    return result, step


def forget_compiled() -> None:
    """Captured steps need their compiled code no more, and torch keeps only so much of it."""
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it takes seconds
        torch._dynamo.reset()


def turn_steps(ms: float, seconds: float) -> int:
    return max(1, min(MAX_TURN_STEPS, round(1000 * seconds / max(ms, 1e-6))))


def timed_steps(step: Step, count: int, device: torch.device) -> float:
    """Milliseconds per step of `count` steps; the device is waited for before and after."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait_for(device)
    return 1000 * (time.perf_counter() - start) / count


def turn(step: Step, count: int, device: torch.device) -> float:
    """`timed_steps`, anew when a graph was captured meanwhile: a run does that once, not at every turn."""
    for _ in range(ANEW):
        before = getattr(step, "graphs", 0)
        ms = timed_steps(step, count, device)
        if getattr(step, "graphs", 0) == before:
            break
    return ms


def in_turns(results: list[Result], steps: dict[int, Step], rules: Rules) -> None:
    """Time `steps`, by the number of their result, and note it there. What fails is left out from then on."""
    for round_number in range(-1, rules.repeats):
        for number in list(steps):
            try:
                if round_number < 0:  # what torch forgot of one while it built the others, is not timed
                    steps[number]()
                else:
                    results[number].ms.append(turn(steps[number], results[number].turn_steps, rules.device))
            except Exception as error:
                results[number].failed, results[number].trace = reason(error), traceback.format_exc()
                del steps[number]
    for number, step in steps.items():
        finish(results[number], step)


def finish(result: Result, step: Step) -> None:
    result.flops = step.flops
    if hasattr(step, "scoring_ms"):
        result.scoring_ms = step.scoring_ms()


def by_itself(contender: Contender, rules: Rules) -> Result:
    """The same with nothing else in memory."""
    give_back(rules.device)
    result, step = prepared(contender, rules)
    result.alone = True
    if step is not None:
        in_turns([result], {0: step}, rules)
    return result


def compare(results: list[Result]) -> None:
    """Ratios and differences to the first result that did not fail, round by round."""
    reference = next((r for r in results if not r.failed), None)
    for result in results:
        if reference is not None and not result.failed:
            pairs = list(zip(result.ms, reference.ms, strict=True))
            result.ratios = [mine / its for mine, its in pairs]
            result.extra_ms = [mine - its for mine, its in pairs]


def reason(error: BaseException) -> str:
    """One line that says why a step could not be timed. A capture that ran out of memory fails by another error."""
    cause: BaseException | None = error
    while cause is not None:
        if out_of_memory(cause):
            return OUT_OF_MEMORY
        cause = cause.__cause__ or cause.__context__
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}".rstrip(": ")
