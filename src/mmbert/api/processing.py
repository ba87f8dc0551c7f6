"""Processor: texts and images as users have them, to packed batches. Its tokenizer is saved beside the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mmbert.data.images import AnyImage, Augmentation, BoxedImage, ImageInput, PixelInput
from mmbert.data.packing import Example, collate
from mmbert.data.records import Record
from mmbert.errors import CheckpointError, ConfigError, DataError, UsageError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.packed import PackedBatch
from mmbert.text.tokenizer import check_tokenizer
from mmbert.vision.encoders.base import VisionEncoder

KEPT_LENGTHS = 500_000
"""Texts whose lengths are remembered: planning batches asks for the same ones again for each part of a mixture."""
KEPT_IDS = 250_000
"""Texts whose ids are remembered, some 200 bytes each: training reads the same ones in each epoch."""


BLIND = "this model has no vision encoder, so it cannot read images"


def no_vision_encoder() -> UsageError:
    """The error that a model which reads regions was given an image to open."""
    hint = "it reads regions from a store: mmbert train, evaluate and predict take one, --features STORE"
    return UsageError(BLIND, hint=hint)


class MMBertProcessor:
    """Tokenizer and image preparation of one model.

    Args:
        tokenizer: any Hugging Face tokenizer with CLS, SEP, MASK and PAD.
        config: the model's configuration.
        vision: the model's vision encoder; None in a model for texts and precomputed features.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: MMBertConfig, vision: VisionEncoder | None = None
    ) -> None:
        check_tokenizer(tokenizer, config.vocab_size)
        self.tokenizer = tokenizer
        self.max_text_tokens = config.max_text_tokens
        self.segments = config.type_vocab_size
        self.heads: dict[str, Any] = dict(config.heads or {})
        self.vision = vision
        self._lengths: dict[str, int] = {}
        self._ids: dict[tuple[str, ...], np.ndarray] = {}
        self.images: ImageInput | None = None if vision is None else PixelInput(vision, cache_bytes=0)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, config: MMBertConfig, vision: VisionEncoder | None = None
    ) -> MMBertProcessor:
        """Load the tokenizer that was saved with a model.

        Raises:
            CheckpointError: the folder has no usable tokenizer, or that of another model.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
        except Exception as error:
            message = str(error).strip().splitlines()
            raise CheckpointError(
                f"no usable tokenizer: {message[0] if message else type(error).__name__}",
                where=str(folder),
                hint="a model folder holds tokenizer.json",
            ) from error
        try:
            return cls(tokenizer, config, vision)
        except ConfigError as error:
            raise CheckpointError(error.message, where=str(folder), hint=error.hint) from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save_pretrained(folder)

    @property
    def regions_per_image(self) -> int:
        """Positions that an image takes in the model's own vision encoder; 0 without one. Given boxes come on top."""
        return 0 if self.vision is None else self.vision.regions_per_image

    def image_of(self, record: Record) -> AnyImage | None:
        """The record's image as the vision encoder reads it: with the record's boxes if it looks into those.

        Raises:
            DataError: the record's boxes are none.
        """
        if record.image is None or not isinstance(self.images, PixelInput) or not self.images.encoder.takes_boxes:
            return record.image
        try:
            return BoxedImage.of(record.image, record.boxes)
        except DataError as error:
            raise DataError(error.message, where=record.origin or record.id, hint=error.hint) from error

    def region_count(self, image: AnyImage | None) -> int:
        """Positions that this image takes; 0 for None, and where the model has no images at all.

        Raises:
            DataError: regions come from a store, and it does not have the image's.
        """
        return 0 if image is None or self.images is None else self.images.count(image)

    def boxes_of(self, image: AnyImage, size: tuple[int, int]) -> np.ndarray:
        """[n, 4] boxes of the regions that this image takes, the whole image first, in pixels.

        Args:
            image: as :meth:`image_of` gives it; it is not opened.
            size: its width and height.

        Raises:
            UsageError: the model has no images.
            DataError: regions come from a store, and it does not have the image's.
        """
        if self.images is None:
            raise no_vision_encoder()
        return self.images.boxes(image, size)

    def encode(self, *texts: str) -> Any:
        """The tokenizer's own answer for one text or a pair, cut to ``max_text_tokens``."""
        return self.tokenizer(*texts, truncation=True, max_length=self.max_text_tokens)

    def ids(self, *texts: str) -> np.ndarray:
        """``[CLS] text [SEP]`` (or ``[CLS] a [SEP] b [SEP]``) as ids, cut to ``max_text_tokens``."""
        return self._kept(("ids", *texts), lambda: self.encode(*texts)["input_ids"])

    def written_ids(self, text: str) -> np.ndarray:
        """Word pieces of a text that is written, without special tokens, with room for the two that go around it."""
        most = max(1, self.max_text_tokens - 2)
        return self._kept(
            ("written", text),
            lambda: self.tokenizer(text, add_special_tokens=False, truncation=True, max_length=most)["input_ids"],
        )

    def _kept(self, key: tuple[str, ...], encode: Callable[[], Sequence[int]]) -> np.ndarray:
        """A copy of the ids of texts that were asked for before (training asks once per epoch), or new ones."""
        found = self._ids.get(key)
        if found is None:
            if len(self._ids) >= KEPT_IDS:
                self._ids.clear()
            found = self._ids[key] = np.asarray(encode(), dtype=np.int32)
        return found.astype(np.int64)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Word pieces of each text, special tokens not counted, none beyond ``max_text_tokens``."""
        new = [text for text in dict.fromkeys(texts) if text not in self._lengths]
        if len(self._lengths) + len(new) > KEPT_LENGTHS:
            self._lengths.clear()
            new = list(dict.fromkeys(texts))
        if new:
            encoded = self.tokenizer(
                new,
                add_special_tokens=False,
                truncation=True,
                max_length=self.max_text_tokens,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            self._lengths.update(zip(new, map(len, encoded["input_ids"]), strict=True))
        return [self._lengths[text] for text in texts]

    def sequence_length(self, *lengths: int) -> int:
        """Number of ids that :meth:`encode` makes of one text (or two) with the given numbers of word pieces."""
        special = self.tokenizer.num_special_tokens_to_add(pair=len(lengths) > 1)
        return min(self.max_text_tokens, special + sum(lengths))

    def image_ids(self) -> np.ndarray:
        """``[CLS] [SEP]``: the text part of an image alone."""
        return np.array([self.tokenizer.cls_token_id, self.tokenizer.sep_token_id], dtype=np.int64)

    def text_examples(self, texts: Sequence[str]) -> list[Example]:
        """Texts alone, one sequence each (tokenized together, which is faster)."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_text_tokens)["input_ids"]
        return [Example(np.asarray(ids, dtype=np.int64)) for ids in encoded]

    def image_examples(self, images: Sequence[AnyImage]) -> list[Example]:
        """Images alone, one sequence each."""
        return [Example(self.image_ids(), image=image) for image in images]

    def augmented_images(self, augment: Augmentation | None) -> ImageInput | None:
        """Where images come from in training: pixels with their own cache, or the region store.

        Raises:
            ConfigError: stored regions are to be augmented.
        """
        if self.vision is not None and isinstance(self.images, PixelInput):
            return PixelInput(self.vision, augment=augment)
        if augment is not None and self.images is not None:
            raise ConfigError("stored regions cannot be augmented", hint="set augment to null, or leave features out")
        return self.images

    def __call__(self, texts: Sequence[str] | None = None, images: Sequence[AnyImage] | None = None) -> PackedBatch:
        """Texts alone, images alone, or (given both, of one length) text i together with image i.

        Raises:
            UsageError: neither is given, or their numbers differ.
        """
        if texts is not None and images is not None:
            if len(texts) != len(images):
                raise UsageError(f"{len(texts)} texts but {len(images)} images")
            pairs = zip(self.text_examples(texts), images, strict=True)
            examples = [Example(text.token_ids, image=image) for text, image in pairs]
        elif texts is not None:
            examples = self.text_examples(texts)
        elif images is not None:
            examples = self.image_examples(images)
        else:
            raise UsageError("give texts, images or both")
        return collate(examples, self.images)
