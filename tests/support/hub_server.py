"""A Hub on this machine: the part of the Hub's HTTP API that huggingface_hub 2.4 uses for models, and its faults.

    with HubServer() as hub:
        hub.add("user/adapter", folder)
        hub.fail("adapter_model.safetensors", status=429, headers={"Retry-After": "0"})
        subprocess.run(command, env=hub.environment(home=tmp_path))
        hub.sent("adapter_model.safetensors")

No package on the index provides one: `hf-local-hub` 3.0 is a wrapper without its binary, `olah` 0.5 mirrors the real
Hub and takes no uploads, and neither fails on demand. Weights (*.safetensors) are large files: they are redirected to
another origin, as the Hub does to its CDN, which supports ranges and must never see a token.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

from tests.support.hub_api import HubHandler


@dataclass
class Repo:
    """Commits of one model: `commits[sha][path]` is the content, `refs[branch]` a sha; the newest of all is last."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: bool = False
    allowed: bool = True  # whether the owner of TOKEN may read a gated one

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        listing = "".join(f"{path}\0{hashlib.sha256(files[path]).hexdigest()}\n" for path in sorted(files))
        sha = hashlib.sha1(f"{self.refs.get(branch)}\n{listing}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha


@dataclass
class Fault:
    """What goes wrong with requests whose path ends in `path`, the next `times` times."""

    path: str
    method: str = "GET"
    times: int = 1
    status: int | None = None  # answer with this and nothing else
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # close the connection after so many bytes of the body
    replace: Callable[[bytes], bytes] | None = None  # other content than the checksum promises


@dataclass
class Request:
    method: str
    path: str
    status: int
    sent: int  # bytes of the body that went out
    received: int  # bytes of the body that came in
    range: str | None
    token: str | None
    host: str


class HubServer:
    """A context manager; what was asked of it is in `requests`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}  # large files by their SHA-256
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        # two names of one machine are two origins to a client
        self.endpoint, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def __enter__(self) -> HubServer:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """Forget all that was stored, asked and to fail."""
        for store in (self.repos, self.uploads, self.faults, self.requests):
            store.clear()

    def add(self, repo_id: str, folder: str | Path, branch: str = "main", **attributes) -> str:
        """A commit of the files of a folder; returns its sha. `attributes` are those of [`Repo`]."""
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos.get(repo_id) or self.create(repo_id, **attributes)
        return repo.commit(branch, files)

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return repo.commits[repo.refs[branch]]

    def fail(self, path: str, **fault) -> None:
        self.faults.append(Fault(path, **fault))

    def sent(self, path: str = "", method: str = "GET") -> int:
        """Bytes sent for all files whose path ends in `path`."""
        return sum(request.sent for request in self.asked(path, method))

    def asked(self, path: str = "", method: str = "GET") -> list[Request]:
        return [found for found in self.requests if found.method == method and found.path.endswith(path)]

    def environment(self, home: str | Path, **variables: str) -> dict[str, str]:
        """The environment of a process whose Hub this is, with cache and settings in the folder `home`."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        mine = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**own, **mine, **quiet, **variables}

    def create(self, repo_id: str, **attributes) -> Repo:
        self.repos[repo_id] = Repo({}, {}, **attributes)
        return self.repos[repo_id]

    def hold(self, content: bytes) -> str:
        """Keep a large file; returns its SHA-256."""
        oid = hashlib.sha256(content).hexdigest()
        self.uploads[oid] = content
        return oid

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and path.endswith(fault.path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, *request) -> None:
        with self.lock:
            self.requests.append(Request(*request))
