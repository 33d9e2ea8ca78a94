"""Wording for users: the nearest name, a command, a value as YAML writes it, pydantic's findings by YAML key."""

import errno
import json
import math
import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

NO_MEMORY = re.compile("out of memory|can't allocate memory")  # CUDA's and the CPU allocator's words
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")  # of powers of 1000


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option most like `word`: the same but for its path or case, or the closest; None if none is."""
    options = list(options)
    by_case = {option.lower(): option for option in reversed(options)}
    leaves = {option.rpartition(".")[2]: option for option in reversed(options)}
    close = get_close_matches(
        word.lower(), by_case, n=1, cutoff=0.6 if len(word) > 3 else 0.75
    )  # gpu is not cpu
    if word in leaves:
        return leaves[word]
    if close:
        return by_case[close[0]]
    leaf = get_close_matches(word.rpartition(".")[2], leaves, n=1, cutoff=0.7)
    return leaves[leaf[0]] if leaf else None


def train_command(*settings: str) -> str:
    """The shell command that trains with these settings."""
    return shlex.join(["python", "-m", "tid.train", *settings])


def out_of_memory(error: BaseException) -> bool:
    """Does it say that the host's or a GPU's memory was too little?"""
    if isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)):
        return True
    return bool({"MemoryError", "OutOfMemoryError"} & {cls.__name__ for cls in type(error).__mro__})


def correctable(error: BaseException) -> str | None:
    """The message for an error that the user can correct; None for every other one."""
    names, text = {cls.__name__ for cls in type(error).__mro__}, str(error)
    if {"ConfigError", "DataError"} & names:  # by name, since importing tid.data costs a second
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{where}: {error.strerror}. Make room; the same command goes on"
    if out_of_memory(error):
        return (
            f"out of memory: {text.splitlines()[0][:200] if text else 'Python got no more'}\n"
            "  a smaller batch_size takes less (in training accumulate_steps makes up for it, and validation goes by "
            "eval_batch_size), and so do a shorter context and a smaller model"
        )
    return None


def unexpanded(path: str) -> str:
    """What to do about a path that begins with ~/, which only a shell makes the home folder."""
    return f"the shell left the ~ of {path} as it is; write {Path(path).expanduser()}"


def did_you_mean(word: str, options: Iterable[str], prefix: str = "") -> str:
    """ "; did you mean <prefix><option>?" when an option is near, else the empty string."""
    found = nearest(word, options)
    return f"; did you mean {prefix}{found}?" if found is not None else ""


def shown(value: Any) -> str:
    """A value as the user would write it in YAML, shortened to one line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def quantity(value: float | None) -> str:
    """A number to three digits, with a prefix: 12.3k, 4.5M, 6.7G, 8.9T, 1.2P, 3.4E, 5.6Z; "-" for none."""
    if value is None or not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.3g}")  # first, since 999,950 is 1M and not 1000k
    power = min(len(PREFIXES) - 1, max(0, math.floor(math.log10(rounded)) // 3)) if rounded >= 1 else 0
    return f"{rounded / 1000**power:.3g}{PREFIXES[power]}"


def keys_of(cfg: dict, path: str = "") -> list[str]:
    """Every key of a nested mapping, dotted, groups included: ["optim", "optim.lr", ...]."""
    found = []
    for key, value in cfg.items():
        dotted = f"{path}.{key}" if path else str(key)
        found += [dotted] + (keys_of(value, dotted) if isinstance(value, dict) else [])
    return [key for key in found if not key.endswith("_target_")]


def explain(error: ValidationError, path: str, given: dict, known: Iterable[str] = ()) -> str:
    """pydantic's findings about the mapping `given`, found at `path`: one line for each key, at most five.

    known: more keys that an unknown one may have been meant for.
    """
    lines = []
    for found in error.errors():
        keys, value = [path] if path else [], given
        for part in found["loc"]:  # of a union's branches pydantic names the type too: only real keys count
            if isinstance(value, dict) and (part in value or found["type"] == "missing"):
                keys, value = [*keys, str(part)], value.get(part)
            elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
                keys, value = [*keys, str(part)], value[part]
        line = _explain_one(found, ".".join(keys), [*known, *keys_of(given)])
        if line not in lines:
            lines.append(line)
    return "\n".join(lines[:4] + ([f"... and {len(lines) - 4} more"] if len(lines) > 4 else []))


def _explain_one(found: dict, key: str, known: list[str]) -> str:
    kind, message, value = found["type"], found["msg"], found.get("input")
    if kind == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(key, [name for name in known if name != key])}"
    if kind == "missing":
        return f"{key}: missing; give it in the YAML or as {key}=..."
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        return f"{key}: {text}" if key else text
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", found["ctx"]["expected"])
        return (
            f"{key}: wanted {found['ctx']['expected']}, got {shown(value)}{did_you_mean(str(value), options)}"
        )
    if kind in ("string_too_short", "too_short") and not value:
        return f"{key}: is empty; give it as {key}=..."
    wanted = message.removeprefix("Input should be ").partition(", ")[0]
    wanted = f"a value {wanted}" if wanted.startswith(("greater", "less")) else wanted
    return f"{key}: wanted {wanted}, got {shown(value)}"
