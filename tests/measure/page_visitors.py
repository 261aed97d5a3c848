"""What a page costs: the time of answers beyond the model's own, the server's memory after many photos, ten visitors
at once, and what strangers send.

    python -m tests.measure.page_visitors --model ADAPTER [ADAPTER ...] [--photos 200]

Needs Gradio (extra `page`), and Linux for the memory.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import HfArgumentParser

from rein_hf.page.bounds import encode_data_uri, encode_picture
from tests.support.pages import PageClient, free_port


@dataclass
class VisitorArguments:
    model: list[str] = field(metadata={"help": "Adapters of one page."})
    photos: int = field(default=200, metadata={"help": "Between the first and the last look at the memory."})


def photo(width: int, height: int, seed: int) -> str:
    """A JPEG of smooth noise, as a data URI."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return encode_picture(picture, "JPEG", quality=90)


def memory(process: subprocess.Popen) -> float:
    """What a process has in memory, in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def ask(client: PageClient, uri: str, adapter: str) -> tuple[dict, float]:
    """An answer, and the milliseconds until it was here."""
    began = time.perf_counter()
    answer = client.ask("segment", {"photo": uri, "adapter": adapter, "detail": "fast", "corruption": ""})
    return answer, 1000 * (time.perf_counter() - began)


def main(args: VisitorArguments) -> None:
    port = free_port()
    command = [sys.executable, "-m", "rein_hf.commands.demo", "--model", *args.model]
    command += ["--browser", "false", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = next((line for line in server.stdout if "The page is at" in line), None)
        if line is None:
            sys.exit("The page did not start; its words are above.")
        client = PageClient(f"http://127.0.0.1:{port}/")
        adapters = [entry["name"] for entry in client.about["adapters"]]
        measure(client, server, adapters, args.photos)
    finally:
        server.terminate()
        server.wait(30)


def measure(client: PageClient, server: subprocess.Popen, adapters: list[str], photos: int) -> None:
    for number in range(photos + 1):
        if number % 50 == 0:
            print(f"memory after {number} photos: {memory(server):.0f} MB", flush=True)
        ask(client, photo(1280, 720, number), adapters[number % len(adapters)])
    for size in ((640, 360), (1920, 1080), (4000, 3000), (8000, 6000)):
        answer, milliseconds = ask(client, photo(*size, seed=1), adapters[0])
        beyond = milliseconds - answer["milliseconds"]
        print(f"{size[0]}x{size[1]}: {answer['milliseconds']} ms of the model, {beyond:.0f} ms beyond it", flush=True)
    uris = [photo(640, 360, number) for number in range(10)]
    alone = [ask(client, uri, adapters[number % len(adapters)])[0]["label_map"] for number, uri in enumerate(uris)]
    together = [None] * 10

    def visit(number: int) -> None:
        visitor = PageClient(client.address, f"visitor-{number}")
        together[number] = ask(visitor, uris[number], adapters[number % len(adapters)])[0]["label_map"]

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(10)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    right = sum(one == other for one, other in zip(alone, together, strict=True))
    print(f"ten visitors at once: {right} right results in {time.perf_counter() - began:.1f} s")
    content = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(content, "PNG")
    for name, uri in (
        ("100 million pixels", encode_data_uri(content.getvalue(), "image/png")),
        ("a text file", encode_data_uri(b"Dear diary", "image/jpeg")),
    ):
        answer, milliseconds = ask(client, uri, adapters[0])
        print(f"{name}, after {milliseconds:.0f} ms: {answer['error']}")
    print(f"memory at the end: {memory(server):.0f} MB")


if __name__ == "__main__":
    main(*HfArgumentParser(VisitorArguments).parse_args_into_dataclasses())
