"""The goldens: what the original networks compute, and the same from our converted networks.

Everything about sizes, options and names comes from the meta files of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from mmbert.compat.batches import pack_padded, valid_boxes
from mmbert.compat.checkpoints import read_checkpoint
from mmbert.compat.convert import convert, model_class
from mmbert.compat.keys import rules_for, their_tensors
from mmbert.compat.vocabularies import join_pieces, load_tokenizer
from mmbert.model.configuration import MMBertConfig
from mmbert.model.embeddings import box_coordinates
from mmbert.model.masked_generation import Generated, generate_at_mask
from mmbert.model.packed import BLANK, NO_IMAGE, PackedBatch, SequenceSpec, Target, region_places
from mmbert.model.task_models import mask_places
from mmbert.training.module import TrainingModule
from mmbert.vision.encoders.resnet import cut_out

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("MMBERT_GOLDENS") or ROOT.parent / "shared" / "goldens")
METAS = ("meta_vl.json", "meta_mm.json")
OUTSIDE = -10000.0
"""What the originals write into region columns past the longest sample."""


@cache
def metas() -> dict[str, dict[str, Any]]:
    """Meta of every name in the folder; empty where there is no folder."""
    found: dict[str, dict[str, Any]] = {}
    for file in METAS:
        if (FOLDER / file).is_file():
            found |= {n: m for n, m in json.loads((FOLDER / file).read_text()).items() if not n.startswith("_")}
    return found


def stored_names() -> set[str]:
    """Names that have a file in the folder, described or not."""
    return {path.stem for path in FOLDER.glob("*.safetensors")} | {path.stem for path in FOLDER.glob("*.model")}


def weights_by_rule(meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict that follows from each key (meta_vl.json, weight_rule), edited as the meta says."""
    state: dict[str, Tensor] = {}
    for key, shape in meta["state_dict"].items():
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) + meta["seed"])

        def normal(shape: list[int] = shape, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, generator=generator)

        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        elif key.endswith("running_mean"):
            state[key] = 0.05 * normal()
        elif len(shape) == 4:
            state[key] = normal() * (1 / (shape[1] * shape[2] * shape[3])) ** 0.5
        elif len(shape) == 1:
            state[key] = 1 + 0.1 * normal() if key.endswith(".weight") else 0.05 * normal()
        else:
            state[key] = 0.08 * normal()
    for kind, pattern, *arguments in meta.get("weight_edits", []):
        for key in [k for k in state if Path(k).match(pattern) or k == pattern]:
            if kind == "mul":
                state[key] = state[key] * arguments[0]
            else:
                first, end, value = arguments
                state[key][first:end] += value
    return state | {alias: state[key] for alias, key in meta["aliases"].items()}


def digest(state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> str:
    """sha256 of a state dict as the metas state it."""
    total = hashlib.sha256()
    for key in sorted(set(state) - set(aliases)):
        total.update(key.encode())
        total.update(state[key].contiguous().numpy().tobytes())
    return total.hexdigest()


@dataclass
class Golden:
    """One name: its inputs and outputs, and our network converted from its weights."""

    name: str
    work: Path

    relative = 2e-5
    """How far a gradient's length may be from the original's, relative to it."""

    @property
    def table(self) -> Mapping[str, Callable[[Golden, Tensor], Found]]:
        """How each output is read off our network."""
        return OUTPUTS

    def tolerance(self, name: str, wanted: Tensor) -> float:
        """Largest difference that may be."""
        return tolerance(name, wanted)

    @cached_property
    def meta(self) -> dict[str, Any]:
        return metas()[self.name]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(FOLDER / f"{self.name}.safetensors")

    def given(self, name: str) -> Tensor:
        return self.tensors[f"in.{name}"]

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {k.removeprefix("out."): v for k, v in self.tensors.items() if k.startswith("out.")}

    @property
    def gradients(self) -> dict[str, Tensor]:
        return {k.removeprefix("grad."): v for k, v in self.tensors.items() if k.startswith("grad.")}

    @cached_property
    def vocabulary(self) -> Path:
        return FOLDER / self.meta["config"]["NETWORK"]["BERT_MODEL_NAME"]

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.vocabulary)

    @cached_property
    def checkpoint(self) -> Path:
        """The ``.model`` file; written first where the weights follow from a rule."""
        if self.meta["weights"] == "file":
            return FOLDER / f"{self.name}.model"
        state = weights_by_rule(self.meta)
        assert digest(state, self.meta["aliases"]) == self.meta["weights_sha256"]
        path = self.work / f"{self.name}.model"
        torch.save({"state_dict": state}, path)
        return path

    @cached_property
    def folder(self) -> Path:
        """Our model folder, made by the public converter."""
        config = self.work / f"{self.name}.yaml"
        config.write_text(yaml.safe_dump(self.meta["config"]))
        out = self.work / self.name
        convert(self.checkpoint, out, config=config, tokenizer=self.vocabulary)
        return out

    @cached_property
    def model(self) -> Any:
        config = MMBertConfig.from_pretrained(self.folder)
        return model_class(config).from_pretrained(self.folder, dtype=torch.float32).eval()

    # -- inputs ---------------------------------------------------------------------------------------------------

    @cached_property
    def boxes(self) -> Tensor | None:
        """[I, N, 4 + F]; what VCR has behind the corners (score and class) is no feature."""
        found = self.tensors.get("in.boxes")
        return found[..., :4] if found is not None and self.pixels is not None else found

    @cached_property
    def pixels(self) -> Tensor | None:
        """[I, 3, H, W] RGB in 0..1 of end-to-end networks; the stored images are normalised BGR."""
        image = self.tensors.get("in.image")
        if image is None:
            return None
        network = self.meta["config"]["NETWORK"]
        mean, std = (
            torch.tensor(network[key], dtype=torch.float64).view(3, 1, 1) for key in ("PIXEL_MEANS", "PIXEL_STDS")
        )
        return ((image.double() * std + mean) / 255).flip(1)

    @cached_property
    def choices(self) -> int:
        """Sequences per image."""
        return self.given("answer_choices").shape[1] if "in.answer_choices" in self.tensors else 1

    @cached_property
    def image_of(self) -> list[int] | None:
        """Image of each row of text."""
        if self.choices == 1:
            return None
        return [i for i in range(len(self.given("answer_choices"))) for _ in range(self.choices)]

    @cached_property
    def ties(self) -> Tensor | None:
        """[B, L] box that each token is tied to, special tokens to the whole image."""
        return self.question_and_choice[2] if self.choices > 1 else None

    @cached_property
    def question_and_choice(self) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L] ids, segments and ties of ``[CLS] question [SEP] choice [SEP]``."""
        special = [torch.tensor([[getattr(self.tokenizer, f"{n}_token_id"), 0, 0]]) for n in ("cls", "sep")]
        rows = []
        for question, choices in zip(self.given("question"), self.given("answer_choices"), strict=True):
            for choice in choices:
                first = torch.cat([special[0], question[question[:, 0] > 0], special[1]])
                second = torch.cat([choice[choice[:, 0] > 0], special[1]])
                second[:, 2], first[:, 2] = 1, 0
                rows.append(torch.cat([first, second]))
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded[..., 0], padded[..., 2], padded[..., 1].clamp(min=0)

    @cached_property
    def padded_text(self) -> tuple[Tensor, Tensor]:
        """[B, L] ids and segments as the original hands them to its encoder."""
        if self.choices > 1:
            return self.question_and_choice[:2]
        cls, sep, mask = (getattr(self.tokenizer, f"{n}_token_id") for n in ("cls", "sep", "mask"))
        ends: dict[str, tuple[list[int], list[int]]] = {
            "question": ([sep, mask, sep], [0, 1, 1]),
            "expression": ([sep], [0]),
        }
        for name, (ids, kinds) in ends.items():
            if f"in.{name}" in self.tensors:
                given = self.given(name)
                text = torch.zeros(len(given), given.shape[1] + 1 + len(ids), dtype=torch.long)
                segments = torch.zeros_like(text)
                for row, tokens in enumerate(given):
                    own = tokens[tokens > 0]
                    line = torch.cat([torch.tensor([cls]), own, torch.tensor(ids)])
                    text[row, : len(line)] = line
                    segments[row, len(own) + 1 : len(line)] = torch.tensor(kinds)
                return text, segments
        text = self.given("text")
        if "in.aux_text" in self.tensors:
            aux = self.given("aux_text")
            width = max(text.shape[1], aux.shape[1])
            text = torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (text, aux)])
        return text, torch.zeros_like(text)

    @cached_property
    def with_image(self) -> int:
        """Rows that are no text-only rows."""
        return len(self.given("text")) if "in.text" in self.tensors else len(self.padded_text[0])

    @cached_property
    def batch(self) -> PackedBatch:
        text, segments = self.padded_text
        rows = self.with_image
        labels: dict[str, Any] = {"token_labels": {}, "sequence_labels": {}, "region_labels": {}}
        model = self.model
        if model.token_head is not None and "in.mlm_labels" in self.tensors and "top_logit" not in self.outputs:
            labels["token_labels"]["captions/mlm"] = self.padded_labels("mlm_labels")
            if "in.aux_text" in self.tensors:
                aux = torch.full_like(text, -1)
                aux[rows:] = self.padded_labels("aux_text_mlm_labels")
                labels["token_labels"]["texts/mlm"] = aux
        if model.match_head is not None:
            labels["sequence_labels"]["pairs/itm"] = self.given("relationship_label")
        if "in.word_de_ids" in self.tensors:
            labels["sequence_labels"]["words/lexical"] = self.given("word_de_ids")
        if "grounding" in model.heads:
            labels["region_labels"]["regions/grounding"] = self.given("label")
        if "region_class" in model.heads:
            labels["region_labels"]["regions/region_class"] = self.given("boxes")[..., 5]
        if model.region_head is not None and self.boxes is not None:
            wanted = self.given("mvrc_labels")
            if wanted.shape[-1] == model.config.num_region_classes:
                labels["region_classes"] = wanted
        batch = pack_padded(
            text[:rows],
            boxes=self.boxes,
            sizes=self.tensors.get("in.im_info"),
            segments=segments[:rows],
            masked=self.tensors.get("in.mvrc_ops"),
            pixels=self.pixels,
            box_masks=self.tensors.get("in.masks"),
            blank_masked=model.trunk.vision is not None and model.trunk.vision.blanks_hidden,
            image_of=self.image_of,
            ties=self.ties,
            text_only=text[rows:] if rows < len(text) else None,
            **labels,
        )
        if "mvrc" in batch.targets:
            batch.targets["regions/mvrc"] = batch.targets.pop("mvrc")
        if "answer" in model.heads:
            places = mask_places(batch, model.config.mask_token_id)
            batch.targets["answers/answer"] = replace(
                next(iter(batch.targets.values()), None) or _target(), positions=places, labels=self.given("label")
            )
        if "choice" in model.heads:
            questions = torch.tensor(self.image_of)
            right = torch.arange(self.choices).eq(self.given("answer_label").unsqueeze(1)).flatten().long()
            places = torch.arange(len(right))
            batch.targets["choices/choice"] = Target("choice", places, right, {"question": questions})
        return batch

    def padded_labels(self, name: str) -> Tensor:
        given = self.given(name)
        return torch.nn.functional.pad(given, (0, self.padded_text[0].shape[1] - given.shape[1]), value=-1)

    # -- what our network makes of them ---------------------------------------------------------------------------

    @cached_property
    def trunk(self) -> Any:
        with torch.no_grad():
            return self.model.trunk(self.batch, output_hidden_states=True, output_attentions=True)

    @cached_property
    def region_vectors(self) -> Tensor | None:
        with torch.no_grad():
            return self.model.trunk.embed_regions(self.seen)[1]

    @cached_property
    def seen(self) -> PackedBatch:
        """The batch with the features that the vision encoder has made of its pixels, so that it need not again."""
        return self.batch if self.pixels is None else replace(self.batch, regions=self.trunk.regions, pixels=None)

    @cached_property
    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.seen).logits

    def training(self, batch: PackedBatch, per_sequence: bool = False) -> dict[str, Any]:
        options: dict[str, dict[str, Any]] = {
            name: {"per_sequence": True} if per_sequence and name.endswith(("mlm", "mvrc")) else {}
            for name in batch.targets
        }
        network = self.meta["config"]["NETWORK"]
        if "choices/choice" in options:
            options["choices/choice"] = {"sigmoid": network["CLASSIFIER_SIGMOID"], "weight": network["ANS_LOSS_WEIGHT"]}
        if "regions/region_class" in options:
            options["regions/region_class"] = {"weight": network["CNN_LOSS_WEIGHT"]}
        return TrainingModule(self.model, options)(batch)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self._losses(False)

    @cached_property
    def losses_per_sequence(self) -> dict[str, Tensor]:
        return self._losses(True)

    def _losses(self, per_sequence: bool) -> dict[str, Tensor]:
        with torch.no_grad():
            result = self.training(self.seen, per_sequence)
        terms = {name: total / count for name, (total, count) in result["terms"].items() if name in self.batch.targets}
        return terms | {"loss": torch.as_tensor(result["loss"])}

    @cached_property
    def our_gradients(self) -> dict[str, Tensor]:
        """Gradient of every parameter under the originals' names; those without a path are left out."""
        self.model.zero_grad()
        self.training(self.batch)["loss"].backward()
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return their_tensors(rules_for(self.model.config), found)

    @cached_property
    def generated(self) -> Generated:
        text, mask_id = self.padded_text[0], self.tokenizer.mask_token_id
        stop = self.tokenizer.convert_tokens_to_ids("[STOP]")
        prompts, behind = [], set()
        for row, spec in zip(text, self.batch.sequences, strict=True):
            at = int((row == mask_id).nonzero()[0])
            prompts.append(SequenceSpec(row[:at].numpy(), 0, spec.text_rows, spec.region_rows))
            behind.add(int(row[at + 1]))
        (token,) = behind
        return generate_at_mask(
            self.model, prompts, mask_id=mask_id, sep_id=self.tokenizer.sep_token_id, stop_id=stop,
            regions=self.batch.regions, behind_first_mask=token or None, keep_finished=True,
            keep_logits=len(self.outputs["mask_logits"]),
        )  # fmt: skip

    def sentences(self) -> list[str]:
        return [join_pieces(self.tokenizer.convert_ids_to_tokens(row)) for row in self.generated.tokens()]

    # -- padded forms ---------------------------------------------------------------------------------------------

    def streams(self, states: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """[P, ...] positions to [B, width, ...] columns of each sequence, and which columns it has."""
        columns = states.new_zeros(len(self.batch.lengths), width, *states.shape[1:])
        there = torch.zeros(columns.shape[:2], dtype=torch.bool)
        for row, part in enumerate(states.split(self.batch.lengths)):
            n = min(width, len(part))
            columns[row, :n], there[row, :n] = part[:n], True
        return columns, there

    def regions(self, values: Tensor, like: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """[R, ...] values of all valid boxes to [B, N, ...] columns."""
        columns = torch.zeros_like(like)
        columns[:] = fill
        valid = self.valid(like)
        columns[: len(valid)][valid] = values
        return columns

    def valid(self, like: Tensor) -> Tensor:
        """[B, N] valid boxes of each row with an image: of each image, or of each sequence that reads one."""
        if self.boxes is None:
            return torch.zeros(0, like.shape[1], dtype=torch.bool)
        valid = valid_boxes(self.boxes)[:, : like.shape[1]]
        return valid[self.image_of] if self.image_of is not None and len(like) == len(self.image_of) else valid

    def cut_out(self) -> Tensor:
        """[4, C, 14, 14] RoI-aligned maps of the first four boxes."""
        table = self.batch.regions
        return cut_out(self.feature_map(), table.boxes[:4], table.image_numbers[:4])

    def feature_map(self) -> Tensor:
        """[I, C, h, w] maps at stride 16."""
        vision = self.model.trunk.vision
        return vision.feature_map(vision.normalised(self.pixels))

    def outside(self, columns: Tensor) -> Tensor:
        """Region columns past the longest sample, as the originals fill them."""
        assert self.boxes is not None
        columns[:, int(valid_boxes(self.boxes).sum(1).max()) :] = OUTSIDE
        return columns

    def text_visual(self) -> Tensor:
        """[B, W, V] visual vector of each text column, before projection."""
        embeddings, vectors = self.model.trunk.embeddings, self.region_vectors
        text = self.padded_text[0]
        columns = torch.zeros(*text.shape, self.model.config.visual_size)
        for row, spec in enumerate(self.batch.sequences):
            if not isinstance(spec.text_rows, int):
                columns[row, : len(spec.text_rows)] = vectors[spec.text_rows]  # type: ignore[index]
                continue
            source = NO_IMAGE if self.model.config.ignore_regions else spec.text_rows
            learned = embeddings.text_only_visual
            if source == BLANK or (source == NO_IMAGE and learned is None):
                continue
            columns[row] = learned.detach() if source == NO_IMAGE else vectors[source]  # type: ignore[index]
        return columns

    def used_rows(self) -> list[int]:
        """Table rows of the boxes of each image."""
        return [int(row) for spec in self.batch.sequences[:: self.choices] for row in spec.region_rows]


def _target() -> Any:
    return Target("answer", torch.zeros(0, dtype=torch.long), torch.zeros(0))


Found = tuple[Tensor, Tensor | None]
"""A tensor as the golden has it, and which of its leading entries have a meaning (None: all)."""


def _columns(values: Callable[[Golden], Tensor]) -> Callable[[Golden, Tensor], Found]:
    return lambda g, like: g.streams(values(g), like.shape[1])


def _token_logits(part: slice | None) -> Callable[[Golden, Tensor], Found]:
    def make(g: Golden, like: Tensor) -> Found:
        states, there = g.streams(g.trunk.last_hidden_state, like.shape[1])
        with torch.no_grad():
            logits = g.model.token_logits(states.flatten(0, 1)).view(*states.shape[:2], -1)
        rows = (
            slice(None)
            if part is None
            else slice(*(g.with_image if p == "image" else p for p in (part.start, part.stop)))
        )
        return logits[rows], there[rows]

    return make


def _loss(name: str, per_sequence: bool = False) -> Callable[[Golden, Tensor], Found]:
    def make(g: Golden, like: Tensor) -> Found:
        return (g.losses_per_sequence if per_sequence else g.losses).get(name, torch.zeros(())), None

    return make


def _region_logits(g: Golden, like: Tensor) -> Found:
    with torch.no_grad():
        nothing = g.model.region_logits(torch.zeros(1, g.model.config.hidden_size))[0]
        values = g.model.region_logits(g.trunk.last_hidden_state[region_places(g.batch)])
    return g.outside(g.regions(values, like, nothing)), None


def _label_logits(g: Golden, like: Tensor) -> Found:
    if "grounding" not in g.model.heads:
        return g.logits.view(like.shape), None
    with torch.no_grad():
        nothing = float(g.model.head_logits("grounding", torch.zeros(1, g.model.config.hidden_size)))
    return g.outside(g.regions(g.logits, like, nothing)), None


def _best_boxes(g: Golden, like: Tensor) -> Found:
    assert g.boxes is not None
    with torch.no_grad():
        best = g.model.best_regions(g.model(g.seen), g.seen)
    boxes = torch.stack(
        [
            g.boxes[row][valid][number, :4]
            for row, (valid, number) in enumerate(zip(valid_boxes(g.boxes), best, strict=True))
        ]
    )
    return boxes / g.given("im_info")[:, [2, 3, 2, 3]], None


def _attentions(g: Golden, like: Tensor) -> Found:
    found = torch.zeros_like(like)
    there = torch.zeros(like.shape[:-1], dtype=torch.bool)
    for layer, kept in enumerate(g.trunk.attentions):
        for row, weights in enumerate(kept):
            n = weights.shape[-1]
            found[row, layer, :, :n, :n] = weights
            there[row, layer, :, :n] = True
    return found, there


def _all_states(g: Golden, like: Tensor) -> Found:
    made = [g.streams(states, like.shape[2]) for states in g.trunk.hidden_states[1:]]
    return torch.stack([m[0] for m in made], 1), torch.stack([m[1] for m in made], 1)


def _last_inputs(g: Golden, like: Tensor) -> Found:
    rows = torch.zeros_like(like)
    for row, ids in enumerate(g.generated.last_inputs):
        line = torch.from_numpy(ids)
        line = torch.cat([line[:-1], torch.zeros(1, dtype=torch.long), line[-1:]])  # the [PAD] behind [MASK]
        rows[row, : len(line)] = line
    return rows, None


def _coordinates_of_three(g: Golden, like: Tensor) -> Found:
    regions = g.batch.regions
    return box_coordinates(regions.boxes[:3], regions.sizes[:3]), None


def _kinds(*kinds: int) -> Callable[[Golden, Tensor], Found]:
    def make(g: Golden, like: Tensor) -> Found:
        wanted = sum(g.batch.kinds == kind for kind in kinds) > 0
        return g.streams(torch.as_tensor(wanted), like.shape[1])[0], None

    return make


def _given(name: str, part: slice = slice(None)) -> Callable[[Golden, Tensor], Found]:
    return lambda g, like: (g.padded_labels(name)[:, : like.shape[1]] if "mlm" in name else g.given(name), None)


def _valid(g: Golden, like: Tensor) -> Found:
    mask = torch.zeros_like(like)
    valid = g.valid(like)
    mask[: len(valid)] = valid
    return mask, None


def _of_pixels(make: Callable[[Golden], Tensor], step: int) -> Callable[[Golden, Tensor], Found]:
    """Every so many channels of a map on the way from pixels to regions."""

    def read(g: Golden, like: Tensor) -> Found:
        with torch.no_grad():
            return make(g)[:, ::step], None

    return read


def _region_classes(g: Golden, like: Tensor) -> Found:
    with torch.no_grad():
        return g.model.head_logits("region_class", g.trunk.last_hidden_state[region_places(g.batch)]), None


OUTPUTS: dict[str, Callable[[Golden, Tensor], Found]] = {
    "relationship_logits": lambda g, _: (g.model.match_columns(g.trunk.pooled).detach().view(_.shape), None),
    "relationship_label": _given("relationship_label"),
    "mlm_logits": _token_logits(None),
    "mlm_logits_wvc": _token_logits(slice(0, "image")),
    "mlm_logits_aux": _token_logits(slice("image", None)),
    "mlm_label": _given("mlm_labels"),
    "mlm_label_wvc": _given("mlm_labels"),
    "mlm_label_aux": _given("aux_text_mlm_labels"),
    "mvrc_logits": _region_logits,
    "MLT_logits": lambda g, _: (g.logits, None),
    "label_logits": _label_logits,
    "pred_boxes": _best_boxes,
    "cls_output": lambda g, _: (g.trunk.last_hidden_state[g.batch.starts], None),
    "attention_probs": _attentions,
    "hidden_states": _all_states,
    "relationship_loss": _loss("pairs/itm"),
    "mlm_loss": _loss("captions/mlm"),
    "mlm_loss_wvc": _loss("captions/mlm"),
    "mlm_loss_aux": _loss("texts/mlm"),
    "mvrc_loss": _loss("regions/mvrc"),
    "MLT_loss": _loss("words/lexical"),
    "ans_loss": lambda g, like: _loss("choices/choice" if g.choices > 1 else "answers/answer")(g, like),
    "cls_loss": _loss("regions/grounding"),
    "cnn_regularization_loss": _loss("regions/region_class"),
    "positive_fraction": lambda g, _: (g.batch.targets["choices/choice"].labels.float().mean(), None),
    "loss": _loss("loss"),
    "train_loss": _loss("loss"),
    "mask_logits": lambda g, _: (torch.stack(g.generated.logits), None),
    "top_logit": lambda g, _: (g.generated.best, None),
    "generated_ids": lambda g, _: (g.generated.ids, None),
    "generated_len": lambda g, _: (torch.tensor(g.generated.lengths), None),
    "last_input_ids": _last_inputs,
    "mid.c4_every64": _of_pixels(lambda g: g.feature_map(), 64),
    "mid.roi_align_first4_every128": _of_pixels(lambda g: g.cut_out(), 128),
    "mid.roi_head_first4_every256": _of_pixels(lambda g: g.model.trunk.vision.layer4(g.cut_out()), 256),
    "mid.obj_reps_raw": lambda g, like: (g.regions(g.trunk.regions.features, like), None),
    "mid.cnn_reg_logits": _region_classes,
    "mid.coord_embed_first3": _coordinates_of_three,
    "mid.obj_reps": lambda g, like: (g.regions(g.region_vectors[g.used_rows()], like), None),
    "mid.vlbert_in.text_input_ids": lambda g, _: (g.padded_text[0], None),
    "mid.vlbert_in.text_token_type_ids": lambda g, _: (g.padded_text[1], g.padded_text[0] > 0),
    "mid.vlbert_in.text_visual_embeddings": lambda g, _: (g.text_visual(), g.padded_text[0] > 0),
    "mid.vlbert_in.text_mask": lambda g, _: (g.padded_text[0] > 0, None),
    "mid.vlbert_in.object_mask": _valid,
    "mid.embedding": _columns(lambda g: g.trunk.hidden_states[0]),
    "mid.attention_mask": _kinds(0, 1, 2, 3),
    "mid.sequence_text_mask": _kinds(0),
    "mid.sequence_object_mask": _kinds(1, 2),
    "mid.position_ids": _columns(lambda g: g.batch.position_ids + g.model.trunk.embeddings.position_offset),
    "mid.token_type_ids": _columns(lambda g: g.batch.segment_ids),
    "mid.layer0_hidden": _columns(lambda g: g.trunk.hidden_states[1]),
    "mid.text_hidden": _columns(lambda g: g.trunk.last_hidden_state),
    "mid.sequence_out": _columns(lambda g: g.trunk.last_hidden_state),
    "mid.object_hidden": lambda g, like: (g.regions(g.trunk.last_hidden_state[region_places(g.batch)], like), None),
    "mid.pooled": lambda g, _: (g.trunk.pooled, None),
    "mid.classifier_input": lambda g, _: (
        g.trunk.last_hidden_state[mask_places(g.batch, g.model.config.mask_token_id)], None,
    ),
}  # fmt: skip
"""How each output of the originals is read off our network."""
FIRST = "norm_in_batch_first."


def ours(golden: Golden, name: str, like: Tensor) -> Found:
    """Our tensor for the output ``name``.

    Raises:
        KeyError: the test does not know that output.
    """
    if name.startswith(FIRST):
        losses = {"relationship_loss": "pairs/itm", "mlm_loss": "captions/mlm", "mlm_loss_wvc": "captions/mlm",
                  "mlm_loss_aux": "texts/mlm", "mvrc_loss": "regions/mvrc", "loss": "loss"}  # fmt: skip
        return _loss(losses[name.removeprefix(FIRST)], per_sequence=True)(golden, like)
    return golden.table[name](golden, like)


def tolerance(name: str, wanted: Tensor) -> float:
    """Losses to 2e-5; all else to 2e-5 or 2e-6 of the tensor's largest value; integers exactly."""
    if not wanted.is_floating_point():
        return 0.0
    if name.endswith("loss") or not wanted.numel():
        return 2e-5
    return max(2e-5, 2e-6 * float(wanted.abs().max()))


def difference(found: Tensor, wanted: Tensor, there: Tensor | None = None) -> float:
    """Largest absolute difference at the entries that have a meaning."""
    assert found.shape == wanted.shape, f"{list(found.shape)} instead of {list(wanted.shape)}"
    apart = (found.double() - wanted.double()).abs()
    assert not apart.isnan().any()
    if there is not None:
        apart = apart[there]
    return float(apart.max()) if apart.numel() else 0.0


def left_behind(golden: Golden) -> int:
    """Tensors of the golden's checkpoint, each counted once."""
    return len(read_checkpoint(golden.checkpoint).tensors)
