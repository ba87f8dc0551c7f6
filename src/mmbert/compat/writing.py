"""Writing with MM-BERT's encoder-decoder, converted: as it ran, which is what its weights have learned.

The original's answer to a text depends on the padding that the text has in its batch. Here a text has none: it is
written as if it were alone, whatever is written together with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmbert.api.front_door import MMBert
from mmbert.api.writer import Writer
from mmbert.api.writer import cannot_write as cannot_write_anew
from mmbert.compat.encoder_decoder import OriginalEncoderDecoder
from mmbert.model.masked_generation import Generated
from mmbert.model.packed import RegionTable, SequenceSpec
from mmbert.text.tokenizer import STOP, writing_languages


class OriginalWriter(Writer):
    """A converted encoder-decoder that writes, greedily, at ``[MASK]`` of its second stream."""

    by_length = True

    @staticmethod
    def cannot(bert: Any) -> str | None:
        """As :func:`cannot_write`."""
        return cannot_write(bert)

    def _room(self, pieces: int, regions: int) -> tuple[int, int]:
        most = self._positions - 1 - max(1, regions)  # of text, on either side: [END] and each region has a position
        return (most - 3 if pieces <= most else 0), most  # [CLS], [MASK], [SEP]; and in the first step [STOP]

    def _at_mask(
        self, sources: Sequence[SequenceSpec], table: RegionTable | None, ids: Mapping[str, int], limit: int
    ) -> Generated:
        return OriginalEncoderDecoder(self.model).generate(
            sources,
            regions=table,
            cls_id=ids["cls"],
            mask_id=ids["mask"],
            sep_id=ids["sep"],
            stop_id=ids["stop"],
            max_steps=limit,
        )


def writer_of(bert: MMBert) -> Writer:
    """The writer of a model, whatever kind of model writes it is.

    Raises:
        UsageError: it does not write.
    """
    return OriginalWriter(bert) if _is_original(bert) else Writer(bert)


def cannot_write(bert: Any) -> str | None:
    """Why :func:`writer_of` has no writer for a model; None where it has one."""
    return None if _is_original(bert) else cannot_write_anew(bert)


def _is_original(bert: Any) -> bool:
    """Whether it is an encoder-decoder of MM-BERT's kind that has not learned to write by languages here."""
    model, processor = getattr(bert, "model", None), getattr(bert, "processor", None)
    if model is None or processor is None or model.token_head is None or model.decoder is None:
        return False
    tokenizer = processor.tokenizer
    return model.config.decoder_own_embeddings and STOP in tokenizer.get_vocab() and not writing_languages(tokenizer)
