"""VL-BERT's pre-training written down plainly: padded tensors, its own key names, logits at every position.

An independent computation for tests: nothing of ours is used, and nothing is packed or selected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-12


@dataclass
class PaddedBatch:
    """A batch as the originals' loaders make it.

    Attributes:
        text: [B, T] ids, 0 behind the end.
        boxes: [B, N, 4 + F], -2 behind the end; the whole image first.
        sizes: [B, 2] width and height.
        token_labels: [B, T], -1 where there is none.
        masked: [B, N] 1 where the region's feature is hidden.
        classes: [B, N, C] distributions to predict, zero where there is nothing to predict.
    """

    text: Tensor
    boxes: Tensor
    sizes: Tensor
    token_labels: Tensor
    masked: Tensor
    classes: Tensor


def random_batch(vocabulary: int, features: int, classes: int, seed: int = 0) -> PaddedBatch:
    """Four samples of different lengths; one without a hidden word, one without a hidden region."""
    generator = torch.Generator().manual_seed(seed)
    lengths, counts = [9, 5, 7, 3], [4, 6, 2, 5]
    text = torch.zeros(4, max(lengths), dtype=torch.long)
    labels = torch.full_like(text, -1)
    boxes = torch.full((4, max(counts), 4 + features), -2.0)
    masked = torch.zeros(4, max(counts), dtype=torch.long)
    wanted = torch.zeros(4, max(counts), classes)
    sizes = torch.randint(100, 400, (4, 2), generator=generator).float()
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        text[row, :length] = torch.randint(5, vocabulary, (length,), generator=generator)
        if row != 2:
            hidden = torch.randperm(length, generator=generator)[: 1 + length // 4]
            labels[row, hidden] = torch.randint(5, vocabulary, (len(hidden),), generator=generator)
        corners = torch.rand(count, 2, 2, generator=generator).sort(1).values
        boxes[row, :count, :4] = corners.flatten(1) * sizes[row].repeat(2)
        boxes[row, 0, :4] = torch.tensor([0, 0, sizes[row, 0] - 1, sizes[row, 1] - 1])
        boxes[row, :count, 4:] = torch.rand(count, features, generator=generator)
        if row != 3:
            for region in range(1, 1 + count // 2):
                masked[row, region] = int(region != 2)  # the second is to be predicted although it is seen
                wanted[row, region] = torch.rand(classes, generator=generator).softmax(0)
    return PaddedBatch(text, boxes, sizes, labels, masked, wanted)


class PaddedNetwork:
    """The pre-training network.

    Args:
        state: tensors by the originals' names; made leaves of the graph here.
        heads: attention heads.
    """

    def __init__(self, state: Mapping[str, Tensor], heads: int) -> None:
        self.weights = {
            key: value.clone().requires_grad_() for key, value in state.items() if not key.endswith("decoder.weight")
        }
        self.heads = heads

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPS)

    def regions(self, batch: PaddedBatch) -> Tensor:
        """[B, N, V] visual vectors of all boxes."""
        boxes, size = batch.boxes[..., :4], batch.sizes[:, None]
        middle, extent = (boxes[..., :2] + boxes[..., 2:]) / 2 / size, (boxes[..., 2:] - boxes[..., :2]) / size
        values = torch.cat([middle, extent], -1) * 100
        angles = values[..., None] / 1000 ** (torch.arange(256) / 256)
        coordinates = torch.cat([angles.sin(), angles.cos()], -1).flatten(2)
        hidden = self.weights["object_mask_visual_embedding.weight"][0]
        features = torch.where(batch.masked[..., None] > 0, hidden, batch.boxes[..., 4:])
        joint = torch.cat([coordinates, features], -1)
        return self.linear("image_feature_extractor.obj_downsample.1", joint).relu()

    def encode(self, batch: PaddedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Last states [B, L, H], and [B, L] where text and where regions stand."""
        w = self.weights
        visual = self.regions(batch)
        text_visual = self.norm("vlbert.visual_ln_text", visual[:, 0])
        object_visual = self.norm("vlbert.visual_ln_object", visual)
        words = w["vlbert.word_embeddings.weight"]
        rows, places = [], []
        for row, ids in enumerate(batch.text):
            ids = ids[ids > 0]
            count = int((batch.boxes[row, :, 0] > -1.5).sum())
            hidden = batch.masked[row, :count, None] > 0
            marks = torch.where(
                hidden, w["object_mask_word_embedding.weight"], w["object_linguistic_embeddings.weight"]
            )
            vectors = torch.cat(
                [
                    words[ids] + text_visual[row],
                    marks + object_visual[row, :count],
                    w["vlbert.end_embedding.weight"],
                ]
            )
            positions = [*range(len(ids)), *[len(ids)] * count, len(ids) + 1]
            segments = [0] * len(ids) + [2] * (count + 1)
            position = w["vlbert.position_embeddings.weight"][positions]
            rows.append(vectors + position + w["vlbert.token_type_embeddings.weight"][segments])
            places.append(torch.tensor([0] * len(ids) + [1] * count + [2]))
        x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        where = torch.nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1)
        x = self.norm("vlbert.embedding_LayerNorm", x)
        bias = (where == -1).float()[:, None, None] * -10000
        layers = sum(key.endswith("intermediate.dense.weight") for key in w)
        for n in range(layers):
            x = self.layer(f"vlbert.encoder.layer.{n}.", x, bias)
        return x, where == 0, where == 1

    def layer(self, name: str, x: Tensor, bias: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = (split(self.linear(f"{name}attention.self.{part}", x)) for part in ("query", "key", "value"))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
        context = (weights @ v).transpose(1, 2).flatten(2)
        x = self.norm(f"{name}attention.output.LayerNorm", x + self.linear(f"{name}attention.output.dense", context))
        inner = F.gelu(self.linear(f"{name}intermediate.dense", x))
        return self.norm(f"{name}output.LayerNorm", x + self.linear(f"{name}output.dense", inner))

    def losses(self, batch: PaddedBatch, *, first_in_sample: bool) -> tuple[Tensor, Tensor]:
        """MLM and MVRC losses.

        Args:
            batch: the batch.
            first_in_sample: NORM_IN_BATCH_FIRST: averaged within each sample, then over the samples that have any.
        """
        states, text, regions = self.encode(batch)
        head = "vlbert.mlm_head.predictions."
        words = self.norm(f"{head}transform.LayerNorm", F.gelu(self.linear(f"{head}transform.dense", states)))
        logits = words @ self.weights["vlbert.word_embeddings.weight"].T + self.weights[f"{head}bias"]
        labels = torch.full(text.shape, -1)
        labels[text] = batch.token_labels[batch.text > 0]
        token_losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-1)
        mlm = _average(token_losses.view(labels.shape), labels != -1, first_in_sample)

        head = "vlbert.mvrc_head."
        classes = self.linear(f"{head}region_cls_pred", F.gelu(self.linear(f"{head}transform.dense", states)))
        wanted = torch.zeros_like(classes)
        wanted[regions] = batch.classes[batch.boxes[..., 0] > -1.5]
        region_losses = -(wanted * classes.log_softmax(-1)).sum(-1)
        return mlm, _average(region_losses, (wanted.sum(-1) - 1).abs() < 0.1, first_in_sample)


def _average(losses: Tensor, counted: Tensor, first_in_sample: bool) -> Tensor:
    losses = losses * counted
    if not first_in_sample:
        return losses.sum() / counted.sum()
    counts = counted.sum(1)
    return (losses.sum(1) / (counts + 1e-4)).sum() / ((counts > 0).sum() + 1e-4)
