"""Retrieval by a model that was only pre-trained: cosines of the first tokens' last states, MM-BERT's distances."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from tiny import SENTENCES, Quarters, shake, tiny_config

from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example, collate
from mmbert.data.records import ImageRef, Record
from mmbert.evaluation.gallery import build_gallery
from mmbert.evaluation.retrieval import evaluate_retrieval, recall_report
from mmbert.evaluation.translation_retrieval import TranslationRetrieval
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.text.tokenizer import train_tokenizer

torch.set_num_threads(1)
SAID = [("a dog", "ein Hund"), ("two dogs in the snow", "zwei Hunde"), ("a red ball", "ein Ball"), ("a cat", "Katze")]
TOKENIZER = train_tokenizer([*SENTENCES, *(t for pair in SAID for t in pair)] * 3, vocab_size=300)


def picture(number: int) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (60 * number, 200 - 50 * number, 90)).save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue(), key=f"p{number}")


RECORDS = [Record(f"r{i}", picture(i), {"en": (en,), "de": (de,)}) for i, (en, de) in enumerate(SAID)]


def pretrained() -> MMBert:
    config = tiny_config(vocab_size=len(TOKENIZER), region_feature_size=3, embedding_size=0)
    network = MMBertForPreTraining(config)
    network.trunk.vision = Quarters()
    shake(network, 5)
    return MMBert(network.eval(), MMBertProcessor(TOKENIZER, config, network.trunk.vision))


def state(bert: MMBert, text: str | None, image: ImageRef | None) -> np.ndarray:
    """Unit vector of the first token's last state, encoded by itself."""
    ids = bert.processor.image_ids() if text is None else bert.processor.ids(text)
    with torch.no_grad():
        vector = bert.model(collate([Example(ids, image=image)], bert.processor.images)).last_hidden_state[0].numpy()
    return vector / np.linalg.norm(vector)


def test_captions_and_images_each_alone() -> None:
    bert, gallery = pretrained(), build_gallery(RECORDS)
    texts = np.stack([state(bert, text, None) for text in gallery.texts])
    images = np.stack([state(bert, None, image) for image in gallery.images])
    languages = [gallery.language_of(row) for row in range(len(gallery.texts))]
    expected = recall_report(texts @ images.T, gallery.text_group, gallery.image_group, languages)
    assert evaluate_retrieval(bert, RECORDS) == expected


def test_sentences_alone_and_with_their_images() -> None:
    bert = pretrained()
    for images in (False, True):
        vectors = [
            np.stack([state(bert, pair[side], picture(i) if images else None) for i, pair in enumerate(SAID)])
            for side in (0, 1)
        ]
        cosines = vectors[0] @ vectors[1].T
        found = TranslationRetrieval(bert, RECORDS, source="en", target="de", images=images).ranks()
        for ranks, scores in zip(found, (cosines, cosines.T), strict=True):
            assert ranks.tolist() == [1 + sum(row > row[i]) for i, row in enumerate(scores)]
