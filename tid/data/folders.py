"""Folders that are complete or absent: written beside their place, described by a manifest, then renamed.

A process killed at any moment leaves at most a hidden ``.<name>.new``, which the next one removes; several
processes wanting the same folder wait for each other on a lock file and then share what the first one made.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tid.data.errors import DataError
from tid.data.progress import say
from tid.disk import flush

MANIFEST = "manifest.json"


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of ``target``, a file or folder to be made. Raises DataError where none can be."""
    from filelock import FileLock, Timeout

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say(f"{target}: another process is making it; waiting")
            lock.acquire()
    except OSError as error:
        raise DataError(f"{target} cannot be made: {error}. Choose a writable data_dir and tokenizer_dir.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``target`` when the block ends without an exception.

    To be called with the lock of ``target`` held, where several processes may want it. After an exception nothing is
    left of it, and what was at ``target`` before is there again. Raises DataError when the disk refuses.
    """
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    try:
        _put_back(old, target)  # left by a process that was killed between two renames
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        for path in (*new.iterdir(), new):
            flush(path)
        if target.exists():
            target.rename(old)
        new.rename(target)
        flush(target.parent)
    except OSError as error:
        raise DataError(f"{target} could not be written: {error}") from error
    finally:
        _put_back(old, target)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    if old.exists() and not target.exists():
        old.rename(target)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, content: dict, files: dict[str, dict]) -> None:
    """Write manifest.json: ``content``, the date, and each file's facts, size, sha256 and time stamp."""
    described = {}
    for name, facts in files.items():
        status = (folder / name).stat()
        stamp = {"bytes": status.st_size, "sha256": sha256_of(folder / name), "mtime_ns": status.st_mtime_ns}
        described[name] = facts | stamp
    date = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps(content | {"date": date, "files": described}, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict | None:
    """The manifest of ``folder``, or None when the folder is absent or was never completed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def damage(folder: Path, manifest: dict) -> str | None:
    """What in ``folder`` differs from its manifest, in words; None when all is as written.

    A file of the recorded size and time stamp is believed, which costs microseconds. One with another time
    stamp (copied, touched, edited) is hashed again.
    """
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        status = path.stat()
        if status.st_size != facts["bytes"]:
            return f"{name} has {status.st_size:,} bytes, not the {facts['bytes']:,} that were written"
        if status.st_mtime_ns != facts["mtime_ns"] and sha256_of(path) != facts["sha256"]:
            return f"{name} was changed after it was written"
    return None
