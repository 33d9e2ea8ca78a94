"""Which code this is: the commit, and checksums of the sources that a result depends on.

The checksums are the identity: they tell two dirty trees of one commit apart, hold in an installed wheel, and stay the
same across a commit that changes only texts, pages or other commands. The commit is for people.

`source` is of tid: all modules that training reaches by import statements. `own_source` has a checksum for each other
module that a configuration's `_target_`s name, as a scorer of your own: of it and of every module of your own that it
reaches by import statements, wherever in a module these stand, with the packages around them. Your own is what lies
neither in a site-packages folder nor in the standard library nor in tid's own folder; the module that a `_target_`
names is covered wherever it lies. Not covered: modules whose name is made as they run (importlib, eval), compiled ones,
and files that are no modules.
"""

import ast
import functools
import hashlib
import importlib.util
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tid.config import DROPPING, is_baseline

PACKAGE = Path(__file__).parent
TRAINING = "tid.job"
LOOKS_ON = {"tid.diagnostics"}  # it logs what is dropped, and decides nothing; nor does what it alone needs
LIBRARIES = {"site-packages", "dist-packages"}
NOT_OWN = {PACKAGE.resolve(), *(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib"))}
NO_RESULT = ("data", "tracker", "pruner")  # groups of components: texts are known by their own checksums


@functools.cache
def git_sha() -> str | None:
    """Commit of the code, "-dirty" when files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def read(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")  # as git may check it out elsewhere


def reached(package: Path) -> dict[str, bytes]:
    """Text of each module that training imports, directly or through others, by its dotted name: of the package's own,
    which lies in that folder."""
    found: dict[str, bytes] = {}
    waiting = {TRAINING}
    while waiting:
        name = waiting.pop()
        path = package.joinpath(*name.split(".")[1:])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in found and name not in LOOKS_ON and file.is_file():
            found[name] = read(file)
            waiting |= {other for other in imported(found[name], "tid") if other.startswith("tid.")}
    return found


def imported(text: bytes, package: str) -> Iterator[str]:
    """What a module may import, anywhere in it: modules, their packages, and names that are none. package: the one that
    the module is in, for its relative imports."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # then nobody can import it either
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            start = ".".join(filter(None, [*above, node.module]))
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from with_packages(name)


def with_packages(name: str) -> Iterator[str]:
    """a.b.c: a, a.b, a.b.c."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def hash_of(texts: dict[str, bytes]) -> str:
    """12 hexadecimal digits of names and contents."""
    digest = hashlib.sha256()
    for name, text in sorted(texts.items()):
        digest.update(f"{name} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:12]


# Taken when this is imported, with the rest of the code: a sweep's cells are forks of a process that was started
# hours ago, and are of the code of that time.
REACHED = reached(PACKAGE)
SOURCE = hash_of(REACHED)


def own_source(config: dict) -> dict[str, str]:
    """Checksums by name of the modules that the configuration's components come from and that SOURCE does not cover."""
    unused = (*NO_RESULT, *DROPPING) if config and is_baseline(config) else NO_RESULT
    targets = {target for group, node in config.items() if group not in unused for target in targets_in(node)}
    names = sorted({target.rpartition(".")[0] for target in targets} - REACHED.keys())
    return {name: hash_of(texts) for name in names if (texts := own_modules(name))}


def own_modules(start: str) -> dict[str, bytes]:
    """Text of a module, and of all of one's own that it imports, directly or through others, by dotted name. Imports
    nothing."""
    found: dict[str, bytes] = {}
    waiting = set(with_packages(start))
    while waiting:
        name = waiting.pop()
        file = None if name in (found.keys() | REACHED.keys() | {"tid"}) else file_of(name)
        if file and (name == start or is_own(file)):
            found[name] = read(file)
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting |= set(imported(found[name], package))
    return found


def is_own(file: Path) -> bool:
    """Is a module neither installed, nor Python's, nor tid's? Of tid's what training reaches is in SOURCE; the rest
    decides no result, and counting it would tell a checkout from an installed wheel."""
    file = file.resolve()
    return not LIBRARIES & set(file.parts) and not any(file.is_relative_to(folder) for folder in NOT_OWN)


def file_of(module: str) -> Path | None:
    """Where Python finds a module; None for one that is built in, or not there (any more)."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a module in a package it would import that
    except (ImportError, ValueError):
        return None
    file = Path(spec.origin) if spec and spec.has_location else None
    folders = list(map(Path, spec.submodule_search_locations or ())) if spec else []
    for name in below:
        places = [place for folder in folders for place in (folder / name / "__init__.py", folder / f"{name}.py")]
        file = next((place for place in places if place.is_file()), None)
        folders = [folder / name for folder in folders] if file is None or file.name == "__init__.py" else []
    return file


def targets_in(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        node = list(node.values())
    for value in node if isinstance(node, list) else []:
        yield from targets_in(value)


def present(config: dict | None = None) -> dict:
    """The facts about the present code that a run of this configuration records; None: those of all runs."""
    return {"git_sha": git_sha(), "source": SOURCE, "own_source": own_source(config or {})}


def continued(recorded: dict | None, config: dict) -> dict:
    """The facts of a run that goes on from where it was when it `recorded` its own (None: it only begins). A checksum
    then names every code that made it, in order, as "0a1b2c3d4e5f+6a7b8c9d0e1f": it is none of them alone."""
    before, now = recorded or {}, present(config)
    own = before.get("own_source") or {}
    return now | {
        "source": joined(before.get("source"), SOURCE),
        "own_source": {name: joined(own.get(name), checksum) for name, checksum in now["own_source"].items()},
    }


def joined(before: str | None, now: str) -> str:
    if not before:
        return now
    return before if before.split("+")[-1] == now else f"{before}+{now}"


def is_mixed(facts: dict) -> bool:
    """Did more than one code make the run of these facts?"""
    return any("+" in checksum for checksum in (facts["source"], *facts["own_source"].values()))


def is_other(recorded: dict, config: dict) -> bool:
    """Was what `recorded` these facts made by other code than the present, for a run of this configuration? Not that
    we know, when there are none."""
    own = recorded.get("own_source") or {}
    now = own_source(config) if own else {}
    return recorded.get("source", SOURCE) != SOURCE or any(now.get(name, own[name]) != own[name] for name in own)


def in_words(recorded: dict) -> str:
    """As "source 0a1b2c3d4e5f, mine 1f2e3d4c5b6a, of commit 9f8e7d6c5b with uncommitted changes"."""
    sha, _, dirty = (recorded.get("git_sha") or "").partition("-")
    commit = f"commit {sha[:10]}{' with uncommitted changes' if dirty else ''}" if sha else "an unknown commit"
    own = "".join(f", {name} {checksum}" for name, checksum in (recorded.get("own_source") or {}).items())
    return f"source {recorded['source']}{own and own + ','} of {commit}" if recorded.get("source") else commit
