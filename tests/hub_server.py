"""A server on the loopback that answers as the hub does, with the faults that it is told to have."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "c" * 40


@dataclass
class Hub:
    """One repository.

    Args:
        files: paths on this machine by name in the repository.
        fault: what goes wrong: "gated", "absent", "revision", "no ranges", "other range", "short", "no length",
            "not json", "503", "503 behind" a redirect, "no size" that a file can have, "another size" at the second look, "not
            a name", "listed twice", "stalls" at the first file of weights and refuses the others, or nothing.
        token: who does not show it is told 401; None asks for none.
        redirects: whether files are sent by another address, as the hub sends large ones.
    """

    files: dict[str, Path] = field(default_factory=dict)
    fault: str = ""
    token: str | None = None
    redirects: bool = False
    sent_bytes: int = 0
    requests: list[str] = field(default_factory=list)
    url: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, at ``hub.url``, for a while."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(hub, self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stalled.set()
        server.shutdown()
        server.server_close()
        thread.join()


def answer(hub: Hub, request: BaseHTTPRequestHandler) -> None:
    path = unquote(request.path.partition("?")[0])
    hub.requests.append(path)
    if path.startswith("/blob/") and hub.fault == "503 behind":
        return refuse(request, 503, "")
    if path.startswith("/blob/"):
        return send_file(hub, request, hub.files[path.removeprefix("/blob/")])
    if hub.token is not None and request.headers.get("Authorization") != f"Bearer {hub.token}":
        return refuse(request, 401, "RepoNotFound")
    faults = {
        "gated": (403, "GatedRepo"),
        "absent": (404, "RepoNotFound"),
        "revision": (404, "RevisionNotFound"),
    }
    if hub.fault in faults:
        return refuse(request, *faults[hub.fault])
    if hub.fault == "503":
        return refuse(request, 503, "")
    if path.startswith("/api/models/"):
        names = [*hub.files, *hub.files] if hub.fault == "listed twice" else hub.files
        siblings = [{"rfilename": 5 if hub.fault == "not a name" else name} for name in names]
        told = {"id": "org/name", "sha": COMMIT, "siblings": siblings}
        return send(request, 200, b"<html>" if hub.fault == "not json" else json.dumps(told).encode())
    found = re.fullmatch(rf"/org/name/resolve/{COMMIT}/(.+)", path)
    if found is None or found[1] not in hub.files:
        return refuse(request, 404, "EntryNotFound")
    if hub.redirects and not found[1].endswith(".json"):
        return send(request, 302, b"", Location=f"/blob/{found[1]}?Signature=secret")
    return send_file(hub, request, hub.files[found[1]])


def send_file(hub: Hub, request: BaseHTTPRequestHandler, path: Path) -> None:
    total, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
    if asked is None or hub.fault in ("no ranges", "no length"):
        start, end, status = 0, total, 200
    else:
        start, end, status = int(asked[1]), min(int(asked[2]) + 1, total), 206
    if start >= total and status == 206:
        send(request, 416, b"", **{"Content-Range": f"bytes */{total}"})
        return
    said = start + 1 if hub.fault == "other range" else start
    size = "9" * 30 if hub.fault == "no size" else str(total + (hub.fault == "another size" and start > 0))
    more = {"Content-Range": f"bytes {said}-{end - 1}/{size}"} if status == 206 else {}
    if hub.fault == "stalls" and path.name.endswith(".safetensors"):
        if "00001" not in path.name:
            refuse(request, 503, "")
            return
        hub.stalled.wait()
    with path.open("rb") as file:
        file.seek(start)
        if hub.fault == "short":
            send(request, status, file.read((end - start) // 2), **more)
            return
        request.send_response(status)
        for name, value in more.items():
            request.send_header(name, value)
        if hub.fault == "no length":
            request.send_header("Connection", "close")
        else:
            request.send_header("Content-Length", str(end - start))
        request.end_headers()
        left = end - start
        try:
            while left > 0:
                chunk = file.read(min(left, 2**16))
                request.wfile.write(chunk)
                hub.sent_bytes += len(chunk)
                left -= len(chunk)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True  # who asks may stop reading
    if hub.fault == "no length":
        request.close_connection = True


def refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    send(request, status, b"{}", **({"X-Error-Code": code} if code else {}))


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)
