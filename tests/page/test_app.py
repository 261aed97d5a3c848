"""rein_hf.page.app: the page as Gradio serves it."""

import importlib.util
import io
import json
import socket
import sys
import threading
import time
import urllib.error
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from rein_hf.commands import cli
from rein_hf.page import Bounds, Service, build_page, check_address, launch_page
from rein_hf.page import app as page_app
from rein_hf.page.bounds import encode_picture
from tests.support.pages import PageClient, free_port


HEAD = "POST /gradio_api/component_server/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
REQUEST = {"adapter": "day", "detail": "every pixel", "corruption": "", "severity": 1}
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None,
    reason='the page is served by Gradio: pip install "rein-hf[page]"',
)


def sent(seed: int, width: int = 64, **changes) -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, width, 3), dtype=np.uint8)
    return {**REQUEST, "photo": encode_picture(Image.fromarray(pixels), "PNG"), **changes}


@pytest.fixture(scope="module")
def small(service) -> Service:
    """The page's service, which takes small photos only."""
    return Service(service.adapters, service.examples, Bounds(megabytes=1, megapixels=1))


@pytest.fixture(scope="module")
def served(small, tmp_path_factory):
    """The page, and the folder that Gradio may write into."""
    pytest.importorskip("gradio")
    temporary = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(temporary))
        page, address = launch_page(small, "Try it", port=free_port(), wait=False)
        yield page, PageClient(address), temporary
        page.close()


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "--model", "nothing"]) == 2
    found = capsys.readouterr().err
    assert found.startswith("rein-hf demo: The page is served by Gradio") and found.count("\n") == 1
    assert 'pip install "rein-hf[page]"' in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--megabytes", "0"], "megabytes is 0; expected a whole number, 1 at least"),
        (["--port", "99999"], "--port is 99999; expected 1 to 65535"),
        (["--port", "-1"], "--port is -1; expected 1 to 65535"),
        (["--port", "0"], "--port is 0; expected 1 to 65535, or none at all"),
        (["--host", "192.0.2.1"], "Nothing can listen at --host 192.0.2.1 ("),  # an address for documents
        (["--host", "a..b"], "--host a..b is not known ("),
        (["--examples", "nowhere"], "nowhere is not there; expected a photo"),
    ],
)
def test_mistakes_at_the_command_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr("rein_hf.commands.demo.require_gradio", lambda: None)
    assert cli.main(["demo", "--model", "nothing", *words]) == 2
    found = capsys.readouterr().err
    assert message in found and found.count("\n") == 1


def test_addresses_are_tried_once():
    port = free_port()
    for host in (None, "127.0.0.1", "localhost", "0.0.0.0"):
        check_address(host, port)
        check_address(host)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match=f"--port {port} .*give another port"):
        check_address("127.0.0.1", port)


def test_the_client_is_plain_text_that_gradio_leaves_as_it_is():
    html = (page_app.CLIENT / "page.html").read_text()
    assert not any(mark in html for mark in ("${", "{{", "`", "<script"))  # Gradio's templates would fill them in
    assert "http" not in "".join(path.read_text() for path in page_app.CLIENT.iterdir())  # it runs offline


@needs_gradio
def test_the_page_is_served(served):
    _, client, _ = served
    config = json.loads(client.get("config"))
    about = client.about
    assert [entry["name"] for entry in about["adapters"]] == ["day", "night"]
    assert about["bounds"]["megapixels"] == 1
    assert config["title"] == "Try it" and not config.get("footer_links")


@needs_gradio
def test_no_path_of_the_server_is_shown(served, photos, adapter_folders, vit_folder):
    _, client, _ = served
    shown = client.get("config") + client.get("") + json.dumps(client.ask("segment", sent(0))).encode()
    for path in (photos, *adapter_folders, vit_folder, Path(page_app.__file__).parent, Path.home()):
        assert str(path).encode() not in shown


@needs_gradio
def test_ten_visitors_at_once_get_their_own_results(served):
    _, client, _ = served
    requests = [sent(seed, 64 + seed, adapter=("day", "night")[seed % 2]) for seed in range(10)]
    alone = [client.ask("segment", request)["label_map"] for request in requests]
    together = [None] * 10

    def visit(number: int) -> None:
        visitor = PageClient(client.address, f"visitor-{number}")
        together[number] = visitor.ask("segment", requests[number])["label_map"]

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(alone)) == 10 and together == alone


@needs_gradio
def test_nothing_of_a_visitor_is_kept(served):
    page, client, temporary = served
    request = sent(1)
    answer = client.ask("segment", request)
    client.ask("draw", {**request, "label_map": answer["label_map"], "opacity": 0.5, "hidden": []})
    client.ask("explain", request)
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
    sessions = page.app.state_holder.session_data
    assert len(sessions) >= 1
    for session in sessions.values():
        kept = json.dumps(session.config_values, default=str) + str(session.state_data)
        assert request["photo"] not in kept and answer["label_map"] not in kept


@needs_gradio
def test_files_are_not_uploaded(served):
    _, client, temporary = served
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "PNG")
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n'
    with pytest.raises(urllib.error.HTTPError) as error:
        client.post("gradio_api/upload", form % content.getvalue(), "multipart/form-data; boundary=x")
    assert error.value.code == 413
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


@needs_gradio
def test_large_requests_are_cut_off(served):
    _, client, _ = served
    body = client.body("segment", {**REQUEST, "photo": "x" * 2_000_000})
    with pytest.raises((urllib.error.URLError, ConnectionError)) as error:
        client.post("gradio_api/component_server/", body)
    assert getattr(error.value, "code", 413) == 413
    # one that does not say its length
    url = urlsplit(client.address)
    with socket.create_connection((url.hostname, url.port), timeout=20) as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(40):
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            reply = connection.recv(1000)
        except OSError:  # closed while we were sending
            reply = b"HTTP/1.1 413"
    assert reply.split()[1] in (b"413", b"400")
    assert "label_map" in client.ask("segment", sent(2))


@needs_gradio
def test_dropped_connections_do_no_harm(served, small):
    _, client, _ = served
    body, url = client.body("segment", sent(3)), urlsplit(client.address)
    head = f"{HEAD}Content-Length: {len(body)}\r\n\r\n"
    for content in (body[: len(body) // 2], body):  # half of the photo; all of it, but nobody waits for the answer
        with socket.create_connection((url.hostname, url.port)) as connection:
            connection.sendall(head.encode() + content)
    assert "label_map" in client.ask("segment", sent(4))
    deadline = time.monotonic() + 20
    while small._turns._inside and time.monotonic() < deadline:
        time.sleep(0.01)
    assert small._turns._inside == 0


@needs_gradio
def test_an_open_port_is_asked_for(served, service):
    _, client, _ = served
    with pytest.raises(OSError, match="port"):
        launch_page(service, port=urlsplit(client.address).port, wait=False)


@needs_gradio
def test_a_page_can_be_built_without_a_server(service):
    assert len([block for block in build_page(service).blocks.values() if block.get_block_name() == "html"]) == 1
