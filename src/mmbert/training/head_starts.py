"""Where a task's head starts: from heads of pre-training, from another task's head, from the words of its answers.

In: ``model.init.heads`` of a recipe and the loaded parts. Out: the head's tensors filled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.compat.weights import Weights
from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.plugins import nearest
from mmbert.training.recipe import HeadStart

LAYERS = {
    "token_head": ("token_head", ("dense", "norm")),
    "region_head": ("region_head", ("dense",)),
    "pooler": ("trunk.pooler", ("text", "image", "dense")),
}
"""What ``transform`` may be: the part that has these layers, and their names."""
BOTH = ("weight", "bias")


class _Head:
    """A named head of ours, being filled."""

    def __init__(
        self,
        model: MMBertForPreTraining,
        name: str,
        find: Callable[[str], Weights],
        used: dict[str, set[str]],
    ) -> None:
        self.name, self.find, self.used = name, find, used
        self.tensors = {key: value for key, value in model.state_dict().items() if key.startswith(f"heads.{name}.")}
        self.filled: set[str] = set()

    def layers(self, names: Sequence[str], what: str) -> list[str]:
        """Our names of the tensors of these layers.

        Raises:
            ConfigError: there is none.
        """
        found = [key for key in self.tensors if key.split(".")[2] in names]
        if not found:
            raise ConfigError(f"model.init.heads.{self.name}: a head of this kind has no {what} to start")
        return found

    def put(self, key: str, source: str, *, odds: bool = False) -> None:
        """Fill our tensor ``key`` from a part's ``source``; ``odds``: of two rows the difference."""
        part = self.find(source)
        tensor = part.tensors[source]
        copy_tensor(self.tensors[key], tensor[1:] - tensor[:1] if odds and len(tensor) == 2 else tensor, source, part)
        self.used[part.origin].update(part.names[source])
        self.filled.add(key)


def start_head(
    model: MMBertForPreTraining,
    name: str,
    start: HeadStart,
    tokenizer: PreTrainedTokenizerBase,
    find: Callable[[str], Weights],
    used: dict[str, set[str]],
) -> set[str]:
    """Fill a named head of a model whose trunk is filled.

    Args:
        model: the model.
        name: of the head.
        start: from what.
        tokenizer: of the model, for heads that start from words.
        find: our name of a tensor to the part that has it; an error where none has.
        used: origin of each part to the names in its file that were used; added to.

    Returns:
        the names of ours that were filled.

    Raises:
        ConfigError: a head that the model has not, or that cannot start so.
        CheckpointError: a tensor is of another shape.
    """
    if name not in model.heads:
        close = nearest(name, model.heads)
        hint = f"did you mean {close!r}?" if close else "model.config.heads names them"
        raise ConfigError(f"model.init.heads: the model has no head {name!r}", hint=hint)
    head = _Head(model, name, find, used)
    if start.transform is not None:
        origin, layers = LAYERS[start.transform]
        for key in head.layers(layers, f"{layers[0]} layer"):
            head.put(key, key.replace(f"heads.{name}", origin))
    if start.match:
        for part in BOTH:
            head.put(f"heads.{name}.predictor.{part}", f"match_head.{part}", odds=True)
    if start.points is not None:
        _start_pointing(head, start.points)
    if start.words is not None or start.vectors:
        lines, where = _answers(model, name, start)
        rows = _vectors(model, head, lines, tokenizer) if start.vectors else _mean_rows(lines, where, tokenizer, model)
        _copy_rows(head.tensors[f"heads.{name}.predictor.weight"], rows, where)
        head.filled.add(f"heads.{name}.predictor.weight")
    return head.filled


def copy_tensor(target: Tensor, tensor: Tensor, name: str, part: Weights, hint: str | None = None) -> None:
    """Copy a part's tensor into ours.

    Raises:
        CheckpointError: it is of another shape.
    """
    if tensor.shape != target.shape:
        raise CheckpointError(
            f"{' + '.join(part.names[name])} is {list(tensor.shape)}, the model has {list(target.shape)}",
            where=part.origin,
            hint=hint or "a size in model.config is another than the file's",
        )
    target.copy_(tensor)


def _start_pointing(head: _Head, points: str) -> None:
    """What points at regions starts as the head ``points`` of a part, or as pooler and match head."""
    for key in head.layers(("points",), "part that points at regions"):
        inner = key.partition(".points.")[2]
        if points != "match":
            head.put(key, f"heads.{points}.{inner}")
        elif inner.startswith("predictor."):
            head.put(key, inner.replace("predictor", "match_head"), odds=True)
        else:
            head.put(key, f"trunk.pooler.{inner}")


def _answers(model: MMBertForPreTraining, name: str, start: HeadStart) -> tuple[list[str], str]:
    """The answers in the order of the outputs, and where they stand.

    Raises:
        ConfigError: there are none, or the file cannot be read.
    """
    if isinstance(start.words, str):
        return _lines(Path(start.words)), start.words
    lines = (model.config.heads or {})[name].get("labels")
    if not lines:
        hint = "name a file" if start.words is not None else f"model.config.heads.{name}.labels"
        raise ConfigError(f"model.init.heads.{name}: the head has no labels to start from", hint=hint)
    return list(lines), f"model.config.heads.{name}.labels"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the answers", where=str(path)) from error


def _vectors(
    model: MMBertForPreTraining, head: _Head, lines: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """[n, D]: the text vector of each answer less the mean of all; regions get the projection of images.

    What is common to all answers says nothing for one of them.
    """
    head.layers(("value",), "part that says what a region is")
    for part in BOTH:
        head.put(f"heads.{head.name}.value.{part}", f"embedding_head.image.{part}")
    weight, bias = (head.find(f"embedding_head.text.{part}").tensors[f"embedding_head.text.{part}"] for part in BOTH)
    states = MMBert(model, MMBertProcessor(tokenizer, model.config)).first_states(lines)
    rows = F.normalize(F.linear(torch.from_numpy(states), weight.float(), bias.float()), dim=-1)
    return rows - rows.mean(0)


def _mean_rows(
    lines: Sequence[str], where: str, tokenizer: PreTrainedTokenizerBase, model: MMBertForPreTraining
) -> Tensor:
    """[n, H]: for each answer the mean of its pieces' word vectors (VL-BERT's CLASSIFIER_PRETRAINED).

    Raises:
        ConfigError: an answer without a piece.
    """
    table = model.get_input_embeddings().weight
    rows = []
    for number, line in enumerate(lines, 1):
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError("an answer without a word", where=f"{where}:{number}")
        rows.append(table[torch.tensor(ids)].mean(0))
    return torch.stack(rows) if rows else table[:0]


def _copy_rows(target: Tensor, rows: Tensor, where: str) -> None:
    if rows.shape != target.shape:
        raise ConfigError(
            f"{len(rows)} answers of width {rows.shape[1]} for an output layer of {list(target.shape)}",
            where=where,
            hint="one line for each output of the head, which has to read states directly",
        )
    target.copy_(rows)
