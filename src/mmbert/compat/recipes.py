"""The originals' YAML files as recipes of ours: one that ships with the package, and what the file changes in it.

In: a configuration of VL-BERT or MM-BERT. Out: the content of a recipe file (``extends: …``), and the settings of the
original that have no counterpart. The recipe says which corpus it is (:data:`CORPORA`); where that lies the user says,
by ``data.root``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmbert.compat.checkpoints import canonical_name
from mmbert.compat.configs import TEXT_CORPUS, LegacySettings, plan_from_yaml, read_yaml
from mmbert.compat.keys import Rule, rules_for
from mmbert.data.records import UNDETERMINED
from mmbert.data.sources import ROOT
from mmbert.errors import ConfigError
from mmbert.model.configuration import MMBertConfig

NETWORK_KEYS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob max_position_embeddings type_vocab_size initializer_range position_padding_idx "
    "visual_size visual_ln visual_scale_text_init visual_scale_object_init region_feature_size region_dropout "
    "num_region_classes text_only_visual ignore_regions region_mask_feature object_mask_word_embedding "
    "word_embedding_frozen position_embedding_frozen with_pooler with_mlm_head match_outputs vision max_text_tokens"
).split()
"""Keys of our configuration that the originals' files decide."""
DECODER_KEYS = ("num_decoder_layers", "decoder_own_embeddings")
"""Those of networks with a decoder."""
RUNNING = (
    "OUTPUT_PATH", "MODULE", "GPUS", "LOG_FREQUENT", "VAL_FREQUENT", "CHECKPOINT_FREQUENT", "MODEL_PREFIX",
    "NUM_WORKERS_PER_GPU", "VAL.", "TEST.", "TRAIN.LOSS_LOGGERS", "TRAIN.SHUFFLE", "TRAIN.RESUME",
    "TRAIN.AUTO_RESUME", "TRAIN.BEGIN_EPOCH", "TRAIN.FP16_LOSS_SCALE", "NETWORK.CLASSIFIER_", "NETWORK.BERT_ALIGN_",
    "NETWORK.BERT_USE_LAYER", "NETWORK.BERT_WITH_", "NETWORK.BERT_PRETRAINED", "NETWORK.CNN_LOSS_", "NETWORK.ANS_LOSS_",
    "NETWORK.VLBERT.input_size", "NETWORK.VLBERT.from_scratch", "NETWORK.BLIND", "NETWORK.NO_GROUNDING",
    "NETWORK.FOR_MASK_VL_MODELING_PRETRAIN",
)  # fmt: skip
"""Starts of settings about how, not what, an original ran, and of those that its network does not read."""
USED_TRAINING = (
    "BATCH_IMAGES END_EPOCH OPTIMIZER MOMENTUM CLIP_GRAD_NORM GRAD_ACCUMULATE_STEPS LR LR_SCHEDULE LR_STEP LR_FACTOR "
    "WARMUP WARMUP_METHOD WARMUP_FACTOR WARMUP_STEPS WD FP16"
).split()
USED = (
    *(f"TRAIN.{name}" for name in USED_TRAINING),
    *("RNG_SEED", "SCALES"),
    *("NETWORK." + name for name in ("IMAGE_", "WITH_", "VLBERT.", "BERT_MODEL_NAME", "PARTIAL_PRETRAIN")),
    *("NETWORK." + name for name in ("INITIALISATION", "BERT_FROZEN", "PIXEL_", "MASK_RAW_PIXELS", "OUTPUT_CONV5")),
    *("NETWORK." + name for name in ("NO_OBJ_ATTENTION", "ENABLE_CNN_REG_LOSS", "MLM_LOSS_", "MVRC_LOSS_")),
    "NETWORK.CLASSIFIER_PRETRAINED",
    "NETWORK.LOAD_REL_HEAD",
)
"""Starts of settings that the recipe follows."""
ENTRY = re.compile(r"DATASET\.\d+\.")
"""Start of a setting of one of several corpora."""
USED_DATA = (".DATASET", ".SEQ_LEN", ".TRAIN_ANNOTATION_FILE", ".ADD_IMAGE_AS_A_BOX")
LANGUAGES = {"first": ["en"], "second": ["de"], "both": ["en", "de"]}
"""MM-BERT's LANGUAGES_USED: its captions are English and German."""
LANGUAGES_READ = ("DATASET.LANGUAGES_USED",)
"""Where the recipes of retrieval read it, or what their originals read is the same whatever it says."""
POSITIONS = 1000
"""More than a record of the originals can take."""
SEQUENCE = 64
"""Tokens and regions of a sequence in pre-training, and tokens that running text is packed to, if nothing is said."""
WARM_UP = {"TRAIN.WARMUP_METHOD": "linear", "TRAIN.WARMUP_FACTOR": 0.0}
"""The warm-up that recipes have."""
_MULTI30K = {"source": "multi30k", "languages": ["en", "de"]}
_PICTURED = _MULTI30K | {"images": f"{ROOT}/flickr30k-images"}
_CONCEPTUAL = {"source": "conceptual_captions", "images": f"{ROOT}/images"}
CORPORA: dict[str, dict[str, Any]] = {
    "conceptual_captions": _CONCEPTUAL,
    "flickr30k": _PICTURED | {"task": 1},
    "multi30k": _PICTURED | {"task": 1},
    "multi30k_decoder": _PICTURED | {"task": 1},
    "multi30k_no_vision": _MULTI30K | {"task": 1},
    "multi30k_taskB": _PICTURED | {"task": 2},
    "multi30k_5x": _PICTURED | {"task": 2},
    "multi30k_5x_mixed": _PICTURED | {"task": 2},
    "flickr_30k": {"source": "flickr30k"},
    "cc_and_flickr30k": {
        "source": "joined",
        "parts": [
            {"source": "flickr30k", "root": f"{ROOT}/flickr30k"},
            {
                "source": "conceptual_captions",
                "root": f"{ROOT}/conceptual-captions",
                "images": f"{ROOT}/conceptual-captions/images",
            },
        ],
    },
    "parallel_text": {"source": "wmt14"},
    "translation_multi30k": _PICTURED | {"task": 1},
    "translation_IAPR": {"source": "iapr_tc12"},
    "translation_Europarl": {"source": "europarl"},
    "distance_multi30k_vision_only": _PICTURED | {"task": 1},
    "distance_translation_multi30k": _MULTI30K | {"task": 1},
    "distance_translation_multi30k_with_vision": _PICTURED | {"task": 1},
    "vqa": {"source": "vqa_v2", "split": "train+val"},
    "vcr": {"source": "vcr"},
    "coco_captions": {"source": "coco_captions"},
}
PLACES = {"WMT14": "parallel_text", "europarl": "translation_Europarl"}
"""DATASET_PATH that says more than DATASET."""
LEXICAL = {"source": "mlt", "form": "mmbert", "language": "de", "images": f"{ROOT}/flickr30k-images"}
"""Of lexical translation, whose DATASET is called multi30k as well."""
"""DATASET to our source and its options. Another one is another line; without one the recipe names no data."""
MIXED = "_mixed"
"""End of the names of corpora that are read in both languages, whatever LANGUAGES_USED says."""


@dataclass
class RecipeDraft:
    """A configuration as a recipe.

    Attributes:
        content: of the recipe file.
        ignored: ``KEY = value`` of what the original says and the recipe does not.
    """

    content: dict[str, Any]
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Family:
    """Configurations that one recipe of ours stands for.

    Attributes:
        recipe: its name; None where the task is not built.
        components: the changes of its components.
        variant: another recipe, for settings that call for it.
        evaluation: the changes of what decides which checkpoint is best.
        used: starts of settings that only these recipes follow.
        left_out: starts of settings that only these recipes do not follow.
        texts: whether running text beside the captions is learned from, too.
        instead: the command for configurations that train nothing, which are no recipes.
    """

    recipe: str | None = None
    components: Callable[[LegacySettings], dict[str, Any]] = lambda _: {}
    variant: Callable[[LegacySettings], str | None] = lambda _: None
    evaluation: Callable[[LegacySettings], dict[str, Any]] = lambda _: {}
    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    texts: bool = False
    instead: str | None = None


def recipe_from_yaml(path: str | Path) -> RecipeDraft:
    """Turn a configuration into a recipe.

    Raises:
        ConfigError: not a configuration of the originals, or of a task or network that is not built here.
    """
    given = read_yaml(path)
    settings = LegacySettings(given)
    try:
        name = family_of(settings)
        family = FAMILIES[name]
        if family.instead is not None:
            raise ConfigError("it trains nothing, so it is no recipe", hint=family.instead)
        if family.recipe is None:
            raise ConfigError(f"the task {name} is not built yet", hint=f"built: {', '.join(built())}")
        config = plan_from_yaml(path, {}).config
        unread = sorted(set(range(len(settings.datasets))) - set(_read(settings, family.texts)))
        components = family.components(settings)
        content = {
            "extends": family.variant(settings) or family.recipe,
            "name": Path(path).stem,
            "seed": int(settings.values.get("RNG_SEED", 12345)),
            "epochs": _training(settings, "END_EPOCH"),
            **_data(settings),
            "model": _model(settings, config),
            "components": components,
            "optimizer": _optimizer(settings, sum(component["records"] for component in components.values())),
            "accumulation": int(_number(settings, "GRAD_ACCUMULATE_STEPS", 1)),
            "precision": "auto" if _training(settings, "FP16", False) else "fp32",
        }
        evaluation = family.evaluation(settings)
        content |= {"evaluation": evaluation} if evaluation else {}
        with_pairs = any("itm_hard" in component.get("objectives", {}) for component in components.values())
        if name in ("matching", "translation-retrieval") or with_pairs:  # the contrast there only finds the pairs
            content["model"]["config"]["embedding_size"] = 16
    except ConfigError as error:
        raise ConfigError(error.message, where=error.where or str(path), hint=error.hint) from error
    except KeyError as error:
        raise ConfigError(f"not a usable configuration: {error.args[0]} is missing", where=str(path)) from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"not a usable configuration: {type(error).__name__}: {error}", where=str(path)) from error
    left_out = (*family.left_out, *(f"DATASET.{number}." for number in unread))
    batches = _batches(settings)
    ignored = [*_ignored(given, family.used, left_out), *(f"TRAIN.BATCH_IMAGES.{n} = {batches[n]}" for n in unread)]
    return RecipeDraft(content, ignored)


def family_of(settings: LegacySettings) -> str:
    """The key of :data:`FAMILIES` that a configuration belongs to."""
    module, network = settings.module, settings.values["NETWORK"]
    data = str(settings.own.get("DATASET", ""))
    if module == "ResNetVLBERT":
        starts = {"vqa": "question-answering", "refcoco": "referring-expressions", "vcr": "commonsense-reasoning"}
        for start, name in starts.items():
            if data.lower().startswith(start):
                return name
        hint = f"DATASET.DATASET starts with {', '.join(starts)}"
        raise ConfigError(f"MODULE ResNetVLBERT with DATASET {data!r}: which task is it?", hint=hint)
    for part, name in (("AttentionVis", "attention-maps"), ("Distance", "distance"), ("EncDec", "encoder-decoder")):
        if part in module:
            return name
    losses = {name for name in ("REL", "MLM", "MVRC", "MLT") if network.get(f"WITH_{name}_LOSS")}
    if "MLT" in losses:
        return "lexical-translation"
    if losses == {"REL"}:
        return "translation-retrieval" if data.startswith("translation") else "matching"
    if losses == {"MLM"} and not module.endswith("TaskC") and TEXT_CORPUS not in _data_names(settings):
        return "translation"
    return "pretraining"


def built() -> list[str]:
    """Families that become recipes."""
    return [name for name, family in FAMILIES.items() if family.recipe is not None]


def _data(settings: LegacySettings) -> dict[str, Any]:
    """The run's own data, where its corpus is known."""
    if settings.values["NETWORK"].get("WITH_MLT_LOSS"):
        return {"data": LEXICAL}
    data = settings.own
    name = PLACES.get(str(data.get("DATASET_PATH")), str(data.get("DATASET")))
    return {"data": CORPORA[name]} if name in CORPORA else {}


def _data_names(settings: LegacySettings) -> list[str]:
    return [str(data.get("DATASET")) for data in settings.datasets]


def _pretraining(settings: LegacySettings) -> dict[str, Any]:
    """Captions (or parallel text), and beside them the text corpus, each with the batch of its own."""
    objectives: dict[str, Any] = {}
    for name, flag in (("mlm", "MLM"), ("mvrc", "MVRC")):
        if settings.network(f"WITH_{flag}_LOSS"):
            objectives[name] = {
                "weight": 1.0,
                "per_sequence": bool(settings.network(f"{flag}_LOSS_NORM_IN_BATCH_FIRST")),
            }
        else:
            objectives[name] = {"weight": 0.0}
    made: dict[str, Any] = {}
    batches = _batches(settings)
    for number in _read(settings, texts=True):
        data, records = settings.datasets[number], batches[number]
        if not data.get("ADD_IMAGE_AS_A_BOX", True):
            raise ConfigError("DATASET.ADD_IMAGE_AS_A_BOX False is not supported", hint="only True is")
        if data.get("DATASET") == TEXT_CORPUS:
            made |= _texts(data, records, objectives["mlm"], settings.network("BERT_MODEL_NAME"))
            continue
        options: dict[str, Any] = {
            "languages_per_example": 2 if data["DATASET"] in BOTH_AT_ONCE else 1,
            "max_positions": int(data.get("SEQ_LEN", SEQUENCE)),
        }
        made["captions"] = {"options": options, "objectives": objectives, **_size(records)}
        if settings.network("WITH_REL_LOSS"):
            made["pairs"] = {
                "task": "retrieval",
                "objectives": {"itc": {"weight": 0.0}, "itm_hard": {"pairs": POSITIONS, "even": 1.0}},
                **_size(records),
            }
    return made


BOTH_AT_ONCE = ("multi30k", "parallel_text")
"""MM-BERT's pre-training corpora of which a sample is a text in both languages (tasks A and C)."""


def _texts(data: Mapping[str, Any], records: int, mlm: dict[str, Any], tokenizer: str) -> dict[str, Any]:
    """A component for each file of a text corpus; together they have ``records``.

    Sentences are joined until there are MIN_SEQ_LEN tokens, and what is beyond SEQ_LEN is cut off. The corpus' own
    limit (``most``) would keep runs below MIN_SEQ_LEN instead, for the two are equal as a rule.
    """
    files = str(data["TRAIN_ANNOTATION_FILE"]).split("+")
    packed = {"pack": int(data.get("MIN_SEQ_LEN", SEQUENCE)), "tokenizer": tokenizer}
    return {
        "texts" if len(files) == 1 else f"texts-{number}": {
            "data": {"source": "text_corpus", "root": f"{ROOT}/{file}", "language": UNDETERMINED, **packed},
            "task": "pretraining",
            "options": {"max_positions": int(data.get("SEQ_LEN", SEQUENCE))},
            "objectives": {"mlm": dict(mlm)},
            **_size(max(1, records // len(files))),
        }
        for number, file in enumerate(files, 1)
    }


def _matching(settings: LegacySettings) -> dict[str, Any]:
    data = settings.own
    used = "both" if str(data.get("DATASET")).endswith(MIXED) else data.get("LANGUAGES_USED")
    languages = None if used is None else _languages(used)
    return {"pairs": {"options": {"languages": languages}, **_size(_records(settings))}}


def _translation_matching(settings: LegacySettings) -> dict[str, Any]:
    """English, then German: the corpora give both, whatever LANGUAGES_USED says."""
    options = {"languages": LANGUAGES["both"], "images": _with_images(settings)}
    return {"pairs": {"options": options, **_size(_records(settings))}}


def _with_images(settings: LegacySettings) -> bool:
    """Europarl has none; elsewhere a network without vision still counts the regions."""
    return str(settings.own.get("DATASET_PATH")).lower() != "europarl"


def _translations_matched(settings: LegacySettings) -> dict[str, Any]:
    return {"options": {"source": "en", "target": "de", "mode": "match", "images": _with_images(settings)}}


def _distance(settings: LegacySettings) -> dict[str, Any]:
    """Pre-training on captions in the language that the configuration names."""
    made = _pretraining(settings)
    made["captions"]["options"]["languages"] = _languages(settings.own["LANGUAGES_USED"])
    return made


def _languages(used: str) -> list[str]:
    if used not in LANGUAGES:
        hint = f"known: {', '.join(LANGUAGES)}"
        raise ConfigError(f"DATASET.LANGUAGES_USED {used!r} is not supported", hint=hint)
    return LANGUAGES[used]


def _distances_compared(settings: LegacySettings) -> dict[str, Any]:
    """Texts alone with images alone, or sentences with their translations, each read with its image or without."""
    if settings.own["DATASET"].endswith("vision_only"):
        return {"measure": "retrieval", "options": {"mode": "embed"}}
    return {"options": {"source": "en", "target": "de", "images": not settings.module.endswith("NoVision")}}


def _translation(settings: LegacySettings) -> dict[str, Any]:
    """English to German. A step has as many rows as theirs, each with one prefix of another sentence."""
    objectives = {"mlm": {"weight": 1.0, "per_sequence": bool(settings.network("MLM_LOSS_NORM_IN_BATCH_FIRST"))}}
    options = {"sources": ["en"], "targets": ["de"], "images": not settings.module.endswith("NoVision"), "prefixes": 1}
    return {"pairs": {"options": options, "objectives": objectives, **_size(_records(settings))}}


CANDIDATES = {"gt": "objects", "proposal": "detections", "proposal+gt": "detections+objects"}
"""VL-BERT's TRAIN_BOXES and VAL_BOXES."""


def _expressions(settings: LegacySettings) -> dict[str, Any]:
    """RefCOCO+'s training expressions; images and expressions are flipped at random."""
    objectives = {"grounding": {"weight": 1.0}}
    options = {"flip": _number(settings, "FLIP_PROB", 0.0)}
    size = _size(_records(settings))
    data = _refcoco(settings, "TRAIN")
    return {"expressions": {"data": data, "options": options, "objectives": objectives, **size}}


def _refcoco(settings: LegacySettings, part: str) -> dict[str, Any]:
    """Where RefCOCO+ lies, and which boxes are to choose from."""
    data = settings.own
    split, boxes = data.get(f"{part}_IMAGE_SET", part.lower()), data.get(f"{part}_BOXES", "gt")
    if boxes not in CANDIDATES:
        raise ConfigError(f"DATASET.{part}_BOXES {boxes!r} is not supported", hint=f"known: {', '.join(CANDIDATES)}")
    root = data["DATASET_PATH"]
    return {"source": "refcoco_plus", "root": root, "split": split, "candidates": CANDIDATES[boxes]}


def _commonsense(settings: LegacySettings) -> dict[str, Any]:
    """One step of VCR. A record of theirs is a question with its four choices, as ours is."""
    data, network = settings.own, settings.values["NETWORK"]
    steps = {"Q2A": "answer", "QA2R": "rationale"}
    if data.get("TASK") not in steps:
        raise ConfigError(f"DATASET.TASK {data.get('TASK')!r} is not supported", hint=f"known: {', '.join(steps)}")
    if data.get("BASIC_ALIGN"):
        raise ConfigError("DATASET.BASIC_ALIGN True is not supported", hint="only False is")
    options = {
        "step": steps[data["TASK"]],
        "objects": "mentioned" if data.get("ONLY_USE_RELEVANT_DETS") else "all",
        "flip": _number(settings, "FLIP_PROB", 0.0),
        "max_text": int(data.get("SEQ_LEN", 64)),
        "image": not network.get("BLIND"),
        "grounding": not network.get("NO_GROUNDING"),
        "choice_first": bool(network.get("ANSWER_FIRST")),
        "question": not data.get("QA2R_NOQ"),
    }
    weight = float(network.get("ANS_LOSS_WEIGHT", 1.0))
    objectives: dict[str, Any] = {"choice": {"sigmoid": bool(settings.network("CLASSIFIER_SIGMOID")), "weight": weight}}
    regulariser = _regulariser(settings)
    if regulariser is not None:
        objectives[regulariser] = {"weight": float(network.get("CNN_LOSS_WEIGHT", 1.0))}
    records = _records(settings)
    size = {"records": records, "tokens": 4 * records * POSITIONS}
    return {"choices": {"options": options, "objectives": objectives, **size}}


RATIONALES: dict[str, Any] = {"options": {"steps": ["rationale"]}, "metric": "QA2R"}


def _regulariser(settings: LegacySettings) -> str | None:
    """The objective that keeps VCR's network looking at its objects, of those whose head the network has."""
    if not settings.network("ENABLE_CNN_REG_LOSS"):
        return None
    if settings.network("CNN_LOSS_TOP"):
        return "region_class"
    return None if settings.network("IMAGE_FEAT_PRECOMPUTED") else "feature_class"


def _questions(settings: LegacySettings) -> dict[str, Any]:
    """Questions with the vocabulary that the configuration names. Theirs mirrors stored regions, too."""
    data = settings.own
    options = {"answers": data.get("ANSWER_VOCAB_FILE"), "flip": _number(settings, "FLIP_PROB", 0.0)}
    return {"questions": {"options": options, **_size(_records(settings))}}


def _lexical(settings: LegacySettings) -> dict[str, Any]:
    """English to German, over the list that the network names. Without vision it still reads the number of regions."""
    options = {"languages": ["de"], "words": settings.size("MLT_vocab")}
    return {"words": {"options": options, **_size(_records(settings))}}


def _encoder_decoder(settings: LegacySettings) -> dict[str, Any]:
    """English to German, all target positions in one pass."""
    options = {"sources": ["en"], "targets": ["de"], "images": True}
    objectives = {"lm": {"weight": 1.0, "label_smoothing": 0.0}}
    return {"pairs": {"options": options, "objectives": objectives, **_size(_records(settings))}}


def _batches(settings: LegacySettings) -> list[int]:
    """Samples per device, of each of the corpora.

    Raises:
        ConfigError: there are not as many numbers as corpora.
    """
    found = settings["TRAIN.BATCH_IMAGES"]
    batches = [int(n) for n in (found if isinstance(found, list) else [found])]
    if len(batches) != len(settings.datasets):
        raise ConfigError(
            f"numbers in TRAIN.BATCH_IMAGES: {len(batches)}, entries of DATASET: {len(settings.datasets)}",
            hint="each entry has a batch of its own: BATCH_IMAGES: [8, 8] for two",
        )
    return batches


def _read(settings: LegacySettings, texts: bool) -> list[int]:
    """Numbers of the entries of DATASET that something is learned from.

    These are the task's own, and where ``texts`` are learned from, all running text, if words are masked. No loss of
    the originals reads another one.

    Raises:
        ConfigError: there is none.
    """
    entries, texts = settings.datasets, texts and bool(settings.network("WITH_MLM_LOSS"))
    own = settings.own_number
    found = [n for n, data in enumerate(entries) if n == own or (texts and data.get("DATASET") == TEXT_CORPUS)]
    if not found:
        hint = "name a corpus of captions; running text is for WITH_MLM_LOSS in pre-training"
        raise ConfigError("nothing is learned from any entry of DATASET", hint=hint)
    return found


def _records(settings: LegacySettings) -> int:
    """Samples per device of :attr:`LegacySettings.own`."""
    return _batches(settings)[_read(settings, texts=False)[0]]


def _size(records: int) -> dict[str, int]:
    """Records per step and process; the token budget never cuts them."""
    return {"records": int(records), "tokens": int(records) * POSITIONS}


FAMILIES = {
    "pretraining": Family("pretraining", _pretraining, texts=True),
    "matching": Family("matching", _matching, used=LANGUAGES_READ),
    "translation-retrieval": Family(
        "translation-matching", _translation_matching, evaluation=_translations_matched, used=LANGUAGES_READ
    ),
    "distance": Family("distance", _distance, evaluation=_distances_compared, used=LANGUAGES_READ, texts=True),
    "lexical-translation": Family(
        "lexical-translation",
        _lexical,
        used=LANGUAGES_READ,
        left_out=tuple(f"NETWORK.WITH_{loss}_LOSS" for loss in ("REL", "MLM", "MVRC")),
    ),
    "translation": Family("masked-translation", _translation),
    "encoder-decoder": Family(
        "encoder-decoder",
        _encoder_decoder,
        left_out=("NETWORK.WITH_REL_LOSS", "NETWORK.WITH_MVRC_LOSS"),
    ),
    "question-answering": Family("vqa", _questions, used=("DATASET.ANSWER_VOCAB_", "TRAIN.FLIP_PROB")),
    "commonsense-reasoning": Family(
        "vcr",
        _commonsense,
        variant=lambda settings: None if _regulariser(settings) == "region_class" else "_vcr",
        evaluation=lambda settings: RATIONALES if settings.own.get("TASK") == "QA2R" else {},
        used=("DATASET.TASK", "DATASET.ONLY_USE", "TRAIN.FLIP_PROB"),
    ),
    "referring-expressions": Family(
        "referring-expressions",
        _expressions,
        used=(
            *("DATASET." + name for name in ("DATASET_PATH", "LABEL_INDEX", "TRAIN_IMAGE_SET", "TRAIN_BOXES", "VAL_")),
            "TRAIN.FLIP_PROB",
        ),
        evaluation=lambda settings: {"data": _refcoco(settings, "VAL")},
    ),
    "attention-maps": Family(
        instead="convert its checkpoint: mmbert convert CHECKPOINT --config FILE --out MODEL; then look: "
        "mmbert explain IMAGE TEXT --model MODEL --box ..."
    ),
}
"""What the originals' configurations are about. A new task fills its line in."""


def _model(settings: LegacySettings, config: MMBertConfig) -> dict[str, Any]:
    if settings.values["NETWORK"].get("BERT_FROZEN"):
        raise ConfigError("NETWORK.BERT_FROZEN True is not supported", hint="only False is")
    keys = NETWORK_KEYS if not config.num_decoder_layers else [*NETWORK_KEYS, *DECODER_KEYS]
    options = {key: getattr(config, key) for key in keys}
    if config.heads:
        options["heads"] = config.heads
    if config.vision is not None:  # the encoder says it
        options.pop("region_feature_size")
    network = settings.values["NETWORK"]
    init: dict[str, Any] = {"text": settings.network("BERT_MODEL_NAME")}
    start = network.get("PARTIAL_PRETRAIN")
    if start:
        init |= {"model": start, "mode": network.get("INITIALISATION") or "plain", **starts(settings, config)}
    backbone = network.get("IMAGE_PRETRAINED") if config.vision is not None else None
    weights = f"{backbone}-{int(network.get('IMAGE_PRETRAINED_EPOCH', 0)):04d}.model" if backbone else None
    return {"init": init, "config": options, "backbone_weights": weights, "tokenizer": {"lower_case": True}}


def starts(settings: LegacySettings, config: MMBertConfig) -> dict[str, Any]:
    """Where heads and segments start, as ``model.init`` says it.

    PARTIAL_PRETRAIN_PREFIX_CHANGES names parts of the pre-trained network and of the new one by their keys; with
    CLASSIFIER_PRETRAINED answers start from their words, with LOAD_REL_HEAD choices from the match head;
    PARTIAL_PRETRAIN_SEGMB_INIT copies segment row 0 to 1.

    Raises:
        ConfigError: a change between parts that are no transforms of heads.
    """
    network, rules = settings.values["NETWORK"], rules_for(config)
    heads: dict[str, dict[str, Any]] = {}
    for change in network.get("PARTIAL_PRETRAIN_PREFIX_CHANGES") or []:
        old, new = (canonical_name(f"{prefix}.").rstrip(".") for prefix in change.split("->"))
        if old == new:
            continue  # wrappers only, which are read anyway
        source, target = (_our_part(rules, prefix) for prefix in (old, new))
        if source not in ("token_head", "region_head") or not target.startswith("heads."):
            raise ConfigError(f"NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES: {change} is not supported")
        heads.setdefault(target.removeprefix("heads."), {})["transform"] = source
    if network.get("CLASSIFIER_PRETRAINED"):
        heads.setdefault("answer", {})["words"] = settings.own["ANSWER_VOCAB_FILE"]
    if network.get("LOAD_REL_HEAD") and "choice" in (config.heads or {}):
        heads.setdefault("choice", {})["match"] = True
    found: dict[str, Any] = {"heads": heads} if heads else {}
    return found | ({"segments": {1: 0}} if network.get("PARTIAL_PRETRAIN_SEGMB_INIT") else {})


def _our_part(rules: Iterable[Rule], prefix: str) -> str:
    """Our head whose dense layer they call ``prefix.dense``; the prefix itself where there is none."""
    for rule in rules:
        if rule.theirs[0] == f"{prefix}.dense.{{part}}":
            return rule.ours.removesuffix(".dense.{part}")
    return prefix


def _optimizer(settings: LegacySettings, records: int) -> dict[str, Any]:
    """AdamW or SGD as theirs; the rate of a step of ``records`` is that of theirs, whatever its samples were called."""
    names = {"AdamW": "adamw", "SGD": "sgd"}
    name = _training(settings, "OPTIMIZER", "SGD")
    if name not in names:
        raise ConfigError(f"TRAIN.OPTIMIZER {name!r} is not supported yet", hint=f"only {', '.join(names)} are")
    found = {
        "lr_per_sample": _number(settings, "LR") * sum(_batches(settings)) / records,
        "weight_decay": _number(settings, "WD"),
        "warmup_steps": int(_number(settings, "WARMUP_STEPS")) if _training(settings, "WARMUP") else 0,
        "clip": _number(settings, "CLIP_GRAD_NORM"),
        "name": names[name],
    }
    own = {"momentum": _number(settings, "MOMENTUM", 0.9)} if name == "SGD" else {"betas": [0.9, 0.999]}
    return found | own | _schedule(settings)


def _schedule(settings: LegacySettings) -> dict[str, Any]:
    """Linear to zero, or drops after epochs of which theirs has a list in words ("14,18")."""
    name = _training(settings, "LR_SCHEDULE", "step")
    if name == "triangle":
        return {"schedule": "linear", "milestones": []}
    if name != "step":
        raise ConfigError(f"TRAIN.LR_SCHEDULE {name!r} is not supported yet", hint="only triangle and step are")
    epochs = [float(epoch) for epoch in str(_training(settings, "LR_STEP")).split(",")]
    whole = _number(settings, "END_EPOCH")
    drops = [epoch / whole for epoch in epochs if epoch < whole]
    if not drops:
        return {"schedule": "constant", "milestones": []}
    return {"schedule": "multistep", "milestones": drops, "factor": _number(settings, "LR_FACTOR", 0.1)}


def _number(settings: LegacySettings, key: str, default: float | None = None) -> float:
    """``TRAIN.key``, a number.

    Raises:
        ConfigError: it is none, or is missing and has no default.
    """
    found = _training(settings, key, default)
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"TRAIN.{key} {found!r} is no number") from error


def _training(settings: LegacySettings, key: str, default: Any = None) -> Any:
    """``TRAIN.key``.

    Raises:
        ConfigError: it is missing and has no default: a configuration that only predicts has none.
    """
    section = settings.values.get("TRAIN") or {}
    if key not in section and default is None:
        raise ConfigError(f"TRAIN.{key} is missing", hint="a configuration without training is no recipe")
    return section.get(key, default)


def _ignored(given: Mapping[str, Any], further: tuple[str, ...] = (), left_out: tuple[str, ...] = ()) -> Iterator[str]:
    """Settings that say something which the recipe does not follow.

    ``further`` are starts of those that it follows, too, whichever entry of DATASET they stand in; ``left_out`` are
    starts of those that it never follows.
    """
    used = (*USED, *_packing(given.get("DATASET")))
    for key, value in _flat(given, ""):
        followed = ENTRY.sub("DATASET.", key).startswith(further) or key.startswith(used)
        followed = followed or (key.startswith("DATASET.") and key.endswith(USED_DATA))
        followed = followed and value == WARM_UP.get(key, value) and not key.startswith(left_out)
        says_nothing = value in ("", None, [], False) or key.startswith(RUNNING)
        if not followed and not says_nothing:
            yield f"{key} = {value}"


def _packing(data: Any) -> Iterator[str]:
    """Names of the settings that say how running text is packed, which captions have not."""
    for name, value in _flat(data, "DATASET"):
        if name.endswith(".DATASET") and value == TEXT_CORPUS:
            yield f"{name.removesuffix('DATASET')}MIN_SEQ_LEN"


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    nested: Any = None
    if isinstance(value, Mapping):
        nested = value.items()
    elif isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        nested = enumerate(value)
    if nested is None:
        yield name, value
        return
    for key, part in nested:
        yield from _flat(part, f"{name}.{key}" if name else str(key))
