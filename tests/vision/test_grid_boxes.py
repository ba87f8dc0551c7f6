"""The grid encoder looks into given boxes: cut out of the pixels, or out of the feature map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.ops import roi_align

from mmbert.api.features import Job, extract_features, list_images
from mmbert.data.images import BoxedImage, OpenedImage, PixelInput
from mmbert.data.records import BadRecords, ImageRef, Record, RegionBox
from mmbert.data.region_input import RegionInput
from mmbert.errors import ConfigError, DataError
from mmbert.vision.encoders.grid import GridEncoder, build
from mmbert.vision.extraction import Extraction, ImageFile
from mmbert.vision.regions import GivenBoxes, Regions

torch.set_num_threads(1)
SIDE = 64
BOXES = ((10.0, 20.0, 74.0, 84.0), (90.0, 5.0, 122.0, 69.0), (0.0, 0.0, 150.0, 100.0))


def encoder(**options: Any) -> GridEncoder:
    torch.manual_seed(5)
    return build(backbone="test_efficientnet", image_size=SIDE, **options).eval()


def noise(width: int = 150, height: int = 100, seed: int = 0) -> Image.Image:
    """Smooth enough that a resize by another method gives nearly the same."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def given(*boxes: tuple[float, ...], masks: np.ndarray | None = None) -> GivenBoxes:
    return GivenBoxes(np.array(boxes, dtype=np.float32).reshape(-1, 4), masks)


def seen_alone(made: GridEncoder, image: Image.Image, box: tuple[float, ...]) -> np.ndarray:
    """What a plain grid of equal weights makes of the cut-out as an image of its own."""
    plain = encoder()
    plain.load_state_dict(made.state_dict())
    cut = image.crop(tuple(int(edge) for edge in box)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return plain.extract([cut])[0].features[0]


def test_a_cut_out_is_seen_as_an_image_of_its_own() -> None:
    """The first box has the encoder's size, so that not even a resize stands between."""
    made, image = encoder(given_boxes="crop", cells=False), noise()
    (found,) = made.extract([image], [given(*BOXES)])
    assert found.boxes[1:].tolist() == [list(box) for box in BOXES]
    assert len(found) == 4
    np.testing.assert_allclose(found.features[1], seen_alone(made, image, BOXES[0]), atol=1e-4)
    for number, box in enumerate(BOXES[1:], 2):
        wanted = seen_alone(made, image, box)
        others = seen_alone(made, noise(seed=9), box)
        assert np.abs(found.features[number] - wanted).max() < 0.1 * np.abs(others - wanted).max()


def test_boxes_on_the_feature_map_are_aligned_as_torchvision_does() -> None:
    made, image = encoder(given_boxes="align"), noise()
    (found,) = made.extract([image], [given(*BOXES)])
    plain = encoder()
    plain.load_state_dict(made.state_dict())
    (grid,) = plain.extract([image])
    own = made.regions_per_image
    np.testing.assert_allclose(found.features[:own], grid.features, atol=1e-5)
    maps = torch.from_numpy(grid.features[1:]).T.reshape(1, -1, made.rows, made.columns)
    scale = torch.tensor([made.columns / 150, made.rows / 100] * 2)
    cut = roi_align(maps, [torch.tensor(BOXES) * scale], 7, aligned=True)
    np.testing.assert_allclose(found.features[own:], cut.mean((2, 3)).numpy(), atol=1e-4)


@pytest.mark.parametrize("how", ["crop", "align"])
def test_alone_or_in_a_batch_of_other_sizes_boxes_give_the_same(how: str) -> None:
    made = encoder(given_boxes=how)
    images = [noise(), noise(80, 120, 1), noise(seed=2), noise(60, 60, 3)]
    boxes = [given(*BOXES), None, given(BOXES[0]), given((0, 0, 60, 60))]
    together = made.extract(images, boxes)
    assert [len(r) - made.regions_per_image for r in together] == [3, 0, 1, 1]
    for image, box, found in zip(images, boxes, together, strict=True):
        (alone,) = made.extract([image], [box])
        np.testing.assert_allclose(found.features, alone.features, atol=1e-4)
        np.testing.assert_array_equal(found.boxes, alone.boxes)


def test_a_mask_chooses_the_cells_that_count() -> None:
    made, image = encoder(given_boxes="crop"), noise()
    left = np.zeros((2, 14, 14), dtype=np.float32)
    left[0, :, :7] = 1  # the second covers nothing, which counts as all
    (found,) = made.extract([image], [given(BOXES[0], BOXES[0], masks=left)])
    (cells,) = encoder().extract([image.crop((10, 20, 74, 84))])
    weights = F.adaptive_avg_pool2d(torch.from_numpy(left[:1]), (made.rows, made.columns)).numpy().reshape(-1)
    wanted = (cells.features[1:] * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose(found.features[-2], wanted, atol=1e-4)
    np.testing.assert_allclose(found.features[-1], cells.features[0], atol=1e-4)


@pytest.mark.parametrize("how", ["crop", "align"])
def test_a_mirrored_image_is_the_mirrored_file_with_mirrored_boxes(how: str) -> None:
    made, image = encoder(given_boxes=how), noise()
    asked = BoxedImage.mirrored(BoxedImage(OpenedImage(image, "a"), given(*BOXES)))
    file = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = given(*((150 - x2, y1, 150 - x1, y2) for x1, y1, x2, y2 in BOXES))
    tables = [PixelInput(made).table([one]) for one in (asked, BoxedImage(OpenedImage(file, "b"), turned))]
    features = []
    for _, table, pixels in tables:
        with torch.no_grad():
            features.append(made(pixels, table)[0])
    assert torch.equal(tables[0][1].boxes, tables[1][1].boxes)
    torch.testing.assert_close(features[0], features[1], atol=1e-4, rtol=1e-4)


def test_gradients_reach_a_trained_backbone_through_cut_outs() -> None:
    made = encoder(given_boxes="crop", cells=False, trainable=True)
    _, table, pixels = PixelInput(made).table([BoxedImage(OpenedImage(noise(), "a"), given(BOXES[0]))])
    features, _ = made(pixels, table)
    features[1].sum().backward()
    weights = made.backbone.conv_stem.weight.grad
    assert weights is not None
    assert weights.abs().sum() > 0


def test_options_that_see_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to see"):
        encoder(cells=False)
    with pytest.raises(ConfigError, match="given_boxes"):
        build(backbone="test_efficientnet", given_boxes="roi")


def test_extraction_hands_boxes_on(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    made = encoder(given_boxes="crop", cells=False)
    file = ImageFile(ImageRef(path=str(tmp_path / "a.png")), given=lambda: given(*BOXES))
    wrong = ImageFile(file.image, "list:2", given=lambda: given((5, 5, 1, 1)))
    ((found, fault),) = Extraction(made)([[file, wrong]])
    assert isinstance(found, Regions)
    np.testing.assert_allclose(found.features, made.extract([noise()], [given(*BOXES)])[0].features, atol=1e-4)
    assert isinstance(fault, DataError)
    assert (fault.where, "ends before it starts" in fault.message) == ("list:2", True)


def test_a_corpus_with_boxes_becomes_a_store_of_their_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png")
    image = ImageRef(path=str(tmp_path / "a.png"), key="a")
    boxes = tuple(RegionBox(box) for box in BOXES)  # type: ignore[arg-type]
    records = [Record("1", image, boxes=boxes, origin="q:1"), Record("2", image, boxes=boxes, origin="q:2")]
    monkeypatch.setattr("mmbert.api.features.open_data", lambda data, report: records)
    options = f"grid:test_efficientnet,image_size={SIDE},given_boxes=crop,cells=false"
    extract_features(Job("corpus", options, str(tmp_path / "store")))
    images = RegionInput(tmp_path / "store")
    assert images.count(image) == 4
    _, table, _ = images.table([image, BoxedImage.mirrored(image)])
    assert table.boxes[1:4].tolist() == [list(box) for box in BOXES]
    assert table.boxes[4].tolist() == [0, 0, 149, 99], "the whole image stays"
    assert table.boxes[5:].tolist() == [[150 - x2, y1, 150 - x1, y2] for x1, y1, x2, y2 in BOXES]
    assert table.features is not None
    assert torch.equal(table.features[:4], table.features[4:])
    records[1] = Record("2", image, boxes=boxes[:1], origin="q:2")
    with pytest.raises(DataError, match="other boxes in image 'a' than at q:1"):
        list_images("corpus", BadRecords(), boxed=True)
    assert len(list_images("corpus", BadRecords())) == 1
