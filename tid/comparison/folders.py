"""Find the runs that the command line names: their folders, and what the plans of their sweeps say beyond them."""

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tid.comparison.runs import RunRecord, read
from tid.config import ConfigError, run_hash
from tid.config_file import FILE

PLAN = ".sweep/sweep.json"
FROZEN = ".sweep/cells"


def read_all(patterns: Iterable[str]) -> list[RunRecord]:
    """Every run at or below the folders that `patterns` name, and the cells of their sweeps that never started.

    Raises ConfigError as `find` does.
    """
    folders = find(patterns)
    plans = {home: plan(home) for home in sorted({folder.parent for folder in folders})}
    runs = []
    for folder in folders:
        cells = plans[folder.parent]
        runs.append(read(folder, None if cells is None else cells.get(folder.name, {})))
    started = {os.path.realpath(folder) for folder in folders}
    for home, cells in plans.items():
        whole = any(os.path.realpath(home) == os.path.realpath(match) for p in patterns for match in matches(p))
        for name, config in (cells or {}).items() if whole else ():
            if os.path.realpath(home / name) not in started:
                why = "planned by the sweep, not started"
                runs.append(RunRecord(home / name, config, "missing", why, planned=True))
    return runs


def find(patterns: Iterable[str]) -> list[Path]:
    """Every run's folder at or below the folders that `patterns` name, each once, sorted.

    Raises ConfigError for a pattern that matches nothing, and when no match holds a run.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        named = matches(pattern)
        if not named:
            raise ConfigError(f"{pattern}: no such folder{_neighbours(pattern)}")
        runs = [run for match in named for run in _below(Path(match))]
        if not runs:
            raise ConfigError(
                f"{pattern}: holds no run (no folder with a {FILE} or status.json); "
                "wanted what training wrote: outputs/<name>, or one run's folder in it"
            )
        for run in runs:
            found.setdefault(os.path.realpath(run), run)
    return sorted(found.values())


def matches(pattern: str) -> list[str]:
    """The path itself when it is there, else what the glob matches."""
    return [pattern] if Path(pattern).exists() else sorted(glob.glob(os.path.expanduser(pattern), recursive=True))


def _below(folder: Path) -> Iterable[Path]:
    for here, children, files in os.walk(folder):
        if FILE in files or "status.json" in files:
            children.clear()
            yield Path(here)
        children[:] = [name for name in children if not name.startswith(".")]


def _neighbours(pattern: str) -> str:
    parent = Path(pattern).parent
    names = sorted(p.name for p in parent.iterdir() if p.is_dir() and p.name != "comparison") if parent.is_dir() else []
    return f"; {parent} has {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else ""


# --------------------------------------------------------------------------------------------------- plans


def plan(home: Path) -> dict[str, dict] | None:
    """The cells that the sweep in this folder planned: configurations by folder name, {} for one that is not known.
    None when no sweep was started there."""
    try:
        names = list(json.loads((home / PLAN).read_text(encoding="utf-8"))["cells"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {name: _frozen(home / FROZEN / f"{name}.json") for name in names}


def question(homes: Iterable[Path]) -> list[str]:
    """What the sweeps in these folders set out to answer."""
    found = []
    for home in homes:
        try:
            found.append(json.loads((home / PLAN).read_text(encoding="utf-8")).get("question") or "")
        except (OSError, ValueError, AttributeError):
            continue
    return [text for text in dict.fromkeys(found) if text]


def _frozen(file: Path) -> dict:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
        run_hash(config)
        return config
    except (OSError, ValueError, KeyError, TypeError):
        return {}
