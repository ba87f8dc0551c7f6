"""Questions become sequences with a place for the answer; answers become soft scores over the model's vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answered import COLOURS, LABELS, LOOKING, answering_model, draw_two
from tiny import shake

from mmbert import MMBert
from mmbert.api.answering import Answerer, answer_place
from mmbert.data.images import BoxedImage
from mmbert.data.packing import Example, collate
from mmbert.data.records import ImageRef, Record, RegionBox
from mmbert.errors import ConfigError, DataError, UsageError
from mmbert.model.task_models import mask_places
from mmbert.tasks.question_answering import Options, QuestionAnsweringTask, build, heads
from mmbert.training.module import TrainingModule

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bert() -> MMBert:
    return answering_model()


def record(tmp_path: Path, *answers: str, question: str = "what is left of the red square?", **changes: Any) -> Record:
    image, _, boxes = draw_two(np.random.default_rng(0))
    image.save(tmp_path / "a.png")
    given = [*answers, *[answers[-1]] * (10 - len(answers))] if answers else []
    annotation = {"question": question, "question_id": 1, "answers": given, "answer": given[0] if given else ""}
    region = tuple(RegionBox((float(x), float(y), float(x + w), float(y + h))) for x, y, w, h in boxes)
    path = str(tmp_path / "a.png")
    made = Record("1", ImageRef(path=path), annotation=annotation, boxes=region, origin="questions.json:3")
    return replace(made, **changes)


def task(bert: MMBert, **options: Any) -> QuestionAnsweringTask:
    return build(Options(**options), bert.processor, ("answer",))


def only(examples: list[Example]) -> Example:
    (example,) = examples
    return example


def test_a_question_is_followed_by_a_mask_of_another_segment(bert: MMBert, tmp_path: Path) -> None:
    example = only(task(bert).examples(record(tmp_path, "red"), np.random.default_rng(0)))
    tokenizer: Any = bert.processor.tokenizer
    ids = tokenizer("what is left of the red square?")["input_ids"]
    assert example.token_ids.tolist() == [*ids, tokenizer.mask_token_id, tokenizer.sep_token_id]
    assert np.asarray(example.segments).tolist() == [0] * len(ids) + [1, 1]
    assert example.labels["answer"].places.tolist() == [len(ids)]
    assert isinstance(example.image, BoxedImage)
    assert len(example.image.given) == 2


def test_a_long_question_loses_its_last_pieces_and_never_the_place_of_the_answer(bert: MMBert, tmp_path: Path) -> None:
    asked = record(tmp_path, "red", question="what is left of the red square " * 20)
    example = only(task(bert).examples(asked, np.random.default_rng(0)))
    tokenizer: Any = bert.processor.tokenizer
    assert len(example.token_ids) == 64
    assert example.token_ids[-3:].tolist() == [
        tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.sep_token_id,
    ]  # fmt: skip
    assert task(bert).cost(asked) == 64 + 3 + 1


def test_answers_are_right_to_the_degree_that_people_gave_them(bert: MMBert, tmp_path: Path) -> None:
    asked = record(tmp_path, "Red.", "the blue", "blue", "teal", "green", "green", "green", "green", "red", "red")
    label = only(task(bert).examples(asked, np.random.default_rng(0))).labels["answer"]
    assert label.values is not None
    assert dict(zip(LABELS, label.values[0].round(6).tolist(), strict=True)) == {
        "yes": 0, "no": 0, "red": pytest.approx(0.9), "blue": pytest.approx(0.6), "green": 1, "white": 0,
    }  # fmt: skip  # teal is not in the vocabulary


def test_a_mirrored_image_swaps_sides_in_question_and_answers(bert: MMBert, tmp_path: Path) -> None:
    told = task(answering_model(labels=["left", "right"]), flip=1.0)
    asked = record(tmp_path, "left")
    example = only(told.examples(asked, np.random.default_rng(0)))
    plain = only(task(bert).examples(record(tmp_path, "red", question="what is right of the red square?"), _rng()))
    assert example.token_ids.tolist() == plain.token_ids.tolist()
    assert example.labels["answer"].values is not None
    assert example.labels["answer"].values.tolist() == [[0, 1]]
    assert isinstance(example.image, BoxedImage)
    assert example.image.flipped
    half = task(bert, flip=0.5)
    seen = [only(half.examples(record(tmp_path, "red"), np.random.default_rng(i))).image for i in range(40)]
    assert 8 < sum(bool(getattr(image, "flipped", False)) for image in seen) < 32


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_costs_are_what_examples_take(bert: MMBert, tmp_path: Path) -> None:
    for options in ({}, {"images": False}):
        asking = task(bert, **options)
        example = only(asking.examples(record(tmp_path, "red"), _rng()))
        assert asking.cost(record(tmp_path, "red")) == collate([example], bert.processor.images).num_positions
    for side in ("left", "right"):  # which take different numbers of pieces
        asked = record(tmp_path, "red", question=f"what is {side}?")
        taken = [
            collate(task(bert, flip=flip).examples(asked, _rng()), bert.processor.images).num_positions
            for flip in (0.0, 1.0)
        ]
        assert task(bert, flip=1.0).cost(asked) == max(taken)
        assert taken[0] != taken[1]
    example = only(task(bert).examples(record(tmp_path, "red"), _rng()))
    assert example.image is not None
    assert only(task(bert, images=False).examples(record(tmp_path, "red"), _rng())).image is None
    assert task(bert).cost(record(tmp_path)) == 0, "nobody said what is right"
    assert task(bert).cost(Record("c", captions={"en": ("a dog",)})) == 0


def test_its_labels_stand_where_the_network_reads_answers(bert: MMBert, tmp_path: Path) -> None:
    """The loss is the sum of binary cross entropies over answers, computed here by hand at the [MASK]."""
    asked = [record(tmp_path, "red"), record(tmp_path, "no", "no", "yes", question="is there one?")]
    examples = [only(task(bert).examples(one, _rng())) for one in asked]
    batch = collate(examples, bert.processor.images)
    batch.targets = {f"questions/{name}": target for name, target in batch.targets.items()}
    places = mask_places(batch, bert.processor.tokenizer.mask_token_id)
    assert places.tolist() == [int(s) + answer_place(e) for s, e in zip(batch.starts, examples, strict=True)]
    with torch.no_grad():
        loss = TrainingModule(bert.model, {"questions/answer": {}})(batch)["loss"]
        states = bert.model(batch).last_hidden_state[places]
        p = torch.sigmoid(bert.model.head_logits("answer", states)).double()
    wanted = torch.zeros(2, len(LABELS), dtype=torch.float64)
    wanted[0, LABELS.index("red")] = 1
    wanted[1, LABELS.index("no")], wanted[1, LABELS.index("yes")] = 0.6, 1.0
    by_hand = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).sum() / 2
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-5)


def test_records_without_a_usable_answer_say_where(bert: MMBert, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without answers") as caught:
        task(bert).examples(record(tmp_path), _rng())
    assert caught.value.where == "questions.json:3"


# -- the vocabulary ----------------------------------------------------------------------------------------------------


def answered(*answers: str, **annotation: Any) -> list[Record]:
    return [Record(str(i), annotation={"answer": answer, **annotation}) for i, answer in enumerate(answers)]


def test_the_vocabulary_is_built_from_the_most_frequent_answers() -> None:
    records: Any = answered(*["yes"] * 4, *["The dog"] * 2, "dog", "cat", "cat")
    records += answered(*["car"] * 9, corpus="visual_genome")
    found = heads([(Options(min_occurrences=3), records), (Options(min_occurrences=3), records)])
    assert found == {"answer": {"kind": "linear", "outputs": 2, "labels": ["yes", "dog"]}}
    with pytest.raises(DataError, match="no answer occurs 9 times"):
        heads([(Options(), records)])
    with pytest.raises(ConfigError, match="different vocabularies"):
        heads([(Options(min_occurrences=3), records), (Options(), records)])


def test_a_file_names_the_vocabulary_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    file.write_text("yes\nt-shirt\nno\n", "utf-8")
    records: Any = answered("yes")
    assert heads([(Options(answers=file), records)])["answer"]["labels"] == ["yes", "t-shirt", "no"]
    for content, message in (("yes\n\nno", "an empty line"), ("a\nb\na", "'a' is there already, in line 1")):
        file.write_text(content, "utf-8")
        with pytest.raises(ConfigError, match=message) as caught:
            heads([(Options(answers=file), records)])
        assert caught.value.where == f"{file}:{2 if 'empty' in message else 3}"
    with pytest.raises(ConfigError, match="cannot read the answers"):
        heads([(Options(answers=tmp_path / "none"), records)])
    file.write_text("", "utf-8")
    with pytest.raises(ConfigError, match="names no answer"):
        heads([(Options(answers=file), records)])


def test_a_head_of_another_size_or_without_meaning_is_refused(tmp_path: Path) -> None:
    silent = answering_model(labels=[])
    with pytest.raises(ConfigError, match="does not say which answers"):
        task(silent)
    with pytest.raises(UsageError, match=r"does not say which answers.*mmbert convert --labels FILE"):
        Answerer(silent)
    silent.processor.heads["answer"] = {"labels": list(COLOURS), "outputs": 9}
    with pytest.raises(ConfigError, match="4 answers, but the head has 9 outputs") as caught:
        task(silent)
    assert caught.value.hint == "model.config.heads.answer.outputs=4"


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "linear"},
        {"kind": "two_layer", "hidden_size": 7},
        {"kind": "transform", "norm": True, "exclusive": True},
    ],
)
def test_each_kind_of_classifier_answers_after_it_is_saved(head: dict[str, Any], tmp_path: Path) -> None:
    bert = answering_model()
    bert.config.heads = {"answer": {**head, "outputs": len(LABELS), "labels": LABELS, "dropout": 0.1}}
    made = MMBert(type(bert.model)(bert.config), bert.processor)
    shake(made.model.heads, 3)
    made.save_pretrained(tmp_path / "m")
    loaded = MMBert.from_pretrained(tmp_path / "m", device="cpu")
    image, _, boxes = draw_two(np.random.default_rng(0))
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    answers = made.answer(image, "what is left?", k=6, boxes=corners)
    assert loaded.answer(image, "what is left?", k=6, boxes=corners) == answers
    assert sorted(one.text for one in answers) == sorted(LABELS)
    assert (sum(one.probability for one in answers) == pytest.approx(1, abs=1e-5)) == head.get("exclusive", False)
    assert LOOKING["given_boxes"] == loaded.config.vision["given_boxes"]  # type: ignore[index]


def test_labels_that_are_not_in_normal_form_are_learned(tmp_path: Path) -> None:
    """Of two with one normal form the one written so is right, else the first."""
    labels = ["The Red.", "T-Shirt", "t shirt", "BLUE", "Blue", "two"]
    learned = task(answering_model(labels=labels))
    scores = learned.scores(["red"] * 3 + ["blue"] * 3 + ["2"] * 2 + ["t-shirt"] * 2, record(tmp_path))
    np.testing.assert_allclose(scores, [0.9, 0, 0.6, 0.9, 0, 0.6])
