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


def resnet_shapes(blocks: tuple[int, ...] = (1, 1, 1, 1)) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of an end-to-end network's backbone; the last stage stands there twice."""
    extractor = "image_feature_extractor."
    shapes: dict[str, tuple[int, ...]] = {f"{extractor}backbone.conv1.weight": (64, 3, 7, 7)}
    norms = {f"{extractor}backbone.bn1": 64}
    for stage, count in enumerate(blocks, 1):
        width, wide = 32 * 2**stage, 128 * 2**stage
        before = 64 if stage == 1 else wide // 2
        places = [f"{extractor}backbone.layer{stage}"]
        if stage == 4:
            places = [f"{extractor}roi_head_feature_extractor", f"{extractor}head.0"]
        for name in (f"{place}.{number}" for place in places for number in range(count)):
            given = before if name.endswith(".0") else wide
            shapes |= {
                f"{name}.conv1.weight": (width, given, 1, 1),
                f"{name}.conv2.weight": (width, width, 3, 3),
                f"{name}.conv3.weight": (wide, width, 1, 1),
            }
            norms |= {f"{name}.bn1": width, f"{name}.bn2": width, f"{name}.bn3": wide}
            if name.endswith(".0"):
                shapes[f"{name}.downsample.0.weight"] = (wide, before, 1, 1)
                norms[f"{name}.downsample.1"] = wide
    for name, size in norms.items():
        shapes |= {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def choice_shapes(sizes: Sizes = SMALL, *, classes: str = "top") -> dict[str, tuple[int, ...]]:
    """A VCR network's keys and shapes.

    Args:
        sizes: of the network.
        classes: regions are classified from final states (``top``), from features, or ``not`` at all.
    """
    h = sizes.hidden
    trunk = trunk_shapes(sizes, text_only=False)
    shapes = {key.replace("vlbert.", "vlbert._module."): shape for key, shape in trunk.items()} | resnet_shapes()
    linear = {"final_mlp.1": (1, h)}
    if classes == "top":
        linear |= {"cnn_loss_reg.0.dense": (h, h), "cnn_loss_reg.2": (81, h)}
    elif classes == "feature":
        linear["image_feature_extractor.regularizing_predictor"] = (81, 2048)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def resnet_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """:func:`random_state` of an end-to-end network: counters are whole numbers, the second name the same tensor."""
    state = random_state(shapes, seed)
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = value.abs() + 0.5
    twice = "image_feature_extractor.head.0."
    for key in state:
        if key.startswith(twice):
            state[key] = state[key.replace(twice, "image_feature_extractor.roi_head_feature_extractor.")]
    return state


def choice_settings(sizes: Sizes = SMALL, *, classes: str = "top") -> dict[str, Any]:
    """The content of a YAML file for VCR."""
    content = settings(
        sizes, IMAGE_FEAT_PRECOMPUTED=False, IMAGE_NUM_LAYERS=14, IMAGE_C5_DILATED=True, IMAGE_STRIDE_IN_1x1=True,
        IMAGE_PRETRAINED="", CLASSIFIER_TYPE="1fc", CLASSIFIER_SIGMOID=True, ENABLE_CNN_REG_LOSS=classes != "not",
        CNN_LOSS_TOP=classes == "top",
    )  # fmt: skip
    del content["NETWORK"]["VLBERT"]["with_pooler"]  # the published files say nothing: VCR's network always has one
    return content | {"MODULE": "ResNetVLBERT", "SCALES": [600, 1200], "DATASET": {"DATASET": "vcr", "TASK": "Q2A"}}
