"""The parts of the benchmark one after the other: each yields what the terminal shows, and adds to the findings."""

import logging
import platform
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import tid
from tid.benchmark import fit, peers, report, start, variants, whole
from tid.benchmark.arrange import Bench, arrange
from tid.benchmark.ceilings import Ceilings, measure_ceilings
from tid.benchmark.race import Contender, Rules, race, reason
from tid.capture import compile_cache
from tid.config import ConfigError
from tid.device import estimate_hours
from tid.disk import refuse_unwritable, unwritable
from tid.logs import say, write_json
from tid.loop import Preempted
from tid.revision import git_sha
from tid.summary import device_name

PATIENCE_HOURS = 1 / 6  # device=auto times nothing on a CPU that would take longer
LOOP_TURNS = 12


def conduct(settings: dict, command: str) -> Iterator[str]:
    """Measure what `settings["measure"]` names, and yield it as text; before each piece the JSON file is written. A
    part yields "" when it has found something that it cannot show yet.

    Raises ConfigError for what the user can correct.
    """
    quieten_torchao()
    bench = arrange(settings)
    if set(settings["kernels"]) - {"auto", "none"} and not bench.setup.fast:
        raise ConfigError("kernels: those by hand need a CUDA GPU and compile=true; leave it at auto or none")
    refuse_hopeless(settings, bench)
    refuse_unwritable(Path(settings["output_dir"]), "output_dir")
    path = Path(settings["output_dir"]) / "bench" / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json"
    device = bench.setup.device
    say(f"measuring what {device_name(device)} can do at best ...")
    ceilings = measure_ceilings(bench.setup.precision, device)
    if bench.setup.fast:
        torch._dynamo.config.recompile_limit = 64  # of each function, for all the models of this process together
    found = facts(bench, ceilings, command)
    yield report.head(found, bench.said)
    rules = Rules(settings["repeats"], settings["block_seconds"], device, say)
    for part in settings["measure"]:
        for block in attempt(part, PARTS[part](settings, bench, ceilings, rules, found), found):
            keep(found, path)
            yield block
    yield f"As JSON: {path}"


def attempt(part: str, blocks: Iterator[str], found: dict) -> Iterator[str]:
    """What a part yields; when it fails, why, and the other parts are measured all the same."""
    try:
        yield from blocks
    except Preempted as stop:  # Ctrl-C in the training loop, which would save and stop
        raise KeyboardInterrupt if stop.signal == signal.SIGINT else SystemExit(128 + stop.signal) from None
    except Exception as error:
        found.setdefault("failed", {})[part] = {"reason": reason(error), "trace": traceback.format_exc()}
        yield f"\n{part}: failed: {reason(error)}"


def keep(found: dict, path: Path) -> None:
    """Write what was found so far."""
    try:
        write_json(path, found)
    except OSError as error:
        raise unwritable(path, error, "output_dir") from None


def quieten_torchao() -> None:
    """Both transformers and our 8-bit optimizers load it, and it tells which kernels it lacks, and more."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching")


def facts(bench: Bench, ceilings: Ceilings, command: str) -> dict[str, Any]:
    """What holds for all parts."""
    setup = bench.setup
    return {
        "command": command,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_sha": git_sha(),
        "versions": {"tid": tid.__version__, "torch": torch.__version__, "python": platform.python_version(),
                     "transformers": peers.transformers_version()},
        "device": device_name(setup.device),
        "precision": setup.precision,
        "model": bench.model_name,
        "parameters": fit.parameters(setup.shape),
        "context": setup.context,
        "captured": setup.fast,
        "compile_cache": compile_cache() if setup.fast else None,
        "ceilings": vars(ceilings),
    }  # fmt: skip


def refuse_hopeless(settings: dict, bench: Bench) -> None:
    """Raise ConfigError when device=auto has come to a CPU on which this would take long."""
    if settings["device"] != "auto" or bench.setup.device.type == "cuda":
        return
    contenders = sum(len(v) for v in combinations(bench, settings).values()) + len(settings["peers"])
    counts = {"steps": contenders * (settings["repeats"] + 5), "loop": 2 * (LOOP_TURNS + 5), "run": 20}
    steps = sum(counts.get(part, 0) for part in settings["measure"])
    flops = bench.setup.shape.flops_per_token(bench.setup.context) * bench.setup.context * max(settings["batch_size"])
    hours = estimate_hours(flops, steps)
    if hours > PATIENCE_HOURS:
        raise ConfigError(
            f"no CUDA device, and on this CPU that would take about {report.duration(3600 * hours)}.\n"
            "  a small model, in about a minute:  python -m tid.bench\n"
            "  this one, all the same:            add device=cpu"
        )


def combinations(bench: Bench, settings: dict) -> dict[int, list[variants.Variant]]:
    """Our variants by batch size."""
    parts = bench.parts
    return {size: variants.variants(parts["scorers"], parts["drop_modes"], parts["optims"], size)
            for size in settings["batch_size"]}  # fmt: skip


# ------------------------------------------------------------------------------------------------ parts


def steps(settings: dict, bench: Bench, ceilings: Ceilings, rules: Rules, found: dict) -> Iterator[str]:
    """Every step of a batch size in turn with the others of that size."""
    found["steps"] = []
    kinds = sorted(settings["peers"], key=("eager", "compiled", "gpt2").index)
    lacking = set(kinds) - {"gpt2"} and not peers.load_transformers()
    for batch_size, chosen in combinations(bench, settings).items():
        several = len(bench.parts["optims"]) > 1
        contenders = [variants.contender(bench.setup, v, several, k) for v in chosen for k in settings["kernels"]]
        contenders += [peer(bench, batch_size, kind) for kind in kinds if kind == "gpt2" or not lacking]
        say(f"steps of {batch_size} x {bench.setup.context} tokens: building {len(contenders)}, then "
            f"{rules.repeats} rounds in which each has {rules.turn_seconds:g} s")  # fmt: skip
        results = race(contenders, rules)
        found["steps"] += [report.step_facts(result, ceilings) for result in results]
        yield report.steps_table(results, ceilings, bench.setup.context)
    yield report.LEGEND
    if lacking:
        yield peers.MISSING


def peer(bench: Bench, batch_size: int, kind: str) -> Contender:
    return peers.contender(bench.setup, bench.plain_optim, batch_size, kind)


def loop(settings: dict, bench: Bench, ceilings: Ceilings, rules: Rules, found: dict) -> Iterator[str]:
    """Our whole loop against a bare one."""
    say(f"our whole loop in turn with a bare one: {LOOP_TURNS} turns of {rules.turn_seconds:g} s each")
    batch_size = settings["batch_size"][0]
    bare = peers.bare_step(bench.setup, bench.plain_optim, batch_size)
    over = whole.overhead(
        bench.setup, bench.no_drop(batch_size), bare, bench.cadence, LOOP_TURNS, rules.turn_seconds,
        Path(settings["output_dir"]),
    )  # fmt: skip
    found["loop"] = report.loop_facts(over, batch_size)
    yield report.loop_table(over, batch_size, bench.setup.context, bench.setup.device.type == "cpu")


def run(settings: dict, bench: Bench, ceilings: Ceilings, rules: Rules, found: dict) -> Iterator[str]:
    """Logging, evaluation and checkpoints of a whole run of the last combination that makes sense."""
    batch_size = settings["batch_size"][0]
    chosen = [v for v in combinations(bench, settings)[batch_size] if not variants.refusal(bench.setup, v)]
    variant = chosen[-1] if chosen else bench.no_drop(batch_size)
    say(f"one row of metrics, one validation and one checkpoint of a run ({variant.label})")
    share = whole.share_of_run(
        bench.setup, variant, bench.held_out, bench.cadence, rules.turn_seconds, Path(settings["output_dir"])
    )
    found["run"] = report.share_facts(share)
    yield report.share_table(share)


def first_step(settings: dict, bench: Bench, ceilings: Ceilings, rules: Rules, found: dict) -> Iterator[str]:
    """New processes up to their first step: with the compile cache as it is, or an empty and then a filled one."""
    cold = settings["cold"] and bench.setup.fast
    rounds = ["empty", "filled"] if cold else ["as it was"]
    found["start"] = []
    for variant in combinations(bench, settings)[settings["batch_size"][0]]:
        kind = {"scorer": variant.scorer_name, "drop_mode": variant.mode_name, "optim": variant.optim_name,
                "batch_size": variant.batch_size}  # fmt: skip
        with start.empty_cache() if cold else nullcontext():
            found["start"] += one_start(settings, kind, variant.label, rounds)
    yield report.start_table(found["start"], bench.setup.fast, compile_cache())


def one_start(settings: dict, kind: dict, label: str, rounds: list[str]) -> list[dict]:
    """One new process for each state of the cache."""
    results = []
    for cache in rounds:
        say(f"a new process, {label}, compile cache {cache} ...")
        results.append({"label": label, "cache": cache} | start.start(settings, kind))
    return results


def memory(settings: dict, bench: Bench, ceilings: Ceilings, rules: Rules, found: dict) -> Iterator[str]:
    """What fits, for each optimizer."""
    if bench.setup.device.type != "cuda":
        yield "memory: only a GPU has an allocator that can be capped; on a CPU nothing is measured"
        return
    gib = settings["memory_gib"]
    say(f"what fits {gib:g} GiB: steps of growing batches and models, until one runs out of memory")
    found["memory"] = {"gib": gib, "optims": []}
    fits = []
    with fit.Cap(gib * 2**30, bench.setup.device):
        for optim in bench.parts["optims"]:
            variant = list(combinations(bench, settings).values())[0]
            chosen = next(v for v in reversed(variant) if v.optim_name == optim)
            fits.append(fit.what_fits(bench.setup, chosen, settings["memory_models"], say))
            found["memory"]["optims"].append({"scorer": chosen.label, **report.fit_facts(fits[-1])})
            yield ""
    yield report.fit_table(fits, gib, chosen.label, bench.setup, chosen.batch_size)


PARTS = {"steps": steps, "loop": loop, "run": run, "start": first_step, "memory": memory}
