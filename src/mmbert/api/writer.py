"""Writing with a model: translations of texts (with or without images) and captions of images.

How a model writes is known by its vocabulary. With tokens of languages (``[2de]``) it continues packed sequences, and a
beam can be searched. With ``[STOP]`` instead it is MM-BERT's "simple encoder", which writes token by token at
``[MASK]``: greedily, and in the one language that it has learned, which nothing in it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmbert.api.front_door import MMBert
from mmbert.api.inputs import by_budget, image_reference
from mmbert.api.processing import no_vision_encoder
from mmbert.data.packing import Example, collate
from mmbert.errors import UsageError
from mmbert.model.conditional_generation import MMBertForConditionalGeneration
from mmbert.model.linear import PackedWeights
from mmbert.model.masked_generation import MAX_STEPS, Generated, generate_at_mask
from mmbert.model.packed import RegionTable, SequenceSpec
from mmbert.plugins import nearest
from mmbert.text.tokenizer import STOP, writing_languages

BEAM = 4
"""Hypotheses of a model that searches, unless told otherwise."""
MOST_PENALTY = 10.0
"""Greatest length penalty, and the least with the other sign: length to this power is still a number."""


@dataclass(frozen=True)
class Written:
    """One text that a model wrote.

    Attributes:
        text: detokenised.
        score: log probability; where a beam was searched, divided by length ** length_penalty.
    """

    text: str
    score: float


class Writer:
    """A model that writes. On a CPU it holds weights a second time, once it has written (:class:`PackedWeights`).

    Args:
        bert: the model.

    Attributes:
        languages: that it can be asked for, with their tokens; none if it writes at ``[MASK]``.
        beam: hypotheses that it keeps unless told otherwise.
        by_length: whether only sequences of one length may be written together, at ``[MASK]``.

    Raises:
        UsageError: its vocabulary has neither a language to write nor ``[STOP]``.
    """

    by_length = False

    def __init__(self, bert: MMBert) -> None:
        if (reason := self.cannot(bert)) is not None:
            raise UsageError(reason, hint="train one with the recipe translation: mmbert train translation")
        self.bert = bert
        self.model = MMBertForConditionalGeneration.sharing(bert.model)
        self.tokenizer: Any = bert.processor.tokenizer
        self.languages = writing_languages(self.tokenizer)
        self.beam = BEAM if self.languages else 1
        self._packed = PackedWeights()

    @staticmethod
    def cannot(bert: Any) -> str | None:
        """As :func:`cannot_write`."""
        return cannot_write(bert)

    def write(
        self,
        texts: Sequence[str] | None,
        images: Sequence[Any] | None = None,
        *,
        to: str | None = None,
        beam: int | None = None,
        nbest: int = 1,
        length_penalty: float = 1.0,
        max_tokens: int | None = None,
        batch_tokens: int = 4096,
        progress: bool = False,
    ) -> list[list[Written]]:
        """Write a text for each text, for each image, or for each text with its image.

        Args:
            texts: sources; None or "" for nothing to read but the image.
            images: anything ``load_image`` takes, one per text.
            to: language; may be left out where there is but one. Says nothing to a model that writes at ``[MASK]``.
            beam: hypotheses kept at each step; 1 is greedy, and all that a model that writes at ``[MASK]`` can. None:
                ``Writer.beam``.
            nbest: how many texts per input, best first; at most ``beam``.
            length_penalty: exponent of the length that log probabilities are divided by (0: not at all), -10
                to 10. Of a beam only.
            max_tokens: pieces per text; the model's longest text unless given (at ``[MASK]`` 49 at most, as MM-BERT).
            batch_tokens: positions per pass.
            progress: show a bar on stderr.

        Returns:
            per input, ``nbest`` texts.

        Raises:
            UsageError: as of ``check``, or numbers differ.
            ImageError: an image is missing or damaged.
        """
        self.check(to, beam, nbest, max_tokens, length_penalty)
        beam = beam or self.beam
        examples = self._examples(texts, images, to)
        longest = max_tokens or self._longest
        regions = self.bert.processor.regions_per_image
        read_again = 0 if self.languages else longest  # at [MASK] a pass reads what is written, too
        lengths = [len(e.token_ids) + (regions if e.image is not None else 0) + read_again for e in examples]
        order = sorted(range(len(examples)), key=lengths.__getitem__)
        found: list[list[Written]] = [[] for _ in examples]
        with self._packed.used(), tqdm(total=len(examples), desc="texts", disable=not progress, unit="text") as bar:
            for chosen in by_budget(order, [beam * n for n in lengths], batch_tokens):
                asked = [examples[i] for i in chosen]
                if self.languages:
                    texts_of = self._generate(asked, beam, nbest, length_penalty, longest)
                else:
                    texts_of = self._generate_at_mask(asked, longest)
                for i, written in zip(chosen, texts_of, strict=True):
                    found[i] = written
                bar.update(len(chosen))
        return found

    def check(
        self,
        to: str | None,
        beam: int | None = None,
        nbest: int = 1,
        max_tokens: int | None = None,
        length_penalty: float = 1.0,
    ) -> None:
        """Whether it can be asked so; arguments as of :meth:`write`.

        Raises:
            UsageError: the language is not one that the model writes, or is not said where there are several; the model
                cannot search a beam; ``nbest`` exceeds ``beam``; ``max_tokens`` is more than its longest text has; or
                the length penalty is no number of a sensible size.
        """
        known = ", ".join(self.languages)
        if to is None and len(self.languages) > 1:
            raise UsageError("the language to write is not said", hint=f"it writes: {known}")
        if to is not None and self.languages and to not in self.languages:
            close = nearest(to, self.languages)
            raise UsageError(
                f"this model does not write {to!r}", hint=f"did you mean {close!r}?" if close else f"it writes: {known}"
            )
        if not self.languages and (beam or nbest) > 1:
            raise UsageError(
                "this model writes greedily, at [MASK], so it keeps one hypothesis",
                hint="leave beam and nbest out, or ask for 1",
            )
        beam = self.beam if beam is None else beam
        if beam < 1 or not 1 <= nbest <= beam:
            raise UsageError(f"{nbest} best of a beam of {beam}", hint="the best are at least 1, and at most the beam")
        if not isfinite(length_penalty) or abs(length_penalty) > MOST_PENALTY:
            raise UsageError(
                f"cannot search with a length penalty of {length_penalty:g}",
                hint=f"{-MOST_PENALTY:g} to {MOST_PENALTY:g}; 1 is usual, 0 takes the likeliest text",
            )
        most = self.bert.processor.max_text_tokens
        if max_tokens is not None and not 1 <= max_tokens <= most:
            raise UsageError(f"cannot write texts of up to {max_tokens} pieces", hint=f"1 to {most}")

    @property
    def _longest(self) -> int:
        """Tokens of a text, its end included, unless told otherwise."""
        most = self.bert.processor.max_text_tokens
        return most if self.languages else min(MAX_STEPS, most)

    def _examples(self, texts: Sequence[str] | None, images: Sequence[Any] | None, to: str | None) -> list[Example]:
        if texts is None and images is None:
            raise UsageError("give texts, images or both")
        count = len(texts if texts is not None else images or ())
        if texts is not None and images is not None and len(images) != count:
            raise UsageError(f"{count} texts but {len(images)} images")
        if images is not None and self.bert.processor.images is None:
            raise no_vision_encoder()
        start = np.array([self.languages[to or next(iter(self.languages))]]) if self.languages else None
        processor = self.bert.processor
        made = []
        for number in range(count):
            text = texts[number] if texts is not None else ""
            image = image_reference(images[number], number) if images is not None else None
            ids = processor.ids(text) if text or image is None else processor.image_ids()
            made.append(Example(ids, image=image, written=start))
        return made

    def _generate(
        self, examples: Sequence[Example], beam: int, nbest: int, length_penalty: float, longest: int
    ) -> list[list[Written]]:
        batch = collate(examples, self.bert.processor.images)
        never = sorted({i for i in self.tokenizer.all_special_ids if i != self.tokenizer.sep_token_id})
        options: dict[str, Any] = {"length_penalty": length_penalty} if beam > 1 else {}
        result = self.model.generate_text(
            batch.to(self.bert.device),
            num_beams=beam,
            num_return_sequences=nbest,
            max_new_tokens=longest,
            eos_token_id=self.tokenizer.sep_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            suppress_tokens=never,
            output_scores=True,
            output_logits=beam == 1,
            return_dict_in_generate=True,
            **options,
        )
        sequences = result.sequences[:, 1:].cpu()
        scores = result.sequences_scores if beam > 1 else self._greedy_scores(sequences, result.logits)
        texts = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        flat = [Written(text.strip(), round(float(s), 6)) for text, s in zip(texts, scores, strict=True)]
        return [flat[i : i + nbest] for i in range(0, len(flat), nbest)]

    def _generate_at_mask(self, examples: Sequence[Example], longest: int) -> list[list[Written]]:
        """Texts of sequences that go from short to long, as :class:`~mmbert.tasks.translation.TranslationTask` makes
        them to learn from: the source, what is written so far, ``[MASK]`` and ``[SEP]``."""
        batch = collate(examples, self.bert.processor.images).to(self.bert.device)
        limits = []
        for sequence, length in zip(batch.sequences, batch.lengths, strict=True):
            pieces = len(sequence.token_ids)
            room, most = self._room(pieces, length - pieces - 1)
            if room < 1:
                raise UsageError(
                    f"a source of {pieces} pieces leaves no room to write", hint=f"shorten it to {most} pieces or less"
                )
            limits.append(min(longest, room))
        found: list[list[Written]] = []
        with torch.inference_mode():
            table = batch.regions if self.model.config.ignore_regions else self.model.trunk.embed_regions(batch)[0]
        ids = {name: getattr(self.tokenizer, f"{name}_token_id") for name in ("cls", "mask", "sep")}
        ids["stop"] = self.tokenizer.convert_tokens_to_ids(STOP)
        alike = [(limit, length * self.by_length) for limit, length in zip(limits, batch.lengths, strict=True)]
        for (limit, _), rows in groupby(range(len(examples)), key=alike.__getitem__):
            result = self._at_mask([batch.sequences[row] for row in rows], table, ids, limit)
            texts = self.tokenizer.batch_decode(result.tokens(), skip_special_tokens=True)
            written = zip(texts, result.scores(), strict=True)
            found += [[Written(text.strip(), round(score, 6))] for text, score in written]
        return found

    def _room(self, pieces: int, regions: int) -> tuple[int, int]:
        """Tokens that can be written behind a source of so many pieces, and the longest source that leaves room."""
        room = self._positions - 3  # [SEP], regions, [END]
        return room - pieces, room - 1

    @property
    def _positions(self) -> int:
        config = self.bert.model.config
        return config.max_position_embeddings - (config.position_padding_idx + 1)

    def _at_mask(
        self, sources: Sequence[SequenceSpec], table: RegionTable | None, ids: Mapping[str, int], limit: int
    ) -> Generated:
        """Write at ``[MASK]``.

        Args:
            sources: ``[CLS] source [SEP]``, with regions.
            table: that they refer to.
            ids: of the tokens ``cls``, ``mask``, ``sep`` and ``stop``.
            limit: tokens at most.
        """
        return generate_at_mask(
            self.model,
            sources,
            mask_id=ids["mask"],
            sep_id=ids["sep"],
            stop_id=ids["stop"],
            regions=table,
            max_steps=limit,
        )

    def _greedy_scores(self, sequences: torch.Tensor, steps: Sequence[torch.Tensor]) -> torch.Tensor:
        """[R] log probabilities of what was written, ``[SEP]`` included."""
        total = torch.zeros(len(sequences))
        running = torch.ones(len(sequences), dtype=torch.bool)
        for step, logits in enumerate(steps):
            chosen = sequences[:, step]
            found = torch.log_softmax(logits.float().cpu(), -1).gather(1, chosen[:, None])[:, 0]
            total += torch.where(running, found, 0.0)
            running &= chosen != self.tokenizer.sep_token_id
        return total


def cannot_write(bert: Any) -> str | None:
    """Why a model cannot write; None where it can."""
    model, processor = getattr(bert, "model", None), getattr(bert, "processor", None)
    if model is None or processor is None or model.token_head is None:
        return "this model does not write"
    if writing_languages(processor.tokenizer):
        return None
    if STOP not in processor.tokenizer.get_vocab():
        return "this model does not write"
    if model.decoder is None:
        return None
    return "its decoder reads [MASK] as MM-BERT's did, which mmbert.compat.writing does"
