"""A closed-form start: region vectors begin as linear maps of the vision encoder's features, chosen from the corpus.

Either as the features' own whitened principal components, or as what ridge regression predicts of an image's texts.
Fresh models otherwise spend their first epochs on finding the directions in which the corpus's images differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmbert.api.front_door import MMBert
from mmbert.data.records import ImageRef, Record
from mmbert.errors import ConfigError
from mmbert.model.heads import ProductPooler
from mmbert.tasks.base import group_number
from mmbert.training.latent import by_group, latent_means, stands_in, text_vectors, word_pieces

MATCH_GAIN = 0.3
"""Weight of each product of a :class:`ProductPooler` in the match logit at the start: cosine 1 gives 0.3 sqrt(H)."""
MEAN_GAIN = 3.0
"""Weight of the mean over words against the first token's own, constant state."""


@torch.no_grad()
def whiten_regions(bert: MMBert, images: Sequence[ImageRef], *, power: float = 0.5) -> None:
    """Set the region embedding, the visual projections and the image projection from the images' own features.

    With P the leading principal directions of the whole-image features (each level of the encoder first scaled to
    unit mean norm), divided by (singular value ratio)^``power``, the embedding becomes ``ReLU([P, -P] x)`` and the
    projection to the hidden size ``[I, -I]``, so that every region's visual part starts as ``P x``.

    Args:
        bert: a fresh model whose visual size is twice its hidden size.
        images: of the training corpus.
        power: 0 keeps the components' own spread, 1 whitens fully.

    Raises:
        ConfigError: the sizes do not allow it.
    """
    hidden = _hidden_size(bert, "whiten_regions")
    features, parts = _whole_image_features(bert, images)
    mean = features.mean(0)
    centred = features - mean
    scale = torch.cat([torch.full((len(p),), 1 / float(centred[:, list(p)].norm(dim=1).mean())) for p in parts])
    _, spread, directions = torch.linalg.svd(centred * scale, full_matrices=False)
    count = min(hidden, len(spread))
    components = torch.zeros(hidden, features.shape[1])
    components[:count] = directions[:count] * (spread[:count, None] / spread[0]).clamp(min=1e-3) ** -power * scale
    typical = (centred @ components.T).norm(dim=1).mean() / hidden**0.5
    _map_regions(bert, components / typical, mean)


@torch.no_grad()
def regress_regions(bert: MMBert, records: Sequence[Record], *, ridge: float = 0.3) -> dict[int, Tensor]:
    """Set the region embedding so that an image's vector starts as what its features tell of its group's texts.

    Groups get vectors from their texts alone, with or without an image (``latent.text_vectors``); ridge regression from
    the whole-image features onto them (each feature standardised, each level of equal weight) is the map W, set up as
    :func:`whiten_regions` sets up its P. Pictures of things that no picture was seen of come out near their texts.

    Args:
        bert: a fresh model whose visual size is twice its hidden size.
        records: with images and texts.
        ridge: relative to the mean variance.

    Returns:
        unit vectors by group number.

    Raises:
        ConfigError: the sizes do not allow it.
    """
    hidden = _hidden_size(bert, "regress_regions")
    vectors = text_vectors(bert, records, hidden)
    pictured = [(vectors[group_number(r.group)], r.image) for r in records if r.image is not None and r.captions]
    features, parts = _whole_image_features(bert, [image for _, image in pictured])
    mean = features.mean(0)
    scale = torch.cat([torch.full((len(p),), len(p) ** -0.5) for p in parts]) / (features.std(0) + 1e-4)
    scaled, wanted = (features - mean) * scale, torch.stack([vector for vector, _ in pictured])
    gram = scaled @ scaled.T  # by images: there are often fewer than features
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram))
    components = (scaled.T @ torch.linalg.solve(gram, wanted - wanted.mean(0))).T * scale
    typical = ((features - mean) @ components.T).norm(dim=1).mean() / hidden**0.5
    _map_regions(bert, components / typical, mean)
    return vectors


def _hidden_size(bert: MMBert, key: str) -> int:
    if bert.processor.images is None or bert.config.visual_size != 2 * bert.config.hidden_size:
        raise ConfigError(f"model.{key} needs a vision encoder (or stored regions) and visual_size = 2 x hidden_size")
    return int(bert.config.hidden_size)


def _map_regions(bert: MMBert, components: Tensor, mean: Tensor) -> None:
    """Let every region's visual part start as ``components`` [H, F] times what its features are beyond ``mean`` [F]."""
    trunk, hidden = bert.model.trunk, len(components)
    projection = trunk.region_embedding.projection
    coordinates = projection.in_features - len(mean)
    projection.weight[:, coordinates:] = torch.cat([components, -components])
    offset = components @ mean
    projection.bias.copy_(torch.cat([-offset, offset]))
    both = torch.cat([torch.eye(hidden), -torch.eye(hidden)], dim=1)
    for visual in (trunk.embeddings.text_visual, trunk.embeddings.object_visual):
        assert isinstance(visual.projection, nn.Linear)
        visual.projection.weight.copy_(both)
    head = bert.model.embedding_head
    if head is not None:
        nn.init.eye_(head.image.weight)


@torch.no_grad()
def start_as_mean_of_words(
    bert: MMBert, records: Sequence[Record], *, word_std: float = 1.0, vectors: Mapping[int, Tensor] | None = None
) -> None:
    """Let the first layer begin as the mean over a sequence's positions, so that a text starts as a bag of its words.

    Values and output of the first attention become the identity (times ``MEAN_GAIN``; queries and keys stay small and
    random, so attention starts near uniform). Each word piece starts as the mean embedding of the images whose captions
    and further texts it stands in: long where it tells images apart, short where it stands everywhere, so that rare
    words count most. In a corpus of texts alone :func:`latent_means` stand for the images: words that stand in the same
    records, such as translations of each other, start alike.

    Args:
        bert: a fresh model whose embeddings are as wide as its hidden states.
        records: with texts; those without image are left out unless all are.
        word_std: standard deviation of the numbers of a word that belongs to one image alone.
        vectors: unit vectors by group number to take instead of the images' embeddings; a word's is then the mean over
            all groups, with and without images.

    Raises:
        ConfigError: the sizes do not allow it.
    """
    if bert.config.embedding_size != bert.config.hidden_size:
        raise ConfigError("model.mean_of_words needs embedding_size = hidden_size")
    layer = bert.model.trunk.encoder.layers[0]
    hidden = bert.config.hidden_size
    layer.attention.qkv.weight[2 * hidden :] = torch.eye(hidden)
    layer.attention_output.weight.copy_(torch.eye(hidden) * MEAN_GAIN)
    words = bert.model.trunk.embeddings.words
    words.weight.copy_(_word_vectors(bert, records, vectors) * hidden**0.5 * word_std)
    if bert.model.token_head is not None:  # logits keep their usual spread although the tied table is larger
        bert.model.token_head.norm.weight.fill_(bert.config.initializer_range / word_std)
    if bert.model.embedding_head is not None:
        nn.init.eye_(bert.model.embedding_head.text.weight)


def _word_vectors(
    bert: MMBert, records: Sequence[Record], vectors: Mapping[int, Tensor] | None, prior: float = 0.5
) -> Tensor:
    """[K, D] per vocabulary entry: sum of the centred vectors of the groups it stands for, over (count + ``prior``).

    Groups are those of ``vectors``, else those with images (their mean embeddings), else all (:func:`latent_means`).
    Entries in no text start small and at random, special tokens small and alike.
    """
    table = bert.model.trunk.embeddings.words.weight
    chosen = by_group(records)
    if vectors is None and any(record.image is not None for record in chosen):
        chosen = [record for record in chosen if record.image is not None]
        vectors = group_means(bert, records)
    groups, pieces = word_pieces(bert, chosen)
    if vectors is None:
        means = latent_means(groups, pieces, len(chosen), len(table), table.shape[1])
    else:
        means = torch.stack([vectors[group_number(record.group)] for record in chosen])
    counts = torch.bincount(pieces, minlength=len(table))
    sums = stands_in(pieces, groups, len(table), len(chosen)) @ (means - means.mean(0))
    special = bert.processor.tokenizer.all_special_ids
    vectors_of_words = sums / (counts + prior).unsqueeze(1)
    vectors_of_words[counts == 0] = torch.randn(int((counts == 0).sum()), table.shape[1]) * 0.1 * table.shape[1] ** -0.5
    vectors_of_words[special] = 0.02 * table.shape[1] ** -0.5
    return vectors_of_words


@torch.no_grad()
def group_means(bert: MMBert, records: Sequence[Record]) -> dict[int, Tensor]:
    """Mean embedding of the images of each group, as unit vectors: where proxies start."""
    pictured = [(group_number(record.group), record.image) for record in records if record.image is not None]
    vectors = torch.from_numpy(bert.encode_images([image for _, image in pictured]))
    sums: dict[int, Tensor] = {}
    for (number, _), vector in zip(pictured, vectors, strict=True):
        sums[number] = sums[number] + vector if number in sums else vector
    return {number: nn.functional.normalize(vector, dim=0) for number, vector in sums.items()}


@torch.no_grad()
def align_texts(
    bert: MMBert,
    records: Sequence[Record],
    *,
    ridge: float = 0.1,
    most: int = 12000,
    seed: int = 0,
    vectors: Mapping[int, Tensor] | None = None,
) -> None:
    """Set the text projection by ridge regression of the texts' first states onto their groups' mean image embeddings.

    Fresh texts all come out nearly alike, and contrast then has next to no gradient; centred and regressed they differ
    from the first step on.

    Args:
        bert: a fresh model.
        records: with images and captions.
        ridge: relative to the mean variance of the states.
        most: captions used, drawn at random.
        seed: of the draw.
        vectors: by group number, to take instead of image embeddings (those that image embeddings were regressed onto);
            captions of groups without images count too then.
    """
    head = bert.model.embedding_head
    assert head is not None
    wanted_of = vectors if vectors is not None else group_means(bert, records)
    pairs = [
        (caption, wanted_of[group_number(record.group)])
        for record in records
        if group_number(record.group) in wanted_of
        for captions in record.captions.values()
        for caption in captions
    ]
    drawn = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:most].tolist()
    states = torch.from_numpy(bert.first_states([pairs[i][0] for i in drawn]))
    wanted = torch.stack([pairs[i][1] for i in drawn])
    centre, middle = states.mean(0), wanted.mean(0)
    centred = states - centre
    gram = centred.T @ centred
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram))
    weight = torch.linalg.solve(gram, centred.T @ (wanted - middle)).T
    # As long as states are, not unit length: a step of Adam then changes little of it (vectors are normalised anyway).
    typical = (centred @ weight.T).norm(dim=1).mean() / len(gram) ** 0.5
    head.text.weight.copy_(weight / typical)
    head.text.bias.copy_(-(weight @ centre) / typical)
    pooler = bert.model.trunk.pooler
    if isinstance(pooler, ProductPooler) and bert.model.match_head is not None:
        pooler.text.load_state_dict(head.text.state_dict())
        pooler.image.load_state_dict(head.image.state_dict())
        nn.init.constant_(bert.model.match_head.weight, MATCH_GAIN)


def _whole_image_features(bert: MMBert, images: Sequence[ImageRef]) -> tuple[Tensor, list[range]]:
    """[n, F] features of region 0 of each image, and the columns of each level."""
    encoder = bert.model.trunk.vision
    assert bert.processor.images is not None
    found = []
    for start in range(0, len(images), 64):
        first_rows, table, pixels = bert.processor.images.table(images[start : start + 64])
        features = table.features
        if features is None:
            assert encoder is not None and pixels is not None
            features, _ = encoder.eval()(pixels, table)
        found.append(features[first_rows[:-1]].float())
    sizes = getattr(encoder, "part_sizes", [found[0].shape[1]])
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return torch.cat(found), [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
