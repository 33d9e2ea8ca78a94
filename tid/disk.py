"""What is on the disk stays there, and what cannot be put there is said beforehand."""

import os
import tempfile
from pathlib import Path

from tid.config import ConfigError


def flush(path: Path) -> None:
    """Make a file's content, or a folder's names (renames in it), survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_unwritable(folder: Path, setting: str) -> None:
    """Raise ConfigError unless files can be written in `folder` or, before it is made, where it would be: trying is the
    only sure way to know. Nothing is left there. setting: the one that names a folder."""
    try:
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise unwritable(folder, error, setting) from None


def unwritable(folder: Path, error: OSError, setting: str) -> ConfigError:
    return ConfigError(f"{folder}: cannot be written ({error.strerror}); name a folder: {setting}=...")
