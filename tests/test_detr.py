"""DETR against Hugging Face transformers with scrambled weights: reading, outputs, matching, losses; its decoder; its export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from pelagia.core import boxes as upright
from pelagia.core.frame import Frame
from pelagia.core.types import Category, Instances
from pelagia.decode import DecodeOptions
from pelagia.errors import CheckpointError, ModelError, OptionError
from pelagia.export.onnx import export_onnx
from pelagia.models import registry
from pelagia.models.foreign import load_any
from pelagia.models.model import Model, Targets
from pelagia.models.queries.detr import DETR, Options
from pelagia.models.queries.detr_weights import our_name
from pelagia.train.options import defaults_of
from pelagia.train.transfer import transfer

SIZE = (96, 160)
CLASSES = 5
CATEGORIES = [Category(index, str(index)) for index in range(CLASSES)]


def reference(seed: int = 0, **changes: Any) -> DetrForObjectDetection:
    """A small DETR of transformers on ResNet-18 whose answers differ from query to query."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "use_timm_backbone": True,
        "backbone": "resnet18",
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 24,
        "id2label": {index: f"species {index}" for index in range(CLASSES)},
    }
    model = DetrForObjectDetection(DetrConfig(**{**values, **changes}))
    scramble(model)
    return model.eval()


@torch.no_grad()
def scramble(model: torch.nn.Module) -> None:
    """Every tensor moved off its first value, so that no two could be exchanged; norms keep activations of order one."""
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
        elif value.ndim == 1:
            value.add_(0.2 * torch.randn_like(value))
        elif value.ndim > 1:
            # Queries begin alike: they come to differ only where attention is sharp.
            gain = 12.0 if any(word in name for word in ("q_proj", "k_proj", "query", "key")) else 1.5
            value.normal_(0, gain * value[0].numel() ** -0.5)


def save(model: DetrForObjectDetection, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(count))


def pixel_mask(valid: Tensor) -> Tensor:
    mask = torch.zeros(len(valid), *SIZE)
    for part, (height, width) in zip(mask, valid.tolist(), strict=True):
        part[:height, :width] = 1
    return mask


FORMS = {
    "timm": {},
    "resnet": {
        "use_timm_backbone": False,
        "backbone_config": {
            "model_type": "resnet",
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
            "hidden_sizes": [64, 128, 256, 512],
            "out_features": ["stage4"],
        },
    },
    "dilated": {"dilation": True, "backbone": "resnet50"},
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_and_boxes_equal_those_of_transformers(form: str, tmp_path: Path) -> None:
    theirs = reference(**FORMS[form])
    ours = load_any(save(theirs, tmp_path))
    valid = torch.tensor([[96, 160], [96, 70], [33, 120]])
    for mask in (None, valid):
        with torch.inference_mode():
            wanted = theirs(pixel_values=images(), pixel_mask=None if mask is None else pixel_mask(mask))
            found = ours(images(), valid=mask)
        torch.testing.assert_close(found["logits"], wanted.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(found["boxes"], wanted.pred_boxes, rtol=0, atol=1e-4)
        assert ("valid" in found) == (mask is not None)
    spread = wanted.logits.std(dim=1).mean(), wanted.pred_boxes.std(dim=1).mean()
    assert min(spread) > 0.01  # a hundred times the tolerance: the queries differ, and the comparison means something
    assert ours.card.class_names[1] == "species 1"
    assert ours.options == Options(**ours.card.options)
    assert (ours.options.heads, ours.options.dilated) == (4, form == "dilated")


def test_detections_equal_those_of_transformers(tmp_path: Path) -> None:
    """After softmax and threshold, in pixels of the original: at least 20 objects."""
    theirs = reference()
    ours = load_any(save(theirs, tmp_path))
    ours.card = ours.card.__class__(**{**ours.card.__dict__, "input_size": SIZE})
    with torch.inference_mode():
        wanted = theirs(pixel_values=images())
        found = ours.decode(ours(images()), [Frame.identity(SIZE[1], SIZE[0])] * 3, DecodeOptions(score=0.1))
    chance, labels = wanted.logits.softmax(-1)[..., :-1].max(-1)
    corners = upright.convert(wanted.pred_boxes, "cxcywh", "xyxy") * torch.tensor([SIZE[1], SIZE[0]] * 2)
    assert sum(len(item) for item in found) >= 20
    for image, item in enumerate(found):
        assert isinstance(item, Instances)
        order = chance[image].argsort(descending=True, stable=True)
        order = order[chance[image][order] >= 0.1]
        assert item.labels.tolist() == labels[image][order].tolist()
        np.testing.assert_allclose(item.scores, chance[image][order].numpy(), atol=1e-4)
        limits = np.array([SIZE[1], SIZE[0]] * 2)
        np.testing.assert_allclose(item.boxes, np.clip(corners[image][order].numpy(), 0, limits), atol=1e-2)


def test_intermediate_layers_are_the_norm_of_each_layer_of_transformers(tmp_path: Path) -> None:
    """As in the paper; with `auxiliary_loss` transformers feeds the normed state to the next layer, which the authors do not."""
    theirs = reference()
    ours = load_any(save(theirs, tmp_path))
    states: list[Tensor] = []
    for layer in theirs.model.decoder.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    with torch.inference_mode():
        theirs(pixel_values=images())
        normed = [theirs.model.decoder.layernorm(state) for state in states]
        found = ours(images(), targets=truth([1, 2, 0]))
        for layer, state in enumerate(normed[:-1]):
            wanted = {"logits": theirs.class_labels_classifier(state), "boxes": theirs.bbox_predictor(state).sigmoid()}
            for name, value in wanted.items():
                torch.testing.assert_close(found[f"earlier_{name}"][:, layer], value, rtol=0, atol=1e-4)
    assert len(normed) == 3
    assert torch.equal(found["logits"], ours(images())["logits"])


def truth(counts: list[int], seed: int = 0, size: tuple[int, int] = SIZE) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    centre = torch.rand(total, 2, generator=generator) * torch.tensor([size[1], size[0]])
    half = 3 + 20 * torch.rand(total, 2, generator=generator)
    return Targets(
        batch=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        labels=torch.randint(0, CLASSES, (total,), generator=generator),
        boxes=torch.cat((centre - half, centre + half), 1),
        size=len(counts),
    )


@pytest.mark.parametrize("counts", [[4, 0, 9], [0, 0, 0], [30, 2, 1]])  # the last with more objects than queries
@pytest.mark.parametrize("padded", [False, True])
def test_losses_of_every_layer_equal_those_of_transformers(counts: list[int], padded: bool) -> None:
    model = tiny()
    generator = torch.Generator().manual_seed(7)
    layers, queries = 3, 24
    logits = 2 * torch.randn(3, layers, queries, CLASSES + 1, generator=generator)
    predicted = 0.05 + 0.6 * torch.rand(3, layers, queries, 4, generator=generator)
    logits.requires_grad_()
    valid = torch.tensor([[96, 160], [96, 70], [33, 120]]) if padded else torch.tensor([SIZE] * 3)
    targets = truth(counts)
    outputs = {
        "logits": logits[:, -1],
        "boxes": predicted[:, -1],
        "earlier_logits": logits[:, :-1],
        "earlier_boxes": predicted[:, :-1],
        "valid": valid,
    }
    shares = upright.convert(targets.boxes / valid.flip(1).repeat(1, 2)[targets.batch], "xyxy", "cxcywh")
    labels = [{"class_labels": targets.labels[targets.batch == i], "boxes": shares[targets.batch == i]} for i in range(3)]
    config = DetrConfig(num_labels=CLASSES, auxiliary_loss=True, decoder_layers=layers)
    total, wanted, _ = ForObjectDetectionLoss(
        logits[:, -1], labels, "cpu", predicted[:, -1], config, logits.transpose(0, 1), predicted.transpose(0, 1)
    )
    found = model.layer_losses(outputs, targets)
    for layer in range(layers):
        end = "" if layer == layers - 1 else f"_{layer}"
        theirs = [wanted[f"loss_ce{end}"], 5 * wanted[f"loss_bbox{end}"], 2 * wanted[f"loss_giou{end}"]]
        for name, value in zip(("class", "l1", "giou"), theirs, strict=True):
            torch.testing.assert_close(found[name][layer], value, rtol=0, atol=1e-4)
    ours = torch.stack(list(model.loss(outputs, targets).values())).sum()
    torch.testing.assert_close(ours, total, rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(ours, logits, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(total, logits)[0], rtol=0, atol=1e-5)


def tiny(**changes: Any) -> DETR:
    torch.manual_seed(0)
    options = {**registry.entry("detr-r50").tiny, **changes}
    model = registry.create("detr-r50", CATEGORIES, input_size=SIZE, options=options)
    assert isinstance(model, DETR)
    return model


def test_ignored_objects_are_neither_matched_nor_held_against_a_query() -> None:
    """The loss with an ignored object equals the loss without it, but for the queries that answer inside it."""
    model = tiny(dropout=0.0).eval()
    targets = truth([2, 1, 0])
    whole = Targets(
        torch.tensor([*targets.batch.tolist(), 2]),
        torch.cat((targets.labels, torch.tensor([0]))),
        torch.cat((targets.boxes, torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]]))),
        3,
        ignore=torch.tensor([False] * 3 + [True]),
    )
    outputs = model(images(), targets=targets)
    outputs["boxes"] = 0.4 + 0.2 * outputs["boxes"]  # inside the image, hence inside the region
    outputs["earlier_boxes"] = 0.4 + 0.2 * outputs["earlier_boxes"]
    found, plain = model.layer_losses(outputs, whole), model.layer_losses(outputs, targets)
    for name in ("l1", "giou"):
        torch.testing.assert_close(found[name], plain[name])
    first = {name: value[:2] for name, value in outputs.items()}
    two = Targets(targets.batch, targets.labels, targets.boxes, 2)
    torch.testing.assert_close(found["class"], model.layer_losses(first, two)["class"])  # the third image does not count at all
    assert not torch.allclose(found["class"], plain["class"])


def test_number_of_parameters() -> None:
    """With the 91 labels of the published weights: that of transformers."""
    with torch.device("meta"):
        theirs = DetrForObjectDetection(DetrConfig(num_labels=91))
        model = registry.create("detr-r50", [Category(index, str(index)) for index in range(91)])
    assert sum(value.numel() for value in theirs.parameters()) == sum(value.numel() for value in model.parameters()) == 41_524_768
    assert {our_name(name) for name in theirs.state_dict()} == set(model.state_dict())


@pytest.mark.parametrize("form", ["old", "no configuration"])
def test_older_files_are_read(form: str, tmp_path: Path) -> None:
    """Names of transformers 4, in a pickled file; a file alone, whose heads are then the published 8."""
    theirs = reference(encoder_attention_heads=8, decoder_attention_heads=8)
    save(theirs, tmp_path)
    tensors = theirs.state_dict()
    if form == "old":
        assert any(".mlp.fc1." in name for name in tensors)
        tensors = {
            name.replace("backbone.model", "backbone.conv_encoder.model")
            .replace("o_proj", "out_proj")
            .replace(".mlp.", "."): value
            for name, value in tensors.items()
        }
    else:
        (tmp_path / "config.json").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    ours = load_any(tmp_path / "pytorch_model.bin")
    with torch.inference_mode():
        torch.testing.assert_close(ours(images())["logits"], theirs(pixel_values=images()).logits, rtol=0, atol=1e-4)
    assert ours.card.class_names[1] == ("species 1" if form == "old" else "class 1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"encoder_attention_heads": 2}, "differ in their heads"),
        ({"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "multiple of 4 and of heads"),
        ({"encoder_attention_heads": "4", "decoder_attention_heads": "4"}, "cannot be used"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(reference(), tmp_path)
    configuration = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**configuration, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_any(path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        load_any(path)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tensors = reference(position_embedding_type="learned").state_dict()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="the weights do not fit detr-r50"):
        load_any(tmp_path / "pytorch_model.bin")


def decoded(logits: Tensor, predicted: Tensor, frame: Frame, options: DecodeOptions, **more: Tensor) -> Instances:
    model = tiny()
    found = model.decode({"logits": logits, "boxes": predicted, **more}, [frame], options)[0]
    assert isinstance(found, Instances)
    return found


def test_decoding_is_its_definition() -> None:
    chance = torch.tensor(
        [[0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 0.05, 0.05, 0.05, 0.05, 0.7], [0.1, 0.1, 0.6, 0.1, 0.05, 0.05]],
        dtype=torch.float64,
    )
    places = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.25, 0.5]])
    frame = Frame.letterbox(320, 192, SIZE[1], SIZE[0])
    found = decoded(chance.log()[None], places[None], frame, DecodeOptions(score=0.2))
    assert found.labels.tolist() == [2, 0]  # two objects in one place stay; the query that sees nothing goes
    np.testing.assert_allclose(found.scores, [0.6, 0.5])
    np.testing.assert_allclose(found.boxes, [[120, 48, 200, 144]] * 2)
    assert len(decoded(chance.log()[None], places[None], frame, DecodeOptions(score=0.2, most=1))) == 1
    strict = DecodeOptions(score=0.2, class_scores={"2": 0.7})
    assert decoded(chance.log()[None], places[None], frame, strict).labels.tolist() == [0]
    half = torch.tensor([[SIZE[0] // 2, SIZE[1] // 2]])
    found = decoded(chance.log()[None], places[None], frame, DecodeOptions(score=0.2), valid=half)
    np.testing.assert_allclose(found.boxes, [[60, 24, 100, 72]] * 2)


def test_boxes_outside_the_original_go() -> None:
    frame = Frame.letterbox(160, 48, SIZE[1], SIZE[0])  # 24 rows of padding above and below
    logits = torch.tensor([[[9.0, 0, 0, 0, 0, 0]] * 2])
    places = torch.tensor([[[0.5, 0.1, 0.2, 0.1], [0.5, 0.3, 0.2, 0.2]]])
    found = decoded(logits, places, frame, DecodeOptions())
    np.testing.assert_allclose(found.boxes, [[64, 0, 96, 14.4]], atol=1e-4)


@pytest.mark.parametrize(
    ("logits", "predicted", "message"),
    [
        (torch.zeros(1, 3, 5), torch.zeros(1, 3, 4), r"'logits' has shape \[1, 3, 5\], expected \[1, Q, 6\]"),
        (torch.zeros(1, 3, 6), torch.zeros(1, 2, 4), r"'boxes' has shape"),
        (torch.full((1, 3, 6), torch.nan), torch.zeros(1, 3, 4), "logits hold NaN"),
    ],
)
def test_decoding_refuses_what_does_not_fit(logits: Tensor, predicted: Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        decoded(logits, predicted, Frame.identity(160, 96), DecodeOptions())
    with pytest.raises(ModelError, match="no output 'boxes'"):
        tiny().decode({"logits": torch.zeros(1, 3, 6)}, [Frame.identity(160, 96)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 30}, "multiple of 4 and of heads"),
        ({"width": 36, "heads": 8}, "multiple of 4 and of heads"),
        ({"queries": 0}, "queries must be positive"),
        ({"l1_weight": -1.0}, "must not be negative"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"backbone": "resnet50"}, "timm:NAME"),
        ({"norm": "layer"}, "frozen or batch"),
    ],
)
def test_options_that_cannot_be_used(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**values)
    with pytest.raises(ModelError, match="at least one class"):
        registry.create("detr-r50", ())


@pytest.mark.parametrize(
    "changes", [{"norm_first": True}, {"encoder_layers": 0, "auxiliary": False}, {"norm": "frozen", "dilated": True}]
)
def test_other_forms_learn(changes: dict[str, Any]) -> None:
    model = tiny(**changes).train()
    targets = truth([2, 0, 1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(25):
        terms = model.loss(model(images(), targets=targets), targets)
        value = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        history.append(value.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert min(history[-3:]) < 0.8 * history[0]


def test_dropout_draws_from_the_global_generator() -> None:
    model, targets = tiny(dropout=0.3).train(), truth([2, 0, 1])
    values: list[Model | Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(model(images(), targets=targets)["boxes"].detach())
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_export_agrees(tmp_path: Path) -> None:
    """Raw outputs, a free batch; the boxes in the file are those of the whole input."""
    model = tiny(encoder_layers=1, decoder_layers=1)
    scramble(model)
    report = export_onnx(model.eval(), tmp_path / "detr.onnx")
    assert set(report.outputs) == {"logits", "boxes"}
    assert max(item.absolute for item in report.outputs.values()) < 1e-4


def test_a_run_has_the_rates_of_the_paper() -> None:
    options = defaults_of("detr-r50")
    assert (options.optimizer, options.lr, options.weight_decay, options.clip_norm) == ("adamw", 1e-4, 1e-4, 0.1)
    assert options.rate_factors() == {"backbone.": 0.1}


def test_as_many_but_other_classes_are_learnt_anew() -> None:
    model, source = tiny(), tiny(width=32)
    with torch.no_grad():
        for value in source.parameters():
            value.add_(1.0)
    report = transfer(model, source.state_dict(), ("a", "b", "c", "d", "e"))
    assert set(report.new) == {"classes.weight", "classes.bias"}
    assert torch.equal(model.queries.weight, source.queries.weight)
    report = transfer(model, source.state_dict(), model.card.class_names)
    assert report.new == ()
