"""Reading the user's JSON lines, with every fault named by file, line and reason."""

import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tid.data.errors import DataError
from tid.messages import unexpanded
from tid.pin import split_pin, text_sha256


def checksum(file: str) -> str:
    """The checksum after a path (tid.pin), else that of the file. Raises DataError when there is no file."""
    found = text_sha256(file)
    if found is None:
        raise DataError(_no_such_file(Path(file)))
    return found


def unchanged(file: str) -> str:
    """The path alone. Raises DataError when the file is not there or does not have the checksum after the path."""
    path, wanted = split_pin(file)
    if wanted not in (None, found := checksum(str(path))):
        raise DataError(
            f"{path} was changed: it had sha256 {wanted}, and now has {found}. Put the first content back, or give the "
            "file anew, without its checksum, to read this one"
        )
    return str(path)


def _no_such_file(file: Path) -> str:
    what = "is a folder, not a file" if file.is_dir() else "does not exist"
    folder = file if file.is_dir() else file.parent
    if str(file).startswith("~/"):
        return f"{file} {what}: {unexpanded(str(file))}"
    if not folder.is_dir():
        return f"{file} {what}: there is no folder {folder} (from {Path.cwd()})"
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if name.endswith(".jsonl")][:3]
    hint = "nearest: " + ", ".join(str(folder / name) for name in near) if near else f"{folder} holds no such files"
    return f"{file} {what}; {hint}"


def read_documents(path: str, text_field: str) -> Iterator[str]:
    """The documents of a file of JSON lines, in order; lines of only white space are passed over.

    Raises DataError naming file, line (from 1) and reason: not UTF-8, not JSON, neither a string nor an
    object with a text under ``text_field``, empty, or not encodable as UTF-8 (a lone surrogate).
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield _document(line.rstrip(b"\r\n"), text_field, first=number == 1)
                except ValueError as error:
                    raise DataError(f"{path}, line {number}: {error}") from error


def _document(line: bytes, text_field: str, first: bool) -> str:
    try:
        value = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        if line.startswith(b"\x1f\x8b"):
            raise ValueError("the file is compressed by gzip; unpack it (gunzip)") from None
        raise ValueError(f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); convert it") from None
    except json.JSONDecodeError as error:
        wanted = f'wanted a document per line, as "its text" or {{"{text_field}": "its text"}}'
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1}): {_excerpt(line)}; {wanted}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if isinstance(value, dict):
        value = _text_of(value, text_field)
    if not isinstance(value, str):
        wanted = f"a JSON string or an object with a text under {text_field!r}"
        raise ValueError(f"expected {wanted}, got {_kind(value)}: {_excerpt(line)}")
    if not value.strip():
        raise ValueError("the document is empty; remove the line")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise ValueError(f"lone surrogate U+{code:04X} at character {error.start + 1}: not a valid text") from None
    return value


def _text_of(value: dict, text_field: str) -> str:
    if text_field not in value:
        keys = sorted(value)
        near = difflib.get_close_matches(text_field, keys, n=1, cutoff=0.4)
        texts = near or [key for key in keys if isinstance(value[key], str)]
        advice = f"; perhaps data.text_field={texts[0]}" if texts else ""
        raise ValueError(f"no field {text_field!r}; its fields are {', '.join(keys) or 'none'}{advice}")
    if not isinstance(value[text_field], str):
        raise ValueError(f"field {text_field!r} holds {_kind(value[text_field])}, not a text")
    return value[text_field]


def _kind(value) -> str:
    names = {list: "a list", dict: "an object", type(None): "null", bool: "true or false", int: "a number"}
    return names.get(type(value), "a number")


def _excerpt(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace").strip()
    return text if len(text) <= 60 else text[:57] + "..."


def held_out(path: str, text_field: str, fraction: float) -> Iterator[tuple[str, str]]:
    """("train" | "val", text) for every document: the ``fraction`` with the smallest hashes is held out.

    The file is read twice. At least one document is held out; equal documents fall on the same side.
    """
    digests = sorted(_digest(text) for text in read_documents(path, text_field))
    last = digests[max(1, round(fraction * len(digests))) - 1] if digests else b""
    for text in read_documents(path, text_field):
        yield ("val" if _digest(text) <= last else "train"), text


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
