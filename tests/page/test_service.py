"""rein_hf.page.service: what the page's requests are answered with."""

import base64
import io
import json
import threading
import zlib
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import rein_hf
from rein_hf.page import Bounds, Service, find_examples
from rein_hf.page import requests as page_requests
from rein_hf.page import service as page_service
from rein_hf.page.bounds import encode_data_uri, encode_picture


REQUEST = {"adapter": "day", "detail": "every pixel", "corruption": "", "severity": 1}


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def unpacked(answer: dict, key: str) -> np.ndarray:
    values = np.frombuffer(zlib.decompress(base64.b64decode(answer[key])), np.uint8)
    return values.reshape(answer["height"], answer["width"])


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def sent(photo: Image.Image, **changes) -> dict:
    return {**REQUEST, "photo": encode_picture(photo, "PNG"), **changes}


def test_the_label_map_is_that_of_segment(service, adapter_folders):
    photo = noise(130, 90)
    answers = {name: service.segment(sent(photo, adapter=name)) for name in ("day", "night")}
    for folder in adapter_folders:
        model = rein_hf.from_pretrained(folder).requires_grad_(False)
        labels, _, confidence = rein_hf.segment(model, rein_hf.build_image_processor(), photo, return_scores=True)
        answer = answers[folder.name]
        assert np.array_equal(decoded(answer["label_map"]), labels)
        assert np.array_equal(unpacked(answer, "labels"), labels)  # small enough to be shown as it is
        assert np.array_equal(unpacked(answer, "confidence"), (255 * confidence).round().astype(np.uint8))
        assert answer["adapter"] == folder.name and answer["milliseconds"] >= 0
    assert (answers["day"]["size"], answers["day"]["seen"], answers["day"]["windows"]) == ([130, 90], [130, 90], 6)
    assert answers["day"]["label_map"] != answers["night"]["label_map"]


def test_answers_are_json(service):
    assert json.loads(json.dumps(service.segment(sent(noise(64, 64)))))["width"] == 64
    about = json.loads(json.dumps(service.about()))
    assert [entry["name"] for entry in about["adapters"]] == ["day", "night"]
    assert about["classes"][1] == {"name": "car", "colour": [0, 0, 142]}
    assert [entry["name"] for entry in about["examples"]] == ["square", "street"]
    assert about["bounds"]["megapixels"] == 50


def test_less_detail_is_the_size_of_segment(service, adapter_folders):
    photo = noise(300, 200)
    answer = service.segment(sent(photo, detail="fast"))
    model = rein_hf.from_pretrained(adapter_folders[0]).requires_grad_(False)
    labels = rein_hf.segment(model, rein_hf.build_image_processor(), photo, size=(96, 64))
    assert (answer["size"], answer["seen"]) == ([300, 200], [96, 64])
    assert np.array_equal(decoded(answer["label_map"]), labels)
    assert service.segment(sent(noise(60, 40), detail="fine"))["seen"] == [60, 40]  # never enlarged


def test_large_photos_are_shown_smaller(service):
    answer = service.segment(sent(noise(2560, 40), detail="every pixel"))
    assert (answer["width"], answer["height"], answer["size"]) == (1280, 20, [2560, 40])
    assert decoded(answer["label_map"]).shape == (40, 2560) and unpacked(answer, "labels").shape == (20, 1280)


def test_examples_are_taken_by_number(service, photos):
    by_number = service.segment({**REQUEST, "photo": "example:1"})
    as_upload = service.segment(sent(Image.open(photos / "street.png")))
    assert by_number["label_map"] == as_upload["label_map"] and by_number["size"] == [90, 70]


def test_the_overlay_is_that_of_overlay(service):
    photo = noise(130, 90)
    request = sent(photo)
    request |= {"label_map": service.segment(request)["label_map"], "opacity": 0.25, "hidden": []}
    labels = decoded(request["label_map"])
    picture = decoded(service.draw(request)["overlay"]).astype(int)
    expected = np.asarray(rein_hf.overlay(photo, labels, service.adapters.model, 0.25)).astype(int)
    assert picture.shape[0] > 90 and picture.shape[1] == 130  # the legend is below it
    assert np.abs(picture[:90] - expected).mean() < 4  # JPEG
    hidden = decoded(service.draw({**request, "opacity": 1, "hidden": [0, 1, 2]})["overlay"]).astype(int)
    assert hidden.shape == (90, 130, 3) and np.abs(hidden - np.asarray(photo)).mean() < 4


def test_only_classes_that_are_switched_off_are_the_photo(service):
    photo, labels = noise(64, 64), np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    request = sent(photo, label_map=encode_picture(Image.fromarray(labels), "PNG"), opacity=1, hidden=[1])
    picture = decoded(service.draw(request)["overlay"])[:64].astype(int)
    assert np.abs(picture[:, :24] - (128, 64, 128)).mean() < 3
    assert np.abs(picture[:, 40:] - np.asarray(photo)[:, 40:]).mean() < 6


def test_the_explain_view(service):
    answer = service.explain({**REQUEST, "photo": "example:0", "adapter": "night"})
    assert answer["adapter"] == "night" and decoded(answer["sheet"]).shape[1] > 400


def test_corruptions_are_the_same_each_time(service):
    pytest.importorskip("imagecorruptions")
    request = sent(noise(64, 64), corruption="fog", severity=5)
    first, second = service.segment(request), service.segment(request)
    assert first["photo"] == second["photo"] != service.segment(sent(noise(64, 64)))["photo"]
    assert first["label_map"] == second["label_map"]
    assert service.segment({**request, "severity": 1})["photo"] != first["photo"]
    assert "32x32" in service.segment(sent(noise(20, 64), corruption="fog", severity=1))["error"]


def test_without_the_package_corruptions_say_what_to_install(service, monkeypatch):
    monkeypatch.setattr(page_requests, "has_corruptions", lambda: False)
    monkeypatch.setattr(page_service, "has_corruptions", lambda: False)
    assert service.about()["corruptions"] == []
    assert 'pip install "rein-hf[corruptions]"' in service.segment(sent(noise(64, 64), corruption="fog"))["error"]


PHOTO = encode_picture(noise(64, 64), "PNG")


@pytest.mark.parametrize(
    ("function", "request_", "words"),
    [
        ("segment", None, "none of this page's"),
        ("segment", ["photo"], "none of this page's"),
        ("segment", {}, "no such adapter here; there are day, night"),
        ("segment", {"photo": PHOTO, "adapter": "day"}, "no such detail; there are fast, fine, every pixel"),
        ("segment", {**REQUEST, "photo": 5}, "did not arrive as a file"),
        ("segment", {**REQUEST, "adapter": ["day"]}, "no such adapter here"),
        ("segment", {**REQUEST, "photo": "example:2"}, "no such example"),
        ("segment", {**REQUEST, "photo": "example:-1"}, "no such example"),
        ("segment", {**REQUEST, "photo": "example:/etc/passwd"}, "no such example"),
        ("segment", {**REQUEST, "photo": encode_data_uri(b"text", "image/jpeg")}, "no photo that the page can read"),
        ("segment", {**REQUEST, "photo": PHOTO, "corruption": "rust"}, "no such corruption"),
        ("segment", {**REQUEST, "photo": PHOTO, "corruption": "fog", "severity": 6}, "no such corruption"),
        ("segment", {**REQUEST, "photo": PHOTO, "corruption": ["fog"]}, "no such corruption"),
        ("draw", {**REQUEST, "photo": PHOTO}, "The label map did not arrive"),
        ("draw", {**REQUEST, "photo": PHOTO, "label_map": PHOTO}, "not that of the photo"),
        ("draw", {**REQUEST, "photo": PHOTO, "label_map": encode_data_uri(b"text", "x")}, "arrived damaged"),
        ("explain", {**REQUEST, "adapter": "dusk"}, "no such adapter"),
    ],
)
def test_mistakes_are_answered_by_sentences(service, function, request_, words):
    answer = getattr(service, function)(request_)
    assert set(answer) == {"error"} and words in answer["error"]
    assert answer["error"].endswith((".", ")"))


@pytest.mark.parametrize(
    "changes",
    [{"opacity": 2}, {"opacity": True}, {"opacity": None}, {"hidden": [3]}, {"hidden": [True]}, {"hidden": 1}],
)
def test_what_the_overlay_asks_for_is_checked(service, changes):
    labels = encode_picture(Image.fromarray(np.zeros((64, 64), np.uint8)), "PNG")
    request = {**REQUEST, "photo": PHOTO, "label_map": labels, "opacity": 0.5, "hidden": []}
    assert "overlay" in service.draw(request)
    assert service.draw({**request, **changes})["error"].endswith("Load the page again.")


def test_a_model_sees_a_bounded_number_of_pixels(service, photos):
    strict = Service(service.adapters, find_examples([photos]), Bounds(seen_megapixels=1))
    answer = strict.segment(sent(noise(1100, 1000)))
    assert answer["error"].startswith("The model would have to see 1100x1000 pixels; this page takes 1 million")
    assert "label_map" in strict.segment(sent(noise(1100, 1000), detail="fast"))


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory at /opt/secret"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory(service, failure):
    with mock.patch.object(page_service, "segment_with_confidence", side_effect=failure):
        assert service.segment(sent(noise(64, 64)))["error"].startswith("The server has not enough memory")


def test_no_other_error_is_told_to_strangers(service, caplog):
    with mock.patch.object(page_service, "segment_with_confidence", side_effect=ValueError("/opt/secret/model")):
        answer = service.segment(sent(noise(64, 64)))
    assert answer == {"error": "Something went wrong on the server; its log says what. Nothing of the photo was kept."}
    assert "/opt/secret/model" in caplog.text


def test_ten_at_once_get_their_own_results(service):
    requests = [sent(noise(64 + 2 * number, 64, number), adapter=("day", "night")[number % 2]) for number in range(10)]
    alone = [service.segment(request)["label_map"] for request in requests]
    assert len(set(alone)) == 10
    together = [None] * 10

    def ask(number: int) -> None:
        together[number] = service.segment(requests[number])["label_map"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_nothing_is_written(service, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a file is opened to be written")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    monkeypatch.chdir(tmp_path)
    request = sent(noise(64, 64))
    request |= {"label_map": service.segment(request)["label_map"], "opacity": 0.5, "hidden": []}
    assert "overlay" in service.draw(request) and "sheet" in service.explain(request)
    assert list(tmp_path.iterdir()) == []


def test_examples_are_found(photos, tmp_path):
    names = [example.name for example in find_examples([photos / "street.png", photos])]
    assert names == ["street", "square", "street"]
    with pytest.raises(FileNotFoundError, match="nothing is not there; expected a photo"):
        find_examples([tmp_path / "nothing"])
    with pytest.raises(ValueError, match="holds no photo; expected files that end in .jpg"):
        find_examples([tmp_path])
    with pytest.raises(ValueError, match="13 example photos are given; expected 12 at most"):
        find_examples([photos / "street.png"] * 13)
