"""rein_hf.explain and its picture: features and attention as the formula has them, one basis, nothing left behind."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

import rein_hf
from rein_hf import BlockView, ReinConfig, block_views
from rein_hf.views import block_views_of_photo, explanation_sheet, rein_layers
from tests.support import vision_encoders
from tests.support.models import perturb
from tests.support.runs import HEAD


@pytest.fixture
def image():
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def with_registers(**options):
    """Four blocks of patch 16, of width 32, with a class token and three registers, and Rein."""
    torch.manual_seed(0)
    vit = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**vision_encoders.SIZES, **vision_encoders.P16, num_register_tokens=3)
    )
    model = get_peft_model(vit, ReinConfig(**{"r": 4, "num_tokens": 6, **options}))
    perturb(model)
    return model.eval()


def hooks(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def random_view(tokens=5, use_softmax=True) -> BlockView:
    generator = torch.Generator().manual_seed(3)
    before, delta = (torch.randn(4, 6, 16, generator=generator) for _ in range(2))
    attention = torch.randn(tokens, 4, 6, generator=generator)
    attention = attention.softmax(0) if use_softmax else attention
    return BlockView(2, before, before + 0.1 * delta, attention, use_softmax)


@pytest.mark.parametrize(
    "options", [{}, {"r": None}, {"use_softmax": False}, {"zero_init": True}, {"layers_to_transform": [1, 3]}]
)
def test_views_are_what_the_formula_gives(image, options):
    model = with_registers(**options)
    layer = model.base_model.model.encoder.layer
    with torch.no_grad():
        hidden = model(pixel_values=image, output_hidden_states=True).hidden_states
        tokens = layer.tokens("default")
    views, rows = block_views(model, image), options.get("layers_to_transform", range(4))
    assert [view.block for view in views] == sorted(row + 1 for row in rows)
    scale = 1 if options.get("zero_init") else layer.rein_scale["default"]
    use_softmax = options.get("use_softmax", True)
    for view in views:
        with torch.no_grad(), model.disable_adapter():
            before = layer[view.block - 1](hidden[view.block - 1])[0, 4:]
        t = tokens[list(rows).index(view.block - 1)]
        s = (before @ t.T / math.sqrt(32)).softmax(-1) if use_softmax else before @ t.T
        with torch.no_grad():
            values = layer.rein_token_to_feature["default"](t[1:])
            after = before + scale * layer.rein_delta["default"](s[:, 1:] @ values + before)
        assert view.use_softmax is use_softmax and view.attention.shape == (6, 4, 6)
        torch.testing.assert_close(view.before.flatten(0, 1), before)
        torch.testing.assert_close(view.after.flatten(0, 1), after)
        torch.testing.assert_close(view.attention.flatten(1).T, s)
        torch.testing.assert_close(view.change.flatten(), (after - before).norm(dim=1) / before.norm(dim=1))
        assert torch.equal(view.after.flatten(0, 1), hidden[view.block][0, 4:])


@pytest.mark.parametrize("name", ["dinov2", "beit", "siglip", "sam", "sam2 hiera"])
def test_views_on_other_architectures(name, image, tmp_path):
    """What a view shows after Rein is what the head is given, whatever the layout, the stages and the prefix."""
    base = rein_hf.build_segmenter(
        vision_encoders.write_encoder(name, tmp_path), {0: "road", 1: "car"}, image_size=64, num_queries=8, head=HEAD
    )
    model = rein_hf.add_rein(base, ReinConfig(r=4, num_tokens=8)).eval()
    perturb(model)
    encoder = model.get_base_model().model.pixel_level_module.encoder
    with torch.no_grad():
        maps = encoder(image).feature_maps
    views = block_views(model, image)
    assert [view.block for view in views] == list(range(1, sum(encoder.config.depths) + 1))
    same = range(4) if name == "sam2 hiera" else [2]  # the third map is of the patches' own stride
    for index in same:
        view = views[encoder.out_indices[index] - 1]
        assert torch.equal(view.after.permute(2, 0, 1), maps[index][0])
        torch.testing.assert_close(view.attention.sum(dim=0), torch.ones(maps[index].shape[-2:]))
    assert all(float(view.change.min()) > 0 for view in views)


def test_views_of_some_blocks_in_stages(image, tmp_path):
    base = rein_hf.build_segmenter(
        vision_encoders.write_encoder("sam2 hiera", tmp_path), {0: "road"}, image_size=64, num_queries=8, head=HEAD
    )
    model = rein_hf.add_rein(base, ReinConfig(r=4, num_tokens=8, layers_to_transform=[0, 2, 4, 5, 6])).eval()
    assert [view.block for view in block_views(model, image)] == [1, 3, 5, 6, 7]
    assert [view.block for view in block_views(model, image, count=3)] == [1, 5, 7]
    assert [view.block for view in block_views(model, image, count=1)] == [1]
    grids = [tuple(view.change.shape) for view in block_views(model, image, count=3)]
    assert grids == [(16, 24), (4, 6), (2, 3)]


def test_under_autocast(image):
    model = with_registers()
    expected = block_views(model, image)
    with torch.autocast("cpu", torch.bfloat16):
        found = block_views(model, image)
    for a, b in zip(found, expected, strict=True):
        assert a.before.dtype == a.after.dtype == a.attention.dtype == torch.float32
        torch.testing.assert_close(a.attention.sum(dim=0), torch.ones(4, 6))  # in bfloat16 it would be off by 1e-3
        for name in ("before", "after", "attention"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0.05, atol=0.05)
        assert not torch.equal(a.before, b.before)


def test_hooks_are_removed_after_errors_too(image):
    model = with_registers()
    before = hooks(model)
    block_views(model, image)
    assert hooks(model) == before

    def stop(*_):
        raise KeyboardInterrupt

    own = model.base_model.model.encoder.layer[2].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        block_views(model, image)
    own.remove()
    assert hooks(model) == before


def test_errors(image, vit_folder):
    model = with_registers()
    with pytest.raises(ValueError, match="pixel_values holds 2 images; expected one"):
        block_views(model, image.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="64x90 pixels and gives 20 patches; expected sides that are multiples"):
        block_views(model, image[..., :90])
    with model.disable_adapter(), pytest.raises(ValueError, match="expected a model with an active Rein adapter"):
        block_views(model, image)
    lora = get_peft_model(AutoModel.from_pretrained(vit_folder), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="active Rein adapter; found adapters {'default': 'LORA'}"):
        rein_layers(lora)
    with pytest.raises(ValueError, match="active Rein adapter; found adapters none"):
        rein_layers(lora.unload())


def test_colours_are_of_one_basis():
    """Three directions of different variance, known by construction, as red, green and blue."""
    generator = torch.Generator().manual_seed(0)
    components = torch.randn(2, 20, 30, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
    axes = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:3]
    features = components @ axes + 7
    view = BlockView(1, features[0], features[1], torch.ones(1, 20, 30), True)
    colours = np.stack(view.colours)
    assert colours.shape == (2, 20, 30, 3) and colours.dtype == np.uint8
    for channel in range(3):
        found, expected = colours[..., channel].astype(float).ravel(), components[..., channel].double().flatten()
        low, high = expected.quantile(0.01), expected.quantile(0.99)
        expected = (255 * ((expected - low) / (high - low)).clamp(0, 1)).numpy()
        # up to the sign, and to the little that axes found from 1200 samples are turned
        assert min(np.abs(found - expected).mean(), np.abs(found - (255 - expected)).mean()) < 12
    features[1, 5, 5] = features[0, 9, 9]
    before, after = BlockView(1, features[0], features[1], torch.ones(1, 20, 30), True).colours
    assert (after[5, 5] == before[9, 9]).all() and (after != before).mean() > 0.9


def test_colours_of_features_that_are_all_equal():
    view = BlockView(1, torch.ones(4, 6, 16), torch.ones(4, 6, 16), torch.ones(1, 4, 6), True)
    assert all(len(np.unique(colours)) == 1 for colours in view.colours)


def test_busiest_tokens():
    attention = torch.zeros(4, 2, 3)
    attention[1, 0], attention[2, 0], attention[3, 0] = 0.1, 0.5, 0.2
    view = BlockView(1, torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), attention, True)
    assert view.busiest_tokens(3) == [0, 2, 3]
    assert view.busiest_tokens(9) == [0, 2, 3, 1]
    assert view.busiest_tokens(1) == [0]


@pytest.mark.parametrize(
    ("size", "multiple", "seen"),
    [((80, 50), 16, (80, 48)), ((640, 320), 16, (128, 64)), ((300, 900), 32, (64, 192)), ((9, 90), 16, (32, 96))],
)
def test_a_photo_is_seen_whole(size, multiple, seen, rein_model, tmp_path):
    """At its own size, or with its short side at the crop of 64."""
    if multiple == 32:
        folder = vision_encoders.write_encoder("sam2 hiera", tmp_path)
        rein_model = rein_hf.add_rein(rein_hf.build_segmenter(folder, {0: "road"}, image_size=64, head=HEAD)).eval()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    processor = rein_hf.build_image_processor()
    picture, views = block_views_of_photo(rein_model, processor, photo, count=2)
    assert picture.size == seen and [view.block for view in views] == [1, 7 if multiple == 32 else 4]
    stride = 4 if multiple == 32 else 16
    assert views[0].change.shape == (seen[1] // stride, seen[0] // stride)
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(views[0].after, block_views(rein_model, pixel_values, count=1)[0].after)


def test_a_photo_is_seen_upright(rein_model):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8))
    photo.getexif()[0x0112] = 6
    processor = rein_hf.build_image_processor()
    picture, views = block_views_of_photo(rein_model, processor, photo, count=1)
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    expected, (view,) = block_views_of_photo(rein_model, processor, upright, count=1)
    assert picture.size == (48, 80) and np.array_equal(picture, expected)
    assert torch.equal(views[0].after, view.after)


def test_the_picture():
    views = [random_view(), random_view()]
    photo = Image.new("RGB", (96, 64), (40, 90, 160))
    sheet = explanation_sheet(photo, views, num_tokens=3, side=300)
    picture = (300, 200)
    assert sheet.size == (6 * (300 + 4) - 4, 104 + 2 * (20 + 200))
    pixels = np.asarray(sheet)
    cells = [
        pixels[104 + row * 220 + 20 :, column * 304 :][: picture[1], : picture[0]]
        for row in range(2)
        for column in range(6)
    ]
    before, after = views[0].colours
    assert (cells[0][::50, ::50] == before).all() and (cells[1][::50, ::50] == after).all()
    for cell, values in zip(
        cells[2:6], [views[0].change, *views[0].attention[views[0].busiest_tokens(3)]], strict=False
    ):
        small, values = cell[25::50, 25::50].astype(int), values.numpy()
        assert small[np.unravel_index(values.argmax(), (4, 6))].tolist() == [252, 254, 164]  # the end of inferno
        # the photo, grey and half as bright
        assert small[np.unravel_index(values.argmin(), (4, 6))].tolist() == [41, 41, 41]
    for top in (104, 324):  # captions, black on white
        for column in range(6):
            assert (pixels[top : top + 20, column * 304 :][:, :300] < 100).all(-1).any()
    narrow = explanation_sheet(Image.new("RGB", (64, 96)), views[:1], num_tokens=9, side=60)
    assert narrow.width > 8 * 60  # a caption is wider than a picture of 40
    assert narrow.height == 104 + 20 + 60


def test_the_picture_without_a_softmax():
    """Dot products have no unit, and the legend says what they are."""
    photo, shares, products = Image.new("RGB", (96, 64)), random_view(), random_view(use_softmax=False)
    legends = [np.asarray(explanation_sheet(photo, [view]))[:100] for view in (shares, products)]
    width = min(legend.shape[1] for legend in legends)
    assert (legends[0][:, :width] != legends[1][:, :width]).any()
