"""A small Hugging Face-like hub on loopback, and the ways in which a hub fails.

It serves every folder root/<owner>/<name> as a dataset repository, by the addresses that ``datasets`` and
``huggingface_hub`` ask for, with byte ranges, and counts what it served.
"""

import json
import re
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet

COMMIT = "c0ffee" + "0" * 34
CHUNK = 1 << 14


def documents(count: int, characters: int = 400) -> list[str]:
    """Texts that all differ; the third is empty, as some are in real datasets."""
    texts = [f"Document {i}: " + f"wörd{i * 7919 % 104729} " * (characters // 9) for i in range(count)]
    return [*texts[:2], "", *texts[3:]]


def write_parquet(repo: Path, texts: list[str], rows: list[int], rows_per_group: int) -> None:
    """``texts`` in files of so many ``rows``, laid out as the hub does: plain_text/train/0000.parquet."""
    folder = repo / "plain_text" / "train"
    folder.mkdir(parents=True)
    left = iter(texts)
    for number, size in enumerate(rows):
        part = list(islice(left, size))
        table = pyarrow.table({"text": part, "url": [f"https://example.org/{i}" for i in range(size)]})
        path = folder / f"{number:04d}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group, compression="none")


class SmallHub:
    """A context manager; ``endpoint`` goes into HF_ENDPOINT.

    rate: bytes per second of one answer, as of a network.
    drop_after_bytes: ``drops`` times, an answer is cut off once that many bytes of data were served;
    with ``drops=None`` the first cut is the end, and every later request is cut off too.
    """

    def __init__(self, root: Path, drop_after_bytes: int | None = None, drops: int | None = None, rate: float = 1e9):
        self.root, self.drop_after_bytes, self.drops, self.rate = root, drop_after_bytes, drops, rate
        self.paths: list[str] = []  # of all requests, in order
        self.bytes_of: dict[str, int] = {}  # served, by file
        self.dropped = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "SmallHub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str) -> dict[str, Path]:
        folder = self.root / repo
        return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}

    def gone(self) -> bool:
        return self.drops is None and self.dropped > 0

    def cut_now(self) -> bool:
        """Whether the answer being written is to be cut off here."""
        if self.drop_after_bytes is None or sum(self.bytes_of.values()) < self.drop_after_bytes:
            return False
        if self.drops is not None and self.dropped >= self.drops:
            return False
        self.dropped += 1
        return True


class SilentHub:
    """Takes connections (the kernel does) and never answers; ``dripping``: sends a letter now and then, for ever."""

    def __init__(self, dripping: bool = False):
        self.dripping = dripping

    def __enter__(self) -> "SilentHub":
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        if self.dripping:
            threading.Thread(target=self.drip, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def drip(self) -> None:
        with suppress(OSError):
            connection, _ = self.socket.accept()
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                connection.sendall(b"z")
                time.sleep(0.5)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_) -> None:
        """Say nothing: readers leave in the middle of an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: SmallHub

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.paths.append(path)
        if self.hub.gone():
            return self.cut()
        found = re.match(
            r"/(api/)?datasets/([^/]+/[^/]+)(?:/(revision|tree|resolve)/(refs/[^/]+/[^/]+|[^/]+))?(.*)", path
        )
        if found is None or not self.hub.files(found[2]):
            return self.send_error_code("RepoNotFound")
        _, repo, what, revision, rest = found.groups()
        if revision not in (None, COMMIT, "main", "refs/convert/parquet"):
            return self.send_error_code("RevisionNotFound")
        if what == "resolve":
            return self.send_file(repo, rest.lstrip("/"))
        if what == "tree":
            return self.send_json(self.tree(repo, rest.strip("/")))
        return self.send_json({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.hub.files(repo)]})

    def tree(self, repo: str, under: str) -> list[dict]:
        files = self.hub.files(repo)
        rows = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": "0" * 40} for n, p in files.items()]
        folders = {parent.as_posix() for name in files for parent in Path(name).parents} - {"."}
        rows += [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)]
        return [row for row in rows if not under or row["path"].startswith(under + "/")]

    def send_json(self, value) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_error_code(self, code: str) -> None:
        self.send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, repo: str, name: str) -> None:
        path = self.hub.files(repo).get(name)
        if path is None:
            return self.send_error_code("EntryNotFound")
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(wanted[1]), min(size, int(wanted[2] or size - 1) + 1)) if wanted else (0, size)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(name, path.read_bytes()[start:end])

    def send_body(self, name: str, body: bytes) -> None:
        for start in range(0, len(body), CHUNK):
            chunk = body[start : start + CHUNK]
            with self.hub.lock:
                if self.hub.cut_now():
                    return self.cut()
                self.hub.bytes_of[name] = self.hub.bytes_of.get(name, 0) + len(chunk)
            time.sleep(len(chunk) / self.hub.rate)
            try:
                self.wfile.write(chunk)
            except OSError:
                return self.cut()

    def cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
