"""What the terminal shows, in at most 100 columns, and the same as plain values for JSON."""

import statistics
import textwrap
from dataclasses import asdict
from typing import Any

from tid.benchmark.ceilings import Ceilings
from tid.benchmark.fit import Fit, Trial, millions
from tid.benchmark.race import Result
from tid.benchmark.variants import Setup
from tid.benchmark.whole import Overhead, Share

WIDTH, LABEL_WIDTH = 100, 18  # the first column's at least
GIB = 2**30


def aligned(header: list[str], rows: list[list[str]]) -> str:
    """A table: the first column to the left, wrapped where the line would be too long, the others to the right."""
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    widths[0] = min(widths[0], max(LABEL_WIDTH, WIDTH - sum(widths[1:]) - 2 * len(widths[1:])))
    lines = []
    for first, *others in (header, ["-" * width for width in widths], *rows):
        label, *more = textwrap.wrap(first, widths[0], subsequent_indent="  ") or [""]
        lines.append("  ".join([label.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip())
        lines += more
    return "\n".join(lines)


def wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def digits(value: float) -> str:
    """Three digits, and no more than three decimals."""
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3}f}"


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def with_quartiles(values: list[float], decimals: int | None = None) -> str:
    """4.17 (4.16-4.20)."""
    words = digits if decimals is None else f"{{:.{decimals}f}}".format
    low, middle, high = map(words, quartiles(values))
    return f"{middle} ({low}-{high})"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{digits(1000 * seconds)} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def thousands(value: float) -> str:
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1000:.3g}k" if value < 1e6 else f"{value / 1e6:.3g}M"


def gib(size: float | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"


def head(found: dict[str, Any], said: list[str]) -> str:
    """Device, versions, and what the device can do at best."""
    ceilings, versions = found["ceilings"], found["versions"]
    sha, _, dirty = (found["git_sha"] or "unknown").partition("-")
    lines = [
        f"{found['device']}, torch {versions['torch']}, Python {versions['python']}, "
        f"commit {sha[:12]}{dirty and '-dirty'}",
        f"model: {found['model']}, {found['parameters'] / 1e6:.1f}M parameters, {found['precision']}, "
        + ("our steps compiled and captured" if found["captured"] else "our steps eager"),
        *said,
        f"measured ceilings: {ceilings['flops_per_second'] / 1e12:.3g} TFLOP/s (product of two matrices of "
        f"{ceilings['matmul_size']} x {ceilings['matmul_size']}), {ceilings['bytes_per_second'] / 1e9:.0f} GB/s",
    ]
    if found["captured"]:
        lines.append(f"compile cache: {found['compile_cache']}")
    return "\n".join(wrapped(line) for line in lines)


# ------------------------------------------------------------------------------------------------ steps


def steps_table(results: list[Result], ceilings: Ceilings, context: int) -> str:
    """One row per contender of one batch size; those that failed are there with the reason."""
    batch_size = results[0].contender.batch_size
    timed = [r for r in results if not r.failed]
    header = ["step", "ms", "more", "ratio", "tok/s", "peak", "GiB", "floor", "start"]
    lines = [f"\nbatch {batch_size} x {context} tokens, {len(timed[0].ms) if timed else 0} rounds"]
    if timed:
        lines.append(aligned(header, [cells(r, ceilings) for r in timed]))
    lines += [wrapped(f"{r.contender.label}: not timed: {r.failed}") for r in results if r.failed]
    if any(r.alone for r in timed):
        lines.append("*: did not fit beside the others, timed by itself afterwards")
    return "\n".join(lines)


LEGEND = wrapped(
    "ms: per step, median and quartiles; more, ratio: to the first row's in the same round. peak: operations, "
    "scoring's included, as a share of the best matrix product. GiB: most in use. floor: times the floor, operations "
    "at the ceiling plus the update's bytes at full bandwidth. start: seconds to the first step, with compiling"
)


def cells(result: Result, ceilings: Ceilings) -> list[str]:
    facts = step_facts(result, ceilings)
    return [
        result.contender.label + (" *" if result.alone else ""),
        with_quartiles(result.ms),
        "-" if result.extra_ms is None else f"{'+' if facts['extra_ms'] >= 0 else ''}{digits(facts['extra_ms'])}",
        "-" if result.ratios is None else with_quartiles(result.ratios, 2),
        thousands(facts["tokens_per_second"]),
        f"{facts['ceiling_share']:.1%}",
        gib(result.peak_bytes),
        digits(facts["floor_ratio"]),
        digits(result.start_seconds),
    ]


def step_facts(result: Result, ceilings: Ceilings) -> dict[str, Any]:
    """A result with what follows from it."""
    c = result.contender
    facts = {"label": c.label, "batch_size": c.batch_size, **c.facts, "failed": result.failed, "alone": result.alone}
    if result.failed:
        return facts | {"trace": result.trace}
    floor = ceilings.floor_ms(result.flops, result.moved_bytes)
    return facts | {
        "ms_per_step": result.median_ms,
        "ms": result.ms,
        "extra_ms": statistics.median(result.extra_ms) if result.extra_ms else None,
        "ratio": statistics.median(result.ratios) if result.ratios else None,
        "ratios": result.ratios,
        "scoring_ms": result.scoring_ms,
        "tokens_per_second": result.tokens_per_second,
        "flops": result.flops,
        "moved_bytes": result.moved_bytes,
        "ceiling_share": ceilings.share(result.flops, result.median_ms),
        "floor_ms": floor,
        "floor_ratio": result.median_ms / floor,
        "peak_bytes": result.peak_bytes,
        "reserved_bytes": result.reserved_bytes,
        "start_seconds": result.start_seconds,
        "turn_steps": result.turn_steps,
    }


# ------------------------------------------------------------------------------------------------ whole


def loop_facts(over: Overhead, batch_size: int) -> dict[str, Any]:
    """Turn by turn, and the medians of the paired ratios."""
    facts = {"batch_size": batch_size, "turn_steps": over.turn_steps}
    for clock, index in (("ms", 0), ("processor_ms", 1)):
        ratios = over.ratios(index)
        facts |= {f"ours_{clock}": [t[index] for t in over.ours], f"bare_{clock}": [t[index] for t in over.bare],
                  f"ratios_{clock}": ratios, f"ratio_{clock}": statistics.median(ratios)}  # fmt: skip
    return facts


def loop_table(over: Overhead, batch_size: int, context: int, on_cpu: bool) -> str:
    """One row per clock. A CPU's other programs stretch processor time less than the clock's."""
    rows, more = [], []
    for index, clock in enumerate(("clock", "processor") if on_cpu else ("clock",)):
        ours, bare = (with_quartiles([turn[index] for turn in turns]) for turns in (over.ours, over.bare))
        rows.append([clock, ours, bare, with_quartiles(over.ratios(index), 3)])
        more.append(f"{statistics.median(over.ratios(index)) - 1:+.1%} {clock} time")
    header = ["ms per step", "our whole loop, no drop", "bare PyTorch loop", "ratio"]
    return (
        f"\nbatch {batch_size} x {context} tokens, {len(over.ours)} turns of {over.turn_steps} steps each\n"
        f"{aligned(header, rows)}\n"
        f"our loop against the bare one, turn by turn: {', '.join(more)}"
    )


def share_facts(share: Share) -> dict[str, Any]:
    shares = share.shares()
    return asdict(share) | {"counts": share.cadence.counts(), "seconds": share.seconds(), "shares": shares,
                            "together": 1 - shares["steps"]}  # fmt: skip


def share_table(share: Share) -> str:
    counts, seconds, shares = share.cadence.counts(), share.seconds(), share.shares()
    tokens = share.cadence.val_tokens
    each = {
        "rows": (f"row of metrics, every {share.cadence.log_every:,}", share.row),
        "evaluations": (f"validation on {tokens:,} tokens, every {share.cadence.eval_every:,}", share.evaluation),
        "checkpoints": (f"checkpoint of {gib(share.checkpoint_bytes)} GiB", share.checkpoint),
    }
    rows = [["step", duration(share.step), f"{share.cadence.total_steps:,}", duration(seconds["steps"]),
             f"{shares['steps']:.2%}"]]  # fmt: skip
    for name, (words, one) in each.items():
        rows.append([words, duration(one), f"{counts[name]:,}", duration(seconds[name]), f"{shares[name]:.2%}"])
    scaled = f"; validation measured on {share.measured_tokens:,} tokens" if share.measured_tokens < tokens else ""
    return (
        f"\na run of {share.cadence.total_steps:,} steps ({share.label}), without a tracker{scaled}\n"
        + aligned(["what", "each", "times", "in all", "share"], rows)
        + f"\nlogging, evaluation and checkpoints together: {1 - shares['steps']:.2%} of the run"
    )


# ------------------------------------------------------------------------------------------------ start


def start_table(found: list[dict], captured: bool, cache: str) -> str:
    header = ["first step in a new process", "compile cache", "imported", "built", "first step", "of which compiling"]
    rows = [
        [f["label"], f["cache"], *(f"{f[key]:.1f} s" for key in ("imported", "built", "first_step", "compiles"))]
        for f in found
        if "failed" not in f
    ]
    lines = ["", aligned(header, rows)] if rows else [""]
    failed = [f for f in found if "failed" in f]
    lines += [wrapped(f"{f['label']}, compile cache {f['cache']}: failed: {f['failed']}") for f in failed]
    lines.append("seconds since the process was asked for; compiling: with capturing and the first step itself")
    lines.append(f"compile cache: {cache}" if captured else "nothing is compiled here: that happens on a GPU only")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ memory


def fit_table(fits: list[Fit], size: float, scorer: str, setup: Setup, batch_size: int) -> str:
    header = ["optimizer", f"{millions(setup.shape)}M, batch {batch_size}", "largest batch", "largest model, batch 8"]
    rows = []
    for f in fits:
        batch = "none" if f.batch is None else f"{f.batch_size} ({taken(f.batch)})"
        model = "none"
        if f.model:
            model = f"{millions(f.model)}M: {f.model.num_layers} x {f.model.hidden_size} ({taken(f.largest)})"
        rows.append([f.optim, taken(f.reference), batch, model])
    title = f"what fits {size:g} GiB of torch's allocator: {setup.precision}, {setup.context} tokens, {scorer}"
    return f"\n{title}\n{aligned(header, rows)}\nGiB: most in use / taken from the device"


def taken(trial: Trial) -> str:
    return trial.failed or f"{gib(trial.allocated)} / {gib(trial.reserved)}"


def fit_facts(fit: Fit) -> dict[str, Any]:
    return {
        "optim": fit.optim,
        "reference": asdict(fit.reference),
        "largest_batch": fit.batch_size,
        "at_largest_batch": fit.batch and asdict(fit.batch),
        "largest_model": fit.model and {"parameters": fit.model_parameters, "num_layers": fit.model.num_layers,
                                        "hidden_size": fit.model.hidden_size, "num_heads": fit.model.num_heads},
        "at_largest_model": fit.largest and asdict(fit.largest),
        "trials": fit.trials,
    }  # fmt: skip
