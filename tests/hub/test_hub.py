"""rein_hf.from_pretrained over HTTP, from a Hub on this machine that fails on demand: what users see, and that nothing
half-written is ever loaded."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import rein_hf
from tests.support.hub_api import TOKEN
from tests.support.hub_client import HubClient
from tests.support.models import perturb


WEIGHTS = "adapter_model.safetensors"


def fingerprint(model) -> str:
    with torch.no_grad():
        output = model.requires_grad_(False)(pixel_values=torch.ones(1, 3, 64, 64))
    return hashlib.sha256(output.masks_queries_logits.numpy().tobytes()).hexdigest()


@pytest.fixture
def expected(adapter_folder, vit_folder):
    """The outputs of the adapter, loaded from local folders."""
    return fingerprint(rein_hf.from_pretrained(adapter_folder, backbone=vit_folder))


@pytest.fixture
def load(hub, client, tmp_path):
    """Loads `user/adapter` in another process, by default into a cache of this test."""

    def load(**arguments):
        return client.load(**{"pretrained": "user/adapter", "cache_dir": str(tmp_path / "cache"), **arguments})

    return load


def flip_last_bit(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def test_adapter_and_backbone_are_downloaded_once(hub, load, expected, adapter_folder, vit_folder):
    assert load().outputs == expected
    assert hub.sent(WEIGHTS) == (adapter_folder / WEIGHTS).stat().st_size
    assert hub.sent("vit/model.safetensors") == Path(vit_folder, "model.safetensors").stat().st_size
    first = len(hub.requests)
    assert load().outputs == expected
    # the second time the Hub is asked what is new, and sends no file
    assert not [request for request in hub.requests[first:] if request.sent and "/api/" not in request.path]
    second = len(hub.requests)
    assert load(local_files_only=True).outputs == expected
    assert len(hub.requests) == second


def test_offline_mode_uses_the_cache_and_says_so_if_there_is_none(hub, load, expected, tmp_path):
    assert load().outputs == expected
    requests = len(hub.requests)
    offline = HubClient(hub, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert offline.load(pretrained="user/adapter", cache_dir=str(tmp_path / "cache")).outputs == expected
    error = offline.load(pretrained="user/adapter").error
    assert error.startswith("OSError: user/adapter: no such folder here, and no copy of a repository of this name")
    assert "We couldn't connect to" in error and "couldn't find them in the cached files" in error
    offline.close()
    assert len(hub.requests) == requests


def test_a_broken_download_is_resumed_where_it_broke(hub, load, adapter_folder, tmp_path):
    """huggingface_hub writes pieces of 10 MiB; so much has to be there already."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14}
    Dinov2Model(Dinov2Config(**config, image_size=14 * 320)).save_pretrained(tmp_path / "large")
    hub.add("user/large", tmp_path / "large")
    hub.fail("large/model.safetensors", cut_after=11_000_000)
    seen = load(backbone="user/large")
    assert seen.outputs == fingerprint(rein_hf.from_pretrained(adapter_folder, backbone=tmp_path / "large"))
    assert "peer closed connection" in seen.log[0] and "Trying to resume download" in seen.log[0]
    broken, resumed = hub.asked("large/model.safetensors")[-2:]
    assert (broken.status, broken.sent, broken.range) == (200, 11_000_000, None)
    assert (resumed.status, resumed.range) == (206, f"bytes={10 * 2**20}-")
    assert resumed.sent == (tmp_path / "large" / "model.safetensors").stat().st_size - 10 * 2**20


@pytest.mark.parametrize(
    "fault, words",
    [
        ({"cut_after": 1000, "times": 6}, "RemoteProtocolError: peer closed connection"),
        ({"replace": lambda body: body[:-100]}, "OSError: Consistency check failed: file should be of size"),
        ({"replace": flip_last_bit}, f"ValueError: user/adapter: {WEIGHTS} has SHA-256"),
        ({"replace": lambda body: bytes(len(body))}, f"ValueError: user/adapter: {WEIGHTS} has SHA-256"),
        (
            {"status": 429, "headers": {"Retry-After": "0"}, "times": 6},
            "OSError: There was a specific connection error when trying to load user/adapter:\n429 Too Many Requests",
        ),
    ],
    ids=["cut every time", "too short", "one bit", "zeros", "rate limited for good"],
)
def test_damaged_weights_are_not_loaded(hub, load, expected, tmp_path, fault, words):
    hub.fail(WEIGHTS, **fault)
    assert load().error.startswith(words)
    # what is wrong with the few MB of an adapter is told before a backbone is downloaded
    assert hub.sent("vit/model.safetensors") == 0
    if "SHA-256" not in words:  # nothing is left behind, not under any name, and the next try is whole
        left = [path.stat().st_size for path in (tmp_path / "cache").rglob("blobs/*")]
        assert left == [len(hub.files("user/adapter")["adapter_config.json"])]
        assert load().outputs == expected


def test_damaged_files_in_the_cache_can_be_found_and_replaced(hub, load, expected, tmp_path):
    hub.fail(WEIGHTS, replace=flip_last_bit)
    assert load().error.endswith("Download it again: hf download user/adapter --force-download")
    hf, options = Path(sys.executable).parent / "hf", ["user/adapter", "--cache-dir", tmp_path / "cache"]
    environment = hub.environment(tmp_path / "home")
    found = subprocess.run([hf, "cache", "verify", *options], env=environment, capture_output=True, text=True)
    assert found.returncode == 1 and WEIGHTS in found.stdout + found.stderr
    subprocess.run([hf, "download", *options, "--force-download"], env=environment, check=True, capture_output=True)
    assert load().outputs == expected


def test_rate_limits_are_waited_for(hub, load, expected):
    hub.fail(WEIGHTS, status=429, headers={"Retry-After": "1"})
    hub.fail("adapter_config.json", method="HEAD", status=429, headers={"Retry-After": "0"})
    seen = load()
    assert seen.outputs == expected
    assert "Rate limited. Waiting 2.0s before retry [Retry 1/5]." in seen.log


def test_what_is_not_there_is_named(hub, load):
    for repo, *gone in (["halved", WEIGHTS], ["empty", WEIGHTS, "adapter_config.json"], ["homeless"]):
        repo = hub.create(f"user/{repo}")
        repo.commit("main", {name: body for name, body in hub.files("user/adapter").items() if name not in gone})
    config = json.loads(hub.files("user/homeless")["adapter_config.json"])
    lost = {**config, "base_model_name_or_path": "user/lost"}
    hub.files("user/homeless")["adapter_config.json"] = json.dumps(lost).encode()
    for repo, words in {
        "nobody": "user/nobody is not a local folder and is not a valid model identifier",
        "halved": f"user/halved has an adapter_config.json but no {WEIGHTS}; an adapter is both.",
        "empty": "user/empty has neither an adapter_config.json, of an adapter, nor a segmenter's config.json.",
        "homeless": "user/homeless: its backbone user/lost cannot be loaded; pass backbone=FOLDER_OR_HUB_ID.",
    }.items():
        assert load(pretrained=f"user/{repo}").error.startswith(f"OSError: {words}")
    assert load(revision="v9").error.startswith("OSError: v9 is not a valid git identifier")
    assert hub.sent("vit/model.safetensors") == 0


def test_tokens_open_gated_repositories_and_never_reach_the_cdn(hub, load, expected):
    hub.repos["user/adapter"].gated = True
    error = load().error
    assert error.startswith("OSError: You are trying to access a gated repo") and "Please log in." in error
    assert load(token=TOKEN).outputs == expected
    at_cdn = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert len(at_cdn) == 2 and all(request.token is None and request.host == "localhost" for request in at_cdn)


def test_who_is_not_let_in_is_told(hub, load):
    hub.repos["user/adapter"].gated, hub.repos["user/adapter"].allowed = True, False
    seen = load(token=TOKEN)
    assert "gated repo" in seen.error and "you are not in the list" in seen.error
    assert TOKEN not in seen.error + "".join(seen.log)


def test_a_gated_backbone_is_named_with_what_to_do(hub, load):
    hub.repos["user/vit"].gated = True
    error = load().error
    assert "user/vit is a gated repository. Accept its licence at http" in error and "/user/vit, wait until" in error
    assert "log in with `hf auth login`, or pass token=" in error and "Please log in." in error
    hub.repos["user/vit"].allowed = False
    error = load(token=TOKEN).error
    assert "user/vit is a gated repository" in error and "you are not in the list" in error and TOKEN not in error


def test_two_processes_may_download_at_once(hub, client, expected, adapter_folder, tmp_path):
    other = HubClient(hub, tmp_path / "home")
    other.load(pretrained="user/nobody")  # all is imported: from here on both are as fast
    arguments = {"pretrained": "user/adapter", "cache_dir": str(tmp_path / "cache")}
    clients = [client, other]
    for process in clients:
        process.ask("from_pretrained", **arguments)
    assert [process.answer().outputs for process in clients] == [expected] * 2
    other.close()
    # the second one waits for the lock and takes the first one's file
    assert hub.sent(WEIGHTS) == (adapter_folder / WEIGHTS).stat().st_size


def test_revisions_are_other_adapters_and_all_files_are_of_one(hub, load, rein_model, expected, tmp_path):
    perturb(rein_model, seed=1)
    rein_model.save_pretrained(tmp_path / "night", save_embedding_layers=False)
    refs = hub.repos["user/adapter"].refs
    day, night = refs["main"], hub.add("user/adapter", tmp_path / "night", branch="night")
    at_night = load(revision="night").outputs
    assert at_night and at_night != expected
    refs["main"] = night
    assert load(revision=day).outputs == expected
    # the weights are asked for by commit, whatever the branch is by then
    assert [request.path.split("/")[4] for request in hub.asked(WEIGHTS, method="HEAD")] == [night, day]


def test_the_backbone_is_of_the_revision_that_the_adapter_names(hub, load, expected):
    config = json.loads(hub.files("user/adapter")["adapter_config.json"])
    hub.files("user/adapter")["adapter_config.json"] = json.dumps({**config, "revision": "v1"}).encode()
    vit = hub.repos["user/vit"]
    vit.refs["v1"] = vit.refs["main"]
    vit.commit("main", {"README.md": b"moved"})
    assert load().outputs == expected
