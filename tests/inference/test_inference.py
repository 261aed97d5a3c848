"""rein_hf.inference: scores against naive loops, windows at the paper's positions, their averages."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F

import rein_hf
from rein_hf.images import fitted_size
from rein_hf.inference import predict_labels, requested_size, segment, semantic_scores, slide_inference
from rein_hf.inference import windows as inference
from tests.support.models import make_decided


# class logits whose softmax gives the first of two classes all the score
SURE = torch.tensor([[40.0, -40.0, -40.0]])


class FakeModel(nn.Module):
    """A Mask2Former of one query and two classes; `mask` makes mask logits (B, h, w) of windows (B, 3, h, w)."""

    def __init__(self, mask, crop: int = 512, patch: int = 16):
        super().__init__()
        self.mask, self.windows = mask, []
        sizes = SimpleNamespace(image_size=crop, patch_size=patch)
        self.config = SimpleNamespace(model_type="mask2former", backbone_config=SimpleNamespace(backbone_config=sizes))
        self.device = torch.device("cpu")
        self.eval()

    def forward(self, pixel_values):
        self.windows += list(pixel_values)
        return SimpleNamespace(
            class_queries_logits=SURE.to(pixel_values).expand(len(pixel_values), 1, 3),
            masks_queries_logits=self.mask(pixel_values)[:, None],
        )


def coordinates(height: int, width: int) -> torch.Tensor:
    """An image (1, 3, height, width) whose pixels hold their row + 1, their column + 1 and 1; padding is 0."""
    rows, columns = torch.meshgrid(torch.arange(height) + 1.0, torch.arange(width) + 1.0, indexing="ij")
    return torch.stack([rows, columns, torch.ones(height, width)])[None]


def seen_boxes(model: FakeModel) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom and right of the windows seen."""
    return [
        (*(int(w[axis][w[axis] > 0].min()) - 1 for axis in (0, 1)), *(int(w[axis].max()) for axis in (0, 1)))
        for w in model.windows
    ]


def equal_masks(windows: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(windows), 2, 2, dtype=windows.dtype)


def test_semantic_scores_are_the_papers_sum():
    generator = torch.Generator().manual_seed(0)
    classes = 3 * torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    masks = 3 * torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    found = semantic_scores(classes, masks, (7, 6))
    expected = torch.zeros(2, 3, 7, 6, dtype=torch.float64)
    for image in range(2):
        for query in range(5):
            exponentials = classes[image, query].exp()
            big = F.interpolate(masks[image, query][None, None], (7, 6), mode="bilinear", align_corners=False)[0, 0]
            for index in range(3):
                expected[image, index] += exponentials[index] / exponentials.sum() / (1 + (-big).exp())
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found.sum(1), torch.full_like(found[:, 0], 5 / 2))  # no-object takes its share


@pytest.mark.parametrize("size", [(100, 7), (16, 40), (33, 33), (5, 300), (1, 1)])
def test_strips_of_rows_are_the_whole_resize(size):
    """Larger and smaller, of a height that strips of 16 rows fill or not."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    masks = 3 * torch.randn(2, 6, 25, 30, generator=generator, dtype=torch.float64)
    whole = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    expected = torch.einsum("bmk,bmhw->bkhw", classes.softmax(-1)[..., :-1], whole.sigmoid())
    torch.testing.assert_close(semantic_scores(classes, masks, size), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(predict_labels(masks, size), whole.argmax(dim=1).to(torch.uint8))


def test_mask_logits_are_upsampled_before_the_sigmoid():
    masks = torch.tensor([[[[-8.0, 8.0]]]])
    found = semantic_scores(SURE[None], masks, (1, 4))[0, 0, 0]
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor([-8.0, -4.0, 4.0, 8.0])))


def test_masks_do_not_go_through_384_pixels():
    """A line of one pixel survives at 512x512; the stock post-processing would blur it."""
    masks = torch.full((1, 1, 512, 512), -20.0)
    masks[..., 301] = 20.0
    found = semantic_scores(SURE[None], masks, (512, 512))[0, 0]
    assert (found[:, 301] > 0.999).all() and (found[:, 300] < 1e-6).all() and (found[:, 302] < 1e-6).all()


@pytest.mark.parametrize(
    ("crop", "size", "tops", "lefts"),
    [
        (512, (512, 1024), [0], [0, 341, 512]),
        (512, (720, 1280), [0, 208], [0, 341, 682, 768]),
        (512, (540, 960), [0, 28], [0, 341, 448]),
        (512, (512, 853), [0], [0, 341]),
        (512, (512, 854), [0], [0, 341, 342]),
        (1024, (1080, 1920), [0, 56], [0, 683, 896]),
        (256, (256, 512), [0], [0, 171, 256]),
    ],
)
def test_windows_are_where_the_paper_has_them(crop, size, tops, lefts):
    """Default crop and stride: 341 for 512, 683 for 1024, 171 for 256; the last windows are moved back inside."""
    model = FakeModel(equal_masks, crop)
    slide_inference(model, coordinates(*size))
    assert seen_boxes(model) == [(top, left, top + crop, left + crop) for top in tops for left in lefts]


def test_given_crop_and_stride_are_used():
    model = FakeModel(equal_masks)
    slide_inference(model, coordinates(160, 256), crop=128, stride=85)
    lefts = [0, 85, 128]
    assert seen_boxes(model) == [(top, left, top + 128, left + 128) for top in (0, 32) for left in lefts]


@pytest.mark.parametrize("together", [1, 3, 8])
def test_windows_are_averaged_by_count(monkeypatch, together):
    """Each window answers with a constant of its own; how many go through the model at once does not matter."""
    monkeypatch.setattr(inference, "windows_at_once", lambda *args: together)

    def constant(windows):
        first = windows[:, 0, 0, 0] * 3 + windows[:, 1, 0, 0]
        return (first / 100)[:, None, None].expand(-1, 4, 4)

    image = coordinates(80, 112)
    found = slide_inference(FakeModel(constant), image, crop=48, stride=32)
    total, count = torch.zeros(80, 112), torch.zeros(80, 112)
    for top in (0, 32):
        for left in (0, 32, 64):
            total[top : top + 48, left : left + 48] += torch.sigmoid(torch.tensor(((top + 1) * 3 + left + 1) / 100))
            count[top : top + 48, left : left + 48] += 1
    assert sorted(count.unique().tolist()) == [1, 2, 4]
    torch.testing.assert_close(found[0, 0], total / count)
    assert found.shape == (1, 2, 80, 112) and found[0, 1].max() < 1e-6


def test_images_of_a_batch_stay_apart():
    image = torch.cat([coordinates(40, 72), 2 * coordinates(40, 72), coordinates(40, 72).flip(-1)])

    def answer(windows):
        return windows[:, 1] / 50

    together = slide_inference(FakeModel(answer), image, crop=32, stride=20)
    alone = torch.cat([slide_inference(FakeModel(answer), one[None], crop=32, stride=20) for one in image])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(alone[0], alone[1])


def test_a_small_image_is_one_window_of_its_own_size():
    model = FakeModel(equal_masks)
    assert slide_inference(model, coordinates(64, 96)).shape == (1, 2, 64, 96)
    assert [window.shape for window in model.windows] == [(3, 64, 96)]
    wide = FakeModel(equal_masks)
    slide_inference(wide, coordinates(64, 600))
    assert [window.shape for window in wide.windows] == [(3, 64, 512)] * 2
    assert seen_boxes(wide) == [(0, 0, 64, 512), (0, 88, 64, 600)]


def test_sides_that_patches_do_not_fill_are_padded_and_cut(rein_model):
    """Equal to padding by hand; one patch alone is made two, which the coarsest map needs."""
    image = torch.randn(1, 3, 41, 57, generator=torch.Generator().manual_seed(0))
    found = slide_inference(rein_model, image)
    with torch.no_grad():
        output = rein_model(pixel_values=F.pad(image, (0, 64 - 57, 0, 48 - 41)))
    expected = semantic_scores(output.class_queries_logits, output.masks_queries_logits, (48, 64))[..., :41, :57]
    assert found.shape == (1, 3, 41, 57)
    torch.testing.assert_close(found, expected)
    assert slide_inference(rein_model, image[..., :5, :]).shape == (1, 3, 5, 57)
    tiny = FakeModel(equal_masks)
    slide_inference(tiny, image[..., :1, :17])
    assert [window.shape for window in tiny.windows] == [(3, 32, 32)] and not tiny.windows[0][:, 1:].any()


def test_one_window_is_the_model_itself(rein_model, pixel_values):
    found = slide_inference(rein_model, pixel_values)
    with torch.no_grad():
        output = rein_model(pixel_values=pixel_values)
    expected = semantic_scores(output.class_queries_logits, output.masks_queries_logits, (64, 64))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_windows_of_the_model_are_averaged(rein_model):
    """The tiny model is of crop 64, so of stride 43: three windows by hand."""
    image = torch.randn(1, 3, 64, 120, generator=torch.Generator().manual_seed(0))
    total, count = torch.zeros(1, 3, 64, 120), torch.zeros(120)
    for left in (0, 43, 56):
        window = slide_inference(rein_model, image[..., left : left + 64])
        total[..., left : left + 64] += window
        count[left : left + 64] += 1
    torch.testing.assert_close(slide_inference(rein_model, image), total / count)


@pytest.mark.parametrize(("stride", "crop"), [(0, 64), (-3, 64), (65, 64), (513, None)])
def test_strides_that_leave_pixels_unseen_are_refused(stride, crop):
    with pytest.raises(ValueError, match=rf"stride is {stride}; expected 1 to crop \({crop or 512}\)"):
        slide_inference(FakeModel(equal_masks), coordinates(64, 64), crop, stride)


def test_every_pixel_is_seen_by_every_stride():
    for stride in (1, 7, 32):
        assert slide_inference(FakeModel(equal_masks), coordinates(33, 50), crop=32, stride=stride).isfinite().all()


def test_scores_are_float32_under_autocast(rein_model, pixel_values):
    """The model may compute in bfloat16; sums of queries and windows are not."""
    exact = slide_inference(rein_model, pixel_values, crop=48, stride=32)
    with torch.autocast("cpu", torch.bfloat16):
        found = slide_inference(rein_model, pixel_values, crop=48, stride=32)
    assert found.dtype == exact.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, exact, atol=0.3, rtol=0.1)


def test_labels_are_taken_after_the_resize_of_scores():
    """Where two columns meet the interpolated score decides, and not the nearest label."""
    scores = torch.tensor([[[[0.9, 0.0]], [[0.0, 0.3]]]])
    # at eight columns the first class falls from 0.9 in steps of 0.225, the second rises to 0.3 in steps of 0.075
    assert predict_labels(scores, (1, 8)).tolist() == [[[0, 0, 0, 0, 0, 1, 1, 1]]]
    assert predict_labels(scores, (1, 2)).tolist() == [[[0, 1]]]
    assert predict_labels(scores, (2, 2)).tolist() == [[[0, 1], [0, 1]]]
    assert predict_labels(scores, (1, 2)).dtype == torch.uint8


@pytest.mark.parametrize("size", [(64, 64), (90, 50), (17, 70)])
def test_segment_a_photo(rein_model, size):
    """From a photo to class ids of its size, the same as by hand."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    processor = rein_hf.build_image_processor()
    label = segment(rein_model, processor, photo)
    assert (label.shape, label.dtype) == (size[::-1], np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    values = torch.from_numpy(((np.asarray(photo) / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
    expected = slide_inference(rein_model, values).argmax(1)[0].numpy()
    assert (label == expected).mean() > 0.99
    assert np.array_equal(segment(rein_model, processor, photo.convert("RGBA")), label)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_segmented_as_it_is_seen(rein_model, orientation):
    """The map lies over what people see, not over the pixels as they were stored."""
    make_decided(rein_model)
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((70, 50), Image.Resampling.BICUBIC)
    photo.getexif()[0x0112] = orientation
    processor, upright = rein_hf.build_image_processor(), ImageOps.exif_transpose(photo)
    expected = segment(rein_model, processor, upright)
    assert expected.shape == ((70, 50) if orientation > 4 else (50, 70)) and len(np.unique(expected)) > 1
    assert np.array_equal(segment(rein_model, processor, photo), expected)
    small = segment(rein_model, processor, photo, size=(50, 50))
    assert small.shape == expected.shape and np.array_equal(
        small, segment(rein_model, processor, upright, size=(50, 50))
    )


def test_sixteen_bits_are_scaled(rein_model):
    """Pillow alone would make nearly all of them white."""
    make_decided(rein_model)
    values = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    processor = rein_hf.build_image_processor()
    deep = Image.fromarray(values.astype(np.uint16) * 256 + 99)
    assert np.array_equal(
        segment(rein_model, processor, deep), segment(rein_model, processor, Image.fromarray(values))
    )


def test_ids_that_8_bits_do_not_hold_are_refused():
    """Of 300 classes the last would come out as 43, and of 256 as the id of no class."""
    scores = torch.zeros(1, 255, 1, 2)
    scores[0, 254, 0, 0] = 1
    assert predict_labels(scores, (1, 2)).tolist() == [[[254, 0]]]
    for count in (256, 300):
        with pytest.raises(ValueError, match=f"scores are of {count} classes; expected 255 at most"):
            predict_labels(torch.zeros(1, count, 1, 2), (1, 2))


def test_progress_of_windows():
    """Eight at once, here of 4 x 5."""
    calls = []
    slide_inference(FakeModel(equal_masks), coordinates(160, 192), 64, 32, lambda *call: calls.append(call))
    assert calls == [(8, 20), (16, 20), (20, 20)]


@pytest.mark.parametrize("head", ["mask2former", "upernet"])
def test_models_in_training_mode_are_refused_and_stay_as_they_are(build, head):
    """The running statistics of batch norm would change."""
    model = rein_hf.add_rein(build(**({} if head == "mask2former" else {"head": {"model_type": head}})))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    photo, processor = Image.new("RGB", (64, 64), "red"), rein_hf.build_image_processor()
    for call in (
        lambda: segment(model, processor, photo),
        lambda: segment(model, processor, photo, return_scores=True),
        lambda: slide_inference(model, torch.zeros(1, 3, 64, 64)),
    ):
        with pytest.raises(ValueError, match=r"The model is in training mode, .*; expected model\.eval\(\)"):
            call()
    assert model.training and all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert segment(model.eval(), processor, photo).shape == (64, 64)


def test_windows_without_pixels_are_refused(rein_model):
    with pytest.raises(ValueError, match="crop is 0; expected a number of pixels, 1 at least"):
        slide_inference(rein_model, torch.zeros(1, 3, 64, 64), crop=0)


@pytest.mark.parametrize(
    "size", [(0, 0), (0, 512), (-5, -5), (128, 64, 3), (512,), 512, "512x256", (512.5, 256.2), (64, True), [64, None]]
)
def test_sizes_that_are_no_width_and_height_are_refused(rein_model, size):
    """Some of them gave a map of one class, or one of other labels."""
    message = re.escape(f"size is {size!r}; expected (width, height) in pixels")
    with pytest.raises(ValueError, match=message):
        segment(rein_model, rein_hf.build_image_processor(), Image.new("RGB", (64, 32)), size=size)
    assert fitted_size((64, 32), [np.int64(32), 32]) == (32, 16)


@pytest.mark.parametrize(
    ("image", "size", "short_side", "expected"),
    [
        ((4000, 3000), None, None, None),
        ((4000, 3000), "1024x512", None, (1024, 512)),
        ((4000, 3000), None, 480, (640, 480)),
        ((3000, 4000), None, 480, (480, 640)),
        ((100, 30), None, 60, (200, 60)),
        ((9000, 1), None, 1, (9000, 1)),
    ],
)
def test_requested_sizes(image, size, short_side, expected):
    found = requested_size(image, size, short_side)
    assert found == expected
    if short_side:
        assert fitted_size(image, found) == expected


@pytest.mark.parametrize("size", ["", "80", "80x", "x80", "-8x8", "08x8", "8x0", "8.5x8", "8x8x8", " 8x8", "8X8"])
def test_requested_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=f"--size is {size!r}; expected WIDTHxHEIGHT"):
        requested_size((10, 10), size)


@pytest.mark.parametrize(("size", "expected"), [((64, 64), [(1, 1)]), ((64, 96), [(2, 2)])])
def test_progress_is_told_of_one_window_too(rein_model, size, expected):
    calls = []
    slide_inference(rein_model, torch.zeros(1, 3, *size), crop=64, progress=lambda *numbers: calls.append(numbers))
    assert calls == expected
