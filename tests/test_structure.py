"""The shape of the code base: import layers, and what the cheap imports must not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "lancedb", "gradio", "numpy", "pyarrow", "PIL"}


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | env, check=False
    )


def test_imports_point_one_way() -> None:
    checker = Path(sys.executable).with_name("lint-imports")
    assert checker.exists(), "import-linter is part of the dev extra"
    done = subprocess.run([checker, "--no-logo", "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_layers_contract_notices_an_import_in_the_wrong_direction(tmp_path: Path) -> None:
    (tmp_path / "mmbert").mkdir()
    layers = "cli search evaluation training tasks compat api data objectives vision text model".split()
    names = [*layers, "html", "plugins", "files", "errors"]
    for name in ["__init__", *names]:
        (tmp_path / "mmbert" / f"{name}.py").write_text("")
    (tmp_path / "mmbert" / "model.py").write_text("import mmbert.cli\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    checker = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [checker, "--no-logo", "--no-cache"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 1
    assert "mmbert.model -> mmbert.cli" in done.stdout


@pytest.mark.parametrize(
    "module", ["mmbert", "mmbert.cli.main", "mmbert.cli.common", "mmbert.cli._runs", "mmbert.training.run_folder"]
)
def test_cheap_modules_import_nothing_heavy(module: str) -> None:
    done = run_python(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(json.loads(done.stdout))


def test_help_imports_no_command_and_nothing_heavy() -> None:
    done = run_python(
        "import sys\nfrom mmbert.cli.main import run\ncode = run(['--help'])\n"
        "print('LOADED', *sorted(sys.modules))\nsys.exit(code)"
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("LOADED ")[2].split())
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith("mmbert.cli.")} == {"mmbert.cli.main"}


def test_every_name_of_the_front_door_says_where_it_lives() -> None:
    import mmbert

    for name in mmbert.__all__:
        assert getattr(mmbert, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    import mmbert

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = mmbert.Nothing
