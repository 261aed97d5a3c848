"""A page in the browser to try adapters on: drop a photo, see its classes, switch adapters, corrupt the photo.

    rein-hf demo --model USER/ADAPTER [ADAPTER ...] --examples photos/    # with pip install "rein-hf[page]"

The adapters share one backbone in memory. Photos stay in memory, too: nothing that a visitor sends is written to the
disk or outlives its request. Only this machine can open the page; `--host 0.0.0.0` opens it to the network.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from ..page import Adapters, Bounds, Service, check_address, find_examples, launch_page, require_gradio
from .cli import run


@dataclass
class DemoArguments:
    model: list[str] = field(metadata={"help": "Adapters on one backbone, or a whole segmenter: folders, Hub ids."})
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one the adapters name."})
    examples: list[str] = field(default_factory=list, metadata={"help": "Photos to offer, or folders of them; 12."})
    title: str = field(default="Segment a photo", metadata={"help": "Heading of the page."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at; 0.0.0.0: all of this machine's."})
    port: int | None = field(default=None, metadata={"help": "Default: the first free one from 7860."})
    browser: bool = field(default=True, metadata={"help": "Open the page in this machine's browser."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; default: a GPU, if there is one."})
    megabytes: int = field(default=20, metadata={"help": "The largest file of a photo, in MB."})
    megapixels: int = field(default=50, metadata={"help": "The largest photo, in millions of pixels."})
    seen_megapixels: int = field(default=8, metadata={"help": "The largest copy of it that the model sees."})
    waiting: int = field(default=16, metadata={"help": "Requests that may wait while the model is at work."})


def main(args: DemoArguments) -> None:
    """Serves the page until Ctrl+C."""
    require_gradio()  # before anything is loaded
    check_address(args.host, args.port)
    bounds = Bounds(args.megabytes, args.megapixels, args.seen_megapixels, args.waiting)
    examples = find_examples(args.examples)
    service = Service(Adapters(args.model, args.backbone, args.device), examples, bounds)
    launch_page(service, args.title, args.host, args.port, open_browser=args.browser)


if __name__ == "__main__":
    sys.exit(run("demo"))
