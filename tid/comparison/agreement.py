"""What must agree before figures may stand in one mean, or in one table: text, budget, code, precision, device.

Text and budget are never averaged over: with allow=data or allow=budget they become rows of their own. Code,
precision and device may be averaged over by those who ask for it, and the report then says so.
"""

from collections import defaultdict
from collections.abc import Iterable

from tid.comparison.runs import RunRecord
from tid.config import ConfigError
from tid.revision import in_words

FACTS = ("data", "budget", "code", "precision", "device")
APART = ("data", "budget")
Mixed = dict[str, dict[str, list[RunRecord]]]  # {fact: {value in words: its runs}}
EXAMPLES = 4  # values of a fact that a message lists


def fact(run: RunRecord, name: str) -> str:
    """One of the five facts about a done run, in words."""
    summary = run.summary
    if name == "data":
        data = summary["data"]
        return f"{data['text']} (train {data['train.jsonl'][:8]}, validation {data['val.jsonl'][:8]})"
    if name == "budget":
        return f"{summary['steps']:,} steps, {summary['tokens']:,} tokens"
    if name == "code":
        return code(summary)
    return str(summary[name])


def code(summary: dict) -> str:
    versions = summary["versions"]
    return f"{in_words(summary)}, tid {versions['tid']}, torch {versions['torch']}"


def differences(runs: list[RunRecord]) -> Mixed:
    """The facts in which done runs differ."""
    found = {}
    contested = _contested(runs)
    for name in FACTS:
        values = defaultdict(list)
        for run in runs:
            values[_identity(run, name, contested)].append(run)
        if len(values) > 1:
            found[name] = {_described(same, name, values): same for same in values.values()}
    return found


def _contested(runs: list[RunRecord]) -> list[str]:
    """Modules outside tid of which the runs have used more than one state. A run that has none of them is no witness
    against those that have: a scorer of one's own may be held against one of tid's."""
    states = defaultdict(set)
    for run in runs:
        for module, checksum in run.summary.get("own_source", {}).items():
            states[module].add(checksum)
    return sorted(module for module, checksums in states.items() if len(checksums) > 1)


def _identity(run: RunRecord, name: str, contested: Iterable[str] = ()) -> str:
    """Texts are the same when their contents are, whatever they are called; code, when its sources are, whatever the
    commit: it has to do for runs without a checksum of them."""
    if name == "data":
        return f"{run.summary['data']['train.jsonl']} {run.summary['data']['val.jsonl']}"
    if name == "code":
        versions = run.summary["versions"]
        own = [run.summary.get("own_source", {}).get(module, "") for module in contested]
        source = run.summary.get("source") or str(run.summary["git_sha"])
        return " ".join([source, versions["tid"], versions["torch"], *own])
    return fact(run, name)


def _described(same: list[RunRecord], name: str, values: dict) -> str:
    text = fact(same[0], name)
    clash = name == "data" and sum(fact(runs[0], name) == text for runs in values.values()) > 1
    return f"{text} {_identity(same[0], name)}" if clash else text


def insist(runs: list[RunRecord], allow: list[str]) -> Mixed:
    """The differences between done runs that `allow` permits. Raises ConfigError for any other, saying what differs,
    in which runs, and how to proceed."""
    found = differences(runs)
    refused = [name for name in found if name not in allow]
    if not refused:
        return found
    lines = [f"these {len(runs)} runs differ in {' and '.join(refused)}, and must not be averaged or ranked together:"]
    for name in refused:
        values = sorted(found[name].items(), key=lambda item: -len(item[1]))
        for number, (value, same) in enumerate(values[:EXAMPLES]):
            many = f"{len(same)} run{'s' if len(same) > 1 else ''}"
            lines.append(f"  {name if not number else '':<9} {value}: {many}, as {same[0].folder}")
        if len(values) > EXAMPLES:
            lines.append(f"  {'':<9} ... and {len(values) - EXAMPLES} more")
    lines.append("Name the folders that agree, or say what may differ: " + _remedy(refused, allow))
    raise ConfigError("\n".join(lines))


def _remedy(refused: list[str], allow: list[str]) -> str:
    wanted = [*allow, *refused]
    value = ",".join(wanted)
    apart = [name for name in refused if name in APART]
    mixed = [name for name in refused if name not in APART]
    says = [f"{' and '.join(apart)} kept in rows of their own, never in one mean"] if apart else []
    says += [f"{' and '.join(mixed)} averaged over, never between the two runs of a pair"] if mixed else []
    return f"allow={value}\n  ({'; '.join(says)})"
