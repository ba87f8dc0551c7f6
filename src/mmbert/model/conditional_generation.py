"""The public class that writes: translations and captions, by transformers' ``generate`` on packed sequences.

The sequences are encoded once, packed; then every text grows by one token per step, by a cache of keys and values. What
transformers sees is a decoder-only model whose prompt is the first written token (all texts have the same length at
any time, so nothing is padded), and a cache that happens to know the sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from mmbert.model.encoder import KeptKeys
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import WRITTEN_SEGMENT, PackedBatch, without_regions
from mmbert.model.task_models import MMBertTaskOutput
from mmbert.model.writing import WritingCache


@dataclass
class WritingOutput(ModelOutput):
    """One step of generation.

    Attributes:
        logits: [R, n, K] of the next token behind each of the n new ones.
        past_key_values: the cache, grown.
    """

    logits: Tensor | None = None
    past_key_values: WritingCache | None = None


class MMBertForConditionalGeneration(MMBertForPreTraining, GenerationMixin):
    """Writes text that continues packed sequences: the trunk does it (prefix language model), or a decoder.

    ``model(batch)`` gives ``logits`` [T, K] at all written positions of a batch with continuations;
    ``model.generate_text(batch)`` writes.
    """

    main_input_name = "input_ids"

    @classmethod
    def sharing(cls, model: MMBertForPreTraining) -> MMBertForConditionalGeneration:
        """The same network, with the very same weights, as this class."""
        if isinstance(model, cls):
            return model
        made = cls.__new__(cls)
        made.__dict__ = dict(model.__dict__)
        made.generation_config = GenerationConfig()
        return made

    def forward(  # type: ignore[override]
        self,
        batch: PackedBatch | None = None,
        *,
        positions: Tensor | None = None,
        input_ids: Tensor | None = None,
        past_key_values: WritingCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits of written text.

        Args:
            batch: sequences with continuations.
            positions: [S] as in the trunk: whoever gives them (training does) gets states, without logits.
            input_ids: [R, n] the next tokens of every text, instead of a batch.
            past_key_values: what was written before.
            use_cache, return_dict: transformers' own; always on.
            kwargs: as of the trunk.
        """
        if input_ids is not None:
            assert past_key_values is not None
            return WritingOutput(self._step(input_ids, past_key_values), past_key_values)
        assert batch is not None
        if positions is not None or batch.continuation is None:
            return super().forward(batch, positions=positions, **kwargs)
        count = batch.num_positions
        places = torch.arange(count, count + batch.continuation.num_positions, device=batch.device)
        output = super().forward(batch, positions=places, **kwargs)
        assert output.last_hidden_state is not None
        return MMBertTaskOutput(**output, logits=self.token_logits(output.last_hidden_state), places=places)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, *, past_key_values: WritingCache, **kwargs: Any
    ) -> dict[str, Any]:
        """What ``forward`` gets at each step: the tokens that the cache has not seen."""
        return {"input_ids": input_ids[:, past_key_values.get_seq_length() :], "past_key_values": past_key_values}

    @torch.inference_mode()
    def generate_text(self, batch: PackedBatch, *, num_beams: int = 1, max_new_tokens: int = 64, **options: Any) -> Any:
        """Write behind each sequence.

        Args:
            batch: B sequences, each with the first tokens of its text (``written``; as many in all of them).
            num_beams: 1 is greedy.
            max_new_tokens: at most so many.
            options: of transformers' ``generate``: ``num_return_sequences``, ``length_penalty``, ``eos_token_id`` ...

        Returns:
            as ``generate``: [B * num_return_sequences, ...] ids, the first tokens among them.

        Raises:
            ValueError: a sequence is not continued, or first tokens differ in number.
        """
        written = batch.continuation
        if written is None or len(batch.continued) != batch.num_sequences or len(set(written.lengths)) != 1:
            raise ValueError("every sequence needs the first tokens of its text, and all as many")
        cache = self.start(batch)
        cache.expand(max(num_beams, int(options.get("num_return_sequences", 1))))
        return self.generate(  # type: ignore[misc]
            input_ids=written.token_ids.view(batch.num_sequences, -1),
            past_key_values=cache,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            do_sample=options.pop("do_sample", False),
            **options,
        )

    def start(self, batch: PackedBatch) -> WritingCache:
        """Encode the sequences of a batch whose every sequence is continued; nothing is written yet."""
        if self.config.ignore_regions:
            batch = without_regions(batch)
        assert batch.continuation is not None
        _, vectors = self.trunk.embed_regions(batch)
        kept = KeptKeys() if self.decoder is None else None
        # What continues a sequence in the trunk sees each layer's keys and values: nothing else is read of the last.
        positions = None if kept is None else batch.starts
        states = self.trunk.encode(batch, vectors, kept=kept, positions=positions)
        memory = kept.layers if kept is not None else self.decoder.memory(states)  # type: ignore[union-attr]
        columns = torch.arange(max(batch.lengths), device=batch.device)[None]
        lengths = torch.tensor(batch.lengths, device=batch.device)[:, None]
        places = batch.starts[:, None] + torch.minimum(columns, lengths - 1)
        if kept is not None and kept.rows is not None:
            places = kept.rows[places]
        first = batch.continuation.cu_seqlens[:-1].long()
        tables = self.trunk.embeddings if self.decoder is None else self.decoder.tables(self.trunk.embeddings)
        visual = tables.visual(replace(batch.continuation, regions=batch.regions), vectors).index_select(0, first)
        return WritingCache(memory, places, batch.lengths, self.config.num_attention_heads, visual)

    def _step(self, token_ids: Tensor, cache: WritingCache) -> Tensor:
        """[R, n] next tokens to [R, n, K] logits behind them; the cache grows by n."""
        rows, count = token_ids.shape
        before = cache.get_seq_length()
        places = torch.arange(before, before + count, device=token_ids.device).repeat(rows)
        visual = cache.visual.repeat_interleave(count, 0)
        ids = token_ids.reshape(-1)
        if self.decoder is None:
            hidden = self.trunk.embeddings.embed_text(ids, visual, places, WRITTEN_SEGMENT)
            states = self.trunk.encoder.write(hidden, cache)
        else:
            hidden = self.decoder.tables(self.trunk.embeddings).embed_text(ids, visual, places, WRITTEN_SEGMENT)
            states = self.decoder.run(self.decoder.add_positions(hidden, places), cache)
        return self.token_logits(states).view(rows, count, -1)
