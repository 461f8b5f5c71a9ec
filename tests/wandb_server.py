"""As much of W&B's server as a run and `wandb sync` need, on 127.0.0.1; and servers that are ill in several ways."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ILLNESSES = ("hangs", "answers 500", "closes the connection", "opens no run", "takes no uploads")
"""The last two hang when it comes to that, and answer everything else."""
HANGING_S = 600
KEY = "0123456789abcdef" * 2 + "deadbeef"
"""A key such as W&B gives out."""


@dataclass
class UploadedRun:
    """What a run has on the server.

    Attributes:
        history: the lines of its history, at the places where the uploads put them.
        files: names of uploaded files.
    """

    about: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    exit_code: int | None = None
    preempting: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.history[line] for line in sorted(self.history)]


class WandbServer(ThreadingHTTPServer):
    """Keeps what it is sent in `runs`, by their ids."""

    daemon_threads = True

    def __init__(self, illness: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.illness = illness
        self.runs: dict[str, UploadedRun] = {}
        self.artifact_files: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of a test's business."""

    def run(self, name: str) -> UploadedRun:
        return self.runs.setdefault(name, UploadedRun())

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that answers a query; empty for those that nothing depends on."""
        artifact = {"id": "QQ==", "digest": "d", "state": "PENDING", "aliases": [], "versionIndex": 0}
        match operation:
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": self._bucket(variables), "inserted": True}}
            case "RunResumeStatus":
                return {"model": _PROJECT | {"bucket": self._resumable(variables["name"])}}
            case "Viewer":
                return {
                    "viewer": {"id": "v", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}
                }
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateRunFiles":
                files = [
                    {"name": name, "uploadUrl": f"{self.address}/storage/{variables['run']}/{name}"}
                    for name in variables["files"]
                ]
                return {"createRunFiles": {"runID": "cg==", "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                sequence = {"id": "cw==", "latestArtifact": None}
                return {"createArtifact": {"artifact": artifact | {"artifactSequence": sequence}}}
            case "CreateArtifactManifest":
                url = f"{self.address}/storage/artifact/manifest"
                file = {"id": "Zg==", "name": "m", "displayName": "m", "uploadUrl": url, "uploadHeaders": []}
                return {"createArtifactManifest": {"artifactManifest": {"id": "bQ==", "file": file}}}
            case "CreateArtifactFiles":
                edges = [{"node": self._artifact_file(spec)} for spec in variables["input"]["artifactFiles"]]
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": artifact}}
        return {}

    def _bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.run(variables["name"])
        run.about |= {key: value for key, value in variables.items() if value is not None}
        shown = {"displayName": run.about.get("displayName"), "config": run.about.get("config", "{}")}
        return shown | {
            "id": "Yg==",
            "name": variables["name"],
            "sweepName": None,
            "project": _PROJECT,
            "historyLineCount": len(run.history),
        }

    def _resumable(self, name: str) -> dict[str, Any] | None:
        """What a resumed run asks for, None for a run that is new."""
        if name not in self.runs:
            return None
        run = self.runs[name]
        return {
            "id": "Yg==",
            "name": name,
            "sweepName": None,
            "tags": [],
            "config": run.about.get("config", "{}"),
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.about.get("displayName"),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "eventsTail": "[]",
            "wandbConfig": '{"t": 1}',
        }

    def _artifact_file(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.artifact_files.add(spec["name"])
        url = f"{self.address}/storage/artifact/{spec['name']}"
        names = {"name": spec["name"], "displayName": spec["name"], "storagePath": None}
        return names | {
            "id": "Zg==",
            "uploadUrl": url,
            "uploadHeaders": [],
            "artifact": {"id": "QQ=="},
            "uploadMultipartUrls": None,
        }

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """Takes in what the file stream of a run brings."""
        run = self.run(name)
        for file, part in sent.get("files", {}).items():
            if file == "wandb-history.jsonl":
                for i, line in enumerate(part["content"]):
                    run.history[part["offset"] + i] = json.loads(line)
            elif file == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
        run.preempting = run.preempting or bool(sent.get("preempting"))


_PROJECT = {"id": "cA==", "name": "cifarscale", "entity": {"id": "ZQ==", "name": "team"}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})
        _, _, run, name = self.path.split("/", 3)
        if run != "artifact":
            self.server.run(run).files.add(name.partition("?")[0])

    def do_POST(self) -> None:
        body = self._body()
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if self.path == "/graphql":
            if self.server.illness == "opens no run":
                time.sleep(HANGING_S)
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            data = self.server.graphql(operation[1] if operation else "", asked.get("variables") or {})
            self._answer({"data": data})
        elif stream:
            if self.server.illness == "takes no uploads":
                time.sleep(HANGING_S)
            self.server.stream(stream[1], json.loads(body))
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(self, value: Any) -> None:
        illness = self.server.illness
        if illness == "hangs":
            time.sleep(HANGING_S)
        if illness == "closes the connection":
            self.close_connection = True
            self.connection.close()
            return
        content = json.dumps(value).encode()
        self.send_response(500 if illness == "answers 500" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(illness: str = "") -> Iterator[WandbServer]:
    """A server while the block runs."""
    server = WandbServer(illness)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
