"""A stand-in for the hub: as much of its HTTP interface as publishing and loading a model takes.

It keeps what it is sent in memory, as the hub does: content by its sha256, commits as lists of
files, tags. `huggingface_hub` itself talks to it, through HF_ENDPOINT.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=lambda: {"0" * 40: {}})
    """By commit: the sha256 of each file."""
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        return self.tags.get(
            revision, revision if revision in self.commits else [*self.commits][-1]
        )


@dataclass
class Hub:
    """What lies on the hub, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stop_before: Callable[[str], bool] = lambda line: False
    """Breaks the connection instead of answering; takes ``METHOD path``."""


@contextmanager
def hub() -> Iterator[Hub]:
    there = Hub()

    class Handler(_Handler):
        hub = there

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        line = f"{self.command} {path}"
        self.hub.asked.append(line)
        if self.hub.stop_before(line):
            self.close_connection = True
            self.connection.close()
            return
        for method, pattern, answer in _ROUTES:
            if method == self.command.replace("HEAD", "GET") and (
                found := re.fullmatch(pattern, path)
            ):
                getattr(self, answer)(body, *found.groups())
                return
        self._json({"error": f"no {line}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *_: Any) -> None: ...

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value: Any, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _bytes(self, text: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(text))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if name in self.hub.repositories else 200
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories.setdefault(name, Repository(bool(private)))
        self._json({"url": f"{self.hub.url}/{name}", "name": name}, status)

    def validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def refs(self, body: bytes, name: str) -> None:
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit}
            for tag, commit in self.hub.repositories[name].tags.items()
        ]
        self._json({"branches": [], "converts": [], "tags": tags})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        at = self.hub.repositories[name]
        held = at.commits[at.resolve("main")]
        self._json({
            "files": [
                {
                    "path": one["path"], "shouldIgnore": False, "oid": held.get(one["path"]),
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                }
                for one in json.loads(body)["files"]
            ]
        })  # fmt: skip

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            there = one["oid"] in self.hub.blobs
            upload = {"upload": {"href": f"{self.hub.url}/blob/{one['oid']}"}}
            objects.append({**one, **({} if there else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self._bytes(b"")

    def commit(self, body: bytes, name: str, revision: str) -> None:
        at = self.hub.repositories[name]
        files = dict(at.commits[at.resolve("main")])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                oid = hashlib.sha256(content).hexdigest()
                self.hub.blobs[oid] = content
                files[value["path"]] = oid
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.hub.blobs
                files[value["path"]] = value["oid"]
        oid = hashlib.sha1(json.dumps([files, len(at.commits)]).encode()).hexdigest()
        at.commits[oid] = files
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def tag(self, body: bytes, name: str, revision: str) -> None:
        at = self.hub.repositories[name]
        at.tags[json.loads(body)["tag"]] = at.resolve(revision)
        self._json({})

    def model(self, body: bytes, name: str, revision: str) -> None:
        at = self.hub.repositories.get(name)
        if at is None or revision not in {"main", *at.tags, *at.commits}:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if at else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        commit = at.resolve(revision)
        siblings = [{"rfilename": path} for path in at.commits[commit]]
        self._json({"id": name, "sha": commit, "siblings": siblings, "private": at.private})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        at = self.hub.repositories[name]
        files = at.commits[at.resolve(revision)]
        self._json([
            {"type": "file", "path": path, "oid": oid, "size": len(self.hub.blobs[oid])}
            for path, oid in files.items()
        ])  # fmt: skip

    def file(self, body: bytes, name: str, revision: str, path: str) -> None:
        at = self.hub.repositories[name]
        commit = at.resolve(revision)
        oid = at.commits[commit].get(path)
        if oid is None:
            self._bytes(b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"'}
        self._bytes(self.hub.blobs[oid], headers=headers)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{_NAME}/refs", "refs"),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", "preupload"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/blob/(\w+)", "put"),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", "commit"),
    ("POST", rf"/api/models/{_NAME}/tag/(.+)", "tag"),
    ("GET", rf"/api/models/{_NAME}/revision/(.+)", "model"),
    ("GET", rf"/api/models/{_NAME}/tree/(.+)", "tree"),
    ("GET", rf"/{_NAME}/resolve/([^/]+)/(.+)", "file"),
)
