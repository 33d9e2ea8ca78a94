"""Group runs into configurations (all settings but the seed), and name them briefly."""

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tid.comparison.runs import RunRecord
from tid.config import DROPPING, canonical
from tid.options import option_name

RANDOM = "tid.scorers.Random"
GROUPS = DROPPING[:4]


@dataclass(eq=False)
class Configuration:
    """settings: the canonical configuration without its seed. stratum: what text and what budget, which are never
    averaged over: (sha256 of train, of validation, steps, tokens), or () when no run of it is done. runs: done
    runs by seed; others: the rest by seed. names: what each dropping group is called, {} for the baseline. controls:
    what it is held against, by view and control, see tid.comparison.controls."""

    settings: dict
    stratum: tuple
    runs: dict[int, RunRecord] = field(default_factory=dict)
    others: dict[int, RunRecord] = field(default_factory=dict)
    key: str = ""
    label: str = ""
    names: dict[str, str] = field(default_factory=dict)
    controls: dict[tuple[str, str], "Configuration"] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        return self.settings["scorer"] is None

    @property
    def is_random(self) -> bool:
        return not self.is_baseline and self.settings["scorer"]["_target_"] == RANDOM

    @property
    def role(self) -> str:
        return "no drop" if self.is_baseline else "random" if self.is_random else ""

    @property
    def is_censored(self) -> bool:
        """Were runs of it pruned, or did they diverge? Those that are left are a selection: their mean flatters it."""
        return any(run.is_censored for run in self.others.values())

    @property
    def is_planned(self) -> bool:
        """Is each run of it in the plan of a sweep?"""
        return all(run.planned for run in (*self.runs.values(), *self.others.values()))

    @property
    def sweeps(self) -> set[Path]:
        return {run.folder.parent for run in (*self.runs.values(), *self.others.values())}


def stratum(run: RunRecord) -> tuple:
    """What a done run was trained and validated on, and for how long."""
    data = run.summary["data"]
    return (data["train.jsonl"], data["val.jsonl"], run.summary["steps"], run.summary["tokens"])


def once(runs: list[RunRecord]) -> tuple[list[RunRecord], list[tuple[RunRecord, RunRecord]]]:
    """Each cell once, a done run before others of the same cell; and the pairs (left out, kept)."""
    kept: dict[tuple, RunRecord] = {}
    repeats = []
    for run in sorted(runs, key=lambda run: run.state != "done"):
        cell = run.hash or str(run.folder)
        first = kept.setdefault((cell, stratum(run)) if run.summary else (cell,), run)
        if first is not run:
            repeats.append((run, first))
        elif run.summary:
            kept.setdefault((cell,), run)  # an unfinished run of this cell adds nothing
    left_out = {run for run, _ in repeats}
    return [run for run in runs if run not in left_out], repeats


def group(runs: list[RunRecord]) -> list[Configuration]:
    """Configurations with their labels, in the order of their first runs. Runs whose configuration could not be read
    belong to none."""
    found: dict[str, Configuration] = {}
    by_settings: dict[str, list[Configuration]] = defaultdict(list)
    for run in sorted(filter(lambda run: run.config, runs), key=lambda run: not run.summary):
        settings = {key: value for key, value in canonical(run.config).items() if key != "seed"}
        text = json.dumps(settings)
        here = stratum(run) if run.summary else ()
        if not here and by_settings[text]:  # not done, so its data are not known: with those that are
            configuration = by_settings[text][0]
        else:
            configuration = found.setdefault(json.dumps([settings, here]), Configuration(settings, here))
            if configuration not in by_settings[text]:
                by_settings[text].append(configuration)
        (configuration.runs if run.summary else configuration.others)[run.config["seed"]] = run
    configurations = list(found.values())
    for configuration in configurations:
        identity = json.dumps([configuration.settings, configuration.stratum])
        configuration.key = hashlib.sha256(identity.encode()).hexdigest()[:8]
    _name(configurations)
    return configurations


# -------------------------------------------------------------------------------------------------- labels


def _name(configurations: list[Configuration]) -> None:
    """Labels of what differs: "entropy · mask_aux · rate=0.1"; the scorer or "no drop" always opens it."""
    flats = {}
    for c in configurations:
        kept = {key: value for key, value in c.settings.items() if not (c.is_baseline and key in DROPPING)}
        flats[id(c)] = dict(_flatten(kept))
    for configuration in configurations:
        rivals = [flats[id(c)] for c in configurations]
        flat, words = flats[id(configuration)], ["no drop"] if configuration.is_baseline else []
        differing = [key for key, value in flat.items() if _differs(key, value, flat, rivals)]
        for name in GROUPS if not configuration.is_baseline else ():
            target = flat[f"{name}._target_"]
            details = [key for key in differing if key.startswith(f"{name}.") and not key.endswith("_target_")]
            own = [option_name(name, target), *(_setting(key, flat, differing) for key in details)]
            configuration.names[name] = " ".join(own)
            if name == "scorer" or f"{name}._target_" in differing:
                words.append(own[0])
            words += own[1:]
        words += [_setting(key, flat, differing) for key in differing if key.partition(".")[0] not in GROUPS]
        configuration.label = " · ".join(words)
    _tell_apart(configurations)


def _flatten(value: object, path: str = "") -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flatten(item, f"{path}.{key}" if path else key)]
    return [(path, value)]


def _differs(key: str, value: object, flat: dict, rivals: list[dict]) -> bool:
    """Does a rival with the same component have another value there? `_target_` is held against all others."""
    target = f"{key.partition('.')[0]}._target_"
    if not key.endswith("_target_"):
        rivals = [rival for rival in rivals if rival.get(target) == flat.get(target)]
    return any(rival.get(key, value) != value for rival in rivals)


def _setting(key: str, flat: dict, differing: list[str]) -> str:
    value, leaf = flat[key], key.rpartition(".")[2]
    if leaf == "_target_":
        return option_name(key.partition(".")[0], str(value))
    if re.fullmatch("[0-9a-f]{64}", str(value)):  # a file's checksum
        value = value[:8]
    unique = sum(other.rpartition(".")[2] == leaf for other in differing) == 1
    return f"{leaf if unique else key}={value}"


def _tell_apart(configurations: list[Configuration]) -> None:
    """Labels are still equal where only the text's content differs, or a key that not all of them have."""
    alike = defaultdict(list)
    for configuration in configurations:
        alike[configuration.label].append(configuration)
    for group in alike.values():
        texts = {c.stratum[:2] for c in group}
        for c in group if len(group) > 1 else ():
            data = f"data {c.stratum[0][:6]}/{c.stratum[1][:6]}" if c.stratum and len(texts) == len(group) else ""
            c.label += f" · {data or f'id {c.key}'}"
