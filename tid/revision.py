"""Which code this is."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def git_sha() -> str | None:
    """Commit of the code, "-dirty" when files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
