"""Token streams on disk: made once per text and tokenizer, then memory-mapped.

A stream is ``EOT doc EOT doc ... EOT doc EOT``: one end-of-text token before every document, and one after
the last. Its folder under data_dir is named by the content of text and tokenizer, so it can be neither stale
nor another text's.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tid.data.folders import damage, locked, new_folder, read_manifest, sha256_of, write_manifest
from tid.data.progress import progress, say
from tid.data.text import SPLITS, Source, prepare_text
from tid.data.tokenizer import EOT, fast_encoding, load_tokenizer, token_lengths

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

CHUNK_BYTES = 1 << 19  # of text per task: small enough for an even load, large enough to hide the queue
LAYOUT = 1  # of the stream; a change here makes every cache anew


@dataclass(frozen=True)
class TokenFile:
    """A token stream: ``tokens`` uint16 (N,), read-only and memory-mapped; ``doc_starts`` int64 (D,).

    ``doc_starts[i]`` is the index of the EOT that opens document i. N = D + 1 + the documents' own tokens.
    """

    tokens: np.ndarray
    doc_starts: np.ndarray


@dataclass(frozen=True)
class Corpus:
    """What a run reads. ``token_chars`` and ``token_bytes`` are int64 (50257,), see ``token_lengths``.

    ``manifest`` is the text's (``prepare_text``), with ``folder`` and the tokenizer's sha256 added.
    """

    train: TokenFile
    val: TokenFile
    token_chars: np.ndarray
    token_bytes: np.ndarray
    manifest: dict
    tokenizer: "tokenizers.Tokenizer"


def load_corpus(source: Source, data_dir: str | Path, tokenizer_dir: str | Path) -> Corpus:
    """Text, tokenizer and tokens of ``source``, each made if it is not there yet. Raises DataError."""
    folder = prepare_text(source, data_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer_sha256 = sha256_of(Path(tokenizer_dir) / "tokenizer.json")
    manifest = read_manifest(folder)
    files = {}
    for split in SPLITS:
        text = folder / f"{split}.jsonl"
        content = f"{LAYOUT} {manifest['files'][text.name]['sha256']} {tokenizer_sha256}"
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        files[split] = _load_tokens(text, tokenizer, Path(data_dir) / f"tokens-{key}")
    chars, sizes = token_lengths(tokenizer)
    manifest |= {"folder": str(folder), "tokenizer_sha256": tokenizer_sha256}
    return Corpus(files["train"], files["val"], chars, sizes, manifest, tokenizer)


def _load_tokens(text: Path, tokenizer: "tokenizers.Tokenizer", folder: Path) -> TokenFile:
    """The token stream of ``text`` (one JSON string per line) in ``folder``, made first unless it is there, whole.

    A cache that is truncated or changed is said to be so and made again.
    """
    if not _is_whole(folder):
        with locked(folder):
            if not _is_whole(folder, say_so=True):
                with new_folder(folder) as new:
                    _tokenise(text, tokenizer, new)
    tokens = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    return TokenFile(tokens, np.load(folder / "doc_starts.npy"))


def _is_whole(folder: Path, say_so: bool = False) -> bool:
    manifest = read_manifest(folder)
    found = "it is not complete" if manifest is None else damage(folder, manifest)
    if found and say_so and folder.exists():
        say(f"{folder}: {found}; tokenising again")
    return found is None


def _tokenise(text: Path, tokenizer: "tokenizers.Tokenizer", folder: Path) -> None:
    """Write tokens.bin, doc_starts.npy and the manifest into ``folder``."""
    encoding = fast_encoding(tokenizer)
    lengths, size = [], text.stat().st_size
    with open(folder / "tokens.bin", "wb") as out, progress(f"{text} tokens", size, "B") as shown:
        for ids, chunk_lengths, read in _encoded_chunks(text, encoding, tokenizer):
            ids.tofile(out)
            lengths.append(chunk_lengths)
            shown.advance(read)
        np.array([EOT], dtype=np.uint16).tofile(out)
        ends = np.cumsum(np.concatenate(lengths))
        shown.note = f", {ends[-1] + 1:,} tokens"
    np.save(folder / "doc_starts.npy", np.concatenate([[0], ends[:-1]]).astype(np.int64))
    facts = {"tokens.bin": {"tokens": int(ends[-1]) + 1}, "doc_starts.npy": {"documents": len(ends)}}
    write_manifest(folder, {"text": str(text), "layout": LAYOUT}, facts)


def _encoded_chunks(text: Path, encoding, tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(ids uint16, tokens of each document with its EOT, bytes read) per chunk of lines, in order.

    tiktoken lets go of the interpreter while it encodes, so threads use all cores. At most three chunks per
    worker are in memory.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool, open(text, "rb") as file:
        waiting = deque()
        try:
            while lines := file.readlines(CHUNK_BYTES):
                waiting.append(pool.submit(_encode_lines, lines, encoding, tokenizer))
                if len(waiting) > 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()


def _encode_lines(lines: list[bytes], encoding: "tiktoken.Encoding", tokenizer) -> tuple[np.ndarray, np.ndarray, int]:
    opening = np.array([EOT], dtype=np.uint16)
    parts, lengths = [], []
    for line in lines:
        document = json.loads(line)
        try:
            ids = encoding.encode_to_numpy(document, disallowed_special=())
        except ValueError:  # tiktoken's pattern gives up on about a million white spaces in a row
            ids = np.array(tokenizer.encode(document).ids)
        parts += [opening, ids.astype(np.uint16)]
        lengths.append(len(ids) + 1)
    return np.concatenate(parts), np.array(lengths, dtype=np.int64), sum(map(len, lines))
