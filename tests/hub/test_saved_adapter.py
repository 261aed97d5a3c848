"""fixtures/saved_adapter: what an earlier version saved, bit for bit as it computed.

Adapter, image processor and backbone were written by the library as it was on 2026-11-25 (commit c3fac97), before its
files were moved into rooms. outputs.safetensors is what that version computed of `pixel_values`, in float32.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoImageProcessor

import rein_hf


FOLDER = Path(__file__).parents[1] / "fixtures" / "saved_adapter"


@pytest.fixture(scope="module")
def model():
    return rein_hf.from_pretrained(FOLDER, backbone=FOLDER / "backbone").requires_grad_(False)


def test_its_tensors_are_the_files(model):
    expected = load_file(FOLDER / "adapter_model.safetensors")
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_its_outputs_are_those_of_then(model):
    numbers = torch.arange(2 * 3 * 64 * 96) * 7919 % 255
    output = model(pixel_values=(numbers / 127 - 1).reshape(2, 3, 64, 96))
    for name, expected in load_file(FOLDER / "outputs.safetensors").items():
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(output[name], expected, rtol=0, atol=1e-5)


def test_saved_again_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    then, now = ((folder / "adapter_model.safetensors").read_bytes() for folder in (FOLDER, tmp_path))
    assert now == then
    then, now = (json.loads((folder / "adapter_config.json").read_text()) for folder in (FOLDER, tmp_path))
    assert now.keys() >= then.keys()
    assert {key: now[key] for key in then.keys() - {"base_config"}} == {
        key: then[key] for key in then.keys() - {"base_config"}
    }


def test_its_image_processor_is_read():
    assert isinstance(AutoImageProcessor.from_pretrained(FOLDER), rein_hf.ReinImageProcessor)
