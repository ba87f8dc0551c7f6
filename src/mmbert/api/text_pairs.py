"""Sentences and pairs of sentences: vectors of texts with or without their images, and match logits of text pairs.

Next to ``MMBert.encode_text`` and ``match_pairs``, for translation retrieval. In: texts (and their images); out: numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from mmbert.api.front_door import MMBert
from mmbert.api.inputs import by_budget, image_reference
from mmbert.api.processing import no_vision_encoder
from mmbert.errors import DataError, UsageError
from mmbert.model.packed import SequenceSpec, joined, pack, paired
from mmbert.vision.images import ImageSource

SENTENCES_PER_PASS = 64


def encode_sentences(
    bert: MMBert, texts: Sequence[str], images: Sequence[ImageSource] | None = None, *, progress: bool = False
) -> np.ndarray:
    """Embed sentences, each alone or together with its image.

    Args:
        bert: the model.
        texts: n sentences.
        images: the image of each; None: texts alone.
        progress: show a bar on stderr.

    Returns:
        [n, D] float32 unit vectors.

    Raises:
        UsageError: the model makes no embeddings or reads no images, or numbers of texts and images differ.
        ImageError: an image is missing or damaged.
    """
    if images is None:
        return bert.encode_text(texts, progress=progress)
    head = bert._embedding_head()
    if len(images) != len(texts):
        raise UsageError(f"{len(texts)} texts but {len(images)} images")
    if bert.processor.images is None:
        raise no_vision_encoder()
    vectors = np.empty((len(texts), bert.embedding_size), dtype=np.float32)
    starts = range(0, len(texts), SENTENCES_PER_PASS)
    with torch.inference_mode():
        for start in tqdm(starts, desc="texts", leave=False, disable=not progress):
            lot = slice(start, start + SENTENCES_PER_PASS)
            named = [image_reference(image, start + i) for i, image in enumerate(images[lot])]
            batch = bert.processor(texts[lot], named).to(bert.device)
            vectors[lot] = head.embed_text(bert.model(batch, positions=batch.starts).last_hidden_state).cpu().numpy()
    return vectors


def match_sentences(
    bert: MMBert,
    first: Sequence[str],
    second: Sequence[str],
    pairs: np.ndarray,
    images: Sequence[ImageSource] | None = None,
    *,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> np.ndarray:
    """Match logits of pairs of sentences, read together as ``[CLS] first [SEP] second [SEP]``.

    Args:
        bert: a model with a match head, trained on such pairs.
        first, second: what the pairs refer to.
        pairs: [k, 2] numbers of a first and a second sentence.
        images: of each first sentence, read with its pairs; None: text alone.
        batch_tokens: positions per pass.
        progress: show a bar on stderr.

    Returns:
        [k] float32 logits.

    Raises:
        UsageError: the model has no match head, or numbers of texts and images differ.
        DataError: a pair is longer than the model's table of positions.
    """
    if bert.model.match_head is None:
        raise UsageError("this model does not judge pairs (match_outputs is 0)")
    if images is not None and len(images) != len(first):
        raise UsageError(f"{len(first)} texts but {len(images)} images")
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    logits = np.empty(len(pairs), dtype=np.float32)
    if not len(pairs):
        return logits
    numbers = [np.unique(side, return_inverse=True) for side in pairs.T]
    (used, one), (used_second, two) = numbers
    ones, twos = (
        [SequenceSpec(example.token_ids) for example in bert.processor.text_examples([texts[i] for i in used])]
        for texts, used in ((first, used), (second, used_second))
    )
    vectors, seen = (None, []) if images is None else bert._region_vectors([images[i] for i in used])
    lengths = _lengths(bert, [len(spec) for spec in ones], [len(spec) for spec in twos], one, two)
    order = sorted(range(len(pairs)), key=lengths.__getitem__)
    with tqdm(total=len(pairs), desc="pairs", leave=False, disable=not progress) as bar, torch.inference_mode():
        for chosen in by_budget(order, lengths, batch_tokens):
            specs = [joined(ones[one[k]], twos[two[k]]) for k in chosen]
            if vectors is not None:
                specs = [paired(spec, seen[one[k]]) for spec, k in zip(specs, chosen, strict=True)]
                logits[chosen] = bert._match(specs, vectors)
            else:
                batch = pack(specs, device=bert.device)
                pooled = bert.model(batch, positions=batch.starts).pooled
                logits[chosen] = bert.model.match_logits(pooled).float().cpu().numpy()
            bar.update(len(chosen))
    return logits


def _lengths(bert: MMBert, first: Sequence[int], second: Sequence[int], one: np.ndarray, two: np.ndarray) -> list[int]:
    """Positions of each pair of texts, ``[END]`` counted.

    Raises:
        DataError: more than the model's table has.
    """
    most = bert.config.max_position_embeddings - (bert.config.position_padding_idx + 1)
    lengths = [first[a] + second[b] - 2 for a, b in zip(one, two, strict=True)]  # one [CLS] and one [END] for both
    if max(lengths) + 1 > most:  # [END] leaves one out
        raise DataError(
            f"a pair of sentences takes {max(lengths) + 1} positions, and the model has {most}",
            hint="a model for pairs has max_position_embeddings above twice max_text_tokens",
        )
    return lengths
