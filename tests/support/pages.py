"""What a browser sends to the server of a page."""

from __future__ import annotations

import json
import socket
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from typing import Any


# no proxy between this machine and itself
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass
class PageClient:
    """One visitor.

    Args:
        address: of the page.
        session: the visitor's name for Gradio.
    """

    address: str
    session: str = "visitor"

    def get(self, path: str) -> bytes:
        with _open(f"{self.address}{path}", timeout=60) as reply:
            return reply.read()

    @cached_property
    def _html(self) -> dict[str, Any]:
        config = json.loads(self.get("config"))
        return next(entry for entry in config["components"] if entry["type"] == "html")

    @property
    def about(self) -> dict[str, Any]:
        """What the page knows before the first photo."""
        return self._html["props"]["props"]["about"]

    def body(self, function: str, request: Any) -> bytes:
        values = {"data": request, "fn_name": function, "component_id": self._html["id"], "session_hash": self.session}
        return json.dumps(values).encode()

    def ask(self, function: str, request: Any) -> dict[str, Any]:
        """What a function of the page answers."""
        return json.loads(self.post("gradio_api/component_server/", self.body(function, request)))

    def post(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        headers = {"Content-Type": kind}
        with _open(urllib.request.Request(f"{self.address}{path}", body, headers), timeout=60) as reply:
            return reply.read()


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
