"""Baselines of translation retrieval, each with its exact formula: a bag of embeddings and IBM model 1.

Words are runs of letters and digits, and single other characters, in lower case. Both learn from the pairs
``(e_n, f_n)`` of the training text alone and give scores ``[queries, candidates]`` by block.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
WORD = re.compile(r"\w+|[^\w\s]")
Scores = np.ndarray


def words(text: str) -> list[str]:
    """A sentence as words."""
    return WORD.findall(text.lower())


class Vocabulary:
    """Numbers of the words of one language; 0 is for all others."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.numbers = {word: i + 1 for i, word in enumerate(dict.fromkeys(w for t in texts for w in words(t)))}

    def __len__(self) -> int:
        return len(self.numbers) + 1

    def flat(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """[n] word numbers of all texts in a row (0: not known), and [n] the text that each stands in."""
        found = [[self.numbers.get(word, 0) for word in words(text)] or [0] for text in texts]
        return (
            torch.tensor([number for row in found for number in row]),
            torch.repeat_interleave(torch.arange(len(found)), torch.tensor(list(map(len, found)))),
        )


class BagOfEmbeddings:
    """The mean of word vectors, trained to find the pair in a batch.

    With ``x = sum_i E[e_i] / |sum_i E[e_i]|`` and ``y`` likewise from a table of the other language, the loss of a
    batch is the mean over n of ``-log softmax_m(s x_n . y_m)[n]`` plus the same with x and y exchanged, with a learned
    factor s (at most 100). The score is the cosine ``x . y``. Vectors start small (standard deviation 0.02): a rare
    word's would otherwise stay long and random.

    Args:
        pairs: sentences and their translations.
        size: numbers of a vector.
        epochs, batch, rate: of Adam, the rate falling linearly to 0.
    """

    def __init__(
        self,
        pairs: tuple[Sequence[str], Sequence[str]],
        *,
        size: int = 256,
        epochs: int = 15,
        batch: int = 512,
        rate: float = 5e-3,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.vocabularies = [Vocabulary(texts) for texts in pairs]
        self.tables = [nn.EmbeddingBag(len(v), size, mode="sum", padding_idx=0) for v in self.vocabularies]
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)
        log_scale = nn.Parameter(torch.tensor(2.66))
        parameters = [log_scale, *(table.weight for table in self.tables)]
        count = len(pairs[0])
        steps = epochs * (count // batch)
        optimizer = torch.optim.Adam(parameters, lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
        for _ in range(epochs):
            for chosen in torch.randperm(count)[: count // batch * batch].split(batch):
                drawn = [[texts[i] for i in chosen.tolist()] for texts in pairs]
                x, y = (self._vectors(side, texts) for side, texts in enumerate(drawn))
                logits = log_scale.clamp(max=4.6052).exp() * x @ y.T
                right = torch.arange(batch)
                loss = nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(logits.T, right)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def _vectors(self, side: int, texts: Sequence[str]) -> Tensor:
        numbers, owner = self.vocabularies[side].flat(texts)
        starts = torch.searchsorted(owner, torch.arange(len(texts)))
        return nn.functional.normalize(self.tables[side](numbers, starts), dim=1)

    @torch.no_grad()
    def scores(self, asking: Sequence[str], answering: Sequence[str], *, reverse: bool = False) -> Scores:
        """[asking, answering] cosines; ``reverse``: the second language asks."""
        x, y = (self._vectors(side ^ int(reverse), texts) for side, texts in enumerate((asking, answering)))
        return (x @ y.T).numpy()


class ModelOne:
    """IBM model 1 (Brown et al., 1993) in both directions.

    Five rounds of EM from uniform ``t``, with an empty word among the given ones:
    ``t(f | e) <- c(f, e) / sum_f' c(f', e)`` where ``c`` adds up ``t(f_j | e_i) / sum_i' t(f_j | e_i')`` over pairs.
    The score of a pair is ``l(f | e) + l(e | f)`` with
    ``l(f | e) = (1 / J) sum_j log max((1 / (I + 1)) sum_i t(f_j | e_i), 1e-6)``, i over the I words of e and the empty
    one, j over the J words of f that training has seen: a sum instead of the mean would favour short candidates.
    """

    FLOOR = 1e-6

    def __init__(self, pairs: tuple[Sequence[str], Sequence[str]], *, rounds: int = 5) -> None:
        self.vocabularies = [Vocabulary(texts) for texts in pairs]
        flats = [v.flat(texts) for v, texts in zip(self.vocabularies, pairs, strict=True)]
        self.tables = [self._train(flats[side], flats[1 - side], side, rounds) for side in (0, 1)]

    def _train(self, given: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor], side: int, rounds: int) -> Tensor:
        """[words of the other side, words of ``side``] sparse ``t``; column 0 is the empty word's."""
        texts = int(given[1].max()) + 1
        empty = torch.zeros(texts, dtype=torch.long), torch.arange(texts)
        order = torch.argsort(torch.cat([given[1], empty[1]]), stable=True)
        e = torch.cat([given[0], empty[0]])[order]
        starts = torch.searchsorted(torch.cat([given[1], empty[1]])[order], torch.arange(texts + 1))
        lengths = (starts[1:] - starts[:-1])[made[1]]  # of the given sentence, for each word that is made
        place = torch.repeat_interleave(torch.arange(len(made[0])), lengths)
        within = torch.arange(len(place)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        first = e[starts[made[1]][place] + within]
        width = len(self.vocabularies[1 - side])
        keys, link = torch.unique(first * width + made[0][place], return_inverse=True)
        row = keys // width
        t = torch.ones(len(keys))
        for _ in range(rounds):
            weight = t[link]
            weight /= torch.zeros(len(made[0])).index_add_(0, place, weight)[place]
            count = torch.zeros(len(keys)).index_add_(0, link, weight)
            t = count / torch.zeros(len(self.vocabularies[side])).index_add_(0, row, count)[row]
        shape = (width, len(self.vocabularies[side]))
        return torch.sparse_coo_tensor(torch.stack([keys % width, row]), t, shape).coalesce().to_sparse_csr()

    def _logs(self, side: int, given: Sequence[str], made: Sequence[str]) -> Tensor:
        """[given, made] ``l(made | given)``; the given sentences are in the language of ``side``."""
        numbers, owner = self.vocabularies[side].flat(given)
        known = numbers > 0
        lengths = torch.bincount(owner, minlength=len(given)).float() + 1
        rows = torch.cat([owner[known], torch.arange(len(given))])
        columns = torch.cat([numbers[known], torch.zeros(len(given), dtype=torch.long)])
        bags = _counts(columns, rows, (len(self.vocabularies[side]), len(given))).to_dense()
        # Sparse times dense: PyTorch's product of two sparse matrices does not give its memory back.
        logs = (self.tables[side] @ bags / lengths).clamp(min=self.FLOOR).log()  # [words, given]
        numbers, owner = self.vocabularies[1 - side].flat(made)
        numbers, owner = numbers[numbers > 0], owner[numbers > 0]
        made_bags = _counts(owner, numbers, (len(made), len(self.vocabularies[1 - side])))
        return (made_bags @ logs).T / torch.bincount(owner, minlength=len(made)).clamp(min=1)

    def scores(self, asking: Sequence[str], answering: Sequence[str], *, reverse: bool = False) -> Scores:
        """[asking, answering] mean log probabilities; ``reverse``: the second language asks."""
        found = torch.empty(len(asking), len(answering))
        side = int(reverse)
        for start in range(0, len(answering), 1000):  # a row of chances is as long as the vocabulary
            lot = answering[start : start + 1000]
            for begin in range(0, len(asking), 1000):
                asked = asking[begin : begin + 1000]
                block = self._logs(side, asked, lot) + self._logs(1 - side, lot, asked).T
                found[begin : begin + 1000, start : start + 1000] = block
        return found.numpy()


def _counts(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """[texts, words] sparse counts."""
    indices = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(indices, torch.ones(len(rows)), shape).coalesce().to_sparse_csr()
