"""rein_hf.head: the fast modules give what the stock modules give, in every way that a module is used."""

import copy

import pytest
import torch
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former import modeling_mask2former as stock

import rein_hf
from rein_hf.head import class_and_mask_logits, mask2former, transformer_decoder
from rein_hf.head.deformable_attention import DeformableAttention
from tests.support.runs import HEAD


STOCK = {ours: theirs for theirs, ours in mask2former.FAST_MODULES.items()}


def with_stock_head(model):
    """The same model, its head of transformers' own classes."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = STOCK.get(type(module), type(module))
    return model


def logits_of(output):
    return output.class_queries_logits, output.masks_queries_logits


def attention(dtype=torch.float64) -> DeformableAttention:
    """A deformable attention whose samples fall on every side of the borders of its maps."""
    torch.manual_seed(0)
    layer = DeformableAttention(32, 4, 3, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
        layer.sampling_offsets.weight.mul_(3)
    return layer.to(dtype)


SHAPES = [(2, 3), (4, 6), (8, 12)]


def inputs(dtype=torch.float64, batch: int = 2, queries: int = 7) -> dict:
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "hidden_states": random(batch, queries, 32).requires_grad_(),
        "attention_mask": random(batch, 126) > 1.5,
        "encoder_hidden_states": random(batch, 126, 32).requires_grad_(),
        "position_embeddings": random(1, queries, 32),
        "reference_points": random(batch, queries, 3, 2).sigmoid().requires_grad_(),
        "spatial_shapes_list": SHAPES,
    }


def run(layer, arguments: dict) -> dict[str, torch.Tensor]:
    """Outputs, and the gradients of inputs and parameters."""
    output, weights = layer(**arguments)
    loss = (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()
    tensors = {n: t for n, t in arguments.items() if isinstance(t, torch.Tensor) and t.requires_grad}
    tensors |= dict(layer.named_parameters())
    gradients = torch.autograd.grad(loss + weights.square().sum(), list(tensors.values()))
    return {"output": output.detach(), "weights": weights.detach()} | dict(zip(tensors, gradients, strict=True))


@pytest.mark.parametrize("left_out", [(), ("attention_mask",), ("attention_mask", "position_embeddings")])
def test_deformable_attention_and_its_gradients_are_the_stock_ones(left_out):
    layer, arguments = attention(), {**inputs(), **dict.fromkeys(left_out)}
    found, expected = run(layer, arguments), run(with_stock_head(layer), arguments)
    assert len(found) == 13 and all(tensor.abs().max() > 1e-3 for tensor in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-10, msg=name)


def test_samples_fall_on_every_side_of_the_borders():
    """What the test above relies on, seen in the stock module's own arithmetic."""
    layer, arguments = attention(), inputs()
    offsets = layer.sampling_offsets(arguments["hidden_states"] + arguments["position_embeddings"])
    offsets = offsets.view(2, 7, 4, 3, 4, 2)
    for level, (height, width) in enumerate(SHAPES):
        for axis, size in ((0, width), (1, height)):
            points = arguments["reference_points"][:, :, None, level, None, axis] * size
            pixels = points - 0.5 + offsets[:, :, :, level, :, axis]
            for low, high in ((-99, -1), (-1, 0), (0, size - 1), (size - 1, size), (size, 99)):
                assert ((pixels > low) & (pixels < high)).any()


def test_masks_without_a_gradient_are_left_out_of_the_products():
    """Two images, three outputs: of one a few masks have a gradient, of one all, of one none, and it gets none."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    embeddings = [torch.randn(2, 6, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    gradients = []
    for masks in (
        transformer_decoder.mask_logits(embeddings, pixels),
        [torch.einsum("bmc,bchw->bmhw", one, pixels) for one in embeddings],
    ):
        loss = masks[0][:, [1, 4]].square().sum() + masks[0][1, 5, 2, 2] + masks[2].sin().sum()
        gradients.append(torch.autograd.grad(loss, [pixels, *embeddings], allow_unused=True))
    assert gradients[0][2] is None
    torch.testing.assert_close(gradients[0], gradients[1])


def test_nan_coordinates_give_nan_outputs():
    """A diverged run is seen in its loss; it does not end in an index out of range."""
    arguments = inputs(torch.float32)
    layer = attention(torch.float32)
    with torch.no_grad():
        layer.sampling_offsets.bias[0] = torch.nan
    found, expected = (one(**arguments)[0] for one in (layer, with_stock_head(layer)))
    assert found.isnan().any() and found.shape == expected.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deformable_attention_in_lower_precision(dtype):
    """No further from the float64 result than the stock module."""
    exact = attention()(**inputs())[0]
    layer, arguments = attention(dtype), inputs(dtype)
    found, stock_found = layer(**arguments)[0], with_stock_head(layer)(**arguments)[0]
    assert found.dtype == stock_found.dtype == dtype
    error, stock_error = ((one - exact).norm() / exact.norm() for one in (found, stock_found))
    assert error < max(1.2 * stock_error, 1e-6)


def test_positions_are_the_stock_ones_and_made_once():
    positions = stock.Mask2FormerSinePositionEmbedding(16, normalize=True)
    shape, device = torch.Size((3, 5, 4, 6)), torch.device("cpu")
    expected = positions(shape, device, torch.float32)
    mask2former.use_fast_modules(positions)
    with torch.inference_mode():
        found = positions(shape, device, torch.float32)
    assert torch.equal(found, expected) and not found.is_inference()
    assert positions(shape, device, torch.float32).data_ptr() == found.data_ptr()
    assert positions(shape, device, torch.float64).dtype == torch.float64
    assert positions(torch.Size((1, 5, 6, 4)), device, torch.float32).shape == (1, 32, 6, 4)
    mask = torch.zeros(3, 4, 6, dtype=torch.bool)
    mask[..., 0] = True
    assert not torch.equal(positions(shape, device, torch.float32, mask), expected)


@torch.no_grad()
def check_logits(model, images):
    """That the logits of a model in float64 are those of the stock head, which are returned."""
    expected = logits_of(with_stock_head(model)(pixel_values=images))
    for found in (class_and_mask_logits(model, images), logits_of(model(pixel_values=images))):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    return expected


def test_logits_are_the_stock_models(rein_model):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_logits(rein_model.double(), images)


def test_full_masks_are_made_once(rein_model, pixel_values, monkeypatch):
    """Inference asks for those of the last of three outputs, training for those of all together."""
    asked, compute = [], transformer_decoder.mask_logits
    for module in (mask2former, transformer_decoder):
        monkeypatch.setattr(
            module, "mask_logits", lambda one, pixels: (asked.append(len(one)), compute(one, pixels))[1]
        )
    with torch.no_grad():
        class_and_mask_logits(rein_model, pixel_values)
        rein_model(pixel_values=pixel_values)
    assert asked == [1, 3]


def test_auxiliary_outputs_and_gradients_are_untouched(rein_model, pixel_values):
    model = rein_model.double()
    model.set_adapter("default")
    images = pixel_values.double()
    outputs, gradients = [], []
    for one in (model, with_stock_head(model)):
        output = one(pixel_values=images, output_auxiliary_logits=True)
        outputs.append([tensor for aux in output.auxiliary_logits for tensor in aux.values()])
        sum(tensor.sum() for tensor in outputs[-1]).backward()
        gradients.append({name: p.grad for name, p in one.named_parameters() if p.grad is not None})
    # the last output is not among them: no gradient, or one of zero, for what only it depends on
    assert len(outputs[0]) == 4 and gradients[0].keys() >= gradients[1].keys()
    assert all((gradients[0][name] == 0).all() for name in gradients[0].keys() - gradients[1].keys())
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    largest = max(gradient.abs().max() for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-8, atol=1e-12 * largest, msg=name)


def test_dropout_drops_values_and_never_a_layer(build, pixel_values):
    """With a layer left out the attention mask of the next one would be of another level's size."""
    model = build(head={**HEAD, "dropout": 0.1}).train()
    masks = [(torch.rand(2, 64, 64) > 0.5).float() for _ in pixel_values]
    targets = {"mask_labels": masks, "class_labels": [torch.tensor([0, 2])] * 2}
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for step in range(20):
        torch.manual_seed(step)
        output = model(pixel_values=pixel_values, output_auxiliary_logits=True, **targets)
        assert len(output.auxiliary_logits) == 2 and output.loss.isfinite()
        output.loss.backward()
        assert all(p.grad.any() for layer in model.model.transformer_module.decoder.layers for p in layer.parameters())
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        one, other = (model(pixel_values=pixel_values).masks_queries_logits for _ in range(2))
        assert not torch.allclose(one, other)  # values are dropped
        without = build()
        without.load_state_dict(model.state_dict())
        found, expected = (logits_of(one.eval()(pixel_values=pixel_values)) for one in (model, without))
    assert all(map(torch.equal, found, expected))


def test_adapters_are_respected(rein_model, pixel_values):
    """Switched off, the head is the base model's; back on, the adapter's."""
    with torch.no_grad():
        on = class_and_mask_logits(rein_model, pixel_values)
        with rein_model.disable_adapter():
            off = class_and_mask_logits(rein_model, pixel_values)
            expected = logits_of(rein_model(pixel_values=pixel_values))
        again = class_and_mask_logits(rein_model, pixel_values)
    torch.testing.assert_close(off, expected)
    assert not torch.allclose(off[1], on[1], atol=1e-2)
    assert all(map(torch.equal, on, again))


def test_state_dict_and_whole_models_stay_stock(segmenter, pixel_values, tmp_path):
    """Keys are the stock model's; a saved model gives the same with the stock class and with ours."""
    assert segmenter.state_dict().keys() == with_stock_head(segmenter).state_dict().keys()
    segmenter.eval().save_pretrained(tmp_path)
    theirs = type(segmenter).from_pretrained(tmp_path).eval()
    ours = rein_hf.from_pretrained(tmp_path)
    assert not any(type(module) in STOCK for module in theirs.modules())
    assert {type(module) for module in ours.modules()} >= set(STOCK)
    with torch.no_grad():
        expected = logits_of(theirs(pixel_values=pixel_values))
        for model in (theirs, ours):  # a stock head is simply called
            for a, b in zip(class_and_mask_logits(model, pixel_values), expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_copies_for_modules_to_save_are_fast_too(rein_model):
    decoder = rein_model.base_model.model.model.pixel_level_module.decoder
    for copied in (decoder.original_module, decoder.modules_to_save["default"]):
        assert isinstance(copied.encoder.layers[0].self_attn, DeformableAttention)


@pytest.mark.parametrize("where", ["peft", "model", "inner", "pixels", "transformer"])
def test_hooks_are_not_skipped(rein_model, pixel_values, where):
    base = rein_model.get_base_model()
    modules = {"peft": rein_model, "model": base, "inner": base.model}
    modules |= {"pixels": base.model.pixel_level_module, "transformer": base.model.transformer_module}
    module, called = modules[where], []
    handle = module.register_forward_hook(lambda *_: called.append(where))
    with torch.no_grad():
        hooked = class_and_mask_logits(rein_model, pixel_values)
        handle.remove()
        free = class_and_mask_logits(rein_model, pixel_values)
    assert called == [where]
    torch.testing.assert_close(hooked, free)


def test_a_hook_changes_what_the_self_attention_gets(rein_model, pixel_values):
    attention = rein_model.get_base_model().model.transformer_module.decoder.layers[0].self_attn
    plain = rein_model(pixel_values=pixel_values).class_queries_logits
    for name in ("hidden_states", "position_embeddings"):
        given = []

        def zero(module, args, kwargs, name=name, given=given):
            if name == "hidden_states":
                given.append(torch.zeros_like(args[0], requires_grad=True))
                return (given[0],), kwargs
            given.append(torch.zeros_like(kwargs[name], requires_grad=True))
            return args, {**kwargs, name: given[0]}

        hook = attention.register_forward_pre_hook(zero, with_kwargs=True)
        changed = rein_model(pixel_values=pixel_values).class_queries_logits
        hook.remove()
        changed.square().sum().backward()
        assert not torch.allclose(changed, plain) and given[0].grad.abs().sum() > 0


def test_gradient_checkpointing_gives_the_same_gradients(rein_model, pixel_values, monkeypatch):
    """Mask2Former has to be told that it can."""
    monkeypatch.setattr(Mask2FormerForUniversalSegmentation, "supports_gradient_checkpointing", True)
    rein_model.train().set_adapter("default")
    gradients = []
    for _ in range(2):
        rein_model.zero_grad()
        rein_model(pixel_values=pixel_values).masks_queries_logits.square().mean().backward()
        gradients.append([p.grad.clone() for p in rein_model.parameters() if p.grad is not None])
        rein_model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert gradients[0] and len(gradients[0]) == len(gradients[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.slow
def test_compiles_into_one_graph_for_several_sizes(rein_model):
    """No graph break; the second and the third size, that of the trained crop, need no other graph."""
    rein_model.requires_grad_(False)
    torch._dynamo.reset()
    compiled = torch.compile(class_and_mask_logits, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for index, size in enumerate([(64, 96), (128, 160), (64, 64)]):
            images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
            with torch._dynamo.config.patch(error_on_recompile=index > 0):
                found = compiled(rein_model, images)
            for ours, eager in zip(found, class_and_mask_logits(rein_model, images), strict=True):
                torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
def test_exported_graphs_take_batches_of_any_size(rein_model):
    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = rein_model.requires_grad_(False)

        def forward(self, images):
            return class_and_mask_logits(self.model, images)

    batch = torch.export.Dim("batch", min=1, max=16)
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(Logits(), (images[:2],), dynamic_shapes=({0: batch},), strict=True)
        for number in (1, 2, 5):
            found = program.module()(images[:number])
            for ours, eager in zip(found, class_and_mask_logits(rein_model, images[:number]), strict=True):
                torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
