"""A source's documents, written once as train.jsonl and val.jsonl with a manifest."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from tid.data.errors import DataError
from tid.data.folders import damage, locked, new_folder, read_manifest, write_manifest
from tid.data.progress import progress, say

SPLITS = ("train", "val")


class Source(Protocol):
    """What a component of conf/data offers. ``label`` names its folder; building one touches no file."""

    label: str
    train_documents: int | None
    val_documents: int | None

    def inputs(self) -> dict:
        """What would be read: a package's version, a file's checksum; a change makes the text anew.

        Offline, and cheap when asked again. Empty when nothing can be said. What goes by the name of a field stands for
        it in the folder's name: a file is known by its content, not by its path.
        """

    def documents(self, facts: dict) -> Iterator[tuple[str, str]]:
        """Pairs ("train" | "val", text). Facts found on the way (a revision, a licence) go into ``facts``."""


def text_folder(source: Source, data_dir: str | Path) -> Path:
    """The folder that ``prepare_text`` makes: data_dir/<label>-<hash of the source's fields, files by their content>.

    Raises DataError when a file is missing.
    """
    described = _described(source)
    fields = json.dumps(described | {k: v for k, v in source.inputs().items() if k in described}, sort_keys=True)
    return Path(data_dir) / f"{source.label}-{hashlib.sha256(fields.encode()).hexdigest()[:8]}"


def prepare_text(source: Source, data_dir: str | Path) -> Path:
    """Write the source's documents, unless they are there already; returns their folder.

    train.jsonl and val.jsonl hold one JSON string per line, in UTF-8. manifest.json holds the source's
    fields, what was read (revision or versions), the date, and for each file documents, characters, UTF-8
    bytes of the text, size and sha256. The folder appears whole or not at all; processes that want it at once
    wait for one another. Raises DataError: the source cannot be read, holds too little, or the folder was
    changed since.
    """
    folder = text_folder(source, data_dir)
    if _state(source, folder) is None:
        return folder
    with locked(folder):
        state = _state(source, folder)
        if state is None:
            return folder
        if state:
            say(f"{folder}: {state}; preparing it again")
        with new_folder(folder) as new:
            inputs, facts = source.inputs(), {}
            files = _write_splits(source, facts, new)
            write_manifest(new, {"source": _described(source), "inputs": inputs, "facts": facts}, files)
    return folder


def _described(source: Source) -> dict:
    return {"kind": type(source).__name__} | asdict(source)


def _state(source: Source, folder: Path) -> str | None:
    """None when ``folder`` holds the source's text; "" when there is none yet; else why to prepare it again.

    Raises DataError when its text was changed by other hands, which might be someone's work.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return "it is not complete" if folder.exists() else ""
    found = damage(folder, manifest)
    if found and not found.endswith("missing"):
        raise DataError(
            f"{folder}: {found}.\nTo train on changed text, copy it: data=jsonl data.train=... data.val=...\n"
            f"To have the folder made again, remove it: rm -r {folder}"
        )
    inputs = source.inputs()
    changed = [name for name in inputs if inputs[name] != manifest["inputs"].get(name)]
    return f"{', '.join(changed)} changed since" if changed else found


def _write_splits(source: Source, facts: dict, folder: Path) -> dict[str, dict]:
    """Write both files; returns the facts of each. A document on both sides is counted, not removed."""
    counts = {split: {"documents": 0, "characters": 0, "text_bytes": 0} for split in SPLITS}
    digests = {split: set() for split in SPLITS}
    wanted = (source.train_documents, source.val_documents)
    total = None if None in wanted else sum(wanted)
    with ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f"{split}.jsonl", "wb")) for split in SPLITS}
        shown = stack.enter_context(progress(f"{source.label} text", total, " documents"))
        for split, text in source.documents(facts):
            encoded = text.encode("utf-8")
            files[split].write(json.dumps(text, ensure_ascii=False).encode("utf-8") + b"\n")
            digests[split].add(hashlib.blake2b(encoded, digest_size=16).digest())
            seen = {"documents": 1, "characters": len(text), "text_bytes": len(encoded)}
            counts[split] = {name: n + seen[name] for name, n in counts[split].items()}
            shown.advance()
    _require_enough(source, counts)
    shared = len(digests["train"] & digests["val"])
    if shared:
        say(f"{source.label}: {shared:,} distinct validation documents also occur in the training text")
    counts["val"]["also_in_train"] = shared
    return {f"{split}.jsonl": counts[split] for split in SPLITS}


def _require_enough(source: Source, counts: dict[str, dict]) -> None:
    found = {split: counts[split]["documents"] for split in SPLITS}
    for split, count in found.items():
        wanted = getattr(source, f"{split}_documents")
        if count >= (wanted or 1):
            continue
        asked = "at least 1 document" if wanted is None else f"data.{split}_documents={wanted}"
        if count:
            advice = f"Ask for data.{split}_documents={count} or fewer."
        elif sum(found.values()) > 1 and wanted is not None:
            advice = f"Ask for data.train_documents={found['train'] - 1} data.val_documents=1, or the like."
        else:
            advice = "Give it more text"
            named = " or ".join(f"data.{key}=..." for key in ("val", "val_fraction") if hasattr(source, key))
            advice += f", or say what is held out: {named}." if named and sum(found.values()) else "."
        raise DataError(
            f"{source.label} has too little text: {asked} was asked for, and there were {found['train']:,} "
            f"for training and {found['val']:,} for validation. {advice}"
        )
