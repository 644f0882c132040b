"""A model hub on this machine, for tests: metadata, redirects to a second server that plays the storage, ranges, and faults."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

BLOCK = 2**14


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one response for a file's content.

    Attributes:
        status: answer this instead.
        drop_after, stall_after: bytes of the body after which the connection breaks, or nothing comes any more.
        drip: seconds between single bytes, of which the body is sent in.
        corrupt_at: offset in the file of a byte that is changed.
        length: the size that the file is said to have.
        headers: sent with ``status``.
    """

    status: int | None = None
    drop_after: int | None = None
    stall_after: int | None = None
    drip: float | None = None
    corrupt_at: int | None = None
    length: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """A request as it arrived, how many bytes of a file it asked for, and how many were sent."""

    server: str
    path: str
    headers: dict[str, str]
    asked: int = 0
    sent: int = 0


class HubServer:
    """Serves repositories until it is left.

    Attributes:
        requests: all that were made.
        faults: by file path, what happens to the next responses for its content, in order.
        refusal: a status and X-Error-Code that the hub answers everything with.
        gated: by repository, a status and X-Error-Code in place of its files, which are listed all the same.
        token: what the hub demands, if anything.
        ranges: whether content can be asked for in ranges.
        pause: seconds between blocks of a body.
        limit: bytes of content after which all bodies wait, until it is raised.
    """

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.refusal: tuple[int, str] | None = None
        self.gated: dict[str, tuple[int, str]] = {}
        self.metadata_faults: deque[Fault] = deque()
        self.extra_siblings: list[dict[str, Any]] = []
        self.token = ""
        self.ranges = True
        self.pause = 0.0
        self.limit: int | None = None
        self.released = threading.Event()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(name)) for name in ("hub", "storage")]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> Self:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.released.set()
        self.limit = None
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def push(self, repo: str, files: dict[str, bytes], branch: str = "main", commit: str = "") -> str:
        """Adds a commit with these files to a branch; its name is made up, or one that a card pins."""
        commit = commit or hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[repo, commit] = dict(files)
        self.branches[repo, branch] = self.branches[repo, commit] = commit
        return commit

    def content_requests(self, path: str = "") -> list[Request]:
        """Requests that reached the content of a file, or of any file."""
        return [request for request in self.requests if request.sent and request.path.endswith(path)]

    def sent(self, path: str = "") -> int:
        return sum(request.sent for request in self.content_requests(path))

    def _handler(self, name: str) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                request = Request(name, path, {key.lower(): value for key, value in self.headers.items()})
                hub.requests.append(request)
                try:
                    if name == "storage":
                        repo, commit, file = re.fullmatch(r"/([^/]+/[^/]+)/([^/]+)/(.+)", path).groups()
                        self.content(request, file, hub.commits[repo, commit][file])
                    else:
                        self.front(request, path)
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def front(self, request: Request, path: str) -> None:
                if hub.refusal is not None:
                    self.answer(hub.refusal[0], {"X-Error-Code": hub.refusal[1]})
                    return
                if hub.token and request.headers.get("authorization") != f"Bearer {hub.token}":
                    self.answer(401, {"X-Error-Code": "GatedRepo"})
                    return
                listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
                if listing is not None:
                    if hub.metadata_faults:
                        fault = hub.metadata_faults.popleft()
                        if fault.drop_after is None:
                            self.answer(fault.status or 200, fault.headers, b"<html>")
                        else:
                            self.send_response(200)
                            self.send_header("Content-Length", "100000")
                            self.end_headers()
                            self.wfile.write(b"[" * fault.drop_after)
                            self.reset()
                        return
                    self.listing(*listing.groups())
                    return
                tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([0-9a-f]{40})", path)
                if tree is not None:
                    self.tree(*tree.groups())
                    return
                resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path)
                repo, commit, file = resolve.groups() if resolve else ("", "", "")
                data = hub.commits.get((repo, commit), {}).get(file)
                if repo in hub.gated:
                    self.answer(hub.gated[repo][0], {"X-Error-Code": hub.gated[repo][1]})
                elif data is None:
                    self.answer(404, {"X-Error-Code": "EntryNotFound"})
                elif file.endswith(".safetensors"):
                    place = f"{hub.storage}/{repo}/{commit}/{file}?X-Signature=secret"
                    linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
                    self.answer(302, {"Location": place, "X-Repo-Commit": commit, **linked})
                else:
                    self.content(request, file, data, {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(data)}"'})

            def tree(self, repo: str, commit: str) -> None:
                """What Hugging Face's client asks for in place of a listing."""
                entries: list[dict[str, Any]] = []
                for file, data in hub.commits[repo, commit].items():
                    entry: dict[str, Any] = {"type": "file", "path": file, "size": len(data), "oid": git_sha1(data)}
                    if file.endswith(".safetensors"):
                        entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
                    entries.append(entry)
                self.answer(200, {"Content-Type": "application/json"}, json.dumps(entries).encode())

            def listing(self, repo: str, revision: str) -> None:
                commit = hub.branches.get((repo, revision))
                if commit is None:
                    known = any(name == repo for name, _ in hub.branches)
                    self.answer(
                        404 if known else 401, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}
                    )
                    return
                siblings: list[dict[str, Any]] = []
                for file, data in hub.commits[repo, commit].items():
                    entry: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": git_sha1(data)}
                    if file.endswith(".safetensors"):
                        entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
                    siblings.append(entry)
                document = {"id": repo, "sha": commit, "siblings": siblings + hub.extra_siblings}
                self.answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

            def content(self, request: Request, file: str, data: bytes, headers: dict[str, str] | None = None) -> None:
                fault = hub.faults[file].popleft() if hub.faults[file] else Fault()
                if fault.status is not None:
                    self.answer(fault.status, fault.headers)
                    return
                start, end = 0, len(data)
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
                if asked and hub.ranges:
                    start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{fault.length or len(data)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(fault.length or end - start))
                for key, value in (headers or {"ETag": f'"{sha256(data)}"'}).items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                request.asked = end - start
                if fault.corrupt_at is not None:
                    data = data[: fault.corrupt_at] + bytes([data[fault.corrupt_at] ^ 1]) + data[fault.corrupt_at + 1 :]
                stop = end
                for after in (fault.drop_after, fault.stall_after):
                    if after is not None:
                        stop = min(stop, start + after)
                for begin in range(start, stop) if fault.drip is not None else ():
                    self.wfile.write(data[begin : begin + 1])
                    request.sent += 1
                    time.sleep(fault.drip)
                for begin in range(start, stop, BLOCK) if fault.drip is None else ():
                    while hub.limit is not None and hub.sent() >= hub.limit:
                        time.sleep(0.002)
                    block = data[begin : min(begin + BLOCK, stop)]
                    self.wfile.write(block)
                    request.sent += len(block)
                    if hub.pause:
                        time.sleep(hub.pause)
                if fault.stall_after is not None:
                    hub.released.wait(60)
                if stop < end:
                    self.reset()

            def reset(self) -> None:
                """Breaks the connection as a router does that forgot it."""
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

        return Handler
