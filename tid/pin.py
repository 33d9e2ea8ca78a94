"""The files by whose contents a run is identified: model.init_from, a folder, and a text of the user's own, JSON lines.

"exported/model" as the user writes it is "exported/model@sha256:1f0c…" in the run's own files: what it names may move
or change afterwards, the run's identity may not.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PIN = "@sha256:"
WEIGHTS = "model.safetensors"
JSON_LINES, TEXTS = "tid.data.sources.JsonLines", ("train", "val")


def split_pin(named: str) -> tuple[Path, str | None]:
    """The file or folder, and the checksum if one is given."""
    path, _, digest = named.partition(PIN)
    return Path(path), digest or None


def weights_sha256(init_from: str) -> str | None:
    """The checksum given, else that of the folder's weights; None without either."""
    folder, digest = split_pin(init_from)
    return digest or file_sha256(folder / WEIGHTS)


def text_sha256(file: str) -> str | None:
    """The checksum given, else that of the file; None without either."""
    path, digest = split_pin(file)
    return digest or file_sha256(path)


def pins(config: dict) -> Iterator[tuple[str, str, str | None]]:
    """(group, key, checksum) of every setting of a run that names such a file; None when there is no file."""
    model, data = config.get("model"), config.get("data")
    if isinstance(model, dict) and model.get("init_from"):
        yield "model", "init_from", weights_sha256(model["init_from"])
    if isinstance(data, dict) and data.get("_target_") == JSON_LINES:
        yield from (("data", key, text_sha256(data[key])) for key in TEXTS if data.get(key))


def pin(config: dict) -> dict:
    """A run's configuration with the checksums of the files that it names and that are there."""
    for group, key, digest in pins(config):
        if digest:
            pinned = f"{split_pin(config[group][key])[0]}{PIN}{digest}"
            config = config | {group: config[group] | {key: pinned}}
    return config


def file_sha256(path: Path) -> str | None:
    """None when there is no such file. A process reads it once, unless its size or time changes."""
    if not path.is_file():
        return None
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of the file; size and time only tell the cache whether it is still the same file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
