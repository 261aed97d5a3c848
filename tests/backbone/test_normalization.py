"""rein_hf.backbone.normalization: whose mean and deviation images are normalised by."""

import json

import pytest

import rein_hf
from tests.support.vision_encoders import write_encoder


SATELLITE = {"image_mean": [0.430, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}


def write_processor(folder, **values):
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def normalization(*args) -> dict[str, list[float]]:
    processor = rein_hf.build_image_processor(*args)
    return {name: list(getattr(processor, name)) for name in SATELLITE}


def test_dinov3_brings_its_own_and_all_others_have_imagenets(tmp_path):
    imagenet = normalization()
    assert imagenet == {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    for name, expected in (("dinov3", SATELLITE), ("clip", imagenet)):  # the paper's CLIP has ImageNet's
        (folder := tmp_path / name).mkdir()
        write_encoder(name, folder)
        assert normalization(16, folder) == imagenet  # without an image processor
        write_processor(folder, **SATELLITE)
        assert normalization(16, folder) == expected


@pytest.mark.parametrize("mean", [None, [0.4], [0.4, 0.4, 110], "0.4"])
def test_what_is_no_mean_is_refused(tmp_path, mean):
    write_encoder("dinov3", tmp_path)
    write_processor(tmp_path, **{**SATELLITE, "image_mean": mean})
    with pytest.raises(ValueError, match="image_mean in preprocessor_config.json is .*; expected three numbers betwe"):
        rein_hf.build_image_processor(16, tmp_path)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(OSError, match=f"{tmp_path} .*config.json"):
        rein_hf.build_image_processor(16, tmp_path)
