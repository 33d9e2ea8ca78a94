"""A server on loopback that speaks as much of W&B's protocol as a run and a dashboard need."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VIEWER = {"id": "dQ==", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
FILES = "http://{}/upload/{}"


class WandbServer:
    """``with WandbServer() as server``: `upserts` are the runs' properties as sent, `history` their rows, `rows` and
    `summaries` those of each run, `exits` exit codes, `files` files by name, `artifacts` what a table is stored as,
    `views` the saved workspaces and reports.

    trouble: "silent" never answers, 500 answers everything with that status, "readonly" saves no view."""

    def __init__(self, trouble: str | int = "") -> None:
        self.trouble = trouble
        self.views: list[dict] = []
        self.kept: dict[str, dict] = {}  # views by id, as they were saved last
        self.rows: dict[str, list[dict]] = {}
        self.summaries: dict[str, dict] = {}
        self.upserts: list[dict] = []
        self.history: list[dict] = []
        self.exits: list[int] = []
        self.artifacts: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.runs: dict[str, str] = {}  # id → config, as JSON
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
        if (found := self.dashboard(query, given)) is not None:
            return found
        if "upsertBucket" in query:
            self.upserts.append(given)
            new = given["name"] not in self.runs
            self.runs[given["name"]] = given.get("config") or self.runs.get(given["name"], "{}")
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
            rows = self.rows.get(given["name"], [])
            more = {"summaryMetrics": "{}", "logLineCount": 0, "historyLineCount": len(rows),
                    "eventsLineCount": 0, "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
                    "eventsTail": "[]", "tags": [], "notes": "", "wandbConfig": '{"t": 1}',
                    "config": self.runs[given["name"]]}  # fmt: skip
            entity, bucket = {"id": "ZQ==", "name": "me"}, self.bucket(given["name"]) | more
            return {"model": {"id": "cA==", "name": "p", "entity": entity, "bucket": bucket}}
        if "viewer" in query:
            return {"viewer": VIEWER}
        return {"model": None, "project": None, "serverInfo": {"features": []}}

    def dashboard(self, query: str, given: dict) -> dict | None:
        """The answer to what wandb-workspaces asks when it saves, and when it reads what was saved."""
        if "upsertView" in query:
            self.views.append(given)
            number = given.get("id") or f"Vmlldzo{len(self.kept) + 1}"
            self.kept[number] = given
            project = {"id": "cA==", "name": given["projectName"], "entityName": given["entityName"]}
            view = {key: given[key] for key in ("name", "displayName", "description", "type", "spec")}
            more = {"id": number, "project": project, "updatedAt": "2026-01-01T00:00:00Z"}
            return {"upsertView": {"view": view | more, "inserted": True}}
        if "allViews" in query:
            found = [view | {"id": number} for number, view in self.kept.items() if view["name"] == given["viewName"]]
            return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}
        if "SpecificReport" in query:
            view = self.kept.get(given["reportId"])
            project = view and {"id": "cA==", "name": view["projectName"], "entityName": view["entityName"]}
            return {"view": view and view | {"id": given["reportId"], "project": project}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "cA==", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}
        if "GetProjects" in query:
            project = {"id": "cA==", "name": "tid", "entityName": "me", "createdAt": "2026-01-01T00:00:00Z",
                       "isBenchmark": False, "user": None}  # fmt: skip
            return {
                "models": {"edges": [{"node": project}], "pageInfo": {"endCursor": None, "hasNextPage": False}}
            }
        return None

    def bucket(self, name: str) -> dict:
        return {"id": "cg==", "name": name, "displayName": name, "description": "", "config": "{}",
                "sweepName": None, "historyLineCount": 0}  # fmt: skip

    def stream(self, run: str, sent: dict) -> None:
        for name, part in sent.get("files", {}).items():
            if name == "wandb-history.jsonl":
                rows = [json.loads(line) for line in part["content"]]
                self.history += rows
                mine = self.rows.setdefault(run, [])
                mine[part["offset"] :] = rows
            elif name == "wandb-summary.json":
                self.summaries[run] = json.loads(part["content"][-1])
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
        answer, status = {}, state.trouble if isinstance(state.trouble, int) else 200
        if status == 200 and self.path == "/graphql":
            asked = json.loads(body)
            if state.trouble == "readonly" and "upsertView" in asked["query"]:
                answer = {"data": None, "errors": [{"message": "permission denied", "path": ["upsertView"]}]}
            else:
                answer = {"data": state.graphql(asked["query"], asked.get("variables") or {})}
        elif status == 200 and self.path.endswith("/file_stream"):
            state.stream(self.path.split("/")[-2], json.loads(body))
        elif status == 200 and "/upload/" in self.path:
            state.files[self.path.partition("/upload/")[2]] = body
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_GET = do_POST
