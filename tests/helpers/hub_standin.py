"""A Hub on this machine: repositories of models and datasets, over the protocol that huggingface_hub speaks."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_standin"
LFS = ".git/info/lfs/objects/batch"


@dataclass
class Repository:
    """Its commits, oldest first: a folder each."""

    commits: dict[str, Path]
    private: bool = False

    def at(self, revision: str) -> tuple[str, Path] | None:
        """Commit and folder of a revision; None where there is none."""
        if revision in ("main", "refs/convert/parquet"):
            revision = list(self.commits)[-1]
        return (revision, self.commits[revision]) if revision in self.commits else None


class Handler(BaseHTTPRequestHandler):
    """Answers from the repositories that its server was given, and takes what is pushed."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        if parts[0] == "upload":
            return self.take_blob(parts[1])
        body = self.body()
        if self.command == "POST" and parts[:2] in (["api", "repos"], ["api", "validate-yaml"]):
            return self.create(json.loads(body)) if parts[1] == "repos" else self.validate(json.loads(body)["content"])
        if self.path.endswith(LFS):
            return self.offer_blobs(json.loads(body)["objects"])
        if parts[0] == "api":
            return self.api(self.found(parts[1], "/".join(parts[2:4])), "/".join(parts[2:4]), parts[4:], body)
        kind, rest = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        return self.file(self.found(kind, "/".join(rest[:2])), rest[2:])

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def found(self, kind: str, name: str) -> Repository | None:
        repository = getattr(self.server, kind, {}).get(name)
        return None if repository is None or (repository.private and not self.known()) else repository

    def create(self, wanted: dict[str, Any]) -> None:
        if not self.known():
            return self.reply(401, b'{"error": "Invalid username or password."}')
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if name in self.server.models:
            return self.reply(409, json.dumps({"url": self.server.url(name)}).encode())
        folder = self.server.folder / name.replace("/", "--") / "first"
        folder.mkdir(parents=True)
        (folder / ".gitattributes").touch()
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.server.models[name] = Repository({"f" * 40: folder}, private)
        return self.send({"url": self.server.url(name), "name": name, "id": name})

    def validate(self, card: str) -> None:
        metadata = yaml.safe_load(card.split("---\n")[1])
        results = [result for model in metadata.get("model-index", []) for result in model["results"]]
        wrong = [result for result in results if not {"task", "dataset", "metrics"} <= result.keys()]
        relation = metadata.get("base_model_relation", "adapter")
        ok = not wrong and relation in ("adapter", "finetune") and metadata["pipeline_tag"] == "audio-classification"
        self.send({"errors": [] if ok else [{"message": "invalid metadata"}], "warnings": []})

    def offer_blobs(self, objects: list[dict[str, Any]]) -> None:
        address = f"http://127.0.0.1:{self.server.server_port}/upload/"
        offers = [one | {"actions": {"upload": {"href": address + one["oid"]}}} for one in objects]
        self.send({"transfer": "basic", "objects": offers})

    def take_blob(self, oid: str) -> None:
        size = int(self.headers["Content-Length"])
        if self.server.drops:
            self.server.drops -= 1
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        content = self.rfile.read(size)
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.blobs[oid] = content
        self.reply(200)

    def api(self, repository: Repository | None, name: str, rest: list[str], body: bytes) -> None:
        if repository is None:
            return self.reply(404 if self.known() else 401, error="RepoNotFound")
        if rest[:1] == ["preupload"]:
            return self.choose_modes(json.loads(body)["files"])
        if rest[:1] == ["commit"]:
            return self.commit(repository, name, [json.loads(line) for line in body.splitlines()])
        return self.look(repository, name, rest, body)

    def choose_modes(self, files: list[dict[str, Any]]) -> None:
        modes = {True: "lfs", False: "regular"}
        about = {"shouldIgnore": False, "oid": None}
        each = [about | {"path": f["path"], "uploadMode": modes[f["path"].endswith("safetensors")]} for f in files]
        self.send({"files": each})

    def look(self, repository: Repository, name: str, rest: list[str], body: bytes) -> None:
        at = repository.at(rest[1] if len(rest) > 1 else "main")
        if at is None:
            return self.reply(404, error="RevisionNotFound")
        sha, folder = at
        paths = sorted(path for path in folder.rglob("*"))
        entries = {path.relative_to(folder).as_posix(): entry(path, folder) for path in paths}
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name, about in entries.items() if about["type"] == "file"]
            about = {"id": name, "sha": sha, "private": repository.private, "tags": [], "siblings": siblings}
            return self.send(about)
        if rest[0] == "tree":
            below, deep = "/".join(rest[2:]), "recursive=true" in self.path.lower()
            inside = [about for name, about in entries.items() if is_below(name, below, deep)]
            return self.send(inside) if inside else self.reply(404, error="EntryNotFound")
        if rest[0] == "paths-info":
            return self.send([entries[name] for name in json.loads(body)["paths"] if name in entries])
        return self.reply(404, error="EntryNotFound")

    def commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> None:
        if not self.known():
            return self.reply(403, b'{"error": "Forbidden"}')
        sha = hashlib.sha1(json.dumps([len(repository.commits), lines]).encode()).hexdigest()
        folder = self.server.folder / name.replace("/", "--") / sha
        shutil.copytree(list(repository.commits.values())[-1], folder)
        for line in lines:
            about = line["value"]
            if line["key"] == "file":
                (folder / about["path"]).write_bytes(base64.b64decode(about["content"]))
            elif line["key"] == "lfsFile":
                (folder / about["path"]).write_bytes(self.server.blobs[about["oid"]])
            elif line["key"] == "deletedFile":
                (folder / about["path"]).unlink()
        repository.commits[sha] = folder
        return self.send({"commitUrl": f"{self.server.url(name)}/commit/{sha}", "commitOid": sha})

    def file(self, repository: Repository | None, rest: list[str]) -> None:
        at = repository.at(rest[1]) if repository and rest[0] == "resolve" else None
        if repository is None or rest[0] != "resolve":
            return self.reply(404, error="RepoNotFound")
        path = at[1] / "/".join(rest[2:]) if at else None
        if at is None or path is None or not path.is_file():
            return self.reply(404, error="EntryNotFound")
        content, start, end = path.read_bytes(), 0, path.stat().st_size - 1
        wanted = self.headers.get("Range")
        if wanted and self.command == "GET":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        headers = {"ETag": f'"{digest(path)}"', "Accept-Ranges": "bytes", "X-Repo-Commit": at[0]}
        headers |= {"Content-Range": f"bytes {start}-{end}/{len(content)}"} if wanted else {}
        return self.reply(206 if wanted else 200, content[start : end + 1], headers)

    def send(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, error: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content))} | (headers or {})
        for name, value in (headers | ({"X-Error-Code": error} if error else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *ignored: object) -> None:
        pass


class Hub(ThreadingHTTPServer):
    """A server with repositories.

    Attributes:
        folder: Where pushed commits are kept.
        requests: That it got.
        drops: So many of the next uploads of large files lose their connection half-way.
    """

    def __init__(self, models: dict[str, Path], datasets: dict[str, Path], folder: Path | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = {name: Repository({COMMIT: place}) for name, place in models.items()}
        self.datasets = {name: Repository({COMMIT: place}) for name, place in datasets.items()}
        self.folder = folder or Path()
        self.requests: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.drops = 0

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}".rstrip("/")


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """A Hub that answers."""
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


@contextmanager
def serve(models: dict[str, Path], datasets: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """The address of a Hub with these repositories, each at one commit; and the requests that it got."""
    with running(Hub(models, datasets)) as hub:
        yield hub.url(), hub.requests


def entry(path: Path, folder: Path) -> dict[str, Any]:
    """A file or folder as the Hub lists it."""
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": digest(path)[:40], "size": path.stat().st_size}


def is_below(name: str, folder: str, deep: bool) -> bool:
    parent = name.rpartition("/")[0]
    return parent == folder or (deep and (not folder or parent.startswith(f"{folder}/")))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
