"""Latent semantics of texts: vectors of groups (images, concepts, translations) from the words that stand in them.

In: records and a tokenizer. Out: vectors from which regions and words can start (see ``alignment``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
from mmbert.tasks.base import group_number


def text_vectors(bert: MMBert, records: Sequence[Record], size: int, *, most: int = 6000) -> dict[int, Tensor]:
    """Unit vectors [size] by group number: whitened latent semantics of the groups' words (Deerwester et al., 1990).

    Rows are groups, columns the vocabulary's entries that stand in a text of the group, weighed by the logarithm of
    their rarity; the vectors are the left singular vectors.

    Args:
        bert: whose tokenizer splits the texts.
        records: with texts.
        size: numbers of a vector.
        most: groups, the first ones; memory and time grow with their square (:func:`latent_means` are for more).
    """
    chosen = by_group(records)[:most]
    groups, pieces = word_pieces(bert, chosen)
    table = torch.zeros(len(chosen), bert.config.vocab_size)
    table[groups, pieces] = 1.0
    table[:, bert.processor.tokenizer.all_special_ids] = 0.0
    table *= (len(chosen) / table.sum(0).clamp(min=1)).log()
    table = nn.functional.normalize(table, dim=1)
    _, directions = torch.linalg.eigh((table @ table.T).double())
    found = torch.zeros(len(chosen), size)
    kept = directions.flip(1)[:, :size].float()
    found[:, : kept.shape[1]] = kept
    unit = nn.functional.normalize(found - found.mean(0), dim=1)
    return {group_number(record.group): vector for record, vector in zip(chosen, unit, strict=True)}


def latent_means(groups: Tensor, pieces: Tensor, count: int, vocabulary: int, size: int, *, rounds: int = 2) -> Tensor:
    """[count, size] vectors of groups by the word pieces that stand in them: as long as unit vectors on average.

    The leading left singular vectors of the matrix of groups and pieces, its columns divided by the roots of the
    pieces' frequencies and its rows then by their length (latent semantic indexing across languages: Dumais et al.,
    1997; by subspace iteration from random vectors: Halko et al., 2011).

    Args:
        groups, pieces: [n] each pair once.
        count, vocabulary: how many groups and entries there are.
        rounds: of the iteration.
    """
    frequency = torch.bincount(pieces, minlength=vocabulary).clamp(min=1).float()
    columns = frequency.rsqrt().unsqueeze(1)
    matrix = stands_in(groups, pieces, count, vocabulary)
    rows = (matrix @ (1 / frequency).unsqueeze(1)).clamp(min=1e-12).rsqrt()
    transposed = matrix.t().coalesce()
    found = torch.randn(count, size)
    for _ in range(rounds):
        of_pieces = columns * (transposed @ (rows * found))
        found = rows * (matrix @ (columns * of_pieces))
        found = torch.linalg.qr(found)[0] if count >= size else nn.functional.normalize(found, dim=1)
    return found * (count**0.5 / found.norm())


def by_group(records: Sequence[Record]) -> list[Record]:
    """One record with captions of each group, the last one; one with an image, where there is one."""
    chosen: dict[str | None, Record] = {}
    for record in records:
        if record.captions and (record.image is not None or getattr(chosen.get(record.group), "image", None) is None):
            chosen[record.group] = record
    return list(chosen.values())


def word_pieces(bert: MMBert, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """[n] numbers of records and [n] word pieces that stand in their texts, each pair once."""
    texts, owners = [], []
    for number, record in enumerate(records):
        for text in {t for said in (*record.captions.values(), *record.texts.values()) for t in said}:
            texts.append(text)
            owners.append(number)
    tokens = [torch.from_numpy(example.token_ids) for example in bert.processor.text_examples(texts)]
    owner = torch.repeat_interleave(torch.tensor(owners), torch.tensor([len(t) for t in tokens]))
    width = len(bert.model.trunk.embeddings.words.weight)
    pairs = torch.unique(owner * width + torch.cat(tokens))
    return pairs // width, pairs % width


def stands_in(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """[height, width] sparse matrix of ones."""
    places = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(places, torch.ones(len(rows)), (height, width), check_invariants=True).coalesce()
