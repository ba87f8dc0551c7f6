"""A run from recipe to model folder: it learns, repeats itself bit by bit, goes on where it stopped, fails clearly."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from colours import save_picture
from safetensors.torch import load_file
from stopping import interrupt

import mmbert.training.run
from mmbert import MMBert
from mmbert.cli.main import run
from mmbert.data.mixture import StepDataset
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from mmbert.errors import CheckpointError, ConfigError, DataError, MMBertError, TrainingError
from mmbert.evaluation.measures import Measured, retrieval
from mmbert.evaluation.retrieval import evaluate_retrieval
from mmbert.objectives import itc
from mmbert.tasks.retrieval import RetrievalTask
from mmbert.training import build
from mmbert.training.checkpoints import read_manifest
from mmbert.training.module import TrainingModule
from mmbert.training.recipe import Recipe, load_recipe
from mmbert.training.run import TrainingResult, train
from mmbert.training.trainer import PackedTrainer

torch.set_num_threads(1)
MakeRecipe = Callable[..., Recipe]
CHANCE = 1 / 12
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "region_dropout")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


class _Recorded:
    """Makes trainers as usual and notes their folders."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    def __call__(self, *args: Any, **kwargs: Any) -> PackedTrainer:
        made = PackedTrainer(*args, **kwargs)
        self.folders.append(Path(made.args.output_dir))
        return made


def log_of(result: TrainingResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]


def losses(result: TrainingResult) -> list[dict[str, Any]]:
    """What was logged at each step, without the clock."""
    timeless = [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")} for line in log_of(result)
    ]
    return [line for line in timeless if "loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def learned(recipe_of: MakeRecipe, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """Sixty steps, measured at 20, 40 and 60."""
    recipe = recipe_of(
        steps=60,
        model={"config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}},
        components={"main": {"records": 12}},
        evaluation={"data": str(photos), "every": 20},
        save_dtype="fp16",
    )
    return train(recipe, tmp_path_factory.mktemp("run") / "out")


def test_it_learns(learned: TrainingResult) -> None:
    measured = learned.metrics["evaluation"]
    for direction in ("text_to_image", "image_to_text"):
        for language in ("mean", "en", "de", "fr"):
            assert measured[direction][language]["R@1"] > 6 * CHANCE, (direction, language)


def test_losses_fall_and_are_logged_by_component_and_objective(learned: TrainingResult) -> None:
    found = losses(learned)
    assert [line["step"] for line in found] == list(range(1, 61))
    for name in ("main/itc", "main/proxy", "main/itm_hard", "masked/mlm", "masked/mvfr"):
        early, late = (np.mean([line[name] for line in part]) for part in (found[:10], found[-10:]))
        assert late < early, name
    assert all(0 <= line["main/itc/text_to_image"] <= 1 for line in found)


def test_the_best_checkpoint_is_kept(learned: TrainingResult) -> None:
    measured = [line["eval_R@1"] for line in log_of(learned) if "eval_R@1" in line]
    assert len(measured) == 3
    assert learned.model == learned.folder / "best"
    assert learned.metrics["evaluation"]["text_to_image"]["mean"]["R@1"] == max(measured)


def test_what_is_saved_is_what_was_measured(learned: TrainingResult, photos: Path) -> None:
    source = open_data(str(photos))
    records = [source[i] for i in range(len(source))]
    for folder in ("best", "last"):
        model = MMBert.from_pretrained(learned.folder / folder, device="cpu")
        again = evaluate_retrieval(model, records, mode="embed")
        stated = json.loads((learned.folder / folder / "metrics.json").read_text())["evaluation"]
        assert again["text_to_image"]["mean"]["R@1"] == pytest.approx(stated["text_to_image"]["mean"]["R@1"], abs=0.03)


def test_what_is_told_of_a_tuned_model_is_measured_with_its_weights_and_queries(
    recipe_of: MakeRecipe, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live model goes on with the recipe's weights; those that were tuned are stored with the model alone."""
    seen: list[tuple[float, float]] = []
    tuned = iter([(0.1, 0.5), (9.0, 0.25), (7.0, 1.0), (5.0, 0.75)])  # the first before the first step
    measure = retrieval.measure

    def noting(model: MMBert, records: Sequence[Record], options: retrieval.Options) -> Measured:
        seen.append((model.config.rerank_weight, model.config.hub_weight))
        found = measure(model, records, options)
        bank = model.model.embedding_head.query_bank
        return Measured(found.report | {"weights": seen[-1], "bank": float(bank.sum())}, {"R@1": len(seen)})

    monkeypatch.setattr(retrieval, "measure", noting)
    monkeypatch.setattr(retrieval, "tune", lambda *_: next(tuned))
    evaluation = {
        "data": str(photos), "every": 2, "mode": "rerank", "tune_rerank": True, "query_bank": 4,
    }  # fmt: skip
    result = train(
        recipe_of(steps=4, evaluation=evaluation, model={"config": {"rerank_weight": 2.0}}), tmp_path / "out"
    )
    own = (2.0, 0.0)
    assert seen == [own, own, (9.0, 0.25), own, (7.0, 1.0), (5.0, 0.75)], "before, step 2, best, step 4, best, last"
    for folder, weights in (("best", (7.0, 1.0)), ("last", (5.0, 0.75))):
        model = MMBert.from_pretrained(result.folder / folder, device="cpu")
        stated = json.loads((result.folder / folder / "metrics.json").read_text())["evaluation"]
        assert (model.config.rerank_weight, model.config.hub_weight) == weights == tuple(stated["weights"])
        assert float(model.model.embedding_head.query_bank.sum()) == pytest.approx(stated["bank"], abs=1e-5)


def test_a_model_folder_says_where_it_comes_from(learned: TrainingResult) -> None:
    for folder in (learned.folder / "best", learned.folder / "last"):
        recipe = load_recipe(str(folder / "recipe.yaml"))
        assert (recipe.name, recipe.steps) == ("colours", 60)
        versions = json.loads((folder / "versions.json").read_text())
        assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert versions["transformers"] == transformers.__version__
        assert "mm-bert" in versions
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert "# colours" in card
        assert "Knows six colours." in card
        share = json.loads((folder / "metrics.json").read_text())["evaluation"]["text_to_image"]["de"]["R@1"]
        assert f"| de | {100 * share:.1f} |" in card
    written = json.loads((learned.folder / "metrics.json").read_text())
    assert written == learned.metrics
    assert written["seconds"] > 0
    assert not list(learned.folder.glob("tmp*")), "a folder that was written aside was left behind"


def test_the_stored_precision_is_the_recipes(learned: TrainingResult) -> None:
    stored = weights(learned.model)
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    assert MMBert.from_pretrained(learned.model, device="cpu").model.dtype == torch.float32


def test_proxies_are_not_part_of_the_model(learned: TrainingResult) -> None:
    assert not [k for k in weights(learned.model) if "prox" in k or "states" in k]


def test_the_same_recipe_gives_the_same_weights_bit_by_bit(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_of(augment={}, optimizer={"clip": 0.5})
    torch.manual_seed(99)
    first = train(recipe, tmp_path / "first")
    torch.manual_seed(1)
    np.random.seed(1)
    second = train(recipe, tmp_path / "second")
    assert same(weights(first.model), weights(second.model))
    assert losses(first) == losses(second)
    other = train(recipe_of(augment={}, seed=4), tmp_path / "other")
    assert not same(weights(first.model), weights(other.model))


@pytest.mark.parametrize("changes", [{}, {"accumulation": 2}], ids=["plain", "accumulating"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    changes: dict[str, Any], recipe_of: MakeRecipe, photos: Path, tmp_path: Path
) -> None:
    """Weights, their average, the optimiser, the data and every random number go on."""
    recipe = recipe_of(
        save_every=3,
        augment={},
        evaluation={"data": str(photos), "every": 4, "query_bank": 3},
        model={"config": {"hidden_dropout_prob": 0.3}},
        **changes,
    )
    undisturbed = train(recipe, tmp_path / "undisturbed")
    interrupt(recipe, tmp_path / "interrupted", 5)
    assert (tmp_path / "interrupted" / "state" / "checkpoint-3").is_dir()
    torch.manual_seed(12345)
    resumed = train(recipe, tmp_path / "interrupted")
    assert same(weights(resumed.folder / "last"), weights(undisturbed.folder / "last"))
    assert same(weights(resumed.folder / "best"), weights(undisturbed.folder / "best"))
    average = Path("state", "checkpoint-6", "average.safetensors")
    assert same(load_file(resumed.folder / average), load_file(undisturbed.folder / average))
    last_steps = [line for line in losses(resumed) if line["step"] > 5]
    assert last_steps == [line for line in losses(undisturbed) if line["step"] > 5]
    assert resumed.metrics["evaluation"] == undisturbed.metrics["evaluation"]
    assert len(weights(resumed.model)["embedding_head.query_bank"]) == 3


@pytest.mark.parametrize("every", [None, 4])
def test_a_finished_run_stays_as_it_is(
    every: int | None, recipe_of: MakeRecipe, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repeating the command does nothing; where it died before the end, the last model is measured again."""
    out, path = tmp_path / "out", tmp_path / "recipe.yaml"
    recipe = recipe_of(steps=5, save_every=2, evaluation={"data": str(photos), "every": every})
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    first = train(recipe, out)
    assert not first.before
    written = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.rglob("*") if file.is_file()}
    again = train(recipe, out)
    assert (again.model, again.metrics, again.before) == (first.model, first.metrics, True)
    assert run(["train", str(path), "--out", str(out)]) == 0
    assert "finished before" in capsys.readouterr().out
    assert written == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.rglob("*") if file.is_file()}

    beside = json.loads((out / "last" / "metrics.json").read_text())
    (out / "metrics.json").unlink()
    shutil.rmtree(out / "last")
    ended = train(recipe, out)
    assert ended.metrics["evaluation"] == first.metrics["evaluation"] != {}
    assert json.loads((out / "last" / "metrics.json").read_text()) == beside
    assert "## Measured" in (out / "last" / "README.md").read_text()


def test_the_time_of_all_sessions_is_counted(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    interrupt(recipe_of(save_every=2), tmp_path / "out", 3)
    path = tmp_path / "out" / "state" / "checkpoint-2" / "manifest.json"
    content = json.loads(path.read_text())
    assert content["seconds"] > 0
    path.write_text(json.dumps(content | {"seconds": 1000.0}))
    resumed = train(recipe_of(save_every=2), tmp_path / "out")
    assert 1000 < resumed.seconds < 1100
    assert resumed.metrics["seconds"] == pytest.approx(resumed.seconds, abs=0.1)
    assert read_manifest(tmp_path / "out" / "state" / "checkpoint-8").seconds > 1000


def test_logs_and_checkpoints_may_come_at_other_steps_when_a_run_goes_on(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(recipe_of(save_every=2, log_every=1, keep=9), out, 3)
    resumed = train(recipe_of(save_every=3, log_every=4, keep=9), out)
    assert [line["step"] for line in losses(resumed)] == [1, 2, 4, 8]
    assert {path.name for path in (out / "state").iterdir()} == {f"checkpoint-{n}" for n in (2, 3, 6, 8)}
    undisturbed = train(recipe_of(save_every=2), tmp_path / "undisturbed")
    assert same(weights(resumed.model), weights(undisturbed.model))


def test_a_run_of_another_recipe_is_not_continued(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    interrupt(recipe_of(save_every=2), tmp_path / "out", 3)
    with pytest.raises(TrainingError, match=r"another recipe.*--no-resume"):
        train(recipe_of(save_every=2, optimizer={"lr": 0.005}), tmp_path / "out")
    fresh = train(recipe_of(save_every=2, optimizer={"lr": 0.005}), tmp_path / "out", resume=False)
    assert same(
        weights(fresh.model), weights(train(recipe_of(save_every=2, optimizer={"lr": 0.005}), tmp_path / "b").model)
    )
    assert [line["step"] for line in losses(fresh)] == list(range(1, 9))


def test_a_loss_that_is_not_finite_ends_the_run(
    recipe_of: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = itc.compute, []

    def breaking(*arguments: Any) -> Any:
        term = compute(*arguments)
        calls.append(term)
        if len(calls) == 4:
            term.total = term.total * math.nan
        return term

    monkeypatch.setattr(itc, "compute", breaking)
    with pytest.raises(TrainingError, match="the loss is nan at step 4"):
        train(recipe_of(save_every=3), tmp_path / "out")
    state = tmp_path / "out" / "state" / "checkpoint-3"
    assert all(torch.isfinite(t).all() for t in load_file(state / "average.safetensors").values())


def test_without_evaluation_the_last_model_is_the_result(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    result = train(recipe_of(steps=2), tmp_path / "out")
    assert result.model == tmp_path / "out" / "last"
    assert result.metrics["evaluation"] == {}
    assert result.skipped == []


def test_an_evaluation_at_the_end_only(recipe_of: MakeRecipe, photos: Path, tmp_path: Path) -> None:
    result = train(recipe_of(steps=2, evaluation={"data": str(photos)}), tmp_path / "out")
    assert 0 <= result.metrics["evaluation"]["text_to_image"]["mean"]["R@1"] <= 1
    assert not (tmp_path / "out" / "best").exists()


CANNOT_MEASURE: list[tuple[dict[str, Any], bool, str]] = [
    ({"options": {"mode": "match"}}, False, "does not judge pairs"),
    ({"measure": "vqa"}, True, "no question"),
    ({"measure": "translation"}, True, "does not write"),
    ({"measure": "grounding"}, True, "does not ground expressions"),
]


@pytest.mark.parametrize(("evaluation", "judges", "message"), CANNOT_MEASURE, ids=[m for *_, m in CANNOT_MEASURE])
def test_what_cannot_be_measured_is_an_error_before_the_first_step(
    evaluation: dict[str, Any], judges: bool, message: str,
    recipe_of: MakeRecipe, photos: Path, tmp_path: Path,
) -> None:  # fmt: skip
    content = recipe_of(evaluation={"data": str(photos)} | evaluation).model_dump()
    if not judges:
        content["model"]["config"]["match_outputs"] = 0
        del content["components"]["main"]["objectives"]["itm_hard"]
    (tmp_path / "out" / "last").mkdir(parents=True)
    with pytest.raises(MMBertError, match=message):
        train(Recipe.model_validate(content), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["last"], "an earlier run stays as it was"


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"metric": "R@01"}, "retrieval gives no figure 'R@01'.*did you mean 'R@1'"),
        ({"metric": "medianrank", "every": 2}, "did you mean 'median_rank'"),
        ({"metric": "zzz", "every": 2}, r"it gives: R@1, R@5, R@10, median_rank"),
    ],
)
def test_a_figure_that_is_not_measured_is_an_error(
    evaluation: dict[str, Any], message: str, recipe_of: MakeRecipe, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(recipe_of(evaluation={"data": str(photos)} | evaluation), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_looking_whether_it_can_be_measured_changes_nothing(
    recipe_of: MakeRecipe, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the few records that are tried lack what the others have."""
    plain = train(recipe_of(steps=3), tmp_path / "plain")
    measure, tried = retrieval.measure, []

    def moody(model: MMBert, records: Sequence[Record], options: retrieval.Options) -> Measured:
        tried.append(len(records))
        random.random(), np.random.rand(), torch.rand(3)
        if len(records) < 12:
            raise DataError("nothing to evaluate")
        return measure(model, records, options)

    monkeypatch.setattr(retrieval, "measure", moody)
    watched = train(recipe_of(steps=3, evaluation={"data": str(photos)}), tmp_path / "watched")
    assert tried == [6, 12, 12]
    assert same(weights(watched.model), weights(plain.model))
    assert watched.metrics["evaluation"]


def test_a_figure_that_fails_in_the_end_costs_no_model(
    recipe_of: MakeRecipe, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(model: MMBert, records: Sequence[Record], options: retrieval.Options) -> Measured:
        if (tmp_path / "out").exists():
            raise DataError("scores are not numbers")
        return Measured({}, {"R@1": 0.0})

    monkeypatch.setattr(retrieval, "measure", failing)
    with pytest.raises(DataError, match="not numbers"):
        train(recipe_of(steps=2, evaluation={"data": str(photos)}), tmp_path / "out")
    assert MMBert.from_pretrained(tmp_path / "out" / "last", device="cpu")
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e3])
def test_accumulated_gradients_are_those_of_all_batches_labels(
    clip: float, recipe_of: MakeRecipe, tmp_path: Path
) -> None:
    """The gradient norm of a first step of two batches, against both batches' gradients by their shares of labels."""
    content = recipe_of(steps=1, accumulation=2, model={"config": dict.fromkeys(DROPOUTS, 0.0)}).model_dump()
    content["components"]["main"]["objectives"] = {"itc": {}}
    content["optimizer"]["clip"] = clip
    recipe = Recipe.model_validate(content)
    logged = losses(train(recipe, tmp_path / "out"))[0]

    sources = build.open_sources(recipe)
    bert = build.build_model(recipe.model, sources, recipe.seed)
    components = build.build_components(recipe, sources, bert.processor)
    images = bert.processor.augmented_images(None)
    dataset = StepDataset(components, batches=2, images=images, seed=recipe.seed)
    module = TrainingModule(bert.model.train(), build.objective_options(recipe))
    batches = [dataset[number] for number in (0, 1)]
    total = sum(module(batch, plans)["loss"] for batch, plans in zip(batches, module.plan(batches), strict=True))
    total.backward()
    norm = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    assert logged["loss"] == pytest.approx(total.item(), rel=1e-4)


def test_bf16_trains_too(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    result = train(recipe_of(steps=2, precision="bf16"), tmp_path / "out")
    assert all(torch.isfinite(t).all() for t in weights(result.model).values())
    assert MMBert.from_pretrained(result.model, device="cpu").encode_text("rot").shape == (1, 16)


def test_training_goes_on_from_a_saved_model(recipe_of: MakeRecipe, learned: TrainingResult, tmp_path: Path) -> None:
    recipe = recipe_of(steps=1).model_dump()
    recipe["model"] = {"init": str(learned.model), "config": {"hidden_dropout_prob": 0.2, "rerank_weight": 0.5}}
    recipe["optimizer"] |= {"lr": 1e-9, "ema": 0.0, "weight_decay": 0.0}
    result = train(Recipe.model_validate(recipe), tmp_path / "out")
    before, after = (
        MMBert.from_pretrained(learned.model, device="cpu"),
        MMBert.from_pretrained(result.model, device="cpu"),
    )
    assert after.config.hidden_dropout_prob == 0.2
    assert after.rerank_weight == 0.5
    np.testing.assert_allclose(after.encode_text("dark red"), before.encode_text("dark red"), atol=1e-4)
    frozen = {n for n, p in after.model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in after.model.named_parameters() if ".vision." in n}


@pytest.mark.parametrize("form", ["name", "parts", "tokenizer"])
def test_a_run_does_not_delete_what_it_starts_from(
    form: str, recipe_of: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = train(recipe_of(steps=1), "out")
    content = recipe_of(steps=1).model_dump()
    init = {"name": "out/last", "parts": {"model": ["out/../out/last"]}}
    content["model"] = {"tokenizer": {"path": "out/last"}} if form == "tokenizer" else {"init": init[form]}
    for resume in (True, False):
        with pytest.raises(ConfigError, match=r"model\..*out/last is part of the run's own folder.*another --out"):
            train(Recipe.model_validate(content), tmp_path / "out", resume=resume)
    assert MMBert.from_pretrained(first.model, device="cpu")


def test_a_recipe_can_start_from_another_recipes_model(
    recipe_of: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stage-one.yaml"
    path.write_text(yaml.safe_dump(recipe_of(name="stage-one", steps=2).model_dump(mode="json")))
    second = recipe_of(steps=1).model_dump()
    second["model"] = {"init": f"recipe:{path}"}
    second["optimizer"] |= {"lr": 1e-9, "ema": 0.0, "weight_decay": 0.0}
    out = tmp_path / "out"
    result = train(Recipe.model_validate(second), out)
    alone = train(load_recipe(str(path)), tmp_path / "alone")
    first = out / "first" / alone.model.name
    for name, tensor in weights(alone.model).items():
        assert torch.equal(weights(first)[name], tensor), name
        torch.testing.assert_close(weights(result.model)[name], tensor, atol=1e-6, rtol=1e-3)
    assert f"Started from `recipe:{path}`" in (result.model / "README.md").read_text()

    trained = []
    monkeypatch.setattr(mmbert.training.run, "PackedTrainer", _Recorded(trained))
    train(Recipe.model_validate(second), out)
    assert trained == [out / "state"], "the first stage is done"
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))
    with contextlib.suppress(TrainingError):  # its unfinished-run check speaks first where a checkpoint is left
        train(Recipe.model_validate(second), out)
    train(Recipe.model_validate(second), out, resume=False)
    assert out / "first" / "state" in trained


def test_sizes_of_a_saved_model_cannot_change(recipe_of: MakeRecipe, learned: TrainingResult, tmp_path: Path) -> None:
    recipe = recipe_of().model_dump()
    recipe["model"] = {"init": str(learned.model), "config": {"hidden_size": 32}}
    with pytest.raises(ConfigError, match=r"model\.config\.hidden_size cannot change"):
        train(Recipe.model_validate(recipe), tmp_path / "out")
    recipe["model"] = {"init": "nothing-here"}
    with pytest.raises(CheckpointError, match="nothing-here"):
        train(Recipe.model_validate(recipe), tmp_path / "out")


@pytest.mark.parametrize("vision_lr", [0, 1e-3, None])
def test_the_vision_encoder_has_its_own_rate(vision_lr: float | None, recipe_of: MakeRecipe, tmp_path: Path) -> None:
    changes = {"model": {"config": {"vision": {"trainable": True}}}, "optimizer": {"vision_lr": vision_lr}}
    one, two = (train(recipe_of(steps=n, **changes), tmp_path / str(n)) for n in (1, 2))
    first, second = weights(one.model), weights(two.model)
    vision = [k for k in first if ".vision." in k]
    assert vision
    assert all(torch.equal(first[k], second[k]) for k in vision) == (vision_lr == 0)
    assert not torch.equal(first["match_head.weight"], second["match_head.weight"])


CONFIG_ERRORS = [
    ({"components": {"main": {"task": "retreival"}}}, "did you mean 'retrieval'"),
    ({"components": {"main": {"objectives": {"mlm": {}}}}}, "makes no labels for objective 'mlm'"),
    ({"components": {"main": {"objectives": {"itm_hrd": {}}}}}, "did you mean 'itm_hard'"),
    ({"components": {"main": {"objectives": {"itc": {"wieght": 2}}}}}, "unknown key 'wieght'.*did you mean 'weight'"),
    ({"components": {"main": {"options": {"text_per_record": 2}}}}, "did you mean 'texts_per_record'"),
    ({"model": {"config": {"hiden_size": 2}}}, "did you mean 'hidden_size'"),
    ({"model": {"config": {"hidden_size": 65}}}, "multiple of num_attention_heads"),
    ({"model": {"config": {"hidden_size": "wide"}}}, "hidden_size"),
    ({"model": {"config": {"vision": {"backbone": "test_vitt"}}}}, "did you mean 'test_vit'"),
    ({"augment": {"rotat": 2}}, "did you mean 'rotate'"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIG_ERRORS, ids=[m for _, m in CONFIG_ERRORS])
def test_wrong_names_are_config_errors(
    changes: dict[str, Any], message: str, recipe_of: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(recipe_of(**changes), tmp_path / "out")


def copy_of(photos: Path, folder: Path, **columns: Callable[[int], str]) -> Path:
    """The folder again, with further metadata columns."""
    shutil.copytree(photos, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row | {name: value(i) for name, value in columns.items()} for i, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_bad_records_are_errors_or_counted(recipe_of: MakeRecipe, photos: Path, tmp_path: Path) -> None:
    folder = copy_of(photos, tmp_path / "data")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "nowhere.png", "caption_en": "nothing"}')
    recipe = recipe_of(steps=2, components={name: {"data": str(folder)} for name in ("main", "masked")})
    with pytest.raises(DataError, match=r"metadata\.jsonl:13"):
        train(recipe, tmp_path / "out")
    result = train(recipe, tmp_path / "out", skip_bad=True)
    assert len(result.skipped) == 1
    assert "metadata.jsonl:13" in result.skipped[0][0]


def test_a_folder_that_cannot_be_written_is_an_error(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot write"):
        train(recipe_of(), tmp_path / "file")


def test_epochs_are_passes_over_the_longest_component(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    """Twelve records in batches of five are three batches."""
    recipe = recipe_of(steps=None, epochs=1.5, components={"masked": {"records": 12, "tokens": 9999}})
    assert [line["step"] for line in losses(train(recipe, tmp_path / "out"))] == [1, 2, 3, 4, 5]
    shorter = recipe_of(steps=None, epochs=0.1, min_steps=2, components={"masked": {"records": 12, "tokens": 9999}})
    assert len(losses(train(shorter, tmp_path / "short"))) == 2


def own_data(recipe_of: MakeRecipe, folder: Path, **changes: Any) -> Recipe:
    parts = {"main": {"data": None}, "masked": {"data": None}}
    return recipe_of(steps=3, data=str(folder), components=parts, evaluation={"every": 3}, **changes)


def test_own_data_is_trained_on_its_train_split_and_judged_on_its_validation_split(
    recipe_of: MakeRecipe, photos: Path, tmp_path: Path
) -> None:
    splits = ["train"] * 8 + ["validation"] * 3 + ["test"]
    folder = copy_of(photos, tmp_path / "data", split=lambda i: splits[i])
    used: list[str] = []

    examples = RetrievalTask.examples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetrievalTask, "examples", lambda s, r, g: used.append(r.split) or examples(s, r, g))
        result = train(own_data(recipe_of, folder), tmp_path / "out")
    assert set(used) == {"train"}
    assert result.model.name == "best"
    assert result.metrics["evaluation"]["text_to_image"]["mean"]["R@5"] == 1.0, "three pictures to choose from"


def test_validation_and_test_splits_are_never_trained_on(recipe_of: MakeRecipe, photos: Path, tmp_path: Path) -> None:
    """Also where the rest of the folder carries no name of a split."""
    folder = tmp_path / "data"
    copy_of(photos, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for row in rows[8:]:
        row["split"] = "validation"
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for source in build.open_sources(own_data(recipe_of, folder)).values():
        assert {source[i].split for i in range(len(source))} == {None}
        assert len(source) == 8


def test_a_component_without_data_is_an_error(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"components\.main needs data"):
        train(recipe_of(components={"main": {"data": None}}), tmp_path / "out")


def test_pictures_of_two_folders_with_the_same_names_are_not_mixed_up(
    recipe_of: MakeRecipe, photos: Path, tmp_path: Path
) -> None:
    other = copy_of(photos, tmp_path / "other")
    for path in other.glob("*.png"):
        save_picture(path, "white")
    one, two = (
        train(recipe_of(steps=1, components={"masked": {"data": str(folder)}}), tmp_path / folder.name)
        for folder in (photos, other)
    )
    assert losses(one)[0]["masked/mvfr"] != losses(two)[0]["masked/mvfr"]
