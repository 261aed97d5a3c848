"""Every known architecture under `torch.compile`, with Rein: one graph in training and in inference."""

import pytest
import torch
from torch._dynamo.utils import counters

import rein_hf
from rein_hf import ReinConfig
from tests.support import vision_encoders
from tests.support.models import perturb
from tests.support.runs import HEAD


# CLIP's tower and SAM's are in two checkpoints each; the code that is compiled is the same
COMPILED = [name for name in vision_encoders.CHECKPOINTS if name not in ("clip", "sam")]
# of these, code asks whether the width is the trained one, or whether windows need a padding: two graphs with torch
# 2.13, one with 2.11
ASKING = ("beit with absolute positions", "clip vision", "mae", "sam vision", "siglip", "vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_features_and_gradients_from_one_graph(name, tmp_path, monkeypatch):
    """The width is a symbol, so that one graph is for all sizes where the code does not ask for a width. Not for a
    hierarchical transformer, whose windows torch cannot express in symbols. `aot_eager_default_partitioner` traces the
    backward pass too."""
    # one block of SAM with windows and three without, not two and two: padded windows take long to trace in symbols
    monkeypatch.setitem(vision_encoders.SAM_VISION, "global_attn_indexes", [1, 2, 3])
    folder = vision_encoders.write_encoder(name, tmp_path)
    torch.manual_seed(0)
    model = rein_hf.build_segmenter(folder, {0: "road", 1: "car"}, image_size=64, num_queries=8, head=HEAD)
    model = rein_hf.add_rein(model, ReinConfig(r=4, num_tokens=8))
    perturb(model)
    encoder = rein_hf.backbone.backbone_of(model.eval())
    torch.compiler.reset()
    counters.clear()
    in_stages = encoder.config.in_stages
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager_default_partitioner", dynamic=False)
    for size in [(64, 64), (64, 96)][: 1 if in_stages else 2]:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        if not in_stages:
            torch._dynamo.maybe_mark_dynamic(images, 3)
        results = []
        for function in (encoder, compiled):
            model.zero_grad()
            maps = function(images).feature_maps
            sum(one.square().mean() for one in maps).backward()
            results.append([*maps, *(p.grad for p in encoder.parameters() if p.grad is not None)])
        assert len(results[0]) > 4
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * max(1.0, expected.abs().max().item()))
    assert 1 <= counters["stats"]["unique_graphs"] <= (2 if name in ASKING else 1)
    torch.compiler.reset()
