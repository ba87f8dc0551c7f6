"""Writing with a model: translations of texts (with or without images) and captions of images.

How a model writes is known by its vocabulary: with tokens of languages (``[2de]``) it continues packed sequences; with
``[STOP]`` it is one of MM-BERT's, which write token by token at ``[MASK]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmbert.api.front_door import MMBert, _by_budget, _ref
from mmbert.data.packing import Example, collate
from mmbert.errors import UsageError
from mmbert.model.conditional_generation import MMBertForConditionalGeneration
from mmbert.model.linear import PackedWeights
from mmbert.plugins import nearest
from mmbert.text.tokenizer import writing_languages


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

    Raises:
        UsageError: its vocabulary has no language to write.
    """

    def __init__(self, bert: MMBert) -> None:
        if (reason := cannot_write(bert)) is not None:
            raise UsageError(reason, hint="train one with the recipe translation: mmbert train translation")
        self.bert = bert
        self.model = MMBertForConditionalGeneration.sharing(bert.model)
        self.tokenizer: Any = bert.processor.tokenizer
        self.languages = writing_languages(self.tokenizer)
        self._packed = PackedWeights()

    def write(
        self,
        texts: Sequence[str] | None,
        images: Sequence[Any] | None = None,
        *,
        to: str,
        beam: int = 4,
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
            to: language.
            beam: hypotheses kept at each step; 1 is greedy.
            nbest: how many texts per input, best first; at most ``beam``.
            length_penalty: exponent of the length that log probabilities are divided by (0: not at all).
            max_tokens: pieces per text; the model's longest text unless given.
            batch_tokens: positions per pass.
            progress: show a bar on stderr.

        Returns:
            per input, ``nbest`` texts.

        Raises:
            UsageError: as of ``check``, or numbers differ.
            ImageError: an image is missing or damaged.
        """
        self.check(to, beam, nbest, max_tokens)
        examples = self._examples(texts, images, to)
        longest = max_tokens or self.bert.processor.max_text_tokens
        regions = self.bert.processor.regions_per_image
        lengths = [len(e.token_ids) + (regions if e.image is not None else 0) for e in examples]
        order = sorted(range(len(examples)), key=lengths.__getitem__)
        found: list[list[Written]] = [[] for _ in examples]
        with self._packed.used(), tqdm(total=len(examples), desc="texts", disable=not progress, unit="text") as bar:
            for chosen in _by_budget(order, [beam * n for n in lengths], batch_tokens):
                texts_of = self._generate([examples[i] for i in chosen], beam, nbest, length_penalty, longest)
                for i, written in zip(chosen, texts_of, strict=True):
                    found[i] = written
                bar.update(len(chosen))
        return found

    def check(self, to: str, beam: int = 4, nbest: int = 1, max_tokens: int | None = None) -> None:
        """Whether it can be asked so.

        Raises:
            UsageError: the language is not one that the model writes, ``nbest`` exceeds ``beam``, or ``max_tokens`` is
                more than its longest text has.
        """
        if to not in self.languages:
            close = nearest(to, self.languages)
            known = ", ".join(self.languages)
            raise UsageError(
                f"this model does not write {to!r}", hint=f"did you mean {close!r}?" if close else f"it writes: {known}"
            )
        if beam < 1 or not 1 <= nbest <= beam:
            raise UsageError(f"{nbest} best of a beam of {beam}", hint="the best are at least 1, and at most the beam")
        most = self.bert.processor.max_text_tokens
        if max_tokens is not None and not 1 <= max_tokens <= most:
            raise UsageError(f"cannot write texts of up to {max_tokens} pieces", hint=f"1 to {most}")

    def _examples(self, texts: Sequence[str] | None, images: Sequence[Any] | None, to: str) -> list[Example]:
        if texts is None and images is None:
            raise UsageError("give texts, images or both")
        count = len(texts if texts is not None else images or ())
        if texts is not None and images is not None and len(images) != count:
            raise UsageError(f"{count} texts but {len(images)} images")
        if images is not None and self.bert.processor.images is None:
            raise UsageError("this model has no vision encoder, so it cannot read images")
        start = np.array([self.languages[to]])
        processor = self.bert.processor
        made = []
        for number in range(count):
            text = texts[number] if texts is not None else ""
            image = _ref(images[number], number) if images is not None else None
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
    if model is None or processor is None or model.token_head is None or not writing_languages(processor.tokenizer):
        return "this model does not write"
    return None
