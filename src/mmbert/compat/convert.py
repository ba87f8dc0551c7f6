"""Conversion of checkpoints: a ``.model`` file to one of our folders, and back.

A folder holds ``config.json``, ``model.safetensors``, the tokenizer, a card (``README.md``) and ``conversion.json``:
the original's key names and settings, by which converting back gives the same state dict bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmbert.compat.checkpoints import Checkpoint, canonical_name, first_name, read_checkpoint
from mmbert.compat.configs import NETWORKS, NetworkPlan, plan_from_tensors, plan_from_yaml
from mmbert.compat.keys import Rule, find, rules_for, their_tensors
from mmbert.compat.vocabularies import load_tokenizer
from mmbert.data.answers import read_answers
from mmbert.errors import CheckpointError, ConfigError, MMBertError, UsageError
from mmbert.files import new_folder, whole_file
from mmbert.model import conditional_generation, modeling, task_models
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertForPreTraining

WEIGHTS, RECORD = "model.safetensors", "conversion.json"
HEAD_WIDTH = 64
"""Of the published networks' attention heads."""
UNREAD = "unread.safetensors"
"""Tensors that the original saved and never read; only converting back needs them."""
SHOWN = 5
"""Names that an error lists."""


@dataclass
class ConversionReport:
    """What a conversion did.

    Attributes:
        out: the folder or file written.
        task: the network.
        used: number of tensors of the checkpoint that went into the result.
        missing: our tensors that the checkpoint has not (made at random).
        leftover: its tensors that our network has not (left out).
        beside: what else the file held (optimiser state and the like), left out.
    """

    out: Path
    task: str
    used: int
    missing: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)


def model_class(config: MMBertConfig) -> type[MMBertForPreTraining]:
    """The class that a configuration names as its architecture."""
    name = (config.architectures or ["MMBertForPreTraining"])[0]
    homes = (task_models, conditional_generation, modeling)
    found = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
    if found is None:
        raise ConfigError(f"unknown architecture {name!r}")
    return found


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    task: str | None = None,
    tokenizer: str | Path | None = None,
    allow_partial: bool = False,
    settings: Mapping[str, Any] | None = None,
    labels: str | Path | None = None,
) -> ConversionReport:
    """Turn a ``.model`` file into one of our model folders.

    Args:
        checkpoint: VL-BERT's or MM-BERT's file.
        out: the new folder.
        config: the YAML file that it was trained with.
        task: which network it is; needed without ``config``, overrules it otherwise.
        tokenizer: folder with ``vocab.txt`` (or a whole tokenizer), or a hub id; else what ``config`` names.
        allow_partial: missing and leftover tensors are reported instead of being an error.
        settings: without ``config``: what shapes do not say, such as ``num_attention_heads``.
        labels: a file that says what the outputs of the task's head are (answers, target words), one a line; without
            it the model gives numbers only.

    Raises:
        CheckpointError: the file is damaged, or does not fit the configuration.
        ConfigError: the configuration or the tokenizer is missing or unusable.
        UsageError: ``out`` exists already, or neither ``config`` nor ``task`` is given.
    """
    if config is None and task is None:
        raise UsageError("which network is it?", hint="give --config FILE.yaml or --task NAME")
    checkpoint, out = Path(checkpoint), Path(out)
    read = read_checkpoint(checkpoint)
    if config is not None:
        plan = plan_from_yaml(config, read.shapes, task)
    else:
        assert task is not None
        plan = _located(lambda: plan_from_tensors(read.shapes, str(task), settings), checkpoint)
        width = plan.config.hidden_size
        if "num_attention_heads" not in (settings or {}) and width % HEAD_WIDTH:
            message = f"attention heads are not {HEAD_WIDTH} wide in a network of {width}, and no tensor says how many"
            raise CheckpointError(message, where=str(checkpoint), hint="say it: --heads N, or give --config FILE.yaml")
    if labels is not None:
        plan.config.heads = _labelled(plan.config.heads or {}, Path(labels))
    beside = Path(config).parent if config is not None else None
    vocabulary = load_tokenizer(tokenizer or plan.tokenizer, beside)
    plan.config.mask_token_id = vocabulary.mask_token_id
    if len(vocabulary) > plan.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(vocabulary)} entries, the network {plan.config.vocab_size} word rows",
            hint="give the one it was trained with: --tokenizer",
        )
    tensors, report = assemble(read, plan, allow_partial=allow_partial)
    report.out = out
    with new_folder(out) as folder:
        plan.config.dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        plan.config.save_pretrained(folder)
        vocabulary.save_pretrained(folder)
        (folder / RECORD).write_text(json.dumps(_record(read, plan, report), ensure_ascii=False), "utf-8")
        (folder / "README.md").write_text(_card(checkpoint, plan, report), "utf-8")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        unread = {name: tensor.contiguous() for name, tensor in read.tensors.items() if _unread(plan, name)}
        if unread:
            save_file(unread, folder / UNREAD)
    return report


def _labelled(heads: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The heads, of which that with as many outputs as the file has lines knows what they mean."""
    labels = read_answers(path)
    fitting = [name for name, head in heads.items() if head.get("outputs") == len(labels)]
    if not fitting:
        there = ", ".join(f"{name} has {head.get('outputs')}" for name, head in heads.items()) or "there is none"
        raise ConfigError(f"{len(labels)} labels, but no head with so many outputs ({there})", where=str(path))
    return {**heads, fitting[0]: {**heads[fitting[0]], "labels": labels}}


def _unread(plan: NetworkPlan, name: str) -> bool:
    return name.startswith(NETWORKS[plan.task].unread)


def assemble(
    read: Checkpoint, plan: NetworkPlan, *, allow_partial: bool = False
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Our tensors from a checkpoint's.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape.
    """
    where = str(read.path) if read.path else None
    try:
        with torch.device("meta"):
            expected = model_class(plan.config)(plan.config)
    except MMBertError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no network can be made of this configuration: {error}", where=where) from error
    rules = rules_for(plan.config)
    made: dict[str, Tensor] = {}
    halves: dict[str, tuple[Rule, tuple[str, ...], Tensor]] = {}  # of which some parts are there
    missing: list[str] = []
    used: set[str] = set()
    for ours, wanted in expected.state_dict().items():
        found = find(rules, ours)
        names = found[1] if found else (ours,)
        absent = [name for name in names if name not in read.tensors]
        used.update(set(names) - set(absent))
        if found is None or absent:
            missing += absent
            if found is not None and len(absent) < len(names):
                halves[ours] = (found[0], names, wanted)
            continue
        made[ours] = _put_together(found[0], names, read.tensors, wanted, where)
    leftover = sorted(name for name in set(read.tensors) - used if not _unread(plan, name))
    if (missing or leftover) and not allow_partial:
        parts = [f"{len(n)} {what}: {_some(n)}" for what, n in (("missing", missing), ("left over", leftover)) if n]
        raise CheckpointError(
            f"the checkpoint is not of this network ({plan.task}); {'; '.join(parts)}",
            where=where,
            hint="is it the right configuration? --allow-partial converts what fits",
        )
    if missing:
        fresh = model_class(plan.config)(plan.config).state_dict()
        for ours, (rule, names, wanted) in halves.items():
            there = {name: read.tensors[name] for name in names if name in read.tensors}
            kind = next(iter(there.values())).dtype
            new = zip(names, rule.to_theirs(fresh[ours].to(kind)), strict=True)
            made[ours] = _put_together(rule, names, dict(new) | there, wanted, where)
        made = {name: made.get(name, tensor) for name, tensor in fresh.items()}
    return made, ConversionReport(Path(), plan.task, len(used), sorted(missing), leftover, read.beside)


def _put_together(
    rule: Rule, names: tuple[str, ...], theirs: Mapping[str, Tensor], wanted: Tensor, where: str | None
) -> Tensor:
    try:
        tensor = rule.to_ours([theirs[name] for name in names])
    except ValueError as error:
        raise CheckpointError(f"{names[0]} {error}", where=where) from error
    if tensor.shape != wanted.shape:
        shapes = [list(part.shape) for part in rule.to_theirs(torch.empty(wanted.shape, device="meta"))]
        raise CheckpointError(
            f"{names[0]} is {list(theirs[names[0]].shape)} instead of {shapes[0]}",
            where=where,
            hint="the configuration is of another size, or of another network",
        )
    if tensor.is_floating_point() != wanted.is_floating_point():
        raise CheckpointError(f"{names[0]} holds {tensor.dtype}, which are no weights", where=where)
    return tensor.contiguous()


def convert_back(folder: str | Path, out: str | Path) -> ConversionReport:
    """Write a model folder as a ``.model`` file of the originals; beside it, the YAML file where it is known.

    Raises:
        CheckpointError: no model there, or a network that the originals have not.
        UsageError: ``out`` exists already.
    """
    folder, out = Path(folder), Path(out)
    record = _read_record(folder)
    config = _read_config(folder)
    yaml_file = out.with_suffix(".yaml") if record.get("settings") else None
    if yaml_file == out:
        raise UsageError(f"{out} is where the YAML file goes", hint="end the checkpoint's name in .model")
    for path in (out, yaml_file):
        if path is not None and path.exists():
            raise UsageError(f"{path} exists already", hint="give a new file")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}", hint="create it first")
    ours = _tensors(folder / WEIGHTS)
    unread = _tensors(folder / UNREAD) if (folder / UNREAD).is_file() else {}
    missing = set(record.get("missing", ()))
    try:
        theirs = their_tensors(rules_for(config), ours) | unread
    except KeyError as error:
        raise CheckpointError(
            f"{error.args[0]} has no counterpart in VL-BERT's networks",
            where=str(folder),
            hint="it cannot be written back",
        ) from error
    keys = record.get("keys") or _usual_keys(theirs, nested="choice" in (config.heads or {}))
    state = {key: theirs[first_name(canonical_name(key))] for key in keys}
    state |= {
        n: t for n, t in theirs.items() if n not in missing and n not in {first_name(canonical_name(k)) for k in keys}
    }
    with whole_file(out) as part:
        with part.open("wb") as file:
            torch.save({"state_dict": state}, file)
        if yaml_file is not None:
            yaml_file.write_text(yaml.safe_dump(record["settings"], sort_keys=False), "utf-8")
    of_class = (name for name, network in NETWORKS.items() if [network.architecture] == config.architectures)
    task = record.get("task") or next(of_class, "pretraining")
    return ConversionReport(out, task, len(theirs.keys() - missing), [], [], [])


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise CheckpointError(f"cannot read the weights: {error}", where=str(path)) from error


def _usual_keys(theirs: Mapping[str, Tensor], nested: bool) -> list[str]:
    """The keys that an original would save: every tensor, and tied ones by their second name.

    Args:
        theirs: tensors by canonical name.
        nested: the network runs once per choice, and stands within a wrapper therefore.
    """
    keys = []
    last_stage = "image_feature_extractor.roi_head_feature_extractor."
    for name in theirs:
        keys.append(name)
        if name.endswith("mlm_head.predictions.bias"):
            keys.append(name.removesuffix("bias") + "decoder.weight")
        if name.startswith(last_stage):
            keys.append("image_feature_extractor.head.0." + name.removeprefix(last_stage))
    return [key.replace("vlbert.", "vlbert._module.", 1) if nested else key for key in keys]


def _read_config(folder: Path) -> MMBertConfig:
    if not (folder / "config.json").is_file():
        hint = "give a model folder, such as mmbert convert makes"
        raise CheckpointError("no model here: config.json is missing", where=str(folder), hint=hint)
    try:
        return MMBertConfig.from_pretrained(folder)
    except Exception as error:
        raise CheckpointError(f"cannot read config.json: {error}", where=str(folder)) from error


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError("not valid JSON", where=str(path)) from error
    return record if isinstance(record, dict) else {}


def _record(read: Checkpoint, plan: NetworkPlan, report: ConversionReport) -> dict[str, Any]:
    left = set(report.leftover)
    keys = [key for key in read.original_keys if first_name(canonical_name(key)) not in left]
    return {
        "task": plan.task,
        "keys": keys,
        "missing": report.missing,
        "leftover": report.leftover,
        "settings": plan.settings,
    }


def _card(checkpoint: Path, plan: NetworkPlan, report: ConversionReport) -> str:
    config = plan.config
    lines = [
        "---", "library_name: mm-bert", "tags: [mm-bert, vision-language, vl-bert]", "---", "",
        f"# {checkpoint.stem}", "",
        f"Converted by mm-bert from the VL-BERT / MM-BERT checkpoint `{checkpoint.name}`; the network is "
        f"{plan.task} (`{NETWORKS[plan.task].architecture}`).",
        f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.vocab_size} word pieces.", "",
        "Its tokenizer lower-cases text and strips accents, as the original's did.", "",
        "```python", f"from mmbert import {NETWORKS[plan.task].architecture}", "",
        f'model = {NETWORKS[plan.task].architecture}.from_pretrained("PATH OF THIS FOLDER")', "```",
    ]  # fmt: skip
    for title, found in (("Not in the checkpoint, so made at random", report.missing), ("Left out", report.leftover)):
        if found:
            lines += ["", f"## {title}", "", *(f"- `{name}`" for name in found)]
    return "\n".join(lines) + "\n"


def _located(make: Any, path: Path) -> NetworkPlan:
    try:
        return make()
    except ConfigError as error:
        raise CheckpointError(error.message, where=error.where or str(path), hint=error.hint) from error


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
