"""Videos, frame by frame: read, changed and written by PyAV (the extra `rein-hf[video]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import atomic_write


# Files that are taken for videos; what they hold is found out by FFmpeg.
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")

# Display rotation of a frame, counterclockwise, -> what turns it upright.
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

# FFmpeg's numbers of colour spaces as files note them: of none, and of those that are written, by PyAV's names; and of
# values from 16 to 235.
UNTAGGED = 2
COLOUR_TAGS = {"ITU709": 1, "ITU601": 6}
LIMITED_RANGE = 1
# Videos of so many lines are of ITU-R BT.709, smaller ones of BT.601, unless their files say otherwise.
HD_LINES = 720


def is_video(file: Path) -> bool:
    """Whether a file's name is that of a video."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def require_video_reader() -> Any:
    """The module `av`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError('Videos are read by PyAV, which is not installed: pip install "rein-hf[video]".') from error
    return av


def transform_video(
    source: Path,
    target: Path,
    transform: Callable[[Image.Image], Image.Image],
    progress: Callable[[int, int], object] | None = None,
    comment: str | None = None,
) -> int:
    """Writes a video whose frames are those of another, changed. One frame after the other is decoded, changed and
    encoded (H.264), so that a video of any length takes the memory of some frames. Frames are shown at the same times.
    Sound is left out, and of odd sides the last pixel, which H.264 cannot have. After an error no part of `target` is
    left.

    Args:
        source (`Path`): the video.
        target (`Path`): where the changed one goes, e.g. "overlay.mp4".
        transform: gives for each frame, an upright RGB image, a picture, all of one size.
        progress (*optional*): called after each frame with the number of frames that are done, and of all, or 0 where
            the file does not say it.
        comment (`str`, *optional*): to be written into the file as well, see [`comment_of_video`].

    Returns:
        The number of frames.

    Raises:
        ValueError: PyAV is not installed; `source` cannot be read, holds no video, or no frame.
    """
    av = require_video_reader()
    try:
        reader = av.open(str(source))
    except (OSError, ValueError) as error:  # of which all errors of PyAV are subclasses
        raise ValueError(f"{source} cannot be read as a video: {error}.") from error
    with reader, atomic_write(target) as partial:
        if not reader.streams.video:
            raise ValueError(f"{source} cannot be read as a video: it holds no pictures.")
        stream, count, writer, encoder = reader.streams.video[0], 0, None, None
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate or 25
        try:
            for frame in _frames(reader, stream, source):
                picture = transform(_upright(frame))
                if writer is None:
                    writer = av.open(str(partial), "w")
                    if comment is not None:
                        writer.metadata["comment"] = comment
                    encoder = writer.add_stream("libx264", rate=rate, options={"crf": "20"})
                    encoder.width, encoder.height = (side // 2 * 2 for side in picture.size)
                    encoder.pix_fmt = "yuv420p"  # which all players know
                    space = _usual_colorspace(encoder.height)
                    encoder.colorspace, encoder.color_range = COLOUR_TAGS[space], LIMITED_RANGE
                    encoder.time_base = stream.time_base
                    first = frame.pts
                changed = av.VideoFrame.from_image(picture.crop((0, 0, encoder.width, encoder.height)))
                changed = changed.reformat(format="yuv420p", dst_colorspace=space, dst_color_range=LIMITED_RANGE)
                if frame.pts is not None and first is not None:
                    changed.pts, changed.time_base = frame.pts - first, frame.time_base
                writer.mux(encoder.encode(changed))
                count += 1
                if progress is not None:
                    progress(count, stream.frames)
            if encoder is None:
                raise ValueError(f"{source} cannot be read as a video: it holds no frame.")
            writer.mux(encoder.encode(None))
        finally:
            if writer is not None:
                writer.close()
    return count


def comment_of_video(path: Path) -> str | None:
    """What [`transform_video`] wrote into a file beside the frames; None if there is no such file or nothing in it."""
    try:
        with require_video_reader().open(str(path)) as video:
            return video.metadata.get("comment")
    except (OSError, ValueError):  # of which all errors of PyAV are subclasses
        return None


def _frames(reader: Any, stream: Any, source: Path) -> Iterator[Any]:
    frames = reader.decode(stream)
    while True:
        try:
            frame = next(frames, None)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source} cannot be read as a video: {error}.") from error
        if frame is None:
            return
        yield frame


def _upright(frame: Any) -> Image.Image:
    """A frame as people see it: telephones store it as the sensor was held, and note how to turn it."""
    space = _usual_colorspace(frame.height) if frame.colorspace == UNTAGGED else None
    image, turn = frame.to_image(src_colorspace=space), TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


def _usual_colorspace(height: int) -> str:
    """What players take the colours of a video for whose file does not say it, as PyAV names it."""
    return "ITU709" if height >= HD_LINES else "ITU601"
