"""Checkpoints: written whole or not at all, read with ``weights_only=True``, damage noticed."""

import importlib
import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tid.config import ConfigError
from tid.disk import flush

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
FORMAT = 1


class CheckpointError(ConfigError):
    """A checkpoint that is missing, damaged or of another kind; the message says which and what to do."""


def save(state: dict, path: Path) -> None:
    """Write `state` (tensors and plain Python values) to `path` atomically: temporary file, fsync, rename.

    A last.pt that is there becomes previous.pt, for the day when the new one turns out damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def link(source: Path, path: Path) -> None:
    """Make `path` the same file as `source`, atomically; where the file system has no links, a copy."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(path)
    flush(path.parent)


def is_same(one: Path, other: Path) -> bool:
    """Are both one file, as `link` makes them? Of copies it cannot be told."""
    return one.exists() and other.exists() and one.samefile(other)


class Writer:
    """Writes checkpoints one after the other; with `background`, in a thread while the next steps run on the GPU.

    The state is copied to the host before a call returns, into memory that is kept for the next time. What goes wrong
    in the thread is raised by the next call, by `check` or by `wait`: CheckpointError, with the path.
    """

    def __init__(self, background: bool = False) -> None:
        self.background = background
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.abandoned = False
        self.buffers: dict[tuple, torch.Tensor] = {}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *exception: Any) -> None:
        self.abandoned = kind is not None and issubclass(kind, KeyboardInterrupt)  # somebody waits no longer
        if not self.abandoned:
            self.wait()

    def __call__(
        self, state: dict, path: Path, also: Path | None = None, then: Callable[[], Any] = lambda: None
    ) -> None:
        """Write `state` to `path`, make `also` the same file, then call `then`."""
        self.wait()
        if not self.background:
            self.write(state, path, also, then)
            return
        copied = self.on_host(state)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.thread = threading.Thread(target=self.guarded, args=(copied, path, also, then), daemon=True)
        self.thread.start()

    @property
    def busy(self) -> bool:
        """Is something still being written?"""
        return self.thread is not None and self.thread.is_alive()

    def write(self, state: dict, path: Path, also: Path | None, then: Callable[[], Any]) -> None:
        try:
            save(state, path)
        except (OSError, RuntimeError) as error:  # the latter is torch's word for a full disk
            raise CheckpointError(
                f"{path}: cannot be written ({error}). The checkpoint before it is as it was: make room, and the same "
                "command resumes from there"
            ) from error
        try:
            if also:
                link(path, also)
        except OSError as error:
            raise CheckpointError(
                f"{also}: cannot be made the same as {path.name} ({error}): make room, and the same command resumes"
            ) from error
        if not self.abandoned:
            then()

    def guarded(self, *arguments: Any) -> None:
        try:
            self.write(*arguments)
        except BaseException as error:
            self.error = error

    def on_host(self, state: Any, where: tuple = ()) -> Any:
        """A copy of nested values, of its own, with tensors in the host's memory."""
        if isinstance(state, dict):
            return {key: self.on_host(value, (*where, key)) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)([self.on_host(value, (*where, number)) for number, value in enumerate(state)])
        if type(state) not in (torch.Tensor, torch.nn.Parameter):
            return state.to("cpu", copy=True) if isinstance(state, torch.Tensor) else state
        buffer = self.buffers.get(where)
        if buffer is None or (buffer.shape, buffer.dtype) != (state.shape, state.dtype):
            buffer = self.buffers[where] = torch.empty(state.shape, dtype=state.dtype, pin_memory=state.is_cuda)
        return buffer.copy_(state.detach(), non_blocking=True)

    def check(self) -> None:
        """Raise what went wrong in the thread, if it has ended."""
        error, self.error = self.error, None
        if error:
            raise error

    def wait(self, seconds: float | None = None) -> None:
        """Until what was handed over is on the disk, or that many seconds. Raises what kept it from getting there."""
        thread, self.thread = self.thread, None
        if thread:
            thread.join(seconds)
        self.check()


def load(path: Path) -> dict:
    """Read a checkpoint into the host's memory. Every byte is checked against the file's own CRC-32 first.

    Raises CheckpointError when the file is missing, damaged, or not a TID checkpoint, and ConfigError when it holds the
    moments of an optimizer of torchao's, and torchao is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; a run's are in <run folder>/checkpoints/{LAST} and {BEST}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path}: damaged (CRC of {damaged} is wrong)")
        import_classes(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, OSError, pickle.UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged or no checkpoint ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a TID checkpoint of format {FORMAT}")
    return state


def import_classes(path: Path) -> None:
    """Import torchao's tensors if a checkpoint holds some: with that torch learns that they are safe to read."""
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        if name.startswith("torchao."):
            try:
                importlib.import_module(name.rpartition(".")[0])
            except ImportError as error:
                raise ConfigError(
                    f"{path}: holds the state of an 8-bit or 4-bit optimizer, and torchao cannot be imported "
                    f"({error}); pip install torchao"
                ) from None


def load_newest(folder: Path) -> tuple[dict | None, list[str]]:
    """The furthest intact checkpoint of a run's `checkpoints` folder, None without any; and what ails others. What a
    process that was killed has left half written there is removed."""
    for leftover in folder.glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    states, complaints = [], []
    for name in (LAST, PREVIOUS, BEST):
        path = folder / name
        if not path.exists():
            continue
        try:
            states.append(load(path))
        except CheckpointError as error:
            complaints.append(str(error))
            continue
        break  # they are in the order of their age
    if complaints and not states:
        raise CheckpointError(
            "; ".join(complaints) + f": nothing to resume from. Delete {folder} to start this run again"
        )
    return (states[0] if states else None), complaints
