"""What the loopback Hub of hub_server.py answers to each request."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results


if TYPE_CHECKING:
    from tests.support.hub_server import HubServer

TOKEN = "hf_loopbackloopbackloopbackloopback00"  # the one token that this Hub knows, of the user `user`
LARGE = ".safetensors"  # what is stored as a large file


class Refusal(Exception):
    """Status, the Hub's error code if it has one, its message, and further headers."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str):
        self.reply = status, {"error": message}, {"X-Error-Message": message, **headers}
        if code:
            self.reply[2]["X-Error-Code"] = code


class HubHandler(BaseHTTPRequestHandler):
    """One request. The methods named in ROUTES return status, body and, if there are any, headers."""

    hub: HubServer  # of whom this is the handler
    protocol_version = "HTTP/1.1"
    rbufsize = 1 << 16

    def do_HEAD(self):
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def log_message(self, *arguments):
        pass

    # (method, pattern of the path, method of this class that answers)
    ROUTES = (
        ("GET|HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET|HEAD", r"/cdn/(?P<oid>[0-9a-f]{64})/.+", "content"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<rev>[^/]+))?", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<rev>[^/]+)", "tree"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)", "branch"),
        ("POST", r"/api/(models|(?P<kind>spaces))/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})", "upload"),
        ("POST", r"/upload/(?P<oid>[0-9a-f]{64})/verify", "verify"),
        ("POST", r"/api/(models|(?P<kind>spaces))/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", "commit"),
    )

    def answer(self):
        url = urlsplit(self.path)
        self.url_path = unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.fault = self.hub.next_fault(self.command, self.url_path)
        if self.fault and self.fault.status:
            return self.reply(self.fault.status, b"", self.fault.headers)
        for methods, pattern, name in self.ROUTES:
            # the revision may hold an encoded slash, so match before decoding
            found = re.fullmatch(pattern, url.path)
            if found and self.command in methods.split("|"):
                arguments = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                writes = self.command == "POST" and name != "tree" or self.command == "PUT"
                try:
                    if writes and name not in ("upload", "validate") and self.token != TOKEN:
                        raise Refusal(401, None, "Invalid username or password.")
                    with self.hub.lock:
                        reply = getattr(self, name)(**arguments)
                except Refusal as refusal:
                    reply = refusal.reply
                return self.reply(*reply)
        self.reply(404, {"error": f"{self.command} {url.path} is not part of this Hub."})

    def reply(self, status: int, body: bytes | dict | list, headers: dict[str, str] | None = None):
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = b"" if self.command == "HEAD" else body
        if self.fault and self.fault.cut_after is not None:
            sent, self.close_connection = body[: self.fault.cut_after], True
        # counted first: whoever has the last byte may look at once
        host = (self.headers.get("Host") or "").partition(":")[0]
        asked = self.headers.get("Range")
        self.hub.count(self.command, self.url_path, status, len(sent), len(self.body), asked, self.token, host)
        self.wfile.write(sent)

    def find(self, repo: str, rev: str = "main") -> tuple[str, dict[str, bytes]]:
        """Sha and files of a revision."""
        found = self.hub.repos.get(repo)
        if found is None:
            # the Hub does not tell strangers what does not exist; its 401 has no code, but the library takes that for
            # RepoNotFound only over https
            status, message = (404, "Repository not found") if self.token else (401, "Invalid username or password.")
            raise Refusal(status, "RepoNotFound", message)
        if found.gated and self.token != TOKEN:
            raise Refusal(401, "GatedRepo", f"Access to model {repo} is restricted. Please log in.")
        if found.gated and not found.allowed:
            raise Refusal(403, "GatedRepo", f"Access to model {repo} is restricted and you are not in the list.")
        sha = found.refs.get(rev, rev)
        if sha not in found.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return sha, found.commits[sha]

    def resolve(self, repo: str, rev: str, path: str):
        sha, files = self.find(repo, rev)
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        body, headers = files[path], {"X-Repo-Commit": sha}
        if not path.endswith(LARGE):
            return 200, body, {"ETag": f'"{git_oid(body)}"', **headers}
        oid = self.hub.hold(body)
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(body)), "ETag": f'"{git_oid(pointer(body))}"'}
        return 302, b"", {"Location": f"{self.hub.cdn}/cdn/{oid}/{repo}/{path}", **linked, **headers}

    def content(self, oid: str):
        body, status, headers = self.hub.uploads[oid], 200, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if self.fault and self.fault.replace:
            body = self.fault.replace(body)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
            if first >= len(body):
                return 416, b"", {"Content-Range": f"bytes */{len(body)}"}
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[first : last + 1], 206
        return status, body, headers

    def info(self, repo: str, rev: str = "main"):
        sha, files = self.find(repo, rev)
        siblings = [{"rfilename": path, "size": len(files[path])} for path in sorted(files)]
        return 200, {"id": repo, "modelId": repo, "sha": sha, "private": False, "siblings": siblings, "tags": []}

    def tree(self, repo: str, rev: str):
        _, files = self.find(repo, rev)
        chosen = parse_qs(self.body.decode())["paths"] if self.body else files
        return 200, [entry(path, files[path]) for path in sorted(chosen) if path in files]

    def whoami(self):
        if self.token != TOKEN:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return 200, {"type": "user", "name": "user", "auth": {"type": "access_token"}, "orgs": []}

    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if asked.get("type") == "space":
            if asked.get("sdk") not in ("gradio", "docker", "static"):
                return 400, {"error": "A Space needs an sdk."}
            repo = f"spaces/{repo}"
        reply = {"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo}
        if repo in self.hub.repos:
            return 409, {"error": "You already created this repo", **reply}
        self.hub.create(repo).commit(
            "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        )
        return 200, reply

    def validate(self):
        """As strict as the Hub where it matters here: the metadata parse, the library can read the model-index."""
        text = json.loads(self.body)["content"]
        try:
            metadata = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
            if "model-index" in metadata:
                model_index_to_eval_results(metadata["model-index"])
        except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
            return 400, {"errors": [{"message": f"{type(error).__name__}: {error}"}], "warnings": []}
        empty = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return 200, {"errors": [], "warnings": empty}

    def branch(self, repo: str, rev: str):
        refs = self.hub.repos[repo].refs
        if rev in refs:
            return 409, {"error": "Reference already exists"}
        refs[rev] = refs["main"]
        return 200, {}

    def preupload(self, repo: str, rev: str, kind: str = ""):
        self.find(f"{kind}/{repo}" if kind else repo, rev)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = [(path, "lfs" if path.endswith(LARGE) else "regular") for path in paths]
        return 200, {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]}

    def batch(self, repo: str):
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.uploads:
                path = f"/upload/{item['oid']}"
                verify = {"href": f"{self.hub.endpoint}{path}/verify"}
                item["actions"] = {"upload": {"href": self.hub.cdn + path}, "verify": verify}
        return 200, {"transfer": "basic", "objects": objects}

    def upload(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return 400, {"error": "checksum mismatch"}
        self.hub.hold(self.body)
        return 200, b""

    def verify(self, oid: str):
        known = len(self.hub.uploads.get(oid, b"")) == json.loads(self.body)["size"]
        return (200 if known else 404), {}

    def commit(self, repo: str, rev: str, kind: str = ""):
        repo = f"{kind}/{repo}" if kind else repo
        files = dict(self.find(repo, rev)[1])
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
        sha = self.hub.repos[repo].commit(rev, files)
        return 200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}"}


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(content: bytes) -> bytes:
    """What git keeps of a large file."""
    oid, size = hashlib.sha256(content).hexdigest(), len(content)
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


def entry(path: str, content: bytes) -> dict:
    """A line of the listing of a repository."""
    found = {"type": "file", "path": path, "size": len(content)}
    if not path.endswith(LARGE):
        return {**found, "oid": git_oid(content)}
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": len(pointer(content))}
    return {**found, "oid": git_oid(pointer(content)), "lfs": large}
