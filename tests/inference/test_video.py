"""Videos frame by frame, alone and by the command."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

import rein_hf
from rein_hf.commands import predict
from rein_hf.inference import video
from rein_hf.inference.photos import find_photos
from rein_hf.inference.video import transform_video


av = pytest.importorskip("av")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def write_video(path: Path, frames: int = 5, size=(96, 64), times=None) -> Path:
    """Frames of one shade each, brighter from one to the next, with a white mark in the upper left corner."""
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libx264", rate=10, options={"crf": "10"})
        (stream.width, stream.height), stream.pix_fmt, stream.time_base = size, "yuv420p", Fraction(1, 10)
        for index in range(frames):
            picture = Image.new("RGB", size, (20 + 30 * index,) * 3)
            picture.paste((255, 255, 255), (0, 0, size[0] // 3, size[1] // 3))
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = index if times is None else times[index], Fraction(1, 10)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[list[float], list[Image.Image]]:
    """Times in seconds, and pictures."""
    with av.open(str(path)) as reader:
        frames = list(reader.decode(video=0))
        return [round(float(frame.time), 3) for frame in frames], [frame.to_image() for frame in frames]


def test_every_frame_is_changed_and_shown_at_its_time(tmp_path):
    source, counts, seen = write_video(tmp_path / "a.mp4", times=[0, 1, 2, 6, 7]), [], []

    def invert(frame: Image.Image) -> Image.Image:
        seen.append((frame.mode, frame.size))
        return frame.point(lambda value: 255 - value)

    assert transform_video(source, tmp_path / "b.mp4", invert, lambda *numbers: counts.append(numbers)) == 5
    assert seen == [("RGB", (96, 64))] * 5 and counts == [(index, 5) for index in range(1, 6)]
    times, pictures = read(tmp_path / "b.mp4")
    assert times == [0, 0.1, 0.2, 0.6, 0.7]
    for index, picture in enumerate(pictures):
        assert picture.size == (96, 64)
        assert np.abs(np.subtract(picture.getpixel((90, 60)), 255 - (20 + 30 * index))).max() < 8
        assert max(picture.getpixel((5, 5))) < 12


def test_frames_come_one_by_one(tmp_path):
    """When a frame is changed, the next few are decoded at most: no video is in memory as a whole."""
    source, decoded, ahead = write_video(tmp_path / "a.mp4", frames=60), [0], []
    frames = video._frames

    def counted(*arguments):
        for frame in frames(*arguments):
            decoded[0] += 1
            yield frame

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "_frames", counted)
        done = iter(range(60))
        transform_video(source, tmp_path / "b.mp4", lambda frame: (ahead.append(decoded[0] - next(done)), frame)[1])
    assert ahead == [1] * 60


def test_odd_sides_lose_their_last_pixel(tmp_path):
    transform_video(write_video(tmp_path / "a.mp4"), tmp_path / "b.mp4", lambda frame: frame.crop((0, 0, 65, 63)))
    assert read(tmp_path / "b.mp4")[1][0].size == (64, 62)


def test_a_video_of_a_telephone_is_turned_upright(tmp_path):
    """The file says that it is to be turned clockwise: the mark comes to the upper right."""
    source = write_video(tmp_path / "a.mp4")
    one, matrix = 1 << 16, lambda *values: struct.pack(">9i", *values)
    as_it_is, turned = matrix(one, 0, 0, 0, one, 0, 0, 0, 1 << 30), matrix(0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    content = source.read_bytes()
    place = content.index(b"tkhd")
    source.write_bytes(content[:place] + content[place:].replace(as_it_is, turned, 1))
    transform_video(source, tmp_path / "b.mp4", lambda frame: frame)
    picture = read(tmp_path / "b.mp4")[1][0]
    assert picture.size == (64, 96)
    assert min(picture.getpixel((60, 5))) > 240 and max(picture.getpixel((5, 5))) < 40


@pytest.mark.parametrize(("lines", "space", "tag"), [(720, "ITU709", 1), (480, "ITU601", 6)])
@pytest.mark.parametrize("tagged", [True, False])
def test_colours_stay_what_they_are(tmp_path, lines, space, tag, tagged):
    """Files that say nothing of their colours are read as players do; what is written says it."""
    colours = [(220, 20, 60), (0, 130, 40), (30, 40, 200), (250, 170, 30)]
    picture = Image.new("RGB", (128, lines))
    for index, colour in enumerate(colours):
        picture.paste(colour, (32 * index, 0, 32 * index + 32, lines))
    with av.open(str(tmp_path / "a.mp4"), "w") as writer:
        stream = writer.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 128, lines, "yuv420p"
        if tagged:
            stream.colorspace, stream.color_range = tag, 1
        frame = av.VideoFrame.from_image(picture).reformat(format="yuv420p", dst_colorspace=space)
        if not tagged:
            frame.colorspace = 2
        writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    with av.open(str(tmp_path / "a.mp4")) as reader:
        assert next(reader.decode(video=0)).colorspace == (tag if tagged else 2)
    seen = []
    transform_video(tmp_path / "a.mp4", tmp_path / "b.mp4", lambda frame: (seen.append(frame), frame)[1])
    with av.open(str(tmp_path / "b.mp4")) as reader:
        written = next(reader.decode(video=0))
    assert (written.colorspace, written.color_range) == (tag, 1)
    for found in (seen[0], written.to_image()):
        for index, colour in enumerate(colours):
            assert np.abs(np.subtract(found.getpixel((32 * index + 16, lines // 2)), colour)).max() <= 5


def test_what_is_no_video_leaves_nothing(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="text.mp4 cannot be read as a video: "):
        transform_video(tmp_path / "text.mp4", tmp_path / "out.mp4", lambda frame: frame)
    source = write_video(tmp_path / "a.mp4")

    def fail(frame):
        raise ValueError("stop")

    with pytest.raises(ValueError, match="^stop$"):
        transform_video(source, tmp_path / "out.mp4", fail)
    assert {path.name for path in tmp_path.iterdir()} == {"text.mp4", "a.mp4"}


def test_without_the_reader(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    arguments = predict.PredictionArguments("any", [str(write_named(tmp_path / "a.mp4"))], str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r'PyAV, which is not installed: pip install "rein-hf\[video\]"'):
        predict.main(arguments)


def write_named(path: Path) -> Path:
    path.touch()
    return path


def test_a_video_in_a_folder_is_passed_over(tmp_path):
    for name in ("a.png", "b.mp4", "c.mp4"):
        write_named(tmp_path / name)
    photos, skipped = find_photos([str(tmp_path), str(tmp_path / "c.mp4")], tmp_path / "out")
    assert [photo.file.name for photo in photos] == ["a.png", "c.mp4"] and [file.name for file in skipped] == ["b.mp4"]


def test_a_photo_and_a_video_may_have_one_stem(tmp_path):
    """Their results have other names."""
    inputs = [str(write_named(tmp_path / name)) for name in ("a.jpg", "a.mp4", "a.mov")]
    photos, _ = find_photos(inputs[:2], tmp_path / "out")
    assert [photo.file.name for photo in photos] == ["a.jpg", "a.mp4"]
    with pytest.raises(ValueError, match=r"several files of the same stem: \['[^']*a.mp4', '[^']*a.mov'\]"):
        find_photos(inputs, tmp_path / "out")


def test_predict_writes_an_overlay_video(rein_model, tmp_path, capsys):
    rein_model.save_pretrained(tmp_path / "adapter")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "adapter")
    source = write_video(tmp_path / "drive.mp4", frames=3)
    (tmp_path / "broken.mp4").write_bytes(source.read_bytes()[:200])
    inputs = [str(source), str(tmp_path / "broken.mp4")]
    arguments = predict.PredictionArguments(str(tmp_path / "adapter"), inputs, str(tmp_path / "out"), opacity=1.0)
    assert predict.main(arguments) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"drive_overlay.mp4"}
    assert "broken.mp4 cannot be read as a video" in capsys.readouterr().err
    times, pictures = read(tmp_path / "out" / "drive_overlay.mp4")
    assert times == [0, 0.1, 0.2]
    model, processor = rein_hf.from_pretrained(tmp_path / "adapter"), rein_hf.build_image_processor()
    for frame, picture in zip(read(source)[1], pictures, strict=True):
        expected = rein_hf.colorize(rein_hf.segment(model, processor, frame), model)
        assert np.abs(np.subtract(picture, expected, dtype=float)).mean() < 12
    assert predict.main(arguments) == 1  # replaces its own
    (tmp_path / "out" / "drive_overlay.mp4").write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="drive_overlay.mp4 is there and is not a result of rein-hf predict; give"):
        predict.main(arguments)
    assert (tmp_path / "out" / "drive_overlay.mp4").read_bytes() == source.read_bytes()
    arguments.confidence = True
    with pytest.raises(ValueError, match="--confidence is for photos; --input has the video .*drive.mp4"):
        predict.main(arguments)


def test_predict_writes_confidence_and_legends(rein_model, tmp_path):
    rein_model.save_pretrained(tmp_path / "adapter")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "adapter")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 200, 3), dtype=np.uint8))
    photo.save(tmp_path / "a.png")
    arguments = (str(tmp_path / "adapter"), [str(tmp_path / "a.png")], str(tmp_path / "out"))
    assert predict.main(predict.PredictionArguments(*arguments, confidence=True, legend=True)) == 0
    found = rein_hf.segment(rein_model, rein_hf.build_image_processor(), photo, return_scores=True)
    with Image.open(tmp_path / "out" / "a_confidence.png") as picture:
        assert picture.mode == "L" and np.array_equal(np.asarray(picture), (255 * found.confidence).round())
    with Image.open(tmp_path / "out" / "a_label.png") as label, Image.open(tmp_path / "out" / "a_color.png") as colour:
        assert np.array_equal(np.asarray(label), found.labels) and np.array_equal(np.asarray(colour), found.labels)
        assert (label.mode, colour.mode) == ("L", "P")
        assert colour.convert("RGB").tobytes() == rein_hf.colorize(found.labels, rein_model).tobytes()
    with Image.open(tmp_path / "out" / "a_overlay.jpg") as picture:
        assert picture.size == (200, 60 + 24)
        assert np.abs(np.subtract(picture.getpixel((13, 72)), (128, 64, 128))).max() < 10  # the box of road
