"""The page as a program of Gradio, and its server."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

from .service import Service


PAGE_EXTRA = 'pip install "rein-hf[page]"'
CLIENT = Path(__file__).parent / "client"
# Around the component: Gradio's own margins leave a phone little, and form controls have a dark scheme of their own.
CSS = ".gradio-container .main { padding: 8px !important } .dark { color-scheme: dark }"
HOSTS = "expected an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them"
# What Gradio keeps for a browser is some kB; so many are remembered
SESSIONS = 200


def require_gradio() -> ModuleType:
    """The module `gradio`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f"The page is served by Gradio, which cannot be imported ({error}): {PAGE_EXTRA}.") from error
    return gradio


def build_page(service: Service, title: str = "Segment a photo") -> Any:
    """The page, a `gradio.Blocks`.

    Its one component is HTML of its own (`client/`). The photo does not go through Gradio's components for images and
    files: they write what a visitor sends, and what is drawn of it, into files of the server, and remember both.

    Args:
        service: what answers the page's requests.
        title (`str`): of the page.

    Raises:
        ValueError: Gradio is not installed.
    """
    gradio = require_gradio()

    # Gradio writes an attribute on each, which methods do not take
    def segment(request):
        return service.segment(request)

    def draw(request):
        return service.draw(request)

    def explain(request):
        return service.explain(request)

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.HTML(
            html_template=_client("page.html"),
            css_template=_client("page.css"),
            js_on_load="\n".join(_client(name) for name in ("view.js", "page.js")),
            apply_default_css=False,
            server_functions=[segment, draw, explain],
            about=service.about(),
            heading=title,
        )
    return page


def launch_page(
    service: Service,
    title: str = "Segment a photo",
    host: str | None = None,
    port: int | None = None,
    open_browser: bool = False,
    wait: bool = True,
) -> tuple[Any, str]:
    """Serves the page.

    Args:
        service, title: as for [`build_page`].
        host (`str`, *optional*): address to listen at; by default what `GRADIO_SERVER_NAME` says, or 127.0.0.1, this
            machine alone.
        port (`int`, *optional*): by default what `GRADIO_SERVER_PORT` says, or the first free one from 7860.
        open_browser (`bool`): open the page in this machine's browser.
        wait (`bool`): return only when the server is stopped (Ctrl+C).

    Returns:
        The `gradio.Blocks`, whose `close` stops the server, and the page's address.

    Raises:
        ValueError: Gradio is not installed; as for [`check_address`].
        OSError: the port is taken; as for [`check_address`].
    """
    gradio = require_gradio()
    check_address(host, port)
    page = build_page(service, title)
    from starlette.middleware import Middleware
    from starlette.middleware.body_limit import RequestBodyLimitMiddleware

    limit = Middleware(RequestBodyLimitMiddleware, max_body_size=service.bounds.body_bytes)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        max_file_size=1,  # bytes: no file is uploaded; photos travel in JSON and stay in memory
        max_threads=service.bounds.waiting + 8,  # those who wait, and some for the page's own files
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=[],
        css=CSS,
        state_session_capacity=SESSIONS,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        app_kwargs={"middleware": [limit]},
    )
    print(f"The page is at {address} (Ctrl+C stops it).", flush=True)
    if wait:
        page.block_thread()
    return page, address


def check_address(host: str | None = None, port: int | None = None) -> None:
    """Whether a page can be served there, by one attempt to listen.

    Args:
        host, port: as for [`launch_page`].

    Raises:
        ValueError: the port is none.
        OSError: the host is not known or not this machine's, or the port is taken, or not for everyone.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(
            f"--port is {port}; expected 1 to 65535, or none at all: then it is the first free one from 7860."
        )
    if host is None and port is None:
        return
    host, failure = host or "127.0.0.1", None
    try:
        found = socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OSError(f"--host {host} is not known ({error}); {HOSTS}.") from error
    for family, kind, protocol, _, address in found:  # of a name there may be several, not all of them in use here
        try:
            with socket.socket(family, kind, protocol) as listener:
                if os.name == "posix":  # elsewhere it would share a port that is taken
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
            return
        except OSError as error:
            failure = error
    where = f"--host {host}" if port is None else f"--host {host}, --port {port}"
    advice = "give another port" if failure.errno in (errno.EADDRINUSE, errno.EACCES) else HOSTS
    raise OSError(f"Nothing can listen at {where} ({failure.strerror}); {advice}.") from failure


def _client(name: str) -> str:
    return (CLIENT / name).read_text(encoding="utf-8")
