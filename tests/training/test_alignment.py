"""Closed-form starts: whitened regions, texts as the mean of their words, proxies at their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SENTENCES, tiny_config

from mmbert import MMBert, MMBertForPreTraining, MMBertProcessor
from mmbert.data.packing import collate
from mmbert.data.records import ImageRef, Record
from mmbert.errors import ConfigError
from mmbert.model.attention import plan_attention
from mmbert.model.modeling import build_vision
from mmbert.objectives.base import StartOfRun
from mmbert.objectives.proxy import build_state
from mmbert.tasks.base import group_number
from mmbert.text.tokenizer import train_tokenizer
from mmbert.training.alignment import (
    MATCH_GAIN,
    MEAN_GAIN,
    align_texts,
    group_means,
    regress_regions,
    start_as_mean_of_words,
    whiten_regions,
)
from mmbert.training.latent import latent_means, text_vectors

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRef]:
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    refs = []
    for i in range(70):
        cells = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((40, 40), Image.Resampling.NEAREST).save(folder / f"{i}.png")
        refs.append(ImageRef(path=str(folder / f"{i}.png")))
    return refs


def fresh(visual_size: int = 32, embedding_size: int = 16, pooling: str = "first", **vision: object) -> MMBert:
    tokenizer = train_tokenizer(SENTENCES, vocab_size=100)
    options = {"kind": "grid", "backbone": "test_efficientnet", "image_size": 64} | vision
    config = tiny_config(
        vocab_size=len(tokenizer), visual_size=visual_size, vision=options, embedding_size=embedding_size,
        region_feature_size=build_vision(options).feature_size, pooling=pooling,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MMBertForPreTraining(config)
    return MMBert(model, MMBertProcessor(tokenizer, config, model.trunk.vision))


@torch.no_grad()
def whole_images(bert: MMBert, images: list[ImageRef]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of each whole image, and what the encoder's input gets of it (coordinates left out)."""
    trunk = bert.model.trunk
    _, table, pixels = bert.processor.images.table(images)
    features = trunk.vision(pixels, table)[0][:: trunk.vision.regions_per_image].double()
    projection = trunk.region_embedding.projection
    weight = projection.weight[:, -features.shape[1] :].double()
    vectors = torch.relu(features @ weight.T + projection.bias)
    return features, vectors @ trunk.embeddings.object_visual.projection.weight.double().T


@pytest.mark.parametrize("levels", [None, [2]])
def test_fully_whitened_vectors_are_uncorrelated_and_equally_spread(
    levels: list[int] | None, images: list[ImageRef]
) -> None:
    bert = fresh(levels=levels)
    whiten_regions(bert, images, power=1.0)
    _, vectors = whole_images(bert, images)
    assert vectors.mean(0).abs().max() < 1e-3
    covariance = (vectors - vectors.mean(0)).T @ (vectors - vectors.mean(0))
    spread = covariance.diagonal()
    assert spread.max() / spread.min() < 1.05
    assert (covariance - torch.diag(spread)).abs().max() < 0.02 * spread.max()
    assert (vectors.norm(dim=1) / 4).mean().item() == pytest.approx(1, abs=0.01), "typical length sqrt(hidden size)"


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_less_power_keeps_more_of_the_components_own_spread(power: float, images: list[ImageRef]) -> None:
    bert = fresh()
    whiten_regions(bert, images, power=power)
    features, vectors = whole_images(bert, images)
    centred = features - features.mean(0)
    own = torch.linalg.svdvals(centred)[:16]
    found = (vectors - vectors.mean(0)).norm(dim=0)
    expected = own ** (1 - power)
    torch.testing.assert_close(found / found[0], expected / expected[0], atol=0.02, rtol=0.02)


def test_text_and_regions_start_with_the_same_visual_vectors(images: list[ImageRef]) -> None:
    bert = fresh()
    whiten_regions(bert, images)
    embeddings = bert.model.trunk.embeddings
    assert torch.equal(embeddings.text_visual.projection.weight, embeddings.object_visual.projection.weight)
    assert torch.equal(bert.model.embedding_head.image.weight, torch.eye(16))


def test_other_sizes_are_refused(images: list[ImageRef]) -> None:
    with pytest.raises(ConfigError, match="2 x hidden_size"):
        whiten_regions(fresh(visual_size=16), images)


def test_one_image_file_is_enough_to_start(images: list[ImageRef], tmp_path: Path) -> None:
    bert = fresh()
    whiten_regions(bert, images[:2])
    assert all(torch.isfinite(p).all() for p in bert.model.parameters())


def captioned(images: list[ImageRef]) -> list[Record]:
    """Three groups of two images each, their texts alike but for the group ``dog``'s; and a text without image."""
    said = {
        "dog": ({"en": ("a dog", "a dog and two children"), "ru": ("двое собак",)}, {"en": ("red ball",)}),
        "snow": ({"en": ("a dog in the deep snow",)}, {}),
        "elephant": ({"de": ("ein Elefant",), "fr": ("un éléphant",)}, {"fr": ("la neige",)}),
    }
    records = [
        Record(f"{group}{i}", images[2 * number + i], captions, texts, group=group)
        for number, (group, (captions, texts)) in enumerate(said.items())
        for i in range(2)
    ]
    return [*records, Record("alone", None, {"th": ("สุนัขวิ่งอยู่บนหิมะ",)}, group="alone")]


def test_the_first_layer_starts_as_the_mean_over_each_sequence(images: list[ImageRef]) -> None:
    bert = fresh()
    start_as_mean_of_words(bert, captioned(images), word_std=0.3)
    batch = collate(bert.processor.text_examples(SENTENCES))
    layer = bert.model.trunk.encoder.layers[0]
    with torch.no_grad():
        hidden = bert.model.trunk.embeddings(batch, None)
        plan = plan_attention(batch.lengths, batch.cu_seqlens)
        ordered = hidden if plan.order is None else hidden[plan.order]
        mixed = layer.attention_output(layer.attention(ordered, plan))
        mixed = mixed if plan.inverse is None else mixed[plan.inverse]
    for found, own in zip(mixed.split(batch.lengths), hidden.split(batch.lengths), strict=True):
        torch.testing.assert_close(found, MEAN_GAIN * own.mean(0).expand_as(found), atol=0.1 * MEAN_GAIN, rtol=0)
    assert hidden.std() > 3 * 0.1, "so that the mean is told from nothing"


def test_words_start_at_the_images_that_they_stand_beside(images: list[ImageRef]) -> None:
    """Against plain loops over groups, texts and pieces."""
    bert, word_std, prior = fresh(), 0.3, 0.5
    records = captioned(images)
    whiten_regions(bert, images)
    words = bert.model.trunk.embeddings.words.weight
    before = words.detach().clone()
    start_as_mean_of_words(bert, records, word_std=word_std)
    table = words.detach().double().numpy().copy()

    with torch.no_grad():
        words.copy_(before)  # images were seen through the new first layer and the old words
    means = {}
    for group in ("dog", "snow", "elephant"):
        total = bert.encode_images([r.image for r in records if r.group == group]).astype(np.float64).sum(0)
        means[group] = total / np.linalg.norm(total)
    centre = sum(means.values()) / 3
    beside: dict[int, set[str]] = {}
    for record in records:
        for texts in (*record.captions.values(), *record.texts.values()):
            for text in texts:
                for piece in bert.processor.tokenizer(text)["input_ids"]:
                    beside.setdefault(piece, set()).update({record.group} & means.keys())

    special = bert.processor.tokenizer.all_special_ids
    seen = {piece: groups for piece, groups in beside.items() if groups and piece not in special}
    assert {len(groups) for groups in seen.values()} >= {1, 2}
    for piece, groups in seen.items():
        mean = sum(means[group] - centre for group in groups) / (len(groups) + prior)
        np.testing.assert_allclose(table[piece], mean * np.sqrt(16) * word_std, atol=1e-5)
        assert (np.linalg.norm(table[piece]) > 1e-3) == (len(groups) < 3), "a word of all images says nothing"
    unseen = np.array([i for i in range(len(table)) if i not in seen and i not in special])
    assert set(beside) - set(seen) - set(special), "a text without image gives its words no place"
    assert table[unseen].std() == pytest.approx(0.1 * word_std, rel=0.15)
    assert len(np.unique(table[unseen].round(6), axis=0)) == len(unseen), "so that they can be told apart"
    np.testing.assert_allclose(table[special], 0.02 * word_std, atol=1e-7)


def test_logits_of_hidden_words_keep_their_spread_when_the_table_starts_larger(images: list[ImageRef]) -> None:
    small, large = fresh(), fresh()
    for bert, word_std in ((small, 0.1), (large, 1.0)):
        torch.manual_seed(1)
        start_as_mean_of_words(bert, captioned(images), word_std=word_std)
    states = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = large.model.token_logits(states), small.model.token_logits(states)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_words_of_texts_alone_start_by_the_records_they_stand_in() -> None:
    """Against NumPy's singular vectors of the whole matrix; translations start nearer to each other than to others."""
    said = [("red dog", "roter hund"), ("red cat", "rote katze"), ("a dog", "ein hund"), ("a cat", "eine katze")] * 6
    records = [Record(str(i), None, {"en": (en,), "de": (de,)}) for i, (en, de) in enumerate(said)]
    tokens = [sorted({*en.split(), *de.split()}) for en, de in said]
    table = sorted({word for row in tokens for word in row})
    groups = torch.tensor([i for i, row in enumerate(tokens) for _ in row])
    pieces = torch.tensor([table.index(word) for row in tokens for word in row])
    dense = np.zeros((len(said), len(table)))
    dense[groups, pieces] = 1
    dense /= np.sqrt(dense.sum(0))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    leading = np.linalg.svd(dense)[0][:, :3]
    found = latent_means(groups, pieces, len(said), len(table), 3, rounds=30).double().numpy()
    assert (found**2).sum() == pytest.approx(len(said), rel=1e-4), "as long as unit vectors on average"
    np.testing.assert_allclose(found @ found.T, leading @ leading.T * (len(said) / 3), atol=1e-3)
    bert = fresh()
    torch.manual_seed(3)
    start_as_mean_of_words(bert, records, word_std=1.0)
    asked = [("red dog", "roter hund"), ("a cat", "eine katze")]
    english, german = (bert.encode_text([pair[side] for pair in asked]) for side in (0, 1))
    cosines = english @ german.T
    assert cosines.diagonal().min() > max(cosines[0, 1], cosines[1, 0])


def test_the_mean_of_words_needs_vectors_as_wide_as_states(images: list[ImageRef]) -> None:
    with pytest.raises(ConfigError, match="embedding_size = hidden_size"):
        start_as_mean_of_words(fresh(embedding_size=8), captioned(images))


def test_proxies_start_at_the_mean_of_their_groups_images(images: list[ImageRef]) -> None:
    bert = fresh()
    records = [Record(str(i), image, {"en": ("a dog",)}, group=f"g{i % 3}") for i, image in enumerate(images[:8])]
    records.append(Record("text alone", None, {"en": ("a dog",)}, group="g9"))
    means = group_means(bert, records)
    vectors = bert.encode_images([r.image for r in records[:8]])
    assert set(means) == {group_number(f"g{k}") for k in range(3)}
    for k in range(3):
        total = vectors[k::3].sum(0)
        np.testing.assert_allclose(means[group_number(f"g{k}")].numpy(), total / np.linalg.norm(total), atol=1e-5)
    groups = torch.tensor(sorted({*means, group_number("g9")}))
    proxies = build_state(groups, 16)
    before = proxies.table.detach().clone()
    proxies.start(StartOfRun(means, dict))
    for row, group in enumerate(groups.tolist()):
        expected = means[group] * 4 if group in means else before[row]
        torch.testing.assert_close(proxies.table[row].detach(), expected)
    assert proxies.table.norm(dim=1).detach().numpy() == pytest.approx([4] * 3 + [4], rel=0.5), "length sqrt(D) all"


def test_texts_start_at_the_ridge_regression_onto_their_images(images: list[ImageRef]) -> None:
    """Against least squares on rows that stand for the penalty; then the match logit starts from the same vectors."""
    bert, ridge = fresh(pooling="product"), 0.3
    records = captioned(images)
    whiten_regions(bert, images)
    start_as_mean_of_words(bert, records, word_std=1.0)
    align_texts(bert, records, ridge=ridge)
    means = group_means(bert, records)
    pairs = [
        (t, means[group_number(r.group)]) for r in records if r.image for said in r.captions.values() for t in said
    ]
    states = bert.first_states([text for text, _ in pairs]).astype(np.float64)
    wanted = np.stack([mean.numpy() for _, mean in pairs]).astype(np.float64)
    x, y = states - states.mean(0), wanted - wanted.mean(0)
    penalty = np.sqrt(ridge * np.trace(x.T @ x) / x.shape[1])
    solved, *_ = np.linalg.lstsq(
        np.vstack([x, penalty * np.eye(x.shape[1])]), np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None
    )
    expected = x @ solved
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(bert.encode_text([text for text, _ in pairs]), expected, atol=1e-4)

    pooler, match = bert.model.trunk.pooler, bert.model.match_head
    text, image = (torch.from_numpy(states[:4].astype(np.float32)), torch.randn(4, 16))
    with torch.no_grad():
        cosine = (bert.model.embedding_head.embed_text(text) * bert.model.embedding_head.embed_image(image)).sum(1)
        torch.testing.assert_close(match(pooler(text, image))[:, 0] - match.bias, MATCH_GAIN * 4 * cosine)


def test_groups_have_vectors_of_their_words_with_or_without_an_image(images: list[ImageRef]) -> None:
    """Against numpy's SVD of the weighed table of words."""
    bert, records = fresh(), captioned(images)
    found = text_vectors(bert, records, 3)
    said: dict[int, set[int]] = {}
    for record in records:
        texts = [text for several in (*record.captions.values(), *record.texts.values()) for text in several]
        pieces = {i for text in texts for i in bert.processor.tokenizer(text)["input_ids"]}
        said[group_number(record.group)] = pieces - set(bert.processor.tokenizer.all_special_ids)
    table = np.zeros((4, bert.config.vocab_size))
    for row, pieces in enumerate(said.values()):
        for piece in pieces:
            table[row, piece] = np.log(4 / sum(piece in other for other in said.values()))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    left = np.linalg.svd(table)[0][:, :3]
    left -= left.mean(0)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    ours = torch.stack([found[group] for group in said]).numpy()
    np.testing.assert_allclose(ours @ ours.T, left @ left.T, atol=1e-4)


def test_regions_start_at_the_ridge_regression_onto_the_texts_vectors(images: list[ImageRef]) -> None:
    bert, records, ridge = fresh(), captioned(images), 0.3
    vectors = regress_regions(bert, records, ridge=ridge)
    assert set(vectors) == {group_number(record.group) for record in records}
    trunk, pictured = bert.model.trunk, [r for r in records if r.image]
    with torch.no_grad():
        _, table, pixels = bert.processor.images.table([r.image for r in pictured])
        features = trunk.vision(pixels, table)[0][:: trunk.vision.regions_per_image].double()
        projection = trunk.region_embedding.projection
        weight = projection.weight[:, -features.shape[1] :].double()
        regions = torch.relu(features @ weight.T + projection.bias)
        found = (regions @ trunk.embeddings.object_visual.projection.weight.double().T).numpy()
    x = ((features - features.mean(0)) / (features.std(0) + 1e-4)).numpy() / np.sqrt(features.shape[1])
    y = np.stack([vectors[group_number(r.group)].numpy() for r in pictured]).astype(np.float64)
    penalty = np.sqrt(ridge * (x * x).sum() / len(x))
    solved, *_ = np.linalg.lstsq(
        np.vstack([x, penalty * np.eye(x.shape[1])]), np.vstack([y - y.mean(0), np.zeros((x.shape[1], 16))]), rcond=None
    )
    expected = x @ solved
    expected *= 4 / np.linalg.norm(expected, axis=1).mean()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_words_and_texts_can_start_from_the_texts_vectors(images: list[ImageRef]) -> None:
    """A text without any image then comes out at its group's vector, nearer than at any other's."""
    bert, records = fresh(), captioned(images)
    vectors = regress_regions(bert, records)
    start_as_mean_of_words(bert, records, vectors=vectors)
    align_texts(bert, records, vectors=vectors, ridge=0.01)
    groups = {group_number(name): name for name in ("dog", "snow", "elephant", "alone")}
    table = torch.stack([vectors[group] for group in groups]).numpy()
    alone = bert.encode_text([records[-1].captions["th"][0]])
    assert list(groups.values())[int((alone @ table.T).argmax())] == "alone"


def test_regression_needs_the_same_sizes(images: list[ImageRef]) -> None:
    with pytest.raises(ConfigError, match="regress_regions needs"):
        regress_regions(fresh(visual_size=16), captioned(images))
