"""One process that loads models from a loopback Hub, many times: importing takes longer than all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.hub_server import HubServer


# reads a function of rein_hf and its arguments as JSON, one call per line; answers with what a user sees
LOOP = """
import hashlib, json, logging, sys, torch, rein_hf

log = []
handler = logging.Handler()
handler.emit = lambda record: log.append(record.getMessage())
logging.getLogger("huggingface_hub").addHandler(handler)
for line in sys.stdin:
    log.clear()
    seen = {"outputs": None, "error": None}
    function, arguments = json.loads(line)
    second = arguments.pop("second", None)
    try:
        found = getattr(rein_hf, function)(**arguments)
        if second:
            found.load_adapter(second, "second", cache_dir=arguments["cache_dir"])
            found.set_adapter("second")
        if function == "describe":
            seen["outputs"] = str(found)
        else:
            with torch.no_grad():  # with gradients Rein computes in another order: the last bits may differ
                output = found.requires_grad_(False)(pixel_values=torch.ones(1, 3, 64, 64)).masks_queries_logits
            seen["outputs"] = hashlib.sha256(output.numpy().tobytes()).hexdigest()
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps({**seen, "log": log}), flush=True)
"""


@dataclass
class Seen:
    outputs: str | None  # a fingerprint of the loaded model's outputs, or the text of a description
    error: str | None  # "Type: message"
    log: list[str]  # what huggingface_hub logged


class HubClient:
    """A process whose Hub is `hub`, with its settings and default cache in the folder `home`."""

    def __init__(self, hub: HubServer, home: str | Path, **variables: str) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        environment = hub.environment(home, **variables)
        self.process = subprocess.Popen([sys.executable, "-c", LOOP], env=environment, text=True, **pipes)

    def ask(self, function: str, **arguments) -> None:
        self.process.stdin.write(json.dumps([function, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Seen:
        return Seen(**json.loads(self.process.stdout.readline()))

    def load(self, **arguments) -> Seen:
        self.ask("from_pretrained", **arguments)
        return self.answer()

    def describe(self, **arguments) -> Seen:
        self.ask("describe", **arguments)
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
