"""Which code this is: the commit, and a checksum of the sources that a result depends on.

The checksum is the identity: it tells two dirty trees of one commit apart, holds in an installed wheel, and stays the
same across a commit that changes only texts. The commit is for people. Your own modules outside tid are in neither.
"""

import functools
import hashlib
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent
# They start runs and read what runs wrote: an edit there changes no result. The settings are in each run's own hash.
NO_RESULT = ("benchmark", "comparison", "inspection", "pages", "reporting", "sweep")


@functools.cache
def git_sha() -> str | None:
    """Commit of the code, "-dirty" when files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def hash_of(package: Path) -> str:
    """12 hexadecimal digits of the names and contents of a package's Python files, those of NO_RESULT left out."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in NO_RESULT:
            text = path.read_bytes().replace(b"\r\n", b"\n")  # as git may check it out elsewhere
            digest.update(f"{name.as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:12]


# Taken when this is imported, with the rest of the code: a sweep's cells are forks of a process that was started
# hours ago, and are of the code of that time.
SOURCE = hash_of(PACKAGE)


def present() -> dict[str, str | None]:
    """The two facts about the present code that a run records."""
    return {"git_sha": git_sha(), "source": SOURCE}


def continued(recorded: dict | None) -> dict[str, str | None]:
    """The facts of a run that goes on from where it was when it `recorded` its own (None: it only begins). `source`
    then names every code that made it, in order, as "0a1b2c3d4e5f+6a7b8c9d0e1f": it is none of them alone."""
    before = (recorded or {}).get("source")
    if not before:
        return present()
    return present() | {"source": before if before.split("+")[-1] == SOURCE else f"{before}+{SOURCE}"}


def is_other(recorded: dict) -> bool:
    """Was what `recorded` these facts made by other code than the present? Not that we know, when there are none."""
    return recorded.get("source", SOURCE) != SOURCE


def in_words(recorded: dict) -> str:
    """As "source 0a1b2c3d4e5f of commit 9f8e7d6c5b with uncommitted changes"."""
    sha, _, dirty = (recorded.get("git_sha") or "").partition("-")
    commit = f"commit {sha[:10]}{' with uncommitted changes' if dirty else ''}" if sha else "an unknown commit"
    return f"source {recorded['source']} of {commit}" if recorded.get("source") else commit
