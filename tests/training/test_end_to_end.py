"""One optimiser step from pixels: pre-training over boxes whose hidden ones are blanked, and a frozen stem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, tiny_config

from mmbert.data.images import BoxedImage, OpenedImage, PixelInput
from mmbert.data.packing import Example, Label, collate
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.training.module import TrainingModule
from mmbert.vision.regions import GivenBoxes

torch.set_num_threads(1)


def test_masked_regions_are_learnt_from_pixels() -> None:
    torch.manual_seed(0)
    vision = {"kind": "resnet", "layers": 14, "short_side": 32, "long_side": 48, "blank_hidden": True}
    config = tiny_config(vision=vision, region_feature_size=2048, region_mask_feature=False, region_regression=False)
    model = MMBertForPreTraining(config).train()
    rng = np.random.default_rng(0)
    shown = Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8))
    classes = rng.dirichlet(np.ones(CLASSES), 2).astype(np.float32)
    boxes = np.array([[0, 0, 20, 20], [10, 5, 40, 31]], dtype=np.float32)
    image = BoxedImage(OpenedImage(shown, "a"), GivenBoxes(boxes, classes=classes))
    labels = {
        "c/mvrc": Label("mvrc", "region", np.array([2])),
        "c/mlm": Label("mlm", "token", np.array([1]), np.array([9])),
    }
    example = Example(np.array([2, 4, 7, 3]), image=image, masked=np.array([False, False, True]), labels=labels)
    batch = collate([example], PixelInput(model.trunk.vision))
    result = TrainingModule(model, {"c/mvrc": {}, "c/mlm": {}})(batch)
    with torch.no_grad():
        output = model.eval()(batch)
        logits = model.region_logits(output.last_hidden_state[4 + 2 : 4 + 3])
    wanted = -(torch.from_numpy(classes[1]) * logits[0].log_softmax(0)).sum()
    assert float(result["terms"]["c/mvrc"][0]) == pytest.approx(float(wanted), rel=1e-4)
    result["loss"].backward()
    vision_model = model.trunk.vision
    assert vision_model.layer1[0].conv1.weight.grad is None
    assert vision_model.layer2[0].conv1.weight.grad.abs().sum() > 0
    assert vision_model.layer4[0].conv2.weight.grad.abs().sum() > 0
