"""What the runs of a sweep are called: by what tells them apart."""

from typing import Any

from tid.config import DROPPING, NEUTRAL, is_baseline
from tid.config_file import flat
from tid.options import option_name


def labels(configs: list[dict]) -> list[str]:
    """A label for each configuration, of the keys whose values are not the same in all of them, as
    "scorer=entropy drop_schedule.rate=0.3 seed=1". A run that drops nothing is "no_drop seed=1".

    What an option brings with it is left out, since its name says it: `scorer.of` is shown if it differs between
    runs with the same scorer.
    """
    leaves = [flat({key: value for key, value in config.items() if key not in NEUTRAL}) for config in configs]
    seen: dict[tuple[str, str], set[str]] = {}
    for leaf in leaves:
        for key, value in leaf.items():
            seen.setdefault((key, option(key, leaf)), set()).add(repr(value))
    keys = [key for key in dict.fromkeys(key for leaf in leaves for key in leaf) if key != "seed"]
    return [label(config, leaf, keys, seen) for config, leaf in zip(configs, leaves, strict=True)]


def option(key: str, leaf: dict[str, Any]) -> str:
    """The option of the group that `key` belongs to; "" for the option itself and for keys of no group."""
    group, _, rest = key.partition(".")
    return "" if rest in ("", "_target_") else leaf.get(f"{group}._target_", "")


def label(config: dict, leaf: dict[str, Any], keys: list[str], seen: dict[tuple[str, str], set[str]]) -> str:
    baseline = is_baseline(config)
    words = ["no_drop"] if baseline else []
    for key in keys:
        group, _, rest = key.partition(".")
        if key not in leaf or (baseline and group in DROPPING) or len(seen[key, option(key, leaf)]) < 2:
            continue
        shown = option_name(group, leaf[key]) if rest == "_target_" else leaf[key]
        words.append(f"{group if rest == '_target_' else key}={shown}")
    return " ".join([*words, f"seed={config['seed']}"])
