"""Run folders as training writes them, made up in milliseconds. test_real_runs.py holds them to real ones."""

import json
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from tiny import CONF

from tid import config
from tid.logs import jsonable, write_csv, write_json, write_text

COLUMNS = ["document", "tokens", "characters", "bytes", "final_nats", "best_nats"]
DATA = {"text": "builtin-51d6a7c8", "train.jsonl": "a" * 64, "val.jsonl": "b" * 64}
MOMENT = {"started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T01:00:00+00:00"}


def settings(**changes) -> dict:
    """A resolved configuration of conf/; changes name a group's option, or give a dotted key as a__b=value."""
    base = OmegaConf.load(CONF / "train.yaml")
    chosen = {k: v for entry in base.pop("defaults") if isinstance(entry, dict) or OmegaConf.is_dict(entry)
              for k, v in entry.items() if v and not k.startswith("override")}  # fmt: skip
    base.pop("hydra")
    chosen |= {"model": "gpt_nano", "data": "builtin", "tracker": "none"}
    chosen |= {key: changes.pop(key) for key in list(changes) if key in chosen}
    for group, option in chosen.items():
        base[group] = OmegaConf.load(CONF / group / f"{option}.yaml")
    for key, value in {"total_steps": 200, "eval_every": 20, "log_every": 10, **changes}.items():
        OmegaConf.update(base, key.replace("__", "."), value, force_add=True)
    return OmegaConf.to_container(base, resolve=True)


def documents(seed: int, count: int) -> np.ndarray:
    """(D, 3) tokens, characters, bytes: the same for all runs on one text."""
    tokens = np.random.default_rng(99).integers(50, 400, count)
    return np.stack([tokens, tokens * 4 + 3, tokens * 4 + 5], axis=1)


def write_run(
    root: Path,
    run: dict,
    *,
    loss: float = 4.0,
    best: float | None = None,
    noise: float = 0.02,
    state: str = "done",
    reason: str | None = None,
    until: int | None = None,
    score_share: float = 0.0,
    step_ms: float = 10.0,
    document_count: int = 40,
    status: dict | None = None,
    **summary,
) -> Path:
    """One run's folder under root/<name>. loss: mean nats per token at the end; best: at the best evaluation, half
    way, when that was lower. score_share: FLOPs and time of scoring, as a share of training's."""
    folder = root / run["name"] / f"{config.run_slug(run)}-{config.run_hash(run)}"
    total, seed = run["total_steps"], run["seed"]
    done = total if until is None else until
    rng = np.random.default_rng([seed, abs(hash_of(run))])
    sizes = documents(seed, document_count)
    shape = rng.normal(0, noise, document_count)
    shape -= (shape * sizes[:, 0]).sum() / sizes[:, 0].sum()  # the mean over tokens stays as asked
    nats = {"final": sizes[:, 0] * (loss + shape), "best": sizes[:, 0] * ((best or loss) + shape)}
    costs = {"train_flops": 1e9 * done, "score_flops": 1e9 * score_share * done, "step_ms": step_ms * (1 + score_share)}
    rows = metric_rows(run, done, nats, sizes, costs, score_share)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(run)))
    write_text(folder / "logs/metrics.jsonl", "".join(json.dumps(jsonable(row)) + "\n" for row in rows))
    facts = {"state": state, "reason": reason, "step": done, "total_steps": total, **MOMENT, "host": "far", "pid": 1}
    if state == "done":
        write_csv(folder / "documents.csv", COLUMNS, ([i, *map(int, s), f, b] for i, (s, f, b) in
                  enumerate(zip(sizes, nats["final"], nats["best"], strict=True))))  # fmt: skip
        made = made_summary(run, done, nats, sizes, costs, rows, score_share, best)
        write_json(folder / "summary.json", made | summary)
    write_json(folder / "status.json", facts | (status or {}))
    return folder


def hash_of(run: dict) -> int:
    return int(config.run_hash(run), 16)


def odds(documents: np.ndarray) -> np.ndarray:
    """Those that report; one document alone selects and reports."""
    return documents[1::2] if len(documents) > 1 else documents


def figures(nats: np.ndarray, sizes: np.ndarray, prefix: str = "val") -> dict:
    total, bits = float(nats.sum()), float(nats.sum() / np.log(2))
    tokens, characters, size = map(int, sizes.sum(0))
    return {f"{prefix}_loss": total / tokens, f"{prefix}_perplexity": float(np.exp(total / tokens)),
            f"{prefix}_bpc": bits / characters, f"{prefix}_bpb": bits / size}  # fmt: skip


def metric_rows(run: dict, done: int, nats: dict, sizes: np.ndarray, costs: dict, score_share: float) -> list:
    """A curve that falls from 3 nats above the best to the best half way, then goes straight to the final value."""
    rows, half = [], run["total_steps"] / 2
    scheduled = config.instantiate(run["drop_schedule"], "drop_schedule")
    for step in sorted({*range(run["log_every"], done + 1, run["log_every"]), done} - {0}):
        rate = float(np.mean(scheduled(step / run["total_steps"]))) if not config.is_baseline(run) else 0.0
        row = {"step": step, "epoch": step / 100, "tokens": step * 1024, "train_loss": 4.0 + 1 / step,
               "drop_rate_scheduled": rate, "drop_rate_realised": rate, "nonfinite_score_rows": 0, "lr": 1e-3,
               "grad_norm": 1.0, "step_ms": costs["step_ms"], "score_ms": costs["step_ms"] * score_share,
               "tokens_per_second": 1e5, "memory_mib": 100.0}  # fmt: skip
        row["flops"] = (costs["train_flops"] + costs["score_flops"]) * step / done
        if step % run["eval_every"] == 0 or step == run["total_steps"]:
            early = 3 * (half / step) ** 0.5 - 3 if step < half else 0.0
            late = 0.0 if step < half else (step - half) / half
            mixed = (1 - late) * nats["best"] + late * nats["final"] + early * sizes[:, 0]
            row |= figures(mixed, sizes)
            even, odd = figures(mixed[::2], sizes[::2], "val_select"), figures(odds(mixed), odds(sizes), "val_report")
            del odd["val_report_perplexity"]
            row |= {"val_select_loss": even["val_select_loss"]} | odd
        row["seconds"] = step * costs["step_ms"] / 1000
        rows.append(row)
    return rows


def made_summary(
    run: dict, done: int, nats: dict, sizes: np.ndarray, costs: dict, rows: list, share: float, best: float | None
) -> dict:
    def evaluation(which: str) -> dict:
        odd = figures(odds(nats[which]), odds(sizes))["val_loss"]
        step = done if which == "final" or best is None else run["total_steps"] // 2
        return {"step": step, **figures(nats[which], sizes), "val_report_loss": odd}

    even = figures(nats["best"][::2], sizes[::2])["val_loss"]
    return {
        "final": evaluation("final"),
        "best": {**evaluation("best"), "val_select_loss": even},
        "steps": done,
        "tokens": done * 1024,
        "epochs": done / 100,
        "drop_rate": float(np.mean([row["drop_rate_realised"] for row in rows])),
        "step_ms": costs["step_ms"],
        "score_ms": costs["step_ms"] * share,
        "seconds": rows[-1]["seconds"],
        "seconds_with_start": rows[-1]["seconds"] + 2,
        "train_flops": costs["train_flops"],
        "score_flops": costs["score_flops"],
        "parameters": 5157120,
        "precision": "fp32",
        "device": "x86_64 CPU, 1 threads",
        "data": DATA,
        "hash": config.run_hash(run),
        "git_sha": "c" * 40,
        "source": "d" * 12,
        "versions": {"tid": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7"},
        "command": "tid/train.py",
    }


def sweep(
    root: Path,
    *,
    scorers: tuple[str, ...] = ("entropy", "grad_norm", "surprisal"),
    schedules: tuple[str, ...] = ("linear_decay", "constant"),
    seeds: int = 3,
    document_count: int = 40,
    **common,
) -> list[Path]:
    """A whole sweep with both controls: no drop 4.0, random 4.02, each scorer 0.02 lower than the one before it."""
    rng = np.random.default_rng(5)
    kinds = [("random", 4.02, 0.0), *((scorer, 4.0 - 0.02 * i, 0.3) for i, scorer in enumerate(scorers))]
    cells = [("none", "none", 4.0, 0.0)]
    cells += [(scorer, schedule, loss, share) for schedule in schedules for scorer, loss, share in kinds]
    folders = []
    for seed in range(seeds):
        luck = rng.normal(0, 0.01)
        for scorer, schedule, loss, share in cells:
            here = loss + luck + rng.normal(0, 0.004)
            run = settings(scorer=scorer, drop_schedule=schedule, seed=seed, name="sweep", **common)
            made = {"loss": here, "best": here - 0.05, "score_share": share, "document_count": document_count}
            folders.append(write_run(root, run, **made))
    return folders
