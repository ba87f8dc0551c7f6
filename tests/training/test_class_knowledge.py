"""What a classifier over ImageNet's classes knows of groups: by their names, and by their images."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

from mmbert.data.records import ImageRef, Record
from mmbert.errors import ConfigError
from mmbert.objectives.class_names import Teacher
from mmbert.tasks.base import group_number
from mmbert.training.class_knowledge import class_distributions, classified, named_classes

torch.set_num_threads(1)
ENCODER = "grid:test_efficientnet,image_size=64"


def names_of(distribution: torch.Tensor) -> dict[str, float]:
    info = ImageNetInfo()
    return {info.index_to_description(i): float(distribution[i]) for i in distribution.nonzero().flatten().tolist()}


def said(group: str, caption: str, *further: str, image: ImageRef | None = None) -> Record:
    return Record(group, image, {"en": (caption,), "de": ("Frosch",)}, {"en": further} if further else {}, group=group)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRef]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return [ImageRef(path=str(folder / f"{i}.png")) for i in range(5)]


def test_a_caption_names_classes_by_a_whole_name_or_the_last_word_of_one() -> None:
    found = named_classes(
        [said("a", "Frogs"), said("b", "volcano", "abacus"), said("c", "frog face"), said("d", "glass")]
    )
    frogs = names_of(found[group_number("a")])
    assert {name.split(",")[0] for name in frogs} >= {"tree frog", "tailed frog"}
    assert sum(frogs.values()) == pytest.approx(1) and len(set(frogs.values())) == 1
    assert names_of(found[group_number("b")]) == {"volcano": 1.0}, "further texts count only where no caption does"
    assert group_number("c") not in found
    assert set(found) <= {group_number(g) for g in "abd"}


def test_a_further_text_names_a_class_by_its_whole_name_alone() -> None:
    found = named_classes([said("a", "honey maker", "bee", "frog")])
    assert names_of(found[group_number("a")]) == {"bee": 1.0}


def test_images_are_classified_relative_to_all_and_averaged_over_a_group(pictures: list[ImageRef]) -> None:
    records = [said(f"g{i % 2}", "thing", image=image) for i, image in enumerate(pictures)]
    found = classified(Teacher(encoder=ENCODER, temperature=0.7), records)
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", pretrained=False).eval()
    data = timm.data.resolve_model_data_config(model)
    mean, std = (np.array(data[key], dtype=np.float32) for key in ("mean", "std"))
    logs = []
    for image in pictures:
        with Image.open(str(image.path)) as opened:
            pixels = (
                np.asarray(opened.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.float32) / 255 - mean
            ) / std
        with torch.no_grad():
            logs.append(model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].log_softmax(0))
    table = torch.stack(logs)
    expected = ((table - table.mean(0)) / 0.7).softmax(1)
    for group in range(2):
        torch.testing.assert_close(found[group_number(f"g{group}")], expected[group::2].mean(0), atol=1e-5, rtol=1e-3)


def test_names_take_their_share_of_groups_with_images(pictures: list[ImageRef]) -> None:
    records = [said("a", "volcano", image=pictures[0]), said("b", "thing", image=pictures[1]), said("c", "volcano")]
    teacher = Teacher(encoder=ENCODER, names=0.25)
    alone, found = classified(teacher, records[:2]), class_distributions(teacher, records)
    volcano = named_classes(records)[group_number("c")]
    torch.testing.assert_close(found[group_number("a")], 0.25 * volcano + 0.75 * alone[group_number("a")])
    torch.testing.assert_close(found[group_number("b")], alone[group_number("b")])
    assert torch.equal(found[group_number("c")], volcano), "no image: its name alone"


def test_a_run_without_a_teacher_or_with_one_of_other_classes_says_so(pictures: list[ImageRef]) -> None:
    with pytest.raises(ConfigError, match="needs a teacher"):
        class_distributions(None, [])
