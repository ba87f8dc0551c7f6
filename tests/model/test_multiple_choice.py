"""Multiple choice over an image that a vision encoder looks into once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import shake, tiny_config

from mmbert import MMBertForMultipleChoice
from mmbert.data.images import BoxedImage, OpenedImage, PixelInput
from mmbert.data.packing import Example, collate
from mmbert.data.records import RegionBox
from mmbert.model.packed import PackedBatch

torch.set_num_threads(1)
VISION = {"kind": "resnet", "layers": 14, "short_side": 32, "long_side": 48}
BOXES = (RegionBox((2, 2, 20, 25)), RegionBox((10, 0, 39, 31), polygons=((10, 0, 39, 0, 39, 31),)))


@pytest.fixture(scope="module")
def model() -> MMBertForMultipleChoice:
    torch.manual_seed(0)
    config = tiny_config(
        vision=VISION, region_feature_size=2048, heads={"choice": {"kind": "linear", "outputs": 1}},
        num_region_classes=0, region_regression=False, match_outputs=0, embedding_size=0, with_mlm_head=False,
    )  # fmt: skip
    made = MMBertForMultipleChoice(config).eval()
    for part in (made.trunk.embeddings, made.trunk.encoder, made.trunk.pooler, made.heads):
        shake(part)
    return made


def image(seed: int, width: int, height: int) -> BoxedImage:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return BoxedImage.of(OpenedImage(Image.fromarray(noise), str(seed)), BOXES)


def choices(shown: BoxedImage, first: int) -> list[Example]:
    """Four texts about an image, words tied to its boxes."""
    return [
        Example(
            np.array([2, first, 6 + n, 3, 8 + n, 3][: 6 - n % 2]),
            np.array([0, 0, 0, 0, 1, 1][: 6 - n % 2]),
            image=shown,
            ties=np.array([0, 1, n % 3, 0, 2, 0][: 6 - n % 2]),
        )
        for n in range(4)
    ]


def packed(model: MMBertForMultipleChoice, examples: list[Example]) -> PackedBatch:
    return collate(examples, PixelInput(model.trunk.vision))


def test_the_choices_of_an_image_share_the_work_on_it(model: MMBertForMultipleChoice) -> None:
    examples = choices(image(0, 48, 32), 5) + choices(image(1, 32, 40), 9)
    batch = packed(model, examples)
    assert batch.regions is not None
    assert len(batch.regions) == 6, "two images of three regions, whatever the number of sequences"
    seen: list[int] = []
    handle = model.trunk.vision.layer4.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    with torch.no_grad():
        output = model(batch)
    handle.remove()
    assert sum(seen) == 6
    assert output.logits.shape == (8,)
    with torch.no_grad():
        alone = torch.cat([model(packed(model, [example])).logits for example in examples[3:5]])
    torch.testing.assert_close(output.logits[3:5], alone, rtol=1e-4, atol=1e-5)
    probabilities = model.probabilities(output)
    torch.testing.assert_close(probabilities, output.logits.view(2, 4).softmax(1))


def test_what_a_word_is_tied_to_matters(model: MMBertForMultipleChoice) -> None:
    """The blind and the ungrounded variants are other inputs of the same network."""
    examples = choices(image(0, 48, 32), 5)[:1]
    with torch.no_grad():
        grounded = model(packed(model, examples)).logits
        examples[0].ties = 0
        ungrounded = model(packed(model, examples)).logits
        examples[0].image = None
        blind = model(packed(model, examples)).logits
    assert abs(grounded - ungrounded).item() > 1e-6
    assert abs(ungrounded - blind).item() > 1e-6
