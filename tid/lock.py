"""One run at a time in a folder."""

import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from tid.config import ConfigError
from tid.logs import now, write_json


class RunLocked(ConfigError):
    """Another process is training in this folder."""


class RunLock:
    """``with RunLock(folder)``: at most one process trains in a run's folder. The operating system drops the
    lock when its process dies, however it dies. Raises RunLocked, naming the process that holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = folder / ".owner.json"
        self.lock = FileLock(folder / ".lock")

    def __enter__(self) -> "RunLock":
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise RunLocked(self.refusal()) from None
        write_json(self.owner, {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
        return self

    def refusal(self) -> str:
        try:
            owner = json.loads(self.owner.read_text(encoding="utf-8"))
            who = f"process {owner['pid']} on {owner['host']} has been training in it since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):  # its process is just starting or just ending
            who = "another process is training in it"
        return f"{self.folder}: {who}.\nWait for it, stop it, or change the name, the seed or any setting."

    def __exit__(self, *exception: object) -> None:
        self.owner.unlink(missing_ok=True)
        self.lock.release()
