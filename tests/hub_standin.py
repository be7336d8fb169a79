"""A Hub on this machine: models and datasets from folders, over the protocol that huggingface_hub speaks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "refs/convert/parquet", COMMIT)


class Handler(BaseHTTPRequestHandler):
    """Answers from the folders that its server was given."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        if parts[:2] == ["api", "datasets"]:
            self.api("/".join(parts[2:4]), parts[4:], body)
        elif parts[0] == "datasets":
            self.file(self.server.datasets.get("/".join(parts[1:3])), parts[3:])
        else:
            self.file(self.server.models.get("/".join(parts[:2])), parts[2:])

    def api(self, name: str, rest: list[str], body: bytes) -> None:
        folder = self.server.datasets.get(name)
        revision = rest[1] if len(rest) > 1 else "main"
        if folder is None:
            return self.reply(404, error="RepoNotFound")
        if revision not in REVISIONS:
            return self.reply(404, error="RevisionNotFound")
        paths = sorted(path for path in folder.rglob("*"))
        entries = {path.relative_to(folder).as_posix(): entry(path, folder) for path in paths}
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name, about in entries.items() if about["type"] == "file"]
            return self.send({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        if rest[0] == "tree":
            below, deep = "/".join(rest[2:]), "recursive=true" in self.path.lower()
            inside = [about for name, about in entries.items() if is_below(name, below, deep)]
            return self.send(inside) if inside else self.reply(404, error="EntryNotFound")
        if rest[0] == "paths-info":
            return self.send([entries[name] for name in json.loads(body)["paths"] if name in entries])
        return self.reply(404, error="EntryNotFound")

    def file(self, folder: Path | None, rest: list[str]) -> None:
        if folder is None or rest[0] != "resolve":
            return self.reply(404, error="RepoNotFound")
        path = folder / "/".join(rest[2:])
        if rest[1] not in REVISIONS or not path.is_file():
            return self.reply(404, error="EntryNotFound")
        content, start, end = path.read_bytes(), 0, path.stat().st_size - 1
        wanted = self.headers.get("Range")
        if wanted and self.command == "GET":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        headers = {"ETag": f'"{digest(path)}"', "Accept-Ranges": "bytes"}
        headers |= {"Content-Range": f"bytes {start}-{end}/{len(content)}"} if wanted else {}
        return self.reply(206 if wanted else 200, content[start : end + 1], headers)

    def send(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, error: str = "") -> None:
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content))} | (headers or {})
        for name, value in (headers | ({"X-Error-Code": error} if error else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *ignored: object) -> None:
        pass


class Hub(ThreadingHTTPServer):
    """A server with repositories, and the requests that it got."""

    def __init__(self, models: dict[str, Path], datasets: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.datasets = models, datasets
        self.requests: list[str] = []


@contextmanager
def serve(models: dict[str, Path], datasets: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """The address of a Hub with these repositories, each at one commit; and the requests that it got."""
    server = Hub(models, datasets)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests
    finally:
        server.shutdown()
        server.server_close()


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
