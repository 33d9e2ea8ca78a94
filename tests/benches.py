"""What the tests of `python -m tid.bench` share: a tiny setup, and rules that take no time."""

from tiny import CPU, EOT, build, tiny_shape, tiny_text

from tid.benchmark.race import Rules
from tid.benchmark.variants import Setup, Variant


def tiny_setup(**changes) -> Setup:
    fields = {
        "shape": tiny_shape(), "selector": build("selector", "lowest"), "schedule": build("drop_schedule", "constant"),
        "text": tiny_text(), "end": EOT, "context": 16, "protect_first": 1, "seed": 0, "precision": "fp32",
        "device": CPU, "fast": False, "eval_batch_size": 2,
    }  # fmt: skip
    return Setup(**(fields | changes))


def variant(scorer: str = "random", mode: str = "zero", optim: str = "adamw", batch_size: int = 4) -> Variant:
    parts = build("scorer", scorer), build("drop_mode", mode), build("optim", optim)
    return Variant(scorer, mode, optim, *parts, batch_size)


def rules(repeats: int = 3, **changes) -> Rules:
    return Rules(**({"repeats": repeats, "turn_seconds": 1e-9, "device": CPU, "say": lambda text: None} | changes))
