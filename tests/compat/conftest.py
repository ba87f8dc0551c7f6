"""A small pre-training checkpoint with its YAML file and vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from originals import pretraining_shapes, random_state, settings, write_vocabulary, write_yaml
from torch import Tensor

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def state() -> dict[str, Tensor]:
    """Every tensor of a pre-training network under the originals' names."""
    return random_state(pretraining_shapes())


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the vocabulary."""
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "words")


@pytest.fixture(scope="session")
def config(words: Path) -> Path:
    """The YAML file, beside the vocabulary that it names."""
    return write_yaml(words.parent / "pretrain.yaml", settings())
