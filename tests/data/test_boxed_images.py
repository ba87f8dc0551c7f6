"""Images with boxes on their way into a batch: pixels of any size, masks, hidden regions, labels of features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SENTENCES, Quarters, tiny_config
from torch import Tensor

from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import BoxedImage, OpenedImage, PixelInput, identity
from mmbert.data.packing import Example, Label, collate
from mmbert.data.records import ImageRef, Record, RegionBox
from mmbert.errors import ConfigError, DataError
from mmbert.model.packed import MASKED_REGION, Pixels, RegionTable
from mmbert.text.tokenizer import train_tokenizer
from mmbert.vision.encoders.base import VisionEncoder
from mmbert.vision.images import load_image
from mmbert.vision.regions import GivenBoxes


class Corners(VisionEncoder):
    """Looks into given boxes: a region's feature is the mean colour in it, of the image in its own size."""

    feature_size, regions_per_image, takes_boxes = 3, 1, True

    def __init__(self, blanks_hidden: bool = False) -> None:
        super().__init__()
        self.blanks_hidden = blanks_hidden

    def boxes(self, width: int, height: int) -> np.ndarray:
        return np.array([[0, 0, width, height]], dtype=np.float32)

    def prepare(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def forward(self, pixels: Pixels, table: RegionTable) -> tuple[Tensor, Tensor | None]:
        assert table.image_numbers is not None
        rows = zip(table.boxes.int().tolist(), table.image_numbers.tolist(), strict=True)
        return torch.stack([pixels[n][:, y1:y2, x1:x2].float().mean((1, 2)) for (x1, y1, x2, y2), n in rows]), None


def opened(width: int, height: int, seed: int) -> OpenedImage:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return OpenedImage(Image.fromarray(noise), f"{seed}")


BOXES = (RegionBox((0, 0, 4, 3), "cup", ((0, 0, 5, 0, 5, 2, 0, 2),)), RegionBox((2, 1, 6, 5), "tree"))
WIDE, TALL, WIDER = opened(9, 6, 0), opened(6, 8, 1), opened(9, 6, 2)


def test_a_records_boxes_become_rows_behind_the_whole_image() -> None:
    images = [BoxedImage.of(WIDE, BOXES), TALL, BoxedImage.of(WIDER, BOXES[1:])]
    first_rows, table, pixels = PixelInput(Corners()).table(images)
    assert first_rows == [0, 3, 4, 6]
    assert isinstance(pixels, list)
    assert [tuple(image.shape) for image in pixels] == [(3, 6, 9), (3, 8, 6), (3, 6, 9)]
    assert table.boxes.tolist() == [
        [0, 0, 9, 6], [0, 0, 4, 3], [2, 1, 6, 5], [0, 0, 6, 8], [0, 0, 9, 6], [2, 1, 6, 5],
    ]  # fmt: skip
    assert table.image_numbers is not None
    assert table.image_numbers.tolist() == [0, 0, 0, 1, 2, 2]
    assert table.sizes[3].tolist() == [6, 8]
    assert table.masks is not None
    assert table.masks.shape == (6, 14, 14)
    assert (table.masks[1, :7] == 1).all(), "half of the box's height is inside the outline"
    assert (table.masks[1, 7:] == 0).all()
    assert (table.masks[[0, 2, 3, 4, 5]] == 1).all(), "without an outline all of the box counts"
    assert table.hidden is None
    colours = np.asarray(load_image(WIDER.image))
    features, _ = Corners()(pixels, table)
    np.testing.assert_allclose(features[5].numpy(), colours[1:5, 2:6].mean((0, 1)), rtol=1e-5)


def test_images_of_one_size_are_one_tensor() -> None:
    _, table, pixels = PixelInput(Corners()).table([WIDE, BoxedImage.of(WIDER, BOXES[1:])])
    assert isinstance(pixels, Tensor)
    assert pixels.shape == (2, 3, 6, 9)
    assert table.masks is None, "nothing has an outline"


def test_an_image_with_other_boxes_is_another_one() -> None:
    plain, both, one = identity(WIDE), identity(BoxedImage.of(WIDE, BOXES)), identity(BoxedImage.of(WIDE, BOXES[:1]))
    hidden = identity(BoxedImage.of(WIDE, BOXES).hiding(np.array([True, False])))
    assert len({plain, both, one, hidden}) == 4
    assert both == identity(BoxedImage.of(WIDE, BOXES))
    assert identity(BoxedImage.of(WIDER, BOXES)) != both


def test_a_mirrored_image_is_another_one_with_mirrored_pixels_boxes_and_masks() -> None:
    plain = BoxedImage.of(WIDE, BOXES)
    mirror = BoxedImage.mirrored(plain)
    assert identity(mirror) != identity(plain)
    assert identity(BoxedImage.mirrored(mirror)) == identity(plain)
    _, table, pixels = PixelInput(Corners()).table([mirror])
    colours = np.asarray(WIDE.image).transpose(2, 0, 1)
    assert np.array_equal(pixels[0].numpy(), colours[:, :, ::-1])
    assert table.boxes.tolist() == [[0, 0, 9, 6], [5, 0, 9, 3], [3, 1, 7, 5]]
    _, as_it_is, unturned = PixelInput(Corners()).table([plain])
    assert table.masks is not None
    assert as_it_is.masks is not None
    assert torch.equal(table.masks, as_it_is.masks.flip(2))
    torch.testing.assert_close(Corners()(pixels, table)[0], Corners()(unturned, as_it_is)[0])
    assert PixelInput(Corners()).boxes(mirror, (9, 6)).tolist() == table.boxes.tolist()


def test_encoders_without_boxes_see_mirrored_images_too() -> None:
    mirror = BoxedImage.mirrored(WIDE)
    _, table, pixels = PixelInput(Quarters()).table([WIDE, mirror])
    assert isinstance(pixels, Tensor)
    assert torch.equal(pixels[1], pixels[0].flip(2))
    assert len(table) == 10


def test_augmentation_does_not_go_with_given_boxes() -> None:
    with pytest.raises(ConfigError, match="away from their boxes"):
        PixelInput(Corners(), augment=lambda pixels, _: pixels[:, :3].float())


def test_encoders_that_make_their_own_regions_do_without_boxes() -> None:
    first_rows, table, pixels = PixelInput(Quarters()).table([BoxedImage.of(WIDE, BOXES)])
    assert first_rows == [0, 5]
    assert table.image_numbers is None
    assert isinstance(pixels, Tensor)


def test_hidden_regions_are_blanked_in_an_image_of_their_own() -> None:
    """Two captions of an image that hide other regions read two images; those that hide none share one."""
    image, ids = BoxedImage.of(WIDE, BOXES), np.array([1, 2, 3])
    masks = [None, np.array([False, True, False]), np.array([False, False, True]), np.array([False] * 3)]
    examples = [Example(ids, image=image, masked=masked) for masked in masks]
    batch = collate(examples, PixelInput(Corners(blanks_hidden=True)))
    assert batch.regions is not None
    assert len(batch.regions) == 9
    assert batch.regions.masked_rows is None
    assert batch.regions.pooled_box_rows is None
    assert batch.regions.hidden is not None
    assert batch.regions.hidden.tolist() == [False] * 3 + [False, True, False] + [False, False, True]
    rows = [spec.region_rows.tolist() for spec in batch.sequences]
    assert rows == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]
    kinds = batch.kinds.split(batch.lengths)
    assert [(part == MASKED_REGION).nonzero().flatten().tolist() for part in kinds] == [[], [4], [5], []]


def test_other_encoders_keep_one_image_and_a_masked_copy() -> None:
    example = Example(np.array([1, 2]), image=BoxedImage.of(WIDE, BOXES), masked=np.array([False, True, False]))
    batch = collate([example, replace(example, masked=None)], PixelInput(Corners()))
    assert batch.regions is not None
    assert len(batch.regions) == 3
    assert batch.regions.masked_rows is not None
    assert batch.regions.masked_rows.tolist() == [1]


def test_labels_of_features_stand_at_rows_of_the_table() -> None:
    labels = {"class": Label("feature_class", "feature", np.array([0, 2]), np.array([7, 9]))}
    first = Example(np.array([1]), image=BoxedImage.of(TALL, BOXES))
    second = Example(np.array([1, 2]), image=BoxedImage.of(WIDE, BOXES), labels=labels)
    batch = collate([first, second], PixelInput(Corners()))
    assert batch.targets["class"].positions.tolist() == [3, 5]
    assert batch.targets["class"].labels.tolist() == [7, 9]


def test_class_distributions_that_come_with_boxes_reach_the_table() -> None:
    classes = np.array([[0.5, 0.5], [1, 0]], dtype=np.float32)
    boxes = np.array([b.box for b in BOXES], dtype=np.float32)
    _, table, _ = PixelInput(Corners()).table([TALL, BoxedImage(WIDE, GivenBoxes(boxes, classes=classes))])
    assert table.classes is not None
    assert table.classes.tolist() == [[0, 0], [0, 0], [0.5, 0.5], [1, 0]]


def test_records_bring_their_boxes_to_encoders_that_look_into_them() -> None:
    words = train_tokenizer(SENTENCES * 3, vocab_size=150)
    shown = ImageRef(data=b"x", key="a")
    record = Record("r", shown, boxes=BOXES, origin="corpus.jsonl:3")
    config = tiny_config(vocab_size=len(words))
    looks, other = (MMBertProcessor(words, config, encoder) for encoder in (Corners(), Quarters()))
    found = looks.image_of(record)
    assert isinstance(found, BoxedImage)
    assert found.given.boxes.tolist() == [[0, 0, 4, 3], [2, 1, 6, 5]]
    assert other.image_of(record) is shown
    assert (looks.region_count(found), looks.region_count(shown), other.region_count(shown)) == (3, 1, 5)
    assert looks.region_count(None) == other.region_count(None) == 0
    assert looks.image_of(Record("t")) is None
    backwards = replace(record, boxes=(RegionBox((9, 0, 4, 3)),))
    with pytest.raises(DataError, match="ends before it starts") as caught:
        looks.image_of(backwards)
    assert caught.value.where == "corpus.jsonl:3"
