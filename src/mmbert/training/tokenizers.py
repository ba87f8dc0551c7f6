"""A tokenizer before the first run: texts of corpora, recipes or files in, a folder and a coverage report out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mmbert.data.sources import open_data
from mmbert.data.text_files import texts_of_files, texts_of_sources
from mmbert.errors import DataError
from mmbert.text.coverage import Coverage, coverage, sampled
from mmbert.text.tokenizer import train_tokenizer
from mmbert.training.build import open_sources
from mmbert.training.checkpoints import written_aside
from mmbert.training.recipe import TokenizerRecipe, load_recipe


def gather(
    *, files: Sequence[str], data: Sequence[str], recipe: str | None, changes: Iterable[str]
) -> tuple[dict[str, list[str]], TokenizerRecipe]:
    """Distinct texts by language, and how a tokenizer of them is trained.

    Args:
        files: as for ``texts_of_files``.
        data: corpora, as for ``open_data``.
        recipe: a recipe's name or file: the corpora of all its components, and its ``model.tokenizer``.
        changes: ``key=value`` for the recipe.

    Raises:
        MMBertError: one of them cannot be read.
    """
    settings, sources = TokenizerRecipe(), [open_data(one) for one in data]
    if recipe is not None:
        loaded = load_recipe(recipe, changes)
        settings = loaded.model.tokenizer
        sources += list({id(source): source for source in open_sources(loaded).values()}.values())
    found: dict[str, dict[str, None]] = {}
    for texts in (texts_of_files(files), texts_of_sources(sources)):
        for language, more in texts.items():
            found.setdefault(language, {}).update(dict.fromkeys(more))
    return {language: list(texts) for language, texts in sorted(found.items())}, settings


def train_on(
    texts: Mapping[str, Sequence[str]], recipe: TokenizerRecipe, *, limit: int | None = None, seed: int = 1
) -> PreTrainedTokenizerBase:
    """A tokenizer as the recipe says, on texts drawn by its temperature."""
    drawn = sampled(texts, temperature=recipe.temperature, limit=limit, seed=seed)
    return train_tokenizer(drawn, vocab_size=recipe.vocab_size, kind=recipe.kind, special=recipe.add_special)


def train_and_write(
    texts: Mapping[str, Sequence[str]], recipe: TokenizerRecipe, out: Path, *, limit: int | None = None, seed: int = 1
) -> tuple[PreTrainedTokenizerBase, list[Coverage]]:
    """Train, write the folder (whole or not at all), and measure each language.

    Raises:
        DataError: there is no text.
        ConfigError: settings that do not go together, or too few entries.
    """
    if not any(texts.values()):
        raise DataError("no text to train a tokenizer on")
    tokenizer = train_on(texts, recipe, limit=limit, seed=seed)
    with written_aside(out) as folder:
        tokenizer.save_pretrained(folder)
    return tokenizer, coverage(tokenizer, texts, seed)
