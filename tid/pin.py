"""Which weights a run starts from: model.init_from is a folder, in a run's own files followed by their checksum.

"exported/model" as the user writes it is "exported/model@sha256:1f0c…" in config.yaml: the folder may move or change
afterwards, the run's identity may not.
"""

import functools
import hashlib
from pathlib import Path

PIN = "@sha256:"
WEIGHTS = "model.safetensors"


def split_pin(init_from: str) -> tuple[Path, str | None]:
    """The folder, and the checksum if one is given."""
    folder, _, digest = init_from.partition(PIN)
    return Path(folder), digest or None


def weights_sha256(init_from: str) -> str | None:
    """The checksum given, else that of the folder's weights; None without either."""
    folder, digest = split_pin(init_from)
    if digest or not (folder / WEIGHTS).is_file():
        return digest
    stat = (folder / WEIGHTS).stat()
    return _sha256(folder / WEIGHTS, stat.st_size, stat.st_mtime_ns)


def pin(config: dict) -> dict:
    """A run's configuration with the checksum of the weights that it starts from, if there are such."""
    init_from = config["model"].get("init_from")
    digest = weights_sha256(init_from) if init_from else None
    if digest is None:
        return config
    return config | {"model": config["model"] | {"init_from": f"{split_pin(init_from)[0]}{PIN}{digest}"}}


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of the file; size and time only tell the cache whether it is still the same file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
