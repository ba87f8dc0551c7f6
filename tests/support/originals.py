"""Small files as VL-BERT and MM-BERT wrote them: state dicts by the originals' key names, YAML files, vocabularies.

Key names and shapes are written out here from the description of the networks, not taken from the converter's table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

COORDINATES = 2048
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "run", "##ning", "the", "red", "ball", "in",
    "snow", "ein", "hund", "im", "schnee", "##e", "und", "cat", "yes", "no", "two", "##o", "left", "right", ",", ".",
]  # fmt: skip
"""A vocabulary of word pieces; a piece's line is its id."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a small network.

    ``visual`` is the width of visual vectors, ``features`` that of RoI features (the originals' is 2,048).
    """

    hidden: int = 16
    layers: int = 2
    heads: int = 2
    intermediate: int = 24
    vocabulary: int = len(WORDS)
    positions: int = 64
    visual: int = 16
    features: int = 2048
    classes: int = 5


SMALL = Sizes()


def trunk_shapes(sizes: Sizes = SMALL, *, pooler: bool = True, text_only: bool = True) -> dict[str, tuple[int, ...]]:
    """Keys and shapes without any head."""
    h, v, i = sizes.hidden, sizes.visual, sizes.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "image_feature_extractor.obj_downsample.1.weight": (v, COORDINATES + sizes.features),
        "image_feature_extractor.obj_downsample.1.bias": (v,),
        "object_linguistic_embeddings.weight": (1, h),
        "vlbert.word_embeddings.weight": (sizes.vocabulary, h),
        "vlbert.end_embedding.weight": (1, h),
        "vlbert.position_embeddings.weight": (sizes.positions, h),
        "vlbert.token_type_embeddings.weight": (3, h),
    }
    norms = ["embedding_LayerNorm", "visual_ln_text", "visual_ln_object"]
    if v != h:
        for part in ("text", "object"):
            shapes[f"vlbert.visual_1x1_{part}.weight"] = (h, v)
            shapes[f"vlbert.visual_1x1_{part}.bias"] = (h,)
    linear = {}
    for n in range(sizes.layers):
        layer = f"encoder.layer.{n}."
        linear |= {f"{layer}attention.self.{name}": (h, h) for name in ("query", "key", "value")}
        linear |= {f"{layer}attention.output.dense": (h, h), f"{layer}intermediate.dense": (i, h)}
        linear |= {f"{layer}output.dense": (h, i)}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    if pooler:
        linear["pooler.dense"] = (h, h)
    for name in norms:
        shapes |= {f"vlbert.{name}.weight": (h,), f"vlbert.{name}.bias": (h,)}
    for name, shape in linear.items():
        shapes |= {f"vlbert.{name}.weight": shape, f"vlbert.{name}.bias": shape[:1]}
    if text_only:
        shapes["aux_text_visual_embedding.weight"] = (1, v)
    return shapes


def pretraining_shapes(
    sizes: Sizes = SMALL, *, match: int = 1, mlm: bool = True, mvrc: bool = True, text_only: bool = True
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a pre-training network; ``match`` is the outputs of its relationship head (0: none)."""
    h = sizes.hidden
    shapes = trunk_shapes(sizes, pooler=bool(match), text_only=text_only)
    shapes["object_mask_visual_embedding.weight"] = (1, sizes.features)
    if mvrc:
        shapes |= {
            "object_mask_word_embedding.weight": (1, h),
            "vlbert.mvrc_head.transform.dense.weight": (h, h),
            "vlbert.mvrc_head.transform.dense.bias": (h,),
            "vlbert.mvrc_head.region_cls_pred.weight": (sizes.classes, h),
            "vlbert.mvrc_head.region_cls_pred.bias": (sizes.classes,),
        }
    if mlm:
        head = "vlbert.mlm_head.predictions."
        shapes |= {
            f"{head}bias": (sizes.vocabulary,),
            f"{head}transform.dense.weight": (h, h),
            f"{head}transform.dense.bias": (h,),
            f"{head}transform.LayerNorm.weight": (h,),
            f"{head}transform.LayerNorm.bias": (h,),
        }
    if match:
        relation = "vlbert.relationsip_head.caption_image_relationship."
        shapes |= {f"{relation}weight": (match, h), f"{relation}bias": (match,)}
    return shapes


def answering_shapes(sizes: Sizes = SMALL, *, kind: str = "2fc", answers: int = 7) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of VQA's network."""
    h, wide = sizes.hidden, 20
    heads: dict[str, dict[str, tuple[int, ...]]] = {
        "1fc": {"1": (answers, h)},
        "2fc": {"1": (wide, h), "4": (answers, wide)},
        "mlm": {"0.dense": (h, h), "2": (answers, h)},
    }
    shapes = trunk_shapes(sizes, pooler=False, text_only=False)
    for part, shape in heads[kind].items():
        shapes |= {f"final_mlp.{part}.weight": shape, f"final_mlp.{part}.bias": shape[:1]}
    if kind == "mlm":
        shapes |= {"final_mlp.0.LayerNorm.weight": (h,), "final_mlp.0.LayerNorm.bias": (h,)}
    return shapes


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors; weights of norms near 1; the tied MLM decoder as a second name of the word table."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator) * 0.3
        state[key] = noise + 1 if len(shape) == 1 and key.endswith(".weight") else noise
    if "vlbert.mlm_head.predictions.bias" in state:
        state["vlbert.mlm_head.predictions.decoder.weight"] = state["vlbert.word_embeddings.weight"]
    return state


def settings(sizes: Sizes = SMALL, **network: Any) -> dict[str, Any]:
    """The content of a pre-training YAML file of that size; ``network`` are further settings of NETWORK."""
    own: dict[str, Any] = {
        "IMAGE_FEAT_PRECOMPUTED": True, "IMAGE_FINAL_DIM": sizes.visual, "BERT_MODEL_NAME": "words",
        "WITH_REL_LOSS": True, "WITH_MLM_LOSS": True, "WITH_MVRC_LOSS": True,
        "VLBERT": {
            "hidden_size": sizes.hidden, "visual_size": sizes.visual, "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads, "intermediate_size": sizes.intermediate,
            "max_position_embeddings": sizes.positions, "vocab_size": sizes.vocabulary,
            "visual_region_classes": sizes.classes, "with_pooler": True,
        },
    }  # fmt: skip
    return {
        "MODULE": "ResNetVLBERTForPretrainingMultitask",
        "DATASET": [{"DATASET": "conceptual_captions", "SEQ_LEN": 64}, {"DATASET": "general_corpus"}],
        "NETWORK": own | network,
    }


def write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    return path


def write_vocabulary(folder: Path, words: list[str] | None = None) -> Path:
    """A folder with ``vocab.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words or WORDS) + "\n", encoding="utf-8")
    return folder


def write_checkpoint(path: Path, state: Mapping[str, Any], *, zipped: bool = True, **beside: Any) -> Path:
    """A ``.model`` file with ``beside`` next to the state dict; not ``zipped``: as PyTorch 1.x wrote it."""
    torch.save({"state_dict": dict(state), **beside}, path, _use_new_zipfile_serialization=zipped)
    return path
