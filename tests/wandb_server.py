"""A server on loopback that speaks as much of W&B's protocol as a run needs."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILES = "http://{}/upload/{}"


class WandbServer:
    """``with WandbServer() as server``: `upserts` are the run's properties as sent, `history` its rows,
    `exits` its exit codes, `files` its files by name, `artifacts` what a table is stored as.

    trouble: "silent" never answers, 500 answers everything with that status."""

    def __init__(self, trouble: str | int = "") -> None:
        self.trouble = trouble
        self.upserts: list[dict] = []
        self.history: list[dict] = []
        self.exits: list[int] = []
        self.artifacts: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.runs: set[str] = set()
        self.over = threading.Event()
        self.http = Server(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"state": self}))
        self.address = f"127.0.0.1:{self.http.server_address[1]}"
        self.url = f"http://{self.address}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.leave()

    def hang(self) -> None:
        self.trouble = "silent"

    def leave(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def graphql(self, query: str, given: dict) -> dict:
        """The answer to one operation."""
        if "upsertBucket" in query:
            self.upserts.append(given)
            new = given["name"] not in self.runs
            self.runs.add(given["name"])
            project = {"id": "cA==", "name": given["project"], "entity": {"id": "ZQ==", "name": "me"}}
            return {
                "upsertBucket": {"bucket": self.bucket(given["name"]) | {"project": project}, "inserted": new}
            }
        if "createArtifact(" in query:  # COMMITTED: its files are on the server already
            self.artifacts.append(given["input"])
            artifact = {"id": "YQ==", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": FILES.format(self.address, name)} for name in given["files"]]
            return {"createRunFiles": {"runID": "cg==", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in query and given["name"] in self.runs:
            more = {"summaryMetrics": "{}", "logLineCount": 0, "historyLineCount": len(self.history),
                    "eventsLineCount": 0, "historyTail": json.dumps([json.dumps(self.history[-1])]),
                    "eventsTail": "[]", "tags": [], "notes": "", "wandbConfig": "{}"}  # fmt: skip
            entity = {"id": "ZQ==", "name": "me"}
            return {
                "model": {
                    "id": "cA==",
                    "name": "p",
                    "entity": entity,
                    "bucket": self.bucket(given["name"]) | more,
                }
            }
        if "viewer" in query:
            teams = {"edges": []}
            return {
                "viewer": {
                    "id": "dQ==",
                    "entity": "me",
                    "username": "me",
                    "email": "",
                    "flags": "{}",
                    "teams": teams,
                }
            }
        return {"model": None, "project": None, "serverInfo": {"features": []}}

    def bucket(self, name: str) -> dict:
        return {"id": "cg==", "name": name, "displayName": name, "description": "", "config": "{}",
                "sweepName": None, "historyLineCount": 0}  # fmt: skip

    def stream(self, sent: dict) -> None:
        for name, part in sent.get("files", {}).items():
            if name == "wandb-history.jsonl":
                self.history += [json.loads(line) for line in part["content"]]
        if sent.get("complete"):
            self.exits.append(sent["exitcode"])


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, address: object) -> None: ...  # clients just go away


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: WandbServer

    def log_message(self, *arguments: object) -> None: ...

    def do_POST(self) -> None:
        state, body = self.state, self.rfile.read(int(self.headers.get("content-length", 0)))
        if state.trouble == "silent":
            state.over.wait()
            return
        answer, status = {}, state.trouble or 200
        if status == 200 and self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": state.graphql(asked["query"], asked.get("variables") or {})}
        elif status == 200 and self.path.endswith("/file_stream"):
            state.stream(json.loads(body))
        elif status == 200 and "/upload/" in self.path:
            state.files[self.path.partition("/upload/")[2]] = body
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_GET = do_POST
