"""The originals' configurations: YAML files of both repositories, or, without one, what the tensors themselves say.

Out comes a :class:`NetworkPlan`: which network it is (which of our classes), and our configuration of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError

from mmbert.errors import ConfigError
from mmbert.model.configuration import MMBertConfig
from mmbert.plugins import nearest
from mmbert.vision.encoders.resnet import DEPTHS

GIVE_ONE = "give the YAML file of VL-BERT or MM-BERT that the checkpoint was trained with"
Shapes = Mapping[str, tuple[int, ...]]
COORDINATES = 2048
"""Numbers of a box's coordinates in the originals: 4 x 2 x 256."""
SEGMENTS = 3
ROI_FEATURE = 2048
TEXT_CORPUS = "general_corpus"
"""DATASET of running text, which pre-training reads beside its captions."""
OBJECT_CLASSES = 81
"""COCO's 80 object classes, and 0 for the whole image."""

DEFAULTS: dict[str, Any] = {
    "MODULE": "ResNetVLBERT",
    "SCALES": [600, 1000],
    "DATASET": {},
    "NETWORK": {
        "IMAGE_FEAT_PRECOMPUTED": False,
        "IMAGE_NUM_LAYERS": 50,
        "IMAGE_C5_DILATED": False,
        "IMAGE_STRIDE_IN_1x1": False,
        "IMAGE_FROZEN_BACKBONE_STAGES": [1, 2],
        "IMAGE_FROZEN_BN": True,
        "IMAGE_FINAL_DIM": 512,
        "IMAGE_SEMANTIC": False,
        "OUTPUT_CONV5": False,
        "NO_OBJ_ATTENTION": False,
        "BERT_MODEL_NAME": "bert-base-uncased",
        "ENABLE_CNN_REG_LOSS": False,
        "CNN_LOSS_TOP": False,
        "CNN_REG_DROPOUT": 0.0,
        "PIXEL_MEANS": [102.9801, 115.9465, 122.7717],
        "PIXEL_STDS": [1.0, 1.0, 1.0],
        "CLASSIFIER_TYPE": "2fc",
        "CLASSIFIER_HIDDEN_SIZE": 1024,
        "CLASSIFIER_DROPOUT": 0.1,
        "CLASSIFIER_SIGMOID": False,
        "WITH_REL_LOSS": True,
        "WITH_MLM_LOSS": True,
        "WITH_MVRC_LOSS": True,
        "WITH_MLT_LOSS": False,
        "MLM_LOSS_NORM_IN_BATCH_FIRST": False,
        "MVRC_LOSS_NORM_IN_BATCH_FIRST": False,
        "MASK_RAW_PIXELS": True,
        "VLBERT": {
            "input_transform_type": 1,
            "word_embedding_frozen": False,
            "pos_embedding_frozen": False,
            "obj_pos_id_relative": True,
            "hidden_size": 512,
            "visual_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "intermediate_size": 2048,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "max_position_embeddings": 512,
            "type_vocab_size": SEGMENTS,
            "vocab_size": 30522,
            "initializer_range": 0.02,
            "visual_scale_text_init": 0.0,
            "visual_scale_object_init": 0.0,
            "visual_ln": True,
            "object_word_embed_mode": 2,
            "with_pooler": False,
            "visual_region_classes": 1601,
            "position_padding_idx": -1,
            "MLT_words": 0,
        },
    },
}
"""What a YAML file that does not say otherwise means. Keys that change no network are not listed."""

ONLY = {
    "NETWORK.IMAGE_SEMANTIC": False,
    "NETWORK.OUTPUT_CONV5": False,
    "NETWORK.NO_OBJ_ATTENTION": False,
    "NETWORK.VLBERT.input_transform_type": 1,
    "NETWORK.VLBERT.obj_pos_id_relative": True,
    "NETWORK.VLBERT.object_word_embed_mode": 2,
}
"""Settings of which no published network uses another value, and which have one meaning here."""


@dataclass
class NetworkPlan:
    """What a checkpoint becomes.

    Attributes:
        task: name of the network, one of :data:`NETWORKS`.
        config: ours.
        tokenizer: folder or hub id that the original configuration names, if it does.
        settings: the original configuration, defaults filled in; empty where there was none.
    """

    task: str
    config: MMBertConfig
    tokenizer: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """One kind of network.

    Attributes:
        architecture: name of our class.
        heads: makes ``config.heads`` from the settings.
        heads_of: the same from the tensors' shapes, where there is no YAML file.
        pretraining: built from the originals' pre-training module: it can mask regions, and its flags say which heads.
        pooled: its head reads the pooled vector, so it has a pooler whether the file says so or not.
        decoder: it has MM-BERT's decoder.
        unread: starts of the names of tensors that the original saves and never reads.
    """

    architecture: str
    heads: Callable[[LegacySettings], dict[str, Any]] = lambda _: {}
    heads_of: Callable[[Shapes], dict[str, Any]] = lambda _: {}
    pretraining: bool = True
    pooled: bool = False
    decoder: bool = False
    unread: tuple[str, ...] = ()


class LegacySettings:
    """An original configuration by dotted names.

    Args:
        given: the YAML file's content.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.values = _filled(DEFAULTS, given)

    def __getitem__(self, name: str) -> Any:
        value: Any = self.values
        for part in name.split("."):
            value = value[part]
        return value

    def network(self, name: str) -> Any:
        """``NETWORK.name``."""
        return self[f"NETWORK.{name}"]

    def size(self, name: str) -> Any:
        """``NETWORK.VLBERT.name``."""
        return self[f"NETWORK.VLBERT.{name}"]

    @property
    def module(self) -> str:
        """Name of the original's class."""
        return str(self.values["MODULE"])

    @property
    def datasets(self) -> list[Mapping[str, Any]]:
        """``DATASET``, of which there may be several."""
        found = self.values["DATASET"]
        return [d for d in (found if isinstance(found, list) else [found]) if isinstance(d, Mapping)]

    @property
    def own_number(self) -> int | None:
        """Number of the corpus that the task is about: the first that is no running text; None where there is none."""
        return next((n for n, data in enumerate(self.datasets) if data.get("DATASET") != TEXT_CORPUS), None)

    @property
    def own(self) -> Mapping[str, Any]:
        """The settings of that corpus, empty where there is none."""
        return {} if self.own_number is None else self.datasets[self.own_number]


def _classifier(settings: LegacySettings, outputs: int) -> dict[str, Any]:
    """Options of the head that CLASSIFIER_TYPE describes."""
    kind, dropout = settings.network("CLASSIFIER_TYPE"), settings.network("CLASSIFIER_DROPOUT")
    options: dict[str, dict[str, Any]] = {
        "1fc": {"kind": "linear"},
        "2fc": {"kind": "two_layer", "hidden_size": settings.network("CLASSIFIER_HIDDEN_SIZE")},
        "mlm": {"kind": "transform", "norm": True},
    }
    if kind not in options:
        raise ConfigError(f"CLASSIFIER_TYPE {kind!r} is unknown", hint=f"known: {', '.join(options)}")
    return {**options[kind], "outputs": outputs, "dropout": dropout}


def _classifier_of(shapes: Shapes) -> dict[str, Any]:
    """The same from tensors."""
    if "final_mlp.0.dense.weight" in shapes:
        return {"kind": "transform", "norm": True, "outputs": _rows(shapes, "final_mlp.2.weight")}
    if "final_mlp.4.weight" in shapes:
        hidden, outputs = _rows(shapes, "final_mlp.1.weight"), _rows(shapes, "final_mlp.4.weight")
        return {"kind": "two_layer", "hidden_size": hidden, "outputs": outputs}
    return {"kind": "linear", "outputs": _rows(shapes, "final_mlp.1.weight")}


def _answers(settings: LegacySettings) -> dict[str, Any]:
    return {"answer": _classifier(settings, settings.own.get("ANSWER_VOCAB_SIZE", 3129))}


def _choices(settings: LegacySettings) -> dict[str, Any]:
    """The choice's logit, and the region classes that are predicted beside it: of final states, or of features."""
    if settings.network("CLASSIFIER_TYPE") == "mlm":
        raise ConfigError("CLASSIFIER_TYPE 'mlm' is not supported with VCR", hint="known: 1fc, 2fc")
    heads = {"choice": _classifier(settings, 1)}
    if settings.network("ENABLE_CNN_REG_LOSS"):
        if settings.network("CNN_LOSS_TOP"):
            dropout = settings.network("CNN_REG_DROPOUT")
            heads["region_class"] = {"kind": "transform", "outputs": OBJECT_CLASSES, "dropout": dropout}
        elif not settings.network("IMAGE_FEAT_PRECOMPUTED"):
            heads["feature_class"] = {"kind": "linear", "outputs": OBJECT_CLASSES, "input_size": ROI_FEATURE}
    return heads


def _choices_of(shapes: Shapes) -> dict[str, Any]:
    heads = {"choice": _classifier_of(shapes)}
    if "cnn_loss_reg.2.weight" in shapes:
        heads["region_class"] = {"kind": "transform", "outputs": _rows(shapes, "cnn_loss_reg.2.weight")}
    regulariser = shapes.get("image_feature_extractor.regularizing_predictor.weight")
    if regulariser is not None:
        heads["feature_class"] = {"kind": "linear", "outputs": regulariser[0], "input_size": regulariser[1]}
    return heads


def _grounding(settings: LegacySettings) -> dict[str, Any]:
    return {"grounding": {"kind": "transform", "outputs": 1, "dropout": settings.network("CLASSIFIER_DROPOUT")}}


def _lexical(settings: LegacySettings) -> dict[str, Any]:
    return {"lexical": {"kind": "linear", "outputs": settings.size("MLT_words")}}


NETWORKS: dict[str, Network] = {
    "pretraining": Network("MMBertForPreTraining"),
    "matching": Network("MMBertForImageTextMatching"),
    "lexical-translation": Network(
        "MMBertForMultimodalLexicalTranslation",
        _lexical,
        lambda s: {"lexical": {"kind": "linear", "outputs": _rows(s, "vlbert.MLT_head.MLT_cls_pred.weight")}},
    ),
    "translation": Network("MMBertForTranslation"),
    "question-answering": Network(
        "MMBertForQuestionAnswering", _answers, lambda s: {"answer": _classifier_of(s)}, pretraining=False
    ),
    "encoder-decoder": Network(
        "MMBertForConditionalGeneration",
        decoder=True,
        unread=("decoder.decoder.embeddings.word_embeddings.", "decoder.decoder.pooler."),
    ),
    "referring-expressions": Network(
        "MMBertForReferringExpressions",
        _grounding,
        lambda _: {"grounding": {"kind": "transform", "outputs": 1}},
        pretraining=False,
    ),
    "multiple-choice": Network("MMBertForMultipleChoice", _choices, _choices_of, pretraining=False, pooled=True),
}
"""The networks by name; another one is another entry (and its rules in ``compat.keys``)."""

TASK_NAMES = {
    "pretrain": "pretraining",
    "retrieval": "matching",
    "itm": "matching",
    "mlt": "lexical-translation",
    "mt": "translation",
    "encdec": "encoder-decoder",
    "vqa": "question-answering",
    "refcoco": "referring-expressions",
    "refcoco+": "referring-expressions",
    "vcr": "multiple-choice",
}
"""Short names that ``--task`` also takes."""


def network_named(task: str) -> str:
    """The name in :data:`NETWORKS` of what a user calls a task.

    Raises:
        ConfigError: there is no such network.
    """
    name = TASK_NAMES.get(task.lower(), task.lower())
    if name not in NETWORKS:
        known = [*NETWORKS, *TASK_NAMES]
        close = nearest(name, known)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(NETWORKS)}"
        raise ConfigError(f"no network for task {task!r}", hint=hint)
    return name


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read an original's YAML file.

    Raises:
        ConfigError: no such file, or not a configuration of VL-BERT or MM-BERT.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("no such configuration", where=str(path)) from error
    except OSError as error:
        what = "is a folder, not a YAML file" if path.is_dir() else f"cannot be read: {error.strerror}"
        raise ConfigError(what, where=str(path), hint=GIVE_ONE) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError("not valid YAML", where=f"{path}{line}", hint=GIVE_ONE) from error
    if not isinstance(content, dict) or not isinstance(content.get("NETWORK"), dict):
        raise ConfigError("not a VL-BERT configuration: it has no NETWORK section", where=str(path), hint=GIVE_ONE)
    return content


def plan_from_yaml(path: str | Path, shapes: Shapes, task: str | None = None) -> NetworkPlan:
    """The network that a YAML file describes.

    Args:
        path: the file.
        shapes: of the checkpoint's tensors: VL-BERT and MM-BERT differ in the outputs of the match head only.
        task: overrules what the file says about the network.

    Raises:
        ConfigError: unreadable, contradictory, or of a network that there is not.
    """
    settings = LegacySettings(read_yaml(path))
    try:
        name = network_named(task) if task else network_of(settings)
        return NetworkPlan(
            name, _config_from(settings, name, shapes), settings.network("BERT_MODEL_NAME"), settings.values
        )
    except ConfigError as error:
        raise ConfigError(error.message, where=error.where or str(path), hint=error.hint) from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"not a usable configuration: {_one_line(error)}", where=str(path)) from error


def network_of(settings: LegacySettings) -> str:
    """The network that the settings describe.

    Raises:
        ConfigError: they do not say.
    """
    module, network = settings.module, settings.values["NETWORK"]
    if module == "ResNetVLBERT":
        data = str(settings.own.get("DATASET", "")).lower()
        for start, name in (("vqa", "question-answering"), ("refcoco", "referring-expressions"), ("vcr", "vcr")):
            if data.startswith(start):
                return network_named(name)
        raise ConfigError(f"MODULE ResNetVLBERT with DATASET {data!r}: which task is it?", hint="say it with --task")
    if "EncDec" in module:
        return network_named("encoder-decoder")
    if network["WITH_MLT_LOSS"]:
        return "lexical-translation"
    if network["WITH_REL_LOSS"] and not network["WITH_MLM_LOSS"] and not network["WITH_MVRC_LOSS"]:
        return "matching"
    simple = module in ("ResNetVLBERTForPretraining", "ResNetVLBERTForPretrainingNoVision") or "Generate" in module
    if simple and not network["WITH_MVRC_LOSS"] and not network["WITH_REL_LOSS"]:
        return "translation"
    return "pretraining"


def _config_from(settings: LegacySettings, name: str, shapes: Shapes) -> MMBertConfig:
    _check_supported(settings)
    size, network, kind = settings.size, settings.network, NETWORKS[name]
    flags = {
        flag: kind.pretraining and bool(network(flag)) for flag in ("WITH_REL_LOSS", "WITH_MLM_LOSS", "WITH_MVRC_LOSS")
    }
    if network("IMAGE_FINAL_DIM") != size("visual_size"):
        raise ConfigError(f"IMAGE_FINAL_DIM {network('IMAGE_FINAL_DIM')} is not visual_size {size('visual_size')}")
    lengths = [int(d["SEQ_LEN"]) for d in settings.datasets if d.get("SEQ_LEN")]
    text_only = _has_text_only_vector(settings.module)
    masks_features = network("IMAGE_FEAT_PRECOMPUTED") or not network("MASK_RAW_PIXELS")
    names = (
        "hidden_size visual_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
        "hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings type_vocab_size vocab_size "
        "initializer_range visual_scale_text_init visual_scale_object_init visual_ln word_embedding_frozen "
        "position_padding_idx"
    ).split()
    return _build(
        name,
        kind.heads(settings),
        **{option: size(option) for option in names},
        with_pooler=kind.pooled or bool(size("with_pooler")),
        position_embedding_frozen=bool(size("pos_embedding_frozen")),
        text_only_visual=text_only,
        text_only_visual_size=_other_width(shapes, size("visual_size")) if text_only else None,
        ignore_regions=_ignores_regions(settings.module),
        region_mask_feature=kind.pretraining and bool(masks_features),
        object_mask_word_embedding=flags["WITH_MVRC_LOSS"],
        with_mlm_head=flags["WITH_MLM_LOSS"],
        num_region_classes=size("visual_region_classes") if flags["WITH_MVRC_LOSS"] else 0,
        match_outputs=_match_outputs(shapes) if flags["WITH_REL_LOSS"] else 0,
        max_text_tokens=max(lengths, default=64),
        vision=_vision(settings, kind.pretraining),
        **_decoder(kind, shapes),
    )


def _decoder(kind: Network, shapes: Shapes) -> dict[str, Any]:
    """Options of the decoder; the originals' has 6 layers."""
    if not kind.decoder:
        return {}
    layers = {key.split(".")[4] for key in shapes if key.startswith("decoder.decoder.encoder.layer.")}
    return {"num_decoder_layers": len(layers) or 6, "decoder_own_embeddings": True}


def _check_supported(settings: LegacySettings) -> None:
    for name, only in ONLY.items():
        if settings[name] != only:
            raise ConfigError(f"{name} {settings[name]!r} is not supported", hint=f"only {only!r} is")


def _vision(settings: LegacySettings, pretraining: bool) -> dict[str, Any] | None:
    """Options of the vision encoder of an end-to-end network; None for precomputed features."""
    network = settings.network
    if network("IMAGE_FEAT_PRECOMPUTED"):
        return None
    short, long = settings["SCALES"]
    return {
        "kind": "resnet",
        "layers": int(network("IMAGE_NUM_LAYERS")),
        "dilated": bool(network("IMAGE_C5_DILATED")),
        "stride_in_1x1": bool(network("IMAGE_STRIDE_IN_1x1")),
        "frozen_stages": [int(stage) for stage in network("IMAGE_FROZEN_BACKBONE_STAGES")],
        "frozen_norm": bool(network("IMAGE_FROZEN_BN")),
        "blank_hidden": pretraining and bool(network("MASK_RAW_PIXELS")),
        "short_side": int(short),
        "long_side": int(long),
        "mean": [float(value) for value in network("PIXEL_MEANS")],
        "std": [float(value) for value in network("PIXEL_STDS")],
    }


def _vision_of(shapes: Shapes) -> dict[str, Any] | None:
    """The same from tensors, which say how deep it is."""
    stages: dict[str, set[str]] = {}
    for key in shapes:
        stage, _, rest = key.removeprefix("image_feature_extractor.backbone.").partition(".")
        if key.startswith("image_feature_extractor.backbone.layer"):
            stages.setdefault(stage, set()).add(rest.split(".")[0])
    if not stages:
        return None
    deepest = len(stages.get("layer3", ()))
    depth = next((n for n, blocks in DEPTHS.items() if blocks[2] == deepest), None)
    if depth is None:
        raise ConfigError(f"a backbone of {deepest} blocks in its third stage is no ResNet that is known")
    masks_features = (
        "object_mask_visual_embedding.weight" in shapes or "object_mask_word_embedding.weight" not in shapes
    )
    return {"kind": "resnet", "layers": depth, "blank_hidden": not masks_features}


def _has_text_only_vector(module: str) -> bool:
    """Whether the original class owns ``aux_text_visual_embedding``."""
    return any(part in module for part in ("Multitask", "Translation", "AttentionVis"))


def _ignores_regions(module: str) -> bool:
    """Whether the original class reads regions as zero vectors (others without vision read none at all)."""
    return module.endswith("NoVision") and (
        "Multitask" in module or module.endswith("ForPretrainingTranslationNoVision")
    )


def plan_from_tensors(shapes: Shapes, task: str, overrides: Mapping[str, Any] | None = None) -> NetworkPlan:
    """The network that tensors of these shapes make up; what shapes do not say is as in the published networks.

    Args:
        shapes: canonical name to shape.
        task: which network it is.
        overrides: settings of our configuration that win, such as ``num_attention_heads`` (else heads are 64 wide).

    Raises:
        ConfigError: they are no network of that kind.
    """
    name = network_named(task)
    kind = NETWORKS[name]
    try:
        vocabulary, hidden = shapes["vlbert.word_embeddings.weight"]
        visual, joint = shapes["image_feature_extractor.obj_downsample.1.weight"]
        positions, _ = shapes["vlbert.position_embeddings.weight"]
        segments, _ = shapes["vlbert.token_type_embeddings.weight"]
        intermediate, _ = shapes["vlbert.encoder.layer.0.intermediate.dense.weight"]
        special = shapes.get("vlbert.special_word_embeddings.weight")
        found: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": len({key.split(".")[3] for key in shapes if key.startswith("vlbert.encoder.layer.")}),
            "num_attention_heads": max(1, hidden // 64),
            "intermediate_size": intermediate,
            "max_position_embeddings": positions,
            "type_vocab_size": segments,
            "visual_size": visual,
            "visual_ln": "vlbert.visual_ln_text.weight" in shapes,
            "region_feature_size": joint - COORDINATES,
            "word_embedding_frozen": special is not None,
            "num_special_words": 1000 if special is None else special[0],
            "text_only_visual": "aux_text_visual_embedding.weight" in shapes,
            "text_only_visual_size": _other_width(shapes, visual),
            "region_mask_feature": "object_mask_visual_embedding.weight" in shapes,
            "object_mask_word_embedding": "object_mask_word_embedding.weight" in shapes,
            "with_pooler": "vlbert.pooler.dense.weight" in shapes,
            "with_mlm_head": any(f"{part}.mlm_head.predictions.bias" in shapes for part in ("vlbert", "decoder")),
            "num_region_classes": shapes.get("vlbert.mvrc_head.region_cls_pred.weight", (0,))[0],
            "match_outputs": _match_outputs(shapes, default=0),
            "vision": _vision_of(shapes),
            **_decoder(kind, shapes),
        }
        return NetworkPlan(name, _build(name, kind.heads_of(shapes), **(found | dict(overrides or {}))))
    except KeyError as error:
        raise ConfigError(f"no tensor {error.args[0]!r}: not a network for {name}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"tensors of unusable shapes: {_one_line(error)}") from error


def _build(name: str, heads: dict[str, Any], **options: Any) -> MMBertConfig:
    try:
        config = MMBertConfig(heads=heads or None, region_dropout=0.1, **options)
    except StrictDataclassError as error:  # a value of another type; its last line says which
        raise ConfigError(f"not a usable configuration: {str(error).splitlines()[-1].strip()}") from error
    config.architectures = [NETWORKS[name].architecture]
    return config


def _rows(shapes: Shapes, name: str) -> int:
    return shapes[name][0]


def _match_outputs(shapes: Shapes, default: int = 1) -> int:
    return shapes.get("vlbert.relationsip_head.caption_image_relationship.weight", (default,))[0]


def _other_width(shapes: Shapes, visual_size: int) -> int | None:
    """Width of the text-only vector where it is not the visual size."""
    shape = shapes.get("aux_text_visual_embedding.weight")
    return shape[1] if shape is not None and len(shape) == 2 and shape[1] != visual_size else None


def _filled(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``defaults``, section by section."""
    result = copy.deepcopy(dict(defaults))
    for key, value in given.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and key != "DATASET":
            result[key] = _filled(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def tasks() -> Iterable[str]:
    """Names that ``--task`` takes."""
    return NETWORKS
