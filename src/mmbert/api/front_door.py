"""``MMBert``: load a model by name or folder, embed texts and images, judge pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmbert.api.export_folder import is_exported
from mmbert.api.inputs import as_list, by_budget, chunks, image_reference
from mmbert.api.loading import find_model, load_model, silent_transformers
from mmbert.api.processing import MMBertProcessor, no_vision_encoder
from mmbert.api.regions import check_regions
from mmbert.data.packing import collate
from mmbert.data.region_input import RegionInput
from mmbert.errors import UsageError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.heads import EmbeddingHead
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch, RegionTable, SequenceSpec, pack, paired
from mmbert.vision.images import ImageSource
from mmbert.vision.views import VIEWS, view_all

if TYPE_CHECKING:
    from mmbert.api.answering import Answer
    from mmbert.api.grounding import Grounding

NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Configuration keys that say how or where a model was saved, not what it computes."""


@dataclass(frozen=True)
class KeptRegions:
    """An image's embedded regions (``MMBert.region_vectors``); stands for the image in ``match`` and ``match_pairs``.

    Args:
        vectors: [n, V] float16 (or as exact as they were asked for), the whole image first.
    """

    vectors: np.ndarray


class MMBert:
    """A model with its processor.

    Args:
        model: trunk and heads.
        processor: the tokenizer and image preparation that belong to it.
        name_or_path: shipped name, hub id or absolute folder that it was loaded from, if it was.

    Attributes:
        int8: whether it multiplies in 8 bits.
    """

    int8 = False

    def __init__(
        self, model: MMBertForPreTraining, processor: MMBertProcessor, name_or_path: str | None = None
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.name_or_path = name_or_path

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        int8: bool = False,
    ) -> MMBert:
        """Load a model.

        Args:
            name_or_path: ``"starter"`` (shipped, needs no network), a folder, or a hub id (``owner/name``). The folder
                may be one of ``mmbert export``; what is loaded then is an :class:`~mmbert.api.exported.ExportedMMBert`.
            device: where it runs; a GPU if there is one (the CPU with ``int8``).
            dtype: of the weights; fp32 unless told otherwise.
            int8: multiply in 8 bits on the CPU (:meth:`use_int8`).

        Raises:
            CheckpointError: nothing there, damaged, or weights that do not fit the configuration.
            UsageError: an exported model shall run elsewhere than on the CPU, or has another dtype; ``int8`` and
                another device or dtype, an exported model, or a build of PyTorch without it.
        """
        if is_exported(name_or_path):
            from mmbert.api.exported import ExportedMMBert

            return ExportedMMBert.from_exported(name_or_path, device=device, dtype=dtype, int8=int8)
        folder = find_model(name_or_path)
        model = load_model(folder, dtype or torch.float32)
        processor = MMBertProcessor.from_pretrained(folder, model.config, model.trunk.vision)
        chosen = device or ("cuda" if torch.cuda.is_available() and not int8 else "cpu")
        name = str(Path(name_or_path).resolve()) if Path(name_or_path).exists() else str(name_or_path)
        made = cls(model.to(chosen), processor, name)  # type: ignore[arg-type]
        if int8:
            made.use_int8()
        return made

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config, weights (safetensors) and tokenizer; ``dtype`` converts the stored weights."""
        state = None
        if dtype is not None:
            state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.model.state_dict().items()}
        with silent_transformers():
            self.model.save_pretrained(folder, state_dict=state)
        self.processor.save_pretrained(folder)

    def use_int8(self) -> None:
        """From now on multiply in 8 bits where texts, pairs and what is written are read: two to three times as fast
        for models of base size, and vectors and logits move a little (`docs/int8.md`).

        The weights stay in fp32 beside: the fingerprint, and what is saved or trained, is as it was.

        Raises:
            UsageError: the model is not on a CPU in fp32, or this build of PyTorch has no such products.
        """
        if self.device.type != "cpu" or self.dtype != torch.float32:
            raise UsageError(
                f"products in 8 bits are for fp32 models on a CPU, not for {self.dtype} on {self.device}",
                hint="leave int8 out, or device and dtype; on a GPU dtype=torch.bfloat16 is fast",
            )
        self.model.use_int8()
        self.int8 = True

    @property
    def config(self) -> MMBertConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of embedded regions."""
        return self.model.dtype

    @property
    def embedding_size(self) -> int:
        """Width of the vectors."""
        return self.config.embedding_size

    @property
    def logit_scale(self) -> float:
        """Factor that brings cosines to the scale of logits (learned by the contrastive loss)."""
        head = self._find_embedding_head()
        return 1.0 if head is None else float(head.scale.detach())

    @property
    def rerank_weight(self) -> float:
        """Weight of the match logit in re-ranking."""
        return float(self.config.rerank_weight)

    @property
    def rerank_views(self) -> int:
        """Views of each candidate that re-ranking looks at."""
        return int(self.config.rerank_views)

    @property
    def hub_weight(self) -> float:
        """Weight of an image's hubness in re-ranking."""
        return float(self.config.hub_weight)

    def hubness(self, image_vectors: np.ndarray) -> np.ndarray:
        """How near images are to queries in general, on the scale of logits; 0 where the model keeps no query bank.

        Args:
            image_vectors: [n, D] unit vectors, as ``encode_images`` gives them.

        Returns:
            [n] float32.
        """
        with torch.inference_mode():
            vectors = torch.from_numpy(np.asarray(image_vectors, dtype=np.float32)).to(self.device)
            return self._embedding_head().hubness(vectors).float().cpu().numpy()

    def keep_queries(self, texts: Sequence[str]) -> None:
        """Keep the vectors of these texts with the model, as its query bank.

        Args:
            texts: such as users may ask; a thousand do. None of them: no bank.
        """
        if texts or self.config.query_bank:
            bank = torch.from_numpy(self.encode_text(texts)).to(self.device)
            self._embedding_head().register_buffer("query_bank", bank, persistent=bool(len(bank)))
            self.config.query_bank = len(bank)
            self.__dict__.pop("fingerprint", None)

    def use_regions(self, images: RegionInput) -> None:
        """Read images as regions from stores, by key, instead of opening them.

        Raises:
            ConfigError: the regions are of another encoder or size than the model was made for, or the model trains
                its own vision encoder.
        """
        check_regions(self.config, self.model.trunk.vision, images)
        self.processor.images = images

    @cached_property
    def fingerprint(self) -> str:
        """Identifies configuration and weights; an index stores it."""
        digest = hashlib.blake2b(digest_size=12)
        config = {k: v for k, v in self.config.to_diff_dict().items() if k not in NOT_OF_THE_MODEL}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def encode_text(
        self, texts: str | Sequence[str], *, batch_tokens: int = 8192, progress: bool = False
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: one or many, in any language.
            batch_tokens: positions per pass.
            progress: show a bar on stderr.

        Returns:
            [n, D] float32 unit vectors, in the order given ([1, D] for a single string).
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        self._embedding_head()
        vectors = np.empty((len(texts), self.embedding_size), dtype=np.float32)
        with torch.inference_mode():
            for chosen, batch in self._text_batches(texts, batch_tokens, progress):
                vectors[chosen] = self._embed_texts(batch).cpu().numpy()
        return vectors

    def _embed_texts(self, batch: PackedBatch) -> Tensor:
        """[n, D] unit vectors of a batch of texts."""
        vectors: Tensor = self._embedding_head().embed_text(self._first_states(batch))
        return vectors

    def first_states(self, texts: Sequence[str], *, batch_tokens: int = 8192, progress: bool = False) -> np.ndarray:
        """Last state of each text's first token, [n, H] float32: what the projection and other heads start from."""
        found = np.empty((len(texts), self.config.hidden_size), dtype=np.float32)
        with torch.inference_mode():
            for chosen, batch in self._text_batches(texts, batch_tokens, progress):
                found[chosen] = self._first_states(batch).float().cpu().numpy()
        return found

    def _first_states(self, batch: PackedBatch, region_vectors: Tensor | None = None) -> Tensor:
        """[B, H] last state of each sequence's first token."""
        states = self.model(batch, positions=batch.starts, region_vectors=region_vectors).last_hidden_state
        assert states is not None
        return states

    def _text_batches(
        self, texts: Sequence[str], batch_tokens: int, progress: bool
    ) -> Iterator[tuple[list[int], PackedBatch]]:
        """Numbers of some of the texts and the batch they make, until all are done; short ones first."""
        examples = self.processor.text_examples(texts)
        order = sorted(range(len(texts)), key=lambda i: len(examples[i].token_ids))
        with tqdm(total=len(texts), desc="texts", disable=not progress, unit="text") as bar:
            for chosen in by_budget(order, [len(e.token_ids) + 1 for e in examples], batch_tokens):
                yield chosen, collate([examples[i] for i in chosen]).to(self.device)
                bar.update(len(chosen))

    def encode_images(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        batch_size: int = 64,
        views: int = 1,
        progress: bool = False,
    ) -> np.ndarray:
        """Embed images.

        Args:
            images: paths, PIL images, arrays, encoded bytes or ``file://`` URLs; one or many.
            batch_size: images per pass.
            views: mean over so many views of each image (``vision.views``): more exact, and as many times slower.
            progress: show a bar on stderr.

        Returns:
            [n, D] float32 unit vectors, in the order given.

        Raises:
            ImageError: an image is missing or damaged.
            UsageError: fewer than 1 view, or more than there are.
        """
        if not 1 <= views <= len(VIEWS):
            raise UsageError(f"cannot see {views} views of an image", hint=f"1 to {len(VIEWS)}")
        refs = as_list(images)
        vectors = np.empty((len(refs), self.embedding_size), dtype=np.float32)
        with torch.inference_mode():
            for chosen in chunks(len(refs), batch_size, progress, "images"):
                batch = self._image_batch([refs[i] for i in chosen])
                vectors[chosen] = self._embed_views(batch, views).cpu().numpy()
        return vectors

    def _embed_views(self, batch: PackedBatch, views: int) -> Tensor:
        """[I, D] unit vectors of the batch's images."""
        pixels = batch.pixels
        found: list[Tensor] = []
        for number in range(views):
            seen = batch if pixels is None else replace(batch, pixels=view_all(pixels, number))
            found.append(self._embed_images(seen))
        return found[0] if views == 1 else torch.nn.functional.normalize(torch.stack(found).mean(0), dim=-1)

    def _embed_images(self, batch: PackedBatch) -> Tensor:
        """[I, D] unit vectors of the batch's images as they are."""
        return self._embed_seen(batch, self._embed_regions(batch))

    def _embed_seen(self, batch: PackedBatch, region_vectors: Tensor) -> Tensor:
        """[I, D] unit vectors of images whose regions are embedded."""
        vectors: Tensor = self._embedding_head().embed_image(self._first_states(batch, region_vectors))
        return vectors

    def match(
        self, images: ImageSource | Sequence[ImageSource], texts: str | Sequence[str], *, progress: bool = False
    ) -> np.ndarray:
        """Probability that each text belongs to each image, reading them together.

        Returns:
            [n_images, n_texts].
        """
        refs = as_list(images)
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = np.stack(np.meshgrid(np.arange(len(refs)), np.arange(len(texts)), indexing="ij"), -1).reshape(-1, 2)
        logits = self.match_pairs(refs, texts, pairs, progress=progress)
        return torch.sigmoid(torch.from_numpy(logits)).numpy().reshape(len(refs), len(texts))

    def match_pairs(
        self,
        images: Sequence[ImageSource | KeptRegions],
        texts: Sequence[str],
        pairs: np.ndarray,
        *,
        batch_tokens: int = 8192,
        progress: bool = False,
    ) -> np.ndarray:
        """Match logits of chosen pairs; each image's regions are computed once.

        Args:
            images, texts: what the pairs refer to.
            pairs: [k, 2] image number and text number.
            batch_tokens: positions per pass.
            progress: show a bar on stderr.

        Returns:
            [k] float32 logits.

        Raises:
            UsageError: the model has no match head.
        """
        refs = list(images)
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        needed, image_of_pair = np.unique(pairs[:, 0], return_inverse=True)
        logits = np.empty(len(pairs), dtype=np.float32)
        if not len(pairs):
            return logits
        vectors, specs = self._region_vectors([refs[i] for i in needed])
        texts_used, text_of_pair = np.unique(pairs[:, 1], return_inverse=True)
        text_specs = [SequenceSpec(e.token_ids) for e in self.processor.text_examples([texts[i] for i in texts_used])]
        lengths = [
            len(text_specs[t]) + len(specs[i].region_rows) for i, t in zip(image_of_pair, text_of_pair, strict=True)
        ]
        order = sorted(range(len(pairs)), key=lengths.__getitem__)
        with tqdm(total=len(pairs), desc="pairs", disable=not progress, unit="pair") as bar, torch.inference_mode():
            for chosen in by_budget(order, lengths, batch_tokens):
                joint = [paired(text_specs[text_of_pair[k]], specs[image_of_pair[k]]) for k in chosen]
                logits[chosen] = self._match(joint, vectors)
                bar.update(len(chosen))
        return logits

    def answer(self, image: ImageSource | None, question: str, *, k: int = 5, boxes: Any = None) -> list[Answer]:
        """Answer a question about an image.

        Args:
            image: path, PIL image, array, encoded bytes or ``file://`` URL; None asks without an image.
            question: such as "What is left of the dog?".
            k: so many answers.
            boxes: [n, 4] x1, y1, x2, y2 in pixels of objects, for models that look into given boxes.

        Returns:
            the most probable answers, best first.

        Raises:
            UsageError: the model has not learned that (recipe ``question-answering``), or cannot look into boxes.
            ImageError: the image is missing or damaged. DataError: these are no boxes.
        """
        from mmbert.api.answering import answer

        return answer(self, image, question, boxes, k)

    def ground(self, image: ImageSource, expression: str, boxes: Any = None) -> Grounding:
        """Find what an expression means in an image.

        Args:
            image: path, PIL image, array, encoded bytes or ``file://`` URL.
            expression: such as "the man in red".
            boxes: [n, 4] candidates x1, y1, x2, y2 in pixels; None: windows over the image for models that look into
                given boxes, else the regions that the model makes by itself.

        Returns:
            the candidates with their scores, and which is the best.

        Raises:
            UsageError: the model has not learned that (recipe ``grounding``), or cannot look into given boxes.
            ImageError: the image is missing or damaged. DataError: these are no boxes.
        """
        from mmbert.api.grounding import ground

        return ground(self, image, expression, boxes)

    def region_vectors(self, images: Sequence[ImageSource], *, exact: bool = False) -> list[KeptRegions]:
        """The embedded regions of images, to be matched with texts later without opening the images again.

        Args:
            images: the images.
            exact: in single precision; else in half: 2 bytes a number, a match logit moves by some thousandths.

        Raises:
            UsageError: the model has no vision encoder.
            ImageError: an image is missing or damaged.
        """
        vectors, specs = self._region_vectors(list(images))
        table = (vectors.float() if exact else vectors.half()).cpu().numpy()
        return [KeptRegions(table[spec.region_rows]) for spec in specs]

    def _region_vectors(self, refs: Sequence[Any]) -> tuple[Tensor, list[SequenceSpec]]:
        """Embedded regions of all images in one table, and each image's sequence in its rows."""
        parts, specs, base = [], [], 0
        with torch.inference_mode():
            for chosen in chunks(len(refs), 64, False, "images"):
                for vectors in self._embedded([refs[i] for i in chosen]):
                    parts.append(vectors)
                    rows = np.arange(base, base + len(vectors))
                    specs.append(SequenceSpec(self.processor.image_ids(), text_rows=base, region_rows=rows))
                    base += len(vectors)
        return torch.cat(parts), specs

    def _embedded(self, refs: list[Any]) -> list[Tensor]:
        """[n, V] embedded regions of each image, the whole image first; those that were kept as they are."""
        found = {
            i: torch.tensor(ref.vectors, dtype=self.dtype, device=self.device)
            for i, ref in enumerate(refs)
            if isinstance(ref, KeptRegions)
        }
        fresh = [i for i in range(len(refs)) if i not in found]
        if fresh:
            batch = self._image_batch([refs[i] for i in fresh])
            vectors = self._embed_regions(batch)
            for i, spec in zip(fresh, batch.sequences, strict=True):
                found[i] = vectors.index_select(0, torch.from_numpy(spec.region_rows).to(vectors.device))
        return [found[i] for i in range(len(refs))]

    def _embed_regions(self, batch: PackedBatch) -> Tensor:
        """[N, V] vectors of the rows of the batch's region table."""
        _, vectors = self.model.trunk.embed_regions(batch)
        assert vectors is not None
        return vectors

    def _match(self, joint: list[SequenceSpec], vectors: Tensor) -> np.ndarray:
        """[k] match logits of sequences whose regions are rows of ``vectors``."""
        if self.model.match_head is None:
            raise UsageError("this model does not judge pairs (match_outputs is 0)")
        rows, inverse = np.unique(np.concatenate([s.region_rows for s in joint]), return_inverse=True)
        place = dict(zip(rows.tolist(), range(len(rows)), strict=True))
        starts = np.cumsum([0, *(len(s.region_rows) for s in joint)])
        local = [
            replace(s, text_rows=place[int(np.asarray(s.text_rows))], region_rows=inverse[a:b])
            for s, a, b in zip(joint, starts[:-1], starts[1:], strict=True)
        ]
        used = vectors.index_select(0, torch.from_numpy(rows).to(vectors.device))
        nothing = torch.zeros(len(rows), 4)
        batch = pack(local, regions=RegionTable(nothing, nothing[:, :2]), device=self.device)
        pooled = self.model(batch, positions=batch.starts, region_vectors=used).pooled
        return self.model.match_logits(pooled).float().cpu().numpy()

    def _image_batch(self, refs: Sequence[Any]) -> Any:
        if self.processor.images is None:
            raise no_vision_encoder()
        named = [image_reference(image, i) for i, image in enumerate(refs)]
        batch = collate(self.processor.image_examples(named), self.processor.images)
        return batch.to(self.device)

    def _embedding_head(self) -> Any:
        head = self._find_embedding_head()
        if head is None:
            raise UsageError(
                "this model makes no embeddings (embedding_size is 0)",
                hint="evaluate retrieval --mode match matches pairs; mmbert train retrieval makes a model with vectors",
            )
        return head

    def _find_embedding_head(self) -> EmbeddingHead | None:
        return self.model.embedding_head
