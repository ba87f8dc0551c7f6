"""VCR's questions as sequences: words tied to boxes, neutral names, objects in order, cut texts, ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import KnownRegions, Quarters, picture, tiny_config
from vl_corpora import make_vcr

from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import BoxedImage
from mmbert.data.packing import Example, collate
from mmbert.data.records import Record, RegionBox
from mmbert.data.sources import open_data
from mmbert.data.sources.vcr import OBJECTS
from mmbert.errors import ConfigError, DataError
from mmbert.model.modeling import MMBertForPreTraining, build_vision
from mmbert.tasks import vcr
from mmbert.text.tokenizer import train_tokenizer
from mmbert.vision.regions import polygon_mask

torch.set_num_threads(1)
RESNET = {"kind": "resnet", "layers": 14, "short_side": 32, "long_side": 48}
WORDS = "Why do look at ? likes it . No barks They not Dogs bark smiles So what It is so and person dog".split()


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """ "Why do [person 1 and person 2] look at [dog]?", about a still of 64 x 48 with a person, a dog and a person."""
    root = tmp_path_factory.mktemp("vcr")
    make_vcr(root)
    return open_data({"source": "vcr", "root": root})[0]


@pytest.fixture(scope="module")
def reader() -> MMBertProcessor:
    tokenizer = train_tokenizer([" ".join([*WORDS, *vcr.NAMES])] * 3, vocab_size=400)
    return MMBertProcessor(tokenizer, tiny_config(vocab_size=len(tokenizer)), build_vision(RESNET))


def task(reader: MMBertProcessor, *objectives: str, **options: Any) -> vcr.VcrTask:
    return vcr.build(vcr.Options(**options), reader, objectives or ("choice",))


def read(reader: MMBertProcessor, example: Example) -> list[tuple[str, int]]:
    """Words of an example, each with the region that it is tied to."""
    ties = np.broadcast_to(example.ties, len(example.token_ids))
    pieces = reader.tokenizer.convert_ids_to_tokens(example.token_ids.tolist())
    found: list[tuple[str, int]] = []
    for piece, tie in zip(pieces, ties.tolist(), strict=True):
        if piece.startswith("▁") or piece in ("[CLS]", "[SEP]"):
            found.append((piece.removeprefix("▁"), tie))
        else:
            assert found[-1][1] == tie, "pieces of a word have one tie"
            found[-1] = (found[-1][0] + piece, tie)
    return found


def said(reader: MMBertProcessor, example: Example) -> str:
    return " ".join(word for word, _ in read(reader, example))


def segments(reader: MMBertProcessor, example: Example) -> tuple[str, str]:
    """What stands in segment 0, and what in segment 1."""
    kinds = np.asarray(example.segments)
    assert (np.diff(kinds) >= 0).all()
    parts = (Example(example.token_ids[kinds == kind]) for kind in (0, 1))
    first, second = (said(reader, part) for part in parts)
    return first, second


def boxes_of(example: Example) -> list[list[float]]:
    assert isinstance(example.image, BoxedImage)
    return example.image.given.boxes.tolist()


def test_words_are_tied_to_their_objects_and_people_have_neutral_names(reader: MMBertProcessor, record: Record) -> None:
    first, second, third, _ = task(reader).choices(record)
    question = [
        ("[CLS]", 0), ("Why", 0), ("do", 0), ("Casey", 1), ("and", 0), ("Riley", 3), ("look", 0), ("at", 0),
        ("dog", 2), ("?", 0), ("[SEP]", 0),
    ]  # fmt: skip
    assert read(reader, first) == [*question, ("Casey", 1), ("likes", 0), ("it", 0), (".", 0), ("[SEP]", 0)]
    assert read(reader, second) == [*question, ("No", 0), (".", 0), ("[SEP]", 0)]
    assert read(reader, third)[len(question)] == ("dog", 2)
    assert segments(reader, second) == (" ".join(w for w, _ in question), "No . [SEP]")
    assert boxes_of(first) == [list(box.box) for box in record.boxes]


def test_training_draws_the_names_and_marks_the_right_choice(reader: MMBertProcessor, record: Record) -> None:
    made = [task(reader).examples(record, np.random.default_rng(seed)) for seed in range(12)]
    called = {read(reader, examples[0])[3][0] for examples in made}
    assert len(called) > 3
    assert called <= set(vcr.NAMES)
    for examples in made:
        assert [int(e.labels["choice"].values[0]) for e in examples] == [0, 0, 1, 0]  # type: ignore[index]
        assert len({int(e.labels["choice"].extra["question"][0]) for e in examples}) == 1
    other = task(reader, step="rationale").examples(record, np.random.default_rng(0))
    assert [int(e.labels["choice"].values[0]) for e in other] == [1, 0, 0, 0]  # type: ignore[index]
    assert other[0].labels["choice"].extra["question"][0] != made[0][0].labels["choice"].extra["question"][0]


def test_a_rationale_is_chosen_for_an_answer(reader: MMBertProcessor, record: Record) -> None:
    right = task(reader, step="rationale").examples(record, np.random.default_rng(3))[1]
    assert " look at dog ? dog barks . [SEP] " in said(reader, right), "the right answer belongs to the question"
    assert segments(reader, right)[0].endswith("look at dog ? dog barks . [SEP]")
    wrong = task(reader, step="rationale").choices(record, answer=3)[1]
    assert said(reader, wrong).endswith("look at dog ? They do not . [SEP] Riley smiles . [SEP]")
    alone = task(reader, step="rationale", question=False).choices(record, answer=3)[1]
    assert said(reader, alone) == "[CLS] They do not . [SEP] Riley smiles . [SEP]"
    with pytest.raises(ConfigError, match="without the question"):
        task(reader, question=False)


def test_only_mentioned_objects_in_the_order_of_their_mention(reader: MMBertProcessor, record: Record) -> None:
    """The question names 0, 2 and 1; the second of them is then region 2."""
    first = task(reader, objects="mentioned").choices(record)[0]
    assert boxes_of(first) == [list(record.boxes[number].box) for number in (0, 2, 1)]
    words = dict(read(reader, first))
    assert (words["Casey"], words["Riley"], words["dog"]) == (1, 2, 3)
    lonely = replace(record, annotation=dict(record.annotation) | {"question": ["Why", "?"]})
    assert boxes_of(task(reader, objects="mentioned").choices(lonely)[0]) == [
        list(record.boxes[number].box) for number in (0, 1)
    ], "person 2 is named in a rationale only, which the first step does not read"
    for_rationales = task(reader, objects="mentioned", step="rationale").choices(lonely, 0)[0]
    assert boxes_of(for_rationales) == [list(record.boxes[number].box) for number in (0, 1, 2)]


def test_outlines_become_masks_unless_they_are_left_out(reader: MMBertProcessor, record: Record) -> None:
    batch = collate(task(reader).choices(record), reader.images)
    assert batch.regions is not None
    assert len(batch.regions) == 4, "the whole image and three boxes, once for the four choices"
    assert batch.regions.masks is not None
    whole = np.ones((14, 14))
    wanted = [whole, *(polygon_mask(b.box, b.polygons) if b.polygons else whole for b in record.boxes)]
    np.testing.assert_array_equal(batch.regions.masks.numpy(), np.stack(wanted))
    assert batch.regions.boxes[0].tolist()[:2] == [0, 0]
    assert collate(task(reader, masks=False).choices(record), reader.images).regions.masks is None  # type: ignore[union-attr]


def test_half_of_the_images_are_flipped(reader: MMBertProcessor, record: Record) -> None:
    made = [task(reader, flip=0.5).examples(record, np.random.default_rng(seed)) for seed in range(40)]
    flipped = [examples for examples in made if examples[0].image.flipped]  # type: ignore[union-attr]
    assert 10 < len(flipped) < 30
    assert all(example.image is examples[0].image for examples in flipped for example in examples)
    straight, mirror = (
        collate(task(reader, flip=chance).examples(record, np.random.default_rng(0)), reader.images)
        for chance in (0.0, 1.0)
    )
    assert straight.regions is not None
    assert mirror.regions is not None
    torch.testing.assert_close(mirror.pixels[0], straight.pixels[0].flip(-1))  # type: ignore[index]
    np.testing.assert_array_equal(mirror.regions.masks, straight.regions.masks.flip(-1))  # type: ignore[union-attr, arg-type]
    (x1, y1, x2, y2), width = record.boxes[0].box, 64
    assert mirror.regions.boxes[1].tolist() == pytest.approx([width - x2, y1, width - x1, y2], abs=0.05)


def test_object_classes_are_labelled(reader: MMBertProcessor, record: Record) -> None:
    examples = task(reader, "choice", "region_class", "feature_class").examples(record, np.random.default_rng(0))
    for example in examples:
        label = example.labels["region_class"]
        assert label.places.tolist() == [0, 1, 2, 3]
        assert label.values.tolist() == [0, 1, 17, 1], "COCO's person and dog; 0 is the image"  # type: ignore[union-attr]
    assert ["feature_class" in example.labels for example in examples] == [True, False, False, False]
    assert (len(OBJECTS), OBJECTS[0], OBJECTS[-1]) == (80, "person", "toothbrush")
    odd = replace(record, boxes=(RegionBox((0, 0, 9, 9), "gnome"), *record.boxes[1:]))
    with pytest.raises(DataError, match="object 0 is a 'gnome'") as caught:
        task(reader, "region_class").examples(odd, np.random.default_rng(0))
    assert caught.value.where == "train.jsonl:1"


def test_ablations(reader: MMBertProcessor, record: Record) -> None:
    blind = task(reader, "choice", "region_class", image=False).examples(record, np.random.default_rng(0))
    assert all(example.image is None and set(example.labels) == {"choice"} for example in blind)
    assert not collate(blind).regions
    ungrounded = task(reader, grounding=False).choices(record)[0]
    assert ungrounded.ties == 0
    assert said(reader, ungrounded) == said(reader, task(reader).choices(record)[0])
    turned = task(reader, choice_first=True).choices(record)[0]
    assert said(reader, turned).startswith("[CLS] Casey likes it . [SEP] Why do")
    assert dict(read(reader, turned))["dog"] == 2
    assert segments(reader, turned)[0] == "[CLS] Casey likes it . [SEP]"


def test_stored_regions_are_chosen_by_the_numbers_of_the_objects(reader: MMBertProcessor, record: Record) -> None:
    stored = MMBertProcessor(reader.tokenizer, tiny_config(vocab_size=len(reader.tokenizer)))
    assert record.image is not None
    shown = picture(record.image.key, 4, np.random.default_rng(0))

    class Stored(KnownRegions):
        def count(self, image: Any) -> int:
            return len(self.pictures[image.key].regions)

    stored.images = Stored([shown])  # type: ignore[assignment]
    batch = collate(task(stored, objects="mentioned").choices(record), stored.images)
    assert batch.sequences[0].region_rows.tolist() == [0, 1, 3, 2]
    words = read(reader, task(stored, objects="mentioned").choices(record)[0])
    assert dict(words)["dog"] == 2, "a tie is the number of a stored region, and that of the dog is 2"
    stored.images = Stored([picture(record.image.key, 3, np.random.default_rng(0))])  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"3 stored regions of 'movie_A/train@1\.jpg', which has 3 objects"):
        task(stored).choices(record)


def test_an_encoder_that_does_not_look_into_boxes_is_refused(reader: MMBertProcessor, record: Record) -> None:
    quarters = MMBertProcessor(reader.tokenizer, tiny_config(vocab_size=len(reader.tokenizer)), Quarters())
    with pytest.raises(ConfigError, match="does not look into boxes"):
        task(quarters).choices(record)
    assert task(quarters, image=False).choices(record)[0].image is None


@pytest.mark.parametrize("options", [{}, {"step": "rationale"}, {"max_text": 9}, {"image": False}])
def test_cost_is_an_upper_bound(reader: MMBertProcessor, record: Record, options: dict[str, Any]) -> None:
    made = task(reader, **options)
    for seed in range(5):
        examples = made.examples(record, np.random.default_rng(seed))
        batch = collate(examples, reader.images)
        assert 0 < batch.num_positions <= made.cost(record)
        assert max(len(e.token_ids) for e in examples) <= made.options.max_text + 3
    unlabelled = {k: v for k, v in record.annotation.items() if not k.endswith("label")}
    assert made.cost(replace(record, annotation=unlabelled)) == 0


lengths = st.integers(0, 12)


@given(st.integers(1, 12), lengths, st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(3, 20))
def test_texts_are_cut_at_the_longer_end(question: int, answer: int, choices: Sequence[int], limit: int) -> None:
    """Against a count of lengths alone."""
    parts = [[(i, 0) for i in range(n)] for n in (question, answer, *choices)]
    vcr.shorten(parts[0], parts[1], parts[2:], limit)
    q, a, wanted = question, answer, []
    for choice in choices:
        left = choice
        while q + a + left > limit:
            if left > q + a:
                left -= 1
            elif q > (1 if a else 0):
                q -= 1
            else:
                a -= 1
        wanted.append(left)
    assert [len(part) for part in parts] == [q, a, *wanted]
    assert all(part == [(i, 0) for i in range(len(part))] for part in parts), "ends are cut, nothing else"
    assert all(q + a + left <= limit for left in wanted)


def test_four_choices_of_a_step_learn_from_one_image(reader: MMBertProcessor, record: Record) -> None:
    config = tiny_config(
        vocab_size=len(reader.tokenizer), region_feature_size=2048, vision=RESNET,
        heads={"choice": {"kind": "linear", "outputs": 1}},
    )  # fmt: skip
    torch.manual_seed(0)
    model = MMBertForPreTraining(config).eval()
    seen: list[int] = []
    handle = model.trunk.vision.conv1.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))  # type: ignore[union-attr]
    batch = collate(task(reader).choices(record) + task(reader, step="rationale").choices(record, 2), reader.images)
    with torch.no_grad():
        logits = model.head_logits("choice", model(batch).pooled).squeeze(1)
        single = [collate([example], reader.images) for example in task(reader).choices(record)]
        alone = [model.head_logits("choice", model(part).pooled) for part in single]
    handle.remove()
    assert seen == [1, 1, 1, 1, 1], "eight sequences, one image; then each choice by itself"
    torch.testing.assert_close(logits[:4], torch.cat(alone).squeeze(1), rtol=1e-4, atol=1e-5)


def test_the_folder_of_the_corpus_is_enough(tmp_path: Path, reader: MMBertProcessor) -> None:
    make_vcr(tmp_path)
    source = open_data({"source": "vcr", "root": tmp_path, "split": "test"})
    assert len(task(reader).choices(source[0])) == 4
    assert task(reader).cost(source[0]) == 0, "nothing to learn from"
