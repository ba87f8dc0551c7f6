"""MMBert: embed texts and images, judge pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import SENTENCES, projected, tiny_network

from mmbert import MMBert, MMBertProcessor
from mmbert.data.images import OpenedImage, PixelInput
from mmbert.data.packing import Example, collate
from mmbert.data.records import ImageRef
from mmbert.errors import ImageError, UsageError
from mmbert.model.int8 import largest_weight


def one_text(bert: MMBert, text: str) -> np.ndarray:
    """A text's vector by hand: its ids alone, first state, projection, length one."""
    ids = bert.processor.tokenizer(text, truncation=True, max_length=24)["input_ids"]
    with torch.no_grad():
        state = bert.model(collate([Example(np.array(ids))])).last_hidden_state[0]
    return projected(bert.model.embedding_head.text, state)


@pytest.mark.parametrize("batch_tokens", [1, 7, 40, 8192])
def test_vectors_of_texts_do_not_depend_on_batching(bert: MMBert, batch_tokens: int) -> None:
    expected = np.stack([one_text(bert, text) for text in SENTENCES])
    found = bert.encode_text(SENTENCES, batch_tokens=batch_tokens)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(len(SENTENCES))), batch_tokens=st.integers(1, 100))
def test_vectors_come_in_the_order_of_the_texts(bert: MMBert, order: list[int], batch_tokens: int) -> None:
    straight = bert.encode_text(SENTENCES)
    np.testing.assert_allclose(
        bert.encode_text([SENTENCES[i] for i in order], batch_tokens=batch_tokens), straight[order], atol=1e-5
    )


def test_long_texts_are_cut_at_the_models_limit(bert: MMBert) -> None:
    long = bert.encode_text("a dog " * 200)
    assert long.shape == (1, 8)
    np.testing.assert_allclose(long, bert.encode_text("a dog " * 300), atol=1e-5)


def test_one_text_is_a_list_of_one(bert: MMBert) -> None:
    assert bert.encode_text("a dog").shape == (1, 8)
    np.testing.assert_allclose(bert.encode_text("a dog"), bert.encode_text(["a dog"]), atol=1e-6)


def test_empty_lists_give_no_rows(bert: MMBert, pictures: list[Path]) -> None:
    assert bert.encode_text([]).shape == (0, 8)
    assert bert.encode_images([]).shape == (0, 8)
    assert bert.match([], ["a dog"]).shape == (0, 1)
    assert bert.match(pictures, []).shape == (5, 0)
    assert bert.match([], []).shape == (0, 0)
    assert bert.match_pairs(pictures, SENTENCES, np.zeros((0, 2))).shape == (0,)
    assert bert.encode_images([]).dtype == np.float32


def one_image(bert: MMBert, path: Path) -> np.ndarray:
    """An image's vector by hand: squashed pixels, the backbone's patches, [CLS] [SEP] and all regions."""
    images = PixelInput(bert.model.trunk.vision, cache_bytes=0)
    tokenizer = bert.processor.tokenizer
    ids = np.array([tokenizer.cls_token_id, tokenizer.sep_token_id])
    batch = collate([Example(ids, image=ImageRef(path=str(path)))], images)
    with torch.no_grad():
        assert batch.num_positions == 2 + 17 + 1
        return projected(bert.model.embedding_head.image, bert.model(batch).last_hidden_state[0])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_vectors_of_images_do_not_depend_on_batching(bert: MMBert, pictures: list[Path], batch_size: int) -> None:
    expected = np.stack([one_image(bert, path) for path in pictures])
    np.testing.assert_allclose(bert.encode_images(pictures, batch_size=batch_size), expected, atol=1e-5)


def test_an_image_is_the_same_however_it_is_given(bert: MMBert, pictures: list[Path]) -> None:
    for path in pictures[:2]:
        opened = Image.open(path)
        ways = {
            "path": path,
            "string": str(path),
            "PIL": opened,
            "array": np.asarray(opened),
            "fractions": np.asarray(opened).astype(np.float32) / 255,
            "bytes": path.read_bytes(),
            "URL": path.as_uri(),
            "reference": ImageRef(path=str(path), key="x"),
            "reference to bytes": ImageRef(data=path.read_bytes()),
        }
        expected = bert.encode_images(path)
        together = bert.encode_images(list(ways.values()))
        for row, (name, way) in zip(together, ways.items(), strict=True):
            np.testing.assert_allclose(bert.encode_images(way), expected, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(row, expected[0], atol=1e-6, err_msg=name)


def test_images_without_a_name_are_not_mixed_up(bert: MMBert, pictures: list[Path]) -> None:
    expected = bert.encode_images(pictures)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    for ways in (
        [path.read_bytes() for path in pictures],
        [Image.open(path) for path in pictures],
        [ImageRef(data=path.read_bytes()) for path in pictures],
        [ImageRef(path=str(path), key="same") for path in pictures],
        [pictures[0], np.asarray(Image.open(pictures[1])), pictures[2].read_bytes(), str(pictures[3]), pictures[4]],
    ):
        np.testing.assert_allclose(bert.encode_images(ways), expected, atol=1e-5)


def test_an_image_twice_gives_its_vector_twice(bert: MMBert, pictures: list[Path]) -> None:
    expected = bert.encode_images(pictures)
    np.testing.assert_allclose(bert.encode_images([*pictures, pictures[0]])[5], expected[0], atol=1e-5)


def test_one_array_is_one_image_and_four_dimensions_are_many(bert: MMBert) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (3, 30, 20, 3), dtype=np.uint8)
    assert bert.encode_images(stack).shape == (3, 8)
    np.testing.assert_allclose(bert.encode_images(stack)[1], bert.encode_images(stack[1])[0], atol=1e-5)


def test_views_are_averaged(bert: MMBert, pictures: list[Path]) -> None:
    from mmbert.vision.images import load_image
    from mmbert.vision.views import VIEWS, view

    encoder = bert.processor.vision
    assert encoder is not None
    prepared = torch.stack([encoder.prepare(load_image(p)) for p in pictures[:3]])
    seen = []
    for number in range(len(VIEWS)):
        pixels = view(prepared, number)
        batch = bert.processor(images=[ImageRef(path=str(p)) for p in pictures[:3]])
        batch.pixels = pixels
        with torch.inference_mode():
            seen.append(bert.model.embedding_head.embed_image(bert.model(batch).last_hidden_state[batch.starts]))
    expected = torch.nn.functional.normalize(torch.stack(seen).mean(0), dim=1)
    found = bert.encode_images(pictures[:3], views=len(VIEWS))
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
    np.testing.assert_allclose(bert.encode_images(pictures[:3]), seen[0].numpy(), atol=2e-5)
    for views in (0, len(VIEWS) + 1):
        with pytest.raises(UsageError, match=f"cannot see {views} views"):
            bert.encode_images(pictures[:3], views=views)


def test_a_file_that_changes_is_read_again(bert: MMBert, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    vectors = []
    for colour in ("red", "blue"):
        Image.new("RGB", (30, 30), colour).save(path)
        vectors.append(bert.encode_images(path))
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4


@pytest.mark.parametrize("url", ["http://example.org/a.png", "https://example.org/a.png"])
def test_images_are_not_fetched_from_the_network(bert: MMBert, url: str) -> None:
    with pytest.raises(ImageError, match="not fetched from the network"):
        bert.encode_images(url)
    with pytest.raises(ImageError, match="not fetched from the network"):
        bert.match([url], ["a dog"])


def test_a_missing_image_is_named(bert: MMBert, pictures: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        bert.encode_images([pictures[0], "nowhere.png"])


def direct_logits(bert: MMBert, pictures: list[Path], texts: list[str]) -> np.ndarray:
    """Each pair packed by itself, with text and image in one example."""
    images = PixelInput(bert.model.trunk.vision, cache_bytes=0)
    found = np.zeros((len(pictures), len(texts)))
    with torch.no_grad():
        for i, path in enumerate(pictures):
            for j, text in enumerate(texts):
                example = Example(bert.processor.ids(text), image=ImageRef(path=str(path)))
                found[i, j] = bert.model.match_logits(bert.model(collate([example], images)).pooled)
    return found


def test_matching_is_the_sigmoid_of_pairs_is_the_direct_pass(bert: MMBert, pictures: list[Path]) -> None:
    expected = direct_logits(bert, pictures, SENTENCES)
    assert expected.std() > 0.05
    pairs = np.array([(i, j) for i in range(len(pictures)) for j in range(len(SENTENCES))])
    logits = bert.match_pairs(pictures, SENTENCES, pairs)
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, atol=1e-4)
    np.testing.assert_allclose(bert.match(pictures, SENTENCES), 1 / (1 + np.exp(-expected)), atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 100, 8192])
def test_pairs_may_be_any_in_any_order_and_repeated(bert: MMBert, pictures: list[Path], batch_tokens: int) -> None:
    expected = direct_logits(bert, pictures, SENTENCES)
    pairs = np.array([(4, 8), (0, 0), (4, 8), (2, 7), (0, 6), (2, 1)])
    logits = bert.match_pairs(pictures, SENTENCES, pairs, batch_tokens=batch_tokens)
    np.testing.assert_allclose(logits, expected[pairs[:, 0], pairs[:, 1]], atol=1e-4)
    assert logits.dtype == np.float32


def test_each_image_of_the_pairs_is_seen_once_by_the_vision_encoder(
    bert: MMBert, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encoder = bert.model.trunk.vision
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda pixels, table: seen.append(len(pixels)) or forward(pixels, table))
    bert.match_pairs(pictures, SENTENCES, np.array([(i % 3, j) for i in range(9) for j in range(5)]))
    assert sum(seen) == 3


def test_more_images_than_fit_one_pass_keep_their_rows(bert: MMBert, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(70)]
    pairs = np.array([(69, 0), (3, 1), (64, 0)])
    together = bert.match_pairs(images, ["a dog", "ein Elefant"], np.array([(i, j) for i in range(70) for j in (0, 1)]))
    np.testing.assert_allclose(
        bert.match_pairs(images, ["a dog", "ein Elefant"], pairs),
        together.reshape(70, 2)[pairs[:, 0], pairs[:, 1]],
        atol=1e-4,
    )


def test_one_image_and_one_text_give_one_probability(bert: MMBert, pictures: list[Path]) -> None:
    single = bert.match(pictures[0], "a dog")
    assert single.shape == (1, 1)
    assert 0 < single[0, 0] < 1


def test_extreme_logits_overflow_nowhere(bert: MMBert, pictures: list[Path]) -> None:
    head = bert.model.match_head
    before = head.bias.detach().clone()
    with torch.no_grad(), np.errstate(over="raise"):
        for bias, expected in ((-2000.0, 0.0), (2000.0, 1.0)):
            head.bias.fill_(bias)
            assert bert.match(pictures[0], "a dog")[0, 0] == expected
        head.bias.copy_(before)


def test_what_the_model_does_not_have_is_an_error(bert: MMBert, pictures: list[Path]) -> None:
    tokenizer = bert.processor.tokenizer
    plain = tiny_network(vocab_size=len(tokenizer), embedding_size=0)
    blind = MMBert(plain, MMBertProcessor(tokenizer, plain.config))
    with pytest.raises(UsageError, match=r"no embeddings.*--mode match"):
        blind.encode_text("a dog")
    with pytest.raises(UsageError, match=r"no vision encoder.*--features STORE"):
        blind.match(pictures, ["a dog"])
    assert blind.embedding_size == 0
    assert blind.logit_scale == 1.0


def test_scale_and_weights_are_those_of_the_model(bert: MMBert) -> None:
    assert bert.logit_scale == pytest.approx(float(bert.model.embedding_head.log_scale.detach().exp()))
    assert bert.rerank_weight == bert.config.rerank_weight
    assert bert.device.type == "cpu"


def test_encoding_leaves_no_graph_and_the_model_in_eval_mode(bert: MMBert, pictures: list[Path]) -> None:
    bert.encode_text("a dog")
    bert.encode_images(pictures[:1])
    assert all(p.grad is None for p in bert.model.parameters())
    assert not bert.model.training


def test_opened_images_stand_wherever_references_do(bert: MMBert, pictures: list[Path]) -> None:
    opened = [OpenedImage(Image.open(p).convert("RGBA"), "same key") for p in pictures[:1]]
    batch = bert.processor(images=opened)
    assert batch.num_sequences == 1


@pytest.mark.skipif(not largest_weight(), reason="this PyTorch has no products in 8 bits")
def test_a_model_in_8_bits_answers_alike_and_is_the_same_model(
    bert: MMBert, pictures: list[Path], tmp_path: Path
) -> None:
    bert.save_pretrained(tmp_path / "model")
    exact = MMBert.from_pretrained(tmp_path / "model", device="cpu")
    quick = MMBert.from_pretrained(tmp_path / "model", int8=True)
    assert quick.int8 and not exact.int8 and quick.device.type == "cpu"
    texts, images = exact.encode_text(SENTENCES), exact.encode_images(pictures)
    for one, other in ((texts, quick.encode_text(SENTENCES)), (images, quick.encode_images(pictures))):
        assert not np.array_equal(one, other)
        assert (one * other).sum(1).min() > 0.99
    np.testing.assert_allclose(quick.match(pictures, SENTENCES), exact.match(pictures, SENTENCES), atol=0.05)
    # Whoever stands beside a text does not change its vector.
    np.testing.assert_allclose(quick.encode_text(SENTENCES[1]), quick.encode_text(SENTENCES)[1:2], atol=1e-5)
    assert quick.fingerprint == exact.fingerprint
    quick.save_pretrained(tmp_path / "again")
    assert MMBert.from_pretrained(tmp_path / "again").fingerprint == exact.fingerprint


def test_8_bits_are_for_single_precision_on_a_cpu(bert: MMBert, tmp_path: Path) -> None:
    bert.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"not for torch\.bfloat16 on cpu"):
        MMBert.from_pretrained(tmp_path / "model", device="cpu", dtype=torch.bfloat16, int8=True)
