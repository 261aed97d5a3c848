"""How many operators a training step and an inference need: on a GPU each of them is a launch that Python makes.

Counted on a CPU, on the path that a GPU takes: 24 blocks of width 64, the paper's head of width 64, batch 4, bfloat16
autocast. The number does not depend on sizes.
"""

import copy

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import rein_hf
from rein_hf.backbone import backbone_of, cast_frozen_weights
from rein_hf.inference import prepare_for_inference
from rein_hf.training import compile_before_loss
from tests.support.operator_count import OperatorCount, launches_kernel, path_of_cuda
from tests.support.recorded_operators import recording_on


WIDTHS = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward")
COUNTS = (3, 5, 8, 6)  # masks of each image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 64, "num_hidden_layers": 24, "num_attention_heads": 1, "image_size": 56, "patch_size": 14}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    head = {**dict.fromkeys(WIDTHS, 64), "num_attention_heads": 8, "train_num_points": 64}
    classes = {index: str(index) for index in range(19)}
    model = rein_hf.add_rein(rein_hf.build_segmenter(str(folder), classes, image_size=64, head=head))
    cast_frozen_weights(backbone_of(model), torch.bfloat16)  # as training and evaluation in bfloat16 do
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rein_hf.head.class_and_mask_logits(model.eval(), torch.randn(4, 3, 64, 64))  # positions, once per size
    return model


def targets():
    generator = torch.Generator().manual_seed(0)
    masks = [(torch.rand(count, 64, 64, generator=generator) > 0.5).float() for count in COUNTS]
    return {"mask_labels": masks, "class_labels": [torch.arange(count) for count in COUNTS]}


def test_what_is_counted():
    """Operators of forward and backward passes that compute; no views, no allocations."""
    x = torch.ones(4, 6, requires_grad=True)
    with OperatorCount() as count:
        (x.view(2, 12)[0].expand(3, 12).t().unsqueeze(0).detach() * torch.empty(1)).sum()
    assert count.names == {"aten::mul.Tensor": 1, "aten::sum": 1} and count.total == 2
    with OperatorCount() as count:
        x.exp().sum().backward()
    assert count.names == {"aten::exp": 1, "aten::sum": 1, "aten::ones_like": 1, "aten::mul.Tensor": 1}
    with OperatorCount() as count:
        x.detach().add_(1).zero_()
        x.reshape(3, 8), x.t().reshape(3, 8)
    assert count.names == {"aten::add_.Tensor": 1, "aten::zero_": 1, "aten::clone": 1}
    assert not launches_kernel(torch.ops.aten.split.Tensor) and launches_kernel(torch.ops.aten.cat.default)


def test_a_training_step(model, monkeypatch):
    criterion = model.train().get_base_model().criterion
    counts = {}
    for name, module in (("criterion", criterion), ("matching", criterion.matcher)):

        def counted(*args, name=name, forward=module.forward, **kwargs):
            with OperatorCount() as counts[name]:
                return forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", counted)
    with path_of_cuda(), OperatorCount() as step:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values=torch.randn(4, 3, 64, 64), **targets()).loss
        loss.backward()
    model.zero_grad()
    assert counts["matching"].total <= 116, counts["matching"].names
    assert counts["criterion"].total <= 195, counts["criterion"].names
    assert step.total <= 3250, step.names


def test_a_recorded_training_step(model, monkeypatch):
    """What is launched besides two CUDA graphs, one for each pass: class predictions, loss and matching."""
    recording_on("cpu", monkeypatch)
    model = copy.deepcopy(model).train()
    compile_before_loss(model, backend="cudagraphs")
    pixel_values = torch.randn(4, 3, 64, 64)
    with path_of_cuda():
        for _ in range(3):
            with OperatorCount() as step:
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(pixel_values=pixel_values, **targets()).loss
                loss.backward()
            model.zero_grad()
    assert step.total <= 455, step.names


def test_a_further_decoder_output_costs_few_operators(model):
    """What is drawn, sampled and copied for it; all arithmetic with few numbers is done for all outputs together."""
    criterion = model.get_base_model().criterion
    labels = targets()
    totals = []
    for number in (1, 10):
        outputs = [(torch.randn(4, 100, 16, 16), torch.randn(4, 100, 20)) for _ in range(number)]
        auxiliary = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in outputs[:-1]]
        with path_of_cuda(), OperatorCount() as count:
            criterion(*outputs[-1], labels["mask_labels"], labels["class_labels"], auxiliary)
        totals.append(count.total)
    assert (totals[1] - totals[0]) / 9 <= 12, totals


def test_an_inference(model):
    model, images = prepare_for_inference(copy.deepcopy(model), torch.bfloat16), torch.randn(4, 3, 64, 64)
    with path_of_cuda(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rein_hf.head.class_and_mask_logits(model, images)  # what depends on weights alone, once
        with OperatorCount() as count:
            rein_hf.head.class_and_mask_logits(model, images)
    assert count.total <= 840, count.names


def test_labels_of_an_inference():
    """From logits to label maps of the size that the model saw; the kernel of scores copies the masks first."""
    classes, masks = torch.randn(2, 100, 20), torch.randn(2, 100, 16, 16)
    with path_of_cuda(), torch.no_grad(), OperatorCount() as count:
        rein_hf.predict_labels(rein_hf.semantic_scores(classes, masks, (64, 64)), (64, 64))
    assert count.total <= 5, count.names
